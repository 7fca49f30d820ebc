"""GridWorld: a Gymnasium environment of walls and one goal, with the table `P` that planning and fast stepping need.

import classic_rl.gridworld  # registers it
env = gymnasium.make("classic_rl/GridWorld-v0", rows=6, columns=6)
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.toy_text.utils import categorical_sample
from numpy.typing import NDArray

ID = "classic_rl/GridWorld-v0"
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""(row, column) of the actions left, down, right, up: those of FrozenLake."""
CELL = 32
COLOURS = {".": (245, 242, 235), "#": (70, 74, 84), "S": (214, 226, 240), "G": (112, 173, 110)}
AGENT = (201, 82, 62)


class GridWorld(gymnasium.Env[Any, Any]):
    """Walk from the top left to the bottom right around obstacles, which never cut a free cell off the goal.

    A state is row * columns + column. Into a wall or off the board a step goes nowhere, and costs as any other. The
    goal terminates. `gymnasium.make` truncates after 200 steps; its `max_episode_steps` sets another limit.

    Args:
        rows, columns: size, at least 2 each.
        obstacles: cells that are walls; fewer where no more fit without cutting off.
        slip: probability of moving at a right angle to the action, to either side alike.
        step_cost: what each step costs, 0 or more.
        goal_reward: what reaching the goal pays, on top of the step.
        layout_seed: of the obstacles; a layout is the same for ever.
        render_mode: "ansi", "rgb_array", "human" or None.

    Raises:
        ValueError: if one of these is out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 8}

    def __init__(
        self,
        rows: int = 8,
        columns: int = 8,
        obstacles: int = 12,
        slip: float = 0.0,
        step_cost: float = 0.01,
        goal_reward: float = 1.0,
        layout_seed: int = 0,
        render_mode: str | None = None,
    ) -> None:
        _check(rows, columns, obstacles, slip, step_cost, render_mode)
        self.walls = place_obstacles(rows, columns, obstacles, np.random.default_rng(layout_seed))
        self.observation_space = spaces.Discrete(rows * columns)
        self.action_space = spaces.Discrete(len(MOVES))
        self.goal = rows * columns - 1
        self.initial_state_distrib = np.eye(1, rows * columns)[0]
        self.P = _table(self.walls, slip, -step_cost, goal_reward)
        self.render_mode = render_mode
        self.s = 0
        self._window: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Go back to the start."""
        super().reset(seed=seed)
        self.s = int(categorical_sample(self.initial_state_distrib, self.np_random))
        if self.render_mode == "human":
            self.render()
        return self.s, {"prob": 1.0}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move."""
        outcomes = self.P[self.s][int(action)]
        index = int(categorical_sample([outcome[0] for outcome in outcomes], self.np_random))
        probability, self.s, reward, terminated = outcomes[index]
        if self.render_mode == "human":
            self.render()
        return self.s, reward, terminated, False, {"prob": probability}

    def render(self) -> Any:
        """Return the board as text or as an image [H, W, 3], or show it in a window."""
        if self.render_mode == "ansi":
            return self._text()
        if self.render_mode == "rgb_array":
            return self._image()
        if self.render_mode == "human":
            self._show()
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            import pygame

            pygame.quit()
            self._window = None

    def _cells(self) -> list[list[str]]:
        """`.` free, `#` wall, `S` start, `G` goal. [rows][columns]"""
        cells = [["#" if wall else "." for wall in row] for row in self.walls]
        cells[0][0], cells[-1][-1] = "S", "G"
        return cells

    def _text(self) -> str:
        cells = self._cells()
        row, column = divmod(self.s, self.walls.shape[1])
        cells[row][column] = "@"
        return "\n".join("".join(line) for line in cells) + "\n"

    def _image(self) -> NDArray[np.uint8]:
        cells = self._cells()
        image = np.array([[COLOURS[cell] for cell in row] for row in cells], dtype=np.uint8)
        image = image.repeat(CELL, axis=0).repeat(CELL, axis=1)
        image[::CELL], image[:, ::CELL] = (225, 221, 212), (225, 221, 212)
        row, column = divmod(self.s, self.walls.shape[1])
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        inside = (y - (row + 0.5) * CELL) ** 2 + (x - (column + 0.5) * CELL) ** 2 < (0.32 * CELL) ** 2
        image[inside] = AGENT
        return image

    def _show(self) -> None:
        try:
            import pygame
        except ImportError as error:
            raise gymnasium.error.DependencyNotInstalled(
                "a window needs pygame: pip install 'align-rl[classic]', or render_mode='rgb_array'"
            ) from error
        image = self._image()
        if self._window is None:
            pygame.display.init()
            self._window = pygame.display.set_mode((image.shape[1], image.shape[0]))
            pygame.display.set_caption("GridWorld")
        self._window.blit(pygame.surfarray.make_surface(image.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        pygame.time.wait(1000 // self.metadata["render_fps"])


def place_obstacles(rows: int, columns: int, obstacles: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Put walls on cells in a random order, leaving out each that would cut a free cell off the goal.

    Returns:
        Where walls are, never at the top left or the bottom right. [rows, columns]
    """
    walls = np.zeros((rows, columns), dtype=bool)
    for cell in rng.permutation(np.arange(1, rows * columns - 1)):
        if walls.sum() == obstacles:
            break
        walls.flat[cell] = True
        if not all_reach_the_goal(walls):
            walls.flat[cell] = False
    return walls


