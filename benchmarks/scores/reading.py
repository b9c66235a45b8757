"""Read result.json files: today's, those of the first casting, those of other people's code.

Other people's code on our data is a *control* (benchmarks/scores/controls): a result with the key
"control", which stands beside a script of ours, but is none of its runs.
"""

import csv
import functools
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.common import algorithm_name, load_script, short_number
from benchmarks.scores.online import environment_steps, evaluated_at, is_from_scratch

LAST = 10  # evaluations in a "mean of the last ten"
PUBLISHED_UPDATES = 1_000_000  # length of the published runs of POR, IQL, TD3+BC, SPOT and CORL
# Arguments that do not change what is learned, or that have a column of their own.
CIRCUMSTANCES = {
    "env",
    "dataset_file",
    "seed",
    "num_seeds",
    "num_updates",
    "online_steps",
    "run_dir",
    "resume",
    "eval_every",
    "eval_episodes",
    "final_eval_episodes",
    "device",
    "execution",
}
# Settings in whose place a script puts numbers of the data, if they have these values.
FROM_DATA = {"targets": [], "return_scale": 0.0}
GROUPS = {  # Task.source: origin of the data
    "D4RL file": "D4RL's own data",
    "rebuilt": "Rebuilt data",
    "Minari": "Minari's data",
}
CURVES = Path(__file__).with_name("published_curves.csv")
PUBLISHED_AS = {  # script: names of its algorithm in published_curves.csv
    "awac": ("AWAC", "AWAC_pretraining"),
    "bcq": ("BCQ",),
    "bear": ("BEAR",),
    "cql": ("CQL",),
    "dt": ("DT",),
    "iql": ("IQL", "IQL_pretraining"),
    "plas": ("PLAS",),
    "rebrac": ("ReBRAC",),
    "sac": ("SAC",),
    "spot": ("SPOT",),
    "td3": ("TD3",),
    "td3_bc": ("TD3PlusBC",),
}
PAPER_NAMES = {"onestep": "one_step"}  # script: its name in paper_scores.csv, if another


# --------------------------------------------------------------------------------------------------
# One file
# --------------------------------------------------------------------------------------------------


def check_keys(part: dict, keys: tuple) -> None:
    """Raise KeyError if one of the keys is missing."""
    for key in keys:
        if key not in part:
            raise KeyError(key)


def read_result(path: Path) -> dict:
    """Return a result in today's layout. Raise ValueError with one line if it is none.

    `first_casting` says whether the first form of the scripts has written it.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        result["first_casting"] = "parts" in result
        if result["first_casting"]:
            parts = result["parts"]
            result["commits"] = [part["commit"] for part in parts]
            result["device"] = "; ".join(dict.fromkeys(part["device"] for part in parts))
            result["versions"] = parts[-1].get("versions", {})
        if result["final"] is not None:
            result["final"].setdefault("phase", "train")
        for evaluation in result["evaluations"]:
            evaluation.setdefault("phase", "train")
            for numbers in (evaluation, *evaluation.get("targets", [])):
                scores = np.array(numbers["scores"], float)
                returns = np.array(numbers["returns"], float)
                if scores.shape != (result["args"]["num_seeds"],) or returns.shape != scores.shape:
                    raise ValueError(f"{scores.size} scores at update {evaluation['update']}")
            targets_of(evaluation)
        needed = ("script", "step", "finished", "final", "commits", "device", "versions")
        needed_of_task = (
            "name",
            "source",
            "env_id",
            "ref_min",
            "ref_max",
            "data_return",
            "transitions",
        )
        needed_of_args = ("env", "seed", "num_updates", "eval_every", "final_eval_episodes")
        check_keys(result, needed)
        check_keys(result["task"], (*needed_of_task, "fingerprint"))
        check_keys(result["args"], needed_of_args)
        if "control" in result:
            check_keys(result["control"], ("repository", "commit", "file", "command", "note"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is no result: {type(error).__name__}: {error}") from error
    return result


def phases(result: dict) -> dict[str, list[dict]]:
    """Return the evaluations of every phase that has some."""
    parts = {}
    for evaluation in result["evaluations"]:
        parts.setdefault(evaluation["phase"], []).append(evaluation)
    return parts


def targets_of(evaluation: dict) -> list[float]:
    """Return the returns that the policy was asked for; none if its algorithm asks for none."""
    return [numbers["target"] for numbers in evaluation.get("targets", [])]


def normalized(task: dict, returns) -> np.ndarray:
    """Return D4RL's scores, or the returns where there are no reference returns."""
    returns = np.asarray(returns, float)
    if task["ref_min"] is None:
        return returns
    return 100 * (returns - task["ref_min"]) / (task["ref_max"] - task["ref_min"])


