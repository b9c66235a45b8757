"""PLAS (Zhou, Bajracharya, and Held): the authors' code, in PyTorch."""

from collections.abc import Callable
from types import SimpleNamespace

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.rows import TASKS


def silence(module) -> None:
    """Take the place of what train() logs after its iterations, which it does here after each."""

    def nothing(*_):
        return None

    module.logger = SimpleNamespace(record_dict=nothing, record_tabular=nothing)
    module.create_stats_ordered_dict = nothing


def build(load, rows: dict, task: str, device: str) -> Callable:
    """Build algos.py after the VAE, untrained here, with the sizes of main.py."""
    shape = TASKS[task]
    module = load("algos")
    silence(module)
    latent = 2 * shape.act_dim
    vae = module.VAEModule(shape.obs_dim, shape.act_dim, latent, 1.0).vae
    policy = module.Latent(vae, shape.obs_dim, shape.act_dim, latent, 1.0, actor_lr=1e-4)
    buffer = load("utils").ReplayBuffer(shape.obs_dim, shape.act_dim)
    buffer.load(rows)

    def train() -> None:
        policy.train(buffer, 1, BATCH)

    return train


PEERS = [
    Peer(
        script="plas",
        repository="Wenxuan-Zhou/PLAS",
        commit="9fbc6ff27f27af3ed3875de3a7ee0d2ff12d64a3",
        folder="",
        files={
            "algos.py": "2a3147b227705378d0e6dd240d3e14f91b8f33d2",
            "utils.py": "8eda720e13fe35867100fae34325cd7271b8009c",
        },
        timed="`Latent.train` with one iteration, which samples; the VAE is not trained in it, nor "
        "in ours",
        build=build,
    )
]
