"""PPO for several seeds at once: each plays and learns as it would alone, but one operation serves all their networks.

Networks of a few thousand weights leave a processor waiting for Python between operations; eight of them side by side
wait once. What a seed learns is what it learns alone, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from classic_rl.actor_critic import ActorCritic, Judged, Rollout, play, rollout_of
from classic_rl.envs import Stepper, make_envs
from classic_rl.masked import standardize
from classic_rl.networks import Adam, without_gradient
from classic_rl.normalize import RewardScale
from classic_rl.on_policy_config import PPOConfig
from classic_rl.ppo import Batch, Valued, batch_of, learn_from, metrics_of, minibatches, rate_and_clip, valued


class SideBySide:
    """Policies of one shape that play and judge each by its own weights, each in equally many environments.

    Args:
        policies: S of them.
        weights: of all, each row in the order of `policy.parameters()`. [S, P]
    """

    def __init__(self, policies: Sequence[ActorCritic], weights: Tensor) -> None:
        self.policies, self.weights = policies, weights
        self.shapes = {name: parameter.shape for name, parameter in policies[0].named_parameters()}
        self.distribution = policies[0].distribution

    def named(self) -> dict[str, Tensor]:
        """Return all weights by their names. [S, ...] each"""
        parts = self.weights.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {name: x.unflatten(-1, self.shapes[name]) for name, x in zip(self.shapes, parts, strict=True)}

    def __call__(self, features: Tensor, actions: Tensor) -> Judged:
        """Judge actions as they were drawn, as `ActorCritic` does. [S, B, D], [S, B] or [S, B, D] -> [S, B] each"""
        named, one = self.named(), self.policies[0]
        outputs, values = (_through(layers, _of(name, named), features) for name, layers in _networks(one))
        own = {name: weight[:, None] for name, weight in _of("distribution", named).items()}
        logprobs, entropy = functional_call(self.distribution, own, (outputs, actions))
        return Judged(logprobs, entropy, values.squeeze(-1))

    # --- what `classic_rl.actor_critic.play` asks for, of environments in the order of their policies ---

    def features(self, obs: np.ndarray) -> np.ndarray:
        """Return what the networks take. [S * N, ...] -> [S * N, D]"""
        if self.policies[0].moments is None:
            return self.policies[0].encode(obs)
        parts = np.split(obs, len(self.policies))
        return np.concatenate([policy.features(part) for policy, part in zip(self.policies, parts, strict=True)])

    def outputs(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the actors without gradient. [S * N, D] -> [S * N, outputs]"""
        side, actors = len(self.policies), without_gradient(self.policies[0].actor, _of("actor", self.named()))
        return lambda x: actors(x.reshape(side, -1, x.shape[-1])).reshape(len(x), -1)

    def watch(self, seen: Sequence[np.ndarray], valid: np.ndarray) -> None:
        """Let the moments of each policy, if there are any, take in what it saw. T of [S * N, ...], [S * N, T]"""
        if self.policies[0].moments is None:
            return
        side = len(self.policies)
        each = zip(*(np.split(obs, side) for obs in seen), strict=True)
        for policy, own, counts in zip(self.policies, each, np.split(valid, side), strict=True):
            policy.watch(own, counts)


def _networks(policy: ActorCritic) -> list[tuple[str, nn.Sequential]]:
    assert policy.critic is not None
    return [("actor", policy.actor), ("critic", policy.critic)]


def _of(part: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): x for name, x in named.items() if name.startswith(f"{part}.")}


