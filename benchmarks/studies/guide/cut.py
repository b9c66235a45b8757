"""Take a box of states out of a dataset, and every tenth episode for tests."""

import itertools
import json
import sys
from dataclasses import dataclass
from typing import Annotated

import minari
import numpy as np
import tyro

from benchmarks.common import git_commit
from benchmarks.datasets.rollout import FIELDS
from benchmarks.datasets.storage import data_sha256, datasets_root, write_dataset


@dataclass
class Cut:
    """Take a box of states out of a dataset, and every tenth episode for tests."""

    source: Annotated[str, tyro.conf.Positional]  # local dataset, e.g. rebuilt/pointmaze/large-v0
    box: tuple[str, ...]  # its sides, INDEX:LOW:HIGH of the observation; an empty side is open
    name: str  # id of the dataset without the box, local/...-v0
    control: str  # id of the dataset with it, divided at the same places
    held_out: int = 10  # every so manieth episode is in neither


def parse_box(words: tuple[str, ...], obs_dim: int) -> list[tuple[int, float, float]]:
    """('4:-1:2', '5::0') -> [(4, -1.0, 2.0), (5, -inf, 0.0)]"""
    box = []
    for word in words:
        try:
            index, low, high = word.split(":")
            side = int(index), float(low or "-inf"), float(high or "inf")
        except ValueError:
            sys.exit(f"--box {word}: must be INDEX:LOW:HIGH, such as 4:-1:2.5")
        if not (0 <= side[0] < obs_dim and side[1] < side[2]):
            sys.exit(f"--box {word}: indices are 0 to {obs_dim - 1}, and LOW must be below HIGH")
        box.append(side)
    return box


def inside(obs: np.ndarray, box: list) -> np.ndarray:
    """Do the observations (..., obs) lie in the box, borders included? (...,)"""
    sides = [(low <= obs[..., i]) & (obs[..., i] <= high) for i, low, high in box]
    return np.all(sides, axis=0)


def split(episode: dict, box: list) -> list[tuple[dict, bool]]:
    """Return the episode in pieces, and whether a piece is taken out: its rows touch the box.

    Pieces are episodes: T + 1 observations, of which the last is the true one. So no two far states
    are connected. A piece that does not end with the episode ends by truncation.
    """
    within = inside(episode["observations"], box)
    taken = within[:-1] | within[1:]
    borders = [0, *(np.flatnonzero(np.diff(taken)) + 1), len(taken)]
    pieces = []
    for first, last in itertools.pairwise(borders):
        piece = {key: column[first:last].copy() for key, column in episode.items()}
        piece["observations"] = episode["observations"][first : last + 1].copy()
        piece["truncations"][-1] = not piece["terminations"][-1]
        pieces.append((piece, bool(taken[first])))
    return pieces


def read_episodes(name: str) -> tuple[list[dict], minari.MinariDataset]:
    """Return the episodes of a local dataset, and the dataset."""
    if name not in minari.list_local_datasets():
        sys.exit(
            f"there is no local dataset {name}; python -m benchmarks.datasets.collect makes it"
        )
    dataset = minari.load_dataset(name)
    episodes = []
    for episode in dataset.iterate_episodes():
        episodes.append({key: getattr(episode, key) for key in FIELDS})
    if isinstance(episodes[0]["observations"], dict):
        sys.exit(
            f"the observations of {name} are a Dict; benchmarks.datasets.collect makes vectors"
        )
    return episodes, dataset


def check_names(args: Cut) -> None:
    """Refuse names that are taken, or are not those of own datasets."""
    for name in (args.name, args.control):
        if not name.startswith("local/"):
            sys.exit(f"{name}: names must be like local/pointmaze/large-cut-v0")
        if name in minari.list_local_datasets():
            sys.exit(f"{name} exists; choose another name, or delete it with minari delete {name}")
    if args.name == args.control:
        sys.exit("--name and --control must differ")


def cut(args: Cut) -> None:
    """Write the two datasets, or nothing."""
    check_names(args)
    episodes, dataset = read_episodes(args.source)
    if not 2 <= args.held_out <= len(episodes):
        sys.exit(f"--held-out must be 2 to {len(episodes)}, the number of episodes")
    box = parse_box(args.box, episodes[0]["observations"].shape[1])
    without, control = [], []
    for number, episode in enumerate(episodes, start=1):
        if number % args.held_out == 0:
            continue
        for piece, taken in split(episode, box):
            control.append(piece)
            if not taken:
                without.append(piece)
    sizes = [sum(len(piece["rewards"]) for piece in pieces) for pieces in (without, control)]
    if not 0 < sizes[0] < sizes[1]:
        sys.exit(f"--box {' '.join(args.box)} takes out all or nothing of {sizes[1]:,} rows")
    told = dataset.storage.metadata
    origin = {"source": args.source, "box": list(args.box), "held_out": args.held_out}
    origin["source_sha256"] = told.get("data_sha256", "unknown")
    stored = {
        "env": dataset.env_spec,
        "observation_space": dataset.observation_space,
        "action_space": dataset.action_space,
        "algorithm_name": told.get("algorithm_name", "unknown"),
        "description": f"a part of {args.source}",
        "ref_min_score": told.get("ref_min_score"),
        "ref_max_score": told.get("ref_max_score"),
    }
    stored = {key: value for key, value in stored.items() if value is not None}
    for name, pieces in ((args.name, without), (args.control, control)):
        metadata = {"cut": json.dumps(origin), "data_sha256": data_sha256(pieces)}
        write_dataset(datasets_root(), name, stored, pieces, metadata | {"commit": git_commit()})
    print(f"{args.name}: {sizes[0]:,} rows; {args.control}: {sizes[1]:,} rows")
