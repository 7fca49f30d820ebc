"""Tabular control: agents that learn action values from steps, one update rule each.

    env = make_stepper(gymnasium.make("CliffWalking-v1"), seed=0)
    behaviour = EpsilonGreedy(0.1, np.random.default_rng([0, 1]))  # not the world's own numbers, those of seed 0
    agent = QLearning(env, behaviour, alpha=0.5, gamma=1.0, episodes=500)
    for metrics in agent.steps():
        ...
    agent.q[state][action]

An agent is an algorithm that can be run, checkpointed and resumed: steps(), state(), load_state(). The targets are
those of `tabular.updates`. Learning from n steps and with traces is in `tabular.multi_step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from classic_rl.schedules import Schedule, constant
from classic_rl.tabular.behaviour import Behaviour, EpsilonGreedy
from classic_rl.tabular.stepping import Stepper, TableStepper
from classic_rl.tabular.updates import (
    count_bonus,
    double_q_target,
    expected_sarsa_target,
    q_learning_target,
    sarsa_target,
)
from classic_rl.tabular.written_out import off_policy_episode, on_policy_episode, q_learning_episode


class Control:
    """What all agents share: a table, episodes, metrics and a state; an agent adds `learn`.

    q: Q, lists of plain numbers. [S][A]
    step, total_steps: steps done and of the whole run; one is `episodes_per_step` episodes.
    env_steps: actions taken so far.

    Args:
        env: what is acted in.
        behaviour: how.
        alpha: step size in (0, 1], or a schedule of it over episodes.
        gamma: discount per step, in [0, 1].
        episodes: of the whole run.
        episodes_per_step: episodes between two yields of metrics, which are means over them.
        initial_q: of every state and action; above what can be earned, it makes a greedy agent try everything.

    Raises:
        ValueError: if one of these is out of range.
    """

    def __init__(
        self,
        env: Stepper,
        behaviour: Behaviour,
        *,
        alpha: float | Schedule,
        gamma: float,
        episodes: int,
        episodes_per_step: int = 1,
        initial_q: float = 0.0,
    ) -> None:
        self._schedule = alpha if callable(alpha) else constant(alpha)
        _check(self._schedule(0), gamma, episodes, episodes_per_step)
        self.env, self.behaviour, self.gamma = env, behaviour, gamma
        self.episodes, self.episodes_per_step = episodes, episodes_per_step
        self.step, self.total_steps = 0, -(-episodes // episodes_per_step)
        self.done = self.env_steps = 0
        self.alpha = self._schedule(0)
        self.q = [[initial_q] * env.n_actions for _ in range(env.n_states)]

    def learn(self, state: int, action: int, reward: float, next_state: int, terminated: bool, ended: bool) -> None:
        """Learn from one step, before the next action is chosen; `ended` is terminated or truncated."""
        raise NotImplementedError

    def episode(self) -> tuple[float, int]:
        """Act and learn for one episode; return the sum of its rewards, not discounted, and its length."""
        if type(self.env) is TableStepper and type(self.behaviour) is EpsilonGreedy:
            return off_policy_episode(self.env, self.behaviour, self.q, self.learn)
        q, choose, step, learn = self.q, self.behaviour.choose, self.env.step, self.learn
        state, total, length, ended = self.env.reset(), 0.0, 0, False
        while not ended:
            action = choose(q[state], state)
            next_state, reward, terminated, truncated = step(action)
            ended = terminated or truncated
            learn(state, action, reward, next_state, terminated, ended)
            state = next_state
            total += reward
            length += 1
        return total, length

    def steps(self) -> Iterator[dict[str, float]]:
        """Yield the metrics of every `episodes_per_step` episodes; a new call goes on from `self.step`."""
        while self.step < self.total_steps:
            count = min(self.episodes_per_step, self.episodes - self.done)
            total = length = 0.0
            for _ in range(count):
                self.alpha = self._schedule(self.done)
                self.behaviour.begin(self.done)
                episode_return, episode_length = self.episode()
                total, length = total + episode_return, length + episode_length
                self.done += 1
                self.env_steps += episode_length
            self.step += 1
            yield {
                "episode/return": total / count,
                "episode/length": length / count,
                "episode/count": float(self.done),
                "steps/total": float(self.env_steps),
                "exploration/rate": self.behaviour.rate,
                "learning/alpha": self.alpha,
            }

    def state(self) -> dict[str, Any]:
        """Return all that the next episode depends on, as plain values."""
        return {
            "step": self.step,
            "done": self.done,
            "env_steps": self.env_steps,
            "q": _copy(self.q),
            "behaviour": self.behaviour.state(),
            "env": self.env.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.step, self.done, self.env_steps = state["step"], state["done"], state["env_steps"]
        self.q = _copy(state["q"])
        self.behaviour.load_state(state["behaviour"])
        self.env.load_state(state["env"])

    def examples(self) -> list[dict[str, Any]]:
        """Return nothing: there are no completions to show."""
        return []


class QLearning(Control):
    """Learn the values of the best policy while exploring: the target is `q_learning_target`.

    Source: Watkins & Dayan 1992; Sutton & Barto 2018, section 6.5. Args and Raises are those of `Control`.
    """

    def episode(self) -> tuple[float, int]:
        """Act and learn for one episode; return the sum of its rewards, not discounted, and its length."""
        by_the_target_alone = type(self).learn is QLearning.learn
        if by_the_target_alone and type(self.env) is TableStepper and type(self.behaviour) is EpsilonGreedy:
            return q_learning_episode(self.env, self.behaviour, self.q, alpha=self.alpha, gamma=self.gamma)
        return super().episode()

    def learn(self, state: int, action: int, reward: float, next_state: int, terminated: bool, ended: bool) -> None:
        """Move Q(s, a) towards the best of the next state."""
        q = self.q
        values = q[state]
        target = q_learning_target(reward, q[next_state], terminated, gamma=self.gamma)
        values[action] += self.alpha * (target - values[action])


class ExpectedSarsa(Control):
    """Learn the values of the behaviour itself, by its expectation over the next action: `expected_sarsa_target`.

    Source: van Seijen et al. 2009; Sutton & Barto 2018, section 6.6. Args and Raises are those of `Control`.
    """

    def learn(self, state: int, action: int, reward: float, next_state: int, terminated: bool, ended: bool) -> None:
        """Move Q(s, a) towards the mean of the next state."""
        values, next_values = self.q[state], self.q[next_state]
        probabilities = self.behaviour.probabilities(next_values, next_state)
        target = expected_sarsa_target(reward, next_values, probabilities, terminated, gamma=self.gamma)
        values[action] += self.alpha * (target - values[action])


class DoubleQLearning(Control):
    """Learn two tables, each valued by the other, against overestimation: the target is `double_q_target`.

    `q` is the mean of the two, by which it acts; `tables` are the two.

    Source: van Hasselt 2010; Sutton & Barto 2018, section 6.7. Args and Raises are those of `Control`.
    """

    def __init__(self, env: Stepper, behaviour: Behaviour, **settings: Any) -> None:
        super().__init__(env, behaviour, **settings)
        self.tables = [_copy(self.q), _copy(self.q)]

    def learn(self, state: int, action: int, reward: float, next_state: int, terminated: bool, ended: bool) -> None:
        """Move the entry of one table, chosen by a coin."""
        first = self.behaviour.uniforms.next() < 0.5
        own, other = self.tables if first else reversed(self.tables)
        values = own[state]
        target = double_q_target(reward, own[next_state], other[next_state], terminated, gamma=self.gamma)
        values[action] += self.alpha * (target - values[action])
        self.q[state][action] = (values[action] + other[state][action]) / 2

    def state(self) -> dict[str, Any]:
        """Return all that the next episode depends on, as plain values."""
        return {**super().state(), "tables": [_copy(table) for table in self.tables]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        super().load_state(state)
        self.tables = [_copy(table) for table in state["tables"]]


class DynaQ(QLearning):
    """Learn a model of what followed each action last, and from it by Q-learning between real steps.

    Source: Sutton 1990, "Integrated architectures for learning, planning, and reacting"; Sutton & Barto 2018,
    section 8.2. Args and Raises are those of `Control`, and

        planning_steps: updates from the model after each real step, at least 1.
    """

    def __init__(self, env: Stepper, behaviour: Behaviour, *, planning_steps: int, **settings: Any) -> None:
        super().__init__(env, behaviour, **settings)
        if planning_steps < 1:
            raise ValueError(f"planning_steps must be at least 1, got {planning_steps}: without, use QLearning.")
        self.planning_steps = planning_steps
        self.model: dict[tuple[int, int], tuple[float, int, bool]] = {}
        self._seen: list[tuple[int, int]] = []

    def learn(self, state: int, action: int, reward: float, next_state: int, terminated: bool, ended: bool) -> None:
        """Learn from the step, remember it, and learn from what is remembered."""
        update, seen, draw = self.update, self._seen, self.behaviour.uniforms.next
        update(state, action, reward, next_state, terminated)
        if (state, action) not in self.model:
            seen.append((state, action))
        self.model[state, action] = (reward, next_state, terminated)
        for _ in range(self.planning_steps):
            pair = seen[int(draw() * len(seen))]
            update(*pair, *self.model[pair])

    def update(self, state: int, action: int, reward: float, next_state: int, terminated: bool) -> None:
        """Learn from one step, real or remembered, by Q-learning."""
        super().learn(state, action, reward, next_state, terminated, False)

    def state(self) -> dict[str, Any]:
        """Return all that the next episode depends on, as plain values."""
        return {**super().state(), "model": [[*pair, *self.model[pair]] for pair in self._seen]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        super().load_state(state)
        rows = state["model"]
        self.model = {(row[0], row[1]): (row[2], row[3], row[4]) for row in rows}
        self._seen = [(row[0], row[1]) for row in rows]


class CountBonusDynaQ(DynaQ):
    """Dyna-Q that also earns `count_bonus` for every step, real or remembered: it plans its way to what is new.

    Metrics tell the environment's rewards alone. Source: Strehl & Littman 2008 (MBIE-EB), here with the last outcome
    for a model and Dyna's planning. Args and Raises are those of `DynaQ`, and

        beta: the bonus of the first visit, at least 0, in the unit of the rewards. Below (1 - gamma) times the reward
            that it should find, or collecting bonuses may be worth more than the goal.
    """

    def __init__(self, env: Stepper, behaviour: Behaviour, *, beta: float, **settings: Any) -> None:
        super().__init__(env, behaviour, **settings)
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}: a negative bonus keeps away from what is new.")
        self.beta = beta
        self.visits = [[0] * env.n_actions for _ in range(env.n_states)]

    def learn(self, state: int, action: int, reward: float, next_state: int, terminated: bool, ended: bool) -> None:
        """Count the step, and learn from it and from what is remembered."""
        self.visits[state][action] += 1
        super().learn(state, action, reward, next_state, terminated, ended)

    def update(self, state: int, action: int, reward: float, next_state: int, terminated: bool) -> None:
        """Learn from a reward with its bonus."""
        bonus = count_bonus(self.visits[state][action], beta=self.beta)
        super().update(state, action, reward + bonus, next_state, terminated)

    def state(self) -> dict[str, Any]:
        """Return all that the next episode depends on, as plain values."""
        return {**super().state(), "visits": [list(row) for row in self.visits]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        super().load_state(state)
        self.visits = [list(row) for row in state["visits"]]


class OnPolicy(Control):
    """What agents share that learn from the next action too; such an agent adds `learn_pair`."""

    def learn_pair(
        self, state: int, action: int, reward: float, next_state: int, next_action: int, terminated: bool, ended: bool
    ) -> None:
        """Learn from one step and the action that was chosen after it, 0 after termination."""
        raise NotImplementedError

    def episode(self) -> tuple[float, int]:
        """Act and learn for one episode; return the sum of its rewards, not discounted, and its length."""
        if type(self.env) is TableStepper and type(self.behaviour) is EpsilonGreedy:
            return on_policy_episode(self.env, self.behaviour, self.q, self.learn_pair)
        q, choose, step, learn = self.q, self.behaviour.choose, self.env.step, self.learn_pair
        state, total, length, ended = self.env.reset(), 0.0, 0, False
        action = choose(q[state], state)
        while not ended:
            next_state, reward, terminated, truncated = step(action)
            ended = terminated or truncated
            next_action = 0 if terminated else choose(q[next_state], next_state)
            learn(state, action, reward, next_state, next_action, terminated, ended)
            state, action = next_state, next_action
            total += reward
            length += 1
        return total, length


class Sarsa(OnPolicy):
    """Learn the values of the behaviour itself, from the action that it takes next: the target is `sarsa_target`.

    Source: Rummery & Niranjan 1994; Sutton & Barto 2018, section 6.4. Args and Raises are those of `Control`.
    """

    def learn_pair(
        self, state: int, action: int, reward: float, next_state: int, next_action: int, terminated: bool, ended: bool
    ) -> None:
        """Move Q(s, a) towards the next action's value."""
        values = self.q[state]
        target = sarsa_target(reward, self.q[next_state], next_action, terminated, gamma=self.gamma)
        values[action] += self.alpha * (target - values[action])


def _copy(table: list[list[float]]) -> list[list[float]]:
    return [list(row) for row in table]


def _check(alpha: float, gamma: float, episodes: int, episodes_per_step: int) -> None:
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}: it is the share of the way to the target.")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    for name, value in (("episodes", episodes), ("episodes_per_step", episodes_per_step)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
