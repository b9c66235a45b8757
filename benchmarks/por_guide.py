"""What POR's guide says where its data are silent, and the terms of its bound along rollouts.

Two claims of the POR slides (Xu, Jiang, Li, Zhan; NeurIPS 2022; arXiv 2210.08323), measured on
trained checkpoints of algorithms/por.py.

1. `beyond`. "The distribution of g(s) bears some similarity to that of s'; at the non-overlapped
area g(s) has a much higher value." The slides name neither data nor numbers. Here a box of states
is cut out of a dataset, and every tenth episode is held out whole. Two agents, one trained without
the box (*cut*), one with it (*control*), are asked for g(s) on held-out states inside the box and
outside. Is g(s) near s', is it a state that can be, is its value higher than that of s'? The value
is asked of two judges: the agent's own V, which never saw the box either, and the control's.

    python benchmarks/collect.py pointmaze-large --steps 150000
    python benchmarks/por_guide.py cut rebuilt/pointmaze/large-150k-v0 --box 4:4:5 5:-0.5:2.5 \\
        --name local/pointmaze/large-cut-v0 --control local/pointmaze/large-whole-v0
    python algorithms/por.py --env local/pointmaze/large-cut-v0 --run-dir runs/cut ...
    python algorithms/por.py --env local/pointmaze/large-whole-v0 --run-dir runs/whole ...
    python benchmarks/por_guide.py beyond --cut runs/cut --control runs/whole --out por_guide_beyond

A cut takes out every transition that begins or ends in the box. What is left of an episode on
either side becomes episodes of their own, which end by a time limit and know their true last state:
no two far states are connected. The control is divided at the same places, so the sets differ in
the box's transitions alone (and por.py, which scales rewards by the returns of episodes, sees 0
and 1 in both sets of the maze). `--box 4:4:5`: observation 4 between 4 and 5; an open side is left
empty.

2. `terms`. With P(s, s') the action that leads from s to s', a recorded row (s, a = P(s, s'), s'),
a_g = P(s, g(s)), and a* the best action, Theorem 1 says

    |pi(s,g(s)) - a*| <= (L1 + L2) |g(s) - s'| + |a_g - a*| + eps,      eps = |pi(s,s') - a|

where L1 and L2 are the Lipschitz constants of P and pi; and J(pi*) - J(pi) <= T sup(the right side)
(as printed: a Lipschitz constant of the return in the actions is left out). By its proof, the first
term bounds |pi(s,g(s)) - pi(s,s')| + |a - a_g|. Measured, with actions clipped to their bounds as
the environment gets them:

    gap    |g(s) - s'|               the first term without its constants
    swap   |pi(s,g(s)) - pi(s,s')|   the part of the first term that is L2's
    error  |pi(s,s') - a|            eps

on held-out rows, where s' and a are recorded, and along rollouts, where a = pi(s,g(s)) is what the
agent did and s' what came of it (there swap and error are the same number: did the execute-policy's
action lead where pi(s,s') says it does?). swap / gap is a lower estimate of L2. Not measured: L1,
a_g and a*, so neither the second term nor the bound itself; the loss is taken from the best return
at hand (`--best-return`), not from J(pi*). Whether gap and error tell the loss is asked over seeds
and checkpoints, over seeds of one checkpoint, and over single episodes.

    python benchmarks/por_guide.py train -- --env local/pointmaze/large-whole-v0 --run-dir runs/w
    python benchmarks/por_guide.py terms --run runs/w --out por_guide_terms

`train` is algorithms/por.py and takes its options; it also keeps a copy of every checkpoint.
Intervals are 95%: Student's t over seeds; for correlations a bootstrap over seeds.
"""

import itertools
import json
import math
import platform
import re
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import collect
import matplotlib
import minari
import numpy as np
import torch
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from plot import COLORS  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "algorithms"))
import por  # noqa: E402

# Two-sided 95% quantiles of Student's t for 1 to 9 degrees of freedom (any table of it)
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NEAR = 95  # percentile of the recorded next states' own distance to the data that counts as near
RESAMPLES = 2_000  # of the bootstrap; its interval's ends move by some 0.01
REFERENCE = 200_000  # most states of the data that a state is compared with
CONTRAST = 10.0  # arrows of the picture are so many times as long as the step that they stand for


@dataclass
class Cut:
    """Take a box of states out of a dataset, and every tenth episode for tests."""

    source: Annotated[str, tyro.conf.Positional]
    """local Minari dataset, such as rebuilt/pointmaze/large-150k-v0"""
    box: tuple[str, ...]
    """sides of the box, INDEX:LOW:HIGH of the observation; an empty side is open"""
    name: str
    """id of the dataset without the box, local/...-v0"""
    control: str
    """id of the dataset with it, divided at the same places"""
    held_out: int = 10
    """every so manieth episode is in neither"""
    force: bool = False
    """replace the datasets if they exist"""


@dataclass
class Train:
    """algorithms/por.py with the options after --; keeps a copy of every checkpoint."""


@dataclass
class Beyond:
    """Compare g(s) with s' inside the cut box and outside, for agents with and without it."""

    cut: Path
    """run folder of the agent trained without the box"""
    control: Path
    """run folder of the agent trained with it"""
    out: Path
    """.json and .png are added"""
    states: int = 1_000
    """held-out states inside, and as many outside"""


@dataclass
class Terms:
    """The measurable terms of Theorem 1 against the loss of return."""

    run: Path
    """run folder; of `train`, for its checkpoints"""
    out: Path
    """.json and .png are added"""
    episodes: int = 10
    """rollouts per seed and checkpoint"""
    states: int = 2_000
    """held-out rows, or rows of the training data where none were held out"""
    best_return: float | None = None
    """losses are counted from it (default: the best mean return among seeds and checkpoints)"""


