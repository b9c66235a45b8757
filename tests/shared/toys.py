"""A small environment and small true data for the tests of what the scripts share."""

import json
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces

import por

# Words of a command that trains for a moment.
SMALL = {
    "--env": "Point-v0",
    "--dataset-file": "my.hdf5",
    "--run-dir": "run",
    "--hidden": 8,
    "--execute-hidden": 8,
    "--batch-size": 8,
    "--num-updates": 4,
    "--eval-every": 2,
    "--eval-episodes": 1,
    "--final-eval-episodes": 1,
    "--device": "cpu",
    "--guide": "weighted",
}


class Point(gym.Env):
    """A point on a plane: the action is its velocity, the reward falls with the distance from 0."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.position, {}

    def step(self, action):
        self.position = self.position + np.float32(0.1) * np.append(action, 0).astype(np.float32)
        return self.position, -float(np.abs(self.position).sum()), False, False, {}


def register(env_id: str, env_class, max_episode_steps: int | None = 20, **more) -> None:
    """Register an environment, again if it is known."""
    gym.registry.pop(env_id, None)
    gym.register(env_id, env_class, max_episode_steps=max_episode_steps, **more)


register("Point-v0", Point)


def isolate(folder: Path, monkeypatch) -> None:
    """Keep a test away from the datasets and runs of the person who runs it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder / "d4rl"))
    monkeypatch.chdir(folder)


def walks(episodes: int = 250, steps: int = 20, seed: int = 0) -> dict:
    """Return the rows of random walks as D4RL stores them. Every fifth one ends in a terminal."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-1, 1, (episodes, steps, 2)).astype(np.float32)
    starts = rng.uniform(-1, 1, (episodes, 1, 3)).astype(np.float32)
    paths = np.pad(np.cumsum(moves, axis=1) / 10, ((0, 0), (1, 0), (0, 1))) + starts
    last = np.arange(steps) == steps - 1
    falls = np.arange(episodes) % 5 == 0
    rows = {
        "observations": paths[:, :-1],
        "actions": moves,
        "rewards": rng.normal(size=(episodes, steps)).astype(np.float32),
        "terminals": falls[:, None] & last,
        "timeouts": ~falls[:, None] & last,
        "next_observations": paths[:, 1:],
    }
    return {
        key: column.reshape(episodes * steps, *column.shape[2:]) for key, column in rows.items()
    }


def select(rows: dict, which, *without: str) -> dict:
    """Return these rows, without some of the columns."""
    return {key: column[which] for key, column in rows.items() if key not in without}


def write_hdf5(path, rows: dict) -> Path:
    """Write a file in D4RL's layout."""
    with h5py.File(path, "w") as file:
        for key, column in rows.items():
            file[key] = column
    return Path(path)


def episodes_of(rows: dict) -> list[dict]:
    """Cut rows into the keyword arguments of Minari's EpisodeBuffer."""
    ends = np.flatnonzero(rows["terminals"] | rows["timeouts"]) + 1
    episodes = []
    for first, last in zip([0, *ends[:-1]], ends, strict=True):
        final = rows["next_observations"][last - 1 : last]
        episodes.append(
            {
                "observations": np.concatenate([rows["observations"][first:last], final]),
                "actions": rows["actions"][first:last],
                "rewards": rows["rewards"][first:last],
                "terminations": rows["terminals"][first:last],
                "truncations": rows["timeouts"][first:last],
            }
        )
    return episodes


def recorded(env_id: str, **more) -> EnvSpec:
    """Return what a dataset remembers of an environment. Its code is nowhere to be found."""
    return EnvSpec(env_id, entry_point="nowhere:Class", max_episode_steps=20, **more)


def write_minari(
    name: str,
    episodes: list[dict],
    env: EnvSpec | None = None,
    observation_space=Point.observation_space,
    action_space=Point.action_space,
    **metadata,
) -> Path:
    """Write a local Minari dataset, of Point-v0 unless a spec is given. Return its folder."""
    namespace = name.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    with warnings.catch_warnings():  # of metadata that is left out
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            name,
            [EpisodeBuffer(**episode) for episode in episodes],
            observation_space=observation_space,
            action_space=action_space,
            data_format="hdf5",
        )
    folder = minari.storage.get_dataset_path(name)
    path = folder / "data/metadata.json"
    metadata = {"env_spec": (env or recorded("Point-v0")).to_json()} | metadata
    path.write_text(json.dumps(json.loads(path.read_text()) | metadata))
    return folder


def load(rows: dict, env: str = "Point-v0"):
    """Load rows as the script loads a user's file."""
    path = write_hdf5("my.hdf5", rows)
    return por.load_dataset(por.Args(env=env, dataset_file=str(path)))


def load_minari(name: str):
    """Load a Minari dataset as the script does."""
    return por.load_dataset(por.Args(env=name))


def command(monkeypatch, *words) -> None:
    """Run the script's command in this process."""
    monkeypatch.setattr(sys, "argv", ["por.py", *map(str, words)])
    por.main()


def train(monkeypatch, **options) -> None:
    """Train on the walks in my.hdf5 for a moment, unless an option says otherwise."""
    words = dict(SMALL)
    for name, value in options.items():
        words[f"--{name.replace('_', '-')}"] = value
    command(monkeypatch, *[word for option in words.items() for word in option])


def refusal(function, *args, **kwargs) -> str:
    """Return the single line with which a call ends the program."""
    try:
        function(*args, **kwargs)
    except SystemExit as end:
        assert isinstance(end.code, str), end.code
        assert "\n" not in end.code.strip(), end.code
        assert len(end.code) < 700, end.code
        return end.code
    raise AssertionError("it was accepted")
