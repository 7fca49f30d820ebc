"""The sides of `benchmarks.classic_vs_peers`: what one process does for a row, with our agents and with the peers'.

Each returns environment steps a second, or, where no number of steps is asked for, seconds until it is solved.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from classic_rl.on_policy_config import PPOConfig

ENV, SOLVED = "CartPole-v1", 475.0
LOOK_EVERY = 2048
"""Environment steps between two evaluations of `solve`."""
MOST_STEPS = 300_000
"""Environment steps after which `solve` gives up."""


@dataclass(frozen=True)
class Turn:
    """What one process is asked for: a side of a row, a seed, and environment steps of `speed`, or None for `solve`."""

    side: Callable[[Turn], float]
    seed: int
    steps: int | None = None
    cleanrl: str | None = None

    def look(self) -> Callable[[Any, int], bool]:
        """Return what says, off the clock, whether a policy solves the environment by now."""
        from classic_rl.evaluate import evaluate

        looked = 0

        def solved(act: Any, env_steps: int) -> bool:
            nonlocal looked
            if env_steps - looked < LOOK_EVERY:
                return False
            looked = env_steps
            return evaluate(act, ENV, episodes=100, seed=self.seed).returns.mean() >= SOLVED

        return solved


class Stopwatch:
    """Processor seconds, without those spent off the clock."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin at 0."""
        self.began, self.left_out = time.process_time(), 0.0

    def off(self, look: Callable[[], bool]) -> bool:
        """Do something off the clock."""
        began = time.process_time()
        result = look()
        self.left_out += time.process_time() - began
        return result

    @property
    def seconds(self) -> float:
        return time.process_time() - self.began - self.left_out


# --- our sides ---


def ours(agent: Any, turn: Turn) -> float:
    """Steps a second, or seconds until solved."""
    watch, solved = Stopwatch(), turn.look()
    for _ in agent.steps():
        if turn.steps is None and watch.off(lambda: solved(agent.act, agent.env_steps)):
            return watch.seconds
    return agent.env_steps / watch.seconds if turn.steps else float("inf")


def ppo_zoo(turn: Turn) -> PPOConfig:
    """Settings of Stable-Baselines3's zoo."""
    from classic_rl.on_policy_config import PPOConfig

    return PPOConfig(
        env_steps=turn.steps or MOST_STEPS, num_envs=8, rollout_steps=32, epochs=20, minibatches=1, learning_rate=1e-3,
        gamma=0.98, lam=0.8, clip=0.2, seed=turn.seed,
    )  # fmt: skip


def ppo_defaults(turn: Turn) -> PPOConfig:
    """Settings of Stable-Baselines3 where none are given."""
    from classic_rl.on_policy_config import PPOConfig

    return PPOConfig(
        env_steps=turn.steps or MOST_STEPS, num_envs=1, rollout_steps=2048, epochs=10, minibatches=32,
        learning_rate=3e-4, anneal=False, seed=turn.seed,
    )  # fmt: skip


def one_ppo(config: PPOConfig, turn: Turn) -> float:
    from classic_rl.ppo import PPO

    return ours(PPO(ENV, config), turn)


def eight_ppos(config: PPOConfig, turn: Turn) -> float:
    """Steps a second of eight seeds at once, all together."""
    from classic_rl.ppo_seeds import PPOSeeds

    watch, agents = Stopwatch(), PPOSeeds(ENV, config, [8 * turn.seed + index for index in range(8)])
    for _ in agents.steps():
        pass
    return agents.env_steps / watch.seconds


def ppo_as_sb3(turn: Turn) -> float:
    return one_ppo(ppo_zoo(turn), turn)


def ppo_as_sb3_defaults(turn: Turn) -> float:
    return one_ppo(ppo_defaults(turn), turn)


def eight_as_sb3(turn: Turn) -> float:
    return eight_ppos(ppo_zoo(turn), turn)


def eight_as_sb3_defaults(turn: Turn) -> float:
    return eight_ppos(ppo_defaults(turn), turn)


