"""Tests of benchmarks/peers.py with peers of our own making, and of the tables in SPEED.md.

    python -m pytest tests/test_peers.py
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers  # noqa: E402
import speed  # noqa: E402

# A TD3_BC of our own: it imports what no update needs, speaks, and takes 5 ms for an update
AGENT = """
import d4rl, gym, pyrallis, wandb
import time
import numpy as np
import torch

@pyrallis.wrap()
def main(env: gym.Env): ...

class TD3_BC:
    def __init__(self, state_dim, action_dim, max_action):
        self.shapes, self.count = (state_dim, action_dim), 0

    def train(self, buffer, batch_size):
        self.count += 1
        state, action = buffer.sample(batch_size)
        assert state.shape == (256, self.shapes[0]) and action.shape == (256, self.shapes[1])
        print("on the standard output of the process")
        wandb.log({"count": self.count})
        time.sleep(0.005)
"""
BUFFER = """
import numpy as np
import torch

class ReplayBuffer:
    def __init__(self, state_dim, action_dim): ...

    def convert_D4RL(self, rows):
        assert rows["terminals"].dtype == bool and rows["rewards"].dtype == np.float32
        self.rows = rows

    def normalize_states(self):
        self.rows["observations"] = self.rows["observations"] / 2

    def sample(self, size):
        index = np.random.randint(0, len(self.rows["actions"]), size)
        return [torch.from_numpy(self.rows[k][index]) for k in ("observations", "actions")]
"""
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
PAGE = f"# Speed\n\n{BEGIN}\n{peers.NOTHING}\n{END}\nafter\n"
TD3_BC = next(i for i, peer in enumerate(peers.PEERS) if peer.checkout == "td3_bc")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the two files of a TD3_BC."""
    folder = tmp_path / "their code"
    folder.mkdir()
    (folder / "TD3_BC.py").write_text(AGENT)
    (folder / "utils.py").write_text(BUFFER)
    return folder


def timing(code: str, seconds, seeds=1, updates=10, script="iql", task="hopper", execution="eager",
           **more) -> dict:
    return {"task": task, "script": script, "code": code, "seeds": seeds, "execution": execution,
            "updates": updates, "seconds": seconds, "precision": "fp32", **more}


def result(*timings: dict) -> dict:
    return {"command": "python benchmarks/peers.py", "machine": "A processor", "commit": "abc1234",
            "date": "2026-01-01", "load": 0.25, "timings": [*timings],
            "options": {"rows": 1_000, "blocks": 3, "seconds": 0.5}}


def test_ours_and_theirs_are_timed_and_written(tmp_path, checkout, capfd):
    page = tmp_path / "SPEED.md"
    page.write_text(PAGE)
    peers.main(["--td3-bc", str(checkout), "--tasks", "hopper", "--scripts", "td3_bc", "bc",
                "--execution", "eager", "--num-seeds", "1", "--seconds", "0.06", "--blocks", "2",
                "--rows", "2000", "--threads", "1", "--out", str(page)])
    numbers = json.loads((tmp_path / peers.NUMBERS).read_text())
    ours, their = numbers["timings"]  # and no BC, for which no checkout is given
    assert (ours["code"], ours["seeds"]) == ("ours", 1) and ours["precision"].startswith("fp32")
    assert their["code"] == "sfujim/TD3_BC: TD3_BC.py"
    assert their["commit"] == "8791ad7, but another TD3_BC.py and utils.py"
    for entry in ours, their:
        assert len(entry["seconds"]) == 2 and entry["updates"] % 2 == 0
    assert 5 <= peers.milliseconds(their) and 0 < peers.milliseconds(ours)
    text = page.read_text()
    assert peers.tables(numbers) in text and peers.NOTHING not in text
    assert text.startswith("# Speed\n") and text.endswith(f"{END}\nafter\n")
    assert peers.tables(numbers) in capfd.readouterr().out
    assert "1 threads" in text and str(tmp_path) not in text + json.dumps(numbers)
    assert not [*checkout.glob("__pycache__")] and not [*tmp_path.rglob("*.tmp")]


def test_a_peer_that_fails_ends_the_measurement_with_its_last_words(checkout):
    (checkout / "utils.py").write_text("raise RuntimeError('their buffer is broken')")
    config = {"peer": TD3_BC, "checkout": str(checkout), "task": "hopper", "rows": 100,
              "threads": 1, "seconds": 0.01}
    with pytest.raises(SystemExit) as stop:
        peers.time_group([({"code": "theirs", "task": "hopper"}, config)], 1)
    assert "theirs with hopper's shape ended with code 1: RuntimeError: their buffer is broken" == (
        str(stop.value))


