"""Classic agents in Gymnasium's environments: `align classic ppo --env CartPole-v1`.

    align classic AGENT --env ID                 trains reinforce, a2c, ppo or dqn
    align classic eval FOLDER --env ID           measures a saved policy, greedy and as it draws

Nothing heavy is imported before the options are understood.
"""

from __future__ import annotations

import difflib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import tyro

from classic_rl.dqn_config import DQN_PRESETS, DQNConfig
from classic_rl.on_policy_config import (
    A2C_PRESETS,
    PPO_PRESETS,
    PPO_SHAPED,
    REINFORCE_PRESETS,
    A2CConfig,
    PPOConfig,
    REINFORCEConfig,
)
from recipes.common import Export, RunOptions, execute, recipe, word_after

if TYPE_CHECKING:
    import gymnasium

    from align.runs.run import RunResult

Config = TypeVar("Config")
Rewards = Literal["true", "shaped"]
INSTALL = "pip install 'align-rl[classic]'"


@dataclass(frozen=True)
class Kind:
    """An agent: what it is in words, the file and the class, its settings and those for known environments.

    shaped: the environments among them in which the agent learns from shaped rewards.
    """

    words: str
    module: str
    name: str
    config: type[Any]
    presets: Mapping[str, Any]
    shaped: frozenset[str] = frozenset()


AGENTS = {
    "reinforce": Kind(
        "policy gradient on whole episodes", "reinforce", "REINFORCE", REINFORCEConfig, REINFORCE_PRESETS
    ),
    "a2c": Kind("policy and critic, one step on each short rollout", "a2c", "A2C", A2CConfig, A2C_PRESETS),
    "ppo": Kind(
        "policy and critic, several epochs over each rollout", "ppo", "PPO", PPOConfig, PPO_PRESETS, PPO_SHAPED
    ),
    "dqn": Kind("values of discrete actions, from a replay memory", "dqn", "DQN", DQNConfig, DQN_PRESETS),
}


@dataclass(frozen=True)
class MeasureOptions:
    """How the policy is measured: by its best actions, over whole episodes."""

    eval_episodes: int = 100
    """Episodes of an evaluation."""
    video: bool = False
    """Write one episode of the trained policy to <directory>/episode.mp4."""

    def __post_init__(self) -> None:
        if self.eval_episodes < 1:
            raise ValueError(f"eval_episodes must be at least 1, got {self.eval_episodes}")


@dataclass(frozen=True)
class Options(Generic[Config]):
    """Train an agent in an environment of Gymnasium.

    The defaults are settings that solve the environment, where they are known, and general ones elsewhere. The policy
    is saved to <directory>/final.
    """

    env: str
    """Id of the environment, such as CartPole-v1, or module:Id where a module registers it."""
    agent: Config
    rewards: Rewards = "true"
    """What is learned from: the true rewards, or shaped ones, to which comes the change of a potential that is known
    for the environment (MountainCar-v0: the energy of the car). It shows the way to the goal and leaves the best
    policy as it is. Returns shown are of the true rewards."""
    measure: tyro.conf.OmitArgPrefixes[MeasureOptions] = field(default_factory=MeasureOptions)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)


@dataclass(frozen=True)
class EvalOptions:
    """Measure a saved policy in whole episodes: by its best actions, and by actions as it draws them."""

    folder: tyro.conf.Positional[Path]
    """What a run left in <directory>/final."""
    env: str
    """Id of the environment."""
    episodes: Annotated[int, tyro.conf.arg(name="eval-episodes")] = 100
    """Episodes of each of the two."""
    seed: int = 0
    """Of the episodes."""


def defaults(kind: str, arguments: Sequence[str]) -> Options[Any]:
    """Return the options of an agent, which depend on the environment that the command line names."""
    env = word_after(arguments, "--env")
    return options_of(kind, env or tyro.MISSING)


