"""Climb the sanity ladder with an agent: one batch, trivial environments, the known return.

    python -m recipes.classic_ladder dqn --quick               the first two rungs, seconds
    python -m recipes.classic_ladder ppo --env CartPole-v1     and the environment's known return

Run it when an agent does not learn, or after a change to one. Each rung asks for one ability more than those below, so
the lowest that fails says where to look. An agent of one's own is climbed with `climb(subject(..., kind=OneOfMine))`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch

from classic_rl import probes
from classic_rl.a2c import A2C
from classic_rl.dqn import DQN
from classic_rl.dqn_config import DQN_PRESETS, DQNConfig, ExplorationConfig, ReplayConfig, TargetConfig
from classic_rl.envs import EnvSource
from classic_rl.evaluate import evaluate
from classic_rl.on_policy_config import (
    A2C_PRESETS,
    PPO_PRESETS,
    PPO_SHAPED,
    REINFORCE_PRESETS,
    A2CConfig,
    NetworkConfig,
    PPOConfig,
    REINFORCEConfig,
)
from classic_rl.ppo import PPO
from classic_rl.reinforce import REINFORCE
from classic_rl.shaping import shaped
from recipes.common import recipe
from recipes.options import LadderOptions

GAMMA = 0.8
"""Discount on the trivial environments: a future that is forgotten, or added where there is none, shows at once."""
TOLERANCE = 0.1
"""How far a learned value may be from the known one, as a share of it."""
OPEN_GOALS = {"Pendulum-v1": -200.0}
"""Returns to reach where Gymnasium's registry names none."""


@dataclass(frozen=True)
class Subject:
    """The agent that climbs.

    name: of the algorithm.
    kind: its class.
    small: settings under which a trivial environment is learned in a second.
    presets: settings by environment.
    shaped: environments in which these are for shaped rewards.
    """

    name: str
    kind: Callable[[EnvSource, Any], Any]
    small: Any
    presets: dict[str, Any]
    shaped: frozenset[str] = frozenset()

    @property
    def has_a_policy(self) -> bool:
        """Whether it learns probabilities of actions, not only values."""
        return self.name != "dqn"


def subject(name: str, *, kind: Callable[[EnvSource, Any], Any] | None = None, seed: int = 0) -> Subject:
    """Return an agent by its name, or another class that takes the same settings and has the same parts."""
    net = NetworkConfig(hidden=(32,))
    shared: dict[str, Any] = {"num_envs": 16, "anneal": False, "gamma": GAMMA, "network": net, "seed": seed}
    small_dqn = DQNConfig(
        env_steps=3_000, num_envs=8, gamma=GAMMA, learning_rate=5e-3, batch_size=32, learning_starts=64, train_every=8,
        hidden=(32,), report_every=500, seed=seed, replay=ReplayConfig(capacity=2_000), target=TargetConfig(every=10),
        exploration=ExplorationConfig(end=0.05, fraction=0.5),
    )  # fmt: skip
    subjects = {
        "reinforce": (REINFORCE, REINFORCEConfig(updates=80, **shared), REINFORCE_PRESETS),
        "a2c": (A2C, A2CConfig(env_steps=200 * 128, learning_rate=1e-2, **shared), A2C_PRESETS),
        "ppo": (PPO, PPOConfig(env_steps=40 * 128, rollout_steps=8, learning_rate=1e-2, **shared), PPO_PRESETS),
        "dqn": (DQN, small_dqn, DQN_PRESETS),
    }
    if name not in subjects:
        raise ValueError(f"expected an agent of {', '.join(subjects)}, got {name!r}")
    found, small, presets = subjects[name]
    presets = {env: replace(preset, seed=seed) for env, preset in presets.items()}
    return Subject(name, kind or found, small, presets, PPO_SHAPED if name == "ppo" else frozenset())


# --- rungs ---


