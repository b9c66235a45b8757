"""Tests of what the project promises of its source, and of the checkers themselves.

A script in algorithms/ is one file that needs nothing else of the repository. What scripts share
they share as equal text, so that who knows one knows them all. Layout and common faults are the
business of ruff (`make test`, .ruff.toml). Here stand the rules that ruff does not know. Each
checker takes paths and returns its complaints, a list of lines.

    python -m pytest tests/test_style.py
"""

import ast
import functools
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

from tests import sync

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("algorithms", "benchmarks", "tests")
SCRIPTS = sorted((ROOT / "algorithms").glob("*.py"))
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# What a script may import besides Python's own modules
PACKAGES = {"gymnasium", "gymnasium_robotics", "h5py", "minari", "mujoco", "numpy", "torch"}
PACKAGES |= {"huggingface_hub", "tqdm", "tyro"}
NOT_IMPORTED = {
    "pytest-xdist": "runs the tests in as many processes as there are cores",
    "ruff": "checks and lays out the source",
    "tensorboard": "torch.utils.tensorboard imports it",
    "gymnasium-robotics": "registers the environments of Minari's D4RL datasets",
}
# What other requirements bring
COME_ALONG = {"imageio": "gymnasium[mujoco]", "PIL": "matplotlib", "huggingface_hub": "minari[hf]"}
OPTIONAL = {"ray"}  # imported only where it is asked for
# Needed to record golden files, not to test
OF_AUTHORS = {"SimpleSAC", "flax", "jax", "learner", "rlkit"}
LAST_COMMON_FIELD = "execution"  # the fields of Args up to this one are the same everywhere
# But for the default of these, which is part of what an algorithm's authors published. It is None
# where it depends on the dataset.
PUBLISHED_FIELDS = {"num_updates", "batch_size"}
NEED_NO_DOCSTRING = {
    "Args": "every field has its own help",
    "main": "the docstring of the script says what its command does",
}
SHORT = 4  # lines of a definition that its name explains


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


parse = functools.cache(ast.parse)
parts_of = functools.cache(sync.parts)  # of a text


def tree_of(path: Path) -> ast.Module:
    return parse(text_of(path))


# ---- Rules of natural Python (docstring of the class) ----


class Unnatural(ast.NodeVisitor):
    """Collects what is allowed in Python, but makes a reader stop.

    1. A statement is not there for the value of an expression.
    2. No arithmetic with truth values, also not `"text" * flag`.
    3. A walrus stands only in an `if` or in the filter of a comprehension.
    4. A lambda returns no tuple.
    """

    VALUES = {"all", "any", "dict", "filter", "list", "map", "max", "min", "set", "sorted", "sum"}

    def __init__(self):
        self.found = []
        self.allowed_walrus = set()

    def complain(self, node: ast.AST, what: str) -> None:
        self.found.append((node.lineno, what))

    def visit_Expr(self, node):
        value = node.value
        if isinstance(value, ast.Call):
            if isinstance(value.func, ast.Name) and value.func.id in self.VALUES:
                self.complain(node, f"{value.func.id}() as a statement")
        elif not isinstance(value, ast.Constant | ast.Await | ast.Yield | ast.YieldFrom):
            self.complain(node, "an expression as a statement")
        elif isinstance(value, ast.Constant) and not isinstance(value.value, str | type(...)):
            self.complain(node, "a constant as a statement")
        self.generic_visit(node)

    def visit_BinOp(self, node):
        bitwise = isinstance(node.op, ast.BitAnd | ast.BitOr | ast.BitXor)
        if not bitwise and (is_truth_value(node.left) or is_truth_value(node.right)):
            self.complain(node, "arithmetic with a truth value")
        self.generic_visit(node)

    def visit_Compare(self, node):
        ordered = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops)
        if ordered and any(is_truth_value(part) for part in (node.left, *node.comparators)):
            self.complain(node, "a comparison with a truth value")
        self.generic_visit(node)

    def visit_If(self, node):
        self.allow_walrus(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node):
        for condition in node.ifs:
            self.allow_walrus(condition)
        self.generic_visit(node)

    def allow_walrus(self, condition: ast.expr) -> None:
        self.allowed_walrus |= {id(part) for part in ast.walk(condition)}

    def visit_NamedExpr(self, node):
        if id(node) not in self.allowed_walrus:
            self.complain(node, "a walrus outside an if or a filter")
        self.generic_visit(node)

    def visit_Lambda(self, node):
        if isinstance(node.body, ast.Tuple):
            self.complain(node, "a lambda that returns a tuple")
        self.generic_visit(node)


