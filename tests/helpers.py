"""What the tests of several scripts use: arrays, commands, stopped runs and what they leave."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import torch


def gaussian(policy, x, y) -> np.ndarray:
    """log density of y by the textbook formula in float64, (N, B)."""
    with torch.no_grad():
        mean, std = (part.double().numpy() for part in policy(x))
    y = y.double().numpy()
    return (-((y - mean) ** 2) / (2 * std**2) - np.log(std * np.sqrt(2 * np.pi))).sum(-1)


def flat(raw: dict, *without: str) -> dict:
    """What read_hdf5 takes of a file with those arrays."""
    return {k: v for k, v in raw.items() if "/" not in k and k not in without}


def hopper_task(por) -> dict:
    """What load_dataset passes on for D4RL's hopper-medium-v2."""
    spec = por.gym.spec("Hopper-v4")
    return {"name": "hopper-medium-v2", "env_id": spec.id, "env_spec": spec.to_json(),
            "horizon": 1000, "ref_min": -20.272305, "ref_max": 3234.3}


def command(run_dir: str, options: list) -> list:
    """Words of a command that trains seeds 5 and 6 on the folder's data.hdf5."""
    return ["--env", "hopper-medium-v2", "--dataset-file", "data.hdf5", "--seed", "5",
            "--num-seeds", "2", "--run-dir", run_dir, *options]


def result_of(run_dir: Path) -> dict:
    """result.json of a run."""
    return json.loads((run_dir / "result.json").read_text())


def curves(folder: Path) -> dict:
    """Tag -> steps of one TensorBoard folder, all values finite; what a resume purged is absent."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert all(np.isfinite(e.value) for column in found.values() for e in column)
    return {tag: [e.step for e in column] for tag, column in found.items()}


def headline(out: str) -> str:
    """The scores of the last report in the output."""
    return re.findall(r"normalized score (.* seeds \(.*?\))", out)[-1]


def stop_when(process, folder: Path, phase: int, step: int, number: int) -> str:
    """Send the signal once a checkpoint is that far; returns what the process had printed."""
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        try:
            result = result_of(folder)
        except (OSError, ValueError):
            result = {"phase": 0, "step": -1}
        if (result["phase"], result["step"]) >= (phase, step):
            assert not result["finished"], "the run was too short to be stopped in its middle"
            break
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143), out + err
    assert "Traceback" not in err
    return out


def differing(one, other, name="") -> list[str]:
    """Names of what differs in two nested states, down to the bits of the tensors."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [name]
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        return [d for k in one for d in differing(one[k], other[k], f"{name}/{k}")]
    if isinstance(one, list):
        assert len(one) == len(other), name
        return [d for i, x in enumerate(one) for d in differing(x, other[i], f"{name}/{i}")]
    return [] if one == other else [name]


def same_end(folder: Path, one: str, other: str) -> None:
    """Both runs ended with the same weights, optimisers, generators and evaluations."""
    states = [torch.load(folder / run / "checkpoint.pt") for run in (one, other)]
    keys = ("agent", "moments", "generators", "evaluations", "phase", "step", "finished")
    assert states[0]["finished"] and len(states[0]["generators"]) == 2
    assert differing(*({key: state[key] for key in keys} for state in states)) == []


def keep_gradients(agent):
    """The agent, whose optimisers now leave the gradients of their last step in `.grad`."""
    def kept(optimizer, step):
        def keep_and_step(gradients):
            for weight, gradient in zip(optimizer.weights, gradients, strict=True):
                weight.grad = gradient
            step(gradients)
        return keep_and_step

    for optimizer in agent.optimizers.values():
        optimizer.step = kept(optimizer, optimizer.step)
    return agent


# ---- Parity with other people's code: what is drawn, stored and compared ----

def cast(agent, dtype) -> None:
    """Weights of an agent and the moments of its optimisers, which have not stepped yet."""
    agent.to(dtype)
    for optimizer in agent.optimizers.values():
        optimizer.__init__(optimizer.weights, optimizer.lr.item())


def uniform(rng, low: float, high: float, *shape: int) -> np.ndarray:
    """Uniform numbers: NumPy promises their stream for longer than that of normal ones."""
    return low + (high - low) * rng.random(shape)


def shorten(numbers) -> list[float]:
    """Nine digits are far finer than any tolerance here."""
    return [float(f"{x:.9g}") for x in numbers]


def digest(tensors: dict) -> dict:
    """Norm and up to four entries of each tensor."""
    spread = lambda x: x.ravel()[np.unique(np.linspace(0, x.size - 1, 4).astype(int))]
    return {k: shorten([np.linalg.norm(x), *spread(x)]) for k, x in tensors.items()}


def differences(ours: dict, golden: dict, tolerance: float) -> list[str]:
    """Every recorded number that ours misses by more than tolerance * max(1, |number|)."""
    found = []
    for kind, steps in golden.items():
        for step, expected in steps.items():
            mine = ours[kind][step]
            if kind == "losses":
                expected, mine = {"losses": expected}, {"losses": mine}
            assert mine.keys() == expected.keys()
            for name, numbers in expected.items():
                a, b = np.array(mine[name]), np.array(numbers)
                assert a.shape == b.shape, (step, name)
                worst = (abs(a - b) / np.maximum(1, abs(b))).max()
                if not worst <= tolerance:
                    found.append(f"after update {step}, {name}: off by {worst:.1e}")
    return found
