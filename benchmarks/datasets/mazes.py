"""Behaviour in mazes: the episodes of D4RL's AntMaze and of Minari's PointMaze, made anew.

AntMaze. D4RL's own goal-reaching ant (d4rl_policies.py) is sent through the maze from waypoint to
waypoint, as in d4rl/locomotion/maze_env.py and scripts/generation/generate_ant_maze_datasets.py:
- Every episode has a start and a goal of its own. Nothing ends where the ant reaches its goal: it
  goes on around it until the episode is cut, after 701 or 1001 transitions.
- In each step the next cell of a shortest path is the waypoint, with new noise of 0 to 1 m; in the
  last cell it is the goal itself. The policy gets the direction only, as a vector of length 10. Its
  action is a sample, plus noise of deviation 0.2, clipped to [-1, 1].
- Rewards and terminals mark the *task's* goal, one point for the whole dataset
  (relabel_antmaze_rewards.py), not the goals to which the ant was sent. They are 1 and true where
  the next position is within 0.5 m of it. So an episode has many terminal rows, or none.

    recipe          starts                          goals
    umaze           the task's                      the task's cell
    *-play          all free cells but the goals    picked by hand (BIG_MAZE, HARDEST_MAZE)
    *-diverse       all free cells                  all free cells

Unlike in D4RL, the last row of an episode is rewarded for its own next state, not for the start of
the next episode. D4RL does not say which goals and starts `diverse` had: its option --multigoal
changes the file's name only, and random goals are what its wiki says. Nor does it say where in its
cell the rewarded point was. Here it is drawn from the seed, as the task draws its goals, but for
umaze, whose point is chosen so that about as many rows are rewarded as in D4RL's file (README.md).

PointMaze. The recipe of Minari's D4RL/pointmaze (Farama-Foundation/minari-dataset-generation-
scripts, scripts/pointmaze): in PointMaze_*-v3 of Gymnasium-Robotics, which draws a new goal when
one is reached, a PD controller (10 and -1) follows the cells of a path, each to 0.1. It steers for
their centres with noise of 0 to 0.2, and for the goal without. Actions get noise of deviation 0.5
and are clipped. The path is the depth-first search's, often no shortest one: the published sets are
labelled QIteration, but their script's default is DFS, and only with it are our episodes as long as
theirs. One trajectory per shard is cut into episodes (truncations) where a goal is reached, with
the only reward. Observations are flattened as by FlattenObservation: achieved goal, desired goal,
observation. Unlike in Minari's sets, an episode's first observation shows the new goal.
`umaze-noisy` is a worse policy, which D4RL does not have: the same with noise of deviation 10, as
large as the controller's force at the distance of a cell.

The command shows how often the ant gets from the task's start to the task's goal:

    python -m benchmarks.datasets.mazes --maze umaze medium large --episodes 30
"""

import contextlib
import importlib
import io
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.envs.registration import EnvSpec

from benchmarks.common import load_script
from benchmarks.datasets.d4rl_policies import policy_file, read_ant
from benchmarks.datasets.policies import LOG_STD_MAX, LOG_STD_MIN, layer

por = load_script("por")
AntMaze = por.AntMaze  # datasets name this class as their environment's
Cell = tuple[int, int]  # row, column

CELL = 4.0  # width of a cell of AntMaze in m


@dataclass(frozen=True)
class AntRecipe:
    """Where the ant starts and to where it is sent."""

    maze: str
    steps: int  # transitions of an episode: D4RL's script counts one more than its limits
    goals: tuple[Cell, ...] | None = None  # None: all free cells
    starts: Literal["task", "free", "others"] = "free"  # others: free cells that are no goals
    rewarded: tuple[float, float] | None = None  # x, y in m; None: drawn from the dataset's seed


