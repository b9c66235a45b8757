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
6. claims.csv lists what this project claims, and orders of the documents that do not hold here.
   Each is tested anew (claims.py), and must be marked as the test finds.
"""

import itertools
import math
import sys

import numpy as np
import tyro

from benchmarks.common import markdown_table, mean_and_spread
from benchmarks.scores import tables
from benchmarks.scores.claims import compare, judge, obstacles, read_claims, rows_by_name, support
from benchmarks.scores.papers import find_target, published, read_paper_scores
from benchmarks.scores.reading import Row, namesake, read_results

# --------------------------------------------------------------------------------------------------
# D4RL's own data: beside the published numbers
# --------------------------------------------------------------------------------------------------


def comparison_table(rows: list[Row], targets: dict) -> str:
    """Return ours, the paper's and the best re-run's scores on D4RL's own data."""
    lines = []
    for row in rows:
        if row.group != "D4RL's own data" or row.control:
            continue
        line = [row.label, row.dataset, mean_and_spread(row.final)]
        matches = []
        for use in ("paper", "rerun"):
            number = find_target(targets, row, use)
            words, within = compare(row, number)
            line += [published(number), words]
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
    return f"{published(high)} and {published(low)} on {name}"


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
# Command line
# --------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(tables.Args, args=words, description=__doc__)
    tables.check_paths(args)
    try:
        rows = read_results(args.results)
    except ValueError as error:
        sys.exit(str(error))
    targets = read_paper_scores()
    print(f"{len(rows)} rows of results, none of which contradicts itself")
    print(f"\n## D4RL's own data\n\n{comparison_table(rows, targets)}")
    print(f"\n## Published for as many updates\n\n{published_table(rows)}")
    print(f"\n## Other people's code on the same data\n\n{control_table(rows)}")
    print(f"\n## Rebuilt data: orders that papers claim\n\n{order_table(rows, targets)}\n")
    pages, figures = tables.outdated(args)
    problems = [f"{path.name} is not what the results give" for path in [*pages, *figures]]
    named = rows_by_name(rows)
    for claim in read_claims(args.claims):
        right, found = judge(claim, named, targets)
        line = f"claim: {claim['result']} {claim['claim']} {claim['than']}: {found}"
        print(line)
        if not right:
            problems.append(line)
    if problems:
        sys.exit("\n".join(["not as it should be:", *problems]))


if __name__ == "__main__":
    main()
