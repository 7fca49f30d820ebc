"""A checkpoint comes back bit for bit, or says in one line why not."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from align.runs.checkpoint import CheckpointError, load_checkpoint, load_latest, save_checkpoint


def same(left: Any, right: Any) -> bool:
    """Equal in type and in every bit, NaN included."""
    if isinstance(left, torch.Tensor):
        plain = [tensor.detach().contiguous().flatten() for tensor in (left, right)]
        bits = [tensor.view(torch.uint8) if tensor.numel() else tensor for tensor in plain]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def round_trip(directory: Path, state: Any) -> Any:
    return load_checkpoint(save_checkpoint(directory, 1, state)).state


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_each_type_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    base = torch.tensor([[1.5, 0.0, -2.25], [3.0, 100.0, 0.125]])
    tensor = (base.abs() if dtype == torch.uint8 else base).to(dtype)
    state = {"full": tensor, "strided": tensor.t(), "scalar": tensor[0, 0], "empty": tensor[:0], "part": tensor[1]}
    assert same(round_trip(tmp_path, state), state)


def test_the_payload_of_a_nan_and_the_sign_of_zero_survive(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC12345, 0x7F812345, -1, -(2**31)], dtype=torch.int32)
    nan = struct.unpack(">d", bytes.fromhex("fff8000000abcdef"))[0]
    state = {"tensor": bits.view(torch.float32), "python": [nan, float("inf"), float("-inf"), -0.0, 5e-324, 0.1 + 0.2]}
    assert same(round_trip(tmp_path, state), state)


def test_plain_values_keep_their_type_their_order_and_odd_names(tmp_path: Path) -> None:
    state = {
        "z": None, "a": True, "int": 2**80, "zero": 0, "one": 1.0, "": "", "text": "line\n\x00\ud800 ü",
        "tuple": (1, [2, (3,)]),
        "nested": [{}, [], (), [{"$tensor": "0"}]], "$float": "x", 0: "int key", -1: {"$dict": []}, "0": "text key",
    }  # fmt: skip
    assert same(round_trip(tmp_path, state), state)


def test_an_optimizer_and_its_int_keys_come_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "generator": torch.get_rng_state()}
    assert same(round_trip(tmp_path, state), state)


def test_shared_memory_is_stored_once_and_overlapping_memory_is_told_apart(tmp_path: Path) -> None:
    base = torch.arange(1000.0)
    state = {"tied": base, "again": base.detach(), "start": base[:10], "end": base[5:20], "square": base.view(10, 100)}
    back = round_trip(tmp_path, state)
    assert same(back, state)
    assert back["tied"] is back["again"]
    assert (tmp_path / "checkpoint-1" / "tensors.safetensors").stat().st_size < 3 * base.nbytes


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"b": [1, {3}]}}, r"state\['a'\]\['b'\]\[1\] is a builtins.set"),
        ({"a": {1.5: 0}}, r"state\['a'\] has the key 1.5 of type float"),
        ({"a": {True: 0}}, "has the key True of type bool"),
        ({"m": torch.nn.Linear(1, 1)}, "is a torch.nn.modules.linear.Linear"),
        ({"s": torch.eye(3).to_sparse()}, r"state\['s'\] is a Tensor of layout torch.sparse_coo"),
        ({"s": torch.empty(2, device="meta")}, "on meta"),
        ({"bytes": b"x"}, "is a builtins.bytes"),
    ],
)
def test_what_cannot_be_stored_exactly_is_refused_by_its_place(state: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=words):
        save_checkpoint(tmp_path, 1, state)
    assert list(tmp_path.iterdir()) == []


def test_at_least_two_stay_and_the_older_go(tmp_path: Path) -> None:
    for step in range(1, 12):
        save_checkpoint(tmp_path, step, {"step": step}, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        save_checkpoint(tmp_path, 12, {}, keep=1)


def test_a_run_that_went_back_leaves_no_checkpoint_of_its_former_future(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {"step": step}, keep=5)
    save_checkpoint(tmp_path, 15, {"step": 15}, keep=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-15"]


def test_a_step_saved_again_replaces_the_former(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"try": 1})
    save_checkpoint(tmp_path, 5, {"try": 2})
    found = load_latest(tmp_path)
    assert found and found.state == {"try": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"try": 1})
    (tmp_path / "checkpoint-5").rename(tmp_path / "checkpoint-5.replaced")
    found = load_latest(tmp_path)
    assert found and found.state == {"try": 1}


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "nowhere") is None


# --- damage ---


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fill_with_noise(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def nest_deeply(path: Path) -> None:
    path.write_text("[" * 200_000)


def plant_a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("pickle-has-run",))


FILES = ["tensors.safetensors", "state.json", "manifest.json"]
DAMAGES = [truncate, flip_a_bit, delete, replace_by_folder, fill_with_noise, nest_deeply, plant_a_pickle]


def two_checkpoints(directory: Path) -> None:
    for step in (1, 2):
        save_checkpoint(directory, step, {"step": step, "tensor": torch.full((50,), float(step))})


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_named_in_one_line_and_the_older_one_is_used(
    file: str, damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two_checkpoints(tmp_path)
    damage(tmp_path / "checkpoint-2" / file)
    found = load_latest(tmp_path)
    assert found and found.step == 1 and found.state["step"] == 1
    assert len(found.faults) == 1
    assert found.faults[0].startswith("checkpoint-2 is damaged: ") and "\n" not in found.faults[0]
    assert not (tmp_path / "pickle-has-run").exists()


@pytest.mark.parametrize("file", FILES[:2])
def test_every_flipped_bit_of_a_file_is_noticed(file: str, tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    path = tmp_path / "checkpoint-2" / file
    whole = path.read_bytes()
    for position in random.Random(1).sample(range(8 * len(whole)), 100):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="checkpoint-2 is damaged"):
            load_checkpoint(path.parent)


def test_swapped_files_and_swapped_folders_are_noticed(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    first, second = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    for name in ("tensors.safetensors", "state.json"):
        shutil.copytree(second, tmp_path / "copy")
        shutil.copy(first / name, second / name)
        with pytest.raises(CheckpointError, match=f"content of {name} is not what was saved"):
            load_checkpoint(second)
        shutil.rmtree(second)
        (tmp_path / "copy").rename(second)
    (second / "state.json").rename(second / "x")
    (second / "tensors.safetensors").rename(second / "state.json")
    (second / "x").rename(second / "tensors.safetensors")
    with pytest.raises(CheckpointError, match="bytes, the manifest says"):
        load_checkpoint(second)
    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(CheckpointError, match="its manifest is that of step 1"):
        load_checkpoint(second)


def test_when_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    delete(tmp_path / "checkpoint-1" / "manifest.json")
    truncate(tmp_path / "checkpoint-2" / "tensors.safetensors")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2 is damaged: .*; checkpoint-1 is damaged: No such file"
    ) as told:
        load_latest(tmp_path)
    assert "\n" not in str(told.value)


def test_a_forged_manifest_gets_no_further_than_data(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    path = tmp_path / "checkpoint-2" / "manifest.json"
    manifest = json.loads(path.read_text())
    for forged in (
        {**manifest, "files": {"../../etc/passwd": {"size": 1, "sha256": ""}}},
        {**manifest, "format": 99},
        {**manifest, "step": "2"},
        {**manifest, "files": []},
        {"format": 1},
        [],
        7,
    ):
        path.write_text(json.dumps(forged))
        with pytest.raises(CheckpointError, match="checkpoint-2 is damaged"):
            load_checkpoint(path.parent)


def test_what_a_kill_left_behind_is_neither_loaded_nor_kept(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / ".unfinished-checkpoint-9")
    found = load_latest(tmp_path)
    assert found and found.step == 2 and found.faults == []
    save_checkpoint(tmp_path, 3, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


# --- a disk that is full, a process that is killed ---


@pytest.mark.parametrize("limit", [0, 100, 1000, 3000, 4096, 100_000, 399_999, 400_000])
def test_a_full_disk_is_one_line_and_the_older_checkpoint_is_as_it_was(
    limit: int, children: Any, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    assert children.do("save_once", directory=str(tmp_path), step=2, size=100_000, limit=limit) == 3
    assert children.said.startswith("CheckpointError the checkpoint of step 2 could not be written")
    assert "Earlier checkpoints are intact" in children.said and children.said.count("\n") <= 2
    found = load_latest(tmp_path)
    assert found and found.step == 1 and found.faults == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written to .*file: (File exists|Not a directory)"):
        save_checkpoint(tmp_path / "file", 1, {})


def killed_while_saving(children: Any, directory: Path, after: float) -> int:
    """Kill a child that does nothing but save; return the step that can be resumed."""
    pid = children.start("save_for_ever", directory=str(directory))
    deadline = time.monotonic() + 20
    while not any(directory.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    assert children.wait() == -signal.SIGKILL
    found = load_latest(directory)
    assert found and found.faults == []
    assert same(found.state["tensor"], torch.full((200_000,), float(found.state["step"])))
    assert found.state["step"] == found.step
    return found.step


def test_a_kill_at_any_instant_of_a_save_leaves_an_intact_state(children: Any, tmp_path: Path) -> None:
    draw = random.Random(0)
    steps = [killed_while_saving(children, tmp_path / str(index), draw.uniform(0, 0.15)) for index in range(8)]
    assert max(steps) > 1


@pytest.mark.slow
def test_two_hundred_kills_inside_saves_lose_nothing(children: Any, tmp_path: Path) -> None:
    draw = random.Random(1)
    for index in range(200):
        killed_while_saving(children, tmp_path / str(index), draw.uniform(0, 0.1))
