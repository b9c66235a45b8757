"""BAIL (Chen, Zhou, Wang, Wang, Wu, Ross): the authors' code, in PyTorch."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.rows import TASKS


def build(load, rows: dict, task: str, device: str) -> Callable:
    """Build the cloning of main_static_bail.py, on the quarter of the rows that it selects.

    NumPy 2 refuses the None that the buffer has for s', r and done, so they are zeros here.
    """
    shape = TASKS[task]
    policy = load("bail_training").BC(shape.obs_dim, shape.act_dim, 1.0, lr=1e-3, wd=0)
    buffer, zero = load("utils").ReplayBuffer(), np.zeros(())
    for row in range(len(rows["rewards"]) // 4):
        buffer.add((rows["observations"][row], zero, rows["actions"][row], zero, zero))
    logger = SimpleNamespace(store=lambda **_: None)

    def train() -> None:
        policy.train(buffer, iterations=1, batch_size=BATCH, logger=logger)

    return train


PEERS = [
    Peer(
        script="bail",
        repository="lanyavik/BAIL",
        commit="ca1cbc6ff60368a8cb1734a0a67e5478dceba732",
        folder="spinup/spinup/algos/BAIL",
        files={
            "bail_training.py": "ffa10654a9c9b37053685c029bd3b899b70cf646",
            "utils.py": "9c63ef9f0d6a3929d40b981233bf37ea550bc06d",
        },
        timed="`BC.train` with one iteration, which samples from a quarter of the rows; the "
        "envelope is not trained in it, nor in ours",
        build=build,
    )
]
