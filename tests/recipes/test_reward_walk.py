"""The pairs of the walk task's reward model, a small run of it, and PPO against what it learned."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from recipes import walk
from recipes.answers_walk import Answer
from recipes.reward_walk import PAIRINGS, evened, pairs_of, rows_of
from tests.forks import Forks

PROMPT = [{"role": "user", "content": "aRRRRRRRRRR.."}]
SMALL = [
    "--sft-steps", "40", "--steps", "2", "--prompts", "30", "--samples", "6", "--held-out-samples", "2",
    "--pairs-per-step", "4", "--evaluate-every", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    served = Forks(tmp_path_factory.mktemp("reward_walk") / "log", "recipes.reward_walk", "recipes.ppo_walk")
    yield served
    served.close()


@pytest.fixture(scope="module")
def run(forks, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    assert forks.do("recipes.reward_walk:main", arguments=[*SMALL, "--directory", str(directory)]) == 0, forks.said
    (directory / "said.txt").write_text(forks.said)
    return directory


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairing_of(row: dict) -> str:
    right, wrong = ("</think>" in row[side][0]["content"] for side in ("chosen", "rejected"))
    return PAIRINGS[right, wrong]


def test_each_right_answer_is_preferred_to_each_wrong_one_of_its_walk_and_repetitions_count_once():
    said = [("<think>b</think>b", True), ("a", False), ("a", False), ("b", True), ("  ", False), ("<think>c", False)]
    pairs = pairs_of([[Answer(PROMPT, text, 1, right) for text, right in said], [Answer(PROMPT, "a", 1, False)]])
    texts = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs]
    assert texts == [(right, wrong) for right in ("<think>b</think>b", "b") for wrong in ("a", "<think>c")]
    assert [row["pairing"] for row in pairs] == ["think_over_guess"] * 2 + ["both_guess"] * 2
    assert rows_of([row["pairing"] for row in pairs]) == {"both_guess": [2, 3], "think_over_guess": [0, 1]}


def test_no_pairing_of_style_is_learned_from_more_often_than_that_in_which_both_think():
    many = dict(zip(PAIRINGS.values(), (5, 9, 40, 2), strict=True))
    pairs = [{"pairing": name, "number": number} for name, count in many.items() for number in range(count)]
    kept = evened(pairs, seed=0)
    assert Counter(row["pairing"] for row in kept) == dict(zip(PAIRINGS.values(), (5, 5, 5, 2), strict=True))
    assert len({(row["pairing"], row["number"]) for row in kept}) == len(kept)
    assert kept == evened(pairs, seed=0) != evened(pairs, seed=1)


def test_pairs_to_learn_from_and_to_measure_on_share_no_walk_and_name_their_style_and_order_truly(run):
    walks = {}
    for name in ("pairs", "held_out"):
        for row in rows(run / f"{name}.jsonl"):
            (turn,) = row["prompt"]
            walks.setdefault(name, set()).add(turn["content"])
            ends = [row[side][0]["content"].split("</think>")[-1] for side in ("chosen", "rejected")]
            assert ends[0] == walk.squares_of(turn["content"])[-1] != ends[1]
            assert row["pairing"] == pairing_of(row)
    held_out, demonstrated, _ = walk.splits(0, 0)
    assert walks["held_out"] <= set(held_out) and not walks["pairs"] & {*held_out, *demonstrated}


def test_a_small_run_shows_the_accuracy_of_each_style_and_saves_a_reward_model(run):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from align.reward_head import load_reward_model, model_reward

    first, last = rows(run / "metrics.jsonl")[0], rows(run / "metrics.jsonl")[-1]
    assert {"eval/preference/accuracy", "eval/preference/both_guess", "eval/reward_model/calibration_error"} <= set(
        last
    )
    assert set(first) <= set(last)
    held_out = rows(run / "held_out.jsonl")
    assert "held-out pairs of a right and a wrong answer" in (run / "said.txt").read_text()
    model, tokenizer = (
        kind.from_pretrained(run / "final") for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False) for row in held_out[:5]]
    with torch.no_grad():
        scores = model(**tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)).logits[:, 0]
    reward = model_reward(load_reward_model(run / "final"), tokenizer)
    own = reward(prompts=[row["prompt"] for row in held_out[:5]], completions=[row["chosen"] for row in held_out[:5]])
    assert_close(scores, torch.tensor(own), rtol=1e-4, atol=1e-5)


def test_ppo_is_paid_the_learned_score_alone_and_shows_the_truth_beside_it(forks, run, tmp_path):
    some = ["--sft-steps", "40", "--steps", "2", "--prompts-per-step", "8", "--evaluate-every", "0", "--quiet"]
    learned = ["--reward-model", str(run / "final"), "--directory", str(tmp_path)]
    assert forks.do("recipes.ppo_walk:main", arguments=[*some, *learned]) == 0, forks.said
    for line in (rows(tmp_path / "metrics.jsonl")[0], rows(tmp_path / "metrics.jsonl")[-1]):
        assert line["eval/reward/mean"] == pytest.approx(line["eval/reward/model"])
        assert 0 <= line["eval/reward/right_square"] <= 1 and 0 <= line["eval/reward/thinks"] <= 1
