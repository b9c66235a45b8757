"""IQL: Implicit Q-Learning (Kostrikov, Nair, Levine; ICLR 2022; arXiv 2110.06169)

The idea. Q-learning asks for max_a' Q(s', a') and so for values of actions that the data lack. IQL
never asks. In a state with many recorded actions, V(s) is an upper *expectile* of their Q(s, a):
with tau near 1 almost the best of them, and never better than what was seen. Q learns from V, and
the policy imitates the data's actions, the more the better they are.

    (5) value   min  E_(s,a)     L_tau(Q'(s, a) - V(s)),        L_tau(u) = |tau - 1(u < 0)| u^2
    (6) critic  min  E_(s,a,s')  (r + gamma V(s') - Q(s, a))^2
    (7) policy  max  E_(s,a)     exp(beta (Q'(s, a) - V(s))) log pi(a|s)

tau = 1/2 gives SARSA's value of the behaviour policy; Q' is a slow copy of Q. (7) is advantage-
weighted regression: beta = 0 clones the data, a large beta keeps only the best actions.
`--online-steps` goes on with the same three losses while the policy acts and the data grow.

As the authors' code (github ikostrikov/implicit_q_learning @ 09d7002), and beyond the formulas:
- Q is the smaller of two heads, whose losses add up; exp in (7) is cut at 100 and sees the V that
  (5) has just moved. Order: V, policy, Q, Q'.
- pi is a Gaussian around tanh(mean), itself not squashed, with one learned deviation per dimension.
- Rewards are scaled so that returns span 1000 (theirs: in MuJoCo alone), or get -1 (AntMaze).
- Online, actions are sampled from pi, one update per step, and pi's rate does not decay.
Unlike the authors' code:
- PyTorch's initial weights, not orthogonal ones. No clipping of the data's actions to 1 - 1e-5.
- Their returns lack the step of a timeout and count the unfinished last episode. Online they do
  not scale rewards; and their evaluation shares an environment with the policy that collects.
- All `--num-seeds` train at once as batched products, each with its own weights and batches.

    python algorithms/iql.py --env hopper-medium-v2 --num-seeds 5      # D4RL's file, fetched once
    python algorithms/iql.py --env rebuilt/hopper/medium-v0 --online-steps 100000
"""

import math
from dataclasses import dataclass
from typing import Literal
import torch
import torch.nn as nn
import torch.nn.functional as F

@dataclass
class Args:
    env: str = "hopper-medium-v2"  # D4RL name, Minari or rebuilt id; with a file: Gymnasium id
    dataset_file: str | None = None  # HDF5 in D4RL's layout, instead of the named dataset
    seed: int = 0  # first seed
    num_seeds: int = 1  # train seeds seed, seed + 1, ... at once
    num_updates: int = 1_000_000  # gradient updates; schedules end here
    batch_size: int = 256  # transitions per update and seed
    eval_every: int = 5_000  # updates between evaluations
    eval_episodes: int = 10  # episodes per evaluation and seed
    final_eval_episodes: int = 100  # episodes of the last evaluation, the headline
    eval_workers: int | None = None  # processes to evaluate in; None: on CUDA one a thread, else 0
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto takes CUDA where there is one
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: fastest products that keep scores
    execution: Literal["auto", "eager", "compile", "capture"] = "auto"  # capture: CUDA graphs
    run_dir: str | None = None  # logs and checkpoint; an unfinished run in it goes on
    checkpoint_every: int = 10_000  # updates between checkpoints
    eval_only: bool = False  # evaluate the checkpoint in --run-dir and stop
    # IQL's own; None takes the dataset's row of SETTINGS
    tau: float | None = None  # expectile of V
    beta: float | None = None  # inverse temperature of the policy's weights
    online_steps: int | None = None  # then as many steps in the environment, an update after each
    lr: float = 3e-4  # Adam's rate for V, Q and pi; for pi cosine to 0 unless online steps follow
    discount: float = 0.99  # gamma
    polyak: float = 0.005  # step of Q' towards Q
    hidden: int = 256  # width of all networks

SETTING_NAMES = ("tau", "beta")
SETTINGS = [  # the first row that fits the dataset (configs/ of the authors' code)
    ("hopper-*", 0.7, 3.0), ("halfcheetah-*", 0.7, 3.0), ("walker2d-*", 0.7, 3.0),
    ("antmaze-*", 0.9, 10.0), ("*", 0.7, 3.0)]

def prepare(args: Args, rows: dict, task: dict) -> dict:
    """Transform the rewards (train_offline.py): returns to a span of 1000, 0 and 1 to -1 and 0."""
    span, maze = float(np.ptp(episode_returns(rows))), "antmaze" in task["name"].lower()
    task["reward_scale"] = 1.0 if maze or not span else 1000 / span
    task["reward_shift"] = -1.0 if maze else 0.0
    rows["rewards"] = rows["rewards"] * np.float32(task["reward_scale"]) + task["reward_shift"]
    return rows

