"""Environments as people have them, damaged files, absurd arguments, full disks, two processes."""

import contextlib
import errno
import functools
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import WrapperSpec
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from tensorboard.summary.writer.record_writer import RecordWriter

import por
from tests.shared import toys
from tests.shared.toys import (
    Point,
    episodes_of,
    isolate,
    load,
    load_minari,
    recorded,
    refusal,
    register,
    select,
    walks,
    write_hdf5,
    write_minari,
)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


def make_agent(task, **options):
    """An agent with small networks."""
    args = por.Args(env="Point-v0", hidden=8, execute_hidden=8, **options)
    torch.manual_seed(0)
    return por.Algorithm(por.apply_settings(args), task, torch.device("cpu"))


def load_my_file():
    """Load my.hdf5 as the script does."""
    return por.load_dataset(por.Args(env="Point-v0", dataset_file="my.hdf5"))


def evaluate(env_id: str, episodes: int = 2):
    """Evaluate a new agent in an environment, on the walks' task."""
    _, task = load(walks(), env=env_id)
    return por.evaluate(make_agent(task), task, episodes)


@pytest.fixture
def run(monkeypatch):
    """Train on the walks in this process: `run(option=value)`."""
    write_hdf5("my.hdf5", walks())
    return functools.partial(toys.train, monkeypatch)


def strict_json(path) -> dict:
    """Parse a file as JSON, which knows no NaN."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(Path(path).read_text(), parse_constant=refuse)


# --------------------------------------------------------------------------------------------------
# Environments as people have them
# --------------------------------------------------------------------------------------------------


def test_an_environment_that_checks_its_actions_works():
    class Strict(Point):
        action_space = Box(np.float32([-0.1, -0.3]), np.float32([0.1, 0.7]))

        def step(self, action):
            assert self.action_space.contains(action), action
            return super().step(action)

    register("Strict-v0", Strict)
    assert np.isfinite(evaluate("Strict-v0")).all()


@pytest.mark.parametrize(
    "wrap", [np.float64, lambda x: np.array([x]), lambda x: np.float32([[x]]), torch.tensor, int]
)
def test_rewards_of_any_shape_and_type_are_summed(wrap):
    class One(Point):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, wrap(2), *rest

    register("One-v0", One)
    np.testing.assert_array_equal(evaluate("One-v0"), [[40, 40]])  # 20 steps


def test_an_environment_whose_registered_arguments_hold_an_array_works():
    class Shifted(Point):
        def __init__(self, shift):
            self.shift = shift

    register("Shifted-v0", Shifted, kwargs={"shift": np.ones(3)})
    assert evaluate("Shifted-v0").shape == (1, 2)


def test_observations_of_other_types_are_flattened_to_float32():
    class Doubles(Point):
        observation_space = Box(-np.inf, np.inf, (3,), np.float64)

        def step(self, action):
            obs, *rest = super().step(action)
            return list(obs.astype(float)), *rest

    register("Doubles-v0", Doubles)
    register("Point-v0", Point)
    np.testing.assert_array_equal(evaluate("Doubles-v0"), evaluate("Point-v0"))


def test_a_module_before_the_id_is_imported(tmp_path, monkeypatch):
    Path("others.py").write_text(
        "from tests.shared.toys import Point, register\nregister('Theirs-v0', Point)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert evaluate("others:Theirs-v0").shape == (1, 2)


def test_wrappers_that_were_recorded_are_named_and_not_used(capsys):
    """Stable Baselines' Monitor cannot be rebuilt, because its arguments are not recorded."""
    spec = recorded("Point-v0")
    spec.additional_wrappers = (WrapperSpec("Monitor", "nowhere.monitor:Monitor", None),)
    write_minari("walks-v0", episodes_of(walks(episodes=2)), spec)
    _, task = load_minari("walks-v0")
    assert por.evaluate(make_agent(task), task, 1).shape == (1, 1)
    assert "wrappers ['Monitor'], which are not used" in capsys.readouterr().out


def test_recorded_arguments_are_used_but_nothing_is_shown():
    class Sized(Point):
        def __init__(self, sizes, render_mode=None):
            assert render_mode is None
            self.sizes = sizes

    register("Sized-v0", Sized)
    spec = recorded("Sized-v0", kwargs={"sizes": [1, [2.5, "x"]], "render_mode": "human"})
    write_minari("walks-v0", episodes_of(walks(episodes=2)), spec)
    _, task = load_minari("walks-v0")
    assert task.env_kwargs == {"sizes": [1, [2.5, "x"]]}
    assert por.make_env(task).unwrapped.sizes == [1, [2.5, "x"]]


