"""RvS: RL via Supervised Learning (Emmons et al.; ICLR 2022; arXiv 2112.10751)

In hindsight, every action is right: it led to what came of it. RvS imitates the actions of the data
and tells the policy what came of each. Then the policy is told what is wanted. Such an outcome is a
number, what each remaining step earns (RvS-R), or a place that is reached (RvS-G). So this is
cloning (see bc.py) with one more input, as the Decision Transformer is (see dt.py). But two layers
take the place of the transformer, and the paper finds that they do as well, if they are wide.

    (1) RvS-R  w_t = (r_t + r_(t+1) + ... + r_T) / (H - t)    H: most steps; t: those so far
    (2) RvS-G  w_t = (x, y) at a random later step of the episode
    (3) loss   min E -log pi(a_t | s_t, w_t)
    (4) action a_t = the mean of pi(a | s_t, w), with the same w in all steps of an episode

In (4), w is the wanted return divided by H, or the episode's goal. (2) needs no reward at all.
Hindsight takes luck for skill: where the same action sometimes ends well and sometimes badly, a
high w asks for the luck, too. Nor does it join the good halves of two episodes (see por.py).

The authors' code is github scottemmons/rvs @ 90c0ffb. As there:
- pi is a Gaussian, whose mean has two hidden layers of 1,024. Its deviation does not depend on s.
  Weights begin orthogonal, those of the mean's last layer nearly 0, as Stable-Baselines3 does it.
- Neither observations nor rewards are scaled. Batches have 16,384 rows.
- (2) draws two uniform steps of an episode: s_t is the earlier one, w_t the place at the later.
- RvS-R is asked for ten shares of the way from D4RL's random policy to its expert, 0.3 to 1.2. All
  are evaluated and stored, and "score" alone is always that of the first, the expert's return.
  Their code does not say which of them the paper reports.
In these points we differ:
- Rows are drawn at random. Their loader for (1) does not shuffle: it draws an order of the episodes
  once, and each epoch has the same batches of about 16 whole episodes.
- H is the time limit of the environment. Theirs is the longest episode of the data, which on
  Gym-MuJoCo is the same, and the time limit when it acts.
- (2) draws long episodes more often than short ones, and the episodes of AntMaze also end where the
  ant gets to its goal. Theirs are equally likely and end when time is up.
- All data are learned from, and the last weights count. On AntMaze, they hold out a tenth of the
  episodes, and also evaluate the weights that had the least loss there.
- RvS-G is for AntMaze alone. They use its version 0, where all episodes of a run have one goal, and
  they have RvS-G for other tasks, too.
SETTINGS counts updates: on D4RL's Gym-MuJoCo files, these are the authors' 2,000 epochs.

`--num-seeds 5` trains five independent agents in one process as batched matrix products. They share
one random stream, so seed 3 alone is another run than seed 3 of five.

    python algorithms/rvs.py --env hopper-medium-expert-v2 --num-seeds 5  # D4RL, downloaded once
    python algorithms/rvs.py --env antmaze-umaze-v2                       # RvS-G
    python algorithms/rvs.py --env Pendulum-v1 --dataset-file my.hdf5     # your data, D4RL's layout
    python algorithms/rvs.py --resume runs/rvs-...                        # continue a stopped run
"""

import contextlib
import difflib
import fcntl
import fnmatch
import hashlib
import http.client
import importlib
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import gymnasium as gym
import h5py
import huggingface_hub.constants
import minari
import mujoco
import numpy as np
import torch
import torch.nn as nn
import tyro
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from minari.storage.datasets_root_dir import get_dataset_path
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# --------------------------------------------------------------------------------------------------
# Arguments
# --------------------------------------------------------------------------------------------------


@dataclass
class Args:
    # --- Experiment ---
    env: str = "hopper-medium-v2"  # D4RL name, Minari id or, with --dataset-file, Gymnasium id
    dataset_file: str | None = None  # HDF5 file in D4RL's layout; None: the named dataset
    seed: int = 0  # seed of the run's random numbers
    num_seeds: int = 1  # independent agents, trained together
    num_updates: int | None = None  # gradient updates
    batch_size: int = 16_384  # transitions per update and agent
    run_dir: str | None = None  # output folder; None: a new one in runs/
    resume: str | None = None  # folder of a stopped run, which has its arguments; None: begin
    # --- Evaluation ---
    eval_every: int = 5_000  # updates between evaluations, each of which also saves the run
    eval_episodes: int = 10  # episodes per evaluation and agent
    final_eval_episodes: int = 100  # episodes per agent of the last evaluation
    # --- Hardware ---
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: cuda if available
    execution: Literal["auto", "eager", "compile", "graph"] = "auto"  # auto: graph on CUDA
    # --- RvS (None: the dataset's row in SETTINGS) ---
    outcome: Literal["return", "goal"] | None = None  # what pi is told: RvS-R or RvS-G
    targets: list[float] | None = None  # returns to ask for; empty: best and mean of the data
    lr: float = 1e-3  # learning rate
    hidden: int = 1024  # hidden units of pi


def from_random_to_expert(low: float, high: float) -> list[float]:
    """Return the returns that analyze_d4rl.py asks for, the expert's first."""
    shares = (1.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2)
    return [round(low + share * (high - low), 1) for share in shares]


# Published settings: experiments/config/d4rl/ of the authors. Updates are 2,000 epochs of D4RL's
# files, except on AntMaze; where the authors ran none, they are as many as for a million rows.
# RvS-G looks at no target. It asks for the goal, whose return is 1.
HOPPER = {"outcome": "return", "targets": from_random_to_expert(-20.3, 3234.3)}
HALFCHEETAH = {"outcome": "return", "targets": from_random_to_expert(-280.2, 12135.0)}
WALKER2D = {"outcome": "return", "targets": from_random_to_expert(1.6, 4592.3)}
SETTINGS = [
    ("hopper-medium-expert", HOPPER | {"num_updates": 246_000}),
    ("hopper-medium-replay", HOPPER | {"num_updates": 50_000}),
    ("hopper-*", HOPPER | {"num_updates": 124_000}),
    ("halfcheetah-medium-expert", HALFCHEETAH | {"num_updates": 246_000}),
    ("halfcheetah-medium-replay", HALFCHEETAH | {"num_updates": 26_000}),
    ("halfcheetah-*", HALFCHEETAH | {"num_updates": 124_000}),
    ("walker2d-medium-expert", WALKER2D | {"num_updates": 246_000}),
    ("walker2d-medium-replay", WALKER2D | {"num_updates": 38_000}),
    ("walker2d-*", WALKER2D | {"num_updates": 124_000}),
    ("antmaze-*", {"outcome": "goal", "targets": [1.0], "num_updates": 20_000}),
    ("*", {"outcome": "return", "targets": [], "num_updates": 124_000}),
]

# --------------------------------------------------------------------------------------------------
# Networks: N independent copies of each, evaluated as batched matrix products
# --------------------------------------------------------------------------------------------------


