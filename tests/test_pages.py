"""Every command that a page names works; `python -m tests.pages` is the program behind it."""

import re

import pytest
import tyro

from benchmarks.common import split_words
from benchmarks.speed import measure
from tests.helpers import load_script
from tests.pages import (
    NOT_RUN,
    PAGES,
    ROOT,
    SHORTER,
    commands,
    reason_not_to_run,
    run_pages,
)

SCRIPTS = sorted(path.stem for path in (ROOT / "algorithms").glob("*.py"))


def all_commands() -> list[str]:
    """Return the commands of all pages."""
    return [
        command for page in PAGES for command in commands((ROOT / page).read_text(encoding="utf-8"))
    ]


def test_commands_are_found_in_blocks_and_between_backticks():
    page = """
    python a.py --x \\
        --y     # a comment
    no command
text `python -m b
--z` and `python` and `ls`

```python
    python c.py
```
"""
    assert commands(page) == ["python a.py --x --y", "python -m b --z"]


def test_all_pages_are_read():
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").rglob("README.md")}
    assert written | {"README.md"} == set(PAGES)


def test_the_readme_has_a_row_for_every_script():
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)\.py` \|", table, re.MULTILINE)) == SCRIPTS


def test_no_rule_is_out_of_use():
    found = all_commands()
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in found), start
    used = set()
    for command in found:
        if reason_not_to_run(command) is None:
            for pattern, replacement in SHORTER:
                shorter = re.sub(pattern, replacement, command, count=1)
                if shorter != command:
                    used.add(pattern)
                command = shorter
    assert [pattern for pattern, _ in SHORTER if pattern not in used] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_of_a_header_have_known_options(script, monkeypatch):
    module = load_script(script)
    lines = re.findall(rf"^    python algorithms/{script}\.py (.*)$", module.__doc__, re.MULTILINE)
    assert len(lines) > 2
    for line in lines:
        words = line.partition("  # ")[0].split()
        args = tyro.cli(module.Args, args=words)
        given = [word[2:].replace("-", "_") for word in words if word.startswith("--")]
        assert given and all(hasattr(args, name) for name in given)


def test_measurements_name_scripts_and_their_options():
    found = 0
    for command in all_commands():
        line = command.replace("--script mine", "--script bc")
        if "benchmarks.speed.measure --script" in line:
            own, words = split_words(line.split("benchmarks.speed.measure ")[1].split())
            args = tyro.cli(measure.Args, args=own)
            for script in args.script:
                tyro.cli(load_script(script).Args, args=words)
                found += 1
    assert found > 25


@pytest.mark.slow
def test_every_command_of_the_pages_works(tmp_path):
    outcomes = run_pages(PAGES, tmp_path / "copy")
    assert len(outcomes) > 30
    assert [f"{outcome.short}\n{outcome.output}" for outcome in outcomes if outcome.output] == []


def test_a_command_that_fails_is_told(tmp_path, monkeypatch):
    page = "    python -c 'import sys; sys.exit(3)'\n"
    monkeypatch.setattr("tests.pages.commands", lambda text: commands(page))
    monkeypatch.setattr("tests.pages.PREPARATION", [])
    outcomes = run_pages(["README.md"], tmp_path / "copy")
    assert [outcome.output[:11] for outcome in outcomes] == ["exit code 3"]
