"""SARSA from more than one step: n rewards before the bootstrap, or eligibility traces."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

from classic_rl.tabular.behaviour import Behaviour
from classic_rl.tabular.control import OnPolicy
from classic_rl.tabular.stepping import Stepper
from classic_rl.tabular.updates import td_error

Trace = Literal["accumulating", "replacing"]


class NStepSarsa(OnPolicy):
    """Learn from n rewards and the value of the action that follows them; n = 1 is SARSA.

        G = r_t + gamma * r_{t+1} + ... + gamma^(n-1) * r_{t+n-1} + gamma^n * Q(s_{t+n}, a_{t+n})

    with fewer rewards where the episode ends first, and no Q after a termination.

    Source: Sutton & Barto 2018, section 7.2. Args and Raises are those of `Control`, and

        n: number of rewards, at least 1; past the longest episode it is Monte Carlo.
    """

    def __init__(self, env: Stepper, behaviour: Behaviour, *, n: int, **settings: Any) -> None:
        super().__init__(env, behaviour, **settings)
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}: 1 is SARSA; raise n towards Monte Carlo.")
        self.n = n
        self._waiting: deque[tuple[int, int, float]] = deque()

    def learn_pair(
        self, state: int, action: int, reward: float, next_state: int, next_action: int, terminated: bool, ended: bool
    ) -> None:
        """Update the pair of n steps ago, and at the end of an episode those that still wait."""
        waiting = self._waiting
        waiting.append((state, action, reward))
        while len(waiting) == self.n or (ended and waiting):
            target = 0.0 if terminated else self.q[next_state][next_action]
            for _, _, earned in reversed(waiting):
                target = earned + self.gamma * target
            first_state, first_action, _ = waiting.popleft()
            values = self.q[first_state]
            values[first_action] += self.alpha * (target - values[first_action])


class SarsaLambda(OnPolicy):
    """Spread each TD error over the pairs that led to it, less the longer ago they were; lambda = 0 is SARSA.

        delta = r + gamma * (1 - terminated) * Q(s', a') - Q(s, a)
        e(s, a) <- e(s, a) + 1  (accumulating)   or   1  (replacing)
        Q <- Q + alpha * delta * e,    e <- gamma * lam * e

    Source: Rummery & Niranjan 1994; replacing traces: Singh & Sutton 1996. Args and Raises are those of `Control`, and

        lam: in [0, 1]; 1 with accumulating traces is an online form of every-visit Monte Carlo.
        trace: accumulating traces may exceed 1, and then diverge where alpha is large.
    """

    def __init__(
        self, env: Stepper, behaviour: Behaviour, *, lam: float, trace: Trace = "replacing", **settings: Any
    ) -> None:
        super().__init__(env, behaviour, **settings)
        check_trace(lam, trace)
        self.lam, self.trace = lam, trace
        self._traces: dict[tuple[int, int], float] = {}  # of this episode's pairs, the others are 0

    def learn_pair(
        self, state: int, action: int, reward: float, next_state: int, next_action: int, terminated: bool, ended: bool
    ) -> None:
        """Update all pairs of the episode by their traces."""
        q, traces, gamma = self.q, self._traces, self.gamma
        delta = td_error(q[state][action], reward, q[next_state][next_action], terminated, gamma=gamma)
        kept = traces.get((state, action), 0.0) if self.trace == "accumulating" else 0.0
        traces[state, action] = kept + 1.0
        change, decay = self.alpha * delta, gamma * self.lam
        for pair, trace in traces.items():
            q[pair[0]][pair[1]] += change * trace
            traces[pair] = decay * trace
        if ended:
            traces.clear()


def check_trace(lam: float, trace: str) -> None:
    """Raise ValueError unless lambda and the kind of trace are known."""
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be in [0, 1], got {lam}: 0 is one-step TD, 1 is Monte Carlo.")
    if trace not in ("accumulating", "replacing"):
        raise ValueError(f"trace must be 'accumulating' or 'replacing', got {trace!r}")
