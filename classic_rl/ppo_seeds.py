"""PPO for several seeds at once: each plays and learns as it would alone, but one operation serves all their networks.

Networks of a few thousand weights leave a processor waiting for Python between operations; eight of them side by side
wait once. What a seed learns is what it learns alone, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from classic_rl.actor_critic import ActorCritic, Judged
from classic_rl.networks import Adam
from classic_rl.on_policy_config import PPOConfig
from classic_rl.ppo import PPO, Batch, minibatches, ppo_loss


class SideBySide:
    """Policies of one shape, that judge actions each by its own weights.

    Args:
        policy: any of them, for the shape.
        weights: of all of them, each row in the order of `policy.parameters()`. [S, P]
    """

    def __init__(self, policy: ActorCritic, weights: Tensor) -> None:
        self.policy, self.weights = policy, weights
        self.shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}

    def __call__(self, features: Tensor, actions: Tensor) -> Judged:
        """Judge actions as they were drawn, as `ActorCritic` does. [S, B, D], [S, B] or [S, B, D] -> [S, B] each"""
        parts = self.weights.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        named = {name: x.unflatten(-1, self.shapes[name]) for name, x in zip(self.shapes, parts, strict=True)}
        outputs, values = (_through(getattr(self.policy, name), name, named, features) for name in ("actor", "critic"))
        distribution = self.policy.distribution
        own = {name: named[f"distribution.{name}"][:, None] for name, _ in distribution.named_parameters()}
        logprobs, entropy = functional_call(distribution, own, (outputs, actions))
        return Judged(logprobs, entropy, values.squeeze(-1))


def _through(layers: nn.Sequential, name: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """[S, B, D] -> [S, B, outputs]"""
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            weight, bias = (weights[f"{name}.{index}.{part}"] for part in ("weight", "bias"))
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        else:
            x = layer(x)
    return x


class PPOSeeds:
    """The loop over all seeds: `steps()` yields the metrics of each update, means over the seeds.

    Args:
        env: an id, or a function that makes one environment; each seed has copies of its own.
        config: of every seed, which stands in for `config.seed`.
        seeds: different ones.

    Attributes:
        agents: one per seed; each acts, and is saved, as one that was trained alone.
        step, total_steps: updates done, and of the whole run.

    Raises:
        ValueError: if a seed comes twice, observations are images, or `target_kl` would stop each seed elsewhere.
    """

    def __init__(self, env: str | Callable[[], gymnasium.Env], config: PPOConfig, seeds: Sequence[int]) -> None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"expected different seeds, got {list(seeds)}")
        if config.target_kl is not None:
            raise ValueError("target_kl ends the epochs of each seed elsewhere: set it to None, or train them in turn.")
        self.config, self.seeds = config, tuple(seeds)
        self.agents = [PPO(env, replace(config, seed=seed)) for seed in seeds]
        if self.agents[0].policy.encode.is_image:
            raise ValueError("images are not learned from side by side: train the seeds in turn.")
        self.optimizer, weights = Adam.together([agent.optimizer for agent in self.agents])
        self.policy = SideBySide(self.agents[0].policy, weights)
        self.step, self.total_steps = 0, config.total_steps

    @property
    def env_steps(self) -> int:
        """Steps of environments since the start, of all seeds together."""
        return sum(agent.env_steps for agent in self.agents)

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current update to the last."""
        while self.step < self.total_steps:
            started, before = time.perf_counter(), self.env_steps
            batches = [agent.judge(agent.player.play(self.config.rollout_steps)) for agent in self.agents]
            metrics = self.update(batches)
            self.step += 1
            seconds = time.perf_counter() - started
            speed = {"steps/per_second": (self.env_steps - before) / seconds, "time/step": seconds}
            yield {**metrics, "steps/total": self.env_steps, **speed}

    def update(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Learn from one batch of each seed; return the metrics of doing so."""
        rate, clip = self.agents[0].rate_and_clip()
        told: list[Tensor] = []
        for _ in range(self.config.epochs):
            dealt = (
                minibatches(batch, agent.player.rng, self.config.minibatches)
                for agent, batch in zip(self.agents, batches, strict=True)
            )
            for parts in zip(*dealt, strict=True):
                rows = Batch(*map(torch.stack, zip(*parts, strict=True)))
                losses, terms = ppo_loss(self.policy, rows, self.config, clip=clip)
                norms = self.optimizer.step(losses.sum(), learning_rate=rate)
                told.append(torch.stack([*terms, norms]))
        each = [
            {**agent.stepper.metrics(), **agent.metrics(of_seed, batch, self.config.epochs)}
            for agent, of_seed, batch in zip(self.agents, torch.stack(told).unbind(dim=-1), batches, strict=True)
        ]
        for agent in self.agents:
            agent.step += 1
        return over_seeds(each)

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {"agents": [agent.state() for agent in self.agents], "step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        for agent, of_seed in zip(self.agents, state["agents"], strict=True):
            agent.load_state(of_seed)
        self.step = int(state["step"])

    def examples(self) -> list[dict[str, Any]]:
        """Return nothing: an agent of Gymnasium has no completions to show."""
        return []


def over_seeds(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the seeds that have it, and the lowest and highest return of a seed."""
    names = {name: None for metrics in each for name in metrics}
    means = {name: float(np.mean([metrics[name] for metrics in each if name in metrics])) for name in names}
    returns = [metrics["episode/return"] for metrics in each if "episode/return" in metrics]
    return means | ({"seeds/return_low": min(returns), "seeds/return_high": max(returns)} if returns else {})
