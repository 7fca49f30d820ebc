"""Save and load the state of a run so that a kill, a full disk or a flipped bit never costs more than the last steps.

A checkpoint is a folder `checkpoint-N` of three files: `tensors.safetensors`, `state.json` (everything that is no
tensor, and where the tensors belong) and `manifest.json` (size and sha256 of the other two). It is written under
another name and renamed when it is whole. Nothing is ever unpickled: a stranger's checkpoint is data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
UNFINISHED = ".unfinished-"
"""Prefix of a folder that is being written or removed; whatever still bears it at the next save is swept away."""

_NAME = re.compile(r"checkpoint-(\d+)(\.replaced)?")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message is one line."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found intact.

    step: optimizer steps done when it was saved.
    state: what was saved, tensors on the CPU.
    path: its folder.
    faults: one line for each newer checkpoint that was damaged and passed over.
    """

    step: int
    state: Any
    path: Path
    faults: list[str] = field(default_factory=list)


def save_checkpoint(directory: str | Path, step: int, state: Any, keep: int = 2) -> Path:
    """Write `checkpoint-<step>` atomically, then remove all but the newest `keep`.

    Checkpoints of later steps are removed too: the run has gone back and taken another way.

    Args:
        directory: folder of the checkpoints, made where missing. One process writes to it.
        step: optimizer steps done.
        state: nested dicts (keys str or int), lists and tuples of tensors, str, int, float, bool and None. Tensors
            that share all of their memory are stored once and come back as one.
        keep: checkpoints that stay, at least 2, so that a damaged one leaves another to resume from.

    Raises:
        TypeError: if the state holds something else, named by its place.
        CheckpointError: if the files cannot be written; earlier checkpoints are as they were.
    """
    if keep < 2:
        raise ValueError(f"keep must be at least 2, got {keep}: a damaged checkpoint must leave another to resume from")
    directory = Path(directory)
    tensors = _Tensors()
    tree = json.dumps({"step": step, "state": _encode(state, "state", tensors)}, allow_nan=False)
    unfinished = directory / f"{UNFINISHED}checkpoint-{step}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        _check_space(directory, tensors.size + len(tree))
        unfinished.mkdir()
        save_file(tensors.by_name, unfinished / TENSORS)
        (unfinished / STATE).write_text(tree, encoding="utf-8")
        _write_manifest(unfinished, step)
        path = _put_in_place(unfinished, directory / f"checkpoint-{step}")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {directory}: {_reason(error)}. "
            "Earlier checkpoints are intact: see to the space and the permissions there, then resume."
        ) from error
    _remove_all_but(directory, step, keep)
    return path