def complaints(result: dict) -> list[str]:
    """Return what contradicts itself in a result that should be finished."""
    args, evaluations = result["args"], result["evaluations"]
    if not result["finished"]:
        return [f"it is not finished, but stands at update {result['step']:,}"]
    found = []
    if result["final"] != evaluations[-1]:
        found.append("its final evaluation is not the last one")
    for evaluation in evaluations:
        found += complaints_about_scores(result, evaluation)
    for phase, part in phases(result).items():
        updates = [evaluation["update"] for evaluation in part]
        wanted = evaluated_at(result, phase)
        if updates not in (wanted, [0, *wanted]):  # the first casting evaluated at update 0, too
            found.append(f"phase {phase} is not evaluated at every {args['eval_every']:,} updates")
        if part[-1]["episodes"] != args["final_eval_episodes"]:
            found.append(
                f"the last evaluation of phase {phase} has {part[-1]['episodes']} episodes"
            )
    return found


def complaints_about_scores(result: dict, evaluation: dict) -> list[str]:
    """Return what contradicts itself in one evaluation."""
    where = f"at update {evaluation['update']}"
    targets = evaluation.get("targets", [])
    found = []
    for numbers in (evaluation, *targets):
        wanted = normalized(result["task"], numbers["returns"])
        if not np.allclose(numbers["scores"], wanted, rtol=1e-6, atol=1e-6):
            found.append(f"the scores {where} do not follow from the returns")
    if targets_of(evaluation) != result["args"].get("targets", []):
        found.append(f"other returns than --targets were asked for {where}")
    elif targets and targets[0]["scores"] != evaluation["scores"]:
        found.append(f"the scores {where} are not those of the first target")
    return found


# --------------------------------------------------------------------------------------------------
# What was set by hand
# --------------------------------------------------------------------------------------------------


def choices_of(module: ModuleType) -> dict[str, bool]:
    """Return the choices among a script's settings, such as POR's guide.

    The value says whether the published choice depends on the dataset.
    """
    published = {}  # choice -> pattern -> its value in the pattern's first row
    for pattern, settings in module.SETTINGS:
        for name, value in settings.items():
            if isinstance(value, str):
                published.setdefault(name, {}).setdefault(pattern, value)
    return {name: len(set(values.values())) > 1 for name, values in published.items()}


def changed_options(module: ModuleType, args: dict) -> tuple[list[str], dict]:
    """Return the choices that a name must tell, and all arguments that were set by hand.

    They are compared with the script's settings for that dataset and these choices.
    """
    defaults = module.Args(env=args["env"])
    published = module.apply_settings(defaults)
    choices = {name: args[name] for name in choices_of(module) if name in args}
    usual = asdict(module.apply_settings(replace(defaults, **choices)))
    changed = {
        key: value
        for key, value in args.items()
        if key in usual
        and key not in CIRCUMSTANCES
        and value != usual[key]
        and not (key in FROM_DATA and usual[key] == FROM_DATA[key])
    }
    told = []
    for name, varies in choices_of(module).items():
        if name in choices and (varies or choices[name] != getattr(published, name)):
            told.append(choices[name])
    return told, changed


def foreign_choices(module: ModuleType, args: dict) -> dict:
    """Return the choices that are not the published ones for the dataset."""
    published = module.apply_settings(module.Args(env=args["env"]))
    return {
        name: args[name]
        for name in choices_of(module)
        if name in args and args[name] != getattr(published, name)
    }


