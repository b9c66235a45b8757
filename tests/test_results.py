"""Tests of benchmarks/run.py, tables.py, check.py and of the results that README shows.

A grid of these tests trains with a stand-in for a script: it obeys the same options, checkpoints,
stops and writes the same result.json, but an update is a pause. One test runs por.py itself.

    python -m pytest tests/test_results.py
"""

import csv
import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import check  # noqa: E402
import peers  # noqa: E402
import por_mix  # noqa: E402
import run  # noqa: E402
import tables  # noqa: E402

REFS = {"hopper": (-20.272305, 3234.3), "halfcheetah": (-280.178953, 12135.0),
        "walker2d": (1.629008, 4592.3)}


# ---- Results as a script writes them

def result_of(script="bc", env="rebuilt/hopper/medium-v0", scores=(50.0, 52.0, 54.0), seed=0,
              updates=100_000, source=None, online=None, args=(), scored=True) -> dict:
    """A finished run's result that agrees with itself; `scores`: of the last evaluation, by seed.

    online: scores after as many online steps.
    """
    name = re.split("[-/]", env.removeprefix("rebuilt/"))[0]
    low, high = ({"antmaze": (0, 1)} | REFS)[name] if scored else (None, None)
    source = source or ("rebuilt" if env.startswith("rebuilt/") else "D4RL file")
    evaluations = []
    for phase, ends in (("train", scores), ("online", online)):
        first = 0 if phase == "train" else updates // 10
        for at in range(first, updates + 1, updates // 10) if ends else ():
            now = [float(s) * (1 - 0.9 ** (1 + 10 * at / updates)) if at < updates else float(s)
                   for s in ends]
            returns = [low + (high - low) * s / 100 for s in now] if scored else now
            evaluations.append({"phase": phase, "update": at,
                                "episodes": 100 if at == updates else 10, "returns": returns,
                                "scores": now})
    own = {"guide": "weighted", "tau": 0.5, "alpha": 3.0, "policy_lr": 1e-3, "layer_norm": True}
    given = {"env": env, "seed": seed, "num_seeds": len(scores), "num_updates": updates,
             "eval_every": updates // 10, "eval_episodes": 10, "final_eval_episodes": 100,
             "precision": "fp32", "execution": "eager", "batch_size": 256}
    given |= own if script == "por" else {}
    given |= {"online_steps": updates} if online else {}
    last = np.mean([e["scores"] for e in evaluations[-10:]], 0).tolist()
    task = {"name": env, "source": source, "ref_min": low, "ref_max": high, "horizon": 1000,
            "env_id": "Hopper-v4", "transitions": 1_000_000, "episodes": 2000,
            "fingerprint": "f" * 64, "data_return": 1400.0, "data_std": 400.0, "data_score": 45.0}
    part = {"commit": "0123456789abcdef0123456789abcdef01234567", "device": "cpu (x86_64)",
            "threads": 1, "versions": {}, "from": [0, 0], "to": [0, updates],
            "started": "2026-01-01 00:00:00", "training_seconds": 1.0, "evaluation_seconds": 1.0}
    return {"script": script, "finished": True, "args": given | dict(args), "task": task,
            "seeds": [*range(seed, seed + len(scores))], "phase": 0, "step": updates,
            "final": {**evaluations[-1], "scores": [*evaluations[-1]["scores"]]},
            "last_ten_scores": last, "evaluations": evaluations, "parts": [part]}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Settings of scripts that need not be there yet: only POR's are read from its file."""
    read = tables.script_settings
    common = {"env": "x", "batch_size": 256, "top_fraction": 1.0, "tau": 0.7}
    monkeypatch.setattr(tables, "script_settings", lambda path: (
        read(path) if path.stem == "por" else (common, (), [])))


@pytest.fixture
def folder(tmp_path):
    """An empty results folder, and a README with the markers beside it."""
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"# Title\n\n{tables.BEGIN}\n{tables.END}\n\nMore.\n")
    (tmp_path / "claims.csv").write_text("result,claim,than\n")
    return tmp_path


def put(folder: Path, name: str, result: dict) -> Path:
    path = folder / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1))
    return path


def paths(folder: Path, *more: str) -> list[str]:
    return ["--results", str(folder / "results"), "--readme", str(folder / "README.md"), *more]


def checked(folder: Path, capsys) -> tuple[str, str]:
    """What check.py prints, and how it ends ('' if well)."""
    capsys.readouterr()
    try:
        check.main(paths(folder, "--claims", str(folder / "claims.csv")))
    except SystemExit as stop:
        assert isinstance(stop.code, str) and stop.code  # so the exit status is not zero
        return capsys.readouterr().out, stop.code
    return capsys.readouterr().out, ""


def read(folder: Path) -> list[tables.Row]:
    return tables.read_results(folder / "results")[0]


# ---- Statistics

@pytest.mark.parametrize("scores, mean", [
    (range(8), 3.5), ([0, 0, 5, 7, 90, 1000, 6, 4], 5.5), ([1, 2, 6], 3.0), ([3], 3.0),
    ([1, 2, 3, 4, 100], 3.0)])
def test_interquartile_mean(scores, mean):
    """Cut off are floor(n/4) values at each end, so of three none and of five one."""
    assert tables.iqm(np.array([*scores], float)) == pytest.approx(mean)
    assert tables.iqm(np.random.default_rng(0).permutation([*scores])) == pytest.approx(mean)


def test_pooled_iqm_is_over_runs_and_tasks():
    scores = np.array([[0, 90], [10, 100], [50, 70], [60, 40]], float)
    assert tables.pooled_iqm(scores) == pytest.approx((40 + 50 + 60 + 70) / 4)
    assert tables.pooled_iqm(np.stack([scores, scores + 1])) == pytest.approx([55, 56])


def test_bootstrap_against_all_resamplings():
    """Three runs of two tasks: all 27 x 27 resamplings, each as likely, give the true interval."""
    scores = np.array([[0, 100], [30, 180], [50, 190]], float)
    draws = [*itertools.product(range(3), repeat=3)]
    every = [tables.iqm(np.concatenate([scores[list(a), 0], scores[list(b), 1]]))
             for a in draws for b in draws]
    low, high = tables.bootstrap(tables.pooled_iqm, scores)
    assert (low, high) == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=1)
    assert low < tables.pooled_iqm(scores) < high


def test_bootstrap_resamples_within_tasks():
    """Runs that agree leave no doubt, however far apart the tasks are."""
    scores = np.array([[0.0, 100.0, 40.0]] * 5)
    assert tables.bootstrap(tables.pooled_iqm, scores) == pytest.approx((tables.pooled_iqm(scores),)
                                                                        * 2)


