"""Adapters on frozen weights of 4 bits, from the command line; bitsandbytes does it, on a CPU too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from align import models
from align.models import load_model
from tests.recipes.conftest import Align, metrics_of, weights_of

FOUR_BITS = ("--quantize", "4bit", "--learning-rate", 1e-2, "--steps", 3)
IDS = torch.arange(5, 17)[None]


@pytest.mark.parametrize(
    "arguments, advice",
    [
        (("sft", "--data", "pairs.jsonl"), "train adapters, with --lora-rank 16"),
        (("reward", "--data", "preferences.jsonl", "--lora-rank", 4), "is for policies"),
    ],
)
def test_weights_of_4_bits_that_would_be_trained_or_merged_are_refused(align: Align, tmp_path: Path, arguments, advice):
    command, *rest = arguments
    told = align(command, "--model", "model", *rest, *FOUR_BITS, "--directory", tmp_path / "run", code=2)
    assert advice in told


def test_without_bitsandbytes_it_is_said_what_to_install(place: Path, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'align-rl\[qlora\]'"):
        load_model(place / "model", quantize="4bit")


def test_adapters_on_4_bits_are_trained_by_every_kind_of_command_and_load_again(align: Align, place, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs the extra [qlora], 125 MB that the tests do not install")
    sft, grpo, dpo = (tmp_path / name for name in ("sft", "grpo", "dpo"))
    told = align("sft", "--model", "model", "--data", "pairs.jsonl", *FOUR_BITS, "--lora-rank", 4, "--directory", sft)
    whole = sum(p.numel() for p in load_model(place / "model").parameters())
    adapters = sum(value.numel() for value in weights_of(sft).values())
    assert f"{whole + adapters:,} parameters, {adapters:,} of them trained" in told
    assert metrics_of(sft)[-1]["optim/loss"] < metrics_of(sft)[0]["optim/loss"]

    assert "add them to the whole weights" in align("export", sft, "--merge", code=2)

    rest = (*FOUR_BITS, "--model", sft / "final")
    sampled = ("--reward", "exact_answer", "--max-new-tokens", 4, "--prompts-per-step", 2, "--kl-coef", 0.1)
    align("grpo", "--data", "prompts.jsonl", *sampled, *rest, "--directory", grpo)
    assert all(line["policy/sampler_gap"] < 1e-5 for line in metrics_of(grpo))
    for steps in ((), ("--steps", 1)):  # computed once, and then taken from the file
        align("dpo", "--data", "preferences.jsonl", *rest, *steps, "--reference-cache", tmp_path / "cache",
              "--directory", dpo / str(len(steps)))  # fmt: skip

    model, again, unquantised = (load_model(grpo / "final", quantize=kind) for kind in ("4bit", "4bit", None))
    assert {p.dtype for name, p in model.named_parameters() if "base_layer" in name} == {torch.uint8}
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())
    with torch.no_grad():
        assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=0)
        gap = (unquantised(IDS).logits - model(IDS).logits).abs().max()
    assert 0 < gap < 1, "whole weights under the same adapters are near, and not the same"
