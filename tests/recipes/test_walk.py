"""The walk recipe: its task, its command, and what a kill -9 at any instant leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes import walk
from tests.forks import Forks

# Just enough of a warm-up that a guess is right now and then, or nothing would be learned and nothing could be lost.
SMALL = [
    "--sft-steps", "25", "--steps", "12", "--prompts-per-step", "4", "--group-size", "8", "--updates-per-rollout", "2",
    "--save-every", "1", "--evaluate-every", "0", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    modules = ("recipes.grpo_walk", "recipes.ppo_walk", "accelerate", "transformers")
    served = Forks(tmp_path_factory.mktemp("walk") / "log", *modules)
    yield served
    served.close()


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    assert forks.do("recipes.grpo_walk:main", arguments=[*SMALL, "--directory", str(directory)]) == 0, forks.said
    return directory


def weights(directory: Path):
    return load_file(directory / "final" / "model.safetensors")


def test_a_small_run_leaves_a_report_a_model_and_its_numbers(whole):
    for name in ("report.html", "final/model.safetensors", "final/README.md", "warm-up/final/model.safetensors"):
        assert (whole / name).stat().st_size > 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(13))
    assert {"eval/reward/right_square", "eval/reward/thinks"} <= set(lines[0]) & set(lines[-1])
    assert any((value != weights(whole / "warm-up")[name]).any() for name, value in weights(whole).items())


def test_ppo_starts_where_grpo_does_and_leaves_a_value_head(forks, whole, tmp_path):
    some = [
        "--prompts-per-step",
        "32",
        "--group-size",
        "8",
        "--steps",
        "8",
        "--sft-steps",
        "25",
        "--evaluate-every",
        "0",
        "--quiet",
    ]
    assert forks.do("recipes.ppo_walk:main", arguments=[*some, "--directory", str(tmp_path)]) == 0, forks.said
    assert_close(weights(tmp_path / "warm-up"), weights(whole / "warm-up"), rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["kl/completion"] == pytest.approx(0, abs=1e-4) and lines[5]["kl/completion"] > 1e-4
    assert {"eval/reward/right_square", "eval/reward/thinks"} <= set(lines[0]) & set(lines[-1])
    assert load_file(tmp_path / "final" / "value_head.safetensors")["weight"].abs().max() > 0
    assert (tmp_path / "report.html").stat().st_size > 0


def kill_and_resume(forks: Forks, directory: Path, draw: random.Random, *, inside_a_save: bool) -> None:
    """Kill a run once, at a random instant or with a checkpoint half-written, and resume it to its end."""
    arguments = [*SMALL, "--directory", str(directory)]
    pid = forks.start("recipes.grpo_walk:main", arguments=arguments)
    checkpoints = directory / "checkpoints"
    if inside_a_save:
        after = draw.randint(1, 10)
        while not list(checkpoints.glob(f".unfinished-checkpoint-{after}")):
            assert not (checkpoints / "checkpoint-12").exists(), "the save was over before it was seen: try again"
    else:
        time.sleep(draw.uniform(0.0, 2.5))
    os.kill(pid, signal.SIGKILL)
    assert forks.wait() == -signal.SIGKILL, "the run ended before it was killed: make it longer"
    code = forks.do("recipes.grpo_walk:main", arguments=[*arguments, "--resume"])
    assert code == 0, forks.said


def check_kills(forks: Forks, whole: Path, directory: Path, seeds: range) -> None:
    for seed in seeds:
        kill_and_resume(forks, directory / str(seed), random.Random(seed), inside_a_save=seed % 3 == 0)
        assert_close(weights(directory / str(seed)), weights(whole), rtol=0, atol=0)


def test_a_run_killed_at_any_instant_ends_bitwise_as_one_left_alone(forks, whole, tmp_path):
    check_kills(forks, whole, tmp_path, range(3))


@pytest.mark.slow
def test_twenty_runs_killed_a_third_inside_a_save_end_bitwise_as_one_left_alone(forks, whole, tmp_path):
    check_kills(forks, whole, tmp_path, range(3, 23))


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_grpo_discovers_that_thinking_pays_and_more_demonstrations_do_not(forks, tmp_path, seed):
    numbers = {}
    for name, more in (("grpo", []), ("control", ["--control"])):
        arguments = ["--seed", seed, "--quiet", "--evaluate-every", "0", "--directory", str(tmp_path / name), *more]
        assert forks.do("recipes.grpo_walk:main", arguments=arguments) == 0, forks.said
        numbers[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    before, after, control = numbers["grpo"][0], numbers["grpo"][-1], numbers["control"][-1]
    assert 0.25 <= before["eval/reward/right_square"] <= 0.40
    assert after["eval/reward/right_square"] >= 0.95 and after["eval/reward/thinks"] >= 0.95
    assert control["eval/reward/right_square"] < 0.75


def test_a_walk_wraps_at_the_edges_of_the_board():
    assert walk.squares_of("aULDR" + "." * 8) == "uyea"


def test_the_splits_share_no_prompt_and_are_all_of_one_width():
    held_out, demonstrated, practised = walk.splits(0, 2000)
    assert len({*held_out, *demonstrated, *practised}) == 512 + 500 + 2000
    assert {len(prompt) for prompt in practised} == {13}
    assert {len(prompt.rstrip(".")) - 1 for prompt in practised} == {10, 11, 12}


def test_a_shorter_practice_is_the_beginning_of_a_longer_one():
    assert walk.splits(0, 2000)[2][:10] == walk.splits(0, 10)[2]


def test_demonstrations_answer_rightly_and_the_given_share_thinks():
    rows = walk.demonstrations(walk.walks(1000, seed=0), thinking=0.4, seed=0)
    for row in rows:
        answer = row["completion"][0]["content"]
        assert answer[-1] == walk.squares_of(row["prompt"][0]["content"])[-1]
    assert 0.35 < sum("<think>" in row["completion"][0]["content"] for row in rows) / 1000 < 0.45


def test_text_becomes_ids_and_text_again():
    tokenizer = walk.walk_tokenizer()
    text = "<think>lqpk</think>g"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == 7
