"""What the rules of health say of agents: nothing while they learn, and what went wrong where it did."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from align.runs.health import findings
from classic_rl.a2c import A2C
from classic_rl.dqn import DQN
from classic_rl.dqn_config import DQN_PRESETS
from classic_rl.on_policy_config import A2C_PRESETS, PPO_PRESETS, REINFORCE_PRESETS
from classic_rl.ppo import PPO
from classic_rl.reinforce import REINFORCE

History = list[dict[str, float]]
CARTPOLE = "CartPole-v1"
AGENTS: dict[str, tuple[Any, Any]] = {
    "reinforce": (REINFORCE, REINFORCE_PRESETS[CARTPOLE]),
    "a2c": (A2C, A2C_PRESETS[CARTPOLE]),
    "ppo": (PPO, PPO_PRESETS[CARTPOLE]),
    "dqn": (DQN, replace(DQN_PRESETS[CARTPOLE], env_steps=16_000, report_every=200)),
}


@cache
def learned(name: str) -> tuple[dict[str, float], ...]:
    """The metrics of a real run on CartPole."""
    kind, preset = AGENTS[name]
    return tuple(kind(CARTPOLE, replace(preset, seed=3)).learn())


def said(history: Any) -> dict[str, str]:
    return {finding.name: f"{finding.words} {finding.advice}" for finding in findings(history)}


@pytest.mark.parametrize("name", AGENTS)
def test_nothing_is_said_of_an_agent_that_learns_cartpole(name: str) -> None:
    history = learned(name)
    assert said(history) == {}
    assert history[-1]["episode/return"] > 3 * history[0]["episode/return"]  # there was something to be silent about


def then(name: str, **metrics: Callable[[int], float]) -> History:
    """A real run that goes on for 60 steps in another way."""
    last = learned(name)[-1]
    changes = {key.replace("_", "/", 1): value for key, value in metrics.items()}
    return [*learned(name), *({**last, **{k: value(n) for k, value in changes.items()}} for n in range(1, 61))]


@pytest.mark.parametrize("name", ["a2c", "ppo", "dqn"])
def test_a_return_that_is_lost_again_is_told_with_what_it_was(name: str) -> None:
    best = max(line["episode/return"] for line in learned(name))
    told = said(then(name, episode_return=lambda n: max(15.0, best * (1 - n / 20))))["return collapse"]
    assert "fell to" in told and "learning_rate" in told
    dip = then(name, episode_return=lambda n: best * (0.75 if n < 20 else 1.0))
    assert "return collapse" not in said(dip)


@pytest.mark.parametrize("name", ["a2c", "ppo", "dqn"])
def test_errors_that_go_up_and_down_from_step_to_step_are_told_unless_the_return_rises(name: str) -> None:
    error = "value_td_error" if name == "dqn" else "loss_value"

    def up_and_down(n: int) -> float:
        return 9.0 if n % 2 else 0.5

    last = learned(name)[-1]["episode/return"]
    still: dict[str, Callable[[int], float]] = {error: up_and_down, "episode_return": lambda n: last}
    assert "undoes" in said(then(name, **still))["errors of values swing"]
    rising: dict[str, Callable[[int], float]] = {**still, "episode_return": lambda n: last + n}
    assert "errors of values swing" not in said(then(name, **rising))
    slow: dict[str, Callable[[int], float]] = {**still, error: lambda n: 4.0 + 3.0 * math.sin(n / 3)}
    assert "errors of values swing" not in said(then(name, **slow))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("level", [0.0, 22.0, -180.0])
def test_returns_that_only_wander_have_not_collapsed(correlation: float, level: float) -> None:
    for seed in range(20):
        draw, value, history = random.Random(seed), 0.0, []
        for _ in range(300):
            value = correlation * value + draw.gauss(0, 1)
            history.append({"episode/return": level + value, "episode/length": 50 + value, "value/td_error": 1.0})
        assert said(history) == {}


def test_values_that_grow_without_the_return_diverge() -> None:
    told = said(then("dqn", value_td_error=lambda n: 1.2**n, episode_return=lambda n: 100.0))["values diverge"]
    assert "target.every" in told and "while the return did not rise" in told
    critic = then("a2c", loss_value=lambda n: 10 * 1.4**n, episode_return=lambda n: 450.0)
    assert "values diverge" in said(critic)


def test_values_that_grow_with_the_return_or_have_stopped_growing_do_not_diverge() -> None:
    steps = range(1, 200)
    sparse = [{"value/td_error": 1e-4 if n < 50 else 0.5, "episode/return": float(n >= 50)} for n in steps]
    rising = [{"value/td_error": 1.05**n, "episode/return": 1.05**n} for n in steps]
    settled = [{"value/td_error": min(0.1 * n, 5.0), "episode/return": -200.0} for n in steps]
    for history in (sparse, rising, settled):
        assert "values diverge" not in said(history)


def episodes(length: Callable[[int], float], total: Callable[[int], float], count: int = 5) -> History:
    return [
        {"episode/length": length(n), "episode/return": total(n), "episode/count": float(count * n)} for n in range(120)
    ]


def test_episodes_that_are_all_alike_are_told_unless_that_is_what_pays() -> None:
    told = said(episodes(lambda n: 200.0, lambda n: -200.0))["episodes all alike"]
    assert "200 steps and a return of -200 over the last 50" in told and "exploration.end" in told
    solved = episodes(lambda n: min(500.0, 20.0 + 20 * n), lambda n: min(500.0, 20.0 + 20 * n))
    pendulum = episodes(lambda n: 200.0, lambda n: -1200.0 + n)
    few = episodes(lambda n: 200.0, lambda n: -200.0, count=1)
    for history in (solved, pendulum, few):
        assert said(history) == {}


def test_episodes_may_end_for_the_first_time_after_many_steps() -> None:
    none = [{"loss/policy": 0.1, "episode/count": 0.0} for _ in range(30)]
    later = [{**line, "episode/count": line["episode/count"] + 5} for line in episodes(lambda n: 7.0, lambda n: -7.0)]
    assert list(said([*none, *later])) == ["episodes all alike"]
    assert said([*none, *episodes(lambda n: 200.0, lambda n: -1200.0 + n)]) == {}


def test_certainty_is_a_collapse_where_most_of_the_return_is_gone() -> None:
    rise = [*range(20, 200, 3), *range(200, 50, -3), *[50] * 30]
    history = [{"policy/entropy": 0.7 if n < 60 else 0.01, "episode/return": float(r)} for n, r in enumerate(rise)]
    assert "entropy_coef" in said(history)["entropy collapse"]
    assert "entropy collapse" not in said(
        [{"policy/entropy": 0.7 if n < 30 else 0.01, "episode/return": float(n)} for n in range(150)]
    )
