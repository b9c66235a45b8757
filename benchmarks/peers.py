"""Time one update of other people's code beside ours: same machine, threads, sizes, batches, data.

Their repositories are read from checkouts of yours and run unchanged; nothing of them is in this
one. What they import but an update never needs (environments, loggers, ...) is replaced by
stand-ins that do nothing, so their logging costs nothing here. An update is what one turn of their
training loop does: draw 256 of a million random rows of a task's shape from their buffer, train.
`.item()` and the like inside their update are part of it.

Every configuration is a process of its own. Those of one algorithm and task are started together;
once all of them have warmed up and compiled, only one works at a time, in turn: A B C A B C ... .
The first turn finds out how many updates a block needs and counts for nothing, nor do a few updates
before each block. Figures are medians over the blocks.

    git clone https://github.com/corl-team/CORL && git -C CORL checkout eeeeef2
    git clone https://github.com/sfujim/TD3_BC && git -C TD3_BC checkout 8791ad7
    git clone https://github.com/thuml/SPOT && git -C SPOT checkout 4be91cc
    git clone https://github.com/ryanxhr/POR && git -C POR checkout e692bb3
    python benchmarks/peers.py --corl CORL --td3-bc TD3_BC --spot SPOT --por POR \\
        --out benchmarks/SPEED.md

Code in JAX runs in an interpreter of its own, which needs no PyTorch:

    git clone https://github.com/nissymori/JAX-CORL && git -C JAX-CORL checkout d747dd8
    git clone https://github.com/EmptyJackson/unifloral && git -C unifloral checkout f2dc127
    python -m venv jax && jax/bin/pip install jax flax optax distrax omegaconf pydantic tqdm tyro
    python benchmarks/peers.py --jax-corl JAX-CORL --unifloral unifloral --jax-python jax/bin/python

XLA gets as many threads as PyTorch has: it makes its pool as large as NPROC says. Its updates are
compiled and end with `jax.block_until_ready`; at the end of a block their losses must be finite and
their actor must have changed. --precision fp32 bf16 measures ours with both: what is rounded to
bf16 stands in a table of its own, since theirs is not.

A peer without a checkout is left out. Measure while nothing else runs. --device cuda was never
tried on a GPU.
"""

import contextlib
import hashlib
import importlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from itertools import product
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch
import tyro

import speed

MARK = "speed"  # of the page's part that this command writes
NUMBERS = Path("results", "speed", "peers.json")  # beside the page; another machine's: see places()
NOTHING = "Not measured yet."
NAMES = {"por": "POR", "iql": "IQL", "td3_bc": "TD3+BC", "bc": "BC", "spot": "SPOT"}
# Not needed by an update, but imported by the files that hold it
STAND_INS = ("d4rl", "gym", "wandb", "pyrallis", "IPython", "sklearn", "imageio", "termcolor",
             "coolname")
JAX_STAND_INS = ("d4rl", "gym", "wandb")
# This file and speed.py import PyTorch, of which they use nothing where a peer runs in JAX
START_JAX = """
import sys
from unittest.mock import MagicMock
names = "torch", "torch.utils", "torch.utils.flop_counter", "tyro"
sys.modules.update({name: MagicMock() for name in names})
sys.path.insert(0, sys.argv.pop(1))
import peers
for name in names:  # their packages look whether it is there
    del sys.modules[name]
peers.main()
"""
SCAN = 100  # turns of unifloral's loop in a call on a CPU: a call costs 1.5 ms, 0.3% of its turns
EXECUTIONS = ("eager", "compile")
BATCH = 256  # the default of every script here, ours and theirs
WARMUP = 10  # updates before the first block; compiling comes with the first two
SETTLE = 6  # updates before each block: the others have had the caches meanwhile