# ---------------------------------------------------------------------------------------------
# The cut
# ---------------------------------------------------------------------------------------------


def parse_box(words, obs_dim: int) -> list[tuple[int, float, float]]:
    """('4:-1:2', '5::0') -> [(4, -1.0, 2.0), (5, -inf, 0.0)]. Raises SystemExit on bad words."""
    box = []
    for word in words:
        try:
            index, low, high = word.split(":")
            side = int(index), float(low or "-inf"), float(high or "inf")
        except ValueError:
            raise SystemExit(f"--box {word}: must be INDEX:LOW:HIGH, such as 4:-1:2.5")
        if not (0 <= side[0] < obs_dim and side[1] < side[2]):
            raise SystemExit(f"--box {word}: observations have indices 0 to {obs_dim - 1}, and LOW "
                             "must be below HIGH")
        box.append(side)
    return box


def inside(obs: np.ndarray, box: list[tuple[int, float, float]]) -> np.ndarray:
    """Which of the observations (n, obs) lie in the box, borders included: (n,) bool."""
    return np.all([(low <= obs[:, i]) & (obs[:, i] <= high) for i, low, high in box], 0)


def split(episode: dict, box: list[tuple[int, float, float]]) -> list[tuple[dict, bool]]:
    """The episode in pieces, and of each whether it is taken out: one end of each row in the box.

    Pieces are episodes: T + 1 observations, the last one true; a piece that does not end with the
    episode ends by truncation.
    """
    within = inside(episode["observations"], box)
    taken = within[:-1] | within[1:]
    borders = [0, *np.flatnonzero(np.diff(taken)) + 1, len(taken)]
    pieces = []
    for first, last in itertools.pairwise(borders):
        piece = {key: value[first:last + (key == "observations")].copy()
                 for key, value in episode.items()}
        piece["truncations"][-1] |= not piece["terminations"][-1]
        pieces.append((piece, bool(taken[first])))
    return pieces


def read_episodes(name: str) -> tuple[list[dict], minari.MinariDataset]:
    """Episodes of a local Minari dataset as dicts of collect.FIELDS. Raises SystemExit."""
    if name not in minari.list_local_datasets():
        raise SystemExit(f"{name}: no such local dataset; benchmarks/collect.py builds them, and "
                         "python -m minari list local names those at hand")
    dataset = minari.load_dataset(name)
    episodes = [{key: getattr(e, key) for key in collect.FIELDS}
                for e in dataset.iterate_episodes()]
    if isinstance(episodes[0]["observations"], dict):
        raise SystemExit(f"{name}: observations are a Dict; build it with benchmarks/collect.py, "
                         "which flattens them")
    return episodes, dataset


def held_out(episodes: list, every: int) -> list:
    """The episodes that are in no training set: the last of every `every`."""
    return episodes[every - 1::every]


def cut(args: Cut) -> None:
    """Write the two datasets. Raises SystemExit, with nothing written, on bad input."""
    started = time.perf_counter()
    if args.held_out < 2:
        raise SystemExit(f"--held-out {args.held_out}: must be at least 2")
    for name in (args.name, args.control):
        if not re.fullmatch(r"local(/[\w-]+)+-v\d+", name):
            raise SystemExit(f"{name}: names must be like local/pointmaze/large-cut-v0")
    if args.name == args.control:
        raise SystemExit("--name and --control are the same")
    episodes, dataset = read_episodes(args.source)
    if len(episodes) < args.held_out:
        raise SystemExit(f"--held-out {args.held_out}: {args.source} has only {len(episodes)} "
                         "episodes, none would be held out")
    box = parse_box(args.box, episodes[0]["observations"].shape[1])
    root, sets = collect.datasets_root(), {args.name: [], args.control: []}
    if there := [name for name in sets if (root / name).exists() and not args.force]:
        raise SystemExit(f"{', '.join(there)} exists; --force replaces it")
    for number, episode in enumerate(episodes, 1):
        if number % args.held_out:
            for piece, taken in split(episode, box):
                sets[args.control].append(piece)
                if not taken:
                    sets[args.name].append(piece)
    steps = {name: sum(len(e["rewards"]) for e in pieces) for name, pieces in sets.items()}
    if not 0 < steps[args.name] < steps[args.control]:
        raise SystemExit(f"--box {' '.join(args.box)}: takes out "
                         f"{'everything' if not steps[args.name] else 'nothing'}")
    told = dataset.storage.metadata
    origin = {"source": args.source, "source_sha256": told.get("data_sha256", "unknown"),
              "box": list(args.box), "held_out": args.held_out}
    spec = dataset.env_spec
    stored = {"observation_space": dataset.observation_space, "action_space": dataset.action_space}
    for name, pieces in sets.items():
        what = "without" if name == args.name else "divided at the borders of"
        metadata = {
            "algorithm_name": told.get("algorithm_name", "unknown"),
            "description": f"{args.source}, {what} the box {' '.join(args.box)}, without every "
                           f"{args.held_out}th episode",
            "command": command("cut", args), "cut": json.dumps(origin),
            "data_sha256": collect.data_sha256(pieces), "commit": collect.git_commit()}
        metadata |= {key: told[key] for key in ("env_id", "ref_min_score", "ref_max_score")
                     if key in told}
        collect.write_dataset(root, name, stored | ({"env": spec} if spec else {}), pieces,
                              metadata, started)
        print(f"{name}: {steps[name]:,} transitions, {len(pieces):,} episodes, SHA-256 "
              f"{metadata['data_sha256']}")
    tested = held_out(episodes, args.held_out)
    rows = np.concatenate([e["observations"][:-1] for e in tested])
    print(f"the box takes out {1 - steps[args.name] / steps[args.control]:.1%}; held out: "
          f"{len(tested)} episodes, {len(rows):,} states, {inside(rows, box).sum():,} of them in "
          "the box")


