"""Print the local datasets that collect.py made beside D4RL's figures, as a Markdown table.

    python benchmarks/datasets_table.py               # all of rebuilt/
    python benchmarks/datasets_table.py --loading     # and the CPU time of loading each
    python benchmarks/datasets_table.py --write benchmarks/DATASETS.md    # the table in that file
    python benchmarks/datasets_table.py rebuilt/antmaze/umaze-v0 --loading \\
        --write benchmarks/DATASETS.md    # this row of it; the others remain

Every number is from a dataset's own metadata (or, with --loading, measured now). Means and
deviations are over the episodes but the last, which is cut at the size of the set. The score is
100 (return - random) / (expert - random) with D4RL's references; in an AntMaze it is the share of
episodes that are rewarded. *off* is the relative difference to D4RL's set, in return and in length,
bold where it is more than 15%.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from collect import datasets_root, quiet, stored_metadata
from recipes import RECIPES, comparable, find_recipe

OFF = 0.15
COLUMNS = ("dataset", "policy", "transitions", "episodes", "return", "length", "score",
           "D4RL's: return", "length", "score", "off: return", "length", "made in")


@dataclass
class Args:
    datasets: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """ids of datasets (default: all below rebuilt/)"""
    loading: bool = False
    """measure how much CPU time Minari takes to load all episodes"""
    write: Path | None = None
    """Markdown file whose table is renewed, instead of printing it; only the rows of the named
    datasets if there are any"""


def off(ours: float, theirs: float) -> str:
    """Relative difference in percent, bold if it is large."""
    difference = ours / theirs - 1
    text = f"{100 * difference:+.1f}%"
    return f"**{text}**" if abs(difference) > OFF else text


def row(dataset: str, metadata: dict) -> list[str]:
    """Cells of a dataset, as in COLUMNS."""
    mean, length = metadata["return_mean"], metadata["length_mean"]
    low, high = (metadata.get(f"ref_{end}_score") for end in ("min", "max"))
    score = lambda value: f"{100 * (value - low) / (high - low):.1f}"
    reached = metadata.get("success")
    cells = [f"`{dataset}`", metadata["behavior"]["policy"], f"{metadata['total_steps']:,}",
             f"{metadata['total_episodes']:,}", f"{mean:.1f} ± {metadata['return_std']:.1f}",
             f"{length:.1f} ± {metadata['length_std']:.1f}",
             f"{100 * reached:.1f}" if reached is not None else score(mean) if high else ""]
    try:
        d4rl = comparable(RECIPES[find_recipe(dataset)[0]], metadata)
    except SystemExit:
        d4rl = None  # a dataset of one's own
    if d4rl:
        d4rl_length = d4rl.transitions / d4rl.episodes
        cells += [f"{d4rl.mean:.1f} ± {d4rl.std:.1f}", f"{d4rl_length:.1f}", score(d4rl.mean),
                  off(mean, d4rl.mean), off(length, d4rl_length)]
    else:
        cells += [""] * 5
    seconds, rate = (metadata.get(key) for key in ("wall_seconds", "transitions_per_second"))
    return [*cells, f"{seconds:.0f} s, {rate:,.0f}/s" if seconds else ""]


def loading_seconds(dataset: str) -> float:
    """CPU time of loading all episodes through Minari: the wall time of an idle machine, about."""
    import minari

    clock = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in minari.load_dataset(dataset).iterate_episodes():
            pass
    return time.process_time() - clock


def table(datasets: list[str], root: Path, loading: bool) -> str:
    """The Markdown table. Raises SystemExit if a dataset is missing or not complete."""
    columns = [*COLUMNS, "loads in"] if loading else COLUMNS
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for dataset in datasets:
        if (metadata := stored_metadata(root / dataset)) is None:
            raise SystemExit(f"{dataset} is not in {root}, or not made by collect.py")
        cells = row(dataset, metadata)
        if loading:
            cells.append(f"{loading_seconds(dataset):.1f} s")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_others(path: Path, new: str) -> str:
    """The table of a file with the rows of `new` put in, in the place of those of the same names."""
    inside = path.read_text().partition("<!-- datasets_table.py -->")[2].partition("<!-- end")[0]
    head, rows = new.splitlines()[:2], {}
    old = inside.strip().splitlines()
    if old[:2] != head:
        raise SystemExit(f"--write {path}: its table has other columns; with or without --loading?")
    for line in [*old[2:], *new.splitlines()[2:]]:
        rows[line.split("`")[1]] = line
    return "\n".join([*head, *(rows[name] for name in sorted(rows, key=place))])


def place(dataset: str) -> tuple[int, str]:
    """Sorts datasets as RECIPES does."""
    return [*RECIPES].index(find_recipe(dataset)[0]), dataset


def replace_section(path: Path, name: str, text: str) -> None:
    """Put the text between the comments `<!-- name -->` and `<!-- end of name -->` of a file."""
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    try:
        content = path.read_text()
        if any(content.count(mark) != 1 for mark in marks):
            raise SystemExit(f"{path} needs one line {marks[0]} and one {marks[1]}")
        before, rest = content.split(marks[0])
        path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}")
    except OSError as error:
        raise SystemExit(f"--write {path}: {error}")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    quiet()
    root = datasets_root()
    found = [str(path.relative_to(root).parents[1])
             for path in root.glob("rebuilt/*/*/data/metadata.json")]
    datasets = args.datasets or sorted(found, key=place)
    if not datasets:
        raise SystemExit(f"no dataset in {root / 'rebuilt'}; make one: python "
                         "benchmarks/collect.py hopper-medium --steps 100000")
    text = table(datasets, root, args.loading)
    if args.write and args.datasets:
        text = with_others(args.write, text)
    replace_section(args.write, "datasets_table.py", text) if args.write else print(text)


if __name__ == "__main__":
    main()
