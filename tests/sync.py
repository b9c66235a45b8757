"""Carry the shared parts of one script to all others, or count by how much scripts differ.

Scripts import nothing of each other; what they share, they share as equal text (tests/test_style.py
enforces it). So a change is made in one script and copied: every function, class, constant and
block of imports of the plumbing that both scripts define gets the text of the first. Names that
differ by design (tests/test_style.py, ALLOWED_TO_DIFFER) are left alone, and so are the imports of
demonstrations, which have a plumbing of their own. Nothing is added or removed; a script in which
two such parts stand in another order keeps its order.

    python tests/sync.py --model algorithms/por.py            # changes the other scripts
    python tests/sync.py --model algorithms/por.py --dry-run  # only says what would change
    python tests/sync.py --diffstat                           # lines by which scripts differ
"""

import ast
import difflib
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import tyro
from test_style import ALLOWED_TO_DIFFER, DEMONSTRATIONS

ROOT = Path(__file__).resolve().parents[1]
MARKER = "# ---- The plumbing"


@dataclass
class Args:
    model: Path = ROOT / "algorithms" / "por.py"
    """the script whose text the others get"""
    dry_run: bool = False
    """say what would change, change nothing"""
    diffstat: bool = False
    """print for every two scripts how many lines only one of them has, by lecture and plumbing"""


def parts(text: str) -> dict[str, list[tuple[int, int]]]:
    """Top-level name -> its (first, last) lines, from 1; decorators and comments above included.

    The imports at the head of the plumbing are one part, named "imports". A name that is assigned
    twice has two ranges.
    """
    lines, found = text.splitlines(), {}
    start = next((i for i, line in enumerate(lines, 1) if line.startswith(MARKER)), len(lines))
    for node in ast.parse(text).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        while first > 1 and lines[first - 2].startswith("#") and MARKER not in lines[first - 2]:
            first -= 1
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and node.lineno > start and (
                "imports" not in found or node.lineno == found["imports"][0][1] + 1):
            found["imports"] = [(found.get("imports", [(first,)])[0][0], node.end_lineno)]
            continue
        else:
            continue
        found.setdefault(name, []).append((first, node.end_lineno))
    return found


def synced(text: str, model: str, differ: set[str]) -> tuple[str, list[str]]:
    """`text` with the parts that it shares with `model` in the model's words, and their names.

    Raises SystemExit if a name has another number of definitions in the two.
    """
    lines, other = text.splitlines(), model.splitlines()
    mine, theirs = parts(text), parts(model)
    changes, names = [], []
    for name in mine.keys() & theirs.keys() - differ:
        if len(mine[name]) != len(theirs[name]):
            raise SystemExit(f"{name} is defined {len(mine[name])} times, {len(theirs[name])} times "
                             "in the model: make them equal by hand")
        for (first, last), (start, end) in zip(mine[name], theirs[name]):
            if lines[first - 1:last] != other[start - 1:end]:
                changes.append((first, last, other[start - 1:end]))
                names.append(name)
    for first, last, new in sorted(changes, reverse=True):
        lines[first - 1:last] = new
    return "\n".join(lines) + "\n", sorted(set(names))


def own_parts(path: Path) -> set[str]:
    """Names whose text is the script's own."""
    return {*ALLOWED_TO_DIFFER, *["imports"] * (path.name in DEMONSTRATIONS)}


def differing_lines(one: str, other: str) -> int:
    """Lines that only one of two texts has."""
    return sum(line[0] in "+-" for line in difflib.ndiff(one.splitlines(), other.splitlines()))


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    scripts = sorted((ROOT / "algorithms").glob("*.py"))
    if args.diffstat:
        print(f"{'':24}{'lecture':>9}{'plumbing':>9}")
        for one, other in combinations(scripts, 2):
            halves = [path.read_text().partition(MARKER)[::2] for path in (one, other)]
            counts = [differing_lines(*pair) for pair in zip(*halves)]
            print(f"{one.stem + ' ' + other.stem:24}{counts[0]:9}{counts[1]:9}")
        return
    if not args.model.is_file():
        raise SystemExit(f"--model {args.model}: there is no such script")
    for path in scripts:
        if path.resolve() == args.model.resolve():
            continue
        text, names = synced(path.read_text(), args.model.read_text(), own_parts(path))
        print(f"{path.name}: {', '.join(names) or 'nothing to change'}")
        if names and not args.dry_run:
            path.write_text(text)


if __name__ == "__main__":
    main()
