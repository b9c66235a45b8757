"""Tests of what a GPU would be trusted with: updates that a CUDA graph can record, and the command
that measures there (benchmarks/gpu.py), rehearsed on a CPU.

    python -m pytest tests/test_gpu.py
"""

import functools
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import speed  # noqa: E402
from test_peers import AGENT, BUFFER  # noqa: E402

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
TINY = ["--hidden", "8", "--batch-size", "4"]
SCRIPTS = pytest.mark.parametrize("script, own", [
    (script, [*own, *TINY]) for script, own in gpu.CHECKED], ids=lambda value: str(value[:12]))


# ---- Updates

class Watch(TorchDispatchMode):
    """Notes what a CUDA graph cannot record: an operation whose result the host must know, and a
    tensor that is made of nothing, which would be on the host or be copied from there."""

    WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2",
             "unique_dim", "repeat_interleave.Tensor"}
    # a scalar beside the condition of where(), made where the condition is; the profiler's marks
    FINE = {"scalar_tensor", "_record_function_enter_new", "_record_function_exit"}

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        name = func._schema.name.partition("::")[2]
        mask = name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
        if self.WAITS & {name, f"{name}.{func._overloadname}"} or mask:
            self.found.add(f"waits: {name}")
        if (not tensors or name == "lift_fresh") and name not in self.FINE:
            self.found.add(f"made: {name}")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("code, found", [
    (lambda x: x.sum().item(), "waits: _local_scalar_dense"),
    (lambda x: 1 if x.sum() > 0 else 2, "waits: _local_scalar_dense"),
    (lambda x: x[x > 0], "waits: index"), (lambda x: x * torch.tensor(2.0), "made: lift_fresh"),
    (lambda x: x + torch.zeros(3), "made: zeros"), (lambda x: x.nonzero(), "waits: nonzero"),
    (lambda x: x.repeat_interleave(torch.ones_like(x).long()), "waits: repeat_interleave")])
def test_the_watch_sees_what_a_graph_cannot_record(code, found):
    with Watch() as watch:
        code(torch.ones(3))
    assert found in watch.found


def build(script: str, own: list[str], execution: str = "eager"):
    """A small run of two seeds."""
    return speed.build(speed.Args(script=(script,), num_seeds=(2,), rows=2_000, threads=1,
                                  device="cpu", execution=(execution,)), own)[1]


def phases(run):
    """Number and updates of each phase, but the online one, which steps environments."""
    return [(number, updates) for number, (name, _, *updates) in enumerate(run.agent.phases)
            if name != "online"]


@SCRIPTS
def test_an_update_leaves_the_host_alone(script, own, isolated):
    run = build(script, own)
    for number, updates in phases(run):
        run.phase = number
        run.begin()
        run.advance(2 * len(updates))  # the optimisers make their state
        for turn in range(len(updates)):
            with Watch() as watch:
                run.once(turn)
            assert watch.found <= {"made: randint", "made: randn"}  # from generators of the device


@SCRIPTS
def test_nothing_is_compiled_after_the_first_updates(script, own, isolated, monkeypatch):
    """Run.advance records a graph after five updates: compiling then would break the recording."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    run, graphs = build(script, own, "compile"), []
    for number, _ in phases(run):
        run.phase, run.step = number, 0
        run.begin()
        for updates in (5, 20):
            run.advance(updates)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0::2] == graphs[1::2] and graphs[0] > 0


@SCRIPTS
def test_no_compiled_update_asks_guards(script, own, isolated, monkeypatch):
    """torch.compile takes the filter of the guards out of the options that it is given."""
    compiling, given = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda update, options, **rest: (
        given.append(options.get("guard_filter_fn")), compiling(update, options=options, **rest)))
    run = build(script, own, "compile")
    for run.phase, updates in phases(run):
        given.clear()
        run.begin()
        assert given == [torch.compiler.skip_all_guards_unsafe] * len(updates)


@SCRIPTS
def test_a_traced_update_is_the_eager_one(script, own, isolated, monkeypatch):
    """Without a compiler, so that what is left of an update is what was traced, nothing else."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    ends = []
    for way in ("eager", "compile"):
        run = build(script, own, way)
        for number, updates in phases(run):
            run.phase, run.step = number, 0
            run.begin()
            run.advance(6 * len(updates))
        ends.append({**run.agent.state_dict(), **{
            f"{name}, {i}": x for name, optimizer in run.agent.optimizers.items()
            for i, x in enumerate(optimizer.state)}})
    for name, (one, other) in {k: (ends[0][k], ends[1][k]) for k in ends[0]}.items():
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=lambda m: f"{name}: {m}")


