"""CORL (Tarasov et al.): single-file scripts in PyTorch."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import SimpleNamespace

from benchmarks.speed.peers import BATCH, BATCHES, Peer
from benchmarks.speed.rows import TASKS, episode_ends


def adam(network):
    """Make the optimiser that all of its scripts use; its speed does not depend on the rate."""
    import torch

    return torch.optim.Adam(network.parameters(), lr=3e-4)


def loop(module, trainer, rows: dict, task: str, device: str) -> Callable:
    """Return one turn of the loop that its scripts share."""
    shape = TASKS[task]
    config = module.TrainConfig(device=device)
    buffer = module.ReplayBuffer(shape.obs_dim, shape.act_dim, config.buffer_size, device)
    buffer.load_d4rl_dataset(rows)

    def train() -> None:
        trainer.train([part.to(device) for part in buffer.sample(BATCH)])

    return train


def iql(load, rows: dict, task: str, device: str) -> Callable:
    """Build iql.py with the values of its TrainConfig."""
    module = load("iql")
    shape = TASKS[task]
    value = module.ValueFunction(shape.obs_dim).to(device)
    critic = module.TwinQ(shape.obs_dim, shape.act_dim).to(device)
    actor = module.GaussianPolicy(shape.obs_dim, shape.act_dim, 1.0).to(device)
    trainer = module.ImplicitQLearning(
        max_action=1.0,
        actor=actor,
        actor_optimizer=adam(actor),
        q_network=critic,
        q_optimizer=adam(critic),
        v_network=value,
        v_optimizer=adam(value),
        device=device,
    )
    return loop(module, trainer, rows, task, device)


def td3_bc(load, rows: dict, task: str, device: str) -> Callable:
    """Build td3_bc.py, whose two critics have an optimiser each."""
    module = load("td3_bc")
    shape = TASKS[task]
    actor = module.Actor(shape.obs_dim, shape.act_dim, 1.0).to(device)
    critic1 = module.Critic(shape.obs_dim, shape.act_dim).to(device)
    critic2 = module.Critic(shape.obs_dim, shape.act_dim).to(device)
    trainer = module.TD3_BC(
        max_action=1.0,
        actor=actor,
        actor_optimizer=adam(actor),
        critic_1=critic1,
        critic_1_optimizer=adam(critic1),
        critic_2=critic2,
        critic_2_optimizer=adam(critic2),
        device=device,
    )
    return loop(module, trainer, rows, task, device)


def bc(load, rows: dict, task: str, device: str) -> Callable:
    """Build any_percent_bc.py; which rows it keeps does not change its update."""
    module = load("any_percent_bc")
    shape = TASKS[task]
    actor = module.Actor(shape.obs_dim, shape.act_dim, 1.0).to(device)
    trainer = module.BC(max_action=1.0, actor=actor, actor_optimizer=adam(actor), device=device)
    return loop(module, trainer, rows, task, device)


def awac(load, rows: dict, task: str, device: str) -> Callable:
    """Build awac.py with its sizes. Its update has another name than that of the other scripts."""
    module = load("awac")
    shape = TASKS[task]
    actor = module.Actor(shape.obs_dim, shape.act_dim, 256).to(device)
    critic1 = module.Critic(shape.obs_dim, shape.act_dim, 256).to(device)
    critic2 = module.Critic(shape.obs_dim, shape.act_dim, 256).to(device)
    trainer = module.AdvantageWeightedActorCritic(
        actor=actor,
        actor_optimizer=adam(actor),
        critic_1=critic1,
        critic_1_optimizer=adam(critic1),
        critic_2=critic2,
        critic_2_optimizer=adam(critic2),
        awac_lambda=0.3333,
    )
    trainer.train = trainer.update
    return loop(module, trainer, rows, task, device)


def cql(load, rows: dict, task: str, device: str) -> Callable:
    """Build cql.py as its train() does for MuJoCo."""
    module = load("cql")
    shape = TASKS[task]
    actor = module.TanhGaussianPolicy(shape.obs_dim, shape.act_dim, 1.0).to(device)
    critic1 = module.FullyConnectedQFunction(shape.obs_dim, shape.act_dim, True, 3).to(device)
    critic2 = module.FullyConnectedQFunction(shape.obs_dim, shape.act_dim, True, 3).to(device)
    trainer = module.ContinuousCQL(
        critic_1=critic1,
        critic_1_optimizer=adam(critic1),
        critic_2=critic2,
        critic_2_optimizer=adam(critic2),
        actor=actor,
        actor_optimizer=adam(actor),
        target_entropy=-shape.act_dim,
        policy_lr=3e-5,
        bc_steps=0,
        cql_alpha=10.0,
        device=device,
    )
    return loop(module, trainer, rows, task, device)


def dt(load, rows: dict, task: str, device: str) -> Callable:
    """Run the train() of dt.py, whose loop holds the update. It has to wait before every turn."""
    shape = TASKS[task]
    load("pyrallis").wrap.return_value = lambda function: function  # it decorates train()
    module = load("dt")
    rows = rows | {"timeouts": episode_ends(len(rows["rewards"]))}
    env = SimpleNamespace(
        get_dataset=lambda: rows,
        observation_space=SimpleNamespace(shape=(shape.obs_dim,)),
        action_space=SimpleNamespace(shape=(shape.act_dim,)),
    )
    gym = load("gym")
    gym.make.return_value = env
    gym.wrappers.TransformReward.return_value = env  # the last of its wrappers
    config = module.TrainConfig(
        device=device,
        batch_size=BATCHES["dt"],
        num_workers=0,  # it draws in the process that trains, as all others do
        update_steps=10**9,  # it is stopped from outside
        target_returns=(),  # it evaluates before the first update, but nothing then
    )
    return TurnByTurn(module, config).turn


class TurnByTurn:
    """A train() in a thread of its own, whose loop makes a turn when it is told to."""

    def __init__(self, module, config):
        self.orders = SimpleQueue()
        self.reports = SimpleQueue()  # None: it waits; an exception: it has ended
        module.trange = self.steps
        threading.Thread(target=self.run, args=(module.train, config), daemon=True).start()
        self.wait()

    def run(self, train: Callable, config) -> None:
        try:
            train(config)
        except Exception as error:
            self.reports.put(error)

    def steps(self, count: int, desc: str):
        """Take the place of tqdm's trange, which counts the turns of all their loops."""
        for step in range(count):
            if desc == "Training":
                self.reports.put(None)
                self.orders.get()
            yield step

    def wait(self) -> None:
        error = self.reports.get()
        if error is not None:
            raise error

    def turn(self) -> None:
        self.orders.put("turn")
        self.wait()


