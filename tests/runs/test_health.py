"""Each rule speaks of what it is about, with numbers and an option, and is silent over a healthy run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from align.runs.health import RULES, HealthWatch, findings
from align.runs.readings import Finding, Readings

History = list[dict[str, float]]


def healthy(steps: int = 250, seed: int = 0) -> History:
    """A run that learns its task from a reward of 0.28 to about 0.95, as noisy as rollouts are."""
    draw = random.Random(seed)
    history = []
    for step in range(1, steps + 1):
        done = 1 - math.exp(-3 * step / 250)
        reward = 0.28 + 0.7 * done + draw.gauss(0, 0.04)
        history.append(
            {
                "step": step,
                "reward/mean": reward,
                "reward/std": 0.1 + 0.35 * (1 - done),
                "reward/exact": reward,
                "kl/reference": 0.2 * done,
                "policy/entropy": 0.9 * math.exp(-3 * step / 250) + 0.02,
                "policy/clip_fraction": 0.02 + 0.01 * draw.random(),
                "policy/sampler_gap": 1e-5,
                "completion/length": 7 + 9 * done,
                "completion/truncated": 0.05 * draw.random(),
                "group/silent": 0.15 + 0.35 * done,
                "optim/loss": draw.gauss(0, 0.02),
                "optim/grad_norm": 0.5 * draw.lognormvariate(0, 0.5),
            }
        )
    return history


def changed(name: str, value: Callable[[int], float], history: History | None = None) -> History:
    """A healthy run in which one metric is another function of the step."""
    return [{**line, name: value(int(line["step"]))} for line in history or healthy()]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_a_healthy_run(seed: int) -> None:
    assert findings(healthy(seed=seed)) == []


def test_nothing_is_said_of_supervised_training_or_of_very_short_runs() -> None:
    sft = [
        {"optim/loss": 3 / step, "optim/grad_norm": 1 / step, "sft/accuracy": 1 - 1 / step} for step in range(1, 300)
    ]
    assert findings(sft) == []
    assert findings(healthy(3)) == [] and findings([]) == [] and findings([{"step": 0, "eval/accuracy": 0.3}]) == []


flat = [{**line, "reward/mean": 0.28} for line in healthy()]

steady = [{**line, "reward/std": 0.4} for line in healthy()]


def once_a_rollout(value: Callable[[int], float], history: History | None = None) -> History:
    """A healthy run of PPO: every fourth step is the first on new rollouts, and tells what the critic explained."""
    return [
        {**line, "value/explained_variance": value(int(line["step"]))} if line["step"] % 4 == 1 else line
        for line in history or healthy()
    ]


def evaluated(value: Callable[[int], float], history: History | None = None, *, every: int = 25) -> History:
    """A healthy run that is measured on held-out data before the first step and every so often."""
    before: History = [{"step": 0, "eval/reward/mean": value(0)}]
    return before + [
        {**line, "eval/reward/mean": value(int(line["step"]))} if line["step"] % every == 0 else line
        for line in history or healthy()
    ]


UNHEALTHY = [
    (
        "groups without signal",
        changed("group/silent", lambda step: 0.71),
        "in 71% of groups (steps 1-20)",
        "group_size",
    ),
    ("completions cut", changed("completion/truncated", lambda step: 0.94), "94% of completions", "max_new_tokens"),
    (
        "entropy collapse",
        changed("policy/entropy", lambda step: 0.9 if step < 60 else 0.01, flat),
        "from 0.9",
        "kl_coef",
    ),
    ("KL blow-up", changed("kl/reference", lambda step: step / 50), "nats per token away", "kl_coef"),
    (
        "sampler and trainer disagree",
        changed("policy/sampler_gap", lambda step: 0.3),
        "by 0.3 nats",
        "same temperature",
    ),
    ("no gradient", changed("optim/grad_norm", lambda step: 0.0 if step > 100 else 1.0), "(step 110)", "max_redraws"),
    ("exploding gradient", changed("optim/grad_norm", lambda step: 1.05**step), "gradient norm grew", "learning_rate"),
    ("reward part never fires: format", changed("reward/format", lambda step: 0.0), "(steps 1-20)", "Read some"),
    ("reward does not rise", changed("reward/mean", lambda step: 0.28), "0.28 in steps 81-100", "learning_rate"),
    (
        "held-out reward falls",
        evaluated(lambda step: 0.28 + 0.004 * step if step < 75 else 0.8 - 0.003 * step),
        "but on held-out data it fell from 0.518 to 0.35 (means of the best and last 3 evaluations)",
        "more prompts",
    ),
    (
        "completions repeat themselves",
        changed("reward/repetition_penalty", lambda step: -0.6 if step > 100 else -0.1),
        "55% of the n-grams of a completion had come before in it, in the mean over the last 10 steps (step 109)",
        "repetition_penalty",
    ),
    (
        "sampler far from the policy",
        changed("policy/importance_weight", lambda step: 0.4, changed("policy/importance_cut", lambda step: 0.0)),
        "0.4 in the mean, and 0% of tokens",
        "top_p",
    ),
    ("clip fraction high", changed("policy/clip_fraction", lambda step: 0.4), "40% of ratios", "learning_rate"),
    (
        "critic that explains nothing",
        once_a_rollout(lambda step: -0.1, steady),
        "explained -0.1 of the variance of returns over the last 5 rollouts",
        "--value-model",
    ),
    (
        "values diverge",
        [{"value/td_error": 1.1**step, "episode/return": 20.0} for step in range(150)],
        "more than twofold within the last 20, while the return did not rise (20, now 20)",
        "target.every",
    ),
    (
        "errors of values swing",
        [{"value/td_error": 9.0 if step % 2 else 0.5, "episode/return": 20.0} for step in range(60)],
        "changed by 8.5, where its size is 4.75 (medians of the last 40 steps, step 40)",
        "target.rate",
    ),
    (
        "episodes all alike",
        [{"episode/length": 200.0, "episode/return": -200.0} for _ in range(60)],
        "200 steps and a return of -200 over the last 50 steps",
        "shape the reward",
    ),
    (
        "return collapse",
        [{"episode/return": 20.0 + min(10 * step, 300) if step < 60 else 20.0} for step in range(100)],
        "rose from 40 to 320 (best mean of 10 steps) and fell to 20 by step 70",
        "learning_rate",
    ),
    ("not finite: optim/loss", changed("optim/loss", lambda step: math.nan if step == 9 else 0.0), "at step 9", "data"),
]


@pytest.mark.parametrize(("name", "history", "words", "option"), UNHEALTHY, ids=[row[0] for row in UNHEALTHY])
def test_a_rule_tells_what_it_saw_and_what_to_change(name: str, history: History, words: str, option: str) -> None:
    found = {finding.name: finding for finding in findings(history)}
    assert name in found
    assert words in found[name].words
    assert option in found[name].advice


def test_each_rule_has_a_case_here() -> None:
    assert len({row[0] for row in UNHEALTHY}) == len(RULES) + 1  # the rule about gradients has two


def test_a_gap_that_is_weighed_is_no_finding_and_weights_that_are_often_bounded_are_one() -> None:
    gap = changed("policy/sampler_gap", lambda step: 0.3, changed("policy/importance_weight", lambda step: 0.9))
    assert findings(changed("policy/importance_cut", lambda step: 0.05, gap)) == []
    bounded = findings(changed("policy/importance_cut", lambda step: 0.3, gap))
    assert [finding.name for finding in bounded] == ["sampler far from the policy"]


def test_a_penalty_that_is_at_its_best_is_no_part_that_never_fires() -> None:
    named = changed("reward/script_penalty", lambda step: 0.0)
    brief = changed("reward/brief", lambda step: min(0.0, step / 50 - 1))
    assert findings(named) == findings(brief) == []
    lost = findings(changed("reward/brief", lambda step: max(0.0, 1 - step / 50)))
    assert [finding.name for finding in lost] == ["reward part never fires: brief"]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("held_out", [50, 500])
def test_evaluations_that_wander_fall_with_the_training_or_without_a_gain_are_no_finding(
    held_out: int, seed: int
) -> None:
    draw = random.Random(seed)

    def noisy(mean: float) -> float:
        return mean + draw.gauss(0, 0.4 / held_out**0.5)

    learns = evaluated(lambda step: noisy(0.28 + 0.6 * (1 - math.exp(-3 * step / 250))), every=10)
    alike = evaluated(lambda step: noisy(0.3), flat, every=10)
    rise = [{**line, "reward/mean": 0.28 + 0.005 * min(line["step"], 160 - line["step"])} for line in healthy(130)]
    falls = evaluated(lambda step: noisy(0.25 + 0.005 * min(step, 160 - step)), rise, every=10)
    for history in (learns, alike, falls):
        assert "held-out reward falls" not in {finding.name for finding in findings(history)}


def test_a_policy_that_is_sure_of_what_it_learned_has_not_collapsed() -> None:
    history = changed("policy/entropy", lambda step: 0.9 if step < 60 else 0.01)
    assert "entropy collapse" not in {finding.name for finding in findings(history)}


@pytest.mark.parametrize(("gain", "collapsed"), [(100.0, False), (0.0, True)])
def test_an_agent_that_grew_sure_has_collapsed_only_where_its_return_did_not_rise(gain: float, collapsed: bool) -> None:
    steps = range(1, 151)
    history = [{"step": n, "policy/entropy": 0.7 / n, "episode/return": 20 + gain * n / 150} for n in steps]
    assert ("entropy collapse" in {finding.name for finding in findings(history)}) == collapsed


def test_a_finding_is_said_once_and_at_the_step_at_which_it_is_seen() -> None:
    watch = HealthWatch()
    said = [finding for line in changed("group/silent", lambda step: 0.9) for finding in watch.update(line)]
    assert [(finding.name, finding.step) for finding in said] == [("groups without signal", 20)]


def test_a_single_spike_is_no_finding() -> None:
    for name in ("optim/grad_norm", "kl/reference", "policy/clip_fraction", "completion/truncated", "group/silent"):
        assert findings(changed(name, lambda step: 1.0 if step == 120 else 0.1)) == []


def test_a_reward_without_spread_is_not_called_flat() -> None:
    history = [{**line, "reward/mean": 1.0, "reward/std": 0.0} for line in healthy()]
    assert "reward does not rise" not in {finding.name for finding in findings(history)}


def test_metrics_in_any_number_and_order_never_break_a_rule() -> None:
    draw = random.Random(3)
    for _ in range(200):
        names = draw.sample(sorted(healthy(1)[0]), draw.randrange(8))
        history = [
            {name: draw.choice([math.nan, math.inf, 0.0, 1.0, -5.0, 1e30]) for name in names if draw.random() < 0.9}
            for _ in range(40)
        ]
        for line in history:
            line.pop("step", None)
        assert not [finding for finding in findings(history) if finding.name.startswith("rule fails")]


def test_a_critic_is_given_time_and_one_good_rollout_in_five_and_blamed_for_no_chance() -> None:
    draw = random.Random(0)
    said = {finding.step for finding in findings(once_a_rollout(lambda step: -0.1, steady))}
    assert said == {100}
    learned = once_a_rollout(lambda step: 0.15 + draw.gauss(0, 0.1) if step > 20 else -0.3, steady)
    now_and_then = once_a_rollout(lambda step: 0.05 if step % 20 == 1 else -0.05, steady)
    solved = once_a_rollout(lambda step: 0.3 if step < 120 else -0.5)  # its spread is gone by then
    for history in (learned, now_and_then, solved):
        assert findings(history) == []


def test_a_rule_that_fails_is_told_once_and_ends_neither_the_watch_nor_the_other_rules() -> None:
    def share_of_nothing(readings: Readings) -> list[Finding]:
        return [Finding("share", f"{1 / len(readings.recent('none'))}", "", readings.step)]

    watch = HealthWatch([share_of_nothing, *RULES])
    said = [finding for line in changed("group/silent", lambda step: 0.9) for finding in watch.update(line)]
    assert [(finding.name, finding.step) for finding in said] == [
        ("rule fails: share of nothing", 1), ("groups without signal", 20),
    ]  # fmt: skip
    assert "failed at step 1: ZeroDivisionError: division by zero" in said[0].words
