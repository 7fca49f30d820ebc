"""What every recipe shares: its command line, its directory, one Accelerator, and errors told in one line.

Importing this file imports no torch, so that every `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from align.runs.text import visible
from recipes.foreign import hints

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from align.runs.run import Algorithm, RunResult

T = TypeVar("T")


@dataclass(frozen=True)
class Export:
    """What `align export` asks of a recipe: not to train, but to save the model of a checkpoint."""

    step: int | None = None
    output: Path | None = None
    merge: bool = False


@dataclass(frozen=True)
class RunOptions:
    """Where a run lives, how often it saves and measures, and what it shows."""

    directory: Path | None = None
    """Directory of the run; by default a new one under runs/."""
    resume: bool = False
    """Go on from the newest intact checkpoint of the directory, by default that of the newest run under runs/."""
    save_every: int = 50
    """Steps between checkpoints."""
    evaluate_every: int = 50
    """Steps between evaluations on held-out data; 0 evaluates before and after only."""
    log_every: int = 1
    """Steps between lines where the output is no terminal."""
    quiet: bool = False
    """Show nothing but warnings and how the run ended."""
    profile: bool = False
    """Measure some steps, and say at the end where their time and memory went; also in profile.txt of the run."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get the settings and every step's metrics too; tensorboard writes into the run's directory."""
    export: Annotated[Export | None, tyro.conf.Suppress] = None
    """Set by `align export`, never by a command line."""

    def __post_init__(self) -> None:
        for name, least in (("save_every", 1), ("evaluate_every", 0), ("log_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if missing := [name for name in self.report_to if find_spec(name) is None]:
            raise ValueError(f"report_to {' '.join(missing)}: not installed: pip install {' '.join(missing)}")

    def resolve(self, name: str) -> Path:
        """Return the run's directory: the one given, the newest of this name to resume, or a new one."""
        if self.directory is not None:
            return self.directory
        if not self.resume:
            return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        digit = "[0-9]"  # `ppo` must not go on with ppo-CartPole-v1-...
        runs = sorted(Path("runs").glob(f"{name}-{digit * 8}-{digit * 6}"))
        if not runs:
            raise ValueError(f"there is no run of {name} under runs/ to resume: name one with --directory")
        return runs[-1]


def recipe(
    program: str,
    options: Callable[..., T],
    train: Callable[[T, Sequence[str]], int],
    defaults: Callable[[Sequence[str]], T] | None = None,
    *,
    prefixes: bool = False,
) -> Callable[..., None]:
    """Make the `main` of a recipe: parse its dataclass of options, train, and exit with the code that it returns.

    Args:
        program: how the recipe is called, such as "python -m recipes.grpo_walk".
        options: the dataclass; a misspelt option is refused with the nearest name.
        train: called with the options and the words of the command line that gave them.
        defaults: gives the options that hold where nothing else is said, from the words of the command line.
        prefixes: whether an option of a part is named by it, as --target.every; else it is --every.
    """

    def main(arguments: Sequence[str] | None = None, export: Export | None = None) -> None:
        given = list(sys.argv[1:] if arguments is None else arguments)
        style = (tyro.conf.FlagCreatePairsOff, *(() if prefixes else (tyro.conf.OmitArgPrefixes,)))
        default: dict[str, Any] = {"default": defaults(given)} if defaults else {}
        if told := hints(options, given):
            print("".join(f"error: {words}\n" for words in told) + f"{program} --help shows all", file=sys.stderr)
            sys.exit(2)
        parsed: Any = tyro.cli(options, prog=program, args=given, config=style, **default)
        if export:
            parsed = replace(parsed, run=replace(parsed.run, export=export))
        with errors_in_one_line():
            sys.exit(train(parsed, [*launched(program), *given]))

    return main


def word_after(arguments: Sequence[str], option: str) -> str | None:
    """Return what a command line gives for an option, as in --loss gspo or --loss=gspo; the last counts."""
    words = [part for word in arguments for part in word.split("=", 1)]
    return dict(pairwise(words)).get(option)


def launched(program: str) -> list[str]:
    """Return the words that start a program in as many processes as there are now."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return program.split()
    module = program.removeprefix("python ").split() if program.startswith("python ") else ["-m", *program.split()]
    return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]), *module]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Tell an error that a user can mend in one line and exit with 2; any other keeps its traceback.

    Its words may be those of data or of a model, which must not reach the terminal as they are.
    """
    for category in (FutureWarning, DeprecationWarning):  # of libraries to each other
        warnings.simplefilter("ignore", category)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {visible(str(message), keep_newlines=True)}\n"
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ArithmeticError, OSError, RuntimeError) as error:
        ours = type(error).__module__.startswith(("align.", "recipes."))
        known = isinstance(error, ValueError | FloatingPointError) or "Connection closed by peer" in str(error)
        if not (ours or known) or os.environ.get("ALIGN_TRACEBACK"):
            raise
        if "Connection closed by peer" in str(error):
            error = RuntimeError("another process of this run failed: its line tells why")
        print(f"error: {visible(str(error), keep_newlines=True)}", file=sys.stderr)
        if not raised_here(error.__cause__ or error):  # what we say is complete; of others this may not be enough
            print("(ALIGN_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)


def raised_here(error: BaseException) -> bool:
    """Return whether an error was raised in this project's own code, which says what was wrong where."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]  # none of a cause that was never raised
    rooms = ("align", "classic_rl", "recipes")
    return bool(frames) and frames[-1].f_globals.get("__name__", "").partition(".")[0] in rooms


def make_accelerator() -> Accelerator:
    """Make the one Accelerator of a run: a GPU where there is one, with bfloat16 arithmetic where it has that."""
    import torch
    import transformers
    from accelerate import Accelerator

    transformers.utils.logging.disable_progress_bar()  # of loading and saving, across the console of the run
    bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return Accelerator(mixed_precision="bf16" if bfloat16 else "no", cpu=not torch.cuda.is_available())


def claim_directory(options: RunOptions, name: str, config: Any, accelerator: Accelerator) -> Path:
    """Return the run's directory, refused before a model loads where it holds another run.

    Processes of one run may start in different seconds, so all take the main one's name.
    """
    from accelerate.utils import broadcast_object_list

    from align.runs.directory import RunDirectory, plain

    names = [str(options.resolve(name))]
    if accelerator.num_processes > 1:
        broadcast_object_list(names)
    directory = RunDirectory(names[0])
    if options.export:  # a model is worth having, whatever became of the data since
        return directory.path
    directory.check(plain(config), resume=options.resume and directory.holds_a_run)
    return directory.path


def execute(
    algorithm: Algorithm,
    directory: Path,
    options: RunOptions,
    *,
    config: Any,
    command: Sequence[str],
    accelerator: Accelerator | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> RunResult:
    """Run an algorithm in its directory, in as many processes as the accelerator has; without one, in this process.

    For `align export` it goes to a checkpoint instead, and the result is as if the run had ended there.
    """
    from align.runs.directory import RunDirectory
    from align.runs.run import restore, run

    if export := options.export:
        return restore(algorithm, directory, step=export.step, final=export.output)
    profiled = None
    if options.profile and (accelerator is None or accelerator.is_main_process):
        from align.runs.profiling import Profiled

        profiled = Profiled(algorithm, directory / "profile.txt")
        evaluate = profiled.evaluating(evaluate) if evaluate else None
    where: dict[str, Any] = processes(accelerator) if accelerator else {"device": "cpu"}
    words = [word for word in command if word != "--resume"]
    if options.directory is None:
        words += ["--directory", str(directory)]
    with tracking(options.report_to, directory, config, accelerator) as track:
        result = run(
            profiled or algorithm,
            directory,
            track=track,
            config=config,
            command=shlex.join(words),
            # A run that was killed before its first step has no directory yet, and begins.
            resume=options.resume and RunDirectory(directory).holds_a_run,
            save_every=options.save_every,
            evaluate=evaluate,
            evaluate_every=options.evaluate_every,
            log_every=options.log_every,
            quiet=options.quiet,
            **where,
        )
    if profiled:
        print(f"\n{profiled.finish()}", flush=True)
    if not result.finished and (accelerator is None or accelerator.is_main_process):
        print(f"Or take its model as it is now: align export {directory}", flush=True)
    return result


@contextmanager
def tracking(
    names: Sequence[str], directory: Path, config: Any, accelerator: Accelerator | None
) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
    """Yield what hands the metrics of a step to trackers, which know the settings of the run; None without trackers."""
    if not names:
        yield None
        return
    from accelerate import Accelerator

    from align.runs.directory import flat, plain

    accelerator = accelerator or Accelerator(cpu=True)
    trackers: list[Any] = [*names]
    accelerator.log_with, accelerator.project_configuration.logging_dir = trackers, str(directory)
    settings = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in flat(plain(config)).items()
    }
    accelerator.init_trackers("align", config=settings, init_kwargs={"wandb": {"name": directory.name}})
    try:
        yield lambda step, metrics: accelerator.log(metrics, step=step)
    finally:
        for tracker in accelerator.trackers:  # not end_training, which leaves processes nothing to wait by
            tracker.finish()


def processes(accelerator: Accelerator) -> dict[str, Any]:
    """Return what `align.runs.run` is to know of the processes of a run."""
    import torch

    def any_process(flag: bool) -> bool:
        told: Any = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
        return bool(told > 0)

    several = accelerator.num_processes > 1
    return {
        "device": str(accelerator.device),
        "is_main": accelerator.is_main_process,
        "barrier": accelerator.wait_for_everyone if several else None,
        "any_process": any_process if several else None,
    }


def tell(words: str, options: RunOptions, accelerator: Accelerator) -> None:
    """Print a line for the user, once for all processes, unless quiet was asked for."""
    if accelerator.is_main_process and not options.quiet:
        print(words, flush=True)


def save_result(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    result: RunResult,
    options: RunOptions,
    accelerator: Accelerator,
) -> None:
    """Save the trained model of a finished run to its `final` folder, with a card that tells how it came about."""
    from align.data import eos_token_ids
    from align.logprobs import base_model
    from align.models import save_model

    if accelerator.is_main_process:
        # who loads it samples to the ends that it was trained to
        if generation := base_model(model).generation_config:
            generation.eos_token_id = eos_token_ids(model, tokenizer)
        if options.export and options.export.merge:
            model = merged(model)
        save_model(model, tokenizer, result.directory.final, card=model_card(result))
    accelerator.wait_for_everyone()


def merged(model: Any) -> Any:
    """Return a model with its adapters, if it has some, added to its weights.

    Raises:
        ValueError: if these are of 4 bits, which would round the adapters away.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    if getattr(model, "is_loaded_in_4bit", False):
        raise ValueError(
            "--merge: weights of 4 bits would round the adapters away: export without it, and add them to the whole "
            "weights with AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
        )
    return model.merge_and_unload()


def model_card(result: RunResult, task: str = "text-generation") -> str:
    """Write a model card from the record of a run: its numbers, its options and how to repeat it."""
    environment, config = result.directory.environment, result.directory.config
    numbers = {name: value for name, value in result.metrics.items() if not name.startswith("time/")}
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(numbers.items()))
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [align]\n---\n\n"
        f"# {result.directory.path.name}\n\nTrained for {result.step} steps.\n\n"
        f"## Numbers of the last step\n\n| metric | value |\n|---|---|\n{rows}\n\n"
        f"## How to repeat it\n\n    {environment.get('command')}\n\n"
        f"## Options\n\n```json\n{json.dumps(config, indent=2)}\n```\n"
    )
