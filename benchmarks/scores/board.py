"""The board: every offline algorithm on the same datasets with as many updates, and as a CSV file.

It is written by `python -m benchmarks.scores.tables` into scores/README.md and scores/board.csv.

    import csv
    rows = list(csv.DictReader(open("benchmarks/scores/board.csv")))
    print([(row["algorithm"], row["mean"]) for row in rows if row["updates"] == "50000"])
"""

import csv
import io

import numpy as np

from benchmarks import plot
from benchmarks.common import ALGORITHMS, LOOKS, algorithm_name, markdown_table, mean_and_spread
from benchmarks.scores.reading import Row, of_first_targets

DATASETS = (
    "rebuilt/hopper/medium-snapshot5-v0",
    "rebuilt/halfcheetah/medium-v0",
    "rebuilt/walker2d/medium-replay-177k-v0",
    "rebuilt/antmaze/umaze-v0",
)
UPDATES = (10_000, 50_000, 100_000)
COMPLETE = 50_000  # what is missing is listed for this number of updates
# They learn from no data, from an expert, or from actions that these datasets do not have.
NOT_OFFLINE = ("ppo", "trpo", "dagger", "discrete_bcq")


def board_rows(rows: list[Row], updates: int) -> list[Row]:
    """Return the rows of the board: today's runs of ours, offline."""
    return [
        row
        for row in of_first_targets(rows)
        if row.dataset in DATASETS
        and row.updates == updates
        and row.phase != "online"
        and not (row.first_casting or row.control)
    ]


def several_seeds(rows: list[Row], dataset: str) -> list[Row]:
    """Return the rows of a dataset that are compared: one seed has no deviation to judge by."""
    return [row for row in rows if row.dataset == dataset and row.seeds > 1]


def ranks(rows: list[Row]) -> dict[str, list[int]]:
    """Return the places of each label, 1 for the best, where it has several seeds."""
    places = {row.label: [] for row in rows}
    for dataset in DATASETS:
        means = {row.label: row.final.mean() for row in several_seeds(rows, dataset)}
        for label, mean in means.items():
            better = sum(other > mean for other in means.values())
            places[label].append(1 + better)
    return places


def among_the_best(rows: list[Row]) -> set[tuple[str, str]]:
    """Return (label, dataset) of what lies within one standard error of a dataset's best mean."""
    found = set()
    for dataset in DATASETS:
        here = several_seeds(rows, dataset)
        if not here:
            continue
        best = max(here, key=lambda row: row.final.mean())
        error = best.final.std(ddof=1) / best.seeds**0.5
        limit = best.final.mean() - error
        found |= {(row.label, dataset) for row in here if row.final.mean() >= limit}
    return found


def board_table(rows: list[Row], updates: int) -> str:
    """Return the table of one number of updates."""
    chosen = board_rows(rows, updates)
    datasets = [name for name in DATASETS if any(row.dataset == name for row in chosen)]
    places, best = ranks(chosen), among_the_best(chosen)
    lines = []
    by_name = sorted(places)
    for label in sorted(by_name, key=lambda label: np.mean(places[label] or [np.inf])):
        line = [label]
        for dataset in datasets:
            found = [row for row in chosen if (row.label, row.dataset) == (label, dataset)]
            text = mean_and_spread(found[0].final) if found else "-"
            if found and found[0].seeds == 1:
                text += " (1 seed)"
            line.append(f"**{text}**" if (label, dataset) in best else text)
        known = places[label]
        line.append(f"{np.mean(known):.1f} (of {len(known)})" if known else "-")
        lines.append(line)
    levels = ["*behaviour policy*"]
    for dataset in datasets:
        known = [row.level for row in chosen if row.dataset == dataset and row.level is not None]
        levels.append(f"*{known[0]:.1f}*" if known else "-")
    names = [plot.dataset_label(name).removesuffix(" (rebuilt)") for name in datasets]
    return markdown_table(["algorithm", *names, "mean rank"], [*lines, [*levels, ""]])


def missing(rows: list[Row], updates: int) -> str:
    """Return which algorithms have no score on which datasets, and the command for them."""
    chosen = board_rows(rows, updates)
    # A script that a user adds changes nothing here.
    known = [name for name in LOOKS if (ALGORITHMS / f"{name}.py").exists()]
    offline = [name for name in known if name not in NOT_OFFLINE]
    lines = []
    for dataset in DATASETS:
        done = {row.script for row in chosen if row.dataset == dataset}
        names = [algorithm_name(name) for name in offline if name not in done]
        if names:
            lines.append(f"- `{dataset}`: {', '.join(names)}")
    if not lines:
        return ""
    options = f"--num-seeds 3 --num-updates {updates} --results benchmarks/scores/results"
    return f"Not run yet, after {updates:,} updates (`benchmarks.run` with `{options}`):\n\n" + (
        "\n".join(lines)
    )


def board_text(rows: list[Row]) -> str:
    """Return the board for the page: a table for each number of updates, and what is missing."""
    parts = []
    for updates in UPDATES:
        if not board_rows(rows, updates):
            continue
        parts += [f"### After {updates:,} updates", board_table(rows, updates)]
        asked = {row.label for row in board_rows(rows, updates) if row.target is not None}
        if asked:
            parts.append(
                f"{' and '.join(sorted(asked))}: asked for the first of their targets, which are "
                "stated before the run. The tables below have all of them."
            )
    if not parts:
        return "There are no results yet."
    parts.append(missing(rows, COMPLETE))
    return "\n\n".join(part for part in parts if part)


def board_csv(rows: list[Row]) -> str:
    """Return the cells of the board as CSV, one a line."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = ["algorithm", "script", "dataset", "updates", "seeds", "mean", "std", "scores"]
    writer.writerow([*header, "target", "behaviour_policy", "file"])
    for updates in UPDATES:
        for row in board_rows(rows, updates):
            scores = " ".join(f"{score:.3f}" for score in row.final)
            level = "" if row.level is None else f"{row.level:.3f}"
            cells = [row.label, row.script, row.dataset, row.updates, row.seeds]
            target = "" if row.target is None else f"{row.target:g}"
            cells += [f"{row.final.mean():.3f}", f"{row.final.std():.3f}", scores, target, level]
            writer.writerow([*cells, "/".join(row.file.parts[-2:])])
    return file.getvalue()