def test_bootstrap_of_a_mean_has_the_known_width():
    """Of n normal values: 1.96 deviations / sqrt(n) to each side."""
    x = np.random.default_rng(1).normal(10, 2, (400, 1))
    low, high = tables.bootstrap(lambda s: s.mean((-2, -1)), x, reps=20_000)
    half = 1.96 * x.std() / 400**0.5
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.15 * half)


def test_probability_of_improvement():
    column = lambda *values: np.array(values, float)[:, None]
    assert check.improvement(column(5, 6, 7), column(1, 2, 3)) == 1
    assert check.improvement(column(1, 5), column(3, 5)) == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    two = check.improvement(np.array([[5.0, 1.0]]), np.array([[1.0, 5.0]]))
    assert two == 0.5  # one task won, one lost


def test_permutation_test():
    x, y = np.array([7.0, 8.0, 9.0]), np.array([1.0, 2.0, 3.0])
    assert check.permutation_p([(x, y)]) == pytest.approx(1 / 20)
    assert check.permutation_p([(y, x)]) == 1
    assert check.permutation_p([(x, y), (x + 50, y + 50)]) == pytest.approx(1 / 400)
    assert check.permutation_p([(x, x)]) == pytest.approx(
        np.mean([np.mean(a) >= x.mean() for a in itertools.combinations([*x, *x], 3)]))


def test_sampled_permutations_agree_with_all(monkeypatch):
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0.8, 1, 4), rng.normal(0, 1, 5)), (rng.normal(0.5, 1, 4), np.zeros(5))]
    exact = check.permutation_p(pairs)
    monkeypatch.setattr(check, "MOST_SPLITS", 15_000)
    assert check.permutation_p(pairs) == pytest.approx(exact, abs=0.01) and 0.01 < exact < 0.5


# ---- Published numbers

def test_no_target_is_of_v0_or_doubtful():
    with tables.PAPER_SCORES.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    used = [row for row in rows if row["use"]]
    assert len(rows) > 1_300 and len(used) > 500
    assert {row["use"] for row in used} == {"paper", "rerun"}
    for row in used:
        assert row["unit"] == "normalized_score" and not row["dataset"].endswith("-v0"), row
        assert not {"version-doubtful", "version-corrected", "best-column"} & {
            *row["doubt"].split()}, row
        assert row["use"] == "paper" or row["source"] in ("corl_readme", "por_readme")
    tables.read_paper_scores()  # refuses two numbers for one use


def test_every_source_and_doubt_is_explained():
    notes = (BENCHMARKS / "PAPER_SCORES.md").read_text()
    with tables.PAPER_SCORES.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    for name in {r["source"] for r in rows} | {d for r in rows for d in r["doubt"].split()}:
        assert f"| `{name}` |" in notes, name
    assert all(float(r["score"]) == float(r["score"]) for r in rows)


def test_the_numbers_of_por_on_hopper():
    targets = tables.read_paper_scores()
    number = lambda name, use: targets[name, "hopper-medium-v2", "offline", use]
    assert tables.published(number("por", "paper")) == "98.2 ± 1.6\\*"  # withdrawn, so the star
    assert tables.published(number("por", "rerun")) == "78.6"
    assert "superseded" in number("por", "paper")["doubt"]
    assert tables.published(number("iql", "paper")) == "66.2 ± 5.7"
    assert tables.published(number("iql", "rerun")) == "67.5 ± 3.8"


def test_two_numbers_for_one_use_are_refused(tmp_path):
    text = tables.PAPER_SCORES.read_text().splitlines()
    (tmp_path / "two.csv").write_text("\n".join([*text, text[-1]]))
    with pytest.raises(SystemExit, match="a second number"):
        tables.read_paper_scores(tmp_path / "two.csv")


# ---- Reading results

def test_a_sound_result_is_read(folder):
    put(folder, "a", result_of(scores=(50, 52, 57)))
    row, = read(folder)
    assert row.final.tolist() == [50, 52, 57] and row.seeds == [0, 1, 2] and row.stage == "train"
    assert row.group == "Rebuilt data" and row.updates == 100_000 and row.label == "BC"
    assert row.last_ten == pytest.approx(row.curve[-10:].mean(0))
    assert tables.spread(row.final) == "53.0 ± 2.9"  # divisor n


def test_the_untrained_policy_is_no_part_of_the_last_ten(folder):
    result = result_of(scores=(50, 52, 57))
    result["evaluations"] = [e for e in result["evaluations"] if e["update"] % 20_000 == 0]
    result["args"]["eval_every"] = 20_000
    del result["last_ten_scores"]  # as today's scripts
    put(folder, "a", result)
    row, = read(folder)
    assert row.at[0] == 0 and row.last_ten == pytest.approx(row.curve[1:].mean(0))


@pytest.mark.parametrize("where, value, words", [
    (("final", "scores", 0), 99.0, "final"),
    (("evaluations", 3, "scores", 1), 60.0, "update 30000: scores"),
    (("evaluations", 3, "returns", 1), 60.0, "update 30000: scores"),
    (("evaluations", 3, "scores", 1), None, "scores"),
    (("evaluations", 3, "scores"), [1.0], "1 scores of 3"),
    (("last_ten_scores", 2), 80.0, "last_ten_scores"),
    (("finished",), False, "not finished"), (("seeds", 0), 7, "seeds"),
    (("args", "num_updates"), 200_000, "up to 200,000"),
    (("evaluations", 4, "update"), 41_000, "not at every"),
    (("args", "final_eval_episodes"), 10, "100 episodes"), (("task", "ref_min"), 0.0, "scores"),
    (("args", "eval_every"), "often", "another kind")])
def test_a_result_that_contradicts_itself_is_refused(folder, where, value, words):
    result = result_of()
    inner = result
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path = put(folder, "a", json.loads(json.dumps(result)))
    with pytest.raises(SystemExit, match=words) as stop:
        read(folder)
    assert path.name in str(stop.value) and "\n" not in str(stop.value)


def test_a_left_out_evaluation_is_noticed(folder):
    result = result_of()
    del result["evaluations"][2]
    put(folder, "a", result)
    with pytest.raises(SystemExit, match="not at every 10,000"):
        read(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"evaluations": []}'])
def test_a_damaged_file_is_refused(folder, text):
    (folder / "results" / "a.json").write_text(text)
    with pytest.raises(SystemExit, match="is not a run's result"):
        read(folder)


def test_an_older_result_is_read_and_named(folder):
    result = result_of(args={"run_dir": "runs/x"})
    for evaluation in [*result["evaluations"], result["final"]]:
        del evaluation["phase"]
    put(folder, "old", result)
    rows, notes = tables.read_results(folder / "results")
    assert rows[0].stage == "train" and "old.json" in notes[0] and "phase" in notes[0]


