"""D4RL's own behaviour policies: fetched, verified by SHA-256, read without running any code.

D4RL's AntMaze data were all collected by one goal-reaching ant, which D4RL publishes beside its
generation scripts. The authors of Deep OPE (arXiv 2103.16596) published snapshots of the SAC runs
that D4RL's Gym-MuJoCo data come from. Both are pickles, a format that may run anything when it is
read. Here nothing of a file is ever called or imported: the reader of the snapshots knows NumPy's
array constructors and refuses every other name, the reader of the ant (a file of an old PyTorch,
full of objects of rlkit and gym) puts an empty object in the place of every name it does not know.

    path = policy_file("ant_hierarch_pol.pkl")  # $D4RL_POLICIES, or ~/.d4rl/policies
    weights = read_ant(path)

Weights are float32 arrays named as in `nn.Linear`, for a tanh-Gaussian policy with two hidden ReLU
layers: fc0, fc1, last_fc (the mean) and last_fc_log_std, each with .weight (out, in) and .bias.
"""

import hashlib
import io
import math
import os
import pickle
import struct
import urllib.request
from collections import OrderedDict
from pathlib import Path

import numpy as np

DEEP_OPE = "https://storage.googleapis.com/gresearch/deep-ope/d4rl/"
# file: address, SHA-256
POLICIES = {
    "ant_hierarch_pol.pkl": (
        "http://rail.eecs.berkeley.edu/datasets/offline_rl/ant_hierarch_pol.pkl",
        "692d3869a4a213cd1db141fcf147fe2cb0ca1969594bab1cc3f44659789f44aa"),
    "halfcheetah_online_5.pkl": (
        DEEP_OPE + "halfcheetah/halfcheetah_online_5.pkl",
        "e668cf7b9a820ac0767a5f4cf4240c112397fa1e8e216a5f08fe406ed21402e6"),
    "halfcheetah_online_10.pkl": (
        DEEP_OPE + "halfcheetah/halfcheetah_online_10.pkl",
        "d04eea9aad5fe21358d3fdad1a3d3784eeb1356c14b1feb818c52978573fe290"),
    "hopper_online_5.pkl": (
        DEEP_OPE + "hopper/hopper_online_5.pkl",
        "35cbbf83847f482d6f0eb4688f03966880b97ad9c622a8b11ad771c18088b250"),
    "hopper_online_10.pkl": (
        DEEP_OPE + "hopper/hopper_online_10.pkl",
        "44a292f8db4274c475492aaa509ec4b7918fa15fb35c04f81f12e1ba0001045d"),
    "walker_online_5.pkl": (
        DEEP_OPE + "walker/walker_online_5.pkl",
        "23e8a13ec8fb07484f2cb6a1b76c52f9f1f80b10646b5310ef17247629c2d7b7"),
    "walker_online_10.pkl": (
        DEEP_OPE + "walker/walker_online_10.pkl",
        "8d622f463f8c9128c11156c4d0be6577342c6b7ede2cfd319be64f2a36cd1155"),
}
LAYERS = ("fc0", "fc1", "last_fc", "last_fc_log_std")
LARGEST = 2**24  # bytes of a policy file; the published ones have less than one million


def policies_folder() -> Path:
    """Where fetched policies are kept: $D4RL_POLICIES, or ~/.d4rl/policies."""
    return Path(os.environ.get("D4RL_POLICIES", "~/.d4rl/policies")).expanduser()


def policy_file(name: str, local: Path | None = None) -> Path:
    """The verified file of that name in POLICIES; `local` is used instead of a fetched one."""
    return fetch(*POLICIES[name], name, local)