class ReLUNet(nn.Module):
    """`heads` ReLU networks for each of N seeds, initialised as nn.Linear is, each seed from its
    own generator. (N, B, in) -> (N, heads // every, B, out), of heads 0, every, ..."""
    def __init__(self, generators, dims: list[int], heads: int = 1):
        super().__init__()
        self.heads, shapes = heads, list(zip(dims, dims[1:]))
        draw = lambda *s: torch.cat([torch.rand(heads, *s, generator=g) for g in generators])
        self.weights = nn.ParameterList([(draw(i, o) * 2 - 1) / i**0.5 for i, o in shapes])
        self.biases = nn.ParameterList([(draw(1, o) * 2 - 1) / i**0.5 for i, o in shapes])

    def forward(self, x, every: int = 1):
        x = x.repeat_interleave(self.heads // every, 0)
        *hidden, (b, w) = zip(self.biases, self.weights) if every == 1 else [
            (b[::every], w[::every]) for b, w in zip(self.biases, self.weights)]
        for bias, weight in hidden:
            x = F.relu(torch.baddbmm(bias, x, weight))
        with torch.autocast(x.device.type, enabled=False):  # in bf16 a value of 200 has steps of 1
            return (x.to(w) @ w + b).unflatten(0, (-1, self.heads // every))

class GaussianActor(nn.Module):
    """Diagonal Gaussian pi(a|s) around a mean inside the bounds, one deviation per dimension."""
    def __init__(self, generators, dims: list[int], task: dict):
        super().__init__()
        self.net = ReLUNet(generators, dims)
        self.log_std = nn.Parameter(torch.zeros(len(generators), 1, dims[-1]))
        low, high = torch.tensor([task["act_low"], task["act_high"]])
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("radius", (high - low) / 2)
        if not self.radius.isfinite().all():
            raise SystemExit(f"{task['env_id']}: IQL's policy needs actions with finite bounds")

    def forward(self, s):
        """Mean (N, B, act) and deviation (N, 1, act), clamped as in the authors' policy.py."""
        mean = self.center + self.radius * self.net(s).squeeze(1).tanh()
        return mean, self.log_std.clamp(-5, 2).exp()

    def log_prob(self, s, a):
        """log pi(a|s), summed over dimensions: (N, B)."""
        mean, std = self(s)
        return -(0.5 * ((a - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

class IQL(nn.Module):
    """Networks, optimisers and updates of N seeds; everything in a batch is (N, B, ...)."""
    def __init__(self, args: Args, task: dict, generators, device):
        super().__init__()
        obs_dim, act_dim = task["obs_dim"], task["act_dim"]
        self.args, self.noise_dim, hidden = args, 0, [args.hidden, args.hidden]
        self.value = ReLUNet(generators, [obs_dim, *hidden, 1])
        self.critic = ReLUNet(generators, [obs_dim + act_dim, *hidden, 1], heads=2)
        self.policy = GaussianActor(generators, [obs_dim, *hidden, act_dim], task)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("step", torch.zeros((), dtype=torch.float64))
        self.to(device)
        self.optimizers = {name: Adam(getattr(self, name).parameters(), args.lr)
                           for name in ("value", "critic", "policy")}
        self.phases = [("train", args.num_updates, self.update)]
        self.phases += [("online", args.online_steps, self.update)] if args.online_steps else []

    def act(self, obs):
        """The likeliest action, (N, E, obs) -> (N, E, act)."""
        return self.policy(obs)[0]

    def explore(self, obs, noise):
        """An action of pi for standard normal noise (N, E, act)."""
        mean, std = self.policy(obs)
        return mean + std * noise

    def update(self, batch: dict) -> dict:
        """One update of V, pi, Q and Q'; returns statistics of shape (N,)."""
        args, s, a = self.args, batch["observations"], batch["actions"]
        sa = torch.cat([s, a], -1)

        # Eq. 5: V climbs to the tau-expectile of the recorded actions' values
        with torch.no_grad():
            target_q = self.critic_target(sa).squeeze(-1).amin(1)
        v = self.value(s).squeeze((1, -1))
        u = target_q - v
        value_loss = ((args.tau - (u < 0).float()).abs() * u**2).mean(1)
        minimize(self.optimizers["value"], value_loss)

        # Eq. 7: imitate the better actions
        with torch.no_grad():
            advantage = target_q - self.value(s).squeeze((1, -1))
            weight = (args.beta * advantage).exp().clamp(max=100)
            next_v = self.value(batch["next_observations"]).squeeze((1, -1))
            target = batch["rewards"] + args.discount * (1 - batch["terminals"]) * next_v
        policy_loss = -(weight * self.policy.log_prob(s, a)).mean(1)
        if not args.online_steps:
            cosine(self.optimizers["policy"], args.lr, self.step, args.num_updates)
        minimize(self.optimizers["policy"], policy_loss)

        # Eq. 6: the value of an action is its reward and the V of where it led
        q = self.critic(sa).squeeze(-1)
        critic_loss = ((q - target.unsqueeze(1)) ** 2).mean(2).sum(1)
        minimize(self.optimizers["critic"], critic_loss)
        move_target(self.critic_target, self.critic, args.polyak)
        self.step += 1
        return {"loss/value": value_loss, "loss/critic": critic_loss, "loss/policy": policy_loss,
                "value": v.mean(1), "weight": weight.mean(1)}

# ---- The plumbing: data, tools, evaluation, logs, checkpoints; the same text in every script. ----

import contextlib, copy, dataclasses, difflib, fnmatch, hashlib, io, itertools, json, os, platform
import multiprocessing as mp, re, shlex, signal, socket, subprocess, sys, threading, time, warnings
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
import gymnasium as gym, h5py, minari, mujoco, numpy as np, tqdm, tyro
from torch.utils.tensorboard import SummaryWriter
warnings.filterwarnings("ignore", module="gymnasium|minari")
gym.logger.min_level = gym.logger.ERROR
mujoco.set_mju_user_warning(warnings.warn)  # else MuJoCo leaves a file in the working folder
# By kind and environment, the first 96 bits of the SHA-256 (d4rl builders of TensorFlow Datasets)
D4RL_FILES = """random 25407aef85b5d16c0f36b414 63103ef7059db4c0819bd054 4e863bb6090cf4a461548bd4
medium        41324e8487a9556d8cfa4538 5bdf1bc4a713c82941de4463 cf00f43add04c17fdfc2958d
medium-replay 48d494a4770c11f48260736d e121c5f7c9857a307baa9edc e75de96a4f77acf7d4e0d6fd
medium-expert 015db75dae5bbe8e94029b71 9d51ad87f8c905be3880d84c 6b8d7f868c45bbaedf460be7
expert        d9fe53bb994eb1e20a99b4fa 01aa219a5f8eea5e639eccdc 2985dc3d436a8baa10e8f43f
full-replay   27fdf7ea86e5a2cbd24d611a 56baf95963c51c1e964049a9 f2720f9d27b2acef6ec9a7d9"""
D4RL_FILES = {f"{env}-{kind}-v2": (f"gym_mujoco_v2/{env}_{kind.replace('-', '_')}-v2.hdf5", sha)
              for kind, *row in map(str.split, D4RL_FILES.splitlines())
              for env, sha in zip(("halfcheetah", "hopper", "walker2d"), row)}
D4RL_SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
D4RL_MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main/"
# Environment, returns that score 0 and 100 (d4rl/infos.py). v4 is D4RL's v2; v5 is another task
D4RL_ENVS = {"halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
             "hopper": ("Hopper-v4", -20.272305, 3234.3),
             "walker2d": ("Walker2d-v4", 1.629008, 4592.3)}
KEYS = "observations actions rewards terminals timeouts next_observations".split()
LOG_EVERY = 1_000  # updates per point of a TensorBoard curve
UPDATES_PER_GRAPH = 20  # enough to hide a CUDA graph's launch, few enough to record in seconds

def dataset_family(name: str) -> str:
    """'rebuilt/hopper/medium-100k-v0', 'mujoco/hopper/medium-v0' -> 'hopper-medium'."""
    return re.sub(r"(-\d+[km]?)?-v\d+$", "", "-".join(name.lower().split("/")[-2:]))

def fill_settings(args: Args) -> Args:
    """Each None of `args` from the first row of SETTINGS that fits; says what that makes."""
    name = dataset_family(args.env)
    for pattern, *row in SETTINGS:
        row = dict(zip(SETTING_NAMES, row))
        if fnmatch.fnmatch(name, pattern) and all(
                vars(args)[k] in (None, v) for k, v in row.items() if isinstance(v, str)):
            break
    default = ", which has no row of its own" * (pattern == "*")
    row |= {k: v for k in row if (v := getattr(args, k)) is not None}
    print(f"settings of {name}{default}: {', '.join(f'{k} {v}' for k, v in row.items())}")
    return dataclasses.replace(args, **row)

def d4rl_file(name: str) -> Path:
    """D4RL's file of that dataset, where D4RL keeps it; fetched if missing, verified always."""
    (file, sha256), problems = D4RL_FILES[name], ""
    path = Path(os.getenv("D4RL_DATASET_DIR", "~/.d4rl/datasets"), Path(file).name).expanduser()
    for url in [D4RL_SERVER + file, D4RL_MIRROR + path.name]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.exists() or torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except Exception as error:  # whatever the network raises
            problems += f"\n  {url}: {error}"
    if not path.exists():
        raise SystemExit(f"{name}: no file {path}, and no download:{problems}\nPut it there, or "
                         f"rebuild its like: python benchmarks/collect.py {dataset_family(name)}")
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
        raise SystemExit(f"{path} has not D4RL's SHA-256: delete it, or name it by --dataset-file")
    return path

def read_hdf5(path) -> dict:
    """The flat arrays of a file in D4RL's layout; next_observations only where it has them."""
    try:
        with h5py.File(path, "r") as file:
            return {k: file[k][:].astype(np.float32) for k in KEYS if k in file or k != KEYS[-1]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"{path}: no HDF5 file with numbers in {', '.join(KEYS[:-1])} ({error})")

def read_minari(name: str) -> tuple[dict, minari.MinariDataset]:
    """The same of a Minari dataset, downloaded if need be; it knows every next observation."""
    parts = []
    try:
        for e in (dataset := minari.load_dataset(name, download=True)).iterate_episodes():
            obs, last = e.observations, np.arange(len(e.rewards)) == len(e.rewards) - 1
            if isinstance(obs, dict):  # in the order of gymnasium's FlattenObservation
                obs = np.concatenate([obs[k] for k in dataset.observation_space], -1)
            parts.append((obs[:-1], e.actions, e.rewards, e.terminations, last, obs[1:]))
        columns = [np.concatenate(column).astype(np.float32) for column in zip(*parts)]
        return dict(zip(KEYS, columns, strict=True)), dataset  # strict: there are episodes
    except Exception as error:  # whatever Minari, HDF5 or the network raise
        raise SystemExit(f"Minari dataset {name} cannot be read ({type(error).__name__}: {error}). "
                         f"Delete {minari.storage.get_dataset_path(name)} if it is a broken copy")

def load_dataset(args: Args) -> tuple[dict, dict]:
    """All rows of the dataset (see to_rows) and the task: their source, the scoring of policies."""
    name, local, source = args.env, minari.list_local_datasets(), None
    env_id, *ref = next((v for k, v in D4RL_ENVS.items() if name in D4RL_FILES
                         and name.startswith(k)), (name, None, None))
    spec = gym.registry.get(env_id)
    if args.dataset_file:
        source, rows = f"file {args.dataset_file}", read_hdf5(args.dataset_file)
    elif name in D4RL_FILES:
        source, rows = "D4RL file", read_hdf5(d4rl_file(name))
    elif name in local or re.match(r"(mujoco|D4RL)/.+-v\d+$", name):  # Minari's own
        source = {"rebuilt": "rebuilt", "local": "local"}.get(name.split("/")[0], "Minari")
        rows, data = read_minari(name)
        env_id, *ref = map(data.storage.metadata.get, ("env_id", "ref_min_score", "ref_max_score"))
        spec = data._eval_env_spec or data.env_spec or gym.registry.get(env_id)
    if not (source and spec and spec.max_episode_steps):
        near = difflib.get_close_matches(name, [*D4RL_FILES, *local, *gym.registry])
        raise SystemExit(f"--env {name}: no such dataset (benchmarks/collect.py builds rebuilt/*) "
                         "or, with --dataset-file, no such Gymnasium id with a time limit"
                         + f"; did you mean {' or '.join(near)}?" * bool(near))
    text = spec.to_json() if isinstance(spec.entry_point, str) else None  # a class has its id only
    return to_rows(rows, {"name": name, "source": source, "ref_min": ref[0], "ref_max": ref[1],
                          "env_id": spec.id, "env_spec": text, "horizon": spec.max_episode_steps})

def to_rows(rows: dict, task: dict) -> tuple[dict, dict]:
    """Check flat arrays, find each row's next state; returns rows, and the task with their sizes.
    Rows are float32: observations, next_observations (n, obs), actions (n, act), rewards, terminals
    (n,), known (n,): is the next observation true?, ends (n,): does an episode end or is it cut? A
    next state is the next row's, but at ends, where stored ones serve if they agree elsewhere."""
    env, digest, n = make_env(task), hashlib.sha256(), len(rows["rewards"])
    obs_shape, box, where = env.observation_space.shape, env.action_space, f"{task['name']}: "
    shapes = {"observations": obs_shape, "next_observations": obs_shape, "actions": box.shape}
    for key, array in rows.items():
        shape = (n, *shapes.get(key, ()))
        if array.shape != shape or array.ndim != 1 + (key in shapes):
            raise SystemExit(f"{where}{key} has shape {array.shape}; {n} rewards and "
                             f"{task['env_id']} ask for {shape}, and for vectors")
        if len(bad := np.argwhere(~np.isfinite(array))):
            raise SystemExit(f"{where}NaN or infinity in {key}, first in row {bad[0][0]}")
        digest.update(array.tobytes())
    ends = (rows["terminals"] > 0) | (rows["timeouts"] > 0)
    if not ends.any():
        raise SystemExit(f"{where}no episode ends, terminals and timeouts are never set")
    following, known = np.roll(rows["observations"], -1, 0), ~ends & (np.arange(n) < n - 1)
    stored, inner = rows.get("next_observations"), np.flatnonzero(ends[:-1])
    if stored is not None and np.allclose(stored[known], following[known], atol=1e-5) and not (
            len(inner) and np.array_equal(stored[inner], following[inner])):  # shifted by one row
        following, known = stored, known | True
    rows = {k: rows[k] for k in KEYS[:4]} | {
        "next_observations": following, "known": known.astype(np.float32), "ends": ends}
    returns = episode_returns(rows)
    return rows, task | {
        "obs_dim": obs_shape[0], "act_dim": box.shape[0], "act_low": box.low.tolist(),
        "act_high": box.high.tolist(), "transitions": n, "episodes": len(returns),
        "fingerprint": digest.hexdigest(), "data_return": float(returns.mean()),
        "data_std": float(returns.std()), "data_score": float(score(task, returns.mean()))}

def episode_returns(rows: dict) -> np.ndarray:
    """Undiscounted returns of the complete episodes, in the order of the data."""
    ends = np.flatnonzero(rows["ends"])
    return np.add.reduceat(rows["rewards"][: ends[-1] + 1], [0, *ends[:-1] + 1], dtype=float)

def score(task: dict, returns):
    """D4RL's normalized score, 0 random to 100 expert; the return itself where none is defined."""
    low, high = task["ref_min"], task["ref_max"]
    return returns if low is None else 100 * (returns - low) / (high - low)

def make_env(task: dict) -> gym.Env:
    """The task's environment, its observation, which may be a Dict, as one vector."""
    spec = task["env_spec"] and gym.envs.registration.EnvSpec.from_json(task["env_spec"])
    env = gym.make(spec or task["env_id"], disable_env_checker=True)
    return gym.wrappers.FlattenObservation(env)

from gymnasium.envs.mujoco.ant_v5 import AntEnv
MAZES = {  # walls #, goal G, start: the first free cell (D4RL, d4rl/locomotion/maze_env.py)
    "umaze": ("##### #...# ###.# #G..# #####", "u"),  # and its name in D4RL's files
    "medium": ("######## #..##..# #..#...# ##...### #..#...# #.#..#.# #...#.G# ########", "big"),
    "large": ("############ #....#.....# #.##.#.#.#.# #......#...# #.####.###.# #..#.#.....# "
              "##.#.#.#.### #..#...#.G.# ############", "hardest")}
ANTMAZES = """umaze 5ef15257771c50ef4d23c7de umaze-diverse c771dd63963cd7d9f55f24a6
medium-play c9fec1c1daad97c71d61bd47 medium-diverse ad9dcbac05d1f8744a7a2160
large-play 6d353df2457829925d7f9d4b large-diverse 84f775eb7956ea9cc7667047"""
D4RL_FILES |= {f"antmaze-{kind}-v2": (
    f"ant_maze_v2/Ant_maze_{MAZES[kind.split('-')[0]][1]}-maze_noisy_multistart_{kind != 'umaze'}_"
    f"multigoal_{'diverse' in kind}_sparse_fixed.hdf5", sha256)
    for kind, sha256 in re.findall(r"(\S+) (\S+)", ANTMAZES)}
D4RL_ENVS |= {f"antmaze-{maze}": (f"AntMaze-{maze}-v2", 0.0, 1.0) for maze in MAZES}

class AntMaze(AntEnv):
    """D4RL's antmaze-*-v2 (ant.py, maze_env.py): Gymnasium's ant, other timestep, contacts, motors,
    cells of 4 m. Observations (29,): x, y from the start, other positions, velocities, no goal."""
    def __init__(self, maze: str, **kwargs):
        self.maze = np.array([[*row] for row in MAZES[maze][0].split()])
        super().__init__(default_camera_config=None, include_cfrc_ext_in_observation=False,
                         exclude_current_positions_from_observation=False, **kwargs)
        self.action_space = gym.spaces.Box(-1, 1, (8,), np.float32)

    def _initialize_simulation(self):
        wall = '<geom type="box" size="2 2 1" pos="{} {} 1" conaffinity="1" rgba=".7 .5 .3 1"/>'
        walls = "".join(wall.format(4 * j - 4, 4 * i - 4) for i, j in np.argwhere(self.maze == "#"))
        xml = Path(self.fullpath).read_text().replace("</worldbody>", walls + "</worldbody>")
        model = mujoco.MjModel.from_xml_string(xml)
        model.opt.timestep = 0.02
        model.geom_solimp[:, :3] = 0.8, 0.8, 0.01
        model.actuator_ctrlrange[:], model.actuator_gear[:, 0] = (-30, 30), 1
        return model, mujoco.MjData(model)

    def reset_model(self):
        uniform, (row, column) = self.np_random.uniform, np.argwhere(self.maze == "G")[0]
        # not around the cell's centre: D4RL adds both of its noises on one side
        self.goal = [4 * column - 4, 4 * row - 4] + uniform(0, 1, 2) + uniform(0, 0.5, 2)
        return super().reset_model()

    def step(self, action):
        self.do_simulation(30 * np.clip(action, -1, 1), self.frame_skip)
        reached = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= 0.5)
        self.render_mode == "human" and self.render()
        return self.state_vector(), float(reached), reached, False, {}

for maze, steps in zip(MAZES, (700, 1000, 1000)):  # as a class: a script has no import path
    gym.register(f"AntMaze-{maze}-v2", AntMaze, max_episode_steps=steps, kwargs={"maze": maze})

class Adam:
    """torch.optim's Adam (Kingma, Ba, 2015); compiled, exp is taken once, ** for every weight."""
    def __init__(self, weights, lr: float):
        self.weights = list(weights)
        self.means, self.squares = ([torch.zeros_like(w) for w in self.weights] for _ in range(2))
        self.lr = torch.tensor([lr], device=self.weights[0].device)
        self.count = torch.zeros_like(self.lr, dtype=torch.float64)  # scalars lose writes, compiled
        self.state = [self.lr, self.count, *self.means, *self.squares]

    @torch.no_grad()
    def step(self, gradients) -> None:
        """w <- w - lr m / (sqrt(v) + 1e-8), m and v without the bias of their start at 0."""
        self.count += 1
        torch._foreach_lerp_(self.means, gradients, 1 - 0.9)
        torch._foreach_lerp_(self.squares, torch._foreach_mul(gradients, gradients), 1 - 0.999)
        bias_m, bias_v = (1 - (self.count * math.log(d)).exp().squeeze() for d in (0.9, 0.999))
        roots = torch._foreach_div(torch._foreach_sqrt(self.squares), bias_v.sqrt())
        roots = torch._foreach_mul(torch._foreach_add(roots, 1e-8), bias_m / -self.lr.squeeze())
        torch._foreach_addcdiv_(self.weights, self.means, roots)

def minimize(optimizer: Adam, loss) -> None:
    """One step down the losses (N,); seeds share no weight, so the sum's gradient is each one's."""
    optimizer.step(torch.autograd.grad(loss.sum(), optimizer.weights))

def cosine(optimizer: Adam, lr: float, step, total: int) -> None:
    """Set the rate to lr (1 + cos(pi step / total)) / 2, as CosineAnnealingLR does."""
    optimizer.lr.copy_(lr / 2 * (1 + torch.cos(math.pi / total * step)))

def move_target(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate source."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)

def evaluate(args: Args, task: dict, weights: bytes, starts) -> np.ndarray:
    """Raw returns (N, starts) of deterministic episodes; start i is alike for every seed."""
    torch.set_num_threads(1), torch.set_flush_denormal(True)  # so any thread or process plays alike
    agent = ALGORITHM(args, task, [torch.Generator()] * args.num_seeds, "cpu").requires_grad_(False)
    agent.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
    agent.phases = None  # their methods know the agent: memory would wait for the collector
    envs = [[make_env(task) for _ in starts] for _ in range(args.num_seeds)]
    obs = np.array([[e.reset(seed=i)[0] for i, e in zip(starts, row)] for row in envs], np.float32)
    alive = (returns := np.zeros(obs.shape[:2])) == 0
    while alive.any():
        actions = agent.act(torch.from_numpy(obs)).numpy()
        if not np.isfinite(actions[alive]).all():
            raise SystemExit("training diverged: the policy's actions are NaN or infinite")
        actions = actions.clip(task["act_low"], task["act_high"])
        for i in zip(*alive.nonzero()):
            obs[i], reward, over, cut, _ = envs[i[0]][i[1]].step(actions[i])
            returns[i] += reward
            alive[i] = not (over or cut)
    return returns

def start_worker(matmul_precision: str) -> None:
    """Set up a process that evaluates: it is gone as soon as its parent is."""
    torch.set_float32_matmul_precision(matmul_precision)
    threading.Thread(target=lambda: (mp.parent_process().join(), os._exit(1)), daemon=True).start()

def choose_device(args: Args) -> tuple[torch.device, str, bool]:
    """Device, execution, use of autocast; sets and prints the precision of matrix products."""
    torch.set_flush_denormal(True)  # denormals, of Adam's moments it seems, halve a CPU's speed
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(auto if args.device == "auto" else args.device)
        x = torch.rand(256, 256, generator=torch.Generator().manual_seed(0)).to(device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {args.device} fails here: {str(error).splitlines()[0]}")
    cuda = device.type == "cuda"
    execution = {"auto": "capture" if cuda else "eager"}.get(args.execution, args.execution)
    if execution == "capture" and not cuda:
        raise SystemExit("--execution capture records CUDA graphs; it needs --device cuda")
    # On CPUs "medium" means oneDNN: fp32, and on AMD faster than MKL, unless the CPU has bf16
    # units, where it rounds its inputs to bf16. Only a product can tell. On CUDA "high" is TF32.
    torch.set_float32_matmul_precision("high" if cuda else "medium")
    error = lambda: (x @ x / (x.double() @ x.double()) - 1).abs().max().item()
    if args.precision == "fp32" or not cuda and error() > 1e-5:
        torch.set_float32_matmul_precision("highest")
    print(f"device {device}, {execution}, {torch.get_num_threads()} CPU threads; largest error of "
          f"matrix products {error():.0e}" + ", bf16 autocast" * (args.precision == "bf16"))
    return device, execution, args.precision == "bf16"

class Run:
    """A training run of N seeds: batches, updates, evaluations; stored and restored whole."""
    def __init__(self, args: Args, task: dict, device, execution="eager", autocast=False):
        self.args, self.task, self.device, self.clock = args, task, device, time.time()
        self.execution, self.autocast, self.phase, self.step = execution, autocast, 0, 0
        self.evaluations, self.jobs, cuda = [], [], device.type == "cuda"
        self.seeds = [*range(args.seed, args.seed + args.num_seeds)]
        weights = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self.agent = ALGORITHM(args, task, weights, device)
        auto = cuda * min(16, torch.get_num_threads())
        self.workers = auto if args.eval_workers is None else args.eval_workers
        self.pool = ProcessPoolExecutor(self.workers, mp.get_context("spawn"), start_worker, [
            torch.get_float32_matmul_precision()]) if self.workers else ThreadPoolExecutor(1)
        # 2^31: other numbers than those that drew the weights; on CPUs only 32 bits count
        self.generators = [torch.Generator(device).manual_seed(2**31 + s) for s in self.seeds]
        git = subprocess.run("git describe --always --dirty --abbrev=40 --exclude='*'", shell=True,
                             cwd=Path(__file__).resolve().parent, capture_output=True, text=True)
        chip = torch.cuda.get_device_name(device) if cuda else platform.machine()
        self.parts = [{  # what a number needs beside it; every resume adds one
            "commit": git.stdout.strip() or "unknown", "device": f"{device} ({chip})",
            "versions": {m.__name__: str(m.__version__) for m in (torch, np, gym, minari, mujoco)},
            "threads": torch.get_num_threads(), "started": time.strftime("%F %T"),
            "from": [0, 0], "evaluation_seconds": 0.0}]

    def use(self, rows: dict) -> None:
        """Put all rows with a next state, or none at a true end, on the device as one table."""
        keep = (rows["known"] > 0) | (rows["terminals"] > 0)
        self.shapes = {k: v.shape[1:] for k, v in rows.items() if k != "ends"}
        table = np.column_stack([rows[k][keep] for k in self.shapes])
        self.table = torch.from_numpy(table).to(self.device, torch.float32)
        self.shared = len(table)  # rows of all seeds; online, their own ones follow

    def draw(self, number: int, first: int | None = None) -> torch.Tensor:
        """Rows of the table, or of its `first` ones, by that seed's own generator: (B,)."""
        return torch.randint(first or self.shared, (self.args.batch_size,), device=self.device,
                             generator=self.generators[number])

    def batch(self) -> dict:
        """(N, B, ...) tensors; "noise" are standard normal numbers for the algorithm's own use."""
        rows = self.table[torch.stack([self.draw(n) for n in range(len(self.seeds))])]
        columns = rows.split([math.prod(shape) for shape in self.shapes.values()], -1)
        batch = {k: c if s else c[..., 0] for (k, s), c in zip(self.shapes.items(), columns)}
        size, on = (self.args.batch_size, self.agent.noise_dim), {"device": self.device}
        noise = [torch.randn(size, generator=g, **on) for g in self.generators if size[1]]
        return batch | ({"noise": torch.stack(noise)} if noise else {})

    def begin(self) -> None:
        """Make the phase's updates, which take turns, the ones that advance() runs."""
        detached = lambda update: lambda batch: {k: v.detach() for k, v in update(batch).items()}
        self.updates = [detached(update) for update in self.agent.phases[self.phase][2:]]
        if self.execution != "eager":  # else the compiler is not imported, which takes seconds
            torch._dynamo.config.trace_autograd_ops = True  # the one graph has the gradients, too
            options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe,  # nothing changes
                       "cpp_wrapper": self.device.type == "cpu"}  # compiles twice as fast
            for n, update in enumerate(self.updates):  # code of its own: no guard tells runs apart
                update.__code__, own = update.__code__.replace(), {**options}  # compile() pops some
                self.updates[n] = torch.compile(update, fullgraph=True, options=own)
        self.graph, self.began, self.sums = None, self.step, None
        if self.execution == "capture":  # no graph records the default stream: leave it for good
            torch.cuda.synchronize(self.device)
            torch.cuda.set_stream(torch.cuda.Stream(self.device))

    def once(self, number: int) -> None:
        """One update, without autocast's cache, which would keep copies of outdated weights."""
        with torch.autocast(self.device.type, torch.bfloat16, self.autocast, cache_enabled=False):
            stats = self.updates[number % len(self.updates)](self.batch())
        if stats:  # a last row of ones counts
            new = F.pad(torch.stack([v.float() for v in stats.values()]), (0, 0, 0, 1), value=1)
            self.names, self.sums = [*stats], new if self.sums is None else self.sums.add_(new)

    def advance(self, updates: int) -> None:
        """Run that many updates; on CUDA they are only queued."""
        end, size = self.step + updates, UPDATES_PER_GRAPH
        while self.step < end:
            whole = self.step % size == 0 and self.step + size <= end  # so updates keep their turns
            if self.execution != "capture" or not whole or self.step < self.began + 5:
                self.once(self.step)  # on CUDA the first ones are the warm-up, too
                self.step += 1
                continue
            if not self.graph:
                self.graph = torch.cuda.CUDAGraph()
                [self.graph.register_generator_state(g) for g in self.generators]
                with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(self.device)):
                    [self.once(number) for number in range(size)]
            self.graph.replay()
            self.step += size

    def means(self) -> dict:
        """Statistics averaged since the last call, name -> (N,). Here the device is waited for."""
        if self.sums is None or not self.sums[-1].any():
            return {}
        values = (self.sums[:-1] / self.sums[-1]).cpu().numpy()
        self.sums.zero_()
        if bad := [n for n, v in zip(self.names, values) if not np.isfinite(v).all()]:
            raise SystemExit(f"training diverged before update {self.step}: {', '.join(bad)} NaN "
                             "or infinite. Try smaller rates, in another --run-dir")
        return dict(zip(self.names, values))

    def measure(self, episodes: int) -> None:
        """Have all seeds evaluated for collect(). Workers inherit the mask: Ctrl-C is the run's."""
        torch.save(self.agent.state_dict(), weights := io.BytesIO())
        work = getattr(self, "evaluate", evaluate), self.args, self.task, weights.getvalue()
        starts, n = range(episodes), max(1, 5 // len(self.seeds))  # few a job, to share them evenly
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        self.jobs = [self.pool.submit(*work, starts[i:i + n]) for i in starts[::n]]
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.measured = self.agent.phases[self.phase][0], self.step, episodes

    def collect(self) -> list[dict]:
        """The evaluation under way, once it has ended, if there is one."""
        start, known = time.time(), len(self.evaluations)
        if self.jobs:
            returns, self.jobs = np.concatenate([j.result() for j in self.jobs], 1).mean(1), []
            self.evaluations.append(dict(zip(("phase", "update", "episodes"), self.measured)) | {
                "returns": returns.tolist(), "scores": score(self.task, returns).tolist()})
        self.parts[-1]["evaluation_seconds"] += time.time() - start
        return self.evaluations[known:]

    def save(self, finished: bool) -> None:
        """Write result.json, and checkpoint.pt: all that the rest of the run depends on."""
        seconds = time.time() - self.clock - self.parts[-1]["evaluation_seconds"]
        self.parts[-1] |= {"to": [self.phase, self.step], "training_seconds": seconds}
        args = {k: v for k, v in vars(self.args).items() if k != "run_dir"}
        names = "task", "seeds", "phase", "step", "evaluations", "parts"
        result = {"script": Path(__file__).stem, "finished": finished, "args": args, "final":
                  self.evaluations[-1] if finished else None} | {k: vars(self)[k] for k in names}
        torch.save({**result, "agent": self.agent.state_dict(), "device": self.device.type,
                    "moments": {k: o.state for k, o in self.agent.optimizers.items()},
                    "generators": [g.get_state() for g in self.generators]}, buffer := io.BytesIO())
        part, text = Path(self.args.run_dir, "part"), json.dumps(result, indent=1).encode()
        try:  # each file is a whole new one or the old one; the checkpoint, which decides, is last
            for name, content in ("result.json", text), ("checkpoint.pt", buffer.getvalue()):
                part.write_bytes(content)
                part.rename(part.with_name(name))
        finally:
            part.unlink(missing_ok=True)

    def restore(self, state: dict) -> None:
        """Go back to what save() stored, possibly on another device."""
        self.agent.load_state_dict(state["agent"])
        for name, optimizer in self.agent.optimizers.items():
            torch._foreach_copy_(optimizer.state, state["moments"][name])
        self.phase, self.step, self.evaluations = map(state.get, ("phase", "step", "evaluations"))
        self.parts = [*state["parts"], self.parts[-1] | {"from": [self.phase, self.step]}]
        if state["device"] == self.device.type:  # others draw differently: start anew
            [g.set_state(stored) for g, stored in zip(self.generators, state["generators"])]

class OnlineRun(Run):
    """A run whose phase "online" acts: a step of each seed's own environment before every update.

    The steps lie in online.bin and, seed after seed, behind the dataset in the table. To resume,
    the actions of the unfinished episodes are repeated, which brings the environments back.
    """
    def draw(self, number: int) -> torch.Tensor:
        """Rows of the dataset and of that seed's steps so far, each as likely: (B,)."""
        rows = super().draw(number, self.shared + self.online * (self.step + 1))
        return rows + (rows >= self.shared) * number * (self.args.online_steps or 0)

    def begin(self) -> None:
        """Bring table and environments to where the run stands."""
        self.online, seeds = self.agent.phases[self.phase][0] == "online", len(self.seeds)
        if self.online:
            self.execution = self.execution.replace("capture", "compile")  # no graph holds MuJoCo
            self.table = F.pad(self.table[:self.shared], (0, 0, 0, seeds * self.args.online_steps))
            self.own = self.table[self.shared:].unflatten(0, (seeds, -1))
            path = Path(self.args.run_dir, "online.bin")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "r+b" if self.step else "w+b", buffering=0)
            # of each step a row per seed; the last column says whether the episode ends
            rows = np.dtype((np.float32, (seeds, self.table.shape[1] + 1)))
            steps = np.fromfile(self.file, rows, self.step).swapaxes(0, 1)
            if steps.shape[1] < self.step:
                raise SystemExit(f"{path} ends before update {self.step}, to which the run came: "
                                 "put the whole file back or choose another --run-dir")
            self.own[:, :self.step] = torch.from_numpy(steps[..., :-1]).to(self.device)
            self.envs, self.obs = [make_env(self.task) for _ in self.seeds], []
            actions = slice(self.task["obs_dim"], self.task["obs_dim"] + self.task["act_dim"])
            for n, (env, own) in enumerate(zip(self.envs, steps)):
                first = max([0, *np.flatnonzero(own[:, -1]) + 1])
                self.obs.append(self.reset(n, first))
                for action in own[first:, actions].astype(float):  # in this type they were taken
                    self.obs[n] = env.step(action)[0]
        super().begin()

    def reset(self, n: int, step: int) -> np.ndarray:
        """A start that depends on seed and step alone; evaluations start from other ones."""
        drawn = np.random.SeedSequence([self.seeds[n] % 2**32, step]).generate_state(1)
        return self.envs[n].reset(seed=int(drawn[0]))[0]

    def once(self, number: int) -> None:
        """A step of every environment, then an update."""
        task, size, steps = self.task, (1, self.task["act_dim"]), []
        if self.online:
            noise = [torch.randn(size, generator=g, device=self.device) for g in self.generators]
            obs = torch.from_numpy(np.array(self.obs, np.float32)).to(self.device).unsqueeze(1)
            with torch.no_grad():
                actions = self.agent.explore(obs, torch.stack(noise)).squeeze(1).cpu().numpy()
            for n, action in enumerate(actions.clip(task["act_low"], task["act_high"])):
                following, reward, over, cut, _ = self.envs[n].step(action)
                reward = reward * task["reward_scale"] + task["reward_shift"]
                steps.append([*self.obs[n], *action, reward, over, *following, 1, over or cut])
                self.obs[n] = self.reset(n, number + 1) if over or cut else following
            steps = np.array(steps, np.float32)
            self.file.write(steps.tobytes())
            self.own[:, number] = torch.from_numpy(steps[:, :-1]).to(self.device)
        super().once(number)

def train(run: Run) -> None:
    """From where `run` stands to its end: updates, curves, evaluations, checkpoints."""
    args, phases, stop = run.args, run.agent.phases, []
    every = LOG_EVERY, args.eval_every, args.checkpoint_every
    for number in (signal.SIGINT, signal.SIGTERM):  # the second one ends the process at once
        signal.signal(number, lambda n, _: (stop.append(n), signal.signal(n, signal.SIG_DFL)))
    for run.phase in range(run.phase, len(phases)):
        (name, total, *_), last = phases[run.phase], run.phase == len(phases) - 1
        first, began, purge = run.step, time.time(), run.step + bool(run.step or run.evaluations)
        run.begin()
        with contextlib.ExitStack() as stack:  # closes them in any case: curves reach the disk
            writers = [stack.enter_context(SummaryWriter(f"{args.run_dir}/tensorboard/{name}-{s}",
                                           purge_step=purge)) for s in run.seeds]
            bar = stack.enter_context(tqdm.tqdm(None, name, total, initial=first, disable=None))
            while True:
                over, new, curves = run.step == total, run.step > first, []
                log, test, keep = (over or not run.step % n for n in every)
                rate = (run.step - first) / (time.time() - began)
                if new and (log or test or keep or stop):  # a diverged run is never saved
                    values = run.means() | {"updates_per_second": [rate] * args.num_seeds}
                    curves = [(run.step, *curve) for curve in values.items()]
                seen = [e["update"] for e in run.evaluations if run.step == 0 or e["phase"] == name]
                due = test and name in ("train", "online") and run.step not in seen
                ended = run.collect() if due or keep or stop else []
                if due and (over or not (run.workers or stop and new)):
                    run.measure(args.final_eval_episodes if over else args.eval_episodes)
                    ended += run.collect()
                for e in ended:
                    curves += [(e["update"], tag, e[tag + "s"]) for tag in ("score", "return")]
                    bar.write(f"{name} {e['update']:,} of {total:,}, {rate:.1f} updates/s: score "
                              f"{np.mean(e['scores']):.1f} ± {np.std(e['scores']):.1f}, "
                              f"{args.num_seeds} seeds x {e['episodes']} episodes")
                for (at, tag, value), (i, writer) in itertools.product(curves, enumerate(writers)):
                    writer.add_scalar(tag, value[i], at)
                if new and keep or stop:  # curves first: no kill then loses a point of them
                    any(writer.flush() for writer in writers)
                    run.save(finished=last and over)
                if over:
                    break
                if stop and new:
                    bar.write(f"stopped at update {run.step}; to go on:\n  "
                              + shlex.join(["python", *sys.argv]))
                    raise SystemExit(128 + stop[0])
                if due and run.workers:  # updates go on meanwhile
                    run.measure(args.eval_episodes)
                run.advance(min(100, total - run.step, *(n - run.step % n for n in every)))
                bar.update(run.step - bar.n)
        run.step *= last

def main() -> None:
    """The command line: begin or resume a run, or evaluate one."""
    args, script, state = tyro.cli(Args), Path(__file__).stem, {}
    if bad := [k for k, v in vars(args).items() if type(v) is int and
               v < (k not in ("seed", "eval_workers")) or type(v) is float and
               not 0 <= v <= (k in ("tau", "discount", "polyak") or 1e300)]:
        raise SystemExit(f"out of range, counts start at 1: --{', --'.join(bad)}".replace("_", "-"))
    socket.setdefaulttimeout(30)
    args = args if args.eval_only else fill_settings(args)
    if args.run_dir and (path := Path(args.run_dir, "checkpoint.pt")).exists():
        free = ["device", "run_dir", "checkpoint_every", "eval_workers"]  # these may change
        free += ["execution", "precision", "final_eval_episodes", "eval_only"] * args.eval_only
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            assert state["moments"] and state["script"] == script, f"it is {state['script']}.py's"
            stored = Args(**state["args"] | {k: vars(args)[k] for k in free})
        except Exception as error:
            raise SystemExit(f"{path}: no checkpoint of {script}.py, choose another --run-dir "
                             f"({error!r:.150})")
        args = stored if args.eval_only else args
        if other := [f"--{k.replace('_', '-')} {v}" for k, v in vars(stored).items()
                     if v != vars(args)[k]]:
            raise SystemExit(f"{args.run_dir} holds a run with {', '.join(other)}: repeat them, or "
                             "choose another --run-dir")
    elif args.eval_only:
        raise SystemExit("--eval-only needs --run-dir with a checkpoint.pt in it")
    idle, device = args.eval_only or state.get("finished"), choose_device(args)
    rows, task = (None, state["task"]) if idle else getattr(RUN, "load", load_dataset)(args)
    if state and state["task"]["fingerprint"] != task["fingerprint"]:
        raise SystemExit(f"{args.run_dir} was trained on other data than {args.env} holds now")
    print("data: {name} ({source}), {transitions:,} rows, {episodes:,} episodes, return "
          "{data_return:.1f} ± {data_std:.1f}, score {data_score:.1f}, on {env_id}".format(**task))
    if not args.run_dir:
        env, now = args.env.replace("/", "-"), time.strftime("%Y%m%d-%H%M%S")
        args.run_dir = f"runs/{script}-{env}-seed{args.seed}-{now}-{os.getpid()}"
        sys.argv += ["--run-dir", args.run_dir]  # for the command that goes on with it
    rows = rows and prepare(args, rows, task)
    run = RUN(args, task, *device)
    if state:
        run.restore(state)
        print("finished" if state["finished"] else "resumed",
              f"at update {run.step} of phase '{run.agent.phases[run.phase][0]}'")
    if args.eval_only:
        run.measure(args.final_eval_episodes), run.collect()
    elif rows:
        run.use(rows), train(run)
    scores, episodes = (run.evaluations[-1][k] for k in ("scores", "episodes"))
    unit = "return (no reference score)" if task["ref_min"] is None else "normalized score"
    print(f"{args.env}, update {run.step}, {episodes} episodes: {unit} {np.mean(scores):.1f} ± "
          f"{np.std(scores):.1f} over {len(scores)} seeds ({', '.join(f'{x:.1f}' for x in scores)})"
          f"; behaviour policy {task['data_score']:.1f}\n{args.run_dir}: result.json, tensorboard")

ALGORITHM, RUN = IQL, OnlineRun  # what main() trains, and the kind of its run

if __name__ == "__main__":
    try:
        main()
    except (OSError, BrokenExecutor) as error:  # missing rights, a full disk, a worker killed
        [worker.kill() for worker in mp.active_children()]  # a broken pool waits for each of them
        raise SystemExit(f"{error}: mend this, then go on: {shlex.join(['python', *sys.argv])}")