def all_reach_the_goal(walls: NDArray[np.bool_]) -> bool:
    """Say whether a way leads from every free cell to the bottom right. [rows, columns]"""
    reached = np.zeros_like(walls)
    reached[-1, -1] = True
    while True:
        near = np.pad(reached, 1)
        near = (near[:-2, 1:-1] | near[2:, 1:-1] | near[1:-1, :-2] | near[1:-1, 2:] | reached) & ~walls
        if (near == reached).all():
            return bool((reached | walls).all())
        reached = near


def _table(
    walls: NDArray[np.bool_], slip: float, step_reward: float, goal_reward: float
) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
    """(probability, next state, reward, terminated) of each action in each cell; nothing leads out of the goal."""
    rows, columns = walls.shape
    goal = rows * columns - 1

    def move(state: int, action: int) -> tuple[int, float, bool]:
        row, column = (at + by for at, by in zip(divmod(state, columns), MOVES[action], strict=True))
        inside = 0 <= row < rows and 0 <= column < columns and not walls[row, column]
        after = row * columns + column if inside else state
        return after, step_reward + (goal_reward if after == goal else 0.0), after == goal

    def outcomes(state: int, action: int) -> list[tuple[float, int, float, bool]]:
        if state == goal:
            return [(1.0, goal, 0.0, True)]
        sides = [(slip / 2, (action + turn) % 4) for turn in (1, 3)] if slip else []
        return [(p, *move(state, way)) for p, way in [(1 - slip, action), *sides]]

    return {s: {a: outcomes(s, a) for a in range(len(MOVES))} for s in range(rows * columns)}


def _check(rows: int, columns: int, obstacles: int, slip: float, step_cost: float, render_mode: str | None) -> None:
    if rows < 2 or columns < 2:
        raise ValueError(f"rows and columns must be at least 2, got {rows} and {columns}")
    if obstacles < 0 or step_cost < 0:
        raise ValueError(f"obstacles and step_cost must be at least 0, got {obstacles} and {step_cost}")
    if not 0 <= slip <= 1:
        raise ValueError(f"slip must be in [0, 1], got {slip}: it is the probability of moving aside.")
    if render_mode not in (None, *GridWorld.metadata["render_modes"]):
        raise ValueError(f"render_mode must be ansi, rgb_array, human or None, got {render_mode!r}")


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point="classic_rl.gridworld:GridWorld", max_episode_steps=200)
