"""Fixtures of all tests: small datasets, folders of their own, and the scripts' command lines."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from tests.helpers import call_main, dataset_folders, load_script, small_options

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # the numbers must not depend on the machine's cores
gym.logger.min_level = gym.logger.ERROR  # the old v4 environments are meant


def pytest_collection_modifyitems(items) -> None:
    """Say which tests stay in one process: those of a file, as they share its fixtures.

    Of test_every_script.py, which is as long as all others, those of one script stay together.
    """
    for item in items:
        group = item.path.stem
        if group == "test_every_script" and hasattr(item, "callspec"):
            known = item.callspec.params
            group += (known.get("case") or known["script"]).split()[0]
        item.add_marker(pytest.mark.xdist_group(group))
    # The longest test begins first, or it would run alone at the end.
    items.sort(key=lambda item: item.path.stem != "test_pages")


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Let a test's random numbers be the same alone and after any other tests."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def por() -> ModuleType:
    """Return the model script."""
    return load_script("por")


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """Give a test its own datasets and working folder. Put PyTorch's settings back after it."""
    for name, value in dataset_folders(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    precision = torch.get_float32_matmul_precision()
    yield tmp_path
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


@pytest.fixture
def main(isolated):
    """Return `main(*words, script="por")`: the command in this process, in the test's folder.

    It adds the options of a small run, unless `small=False`, and returns code, out and err.
    """

    def call(*words, script: str | ModuleType = "por", small: bool = True) -> SimpleNamespace:
        name = load_script(script).__name__
        options = small_options(name) if small else []
        return call_main(script, [*options, *words], isolated)

    return call


@pytest.fixture(scope="session")
def start_cli():
    """Return `start_cli(*words, folder=, script="por")`: a script's process, output piped."""

    def start(*words, folder: Path, script: str = "por", small: bool = True) -> subprocess.Popen:
        options = small_options(script) if small else []
        path = Path(script) if script.endswith(".py") else ROOT / "algorithms" / f"{script}.py"
        command = [sys.executable, path, *options, *words]
        changed = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=os.environ | dataset_folders(folder) | changed,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


@pytest.fixture(scope="session")
def run_cli(start_cli):
    """Return `run_cli(*words, folder=, script="por")`, which runs a script to its end."""

    def run(*words, **where) -> subprocess.CompletedProcess:
        process = start_cli(*words, **where)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


def random_episodes(env_id: str, rows: int, cut: int, seed: int) -> dict:
    """Return the flat arrays, as D4RL stores them, of a policy that acts at random.

    Episodes are cut after `cut` steps. The last one ends with the rows, mostly unfinished.
    """
    env = gym.make(env_id, disable_env_checker=True)
    env.action_space.seed(seed)
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    columns = {name: [] for name in (*names, "infos/qpos", "infos/qvel")}
    obs, _ = env.reset(seed=seed)
    step = 0
    for _ in range(rows):
        if hasattr(env.unwrapped, "data"):
            # MuJoCo's state belongs to the observation, not to the next one.
            columns["infos/qpos"].append(env.unwrapped.data.qpos.copy())
            columns["infos/qvel"].append(env.unwrapped.data.qvel.copy())
        action = env.action_space.sample()
        next_obs, reward, terminal, _, _ = env.step(action)
        step += 1
        timeout = step == cut and not terminal
        values = (obs, action, reward, terminal, timeout, next_obs)
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
        obs = next_obs
        if terminal or timeout:
            obs, _ = env.reset()
            step = 0
    types = {"terminals": bool, "timeouts": bool, "infos/qpos": float, "infos/qvel": float}
    return {
        name: np.array(column, types.get(name, np.float32))
        for name, column in columns.items()
        if column
    }


@pytest.fixture(scope="session")
def hopper():
    """Return `hopper(rows=, cut=, seed=)`: flat arrays of Hopper with falls and cuts."""

    def make(rows: int = 400, cut: int = 20, seed: int = 0) -> dict:
        return random_episodes("Hopper-v4", rows, cut, seed)

    return make


@pytest.fixture(scope="session")
def pendulum():
    """Return `pendulum(rows=, cut=, seed=)`: 3 observations, 1 action, no terminal state."""

    def make(rows: int = 300, cut: int = 50, seed: int = 0) -> dict:
        return random_episodes("Pendulum-v1", rows, cut, seed)

    return make


@pytest.fixture(scope="session")
def cartpole():
    """Return `cartpole(rows=, cut=, seed=)`: 4 observations, two discrete actions, falls, cuts."""

    def make(rows: int = 400, cut: int = 20, seed: int = 0) -> dict:
        return random_episodes("CartPole-v1", rows, cut, seed)

    return make


@pytest.fixture(scope="session")
def tiny_hdf5(hopper):
    """Return `tiny_hdf5(path, raw, without=[...], key=array)`: writes a file as D4RL's v2 are."""

    def write(path: Path, raw: dict | None = None, without=(), **changed) -> Path:
        arrays = (raw or hopper()) | changed
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                if name not in without:
                    file[name] = array
            file["metadata/algorithm"] = "random"
            file["metadata/iteration"] = 1
        return path

    return write


@pytest.fixture(scope="session")
def tiny_minari(hopper):
    """Return `tiny_minari(name, raw, env_id)`, which writes a local dataset.

    It returns the rows of complete episodes. The test must be `isolated`.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.namespace import create_namespace, list_local_namespaces

    def write(name: str, raw: dict | None = None, env_id: str = "Hopper-v4") -> dict:
        raw = raw or hopper()
        buffers = []
        first = 0
        for last in np.flatnonzero(raw["terminals"] | raw["timeouts"]) + 1:
            rows = slice(first, last)
            final = raw["next_observations"][last - 1 : last]
            buffer = EpisodeBuffer(
                observations=np.concatenate([raw["observations"][rows], final]),
                actions=raw["actions"][rows],
                rewards=raw["rewards"][rows],
                terminations=raw["terminals"][rows],
                truncations=raw["timeouts"][rows],
                seed=0,
            )
            buffers.append(buffer)
            first = last
        namespace = name.rpartition("/")[0]
        if namespace and namespace not in list_local_namespaces():
            create_namespace(namespace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is left out on purpose
            minari.create_dataset_from_buffers(
                name,
                buffers,
                env=gym.spec(env_id),
                data_format="hdf5",
                author="SOLO",
                algorithm_name="random",
                description="test",
                ref_min_score=-20.0,
                ref_max_score=3000.0,
            )
        return {key: array[:first] for key, array in raw.items()}

    return write


@pytest.fixture
def short_env(monkeypatch):
    """Return `short_env(id)`: the id of that environment with a time limit of 25 steps."""

    def register(env_id: str) -> str:
        name = env_id.replace("-v", "Short-v")
        spec = gym.spec(env_id)
        gym.register(name, spec.entry_point, max_episode_steps=25, kwargs=spec.kwargs)
        registered = gym.registry.pop(name)
        monkeypatch.setitem(gym.registry, name, registered)
        return name

    return register