def test_unequal_threads_are_no_comparison(checkout, tmp_path, monkeypatch):
    page = tmp_path / "SPEED.md"
    page.write_text(PAGE)
    entries = [timing("ours", [0.1], threads=2, machine="A processor"),
               timing("sfujim/TD3_BC: TD3_BC.py", [0.1], commit="8791ad7", threads=1)]
    monkeypatch.setattr(peers, "time_group", lambda group, blocks: entries)
    with pytest.raises(SystemExit, match=r"same number of threads: \[1, 2\]"):
        peers.main(["--td3-bc", str(checkout), "--tasks", "hopper", "--out", str(page)])
    assert page.read_text() == PAGE and not (tmp_path / peers.NUMBERS).exists()


def test_blocks_come_in_turn_and_the_first_ones_do_not_count(monkeypatch):
    log = []

    class Fake:
        def __init__(self, name, config):
            self.name, self.count = config["name"], 0
            log.append(f"start {self.name}")

        def answer(self):
            return {"threads": 2}

        def block(self):
            log.append(self.name)
            self.count += 1
            return {"updates": 10 * self.count, "seconds": self.count}

        def close(self):
            log.append(f"close {self.name}")

    monkeypatch.setattr(peers, "Child", Fake)
    group = [({"code": name, "task": "hopper"}, {"name": name}) for name in "AB"]
    entries = peers.time_group(group, 3)
    assert log == ["start A", "start B", *"ABABABAB", "close B", "close A"]
    assert [entry["seconds"] for entry in entries] == [[2, 3, 4]] * 2
    assert entries[0] == {"code": "A", "task": "hopper", "threads": 2, "updates": 40,
                          "seconds": [2, 3, 4]}


# ---- What is called of each peer, shown by mocks of their files

@pytest.fixture
def load():
    """Their files: every class makes a mock, networks have a weight, buffers five columns."""
    files = {}

    def load(name: str) -> MagicMock:
        if name not in files:
            files[name] = module = MagicMock()
            for network in ("Actor", "Critic", "GaussianPolicy", "TwinQ", "ValueFunction"):
                getattr(module, network).side_effect = lambda *_, **__: torch.nn.Linear(1, 1)
            module.TrainConfig = lambda device: SimpleNamespace(device=device, buffer_size=2_000)
            columns = [torch.full((256,), float(i)) for i in range(5)]
            module.ReplayBuffer.return_value.sample.return_value = columns
            module.sample_batch.return_value = {"observations": columns[0]}
        return files[name]

    return load


ROWS = {"observations": np.zeros((10, 11), np.float32), "terminals": np.zeros(10, bool)}


@pytest.mark.parametrize("update, file, algorithm", [
    (peers.corl_iql, "iql", "ImplicitQLearning"), (peers.corl_td3_bc, "td3_bc", "TD3_BC"),
    (peers.corl_bc, "any_percent_bc", "BC")])
def test_corl_samples_and_trains(load, update, file, algorithm):
    once = update(load, ROWS, 11, 3, "hopper")
    buffer, trainer = load(file).ReplayBuffer, getattr(load(file), algorithm).return_value
    buffer.assert_called_once_with(11, 3, 2_000, "cpu")
    buffer.return_value.load_d4rl_dataset.assert_called_once_with(ROWS)
    assert not trainer.train.called
    once()
    buffer.return_value.sample.assert_called_once_with(256)
    (batch,), _ = trainer.train.call_args
    assert [part[0].item() for part in batch] == [0, 1, 2, 3, 4]
    optimizers = [v for k, v in getattr(load(file), algorithm).call_args.kwargs.items()
                  if k.endswith("optimizer")]
    weights = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(optimizers) == {"BC": 1}.get(algorithm, 3) and len({*weights}) == len(weights)


@pytest.mark.parametrize("update, file, algorithm", [
    (peers.td3_bc, "TD3_BC", "TD3_BC"), (peers.spot, "SPOT", "SPOT_TD3")])
def test_td3_bc_and_spot_train_from_their_buffer(load, update, file, algorithm):
    once = update(load, ROWS, 11, 3, "hopper")
    buffer, policy = load("utils").ReplayBuffer.return_value, getattr(load(file), algorithm)
    assert [call[0] for call in buffer.method_calls] == ["convert_D4RL", "normalize_states"]
    once()
    assert policy.return_value.train.call_args.args == (buffer, 256)
    if file == "SPOT":
        load("vae").VAE.assert_called_once_with(11, 3, 6, 1.0)
        load("vae").VAE.return_value.eval.assert_called_once_with()
        assert policy.call_args.args[0] is load("vae").VAE.return_value


