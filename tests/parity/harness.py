"""What all parity tests share: the recipe's numbers, our updates on them, and the comparison.

A recipe draws weights, batches and noise from nothing but uniform numbers of NumPy's PCG64, whose
stream is promised to last. golden/<algorithm>.json holds what the authors' code computed from them;
the tests feed the same numbers to our updates. Noise takes the place of torch.randn_like.

A test module holds the cases, the recipe of its networks and batches, and `slots`, which shows our
weights in the authors' layout. Its `record`, if run with a checkout of the authors' code, writes
the golden file anew.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

GOLDEN = Path(__file__).parent / "golden"
UPDATES = 50
CURVE = (1, 2, 10, 25, 50)  # updates after which losses are compared
# Relative to max(1, |the authors' number|)
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}

# ---- The recipe ----


def uniform(rng, low: float, high: float, *shape: int) -> np.ndarray:
    """Draw uniform numbers."""
    return low + (high - low) * rng.random(shape)


def draw_network(rng, dims: list[int], layer_norm: bool = False, outside=None) -> dict:
    """Draw a network as PyTorch stores it, with (out, in) weights.

    `outside` is the first entry of a policy's log-deviation, which its clamp is to change.
    """
    tensors = {}
    if outside is not None:
        tensors["log_std"] = uniform(rng, -1, 0.5, dims[-1])
        tensors["log_std"][0] = outside
    for i, (fan_in, fan_out) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        tensors[f"weight{i}"] = uniform(rng, -1, 1, fan_out, fan_in) / fan_in**0.5
        tensors[f"bias{i}"] = uniform(rng, -1, 1, fan_out) / fan_in**0.5
        if layer_norm and i < len(dims) - 2:
            tensors[f"gain{i}"] = uniform(rng, 0.5, 1.5, fan_out)
            tensors[f"shift{i}"] = uniform(rng, -0.5, 0.5, fan_out)
    return tensors


def flatten(networks: dict) -> dict:
    """{network: {tensor: array}} -> {"network.tensor": array}"""
    return {
        f"{network}.{name}": array
        for network, tensors in networks.items()
        for name, array in tensors.items()
    }


def is_float64(case: dict) -> bool:
    return case["dtype"] == "float64"


# ---- Our code ----


@contextmanager
def default_dtype(case: dict) -> Iterator[None]:
    """Compute in the case's type, and with full products of float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_default_dtype(getattr(torch, case["dtype"]))
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(precision)


def make_task(module: ModuleType, **known):
    """Return a Task with bounds [-1, 1] of the actions, and what the case says of it."""
    act_dim = known.get("act_dim", 1)
    fields = {"action_low": [-1.0] * act_dim, "action_high": [1.0] * act_dim} | known
    fields = {"name": "a-task", "source": "", "env_id": "A-v0", "env_kwargs": {}} | fields
    fields = {"max_episode_steps": 1000, "ref_min": None, "ref_max": None} | fields
    return module.Task(**fields)


def make_args(module: ModuleType, options: dict, **more):
    """Return Args with those of the options that the script knows."""
    known = module.Args.__dataclass_fields__
    return module.Args(**{key: value for key, value in options.items() if key in known} | more)


def views(net: nn.Sequential, index: int) -> dict:
    """Return views of one copy of a stacked network, in the layout of draw_network."""
    found = {}
    number = -1
    for layer in net:
        kind = type(layer).__name__
        if kind == "StackedLinear":
            number += 1
            found[f"weight{number}"] = layer.weight.data[index].T
            found[f"bias{number}"] = layer.bias.data[index, 0]
        elif kind == "StackedLayerNorm":
            found[f"gain{number}"] = layer.weight.data[index, 0]
            found[f"shift{number}"] = layer.bias.data[index, 0]
    return found


def twin_views(critic: nn.Module, n: int) -> list[dict]:
    """Return views of agent n's two networks in a critic."""
    if hasattr(critic, "net"):
        return [views(critic.net, 2 * n + i) for i in (0, 1)]
    return [views(critic.q1, n), views(critic.q2, n)]


def fill(slots: dict, weights: dict) -> None:
    """Write the recipe's weights into the views of ours, which must have the same names."""
    assert slots.keys() == weights.keys()
    for name, view in slots.items():
        assert view.shape == weights[name].shape, name
        view.copy_(torch.as_tensor(weights[name]))


