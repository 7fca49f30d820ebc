"""Runs `align` in children forked from a process that has imported everything, so that a run costs no imports.

Reads one JSON job a line, {"arguments": [...], "cwd": ..., "log": ...}; answers with the child's pid, then its exit
code.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module

import torch

IMPORTED = (
    "peft", "accelerate", "rich.live", "tyro", "recipes.cli", "recipes.grpo", "recipes.sft", "recipes.evaluate",
    "transformers.models.qwen3.modeling_qwen3", "transformers.models.auto.modeling_auto", "transformers.generation",
    "transformers.tokenization_utils_tokenizers", "align.runs.report",
)  # fmt: skip


def child(job: dict) -> int:
    """Run the command line with its output in a file."""
    os.chdir(job["cwd"])
    with open(job["log"], "w") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            from recipes.cli import main

            main(job["arguments"])
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in IMPORTED:
        import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(child(json.loads(line)))
        answer(pid)
        answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