def schedule_of(module: ModuleType, result: dict) -> int | None:
    """Return the length of the schedule of learning rates; None if there is none.

    A script that has one ends it with the run, unless it is told otherwise.
    """
    args = result["args"]
    names = {one.name for one in fields(module.Args)}
    if "decay_updates" not in names or ("control" in result and "decay_updates" not in args):
        return None
    if args.get("decay_updates") is None:  # the first casting did not have this option
        return args["num_updates"]
    return args["decay_updates"]


# --------------------------------------------------------------------------------------------------
# Published curves: what others reached after how many updates
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A score that is published for a number of updates (a line of published_curves.csv)."""

    source: str  # whose, which file, which commit
    algorithm: str
    dataset: str  # D4RL's name with its version
    phase: str  # offline, or online after that
    update: int
    mean: float
    std: float  # over seeds
    seeds: int
    how: str  # which evaluations it is the mean of

    @property
    def place(self) -> str:
        """Return 'CORL antmaze-umaze-v2'."""
        return f"{self.source.split()[0].removesuffix('-benchmarks')} {self.dataset}"

    def __str__(self) -> str:
        return f"{self.place}: {self.mean:.1f} ± {self.std:.1f} ({self.seeds} seeds)"


@functools.cache
def read_curves(path: Path = CURVES) -> tuple[Point, ...]:
    """Return all published points."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    types = {"update": int, "mean": float, "std": float, "seeds": int}
    return tuple(
        Point(**{key: types.get(key, str)(value) for key, value in line.items()}) for line in lines
    )


@functools.cache
def namesake(dataset: str) -> str:
    """Return D4RL's name without a version: 'rebuilt/hopper/medium-100k-v0' -> 'hopper-medium'.

    The size of a set, and the snapshot that acted, are no part of it.
    """
    name = dataset.removeprefix("rebuilt/").replace("/", "-")
    return re.sub(r"(-snapshot\d+)?(-\d+k)?-v\d+$", "", name)


# --------------------------------------------------------------------------------------------------
# Rows: one phase of one result
# --------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """The offline or the online part of a result."""

    file: Path
    script: str
    label: str  # algorithm, choices and what was set by hand
    deviations: dict  # what is not the published setting for that dataset
    first_casting: bool
    group: str  # origin of the data
    phase: str  # "online" or another
    task: dict
    args: dict
    at: np.ndarray  # (evaluations,) updates, or environment steps of an online part
    curve: np.ndarray  # (evaluations, seeds)
    episodes: int  # per seed, of the last evaluation
    finished: bool
    commits: list[str]
    device: str
    versions: dict
    variant: str = ""  # algorithm and choices, without numbers that were set by hand
    schedule: int | None = None  # length of the schedule of learning rates, if there is one
    control: dict = field(default_factory=dict)  # whose code it is, if it is not ours
    target: float | None = None  # return that the policy was asked for, if it is asked for one
    target_number: int = 0  # its place among those of the run
    plain_label: str = ""  # the label without the target
    runs: list["Row"] = field(default_factory=list)  # those whose seeds were joined; none: itself

    @property
    def dataset(self) -> str:
        return self.task["name"]

    @property
    def fingerprint(self) -> str:
        return self.task["fingerprint"]

    @property
    def scored(self) -> bool:
        """Are there normalized scores? Otherwise `curve` holds returns."""
        return self.task["ref_min"] is not None

    @property
    def level(self) -> float | None:
        """Return what the data score.

        None in mazes, whose episodes go on after the goal, and where agents make their own data.
        """
        if "maze" in self.dataset or is_from_scratch(self.task):
            return None
        if self.task["data_return"] is None:  # rows that are not in the order of time
            return None
        return float(normalized(self.task, self.task["data_return"]))

    @property
    def seeds(self) -> int:
        return self.curve.shape[1]

    @property
    def updates(self) -> int:
        return int(self.at[-1])

    @property
    def final(self) -> np.ndarray:
        return self.curve[-1]

    @property
    def last_ten(self) -> np.ndarray:
        return self.curve[self.at > 0][-LAST:].mean(0)

    @property
    def paper_name(self) -> str:
        """Return the algorithm's name in paper_scores.csv.

        Later targets have none, because the best of several would be chosen by its score.
        """
        if self.target_number > 0:
            return ""
        fraction = self.args.get("top_fraction", 1)
        if self.script == "bc" and fraction != 1:
            return f"bc_{100 * fraction:g}"
        return PAPER_NAMES.get(self.script, self.script)

    @property
    def paper_stage(self) -> str:
        """Return what a paper calls this part: offline, before or after fine-tuning, online."""
        if self.args.get("online_steps"):
            return "after" if self.phase == "online" else "before"
        return "online" if self.phase == "online" else "offline"

    @property
    def length(self) -> str:
        """Return updates and length of the schedule: '100k / 1M', or '100k / -' without one."""
        if self.phase == "online":
            return short_number(self.updates)
        schedule = "-" if self.schedule is None else short_number(self.schedule)
        return f"{short_number(self.updates)} / {schedule}"

    @property
    def published_curve(self) -> list[Point]:
        """Return what others published on the way of offline training.

        On D4RL's own data that is for the same version of the file, on rebuilt data for all
        versions of their namesake. Other data have no namesake. Only the first of several targets
        has a published curve.
        """
        if self.target_number > 0:
            return []
        if self.paper_stage not in ("offline", "before") or not self.scored or self.control:
            return []
        if self.group not in ("D4RL's own data", "Rebuilt data"):
            return []
        points = []
        for point in read_curves():
            same = point.dataset == self.dataset
            if self.group == "Rebuilt data":
                same = namesake(point.dataset) == namesake(self.dataset)
            names = PUBLISHED_AS.get(self.script, ())
            if same and point.phase == "offline" and point.algorithm in names:
                points.append(point)
        return points

    @property
    def published(self) -> list[Point]:
        """Return what others published for exactly as many updates; nothing is interpolated."""
        return [point for point in self.published_curve if point.update == self.updates]

    def stands_beside(self, other: "Row") -> bool:
        """Is this a control of that row of ours? Their data may be of different builds."""
        alike = ("variant", "dataset", "phase", "updates")
        same = all(getattr(self, key) == getattr(other, key) for key in alike)
        length = self.schedule in (None, other.schedule)
        ours = not other.control and other.target_number == 0
        return bool(self.control) and ours and same and length

    @property
    def precision(self) -> str:
        """Return the first casting's --precision; today's scripts have none."""
        return self.args.get("precision", "")