# ---------------------------------------------------------------------------------------------
# Agents and rows
# ---------------------------------------------------------------------------------------------


class KeepingRun(por.Run):
    """A run that keeps a copy of every checkpoint of its training phase."""

    def save(self, finished: bool) -> None:
        super().save(finished)
        last = self.phase == len(self.agent.phases) - 1
        if last and (finished or self.step % self.args.checkpoint_every == 0):
            shutil.copy(Path(self.args.run_dir, "checkpoint.pt"),
                        Path(self.args.run_dir, f"checkpoint-{self.step:08d}.pt"))


def train(words: list[str]) -> None:
    """por.py's command with these words."""
    before, por.RUN, sys.argv = (por.RUN, sys.argv), KeepingRun, ["por.py", *words]
    try:
        por.main()
    except (OSError, por.BrokenExecutor) as error:  # as por.py's own last lines
        [worker.kill() for worker in por.mp.active_children()]
        raise SystemExit(f"{error}: mend this, then give the same command again")
    finally:
        por.RUN, sys.argv = before


def load_checkpoint(path: Path) -> tuple[por.POR, dict]:
    """The agent of a checkpoint on the CPU, and all that the checkpoint says.

    Raises SystemExit if it is none of por.py's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["script"] != "por":
            raise ValueError(f"it belongs to {state['script']}.py")
        run = por.Run(por.Args(**state["args"]), state["task"], torch.device("cpu"))
        run.restore(state)
    except Exception as error:
        raise SystemExit(f"{path}: no checkpoint of por.py ({type(error).__name__}: "
                         f"{error!s:.150})")
    return run.agent, state


@dataclass
class Data:
    """A run's dataset, and the rows that were held out of it."""

    rows: dict  # as por.load_dataset has them
    origin: dict  # what `cut` noted; empty for other datasets
    episodes: list[dict]  # held out
    about: dict  # name, size, fingerprint


def load_data(state: dict) -> Data:
    """Data of a checkpoint. Raises SystemExit if they are not those that it was trained on."""
    name = state["args"]["env"]
    asked = {k: state["args"][k] for k in ("env", "dataset_file")}
    rows, task = por.load_dataset(por.Args(**asked))
    if task["fingerprint"] != state["task"]["fingerprint"]:
        raise SystemExit(f"{name} holds other data now than those the run was trained on")
    known, origin, episodes = rows["known"] > 0, {}, []
    rows = {k: v[known] for k, v in rows.items()}
    if not state["args"]["dataset_file"] and name in minari.list_local_datasets():
        metadata = minari.load_dataset(name).storage.metadata
        if "cut" in metadata:
            origin = json.loads(metadata["cut"])
            whole, source = read_episodes(origin["source"])
            if source.storage.metadata.get("data_sha256", "unknown") != origin["source_sha256"]:
                raise SystemExit(f"{origin['source']} holds other data now than those {name} was "
                                 "cut from")
            episodes = held_out(whole, origin["held_out"])
    about = {k: task[k] for k in ("name", "source", "env_id", "transitions", "episodes",
                                  "fingerprint")}
    return Data(rows, origin, episodes, about)


def transitions(episodes: list[dict]) -> tuple[np.ndarray, ...]:
    """s (n, obs), a (n, act), s' (n, obs) of whole episodes, float32."""
    columns = zip(*((e["observations"][:-1], e["actions"], e["observations"][1:])
                    for e in episodes))
    return tuple(np.concatenate(column).astype(np.float32) for column in columns)