def eight_by_preset(turn: Turn) -> float:
    from classic_rl.on_policy_config import PPO_PRESETS

    return eight_ppos(replace(PPO_PRESETS[ENV], env_steps=turn.steps or MOST_STEPS), turn)


def ppo_as_cleanrl(turn: Turn) -> float:
    from classic_rl.on_policy_config import PPOConfig

    config = PPOConfig(
        env_steps=turn.steps or MOST_STEPS, num_envs=4, rollout_steps=128, epochs=4, minibatches=4,
        learning_rate=2.5e-4, gamma=0.99, lam=0.95, clip=0.2, value_clip=0.2, entropy_coef=0.01, seed=turn.seed,
    )  # fmt: skip
    return one_ppo(config, turn)


def ppo_preset(turn: Turn) -> float:
    from classic_rl.on_policy_config import PPO_PRESETS

    return one_ppo(replace(PPO_PRESETS[ENV], seed=turn.seed), turn)


def dqn_as_sb3(turn: Turn) -> float:
    from classic_rl.dqn import DQN
    from classic_rl.dqn_config import DQNConfig, ExplorationConfig, ReplayConfig, TargetConfig

    config = DQNConfig(
        env_steps=turn.steps or MOST_STEPS, learning_rate=2.3e-3, final_learning_rate=2.3e-3, batch_size=64,
        learning_starts=1000, train_every=256, updates=128, hidden=(256, 256), seed=turn.seed,
        replay=ReplayConfig(capacity=100_000), target=TargetConfig(every=128, double=False),
        exploration=ExplorationConfig(end=0.04, fraction=0.16),
    )  # fmt: skip
    return ours(DQN(ENV, config), turn)


def dqn_as_sb3_defaults(turn: Turn) -> float:
    from classic_rl.dqn import DQN
    from classic_rl.dqn_config import DQNConfig, ExplorationConfig, ReplayConfig, TargetConfig

    config = DQNConfig(
        env_steps=turn.steps or MOST_STEPS, learning_rate=1e-4, final_learning_rate=1e-4, batch_size=32,
        learning_starts=100, train_every=4, updates=1, hidden=(64, 64), max_grad_norm=10.0, seed=turn.seed,
        replay=ReplayConfig(capacity=1_000_000), target=TargetConfig(every=2500, double=False),
        exploration=ExplorationConfig(end=0.05, fraction=0.1),
    )  # fmt: skip
    return ours(DQN(ENV, config), turn)


def dqn_as_cleanrl(turn: Turn) -> float:
    from classic_rl.dqn import DQN
    from classic_rl.dqn_config import DQNConfig, ExplorationConfig, ReplayConfig, TargetConfig

    steps = turn.steps or MOST_STEPS
    config = DQNConfig(
        env_steps=steps, learning_rate=2.5e-4, final_learning_rate=2.5e-4, batch_size=128,
        learning_starts=min(10_000, steps // 2), train_every=10, updates=1, hidden=(120, 84), huber_delta=None,
        seed=turn.seed, replay=ReplayConfig(capacity=10_000), target=TargetConfig(every=50, double=False),
        exploration=ExplorationConfig(end=0.05, fraction=0.5),
    )  # fmt: skip
    return ours(DQN(ENV, config), turn)


def dqn_preset(turn: Turn) -> float:
    from classic_rl.dqn import DQN
    from classic_rl.dqn_config import DQN_PRESETS

    return ours(DQN(ENV, replace(DQN_PRESETS[ENV], seed=turn.seed)), turn)


# --- the peers' sides ---


def sb3(model: Any, turn: Turn) -> float:
    from stable_baselines3.common.callbacks import BaseCallback

    watch, solved = Stopwatch(), turn.look()

    def act(obs: Any, *, deterministic: bool) -> Any:
        return model.predict(obs, deterministic=deterministic)[0]

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return turn.steps is not None or not watch.off(lambda: solved(act, self.num_timesteps))

    model.learn(turn.steps or MOST_STEPS, callback=Look() if turn.steps is None else None)
    if turn.steps:
        return model.num_timesteps / watch.seconds
    return watch.seconds if model.num_timesteps < MOST_STEPS else float("inf")


def sb3_ppo(turn: Turn) -> float:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy", make_vec_env(ENV, 8, seed=turn.seed), n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98,
        n_epochs=20, learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left, seed=turn.seed,
        device="cpu",
    )  # fmt: skip
    return sb3(model, turn)


