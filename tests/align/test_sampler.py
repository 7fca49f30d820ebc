"""The sampler draws from the model's own distribution, whatever the layout of the batch."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from torch.testing import assert_close

from align import decoding, logprobs
from align import sampler as sampler_module
from align.batch import Prompts
from align.config import SamplingConfig
from align.logprobs import Policy
from align.models import disable_dropout
from align.sampler import Sampler, draw, row_keys, uniforms
from tests.models import EVERY, SIZES, WITHOUT_CACHE, stirred_model, tiny_model

EOS = (2, 7)


class Decoder:
    """Stands in for a tokenizer: the sampler only decodes."""

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(str(i) for i in row if not (skip_special_tokens and i in EOS)) for row in rows]


def prompts(*lengths: int) -> Prompts:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(8, 61, (n,), generator=generator).tolist() for n in lengths]
    return Prompts(ids=ids, texts=[str(row) for row in ids], columns={})


def make(kind: str = "llama", *, max_new_tokens: int = 12, temperature: float = 0.8, budget: int = 10_000) -> Sampler:
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, tokens_per_batch=budget)
    model = stirred_model(kind)
    disable_dropout(model)
    return Sampler(model, Decoder(), config, eos_token_ids=EOS)


def completions(rollouts) -> list[list[int]]:
    s = rollouts.sequences
    return [ids[mask].tolist() for ids, mask in zip(s.input_ids, s.action_mask, strict=True)]


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_kept_while_sampling_is_what_a_plain_forward_of_the_whole_padded_sequences_says(
    kind, recwarn, monkeypatch
):
    monkeypatch.setattr(sampler_module, "COMPACT_BELOW", 0.99)  # whenever a row ends
    sampler = make(kind, max_new_tokens=16)
    rollouts = sampler.sample(prompts(13, 3, 20), group_size=8, seed=0, step=0)
    slow = any("cache cannot be expanded" in str(warning.message) for warning in recwarn)
    assert slow == (kind in WITHOUT_CACHE)
    s = rollouts.sequences
    with torch.no_grad():
        logits = sampler.model(input_ids=s.input_ids, attention_mask=s.attention_mask, use_cache=False).logits
    logp = (logits / 0.8).log_softmax(-1)
    said = logp[:, :-1].gather(-1, s.input_ids[:, 1:, None])[..., 0]
    mask = s.action_mask[:, 1:]
    assert_close(rollouts.logprobs[:, 1:], torch.where(mask, said, 0), atol=1e-5, rtol=1e-5)
    entropy = -(logp.exp() * logp).sum(-1)[:, :-1]
    assert_close(rollouts.entropy[:, 1:], torch.where(mask, entropy, 0), atol=1e-5, rtol=1e-5)
    lengths = mask.sum(1)
    assert lengths.min() < lengths.max(), "the test wants completions of several lengths"


def test_a_completion_does_not_depend_on_the_batch_it_was_sampled_in():
    data = prompts(13, 3, 20, 3, 8)
    together = completions(make().sample(data, group_size=4, seed=5, step=3))
    in_small_batches = completions(make(budget=130).sample(data, group_size=4, seed=5, step=3))
    alone = [
        row
        for n in range(5)
        for row in completions(make().sample(data.select([n]), group_size=4, seed=5, step=3, numbers=[n]))
    ]
    backwards = completions(
        make().sample(data.select([4, 3, 2, 1, 0]), group_size=4, seed=5, step=3, numbers=[4, 3, 2, 1, 0])
    )
    assert together == in_small_batches == alone
    assert together == [row for n in (4, 3, 2, 1, 0) for row in backwards[4 * n : 4 * n + 4]]


def test_a_smaller_group_is_the_beginning_of_a_larger_one():
    few, many = (completions(make().sample(prompts(5), group_size=g, seed=0, step=0)) for g in (3, 6))
    assert many[:3] == few


def test_another_seed_step_prompt_or_sample_gives_another_completion():
    def first(seed: int, step: int, number: int) -> list[list[int]]:
        return completions(make().sample(prompts(9), group_size=2, seed=seed, step=step, numbers=[number]))

    variants = [*first(0, 0, 0), *first(1, 0, 0), *first(0, 1, 0), *first(0, 0, 1)]
    assert len({tuple(row) for row in variants}) == len(variants)


def test_letting_ended_rows_stay_in_the_batch_changes_nothing(monkeypatch):
    compacted = make().sample(prompts(13, 3, 20), group_size=8, seed=0, step=0)
    monkeypatch.setattr(sampler_module, "COMPACT_BELOW", 0.0)
    kept = make().sample(prompts(13, 3, 20), group_size=8, seed=0, step=0)
    assert completions(compacted) == completions(kept)
    assert_close(compacted.logprobs, kept.logprobs, atol=1e-5, rtol=0)
    assert torch.equal(compacted.terminated, kept.terminated)


def test_a_completion_ends_with_the_first_of_all_eos_ids_inclusive_or_at_the_cap():
    rollouts = make(max_new_tokens=10).sample(prompts(4, 6), group_size=32, seed=0, step=0)
    ends = set()
    for row, ended in zip(completions(rollouts), rollouts.terminated.tolist(), strict=True):
        assert 1 <= len(row) <= 10
        assert not set(row[:-1]) & set(EOS)
        assert (row[-1] in EOS) == ended
        assert ended or len(row) == 10
        ends.add(row[-1] if ended else None)
    assert ends == {2, 7, None}


def test_special_tokens_are_cut_from_the_texts_unless_they_are_asked_for():
    sampler = make()
    rollouts = sampler.sample(prompts(4), group_size=16, seed=0, step=0)
    ended = rollouts.terminated.nonzero()[0, 0]
    assert rollouts.texts[ended].split() == [str(i) for i in completions(rollouts)[ended][:-1]]
    sampler.keep_special_tokens = True
    kept = sampler.sample(prompts(4), group_size=16, seed=0, step=0)
    assert kept.texts[ended].split() == [str(i) for i in completions(kept)[ended]]


def test_each_prompt_is_forwarded_once_for_its_whole_group_and_ended_rows_are_not_forwarded_for_ever():
    sampler, tokens = make(), []
    sampler.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    rollouts = sampler.sample(prompts(13, 13), group_size=16, seed=0, step=0)
    generated = int(rollouts.sequences.action_mask.sum())
    assert tokens[0] == 2 * 13
    assert sum(tokens[1:]) < generated / 0.75


def test_memory_is_bounded_by_the_token_budget_however_many_prompts_are_asked():
    sampler, sizes = make(budget=200), []
    sampler.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sampler.sample(prompts(*[8] * 30), group_size=4, seed=0, step=0)
    assert max(sizes) * (8 + 12) <= 200


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_without_an_expandable_cache_the_same_completions_come_slowly_and_it_is_said(kind, monkeypatch):
    sampler, other = make(kind), make(kind)
    fast = sampler.sample(prompts(13, 3, 20), group_size=4, seed=0, step=0)
    for kept in ("DynamicLayer", "DynamicSlidingWindowLayer"):
        monkeypatch.setattr(f"transformers.cache_utils.{kept}", type(f"Another{kept}", (), {}))
    with pytest.warns(UserWarning, match="cache cannot be expanded"):
        slow = other.sample(prompts(13, 3, 20), group_size=4, seed=0, step=0)
    assert completions(fast) == completions(slow)
    assert_close(fast.logprobs, slow.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1", "qwen3_next"])
def test_a_state_that_is_not_continued_rightly_is_noticed_and_left_alone(kind, monkeypatch):
    expected = make(kind).sample(prompts(13, 3), group_size=4, seed=0, step=0)
    spoilt, forward = make(kind), sampler_module._CachedDecoder.append

    def spoil(self, tokens):
        for layer in self.cache.layers:
            for state in getattr(layer, "conv_states", {}).values():
                state.zero_()
        forward(self, tokens)

    monkeypatch.setattr(sampler_module._CachedDecoder, "append", spoil)
    with pytest.warns(UserWarning, match="cache cannot be expanded"):
        slow = spoilt.sample(prompts(13, 3), group_size=4, seed=0, step=0)
    assert completions(slow) == completions(expected)
    assert_close(slow.logprobs, expected.logprobs, atol=1e-5, rtol=0)


def test_a_state_is_tried_once_a_model_and_one_of_attention_alone_never(monkeypatch):
    tried, is_exact = [], decoding._is_exact
    monkeypatch.setattr(decoding, "_is_exact", lambda *rest: tried.append(1) or is_exact(*rest))
    for kind, times in (("mistral", 0), ("lfm2", 1)):
        sampler = make(kind, budget=100)
        for step in range(2):
            sampler.sample(prompts(13, 3, 20), group_size=2, seed=0, step=step)
        assert len(tried) == times


def test_gradient_checkpointing_changes_nothing_and_train_mode_is_restored():
    sampler = make()
    expected = completions(sampler.sample(prompts(5, 9), group_size=4, seed=0, step=0))
    sampler.model.gradient_checkpointing_enable()  # renamed in transformers 5.23, and 5.17 is supported
    sampler.model.train()
    assert completions(sampler.sample(prompts(5, 9), group_size=4, seed=0, step=0)) == expected
    assert sampler.model.training


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 0.5, -1.0, -float("inf"), 1.0])
    uniform = uniforms(row_keys(0, 0, [0], 1), 40_000)[0]
    tokens, logprobs, entropy = draw(logits.expand(len(uniform), -1), uniform)
    probs = logits.softmax(-1)
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    assert_close(shares, probs, atol=4 * (0.25 / 40_000) ** 0.5, rtol=0)  # four standard errors
    assert shares[3] == 0
    assert_close(logprobs, probs.log()[tokens])
    assert_close(entropy[0], torch.distributions.Categorical(probs[probs > 0]).entropy())


def test_the_ends_of_the_unit_interval_draw_possible_words():
    logits = torch.tensor([[-float("inf"), 1.0, 1.0, -float("inf")]])
    for u in (0.0, 1 - 2.0**-53):
        token, logprob, _ = draw(logits, torch.tensor([u], dtype=torch.float64))
        assert logprob.isfinite().all() and token.item() in (1, 2)


def test_the_uniform_numbers_are_splitmix64_computed_in_plain_integers():
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def number(seed: int, step: int, prompt: int, sample: int, position: int) -> float:
        key = 0
        for part in (seed, step, prompt, sample):
            key = mix((key + (part + 1) * 0x9E3779B97F4A7C15) & mask)
        return (mix((key + (position + 1) * 0x9E3779B97F4A7C15) & mask) >> 11) * 2.0**-53

    got = uniforms(row_keys(3, 41, [5, 0, 12], 2), 7)
    expected = [[number(3, 41, prompt, sample, t) for t in range(7)] for prompt in (5, 0, 12) for sample in range(2)]
    assert got.tolist() == expected


def test_the_uniform_numbers_are_even_and_uncorrelated_along_every_axis():
    numbers = torch.stack([uniforms(row_keys(0, step, range(16), 8), 32) for step in range(16)])  # [steps, rows, time]
    flat = numbers.flatten()
    counts = torch.histc(flat, bins=64, min=0, max=1)
    chi_square = ((counts - len(flat) / 64) ** 2 / (len(flat) / 64)).sum()
    assert chi_square < 63 + 5 * (2 * 63) ** 0.5
    centred = numbers - 0.5
    for axis in range(3):
        neighbours = centred.narrow(axis, 0, centred.shape[axis] - 1) * centred.narrow(axis, 1, centred.shape[axis] - 1)
        assert neighbours.mean().abs() * 12 < 5 / neighbours.numel() ** 0.5


def test_a_model_without_any_eos_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="generation_config"):
        Sampler(tiny_model(), Decoder(), SamplingConfig(), eos_token_ids=[])


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        make().sample(prompts(), group_size=2, seed=0, step=0)


def test_a_cache_that_looks_right_but_whose_positions_are_not_is_noticed_and_left_alone():
    """RoBERTa counts its positions from its padding id, so those that the sampler gives are of other tokens."""
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**{**SIZES, "is_decoder": True, "initializer_range": 0.3})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    disable_dropout(model)
    sampler = Sampler(model, Decoder(), SamplingConfig(max_new_tokens=6), eos_token_ids=EOS)
    with pytest.warns(UserWarning, match="RobertaForCausalLM: what follows a cached prompt is not exact"):
        rollouts = sampler.sample(prompts(13, 3), group_size=3, seed=0, step=0)
    for row in range(6):
        s = rollouts.sequences
        ids = s.input_ids[row : row + 1, : s.lengths[row]]
        with torch.no_grad():
            logp = model.eval()(input_ids=ids).logits.log_softmax(-1)
        said = logp[:, :-1].gather(-1, ids[:, 1:, None])[0, :, 0][s.action_mask[row, 1 : s.lengths[row]]]
        assert_close(rollouts.logprobs[row][s.action_mask[row]], said, atol=1e-5, rtol=1e-5)


def test_a_cache_that_cannot_even_be_tried_is_left_alone_and_the_reason_said():
    torch.manual_seed(0)
    config = transformers.MiniMaxConfig(
        **{**SIZES, "head_dim": 8, "block_size": 8, "num_local_experts": 2, "initializer_range": 0.3},
        layer_types=["linear_attention", "full_attention"],
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    disable_dropout(model)
    with pytest.warns(UserWarning, match=r"MiniMaxForCausalLM: what follows a cached .* \(RuntimeError: The size of"):
        Policy(model).shortcuts()
    sampler = Sampler(model, Decoder(), SamplingConfig(max_new_tokens=6), eos_token_ids=EOS)
    rollouts = sampler.sample(prompts(13, 3), group_size=3, seed=0, step=0)
    s = rollouts.sequences
    assert_close(Policy(model)(s.input_ids, s.action_mask).logprobs.detach(), rollouts.logprobs, atol=1e-5, rtol=1e-5)


def test_a_model_of_attention_is_tried_once_and_what_dropout_spoils_in_training_does_not_slow_sampling(monkeypatch):
    tried, tried_out = [], logprobs.tried_out
    monkeypatch.setattr(logprobs, "tried_out", lambda *rest, **more: tried.append(1) or tried_out(*rest, **more))
    model = tiny_model("gpt2")  # whose dropout is 0.1
    with pytest.warns(UserWarning, match="dropout"):
        assert not Policy(model.train()).shortcuts().cache
    sampler = Sampler(model, Decoder(), SamplingConfig(max_new_tokens=6), eos_token_ids=EOS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for step in range(3):
            sampler.sample(prompts(13, 3), group_size=3, seed=0, step=step)
    assert len(tried) == 2


def test_a_temperature_divides_logits_of_half_precision_in_float32_as_in_training(monkeypatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(sampler_module, "draw", lambda logits, uniform: seen.append(logits) or draw(logits, uniform))
    with torch.autocast("cpu", torch.bfloat16):
        make(temperature=0.7).sample(prompts(9, 9), group_size=4, seed=0, step=0)
    for logits in seen:
        of_model = (logits * 0.7).bfloat16()
        assert torch.equal(logits, of_model.float() / 0.7)
