"""BEAR (Kumar, Fu, Tucker, and Levine): the authors' original code, in PyTorch."""

from collections.abc import Callable
from itertools import cycle

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.peers.plas import silence
from benchmarks.speed.rows import TASKS


def build(load, rows: dict, task: str, device: str) -> Callable:
    """Build algos.py as the commands of its README.md do. It takes CUDA where it is seen."""
    shape = TASKS[task]
    module = load("algos")
    silence(module)
    policy = module.BEAR(
        2,
        shape.obs_dim,
        shape.act_dim,
        1.0,
        use_bootstrap=False,
        version="0",
        lambda_=0.0,
        mode="auto",
        num_samples_match=5,
        mmd_sigma=10.0,
        use_ensemble=False,
        kernel_type="laplacian",
    )
    allow_fourth_gradient(policy.log_lagrange2)
    buffer = load("utils").ReplayBuffer(shape.obs_dim, shape.act_dim)
    for name, column in rows.items():
        buffer.storage[name] = column.reshape(len(column), -1).astype("float32")

    def train() -> None:
        policy.train(buffer, 1, BATCH)

    return train


def allow_fourth_gradient(multiplier) -> None:
    """Take the fourth of an update's four gradients of the multiplier alone.

    Theirs goes through the policy, which has stepped meanwhile, and newer versions of PyTorch
    refuse that. It is thrown away but for the multiplier.
    """
    import torch

    backward = torch.Tensor.backward
    is_fourth = cycle([False, False, False, True])

    def allowed(loss, **options):
        if next(is_fourth):
            options = {"inputs": [multiplier]}
        backward(loss, **options)

    torch.Tensor.backward = allowed


PEERS = [
    Peer(
        script="bear",
        repository="aviralkumar2907/BEAR",
        commit="f2e31c1b5f81c4fb0e692a34949c7d8b48582d8f",
        folder="",
        files={
            "algos.py": "b2ace0ae036876d757a162f0448519686560ef94",
            "utils.py": "f86a7d1a6d0c8741c49b592d5756eecbd96f417b",
        },
        timed="`BEAR.train` with one iteration, which samples, with `-- --recipe original`; the "
        "gradient of the multiplier is taken of it alone, because PyTorch refuses theirs",
        build=build,
        words="--recipe original",
    )
]
