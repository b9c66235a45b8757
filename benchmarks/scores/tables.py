"""Turn benchmarks/results/ into README's tables and into pictures: nothing is typed by hand.

Every result.json in the folder is read and examined: is it finished, does each score follow from
its return, is the headline the last evaluation, are all evaluations there? Rows are grouped by
where their data come from, and only data that are D4RL's own stand beside a published number
(benchmarks/paper_scores.csv). Aggregates over tasks are the interquartile mean with stratified
bootstrap intervals, as rliable defines them (Agarwal et al., NeurIPS 2021).

    python benchmarks/tables.py            # writes README.md between its markers, and the pictures
    python benchmarks/tables.py --check    # writes nothing; fails if README or pictures differ

±: standard deviation over seeds with divisor n, as papers and CORL print it.
"""

import ast
import csv
import difflib
import fnmatch
import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import plot  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAPER_SCORES = ROOT / "benchmarks" / "paper_scores.csv"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
# Length of the published runs of POR, IQL, TD3+BC, SPOT and of CORL's (their repositories)
PUBLISHED_UPDATES = 1_000_000
NAMES = {"td3_bc": "TD3+BC"}  # where it is not the script's name in capitals
# rliable's defaults: resamplings and coverage of its intervals
REPS, COVERAGE = 50_000, 0.95
LAST = 10  # evaluations of a "mean of last ten"
MILD = {"version-inferred"}  # doubts of a published number that need no star
# plot.COMMON without what changes the method: these do not make a row's settings its own
CIRCUMSTANCES = plot.CIRCUMSTANCES | {"num_updates", "execution", "precision", "online_steps"}
NEWER_FIELDS = ("phase",)  # of an evaluation; older results lack it and are still read
# Group -> what stands under its heading, in the order of the sections
GROUPS = {
    "D4RL's own data": "D4RL's files, verified by SHA-256. *Paper* and *best re-run* are for the "
    "same dataset and version and a run of 1,000,000 updates; their sources and doubts are in "
    "[PAPER_SCORES.md](benchmarks/PAPER_SCORES.md).",
    "Rebuilt data": "Made by D4RL's recipe with behaviour policies of our own (AntMaze: with D4RL's "
    "ant; PointMaze: Minari's recipe with more noise), **not** D4RL's files: no published number "
    "belongs beside these scores, so there is no such column (AntMaze's, labelled, stand in a table "
    "of their own).",
    "Minari's data": "Minari's own datasets; the papers did not use them.",
    "Other data": "Data of other origin; the papers did not use them."}


@dataclass
class Args:
    results: Path = ROOT / "benchmarks" / "results"
    """folder with one JSON per finished run"""
    readme: Path = ROOT / "README.md"
    """file with the two markers"""
    check: bool = False
    """write nothing, fail if README or pictures are not what the results give"""


@dataclass
class Row:
    """The offline or the online part of one result."""
    file: Path
    script: str
    paper_name: str  # the algorithm's name in paper_scores.csv
    label: str
    deviations: dict  # arguments other than the script's settings for that dataset
    group: str
    stage: str  # "train" or "online"
    paper_stage: str  # what a paper calls it: "offline"; "before" and "after" online fine-tuning
    dataset: str
    env_id: str
    fingerprint: str
    scored: bool  # are `scores` normalized scores? else they are returns
    data_score: float
    seeds: list[int]
    updates: int
    episodes: int  # of the last evaluation, per seed
    at: np.ndarray  # (evaluations,) updates
    curve: np.ndarray  # (evaluations, seeds)
    device: str
    precision: str
    commits: list[str]
    final: np.ndarray = field(init=False)  # (seeds,)
    last_ten: np.ndarray = field(init=False)  # (seeds,)

    def __post_init__(self):
        trained = self.curve[self.at > 0]  # a short run has fewer than ten; none is of update 0
        self.final, self.last_ten = self.curve[-1], trained[-LAST:].mean(0)


# ---- Reading results

def read_result(path: Path) -> dict:
    """A result.json. Raises SystemExit if it cannot be read or is not one."""
    try:
        result = json.loads(path.read_text())
        result["evaluations"][0], result["parts"][0], result["args"]["env"], result["task"]["name"]
        return result
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SystemExit(f"{path} is not a run's result ({type(error).__name__}: {error})")


