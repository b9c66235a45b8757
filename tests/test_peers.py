"""Tests of benchmarks/peers.py with peers of our own making, and of the tables in SPEED.md.

    python -m pytest tests/test_peers.py
"""

import json
import re
import sys
from collections import namedtuple
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
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
# Just enough of JAX for the peers that use it, on NumPy: a compiled function is the function
JAX = """
import numpy
from types import SimpleNamespace
__version__ = "0.0"
jit = lambda function, static_argnums: function
block_until_ready = lambda tree: None
tree_util = SimpleNamespace(tree_leaves=lambda tree: list(tree.values()))
random = SimpleNamespace(PRNGKey=lambda seed: (seed,),
                         split=lambda key, count=2: [(*key, i) for i in range(count)])

def scan(step, carry, inputs, length):
    assert inputs is None
    for _ in range(length):
        carry, losses = step(carry, None)
    return carry, losses

lax = SimpleNamespace(scan=scan)
"""
# A JAX-CORL of our own: it is alone with its JAX, and takes 1 ms for an update
JAX_IQL = """
import os
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple

import d4rl, gym, wandb
import numpy as np
import jax

assert "torch" not in sys.modules and sys.argv[1:] == ["layer_norm=false"]
assert os.environ["NPROC"] == "3" and os.environ["JAX_PLATFORMS"] == "cpu"
os.environ["XLA_FLAGS"] = "theirs"
config = SimpleNamespace(seed=42, n_jitted_updates=8)

class Transition(NamedTuple):
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    dones: np.ndarray
    dones_float: np.ndarray

def create_iql_train_state(key, observations, actions, settings):
    assert observations.shape == (11,) and actions.shape == (3,) and settings is config
    return SimpleNamespace(actor=SimpleNamespace(params={"w": np.zeros(1)}))

class IQL:
    def update_n_times(self, state, data, key, settings):
        assert {part.dtype.name for part in data} == {"float32"} and settings is config
        print("on the standard output of the process")
        time.sleep(0.008)
        weight = STEP + state.actor.params["w"]
        loss = np.float32(LOSS)
        return SimpleNamespace(actor=SimpleNamespace(params={"w": weight})), {"value_loss": loss}
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


@pytest.fixture
def jax_options(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """(step, loss) -> the options for a JAX-CORL with such weights and losses, and its Python."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "jax.py").write_text(JAX)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    folder = tmp_path / "JAX-CORL" / "algos"
    folder.mkdir(parents=True)

    def options(step: str = "1", loss: str = "0.5") -> list[str]:
        (folder / "iql.py").write_text(JAX_IQL.replace("STEP", step).replace("LOSS", loss))
        return ["--jax-corl", str(folder.parent), "--jax-python", sys.executable, "--threads", "3",
                "--tasks", "hopper", "--scripts", "iql", "--execution", "eager", "--num-seeds", "1",
                "--seconds", "0.02", "--blocks", "2", "--rows", "2000"]

    return options


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


def test_a_peer_in_jax_has_a_python_of_its_own(jax_options, tmp_path):
    page = tmp_path / "SPEED.md"
    page.write_text(PAGE)
    peers.main([*jax_options(), "--out", str(page)])
    numbers = json.loads((tmp_path / peers.NUMBERS).read_text())
    ours, their = numbers["timings"]
    assert (their["code"], their["execution"]) == ("nissymori/JAX-CORL: iql.py", "jit")
    assert their["commit"] == "d747dd8, but another iql.py" and their["precision"] == "fp32"
    assert their["updates"] % 8 == 0 and 1 <= peers.milliseconds(their)  # 8 ms for 8 updates
    text = page.read_text()
    assert "| IQL | nissymori/JAX-CORL: iql.py @ d747dd8, but another iql.py, JAX | " in text
    assert "; JAX 0.0, Python 3" in text and "3 threads" in text and "(`NPROC`)" in text
    assert "IQL.update_n_times" in text and "make_train_step" not in text
    assert "--jax-corl JAX-CORL" in text and sys.executable not in text + json.dumps(numbers)
    assert str(tmp_path) not in text + json.dumps(numbers)