def test_the_environment_for_evaluations_comes_first():
    register("Other-v0", Point, max_episode_steps=30)
    spec = gym.envs.registration.EnvSpec("Other-v0", "nowhere:Class", max_episode_steps=7)
    write_minari("walks-v0", episodes_of(walks(episodes=2)), eval_env_spec=spec.to_json())
    _, task = load_minari("walks-v0")
    assert (task.env_id, task.max_episode_steps) == ("Other-v0", 7)


@pytest.mark.parametrize(
    "kwargs", [{"a": {"b": 1}}, {"a": [{"b": 1}]}, {"a": float("nan")}, {"a": [float("inf")]}]
)
def test_recorded_arguments_that_are_not_plain_are_refused(kwargs):
    write_minari("walks-v0", episodes_of(walks(episodes=2)), recorded("Point-v0", kwargs=kwargs))
    assert "the argument a of Point-v0 is no number" in refusal(load_minari, "walks-v0")


def test_a_missing_package_is_named():
    """Both where nothing registers the environment and where its own import fails."""
    write_minari("walks-v0", episodes_of(walks(episodes=2)), recorded("highway-v0"))
    line = refusal(load_minari, "walks-v0")
    assert "highway-v0 is not registered; import its package" in line
    gym.registry.pop("Lost-v0", None)
    gym.register("Lost-v0", "package_of_nobody.envs:Env", max_episode_steps=5)
    assert "No module named 'package_of_nobody'" in refusal(load, walks(), env="Lost-v0")
    assert "No module named 'package_of_nobody'" in refusal(
        load, walks(), env="package_of_nobody:Env-v0"
    )


def test_an_environment_that_fails_is_named():
    class Broken(Point):
        def __init__(self):
            raise OSError("the robot\nis off")

    register("Broken-v0", Broken)
    assert "OSError: the robot is off" in refusal(load, walks(), env="Broken-v0")


@pytest.mark.parametrize("name", ["Point-v0", "AdroitHandDoor-v1", "others:Theirs-v0"])
def test_an_environment_without_a_file_is_told_apart_from_a_dataset(name):
    line = refusal(load_minari, name)
    assert "is an environment; name a dataset, or add its --dataset-file" in line
    assert "did you mean" not in line


def test_a_mistyped_environment_gets_the_near_one():
    assert "Pendulum" in refusal(load, walks(), env="Pendulun-v1")


def test_an_environment_without_a_time_limit_is_refused():
    register("Endless-v0", Point, max_episode_steps=None)
    assert "has no time limit" in refusal(load, walks(), env="Endless-v0")


@pytest.mark.parametrize(
    "space",
    [Discrete(3), MultiDiscrete([2, 2]), MultiBinary(2), Dict(a=Point.action_space)]
    + [Tuple([Point.action_space]), Box(-1, 1, (2, 1)), Box(0, 9, (2,), np.int64)],
    ids=str,
)
def test_other_actions_than_vectors_of_real_numbers_are_refused(space):
    register("Other-v0", type("Other", (Point,), {"action_space": space}))
    line = refusal(load, walks(), env="Other-v0")
    assert f"actions must be vectors of real numbers, not {space}" in line


@pytest.mark.parametrize(
    "space",
    [Discrete(3), MultiDiscrete([2, 2]), Box(0, 255, (4, 4, 3), np.uint8), Box(0, 1, ())]
    + [Dict(a=Dict(b=Point.observation_space)), Dict(a=Discrete(2))]
    + [Tuple([Point.observation_space])],
    ids=lambda space: type(space).__name__,
)
def test_other_observations_than_vectors_are_refused(space):
    register("Other-v0", type("Other", (Point,), {"observation_space": space}))
    assert "observations must be vectors" in refusal(load, walks(), env="Other-v0")


def test_data_of_another_environment_are_refused():
    rows = walks()
    for key, column in [("actions", rows["actions"][:, :1]), ("observations", rows["actions"])]:
        line = refusal(load, rows | {key: column})
        assert f"{key} has shape" in line
        assert "Point-v0 needs" in line


