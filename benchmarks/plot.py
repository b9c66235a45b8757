"""Draw learning curves: evaluation against updates, one panel per dataset, one line per run.

    python -m benchmarks.plot runs/quickstart --out curve.png
    python -m benchmarks.plot runs/grid/hopper-medium/* --out hopper.png --title Hopper
    python -m benchmarks.plot benchmarks/scores/results/antmaze-umaze/*.json --out umaze.pdf

A run is a run folder or a result.json; one that still trains may be drawn. The line is the mean
over seeds, the band goes from the lowest seed to the highest. An algorithm has the same colour and
marker in every figure of the project; its variants differ in their dashes. The dashed grey line is
what the episodes of the data score on average, which offline RL wants to exceed. Thin grey lines
with small markers are published curves of the same algorithms on D4RL's file of the same name
(benchmarks/scores/published_curves.csv).
"""

import math
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import matplotlib
import tyro
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.common import (
    DASHES,
    DATA_COLOR,
    algorithm_color,
    algorithm_marker,
    algorithm_name,
    mean_and_spread,
    short_number,
)
from benchmarks.scores.reading import (
    CIRCUMSTANCES,
    Row,
    control_label,
    make_rows,
    read_result,
)

matplotlib.use("Agg")

STYLE = {
    "font.size": 14,
    "axes.titlesize": 15,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.6,
}
# Arguments of no algorithm: the first casting had some more.
IGNORED = CIRCUMSTANCES | {"precision", "eval_workers", "checkpoint_every", "eval_only"}
PUBLISHED_COLOR = "0.5"
PUBLISHED_DASHES = {"v0": (0, (1, 1.5)), "v2": "-"}  # by the version of D4RL's file


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # run folders or result.json files
    out: Path  # image to write; its ending (.png, .pdf, .svg) is the format
    title: str | None = None  # headline of the figure


# --------------------------------------------------------------------------------------------------
# What is drawn
# --------------------------------------------------------------------------------------------------


def read_run(path: Path) -> list[Row]:
    """Return a row for every evaluated phase of a run."""
    if path.is_dir():
        path = path / "result.json"
    try:
        rows = make_rows(path, read_result(path))
    except ValueError as error:
        sys.exit(str(error))
    if not rows:
        sys.exit(f"{path} has no evaluation yet; wait for the first one")
    return rows


def label_by_differences(rows: list[Row]) -> None:
    """Label every row by its algorithm, and by the options in which the runs of it differ.

    Options that are words, such as POR's guide, bring numbers of their own with them. So numbers
    are told only where runs on one dataset agree in all words. Other people's code has a name of
    its own.
    """
    for row in rows:
        if row.control:
            row.label = control_label(row.control, [])
            continue
        members = [other for other in rows if other.script == row.script and not other.control]
        words = differing_options(row, members, of_words=True)
        rivals = [
            other
            for other in members
            if other.dataset == row.dataset
            and all(other.args.get(key) == row.args[key] for key in words)
        ]
        told = [row.args[key] for key in words]
        for key in differing_options(row, rivals, of_words=False):
            told.append(f"{key.replace('_', ' ')} {row.args[key]}")
        name = algorithm_name(row.script)
        row.label = f"{name} ({', '.join(told)})" if told else name


def brief_labels(rows: list[Row]) -> list[Row]:
    """Return the rows with the shortest labels that tell them apart: a table has the long ones."""
    brief = {}
    for script in {row.script for row in rows}:
        members = [row for row in rows if row.script == script]
        labels = list(dict.fromkeys(row.label for row in members))
        name = algorithm_name(script)
        choices = [
            dict.fromkeys(labels, name),
            {row.label: row.variant or name for row in members},
            without_common_words(labels),
        ]
        brief |= next(short for short in choices if len(set(short.values())) == len(labels))
    return [replace(row, label=brief[row.label]) for row in rows]


def without_common_words(labels: list[str]) -> dict[str, str]:
    """Return {'X (a, b)': 'X (a)', 'X (b)': 'X'}: label -> what is left without what all have."""
    words = {}
    for label in labels:
        inner = label.partition(" (")[2].removesuffix(")")
        words[label] = inner.split(", ") if inner and label.endswith(")") else []
    common = set.intersection(*map(set, words.values()))
    short = {}
    for label in labels:
        told = [word for word in words[label] if word not in common]
        name = label.partition(" (")[0] if words[label] else label
        short[label] = f"{name} ({', '.join(told)})" if told else name
    return short


def differing_options(row: Row, others: list[Row], of_words: bool) -> list[str]:
    """Return the row's options, either those that are words or the rest, that differ in others."""
    return [
        key
        for key, value in row.args.items()
        if key not in IGNORED
        and isinstance(value, str) == of_words
        and any(other.args.get(key) != value for other in others)
    ]


def dataset_label(name: str) -> str:
    """Return a dataset's name without what every reader can spare."""
    if name.startswith("rebuilt/"):
        return name.removeprefix("rebuilt/").removesuffix("-v0").replace("/", " ") + " (rebuilt)"
    return name


def panel_name(row: Row) -> str:
    """Return the title of the panel that a row belongs to. Scores and returns never share one."""
    name = dataset_label(row.dataset)
    if row.phase == "online" and row.args.get("online_steps"):
        name += ", fine-tuning"
    return name


def value_label(row: Row) -> str:
    return "D4RL-normalized score" if row.scored else "return"