def stages(result: dict) -> dict[str, list[dict]]:
    """Evaluations by phase; results without that field are of offline training alone."""
    parts = {}
    for evaluation in result["evaluations"]:
        parts.setdefault(evaluation.get("phase", "train"), []).append(evaluation)
    return parts


def complaints(result: dict) -> list[str]:
    """What contradicts itself in a result that claims to be finished; empty if nothing does."""
    try:
        return _complaints(result)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        return [f"a part is missing or of another kind ({type(error).__name__}: {error})"]


def _complaints(result: dict) -> list[str]:
    args, task, bad = result["args"], result["task"], []
    evaluations, seeds = result["evaluations"], result["seeds"]
    if not result["finished"]:
        return [f"the run is not finished, it stands at update {result['step']}"]
    if seeds != [*range(args["seed"], args["seed"] + args["num_seeds"])]:
        bad.append(f"seeds {seeds} are not --seed {args['seed']} --num-seeds {args['num_seeds']}")
    if result["final"] != evaluations[-1]:
        bad.append("its headline (final) is not the last evaluation")
    for evaluation in evaluations:
        returns, scores = (np.array(evaluation[k], float) for k in ("returns", "scores"))
        at = f"update {evaluation['update']}"
        if returns.shape != (len(seeds),) or scores.shape != (len(seeds),):
            bad.append(f"{at}: {returns.size} returns and {scores.size} scores of {len(seeds)} "
                       "seeds")
            continue
        low, high = task["ref_min"], task["ref_max"]
        wanted = returns if low is None else 100 * (returns - low) / (high - low)
        if not np.allclose(scores, wanted, rtol=1e-6, atol=1e-6):  # NaN differs too
            bad.append(f"{at}: scores {scores.round(2)} do not follow from the returns, which "
                       f"give {wanted.round(2)}")
    for stage, part in stages(result).items():
        whole = stage == "train" or "online_steps" not in args  # sac.py learns online from nothing
        total = args["num_updates"] if whole else args["online_steps"]
        found = [e["update"] for e in part]
        first = 0 if whole else args["eval_every"]  # the online part follows the offline one
        wanted = [*range(first, total, args["eval_every"]), total]
        if found != wanted:
            bad.append(f"evaluations of phase {stage} at updates {found[:3]}..{found[-1]} "
                       f"({len(found)}), not at every {args['eval_every']:,} up to {total:,}")
        if part[-1]["episodes"] != args["final_eval_episodes"]:
            bad.append(f"the last evaluation of phase {stage} has {part[-1]['episodes']} episodes, "
                       f"not --final-eval-episodes {args['final_eval_episodes']}")
    if bad:  # a mean of wrong numbers would be one more complaint of the same
        return bad
    last = np.mean([e["scores"] for e in evaluations[-LAST:]], 0)
    stored = result.get("last_ten_scores", last)  # older scripts wrote it
    if not np.allclose(stored, last, rtol=1e-6, atol=1e-6):
        bad.append(f"last_ten_scores {np.round(stored, 2)} is not the mean of the last ten "
                   f"evaluations, {last.round(2)}")
    return bad


def lacking(result: dict) -> list[str]:
    """Newer fields that an older script did not write."""
    return [f"{name} of its evaluations" for name in NEWER_FIELDS
            if any(name not in evaluation for evaluation in result["evaluations"])]


@functools.cache
def script_settings(path: Path) -> tuple[dict, tuple, list]:
    """Defaults of a script's Args, SETTING_NAMES and SETTINGS, read without importing torch.

    Only expressions of constants are evaluated, and names that such expressions were given before.
    Raises SystemExit if there is no such script or one of the three needs more than that.
    """
    known, defaults = {}, {}
    value = lambda node: eval(compile(ast.Expression(node), path.name, "eval"),
                              {"__builtins__": {}}, known)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8")).body
        needed = ("SETTING_NAMES", "SETTINGS")
        for node in tree:
            if isinstance(node, ast.ClassDef) and node.name == "Args":
                defaults = {item.target.id: value(item.value) for item in node.body
                            if isinstance(item, ast.AnnAssign) and item.value}
            elif isinstance(node, ast.Assign):
                names = [n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)]
                try:
                    found = value(node.value)
                    known |= dict(zip(names, found if len(names) > 1 else [found]))
                except Exception:
                    if any(name in needed for name in names):
                        raise
        return defaults, known.get("SETTING_NAMES", ()), known.get("SETTINGS", [])
    except OSError as error:
        raise SystemExit(f"no script {path.name} in algorithms/ ({error.strerror}): its settings "
                         "are needed to say which results used them")
    except Exception as error:
        raise SystemExit(f"{path.name}: defaults of Args, SETTING_NAMES and SETTINGS must be made "
                         f"of constants, to be read without running the script ({error})")


