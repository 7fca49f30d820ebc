"""Rewards in processes of their own survive what one process cannot."""

from __future__ import annotations

import datetime
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.isolated import isolated
from align.rewards import Reward, RewardError, score

MISBEHAVING = Path(__file__).parent / "misbehaving.py"


def named(function, **options):
    return isolated(
        f"{MISBEHAVING}:{function}", **{"deadline": 1.0, "memory_megabytes": 1024, "file_megabytes": 1, **options}
    )


def scored(reward, completions, on_error="error", **columns):
    prompts = ["p"] * len(completions)
    return score([Reward(reward, name="x")], prompts, completions, columns, on_error=on_error)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("raises", "it raised KeyError: 'missing' (misbehaving.py, line"),
        ("exits", "it raised SystemExit: 3"),
        ("leaves", "its process ended with exit code 7"),
        ("busy_in_c", "it took longer than 1 s and was killed"),
        ("backtracks", "it took longer than 1 s and was killed"),
        ("deaf", "it took longer than 1 s and was killed"),
        ("crashes", "its process ended by SIGSEGV"),
        ("eats_memory", "it raised MemoryError"),
        ("nan", "expected a finite number, got nan"),
        ("fills_the_disk", "it raised OSError: [Errno 27] File too large"),
        ("text", "it raised TypeError: expected a number or None, got '0.5'"),
    ],
)
def test_what_goes_wrong_costs_its_sample_alone(deed, words):
    reward = named("reward")
    scores = scored(reward, ["fine", deed, "fine"], on_error="skip")
    assert [scores.total[0], scores.total[2]] == [0.5, 0.5]
    assert scores.total[1] != scores.total[1]
    assert len(scores.faults) == 1 and scores.faults[0].startswith(f"reward 'x' failed on sample 1: {words}")
    assert f"its completion is '{deed}'" in scores.faults[0]
    with pytest.raises(RewardError, match="failed on sample 0"):
        scored(reward, [deed])


def test_what_a_completion_says_through_an_error_cannot_touch_the_terminal():
    (fault,) = scored(named("quotes"), ["\x1b[2J\u202ehello"], on_error="skip").faults
    assert r"ValueError: cannot judge \x1b[2J\u202ehello (misbehaving.py, line" in fault and fault.isprintable()


def test_a_reward_that_prints_does_not_speak_for_itself(capfd):
    assert scored(named("reward"), ["chatters", "fine", "none"], on_error="skip").parts["x"][:2] == [1.0, 0.5]
    assert '{"value": 99}' in capfd.readouterr().err


def test_async_rewards_columns_and_messages_arrive_as_they_are():
    assert scored(named("reward_async"), ["a", "b"], answer=["a", "a"]).total == [1.0, 0.0]
    prompts = [[{"role": "user", "content": "é\n\u2028"}]]
    completions = [[{"role": "assistant", "content": "é\n\u2028😀"}]]
    assert score([named("of_messages")], prompts, completions, {"answer": ["😀"]}).total == [1.0]


def test_a_worker_is_used_again_and_only_a_killed_one_is_replaced():
    reward = named("by_process")
    first, second = scored(reward, ["a"]).total[0], scored(reward, ["b", "c"]).total
    assert [first, first] == second and first != os.getpid()
    reward = named("two_at_once", workers=2)
    started = time.monotonic()
    assert len(set(scored(reward, ["a", "b", "c", "d"]).total)) == 2
    assert time.monotonic() - started < 4 * 0.5 + 10  # two at a time, after both have started


def wait_for_the_end_of(pid):
    until = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < until, f"process {pid} lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("deed", ["leaves_a_child", "escapes"])
def test_what_a_killed_worker_started_is_killed_too(tmp_path, deed):
    file = tmp_path / "pid"
    scored(named(deed), [str(file)], on_error="zero")
    wait_for_the_end_of(int(file.read_text()))


@pytest.mark.parametrize("deed", ["leaves_a_child", "escapes"])
def test_what_a_worker_started_ends_where_training_was_killed(tmp_path, deed):
    file = tmp_path / "pid"
    code = f"""
from align.isolated import isolated
isolated({f"{MISBEHAVING}:{deed}"!r}, deadline=60)(["p"], [{str(file)!r}])
"""
    training, until = subprocess.Popen([sys.executable, "-c", code]), time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until, "nothing was started"
        time.sleep(0.05)
    training.kill()
    training.wait()
    wait_for_the_end_of(int(file.read_text()))


def test_a_worker_sees_no_secret_of_the_environment_but_what_it_is_given(monkeypatch):
    names = ["PATH", "OMP_NUM_THREADS", "HF_TOKEN", "OPENAI_API_KEY", "DATABASE_URL"]
    for name in names[1:]:
        monkeypatch.setenv(name, "1")
    assert scored(named("sees"), names).total == [1, 1, 0, 0, 0]
    assert scored(named("sees", environment=["OPENAI_API_KEY"]), names).total == [1, 1, 0, 1, 0]


def test_workers_end_with_their_reward_and_with_their_parent():
    reward = named("by_process")
    worker = int(scored(reward, ["a"]).total[0])
    assert alive(worker)
    del reward
    gc.collect()
    assert not alive(worker)

    code = f"""
import os
from align.isolated import isolated
print(int(isolated({str(MISBEHAVING) + ":by_process"!r})(["p"], ["a"])[0]), flush=True)
os.kill(os.getpid(), 9)
"""
    printed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout
    wait_for_the_end_of(int(printed))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tests.align.misbehaving:nothing", "cannot be loaded: it raised AttributeError"),
        ("no_such_module_here:reward", "cannot be loaded: it raised ModuleNotFoundError"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_told_with_the_reason(name, words):
    with pytest.raises(RewardError, match=words):
        scored(isolated(name), ["a"])


def test_arguments_that_cannot_travel_are_refused():
    with pytest.raises(RewardError, match=r"travels as JSON \(.*\): write it as text, or let the reward name"):
        scored(named("reward"), ["fine"], odd=[{1, 2}])


def test_columns_that_a_reward_does_not_take_need_not_travel():
    assert scored(named("reward_async"), ["a"], answer=["a"], when=[datetime.date(2024, 1, 1)]).total == [1.0]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("reward", {}, "expected module:function"),
        ("nowhere.py:reward", {}, "no such file"),
        ("module:reward", {"deadline": 0}, "deadline must be"),
        ("module:reward", {"deadline": float("nan")}, "deadline must be"),
        ("module:reward", {"memory_megabytes": 8}, "at least 64"),
        ("module:reward", {"file_megabytes": 0}, "at least 1"),
        ("module:reward", {"workers": 0}, "at least 1"),
    ],
)
def test_options_out_of_range_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        isolated(name, **options)