def dashes_of(rows: list[Row]) -> dict[str, object]:
    """Return the line style of every label: the variants of one algorithm differ."""
    styles = {}
    for script in dict.fromkeys(row.script for row in rows):
        members = {row.label for row in rows if row.script == script}
        # The shortest label is the plain algorithm, whose line is solid.
        labels = sorted(sorted(members), key=len)
        for i, label in enumerate(labels):
            styles[label] = DASHES[i % len(DASHES)]
    return styles


# --------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------


def draw_panel(axes: plt.Axes, rows: list[Row], styles: dict) -> dict:
    """Draw the curves of one dataset. Return the legend's entries: label -> artist."""
    entries = {}
    for row in rows:
        color = algorithm_color(row.script)
        mean = row.curve.mean(1)
        look = {"color": color, "marker": algorithm_marker(row.script), "markersize": 9}
        line = axes.plot(row.at, mean, linestyle=styles[row.label], markevery=[-1], **look)[0]
        if row.seeds > 1:
            low, high = row.curve.min(1), row.curve.max(1)
            axes.fill_between(row.at, low, high, color=color, alpha=0.13, linewidth=0)
        entries.setdefault(row.label, line)
    entries |= draw_published(axes, rows)
    for level in sorted({row.level for row in rows} - {None}):
        line = axes.axhline(level, color=DATA_COLOR, linestyle=(0, (2, 2)), linewidth=2, zorder=1)
        entries["behaviour policy"] = line
    axes.set_xlim(left=0)
    if rows[0].scored:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda number, _: short_number(number))
    axes.xaxis.set_major_locator(plt.MaxNLocator(5))
    axes.set_xlabel("environment steps" if rows[0].phase == "online" else "gradient updates")
    axes.set_ylabel(value_label(rows[0]))
    return entries


def draw_published(axes: plt.Axes, rows: list[Row]) -> dict:
    """Draw the published curves up to the end of ours. Return the legend's entries."""
    curves = {}
    for row in rows:
        for point in row.published_curve:
            if point.update <= max(other.updates for other in rows):
                curves.setdefault((row.script, point.place), {})[point.update] = point.mean
    entries = {}
    for (script, place), curve in curves.items():
        version = place.rpartition("-")[2]
        dashes = PUBLISHED_DASHES.get(version, "-")
        look = {"color": PUBLISHED_COLOR, "linestyle": dashes, "linewidth": 1.2, "zorder": 1.5}
        marker = {"marker": algorithm_marker(script), "markersize": 4}
        at = sorted(curve)
        axes.plot(at, [curve[update] for update in at], **look, **marker)
        label = f"{algorithm_name(script)}, published (D4RL's {version})"
        entries[label] = plt.Line2D([], [], **look, **marker)
    return entries


def draw(rows: list[Row], title: str | None = None, columns: int = 3) -> Figure:
    """Draw all rows, whose labels say what is compared, with a panel for every dataset."""
    panels = {}
    for row in rows:
        panels.setdefault((panel_name(row), value_label(row)), []).append(row)
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    styles = dashes_of(rows)
    with plt.rc_context(STYLE):
        size = (9, 6) if len(panels) == 1 else (4.9 * columns + 0.4, 4.1 * lines + 1)
        figure, grid = plt.subplots(
            lines, columns, figsize=size, dpi=120, squeeze=False, layout="constrained"
        )
        entries = {}
        for axes, ((name, _), members) in zip(grid.flat, panels.items(), strict=False):
            found = draw_panel(axes, members, styles)
            entries |= {label: entries.get(label, artist) for label, artist in found.items()}
            width = 70 if len(panels) == 1 else 34
            axes.set_title(textwrap.fill(name, width, break_on_hyphens=False), loc="left")
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        legend_lines = add_legend(figure, entries)
        figure.set_figheight(figure.get_figheight() + 0.29 * (legend_lines - 1))
        if title is not None:
            add_title(figure, title)
    return figure


def add_title(figure: Figure, title: str) -> None:
    title = textwrap.fill(title, int(7 * figure.get_figwidth()), break_on_hyphens=False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=18)


def add_legend(figure: Figure, entries: dict) -> int:
    """Put the legend below the panels, what is no run of ours last. Return its number of lines."""
    last = [label for label in sorted(entries) if label.startswith("published, ")]
    last += [label for label in entries if label == "behaviour policy"]
    labels = [*sorted(entries.keys() - set(last)), *last]
    inches = 0.9 + 0.12 * max(len(label) for label in labels)  # of one entry
    columns = max(1, int(figure.get_figwidth() / inches))
    figure.legend(
        [entries[label] for label in labels],
        labels,
        loc="outside lower left",
        frameon=False,
        ncols=columns,
        handlelength=3,
    )
    return math.ceil(len(labels) / columns)


def save_figure(figure: Figure, path: Path, **options) -> None:
    """Write the figure in one step, and close it."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, **options)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        sys.exit(f"{path} cannot be written: {error}")
    finally:
        temporary.unlink(missing_ok=True)
        plt.close(figure)


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=words, description=__doc__)
    if not args.runs:
        sys.exit("name at least one run folder or result.json")
    rows = [row for path in args.runs for row in read_run(path)]
    label_by_differences(rows)
    for row in rows:
        if len(rows) == 1 and row.finished:
            row.label += f": {mean_and_spread(row.final)} at the end, {row.seeds} seeds"
    save_figure(draw(rows, args.title), args.out)
    print(f"drew {args.out}")


if __name__ == "__main__":
    main()