def fetch(url: str, sha256: str, name: str, local: Path | None = None) -> Path:
    """Path of a file with that SHA-256: `local`, or the cached `name`, downloaded if missing.

    Raises SystemExit if there is no such file or its SHA-256 is another; nothing is stored then.
    """
    path = Path(local) if local else policies_folder() / name
    if path.exists() or local:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SystemExit(f"cannot read {path}: {error.strerror}. It should be {url}")
        if hashlib.sha256(content).hexdigest() != sha256:
            advice = "give the file itself" if local else "delete it, then it is fetched again"
            raise SystemExit(f"{path} ({len(content)} bytes) is not {url}: its SHA-256 is not "
                             f"{sha256}; {advice}")
        return path
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read(LARGEST)
    except OSError as error:
        raise SystemExit(f"no file {path}, and no download of {url} ({error}). Fetch it elsewhere "
                         f"and put it there, or set D4RL_POLICIES to a folder that holds {name}")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{url} sent {len(content)} bytes with another SHA-256 than {sha256}; "
                         "nothing was stored. Try again, or get the file elsewhere")
    part = path.with_name(f".{name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.rename(path)
    except OSError as error:
        raise SystemExit(f"cannot store {path}: {error.strerror}. Set D4RL_POLICIES to a folder "
                         "you can write")
    finally:
        part.unlink(missing_ok=True)
    return path


# ---------------------------------------------------------------------------------------------
# The two readers
# ---------------------------------------------------------------------------------------------


class _ArrayUnpickler(pickle.Unpickler):
    """Knows what a NumPy array is made of, and nothing else."""

    KNOWN = {("multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
             ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}

    def find_class(self, module, name):
        # NumPy 2 renamed numpy.core to numpy._core
        short = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if (short, name) in self.KNOWN:
            return self.KNOWN[short, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no NumPy array")


class _Empty:
    """Stands for an object of an unknown class and keeps its state, as data."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        self.state = None

    def __setstate__(self, state):
        self.state = state


class _TorchUnpickler(pickle.Unpickler):
    """The objects of a PyTorch file as `_Empty`, its tensors as (storage, offset, shape, stride).

    A storage is its key: the numbers follow behind the pickle.
    """

    KNOWN = {("collections", "OrderedDict"): OrderedDict,
             ("torch._utils", "_rebuild_tensor_v2"): lambda *args: args[:4],
             ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data}

    def find_class(self, module, name):
        return self.KNOWN.get((module, name), _Empty)

    def persistent_load(self, saved):
        if saved[0] == "storage":
            return saved[2]
        return _Empty  # ("module", class, file, its source text)


def read_snapshot(path: Path) -> dict[str, np.ndarray]:
    """Weights of a Deep OPE snapshot (see the top). Raises SystemExit if the file is none."""
    try:
        content = _ArrayUnpickler(io.BytesIO(Path(path).read_bytes())).load()
        kind = content.pop("nonlinearity"), content.pop("output_distribution")
        if kind != ("relu", "tanh_gaussian"):
            raise ValueError(f"it is of the kind {kind}")
        return _checked({key.replace("/", "."): value for key, value in content.items()})
    except Exception as error:  # whatever a damaged pickle raises
        raise SystemExit(f"{path} holds no snapshot of Deep OPE: {error or repr(error)}")


def read_ant(path: Path) -> dict[str, np.ndarray]:
    """Weights of D4RL's goal-reaching ant (see the top).

    Only its `exploration/policy` is kept, the one that collected the data. Such a file has five
    pickles (a magic number, the version, sizes of types, the objects, the keys of the storages),
    then for each key the number of its values, 8 bytes, and the values.
    Raises SystemExit if the file is none.
    """
    try:
        file = io.BytesIO(Path(path).read_bytes())
        magic, _, _, objects, keys = [_TorchUnpickler(file).load() for _ in range(5)]
        if magic != 0x1950A86A20F9469CFC6C:  # torch/serialization.py, MAGIC_NUMBER
            raise ValueError("it is no file of PyTorch")
        storages = {}
        for key in keys:
            size, = struct.unpack("<q", file.read(8))
            storages[key] = np.frombuffer(file.read(4 * size), "<f4", size)
        if file.read(1):
            raise ValueError("there is something behind its end")
        weights = {}
        for layer in LAYERS:
            linear = objects["exploration/policy"].state["_modules"][layer]
            for name, (key, start, shape, stride) in linear.state["_parameters"].items():
                size = math.prod(shape)
                if stride != ((shape[1], 1) if len(shape) == 2 else (1,)):
                    raise ValueError(f"{layer}.{name} is not stored row by row")
                weights[f"{layer}.{name}"] = storages[key][start:start + size].reshape(shape)
        return _checked(weights)
    except Exception as error:  # whatever a damaged pickle raises
        raise SystemExit(f"{path} holds no goal-reaching ant of D4RL's: {error or repr(error)}")


def _checked(weights: dict) -> dict[str, np.ndarray]:
    """The weights as float32, if they are those of one policy. Raises ValueError or KeyError."""
    hidden, obs_dim = weights["fc0.weight"].shape
    act_dim = len(weights["last_fc.bias"])
    for layer, (rows, columns) in zip(LAYERS, ((hidden, obs_dim), (hidden, hidden),
                                               (act_dim, hidden), (act_dim, hidden))):
        for name, shape in (("weight", (rows, columns)), ("bias", (rows,))):
            array = weights[f"{layer}.{name}"]
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"{layer}.{name} is {array.dtype} of shape {array.shape}, not "
                                 f"finite float32 of {shape}")
    if len(weights) != 2 * len(LAYERS):
        raise ValueError(f"it has more than the layers {LAYERS}: {sorted(weights)}")
    return {key: np.array(array, np.float32) for key, array in weights.items()}
