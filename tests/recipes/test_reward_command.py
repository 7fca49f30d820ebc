"""`align reward` on a user's own model and pairs: what it saves is a reward."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.testing import assert_close

from tests.recipes.conftest import Align, metrics_of, weights_of

REWARD = (
    "reward", "--model", "model", "--data", "preferences.jsonl", "--eval-data", "few_preferences.jsonl",
    "--pairs-per-step", 8, "--learning-rate", 1e-2, "--centring", 0.01,
)  # fmt: skip


def test_what_is_saved_is_a_classifier_and_a_reward_of_other_commands(align: Align, place: Path, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    align(*REWARD, "--steps", 20, "--directory", tmp_path / "run")
    last = metrics_of(tmp_path / "run")[-1]
    assert last["eval/preference/accuracy"] == 1.0 and "eval/reward_model/calibration_error" in last
    final = tmp_path / "run" / "final"
    assert "text-classification" in (final / "README.md").read_text()
    output = tmp_path / "answers.jsonl"
    ask = ("eval", "--model", "model", "--data", "few.jsonl", "--max-new-tokens", 6)
    told = align(*ask, "--reward", f"model:{final}=0.5", "--output", output)
    assert "model" in told
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    texts = [answer["prompt"] + answer["completion"] + tokenizer.eos_token for answer in answers]
    with torch.no_grad():
        scores = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    assert_close(scores, torch.tensor([answer["parts"]["model"] for answer in answers]), rtol=1e-4, atol=1e-5)

    more = ("--steps", 2, "--prompts-per-step", 2, "--group-size", 2, "--max-new-tokens", 4)
    align("grpo", "--model", "model", "--data", "few.jsonl", "--reward", f"model:{final}", *more,
          "--directory", tmp_path / "grpo")  # fmt: skip
    align("reward", "--model", final, *REWARD[3:], "--steps", 1, "--directory", tmp_path / "more")
    assert weights_of(tmp_path / "more").keys() == weights_of(tmp_path / "run").keys()


def test_what_is_no_reward_model_is_refused_in_one_line(align: Align, tmp_path: Path):
    ask = ("eval", "--model", "model", "--data", "few.jsonl", "--max-new-tokens", 6, "--reward")
    assert "no such folder" in align(*ask, "model:./nothing", code=2)
    train = ("grpo", "--model", "./nowhere", "--data", "nothing.jsonl", "--directory", tmp_path / "run", *ask[-1:])
    for command in (ask, train):  # before the data and the policy are looked for
        assert "model:model: is no reward model but a causal LM: train one" in align(*command, "model:model", code=2)
    told = align(*REWARD[:3], "--data", "prompts.jsonl", "--directory", tmp_path / "run", code=2)
    assert "prompts.jsonl" in told and "chosen" in told
    told = align(*REWARD, "--margin", "unsure", "--directory", tmp_path / "run", code=2)
    assert "unsure" in told