def family(dataset: str) -> str:
    """'rebuilt/hopper/medium-100k-v0', 'hopper-medium-v2' -> 'hopper-medium', as the scripts do."""
    return re.sub(r"(-\d+[km]?)?-v\d+$", "", "-".join(dataset.lower().split("/")[-2:]))


def suite(dataset: str) -> str:
    """The tasks it is aggregated with: 'medium-v2', 'rebuilt medium-v0', 'D4RL pointmaze-v2'."""
    if "/" in dataset:
        *space, env, kind = dataset.split("/")
    else:
        space, (env, _, kind) = [], dataset.partition("-")
    return " ".join([*space, f"{env}-{kind[kind.rfind('v'):]}" if "maze" in env else kind])


def deviations(result: dict, folder: Path = ROOT / "algorithms") -> tuple[dict, dict]:
    """(words, others): the algorithm's own arguments that are words, and what was set by hand.

    A word, such as POR's guide, decides which row of the script's SETTINGS holds; the others are
    compared with that row, or with the default. A word that the dataset's own row has differently
    stands among the others too.
    """
    defaults, names, rows = script_settings(folder / f"{result['script']}.py")
    args, kind = result["args"], family(result["args"]["env"])
    fitting = [dict(zip(names, row[1:])) for row in rows if fnmatch.fnmatch(kind, row[0])]
    words = {k: v for k, v in args.items()
             if k in defaults and k not in plot.COMMON and isinstance(v, str)}
    agrees = lambda row: all(row[k] == args.get(k) for k in row if isinstance(row[k], str))
    row = next((row for row in fitting if agrees(row)), {})
    usual = defaults | row
    others = {k: v for k, v in args.items()
              if k in usual and k not in CIRCUMSTANCES and v != usual[k]}
    own = fitting[0] if fitting else {}
    others |= {k: args[k] for k in own if k in words and own[k] != args[k]}
    return words, others


def part_of(result: dict, name: str) -> list[str]:
    """Distinct values of an entry of `parts`, in order."""
    return [*dict.fromkeys(part[name] for part in result["parts"])]


def rows_of(path: Path, result: dict) -> list[Row]:
    """One row for the offline part of a result and one for the online part if it has one."""
    args, task, script = result["args"], result["task"], result["script"]
    words, others = deviations(result)
    name, paper_name = NAMES.get(script, script.upper().replace("_", "-")), script
    if script == "bc" and (top := args.get("top_fraction") or 1) < 1:
        name, paper_name = f"{100 * top:g}% BC", f"bc_{100 * top:g}"
        others.pop("top_fraction", None)
    label = ", ".join([name, *(f"{k.replace('_', ' ')} {v}" for k, v in (words | others).items())])
    source = "local" if task["name"].startswith("local/") else task["source"]
    group = {"D4RL file": "D4RL's own data", "rebuilt": "Rebuilt data",
             "Minari": "Minari's data"}.get(source, "Other data")
    tuned = bool(args.get("online_steps"))  # then the offline part may have another schedule
    short = {} if not tuned or args["num_updates"] >= PUBLISHED_UPDATES else {
        "offline updates": args["num_updates"]}  # before the published runs went on online
    return [Row(
        file=path, script=script, paper_name=paper_name, group=group,
        deviations=others | (short if stage == "online" else {}),
        label=label + ", before online steps" * (tuned and stage == "train"), stage=stage,
        paper_stage="after" if stage == "online" else "before" if tuned else "offline",
        dataset=task["name"], env_id=task["env_id"],
        fingerprint=task["fingerprint"], scored=task["ref_min"] is not None,
        data_score=task["data_score"], seeds=result["seeds"], updates=part[-1]["update"],
        episodes=part[-1]["episodes"], at=np.array([e["update"] for e in part], float),
        curve=np.array([e["scores"] for e in part], float), precision=args["precision"],
        device="; ".join(part_of(result, "device")), commits=part_of(result, "commit"))
        for stage, part in stages(result).items()]