def test_different_builds_of_a_dataset_are_named(folder):
    put(folder, "a", result_of())
    other = result_of("iql")
    other["task"]["fingerprint"] = "e" * 64
    put(folder, "b", other)
    assert "built 2 times" in tables.read_results(folder / "results")[1][0]


@pytest.mark.parametrize("env, args, label, deviations", [
    ("rebuilt/halfcheetah/medium-v0", {}, "POR, guide weighted", {}),
    ("rebuilt/halfcheetah/medium-100k-v0", {}, "POR, guide weighted", {}),
    ("rebuilt/halfcheetah/medium-v0", {"tau": 0.9}, "POR, guide weighted, tau 0.9", {"tau": 0.9}),
    ("hopper-medium-v2", {}, "POR, guide weighted", {"guide": "weighted"}),
    ("hopper-medium-v2", {"guide": "q", "tau": 0.7, "alpha": 50.0, "layer_norm": False},
     "POR, guide q", {}),
    ("hopper-medium-v2", {"precision": "bf16", "execution": "compile", "device": "cpu"},
     "POR, guide weighted", {"guide": "weighted"}),
    ("rebuilt/halfcheetah/medium-v0", {"batch_size": 64}, "POR, guide weighted, batch size 64",
     {"batch_size": 64})])
def test_labels_name_what_was_set_by_hand(folder, env, args, label, deviations):
    put(folder, "a", result_of("por", env, args=args))
    row, = read(folder)
    assert (row.label, row.deviations) == (label, deviations)


def test_percent_bc_has_a_name_of_its_own(folder):
    put(folder, "a", result_of("bc", args={"top_fraction": 0.1}))
    row, = read(folder)
    assert (row.label, row.paper_name, row.deviations) == ("10% BC", "bc_10", {})


def test_settings_are_read_from_every_script(monkeypatch):
    monkeypatch.undo()  # the fixture's stand-in
    scripts = [path for path in sorted((ROOT / "algorithms").glob("*.py"))
               if path.name != "por_four_room.py"]  # which takes no dataset: no row of these tables
    assert len(scripts) > 6
    for path in scripts:
        defaults, names, rows = tables.script_settings(path)
        assert defaults["env"] and all(len(row) == 1 + len(names) for row in rows), path


def test_settings_may_use_constants_but_no_code(monkeypatch, tmp_path):
    monkeypatch.undo()
    path = tmp_path / "x.py"
    path.write_text("import torch\nRATE, WIDE = 1e-3, (3, 4)\nNET = torch.nn.Linear(3, 4)\n"
                    "class Args:\n    a: float = RATE\n    b: int | None = None\n    c: int\n"
                    "SETTING_NAMES = ('a', 'b', 'd')\nSETTINGS = [('*', RATE, *WIDE)]\n")
    assert tables.script_settings(path) == ({"a": 1e-3, "b": None}, ("a", "b", "d"),
                                            [("*", 1e-3, 3, 4)])
    for number, text in enumerate(("SETTINGS = open('y')", "class Args:\n    a: int = f()")):
        path = tmp_path / f"x{number}.py"
        path.write_text(text)
        with pytest.raises(SystemExit, match="made of constants"):
            tables.script_settings(path)
    with pytest.raises(SystemExit, match="no script gone.py"):
        tables.script_settings(tmp_path / "gone.py")


@pytest.mark.parametrize("dataset, suite", [
    ("rebuilt/hopper/medium-v0", "rebuilt medium-v0"), ("hopper-medium-replay-v2",
                                                        "medium-replay-v2"),
    ("rebuilt/hopper/medium-100k-v0", "rebuilt medium-100k-v0"), ("Pendulum-v1", "v1"),
    ("D4RL/pointmaze/umaze-v2", "D4RL pointmaze-v2"), ("antmaze-umaze-diverse-v2", "antmaze-v2")])
def test_suites(dataset, suite):
    assert tables.suite(dataset) == suite


# ---- Tables, README, pictures

def three_tasks(folder: Path, updates=100_000) -> None:
    """BC and POR on three rebuilt tasks and IQL on one, POR above BC."""
    for i, env in enumerate(REFS):
        name = f"rebuilt/{env}/medium-v0"
        put(folder, f"bc-{env}", result_of("bc", name, (40 + i, 41, 43), updates=updates))
        put(folder, f"por-{env}", result_of("por", name, (50 + i, 53, 55), updates=updates))
    put(folder, "iql-hopper", result_of("iql", scores=(49, 50, 60), updates=updates))


def test_readme_is_written_and_then_agrees(folder, capsys):
    three_tasks(folder)
    put(folder, "d4rl", result_of("iql", "hopper-medium-v2", updates=1_000_000))
    tables.main(paths(folder))
    text = (folder / "README.md").read_text()
    assert text.startswith("# Title\n\n") and text.endswith("\n\nMore.\n")
    assert "| IQL | `rebuilt/hopper/medium-v0` | Hopper-v4 | 0-2 | 100,000 |" in text
    assert "0123456 |" in text and "cpu (x86_64), fp32" in text
    tables.main(paths(folder, "--check"))
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.*")}
    tables.main(paths(folder))  # nothing to do, nothing touched
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.*")}
    for path in (folder / "results").glob("*.png"):
        pixels = tables.plt.imread(path)
        assert min(pixels.shape[:2]) > 400 and pixels[..., :3].std() > 0.05, path
    assert len([*(folder / "results").glob("*.png")]) == 4


def test_rebuilt_data_never_stand_beside_a_published_number(folder):
    three_tasks(folder)
    put(folder, "d4rl", result_of("iql", "hopper-medium-v2"))
    put(folder, "v0", result_of("iql", "hopper-medium-v0"))
    rows, notes = tables.read_results(folder / "results")
    text = tables.block(rows, notes, tables.read_paper_scores())
    d4rl, rebuilt = text.split("### Rebuilt data")
    assert "| paper | best re-run |" in d4rl and "| 67.5 ± 3.8 |" in d4rl
    assert re.search(r"hopper-medium-v0`.*\| - \| - \|", d4rl)  # no number for that version
    header = next(line for line in rebuilt.splitlines() if line.startswith("| algorithm"))
    assert "paper" not in header and "re-run" not in header and "not** D4RL's files" in rebuilt


