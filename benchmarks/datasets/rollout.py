"""Let policies act in environments: which episodes are kept, and how processes share the work."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from tqdm import tqdm

# Episodes that run side by side in a shard. More of them share one forward pass of the policy, but
# more are thrown away unfinished at the shard's end. On Hopper-v4, 4 to 16 are equally fast.
SLOTS = 8
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
WORKER_DIED = (
    "a worker process died (killed, or out of memory); nothing was written; run the same command "
    "again, with fewer --workers"
)
ENVS: dict[str, list] = {}  # environments of this process, see make_envs()


class Rollout:
    """Episodes 0, 1, 2, ... of a seeded sequence, several of them side by side.

    Episode j is drawn from the seed [*seed, j] alone: its start state and its noise. Every
    environment is a slot that takes the next episode when its own has ended. The policy acts in all
    slots at once.

    Which episodes are kept must not depend on how long they took. To keep whatever is finished
    first would favour short episodes, because the long ones are still running when there are
    enough. So the result is the shortest beginning 0, 1, 2, ... of the sequence that is long
    enough, and whatever runs beyond it is dropped. The episode that crosses the quota stays in: the
    number of episodes is then a stopping time, and by Wald's identity their summed length (or
    return) is on average the true mean times their number. Leaving it out would favour short ones.
    """

    def __init__(self, envs: list, policy, seed: list[int], steps: int, episodes: int):
        slots = len(envs)
        limit = envs[0].spec.max_episode_steps
        action_space = envs[0].action_space
        discrete = isinstance(action_space, gym.spaces.Discrete)
        action_type = np.int64 if discrete else np.float32
        self.envs = envs
        self.policy = policy
        self.seed = seed
        self.steps = steps
        self.episodes = episodes
        self.rows = np.arange(slots)
        self.observations = np.zeros((slots, limit + 1, policy.obs_dim), np.float32)
        # The noise of a policy has the form of an action.
        self.actions = np.zeros((slots, limit, *action_space.shape), action_type)
        self.noise = np.zeros_like(self.actions)
        self.rewards = np.zeros((slots, limit), np.float32)
        self.lengths = np.zeros(slots, int)  # transitions so far of the episode in the slot
        self.numbers: list[int | None] = [None] * slots  # of the episodes in the slots; None: idle
        self.env_seeds: list[int] = []  # one for each episode that has begun
        self.finished: dict[int, dict] = {}

    def run(self) -> list[dict]:
        """Return the episodes that are kept, in order."""
        for slot in self.rows:
            self.begin_episode(slot)
        while True:
            # Idle slots stay in the batch: with one fixed shape, the result of a row does not
            # depend on how many others are at work.
            actions = self.policy(
                self.observations[self.rows, self.lengths], self.noise[self.rows, self.lengths]
            )
            for slot in self.rows:
                if self.numbers[slot] is None:
                    continue
                if not self.step(slot, actions[slot]):
                    continue
                needed = self.episodes_needed()
                if needed is None:
                    self.begin_episode(slot)
                    continue
                self.drop_from(needed)
                if all(number in self.finished for number in range(needed)):
                    return [self.finished[number] for number in range(needed)]

    def begin_episode(self, slot: int) -> None:
        """Put the next episode of the sequence into a slot."""
        number = len(self.env_seeds)
        sequence = np.random.SeedSequence([*self.seed, number])
        env_seed = int(sequence.generate_state(1)[0])
        rng = np.random.default_rng(sequence.spawn(1)[0])
        self.env_seeds.append(env_seed)
        self.numbers[slot] = number
        self.lengths[slot] = 0
        self.observations[slot, 0], _ = self.envs[slot].reset(seed=env_seed)
        self.noise[slot] = self.policy.draw(rng, self.noise.shape[1])

    def step(self, slot: int, action: np.ndarray) -> bool:
        """Take an action in a slot. Return whether its episode has ended, which is then stored."""
        t = self.lengths[slot]
        observation, reward, terminated, truncated, _ = self.envs[slot].step(action)
        self.actions[slot, t] = action
        self.rewards[slot, t] = reward
        self.observations[slot, t + 1] = observation
        self.lengths[slot] += 1
        if not (terminated or truncated):
            return False
        length = self.lengths[slot]
        terminations = np.zeros(length, bool)
        truncations = np.zeros(length, bool)
        terminations[-1] = terminated
        truncations[-1] = not terminated
        number = self.numbers[slot]
        self.finished[number] = {
            "observations": self.observations[slot, : length + 1].copy(),
            "actions": self.actions[slot, :length].copy(),
            "rewards": self.rewards[slot, :length].copy(),
            "terminations": terminations,
            "truncations": truncations,
            "seed": self.env_seeds[number],
        }
        self.numbers[slot] = None
        self.lengths[slot] = 0
        return True

    def episodes_needed(self) -> int | None:
        """Return how many episodes are enough, or None if not even those that run now are."""
        lengths = {number: len(episode["rewards"]) for number, episode in self.finished.items()}
        for slot, number in enumerate(self.numbers):
            if number is not None:
                lengths[number] = self.lengths[slot]
        total = 0
        for number in range(len(self.env_seeds) + 1):
            if number >= self.episodes and total >= self.steps:
                return number
            total += lengths.get(number, 0)
        return None

    def drop_from(self, needed: int) -> None:
        """Stop the episodes from that number on for good: those before it can only grow."""
        for slot, number in enumerate(self.numbers):
            if number is not None and number >= needed:
                self.numbers[slot] = None
                self.lengths[slot] = 0
        del self.env_seeds[needed:]


def rollout(envs: list, policy, seed: list[int], steps: int = 0, episodes: int = 1) -> list[dict]:
    """Return the first episodes of a seeded sequence (see Rollout).

    They have at least `steps` transitions, and there are at least `episodes` of them. The
    environments are of one kind, with a time limit, vectors of observations, and vectors of actions
    or discrete ones.

    An episode is a dict of observations (T + 1, obs_dim), actions (T, act_dim) and rewards (T,),
    all float32, terminations and truncations (T,), bool, and the seed that was given to
    `env.reset`. Discrete actions are (T,), int64.
    """
    return Rollout(envs, policy, seed, steps, episodes).run()


def returns_and_lengths(episodes: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return the undiscounted return and the number of transitions of each episode."""
    returns = [episode["rewards"].sum(dtype=np.float64) for episode in episodes]
    lengths = [len(episode["rewards"]) for episode in episodes]
    return np.array(returns), np.array(lengths)


