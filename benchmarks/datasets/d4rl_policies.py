"""Fetch D4RL's own behaviour policies, verify them, and read them without running any code.

D4RL's AntMaze data were all collected by one goal-reaching ant, which D4RL publishes beside its
generation scripts. The authors of Deep OPE (arXiv 2103.16596) published snapshots of the SAC
trainings that D4RL's Gym-MuJoCo data come from. The hands that made D4RL's Adroit experts are those
of DAPG (arXiv 1709.10087). Other programs fetch the files that they need; this command fetches them
in advance, for a machine without a network. They are kept in $D4RL_POLICIES, or ~/.d4rl/policies.

    python -m benchmarks.datasets.d4rl_policies                          # all
    python -m benchmarks.datasets.d4rl_policies ant_hierarch_pol.pkl     # this one

All files are pickles, a format that may run anything when it is read. Here nothing that a file
names is ever imported or called. The reader of the snapshots knows NumPy's array constructors and
refuses every other name. The readers of the ant and of the hands, files of an old PyTorch that are
full of objects of other packages, put an empty object in the place of every name that they do not
know.

Weights are float32 arrays, named as in `nn.Linear`, of a tanh-Gaussian policy with two hidden ReLU
layers: fc0, fc1, last_fc (the mean) and last_fc_log_std, each with .weight (out, in) and .bias. A
hand has tanh layers, a mean that is not squashed, and a log_std (out,) instead of the fourth layer.
"""

import hashlib
import io
import math
import os
import pickle
import struct
import sys
import urllib.request
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.common import write_atomically

DEEP_OPE = "https://storage.googleapis.com/gresearch/deep-ope/d4rl/"
# File: address, SHA-256
POLICIES = {
    "ant_hierarch_pol.pkl": (
        "http://rail.eecs.berkeley.edu/datasets/offline_rl/ant_hierarch_pol.pkl",
        "692d3869a4a213cd1db141fcf147fe2cb0ca1969594bab1cc3f44659789f44aa",
    ),
    "halfcheetah_online_5.pkl": (
        DEEP_OPE + "halfcheetah/halfcheetah_online_5.pkl",
        "e668cf7b9a820ac0767a5f4cf4240c112397fa1e8e216a5f08fe406ed21402e6",
    ),
    "halfcheetah_online_10.pkl": (
        DEEP_OPE + "halfcheetah/halfcheetah_online_10.pkl",
        "d04eea9aad5fe21358d3fdad1a3d3784eeb1356c14b1feb818c52978573fe290",
    ),
    "hopper_online_5.pkl": (
        DEEP_OPE + "hopper/hopper_online_5.pkl",
        "35cbbf83847f482d6f0eb4688f03966880b97ad9c622a8b11ad771c18088b250",
    ),
    "hopper_online_10.pkl": (
        DEEP_OPE + "hopper/hopper_online_10.pkl",
        "44a292f8db4274c475492aaa509ec4b7918fa15fb35c04f81f12e1ba0001045d",
    ),
    "walker_online_5.pkl": (
        DEEP_OPE + "walker/walker_online_5.pkl",
        "23e8a13ec8fb07484f2cb6a1b76c52f9f1f80b10646b5310ef17247629c2d7b7",
    ),
    "walker_online_10.pkl": (
        DEEP_OPE + "walker/walker_online_10.pkl",
        "8d622f463f8c9128c11156c4d0be6577342c6b7ede2cfd319be64f2a36cd1155",
    ),
}
HAND_DAPG = (
    "https://raw.githubusercontent.com/aravindr93/hand_dapg/"
    "9a1de23df6574e1b94e1da742e3326eb1f61c013/dapg/policies/"
)
POLICIES |= {
    "pen-v0.pickle": (
        HAND_DAPG + "pen-v0.pickle",
        "061dba4907a76b83139ae5a8d0809faa9774dd028d12ce869036b620bd728740",
    ),
    "hammer-v0.pickle": (
        HAND_DAPG + "hammer-v0.pickle",
        "14c6b603af09acf87247f8b45d58f9671790d8e4ca0c48c8db5e1f7c98126ef4",
    ),
    "door-v0.pickle": (
        HAND_DAPG + "door-v0.pickle",
        "288dd2131b905e40852d9eb032595bb9b3aa90b0502e9341e6b0e128b803478f",
    ),
    "relocate-v0.pickle": (
        HAND_DAPG + "relocate-v0.pickle",
        "41432c3125c97a8eb101d5d482f062b1f9bb72239a3abccae7428ef0e66413fc",
    ),
}
LAYERS = ("fc0", "fc1", "last_fc", "last_fc_log_std")
LARGEST = 2**24  # bytes of a policy file; the published ones have less than a million
TORCH_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch/serialization.py


@dataclass
class Args:
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = tuple(POLICIES)
    """names of the files; default: all"""


