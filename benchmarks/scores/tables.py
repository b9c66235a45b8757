"""Turn benchmarks/scores/results/ into tables and figures, so that no number is typed by hand.

    python -m benchmarks.scores.tables            # writes scores/README.md, board.csv, figures/
                                                  # and the small table of README.md
    python -m benchmarks.scores.tables --check    # writes nothing; fails if a page differs

A result is refused if it contradicts itself: each score must follow from its return, all
evaluations must be there, the headline must be the last of them. Rows are grouped by the origin of
their data. Only D4RL's own data stand beside the papers' numbers (paper_scores.csv). What others
published for equally many updates (published_curves.csv) stands beside rebuilt data, too, with the
name of the dataset that it belongs to. Controls, which are other people's code on our data, stand
below the rows of ours, and are in no mean, figure or table of the top-level page.
"""

import hashlib
import json
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks import plot
from benchmarks.common import (
    DATA_COLOR,
    ROOT,
    algorithm_color,
    interval,
    iqm,
    markdown_table,
    mean_and_spread,
    replace_between,
    short_number,
    write_atomically,
)
from benchmarks.scores import board
from benchmarks.scores.claims import CLAIMS, claims_table, read_claims
from benchmarks.scores.online import is_from_scratch
from benchmarks.scores.papers import find_target, published, read_paper_scores
from benchmarks.scores.reading import Row, of_first_targets, read_results

matplotlib.use("Agg")

SCORES = ROOT / "benchmarks" / "scores"
BOARD_MARKS = ("<!-- board:begin -->", "<!-- board:end -->")
CLAIM_MARKS = ("<!-- claims:begin -->", "<!-- claims:end -->")
PAGE_MARKS = ("<!-- tables:begin -->", "<!-- tables:end -->")
README_MARKS = ("<!-- scores:begin -->", "<!-- scores:end -->")
WRITTEN = "<!-- Written by `python -m benchmarks.scores.tables`; edits would be lost. -->"
# The small table of the top-level README.
README_UPDATES = 100_000
README_DATASETS = (  # those without a result of today's scripts are left out
    "rebuilt/hopper/medium-snapshot5-v0",
    "rebuilt/halfcheetah/medium-v0",
    "rebuilt/walker2d/medium-replay-177k-v0",
    "rebuilt/antmaze/umaze-v0",
    "rebuilt/antmaze/medium-play-v0",
)
# Origin of the data, in the order of the page, and what a reader must know of it.
GROUPS = {
    "D4RL's own data": "D4RL's files, verified by SHA-256. *Paper* and *best re-run* are for the "
    "same dataset and version and a run of 1,000,000 updates; their sources and doubts (\\*) are "
    "in [PAPER_SCORES.md](PAPER_SCORES.md).",
    "Rebuilt data": "Made by D4RL's recipe ([datasets](../datasets/README.md)). These are **not** "
    "D4RL's files, so the papers' final scores are no targets here. *Published* is what others' "
    "code reached on D4RL's file of that name and version after exactly as many updates "
    "([sources](published_curves.csv)).",
    "Minari's data": "Minari's own datasets, which the papers did not use.",
    "Other data": "Data of other origin, which the papers did not use.",
    "No data: trained online from scratch": "The agents collect their data themselves. Steps are "
    "those of each agent, the random ones of the beginning included.",
}
FIRST_CASTING = (
    "These runs were made by an earlier form of the scripts, some of them with bf16 products. A "
    "row leaves this part when its run has been repeated."
)
ASKED = (
    "Where a policy is asked for a return, it has a row for each target, in the order of its "
    "settings. Means, curves and comparisons with others have the first one, which is stated "
    "before the run."
)


@dataclass
class Args:
    results: Path = SCORES / "results"  # folder with the results
    page: Path = SCORES / "README.md"  # page of all tables
    board: Path = SCORES / "board.csv"  # the board's cells
    claims: Path = CLAIMS  # what is claimed
    readme: Path = ROOT / "README.md"  # page of the small table
    figures: Path = SCORES / "figures"  # folder of the figures
    check: bool = False  # write nothing, fail if a page or a figure differs


# --------------------------------------------------------------------------------------------------
# Which rows stand together
# --------------------------------------------------------------------------------------------------