def _through(layers: nn.Sequential, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[S, B, D] -> [S, B, outputs]"""
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            weight, bias = weights[f"{index}.weight"], weights[f"{index}.bias"]
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
        policies: one per seed; each acts, and is saved by `save(folder, "ppo")`, as one that was trained alone.
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
        envs = make_envs(env, len(seeds) * config.num_envs)
        spaces = envs.single_observation_space, envs.single_action_space
        self.policies = [ActorCritic(*spaces, config.network, seed=seed) for seed in seeds]
        if self.policies[0].encode.is_image:
            raise ValueError("images are not learned from side by side: train the seeds in turn.")
        self.stepper = Stepper(envs, seeds)
        self.rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
        self.optimizer, weights = Adam.together(
            [Adam(policy, max_grad_norm=config.max_grad_norm) for policy in self.policies]
        )
        self.together = SideBySide(self.policies, weights)
        self.scales = [RewardScale(config.num_envs, config.gamma) if config.scale_rewards else None for _ in seeds]
        self.step, self.total_steps = 0, config.total_steps

    @property
    def env_steps(self) -> int:
        """Steps of environments since the start, of all seeds together."""
        return self.stepper.env_steps

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current update to the last."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            rollout = self.play()
            metrics = self.update(self.judge(rollout))
            self.step += 1
            seconds = time.perf_counter() - started
            speed = {"steps/per_second": rollout.valid.numel() / seconds, "time/step": seconds}
            yield {**self.stepper.metrics(), **self.returns(), **metrics, "steps/total": self.env_steps, **speed}

    def play(self) -> Rollout:
        """Go on for some steps in every environment of every seed."""
        shape = self.config.rollout_steps, self.config.num_envs
        drawn = (policy.distribution.noise(rng, *shape) for policy, rng in zip(self.policies, self.rngs, strict=True))
        noise = np.concatenate(list(drawn), axis=1)
        return rollout_of(self.together, list(play(self.together, self.stepper, noise)))

    def judge(self, rollout: Rollout) -> Batch:
        """Return what each seed learns from its part of a rollout. [S, B, ...]"""
        each = zip(self.policies, rollout.split(len(self.seeds)), self.scales, strict=True)
        seen = [valued(policy, part, scale) for policy, part, scale in each]
        flat = batch_of(rollout, Valued(*map(torch.cat, zip(*seen, strict=True))), self.config)
        batch = Batch(*(x.unflatten(0, (len(self.seeds), -1)) for x in flat))
        return batch._replace(advantages=torch.stack([standardize(row) for row in batch.advantages]))

    def update(self, batch: Batch) -> dict[str, float]:
        """Learn from one batch of each seed; return the metrics of doing so."""
        config, (rate, clip) = self.config, rate_and_clip(self.config, done=self.step / self.total_steps)
        told: list[Tensor] = []
        for _ in range(config.epochs):
            parts = minibatches(batch, self.rngs, config.minibatches)
            told += [learn_from(part, self.together, self.optimizer, config, rate=rate, clip=clip) for part in parts]
        moved = metrics_of(told, self.together, batch, clip=clip)
        return {**moved, "policy/epochs": float(config.epochs), "optim/learning_rate": rate}

    def returns(self) -> dict[str, float]:
        """Return the lowest and the highest of the seeds' returns, each a mean over its latest 100 episodes."""
        means = self.stepper.latest_means()
        if not len(means):
            return {}
        return {"seeds/return_low": means[:, 0].min().item(), "seeds/return_high": means[:, 0].max().item()}

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            "optimizer": self.optimizer.state(),
            "stepper": self.stepper.state(),
            "rngs": [rng.bit_generator.state for rng in self.rngs],
            "moments": [policy.moments.state() if policy.moments else None for policy in self.policies],
            "scales": [scale.state() if scale else None for scale in self.scales],
            "step": self.step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.optimizer.load_state(state["optimizer"])
        self.stepper.load_state(state["stepper"])
        for index, (policy, rng, scale) in enumerate(zip(self.policies, self.rngs, self.scales, strict=True)):
            rng.bit_generator.state = state["rngs"][index]
            if policy.moments:
                policy.moments.load_state(state["moments"][index])
            if scale:
                scale.load_state(state["scales"][index])
        self.step = int(state["step"])

    def examples(self) -> list[dict[str, Any]]:
        """Return nothing: an agent of Gymnasium has no completions to show."""
        return []
