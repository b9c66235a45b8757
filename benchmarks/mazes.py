"""Behaviour in mazes: the episodes of D4RL's AntMaze and of Minari's PointMaze, made anew.

AntMaze. D4RL's own goal-reaching ant (d4rl_policies.py) is sent through the maze from waypoint to
waypoint, as in d4rl/locomotion/maze_env.py and scripts/generation/generate_ant_maze_datasets.py:
- Every episode has a start and a goal of its own. Nothing ends where the ant reaches its goal: it
  goes on around it until the episode is cut, after 701 or 1001 transitions.
- In each step the next cell of a shortest path is the waypoint, with new noise of 0 to 1 m; in the
  last cell it is the goal itself. The policy gets the direction only, as a vector of length 10. Its
  action is a sample, plus noise of deviation 0.2, clipped to [-1, 1].
- Rewards and terminals say where the *task's* goal is reached, one point for the whole dataset
  (relabel_antmaze_rewards.py), not the goals the ant was sent to: 1 and true where the next
  position is within 0.5 m of it. So an episode has many terminal rows, or none.

    recipe          starts                          goals
    umaze           the task's                      the task's cell
    *-play          all free cells but the goals    picked by hand (BIG_MAZE, HARDEST_MAZE)
    *-diverse       all free cells                  all free cells

Unlike D4RL the last row of an episode is rewarded for its own next state, not for the start of the
next episode. v0's timeouts, out of step with the ends of the episodes, were corrected in v2.

What D4RL does not say: which goals and starts `diverse` had (its option --multigoal changes the
file's name only; random goals are what its wiki says), and where in its cell the rewarded point
was (here drawn from the seed, as the task draws its goals; but for umaze see below). What is known
of its v2 files is the number of rows with a terminal or a timeout, plus the unfinished rest
(TensorFlow Datasets' catalogue): umaze 10,154, umaze-diverse 1,036, medium-play 10,768,
medium-diverse 2,959, large-play 13,517, large-diverse 7,189. Episodes of 701 transitions in umaze
and 1001 elsewhere, which fit the sizes given there, are 1,426 and 999 timeouts. That leaves 8,727,
36, 9,768, 1,959, 12,517 and 6,189 rewarded rows in a million; ours depend on the seed, as the ant
lingers about its goals. In umaze, where every ant has the same goal cell, that would be 140,000 for
most points. Only close to one corner of where the task draws its goals ours come near D4RL's number
(10,066 in the million), so the point of umaze is set there, whatever the seed.

PointMaze. The recipe of Minari's D4RL/pointmaze (Farama-Foundation/minari-dataset-generation-
scripts, scripts/pointmaze): in PointMaze_*-v3 of Gymnasium-Robotics, which draws a new goal when
one is reached, a PD controller (10 and -1) follows the cells of a path, each to 0.1, their centres
with noise of 0 to 0.2, the goal without; actions get noise of deviation 0.5 and are clipped. The
path is the depth-first search's, often no shortest one: the published sets are labelled QIteration,
but their script's default is DFS, and only with it our episodes are as long as theirs. One
trajectory per shard is cut into episodes (truncations) where a goal is reached, with the only
reward. Observations are flattened as by FlattenObservation: achieved goal, desired goal,
observation. Unlike Minari's, an episode's first observation shows the new goal, not the last one.
`umaze-noisy` is a worse policy of our own: the same with noise of deviation 10, as large as the
controller's force at the distance of a cell; it takes three times as long to a goal.

How often the ant gets from the task's start to the task's goal (D4RL's policy is needed):

    python benchmarks/mazes.py --maze umaze medium large --episodes 30
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.envs.registration import EnvSpec

from d4rl_policies import policy_file, read_ant

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))
from por import MAZES, AntMaze  # noqa: E402


@dataclass(frozen=True)
class AntRecipe:
    """Where the ant starts and is sent to; None: all free cells."""

    maze: str
    steps: int
    """transitions of an episode"""
    goals: tuple | None = None
    """cells (row, column) of the map"""
    starts: str = "free"
    """`task`: where the task starts; `free`: any free cell; `others`: any that is no goal"""
    rewarded: tuple | None = None
    """the point (x, y) of the reward, in m; None: drawn from the dataset's seed"""


