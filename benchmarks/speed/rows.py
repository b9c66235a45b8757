"""Random rows with the dimensions of a task. The speed of an update depends on no number in it."""

from typing import NamedTuple

import numpy as np

EPISODE_STEPS = 1_000  # rows between two ends of an episode, as in D4RL's HalfCheetah files


class TaskShape(NamedTuple):
    """Whose settings and dimensions are timed."""

    env: str  # the dataset whose settings the script takes
    obs_dim: int
    act_dim: int
    env_kwargs: dict  # with these, episodes last to the time limit
    discrete: bool = False  # is an action one of act_dim numbers?


UPRIGHT = {"terminate_when_unhealthy": False}
TASKS = {
    "hopper": TaskShape("hopper-medium-v2", 11, 3, UPRIGHT),
    "halfcheetah": TaskShape("halfcheetah-medium-v2", 17, 6, {}),
    "walker2d": TaskShape("walker2d-medium-v2", 17, 6, UPRIGHT),
    "antmaze": TaskShape("antmaze-umaze-v2", 29, 8, {}),
    "cartpole": TaskShape("CartPole-v1", 4, 2, {}, discrete=True),
}


def random_rows(task: str, rows: int) -> dict:
    """Return columns in D4RL's layout."""
    shape = TASKS[task]
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((rows, shape.obs_dim), np.float32)
    if shape.discrete:
        actions = rng.integers(shape.act_dim, size=rows)
    else:
        actions = rng.uniform(-1, 1, (rows, shape.act_dim)).astype(np.float32)
    return {
        "observations": observations,
        "actions": actions,
        "rewards": rng.standard_normal(rows, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": episode_ends(rows),
        "next_observations": np.roll(observations, -1, axis=0),
    }


def episode_ends(rows: int) -> np.ndarray:
    """Return in which rows an episode is cut."""
    ends = np.arange(1, rows + 1) % EPISODE_STEPS == 0
    ends[-1] = True
    return ends
