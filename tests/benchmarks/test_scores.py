"""benchmarks/scores/: reading results, tables, published numbers and curves, controls, claims."""

import csv
import dataclasses
import io
import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from benchmarks import plot
from benchmarks.common import ALGORITHMS, LOOKS, load_script
from benchmarks.scores import board, check, claims, papers, reading, tables
from tests.benchmarks.make_result import as_control, make_result, of_first_casting

HOPPER, WALKER, CHEETAH = (
    f"rebuilt/{env}/medium-v0" for env in ("hopper", "walker2d", "halfcheetah")
)
HEADER = "result,claim,than,holds,printed\n"  # of claims.csv


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder with pages that have markers, no claims and no results."""
    (tmp_path / "results").mkdir()
    begin, end = tables.PAGE_MARKS
    (tmp_path / "page.md").write_text(f"# Scores\n\n{begin}\n{end}\n\nMore.\n")
    begin, end = tables.README_MARKS
    (tmp_path / "README.md").write_text(f"# Title\n\n{begin}\n{end}\n\nMore.\n")
    (tmp_path / "claims.csv").write_text(HEADER)
    return tmp_path


@pytest.fixture
def blank(monkeypatch):
    """Draw no figures, which takes most of the time."""

    def draw(*rows, **options):
        return plt.figure(figsize=(0.1, 0.1))

    monkeypatch.setattr(tables, "draw_scores", draw)
    monkeypatch.setattr(plot, "draw", draw)


def put(folder: Path, name: str, result: dict) -> Path:
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result))
    return path


def options(folder: Path, *more: str) -> list[str]:
    words = ["--results", folder / "results", "--page", folder / "page.md"]
    words += ["--readme", folder / "README.md", "--figures", folder / "figures", *more]
    return [str(word) for word in words]


def read_row(result: dict, folder: Path) -> reading.Row:
    path = put(folder, "a/only", result)
    (row,) = reading.labelled_rows(path, reading.read_result(path))
    return row


def three_tasks(folder: Path) -> None:
    for env, level in ((HOPPER, 50), (WALKER, 70), (CHEETAH, 40)):
        name = env.split("/")[1]
        put(folder, f"{name}/bc", make_result("bc", env, np.array([level, level + 1, level + 2])))
        guide = "q" if env == HOPPER else "weighted"
        scores = np.array([level + 10, level + 12, level + 13])
        put(folder, f"{name}/por", make_result("por", env, scores, guide=guide))


# ---- Reading ----


def test_a_sound_result_is_read(folder):
    row = read_row(make_result(scores=(50, 52, 57)), folder)
    assert (row.label, row.group, row.dataset) == ("BC", "Rebuilt data", HOPPER)
    assert (row.updates, row.episodes, row.seeds, row.phase) == (100_000, 100, 3, "train")
    assert row.final.tolist() == [50, 52, 57] and row.at.tolist()[0] == 10_000
    assert row.last_ten == pytest.approx(row.curve.mean(0))
    assert row.level == pytest.approx(43.6, abs=0.1)


def test_runs_with_other_seeds_are_one_row(folder):
    for name, seed, scores in (("a", 0, (40, 41)), ("b", 2, (70,)), ("c", 7, (10,))):
        put(folder, f"d/iql-{name}", make_result("iql", HOPPER, scores, seed=seed))
    put(folder, "d/other", make_result("iql", HOPPER, (5,), seed=9, beta=7.0))
    put(folder, "d/longer", make_result("iql", HOPPER, (6,), seed=9, updates=200_000))
    rows = {row.label: row for row in reading.read_results(folder) if row.updates == 100_000}
    assert sorted(rows) == ["IQL", "IQL (beta 7.0)"]
    assert rows["IQL"].final.tolist() == [40, 41, 70, 10] and rows["IQL"].seeds == 4
    assert rows["IQL"].curve.shape == (10, 4)
    assert [run.file.stem for run in rows["IQL"].runs] == ["iql-a", "iql-b", "iql-c"]
    assert rows["IQL"].file.stem == "iql-a" and rows["IQL (beta 7.0)"].runs == []


def test_the_same_seed_twice_stays_two_rows(folder):
    for name in "ab":
        put(folder, f"d/iql-{name}", make_result("iql", HOPPER, (40, 41)))
    assert [row.seeds for row in reading.read_results(folder)] == [2, 2]


def test_a_table_names_the_runs_of_a_row(folder, blank):
    put(folder, "d/iql", make_result("iql", HOPPER, (40, 41)))
    put(folder, "d/iql-seed-2", make_result("iql", HOPPER, (70,), seed=2))
    tables.main(options(folder))
    page = (folder / "page.md").read_text()
    assert "| 2 (seed 0), 1 (seed 2) |" in page
    assert "(results/d/iql.json) [seed 2](results/d/iql-seed-2.json) |" in page


def test_both_castings_give_the_same_row(folder):
    new = make_result("por", guide="q", scores=(40, 41, 42))
    rows = [read_row(result, folder) for result in (new, of_first_casting(new, "fp32"))]
    assert [row.first_casting for row in rows] == [False, True]
    assert rows[0].label == rows[1].label == "POR (q)"
    assert (rows[0].final == rows[1].final).all() and (rows[0].last_ten == rows[1].last_ten).all()
    assert rows[1].precision == "fp32" and len(rows[1].commits) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"parts": []}', '{"script": "por"}', '{"evaluations": {}}']
)
def test_a_damaged_file_is_no_result(folder, text):
    path = folder / "results" / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="a.json is no result") as error:
        reading.read_result(path)
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="a.json is no result"):
        tables.main(options(folder))


def change(result: dict, where: tuple, value) -> dict:
    result = json.loads(json.dumps(result))
    place = result
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    return result


@pytest.mark.parametrize(
    "where, value, words",
    [
        (("finished",), False, "not finished"),
        (("final", "scores", 0), 51.0, "final evaluation is not the last"),
        (("evaluations", 3, "scores", 1), 51.0, "do not follow from the returns"),
        (("evaluations", 3, "returns", 1), float("nan"), "do not follow from the returns"),
        (("args", "eval_every"), 5_000, "not evaluated at every 5,000"),
        (("args", "num_updates"), 200_000, "not evaluated at every 10,000"),
        (("args", "final_eval_episodes"), 50, "has 100 episodes"),
        (("task", "ref_max"), 3_000.0, "do not follow"),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(folder, where, value, words):
    path = put(folder, "a/bc", change(make_result(), where, value))
    assert any(words in text for text in reading.complaints(reading.read_result(path)))
    with pytest.raises(SystemExit, match="cannot be trusted"):
        tables.main(options(folder))


def test_a_left_out_evaluation_is_noticed(folder):
    result = make_result()
    del result["evaluations"][4]
    assert reading.complaints(result) == ["phase train is not evaluated at every 10,000 updates"]


def test_online_parts_have_rows_of_their_own(folder):
    result = make_result("iql", online=(60.0, 61, 62))
    path = put(folder, "a/iql", result)
    before, after = reading.labelled_rows(path, reading.read_result(path))
    assert (before.phase, before.paper_stage) == ("train", "before")
    assert before.label == "IQL, before online steps" and before.deviations == {}
    assert (after.phase, after.paper_stage, after.label) == ("online", "after", "IQL")
    assert after.deviations == {"offline updates": 100_000}


def test_a_training_without_data_is_compared_with_nothing(folder):
    result = make_result("sac", "Hopper-v4", scored=False)
    for evaluation in result["evaluations"]:
        evaluation["phase"] = "online"
    result["task"] |= {"transitions": 0, "source": "random actions"}
    row = read_row(result, folder)
    assert (row.label, row.group) == ("SAC", "No data: trained online from scratch")
    assert (row.paper_stage, row.level, row.deviations) == ("online", None, {})


@pytest.mark.parametrize(
    "script, env, changed, label, deviations",
    [
        ("por", "hopper-medium-v2", {"guide": "q"}, "POR (q)", {}),
        (
            "por",
            "hopper-medium-v2",
            {"guide": "weighted"},
            "POR (weighted)",
            {"guide": "weighted"},
        ),
        ("por", WALKER, {"tau": 0.9}, "POR (weighted, tau 0.9)", {"tau": 0.9}),
        ("bc", HOPPER, {"top_fraction": 0.1}, "10% BC", {}),
        ("bc", HOPPER, {"policy": "gaussian"}, "BC (gaussian)", {"policy": "gaussian"}),
        ("iql", "rebuilt/antmaze/umaze-v0", {"tau": 0.9, "beta": 10.0}, "IQL", {}),
        ("iql", HOPPER, {"device": "cuda", "execution": "graph", "seed": 3}, "IQL", {}),
        (
            "iql",
            HOPPER,
            {"decay_updates": 1_000_000},
            "IQL (schedule of 1M)",
            {"decay_updates": 1_000_000},
        ),
    ],
)
def test_a_label_names_what_was_set_by_hand(folder, script, env, changed, label, deviations):
    row = read_row(make_result(script, env, **changed), folder)
    assert (row.label, row.deviations) == (label, deviations)


@pytest.mark.parametrize(
    "script, changed, length",
    [
        ("iql", {}, "100k / 100k"),
        ("iql", {"decay_updates": 1_000_000}, "100k / 1M"),
        ("td3_bc", {}, "100k / -"),
    ],
)
def test_a_row_tells_updates_and_schedule(folder, script, changed, length):
    result = make_result(script, **changed)
    assert read_row(result, folder).length == length
    if not changed:  # the first casting had no such option, and its schedules ended with the run
        del result["args"]["decay_updates"]
        assert read_row(of_first_casting(result), folder).length == length


def test_every_script_s_defaults_are_no_deviation():
    for script in ("por", "iql", "td3_bc", "bc", "spot", "sac"):
        module = load_script(script)
        args = vars(module.apply_settings(module.Args(env="halfcheetah-medium-v2")))
        assert reading.changed_options(module, args)[1] == {}


# ---- Returns that a policy is asked for ----


def ask(result: dict, *targets: float) -> dict:
    """Return the result of a policy that reaches 10 less with each further target."""
    for evaluation in result["evaluations"]:
        evaluation["targets"] = []
        for i, target in enumerate(targets):
            scores = np.array(evaluation["scores"]) - 10 * i
            returns = scores
            if result["task"]["ref_min"] is not None:
                width = result["task"]["ref_max"] - result["task"]["ref_min"]
                returns = result["task"]["ref_min"] + width * scores / 100
            numbers = {"target": target, "returns": returns.tolist(), "scores": scores.tolist()}
            evaluation["targets"].append(numbers)
    result["args"] |= {"targets": list(targets)}
    return result


def make_asked(script: str = "dt", env: str = HOPPER, targets=(3600.0, 1800.0), **options) -> dict:
    """Return a result of DT or RvS with the settings of its dataset. Its last scores are near 50.

    Options are those of make_result(), or the script's own.
    """
    module = load_script(script)
    settings = vars(module.apply_settings(module.Args(env=env)))
    own = ("return_scale", "outcome", "hidden", "lr", "context", "batch_size")
    known = {key: settings[key] for key in own if key in settings}
    # SAC's result has no settings that these scripts lack.
    result = make_result("sac", env, **known | options) | {"script": script}
    return ask(result, *targets)


def rows_of(result: dict, folder: Path) -> list[reading.Row]:
    path = put(folder, "a/only", result)
    return reading.in_order(reading.labelled_rows(path, reading.read_result(path)))


def test_every_target_has_a_row(folder):
    result = make_asked(scores=(50.0, 52.0, 54.0))
    assert reading.complaints(result) == []
    first, second = rows_of(result, folder)
    assert (first.label, second.label) == ("DT (target 3600)", "DT (target 1800)")
    assert (first.target, second.target) == (3600, 1800)
    assert first.final.tolist() == [50, 52, 54] and second.final.tolist() == [40, 42, 44]
    np.testing.assert_allclose(second.curve, first.curve - 10)
    assert first.deviations == second.deviations == {}


def test_a_target_stands_behind_what_was_set_by_hand(folder):
    targets = load_script("rvs").HOPPER["targets"]
    rows = rows_of(make_asked("rvs", targets=targets, batch_size=1024), folder)
    assert len(rows) == 10
    assert rows[0].label == "RvS (return, batch size 1024, target 3234.3)"
    assert rows[1].label == "RvS (return, batch size 1024, target 956.1)"
    assert rows[1].deviations == {"batch_size": 1024}


@pytest.mark.parametrize("script", ["dt", "rvs"])
def test_numbers_of_the_data_are_not_set_by_hand(folder, script):
    """Where nothing is published, the script asks for the best and the mean return of the data."""
    result = make_asked(script, "Pendulum-v1", (-120.5, -900.25), scored=False)
    if script == "dt":
        result["args"]["return_scale"] = 1234.5
    name = {"dt": "DT (", "rvs": "RvS (return, "}[script]
    rows = rows_of(result, folder)
    assert [row.label for row in rows] == [f"{name}target -120.5)", f"{name}target -900.25)"]
    assert rows[0].deviations == {}
    if script == "dt":  # where a scale is published, it is
        result = make_asked(return_scale=500.0)
        assert rows_of(result, folder)[0].label == "DT (return scale 500.0, target 3600)"


def test_targets_that_were_set_by_hand_are_no_published_setting(folder):
    (row,) = rows_of(make_asked(targets=(3000.0,)), folder)
    assert (row.label, row.plain_label) == ("DT (target 3000)", "DT (target 3000)")
    assert row.deviations == {"targets": [3000.0]}


def test_a_goal_is_no_target_that_a_label_tells(folder):
    (row,) = rows_of(make_asked("rvs", "rebuilt/antmaze/umaze-v0", (1.0,)), folder)
    assert (row.label, row.target) == ("RvS (goal)", 1)


@pytest.mark.parametrize(
    "where, value, words",
    [
        (("evaluations", 3, "targets", 1, "scores", 0), 51.0, "do not follow from the returns"),
        (("evaluations", 3, "targets", 1, "target"), 2.0, "other returns than --targets"),
        (("evaluations", 3, "targets"), [], "other returns than --targets"),
        (("args", "targets"), [1800.0, 3600.0], "other returns than --targets"),
    ],
)
def test_targets_that_contradict_themselves_are_refused(where, value, words):
    assert any(words in text for text in reading.complaints(change(make_asked(), where, value)))


def test_the_better_target_cannot_take_the_place_of_the_first():
    result = make_asked()
    for evaluation in result["evaluations"]:
        evaluation |= {key: evaluation["targets"][1][key] for key in ("returns", "scores")}
    words = "the scores at update 10000 are not those of the first target"
    assert words in reading.complaints(result)


def test_only_the_first_target_is_compared_with_others(folder):
    """Its score may be the worse one."""
    targets = papers.read_paper_scores()
    result = make_asked(env="hopper-medium-v2", updates=100_000)
    for evaluation in result["evaluations"]:
        evaluation["targets"][1] = evaluation["targets"][0] | {"target": 1800.0}
    first, second = rows_of(result, folder)
    assert papers.find_target(targets, first, "paper")["score"] == 67.6
    assert papers.find_target(targets, second, "paper") is None
    assert first.published and not second.published_curve
    assert tables.published_cell(second) == "-"
    for evaluation in result["evaluations"]:
        del evaluation["targets"]
    path = put(folder, "a/control", as_control(result, "dt.py"))
    (control,) = reading.labelled_rows(path, reading.read_result(path))
    assert control.stands_beside(first) and not control.stands_beside(second)


def test_pages_show_all_targets_and_compare_by_the_first(folder, blank):
    three_tasks(folder)
    asked = ((HOPPER, (3600.0, 1800.0)), (WALKER, (5000.0, 2500.0)), (CHEETAH, (6000.0, 12000.0)))
    for env, both in asked:
        put(folder, f"{env.split('/')[1]}/dt", make_asked(env=env, targets=both))
    tables.main(options(folder))
    page = (folder / "page.md").read_text()
    places = [page.index(f"| DT (target {target}) |") for target in (6000, 12000, 3600, 1800)]
    assert places == sorted(places) and tables.ASKED in page
    assert "| rebuilt medium-v0 | DT | 3 | 3 |" in page  # the mean over tasks
    rows = reading.read_results(folder / "results")
    figures = tables.make_figures(rows, tables.make_sections(rows), {})
    curves, dots = (figures[f"rebuilt-100k-{kind}.png"][0].args[0] for kind in ("curves", "scores"))
    assert [row.label for row in curves if row.script == "dt"] == ["DT"] * 3
    assert len([row for row in dots if row.script == "dt"]) == 6
    (folder / "results" / "hopper" / "dt.json").unlink()
    rows = reading.read_results(folder / "results")
    assert [row.label for row in tables.readme_rows(rows) if row.script == "dt"] == ["DT"]


# ---- Figures ----


def test_labels_in_figures_are_as_short_as_they_tell_rows_apart(folder):
    results = {
        "td3_bc": make_result("td3_bc", HOPPER, alpha=1.0, sigma=0.3),
        "sac": make_result("sac", HOPPER, hidden=64),
        "sac-fast": make_result("sac", HOPPER, hidden=64, lr=1e-3),
        "por-q": make_result("por", HOPPER, guide="q"),
        "por-weighted": make_result("por", HOPPER, guide="weighted", tau=0.8),
        "bc": make_result("bc", HOPPER),
        "iql": make_result("iql", HOPPER),
        "iql-fast": make_result("iql", HOPPER, lr=1e-3),
    }
    for name, result in results.items():
        put(folder, f"hopper/{name}", result)
    rows = reading.read_results(folder / "results")
    brief = plot.brief_labels(rows)
    names = {row.label: other.label for row, other in zip(rows, brief, strict=True)}
    assert names == {
        "BC": "BC",
        "IQL": "IQL",
        "IQL (lr 0.001)": "IQL (lr 0.001)",
        "POR (q)": "POR (q)",
        "SAC (hidden 64)": "SAC",
        "SAC (hidden 64, lr 0.001)": "SAC (lr 0.001)",
        "POR (weighted, tau 0.8)": "POR (weighted)",
        "TD3+BC (alpha 1.0, sigma 0.3)": "TD3+BC",
    }
    for kind in ("scores", "curves"):
        drawn, key = tables.make_figures(rows, tables.make_sections(rows), {})[
            f"rebuilt-100k-{kind}.png"
        ]
        assert {row.label for row in drawn.args[0]} == set(names.values())


def test_long_labels_fit_into_the_figure(folder):
    for env in (HOPPER, WALKER):
        name = env.split("/")[1]
        many = {"alpha": 1.0, "sigma": 0.3, "noise_clip": 0.1, "discount": 0.995}
        put(folder, f"{name}/one", make_result("td3_bc", env, **many))
        put(folder, f"{name}/two", make_result("td3_bc", env, **many | {"alpha": 2.0}))
    rows = reading.read_results(folder / "results")
    assert max(len(row.label) for row in rows) > 40
    figure = tables.draw_scores(rows, {}, "A title")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the layout warns where it finds no place
        figure.canvas.draw()
    axes = figure.axes[:2]
    assert all(panel.get_window_extent().width > 0.2 * figure.bbox.width for panel in axes)
    for panel in axes:
        for label in panel.get_yticklabels():
            box = label.get_window_extent()
            assert box.x0 >= 0 and box.x1 < panel.get_window_extent().x0
    plt.close(figure)


# ---- Published numbers ----


def test_no_target_is_of_v0_or_doubtful():
    with open(tables.SCORES / "paper_scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    used = [row for row in rows if row["use"]]
    assert len(rows) == 1_403 and len(used) > 500
    assert {row["use"] for row in used} == {"paper", "rerun"}
    never = {"version-doubtful", "version-corrected", "best-column"}
    for row in used:
        assert row["unit"] == "normalized_score" and not row["dataset"].endswith("-v0"), row
        assert not never & set(row["doubt"].split()), row
        assert row["use"] == "paper" or row["source"] in ("corl_readme", "por_readme")


def test_every_source_and_doubt_is_explained():
    notes = (tables.SCORES / "PAPER_SCORES.md").read_text()
    with open(tables.SCORES / "paper_scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    doubts = {doubt for row in rows for doubt in row["doubt"].split()}
    for name in {row["source"] for row in rows} | doubts:
        assert f"| `{name}` |" in notes, name
    assert all(np.isfinite(float(row["score"])) for row in rows)


@pytest.mark.parametrize(
    "script, use, text",
    [
        ("por", "paper", "98.2 ± 1.6\\*"),  # withdrawn, hence the star
        ("por", "rerun", "78.6"),
        ("iql", "paper", "66.2 ± 5.7"),
        ("iql", "rerun", "67.5 ± 3.8"),
    ],
)
def test_published_numbers_on_hopper(script, use, text):
    number = papers.read_paper_scores()[script, "hopper-medium-v2", "offline", use]
    assert papers.published(number) == text


def test_two_numbers_for_one_use_are_refused(tmp_path):
    lines = (tables.SCORES / "paper_scores.csv").read_text().splitlines()
    (tmp_path / "two.csv").write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(SystemExit, match="a second number"):
        papers.read_paper_scores(tmp_path / "two.csv")


# ---- Pages ----


def test_pages_are_written_and_then_agree(folder, capsys):
    three_tasks(folder)
    with pytest.raises(SystemExit, match="not what the results give: page.md, README.md"):
        tables.main(options(folder, "--check"))
    assert not (folder / "figures").exists()
    tables.main(options(folder))
    page = (folder / "page.md").read_text()
    assert page.startswith("# Scores\n") and page.endswith("\nMore.\n")
    assert "| POR (q) | `rebuilt/hopper/medium-v0` ffffff | 3 (seed 0) | 100k / 100k |" in page
    assert "Environments: Hopper-v4." in page
    assert "[**61.7 ± 1.2**](results/hopper/por.json)" in page and "0123456" in page
    assert "gymnasium 1.4.0, mujoco 4.0.0, torch 2.13.0" in page
    for name in re.findall(r"\((figures/.*?\.png)\)", page):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    tables.main(options(folder, "--check"))
    tables.main(options(folder))  # nothing is left to do
    assert capsys.readouterr().out == "pages and figures agree with the results\n"


@pytest.mark.parametrize("name", ["page.md", "README.md"])
def test_a_number_that_was_changed_by_hand_is_found(folder, name, blank):
    three_tasks(folder)
    tables.main(options(folder))
    path = folder / name
    text = path.read_text()
    assert "51.7" in text  # POR on halfcheetah
    path.write_text(text.replace("51.7", "71.7"))
    with pytest.raises(SystemExit, match=f"not what the results give: {name}"):
        tables.main(options(folder, "--check"))
    with pytest.raises(SystemExit, match=f"{name} is not what the results give"):
        check.main(options(folder, "--claims", folder / "claims.csv"))


def test_a_changed_result_makes_its_figures_anew(folder, blank):
    three_tasks(folder)
    tables.main(options(folder))
    before = {path: path.read_bytes() for path in (folder / "figures").iterdir()}
    put(folder, "halfcheetah/bc", make_result("bc", CHEETAH, (30, 31, 32)))
    tables.main(options(folder))
    assert all(path.read_bytes() != content for path, content in before.items())


def test_pages_without_markers(folder, capsys, blank):
    three_tasks(folder)
    (folder / "README.md").write_text("a page of somebody's")
    tables.main(options(folder))
    assert "gets no table, because it has no line <!-- scores:begin -->" in capsys.readouterr().out
    assert (folder / "README.md").read_text() == "a page of somebody's"
    (folder / "page.md").write_text("no place for tables")
    with pytest.raises(SystemExit, match="page.md needs the lines"):
        tables.main(options(folder))


def test_papers_stand_only_beside_d4rl_s_own_data(folder, blank):
    targets = papers.read_paper_scores()
    own = make_result("iql", "hopper-medium-v2", updates=1_000_000)
    minari = change(own, ("task", "source"), "Minari")
    for result, expected in ((own, 66.2), (minari, None), (make_result("iql", HOPPER), None)):
        number = papers.find_target(targets, read_row(result, folder), "paper")
        assert (number["score"] if number else None) == expected
    put(folder, "a/only", own)
    put(folder, "b/iql", make_result("iql", HOPPER))
    tables.main(options(folder))
    page = (folder / "page.md").read_text()
    own, rebuilt = page.split("### Rebuilt data")
    assert "66.2 ± 5.7" in own and "66.2" not in rebuilt and "best re-run" not in rebuilt


def test_the_first_casting_stands_apart_until_it_is_run_again(folder, blank):
    old = of_first_casting(make_result("bc", HOPPER, (10, 11, 12)))
    put(folder, "hopper/bc-old", old)
    put(folder, "hopper/por", make_result("por", HOPPER, guide="q"))
    tables.main(options(folder))
    page = (folder / "page.md").read_text()
    today, first = page.split("## First casting")
    assert "POR" in today and "bc-old.json" in first and "bc-old.json" not in today
    put(folder, "hopper/bc", make_result("bc", HOPPER, (20, 21, 22)))
    tables.main(options(folder))
    page = (folder / "page.md").read_text()
    assert "First casting" not in page and "bc.json" in page


def test_the_small_table_shows_today_s_runs_and_what_is_published(folder, blank):
    maze = "rebuilt/antmaze/umaze-v0"
    old = of_first_casting(make_result("bc", CHEETAH, (10, 11, 12)))
    put(folder, "halfcheetah/bc", old)
    tables.main(options(folder))
    assert "| --- |" not in (folder / "README.md").read_text()
    put(folder, "halfcheetah/td3_bc", make_result("td3_bc", CHEETAH, (47, 48, 49)))
    put(folder, "maze/iql", make_result("iql", maze, (30, 40, 50), tau=0.9, beta=10.0))
    put(folder, "maze/one", make_result("bc", maze, (30,)))
    put(folder, "maze/long", make_result("bc", maze, updates=1_000_000))
    put(folder, "maze/control", as_control(make_result("iql", maze, (90, 91))))
    put(folder, "other/iql", make_result("iql", "rebuilt/antmaze/large-play-v0"))
    tables.main(options(folder))
    lines = (folder / "README.md").read_text().splitlines()
    first = lines.index("|  | halfcheetah medium | antmaze umaze |")
    assert lines[first + 2 : first + 7] == [
        "| IQL | - | 40.0 ± 8.2 |",
        "| *IQL, published* | - | *14.2 ± 3.7 (CORL antmaze-umaze-v2)<br>"
        "55.0 ± 17.5 (d3rlpy antmaze-umaze-v0)* |",
        "| TD3+BC | 48.0 ± 0.8 | - |",
        "| *TD3+BC, published* | *40.4 ± 0.2 (d3rlpy halfcheetah-medium-v0)* | - |",
        "| *behaviour policy* | *13.5* | - |",
    ]


def test_means_over_tasks_are_of_the_same_tasks(folder):
    three_tasks(folder)
    put(folder, "hopper/iql", make_result("iql", HOPPER))  # not on the others
    rows = reading.read_results(folder / "results")
    found = {label: part for _, label, part in tables.comparable_sets(rows)}
    assert set(found) == {"BC", "POR (published settings)"}
    assert len(found["POR (published settings)"]) == 3
    lines = tables.aggregate_table(rows).splitlines()
    # The mean of 42, 50, 51, 52 and 70.
    assert lines[2].startswith("| rebuilt medium-v0 | BC | 3 | 3 | 53.0 (")


@pytest.mark.parametrize(
    "dataset, suite",
    [
        ("hopper-medium-replay-v2", "medium-replay-v2"),
        ("rebuilt/hopper/medium-replay-81k-v0", "rebuilt medium-replay-v0"),
        ("antmaze-umaze-v2", "antmaze"),
        ("rebuilt/antmaze/umaze-v0", "rebuilt antmaze"),
    ],
)
def test_suites(dataset, suite):
    assert tables.suite(dataset) == suite


# ---- Published curves ----


def test_published_points_are_sound():
    points = reading.read_curves()
    assert len(points) == 2_490
    keys = [(p.source, p.algorithm, p.dataset, p.phase, p.update) for p in points]
    assert len(set(keys)) == len(points)
    # Nobody publishes one score twice, so a cell of a table names each source once.
    assert len({key[1:] for key in keys}) == len(points)
    for point in points:
        assert re.fullmatch(r"(CORL|d3rlpy-benchmarks) [\w./]+ @ [0-9a-f]{7}", point.source), point
        assert re.fullmatch(r"[a-z0-9]+(-[a-z]+)+-v[012]", point.dataset), point
        assert point.phase in ("offline", "online") and point.how, point
        assert 0 < point.update <= 1_000_000 and point.update % 10_000 == 0, point
        # The highest is of pen, where a good policy is far above the reference.
        assert -10 < point.mean < 140 and 0 <= point.std < 80, point
        assert 4 <= point.seeds <= 10, point
    names = {name for names in reading.PUBLISHED_AS.values() for name in names}
    assert names <= {point.algorithm for point in points}
    assert reading.PUBLISHED_AS.keys() <= LOOKS.keys()


@pytest.mark.parametrize(
    "dataset, name",
    [
        ("hopper-medium-v0", "hopper-medium"),
        ("rebuilt/hopper/medium-v0", "hopper-medium"),
        ("rebuilt/hopper/medium-snapshot5-v0", "hopper-medium"),
        ("rebuilt/walker2d/medium-replay-177k-v0", "walker2d-medium-replay"),
        ("rebuilt/antmaze/umaze-v0", "antmaze-umaze"),
        ("antmaze-umaze-diverse-v2", "antmaze-umaze-diverse"),
    ],
)
def test_namesakes(dataset, name):
    assert reading.namesake(dataset) == name


CORL_UMAZE = "CORL antmaze-umaze-v2: 14.2 ± 3.7 (4 seeds)"
D3RLPY_UMAZE = "d3rlpy antmaze-umaze-v0: 55.0 ± 17.5 (10 seeds)"
D3RLPY_HOPPER = "d3rlpy hopper-medium-v0: 62.1 ± 7.4 (10 seeds)"


@pytest.mark.parametrize(
    "script, env, updates, texts",
    [
        ("iql", "rebuilt/antmaze/umaze-v0", 100_000, [CORL_UMAZE, D3RLPY_UMAZE]),
        ("iql", "rebuilt/hopper/medium-snapshot5-v0", 100_000, [D3RLPY_HOPPER]),
        ("iql", "rebuilt/hopper/medium-v0", 90_000, []),  # nothing is interpolated
        ("iql", "antmaze-umaze-v2", 100_000, [CORL_UMAZE]),  # the version of the very file
        ("iql", "hopper-medium-v2", 100_000, []),
        ("iql", "rebuilt/antmaze/umaze-diverse-v0", 120_000, []),
        ("bc", "rebuilt/antmaze/umaze-v0", 100_000, []),
    ],
)
def test_what_is_published_at_as_many_updates(folder, script, env, updates, texts):
    row = read_row(make_result(script, env, updates=updates), folder)
    assert [str(point) for point in row.published] == texts
    assert tables.published_cell(row) == ("<br>".join(texts) or "none")


def test_online_parts_and_other_data_have_no_published_curve(folder):
    result = make_result("iql", HOPPER, online=(60.0, 61, 62))
    path = put(folder, "a/iql", result)
    before, after = reading.labelled_rows(path, reading.read_result(path))
    assert before.published and not after.published_curve
    minari = change(make_result("iql", HOPPER), ("task", "source"), "Minari")
    assert not read_row(minari, folder).published_curve
    assert not read_row(make_result("iql", HOPPER, scored=False), folder).published_curve


@pytest.mark.parametrize(
    "env, scores, words",
    [
        ("rebuilt/antmaze/umaze-v0", (16, 17, 18), "+2.8, within | differ |"),
        ("rebuilt/antmaze/umaze-v0", (16, 17, 18), "-38.0, below | differ |"),
        ("antmaze-umaze-v2", (16, 17, 18), "+2.8, within | the same |"),
        ("antmaze-umaze-v2", (20, 21, 22), "+6.8, above | the same |"),
    ],
)
def test_ours_beside_published_ones(folder, env, scores, words):
    rows = [read_row(make_result("iql", env, scores), folder)]
    rows.append(read_row(make_result("bc", HOPPER), folder))
    text = check.published_table(rows)
    assert words in text and "For 1 of 2 rows none is published." in text


# ---- Controls: other people's code on our data ----


def control_of_iql(scores=(40.0, 60.0), updates=100_000, **options) -> dict:
    return as_control(make_result("iql", HOPPER, scores, updates=updates), **options)


def test_a_control_stands_below_our_row(folder, blank):
    put(folder, "hopper/a-bc", make_result("bc", HOPPER))
    put(folder, "hopper/iql", make_result("iql", HOPPER))
    put(folder, "hopper/por", make_result("por", HOPPER, guide="q"))
    put(folder, "hopper/iql-long", make_result("iql", HOPPER, decay_updates=1_000_000))
    put(folder, "hopper/control-iql", control_of_iql(decay_updates=None))
    put(folder, "hopper/control-long", control_of_iql(decay_updates=1_000_000))
    authors = make_result("por", HOPPER, guide="q")
    put(folder, "hopper/control-por", as_control(authors, "main_por.py", guide="q"))
    rows = reading.read_results(folder / "results")
    theirs = "corl-team/CORL @ eeeeeee"
    assert [row.label for row in rows] == [
        "BC",
        "IQL",
        f"{theirs} iql.py (their code)",
        "IQL (schedule of 1M)",
        f"{theirs} iql.py (their code)",
        "POR (q)",
        f"{theirs} main_por.py, q (their code)",
    ]
    assert [row.length for row in rows[1:5]] == ["100k / 100k"] * 2 + ["100k / 1M"] * 2
    assert all(not row.published for row in rows if row.control)
    tables.main(options(folder))
    page = (folder / "page.md").read_text()
    assert f"| {theirs} iql.py (their code) | `{HOPPER}` ffffff | 2 (seed 0) | 100k / 1M |" in page
    assert "`python -m benchmarks.scores.controls --made`; a made one." in page


def test_a_control_without_a_schedule_stands_beside_ours_with_one(folder):
    put(folder, "hopper/iql", make_result("iql", HOPPER))
    put(folder, "hopper/control-iql", control_of_iql())
    ours, control = reading.read_results(folder / "results")
    assert control.length == "100k / -" and control.stands_beside(ours)
    assert not ours.stands_beside(control) and not control.stands_beside(control)


def test_a_control_is_in_no_mean_no_figure_no_order_and_no_claim(folder, monkeypatch):
    drawn = []

    def draw(rows, *others, **options):
        drawn.extend(rows)
        return plt.figure(figsize=(0.1, 0.1))

    monkeypatch.setattr(tables, "draw_scores", draw)
    monkeypatch.setattr(plot, "draw", draw)
    three_tasks(folder)
    before = tables.aggregate_table(reading.read_results(folder / "results"))
    for env in (HOPPER, WALKER, CHEETAH):
        name = env.split("/")[1]
        result = make_result("bc", env, (90, 91, 92))
        put(folder, f"{name}/control-bc", as_control(result, "any_percent_bc.py"))
    rows = reading.read_results(folder / "results")
    assert len([row for row in rows if row.control]) == 3
    assert tables.aggregate_table(rows) == before
    assert "their code" not in check.order_table(rows, papers.read_paper_scores())
    tables.main(options(folder))
    assert drawn and not any(row.control for row in drawn)
    assert "their code" not in (folder / "README.md").read_text()
    (folder / "claims.csv").write_text(f"{HEADER}hopper/control-bc,better,hopper/bc,yes,\n")
    with pytest.raises(SystemExit, match="there is no result hopper/control-bc"):
        check.main(options(folder, "--claims", folder / "claims.csv"))


def test_a_control_does_not_replace_our_run_of_the_first_casting(folder):
    """It stands below it, also in the part of the page where that run stays."""
    put(folder, "hopper/iql", of_first_casting(make_result("iql", HOPPER)))
    put(folder, "hopper/control-iql", control_of_iql())
    put(folder, "walker2d/control-iql", as_control(make_result("iql", WALKER)))
    alone, beside = tables.make_sections(reading.read_results(folder / "results"))
    assert [row.dataset for row in alone.rows] == [WALKER] and alone.kinds == []
    assert [bool(row.control) for row in beside.rows] == [False, True] and beside.first_casting


@pytest.mark.filterwarnings("error")
def test_difference_and_standard_error():
    gap, error = check.difference_with_error(np.array([1.0, 2.0, 6.0]), np.array([10.0, 14.0]))
    assert gap == -9  # s^2 is 7 for three seeds and 8 for two
    assert error == pytest.approx(math.sqrt(7 / 3 + 8 / 2))
    assert math.isnan(check.difference_with_error(np.array([1.0]), np.array([1.0, 2.0]))[1])


@pytest.mark.parametrize(
    "scores, changed, words",
    [
        ((50, 52, 54), {}, "| +2.0 ± 10.1 | within two standard errors |"),
        ((75, 77, 79), {}, "| +27.0 ± 10.1 | above by more than two standard errors |"),
        ((15, 17, 19), {}, "| -33.0 ± 10.1 | below by more than two standard errors |"),
        ((50,), {}, "| +0.0 | one seed alone has no standard error |"),
        ((50, 52, 54), {"fingerprint": "0" * 64}, "errors; another build of the data |"),
    ],
)
def test_the_difference_between_ours_and_theirs(folder, scores, changed, words):
    ours = make_result("iql", HOPPER, scores)
    ours["task"] |= changed
    put(folder, "hopper/iql", ours)
    put(folder, "hopper/other", make_result("iql", HOPPER, updates=200_000))
    put(folder, "hopper/control-iql", control_of_iql((40.0, 60.0)))
    text = check.control_table(reading.read_results(folder / "results"))
    assert words in text and text.count("their code)") == 1


def test_a_control_that_nothing_of_ours_stands_above(folder):
    put(folder, "hopper/iql", make_result("iql", HOPPER, updates=200_000))
    put(folder, "hopper/control-iql", control_of_iql())
    text = check.control_table(reading.read_results(folder / "results"))
    assert "no run of ours with as many updates" in text


def test_a_control_without_its_source_is_no_result(folder):
    result = control_of_iql()
    del result["control"]["commit"]
    path = put(folder, "hopper/control-iql", result)
    with pytest.raises(ValueError, match="is no result: KeyError: 'commit'"):
        reading.read_result(path)


# ---- Support ----


def test_permutation_test():
    x, y = np.array([7.0, 8.0, 9.0]), np.array([1.0, 2.0, 3.0])
    assert claims.permutation_p([(x, y)]) == pytest.approx(1 / 20)
    assert claims.permutation_p([(y, x)]) == 1
    assert claims.permutation_p([(x, y), (x + 50, y + 50)]) == pytest.approx(1 / 400)


def test_sampled_permutations_agree_with_all(monkeypatch):
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0.8, 1, 4), rng.normal(0, 1, 5)), (rng.normal(0.5, 1, 4), np.zeros(5))]
    exact = claims.permutation_p(pairs)
    monkeypatch.setattr(claims, "MOST_SPLITS", 15_000)
    assert claims.permutation_p(pairs) == pytest.approx(exact, abs=0.01)
    assert 0.01 < exact < 0.5


@pytest.mark.parametrize(
    "scores, changed, words",
    [
        ((65, 66, 68), {}, "matches paper and rerun"),
        ((61, 62, 62), {}, "matches paper |"),
        ((90, 91, 92), {}, "no match"),
        ((66, 66), {}, "not comparable: 2 of 3 seeds"),
        ((66, 66, 66), {"tau": 0.9}, "not comparable: settings of its own: tau 0.9"),
        ((66, 66, 66), {"updates": 100_000}, "100,000 of 1,000,000 updates"),
    ],
)
def test_verdicts_on_d4rl_s_data(folder, scores, changed, words):
    result = make_result("iql", "hopper-medium-v2", scores, **{"updates": 1_000_000} | changed)
    table = check.comparison_table([read_row(result, folder)], papers.read_paper_scores())
    assert words in table


def test_a_number_without_spread_is_met_within_ours(folder):
    """The authors' 78.6 of POR has none."""
    for scores, words in (((76, 79, 82), "matches rerun"), ((70, 70.5, 71), "no match")):
        result = make_result("por", "hopper-medium-v2", scores, updates=1_000_000, guide="q")
        table = check.comparison_table([read_row(result, folder)], papers.read_paper_scores())
        assert words in table and "our spread, none printed" in table