def test_rebuilt_antmaze_is_shown_beside_the_papers_v2_numbers_as_other_data(folder):
    for updates, scores in ((30_000, (1, 2, 3)), (100_000, (30, 40, 50))):
        put(folder, f"iql-{updates}", result_of("iql", "rebuilt/antmaze/umaze-v0", scores,
                                                updates=updates))
    put(folder, "bc", result_of("bc", "rebuilt/antmaze/medium-play-v0", (7, 8, 9)))
    put(folder, "own", result_of("spot", "rebuilt/antmaze/my-v0", (7, 8, 9)))  # not D4RL's name
    three_tasks(folder)
    rows, notes = tables.read_results(folder / "results")
    text = tables.block(rows, notes, tables.read_paper_scores())
    beside = text.partition("### AntMaze, rebuilt with D4RL's policy, beside the papers")[2]
    assert "reproduces" in beside and "v0 |" not in beside.replace("-v0` |", "")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in beside.splitlines()
             if line.startswith("| ") and "---" not in line]
    assert [line[:1] + line[2:3] + line[4:] for line in lines[1:]] == [
        ["BC", "100,000", "8.0 ± 0.8", "`antmaze-medium-play-v2`", "0.4", "0.0 ± 0.0"],
        ["IQL", "100,000", "40.0 ± 8.2", "`antmaze-umaze-v2`", "89.6", "77.0 ± 5.5"]]
    assert "re-run" not in text.partition("### AntMaze, rebuilt")[0]


def test_builds_of_a_dataset_are_told_apart_and_mazes_have_no_behaviour_level(folder):
    for name, env, mark in (("a", "hopper/medium-v0", "aa"), ("b", "hopper/medium-v0", "bb"),
                            ("c", "walker2d/medium-v0", "cc"), ("d", "antmaze/umaze-v0", "dd")):
        result = result_of("bc", f"rebuilt/{env}")
        result["task"]["fingerprint"] = 32 * mark
        put(folder, name, result)
    rows, notes = tables.read_results(folder / "results")
    text = tables.block(rows, notes, tables.read_paper_scores())
    cells = {line.split("(benchmarks/results/")[1][0]: line.split(" | ")
             for line in text.splitlines() if "(benchmarks/results/" in line and line[0] == "|"}
    assert {name: (line[1], line[7]) for name, line in cells.items()} == {
        "a": ("`rebuilt/hopper/medium-v0` aaaaaaaa", "45.0"),
        "b": ("`rebuilt/hopper/medium-v0` bbbbbbbb", "45.0"),
        "c": ("`rebuilt/walker2d/medium-v0`", "45.0"), "d": ("`rebuilt/antmaze/umaze-v0`", "-")}


def test_a_file_of_that_name_is_not_d4rls(folder):
    """`--env hopper-medium-v2 --dataset-file my.hdf5` is scored as D4RL's, but is other data."""
    put(folder, "own", result_of("iql", "hopper-medium-v2", source="file my.hdf5"))
    put(folder, "d4rl", result_of("iql", "hopper-medium-v2"))
    targets = tables.read_paper_scores()
    assert {r.group: bool(tables.target(targets, r, "paper")) for r in read(folder)} == {
        "Other data": False, "D4RL's own data": True}


def test_a_wrong_number_makes_the_check_fail(folder, capsys):
    three_tasks(folder)
    tables.main(paths(folder))
    assert checked(folder, capsys)[1] == ""
    readme = folder / "README.md"
    right = readme.read_text()
    assert "53.3 ± 1.2" in right
    readme.write_text(right.replace("53.3 ± 1.2", "63.3 ± 1.2"))
    out, end = checked(folder, capsys)
    assert "63.3 ± 1.2" in end and "53.3 ± 1.2" in end and "tables.py" in end
    with pytest.raises(SystemExit, match="63.3 ± 1.2"):
        tables.main(paths(folder, "--check"))
    readme.write_text(right)
    assert checked(folder, capsys)[1] == ""
    # one number of a result contradicts the others; all of them changed contradict the README
    path = folder / "results" / "bc-hopper.json"
    good = path.read_text()
    wrong = json.loads(good)
    wrong["final"]["scores"][0] += 20
    path.write_text(json.dumps(wrong))
    assert "cannot be trusted" in checked(folder, capsys)[1]
    path.write_text(json.dumps(result_of("bc", scores=(60, 41, 43))))
    assert "README: " in checked(folder, capsys)[1]
    path.write_text(good)
    (folder / "results" / "rebuilt-100k-bars.png").write_bytes(b"another picture")
    assert "rebuilt-100k-bars.png" in checked(folder, capsys)[1]


def test_a_readme_without_markers_is_left_alone(folder):
    three_tasks(folder)
    for text in ("# No markers\n", f"{tables.END}\n{tables.BEGIN}\n", tables.BEGIN * 2):
        (folder / "README.md").write_text(text)
        with pytest.raises(SystemExit, match="results:begin"):
            tables.main(paths(folder))
        assert (folder / "README.md").read_text() == text
    assert not [*(folder / "results").glob("*.png")]


def test_aggregates_are_over_the_same_tasks(folder):
    three_tasks(folder)
    put(folder, "por-long", result_of("por", updates=200_000))  # other length, one task
    found = tables.aggregates(read(folder))
    assert [(suite, label, len(rows)) for suite, label, rows in found] == [
        ("rebuilt medium-v0", "BC", 3), ("rebuilt medium-v0", "POR, guide weighted", 3)]
    line = next(s for s in tables.aggregate_table(read(folder)).splitlines() if "| POR" in s)
    scores = np.array([[50, 53, 55], [51, 53, 55], [52, 53, 55]], float).T
    low, high = tables.bootstrap(tables.pooled_iqm, scores)
    assert f"| 3 | 3 | 100,000 | fp32 | {tables.pooled_iqm(scores):.1f} ({low:.1f} to {high:.1f})" \
        in line


def test_authors_settings_are_aggregated_across_words(folder):
    """POR has another guide on Hopper than elsewhere; the paper's mean is over both."""
    for env in REFS:
        args = {"guide": "q", "tau": 0.7, "alpha": 50.0, "layer_norm": False} if env == "hopper" \
            else {}
        put(folder, env, result_of("por", f"{env}-medium-v2", args=args))
    (_, label, rows), = tables.aggregates(read(folder))
    assert label == "POR, the authors' settings" and len(rows) == 3


def test_online_results_have_rows_of_their_own(folder):
    put(folder, "spot", result_of("spot", "hopper-medium-v2", (50, 60), online=(80, 90)))
    offline, online = read(folder)
    assert (offline.stage, offline.final.tolist()) == ("train", [50, 60])
    assert (offline.label, online.label) == ("SPOT, before online steps", "SPOT")
    assert (offline.paper_stage, online.paper_stage) == ("before", "after")
    assert (online.stage, online.final.tolist(), online.at[0]) == ("online", [80, 90], 10_000)
    text = tables.block([offline, online], [], {})
    assert text.index("### D4RL's own data, 100,000 updates\n") < text.index(
        "### D4RL's own data, 100,000 steps of online fine-tuning\n")
    tables.main(paths(folder))
    assert (folder / "results" / "d4rl-online-100k-curves.png").exists()


