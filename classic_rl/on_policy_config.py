"""Settings of REINFORCE, A2C and PPO, and those that solve known environments; no torch, so that --help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Activation = Literal["tanh", "relu"]


@dataclass(frozen=True)
class NetworkConfig:
    """The networks of policy and critic, which share nothing."""

    hidden: Sequence[int] = (64, 64)
    """Widths of the hidden layers."""
    activation: Activation = "tanh"
    """Between the layers."""
    squash_actions: bool = False
    """Whether continuous actions go into their bounds by tanh, instead of being clipped there."""
    normalize_observations: bool = False
    """Whether observations are brought to running mean 0 and variance 1; these statistics belong to the policy."""

    def __post_init__(self) -> None:
        known = get_args(Activation)
        if self.activation not in known:
            raise ValueError(f"activation must be one of {sorted(known)}, got {self.activation!r}")


@dataclass(frozen=True)
class REINFORCEConfig:
    """Settings of REINFORCE."""

    updates: int = 200
    """Gradient steps of the whole run."""
    num_envs: int = 16
    """Episodes of an update, each in an environment of its own."""
    max_episode_steps: int = 1000
    """An episode that is longer is cut here, and its future valued by the baseline."""
    learning_rate: float = 1e-2
    """Learning rate of Adam, at the start; the baseline's is the same."""
    anneal: bool = True
    """Whether the learning rate goes down to 0 on a straight line."""
    gamma: float = 0.99
    """Discount per step."""
    baseline: bool = True
    """Whether a baseline is learned; without one, what a cut episode would still have earned counts as 0."""
    standardize_advantages: bool = True
    """Whether those of an update are brought to mean 0 and standard deviation 1."""
    baseline_steps: int = 10
    """Gradient steps of the baseline on the returns of an update, after they were used."""
    entropy_coef: float = 0.0
    """Weight of the entropy beside the policy's loss."""
    max_grad_norm: float = 0.5
    """The policy's gradient is scaled down to this norm."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    seed: int = 0
    """Seed of weights, environments and actions."""

    def __post_init__(self) -> None:
        for name in ("updates", "num_envs", "max_episode_steps", "baseline_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.updates


REINFORCE_PRESETS: dict[str, REINFORCEConfig] = {
    "CartPole-v1": REINFORCEConfig(updates=30),
}
"""Settings that reach the known returns, for each environment."""


@dataclass(frozen=True)
class A2CConfig:
    """Settings of A2C."""

    env_steps: int = 100_000
    """Steps of the whole run, all environments together."""
    num_envs: int = 16
    """Environments that play at a time."""
    rollout_steps: int = 8
    """Steps of each environment between updates."""
    learning_rate: float = 3e-3
    """Learning rate of Adam, at the start."""
    anneal: bool = True
    """Whether the learning rate goes down to 0 on a straight line."""
    gamma: float = 0.99
    """Discount per step."""
    lam: float = 0.95
    """Lambda of GAE: 0 trusts the critic, 1 the returns."""
    standardize_advantages: bool = True
    """Whether those of an update are brought to mean 0 and standard deviation 1."""
    value_coef: float = 0.5
    """Weight of the critic\'s squared error beside the policy\'s loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy beside the policy\'s loss."""
    max_grad_norm: float = 0.5
    """The gradient is scaled down to this norm."""
    scale_rewards: bool = False
    """Whether rewards are divided by the running spread of their returns."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    seed: int = 0
    """Seed of weights, environments and actions."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "rollout_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError("an update has num_envs * rollout_steps = 1 step: too few to learn from")
        if self.env_steps < self.batch_size:
            raise ValueError(f"env_steps must be at least one update's {self.batch_size}, got {self.env_steps}")

    @property
    def batch_size(self) -> int:
        """Steps of an update."""
        return self.num_envs * self.rollout_steps

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.env_steps // self.batch_size


A2C_PRESETS: dict[str, A2CConfig] = {
    "CartPole-v1": A2CConfig(env_steps=250_000, rollout_steps=64, learning_rate=5e-3, lam=1.0),
}
"""Settings that reach the known returns, for each environment."""


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO."""

    env_steps: int = 100_000
    """Steps of the whole run, all environments together."""
    num_envs: int = 16
    """Environments that play at a time."""
    rollout_steps: int = 32
    """Steps of each environment between updates."""
    epochs: int = 4
    """Times that an update goes through its rollout."""
    minibatches: int = 4
    """Gradient steps of an epoch."""
    learning_rate: float = 2.5e-3
    """Learning rate of Adam, at the start."""
    anneal: bool = True
    """Whether learning rate and clip go down to 0 on a straight line."""
    gamma: float = 0.99
    """Discount per step."""
    lam: float = 0.95
    """Lambda of GAE: 0 trusts the critic, 1 the returns."""
    clip: float = 0.2
    """How far from 1 the ratio of probabilities still earns."""
    value_clip: float | None = None
    """How far from the old value the new one still earns, in the unit of the rewards; None does not clip."""
    value_coef: float = 0.5
    """Weight of the critic\'s squared error beside the policy\'s loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy beside the policy\'s loss."""
    max_grad_norm: float = 0.5
    """The gradient is scaled down to this norm."""
    target_kl: float | None = None
    """No further epoch once the policy is this far from the one that played, nats; None takes all."""
    scale_rewards: bool = False
    """Whether rewards are divided by the running spread of their returns."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    seed: int = 0
    """Seed of weights, environments, actions and minibatches."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "rollout_steps", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.minibatches > self.batch_size or self.batch_size < 2:
            raise ValueError(f"an update has num_envs * rollout_steps = {self.batch_size} steps: too few to learn from")
        if self.env_steps < self.batch_size:
            raise ValueError(f"env_steps must be at least one update's {self.batch_size}, got {self.env_steps}")

    @property
    def batch_size(self) -> int:
        """Steps of an update."""
        return self.num_envs * self.rollout_steps

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.env_steps // self.batch_size


PPO_PRESETS: dict[str, PPOConfig] = {
    "CartPole-v1": PPOConfig(
        env_steps=50_000, epochs=5, learning_rate=1e-2, gamma=0.98, lam=0.98,
        network=NetworkConfig(hidden=(64,), activation="relu"),
    ),
    "Acrobot-v1": PPOConfig(env_steps=150_000, rollout_steps=64, lam=0.94),
    # Without a reward on the way chance hardly ever reaches the goal: for classic_rl.shaping.shaped, see PPO_SHAPED.
    "MountainCar-v0": PPOConfig(
        env_steps=250_000, rollout_steps=128, epochs=8, minibatches=8, lam=0.98, scale_rewards=True,
        network=NetworkConfig(normalize_observations=True),
    ),
    "Pendulum-v1": PPOConfig(
        env_steps=150_000, rollout_steps=128, epochs=10, minibatches=32, learning_rate=1e-3, gamma=0.95,
        scale_rewards=True,
    ),
    "LunarLander-v3": PPOConfig(
        env_steps=1_000_000, rollout_steps=256, epochs=4, minibatches=32, learning_rate=1e-3, gamma=0.999, lam=0.98,
        entropy_coef=0.01,
    ),
}  # fmt: skip
"""Settings that reach the known returns, for each environment."""

PPO_SHAPED = frozenset({"MountainCar-v0"})
"""Environments whose settings are for rewards that `classic_rl.shaping.shaped` makes."""
