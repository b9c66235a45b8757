"""Tests of benchmarks/speed/peers with stand-ins of our own making for other people's code.

python -m pytest tests/benchmarks/test_peers.py
"""

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from benchmarks.common import ROOT
from benchmarks.speed import measure
from benchmarks.speed.ours import worker_env
from benchmarks.speed.peers import (
    PROJECTS,
    Peer,
    bail,
    bcq,
    bear,
    corl,
    decision_transformer,
    jax_corl,
    load_peers,
    offlinerl_kit,
    onestep_rl,
    plas,
    por,
    rebrac,
    spot,
    td3,
    td3_bc,
    unifloral,
)
from benchmarks.speed.peers.jax_loop import JaxLoop
from benchmarks.speed.rows import random_rows

ROWS = {"observations": np.zeros((10, 11), np.float32), "terminals": np.zeros(10, bool)}
ALL_ROWS = random_rows("hopper", 10)


# ---- What is called of each peer, shown by mocks of their files ----


@pytest.fixture
def load():
    """Return their files: classes make mocks, networks have a weight, buffers five columns."""
    files = {}

    def load(name: str) -> MagicMock:
        if name not in files:
            files[name] = module = MagicMock()
            networks = ("Actor", "Critic", "GaussianPolicy", "TwinQ", "ValueFunction")
            for network in (*networks, "TanhGaussianPolicy", "FullyConnectedQFunction"):
                getattr(module, network).side_effect = lambda *_, **__: torch.nn.Linear(1, 1)
            module.TrainConfig = lambda device: SimpleNamespace(device=device, buffer_size=2_000)
            columns = [torch.full((256,), float(i)) for i in range(5)]
            module.ReplayBuffer.return_value.sample.return_value = columns
            module.sample_batch.return_value = {"observations": columns[0]}
        return files[name]

    return load


@pytest.mark.parametrize(
    "build, file, algorithm, optimizers",
    [
        (corl.iql, "iql", "ImplicitQLearning", 3),
        (corl.td3_bc, "td3_bc", "TD3_BC", 3),
        (corl.bc, "any_percent_bc", "BC", 1),
        (corl.awac, "awac", "AdvantageWeightedActorCritic", 3),
        (corl.cql, "cql", "ContinuousCQL", 3),
    ],
)
def test_corl_samples_and_trains(load, build, file, algorithm, optimizers):
    train = build(load, ROWS, "hopper", "cpu")
    buffer, trainer = load(file).ReplayBuffer, getattr(load(file), algorithm)
    buffer.assert_called_once_with(11, 3, 2_000, "cpu")
    buffer.return_value.load_d4rl_dataset.assert_called_once_with(ROWS)
    assert not trainer.return_value.train.called
    train()
    buffer.return_value.sample.assert_called_once_with(256)
    (batch,), _ = trainer.return_value.train.call_args
    assert [part[0].item() for part in batch] == [0, 1, 2, 3, 4]
    made = [v for k, v in trainer.call_args.kwargs.items() if k.endswith("optimizer")]
    weights = {id(p) for o in made for group in o.param_groups for p in group["params"]}
    assert len(made) == optimizers and len(weights) == 2 * optimizers


def test_corl_dt_makes_turns_of_its_train_and_tells_its_errors(load):
    module, turns = load("dt"), []
    module.TrainConfig = lambda **options: SimpleNamespace(**options)

    def train(config):
        env = load("gym").wrappers.TransformReward(load("gym").make("any"))
        assert env.get_dataset()["timeouts"].tolist() == [False] * 9 + [True]
        shapes = env.observation_space.shape, env.action_space.shape
        assert len(list(module.trange(3, desc="Processing trajectories"))) == 3
        for step in module.trange(config.update_steps, desc="Training"):
            turns.append((shapes, config.batch_size, config.target_returns))
            if step == 2:
                raise ValueError("this turn failed")

    module.train = train
    turn = corl.dt(load, ROWS | {"rewards": np.zeros(10)}, "hopper", "cpu")
    assert load("pyrallis").wrap()(train) is train
    assert not turns
    turn()
    turn()
    assert turns == [(((11,), (3,)), 64, ())] * 2
    with pytest.raises(ValueError, match="this turn failed"):
        turn()


