"""Wait for async rewards, all together; where a loop is running already, as in a notebook, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def await_all(waiting: list[Awaitable[Any]]) -> list[Any]:
    """Return what each awaitable returns or raises."""

    async def guarded(awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # told with the reward's name; Ctrl-C passes
            return error

    async def together() -> list[Any]:
        return await asyncio.gather(*map(guarded, waiting))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(together())
    # A loop that is running cannot be entered again.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, together()).result()
