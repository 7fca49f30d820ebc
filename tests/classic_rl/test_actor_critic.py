"""Distributions over actions, the policy, and what a rollout holds."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import distributions

from classic_rl.actor_critic import (
    ActorCritic,
    Categorical,
    Gaussian,
    NetworkConfig,
    Player,
    SquashedGaussian,
    distribution_over,
    explained_variance,
    next_values,
)
from classic_rl.losses import clipped_surrogate_loss, policy_gradient_loss
from classic_rl.networks import without_gradient
from tests.classic_rl.counting import Counter
from tests.reference import classic_case

BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32))


def test_log_probabilities_and_entropies_of_categories_are_those_of_the_reference():
    inputs, expected = classic_case("categorical_logprob_entropy")
    categorical = Categorical(spaces.Discrete(3))
    logits = torch.tensor(inputs["logits"])
    logprobs, entropy = categorical(logits, torch.tensor(inputs["actions"]))
    torch.testing.assert_close(logprobs, torch.tensor(expected["log_prob"]))
    torch.testing.assert_close(entropy, torch.tensor(expected["entropy"]))
    assert categorical.best(logits.numpy()).tolist() == expected["mode"]


def test_the_policy_gradient_of_categories_is_that_of_the_reference():
    inputs, expected = classic_case("rlax_pg")
    logits = torch.tensor(inputs["logits"], requires_grad=True)
    logprobs, entropy = Categorical(spaces.Discrete(3))(logits, torch.tensor(inputs["actions"]))
    loss = policy_gradient_loss(logprobs, torch.tensor(inputs["advantages"])).mean()
    loss.backward()
    torch.testing.assert_close(loss.item(), expected["pg_loss"])
    torch.testing.assert_close(logits.grad, torch.tensor(expected["grad"]))
    torch.testing.assert_close(-entropy.mean().item(), expected["entropy_loss"])


def test_the_clipped_surrogate_and_its_gradient_are_those_of_the_reference():
    inputs, expected = classic_case("rlax_ppo_clip")
    ratio = torch.tensor(inputs["ratio"], requires_grad=True)
    advantages = torch.tensor(inputs["advantage"])
    epsilon = inputs["epsilon"]
    loss = clipped_surrogate_loss(ratio.log(), torch.zeros(5), advantages, clip_low=epsilon, clip_high=epsilon).mean()
    loss.backward()
    torch.testing.assert_close(loss.item(), expected["loss"])
    torch.testing.assert_close(ratio.grad, torch.tensor(expected["grad_ratio"]))


def test_several_kinds_of_categories_are_independent():
    several = Categorical(spaces.MultiDiscrete([2, 3]))
    outputs, actions = torch.randn(5, 5), torch.tensor([[0, 2], [1, 0], [1, 1], [0, 0], [1, 2]])
    logprobs, entropy = several(outputs, actions)
    parts = [distributions.Categorical(logits=part) for part in outputs.split([2, 3], dim=1)]
    torch.testing.assert_close(logprobs, sum(p.log_prob(actions[:, i]) for i, p in enumerate(parts)))
    torch.testing.assert_close(entropy, sum(p.entropy() for p in parts))


def test_a_gaussian_has_the_density_and_entropy_of_its_definition():
    gaussian = Gaussian(BOX)
    with torch.no_grad():
        gaussian.log_std.copy_(torch.tensor([0.3, -0.5]))
    means, actions = torch.randn(4, 2), torch.randn(4, 2)
    logprobs, entropy = gaussian(means, actions)
    normal = distributions.Normal(means, gaussian.log_std.exp())
    torch.testing.assert_close(logprobs, normal.log_prob(actions).sum(-1))
    torch.testing.assert_close(entropy, normal.entropy().sum(-1))


def test_a_squashed_gaussian_has_the_density_of_its_tanh_and_the_entropy_of_its_draws():
    squashed = SquashedGaussian(BOX)
    with torch.no_grad():
        squashed.log_std.copy_(torch.tensor([-0.2, 0.1]))
    means = torch.tensor([[0.3, -0.8]]).expand(200_000, 2).clone().requires_grad_()
    drawn = torch.from_numpy(means.detach().numpy() + squashed.noise(np.random.default_rng(0), 200_000))
    logprobs, entropy = squashed(means, drawn)
    by_torch = distributions.TransformedDistribution(
        distributions.Normal(means[:500], squashed.log_std.exp()), distributions.TanhTransform()
    )
    few = drawn[:500].clamp(-3, 3)  # beyond, the way back from tanh, which we spare, loses digits
    expected = by_torch.log_prob(few.tanh()).sum(-1)
    torch.testing.assert_close(squashed(means[:500], few)[0], expected, rtol=1e-3, atol=1e-3)
    assert logprobs.isfinite().all() and squashed(means, drawn * 1e4)[0].isfinite().all()
    # E[-log p] estimates the entropy, and so does what is given; 200,000 draws agree to three digits.
    assert entropy.mean().item() == pytest.approx(-logprobs.mean().item(), abs=0.01)

    def entropy_at(mean: float) -> float:
        u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
        density = distributions.Normal(mean, math.exp(-0.2)).log_prob(u)
        slope = torch.log1p(-u.tanh().square().clamp(max=1 - 1e-15))
        return -(density.exp() * (density - slope)).sum().item() * (24 / 200_000)

    entropy.mean().backward()
    slope = (entropy_at(0.301) - entropy_at(0.299)) / 0.002
    assert means.grad[:, 0].sum().item() == pytest.approx(slope, abs=0.01)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=2),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiDiscrete([[2], [4]]),
        spaces.MultiBinary(3),
    ],
)
def test_drawn_categories_are_actions_of_the_space_in_the_shares_of_their_probabilities(space):
    over = distribution_over(space)
    assert isinstance(over, Categorical)
    outputs = np.random.default_rng(0).normal(size=(1, over.outputs)).astype(np.float32)
    drawn = over.best(outputs + over.noise(np.random.default_rng(1), 40_000))
    assert all(action in space for action in over.to_env(drawn[:50]))
    columns = drawn[:, None] if over.single else drawn
    for column, logits in zip(columns.T, np.split(outputs[0], np.cumsum(over.sizes)[:-1]), strict=True):
        share = np.bincount(column, minlength=len(logits)) / len(column)
        np.testing.assert_allclose(share, np.exp(logits) / np.exp(logits).sum(), atol=0.01)


@pytest.mark.parametrize("squash", [False, True])
def test_continuous_actions_stay_in_their_bounds(squash):
    over = distribution_over(BOX, squash=squash)
    drawn = over.best(np.full((1000, 2), 0.5, np.float32) + over.noise(np.random.default_rng(0), 1000)) * 3
    assert drawn.dtype == np.float32
    assert all(action in BOX for action in over.to_env(drawn))
    middle = over.to_env(np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(middle, [[0.0, 5.0 if squash else 0.0]])


def test_squashed_actions_stay_in_their_bounds_where_those_are_no_sums_of_powers_of_two():
    draws = np.random.default_rng(0)
    for low, high in np.sort(draws.uniform(-1, 1, (500, 2)).round(2)).astype(np.float32) + np.float32([0, 0.01]):
        box = spaces.Box(low, high, (1,), np.float32)
        assert all(SquashedGaussian(box).to_env(np.full((1, 1), end, np.float32))[0] in box for end in (-12.0, 12.0))


def test_what_cannot_be_acted_in_is_refused():
    with pytest.raises(ValueError, match="squash_actions=False"):
        distribution_over(spaces.Box(-np.inf, np.inf, (1,)), squash=True)
    with pytest.raises(ValueError, match="space of actions"):
        distribution_over(spaces.Text(2))
    with pytest.raises(ValueError, match="activation must be one of"):
        NetworkConfig(activation="sine")
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="normalize_observations=False"):
        ActorCritic(image, spaces.Discrete(2), NetworkConfig(normalize_observations=True))


def test_acting_draws_what_learning_says():
    policy = ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), NetworkConfig(hidden=(8,)), seed=3)
    with torch.no_grad():
        policy.actor[-1].weight.mul_(300)  # far from uniform
    features = policy.features(np.random.default_rng(0).normal(size=(6, 3)))
    logits = policy.actor(torch.from_numpy(features))
    torch.testing.assert_close(torch.from_numpy(without_gradient(policy.actor)(features)), logits.detach())
    best = policy.act(features, deterministic=True)
    np.testing.assert_array_equal(best, logits.argmax(-1).numpy())


def test_images_are_seen():
    image = spaces.Box(0, 255, (10, 10, 3), np.uint8)
    policy = ActorCritic(image, spaces.Discrete(2), NetworkConfig(hidden=(8,)))
    obs = np.random.default_rng(0).integers(0, 256, (5, 10, 10, 3), dtype=np.uint8)
    assert policy.act(obs, deterministic=True).shape == (5,)
    judged = policy(torch.from_numpy(np.ascontiguousarray(policy.features(obs))), torch.zeros(5, dtype=torch.long))
    assert [part.shape for part in judged] == [(5,)] * 3


def player(mode: AutoresetMode, *, normalize: bool = False) -> Player:
    envs = SyncVectorEnv([lambda: Counter(3), lambda: Counter(0, 4)], autoreset_mode=mode)
    return Player.make(envs, 2, NetworkConfig(hidden=(4,), normalize_observations=normalize), seed=0)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_next_value_is_that_of_the_true_successor(mode):
    one = player(mode)
    rollout = one.play(9)
    values = one.policy.values(rollout.features.flatten(0, 1)).view(2, 9)
    following = next_values(one.policy, rollout, values)
    needed = rollout.valid & ~rollout.terminated
    true = one.policy.values(rollout.features.flatten(0, 1) + 1).view(2, 9)  # the counter's next state is one more
    torch.testing.assert_close(following[needed], true[needed].detach())
    assert rollout.truncated.any() and not following.requires_grad


def test_whole_episodes_begin_at_the_start_and_nothing_after_their_end_counts():
    one = player(AutoresetMode.DISABLED)
    one.play(2)
    rollout = one.play_episodes(100)
    assert rollout.valid.tolist() == [[True] * 3 + [False], [True] * 4]
    assert rollout.features[:, 0].abs().sum() == 0
    assert rollout.terminated[0, 2] and rollout.truncated[1, 3]
    cut = one.play_episodes(2)
    assert cut.shape == (2, 2) and cut.cut.tolist() == [[False, True], [False, True]]
    assert one.stepper.env_steps == 2 * 2 + 2 * 4 + 2 * 2


def test_observations_are_normalized_by_what_was_seen_in_valid_rows():
    one = player(AutoresetMode.NEXT_STEP, normalize=True)
    rollout = one.play(6)  # as they came: nothing had been seen before
    seen = rollout.features[rollout.valid].numpy()
    moments = one.policy.moments
    assert moments is not None
    np.testing.assert_allclose(moments.mean, seen.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(one.policy.features(np.array([[2.0]])), (2 - moments.mean) / np.sqrt(moments.var)[None])


def test_explained_variance_is_that_of_the_reference():
    inputs, expected = classic_case("explained_variance")
    found = explained_variance(torch.tensor(inputs["y_pred"]), torch.tensor(inputs["y_true"]))
    assert found == pytest.approx(expected["ev"])
    assert explained_variance(torch.rand(3), torch.ones(3)) == 0.0


@pytest.mark.parametrize("config", [NetworkConfig(hidden=(8,)), NetworkConfig((8, 8), "relu", True, True)])
@pytest.mark.parametrize("critic", [True, False])
def test_a_policy_comes_back_from_its_folder(config, critic, tmp_path):
    policy = ActorCritic(spaces.Box(-1, 1, (3,)), BOX, config, seed=5, critic=critic)
    obs = np.random.default_rng(0).normal(2.0, 3.0, size=(50, 3))
    if policy.moments is not None:
        policy.moments.update(obs)
    policy.save(tmp_path, "ppo")
    again = ActorCritic.load(tmp_path, "ppo")
    np.testing.assert_array_equal(policy.act(obs, deterministic=True), again.act(obs, deterministic=True))
    assert again.config == config or list(again.config.hidden) == list(config.hidden)
    assert (again.critic is None) == (not critic)
