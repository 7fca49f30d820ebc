"""A judge is asked in order, a few at a time, again where that may help; what fails is a fault of its sample alone."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from align.judge import SCALE, JudgeError, judge
from align.reward_names import resolve
from align.rewards import Reward, RewardError, check_rewards, score

TEMPLATE = "Q: {prompt}\nA: {completion}\n" + SCALE
KEY = "sk-secret-0123456789"


class Server:
    """An endpoint on this machine that answers as a function of the words it is asked, and remembers what it saw."""

    def __init__(self) -> None:
        self.answer: Callable[[str], Any] = lambda words: "Score: 5"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.active, self.most, self.lock = 0, 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append({"path": self.path, **body})
                    outer.headers.append(dict(self.headers))
                    outer.active += 1
                    outer.most = max(outer.most, outer.active)
                answer = outer.answer(body["messages"][0]["content"])
                with outer.lock:
                    outer.active -= 1
                code, headers, content = answer if isinstance(answer, tuple) else (200, {}, chat(answer))
                try:
                    self.send_response(code)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for part in [content] if isinstance(content, bytes) else content:
                        self.wfile.write(part)
                except OSError:  # the client gave up, as a test of deadlines wants
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


def chat(words: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": words}}]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def scored(server: Server, completions: list[Any], *, on_error: Any = "skip", columns: Any = None, **options: Any):
    reward = Reward(judge(server.url, "m", options.pop("template", TEMPLATE), backoff=0.0, **options))
    return score([reward], ["p"] * len(completions), completions, columns or {}, on_error=on_error)


def test_scores_are_mapped_to_one_and_keep_the_order_of_the_completions(server: Server):
    def answer(words: str) -> str:
        number = int(words.partition("A: ")[2].partition("\n")[0])
        time.sleep(0.02 * (10 - number))  # the last are ready first
        return f"Score: 3? No.\n**Score:** {number}"

    server.answer = answer
    scores = scored(server, [str(number) for number in range(11)])
    assert scores.parts["judge"] == [number / 10 for number in range(11)] and not scores.faults


def test_no_more_requests_are_open_than_allowed_and_they_are_made_together(server: Server):
    def slow(words: str) -> str:
        time.sleep(0.1)
        return "Score: 5"

    server.answer = slow
    start = time.perf_counter()
    assert scored(server, ["a"] * 12, concurrency=4).total == [0.5] * 12
    assert server.most == 4
    assert time.perf_counter() - start < 1.0, "one after the other would take 1.2 s"


def test_what_is_asked_is_the_template_with_its_places_filled_once(server: Server):
    chatted = [{"role": "assistant", "content": "{answer}{prompt}"}]
    template = 'Rate as {"score": N}. {prompt}|{completion}|{answer}|{sources}'
    reward = Reward(judge(server.url, "some-model", template, request={"max_tokens": 7}, pattern=r"\d"))
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    columns = {"answer": ["é"], "sources": [["x", 1]], "other": [0]}
    assert score([reward], [prompt], [chatted], columns).total == [0.5]
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("some-model", 7, 0)
    asked = 'Rate as {"score": N}. system: S\n\nuser: U|{answer}{prompt}|é|["x", 1]'
    assert request["messages"] == [{"role": "user", "content": asked}]


def test_a_column_that_the_data_lack_is_told_before_anything_is_asked(server: Server):
    reward = judge(server.url, "m", "{completion} {reference}")
    with pytest.raises(RewardError, match="reward 'judge' asks for 'reference', which the data do not have"):
        check_rewards([reward], ["answer"])
    assert not server.requests


FAULTS: dict[str, tuple[Any, str]] = {
    "no score": ("I like it.", "no score that matches .* in the judge's reply 'I like it.'"),
    "a score in its thoughts": ("<think>Score: 3</think>Well.", "no score that matches"),
    "too high": ("Score: 11", "the judge's score 11 is not between 0 and 10"),
    "no JSON": ((200, {}, b"<html>"), "expected a chat completion from the judge, got '<html>'"),
    "another JSON": ((200, {}, b'{"choices": []}'), "expected a chat completion"),
    "a list": ((200, {}, b"[]"), "expected a chat completion"),
    "null": (None, "expected a chat completion"),
    "not allowed": ((401, {}, b"wrong key " + KEY.encode()), r"says 401: 'wrong key \*\*\*'"),
    "elsewhere": ((307, {"Location": "http://127.0.0.1:1/"}, b""), "says 307"),
    "too long": ((200, {}, b"x" * (2**20 + 1)), "longer than 1,048,576 bytes"),
    "echoes the key": ((200, {}, KEY.encode()), r"got '\*\*\*'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_answer_is_a_fault_of_its_sample_alone_and_not_asked_for_again(server: Server, fault: str):
    answer, what = FAULTS[fault]
    server.answer = lambda words: answer if "A: bad\n" in words else "Score: 10"
    scores = scored(server, ["good", "bad", "good"], api_key_variable="JUDGE_KEY")
    assert [math.isnan(value) for value in scores.total] == [False, True, False]
    (told,) = scores.faults
    assert told.startswith("reward 'judge' failed on sample 1: ") and KEY not in told
    with pytest.raises(RewardError, match=what) as caught:
        scored(server, ["bad"], on_error="error", api_key_variable="JUDGE_KEY")
    assert KEY not in str(caught.value)
    assert len(server.requests) == 4


def test_a_busy_endpoint_is_asked_again_and_in_the_end_it_is_a_fault(server: Server):
    answers = iter([(429, {"Retry-After": "0"}, b"busy"), (503, {}, b"down"), "Score: 8"])
    server.answer = lambda words: next(answers)
    assert scored(server, ["a"], attempts=3).total == [0.8]
    server.answer = lambda words: (500, {}, b"broken")
    assert "says 500: 'broken' (tried 2 times)" in scored(server, ["a"], attempts=2).faults[0]
    assert len(server.requests) == 5


def test_attempts_wait_longer_each_time(server: Server):
    server.answer = lambda words: (503, {}, b"")
    start = time.perf_counter()
    reward = judge(server.url, "m", TEMPLATE, backoff=0.1, attempts=3)
    assert score([reward], ["p"], ["a"], {}, on_error="zero").total == [0.0]
    assert 0.3 <= time.perf_counter() - start < 2.0


def test_silence_and_a_trickle_meet_the_deadline(server: Server):
    def trickle() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    def answer(words: str) -> Any:
        if "A: silent" in words:
            time.sleep(1.0)
        code = 500 if "A: refusing" in words else 200
        return (code, {}, trickle()) if "A: trickling" in words or code == 500 else "Score: 1"

    server.answer = answer
    start = time.perf_counter()
    scores = scored(server, ["silent", "trickling", "quick", "refusing"], deadline=0.3, attempts=1)
    assert time.perf_counter() - start < 0.9
    assert scores.total[2] == 0.1
    assert len(scores.faults) == 3 and all("did not answer within 0.3 s" in fault for fault in scores.faults)


def test_headers_that_trickle_in_meet_the_deadline(server: Server):
    def serve() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):  # the client gives up
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Pad: ")
            for _ in range(100):
                time.sleep(0.05)
                connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        reward = judge(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "m", TEMPLATE, deadline=0.3, attempts=1)
        start = time.perf_counter()
        (fault,) = score([reward], ["p"], ["c"], {}, on_error="skip").faults
        assert time.perf_counter() - start < 2.0 and "did not answer within 0.3 s" in fault


def test_an_address_where_nobody_listens_is_a_fault(server: Server):
    server.server.shutdown()
    server.server.server_close()
    assert "the judge cannot be reached" in scored(server, ["a"], attempts=2).faults[0]


def test_the_key_travels_in_the_header_alone(server: Server, monkeypatch: pytest.MonkeyPatch):
    scored(server, ["a"], api_key_variable="JUDGE_KEY")
    scored(server, ["a"])
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}" and "Authorization" not in server.headers[1]
    assert KEY not in json.dumps(server.requests)
    with pytest.raises(ValueError, match="names 'NO_SUCH_KEY', which is not set: export it"):
        judge(server.url, "m", TEMPLATE, api_key_variable="NO_SUCH_KEY")
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(ValueError, match="has characters that no header can hold") as caught:
        judge(server.url, "m", TEMPLATE, api_key_variable="JUDGE_KEY")
    assert KEY not in str(caught.value)


def test_options_that_make_no_sense_are_refused(tmp_path):
    def made(url: str = "http://x/v1", template: str = TEMPLATE, **options: Any):
        return judge(url, "m", template, **options)

    for match, options in {
        "base_url must begin with http": {"url": "localhost:8000"},
        "must hold {completion}": {"template": "{prompt}"},
        "score_range must be": {"score_range": (1, 1)},
        "concurrency must be at least 1": {"concurrency": 0},
        "attempts must be at least 1": {"attempts": 0},
        "deadline must be": {"deadline": math.inf},
        "backoff must be": {"backoff": -1},
    }.items():
        with pytest.raises(ValueError, match=match):
            made(**options)
    with pytest.raises(RewardError, match="reward 'judge' needs options that a name cannot give: write"):
        resolve("judge")
    file = tmp_path / "mine.py"
    file.write_text("from align.judge import judge\nliked = judge('http://x/v1', 'm', '{completion}')\n")
    assert resolve(f"{file}:liked").name == "liked"
    assert issubclass(JudgeError, RuntimeError)
