"""Bundle snapshots of a training into the behaviour of a medium-replay dataset.

Idea. D4RL's medium-replay is the replay buffer of the training that reached medium: all that the
learner did from its first step on. Training anew takes hours, and the buffer is too large to keep
in a repository. So we keep a few of the policies that filled it. After the learner's random first
steps the training is cut into equal stretches, and one snapshot acts in the place of each, for as
many steps (collect.py): of the `--candidates` nearest to the middle of the stretch the one whose
mean return is nearest to that of the episodes the learner began there. The middle one alone would
do in most stretches, but SAC's policies stumble now and then for a thousand steps.

What is lost. Within a stretch the learner changed with every step, its snapshot does not; so good
and bad phases that are shorter than a stretch are missed or spread. How far the result is from
what the learner really did is measured against its own replay buffer, and stands in README.md.

    python benchmarks/bundle_replay.py runs/sac-hopper --steps 402000 \\
        --medium benchmarks/behavior/hopper-medium.npz

The bundle ends at `--steps`, the size of D4RL's set, or where the training reached medium, if that
is sooner. select_behavior.py does both steps at once: --replay-steps.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from collect import Args as CollectArgs
from collect import act, quiet, returns_and_lengths, simulate
from recipes import SacPolicy, UniformPolicy, read_weights, spaces
from select_behavior import Score, load_trainings, measure_policies, replace_file, write_row

# Seeds of the measurements; select_behavior.py has 1, 2 and 3, check_physics.py 6.
HALF_SEED, CHECK_SEED, CHOICE_SEED = 4, 5, 7
MAX_STANDARD_ERRORS = 3  # by which half precision may change the mean return: chance, one in 400


@dataclass
class Args:
    run: Annotated[Path, tyro.conf.Positional]
    """run folder of the training that reached medium; which of its seeds did is found out"""
    medium: Path
    """weight file that select_behavior.py chose from this training; the bundle lies beside it"""
    steps: int
    """transitions of D4RL's medium-replay set"""
    snapshots: int = 10
    """policies in the bundle: with medium and expert at most 12 for an environment"""
    candidates: int = 5
    """snapshots of a stretch that are measured"""
    random_steps: int | None = None
    """uniform actions with which the training began (default: as its folder says)"""
    episodes: int = 20
    """episodes by which a snapshot is measured in single and in half precision"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


def stretches(steps: list[int], random_steps: int, end: int, count: int,
              candidates: int) -> tuple[list[int], list[list[int]]]:
    """Where the stretches end, the random one first, and the candidates of each but that.

    steps: at which there are snapshots. Returns `count` + 1 ends, and `count` lists of members of
    steps, the nearest to the middle first: those inside the stretch, or the nearest one.
    """
    ends = np.linspace(random_steps, end, count + 1).round().astype(int).tolist()
    chosen = []
    for first, last in zip(ends, ends[1:]):
        near = sorted(steps, key=lambda step: abs(step - (first + last) / 2))
        inside = [step for step in near if first < step <= last]
        chosen.append(inside[:candidates] or near[:1])
    return ends, chosen


def buffer_episodes(buffer: np.ndarray, obs_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Complete episodes of a replay buffer: returns, lengths and first steps, (episodes,) each.

    buffer: (steps, width) rows of observation, action, reward, terminated, next observation. An
    episode also ends where the next row begins elsewhere: at the time limit, or at a restart.
    """
    following = buffer[:-1, -obs_dim:]
    ends = (buffer[:-1, -obs_dim - 1] > 0) | (following != buffer[1:, :obs_dim]).any(-1)
    last = np.flatnonzero(ends)
    first = np.concatenate([[0], last[:-1] + 1])
    total = np.concatenate([[0.0], np.cumsum(buffer[:, -obs_dim - 2], dtype=np.float64)])
    return total[last + 1] - total[first], last + 1 - first, first


