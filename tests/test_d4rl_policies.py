"""Tests of benchmarks/d4rl_policies.py: only the true files are taken, and nothing in them runs.

    python -m pytest tests/test_d4rl_policies.py
"""

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import d4rl_policies  # noqa: E402
from d4rl_policies import fetch, read_ant, read_snapshot  # noqa: E402

NAMES = [f"{layer}.{part}" for layer in d4rl_policies.LAYERS for part in ("weight", "bias")]


def weights(obs_dim: int = 5, act_dim: int = 2, hidden: int = 7) -> dict[str, np.ndarray]:
    """Random weights of a policy, named as in `nn.Linear`."""
    rng = np.random.default_rng(0)
    sizes = zip(d4rl_policies.LAYERS, ((hidden, obs_dim), (hidden, hidden), (act_dim, hidden),
                                       (act_dim, hidden)))
    arrays = {}
    for layer, (rows, columns) in sizes:
        arrays[f"{layer}.weight"] = rng.normal(size=(rows, columns)).astype(np.float32)
        arrays[f"{layer}.bias"] = rng.normal(size=rows).astype(np.float32)
    return arrays


def snapshot(**changes) -> dict:
    """The content of a file as Deep OPE has it."""
    arrays = {key.replace(".", "/"): value for key, value in weights().items()}
    return arrays | {"nonlinearity": "relu", "output_distribution": "tanh_gaussian"} | changes


class Run:
    """What a pickle can hold beside data: an order to call something."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_snapshot_is_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(snapshot()))
    read = read_snapshot(tmp_path / "a.pkl")
    assert read.keys() == set(NAMES)
    for key, array in weights().items():
        np.testing.assert_array_equal(read[key], array)


def test_snapshot_of_an_older_numpy_is_read(tmp_path):
    content = pickle.dumps(snapshot(), protocol=3)
    older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert older != content
    (tmp_path / "a.pkl").write_bytes(older)
    assert read_snapshot(tmp_path / "a.pkl").keys() == set(NAMES)


@pytest.mark.parametrize("change, word", [
    ({"nonlinearity": "tanh"}, "tanh"), ({"fc1/bias": np.zeros(3, np.float32)}, "fc1.bias"),
    ({"fc0/weight": weights()["fc0.weight"] * np.nan}, "finite"), ({"more": np.ones(1)}, "more"),
    ({"fc0/weight": weights()["fc0.weight"].astype(float)}, "float64")])
def test_other_networks_are_refused(tmp_path, change, word):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(snapshot(**change)))
    with pytest.raises(SystemExit, match=word):
        read_snapshot(tmp_path / "a.pkl")


def test_snapshot_that_runs_something_is_refused(tmp_path):
    content = pickle.dumps(snapshot(more=Run(tmp_path / "made")))
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(SystemExit, match="mkdir"):
        read_snapshot(tmp_path / "a.pkl")
    assert not (tmp_path / "made").exists()
    pickle.loads(content)
    assert (tmp_path / "made").exists()  # the file would have done it


# An old PyTorch file without PyTorch: classes of these names, tensors as storages behind the pickle


class Storage:
    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array


class FloatStorage:
    """Stands for PyTorch's."""


def _rebuild_tensor_v2(*args):
    """Stands for PyTorch's."""


