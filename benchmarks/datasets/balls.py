"""Behaviour in Maze2D: the trajectories of D4RL's maze2d sets, made anew.

As in d4rl/scripts/generation/generate_maze2d_datasets.py and d4rl/pointmaze/waypoint_controller.py,
a PD controller steers a ball along the shortest path to a random cell, then to another one, and so
on without a reset. A row's reward is that of the task's own goal in the state in which the action
is chosen (relabel_maze2d_rewards.py), one step earlier than the environment gives it. A trajectory
is cut, and `timeouts` are set, where the ball rests in the cell or after the task's time limit.

Two things differ. Whether D4RL's actions were noisy is not documented; ours have the noise of its
option --noisy. And after a cut D4RL's script shows the controller the old state once more, which
we do not.

    python -m benchmarks.datasets.balls     # returns of the controller and of random actions

Importing this module registers the tasks, so that Gymnasium finds them in worker processes.
"""

import sys
from collections import deque
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
import tyro

from benchmarks.common import load_script, markdown_table

Maze2D = load_script("por").Maze2D  # datasets name this class as their environment's

Cell = tuple[int, int]  # row, column
ABOUT = {
    "policy": "waypoints and a PD controller, actions with noise",
    "algorithm": "waypoints",
    "made_by": "D4RL's recipe (arXiv 2004.07219)",
}
NEAR = 0.1  # distance in m, and step in m, below which the ball has arrived
DEVIATION = 0.5  # of the noise of an action


def shortest_path(free: set[Cell], start: Cell, goal: Cell) -> list[Cell]:
    """Return the cells from the one after `start` to `goal`."""
    after = {goal: goal}
    waiting = deque([goal])
    while start not in after:
        row, column = cell = waiting.popleft()
        for near in ((row + 1, column), (row, column + 1), (row - 1, column), (row, column - 1)):
            if near in free and near not in after:
                after[near] = cell
                waiting.append(near)
    path = [after[start]]
    while path[-1] != goal:
        path.append(after[path[-1]])
    return path


class Controller:
    """D4RL's waypoint controller on the way from one cell to another one."""

    def __init__(self, free: set[Cell], start: Cell, goal: Cell, rng: np.random.Generator):
        path = shortest_path(free, start, goal)
        between = [np.array(cell) - rng.uniform(0, 0.2, 2) for cell in path[:-1]]
        self.waypoints = [*between, np.array(goal, float)]
        self.before = np.array(start, float)

    def act(self, position: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the action without noise, (2,), and whether the ball rests at the goal."""
        still = np.linalg.norm(self.before - position) < NEAR
        done = bool(np.linalg.norm(position - self.waypoints[-1]) < NEAR and still)
        action = 10 * (self.waypoints[0] - position) - velocity
        arrived = np.linalg.norm(position - self.waypoints[0]) < NEAR and still
        if arrived and len(self.waypoints) > 1:
            del self.waypoints[0]
        self.before = position
        return action, done


def collect_shard(env_id: str, seed: list[int], steps: int) -> list[dict]:
    """Return a trajectory that is cut into episodes, at least `steps` transitions."""
    env = gym.make(env_id, disable_env_checker=True)
    limit, env = env.spec.max_episode_steps, env.unwrapped
    sequence = np.random.SeedSequence(seed)
    rng = np.random.default_rng(sequence.spawn(1)[0])
    env_seed = int(sequence.generate_state(1)[0])
    state, _ = env.reset(seed=env_seed)
    cells = [(int(row), int(column)) for row, column in np.argwhere(env.maze != "#")]
    episodes = []
    total = 0
    while total < steps:
        goal = cells[rng.integers(len(cells))]
        controller = Controller(set(cells), nearest(cells, state[:2]), goal, rng)
        observations, actions = [state], []
        done = False
        while not done and len(actions) < limit:
            action, done = controller.act(state[:2], state[2:])
            action += DEVIATION * rng.standard_normal(2)
            actions.append(np.clip(action, -1, 1).astype(np.float32))
            state, *_ = env.step(actions[-1])
            observations.append(state)
        positions = np.array(observations[:-1])[:, :2]
        reached = np.linalg.norm(positions - env.goal, axis=1) <= 0.5
        episodes.append(
            {
                "observations": np.array(observations, np.float32),
                "actions": np.array(actions),
                "rewards": reached.astype(np.float32),
                "terminations": np.zeros(len(actions), bool),
                "truncations": np.arange(len(actions)) == len(actions) - 1,
                "seed": env_seed,
            }
        )
        total += len(actions)
    return episodes


def nearest(cells: list[Cell], position: np.ndarray) -> Cell:
    """Return the free cell that is nearest to a position."""
    return min(cells, key=lambda cell: np.linalg.norm(position - cell))


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


@dataclass
class Args:
    maze: tuple[Literal["umaze", "medium", "large"], ...] = ("umaze", "medium", "large")
    """mazes"""
    episodes: int = 300
    """episodes in each"""
    seed: int = 0
    """seed of starts and noise"""


def returns(maze: str, controlled: bool, episodes: int, seed: int) -> np.ndarray:
    """Return the returns (episodes,) of the controller, or of random actions, in a task."""
    env = gym.make(f"Maze2D-{maze}-v1", disable_env_checker=True)
    rng = np.random.default_rng(seed)
    found = np.zeros(episodes)
    for episode in range(episodes):
        state, _ = env.reset(seed=seed + episode)
        task = env.unwrapped
        cells = [(int(row), int(column)) for row, column in np.argwhere(task.maze != "#")]
        goal = (int(task.goal[0]), int(task.goal[1]))
        controller = Controller(set(cells), nearest(cells, state[:2]), goal, rng)
        ended = False
        while not ended:
            action = rng.uniform(-1, 1, 2)
            if controlled:
                action = np.clip(controller.act(state[:2], state[2:])[0], -1, 1)
            state, reward, _, ended, _ = env.step(action)
            found[episode] += reward
    return found


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.episodes < 2:
        sys.exit(f"--episodes {args.episodes}: must be at least 2")
    envs = load_script("por").D4RL_ENVS
    rows = []
    for maze in args.maze:
        row = [f"Maze2D-{maze}-v1"]
        for controlled, reference in zip((True, False), envs[f"maze2d-{maze}"][:0:-1], strict=True):
            found = returns(maze, controlled, args.episodes, args.seed)
            error = found.std(ddof=1) / args.episodes**0.5
            row += [f"{found.mean():.1f} ± {error:.1f}", f"{reference:g}"]
        rows.append(row)
    print(markdown_table(["task", "controller", "D4RL's 100", "random", "D4RL's 0"], rows))
    print(f"\nMean return ± its standard error; {args.episodes} episodes each.")


if __name__ == "__main__":
    main()
