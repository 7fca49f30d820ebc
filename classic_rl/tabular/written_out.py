"""An episode on a table with epsilon-greedy actions, `step` and `choose` written out: twice as fast as calling them.

Each function draws, acts and learns number for number as the plain loops of `tabular.control` do; tests compare them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from classic_rl.tabular.behaviour import EpsilonGreedy, break_tie, explore
from classic_rl.tabular.stepping import TableStepper


def off_policy_episode(
    env: TableStepper,
    behaviour: EpsilonGreedy,
    q: list[list[float]],
    learn: Callable[[int, int, float, int, bool, bool], None],
) -> tuple[float, int]:
    """Act and learn for one episode; return the sum of its rewards, not discounted, and its length."""
    table, limit, chances, more_chances = env.table, env.limit, env.uniforms.block, env.uniforms.next
    draws, more_draws, epsilon = behaviour.uniforms.block, behaviour.uniforms.next, behaviour.rate
    state, total, length, ended = env.reset(), 0.0, 0, False
    while not ended:
        values = q[state]
        draw = draws.pop() if draws else more_draws()
        if draw < epsilon:
            action = explore(draw, epsilon, len(values))
        else:
            best = max(values)
            action = values.index(best) if values.count(best) == 1 else break_tie(draw, epsilon, values, best)
        chance = chances.pop() if chances else more_chances()
        cumulative, outcomes = table[state][action]
        next_state, reward, terminated = outcomes[bisect_right(cumulative, chance)] if cumulative else outcomes[0]
        length += 1
        ended = terminated or length >= limit
        learn(state, action, reward, next_state, terminated, ended)
        state = next_state
        total += reward
    return total, length


def q_learning_episode(
    env: TableStepper, behaviour: EpsilonGreedy, q: list[list[float]], *, alpha: float, gamma: float
) -> tuple[float, int]:
    """Do the same with the target of Q-learning written out too: the next choice needs its best value again."""
    table, limit, chances, more_chances = env.table, env.limit, env.uniforms.block, env.uniforms.next
    draws, more_draws, epsilon = behaviour.uniforms.block, behaviour.uniforms.next, behaviour.rate
    state, total, length, ended = env.reset(), 0.0, 0, False
    values = q[state]
    best = max(values)
    while not ended:
        draw = draws.pop() if draws else more_draws()
        if draw < epsilon:
            action = explore(draw, epsilon, len(values))
        else:
            action = values.index(best) if values.count(best) == 1 else break_tie(draw, epsilon, values, best)
        chance = chances.pop() if chances else more_chances()
        cumulative, outcomes = table[state][action]
        state, reward, terminated = outcomes[bisect_right(cumulative, chance)] if cumulative else outcomes[0]
        length += 1
        ended = terminated or length >= limit
        next_values, old = q[state], values[action]
        best = max(next_values)
        values[action] = old + alpha * ((reward if terminated else reward + gamma * best) - old)
        if next_values is values:  # what was learned may have changed which is best
            best = max(values)
        values = next_values
        total += reward
    return total, length


def on_policy_episode(
    env: TableStepper,
    behaviour: EpsilonGreedy,
    q: list[list[float]],
    learn: Callable[[int, int, float, int, int, bool, bool], None],
) -> tuple[float, int]:
    """Do the same with the next action chosen before a step is learned from."""
    table, limit, chances, more_chances = env.table, env.limit, env.uniforms.block, env.uniforms.next
    draws, more_draws, epsilon = behaviour.uniforms.block, behaviour.uniforms.next, behaviour.rate
    state, total, length, ended = env.reset(), 0.0, 0, False
    action = behaviour.choose(q[state], state)
    while not ended:
        chance = chances.pop() if chances else more_chances()
        cumulative, outcomes = table[state][action]
        next_state, reward, terminated = outcomes[bisect_right(cumulative, chance)] if cumulative else outcomes[0]
        length += 1
        ended = terminated or length >= limit
        next_action = 0
        if not terminated:
            values = q[next_state]
            draw = draws.pop() if draws else more_draws()
            if draw < epsilon:
                next_action = explore(draw, epsilon, len(values))
            else:
                best = max(values)
                next_action = values.index(best) if values.count(best) == 1 else break_tie(draw, epsilon, values, best)
        learn(state, action, reward, next_state, next_action, terminated, ended)
        state, action = next_state, next_action
        total += reward
    return total, length
