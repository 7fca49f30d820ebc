"""The pairs of the walk task, and a small run of its reward model."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from recipes import reward_walk, walk


def test_right_and_wrong_answers_come_in_all_pairings_of_style():
    rows = reward_walk.preferences(walk.walks(400, seed=0), seed=0)
    counts = Counter(row["thinks"] for row in rows)
    assert len(counts) == 4 and min(counts.values()) > 70
    for row in rows:
        (right,), (wrong,) = row["chosen"], row["rejected"]
        end = walk.squares_of(row["prompt"][0]["content"])[-1]
        assert right["content"][-1] == end != wrong["content"][-1]
        assert tuple("</think>" in turn["content"] for turn in (right, wrong)) == row["thinks"]
        if all(row["thinks"]):
            assert len(right["content"]) == len(wrong["content"])
    assert rows == reward_walk.preferences(walk.walks(400, seed=0), seed=0)


def test_a_mistaken_walk_starts_at_the_same_square_and_ends_at_another():
    draw = random.Random(0)
    for prompt in walk.walks(50, seed=1):
        other = reward_walk.mistaken(prompt, draw)
        assert other[0] == prompt[0] and len(other) == len(prompt) and other != prompt


def test_a_small_run_measures_each_style_and_saves_a_reward_model(tmp_path):
    words = ["--sft-steps", "2", "--steps", "2", "--pairs", "40", "--pairs-per-step", "4", "--quiet"]
    with pytest.raises(SystemExit) as ended:
        reward_walk.main([*words, "--directory", str(tmp_path)])
    assert ended.value.code == 0
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"eval/preference/accuracy", "eval/preference/both_think", "eval/preference/both_guess"} <= set(last)
    assert "Llama" in json.loads((tmp_path / "final" / "config.json").read_text())["architectures"][0]