# D4RL's limits are 700 and 1000; its script counts one transition more.
ANT_RECIPES = {
    "antmaze-umaze": AntRecipe("umaze", 701, ((3, 1),), "task", (0.0, 9.45)),
    "antmaze-umaze-diverse": AntRecipe("umaze", 1001),
    "antmaze-medium-play": AntRecipe("medium", 1001, ((2, 6), (5, 1), (6, 5)), "others"),
    "antmaze-medium-diverse": AntRecipe("medium", 1001),
    "antmaze-large-play": AntRecipe("large", 1001, (
        (1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)), "others"),
    "antmaze-large-diverse": AntRecipe("large", 1001),
}
# Environment, its time limit, and the cell of the only goal in Minari's evaluation maps
POINT_RECIPES = {"pointmaze-umaze": ("PointMaze_UMaze-v3", 300, (1, 1)),
                 "pointmaze-umaze-noisy": ("PointMaze_UMaze-v3", 300, (1, 1)),
                 "pointmaze-medium": ("PointMaze_Medium-v3", 600, (6, 6)),
                 "pointmaze-large": ("PointMaze_Large-v3", 800, (7, 9))}
RECIPES = [*ANT_RECIPES, *POINT_RECIPES]


def evaluation_spec(recipe_name: str) -> EnvSpec:
    """The environment that scores policies trained on the recipe's data.

    AntMaze: the registered one, with D4RL's v2 evaluation goals. PointMaze: as Minari's evaluation
    environment, one goal cell, any start; the ball earns 1 per step at the goal and stays.
    """
    if recipe_name in ANT_RECIPES:
        return gym.spec(f"AntMaze-{ANT_RECIPES[recipe_name].maze}-v2")
    spec = point_spec(recipe_name)
    row, column = POINT_RECIPES[recipe_name][-1]
    spec.kwargs["maze_map"][row][column] = "g"
    spec.kwargs["reset_target"] = False
    return spec


def collect_shard(recipe_name: str, weights: dict, seed: list[int], steps: int) -> list[dict]:
    """Whole episodes of the recipe, at least `steps` transitions, drawn from `seed` alone.

    weights: of D4RL's ant (d4rl_policies.read_ant); PointMaze needs none.
    seed: the dataset's seed, then the shard's number; the first decides where AntMaze's data are
    rewarded, unless the recipe does. Returns dicts in order: observations (T+1, obs_dim), actions
    (T, act_dim), rewards (T,), all float32; terminations, truncations (T,) bool; seed, the integer
    given to `env.reset`.
    """
    if recipe_name in ANT_RECIPES:
        recipe, episodes, total = ANT_RECIPES[recipe_name], [], 0
        policy, goal = AntPolicy(weights), recipe.rewarded or rewarded_goal(recipe.maze, seed[0])
        while total < steps:
            episodes.append(ant_episode(recipe, policy, goal, [*seed, len(episodes)]))
            total += recipe.steps
        return episodes
    return point_episodes(recipe_name, seed, steps)


def routes(free: set[tuple]) -> dict[tuple, dict[tuple, tuple]]:
    """Shortest paths: routes(free)[target][cell] is the cell after `cell` on the way to `target`.

    Paths go through free cells but may begin in a wall next to one. Of several shortest ones it is
    the one that D4RL's search finds (maze_env.py, _get_best_next_rowcol).
    """
    found = {}
    for target in free:
        after, queue = {target: target}, [target]
        for row, column in queue:  # grows as it is walked through: breadth first
            for cell in ((row, column - 1), (row, column + 1), (row + 1, column),
                         (row - 1, column)):
                if cell not in after:
                    after[cell] = row, column
                    if cell in free:
                        queue.append(cell)
        found[target] = after
    return found


# ---------------------------------------------------------------------------------------------
# AntMaze
# ---------------------------------------------------------------------------------------------


class AntPolicy:
    """D4RL's goal-reaching ant for one observation at a time, in NumPy (see d4rl_policies.py)."""

    def __init__(self, weights: dict[str, np.ndarray]):
        get = lambda layer: (np.ascontiguousarray(weights[f"{layer}.weight"].T),
                             weights[f"{layer}.bias"])
        (self.w0, self.b0), (self.w1, self.b1) = get("fc0"), get("fc1")
        heads = get("last_fc"), get("last_fc_log_std")
        self.w2, self.b2 = (np.concatenate(pair, -1) for pair in zip(*heads))

    def __call__(self, observation: np.ndarray, direction: np.ndarray, noise: np.ndarray):
        """Action (8,) in [-1, 1] towards `direction` (2,) from the maze's observation (29,).

        noise: (8,) standard normal. Position is hidden from the policy, distance too.
        """
        goal = 10 * direction / np.linalg.norm(direction)
        h = np.concatenate([observation[2:], goal], dtype=np.float32)
        h = np.maximum(h @ self.w0 + self.b0, 0)
        h = np.maximum(h @ self.w1 + self.b1, 0)
        out = h @ self.w2 + self.b2
        std = np.exp(np.clip(out[8:], -20, 2))  # bounds of rlkit's TanhGaussianPolicy
        return np.tanh(out[:8] + std * noise)


