"""onestep-rl (Brandfonbrener, Whitney, Ranganath, Bruna): the authors' code, in PyTorch."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.rows import TASKS


def make_learners(load, task: str, device: str) -> SimpleNamespace:
    """Make the learners of config/train.yaml, with the values of config/."""
    shape = TASKS[task]
    sizes = {"state_dim": shape.obs_dim, "action_dim": shape.act_dim, "width": 1024, "lr": 1e-4}
    sizes |= {"batch_size": BATCH, "device": device}
    module = load("policy_learner")
    learners = SimpleNamespace(
        beta=module.BCLearner(logger_type="beta", dist_type="normal", **sizes),
        q=load("q_learner").SarsaLearner(**sizes),
        baseline=load("baseline_learner").SampledValueBaseline(device, 10),
        pi=module.ReverseKLRegLearner(1.0, 10, **sizes),
    )
    learners.pi.load_from_pilearner(learners.beta)
    silent = SimpleNamespace(update=lambda *_: None)
    for learner in vars(learners).values():
        learner.set_logger(silent)
    return learners


def make_replay(load, rows: dict, task: str):
    """Return the replay buffer that d4rl_to_replay.py makes, but with the last row, too."""
    shape = TASKS[task]
    module = load("replay_buffer")
    replay = module.Replay(
        (shape.obs_dim,), (shape.act_dim,), has_next_action=True, max_size=len(rows["rewards"])
    )
    names = ("observations", "actions", "rewards", "next_observations")
    columns = [rows[name] for name in names]
    columns += [np.roll(rows["actions"], -1, axis=0), rows["terminals"]]
    for row in zip(*columns, strict=True):
        replay.append(module.Transition(*row))
    return replay


def policy(load, rows: dict, task: str, device: str) -> Callable:
    """Return an update of pi, whose improvement is that of config/train.yaml."""
    learners = make_learners(load, task, device)
    replay = make_replay(load, rows, task)

    def train() -> None:
        learners.pi.train_step(replay, learners.q, learners.baseline, learners.beta)

    return train


def q(load, rows: dict, task: str, device: str) -> Callable:
    """Return an update of Q. Its target moves in every second one."""
    learners = make_learners(load, task, device)
    replay = make_replay(load, rows, task)

    def train() -> None:
        learners.q.train_step(replay, learners.pi, learners.beta)

    return train


REPOSITORY = "davidbrandfonbrener/onestep-rl"
COMMIT = "99994433b7706e6f2851d70fa25186dea9b6d34f"
SHARED = {
    "policy_network.py": "8c9b68f9a285c829a88fd5cfcfcbb879e93f244f",
    "q_network.py": "398182d8b5e8fb666483512f669a7aa153b5a984",
    "replay_buffer.py": "95858acb6e6988dee49b26f6a7a37805f9f7ac43",
    "utils.py": "362b05f9ca590f75dead3f2e4b54e9a9e0baef87",
}
PEERS = [
    Peer(
        script="onestep",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="",
        files={"policy_learner.py": "e0ba4ea753619477725e976fcadd210ed293160e", **SHARED},
        timed="`ReverseKLRegLearner.train_step`, which samples",
        build=policy,
    ),
    Peer(
        script="onestep",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="",
        files={"q_learner.py": "a935ad3c3fe39a54b6e17ce0d5e66579e80d25e6", **SHARED},
        timed="`SarsaLearner.train_step`, which samples, with `--phase q`",
        build=q,
        phase="q",
    ),
]
