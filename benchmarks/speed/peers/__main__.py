"""A worker that times other people's code; started by benchmarks/speed/measure.py."""

import contextlib
import importlib
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

from benchmarks.speed.peers import Peer, load_peers
from benchmarks.speed.rows import random_rows
from benchmarks.speed.turns import serve

# Their files import these, but an update never needs them. The stand-ins do nothing.
STAND_INS = ("d4rl", "gym", "wandb")
TORCH_STAND_INS = ("pyrallis", "IPython", "sklearn", "imageio", "termcolor", "coolname", "cv2")
TORCH_STAND_INS += ("gym.envs", "gym.envs.mujoco")
TORCH_STAND_INS += ("rlkit", "rlkit.core", "rlkit.core.tabulate", "rlkit.pythonplusplus")
JAX_STAND_INS = ("h5py", "dm_env", "dm_control", "dm_control.suite", "dm_control.suite.wrappers")


def stand_in(names: tuple[str, ...]) -> None:
    """Put modules that do nothing in the place of packages."""
    for name in names:
        # The spec is for those who ask whether the package is there.
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))


def their_rows(task: str, rows: int) -> dict:
    """Return what d4rl.qlearning_dataset returns."""
    data = random_rows(task, rows)
    del data["timeouts"]
    return data


def serve_torch(peer: Peer, config: dict, rows: dict, facts: dict, answers) -> None:
    """Time an update in PyTorch."""
    import torch

    torch.manual_seed(0)
    train = peer.build(importlib.import_module, rows, config["task"], config["device"])

    def update(updates: int) -> None:
        for _ in range(updates):
            train()

    cuda = config["device"] == "cuda"
    wait = torch.cuda.synchronize if cuda else do_nothing
    facts |= {"precision": "fp32", "execution": "eager", "threads": torch.get_num_threads()}
    # Their actors learn in every second update.
    serve(facts, update, wait, do_nothing, answers, multiple=2)


def do_nothing() -> None:
    pass


def serve_jax(peer: Peer, config: dict, rows: dict, facts: dict, answers) -> None:
    """Time an update in JAX."""
    loop = peer.build(importlib.import_module, rows, config["task"], config["device"])

    def update(updates: int) -> None:
        for _ in range(updates // loop.updates):
            loop.turn()

    facts |= {"execution": "jit", "threads": int(os.environ["NPROC"])} | loop.facts()
    serve(facts, update, loop.wait, loop.check, answers, multiple=loop.updates)


def main() -> None:
    answers = sys.stdout
    config = json.loads(sys.argv.pop())
    peer = load_peers(config["project"])[config["number"]]
    checkout = Path(config["checkout"])
    # What is printed meanwhile is no answer.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        stand_in(STAND_INS)
        stand_in(JAX_STAND_INS if peer.jax else TORCH_STAND_INS)
        sys.path.insert(0, str(checkout / peer.folder))
        rows = their_rows(config["task"], config["rows"])
        np.random.seed(0)
        facts = {
            "code": peer.name,
            "commit": peer.version(checkout),
            "script": peer.script,
            "seeds": 1,
            "python": platform.python_version(),
        }
        worker: Callable = serve_jax if peer.jax else serve_torch
        worker(peer, config, rows, facts, answers)


if __name__ == "__main__":
    main()
