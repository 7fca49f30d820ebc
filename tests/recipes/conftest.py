"""What the tests of the commands share: a model folder and data such as users have, and `align` run on them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.forks import Forks

ROOT = Path(__file__).parent.parent.parent
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: the project can be imported, nothing is fetched."""
    return {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), **more}


IMPORTED = (
    "peft", "accelerate", "rich.live", "tyro", "recipes.cli", "recipes.grpo", "recipes.sft", "recipes.evaluate",
    "recipes.ppo", "recipes.dpo", "recipes.kto", "recipes.reward", "recipes.classic", "classic_rl.evaluate",
    "classic_rl.ppo", "classic_rl.a2c", "classic_rl.reinforce", "classic_rl.dqn", "gymnasium.envs.classic_control",
    "transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.modeling_auto", "transformers.generation",
    "transformers.tokenization_utils_tokenizers", "align.runs.report",
)  # fmt: skip


class Align(Forks):
    """The command line, run in forked children of one server, in one working directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "log", *IMPORTED, directory=directory, environment=environment())

    def start(self, *arguments: object) -> int:
        """Start a command; return the child's pid."""
        return super().start("recipes.cli:main", arguments=list(map(str, arguments)))

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """Run a command to its end, expect an exit code, and return what it said."""
        self.start(*arguments)
        ended = self.wait()
        assert ended == code, self.said
        assert code != 2 or "Traceback" not in self.said, self.said
        return self.said


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a Qwen3-shaped model, prompts with answers, demonstrations, preferences and feedback, a reward.

    The right sum is preferred: to the next number, and liked; or to itself with more words, of which some are sure.
    """
    from tests.models import tiny_model
    from tests.tiny import END, tiny_tokenizer

    directory = tmp_path_factory.mktemp("place")
    tokenizer = tiny_tokenizer()
    end = tokenizer.convert_tokens_to_ids(END)
    ids = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    tiny_model("qwen3", vocab_size=len(tokenizer), initializer_range=0.1, **ids).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    save_scorer(tiny_model("qwen3", vocab_size=len(tokenizer), num_hidden_layers=1, **ids), directory / "scorer")
    draw = random.Random(0)
    sums = [(draw.randrange(5), draw.randrange(5)) for _ in range(200)]
    prompts = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in sums]
    pairs = [{"prompt": row["prompt"], "completion": row["answer"]} for row in prompts]
    chats = [{"messages": [turn("user", row["prompt"]), turn("assistant", row["answer"])]} for row in prompts]
    preferences = [
        {"prompt": row["prompt"], "chosen": row["answer"], "rejected": f"{row['answer']} or so", "sure": n % 3}
        for n, row in enumerate(prompts)
    ]
    preferred, liked = [], []
    for row in prompts[:20]:
        wrong = str(int(row["answer"]) + 1)
        preferred.append({"prompt": row["prompt"], "chosen": row["answer"], "rejected": wrong})
        liked.append({"prompt": row["prompt"], "completion": row["answer"], "label": True})
        liked.append({"prompt": row["prompt"], "completion": wrong, "label": False})
    write(directory, prompts=prompts, pairs=pairs, chats=chats, few=prompts[:20])
    write(directory, preferences=preferences, few_preferences=preferences[:20], preferred=preferred, liked=liked)
    (directory / "rules.py").write_text(
        "def letters(prompts, completions, **columns):\n"
        "    return [sum(c.islower() for c in text) / 4 for text in map(str, completions)]\n"
        "NAME = 'rules'\n"
    )
    return directory


def save_scorer(trunk: Any, directory: Path) -> None:
    """Write a reward model that has learned nothing, with the tokens of the policy."""
    from align.reward_head import reward_model_of, save_reward_model, separate_padding
    from tests.tiny import tiny_tokenizer

    model, tokenizer = reward_model_of(trunk, seed=0), tiny_tokenizer()
    separate_padding(model, tokenizer)
    save_reward_model(model, tokenizer, directory, card="")


def write(directory: Path, **rows_of: list[dict]) -> None:
    """Write rows to a .jsonl file a name."""
    for name, rows in rows_of.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """All weights that a run saved at its end."""
    files = (run / "final").rglob("*.safetensors")
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def metrics_of(run: Path) -> list[dict[str, float]]:
    """What a run wrote of each step, but for what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/") and "per_second" not in k} for line in lines]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="session")
def align(place: Path) -> Iterator[Align]:
    command = Align(place)
    yield command
    command.close()
