"""Agents: identities between them, the same on a table as through env.step, resumed, and what they learn."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from numpy.testing import assert_allclose

import classic_rl.gridworld
from align.runs.run import run
from classic_rl.metrics import METRICS
from classic_rl.schedules import cosine, linear
from classic_rl.tabular.behaviour import UCB, Boltzmann, EpsilonGreedy
from classic_rl.tabular.control import (
    Control,
    CountBonusDynaQ,
    DoubleQLearning,
    DynaQ,
    ExpectedSarsa,
    QLearning,
    Sarsa,
)
from classic_rl.tabular.mdp import MDP, mdp_from_arrays, mdp_from_env
from classic_rl.tabular.multi_step import NStepSarsa, SarsaLambda
from classic_rl.tabular.planning import exact_policy_evaluation, greedy_policy, policy_iteration, start_value
from classic_rl.tabular.stepping import EnvStepper, TableStepper, make_stepper, mdp_stepper
from tests.classic_rl.tabular.mdps import random_walk

GRID = classic_rl.gridworld.ID
AGENTS = {
    "q_learning": (QLearning, {}),
    "sarsa": (Sarsa, {}),
    "expected_sarsa": (ExpectedSarsa, {}),
    "double_q_learning": (DoubleQLearning, {}),
    "dyna_q": (DynaQ, {"planning_steps": 3}),
    "count_bonus_dyna_q": (CountBonusDynaQ, {"planning_steps": 3, "beta": 0.01}),
    "n_step_sarsa": (NStepSarsa, {"n": 4}),
    "sarsa_lambda": (SarsaLambda, {"lam": 0.8}),
}
every_agent = pytest.mark.parametrize("name", AGENTS)


def make(
    name: str, env="FrozenLake-v1", *, seed=0, through_env=False, epsilon=0.2, behaviour=None, **settings
) -> Control:
    kind, own = AGENTS[name]
    made = gymnasium.make(env)
    stepper = EnvStepper(made, seed) if through_env else make_stepper(made, seed=seed)
    behaviour = behaviour or EpsilonGreedy(epsilon, np.random.default_rng(seed))
    settings = {"alpha": 0.1, "gamma": 0.95, "episodes": 200, **own, **settings}
    return kind(stepper, behaviour, **settings)


def trained(agent: Control) -> Control:
    for _ in agent.steps():
        pass
    return agent


def shortfall(agent: Control, env: str, gamma: float) -> float:
    """How much less than the best policy the learned greedy one is worth from the start, exactly."""
    mdp = mdp_from_env(gymnasium.make(env))
    learned = exact_policy_evaluation(mdp, greedy_policy(np.array(agent.q)), gamma=gamma)
    return start_value(mdp, policy_iteration(mdp, gamma=gamma).values) - start_value(mdp, learned)


@every_agent
@pytest.mark.parametrize("env", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1", GRID])
def test_an_agent_learns_the_same_on_the_table_as_through_the_environment(name, env):
    settings = {"episodes": 12, "epsilon": 0.5}
    on_table = make(name, env, seed=4, **settings)
    through_env = make(name, env, seed=4, through_env=True, **settings)
    assert list(on_table.steps()) == list(through_env.steps())
    assert on_table.q == through_env.q and on_table.env_steps > 0


class ByItsEquation(QLearning):
    """Q-learning whose episodes call `learn`, and so `q_learning_target`, as those of any subclass do."""

    def learn(self, *step) -> None:
        super().learn(*step)


@pytest.mark.parametrize("env", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1", GRID])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_q_learning_written_out_is_its_equation_number_for_number(env, epsilon):
    settings = {"alpha": linear(0.9, 0.1, 60), "gamma": 0.97, "episodes": 60}
    agents = [
        kind(make_stepper(gymnasium.make(env), seed=3), EpsilonGreedy(epsilon, np.random.default_rng(3)), **settings)
        for kind in (QLearning, ByItsEquation)
    ]
    assert list(agents[0].steps()) == list(agents[1].steps())
    assert agents[0].state() == agents[1].state() and any(map(any, agents[0].q))


@every_agent
def test_an_agent_that_was_stopped_and_resumed_ends_bitwise_as_one_left_alone(name, tmp_path):
    whole = trained(make(name, GRID, episodes=40, alpha=linear(0.5, 0.1, 40)))
    part = make(name, GRID, episodes=40, alpha=linear(0.5, 0.1, 40))
    steps = part.steps()
    metrics = [next(steps) for _ in range(15)]
    assert metrics[-1]["learning/alpha"] == pytest.approx(0.5 - 0.4 * 14 / 40)
    run(part, tmp_path, config={}, quiet=True)
    resumed = make(name, GRID, seed=9, episodes=40, alpha=linear(0.5, 0.1, 40))
    first = make(name, GRID, episodes=40, alpha=linear(0.5, 0.1, 40))
    told = first.steps()
    for _ in range(15):
        next(told)
    resumed.load_state(first.state())
    trained(resumed)
    assert whole.state() == part.state() == resumed.state()


def test_a_run_resumed_from_its_files_goes_on_where_it_was(tmp_path):
    whole = make("dyna_q", GRID, episodes=30, episodes_per_step=4)
    run(whole, tmp_path / "whole", config={}, quiet=True)
    short = make("dyna_q", GRID, episodes=30, episodes_per_step=4)
    short.total_steps = 3
    run(short, tmp_path / "short", config={}, quiet=True)
    resumed = make("dyna_q", GRID, seed=7, episodes=30, episodes_per_step=4)
    run(resumed, tmp_path / "short", config={}, quiet=True, resume=True)
    assert resumed.step == 8 and resumed.state() == whole.state()


@every_agent
def test_every_metric_is_finite_and_in_the_dictionary(name):
    for metrics in make(name, episodes=7, episodes_per_step=3).steps():
        assert set(metrics) <= set(METRICS) and all(np.isfinite(list(metrics.values())))
    assert metrics["episode/count"] == 7


def test_metrics_of_several_episodes_are_their_means():
    one = list(make("sarsa", episodes=6).steps())
    three = list(make("sarsa", episodes=6, episodes_per_step=3).steps())
    for name in ("episode/return", "episode/length"):
        assert [m[name] for m in three] == pytest.approx([np.mean([m[name] for m in one[i : i + 3]]) for i in (0, 3)])
    assert three[-1]["steps/total"] == one[-1]["steps/total"] == sum(m["episode/length"] for m in one)


@pytest.mark.parametrize("env", ["FrozenLake-v1", GRID])
def test_one_step_and_lambda_0_are_sarsa(env):
    sarsa = trained(make("sarsa", env))
    assert_allclose(trained(make("n_step_sarsa", env, n=1)).q, sarsa.q, rtol=1e-12)
    for trace in ("accumulating", "replacing"):
        assert_allclose(trained(make("sarsa_lambda", env, lam=0.0, trace=trace)).q, sarsa.q, rtol=1e-12)


def test_expected_sarsa_of_a_greedy_behaviour_is_q_learning():
    settings = {"epsilon": 0.0, "initial_q": 1.0}
    assert_allclose(trained(make("expected_sarsa", **settings)).q, trained(make("q_learning", **settings)).q)


def one_episode(kind, **settings) -> Control:
    """Always to the right along the walk of five: the states are 3, 4, 5, the rewards 0, 0, 1."""
    behaviour = EpsilonGreedy(0.0, np.random.default_rng(0))
    agent = kind(mdp_stepper(random_walk(5), seed=0), behaviour, gamma=0.9, episodes=1, **settings)
    for state in range(7):
        agent.q[state][:] = [-1.0, 0.5]
    return trained(agent)


def test_n_steps_past_the_end_are_monte_carlo():
    agent = one_episode(NStepSarsa, n=50, alpha=1.0)
    assert [agent.q[state][1] for state in (3, 4, 5)] == pytest.approx([0.81, 0.9, 1.0])


def test_two_steps_bootstrap_from_the_action_after_them():
    agent = one_episode(NStepSarsa, n=2, alpha=1.0)
    assert [agent.q[state][1] for state in (3, 4, 5)] == pytest.approx([0.81 * 0.5, 0.9, 1.0])


def test_traces_carry_each_error_back_less_and_less():
    agent = one_episode(SarsaLambda, lam=0.5, alpha=0.1)
    # The errors are 0.9 * 0.5 - 0.5 = -0.05 at 3, the same at 4, of values that have not changed, and 1 - 0.5 at 5.
    deltas = [-0.05, -0.05, 0.5]
    changes = [agent.q[state][1] - 0.5 for state in (3, 4, 5)]
    decay = 0.9 * 0.5
    expected = [0.1 * sum(decay**k * delta for k, delta in enumerate(deltas[first:])) for first in range(3)]
    assert changes == pytest.approx(expected)


def test_truncation_bootstraps_and_termination_does_not():
    for kind, settings in AGENTS.values():
        learned, more = {}, {**settings, **({"beta": 0.0} if "beta" in settings else {})}
        for limit in (1, None):
            env = mdp_stepper(random_walk(1) if limit is None else random_walk(3), seed=0, max_episode_steps=limit)
            agent = kind(env, EpsilonGreedy(0.0, np.random.default_rng(0)), alpha=1.0, gamma=0.5, episodes=1, **more)
            for row in agent.q:
                row[:] = [-1.0, 8.0]
            for table in getattr(agent, "tables", []):
                for row in table:
                    row[:] = [-1.0, 8.0]
            first = agent.env.reset()
            trained(agent)
            learned[limit] = agent.tables if kind is DoubleQLearning else [agent.q]
            learned[limit] = {table[first][1] for table in learned[limit]} - {8.0}
        assert learned == {1: {4.0}, None: {1.0}}, kind


def test_double_q_learning_overestimates_less_where_rewards_are_noise():
    """After one step, ten actions that pay -0.1 +- 1: Q-learning takes noise for value (van Hasselt 2010)."""
    worse = [(0.5, 1, -1.1, True), (0.5, 1, 0.9, True)]
    table = [[[(1.0, 1, 0.0, False)]] * 10, [worse] * 10]
    means = {}
    for kind in (QLearning, DoubleQLearning):
        found = []
        for seed in range(40):
            env = TableStepper(table, [1.0, 0.0], np.random.default_rng(seed))
            behaviour = EpsilonGreedy(1.0, np.random.default_rng(seed))
            found.append(max(trained(kind(env, behaviour, alpha=0.1, gamma=1.0, episodes=1000)).q[0]))
        means[kind] = np.mean(found)
    assert means[DoubleQLearning] < 0 < 0.1 < means[QLearning]


LAKE = {"episodes": 20_000, "alpha": cosine(0.2, 0.002, 20_000), "gamma": 0.99}


@pytest.mark.parametrize(
    ("name", "epsilon"), [("q_learning", linear(1.0, 0.1, 20_000)), ("sarsa", linear(1.0, 0.0, 20_000))]
)
def test_the_policy_learned_on_the_slippery_lake_is_as_good_as_the_best(name, epsilon):
    agent = trained(make(name, "FrozenLake-v1", **LAKE, epsilon=epsilon, episodes_per_step=100))
    assert shortfall(agent, "FrozenLake-v1", 0.99) < 0.01


def test_the_policy_learned_in_the_taxi_is_as_good_as_the_best():
    settings = {"alpha": linear(1.0, 0.1, 4000), "epsilon": linear(1.0, 0.1, 4000), "gamma": 0.99, "episodes": 4000}
    agent = trained(make("q_learning", "Taxi-v4", **settings, episodes_per_step=100))
    assert shortfall(agent, "Taxi-v4", 0.99) < 0.01


def test_the_policy_learned_at_the_cliff_is_as_good_as_the_best():
    for name in ("q_learning", "dyna_q"):
        agent = trained(make(name, "CliffWalking-v1", alpha=0.5, gamma=0.99, epsilon=0.1, episodes=1000))
        assert shortfall(agent, "CliffWalking-v1", 0.99) < 0.01


def steps_until_solved(name: str, seed: int, **settings) -> int:
    """Real steps until the greedy policy is as good as the best."""
    agent = make(name, GRID, seed=seed, alpha=0.5, epsilon=0.1, episodes=1000, **settings)
    for metrics in agent.steps():
        if shortfall(agent, GRID, 0.95) < 1e-9:
            return int(metrics["steps/total"])
    raise AssertionError("never solved")


def test_planning_from_a_model_saves_real_steps():
    plain = [steps_until_solved("q_learning", seed) for seed in range(5)]
    planned = [steps_until_solved("dyna_q", seed, planning_steps=20) for seed in range(5)]
    assert max(planned) < min(plain) and np.mean(planned) < np.mean(plain) / 3


@pytest.mark.parametrize(
    "behaviour", [Boltzmann(linear(0.5, 0.01, 300), np.random.default_rng(0)), UCB(0.3, np.random.default_rng(0))]
)
def test_other_behaviours_find_the_way_too(behaviour):
    agent = trained(make("q_learning", GRID, behaviour=behaviour, alpha=0.5, episodes=600))
    assert shortfall(agent, GRID, 0.95) < 0.01


def test_settings_out_of_range_are_refused_with_the_reason():
    for wrong, told in (
        ({"alpha": 0.0}, "share of the way"),
        ({"gamma": 1.1}, "gamma must be in"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"episodes_per_step": 0}, "episodes_per_step must be at least 1"),
    ):
        with pytest.raises(ValueError, match=told):
            make("q_learning", **wrong)
    with pytest.raises(ValueError, match="use QLearning"):
        make("dyna_q", planning_steps=0)
    with pytest.raises(ValueError, match="1 is SARSA"):
        make("n_step_sarsa", n=0)
    with pytest.raises(ValueError, match="lam must be in"):
        make("sarsa_lambda", lam=-1.0)
    with pytest.raises(ValueError, match="'accumulating' or 'replacing'"):
        make("sarsa_lambda", trace="dutch")


def lock(n: int) -> MDP:
    """A combination lock: n right actions in a row open it for a reward of 1, a wrong one leads back to the start."""
    transitions, rewards = np.zeros((n + 1, 2, n + 1)), np.zeros((n + 1, 2))
    for state in range(n):
        transitions[state, 1, state + 1] = transitions[state, 0, 0] = 1
    rewards[n - 1, 1] = 1
    return mdp_from_arrays(transitions, rewards, terminal=[*[False] * n, True], start=np.eye(n + 1)[0])


def test_a_count_bonus_opens_a_lock_that_epsilon_greedy_does_not():
    """Chance opens it once in 2^14 tries, of which an episode has about 50; planning leads on to what is new."""
    opened = dict.fromkeys(("dyna_q", "count_bonus_dyna_q"), 0.0)
    for name in opened:
        for seed in range(5):
            kind, settings = AGENTS[name]
            settings = {**settings, "planning_steps": 20, "alpha": 0.5, "gamma": 0.99, "episodes": 60}
            stepper = mdp_stepper(lock(14), seed=seed, max_episode_steps=100)
            agent = kind(stepper, EpsilonGreedy(0.1, np.random.default_rng(seed)), **settings)
            opened[name] += sum(metrics["episode/return"] for metrics in agent.steps())
    assert opened["dyna_q"] <= 5 and opened["count_bonus_dyna_q"] >= 50, opened


def test_a_count_bonus_of_0_changes_nothing_and_a_negative_one_is_refused():
    assert trained(make("dyna_q")).q == trained(make("count_bonus_dyna_q", beta=0.0)).q
    with pytest.raises(ValueError, match="keeps away from what is new"):
        make("count_bonus_dyna_q", beta=-1.0)