def test_lengths_and_precisions_are_kept_apart(folder):
    """No picture shows two bars of one name, and no table mixes long runs with short ones."""
    put(folder, "short", result_of())
    put(folder, "long", result_of(updates=1_000_000))
    put(folder, "bf16", result_of(updates=1_000_000, args={"precision": "bf16"}))
    short, long = tables.sections(read(folder))
    assert [tables.slug(part) for part in (short, long)] == ["rebuilt-100k", "rebuilt-1M"]
    assert [tables.shown(r, long) for r in long] == ["BC", "BC, fp32"]
    assert [tables.shown(r, short) for r in short] == ["BC"]
    other = dataclasses.replace(long[0], dataset="rebuilt/walker2d/medium-v0")
    for precision in ("bf16", "fp32", "auto"):  # one name, and colour, where nothing is to tell
        alone = dataclasses.replace(other, precision=precision)
        assert tables.shown(alone, [*long, alone]) == "BC"
    most = [*long, *[dataclasses.replace(other, precision="fp32")] * 2]
    assert [tables.shown(r, most) for r in long] == ["BC, bf16", "BC"], "the commonest has none"


def test_returns_without_reference_are_marked(folder):
    put(folder, "a", result_of("bc", "Pendulum-v1", (-200, -180), source="file x.hdf5",
                               scored=False))
    text = tables.block(*tables.read_results(folder / "results"), {})
    assert "### Other data, 100,000 updates" in text and ") (return) |" in text


def test_the_real_readme_shows_the_real_results(monkeypatch):
    monkeypatch.undo()
    readme = ROOT / "README.md"
    if tables.BEGIN not in readme.read_text():
        pytest.skip("README has no markers for the tables yet")
    assert tables.differences(tables.Args()) == []


def numbers_in(text: str, heading: str, row: str) -> list[str]:
    """Decimal numbers of the table's line under that heading that begins with `row`, sorted."""
    line = re.search(rf"^\| {re.escape(row)} \|(.*)$", text[text.index(heading):], re.M)[1]
    return sorted(re.findall(r"-?\d+\.\d+", line))


def test_the_tables_that_people_wrote_into_readme_hold_the_files_numbers():
    text, stored = (ROOT / "README.md").read_text(), {}
    for name in ("speed/peers", "demos/por_mix", "demos/por_four_room"):
        stored[name] = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    for script, name in peers.NAMES.items():
        found = [peers.milliseconds(timing) for timing in stored["speed/peers"]["timings"]
                 if (timing["script"], timing.get("asked", "fp32")) == (script, "fp32")]
        assert len(found) >= 3 and numbers_in(text, "### Speed on a CPU", name) == sorted(
            f"{ms:.2f}" for ms in found)
    final = stored["demos/por_mix"]["final"]
    mean = lambda x: (np.mean(x), por_mix.half_interval(np.array(x)))
    for variant, words in (("main", "main"), ("more", "more"), ("mix_o", "mix, pi of D_o"),
                           ("mix_e", "mix, pi of D_e (as printed)"), ("extra", "D_e alone (ours)")):
        scores = final["variants"][variant]["scores"]
        assert numbers_in(text, "### More data", words) == sorted(
            f"{x:.1f}" for x in (*scores, *mean(scores)))
    gains = {name: f"{gain['mean']:.1f} ± {gain['half']:.1f}" for name, gain in
             final["gains"].items()}
    told = " ".join(text.split())
    for mix in ("mix_o", "mix_e"):
        assert f"{gains[f'{mix} - main']} over main and {gains[f'{mix} - more']} over more" in told
    tasks = stored["demos/por_four_room"]["tasks"]
    for row, world in (("B, a river on A's way", "four-room-river"),
                       ("C, a key to fetch first", "four-room-key")):
        found = []
        for way in ("g and pi of A", "g anew, pi of A", "g and pi anew"):
            success = tasks[world][way]["success"]
            found += [f"{success['mean']:.2f}"]
            found += [f"{success['half_interval']:.2f}"] * (way != "g and pi of A")
        assert numbers_in(text, "### Stitching", row) == sorted(found)


def test_the_real_claims_hold(monkeypatch):
    monkeypatch.undo()
    rows = {r.file.stem: r for r in tables.read_results(BENCHMARKS / "results")[0]
            if r.stage == "train"}
    for claim in check.read_claims(check.CLAIMS):
        assert check.failure(claim, rows, tables.read_paper_scores()) is None, claim


# ---- The check against the papers

@pytest.mark.parametrize("scores, args, words", [
    ((65, 66, 68), {}, "matches paper and best re-run"), ((61, 62, 62), {}, "matches paper |"),
    ((90, 91, 92), {}, "no match"), ((66, 66), {}, "not comparable: 2 of 3 seeds"),
    ((66, 66, 66), {"tau": 0.9}, "not comparable: settings of its own: tau 0.9")])
def test_verdicts_on_d4rls_data(folder, scores, args, words):
    put(folder, "a", result_of("iql", "hopper-medium-v2", scores, updates=1_000_000, args=args))
    assert words in check.cells(read(folder), tables.read_paper_scores())


def test_a_number_without_spread_is_met_within_ours(folder):
    """The authors' 78.6 of POR has none."""
    own = {"guide": "q", "tau": 0.7, "alpha": 50.0, "layer_norm": False}
    targets = tables.read_paper_scores()
    for name, scores, words in (("near", (76, 79, 82), "matches best re-run"),
                                ("far", (70, 70.5, 71), "no match")):
        path = put(folder, name, result_of("por", "hopper-medium-v2", scores, updates=1_000_000,
                                           args=own))
        text = check.cells(read(folder), targets)
        assert words in text and "our spread, none printed" in text
        path.unlink()


def test_online_steps_after_a_short_offline_part_match_nothing(folder):
    for updates, own in ((100_000, {"offline updates": 100_000}), (1_000_000, {})):
        put(folder, "a", result_of("spot", "antmaze-umaze-v2", online=(98, 99, 100),
                                   updates=updates))
        before, after = read(folder)
        assert (before.stage, before.deviations) == ("train", {})
        assert (after.stage, after.deviations) == ("online", own)
        assert any("offline updates" in why for why in check.obstacles(after)) == bool(own)


def test_a_short_run_matches_nothing(folder):
    put(folder, "a", result_of("iql", "hopper-medium-v2", (66, 66, 66)))
    assert "100,000 of 1,000,000 updates" in check.cells(read(folder), tables.read_paper_scores())


