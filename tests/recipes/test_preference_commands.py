"""`align dpo` and `align kto` on a user's own model and data, and DPO and KTO on the walk task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.answers_walk import Answer
from recipes.dpo_walk import pairs_of
from recipes.kto_walk import feedback_of
from tests.forks import Forks
from tests.recipes.conftest import Align, metrics_of, turn, write

QUICK = ("--learning-rate", 1e-2, "--evaluate-every", 0)
DPO = ("dpo", "--model", "model", "--data", "preferred.jsonl", *QUICK, "--pairs-per-step", 8)
KTO = ("kto", "--model", "model", "--data", "liked.jsonl", *QUICK, "--examples-per-step", 8)


def test_dpo_learns_to_prefer_and_measures_it_on_held_out_pairs(align: Align, tmp_path: Path):
    told = align(*DPO, "--eval-data", "preferred.jsonl", "--steps", 15, "--directory", tmp_path / "run")
    assert "learning from preferred.jsonl: 40 answers in 20 pairs of" in told
    measured = [line for line in metrics_of(tmp_path / "run") if "eval/loss" in line]
    assert measured[0]["eval/loss"] == pytest.approx(0.6931472) and measured[0]["eval/preference/margin"] == 0
    assert measured[-1]["eval/loss"] < 0.6 and measured[-1]["eval/preference/accuracy"] > 0.6


def test_kto_learns_to_tell_what_is_liked_from_what_is_not_on_held_out_answers_too(align: Align, tmp_path: Path):
    align(*KTO, "--eval-data", "liked.jsonl", "--steps", 15, "--directory", tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    measured = [line for line in lines if "eval/loss" in line]
    assert lines[-1]["preference/chosen_reward"] > lines[-1]["preference/rejected_reward"]
    assert measured[0]["eval/loss"] == pytest.approx(0.5) and measured[-1]["eval/loss"] < 0.48
    assert measured[-1]["eval/preference/chosen_reward"] > measured[-1]["eval/preference/rejected_reward"]


def test_a_reference_is_computed_once_and_that_of_others_is_refused_in_one_line(align: Align, place, tmp_path: Path):
    cache = ("--reference-cache", tmp_path / "reference", "--steps", 2, "--directory")
    assert f"computed once, and written to {tmp_path / 'reference'}" in align(*DPO, *cache, tmp_path / "first")
    told = align(*DPO, *cache, tmp_path / "lora", "--lora-rank", 4, "--beta", 0.3)
    assert f"taken from {tmp_path / 'reference'}" in told
    told = align("dpo", "--model", tmp_path / "first" / "final", *DPO[3:], *cache, tmp_path / "second", code=2)
    assert "reference: was made with other weights than this run starts with: take them back, or remove" in told
    (tmp_path / "others.jsonl").write_text((place / "preferred.jsonl").read_text().replace("+", "-"))
    told = align(*DPO, "--eval-data", tmp_path / "others.jsonl", *cache, tmp_path / "others", code=2)
    assert "is of other data: it lacks" in told
    assert "which has no reference: leave it out" in align(*DPO, *cache, tmp_path / "none", "--loss", "orpo", code=2)


@pytest.mark.parametrize("loss", ["robust", "hinge", "ipo", "apo-zero", "apo-down", "simpo", "orpo"])
def test_every_loss_of_pairs_takes_two_steps(align: Align, tmp_path: Path, loss: str):
    align(*DPO, "--loss", loss, "--steps", 2, "--directory", tmp_path / loss, "--quiet")
    assert all(line["optim/grad_norm"] > 0 for line in metrics_of(tmp_path / loss))


def test_a_loss_brings_the_settings_of_its_paper_and_given_ones_hold(align: Align, tmp_path: Path):
    align(*DPO, "--loss", "simpo", "--sft-weight", 0.5, "--steps", 1, "--directory", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["dpo"]
    assert (config["beta"], config["sft_weight"]) == (2.0, 0.5)
    assert "means nothing to --loss hinge" in align(*DPO, "--loss", "hinge", "--label-smoothing", 0.1, code=2)


def test_a_pair_without_a_difference_is_named_before_the_model_is_looked_for(align: Align, place: Path, tmp_path: Path):
    pairs = [json.loads(line) for line in (place / "preferred.jsonl").read_text().splitlines()]
    pairs[2]["rejected"] = pairs[2]["chosen"]
    write(place, **{"bad-pairs": pairs})
    arguments = ("dpo", "--data", "bad-pairs.jsonl", "--model")
    told = align(*arguments, "./nowhere", code=2)
    assert "bad-pairs.jsonl:3: rejected: the same as chosen" in told and "nowhere" not in told
    told = align(*arguments, "model", "--degenerate", "drop", "--steps", 1, "--directory", tmp_path / "run")
    assert "in 19 pairs of" in told and "; 1 degenerate" in told


# ---- mixtures


def chat_of(row: dict) -> dict:
    """A row of strings as one of messages."""
    turns = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    return {name: [turn(turns[name], value)] if name in turns else value for name, value in row.items()}


@pytest.fixture(scope="module")
def parts(place: Path) -> Path:
    """A folder each of plain and of conversational rows for every command that learns from given answers."""
    for name, source in (("sft", "pairs"), ("dpo", "preferred"), ("kto", "liked"), ("reward", "preferences")):
        rows = [json.loads(line) for line in (place / f"{source}.jsonl").read_text().splitlines()]
        for form, some in (("plain", rows[:20]), ("chats", [chat_of(row) for row in rows[20:40] or rows[:20]])):
            (place / name / form).mkdir(parents=True)
            write(place / name / form, train=some[:16], test=some[16:])
    return place


@pytest.mark.parametrize(
    ("command", "size", "told"),
    [
        ("sft", "--examples-per-step", "32 examples of"),
        ("dpo", "--pairs-per-step", "64 answers in 32 pairs of"),
        ("kto", "--examples-per-step", "32 answers in 32 rows of"),
        ("reward", "--pairs-per-step", "64 answers in 32 pairs of"),
    ],
)
def test_every_command_learns_from_and_measures_on_a_mixture_and_goes_on_with_it(
    align: Align, parts: Path, tmp_path: Path, command: str, size: str, told: str
):
    data = f"mix:{command}/plain=0.25,{command}/chats/train.jsonl=0.75"
    held_out = f"mix:{command}/plain=1,{command}/chats=1"
    given = (command, "--model", "model", size, 4, "--directory", tmp_path / "run", "--save-every", 1)
    said = align(*given, "--data", data, "--eval-data", held_out, "--steps", 2)
    assert f"learning from {data}: {told}" in said and f"measuring on {held_out}: " in said
    assert "eval/loss" in metrics_of(tmp_path / "run")[-1]
    said = align(*given, "--data", data.replace("0.75", "0.5"), "--eval-data", held_out, "--resume", code=2)
    assert "data.data: " in said
    train = parts / command / "chats" / "train.jsonl"
    before = train.read_text()
    train.write_text(before.replace("=", "-"))
    said = align(*given, "--data", data, "--eval-data", held_out, "--steps", 2, "--resume", code=2)
    assert "fingerprint.data: " in said
    train.write_text(before)
    align(*given, "--data", data, "--eval-data", held_out, "--steps", 2, "--resume")


def test_the_cache_of_a_reference_holds_for_the_mixture_that_it_was_made_of(align: Align, parts: Path, tmp_path: Path):
    cache = (*DPO[:3], *DPO[5:], "--steps", 1, "--reference-cache", tmp_path / "reference")
    said = align(*cache, "--data", "mix:dpo/plain=0.2,dpo/chats=0.8", "--directory", tmp_path / "first")
    assert "computed once, and written to" in said
    for weights, code, words in (((0.2, 0.8), 0, "taken from"), ((0.8, 0.2), 2, "is of other data: it lacks")):
        data = "mix:dpo/plain={},dpo/chats={}".format(*weights)
        assert words in align(*cache, "--data", data, "--directory", tmp_path / str(code), code=code)


@pytest.mark.parametrize(
    ("command", "other", "what"),
    [
        ("sft", "dpo/chats", "dpo/chats/train.jsonl:1: completion: no row has this column"),
        ("dpo", "kto/plain", "kto/plain/train.jsonl:1: chosen: no row has this column"),
        ("kto", "sft/plain", "sft/plain/train.jsonl:1: label: no row has this column"),
        ("reward", "sft/chats", "sft/chats/train.jsonl:1: chosen: no row has this column"),
        ("sft", "sft/nothing.jsonl", "sft/nothing.jsonl: no such file"),
    ],
)
def test_a_part_of_another_form_is_named(
    align: Align, parts: Path, tmp_path: Path, command: str, other: str, what: str
):
    data = f"mix:{command}/plain=1,{other}=1"
    assert what in align(command, "--model", "./nowhere", "--data", data, "--directory", tmp_path / "run", code=2)


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    served = Forks(tmp_path_factory.mktemp("walk") / "log", "recipes.dpo_walk", "recipes.kto_walk", "transformers")
    yield served
    served.close()


@pytest.mark.parametrize("name, size", [("dpo_walk", "--pairs-per-step"), ("kto_walk", "--examples-per-step")])
def test_the_walk_is_learned_from_the_models_own_answers(forks: Forks, tmp_path: Path, name: str, size: str):
    arguments = ["--sft-steps", "25", "--prompts", "20", "--samples", "8", "--steps", "2", size, "4", "--quiet"]
    arguments += ["--directory", str(tmp_path / "run")]
    assert forks.do(f"recipes.{name}:main", arguments=arguments) == 0, forks.said
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert rows and rows[0].keys() >= {"prompt"}
    lines = metrics_of(tmp_path / "run")
    assert {"eval/reward/right_square", "eval/reward/thinks"} <= lines[0].keys() & lines[-1].keys()
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_size > 0


def test_right_answers_are_preferred_to_wrong_ones_of_the_same_walk_and_liked():
    prompt = [{"role": "user", "content": "kRDLU"}]
    told = [Answer(prompt, text, 2, right) for text, right in (("a", False), ("b", True), ("", False), ("c", True))]
    (pair,) = pairs_of([told, told[:1], told[1:2]])
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("b", "a")
    assert [(row["completion"][0]["content"], row["label"]) for row in feedback_of([told])] == [
        ("a", False), ("b", True), ("c", True)
    ]  # fmt: skip