# --------------------------------------------------------------------------------------------------
# Numbers that an evaluation gives
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "what, step",
    [("observation", 0), ("observation", 1), ("observation", 20), ("reward", 1), ("reward", 20)],
)
def test_the_environment_is_blamed_for_what_is_no_number(run, what, value, step):
    """At the start, on the way and in the last step; the last good save stays."""

    class Bad(Point):
        def reset(self, **more):
            self.steps = 0
            obs, info = super().reset(**more)
            return (np.full(3, value) if step == 0 else obs), info

        def step(self, action):
            obs, reward, *rest = super().step(action)
            self.steps += 1
            if self.steps == step:
                if what == "reward":
                    reward = value
                else:
                    obs = np.full(3, value)
            return obs, reward, *rest

    register("Bad-v0", Bad)
    line = refusal(run, env="Bad-v0")
    assert line == f"Bad-v0 gave a NaN, infinite or too large {what}"
    assert strict_json("run/result.json")["step"] == 0


def test_observations_beyond_float32_are_the_environments_fault():
    class Far(Point):
        observation_space = Box(-np.inf, np.inf, (3,), np.float64)

        def step(self, action):
            return np.full(3, 1e300), 0.0, False, False, {}

    register("Far-v0", Far)
    assert "Far-v0 gave a NaN, infinite or too large observation" in refusal(evaluate, "Far-v0")


@pytest.mark.parametrize(
    "references", [(1, 1), (float("nan"), 1), (0, float("inf")), ("a", "b"), (0, None), (9, 2)]
)
def test_references_that_cannot_score_give_returns(run, references):
    low, high = references
    write_minari("walks-v0", episodes_of(walks(episodes=10)), ref_min_score=low, ref_max_score=high)
    run(env="walks-v0", dataset_file="None")
    result = strict_json("run/result.json")
    assert result["task"]["ref_min"] is None
    assert result["final"]["scores"] == result["final"]["returns"]


# --------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value, word",
    [
        ("seed", 2**64 - 1, "--seed"),
        ("seed", 2**32, "--seed"),
        ("seed", -1, "--seed"),
        ("hidden", 100_000_000_000, "allocate"),
        ("hidden", 10**15, "alloc"),
        ("hidden", 10**20, "--hidden"),
        ("hidden", 0, "--hidden"),
        ("batch_size", 10**19, "--batch-size"),
        ("num_seeds", 10**13, "alloc"),
        ("num_seeds", 0, "--num-seeds"),
        ("num_updates", -1, "--num-updates"),
        ("num_updates", 10**300, "--num-updates"),
        ("final_eval_episodes", 0, "--final-eval-episodes"),
        ("discount", "nan", "--discount"),
        ("value_lr", "inf", "--value-lr"),
        ("alpha", "1e300", "--alpha"),
        ("run_dir", "a\0b", "--run-dir"),
        ("run_dir", "a\udcffb", "--run-dir"),
        ("run_dir", "x" * 300, "too long"),
        ("run_dir", "my.hdf5", "my.hdf5"),
        ("run_dir", "my.hdf5/run", "my.hdf5"),
        ("run_dir", "/proc/run", "/proc/run"),
        ("run_dir", ".", "not empty"),
        ("dataset_file", "a\0b", "--dataset-file"),
        ("dataset_file", ".", "cannot be read"),
        ("dataset_file", "/dev/null", "cannot be read"),
        ("dataset_file", "nowhere.hdf5", "nowhere.hdf5"),
        ("env", "a\0b", "--env"),
        ("env", "", "--env"),
        ("env", "a:b:c", "a:b:c"),
        ("device", "meta", "--device meta"),
        ("device", "nonsense", "--device nonsense"),
        ("execution", "graph", "--device cuda"),
        ("resume", "nowhere", "nowhere"),
    ],
)
def test_an_absurd_argument_ends_in_a_line(run, option, value, word):
    line = refusal(run, **{option: value})
    assert word in line
    assert not Path("run").exists()
    assert list(Path().glob("*.part")) == []


@pytest.mark.parametrize("option, value", [("hidden", "1e20"), ("seed", "x"), ("num-sedes", 3)])
def test_what_is_no_argument_is_refused_in_tyros_words(run, option, value):
    with pytest.raises(SystemExit) as end:
        run(**{option: value})
    assert end.value.code == 2


# --------------------------------------------------------------------------------------------------
# One folder, one process
# --------------------------------------------------------------------------------------------------


def test_a_new_run_needs_a_new_folder(run):
    run()
    before = Path("run/checkpoint.pt").read_bytes()
    assert "run is not empty; choose another --run-dir, or --resume run" in refusal(run, seed=1)
    assert Path("run/checkpoint.pt").read_bytes() == before
    Path("other").mkdir()
    run(run_dir="other")  # an empty one is as good
    Path("mine").mkdir()
    Path("mine/letter.txt").touch()
    assert "mine is not empty" in refusal(run, run_dir="mine")