@dataclass
class Args:
    corl: Path | None = None
    """checkout of corl-team/CORL"""
    td3_bc: Path | None = None
    """checkout of sfujim/TD3_BC"""
    spot: Path | None = None
    """checkout of thuml/SPOT"""
    por: Path | None = None
    """checkout of ryanxhr/POR"""
    jax_corl: Path | None = None
    """checkout of nissymori/JAX-CORL"""
    unifloral: Path | None = None
    """checkout of EmptyJackson/unifloral"""
    jax_python: Path | None = None
    """Python with JAX and what these two import"""
    tasks: tuple[str, ...] = ("halfcheetah", "hopper")
    """whose shapes and settings: halfcheetah, hopper, walker2d"""
    scripts: tuple[str, ...] = tuple(NAMES)
    """which of our scripts: por, iql, td3_bc, bc, spot"""
    execution: tuple[str, ...] = EXECUTIONS
    """how our updates run: eager, compile, on CUDA also capture"""
    num_seeds: tuple[int, ...] = (1, 3)
    """how many seeds ours train at once"""
    precision: tuple[str, ...] = ("auto",)
    """of our matrix products: auto, fp32, bf16; theirs keep the default of their library. Products
    less exact than fp32 get a table of their own"""
    device: str = "cpu"
    """cpu or cuda, for all of them"""
    seconds: float = 0.5
    """length of a block"""
    blocks: int = 5
    """blocks of each configuration"""
    rows: int = 1_000_000
    """random transitions"""
    threads: int | None = None
    """CPU threads of all of them (default: PyTorch's)"""
    out: Path | None = None
    """Markdown file with the two markers, between which the tables go; the numbers go into
    results/speed/peers.json beside it"""
    rewrite: bool = False
    """measure nothing: write the tables from the numbers that lie beside --out"""
    machine: str = ""
    """name of another machine than the first: its tables stand between markers of their own,
    `speed-NAME`, its numbers in peers-NAME.json"""


# ---- Their updates: load(name) imports a file of theirs, rows and sizes as their loops get them

@dataclass
class Peer:
    """A piece of other people's code that has an update to compare with that of a script."""
    script: str  # ours
    checkout: str  # the option that names the folder
    repository: str
    commit: str
    folder: str  # where in it the files are
    files: dict[str, str]  # file -> id of its content in that commit, as git ls-tree prints it
    timed: str  # in words, for the table
    update: Callable  # (load, rows, obs_dim, act_dim, task, device) -> does an update; or a JaxLoop
    jax: bool = False

    @property
    def name(self) -> str:
        """corl-team/CORL: iql.py, ..."""
        return f"{self.repository}: {next(iter(self.files))}"


def adam(net: torch.nn.Module, lr: float) -> torch.optim.Adam:
    """The optimiser as all of them make it; its speed does not depend on the rate."""
    return torch.optim.Adam(net.parameters(), lr=lr)


def corl_loop(module, trainer, rows: dict, obs_dim: int, act_dim: int,
              device: str) -> Callable[[], None]:
    """One turn of the loop that CORL's scripts share."""
    config = module.TrainConfig(device=device)
    buffer = module.ReplayBuffer(obs_dim, act_dim, config.buffer_size, config.device)
    buffer.load_d4rl_dataset(rows)
    return lambda: trainer.train([part.to(config.device) for part in buffer.sample(BATCH)])


def corl_iql(load, rows: dict, obs_dim: int, act_dim: int, task: str,
             device: str = "cpu") -> Callable[[], None]:
    """iql.py with the values of its TrainConfig."""
    module = load("iql")
    value = module.ValueFunction(obs_dim).to(device)
    critic = module.TwinQ(obs_dim, act_dim).to(device)
    actor = module.GaussianPolicy(obs_dim, act_dim, 1.0).to(device)
    trainer = module.ImplicitQLearning(
        max_action=1.0, actor=actor, actor_optimizer=adam(actor, 3e-4), q_network=critic,
        q_optimizer=adam(critic, 3e-4), v_network=value, v_optimizer=adam(value, 3e-4),
        device=device)
    return corl_loop(module, trainer, rows, obs_dim, act_dim, device)


def corl_td3_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str,
                device: str = "cpu") -> Callable[[], None]:
    """td3_bc.py: its two critics have an optimiser each."""
    module = load("td3_bc")
    actor = module.Actor(obs_dim, act_dim, 1.0).to(device)
    critics = [module.Critic(obs_dim, act_dim).to(device) for _ in range(2)]
    trainer = module.TD3_BC(
        max_action=1.0, actor=actor, actor_optimizer=adam(actor, 3e-4), critic_1=critics[0],
        critic_1_optimizer=adam(critics[0], 3e-4), critic_2=critics[1],
        critic_2_optimizer=adam(critics[1], 3e-4), device=device)
    return corl_loop(module, trainer, rows, obs_dim, act_dim, device)


def corl_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str,
            device: str = "cpu") -> Callable[[], None]:
    """any_percent_bc.py on all rows: which rows it keeps does not change its update."""
    module = load("any_percent_bc")
    actor = module.Actor(obs_dim, act_dim, 1.0).to(device)
    trainer = module.BC(max_action=1.0, actor=actor, actor_optimizer=adam(actor, 3e-4),
                        device=device)
    return corl_loop(module, trainer, rows, obs_dim, act_dim, device)


def fujimoto_buffer(load, rows: dict, obs_dim: int, act_dim: int):
    """The replay buffer of TD3_BC, which SPOT took over, with states normalised as both do."""
    buffer = load("utils").ReplayBuffer(obs_dim, act_dim)
    buffer.convert_D4RL(rows)
    buffer.normalize_states()
    return buffer


