"""Evaluations and metrics: what is measured is defined, and measuring changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from align.evaluate import evaluate
from align.metrics import described
from align.models import reference_of
from align.rewards import Reward, RewardError, check_rewards
from align.surrogates import kl_penalty
from tests.small_runs import small_grpo, small_sft


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def characters(prompts, completions):
    return [float(len(text)) for text in completions]


def sometimes(prompts, completions):
    return [None if row % 2 else 1.0 for row in range(len(completions))]


@pytest.mark.parametrize("make", [small_sft, small_grpo, lambda: small_grpo(kl=True, updates_per_rollout=2)])
def test_every_metric_says_what_it_means(make):
    for metrics in run(make(), 2):
        assert all(described(name) for name in metrics), [name for name in metrics if not described(name)]


def test_a_metric_that_nobody_defined_is_not_described():
    assert described("policy/made_up") is None and described("made_up") is None


def test_the_same_weights_and_seed_give_the_same_evaluation_and_another_seed_another():
    algorithm = small_grpo()

    def measured(seed: int):
        return evaluate(algorithm.sampler, algorithm.prompts, [Reward(characters)], seed=seed)

    assert measured(0) == measured(0)
    assert measured(0).examples != measured(1).examples


def test_an_evaluation_averages_each_reward_over_what_it_applies_to():
    algorithm = small_grpo()
    result = evaluate(algorithm.sampler, algorithm.prompts, [Reward(characters), Reward(sometimes, weight=2.0)], seed=0)
    lengths = [len(e["completion"]) for e in result.examples]
    assert result.metrics["reward/characters"] == pytest.approx(sum(lengths) / len(lengths))
    assert result.metrics["reward/sometimes"] == 1.0
    assert result.metrics["reward/mean"] == pytest.approx((sum(lengths) + 2.0 * 3) / 6)


def test_a_measure_of_rollouts_is_averaged_beside_the_rewards():
    algorithm = small_grpo()

    def twice_its_length(rollouts):
        return 2 * rollouts.sequences.action_mask.sum(dim=1)

    away = kl_penalty(reference_of(algorithm.trainer.unwrapped), algorithm.accelerator, kl_coef=1.0)
    measures = {"completion/twice": twice_its_length, "kl/completion": away}

    def measured():
        return evaluate(algorithm.sampler, algorithm.prompts, [Reward(characters)], seed=0, measures=measures)

    before = measured()
    run(algorithm, 3)
    assert before.metrics["completion/twice"] == pytest.approx(2 * before.metrics["completion/length"])
    assert before.metrics["kl/completion"] == pytest.approx(0, abs=1e-5)
    assert abs(measured().metrics["kl/completion"]) > 1e-4


def test_an_evaluation_leaves_the_run_as_it_was():
    alone, measured = small_grpo(), small_grpo()
    run(alone, 3)
    for _ in range(3):
        run(measured, 1)
        evaluate(measured.sampler, measured.prompts, measured.rewards, seed=0)
    left, right = alone.trainer.state()["parameters"], measured.trainer.state()["parameters"]
    assert_close(left, right, rtol=0, atol=0)


def test_a_reward_that_applies_to_nothing_is_told_as_nan():
    algorithm = small_grpo()
    never = Reward(lambda prompts, completions: [None] * len(completions), name="never")
    result = evaluate(algorithm.sampler, algorithm.prompts, [Reward(characters), never], seed=0)
    assert math.isnan(result.metrics["reward/never"]) and torch.tensor(result.metrics["reward/mean"]).isfinite()


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_reward_cannot_take_the_name_of_another_metric(name):
    with pytest.raises(RewardError, match=f"{name!r} is the name of a metric"):
        check_rewards([Reward(characters, name=name)], columns=[])
