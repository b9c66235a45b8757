"""Does a large, worse dataset help POR's guide?

POR splits a policy. The guide g(s), drawn to high values V, says which state to reach next; the
execute-policy pi(a|s,s') says by which action. Neither needs the other in training, so each may
have its own data. Given a small good set D_o and a large worse set D_e, the authors' slides compare
three ways, and claim that mix is the best, because more data make V more accurate.

    variant   V, g learn from   pi learns from
    main      D_o               D_o
    more      both              both
    mix_o     both              D_o      first reading: the execute-policy that main has already
    mix_e     both              D_e      second reading: as printed
    extra     D_e               D_e      a control of ours: what is D_e worth alone?

Of mix the slide says: "keep the execute-policy learned from D_e", and re-train the guide on both.
Only D_o's execute-policy exists before D_e comes, so D_e may be a slip; here are both readings. The
slides tell no datasets, sizes or numbers, and the authors' code lacks this experiment.

Three runs of por.py, on D_o, on D_e and on both, are paired as the table says. They start from the
same weights, so compare variants agent by agent. Rewards are scaled run by run. PointMaze, of which
nothing is published, has antmaze-umaze's settings and rewards. From both sets rows are drawn alike,
so nearly all of a batch comes from D_e.

    python -m benchmarks.datasets.collect pointmaze-umaze --steps 5000          # D_o
    python -m benchmarks.datasets.collect pointmaze-umaze-noisy --steps 100000  # D_e
    python -m benchmarks.studies.mix --out runs/mix      # again: a stopped study goes on
    python -m benchmarks.studies.mix --env rebuilt/hopper/medium-20k-v0 --more-env \\
        rebuilt/hopper/medium-replay-81k-v0 --num-updates 100000 --batch-size 256 --hidden 256 \\
        --execute-hidden 1024
"""

import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color
from benchmarks.studies.shared import half_interval, por, shown, store, summary

SETS = ("D_o", "D_e", "both")
VARIANTS = {  # the set of V and g, the set of pi
    "main": ("D_o", "D_o"),
    "more": ("both", "both"),
    "mix_o": ("both", "D_o"),
    "mix_e": ("both", "D_e"),
    "extra": ("D_e", "D_e"),
}
UMAZE = {"guide": "weighted", "tau": 0.9, "alpha": 10.0, "policy_lr": 1e-3, "layer_norm": False}


@dataclass
class Args(por.Args):
    """The options of por.py, with other defaults for few updates of small networks."""

    env: str = "rebuilt/pointmaze/umaze-5k-v0"  # D_o
    more_env: str = "rebuilt/pointmaze/umaze-noisy-100k-v0"  # D_e
    more_file: str | None = None  # HDF5 file of D_e, as --dataset-file is of D_o
    out: Path = Path("runs/mix")  # folder of the three runs, the numbers and the picture
    num_seeds: int = 5  # independent agents, trained together
    num_updates: int = 10_000  # gradient updates
    batch_size: int = 128  # transitions per update and agent
    eval_episodes: int = 5  # episodes per evaluation and agent
    final_eval_episodes: int = 50  # episodes per agent of every variant
    value_lr: float = 1e-3  # learning rate of V: ten times por.py's
    hidden: int = 128  # hidden units of V, guide and behaviour model
    execute_hidden: int = 256  # hidden units of the execute-policy


class Pair(nn.Module):
    """Agents that have the guide of one run and the execute-policy of another."""

    act = por.POR.act

    def __init__(self, guide_of: nn.Module, execute_of: nn.Module):
        super().__init__()
        self.args = guide_of.args
        self.guide = guide_of.guide
        self.execute = execute_of.execute


def por_args(args: Args, name: str) -> por.Args:
    """Return the arguments of the run on one of the SETS."""
    own = {f.name: getattr(args, f.name) for f in fields(por.Args)}
    own["run_dir"] = str(args.out / name)
    if name == "D_e":
        own |= {"env": args.more_env, "dataset_file": args.more_file}
    if "maze" in args.env:
        own |= {key: value for key, value in UMAZE.items() if own[key] is None}
    # The settings are D_o's in all three runs.
    settings = asdict(por.apply_settings(por.Args(**own | {"env": args.env})))
    return por.Args(**settings | {key: own[key] for key in ("env", "dataset_file")})