BIG_MAZE = ((2, 6), (5, 1), (6, 5))
HARDEST_MAZE = ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9))
ANT_RECIPES = {
    "antmaze-umaze": AntRecipe("umaze", 701, ((3, 1),), "task", (0.0, 9.45)),
    "antmaze-umaze-diverse": AntRecipe("umaze", 1001),
    "antmaze-medium-play": AntRecipe("medium", 1001, BIG_MAZE, "others"),
    "antmaze-medium-diverse": AntRecipe("medium", 1001),
    "antmaze-large-play": AntRecipe("large", 1001, HARDEST_MAZE, "others"),
    "antmaze-large-diverse": AntRecipe("large", 1001),
}


class PointRecipe(NamedTuple):
    """The environment of a PointMaze set, and the noise in it."""

    env_id: str
    maze: str
    steps: int  # time limit of the environment
    goal: Cell  # the only goal in Minari's evaluation maps
    deviation: float = 0.5  # of the actions' noise


POINT_RECIPES = {
    "pointmaze-umaze": PointRecipe("PointMaze_UMaze-v3", "umaze", 300, (1, 1)),
    "pointmaze-umaze-noisy": PointRecipe("PointMaze_UMaze-v3", "umaze", 300, (1, 1), 10),
    "pointmaze-medium": PointRecipe("PointMaze_Medium-v3", "medium", 600, (6, 6)),
    "pointmaze-large": PointRecipe("PointMaze_Large-v3", "large", 800, (7, 9)),
}


def evaluation_spec(recipe_name: str) -> EnvSpec:
    """Return the environment in which policies that learned from the recipe's data are scored.

    AntMaze has D4RL's v2 evaluation goals. PointMaze has, as in Minari's evaluation environment,
    one goal cell and any start; the ball earns 1 per step at the goal and stays.
    """
    if recipe_name in ANT_RECIPES:
        spec = gym.spec(f"AntMaze-{ANT_RECIPES[recipe_name].maze}-v2")
        # Scripts register the class itself, which cannot be written into a file.
        return EnvSpec(
            spec.id,
            f"{__package__}.mazes:AntMaze",
            max_episode_steps=spec.max_episode_steps,
            kwargs=spec.kwargs,
        )
    spec = point_spec(recipe_name)
    row, column = POINT_RECIPES[recipe_name].goal
    spec.kwargs["maze_map"][row][column] = "g"
    spec.kwargs["reset_target"] = False
    return spec


def collect_shard(recipe_name: str, weights: dict | None, seed: list[int], steps: int) -> list:
    """Return whole episodes of the recipe, at least `steps` transitions, as rollout() does.

    The weights are those of D4RL's ant; PointMaze needs none. The seed is the dataset's, followed
    by the shard's number. The dataset's may decide where AntMaze's data are rewarded.
    """
    if recipe_name in POINT_RECIPES:
        return PointShard(recipe_name, seed).collect(steps)
    recipe = ANT_RECIPES[recipe_name]
    policy = AntPolicy(weights)
    goal = recipe.rewarded or rewarded_goal(recipe.maze, seed[0])
    episodes = []
    while recipe.steps * len(episodes) < steps:
        episodes.append(ant_episode(recipe, policy, goal, [*seed, len(episodes)]))
    return episodes


# --------------------------------------------------------------------------------------------------
# AntMaze
# --------------------------------------------------------------------------------------------------