def is_truth_value(node: ast.expr) -> bool:
    """Is this a comparison, a negation, a constant bool, or are these joined by and, or?"""
    if isinstance(node, ast.BoolOp):
        return all(is_truth_value(value) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool)
    return isinstance(node, ast.Compare)


def complaints_of_nature(path: Path) -> list[str]:
    """What Unnatural finds in a file."""
    visitor = Unnatural()
    visitor.visit(tree_of(path))
    return [f"{path.name}:{line}: {what}" for line, what in sorted(visitor.found)]


def complaints_of_hooks(path: Path) -> list[str]:
    """Questions whether an agent or a run happens to have an attribute."""
    bad = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            literal = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            if literal and node.func.id in ("getattr", "hasattr"):
                bad.append(f"{path.name}:{node.lineno}: {node.func.id} as a hook")
    return bad


# ---- A script alone ----


def imported(path: Path) -> dict[str, int]:
    """Return first part of each absolutely imported module -> line; relative ones as '.'."""
    names = {}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0]: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names["." if node.level else node.module.partition(".")[0]] = node.lineno
    return names


def dotted(node: ast.expr) -> str:
    """Return `name` or `name.attribute`, and nothing for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def complaints_of_independence(path: Path) -> list[str]:
    """Imports of what is neither Python's nor a required package, and ways around an import."""
    allowed = PACKAGES | set(sys.stdlib_module_names) - {"runpy"}
    bad = [
        f"{path.name}:{line}: imports {name}"
        for name, line in imported(path).items()
        if name not in allowed
    ]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name | ast.Attribute):
            words = dotted(node)
            if words in ("sys.path", "__import__", "exec", "eval"):
                bad.append(f"{path.name}:{node.lineno}: uses {words}")
        imports = isinstance(node, ast.Call) and dotted(node.func) == "importlib.import_module"
        if imports and ast.unparse(node.args[0]) != "'gymnasium_robotics'":
            bad.append(f"{path.name}:{node.lineno}: imports by importlib")
        if isinstance(node, ast.ImportFrom) and node.module in ("sys", "importlib"):
            bad.append(f"{path.name}:{node.lineno}: imports from {node.module}")
    return bad


