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
    python benchmarks/collect.py --env-id Pendulum-v1 --behavior random --steps 50000 \\
        --name local/pendulum/random-v0                         # your own environment

recipes.py lists the datasets and their behaviour policies. `medium-replay`, the replay buffer of a
training, is played again by snapshots of it: each acts for the stretch of the training it stands
for. `medium-expert` is half of one and half of the other, as in D4RL in this order.

Determinism. The work is split into shards of `--shard-steps` transitions, each with seeds of its
own, so the data are the same, bit for bit, for any number of workers, and a smaller set (of
medium-expert: each half) is the beginning of a larger one. Another CPU type or another version of
MuJoCo or NumPy may round differently: the SHA-256 printed at the end is a promise for the same
machine and versions only.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import tyro
from d4rl_policies import POLICIES, policy_file, read_ant
from recipes import RECIPES, Recipe, comparable, dataset_id, find_recipe, load_behavior
from tqdm import tqdm

# Episodes that run side by side in a shard. More of them share one policy forward, but more are
# thrown away unfinished at a shard's end; on Hopper-v4 4 to 16 are equally fast.
SLOTS = 8
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
HERE = Path(__file__).resolve().parent


@dataclass
class Args:
    recipe: Annotated[str | None, tyro.conf.Positional] = None
    """dataset, such as hopper-medium, or its id, such as rebuilt/hopper/medium-100k-v0"""
    env_id: str | None = None
    """instead of a dataset: any Gymnasium id (or module:id) with a time limit and vectors (Box)"""
    behavior: str | None = None
    """with --env-id: random, or the weight file (.npz, or D4RL's .pkl) of the policy that acts"""
    name: str | None = None
    """with --env-id: id of the dataset, such as local/pendulum/random-v0"""
    steps: int | None = None
    """transitions in the dataset (default: as many as D4RL's); another size joins the id"""
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


def act(env_id: str, policy, seed: list[int], steps: int) -> list[dict]:
    """Episodes of a policy in an environment, at least `steps` transitions (see `rollout`)."""
    return rollout(make_envs(env_id, SLOTS), policy, seed, steps=steps)


def run_shard(collector: Callable, seed: list[int], steps: int) -> tuple[list[dict], float]:
    """collector(seed, steps), the episodes of one shard, and the CPU seconds they took."""
    clock = time.process_time()
    episodes = collector(seed, steps)
    return episodes, time.process_time() - clock