def make_rows(path: Path, result: dict, label: str = "", deviations: dict | None = None) -> list:
    """Return a row for every phase that was evaluated."""
    task = result["task"]
    group = GROUPS.get(task["source"], "Other data")
    if task["name"].startswith("local/"):
        group = "Other data"
    elif is_from_scratch(task):
        group = "No data: trained online from scratch"
    rows = []
    for phase, part in phases(result).items():
        row = Row(
            file=path,
            script=result["script"],
            label=label or algorithm_name(result["script"]),
            deviations=dict(deviations or {}),
            first_casting=result["first_casting"],
            group=group,
            phase=phase,
            task=task,
            args=result["args"],
            at=np.array(
                [environment_steps(result, phase, evaluation["update"]) for evaluation in part],
                float,
            ),
            curve=np.array([evaluation["scores"] for evaluation in part], float),
            episodes=part[-1]["episodes"],
            finished=result["finished"],
            commits=list(dict.fromkeys(result["commits"])),
            device=result["device"],
            versions=result["versions"],
            control=result.get("control", {}),
        )
        rows.append(row)
    return rows


def labelled_rows(path: Path, result: dict) -> list[Row]:
    """Return the rows of a result, whose labels name what differs from the script's settings."""
    module = load_script(result["script"])
    told, changed = changed_options(module, result["args"])
    name = algorithm_name(result["script"])
    others = dict(changed)
    targets = others.pop("targets", None)  # each row tells its own
    if result["script"] == "bc" and "top_fraction" in others:
        name = f"{100 * others.pop('top_fraction'):g}% BC"
    words = list(told)
    for key, value in others.items():
        if key == "decay_updates":
            words.append(f"schedule of {short_number(value)}")
        else:
            words.append(f"{key.replace('_', ' ')} {value}")
    label = f"{name} ({', '.join(words)})" if words else name
    if "control" in result:
        label = control_label(result["control"], told)
    deviations = others | foreign_choices(module, result["args"])
    if targets is not None:
        deviations["targets"] = targets
    rows = make_rows(path, result, label, deviations)
    for row in rows:
        row.variant = f"{name} ({', '.join(told)})" if told else name
        row.schedule = schedule_of(module, result)
        if row.paper_stage == "before":
            row.label += ", before online steps"
        if row.paper_stage == "after" and result["args"]["num_updates"] < PUBLISHED_UPDATES:
            row.deviations["offline updates"] = result["args"]["num_updates"]
        row.plain_label = row.label
    return [part for row in rows for part in rows_of_targets(row, result)]