def td3_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str,
           device: str = "cpu") -> Callable[[], None]:
    """TD3_BC.py, whose defaults are those of its main.py."""
    policy = load("TD3_BC").TD3_BC(obs_dim, act_dim, 1.0)
    buffer = fujimoto_buffer(load, rows, obs_dim, act_dim)
    return lambda: policy.train(buffer, BATCH)


def spot(load, rows: dict, obs_dim: int, act_dim: int, task: str,
         device: str = "cpu") -> Callable[[], None]:
    """SPOT.py after the VAE: its own defaults, the VAE's latents as in main.py, an untrained VAE.

    lambda differs from task to task and changes no speed.
    """
    vae = load("vae").VAE(obs_dim, act_dim, 2 * act_dim, 1.0)
    vae.to(device)
    vae.eval()
    policy = load("SPOT").SPOT_TD3(vae, obs_dim, act_dim, 1.0)
    buffer, logger = fujimoto_buffer(load, rows, obs_dim, act_dim), MagicMock()
    logger.log = lambda *_: None  # a mock remembers its calls, which takes time
    return lambda: policy.train(buffer, BATCH, logger=logger)


def por(load, rows: dict, obs_dim: int, act_dim: int, task: str,
        device: str = "cpu") -> Callable[[], None]:
    """por.py with the guide and the V that run_mujoco_por.sh gives the task's medium dataset.

    Its main() takes one thread; here it gets as many as the others.
    """
    policy, util, guide_q = load("policy"), load("util"), task == "hopper"
    gaussian = policy.GaussianPolicy
    agent = load("por").POR(
        vf=load("value_functions").TwinV(obs_dim, layer_norm=not guide_q),
        policy=gaussian(2 * obs_dim, act_dim, hidden_dim=1024), max_steps=1_000_000,
        goal_policy=gaussian(obs_dim, obs_dim), tau=0.7 if guide_q else 0.5,
        alpha=50.0 if guide_q else 3.0, policy_lr=1e-3)
    if guide_q:
        agent.pretrain_init(gaussian(obs_dim, obs_dim))
    update = agent.por_qlearning_update if guide_q else agent.por_residual_update
    data = {name: util.torchify(array) for name, array in rows.items()}
    return lambda: update(**util.sample_batch(data, BATCH))


class JaxLoop:
    """The loop of a script in JAX: each turn is one call of its compiled function."""

    def __init__(self, jax: ModuleType, turn: Callable, rng, state, updates: int):
        """turn: (rng, state) -> rng, state, losses, after `updates` updates."""
        self.jax, self.turn, self.updates = jax, turn, updates
        self.rng, self.state, self.losses = rng, state, {}
        self.first = self.weights()

    def __call__(self) -> None:
        self.rng, self.state, self.losses = self.turn(self.rng, self.state)

    def wait(self) -> None:
        """Until all that was started is done: JAX returns before."""
        self.jax.block_until_ready((self.rng, self.state, self.losses))

    def weights(self) -> list[np.ndarray]:
        """A copy of those of the actor."""
        leaves = self.jax.tree_util.tree_leaves(self.state.actor.params)
        return [np.array(leaf) for leaf in leaves]

    def check(self) -> None:
        """Raise SystemExit if it does not train: such a time would say nothing."""
        for name, loss in self.losses.items():
            if not np.isfinite(np.asarray(loss)).all():
                raise SystemExit(f"its {name} is not finite")
        if all((new == old).all() for new, old in zip(self.weights(), self.first)):
            raise SystemExit("its actor did not change")

    def facts(self) -> dict:
        """Versions, and what its matrix products are: XLA's default on GPUs may not be fp32."""
        jnp = self.jax.numpy
        x = np.random.default_rng(0).random((256, 256), np.float32)
        exact = x.astype(float) @ x.astype(float)
        error = np.abs(np.asarray(jnp.array(x) @ jnp.array(x)) / exact - 1).max()
        return {"jax": f"JAX {self.jax.__version__}, Python {platform.python_version()}",
                "precision": "fp32" if error < 1e-5 else f"with errors of {error:.0e} in JAX"}


def jax_corl(jax: ModuleType, module, algorithm, create: Callable, rows: dict) -> JaxLoop:
    """The loop that JAX-CORL's scripts share, with their config as it was when it was imported."""
    config, terminals = module.config, rows["terminals"]
    rows = rows | {"dones": terminals, "dones_float": terminals}
    data = module.Transition(*(jax.numpy.array(rows[name], dtype=jax.numpy.float32)
                               for name in module.Transition._fields))
    rng, key = jax.random.split(jax.random.PRNGKey(config.seed))
    state = create(key, data.observations[0], data.actions[0], config)
    update = jax.jit(algorithm().update_n_times, static_argnums=(3,))

    def turn(rng, state):
        rng, key = jax.random.split(rng)
        return rng, *update(state, data, key, config)

    return JaxLoop(jax, turn, rng, state, config.n_jitted_updates)


