"""Bundle snapshots of a training into the behaviour of a medium-replay dataset.

D4RL's medium-replay is the replay buffer of the training that reached medium: all that the learner
did from its first step on. To train anew takes hours, and the buffer is too large to be kept in a
repository. So a few of the policies that filled it are kept. After the learner's random first
steps, the training is cut into equal stretches, and one snapshot acts in the place of each, for as
many steps (collect.py). Of the `--candidates` nearest to the middle of the stretch, it is the one
whose mean return is nearest to that of the episodes that the learner began there. The middle one
alone would do in most stretches, but SAC's policies stumble now and then for a thousand steps.

What is lost: within a stretch the learner changed with every step, its snapshot does not. So good
and bad phases that are shorter than a stretch are missed or spread. How far the result is from what
the learner really did is measured against its own replay buffer, and stands in behavior/README.md.

    python -m benchmarks.datasets.bundle_replay runs/sac-hopper --steps 402000 \\
        --medium benchmarks/datasets/behavior/hopper-medium.npz

The bundle ends at `--steps`, the size of D4RL's set, or where the training reached medium, if that
is sooner. `python -m benchmarks.datasets.select_behavior ... --replay-steps` does it, too.
"""

import functools
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.datasets.behavior_page import write_weights
from benchmarks.datasets.measure import measure_policies, score_of
from benchmarks.datasets.policies import (
    NoisyPolicy,
    SacPolicy,
    UniformPolicy,
    make_policy,
    read_weights,
    spaces,
)
from benchmarks.datasets.rollout import Stage, act, quiet, returns_and_lengths, simulate
from benchmarks.datasets.trainings import Training, load_trainings

HALF_SEED, CHECK_SEED, CHOICE_SEED = 4, 5, 7  # of the measurements; select_behavior.py has 1 to 3
SHARD_STEPS = 25_000  # of the bundle that is played again
MAX_STANDARD_ERRORS = 3  # by which half precision may change the mean return: chance, one in 400


@dataclass
class Args:
    run: Annotated[Path, tyro.conf.Positional]
    """run folder of the training that reached medium; which of its agents did is found out"""
    medium: Path
    """weight file that select_behavior.py chose from this training; the bundle lies beside it"""
    steps: int
    """transitions of D4RL's medium-replay set"""
    snapshots: int = 10
    """policies in the bundle"""
    candidates: int = 5
    """snapshots of a stretch that are measured"""
    episodes: int = 20
    """episodes by which a snapshot is measured in single and in half precision"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


@dataclass
class Bundle:
    """The stretches of a training, and the snapshots that act in them."""

    env_id: str
    training: Training
    ends: list[int]  # steps at which the random actions and the stretches end, (K + 1,)
    candidates: list[list[int]]  # snapshots of each stretch, (K,)
    buffer: dict[str, np.ndarray]  # what the learner did
    members: list[int]  # the chosen snapshots, (K,)
    weights: dict[int, dict[str, np.ndarray]]  # of the members, in the precision that is stored

    def policy(self, weights: dict) -> SacPolicy | NoisyPolicy:
        _, action_space = spaces(self.env_id)
        return make_policy(weights, action_space.low, action_space.high)


def stretches(
    steps: list[int], random_steps: int, end: int, count: int, candidates: int
) -> tuple[list[int], list[list[int]]]:
    """Return where the stretches end, the random one first, and the candidates of each but that.

    There are snapshots at `steps`. Candidates are those inside a stretch, the nearest to its middle
    first, or the nearest one.
    """
    ends = np.linspace(random_steps, end, count + 1).round().astype(int).tolist()
    chosen = []
    for first, last in pairwise(ends):
        middle = (first + last) / 2
        near = sorted(steps, key=lambda step, middle=middle: abs(step - middle))
        inside = [step for step in near if first < step <= last]
        chosen.append(inside[:candidates] or near[:1])
    return ends, chosen


def buffer_episodes(buffer: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return returns, lengths and first steps of a buffer's complete episodes, (episodes,) each.

    An episode also ends where the next row begins elsewhere: at the time limit, or at a restart.
    """
    jumps = (buffer["next_observations"][:-1] != buffer["observations"][1:]).any(-1)
    last = np.flatnonzero((buffer["terminals"][:-1] > 0) | jumps)
    first = np.concatenate([[0], last[:-1] + 1])
    total = np.concatenate([[0.0], np.cumsum(buffer["rewards"], dtype=np.float64)])
    return total[last + 1] - total[first], last + 1 - first, first


