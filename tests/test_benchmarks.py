"""Tests of benchmarks/plot.py and speed.py: a picture, a row, and clear words if there is none.

    python -m pytest tests/test_benchmarks.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import plot  # noqa: E402
import speed  # noqa: E402


def write_run(folder: Path, seeds: int = 3, finished: bool = True, scored: bool = True,
              source: str = "rebuilt", updates=range(0, 10_001, 1_000), **args) -> Path:
    """A run folder with the parts of result.json that a plot needs, as a training writes them."""
    rng = np.random.default_rng(seeds)
    evaluations = []
    for update in updates:
        scores = (50 * (1 - np.exp(-update / 3_000)) + rng.normal(0, 3, seeds)).tolist()
        evaluations.append({"update": update, "episodes": 10, "returns": scores, "scores": scores})
    name = "rebuilt/hopper/medium-100k-v0" if source == "rebuilt" else "hopper-medium-v2"
    task = {"name": name, "source": source, "env_id": "Hopper-v4", "data_score": 45.1,
            "ref_min": -20.3 if scored else None, "ref_max": 3234.3 if scored else None}
    result = {"script": "por", "finished": finished, "task": task, "evaluations": evaluations,
              "final": evaluations[-1] if finished else None,
              "args": {"env": name, "guide": "weighted", "tau": 0.5, "device": "auto", **args}}
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def labels(*folders: Path) -> list[str]:
    """Legend of the figure of some runs."""
    figure = plot.draw([plot.read_run(folder) for folder in folders])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    plot.plt.close(figure)
    return texts


def test_plot_command_writes_a_picture(tmp_path):
    runs = [write_run(tmp_path / "a run"), write_run(tmp_path / "b", 1, False, guide="q")]
    out = tmp_path / "new folder" / "curve.png"
    done = subprocess.run([sys.executable, BENCHMARKS / "plot.py", *runs, "--out", out], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 20_000
    pixels = plot.plt.imread(out)
    assert min(pixels.shape[:2]) > 500 and pixels[..., :3].std() > 0.05


def test_legend_names_algorithm_variant_and_data(tmp_path):
    first, *_, level = labels(write_run(tmp_path / "a"))
    assert first.startswith("POR, guide weighted on hopper/medium-100k-v0 (rebuilt data): final ")
    assert first.endswith("3 seeds")
    assert level == "behaviour policy of hopper/medium-100k-v0 (rebuilt data): 45.1"


def test_legend_tells_runs_apart(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", tau=0.7, device="cpu"),
            write_run(tmp_path / "c", 1, finished=False, guide="q", tau=0.7)]
    texts = labels(*runs)
    assert "tau 0.5" in texts[0] and "tau 0.7" in texts[1] and "device" not in " ".join(texts)
    assert texts[2] == ("POR, guide q on hopper/medium-100k-v0 (rebuilt data): still in training, "
                        "1 seed")
    assert len(texts) == 4  # one dataset, one line of its behaviour policy


def test_each_dataset_has_its_level(tmp_path):
    texts = labels(write_run(tmp_path / "a"), write_run(tmp_path / "b", source="D4RL file"))
    assert texts[3] == "behaviour policy of hopper-medium-v2: 45.1" and len(texts) == 4


@pytest.mark.parametrize("scored, words", [(True, "D4RL-normalized score"), (False, "return")])
def test_axis_says_what_it_shows(tmp_path, scored, words):
    figure = plot.draw([plot.read_run(write_run(tmp_path / "a", scored=scored))], band="std")
    assert figure.axes[0].get_ylabel() == words
    plot.plt.close(figure)


def test_plot_says_what_is_wrong(tmp_path):
    score, bare = write_run(tmp_path / "score"), write_run(tmp_path / "bare", scored=False)
    empty = write_run(tmp_path / "empty", finished=False, updates=())
    broken, other = write_run(tmp_path / "broken"), write_run(tmp_path / "other")
    (broken / "result.json").write_text('{"script": ')
    (other / "result.json").write_text('{"script": "por"}')
    (tmp_path / "none").mkdir()
    for folders, word in (
            ([tmp_path / "none"], "no run in"), ([tmp_path / "absent"], "no run in"),
            ([empty], "no evaluation yet"), ([broken], "not a run's result"),
            ([other], "not a run's result"), ([score, bare], "do not fit one axis"),
            ([], "at least one run folder")):
        with pytest.raises(SystemExit) as stop:
            plot.main([*map(str, folders), "--out", str(tmp_path / "x.png")])
        assert word in str(stop.value) and "\n" not in str(stop.value)
    with pytest.raises(SystemExit, match="cannot write"):
        plot.main([str(score), "--out", str(tmp_path / "x.unknown")])
    assert not list(tmp_path.glob("x.*"))


def run_speed(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARKS / "speed.py", *words]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                          capture_output=True)


def test_speed_prints_a_row_for_each_configuration():
    done = run_speed("--num-seeds", "1", "2", "--updates", "2", "--repeats", "2", "--warmup", "1",
                     "--rows", "2000", "--threads", "1", "--execution", "eager", "--", "--guide",
                     "q", "--hidden", "8", "--execute-hidden", "8", "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    machine, _, header, _, *rows = done.stdout.splitlines()
    assert "PyTorch" in machine and "1 threads" in machine
    names = [cell.strip() for cell in header.strip("|").split("|")]
    rows = [dict(zip(names, (c.strip() for c in row.strip("|").split("|")))) for row in rows]
    assert [row["seeds"] for row in rows] == ["1", "2"] and names == list(speed.COLUMNS)
    for row in rows:
        assert row["script"] == "por" and "--guide q" in row["options"]
        low, middle, high = (float(row[k]) for k in ("ms/update min", "median", "max"))
        assert 0 < low <= middle <= high
        assert float(row["seed-updates/s"]) == pytest.approx(
            float(row["updates/s"]) * int(row["seeds"]), rel=0.01)


def test_speed_passes_on_what_the_script_refuses():
    done = run_speed("--execution", "capture", "--device", "cpu", "--rows", "100")
    assert done.returncode and not done.stdout and "Traceback" not in done.stderr
    assert "--execution capture" in done.stderr


@pytest.mark.parametrize("words, complaint", [
    (["--script", "absent"], "no such file"), (["--task", "chess"], "choose one of"),
    (["--repeats", "0"], "at least 1"), (["--num-seeds", "0"], "at least 1"),
    (["--", "--num-seeds", "3"], "put it before --"), (["--", "--env=x"], "use --task")])
def test_speed_says_what_is_wrong(words, complaint):
    with pytest.raises(SystemExit) as stop:
        speed.main(words)
    assert complaint in str(stop.value) and "\n" not in str(stop.value)