class Journey(AntMaze):
    """AntMaze from and to chosen cells: options "reset_cell" and "goal_cell", (row, column)."""

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.options = options or {}
        return super().reset(seed=seed)

    def reset_model(self):
        super().reset_model()
        if "goal_cell" in self.options:
            task, = np.argwhere(self.maze == "G")
            self.goal = self.goal + 4.0 * (np.array(self.options["goal_cell"]) - task)[::-1]
        if "reset_cell" in self.options:
            qpos, centre = self.data.qpos.copy(), 4.0 * np.array(self.options["reset_cell"]) - 4
            qpos[:2] = centre[::-1] + self.np_random.uniform(0, 1, 2)
            self.set_state(qpos, self.data.qvel.copy())
        return self.state_vector()


@cache
def ant_maze(maze: str) -> tuple[Journey, dict]:
    """The environment of that maze, made once per process, and the routes in it."""
    env = Journey(maze)
    free = {(i, j) for i, row in enumerate(env.maze) for j, c in enumerate(row) if c != "#"}
    return env, routes(free)


def rewarded_goal(maze: str, seed: int) -> np.ndarray:
    """The point (2,) where a dataset of that seed is rewarded: a goal as the task draws them."""
    env, _ = ant_maze(maze)
    # not the seed itself: an evaluation may begin with it, and would meet this very goal
    env.reset(seed=int(np.random.SeedSequence([seed]).generate_state(1)[0]))
    return env.goal


def cell_of(xy) -> tuple[int, int]:
    """The cell (row, column) that D4RL's controller takes a position for.

    It cuts the fraction off, so cells reach from their centre to the next one's (_xy_to_rowcol).
    """
    return int(1 + max(xy[1], 0) / 4), int(1 + max(xy[0], 0) / 4)


def ant_episode(recipe: AntRecipe, policy: AntPolicy, rewarded: np.ndarray,
                seed: list[int]) -> dict:
    """One episode from the seed alone, its reward at the point `rewarded` (2,)."""
    env, paths = ant_maze(recipe.maze)
    sequence = np.random.SeedSequence(seed)
    env_seed = int(sequence.generate_state(1)[0])
    rng = np.random.default_rng(sequence.spawn(1)[0])
    goals = recipe.goals or sorted(paths)
    options = {"goal_cell": goals[rng.integers(len(goals))]}
    if recipe.starts != "task":
        starts = [c for c in sorted(paths) if recipe.starts == "free" or c not in goals]
        options["reset_cell"] = starts[rng.integers(len(starts))]
    observations = np.zeros((recipe.steps + 1, 29), np.float32)
    actions = np.zeros((recipe.steps, 8), np.float32)
    noise = rng.standard_normal((recipe.steps, 2, 8), np.float32)
    shift = rng.uniform(0, 1, (recipe.steps, 2))
    observation, _ = env.reset(seed=env_seed, options=options)
    observations[0], goal_cell = observation, options["goal_cell"]
    for t in range(recipe.steps):
        cell = paths[goal_cell][cell_of(observation)]
        waypoint = env.goal if cell == goal_cell else [4 * cell[1] - 4, 4 * cell[0] - 4] + shift[t]
        action = policy(observation, waypoint - observation[:2], noise[t, 0])
        actions[t] = np.clip(action + 0.2 * noise[t, 1], -1, 1)
        observation = env.step(actions[t])[0]
        observations[t + 1] = observation
    terminations = np.linalg.norm(observations[1:, :2] - rewarded, axis=1) <= 0.5
    truncations = np.zeros(recipe.steps, bool)
    truncations[-1] = True
    return dict(observations=observations, actions=actions, terminations=terminations,
                truncations=truncations, rewards=terminations.astype(np.float32), seed=env_seed)


def arrivals(recipe: AntRecipe, weights: dict, seed: int, episodes: int) -> np.ndarray:
    """Transitions until the ant first is within 0.5 m of where it was sent; 0: never. (episodes,)

    weights: of D4RL's ant; seed and number of an episode decide its noise.
    """
    policy, found = AntPolicy(weights), []
    for number in range(episodes):
        episode = ant_episode(recipe, policy, np.zeros(2), [seed, number])
        goal = ant_maze(recipe.maze)[0].goal
        near = np.linalg.norm(episode["observations"][1:, :2] - goal, axis=1) <= 0.5
        found.append(near.argmax() + 1 if near.any() else 0)
    return np.array(found)


