"""Every architecture is scored, trained, adapted, saved and loaded, in the fast way or in the slow one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from torch.testing import assert_close

from align import logprobs
from align.critic import ActorCritic
from align.logprobs import token_logprobs
from align.models import disable_dropout, load_model, save_model
from tests.align.test_logprobs import batch
from tests.models import EVERY, STATE_SPACE, WHOLE_HEAD, WITHOUT_CACHE, stirred_model
from tests.small_runs import small_grpo, small_sft
from tests.tiny import tiny_tokenizer

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
IDS = torch.arange(5, 17)[None]


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def two_steps(algorithm) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics), next(metrics)]


def test_the_table_of_the_documents_names_each_architecture_and_the_way_it_is_served():
    rows = [re.split(r" *\| *", line)[1:-1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    told = {name.strip("`"): (sampled, head) for name, _, sampled, head, _ in rows}
    ways = dict.fromkeys(EVERY, "cache") | dict.fromkeys(STATE_SPACE, "cache, tried first")
    ways |= dict.fromkeys(WITHOUT_CACHE, "whole rows")
    assert told == {kind: (way, "with the trunk" if kind in WHOLE_HEAD else "alone") for kind, way in ways.items()}


@pytest.mark.parametrize("kind", EVERY)
def test_values_and_gradients_are_those_of_a_plain_log_softmax_over_the_models_own_logits(kind, monkeypatch, recwarn):
    model, sequences = stirred_model(kind), batch()
    disable_dropout(model)
    weights = torch.linspace(-1, 1, sequences.input_ids.numel()).view(sequences.input_ids.shape)

    def values_and_gradients(said: torch.Tensor):
        model.zero_grad()
        (weights * said).sum().backward()
        return said.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    monkeypatch.setattr(logprobs, "HEAD_BYTES", 61 * 4 * 3 * 7)  # chunks of 7
    got = values_and_gradients(token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs)
    slow = any("its head cannot be run" in str(warning.message) for warning in recwarn)
    assert slow == (kind in WHOLE_HEAD)

    whole = model(input_ids=sequences.input_ids, attention_mask=sequences.attention_mask).logits.log_softmax(-1)
    said = whole[:, :-1].gather(-1, sequences.input_ids[:, 1:, None])[..., 0]
    said = torch.nn.functional.pad(said, (1, 0))
    expected = values_and_gradients(torch.where(sequences.action_mask, said, 0))
    assert_close(got[0], expected[0], rtol=0, atol=1e-5)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = max(1.0, float(gradient.abs().max()))
        assert_close(got[1][name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("kind", WHOLE_HEAD)
def test_a_value_head_without_hidden_states_is_refused_by_name(kind):
    sequences = batch()
    with (
        pytest.warns(UserWarning, match="its head cannot be run"),
        pytest.raises(ValueError, match=r"ForCausalLM: gives no hidden states.*use GRPO"),
    ):
        ActorCritic(stirred_model(kind))(sequences.input_ids, sequences.action_mask)


@pytest.mark.parametrize("make", [small_sft, small_grpo])
@pytest.mark.parametrize("kind", EVERY)
def test_two_steps_are_taken_and_what_is_saved_is_the_same_function(kind, make, tmp_path):
    tokenizer = tiny_tokenizer()
    model = stirred_model(kind, vocab_size=len(tokenizer), initializer_range=0.1)
    before = logits(model)
    metrics = two_steps(make(model=model))
    assert all(m["optim/grad_norm"] > 0 for m in metrics)
    if make is small_grpo:
        assert all(m["policy/sampler_gap"] < 1e-5 for m in metrics)
    save_model(model, tokenizer, tmp_path / "final", card="")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32)
    assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert (logits(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", EVERY)
def test_adapters_alone_are_trained_and_load_again(kind, tmp_path):
    tokenizer = tiny_tokenizer()
    stirred_model(kind, vocab_size=len(tokenizer), initializer_range=0.1).save_pretrained(tmp_path / "base")
    algorithm = small_sft(model=load_model(tmp_path / "base"), lora=True)
    model = algorithm.trainer.unwrapped.model
    before, plain = parameters(model), logits(model)
    two_steps(algorithm)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    save_model(model, tokenizer, tmp_path / "final", card="")
    assert_close(logits(load_model(tmp_path / "final")), logits(model), rtol=0, atol=0)
    assert (logits(model) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_of_pictures_and_text_is_trained_on_text_and_its_eye_stays(lora, tmp_path):
    tokenizer = tiny_tokenizer()
    words = len(tokenizer)
    model = pictures_and_text(words)
    model.save_pretrained(tmp_path / "base")
    algorithm = small_grpo(model=load_model(tmp_path / "base"), lora=lora, kl=True)
    model = algorithm.trainer.unwrapped.model
    before = parameters(model)
    assert all(m["policy/sampler_gap"] < 1e-5 for m in two_steps(algorithm))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any("vision" in name or "multi_modal" in name for name in moved)
    save_model(model, tokenizer, tmp_path / "final", card="")
    assert_close(logits(load_model(tmp_path / "final")), logits(model), rtol=0, atol=0)


def pictures_and_text(words: int) -> transformers.PreTrainedModel:
    """Gemma 3 as it comes from 4 billion parameters on: its text model inside another, beside one for pictures."""
    text = stirred_model("gemma3", vocab_size=words, initializer_range=0.1).config.to_dict()
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**eye, "image_size": 28, "patch_size": 14},
        image_token_index=words - 1,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