def rows_of_targets(row: Row, result: dict) -> list[Row]:
    """Return a row for every return that the policy was asked for, or the row itself.

    A single target is told only if it was set by hand.
    """
    evaluations = phases(result)[row.phase]
    rows = []
    for i, target in enumerate(targets_of(evaluations[-1])):
        curve = [evaluation["targets"][i]["scores"] for evaluation in evaluations]
        part = replace(row, target=target, target_number=i, curve=np.array(curve, float))
        rows.append(part)
    by_hand = "targets" in row.deviations
    if len(rows) > 1 or by_hand:
        for part in rows:
            part.label = with_word(row.label, f"target {part.target:g}")
            if by_hand:
                part.plain_label = rows[0].label
    return rows or [row]


def with_word(label: str, word: str) -> str:
    """Return 'DT (context 5, target 3600)' for 'DT (context 5)' and 'target 3600'."""
    if label.endswith(")"):
        return f"{label[:-1]}, {word})"
    return f"{label} ({word})"


def of_first_targets(rows: list[Row]) -> list[Row]:
    """Return the rows by which algorithms are compared: of several targets the first one.

    Labels tell it only if it was set by hand, so that an algorithm has one label on all datasets.
    """
    return [replace(row, label=row.plain_label) for row in rows if row.target_number == 0]


def control_label(control: dict, told: list[str]) -> str:
    """Return 'corl-team/CORL @ eeeeef2 iql.py (their code)', with choices such as POR's guide."""
    words = [Path(control["file"]).name, *told, *control.get("changes", [])]
    return f"{control['repository']} @ {control['commit'][:7]} {', '.join(words)} (their code)"


def in_order(rows: list[Row]) -> list[Row]:
    """Sort rows for a table. A control stands directly below the row of ours beside which it is."""

    def place(row: Row) -> tuple:
        label = row.plain_label
        if row.control:
            partners = [other for other in rows if row.stands_beside(other)]
            label = partners[0].plain_label if partners else row.variant
        is_control = bool(row.control)
        place_of_run = row.phase == "online", row.dataset, row.updates, label, is_control
        return *place_of_run, row.plain_label, row.target_number

    return sorted(rows, key=place)


def experiment(row: Row) -> tuple:
    """Return what two runs share that differ in their seeds only."""
    names = ("label", "dataset", "fingerprint", "group", "phase", "target", "target_number")
    lengths = (*row.at, row.episodes, row.schedule, row.first_casting)
    whose = row.control.get("repository"), row.control.get("commit"), row.control.get("file")
    return *(getattr(row, name) for name in names), lengths, whose


def join_seeds(rows: list[Row]) -> list[Row]:
    """Make one row of runs that differ in `--seed` only. The first of them gives its name."""
    together = {}
    for row in sorted(rows, key=lambda row: row.args["seed"]):
        together.setdefault(experiment(row), []).append(row)
    joined = []
    for runs in together.values():
        seeds = {row.args["seed"] for row in runs}
        if len(runs) == 1 or len(seeds) < len(runs):  # the same seed twice is no second opinion
            joined += runs
            continue
        row = replace(
            runs[0],
            curve=np.concatenate([row.curve for row in runs], axis=1),
            commits=list(dict.fromkeys(commit for row in runs for commit in row.commits)),
            device="; ".join(dict.fromkeys(row.device for row in runs)),
            runs=runs,
        )
        joined.append(row)
    return joined


def read_results(folder: Path) -> list[Row]:
    """Return the rows of all finished results below a folder. Raise ValueError for a bad one."""
    rows = []
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path)
        if found := complaints(result):
            raise ValueError(f"{path} cannot be trusted: {'; '.join(found)}")
        rows += labelled_rows(path, result)
    return in_order(join_seeds(rows))