def read_results(folder: Path) -> tuple[list[Row], list[str]]:
    """Rows of all results in a folder, sorted by task, and notes about older files.

    Raises SystemExit if a file is damaged or contradicts itself.
    """
    rows, notes = [], []
    for path in sorted(folder.glob("*.json")):
        result = read_result(path)
        if bad := complaints(result):
            raise SystemExit(f"{path} cannot be trusted: {'; '.join(bad)}")
        rows += rows_of(path, result)
        if lacks := lacking(result):
            notes.append(f"{path.name} was written by an older script, without "
                         f"{' and '.join(lacks)}.")
    builds = {}
    for row in rows:
        builds.setdefault(row.dataset, set()).add(row.fingerprint)
    notes += [f"{name} was built {len(prints)} times with different content: "
              f"{', '.join(sorted(p[:8] for p in prints))}." for name, prints in builds.items()
              if len(prints) > 1]
    rows.sort(key=lambda r: (r.stage != "train", suite(r.dataset), r.dataset, r.updates, r.label,
                             r.precision))
    return rows, notes


# ---- Published numbers

def read_paper_scores(path: Path = PAPER_SCORES) -> dict:
    """(algorithm, dataset, stage, "paper" or "rerun") -> its row, for the rows meant for use."""
    targets = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            if not row["use"]:
                continue
            key = row["algorithm"], row["dataset"], row["stage"], row["use"]
            if key in targets:
                raise SystemExit(f"{path}:{line}: a second number to be used for {key}")
            targets[key] = row | {"score": float(row["score"]),
                                  "std": float(row["std"]) if row["std"] else None}
    return targets


def target(targets: dict, row: Row, use: str) -> dict | None:
    """The published number for a row, only if its data are D4RL's own of that very version."""
    if row.group != "D4RL's own data":
        return None
    return targets.get((row.paper_name, row.dataset, row.paper_stage, use))


# ---- Statistics over tasks

def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: a quarter of the values is cut off at each end.

    As scipy's trim_mean, which rliable uses, floor(n / 4) values go from each end.
    """
    cut = scores.shape[-1] // 4
    return np.sort(scores, -1)[..., cut:scores.shape[-1] - cut].mean(-1)


def bootstrap(statistic: Callable, *scores: np.ndarray, reps: int = REPS) -> tuple[float, float]:
    """Percentile interval of a statistic under stratified resampling of runs.

    scores: one or more (runs, tasks). Every task's runs are drawn with replacement from that task
    alone, for each array by itself; statistic maps arrays (reps, runs, tasks) to (reps,).
    """
    rng, drawn = np.random.default_rng(0), []  # a fixed seed: the same table from the same results
    for array in scores:
        runs, tasks = array.shape
        drawn.append(array[rng.integers(runs, size=(reps, runs, tasks)), np.arange(tasks)])
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(statistic(*drawn), [tail, 100 - tail])
    return float(low), float(high)


def pooled_iqm(scores: np.ndarray) -> np.ndarray:
    """IQM of all runs of all tasks: (..., runs, tasks) -> (...)."""
    return iqm(scores.reshape(*scores.shape[:-2], -1))


def aggregates(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    """(suite, label, rows) to aggregate: the same tasks, updates and precision for all of a suite.

    Besides the rows of one label those with the settings of the script for each dataset are taken
    together, even where these have different words. Only what covers all tasks of its suite with
    equally many seeds is returned.
    """
    found = []
    for key in dict.fromkeys((suite(r.dataset), r.updates, r.precision) for r in rows if r.scored):
        members = [r for r in rows
                   if r.scored and (suite(r.dataset), r.updates, r.precision) == key]
        tasks = sorted({r.dataset for r in members})
        sets = {}
        for row in members:
            sets.setdefault(row.label, []).append(row)
            if not row.deviations:
                usual = row.label.partition(",")[0] + ", the authors' settings"
                sets.setdefault(usual, []).append(row)
        seen = []
        for label, part in sorted(sets.items()):
            complete = sorted(r.dataset for r in part) == tasks
            if (len(tasks) > 1 and complete and part not in seen
                    and len({len(r.seeds) for r in part}) == 1):
                found.append((key[0], label, part))
                seen.append(part)
    return found


# ---- Markdown

def spread(values: np.ndarray) -> str:
    """'49.7 ± 19.8'; one seed has no spread."""
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def published(number: dict | None) -> str:
    """'98.2 ± 1.6', with a star where PAPER_SCORES.md has a doubt."""
    if number is None:
        return "-"
    std = "" if number["std"] is None else f" ± {number['std']:.1f}"
    return f"{number['score']:.1f}{std}" + "\\*" * bool({*number["doubt"].split()} - MILD)


def short_commits(commits: list[str]) -> str:
    """First and last commit of a run, short; '-dirty' stays visible."""
    short = [re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", c) for c in commits]
    return short[0] if len(short) == 1 else f"{short[0]} to {short[-1]}"


def seed_names(seeds: list[int]) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def data_names(rows: list[Row]) -> dict[tuple[str, str], str]:
    """(dataset, fingerprint) -> its name in a table; of a dataset that was built several times with
    different content also the fingerprint's beginning."""
    built = {(row.dataset, row.fingerprint) for row in rows}
    several = Counter(dataset for dataset, _ in built)
    return {(name, print_): f"`{name}`" + f" {print_[:8]}" * (several[name] > 1)
            for name, print_ in built}


