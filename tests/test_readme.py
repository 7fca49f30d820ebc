"""What the README tells a user to run runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import tiny_model
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the README takes for granted: a model, demonstrations, prompts."""
    directory = tmp_path_factory.mktemp("readme")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory / "model")
    tiny_model("qwen3", vocab_size=len(tokenizer), initializer_range=0.05).save_pretrained(directory / "model")
    rows = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(8) for b in range(8)]
    for name in ("prompts", "held_out"):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    demonstrations = [{"prompt": row["prompt"], "completion": row["answer"]} for row in rows]
    (directory / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demonstrations))
    return directory


def run(arguments: list[str], place: Path) -> str:
    done = subprocess.run(arguments, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_python_example_runs(number, place):
    printed = run([sys.executable, "-c", blocks("python")[number]], place)
    if "print(" in blocks("python")[number]:
        assert len(printed.splitlines()) >= 2


def test_the_three_commands_run_one_after_another(place):
    (commands,) = blocks("sh")
    for line in commands.strip().splitlines():
        words = shlex.split(line)
        quick = [] if words[1] == "eval" else ["--steps", "2"]
        quick += [] if words[1] == "sft" else ["--max-new-tokens", "8"]
        run([sys.executable, "-m", "align", *words[1:], *quick], place)
    assert (place / "runs/grpo/final/config.json").exists()


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
