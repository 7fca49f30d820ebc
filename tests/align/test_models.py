"""Policies as they come and go: what is loaded, frozen, adapted and saved is the function that was meant."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from align.config import DPOConfig, KTOConfig, RewardModelConfig, SFTConfig
from align.data import Examples
from align.dpo import DPO
from align.evaluate import evaluate
from align.kto import KTO
from align.logprobs import Policy
from align.models import add_lora, check_lengths, load_model, load_tokenizer, reference_of, save_model
from align.pairs import Feedback, Pairs
from align.reward_head import RewardModel, reward_model_of
from align.reward_model import RewardTraining
from align.sft import SFT
from recipes.inputs import check_fit
from tests.models import tiny_model
from tests.small_runs import small_grpo
from tests.tiny import tiny_tokenizer

IDS = torch.tensor([[5, 9, 12, 7, 30], [8, 3, 3, 11, 6]])
ALL = torch.ones_like(IDS, dtype=torch.bool)


def logprobs(model) -> torch.Tensor:
    return Policy(model)(IDS, ALL).logprobs.detach()


def shaken(model):
    """Move every trainable weight, adapters too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture
def saved(tmp_path):
    """Write a model whose weights are bfloat16 and whose dropout is not 0, as hubs have them."""
    tokenizer = tiny_tokenizer()
    tiny_model("gpt2", resid_pdrop=0.3, vocab_size=len(tokenizer)).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_bfloat16_folder_is_loaded_in_float32_without_dropout_and_ready_to_train(saved):
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    model = load_model(saved)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.training
    assert_close(logprobs(model), logprobs(model), rtol=0, atol=0)


def test_a_folder_that_is_not_there_or_holds_no_model_is_refused_without_asking_a_hub(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("lora", [False, True])
def test_a_saved_model_is_the_same_function_when_it_is_loaded_again(saved, tmp_path, lora):
    from transformers import pipeline

    model = load_model(saved)
    model = shaken(add_lora(model, rank=4) if lora else model)
    save_model(model, load_tokenizer(saved), tmp_path / "final", card="# A card\n")
    again = load_model(tmp_path / "final")
    assert_close(logprobs(again), logprobs(model))
    assert (tmp_path / "final" / "adapter_config.json").exists() == lora
    assert (tmp_path / "final" / "README.md").read_text() == "# A card\n"
    assert any(p.requires_grad for p in again.parameters())
    generate = pipeline("text-generation", model=str(tmp_path / "final"))
    assert generate("abc", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("abc")


def test_adapters_load_in_peft_as_they_were_saved(saved, tmp_path):
    from peft import AutoPeftModelForCausalLM

    model = shaken(add_lora(load_model(saved), rank=4))
    save_model(model, load_tokenizer(saved), tmp_path / "final", card="")
    again = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "final"), dtype=torch.float32)
    assert_close(logprobs(again.eval()), logprobs(model))


