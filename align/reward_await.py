"""Wait for async rewards, all together, on one loop that stays: what a reward keeps there, such as a client or a
semaphore of its module, serves every step. It runs in a thread of its own, beside a notebook's loop too.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable
from contextlib import suppress
from functools import cache
from typing import Any


def await_all(waiting: list[Awaitable[Any]]) -> list[Any]:
    """Return what each awaitable returns or raises."""

    async def guarded(awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except BaseException as error:  # told with the reward's name; Ctrl-C is raised in the thread that waits
            return error

    async def together() -> list[Any]:
        return await asyncio.gather(*map(guarded, waiting))

    answers = asyncio.run_coroutine_threadsafe(together(), _loop(os.getpid(), threading.get_ident()))
    try:
        return answers.result()
    finally:
        answers.cancel()  # of one that is done this does nothing


@cache
def _loop(process: int, thread: int) -> asyncio.AbstractEventLoop:
    """Return the loop of who calls: a forked process has none of its parent's threads, and no loop waits for itself."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run, args=(loop,), name="async rewards", daemon=True).start()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        with suppress(SystemExit, KeyboardInterrupt):  # of a task, which keeps it; but its loop has been left
            loop.run_forever()