def tensors(batch: dict) -> dict:
    """Return the arrays as tensors of the default type."""
    dtype = torch.get_default_dtype()
    return {key: torch.as_tensor(array).to(dtype) for key, array in batch.items()}


def stack(parts: Iterable[dict]) -> dict:
    """Join the batches of all agents: {key: (B, ...)} each -> {key: tensor (N, B, ...)}."""
    parts = list(parts)
    return tensors({key: np.stack([part[key] for part in parts]) for key in parts[0]})


@contextmanager
def fed_noise(numbers: list[torch.Tensor]) -> Iterator[None]:
    """Let torch.randn_like return these numbers, one after another. All must be asked for."""
    queue = list(numbers)

    def next_noise(like, **_):
        return queue.pop(0).reshape(like.shape).to(like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", next_noise)
        yield
    assert not queue, "an update drew less noise than the recipe has"


def run_updates(
    turns: list[Callable],
    batches: list[dict],
    noise: list[list],
    losses: tuple[str, ...],
    slots: Callable[[], dict],
    snapshots: tuple[int, ...] = (1, UPDATES),
) -> dict:
    """Do the updates, which take turns. Return what the last agent's losses and weights become."""
    result = {"losses": {}, "parameters": {}}
    for step, (batch, numbers) in enumerate(zip(batches, noise, strict=True), 1):
        with fed_noise(numbers):
            statistics = turns[(step - 1) % len(turns)](batch)
        values = [statistics[name][-1].item() for name in losses if name in statistics]
        note(result, step, values, slots, snapshots)
    return result


# ---- What is kept and compared ----


def note(result: dict, step: int, losses: list, parameters: Callable, snapshots=(1, UPDATES)):
    """Keep what is compared after this update. Keys are strings, because JSON has no others."""
    if step in CURVE:
        result["losses"][str(step)] = shorten(losses)
    if step in snapshots:
        arrays = {name: as_numpy(tensor) for name, tensor in parameters().items()}
        result["parameters"][str(step)] = {name: digest(array) for name, array in arrays.items()}


def as_numpy(tensor) -> np.ndarray:
    return tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def shorten(numbers) -> list[float]:
    """Round to nine digits, which are far finer than any tolerance here."""
    return [float(f"{x:.9g}") for x in numbers]


def digest(array: np.ndarray) -> list[float]:
    """Return the norm and up to four entries."""
    spread = np.unique(np.linspace(0, array.size - 1, 4).astype(int))
    return shorten([np.linalg.norm(array), *array.ravel()[spread]])


def differences(ours, golden, tolerance: float, where: str = "") -> list[str]:
    """Name every recorded number that ours misses by more than tolerance * max(1, |number|)."""
    if isinstance(golden, dict):
        assert ours.keys() >= golden.keys(), where
        found = [differences(ours[k], golden[k], tolerance, f"{where}/{k}") for k in golden]
        return [line for lines in found for line in lines]
    mine, theirs = np.array(ours), np.array(golden)
    assert mine.shape == theirs.shape, where
    worst = (abs(mine - theirs) / np.maximum(1, abs(theirs))).max()
    return [] if worst <= tolerance else [f"{where}: off by {worst:.1e}"]


def load_golden(algorithm: str, cases: dict) -> dict:
    """Return what the authors' code computed. The file must have been made from these cases."""
    content = json.loads((GOLDEN / f"{algorithm}.json").read_text())
    assert content["cases"] == cases, f"golden/{algorithm}.json is old"
    assert content["updates"] == UPDATES, f"golden/{algorithm}.json is old"
    return content


def write_golden(algorithm: str, repository: str, commit: str, cases: dict, **results) -> None:
    """Write a golden file."""
    content = {"repository": repository, "commit": commit, "updates": UPDATES, "cases": cases}
    text = json.dumps(content | results, indent=0)
    text = re.sub(r"\[[^]]*\]", lambda numbers: numbers[0].replace("\n", ""), text)
    (GOLDEN / f"{algorithm}.json").write_text(text + "\n")


def without_float32_parameters(results: dict, cases: dict) -> dict:
    """Drop the weights of float32 cases, which drift with the order of sums."""
    for name, phases in results.items():
        if not is_float64(cases[name]):
            for kinds in (phases, *phases.values()):
                kinds.pop("parameters", None)
    return results