class AntPolicy:
    """D4RL's goal-reaching ant for one observation at a time, in NumPy."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.w0, self.b0 = layer(weights, "fc0")
        self.w1, self.b1 = layer(weights, "fc1")
        w_mean, b_mean = layer(weights, "last_fc")
        w_log_std, b_log_std = layer(weights, "last_fc_log_std")
        self.w2 = np.concatenate([w_mean, w_log_std], -1)
        self.b2 = np.concatenate([b_mean, b_log_std], -1)

    def __call__(self, observation: np.ndarray, direction: np.ndarray, noise: np.ndarray):
        """Return an action (8,) in [-1, 1] from the maze's observation (29,), towards (2,).

        The noise (8,) is standard normal. Position and distance are hidden from the policy.
        """
        goal = 10 * direction / np.linalg.norm(direction)
        h = np.concatenate([observation[2:], goal], dtype=np.float32)
        h = np.maximum(h @ self.w0 + self.b0, 0)
        h = np.maximum(h @ self.w1 + self.b1, 0)
        out = h @ self.w2 + self.b2
        std = np.exp(np.clip(out[8:], LOG_STD_MIN, LOG_STD_MAX))
        return np.tanh(out[:8] + std * noise)


class Journey(AntMaze):
    """AntMaze from and to cells that reset() is told by options, for one episode."""

    def __init__(self, maze: str):
        self.options = {}
        super().__init__(maze)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.options = options or {}
        return super().reset(seed=seed)

    def reset_model(self):
        super().reset_model()
        if "goal_cell" in self.options:
            task_cell = np.argwhere(self.maze == "G")[0]
            self.goal = self.goal + CELL * (np.array(self.options["goal_cell"]) - task_cell)[::-1]
        if "start_cell" in self.options:
            qpos = self.data.qpos.copy()
            qpos[:2] = center_of(self.options["start_cell"]) + self.np_random.uniform(0, 1, 2)
            self.set_state(qpos, self.data.qvel.copy())
        return self.state_vector()


def center_of(cell: Cell) -> np.ndarray:
    """Return the centre (x, y) of a cell."""
    row, column = cell
    return np.array([CELL * column - CELL, CELL * row - CELL])


def cell_of(position) -> Cell:
    """Return the cell for which D4RL's controller takes a position.

    It cuts the fraction off, so a cell reaches from its centre to the next one's (_xy_to_rowcol).
    """
    x, y = max(position[0], 0), max(position[1], 0)
    return int(1 + y / CELL), int(1 + x / CELL)


@cache
def ant_maze(maze: str) -> tuple[Journey, dict]:
    """Return the environment of a maze, which is made once per process, and the routes in it."""
    env = Journey(maze)
    free = {(int(row), int(column)) for row, column in np.argwhere(env.maze != "#")}
    return env, routes(free)


def routes(free: set[Cell]) -> dict[Cell, dict[Cell, Cell]]:
    """Return the shortest paths: [target][cell] is the cell after `cell` on the way to `target`.

    Paths go through free cells, but may begin in a wall next to one. Of several shortest ones it is
    the one that D4RL's search finds (maze_env.py, _get_best_next_rowcol).
    """
    found = {}
    for target in free:
        after = {target: target}
        queue = [target]
        for row, column in queue:  # grows while it is walked through: breadth first
            neighbours = ((row, column - 1), (row, column + 1), (row + 1, column))
            for cell in (*neighbours, (row - 1, column)):
                if cell in after:
                    continue
                after[cell] = (row, column)
                if cell in free:
                    queue.append(cell)
        found[target] = after
    return found


def rewarded_goal(maze: str, seed: int) -> np.ndarray:
    """Return the point (2,) where a dataset of that seed is rewarded: a goal of the task's."""
    env, _ = ant_maze(maze)
    # Not the seed itself, because an evaluation may begin with it and would meet this very goal.
    env.reset(seed=int(np.random.SeedSequence([seed]).generate_state(1)[0]))
    return env.goal