class StackedLinear(nn.Module):
    """`copies` independent nn.Linear layers: (copies, B, fan_in) -> (copies, B, fan_out)."""

    def __init__(self, copies: int, fan_in: int, fan_out: int):
        super().__init__()
        bound = fan_in**-0.5  # nn.Linear's initialisation
        self.weight = nn.Parameter(torch.empty(copies, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(copies, 1, fan_out).uniform_(-bound, bound))

    def forward(self, x):
        return torch.baddbmm(self.bias, x, self.weight)


def mlp(copies: int, dims: list[int]) -> nn.Sequential:
    """Build ReLU networks with layers of these sizes: (copies, B, in) -> (copies, B, out)."""
    layers = []
    for fan_in, fan_out in pairwise(dims):
        layers += [StackedLinear(copies, fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def orthogonal_weights(net: nn.Sequential) -> None:
    """Draw orthogonal weights. The last layer's are small, so that all outputs begin near 0."""
    layers = [layer for layer in net if isinstance(layer, StackedLinear)]
    for layer in layers:
        gain = 0.01 if layer is layers[-1] else math.sqrt(2)
        for weight in layer.weight:
            nn.init.orthogonal_(weight, gain)
        layer.bias.zero_()


class WithOutcome(gym.ObservationWrapper):
    """Adds to every observation the outcome that is asked for. None is AntMaze's goal."""

    def __init__(self, env: gym.Env, outcome: list[float] | None):
        super().__init__(env)
        self.outcome = outcome
        size = 2 if outcome is None else len(outcome)
        shape = (env.observation_space.shape[0] + size,)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape)

    def observation(self, obs):
        outcome = self.env.unwrapped.goal if self.outcome is None else self.outcome
        return np.append(obs, outcome)


# --------------------------------------------------------------------------------------------------
# Algorithm
# --------------------------------------------------------------------------------------------------


class RvS(nn.Module):
    """N independent agents. Tensors are (N, B, ...), actions lie in [-1, 1].

    What other scripts call an observation is here an observation and an outcome, (N, B, obs + w).
    """

    def __init__(self, args: Args, task: "Task", device):
        super().__init__()
        self.args = args
        self.max_episode_steps = task.max_episode_steps
        outcome_dim = 1 if args.outcome == "return" else 2
        dims = [task.obs_dim + outcome_dim, args.hidden, args.hidden, task.act_dim]
        self.policy = mlp(args.num_seeds, dims)
        orthogonal_weights(self.policy)
        self.log_std = nn.Parameter(torch.zeros(args.num_seeds, 1, task.act_dim))
        self.to(device)

        self.optimizers = {"policy": Adam(self.parameters(), args.lr)}
        self.phases = [Phase("train", args.num_updates, [self.update])]

    def act(self, obs):
        """Eq. 4: (N, B, obs + w) -> (N, B, act)"""
        return self.policy(obs)

    def condition(self, env: gym.Env, target: float) -> gym.Env:
        """Let an environment say what is asked for: a return, or its own goal."""
        if self.args.outcome == "goal":
            return WithOutcome(env, None)
        return WithOutcome(env, [target / self.max_episode_steps])

    def update(self, batch: dict) -> dict:
        """Update pi. Return statistics of shape (N,)."""
        # Eq. 3
        error = (batch["actions"] - self.policy(batch["observations"])) / self.log_std.exp()
        log_pi = -0.5 * error**2 - self.log_std - 0.5 * math.log(2 * math.pi)
        loss = -log_pi.sum(-1).mean(1)
        minimize(self.optimizers["policy"], loss)
        return {"loss/policy": loss, "deviation": self.log_std.exp().mean((1, 2))}


def prepare_data(args: Args, data: dict, task: "Task") -> dict:
    """Return the rows of all complete episodes, with their outcomes (Eq. 1).

    For Eq. 2 they have `time` and `length` (n,) instead, by which the buffer finds later rows.
    """
    if not task.ordered:
        sys.exit(f"{task.name}: hindsight needs episodes, and the rows are not in order of time")
    if args.outcome == "goal" and not task.env_id.startswith("AntMaze-"):
        sys.exit(f"{task.env_id} has no goal (x, y) as AntMaze has; use --outcome return")
    ends = np.flatnonzero(data["episode_end"])
    num_rows = ends[-1] + 1
    lengths = np.diff(ends, prepend=-1)
    length = np.repeat(lengths, lengths)
    time = np.arange(num_rows) - np.repeat(ends + 1 - lengths, lengths)
    columns = {key: data[key][:num_rows] for key in ("observations", "actions")}
    if args.outcome == "goal":
        return columns | {"time": time, "length": length}

    if not args.targets:
        returns = episode_returns(data)
        args.targets = [float(returns.max()), float(returns.mean())]
    rewards = data["rewards"][:num_rows].astype(float)
    earned = rewards.cumsum()
    return_to_go = np.repeat(earned[ends], lengths) - earned + rewards
    # Episodes of the data can be longer than the environment's time limit.
    remaining = (task.max_episode_steps - time).clip(min=1)
    outcome = (return_to_go / remaining).astype(np.float32)
    columns["observations"] = np.column_stack([columns["observations"], outcome])
    return columns


# What main() trains. The shared code asks of it: `args`; `optimizers`, a dict of Adam; `phases`;
# act(obs), which evaluate() calls; condition(env, target), which makes what act() takes. Updates
# return statistics of shape (N,). All state lies in parameters, buffers and `optimizers`, and all
# randomness comes from torch: only these are saved.
Algorithm = RvS

# --------------------------------------------------------------------------------------------------
# From here on, the code is the same in every script
# --------------------------------------------------------------------------------------------------
# Optimisation
# --------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """A part of the training."""

    name: str
    num_updates: int
    updates: list[Callable]  # functions (batch) -> statistics that take turns
    scored: bool = True  # is the policy evaluated in this phase?
    # Function (buffer), called before every refresh_every updates. A run that is resumed elsewhere
    # than at a multiple of refresh_every lacks what it did to the buffer since.
    refresh: Callable | None = None
    refresh_every: int = 1_000


class Adam:
    """torch.optim.AdamW, written out because torch.compile cannot trace Optimizer.step.

    With it, losses, gradients and changes of the weights form one compiled graph.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.params = list(params)
        self.initial_lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_avg_sq = [torch.zeros_like(p) for p in self.params]
        # Tensors, so that a CUDA graph reads their current value. They have one dimension, because
        # compiled graphs lose in-place changes of 0-dimensional tensors.
        device = self.params[0].device
        self.lr = torch.full((1,), lr, device=device)
        self.step_count = torch.zeros(1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def step(self, grads) -> None:
        beta1, beta2 = self.betas
        self.step_count += 1
        torch._foreach_lerp_(self.exp_avg, grads, 1 - beta1)
        torch._foreach_lerp_(self.exp_avg_sq, torch._foreach_mul(grads, grads), 1 - beta2)
        # exp(t log(beta)) is beta**t, which a compiled graph would compute once per weight.
        correction1 = 1 - (self.step_count * math.log(beta1)).exp().squeeze()
        correction2 = 1 - (self.step_count * math.log(beta2)).exp().squeeze()
        lr = self.lr.squeeze()
        if self.weight_decay > 0:
            torch._foreach_mul_(self.params, 1 - lr * self.weight_decay)
        # p -= lr / correction1 * exp_avg / (sqrt(exp_avg_sq / correction2) + eps)
        denominator = torch._foreach_sqrt(self.exp_avg_sq)
        torch._foreach_div_(denominator, correction2.sqrt())
        torch._foreach_add_(denominator, self.eps)
        torch._foreach_mul_(denominator, -correction1 / lr)
        torch._foreach_addcdiv_(self.params, self.exp_avg, denominator)

    def state(self) -> list[torch.Tensor]:
        return [self.lr, self.step_count, *self.exp_avg, *self.exp_avg_sq]


def minimize(optimizer: Adam, loss) -> None:
    """Descend the losses (N,). Agents share no weights, so each gets its own loss's gradient."""
    if loss.ndim != 1:
        raise ValueError(f"a loss of shape {tuple(loss.shape)}; every agent needs its own: (N,)")
    optimizer.step(torch.autograd.grad(loss.sum(), optimizer.params))


def cosine_decay(optimizer: Adam, num_updates: int) -> None:
    """Set the learning rate for the next step, as CosineAnnealingLR does."""
    progress = (optimizer.step_count / num_updates).clamp(max=1)
    optimizer.lr.copy_(optimizer.initial_lr / 2 * (1 + torch.cos(math.pi * progress)))


@torch.no_grad()
def update_target(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- (1 - rate) * target + rate * source"""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


# --------------------------------------------------------------------------------------------------
# Datasets
# --------------------------------------------------------------------------------------------------


@dataclass
class Task:
    """What is known of a dataset besides its rows."""

    name: str
    source: str  # D4RL file, Minari, rebuilt, local or the path of a file
    env_id: str
    env_kwargs: dict
    max_episode_steps: int
    ref_min: float | None = None  # return with normalized score 0
    ref_max: float | None = None  # return with normalized score 100
    obs_dim: int = 0
    act_dim: int = 0  # numbers of an action; 1 if actions are discrete
    num_actions: int | None = None  # discrete actions are 0, ..., num_actions - 1
    obs_keys: list[str] = field(default_factory=list)  # of a Dict, in the order of the vector
    action_low: list[float] | None = None  # the environment's bounds of actions; None: there are
    action_high: list[float] | None = None  # none. Agents see actions that are scaled to [-1, 1].
    transitions: int = 0
    ordered: bool = True  # do rows follow each other in time, so that there are episodes?
    episodes: int = 0  # complete ones
    data_return: float | None = None  # mean return of these
    fingerprint: str = ""  # SHA-256 of the rows
    reward_scale: float = 1.0  # prepare_data makes scale * reward + shift of a reward
    reward_shift: float = 0.0
    obs_mean: list[float] = field(default_factory=list)  # if the algorithm standardises
    obs_std: list[float] = field(default_factory=list)


def apply_settings(args: Args) -> Args:
    """Replace every None for which the dataset has a published setting."""
    family = dataset_family(args.env)
    for pattern, settings in SETTINGS:
        # A choice such as --guide q rules out the rows of the other guide.
        choices = [name for name, value in settings.items() if isinstance(value, str)]
        contradicts = any(getattr(args, name) not in (None, settings[name]) for name in choices)
        if fnmatch.fnmatch(family, pattern) and not contradicts:
            break
    else:
        sys.exit(f"no row of SETTINGS fits {family} and what was chosen; add one")
    given = {name: getattr(args, name) for name in settings if getattr(args, name) is not None}
    return replace(args, **settings | given)


def dataset_family(name: str) -> str:
    """'hopper-medium-v2', 'rebuilt/hopper/medium-100k-v0' -> 'hopper-medium'."""
    name = "-".join(name.lower().split("/")[-2:])
    return re.sub(r"(-\d+[km]?)?-v\d+$", "", name)


def load_dataset(args: Args) -> tuple[dict, Task]:
    """Load the dataset that --env or --dataset-file names, and describe its task.

    The columns are float32: observations and next_observations (n, obs_dim), actions (n, act_dim),
    scaled to [-1, 1], rewards, terminals, next_valid (n,): is the next observation known?, and
    episode_end (n,), of type bool. Whatever cannot be trusted ends the program with one line.
    """
    name = args.env
    file = args.dataset_file
    if name in D4RL_SHA256:
        prefix = next(prefix for prefix in D4RL_ENVS if name.startswith(prefix))
        env_id, ref_min, ref_max = D4RL_ENVS[prefix]
        task = make_task(name, file or "D4RL file", env_id)
        task.ref_min = ref_min
        task.ref_max = ref_max
        data = read_hdf5(file or download_d4rl(name))
        if name.startswith("antmaze") and "timeouts" in data:
            # D4RL's mark at a timeout says whether the next episode starts near the goal.
            data["terminals"][data["timeouts"] > 0] = 0
    elif file is not None:
        task = make_task(name, file, name)
        data = read_hdf5(file)
    else:
        data, task = read_minari(name)
    check_data(data, task)
    add_next_observations(data, task)
    scale_actions(data, task)
    task.transitions = len(data["rewards"])
    if task.ordered:
        describe_episodes(data, task)
    return data, task


def add_next_observations(data: dict, task: Task) -> None:
    """Add `episode_end`, `next_observations` and `next_valid`: 0 where s' is unknown.

    Stored next observations are used. Otherwise the next state of a row is the following row's
    observation, except at the end of an episode.
    """
    if "episode_end" in data:  # Minari knows all this
        data["episode_end"] = data["episode_end"] > 0
        data["next_valid"] = np.ones_like(data["episode_end"])
        return
    timeouts = data.pop("timeouts", None)
    data["episode_end"] = data["terminals"] > 0
    if timeouts is not None:
        data["episode_end"] |= timeouts > 0
    inside = ~data["episode_end"]
    inside[-1] = False
    next_rows = np.roll(data["observations"], -1, axis=0)
    stored = data.get("next_observations")
    if stored is not None:
        # Storing may round, but by less than this.
        tolerance = 1e-4 * data["observations"].std(axis=0) + 1e-6 * np.abs(next_rows)
        follows = (np.abs(stored - next_rows) <= tolerance).all(axis=1)
        if data["episode_end"][:-1].any() and follows[:-1].all():
            print("note: next_observations only repeat the following rows, so they are not used")
            if timeouts is None:
                sys.exit(f"{task.name}: without timeouts, nothing shows where episodes were cut")
            stored = None
    if stored is None:
        data["next_observations"] = next_rows
        data["next_valid"] = inside
    else:
        # At an end, some files store the following row, too, which belongs to the next episode.
        data["next_valid"] = inside | ~follows
        end_episodes_at(inside & ~follows, data, task)
    if not data["next_valid"].any() and not data["terminals"].any():
        sys.exit(f"{task.name}: no row has a next state, so nothing can be learned")
    if not data["episode_end"].any():
        sys.exit(f"{task.name}: no episode ever ends; set timeouts to 1 where one was cut")


def end_episodes_at(jumps, data: dict, task: Task) -> None:
    """End an episode in the rows (n,) whose stored next state is not the following row. Say so.

    An export of qlearning_dataset has such rows. But if their next states stand elsewhere in the
    data, or if they are many, then the rows are not in the order of time.
    """
    if not jumps.any():
        return
    wanted = {state.tobytes() for state in data["next_observations"][jumps][:1000]}
    found = wanted.intersection(state.tobytes() for state in data["observations"])
    task.ordered = bool(jumps.mean() < 0.1 and len(found) < len(wanted) / 2)
    data["episode_end"] |= jumps
    meaning = "and each ends an episode"
    if not task.ordered:
        meaning = "and as rows are not in the order of time, there are no episodes"
    print(
        f"note: the next observation of {jumps.sum():,} of {len(jumps):,} rows is not the "
        f"following row; the stored ones are used, {meaning}"
    )


def action_scale(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return center and radius (act,) of the actions: environment = center + radius * agent."""
    if task.action_low is None:
        return np.zeros(task.act_dim), np.ones(task.act_dim)
    low, high = np.array(task.action_low), np.array(task.action_high)
    radius = (high - low) / 2
    radius[radius == 0] = 1
    return (high + low) / 2, radius


def scale_actions(data: dict, task: Task) -> None:
    """Scale the actions from the environment's bounds to [-1, 1]. make_env() scales them back."""
    center, radius = action_scale(task)
    data["actions"] = ((data["actions"] - center) / radius).astype(np.float32)
    outside = (np.abs(data["actions"]) > 1 + 1e-5).any(axis=1).sum()
    if outside > 0 and task.action_low is not None:
        print(
            f"note: {outside:,} of {len(data['actions']):,} rows have actions beyond the bounds "
            f"{task.action_low} and {task.action_high}; they are learned from as they are"
        )


def describe_episodes(data: dict, task: Task) -> None:
    """Set what is known of the episodes. Say so if they have strange lengths."""
    returns = episode_returns(data)
    task.episodes = len(returns)
    task.data_return = float(returns.mean())
    lengths = np.diff(np.flatnonzero(data["episode_end"]), prepend=-1)
    longest, single = lengths.max(), (lengths == 1).sum()
    if 0 < single < len(lengths):
        print(f"note: {single:,} episodes have a single row; is a terminal flag repeated?")
    if longest > task.max_episode_steps + 1:  # D4RL counts a last step of its own
        print(
            f"note: the data have episodes of {longest:,} steps, but {task.env_id}, in which the "
            f"policy is evaluated, stops after {task.max_episode_steps:,}"
        )


def episode_returns(data: dict) -> np.ndarray:
    """Return the undiscounted returns of the complete episodes, in the order of the data."""
    ends = np.flatnonzero(data["episode_end"])
    starts = [0, *(ends[:-1] + 1)]
    return np.add.reduceat(data["rewards"][: ends[-1] + 1], starts, dtype=float)


def normalized_score(task: Task, returns):
    """Return D4RL's score, 0 for random and 100 for expert, or the return without references."""
    if task.ref_min is None or task.ref_max is None:
        return returns
    return 100 * (returns - task.ref_min) / (task.ref_max - task.ref_min)


class ReplayBuffer:
    """The columns of the dataset on the device."""

    def __init__(self, data: dict, args: Args, device):
        self.columns = {key: torch.as_tensor(data[key], device=device).float() for key in data}
        self.size = len(data["observations"])
        if any(len(column) != self.size for column in data.values()):
            raise ValueError("prepare_data returned columns of different lengths")
        self.batch_shape = (args.num_seeds, args.batch_size)
        self.device = device
        self.draws_goals = args.outcome == "goal"

    def sample(self) -> dict:
        """Return random rows, others for every agent: tensors (N, B, ...)."""
        rows = torch.randint(self.size, self.batch_shape, device=self.device)
        if self.draws_goals:
            return self.sample_with_goals(rows)
        return {key: column[rows] for key, column in self.columns.items()}

    def sample_with_goals(self, rows) -> dict:
        """Eq. 2: return rows of the episodes of these, and the places of later ones as goals."""
        first = rows - self.columns["time"][rows].long()
        length = self.columns["length"][rows]
        # The last row is never the earlier one, unless it is the only one.
        one = (torch.rand_like(length) * (length - 1)).floor()
        other = (torch.rand_like(length) * length).floor()
        other = torch.minimum(other, length - 1)  # which rounding could exceed
        now = first + torch.minimum(one, other).long()
        later = first + torch.maximum(one, other).long()
        goals = self.columns["observations"][later][..., :2]
        obs = torch.cat([self.columns["observations"][now], goals], dim=-1)
        return {"observations": obs, "actions": self.columns["actions"][now]}


# --------------------------------------------------------------------------------------------------
# Files: D4RL's, in D4RL's layout, and Minari's
# --------------------------------------------------------------------------------------------------

D4RL_SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
D4RL_MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main/"
# The first 24 hex digits of each file's SHA-256 (TensorFlow Datasets, d4rl builders)
D4RL_SHA256 = {
    "halfcheetah-random-v2": "25407aef85b5d16c0f36b414",
    "halfcheetah-medium-v2": "41324e8487a9556d8cfa4538",
    "halfcheetah-medium-replay-v2": "48d494a4770c11f48260736d",
    "halfcheetah-medium-expert-v2": "015db75dae5bbe8e94029b71",
    "halfcheetah-expert-v2": "d9fe53bb994eb1e20a99b4fa",
    "halfcheetah-full-replay-v2": "27fdf7ea86e5a2cbd24d611a",
    "hopper-random-v2": "63103ef7059db4c0819bd054",
    "hopper-medium-v2": "5bdf1bc4a713c82941de4463",
    "hopper-medium-replay-v2": "e121c5f7c9857a307baa9edc",
    "hopper-medium-expert-v2": "9d51ad87f8c905be3880d84c",
    "hopper-expert-v2": "01aa219a5f8eea5e639eccdc",
    "hopper-full-replay-v2": "56baf95963c51c1e964049a9",
    "walker2d-random-v2": "4e863bb6090cf4a461548bd4",
    "walker2d-medium-v2": "cf00f43add04c17fdfc2958d",
    "walker2d-medium-replay-v2": "e75de96a4f77acf7d4e0d6fd",
    "walker2d-medium-expert-v2": "6b8d7f868c45bbaedf460be7",
    "walker2d-expert-v2": "2985dc3d436a8baa10e8f43f",
    "walker2d-full-replay-v2": "f2720f9d27b2acef6ec9a7d9",
    "antmaze-umaze-v2": "5ef15257771c50ef4d23c7de",
    "antmaze-umaze-diverse-v2": "c771dd63963cd7d9f55f24a6",
    "antmaze-medium-play-v2": "c9fec1c1daad97c71d61bd47",
    "antmaze-medium-diverse-v2": "ad9dcbac05d1f8744a7a2160",
    "antmaze-large-play-v2": "6d353df2457829925d7f9d4b",
    "antmaze-large-diverse-v2": "84f775eb7956ea9cc7667047",
    "pen-human-v1": "209e345b2150b633f30a1161",
    "pen-cloned-v1": "6d1a982cee1950501bedebbd",
    "pen-expert-v1": "3791b8ca6a802061770af297",
    "hammer-human-v1": "3e42f3f49b5c92a901601dfe",
    "hammer-cloned-v1": "e48d75b159bdd72f51d3f014",
    "hammer-expert-v1": "1c069a0f6e4852493023c77d",
    "door-human-v1": "f9691288c3ddf2b4e7b31bda",
    "door-cloned-v1": "1f6a60ecc4d2a2e5c02f41dd",
    "door-expert-v1": "66df4cd4e0a1e0b72ea72653",
    # Nobody published the sums of these.
    "relocate-human-v1": None,
    "relocate-cloned-v1": None,
    "relocate-expert-v1": None,
    "kitchen-complete-v0": None,
    "kitchen-partial-v0": None,
    "kitchen-mixed-v0": None,
    "maze2d-umaze-v1": None,
    "maze2d-umaze-dense-v1": None,
    "maze2d-medium-v1": None,
    "maze2d-medium-dense-v1": None,
    "maze2d-large-v1": None,
    "maze2d-large-dense-v1": None,
}
# Environment and returns that score 0 and 100 (d4rl/infos.py). Gymnasium's v4 is D4RL's v2.
D4RL_ENVS = {
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "antmaze-umaze": ("AntMaze-umaze-v2", 0.0, 1.0),
    "antmaze-medium": ("AntMaze-medium-v2", 0.0, 1.0),
    "antmaze-large": ("AntMaze-large-v2", 0.0, 1.0),
    "pen": ("Adroit-pen-v1", 96.262799, 3076.8331018),
    "hammer": ("Adroit-hammer-v1", -274.856578, 12794.1348252),
    "door": ("Adroit-door-v1", -56.512833, 2880.5693087),
    "relocate": ("Adroit-relocate-v1", -6.425911, 4233.8777977),
    "kitchen-mixed": ("Kitchen-mixed-v0", 0.0, 4.0),
    "kitchen": ("Kitchen-partial-v0", 0.0, 4.0),  # complete has the same tasks
    "maze2d-umaze-dense": ("Maze2D-umaze-dense-v1", 68.537689, 193.66285642),
    "maze2d-medium-dense": ("Maze2D-medium-dense-v1", 44.264742, 297.45525478),
    "maze2d-large-dense": ("Maze2D-large-dense-v1", 30.569041, 303.48573827),
    "maze2d-umaze": ("Maze2D-umaze-v1", 23.85, 161.86),
    "maze2d-medium": ("Maze2D-medium-v1", 13.13, 277.39),
    "maze2d-large": ("Maze2D-large-v1", 6.7, 273.99),
}
COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def d4rl_file(name: str) -> str:
    """Return the path of a dataset's file on D4RL's server (d4rl/infos.py)."""
    family, kind = name.rsplit("-v", maxsplit=1)[0].split("-", maxsplit=1)
    if family in ("halfcheetah", "hopper", "walker2d"):
        return f"gym_mujoco_v2/{family}_{kind.replace('-', '_')}-v2.hdf5"
    if family == "antmaze":
        maze = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
        starts, goals = kind != "umaze", "diverse" in kind
        variant = f"{maze[kind.split('-')[0]]}_noisy_multistart_{starts}_multigoal_{goals}"
        return f"ant_maze_v2/Ant_maze_{variant}_sparse_fixed.hdf5"
    if family == "maze2d":
        return f"maze2d/maze2d-{kind if 'dense' in kind else kind + '-sparse'}-v1.hdf5"
    if family == "kitchen":
        tasks = {
            "complete": "mini_kitchen_microwave_kettle_light_slider",
            "partial": "kitchen_microwave_kettle_light_slider",
            "mixed": "kitchen_microwave_kettle_bottomburner_light",
        }
        return f"kitchen/{tasks[kind]}-v0.hdf5"
    return f"hand_dapg_v1/{name}.hdf5"


def download_d4rl(name: str) -> Path:
    """Return the local path of a D4RL file, which is downloaded if missing.

    It is always verified, but for the files of which no sum is known.
    """
    file, sha256 = d4rl_file(name), D4RL_SHA256[name]
    folder = Path(os.getenv("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(file).name
    socket.setdefaulttimeout(30)
    for url in (D4RL_SERVER + file, D4RL_MIRROR + path.name):
        if path.exists():
            break
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            print(f"{url}: {error}")
    if not path.exists():
        family = dataset_family(name)
        advice = f", or rebuild its like: python -m benchmarks.datasets.collect {family}"
        if re.search("human|cloned|kitchen|dense|full-replay", family):
            advice = "; there is no recipe that rebuilds its like"
        sys.exit(f"{name} could not be downloaded; put its file there: {path}{advice}")
    if sha256 is None:
        print(f"note: no SHA-256 of {name} is known, so {path} is not verified")
        return path
    with open(path, "rb") as content:
        if not hashlib.file_digest(content, "sha256").hexdigest().startswith(sha256):
            sys.exit(f"{path} has not D4RL's SHA-256; delete it, or name it by --dataset-file")
    return path


def read_hdf5(path) -> dict:
    """Read the flat arrays of a file in D4RL's layout.

    A file without `timeouts` needs `next_observations`, which show where episodes end.
    """
    try:
        with h5py.File(path, "r") as file:
            refuse_foreign_data(file)
            columns = {key: file[key] for key in COLUMNS if key in file}
            missing = [key for key in COLUMNS[:4] if key not in columns]
            if "timeouts" not in columns and "next_observations" not in columns:
                missing.append("timeouts")
            if missing:
                sys.exit(f"{path} has no {', '.join(missing)}; it must have D4RL's layout")
            for key, column in columns.items():
                if not isinstance(column, h5py.Dataset) or not column.shape:
                    raise ValueError(f"{key} is no array")
            # A damaged file may claim any number of rows, so they are compared before reading.
            rows = {key: column.shape[0] for key, column in columns.items()}
            if len(set(rows.values())) > 1:
                sys.exit(f"{path}: the columns have different numbers of rows: {rows}")
            return {key: column[()] for key, column in columns.items()}
    except Exception as error:  # h5py raises nearly every type where a file is damaged
        sys.exit(f"{path} cannot be read as HDF5 in D4RL's layout: {one_line(error)}")


def load_minari(name: str) -> minari.MinariDataset:
    """Open a Minari dataset, which is downloaded if missing."""
    path = get_dataset_path(name) / "data"
    local = "/" not in name or name.startswith(("rebuilt/", "local/"))
    if not re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", name) or (local and not path.exists()):
        refuse_name(name)
    try:
        if not path.exists():
            # Without a network, Minari would try again and again for half a minute.
            server = huggingface_hub.constants.ENDPOINT
            huggingface_hub.get_session().head(server, timeout=3)
        dataset = minari.load_dataset(name, download=True)
        if (path / "main_data.hdf5").exists():
            with h5py.File(path / "main_data.hdf5", "r") as file:
                refuse_foreign_data(file)
        return dataset
    except Exception as error:  # whatever Minari, HDF5 or the network raise
        where = f"in {path.parent}" if path.exists() else "which is not on this machine"
        sys.exit(f"Minari's dataset {name}, {where}, cannot be loaded: {one_line(error)}")


def refuse_name(name: str) -> NoReturn:
    """End the program, and say what --env may have meant."""
    if ":" in name or is_registered(name):
        sys.exit(f"--env {name} is an environment; name a dataset, or add its --dataset-file")
    folder = get_dataset_path()
    local = [path.parents[1].relative_to(folder) for path in folder.rglob("data/metadata.json")]
    near = difflib.get_close_matches(name, [*D4RL_SHA256, *map(str, local)])
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    sys.exit(f"--env {name}: neither D4RL nor Minari has a dataset of this name{hint}")


def read_minari(name: str) -> tuple[dict, Task]:
    """Read a Minari dataset into flat arrays as read_hdf5 does. It knows its episodes itself."""
    dataset = load_minari(name)
    parts = {key: [] for key in ("observations", "actions", "rewards", "terminals")}
    parts |= {"episode_end": [], "next_observations": []}
    try:
        task = minari_task(name, dataset)
        for episode in dataset.iterate_episodes():
            obs, rows = episode.observations, len(episode.rewards)
            if isinstance(obs, dict):
                if set(obs) != set(task.obs_keys):
                    raise ValueError(f"it has observations {sorted(obs)}, not {task.obs_keys}")
                # FlattenObservation has the environment's order, too, not the dataset's.
                obs = np.concatenate([obs[key] for key in task.obs_keys], axis=-1)
            lengths = [len(obs) - 1, rows, len(episode.actions), len(episode.terminations)]
            if len(set(lengths)) > 1:
                raise ValueError(f"the columns of an episode have different lengths: {lengths}")
            parts["observations"].append(obs[:-1])
            parts["next_observations"].append(obs[1:])
            parts["actions"].append(episode.actions)
            parts["rewards"].append(episode.rewards)
            parts["terminals"].append(episode.terminations)
            parts["episode_end"].append(np.arange(rows) == rows - 1)
        data = {key: np.concatenate(part) for key, part in parts.items()}
        if len(data["rewards"]) != dataset.total_steps:
            print(f"note: {name} says that it has {dataset.total_steps:,} rows")
        return data, task
    except Exception as error:  # a damaged dataset can hold anything
        sys.exit(f"Minari's dataset {name} cannot be read: {one_line(error)}")


def minari_task(name: str, dataset: minari.MinariDataset) -> Task:
    """Describe the environment that a Minari dataset names.

    Of what was recorded, only the environment's name, its time limit and plain arguments are used.
    """
    spec = dataset._eval_env_spec or dataset.env_spec
    if spec is None:
        sys.exit(f"{name} does not say in which environment a policy is to be evaluated")
    if spec.additional_wrappers:
        wrappers = [wrapper.name for wrapper in spec.additional_wrappers]
        print(f"note: the data were recorded with the wrappers {wrappers}, which are not used here")
    source = name.split("/")[0] if name.startswith(("rebuilt/", "local/")) else "Minari"
    env_kwargs = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    task = make_task(name, source, spec.id, env_kwargs, spec.max_episode_steps)
    metadata = dataset.storage.metadata
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if is_number(low) and is_number(high) and low < high:
        task.ref_min = low
        task.ref_max = high
    space = dataset.action_space
    if is_bounded(space) and task.action_low is not None and space.shape == (task.act_dim,):
        bounds = [space.low, space.high]
        if not np.allclose(bounds, [task.action_low, task.action_high]):
            where = one_line(space)
            sys.exit(f"{name}: actions are recorded in {where}; {task.env_id} has other bounds")
    return task


def make_task(name, source, env_id, env_kwargs=None, max_episode_steps=None) -> Task:
    """Describe a dataset's environment."""
    env_kwargs = env_kwargs or {}
    for key, value in env_kwargs.items():
        if not is_plain(value):
            sys.exit(f"{name}: the argument {key} of {env_id} is no number, string or list of such")
    if not is_registered(env_id) and env_id != name:
        sys.exit(f"{name}: {env_id} is not registered; import its package at the top of this file")
    try:
        env = gym.make(env_id, max_episode_steps, disable_env_checker=True, **env_kwargs)
    except Exception as error:  # anything can go wrong in other people's environments
        packages = ("gymnasium", "gymnasium-robotics", "mujoco")
        versions = ", ".join(f"{package} {version(package)}" for package in packages)
        sys.exit(f"--env {name}: {env_id} cannot be made with {versions}: {one_line(error)}")
    if not env.spec.max_episode_steps:
        sys.exit(f"{env_id} has no time limit; register it with max_episode_steps")
    task = Task(name, source, env_id, env_kwargs, env.spec.max_episode_steps)
    describe_observations(task, env.observation_space)
    describe_actions(task, env.action_space)
    env.close()
    return task


def describe_observations(task: Task, space: gym.Space) -> None:
    """Set what is known of the observations, which are vectors or a Dict of them."""
    parts = list(space.values()) if isinstance(space, gym.spaces.Dict) else [space]
    if not all(isinstance(part, gym.spaces.Box) and len(part.shape) == 1 for part in parts):
        sys.exit(
            f"{task.env_id}: observations must be vectors or a Dict of them, not {one_line(space)}"
        )
    task.obs_dim = sum(part.shape[0] for part in parts)
    if isinstance(space, gym.spaces.Dict):
        task.obs_keys = list(space)
        print(f"note: an observation is the vector of {task.obs_keys}, in this order")


def describe_actions(task: Task, space: gym.Space) -> None:
    """Set what is known of the actions. Refuse the kinds that the algorithm cannot take."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
        sys.exit(f"{task.env_id}: actions must be vectors of real numbers, not {one_line(space)}")
    task.act_dim = space.shape[0]
    if is_bounded(space):
        task.action_low = space.low.tolist()
        task.action_high = space.high.tolist()


# --------------------------------------------------------------------------------------------------
# Checks of what goes in
# --------------------------------------------------------------------------------------------------


def check_data(data: dict, task: Task) -> None:
    """Convert all columns to float32. Refuse what is no number or does not fit the environment."""
    rows = len(data["rewards"])
    if rows == 0:
        sys.exit(f"{task.name} holds no rows")
    shapes = dict.fromkeys(data, (rows,))
    shapes["observations"] = shapes["next_observations"] = (rows, task.obs_dim)
    shapes["actions"] = (rows, task.act_dim)
    digest = hashlib.sha256()
    for key, column in data.items():
        where = f"{task.name}: {key}"
        if column.size == math.prod(shapes[key]) and column.ndim != len(shapes[key]):
            column = column.reshape(shapes[key])  # rewards (n, 1) or actions (n,), for example
        if column.shape != shapes[key]:
            sys.exit(f"{where} has shape {column.shape}; {task.env_id} needs {shapes[key]}")
        if column.dtype.kind not in "biuf":
            sys.exit(f"{where} holds {column.dtype}, not numbers")
        with np.errstate(over="ignore"):
            data[key] = column.astype(np.float32)
        if not np.isfinite(data[key]).all():
            row = np.argwhere(~np.isfinite(data[key]))[0, 0]
            sys.exit(f"{where} holds NaN, infinity or what float32 cannot hold, first in row {row}")
        if key in ("terminals", "timeouts") and not ((column == 0) | (column == 1)).all():
            values = np.unique(column)[:5].tolist()
            sys.exit(f"{where} must hold 0 and 1 only, but holds {values}")
        if not np.can_cast(column.dtype, np.float32):
            check_resolution(column.reshape(rows, -1), where)
        digest.update(data[key].data)
    task.fingerprint = digest.hexdigest()


def check_resolution(column, where: str) -> None:
    """Refuse numbers whose changes vanish in float32, as those of times since 1970 do: (n, dim)."""
    low, high = column.min(axis=0), column.max(axis=0)
    spread = (high - low).astype(float)
    largest = np.maximum(np.abs(low.astype(float)), np.abs(high.astype(float)))
    # Smaller spreads are the noise of something at rest.
    for i in np.flatnonzero((largest > 20 * spread) & (spread > 1e-6)):
        exact = (column[:, i] - low[i]).astype(float)
        rounded = column[:, i].astype(np.float32).astype(float) - float(low[i])
        error = np.abs(rounded - exact).max()
        steps = np.abs(np.diff(exact))
        if error > 1e-3 * spread[i] or error > np.median(steps[steps > 0]):
            sys.exit(
                f"{where}: float32 loses the changes of column {i}; subtract its mean, in the data "
                "and in the environment"
            )


def refuse_foreign_data(file: h5py.File) -> None:
    """Raise ValueError if an HDF5 file refers to other files, of which it could name any."""
    # h5py's visititems() takes three times as long, and deep groups overflow its stack.
    pending = [file.id]
    visited = set()  # links can form circles
    while pending:
        group = pending.pop()
        visited.add(group)
        for name in group:
            link_type = group.links.get_info(name).type
            if link_type == h5py.h5l.TYPE_SOFT:
                continue
            if link_type != h5py.h5l.TYPE_HARD:
                raise ValueError(
                    f"{name.decode()} is a link to another file, which is not followed"
                )
            item = h5py.h5o.open(group, name)
            if isinstance(item, h5py.h5g.GroupID) and item not in visited:
                pending.append(item)
            if isinstance(item, h5py.h5d.DatasetID):
                storage = item.get_create_plist()
                virtual = storage.get_layout() == h5py.h5d.VIRTUAL
                if virtual or storage.get_external_count() > 0:
                    raise ValueError(f"{name.decode()} lies in other files, which are not read")


def is_registered(env_id: str) -> bool:
    """Is this an environment of Gymnasium, Gymnasium-Robotics or this file?"""
    if env_id not in gym.registry:
        # It is imported only where it may be needed, because it prints a notice.
        with contextlib.suppress(ImportError):
            importlib.import_module("gymnasium_robotics")
    return env_id in gym.registry


def is_bounded(space: gym.Space) -> bool:
    """Has this space finite bounds? The largest float stands for infinity, too."""
    return isinstance(space, gym.spaces.Box) and np.abs([space.low, space.high]).max() < 1e30


def is_number(value) -> bool:
    """Is this a finite number?"""
    return isinstance(value, int | float) and abs(value) < 1e300


def is_plain(value) -> bool:
    """Is this a number, a string or a list of such?"""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, str) or is_number(value)


def one_line(value) -> str:
    """Return the beginning of an error, or of another object, as one line."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else str(value)
    return " ".join(text.split())[:300]


# --------------------------------------------------------------------------------------------------
# D4RL's environments that Gymnasium does not have: mazes, hands and the kitchen
# --------------------------------------------------------------------------------------------------

# Walls are #, the goal is G, the start is the upper left cell (d4rl/locomotion/maze_env.py).
MAZES = {
    "umaze": """
        #####
        #...#
        ###.#
        #G..#
        #####""",
    "medium": """
        ########
        #..##..#
        #..#...#
        ##...###
        #..#...#
        #.#..#.#
        #...#.G#
        ########""",
    "large": """
        ############
        #....#.....#
        #.##.#.#.#.#
        #......#...#
        #.####.###.#
        #..#.#.....#
        ##.#.#.#.###
        #..#...#.G.#
        ############""",
}


class AntMaze(AntEnv):
    """D4RL's antmaze-*-v2: Gymnasium's ant with D4RL's physics, in a maze with cells of 4 m."""

    def __init__(self, maze: str, **kwargs):
        self.maze = np.array([list(row) for row in MAZES[maze].split()])
        super().__init__(
            default_camera_config=None,
            include_cfrc_ext_in_observation=False,
            exclude_current_positions_from_observation=False,
            **kwargs,
        )
        self.action_space = gym.spaces.Box(-1, 1, (8,), np.float32)

    def _initialize_simulation(self):
        wall = '<geom type="box" size="2 2 1" pos="{} {} 1" conaffinity="1" rgba=".7 .5 .3 1"/>'
        cells = np.argwhere(self.maze == "#")
        walls = "".join(wall.format(4 * column - 4, 4 * row - 4) for row, column in cells)
        xml = Path(self.fullpath).read_text().replace("</worldbody>", walls + "</worldbody>")
        model = mujoco.MjModel.from_xml_string(xml)
        model.opt.timestep = 0.02
        model.geom_solimp[:, :3] = (0.8, 0.8, 0.01)
        model.actuator_ctrlrange[:] = (-30, 30)
        model.actuator_gear[:, 0] = 1
        return model, mujoco.MjData(model)

    def reset_model(self):
        row, column = np.argwhere(self.maze == "G")[0]
        # D4RL adds both of its noises on one side, so the goal is not around the cell's centre.
        noise1, noise2 = self.np_random.uniform(0, 1, 2), self.np_random.uniform(0, 0.5, 2)
        self.goal = np.array([4 * column - 4, 4 * row - 4]) + noise1 + noise2
        return super().reset_model()

    def step(self, action):
        self.do_simulation(30 * np.clip(action, -1, 1), self.frame_skip)
        reached = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= 0.5)
        if self.render_mode == "human":
            self.render()
        return self.state_vector(), float(reached), reached, False, {}


class Maze2D(MujocoEnv):
    """D4RL's maze2d-*-v1: a ball with two motors in a maze with cells of 1 m. It never ends."""

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 100}
    # d4rl/pointmaze/maze_model.py. The ball's coordinates are 0.2 m less than those of the walls.
    MODEL = """
        <mujoco>
          <compiler inertiafromgeom="true" angle="radian"/>
          <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
          <default>
            <joint damping="1"/>
            <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2"/>
          </default>
          <worldbody>
            <geom type="plane" size="40 40 .25" pos="0 0 -.1" contype="1" conaffinity="0"/>
            <body pos="1.2 1.2 0">
              <geom type="sphere" size=".1" contype="1" rgba="0 0 1 1"/>
              <joint name="x" type="slide" axis="1 0 0"/>
              <joint name="y" type="slide" axis="0 1 0"/>
            </body>
            {walls}
          </worldbody>
          <actuator>
            <motor joint="x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
            <motor joint="y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
          </actuator>
        </mujoco>"""

    def __init__(self, maze: str, dense: bool = False, **kwargs):
        rows = MAZES[maze].split()
        # Maze2D's small maze is AntMaze's, upside down.
        self.maze = np.array([list(row) for row in (rows[::-1] if maze == "umaze" else rows)])
        self.dense = dense
        space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        super().__init__("point.xml", 1, space, **kwargs)  # a name that exists, but is not read

    def _initialize_simulation(self):
        wall = '<geom type="box" size=".5 .5 .2" pos="{} {} 0" rgba=".7 .5 .3 1"/>'
        walls = "".join(wall.format(*cell + 1) for cell in np.argwhere(self.maze == "#"))
        model = mujoco.MjModel.from_xml_string(self.MODEL.format(walls=walls))
        return model, mujoco.MjData(model)

    def reset_model(self):
        self.goal = np.argwhere(self.maze == "G")[0]
        cells = np.concatenate([np.argwhere(self.maze == "."), [self.goal]])
        position = self.np_random.choice(cells) + self.np_random.uniform(-0.1, 0.1, 2)
        self.set_state(position, 0.1 * self.np_random.normal(size=2))
        return self.state_vector()

    def step(self, action):
        self.set_state(self.data.qpos, np.clip(self.data.qvel, -5, 5))
        self.do_simulation(np.clip(action, -1, 1), self.frame_skip)
        distance = np.linalg.norm(self.data.qpos - self.goal)
        reward = np.exp(-distance) if self.dense else float(distance <= 0.5)
        if self.render_mode == "human":
            self.render()
        return self.state_vector(), reward, False, False, {}


class Adroit(gym.Wrapper):
    """D4RL's hand tasks: those of Gymnasium-Robotics with D4RL's reward and its end of pen.

    In door, hammer and relocate gymnasium-robotics 1.4.2 adds 0.1 times the palm's distance to what
    it must reach; D4RL subtracts it. `binary` is the task with which AWAC and IQL are fine-tuned:
    the reward is 0 after success, else -1, and a dropped pen ends nothing.
    """

    def __init__(self, hand: str, binary: bool = False, **kwargs):
        # It is imported only where it is needed, because it prints a notice.
        from gymnasium_robotics.envs import adroit_hand

        super().__init__(getattr(adroit_hand, f"AdroitHand{hand.title()}Env")("dense", **kwargs))
        self.hand = hand
        self.binary = binary

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        env = self.unwrapped
        if self.hand == "pen":
            dropped = env.data.xpos[env.obj_body_id, 2] < 0.075
            terminated = bool(dropped and not self.binary)
        elif self.hand == "door":
            palm, aim = env.data.site_xpos[[env.grasp_site_id, env.handle_site_id]]
            reward -= 0.2 * np.linalg.norm(palm - aim)
        else:
            palm, aim = env.data.site_xpos[env.S_grasp_site_id], env.data.xpos[env.obj_body_id]
            reward -= 0.2 * np.linalg.norm(palm - aim)
        if self.binary:
            reward = float(info["success"]) - 1
        return obs, reward, terminated, truncated, info


class Kitchen(gym.ObservationWrapper):
    """D4RL's kitchen: that of Gymnasium-Robotics with D4RL's 60 observations and their noise.

    These are the positions of the arm (9) and of the objects (21), and the goal (30).
    """

    def __init__(self, tasks: list[str], **kwargs):
        from gymnasium_robotics.envs.franka_kitchen import kitchen_env as kitchen

        noise = {"robot_noise_ratio": 0.1, "object_noise_ratio": 0.1}  # D4RL's
        super().__init__(kitchen.KitchenEnv(tasks_to_complete=tasks, **noise, **kwargs))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (60,))
        self.goal = np.zeros(30)
        for task in tasks:
            self.goal[kitchen.OBS_ELEMENT_INDICES[task]] = kitchen.OBS_ELEMENT_GOALS[task]

    def observation(self, observation):
        state = observation["observation"]  # positions and velocities of the arm, of the objects
        return np.concatenate([state[:9], state[18:39], self.goal])


# Classes are registered instead of their paths, because a script has no import path. The limits
# are D4RL's.
gym.register("AntMaze-umaze-v2", AntMaze, max_episode_steps=700, kwargs={"maze": "umaze"})
gym.register("AntMaze-medium-v2", AntMaze, max_episode_steps=1000, kwargs={"maze": "medium"})
gym.register("AntMaze-large-v2", AntMaze, max_episode_steps=1000, kwargs={"maze": "large"})
for maze, limit in (("umaze", 300), ("medium", 600), ("large", 800)):
    sparse, dense = {"maze": maze}, {"maze": maze, "dense": True}
    gym.register(f"Maze2D-{maze}-v1", Maze2D, max_episode_steps=limit, kwargs=sparse)
    gym.register(f"Maze2D-{maze}-dense-v1", Maze2D, max_episode_steps=limit, kwargs=dense)
for hand, limit in (("pen", 100), ("hammer", 200), ("door", 200), ("relocate", 200)):
    gym.register(f"Adroit-{hand}-v1", Adroit, max_episode_steps=limit, kwargs={"hand": hand})
for hand, limit in (("pen", 100), ("door", 200), ("relocate", 200)):
    binary = {"hand": hand, "binary": True}
    gym.register(f"Adroit-{hand}-binary-v0", Adroit, max_episode_steps=limit, kwargs=binary)
for kind, third in (("partial", "slide cabinet"), ("mixed", "bottom burner")):
    tasks = {"tasks": ["microwave", "kettle", third, "light switch"]}
    gym.register(f"Kitchen-{kind}-v0", Kitchen, max_episode_steps=280, kwargs=tasks)

# --------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------


def make_env(task: Task) -> gym.Env:
    """Make the task's environment. It gives flat observations and takes actions in [-1, 1]."""
    env = gym.make(task.env_id, task.max_episode_steps, disable_env_checker=True, **task.env_kwargs)
    env = gym.wrappers.FlattenObservation(env)
    if task.num_actions is not None:
        return env
    space = env.action_space
    center, radius = action_scale(task)

    def unscale(action):
        # Rounding must not leave the bounds, because some environments check them.
        return np.clip(center + radius * action, space.low, space.high).astype(space.dtype)

    low, high = (
        np.float32((space.low - center) / radius),
        np.float32((space.high - center) / radius),
    )
    agent_space = gym.spaces.Box(low, high)
    return gym.wrappers.TransformAction(env, unscale, agent_space)


@torch.no_grad()
def evaluate(agent: nn.Module, task: Task, episodes: int, target=None) -> np.ndarray:
    """Play the episodes with seeds 0, 1, ... with every agent. Return the returns (N, episodes).

    The policy is asked for `target`, or for the first of --targets.
    """
    if target is None:
        target = agent.args.targets[0]
    device = next(agent.parameters()).device
    shape = (agent.args.num_seeds, episodes)
    envs = [agent.condition(make_env(task), target) for _ in range(math.prod(shape))]
    starts = [env.reset(seed=i % episodes)[0] for i, env in enumerate(envs)]
    obs = np.array(starts, dtype=np.float32)
    returns = np.zeros(len(envs))
    playing = np.ones(len(envs), dtype=bool)
    agent.eval()  # as dropout needs it
    # Random numbers of a policy must not change the training.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while playing.any():
            check_finite(obs, returns, task)
            batch = torch.as_tensor(obs, device=device).unflatten(0, shape)
            actions = agent.act(batch).flatten(0, 1).cpu().numpy()
            if not np.isfinite(actions[playing]).all():
                sys.exit("training diverged: the policy's actions are NaN or infinite")
            for i in np.flatnonzero(playing):
                obs[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
                returns[i] += np.asarray(reward).item()
                playing[i] = not (terminated or truncated)
    agent.train()
    for env in envs:
        env.close()
    check_finite(obs, returns, task)
    return returns.reshape(shape)


def check_finite(obs, returns, task: Task) -> None:
    """Blame the environment for what is no number."""
    for what, values in (("observation", obs), ("reward", returns)):
        if not np.isfinite(values).all():
            sys.exit(f"{task.env_id} gave a NaN, infinite or too large {what}")


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------

LOG_EVERY = 1_000  # updates between points of the TensorBoard curves


@dataclass
class Run:
    """Where a training run stands."""

    args: Args
    task: Task
    agent: nn.Module
    buffer: ReplayBuffer
    device: torch.device
    phase: int = 0
    step: int = 0  # updates done in this phase
    evaluations: list[dict] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)  # of this file, one for every resume
    extra_state: dict = field(default_factory=dict)  # tensors that a script stores besides
    last_save: str = "nothing"


def choose_device(args: Args) -> torch.device:
    """Return the device, and choose the fastest matrix products that are accurate enough."""
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        sys.exit(f"--device {name} cannot be used here: {one_line(error)}")
    if args.execution == "graph" and device.type != "cuda":
        sys.exit("--execution graph records CUDA graphs, which need --device cuda")
    if args.execution in ("compile", "graph") and " " in torch.__file__:
        sys.exit(
            "PyTorch cannot compile from a folder with a space in its path; move .venv, or "
            "use --execution eager"
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
        return device
    torch.set_flush_denormal(True)  # tiny numbers in Adam's averages make a CPU slow
    # "medium" selects oneDNN, which on AMD is faster than MKL and as accurate. On a CPU with bf16
    # units it rounds its inputs to bf16 instead, which only a trial can tell.
    torch.set_float32_matmul_precision("medium")
    x = torch.linspace(0, 1, 256 * 256).reshape(256, 256)
    if not torch.allclose(x @ x, (x.double() @ x.double()).float(), rtol=1e-5):
        torch.set_float32_matmul_precision("highest")
    return device


def make_step(update: Callable, buffer: ReplayBuffer, execution: str) -> Callable:
    """Return a function without arguments that samples a batch and updates the agent with it."""

    def step() -> dict:
        statistics = update(buffer.sample())
        for name, value in statistics.items():
            if value.shape != buffer.batch_shape[:1]:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not one number per agent")
        # A compiled graph cannot return tensors whose gradients it has already used.
        return {name: value.detach() for name, value in statistics.items()}

    if execution == "auto":
        can_compile = buffer.device.type == "cuda" and " " not in torch.__file__
        execution = "graph" if can_compile else "eager"
    if execution == "eager":
        return step
    torch._dynamo.config.trace_autograd_ops = True  # gradients become part of the graph
    torch._inductor.config.fallback_random = True  # draw the same numbers as eager execution
    compiled_step = torch.compile(step, fullgraph=True)
    return make_cuda_graph(compiled_step) if execution == "graph" else compiled_step


def make_cuda_graph(step: Callable) -> Callable:
    """Return a function that replays `step` as a CUDA graph, which costs one launch per update.

    This has not been run on a GPU yet.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    statistics = {}
    calls = 0

    def replay() -> dict:
        nonlocal statistics, calls
        calls += 1
        if calls <= 3:
            # The first calls compile and allocate memory, which cannot be recorded.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                statistics = step()
            torch.cuda.current_stream().wait_stream(stream)
            return statistics
        if calls == 4:
            with torch.cuda.graph(graph):  # records, but does not run
                statistics = step()
        graph.replay()
        return statistics

    return replay


def train(run: Run) -> None:
    """Train from where the run stands to its end."""
    for phase in run.agent.phases[run.phase :]:
        train_phase(run, phase)
        run.phase += 1
        run.step = 0


def train_phase(run: Run, phase: Phase) -> None:
    """Do the updates that remain of a phase. Evaluate and save on the way."""
    args = run.args
    steps = [make_step(update, run.buffer, args.execution) for update in phase.updates]
    writer = make_writer(run, phase)
    bar = tqdm(desc=phase.name, total=phase.num_updates, initial=run.step, disable=None)
    statistics = {}
    while run.step < phase.num_updates:
        if phase.refresh is not None and run.step % phase.refresh_every == 0:
            phase.refresh(run.buffer)
        statistics |= steps[run.step % len(steps)]()
        run.step += 1
        bar.update()
        due = run.step % args.eval_every == 0 or run.step == phase.num_updates
        if due or run.step % LOG_EVERY == 0:
            log(writer, run.step, statistics)
        if due:
            bar.write(evaluate_and_save(run, phase, writer))
    bar.close()
    writer.close()


def evaluate_and_save(run: Run, phase: Phase, writer: SummaryWriter) -> str:
    """Evaluate the agents if the phase is scored, and save the run. Return a line that says so.

    All of --targets are evaluated. The scores of the first are those of the evaluation.
    """
    line = f"{phase.name}, update {run.step:,} of {phase.num_updates:,}"
    if phase.scored:
        last = run.step == phase.num_updates
        episodes = run.args.final_eval_episodes if last else run.args.eval_episodes
        kind = "return" if run.task.ref_min is None else "score"
        found = []
        for target in run.args.targets:
            returns = evaluate(run.agent, run.task, episodes, target).mean(axis=1)
            scores = normalized_score(run.task, returns)
            name = f"target_{target:g}"
            log(writer, run.step, {f"return/{name}": returns, f"score/{name}": scores})
            if not found:
                log(writer, run.step, {"return": returns, "score": scores})
            found.append({"target": target, "returns": returns.tolist(), "scores": scores.tolist()})
            line += f", {kind} {scores.mean():.1f} ± {scores.std():.1f} when asked for {target:g}"
        evaluation = {"phase": phase.name, "update": run.step, "episodes": episodes}
        evaluation |= {key: found[0][key] for key in ("returns", "scores")}
        run.evaluations.append(evaluation | {"targets": found})
        line += f", {run.args.num_seeds} agents x {episodes} episodes"
    writer.flush()
    save(run, Path(run.args.run_dir))
    return line


def make_writer(run: Run, phase: Phase) -> SummaryWriter:
    """Open the curves of a phase. A resumed run drops the points after its checkpoint."""
    folder = Path(run.args.run_dir, "tensorboard", phase.name)
    # TensorBoard reads files in the order of their names, which begin with the time: the files of
    # earlier processes get a time before all others, because clocks can be set back.
    for i, path in enumerate(sorted(folder.glob("events.out.tfevents.*"))):
        rest = path.name.split(".", maxsplit=4)[4]
        path.rename(folder / f"events.out.tfevents.{i:010d}.{rest}")
    writer = SummaryWriter(str(folder), purge_step=run.step + 1)
    writer.add_text("hyperparameters", json.dumps(asdict(run.args), indent=1))
    return writer


def log(writer: SummaryWriter, step: int, statistics: dict) -> None:
    """Add statistics of shape (N,) to the curves of their mean and of every agent."""
    for name, values in statistics.items():
        values = values.tolist()
        if not np.isfinite(values).all():
            sys.exit(f"training diverged before update {step:,}: {name} is NaN or infinite")
        writer.add_scalar(name, np.mean(values), step)
        for i, value in enumerate(values):
            writer.add_scalar(f"{name}/agent{i}", value, step)


def save(run: Run, folder: Path) -> None:
    """Write result.json and checkpoint.pt, from which the run can be resumed exactly."""
    phases = run.agent.phases
    cuda = run.device.type == "cuda"
    finished = run.phase == len(phases) - 1 and run.step == phases[-1].num_updates
    modules = (torch, np, gym, minari, mujoco)
    result = {
        "script": Path(__file__).stem,
        "args": asdict(run.args),
        "task": asdict(run.task),
        "phase": run.phase,
        "step": run.step,
        "finished": finished,
        "final": run.evaluations[-1] if finished else None,
        "evaluations": run.evaluations,
        "commits": run.commits,
        "device": torch.cuda.get_device_name(run.device) if cuda else platform.machine(),
        "versions": {module.__name__: str(module.__version__) for module in modules},
    }
    state = {
        "agent": run.agent.state_dict(),
        "optimizers": {name: opt.state() for name, opt in run.agent.optimizers.items()},
        "rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.cuda.get_rng_state(run.device) if cuda else None,
        "extra_state": run.extra_state,
    }
    text = json.dumps(result, indent=1, allow_nan=False)
    checkpoint = io.BytesIO()
    # The text holds plain numbers only, as weights-only loading needs it: np.float64, for example,
    # could be saved, but not loaded.
    torch.save(json.loads(text) | state, checkpoint)
    files = {"checkpoint.pt": checkpoint.getvalue(), "result.json": text.encode()}
    parts = {name: folder / f"{name}.{os.getpid()}.part" for name in files}
    try:
        for name, content in files.items():
            parts[name].write_bytes(content)
        for name, part in parts.items():
            part.replace(folder / name)  # a reader finds the old file or the new one
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    run.last_save = f"update {run.step:,} of phase {phases[run.phase].name}"


def load_checkpoint(run_dir: str) -> dict:
    """Load a checkpoint of this script without executing anything that it holds."""
    path = Path(run_dir, "checkpoint.pt")
    if not path.exists():
        sys.exit(f"--resume {run_dir}: there is no checkpoint.pt in it")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the content with its CRCs
        if damaged is not None:
            raise ValueError(f"{damaged} has changed")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        script = checkpoint["script"]
    except Exception as error:  # the unpickler raises nearly every type
        sys.exit(f"{path} cannot be read: {one_line(error)}")
    if script != Path(__file__).stem:
        sys.exit(f"{path} is a checkpoint of {script}.py; resume it with that script")
    return checkpoint


def restore(run: Run, checkpoint: dict) -> None:
    """Go back to what save() stored."""
    if checkpoint["task"]["fingerprint"] != run.task.fingerprint:
        sys.exit(f"{run.args.env} holds other data now than when {run.args.run_dir} was trained")
    run.phase = checkpoint["phase"]
    run.step = checkpoint["step"]
    run.evaluations = checkpoint["evaluations"]
    run.commits = checkpoint["commits"] + run.commits
    run.extra_state = checkpoint["extra_state"]
    run.agent.load_state_dict(checkpoint["agent"])
    for name, optimizer in run.agent.optimizers.items():
        for ours, stored in zip(optimizer.state(), checkpoint["optimizers"][name], strict=True):
            ours.copy_(stored)
    torch.set_rng_state(checkpoint["rng_state"])
    if run.device.type == "cuda" and checkpoint["cuda_rng_state"] is not None:
        torch.cuda.set_rng_state(checkpoint["cuda_rng_state"], run.device)
    run.last_save = f"update {run.step:,} of phase {run.agent.phases[run.phase].name}"


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parse_args() -> Args:
    """Read the command line. `--help` shows the settings of the dataset that stands beside it."""
    words = sys.argv[1:]
    if "--help" not in words and "-h" not in words:
        return tyro.cli(Args)
    paragraphs = (__doc__ or Algorithm.__name__).strip().split("\n\n")
    commands = paragraphs[2:][-1:]
    description = "\n\n".join([*paragraphs[:2], *"".join(commands).splitlines()[:2]])
    args = tyro.cli(Args, args=[word for word in words if word not in ("--help", "-h")])
    return tyro.cli(Args, default=apply_settings(args), description=description)


def new_args(args: Args) -> Args:
    """Complete the arguments of a new run."""
    counts = ["num_seeds", "num_updates", "batch_size", "hidden", "eval_every"]
    for name in [*counts, "eval_episodes", "final_eval_episodes"]:
        value = vars(args).get(name)  # not every algorithm has all of them
        if value is not None and value < 1:
            sys.exit(f"--{name.replace('_', '-')} must be at least 1")
    for name, value in vars(args).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, int | float) and not abs(value) < 2**53:  # NaN is not smaller, too
            sys.exit(f"{option} {value} is no number to calculate with")
        if isinstance(value, str) and not value.isprintable():
            sys.exit(f"{option} {value!r} holds characters that cannot be printed")
    if not 0 <= args.seed < 2**32:
        sys.exit("--seed must lie between 0 and 2^32 - 1")
    if args.run_dir is None:
        name = f"{Path(__file__).stem}-{args.env.replace('/', '-')}-seed{args.seed}"
        args.run_dir = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder = Path(args.run_dir)
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; choose another --run-dir, or --resume {folder}")
    family = dataset_family(args.env)
    settings = asdict(apply_settings(args))
    filled = {key: settings[key] for key in settings if settings[key] != getattr(args, key)}
    print(f"settings for {family}: {filled}")
    return Args(**settings)


def stored_args(args: Args, checkpoint: dict) -> Args:
    """Return the arguments of a stored run, of which only the device may change."""
    try:
        stored = Args(**checkpoint["args"] | {"run_dir": args.resume})
    except (KeyError, TypeError) as error:
        sys.exit(f"{args.resume} does not fit this version of the script: {one_line(error)}")
    for word in sys.argv[1:]:
        option = word.split("=")[0].replace("_", "-")
        repeated = option == "--env" and args.env == stored.env
        if option.startswith("--") and option not in ("--resume", "--device") and not repeated:
            sys.exit(f"{option} cannot change when a run is resumed; leave it out")
        if option == "--device":
            stored.device = args.device
    if ":" in stored.env and args.env != stored.env:
        sys.exit(f"this run imports a module: if you trust it, repeat --env {stored.env}")
    return stored


def check_agent(agent: nn.Module) -> None:
    """Refuse agents whose training or resuming would go wrong in silence."""
    for name, module in agent.named_modules():
        check_module(name, module, agent.args.num_seeds)
    params = {param: name for name, param in agent.named_parameters()}
    trained = set()
    for name, optimizer in agent.optimizers.items():
        if not isinstance(optimizer, Adam):
            sys.exit(
                f"self.optimizers[{name!r}] is {type(optimizer).__name__}; use this script's Adam, "
                "which torch.compile can trace, and which is AdamW with weight_decay"
            )
        trained.update(optimizer.params)
    if not trained <= params.keys():
        sys.exit("an optimizer trains weights that are no part of the agent and are not saved")
    for param, name in params.items():
        if param.requires_grad and param not in trained:
            sys.exit(f"no optimizer trains {name}; add one, or freeze it by requires_grad_(False)")
        if param.ndim == 0 or param.shape[0] % agent.args.num_seeds > 0:
            sys.exit(
                f"all agents share {name} of shape {tuple(param.shape)}; its first dimension must "
                "be --num-seeds or a multiple of it"
            )


def check_module(name: str, module: nn.Module, num_seeds: int) -> None:
    """Refuse a module whose weights all agents share, or whose state a checkpoint would lack."""
    kind = type(module).__name__
    own_state = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if num_seeds > 1 and own_state and type(module).__module__.startswith("torch.nn.modules"):
        sys.exit(
            f"all agents share {name}, an nn.{kind}; stack it as StackedLinear does, or "
            "use --num-seeds 1"
        )
    for attribute, value in vars(module).items():
        if isinstance(value, Adam | torch.optim.Optimizer):
            sys.exit(f"put {attribute} into self.optimizers, or a resumed run would lose its state")
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, torch.Tensor | nn.Module):
                sys.exit(
                    f"{kind}.{attribute} would not be saved; use register_buffer for tensors and "
                    "nn.ModuleList for networks"
                )


def current_commit() -> str:
    """Return the commit of this file, marked if the folder has changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:  # there is no git
        return "unknown"
    return answer.stdout.strip() or "unknown"


def make_folder(run: Run) -> None:
    """Make the run's folder. It appears with a checkpoint inside, so that each can be resumed."""
    folder = Path(run.args.run_dir)
    temporary = Path(f"{folder}.{os.getpid()}.part")
    temporary.mkdir(parents=True, exist_ok=True)  # a killed run may have left it
    try:
        save(run, temporary)
        temporary.rename(folder)  # fails if another process has made the folder meanwhile
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: str):
    """Keep other processes out of a run's folder. A process that is killed leaves no lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another process trains in {folder}")
    except OSError as error:  # some network file systems cannot lock folders
        print(f"note: {folder} is not locked: {error}")
    try:
        yield
    finally:
        os.close(descriptor)


def start_run(args: Args) -> Run:
    """Load the data and build the agent, either a new one or that of a checkpoint."""
    checkpoint = None
    if args.resume is None:
        args = new_args(args)
    else:
        checkpoint = load_checkpoint(args.resume)
        args = stored_args(args, checkpoint)
    device = choose_device(args)
    data, task = load_dataset(args)
    line = f"data: {task.name} ({task.source}), {task.transitions:,} rows"
    if task.ordered:
        line += f", {task.episodes:,} episodes with a mean return of {task.data_return:.1f}"
    print(f"{line}; run: {args.run_dir}")
    columns = prepare_data(args, data, task)
    torch.manual_seed(args.seed)
    agent = Algorithm(args, task, device)
    check_agent(agent)
    run = Run(args, task, agent, ReplayBuffer(columns, args, device), device)
    run.commits.append(current_commit())
    if checkpoint is None:
        make_folder(run)
    else:
        try:
            restore(run, checkpoint)
        except Exception as error:  # a checkpoint can hold anything
            sys.exit(f"{args.run_dir} does not fit this version of the script: {one_line(error)}")
    return run


def report_thread_error(error) -> None:
    """Print an error of a thread, unless TensorBoard's passes it on to the main thread anyway."""
    if not type(error.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(error)


def main() -> None:
    gym.logger.min_level = gym.logger.ERROR  # Gymnasium warns that v4 is old; it is meant
    warnings.filterwarnings("ignore", message="compiler attribute")  # of Gymnasium's own models
    mujoco.set_mju_user_warning(warnings.warn)  # MuJoCo would write them into the working folder
    threading.excepthook = report_thread_error
    args = parse_args()
    run = None
    try:
        run = start_run(args)
        with locked(run.args.run_dir):
            train(run)
    except KeyboardInterrupt:
        if run is None:
            sys.exit("\nstopped before the training began")
        command = f"python {sys.argv[0]} --resume {shlex.quote(run.args.run_dir)}"
        sys.exit(f"\nstopped; {run.last_save} is saved; to continue: {command}")
    except (OSError, MemoryError, RuntimeError) as error:
        # PyTorch has no type of its own for a lack of memory on the CPU.
        if isinstance(error, RuntimeError) and not re.search("allocat|overflow", str(error)):
            raise
        sys.exit(f"{one_line(error)}; saved: {run.last_save if run else 'nothing'}")
    print(f"{run.args.run_dir}: result.json, checkpoint.pt, tensorboard")


if __name__ == "__main__":
    main()
