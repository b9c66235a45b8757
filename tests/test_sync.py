"""Tests of the tool that carries shared text from script to script.

    python -m pytest tests/test_sync.py
"""

import pytest
import sync

MODEL = '''"""A model."""

import math

# what it is for
FACTOR = 2
FACTOR = FACTOR + 1

# ---- The plumbing ----

import os
import sys


class Run:
    """Runs."""

    def go(self):
        return FACTOR


from pathlib import Path


# why it is so
def helper(x):
    """Twice x."""
    return 2 * x


def own(x):
    return x
'''


def test_parts_are_found_with_the_comments_above_them():
    lines = MODEL.splitlines()
    words = {name: [lines[a - 1] for a, _ in ranges] for name, ranges in sync.parts(MODEL).items()}
    assert words == {"FACTOR": ["# what it is for", "FACTOR = FACTOR + 1"], "imports": ["import os"],
                     "Run": ["class Run:"], "helper": ["# why it is so"], "own": ["def own(x):"]}


def test_shared_parts_get_the_models_text_and_nothing_else_changes():
    other = (MODEL.replace("A model", "Another").replace("2 * x", "3 * x").replace("# why", "# what")
             .replace("import sys\n", "").replace("def own", "def mine").replace("return FACTOR", "1"))
    text, names = sync.synced(other, MODEL, set())
    assert text == MODEL.replace("A model", "Another").replace("def own", "def mine")
    assert names == ["Run", "helper", "imports"]
    assert sync.synced(text, MODEL, set()) == (text, [])


def test_names_that_may_differ_are_left_alone():
    other = MODEL.replace("2 * x", "3 * x")
    assert sync.synced(other, MODEL, {"helper"}) == (other, [])


def test_another_number_of_definitions_is_refused():
    with pytest.raises(SystemExit, match="FACTOR is defined 1 times"):
        sync.synced(MODEL.replace("FACTOR = FACTOR + 1\n", ""), MODEL, set())


def test_lines_of_one_text_alone_are_counted():
    assert sync.differing_lines("a\nb\nc", "a\nx\nc\nd") == 3
    assert sync.differing_lines(MODEL, MODEL) == 0


def test_the_scripts_are_in_step():
    scripts = sorted((sync.ROOT / "algorithms").glob("*.py"))
    model = sync.ROOT / "algorithms" / "por.py"
    for path in scripts:
        assert sync.synced(path.read_text(), model.read_text(), sync.own_parts(path))[1] == []