def ant_episode(recipe: AntRecipe, policy: AntPolicy, rewarded, seed: list[int]) -> dict:
    """Return one episode from the seed alone, which is rewarded at the point `rewarded` (2,)."""
    env, paths = ant_maze(recipe.maze)
    sequence = np.random.SeedSequence(seed)
    env_seed = int(sequence.generate_state(1)[0])
    rng = np.random.default_rng(sequence.spawn(1)[0])
    options = choose_cells(recipe, sorted(paths), rng)
    goal_cell = options["goal_cell"]
    noise = rng.standard_normal((recipe.steps, 2, 8), np.float32)
    waypoint_noise = rng.uniform(0, 1, (recipe.steps, 2))

    observations = np.zeros((recipe.steps + 1, 29), np.float32)
    actions = np.zeros((recipe.steps, 8), np.float32)
    observation, _ = env.reset(seed=env_seed, options=options)
    observations[0] = observation
    for t in range(recipe.steps):
        cell = paths[goal_cell][cell_of(observation)]
        waypoint = env.goal if cell == goal_cell else center_of(cell) + waypoint_noise[t]
        action = policy(observation, waypoint - observation[:2], noise[t, 0])
        actions[t] = np.clip(action + 0.2 * noise[t, 1], -1, 1)
        observation, *_ = env.step(actions[t])
        observations[t + 1] = observation
    near = np.linalg.norm(observations[1:, :2] - rewarded, axis=1) <= 0.5
    truncations = np.zeros(recipe.steps, bool)
    truncations[-1] = True
    return {
        "observations": observations,
        "actions": actions,
        "rewards": near.astype(np.float32),
        "terminations": near,
        "truncations": truncations,
        "seed": env_seed,
    }


def choose_cells(recipe: AntRecipe, free: list[Cell], rng: np.random.Generator) -> dict:
    """Draw the goal of an episode and, unless it is the task's, the start, as reset()'s options."""
    goals = recipe.goals or free
    options = {"goal_cell": goals[rng.integers(len(goals))]}
    if recipe.starts == "task":
        return options
    starts = free
    if recipe.starts == "others":
        starts = [cell for cell in free if cell not in goals]
    return options | {"start_cell": starts[rng.integers(len(starts))]}


def arrivals(recipe: AntRecipe, weights: dict, seed: int, episodes: int) -> np.ndarray:
    """Return the steps after which the ant first is within 0.5 m of its goal, 0: never. (N,)"""
    policy = AntPolicy(weights)
    steps = np.zeros(episodes, int)
    for number in range(episodes):
        episode = ant_episode(recipe, policy, np.zeros(2), [seed, number])
        env, _ = ant_maze(recipe.maze)
        near = np.linalg.norm(episode["observations"][1:, :2] - env.goal, axis=1) <= 0.5
        if near.any():
            steps[number] = near.argmax() + 1
    return steps


# --------------------------------------------------------------------------------------------------
# PointMaze
# --------------------------------------------------------------------------------------------------


