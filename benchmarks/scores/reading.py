"""Read result.json files: those of today's scripts, and those of the first casting."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.common import algorithm_name, load_script

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
GROUPS = {  # Task.source: origin of the data
    "D4RL file": "D4RL's own data",
    "rebuilt": "Rebuilt data",
    "Minari": "Minari's data",
}


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
            scores = np.array(evaluation["scores"], float)
            returns = np.array(evaluation["returns"], float)
            if scores.shape != (result["args"]["num_seeds"],) or returns.shape != scores.shape:
                raise ValueError(f"{scores.size} scores at update {evaluation['update']}")
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
        wanted = normalized(result["task"], evaluation["returns"])
        if not np.allclose(evaluation["scores"], wanted, rtol=1e-6, atol=1e-6):
            found.append(
                f"the scores at update {evaluation['update']} do not follow from the returns"
            )
    for phase, part in phases(result).items():
        total = args["num_updates"]
        if phase == "online" and args.get("online_steps"):
            total = args["online_steps"]
        updates = [evaluation["update"] for evaluation in part]
        wanted = [*range(args["eval_every"], total, args["eval_every"]), total]
        if updates not in (wanted, [0, *wanted]):  # the first casting evaluated at update 0, too
            found.append(f"phase {phase} is not evaluated at every {args['eval_every']:,} updates")
        if part[-1]["episodes"] != args["final_eval_episodes"]:
            found.append(
                f"the last evaluation of phase {phase} has {part[-1]['episodes']} episodes"
            )
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
        if key in usual and key not in CIRCUMSTANCES and value != usual[key]
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
    at: np.ndarray  # (evaluations,) updates
    curve: np.ndarray  # (evaluations, seeds)
    episodes: int  # per seed, of the last evaluation
    finished: bool
    commits: list[str]
    device: str
    versions: dict

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
        """Return what the data score; None in mazes, whose episodes go on after the goal."""
        if "maze" in self.dataset or not self.task["transitions"]:
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
        """Return the algorithm's name in paper_scores.csv."""
        fraction = self.args.get("top_fraction", 1)
        if self.script == "bc" and fraction != 1:
            return f"bc_{100 * fraction:g}"
        return self.script

    @property
    def paper_stage(self) -> str:
        """Return what a paper calls this part: offline, before or after fine-tuning, online."""
        if self.args.get("online_steps"):
            return "after" if self.phase == "online" else "before"
        return "online" if self.phase == "online" else "offline"

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
    elif task["transitions"] == 0:
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
            at=np.array([evaluation["update"] for evaluation in part], float),
            curve=np.array([evaluation["scores"] for evaluation in part], float),
            episodes=part[-1]["episodes"],
            finished=result["finished"],
            commits=list(dict.fromkeys(result["commits"])),
            device=result["device"],
            versions=result["versions"],
        )
        rows.append(row)
    return rows


def labelled_rows(path: Path, result: dict) -> list[Row]:
    """Return the rows of a result, whose labels name what differs from the script's settings."""
    module = load_script(result["script"])
    told, changed = changed_options(module, result["args"])
    name = algorithm_name(result["script"])
    others = dict(changed)
    if result["script"] == "bc" and "top_fraction" in others:
        name = f"{100 * others.pop('top_fraction'):g}% BC"
    words = [*told, *(f"{key.replace('_', ' ')} {value}" for key, value in others.items())]
    label = f"{name} ({', '.join(words)})" if words else name
    deviations = others | foreign_choices(module, result["args"])
    rows = make_rows(path, result, label, deviations)
    for row in rows:
        if row.paper_stage == "before":
            row.label += ", before online steps"
        if row.paper_stage == "after" and result["args"]["num_updates"] < PUBLISHED_UPDATES:
            row.deviations["offline updates"] = result["args"]["num_updates"]
    return rows


def place(row: Row) -> tuple:
    """Return by what rows are sorted."""
    return row.phase == "online", row.dataset, row.updates, row.label


def read_results(folder: Path) -> list[Row]:
    """Return the rows of all finished results below a folder. Raise ValueError for a bad one."""
    rows = []
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path)
        if found := complaints(result):
            raise ValueError(f"{path} cannot be trusted: {'; '.join(found)}")
        rows += labelled_rows(path, result)
    return sorted(rows, key=place)