def sb3_ppo_defaults(turn: Turn) -> float:
    from stable_baselines3 import PPO

    return sb3(PPO("MlpPolicy", ENV, seed=turn.seed, device="cpu"), turn)


def sb3_dqn_defaults(turn: Turn) -> float:
    from stable_baselines3 import DQN

    return sb3(DQN("MlpPolicy", ENV, seed=turn.seed, device="cpu"), turn)


def sb3_dqn(turn: Turn) -> float:
    from stable_baselines3 import DQN

    model = DQN(
        "MlpPolicy", ENV, learning_rate=2.3e-3, batch_size=64, buffer_size=100_000, learning_starts=1000, gamma=0.99,
        target_update_interval=10, train_freq=256, gradient_steps=128, exploration_fraction=0.16,
        exploration_final_eps=0.04, policy_kwargs={"net_arch": [256, 256]}, seed=turn.seed, device="cpu",
    )  # fmt: skip
    return sb3(model, turn)


def cleanrl_ppo(turn: Turn) -> float:
    end = '        print("SPS:", int(global_step / (time.time() - start_time)))\n'
    changes = {end: end + "        LOOK(agent, global_step)\n"}
    return cleanrl(turn, "ppo.py", changes, lambda agent: agent.actor)


def cleanrl_dqn(turn: Turn) -> float:
    end = "        obs = next_obs\n"
    changes = {
        end: end + "        LOOK(q_network, global_step)\n",
        'infos["final_observation"][idx]': "next_obs[idx]",
    }
    return cleanrl(turn, "dqn.py", changes, lambda agent: agent)


def cleanrl(turn: Turn, name: str, changes: dict[str, str], outputs_of: Callable[[Any], Any]) -> float:
    """Run a file of CleanRL with some changes, and look at its agent now and then.

    The stopwatch starts where its own clock does: after imports, and with agent and environments made, as on all sides.
    """
    import torch

    assert turn.cleanrl is not None
    text = (Path(turn.cleanrl) / "cleanrl" / name).read_text()
    clock = "    start_time = time.time()\n"
    for old, new in {clock: clock + "    START()\n", **changes}.items():
        if text.count(old) != 1:
            raise ValueError(
                f"{name} has {text.count(old)} times {old!r}: it is another version than this was made for"
            )
        text = text.replace(old, new)
    watch, solved, done = Stopwatch(), turn.look(), 0

    class Solved(Exception):
        pass

    def look(agent: Any, env_steps: int) -> None:
        nonlocal done
        done = env_steps

        @torch.no_grad()
        def act(obs: Any, *, deterministic: bool) -> Any:
            return outputs_of(agent)(torch.as_tensor(obs)).argmax(dim=-1).numpy()

        if turn.steps is None and watch.off(lambda: solved(act, env_steps)):
            raise Solved

    with tempfile.TemporaryDirectory() as directory, redirect_stdout(sys.stderr):
        file = Path(directory) / name
        file.write_text(text)
        sys.path.insert(0, turn.cleanrl)  # dqn.py imports its replay from there
        sys.argv = [name, "--env-id", ENV, "--seed", str(turn.seed), "--no-cuda"]
        sys.argv += ["--total-timesteps", str(turn.steps or MOST_STEPS)]
        os.chdir(directory)  # it writes its logs where it stands
        given = {"LOOK": look, "START": watch.start}
        try:
            exec(compile(text, str(file), "exec"), {"__name__": "__main__", "__file__": str(file), **given})
        except Solved:
            return watch.seconds
        finally:
            os.chdir("/")
    return done / watch.seconds if turn.steps else float("inf")
