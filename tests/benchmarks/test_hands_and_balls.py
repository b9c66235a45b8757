"""The behaviour of D4RL's Adroit experts and Maze2D sets: hands, balls, and how they are stored."""

import hashlib
import importlib.util
import io
import pickle
import struct
import sys
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch

from benchmarks.datasets import balls, collect, d4rl_policies, hands
from benchmarks.datasets.d4rl_policies import POLICIES, read_hand
from benchmarks.datasets.recipes import RECIPES
from tests.benchmarks.test_d4rl_policies import Attack
from tests.helpers import load_script

pytestmark = pytest.mark.usefixtures("isolated")


# ---- Files of hands, as mjrl and an old PyTorch write them ----


class Thing:
    """Stands for objects of mjrl and of PyTorch."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


class Number:
    """Stands for torch.nn.Parameter: a tensor whose numbers lie in the pickle itself."""

    def __init__(self, array):
        self.array = np.asarray(array)


def _load_from_bytes(content):
    """Stands for PyTorch's."""


def _rebuild_tensor_v2(*args):
    """Stands for PyTorch's."""


def _rebuild_parameter(*args):
    """Stands for PyTorch's."""


_load_from_bytes.__module__ = "torch.storage"
_rebuild_tensor_v2.__module__ = _rebuild_parameter.__module__ = "torch._utils"
Thing.__module__ = "mjrl.policies.gaussian_mlp"


class Storage:
    """What PyTorch calls a storage: numbers in a row."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        key = "94000"
        parts = [d4rl_policies.TORCH_MAGIC_NUMBER, 1001, {}, ("storage", key), [key]]
        content = b"".join(pickle.dumps(part, 2) for part in parts)
        content += struct.pack("<q", self.array.size) + self.array.tobytes()
        return _load_from_bytes, (content,)


class Tensor:
    """A view of a storage."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array)

    def __reduce__(self):
        shape = self.array.shape
        strides = (shape[1], 1) if len(shape) == 2 else (1,)
        return _rebuild_tensor_v2, (Storage(self.array), 0, shape, strides, False, {})


class Parameter(Tensor):
    def __reduce__(self):
        return _rebuild_parameter, (Tensor(self.array), True, OrderedDict())


class HandPickler(pickle._Pickler):
    """Names the stand-ins without importing their modules."""

    def save_global(self, obj, name=None):
        self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch = {
        **pickle._Pickler.dispatch,
        type: save_global,
        type(_rebuild_parameter): save_global,
    }


def weights(obs_dim: int = 45, act_dim: int = 24) -> dict:
    rng = np.random.default_rng(0)
    sizes = [obs_dim, 6, 5, act_dim]
    return {
        "layers": [
            (rng.normal(size=(after, before)).astype("f4"), rng.normal(size=after).astype("f4"))
            for before, after in zip(sizes[:-1], sizes[1:], strict=True)
        ],
        "in_shift": rng.normal(size=obs_dim).astype("f4"),
        "in_scale": rng.uniform(1, 2, obs_dim).astype("f4"),
        "out_shift": rng.normal(size=act_dim).astype("f4") / 10,
        "out_scale": rng.uniform(0.1, 0.3, act_dim).astype("f4"),
        "log_std": rng.uniform(-3, -1, act_dim),
    }


def write_hand(path, drawn: dict, nonlinearity=torch.tanh, **more) -> None:
    layers = OrderedDict()
    for number, (weight, bias) in enumerate(drawn["layers"]):
        parameters = OrderedDict(weight=Parameter(weight), bias=Parameter(bias))
        layers[str(number)] = Thing(_parameters=parameters)
    network = Thing(
        _modules=OrderedDict(fc_layers=Thing(_modules=layers)),
        nonlinearity=nonlinearity,
        in_shift=Tensor(drawn["in_shift"]),
        in_scale=drawn["in_scale"],
        out_shift=Tensor(drawn["out_shift"]),
        out_scale=Tensor(drawn["out_scale"]),
    )
    policy = Thing(n=45, m=24, model=network, log_std_val=drawn["log_std"].astype(float), **more)
    file = io.BytesIO()
    HandPickler(file, 3).dump(policy)
    # NumPy 2 gave the module another name.
    path.write_bytes(file.getvalue().replace(b"numpy._core.multi", b"numpy.core.multi"))


def mean_of(drawn: dict, obs) -> np.ndarray:
    """Return the mean action (mjrl's fc_network.py)."""
    x = (obs - drawn["in_shift"]) / (drawn["in_scale"] + 1e-8)
    for number, (weight, bias) in enumerate(drawn["layers"]):
        x = x @ weight.T + bias
        if number < 2:
            x = np.tanh(x)
    return x * drawn["out_scale"] + drawn["out_shift"]


def test_a_hand_is_read_and_acts_as_mjrl_s(tmp_path):
    drawn = weights()
    write_hand(tmp_path / "hand.pickle", drawn)
    policy = hands.HandPolicy(read_hand(tmp_path / "hand.pickle"))
    assert (policy.obs_dim, policy.act_dim) == (45, 24)
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(7, 45)).astype("f4")
    noise = policy.draw(rng, 10_000)
    np.testing.assert_allclose(noise.std(0), np.exp(drawn["log_std"]), rtol=0.05)
    expected = np.clip(mean_of(drawn, obs) + noise[:7], -1, 1)
    np.testing.assert_allclose(policy(obs, noise[:7]), expected, atol=1e-5)


def test_nothing_in_a_hand_runs(tmp_path):
    write_hand(tmp_path / "hand.pickle", weights(), more=Attack(tmp_path / "made"))
    read_hand(tmp_path / "hand.pickle")
    (tmp_path / "bad.pickle").write_bytes(pickle.dumps(Attack(tmp_path / "made")))
    with pytest.raises(SystemExit, match="bad.pickle is none of DAPG's hands"):
        read_hand(tmp_path / "bad.pickle")
    assert not (tmp_path / "made").exists()


