"""Choose the behaviour policy of a dataset: the SAC snapshot whose return is nearest to a target.

Idea. D4RL stops SAC when it is about a third as good as the expert, but publishes neither the
weights nor the step. What is known is how its dataset scores: hopper-medium has a mean return of
1422 and a mean episode length of 457. So we look, among the snapshots of one or more trainings
(all seeds of run folders of algorithms/sac.py), for the policy that gives such episodes.

Recipe. Every snapshot acts for a few episodes, as the dataset will be collected: sampled actions.
The finalists nearest to the target act for more. Among those within `--tolerance` of the target
return, the one with the mean length nearest to `--target-length` wins; if there is none, the one
nearest in return. Being the best of many flatters the winner's score, so it is measured once more
with fresh seeds, and must then be within `--accept` of the target to be stored.

    python algorithms/sac.py --env Hopper-v4 --num-updates 300000 --snapshot-every 1000 \\
        --num-seeds 2 --run-dir runs/sac-hopper
    python benchmarks/select_behavior.py runs/sac-hopper --env-id Hopper-v4 --target 1422 \\
        --target-length 457 --out benchmarks/behavior/hopper-medium.npz

With --replay-steps the snapshots of the winner's training up to there are bundled too, for the
medium-replay dataset (bundle_replay.py). For the other two environments (targets: D4RL's sets):

    python benchmarks/select_behavior.py runs/sac-halfcheetah --env-id HalfCheetah-v4 \\
        --target 4770 --out benchmarks/behavior/halfcheetah-medium.npz --replay-steps 202000
    python benchmarks/select_behavior.py runs/sac-walker2d --env-id Walker2d-v4 --target 2852 \\
        --target-length 840 --out benchmarks/behavior/walker2d-medium.npz --replay-steps 302000

Steps are those in the environment, the random ones of the beginning included. A training that still
runs may be read: its files appear whole. The result does not depend on the number of workers.
"""

import functools
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import numpy as np
import tyro
from collect import git_commit, make_envs, quiet, returns_and_lengths, rollout, run_jobs
from recipes import SacPolicy, spaces
from tqdm import tqdm

README_HEAD = """# Behaviour policies

Each `.npz` file here is the policy that a dataset of `benchmarks/collect.py` is collected with: the
weights of a tanh-Gaussian policy (two hidden layers of 256 ReLU units; `fc0`, `fc1`, `last_fc` for
the mean, `last_fc_log_std` for the logarithm of the deviation, clamped to [-20, 2]), float32, and
`about`, a JSON string that says where it comes from.

Such a policy is a snapshot of a SAC training (`algorithms/sac.py`), chosen by
`benchmarks/select_behavior.py`: the snapshot whose episodes come nearest to the return, and among
equals to the length, of D4RL's dataset of that level. The *selection* score helped to choose it and
flatters it; the *fresh* score was measured afterwards with other seeds. Both are the mean and the
deviation of the undiscounted return over episodes with sampled actions. `hopper-skilled` aims at
the expert and is the best that its training reached.

To make a policy anew, run the training command of its row and then `select_behavior.py` on the
training's folder. A training is reproducible on the same machine and versions; elsewhere rounding
differs, and another step may come nearest. *step* counts the steps in the environment, of which the
first 10,000 are random. Rows with `benchmarks/train_behavior.py` were trained by the forerunner of
`sac.py`, of the same settings, which is in the history of this repository; its trainings can be
repeated if nothing interrupts them.

| file | environment | target return | training command | seed | step | selection score | fresh \
score | mean length | SHA-256 |
|---|---|---|---|---|---|---|---|---|---|

## Bundles for medium-replay

A bundle (`benchmarks/bundle_replay.py`) stacks snapshots of one training, `(K, out, in)`; `ends`
holds the K + 1 steps at which the random actions of the beginning and each snapshot's stretch end.
*Half precision* is the change of the mean return, with its standard error, that storing float16
made. *In training* are the complete episodes of the learner's own replay buffer up to the end,
*played again* those of the snapshots; *shift* is the largest difference between the two in the
mean of an observation, in deviations of the former.

| bundle | from the training of | steps | snapshots | half precision | in training | played again \
| shift | SHA-256 |
|---|---|---|---|---|---|---|---|---|
"""
# Seeds of the three rounds of measurement; any three different numbers do.
QUICK, FINAL, FRESH = 1, 2, 3
SLOTS = 10  # episodes side by side: the quick pass needs a single round
MAX_SEED = 100_000  # seeds that `training_seed` tries: a fraction of a second per 10,000


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders of algorithms/sac.py, trained with --snapshot-every; all their seeds count"""
    target: float
    """wanted mean return (undiscounted)"""
    out: Path
    """weight file to write (.npz); the README.md beside it gets a row"""
    target_length: float | None = None
    """wanted mean episode length, in transitions; decides between equals in return"""
    env_id: str = "Hopper-v4"
    """environment the policies were trained on"""
    quick_episodes: int = 10
    """episodes for each snapshot in the first round"""
    episodes: int = 100
    """episodes for each finalist, and for the winner's fresh score"""
    finalists: int = 15
    """snapshots that go into the second round"""
    tolerance: float = 0.05
    """relative distance from the target return below which the length decides"""
    accept: float = 0.15
    """relative distance of the fresh score from the target above which nothing is stored"""
    train_command: str | None = None
    """command that trained the winner (default: as found in its folder)"""
    replay_steps: int | None = None
    """also bundle snapshots for medium-replay: transitions of D4RL's set"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


@dataclass
class Score:
    """Mean and deviation of the return, and mean length, over some episodes."""

    mean: float
    std: float
    length: float
    episodes: int

    def __str__(self) -> str:
        return f"{self.mean:8.1f} +- {self.std:6.1f}   length {self.length:6.1f}"


def measure(env_id: str, policy: SacPolicy, seed: list[int], episodes: int) -> Score:
    """Score of a policy over the first episodes of a seeded sequence, with sampled actions."""
    result = rollout(make_envs(env_id, SLOTS), policy, seed, episodes=episodes)
    returns, lengths = returns_and_lengths(result)
    return Score(float(returns.mean()), float(returns.std()), float(lengths.mean()), len(result))


def measure_policies(env_id: str, policies: dict[tuple, SacPolicy], round_: int, episodes: int,
                     workers: int | None) -> dict[tuple, Score]:
    """Scores of the policies; `round_` separates the seeds of one round from another's."""
    # All policies of a round meet the same start states and noise: less chance in comparing them.
    jobs = [(env_id, policy, [round_], episodes) for policy in policies.values()]
    scores, keys = {}, list(policies)
    for number, score in tqdm(run_jobs(measure, jobs, workers), total=len(jobs),
                              unit=" policies", disable=None):
        scores[keys[number]] = score
    return {key: scores[key] for key in keys}  # the order must not depend on who was first