def bundle(args: Args) -> None:
    """The command. Raises SystemExit, with nothing written, if the files do not fit together."""
    if not args.medium.name.endswith("-medium.npz"):
        raise SystemExit(f"--medium {args.medium}: must be a file of select_behavior.py, called "
                         "...-medium.npz")
    for option in ("steps", "snapshots", "candidates", "episodes", "random_steps", "workers"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise SystemExit(f"--{option.replace('_', '-')} {value}: must be at least 1")
    quiet()
    weights, _, medium = read_weights(args.medium)
    if not {"env_id", "step"} <= medium.keys():
        raise SystemExit(f"{args.medium} does not say where it comes from; select_behavior.py "
                         "writes files that do")
    env_id, step = medium["env_id"], medium["step"]
    same = lambda one, other: all(np.array_equal(one[name], other[name]) for name in other)
    found = next((t for t in load_trainings(args.run, env_id)
                  if step in t.snapshots and same(t.snapshots[step], weights[0])), None)
    if found is None:
        raise SystemExit(f"{args.medium} is no snapshot of {args.run}; give the training that "
                         f"reached medium: {medium.get('training_command', 'unknown')}")
    snapshots, random_steps = found.snapshots, args.random_steps or found.random_steps
    observations, actions = spaces(env_id)
    obs_dim = observations.shape[0]
    end = min(args.steps, medium["step"])
    available = [step for step in snapshots if step <= medium["step"]]
    if end <= random_steps:
        raise SystemExit(f"medium was reached at step {end}, within the {random_steps} random "
                         "steps; nothing to bundle")
    ends, candidates = stretches(available, random_steps, end,
                                 min(args.snapshots, len(available)), args.candidates)
    make = lambda weights: SacPolicy(weights, actions.low, actions.high)
    buffer = found.buffer()[:end]
    real_returns, real_lengths, first = buffer_episodes(buffer, obs_dim)
    begun = [(first >= start) & (first < last) for start, last in zip(ends, ends[1:])]
    scores = measure_policies(
        env_id, {step: make(snapshots[step]) for step in sum(candidates, [])}, CHOICE_SEED,
        args.episodes, args.workers)
    members = [min(steps, key=lambda step: abs(scores[step].mean - real_returns[inside].mean()))
               if inside.any() else steps[0] for steps, inside in zip(candidates, begun)]

    half = {step: {name: value.astype(np.float16) for name, value in snapshots[step].items()}
            for step in members}
    policies = {(step, kind): make(source[step]) for step in members
                for kind, source in (("single", snapshots), ("half", half))}
    scores = measure_policies(env_id, policies, HALF_SEED, args.episodes, args.workers)
    single, halved = ([scores[step, kind] for step in members] for kind in ("single", "half"))
    change = np.mean([h.mean - s.mean for h, s in zip(halved, single)])
    error = sum(s.std**2 / s.episodes for s in single + halved)**0.5 / len(members)
    holds = abs(change) <= MAX_STANDARD_ERRORS * error
    print(f"half precision changes the mean return by {change:+.1f} (standard error {error:.1f}): "
          + ("it holds" if holds else "too much, single precision is kept"))

    stored = half if holds else snapshots
    arrays = {name: np.stack([stored[step][name] for step in members]) for name in weights[0]}
    uniform = UniformPolicy(actions.low, actions.high, obs_dim)
    collectors = [functools.partial(act, env_id, policy)
                  for policy in [uniform, *(make(stored[step]) for step in members)]]
    episodes, _ = simulate([list(zip(collectors, ends))], end, CHECK_SEED,
                           CollectArgs.shard_steps, args.workers)
    returns, lengths = returns_and_lengths(episodes[:-1])
    score = lambda r, n: Score(float(r.mean()), float(r.std()), float(n.mean()), len(r))
    training, replayed = score(real_returns, real_lengths), score(returns, lengths)
    seen, real = np.concatenate([e["observations"][:-1] for e in episodes]), buffer[:, :obs_dim]
    shift = float((np.abs(seen.mean(0) - real.mean(0)) / real.std(0)).max())
    spread = seen.std(0) / real.std(0)

    print(f"\n{'steps':>17}  snapshot  training: return, length     snapshot: return, length")
    for k, step in enumerate(members):
        inside = begun[k]
        there = (f"{real_returns[inside].mean():8.1f} {real_lengths[inside].mean():7.1f}"
                 if inside.any() else "none ended")
        print(f"{ends[k]:>8}-{ends[k + 1]:<8}  {step:>8}  {there:>24}  {halved[k]}")
    print(f"the training    {training}   {training.episodes} episodes\n"
          f"played again    {replayed}   {replayed.episodes} episodes\n"
          f"observations: means differ by up to {shift:.2f} deviations, deviations by a factor of "
          f"{spread.min():.2f} to {spread.max():.2f}")

    about = {key: medium[key] for key in ("env_id", "training_command", "training_seed", "commit",
                                          "torch_version", "numpy_version", "gymnasium_version")
             if key in medium}
    about |= {"medium": args.medium.name, "medium_step": medium["step"], "snapshots": members,
              "random_steps": random_steps, "dtype": "float16" if holds else "float32",
              "half_precision_change": float(change), "half_precision_error": float(error),
              "training_score": vars(training), "replayed_score": vars(replayed),
              "observation_shift": shift}
    out = args.medium.with_name(f"{args.medium.stem}-replay.npz")
    replace_file(out, lambda file: np.savez_compressed(
        file, about=json.dumps(about), ends=np.array(ends), **arrays))
    show = lambda s: f"{s.mean:.1f} ± {s.std:.1f}, length {s.length:.1f}, {s.episodes} episodes"
    row = (f"| `{out.name}` | `{args.medium.name}` | {end:,} | {', '.join(map(str, members))} | "
           f"{about['dtype']}, {change:+.1f} ± {error:.1f} | {show(training)} | {show(replayed)} | "
           f"{shift:.2f} | `{hashlib.sha256(out.read_bytes()).hexdigest()}` |")
    write_row(out.parent / "README.md", "| bundle |", out.name, row)
    print(f"\nwritten: {out}, {out.stat().st_size:,} bytes, and its row in the README.md beside it")


def main() -> None:
    try:
        bundle(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        raise SystemExit("stopped; nothing was written")


if __name__ == "__main__":
    main()
