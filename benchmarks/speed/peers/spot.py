"""SPOT (Wu et al.): the authors' code, in PyTorch."""

from collections.abc import Callable
from types import SimpleNamespace

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.peers.td3_bc import make_buffer
from benchmarks.speed.rows import TASKS


def build(load, rows: dict, task: str, device: str) -> Callable:
    """Build SPOT.py after the VAE, with its own defaults and an untrained VAE.

    Its lambda differs from task to task and changes no speed.
    """
    shape = TASKS[task]
    vae = load("vae").VAE(shape.obs_dim, shape.act_dim, 2 * shape.act_dim, 1.0)
    vae.to(device)
    vae.eval()
    policy = load("SPOT").SPOT_TD3(vae, shape.obs_dim, shape.act_dim, 1.0)
    buffer = make_buffer(load, rows, task)
    logger = SimpleNamespace(log=lambda *_: None)

    def train() -> None:
        policy.train(buffer, BATCH, logger=logger)

    return train


PEERS = [
    Peer(
        script="spot",
        repository="thuml/SPOT",
        commit="4be91cce407e93a8631043328f868b1b7abb86ba",
        folder="",
        files={
            "SPOT.py": "04a1e32ca41ddd4468039c7983fd06daff90e848",
            "utils.py": "104dd31e5c9596502158e380da134e769b4eafb5",
            "vae.py": "573f878e60390e2400fc2b14d5af30c74383f191",
        },
        timed="`SPOT_TD3.train`, which samples; the VAE is not trained in it, nor in ours",
        build=build,
    )
]