def test_of_two_runs_that_begin_together_one_is_refused(run, monkeypatch):
    """The other one has saved its first checkpoint while this one loaded its data."""
    save = por.save

    def save_late(state, folder):
        save(state, folder)
        if folder != Path("run") and not Path("run").exists():
            Path("run").mkdir()
            Path("run/checkpoint.pt").write_text("the other one's")

    monkeypatch.setattr(por, "save", save_late)
    assert "Directory not empty" in refusal(run)
    assert Path("run/checkpoint.pt").read_text() == "the other one's"
    assert list(Path().glob("*.part")) == []


def test_what_a_killed_run_left_before_its_first_save_blocks_nobody(run):
    """Also if the number of its process comes again, as it does in containers."""
    left = Path(f"run.{os.getpid()}.part")
    left.mkdir()
    (left / "checkpoint.pt.1.part").write_bytes(b"half")
    run()
    assert strict_json("run/result.json")["finished"]


def test_two_processes_cannot_resume_one_folder(run, monkeypatch):
    run()
    with por.locked("run"):
        line = refusal(toys.command, monkeypatch, "--resume", "run")
        assert "another process trains in run" in line
    toys.command(monkeypatch, "--resume", "run")


def test_a_lock_ends_with_its_process(run):
    run()
    lock = "fcntl.flock(os.open('run', os.O_RDONLY), fcntl.LOCK_EX)"
    code = f"import fcntl, os, time; {lock}; print('', flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"\n"
    assert "another process" in refusal(por.locked("run").__enter__)
    process.kill()
    process.wait()
    with por.locked("run"):
        pass


def without(key):
    return lambda checkpoint: checkpoint.pop(key)


OTHERS = {  # how the checkpoint of another version may differ
    "no arguments": without("args"),
    "no weights": without("agent"),
    "no optimizers": without("optimizers"),
    "no task": without("task"),
    "no random state": without("rng_state"),
    "another argument": lambda checkpoint: checkpoint["args"].update(precision="bf16"),
    "another network": lambda checkpoint: checkpoint["args"].update(hidden=9),
    "another phase": lambda checkpoint: checkpoint.update(phase=7),
    "another optimizer": lambda checkpoint: checkpoint["optimizers"]["value"].pop(),
    "another layout": lambda checkpoint: checkpoint.update(task="hopper"),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_checkpoint_of_another_version_is_refused(run, monkeypatch, change):
    run()
    checkpoint = torch.load("run/checkpoint.pt", weights_only=True)
    OTHERS[change](checkpoint)
    torch.save(checkpoint, "run/checkpoint.pt")
    before = Path("run/checkpoint.pt").read_bytes()
    line = refusal(toys.command, monkeypatch, "--resume", "run")
    assert "does not fit this version of the script" in line
    assert Path("run/checkpoint.pt").read_bytes() == before


def test_a_checkpoint_of_another_script_or_of_other_data_is_refused(run, monkeypatch):
    run()
    write_hdf5("my.hdf5", walks(seed=1))
    assert "holds other data now" in refusal(toys.command, monkeypatch, "--resume", "run")
    checkpoint = torch.load("run/checkpoint.pt", weights_only=True)
    torch.save(checkpoint | {"script": "iql"}, "run/checkpoint.pt")
    assert "a checkpoint of iql.py" in refusal(toys.command, monkeypatch, "--resume", "run")
    torch.save([1, 2], "run/checkpoint.pt")
    assert "cannot be read" in refusal(toys.command, monkeypatch, "--resume", "run")


# --------------------------------------------------------------------------------------------------
# A full disk
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_up_to(size: int):
    """Let no file of this process grow beyond that size in bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 9000])
def test_a_disk_that_is_full_from_the_start_ends_in_a_line(run, size):
    with files_up_to(size):
        assert "File too large; saved: nothing" in refusal(run)
    assert not Path("run").exists()
    assert list(Path().glob("*.part")) == []


def test_a_disk_that_becomes_full_leaves_the_last_save(run, monkeypatch):
    save = por.save

    def save_on_a_full_disk(state, folder):
        with files_up_to(9000 if state.step > 2 else 10**9):
            save(state, folder)

    with monkeypatch.context() as patch:
        patch.setattr(por, "save", save_on_a_full_disk)
        assert "File too large; saved: update 2 of phase train" in refusal(run)
    assert strict_json("run/result.json")["step"] == 2
    assert torch.load("run/checkpoint.pt", weights_only=True)["step"] == 2
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoint.pt",
        "result.json",
        "tensorboard",
    ]
    toys.command(monkeypatch, "--resume", "run")
    assert strict_json("run/result.json")["finished"]


def test_curves_that_cannot_be_written_end_in_a_line(run, monkeypatch, capsys):
    """TensorBoard writes in a thread of its own, which must not print a traceback."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", fail)
    assert "No space left on device; saved: update 0" in refusal(run)
    assert "Traceback" not in capsys.readouterr().err


