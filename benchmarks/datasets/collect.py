"""Rebuild a dataset by D4RL's recipe: a policy acts, and what happens is a local Minari dataset.

D4RL (Fu et al. 2020, arXiv 2004.07219) lets a fixed policy act and writes down what happens. Its
`medium` policy is a SAC agent that was stopped at about a third of the expert's return. Here a SAC
agent of our own does the same, so that a dataset is a command and a small weight file.

A policy of the wanted level acts by sampling, a = tanh(mean + std * noise), in the `-v4`
environments of Gymnasium. An episode ends where the environment terminates it, or is cut after
`max_episode_steps`, which is a truncation. The set has exactly `--steps` transitions, for which its
last episode is cut. All numbers are float32, as in D4RL. An episode of T transitions has T + 1
observations, T actions, T rewards, T terminations and T truncations.

    python -m benchmarks.datasets.collect hopper-medium                  # rebuilt/hopper/medium-v0
    python -m benchmarks.datasets.collect hopper-medium --steps 100000   # .../medium-100k-v0
    python -m benchmarks.datasets.collect --env-id Pendulum-v1 --behavior random --steps 50000 \\
        --name local/pendulum/random-v0                                  # your own environment
    python -m benchmarks.datasets.collect --env-id CartPole-v1 --behavior runs/dqn-cartpole \\
        --steps 50000 --name local/cartpole/dqn-v0                       # discrete actions

`python -m benchmarks.datasets.recipes` lists the datasets and their policies. `medium-replay`, the
replay buffer of a training, is played again by snapshots of it: each acts for the stretch of the
training for which it stands. `medium-expert` is half of one and half of the other, in this order.

The work is divided into shards of `--shard-steps` transitions, each with its own seeds. So the data
are the same, bit for bit, for any number of workers, and a smaller set (of medium-expert: each
half) is the beginning of a larger one. Another type of CPU or another version of MuJoCo or NumPy
may round differently: the SHA-256 at the end holds for the same machine and versions only.
"""

import functools
import hashlib
import re
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import mujoco
import numpy as np
import tyro

from benchmarks.common import git_commit
from benchmarks.datasets.d4rl_policies import POLICIES, policy_file, read_ant
from benchmarks.datasets.policies import BEHAVIOR, load_behavior
from benchmarks.datasets.recipes import RECIPES, Recipe, comparable, dataset_id, find_recipe
from benchmarks.datasets.rollout import Stage, act, quiet, returns_and_lengths, simulate
from benchmarks.datasets.storage import (
    bring_back,
    data_sha256,
    datasets_root,
    stored_metadata,
    write_dataset,
)


@dataclass
class Args:
    recipe: Annotated[str | None, tyro.conf.Positional] = None
    """dataset, such as hopper-medium, or its id, such as rebuilt/hopper/medium-100k-v0"""
    env_id: str | None = None
    """instead of a dataset: any Gymnasium id (or module:id) with a time limit, whose observations
    are vectors (Box), and whose actions are vectors or Discrete"""
    behavior: str | None = None
    """with --env-id: random, or the weight file (.npz, or D4RL's .pkl) of the policy that acts; for
    Discrete actions the run folder of a DQN, which discrete_bcq.py --threshold 0 trains; for others
    the run folder of td3.py or ddpg.py"""
    noise: float = 0.0
    """with a run folder of td3.py or ddpg.py: deviation of the Gaussian noise on the policy's
    actions, relative to half their range"""
    name: str | None = None
    """with --env-id: id of the dataset, such as local/pendulum/random-v0"""
    steps: int | None = None
    """transitions in the dataset (default: as many as D4RL's); another size joins the id"""
    workers: int | None = None
    """processes that simulate (default: one per core); the data do not depend on it"""
    seed: int = 0
    """seed of start states and actions"""
    force: bool = False
    """replace the dataset if it exists; it is kept until the new one is complete"""
    behavior_dir: Path = BEHAVIOR
    """folder of the policies' weights"""
    shard_steps: int = 25_000
    """transitions of a shard, the unit of work of a process; another value gives other data"""


