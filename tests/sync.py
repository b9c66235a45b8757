"""Carry the text that scripts share from one script to the others, or count where they differ.

Scripts import nothing of each other; what they share, they share as equal text, and
tests/test_style.py sees to it. So a change is made in one script and copied: every function, class
and constant that both scripts define gets the text of the first, with the comments above it. Names
that differ by design stand in ALLOWED_TO_DIFFER and are left alone. Nothing is added to a script or
removed from it; what the model's shared part has and a script lacks is reported.

    python -m tests.sync                              # carries por.py's text to the other scripts
    python -m tests.sync --model algorithms/iql.py    # carries iql.py's text
    python -m tests.sync --dry-run                    # only says what would change
    python -m tests.sync --diffstat                   # lines by which scripts differ
"""

import ast
import difflib
import functools
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
MARKER = "# From here on, the code is the same in every script\n"

# Name -> the scripts that have a version of their own, each with its reason; "*" stands for all.
# Another script may use a version of theirs, so that a copy of such a script is in order.
ALLOWED_TO_DIFFER = {
    "Args": {"*": "each algorithm has fields of its own; the common ones are compared"},
    "SETTINGS": {"*": "the published settings of the algorithm"},
    "Algorithm": {"*": "the class that main() trains"},
    "prepare_data": {"*": "what the algorithm does to the data before it trains"},
    "ANTMAZE": {"*": "a part of SETTINGS"},
    "MUJOCO": {"*": "a part of SETTINGS"},
    "train": dict.fromkeys(("iql", "spot", "sac"), "its last phase acts in environments")
    | {"ppo": "knows no other phase than the online one"},
    "train_online": {
        "sac": "begins without a dataset, and takes snapshots of the policy",
        "awr": "trains on the newest steps between two samplings",
        "ppo": "goes through rollouts instead of a dataset",
        "dagger": "asks an expert between two trainings",
        "trpo": "moves pi once per rollout, by no update function",
    },
    "start_run": {
        "sac": "begins without a dataset",
        "ppo": "never has a dataset",
        "dagger": "begins with the expert's steps",
    },
    "ReplayBuffer": {
        "dt": "draws contexts, which are steps in a row",
        "rvs": "draws goals among the later rows of an episode",
        "bail": "draws the rows that each agent has selected",
    },
    "evaluate": {"dt": "asks the policy for a return"},
    "evaluate_and_save": {"dt": "evaluates each return that may be asked for"},
    "Phase": {"mopo": "the model's phase ends when the model no longer improves"},
    "train_phase": {"mopo": "the model's phase ends when the model no longer improves"},
    "describe_actions": {
        "discrete_bcq": "takes discrete actions, and no others",
        "ppo": "takes both kinds",
    },
    "random_dataset": {"discrete_bcq": "draws discrete actions"},
    "interact": {"discrete_bcq": "discrete actions are not clipped, and have one number"},
}


@dataclass
class Args:
    model: Path = ROOT / "algorithms" / "por.py"  # the script whose text the others get
    dry_run: bool = False  # say what would change, change nothing
    diffstat: bool = False  # print how many lines only one of two scripts has


@dataclass
class Part:
    """A definition at the top level of a script: lines first to last, counted from 0."""

    first: int
    last: int
    text: str
    shared: bool  # does it stand below MARKER?


def name_of(node: ast.stmt) -> str | None:
    """Return what a statement defines: a function, a class, a constant or a registration."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func)
    return None


@functools.cache
def parts(text: str) -> dict[str, Part]:
    """Find the definitions of a script. Neighbours of the same name are one part."""
    lines = text.splitlines()
    start = len(text.partition(MARKER)[0].splitlines())
    found = {}
    previous = None
    for node in ast.parse(text).body:
        name = name_of(node)
        if name is not None:
            first = min([node.lineno, *(line.lineno for line in decorators(node))]) - 1
            while first > 0 and is_comment(lines[first - 1]):
                first -= 1
            if name in found and name != previous:
                raise SystemExit(f"{name} is defined twice")
            if name in found:
                first = found[name].first
            part_text = "\n".join(lines[first : node.end_lineno])
            found[name] = Part(first, node.end_lineno - 1, part_text, first >= start)
        previous = name
    return found


def decorators(node: ast.stmt) -> list:
    """Return the decorators of a function or class."""
    return node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def is_comment(line: str) -> bool:
    """Is this a comment, but no heading?"""
    return line.startswith("#") and not line.startswith("# ---")


def may_differ(name: str, script: str) -> bool:
    """Does a script have a version of its own of this name?"""
    scripts = ALLOWED_TO_DIFFER.get(name, {})
    return "*" in scripts or script in scripts


def synced(script: str, texts: dict[str, str], model: str) -> tuple[str, list[str]]:
    """Return a script's text with the model's version of what they share, and the changed names.

    `texts` holds the texts of all scripts by their names.
    """
    lines = texts[script].splitlines()
    mine = parts(texts[script])
    theirs = parts(texts[model])
    changed = []
    for name in mine.keys() & theirs.keys():
        if may_differ(name, script) or may_differ(name, model):
            continue
        owners = [other for other in texts if may_differ(name, other)]
        versions = [parts(texts[owner])[name].text for owner in owners]
        if mine[name].text not in (theirs[name].text, *versions):
            changed.append(name)
    for name in sorted(changed, key=lambda name: mine[name].first, reverse=True):
        lines[mine[name].first : mine[name].last + 1] = theirs[name].text.splitlines()
    return "\n".join(lines) + "\n", sorted(changed)


def lacking(text: str, model: str) -> list[str]:
    """Return the names of the model's shared part that a script does not define."""
    mine = parts(text)
    return [name for name, part in parts(model).items() if part.shared and name not in mine]


def differing_lines(one: str, other: str) -> int:
    """Count the lines that only one of two texts has."""
    lines = difflib.ndiff(one.splitlines(), other.splitlines())
    return len([line for line in lines if line[0] in "+-"])


def read_scripts(folder: Path = ROOT / "algorithms") -> dict[str, str]:
    """Return the texts of all scripts that have MARKER by their names, without the ending."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    return {script: text for script, text in texts.items() if MARKER in text}


def print_differences(texts: dict[str, str]) -> None:
    """Print a table: for every two scripts, the lines of each half that only one of them has."""
    print(f"{'':20}{'algorithm':>10}{'shared':>10}")
    for one, other in combinations(texts, 2):
        counts = []
        for half in (0, 2):
            pair = [texts[script].partition(MARKER)[half] for script in (one, other)]
            counts.append(differing_lines(*pair))
        print(f"{one + ' ' + other:20}{counts[0]:10}{counts[1]:10}")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    texts = read_scripts()
    if args.diffstat:
        print_differences(texts)
        return
    model = args.model.stem
    if model not in texts:
        sys.exit(f"--model {args.model}: no script of algorithms/ with the line {MARKER!r}")
    for script in texts:
        if script == model:
            continue
        text, names = synced(script, texts, model)
        print(f"{script}.py: {', '.join(names) or 'nothing to change'}")
        if missing := lacking(text, texts[model]):
            print(f"    lacks {', '.join(missing)}")
        if names and not args.dry_run:
            (ROOT / "algorithms" / f"{script}.py").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
