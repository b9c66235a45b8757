"""What this project claims about its results, and whether it holds.

claims.csv has one claim a line. Names are files of results/:

    result,claim,than,holds,printed
    a/iql;b/iql,better,a/bc;b/bc,yes,
    hopper-medium-v2/por-q,reproduces,paper,yes,
    a/awac,better,a/bc,no,iql_slides/d4rl_main/hopper-medium-v2/awac/bc

`better` holds if p <= 0.05 over these tasks together, `reproduces` if our mean is within the spread
of the paper's number, or of the best re-run's (`rerun`).

`printed` says where a document prints the order, in words of paper_scores.csv: source, table,
dataset, the better algorithm, the worse one. Such an order is listed even if it does not hold on
our data. `holds` is what the test must find.
"""

import csv
import itertools
import math
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import (
    interval,
    markdown_table,
    mean_and_spread,
    probability_of_improvement,
)
from benchmarks.scores.papers import PAPER_SCORES, find_target, published
from benchmarks.scores.reading import PUBLISHED_UPDATES, Row

CLAIMS = Path(__file__).with_name("claims.csv")
MOST_SPLITS = 200_000  # more permutations than these are sampled
LEVEL = 0.05  # of a permutation test
FEWEST_SEEDS = 3  # of a run that may count as a reproduction


# --------------------------------------------------------------------------------------------------
# Support of an order
# --------------------------------------------------------------------------------------------------