@pytest.mark.parametrize(
    "build, file, algorithm", [(td3_bc.build, "TD3_BC", "TD3_BC"), (spot.build, "SPOT", "SPOT_TD3")]
)
def test_td3_bc_and_spot_train_from_their_buffer(load, build, file, algorithm):
    train = build(load, ROWS, "hopper", "cpu")
    buffer, policy = load("utils").ReplayBuffer.return_value, getattr(load(file), algorithm)
    assert [call[0] for call in buffer.method_calls] == ["convert_D4RL", "normalize_states"]
    train()
    assert policy.return_value.train.call_args.args == (buffer, 256)
    if file == "SPOT":
        load("vae").VAE.assert_called_once_with(11, 3, 6, 1.0)
        load("vae").VAE.return_value.eval.assert_called_once_with()
        assert policy.call_args.args[0] is load("vae").VAE.return_value


@pytest.mark.parametrize(
    "build, file, algorithm, arguments",
    [
        (td3.td3, "TD3", "TD3", (256,)),
        (td3.ddpg, "DDPG", "DDPG", (256,)),
        (bcq.continuous, "BCQ", "BCQ", (1, 256)),
    ],
)
def test_td3_ddpg_and_bcq_train_from_a_buffer_of_all_rows(load, build, file, algorithm, arguments):
    train = build(load, ALL_ROWS, "hopper", "cpu")
    buffer = load("utils").ReplayBuffer
    policy = getattr(load(file), algorithm)
    assert buffer.call_args.args[:2] == policy.call_args.args[:2] == (11, 3)
    state, action, next_state, reward, done = buffer.return_value.add.call_args.args
    assert (state == ALL_ROWS["observations"][9]).all()
    assert (next_state == ALL_ROWS["observations"][0]).all()
    assert (action == ALL_ROWS["actions"][9]).all() and reward == ALL_ROWS["rewards"][9]
    assert not done and buffer.return_value.add.call_count == 10
    train()
    policy.return_value.train.assert_called_once_with(buffer.return_value, *arguments)


def test_discrete_bcq_has_the_parameters_of_small_tasks(load):
    rows = random_rows("cartpole", 10)
    train = bcq.discrete(load, rows, "cartpole", "cpu")
    policy, buffer = load("discrete_BCQ").discrete_BCQ, load("utils").ReplayBuffer
    assert policy.call_args.args == (False, 2, 4, "cpu")
    assert policy.call_args.kwargs["polyak_target_update"]
    assert buffer.call_args.args == (4, False, {}, 256, 10, "cpu")
    added = buffer.return_value.add.call_args_list
    assert [call.args[1] for call in added] == rows["actions"].tolist()
    assert all(len(call.args) == 7 for call in added)
    train()
    policy.return_value.train.assert_called_once_with(buffer.return_value)


def test_plas_acts_in_the_latent_space_of_an_untrained_vae(load):
    train = plas.build(load, ALL_ROWS, "hopper", "cpu")
    module, buffer = load("algos"), load("utils").ReplayBuffer
    module.VAEModule.assert_called_once_with(11, 3, 6, 1.0)
    assert not module.VAEModule.return_value.method_calls
    vae, *sizes = module.Latent.call_args.args
    assert vae is module.VAEModule.return_value.vae and sizes == [11, 3, 6, 1.0]
    buffer.return_value.load.assert_called_once_with(ALL_ROWS)
    train()
    module.Latent.return_value.train.assert_called_once_with(buffer.return_value, 1, 256)
    assert module.logger.record_dict(module.create_stats_ordered_dict("Q", 1)) is None


