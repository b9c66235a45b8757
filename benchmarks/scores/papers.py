"""The papers' scores (paper_scores.csv), and which of them stands beside a row of ours."""

import csv
import sys
from pathlib import Path

from benchmarks.scores.reading import Row

PAPER_SCORES = Path(__file__).with_name("paper_scores.csv")
MILD = {"version-inferred"}  # doubts of a published number that need no star


def read_paper_scores(path: Path = PAPER_SCORES) -> dict:
    """Return (algorithm, dataset, stage, "paper" or "rerun") -> row, of the rows with a use."""
    targets = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["use"]:
                continue
            key = (row["algorithm"], row["dataset"], row["stage"], row["use"])
            if key in targets:
                sys.exit(f"{path} has a second number to be used for {', '.join(key)}")
            row["score"] = float(row["score"])
            row["std"] = float(row["std"]) if row["std"] else None
            targets[key] = row
    return targets


def find_target(targets: dict, row: Row, use: str) -> dict | None:
    """Return the published number for a row, if its data are D4RL's own of that very version."""
    if row.group != "D4RL's own data":
        return None
    return targets.get((row.paper_name, row.dataset, row.paper_stage, use))


def published(number: dict | None) -> str:
    """Return '98.2 ± 1.6', with a star if there is a doubt about it."""
    if number is None:
        return "-"
    text = f"{number['score']:.1f}"
    if number["std"] is not None:
        text += f" ± {number['std']:.1f}"
    if set(number["doubt"].split()) - MILD:
        text += "\\*"
    return text
