"""Tests of what a GPU would be trusted with: updates that a CUDA graph can record, and
benchmarks/speed/gpu.py, rehearsed on a CPU.

python -m pytest tests/benchmarks/test_gpu.py
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
import tyro
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import run
from benchmarks.common import ROOT, split_words
from benchmarks.datasets import collect
from benchmarks.speed import gpu, measure
from benchmarks.speed.gpu import Step
from benchmarks.speed.ours import Config, build
from tests import sync, test_every_script

pytestmark = pytest.mark.usefixtures("isolated")
TINY = ["--hidden", "8", "--batch-size", "4"]
VARIANTS = [("por", "--guide", "weighted"), ("por", "--guide", "q"), ("iql",), ("td3_bc",)]
VARIANTS += [("bc",), ("spot",)]
SCRIPTS = pytest.mark.parametrize("variant", VARIANTS, ids="-".join)


# ---- Updates ----


class Watch(TorchDispatchMode):
    """Notes what a CUDA graph cannot record.

    That is an operation whose result the host must know, and a tensor that is made of nothing,
    which would be on the host or be copied from there.
    """

    WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"}
    # A scalar beside the condition of where() is made where the condition is. The others are the
    # profiler's marks.
    FINE = {"scalar_tensor", "_record_function_enter_new", "_record_function_exit"}

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        name = func._schema.name.partition("::")[2]
        mask = name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
        if name in self.WAITS or mask:
            self.found.add(f"waits: {name}")
        if (not tensors or name == "lift_fresh") and name not in self.FINE:
            self.found.add(f"made: {name}")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "code, found",
    [
        (lambda x: x.sum().item(), "waits: _local_scalar_dense"),
        (lambda x: 1 if x.sum() > 0 else 2, "waits: _local_scalar_dense"),
        (lambda x: x[x > 0], "waits: index"),
        (lambda x: x * torch.tensor(2.0), "made: lift_fresh"),
        (lambda x: x + torch.zeros(3), "made: zeros"),
    ],
)
def test_the_watch_sees_what_a_graph_cannot_record(code, found):
    with Watch() as watch:
        code(torch.ones(3))
    assert found in watch.found


@SCRIPTS
def test_an_update_leaves_the_host_alone(variant):
    script, *words = variant
    module, run = build(Config(script, "hopper", 2, rows=2_000, words=[*words, *TINY]))
    for phase in run.agent.phases:
        for update in phase.updates:
            step = module.make_step(update, run.buffer, "eager")
            step()
            with Watch() as watch:
                step()
            assert watch.found <= {"made: randint"}, phase.name


# ---- The plan of benchmarks/speed/gpu.py ----

SLEEP = ["timeit", "-n1", "-r1", "import time; time.sleep(90)"]
FAIL = ["timeit", "-n1", "-r1", "1 / 0"]


@pytest.mark.parametrize("rehearse", [False, True])
def test_the_plan_s_commands_are_understood(tmp_path, rehearse):
    steps = {step.name: step for step in gpu.plan(gpu.Args(tmp_path, rehearse=rehearse))}
    words = {name: [str(word) for word in step.words[1:]] for name, step in steps.items()}
    assert [step.words[0].rpartition(".")[2] for step in steps.values()] == [
        "pytest",
        "measure",
        "collect",
        "run",
    ]
    for case in words["check"][3:]:
        path, _, test = case.partition("::")
        name, _, script = test.rstrip("]").partition("[")
        assert (ROOT / path).samefile(test_every_script.__file__)
        assert callable(vars(test_every_script)[name]) and script in sync.read_scripts()
    args = tyro.cli(measure.Args, args=words["speed"])
    assert args.device == ("cpu" if rehearse else "cuda") and args.out == tmp_path / "speed.json"
    data = tyro.cli(collect.Args, args=words["collect"])
    collect.choose_recipe(data)
    own, others = split_words(words["train"])
    cells = run.plan(tyro.cli(run.Args, args=own), others)
    assert [cell.script.stem for cell in cells] == ["por", "iql"]
    assert {cell.args["env"] for cell in cells} == {data.recipe}
    assert {cell.args["num_updates"] for cell in cells} == {40 if rehearse else 1_000_000}


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Return `do(*steps, seconds=, again=)`, which does them and returns what is noted then."""
    # As gpu.main() does: tests in the background ignore Ctrl-C, and pass that on.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)

    def call(*steps, seconds=60.0, again=()) -> dict:
        monkeypatch.setattr(gpu, "plan", lambda _: steps)
        args = gpu.Args(tmp_path, again=again)
        state = tmp_path / "steps.json"
        done = json.loads(state.read_text()) if state.exists() else {}
        gpu.do_steps(args, done, time.monotonic() + seconds)
        return {name: found["code"] for name, found in done.items()}

    yield call
    signal.signal(signal.SIGINT, earlier)