def options_of(kind: str, env: str, *, seed: int = 0, share: float = 1.0) -> Options[Any]:
    """Return the options known for an environment, or general ones, with about ten evaluations and checkpoints a run.

    Args:
        kind: the agent.
        env: the environment's id.
        seed: of the run.
        share: of the steps that are known to do.
    """
    agent = AGENTS[kind]
    config = agent.presets.get(env, agent.config())
    length = length_of(kind)
    config = replace(config, seed=seed, **{length: max(1, int(share * getattr(config, length)))})
    every = max(1, config.total_steps // 10)
    rewards: Rewards = "shaped" if env in agent.shaped else "true"
    return Options(env, config, rewards, run=RunOptions(save_every=every, evaluate_every=every))


def length_of(kind: str) -> str:
    """Return the setting that says how long an agent learns."""
    return "updates" if kind == "reinforce" else "env_steps"


def learner(kind: str, options: Options[Any]) -> Any:
    """Make an agent in its environment."""
    return class_of(kind)(source_of(options), options.agent)


def source_of(options: Options[Any]) -> str | Callable[[], gymnasium.Env[Any, Any]]:
    """Return what an agent learns in.

    Raises:
        ValueError: if shaped rewards are asked for and no potential is known.
    """
    if options.rewards == "true":
        return options.env
    from classic_rl.shaping import shaped

    return shaped(options.env, gamma=options.agent.gamma)


def train(kind: str, options: Options[Any], command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    check_env(options.env, video=options.measure.video)
    source_of(options)  # what cannot be shaped is refused before anything is said
    if not options.run.quiet:
        for words in remarks(kind, options):
            print(words)
    result, agent = run_agent(kind, options, command)
    if result.finished:
        path = result.directory.path
        if options.measure.video:
            record(agent, options.env, path / "episode.mp4", seed=options.agent.seed)
        if not options.run.quiet:
            print(told(result, options))
            print(f"the policy: {result.directory.final}" + ", an episode: episode.mp4" * options.measure.video)
            print(f"measure it: align classic eval {result.directory.final} --env {options.env}")
    return result.exit_code


def remarks(kind: str, options: Options[Any]) -> Iterator[str]:
    """Say what is special about the settings in this environment."""
    known, shaped = AGENTS[kind].presets, AGENTS[kind].shaped
    if options.env not in known:
        names = ", ".join(known)
        yield f"no settings of {kind} are known to solve {options.env}, so general ones hold (known: {names})"
    if options.rewards == "shaped":
        yield "learning from shaped rewards, while returns are of the true ones (--rewards true learns from those)"
    elif options.env in shaped:
        yield f"the settings of {kind} for {options.env} are for --rewards shaped, and may learn nothing without"


def run_agent(kind: str, options: Options[Any], command: Sequence[str]) -> tuple[RunResult, Any]:
    """Build an agent, run it in its directory, and save the policy of a finished run."""
    from classic_rl.evaluate import evaluate

    agent = learner(kind, options)
    episodes, seed = options.measure.eval_episodes, options.agent.seed
    result = execute(
        agent,
        options.run.resolve(f"{kind}-{options.env.split(':')[-1].replace('/', '-')}"),
        options.run,
        config=config_of(kind, options),
        command=command,
        evaluate=lambda: evaluate(agent.act, options.env, episodes=episodes, seed=seed).metrics(),
    )
    if result.finished:
        agent.save(result.directory.final)
    return result, agent


def config_of(kind: str, options: Options[Any]) -> dict[str, Any]:
    """Return what a run depends on."""
    episodes = options.measure.eval_episodes
    return {
        "algorithm": kind,
        "env": options.env,
        "rewards": options.rewards,
        "eval_episodes": episodes,
        "settings": options.agent,
    }


def class_of(kind: str) -> Any:
    """Import an agent."""
    return getattr(import_module(f"classic_rl.{AGENTS[kind].module}"), AGENTS[kind].name)


def told(result: RunResult, options: Options[Any]) -> str:
    """Say what a finished run came to."""
    seconds = sum(line.get("time/step", 0.0) for line in result.directory.history())
    return (
        f"greedy return {result.evaluation['episode/return']:.1f}, mean of {options.measure.eval_episodes} episodes of "
        f"{result.evaluation['episode/length']:.0f} steps; learned from {result.metrics['steps/total']:,.0f} "
        f"environment steps in {seconds:.0f} seconds"
    )


# --- environments ---


def check_env(name: str, *, video: bool = False) -> None:
    """Make an environment and close it again.

    Raises:
        ValueError: if there is none of that name, or something that it needs is not installed.
    """
    make_env(name, video=video).close()
    if video:
        try:
            import moviepy  # noqa: F401
        except ImportError as error:
            raise ValueError(f"--video needs moviepy: {INSTALL}") from error


def make_env(name: str, *, video: bool = False) -> gymnasium.Env[Any, Any]:
    """Make an environment, for a video one that has drawn its first picture; what is wrong is a ValueError."""
    try:
        import gymnasium
        from gymnasium import error as errors
    except ImportError as error:
        raise ValueError(f"classic agents need Gymnasium: {INSTALL}") from error
    try:
        env = gymnasium.make(name)
        if not video:
            return env
        if "rgb_array" not in env.metadata.get("render_modes", []):
            raise ValueError(f"{name} draws no pictures (render_mode rgb_array): leave out --video")
        env.close()
        env = gymnasium.make(name, render_mode="rgb_array")
        env.reset()
        env.render()
        return env
    except errors.DependencyNotInstalled as error:
        raise ValueError(f"{name} needs something that is not installed: {INSTALL} ({error})") from error
    except (errors.Error, ModuleNotFoundError) as error:
        close = difflib.get_close_matches(name, gymnasium.registry, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"{str(error).rstrip('.')}. Name it as in gymnasium.make."
        raise ValueError(f"there is no environment {name!r}: {meant}") from error


def record(policy: Any, name: str, file: Path, *, seed: int) -> None:
    """Write a video of one greedy episode."""
    import numpy as np
    from gymnasium.wrappers import RecordVideo

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        # A folder of its own, or the wrapper warns of what else is there.
        films = Path(folder) / "films"
        env = RecordVideo(make_env(name, video=True), str(films), disable_logger=True)
        obs, ended = env.reset(seed=seed)[0], False
        while not ended:
            obs, _, terminated, truncated, _ = env.step(policy.act(np.asarray(obs)[None], deterministic=True)[0])
            ended = terminated or truncated
        env.close()
        next(films.glob("*.mp4")).replace(file)


# --- measuring a saved policy ---


def measure(options: EvalOptions, command: Sequence[str]) -> int:
    """Print what a saved policy earns."""
    from classic_rl.evaluate import evaluate

    policy = load(options.folder, options.env)
    for deterministic, words in ((True, "greedy"), (False, "as drawn")):
        found = evaluate(
            policy.act, options.env, episodes=options.episodes, seed=options.seed, deterministic=deterministic
        )
        returns = found.returns
        error = returns.std(ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else 0.0
        print(
            f"{words:<9} return {returns.mean():.1f} ± {error:.1f} (standard error), {returns.min():.1f} to "
            f"{returns.max():.1f}; {found.lengths.mean():.0f} steps; {options.episodes} episodes"
        )
    return 0


def load(folder: Path, name: str) -> Any:
    """Read a policy's folder for an environment.

    Raises:
        ValueError: if it holds no policy, or the environment has other observations or actions than it learned with.
    """
    file = folder / "policy.json"
    kind = json.loads(file.read_text(encoding="utf-8")).get("algorithm") if file.exists() else None
    if kind not in AGENTS:
        raise ValueError(f"{folder}: expected the policy of a classic agent: name <directory>/final of a run")
    env = make_env(name)
    from classic_rl.agents import load_policy

    found = load_policy(folder, kind)
    for what in ("observation_space", "action_space"):
        learned, here = getattr(found, what), getattr(env, what)
        if learned != here:
            raise ValueError(f"{folder}: learned with the {what} {learned}, but {name} has {here}: name its own --env")
    env.close()
    return class_of(kind).load(folder)


# --- the command line ---


def usage() -> str:
    """Return what `align classic --help` shows."""
    listed = "\n".join(f"    {name:<10} {kind.words}" for name, kind in AGENTS.items())
    return (
        f"usage: align classic AGENT --env ID [OPTIONS]\n\n{listed}\n    {'eval':<10} measure a saved policy\n\n"
        "align classic AGENT --env ID --help shows the options with the defaults for that environment. A first run:\n\n"
        "    align classic ppo --env CartPole-v1\n\n"
        "Agents with tables: python -m recipes.classic_tabular --help."
    )


def main(arguments: Sequence[str] | None = None, export: Export | None = None) -> None:
    """Run `align classic` and exit with its code."""
    word, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if word in AGENTS:
        config: Any = AGENTS[word].config
        # Without the parts that DQN's settings are in, their names would say too little: --target.every is not --every.
        named = config is DQNConfig
        options = Options[Annotated[config, tyro.conf.arg(name="")] if named else config]
        run = recipe(f"align classic {word}", options, partial(train, word), partial(defaults, word), prefixes=named)
        run(rest, export)
    elif word == "eval":
        recipe("align classic eval", EvalOptions, measure)(rest)
    elif word in ("-h", "--help", "help"):
        print(usage())
    else:
        close = difflib.get_close_matches(word, [*AGENTS, "eval"], n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        print(f"error: unknown agent {word!r}{meant}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
