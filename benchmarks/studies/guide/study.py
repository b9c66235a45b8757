"""What does POR's guide say where its data are silent, and what does its bound say?

Two claims of the POR slides (Xu, Jiang, Li, Zhan; NeurIPS 2022), measured on checkpoints of por.py.

1. `beyond`. "The distribution of g(s) bears some similarity to that of s'; at the non-overlapped
area g(s) has a much higher value." The slides name neither data nor numbers. Here a box of states
is cut out of a dataset, and every tenth episode is held out whole. Two runs, one trained without
the box (cut), one with it (control), are asked for g(s) on held-out states inside the box and
outside. Is g(s) near s', is it near a state that can be, is its value higher than that of s'? V is
asked of the agent itself, which never saw the box either, and of the control.

    python -m benchmarks.datasets.collect pointmaze-large --steps 150000
    python -m benchmarks.studies.guide cut rebuilt/pointmaze/large-150k-v0 --box 4:4:5 5:-0.5:2.5 \\
        --name local/pointmaze/large-cut-v0 --control local/pointmaze/large-whole-v0
    python -m benchmarks.studies.guide train -- --run-dir runs/c --env local/pointmaze/large-cut-v0
    python -m benchmarks.studies.guide train -- --run-dir runs/w \\
        --env local/pointmaze/large-whole-v0
    python -m benchmarks.studies.guide beyond --cut runs/c --control runs/w --out runs/guide

A cut takes out every transition that begins or ends in the box. What is left of an episode on
either side becomes episodes of their own. The control is divided at the same places, so the sets
differ in the box's transitions alone. `--box 4:4:5` is observation 4 between 4 and 5; an open side
is left empty.

2. `terms`. With P(s, s') the action that leads from s to s', a recorded row (s, a = P(s, s'), s'),
a_g = P(s, g(s)), and a* the best action, Theorem 1 says

    |pi(s,g(s)) - a*| <= (L1 + L2) |g(s) - s'| + |a_g - a*| + eps,      eps = |pi(s,s') - a|

where L1 and L2 are the Lipschitz constants of P and pi; and J(pi*) - J(pi) <= T sup(the right side)
(as printed: a Lipschitz constant of the return in the actions is left out). Measured, with actions
in [-1, 1]:

    gap    |g(s) - s'|               the first term without its constants
    swap   |pi(s,g(s)) - pi(s,s')|   the part of the first term that is L2's
    error  |pi(s,s') - a|            eps

on held-out rows, where s' and a are recorded, and along rollouts, where a = pi(s,g(s)) is what the
agent did and s' what came of it. swap / gap is a lower estimate of L2. Not measured are L1, a_g and
a*, so neither the second term nor the bound itself. The loss of return is counted from the best
mean return at hand. Whether gap and error tell the loss is asked over agents and checkpoints, and
over agents of one checkpoint.

    python -m benchmarks.studies.guide terms --run runs/w --out runs/guide

`train` is algorithms/por.py and takes its options; it also keeps a copy of every checkpoint.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import minari
import numpy as np
import tyro

from benchmarks.common import split_words
from benchmarks.studies.guide.cut import Cut, cut, inside, parse_box
from benchmarks.studies.guide.measures import (
    MEASURES,
    Rows,
    correlation,
    measure_beyond,
    rollouts,
    terms_on_rows,
    thin,
)
from benchmarks.studies.guide.picture import draw_beyond, draw_terms
from benchmarks.studies.shared import por, shown, store, summary


@dataclass
class Train:
    """algorithms/por.py with the options after --; keeps a copy of every checkpoint."""


@dataclass
class Beyond:
    """Compare g(s) with s' inside the cut box and outside, for agents with and without it."""

    cut: Path  # folder of the run without the box
    control: Path  # folder of the run with it
    out: Path  # folder of beyond.json and beyond.png
    states: int = 1_000  # held-out states inside, and as many outside


@dataclass
class Terms:
    """Compare the measurable terms of Theorem 1 with the loss of return."""

    run: Path  # folder of a run of `train`
    out: Path  # folder of terms.json and terms.png
    episodes: int = 10  # rollouts per agent and checkpoint
    states: int = 2_000  # held-out rows, or rows of the training data where none were held out


# --------------------------------------------------------------------------------------------------
# Runs and their data
# --------------------------------------------------------------------------------------------------


