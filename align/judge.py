"""A language model as the judge: a reward that asks an OpenAI-compatible endpoint for a score.

    reward = judge("http://localhost:8000/v1", "Qwen/Qwen3-32B", "Question: {prompt}\\nAnswer: {completion}\\n" + SCALE)

Nothing is asked before the reward is called, and nobody but the address named. What goes wrong with one completion,
once it was tried again, is a fault of that sample, treated as `on_error` of `align.rewards.score` says.

A judge can be talked round by the text that it judges: keep an eye on answers that it likes, and weigh it against a
reward that can be checked.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from inspect import Parameter, Signature
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from align.batch import Completion, text_of
from align.reward_faults import shown
from align.rewards import RewardFunction

SCALE = "Rate the answer from 0 (useless) to 10 (perfect). End with a line `Score: N`."
"""The end of a template that fits the default pattern and range."""
SCORE = re.compile(r"score[\s:*_=`]*(-?\d+(?:\.\d+)?)", re.IGNORECASE)
PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")
LARGEST_REPLY = 2**20
"""Bytes of a reply beyond which it is none."""


class JudgeError(RuntimeError):
    """Why the judge gave one completion no score; stands in the place of its reward."""


class _PassingError(JudgeError):
    """What may be over when it is tried again, after so many seconds if the endpoint says so."""

    def __init__(self, words: str, wait: float = 0.0) -> None:
        super().__init__(words)
        self.wait = wait


def judge(
    base_url: str,
    model: str,
    prompt_template: str,
    *,
    pattern: str | re.Pattern[str] = SCORE,
    score_range: tuple[float, float] = (0.0, 10.0),
    api_key_variable: str | None = None,
    concurrency: int = 8,
    deadline: float = 60.0,
    attempts: int = 3,
    backoff: float = 1.0,
    request: Mapping[str, Any] | None = None,
) -> RewardFunction:
    """Make an async reward of a judge's score, mapped from `score_range` to [0, 1].

    Args:
        base_url: of the endpoint, to which `/chat/completions` is added.
        model: its name there.
        prompt_template: what the judge is asked; {prompt}, {completion} and {any_column} of the data are replaced.
        pattern: finds the score in the reply, after its thoughts: the last match, its first group if it has one.
        score_range: lowest and highest score; one outside is a fault.
        api_key_variable: environment variable that holds the key; the key is in no message.
        concurrency: most requests at a time, of each process that trains.
        deadline: seconds for one request.
        attempts: requests for one completion, where the endpoint is busy, fails or cannot be reached.
        backoff: seconds before the second attempt, twice as long before each further one, or as `Retry-After` says.
        request: further fields of each request; by default {"temperature": 0}.

    Raises:
        ValueError: if an option is out of its range, or the variable of the key is not set.
    """
    if urlsplit(base_url).scheme not in ("http", "https"):
        raise ValueError(f"base_url must begin with http:// or https://, got {base_url!r}")
    _check_numbers(concurrency=concurrency, attempts=attempts, deadline=deadline, backoff=backoff)
    named = dict.fromkeys(PLACE.findall(prompt_template))
    if "completion" not in named:
        raise ValueError("prompt_template must hold {completion}, or the judge would not see what it judges")
    if not score_range[0] < score_range[1]:
        raise ValueError(f"score_range must be (lowest, highest), got {score_range}")
    endpoint = _Endpoint(
        f"{base_url.rstrip('/')}/chat/completions", _key(api_key_variable), deadline, attempts, backoff
    )
    fields = {"temperature": 0, **(request or {}), "model": model}
    compiled = re.compile(pattern)

    def one(values: Mapping[str, str]) -> float | JudgeError:
        # In one pass, so that a completion that holds {answer} stays as it is.
        asked = PLACE.sub(lambda place: values[place[1]], prompt_template)
        try:
            reply = endpoint.ask({**fields, "messages": [{"role": "user", "content": asked}]})
            return _scored(reply, compiled, score_range)
        except JudgeError as error:
            return error

    async def judge(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[Any]:
        everything = {**columns, "prompt": prompts, "completion": completions}
        rows = [{name: _words(everything[name][row]) for name in named} for row in range(len(completions))]
        loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(concurrency)
        try:
            return list(await asyncio.gather(*(loop.run_in_executor(threads, one, row) for row in rows)))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    # Named in the signature, a column that the data lack is told before anything is trained.
    asked_for = ["prompts", "completions", *(name for name in named if name not in ("prompt", "completion"))]
    signature = Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in asked_for])
    judge.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return judge  # pyright: ignore[reportReturnType]


def _check_numbers(*, concurrency: int, attempts: int, deadline: float, backoff: float) -> None:
    for name, count in {"concurrency": concurrency, "attempts": attempts}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if not (deadline > 0 and math.isfinite(deadline)):
        raise ValueError(f"deadline must be a number of seconds above 0, got {deadline}")
    if not (backoff >= 0 and math.isfinite(backoff)):
        raise ValueError(f"backoff must be a number of seconds, got {backoff}")


def _key(variable: str | None) -> str:
    """Return the key that an environment variable holds, nothing where none is named."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"api_key_variable names {variable!r}, which is not set: export it, or leave the option out")
    if not (key.isascii() and key.isprintable()):  # a header that cannot be sent would be shown in the error
        raise ValueError(f"the key in {variable!r} has characters that no header can hold: export it again")
    return key