@dataclass
class Job:
    """A dataset that is to be made."""

    recipe: Recipe
    dataset_id: str
    steps: int
    behaviors: list[list[Stage]]
    abouts: list[dict]  # what is known of each behaviour
    spec: gym.envs.registration.EnvSpec  # environment that scores policies trained on the data
    stored: dict  # what Minari is to know of the environment

    @property
    def policy(self) -> str:
        return ", then ".join(about["policy"] for about in self.abouts)

    @property
    def sha256(self) -> str:
        return "+".join(about.get("sha256", "") for about in self.abouts)


def check_numbers(args: Args) -> None:
    """Refuse numbers that are too small."""
    limits = {"steps": 1, "noise": 0, "seed": 0, "shard_steps": 1, "workers": 1}
    for name, least in limits.items():
        value = getattr(args, name)
        if value is not None and value < least:
            sys.exit(f"--{name.replace('_', '-')} {value}: must be at least {least}")


def choose_recipe(args: Args) -> tuple[Recipe, int | None]:
    """Return the recipe that the arguments name or describe, and the size if they name one."""
    own = {"--env-id": args.env_id, "--behavior": args.behavior, "--name": args.name}
    if args.noise > 0:
        own["--noise"] = args.noise
    given = [option for option, value in own.items() if value is not None]
    if args.recipe is None:
        return own_recipe(args), args.steps
    if given:
        sys.exit(f"{', '.join(given)}: {args.recipe} has its own; leave one out")
    key, size = find_recipe(args.recipe)
    if size is not None and args.steps not in (None, size):
        sys.exit(f"--steps {args.steps}: {args.recipe} has {size}; leave one out")
    return RECIPES[key], args.steps or size


def own_recipe(args: Args) -> Recipe:
    """Return the recipe of a dataset of the user's own."""
    needed = ("env_id", "behavior", "name", "steps")
    missing = [name for name in needed if getattr(args, name) is None]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        sys.exit(
            f"name a dataset, such as hopper-medium, or describe one of your own: {options} missing"
        )
    # The scripts take rebuilt/ for D4RL's tasks.
    if not re.fullmatch(r"(?!rebuilt/)[\w-]+(/[\w-]+)+-v\d+", args.name):
        sys.exit(f"--name {args.name}: it must be like local/pendulum/random-v0, not in rebuilt/")
    return Recipe(args.name, args.env_id, (args.behavior,), args.steps)


def prepare(args: Args) -> Job:
    """Load all that is needed for the dataset which the arguments ask for."""
    check_numbers(args)
    recipe, steps = choose_recipe(args)
    behaviors, abouts = [], []
    for source in recipe.behavior:
        stages, about = load_stages(recipe, source, args.behavior_dir, args.noise)
        behaviors.append(stages)
        abouts.append(about)
    longest = behaviors[0][-1].end  # a bundle of snapshots knows when its training ended
    if longest is not None and steps is not None and steps > longest:
        sys.exit(
            f"--steps {steps}: the training behind {recipe.dataset} is stored up to its step "
            f"{longest}"
        )
    if steps is None:
        steps = recipe.steps if longest is None else min(recipe.steps, longest)
    full_id = args.name or dataset_id(recipe, steps)
    spec, stored = environment_of(recipe)
    return Job(recipe, full_id, steps, behaviors, abouts, spec, stored)


def load_stages(
    recipe: Recipe, source: str, folder: Path, noise: float = 0.0
) -> tuple[list[Stage], dict]:
    """Return the stages of a behaviour of the recipe, and what is known of it."""
    if source == "maze":
        return load_maze_stages(recipe)
    if source == "ball":
        from benchmarks.datasets import balls  # other datasets do without PyTorch

        return [Stage(functools.partial(balls.collect_shard, recipe.env_id), None)], balls.ABOUT
    stages = []
    policies, about = load_behavior(source, recipe.env_id, folder, noise)
    for policy, end in policies:
        stages.append(Stage(functools.partial(act, recipe.env_id, policy), end))
    return stages, about


