"""TD3_BC (Fujimoto and Gu): the authors' code of TD3+BC, in PyTorch."""

from collections.abc import Callable

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.rows import TASKS


def make_buffer(load, rows: dict, task: str):
    """Return the replay buffer with normalised states, as their main.py and SPOT's make it."""
    shape = TASKS[task]
    buffer = load("utils").ReplayBuffer(shape.obs_dim, shape.act_dim)
    buffer.convert_D4RL(rows)
    buffer.normalize_states()
    return buffer


def build(load, rows: dict, task: str, device: str) -> Callable:
    """Build TD3_BC.py, whose defaults are those of its main.py. It takes CUDA where it is seen."""
    shape = TASKS[task]
    policy = load("TD3_BC").TD3_BC(shape.obs_dim, shape.act_dim, 1.0)
    buffer = make_buffer(load, rows, task)

    def train() -> None:
        policy.train(buffer, BATCH)

    return train


PEERS = [
    Peer(
        script="td3_bc",
        repository="sfujim/TD3_BC",
        commit="8791ad7d7656cb8396f1b3ac8c37f170b2a2dd5f",
        folder="",
        files={
            "TD3_BC.py": "36e3ffa0990d90d1e75b9066f6894f9c478f35ea",
            "utils.py": "46676820cb63b4a1c9fdb61466cbe6693348ab48",
        },
        timed="`TD3_BC.train`, which samples",
        build=build,
    )
]