@dataclass
class Section:
    """Rows with the same origin of data, kind of training and number of updates."""

    group: str
    first_casting: bool
    online: bool
    updates: int | None  # None: the rows have different ones
    rows: list[Row]

    @property
    def title(self) -> str:
        if self.updates is None:
            return self.group
        steps = "environment steps" if self.online else "updates"
        return f"{self.group}, {self.updates:,} {steps}"

    @property
    def slug(self) -> str:
        """Return the beginning of its figures' names, such as 'rebuilt-100k'."""
        words = [self.group.split("'")[0].split(":")[0].split()[0].lower()]
        if self.online:
            words.append("online")
        if self.updates is not None:
            words.append(short_number(self.updates))
        if self.first_casting:
            words.append("first-casting")
        return "-".join(words)

    @property
    def ours(self) -> list[Row]:
        return [row for row in self.rows if not row.control]

    @property
    def kinds(self) -> list[str]:
        """Return which figures there are. Scores are drawn if there are two on one dataset."""
        if not self.ours:
            return []
        compares = len({row.dataset for row in self.ours}) < len(self.ours)
        return ["scores", "curves"] if compares else ["curves"]


def make_sections(rows: list[Row]) -> list[Section]:
    """Group the rows for the page. Of the first casting, only what has not been run again stays."""
    repeated = {run_key(row) for row in rows if not row.first_casting}
    parts = {}
    for row in rows:
        if row.first_casting and run_key(row) in repeated:
            continue
        partners = [other for other in rows if row.stands_beside(other)]
        old = row.first_casting
        if partners:  # a control
            old = all(other.first_casting for other in partners)
        # PPO needs more steps than SAC, but a reader wants to see them side by side.
        updates = -1 if is_from_scratch(row.task) else row.updates
        key = (old, list(GROUPS).index(row.group), row.phase == "online", updates)
        parts.setdefault(key, []).append(row)
    sections = []
    for key in sorted(parts):
        first, group, online, updates = key
        length = None if updates == -1 else updates
        sections.append(Section(list(GROUPS)[group], first, online, length, parts[key]))
    return sections


def run_key(row: Row) -> tuple:
    return row.label, row.dataset, row.phase, row.updates


def suite(dataset: str) -> str:
    """Return the tasks it is averaged with: 'medium-v2', 'rebuilt medium-v0', 'rebuilt antmaze'."""
    words = dataset.split("/") if "/" in dataset else dataset.split("-", maxsplit=1)
    *space, env, kind = words
    return " ".join([*space, env if "maze" in env else re.sub(r"-\d+k(?=-v)", "", kind)])


