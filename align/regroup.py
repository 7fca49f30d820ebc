"""Rollouts taken apart and joined: fresh groups for silent ones, and what a run that stops leaves to a resumed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from align.batch import Prompts, Rollouts, Sequences

PromptsOf = Callable[[Sequence[int]], Prompts]
"""From numbers within the step to their prompts, which a state leaves out: the data and a position tell them."""


def groups_of(rollouts: Rollouts, groups: Sequence[int]) -> Rollouts:
    """Return whole groups, in the order given."""
    rows = [group * rollouts.group_size + g for group in groups for g in range(rollouts.group_size)]
    state = _state_of(rollouts)
    chosen: dict[str, Any] = {name: value[rows] for name, value in state.items() if isinstance(value, Tensor)}
    for kind in ("parts", "notes"):
        chosen[kind] = {name: value[rows] for name, value in state[kind].items()}
    chosen["texts"] = [rollouts.texts[row] for row in rows]
    chosen["numbers"] = [rollouts.numbers[group] for group in groups]
    return _from_state({**state, **chosen}, rollouts.prompts.select(groups))


def joined(pieces: Sequence[Rollouts]) -> Rollouts:
    """Join the groups of several rollouts of the same weights and rewards, in the order given."""
    states = [_state_of(piece) for piece in pieces]
    width = max(piece.sequences.input_ids.shape[1] for piece in pieces)

    def together(values: list[Tensor]) -> Tensor:
        return torch.cat([value if value.ndim == 1 else F.pad(value, (0, width - value.shape[1])) for value in values])

    state: dict[str, Any] = {
        name: together([s[name] for s in states]) for name, value in states[0].items() if isinstance(value, Tensor)
    }
    for kind in ("parts", "notes"):
        state[kind] = {name: together([s[kind][name] for s in states]) for name in states[0][kind]}
    state["texts"] = [text for piece in pieces for text in piece.texts]
    state["numbers"] = [number for piece in pieces for number in piece.numbers]
    columns = pieces[0].prompts.columns
    prompts = Prompts(
        ids=[ids for piece in pieces for ids in piece.prompts.ids],
        texts=[text for piece in pieces for text in piece.prompts.texts],
        columns={name: [value for piece in pieces for value in piece.prompts.columns[name]] for name in columns},
    )
    return _from_state({**states[0], **state}, prompts)


def state_of_all(
    rollouts: Rollouts | None, gathered: Callable[[list[Any]], list[Any]], prompts_of: PromptsOf
) -> dict[str, Any]:
    """Return the rollouts of all processes, ordered by number, and the numbers that each process has.

    rollouts: of this process; None, in every process, where nothing is left to learn from them.
    gathered: joins a list over all processes.
    """
    if rollouts is None:
        return {"rollouts": None, "shares": []}
    states = gathered([_state_of(rollouts)])
    whole = joined([_from_state(state, prompts_of(state["numbers"])) for state in states])
    order = sorted(range(len(whole.numbers)), key=whole.numbers.__getitem__)
    return {"rollouts": _state_of(groups_of(whole, order)), "shares": [state["numbers"] for state in states]}


def share_of(state: dict[str, Any], prompts_of: PromptsOf, rank: int, processes: int) -> Rollouts | None:
    """Return this process's rollouts from what `state_of_all` returned, of as many processes or of other ones."""
    if state["rollouts"] is None:
        return None
    whole = _from_state(state["rollouts"], prompts_of(state["rollouts"]["numbers"]))
    # As many processes as before take what they had, in its order: sums then come out the same to the bit.
    same = state["shares"][rank] if len(state["shares"]) == processes else whole.numbers[rank::processes]
    return groups_of(whole, [whole.numbers.index(number) for number in same])


def _state_of(rollouts: Rollouts) -> dict[str, Any]:
    """Everything but the prompts, as tensors and plain values."""
    rest = {name: value for name, value in vars(rollouts).items() if name not in ("prompts", "sequences")}
    return vars(rollouts.sequences) | rest


def _from_state(state: dict[str, Any], prompts: Prompts) -> Rollouts:
    rest = dict(state)
    sequences = Sequences(rest.pop("input_ids"), rest.pop("lengths"), rest.pop("action_mask"))
    return Rollouts(prompts=prompts, sequences=sequences, **rest)