def test_tensors_beyond_the_memory_end_in_a_line(run):
    assert "overflow" in refusal(run, num_seeds=2**50, hidden=2**50)
    assert "allocate" in refusal(run, batch_size=10**14)


# --------------------------------------------------------------------------------------------------
# Damaged files
# --------------------------------------------------------------------------------------------------


def write_columns(path, *without: str, rows: int = 200, **changed) -> None:
    """Write the walks' file without some columns and with others changed."""
    path.unlink()
    write_hdf5(path, select(walks(), slice(rows), *without) | changed)


DAMAGES = {  # what is done to a sound file, and words of the refusal
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        "cannot be read as HDF5",
    ),
    "text": (lambda path: path.write_text("observations\n1,2,3\n"), "cannot be read as HDF5"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as HDF5"),
    "absent": (lambda path: path.unlink(), "No such file"),
    "no actions": (lambda path: write_columns(path, "actions"), "has no actions"),
    "no ends": (lambda path: write_columns(path, "timeouts", "next_observations"), "no timeouts"),
    "fewer rewards": (lambda path: write_columns(path, rewards=np.ones(199)), "numbers of rows"),
    "no rows": (lambda path: write_columns(path, rows=0), "holds no rows"),
    "a number": (lambda path: write_columns(path, rewards=1.0), "rewards is no array"),
    "nothing": (lambda path: write_columns(path, rewards=h5py.Empty("f")), "rewards is no array"),
    "a group": (
        lambda path: write_columns(path, "rewards", **{"rewards/a": np.ones(9)}),
        "rewards is no array",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage):
    act, words = DAMAGES[damage]
    act(write_hdf5("my.hdf5", walks()))
    line = refusal(load_my_file)
    assert words in line
    assert "my.hdf5" in line or "Point-v0" in line


def test_a_file_that_claims_a_trillion_rows_ends_in_a_line():
    with h5py.File("my.hdf5", "w") as file:
        for key, column in walks().items():
            file.create_dataset(key, (10**12, *column.shape[1:]), column.dtype, chunks=True)
    assert "allocate" in refusal(load_my_file)


def test_groups_that_are_nested_without_end_do_no_harm():
    """HDF5's own walk through a file overflows its stack and kills the process."""
    path = write_hdf5("my.hdf5", walks())
    with h5py.File(path, "a") as file:
        group = file.id
        for _ in range(12_000):
            group = h5py.h5g.create(group, b"a")
    assert load_my_file()[1].transitions == 5000


@pytest.mark.slow
def test_mutated_files_are_understood_or_refused(tmp_path):
    """No mutation ends in a traceback or other weights; a crash in libhdf5 costs only that one."""
    env = os.environ | {"PYTHONPATH": str(Path(por.__file__).parents[1])}
    outcomes = []
    while len(outcomes) < 588:
        folder = tmp_path / str(len(outcomes))
        folder.mkdir()
        command = [sys.executable, "-m", "tests.shared.mutations", str(len(outcomes))]
        end = subprocess.run(
            command, cwd=folder, env=env, timeout=100, capture_output=True, text=True
        )
        assert end.stderr == ""
        outcomes += end.stdout.splitlines()
        if end.returncode != 0:
            outcomes.append("hdf5 crash")
    counts = Counter(" ".join(outcome.split()[:2]).strip(":") for outcome in outcomes)
    assert counts.pop("hdf5 crash", 0) < 3
    assert counts.keys() <= {
        f"{kind} {end}"
        for kind in ("hdf5", "minari", "metadata", "result", "checkpoint")
        for end in ("understood", "refused")
    }, outcomes
    assert counts["hdf5 refused"] > 150
    assert counts["hdf5 understood"] > 50
    assert counts["minari refused"] > 10
    assert counts["metadata refused"] > 10
    assert counts["result understood"] == 8  # it is written, never read
    assert counts["checkpoint refused"] > 150
