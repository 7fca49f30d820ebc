"""top_p and top_k: what is kept, with which probabilities, and what the sampler draws and records."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from align import sampler as sampler_module
from align.config import SamplingConfig
from align.logprobs import token_logprobs
from align.models import disable_dropout
from align.sampler import Sampler, draw, row_keys, uniforms
from align.truncation import truncated
from tests.align.test_sampler import EOS, Decoder, completions, prompts
from tests.models import tiny_model

PROBS = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.15, 0.1])
LOGITS = PROBS.log() + 3.0

KEPT = [
    ({"top_p": 0.3}, {1}),
    ({"top_p": 0.6}, {1, 3}),
    ({"top_p": 0.72}, {1, 3, 4}),
    ({"top_p": 0.9}, {1, 3, 4, 5}),
    ({"top_p": 0.99}, {0, 1, 3, 4, 5}),
    ({"top_p": 1e-9}, {1}),
    ({"top_k": 1}, {1}),
    ({"top_k": 3}, {1, 3, 4}),
    ({"top_k": 99}, {0, 1, 3, 4, 5}),
    ({"top_k": 2, "top_p": 0.56}, {1}),  # 0.4 of 0.7 is 0.571
    ({"top_k": 2, "top_p": 0.58}, {1, 3}),
    ({"top_k": 4, "top_p": 0.3}, {1}),
]


@pytest.mark.parametrize(("bounds", "kept"), KEPT, ids=[str(bounds) for bounds, _ in KEPT])
def test_the_fewest_likeliest_words_are_kept_and_renormalised(bounds, kept):
    got = truncated(LOGITS, **bounds).softmax(-1)
    chosen = torch.tensor([word in kept for word in range(len(PROBS))])
    assert_close(got, torch.where(chosen, PROBS, 0.0) / PROBS[chosen].sum())
    assert (got > 0).nonzero()[:, 0].tolist() == sorted(kept)


def test_of_equal_words_the_lower_id_is_kept():
    assert truncated(torch.zeros(2, 5), top_k=2).isfinite().tolist() == [[True, True, False, False, False]] * 2
    assert truncated(torch.zeros(5), top_p=0.5).isfinite().tolist() == [True, True, True, False, False]


def test_each_row_is_cut_by_itself_and_half_precision_is_raised_before_it():
    rows = torch.stack([LOGITS, LOGITS.flip(0)]).bfloat16()
    both = truncated(rows, top_p=0.6)
    assert both.dtype == torch.float32
    assert torch.equal(both[0], truncated(rows[0], top_p=0.6)) and torch.equal(both[1], truncated(rows[1], top_p=0.6))


def test_keeping_all_changes_no_logit():
    assert torch.equal(truncated(LOGITS[None], top_k=6)[0], LOGITS)


@pytest.mark.parametrize("bounds", [{"top_p": 0.8}, {"top_k": 3}])
def test_draws_follow_the_truncated_distribution(bounds):
    count = 40_000
    cut = truncated(LOGITS, **bounds)
    tokens, logprobs, entropy = draw(cut.expand(count, -1), uniforms(row_keys(0, 0, [0], 1), count)[0])
    probs = cut.softmax(-1)
    expected, got = count * probs[probs > 0], torch.bincount(tokens, minlength=6)
    assert got[probs == 0].sum() == 0
    chi_square = ((got[probs > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # of 2 degrees of freedom: once in a thousand
    assert_close(logprobs, probs.log()[tokens])
    assert_close(entropy[0], torch.distributions.Categorical(probs[probs > 0]).entropy())


def make(**bounds) -> Sampler:
    config = SamplingConfig(max_new_tokens=12, temperature=0.8, **bounds)
    model = tiny_model("llama")
    disable_dropout(model)
    return Sampler(model, Decoder(), config, eos_token_ids=EOS)


@pytest.mark.parametrize("bounds", [{"top_p": 0.5}, {"top_k": 3}, {"top_k": 10, "top_p": 0.7}])
def test_what_is_recorded_is_the_truncated_distribution_that_was_drawn_from(bounds):
    sampler = make(**bounds)
    rollouts = sampler.sample(prompts(13, 3), group_size=4, seed=0, step=0)
    s = rollouts.sequences
    logits = sampler.model(input_ids=s.input_ids, attention_mask=s.attention_mask.long()).logits / 0.8
    distributions = truncated(logits[:, :-1], **bounds).log_softmax(-1)
    plain = distributions.gather(-1, s.input_ids[:, 1:, None])[..., 0]
    assert_close(rollouts.logprobs[:, 1:][s.action_mask[:, 1:]], plain[s.action_mask[:, 1:]], atol=1e-5, rtol=1e-5)
    entropies = torch.special.entr(distributions.exp()).sum(-1)
    assert_close(rollouts.entropy[:, 1:][s.action_mask[:, 1:]], entropies[s.action_mask[:, 1:]], atol=1e-5, rtol=1e-5)
    full = token_logprobs(sampler.model, s.input_ids, None, s.action_mask, temperature=0.8).logprobs
    assert (rollouts.logprobs - full)[s.action_mask].min() > 0.01, "nothing was left out: the test says nothing"


def test_top_k_of_1_is_greedy_with_log_probability_0():
    rollouts = make(top_k=1).sample(prompts(13, 3), group_size=2, seed=0, step=0)
    model, rows = make().model, completions(rollouts)
    assert rows[0] == rows[1] and rows[2] == rows[3]
    for prompt, row in zip(prompts(13, 3).ids, rows[::2], strict=True):
        greedy = model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert greedy.tolist() == row
    assert (rollouts.logprobs == 0).all() and (rollouts.entropy == 0).all()


def test_without_truncation_it_is_never_called_and_keeping_every_word_draws_the_same_to_the_bit(monkeypatch):
    every_word = make(top_k=10_000).sample(prompts(13, 3), group_size=4, seed=0, step=0)

    def never(*args, **kwargs):
        raise AssertionError("truncated was called")

    monkeypatch.setattr(sampler_module, "truncated", never)
    plain = make(top_p=1.0, top_k=0).sample(prompts(13, 3), group_size=4, seed=0, step=0)
    assert completions(plain) == completions(every_word)
    assert torch.equal(plain.logprobs, every_word.logprobs) and torch.equal(plain.entropy, every_word.entropy)
    with pytest.raises(AssertionError, match="truncated was called"):
        make(top_p=0.9).sample(prompts(3), group_size=2, seed=0, step=0)


@pytest.mark.parametrize("top_p", [0.0, 1.1])
def test_a_top_p_that_is_no_probability_to_keep_is_refused(top_p):
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got"):
        SamplingConfig(top_p=top_p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bounds", [{"top_k": 1}, {"top_k": 20}, {"top_k": 20, "top_p": 0.6}])
def test_the_words_kept_are_those_of_a_stable_sort_of_the_whole_vocabulary_whatever_is_equal(bounds, dtype):
    generator = torch.Generator().manual_seed(0)
    for spread in (3.0, 0.02):  # in bfloat16 and with a small spread, many words are as likely as the last one kept
        logits = (torch.randn(8, 2_000, generator=generator) * spread).to(dtype)
        values, order = logits.float().sort(dim=-1, descending=True, stable=True)
        values, order = values[:, : bounds["top_k"]], order[:, : bounds["top_k"]]
        before = values.softmax(-1).cumsum(-1, dtype=torch.float64) - values.softmax(-1)
        values = values.masked_fill(before >= bounds.get("top_p", 1.1), -torch.inf)
        expected = torch.full_like(logits, -torch.inf, dtype=torch.float32).scatter(-1, order, values)
        assert torch.equal(truncated(logits, **bounds), expected)