def test_orders_that_papers_claim(folder):
    three_tasks(folder)
    put(folder, "hopper/other", make_result("iql", HOPPER, updates=200_000))
    rows = reading.read_results(folder / "results")
    text = check.order_table(rows, papers.read_paper_scores())
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    found = {(line[0], line[1]): line for line in lines[2:]}
    line = found["POR (q) > BC", HOPPER]
    assert line[2] == "98.2 ± 1.6\\* and 52.9 on hopper-medium-v2"
    assert line[5:] == ["+10.7", "1.00 (1.00 to 1.00)", "0.050", "supported"]
    together = found["POR (weighted) > BC", "rebuilt medium-v0, 2 tasks"]
    assert together[-2:] == ["0.003", "supported"]  # 1 / 400
    assert not any("IQL" in order or order.startswith("BC") for order, _ in found)


# ---- Claims ----


@pytest.mark.parametrize(
    "claim, words",
    [
        ("d/iql,reproduces,paper", "holds"),
        ("d/iql,reproduces,rerun", "holds"),
        ("d/short,reproduces,paper", "does not hold: 100,000 of"),
        ("d/high,reproduces,paper", "does not hold: +14.8, above"),
        ("hopper/bc,reproduces,paper", "does not hold: 100,000 of 1,000,000 updates; no published"),
        ("hopper/por,better,hopper/bc", "holds"),
        ("hopper/bc,better,hopper/por", "does not hold: difference -10.7, p 1.000: contradicted"),
        ("hopper/por;walker2d/por,better,hopper/bc;walker2d/bc", "holds"),
    ],
)
def test_claims(folder, claim, words):
    """Each must be marked as its test finds."""
    put_claimed(folder)
    rows = claims.rows_by_name(reading.read_results(folder / "results"))
    holds = "yes" if words == "holds" else "no"
    for mark in ("yes", "no"):
        (folder / "claims.csv").write_text(f"{HEADER}{claim},{mark},\n")
        (line,) = claims.read_claims(folder / "claims.csv")
        right, found = claims.judge(line, rows, papers.read_paper_scores())
        assert right == (mark == holds) and found.startswith(words)
        assert right or found.endswith(f"; it is marked `{mark}`")


