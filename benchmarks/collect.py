"""Collect an offline dataset by D4RL's recipe: a local Minari dataset, rebuilt from a policy.

Idea. D4RL (Fu et al. 2020, arXiv 2004.07219) lets a fixed policy act and writes down what happens.
Its `medium` policy is a SAC agent stopped at about a third of the expert's return. We do the same
with our own SAC agent, so that a dataset is a command and a small weight file, not a download.

Recipe. A policy of the wanted level acts by sampling, a = tanh(mean + std * noise), in the `-v4`
environments of Gymnasium. An episode ends where the environment terminates it, or is cut after
`max_episode_steps` (a truncation, not a termination). The set has exactly `--steps` transitions:
its last episode is cut to fit. All numbers are stored as float32, as in D4RL; an episode of T
transitions has T + 1 observations, T actions, T rewards, T terminations and T truncations.

    python benchmarks/collect.py hopper-medium                  # rebuilt/hopper/medium-v0
    python benchmarks/collect.py hopper-medium --steps 100000   # rebuilt/hopper/medium-100k-v0

Determinism. The work is split into shards of `--shard-steps` transitions, each with seeds of its
own, so the data are the same, bit for bit, for any number of workers, and a smaller set is the
beginning of a larger one. Another CPU type or another version of MuJoCo or NumPy may round
differently: the SHA-256 printed at the end is a promise for the same machine and versions only.
"""

import contextlib
import difflib
import hashlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

# Episodes that run side by side in a shard. More of them share one policy forward, but more are
# thrown away unfinished at a shard's end; on Hopper-v4 4 to 16 are equally fast.
SLOTS = 8
# The noise of the stored policies is clamped like the learner's (train_behavior.py).
LOG_STD_MIN, LOG_STD_MAX = -20, 2
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Published:
    """D4RL's own dataset: return per episode (mean and deviation), transitions, episodes."""

    mean: float
    std: float
    transitions: int
    episodes: int


@dataclass(frozen=True)
class Recipe:
    """One dataset: where the policy acts, which policy, and the scores that mean 0 and 100."""

    env_id: str
    dataset: str
    """id without the namespace and version, `environment/level`"""
    behavior: str | None
    """weight file without .npz in the behaviour folder; None: uniform random actions"""
    ref_min: float
    ref_max: float
    published: Published | None = None


# Reference scores: D4RL, d4rl/infos.py (REF_MIN_SCORE, REF_MAX_SCORE): return of a random policy
# and of an expert. Normalized score = 100 * (return - ref_min) / (ref_max - ref_min).
HOPPER = dict(env_id="Hopper-v4", ref_min=-20.272305, ref_max=3234.3)

RECIPES = {
    # Published: measured over the episodes of D4RL's hopper-medium-v2.
    "hopper-medium": Recipe(dataset="hopper/medium", behavior="hopper-medium", **HOPPER,
                            published=Published(1422.06, 378.95, 999_906, 2_186)),
    "hopper-random": Recipe(dataset="hopper/random", behavior=None, **HOPPER),
}


@dataclass
class Args:
    name: Annotated[str, tyro.conf.Positional]
    """dataset, such as hopper-medium, or its id, such as rebuilt/hopper/medium-v0"""
    steps: int = 1_000_000
    """transitions in the dataset; other than 1,000,000 becomes part of the id"""
    workers: int | None = None
    """processes that simulate (default: one per core); the data do not depend on it"""
    seed: int = 0
    """seed of start states and actions"""
    force: bool = False
    """replace the dataset if it exists"""
    behavior_dir: Path = HERE / "behavior"
    """folder of the policies' weights"""
    shard_steps: int = 25_000
    """transitions of a shard, the unit of work of a process; another value gives other data"""


# ---------------------------------------------------------------------------------------------
# Policies: `draw` makes an episode's noise in advance, a call turns a batch of it into actions.
# ---------------------------------------------------------------------------------------------