@pytest.mark.parametrize("change, words", [
    ({"step": "0"}, "its actor did not change"),
    ({"loss": "'nan'"}, "its value_loss is not finite"),
    ({"loss": "no_name"}, "NameError: name 'no_name' is not defined")])
def test_jax_that_does_not_train_ends_the_measurement(jax_options, change, words):
    with pytest.raises(SystemExit) as stop:
        peers.main(jax_options(**change))
    assert str(stop.value) == (
        f"nissymori/JAX-CORL: iql.py with hopper's shape ended with code 1: {words}")


def test_ours_are_timed_with_both_precisions(tmp_path, checkout):
    page = tmp_path / "SPEED.md"
    page.write_text(PAGE)
    peers.main(["--td3-bc", str(checkout), "--tasks", "hopper", "--scripts", "td3_bc",
                "--execution", "eager", "--num-seeds", "1", "--seconds", "0.02", "--blocks", "1",
                "--rows", "2000", "--threads", "1", "--precision", "bf16", "fp32",
                "--out", str(page)])
    timings = json.loads((tmp_path / peers.NUMBERS).read_text())["timings"]
    assert [t.get("asked") for t in timings] == ["bf16", "fp32", None]
    assert [peers.less(t["precision"]) for t in timings] == ["bf16", "", ""]
    text = page.read_text()
    like, unlike = text.index("| ours, eager |"), text.index("| ours, eager, bf16 |")
    assert like < text.index("**Not like for like:** ours with products by bf16") < unlike
    assert text.count("| TD3+BC | sfujim/TD3_BC") == 2


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


@pytest.fixture
def jax() -> ModuleType:
    module = ModuleType("jax")
    exec(JAX, vars(module))
    return module


@pytest.mark.parametrize("update, nets, names, critics", [
    (peers.unifloral_iql, ["TanhGaussianActor", "DualQNetwork", "StateValueFunction"],
     "actor dual_q dual_q_target value", 1),
    (peers.unifloral_td3_bc, ["DeterministicTanhActor", "DualQNetwork"],
     "actor actor_target dual_q dual_q_target", 2)])
@pytest.mark.parametrize("device, turns", [("cpu", peers.SCAN), ("cuda", 2_500)])
def test_unifloral_scans_its_train_step(jax, update, nets, names, critics, device, turns):
    module = MagicMock()
    module.Args = lambda eval_interval=2_500: SimpleNamespace(
        seed=0, eval_interval=eval_interval, num_critic_updates_per_step=2)
    module.Transition = namedtuple("Transition", "obs action reward next_obs done")
    module.AgentTrainState = namedtuple("AgentTrainState", names)
    for name in nets:
        getattr(module, name).side_effect = lambda *sizes, name=name: SimpleNamespace(
            name=name, sizes=len(sizes), apply=name)
    module.create_train_state = lambda args, key, net, inputs: SimpleNamespace(
        made=(key, net.name, [len(x) for x in inputs]), params={"w": np.zeros(1)})
    counts = []

    def step(carry, _):
        rng, state = carry
        counts.append(rng)
        state.actor.params["w"] = state.actor.params["w"] + 1
        return (rng, state), {"loss": 0.25}

    module.make_train_step.return_value = step
    rows = {name: np.zeros((10, n), np.float32) for name, n in (
        ("observations", 11), ("actions", 3), ("next_observations", 11), ("rewards", 1))}
    rows["terminals"] = np.zeros(10, bool)
    loop = update(lambda name: jax if name == "jax" else module, rows, 11, 3, "hopper", device)
    args, *applied, data = module.make_train_step.call_args.args
    assert applied == nets and data.obs.shape == (10, 11) and data.done.dtype == bool
    made = {name: part.made for name, part in zip(loop.state._fields, loop.state)}
    assert made["actor"][1:] == (nets[0], [11]) and made["dual_q"][1:] == (nets[1], [11, 3])
    assert all(made[name] == made[name.removesuffix("_target")] for name in made)
    assert len({key for key, *_ in made.values()}) == len(nets)  # weights are drawn apart
    assert loop.updates == critics * turns and not counts
    with pytest.raises(SystemExit, match="its actor did not change"):
        loop.check()
    loop()
    assert len(counts) == turns and loop.losses == {"loss": 0.25}
    loop.wait()
    loop.check()