@dataclass
class Training:
    """The training of one seed. Steps are those in the environment, random ones included."""

    name: str
    """its folder, and its seed if there are others in it"""
    folder: Path
    seed: int | None
    random_steps: int
    snapshots: dict[int, dict[str, np.ndarray]]
    """step -> weights as SacPolicy takes them"""
    command: Callable[[int], str]
    """the command that trains up to that step"""
    buffer: Callable[[], np.ndarray]
    """(steps, width) rows of observation, action, reward, terminated, next observation"""


def load_trainings(folder: Path, env_id: str) -> list[Training]:
    """The trainings in a folder, seed by seed.

    Raises SystemExit if there are none, none with snapshots, or those of another environment.
    """
    import torch  # here, so that the worker processes do without it

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))
    import sac

    path, files = folder / "checkpoint.pt", folder.glob("snapshots/*.pt")
    if not path.exists():
        raise SystemExit(f"no checkpoint in {folder}. Give the --run-dir of a training by "
                         "algorithms/sac.py; it writes its first one after --checkpoint-every.")
    try:
        # The forerunner's files, which are our own, hold a NumPy generator's state besides tensors.
        state = torch.load(path, map_location="cpu", weights_only=False)
        if "snapshots" in state:
            return [forerunner(folder, state, env_id)]
        online, args = state["phase"] == 0 and (folder / "online.bin").exists(), state["args"]
        updates = {int(file.stem): torch.load(file, map_location="cpu") for file in files}
        own = sac.Args(**args)
    except Exception as error:
        raise SystemExit(f"cannot read {folder}: {error}. Is it a run of algorithms/sac.py?")
    if not (online and updates):
        raise SystemExit(f"{folder} holds no snapshots of an online run; train one by sac.py, with "
                         "--env of a Gymnasium id and --snapshot-every.")
    if state["task"]["env_id"] != env_id:
        raise SystemExit(f"{folder} was trained on {state['task']['env_id']}, not on {env_id}")
    changed = {k: v for k, v in args.items() if v not in (None, getattr(sac.Args(), k))
               and k not in ("num_updates", "device", "eval_workers", "checkpoint_every")}

    def command(step: int) -> str:
        words = [(f"--{k.replace('_', '-')}", str(v)) for k, v in changed.items()]
        words += [("--num-updates", str(step - own.random_steps)),
                  ("--run-dir", f"runs/{folder.resolve().name}")]
        return shlex.join(["python", "algorithms/sac.py", *(w for pair in words for w in pair)])

    def buffer(number: int, seed: int) -> np.ndarray:
        rows, _ = sac.ScratchRun.load(replace(own, seed=seed, num_seeds=1))
        keys = (*sac.KEYS[:4], "next_observations")
        random = np.concatenate([rows[k].reshape(own.random_steps, -1) for k in keys], 1)
        # the last two columns of online.bin are marks that hold for every row
        steps = np.fromfile(folder / "online.bin", np.float32)
        steps = steps[:state["step"] * len(state["seeds"]) * (random.shape[1] + 2)]
        steps = steps.reshape(-1, len(state["seeds"]), random.shape[1] + 2)
        return np.concatenate([random, steps[:, number, :-2]])

    return [Training(
        f"{folder}, seed {seed}" if len(state["seeds"]) > 1 else str(folder),
        folder, seed, own.random_steps,
        {own.random_steps + step: exported(updates[step], number) for step in sorted(updates)},
        command, functools.partial(buffer, number, seed))
        for number, seed in enumerate(state["seeds"])]