@dataclass(frozen=True)
class Rung:
    """What one rung found: its name, what was expected and what came, whether that passes, and what it hints at."""

    name: str
    expected: str
    came: str
    passed: bool
    causes: str
    seconds: float = 0.0

    def __str__(self) -> str:
        line = f"{'pass' if self.passed else 'FAIL'}  {self.name}: expected {self.expected}, got {self.came}"
        return f"{line} ({self.seconds:.1f} s)" if self.passed else f"{line}\n      look at: {self.causes}"


def one_batch(climber: Subject) -> Rung:
    """Learn from one batch over and over: every network can learn by heart what it gets shown alone."""
    agent = climber.kind(probes.ConstantReward, climber.small)
    first, last = _losses_on_one_transition(agent) if not climber.has_a_policy else _losses_on_one_batch(agent)
    return Rung(
        "fit one batch",
        "a loss of values below 0.01 after 100 updates or more",
        f"{last:.2g} (at first {first:.2g})",
        last < 0.01,
        "the optimizer (does it hold these parameters, is the rate above 0, is zero_grad there?), a detached loss, "
        "shapes that broadcast [B] with [B, 1], a target that carries the gradient.",
    )


def _losses_on_one_batch(agent: Any) -> tuple[float, float]:
    rollout = agent.player.play_episodes(1)
    losses = []
    for _ in range(100):
        told = agent.update(agent.judge(rollout) if hasattr(agent, "judge") else rollout)
        losses.append(told["loss/value"])
    return losses[0], losses[-1]


def _losses_on_one_transition(agent: Any) -> tuple[float, float]:
    # On this environment the replay memory holds the same transition again and again.
    losses = [metrics["loss/td"] for metrics in agent.steps() if "loss/td" in metrics]
    return losses[0], losses[-1]


def rewarded_action(climber: Subject) -> Rung:
    """Learn from one batch in which one of two actions was paid."""
    agent = climber.kind(probes.RewardedAction, climber.small)
    before = _share_of(agent, 1.0, 1)
    if climber.has_a_policy:
        rollout = agent.player.play_episodes(1)
        for _ in range(30):
            agent.update(agent.judge(rollout) if hasattr(agent, "judge") else rollout)
    else:
        agent.learn()
    share = _share_of(agent, 1.0, 1)
    return Rung(
        "prefer the action that was rewarded",
        "it more than 90% of the time",
        f"{share:.0%} (at first {before:.0%})",
        share > 0.9,
        "the sign of the policy's loss or of the advantages, log-probabilities of other actions than were taken, "
        "a gather on the wrong axis, actions that are shifted or clipped before they are learned from.",
    )


def value_rung(name: str, env: Callable[[], probes.Probe], known: dict[float, float], causes: str) -> Callable:
    """Make a rung that learns an environment and compares the values of its observations with the known ones."""

    def rung(climber: Subject) -> Rung:
        agent = climber.kind(env, climber.small)
        agent.learn()
        found = {obs: _value(agent, obs) for obs in known}
        near = [abs(found[obs] - value) <= TOLERANCE * max(1.0, abs(value)) for obs, value in known.items()]
        return Rung(name, _values_in_words(known), _values_in_words(found), all(near), causes)

    return rung


def observed_action(climber: Subject) -> Rung:
    """Learn a policy that must look at what it sees."""
    agent = climber.kind(probes.ObservedAction, climber.small)
    agent.learn()
    low, high = _share_of(agent, -1.0, 0), _share_of(agent, 1.0, 1)
    return Rung(
        "a policy that depends on what is seen",
        "the right action more than 90% of the time in both observations",
        f"{low:.0%} and {high:.0%}",
        min(low, high) > 0.9,
        "observations and actions of different steps in one row, rows shuffled without their advantages, advantages "
        "normalised along the wrong axis, exploration that never ends (epsilon, entropy_coef).",
    )


