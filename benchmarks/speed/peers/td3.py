"""TD3 (Fujimoto, van Hoof, and Meger): the authors' code of TD3 and DDPG, in PyTorch."""

from collections.abc import Callable

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.rows import TASKS


def add_rows(buffer, rows: dict) -> None:
    """Add all rows to a buffer as their main.py adds them: s, a, s', r, done."""
    names = ("observations", "actions", "next_observations", "rewards", "terminals")
    for row in zip(*(rows[name] for name in names), strict=True):
        buffer.add(*row)


def loop(policy, load, rows: dict, task: str) -> Callable:
    """Return what their main.py does after a step in the environment. It takes CUDA where seen."""
    shape = TASKS[task]
    buffer = load("utils").ReplayBuffer(shape.obs_dim, shape.act_dim)
    add_rows(buffer, rows)

    def train() -> None:
        policy.train(buffer, BATCH)

    return train


def td3(load, rows: dict, task: str, device: str) -> Callable:
    """Build TD3.py, whose defaults are those of its main.py."""
    shape = TASKS[task]
    return loop(load("TD3").TD3(shape.obs_dim, shape.act_dim, 1.0), load, rows, task)


def ddpg(load, rows: dict, task: str, device: str) -> Callable:
    """Build DDPG.py, which has the sizes of DDPG's paper; OurDDPG.py has others."""
    shape = TASKS[task]
    return loop(load("DDPG").DDPG(shape.obs_dim, shape.act_dim, 1.0), load, rows, task)


REPOSITORY = "sfujim/TD3"
COMMIT = "34770ccdcb51df6f6c7d85c1ba7e40d71b940d16"
BUFFER = {"utils.py": "bf0f3198ad2b6d4e6dd82e7203f142aa86af700c"}
PEERS = [
    Peer(
        script="td3",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="",
        files={"TD3.py": "0b953d34412d86b398329afff5d4bb47f18ec5fb", **BUFFER},
        timed="`TD3.train`, which samples",
        build=td3,
    ),
    Peer(
        script="ddpg",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="",
        files={"DDPG.py": "b0861f8edcf9007f8b2d085cd75dcda46d4d3965", **BUFFER},
        timed="`DDPG.train`, which samples",
        build=ddpg,
    ),
]