def jax_corl_iql(load, rows: dict, obs_dim: int, act_dim: int, task: str,
                 device: str = "cpu") -> JaxLoop:
    """iql.py without its default of a LayerNorm in V, which ours and the others' have not."""
    sys.argv[1:] = ["layer_norm=false"]  # it reads its command line while it is imported
    module = load("iql")
    return jax_corl(load("jax"), module, module.IQL, module.create_iql_train_state, rows)


def jax_corl_td3_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str,
                    device: str = "cpu") -> JaxLoop:
    """td3bc.py as it is; no option takes the LayerNorm out of its critics."""
    sys.argv[1:] = []
    module = load("td3bc")
    return jax_corl(load("jax"), module, module.TD3BC, module.create_td3bc_train_state, rows)


def unifloral(jax: ModuleType, module, rows: dict, nets: list, obs_dim: int, act_dim: int,
              critics: int, device: str) -> JaxLoop:
    """The loop that unifloral's scripts share.

    nets: classes of the actor, the critics and, if there is one, V. critics: updates of them in a
    turn, which count as so many. On a GPU a call has as many turns as they give it, 2,500.
    """
    jnp = jax.numpy
    args = module.Args() if device == "cuda" else module.Args(eval_interval=SCAN)
    data = module.Transition(
        obs=jnp.array(rows["observations"]), action=jnp.array(rows["actions"]),
        reward=jnp.array(rows["rewards"]), next_obs=jnp.array(rows["next_observations"]),
        done=jnp.array(rows["terminals"]))
    obs, act = jnp.zeros(obs_dim), jnp.zeros(act_dim)
    mean, std = data.obs.mean(axis=0), data.obs.std(axis=0)
    nets = [nets[0](act_dim, mean, std), *(net(mean, std) for net in nets[1:])]
    rng, *keys = jax.random.split(jax.random.PRNGKey(args.seed), 1 + len(nets))
    parts = dict(zip(("actor", "dual_q", "value"), zip(keys, nets, ([obs], [obs, act], [obs]))))
    parts |= {f"{name}_target": part for name, part in parts.items()}  # with their weights
    state = module.AgentTrainState(*(module.create_train_state(args, *parts[name])
                                     for name in module.AgentTrainState._fields))
    step = module.make_train_step(args, *(net.apply for net in nets), data)

    def turn(rng, state):
        (rng, state), losses = jax.lax.scan(step, (rng, state), None, args.eval_interval)
        return rng, state, losses

    return JaxLoop(jax, turn, rng, state, critics * args.eval_interval)


def unifloral_iql(load, rows: dict, obs_dim: int, act_dim: int, task: str,
                  device: str = "cpu") -> JaxLoop:
    """iql.py with the values of its Args."""
    module = load("iql")
    nets = [module.TanhGaussianActor, module.DualQNetwork, module.StateValueFunction]
    return unifloral(load("jax"), module, rows, nets, obs_dim, act_dim, 1, device)


def unifloral_td3_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str,
                     device: str = "cpu") -> JaxLoop:
    """td3_bc.py: a turn draws one batch, updates the critics twice with it, the actor once."""
    module = load("td3_bc")
    nets = [module.DeterministicTanhActor, module.DualQNetwork]
    critics = module.Args().num_critic_updates_per_step
    return unifloral(load("jax"), module, rows, nets, obs_dim, act_dim, critics, device)


CORL = ("corl", "corl-team/CORL", "eeeeef2671235fcce3a3eb255576a207d78840e6",
        "algorithms/offline")
JAX_CORL = ("jax_corl", "nissymori/JAX-CORL", "d747dd8ad4fcc088ff9f1ade49a6be43a60f6556", "algos")
UNIFLORAL = ("unifloral", "EmptyJackson/unifloral", "f2dc1278eae18ed3e22c92255119c54885414d17",
             "algorithms")
