"""Settings of DQN, and those that solve known environments; no torch, so that --help is quick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReplayConfig:
    """What is remembered, and how it is drawn."""

    capacity: int = 100_000
    """Transitions kept, of all environments together."""
    n_step: int = 1
    """Rewards summed before the bootstrap."""
    priority_exponent: float = 0.0
    """Alpha of prioritised replay: 0 draws uniformly, 1 in proportion to the TD errors."""
    priority_correction: float = 0.4
    """Beta at the start, which goes to 1 in a straight line over the run; 1 takes away all of the bias that
    drawing by priority brings."""


@dataclass(frozen=True)
class ExplorationConfig:
    """How often actions are random: always before learning starts, and after that by a line over the run's steps."""

    start: float = 1.0
    """Share of random actions where the line begins, at the first step of the run."""
    end: float = 0.05
    """Share of random actions where the line ends, and from then on."""
    fraction: float = 0.1
    """Share of the run that the line takes."""


@dataclass(frozen=True)
class TargetConfig:
    """The slower copy of the network that the targets come from."""

    every: int = 250
    """Updates between two of its own."""
    rate: float = 1.0
    """How far it then goes towards the online network: 1 copies it, a small rate after every update averages it."""
    double: bool = True
    """Whether the online network chooses the action that this one values."""


@dataclass(frozen=True)
class DQNConfig:
    """Settings of DQN. Environment steps are counted singly: one step of 8 environments counts as 8."""

    env_steps: int = 100_000
    """Environment steps of the whole run."""
    num_envs: int = 1
    """Environments that play at a time."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, at the start."""
    final_learning_rate: float = 0.0
    """Where it has gone to in a straight line when the run is over."""
    batch_size: int = 64
    """Transitions of one update."""
    learning_starts: int = 1_000
    """Environment steps before the first update, with random actions."""
    train_every: int = 4
    """Environment steps from one time of learning to the next."""
    updates: int = 1
    """Updates each time."""
    huber_delta: float | None = 1.0
    """TD error at which the loss turns from a square into a line, in the unit of the returns; None: never."""
    max_grad_norm: float = 10.0
    """Longer gradients are scaled down to it."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the layers."""
    dueling: bool = False
    """Whether the network has one head for the value and one for the advantages."""
    scale_observations: bool = False
    """Whether numbers that have bounds are mapped to [-1, 1]."""
    report_every: int = 1_000
    """Environment steps from one metric of `steps()` to the next."""
    seed: int = 0
    """Seed of weights, exploration, replay and environments."""
    replay: ReplayConfig = ReplayConfig()
    target: TargetConfig = TargetConfig()
    exploration: ExplorationConfig = ExplorationConfig()

    def __post_init__(self) -> None:
        names = ("env_steps", "num_envs", "batch_size", "train_every", "updates", "report_every")
        counts = {**{name: getattr(self, name) for name in names}, "target.every": self.target.every}
        if too_low := {name: value for name, value in counts.items() if value < 1}:
            raise ValueError(f"expected at least 1, got {too_low}")
        shares = {
            "gamma": self.gamma,
            "target.rate": self.target.rate,
            "exploration.start": self.exploration.start,
            "exploration.end": self.exploration.end,
            "exploration.fraction": self.exploration.fraction,
            "replay.priority_correction": self.replay.priority_correction,
        }
        if outside := {name: value for name, value in shares.items() if not 0 <= value <= 1}:
            raise ValueError(f"expected a share from 0 to 1, got {outside}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.target.rate == 0:
            raise ValueError("target.rate must be above 0: at 0 the target network stays at the first weights for ever")
        if self.learning_starts >= self.env_steps:
            raise ValueError(
                f"learning_starts ({self.learning_starts}) must be below env_steps ({self.env_steps}), "
                "or nothing is ever learned"
            )

    @property
    def total_steps(self) -> int:
        """Reports of the whole run."""
        return math.ceil(self.env_steps / self.report_every)


def config_from(plain: Mapping[str, Any]) -> DQNConfig:
    """Make settings from the plain values that a policy folder keeps."""
    parts = {"replay": ReplayConfig, "target": TargetConfig, "exploration": ExplorationConfig}
    told = {name: parts[name](**value) if name in parts else value for name, value in plain.items()}
    return DQNConfig(**{**told, "hidden": tuple(told["hidden"])})


DQN_PRESETS: dict[str, DQNConfig] = {
    "CartPole-v1": DQNConfig(
        env_steps=100_000,
        num_envs=8,
        learning_rate=1e-3,
        batch_size=128,
        train_every=8,
        updates=4,
        hidden=(128, 128),
        replay=ReplayConfig(n_step=3),
        target=TargetConfig(every=1, rate=0.01),
        exploration=ExplorationConfig(end=0.04, fraction=0.08),
    ),
    "Acrobot-v1": DQNConfig(
        env_steps=60_000,
        num_envs=8,
        learning_rate=1e-3,
        train_every=8,
        updates=4,
        hidden=(128, 128),
        replay=ReplayConfig(n_step=3),
        target=TargetConfig(every=1, rate=0.01),
        exploration=ExplorationConfig(end=0.05, fraction=0.16),
    ),
    "MountainCar-v0": DQNConfig(
        env_steps=100_000,
        num_envs=8,
        learning_rate=2e-3,
        train_every=16,
        updates=8,
        hidden=(128, 128),
        scale_observations=True,
        replay=ReplayConfig(capacity=50_000, n_step=3),
        target=TargetConfig(every=300),
        exploration=ExplorationConfig(end=0.07, fraction=0.2),
    ),
    "LunarLander-v3": DQNConfig(
        num_envs=8,
        env_steps=200_000,
        learning_rate=6.3e-4,
        batch_size=128,
        train_every=8,
        updates=4,
        replay=ReplayConfig(capacity=100_000, n_step=3),
        exploration=ExplorationConfig(end=0.05, fraction=0.12),
    ),
}
"""Settings by the id of an environment; `python -m benchmarks.classic_goals dqn` says how far each one gets."""
