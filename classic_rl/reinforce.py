"""REINFORCE: one gradient step on whole episodes, each action weighed by the return that followed it.

    -log pi(a_t | s_t) * (G_t - b(s_t))

The baseline b is learned on the very returns it is taken from, in their unit; what is left is standardised, if at all,
after it was taken off. Without a baseline b is 0. The weight gamma^t of the true gradient is left out, as nearly
everyone does: with it the later steps of an episode would hardly count.

Source: Williams 1992, "Simple statistical gradient-following algorithms"; Sutton & Barto 2018, section 13.4.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from classic_rl.actor_critic import ActorCritic, Player, Rollout, explained_variance, next_values
from classic_rl.agents import Agent
from classic_rl.envs import EnvSource
from classic_rl.losses import clipped_value_loss, policy_gradient_loss
from classic_rl.masked import masked_mean, standardize
from classic_rl.networks import Adam
from classic_rl.on_policy_config import REINFORCEConfig
from classic_rl.returns import discounted_returns


class REINFORCE(Agent[ActorCritic]):
    """The loop: see `Agent` for what it has beside `steps` and `update`."""

    name = "reinforce"

    def __init__(self, env: EnvSource, config: REINFORCEConfig) -> None:
        self.config = config
        self.player = Player.make(env, config.num_envs, config.network, seed=config.seed, critic=config.baseline)
        self.policy, self.stepper = self.player.policy, self.player.stepper
        actor = nn.ModuleList([self.policy.actor, self.policy.distribution])
        self.optimizer = Adam(actor, max_grad_norm=config.max_grad_norm)
        # Its own, since its gradient is in the unit of the returns and would drown the policy's in a common norm.
        self.baseline = Adam(self.policy.critic) if self.policy.critic is not None else None
        self.parts = {"optimizer": self.optimizer, "player": self.player}
        if self.baseline:
            self.parts["baseline"] = self.baseline
        self.step = 0
        self.total_steps = config.total_steps

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current update to the last."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            rollout = self.player.play_episodes(self.config.max_episode_steps)
            metrics = self.update(rollout)
            self.step += 1
            seconds = time.perf_counter() - started
            speed = {"steps/per_second": rollout.valid.numel() / seconds, "time/step": seconds}
            yield {**metrics, "steps/total": self.env_steps, **speed}

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Take one gradient step on whole episodes; return the metrics of doing so."""
        config, counts = self.config, rollout.valid
        rate = config.learning_rate * (1 - self.step / self.total_steps if config.anneal else 1.0)
        logprobs, entropies, values = (
            x.view(rollout.shape) for x in self.policy(rollout.features.flatten(0, 1), rollout.actions.flatten(0, 1))
        )
        returns = discounted_returns(
            rollout.rewards, rollout.terminated, rollout.truncated, next_values(self.policy, rollout, values),
            gamma=config.gamma,
        )  # fmt: skip
        advantages = returns - values.detach()
        if config.standardize_advantages:
            advantages = standardize(advantages, counts)
        policy = masked_mean(policy_gradient_loss(logprobs, advantages), counts)
        entropy = masked_mean(entropies, counts)
        norm = self.optimizer.step(policy - config.entropy_coef * entropy, learning_rate=rate)
        return {
            "episode/return": torch.where(counts, rollout.true_rewards, 0.0).sum(dim=1).mean().item(),
            "episode/length": counts.sum(dim=1).float().mean().item(),
            "loss/policy": policy.item(),
            "policy/entropy": entropy.item(),
            "optim/grad_norm": norm.item(),
            "optim/learning_rate": rate,
            **self._fit_baseline(rollout.features[counts], values.detach()[counts], returns[counts], rate),
        }

    def _fit_baseline(self, features: Tensor, values: Tensor, returns: Tensor, rate: float) -> dict[str, float]:
        """Move the baseline towards the returns [B] of states [B, ...] that it had valued otherwise [B]."""
        if self.baseline is None:
            return {}
        losses: list[Tensor] = []
        for _ in range(self.config.baseline_steps):
            loss = clipped_value_loss(self.policy.values(features), values, returns).mean()
            self.baseline.step(loss, learning_rate=rate)
            losses.append(loss.detach())
        return {
            "loss/value": torch.stack(losses).mean().item(),
            "value/explained_variance": explained_variance(values, returns),
        }

    @staticmethod
    def load(folder: str | Path) -> ActorCritic:
        """Read a policy's folder; what comes back acts, and has no environments to learn in."""
        return ActorCritic.load(folder, "reinforce")