@pytest.mark.parametrize("claim, words", [
    ("iql,reproduces,paper", ""), ("iql,reproduces,rerun", ""),
    ("short,reproduces,paper", "100,000 of"),
    ("high,reproduces,paper", "above"), ("none,reproduces,paper", "no result none"),
    ("bc,reproduces,paper", "no published number"),  # rebuilt data
    ("por-hopper,better,bc-hopper", ""), ("bc-hopper,better,por-hopper", "contradicted"),
    ("por-hopper;por-walker2d,better,bc-hopper;bc-walker2d", ""),
    ("iql-hopper,better,por-hopper", "p 0."), ("por-hopper,better,bc-walker2d", "differ in data"),
    ("por-hopper,better,gone", "no result gone"),
    ("por-hopper;por-hopper,better,bc-hopper;bc-hopper", "named twice"),
    ("por-hopper;iql-hopper,better,bc-hopper;bc-hopper", "two pairs are on one dataset")])
def test_claims(folder, capsys, claim, words):
    three_tasks(folder)
    for name, scores, updates in (("iql", (65, 66, 68), 1_000_000), ("high", (80, 81, 82),
                                  1_000_000), ("short", (66, 66, 67), 100_000)):
        put(folder, name, result_of("iql", "hopper-medium-v2", scores, updates=updates))
    put(folder, "bc", result_of("bc", "rebuilt/hopper/medium-100k-v0"))
    (folder / "claims.csv").write_text(f"result,claim,than\n{claim}\n")
    rows = {r.file.stem: r for r in read(folder)}
    why = check.failure(check.read_claims(folder / "claims.csv")[0], rows,
                        tables.read_paper_scores())
    assert words in why if words else why is None


def test_a_false_claim_makes_the_command_fail(folder, capsys):
    put(folder, "high", result_of("iql", "hopper-medium-v2", (80, 81, 82), updates=1_000_000))
    tables.main(paths(folder))
    (folder / "claims.csv").write_text("result,claim,than\nhigh,reproduces,paper\n")
    out, end = checked(folder, capsys)
    assert "claim: high reproduces paper" in end and "FALSE" in out
    assert checked(folder, capsys)[1]  # and again


@pytest.mark.parametrize("line", ["a,copies,paper", "a,reproduces,science", "a;b,better,c",
                                  ",better,c", "a,better,", "a;b,reproduces,paper"])
def test_an_unreadable_claim_is_refused(folder, line):
    (folder / "claims.csv").write_text(f"result,claim,than\n{line}\n")
    with pytest.raises(SystemExit, match="claims.csv:2"):
        check.read_claims(folder / "claims.csv")


def test_orderings_that_papers_claim(folder):
    three_tasks(folder)
    text = check.orderings(read(folder), tables.read_paper_scores())
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    found = {(cells[0], cells[1]): cells for cells in lines[2:]}
    cells = found["POR, guide weighted > BC", "rebuilt/hopper/medium-v0"]
    assert "98.2" in cells[2] and "52.9" in cells[2] and "hopper-medium-v2" in cells[2]
    assert re.search(r"\(78\.6.* and 53\.5", cells[2]), cells[2]  # the best re-runs
    assert cells[5:] == ["+11.3", "1.00 (1.00 to 1.00)", "0.050", "supported"]
    together = found["POR, guide weighted > BC", "rebuilt medium-v0, 3 tasks"]
    assert together[-2:] == ["<0.001", "supported"]  # 1 / 8000
    assert ("BC > POR, guide weighted", "rebuilt/hopper/medium-v0") not in found
    # three IQL seeds, one of them high, are no support against POR: 98.2 and 66.2 are claimed
    assert found["POR, guide weighted > IQL", "rebuilt/hopper/medium-v0"][-1].startswith("other")


def test_more_seeds_of_one_dataset_are_no_further_task(folder):
    for seed in (0, 5):
        for script, scores in (("bc", (50, 51, 52)), ("por", (60, 61, 62))):
            put(folder, f"{script}-{seed}", result_of(script, scores=scores, seed=seed))
    text = check.orderings(read(folder), tables.read_paper_scores())
    assert "POR, guide weighted > BC" in text and "tasks" not in text


def test_orderings_need_the_same_data_and_length(folder):
    put(folder, "a", result_of("bc"))
    put(folder, "b", result_of("por", updates=200_000))
    put(folder, "c", result_of("bc", "hopper-medium-v2"))
    put(folder, "d", result_of("por", "hopper-medium-v2"))
    assert "No two results" in check.orderings(read(folder), tables.read_paper_scores())


# ---- The grid

STAND_IN = '''
import argparse, json, signal, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
import result_file
parser = argparse.ArgumentParser()
for name, kind in dict(env=str, seed=int, num_seeds=int, num_updates=int, run_dir=Path,
                       tau=float, pause=float, checkpoint_every=int).items():
    parser.add_argument("--" + name.replace("_", "-"), type=kind, default=0)
args = parser.parse_args()
path, stop = args.run_dir / "result.json", []
signal.signal(signal.SIGTERM, lambda n, _: (stop.append(n), signal.signal(n, signal.SIG_DFL)))
step = json.loads(path.read_text())["step"] if path.exists() else 0
print("begins at", step)
if "broken" in args.env:
    sys.exit("the data are broken")
while True:
    result = result_file.make(args, step)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(path)
    if step == args.num_updates:
        break
    if stop:
        time.sleep(0.2)  # as a checkpoint takes its time; a second signal would end it
        print("stopped at", step)
        sys.exit(143)
    time.sleep(args.pause)
    step += args.num_updates // 10
'''
RESULT_FILE = '''
def make(args, step):
    every, seeds = args.num_updates // 10, range(args.seed, args.seed + args.num_seeds)
    scores = lambda at: [10.0 + seed + at / args.num_updates for seed in seeds]
    evaluations = [{"phase": "train", "update": at, "episodes": 5, "scores": scores(at),
                    "returns": [2 * s for s in scores(at)]} for at in range(0, step + 1, every)]
    given = {k: v for k, v in vars(args).items() if k != "run_dir"}
    return {"script": "quick", "finished": step == args.num_updates, "seeds": [*seeds],
            "args": given | {"eval_every": every, "final_eval_episodes": 5, "precision": "fp32"},
            "task": {"name": args.env, "source": "rebuilt", "ref_min": 0, "ref_max": 200,
                     "env_id": "Hopper-v4", "fingerprint": "a", "data_score": 12.0},
            "step": step, "phase": 0, "evaluations": evaluations,
            "final": evaluations[-1] if step == args.num_updates else None,
            "parts": [{"commit": "abc", "device": "cpu", "threads": 1}]}
'''


