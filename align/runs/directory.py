"""The directory of a run: what was asked for, where it ran, what happened, and where it can go on.

    config.json        the resolved configuration
    environment.json   versions, machine, device, git commit, command
    metrics.jsonl      one line a step: {"step": n, name: number or null}; evaluations as "eval/..."
    completions.jsonl  some rollouts: all rewards, the best, worst and a random completion, one group
    events.jsonl       starts, resumes, warnings, findings, faults, the end
    checkpoints/       checkpoint-N folders
    report.html        everything above, readable
    final/             for the recipe: the trained model
    exported-N/        for `align export`: the model of checkpoint N
    profile.txt        where steps went, if that was asked for
    earlier-1/ ...     the files above of a run that ended here before its first checkpoint

Lines are appended and flushed, so that a kill tears at most the last one; that one is dropped when it is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

ROUNDING = frozenset({"tokens_per_micro_batch", "tokens_per_batch"})
"""Options that cut the work to fit the memory: sums are taken in another order, so the last digits may differ."""
HARMLESS = frozenset({"save_every", "keep", "evaluate_every", "log_every", "quiet"}) | ROUNDING
"""Options that may differ on resume: no weight depends on them, or by no more than ROUNDING says."""

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "datasets", "peft", "numpy", "gymnasium", "vllm")
LOGS = ("metrics.jsonl", "completions.jsonl", "events.jsonl")
STANDING = ("start", "resume", "end", "stop", "error")
"""Kinds of events that say how a run stands."""


class RunError(RuntimeError):
    """A run cannot start, go on or be written; the message says what to do."""


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"
        self.report = self.path / "report.html"

    @property
    def holds_a_run(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").exists() or any((self.path / name).exists() for name in LOGS)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration that the run was started with."""
        return self._read_json("config.json")

    @property
    def environment(self) -> dict[str, Any]:
        """What `describe_environment` gave when the run was started."""
        return self._read_json("environment.json")

    @property
    def standing(self) -> str:
        """The latest of STANDING that the run's events hold; "" where they hold none."""
        kinds = [str(event.get("kind")) for event in self.read("events.jsonl")]
        return next((kind for kind in reversed(kinds) if kind in STANDING), "")

    @property
    def _has_checkpoint(self) -> bool:
        return any(self.checkpoints.glob("checkpoint-*"))

    def check(self, config: Mapping[str, Any], *, resume: bool, harmless: Iterable[str] = ()) -> None:
        """Refuse to start over a run that is there, or to resume with other options. Writes nothing.

        A run that failed before its first checkpoint is in nobody's way. One that was killed before it looks like one
        that still runs, so it begins anew only where a resume is asked for; there, too, with any options.

        Raises:
            RunError: naming what is in the way, or each option that differs.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file: a run needs a directory. Name another one.")
        if resume and not self.holds_a_run:
            raise RunError(f"{self.path} holds no run to resume: start it without --resume, or name its directory.")
        if not self.holds_a_run:
            return
        ended = self.standing
        if not resume and (ended != "error" or self._has_checkpoint):
            raise RunError(self._taken(ended))
        if resume and (ended == "end" or self._has_checkpoint):
            allowed = HARMLESS | set(harmless)
            differing = [line for name, line in differences(self.config, config) if not {name, _leaf(name)} & allowed]
            if differing:
                raise RunError(self._other_options(ended, "; ".join(differing)))

    def rounding(self, config: Mapping[str, Any]) -> list[str]:
        """Return "name: before -> after" of every option that differs and changes nothing but the last digits."""
        return [line for name, line in differences(self.config, config) if _leaf(name) in ROUNDING]

    def _taken(self, ended: str) -> str:
        if ended == "end":
            return f"{self.path} holds a finished run: keep it (--resume), or name another directory{self._learn_on()}."
        told = {"stop": "was stopped:", "error": "failed:"}.get(ended, "was killed or still runs: if killed,")
        return f"{self.path} holds a run that {told} go on with it (--resume), or name another directory."

    def _other_options(self, ended: str, differing: str) -> str:
        if ended == "end":
            return (
                f"{self.path} holds a run that finished with other options: {differing}. It cannot go on with these: "
                f"start a new run in another directory{self._learn_on()}."
            )
        return (
            f"{self.path} was started with other options: {differing}. "
            "Resume with the same ones, or start a new run in another directory."
        )

    def _learn_on(self) -> str:
        models = ("config.json", "adapter_config.json")
        saved = any((self.final / name).exists() for name in models)
        return f"; to train its model further, give that one --model {self.final}" if saved else ""

    def start(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Path | None:
        """Make the directory and write the configuration and the environment of a new run.

        Returns:
            Where the files of a run went that was here before, or None.
        """
        with _told("start a run in", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            earlier = self._set_aside() if self.holds_a_run else None
            self._write_json("environment.json", environment)
            self._write_json("config.json", config)
        return earlier

    def _set_aside(self) -> Path:
        """Move the files of a run that nothing can go on from: mixed with those of the next they would tell neither."""
        places = (self.path / f"earlier-{count}" for count in itertools.count(1))
        earlier = next(place for place in places if not place.exists())
        earlier.mkdir()
        # Copied, and replaced by `start`: killed at any instant, the directory holds a run that can be resumed.
        for name in ("config.json", "environment.json"):
            if (self.path / name).exists():
                shutil.copy2(self.path / name, earlier / name)
        names = ("report.html", "profile.txt", "failed-step-*.safetensors", *LOGS)
        for path in [path for name in names for path in self.path.glob(name)]:
            path.rename(earlier / path.name)
        return earlier

    def rewind(self, step: int, config: Mapping[str, Any]) -> None:
        """Drop every line that is later than `step`, and torn last lines: the run goes on from there."""
        with _told("rewind", self.path):
            for name in LOGS:
                kept = [line for line in self.read(name) if line.get("step", 0) <= step]
                _write_atomically(self.path / name, "".join(_as_line(line) for line in kept))
            self._write_json("config.json", config)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Append one line to a log, whole and flushed."""
        with _told("write", self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(_as_line(line))

    def sync(self) -> None:
        """Force the logs to the disk: a checkpoint must not outlive the lines of its steps."""
        for name in LOGS:
            if (self.path / name).exists():
                with _told("write", self.path / name), (self.path / name).open("rb") as file:
                    os.fsync(file.fileno())

    def write_report(self, page: str) -> None:
        """Replace report.html."""
        with _told("write", self.report):
            _write_atomically(self.report, page)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Read a log; a torn last line is dropped.

        Raises:
            RunError: if an earlier line is no JSON object, named by its number.
        """
        path = self.path / name
        raw = path.read_bytes().splitlines() if path.exists() else []
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(raw, start=1):
            try:
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError):
                if number == len(raw):
                    break
                raise RunError(
                    f"{path}:{number}: expected a JSON object, got {text[:60]!r}: remove that line."
                ) from None
            lines.append(line)
        return lines

    def history(self) -> list[dict[str, float]]:
        """Read the metrics, NaN where a value was not finite."""
        return [
            {name: math.nan if value is None else float(value) for name, value in line.items()}
            for line in self.read("metrics.jsonl")
        ]

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise RunError(f"{path} is not JSON ({error}): restore it, or start a new run.") from None

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        _write_atomically(self.path / name, json.dumps(plain(content), indent=2) + "\n")


def plain(value: Any) -> Any:
    """Turn a configuration into JSON values: dataclasses to dicts, paths and names to text, NaN and inf to words."""
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return str(value)
    # A name, not repr(): an address in memory would differ at every resume.
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (dotted name, "name: before -> after") of every option in which two configurations differ."""
    old, new = flat(plain(before)), flat(plain(after))
    names = [name for name in {**old, **new} if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    return [(name, f"{name}: {_told_value(old, name)} -> {_told_value(new, name)}") for name in names]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of dicts by their dotted names.

    >>> flat({"seed": 0, "optimizer": {"learning_rate": 0.1}})
    {'seed': 0, 'optimizer.learning_rate': 0.1}
    """
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree} if prefix else {}
    return {
        name: value
        for key, item in tree.items()
        for name, value in flat(item, f"{prefix}.{key}" if prefix else key).items()
    }


def describe_environment(*, device: str | None = None, command: str | None = None) -> dict[str, Any]:
    """Return what a number of this run may depend on; no host name and no path but those of the command."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "device": device or "not told",
        "git": _git_commit(),
        "command": command,
    }


# --- small things ----------------------------------------------------------------------------------------------------

_ABSENT = object()


@contextmanager
def _told(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError into one line that says what could not be done."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"could not {what} {path}: {reason}. See to the space and the permissions there.") from error


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _told_value(options: dict[str, Any], name: str) -> str:
    return json.dumps(options[name]) if name in options else "absent"


def _as_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _write_atomically(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the working directory, "+ changes" where tracked files differ from it; None outside of git."""
    if not shutil.which("git"):
        return None
    try:
        told = [
            subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] + (" + changes" if told[1] else "")
