"""Proximal policy optimisation: several epochs over a rollout, while the policy stays near the one that played it.

The update at a glance, averaged over the steps of a minibatch:

    clipped surrogate + value_coef * value loss - entropy_coef * entropy

Advantages are standardised over the whole rollout, so that how it is cut into minibatches changes no advantage.

Source: Schulman et al. 2017 (arXiv:1707.06347).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
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


def minibatches(batch: Batch, rngs: Sequence[np.random.Generator], count: int) -> Iterator[Batch]:
    """Deal a batch [B, ...], or batches side by side [S, B, ...] by a generator each, out at random into parts.

    There are as many as asked for while each has a step, and their sizes differ by one at most.
    """
    if count == 1:
        yield batch
        return
    *beside, length = batch.old_values.shape
    orders = torch.from_numpy(np.stack([rng.permutation(length) for rng in rngs]))
    index = (torch.arange(len(rngs))[:, None], orders) if beside else (orders[0],)
    parts = max(1, min(count, length))
    dealt = (x[index].tensor_split(parts, dim=len(beside)) for x in batch)
    yield from (Batch(*part) for part in zip(*dealt, strict=True))


Judge = Callable[[Tensor, Tensor], Judged]
"""What says of features and actions how likely these are and what the states are worth: one policy, or several."""


def ppo_loss(
    policy: Judge, batch: Batch, config: PPOConfig, *, clip: float
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


class Valued(NamedTuple):
    """A rollout as the policy that played it and its critic see it. [N, T] each"""

    rewards: Tensor
    logprobs: Tensor
    values: Tensor
    next_values: Tensor


@torch.no_grad()
def valued(policy: ActorCritic, rollout: Rollout, scale: RewardScale | None) -> Valued:
    """Judge a rollout, and scale its rewards where they are to be."""
    judged = policy(rollout.features.flatten(0, 1), rollout.actions.flatten(0, 1))
    logprobs, _, values = (x.view(rollout.shape) for x in judged)
    rewards, ended = rollout.rewards, rollout.terminated | rollout.truncated
    if scale:
        rewards = torch.from_numpy(scale(rewards.numpy(), ended.numpy(), rollout.valid.numpy()))
    return Valued(rewards, logprobs, values, next_values(policy, rollout, values))


def batch_of(rollout: Rollout, seen: Valued, config: PPOConfig) -> Batch:
    """Flatten a rollout [N, T] to a batch, by environment and then by time, with advantages as they are."""
    rewards, logprobs, values, following = seen
    advantages = generalized_advantages(
        rewards, values, following, rollout.terminated, rollout.truncated, gamma=config.gamma, lam=config.lam
    )
    laid_out = (rollout.features, rollout.actions, logprobs, values, advantages, advantages + values)
    return Batch(*(x.flatten(0, 1) for x in laid_out))


def learn_from(part: Batch, policy: Judge, optimizer: Adam, config: PPOConfig, *, rate: float, clip: float) -> Tensor:
    """Take one gradient step, and return what it tells: the terms of the loss and the gradient's norm. [4, ...]"""
    loss, terms = ppo_loss(policy, part, config, clip=clip)
    norm = optimizer.step(loss.sum(), learning_rate=rate)
    return torch.stack([*terms, norm])


def rate_and_clip(config: PPOConfig, *, done: float) -> tuple[float, float]:
    """Return the learning rate and the clip of an update, when a share of the run is done."""
    left = 1 - done if config.anneal else 1.0
    return config.learning_rate * left, config.clip * left


@torch.no_grad()
def distance(policy: Judge, batch: Batch, *, clip: float) -> tuple[float, float]:
    """Return how far a policy is from the one that played: its KL, and the share of ratios beyond the clip."""
    logprobs = policy(batch.features, batch.actions).logprobs
    beyond = (torch.exp(logprobs - batch.old_logprobs) - 1).abs() > clip
    # k3 of samples from the old policy, whose place is the first.
    return kl_k3(batch.old_logprobs, logprobs).mean().item(), beyond.float().mean().item()


def metrics_of(told: Sequence[Tensor], policy: Judge, batch: Batch, *, clip: float) -> dict[str, float]:
    """Return the metrics of an update, of policies side by side their means.

    Args:
        told: what `learn_from` told at each gradient step. [4, ...] each
        policy: as it is now.
        batch: what it learned from.
        clip: how far from 1 the ratio of probabilities still earned.
    """
    kl, clipped = distance(policy, batch, clip=clip)
    names = ("loss/policy", "loss/value", "policy/entropy", "optim/grad_norm")
    means = torch.stack(list(told), dim=1).flatten(1).mean(dim=1).tolist()
    return {
        **dict(zip(names, means, strict=True)),
        "policy/approx_kl": kl,
        "policy/clip_fraction": clipped,
        "value/explained_variance": explained_variance(batch.old_values, batch.returns),
    }


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

    def judge(self, rollout: Rollout) -> Batch:
        """Return the steps of a rollout that count, with their advantages standardised over all of them."""
        batch = batch_of(rollout, valued(self.policy, rollout, self.scale), self.config)
        counts = rollout.valid.flatten()
        if not counts.all():
            batch = Batch(*(x[counts] for x in batch))
        return batch._replace(advantages=standardize(batch.advantages))

    def update(self, batch: Batch) -> dict[str, float]:
        """Learn from a batch; return the metrics of doing so."""
        config, (rate, clip) = self.config, rate_and_clip(self.config, done=self.step / self.total_steps)
        told: list[Tensor] = []
        epoch, kl = 0, 0.0
        while epoch < config.epochs and (config.target_kl is None or kl <= config.target_kl):
            parts = minibatches(batch, [self.player.rng], config.minibatches)
            told += [learn_from(part, self.policy, self.optimizer, config, rate=rate, clip=clip) for part in parts]
            epoch += 1
            if config.target_kl is not None:
                kl, _ = distance(self.policy, batch, clip=clip)
        moved = metrics_of(told, self.policy, batch, clip=clip)
        return {**moved, "policy/epochs": float(epoch), "optim/learning_rate": rate}

    @staticmethod
    def load(folder: str | Path) -> ActorCritic:
        """Read a policy's folder; what comes back acts, and has no environments to learn in."""
        return ActorCritic.load(folder, "ppo")
