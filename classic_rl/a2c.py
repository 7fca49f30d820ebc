"""Advantage actor-critic: one gradient step on each short rollout, for policy and critic together.

    policy gradient with GAE(gamma, lambda) + value_coef * value loss - entropy_coef * entropy

Source: Mnih et al. 2016 (arXiv:1602.01783), whose asynchronous actors play here in step; the advantages are those of
Schulman et al. 2016 (arXiv:1506.02438), of which lambda = 1 gives the paper's n-step ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classic_rl.actor_critic import ActorCritic, Player, Rollout, explained_variance, next_values
from classic_rl.agents import learn
from classic_rl.envs import EnvSource
from classic_rl.losses import clipped_value_loss, policy_gradient_loss
from classic_rl.masked import masked_mean, standardize
from classic_rl.networks import Adam
from classic_rl.normalize import RewardScale
from classic_rl.on_policy_config import A2CConfig
from classic_rl.returns import generalized_advantages


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
        self.total_steps = config.total_steps

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
