"""BCQ (Fujimoto, Meger, and Precup): the authors' code for both kinds of actions, in PyTorch."""

from collections.abc import Callable

import numpy as np

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.peers.td3 import add_rows
from benchmarks.speed.rows import TASKS


def continuous(load, rows: dict, task: str, device: str) -> Callable:
    """Build BCQ.py, whose defaults are those of its main.py."""
    shape = TASKS[task]
    policy = load("BCQ").BCQ(shape.obs_dim, shape.act_dim, 1.0, device)
    buffer = load("utils").ReplayBuffer(shape.obs_dim, shape.act_dim, device)
    add_rows(buffer, rows)

    def train() -> None:
        policy.train(buffer, 1, BATCH)

    return train


def discrete(load, rows: dict, task: str, device: str) -> Callable:
    """Build discrete_BCQ.py with those regular_parameters of its main.py that its class lacks."""
    shape = TASKS[task]
    policy = load("discrete_BCQ").discrete_BCQ(
        False,
        shape.act_dim,
        shape.obs_dim,
        device,
        optimizer_parameters={"lr": 3e-4},
        polyak_target_update=True,
    )
    size = len(rows["rewards"])
    buffer = load("utils").ReplayBuffer(shape.obs_dim, False, {}, BATCH, size, device)
    flags = np.zeros(size)  # did the environment end, or an episode begin? Only for Atari's buffer
    names = ("observations", "actions", "next_observations", "rewards", "terminals")
    for row in zip(*(rows[name] for name in names), flags, flags, strict=True):
        buffer.add(*row)

    def train() -> None:
        policy.train(buffer)

    return train


REPOSITORY = "sfujim/BCQ"
COMMIT = "4876f7e5afa9eb2981feec5daf67202514477518"
PEERS = [
    Peer(
        script="bcq",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="continuous_BCQ",
        files={
            "BCQ.py": "6fca11144c7d817d6aa3f0b64507f4a183b46d65",
            "utils.py": "12cdc55ba3cdfd7f459f8c5f4f101f173a31fa3b",
        },
        timed="`BCQ.train` with one iteration, which samples",
        build=continuous,
    ),
    Peer(
        script="discrete_bcq",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="discrete_BCQ",
        files={
            "discrete_BCQ.py": "5350f3542832f9da9ea5915a73cae703b533ba36",
            "utils.py": "4a55bea32f253f5340f5b92c5fc13ff24ae4e254",
        },
        timed="`discrete_BCQ.train`, which samples",
        build=discrete,
    ),
]