def train(words: list[str]) -> None:
    """Run por.py's command with these words, and keep a copy of every checkpoint."""
    save = por.save

    def save_and_keep(run, folder: Path) -> None:
        save(run, folder)
        scored = run.agent.phases[run.phase].scored
        if scored and run.step > 0:
            copy = folder / "checkpoints" / f"{run.step:08d}"
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "checkpoint.pt", copy)

    por.save = save_and_keep
    sys.argv = ["algorithms/por.py", *words]
    por.main()


@dataclass
class Trained:
    """Agents of a checkpoint on the CPU."""

    agent: por.POR
    args: por.Args
    task: por.Task
    step: int


def load(folder: Path) -> Trained:
    """Load the checkpoint of a folder."""
    checkpoint = por.load_checkpoint(str(folder))
    args = por.Args(**checkpoint["args"])
    task = por.Task(**checkpoint["task"])
    agent = por.POR(args, task, "cpu")
    agent.load_state_dict(checkpoint["agent"])
    return Trained(agent, args, task, checkpoint["step"])


def load_rows(args: por.Args, fingerprint: str | None = None) -> tuple[Rows, np.ndarray]:
    """Return the rows of a dataset that have a next state, and the numbers of their episodes."""
    data, task = por.load_dataset(args)
    if fingerprint is not None and task.fingerprint != fingerprint:
        sys.exit(f"{args.env} holds other data now than those the run was trained on")
    episode = np.cumsum(data["episode_end"]) - data["episode_end"]
    valid = data["next_valid"] > 0
    rows = Rows(data["observations"], data["actions"], data["next_observations"])
    return rows.pick(valid), episode[valid]


def load_data(trained: Trained) -> tuple[Rows, Rows | None, dict]:
    """Return the rows that a run was trained on, those that were held out, and what `cut` noted."""
    args = trained.args
    rows, _ = load_rows(args, trained.task.fingerprint)
    if args.dataset_file is not None or args.env not in minari.list_local_datasets():
        return rows, None, {}
    origin = json.loads(minari.load_dataset(args.env).storage.metadata.get("cut", "{}"))
    if not origin:
        return rows, None, {}
    source = origin["source"]
    told = minari.load_dataset(source).storage.metadata
    if told.get("data_sha256", "unknown") != origin["source_sha256"]:
        sys.exit(f"{source} holds other data now than those {args.env} was cut from")
    whole, episode = load_rows(por.Args(env=source))
    return rows, whole.pick(episode % origin["held_out"] == origin["held_out"] - 1), origin


# --------------------------------------------------------------------------------------------------
# The two measurements
# --------------------------------------------------------------------------------------------------


def check_pair(runs: dict[str, Trained], data: dict) -> None:
    """Refuse two runs that differ in more than their data."""
    origins = [origin for _, _, origin in data.values()]
    if not origins[0] or origins[0] != origins[1]:
        sys.exit("--cut and --control must be trained on the two datasets of one `cut`")
    if len(data["cut"][0].s) >= len(data["control"][0].s):
        sys.exit("--cut holds more data than --control; exchange the two")
    free = ("env", "run_dir", "device", "execution", "eval_every", "eval_episodes")
    free += ("final_eval_episodes", "resume")
    one, other = (vars(run.args) for run in runs.values())
    differing = [key for key in one if one[key] != other[key] and key not in free]
    if runs["cut"].step != runs["control"].step:
        differing.append("their updates")
    if differing:
        sys.exit(f"the two runs differ in {', '.join(differing)}; only the data may differ")


def choose_regions(rows: Rows, box: list, most: int) -> dict[str, Rows]:
    """Return held-out rows that begin inside the box, and rows that do not touch it."""
    begins, ends = inside(rows.s, box), inside(rows.s2, box)
    regions = {}
    for name, chosen in (("inside", begins), ("outside", ~begins & ~ends)):
        index = np.flatnonzero(chosen)
        if len(index) < 10:
            sys.exit(f"only {len(index)} held-out states lie {name} the box; cut another box")
        regions[name] = rows.pick(index[thin(len(index), most)])
    return regions


