"""Completions that another program sampled become rollouts, and are learned from with weights."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from align.batch import means_of
from align.config import ImportanceConfig, SamplingConfig
from align.external import ExternalSampler
from align.grpo import GRPO
from align.metrics import described
from align.ppo import PPO
from tests.align.test_sampler import EOS, Decoder, completions, prompts
from tests.small_runs import share_of_letter, small_grpo, small_ppo


def drawn_by(rollouts, shift: float = 0.0):
    """What a program would give that samples what another sampler did, its log-probabilities lower by a shift."""
    s = rollouts.sequences
    logprobs = [(row[mask] - shift).tolist() for row, mask in zip(rollouts.logprobs, s.action_mask, strict=True)]
    return list(zip(completions(rollouts), logprobs, strict=True))


def sampler_of(drawn, **changes) -> ExternalSampler:
    config = SamplingConfig(**{"max_new_tokens": 4, **changes})
    return ExternalSampler(lambda ids, **keys: drawn, torch.nn.Module(), Decoder(), config, eos_token_ids=EOS)


TWO = [([9, 7], [-0.5, -1.0]), ([9, 10, 11, 12], [-1.0, -2.0, -3.0, -4.0])]


def test_completions_become_rollouts_that_end_with_the_first_eos_inclusive():
    drawn = [*TWO, ([2, 9], [-0.1, -9.0]), ([], [])]
    rollouts = sampler_of(drawn).sample(prompts(3, 5), group_size=2, seed=0, step=0, numbers=[4, 9])
    assert completions(rollouts) == [[9, 7], [9, 10, 11, 12], [2], []]
    assert rollouts.terminated.tolist() == [True, False, True, False]
    assert rollouts.texts == ["9", "9 10 11 12", "", ""]
    assert rollouts.numbers == [4, 9] and rollouts.rewards.isnan().all()
    s = rollouts.sequences
    assert s.lengths.tolist() == [5, 7, 6, 5]
    assert s.input_ids[2, :5].tolist() == prompts(3, 5).ids[1]
    assert_close(rollouts.logprobs[s.action_mask], torch.tensor([-0.5, -1, -1, -2, -3, -4, -0.1]))
    assert_close(rollouts.entropy, -rollouts.logprobs)


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        (TWO[:1], r"expected 1 prompts \* 2 completions, got 1"),
        ([TWO[0], ([9], [])], "a completion of 1 tokens came with the log-probabilities"),
        ([TWO[0], ([9], [float("nan")])], "finite"),
        ([TWO[0], ([9], [-float("inf")])], "finite"),
        ([TWO[0], ([9], [0.1])], "at most 0"),
        ([TWO[0], ([9] * 5, [-1.0] * 5)], "5 tokens, more than max_new_tokens 4"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(drawn, words):
    with pytest.raises(ValueError, match=words):
        sampler_of(drawn).sample(prompts(3), group_size=2, seed=0, step=0)


def outside(algorithm, shift: float, mode) -> tuple[GRPO | PPO, list[int]]:
    """The same algorithm, whose sampler is asked as a program elsewhere is."""
    own, versions = algorithm.sampler, []

    def complete(ids, *, group_size, seed, step, numbers):
        asked = algorithm.prompts.select([algorithm.prompts.ids.index(row) for row in ids])
        return drawn_by(own.sample(asked, group_size=group_size, seed=seed, step=step, numbers=numbers), shift)

    sampler = ExternalSampler(
        complete, own.model, own.tokenizer, own.config, eos_token_ids=own.eos_token_ids.tolist(),
        load=lambda policy, version: versions.append(version),
    )  # fmt: skip
    changed = algorithm.config.__class__(
        **{**vars(algorithm.config), "importance": ImportanceConfig(importance=mode, importance_high=10.0)}
    )
    return algorithm.__class__(
        algorithm.trainer.unwrapped, sampler, algorithm.prompts, [share_of_letter], changed, algorithm.accelerator,
        reference=algorithm.reference,
    ), versions  # fmt: skip


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def test_a_sampler_elsewhere_that_says_the_same_gives_the_same_run():
    plain, (other, versions) = small_grpo(), outside(small_grpo(), 0.0, None)
    for own, external in zip(run(plain, 3), run(other, 3), strict=True):
        for name in ("reward/mean", "completion/truncated", "policy/sampler_gap", "optim/grad_norm"):
            assert own[name] == external[name]
    assert versions == [0, 1, 2]
    assert_close(plain.trainer.state()["parameters"], other.trainer.state()["parameters"], rtol=0, atol=0)


@pytest.mark.parametrize("make", [small_grpo, small_ppo])
def test_one_that_says_half_the_probability_of_each_token_weighs_every_token_twice(make):
    (single, _), (double, _) = (outside(make(), shift, "token-truncate") for shift in (0.0, 0.6931472))
    first, second = run(single, 1)[0], run(double, 1)[0]
    assert all(described(name) for name in second)
    assert first["policy/importance_weight"] == pytest.approx(1, abs=1e-5)
    assert second["policy/importance_weight"] == pytest.approx(2, abs=1e-5)
    if make is small_grpo:  # PPO's critic learns unweighed
        assert second["optim/grad_norm"] == pytest.approx(2 * first["optim/grad_norm"], rel=1e-4)


def test_completions_without_a_token_have_no_entropy_and_stop_nothing():
    sums = {"completions": 2, "tokens": 0, "entropy": 0, "truncated": 0, "valid": 0, "reward": 0, "square": 0}
    assert means_of({name: float(value) for name, value in sums.items()})["policy/entropy"] == 0