def permutation_p(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the one-sided p of 'the first is higher' for the scores (n,) and (m,) of each task.

    It is how often exchanged seeds differ at least as much. The statistic is the sum over tasks of
    the difference of means. All splits are counted, or random ones where there are too many.
    """
    observed = sum(x.mean() - y.mean() for x, y in pairs)
    counts = [math.comb(len(x) + len(y), len(x)) for x, y in pairs]
    total = np.zeros(1)
    if math.prod(counts) <= MOST_SPLITS:
        for x, y in pairs:
            both = np.concatenate([x, y])
            first = np.array(list(itertools.combinations(range(len(both)), len(x))))
            gaps = difference_of_means(both[first].sum(1), both, len(x))
            total = (total[:, None] + gaps).ravel()
        return float((total >= observed - 1e-9).mean())
    rng = np.random.default_rng(0)
    for x, y in pairs:
        both = np.concatenate([x, y])
        shuffled = rng.permuted(np.tile(both, (MOST_SPLITS, 1)), axis=1)
        total = total + difference_of_means(shuffled[:, : len(x)].sum(1), both, len(x))
    return float(((total >= observed - 1e-9).sum() + 1) / (MOST_SPLITS + 1))


def difference_of_means(sums: np.ndarray, both: np.ndarray, n: int) -> np.ndarray:
    """Return the mean of n values minus that of the others, for the sums of the n."""
    return sums / n - (both.sum() - sums) / (len(both) - n)


def support(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Return difference of means, P(X > Y) with its interval, p and a verdict."""
    if len({(len(x), len(y)) for x, y in pairs}) > 1:
        sys.exit("tasks that are taken together need equally many seeds")
    x, y = (np.stack(side, axis=1) for side in zip(*pairs, strict=True))
    gap = float(x.mean() - y.mean())
    p = permutation_p(pairs)
    if p <= LEVEL:
        verdict = "supported"
    elif permutation_p([(b, a) for a, b in pairs]) <= LEVEL:
        verdict = "contradicted"
    elif gap > 0:
        verdict = "same direction, not significant"
    else:
        verdict = "other direction, not significant"
    return {
        "gap": gap,
        "better": float(probability_of_improvement(x, y)),
        "interval": interval(probability_of_improvement, x, y, resamples=2_000),
        "p": p,
        "verdict": verdict,
    }


# --------------------------------------------------------------------------------------------------
# Beside a published number
# --------------------------------------------------------------------------------------------------


def obstacles(row: Row) -> list[str]:
    """Return why a row cannot count as a reproduction, whatever its score."""
    found = []
    if row.updates < PUBLISHED_UPDATES:
        found.append(f"{row.updates:,} of {PUBLISHED_UPDATES:,} updates")
    if row.seeds < FEWEST_SEEDS:
        found.append(f"{row.seeds} of {FEWEST_SEEDS} seeds")
    if row.deviations:
        words = [f"{key} {value}" for key, value in row.deviations.items()]
        found.append(f"settings of its own: {', '.join(words)}")
    return found


def compare(row: Row, number: dict | None) -> tuple[str, bool]:
    """Return the difference in words, and whether our mean is within the published spread."""
    if number is None:
        return "no published number", False
    gap = row.final.mean() - number["score"]
    spread = row.final.std() if number["std"] is None else number["std"]
    # Half a unit of the last printed digit is rounding.
    within = abs(gap) <= spread + 0.05
    word = "below"
    if within:
        word = "within"
    elif gap > 0:
        word = "above"
    note = " our spread, none printed" if number["std"] is None else ""
    return f"{gap:+.1f}, {word}{note}", within


# --------------------------------------------------------------------------------------------------
# Claims
# --------------------------------------------------------------------------------------------------


def is_claim(claim: dict) -> bool:
    """Does a line of claims.csv make sense by itself?"""
    result, kind, than, holds = (
        claim.get(key) or "" for key in ("result", "claim", "than", "holds")
    )
    if not (result and than and holds in ("yes", "no")):
        return False
    if kind == "reproduces":
        return than in ("paper", "rerun") and ";" not in result and not claim["printed"]
    return kind == "better" and result.count(";") == than.count(";")


def read_claims(path: Path = CLAIMS) -> list[dict]:
    """Return the lines of claims.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        claims = list(csv.DictReader(file))
    for number, claim in enumerate(claims, start=2):
        if not is_claim(claim):
            sys.exit(f"{path.name}:{number} is no claim; see benchmarks/scores/claims.py")
    return claims


def rows_by_name(rows: list[Row]) -> dict[str, Row]:
    """Return the rows that claims can name: '<dataset>/<file>' -> ours, offline."""
    return {
        f"{row.file.parent.name}/{row.file.stem}": row
        for row in rows
        if row.phase != "online" and not row.control and row.target_number == 0
    }


def claimed_pairs(claim: dict, rows: dict[str, Row]) -> list[tuple[Row, Row]]:
    """Return the rows that a claim compares. Raise ValueError if they cannot be compared."""
    names, others = claim["result"].split(";"), claim["than"].split(";")
    if len(set(names)) < len(names):
        raise ValueError("a result is named twice, but counts once")
    missing = [name for name in [*names, *others] if name not in rows]
    if missing:
        raise ValueError(f"there is no result {', '.join(missing)}")
    pairs = [(rows[a], rows[b]) for a, b in zip(names, others, strict=True)]
    if len({better.dataset for better, _ in pairs}) < len(pairs):
        raise ValueError("two pairs are on one dataset, which counts once")
    for better, worse in pairs:
        alike = ("dataset", "fingerprint", "updates")
        if any(getattr(better, key) != getattr(worse, key) for key in alike):
            raise ValueError(f"{better.file.stem} and {worse.file.stem} differ in data or length")
    return pairs


def support_of(pairs: list[tuple[Row, Row]]) -> dict:
    return support([(better.final, worse.final) for better, worse in pairs])


def why_false(claim: dict, rows: dict[str, Row], targets: dict) -> str | None:
    """Return why the test of a claim fails, or None. Raise ValueError if it cannot be tested."""
    if claim["claim"] == "better":
        found = support_of(claimed_pairs(claim, rows))
        if found["p"] <= LEVEL:
            return None
        return f"difference {found['gap']:+.1f}, p {found['p']:.3f}: {found['verdict']}"
    if claim["result"] not in rows:
        raise ValueError(f"there is no result {claim['result']}")
    row = rows[claim["result"]]
    words, within = compare(row, find_target(targets, row, claim["than"]))
    reasons = obstacles(row)
    if not within:
        reasons.append(words)
    return "; ".join(reasons) or None


def judge(claim: dict, rows: dict[str, Row], targets: dict) -> tuple[bool, str]:
    """Return whether a claim is marked as its test finds, and what the test finds."""
    try:
        reason = why_false(claim, rows, targets)
        printed_numbers(claim)
    except ValueError as error:
        return False, str(error)
    found = "holds" if reason is None else f"does not hold: {reason}"
    right = (reason is None) == (claim["holds"] == "yes")
    return right, found if right else f"{found}; it is marked `{claim['holds']}`"


def printed_numbers(claim: dict) -> tuple[str, str] | None:
    """Return where an order is printed and its numbers, or None where none is named.

    Raise ValueError if they do not stand in paper_scores.csv, or in the other order.
    """
    if not claim["printed"]:
        return None
    words = claim["printed"].split("/")
    if len(words) != 5:
        raise ValueError(f"{claim['printed']} is not source/table/dataset/better/worse")
    *place, better, worse = words
    numbers = []
    with open(PAPER_SCORES, newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["stage"] == "offline"]
    for name in (better, worse):
        wanted = [*place, name]
        keys = ("source", "table", "dataset", "algorithm")
        found = [line for line in lines if [line[key] for key in keys] == wanted]
        if len(found) != 1:
            raise ValueError(f"paper_scores.csv has {len(found)} numbers of {'/'.join(wanted)}")
        number = found[0]
        spread = float(number["std"]) if number["std"] else None
        numbers.append(number | {"score": float(number["score"]), "std": spread})
    if numbers[0]["score"] <= numbers[1]["score"]:
        raise ValueError(f"{claim['printed']} is in the other order")
    return "/".join(place), " and ".join(map(published, numbers))


def claims_table(claims: list[dict], rows: list[Row]) -> str:
    """Return a line for each claim about an order that can be tested: what both have, and p."""
    named = rows_by_name(rows)
    lines = []
    for claim in claims:
        if claim["claim"] != "better":
            continue
        try:
            pairs = claimed_pairs(claim, named)
            printed = printed_numbers(claim)
        except ValueError:  # check.py fails for it
            continue
        found = support_of(pairs)
        scores = [f"{mean_and_spread(a.final)} and {mean_and_spread(b.final)}" for a, b in pairs]
        lines.append(
            [
                f"{pairs[0][0].label} > {pairs[0][1].label}",
                "<br>".join(f"`{better.dataset}`" for better, _ in pairs),
                f"{pairs[0][0].updates:,}",
                "<br>".join(scores),
                f"{found['p']:.3f}",
                "yes" if found["p"] <= LEVEL else f"**no**, {found['verdict']}",
                "-" if printed is None else f"{printed[1]} ({printed[0]})",
            ]
        )
    header = ["order", "data", "updates", "ours", "p", "holds", "printed"]
    return markdown_table(header, lines) if lines else "There are no claims yet."
