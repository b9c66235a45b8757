"""Choose the behaviour policy of a dataset: the snapshot whose return is nearest to a target.

D4RL stops SAC when it is about a third as good as the expert, but publishes neither the weights nor
the step. What is known is how its dataset scores: hopper-medium has a mean return of 1422 and a
mean episode length of 457. So this program looks, among the snapshots of one or more trainings (all
agents of run folders of algorithms/sac.py, td3.py or ddpg.py), for the policy that gives such
episodes.

Every snapshot acts for a few episodes as the dataset will be collected, and as it acted in its own
training: SAC's by sampled actions, TD3's and DDPG's with noise of deviation --exploration-noise.
The weight file says which. The finalists, which are nearest to the target, act for more. Among
those within `--tolerance` of the target return, the one with the mean length nearest to `--target-
length` wins; if there is none, the one nearest in return. To be the best of many flatters the
winner's score, so it is measured once more with fresh seeds, and must then be within `--accept` of
the target to be stored.

    python algorithms/sac.py --env Hopper-v4 --num-updates 300000 --snapshot-every 1000 \\
        --num-seeds 2 --run-dir runs/sac-hopper
    python -m benchmarks.datasets.select_behavior runs/sac-hopper --env-id Hopper-v4 \\
        --target 1422 --target-length 457 --out benchmarks/datasets/behavior/hopper-medium.npz

With --replay-steps, the snapshots of the winner's training up to there are bundled, too, for the
medium-replay dataset (see bundle_replay.py).

Steps are those in the environment, the random ones of the beginning included. A training that still
runs may be read. The result does not depend on the number of workers.
"""

import hashlib
import importlib.metadata
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.common import git_commit
from benchmarks.datasets import behavior_page, bundle_replay
from benchmarks.datasets.measure import Score, measure_policies
from benchmarks.datasets.policies import make_policy, spaces
from benchmarks.datasets.rollout import quiet
from benchmarks.datasets.trainings import Training, load_trainings

# Seeds of the three rounds of measurement; any three different numbers do.
QUICK, FINAL, FRESH = 1, 2, 3


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders of sac.py, td3.py or ddpg.py, trained with --snapshot-every; all agents count"""
    target: float
    """wanted mean return (undiscounted)"""
    out: Path
    """weight file to write (.npz); the tables of the README.md beside it are renewed"""
    target_length: float | None = None
    """wanted mean episode length in transitions, which decides between equals in return"""
    env_id: str = "Hopper-v4"
    """environment on which the policies were trained"""
    quick_episodes: int = 10
    """episodes of each snapshot in the first round"""
    episodes: int = 100
    """episodes of each finalist, and of the winner's fresh score"""
    finalists: int = 15
    """snapshots that go into the second round"""
    tolerance: float = 0.05
    """relative distance from the target return below which the length decides"""
    accept: float = 0.15
    """relative distance of the fresh score from the target above which nothing is stored"""
    replay_steps: int | None = None
    """also bundle snapshots for medium-replay: transitions of D4RL's set"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


def check_args(args: Args) -> None:
    """Refuse what cannot work before anything is measured."""
    if args.out.suffix != ".npz":
        sys.exit(f"--out {args.out}: must end in .npz")
    if not args.runs:
        sys.exit("name at least one folder of a training")
    for name in ("quick_episodes", "episodes", "finalists", "replay_steps", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            sys.exit(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.target == 0:
        sys.exit("--target 0: distances are relative to it, so it must not be zero")
    if args.replay_steps is not None and not args.out.name.endswith("-medium.npz"):
        sys.exit(f"--replay-steps goes with --out ...-medium.npz, not {args.out.name}")


def load_candidates(args: Args) -> tuple[list[Training], dict]:
    """Return all trainings, and their policies by (number of the training, step)."""
    observation_space, action_space = spaces(args.env_id)
    dims = (observation_space.shape[0], action_space.shape[0])
    trainings = []
    for folder in dict.fromkeys(args.runs):
        trainings += load_trainings(folder, args.env_id)
    candidates = {}
    for number, training in enumerate(trainings):
        for step, weights in training.snapshots.items():
            policy = make_policy(weights, action_space.low, action_space.high)
            if (policy.obs_dim, policy.act_dim) != dims:
                sys.exit(f"the policies in {training.folder} do not fit {args.env_id}")
            candidates[number, step] = policy
        steps = training.snapshots
        print(f"{training.name}: {len(steps)} snapshots, up to step {max(steps)}")
    return trainings, candidates


def choose(
    scores: dict[tuple, Score], target: float, target_length: float | None, tolerance: float
) -> tuple:
    """Return the key of the best: of those near in return the nearest in length, if wanted."""
    off = {key: abs(score.mean - target) for key, score in scores.items()}
    equals = [key for key in scores if off[key] <= tolerance * abs(target)]
    if target_length is not None and equals:
        return min(equals, key=lambda key: abs(scores[key].length - target_length))
    return min(off, key=off.get)


def select(args: Args) -> None:
    """Choose a policy and write it, or nothing if none is good enough."""
    check_args(args)
    quiet()
    trainings, candidates = load_candidates(args)
    quick = measure_policies(args.env_id, candidates, QUICK, args.quick_episodes, args.workers)
    nearest = sorted(quick, key=lambda key: abs(quick[key].mean - args.target))[: args.finalists]
    finalists = {key: candidates[key] for key in nearest}
    final = measure_policies(args.env_id, finalists, FINAL, args.episodes, args.workers)
    best = choose(final, args.target, args.target_length, args.tolerance)
    print(f"\nfinalists, {args.episodes} episodes each; the target is {args.target:g}")
    for key in sorted(final, key=lambda key: abs(final[key].mean - args.target)):
        mark = "->" if key == best else "  "
        print(f"{mark} {trainings[key[0]].name}, step {key[1]:>7} {final[key]}")

    winner = {best: candidates[best]}
    fresh = measure_policies(args.env_id, winner, FRESH, args.episodes, args.workers)[best]
    off = fresh.mean / args.target - 1
    print(f"selection score {final[best]}")
    print(f"fresh score     {fresh}   {100 * off:+.1f} % from the target")
    if abs(off) > args.accept:
        sys.exit(
            f"the fresh score is more than {100 * args.accept:g} % from the target; nothing was "
            "written; train for longer, or with another seed"
        )
    training = trainings[best[0]]
    store(args, training, best[1], final[best], fresh)
    if args.replay_steps is not None:
        bundle_replay.bundle(
            bundle_replay.Args(training.folder, args.out, args.replay_steps, workers=args.workers)
        )


def store(args: Args, training: Training, step: int, selection: Score, fresh: Score) -> None:
    """Write the weight file, and renew the tables of the page beside it."""
    about = {
        "env_id": args.env_id,
        "algorithm": training.script.upper(),
        "acting": training.acting,
        "training_command": training.command(step),
        "training_seed": training.seed,
        "training_agent": training.agent,
        "step": step,
        "target_return": args.target,
        "selection_score": asdict(selection),
        "fresh_score": asdict(fresh),
        "commit": git_commit(),
        "torch_version": importlib.metadata.version("torch"),
        "numpy_version": np.__version__,
        "gymnasium_version": importlib.metadata.version("gymnasium"),
    }
    arrays = training.snapshots[step]
    content = behavior_page.write_weights(args.out, arrays | {"about": json.dumps(about)})
    print(f"written: {args.out}, SHA-256 {hashlib.sha256(content).hexdigest()}")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        select(args)
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")


if __name__ == "__main__":
    main()
