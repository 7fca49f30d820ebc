"""Advantage actor-critic: one gradient step on each short rollout, for policy and critic together.

    policy gradient with GAE(gamma, lambda) + value_coef * value loss - entropy_coef * entropy

Source: Mnih et al. 2016 (arXiv:1602.01783), whose asynchronous actors play here in step; the advantages are those of
Schulman et al. 2016 (arXiv:1506.02438), of which lambda = 1 gives the paper's n-step ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from classic_rl.actor_critic import ActorCritic, Player, Rollout, explained_variance, next_values
from classic_rl.agents import Agent
from classic_rl.envs import EnvSource
from classic_rl.losses import clipped_value_loss, policy_gradient_loss
from classic_rl.masked import masked_mean, standardize
from classic_rl.networks import Adam
from classic_rl.normalize import RewardScale
from classic_rl.on_policy_config import A2CConfig
from classic_rl.returns import generalized_advantages


class A2C(Agent[ActorCritic]):
    """The loop: see `Agent` for what it has beside `steps` and `update`."""

    name = "a2c"

    def __init__(self, env: EnvSource, config: A2CConfig) -> None:
        self.config = config
        self.player = Player.make(env, config.num_envs, config.network, seed=config.seed)
        self.policy, self.stepper = self.player.policy, self.player.stepper
        self.optimizer = Adam(self.policy, max_grad_norm=config.max_grad_norm)
        self.scale = RewardScale(self.stepper.num_envs, config.gamma) if config.scale_rewards else None
        self.parts = {"optimizer": self.optimizer, "player": self.player}
        if self.scale:
            self.parts["scale"] = self.scale
        self.step = 0
        self.total_steps = config.total_steps

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current update to the last."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            rollout = self.player.play(self.config.rollout_steps)
            metrics = self.update(rollout)
            self.step += 1
            seconds = time.perf_counter() - started
            speed = {"steps/per_second": rollout.valid.numel() / seconds, "time/step": seconds}
            yield {**self.stepper.metrics(), **metrics, "steps/total": self.env_steps, **speed}

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

    @staticmethod
    def load(folder: str | Path) -> ActorCritic:
        """Read a policy's folder; what comes back acts, and has no environments to learn in."""
        return ActorCritic.load(folder, "a2c")
