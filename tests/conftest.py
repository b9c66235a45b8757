"""Fixtures for the tests of the scripts: small true data, separate folders, the command line."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))
pytest.register_assert_rewrite("helpers")  # its assertions show their values, too

# A run of seconds. Evaluation is most of it, so there are few episodes; all counts differ, so that
# a mix-up of two options shows.
SMALL = "--hidden 16 --batch-size 20 --eval-episodes 2 --final-eval-episodes 3".split()
SMALLER = {"por": ["--execute-hidden", "12"]}  # what only one script has


@pytest.fixture(scope="session")
def por():
    """The script as a module."""
    torch.set_num_threads(1)
    gym.logger.min_level = gym.logger.ERROR  # v4 environments are meant
    import por
    return por


def folders(folder: Path) -> dict:
    """Environment variables that keep a test away from the datasets of the person who runs it."""
    return {"MINARI_DATASETS_PATH": str(folder / "minari"),
            "D4RL_DATASET_DIR": str(folder / "d4rl")}


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """Datasets and working folder of the test alone; global settings of PyTorch put back."""
    for name, value in folders(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    precision = torch.get_float32_matmul_precision()
    yield tmp_path
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def main(por, isolated, monkeypatch, capsys):
    """Run the command in this process, without its seconds of imports; returns code, out, err."""
    def call(*args, script=por) -> SimpleNamespace:
        name = script.__name__
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL, *SMALLER.get(name, []),
                                          *(str(arg) for arg in args)])
        capsys.readouterr()
        try:
            code = script.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # Python itself prints it and exits with 1
            code, err = 1, err + code
        return SimpleNamespace(code=code or 0, out=out, err=err)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def start_cli():
    """Start a script with small networks in a folder; returns the process, output piped."""
    def start(*args, folder: Path, script: str = "por") -> subprocess.Popen:
        # a command that names a size itself gets its own: tyro takes the last one
        command = [sys.executable, ROOT / "algorithms" / f"{script}.py", *SMALL,
                   *SMALLER.get(script, []), *args]
        env = {**os.environ, **folders(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        return subprocess.Popen([str(part) for part in command], cwd=folder, env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return start


@pytest.fixture(scope="session")
def run_cli(start_cli):
    """The same to its end."""
    def run(*args, folder: Path, script: str = "por") -> subprocess.CompletedProcess:
        process = start_cli(*args, folder=folder, script=script)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
    return run


def random_episodes(env_id: str, rows: int, cut: int, seed: int) -> dict:
    """Flat arrays, as D4RL stores them, of a random policy; episodes are cut after `cut` steps.

    The last episode ends with the rows, mostly unfinished.
    """
    env = gym.make(env_id, disable_env_checker=True)
    env.action_space.seed(seed)
    names = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations",
             "infos/qpos", "infos/qvel")
    columns, step = {name: [] for name in names}, 0
    obs, _ = env.reset(seed=seed)
    for _ in range(rows):
        data = getattr(env.unwrapped, "data", None)  # MuJoCo's state belongs to obs, not to next
        physics = (data.qpos.copy(), data.qvel.copy()) if data else ()
        action = env.action_space.sample()
        following, reward, terminal, _, _ = env.step(action)
        step += 1
        timeout = step == cut and not terminal
        for name, value in zip(names, (obs, action, reward, terminal, timeout, following,
                                       *physics)):
            columns[name].append(value)
        obs = following
        if terminal or timeout:
            obs, step = env.reset()[0], 0
    types = {"terminals": bool, "timeouts": bool, "infos/qpos": float, "infos/qvel": float}
    return {name: np.array(column, types.get(name, np.float32))
            for name, column in columns.items() if column}


@pytest.fixture(scope="session")
def hopper():
    """Returns `raw(rows=, cut=, seed=)`: flat arrays of Hopper with falls and cuts."""
    return lambda rows=400, cut=20, seed=0: random_episodes("Hopper-v4", rows, cut, seed)


@pytest.fixture(scope="session")
def tiny_hdf5(hopper):
    """Write a file as D4RL's v2 files are: `tiny_hdf5(path, raw, without=[...], key=array)`."""
    def write(path: Path, raw: dict | None = None, without=(), **changed) -> Path:
        raw = {**(raw or hopper()), **changed}
        with h5py.File(path, "w") as file:
            for name, array in raw.items():
                if name not in without:
                    file[name] = array
            file["metadata/algorithm"] = "random"
            file["metadata/iteration"] = 1
        return path
    return write


@pytest.fixture(scope="session")
def tiny_minari(hopper):
    """Write a local dataset as benchmarks/collect.py does: `tiny_minari(name, raw)`."""
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.namespace import create_namespace, list_local_namespaces

    def write(name: str, raw: dict | None = None) -> dict:
        raw, buffers, first = raw or hopper(), [], 0
        for last in np.flatnonzero(raw["terminals"] | raw["timeouts"]) + 1:
            part = slice(first, last)
            final = raw["next_observations"][last - 1:last]
            obs = np.concatenate([raw["observations"][part], final])
            buffers.append(EpisodeBuffer(
                observations=obs, actions=raw["actions"][part], rewards=raw["rewards"][part],
                terminations=raw["terminals"][part], truncations=raw["timeouts"][part], seed=0))
            first = last
        if (namespace := name.rpartition("/")[0]) not in list_local_namespaces():
            create_namespace(namespace)
        with warnings.catch_warnings():  # of what is left out on purpose
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                name, buffers, env=gym.spec("Hopper-v4"), data_format="hdf5", author="SOLO",
                algorithm_name="random", description="test", ref_min_score=-20.0,
                ref_max_score=3000.0)
        return {key: array[:first] for key, array in raw.items()}
    return write


@pytest.fixture(scope="session")
def pendulum():
    """Flat arrays of Pendulum: three observations, one action, no terminal state."""
    return lambda rows=300, cut=50, seed=0: random_episodes("Pendulum-v1", rows, cut, seed)