def _words(value: Any) -> str:
    """Return a value as the judge reads it: a conversation turn by turn, its speakers named if there are several."""
    if isinstance(value, str):
        return value
    if not (isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value)):
        return json.dumps(value, ensure_ascii=False)
    if len(value) == 1:
        return text_of(value)
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value)


def _scored(reply: str, pattern: re.Pattern[str], score_range: tuple[float, float]) -> float:
    matches = list(pattern.finditer(reply.rpartition("</think>")[2]))
    found = (matches[-1][1] if pattern.groups else matches[-1][0]) if matches else None
    try:
        value = float(found or "")
    except ValueError:
        raise JudgeError(f"no score that matches {pattern.pattern!r} in the judge's reply {shown(reply)}") from None
    lowest, highest = score_range
    if not lowest <= value <= highest:
        raise JudgeError(f"the judge's score {value:g} is not between {lowest:g} and {highest:g}")
    return (value - lowest) / (highest - lowest)


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirection, which could carry the key to another address."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


@dataclass(frozen=True)
class _Endpoint:
    """One address that answers chats, asked again where that may help."""

    url: str
    key: str = field(repr=False)
    deadline: float
    attempts: int
    backoff: float

    def ask(self, body: Mapping[str, Any]) -> str:
        """Return the reply to a chat, or raise JudgeError."""
        for attempt in range(1, self.attempts + 1):
            try:
                return _within(self.deadline, partial(self._reply, body))
            except _PassingError as error:
                if attempt == self.attempts:
                    raise JudgeError(f"{error} (tried {attempt} times)") from None
                time.sleep(min(max(error.wait, self.backoff * 2 ** (attempt - 1)), self.deadline))
        raise AssertionError("there is at least one attempt")

    def _reply(self, body: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        sent = Request(self.url, json.dumps(body).encode(), headers)
        until = time.monotonic() + self.deadline
        try:
            with build_opener(_NoRedirect).open(sent, timeout=self.deadline) as response:
                content = _read(response, until)
        except HTTPError as error:
            raise self._refused(error) from None
        except (OSError, HTTPException) as error:  # URLError is an OSError; its reason may be a timeout too
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise reason from None
            raise _PassingError(f"the judge cannot be reached: {shown(str(error))}") from None
        try:
            reply = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            reply = None
        if not isinstance(reply, str):
            words = self._masked(content.decode(errors="replace"))
            raise JudgeError(f"expected a chat completion from the judge, got {shown(words)}")
        return self._masked(reply)

    def _refused(self, error: HTTPError) -> JudgeError:
        with error:
            try:
                words = self._masked(error.read(4096).decode(errors="replace"))
            except (OSError, HTTPException):
                words = ""
        told = f"the judge's endpoint says {error.code}: {shown(words, 160)}"
        if error.code in (408, 409, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            return _PassingError(told, float(after) if after.isdecimal() else 0.0)
        return JudgeError(told)

    def _masked(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def _within(deadline: float, ask: Callable[[], str]) -> str:
    """Return the answer, or leave who waits for it: headers that trickle in meet no timeout of a socket."""
    answer: Future[str] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(timeout=deadline)
    except TimeoutError:
        raise _PassingError(f"the judge did not answer within {deadline:g} s") from None


def _read(response: Any, until: float) -> bytes:
    """Read a reply, part by part, so that one that trickles in meets the deadline too."""
    parts: list[bytes] = []
    while part := response.read1(65536):
        parts.append(part)
        if time.monotonic() > until:
            raise TimeoutError
        if sum(map(len, parts)) > LARGEST_REPLY:
            raise JudgeError(f"the judge's reply is longer than {LARGEST_REPLY:,} bytes")
    return b"".join(parts)