# ---------------------------------------------------------------------------------------------
# PointMaze
# ---------------------------------------------------------------------------------------------


def point_spec(recipe_name: str) -> EnvSpec:
    """Gymnasium-Robotics' environment, which draws a new goal when one is reached.

    It is named by its class, so nobody needs to register it. The mazes are those of the ants.
    """
    env_id, steps, _ = POINT_RECIPES[recipe_name]
    rows = MAZES[recipe_name.split("-")[1]][0].split()
    return EnvSpec(env_id, "gymnasium_robotics.envs.maze.point_maze:PointMazeEnv",
                   max_episode_steps=steps, kwargs={
                       "maze_map": [[int(c == "#") for c in row] for row in rows],
                       "reward_type": "sparse", "continuing_task": True, "reset_target": True})


@cache
def point_maze(recipe_name: str) -> tuple[gym.Env, set]:
    """The environment, without its time limit, and its free cells."""
    env = gym.make(point_spec(recipe_name), disable_env_checker=True).unwrapped
    rows = enumerate(env.maze.maze_map)
    return env, {(i, j) for i, row in rows for j, c in enumerate(row) if c != 1}


def depth_first(free: set[tuple], start: tuple, goal: tuple) -> dict[tuple, tuple]:
    """The cell after each cell of a path from start to goal (maze_solver.py, DFS)."""
    before, stack = {start: start}, [start]
    while (cell := stack.pop()) != goal:
        row, column = cell
        for following in ((row, column + 1), (row, column - 1), (row - 1, column),
                          (row + 1, column)):
            if following in free and following not in before:
                before[following] = cell
                stack.append(following)
    after = {goal: goal}
    while cell != start:
        after[before[cell]] = cell
        cell = before[cell]
    return after


def point_episodes(recipe_name: str, seed: list[int], steps: int) -> list[dict]:
    """One trajectory of the recipe, cut into episodes where the ball reaches a goal."""
    env, free = point_maze(recipe_name)
    sequence = np.random.SeedSequence(seed)
    env_seed = int(sequence.generate_state(1)[0])
    rng = np.random.default_rng(sequence.spawn(1)[0])
    episodes, total, state = [], 0, env.reset(seed=env_seed)[0]["observation"]
    deviation = 10 if recipe_name.endswith("-noisy") else 0.5
    where = lambda xy: tuple(int(i) for i in env.maze.cell_xy_to_rowcol(xy))

    def place(cell: tuple) -> np.ndarray:
        """Where to steer for in that cell: the goal, or near the centre."""
        if cell == goal_cell:
            return goal
        return env.maze.cell_rowcol_to_xy(np.array(cell)) - rng.uniform(0, 0.2, 2)

    while total < steps:
        goal = env.goal.copy()
        goal_cell = where(goal)
        after = depth_first(free, here := where(state[:2]), goal_cell)
        cell = after[here]
        waypoint, reached, actions = place(cell), False, []
        rows = [np.concatenate([state[:2], goal, state])]
        while not reached:
            if cell != goal_cell and np.linalg.norm(waypoint - state[:2]) <= 0.1:
                cell = after[cell]
                waypoint = place(cell)
            noise = deviation * rng.standard_normal(2)
            action = 10 * (waypoint - state[:2]) - state[2:] + noise
            actions.append(np.clip(action, -1, 1).astype(np.float32))
            observation, _, _, _, info = env.step(actions[-1])
            state, reached = observation["observation"], info["success"]
            rows.append(np.concatenate([state[:2], goal, state]))
        last = np.arange(len(actions)) == len(actions) - 1
        episodes.append(dict(
            observations=np.array(rows, np.float32), actions=np.array(actions),
            rewards=last.astype(np.float32), terminations=np.zeros(len(actions), bool),
            truncations=last, seed=env_seed))
        total += len(actions)
    return episodes


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


@dataclass
class Args:
    maze: tuple[Literal["umaze", "medium", "large"], ...] = ("umaze", "medium", "large")
    episodes: int = 30
    seed: int = 0


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    weights = read_ant(policy_file("ant_hierarch_pol.pkl"))
    for maze in args.maze:
        goal = tuple(int(i) for i in np.argwhere(ant_maze(maze)[0].maze == "G")[0])
        steps = 701 if maze == "umaze" else 1001
        found = arrivals(AntRecipe(maze, steps, (goal,), "task"), weights, args.seed, args.episodes)
        mean = f", after {found[found > 0].mean():.0f} steps on average" if found.any() else ""
        print(f"{maze}: {(found > 0).sum()} of {len(found)} episodes reach the goal{mean}")


if __name__ == "__main__":
    main()