PEERS = [
    Peer("por", "por", "ryanxhr/POR", "e692bb3a0c92b2dc668d71b0a5fc6e04a53344e1", "", {
        "por.py": "d26b42595b5018e6bb5bcd348dde07b4079566bc",
        "policy.py": "82ea033f93c9e7cda16888ad43ef3d3c225d22fd",
        "value_functions.py": "820d13e37efff6a5494decb005b7213e4f298810",
        "util.py": "331f9d4d9ba9a49ed1202609ed0cfff7d7f025f4"},
        "`sample_batch` and `por_residual_update`, with the q guide (Hopper) "
        "`por_qlearning_update`; their main sets one thread, here it has as many as ours", por),
    Peer("iql", *CORL, {"iql.py": "14cec70a54a05a9f0a6187758c84e841cbf151bf"},
         "`ReplayBuffer.sample` and `ImplicitQLearning.train`", corl_iql),
    Peer("iql", *JAX_CORL, {"iql.py": "1130ec1a48844d2bd8f9ca6d89e5371e3738eb2f"},
         "`jax.jit` of `IQL.update_n_times`, which samples; 8 updates a call, as they have it; "
         "`layer_norm=false` (theirs has one in V)", jax_corl_iql, True),
    Peer("iql", *UNIFLORAL, {"iql.py": "2ed607da6da84baacf00c11023493894201453bd"},
         f"`jax.lax.scan` of `make_train_step`, which samples; on a CPU `eval_interval={SCAN}` "
         "updates a call (they have 2,500)", unifloral_iql, True),
    Peer("td3_bc", *CORL, {"td3_bc.py": "6ae0379c16a21cbd91e81ab6a70581d3605514dd"},
         "`ReplayBuffer.sample` and `TD3_BC.train`", corl_td3_bc),
    Peer("td3_bc", "td3_bc", "sfujim/TD3_BC", "8791ad7d7656cb8396f1b3ac8c37f170b2a2dd5f", "", {
        "TD3_BC.py": "36e3ffa0990d90d1e75b9066f6894f9c478f35ea",
        "utils.py": "46676820cb63b4a1c9fdb61466cbe6693348ab48"},
        "`TD3_BC.train`, which samples", td3_bc),
    Peer("td3_bc", *JAX_CORL, {"td3bc.py": "0a789c07e6e3c1d73ac4b269b5de7def7f4bc083"},
         "`jax.jit` of `TD3BC.update_n_times`, which samples; 8 updates a call, as they have it; "
         "its critics have a LayerNorm, which ours have not", jax_corl_td3_bc, True),
    Peer("td3_bc", *UNIFLORAL, {"td3_bc.py": "d5f254be747d24fd908c8b71eadd7424752d8879"},
         f"`jax.lax.scan` of `make_train_step`, on a CPU with `eval_interval={SCAN}` (they have "
         "2,500); each of these counts as the two updates of the critics that it makes, both "
         "with the one batch that it draws", unifloral_td3_bc, True),
    Peer("bc", *CORL, {"any_percent_bc.py": "7b6dfa83b451d0ae4d832900ab177455360607eb"},
         "`ReplayBuffer.sample` and `BC.train`, all rows kept", corl_bc),
    Peer("spot", "spot", "thuml/SPOT", "4be91cce407e93a8631043328f868b1b7abb86ba", "", {
        "SPOT.py": "04a1e32ca41ddd4468039c7983fd06daff90e848",
        "utils.py": "104dd31e5c9596502158e380da134e769b4eafb5",
        "vae.py": "573f878e60390e2400fc2b14d5af30c74383f191"},
        "`SPOT_TD3.train`, which samples; the VAE is not trained in it, nor in ours", spot)]


def blob(path: Path) -> str:
    """The id that git gives a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def version(peer: Peer, checkout: Path) -> str:
    """The commit, if the files are those of it, else which of them differ.

    Raises SystemExit if one is not there.
    """
    found = {}
    for file in peer.files:
        path = checkout / peer.folder / file
        if not path.is_file():
            raise SystemExit(f"--{peer.checkout.replace('_', '-')} {checkout}: no file "
                             f"{Path(peer.folder, file)} in it; check out {peer.repository} @ "
                             f"{peer.commit[:7]}")
        found[file] = blob(path)
    other = [file for file, id in peer.files.items() if found[file] != id]
    return peer.commit[:7] + f", but another {' and '.join(other)}" * bool(other)


# ---- The processes

def child(config: dict) -> None:
    """Make one configuration, say what it runs on, then time a block for each line of the input.

    config: "task", "rows", "threads", "seconds", and either "peer" (index in PEERS), "checkout" and
    "device", or "speed" (fields of speed.Args). Answers a line of JSON each time; the first block
    counts for nothing: with it the number of updates in the others is found.
    """
    answers = sys.stdout
    say = lambda **values: print(json.dumps(values), file=answers, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        if "peer" in config:
            run = Theirs(config)
            whole, facts, wait = run.whole, run.facts, run.wait
        else:
            _, run, whole, facts = speed.build(speed.Args(**config["speed"]), [])
            facts |= {"threads": torch.get_num_threads()}
            wait = waiting(run.device.type)
        rounded = lambda updates: whole * max(1, round(updates / whole))
        run.advance(rounded(WARMUP))
        wait()
        say(**facts)
        updates = None
        for _ in sys.stdin:
            run.advance(rounded(SETTLE))
            wait()
            count, clock = updates or rounded(SETTLE), time.perf_counter()
            run.advance(count)
            wait()
            seconds = time.perf_counter() - clock
            run.means()  # ends the program if our losses, or those of JAX, are NaN
            say(updates=count, seconds=seconds)
            updates = updates or rounded(config["seconds"] * count / seconds)


def waiting(device: str) -> Callable[[], None]:
    """What waits until PyTorch's device has done all that it was given."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