def level_of(row: Row) -> float | None:
    """The behaviour policy's score; None in mazes, where episodes end or are cut at the reward."""
    return None if "maze" in row.dataset else row.data_score


def score_table(rows: list[Row], targets: dict, beside: bool, names: dict) -> str:
    """One row per run; `beside`: with the columns of published numbers; `names`: data_names()."""
    header = ["algorithm", "data", "scored on", "seeds", "updates", "last checkpoint",
              "mean of last ten", *["paper", "best re-run"] * beside, "behaviour policy",
              "device, precision", "commit"]
    lines = []
    for row in rows:
        unit = "" if row.scored else " (return)"
        numbers = [published(target(targets, row, use)) for use in ("paper", "rerun")]
        lines.append([
            row.label, names[row.dataset, row.fingerprint], row.env_id, seed_names(row.seeds),
            f"{row.updates:,}",
            f"[**{spread(row.final)}**](benchmarks/results/{row.file.name}){unit}",
            spread(row.last_ten), *numbers * beside,
            "-" if (level := level_of(row)) is None else f"{level:.1f}",
            f"{row.device}, {row.precision}", short_commits(row.commits)])
    return markdown(header, lines)


def ant_table(rows: list[Row], targets: dict, names: dict) -> str:
    """The longest trainings on each rebuilt AntMaze set beside what is published for D4RL's file of
    that name, which are other data; empty if there are none."""
    theirs = {dataset for _, dataset, *_ in targets}
    own = {}
    for row in rows:
        named = f"{family(row.dataset)}-v2"  # v0's rewards and episodes are other ones
        if (row.group, row.stage) == ("Rebuilt data", "train") and (
                named.startswith("antmaze-") and named in theirs):
            own.setdefault(named, []).append(row)
    lines = []
    for named, members in own.items():
        for row in [r for r in members if r.updates == max(o.updates for o in members)]:
            numbers = [published(targets.get((row.paper_name, named, row.paper_stage, use)))
                       for use in ("paper", "rerun")]
            lines.append([row.label, names[row.dataset, row.fingerprint], f"{row.updates:,}",
                          row.precision, spread(row.final), f"`{named}`", *numbers])
    header = ["algorithm", "our data", "updates", "precision", "ours", "theirs", "paper",
              "best re-run"]
    return markdown(header, lines) if lines else ""


def aggregate_table(rows: list[Row]) -> str:
    """Interquartile means over tasks; empty if no algorithm has a whole suite of two or more."""
    lines = []
    for name, label, part in aggregates(rows):
        cells = []
        for scores in (np.stack([getattr(r, k) for r in part], 1) for k in ("final", "last_ten")):
            low, high = bootstrap(pooled_iqm, scores)
            cells.append(f"{pooled_iqm(scores):.1f} ({low:.1f} to {high:.1f})")
        means = np.mean([r.final.mean() for r in part])
        lines.append([name, label, str(len(part)), str(len(part[0].seeds)),
                      f"{part[0].updates:,}", part[0].precision, *cells, f"{means:.1f}"])
    header = ["suite", "algorithm", "tasks", "seeds each", "updates", "precision",
              "IQM of last checkpoints", "IQM of means of last ten", "mean"]
    return markdown(header, lines) if lines else ""


