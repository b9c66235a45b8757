"""Say, cell by cell, how far the results are from the published numbers, and fail on false claims.

1. The results must not contradict themselves, and README must show what they give (tables.py).
2. On D4RL's own data: ours beside the paper's score and the best re-run of the same dataset and
   version. "within" means that our mean lies in the published mean ± its printed spread; where
   none is printed our own deviation over seeds stands in, and the table says so. Only runs as long
   as the published ones, with the authors' settings and at least three seeds can match.
3. On rebuilt data no published number is a target. What can carry over is an ordering: where a
   paper has one algorithm clearly above another on D4RL's namesake (by more than both spreads
   together, at least one point), is it so here? Support, for each task and over the tasks of a
   suite: rliable's probability of improvement P(X > Y) with its stratified bootstrap interval, and
   the one-sided p of a permutation test on the difference of means, seeds exchanged within each
   task. Many orderings are tested at once: a single p of 0.05 among twenty is no discovery.
4. benchmarks/claims.csv lists what this project claims, one claim a line. Names are files of
   benchmarks/results/ without .json:
       por-hopper-medium-v2,reproduces,paper    our mean is within the paper's (rerun's) spread
       iql-x;iql-y,better,bc-x;bc-y             p <= 0.05, over these tasks together
   A claim that does not hold makes this command fail, as does a claim about a missing result.

    python benchmarks/check.py
"""

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import tables
from tables import ROOT, Row

CLAIMS = ROOT / "benchmarks" / "claims.csv"
MOST_SPLITS = 200_000  # more permutations than these are sampled
LEVEL = 0.05  # of a permutation test
FEWEST_SEEDS = 3  # of a run that may count as a reproduction


@dataclass
class Args:
    results: Path = ROOT / "benchmarks" / "results"
    """folder with one JSON per finished run"""
    readme: Path = ROOT / "README.md"
    """file with the tables"""
    claims: Path = CLAIMS
    """what is claimed"""


# ---- Support of an ordering

def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """rliable's P(X > Y), a tie as half, averaged over tasks: (..., runs, tasks) -> (...)."""
    pairs = x[..., :, None, :] - y[..., None, :, :]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean((-3, -2, -1))