def complaints_of_docstrings(path: Path) -> list[str]:
    """Public functions and classes, and scripts, that do not say what they are."""
    tree = tree_of(path)
    bad = [] if ast.get_docstring(tree) else [f"{path.name}: no docstring"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        exempt = node.name.startswith("_") or node.name in NEED_NO_DOCSTRING
        long = node.end_lineno - node.lineno >= SHORT
        if long and not exempt and not ast.get_docstring(node):
            bad.append(f"{path.name}:{node.lineno}: {node.name} has no docstring")
    return bad


@functools.cache
def command_fields(text: str) -> list[tuple[str, str, str, str]]:
    """Return (name, type, default, help) of all command-line fields, in order."""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    classes = [node for node in parse(text).body if isinstance(node, ast.ClassDef)]
    fields = []
    for args in (node for node in classes if node.name == "Args"):
        for node in args.body:
            if isinstance(node, ast.AnnAssign):
                default = ast.unparse(node.value) if node.value else ""
                comment = comments.get(node.end_lineno, "")
                fields.append((node.target.id, ast.unparse(node.annotation), default, comment))
    return fields


# ---- Scripts beside each other ----


def complaints_of_sharing(paths: list[Path]) -> list[str]:
    """Names that two scripts define with different text, or in another order."""
    texts = {path.stem: text_of(path) for path in paths}
    bad = [
        f"{script}.py: no line {sync.MARKER!r}"
        for script in texts
        if sync.MARKER not in texts[script]
    ]
    parts = {script: parts_of(text) for script, text in texts.items()}
    for name in sorted({name for found in parts.values() for name in found}):
        owners = [script for script in texts if name in parts[script]]
        if "*" in sync.ALLOWED_TO_DIFFER.get(name, {}):
            continue
        own = [script for script in owners if sync.may_differ(name, script)]
        own_texts = {parts[script][name].text for script in own}
        versions = {}
        for script in owners:
            if script not in own and parts[script][name].text not in own_texts:
                versions.setdefault(parts[script][name].text, script)
        if len(versions) > 1:
            bad.append(f"{name} differs in {' and '.join(f'{s}.py' for s in versions.values())}")
    first, *others = texts
    for other in others:
        shared = [[n for n, part in parts[s].items() if part.shared] for s in (first, other)]
        orders = [[name for name in names if name in shared[0]] for names in shared]
        if orders[1] != [name for name in orders[0] if name in orders[1]]:
            bad.append(f"{other}.py has what it shares in another order than {first}.py")
    return bad


def complaints_of_commands(paths: list[Path]) -> list[str]:
    """Command-line fields without help, and common ones that differ from the first script's."""
    bad, common = [], {}
    for path in paths:
        fields = command_fields(text_of(path))
        bad += [f"{path.name}: --{f[0]} has no comment as its help" for f in fields if not f[3]]
        names = [field[0] for field in fields]
        if LAST_COMMON_FIELD in names:
            common[path.name] = fields[: names.index(LAST_COMMON_FIELD) + 1]
        else:
            bad.append(f"{path.name}: Args has no field {LAST_COMMON_FIELD}, the last common one")
    for name, fields in common.items():
        model_name, model = next(iter(common.items()))
        if [field[0] for field in fields] != [field[0] for field in model]:
            bad.append(f"{name}: the common fields are not those of {model_name}")
            continue
        for mine, theirs in zip(fields, model, strict=True):
            name_and_help = (mine[0], mine[3]) == (theirs[0], theirs[3])
            published = mine[0] in PUBLISHED_FIELDS and mine[1] in ("int", "int | None")
            if mine != theirs and not (name_and_help and published):
                bad.append(f"{name}: {mine} is {theirs} in {model_name}")
    return bad


def complaints_of_requirements(requirements: Path, paths: list[Path]) -> list[str]:
    """Requirements without an exact version or a use, and imports without a requirement."""
    bad, pinned = [], set()
    for line in text_of(requirements).splitlines():
        if match := re.fullmatch(r"([A-Za-z0-9_.-]+)(\[[a-z0-9,]+\])?==[0-9][\w.]*", line):
            pinned.add(match[1].lower())
        else:
            bad.append(f"{requirements.name}: {line!r} is not of the form name==version")
    ours = {*FOLDERS, *(path.stem for path in paths)}
    known = set(sys.stdlib_module_names) | ours | COME_ALONG.keys() | OPTIONAL | OF_AUTHORS | {"."}
    used = {}
    for path in paths:
        used |= {name.replace("_", "-"): path for name in imported(path) if name not in known}
    for name, path in used.items():
        if name not in pinned:
            bad.append(f"{path.name} imports {name}, which {requirements.name} lacks")
    for name in sorted(pinned - used.keys() - NOT_IMPORTED.keys()):
        bad.append(f"{requirements.name}: nothing imports {name}")
    return bad


def equations_named_in(text: str) -> set[int]:
    """Return 3, 4 and 5 for 'Eq. 3 to 5', or for 'Eq. 3, 4 and 5'."""
    found = set()
    for first, rest in re.findall(r"Eq\. (\d+)((?:(?: to | and | or |, )\d+)*)", text):
        numbers = [int(first), *map(int, re.findall(r"\d+", rest))]
        found |= set(range(numbers[0], numbers[1] + 1)) if " to " in rest else set(numbers)
    return found


def complaints_of_equations(paths: list[Path]) -> list[str]:
    """Numbers of equations that the header lacks, or that mean others in a shared definition."""
    bad = []
    meanings = {}
    for path in paths:
        tree = tree_of(path)
        header = ast.get_docstring(tree) or ""
        found = re.findall(r"^ {4}\((\d+)\) (.*)", header, re.MULTILINE)
        equations = {int(number): line.split() for number, line in found}
        lines = text_of(path).splitlines()
        for node in tree.body[1:]:
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            named = equations_named_in(text)
            for number in sorted(named):
                if number not in equations:
                    bad.append(f"{path.name}:{node.lineno}: there is no equation {number}")
                elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                    key = node.name, text, number
                    other = meanings.setdefault(key, (path, equations[number]))
                    if other[1] != equations[number]:
                        bad.append(f"{path.name}, {other[0].name}: {node.name} names {number}")
    return bad


OF_ONE_SCRIPT = (
    complaints_of_nature,
    complaints_of_hooks,
    complaints_of_independence,
    complaints_of_docstrings,
)
OF_ALL_SCRIPTS = (complaints_of_sharing, complaints_of_commands, complaints_of_equations)

# ---- The repository ----


@pytest.mark.parametrize("check", OF_ONE_SCRIPT)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_keeps_the_rules(path, check):
    assert check(path) == []


@pytest.mark.parametrize("check", OF_ALL_SCRIPTS)
def test_the_scripts_keep_the_rules_beside_each_other(check):
    assert len(SCRIPTS) > 1
    assert check(SCRIPTS) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_natural_python(path):
    assert complaints_of_nature(path) == []


def test_requirements_are_pinned_and_complete():
    assert complaints_of_requirements(ROOT / "requirements.txt", FILES) == []


def test_names_that_may_differ_do():
    """So that the table holds no reason that has gone."""
    parts = {script: sync.parts(text) for script, text in sync.read_scripts().items()}
    for name, scripts in sync.ALLOWED_TO_DIFFER.items():
        texts = {found[name].text for found in parts.values() if name in found}
        assert len(texts) > 1, name
        for script in scripts:
            assert script == "*" or name in parts[script], (name, script)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_renamed_copy_keeps_the_rules(path, tmp_path):
    """As a researcher begins: another file name, another class name."""
    name = re.search(r"^Algorithm = (\w+)", text_of(path), re.MULTILINE)[1]
    text = text_of(path)
    for old in (f"class {name}(", f"Algorithm = {name}\n"):
        assert old in text
        text = text.replace(old, old.replace(name, "Mine"))
    copy = tmp_path / f"my_{path.name}"
    copy.write_text(text)
    assert [line for check in OF_ONE_SCRIPT for line in check(copy)] == []
    for check in OF_ALL_SCRIPTS:
        assert check([*SCRIPTS, copy]) == check(SCRIPTS)


# ---- The checkers: a good example passes, each bad one is reported ----

GOOD = '''"""A script."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Args:
    env: str = "a"  # the dataset
    execution: str = "auto"  # how to run
    own: float = 1.0  # of this algorithm


def prepare_data(data):
    """Do nothing."""
    return data


# From here on, the code is the same in every script


def helper(x):
    """Return twice x."""
    y = np.asarray(x)
    z = y * 2
    return z


def other(x):
    """Do what is allowed."""
    if x and (n := len(x)) > 1:
        yield n
    print((x > 1) | (x < 0), (x or 0) + 1, [n for y in x if (n := y)], -x, 2 * 3, ["a"] * 3)
    ...
'''


@pytest.fixture
def write(tmp_path):
    """Write GOOD with some replacements as a script, and return its path."""

    def write(*changes: tuple[str, str], name: str = "good.py") -> Path:
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_the_good_example_passes(write):
    paths = [write(), write(name="other.py")]
    assert [line for check in OF_ONE_SCRIPT for line in check(paths[0])] == []
    assert [line for check in OF_ALL_SCRIPTS for line in check(paths)] == []


# fmt: off
@pytest.mark.parametrize("statement, word", [
    ("x or print(x)", "expression"), ("print(x), print(y)", "expression"), ("x", "expression"),
    ("[print(y) for y in x]", "expression"), ("x if y else z", "expression"), ("1", "constant"),
    ("any(print(y) for y in x)", "any()"), ("list(map(print, x))", "list()"),
    ("z = y * (x > 1)", "arithmetic"), ("z = 'a' * (not x)", "arithmetic"),
    ("z = [1] * (x in y)", "arithmetic"), ("z = 1 + True", "arithmetic"),
    ("z = y - (x > 1 and y > 1)", "arithmetic"), ("z = y < (x not in y)", "comparison"),
    ("z = (w := x)", "walrus"), ("print(w := x)", "walrus"), ("[w := y for y in x]", "walrus"),
    ("while w := x: print(w)", "walrus"), ("z = lambda: (x, y)", "lambda"),
])
# fmt: on
def test_nature_is_checked(write, statement, word):
    complaints = complaints_of_nature(write(("z = y * 2", statement)))
    assert len(complaints) >= 1 and word in " ".join(complaints), complaints


@pytest.mark.parametrize("hook", ['getattr(x, "explore", None)', 'hasattr(x, "explore")'])
def test_hooks_are_checked(write, hook):
    assert len(complaints_of_hooks(write(("y * 2", hook)))) == 1
    assert not complaints_of_hooks(write(("y * 2", "getattr(x, name)")))


# fmt: off
@pytest.mark.parametrize("line", [
    "import por", "from algorithms.por import mlp", "from benchmarks import collect",
    "from . import por", "from .por import mlp", "import sys; sys.path.append('x')",
    "from sys import path", "import runpy", "def f(): import collect", "import pandas",
    "por = __import__('por')", "exec(open('por.py').read())",
    "import importlib; importlib.import_module('por')", "from importlib import import_module",
])
# fmt: on
def test_independence_is_checked(write, line):
    assert len(complaints_of_independence(write(("import numpy as np", line)))) == 1


def test_the_import_that_prints_a_notice_may_wait(write):
    line = "import importlib; importlib.import_module('gymnasium_robotics')"
    assert not complaints_of_independence(write(("import numpy as np", line)))


# fmt: off
@pytest.mark.parametrize("change", [
    ("y * 2", "y * 3"), ("twice", "double"), ("def helper(x)", "def helper(x, y=1)"),
    ("def helper", "# why\ndef helper"), ("    z =", "\n    z ="),
])
# fmt: on
def test_sharing_is_checked(write, change):
    complaints = complaints_of_sharing([write(), write(change, name="other.py")])
    assert complaints == ["helper differs in good.py and other.py"]


def test_shared_constants_are_checked(write):
    paths = [write(("# From", f"EVERY = {n}\n# From"), name=f"script{n}.py") for n in (1, 2)]
    assert complaints_of_sharing(paths) == ["EVERY differs in script1.py and script2.py"]


def test_the_order_and_the_marker_are_checked(write):
    helper = GOOD[GOOD.index("def helper") : GOOD.index("def other")]
    changed = write((helper, ""), ("    ...\n", f"    ...\n\n\n{helper}"), name="other.py")
    assert "another order" in complaints_of_sharing([write(), changed])[0]
    assert "no line" in complaints_of_sharing([write(), write(("# From", "# Of"), name="x.py")])[0]


def test_a_version_of_its_own_may_differ_and_be_copied(write, monkeypatch):
    changes = [("y * 2", "y * 3")]
    paths = [write(), write(*changes, name="own.py"), write(*changes, name="copy.py")]
    assert len(complaints_of_sharing(paths)) == 1
    monkeypatch.setitem(sync.ALLOWED_TO_DIFFER, "helper", {"own": "a reason"})
    assert not complaints_of_sharing(paths)
    paths.append(write(("y * 2", "y * 4"), name="stray.py"))
    assert complaints_of_sharing(paths) == ["helper differs in good.py and stray.py"]


def test_what_belongs_to_the_algorithm_may_differ(write):
    other = write(("return data", "return {**data}"), ("own:", "mine:"), name="other.py")
    assert not complaints_of_sharing([write(), other])
    assert not complaints_of_commands([write(), other])


# fmt: off
@pytest.mark.parametrize("change, word", [
    (('env: str = "a"', "env: str | None = 'a'"), "str | None"), (('"a"  #', '"b"  #'), "'b'"),
    (("# the dataset", "# the data"), "the data"), (("  # the dataset", ""), "no comment"),
    (("  # of this algorithm", ""), "no comment"), (("env: str", "environment: str"), "not those"),
    (('    execution: str = "auto"  # how to run\n', ""), "no field execution"),
])
# fmt: on
def test_commands_are_checked(write, change, word):
    complaints = complaints_of_commands([write(), write(change, name="other.py")])
    assert complaints and all(line.startswith("other.py") for line in complaints)
    assert word in " ".join(complaints)


def test_published_sizes_may_differ(write):
    execution = '    execution: str = "auto"'

    def scripts(*lines: str) -> list:
        changes = [(execution, f"    {line}\n{execution}") for line in lines]
        return [write(change, name=f"{i}.py") for i, change in enumerate(changes)]

    size = "batch_size: int = 256  # rows"
    assert not complaints_of_commands(scripts(size, "batch_size: int | None = None  # rows"))
    assert not complaints_of_commands(scripts(size, "batch_size: int = 64  # rows"))
    assert complaints_of_commands(scripts(size, "batch_size: float = 256  # rows"))
    assert complaints_of_commands(scripts(size, "batch_size: int = 256  # steps"))


def test_docstrings_are_checked(write):
    bad = write(('    """Return twice x."""\n', ""), ("z = y * 2", "z = y * 2\n    z = z + 1"))
    assert complaints_of_docstrings(bad)[0].endswith("helper has no docstring")
    assert complaints_of_docstrings(write(('"""A script."""', ""))) == ["good.py: no docstring"]
    assert not complaints_of_docstrings(write(('    """Return twice x."""\n', "")))  # four lines


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("# Eq. 3: a", {3}),
        ("Eq. 3 to 5", {3, 4, 5}),
        ("Eq. 2 and 4, and Eq. 7", {2, 4, 7}),
        ("Eq. 1, 2 or 9", {1, 2, 9}),
        ("Equation 3", set()),
    ],
)
def test_equations_are_found(text, numbers):
    assert equations_named_in(text) == numbers