def sections(rows: list[Row]) -> list[list[Row]]:
    """Rows of one group, stage and length each, in the order of GROUPS."""
    keys = [(group, stage, updates) for group in GROUPS for stage in ("train", "online")
            for updates in sorted({r.updates for r in rows})]
    parts = [[r for r in rows if (r.group, r.stage, r.updates) == key] for key in keys]
    return [part for part in parts if part]


def title_of(part: list[Row]) -> str:
    """Group and length of a section, which a reader of its pictures must know too."""
    steps = "steps of online fine-tuning" if part[0].stage == "online" else "updates"
    return f"{part[0].group}, {part[0].updates:,} {steps}"


def slug(part: list[Row]) -> str:
    """'d4rl-1M', 'rebuilt-online-250k': the beginning of the names of a section's pictures."""
    online = "-online" * (part[0].stage == "online")
    group = part[0].group.split("'")[0].split()[0].lower()
    return f"{group}{online}-{plot.thousands(part[0].updates)}"


def block(rows: list[Row], notes: list[str], targets: dict) -> str:
    """All that stands between README's markers."""
    parts = ["<!-- Written by benchmarks/tables.py from benchmarks/results/. Edit neither by hand: "
             "the tests compare them. -->"]
    names = data_names(rows)
    for part in sections(rows):
        title, group = title_of(part), part[0].group
        episodes = sorted({r.episodes for r in part})
        parts += [f"### {title}", GROUPS[group] + " Last checkpoint: "
                  f"{' or '.join(map(str, episodes))} episodes per seed; ±: over seeds; the link "
                  "leads to the run's file."]
        parts.append(score_table(part, targets, group == "D4RL's own data", names))
        if table := aggregate_table(part):
            parts += ["Over tasks: interquartile mean (IQM) of all runs and its 95% interval, "
                      "bootstrapped over the runs of each task.", table]
        parts += [f"![{title}: {what}](benchmarks/results/{slug(part)}-{name}.png)"
                  for name, what in (("bars", "scores"), ("curves", "learning curves"))]
    if ants := ant_table(rows, targets, names):
        parts += ["### AntMaze, rebuilt with D4RL's policy, beside the papers", "Two kinds of "
                  "data: ours were rebuilt by D4RL's recipe with D4RL's own behaviour policy, "
                  "*paper* and *best re-run* are for D4RL's v2 files and a run of 1,000,000 "
                  "updates. What is published says where one may hope to come to; no row here "
                  "reproduces it.", ants]
    if not rows:
        parts.append("No results yet.")
    return "\n\n".join(parts + ["".join(f"{note} " for note in notes).strip()] * bool(notes))