class Tensor:
    def __init__(self, key: str, array: np.ndarray):
        self.storage, self.array = Storage(key, array), array

    def __reduce__(self):
        stride = tuple(s // 4 for s in self.array.strides)
        return _rebuild_tensor_v2, (self.storage, 0, self.array.shape, stride, False, OrderedDict())


class Module:
    """Stands for modules of PyTorch and policies of rlkit."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


for cls, home in ((Module, "rlkit.torch.sac.policies"), (FloatStorage, "torch"),
                  (_rebuild_tensor_v2, "torch._utils")):
    cls.__module__ = home


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
    layers = {layer: Module(_parameters=OrderedDict(
        (part, tensors[f"{layer}.{part}"]) for part in ("weight", "bias")))
        for layer in d4rl_policies.LAYERS}
    objects = {"exploration/policy": Module(_modules=OrderedDict(layers)), **more}
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, objects, [*"01234567"]):
        TorchPickler(file, 2).dump(part)
    for array in arrays.values():
        file.write(struct.pack("<q", array.size) + array.tobytes())
    return file.getvalue()


def test_ant_is_read(tmp_path):
    (tmp_path / "ant.pkl").write_bytes(torch_file(weights(), env=Module(goal=Module())))
    read = read_ant(tmp_path / "ant.pkl")
    assert read.keys() == set(NAMES)
    for key, array in weights().items():
        np.testing.assert_array_equal(read[key], array)


def test_nothing_in_an_ant_file_runs(tmp_path):
    (tmp_path / "ant.pkl").write_bytes(torch_file(weights(), more=Run(tmp_path / "made")))
    assert read_ant(tmp_path / "ant.pkl").keys() == set(NAMES)
    (tmp_path / "ant.pkl").write_bytes(pickle.dumps(Run(tmp_path / "made")))
    with pytest.raises(SystemExit, match="no goal-reaching ant"):
        read_ant(tmp_path / "ant.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("reader, content", [
    (read_ant, torch_file(weights())), (read_snapshot, pickle.dumps(snapshot()))],
    ids=["ant", "snapshot"])
def test_truncated_files_are_refused(tmp_path, reader, content):
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    reader(path)
    for length in (*range(0, len(content), 97), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(SystemExit, match="a.pkl holds no"):
            reader(path)


def test_an_ant_file_with_something_behind_is_refused(tmp_path):
    (tmp_path / "ant.pkl").write_bytes(torch_file(weights()) + b"x")
    with pytest.raises(SystemExit, match="behind its end"):
        read_ant(tmp_path / "ant.pkl")


# Fetching, from an address in the file system


@pytest.fixture
def place(tmp_path, monkeypatch) -> tuple[str, str]:
    """Address and SHA-256 of a file with b'content'; the cache is in tmp_path."""
    monkeypatch.setenv("D4RL_POLICIES", str(tmp_path / "cache"))
    (tmp_path / "there").write_bytes(b"content")
    return (tmp_path / "there").as_uri(), hashlib.sha256(b"content").hexdigest()


def test_fetched_once_and_verified(place, tmp_path):
    path = fetch(*place, "p.pkl")
    assert path == tmp_path / "cache" / "p.pkl" and path.read_bytes() == b"content"
    (tmp_path / "there").unlink()
    assert fetch(*place, "p.pkl") == path
    path.write_bytes(b"conten")
    with pytest.raises(SystemExit, match="delete it"):
        fetch(*place, "p.pkl")


def test_another_hash_is_refused_and_not_stored(place, tmp_path):
    with pytest.raises(SystemExit, match="nothing was stored"):
        fetch(place[0], "0" * 64, "p.pkl")
    (tmp_path / "there").unlink()
    with pytest.raises(SystemExit, match="no download"):
        fetch(*place, "p.pkl")
    assert not list(tmp_path.glob("cache/*"))


def test_a_local_file_is_verified(place, tmp_path):
    local = tmp_path / "mine.pkl"
    with pytest.raises(SystemExit, match="cannot read"):
        fetch(*place, "p.pkl", local)
    local.write_bytes(b"other")
    with pytest.raises(SystemExit, match="give the file itself"):
        fetch(*place, "p.pkl", local)
    local.write_bytes(b"content")
    assert fetch(*place, "p.pkl", local) == local
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", d4rl_policies.POLICIES)
def test_the_published_files(name):
    path = d4rl_policies.policies_folder() / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    read = read_ant if name.startswith("ant") else read_snapshot
    arrays = read(d4rl_policies.policy_file(name))
    sizes = {"ant": (29, 8), "half": (17, 6), "hopp": (11, 3), "walk": (17, 6)}
    obs_dim, act_dim = sizes[name[:3] if name.startswith("ant") else name[:4]]
    assert arrays["fc0.weight"].shape == (256, obs_dim)
    assert arrays["last_fc.weight"].shape == (act_dim, 256)
