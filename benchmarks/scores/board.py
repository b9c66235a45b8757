"""The board: every offline algorithm on the same datasets with as many updates, and as a CSV file.

It is written by `python -m benchmarks.scores.tables` into scores/README.md and scores/board.csv.

    import csv
    rows = list(csv.DictReader(open("benchmarks/scores/board.csv")))
    print([(row["algorithm"], row["mean"]) for row in rows if row["updates"] == "50000"])
"""

import csv
import io

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks import plot
from benchmarks.common import (
    ALGORITHMS,
    DATA_COLOR,
    LOOKS,
    algorithm_color,
    algorithm_name,
    interval,
    iqm,
    markdown_table,
    mean_and_spread,
    short_number,
)
from benchmarks.scores.papers import published
from benchmarks.scores.reading import Row, namesake, of_first_targets
from benchmarks.speed.page import fastest_updates, readme_numbers

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


def datasets_of(rows: list[Row]) -> list[str]:
    """Return the datasets of these rows, in the order of the board."""
    return [name for name in DATASETS if any(row.dataset == name for row in rows)]


def column_name(dataset: str) -> str:
    return plot.dataset_label(dataset).removesuffix(" (rebuilt)")


def in_order(rows: list[Row]) -> list[str]:
    """Return the labels, the best mean rank first, and those without a rank last."""
    places = ranks(rows)
    return sorted(sorted(places), key=lambda label: np.mean(places[label] or [np.inf]))


def board_table(rows: list[Row], updates: int) -> str:
    """Return the table of one number of updates."""
    chosen = board_rows(rows, updates)
    datasets = datasets_of(chosen)
    places, best = ranks(chosen), among_the_best(chosen)
    speed = fastest_updates(readme_numbers())
    lines = []
    for label in in_order(chosen):
        line = [label]
        for dataset in datasets:
            found = [row for row in chosen if (row.label, row.dataset) == (label, dataset)]
            text = mean_and_spread(found[0].final) if found else "-"
            if found and found[0].seeds == 1:
                text += " (1 seed)"
            line.append(f"**{text}**" if (label, dataset) in best else text)
        known = places[label]
        line.append(f"{np.mean(known):.1f} (of {len(known)})" if known else "-")
        script = next(row.script for row in chosen if row.label == label)
        line.append(f"{speed[script]:.1f}" if script in speed else "-")
        lines.append(line)
    levels = ["*behaviour policy*"]
    for dataset in datasets:
        known = [row.level for row in chosen if row.dataset == dataset and row.level is not None]
        levels.append(f"*{known[0]:.1f}*" if known else "-")
    header = ["algorithm", *map(column_name, datasets), "mean rank", "ms per update"]
    return markdown_table(header, [*lines, [*levels, "", ""]])


def published_table(rows: list[Row], updates: int, targets: dict) -> str:
    """Return what others published for D4RL's file of that name: by then, and at the end."""
    chosen = board_rows(rows, updates)
    datasets = datasets_of(chosen)
    names = {row.paper_name: row.label.partition(" (")[0] for row in chosen}
    lines = []
    for paper_name, name in sorted(names.items(), key=lambda item: item[1]):
        line = [name]
        for dataset in datasets:
            found = [
                row for row in chosen if (row.paper_name, row.dataset) == (paper_name, dataset)
            ]
            points = found[0].published if found else []
            line.append("<br>".join(f"{p.mean:.1f} ± {p.std:.1f} ({p.place})" for p in points))
            key = (paper_name, f"{namesake(dataset)}-v2", "offline")
            line.append(published(targets.get((*key, "paper")) or targets.get((*key, "rerun"))))
        if set(line[1:]) - {"", "-"}:
            lines.append([cell or "-" for cell in line])
    header = ["published"]
    for dataset in datasets:
        header += [
            f"{namesake(dataset)}, {updates:,} updates",
            f"{namesake(dataset)}-v2, at the end",
        ]
    return markdown_table(header, lines) if lines else ""


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


def board_text(rows: list[Row], targets: dict) -> str:
    """Return the board for the page: tables for each number of updates, and what is missing."""
    parts = []
    for updates in UPDATES:
        if not board_rows(rows, updates):
            continue
        parts += [f"### After {updates:,} updates", board_table(rows, updates)]
        parts += [f"![After {updates:,} updates](figures/{figure_name(updates)})"]
        parts.append(published_table(rows, updates, targets))
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


def bounds(row: Row) -> tuple[float, float] | None:
    """Return the 95 % interval of the interquartile mean over seeds; a single seed has none."""
    return interval(iqm, row.final[:, None]) if row.seeds > 1 else None


def figure_name(updates: int) -> str:
    return f"board-{short_number(updates)}.png"


def draw_board(rows: list[Row], title: str) -> Figure:
    """Draw a panel per dataset with a line per algorithm, in the order of the table.

    Dots are seeds, the large one is their interquartile mean, the line its 95 % interval.
    """
    rows = plot.brief_labels(rows)
    labels, datasets = in_order(rows), datasets_of(rows)
    with plt.rc_context(plot.STYLE):
        figure, grid = plt.subplots(
            1,
            len(datasets),
            figsize=(3.4 + 4.4 * len(datasets), 1.8 + 0.42 * len(labels)),
            dpi=120,
            squeeze=False,
            sharey=True,
            layout="constrained",
        )
        for axes, dataset in zip(grid.flat, datasets, strict=True):
            axes.set_title(column_name(dataset), loc="left")
            here = [row for row in rows if row.dataset == dataset]
            for row in here:
                place = labels.index(row.label)
                color = algorithm_color(row.script)
                axes.plot(row.final, [place] * row.seeds, "o", color=color, alpha=0.5, markersize=6)
                if row.seeds > 1:
                    axes.plot(bounds(row), [place] * 2, color=color, linewidth=3)
                    axes.plot(iqm(row.final[:, None]), place, "D", color=color, markersize=9)
            for level in {row.level for row in here} - {None}:
                axes.axvline(level, color=DATA_COLOR, linestyle=(0, (2, 2)), linewidth=2)
            axes.set_yticks(range(len(labels)), labels)
            axes.set_ylim(len(labels) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="both", color="0.9")
            axes.set_axisbelow(True)
            axes.set_xlabel("score; dashed: behaviour policy")
        plot.add_title(figure, title)
    return figure


def board_csv(rows: list[Row]) -> str:
    """Return the cells of the board as CSV, one a line."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = ["algorithm", "script", "dataset", "updates", "seeds", "mean", "std"]
    writer.writerow([*header, "low", "high", "scores", "target", "behaviour_policy", "file"])
    for updates in UPDATES:
        for row in board_rows(rows, updates):
            scores = " ".join(f"{score:.3f}" for score in row.final)
            level = "" if row.level is None else f"{row.level:.3f}"
            cells = [row.label, row.script, row.dataset, row.updates, row.seeds]
            target = "" if row.target is None else f"{row.target:g}"
            numbers = [row.final.mean(), row.final.std(), *(bounds(row) or ())]
            cells += [f"{number:.3f}" for number in numbers]
            cells += [""] * (4 - len(numbers)) + [scores, target, level]
            writer.writerow([*cells, "/".join(row.file.parts[-2:])])
    return file.getvalue()