def replaced(text: str, new: str, path: Path) -> str:
    """README's text with `new` between the markers. Raises SystemExit if they are not there."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{path} needs the lines {BEGIN} and {END} once each, in this order: the "
                         "tables go between them")
    return f"{text[:text.index(BEGIN)]}{BEGIN}\n{new}\n{text[text.index(END):]}"


# ---- Pictures

STYLE = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False,
         "axes.titlesize": 13, "axes.titlelocation": "left"}


def shown(row: Row, part: list[Row]) -> str:
    """The label; of rows that differ in the precision alone, all but those with the section's
    commonest one add theirs."""
    common = Counter(sorted(r.precision for r in part if r.label == row.label)).most_common(1)
    rivals = {r.precision for r in part if (r.label, r.dataset) == (row.label, row.dataset)}
    differs = len(rivals) > 1 and row.precision != common[0][0]
    return row.label + f", {row.precision}" * differs


def looks(part: list[Row]) -> dict[str, dict]:
    """Colour and hatch of each label, the same in both pictures of a section."""
    labels, count = sorted({shown(r, part) for r in part}), len(plot.COLORS)
    return {label: {"color": plot.COLORS[i % count], "hatch": ["", "//", ".."][i // count % 3]}
            for i, label in enumerate(labels)}


def axis_label(part: list[Row]) -> str:
    kinds = {r.scored for r in part}
    return {(True,): "D4RL-normalized score", (False,): "return"}.get(
        tuple(kinds), "normalized score\n(return where none is defined)")


def draw_bars(part: list[Row], targets: dict) -> plt.Figure:
    """Last checkpoint per dataset: bar and whisker: mean ± std over seeds, dots: the seeds."""
    datasets, style = [*dict.fromkeys(r.dataset for r in part)], looks(part)
    most = max(sum(r.dataset == d for r in part) for d in datasets)
    width = min(0.8 / most, 0.3)
    with plt.rc_context(STYLE):
        size = min(max(6.5, 0.55 * len(part) + 1.1 * len(datasets) + 2), 20), 5.2
        figure, axes = plt.subplots(figsize=size, dpi=160, layout="constrained")
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        entries = {}
        for position, dataset in enumerate(datasets):
            rows = [r for r in part if r.dataset == dataset]
            for i, row in enumerate(rows):
                x = position + (i - (len(rows) - 1) / 2) * width
                whisker = row.final.std() if len(row.final) > 1 else None
                look = style[shown(row, part)]
                entries[shown(row, part)] = axes.bar(
                    x, row.final.mean(), 0.9 * width, yerr=whisker, capsize=4, color=look["color"],
                    hatch=look["hatch"], edgecolor="white", error_kw={"elinewidth": 1.4})
                side = np.linspace(-0.22, 0.22, len(row.final)) if len(row.final) > 1 else [0]
                axes.plot(x + np.array(side) * width, row.final, "o", color="white", markersize=4.5,
                          markeredgecolor="0.15", zorder=4)
                if paper := target(targets, row, "paper"):
                    entries["the paper's score"] = axes.plot(
                        x, paper["score"], "_", color="black", markersize=60 * width,
                        markeredgewidth=2.4, zorder=5)[0]
            reach = (len(rows) / 2 + 0.25) * width
            for level in sorted({level_of(r) for r in rows} - {None}):
                entries["behaviour policy"] = axes.plot(
                    [position - reach, position + reach], [level, level], color="0.35",
                    linestyle=(0, (4, 2)), linewidth=1.8, zorder=3)[0]
        axes.axhline(0, color="0.2", linewidth=1)
        axes.set_xticks(range(len(datasets)), [d.replace("/", "/\n") for d in datasets])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, len(datasets) - 0.4)
        axes.set_ylabel(axis_label(part))
        figure.suptitle(title_of(part), x=0.01, ha="left", weight="bold", fontsize=14)
        axes.set_title("last checkpoint; bar: mean ± standard deviation over seeds; dots: seeds",
                       color="0.35", fontsize=10)
        names = sorted(entries, key=lambda n: (n == "behaviour policy", n.startswith("the "), n))
        figure.legend([entries[n] for n in names], names, loc="outside lower left", frameon=False,
                      ncols=min(3, len(names)), fontsize=11)
    return figure


def draw_curves(part: list[Row]) -> plt.Figure:
    """A panel per dataset: mean over seeds, band from lowest to highest, the data's own level."""
    datasets, style = [*dict.fromkeys(r.dataset for r in part)], looks(part)
    columns = min(3, len(datasets))
    lines = math.ceil(len(datasets) / columns)
    with plt.rc_context(STYLE):
        size = max(7.5, 4.4 * columns), 3.6 * lines + 1.2
        figure, axes = plt.subplots(lines, columns, figsize=size, dpi=160, squeeze=False,
                                    layout="constrained")
        entries = {}
        for number, panel in enumerate(axes.flat):
            if number >= len(datasets):
                panel.set_axis_off()
                continue
            rows = [r for r in part if r.dataset == datasets[number]]
            panel.grid(axis="y", color="0.9")
            for row in rows:
                look = style[shown(row, part)]
                entries[shown(row, part)] = panel.plot(
                    row.at, row.curve.mean(1), color=look["color"], linewidth=2.2,
                    linestyle="-" if not look["hatch"] else "-.")[0]
                panel.fill_between(row.at, row.curve.min(1), row.curve.max(1), alpha=0.15,
                                   color=look["color"], linewidth=0)
            for level in sorted({level_of(r) for r in rows} - {None}):
                entries["behaviour policy"] = panel.axhline(
                    level, color="0.35", linestyle=(0, (4, 2)), linewidth=1.6)
            panel.set_title(datasets[number])
            panel.set_xlim(left=0)
            panel.set_ylim(bottom=min(0, panel.get_ylim()[0]) if rows[0].scored else None)
            panel.xaxis.set_major_formatter(plot.thousands)
            panel.set_xlabel("online steps" if rows[0].stage == "online" else "gradient updates")
            if number % columns == 0:
                panel.set_ylabel(axis_label(rows))
        figure.suptitle(title_of(part), x=0.01, ha="left", weight="bold", fontsize=14)
        names = sorted(entries, key=lambda n: (n == "behaviour policy", n))
        figure.legend([entries[n] for n in names], names, loc="outside lower left", frameon=False,
                      ncols=min(3, len(names)), fontsize=11, title_fontsize=10, alignment="left",
                      title="line: mean over seeds; band: lowest to highest seed; "
                            "the last point has more episodes")
    return figure


