"""PPO of several seeds at once: what each learns is what it learns alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from align.runs.checkpoint import load_latest, save_checkpoint
from classic_rl.actor_critic import ActorCritic
from classic_rl.envs import Episode
from classic_rl.metrics import METRICS
from classic_rl.networks import Adam
from classic_rl.on_policy_config import NetworkConfig
from classic_rl.ppo import PPO, PPOConfig
from classic_rl.ppo_seeds import PPOSeeds, SideBySide

SMALL = PPOConfig(
    env_steps=4 * 96,
    num_envs=3,
    rollout_steps=32,
    minibatches=3,
    entropy_coef=0.01,
    network=NetworkConfig(hidden=(8, 8)),
)
NORMAL = NetworkConfig(hidden=(8,), activation="relu", squash_actions=True, normalize_observations=True)
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("CartPole-v1", {}),
    ("CartPole-v1", {"minibatches": 1, "value_clip": 0.2, "anneal": False}),
    ("Pendulum-v1", {"scale_rewards": True, "network": NORMAL}),
    ("FrozenLake-v1", {}),
]


def weights(policy: ActorCritic) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in policy.parameters()])


def but_time(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in ("time/step", "steps/per_second")}


@pytest.mark.parametrize(("env", "changes"), VARIANTS)
def test_each_seed_learns_what_it_learns_alone(env, changes):
    config = replace(SMALL, **changes)
    many, alone = PPOSeeds(env, config, (3, 5)), [PPO(env, replace(config, seed=seed)) for seed in (3, 5)]
    before = [weights(policy).clone() for policy in many.policies]
    for told, *each in zip(many.steps(), *(agent.steps() for agent in alone), strict=True):
        assert set(told) <= set(METRICS)
        for name in set().union(*each) - {"time/step", "steps/per_second", "steps/total", "episode/count"}:
            mean = np.mean([metrics[name] for metrics in each if name in metrics])
            assert told[name] == pytest.approx(mean, rel=1e-3, abs=1e-5), name
    for index, (policy, single, was) in enumerate(zip(many.policies, alone, before, strict=True)):
        torch.testing.assert_close(weights(policy), weights(single.policy), atol=1e-5, rtol=1e-4)
        assert (weights(policy) - was).abs().max() > 1e-3, "nothing was learned"
        # Categories of weights that differ by rounding are the same; actions on a scale, and what they earn, differ as
        # the weights do, a few times as much for the layers between.
        actions = (one.act(single.stepper.obs, deterministic=True) for one in (policy, single))
        np.testing.assert_allclose(*actions, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(many.stepper.latest[index], single.stepper.latest[0], atol=1e-4, rtol=1e-4)
    assert not torch.equal(weights(many.policies[0]), weights(many.policies[1]))
    assert many.env_steps == 2 * alone[0].env_steps and many.step == many.total_steps == 4


def test_policies_side_by_side_judge_as_each_alone_and_so_do_their_gradients():
    observations, actions = spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([2, 3])
    policies = [ActorCritic(observations, actions, NetworkConfig(hidden=(8, 8)), seed=seed) for seed in range(3)]
    optimizers = [Adam(policy) for policy in policies]
    features, chosen = torch.randn(3, 7, 3), torch.randint(0, 2, (3, 7, 2))
    gradients = []
    for policy, optimizer, x, a in zip(policies, optimizers, features, chosen, strict=True):
        judged = policy(x, a)
        (judged.logprobs.sum() + judged.entropy.sum() + judged.values.square().sum()).backward()
        gradients.append(optimizer.memory[1].clone())
    expected = [policy(x, a) for policy, x, a in zip(policies, features, chosen, strict=True)]
    joint, flat = Adam.together(optimizers)
    joint.memory[1].zero_()
    judged = SideBySide(policies, flat)(features, chosen)
    for name in ("logprobs", "entropy", "values"):
        torch.testing.assert_close(getattr(judged, name), torch.stack([getattr(one, name) for one in expected]))
    (judged.logprobs.sum() + judged.entropy.sum() + judged.values.square().sum()).backward()
    torch.testing.assert_close(joint.memory[1], torch.stack(gradients))


def test_a_resumed_run_of_several_seeds_ends_in_the_weights_of_one_left_alone(tmp_path):
    whole = PPOSeeds("CartPole-v1", SMALL, (0, 1))
    history = [but_time(metrics) for metrics in whole.steps()]
    first = PPOSeeds("CartPole-v1", SMALL, (0, 1))
    for _ in zip(first.steps(), range(2), strict=False):
        pass
    save_checkpoint(tmp_path, first.step, first.state())
    second = PPOSeeds("CartPole-v1", SMALL, (0, 1))
    second.load_state(load_latest(tmp_path).state)
    assert [but_time(metrics) for metrics in second.steps()] == history[first.step :]
    for policy, other in zip(whole.policies, second.policies, strict=True):
        assert torch.equal(weights(policy), weights(other))


def test_returns_have_their_ends_over_the_seeds_that_have_any():
    many = PPOSeeds("CartPole-v1", SMALL, (0, 1, 2))
    assert many.returns() == {}
    many.stepper.latest[0].extend([Episode(4.0, 4), Episode(6.0, 6)])
    many.stepper.latest[2].append(Episode(9.0, 9))
    assert many.returns() == {"seeds/return_low": 5.0, "seeds/return_high": 9.0}


@pytest.mark.parametrize(
    ("seeds", "changes", "words"),
    [((), {}, "different seeds"), ((1, 1), {}, "different seeds"), ((0, 1), {"target_kl": 0.01}, "target_kl")],
)
def test_what_cannot_be_trained_at_once_is_refused(seeds, changes, words):
    with pytest.raises(ValueError, match=words):
        PPOSeeds("CartPole-v1", replace(SMALL, **changes), seeds)