@pytest.mark.parametrize(
    "claim, words",
    [
        ("d/none,reproduces,paper,MARK,", "there is no result d/none"),
        ("hopper/por,better,walker2d/bc,MARK,", "differ in data or length"),
        ("hopper/por,better,gone,MARK,", "there is no result gone"),
        ("hopper/por;hopper/por,better,hopper/bc;hopper/bc,MARK,", "named twice"),
        ("hopper/por;hopper/iql,better,hopper/bc;hopper/bc,MARK,", "two pairs are on one dataset"),
        ("hopper/por,better,hopper/bc,MARK,iql_slides/d4rl_main", "is not source/table/dataset"),
        (
            "hopper/por,better,hopper/bc,MARK,iql_slides/d4rl_main/hopper-medium-v2/por/bc",
            "has 0 numbers of iql_slides/d4rl_main/hopper-medium-v2/por",
        ),
        (
            "hopper/por,better,hopper/bc,MARK,iql_slides/d4rl_main/hopper-medium-v2/abm/bc",
            "is in the other order",
        ),
    ],
)
@pytest.mark.parametrize("mark", ["yes", "no"])
def test_claims_that_cannot_be_tested(folder, claim, words, mark):
    put_claimed(folder)
    rows = claims.rows_by_name(reading.read_results(folder / "results"))
    (folder / "claims.csv").write_text(HEADER + claim.replace("MARK", mark))
    (line,) = claims.read_claims(folder / "claims.csv")
    right, found = claims.judge(line, rows, papers.read_paper_scores())
    assert not right and words in found