def load_maze_stages(recipe: Recipe) -> tuple[list[Stage], dict]:
    """Return the only stage of a way through a maze, and what is known of it."""
    from benchmarks.datasets import mazes  # other datasets do without PyTorch, which it imports

    if recipe.name.startswith("pointmaze"):
        weights = None
        about = {"policy": "waypoints and a PD controller, actions with noise"}
    else:
        path = policy_file("ant_hierarch_pol.pkl")
        weights = read_ant(path)
        about = {
            "policy": "D4RL's own goal-reaching ant from waypoint to waypoint, actions sampled and "
            "with noise",
            "file": path.name,
            "url": POLICIES[path.name][0],
            "made_by": "D4RL (arXiv 2004.07219)",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    collector = functools.partial(mazes.collect_shard, recipe.name, weights)
    return [Stage(collector, None)], about


def environment_of(recipe: Recipe) -> tuple[gym.envs.registration.EnvSpec, dict]:
    """Return the environment that scores policies, and what Minari is to know of it."""
    if recipe.behavior != ("maze",):
        module, _, env_id = recipe.env_id.rpartition(":")  # the module is imported by now
        spec = gym.spec(env_id)
        if module and isinstance(spec.entry_point, type):
            # Scripts register the class itself, which cannot be written into a file.
            spec = replace(spec, entry_point=f"{module}:{spec.entry_point.__name__}")
        return spec, {"env": spec}
    from benchmarks.datasets import mazes

    spec = mazes.evaluation_spec(recipe.name)
    env = gym.make(spec, disable_env_checker=True)
    flat = gym.spaces.flatten_space(env.observation_space)
    return spec, {"env": spec, "observation_space": flat, "action_space": env.action_space}


def describe(args: Args, job: Job, episodes: list[dict]) -> dict:
    """Return the metadata of a dataset."""
    recipe = job.recipe
    maze = recipe.behavior == ("maze",)
    # The return of the episode that was cut says nothing of the policy, unless there is no other.
    returns, lengths = returns_and_lengths(episodes[:-1] or episodes)
    longest = int(lengths.max()) if maze else job.spec.max_episode_steps
    origin = "collected by SOLO"
    if args.recipe is not None:
        origin = "collected by D4RL's recipe (arXiv 2004.07219)"
    description = f"{job.spec.id}, {origin}: {job.policy}, float32, episodes cut after {longest} "
    description += f"transitions. {recipe.note}"
    if recipe.behavior == ("random",):
        algorithm = "uniform random"
    else:
        algorithm = "waypoints" if maze else job.abouts[0].get("algorithm", "SAC")
    metadata = {
        "algorithm_name": algorithm,
        "description": description.strip(),
        "command": command(args, job),
        "seed": args.seed,
        "shard_steps": args.shard_steps,
        "env_id": job.spec.id,
        "behavior": job.abouts[0],
        "behavior_sha256": job.sha256,
        "data_sha256": data_sha256(episodes),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "length_mean": float(lengths.mean()),
        "length_std": float(lengths.std()),
        "mujoco_version": mujoco.__version__,
        "gymnasium_version": gym.__version__,
        "numpy_version": np.__version__,
        "commit": git_commit(),
    }
    if len(job.abouts) > 1:
        metadata["behavior"] = {"policy": job.policy, "parts": job.abouts}
    if recipe.ref_min is not None:
        metadata["ref_min_score"] = recipe.ref_min
        metadata["ref_max_score"] = recipe.ref_max
    if maze:
        metadata["success"] = float((returns > 0).mean())
    return metadata


def command(args: Args, job: Job) -> str:
    """Return the command that makes the same dataset."""
    words = ["python", "-m", "benchmarks.datasets.collect"]
    if args.recipe is None:
        words += ["--env-id", args.env_id, "--behavior", args.behavior, "--name", args.name]
    else:
        words.append(job.recipe.name)
    words += ["--steps", str(job.steps), "--seed", str(args.seed)]
    if args.noise > 0:
        words += ["--noise", str(args.noise)]
    if args.shard_steps != Args.shard_steps:
        words += ["--shard-steps", str(args.shard_steps)]
    return shlex.join(words)


def summary(metadata: dict, recipe: Recipe, place: Path) -> str:
    """Return in a few lines what the set holds, beside D4RL's published figures."""
    mean = metadata["return_mean"]
    lines = [
        f"transitions       {metadata['total_steps']:,}",
        f"episodes          {metadata['total_episodes']:,}",
        f"return            {mean:.2f} +- {metadata['return_std']:.2f}",
        f"length            {metadata['length_mean']:.1f} +- {metadata['length_std']:.1f}",
    ]
    if "success" in metadata:
        lines.append(f"rewarded          {100 * metadata['success']:.1f} % of the episodes")
    elif recipe.ref_min is not None:
        score = 100 * (mean - recipe.ref_min) / (recipe.ref_max - recipe.ref_min)
        lines.append(f"normalized score  {score:.2f}   (0: random policy, 100: expert)")
    d4rl = comparable(recipe, metadata)
    if d4rl is not None:
        lines.append(
            f"D4RL's dataset    {d4rl.mean:.2f} +- {d4rl.std:.2f}, {d4rl.transitions:,} "
            f"transitions, {d4rl.episodes:,} episodes, mean length "
            f"{d4rl.transitions / d4rl.episodes:.1f}; ours deviates by "
            f"{100 * (mean / d4rl.mean - 1):+.1f} % in return"
        )
    if recipe.note:
        lines.append(f"note              {recipe.note}")
    lines.append(f"data SHA-256      {metadata['data_sha256']}")
    lines.append(f"stored in         {place}")
    return "\n".join(lines)


def check_existing(args: Args, job: Job, place: Path) -> dict:
    """Return the metadata of the dataset that is there, if it is the one that is asked for."""
    metadata = stored_metadata(place)
    if metadata is None:
        sys.exit(
            f"{job.dataset_id} in {place} is incomplete or not made by this program; --force "
            "replaces it"
        )
    wanted = {
        "seed": args.seed,
        "shard_steps": args.shard_steps,
        "behavior_sha256": job.sha256,
        "total_steps": job.steps,
        "env_id": job.spec.id,
    }
    for key, value in wanted.items():
        if metadata.get(key) != value:
            sys.exit(
                f"{job.dataset_id} exists with {key} {metadata.get(key)}, not {value}; --force "
                "replaces it"
            )
    return metadata


def collect(args: Args) -> dict:
    """Make the dataset, unless it exists, print its summary and return its metadata."""
    started = time.perf_counter()
    quiet()
    job = prepare(args)
    root = datasets_root()
    place = root / job.dataset_id
    bring_back(place)
    if place.exists() and not args.force:
        metadata = check_existing(args, job, place)
        print(f"{job.dataset_id} exists already (--force makes it again)")
        print(summary(metadata, job.recipe, place))
        return metadata

    print(f"{job.dataset_id}: {job.steps:,} transitions of {job.spec.id}, {job.policy}")
    sys.stdout.flush()
    episodes, cpu_seconds = simulate(
        job.behaviors, job.steps, args.seed, args.shard_steps, args.workers
    )
    seconds = time.perf_counter() - started
    metadata = describe(args, job, episodes)
    metadata["transitions_per_second"] = job.steps / seconds
    write_dataset(root, job.dataset_id, job.stored, episodes, metadata)
    metadata = stored_metadata(place)
    print(summary(metadata, job.recipe, place))
    print(
        f"wall time         {time.perf_counter() - started:.1f} s, {seconds:.1f} s of it simulating"
        f"; {job.steps / seconds:,.0f} transitions/s, {job.steps / cpu_seconds:,.0f} per second of "
        "CPU time"
    )
    return metadata


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        collect(args)
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")


if __name__ == "__main__":
    main()