def steps_of(directory: str | Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, damaged ones too, in their order."""
    return [step for step, path in _candidates(Path(directory)) if not path.suffix]


def load_latest(directory: str | Path) -> Checkpoint | None:
    """Load the newest intact checkpoint of a folder, or None where the folder has none at all.

    Raises:
        CheckpointError: if there are checkpoints and every one is damaged; the message names each.
    """
    faults: list[str] = []
    for _, path in reversed(_candidates(Path(directory))):
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return Checkpoint(found.step, found.state, found.path, faults)
    if faults:
        raise CheckpointError(f"no checkpoint in {directory} is intact: {'; '.join(faults)}. Start the run anew.")
    return None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load one checkpoint after checking every byte of it against its manifest.

    Raises:
        CheckpointError: if it is missing, damaged or of another format, in one line.
    """
    path = Path(path)
    try:
        step = _verify(path)
        tree = json.loads((path / STATE).read_text(encoding="utf-8"))
        # Cloned: the file is mapped into memory at odd offsets, and the folder may be removed while the state lives.
        tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
        return Checkpoint(step, _decode(tree["state"], tensors), path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} is damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say in one line what went wrong, and with which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({Path(error.filename).name})" if error.filename else error.strerror
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    return " ".join(str(error).split())


# --- files -----------------------------------------------------------------------------------------------------------


def _candidates(directory: Path) -> list[tuple[int, Path]]:
    """Step and path of each checkpoint, oldest first; a replaced one comes before the one that replaces it."""
    if not directory.is_dir():
        return []
    named = [(match, path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    named.sort(key=lambda pair: (int(pair[0][1]), pair[0][2] is None))
    return [(int(match[1]), path) for match, path in named]


def _check_space(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < size:
        raise OSError(0, f"it takes {size / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free")


def _write_manifest(folder: Path, step: int) -> None:
    """Write the manifest last: it vouches for files that are already on the disk."""
    files = {name: _sync(folder / name) for name in (STATE, TENSORS)}
    manifest = {"format": FORMAT, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync_folder(folder)


def _sync(path: Path) -> dict[str, Any]:
    """Force a file to the disk; return its size and sha256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(unfinished: Path, final: Path) -> Path:
    """Rename a whole folder to its final name; one that has the name already stays readable until then."""
    replaced = final.with_name(final.name + ".replaced")
    if final.exists():
        _remove(replaced)
        final.rename(replaced)
    unfinished.rename(final)
    _sync_folder(final.parent)
    return final


def _remove_all_but(directory: Path, step: int, keep: int) -> None:
    whole = [found for found, path in _candidates(directory) if found <= step and not path.suffix]
    kept = set(whole[-keep:])
    for found, path in _candidates(directory):
        if found not in kept or path.suffix:
            # What cannot be removed now is tried again at the next save; the new checkpoint is safe either way.
            with suppress(OSError):
                _remove(path)


def _remove(path: Path) -> None:
    """Rename, then remove: a kill half-way must not leave a half-empty folder with a checkpoint's name."""
    if path.exists():
        doomed = path.rename(path.with_name(f"{UNFINISHED}{path.name}"))
        shutil.rmtree(doomed)


def _sweep(directory: Path) -> None:
    for path in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _verify(path: Path) -> int:
    """Check a checkpoint against its manifest and its name; return its step."""
    match = _NAME.fullmatch(path.name)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise ValueError(f"its manifest has format {manifest['format']!r}, this version reads {FORMAT}")
    if type(manifest["step"]) is not int or (match and manifest["step"] != int(match[1])):
        raise ValueError(f"its manifest is that of step {manifest['step']!r}")
    if set(manifest["files"]) != {STATE, TENSORS}:
        raise ValueError(f"its manifest lists {sorted(manifest['files'])} instead of {[STATE, TENSORS]}")
    for name, expected in manifest["files"].items():
        size = (path / name).stat().st_size
        if size != expected["size"]:
            raise ValueError(f"{name} has {size} bytes, the manifest says {expected['size']}")
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise ValueError(f"the content of {name} is not what was saved (its sha256 differs)")
    return manifest["step"]


# --- state <-> JSON and tensors --------------------------------------------------------------------------------------
# JSON has no tensors, tuples, NaN or int keys. Each is an object of one key that starts with "$":
#   {"$tensor": name}   {"$tuple": [...]}   {"$float": hex digits of the double's bits}   {"$dict": [[key, value], ...]}
# A dict whose keys are str without a leading "$" is a plain object, so that state.json stays readable.


class _Tensors:
    """The tensors of a state, each memory once, ready for safetensors (contiguous, on the CPU, sharing nothing)."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self.size = 0
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def add(self, tensor: Tensor, place: str) -> str:
        """Take a tensor in; return the name it is stored under."""
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(
                f"{place} is a {type(tensor).__name__} of layout {tensor.layout} on {tensor.device}: "
                "a checkpoint holds plain dense tensors. Gather or densify it in state()."
            )
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
        if tensor.numel() and memory in self._names:
            return self._names[memory]
        name = str(len(self.by_name))
        self._names[memory] = name
        self.by_name[name] = self._own(tensor)
        self.size += tensor.numel() * tensor.element_size()
        return name

    def _own(self, tensor: Tensor) -> Tensor:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in self._storages or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        self._storages.add(plain.untyped_storage().data_ptr())
        return plain


def _encode(value: Any, place: str, tensors: _Tensors) -> Any:
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, Tensor):
        return {"$tensor": tensors.add(value, place)}
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else {"$float": struct.pack(">d", value).hex()}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{place}[{index}]", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        return _encode_dict(value, place, tensors)
    raise TypeError(
        f"{place} is a {type(value).__module__}.{type(value).__name__}: a checkpoint holds tensors, str, int, float, "
        "bool, None and dicts, lists and tuples of them. Turn it into these in state()."
    )


def _encode_dict(value: dict[Any, Any], place: str, tensors: _Tensors) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"{place} has the key {key!r} of type {type(key).__name__}: keys are str or int")
    items = [(key, _encode(item, f"{place}[{key!r}]", tensors)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return dict(items)
    return {"$dict": [[key, item] for key, item in items]}


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match next(iter(tree.items()), None):
        case ("$tensor", name):
            return tensors[name]
        case ("$float", bits):
            return struct.unpack(">d", bytes.fromhex(bits))[0]
        case ("$tuple", items):
            return tuple(_decode(item, tensors) for item in items)
        case ("$dict", items):
            return {key: _decode(item, tensors) for key, item in items}
    return {key: _decode(item, tensors) for key, item in tree.items()}
