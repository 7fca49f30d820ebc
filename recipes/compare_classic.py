"""Classic agents on one environment over several seeds: a table with intervals, learning curves, performance profiles.

    python -m recipes.compare_classic --env CartPole-v1 --agents reinforce a2c ppo dqn --seeds 0 1 2 3 4

Each run is that of `align classic` in a directory of its own, such as runs/compare-CartPole-v1/ppo/seed-0; what is
finished is kept. At the end stand comparison.md, comparison.html and comparison.png.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes.classic import (
    AGENTS,
    MeasureOptions,
    check_env,
    config_of,
    learner,
    length_of,
    options_of,
    run_agent,
)
from recipes.classic import Options as AgentOptions
from recipes.common import recipe

if TYPE_CHECKING:
    from recipes.comparison_classic import Outcome

Name = Literal["reinforce", "a2c", "ppo", "dqn"]


@dataclass(frozen=True)
class Options:
    """Compare agents on one environment, each with the settings known for it, over seeds."""

    env: str = "CartPole-v1"
    """Id of the environment."""
    agents: tuple[Name, ...] = ("reinforce", "a2c", "ppo", "dqn")
    """What is compared."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of each agent's runs; fewer than five say little."""
    eval_episodes: int = 100
    """Episodes of each evaluation."""
    directory: Path | None = None
    """Directory of all runs; by default runs/compare-ENV. What is finished there is kept, what was stopped goes on."""
    share: float = 1.0
    """Share of each agent's run that is taken, for a quick look."""

    def __post_init__(self) -> None:
        for name in ("agents", "seeds"):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"{name} must be one or more, each once, got {' '.join(map(str, chosen)) or 'none'}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")

    @property
    def place(self) -> Path:
        """The directory of all runs."""
        return self.directory or Path("runs") / f"compare-{self.env.split(':')[-1].replace('/', '-')}"


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    from recipes.comparison_classic import outcome_of
    from recipes.pictures import pyplot

    check_env(options.env)
    # An hour of runs must not end in a missing package, nor in an agent that cannot learn this.
    pyplot()
    runs = [(seed, kind, settings_of(options, kind, seed)) for seed in options.seeds for kind in options.agents]
    for _, kind, settings in runs[: len(options.agents)]:
        learner(kind, settings)
    outcomes: list[Outcome] = []
    for seed, kind, settings in runs:
        if code := learn(kind, settings):
            return code
        outcomes.append(outcome_of(settings.run.resolve(kind), kind, seed))
        print(f"seed {seed}, {kind}: return {outcomes[-1].final:.1f}, {outcomes[-1].seconds:.0f} s", flush=True)
    show(options, outcomes, command)
    return 0


def settings_of(options: Options, kind: str, seed: int) -> AgentOptions[Any]:
    """Return what `align classic` is asked for to run one agent on one seed."""
    settings = options_of(kind, options.env, seed=seed, share=options.share)
    path = options.place / kind / f"seed-{seed}"
    return replace(
        settings,
        measure=MeasureOptions(options.eval_episodes),
        run=replace(settings.run, directory=path, resume=True, quiet=True),
    )


def learn(kind: str, settings: AgentOptions[Any]) -> int:
    """Run one agent on one seed, unless that is done with the same settings, and return an exit code."""
    from align.runs.directory import RunDirectory, plain

    directory = RunDirectory(settings.run.resolve(kind))
    if directory.final.exists():
        directory.check(plain(config_of(kind, settings)), resume=True)
        return 0
    length = length_of(kind)
    words = f"align classic {kind} --env {settings.env} --rewards {settings.rewards} --seed {settings.agent.seed}"
    words += f" --{length.replace('_', '-')} {getattr(settings.agent, length)}"
    words += f" --eval-episodes {settings.measure.eval_episodes}"
    command = [*words.split(), "--directory", str(directory.path)]
    return run_agent(kind, settings, command)[0].exit_code


def show(options: Options, outcomes: Sequence[Outcome], command: Sequence[str]) -> None:
    """Write the comparison and print its table."""
    from recipes import comparison_classic as told
    from recipes.comparison_page import Comparison, print_table, write

    standings, agents, count = told.ranked(outcomes), list(AGENTS), len(options.seeds)
    curves, shares = told.learning_curves(standings, agents), told.profiles(standings, agents)
    table = told.rows(standings)
    title = f"Agents on {options.env}"
    rule = (
        f"{count} {'seeds' if count > 1 else 'seed'} of each agent, with the settings that align classic has for "
        f"{options.env}, measured greedily over {options.eval_episodes} episodes. Agents differ in how many steps "
        "they take: the curves say who learns from few."
    )
    if shaped := [kind for kind in options.agents if options.env in AGENTS[kind].shaped]:
        rule += f" Learned from shaped rewards, measured by the true ones: {', '.join(shaped)}."
    files = write(
        options.place,
        Comparison(
            title=title,
            rule=rule,
            note=told.NOTE,
            head=told.HEAD,
            rows=table,
            told=[(one.agent, AGENTS[one.agent].words) for one in standings],
            command=shlex.join(command),
            figures=told.figures(curves, shares),
            footer="Lines: interquartile mean over seeds; bands: 95 % bootstrap interval. Each run has its own report.",
        ),
    )
    picture = options.place / "comparison.png"
    told.save_picture(picture, curves, shares, title=f"{title}, {count} seeds")
    print_table(told.HEAD, table)
    for file in (*files, picture):
        print(file)


main = recipe("python -m recipes.compare_classic", Options, train)

if __name__ == "__main__":
    main()
