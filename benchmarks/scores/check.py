"""Say how far the results are from the published numbers, and fail if a claim does not hold.

    python -m benchmarks.scores.check

1. The results must not contradict themselves, and the pages must show what they give (tables.py).
2. On D4RL's own data, ours stand beside the paper's score and the best re-run. "within" means that
   our mean lies in the published mean ± its spread, or ± ours where none is printed. Only runs as
   long as the published ones, with the published settings and three seeds or more, can match.
3. What others published for exactly as many updates (published_curves.csv) stands beside ours, in
   the same words. On rebuilt data the two differ in the data, too, so that no word is a verdict.
4. A control is other people's code, unchanged, on our data. Its mean is subtracted from that of the
   row of ours beside which it stands. The standard error of the difference comes from the seeds of
   both (s with divisor n - 1; sqrt(s1^2/n1 + s2^2/n2)); two of them are the limit.
5. On rebuilt data no published number is a target, but an order can carry over. Where a paper has
   one algorithm clearly above another on D4RL's namesake (by more than both spreads together, and
   at least one point), the support is told for each task, and for the tasks of a suite together:
   rliable's probability of improvement P(X > Y) with its interval, and the one-sided p of a
   permutation test, seeds exchanged within each task. Many orders are tested at once, so a single
   p of 0.05 is no discovery.
6. claims.csv lists what this project claims, one claim a line. Names are files of results/:
       hopper-medium-v2/por-q,reproduces,paper   our mean is within the paper's (rerun's) spread
       a/iql;b/iql,better,a/bc;b/bc              p <= 0.05, over these tasks together
"""

import csv
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.common import (
    interval,
    markdown_table,
    mean_and_spread,
    probability_of_improvement,
)
from benchmarks.scores import tables
from benchmarks.scores.reading import PUBLISHED_UPDATES, Row, namesake, read_results

MOST_SPLITS = 200_000  # more permutations than these are sampled
LEVEL = 0.05  # of a permutation test
FEWEST_SEEDS = 3  # of a run that may count as a reproduction


@dataclass
class Args(tables.Args):
    claims: Path = tables.SCORES / "claims.csv"  # what is claimed


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
# D4RL's own data: beside the published numbers
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


def comparison_table(rows: list[Row], targets: dict) -> str:
    """Return ours, the paper's and the best re-run's scores on D4RL's own data."""
    lines = []
    for row in rows:
        if row.group != "D4RL's own data" or row.control:
            continue
        line = [row.label, row.dataset, mean_and_spread(row.final)]
        matches = []
        for use in ("paper", "rerun"):
            number = tables.find_target(targets, row, use)
            words, within = compare(row, number)
            line += [tables.published(number), words]
            if within:
                matches.append(use)
        verdict = f"matches {' and '.join(matches)}" if matches else "no match"
        if obstacles(row):
            verdict = f"not comparable: {'; '.join(obstacles(row))}"
        lines.append([*line, verdict])
    header = ["algorithm", "data", "ours", "paper", "difference", "best re-run", "difference"]
    return markdown_table([*header, "verdict"], lines) if lines else "There is no such result."


# --------------------------------------------------------------------------------------------------
# Equally many updates: beside published curves, and beside other people's code on our data
# --------------------------------------------------------------------------------------------------


def published_table(rows: list[Row]) -> str:
    """Return ours beside what others published for exactly as many updates."""
    lines = []
    for row in rows:
        for point in row.published:
            words, _ = compare(row, {"score": point.mean, "std": point.std})
            data = "the same" if point.dataset == row.dataset else "differ"
            ours = mean_and_spread(row.final)
            lines.append([row.label, row.dataset, row.length, ours, str(point), words, data])
    ours = [row for row in rows if not row.control and row.phase != "online"]
    without = sum(not row.published for row in ours)
    note = f"For {without} of {len(ours)} rows none is published."
    header = ["algorithm", "our data", "updates / schedule", "ours", "published"]
    table = markdown_table([*header, "difference", "data"], lines)
    return f"{table}\n\n{note}" if lines else note


