"""The ladder: whole agents climb it, and one with a known fault fails first where that fault belongs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from classic_rl import dqn
from classic_rl.a2c import A2C
from classic_rl.actor_critic import Rollout
from classic_rl.dqn import DQN
from classic_rl.losses import double_q_targets
from classic_rl.ppo import PPO
from classic_rl.reinforce import REINFORCE
from classic_rl.shaping import PotentialShaping
from recipes import classic_ladder
from recipes.classic_ladder import Rung, climb, goal_of, known_return, subject

AGENTS = ("reinforce", "a2c", "ppo", "dqn")


def first_to_fail(name: str, kind: Any) -> Rung:
    return next(rung for rung in climb(subject(name, kind=kind)) if not rung.passed)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_passes_the_rungs_below_the_known_return(name: str) -> None:
    began = time.process_time()
    rungs = list(climb(subject(name)))
    assert len(rungs) == 7 and all(rung.passed for rung in rungs), "\n".join(map(str, rungs))
    assert time.process_time() - began < 30  # about 5 on an idle core


class NoEnd(PPO):
    """Takes no step for the last one."""

    def judge(self, rollout: Rollout) -> Any:
        return super().judge(replace(rollout, terminated=torch.zeros_like(rollout.terminated)))


class WrongSign(PPO):
    """Prefers what was worse than expected."""

    def judge(self, rollout: Rollout) -> Any:
        batch = super().judge(rollout)
        return batch._replace(advantages=-batch.advantages)


class ValueBesideItsState(A2C):
    """Learns from the states of other steps."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        return super().update(replace(rollout, features=rollout.features.flip(0)))


class LimitIsTheEnd(REINFORCE):
    """Knows but one way to be done."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        cut = rollout.truncated
        return super().update(
            replace(rollout, terminated=rollout.terminated | cut, truncated=torch.zeros_like(cut), cut=rollout.cut)
        )


class NoDiscount(DQN):
    """Adds up rewards as they come."""

    def __init__(self, env: Any, config: Any) -> None:
        super().__init__(env, replace(config, gamma=0.999))


class Frozen(DQN):
    """Takes steps of no length."""

    def __init__(self, env: Any, config: Any) -> None:
        super().__init__(env, config)
        self.optimizer.step = lambda *_, **__: torch.zeros(())  # type: ignore[method-assign]


class BlindActor(A2C):
    """Sees, when it acts, the same everywhere."""

    def __init__(self, env: Any, config: Any) -> None:
        super().__init__(env, config)
        weight = next(self.policy.actor.parameters())
        with torch.no_grad():
            weight.zero_()
        weight.register_hook(torch.zeros_like)


@pytest.mark.parametrize(
    ("name", "kind", "rung", "cause"),
    [
        ("dqn", Frozen, "fit one batch", "the optimizer"),
        ("ppo", WrongSign, "prefer the action that was rewarded", "the sign of the policy's loss or of the advantages"),
        ("a2c", ValueBesideItsState, "a value that depends on what is seen", "stored with its reward"),
        ("dqn", NoDiscount, "credit over two steps", "the discount"),
        ("reinforce", LimitIsTheEnd, "a future beyond a truncation", "before the reset"),
        ("a2c", BlindActor, "a policy that depends on what is seen", "different steps in one row"),
    ],
)
def test_an_agent_with_a_fault_fails_first_where_the_fault_belongs(name: str, kind: Any, rung: str, cause: str) -> None:
    failed = first_to_fail(name, kind)
    assert failed.name == rung
    assert str(failed).startswith("FAIL") and cause in str(failed)


def test_a_future_beyond_the_end_is_found_at_the_constant_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO by its advantages, DQN by its targets: both find 5, the sum of all rewards that never come."""

    def endless(rewards: Any, chosen_by: Any, next_values: Any, terminated: Any, *, gamma: Any) -> Any:
        return double_q_targets(rewards, chosen_by, next_values, torch.zeros_like(terminated), gamma=gamma)

    monkeypatch.setattr(dqn, "double_q_targets", endless)
    for name, kind in (("ppo", NoEnd), ("dqn", DQN)):
        failed = {rung.name: rung for rung in climb(subject(name, kind=kind)) if not rung.passed}
        assert "termination" in failed["the value of a constant reward"].causes


def test_the_last_rung_plays_the_environment_and_is_left_out_after_a_failure() -> None:
    climber = subject("dqn")
    short = replace(climber, presets={"CartPole-v1": replace(climber.presets["CartPole-v1"], env_steps=1_104)})
    *below, last = climb(short, "CartPole-v1")
    assert len(below) == 7 and "475 or more over 100 episodes after 1,104 steps" in last.expected and not last.passed
    assert len(list(climb(replace(short, kind=Frozen), "CartPole-v1"))) == 7


def test_the_known_return_is_learned_from_shaped_rewards_where_settings_need_them() -> None:
    climber, sources = subject("ppo"), []

    def noted(env: Any, config: Any) -> PPO:
        sources.append(env)
        return PPO(env, config)

    for env, steps in (("MountainCar-v0", 2_048), ("CartPole-v1", 512)):
        short = replace(climber.presets[env], env_steps=steps)
        known_return(replace(climber, kind=noted, presets={env: short}), env)
    assert isinstance(made := sources[0](), PotentialShaping) and made.gamma == 0.99 and sources[1] == "CartPole-v1"


def ladder(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        classic_ladder.main(arguments)
    return int(ended.value.code or 0)


def test_the_command_tells_each_rung_in_a_line_and_exits_with_whether_all_passed(capsys, monkeypatch) -> None:
    assert ladder("reinforce", "--quick") == 0
    assert capsys.readouterr().out.count("pass  ") == 7
    whole = subject("reinforce")
    monkeypatch.setattr(classic_ladder, "subject", lambda name, seed: replace(whole, kind=LimitIsTheEnd))
    assert ladder("reinforce") == 1
    told = capsys.readouterr()
    assert told.out.count("pass  ") == 6 and "FAIL  a future beyond a truncation" in told.out
    assert "lowest rung that failed" in told.err


def test_an_environment_without_settings_or_goal_is_refused_with_the_way_out(capsys) -> None:
    assert ladder("a2c", "--env", "LunarLander-v3") == 2
    assert "a2c has settings for CartPole-v1" in capsys.readouterr().err
    assert goal_of("Pendulum-v1") == -200
    with pytest.raises(ValueError, match="give --env"):
        goal_of("Blackjack-v1")


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_reaches_the_known_return_of_cartpole(name: str) -> None:
    assert list(climb(subject(name), "CartPole-v1"))[-1].passed