def put_claimed(folder: Path) -> None:
    """Store the results that the claims of these tests name."""
    three_tasks(folder)
    put(folder, "hopper/iql", make_result("iql", HOPPER))
    for name, scores, updates in (
        ("iql", (65, 66, 68), 1_000_000),
        ("high", (80, 81, 82), 1_000_000),
        ("short", (66, 66, 67), 100_000),
    ):
        put(folder, f"d/{name}", make_result("iql", "hopper-medium-v2", scores, updates=updates))


def test_a_wrong_mark_makes_the_command_fail(folder, blank, capsys):
    three_tasks(folder)
    words = options(folder, "--claims", folder / "claims.csv")
    tables.main(words)
    (folder / "claims.csv").write_text(f"{HEADER}hopper/bc,better,hopper/por,yes,\n")
    with pytest.raises(SystemExit, match="claim: hopper/bc better hopper/por: does not hold: diff"):
        check.main(words)
    (folder / "claims.csv").write_text(f"{HEADER}hopper/por,better,hopper/bc,yes,\n")
    check.main(words)
    assert "claim: hopper/por better hopper/bc: holds" in capsys.readouterr().out


def test_the_page_has_a_line_for_each_order(folder, blank):
    three_tasks(folder)
    begin, end = tables.CLAIM_MARKS
    page = folder / "page.md"
    page.write_text(f"{begin}\n{end}\n{page.read_text()}")
    printed = "por_slides/d4rl_main/hopper-medium-v2/por/td3_bc"
    (folder / "claims.csv").write_text(
        f"{HEADER}hopper/por,better,hopper/bc,yes,{printed}\n"
        "hopper/bc;walker2d/bc,better,hopper/por;walker2d/por,no,\n"
    )
    tables.main(options(folder, "--claims", folder / "claims.csv"))
    lines = page.read_text().partition(end)[0].strip().splitlines()[-2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:3] == ["POR (q) > BC", f"`{HOPPER}`", "100,000"]
    assert cells[0][4:6] == ["0.050", "yes"]
    assert cells[0][6] == "98.2 ± 1.6\\* and 59.3\\* (por_slides/d4rl_main/hopper-medium-v2)"
    assert cells[1][1] == f"`{HOPPER}`<br>`{WALKER}`"
    assert cells[1][5:] == ["**no**, contradicted", "-"]


