"""Rewards by what a command line can say: a built-in name, `module:function`, `path.py:function` or `model:FOLDER`.

`isolated:` before one of the two in the middle runs it in a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from align.gym_answer import reasoning_gym
from align.isolated import isolated
from align.judge import judge
from align.math_answer import math_answer
from align.reward_faults import plain
from align.rewards import Reward, RewardError, RewardFunction
from align.rows import nearest, no_such_folder
from align.text_penalties import repetition_penalty, script_penalty
from align.verifiable import exact_answer, numeric_answer, regex_format, soft_overlong

BUILT_IN: dict[str, Callable[..., RewardFunction]] = {
    make.__name__: make
    for make in (
        exact_answer,
        numeric_answer,
        math_answer,
        regex_format,
        soft_overlong,
        repetition_penalty,
        script_penalty,
        judge,
        reasoning_gym,
    )
}

MODEL = "model:"
"""Before the folder or hub id of a reward model."""
ISOLATED = "isolated:"
"""Before a function that is to run in a process of its own."""


def resolve(name: str) -> Reward:
    """Find a reward by its name."""
    if name.startswith(MODEL):
        return _learned(name.removeprefix(MODEL))
    if name.startswith(ISOLATED):
        return _isolated(name.removeprefix(ISOLATED))
    place, _, attribute = name.rpartition(":")
    if not place:
        return Reward(_built_in(name))
    module = _load(place)
    found = getattr(module, attribute, None)
    if found is None:
        raise RewardError(f"{place} has no {attribute!r}{nearest(attribute, vars(module))}")
    return found if isinstance(found, Reward) else Reward(found, name=attribute)


def _isolated(name: str) -> Reward:
    try:
        return Reward(isolated(name))
    except ValueError as error:
        raise RewardError(f"{ISOLATED}{name}: {error}") from None


def _learned(path: str) -> Reward:
    """Return a reward model as a reward; its weights are loaded when it is first called, to where a GPU is.

    What is no reward model is refused now, before anything is trained.
    """
    from align.reward_head import check_reward_model

    if told := no_such_folder(path):
        raise RewardError(f"{MODEL}{path}: {told}")
    folder = Path(path).expanduser()
    place = str(folder) if folder.exists() else path
    try:
        check_reward_model(place)
    except (OSError, ValueError) as error:
        raise RewardError(f"{MODEL}{path}: {' '.join(str(error).removeprefix(f'{place}: ').split())}") from error

    @cache
    def loaded() -> RewardFunction:
        import torch

        from align.models import load_tokenizer
        from align.reward_head import load_reward_model, model_reward

        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        model: Any = load_reward_model(place)
        return model_reward(model.to(device), load_tokenizer(place))

    def model(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return loaded()(prompts=prompts, completions=completions, **columns)

    return Reward(model)


def _built_in(name: str) -> RewardFunction:
    if name not in BUILT_IN:
        forms = f"module:function, path.py:function, {ISOLATED} before one of the two, or {MODEL}FOLDER"
        at_once = ", ".join(each for each, make in BUILT_IN.items() if not _needs_options(make))
        raise RewardError(f"unknown reward {name!r}: expected one of {at_once}, {forms}{nearest(name, BUILT_IN)}")
    make = BUILT_IN[name]
    if _needs_options(make):
        advice = f"write `reward = {name}(...)` in a file and name it as path.py:reward"
        raise RewardError(f"reward {name!r} needs options that a name cannot give: {advice}")
    return make()


def _needs_options(make: Callable[..., RewardFunction]) -> bool:
    return any(option.default is option.empty for option in inspect.signature(make).parameters.values())


def _load(place: str) -> ModuleType:
    if not place.endswith(".py"):
        with _told(place):
            return importlib.import_module(place)
    path = Path(place).expanduser()
    spec = importlib.util.spec_from_file_location(f"align_reward_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise RewardError(f"{place}: no such file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[spec.name] = module
    with _told(place):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Name the file or module and what is wrong with it, whatever the user's code raises while it is loaded."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}."):
            what = f"no module {place!r} ({error}): install it, or name a file as path.py:function"
        else:
            words = plain(" ".join(f"{type(error).__name__}: {error}".split()))
            alone = place if place.endswith(".py") else f"-m {place}"
            what = f"{place}: cannot be loaded ({words}): mend it, and try it with python {alone}"
        raise RewardError(what) from error