@NEEDS_CUDA
@SCRIPTS
def test_captured_losses_are_the_eager_ones(script, own, isolated):
    config = {"own": own, "given": False, "blocks": 4, "block": 100}
    curves = [gpu.losses(config | {"speed": {
        "script": [script], "num_seeds": [2], "rows": 2_000, "device": "cuda",
        "precision": ["fp32"], "execution": [way]}})["curves"] for way in ("eager", "capture")]
    differences = gpu.difference(*curves)
    assert differences[0] <= gpu.NEAR and max(differences) <= gpu.FAR


@NEEDS_CUDA
@SCRIPTS
def test_losses_on_cuda_are_those_on_the_cpu(script, own, isolated):
    config = {"own": own, "given": True, "blocks": 4, "block": 20}
    curves = [gpu.losses(config | {"speed": {
        "script": [script], "num_seeds": [2], "rows": 2_000, "device": device,
        "precision": ["fp32"], "execution": ["eager"]}})["curves"] for device in ("cpu", "cuda")]
    assert max(gpu.difference(*curves)) <= gpu.NEAR


# ---- The command

def command(folder: Path, *words) -> subprocess.CompletedProcess:
    """benchmarks/gpu.py with a folder's own datasets, results and archive, tiny settings."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MINARI_DATASETS_PATH": str(folder / "minari")}
    tiny = ["--device", "cpu", "--execution", "eager", "--scripts", "iql", "--updates", "40",
            "--rows", "2000", "--timed-updates", "2", "--datasets", "hopper-medium", "--steps",
            "1500", "--num-seeds", "2", "--num-updates", "20", "--out", folder / "out", "--work",
            folder / "work", "--results", folder / "results"]
    own = ["--eval-every", "20", "--eval-episodes", "1", "--final-eval-episodes", "1", *TINY]
    return subprocess.run([sys.executable, BENCHMARKS / "gpu.py", *map(str, [*tiny, *words]), "--",
                           *own], env=env, text=True, capture_output=True)


def test_a_rehearsal_brings_everything_home_and_goes_on(tmp_path):
    first = command(tmp_path, "--budget-seconds", "3000")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "agree  iql cpu and cpu: 0.0e+00" in first.stdout
    with tarfile.open(tmp_path / "out/gpu.tar.gz") as archive:
        names = {*archive.getnames()}
        check = json.load(archive.extractfile("check.json"))
        numbers = json.load(archive.extractfile("results/speed/ours-cpu-halfcheetah.json"))
        result = next(name for name in names if name.startswith("results/iql-rebuilt-hopper"))
        result = json.load(archive.extractfile(result))
    assert check["comparisons"][0]["agree"] and not check["skipped"]
    assert [(row["script"], row["seeds"]) for row in numbers["rows"]] == [("iql", 1), ("iql", 10)]
    assert "iql: a million updates of one seed in" in first.stdout
    assert "iql: ten seeds take" in first.stdout and speed.table(numbers)
    assert result["finished"] and result["step"] == 20 and len(result["seeds"]) == 2
    assert {"collect-hopper-medium.log", "grid-hopper-medium.log"} <= names
    assert any(name.startswith("grid/iql-") and name.endswith("log.txt") for name in names)
    assert not [*tmp_path.rglob("*.tmp")]

    again = command(tmp_path, "--parts", "speed", "train", "--budget-seconds", "3000")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "\n| iql" not in again.stdout and "is there after" not in again.stdout  # all was done
    with tarfile.open(tmp_path / "out/gpu.tar.gz") as archive:
        assert {*archive.getnames()} == names


def test_nothing_begins_without_time(tmp_path):
    done = command(tmp_path, "--budget-seconds", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("iql cpu and cpu", "iql, 1 seeds, eager, auto", "hopper-medium: iql-rebuilt"):
        assert f"no time left for {what}" in done.stdout
    assert (tmp_path / "out/gpu.tar.gz").exists() and not (tmp_path / "minari").exists()


def test_what_the_budget_ends_is_asked_to_stop_first(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "STOP", 5)
    code = ("import signal, sys, time, pathlib; signal.signal(signal.SIGTERM, lambda *_: sys.exit("
            f"pathlib.Path({str(tmp_path / 'saved')!r}).write_text('x'))); print('on', flush=True);"
            " time.sleep(60)")
    clock, began = gpu.Clock(1.5), time.monotonic()
    assert gpu.call([sys.executable, "-c", code], clock, tmp_path / "log") is None
    assert (tmp_path / "saved").exists() and time.monotonic() - began < 6
    assert (tmp_path / "log").read_text().endswith("on\n")
    assert gpu.call([sys.executable, "-c", "raise SystemExit(3)"], gpu.Clock(60),
                    tmp_path / "log") == 3


def test_a_child_that_fails_is_quoted_with_its_traceback():
    answer = gpu.child("--losses", {}, gpu.Clock(60))
    assert answer["error"] == "code 1: KeyError: 'speed'" and "Traceback" in answer["log"]


def test_what_is_told_to_end_brings_home_what_there_is(tmp_path):
    with subprocess.Popen([sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--parts",
                           "check", "--out", "out", "--work", "work"], cwd=tmp_path,
                          stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # the machine; the first comparison begins
        time.sleep(1)
        process.terminate()
        process.communicate()
    assert process.returncode == 143
    with tarfile.open(tmp_path / "out/gpu.tar.gz") as archive:
        assert "check.json" in archive.getnames()


def test_the_difference_is_relative_by_block_and_the_largest():
    one = {"a": [[1.0, 100.0], [2.0, 200.0]], "b": [[0.0, 0.5], [0.0, 0.0]]}
    other = {"a": [[1.0, 101.0], [2.0, 200.0]], "b": [[0.0, 0.5], [0.0, 0.25]]}
    assert gpu.difference(one, one) == [0, 0]
    assert gpu.difference(one, other) == pytest.approx([0.01, 0.25])
    with pytest.raises(ValueError):
        gpu.difference(one, {"a": one["a"][:1], "b": one["b"]})


@pytest.mark.parametrize("late, bit, agrees", [
    (0.0, 0.0, True), (0.9 * gpu.FAR, 0.0, True), (1.1 * gpu.FAR, 0.0, False),
    (1.1 * gpu.FAR, 0.3 * gpu.FAR, False), (1.1 * gpu.FAR, 0.4 * gpu.FAR, True),
    (1.1 * gpu.FAR, "later", False), (1.1 * gpu.FAR, "error", False),
    (1.1 * gpu.FAR, "ended", False), ("at once", 1.0, False)])
def test_updates_that_differ_fail_the_check(tmp_path, monkeypatch, capsys, late, bit, agrees):
    """Unless as large a difference comes of the last bit of the weights, and as soon."""
    def child(word, config, clock):
        (way,) = config["speed"]["execution"]
        curve = [[1.0, 1.0] for _ in range(10)]
        if config.get("nudge"):
            if bit in ("error", "ended"):
                return {"error": "code 1: no"} if bit == "error" else gpu.ENDED
            curve[-1] = [1.0, 2.0 if bit == "later" else 1.0 - bit]
        elif way == "compile":
            curve[0 if late == "at once" else 8 if bit == "later" else -1] = [
                1.0, 1.0 + (2 * gpu.NEAR if late == "at once" else late)]
        return {"curves": {"loss": curve}, "seconds": 1.0}

    monkeypatch.setattr(gpu, "child", child)
    args = gpu.Args(out=tmp_path, work=tmp_path, device="cpu", execution=("eager", "compile"),
                    scripts=("iql",))
    assert gpu.check(args, gpu.Clock(100)) is agrees
    entries = json.loads((tmp_path / "check.json").read_text())["comparisons"]
    assert [entry["agree"] for entry in entries] == [True, agrees]
    assert ("no control: " in capsys.readouterr().out) == (bit in ("error", "ended"))


def test_the_last_bit_of_the_weights_moves_the_losses_a_little(isolated):
    fields = {"script": ["bc"], "task": "hopper", "num_seeds": [1], "precision": ["fp32"],
              "rows": 2000, "device": "cpu", "execution": ["eager"]}
    config = {"own": TINY, "given": False, "block": 20, "blocks": 2, "speed": fields}
    plain, again, nudged = (gpu.losses(config | extra)["curves"]
                            for extra in ({}, {"nudge": False}, {"nudge": True}))
    assert plain == again and 0 < max(gpu.difference(plain, nudged)) < 1e-4


def test_the_page_tells_what_the_stored_checks_found():
    text = " ".join((BENCHMARKS / "SPEED.md").read_text().split())
    told = {"iql": "IQL", "td3_bc": "TD3+BC", "por --guide weighted": "POR, weighted guide",
            "por --guide q": "POR, q guide", "spot": "SPOT", "bc": "BC"}
    stored = lambda name: {e["what"]: e for e in json.loads((
        BENCHMARKS / f"results/speed/{name}.json").read_text())["comparisons"]}
    for what, name in told.items():
        entry = stored("check-cpu")[f"{what} eager and compile"]
        assert entry["first"] <= gpu.NEAR and (entry["largest"] <= gpu.FAR or what == "spot")
        assert f"| {name} | {entry['first']:.1e} | {entry['largest']:.1e} |" in text
    spot = stored("check-cpu-spot")["spot eager and compile"]
    words = (f"differ by {spot['largest']:.1e} again, eager ones from weights that were moved by "
             f"their last bit by {spot['last_bit']:.1e}")
    assert spot["agree"] and words in text
    anew = [stored("check-cpu-unguarded")[f"{what} eager and compile"] for what in ("iql", "td3_bc")]
    ends = [f"{entry['first']:.1e} and {entry['largest']:.1e}" for entry in anew]
    assert all(entry["agree"] for entry in anew)
    assert f"IQL {ends[0]}, TD3+BC {ends[1]} beside {anew[1]['last_bit']:.1e} of eager" in text
    anew = [stored("check-cpu-turns-unguarded")[f"{what} eager and compile"]
            for what in ("td3_bc", "spot")]
    ends = [f"{entry['first']:.1e} and {entry['largest']:.1e} beside {entry['last_bit']:.1e}"
            for entry in anew]
    assert all(entry["agree"] for entry in anew)
    assert f"TD3+BC {ends[0]}, SPOT {ends[1]}." in text


def test_the_page_tells_how_eager_and_compiled_trainings_ended():
    text, results = (BENCHMARKS / "SPEED.md").read_text(), BENCHMARKS / "results"
    for name in ("hopper-medium-replay-81k", "walker2d-medium-replay-177k"):
        ends, cells = [], []
        for path in (f"speed/bc-{name}-30k-eager.json",
                     f"bc-rebuilt-{name}-v0-30k-precision-auto.json"):
            result = json.loads((results / path).read_text())
            scores = result["final"]["scores"]
            assert result["finished"] and result["final"]["update"] == 30_000
            ends.append(result["task"]["fingerprint"] + result["args"]["execution"])
            cells.append(f"[{np.mean(scores):.1f} ± {np.std(scores):.1f}](results/{path})")
        assert ends[0].removesuffix("eager") == ends[1].removesuffix("compile")
        assert f"| {' | '.join(cells)} |" in text


def test_an_update_that_fails_is_told_and_fails_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "child", lambda *_: {"error": "code 1: no such operation"})
    args = gpu.Args(out=tmp_path, work=tmp_path, device="cpu", scripts=("bc",))
    assert not gpu.check(args, gpu.Clock(100))
    assert "DIFFER bc cpu and cpu: code 1: no such operation" in capsys.readouterr().out


def test_what_the_budget_cuts_off_is_no_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "child", lambda *_: gpu.ENDED)
    args = gpu.Args(out=tmp_path, work=tmp_path, device="cpu", execution=("eager", "compile"),
                    scripts=("iql",))
    assert gpu.check(args, gpu.Clock(100))
    out = capsys.readouterr().out
    assert "DIFFER" not in out and "no time left for iql cpu and cpu, iql eager and compile" in out
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["comparisons"] == [] and len(report["skipped"]) == 2


def test_a_second_check_does_only_what_did_not_agree(tmp_path, monkeypatch, capsys):
    asked, late = [], 1.0

    def child(word, config, clock):
        way = config["speed"]["execution"][0], config["given"]
        asked.append(way)
        return {"curves": {"loss": [[1.0]] * 9 + [[1.0 + late * (way[0] == "compile")]]},
                "seconds": 1.0}

    monkeypatch.setattr(gpu, "child", child)
    args = gpu.Args(out=tmp_path, work=tmp_path, device="cpu", execution=("eager", "compile"),
                    scripts=("iql",))
    assert not gpu.check(args, gpu.Clock(100))
    assert asked == [("eager", True), ("eager", False), ("compile", False), ("eager", False)]
    assert not gpu.check(args, gpu.Clock(1))  # no time: what failed still counts
    late = 0.0
    assert gpu.check(args, gpu.Clock(100))
    assert asked[4:] == [("eager", False), ("compile", False)]
    assert gpu.check(args, gpu.Clock(100)) and len(asked) == 6
    args.rows = 1_000  # other numbers are no evidence
    assert gpu.check(args, gpu.Clock(100)) and len(asked) == 9
    assert "begun anew" in capsys.readouterr().out


def test_times_of_other_settings_are_not_taken_over(tmp_path, monkeypatch):
    row = {"seconds": [1.0] * 5, "updates": 2_000, "machine": "this", "warmup": 1.0,
           "evaluation": 1.0, "sampling": None, "optimiser": None, "operations": 1.0, "memory": 1,
           "limit": 1.0, "device": "cpu", "execution": "eager", "precision": "fp32"}
    times = []
    monkeypatch.setattr(gpu, "child", lambda *_: times.append(1) or dict(row))
    args = gpu.Args(out=tmp_path, work=tmp_path, device="cpu", execution=("eager",),
                    scripts=("iql",), timed_updates=2)
    gpu.measure(args, gpu.Clock(100))
    assert len(times) == 2  # one seed, ten
    gpu.measure(args, gpu.Clock(100))
    assert len(times) == 2
    args.timed_updates = 2_000
    gpu.measure(args, gpu.Clock(100))
    (path,) = tmp_path.glob("results/speed/*.json")
    numbers = json.loads(path.read_text())
    assert len(times) == 4 and len(numbers["rows"]) == 2
    assert numbers["command"].endswith("--timed-updates 2000")


def test_verdicts_take_the_fastest_execution():
    row = {"asked_precision": "auto", "updates": 1_000}
    lines = gpu.verdicts([
        row | {"script": "iql", "seeds": 1, "seconds": [0.1]},
        row | {"script": "iql", "seeds": 1, "seconds": [0.2]},
        row | {"script": "iql", "seeds": 10, "seconds": [0.3]},
        row | {"script": "iql", "seeds": 1, "seconds": [0.01], "asked_precision": "bf16"},
        row | {"script": "por", "seeds": 1, "seconds": [0.2]}])
    assert lines == ["iql: a million updates of one seed in 100 s, aim 120 s: met",
                     "iql: ten seeds take 3.00 times the time of one, aim 2: missed",
                     "por: a million updates of one seed in 200 s, aim 180 s: missed"]


def test_verdicts_beside_jax_take_the_fastest():
    row = lambda code, ms, seeds=1, script="iql", **more: {
        "code": code, "script": script, "seeds": seeds, "updates": 10,
        "seconds": [ms * seeds / 100] * 3, **more}
    lines = gpu.jax_verdicts([
        row("ours", 2.0), row("ours", 1.5), row("ours", 0.4, 10), row("theirs", 2.0, jax="JAX 1"),
        row("others", 1.6, jax="JAX 1"), row("torch", 0.1), row("ours", 1.0, script="por"),
        row("torch", 2.0, script="por")])
    assert lines == ["iql: an update of one seed takes 1.500 ms, in JAX 1.600, aim at most that: "
                     "met", "iql: ten seeds have 4.0 times the seed-updates of JAX, aim 5: missed"]


@pytest.mark.parametrize("scripts, seconds, end", [
    (("iql",), 170, "nine sets 30 min, extrapolated from 2, aim 30 min: met"),
    (("iql",), 190, "nine sets 33 min, extrapolated from 2, aim 30 min: missed"),
    ((), 170, "extrapolated from 2; others had the card, too, so this is no verdict")])
def test_nine_sets_are_extrapolated_from_what_was_trained(tmp_path, scripts, seconds, end):
    results = []
    for name, updates, device in (("a", 1_000_000, "cuda:0 (H)"), ("b", 1_000_000, "cuda (H)"),
                                  ("short", 1_000, "cuda (H)"), ("cpu", 1_000_000, "cpu (x)")):
        results.append(tmp_path / name)
        results[-1].write_text(json.dumps({
            "script": "iql", "args": {"num_updates": updates, "num_seeds": 5},
            "parts": [{"device": device, "training_seconds": seconds, "evaluation_seconds": 10},
                      {"device": device, "training_seconds": 15, "evaluation_seconds": 5}]}))
    line, = gpu.nine(gpu.Args(out=tmp_path, scripts=scripts), results)
    assert line.startswith(f"iql: 1,000,000 updates of 5 seeds take {seconds + 30} s a set, ")
    assert line.endswith(end)


def test_peers_are_measured_and_their_numbers_come_home(tmp_path, monkeypatch, capsys):
    (folder := tmp_path / "others/TD3_BC").mkdir(parents=True)
    (folder / "TD3_BC.py").write_text(AGENT)
    (folder / "utils.py").write_text(BUFFER)
    call = gpu.call
    monkeypatch.setattr(gpu, "call", lambda words, *more: call(
        [*words, "--blocks", "2", "--seconds", "0.05", "--threads", "1"], *more))
    monkeypatch.setattr(gpu.socket, "setdefaulttimeout", lambda seconds: None)
    gpu.main([*map(str, ["--parts", "peers", "--checkouts", tmp_path / "others", "--scripts",
                         "td3_bc", "--task", "hopper", "--rows", "2000", "--budget-seconds", "3000",
                         "--device", "cpu", "--execution", "eager", "--out", tmp_path / "out",
                         "--work", tmp_path / "work"])])
    assert "sfujim/TD3_BC: TD3_BC.py" in capsys.readouterr().out
    with tarfile.open(tmp_path / "out/gpu.tar.gz") as archive:
        archive.extractall(tmp_path / "home", filter="data")
    page = tmp_path / "home/SPEED.md"
    page.write_text("<!-- speed-gpu:begin -->\n<!-- speed-gpu:end -->\n")
    gpu.peers.main(["--rewrite", "--machine", "gpu", "--out", str(page)])
    assert page.read_text() == (tmp_path / "home/peers.md").read_text()
    assert "sfujim/TD3_BC: TD3_BC.py" in page.read_text()
    (page.parent / "results/speed/peers-gpu.json").unlink()
    with pytest.raises(SystemExit, match="with results/speed/peers-gpu.json beside it"):
        gpu.peers.main(["--rewrite", "--machine", "gpu", "--out", str(page)])


@pytest.mark.parametrize("words, complaint", [
    (["--device", "cuda"], "sees no GPU here"), (["--updates", "0"], "--updates must be at least"),
    (["--scripts", "dt"], "--scripts dt: no such script"), (["--task", "chess"], "choose one of"),
    (["--parts", "peers"], "--parts peers needs --checkouts"),
    (["--datasets", "chess-medium"], "unknown dataset 'chess-medium'"),
    (["--datasets", "rebuilt/hopper/medium-100k-v0"], "name the recipe, hopper-medium; its size is "
                                                      "--steps")])
def test_gpu_says_what_is_wrong(words, complaint, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--out", str(tmp_path / "out"), "--device", "cpu", *words])
    assert complaint in str(stop.value) and "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_at_once(tmp_path):
    """Before any of them is imported."""
    code = ("import importlib.util, runpy, sys; find = importlib.util.find_spec; absent = 'tyro', "
            "'minari'; importlib.util.find_spec = lambda name, *more: None if name in absent else "
            f"find(name, *more); runpy.run_path({str(BENCHMARKS / 'gpu.py')!r}, run_name='x')")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                          cwd=tmp_path)
    assert done.returncode == 1 and "not installed here: tyro, minari." in done.stderr
    assert "Traceback" not in done.stderr