def permutation_p(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """One-sided p of 'the first is higher': how often exchanged seeds differ at least as much.

    pairs: scores (n,) and (m,) of each task; the statistic is the sum over tasks of the difference
    of means. All splits are counted, or MOST_SPLITS random ones where there are more.
    """
    observed = sum(x.mean() - y.mean() for x, y in pairs)
    counts = [math.comb(len(x) + len(y), len(x)) for x, y in pairs]
    if math.prod(counts) <= MOST_SPLITS:
        total = np.zeros(1)
        for x, y in pairs:
            both = np.concatenate([x, y])
            first = np.array([*itertools.combinations(range(len(both)), len(x))])
            total = (total[:, None] + difference(both, both[first].sum(1), len(x))).ravel()
        return float((total >= observed - 1e-9).mean())
    rng, total = np.random.default_rng(0), np.zeros(MOST_SPLITS)
    for x, y in pairs:
        both = np.tile(np.concatenate([x, y]), (MOST_SPLITS, 1))
        total += difference(both[0], rng.permuted(both, axis=1)[:, :len(x)].sum(1), len(x))
    return float(((total >= observed - 1e-9).sum() + 1) / (MOST_SPLITS + 1))


def difference(both: np.ndarray, first: np.ndarray, n: int) -> np.ndarray:
    """Mean of n of the values minus mean of the others, given the sum of the n."""
    return first / n - (both.sum() - first) / (len(both) - n)


def support(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Difference of means, P(X > Y) with interval, p, and a verdict in words."""
    if len({(len(x), len(y)) for x, y in pairs}) > 1:
        raise SystemExit("tasks that are taken together need equally many seeds")
    x, y = (np.stack(side, 1) for side in zip(*pairs))
    p, opposite = permutation_p(pairs), permutation_p([(b, a) for a, b in pairs])
    gap = float(x.mean() - y.mean())
    verdict = ("supported" if p <= LEVEL else "contradicted" if opposite <= LEVEL
               else "same direction, not significant" if gap > 0
               else "other direction, not significant")
    return {"gap": gap, "better": float(improvement(x, y)), "p": p, "verdict": verdict,
            "interval": tables.bootstrap(improvement, x, y, reps=2_000)}


# ---- Cells on D4RL's own data

def obstacles(row: Row) -> list[str]:
    """Why a row cannot count as a reproduction, whatever its score."""
    found = []
    if row.updates < tables.PUBLISHED_UPDATES:
        found.append(f"{row.updates:,} of {tables.PUBLISHED_UPDATES:,} updates")
    if len(row.seeds) < FEWEST_SEEDS:
        found.append(f"{len(row.seeds)} of {FEWEST_SEEDS} seeds")
    if row.deviations:
        found.append("settings of its own: "
                     + ", ".join(f"{k} {v}" for k, v in row.deviations.items()))
    return found


def compare(row: Row, number: dict | None) -> tuple[str, bool]:
    """(words, is our mean within the published spread?)"""
    if number is None:
        return "no published number", False
    gap, printed = row.final.mean() - number["score"], number["std"] is not None
    # half a unit of the last printed digit is rounding, not distance
    within = abs(gap) <= (number["std"] if printed else row.final.std()) + 0.05
    word = "within" if within else "above" if gap > 0 else "below"
    return f"{gap:+.1f}, {word}" + " our spread, none printed" * (not printed), within


def cells(rows: list[Row], targets: dict) -> str:
    """Ours, paper, re-run, differences and verdict of every row on D4RL's own data."""
    lines = []
    for row in rows:
        if row.group != "D4RL's own data":
            continue
        numbers = [tables.target(targets, row, use) for use in ("paper", "rerun")]
        words, within = zip(*(compare(row, number) for number in numbers))
        reached = [use for use, is_in in zip(("paper", "best re-run"), within) if is_in]
        why = obstacles(row)
        verdict = (f"not comparable: {'; '.join(why)}" if why else
                   f"matches {' and '.join(reached)}" if reached else "no match")
        lines.append([row.label, row.dataset, tables.spread(row.final),
                      *(text for pair in zip(map(tables.published, numbers), words)
                        for text in pair), verdict])
    header = ["algorithm", "data", "ours", "paper", "difference", "best re-run", "difference",
              "verdict"]
    return tables.markdown(header, lines) if lines else "No result on D4RL's own data."


# ---- Orderings on rebuilt data

def claimed(targets: dict, better: Row, worse: Row) -> str | None:
    """The paper's numbers on D4RL's namesake if they have the first clearly above the second."""
    name = f"{tables.family(better.dataset)}-v2"
    high, low = (targets.get((r.paper_name, name, "offline", "paper")) for r in (better, worse))
    if high is None or low is None:
        return None
    margin = max(1, (high["std"] or 0) + (low["std"] or 0))
    if high["score"] - low["score"] <= margin:
        return None
    again = " and ".join(tables.published(targets.get((r.paper_name, name, "offline", "rerun")))
                         for r in (better, worse))
    return f"{tables.published(high)} and {tables.published(low)} ({again}) on {name}"


def orderings(rows: list[Row], targets: dict) -> str:
    """Support of every claimed ordering, task by task and over suites."""
    lines, together = [], {}
    rebuilt = [r for r in rows if r.group == "Rebuilt data" and r.stage == "train" and r.scored]
    for better, worse in itertools.permutations(rebuilt, 2):
        alike = ("dataset", "fingerprint", "updates", "precision")
        same = all(getattr(better, k) == getattr(worse, k) for k in alike)
        if same and (numbers := claimed(targets, better, worse)):
            found = support([(better.final, worse.final)])
            lines.append([f"{better.label} > {worse.label}", better.dataset, numbers,
                          *support_cells(found, better, worse)])
            key = (better.label, worse.label, tables.suite(better.dataset), better.updates,
                   better.precision, len(better.seeds), len(worse.seeds))
            together.setdefault(key, []).append((better, worse))
    for (high, low, suite, *_), pairs in together.items():
        if len(pairs) > 1 and len(pairs) == len({a.dataset for a, _ in pairs}):
            found = support([(a.final, b.final) for a, b in pairs])
            lines.append([f"{high} > {low}", f"{suite}, {len(pairs)} tasks", "as above",
                          *support_cells(found, *pairs[0])])
    header = ["ordering", "rebuilt data", "the papers (best re-runs), on other data (D4RL's)",
              "seeds", "updates", "our difference", "P(better), 95% interval", "p", "verdict"]
    return tables.markdown(header, lines) if lines else (
        "No two results on the same rebuilt data whose order a paper claims.")


def support_cells(found: dict, better: Row, worse: Row) -> list[str]:
    low, high = found["interval"]
    return [f"{len(better.seeds)} and {len(worse.seeds)}", f"{better.updates:,}",
            f"{found['gap']:+.1f}", f"{found['better']:.2f} ({low:.2f} to {high:.2f})",
            "<0.001" if found["p"] < 0.001 else f"{found['p']:.3f}", found["verdict"]]


# ---- Claims

def read_claims(path: Path) -> list[dict]:
    """Lines of claims.csv. Raises SystemExit where one is not understood."""
    with path.open(newline="") as file:
        claims = [*csv.DictReader(file)]
    for line, claim in enumerate(claims, 2):
        result, kind, than = (claim.get(k) or "" for k in ("result", "claim", "than"))
        good = {"reproduces": than in ("paper", "rerun") and ";" not in result,
                "better": than and result.count(";") == than.count(";")}
        if not result or not good.get(kind):
            raise SystemExit(f"{path.name}:{line}: {','.join(map(str, claim.values()))} is no "
                             "claim; see the first lines of benchmarks/check.py")
    return claims


def failure(claim: dict, rows: dict[str, Row], targets: dict) -> str | None:
    """Why a claim does not hold; None if it does. rows: by file name without .json."""
    names, others = claim["result"].split(";"), claim["than"].split(";")
    if twice := [name for name in names if names.count(name) > 1]:
        return f"{twice[0]} is named twice: a result counts once"
    needed = names + others * (claim["claim"] == "better")
    if missing := [name for name in needed if name not in rows]:
        return f"no result {', '.join(missing)}"
    if claim["claim"] == "reproduces":
        row = rows[names[0]]
        number = tables.target(targets, row, claim["than"])
        words, within = compare(row, number)
        reasons = obstacles(row) + [f"{tables.spread(row.final)} against "
                                    f"{tables.published(number)}: {words}"] * (not within)
        return "; ".join(reasons) or None
    pairs = [(rows[a], rows[b]) for a, b in zip(names, others)]
    if len({a.dataset for a, _ in pairs}) < len(pairs):
        return "two pairs are on one dataset: a dataset counts once"
    for a, b in pairs:
        if (a.dataset, a.fingerprint, a.updates) != (b.dataset, b.fingerprint, b.updates):
            return f"{a.file.stem} and {b.file.stem} differ in data or length"
    found = support([(a.final, b.final) for a, b in pairs])
    if found["p"] <= LEVEL:
        return None
    return f"difference {found['gap']:+.1f}, p {found['p']:.3f}: {found['verdict']}"


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=words, description=__doc__)
    if not args.results.is_dir():
        raise SystemExit(f"--results {args.results}: no such folder")
    try:
        rows, notes = tables.read_results(args.results)
        targets, claims = tables.read_paper_scores(), read_claims(args.claims)
        stale = tables.differences(tables.Args(results=args.results, readme=args.readme))
    except OSError as error:
        raise SystemExit(f"cannot read: {error}")
    print(f"{len(rows)} rows of results, none contradicts itself.", *notes, sep="\n")
    print("\n## D4RL's own data: ours and the published numbers\n\n" + cells(rows, targets))
    print("\n*: the number has a doubt, see benchmarks/PAPER_SCORES.md")
    print("\n## Rebuilt data: orderings that the papers claim\n\n" + orderings(rows, targets))
    by_name = {row.file.stem: row for row in rows if row.stage == "train"}
    problems = [f"README: {line}" for line in stale]
    for claim in claims:
        why = failure(claim, by_name, targets)
        text = f"{claim['result']} {claim['claim']} {claim['than']}"
        print(f"\nclaim: {text}: {'FALSE, ' + why if why else 'holds'}")
        problems += [f"claim: {text}: {why}"] * bool(why)
    print(f"\n{len(claims)} claims in {args.claims.name}")
    if problems:
        raise SystemExit("\n".join(["not as it should be:", *(f"  {p[:200]}" for p in problems),
                                    *["README is brought up to date by: python "
                                      "benchmarks/tables.py"] * bool(stale)]))


if __name__ == "__main__":
    main()