class SacPolicy:
    """Tanh-Gaussian policy in NumPy, 2 hidden ReLU layers; weights as in `nn.Linear`.

    NumPy, so that a worker process need not load torch: it starts in a fraction of the time.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        get = lambda layer: (np.ascontiguousarray(weights[f"{layer}.weight"].T, np.float32),
                             np.asarray(weights[f"{layer}.bias"], np.float32))
        (self.w0, self.b0), (self.w1, self.b1) = get("fc0"), get("fc1")
        heads = get("last_fc"), get("last_fc_log_std")
        self.w2, self.b2 = (np.concatenate(pair, -1) for pair in zip(*heads))
        self.obs_dim, self.act_dim = self.w0.shape[0], self.w2.shape[1] // 2

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Noise of one episode, (steps, act_dim) float32."""
        return rng.standard_normal((steps, self.act_dim), np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """(batch, obs_dim) and (batch, act_dim) float32 -> actions in [-1, 1], (batch, act_dim)."""
        h = np.maximum(obs @ self.w0 + self.b0, 0)
        h = np.maximum(h @ self.w1 + self.b1, 0)
        mean, log_std = np.split(h @ self.w2 + self.b2, 2, -1)
        return np.tanh(mean + np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)) * noise)


class UniformPolicy:
    """Uniform random actions in the box `low`..`high`, (act_dim,) each."""

    def __init__(self, low: np.ndarray, high: np.ndarray, obs_dim: int):
        self.low, self.high = low.astype(np.float32), high.astype(np.float32)
        self.obs_dim, self.act_dim = obs_dim, len(low)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """The actions of one episode, (steps, act_dim) float32."""
        return rng.uniform(self.low, self.high, (steps, self.act_dim)).astype(np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return noise


# ---------------------------------------------------------------------------------------------
# Rollout: many episodes side by side, and which of them to keep
# ---------------------------------------------------------------------------------------------


def rollout(envs: list, policy, seed: list[int], steps: int = 0, episodes: int = 1) -> list[dict]:
    """The first episodes of a seeded sequence: at least `steps` transitions and `episodes` of them.

    Episode j is drawn from the seed [*seed, j] alone: its start state and its noise. Every env is
    a slot that takes the next index when its episode ends; the policy acts on all slots at once.

    Which episodes are kept must not depend on how long they took. Keeping whatever is finished
    first would favour short episodes: when the quota is full, the long ones are still running. So
    the result is the shortest prefix 0, 1, 2, ... of the sequence that is long enough, complete,
    and whatever runs beyond it is thrown away. The episode that crosses the quota stays in: the
    number of episodes is then a stopping time, and by Wald's identity their summed length (or
    return) is on average the true mean times their number. Leaving it out would favour short ones.

    envs: Gymnasium environments of the same kind with a time limit, Box observations and actions.
    Returns dicts in index order: observations (T+1, obs_dim), actions (T, act_dim), rewards (T,),
    all float32; terminations, truncations (T,) bool; seed, the integer given to `env.reset`.
    """
    limit = envs[0].spec.max_episode_steps
    slots, rows = range(len(envs)), np.arange(len(envs))
    obs = np.zeros((len(envs), limit + 1, policy.obs_dim), np.float32)
    noise = np.zeros((len(envs), limit, policy.act_dim), np.float32)
    actions = np.zeros((len(envs), limit, policy.act_dim), np.float32)
    rewards = np.zeros((len(envs), limit), np.float32)
    t = np.zeros(len(envs), int)  # transitions so far of the episode in the slot
    index = [-1] * len(envs)  # the episode in the slot; -1: idle
    env_seeds: list[int] = []  # one per started episode
    done: dict[int, dict] = {}

    def start(i: int) -> None:
        sequence = np.random.SeedSequence([*seed, len(env_seeds)])
        index[i], t[i] = len(env_seeds), 0
        env_seeds.append(int(sequence.generate_state(1)[0]))
        obs[i, 0] = envs[i].reset(seed=env_seeds[-1])[0]
        noise[i] = policy.draw(np.random.default_rng(sequence.spawn(1)[0]), limit)

    def prefix() -> int | None:
        """Length of the shortest prefix that is long enough already, or None if all must go on."""
        running = {j: int(t[i]) for i, j in enumerate(index) if j >= 0}
        total = 0
        for j in range(len(env_seeds) + 1):
            if j >= episodes and total >= steps:
                return j
            if j < len(env_seeds):
                total += running[j] if j in running else len(done[j]["rewards"])
        return None

    for i in slots:
        start(i)
    while True:
        # Idle slots stay in the batch: with one fixed shape, a row's result does not depend on
        # how many others are at work.
        act = policy(obs[rows, t], noise[rows, t])
        actions[rows, t] = act
        for i in slots:
            if index[i] < 0:
                continue
            k = int(t[i])
            observation, reward, terminated, truncated, _ = envs[i].step(act[i])
            obs[i, k + 1] = observation
            rewards[i, k] = reward
            t[i] = k = k + 1
            if not (terminated or truncated):
                continue
            ends = np.zeros((2, k), bool)
            ends[0 if terminated else 1, -1] = True
            done[index[i]] = dict(
                observations=obs[i, :k + 1].copy(), actions=actions[i, :k].copy(),
                rewards=rewards[i, :k].copy(), terminations=ends[0], truncations=ends[1],
                seed=env_seeds[index[i]])
            index[i], t[i] = -1, 0
            needed = prefix()
            if needed is None:
                start(i)
                continue
            for s in slots:
                if index[s] >= needed:
                    # Dropped for good: episodes before it can only grow. Its place in `done`
                    # stays empty, as no later prefix reaches it.
                    index[s], t[s] = -1, 0
            del env_seeds[needed:]
            if all(j in done for j in range(needed)):
                return [done[j] for j in range(needed)]


_envs: dict[str, list] = {}


def make_envs(env_id: str, slots: int) -> list:
    """`slots` environments of this process, made once; the time limit is the registered one."""
    envs = _envs.setdefault(env_id, [])
    while len(envs) < slots:
        envs.append(gym.make(env_id, disable_env_checker=True))
    return envs[:slots]


def quiet() -> None:
    """No deprecation notes for the v4 environments (D4RL's physics), no MUJOCO_LOG.TXT."""
    gym.logger.min_level = gym.logger.ERROR
    with contextlib.suppress(ImportError, AttributeError):
        import mujoco

        # Without a handler MuJoCo writes its warnings into the current folder.
        mujoco.set_mju_user_warning(lambda message: None)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    # A worker waits for work for ever, even when the parent was killed: end with the parent.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    quiet()


def run_jobs(function, jobs: list, workers: int | None) -> Iterator[tuple[int, object]]:
    """Yield (number of the job, function(*job)) as the jobs finish, in `workers` processes.

    Even one worker is a process of its own: the number of BLAS threads, which may change the last
    bit of a product, can be set only before NumPy is loaded.
    Raises SystemExit if a worker dies.
    """
    if workers is None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores we may use
        workers = len(affinity(0)) if affinity else os.cpu_count()
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
               "VECLIB_MAXIMUM_THREADS")
    with environment(**dict.fromkeys(threads, "1")):
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker)
        try:
            futures = {pool.submit(function, *job): n for n, job in enumerate(jobs)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise SystemExit("a worker process died (out of memory, or killed); nothing was "
                             "written. Run the same command again, with fewer --workers.")
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def environment(**variables: str):
    """Environment variables for the time of a `with` block."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def run_shard(env_id: str, policy, seed: list[int], steps: int) -> tuple[list[dict], float]:
    """Episodes of one shard, at least `steps` transitions, and the CPU seconds they took."""
    envs = make_envs(env_id, SLOTS)
    clock = time.process_time()
    episodes = rollout(envs, policy, seed, steps=steps)
    return episodes, time.process_time() - clock


def simulate(env_id: str, policy, steps: int, seed: int, shard_steps: int,
             workers: int | None) -> tuple[list[dict], float]:
    """Exactly `steps` transitions of episodes (see `rollout`), and the CPU seconds they took."""
    jobs = [(env_id, policy, [seed, shard], min(shard_steps, steps - shard * shard_steps))
            for shard in range(-(-steps // shard_steps))]
    shards, cpu = [None] * len(jobs), 0.0
    with tqdm(total=steps, unit=" transitions", unit_scale=True, disable=None) as bar:
        for number, (episodes, seconds) in run_jobs(run_shard, jobs, workers):
            shards[number], cpu = episodes, cpu + seconds
            bar.update(min(sum(len(e["rewards"]) for e in episodes), bar.total - bar.n))
    return trim([episode for shard in shards for episode in shard], steps), cpu


def trim(episodes: list[dict], steps: int) -> list[dict]:
    """The first `steps` transitions; the episode in which they end is cut, as by a time limit.

    Every shard hands over whole episodes, a little more than its quota. Cutting each shard to size
    would leave a stump per shard, and leaving out the episodes that do not fit would favour short
    ones. So only the very end is cut, and the surplus of the shards falls off there.
    """
    kept, total = [], 0
    for episode in episodes:
        length = len(episode["rewards"])
        rest = steps - total
        if length > rest:
            episode = {key: value[:rest + 1] if key == "observations" else
                       value if key == "seed" else value[:rest].copy()
                       for key, value in episode.items()}
            episode["truncations"][-1] = True
            length = rest
        kept.append(episode)
        total += length
        if total == steps:
            return kept
    raise ValueError(f"{total} transitions, fewer than the {steps} wanted")


def data_sha256(episodes) -> str:
    """SHA-256 of the data: what two equal datasets share, however they are stored.

    Order: all observations (T+1 rows per episode) in the order of the episodes, then all actions,
    rewards, terminations, truncations; float32 little-endian, C order, and one byte per boolean.
    episodes: dicts as of `rollout`, or a list of Minari's EpisodeData.
    """
    digest = hashlib.sha256()
    for field in FIELDS:
        dtype = "?" if field in ("terminations", "truncations") else "<f4"
        for episode in episodes:
            value = episode[field] if isinstance(episode, dict) else getattr(episode, field)
            digest.update(np.ascontiguousarray(value, dtype).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# Storage: Minari, written aside and renamed into place
# ---------------------------------------------------------------------------------------------


def datasets_root() -> Path:
    """Folder of the local Minari datasets (MINARI_DATASETS_PATH, or ~/.minari/datasets).

    Raises SystemExit if it cannot be written.
    """
    from minari.storage import get_dataset_path

    try:
        root = get_dataset_path().resolve()
    except OSError as error:
        raise SystemExit(f"cannot make the folder of the Minari datasets: {error}. "
                         "Set MINARI_DATASETS_PATH to a folder you can write.")
    if not os.access(root, os.W_OK):
        raise SystemExit(f"cannot write to {root}. Set MINARI_DATASETS_PATH to another folder.")
    return root


def temporary_name() -> str:
    # A leading dot hides it from Minari's listing; host and process tell whose it is.
    return f".collect-{socket.gethostname()}-{os.getpid()}"


def remove_stale(root: Path) -> None:
    """Remove the temporary folders of runs that were killed on this machine."""
    for folder in root.glob(f".collect-{socket.gethostname()}-*"):
        pid = folder.name.rpartition("-")[2]
        try:
            os.kill(int(pid), 0)  # signal 0: only asks whether the process exists
            alive = int(pid) != os.getpid()
        except PermissionError:
            alive = True
        except (ProcessLookupError, ValueError):
            alive = False
        if not alive:
            shutil.rmtree(folder, ignore_errors=True)


def write_dataset(root: Path, dataset_id: str, recipe: Recipe, episodes: list[dict],
                  metadata: dict) -> None:
    """Store the episodes as the Minari dataset `dataset_id` below `root`, all or nothing.

    A writer of Minari's that is killed midway leaves a dataset that is listed, loads empty and
    blocks its id. So the dataset is written into a hidden folder of the same file system and
    renamed into place when it is complete; one in its way is replaced.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    temporary, namespace = root / temporary_name(), dataset_id.rpartition("/")[0]
    buffers = [EpisodeBuffer(**episode) for episode in episodes]
    try:
        # Minari warns of what we leave out on purpose: a link to the code, an e-mail address and
        # an environment for evaluation other than the dataset's own.
        with environment(MINARI_DATASETS_PATH=str(temporary)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                dataset_id, buffers, env=gym.spec(recipe.env_id), data_format="hdf5",
                algorithm_name=metadata["algorithm_name"], author="SOLO",
                description=metadata["description"], ref_min_score=recipe.ref_min,
                ref_max_score=recipe.ref_max)
            storage = MinariStorage.read(temporary / dataset_id / "data")
            storage.update_metadata(metadata)
        target = root / dataset_id
        with environment(MINARI_DATASETS_PATH=str(root)):
            if namespace not in list_local_namespaces():
                create_namespace(namespace)
        if target.exists():
            os.rename(target, temporary / "replaced")
        os.rename(temporary / dataset_id, target)
    except OSError as error:
        raise SystemExit(f"cannot write the dataset below {root}: {error}. Nothing was stored.")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


def find_recipe(name: str) -> str:
    """Key of RECIPES for a name or a full id. Raises SystemExit with the nearest names."""
    ids = {f"rebuilt/{recipe.dataset}-v0": key for key, recipe in RECIPES.items()}
    if name in RECIPES:
        return name
    if name in ids:
        return ids[name]
    near = difflib.get_close_matches(name, [*RECIPES, *ids], n=3, cutoff=0.4) or list(RECIPES)
    raise SystemExit(f"unknown dataset {name!r}. Did you mean {', '.join(near)}?")


def dataset_id(recipe: Recipe, steps: int) -> str:
    """Minari id: 1,000,000 transitions is D4RL's size and goes without saying."""
    for unit, suffix in ((1_000_000, "m"), (1_000, "k"), (1, "")):
        if steps % unit == 0:
            size = "" if steps == 1_000_000 else f"-{steps // unit}{suffix}"
            return f"rebuilt/{recipe.dataset}{size}-v0"


def load_behavior(recipe: Recipe, folder: Path) -> tuple[object, dict]:
    """The policy of a recipe and what is known of it: file, sha256, training command, scores.

    Raises SystemExit if the weights are missing, damaged or made for another environment.
    """
    env = make_envs(recipe.env_id, 1)[0]
    obs_dim = env.observation_space.shape[0]
    if recipe.behavior is None:
        policy = UniformPolicy(env.action_space.low, env.action_space.high, obs_dim)
        return policy, {"policy": "uniform random actions"}
    path = folder / f"{recipe.behavior}.npz"
    if not path.exists():
        raise SystemExit(f"the policy {path} is missing. Train one with "
                         "benchmarks/train_behavior.py and choose with "
                         "benchmarks/select_behavior.py (see benchmarks/behavior/README.md).")
    try:
        with np.load(path) as file:
            about = json.loads(str(file["about"])) if "about" in file else {}
            policy = SacPolicy({key: file[key] for key in file.files if key != "about"})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SystemExit(f"cannot read the policy {path}: {error}. Restore the file.")
    if (policy.obs_dim, policy.act_dim) != (obs_dim, env.action_space.shape[0]):
        raise SystemExit(f"{path} maps {policy.obs_dim} observations to {policy.act_dim} actions, "
                         f"{recipe.env_id} has {obs_dim} and {env.action_space.shape[0]}.")
    return policy, {"policy": "SAC, actions sampled", "file": path.name,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **about}


def git_commit() -> str:
    """Commit of this repository, with `-dirty` if tracked files were changed, or `unknown`."""
    run = lambda *words: subprocess.run(["git", "--no-optional-locks", *words], cwd=HERE, text=True,
                                        capture_output=True, check=True).stdout.strip()
    try:
        dirty = run("status", "--porcelain", "--untracked-files=no")
        return run("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def returns_and_lengths(episodes: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted return and number of transitions of each episode, two arrays (episodes,)."""
    return (np.array([e["rewards"].sum(dtype=np.float64) for e in episodes]),
            np.array([len(e["rewards"]) for e in episodes]))


def summary(metadata: dict, recipe: Recipe, place: Path) -> str:
    """What the set holds, beside D4RL's published figures, in a few lines of text."""
    mean, std = metadata["return_mean"], metadata["return_std"]
    normalized = 100 * (mean - recipe.ref_min) / (recipe.ref_max - recipe.ref_min)
    lines = [
        f"transitions       {metadata['total_steps']:,}",
        f"episodes          {metadata['total_episodes']:,}",
        f"return            {mean:.2f} +- {std:.2f}",
        f"length            {metadata['length_mean']:.1f} +- {metadata['length_std']:.1f}",
        f"normalized return {normalized:.2f}   (0: random policy, 100: expert, D4RL's references)"]
    if recipe.published:
        d4rl = recipe.published
        lines.append(f"D4RL's dataset    {d4rl.mean:.2f} +- {d4rl.std:.2f}, "
                     f"{d4rl.transitions:,} transitions, {d4rl.episodes:,} episodes, mean length "
                     f"{d4rl.transitions / d4rl.episodes:.1f}; "
                     f"ours deviates by {100 * (mean / d4rl.mean - 1):+.1f} % in return")
    lines += [f"data SHA-256      {metadata['data_sha256']}", f"stored in         {place}"]
    return "\n".join(lines)


def stored_metadata(place: Path) -> dict | None:
    """Raw metadata of the dataset in the folder; None if it is not one `collect` has completed."""
    try:
        metadata = json.loads((place / "data" / "metadata.json").read_text())
    except (OSError, ValueError):
        return None
    complete = "data_sha256" in metadata and (place / "data" / "main_data.hdf5").exists()
    return metadata if complete else None


def collect(name: str, steps: int = 1_000_000, workers: int | None = None, seed: int = 0,
            force: bool = False, behavior_dir: Path = HERE / "behavior",
            shard_steps: int = 25_000) -> dict:
    """Make the dataset, unless it exists, print its summary and return its metadata.

    Arguments as in `Args`; the dataset lies where Minari looks for local datasets.
    Raises SystemExit, with nothing written, if something is wrong with the arguments, the weights
    or the place.
    """
    clock = time.perf_counter()
    for option, value, least in (("--steps", steps, 1), ("--seed", seed, 0),
                                 ("--shard-steps", shard_steps, 1), ("--workers", workers, 1)):
        if value is not None and value < least:
            raise SystemExit(f"{option} {value}: must be at least {least}")
    key = find_recipe(name)
    recipe = RECIPES[key]
    quiet()
    policy, behavior = load_behavior(recipe, Path(behavior_dir))
    root, full_id = datasets_root(), dataset_id(recipe, steps)
    place = root / full_id
    remove_stale(root)

    if place.exists() and not force:
        there = stored_metadata(place)
        if there is None:
            raise SystemExit(f"{full_id} in {place} is incomplete or not made by this program; "
                             "--force replaces it.")
        wanted = {"seed": seed, "shard_steps": shard_steps, "behavior_sha256":
                  behavior.get("sha256", "")}
        for word, value in wanted.items():
            if there.get(word) != value:
                raise SystemExit(f"{full_id} exists with {word} {there.get(word)}, not {value}; "
                                 "--force replaces it.")
        print(f"{full_id} exists already (--force makes it again)\n"
              f"{summary(there, recipe, place)}")
        return there

    print(f"{full_id}: {steps:,} transitions of {recipe.env_id}, {behavior['policy']}", flush=True)
    episodes, cpu = simulate(recipe.env_id, policy, steps, seed, shard_steps, workers)
    # A cut episode's return says nothing of the policy; it counts only where there is no other.
    returns, lengths = returns_and_lengths(episodes[:-1] or episodes)
    command = ["python", "benchmarks/collect.py", key, "--steps", str(steps), "--seed", str(seed)]
    if shard_steps != Args.shard_steps:
        command += ["--shard-steps", str(shard_steps)]
    version = lambda package: getattr(sys.modules.get(package), "__version__", "unknown")
    metadata = {
        "algorithm_name": "uniform random" if recipe.behavior is None else "SAC",
        "description": f"{recipe.env_id}, collected by D4RL's recipe (arXiv 2004.07219): "
                       f"{behavior['policy']}, float32, episodes cut after "
                       f"{gym.spec(recipe.env_id).max_episode_steps} transitions.",
        "command": shlex.join(command), "seed": seed, "shard_steps": shard_steps,
        "behavior": behavior, "behavior_sha256": behavior.get("sha256", ""),
        "data_sha256": data_sha256(episodes),
        "return_mean": float(returns.mean()), "return_std": float(returns.std()),
        "length_mean": float(lengths.mean()), "length_std": float(lengths.std()),
        "mujoco_version": version("mujoco"), "gymnasium_version": gym.__version__,
        "numpy_version": np.__version__, "commit": git_commit()}
    simulated = time.perf_counter()
    write_dataset(root, full_id, recipe, episodes, metadata)
    metadata = stored_metadata(place)
    now = time.perf_counter()
    print(summary(metadata, recipe, place))
    print(f"wall time         {now - clock:.1f} s, {now - simulated:.1f} s of it writing; "
          f"{steps / (simulated - clock):,.0f} transitions/s, "
          f"{steps / cpu:,.0f} per second of CPU time")
    return metadata


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        collect(**vars(args))
    except KeyboardInterrupt:
        raise SystemExit("stopped; nothing was written")


if __name__ == "__main__":
    main()