def comparable_sets(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    """Return (suite, label, rows) of what covers all tasks of a suite with equally many seeds.

    Besides the rows of one label, those with the published settings for each dataset are taken
    together, even if these have different labels, as POR's two guides have.
    """
    sets = {}
    rows = [row for row in of_first_targets(rows) if row.scored and not row.control]
    for row in rows:
        name = suite(row.dataset)
        sets.setdefault((name, row.label), []).append(row)
        if not row.deviations:
            usual = f"{row.label.partition(' (')[0]} (published settings)"
            sets.setdefault((name, usual), []).append(row)
    found = []
    for (name, label), part in sorted(sets.items()):
        tasks = {row.dataset for row in rows if suite(row.dataset) == name}
        datasets = [row.dataset for row in part]
        complete = set(datasets) == tasks and len(datasets) == len(tasks) > 1
        known = any(part == other for _, _, other in found)
        if complete and not known and len({row.seeds for row in part}) == 1:
            found.append((name, label, part))
    return found


# --------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------


def short_commits(commits: list[str]) -> str:
    """Return the first and the last commit of a run; '-dirty' stays visible."""
    short = [re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", commit) for commit in commits]
    return short[0] if len(short) == 1 else f"{short[0]} to {short[-1]}"


def score_table(section: Section, targets: dict) -> str:
    """Return one line per run, with the papers' numbers beside D4RL's own data."""
    beside = section.group == "D4RL's own data"
    length = "steps" if section.online else "updates / schedule"
    header = ["algorithm", "data", "seeds", length, "last checkpoint", "mean of last ten"]
    header += ["paper", "best re-run"] if beside else []
    header += ["published at as many updates", "behaviour policy", "device, commit"]
    lines = []
    for row in section.rows:
        runs = row.runs or [row]
        link = f"[**{mean_and_spread(row.final)}**](results/{'/'.join(row.file.parts[-2:])})"
        for run in runs[1:]:
            link += f" [seed {run.args['seed']}](results/{'/'.join(run.file.parts[-2:])})"
        unit = "" if row.scored else " (return)"
        line = [
            row.label,
            f"`{row.dataset}` {row.fingerprint[:6]}",
            ", ".join(f"{run.seeds} (seed {run.args['seed']})" for run in runs),
            row.length,
            link + unit,
            mean_and_spread(row.last_ten),
        ]
        if beside:
            line += [published(find_target(targets, row, use)) for use in ("paper", "rerun")]
        line.append(published_cell(row))
        line.append("-" if row.level is None else f"{row.level:.1f}")
        run = (row.device, row.precision, short_commits(row.commits))
        line.append(", ".join(part for part in run if part))
        lines.append(line)
    return markdown_table(header, lines)


def published_cell(row: Row) -> str:
    """Return what others published for as many updates, beside runs of ours and first targets."""
    if row.control or row.target_number > 0:
        return "-"
    return "<br>".join(str(point) for point in row.published) or "none"


def aggregate_table(rows: list[Row]) -> str:
    """Return interquartile means over the tasks of suites; empty if none is complete."""
    lines = []
    for name, label, part in comparable_sets(rows):
        cells = []
        for scores in ([row.final for row in part], [row.last_ten for row in part]):
            scores = np.stack(scores, axis=1)
            low, high = interval(iqm, scores)
            cells.append(f"{iqm(scores):.1f} ({low:.1f} to {high:.1f})")
        mean = np.mean([row.final.mean() for row in part])
        lines.append([name, label, len(part), part[0].seeds, *cells, f"{mean:.1f}"])
    header = ["suite", "algorithm", "tasks", "seeds each", "IQM of last checkpoints"]
    header += ["IQM of means of last ten", "mean"]
    return markdown_table(header, lines) if lines else ""


def section_text(section: Section, targets: dict) -> str:
    """Return what the page says of a section."""
    episodes = sorted({str(row.episodes) for row in section.rows})
    versions = {}
    for row in section.rows:
        for name in ("gymnasium", "mujoco", "torch"):
            versions.setdefault(f"{name} {row.versions.get(name, 'unknown')}")
    environments = sorted({row.task["env_id"] for row in section.rows})
    parts = [
        f"### {section.title}",
        f"{GROUPS[section.group]} Last checkpoint: {' or '.join(episodes)} episodes per seed. "
        f"Environments: {', '.join(environments)}. Versions: {', '.join(sorted(versions))}.",
        score_table(section, targets),
    ]
    if any(row.target_number > 0 for row in section.rows):
        parts.append(ASKED)
    for row in section.rows:
        if row.control:
            command = f"`{row.control['command']}`"
            parts.append(f"{row.label} on {row.dataset}: {command}; {row.control['note']}")
    table = aggregate_table(section.rows)
    if table:
        parts += [
            "Interquartile mean (IQM) of all runs of all tasks, with its 95% interval:",
            table,
        ]
    for kind in section.kinds:
        parts.append(f"![{section.title}: {kind}](figures/{section.slug}-{kind}.png)")
    return "\n\n".join(parts)


def page_text(sections: list[Section], targets: dict) -> str:
    """Return all tables of the page."""
    parts = [WRITTEN]
    for section in sections:
        if section.first_casting and FIRST_CASTING not in parts:
            parts += ["## First casting", FIRST_CASTING]
        parts.append(section_text(section, targets))
    return "\n\n".join(parts)


def readme_rows(rows: list[Row]) -> list[Row]:
    """Return the rows of the small table: runs of today's scripts, one dataset after the other."""
    chosen = []
    for row in of_first_targets(rows):
        ours_today = not (row.first_casting or row.control or row.phase == "online")
        known = row.dataset in README_DATASETS and row.updates == README_UPDATES
        if ours_today and known and row.seeds > 1:
            chosen.append(row)
    chosen.sort(key=lambda row: row.label)
    return sorted(chosen, key=lambda row: README_DATASETS.index(row.dataset))


def readme_text(rows: list[Row]) -> str:
    """Return the small table of the top-level README."""
    chosen = readme_rows(rows)
    more = "All tables, with data, devices and commits: [benchmarks/scores](benchmarks/scores)."
    if not chosen:
        return f"{WRITTEN}\n\n{more}"
    datasets = list(dict.fromkeys(row.dataset for row in chosen))
    lines = []
    for label in sorted({row.label for row in chosen}):
        line, others = [label], [f"*{label}, published*"]
        for dataset in datasets:
            found = [row for row in chosen if (row.label, row.dataset) == (label, dataset)]
            points = [point for row in found for point in row.published]
            texts = [f"{point.mean:.1f} ± {point.std:.1f} ({point.place})" for point in points]
            line.append(mean_and_spread(found[0].final) if found else "-")
            others.append(f"*{'<br>'.join(texts)}*" if texts else "-")
        lines.append(line)
        if set(others[1:]) != {"-"}:
            lines.append(others)
    levels = ["*behaviour policy*"]
    for dataset in datasets:
        found = [row.level for row in chosen if row.dataset == dataset and row.level is not None]
        levels.append(f"*{found[0]:.1f}*" if found else "-")
    names = [plot.dataset_label(name).removesuffix(" (rebuilt)") for name in datasets]
    table = markdown_table(["", *names], [*lines, levels])
    note = (
        f"D4RL-normalized score of the last checkpoint after {README_UPDATES:,} updates, mean ± "
        "deviation over seeds. The data were rebuilt by D4RL's recipe and are not D4RL's files. So "
        "the papers' final scores are no targets here."
    )
    if any(row.target is not None for row in chosen):
        note += " A policy that is asked for a return is asked for the first one of its settings."
    if any(row.published for row in chosen):
        note += (
            " *Published* is what others' code reached on D4RL's file of that name and version "
            "after exactly as many updates."
        )
    return "\n\n".join([WRITTEN, table, f"{note} {more}"])


# --------------------------------------------------------------------------------------------------
# Figures
# --------------------------------------------------------------------------------------------------


def draw_scores(rows: list[Row], targets: dict, title: str) -> Figure:
    """Draw a panel per dataset with a line per algorithm: dots are seeds, the bar their mean."""
    panels = {}
    for row in rows:
        panels.setdefault((plot.panel_name(row), row.scored), []).append(row)
    columns = min(2, len(panels))
    lines = [list(panels)[i : i + columns] for i in range(0, len(panels), columns)]
    counts = [max(len(panels[panel]) for panel in line) for line in lines]
    with plt.rc_context(plot.STYLE):
        figure, grid = plt.subplots(
            len(lines),
            columns,
            figsize=(6.6 * columns, 0.5 * sum(counts) + len(lines) + 0.8),
            dpi=120,
            squeeze=False,
            layout="constrained",
            height_ratios=[count + 2 for count in counts],
        )
        for line, count, cells in zip(lines, counts, grid, strict=True):
            for panel, axes in zip(line, cells, strict=False):
                axes.set_title(textwrap.fill(panel[0], 32, break_on_hyphens=False), loc="left")
                draw_dots(axes, panels[panel], targets)
                axes.set_ylim(count - 0.5, -0.5)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        plot.add_title(figure, title)
    return figure


def draw_dots(axes: plt.Axes, rows: list[Row], targets: dict) -> None:
    """Draw one dataset. A dashed line is what the data score, a black tick is the paper's score."""
    for i, row in enumerate(rows):
        color = algorithm_color(row.script)
        if row.scored:
            axes.barh(i, row.final.mean(), height=0.62, color=color, alpha=0.35)
        axes.plot(row.final, np.full(row.seeds, i), "o", color=color, markersize=8, clip_on=False)
        number = find_target(targets, row, "paper")
        if number is not None:
            axes.plot(number["score"], i, "|", color="black", markersize=22, markeredgewidth=3)
    for level in sorted({row.level for row in rows} - {None}):
        axes.axvline(level, color=DATA_COLOR, linestyle=(0, (2, 2)), linewidth=2)
    names = [textwrap.fill(row.label, 30, break_on_hyphens=False) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.use_sticky_edges = False  # a dot at 0 stays clear of the labels
    kind = "score" if rows[0].scored else "return"
    dashed = "; dashed: behaviour policy" if any(row.level is not None for row in rows) else ""
    axes.set_xlabel(kind + dashed)


def digest(rows: list[Row], *more) -> str:
    """Return the SHA-256 of what a figure shows."""
    shown = [
        (row.label, row.dataset, row.phase, row.level, row.at.tolist(), row.curve.tolist())
        for row in rows
    ]
    more = (*more, [asdict(point) for row in rows for point in row.published_curve])
    return hashlib.sha256(json.dumps([shown, more]).encode()).hexdigest()


def make_figures(rows: list[Row], sections: list[Section], targets: dict) -> dict:
    """Return file name -> (function that draws the figure, digest of what it shows)."""
    figures = {}
    for section in sections:
        title = section.title
        if section.first_casting:
            title += " (first casting)"
        curves = plot.brief_labels(of_first_targets(section.ours))
        scores = plot.brief_labels(section.ours)
        draws = {
            "curves": partial(plot.draw, curves, title),
            "scores": partial(draw_scores, scores, targets, title),
        }
        papers = [find_target(targets, row, "paper") for row in section.ours]
        key = digest([*curves, *scores], title, papers)
        for kind in section.kinds:
            figures[f"{section.slug}-{kind}.png"] = draws[kind], key
    for updates in board.UPDATES:
        chosen = board.board_rows(rows, updates)
        if chosen:
            title = f"After {updates:,} updates"
            draw = partial(board.draw_board, chosen, title)
            figures[board.figure_name(updates)] = draw, digest(chosen, title)
    chosen = plot.brief_labels(readme_rows(rows))
    if chosen:
        figures["readme.png"] = partial(plot.draw, chosen, columns=2), digest(chosen)
    return figures


def is_current(path: Path, key: str) -> bool:
    """Does the PNG hold this digest? It keeps such a text as plain bytes."""
    return path.exists() and key.encode() in path.read_bytes()


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def check_paths(args: Args) -> None:
    for path in (args.results, args.page, args.readme):
        if not path.exists():
            sys.exit(f"there is no {path}")


def new_pages(args: Args, rows: list[Row], sections: list[Section], targets: dict) -> dict:
    """Return page -> (its text, the text it should have)."""
    pages = {args.page: (PAGE_MARKS, page_text(sections, targets))}
    if README_MARKS[0] in args.readme.read_text(encoding="utf-8"):
        pages[args.readme] = (README_MARKS, readme_text(rows))
    else:
        print(f"note: {args.readme} gets no table, because it has no line {README_MARKS[0]}")
    found = {}
    for path, (marks, new) in pages.items():
        text = path.read_text(encoding="utf-8")
        found[path] = text, replace_between(text, *marks, new, str(path))
    text, new = found[args.page]
    if BOARD_MARKS[0] in new:
        table = f"{WRITTEN}\n\n{board.board_text(rows, targets)}"
        found[args.page] = text, replace_between(new, *BOARD_MARKS, table, str(args.page))
        cells = args.board.read_text(encoding="utf-8") if args.board.exists() else ""
        found[args.board] = cells, board.board_csv(rows)
    text, new = found[args.page]
    if CLAIM_MARKS[0] in new:
        table = f"{WRITTEN}\n\n{claims_table(read_claims(args.claims), rows)}"
        found[args.page] = text, replace_between(new, *CLAIM_MARKS, table, str(args.page))
    return found


def outdated(args: Args) -> tuple[dict[Path, str], dict[Path, tuple[Callable, str]]]:
    """Return the pages that must change, with their new text, and the figures to be drawn."""
    try:
        rows = read_results(args.results)
    except ValueError as error:
        sys.exit(str(error))
    targets = read_paper_scores()
    sections = make_sections(rows)
    pages = new_pages(args, rows, sections, targets)
    changed = {path: new for path, (text, new) in pages.items() if new != text}
    figures = make_figures(rows, sections, targets)
    stale = {}
    for name, (draw, key) in figures.items():
        if not is_current(args.figures / name, key):
            stale[args.figures / name] = draw, key
    return changed, stale


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=words, description=__doc__)
    check_paths(args)
    pages, figures = outdated(args)
    if args.check:
        if pages or figures:
            names = ", ".join(path.name for path in [*pages, *figures])
            sys.exit(f"not what the results give: {names}; run python -m benchmarks.scores.tables")
        print("pages and figures agree with the results")
        return
    for path, text in pages.items():
        write_atomically(path, text)
        print(f"wrote {path}")
    for path, (draw, key) in figures.items():
        plot.save_figure(draw(), path, metadata={"Source": key})
        print(f"drew {path}")


if __name__ == "__main__":
    main()