@pytest.mark.parametrize(
    "line",
    [
        "a,copies,paper,yes,",
        "a,reproduces,science,yes,",
        "a;b,better,c,yes,",
        ",better,c,yes,",
        "a,better,,yes,",
        "a",
        "a,better,b,perhaps,",
        "a,reproduces,paper,yes,iql_slides/d4rl_main/hopper-medium-v2/iql/bc",
    ],
)
def test_an_unreadable_claim_is_refused(folder, line):
    (folder / "claims.csv").write_text(f"{HEADER}{line}\n")
    with pytest.raises(SystemExit, match="claims.csv:2 is no claim"):
        claims.read_claims(folder / "claims.csv")


# ---- This repository's own results ----


def test_the_real_pages_show_the_real_results_and_the_claims_hold(capsys):
    check.main([])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("claim: ")]
    known = claims.read_claims()
    assert [line.endswith(": holds") for line in lines] == [
        claim["holds"] == "yes" for claim in known
    ]
    table = claims.claims_table(known, reading.read_results(tables.SCORES / "results"))
    assert len(table.splitlines()) == len(known) + 2


def test_the_real_results_have_names_that_run_py_gives():
    """So that a cell that is run again replaces the result of the first casting."""
    from benchmarks import run

    for path in (tables.SCORES / "results").rglob("*.json"):
        result = reading.read_result(path)
        assert path.name.startswith("control-") == ("control" in result)
        if "control" in result:  # named by benchmarks.scores.controls
            continue
        assert path.parent.name == run.dataset_folder(result["args"]["env"])
        name = run.short_name(load_script(result["script"]), result["args"])
        assert path.stem.removesuffix("-bf16").removesuffix("-fp32") == name


