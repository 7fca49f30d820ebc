"""A profile counts every second once, for the innermost part, and changes nothing of what is learned."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from align.runs import profiling
from align.runs.profiling import REST, Clock, Profiled, highest_memory, replaced
from tests.small_runs import small_dpo, small_grpo, small_kto, small_ppo, small_reward_model, small_sft

STEPS = 12
LEARNING = {"forward", "backward", "clipping and optimizer", "loss and micro-batches", "data", REST}
SAMPLING = {profiling.SAMPLING, "sampling: prompts through the model", "sampling: tokens through the model", "rewards"}
REFERENCE = "reference's log-probabilities"


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def counted(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith("time/") and "per_second" not in name}
        for line in metrics
    ]


def test_what_a_part_takes_within_another_is_not_the_others() -> None:
    time = Time()
    clock = Clock(now=time)

    def inner() -> None:
        time.seconds += 2

    def outer() -> None:
        time.seconds += 1
        clock.around(inner, "inner")()
        clock.around(inner, "inner")()
        time.seconds += 4

    with clock.part("step"):
        time.seconds += 8
        clock.around(outer, "outer")()
    time.seconds += 16
    assert clock.seconds == {"step": 8.0, "outer": 5.0, "inner": 4.0}
    assert clock.calls == {"step": 1, "outer": 1, "inner": 2}


def test_a_call_outside_a_step_or_in_another_thread_is_not_counted() -> None:
    clock = Clock()
    function = clock.around(lambda: 7, "part")
    assert function() == 7
    with clock.part("step"):
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()
    assert set(clock.calls) == {"step"}


def test_a_part_that_raises_is_over() -> None:
    clock = Clock()
    with pytest.raises(KeyError), clock.part("step"):
        clock.around({}.__getitem__, "part")("absent")
    assert not clock.within and set(clock.calls) == {"step", "part"}


def test_what_was_replaced_is_put_back_on_an_instance_and_on_a_class() -> None:
    class Thing:
        def method(self) -> int:
            return 1

    thing, method = Thing(), Thing.method
    for owner in (thing, Thing):
        with replaced(owner, "method", lambda *_: 2):
            assert thing.method() == 2
        assert thing.method() == 1 and not vars(thing) and Thing.method is method


@pytest.mark.parametrize(
    ("make", "options", "parts"),
    [
        (small_grpo, {"kl": True, "updates_per_rollout": 2}, LEARNING | SAMPLING | {REFERENCE}),
        (
            small_ppo,
            {"epochs": 2, "minibatches": 1},
            LEARNING | SAMPLING | {REFERENCE, "old log-probabilities and values"},
        ),
        (small_sft, {}, LEARNING),
        (small_dpo, {}, LEARNING | {REFERENCE}),
        (small_kto, {}, LEARNING | {REFERENCE, "reference point"}),
        (small_reward_model, {}, LEARNING),
    ],
)
def test_a_profiled_run_ends_bitwise_as_one_that_is_not_and_finds_the_parts_of_its_steps(
    make: Any, options: dict[str, Any], parts: set[str], tmp_path: Path
) -> None:
    plain, profiled = make(steps=STEPS, **options), Profiled(make(steps=STEPS, **options), tmp_path / "profile.txt")
    backward = torch.Tensor.backward
    assert counted(list(profiled.steps())) == counted(list(plain.steps()))
    ours, theirs = profiled.algorithm, plain
    assert_close(ours.state(), theirs.state(), rtol=0, atol=0)
    assert {part for part, times in profiled.clock.calls.items() if times} == parts
    assert set(profiled.clock.memory) in (parts, set())  # no system but Linux tells
    assert torch.Tensor.backward is backward and "forward" not in vars(getattr(ours, "trainer").unwrapped)  # noqa: B009
    text = (tmp_path / "profile.txt").read_text()
    assert all(part in text for part in parts) and "aten::mm" in text and "the whole step" in text


def test_rollouts_are_measured_whole(tmp_path: Path) -> None:
    profiled = Profiled(small_grpo(steps=24, updates_per_rollout=4), tmp_path / "profile.txt")
    list(profiled.steps())
    clock, steps = profiled.clock, len(profiled.timed)
    assert profiled.timed[0] == 5 and steps % 4 == 0
    assert clock.calls[profiling.SAMPLING] * 4 == clock.calls["forward"] == steps


def test_the_parts_of_a_step_add_up_to_it(tmp_path: Path) -> None:
    profiled = Profiled(small_grpo(steps=STEPS), tmp_path / "profile.txt")
    lines = list(profiled.steps())
    told = sum(lines[step - 1]["time/step"] for step in profiled.timed)
    assert 0.9 * told <= sum(profiled.clock.seconds.values()) <= 1.2 * told + 0.02


def test_too_few_steps_are_refused_and_a_run_that_stops_early_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs at least 8 steps, of which 3 warm up, got 2: raise the steps"):
        Profiled(small_sft(steps=2), tmp_path / "profile.txt")
    profiled = Profiled(small_sft(steps=STEPS), tmp_path / "profile.txt")
    steps = profiled.steps()
    next(steps)
    assert "No step was measured" in profiled.finish()
    for _ in range(4):
        next(steps)
    assert "steps 4 to 5" in profiled.finish()


def test_evaluations_and_checkpoints_are_told_apart_from_steps(tmp_path: Path) -> None:
    profiled = Profiled(small_sft(steps=STEPS), tmp_path / "profile.txt")
    evaluate = profiled.evaluating(lambda: {"loss": 1.0})
    for number, _ in enumerate(profiled.steps()):
        if number == 5:
            assert evaluate() == {"loss": 1.0}
            profiled.state()
    text = profiled.finish()
    assert "evaluation: 1 x" in text and "checkpoint: 1 x" in text


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the most memory since a time")
def test_memory_that_a_part_held_is_counted_for_it_and_not_for_the_next() -> None:
    highest_memory(cuda=False)
    block = torch.ones(64 * 2**20 // 4)
    (during,) = highest_memory(cuda=False)
    del block
    highest_memory(cuda=False)
    (after,) = highest_memory(cuda=False)
    assert 60 < during - after < 70