def check_args(args: Args) -> None:
    if not args.medium.name.endswith("-medium.npz"):
        sys.exit(
            f"--medium {args.medium}: must be a file of select_behavior.py, called ...-medium.npz"
        )
    for name in ("steps", "snapshots", "candidates", "episodes", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            sys.exit(f"--{name} {value}: must be at least 1")


def find_training(args: Args, weights: dict, about: dict) -> Training:
    """Return the training of the run to which the medium policy belongs."""
    step = about["step"]
    for training in load_trainings(args.run, about["env_id"]):
        snapshot = training.snapshots.get(step)
        if snapshot is not None and all(
            np.array_equal(snapshot[name], weights[name]) for name in weights
        ):
            return training
    sys.exit(
        f"{args.medium} is no snapshot of {args.run}; name the training that reached medium: "
        f"{about.get('training_command', 'unknown')}"
    )


def plan_bundle(args: Args, weights: dict, about: dict) -> Bundle:
    """Find the training and cut it into stretches."""
    training = find_training(args, weights, about)
    random_steps = training.random_steps
    end = min(args.steps, about["step"])
    if end <= random_steps:
        sys.exit(
            f"medium was reached at step {end}, within the {random_steps} random steps; there is "
            "nothing to bundle"
        )
    available = [step for step in training.snapshots if step <= about["step"]]
    count = min(args.snapshots, len(available))
    ends, candidates = stretches(available, random_steps, end, count, args.candidates)
    buffer = {key: column[:end] for key, column in training.buffer().items()}
    return Bundle(about["env_id"], training, ends, candidates, buffer, [], {})


def choose_members(args: Args, bundle: Bundle) -> None:
    """Choose the snapshot of each stretch whose return is nearest to the learner's."""
    snapshots = bundle.training.snapshots
    policies = {}
    for steps in bundle.candidates:
        policies |= {step: bundle.policy(snapshots[step]) for step in steps}
    scores = measure_policies(bundle.env_id, policies, CHOICE_SEED, args.episodes, args.workers)
    returns, _, first = buffer_episodes(bundle.buffer)
    for steps, (start, end) in zip(bundle.candidates, pairwise(bundle.ends), strict=True):
        begun_here = (first >= start) & (first < end)
        member = steps[0]
        if begun_here.any():
            wanted = returns[begun_here].mean()
            member = min(steps, key=lambda step, wanted=wanted: abs(scores[step].mean - wanted))
        bundle.members.append(member)


def choose_precision(args: Args, bundle: Bundle) -> dict:
    """Choose half precision if it does not change the returns. Return what was measured."""
    single = {step: bundle.training.snapshots[step] for step in bundle.members}
    half = {}
    for step, weights in single.items():
        half[step] = {name: array.astype(np.float16) for name, array in weights.items()}
    policies = {}
    for step in bundle.members:
        policies[step, "single"] = bundle.policy(single[step])
        policies[step, "half"] = bundle.policy(half[step])
    scores = measure_policies(bundle.env_id, policies, HALF_SEED, args.episodes, args.workers)
    changes = [scores[s, "half"].mean - scores[s, "single"].mean for s in bundle.members]
    change = float(np.mean(changes))
    variance = sum(score.std**2 / score.episodes for score in scores.values())
    error = variance**0.5 / len(bundle.members)
    holds = abs(change) <= MAX_STANDARD_ERRORS * error
    verdict = "it holds" if holds else "too much, single precision is kept"
    print(
        f"half precision changes the mean return by {change:+.1f} (standard error {error:.1f}): "
        f"{verdict}"
    )
    bundle.weights = half if holds else single
    return {
        "dtype": "float16" if holds else "float32",
        "half_precision_change": change,
        "half_precision_error": error,
    }


def play_again(args: Args, bundle: Bundle) -> dict:
    """Play the bundle, and compare it with what the learner did. Return what was measured."""
    observation_space, action_space = spaces(bundle.env_id)
    obs_dim = observation_space.shape[0]
    policies = [UniformPolicy(action_space.low, action_space.high, obs_dim)]
    policies += [bundle.policy(bundle.weights[step]) for step in bundle.members]
    stages = []
    for policy, end in zip(policies, bundle.ends, strict=True):
        stages.append(Stage(functools.partial(act, bundle.env_id, policy), end))
    episodes, _ = simulate([stages], bundle.ends[-1], CHECK_SEED, SHARD_STEPS, args.workers)
    replayed = score_of(*returns_and_lengths(episodes[:-1]))
    returns, lengths, _ = buffer_episodes(bundle.buffer)
    training = score_of(returns, lengths)
    seen = np.concatenate([episode["observations"][:-1] for episode in episodes])
    real = bundle.buffer["observations"]
    shift = float((np.abs(seen.mean(0) - real.mean(0)) / real.std(0)).max())
    print(f"in training     {training}   {training.episodes} episodes")
    print(f"played again    {replayed}   {replayed.episodes} episodes")
    print(f"the means of observations differ by up to {shift:.2f} deviations")
    return {
        "training_score": asdict(training),
        "replayed_score": asdict(replayed),
        "observation_shift": shift,
    }


def bundle(args: Args) -> None:
    """Write a bundle, or nothing if the files do not fit together."""
    check_args(args)
    quiet()
    (weights, *_), _, medium = read_weights(args.medium)
    if not {"env_id", "step"} <= medium.keys():
        sys.exit(f"{args.medium} does not say where it comes from; choose it by select_behavior.py")
    planned = plan_bundle(args, weights, medium)
    choose_members(args, planned)
    measured = choose_precision(args, planned)
    measured |= play_again(args, planned)

    kept = (
        "env_id",
        "algorithm",
        "acting",
        "training_command",
        "training_seed",
        "training_agent",
        "commit",
    )
    versions = ("torch_version", "numpy_version", "gymnasium_version")
    about = {key: medium[key] for key in (*kept, *versions) if key in medium}
    about |= {
        "medium": args.medium.name,
        "medium_step": medium["step"],
        "snapshots": planned.members,
        "random_steps": planned.training.random_steps,
    }
    arrays = {"about": json.dumps(about | measured), "ends": np.array(planned.ends)}
    for name in weights:
        arrays[name] = np.stack([planned.weights[step][name] for step in planned.members])
    out = args.medium.with_name(f"{args.medium.stem}-replay.npz")
    content = write_weights(out, arrays)
    print(f"written: {out}, SHA-256 {hashlib.sha256(content).hexdigest()}")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        bundle(args)
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")


if __name__ == "__main__":
    main()