def policies_folder() -> Path:
    """Return the folder in which fetched policies are kept."""
    return Path(os.environ.get("D4RL_POLICIES", "~/.d4rl/policies")).expanduser()


def policy_file(name: str) -> Path:
    """Return the path of a file of POLICIES. It is downloaded if missing, and always verified."""
    url, sha256 = POLICIES[name]
    path = policies_folder() / name
    try:
        if path.exists():
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                sys.exit(f"{path} is not {url}: its SHA-256 differs; delete it to fetch it again")
            return path
        content = download(url)
        if hashlib.sha256(content).hexdigest() != sha256:
            sys.exit(f"{url} sent another file: its SHA-256 is not {sha256}; nothing was stored")
        write_atomically(path, content)
    except OSError as error:
        sys.exit(f"{error}; set D4RL_POLICIES to a folder that holds {name} or can be written")
    return path


def download(url: str) -> bytes:
    """Return the content of an address."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read(LARGEST)
    except OSError as error:
        name = url.rpartition("/")[2]
        sys.exit(
            f"{url} could not be downloaded ({error}); put the file into {policies_folder()}, or "
            f"set D4RL_POLICIES to a folder that holds {name}"
        )


# --------------------------------------------------------------------------------------------------
# The readers
# --------------------------------------------------------------------------------------------------


class ArrayUnpickler(pickle.Unpickler):
    """Knows what a NumPy array is made of, and refuses everything else."""

    KNOWN = {
        "multiarray._reconstruct": np._core.multiarray._reconstruct,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }

    def find_class(self, module, name):
        # NumPy 2 renamed numpy.core to numpy._core.
        short = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if f"{short}.{name}" not in self.KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no NumPy array")
        return self.KNOWN[f"{short}.{name}"]


class Empty:
    """Stands for an object of an unknown class, and keeps its state as data."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        self.state = None

    def __setstate__(self, state):
        self.state = state


def tensor_parts(*args) -> tuple:
    """Return what torch._utils._rebuild_tensor_v2 is given: storage, offset, shape, strides."""
    return args[:4]


def parameter_data(data, *args):
    """Return what torch._utils._rebuild_parameter is given: the tensor."""
    return data


class TorchUnpickler(pickle.Unpickler):
    """Reads the objects of a PyTorch file as Empty, and its tensors as tensor_parts().

    A storage is read as its key; the numbers follow behind the pickles.
    """

    KNOWN = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": tensor_parts,
        "torch._utils._rebuild_parameter": parameter_data,
    }

    def find_class(self, module, name):
        return self.KNOWN.get(f"{module}.{name}", Empty)

    def persistent_load(self, saved):
        if saved[0] == "storage":
            return saved[2]
        return Empty  # ("module", class, file, its source text)


def stored_numbers(content: bytes) -> np.ndarray:
    """Return what torch.storage._load_from_bytes is given: numbers behind five pickles."""
    file = io.BytesIO(content)
    magic, _, _, _, keys = [TorchUnpickler(file).load() for _ in range(5)]
    if magic != TORCH_MAGIC_NUMBER or len(keys) != 1:
        raise ValueError("a storage is none of PyTorch's")
    (size,) = struct.unpack("<q", file.read(8))
    numbers = file.read()
    return np.frombuffer(numbers, "<f4" if len(numbers) == 4 * size else "<f8", size)


def attribute_name(owner, name: str) -> str:
    """Return what getattr is given: the name of one of PyTorch's functions."""
    return name


class HandUnpickler(TorchUnpickler):
    """Reads the hands, whose storages lie in the pickle itself, and which hold arrays, too."""

    KNOWN = TorchUnpickler.KNOWN | {
        "torch.storage._load_from_bytes": stored_numbers,
        "builtins.getattr": attribute_name,
        "numpy.core.multiarray._reconstruct": np._core.multiarray._reconstruct,
        "numpy.core.multiarray.scalar": np._core.multiarray.scalar,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }


def read_snapshot(path: Path) -> dict[str, np.ndarray]:
    """Return the weights of a snapshot in Deep OPE's format."""
    try:
        content = ArrayUnpickler(io.BytesIO(Path(path).read_bytes())).load()
        kind = content.pop("nonlinearity"), content.pop("output_distribution")
        if kind != ("relu", "tanh_gaussian"):
            raise ValueError(f"it is of the kind {kind}")
        return checked({key.replace("/", "."): value for key, value in content.items()})
    except Exception as error:  # a damaged pickle raises nearly every type
        sys.exit(f"{path} holds no policy in the format of Deep OPE: {error!r}")


