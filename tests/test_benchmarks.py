"""Tests of benchmarks/plot.py and speed.py: a picture, a row, and clear words if there is none.

    python -m pytest tests/test_benchmarks.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

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


def cells(row: str) -> dict:
    return dict(zip(speed.COLUMNS, (cell.strip() for cell in row.strip("|").split("|"))))


PAGE = "# Speed\n\n<!-- ours:begin -->\nold\n<!-- ours:end -->\nafter\n"


def test_speed_prints_a_row_for_each_configuration_and_writes_the_page(tmp_path):
    page = tmp_path / "SPEED.md"
    page.write_text(PAGE)
    done = run_speed("--script", "por", "iql", "--num-seeds", "1", "2", "--updates", "2",
                     "--repeats", "2", "--warmup", "1", "--rows", "2000", "--threads", "1",
                     "--execution", "eager", "--eval-episodes", "0", "--out", str(page), "--",
                     "--hidden", "8", "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    machine, _, header, _, *rows = done.stdout.splitlines()
    assert "PyTorch" in machine and "1 threads" in machine
    assert list(cells(header)) == list(cells(header).values()) == list(speed.COLUMNS)
    rows = [cells(row) for row in rows]
    assert [(row["script"], row["seeds"]) for row in rows] == [
        ("por", "1"), ("por", "2"), ("iql", "1"), ("iql", "2")]
    for row in rows:
        assert row["options"] == "--hidden 8 --batch-size 4" and row["its share"] == "-"
        low, high = map(float, row["min to max"].split(" to "))
        assert 0 < low <= float(row["ms/update"]) <= high
        assert float(row["seed-updates/s"]) == pytest.approx(
            float(row["updates/s"]) * int(row["seeds"]), rel=0.01)
        assert float(row["peak MiB"]) > 50 and float(row["sampling"]) > 0
    numbers = json.loads((tmp_path / "results/speed/ours-cpu-hopper.json").read_text())
    assert numbers["task"] == "hopper" and len(numbers["rows"]) == 4
    assert str(tmp_path) not in page.read_text() + json.dumps(numbers)
    text = page.read_text()
    assert speed.tables(tmp_path / "results/speed") in text and "old" not in text
    assert text.startswith("# Speed\n") and text.endswith("<!-- ours:end -->\nafter\n")
    assert "python benchmarks/speed.py --script por iql --num-seeds 1 2" in text
    page.write_text(PAGE)
    speed.main(["--rewrite", "--out", str(page)])
    assert page.read_text() == text


def test_speed_passes_on_what_the_script_refuses():
    done = run_speed("--execution", "capture", "--device", "cpu", "--rows", "100")
    assert done.returncode and not done.stdout and "Traceback" not in done.stderr
    assert "--execution capture" in done.stderr


@pytest.mark.parametrize("words, complaint", [
    (["--script", "absent"], "no such file"), (["--task", "chess"], "choose one of"),
    (["--repeats", "0"], "at least 1"), (["--num-seeds", "0"], "at least 1"),
    (["--script"], "needs a value"), (["--name", "x"], "with --out"), (["--rewrite"], "--out"),
    (["--out", "absent.md"], "needs the lines <!-- ours:begin -->"),
    (["--", "--num-seeds", "3"], "put it before --"), (["--", "--env=x"], "use --task"),
    (["--start-up", "x", "--precision", "bf16"], "--precision would not reach them"),
    (["--start-up", "x", "--", "--guide", "q"], "--guide would not reach them")])
def test_speed_says_what_is_wrong(words, complaint, monkeypatch):
    monkeypatch.setattr(speed, "measure_apart", None)  # nothing may start
    with pytest.raises(SystemExit) as stop:
        speed.main(words)
    assert complaint in str(stop.value) and "\n" not in str(stop.value)


def test_start_up_is_the_time_of_a_whole_command_and_a_table(tmp_path, monkeypatch):
    page = tmp_path / "SPEED.md"
    page.write_text(PAGE)
    monkeypatch.setattr(speed, "ALGORITHMS", tmp_path)
    (tmp_path / "slow.py").write_text(
        "import json, sys, time\ntime.sleep(0.5)\nwords = sys.argv\n"
        "assert words[words.index('--num-updates') + 1] == '1'\n"
        "folder = words[words.index('--run-dir') + 1]\n"
        "json.dump({'task': {'transitions': 1234}}, open(folder + '/result.json', 'w'))\n")
    speed.main(["--script", "slow", "--start-up", "some/set-v0", "--repeats", "2", "--out",
                str(page)])
    (row,) = json.loads((tmp_path / "results/speed/ours-start-up.json").read_text())["rows"]
    assert row["transitions"] == 1234 and len(row["seconds"]) == 2 and min(row["seconds"]) >= 0.5
    assert "| slow | `some/set-v0` | 1,234 |" in page.read_text()
    (tmp_path / "slow.py").write_text("raise SystemExit('no such dataset')")
    with pytest.raises(SystemExit, match="no such dataset"):
        speed.main(["--script", "slow", "--start-up", "some/set-v0"])


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    assert re.match("[0-9a-f]{7}|unknown", speed.commit())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert speed.commit() == "unknown"


def test_a_failed_configuration_leaves_the_rows_before_it(tmp_path, monkeypatch):
    page, made = tmp_path / "SPEED.md", []
    page.write_text(PAGE)

    def measure_apart(args, words):
        if made:
            raise SystemExit("out of memory")
        made.append(1)
        return {"seconds": [1.0], "updates": 2, "machine": "this", "evaluation": None,
                "sampling": None, "optimiser": None, "operations": 1.0, "memory": 1, "limit": 1.0,
                "device": "cpu", "execution": "eager", "precision": "fp32"}

    monkeypatch.setattr(speed, "measure_apart", measure_apart)
    with pytest.raises(SystemExit, match="out of memory"):
        speed.main(["--num-seeds", "1", "2", "--out", str(page)])
    (row,) = json.loads((tmp_path / "results/speed/ours-cpu-hopper.json").read_text())["rows"]
    assert row["seeds"] == 1 and speed.table_row(row) in page.read_text()


def test_the_speed_page_holds_what_the_numbers_give():
    page = BENCHMARKS / "SPEED.md"
    assert speed.replaced(page, speed.tables(page.parent / speed.NUMBERS)) == page.read_text()


# ---- Where the time of ours goes

@pytest.fixture
def bc(isolated, monkeypatch):
    """bc.py as speed.py loads it, but the module that other tests know, too."""
    import bc
    monkeypatch.setattr(speed, "load_script", lambda name: bc)
    return bc


def small(script: str, **fields) -> speed.Args:
    return speed.Args(script=(script,), task="hopper", updates=4, repeats=2, warmup=1, rows=2_000,
                      threads=1, device="cpu", execution=("eager",), **fields)


def test_an_update_and_an_evaluation_are_split(bc, monkeypatch):
    steps, make_env = [], bc.make_env

    class Counted(gym.Wrapper):
        def step(self, action):
            steps.append(action)
            return super().step(action)

    monkeypatch.setattr(bc, "make_env", lambda task: Counted(make_env(task)))
    measured = speed.measure(small("bc", eval_episodes=1), ["--hidden", "8"])
    assert len(steps) == 1_000  # an untrained Hopper falls within some 20 steps
    assert measured["updates"] == 4
    assert all(len(measured[k]) == 2 for k in ("seconds", "sampling", "optimiser"))
    assert measured["evaluation"] > 0 and measured["limit"] > 1e8

    row = speed.table_row(measured | {
        "script": "bc", "options": "", "seeds": 1, "eval_every": 5_000, "seconds": [0.008, 0.008],
        "sampling": [0.002, 0.002], "optimiser": [0.001, 0.001], "evaluation": 2.5,
        "operations": 1e6, "limit": 1e10, "memory": 2**21})
    found = cells(row)
    assert [found[k] for k in ("ms/update", "sampling", "losses", "optimiser")] == [
        "2.000", "0.500", "1.250", "0.250"]
    assert (found["s/evaluation"], found["its share"]) == ("2.50", "20.0%")  # 2.5 s in 2.5 + 10 s
    assert (found["GFLOP/update"], found["GFLOP/s"], found["of the limit"]) == (
        "0.001", "0.5", "5.0%")  # a million operations in 2 ms
    assert found["peak MiB"] == "2"


def test_operations_are_those_of_the_products(bc):
    args, words = small("bc", eval_episodes=0), ["--hidden", "8", "--batch-size", "4"]
    script, run, _, _ = speed.build(args, words)
    before = {k: v.clone() for k, v in run.agent.state_dict().items()}
    operations, (step,) = speed.dissect(script, run)
    # 11 -> 8 -> 8 -> 3: forward, gradients of the weights, and of all inputs but the first
    products = 3 * (11 * 8 + 8 * 8 + 8 * 3) - 11 * 8
    assert operations == 2 * 4 * products
    after = {k: v.clone() for k, v in run.agent.state_dict().items()}
    step()  # the optimiser alone
    last = run.agent.state_dict()
    moved = [k for k in before if not torch.equal(after[k], last[k])]
    assert moved and all(not torch.equal(before[k], after[k]) for k in moved)
    assert script.minimize.__name__ == "minimize"


def test_updates_that_take_turns_keep_their_turns(isolated, monkeypatch):
    import td3_bc
    monkeypatch.setattr(speed, "load_script", lambda name: td3_bc)
    script, run, whole, _ = speed.build(small("td3_bc"), ["--hidden", "8"])
    _, steps = speed.dissect(script, run)
    assert whole == len(steps) == 2 and script.move_target.__name__ == "move_target"
    moved = []
    for step in steps:
        before = {k: v.clone() for k, v in run.agent.state_dict().items()}
        step()
        after = run.agent.state_dict()
        moved.append({k.partition(".")[0] for k in before if not torch.equal(before[k], after[k])})
    assert moved == [{"critic"}, {"critic", "actor", "critic_target", "actor_target"}]
    works, done = [lambda: done.append("a"), lambda: done.append("b")], []
    speed.time_alone(run, works, 4, 1)
    assert done in (list("ab" * 6), list("abab" + "ba" * 4))  # two turns each, 4 and 4 updates


def test_a_phase_that_is_not_there_is_refused(bc):
    with pytest.raises(SystemExit, match="--phase vae: with these options bc has train"):
        speed.build(small("bc", phase="vae"), ["--hidden", "8"])
