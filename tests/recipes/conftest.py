"""What the tests of the commands share: a model folder and data such as users have, and `align` run on them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: the project can be imported, nothing is fetched."""
    return {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), **more}


class Align:
    """The command line, run in forked children of one server, in one working directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip

    def start(self, *arguments: object) -> int:
        """Start a command; return the child's pid."""
        assert self.server.stdin and self.server.stdout
        job = {"arguments": list(map(str, arguments)), "cwd": str(self.directory), "log": str(self.log)}
        self.log.write_text("")
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        """Wait for the child; return its exit code, negative for a signal."""
        assert self.server.stdout
        return int(self.server.stdout.readline())

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run a command to its end, expect an exit code, and return what it said."""
        self.start(*arguments)
        ended = self.wait()
        assert ended == code, self.said
        assert code != 2 or "Traceback" not in self.said, self.said
        return self.said

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a Qwen3-shaped model, prompts with answers, demonstrations of both kinds, a reward."""
    from tests.models import tiny_model
    from tests.tiny import END, tiny_tokenizer

    directory = tmp_path_factory.mktemp("place")
    tokenizer = tiny_tokenizer()
    end = tokenizer.convert_tokens_to_ids(END)
    ids = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    tiny_model("qwen3", vocab_size=len(tokenizer), initializer_range=0.1, **ids).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    draw = random.Random(0)
    sums = [(draw.randrange(5), draw.randrange(5)) for _ in range(200)]
    prompts = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in sums]
    pairs = [{"prompt": row["prompt"], "completion": row["answer"]} for row in prompts]
    chats = [{"messages": [turn("user", row["prompt"]), turn("assistant", row["answer"])]} for row in prompts]
    for name, rows in {"prompts": prompts, "pairs": pairs, "chats": chats, "few": prompts[:20]}.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "rules.py").write_text(
        "def letters(prompts, completions, **columns):\n"
        "    return [sum(c.islower() for c in text) / 4 for text in map(str, completions)]\n"
    )
    return directory


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="session")
def align(place: Path) -> Iterator[Align]:
    command = Align(place)
    yield command
    assert command.server.stdin
    command.server.stdin.close()
    command.server.wait(timeout=30)