def test_bear_takes_the_fourth_gradient_of_the_multiplier_alone(load, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)  # to be put back
    policy, buffer = load("algos").BEAR.return_value, load("utils").ReplayBuffer.return_value
    policy.log_lagrange2 = multiplier = torch.ones((), requires_grad=True)
    buffer.storage = {}
    train = bear.build(load, ALL_ROWS, "hopper", "cpu")
    assert buffer.storage["rewards"].shape == (10, 1)
    assert {column.dtype.name for column in buffer.storage.values()} == {"float32"}
    options = load("algos").BEAR.call_args.kwargs
    assert (options["num_samples_match"], options["mode"], options["version"]) == (5, "auto", "0")
    train()
    policy.train.assert_called_once_with(buffer, 1, 256)
    for _ in range(2):
        weight = torch.ones((), requires_grad=True)
        for gradients in (1, 2, 3, 3):
            (weight * multiplier).backward()
            assert weight.grad == gradients
    assert multiplier.grad == 8


@pytest.mark.parametrize("build, learner", [(onestep_rl.policy, "pi"), (onestep_rl.q, "q")])
def test_onestep_trains_one_learner_on_a_replay_with_next_actions(load, build, learner):
    train = build(load, ALL_ROWS, "hopper", "cpu")
    replay = load("replay_buffer").Replay
    replay.assert_called_once_with((11,), (3,), has_next_action=True, max_size=10)
    state, action, reward, next_state, next_action, done = load(
        "replay_buffer"
    ).Transition.call_args.args
    assert (action == ALL_ROWS["actions"][9]).all() and not done
    assert (next_action == ALL_ROWS["actions"][0]).all()
    assert (next_state == ALL_ROWS["observations"][0]).all()
    assert replay.return_value.append.call_count == 10
    module = load("policy_learner")
    pi, beta = module.ReverseKLRegLearner, module.BCLearner.return_value
    q, baseline = load("q_learner").SarsaLearner, load("baseline_learner").SampledValueBaseline
    for call in (pi.call_args, q.call_args):
        assert call.kwargs["width"] == 1024 and call.kwargs["batch_size"] == 256
    pi.return_value.load_from_pilearner.assert_called_once_with(beta)
    train()
    if learner == "pi":
        expected = (replay.return_value, q.return_value, baseline.return_value, beta)
        pi.return_value.train_step.assert_called_once_with(*expected)
        assert not q.return_value.train_step.called
    else:
        q.return_value.train_step.assert_called_once_with(
            replay.return_value, pi.return_value, beta
        )
        assert not pi.return_value.train_step.called


@pytest.mark.parametrize(
    "build, algorithm, num_real, layers",
    [(offlinerl_kit.mopo, "MOPOPolicy", 12, 2), (offlinerl_kit.combo, "COMBOPolicy", 128, 3)],
)
def test_offlinerl_kit_learns_from_both_kinds_of_rows(load, build, algorithm, num_real, layers):
    load("offlinerlkit.modules").ActorProb.side_effect = lambda *_: torch.nn.Linear(1, 1)
    mlp, buffer = load("offlinerlkit.nets").MLP, load("offlinerlkit.buffer").ReplayBuffer
    train = build(load, ALL_ROWS, "hopper", "cpu")
    assert [call.args for call in mlp.call_args_list] == [
        (width, [256] * layers) for width in (11, 14, 14)
    ]
    assert buffer.call_args.args == (10, (11,), np.float32, 3, np.float32, "cpu")
    buffer.return_value.load_dataset.assert_called_with(ALL_ROWS)
    policy = getattr(load("offlinerlkit.policy"), algorithm)
    assert policy.call_args.kwargs["dynamics"] is None
    assert policy.call_args.kwargs["alpha"][0] == -3
    buffer.return_value.sample.side_effect = lambda size: size
    train()
    policy.return_value.learn.assert_called_once_with({"real": num_real, "fake": 256 - num_real})


