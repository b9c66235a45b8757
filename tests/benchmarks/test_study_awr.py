"""Tests of benchmarks/studies/awr: what each variant leaves out, what is read, told and drawn.

python -m pytest tests/benchmarks/test_study_awr.py
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tyro

from benchmarks.common import ROOT
from benchmarks.studies.awr import study

pytestmark = pytest.mark.usefixtures("isolated")


def write_run(folder: Path, args, returns: np.ndarray, finished: bool = True) -> None:
    """Write a result.json as awr.py does: an evaluation after each 400 updates."""
    evaluations = []
    for i, row in enumerate(returns.tolist(), 1):
        evaluation = {"phase": "online", "update": 400 * i, "episodes": 5}
        evaluations.append(evaluation | {"returns": row, "scores": row})
    task = {"name": args.env, "source": "random actions", "env_id": args.env}
    task |= {"ref_min": None, "ref_max": None, "transitions": 2_048, "data_return": None}
    task |= {"fingerprint": "f" * 64}
    result = {"script": "awr", "args": asdict(args), "task": task, "phase": 0, "step": 400}
    result |= {"finished": finished, "final": evaluations[-1] if finished else None}
    result |= {"evaluations": evaluations, "commits": ["abc"], "device": "x86", "versions": {}}
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))


def options_of(variant: str) -> dict:
    """Return all arguments of a variant's run."""
    words = study.words_of(study.Args(Path("out")), variant)
    return vars(study.awr.apply_settings(tyro.cli(study.awr.Args, args=words)))


def test_each_variant_takes_one_part_away():
    whole = options_of("awr")
    assert whole["num_updates"] == 24 * (whole["value_updates"] + whole["policy_updates"])
    expected = {
        "no-baseline": {"weights": "return"},
        "no-clip": {"weight_clip": 0.0},
        "monte-carlo": {"td_lambda": 1.0},
        "one-iteration": {"buffer_size": whole["new_steps"]},
    }
    assert {"awr", *expected} == study.VARIANTS.keys()
    for variant, change in expected.items():
        found = options_of(variant)
        assert found.pop("run_dir") == f"out/{variant}"
        assert {key: found[key] for key in found if found[key] != whole[key]} == change


def run_study(monkeypatch, *words) -> dict:
    """Run the command, and return what it stores."""
    monkeypatch.setattr(sys, "argv", ["awr", "--out", "out", *words])
    study.main()
    return json.loads(Path("out/result.json").read_text())


def write_runs(diverged: str = "") -> None:
    """Write finished runs of all variants. The second one's last tenth is 30 below the first's."""
    for i, variant in enumerate(study.VARIANTS):
        words = study.words_of(study.Args(Path("out")), variant)
        args = study.awr.apply_settings(tyro.cli(study.awr.Args, args=words))
        rising = np.arange(20.0)[:, None] + [0, 10, 20] - 30 * i
        write_run(Path("out", variant), args, rising, variant != diverged)


def test_finished_runs_are_read_and_not_trained_again(monkeypatch, capsys):
    write_runs()
    monkeypatch.setattr(study.awr, "main", lambda: pytest.fail("it trains"))
    found = run_study(monkeypatch)["variants"]
    assert found.keys() == study.VARIANTS.keys()
    first, second = found["awr"], found["no-baseline"]
    assert first["first_tenth"]["per_agent"] == [0.5, 10.5, 20.5]
    assert first["last_tenth"]["per_agent"] == [18.5, 28.5, 38.5]
    assert first["gain"]["mean"] == 18 and first["mean_of_curve"]["mean"] == 19.5
    assert second["last_tenth_beyond_awr"]["per_agent"] == [-30, -30, -30]
    assert Path("out/ablations.png").read_bytes().startswith(b"\x89PNG")
    assert "| no baseline (RWR) | -20 ± 25 | -2 ± 25 |" in capsys.readouterr().out


def test_the_table_gets_onto_a_page(monkeypatch):
    write_runs()
    Path("page.md").write_text(f"a\n{study.BEGIN}\nold\n{study.END}\nb\n")
    found = run_study(monkeypatch, "--page", "page.md")["variants"]
    lines = Path("page.md").read_text().splitlines()
    assert lines[0] == "a" and lines[-1] == "b" and "old" not in lines
    assert "\n".join(lines[2:-2]) == study.table(found) and len(lines) == 11


def test_a_run_that_diverges_is_told_and_the_others_go_on(monkeypatch, capsys):
    write_runs(diverged="no-clip")
    resumed = []

    def diverge():
        resumed.append(sys.argv[1:])
        sys.exit("training diverged before update 7,000: loss/policy is NaN or infinite")

    monkeypatch.setattr(study.awr, "main", diverge)
    found = run_study(monkeypatch)["variants"]
    assert resumed == [["--resume", "out/no-clip"]]
    assert not found["no-clip"]["finished"] and found["one-iteration"]["finished"]
    assert "no clip (diverged after 8,000 updates)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--iterations", "23"], "other options"),
        (["--episodes", "0"], "at least 1"),
        (["--variants", "no-clip"], "begin with awr"),
        (["--variants", "awr", "other"], "begin with awr"),
    ],
)
def test_bad_input_is_refused(words, message, monkeypatch):
    write_runs()
    with pytest.raises(SystemExit, match=message):
        run_study(monkeypatch, *words)
    assert not Path("out/result.json").exists()


def test_the_page_has_the_stored_numbers():
    folder = ROOT / "benchmarks/studies/awr"
    if not (folder / "results/result.json").exists():
        pytest.skip("no result is stored yet")
    stored = json.loads((folder / "results/result.json").read_text())["variants"]
    assert study.table(stored) in (folder / "README.md").read_text(encoding="utf-8")


def test_other_errors_of_a_run_end_the_study(monkeypatch):
    def fail():
        sys.exit("no space left")

    monkeypatch.setattr(study.awr, "main", fail)
    with pytest.raises(SystemExit, match="no space left"):
        run_study(monkeypatch)


@pytest.mark.slow
def test_the_study_trains_end_to_end(monkeypatch):
    words = ["--variants", "awr", "no-clip", "--num-seeds", "2", "--iterations", "2"]
    found = run_study(monkeypatch, *words, "--eval-every", "1", "--episodes", "1")["variants"]
    assert found["no-clip"]["updates"] == [200, 400] and found["awr"]["finished"]