def thin(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` rows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


# ---------------------------------------------------------------------------------------------
# The measures
# ---------------------------------------------------------------------------------------------


def value(agent: por.POR, states: torch.Tensor) -> np.ndarray:
    """The smaller head of V, (N, M, obs) -> (N, M)."""
    with torch.no_grad():
        return agent.value(states).squeeze(-1).amin(1).numpy()


def answers(agent: por.POR, task: dict, s, a, s2) -> dict[str, np.ndarray]:
    """What an agent of N seeds says on rows s (M, obs), a (M, act), s2 (M, obs).

    goal (N, M, obs): the mean of g(s). gap, swap, error (N, M): the measured terms of the module's
    docstring, in the units of states and of actions.
    """
    seeds = agent.guide.log_std.shape[0]
    s, s2 = (torch.from_numpy(x).expand(seeds, -1, -1) for x in (s, s2))
    with torch.no_grad():
        goal = agent.guide(s)[0]
        towards = [agent.execute(torch.cat([s, x], -1))[0].numpy().clip(
            task["act_low"], task["act_high"]) for x in (goal, s2)]
    norm = lambda x: np.linalg.norm(x, axis=-1)
    return {"goal": goal.numpy(), "gap": norm((goal - s2).numpy()),
            "swap": norm(towards[0] - towards[1]), "error": norm(towards[1] - a)}


def nearest(states: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Distance of each state (..., d) to the closest of data (n, d): (...,)."""
    flat, reference = torch.from_numpy(states).reshape(-1, states.shape[-1]), torch.from_numpy(data)
    # not by matrix products, which lose the small distances
    parts = [torch.cdist(part, reference, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
             for part in flat.split(100)]
    return torch.cat(parts).reshape(states.shape[:-1]).numpy()


def maze_of(task: dict):
    """The maze of a PointMaze task; None for other tasks."""
    return getattr(por.make_env(task).unwrapped, "maze", None) if "PointMaze" in task["env_id"] \
        else None


def free(maze, xy: np.ndarray) -> np.ndarray:
    """Which positions (..., 2) lie in a free cell of the maze: (...,) bool."""
    row = np.floor((maze.y_map_center - xy[..., 1]) / maze.maze_size_scaling).astype(int)
    column = np.floor((xy[..., 0] + maze.x_map_center) / maze.maze_size_scaling).astype(int)
    walls = np.array([[cell == 1 for cell in line] for line in maze.maze_map])
    known = (0 <= row) & (row < walls.shape[0]) & (0 <= column) & (column < walls.shape[1])
    return known & ~walls[np.where(known, row, 0), np.where(known, column, 0)]


def body(task: dict) -> tuple[slice, slice]:
    """Observations that say where the body is, and those that say its whole state.

    PointMaze repeats the position and adds the goal, which no action moves.
    """
    if "PointMaze" in task["env_id"]:
        return slice(4, 6), slice(4, 8)
    return {"Hopper": slice(0, 5)}.get(task["env_id"].split("-")[0], slice(None)), slice(None)


def compare(agents: dict, tasks: dict, data: dict, states: dict, box: list, maze) -> dict:
    """measure -> agent -> region -> arrays (N,) with a number per seed; see MEASURES.

    agents, tasks, data: by name, cut and control; data: observations (n, obs) that each trained on.
    states: by region, inside and outside: s, a, s'.
    """
    task = tasks["control"]
    place, state = body(task)
    outside = states["outside"]
    scale = data["control"][:, state].std(0) + 1e-8
    scaled = lambda x: np.ascontiguousarray(x[..., state] / scale, np.float32)
    data = {name: scaled(x[thin(len(x), REFERENCE)]) for name, x in data.items()}
    radius = np.percentile(nearest(scaled(outside[2]), data["control"]), NEAR)
    step = np.linalg.norm(outside[2] - outside[0], axis=1).mean()
    move = np.linalg.norm((outside[2] - outside[0])[:, place], axis=1).mean()
    found = {}
    for name, agent in agents.items():
        seeds = agent.guide.log_std.shape[0]
        for region, (s, a, s2) in states.items():
            said = answers(agent, tasks[name], s, a, s2)
            goal, mean = said["goal"], lambda x: np.broadcast_to(
                np.asarray(x, float), (seeds, len(s))).mean(1)
            many = lambda x: torch.from_numpy(x).expand(seeds, -1, -1)
            reach = {who: nearest(scaled(goal), x) <= radius for who, x in data.items()}
            heading, went = (goal - s)[..., place], (s2 - s)[:, place]
            cosine = (heading * went).sum(-1) / (
                np.linalg.norm(heading, axis=-1) * np.linalg.norm(went, axis=-1) + 1e-12)
            numbers = {
                "distance": mean(said["gap"]) / step,
                "distance_position": mean(
                    np.linalg.norm((goal - s2)[..., place], axis=-1)) / move,
                "cosine": mean(cosine), "execute_error": mean(said["error"]),
                "in_box": mean(inside(goal.reshape(-1, s.shape[1]), box).reshape(seeds, -1)),
                "in_box_recorded": mean(inside(s2, box)),
                "reachable": mean(reach["control"]), "seen": mean(reach[name]),
                "reachable_recorded": mean(nearest(scaled(s2), data["control"]) <= radius),
                "seen_recorded": mean(nearest(scaled(s2), data[name]) <= radius)}
            if maze:
                numbers["free"] = mean(free(maze, goal[..., place]))
                numbers["free_recorded"] = mean(free(maze, s2[:, place]))
            for judge, other in {"own": agent, "control": agents["control"]}.items():
                v, v2 = value(other, torch.from_numpy(goal)), value(other, many(s2))
                spread = value(other, many(outside[0])).std(1, keepdims=True)
                gain = (v - v2) / spread
                numbers |= {f"higher_{judge}": mean(v > v2), f"gain_{judge}": mean(gain),
                            f"rises_recorded_{judge}": mean(v2 > value(other, many(s)))}
                for word, rows in ("seen", reach[name]), ("unseen", ~reach[name]):
                    some = rows.sum(1)
                    enough = np.where(some >= 10, some, np.nan)  # of fewer a mean says nothing
                    numbers[f"gain_{word}_{judge}"] = (gain * rows).sum(1) / enough
                    numbers[f"higher_{word}_{judge}"] = ((v > v2) & rows).sum(1) / enough
            for measure, numbers_of in numbers.items():
                found.setdefault(measure, {}).setdefault(name, {})[region] = numbers_of
    return found


MEASURES = {
    "distance": "mean |g(s) - s'| in mean steps |s' - s| of held-out rows outside (1: no better "
                "than to stay)",
    "distance_position": "the same of the observations that are a position",
    "cosine": "mean cosine between g(s) - s and s' - s of the position",
    "execute_error": "mean |pi(s,s') - a|",
    "in_box": "g(s) lies in the box", "in_box_recorded": "s' does",
    "reachable": "g(s) is near a state of the data with the box",
    "reachable_recorded": "s' is",
    "seen": "g(s) is near a state of the agent's own data", "seen_recorded": "s' is",
    "free": "g(s) lies in a free cell of the maze", "free_recorded": "s' does",
    "..._own, ..._control": "judged by the agent's own V, by the control's V of the same seed",
    "higher": "V(g(s)) > V(s')", "rises_recorded": "V(s') > V(s)",
    "gain": "mean V(g(s)) - V(s') in deviations of V over held-out states outside",
    "higher_seen": "higher, of the states whose g(s) is near a state of the agent's own data; null "
                   "with fewer than 10 of them in a seed",
    "gain_seen": "gain, of these", "higher_unseen": "higher, of the other states",
    "gain_unseen": "gain, of the other states"}


def summary(numbers) -> dict:
    """Mean of numbers (N,), 95% interval of the mean by Student's t, and the numbers.

    A seed's NaN, a mean over nothing, makes all of it null: seeds must not be chosen.
    """
    numbers = np.asarray(numbers, float)
    listed = [None if math.isnan(x) else float(f"{x:.5g}") for x in numbers]
    mean, n = numbers.mean(), len(numbers)
    if math.isnan(mean):
        return {"mean": None, "interval": None, "seeds": listed}
    if n == 1:
        return {"mean": listed[0], "interval": None, "seeds": listed}
    t = T95[n - 2] if n - 2 < len(T95) else 1.96 + 2.7 / (n - 1)
    half = t * numbers.std(ddof=1) / n**0.5
    return {"mean": float(f"{mean:.5g}"), "seeds": listed,
            "interval": [float(f"{mean - half:.5g}"), float(f"{mean + half:.5g}")]}


def rollouts(agent: por.POR, task: dict, seeds: int, episodes: int) -> dict[str, np.ndarray]:
    """Episodes as por.evaluate plays them, with their terms: arrays (N, episodes).

    return, steps; means over the episode of gap and error, and their greatest; the mean step
    |s' - s|; gap and error `_early`: means over the steps up to the first reward that is not 0.
    """
    envs = [[por.make_env(task) for _ in range(episodes)] for _ in range(seeds)]
    obs = np.array([[e.reset(seed=i)[0] for i, e in enumerate(row)] for row in envs], np.float32)
    shape = seeds, episodes
    names = ("return", "steps", "gap", "error", "gap_max", "error_max", "step", "gap_early",
             "error_early", "steps_early")
    found, alive = {name: np.zeros(shape) for name in names}, np.ones(shape, bool)
    early = alive.copy()
    norm, x = (lambda x: np.linalg.norm(x, axis=-1)), torch.from_numpy
    while alive.any():
        with torch.no_grad():
            goal = agent.guide(x(obs))[0]
            actions = agent.execute(torch.cat([x(obs), goal], -1))[0].numpy()
        actions = actions.clip(task["act_low"], task["act_high"])
        following, still, none_yet = obs.copy(), alive.copy(), early.copy()
        for i in zip(*alive.nonzero()):
            following[i], reward, over, limit, _ = envs[i[0]][i[1]].step(actions[i])
            found["return"][i] += reward
            still[i] = not (over or limit)
            none_yet[i] &= reward == 0
        with torch.no_grad():
            told = agent.execute(torch.cat([x(obs), x(following)], -1))[0].numpy()
        terms = {"gap": norm(goal.numpy() - following), "step": norm(following - obs),
                 "error": norm(told.clip(task["act_low"], task["act_high"]) - actions)}
        for name, numbers in terms.items():
            found[name] += alive * numbers
            if (most := f"{name}_max") in found:
                found[most] = np.maximum(found[most], alive * numbers)
                found[f"{name}_early"] += (alive & early) * numbers
        found["steps"] += alive
        found["steps_early"] += alive & early
        obs, alive, early = following, still, none_yet
    found |= {name: found[name] / found["steps"] for name in ("gap", "error", "step")}
    parts = {f"{name}_early": found[f"{name}_early"] / found["steps_early"]
             for name in ("gap", "error")}
    return found | parts


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of numbers (n,), equal ones share their mean rank."""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which]


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of two arrays (n,); NaN where one is constant."""
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size > 1e-12 else math.nan


def correlation(x: np.ndarray, y: np.ndarray, centre: bool = False) -> dict:
    """Pearson's and Spearman's correlation of arrays (K, N), with intervals.

    N are seeds, and the bootstrap draws seeds, so that the K numbers of one stay together.
    centre: take each row's mean over seeds away, so that only differences among seeds count.
    """
    if centre:
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    draw, n, result = np.random.default_rng(0), x.shape[1], {"points": int(x.size)}
    picks = draw.integers(n, size=(RESAMPLES, n))
    both = {"pearson": pearson, "spearman": lambda x, y: pearson(ranks(x), ranks(y))}
    for name, function in both.items():
        whole = function(x.ravel(), y.ravel())
        again = [function(x[:, p].ravel(), y[:, p].ravel()) for p in picks if len(set(p)) > 1]
        again = [r for r in again if not math.isnan(r)]
        interval = np.percentile(again, [2.5, 97.5]).round(3).tolist() if len(again) > 100 else None
        result[name] = None if math.isnan(whole) else round(whole, 3)
        result[f"{name}_interval"] = interval
    return result


# ---------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------


def command(name: str, args) -> str:
    """The command line that asks for `args`."""
    words = []
    for key, given in vars(args).items():
        if key != "source" and given not in (None, False):
            words += [f"--{key.replace('_', '-')}"]
            words += [] if given is True else map(str, given if type(given) is tuple else [given])
    first = [args.source] if "source" in vars(args) else []
    return shlex.join(["python", "benchmarks/por_guide.py", name, *first, *words])


def circumstances(name: str, args, started: float, runs: dict[str, dict]) -> dict:
    """What numbers need beside them: command, versions, machine, and how the agents came about."""
    described = {}
    for word, state in runs.items():
        final = state["final"] or {}
        described[word] = {
            "args": state["args"], "finished": state["finished"], "update": state["step"],
            "commits": sorted({part["commit"] for part in state["parts"]}),
            "training_seconds": round(sum(p["training_seconds"] for p in state["parts"]), 1),
            "threads": sorted({part["threads"] for part in state["parts"]}),
            "final_returns": final.get("returns"), "final_episodes": final.get("episodes")}
    return {"command": command(name, args), "args": {k: str(v) if isinstance(v, Path) else v
                                                     for k, v in asdict(args).items()},
            "commit": collect.git_commit(), "machine": platform.machine(),
            "threads": torch.get_num_threads(), "date": time.strftime("%F"),
            "versions": {m.__name__: str(m.__version__) for m in (torch, np, por.gym, minari,
                                                                  por.mujoco)},
            "wall_seconds": round(time.perf_counter() - started, 1), "runs": described}


def store(out: Path, result: dict, figure) -> None:
    """Write result and picture beside each other. Raises SystemExit."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(f"{out}.png")
        Path(f"{out}.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise SystemExit(f"cannot write {out}: {error}")
    finally:
        plt.close(figure)
    print(f"wrote {out}.json and {out}.png")


def shown(numbers: dict, digits: int = 2) -> str:
    """'0.52 (0.48 to 0.57)'."""
    if numbers["mean"] is None:
        return "-"
    text = f"{numbers['mean']:.{digits}f}"
    if numbers["interval"]:
        text += " ({:.{d}f} to {:.{d}f})".format(*numbers["interval"], d=digits)
    return text


def beyond(args: Beyond) -> None:
    """Numbers and picture of the guide inside and outside the box."""
    started = time.perf_counter()
    if args.states < 10:
        raise SystemExit(f"--states {args.states}: must be at least 10")
    pairs = {name: load_checkpoint(path / "checkpoint.pt")
             for name, path in (("cut", args.cut), ("control", args.control))}
    agents, runs = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    data = {name: load_data(run) for name, run in runs.items()}
    origin = data["cut"].origin
    if not origin or origin != data["control"].origin:
        raise SystemExit("--cut and --control must be trained on the two datasets of one `cut`")
    if data["cut"].about["transitions"] >= data["control"].about["transitions"]:
        raise SystemExit("--cut holds more data than --control: exchange the two")
    differing = [k for k, v in runs["cut"]["args"].items() if v != runs["control"]["args"][k]
                 and k not in ("env", "device", "checkpoint_every", "eval_every", "eval_episodes",
                               "final_eval_episodes", "eval_workers", "execution")]
    if differing or runs["cut"]["step"] != runs["control"]["step"]:
        raise SystemExit(f"the two runs differ in {', '.join(differing) or 'their updates'}: only "
                         "the data may")
    s, a, s2 = transitions(data["cut"].episodes)
    box = parse_box(origin["box"], s.shape[1])
    begins, ends = inside(s, box), inside(s2, box)
    states = {}
    for region, rows in ("inside", begins), ("outside", ~begins & ~ends):
        index = np.flatnonzero(rows)
        if len(index) < 10:
            raise SystemExit(f"only {len(index)} held-out states lie {region} the box: cut another "
                             "box, or collect more")
        index = index[thin(len(index), args.states)]
        states[region] = s[index], a[index], s2[index]
    task, tasks = runs["cut"]["task"], {name: run["task"] for name, run in runs.items()}
    maze = maze_of(task)
    found = compare(agents, tasks, {k: d.rows["observations"] for k, d in data.items()}, states,
                    box, maze)
    measures = {measure: {who: {region: summary(x) for region, x in by.items()}
                          for who, by in parts.items()} for measure, parts in found.items()}
    differences = {measure: {
        "cut agent, inside minus outside": summary(x["cut"]["inside"] - x["cut"]["outside"]),
        "inside, cut minus control": summary(x["cut"]["inside"] - x["control"]["inside"])}
        for measure, x in found.items()}
    result = circumstances("beyond", args, started, runs) | {
        "seeds": runs["cut"]["seeds"], "data": origin | {k: d.about for k, d in data.items()},
        "states": {region: len(x[0]) for region, x in states.items()},
        "meaning": MEASURES, "measures": measures, "differences": differences}
    figure = draw_beyond(agents, tasks, states, box, maze, measures)
    store(args.out, result, figure)
    width = max(map(len, measures))
    print(f"{'':{width}}  " + "  ".join(f"{f'{who}, {region}':26}" for who in agents
                                        for region in states))
    for measure, parts in measures.items():
        digits = 3 if "gain" in measure else 2
        print(f"{measure:{width}}  " + "  ".join(f"{shown(parts[who][region], digits):26}"
                                                 for who in agents for region in states))


def draw_beyond(agents, tasks, states, box, maze, measures) -> plt.Figure:
    """Arrows s -> g(s) in the maze, or the box's variable; histograms of values beside it."""
    colors = {"inside": COLORS[1], "outside": COLORS[0]}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3), dpi=90, layout="constrained",
                                width_ratios=(1.35, 1, 1))
    first = axes[0]
    place, _ = body(tasks["cut"])
    said = {region: answers(agents["cut"], tasks["cut"], *rows)["goal"][0]
            for region, rows in states.items()}
    if maze:
        for i, line in enumerate(maze.maze_map):
            for j, cell in enumerate(line):
                if cell == 1:
                    corner = j - maze.x_map_center, maze.y_map_center - i - 1
                    first.add_patch(plt.Rectangle(corner, 1, 1, color="0.8", linewidth=0))
        sides = {i: (low, high) for i, low, high in box}
        x, y = (np.clip(sides.get(i, (-np.inf, np.inf)), -bound, bound) for i, bound in
                ((place.start, maze.x_map_center), (place.start + 1, maze.y_map_center)))
        first.add_patch(plt.Rectangle((x[0], y[0]), x[1] - x[0], y[1] - y[0], fill=False,
                                      edgecolor="black", linestyle="--", zorder=4))
        for region, (s, _, s2) in states.items():
            some = thin(len(s), 80 if region == "inside" else 240)
            start = s[some][:, place]
            for end, color, z in (s2, "0.55", 2), (said[region], colors[region], 3):
                way = CONTRAST * (end[some][:, place] - start)
                first.quiver(*start.T, *way.T, color=color, angles="xy", scale_units="xy", scale=1,
                             width=0.0022, zorder=z)
        first.set(aspect="equal", xlim=(-maze.x_map_center, maze.x_map_center), xticks=[],
                  ylim=(-maze.y_map_center, maze.y_map_center), yticks=[])
        first.set_title(f"trained without the dashed box: s to g(s), x {CONTRAST:g}; "
                        "grey: s to s'",
                        fontsize=10)
    else:
        index = box[0][0]
        parts = {"s', inside": (states["inside"][2], "0.55"), "g(s), inside": (
            said["inside"], colors["inside"]), "s', outside": (states["outside"][2], "black"),
            "g(s), outside": (said["outside"], colors["outside"])}
        edges = np.histogram_bin_edges(np.concatenate([x[:, index] for x, _ in parts.values()]), 60)
        for label, (x, color) in parts.items():
            first.hist(x[:, index], edges, histtype="step", color=color, label=label, density=True)
        for side in box[0][1:]:
            if math.isfinite(side):
                first.axvline(side, color="black", linestyle="--", linewidth=1)
        first.set_xlabel(f"observation {index}; dashed: border of the box")
        first.legend(fontsize=8, frameon=False)
        first.set_title("where the guide points, agent without the box", fontsize=10)
    gains = {}
    for name, agent in agents.items():
        spread = value(agent, torch.from_numpy(states["outside"][0]).expand(
            agent.guide.log_std.shape[0], -1, -1)).std(1, keepdims=True)
        for region, rows in states.items():
            goal = torch.from_numpy(answers(agent, tasks[name], *rows)["goal"])
            next_v = value(agent, torch.from_numpy(rows[2]).expand_as(goal))
            gains[name, region] = ((value(agent, goal) - next_v) / spread).ravel()
    edges = np.linspace(*np.percentile(np.concatenate([*gains.values()]), [1, 99]), 51)
    for axis, (name, words) in zip(axes[1:], (("cut", "without the box"),
                                              ("control", "with the box"))):
        for region in states:
            part, judged = (measures[f"higher_{judge}"][name][region]
                            for judge in ("own", "control"))
            label = f"{region}: above 0 {shown(part)}"
            label += f"\njudged by the control's V {shown(judged)}" * (name == "cut")
            axis.hist(gains[name, region].clip(edges[0], edges[-1]), edges, histtype="step",
                      color=colors[region], density=True, linewidth=1.6, label=label)
        axis.axvline(0, color="0.4", linewidth=1)
        axis.set(yticks=[], xlabel="V(g(s)) - V(s'), in deviations of V; ends clipped",
                 ylim=(0, axis.get_ylim()[1] * 1.35))
        axis.set_title(f"agent trained {words}, its own V", fontsize=10)
        axis.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def terms(args: Terms) -> None:
    """Numbers and picture of the terms against the loss of return."""
    started = time.perf_counter()
    if args.episodes < 1 or args.states < 10:
        raise SystemExit("--episodes must be at least 1, --states at least 10")
    paths = sorted(args.run.glob("checkpoint-*.pt")) or [args.run / "checkpoint.pt"]
    agent, state = load_checkpoint(paths[-1])
    task, data = state["task"], load_data(state)
    if data.episodes:
        rows = transitions(data.episodes)
    else:
        rows = tuple(data.rows[k] for k in ("observations", "actions", "next_observations"))
    index = thin(len(rows[0]), args.states)
    rows = tuple(x[index] for x in rows)
    step = float(np.linalg.norm(rows[2] - rows[0], axis=1).mean())
    seeds, updates, on_data, played = state["seeds"], [], [], []
    for path in paths:
        agent, one = load_checkpoint(path)
        if one["args"] != state["args"] or one["task"]["fingerprint"] != task["fingerprint"]:
            raise SystemExit(f"{path}: of another run than {paths[-1].name}")
        updates.append(one["step"])
        said = answers(agent, task, *rows)
        if not all(np.isfinite(x).all() for x in said.values()):
            raise SystemExit(f"{path}: the networks answer with NaN or infinity")
        ratio = said["swap"] / said["gap"].clip(1e-9)
        on_data.append({k: said[k].mean(1) for k in ("gap", "swap", "error")} | {
            "gap_max": said["gap"].max(1), "error_max": said["error"].max(1),
            "slope_99": np.percentile(ratio, 99, 1), "slope_max": ratio.max(1)})
        played.append(rollouts(agent, task, len(seeds), args.episodes))
    stack = lambda parts: {k: np.array([p[k] for p in parts]) for k in parts[0]}
    on_data, played = stack(on_data), stack(played)  # (K, N), (K, N, episodes)
    returns = played["return"].mean(-1)
    best = float(returns.max()) if args.best_return is None else args.best_return
    loss = best - returns
    numbers = {f"data_{k}": v for k, v in on_data.items()} | {
        f"rollout_{k}": v.mean(-1) for k, v in played.items() if "steps" not in k
        and k != "return"} | {
        "return": returns, "loss": loss}
    correlations = {}
    early = ["rollout_gap_early", "rollout_error_early"] * (maze_of(task) is not None)
    for name in ("rollout_gap", "rollout_error", *early, "data_gap", "data_swap", "data_error"):
        x = numbers[name]
        correlations[name] = {
            "seeds and checkpoints": correlation(x, loss),
            "seeds within checkpoints": correlation(x, loss, centre=True)}
        if (word := name.removeprefix("rollout_")) in played:
            episodes, lost = (y[-1].T for y in (played[word], -played["return"]))
            correlations[name]["episodes from the same start, last checkpoint"] = correlation(
                episodes, lost, centre=True)
    diameter = float(np.linalg.norm(np.subtract(task["act_high"], task["act_low"])))
    bound = numbers["data_slope_max"] * numbers["rollout_gap_max"]
    numbers["l2_share_of_first_term"] = bound
    result = circumstances("terms", args, started, {"run": state}) | {
        "seeds": seeds, "updates": updates, "data": data.origin | data.about,
        "rows": {"count": len(rows[0]), "of": "held-out episodes" if data.episodes else
                 "the training data"}, "mean_step": step, "best_return": best,
        "best_return_is": "the best mean return of a seed and checkpoint here"
                          if args.best_return is None else "given",
        "greatest_distance_of_two_actions": diameter, "meaning": TERMS,
        "numbers": {k: [summary(row) for row in v] for k, v in numbers.items()},
        "correlation_with_loss": correlations,
        "episodes_of_last_checkpoint": {k: np.round(played[k][-1], 4).tolist()
                                        for k in ("return", "gap", "error", "gap_early",
                                                  "error_early")}}
    store(args.out, result, draw_terms(numbers, played, updates, step, correlations))
    for k, update in enumerate(updates):
        print(f"update {update}: " + ", ".join(f"{name} {shown(result['numbers'][name][k], 3)}" for
                                               name in ("return", "rollout_gap", "rollout_error",
                                                        "data_gap", "data_swap", "data_error")))
    for name, parts in correlations.items():
        for how, x in parts.items():
            print(f"loss with {name}, {how}: Spearman {x['spearman']} {x['spearman_interval']}, "
                  f"Pearson {x['pearson']} {x['pearson_interval']}, {x['points']} points")
    last = result["numbers"]["l2_share_of_first_term"][-1]
    print(f"L2's share of the first term at its greatest: {shown(last)}; two actions are at most "
          f"{diameter:.2f} apart")


TERMS = {
    "data_gap": "mean |g(s) - s'| over recorded rows: the first term without L1 + L2",
    "data_swap": "mean |pi(s,g(s)) - pi(s,s')|: the part of the first term that is L2's",
    "data_error": "mean |pi(s,s') - a| over recorded rows: eps",
    "data_gap_max, data_error_max": "the greatest of them",
    "data_slope_99, data_slope_max": "swap / gap, 99th percentile and greatest: lower estimates of "
                                     "L2",
    "rollout_gap": "mean |g(s) - s'| along rollouts, s' the state that the agent came to",
    "rollout_error": "mean |pi(s,s') - a| along rollouts, a = pi(s,g(s)) what the agent did",
    "rollout_gap_max, rollout_error_max": "greatest of an episode, mean over episodes",
    "rollout_gap_early, rollout_error_early": "means over the steps up to the first reward that is "
        "not 0: at a maze's goal the ball stands still, which makes both small, the return high",
    "rollout_step": "mean |s' - s| along rollouts",
    "return": "mean return of the rollouts", "loss": "best_return - return",
    "l2_share_of_first_term": "data_slope_max x rollout_gap_max: L2 |g(s) - s'| at its greatest; "
                              "above the greatest distance of two actions the bound says nothing",
    "not measured": "L1, a_g and a*, hence the second term and the bound; J(pi*)"}


def draw_terms(numbers, played, updates, step, correlations) -> plt.Figure:
    """Loss against gap and error, over checkpoints, and over episodes of the last one."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3), dpi=90, layout="constrained")
    shades = plt.get_cmap("viridis")(np.linspace(0.9, 0, len(updates)))
    labels = {"rollout_gap": f"mean |g(s) - s'| of rollouts, in steps of {step:.3g}",
              "rollout_error": "mean |pi(s,s') - a| of rollouts"}
    how = "seeds within checkpoints"
    for axis, (name, label) in zip(axes, labels.items()):
        unit = step if name == "rollout_gap" else 1.0
        for k, update in enumerate(updates):
            axis.scatter(numbers[name][k] / unit, numbers["loss"][k], color=shades[k], s=28,
                         label=f"{update:,}")
        x, y = (correlations[name][word] for word in ("seeds and checkpoints", how))
        axis.set_title(f"Spearman {x['spearman']}; {how} {y['spearman']}", fontsize=10)
        axis.set(xlabel=label, ylabel="loss of return")
    axes[0].legend(fontsize=7.5, title="updates", title_fontsize=7.5, frameon=False)
    gap, lost = played["gap"][-1] / step, -played["return"][-1]
    for n in range(len(gap)):
        axes[2].scatter(gap[n] - gap.mean(0), lost[n] - lost.mean(0), s=20, label=f"{n}",
                        color=COLORS[n % len(COLORS)])
    x = correlations["rollout_gap"]["episodes from the same start, last checkpoint"]
    axes[2].set_title(f"episodes, last checkpoint: Spearman {x['spearman']}", fontsize=10)
    axes[2].set(xlabel="gap minus its mean over seeds, same start, in steps",
                ylabel="loss, likewise")
    axes[2].legend(fontsize=7.5, title="seed", title_fontsize=7.5, frameon=False)
    return figure


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    own, rest = words, []
    if "--" in words:
        own, rest = words[:words.index("--")], words[words.index("--") + 1:]
    args = tyro.cli(Cut | Train | Beyond | Terms, args=own, description=__doc__)
    if isinstance(args, Train):
        return train(rest)
    if rest:
        raise SystemExit("only `train` takes words after --")
    collect.quiet()
    {Cut: cut, Beyond: beyond, Terms: terms}[type(args)](args)


if __name__ == "__main__":
    main()