def test_every_number_with_a_use_belongs_to_a_script():
    others = {"bc_10", "sac_n", "edac", "cal_ql"}  # a variant of BC, and methods without a script
    ours = {reading.PAPER_NAMES.get(path.stem, path.stem) for path in ALGORITHMS.glob("*.py")}
    assert {key[0] for key in papers.read_paper_scores()} - others <= ours


# ---- The board ----


def board_of(folder, results: dict) -> list:
    """Store results {(script, dataset): scores} of 50,000 updates. Return the rows."""
    for i, ((script, env), scores) in enumerate(results.items()):
        result = make_result(script, env, scores, updates=50_000)
        (folder / f"{i}.json").write_text(json.dumps(result))
    return reading.read_results(folder)


def test_the_board_ranks_and_marks_the_best(tmp_path):
    hopper, cheetah = board.DATASETS[:2]
    rows = board_of(
        tmp_path,
        {
            ("bc", hopper): (40.0, 42.0, 41.0),
            ("iql", hopper): (80.0, 70.0, 90.0),
            ("td3_bc", hopper): (75.0, 76.0, 77.0),
            ("bc", cheetah): (43.0, 43.0, 43.0),
            ("td3_bc", cheetah): (44.0, 45.0, 46.0),
        },
    )
    assert board.ranks(rows) == {"BC": [3, 2], "IQL": [1], "TD3+BC": [2, 1]}
    # IQL's standard error on Hopper is 10 / sqrt(3) = 5.8, so TD3+BC's 76 lies within it of 80.
    assert board.among_the_best(rows) == {
        *(("IQL", hopper), ("TD3+BC", hopper), ("TD3+BC", cheetah)),
    }
    table = board.board_table(rows, 50_000).splitlines()
    assert table[2].startswith("| IQL | **80.0 ± 8.2** | - | 1.0 (of 1) |")
    assert table[3].startswith("| TD3+BC | **76.0 ± 0.8** | **45.0 ± 0.8** | 1.5 (of 2) |")
    assert table[4].startswith("| BC | 41.0 ± 0.8 | 43.0 ± 0.0 | 2.5 (of 2) |")
    text = board.missing(rows, 50_000)
    assert f"- `{hopper}`: POR, SPOT" in text
    assert f"- `{cheetah}`: POR, IQL, SPOT" in text
    assert "PPO" not in text