def test_other_hands_are_refused(tmp_path):
    write_hand(tmp_path / "hand.pickle", weights(), nonlinearity=torch.relu)
    with pytest.raises(SystemExit, match="layers are of the kind relu"):
        read_hand(tmp_path / "hand.pickle")
    content = (tmp_path / "hand.pickle").read_bytes()
    (tmp_path / "hand.pickle").write_bytes(content[:-100])
    with pytest.raises(SystemExit, match="none of DAPG's hands"):
        read_hand(tmp_path / "hand.pickle")


def test_a_hand_makes_a_dataset(por, tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_POLICIES", str(tmp_path / "policies"))
    (tmp_path / "policies").mkdir()
    path = tmp_path / "policies" / "pen-v0.pickle"
    write_hand(path, weights())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(POLICIES, path.name, (path.as_uri(), sha256))
    metadata = collect.collect(collect.Args("pen-expert", steps=150, workers=1))
    assert metadata["behavior"]["policy"] == "DAPG's own policy of pen, actions sampled"
    assert metadata["behavior_sha256"] == sha256 and metadata["algorithm_name"] == "DAPG"
    assert metadata["description"].startswith("Adroit-pen-v1, collected by D4RL's recipe")
    data, task = por.load_dataset(por.Args(env="rebuilt/pen/expert-150-v0"))
    assert (task.env_id, task.max_episode_steps, task.ref_min) == ("Adroit-pen-v1", 100, 96.262799)
    assert data["observations"].shape == (150, 45) and np.abs(data["actions"]).max() <= 1
    assert por.dataset_family(task.name) == "pen-expert"


# ---- The ball ----


FREE = {(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)}  # D4RL's small maze


def test_paths_are_the_shortest():
    assert balls.shortest_path(FREE, (1, 1), (1, 3)) == [(1, 2), (1, 3)]
    around = balls.shortest_path(FREE, (1, 1), (3, 1))
    assert around == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert balls.shortest_path(FREE, (1, 1), (1, 1)) == [(1, 1)]
    square = {(row, column) for row in range(5) for column in range(5)}
    assert len(balls.shortest_path(square, (0, 0), (4, 4))) == 8


def test_the_controller_pulls_to_the_waypoint_and_brakes():
    controller = balls.Controller(FREE, (1, 1), (1, 2), np.random.default_rng(0))
    action, done = controller.act(np.array([1.0, 1.5]), np.array([0.3, -0.2]))
    np.testing.assert_allclose(action, [10 * 0 - 0.3, 10 * 0.5 + 0.2])
    assert not done
    assert not controller.act(np.array([1.0, 1.95]), np.zeros(2))[1]  # it came too fast
    assert controller.act(np.array([1.0, 1.96]), np.zeros(2))[1]


def test_a_trajectory_goes_on_over_the_cuts_and_earns_before_the_step():
    episodes = balls.collect_shard("Maze2D-umaze-v1", [3, 0], 3_000)
    assert sum(len(episode["rewards"]) for episode in episodes) >= 3_000
    rests = 0
    for before, after in zip(episodes[:-1], episodes[1:], strict=True):
        np.testing.assert_array_equal(before["observations"][-1], after["observations"][0])
        rests += len(before["rewards"]) < 300
    assert rests > 0.9 * len(episodes)  # nearly every cell is reached in time
    for episode in episodes:
        near = np.linalg.norm(episode["observations"][:-1, :2] - [1, 1], axis=1) <= 0.5
        np.testing.assert_array_equal(episode["rewards"], near)
        assert not episode["terminations"].any()
        assert episode["truncations"].nonzero()[0].tolist() == [len(near) - 1]
        assert np.abs(episode["actions"]).max() <= 1
    earned = np.concatenate([episode["rewards"] for episode in episodes])
    assert 0.03 < earned.mean() < 0.3
    again = balls.collect_shard("Maze2D-umaze-v1", [3, 0], 100)
    np.testing.assert_array_equal(again[0]["actions"], episodes[0]["actions"])


def test_a_maze2d_set_is_scored_in_d4rls_maze(por):
    metadata = collect.collect(collect.Args("maze2d-umaze", steps=400, workers=1))
    assert metadata["env_id"] == "Maze2D-umaze-v1" and metadata["algorithm_name"] == "waypoints"
    data, task = por.load_dataset(por.Args(env="rebuilt/maze2d/umaze-400-v0"))
    assert (task.env_id, task.ref_min, task.ref_max) == ("Maze2D-umaze-v1", 23.85, 161.86)
    assert data["observations"].shape == (400, 4)


def test_the_controller_earns_more_than_chance(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["balls", "--maze", "umaze", "--episodes", "12"])
    balls.main()
    line = capsys.readouterr().out.splitlines()[2]
    name, controlled, best, random, least = line.strip("| ").split(" | ")
    assert (name, best, least) == ("Maze2D-umaze-v1", "161.86", "23.85")
    assert float(controlled.split()[0]) > 150 > 100 > float(random.split()[0])


def test_tasks_can_be_written_into_a_file():
    for name, kind in (("door-expert", "Adroit"), ("maze2d-large", "Maze2D")):
        load_script("dt")  # it registers its own classes under the same names
        spec, _ = collect.environment_of(RECIPES[name])
        module, _, found = spec.entry_point.partition(":")
        assert importlib.util.find_spec(module) and found == kind
        assert spec.id in spec.to_json() and gym.make(spec).spec.max_episode_steps >= 200