def simulate(behaviors: list[list[tuple[Callable, int | None]]], steps: int, seed: int,
             shard_steps: int, workers: int | None) -> tuple[list[dict], float]:
    """Exactly `steps` transitions of episodes, and the CPU seconds they took.

    behaviors: each collects an equal share of the steps by its stages (collector, end), one after
    the other: a collector works until the behaviour has made `end` transitions, or to the end.
    """
    jobs, stage_of_job, ends = [], [], []
    for number, stages in enumerate(behaviors):
        first, last = (-(-steps * n // len(behaviors)) for n in (number, number + 1))
        shard, start = 0, first
        for collector, end in stages:
            stop = last if end is None else min(last, first + end)
            for quota in range(stop - start, 0, -shard_steps):
                jobs.append((collector, [seed, shard], min(shard_steps, quota)))
                stage_of_job.append(len(ends))
                shard += 1
            ends.append(stop)
            start = stop
    shards, cpu = [None] * len(jobs), 0.0
    with tqdm(total=steps, unit=" transitions", unit_scale=True, disable=None) as bar:
        for number, (episodes, seconds) in run_jobs(run_shard, jobs, workers):
            shards[number], cpu = episodes, cpu + seconds
            bar.update(min(sum(len(e["rewards"]) for e in episodes), bar.total - bar.n))
    by_stage: list[list[dict]] = [[] for _ in ends]
    for stage, episodes in zip(stage_of_job, shards):
        by_stage[stage] += episodes
    return assemble(by_stage, ends), cpu


def assemble(stages: list[list[dict]], ends: list[int]) -> list[dict]:
    """Episodes of the stages one after the other, exactly ends[-1] transitions.

    Stage k takes whole episodes until there are ends[k] transitions in all: as in a training, the
    episode in which a new policy takes over is not cut, and the next stage has the fewer.
    """
    kept, total = [], 0
    for episodes, end in zip(stages, ends):
        for episode in episodes:
            if total >= end:
                break
            kept.append(episode)
            total += len(episode["rewards"])
    return trim(kept, ends[-1])


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


def write_dataset(root: Path, dataset_id: str, stored: dict, episodes: list[dict],
                  metadata: dict, started: float) -> None:
    """Store the episodes as the Minari dataset `dataset_id` below `root`, all or nothing.

    stored: what Minari's function is to know of the environment.
    started: `time.perf_counter()` when the work began; the metadata get the seconds since then.

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
                dataset_id, buffers, **stored, data_format="hdf5", author="SOLO",
                algorithm_name=metadata["algorithm_name"], description=metadata["description"])
            storage = MinariStorage.read(temporary / dataset_id / "data")
            storage.update_metadata(metadata | {"wall_seconds": time.perf_counter() - started})
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
    lines = [
        f"transitions       {metadata['total_steps']:,}",
        f"episodes          {metadata['total_episodes']:,}",
        f"return            {mean:.2f} +- {std:.2f}",
        f"length            {metadata['length_mean']:.1f} +- {metadata['length_std']:.1f}"]
    if (reached := metadata.get("success")) is not None:
        lines.append(f"rewarded          {100 * reached:.1f} % of the episodes")
    elif recipe.ref_min is not None:
        normalized = 100 * (mean - recipe.ref_min) / (recipe.ref_max - recipe.ref_min)
        lines.append(f"normalized return {normalized:.2f}   (0: random policy, 100: expert, "
                     "D4RL's references)")
    if d4rl := comparable(recipe, metadata):
        lines.append(f"D4RL's dataset    {d4rl.mean:.2f} +- {d4rl.std:.2f}, "
                     f"{d4rl.transitions:,} transitions, {d4rl.episodes:,} episodes, mean length "
                     f"{d4rl.transitions / d4rl.episodes:.1f}; "
                     f"ours deviates by {100 * (mean / d4rl.mean - 1):+.1f} % in return")
    if recipe.note:
        lines.append(f"note              {recipe.note}")
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


def choose(args: Args) -> tuple[Recipe, str | None, int | None, list[str]]:
    """What the arguments ask for: recipe, id and steps (None: as the recipe has them), command.

    Raises SystemExit if they contradict one another or name what does not exist.
    """
    own = {"--env-id": args.env_id, "--behavior": args.behavior, "--name": args.name}
    if args.recipe is not None:
        if given := [option for option, value in own.items() if value is not None]:
            raise SystemExit(f"{', '.join(given)}: {args.recipe} has its own; leave one out")
        key, size = find_recipe(args.recipe)
        if size is not None and args.steps not in (None, size):
            raise SystemExit(f"--steps {args.steps}: {args.recipe} has {size}; leave one out")
        return RECIPES[key], None, args.steps or size, [key]
    if missing := [option for option, value in (own | {"--steps": args.steps}).items()
                   if value is None]:
        raise SystemExit("name a dataset, such as hopper-medium, or describe one of your own: "
                         f"{', '.join(missing)} missing")
    # por.py and its kind take `rebuilt/` for D4RL's tasks, and the first part for a folder
    if not re.fullmatch(r"(?!rebuilt/)[\w-]+(/[\w-]+)+-v\d+", args.name):
        raise SystemExit(f"--name {args.name}: must be like local/pendulum/random-v0, and rebuilt/ "
                         "is for D4RL's datasets")
    behavior = args.behavior if args.behavior == "random" else str(Path(args.behavior))
    recipe = Recipe(args.env_id, args.name, (behavior,), args.steps)
    return recipe, args.name, args.steps, list(itertools.chain(*own.items()))


def load_collectors(recipe: Recipe, source: str, folder: Path) -> tuple[list, dict]:
    """Stages (collector, end) of a behaviour of the recipe, as `simulate` wants them, and what is
    known of it (see recipes.load_behavior)."""
    if source != "maze":
        stages, about = load_behavior(source, recipe.env_id, folder)
        return [(functools.partial(act, recipe.env_id, policy), end)
                for policy, end in stages], about
    import mazes  # here: most datasets do without the imports that it needs

    key = recipe.dataset.replace("/", "-", 1)
    if key.startswith("pointmaze"):
        weights, about = None, {"policy": "waypoints and a PD controller, actions with noise"}
    else:
        path = policy_file("ant_hierarch_pol.pkl")
        weights = read_ant(path)
        about = {"policy": "D4RL's own goal-reaching ant from waypoint to waypoint, actions "
                           "sampled and with noise", "file": path.name,
                 "url": POLICIES[path.name][0], "made_by": "D4RL (arXiv 2004.07219)",
                 "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return [(functools.partial(mazes.collect_shard, key, weights), None)], about


def environment_of(recipe: Recipe) -> tuple[gym.envs.registration.EnvSpec, dict]:
    """The environment that scores policies trained on the recipe's data, and what Minari stores.

    An AntMaze is a class in a script, which cannot be stored: its dataset holds the spaces, and
    `env_id` in the metadata tells a script which of its environments is meant.
    """
    if recipe.behavior != ("maze",):
        spec = gym.spec(recipe.env_id.rpartition(":")[2])  # module:id was imported by `spaces`
        return spec, {"env": spec}
    import mazes

    spec = mazes.evaluation_spec(recipe.dataset.replace("/", "-", 1))
    env = gym.make(spec, disable_env_checker=True)
    stored = {"observation_space": gym.spaces.flatten_space(env.observation_space),
              "action_space": env.action_space}
    return spec, stored if isinstance(spec.entry_point, type) else stored | {"env": spec}


def collect(args: Args) -> dict:
    """Make the dataset, unless it exists, print its summary and return its metadata.

    The dataset lies where Minari looks for local datasets.
    Raises SystemExit, with nothing written, if something is wrong with the arguments, the weights
    or the place.
    """
    started = time.perf_counter()
    for option, value, least in (("--steps", args.steps, 1), ("--seed", args.seed, 0),
                                 ("--shard-steps", args.shard_steps, 1),
                                 ("--workers", args.workers, 1)):
        if value is not None and value < least:
            raise SystemExit(f"{option} {value}: must be at least {least}")
    recipe, full_id, steps, command = choose(args)
    quiet()
    behaviors, abouts = zip(*(load_collectors(recipe, source, args.behavior_dir)
                              for source in recipe.behavior))
    most = behaviors[0][-1][1]  # a bundle of snapshots knows when its training ended
    if most and steps and steps > most:
        raise SystemExit(f"--steps {steps}: the training behind {recipe.dataset} is stored up to "
                         f"its step {most}")
    steps = steps or min(recipe.steps, most or recipe.steps)
    spec, stored = environment_of(recipe)
    root, full_id = datasets_root(), full_id or dataset_id(recipe, steps)
    place = root / full_id
    remove_stale(root)
    sha256 = "+".join(about.get("sha256", "") for about in abouts)
    policy = ", then ".join(about["policy"] for about in abouts)

    if place.exists() and not args.force:
        there = stored_metadata(place)
        if there is None:
            raise SystemExit(f"{full_id} in {place} is incomplete or not made by this program; "
                             "--force replaces it.")
        wanted = {"seed": args.seed, "shard_steps": args.shard_steps, "behavior_sha256": sha256,
                  "total_steps": steps} | ({} if args.recipe else {"env_id": spec.id})
        for word, value in wanted.items():
            if there.get(word) != value:
                raise SystemExit(f"{full_id} exists with {word} {there.get(word)}, not {value}; "
                                 "--force replaces it.")
        print(f"{full_id} exists already (--force makes it again)\n"
              f"{summary(there, recipe, place)}")
        return there

    print(f"{full_id}: {steps:,} transitions of {recipe.env_id}, {policy}", flush=True)
    episodes, cpu = simulate(behaviors, steps, args.seed, args.shard_steps, args.workers)
    # A cut episode's return says nothing of the policy; it counts only where there is no other.
    returns, lengths = returns_and_lengths(episodes[:-1] or episodes)
    command += ["--steps", str(steps), "--seed", str(args.seed)]
    if args.shard_steps != Args.shard_steps:
        command += ["--shard-steps", str(args.shard_steps)]
    origin = "collected by D4RL's recipe (arXiv 2004.07219)" if args.recipe else "collected by SOLO"
    longest = int(lengths.max()) if recipe.behavior == ("maze",) else spec.max_episode_steps
    version = lambda package: getattr(sys.modules.get(package), "__version__", "unknown")
    simulated = time.perf_counter()
    metadata = {
        "algorithm_name": {"random": "uniform random", "maze": "waypoints"}.get(
            recipe.behavior[0], "SAC"),
        "description": f"{recipe.env_id}, {origin}: {policy}, float32, episodes cut after "
                       f"{longest} transitions. {recipe.note}".strip(),
        "command": shlex.join(["python", "benchmarks/collect.py", *command]), "seed": args.seed,
        "shard_steps": args.shard_steps, "env_id": spec.id,
        "behavior": abouts[0] if len(abouts) == 1 else {"policy": policy, "parts": abouts},
        "behavior_sha256": sha256, "data_sha256": data_sha256(episodes),
        "return_mean": float(returns.mean()), "return_std": float(returns.std()),
        "length_mean": float(lengths.mean()), "length_std": float(lengths.std()),
        "transitions_per_second": steps / (simulated - started),
        "mujoco_version": version("mujoco"), "gymnasium_version": gym.__version__,
        "numpy_version": np.__version__, "commit": git_commit()}
    if recipe.ref_min is not None:
        # not by Minari's function, which drops them where it stores no environment
        metadata |= {"ref_min_score": recipe.ref_min, "ref_max_score": recipe.ref_max}
    if recipe.behavior == ("maze",):
        metadata["success"] = float((returns > 0).mean())
    write_dataset(root, full_id, stored, episodes, metadata, started)
    metadata = stored_metadata(place)
    now = time.perf_counter()
    print(summary(metadata, recipe, place))
    print(f"wall time         {now - started:.1f} s, {now - simulated:.1f} s of it writing; "
          f"{steps / (simulated - started):,.0f} transitions/s, "
          f"{steps / cpu:,.0f} per second of CPU time")
    return metadata


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        collect(args)
    except KeyboardInterrupt:
        raise SystemExit("stopped; nothing was written")


if __name__ == "__main__":
    main()