def difference_with_error(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the difference of the means of two groups of seeds, and its standard error.

    The error is NaN if one of them is a single seed, which says nothing of its spread.
    """
    if min(len(x), len(y)) < 2:
        return float(x.mean() - y.mean()), math.nan
    error = math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))
    return float(x.mean() - y.mean()), error


def control_lines(control: Row, partners: list[Row]) -> list[list[str]]:
    """Return a control's lines of the table, one for each row of ours beside which it stands."""
    theirs = [control.label, control.dataset, control.length, mean_and_spread(control.final)]
    if not partners:
        return [[*theirs, "-", "-", "-", "no run of ours with as many updates"]]
    lines = []
    for row in partners:
        gap, error = difference_with_error(row.final, control.final)
        difference = f"{gap:+.1f} ± {error:.1f}"
        verdict = "within two standard errors"
        if math.isnan(error):
            difference = f"{gap:+.1f}"
            verdict = "one seed alone has no standard error"
        elif abs(gap) > 2 * error:
            verdict = f"{'above' if gap > 0 else 'below'} by more than two standard errors"
        if row.fingerprint != control.fingerprint:
            verdict += "; another build of the data"
        ours = [row.label, mean_and_spread(row.final)]
        lines.append([*theirs, *ours, difference, verdict])
    return lines


def control_table(rows: list[Row]) -> str:
    """Return the difference between ours and other people's code on the same data."""
    lines = []
    for control in rows:
        if control.control:
            partners = [row for row in rows if control.stands_beside(row)]
            lines += control_lines(control, partners)
    header = ["their code", "data", "updates / schedule", "theirs", "our row", "ours"]
    header += ["ours - theirs ± standard error", "ours is"]
    return markdown_table(header, lines) if lines else "There is no control."


# --------------------------------------------------------------------------------------------------
# Rebuilt data: the orders that papers claim
# --------------------------------------------------------------------------------------------------


def claimed_order(targets: dict, better: Row, worse: Row) -> str | None:
    """Return the papers' numbers on D4RL's namesake if the first is clearly above the second."""
    name = f"{namesake(better.dataset)}-v2"
    high, low = (targets.get((row.paper_name, name, "offline", "paper")) for row in (better, worse))
    if high is None or low is None:
        return None
    margin = max(1, (high["std"] or 0) + (low["std"] or 0))
    if high["score"] - low["score"] <= margin:
        return None
    return f"{tables.published(high)} and {tables.published(low)} on {name}"


def order_table(rows: list[Row], targets: dict) -> str:
    """Return the support of every claimed order, for single tasks and for suites."""
    lines = []
    together = {}
    rebuilt = [row for row in rows if row.group == "Rebuilt data" and row.scored]
    offline = [row for row in rebuilt if row.phase != "online" and not row.control]
    for better, worse in itertools.permutations(offline, 2):
        alike = ("dataset", "fingerprint", "updates", "first_casting", "precision")
        if any(getattr(better, key) != getattr(worse, key) for key in alike):
            continue
        numbers = claimed_order(targets, better, worse)
        if numbers is not None:
            lines.append(order_line([(better, worse)], better.dataset, numbers))
            key = (better.label, worse.label, tables.suite(better.dataset), better.updates)
            together.setdefault((*key, better.seeds, worse.seeds), []).append((better, worse))
    for (_, _, suite, *_), pairs in together.items():
        if len(pairs) > 1 and len(pairs) == len({better.dataset for better, _ in pairs}):
            lines.append(order_line(pairs, f"{suite}, {len(pairs)} tasks", "as above"))
    header = ["order", "rebuilt data", "the papers, on D4RL's data", "seeds", "updates"]
    header += ["our difference", "P(better), 95% interval", "p", "verdict"]
    return markdown_table(header, lines) if lines else "There are no two such results."


def order_line(pairs: list[tuple[Row, Row]], data: str, numbers: str) -> list[str]:
    better, worse = pairs[0]
    found = support([(a.final, b.final) for a, b in pairs])
    low, high = found["interval"]
    return [
        f"{better.label} > {worse.label}",
        data,
        numbers,
        f"{better.seeds} and {worse.seeds}",
        f"{better.updates:,}",
        f"{found['gap']:+.1f}",
        f"{found['better']:.2f} ({low:.2f} to {high:.2f})",
        f"{found['p']:.3f}",
        found["verdict"],
    ]


# --------------------------------------------------------------------------------------------------
# Claims
# --------------------------------------------------------------------------------------------------


def read_claims(path: Path) -> list[dict]:
    """Return the lines of claims.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        claims = list(csv.DictReader(file))
    for number, claim in enumerate(claims, start=2):
        result, kind, than = (claim.get(key) or "" for key in ("result", "claim", "than"))
        good = bool(result and than)
        if kind == "reproduces":
            good = good and than in ("paper", "rerun") and ";" not in result
        elif kind == "better":
            good = good and result.count(";") == than.count(";")
        else:
            good = False
        if not good:
            sys.exit(
                f"{path.name}:{number} is no claim; see `python -m benchmarks.scores.check -h`"
            )
    return claims


def why_false(claim: dict, rows: dict[str, Row], targets: dict) -> str | None:
    """Return why a claim does not hold, or None if it does. `rows`: by name in results/."""
    names = claim["result"].split(";")
    others = claim["than"].split(";") if claim["claim"] == "better" else []
    if len(set(names)) < len(names):
        return "a result is named twice, but counts once"
    missing = [name for name in [*names, *others] if name not in rows]
    if missing:
        return f"there is no result {', '.join(missing)}"
    if claim["claim"] == "reproduces":
        return why_not_reproduced(rows[names[0]], claim["than"], targets)
    pairs = [(rows[a], rows[b]) for a, b in zip(names, others, strict=True)]
    if len({better.dataset for better, _ in pairs}) < len(pairs):
        return "two pairs are on one dataset, which counts once"
    for better, worse in pairs:
        alike = ("dataset", "fingerprint", "updates")
        if any(getattr(better, key) != getattr(worse, key) for key in alike):
            return f"{better.file.stem} and {worse.file.stem} differ in data or length"
    found = support([(better.final, worse.final) for better, worse in pairs])
    if found["p"] <= LEVEL:
        return None
    return f"difference {found['gap']:+.1f}, p {found['p']:.3f}: {found['verdict']}"


def why_not_reproduced(row: Row, use: str, targets: dict) -> str | None:
    """Return why a result does not reproduce a published number, or None if it does."""
    words, within = compare(row, tables.find_target(targets, row, use))
    reasons = obstacles(row)
    if not within:
        reasons.append(words)
    return "; ".join(reasons) or None


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=words, description=__doc__)
    tables.check_paths(args)
    try:
        rows = read_results(args.results)
    except ValueError as error:
        sys.exit(str(error))
    targets = tables.read_paper_scores()
    print(f"{len(rows)} rows of results, none of which contradicts itself")
    print(f"\n## D4RL's own data\n\n{comparison_table(rows, targets)}")
    print(f"\n## Published for as many updates\n\n{published_table(rows)}")
    print(f"\n## Other people's code on the same data\n\n{control_table(rows)}")
    print(f"\n## Rebuilt data: orders that papers claim\n\n{order_table(rows, targets)}\n")
    pages, figures = tables.outdated(args)
    problems = [f"{path.name} is not what the results give" for path in [*pages, *figures]]
    by_name = {
        row.file.relative_to(args.results).with_suffix("").as_posix(): row
        for row in rows
        if row.phase != "online" and not row.control and row.target_number == 0
    }
    for claim in read_claims(args.claims):
        reason = why_false(claim, by_name, targets)
        text = " ".join(claim.values())
        print(f"claim: {text}: {'holds' if reason is None else reason}")
        if reason is not None:
            problems.append(f"claim: {text}: {reason}")
    if problems:
        sys.exit("\n".join(["not as it should be:", *problems]))


if __name__ == "__main__":
    main()
