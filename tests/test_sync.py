"""Tests of the tool that carries shared text from script to script."""

import pytest

from tests import sync

MODEL = '''"""A model."""

import math

# ----------
# Arguments
# ----------

# what it is for
FACTOR = 2


def above(x):
    return x


# From here on, the code is the same in every script


@dataclass
class Run:
    """Runs."""

    def go(self):
        return FACTOR


# why it is so
def helper(x):
    """Twice x."""
    return 2 * x


# how it is known
register("a")
register("b")


if __name__ == "__main__":
    main()
'''


def synced(other: str, model: str = MODEL) -> tuple[str, list[str]]:
    return sync.synced("other", {"model": model, "other": other}, "model")


def test_parts_are_found_with_the_comments_above_them():
    parts = sync.parts(MODEL)
    first_lines = {name: part.text.splitlines()[0] for name, part in parts.items()}
    assert first_lines == {
        "FACTOR": "# what it is for",
        "above": "def above(x):",
        "Run": "@dataclass",
        "helper": "# why it is so",
        "register": "# how it is known",
    }
    assert [name for name, part in parts.items() if part.shared] == ["Run", "helper", "register"]
    assert parts["register"].text.endswith('register("b")')


def test_shared_parts_get_the_models_text_and_nothing_else_changes():
    other = MODEL.replace("A model", "Another").replace("def above", "def mine")
    changed = (
        other.replace("2 * x", "3 * x").replace("# why", "# what").replace("return FACTOR", "1")
    )
    changed = changed.replace('register("b")\n', "")
    assert synced(changed) == (other, ["Run", "helper", "register"])
    assert synced(other) == (other, [])


def test_a_part_above_the_marker_is_shared_by_its_name():
    text, names = synced(MODEL.replace("FACTOR = 2", "FACTOR = 3"))
    assert (text, names) == (MODEL, ["FACTOR"])


def test_versions_of_their_own_are_left_alone_and_may_be_used_by_others(monkeypatch):
    own = MODEL.replace("2 * x", "3 * x")
    texts = {"model": MODEL, "other": own, "copy": own, "stray": MODEL.replace("2 * x", "4 * x")}
    monkeypatch.setitem(sync.ALLOWED_TO_DIFFER, "helper", {"other": "a reason"})
    assert sync.synced("other", texts, "model") == (own, [])
    assert sync.synced("copy", texts, "model") == (own, [])
    assert sync.synced("stray", texts, "model") == (MODEL, ["helper"])
    assert sync.synced("model", texts, "other") == (MODEL, [])
    monkeypatch.setitem(sync.ALLOWED_TO_DIFFER, "helper", {"*": "a reason"})
    assert sync.synced("stray", texts, "model") == (texts["stray"], [])


def test_what_a_script_lacks_is_reported_not_added():
    other = MODEL.replace("helper", "other_helper").replace("above", "other_above")
    assert sync.lacking(other, MODEL) == ["helper"]
    assert synced(other) == (other, [])


def test_two_definitions_of_a_name_are_refused():
    with pytest.raises(SystemExit, match="FACTOR is defined twice"):
        sync.parts(MODEL + "\nFACTOR = 3\n")


def test_lines_of_one_text_alone_are_counted(capsys):
    assert sync.differing_lines("a\nb\nc", "a\nx\nc\nd") == 3
    assert sync.differing_lines(MODEL, MODEL) == 0
    other = (
        MODEL.replace("FACTOR = 2", "FACTOR = 3").replace("2 * x", "3 * x").replace("Twice", "3")
    )
    sync.print_differences({"one": MODEL, "other": other})
    assert capsys.readouterr().out.splitlines()[1].split() == ["one", "other", "2", "4"]


def test_only_scripts_with_the_marker_are_read(tmp_path):
    (tmp_path / "good.py").write_text(MODEL)
    (tmp_path / "old.py").write_text("x = 1\n")
    assert sync.read_scripts(tmp_path) == {"good": MODEL}