REPOSITORY = "corl-team/CORL"
COMMIT = "eeeeef2671235fcce3a3eb255576a207d78840e6"
FOLDER = "algorithms/offline"
PEERS = [
    Peer(
        script="iql",
        repository=REPOSITORY,
        commit=COMMIT,
        folder=FOLDER,
        files={"iql.py": "14cec70a54a05a9f0a6187758c84e841cbf151bf"},
        timed="`ReplayBuffer.sample` and `ImplicitQLearning.train`",
        build=iql,
    ),
    Peer(
        script="td3_bc",
        repository=REPOSITORY,
        commit=COMMIT,
        folder=FOLDER,
        files={"td3_bc.py": "6ae0379c16a21cbd91e81ab6a70581d3605514dd"},
        timed="`ReplayBuffer.sample` and `TD3_BC.train`",
        build=td3_bc,
    ),
    Peer(
        script="bc",
        repository=REPOSITORY,
        commit=COMMIT,
        folder=FOLDER,
        files={"any_percent_bc.py": "7b6dfa83b451d0ae4d832900ab177455360607eb"},
        timed="`ReplayBuffer.sample` and `BC.train`, all rows kept",
        build=bc,
    ),
    Peer(
        script="awac",
        repository=REPOSITORY,
        commit=COMMIT,
        folder=FOLDER,
        files={"awac.py": "2fb3bf1052ce514352e0f9f1821b855b03f22a6e"},
        timed="`ReplayBuffer.sample` and `AdvantageWeightedActorCritic.update`",
        build=awac,
    ),
    Peer(
        script="cql",
        repository=REPOSITORY,
        commit=COMMIT,
        folder=FOLDER,
        files={"cql.py": "099bce2958ae3d94a74d6eb4a405e2f547e99e48"},
        timed="`ReplayBuffer.sample` and `ContinuousCQL.train`",
        build=cql,
    ),
    Peer(
        script="dt",
        repository=REPOSITORY,
        commit=COMMIT,
        folder=FOLDER,
        files={"dt.py": "367c337ef4d86fd4f3a5cc1078f680ae2cafc742"},
        timed="a turn of the loop in its `train`, which draws contexts by its `DataLoader`, here "
        "without processes of their own (`num_workers=0`, theirs is 4); GELU where ours, like the "
        "authors', has ReLU",
        build=dt,
    ),
]
