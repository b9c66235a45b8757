"""benchmarks/common.py: scripts, files, pages, statistics, colours."""

import itertools
import sys

import numpy as np
import pytest

from benchmarks import common

SMALL_SCRIPT = "from dataclasses import dataclass\n\n\n@dataclass\nclass Args:\n    x: int = {}\n"


# ---- Scripts ----


def test_a_script_is_imported_once_by_name_and_path():
    por = common.load_script("por")
    assert por is common.load_script(common.ROOT / "algorithms" / "por.py")
    assert por.__name__ == "por"
    assert por.Args().env == "hopper-medium-v2"


def test_scripts_of_one_name_and_modules_of_python_stay_apart(tmp_path):
    for i, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        for name in ("same.py", "json.py"):
            (tmp_path / folder / name).write_text(SMALL_SCRIPT.format(i))
    json_of_python = sys.modules["json"]
    loaded = [common.load_script(path) for path in sorted(tmp_path.glob("*/*.py"))]
    assert [module.Args().x for module in loaded] == [0, 0, 1, 1]
    assert sys.modules["json"] is json_of_python
    for module in loaded:
        del sys.modules[module.__name__]


def test_a_script_that_cannot_be_imported_leaves_nothing(tmp_path):
    path = tmp_path / "broken_script.py"
    path.write_text("raise RuntimeError('no')")
    with pytest.raises(RuntimeError):
        common.load_script(path)
    assert "broken_script" not in sys.modules


def test_an_unknown_script_is_answered_with_the_known_ones():
    with pytest.raises(SystemExit, match="no script absent; algorithms/ has .*por"):
        common.load_script("absent")
    with pytest.raises(SystemExit, match="no script other/por"):
        common.load_script("other/por")


# ---- Where a number comes from ----


def test_the_commit_is_that_of_the_repository(monkeypatch, tmp_path):
    assert len(common.git_commit().removesuffix("-dirty")) == 40
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no git
    assert common.git_commit() == "unknown"


def test_the_machine_is_one_line():
    assert "PyTorch 2." in common.machine("a GPU") and "a GPU" in common.machine("a GPU")
    assert "\n" not in common.machine()


# ---- Files and pages ----


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    common.write_atomically(path, "ä")
    common.write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError):
        common.write_atomically(path, "other")
    assert path.read_bytes() == b"\xff"
    assert list(path.parent.iterdir()) == [path]


def test_text_between_markers(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<a>\nold\n<b>\nafter")
    assert common.update_page(path, "<a>", "<b>", "new")
    assert path.read_text() == "before\n<a>\nnew\n<b>\nafter"
    assert not common.update_page(path, "<a>", "<b>", "new")


@pytest.mark.parametrize("text", ["", "<a>", "<b> <a>", "<a> <a> <b>"])
def test_markers_that_are_not_there_are_named(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(SystemExit, match="page.md needs the lines <a> and <b>"):
        common.update_page(path, "<a>", "<b>", "new")
    assert path.read_text() == text


def test_a_table_in_markdown():
    assert common.markdown_table(["a", "b"], [[1, 2.5]]) == "| a | b |\n| --- | --- |\n| 1 | 2.5 |"


def test_numbers_in_words():
    assert [common.short_number(n) for n in (250, 1500, 2e6)] == ["250", "1.5k", "2M"]
    assert common.mean_and_spread([1.0, 3.0]) == "2.0 ± 1.0"
    assert common.mean_and_spread([2.0]) == "2.0"


# ---- Statistics ----


@pytest.mark.parametrize(
    "scores, mean",
    [([1, 2, 3, 100], 2.5), ([1, 2, 3], 2), ([0, 0, 4, 5, 6, 100, 100, 100], 28.75)],
)
def test_interquartile_mean(scores, mean):
    # scipy.stats.trim_mean(scores, 0.25) gives these.
    assert common.iqm(np.array(scores, float)[:, None]) == mean
    assert common.iqm(np.array(scores, float)[None, :]) == mean  # runs and tasks are pooled


def test_probability_of_improvement():
    x, y = np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])
    assert common.probability_of_improvement(x, y) == (0.5 + 0 + 1 + 1) / 4


def test_the_interval_is_that_of_all_resamplings():
    scores = np.array([[1.0, 10], [2, 20], [4, 40]])
    means = [
        np.mean([scores[list(rows), task].mean() for task, rows in enumerate(pair)])
        for pair in itertools.product(itertools.product(range(3), repeat=3), repeat=2)
    ]
    low, high = common.interval(lambda drawn: drawn.mean((-2, -1)), scores)
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.3)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.3)


def test_tasks_are_resampled_apart():
    scores = np.array([[0.0, 100], [0, 100], [0, 100]])  # no spread within a task
    assert common.interval(common.iqm, scores, resamples=200) == (50, 50)


# ---- Colours ----


def test_every_algorithm_has_a_name_and_a_colour_of_its_own():
    scripts = {path.stem for path in (common.ROOT / "algorithms").glob("*.py")}
    assert scripts <= set(common.LOOKS)
    assert len({color for _, color, _ in common.LOOKS.values()}) == len(common.LOOKS)
    assert not {color for _, color, _ in common.LOOKS.values()} & set(common.OTHER_COLORS)
    assert common.algorithm_name("td3_bc") == "TD3+BC"


def test_a_copied_script_has_a_name_and_always_the_same_colour():
    assert common.algorithm_name("my_por") == "MY-POR"
    assert common.algorithm_color("my_por") == "#A53C1E"
    assert common.algorithm_marker("my_por") not in {look[2] for look in common.LOOKS.values()}