def digest(part: list[Row], targets: dict) -> str:
    """SHA-256 of all that a section's pictures show."""
    seen = [(shown(r, part), r.dataset, title_of(part), r.scored, level_of(r), r.at.tolist(),
             r.curve.tolist(), (target(targets, r, "paper") or {}).get("score")) for r in part]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def pictures(rows: list[Row], targets: dict, folder: Path) -> dict[Path, tuple[Callable, str]]:
    """Path -> (how to draw it, digest of what it shows)."""
    found = {}
    for part in sections(rows):
        key = digest(part, targets)
        found[folder / f"{slug(part)}-bars.png"] = functools.partial(draw_bars, part, targets), key
        found[folder / f"{slug(part)}-curves.png"] = functools.partial(draw_curves, part), key
    return found


def is_drawn_from(path: Path, key: str) -> bool:
    """Does the PNG carry that digest? PNG keeps such a text as plain bytes."""
    return path.exists() and key.encode() in path.read_bytes()


# ---- The command

def differences(args: Args) -> list[str]:
    """What README and pictures have otherwise than the results give; empty if nothing."""
    rows, notes = read_results(args.results)
    targets, text = read_paper_scores(), args.readme.read_text(encoding="utf-8")
    wanted = replaced(text, block(rows, notes, targets), args.readme)
    changes = difflib.unified_diff(text.splitlines(), wanted.splitlines(), "README", "results",
                                   lineterm="", n=0)
    bad = [line for line in changes if line[:3] not in ("---", "+++") and line[:2] != "@@"]
    return bad + [f"{path.name} is missing or shows other results"
                  for path, (_, key) in pictures(rows, targets, args.results).items()
                  if not is_drawn_from(path, key)]


def write(args: Args) -> None:
    """README's tables, then the pictures that are not up to date."""
    rows, notes = read_results(args.results)
    targets, text = read_paper_scores(), args.readme.read_text(encoding="utf-8")
    new = replaced(text, block(rows, notes, targets), args.readme)
    if new != text:
        args.readme.write_text(new, encoding="utf-8")
        print(f"wrote the tables of {len(rows)} rows into {args.readme.name}")
    for path, (draw, key) in pictures(rows, targets, args.results).items():
        if not is_drawn_from(path, key):
            figure = draw()
            part = path.with_suffix(".tmp")
            figure.savefig(part, format="png", metadata={"Source": key})
            plt.close(figure)
            part.replace(path)
            print(f"drew {path.name}")


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=words, description=__doc__)
    if not args.results.is_dir():
        raise SystemExit(f"--results {args.results}: no such folder")
    try:
        if not args.check:
            write(args)
        elif bad := differences(args):
            shown = "\n".join(f"  {line[:160]}" for line in bad[:20])
            raise SystemExit(f"{args.readme.name} or its pictures are not what the results give "
                             f"(-: there, +: from the results):\n{shown}\n"
                             "if the results are right: python benchmarks/tables.py")
        else:
            print(f"{args.readme.name} and pictures agree with the results")
    except OSError as error:
        raise SystemExit(f"cannot read or write: {error}")


if __name__ == "__main__":
    main()