def make_envs(env_id: str, count: int) -> list:
    """Return environments of this process, which are made once and used again."""
    envs = ENVS.setdefault(env_id, [])
    while len(envs) < count:
        envs.append(gym.make(env_id, disable_env_checker=True))
    return envs[:count]


def act(env_id: str, policy, seed: list[int], steps: int) -> list[dict]:
    """Return episodes of a policy in an environment, at least `steps` transitions."""
    return rollout(make_envs(env_id, SLOTS), policy, seed, steps=steps)


# --------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------


def quiet() -> None:
    """Silence the notes about v4 environments, which are meant, and MuJoCo's log file."""
    gym.logger.min_level = gym.logger.ERROR
    # Without a handler, MuJoCo writes its warnings into the current folder.
    mujoco.set_mju_user_warning(lambda message: None)


def end_with_parent() -> None:
    """Wait for the end of the parent, and end with it."""
    multiprocessing.parent_process().join()
    os._exit(1)


def start_worker() -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()
    quiet()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let processes that begin here compute with one thread each.

    The number of threads may change the last bit of a matrix product. It must be set before NumPy
    is loaded, which is why even a single worker is a process of its own.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_jobs(
    function: Callable, jobs: list[tuple], workers: int | None, if_one_dies: str = WORKER_DIED
) -> Iterator[tuple]:
    """Yield (number of the job, function(*job)) as the jobs finish, in `workers` processes."""
    context = multiprocessing.get_context("spawn")
    count = min(workers or available_cores(), len(jobs))
    with single_threaded():
        pool = ProcessPoolExecutor(count, context, start_worker)
        try:
            futures = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            sys.exit(if_one_dies)
        finally:
            pool.shutdown(cancel_futures=True)


