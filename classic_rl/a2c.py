"""Advantage actor-critic: one gradient step on each short rollout, for policy and critic together.

    policy gradient with GAE(gamma, lambda) + value_coef * value loss - entropy_coef * entropy

Source: Mnih et al. 2016 (arXiv:1602.01783), whose asynchronous actors play here in step; the advantages are those of
Schulman et al. 2016 (arXiv:1506.02438), of which lambda = 1 gives the paper's n-step ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classic_rl.actor_critic import ActorCritic, NetworkConfig, Player, Rollout, explained_variance, next_values
from classic_rl.agents import learn
from classic_rl.envs import EnvSource
from classic_rl.losses import clipped_value_loss, policy_gradient_loss
from classic_rl.masked import masked_mean, standardize
from classic_rl.networks import Adam
from classic_rl.normalize import RewardScale
from classic_rl.returns import generalized_advantages


@dataclass(frozen=True)
class A2CConfig:
    """Settings of A2C.

    env_steps: steps of the whole run, all environments together.
    num_envs: environments that play at a time.
    rollout_steps: steps of each environment between updates.
    learning_rate: of Adam, at the start.
    anneal: whether the learning rate goes down to 0 on a straight line.
    gamma: discount per step.
    lam: lambda of GAE: 0 trusts the critic, 1 the returns.
    standardize_advantages: whether those of an update are brought to mean 0 and standard deviation 1.
    value_coef, entropy_coef: weights of those terms beside the policy's.
    max_grad_norm: the gradient is scaled down to this norm.
    scale_rewards: whether rewards are divided by the running spread of their returns.
    network: of policy and critic.
    seed: of weights, environments and actions.
    """

    env_steps: int = 100_000
    num_envs: int = 16
    rollout_steps: int = 8
    learning_rate: float = 3e-3
    anneal: bool = True
    gamma: float = 0.99
    lam: float = 0.95
    standardize_advantages: bool = True
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5
    scale_rewards: bool = False
    network: NetworkConfig = field(default_factory=NetworkConfig)
    seed: int = 0

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


PRESETS: dict[str, A2CConfig] = {
    "CartPole-v1": A2CConfig(env_steps=250_000, rollout_steps=64, learning_rate=5e-3, lam=1.0),
}
"""Settings that reach the known returns, for each environment."""


class A2C:
    """The loop: `steps()` yields the metrics of each update; `state()` is all that a resumed run needs.

    Attributes:
        step, total_steps: updates done, and of the whole run.
        policy: the policy and its critic.
    """

    def __init__(self, env: EnvSource, config: A2CConfig) -> None:
        self.config = config
        self.player = Player.make(env, config.num_envs, config.network, seed=config.seed)
        self.policy = self.player.policy
        self.optimizer = Adam(self.policy, max_grad_norm=config.max_grad_norm)
        self.scale = RewardScale(self.player.stepper.num_envs, config.gamma) if config.scale_rewards else None
        self.step = 0
        self.total_steps = config.env_steps // config.batch_size

    @property
    def env_steps(self) -> int:
        """Environment steps since the start."""
        return self.player.env_steps

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current update to the last."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            rollout = self.player.play(self.config.rollout_steps)
            metrics = self.update(rollout)
            self.step += 1
            seconds = time.perf_counter() - started
            speed = {"steps/per_second": rollout.valid.numel() / seconds, "time/step": seconds}
            yield {**self.player.stepper.metrics(), **metrics, "steps/total": self.env_steps, **speed}

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Take one gradient step on a rollout; return the metrics of doing so."""
        config, counts = self.config, rollout.valid
        judged = self.policy(rollout.features.flatten(0, 1), rollout.actions.flatten(0, 1))
        logprobs, entropies, values = (x.view(rollout.shape) for x in judged)
        rewards = rollout.rewards
        if self.scale:
            ended = rollout.terminated | rollout.truncated
            rewards = torch.from_numpy(self.scale(rewards.numpy(), ended.numpy(), counts.numpy()))
        old = values.detach()
        advantages = generalized_advantages(
            rewards, old, next_values(self.policy, rollout, old), rollout.terminated, rollout.truncated,
            gamma=config.gamma, lam=config.lam,
        )  # fmt: skip
        returns = advantages + old
        if config.standardize_advantages:
            advantages = standardize(advantages, counts)
        policy = masked_mean(policy_gradient_loss(logprobs, advantages), counts)
        value = masked_mean(clipped_value_loss(values, old, returns), counts)
        entropy = masked_mean(entropies, counts)
        # Twice: the literature's value_coef weighs the squared error, and this loss is half of it.
        loss = policy + 2 * config.value_coef * value - config.entropy_coef * entropy
        rate = config.learning_rate * (1 - self.step / self.total_steps if config.anneal else 1.0)
        norm = self.optimizer.step(loss, learning_rate=rate)
        return {
            "loss/policy": policy.item(),
            "loss/value": value.item(),
            "policy/entropy": entropy.item(),
            "optim/grad_norm": norm.item(),
            "value/explained_variance": explained_variance(old[counts], returns[counts]),
            "optim/learning_rate": rate,
        }

    def learn(self, env_steps: int | None = None) -> list[dict[str, float]]:
        """Learn until so many environment steps were made, or to the end; return the metrics of each update."""
        return learn(self, env_steps)

    def act(self, obs: np.ndarray, *, deterministic: bool = False) -> np.ndarray:
        """Return actions for observations. [N, ...] -> [N, ...]"""
        return self.policy.act(obs, deterministic=deterministic)

    def save(self, folder: str | Path) -> None:
        """Write the policy's folder."""
        self.policy.save(folder, "a2c")

    @staticmethod
    def load(folder: str | Path) -> ActorCritic:
        """Read a policy's folder; what comes back acts, and has no environments to learn in."""
        return ActorCritic.load(folder, "a2c")

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer, environments, generators, statistics and step."""
        scale = self.scale.state() if self.scale else None
        return {
            "optimizer": self.optimizer.state(), "player": self.player.state(), "scale": scale, "step": self.step
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.optimizer.load_state(state["optimizer"])
        self.player.load_state(state["player"])
        if self.scale:
            self.scale.load_state(state["scale"])
        self.step = int(state["step"])

    def examples(self) -> list[dict[str, Any]]:
        """Return nothing: no completions are sampled here."""
        return []
