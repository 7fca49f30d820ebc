"""Rules of health for whatever learns: numbers that are not finite, gradients, exploration, updates, critics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, median

from align.runs.readings import PATIENCE, WINDOW, Finding, Readings, Rule, reward_gain

COLLAPSED_ENTROPY = 0.1  # of the entropy of the first steps
EXPLODED = 10.0  # times the gradient norm of the first steps
LARGE_CLIP_FRACTION = 0.3
LEARNED = 0.5  # of the spread of rewards, or of what the return had gained


def _not_finite(readings: Readings) -> Iterable[Finding]:
    for name, value in readings.latest.items():
        if not math.isfinite(value) and not name.startswith("eval/"):
            yield Finding(
                f"not finite: {name}",
                f"{name} was not a finite number at step {readings.step}.",
                "Look at the rewards and the data of that step; lower learning_rate or max_grad_norm if it returns.",
                readings.step,
            )


def _entropy_collapse(readings: Readings) -> Iterable[Finding]:
    start, now = readings.first("policy/entropy", 5), readings.last("policy/entropy", 10)
    if not start or not now or fmean(now) >= COLLAPSED_ENTROPY * fmean(start):
        return
    # A policy that has learned its task is sure of itself, and rightly: only certainty without gain is a collapse.
    if reward_gain(readings, 10) > LEARNED:
        return
    yield Finding(
        "entropy collapse",
        f"The entropy fell from {fmean(start):.3g} to {fmean(now):.2g} nats per action by step {readings.step} "
        "while the reward gained little: the policy no longer explores.",
        "Lower learning_rate; with a language model raise temperature, or hold the policy nearer to its start with "
        "kl_coef; with an agent raise entropy_coef.",
        readings.step,
    )


def _gradient(readings: Readings) -> Iterable[Finding]:
    start, now = readings.first("optim/grad_norm"), readings.last("optim/grad_norm", 10)
    if now and max(now) == 0:
        yield Finding(
            "no gradient",
            f"The gradient was exactly 0 for 10 steps (step {readings.step}): nothing is being learned.",
            "See whether any group has a signal (group_size, max_redraws) and whether parameters are frozen.",
            readings.step,
        )
    elif len(start) == WINDOW and now and median(start) > 0 and median(now[-5:]) > EXPLODED * median(start):
        yield Finding(
            "exploding gradient",
            f"The gradient norm grew from {median(start):.2g} (first {WINDOW} steps) to {median(now[-5:]):.2g} "
            f"(step {readings.step}), before clipping.",
            "Lower learning_rate; keep max_grad_norm at 1 or below.",
            readings.step,
        )


def _clip_fraction(readings: Readings) -> Iterable[Finding]:
    values = readings.last("policy/clip_fraction")
    if values and fmean(values) > LARGE_CLIP_FRACTION:
        yield Finding(
            "clip fraction high",
            f"{fmean(values):.0%} of ratios were clipped over the last {WINDOW} steps (step {readings.step}): "
            "the updates are larger than the data supports.",
            "Lower learning_rate, or take fewer updates from each rollout.",
            readings.step,
        )


def _idle_critic(readings: Readings) -> Iterable[Finding]:
    values = readings.last("value/explained_variance", 5)
    if not values or max(values) > 0 or readings.step < PATIENCE:
        return
    start, now = readings.first("reward/std"), readings.recent("reward/std", 5)
    # Once nearly all completions earn the same, what is left of the variance is chance, and no critic explains it.
    if start and now and fmean(now) < 0.5 * fmean(start):
        return
    agent = bool(readings.recent("episode/return"))
    # One that keeps up its poles sees no episode end in a rollout: its returns are alike, and rightly.
    if agent and reward_gain(readings, 10) > LEARNED:
        return
    yield Finding(
        "critic that explains nothing",
        f"The critic explained {fmean(values):.2g} of the variance of returns over the last 5 rollouts, and none of "
        f"them above 0 (step {readings.step}): one number for all states would have served as well.",
        "Change value_coef or learning_rate, take more updates from each rollout (epochs), "
        + (
            "or scale what the critic sees and has to predict (normalize_observations, scale_rewards)."
            if agent
            else "start the critic from a reward model (--value-model), or compare the answers to one prompt instead: "
            "GRPO needs no critic."
        ),
        readings.step,
    )


RULES: list[Rule] = [_not_finite, _entropy_collapse, _gradient, _clip_fraction, _idle_critic]
