"""Tests of benchmarks/speed: what is timed, in which order, and what the page says of it.

python -m pytest tests/benchmarks/test_speed.py
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.common import ROOT
from benchmarks.speed import measure, memory, ours, page, turns
from benchmarks.speed.rows import TASKS, random_rows
from benchmarks.speed.turns import Worker, time_in_turn
from tests import sync
from tests.helpers import small_options

pytestmark = pytest.mark.usefixtures("isolated")


def build(script: str, *words: str, **fields) -> tuple:
    """Build a small agent on few rows."""
    small = ["--hidden", "8", "--batch-size", "4", *words]
    return ours.build(ours.Config(script, rows=2_000, words=small, **fields))


# ---- What is timed ----


def test_rows_have_d4rls_layout():
    data = random_rows("antmaze", 2_500)
    assert data["observations"].shape == data["next_observations"].shape == (2_500, 29)
    assert data["actions"].shape == (2_500, 8)
    assert 0.99 < np.abs(data["actions"]).max() <= 1
    assert np.flatnonzero(data["timeouts"]).tolist() == [999, 1_999, 2_499]
    assert not data["terminals"].any()


def test_discrete_actions_are_numbers():
    data = random_rows("cartpole", 2_500)
    assert set(data["actions"].tolist()) == {0, 1}
    assert data["observations"].shape == (2_500, 4)


@pytest.mark.parametrize("script, batch", [("bc", 256), ("dt", 64)])
def test_batches_are_of_256_or_what_the_page_says(script, batch, monkeypatch):
    module = ours.load_script(script)
    monkeypatch.setattr(module, "start_run", lambda args: SimpleNamespace(args=args, task=args))
    assert ours.build(ours.Config(script, rows=2_000))[1].args.batch_size == batch


@pytest.mark.parametrize("task, guide", [("hopper", "q"), ("halfcheetah", "weighted")])
def test_an_agent_has_the_settings_and_dimensions_of_its_task(task, guide):
    _, run = build("por", task=task, num_seeds=2)
    assert run.args.guide == guide
    assert (run.task.obs_dim, run.task.act_dim) == (TASKS[task].obs_dim, TASKS[task].act_dim)
    assert run.buffer.sample()["actions"].shape == (2, 4, TASKS[task].act_dim)


def test_episodes_of_a_timed_evaluation_last_to_the_limit():
    script, run = build("por", task="hopper")
    env = script.make_env(run.task)
    env.reset(seed=0)
    ended = [env.step(-np.ones(3, np.float32))[2:4] for _ in range(200)]  # Hopper falls
    assert not np.any(ended)


def test_updates_take_turns():
    script, run = build("td3_bc")
    calls = []

    def one(batch):
        calls.append(1)
        return {}

    def two(batch):
        calls.append(2)
        return {}

    run.agent.phases[-1].updates[:] = [one, two]
    updates = ours.Updates(script, run, "train")
    updates.update(3)
    updates.update(2)
    assert calls == [1, 2, 1, 2, 1]


def test_updates_train_and_nan_is_found():
    script, run = build("por", num_seeds=2)
    before = [p.clone() for p in run.agent.guide.parameters()]
    updates = ours.Updates(script, run, "train")
    updates.update(2)
    updates.check()
    assert not any(map(torch.equal, before, run.agent.guide.parameters()))
    updates.statistics["value"][1] = np.nan
    with pytest.raises(SystemExit, match="value is NaN"):
        updates.check()


@pytest.mark.parametrize("script", [s for s in sync.read_scripts() if s not in measure.ONLINE_ONLY])
def test_every_script_can_be_timed(script):
    task = "cartpole" if script in measure.DISCRETE else "halfcheetah"
    config = ours.Config(script, task, num_seeds=2, rows=2_000, words=small_options(script))
    updates = ours.Updates(*ours.build(config), "train")
    updates.update(2)
    updates.check()
    assert updates.statistics


def test_a_phase_that_is_not_there_is_refused():
    script, run = build("por", "--guide", "q")
    ours.Updates(script, run, "behavior")
    with pytest.raises(SystemExit, match="--phase vae.*behavior, train"):
        ours.Updates(script, run, "vae")


# ---- In turn ----


class Fake:
    """A worker whose updates take a millisecond."""

    def __init__(self, name: str, multiple: int, log: list):
        self.name, self.multiple, self.log = name, multiple, log

    def answer(self) -> dict:
        return {"code": "ours" if self.name == "A" else "theirs", "multiple": self.multiple}

    def ask(self, **request) -> float:
        self.log.append((self.name, request))
        return request["updates"] / 1_000 if "updates" in request else 7.0


def test_blocks_come_in_turn_and_have_the_wanted_length():
    log = []
    timings = time_in_turn([Fake("A", 1, log), Fake("B", 8, log)], 0.1, 3, eval_episodes=5)
    assert [timing["updates"] for timing in timings] == [100, 96]  # 12 calls of 8
    assert [timing["seconds"] for timing in timings] == [[0.1] * 3, [0.096] * 3]
    blocks = [name for name, request in log if request.get("updates") in (96, 100)]
    assert blocks == ["A", "B"] * 3
    assert [name for name, request in log if "episodes" in request] == ["A"]
    assert timings[0]["evaluation"] == 7 and "evaluation" not in timings[1]


def test_a_worker_that_dies_ends_the_program():
    worker = Worker("a thing", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match="the process of a thing ended with code 3"):
        worker.ask(updates=1)
    worker.close()


def test_memory_is_that_of_the_process_alone():
    """Also where a large process started it."""
    program = "import sys; sys.path.insert(0, '.'); from benchmarks.speed import turns; "
    program += "x = bytearray({}); print(turns.peak_memory())"
    ballast = np.ones(50_000_000)  # 400 MB
    sizes = []
    for size in (0, 100_000_000):
        words = [sys.executable, "-c", program.format(size)]
        sizes.append(int(subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout))
    del ballast
    assert sizes[0] < 300
    assert 90 < sizes[1] - sizes[0] < 110


def test_a_system_that_does_not_tell_ends_the_command(monkeypatch):
    monkeypatch.setattr(turns.Path, "exists", lambda path: False)
    assert turns.peak_memory() is None
    monkeypatch.undo()
    monkeypatch.setattr(turns.Path, "read_text", lambda path: "Name:\tpython\n")
    assert turns.peak_memory() is None
    monkeypatch.setattr(memory, "peak_memory", lambda: None)
    monkeypatch.setattr(sys, "argv", ["memory", "--script", "bc"])
    with pytest.raises(SystemExit, match="does not tell how much memory"):
        memory.main()


@pytest.mark.slow
def test_the_memory_command_measures_each_script(tmp_path, monkeypatch, capsys):
    words = f"--script bc dt --rows 2000 --task hopper --out {tmp_path}/memory.json"
    monkeypatch.setattr(sys, "argv", ["memory", *words.split()])
    memory.main()
    numbers = json.loads((tmp_path / "memory.json").read_text())
    assert (numbers["task"], numbers["transitions"]) == ("hopper", 2_000)
    assert [row["script"] for row in numbers["rows"]] == ["bc", "dt"]
    assert all(100 < row["memory_mb"] < 5_000 for row in numbers["rows"])


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--script ppo", "ppo cannot train on the rows"),
        ("--script discrete_bcq", "discrete_bcq cannot train on the rows"),
        ("--script mine", "there is no script mine"),
        ("--rows 0", "--rows must be above 0"),
    ],
)
def test_what_has_no_memory_to_measure_is_refused(words, complaint, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memory", *words.split()])
    with pytest.raises(SystemExit, match=complaint):
        memory.main()


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_numbers(tmp_path, monkeypatch, capsys):
    words = "--script bc por --task hopper --execution eager --num-seeds 1 2 --threads 1 --rows "
    words += f"2000 --seconds 0.05 --blocks 2 --eval-episodes 1 --out {tmp_path}/new/numbers.json"
    monkeypatch.setattr(sys, "argv", ["measure", *words.split(), "--", "--hidden", "8"])
    measure.main()
    numbers = json.loads((tmp_path / "new/numbers.json").read_text())
    rows = numbers["rows"]
    order = [("bc", 1), ("bc", 2), ("por", 1), ("por", 2)]
    assert [(row["script"], row["seeds"]) for row in rows] == order
    assert all(len(row["seconds"]) == 2 and row["threads"] == 1 for row in rows)
    assert rows[0]["evaluation"] > 0
    assert numbers["command"].endswith("--eval-episodes 1 -- --hidden 8")
    assert page.tables(numbers) in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--script", "dqn"], "no script dqn"),
        (["--script", "bc", "ppo"], "ppo gathers its rows while it trains"),
        (["--script", "bc", "discrete_bcq"], "discrete_bcq does not take the kind of actions"),
        (["--script", "bc", "--task", "cartpole"], "bc does not take the kind of actions"),
        (["--blocks", "0"], "above 0"),
        (["--num-seeds", "0"], "above 0"),
        (["--threads", "0"], "--threads"),
        (["--execution", "graph"], "need --device cuda"),
        (["--checkouts", "nowhere"], "there is no such folder"),
    ],
)
def test_bad_input_is_one_line(words, complaint, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure", *words])
    monkeypatch.setattr(measure, "Worker", None)  # nothing may start
    monkeypatch.setattr(measure, "start_worker", None)
    with pytest.raises(SystemExit) as stop:
        measure.main()
    assert complaint in str(stop.value)
    assert "\n" not in str(stop.value)


# ---- The page ----


def timing(code: str, seconds: list, seeds=1, updates=10, execution="eager", **more) -> dict:
    return {
        "code": code,
        "script": "iql",
        "seeds": seeds,
        "execution": execution,
        "precision": "fp32",
        "updates": updates,
        "seconds": seconds,
        **more,
    }


def numbers_of(*rows: dict) -> dict:
    return {
        "command": "python -m benchmarks.speed.measure",
        "machine": "A processor",
        "threads": 2,
        "commit": "abc1234",
        "date": "2026-01-01",
        "load": 0.25,
        "task": "hopper",
        "phase": "train",
        "transitions": 1_000,
        "rows": list(rows),
    }


def test_a_table_holds_medians_and_rates():
    text = page.tables(numbers_of(timing("ours", [0.05, 0.04, 0.9], seeds=3)))
    assert "| IQL | 3 | eager | 5.00 | 4.00 to 90.00 | 200 | 600 |" in text
    assert "A processor; 2 threads. Commit abc1234, 2026-01-01" in text
    assert "hopper: 11 observations, 3 actions" in text


def test_what_has_no_peer_is_shown_below_the_peers():
    theirs = timing("corl-team/CORL: iql.py", [0.1] * 3, commit="eeeeef2")
    rows = [timing("ours", [0.05] * 3), theirs, timing("ours", [0.02] * 3, script="rvs")]
    text = page.tables(numbers_of(*rows))
    assert "| IQL | corl-team/CORL: iql.py @ eeeeef2 | 10.00 | 5.00 (2.00×) |" in text
    assert "| RvS | 1 | eager | 2.00 |" in text and "| IQL | 1 |" not in text


def test_ratios_to_peers_are_per_agent():
    text = page.tables(
        numbers_of(
            timing("ours", [0.05] * 3),
            timing("ours", [0.06] * 3, seeds=3, updates=5),
            timing("corl-team/CORL: iql.py", [0.1, 0.1, 0.2], commit="eeeeef2"),
            timing("x/y: iql.py", [0.04] * 3, commit="1234567", jax="0.9"),
        )
    )
    assert "| ours, eager | ours, eager, 3 agents |" in text
    corl = "| IQL | corl-team/CORL: iql.py @ eeeeef2 | 10.00 | 5.00 (2.00×) | 4.00 (2.50×) |"
    jax = "| IQL | x/y: iql.py @ 1234567, JAX | 4.00 | 5.00 (0.80×) | 4.00 (1.00×) |"
    assert corl in text and jax in text
    assert "; JAX 0.9;" in text
    assert "took 2.0 times the median" in text


def test_the_page_holds_what_the_numbers_give():
    text = page.PAGE.read_text(encoding="utf-8")
    for name, expected in page.sections().items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        assert text[text.index(begin) + len(begin) : text.index(end)] == expected


def test_no_stored_row_is_rounded_to_bf16():
    for file in page.RESULTS.rglob("*.json"):
        if file.name != page.MEMORY:
            for row in json.loads(file.read_text())["rows"]:
                assert "bf16" not in row["precision"]


def test_the_readme_s_table_joins_files_of_one_machine():
    def file(script: str, threads: int, **times) -> dict:
        rows = [
            {"code": "ours", "seeds": 1, "script": script, "execution": way, "updates": 10}
            | {"seconds": [x]}
            for way, x in times.items()
        ]
        command = "measure -- --context 5" if script == "dt" else "measure"
        return {"command": command, "machine": "a machine", "threads": threads, "rows": rows}

    files = [file("por", 1, eager=0.5, compile=0.2), file("dt", 1, eager=0.7)]
    their = {"code": "a/Theirs: x.py", "seeds": 1, "script": "por", "execution": "eager"}
    files[0]["rows"].append(their | {"updates": 10, "seconds": [0.6]})
    files[0]["rows"].append(their | {"updates": 10, "seconds": [0.1], "jax": "0.9"})
    memory = {
        "transitions": 5_000,
        "task": "hopper",
        "rows": [{"script": "por", "memory_mb": 1_234}],
    }
    table = page.readme_table(files, memory)
    header = "| `compile` | other people's code | minutes per million updates, ours | memory, MB |"
    assert header in table
    assert "| POR | 50.0 | 20.0 | Theirs 60.0 | 333 | 1,234 |" in table
    assert "| DT (`--context 5`) | 70.0 | - | - | 1,167 | - |" in table
    assert "5,000 rows of 11 observations" in table
    again = page.readme_table([*files, file("por", 1, eager=0.4)], memory)
    assert "| POR | 40.0 | 20.0 |" in again  # of two, the last one counts
    with pytest.raises(SystemExit, match="not of one machine"):
        page.readme_table([*files, file("iql", 2, eager=1.0)], memory)


def test_the_readme_s_table_is_that_of_the_numbers():
    table = page.readme_table(page.readme_numbers(), page.memory_numbers())
    assert f"<!-- speed:begin -->\n{table}\n<!-- speed:end -->" in page.README.read_text()
