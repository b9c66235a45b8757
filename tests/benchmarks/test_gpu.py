"""Tests of what a GPU would be trusted with: updates that a CUDA graph can record, and
benchmarks/speed/gpu.py, rehearsed on a CPU.

python -m pytest tests/benchmarks/test_gpu.py
"""

import json
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed import gpu
from benchmarks.speed.ours import Config, build

pytestmark = pytest.mark.usefixtures("isolated")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
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


@NEEDS_CUDA
@SCRIPTS
def test_a_graph_gives_the_losses_of_the_cpu(variant):
    script, *words = variant
    common = {"script": script, "num_seeds": 2, "rows": 2_000, "words": [*words, *TINY]}
    reference = gpu.loss_curves(Config(**common), 60)
    graph = Config(**common, device="cuda", execution="graph")
    assert gpu.difference(gpu.loss_curves(graph, 60), reference) <= gpu.TOLERANCE
    assert gpu.draws_are_new(graph)


# ---- The check ----


def config(*words: str) -> Config:
    return Config("por", "hopper", 2, rows=2_000, words=[*TINY, *words])


def test_batches_are_fixed_and_repeat():
    _, run = build(config())
    fixed = [gpu.FixedBatches(run.buffer) for _ in range(2)]
    one, other = ([buffer.sample() for _ in range(17)] for buffer in fixed)
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(one[0]["rewards"], one[16]["rewards"])
    assert not torch.equal(one[0]["rewards"], one[1]["rewards"])
    assert one[0]["observations"].shape == (2, 4, 11)


def test_loss_curves_need_no_chance(monkeypatch):
    """The q guide draws noise, and devices draw other numbers, as another seed does."""
    found = []
    for seed in (1, 2):

        def build_for_other_draws(config, seed=seed):
            script, run = build(config)
            torch.manual_seed(seed)
            return script, run

        monkeypatch.setattr(gpu, "build", build_for_other_draws)
        found.append(gpu.loss_curves(config(), 3))
    assert found[0]["loss/guide"].shape == (3, 2)
    assert gpu.difference(*found) == 0
    other = gpu.loss_curves(config("--discount", "0.5"), 3)
    assert gpu.difference(found[0], other) > gpu.TOLERANCE


def test_the_difference_is_relative_above_1_and_the_largest():
    one = {"a": np.array([[1.0, 100.0]]), "b": np.array([[0.0, 0.5]])}
    assert gpu.difference(one, one) == 0
    assert gpu.difference({"a": one["a"] + 1, "b": one["b"]}, one) == 1
    assert gpu.difference({"a": one["a"], "b": one["b"] + 0.25}, one) == 0.25
    assert np.isnan(gpu.difference({"a": one["a"] * np.nan, "b": one["b"]}, one))


def test_draws_that_repeat_are_found(monkeypatch):
    assert gpu.draws_are_new(config())
    script, run = build(config())
    batch = run.buffer.sample()
    monkeypatch.setattr(run.buffer, "sample", lambda: batch)

    def build_again(_):
        return script, run

    monkeypatch.setattr(gpu, "build", build_again)
    assert not gpu.draws_are_new(config())


@pytest.mark.parametrize("error, agrees", [(0.0, True), (1.0, False), (np.nan, False)])
def test_updates_that_differ_fail_the_check(tmp_path, monkeypatch, capsys, error, agrees):
    def loss_curves(config, count):
        off = error if config.execution == "compile" else 0
        return {"loss": np.full((count, 2), 1.0 + off)}

    monkeypatch.setattr(gpu, "loss_curves", loss_curves)
    monkeypatch.setattr(gpu, "draws_are_new", lambda _: True)
    args = gpu.Args(tmp_path, device="cpu", scripts=("por",))
    assert gpu.check(args, time.monotonic() + 1_000) == agrees
    found = json.loads((tmp_path / "check.json").read_text())["found"]
    assert list(found) == ["por cpu compile", "por --guide q cpu compile"]
    assert [entry["agrees"] for entry in found.values()] == [agrees] * 2
    assert ("DIFFERS por cpu compile" in capsys.readouterr().out) != agrees


def test_nothing_begins_without_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "loss_curves", lambda *_: {"loss": np.zeros((1, 2))})
    args = gpu.Args(tmp_path, device="cpu", scripts=("bc",))
    assert gpu.check(args, time.monotonic() + 30)
    gpu.call([sys.executable, "-c", "print(1)"], tmp_path / "train.log", time.monotonic() + 30)
    out = capsys.readouterr().out
    assert "no time left for bc cpu compile" in out and "no time left for train" in out
    assert not (tmp_path / "train.log").exists()


def test_what_the_end_of_the_time_finds_gets_a_ctrl_c(tmp_path, monkeypatch, capsys):
    code = "import time\ntry: time.sleep(90)\nexcept KeyboardInterrupt: print('saved')"
    monkeypatch.setattr(gpu, "ENOUGH", 0)
    gpu.call([sys.executable, "-c", code], tmp_path / "train.log", time.monotonic() + 2)
    assert (tmp_path / "train.log").read_text() == "saved\n"
    assert "train ended with code 0" in capsys.readouterr().out


def test_the_archive_holds_all_but_checkpoints(tmp_path):
    for name in ("check.json", "run/result.json", "run/checkpoint.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for _ in range(2):  # it holds no older archive
        with tarfile.open(gpu.pack(tmp_path)) as archive:
            assert archive.getnames() == ["check.json", "run/result.json"]


@pytest.mark.skipif(" " in torch.__file__, reason="PyTorch cannot compile below such a path")
@pytest.mark.slow
def test_a_rehearsal_on_a_cpu(tmp_path, monkeypatch):
    words = f"--out {tmp_path}/out --device cpu --minutes 20 --scripts bc --rows 2000 --num-seeds 2"
    words += " --check-updates 5 --seconds 0.05 --eval-episodes 1 --dataset rebuilt/hopper/"
    words += "medium-2k-v0 -- --num-updates 20 --eval-episodes 1 --final-eval-episodes 1"
    monkeypatch.setattr(sys, "argv", ["gpu", *words.split(), *TINY])
    gpu.main()
    with tarfile.open(tmp_path / "out/gpu.tar.gz") as archive:
        names = archive.getnames()
        speed = json.load(archive.extractfile("speed.json"))
        result = json.load(archive.extractfile("run/result.json"))
    assert {"check.json", "collect.log", "train.log"} <= set(names)
    assert [(row["script"], row["seeds"]) for row in speed["rows"]] == [("bc", 2)]
    assert result["finished"] and result["step"] == 20