def test_equations_are_checked(write):
    header, twice = "A script.\n\nx\n    (1) {} = b\n", ("Return twice x.", "Return Eq. 1.")
    one = write(("A script.", header.format("a")), twice, name="one.py")
    same = write(("A script.", header.format("a")), twice, name="same.py")
    other = write(("A script.", header.format("c")), twice, name="other.py")
    assert complaints_of_equations([one, same]) == []
    assert complaints_of_equations([one, other]) == ["other.py, one.py: helper names 1"]
    assert complaints_of_equations([write(twice)]) == ["good.py:23: there is no equation 1"]


# fmt: off
@pytest.mark.parametrize("text, word", [
    ("numpy==2.4.6\n", ""), ("numpy>=2\n", "form name==version"), ("numpy\n", "form"),
    ("numpy==2.4.6\nscipy==1.0\n", "nothing imports scipy"), ("", "good.py imports numpy"),
    ("numpy==2.4.6\nruff==0.17.6\n", ""), ("numpy==2.*\n", "form"),
])
# fmt: on
def test_requirements_are_checked(write, tmp_path, text, word):
    (tmp_path / "requirements.txt").write_text(text)
    complaints = complaints_of_requirements(tmp_path / "requirements.txt", [write()])
    assert word in " ".join(complaints) and bool(complaints) == bool(word)
