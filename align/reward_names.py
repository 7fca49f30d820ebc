"""Rewards by what a command line can say: a built-in name, `module:function` or `path.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from align.rewards import Reward, RewardError, RewardFunction
from align.rows import nearest
from align.verifiable import exact_answer, numeric_answer, regex_format, soft_overlong

BUILT_IN: dict[str, Callable[..., RewardFunction]] = {
    make.__name__: make for make in (exact_answer, numeric_answer, regex_format, soft_overlong)
}


def resolve(name: str) -> Reward:
    """Find a reward by its name."""
    place, _, attribute = name.rpartition(":")
    if not place:
        return Reward(_built_in(name))
    module = _load(place)
    found = getattr(module, attribute, None)
    if found is None:
        raise RewardError(f"{place} has no {attribute!r}{nearest(attribute, vars(module))}")
    return found if isinstance(found, Reward) else Reward(found, name=attribute)


def _built_in(name: str) -> RewardFunction:
    if name not in BUILT_IN:
        expected = f"expected one of {', '.join(BUILT_IN)}, module:function or path.py:function"
        raise RewardError(f"unknown reward {name!r}: {expected}{nearest(name, BUILT_IN)}")
    make = BUILT_IN[name]
    if any(option.default is option.empty for option in inspect.signature(make).parameters.values()):
        advice = f"write `reward = {name}(...)` in a file and name it as path.py:reward"
        raise RewardError(f"reward {name!r} needs options that a name cannot give: {advice}")
    return make()


def _load(place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise RewardError(
                f"no module {place!r} ({error}): install it, or name a file as path.py:function"
            ) from error
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
    """Name the file and what is wrong with it, whatever the user's code raises while it is loaded."""
    try:
        yield
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise RewardError(f"{place}: cannot be loaded ({what}): mend it, and try it with python {place}") from error
