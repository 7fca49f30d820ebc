"""Good rewards are called as their authors expect; of faulty ones each is named, and none passes silently."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.reward_names import resolve
from align.rewards import Reward, RewardError, as_completions, check_rewards, score

PROMPTS = ["one", "two", "three"]
COMPLETIONS = ["a", "bb", "\x1b[31mccc"]


def scored(function: Callable[..., Any], *, on_error: Any = "error", **columns: list[Any]):
    return score([Reward(function, name="x")], PROMPTS, COMPLETIONS, columns, on_error=on_error)


def raising(error: BaseException) -> Callable[..., Any]:
    def reward(completions, **columns):
        raise error

    return reward


def giving(result: Any) -> Callable[..., Any]:
    return lambda completions, **columns: result


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def by_length(completions, **columns):
    return [1 / (len(completion) - 2) for completion in completions]


def exhausted(completions, **columns):
    generator = iter([1.0])
    return [next(generator) for _ in completions]


async def raising_async(completions, **columns):
    await asyncio.sleep(0)
    raise KeyError("missing")


async def exiting_async(completions, **columns):
    sys.exit(3)


async def cancelled_async(completions, **columns):
    raise asyncio.CancelledError("given up")


async def nan_async(completions, **columns):
    return [1.0, math.nan, 1.0]


async def inner(completion):
    return 1.0


async def unawaited_whole(completions, **columns):
    return inner("a")


def unawaited(completions, **columns):
    return [inner(completion) for completion in completions]


async def yielding_async(completions, **columns):
    for _ in completions:
        yield 1.0


def emptying(completions, **columns):
    completions.clear()
    return completions


def endless(completions, **columns):
    return endless(completions)


# what it does: (reward, what is said; faulty samples)
WHOLE, ONE = [0, 1, 2], [1]
FAULTY: dict[str, tuple[Callable[..., Any], str, list[int]]] = {
    "raises": (raising(ValueError("bad\x1b[2J")), r"all 3 samples: it raised ValueError: bad\\x1b\[2J \(", WHOLE),
    "raises at a sample": (by_length, r"sample 1: it raised ZeroDivisionError: .*; its completion is 'bb'", WHOLE),
    "raises what has no words": (raising(Unprintable()), "it raised .*Unprintable", WHOLE),
    "exits": (raising(SystemExit(1)), "it raised SystemExit: 1", WHOLE),
    "runs out of memory": (raising(MemoryError()), "it raised MemoryError", WHOLE),
    "recurs for ever": (endless, "it raised RecursionError", WHOLE),
    "exhausts a generator": (exhausted, "it raised StopIteration", WHOLE),
    "raises later": (raising_async, "it raised KeyError: 'missing'", WHOLE),
    "exits later": (exiting_async, "it raised SystemExit: 3", WHOLE),
    "is cancelled": (cancelled_async, "it raised .*CancelledError: given up", WHOLE),
    "too few": (giving([1.0, 2.0]), "all 3 samples: expected 3 values, one a completion, got 2", WHOLE),
    "too many": (giving([1.0] * 4), "expected 3 values, one a completion, got 4", WHOLE),
    "none at all": (giving([]), "expected 3 values, one a completion, got 0", WHOLE),
    "empties its argument": (emptying, "expected 3 values, one a completion, got 0", WHOLE),
    "None": (giving(None), "expected a list of 3 numbers, got a NoneType", WHOLE),
    "a scalar": (giving(1.0), "expected a list of 3 numbers, got a float, 1.0", WHOLE),
    "a scalar tensor": (giving(torch.tensor(1.0)), "expected a list of 3 numbers, got a Tensor", WHOLE),
    "a string": (giving("abc"), "expected a list of 3 numbers, got 'abc'", WHOLE),
    "a dict": (giving({0: 1.0, 1: 1.0, 2: 1.0}), "expected a list of 3 numbers, got a dict", WHOLE),
    "a set": (giving({1.0, 2.0, 3.0}), "expected a list of 3 numbers, got a set", WHOLE),
    "a generator": (lambda completions: (1.0 for _ in completions), "expected a list .*got a generator", WHOLE),
    "an async generator": (yielding_async, "expected a list .*got a async_generator", WHOLE),
    "a function": (giving(len), "got a builtin_function_or_method.*call it first", WHOLE),
    "a coroutine of a coroutine": (unawaited_whole, "expected a list of 3 numbers, got a coroutine", WHOLE),
    "coroutines": (unawaited, "sample 0: expected a number or None, got a coroutine", WHOLE),
    "a matrix": (giving(np.ones((3, 2))), "sample 0: expected a number or None, got a list", WHOLE),
    "NaN": (giving([1.0, math.nan, 1.0]), "sample 1: expected a finite number, got nan.*'bb'", ONE),
    "NaN later": (nan_async, "sample 1: expected a finite number, got nan", ONE),
    "NaN in an array": (giving(np.array([1.0, np.nan, 1.0])), "sample 1: expected a finite number, got nan", ONE),
    "infinity": (giving([1.0, -math.inf, 1.0]), "sample 1: expected a finite number, got -inf", ONE),
    "more than float32 holds": (giving([1.0, 1e300, 1.0]), "sample 1: expected a finite number, got 1e", ONE),
    "an integer of 5000 digits": (giving([1, 10**5000, 1]), "sample 1: expected a finite number, got inf", ONE),
    "strings": (giving([1.0, "good", 1.0]), "sample 1: expected a number or None, got 'good'", ONE),
    "nested": (giving([1.0, [1.0], 1.0]), "sample 1: expected a number or None, got a list", ONE),
    "complex": (giving([1.0, 1j, 1.0]), "sample 1: expected a number or None, got a complex", ONE),
    "a vector": (giving([1.0, torch.ones(2), 1.0]), "sample 1: expected a number or None, got a Tensor", ONE),
    "a dict among numbers": (giving([1.0, {"score": 1}, 1.0]), "sample 1: .* got a dict, {'score': 1}", ONE),
    "hostile completion": (giving([1.0, 1.0, "x"]), r"sample 2: .*its completion is '\\x1b\[31mccc'", [2]),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_reward_is_named_with_its_sample_and_stops_the_run(fault: str):
    function, what, _ = FAULTY[fault]
    with pytest.raises(RewardError, match=f"^reward 'x' failed on .*{what}") as caught:
        scored(function)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_reward_can_be_skipped_and_is_told_of(fault: str):
    function, what, faulty = FAULTY[fault]
    scores = scored(function, on_error="skip")
    assert [row for row, value in enumerate(scores.parts["x"]) if math.isnan(value)] == faulty
    assert [row for row, value in enumerate(scores.total) if math.isnan(value)] == faulty
    assert scores.faults
    with pytest.raises(RewardError, match=f"^reward 'x' failed on .*{what}"):
        raise RewardError(scores.faults[0])


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_reward_can_count_as_zero_and_is_told_of(fault: str):
    function, _, faulty = FAULTY[fault]
    scores = scored(function, on_error="zero")
    expected = [0.0 if row in faulty else 1.0 for row in range(3)]
    assert scores.parts["x"] == scores.total == expected
    assert scores.faults and scores.parts["faults"] == [float(row in faulty) for row in range(3)]


def test_a_fault_of_the_whole_call_is_told_once_and_one_of_samples_for_each():
    assert len(scored(giving(None), on_error="skip").faults) == 1
    assert len(scored(giving(["a", "b", 1.0]), on_error="skip").faults) == 2
    with pytest.raises(RewardError, match=r"sample 0: .*\(and 1 more faults\)"):
        scored(giving(["a", "b", 1.0]))


def test_the_sample_at_which_a_reward_failed_is_named_for_messages_too():
    prompts = [[{"role": "user", "content": "q"}]] * 3

    def reward(completions):
        weights = [np.ones(2)]
        return [float(turns[0]["content"]) + 0 * weights[0].sum() for turns in completions]

    with pytest.raises(RewardError, match=r"failed on sample 2: it raised ValueError.*its completion is 'oops'"):
        score([reward], prompts, as_completions(["1", "2", "oops"], prompts), {})


def test_coroutines_that_nobody_awaits_give_one_message_and_no_warning(recwarn: pytest.WarningsRecorder):
    assert len(scored(unawaited, on_error="skip").faults) == 3
    gc.collect()
    assert not recwarn.list


def test_the_first_cause_is_chained():
    with pytest.raises(RewardError) as caught:
        scored(by_length)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_ctrl_c_is_no_fault_of_a_reward():
    for on_error in ("error", "skip", "zero"):
        with pytest.raises(KeyboardInterrupt):
            scored(raising(KeyboardInterrupt()), on_error=on_error)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match='on_error must be "error", "skip" or "zero", got \'ignore\''):
        scored(giving([1, 1, 1]), on_error="ignore")


# ---- good rewards


async def patient(completions, **columns):
    await asyncio.sleep(0.2)
    return [1, 2, 3]


GOOD: dict[str, Any] = {
    "floats": giving([1.0, 2.0, 3.0]),
    "integers": giving([1, 2, 3]),
    "a tuple": giving((1, 2, 3)),
    "an array": giving(np.array([1, 2, 3], dtype=np.float16)),
    "numpy scalars": giving([np.float32(1), np.int64(2), np.array(3)]),
    "a tensor": giving(torch.tensor([1.0, 2.0, 3.0], requires_grad=True)),
    "a bfloat16 tensor": giving(torch.tensor([1, 2, 3], dtype=torch.bfloat16)),
    "scalar tensors": giving([torch.tensor(1.0), torch.tensor(2), 3]),
    "async": patient,
    "trl": lambda prompts, completions, completion_ids=None, **kwargs: [1, 2, 3],
    "partial": functools.partial(lambda completions, step: [step, 2 * step, 3 * step], step=1),
    "no arguments": lambda: [1, 2, 3],
}


@pytest.mark.parametrize("case", GOOD)
def test_good_rewards_give_their_values_and_no_alarm(case: str):
    scores = scored(GOOD[case], answer=[4, 5, 6])
    assert scores.parts == {"x": [1.0, 2.0, 3.0]}
    assert scores.total == [1.0, 2.0, 3.0]
    assert scores.faults == []


def test_booleans_are_one_and_zero():
    assert scored(giving([True, np.bool_(False), torch.tensor(True)])).total == [1.0, 0.0, 1.0]


def test_columns_reach_a_reward_by_name_and_only_those_it_takes():
    seen = {}

    def some(completions, answer, *, hint="none"):
        seen.update(completions=completions, answer=answer, hint=hint)
        return [0, 0, 0]

    def every(**columns):
        seen["every"] = sorted(columns)
        return [0, 0, 0]

    score([Reward(some), Reward(every)], PROMPTS, COMPLETIONS, {"answer": [1, 2, 3], "other": "xyz"})
    assert seen["completions"] == COMPLETIONS
    assert (seen["answer"], seen["hint"]) == ([1, 2, 3], "none")
    assert seen["every"] == ["answer", "completions", "other", "prompts"]


def test_a_column_that_is_not_there_is_refused_before_anything_is_sampled():
    def reward(completions, answers):
        return [0, 0, 0]

    with pytest.raises(RewardError, match=r"'reward' asks for 'answers', .* there are .*; did you mean 'answer'\?"):
        check_rewards([reward], ["answer", "level"])
    for on_error in ("error", "skip"):
        with pytest.raises(RewardError, match="asks for 'answers'"):
            scored(reward, on_error=on_error, answer=[1, 2, 3])
    with pytest.raises(RewardError, match="takes 'completions' by position only: remove the `/`"):
        check_rewards([Reward(lambda completions, /: [], name="x")], [])


def test_what_a_reward_does_to_its_arguments_the_next_one_does_not_see():
    def destructive(prompts, completions, answer):
        prompts.clear()
        answer.reverse()
        return [len(completions.pop()) for _ in range(3)]

    scores = score(
        [destructive, Reward(lambda prompts, answer: answer, name="y")], PROMPTS, COMPLETIONS, {"answer": [1, 2, 3]}
    )
    assert scores.parts["y"] == [1, 2, 3]


def test_the_total_is_the_weighted_sum_of_the_parts_that_apply():
    rewards = [Reward(giving([1, None, None]), "a", 2.0), Reward(giving([3, 5, None]), "b", -0.5)]
    scores = score(rewards, PROMPTS, COMPLETIONS, {})
    assert scores.total[:2] == [0.5, -2.5]
    assert math.isnan(scores.total[2])
    assert scores.parts["b"][:2] == [3.0, 5.0]
    assert math.isnan(scores.parts["a"][1])
    assert scores.faults == []


def test_async_rewards_wait_together():
    rewards = [Reward(patient, name=f"patient {number}") for number in range(5)]
    start = time.perf_counter()
    assert score(rewards, PROMPTS, COMPLETIONS, {}).total == [5.0, 10.0, 15.0]
    assert time.perf_counter() - start < 0.9, "five of 0.2 s one after the other would take 1 s"


def test_async_rewards_work_inside_a_running_loop():
    async def notebook_cell():
        return scored(patient)

    assert asyncio.run(notebook_cell()).total == [1.0, 2.0, 3.0]


def test_what_an_async_reward_keeps_in_its_module_serves_every_step():
    one_at_a_time = asyncio.Semaphore(1)

    async def served(completion):
        async with one_at_a_time:  # once waited for, it belongs to a loop
            await asyncio.sleep(0)
            return 1.0

    async def reward(completions):
        return await asyncio.gather(*map(served, completions))

    assert [scored(reward).total for _ in range(3)] == [[1.0, 1.0, 1.0]] * 3


def test_a_forked_process_waits_on_a_loop_of_its_own():
    assert scored(patient).total == [1.0, 2.0, 3.0]
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(int(sum(scored(patient).total)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6


def test_an_async_reward_may_score_with_async_rewards():
    async def of_others(completions):
        return scored(patient).total

    assert scored(of_others).total == [1.0, 2.0, 3.0]


async def exiting_within(completions):
    return await asyncio.gather(*(exiting_async([completion]) for completion in completions))


def test_a_task_that_exits_does_not_end_the_loop_of_the_others():
    assert "it raised SystemExit: 3" in scored(exiting_within, on_error="skip").faults[0]
    assert scored(patient).total == [1.0, 2.0, 3.0]


def test_ctrl_c_ends_the_wait_for_an_async_reward_and_the_reward():
    ended = threading.Event()

    async def endless(completions):
        try:
            await asyncio.sleep(0.5)  # by now it is waited for
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(600)
        finally:
            ended.set()

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            scored(endless)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.wait(20)


def test_completions_have_the_form_of_their_prompts():
    chat = [{"role": "user", "content": "hi"}]
    completions = as_completions(["a", "b"], ["text", chat])
    assert completions == ["a", [{"role": "assistant", "content": "b"}]]

    def trl_style(completions, **kwargs):
        return [len(completion[0]["content"]) for completion in completions]

    assert score([trl_style], [chat, chat], as_completions(["a", "bb"], [chat, chat]), {}).total == [1.0, 2.0]


def test_rewards_are_named_after_their_functions_and_names_differ():
    assert Reward(patient).name == "patient"
    assert Reward(functools.partial(patient)).name == "patient"
    with pytest.raises(RewardError, match=r"two rewards have the name 'patient': pass Reward\(function, name="):
        check_rewards([Reward(patient), patient], [])
    with pytest.raises(RewardError, match="no rewards: pass at least one"):
        check_rewards([], [])
    with pytest.raises(ValueError, match="a reward must be a function, got 'exact_answer'"):
        Reward("exact_answer")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="weight must be finite, got nan"):
        Reward(patient, weight=math.nan)


def test_arguments_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="answer must have one value a completion: expected 3, got 2"):
        scored(giving([1, 2, 3]), answer=[1, 2])


def test_no_completions_give_no_scores():
    assert score([Reward(giving([]), "x")], [], [], {}).parts == {"x": []}


# ---- names on the command line


def test_rewards_are_found_by_built_in_name_module_and_file(tmp_path: Path):
    assert score([resolve("exact_answer")], ["p"], ["4"], {"answer": ["4"]}).parts == {"exact_answer": [1.0]}
    assert resolve("math:fsum").function is math.fsum
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from align.rewards import Reward\nfrom align.verifiable import regex_format\n"
        "@dataclass\nclass Options:\n    size: int = 1\n"
        "def length(completions):\n    return [len(c) for c in completions]\n"
        "shaped = Reward(regex_format('a.*'), weight=0.5)\n"
    )
    assert scored(resolve(f"{file}:length").function).total == [1.0, 2.0, 8.0]
    assert resolve(f"{file}:length").name == "length"
    assert resolve(f"{file}:shaped").weight == 0.5
    with pytest.raises(RewardError, match=r"mine\.py has no 'lenght'; did you mean 'length'\?"):
        resolve(f"{file}:lenght")


def test_what_cannot_be_found_is_refused_with_the_nearest_name():
    with pytest.raises(RewardError, match=r"unknown reward 'exact_anser': .* did you mean 'exact_answer'"):
        resolve("exact_anser")
    with pytest.raises(RewardError, match="'regex_format' needs options that a name cannot give: write"):
        resolve("regex_format")
    with pytest.raises(RewardError, match=r"no module 'no_such_module'.*path\.py:function"):
        resolve("no_such_module:f")
    with pytest.raises(RewardError, match=r"no module 'no_such_module\.within' \(No module named 'no_such_module'\)"):
        resolve("no_such_module.within:f")
    with pytest.raises(RewardError, match=r"nowhere\.py: no such file"):
        resolve("nowhere.py:f")


def test_a_weight_of_0_only_measures():
    never = Reward(lambda completions: [None] * len(completions), name="never")
    measured = Reward(lambda completions: [1.0] * len(completions), name="measured", weight=0.0)
    scores = score([never, measured], ["p"], ["text"], {})
    assert math.isnan(scores.total[0]) and scores.parts["measured"] == [1.0]
    with pytest.raises(RewardError, match="give one of them a weight"):
        check_rewards([measured], [])


def test_what_a_reward_does_to_the_messages_neither_the_next_one_nor_the_data_see():
    def meddles(prompts, completions):
        prompts[0][0]["content"] = completions[0][0]["content"] = "changed"
        return [0.0]

    seen = []

    def looks(prompts, completions):
        seen.append(prompts[0][0]["content"] + completions[0][0]["content"])
        return [0.0]

    prompts = [[{"role": "user", "content": "p"}]]
    score([meddles, looks], prompts, as_completions(["c"], prompts), {})
    assert seen == ["pc"] and prompts[0][0]["content"] == "p"
