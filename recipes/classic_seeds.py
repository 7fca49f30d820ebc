"""PPO on one environment for several seeds at once, with the settings known for it: what is chance, and what is not?

    python -m recipes.classic_seeds --env CartPole-v1 --seeds 0 1 2 3 4 5 6 7

Every seed learns what `align classic ppo --seed N` learns, but for rounding; side by side they take a good deal less
time than in turn. The run has one directory, and the policy of each seed is in its final/seed-N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from recipes.classic import check_env, config_of, options_of, remarks, source_of
from recipes.common import RunOptions, execute, recipe

if TYPE_CHECKING:
    from classic_rl.ppo_seeds import PPOSeeds


@dataclass(frozen=True)
class Options:
    """Train PPO on several seeds at once."""

    env: str = "CartPole-v1"
    """Id of the environment; its settings are those that `align classic ppo` has for it."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """Seeds of the runs."""
    eval_episodes: int = 100
    """Greedy episodes of each evaluation and seed."""
    share: float = 1.0
    """Share of each run that is taken, for a quick look."""
    run: RunOptions = field(default_factory=RunOptions)


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    from classic_rl.ppo_seeds import PPOSeeds

    check_env(options.env)
    settings = options_of("ppo", options.env, share=options.share)
    agents = PPOSeeds(source_of(settings), settings.agent, options.seeds)
    if not options.run.quiet:
        for words in remarks("ppo", settings):
            print(words)
    latest: list[float] = []

    def measured() -> dict[str, float]:
        latest[:] = returns(agents, options)
        return over_seeds(latest)

    result = execute(
        agents,
        options.run.resolve(f"ppo-seeds-{options.env.split(':')[-1].replace('/', '-')}"),
        options.run,
        config={**config_of("ppo", settings), "seeds": options.seeds},
        command=command,
        evaluate=measured,
    )
    if result.finished:
        for seed, policy in zip(agents.seeds, agents.policies, strict=True):
            policy.save(result.directory.final / f"seed-{seed}", "ppo")
        if not options.run.quiet:
            show(latest or returns(agents, options), options)  # a run that was finished before measures nothing
            print(f"the policies: {result.directory.final}/seed-N")
    return result.exit_code


def returns(agents: PPOSeeds, options: Options) -> list[float]:
    """Return the mean greedy return of each seed."""
    from classic_rl.evaluate import evaluate

    found = (
        evaluate(policy.act, options.env, episodes=options.eval_episodes, seed=seed)
        for seed, policy in zip(agents.seeds, agents.policies, strict=True)
    )
    return [float(one.returns.mean()) for one in found]


def over_seeds(each: Sequence[float]) -> dict[str, float]:
    """Return the interquartile mean over the seeds, the lowest and the highest."""
    from classic_rl.statistics import interquartile_mean

    mean = interquartile_mean(each)
    return {"episode/return": mean, "seeds/return_low": min(each), "seeds/return_high": max(each)}


def show(each: Sequence[float], options: Options) -> None:
    """Print the greedy return of each seed, and what they say together."""
    from classic_rl.statistics import bootstrap_interval
    from recipes.comparison_page import print_table

    print_table(("seed", "return"), [(str(seed), f"{one:.1f}") for seed, one in zip(options.seeds, each, strict=True)])
    mean, low, high = bootstrap_interval(each)
    print(f"greedy return {mean:.1f}, interquartile mean of {len(each)} seeds (95 %: {low:.1f} to {high:.1f})")


main = recipe("python -m recipes.classic_seeds", Options, train)

if __name__ == "__main__":
    main()