def point_spec(recipe_name: str) -> EnvSpec:
    """Return Gymnasium-Robotics' environment, which draws a new goal when one is reached.

    It is named by its class, so nobody needs to register it. The mazes are those of the ants.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # it prints a notice about other environments
        importlib.import_module("gymnasium_robotics")
    recipe = POINT_RECIPES[recipe_name]
    rows = por.MAZES[recipe.maze].split()
    return EnvSpec(
        recipe.env_id,
        "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv",
        max_episode_steps=recipe.steps,
        kwargs={
            "maze_map": [[int(character == "#") for character in row] for row in rows],
            "reward_type": "sparse",
            "continuing_task": True,
            "reset_target": True,
        },
    )


@cache
def point_maze(recipe_name: str) -> tuple[gym.Env, set[Cell]]:
    """Return the environment without its time limit, and its free cells."""
    env = gym.make(point_spec(recipe_name), disable_env_checker=True).unwrapped
    walls = np.array(env.maze.maze_map) == 1
    return env, {(int(row), int(column)) for row, column in np.argwhere(~walls)}


def depth_first(free: set[Cell], start: Cell, goal: Cell) -> dict[Cell, Cell]:
    """Return the cell after each cell of a path from start to goal (maze_solver.py, DFS)."""
    before = {start: start}
    stack = [start]
    while True:
        cell = stack.pop()
        if cell == goal:
            break
        row, column = cell
        neighbours = ((row, column + 1), (row, column - 1), (row - 1, column), (row + 1, column))
        for neighbour in neighbours:
            if neighbour in free and neighbour not in before:
                before[neighbour] = cell
                stack.append(neighbour)
    after = {goal: goal}
    while cell != start:
        after[before[cell]] = cell
        cell = before[cell]
    return after


class PointShard:
    """One trajectory of a PointMaze recipe, cut into episodes where the ball reaches a goal."""

    def __init__(self, recipe_name: str, seed: list[int]):
        sequence = np.random.SeedSequence(seed)
        self.env, self.free = point_maze(recipe_name)
        self.deviation = POINT_RECIPES[recipe_name].deviation
        self.env_seed = int(sequence.generate_state(1)[0])
        self.rng = np.random.default_rng(sequence.spawn(1)[0])
        observation, _ = self.env.reset(seed=self.env_seed)
        self.state = observation["observation"]  # position and velocity, (4,)

    def collect(self, steps: int) -> list[dict]:
        """Return whole episodes, at least `steps` transitions."""
        episodes = []
        total = 0
        while total < steps:
            episodes.append(self.episode())
            total += len(episodes[-1]["rewards"])
        return episodes

    def episode(self) -> dict:
        """Return the transitions until the goal is reached."""
        goal = self.env.goal.copy()
        goal_cell = self.cell_of(goal)
        cell = self.cell_of(self.state[:2])
        after = depth_first(self.free, cell, goal_cell)
        cell = after[cell]
        waypoint = self.waypoint(cell, goal_cell, goal)
        rows = [self.row(goal)]
        actions = []
        reached = False
        while not reached:
            distance = np.linalg.norm(waypoint - self.state[:2])
            if cell != goal_cell and distance <= 0.1:
                cell = after[cell]
                waypoint = self.waypoint(cell, goal_cell, goal)
            noise = self.deviation * self.rng.standard_normal(2)
            action = 10 * (waypoint - self.state[:2]) - self.state[2:] + noise
            actions.append(np.clip(action, -1, 1).astype(np.float32))
            observation, _, _, _, info = self.env.step(actions[-1])
            self.state = observation["observation"]
            reached = info["success"]
            rows.append(self.row(goal))
        last = np.arange(len(actions)) == len(actions) - 1
        return {
            "observations": np.array(rows, np.float32),
            "actions": np.array(actions),
            "rewards": last.astype(np.float32),
            "terminations": np.zeros(len(actions), bool),
            "truncations": last,
            "seed": self.env_seed,
        }

    def row(self, goal: np.ndarray) -> np.ndarray:
        """Return the observation of the present state."""
        return np.concatenate([self.state[:2], goal, self.state])

    def cell_of(self, position: np.ndarray) -> Cell:
        row, column = self.env.maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def waypoint(self, cell: Cell, goal_cell: Cell, goal: np.ndarray) -> np.ndarray:
        """Return where to steer for in a cell: the goal, or a point near the centre."""
        if cell == goal_cell:
            return goal
        return self.env.maze.cell_rowcol_to_xy(np.array(cell)) - self.rng.uniform(0, 0.2, 2)


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


@dataclass
class Args:
    maze: tuple[Literal["umaze", "medium", "large"], ...] = ("umaze", "medium", "large")
    """mazes to walk through"""
    episodes: int = 30
    """episodes in each"""
    seed: int = 0
    """seed of the noise"""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    weights = read_ant(policy_file("ant_hierarch_pol.pkl"))
    for maze in args.maze:
        env, _ = ant_maze(maze)
        row, column = np.argwhere(env.maze == "G")[0]
        steps = ANT_RECIPES["antmaze-umaze" if maze == "umaze" else f"antmaze-{maze}-play"].steps
        recipe = AntRecipe(maze, steps, ((int(row), int(column)),), "task")
        found = arrivals(recipe, weights, args.seed, args.episodes)
        line = f"{maze}: {(found > 0).sum()} of {len(found)} episodes reach the goal"
        if found.any():
            line += f", after {found[found > 0].mean():.0f} steps on average"
        print(line)


if __name__ == "__main__":
    main()
