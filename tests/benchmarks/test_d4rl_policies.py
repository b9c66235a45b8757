"""D4RL's own policies: only the true files are taken, and nothing in them runs."""

import hashlib
import io
import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import d4rl_policies
from benchmarks.datasets.d4rl_policies import POLICIES, policy_file, read_ant, read_snapshot

LAYERS = d4rl_policies.LAYERS
NAMES = {f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")}


def weights(obs_dim: int = 5, act_dim: int = 2, hidden: int = 7) -> dict[str, np.ndarray]:
    """Random weights of a policy, named as in `nn.Linear`."""
    rng = np.random.default_rng(0)
    shapes = ((hidden, obs_dim), (hidden, hidden), (act_dim, hidden), (act_dim, hidden))
    arrays = {}
    for layer, (rows, columns) in zip(LAYERS, shapes, strict=True):
        arrays[f"{layer}.weight"] = rng.normal(size=(rows, columns)).astype(np.float32)
        arrays[f"{layer}.bias"] = rng.normal(size=rows).astype(np.float32)
    return arrays


def snapshot(**changes) -> dict:
    """The content of a file as Deep OPE has it."""
    arrays = {key.replace(".", "/"): value for key, value in weights().items()}
    return arrays | {"nonlinearity": "relu", "output_distribution": "tanh_gaussian"} | changes


class Attack:
    """What a pickle can hold beside data: an order to call something."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# --------------------------------------------------------------------------------------------------
# Snapshots
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numpy_core", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_snapshot_is_read(tmp_path, numpy_core):
    """NumPy 1 and 2 name their constructors differently."""
    content = pickle.dumps(snapshot(), protocol=3)
    assert b"numpy._core.multiarray" in content
    content = content.replace(b"numpy._core.multiarray", numpy_core)
    (tmp_path / "a.pkl").write_bytes(content)
    read = read_snapshot(tmp_path / "a.pkl")
    assert read.keys() == NAMES
    for key, array in weights().items():
        np.testing.assert_array_equal(read[key], array)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"nonlinearity": "tanh"}, "tanh"),
        ({"fc1/bias": np.zeros(3, np.float32)}, "fc1.bias"),
        ({"fc0/weight": weights()["fc0.weight"] * np.nan}, "finite"),
        ({"fc0/weight": weights()["fc0.weight"].astype(float)}, "float64"),
        ({"more": np.ones(1)}, "more"),
    ],
)
def test_other_networks_are_refused(tmp_path, change, word):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(snapshot(**change)))
    with pytest.raises(SystemExit, match=word):
        read_snapshot(tmp_path / "a.pkl")


def test_a_snapshot_that_runs_something_is_refused(tmp_path):
    content = pickle.dumps(snapshot(more=Attack(tmp_path / "made")))
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(SystemExit, match="mkdir"):
        read_snapshot(tmp_path / "a.pkl")
    assert not (tmp_path / "made").exists()
    pickle.loads(content)
    assert (tmp_path / "made").exists()  # the file would have done it


# --------------------------------------------------------------------------------------------------
# The ant: a file of an old PyTorch, made without it
# --------------------------------------------------------------------------------------------------


class Storage:
    def __init__(self, key: str, array: np.ndarray):
        self.key = key
        self.array = array


class FloatStorage:
    """Stands for PyTorch's."""


def _rebuild_tensor_v2(*args):
    """Stands for PyTorch's."""


class Tensor:
    def __init__(self, key: str, array: np.ndarray):
        self.storage = Storage(key, array)
        self.array = array

    def __reduce__(self):
        strides = tuple(stride // 4 for stride in self.array.strides)
        return _rebuild_tensor_v2, (self.storage, 0, self.array.shape, strides, False, {})


class Module:
    """Stands for modules of PyTorch and policies of rlkit."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


Module.__module__ = "rlkit.torch.sac.policies"
FloatStorage.__module__ = "torch"
_rebuild_tensor_v2.__module__ = "torch._utils"


class TorchPickler(pickle._Pickler):
    """Names the classes above without importing their modules."""

    def save_global(self, obj, name=None):
        self.write(f"c{obj.__module__}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return "storage", FloatStorage, obj.key, "cuda:0", obj.array.size, None
        return None

    dispatch = {**pickle._Pickler.dispatch, type: save_global, type(snapshot): save_global}


def torch_file(arrays: dict, **more) -> bytes:
    """A file as PyTorch 0.4 wrote it, with these arrays as the policy."""
    tensors = {name: Tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    layers = OrderedDict()
    for layer in LAYERS:
        parts = [(part, tensors[f"{layer}.{part}"]) for part in ("weight", "bias")]
        layers[layer] = Module(_parameters=OrderedDict(parts))
    objects = {"exploration/policy": Module(_modules=layers), **more}
    keys = [str(i) for i in range(len(arrays))]
    file = io.BytesIO()
    magic_number = d4rl_policies.TORCH_MAGIC_NUMBER
    for part in (magic_number, 1001, {"little_endian": True}, objects, keys):
        TorchPickler(file, 2).dump(part)
    for array in arrays.values():
        file.write(struct.pack("<q", array.size) + array.tobytes())
    return file.getvalue()


def test_ant_is_read(tmp_path):
    (tmp_path / "ant.pkl").write_bytes(torch_file(weights(), env=Module(goal=Module())))
    read = read_ant(tmp_path / "ant.pkl")
    assert read.keys() == NAMES
    for key, array in weights().items():
        np.testing.assert_array_equal(read[key], array)


def test_nothing_in_an_ant_file_runs(tmp_path):
    (tmp_path / "ant.pkl").write_bytes(torch_file(weights(), more=Attack(tmp_path / "made")))
    assert read_ant(tmp_path / "ant.pkl").keys() == NAMES
    (tmp_path / "ant.pkl").write_bytes(pickle.dumps(Attack(tmp_path / "made")))
    with pytest.raises(SystemExit, match="not D4RL's goal-reaching ant"):
        read_ant(tmp_path / "ant.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "reader, content",
    [(read_ant, torch_file(weights())), (read_snapshot, pickle.dumps(snapshot()))],
    ids=["ant", "snapshot"],
)
def test_truncated_files_are_refused(tmp_path, reader, content):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    reader(path)
    for length in (*range(0, len(content), 97), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(SystemExit, match="a.pkl"):
            reader(path)


def test_an_ant_file_with_something_behind_is_refused(tmp_path):
    (tmp_path / "ant.pkl").write_bytes(torch_file(weights()) + b"x")
    with pytest.raises(SystemExit, match="behind its end"):
        read_ant(tmp_path / "ant.pkl")


# --------------------------------------------------------------------------------------------------
# Fetching, from an address in the file system
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """The file behind the address of p.pkl; fetched files lie in tmp_path / "cache"."""
    monkeypatch.setenv("D4RL_POLICIES", str(tmp_path / "cache"))
    path = tmp_path / "source"
    path.write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    monkeypatch.setitem(POLICIES, "p.pkl", (path.as_uri(), sha256))
    return path


def test_a_file_is_fetched_once_and_verified(source, tmp_path):
    path = policy_file("p.pkl")
    assert path == tmp_path / "cache" / "p.pkl" and path.read_bytes() == b"content"
    assert [file.name for file in path.parent.iterdir()] == ["p.pkl"]
    source.unlink()
    assert policy_file("p.pkl") == path
    path.write_bytes(b"conten")
    with pytest.raises(SystemExit, match="delete it"):
        policy_file("p.pkl")


def test_another_file_is_not_stored(source, tmp_path):
    source.write_bytes(b"other")
    with pytest.raises(SystemExit, match="nothing was stored"):
        policy_file("p.pkl")
    source.unlink()
    with pytest.raises(SystemExit, match="D4RL_POLICIES"):
        policy_file("p.pkl")
    assert not (tmp_path / "cache").exists()


def test_command(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["d4rl_policies.py", "q.pkl"])
    with pytest.raises(SystemExit, match="no policy q.pkl"):
        d4rl_policies.main()
    source.write_bytes(pickle.dumps(snapshot()))
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setitem(POLICIES, "p.pkl", (source.as_uri(), sha256))
    monkeypatch.setattr(sys, "argv", ["d4rl_policies.py", "p.pkl"])
    d4rl_policies.main()
    assert capsys.readouterr().out.endswith("p.pkl: 5 inputs, 2 actions\n")


@pytest.mark.parametrize("name", POLICIES)
def test_the_published_files(name):
    path = d4rl_policies.policies_folder() / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    read = read_ant if name.startswith("ant") else read_snapshot
    arrays = read(policy_file(name))
    dims = {"ant": (29, 8), "halfcheetah": (17, 6), "hopper": (11, 3), "walker": (17, 6)}
    obs_dim, act_dim = dims[name.split("_")[0]]
    assert arrays["fc0.weight"].shape == (256, obs_dim)
    assert arrays["last_fc.weight"].shape == (act_dim, 256)