def test_the_board_has_no_other_data(tmp_path):
    rows = board_of(tmp_path, {("iql", "rebuilt/hopper/medium-v0"): (80.0, 70.0)})
    assert board.board_rows(rows, 50_000) == []
    assert board.board_text(rows, {}) == "There are no results yet."


def test_a_single_seed_on_the_board_has_no_rank(tmp_path):
    hopper = board.DATASETS[0]
    rows = board_of(tmp_path, {("bc", hopper): (40.0, 42.0), ("iql", hopper): (80.0,)})
    assert board.ranks(rows) == {"BC": [1], "IQL": []}
    assert board.among_the_best(rows) == {("BC", hopper)}
    table = board.board_table(rows, 50_000).splitlines()
    assert table[2].startswith("| BC | **41.0 ± 1.0** | 1.0 (of 1) |")
    assert table[3].startswith("| IQL | 80.0 (1 seed) | - |")


def test_the_board_as_csv(tmp_path):
    rows = board_of(tmp_path, {("bc", board.DATASETS[0]): (40.0, 42.0)})
    (cells,) = csv.DictReader(io.StringIO(board.board_csv(rows)))
    assert (cells["algorithm"], cells["updates"], cells["seeds"]) == ("BC", "50000", "2")
    assert (float(cells["mean"]), float(cells["std"])) == (41.0, 1.0)
    assert cells["scores"] == "40.000 42.000"
    assert (float(cells["low"]), float(cells["high"])) == (40.0, 42.0)


