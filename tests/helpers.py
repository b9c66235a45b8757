"""What the tests of several scripts use: small agents, stopped runs and what runs leave."""

import importlib
import io
import json
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

# ---- The mathematics of one script ----


def make_task(module: ModuleType, obs_dim: int = 4, act_dim: int = 2, **known):
    """Return a Task whose actions lie in [-1, 1] and whose observations are standard already."""
    fields = {"name": "a-task", "source": "", "env_id": "A-v0", "env_kwargs": {}}
    fields |= {"max_episode_steps": 1000, "ref_min": None, "ref_max": None}
    fields |= {"obs_dim": obs_dim, "act_dim": act_dim}
    fields |= {"action_low": [-1.0] * act_dim, "action_high": [1.0] * act_dim}
    fields |= {"obs_mean": [0.0] * obs_dim, "obs_std": [1.0] * obs_dim}
    return module.Task(**fields | known)


def make_batch(num_seeds: int = 2, size: int = 32, obs_dim=4, act_dim=2, seed: int = 0) -> dict:
    """Return random rows. A quarter ends an episode, and half of these have no next state."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(num_seeds, size, *shape, generator=draw)

    batch = {"observations": normal(obs_dim), "next_observations": normal(obs_dim)}
    batch |= {"actions": normal(act_dim).tanh(), "rewards": normal()}
    batch |= {"terminals": torch.zeros(num_seeds, size), "next_valid": torch.ones(num_seeds, size)}
    batch["terminals"][:, ::4] = 1
    batch["next_valid"][:, ::8] = 0
    return batch


def make_data(columns: dict, episode_end=None) -> dict:
    """Return data as load_dataset() does. Each row is an episode of its own unless told."""
    rows = len(columns["rewards"])
    data = {key: np.asarray(column, dtype=np.float32) for key, column in columns.items()}
    if episode_end is None:
        episode_end = np.ones(rows, dtype=bool)
    data["episode_end"] = np.asarray(episode_end, dtype=bool)
    data.setdefault("terminals", data["episode_end"].astype(np.float32))
    data.setdefault("next_observations", data["observations"])
    data.setdefault("next_valid", 1 - data["terminals"])
    return data


def train(module: ModuleType, args, task, columns: dict):
    """Train an agent on these columns through all its offline phases, without saving."""
    torch.manual_seed(args.seed)
    agent = module.Algorithm(args, task, "cpu")
    buffer = module.ReplayBuffer(columns, args, torch.device("cpu"))
    for phase in agent.phases:
        for step in range(phase.num_updates):
            phase.updates[step % len(phase.updates)](buffer.sample())
    return agent


def gaussian(policy, x, y) -> np.ndarray:
    """Return the log density of y by the textbook's formula in float64: (N, B)."""
    with torch.no_grad():
        mean, std = (part.double().numpy() for part in policy(x))
    y = y.double().numpy()
    return (-((y - mean) ** 2) / (2 * std**2) - np.log(std * np.sqrt(2 * np.pi))).sum(-1)


def forward(net, index: int, x: np.ndarray, masks=(1, 1)) -> np.ndarray:
    """Return the output (B, out) of one copy of an mlp() by NumPy, hidden units times masks."""
    layers = [layer for layer in net if list(layer.parameters())]
    for i, layer in enumerate(layers):
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        x = x @ weight[index] + bias[index]  # an index may be a list of copies
        if i < len(layers) - 1:
            x = np.maximum(x, 0) * masks[i]
    return x


def copies_of(parameters) -> list[torch.Tensor]:
    """Return the current values."""
    return [parameter.detach().clone() for parameter in parameters]


def keep_gradients(agent):
    """Let the agent's optimizers leave the gradients of their last step in `.grad`."""

    def kept(optimizer, step):
        def keep_and_step(grads):
            for parameter, gradient in zip(optimizer.params, grads, strict=True):
                parameter.grad = gradient.clone()
            step(grads)

        return keep_and_step

    for optimizer in agent.optimizers.values():
        optimizer.step = kept(optimizer, optimizer.step)
    return agent


# ---- Runs ----

