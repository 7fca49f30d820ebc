"""`align export`: the model of a checkpoint, saved as a finished run saves its own."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.conftest import Align, metrics_of

MODEL = ("--model", "model", "--data")
PROMPTS = (*MODEL, "few.jsonl", "--reward", "rules.py:letters", "--max-new-tokens", 6, "--prompts-per-step", 2)
RUNS = {
    "sft": ("sft", *MODEL, "pairs.jsonl"),
    "dpo": ("dpo", *MODEL, "preferred.jsonl", "--lora-rank", 2),
    "kto": ("kto", *MODEL, "liked.jsonl"),
    "reward": ("reward", *MODEL, "preferences.jsonl", "--lora-rank", 2),
    "grpo": ("grpo", *PROMPTS, "--group-size", 4),
    "ppo": ("ppo", *PROMPTS),
    "ppo with a value model": ("ppo", *PROMPTS, "--value-model", "scorer"),
    "a classic agent": (
        "classic", "ppo", "--env", "CartPole-v1", "--eval-episodes", 2, "--num-envs", 2, "--rollout-steps", 8,
        "--env-steps", 32,
    ),
}  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.relative_to(folder)}/{name}": value for file in files for name, value in load_file(file).items()}


def files(folder: Path) -> set[Path]:
    return {file.relative_to(folder) for file in folder.rglob("*")}


@pytest.mark.parametrize("name", RUNS)
def test_the_model_of_a_checkpoint_is_what_the_run_saved_there(align: Align, tmp_path: Path, name: str):
    steps = () if name == "a classic agent" else ("--steps", 2, "--learning-rate", 1e-2)
    align(*RUNS[name], *steps, "--save-every", 1, "--directory", tmp_path / "run")
    told = align("export", tmp_path / "run")
    final, newest = tmp_path / "run" / "final", tmp_path / "run" / "exported-2"
    assert str(newest) in told and files(newest) == files(final)
    assert all(torch.equal(weights(newest)[name], value) for name, value in weights(final).items())
    align("export", tmp_path / "run", "--step", 1, "--output", tmp_path / "first")
    assert weights(tmp_path / "first").keys() == weights(final).keys()
    assert any((weights(tmp_path / "first")[name] != value).any() for name, value in weights(final).items())


def test_a_run_that_was_stopped_says_how_to_have_its_model_even_if_it_was_moved_since(align: Align, tmp_path: Path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    pid = align.start(*RUNS["sft"], "--steps", 1000, "--directory", run)
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert align.wait() == 143 and f"align export {run}" in align.said
    shutil.move(run, moved)
    align("export", moved)
    step = len(metrics_of(moved))
    assert f"Trained for {step} steps" in (moved / f"exported-{step}" / "README.md").read_text()
    assert not run.exists()


def test_adapters_are_merged_into_a_plain_model_that_says_the_same(align: Align, tmp_path: Path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    lora = ("--lora-rank", 2, "--lora-targets", "q_proj", "v_proj", "--learning-rate", 1e-2)
    align(*RUNS["sft"], *lora, "--steps", 3, "--directory", tmp_path / "run")
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert {name.split(".lora_")[0].split(".")[-1] for name, _ in adapted.named_parameters() if "lora_" in name} == {
        "q_proj",
        "v_proj",
    }
    align("export", tmp_path / "run", "--merge", "--output", tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapted(ids).logits)
    assert not list((tmp_path / "plain").glob("adapter*"))


def test_adapters_on_layers_that_are_not_there_or_without_a_rank_are_refused(align: Align, tmp_path: Path):
    refused = (*RUNS["sft"], "--lora-targets", "q_porj", "--directory", tmp_path / "run")
    assert "give a lora_rank" in align(*refused, code=2)
    assert "q_porj" in align(*refused, "--lora-rank", 2, code=2)


def test_what_cannot_be_exported_is_refused_in_words(align: Align, tmp_path: Path):
    assert "no checkpoint is here" in align("export", "model", code=2)
    align(*RUNS["sft"], "--steps", 1, "--directory", tmp_path / "run")
    assert "has no checkpoint of step 7, but of 1" in align("export", tmp_path / "run", "--step", 7, code=2)
    assert "is there already" in align("export", tmp_path / "run", "--output", tmp_path, code=2)
    (tmp_path / "run" / "environment.json").write_text('{"command": "python mine.py"}')
    assert "was not started by a command of align" in align("export", tmp_path / "run", code=2)