def test_the_interval_of_a_single_seed_is_missing(tmp_path):
    rows = board_of(tmp_path, {("bc", board.DATASETS[0]): (40.0,)})
    (cells,) = csv.DictReader(io.StringIO(board.board_csv(rows)))
    assert (cells["low"], cells["high"], cells["scores"]) == ("", "", "40.000")


def test_the_board_has_what_an_update_costs(tmp_path, monkeypatch):
    timed = {"code": "ours", "script": "bc", "seeds": 1, "updates": 10, "seconds": [0.02]}
    slower = timed | {"execution": "eager", "seconds": [0.05]}
    theirs = timed | {"code": "CORL", "execution": "eager", "seconds": [0.01]}
    five = timed | {"seeds": 5, "execution": "graph", "seconds": [0.01]}
    numbers = [{"rows": [timed | {"execution": "compile"}, slower, theirs, five]}]
    monkeypatch.setattr(board, "readme_numbers", lambda: numbers)
    hopper = board.DATASETS[0]
    rows = board_of(tmp_path, {("bc", hopper): (40.0, 42.0), ("iql", hopper): (80.0, 80.0)})
    table = board.board_table(rows, 50_000).splitlines()
    assert table[0].endswith("| mean rank | ms per update |")
    assert table[2].endswith("| 1.0 (of 1) | - |") and table[3].endswith("| 2.0 (of 1) | 2.0 |")


def test_the_board_has_what_is_published(tmp_path):
    hopper, cheetah = board.DATASETS[:2]
    scores = {("td3_bc", hopper): (40.0,), ("iql", cheetah): (40.0,)}
    scores |= {("sac", hopper): (9.0,), ("bc", hopper): (9.0,)}
    of = {row.script: row for row in board_of(tmp_path, scores)}

    def renamed(row, script: str, label: str):
        return dataclasses.replace(row, script=script, label=label, plain_label=label)

    rows = [
        of["td3_bc"],
        renamed(of["iql"], "onestep", "One-step RL (alpha 1.0)"),
        renamed(of["sac"], "rebrac", "ReBRAC"),
        renamed(of["bc"], "awr", "AWR"),
    ]
    table = board.published_table(rows, 50_000, papers.read_paper_scores()).splitlines()
    assert table[2:] == [
        "| One-step RL | - | 59.6 ± 2.5 | - | 48.4 ± 0.1 |",
        "| ReBRAC | - | 102.3 ± 0.2 | - | 64.0 ± 0.7 |",  # of a re-run
        "| TD3+BC | 32.1 ± 3.7 (d3rlpy hopper-medium-v0) | 59.3 ± 4.2 | - | 48.3 ± 0.3 |",
    ]
    assert board.published_table(rows, 50_000, {}).count("\n") == 2  # TD3+BC's curve
    assert board.published_table([], 50_000, {}) == ""


def test_the_picture_of_the_board(tmp_path):
    hopper, cheetah = board.DATASETS[:2]
    scores = {("bc", hopper): (40.0, 42.0, 47.0), ("iql", hopper): (80.0,)}
    rows = board_of(tmp_path, scores | {("bc", cheetah): (43.0, 44.0)})
    figure = board.draw_board(rows, "After 50,000 updates")
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == [
        "hopper medium-snapshot5",
        "halfcheetah medium",
    ]
    assert [label.get_text() for label in left.get_yticklabels()] == ["BC", "IQL"]
    drawn = [tuple(np.round(line.get_xdata(), 6)) for line in left.lines]
    assert (40.0, 42.0, 47.0) in drawn and (40.0, 47.0) in drawn and (43.0,) in drawn
    assert drawn.count((80.0,)) == 1  # no mean of a single seed
    assert board.figure_name(50_000) == "board-50k.png"


def test_the_board_has_the_first_target_and_says_so(tmp_path):
    hopper, cheetah = board.DATASETS[:2]
    for env, targets in ((hopper, (3600.0, 1800.0)), (cheetah, (6000.0, 12000.0))):
        result = make_asked(env=env, targets=targets, updates=50_000, scores=(40.0, 42.0))
        name = env.split("/")[1]
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    rows = reading.read_results(tmp_path)
    assert len(rows) == 4
    assert board.ranks(board.board_rows(rows, 50_000)) == {"DT": [1, 1]}
    text = board.board_text(rows, {})
    assert "| DT | **41.0 ± 1.0** | **41.0 ± 1.0** | 1.0 (of 2) |" in text
    assert "DT: asked for the first of their targets" in text
    cells = list(csv.DictReader(io.StringIO(board.board_csv(rows))))
    assert [cell["target"] for cell in cells] == ["6000", "3600"]
