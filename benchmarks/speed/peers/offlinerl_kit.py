"""OfflineRL-Kit (Sun): a library in PyTorch, with the only public COMBO."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.rows import TASKS


def make_buffer(load, rows: dict, task: str, device: str):
    """Return a buffer of all rows."""
    shape = TASKS[task]
    buffer = load("offlinerlkit.buffer").ReplayBuffer(
        len(rows["rewards"]), (shape.obs_dim,), np.float32, shape.act_dim, np.float32, device
    )
    buffer.load_dataset(rows)
    return buffer


def parts_of_policy(load, hidden: list[int], task: str, device: str) -> dict:
    """Return what run_mopo.py and run_combo.py give their policies. No update asks the model."""
    import torch

    shape = TASKS[task]
    modules, mlp = load("offlinerlkit.modules"), load("offlinerlkit.nets").MLP
    dist = modules.TanhDiagGaussian(
        latent_dim=hidden[-1], output_dim=shape.act_dim, unbounded=True, conditioned_sigma=True
    )
    networks = {"actor": modules.ActorProb(mlp(shape.obs_dim, hidden), dist, device)}
    for name in ("critic1", "critic2"):
        networks[name] = modules.Critic(mlp(shape.obs_dim + shape.act_dim, hidden), device)
    optimizers = {}
    for name, network in networks.items():
        lr = 1e-4 if name == "actor" else 3e-4
        optimizers[f"{name}_optim"] = torch.optim.Adam(network.parameters(), lr=lr)
    log_alpha = torch.zeros(1, requires_grad=True, device=device)
    temperature = -shape.act_dim, log_alpha, torch.optim.Adam([log_alpha], lr=1e-4)
    return {"dynamics": None, **networks, **optimizers, "alpha": temperature}


def loop(policy, load, rows: dict, task: str, device: str, real_ratio: float) -> Callable:
    """Return a turn of MBPolicyTrainer's loop between two rounds of rollouts.

    The rows stand for those of the model, too.
    """
    real_buffer = make_buffer(load, rows, task, device)
    model_buffer = make_buffer(load, rows, task, device)
    num_real = int(BATCH * real_ratio)
    policy.train()

    def train() -> None:
        real, model = real_buffer.sample(num_real), model_buffer.sample(BATCH - num_real)
        policy.learn({"real": real, "fake": model})

    return train


def mopo(load, rows: dict, task: str, device: str) -> Callable:
    """Build the policy of run_mopo.py."""
    parts = parts_of_policy(load, [256, 256], task, device)
    policy = load("offlinerlkit.policy").MOPOPolicy(**parts)
    return loop(policy, load, rows, task, device, real_ratio=0.05)


def combo(load, rows: dict, task: str, device: str) -> Callable:
    """Build the policy of run_combo.py, but with the paper's states of the model, as ours."""
    parts = parts_of_policy(load, [256, 256, 256], task, device)
    policy = load("offlinerlkit.policy").COMBOPolicy(
        **parts,
        action_space=SimpleNamespace(low=[-1.0], high=[1.0]),
        with_lagrange=False,
        rho_s="model",
    )
    return loop(policy, load, rows, task, device, real_ratio=0.5)


REPOSITORY = "yihaosun1124/OfflineRL-Kit"
COMMIT = "e3ce69793766d02660217d4dfc0af4693a5531bd"
SHARED = {
    "offlinerlkit/policy/model_free/sac.py": "66f79d5f1a4a3e704b73238bfd1285e40ea0274f",
    "offlinerlkit/modules/actor_module.py": "c591d43750a051b670c155b0af726f4cd0d16120",
    "offlinerlkit/modules/critic_module.py": "442bf2c22c54676dc8df5b7b7baf372b9d535351",
    "offlinerlkit/modules/dist_module.py": "1f2dffc8cd1242af9a9709b7483d6d1a0c5af1a7",
    "offlinerlkit/nets/mlp.py": "c2f556e8a885361de542f11c90a456e559e71538",
    "offlinerlkit/buffer/buffer.py": "b76259f65b50a9c6144a27be138c1ebb9cdf3139",
}
MOPO = {"offlinerlkit/policy/model_based/mopo.py": "38d065cf9f06f13e528e09bdaebd768f651a2110"}
COMBO = {
    "offlinerlkit/policy/model_based/combo.py": "980b5b5cd9757765c482eac191baa691fc90fabf",
    "offlinerlkit/policy/model_free/cql.py": "6eb22c7968d8d577ff78c5b68cc7fcc6ff22ecc5",
}
PEERS = [
    Peer(
        script="mopo",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="",
        files={**MOPO, **SHARED},
        timed="`ReplayBuffer.sample` of both kinds of rows and `MOPOPolicy.learn`; neither the "
        "model's training nor its rollouts are in it, nor in ours",
        build=mopo,
    ),
    Peer(
        script="combo",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="",
        files={**COMBO, **SHARED},
        timed='as MOPO, with `COMBOPolicy.learn` and `rho_s="model"`, as ours has it (theirs is '
        "`mix`); its soft maximum is over three values, ours over 30 (see `combo.py`)",
        build=combo,
    ),
]