# Options of a run of seconds. All counts differ, so that a mix-up of two options shows.
SMALL = ["--hidden=16", "--batch-size=20", "--eval-episodes=2", "--final-eval-episodes=3"]
EXPERT = Path(__file__).resolve().parents[1] / "benchmarks/datasets/behavior/hopper-medium.npz"
# What only one script has: a new algorithm adds a line
SMALLER = {
    "por": ["--execute-hidden=12"],
    "spot": ["--vae-hidden=12", "--vae-updates=20"],
    "sac": ["--random-steps=60"],
    "td3": ["--random-steps=60"],
    "ddpg": ["--random-steps=60"],
    "onestep": ["--behavior-updates=15", "--q-updates=18"],
    "bcq": ["--vae-hidden=12", "--test-samples=5"],
    "plas": ["--vae-hidden=12", "--vae-updates=18"],
    "discrete_bcq": ["--random-steps=60"],
    "abm": ["--num-samples=4"],
    "bear": ["--vae-hidden=12", "--test-samples=5", "--warmup-updates=12"],
    "brac": ["--policy-hidden=12", "--behavior-updates=15", "--warmup-updates=12"],
    "fisher_brc": ["--components=3", "--behavior-updates=15"],
    "cql": ["--num-actions=3"],
    "mopo": ["--model-hidden=12", "--model-updates=25", "--rollouts=30", "--rollout-every=7"],
    "combo": ["--model-hidden=12", "--model-updates=25", "--rollouts=30", "--rollout-every=7"],
    "dagger": [f"--expert={EXPERT}", "--updates-per-round=10", "--steps-per-round=30"],
    "bail": ["--envelope-hidden=12", "--envelope-updates=18", "--validate-every=6"],
    "dt": ["--num-blocks=2", "--warmup-updates=5"],
    "rvs": ["--targets", "3000", "1000"],
    "awr": ["--value-updates=15", "--policy-updates=25", "--new-steps=40", "--random-steps=60"],
}


def load_script(script: str | ModuleType) -> ModuleType:
    """Return a script of algorithms/ as a module."""
    return importlib.import_module(script) if isinstance(script, str) else script


def small_options(script: str) -> list[str]:
    """Return the options of a small run. A command that names a size itself gets its own."""
    return SMALL + SMALLER.get(script, [])


def dataset_folders(folder: Path) -> dict:
    """Return environment variables that keep a test away from the datasets of its user."""
    return {
        "MINARI_DATASETS_PATH": str(folder / "minari"),
        "D4RL_DATASET_DIR": str(folder / "d4rl"),
    }


def call_main(script: str | ModuleType, words, folder: Path) -> SimpleNamespace:
    """Run a script's command in this process and in a folder, without its seconds of imports.

    Return the exit code, the output and the errors. PyTorch's settings are put back.
    """
    module = load_script(script)
    out, err = io.StringIO(), io.StringIO()
    precision = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", threading.excepthook)
        for name, value in dataset_folders(folder).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"algorithms/{module.__name__}.py", *map(str, words)])
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = module.main()
        except SystemExit as end:
            code = end.code
        except KeyboardInterrupt:
            raise AssertionError("Ctrl-C ends in a traceback") from None
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.set_flush_denormal(False)
    error = err.getvalue()
    if isinstance(code, str):
        # Python itself prints the message and exits with 1.
        code, error = 1, error + code
    return SimpleNamespace(code=code or 0, out=out.getvalue(), err=error)


def result_of(run_dir: Path) -> dict:
    """Return result.json of a run."""
    return json.loads(Path(run_dir, "result.json").read_text())


def checkpoint_of(run_dir: Path) -> dict:
    """Return checkpoint.pt of a run."""
    return torch.load(Path(run_dir, "checkpoint.pt"), weights_only=True)


def curves(folder: Path) -> dict:
    """Return tag -> steps of one TensorBoard folder. All values must be finite."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert all(np.isfinite(event.value) for column in found.values() for event in column)
    return {tag: [event.step for event in column] for tag, column in found.items()}


def wait_until(process, run_dir: Path, phase: int, step: int) -> None:
    """Wait until the checkpoint of a running process is that far."""
    deadline = time.time() + 120
    while time.time() < deadline:
        try:
            result = result_of(run_dir)
        except FileNotFoundError:
            result = {"phase": 0, "step": -1}
        if (result["phase"], result["step"]) >= (phase, step):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise TimeoutError(f"{run_dir} did not get to update {step} of phase {phase}")


def differing(one, other, name: str = "") -> list[str]:
    """Return the names of what differs in two nested states, down to the bits of tensors."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [name]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{name}: {one.keys() ^ other.keys()}"]
        return [d for key in one for d in differing(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list):
        if len(one) != len(other):
            return [f"{name}: {len(one)} and {len(other)} entries"]
        return [d for i, x in enumerate(one) for d in differing(x, other[i], f"{name}/{i}")]
    return [] if one == other else [name]


def same_end(one: Path, other: Path) -> list[str]:
    """Return what differs in two finished runs: weights, optimizers, random state, evaluations."""
    keys = ("agent", "optimizers", "rng_state", "extra_state", "evaluations", "phase", "step")
    states = [checkpoint_of(run_dir) for run_dir in (one, other)]
    assert all(state["finished"] for state in states)
    parts = [{key: state[key] for key in keys} for state in states]
    return differing(*parts)