def exported(policy: dict, number: int) -> dict[str, np.ndarray]:
    """sac.py's policy of that number among its seeds as SacPolicy takes it, (out, in) weights."""
    weight, bias = ([policy[f"net.{kind}.{i}"][number].float().numpy() for i in range(3)]
                    for kind in ("weights", "biases"))
    layers = {f"fc{i}": (weight[i], bias[i]) for i in (0, 1)}
    halves = zip(*(np.split(array, 2, -1) for array in (weight[2], bias[2])))
    layers |= dict(zip(("last_fc", "last_fc_log_std"), halves))
    return {f"{name}.{kind}": np.ascontiguousarray(array) for name, (w, b) in layers.items()
            for kind, array in (("weight", w.T), ("bias", b[0]))}


def forerunner(folder: Path, state: dict, env_id: str) -> Training:
    """A training of sac.py's forerunner (train_behavior.py), whose checkpoint holds everything.

    It does not name its seed; but the first action is the first draw of a generator with that seed,
    and the buffer, whose rows are (obs, action, reward, terminated, next_obs), begins with it.
    """
    obs_dim, act_dim = (space.shape[0] for space in spaces(env_id))
    first = state["buffer"][0, obs_dim:obs_dim + act_dim].numpy()
    draw = lambda seed: np.random.default_rng(seed).uniform(-1, 1, act_dim).astype(np.float32)
    seed = next((s for s in range(MAX_SEED) if np.array_equal(draw(s), first)), None)
    return Training(
        str(folder), folder, seed, 10_000,
        {step: {name: value.float().numpy() for name, value in tensors.items()}
         for step, tensors in state["snapshots"].items()},
        lambda step: shlex.join(
            ["python", "benchmarks/train_behavior.py", "--env-id", env_id, "--seed", str(seed),
             "--num-steps", str(step), "--out", f"runs/{folder.resolve().name}"]),
        lambda: state["buffer"].numpy())


def choose(scores: dict[tuple, Score], target: float, target_length: float | None,
           tolerance: float) -> tuple:
    """Key of the best: nearest length among those near in return, else nearest return."""
    off = {key: abs(score.mean - target) for key, score in scores.items()}
    equals = [key for key in scores if off[key] <= tolerance * abs(target)]
    if target_length is not None and equals:
        return min(equals, key=lambda key: abs(scores[key].length - target_length))
    return min(off, key=off.get)