class Theirs:
    """A peer's update behind the methods of our runs that are needed here."""

    def __init__(self, config: dict):
        peer, threads = PEERS[config["peer"]], config["threads"]
        device = config.get("device", "cpu")
        for name in JAX_STAND_INS if peer.jax else STAND_INS:
            # a spec, for those who ask whether the package is there
            sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
        sys.path.insert(0, str(Path(config["checkout"], peer.folder)))
        rows = speed.synthetic(config["task"], config["rows"])
        # what d4rl.qlearning_dataset returns, whose terminals are booleans
        kept = ("observations", "actions", "next_observations", "rewards")
        rows = {name: rows[name] for name in kept} | {"terminals": rows["terminals"] > 0}
        obs_dim, act_dim, *_ = speed.TASKS[config["task"]]
        if not peer.jax:
            if threads:
                torch.set_num_threads(threads)
            torch.manual_seed(0)
        np.random.seed(0)
        self.update = peer.update(importlib.import_module, rows, obs_dim, act_dim, config["task"],
                                  device)
        if peer.jax:
            self.each, self.wait = self.update.updates, self.update.wait
            self.means = self.update.check
            self.facts = {"threads": threads, **self.update.facts()}
        else:
            self.each, self.wait = 1, waiting(device)
            self.facts = {"threads": torch.get_num_threads(), "precision": "fp32"}
        self.whole = math.lcm(2, self.each)  # TD3's actor: in every second update

    def advance(self, updates: int) -> None:
        for _ in range(updates // self.each):
            self.update()

    def means(self) -> None:
        """PyTorch's peers have no such check."""


class Child:
    """A process with one configuration, which works only when asked."""

    def __init__(self, name: str, config: dict):
        self.name, self.errors = name, tempfile.TemporaryFile("w+")
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        device = config.get("device", "cpu")
        if device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""  # their code would take a GPU if it saw one
        start = [sys.executable, __file__]
        if "python" in config:
            start = [config["python"], "-c", START_JAX, str(Path(__file__).resolve().parent)]
            # their files overwrite XLA_FLAGS; without the last one JAX takes most of a GPU
            env |= {"NPROC": str(config["threads"]), "JAX_PLATFORMS": device,
                    "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            [*start, "--child", json.dumps(config)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env)

    def answer(self) -> dict:
        """Its next line. Raises SystemExit, with its last words, if there is none."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        last = [text.strip() for text in self.errors if text.strip()] or ["without a word"]
        raise SystemExit(f"{self.name} ended with code {code}: {last[-1]}")

    def block(self) -> dict:
        """Let it work for a block."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, and answer() says so
            self.process.stdin.write("block\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def time_group(configurations: list[tuple[dict, dict]], blocks: int) -> list[dict]:
    """Start all, then time `blocks` blocks of each in turn.

    configurations: what the result says of it, what the child gets. Returns the former with
    "updates" per block, the "seconds" of each block, and what the child said of itself.
    """
    with contextlib.ExitStack() as stack:
        group = []
        for entry, config in configurations:
            name = f"{entry['code']} with {entry['task']}'s shape"
            group.append(member := Child(name, config))
            stack.callback(member.close)
        entries = [entry | member.answer() for (entry, _), member in zip(configurations, group)]
        for turn in range(blocks + 1):
            for entry, member in zip(entries, group):
                done = member.block()
                if turn:
                    entry["updates"] = done["updates"]
                    entry.setdefault("seconds", []).append(done["seconds"])
    return entries


def plan(args: Args) -> list[list[tuple[dict, dict]]]:
    """Configurations by task and script, for `time_group`: ours, then each peer of them."""
    groups = []
    shared = {"rows": args.rows, "threads": args.threads}
    for task, script in product(args.tasks, args.scripts):
        ours, theirs = [], []
        for number, peer in enumerate(PEERS):
            checkout = getattr(args, peer.checkout)
            if peer.script == script and checkout:
                entry = {"task": task, "script": script, "code": peer.name, "seeds": 1,
                         "execution": "jit" if peer.jax else "eager",
                         "commit": version(peer, checkout)}
                config = {"peer": number, "checkout": str(checkout.resolve()), "task": task,
                          "seconds": args.seconds, "device": args.device, **shared}
                if peer.jax:  # as many threads as PyTorch takes, if it is not told
                    config |= {"python": str(args.jax_python),
                               "threads": args.threads or torch.get_num_threads()}
                theirs.append((entry, config))
        for seeds, execution, asked in product(args.num_seeds, args.execution, args.precision):
            entry = {"task": task, "script": script, "code": "ours", "seeds": seeds,
                     "execution": execution, "asked": asked}
            config = speed.Args(script=(script,), task=task, num_seeds=(seeds,), device=args.device,
                                execution=(execution,), precision=(asked,), **shared)
            ours.append((entry, {"speed": asdict(config), "seconds": args.seconds,
                                 "device": args.device}))
        if theirs:
            groups.append(ours + theirs)
    return groups


# ---- The tables

def milliseconds(timing: dict) -> float:
    """Median over the blocks of one update of one seed."""
    return 1_000 * float(np.median(timing["seconds"])) / timing["updates"] / timing["seeds"]


def less(precision: str) -> str:
    """In one word what ours multiply with if it is less exact than fp32, else nothing."""
    return next((word for word in ("bf16", "tf32") if word in precision), "")


def table(timings: list[dict], short: str) -> str:
    """Their code beside ours, a row for each of theirs; `short` is told of ours, if it is there."""
    ways = {(t["seeds"], t["execution"]): None for t in timings if t["code"] == "ours"}
    ours = {(t["script"], t["seeds"], t["execution"]): milliseconds(t)
            for t in timings if t["code"] == "ours"}
    head = ["", "their code", "ms"] + [
        f"ours, {execution}" + f", {seeds} seeds" * (seeds > 1) + f", {short}" * bool(short)
        for seeds, execution in ways]
    rows = [head, ["---"] * len(head)]
    for timing in timings:
        if timing["code"] == "ours":
            continue
        their, script = milliseconds(timing), timing["script"]
        times = [ours[script, *way] for way in ways]
        rows.append([NAMES[script], f"{timing['code']} @ {timing['commit']}"
                     + ", JAX" * ("jax" in timing), f"{their:.2f}",
                     *(f"{own:.2f} ({their / own:.2f}×)" for own in times)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def places(machine: str) -> tuple[str, Path]:
    """Mark in the page, and file of the numbers beside it, of the machine with that name."""
    suffix = f"-{machine}" if machine else ""
    return MARK + suffix, NUMBERS.with_stem(NUMBERS.stem + suffix)


def tables(result: dict | None) -> str:
    """All that stands between the markers: hardware, a table per task, what was timed.

    What was timed of theirs, and how, stands below the first machine's tables only.
    """
    if result is None:
        return NOTHING
    timings, options, machine = result["timings"], result["options"], result.get("name", "")
    unequal = max(abs(s / np.median(t["seconds"]) - 1) for t in timings for s in t["seconds"])
    own = [t for t in timings if t["code"] == "ours"]
    products = " and ".join(sorted({t["precision"] for t in own}))
    their = " and ".join(sorted({t.get("precision", "fp32") for t in timings if t not in own}))
    versions = "".join(f"; {jax}" for jax in sorted({t["jax"] for t in timings if "jax" in t}))
    parts = [
        f"<!-- Written by benchmarks/peers.py from {places(machine)[1].as_posix()}. Edit neither "
        "by hand: the tests compare them. -->",
        f"`{result['command']}`",
        f"{result['machine']}{versions}. Commit {result['commit']}, {result['date']}. Load before "
        f"the start: {result['load']:.1f}. Matrix products of ours: {products}, of theirs: "
        f"{their}. {options['rows']:,} random rows, batch {BATCH}, {options['blocks']} blocks "
        f"of {options['seconds']:g} s of each in turn; blocks differ from their median by at most "
        f"{100 * unequal:.0f}%.",
        "Milliseconds per update, those of several seeds per seed; in brackets how many times "
        "faster than the code on the left."]
    precisions = {t.get("asked"): t["precision"] for t in own}  # in the order of the command
    for task in dict.fromkeys(t["task"] for t in timings):
        obs_dim, act_dim, *_ = speed.TASKS[task]
        here = [t for t in timings if t["task"] == task]
        parts.append(f"### {task}: {obs_dim} observations, {act_dim} actions")
        for asked in sorted(precisions, key=lambda asked: bool(less(precisions[asked]))):
            short = less(precisions[asked])
            if short:
                parts.append(f"**Not like for like:** ours with products by {short} "
                             f"({precisions[asked]}) beside theirs, which remain {their}.")
            kept = [t for t in here if t["code"] != "ours" or t.get("asked") == asked]
            parts.append(table(kept, short))
    if machine:
        return "\n\n".join(parts)
    codes = {t["code"] for t in timings}
    parts.append("Timed: ours `Run.advance` in the phase `train`; theirs\n" + "\n".join(
        f"- [{peer.name}](https://github.com/{peer.repository}/tree/{peer.commit}): {peer.timed}."
        for peer in PEERS if peer.name in codes))
    if versions:
        parts.append("XLA's pool had as many threads as PyTorch (`NPROC`); blocks of JAX end with "
                     "`jax.block_until_ready`.")
    return "\n\n".join(parts)


def check(args: Args) -> None:
    """Refuse what cannot be measured or written, before any process starts."""
    for name, known in (("tasks", ("halfcheetah", "hopper", "walker2d")), ("scripts", NAMES),
                        ("execution", EXECUTIONS + ("capture",) * (args.device == "cuda")),
                        ("precision", ("auto", "fp32", "bf16"))):
        if bad := [value for value in getattr(args, name) if value not in known]:
            raise SystemExit(f"--{name} {bad[0]}: choose among {', '.join(known)}")
    if args.device not in ("cpu", "cuda"):
        raise SystemExit(f"--device {args.device}: choose among cpu, cuda")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no GPU here")
    for name in ("tasks", "scripts", "execution", "precision", "num_seeds"):
        if not getattr(args, name):
            raise SystemExit(f"--{name.replace('_', '-')} needs a value")
    if min(*args.num_seeds, args.blocks, args.rows, args.threads or 1) < 1 or args.seconds <= 0:
        raise SystemExit("--num-seeds, --blocks, --rows, --threads and --seconds must be positive")
    if (args.jax_corl or args.unifloral) and not shutil.which(args.jax_python or ""):
        raise SystemExit("--jax-corl and --unifloral need --jax-python, a Python that has JAX; "
                         f"{args.jax_python or 'none'} was given")
    if not re.fullmatch(r"[a-z0-9]*", args.machine):
        raise SystemExit(f"--machine {args.machine}: small letters and digits make a name here")
    if args.out:
        speed.replaced(args.out, "", places(args.machine)[0])


def rewrite(page: Path | None, machine: str) -> None:
    """Write the tables of that machine's numbers into the page beside which they lie."""
    mark, numbers = places(machine)
    if not (page and (page.parent / numbers).exists()):
        raise SystemExit(f"--rewrite needs --out, a page with {numbers} beside it")
    stored = json.loads((page.parent / numbers).read_text())
    speed.write(page, speed.replaced(page, tables(stored), mark))


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--child"]:
        return child(json.loads(words[1]))
    args = tyro.cli(Args, args=words, description=__doc__)
    check(args)
    if args.rewrite:
        return rewrite(args.out, args.machine)
    groups = plan(args)
    if not groups:
        raise SystemExit("nothing to compare with: name checkouts of peers of "
                         f"{', '.join(args.scripts)} by --corl, --td3-bc, --spot, --por, "
                         "--jax-corl, --unifloral")
    names = {"corl": "CORL", "td3_bc": "TD3_BC", "spot": "SPOT", "por": "POR",
             "jax_corl": "JAX-CORL", "unifloral": "unifloral", "jax_python": "jax/bin/python",
             "out": "benchmarks/SPEED.md"}
    result = {"command": speed.command_line("benchmarks/peers.py", args, names), "machine": "",
              **({"name": args.machine} if args.machine else {}),
              "commit": speed.commit(), "date": time.strftime("%F"),
              "load": os.getloadavg()[0], "timings": [],
              "options": {k: getattr(args, k) for k in ("rows", "blocks", "seconds")}}
    threads = set()
    for group in groups:
        entries = time_group(group, args.blocks)
        for entry in entries:
            result["machine"] = entry.pop("machine", result["machine"])
            threads.add(entry.pop("threads"))
            print(f"{entry['task']}, {entry['script']}: {entry['code']}, {entry['execution']}, "
                  f"{entry['precision']}, {entry['seeds']} at once: {milliseconds(entry):.3f} ms",
                  file=sys.stderr)
        if len(threads) > 1:  # then somebody has set them, and the comparison says nothing
            raise SystemExit(f"not all ran with the same number of threads: {sorted(threads)}")
        result["timings"] += entries
    print(tables(result))
    if args.out:
        mark, numbers = places(args.machine)
        text = speed.replaced(args.out, tables(result), mark)
        speed.write(args.out.parent / numbers, json.dumps(result, indent=1) + "\n")
        speed.write(args.out, text)


if __name__ == "__main__":
    main()