def read_ant(path: Path) -> dict[str, np.ndarray]:
    """Return the weights of D4RL's goal-reaching ant.

    Of its policies it is `exploration/policy` that collected the data. The file has five pickles (a
    magic number, the version, sizes of types, the objects, the keys of the storages). Then follow,
    for each key, the number of its values in 8 bytes, and the values.
    """
    try:
        file = io.BytesIO(Path(path).read_bytes())
        magic, _, _, objects, keys = [TorchUnpickler(file).load() for _ in range(5)]
        if magic != TORCH_MAGIC_NUMBER:
            raise ValueError("it is no file of PyTorch")
        storages = {}
        for key in keys:
            (size,) = struct.unpack("<q", file.read(8))
            storages[key] = np.frombuffer(file.read(4 * size), "<f4", size)
        if file.read(1):
            raise ValueError("there is something behind its end")
        weights = {}
        for layer in LAYERS:
            linear = objects["exploration/policy"].state["_modules"][layer]
            for name, parts in linear.state["_parameters"].items():
                weights[f"{layer}.{name}"] = read_tensor(storages, *parts)
        return checked(weights)
    except Exception as error:  # a damaged pickle raises nearly every type
        sys.exit(f"{path} is not D4RL's goal-reaching ant: {error!r}")


def read_hand(path: Path) -> dict[str, np.ndarray]:
    """Return the weights of one of DAPG's hands (mjrl's gaussian_mlp.py and fc_network.py).

    Its network shifts and scales observations and actions, which the first and the last layer do
    here.
    """
    try:
        hand = HandUnpickler(io.BytesIO(Path(path).read_bytes())).load().state
        network = hand["model"].state
        if network["nonlinearity"] != "tanh":
            raise ValueError(f"its layers are of the kind {network['nonlinearity']}")
        weights = {}
        for name, layer in network["_modules"]["fc_layers"].state["_modules"].items():
            name = LAYERS[int(name)]
            for part, tensor in layer.state["_parameters"].items():
                weights[f"{name}.{part}"] = numbers_of(tensor)
        weights["fc0.weight"] = weights["fc0.weight"] / (numbers_of(network["in_scale"]) + 1e-8)
        weights["fc0.bias"] -= weights["fc0.weight"] @ numbers_of(network["in_shift"])
        scale = numbers_of(network["out_scale"])
        weights["last_fc.weight"] = scale[:, None] * weights["last_fc.weight"]
        weights["last_fc.bias"] = scale * weights["last_fc.bias"]
        weights["last_fc.bias"] += numbers_of(network["out_shift"])
        weights["log_std"] = numbers_of(hand["log_std_val"])
        for key, array in weights.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{key} is not finite")
        return {key: array.astype(np.float32) for key, array in weights.items()}
    except Exception as error:  # a damaged pickle raises nearly every type
        sys.exit(f"{path} is none of DAPG's hands: {error!r}")


def numbers_of(tensor) -> np.ndarray:
    """Return an array, or a tensor's parts as one, in float64."""
    if isinstance(tensor, tuple):
        storage, *where = tensor
        tensor = read_tensor({0: storage}, 0, *where)
    return np.array(tensor, float)


def read_tensor(storages: dict, key: str, start: int, shape: tuple, strides: tuple) -> np.ndarray:
    """Return a matrix or a vector that is stored row by row."""
    wanted = (shape[1], 1) if len(shape) == 2 else (1,)
    if strides != wanted:
        raise ValueError(f"a tensor has the strides {strides}, not {wanted}")
    return storages[key][start : start + math.prod(shape)].reshape(shape)


def checked(weights: dict) -> dict[str, np.ndarray]:
    """Return the weights if they are those of one policy."""
    hidden, obs_dim = weights["fc0.weight"].shape
    act_dim = len(weights["last_fc.bias"])
    shapes = {
        "fc0": (hidden, obs_dim),
        "fc1": (hidden, hidden),
        "last_fc": (act_dim, hidden),
        "last_fc_log_std": (act_dim, hidden),
    }
    wanted = {f"{layer}.weight": shape for layer, shape in shapes.items()}
    wanted |= {f"{layer}.bias": shape[:1] for layer, shape in shapes.items()}
    if weights.keys() != wanted.keys():
        raise ValueError(f"it has the arrays {sorted(weights)}, not {sorted(wanted)}")
    for key, array in weights.items():
        if array.shape != wanted[key] or array.dtype != np.float32:
            raise ValueError(f"{key} is {array.dtype} of shape {array.shape}, not {wanted[key]}")
        if not np.isfinite(array).all():
            raise ValueError(f"{key} is not finite")
    return {key: np.array(array, np.float32) for key, array in weights.items()}


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for name in args.files:
        if name not in POLICIES:
            sys.exit(f"there is no policy {name}; there are {', '.join(POLICIES)}")
    for name in args.files:
        path = policy_file(name)
        if name.endswith(".pickle"):
            weights = read_hand(path)
        elif name == "ant_hierarch_pol.pkl":
            weights = read_ant(path)
        else:
            weights = read_snapshot(path)
        obs_dim = weights["fc0.weight"].shape[1]
        print(f"{path}: {obs_dim} inputs, {len(weights['last_fc.bias'])} actions")


if __name__ == "__main__":
    main()