@pytest.fixture
def grid(tmp_path, monkeypatch, capsys):
    """grid(*words): run.py with the stand-in `quick`; returns (exit code or text, stdout)."""
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "quick.py").write_text(
        STAND_IN.replace("TESTS", repr(str(tmp_path))))
    (tmp_path / "result_file.py").write_text(RESULT_FILE)
    monkeypatch.setattr(run, "ALGORITHMS", tmp_path / "algorithms")
    monkeypatch.setattr(run, "POLL", 0.02)
    monkeypatch.chdir(tmp_path)

    def call(*words, algorithms="quick") -> tuple[str | int, str]:
        capsys.readouterr()
        try:
            run.main(["--algorithms", algorithms, "--num-seeds", "2", "--num-updates", "100",
                      "--jobs", "2", "--results", "results", *words])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out
    return call


THREE = ("--datasets", "rebuilt/a/medium-v0", "rebuilt/b/medium-v0", "rebuilt/c/medium-v0")


def starts(pattern: str = "*") -> dict[str, int]:
    """Run folder -> how often its script was started."""
    return {path.parent.name: path.read_text().count("$ python")
            for path in sorted(Path("runs/grid").glob(f"{pattern}/log.txt"))}


def test_a_grid_runs_what_is_missing(grid):
    code, out = grid(*THREE)
    results = sorted(Path("results").iterdir())
    assert code == 0 and "3 cells, 0 done, 3 to run" in out
    assert [p.name for p in results] == [f"quick-rebuilt-{x}-medium-v0-100.json" for x in "abc"]
    assert all(not tables.complaints(json.loads(p.read_text())) for p in results)
    assert "11.5 ± 0.5" in out and [*starts().values()] == [1, 1, 1]
    code, out = grid(*THREE)
    assert code == 0 and "3 done, 0 to run" in out and [*starts().values()] == [1, 1, 1]


def test_a_deleted_result_is_made_anew_and_no_other(grid):
    grid(*THREE)
    results = sorted(Path("results").iterdir())
    text = results[1].read_text()
    stamps = {p: p.stat().st_mtime_ns for p in results}
    results[1].unlink()
    for path in Path("runs/grid").glob("*-b-*/*"):  # as in a fresh clone, which has no run folders
        path.unlink()
    code, out = grid(*THREE)
    assert code == 0 and "2 done, 1 to run" in out
    assert results[1].read_text() == text
    changed = {p for p in results if p.stat().st_mtime_ns != stamps[p]}
    assert changed == {results[1]} and [*starts("*-b-*").values()] == [1]
    assert [*starts("*-a-*").values()] + [*starts("*-c-*").values()] == [1, 1]


def start_grid(folder: Path, *words: str) -> subprocess.Popen:
    """The same command in a process of its own."""
    code = ("import sys, pathlib; sys.path.insert(0, sys.argv[1]); import run; "
            "run.ALGORITHMS = pathlib.Path('algorithms'); run.POLL = 0.05; run.main(sys.argv[2:])")
    words = ["--algorithms", "quick", "--num-seeds", "2", "--num-updates", "100", "--jobs", "2",
             "--results", "results", *words]
    return subprocess.Popen([sys.executable, "-c", code, str(BENCHMARKS), *words], cwd=folder,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def steps() -> dict[str, int]:
    return {p.parent.name: json.loads(p.read_text())["step"]
            for p in Path("runs/grid").glob("*/result.json")}


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels let the cells of a killed grid "
                                                    "finish their work")
def test_killed_in_the_middle_and_finished(grid, tmp_path):
    slow = ("--", "--pause", "0.2")
    process = start_grid(tmp_path, *THREE, *slow)
    wait_for(lambda: sum(step >= 20 for step in steps().values()) == 2)
    process.kill()
    process.wait()
    idle = lambda: not [p for p in Path("runs/grid").glob("*/lock") if locked(p)]
    wait_for(idle)  # its cells went with it, after a checkpoint
    begun = steps()
    assert len(begun) == 2 and all(20 <= step < 100 for step in begun.values()), begun
    code, out = grid(*THREE, *slow)
    assert code == 0 and "3 to run" in out and len([*Path("results").iterdir()]) == 3
    for name, step in begun.items():  # they went on where they stood
        text = (Path("runs/grid") / name / "log.txt").read_text()
        assert f"stopped at {step}\n$ python" in text and f"begins at {step}\n" in text, text