# --------------------------------------------------------------------------------------------------
# Exactly so many transitions
# --------------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A part of a behaviour."""

    collector: Callable  # (seed, steps) -> whole episodes of at least so many steps
    end: int | None  # transition of the behaviour at which the next stage begins; None: no limit


class Shard(NamedTuple):
    """The unit of work of a process."""

    collector: Callable
    seed: list[int]
    steps: int


def run_shard(shard: Shard) -> tuple[list[dict], float]:
    """Return the episodes of a shard, and the CPU seconds that they took."""
    clock = time.process_time()
    episodes = shard.collector(shard.seed, shard.steps)
    return episodes, time.process_time() - clock


def simulate(
    behaviors: list[list[Stage]], steps: int, seed: int, shard_steps: int, workers: int | None
) -> tuple[list[dict], float]:
    """Return episodes of exactly `steps` transitions, and the CPU seconds that they took.

    The behaviours follow one another, and each makes an equal share of the transitions.
    """
    shards, stage_of_shard, ends = plan(behaviors, steps, seed, shard_steps)
    results = [None] * len(shards)
    cpu_seconds = 0.0
    with tqdm(total=steps, unit=" transitions", unit_scale=True, disable=None) as bar:
        for number, (episodes, seconds) in run_jobs(run_shard, [(s,) for s in shards], workers):
            results[number] = episodes
            cpu_seconds += seconds
            done = sum(len(episode["rewards"]) for episode in episodes)
            bar.update(min(done, bar.total - bar.n))
    by_stage = [[] for _ in ends]
    for stage, episodes in zip(stage_of_shard, results, strict=True):
        by_stage[stage] += episodes
    return assemble(by_stage, ends), cpu_seconds


def plan(
    behaviors: list[list[Stage]], steps: int, seed: int, shard_steps: int
) -> tuple[list[Shard], list[int], list[int]]:
    """Divide the work. Return the shards, the stage of each, and where each stage ends."""
    shards, stage_of_shard, ends = [], [], []
    share = steps / len(behaviors)
    for number, stages in enumerate(behaviors):
        first = int(np.ceil(share * number))
        last = int(np.ceil(share * (number + 1)))
        start = first
        shards_of_behavior = 0
        for stage in stages:
            stop = last if stage.end is None else min(last, first + stage.end)
            for quota in range(stop - start, 0, -shard_steps):
                shard_seed = [seed, shards_of_behavior]
                shards.append(Shard(stage.collector, shard_seed, min(shard_steps, quota)))
                stage_of_shard.append(len(ends))
                shards_of_behavior += 1
            ends.append(stop)
            start = stop
    return shards, stage_of_shard, ends


def assemble(stages: list[list[dict]], ends: list[int]) -> list[dict]:
    """Put the episodes of the stages one after the other, exactly ends[-1] transitions.

    A stage takes whole episodes until its end is reached. As in a training, the episode in which a
    new policy takes over is not cut, and the next stage has the fewer.
    """
    kept = []
    total = 0
    for episodes, end in zip(stages, ends, strict=True):
        for episode in episodes:
            if total >= end:
                break
            kept.append(episode)
            total += len(episode["rewards"])
    return trim(kept, ends[-1])


def trim(episodes: list[dict], steps: int) -> list[dict]:
    """Return the first `steps` transitions. The last episode is cut, as by a time limit.

    Every shard hands over whole episodes, a little more than its quota. To cut each shard to size
    would leave a stump per shard, and to leave out the episodes that do not fit would favour short
    ones. So only the very end is cut, and the surplus of the shards falls off there.
    """
    kept = []
    total = 0
    for episode in episodes:
        missing = steps - total
        if len(episode["rewards"]) > missing:
            episode = cut_episode(episode, missing)
        kept.append(episode)
        total += len(episode["rewards"])
        if total == steps:
            return kept
    raise ValueError(f"there are {total} transitions, fewer than the {steps} wanted")


def cut_episode(episode: dict, length: int) -> dict:
    """Return the first transitions of an episode."""
    cut = {"observations": episode["observations"][: length + 1], "seed": episode["seed"]}
    for key in FIELDS[1:]:
        cut[key] = episode[key][:length].copy()
    cut["truncations"][-1] = True
    return cut
