"""The check of the physics finds what is wrong with a file, and nothing where all is right."""

import shutil
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest

from benchmarks.datasets import d4rl_policies
from benchmarks.datasets.measure import Score, measure
from benchmarks.datasets.policies import SacPolicy
from benchmarks.studies.physics import check_physics


@pytest.fixture(scope="module")
def d4rl_form(tmp_path_factory, hopper, tiny_hdf5) -> Path:
    """A file of random steps of Hopper as D4RL's are, with states in float32."""
    raw = hopper(400)
    states = {key: raw[key].astype(np.float32) for key in ("infos/qpos", "infos/qvel")}
    path = tmp_path_factory.mktemp("d4rl") / "hopper_random-v2.hdf5"
    return tiny_hdf5(path, raw, without=["next_observations"], **states)


def test_replay_of_a_file_in_d4rls_form(d4rl_form, capsys, monkeypatch):
    """Rows of the same environment come out again, up to the rounding of the states."""
    monkeypatch.setattr(sys, "argv", ["check_physics.py", "--replay", str(d4rl_form)])
    check_physics.main()
    table = capsys.readouterr().out
    assert table.startswith("| Hopper-v4: absolute error |") and "400 rows" in table
    assert "terminals that disagree: 0." in table
    errors = check_physics.replay(check_physics.read_states(d4rl_form), "Hopper-v4", 150)
    assert len(errors["reward"]) == 150 and not errors["terminal"].any()
    assert np.abs(errors["state"]).max() < 1e-6
    assert np.median(np.abs(errors["step"])) < 1e-6 and np.abs(errors["reward"]).max() < 1e-3
    assert len(errors["step"]) < 150, "where an episode ends, the next row is another's"


@pytest.mark.parametrize(
    "key, column, change",
    [
        ("state", "infos/qpos", lambda array: np.roll(array, 1, 0)),
        ("step", "actions", lambda array: -array),
        ("reward", "rewards", lambda array: array - 1),
        ("terminal", "terminals", lambda array: ~array),
    ],
)
def test_replay_finds_what_is_wrong(d4rl_form, key, column, change):
    arrays = check_physics.read_states(d4rl_form)
    arrays[column] = change(arrays[column])
    errors = check_physics.replay(arrays, "Hopper-v4", 100)
    assert np.abs(errors[key].astype(float)).mean() > 0.003


def test_replay_of_other_physics(d4rl_form, monkeypatch):
    """A hopper with other gravity is found out by its steps, not by its states."""
    arrays = check_physics.read_states(d4rl_form)
    before = check_physics.replay(arrays, "Hopper-v4", 100)
    make = gym.make

    def lighter(*args, **kwargs):
        env = make(*args, **kwargs)
        env.unwrapped.model.opt.gravity[:] *= 0.9
        return env

    monkeypatch.setattr(gym, "make", lighter)
    errors = check_physics.replay(arrays, "Hopper-v4", 100)
    assert np.abs(errors["state"]).max() < 1e-6
    assert np.abs(errors["step"]).mean() > 100 * np.abs(before["step"]).mean()


@pytest.mark.parametrize(
    "words, match",
    [
        ("--replay absent.hdf5 --env-id Hopper-v4", "cannot be read as HDF5"),
        ("--replay mine.hdf5", "mine.hdf5 does not begin with"),
        ("--replay FILE --env-id Walker2d-v4", "name the file's environment"),
        ("--replay FILE --env-id Nothing-v0", "--env-id"),
        ("--replay FILE --rows 0", "--rows 0"),
        ("--replay STATELESS", "infos/qpos, infos/qvel"),
    ],
)
def test_bad_replays(d4rl_form, tmp_path, monkeypatch, words, match):
    stateless = tmp_path / "hopper_none.hdf5"
    shutil.copy(d4rl_form, stateless)
    with h5py.File(stateless, "a") as file:
        del file["infos"]
    words = words.replace("FILE", str(d4rl_form)).replace("STATELESS", str(stateless))
    monkeypatch.setattr(sys, "argv", ["check_physics.py", *words.split()])
    with pytest.raises(SystemExit, match=match):
        check_physics.main()


def test_table_of_snapshots(monkeypatch):
    """Which policy acts where: the walker's files have a shorter name than its environment."""
    asked = []

    def run_jobs(function, jobs, workers):
        for number, (env_id, policy, _, episodes) in enumerate(jobs):
            asked.append((policy, env_id))
            yield number, Score(100.0 * number, 1.0, 50.0, episodes)

    monkeypatch.setattr(check_physics, "policy_file", lambda name: name)
    monkeypatch.setattr(check_physics, "read_snapshot", lambda path: path)
    monkeypatch.setattr(check_physics, "SacPolicy", lambda weights: weights)
    monkeypatch.setattr(check_physics, "run_jobs", run_jobs)
    lines = check_physics.snapshots(7, 1).splitlines()
    assert asked[4:6] == [("walker_online_5.pkl", f"Walker2d-v{v}") for v in (4, 5)]
    assert [env_id for _, env_id in asked[::4]] == ["HalfCheetah-v4", "Walker2d-v4", "Hopper-v4"]
    assert lines[4] == "| walker_online_5 | 400 ± 1 | 50 | 500 ± 1 | 3481 ± 87 | 0.115 |"
    assert "7 episodes each" in lines[-1]


@pytest.mark.slow
def test_d4rls_cheetah_runs_here_as_it_did_there():
    path = d4rl_policies.policies_folder() / "halfcheetah_online_5.pkl"
    if not path.exists():
        pytest.skip(f"there is no {path}; check_physics.py fetches it")
    score = measure("HalfCheetah-v4", SacPolicy(d4rl_policies.read_snapshot(path)), [0], 2)
    assert score.mean == pytest.approx(9198, rel=0.05)
