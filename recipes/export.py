"""Save the model of a checkpoint, as a finished run saves its own: `align export runs/first`.

The recipe of the run builds its algorithm again, as for a resume, and saves what a checkpoint makes of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import import_module

from align.runs.checkpoint import steps_of
from align.runs.directory import RunDirectory, RunError
from recipes.common import Export, recipe
from recipes.options import ExportOptions


def train(options: ExportOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code. Nothing is trained here."""
    run = RunDirectory(options.directory)
    there = steps_of(run.checkpoints)
    if not there:
        raise RunError(f"{run.path}: no checkpoint is here: name the directory of a run that came to one")
    if options.step is not None and options.step not in there:
        raise RunError(f"{run.path} has no checkpoint of step {options.step}, but of {', '.join(map(str, there))}")
    if options.output is not None and options.output.exists():
        raise RunError(f"--output {options.output} is there already: name a new folder")
    module, *arguments = program_of(run)
    again = [*arguments, "--directory", str(run.path), "--resume"]
    import_module(module).main(again, Export(options.step, options.output, options.merge))
    return 0


def program_of(run: RunDirectory) -> list[str]:
    """Return the module that a run was started from, and the words after it."""
    words = shlex.split(run.environment.get("command") or "")
    if words[:1] == ["align"]:
        return ["recipes.cli", *words[1:]]
    program = words[words.index("-m") + 1 :] if "-m" in words else []
    if program[:1] == ["align"]:
        return ["recipes.cli", *program[1:]]
    if not program or not program[0].startswith("recipes.") or program[0].startswith("recipes.compare"):
        raise RunError(f"{run.path} was not started by a command of align, but by {shlex.join(words) or 'a program'}")
    return program


main = recipe("align export", ExportOptions, train)

if __name__ == "__main__":
    main()
