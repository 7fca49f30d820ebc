"""The command line `align`: it finds the command, and imports what that needs once its options are understood."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.runs import RunDirectory
    from recipes.common import Export

TRAINING = {
    "sft": ("recipes.sft", "SFTOptions", "fine-tune a model on demonstrations"),
    "reward": ("recipes.reward", "RewardModelOptions", "train a reward model on pairs of answers"),
    "grpo": ("recipes.grpo", "GRPOOptions", "train a model on prompts and rewards"),
    "dpo": ("recipes.dpo", "DPOOptions", "train a model on pairs of answers, one of them preferred"),
    "kto": ("recipes.kto", "KTOOptions", "train a model on single answers, liked or not"),
    "ppo": ("recipes.ppo", "PPOOptions", "train a model on prompts and rewards, with a critic"),
    "eval": ("recipes.evaluate", "EvalOptions", "measure a model: mean rewards on prompts"),
    "export": ("recipes.export", "ExportOptions", "save the model of a checkpoint, of a run that was stopped"),
    "ladder": ("recipes.classic_ladder", "LadderOptions", "check a classic agent, from one batch to the known return"),
}
"""Command -> the file that does it, its options in recipes.options, and what it does."""

CLASSIC = "classic"
"""The command with commands of its own: `recipes.classic` reads what follows, and imports nothing heavy for that."""

READING = {
    "report": ("RUN", "write report.html of a run again"),
    "doctor": ("RUN", "say in words what the numbers of a run give away"),
    "compare": ("RUN RUN ...", "show how runs began and ended, and draw their curves together"),
    "env": ("", "show versions and hardware, for a bug report"),
}
"""Command -> what follows it, and what it does."""


def main(arguments: Sequence[str] | None = None, export: Export | None = None) -> None:
    """Run one command and exit with its code; 2 for an error that the user can mend."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    refuse_a_namesake()
    command, rest = (given[0], given[1:]) if given else ("--help", [])
    if command in TRAINING:
        run_recipe(command, rest, export)
    elif command == CLASSIC:
        import_module("recipes.classic").main(rest, export)
    elif command in READING:
        sys.exit(read(command, rest))
    elif command in ("-h", "--help", "help"):
        print(usage())
    elif command == "--version":
        print(version())
    else:
        close = difflib.get_close_matches(command, [*TRAINING, CLASSIC, *READING], n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        sys.exit(complaint(f"unknown command {command!r}{meant}\n\n{usage()}"))


def run_recipe(command: str, arguments: Sequence[str], export: Export | None) -> None:
    """Parse the options of a recipe, and only then import it."""
    from recipes import options
    from recipes.common import recipe

    module, name, _ = TRAINING[command]

    def train(parsed: Any, words: Sequence[str]) -> int:
        return import_module(module).train(parsed, words)

    defaults = getattr(options, f"{command}_defaults", None)
    recipe(f"align {command}", getattr(options, name), train, defaults)(arguments, export)


def read(command: str, arguments: Sequence[str]) -> int:
    """Run a command that reads a run which is there, or describes the machine."""
    from recipes.common import errors_in_one_line

    takes, words = READING[command]
    if "-h" in arguments or "--help" in arguments:
        print(f"usage: {f'align {command} {takes}'.strip()}\n\n{words}")
        return 0
    few, most = {"env": (0, 0), "compare": (2, math.inf)}.get(command, (1, 1))
    if not few <= len(arguments) <= most:
        expected = ("nothing after it", "the directory of a run, such as runs/first", "the directories of two runs")[
            few
        ]
        return complaint(f"align {command} expects {expected}, got {' '.join(arguments) or 'nothing'}")
    with errors_in_one_line():
        print(
            {"report": report, "doctor": doctor, "compare": compare, "env": environment}[command](*map(Path, arguments))
        )
    return 0


def report(path: Path) -> str:
    """Write report.html of a run again and return its path."""
    from align.runs import write_report

    return str(write_report(finished(path).path))


def doctor(path: Path) -> str:
    """Return what the rules of health find over a run, and how it ended."""
    from align.runs import findings
    from align.runs.text import visible

    run = finished(path)
    history = run.history()
    steps = int(max((line["step"] for line in history), default=0))
    found = findings(history)
    told = [f"step {finding.step}: {finding.words}\n    {finding.advice}" for finding in found]
    ends = [event for event in run.read("events.jsonl") if event.get("kind") in ("end", "stop", "error", "resume")]
    if ends and ends[-1]["kind"] == "error":
        told.append(f"step {ends[-1]['step']}: the run failed: {ends[-1]['words']}")
    told = told or ["nothing found"]
    return visible("\n".join([*told, f"{path}: {len(found)} findings over {steps} steps"]), keep_newlines=True)


def compare(*paths: Path) -> str:
    """Print a table of runs, write their page and return where it is."""
    from recipes import compare_runs

    return "\n" + "\n".join(map(str, compare_runs.compare([finished(path) for path in paths])))


def environment() -> str:
    """Return versions and hardware."""
    import torch

    from align.runs.directory import describe_environment

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    described = describe_environment(device=", ".join(gpus) or "cpu")
    packages, command = described.pop("packages"), described.pop("command")
    assert command is None
    lines = {"align-rl": version(), **described, "threads": torch.get_num_threads(), **packages}
    return "\n".join(f"{name:<14}{value}" for name, value in lines.items())


def finished(path: Path) -> RunDirectory:
    """Return the directory of a run, or refuse another path."""
    from align.runs import RunDirectory, RunError

    run = RunDirectory(path)
    if run.read("events.jsonl"):
        return run
    runs = sorted(Path("runs").glob("*/events.jsonl"), key=lambda log: log.stat().st_mtime)
    newest = f"; the newest is {runs[-1].parent}" if runs else ""
    raise RunError(f"{path}: no run is here: name the directory of one{newest}")


def usage() -> str:
    """Return what `align --help` shows."""
    commands = {name: words for name, (_, _, words) in TRAINING.items()}
    commands[CLASSIC] = "train and measure agents in Gymnasium's environments"
    commands |= {name: words for name, (_, words) in READING.items()}
    listed = "\n".join(f"    {name:<8} {words}" for name, words in commands.items())
    return (
        f"usage: align COMMAND [OPTIONS]\n\n{listed}\n\n"
        "align COMMAND --help shows its options. A first run:\n\n"
        "    align grpo --model FOLDER_OR_HUB_ID --data prompts.jsonl --reward exact_answer\n\n"
        "Several processes: torchrun --nproc-per-node 2 -m align grpo ..., also on a machine without a GPU."
    )


def version() -> str:
    """Return the version of the distribution."""
    from importlib import metadata

    return metadata.version("align-rl")


def refuse_a_namesake() -> None:
    """Exit if `import align` finds the other package of that name, which would otherwise fail in odd ways."""
    align: Any = import_module("align")
    if getattr(align, "__distribution__", None) != "align-rl":
        place = getattr(align, "__file__", None) or next(iter(getattr(align, "__path__", [])), "an unknown place")
        sys.exit(
            complaint(
                f"another package named align lies in front of this one, at {place}. "
                "Remove it (pip uninstall align) and put this one back (pip install --force-reinstall align-rl)."
            )
        )


def complaint(words: str) -> int:
    """Tell an error and return the exit code of a mistaken call."""
    print(f"error: {words}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