VALUES = [
    value_rung(
        "the value of a constant reward",
        probes.ConstantReward,
        {1.0: 1.0},
        "termination: a step that terminated has no future, and a target that adds one grows to "
        f"{1 / (1 - GAMMA):.0f}; the sign and the scale of rewards.",
    ),
    value_rung(
        "a value that depends on what is seen",
        probes.ObservedReward,
        {-1.0: -1.0, 1.0: 1.0},
        "the way of the observation: is the one before the action stored with its reward, or the one after a reset; "
        "does the network get it at all, and not normalised away.",
    ),
    value_rung(
        "credit over two steps",
        probes.LateReward,
        {-1.0: GAMMA, 1.0: 1.0},
        "the discount (applied once a step?), the value of the next state (taken of the true successor, without "
        "gradient?), the direction of the recursion over time, a target network that is never updated.",
    ),
    value_rung(
        "a future beyond a truncation",
        probes.CutShort,
        {1.0: 1 / (1 - GAMMA)},
        "truncation: a step that a time limit cut must bootstrap from the observation before the reset; "
        "done = terminated or truncated in a target gives about 2.",
    ),
]


def known_return(climber: Subject, env: str) -> Rung:
    """Train with the preset, and play 100 episodes with the best actions."""
    goal = goal_of(env)
    config = climber.presets[env]
    agent = climber.kind(shaped(env, gamma=config.gamma) if env in climber.shaped else env, config)
    agent.learn()
    mean = float(evaluate(agent.act, env, episodes=100).returns.mean())
    return Rung(
        f"the known return of {env}",
        f"a mean return of {goal:g} or more over 100 episodes after {agent.env_steps:,} steps",
        f"{mean:.1f}",
        mean >= goal,
        "settings rather than equations, since the rungs below passed: learning rate, discount, exploration; "
        "another --seed, to tell chance from fault; what the metrics say over time.",
    )


def goal_of(env: str) -> float:
    """Return the mean return at which an environment counts as solved. Raises ValueError where none is known."""
    goal = OPEN_GOALS.get(env, gymnasium.spec(env).reward_threshold)
    if goal is None:
        raise ValueError(f"no return is known to be good on {env}: give --env one of CartPole-v1, Acrobot-v1, ...")
    return float(goal)


# --- reading an agent ---


def _value(agent: Any, obs: float) -> float:
    """The value of a state: of its best action, where an agent has values of actions."""
    features = torch.tensor([[obs]])
    with torch.no_grad():
        if hasattr(agent, "network"):
            return float(agent.network(features).max())
        return float(agent.policy.values(features)[0])


def _share_of(agent: Any, obs: float, action: int, draws: int = 1000) -> float:
    return float((agent.act(np.full((draws, 1), obs, dtype=np.float32)) == action).mean())


def _values_in_words(values: dict[float, float]) -> str:
    return ", ".join(f"V({obs:g}) = {value:.2f}" for obs, value in values.items())


# --- climbing ---


def climb(climber: Subject, env: str | None = None) -> Iterator[Rung]:
    """Climb rung by rung; the known return of `env` is left out if a lower rung failed or no `env` is given."""
    failed = False
    for rung in (one_batch, rewarded_action, *VALUES, observed_action):
        found = _timed(lambda rung=rung: rung(climber))
        failed |= not found.passed
        yield found
    if env is not None and not failed:
        yield _timed(lambda: known_return(climber, env))


def _timed(rung: Callable[[], Rung]) -> Rung:
    began = time.perf_counter()
    return replace(rung(), seconds=time.perf_counter() - began)


def train(options: LadderOptions, command: Sequence[str]) -> int:
    """Climb and tell; return 1 if a rung failed."""
    torch.set_num_threads(1)
    climber = subject(options.agent, seed=options.seed)
    if not options.quick and options.env not in climber.presets:
        raise ValueError(
            f"{options.agent} has settings for {', '.join(climber.presets)}, got --env {options.env}: "
            "choose one of them, or --quick for the rungs below."
        )
    passed = True
    for rung in climb(climber, None if options.quick else options.env):
        print(rung, flush=True)
        passed &= rung.passed
    if not passed:
        print("start at the lowest rung that failed: those above it build on what it asks", file=sys.stderr)
    return 0 if passed else 1


main = recipe("python -m recipes.classic_ladder", LadderOptions, train)

if __name__ == "__main__":
    main()