@pytest.mark.parametrize("task, layer_norm, called, other", [
    ("hopper", False, "por_qlearning_update", "por_residual_update"),
    ("halfcheetah", True, "por_residual_update", "por_qlearning_update")])
def test_por_has_the_guide_of_the_task(load, task, layer_norm, called, other):
    once = peers.por(load, ROWS, 11, 3, task)
    agent = load("por").POR.return_value
    once()
    assert getattr(agent, called).call_count == 1 and not getattr(agent, other).called
    assert agent.pretrain_init.called == (task == "hopper")
    assert load("value_functions").TwinV.call_args.kwargs == {"layer_norm": layer_norm}
    data, size = load("util").sample_batch.call_args.args
    assert data.keys() == ROWS.keys() and size == 256


def test_our_settings_have_the_guide_of_the_peer(por):
    """por.py takes q for hopper-medium-v2 and the weighted guide for HalfCheetah, as peers.por."""
    for task, guide, layer_norm in (("hopper", "q", False), ("halfcheetah", "weighted", True),
                                    ("walker2d", "weighted", True)):
        args = por.fill_settings(por.Args(env=speed.TASKS[task][2]))
        assert (args.guide, args.layer_norm) == (guide, layer_norm)
        assert args.batch_size == peers.BATCH


# ---- Commits, tables, bad input

def test_the_commit_is_told_by_the_content_of_the_files(tmp_path):
    peer = peers.Peer("bc", "corl", "someone/thing", "1234567890", "src",
                      {"a.py": "ce013625030ba8dba906f756967f9e9ca394464a"}, "", None)
    (tmp_path / "src").mkdir()
    with pytest.raises(SystemExit, match=r"no file src/a\.py in it; check out someone/thing @ 123"):
        peers.version(peer, tmp_path)
    (tmp_path / "src" / "a.py").write_bytes(b"hello\n")  # whose id everybody knows
    assert peers.version(peer, tmp_path) == "1234567"
    (tmp_path / "src" / "a.py").write_bytes(b"hello")
    assert peers.version(peer, tmp_path) == "1234567, but another a.py"


def test_tables_hold_medians_and_ratios():
    text = peers.tables(result(
        timing("ours", [0.05, 0.04, 0.9]), timing("ours", [0.06] * 3, seeds=3, updates=5),
        timing("corl-team/CORL: iql.py", [0.1, 0.1, 0.1], commit="eeeeef2")))
    row, = re.findall(r"\| IQL \|.*", text)
    assert row == ("| IQL | corl-team/CORL: iql.py @ eeeeef2 | 10.00 | 5.00 (2.00×) "
                   "| 4.00 (2.50×) |")
    assert "| ours, eager | ours, eager, 3 seeds |" in text
    assert "at most 1700%" in text  # 0.9 beside a median of 0.05 shows that it was not idle
    assert "A processor. Commit abc1234, 2026-01-01" in text and "start: 0.2." in text
    assert "hopper: 11 observations, 3 actions" in text
    assert "SPOT_TD3.train" not in text and "ImplicitQLearning.train" in text


@pytest.mark.parametrize("words, complaint", [
    (["--por", "nowhere"], "--por nowhere: no file por.py in it"),
    ([], "nothing to compare with"), (["--scripts", "bc", "--por", "x"], "nothing to compare"),
    (["--tasks", "antmaze"], "--tasks antmaze: choose"), (["--scripts", "dt"], "--scripts dt"),
    (["--execution", "capture"], "--execution capture"), (["--blocks", "0"], "positive"),
    (["--num-seeds", "0"], "positive"), (["--seconds", "0"], "positive"),
    (["--num-seeds"], "--num-seeds needs a value")])
def test_bad_input_is_one_line(words, complaint, monkeypatch):
    monkeypatch.setattr(peers, "Child", None)  # nothing may start
    with pytest.raises(SystemExit) as stop:
        peers.main(words)
    assert complaint in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("text", [None, "no markers", f"{END}\n{BEGIN}"])
def test_a_page_without_markers_is_refused_before_anything_starts(text, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "Child", None)
    page = tmp_path / "SPEED.md"
    if text:
        page.write_text(text)
    with pytest.raises(SystemExit, match="once each"):
        peers.main(["--por", str(tmp_path), "--out", str(page)])
    assert page.exists() == bool(text) and (not text or page.read_text() == text)


def test_the_page_holds_what_the_numbers_give():
    page = ROOT / "benchmarks" / "SPEED.md"
    numbers = page.parent / peers.NUMBERS
    stored = json.loads(numbers.read_text()) if numbers.exists() else None
    assert speed.replaced(page, peers.tables(stored), peers.MARK) == page.read_text()