def beyond(args: Beyond) -> None:
    """Store numbers and picture of the guide inside and outside the box."""
    runs = {"cut": load(args.cut), "control": load(args.control)}
    data = {name: load_data(run) for name, run in runs.items()}
    check_pair(runs, data)
    _, held_out, origin = data["cut"]
    box = parse_box(tuple(origin["box"]), held_out.s.shape[1])
    regions = choose_regions(held_out, box, args.states)
    agents = {name: run.agent for name, run in runs.items()}
    task = runs["control"].task
    found = measure_beyond(agents, task, data["control"][0].s, regions, box)
    measures = {}
    for measure, by_agent in found.items():
        print(f"\n{measure}")
        measures[measure] = {}
        for name, by_region in by_agent.items():
            numbers = {region: summary(values) for region, values in by_region.items()}
            measures[measure][name] = numbers
            words = [f"{region} {shown(value, 3)}" for region, value in numbers.items()]
            print(f"  {name:8} {', '.join(words)}")
    result = {
        "runs": {name: vars(run.args) for name, run in runs.items()},
        "cut": origin,
        "states": {region: len(rows.s) for region, rows in regions.items()},
        "meaning": MEASURES,
        "measures": measures,
    }
    figure = draw_beyond(agents, task, regions, box, measures)
    store("guide", args.out, "beyond", result, {"beyond.png": figure})


def measure_terms(trained: Trained, rows: Rows, episodes: int) -> dict[str, np.ndarray]:
    """Return the terms of a checkpoint's agents: names -> (N,)."""
    said = terms_on_rows(trained.agent, rows)
    played = rollouts(trained.agent, trained.task, episodes)
    numbers = {f"data_{name}": values.mean(1) for name, values in said.items()}
    numbers |= {f"rollout_{name}": played[name].mean(1) for name in ("gap", "error")}
    numbers["return"] = played["return"].mean(1)
    slope = (said["swap"] / said["gap"].clip(1e-9)).max(1)
    numbers["l2_share_of_bound"] = slope * played["gap_max"].mean(1)
    return numbers


def correlate(numbers: dict, loss: np.ndarray) -> dict:
    """Return the rank correlations of the terms with the loss of return, and print them."""
    found = {}
    for name in ("rollout_gap", "rollout_error", "data_gap", "data_swap", "data_error"):
        found[name] = {
            "agents and checkpoints": correlation(numbers[name], loss),
            "agents within checkpoints": correlation(numbers[name], loss, within=True),
        }
        for kind, numbers_of in found[name].items():
            print(f"loss with {name}, {kind}: {numbers_of['spearman']} {numbers_of['interval']}")
    return found


def terms(args: Terms) -> None:
    """Store numbers and picture of the terms against the loss of return."""
    folders = sorted(args.run.glob("checkpoints/*"))
    if not folders:
        sys.exit(f"{args.run} has no checkpoints/, which `train` keeps")
    last = load(folders[-1])
    rows, held_out, origin = load_data(last)
    rows = rows if held_out is None else held_out
    rows = rows.pick(thin(len(rows.s), args.states))
    step = float(np.linalg.norm(rows.s2 - rows.s, axis=1).mean())
    updates = []
    parts = []
    for folder in folders:
        trained = load(folder)
        updates.append(trained.step)
        parts.append(measure_terms(trained, rows, args.episodes))
    numbers = {name: np.array([part[name] for part in parts]) for name in parts[0]}
    loss = numbers["return"].max() - numbers["return"]
    correlations = correlate(numbers, loss)
    result = {
        "run": vars(last.args),
        "cut": origin,
        "rows": len(rows.s),
        "held_out": held_out is not None,
        "mean_step": step,
        "updates": updates,
        "greatest_distance_of_two_actions": 2 * last.task.act_dim**0.5,
        "numbers": {name: [summary(x) for x in values] for name, values in numbers.items()},
        "rank_correlation_with_loss": correlations,
    }
    bound = shown(result["numbers"]["l2_share_of_bound"][-1])
    most = result["greatest_distance_of_two_actions"]
    print(f"L2's share of the bound: {bound}; two actions are at most {most:.2f} apart")
    figure = draw_terms(numbers, loss, updates, step, correlations)
    store("guide", args.out, "terms", result, {"terms.png": figure})


def main() -> None:
    own, words = split_words(sys.argv[1:])
    args = tyro.cli(Cut | Train | Beyond | Terms, args=own, description=__doc__)
    por.gym.logger.min_level = por.gym.logger.ERROR  # the v4 environments are meant
    if words and not isinstance(args, Train):
        sys.exit("only `train` takes words after --")
    if isinstance(args, Beyond | Terms) and args.states < 10:
        sys.exit("--states must be at least 10")
    if isinstance(args, Terms) and args.episodes < 1:
        sys.exit("--episodes must be at least 1")
    if isinstance(args, Cut):
        cut(args)
    elif isinstance(args, Train):
        train(words)
    elif isinstance(args, Beyond):
        beyond(args)
    else:
        terms(args)