def test_a_model_is_saved_over_another_and_into_an_empty_folder_but_over_nothing_else(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (tmp_path / "final").mkdir()
    save_model(add_lora(tiny_model(), rank=2), tokenizer, tmp_path / "final", card="")
    save_model(model, tokenizer, tmp_path / "final", card="")
    assert not (tmp_path / "final" / "adapter_config.json").exists()
    assert_close(logprobs(load_model(tmp_path / "final")), logprobs(model))
    (tmp_path / "work").mkdir()
    for folder, precious in ((tmp_path / "work", tmp_path / "work" / "thesis.tex"), (tmp_path / "notes",) * 2):
        precious.write_text("years")
        with pytest.raises(ValueError, match="holds no model, so saving would delete it: name another folder"):
            save_model(model, tokenizer, folder, card="")
        assert precious.read_text() == "years"


def test_lora_trains_only_its_adapters():
    model = add_lora(tiny_model(), rank=4)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_stays_the_policy_as_it_was_given(lora):
    model = add_lora(tiny_model(), rank=4) if lora else tiny_model()
    model.get_base_model().resize_token_embeddings(70) if lora else model.resize_token_embeddings(70)
    policy = Policy(model, temperature=0.7)
    before = policy(IDS, ALL).logprobs.detach()
    reference = reference_of(policy)
    shaken(model)
    got = reference(IDS, ALL)
    assert not got.requires_grad
    assert_close(got, before, rtol=0, atol=0)
    assert (policy(IDS, ALL).logprobs - before).abs().max() > 0.01


def test_fresh_adapters_need_no_copy_and_trained_ones_do(monkeypatch):
    copied, deepcopy = [], copy.deepcopy

    def noted(thing, *memo):
        copied.extend([thing] if hasattr(thing, "disable_adapter") else [])
        return deepcopy(thing, *memo)

    monkeypatch.setattr("copy.deepcopy", noted)
    reference_of(Policy(add_lora(tiny_model(), rank=4)))
    assert not copied
    trained = Policy(shaken(add_lora(tiny_model(), rank=4)))
    before = trained(IDS, ALL).logprobs.detach()
    reference = reference_of(trained)
    assert copied
    shaken(trained.model)
    assert_close(reference(IDS, ALL), before, rtol=0, atol=0)


def test_after_the_reference_was_asked_the_adapters_are_on_and_trainable():
    policy = Policy(add_lora(tiny_model(), rank=4))
    reference = reference_of(policy)
    shaken(policy.model)
    before = policy(IDS, ALL).logprobs.detach()
    reference(IDS, ALL)
    after = policy(IDS, ALL).logprobs
    assert_close(after.detach(), before, rtol=0, atol=0)
    after.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


@pytest.mark.parametrize(("bias", "shared"), [("none", True), ("lora_only", False), ("all", False)])
def test_adapters_that_train_biases_too_leave_the_reference_where_it_was(bias, shared):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", bias=bias)
    policy = Policy(get_peft_model(tiny_model("qwen2"), config))
    reference = reference_of(policy)
    before = reference(IDS, ALL)
    shaken(policy.model)
    assert_close(reference(IDS, ALL), before, rtol=0, atol=0)
    assert reference.without_adapters == shared


def test_a_copied_reference_has_no_dropout_and_forwards_a_shared_prompt_once():
    model = tiny_model("gpt2")  # whose dropout is 0.1
    model.gradient_checkpointing_enable()
    reference = reference_of(Policy(model.train()))
    assert_close(reference(IDS, ALL), reference(IDS, ALL), rtol=0, atol=0)
    assert reference.policy.shortcuts().cache
    assert model.training


ROPES = {
    "longrope": ("phi3", {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0}),
    "dynamic": ("llama", {"factor": 4.0}),
}


def turned_by_the_batch(kind: str):
    """A model whose positions are others beside a text of more than 16 tokens."""
    architecture, settings = ROPES[kind]
    rope = {"rope_type": kind, "rope_theta": 10_000.0, **settings}
    longest = {"max_position_embeddings": 16}
    if kind == "longrope":
        longest = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    return tiny_model(architecture, vocab_size=len(tiny_tokenizer()), rope_parameters=rope, **longest)


@pytest.mark.parametrize("kind", ROPES)
def test_the_length_from_which_texts_are_refused_is_that_from_which_a_text_depends_on_the_batch(kind):
    model, short = turned_by_the_batch(kind), IDS[:1]

    def beside(length: int) -> torch.Tensor:
        ids = torch.zeros(2, length, dtype=torch.int64)
        ids[0, :5], ids[1] = short[0], 7
        mask = torch.arange(length) < torch.tensor([[5], [length]])
        # not Policy's own forward, which would forward two rows of such different lengths apart
        return model(input_ids=ids, attention_mask=mask.long()).logits[0, :5].detach()

    alone = model(input_ids=short).logits[0].detach()
    assert_close(beside(16), alone)
    assert (beside(17) - alone).abs().max() > 1e-3
    check_lengths(model, [[7] * 16, [7]])
    check_lengths(Policy(model), [[7] * 10, [7]], 6)
    with pytest.raises(ValueError, match=rf"17 tokens, but beyond 16 the model's '{kind}' rope.*lower max_new_tokens"):
        check_lengths(model, [[7] * 17, [7]])
    with pytest.raises(ValueError, match=rf"17 tokens \(7 of them new\), but beyond 16 the model's '{kind}' rope"):
        check_lengths(Policy(add_lora(model)), [[7] * 10, [7]], 7)


@pytest.mark.parametrize("kind", ROPES)
def test_every_algorithm_and_the_evaluation_refuse_such_lengths(kind):
    model = turned_by_the_batch(kind)
    algorithm, accelerator = small_grpo(model=model, max_new_tokens=8), Accelerator(cpu=True)
    prompts = replace(algorithm.prompts, ids=[[7] * 9 for _ in algorithm.prompts.ids])
    long, policy = Examples([[7, *[8] * 16]] * 2, [[False] + [True] * 16] * 2), Policy(model)
    reward_model = RewardModel(reward_model_of(model, seed=0))
    makers = [
        lambda: small_grpo(model=model, max_new_tokens=14),
        lambda: evaluate(algorithm.sampler, prompts, [], seed=0),
        lambda: SFT(policy, long, SFTConfig(), accelerator),
        lambda: DPO(policy, Pairs(long, long), DPOConfig(), accelerator, reference=reference_of(policy)),
        lambda: KTO(policy, Feedback(long, [True, False]), KTOConfig(), accelerator, reference=reference_of(policy)),
        lambda: RewardTraining(reward_model, Pairs(long, long), RewardModelConfig(), accelerator),
        lambda: check_fit(model, long.ids),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=rf"beyond 16 the model's '{kind}' rope"):
            make()


def test_a_model_whose_positions_are_its_own_takes_any_length():
    check_lengths(tiny_model(), [[7] * 10_000])