def load_sets(args: Args) -> dict:
    """Return data and task of each of the SETS."""
    sets = {name: por.load_dataset(por_args(args, name)) for name in ("D_o", "D_e")}
    (data, task), (more, more_task) = sets.values()
    if task.env_id != more_task.env_id:
        sys.exit(
            f"--env {args.env} is of {task.env_id}, --more-env {args.more_env} of "
            f"{more_task.env_id}; name two datasets of one environment"
        )
    if task.fingerprint == more_task.fingerprint:
        sys.exit(f"--env {args.env} and --more-env {args.more_env} hold the same data")
    if not (task.ordered and more_task.ordered):
        sys.exit("a set whose rows are not in the order of time has no episodes to scale by")
    # Rows behind the last end of an episode would seem to go on with D_e's first episode.
    complete = np.flatnonzero(data["episode_end"])[-1] + 1
    both = {key: np.concatenate([data[key][:complete], more[key]]) for key in data}
    both_task = replace(
        task,
        transitions=len(both["rewards"]),
        episodes=task.episodes + more_task.episodes,
        fingerprint=f"{task.fingerprint} {more_task.fingerprint}",
    )
    sets["both"] = both, both_task
    return sets


def prepare_data(args: por.Args, data: dict, task: por.Task) -> dict:
    """Prepare data as por.py does, which knows by the name alone that a maze is AntMaze."""
    if "maze" in task.name:
        task = replace(task, name="antmaze")
    data = {key: column.copy() for key, column in data.items()}
    return por.prepare_data(args, data, task)


def train(args: por.Args, data: dict, task: por.Task) -> nn.Module:
    """Train agents of por.py on a set, or go on with their run."""
    device = por.choose_device(args)
    columns = prepare_data(args, data, task)
    torch.manual_seed(args.seed)
    agent = por.POR(args, task, device)
    run = por.Run(args, task, agent, por.ReplayBuffer(columns, args, device), device)
    run.commits.append(por.current_commit())
    if Path(args.run_dir, "checkpoint.pt").exists():
        checkpoint = por.load_checkpoint(args.run_dir)
        if checkpoint["args"] != asdict(args):
            sys.exit(f"{args.run_dir} holds a run with other options; choose another --out")
        por.restore(run, checkpoint)
    else:
        por.make_folder(run)
    por.train(run)
    return agent


def evaluate_variants(args: Args, agents: dict, task: por.Task) -> dict:
    """Return the scores of every variant, all of which start their episodes alike."""
    scores = {}
    for variant, (guide, execute) in VARIANTS.items():
        pair = Pair(agents[guide], agents[execute])
        returns = por.evaluate(pair, task, args.final_eval_episodes).mean(axis=1)
        scores[variant] = por.normalized_score(task, returns)
    return scores


def draw(scores: dict, tasks: dict) -> Figure:
    """Draw the scores: a line joins what one agent got, bars span the mean's interval."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    values = np.array(list(scores.values()))
    places = range(len(scores))
    axes.plot(values, "o-", color="0.75", markersize=5, linewidth=1.2)
    halves = [half_interval(x) or 0 for x in values]
    color = algorithm_color("por")
    axes.errorbar(places, values.mean(1), halves, fmt="D", color=color, capsize=7, markersize=8)
    names = [f"{name}\nV, g: {VARIANTS[name][0]}\nπ: {VARIANTS[name][1]}" for name in scores]
    axes.set_xticks(places, names, fontsize=13)
    axes.tick_params(axis="y", labelsize=13)
    unit = "return" if tasks["D_o"].ref_min is None else "normalized score"
    axes.set_ylabel(unit, fontsize=14)
    lines = [f"{key}: {tasks[key].name}, {tasks[key].transitions:,} rows" for key in ("D_o", "D_e")]
    axes.set_title("\n".join(lines), fontsize=14)
    return figure


def study(args: Args) -> None:
    """Train the three runs, evaluate the variants, and store what they got."""
    sets = load_sets(args)
    tasks = {name: task for name, (_, task) in sets.items()}
    agents = {}
    for name in SETS:
        print(f"{name}: {tasks[name].transitions:,} rows", flush=True)
        agents[name] = train(por_args(args, name), *sets[name])
    scores = evaluate_variants(args, agents, tasks["D_o"])
    gains = {}
    for mix in ("mix_o", "mix_e"):
        for other in ("main", "more"):
            gains[f"{mix} - {other}"] = summary(scores[mix] - scores[other])
    result = {
        "args": asdict(por_args(args, "D_o")) | {"more_env": args.more_env},
        "tasks": {name: asdict(task) for name, task in tasks.items()},
        "scores": {variant: summary(x) for variant, x in scores.items()},
        "gains": gains,
    }
    for name, numbers in (result["scores"] | gains).items():
        print(f"{name:14} {shown(numbers, 1)}")
    store("mix", args.out, "result", result, {"variants.png": draw(scores, tasks)})


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.resume is not None or args.run_dir is not None:
        sys.exit("--out names the folder of the three runs; the same command goes on with them")
    por.gym.logger.min_level = por.gym.logger.ERROR  # the v4 environments are meant
    try:
        study(args)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on with it")
