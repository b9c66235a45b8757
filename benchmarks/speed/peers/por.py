"""POR (Xu et al.): the authors' code, in PyTorch."""

from collections.abc import Callable

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.rows import TASKS


def build(load, rows: dict, task: str, device: str) -> Callable:
    """Build por.py with the guide and the V that run_mujoco_por.sh gives the task's medium set.

    Its main() takes one thread; here it gets as many as the others. It takes CUDA where it is seen.
    """
    shape = TASKS[task]
    q_guide = task == "hopper"
    util = load("util")
    gaussian = load("policy").GaussianPolicy
    agent = load("por").POR(
        vf=load("value_functions").TwinV(shape.obs_dim, layer_norm=not q_guide),
        policy=gaussian(2 * shape.obs_dim, shape.act_dim, hidden_dim=1024),
        max_steps=1_000_000,
        goal_policy=gaussian(shape.obs_dim, shape.obs_dim),
        tau=0.7 if q_guide else 0.5,
        alpha=50.0 if q_guide else 3.0,
        policy_lr=1e-3,
    )
    if q_guide:
        agent.pretrain_init(gaussian(shape.obs_dim, shape.obs_dim))
    update = agent.por_qlearning_update if q_guide else agent.por_residual_update
    data = {name: util.torchify(array) for name, array in rows.items()}

    def train() -> None:
        update(**util.sample_batch(data, BATCH))

    return train


PEERS = [
    Peer(
        script="por",
        repository="ryanxhr/POR",
        commit="e692bb3a0c92b2dc668d71b0a5fc6e04a53344e1",
        folder="",
        files={
            "por.py": "d26b42595b5018e6bb5bcd348dde07b4079566bc",
            "policy.py": "82ea033f93c9e7cda16888ad43ef3d3c225d22fd",
            "value_functions.py": "820d13e37efff6a5494decb005b7213e4f298810",
            "util.py": "331f9d4d9ba9a49ed1202609ed0cfff7d7f025f4",
        },
        timed="`sample_batch` and `por_residual_update`, with the q guide (Hopper) "
        "`por_qlearning_update`; their main sets one thread, here it has as many as ours",
        build=build,
    )
]