def test_bail_clones_a_quarter_of_the_rows(load):
    train = bail.build(load, ALL_ROWS, "hopper", "cpu")
    policy, buffer = load("bail_training").BC, load("utils").ReplayBuffer.return_value
    assert policy.call_args.args == (11, 3, 1.0)
    assert buffer.add.call_count == 2
    ((state, *_, done),) = buffer.add.call_args.args
    assert (state == ALL_ROWS["observations"][1]).all() and not done
    train()
    assert policy.return_value.train.call_args.args == (buffer,)
    assert policy.return_value.train.call_args.kwargs["batch_size"] == 256


# An experiment.py of our own, which builds a trainer as the authors' does and imports as much.
EXPERIMENT = """
import gym
import pickle

import torch
import transformers
from transformers.activations import ACT2FN
from transformers.file_utils import ModelOutput, add_start_docstrings
from transformers.modeling_utils import Conv1D, PreTrainedModel
from transformers.utils.model_parallel_utils import assert_device_map
from transformers.models.gpt2.configuration_gpt2 import GPT2Config

@add_start_docstrings("words")
class Network(PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.layer = Conv1D(4, 3)
        self.init_weights()

    def _init_weights(self, module):
        if isinstance(module, Conv1D):
            module.weight.data.fill_(2.0)

class Steps:
    def __init__(self):
        self.taken = 0

    def step(self):
        self.taken += 1

class SequenceTrainer:
    def __init__(self, paths, sizes, variant):
        self.paths, self.sizes, self.variant = paths, sizes, variant
        self.scheduler = Steps()
        self.trained = Steps()
        self.model = Network(transformers.GPT2Config(n_embd=3, n_ctx=20))

    def train_step(self):
        assert ACT2FN["relu"](torch.tensor(-1.0)) == 0
        rows = self.model.layer(torch.ones(2, 5, 3))
        assert rows.shape == (2, 5, 4) and (rows == 6).all()
        self.trained.step()
        trainers.append(self)

trainers = []

def experiment(prefix, variant):
    env = gym.make("any")
    with open("a file that is not there", "rb") as file:
        paths = pickle.load(file)
    sizes = env.observation_space.shape[0], env.action_space.shape[0]
    trainer = SequenceTrainer(paths=paths, sizes=sizes, variant=variant)
    assert variant["max_iters"] == 0
"""


def test_the_authors_dt_trains_a_step_of_its_own_trainer(monkeypatch):
    before = dict(sys.modules)
    monkeypatch.setitem(sys.modules, "gym", MagicMock())
    module = ModuleType("experiment")

    def load(name):
        assert name == "experiment"
        exec(EXPERIMENT, vars(module))
        return module

    rows = random_rows("hopper", 2_500)
    try:
        train = decision_transformer.build(load, rows, "hopper", "cpu")
    finally:
        for name in [name for name in sys.modules if name.startswith("transformers")]:
            del sys.modules[name]
        sys.modules.update({n: m for n, m in before.items() if n.startswith("transformers")})
    assert not module.trainers
    train()
    train()
    trainer = module.trainers[1]
    assert trainer.trained.taken == trainer.scheduler.taken == 2
    assert [len(path["rewards"]) for path in trainer.paths] == [1_000, 1_000, 500]
    assert (trainer.paths[1]["observations"] == rows["observations"][1_000:2_000]).all()
    assert trainer.sizes == (11, 3) and trainer.variant["batch_size"] == 64
    assert trainer.model.config.n_ctx == 20 and trainer.model.config.use_cache


@pytest.mark.parametrize(
    "task, layer_norm, called, other",
    [
        ("hopper", False, "por_qlearning_update", "por_residual_update"),
        ("halfcheetah", True, "por_residual_update", "por_qlearning_update"),
    ],
)
def test_por_has_the_guide_of_the_task(load, task, layer_norm, called, other):
    train = por.build(load, ROWS, task, "cpu")
    agent = load("por").POR.return_value
    train()
    assert getattr(agent, called).call_count == 1 and not getattr(agent, other).called
    assert agent.pretrain_init.called == (task == "hopper")
    assert load("value_functions").TwinV.call_args.kwargs == {"layer_norm": layer_norm}
    data, size = load("util").sample_batch.call_args.args
    assert data.keys() == ROWS.keys() and size == 256