def replace_file(path: Path, write) -> None:
    """Let `write(file)` fill a binary file beside `path`, and put it in place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        raise SystemExit(f"cannot write {path}: {error}")
    finally:
        temporary.unlink(missing_ok=True)


def write_row(readme: Path, table: str, name: str, row: str) -> None:
    """Put the row of the file `name` into a table of the README, or renew it.

    table: how its first line begins. Raises SystemExit if the README exists without that table.
    """
    text = readme.read_text() if readme.exists() else README_HEAD
    lines = [line for line in text.splitlines() if not line.startswith(f"| `{name}` |")]
    end = next((i for i, line in enumerate(lines) if line.startswith(table)), None)
    if end is None:
        raise SystemExit(f"{readme} has no table {table} for this row; add its head, or move the "
                         f"file away, then a new one is begun:\n{row}")
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    lines.insert(end, row)
    replace_file(readme, lambda file: file.write(("\n".join(lines) + "\n").encode()))


def select(args: Args) -> None:
    """The command. Raises SystemExit, with nothing written, if no snapshot is good enough."""
    if args.out.suffix != ".npz":
        raise SystemExit(f"--out {args.out}: must end in .npz")
    if not args.runs:
        raise SystemExit("give at least one folder of a training")
    for option in ("quick_episodes", "episodes", "finalists", "replay_steps", "workers"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise SystemExit(f"--{option.replace('_', '-')} {value}: must be at least 1")
    if args.target == 0:
        raise SystemExit("--target 0: distances are relative to it, so it must not be zero")
    if args.replay_steps is not None and not args.out.name.endswith("-medium.npz"):
        raise SystemExit(f"--replay-steps goes with --out ...-medium.npz, not {args.out.name}")
    quiet()
    observations, actions = spaces(args.env_id)

    candidates, trainings = {}, {}
    for folder in dict.fromkeys(args.runs):
        for training in load_trainings(folder, args.env_id):
            trainings[training.name] = training
            for step, weights in training.snapshots.items():
                policy = SacPolicy(weights, actions.low, actions.high)
                if (policy.obs_dim, policy.act_dim) != (observations.shape[0], actions.shape[0]):
                    raise SystemExit(f"the policies in {folder} do not fit {args.env_id}; "
                                     "was it trained on another --env-id?")
                candidates[training.name, step] = policy
            print(f"{training.name}: {len(training.snapshots)} snapshots, up to step {step}")

    measured = lambda *what: measure_policies(args.env_id, *what, args.workers)
    quick = measured(candidates, QUICK, args.quick_episodes)
    nearest = sorted(quick, key=lambda key: abs(quick[key].mean - args.target))[:args.finalists]
    final = measured({key: candidates[key] for key in nearest}, FINAL, args.episodes)
    best = choose(final, args.target, args.target_length, args.tolerance)
    print(f"\nfinalists, {args.episodes} episodes each (target return {args.target:g}"
          + (f", length {args.target_length:g}" if args.target_length is not None else "") + ")")
    for key, score in sorted(final.items(), key=lambda item: abs(item[1].mean - args.target)):
        print(f"{'->' if key == best else '  '} {key[0]} step {key[1]:>7} {score}")

    fresh = measured({best: candidates[best]}, FRESH, args.episodes)[best]
    off = fresh.mean / args.target - 1
    print(f"\nchosen: {best[0]} step {best[1]}\nselection score {final[best]}\n"
          f"fresh score     {fresh}   {100 * off:+.1f} % from the target")
    if abs(off) > args.accept:
        raise SystemExit(f"the fresh score is more than {100 * args.accept:g} % from the target; "
                         "nothing was written. Train for longer, or with another seed.")

    training, step = trainings[best[0]], best[1]
    if training.seed is None and args.train_command is None:
        raise SystemExit(f"cannot tell the seed of {training.name}; name its command by "
                         "--train-command")
    command = args.train_command or training.command(step)
    import torch

    about = {"env_id": args.env_id, "training_command": command, "training_seed": training.seed,
             "step": step, "target_return": args.target, "selection_score": vars(final[best]),
             "fresh_score": vars(fresh), "commit": git_commit(),
             "torch_version": str(torch.__version__), "numpy_version": np.__version__,
             "gymnasium_version": gym.__version__}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(args.out, lambda file: np.savez(
        file, about=json.dumps(about), **training.snapshots[step]))
    show = lambda score: f"{score.mean:.1f} ± {score.std:.1f} ({score.episodes} episodes)"
    row = (f"| `{args.out.name}` | {args.env_id} | {args.target:g} | `{command}` | "
           f"{training.seed} | {step} | {show(final[best])} | {show(fresh)} | {fresh.length:.1f} | "
           f"`{hashlib.sha256(args.out.read_bytes()).hexdigest()}` |")
    write_row(args.out.parent / "README.md", "| file |", args.out.name, row)
    print(f"\nwritten: {args.out}, {args.out.stat().st_size:,} bytes, and its row in the README.md "
          f"beside it\n{row}")
    if args.replay_steps is not None:
        import bundle_replay

        bundle_replay.bundle(bundle_replay.Args(training.folder, args.out, args.replay_steps,
                                                workers=args.workers))


def main() -> None:
    try:
        select(tyro.cli(Args, description=__doc__))
    except KeyboardInterrupt:
        raise SystemExit("stopped; nothing was written")


if __name__ == "__main__":
    main()