def test_jax_corl_td3_bc_is_what_their_main_makes(jax, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers.py", "--child", "words that are not theirs"])
    module, words = MagicMock(), []
    module.config = SimpleNamespace(seed=42, n_jitted_updates=8)
    module.Transition = namedtuple("Transition", "observations actions rewards next_observations "
                                                 "dones")
    state = SimpleNamespace(actor=SimpleNamespace(params={"w": np.zeros(1)}))
    module.create_td3bc_train_state.return_value = state
    update = module.TD3BC.return_value.update_n_times
    update.return_value = state, {"critic_loss": np.ones(1)}
    rows = {name: np.full((10, n), n, np.float32) for name, n in (
        ("observations", 11), ("actions", 3), ("next_observations", 12), ("rewards", 1))}
    rows["terminals"] = np.zeros(10, bool)

    def load(name):
        words.append((name, sys.argv[1:]))
        return jax if name == "jax" else module

    loop = peers.jax_corl_td3_bc(load, rows, 11, 3, "hopper")
    assert ("td3bc", []) in words and loop.updates == 8 and not update.called
    loop()
    loop()
    (first, data, key, config), (*_, other, _) = (call.args for call in update.call_args_list)
    assert first is state and config is module.config and key != other
    assert [part[0, 0] for part in data[:4]] == [11, 3, 1, 12] and data.dones.dtype == np.float32


def test_products_of_jax_are_told(jax):
    loop = peers.JaxLoop(jax, None, None, SimpleNamespace(actor=SimpleNamespace(params={})), 1)
    assert loop.facts()["precision"] == "fp32" and loop.facts()["jax"].startswith("JAX 0.0, Python")
    jax.numpy = SimpleNamespace(array=lambda x: (x * 512).round() / 512)
    assert re.fullmatch(r"with errors of \de-0\d in JAX", loop.facts()["precision"])


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


def test_rounded_products_have_a_table_of_their_own():
    both = [timing("ours", [0.05] * 3, asked="fp32"),
            timing("ours", [0.02] * 3, asked="bf16") | {"precision": "fp32 by bf16"},
            timing("corl-team/CORL: iql.py", [0.1] * 3, commit="eeeeef2")]
    text = peers.tables(result(*both))
    assert re.findall(r"\| IQL \|.*", text) == [
        "| IQL | corl-team/CORL: iql.py @ eeeeef2 | 10.00 | 5.00 (2.00×) |",
        "| IQL | corl-team/CORL: iql.py @ eeeeef2 | 10.00 | 2.00 (5.00×) |"]
    between = text[text.index("5.00 (2.00×)"):text.index("2.00 (5.00×)")]
    assert ("**Not like for like:** ours with products by bf16 (fp32 by bf16) beside theirs, which "
            "remain fp32." in between and "| ours, eager, bf16 |" in between)
    assert "Matrix products of ours: fp32 and fp32 by bf16, of theirs: fp32." in text
    alone = peers.tables(result(*both[1:]))  # a ratio to other products is never without a word
    assert "**Not like for like:**" in alone and "| ours, eager |" not in alone
    assert "Not like" not in peers.tables(result(both[0], both[2]))
    assert [peers.less(p) for p in ("fp32, oneDNN", "tf32", "tf32 + bf16", "fp32 + bf16")] == [
        "", "tf32", "bf16", "bf16"]


def test_every_precision_is_planned(checkout):
    args = peers.Args(td3_bc=checkout, tasks=("hopper",), precision=("fp32", "bf16"), threads=1)
    group, = peers.plan(args)
    ours = [(e["seeds"], e["execution"], e["asked"]) for e, _ in group if e["code"] == "ours"]
    assert ours == [*product((1, 3), ("eager", "compile"), ("fp32", "bf16"))]
    for entry, config in group[:-1]:
        assert config["speed"]["precision"] == (entry["asked"],) and config["device"] == "cpu"
    assert "python" not in group[-1][1]


@pytest.mark.parametrize("words, complaint", [
    (["--por", "nowhere"], "--por nowhere: no file por.py in it"),
    ([], "nothing to compare with"), (["--scripts", "bc", "--por", "x"], "nothing to compare"),
    (["--tasks", "antmaze"], "--tasks antmaze: choose"), (["--scripts", "dt"], "--scripts dt"),
    (["--execution", "capture"], "--execution capture"), (["--blocks", "0"], "positive"),
    (["--num-seeds", "0"], "positive"), (["--seconds", "0"], "positive"),
    (["--num-seeds"], "--num-seeds needs a value"), (["--precision"], "--precision needs a value"),
    (["--precision", "fp8"], "--precision fp8: choose among auto, fp32, bf16"),
    (["--device", "tpu"], "--device tpu: choose"),
    (["--unifloral", "x"], "need --jax-python, a Python that has JAX; none was given"),
    (["--jax-corl", "x", "--jax-python", "nowhere/python"], "nowhere/python was given"),
    (["--jax-corl", "x", "--jax-python", sys.executable], "--jax-corl x: no file algos/iql.py")])
def test_bad_input_is_one_line(words, complaint, monkeypatch):
    monkeypatch.setattr(peers, "Child", None)  # nothing may start
    with pytest.raises(SystemExit) as stop:
        peers.main(words)
    assert complaint in str(stop.value) and "\n" not in str(stop.value)


def test_cuda_needs_a_gpu(checkout, monkeypatch):
    monkeypatch.setattr(peers, "Child", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda: PyTorch finds no GPU here"):
        peers.main(["--td3-bc", str(checkout), "--device", "cuda", "--execution", "capture"])


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
    marks = re.findall(r"<!-- speed(?:-(\w+))?:begin -->", page.read_text())
    files = {(page.parent / peers.places(machine)[1]).name for machine in marks}
    assert "" in marks and files == {
        path.name for path in (page.parent / peers.NUMBERS.parent).glob("peers*.json")}
    for machine in marks:
        mark, numbers = peers.places(machine)
        stored = json.loads((page.parent / numbers).read_text())
        assert stored.get("name", "") == machine
        assert speed.replaced(page, peers.tables(stored), mark) == page.read_text()


def test_another_machine_has_a_part_and_numbers_of_its_own(tmp_path, checkout):
    page = tmp_path / "SPEED.md"
    page.write_text(PAGE)
    words = ["--td3-bc", str(checkout), "--tasks", "hopper", "--scripts", "td3_bc", "--execution",
             "eager", "--num-seeds", "1", "--seconds", "0.06", "--blocks", "2", "--rows", "2000",
             "--threads", "1", "--out", str(page), "--machine"]
    with pytest.raises(SystemExit, match="speed-amd:begin"):
        peers.main([*words, "amd"])
    with pytest.raises(SystemExit, match="letters and digits"):
        peers.main([*words, "a/b"])
    page.write_text(f"{PAGE}<!-- speed-amd:begin -->\n<!-- speed-amd:end -->\nlast\n")
    peers.main([*words, "amd"])
    text, numbers = page.read_text(), tmp_path / "results" / "speed" / "peers-amd.json"
    assert text.startswith(PAGE) and text.endswith("<!-- speed-amd:end -->\nlast\n")
    stored = json.loads(numbers.read_text())
    assert stored["name"] == "amd" and peers.tables(stored) in text
    assert "peers-amd.json" in text and "Timed:" not in text
    assert not (tmp_path / peers.NUMBERS).exists()