# ---- JAX ----

# Just enough of JAX for the peers that use it, on NumPy: a compiled function is the function.
JAX = """
import numpy
from types import SimpleNamespace
__version__ = "0.0"
jit = lambda function, static_argnums=(): function
block_until_ready = lambda tree: None
tree_util = SimpleNamespace(tree_leaves=lambda tree: list(tree.values()))
random = SimpleNamespace(PRNGKey=lambda seed: (seed,),
                         split=lambda key, count=2: [(*key, i) for i in range(count)])

def scan(step, carry, inputs, length):
    for _ in range(length):
        carry, losses = step(carry, None)
    return carry, losses

lax = SimpleNamespace(scan=scan)
"""


@pytest.fixture
def jax() -> ModuleType:
    module = ModuleType("jax")
    exec(JAX, vars(module))
    return module


def actor_state(**parts) -> SimpleNamespace:
    return SimpleNamespace(params={"w": np.zeros(1)}, **parts)


@pytest.mark.parametrize(
    "build, networks, names, critics",
    [
        (
            unifloral.iql,
            ["TanhGaussianActor", "DualQNetwork", "StateValueFunction"],
            "actor dual_q dual_q_target value",
            1,
        ),
        (
            unifloral.td3_bc,
            ["DeterministicTanhActor", "DualQNetwork"],
            "actor actor_target dual_q dual_q_target",
            2,
        ),
    ],
)
@pytest.mark.parametrize("device, turns", [("cpu", unifloral.SCAN), ("cuda", 2_500)])
def test_unifloral_scans_its_train_step(jax, build, networks, names, critics, device, turns):
    module = MagicMock()
    module.Args = lambda eval_interval=2_500: SimpleNamespace(
        seed=0, eval_interval=eval_interval, num_critic_updates_per_step=2
    )
    module.Transition = namedtuple("Transition", "obs action reward next_obs done")
    module.AgentTrainState = namedtuple("AgentTrainState", names)
    for name in networks:
        getattr(module, name).side_effect = lambda *_, name=name: SimpleNamespace(
            name=name, apply=name
        )
    module.create_train_state = lambda args, key, net, inputs: actor_state(
        made=(key, net.name, [len(x) for x in inputs])
    )
    turned = []

    def step(carry, _):
        rng, state = carry
        turned.append(rng)
        state.actor.params["w"] = state.actor.params["w"] + 1
        return (rng, state), {"loss": 0.25}

    module.make_train_step.return_value = step
    widths = {"observations": 11, "actions": 3, "next_observations": 11, "rewards": 1}
    rows = {name: np.zeros((10, n), np.float32) for name, n in widths.items()}
    rows["terminals"] = np.zeros(10, bool)
    loop = build(lambda name: jax if name == "jax" else module, rows, "hopper", device)
    args, *applied, data = module.make_train_step.call_args.args
    assert applied == networks and data.obs.shape == (10, 11)
    made = dict(zip(loop.state._fields, [part.made for part in loop.state], strict=True))
    assert made["actor"][1:] == (networks[0], [11]) and made["dual_q"][1:] == (networks[1], [11, 3])
    assert all(made[name] == made[name.removesuffix("_target")] for name in made)
    assert len({key for key, *_ in made.values()}) == len(networks)  # each has weights of its own
    assert loop.updates == critics * turns and not turned
    with pytest.raises(SystemExit, match="its actor did not change"):
        loop.check()
    loop.turn()
    loop.wait()
    loop.check()
    assert len(turned) == turns and loop.losses == {"loss": 0.25}
    loop.losses = {"loss": np.nan}
    with pytest.raises(SystemExit, match="its loss is not finite"):
        loop.check()


