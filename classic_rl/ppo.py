"""Proximal policy optimisation: several epochs over a rollout, while the policy stays near the one that played it.

The update at a glance, averaged over the steps of a minibatch:

    clipped surrogate + value_coef * value loss - entropy_coef * entropy

Advantages are standardised over the whole rollout, so that how it is cut into minibatches changes no advantage.

Source: Schulman et al. 2017 (arXiv:1707.06347).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from classic_rl.actor_critic import ActorCritic, Judged, Player, Rollout, explained_variance, next_values
from classic_rl.agents import Agent
from classic_rl.divergences import kl_k3
from classic_rl.envs import EnvSource
from classic_rl.losses import clipped_surrogate_loss, clipped_value_loss
from classic_rl.masked import standardize
from classic_rl.networks import Adam
from classic_rl.normalize import RewardScale
from classic_rl.on_policy_config import PPOConfig
from classic_rl.returns import generalized_advantages


class Batch(NamedTuple):
    """The steps of a rollout that count, as the old policy and critic saw them. [B, ...] each"""

    features: Tensor
    actions: Tensor
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def minibatches(batch: Batch, rng: np.random.Generator, count: int) -> Iterator[Batch]:
    """Deal a batch out at random into so many parts."""
    if count == 1:
        yield batch
        return
    order = torch.from_numpy(rng.permutation(len(batch.actions)))
    yield from (Batch(*parts) for parts in zip(*(x[order].chunk(count) for x in batch), strict=True))


def ppo_loss(
    policy: Callable[[Tensor, Tensor], Judged], batch: Batch, config: PPOConfig, *, clip: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the loss of a minibatch, and its terms: policy, value, entropy.

    Args:
        policy: judges actions.
        batch: [..., B] each; policies side by side have each their own row.
        config: for the weights of the terms.
        clip: how far from 1 the ratio of probabilities still earns.

    Returns:
        The loss of each row, and its terms, all means over the row. [...] each
    """
    logprobs, entropies, values = policy(batch.features, batch.actions)
    surrogate = clipped_surrogate_loss(logprobs, batch.old_logprobs, batch.advantages, clip_low=clip, clip_high=clip)
    error = clipped_value_loss(values, batch.old_values, batch.returns, clip=config.value_clip)
    surrogate, error, entropy = (x.mean(dim=-1) for x in (surrogate, error, entropies))
    # Twice: the literature's value_coef weighs the squared error, and this loss is half of it.
    loss = surrogate + 2 * config.value_coef * error
    if config.entropy_coef:  # else its gradient would be computed for nothing
        loss = loss - config.entropy_coef * entropy
    return loss, (surrogate.detach(), error.detach(), entropy.detach())


class PPO(Agent[ActorCritic]):
    """The loop: see `Agent` for what it has beside `steps` and `update`."""

    name = "ppo"

    def __init__(self, env: EnvSource, config: PPOConfig) -> None:
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
            metrics = self.update(self.judge(rollout))
            self.step += 1
            seconds = time.perf_counter() - started
            speed = {"steps/per_second": rollout.valid.numel() / seconds, "time/step": seconds}
            yield {**self.stepper.metrics(), **metrics, "steps/total": self.env_steps, **speed}

    @torch.no_grad()
    def judge(self, rollout: Rollout) -> Batch:
        """Flatten a rollout to the steps that count, with their advantages, standardised over all of them."""
        features, actions = rollout.features.flatten(0, 1), rollout.actions.flatten(0, 1)
        logprobs, _, values = self.policy(features, actions)
        rewards, by_time = rollout.rewards, values.view(rollout.shape)
        if self.scale:
            ended = rollout.terminated | rollout.truncated
            rewards = torch.from_numpy(self.scale(rewards.numpy(), ended.numpy(), rollout.valid.numpy()))
        advantages = generalized_advantages(
            rewards, by_time, next_values(self.policy, rollout, by_time), rollout.terminated, rollout.truncated,
            gamma=self.config.gamma, lam=self.config.lam,
        ).flatten()  # fmt: skip
        batch = Batch(features, actions, logprobs, values, advantages, advantages + values)
        counts = rollout.valid.flatten()
        if not counts.all():
            batch = Batch(*(x[counts] for x in batch))
        return batch._replace(advantages=standardize(batch.advantages))

    def update(self, batch: Batch) -> dict[str, float]:
        """Learn from a batch; return the metrics of doing so."""
        config, (rate, clip) = self.config, self.rate_and_clip()
        told: list[Tensor] = []
        epoch, kl = 0, 0.0
        while epoch < config.epochs and (config.target_kl is None or kl <= config.target_kl):
            for part in minibatches(batch, self.player.rng, config.minibatches):
                loss, terms = ppo_loss(self.policy, part, config, clip=clip)
                norm = self.optimizer.step(loss, learning_rate=rate)
                told.append(torch.stack([*terms, norm]))
            epoch += 1
            if config.target_kl is not None:
                kl, _ = self.distance(batch, clip=clip)
        return self.metrics(torch.stack(told), batch, epoch)

    def rate_and_clip(self) -> tuple[float, float]:
        """Return the learning rate and the clip of the next update."""
        left = 1 - self.step / self.total_steps if self.config.anneal else 1.0
        return self.config.learning_rate * left, self.config.clip * left

    def metrics(self, told: Tensor, batch: Batch, epochs: int) -> dict[str, float]:
        """Return the metrics of an update: means of what its gradient steps told, [steps, 4], and what it came to."""
        rate, clip = self.rate_and_clip()
        kl, clipped = self.distance(batch, clip=clip)
        names = ("loss/policy", "loss/value", "policy/entropy", "optim/grad_norm")
        return {
            **dict(zip(names, told.mean(dim=0).tolist(), strict=True)),
            "policy/approx_kl": kl,
            "policy/clip_fraction": clipped,
            "policy/epochs": float(epochs),
            "value/explained_variance": explained_variance(batch.old_values, batch.returns),
            "optim/learning_rate": rate,
        }

    @torch.no_grad()
    def distance(self, batch: Batch, *, clip: float) -> tuple[float, float]:
        """Return how far the policy is from the one that played: its KL, and the share of ratios beyond the clip."""
        logprobs = self.policy(batch.features, batch.actions).logprobs
        beyond = (torch.exp(logprobs - batch.old_logprobs) - 1).abs() > clip
        # k3 of samples from the old policy, whose place is the first.
        return kl_k3(batch.old_logprobs, logprobs).mean().item(), beyond.float().mean().item()

    @staticmethod
    def load(folder: str | Path) -> ActorCritic:
        """Read a policy's folder; what comes back acts, and has no environments to learn in."""
        return ActorCritic.load(folder, "ppo")
