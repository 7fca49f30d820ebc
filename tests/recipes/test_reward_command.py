"""`align reward` on a user's own model and pairs: it resumes exactly, and what it saves is a reward."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.recipes.conftest import Align

REWARD = (
    "reward", "--model", "model", "--data", "preferences.jsonl", "--eval-data", "few_preferences.jsonl",
    "--pairs-per-step", 8, "--learning-rate", 1e-2, "--centring", 0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(place: Path) -> None:
    """Pairs whose chosen answer is the sum, and whose rejected one is not."""
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    written = [
        {"prompt": row["prompt"], "chosen": row["answer"], "rejected": f"{row['answer']} or so", "sure": n % 3}
        for n, row in enumerate(rows)
    ]
    for name, some in {"preferences": written, "few_preferences": written[:20]}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    (file,) = (run / "final").glob("*.safetensors")
    return load_file(file), metrics


@pytest.mark.parametrize("more", [("--margin", "sure"), ("--lora-rank", 4)], ids=["all weights, margins", "lora"])
def test_a_reward_run_killed_at_any_instant_resumes_to_the_weights_of_one_that_was_not(align, pairs, tmp_path, more):
    arguments = (*REWARD, "--steps", 20, "--save-every", 1, *more)
    align(*arguments, "--directory", tmp_path / "whole")
    killed = tmp_path / "killed"
    for _ in range(2):
        pid = align.start(*arguments, "--directory", killed, *(("--resume",) if killed.exists() else ()))
        deadline = time.monotonic() + 60
        had = set(killed.glob("checkpoints/checkpoint-*"))
        while not set(killed.glob("checkpoints/checkpoint-*")) - had and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(random.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        assert align.wait() == -signal.SIGKILL, align.said
    assert "Finished after 20 steps" in align(*arguments, "--directory", killed, "--resume")
    (one, its_metrics), (other, metrics) = outcome(tmp_path / "whole"), outcome(killed)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert its_metrics == metrics
    assert metrics[-1]["eval/preference/accuracy"] == 1.0 and "eval/reward_model/calibration_error" in metrics[-1]


def test_what_is_saved_is_a_classifier_and_a_reward_of_other_commands(align: Align, pairs, place: Path, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    align(*REWARD, "--steps", 20, "--directory", tmp_path / "run")
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
    (again, _) = outcome(tmp_path / "run")
    align("reward", "--model", final, *REWARD[3:], "--steps", 1, "--directory", tmp_path / "more")
    assert outcome(tmp_path / "more")[0].keys() == again.keys()


def test_what_is_no_reward_model_is_refused_in_one_line(align: Align, pairs, tmp_path: Path):
    ask = ("eval", "--model", "model", "--data", "few.jsonl", "--max-new-tokens", 6, "--reward")
    assert "no such folder" in align(*ask, "model:./nothing", code=2)
    train = ("grpo", "--model", "./nowhere", "--data", "nothing.jsonl", "--directory", tmp_path / "run", *ask[-1:])
    for command in (ask, train):  # before the data and the policy are looked for
        assert "model:model: is no reward model but a causal LM: train one" in align(*command, "model:model", code=2)
    told = align(*REWARD[:3], "--data", "prompts.jsonl", "--directory", tmp_path / "run", code=2)
    assert "prompts.jsonl" in told and "chosen" in told
    told = align(*REWARD, "--margin", "unsure", "--directory", tmp_path / "run", code=2)
    assert "unsure" in told
