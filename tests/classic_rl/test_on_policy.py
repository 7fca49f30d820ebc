"""What holds of REINFORCE, A2C and PPO alike, and what each of them learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from align.runs.checkpoint import load_latest, save_checkpoint
from classic_rl.a2c import A2C, A2CConfig
from classic_rl.actor_critic import NetworkConfig, Rollout
from classic_rl.envs import make_envs
from classic_rl.evaluate import evaluate
from classic_rl.masked import standardize
from classic_rl.metrics import METRICS
from classic_rl.on_policy_config import A2C_PRESETS, PPO_PRESETS, REINFORCE_PRESETS
from classic_rl.ppo import PPO, Batch, PPOConfig, minibatches
from classic_rl.reinforce import REINFORCE, REINFORCEConfig
from classic_rl.shaping import shaped
from tests.classic_rl.counting import Counter, Echo
from tests.reference import classic_case

SMALL = NetworkConfig(hidden=(8,))
NORMAL = NetworkConfig(hidden=(8,), squash_actions=True, normalize_observations=True)


def small(kind: str, env: Any = "CartPole-v1", **changes: Any) -> Any:
    """An agent of eight updates."""
    shared = {"num_envs": 3, "network": SMALL, "entropy_coef": 0.01, **changes}
    if kind == "ppo":
        return PPO(env, PPOConfig(**{"env_steps": 8 * 48, "rollout_steps": 16, "minibatches": 3, **shared}))
    if kind == "a2c":
        return A2C(env, A2CConfig(**{"env_steps": 8 * 48, "rollout_steps": 16, **shared}))
    return REINFORCE(env, REINFORCEConfig(**{"updates": 8, "max_episode_steps": 60, **shared}))


KINDS = ("reinforce", "a2c", "ppo")
VARIANTS = [
    ("reinforce", "CartPole-v1", {}),
    ("reinforce", "Pendulum-v1", {"baseline": False, "network": NORMAL}),
    ("a2c", "CartPole-v1", {}),
    ("a2c", "Pendulum-v1", {"scale_rewards": True, "network": NORMAL}),
    ("ppo", "CartPole-v1", {"target_kl": 0.01, "value_clip": 0.2}),
    ("ppo", "Pendulum-v1", {"scale_rewards": True, "network": NORMAL}),
    ("ppo", "FrozenLake-v1", {}),
    ("ppo", shaped("MountainCar-v0", gamma=0.99), {"scale_rewards": True}),
]


def weights(agent: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in agent.policy.parameters()]).clone()


def but_time(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in ("time/step", "steps/per_second")}


@pytest.mark.parametrize(("kind", "env", "changes"), VARIANTS)
def test_an_agent_resumed_from_a_checkpoint_goes_on_bitwise(kind, env, changes, tmp_path):
    one = small(kind, env, **changes)
    iterator = one.steps()
    for _ in range(5):
        next(iterator)
    save_checkpoint(tmp_path, one.step, one.state())
    other = small(kind, env, **{**changes, "seed": 1})  # everything that the seed made is replaced
    found = load_latest(tmp_path)
    assert found
    other.load_state(found.state)
    assert torch.equal(weights(one), weights(other))
    rest, again = [but_time(m) for m in iterator], [but_time(m) for m in other.steps()]
    assert rest == again and len(rest) == 3
    assert torch.equal(weights(one), weights(other)) and one.step == other.step == one.total_steps == 8


def test_reinforce_learns_from_shaped_rewards_and_tells_the_true_ones():
    agent = small("reinforce", shaped("MountainCar-v0", gamma=0.99))
    told = [metrics["episode/return"] for metrics in agent.learn(env_steps=3 * 120)]
    assert told == [-60.0, -60.0]  # each step costs 1, and an episode is cut after 60
    rollout = agent.player.play_episodes(10)
    assert (rollout.true_rewards == -1).all() and (rollout.rewards != -1).all()


@pytest.mark.parametrize(("kind", "env", "changes"), VARIANTS)
def test_every_metric_of_an_agent_is_finite_and_has_its_meaning_written_down(kind, env, changes):
    for metrics in small(kind, env, **changes).learn():
        assert not set(metrics) - set(METRICS)
        assert np.isfinite(list(metrics.values())).all(), metrics


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_says_everything_and_evaluating_between_updates_changes_nothing(kind):
    one, other, third = small(kind), small(kind), small(kind, seed=1)
    for _ in one.steps():
        evaluate(one.act, "CartPole-v1", episodes=1)
        evaluate(one.act, "CartPole-v1", episodes=1, deterministic=False)
    torch.rand(3), np.random.rand(3)
    other.learn()
    third.learn()
    assert torch.equal(weights(one), weights(other)) and not torch.equal(weights(one), weights(third))


@pytest.mark.parametrize("kind", KINDS)
def test_learning_stops_at_the_steps_asked_for_and_goes_on_from_there(kind):
    agent = small(kind)
    first = agent.learn(env_steps=49)
    assert agent.env_steps >= 49 > sum(m["steps/total"] for m in first[:-1])
    assert agent.learn(env_steps=49) == []
    assert len(first) + len(agent.learn()) == agent.total_steps == 8
    assert agent.examples() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_acts_as_the_agent_did(kind, tmp_path):
    agent = small(kind, "Pendulum-v1", network=NORMAL)
    agent.learn()
    agent.save(tmp_path)
    policy = type(agent).load(tmp_path)
    obs = np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_array_equal(agent.act(obs, deterministic=True), policy.act(obs, deterministic=True))
    with pytest.raises(ValueError, match="expected a policy of"):
        (PPO if kind != "ppo" else A2C).load(tmp_path)


def counters(mode: AutoresetMode, ends: list[int], cuts: list[int]) -> SyncVectorEnv:
    return SyncVectorEnv(
        [lambda e=end, c=cut: Counter(e, c) for end, cut in zip(ends, cuts, strict=True)], autoreset_mode=mode
    )


def learned(kind: str, rollout: Rollout, envs: SyncVectorEnv) -> torch.Tensor:
    agent = small(kind, envs, num_envs=envs.num_envs)
    agent.update(agent.judge(rollout) if kind == "ppo" else rollout)
    return weights(agent)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    ends=st.lists(st.integers(2, 7), min_size=2, max_size=4),
    cut=st.integers(2, 6),
    steps=st.integers(8, 20),
    noise=st.integers(0, 99),
)
def test_what_stands_in_rows_of_a_reset_is_never_learned_from(kind, ends, cut, steps, noise):
    envs = counters(AutoresetMode.NEXT_STEP, ends, [cut] * len(ends))
    rollout = small(kind, envs, num_envs=len(ends)).player.play(steps)
    generator = torch.Generator().manual_seed(noise)

    def other(x: torch.Tensor) -> torch.Tensor:
        """The same where a row counts, anything elsewhere."""
        made = torch.randint(0, 2, x.shape, generator=generator).to(x.dtype)
        mask = rollout.valid.view(*rollout.valid.shape, *[1] * (x.ndim - 2))
        return torch.where(mask, x, made if x.dtype == torch.int64 else 100 * made)

    changed = replace(
        rollout, features=other(rollout.features), actions=other(rollout.actions), rewards=other(rollout.rewards)
    )
    assert not rollout.valid.all()
    assert torch.equal(learned(kind, rollout, envs), learned(kind, changed, envs))


@pytest.mark.parametrize("kind", ["a2c", "ppo"])
def test_the_same_transitions_teach_the_same_however_gymnasium_resets(kind):
    """Ends at the last step only, so that both modes hold the same rows; lengths divide the rollout."""
    agents = [small(kind, counters(mode, [16] * 3, [0] * 3)) for mode in AutoresetMode]
    for agent in agents:
        next(agent.steps())
    assert torch.equal(weights(agents[0]), weights(agents[1]))
    assert torch.equal(weights(agents[0]), weights(agents[2]))


def test_truncation_bootstraps_and_termination_does_not():
    values = {}
    for name, envs in (("ends", counters(AutoresetMode.DISABLED, [2], [0])),
                       ("is cut", counters(AutoresetMode.DISABLED, [0], [2]))):  # fmt: skip
        agent = small("ppo", envs, num_envs=1, rollout_steps=2, minibatches=1, gamma=0.5, lam=0.0)
        with torch.no_grad():
            agent.policy.critic[-1].weight.zero_()
            agent.policy.critic[-1].bias.fill_(10.0)
        values[name] = agent.judge(agent.player.play(2)).returns
    torch.testing.assert_close(values["ends"], torch.tensor([1 + 0.5 * 10, 2.0]))
    torch.testing.assert_close(values["is cut"], torch.tensor([1 + 0.5 * 10, 2 + 0.5 * 10]))


def test_one_update_of_ppo_is_that_of_the_reference():
    """Loss, clipping of the gradient and Adam together."""
    inputs, expected = classic_case("ppo_one_minibatch_update")
    config = PPOConfig(
        num_envs=2, rollout_steps=2, minibatches=1, epochs=1, learning_rate=1e-2, anneal=False, clip=0.2,
        value_coef=0.5, entropy_coef=0.01, max_grad_norm=0.5, network=NetworkConfig(hidden=(3,)),
    )  # fmt: skip
    agent = PPO("CartPole-v1", config)
    theirs = {"actor.0": "mlp_extractor.policy_net.0", "actor.2": "action_net", "critic.2": "value_net",
              "critic.0": "mlp_extractor.value_net.0"}  # fmt: skip
    names = {f"{ours}.{part}": f"{name}.{part}" for ours, name in theirs.items() for part in ("weight", "bias")}
    agent.policy.load_state_dict({ours: torch.tensor(inputs["params"][name]) for ours, name in names.items()})
    obs, advantages, returns, old = (
        torch.tensor(inputs[name]) for name in ("obs", "advantages", "returns", "old_log_prob")
    )
    metrics = agent.update(
        Batch(obs, torch.tensor(inputs["actions"]), old, torch.zeros(4), standardize(advantages), returns)
    )
    found = agent.policy.state_dict()
    for ours, name in names.items():
        torch.testing.assert_close(found[ours], torch.tensor(expected["params"][name]), rtol=1e-4, atol=1e-6)
    losses = expected["losses"]
    assert metrics["loss/policy"] == pytest.approx(losses["train/policy_gradient_loss"], abs=1e-6)
    assert 2 * metrics["loss/value"] == pytest.approx(losses["train/value_loss"], abs=1e-6)
    assert -metrics["policy/entropy"] == pytest.approx(losses["train/entropy_loss"], abs=1e-6)


@pytest.mark.parametrize(("steps", "asked", "sizes"), [(100, 32, {3, 4}), (16, 10, {1, 2}), (96, 4, {24}), (3, 4, {1})])
def test_an_epoch_has_as_many_minibatches_as_were_asked_for_and_each_step_is_in_one(steps, asked, sizes):
    batch = Batch(*(torch.arange(steps) for _ in Batch._fields))
    dealt = list(minibatches(batch, [np.random.default_rng(0)], asked))
    assert len(dealt) == min(asked, steps) and {len(part.returns) for part in dealt} == sizes
    assert sorted(torch.cat([part.returns for part in dealt]).tolist()) == list(range(steps))


def test_the_minibatches_of_the_settings_for_known_environments_are_all_alike():
    assert not any(config.batch_size % config.minibatches for config in PPO_PRESETS.values())


def test_the_kl_stops_the_epochs_of_an_update():
    free, held = (
        small("ppo", epochs=10, learning_rate=0.05, target_kl=limit).learn()[0] for limit in (None, 1e-3)
    )  # fmt: skip
    assert free["policy/epochs"] == 10 and free["policy/approx_kl"] > 1e-3
    assert held["policy/epochs"] < 10 and held["policy/approx_kl"] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_rates_go_down_to_zero_or_stay(kind):
    down = [m["optim/learning_rate"] for m in small(kind, learning_rate=0.8).learn()]
    assert down == pytest.approx([0.8 * left / 8 for left in range(8, 0, -1)])
    assert {m["optim/learning_rate"] for m in small(kind, anneal=False, learning_rate=0.1).learn()} == {0.1}


def test_a_baseline_takes_no_part_in_the_first_gradient_but_its_values():
    """The baseline begins at 0 here, so with and without one the first step of the policy is the same."""
    agents = [small("reinforce", baseline=baseline) for baseline in (True, False)]
    with torch.no_grad():
        agents[0].policy.critic[-1].weight.zero_()
    for agent in agents:
        next(agent.steps())
    for one, other in zip(agents[0].policy.actor.parameters(), agents[1].policy.actor.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "loss/value" not in agents[1].learn()[0]


def test_return_and_baseline_are_in_one_unit():
    """A baseline that knows the returns leaves no advantage, whatever their unit."""
    agent = small("reinforce", counters(AutoresetMode.DISABLED, [1], [0]), num_envs=1, standardize_advantages=False)
    with torch.no_grad():
        agent.policy.critic[-1].weight.zero_()
        agent.policy.critic[-1].bias.fill_(1.0)  # the one reward of the counter
    metrics = next(agent.steps())
    assert metrics["loss/policy"] == 0.0 and metrics["loss/value"] == 0.0


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: PPOConfig(epochs=0), "epochs must be at least 1"),
        (lambda: PPOConfig(num_envs=1, rollout_steps=2, minibatches=3), "too few to learn from"),
        (lambda: PPOConfig(env_steps=10), "at least one update's 512"),
        (lambda: A2CConfig(num_envs=1, rollout_steps=1), "too few to learn from"),
        (lambda: A2CConfig(env_steps=1), "at least one update's"),
        (lambda: REINFORCEConfig(updates=0), "updates must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(make, advice):
    with pytest.raises(ValueError, match=advice):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_a_preset_names_an_environment_and_makes_an_agent_for_it(kind):
    presets = {"ppo": PPO_PRESETS, "a2c": A2C_PRESETS, "reinforce": REINFORCE_PRESETS}[kind]
    agent = {"ppo": PPO, "a2c": A2C, "reinforce": REINFORCE}[kind]
    for env, config in presets.items():
        assert agent(env, replace(config, num_envs=2)).total_steps > 10


# --- learning ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", ["discrete", "multi-discrete", "multi-binary", "box"])
def test_every_agent_learns_every_kind_of_action(kind, actions):
    changes = {"updates": 60} if kind == "reinforce" else {"env_steps": 16 * 16 * 40, "rollout_steps": 16}
    agent = small(
        kind, lambda: Echo(actions), num_envs=256 if kind == "reinforce" else 16, learning_rate=0.03, anneal=True,
        network=NetworkConfig(hidden=(16,), squash_actions=actions == "box"), entropy_coef=0.0, **changes,
    )  # fmt: skip
    agent.learn()
    best = 0.6 if actions == "box" else 0.9  # a real number is hard to hit: standing at 0 would give 0.0
    assert evaluate(agent.act, lambda: Echo(actions), episodes=50).returns.mean() > best


def test_ppo_solves_cart_pole():
    agent = PPO("CartPole-v1", PPO_PRESETS["CartPole-v1"])
    for _ in agent.steps():
        if agent.step % 10 == 0 and evaluate(agent.act, "CartPole-v1").returns.mean() >= 475:
            return
    pytest.fail("CartPole-v1 was not solved within the preset's steps")


@pytest.mark.parametrize("kind", KINDS)
def test_environments_made_beforehand_are_taken_as_they_are_and_must_be_as_many_as_the_settings_say(kind):
    envs = make_envs("CartPole-v1", 5)
    assert small(kind, envs, num_envs=5).player.stepper.envs is envs
    with pytest.raises(ValueError, match="num_envs is 3, but the vector has 5 environments: set num_envs=5"):
        small(kind, envs)
