"""Rewards that misbehave in every way that one process cannot survive; the completion says how."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time


def reward(completions, **columns):
    return [DEEDS[completion]() for completion in completions]


async def reward_async(completions, answer):
    await asyncio.sleep(0)
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def by_process(completions):
    return [float(os.getpid()) for _ in completions]


def two_at_once(completions):
    time.sleep(0.5)
    return [float(os.getpid()) for _ in completions]


def of_messages(prompts, completions, answer):
    return [float(prompts[0][0]["content"] + answer[0] == completions[0][0]["content"])]


def quotes(completions):
    raise ValueError("cannot judge " + completions[0])


def leaves_a_child(completions):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(completions[0], "w") as file:
        file.write(str(child.pid))
    time.sleep(600)
    return [0.0]


def escapes(completions):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open(completions[0], "w") as file:
        file.write(str(child.pid))
    time.sleep(600)
    return [0.0]


def sees(completions):
    return [float(completion in os.environ) for completion in completions]


def raises():
    raise KeyError("missing")


def leaves():
    os._exit(7)


def exits():
    sys.exit(3)


def busy_in_c():
    return sum(range(10**12))  # a loop in C that holds the lock of the interpreter


def backtracks():
    return float(bool(re.fullmatch(r"(a+)+b", "a" * 60)))


def crashes():
    ctypes.string_at(0)
    return 0.0


def eats_memory():
    return float(len(bytearray(10**11)))


def fills_the_disk():
    with tempfile.TemporaryFile() as file:
        file.write(bytes(2 * 2**20))
    return 1.0


def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return 0.0


def chatters():
    print('{"value": 99}')
    sys.stdout.flush()
    os.write(1, b'{"value": 99}\n')
    return 1.0


DEEDS = {
    "fine": lambda: 0.5,
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "text": lambda: "0.5",
    **{
        deed.__name__: deed
        for deed in (raises, leaves, exits, busy_in_c, backtracks, crashes, eats_memory, deaf, fills_the_disk)
    },
    "chatters": chatters,
}