def locked(path: Path) -> bool:
    with path.open() as file:
        try:
            run.fcntl.flock(file, run.fcntl.LOCK_EX | run.fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_asked_to_stop_the_cells_write_checkpoints(grid, tmp_path):
    process = start_grid(tmp_path, *THREE, "--", "--pause", "0.12")
    wait_for(lambda: sum(step >= 10 for step in steps().values()) == 2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM and "stopped" in out, out
    assert "Traceback" not in out and not Path("results").exists()
    assert all(step < 100 for step in steps().values()) and len(steps()) == 2


def test_a_result_that_cannot_be_kept_is_a_failure_and_the_others_go_on(grid, monkeypatch):
    def keep(cell, text):
        if "-a-" in cell.name:
            raise OSError(28, "No space left on device", str(cell.result))
        kept(cell, text)

    kept = run.keep
    monkeypatch.setattr(run, "keep", keep)
    code, out = grid(*THREE)
    assert code == "1 of 3 cells failed; the same command tries them again"
    assert "failed: its result cannot be kept: [Errno 28] No space left" in out
    assert len([*Path("results").iterdir()]) == 2


def test_a_failed_cell_does_not_stop_the_others(grid):
    code, out = grid("--datasets", "rebuilt/broken/x-v0", *THREE[1:])
    assert code == "1 of 4 cells failed; the same command tries them again"
    assert "failed: code 1, the data are broken (runs/grid/quick-rebuilt-broken" in out
    assert len([*Path("results").iterdir()]) == 3
    code, out = grid("--datasets", "rebuilt/broken/x-v0", *THREE[1:])
    assert "3 done, 1 to run" in out and str(code).startswith("1 of 4")


def test_the_commands_of_a_dry_run_are_what_runs(grid):
    code, out = grid(*THREE, "--dry-run", "--", "--tau", "0.9")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3 and not Path("runs").exists()
    assert re.fullmatch(
        r"OMP_NUM_THREADS=\d+ python algorithms/quick.py --env rebuilt/a/medium-v0 --seed 0 "
        r"--num-seeds 2 --num-updates 100 --tau 0.9 --run-dir "
        r"runs/grid/quick-rebuilt-a-medium-v0-100-tau-0.9-seeds-0-1", lines[0])
    grid("--datasets", "rebuilt/a/medium-v0", "--", "--tau", "0.9")
    log = Path("runs/grid/quick-rebuilt-a-medium-v0-100-tau-0.9-seeds-0-1/log.txt").read_text()
    assert log.splitlines()[0] == "$ " + lines[0].partition(" ")[2]
    code, out = grid(*THREE, "--dry-run", "--", "--tau", "0.9")
    assert out.splitlines()[0].endswith(
        "  # done: results/quick-rebuilt-a-medium-v0-100-tau-0.9.json")


def test_options_make_other_cells_but_not_those_of_speed(grid):
    name = lambda *own: Path(run.plan(run.Args(("quick",), ("d",)), [*own])[0].result).stem
    assert name() == "quick-d" and name("--tau", "0.9") == name("--tau=0.9") == "quick-d-tau-0.9"
    assert name("--device", "cpu", "--execution", "compile") == "quick-d"
    plan = lambda **more: run.plan(run.Args(("quick",), ("d",), **more), [])[0].name
    assert plan(num_updates=100_000) == "quick-d-100k" and plan(num_updates=1_500) == "quick-d-1500"
    assert plan(seed=5) == "quick-d-from-seed-5"


def test_more_seeds_are_as_good_and_fewer_are_not(grid):
    one = THREE[:2]
    grid(*one)
    assert "1 done, 0 to run" in grid(*one, "--num-seeds", "1")[1]
    code, out = grid(*one, "--num-seeds", "3")
    assert code == 0 and "0 done, 1 to run" in out
    assert json.loads(next(Path("results").iterdir()).read_text())["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("change", [
    lambda r: r.update(finished=False), lambda r: r.update(script="other"),
    lambda r: r["args"].update(num_updates=50), lambda r: r.pop("args"),
    lambda r: r["args"].update(tau=0.5)])
def test_a_file_that_is_not_the_cells_result_is_replaced(grid, capsys, change):
    words = (*THREE[:2], "--", "--tau", "9e-1")
    grid(*words)
    path = next(Path("results").iterdir())
    good = path.read_text()
    result = json.loads(good)
    change(result)
    path.write_text(json.dumps(result))
    assert "0 done, 1 to run" in grid(*words)[1] and path.read_text() == good


def test_two_grids_share_a_folder(grid, tmp_path):
    """The second one waits for the first one's cell and finds it finished."""
    words = (*THREE[:2], "--", "--pause", "0.1")
    process = start_grid(tmp_path, *words)
    wait_for(lambda: steps())
    code, out = grid(*words)
    first, _ = process.communicate(timeout=90)
    assert code == 0 and process.returncode == 0, first
    log = next(Path("runs/grid").glob("*/log.txt")).read_text()
    assert log.index("waiting: another process") < log.index("begins at 100")


@pytest.mark.parametrize("words, complaint", [
    (["--datasets", "nothing/*"], "no local Minari dataset or D4RL name fits"),
    (["--datasets", "d", "--jobs", "0"], "--jobs must be at least 1"),
    (["--datasets", "d", "--num-updates", "0"], "--num-updates must be at least 1"),
    (["--datasets", "d", "--", "--seed", "1"], "put it before --"),
    (["--datasets", "d", "--", "--num_seeds=1"], "put it before --"),
    (["--datasets", "d", "--", "--run-dir", "x"], "this command sets it"),
    (["--datasets", "d", "--", "--dataset-file", "x"], "named datasets"),
    (["--datasets", "d", "--", "tau"], "no option")])
def test_run_says_what_is_wrong(grid, monkeypatch, words, complaint):
    monkeypatch.setattr(run, "known_datasets", lambda script: ["rebuilt/hopper/medium-v0"])
    code, out = grid(*words)
    assert complaint in code and "\n" not in code and not Path("runs").exists()


def test_an_absent_script_is_named(grid):
    assert "there are quick" in grid("--datasets", "d", algorithms="absent")[0]


@pytest.mark.filterwarnings("ignore:.*Hopper-v4 is out of date")
def test_patterns(isolated, tiny_minari, hopper):
    """Local Minari datasets and D4RL's names, each once and in the order of the patterns."""
    for name in ("rebuilt/hopper/medium-v0", "rebuilt/hopper/medium-100k-v0"):
        tiny_minari(name, hopper(60, 20))
    known = lambda: run.known_datasets("por")
    assert run.expand(("rebuilt/*/medium-v0",), known) == ["rebuilt/hopper/medium-v0"]
    assert run.expand(("hopper-medium*", "rebuilt/*"), known) == [
        "hopper-medium-expert-v2", "hopper-medium-replay-v2", "hopper-medium-v2",
        "rebuilt/hopper/medium-100k-v0", "rebuilt/hopper/medium-v0"]
    assert run.expand(("b", "a", "b"), lambda: pytest.fail("no pattern, no look")) == ["b", "a"]


@pytest.mark.filterwarnings("ignore:.*Hopper-v4 is out of date")
def test_a_grid_of_por(isolated, tiny_minari, hopper, monkeypatch):
    """The script itself: what it writes is a result that tables.py trusts."""
    tiny_minari("rebuilt/hopper/medium-v0", hopper(200, 20))
    run.main([*"--algorithms por --datasets rebuilt/hopper/medium-v0 --num-seeds 2 --num-updates "
              "40 --jobs 1 --results results -- --hidden 8 --execute-hidden 8 --batch-size 4 "
              "--eval-every 20 --eval-episodes 1 --final-eval-episodes 2 --guide weighted "
              "--execution eager --precision fp32".split()])
    (row,), notes = tables.read_results(Path("results"))
    assert row.updates == 40 and row.at.tolist() == [0, 20, 40] and row.label.startswith(
        "POR, guide weighted, batch size 4, hidden 8")
    assert not notes and row.env_id == "Hopper-v4"


def test_gpus_and_threads(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    args = run.Args(("quick",), ("d",))
    assert run.visible_gpus() == ["2", "3"]
    jobs, threads, gpus = run.cell_settings(args, [], 8)
    assert jobs == 2 and gpus == ["2", "3"] and threads >= 1
    assert run.cell_settings(args, ["--device", "cpu"], 1)[0::2] == (1, [])
    assert run.cell_settings(args, ["--device", "cuda:1"], 8)[0::2] == (1, [])  # all on that one
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as people hide them
    assert run.visible_gpus() == []
    here = run.Here(3, 1, gpus, [])
    assert sorted(here.places.queue) == ["2", "2", "3"]  # three cells on two GPUs
    here.pool.shutdown()


def test_ray_is_asked_for_in_one_line(grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    code, out = grid(*THREE, "--ray")
    assert code.startswith("--ray needs Ray") and "\n" not in code and not Path("runs").exists()


def test_a_grid_on_a_local_ray(grid, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        code, out = grid("--datasets", "rebuilt/broken/x-v0", *THREE[1:], "--ray")
    finally:
        ray.shutdown()
    assert str(code).startswith("1 of 4 cells failed") and "the data are broken" in out
    assert len([*Path("results").iterdir()]) == 3