def test_jax_corl_td3_bc_is_what_their_main_makes(jax, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers", "words that are not theirs"])
    module, words = MagicMock(), []
    module.config = SimpleNamespace(seed=42, n_jitted_updates=8)
    fields = "observations actions rewards next_observations dones"
    module.Transition = namedtuple("Transition", fields)
    state = SimpleNamespace(actor=actor_state())
    module.create_td3bc_train_state.return_value = state
    update = module.TD3BC.return_value.update_n_times
    update.return_value = state, {"critic_loss": np.ones(1)}
    widths = {"observations": 11, "actions": 3, "next_observations": 12, "rewards": 1}
    rows = {name: np.full((10, n), n, np.float32) for name, n in widths.items()}
    rows["terminals"] = np.zeros(10, bool)

    def load(name):
        words.append((name, sys.argv[1:]))
        return jax if name == "jax" else module

    loop = jax_corl.td3_bc(load, rows, "hopper", "cpu")
    assert ("td3bc", []) in words and loop.updates == 8 and not update.called
    loop.turn()
    loop.turn()
    (first, data, key, config), (*_, other, _) = (call.args for call in update.call_args_list)
    assert first is state and config is module.config and key != other
    assert [part[0, 0] for part in data[:4]] == [11, 3, 1, 12] and data.dones.dtype == np.float32


def test_rebrac_runs_the_loop_of_their_main(jax, monkeypatch):
    for name in ("pyrallis", "distrax"):
        monkeypatch.setitem(sys.modules, name, None)

    def fori_loop(lower, upper, body_fun, init_val):
        for i in range(lower, upper):
            init_val = body_fun(i, init_val)
        return init_val

    jax.lax.fori_loop = fori_loop
    jax.tree = SimpleNamespace(map=lambda function, tree: {k: function(x) for k, x in tree.items()})
    module, turned = MagicMock(), []
    module.ReplayBuffer = type("ReplayBuffer", (), {})

    def main(config):
        """As theirs: the buffer, the state, and a loop over the updates of each epoch."""
        buffer = module.ReplayBuffer()
        buffer.create_from_d4rl("hopper-medium-v2", False, False)
        metrics = SimpleNamespace(accumulators={"critic_loss": (np.array([0.5]), 1)})
        carry = {"actor": actor_state(), "buffer": buffer, "metrics": metrics}

        def body(i, carry):
            batch = jax.tree_map(lambda column: column[i % 10], carry["buffer"].data)
            turned.append((i, batch["states"].shape, config.batch_size))
            actor = SimpleNamespace(params={"w": carry["actor"].params["w"] + 1})
            return carry | {"actor": actor}

        for _ in range(3):
            carry = jax.lax.fori_loop(
                lower=0, upper=config.num_updates_on_epoch, body_fun=body, init_val=carry
            )
        raise AssertionError("an epoch has run inside of main()")

    module.main = main
    module.Config = SimpleNamespace
    loop = rebrac.rebrac(lambda name: jax if name == "jax" else module, ALL_ROWS, "hopper", "cpu")
    assert jax.lax.fori_loop is fori_loop and not turned
    data = loop.state.carry["buffer"].data
    np.testing.assert_array_equal(data["next_states"], ALL_ROWS["next_observations"])
    assert data["dones"].dtype == np.float32 and data["actions"].shape == (10, 3)
    with pytest.raises(SystemExit, match="its actor did not change"):
        loop.check()
    loop.turn()
    loop.check()
    assert turned == [(i, (11,), 256) for i in range(rebrac.EPOCH)] and loop.updates == rebrac.EPOCH
    assert loop.losses == {"critic_loss": 0.5}


def test_products_of_jax_are_told(jax):
    loop = JaxLoop(jax, None, None, SimpleNamespace(actor=actor_state()), 1)
    assert loop.facts() == {"jax": "0.0", "precision": "fp32"}
    jax.numpy = SimpleNamespace(array=lambda x: (x * 512).round() / 512)
    assert re.fullmatch(r"products with errors of \de-0\d", loop.facts()["precision"])


# ---- The commits ----


def test_the_commit_is_told_by_the_content_of_the_files(tmp_path):
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"  # git's id of "hello\n"
    peer = Peer("bc", "someone/thing", "1234567890", "src", {"a.py": blob}, "", None)
    with pytest.raises(SystemExit, match=r"a\.py is missing; check out someone/thing @ 1234567"):
        peer.version(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_bytes(b"hello\n")
    assert peer.version(tmp_path) == "1234567"
    (tmp_path / "src/a.py").write_bytes(b"hello")
    assert peer.version(tmp_path) == "1234567, but another a.py"


def test_every_project_names_scripts_commits_and_files():
    scripts = {path.stem for path in (ROOT / "algorithms").glob("*.py")}
    for project in PROJECTS:
        for peer in load_peers(project):
            assert peer.script in scripts
            assert re.fullmatch("[0-9a-f]{40}", peer.commit)
            assert all(re.fullmatch("[0-9a-f]{40}", blob) for blob in peer.files.values())


# ---- Workers ----

# A TD3_BC of our own: it imports what no update needs, prints, and takes 5 ms for an update.
AGENT = """
import d4rl, gym, pyrallis, wandb
import time

@pyrallis.wrap()
def main(env: gym.Env): ...

class TD3_BC:
    def __init__(self, state_dim, action_dim, max_action):
        self.shapes = state_dim, action_dim

    def train(self, buffer, batch_size):
        state, action = buffer.sample(batch_size)
        assert state.shape == (256, self.shapes[0]) and action.shape == (256, self.shapes[1])
        print("on the standard output of the process")
        wandb.log({"a": 1})
        time.sleep(0.005)
"""
BUFFER = """
import numpy as np

class ReplayBuffer:
    def __init__(self, state_dim, action_dim): ...

    def convert_D4RL(self, rows):
        assert rows["terminals"].dtype == bool and "timeouts" not in rows
        self.rows = rows

    def normalize_states(self): ...

    def sample(self, size):
        index = np.random.randint(0, len(self.rows["actions"]), size)
        return self.rows["observations"][index], self.rows["actions"][index]
"""
# A JAX-CORL of our own: it is alone with its JAX, and takes 1 ms for an update.
JAX_IQL = """
import os
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple

import d4rl, gym, wandb
import numpy as np
import jax

assert "torch" not in sys.modules and sys.argv[1:] == ["layer_norm=false"]
assert os.environ["NPROC"] == "3"
config = SimpleNamespace(seed=42, n_jitted_updates=8)

class Transition(NamedTuple):
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    dones: np.ndarray
    dones_float: np.ndarray

def create_iql_train_state(key, observations, actions, settings):
    assert observations.shape == (11,) and actions.shape == (3,)
    return SimpleNamespace(actor=SimpleNamespace(params={"w": np.zeros(1)}))

class IQL:
    def update_n_times(self, state, data, key, settings):
        print("on the standard output of the process")
        time.sleep(0.008)
        weight = STEP + state.actor.params["w"]
        loss = np.float32(0.5)
        return SimpleNamespace(actor=SimpleNamespace(params={"w": weight})), {"value_loss": loss}
"""


def talk(project: str, checkout, threads: int, **env) -> subprocess.CompletedProcess:
    """Start a worker of the project's first peer, and let it do 16 updates."""
    config = {"project": project, "number": 0, "checkout": str(checkout), "task": "hopper"}
    config |= {"device": "cpu", "rows": 2_000}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.peers", json.dumps(config)],
        cwd=ROOT,
        env=os.environ | worker_env("cpu", threads) | env,
        input='{"updates": 16}\n',
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_a_worker_in_pytorch(tmp_path):
    (tmp_path / "TD3_BC.py").write_text(AGENT)
    (tmp_path / "utils.py").write_text(BUFFER)
    done = talk("TD3_BC", tmp_path, threads=1)
    assert done.returncode == 0, done.stderr
    facts, timing = map(json.loads, done.stdout.splitlines())
    assert facts["code"] == "sfujim/TD3_BC: TD3_BC.py" and facts["threads"] == 1
    assert facts["commit"] == "8791ad7, but another TD3_BC.py and utils.py"
    assert timing["seconds"] > 16 * 0.005
    assert not list(tmp_path.glob("__pycache__"))


def jax_checkout(tmp_path, step: str) -> dict:
    """Write the checkout, and return the environment in which JAX is found."""
    (tmp_path / "packages").mkdir(parents=True)
    (tmp_path / "packages/jax.py").write_text(JAX)
    (tmp_path / "algos").mkdir()
    (tmp_path / "algos/iql.py").write_text(JAX_IQL.replace("STEP", step))
    return {"PYTHONPATH": str(tmp_path / "packages")}


def test_a_worker_in_jax_needs_no_pytorch(tmp_path):
    env = jax_checkout(tmp_path, step="1")
    done = talk("JAX-CORL", tmp_path, threads=3, **env)
    assert done.returncode == 0, done.stderr
    facts, timing = map(json.loads, done.stdout.splitlines())
    assert (facts["multiple"], facts["threads"], facts["execution"]) == (8, 3, "jit")
    assert timing["seconds"] > 2 * 0.008


def test_jax_that_does_not_train_ends_its_worker(tmp_path):
    env = jax_checkout(tmp_path, step="0")
    done = talk("JAX-CORL", tmp_path, threads=3, **env)
    assert done.returncode == 1 and "its actor did not change" in done.stderr


def test_measure_starts_the_peers_of_its_scripts(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(measure, "Worker", lambda *config: started.append(config))
    jax_checkout(tmp_path / "JAX-CORL", step="1")
    args = measure.Args(script=("iql",), task="hopper", checkouts=tmp_path)
    measure.start_peers(args, [], threads=3)
    assert not started and "needs --jax-python" in capsys.readouterr().err
    args.jax_python = tmp_path / "jax/bin/python"
    measure.start_peers(args, [], threads=3)
    ((name, command, env),) = started
    assert name == "nissymori/JAX-CORL: iql.py"
    assert command[:3] == [str(args.jax_python), "-m", "benchmarks.speed.peers"]
    assert json.loads(command[3])["checkout"] == str(tmp_path / "JAX-CORL")
    assert (env["NPROC"], env["JAX_PLATFORMS"], env["CUDA_VISIBLE_DEVICES"]) == ("3", "cpu", "")
    args.script = ("td3_bc",)
    with pytest.raises(SystemExit, match=r"td3bc\.py is missing; check out nissymori/JAX-CORL"):
        measure.start_peers(args, [], threads=3)


def test_measure_starts_only_peers_of_its_phase_and_its_options(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(measure, "Worker", lambda name, *_: started.append(name))
    monkeypatch.setattr(Peer, "version", lambda self, checkout: "")
    for project in ("onestep-rl", "BEAR"):
        (tmp_path / project).mkdir()
    args = measure.Args(script=("onestep", "bear"), checkouts=tmp_path)
    measure.start_peers(args, [], threads=1)
    assert started == ["davidbrandfonbrener/onestep-rl: policy_learner.py"]
    assert "BEAR: algos.py is left out without -- --recipe original" in capsys.readouterr().err
    args.phase = "q"
    measure.start_peers(args, [], threads=1)
    assert started[1:] == ["davidbrandfonbrener/onestep-rl: q_learner.py"]
    args.phase = "train"
    measure.start_peers(args, ["--recipe", "original"], threads=1)
    assert started[3:] == ["aviralkumar2907/BEAR: algos.py"]