def test_a_step_is_done_once_and_a_failed_one_is_not_repeated(do, tmp_path):
    steps = [Step("check", 60, FAIL), Step("speed", 60, ["platform"])]
    assert do(*steps) == {"check": 1, "speed": 0}
    logs = [(tmp_path / f"{name}.log").read_text() for name in ("check", "speed")]
    assert "ZeroDivisionError" in logs[0] and "Linux" in logs[1]
    assert do(*steps) == {"check": 1, "speed": 0}
    assert [(tmp_path / f"{name}.log").read_text() for name in ("check", "speed")] == logs
    do(*steps, again=("speed",))
    assert (tmp_path / "speed.log").read_text() == 2 * logs[1]
    assert (tmp_path / "check.log").read_text() == logs[0]


def test_a_step_that_is_stopped_is_continued_but_not_beyond_its_own_time(do, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "TRY", 0)
    slow, training = Step("collect", 60, SLEEP), Step("train", 1, SLEEP)
    assert do(slow, seconds=2.0) == {"collect": None}
    out = capsys.readouterr().out
    assert "collect: stopped" in out and "KeyboardInterrupt" in out
    assert do(slow._replace(words=["platform"]), training) == {
        "collect": 0,
        "train": -signal.SIGINT,
    }
    assert do(slow, training._replace(words=["platform"])) == {"collect": 0, "train": 0}
    too_slow = Step("speed", 1, SLEEP)
    assert do(too_slow)["speed"] == -signal.SIGINT
    assert do(too_slow._replace(words=["platform"]))["speed"] == -signal.SIGINT


def test_no_step_begins_without_time(do, capsys, tmp_path):
    assert do(Step("check", 60, ["platform"]), seconds=gpu.TRY / 2) == {}
    assert "check: no time left" in capsys.readouterr().out
    assert not (tmp_path / "check.log").exists()


def test_the_command_without_a_gpu_and_with_work_left(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="PyTorch sees no GPU here; --rehearse does without"):
        gpu.main()
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), "--rehearse"])
    steps = [Step("check", 60, ["platform"]), Step("train", 60, FAIL)]
    monkeypatch.setattr(gpu, "plan", lambda _: steps)
    with pytest.raises(SystemExit, match="not done, or not well: train; the same command"):
        gpu.main()
    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        assert archive.getnames() == ["check.log", "machine.txt", "steps.json", "train.log"]
    steps[1] = Step("train", 60, ["platform"])
    gpu.main()


def test_the_archive_holds_all_but_checkpoints(tmp_path):
    for name in ("steps.json", "runs/a/result.json", "runs/a/checkpoint.pt", "runs/a.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for _ in range(2):  # it holds no older archive
        with tarfile.open(gpu.pack(tmp_path)) as archive:
            assert archive.getnames() == ["runs/a/result.json", "steps.json"]


@pytest.mark.skipif(" " in torch.__file__, reason="PyTorch cannot compile below such a path")
@pytest.mark.slow
def test_a_rehearsal_on_a_cpu(tmp_path):
    """Needs D4RL's ant, which is never in this repository."""
    folder = Path(os.environ.get("D4RL_POLICIES", "~/.d4rl/policies")).expanduser()
    if not (folder / "ant_hierarch_pol.pkl").exists():
        pytest.skip("D4RL's ant is not here: python -m benchmarks.datasets.d4rl_policies")
    words = ["--rehearse", "--minutes", "60", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "benchmarks.speed.gpu", *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    end = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == 0, end.stdout + end.stderr
    with tarfile.open(tmp_path / "out/gpu.tar.gz") as archive:
        names = archive.getnames()
        speed = json.load(archive.extractfile("speed.json"))
    assert not any(name.endswith(".pt") for name in names)
    assert [row["script"] for row in speed["rows"]] == list(gpu.SCRIPTS)
    for name in ("por-weighted", "iql"):
        assert f"results/antmaze-umaze-2k/{name}-hidden-8-40.json" in names
