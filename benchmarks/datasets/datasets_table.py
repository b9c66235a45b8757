"""Print the local datasets that collect.py made beside D4RL's figures, as a Markdown table.

    python -m benchmarks.datasets.datasets_table               # all of rebuilt/
    python -m benchmarks.datasets.datasets_table --loading     # and the CPU time of loading each
    python -m benchmarks.datasets.datasets_table --loading --write benchmarks/datasets/README.md

--write puts the rows into the table of a page. Its rows of datasets that are not on this machine
remain. Every number is from a dataset's own metadata, or is measured now with --loading. Means and
deviations are over the episodes but the last, which is cut at the size of the set. The score is
100 (return - random) / (expert - random) with D4RL's references; in an AntMaze it is the share of
episodes that are rewarded. *off* is the relative difference to D4RL's set, in return and in length,
bold where it is more than 15 %.
"""

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import minari
import tyro

from benchmarks.common import markdown_table, update_page
from benchmarks.datasets.recipes import RECIPES, comparable, find_recipe
from benchmarks.datasets.rollout import quiet
from benchmarks.datasets.storage import datasets_root, stored_metadata

BEGIN, END = "<!-- datasets_table.py -->", "<!-- end of datasets_table.py -->"
LARGE = 0.15  # relative difference that is printed bold
HEADER = [
    "dataset",
    "policy",
    "transitions",
    "episodes",
    "return",
    "length",
    "score",
    "D4RL's: return",
    "length",
    "score",
    "off: return",
    "length",
    "made per second",
]


@dataclass
class Args:
    datasets: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """ids of datasets (default: all below rebuilt/)"""
    loading: bool = False
    """measure how much CPU time Minari takes to load all episodes"""
    write: Path | None = None
    """Markdown file whose table gets the rows, instead of printing them"""


def off(ours: float, theirs: float) -> str:
    """Return the relative difference in percent, bold if it is large."""
    difference = ours / theirs - 1
    text = f"{100 * difference:+.1f}%"
    return f"**{text}**" if abs(difference) > LARGE else text


def score(metadata: dict, mean: float) -> str:
    """Return the normalized score of a return, or nothing without references."""
    if "ref_max_score" not in metadata:
        return ""
    low, high = metadata["ref_min_score"], metadata["ref_max_score"]
    return f"{100 * (mean - low) / (high - low):.1f}"


def row(dataset: str, metadata: dict) -> list[str]:
    """Return the cells of a dataset."""
    mean, length = metadata["return_mean"], metadata["length_mean"]
    cells = [
        f"`{dataset}`",
        metadata["behavior"]["policy"],
        f"{metadata['total_steps']:,}",
        f"{metadata['total_episodes']:,}",
        f"{mean:.1f} ± {metadata['return_std']:.1f}",
        f"{length:.1f} ± {metadata['length_std']:.1f}",
        score(metadata, mean),
    ]
    if "success" in metadata:
        cells[-1] = f"{100 * metadata['success']:.1f}"
    d4rl = comparable(RECIPES[find_recipe(dataset)[0]], metadata)
    if d4rl is None:
        cells += [""] * 5
    else:
        d4rl_length = d4rl.transitions / d4rl.episodes
        cells += [f"{d4rl.mean:.1f} ± {d4rl.std:.1f}", f"{d4rl_length:.1f}"]
        cells += [score(metadata, d4rl.mean), off(mean, d4rl.mean), off(length, d4rl_length)]
    return [*cells, f"{metadata['transitions_per_second']:,.0f}"]


def loading_seconds(dataset: str) -> float:
    """Return the CPU time of loading all episodes: about the wall time of an idle machine."""
    clock = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in minari.load_dataset(dataset).iterate_episodes():
            pass
    return time.process_time() - clock


def table(datasets: list[str], root: Path, loading: bool) -> str:
    """Return the Markdown table."""
    header = [*HEADER, "loads in"] if loading else HEADER
    rows = []
    for dataset in datasets:
        metadata = stored_metadata(root / dataset)
        if metadata is None:
            sys.exit(f"{dataset} is not in {root}, or not made by collect.py")
        cells = row(dataset, metadata)
        if loading:
            cells.append(f"{loading_seconds(dataset):.1f} s")
        rows.append(cells)
    return markdown_table(header, rows)


def with_rows_of(page: Path, new: str) -> str:
    """Return the new table with those rows of the page's table that it does not have."""
    if not page.exists():
        sys.exit(f"there is no page {page}")
    inside = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    old_lines, new_lines = inside.strip().splitlines(), new.splitlines()
    head = new_lines[:2]
    if old_lines and old_lines[:1] != head[:1]:
        sys.exit(f"--write {page}: its table has other columns; with or without --loading?")
    rows = {}
    for line in [*old_lines[2:], *new_lines[2:]]:
        rows[line.split("`")[1]] = line
    return "\n".join([*head, *(rows[name] for name in sorted(rows, key=position))])


def position(dataset: str) -> tuple[int, str]:
    """Sort datasets as RECIPES does."""
    key, _ = find_recipe(dataset)
    return list(RECIPES).index(key), dataset


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    quiet()
    root = datasets_root()
    datasets = list(args.datasets)
    if not datasets:
        files = root.glob("rebuilt/*/[!.]*/data/metadata.json")
        datasets = sorted((str(f.relative_to(root).parents[1]) for f in files), key=position)
    if not datasets:
        sys.exit(
            f"there is no dataset in {root / 'rebuilt'}; make one: python -m "
            "benchmarks.datasets.collect hopper-medium --steps 100000"
        )
    text = table(datasets, root, args.loading)
    if args.write is None:
        print(text)
    else:
        update_page(args.write, BEGIN, END, with_rows_of(args.write, text))


if __name__ == "__main__":
    main()
