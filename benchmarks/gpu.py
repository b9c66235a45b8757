"""The GPU half of the measurements, unattended: check, speed, peers, train.

For a machine with a GPU, this repository and the packages of requirements.txt (PyTorch 2.11 or
newer, Python 3.11 or newer), and nothing else: no network, no dataset. The parts, in this order:

- check: the same updates on the CPU and on the GPU, from the same weights and batches in fp32, give
  the same losses; captured, compiled and eager ones on the GPU do over 1,000 updates; then the
  tests that need CUDA. Differences are relative, |a - b| / max(1, |a|), of the losses averaged over
  blocks of updates, the largest of all seeds. Where they begin as rounding and end above a bound,
  the eager updates run once more from weights off by their last bit: up to three times what that
  makes counts as agreement. It has half of the time if another part follows.
- speed: benchmarks/speed.py's table, the rows of the aims first: a million updates of one seed in
  120 s (IQL, TD3+BC) and 180 s (POR), ten seeds in at most twice the time of one.
- peers, only if asked for: benchmarks/peers.py with the checkouts of other people's code that lie
  in --checkouts: at least the speed of those in JAX for one seed, five times their seed-updates
  with ten.
- train: builds the datasets from the policies in benchmarks/behavior/ (collect.py) and trains
  through run.py what benchmarks/results/ lacks, dataset by dataset, all algorithms at once. While
  one of them evaluates, which needs the CPU, the others have the GPU. With one of --scripts, alone
  on the card and before the others: nine sets of five seeds in 30 minutes, extrapolated from the
  sets that were trained.

    python benchmarks/gpu.py --parts check --budget-seconds 540 --out out         # again: goes on
    python benchmarks/gpu.py --parts speed --execution capture --budget-seconds 540 --out out # too
    python benchmarks/gpu.py --parts train --scripts iql --datasets hopper-medium \\
        halfcheetah-medium walker2d-medium --budget-seconds 540 --out out
    python benchmarks/gpu.py --parts train --budget-seconds 540 --out out         # too
    python benchmarks/gpu.py --parts peers --checkouts others --budget-seconds 540 --out out

Nothing begins that the budget has no room for; what still runs at its end is ended, a training
after its checkpoint. The same command again does what is missing: what agreed and what was timed
stays, as long as machine, sources and settings are the same (peers.py begins anew). Whatever is
there then lies in one archive, OUT/gpu.tar.gz: check.json, the numbers for results/speed/, the
finished results for results/, and the logs; an unfinished training's checkpoint stays where it is,
and goes with the machine. Unpack it, put the results into their places, and write the page by
`python benchmarks/speed.py --rewrite --out benchmarks/SPEED.md`, and `python benchmarks/peers.py
--rewrite --machine gpu --out benchmarks/SPEED.md`, which names the two lines that it needs there.
The exit code is 1 if a check failed. On a CPU (--device cpu) everything runs,
with small settings within seconds, but no capture.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

NEEDED = ("torch", "tyro", "gymnasium", "gymnasium_robotics", "h5py", "minari", "mujoco", "numpy",
          "pytest", "tensorboard", "tqdm")
if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    raise SystemExit(f"not installed here: {', '.join(absent)}. Without a network: pip download "
                     "them elsewhere for this Python, then pip install --no-index --find-links "
                     "FOLDER")

import torch  # noqa: E402
import tyro  # noqa: E402

import collect  # noqa: E402
import peers  # noqa: E402
import recipes  # noqa: E402
import run  # noqa: E402
import speed  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# Scripts and their own options that are checked, in the order of what would hurt most
CHECKED = (("iql", ()), ("td3_bc", ()), ("por", ("--guide", "weighted")), ("por", ("--guide", "q")),
           ("spot", ()), ("bc", ()))
# Rows of the speed table, the aims' first: scripts, seeds, execution, precision
AIMS = {"iql": 120, "td3_bc": 120, "por": 180}  # seconds per million updates of one seed
TIMED = [(tuple(AIMS), (1, 10), "capture", "auto"), (tuple(AIMS), (1,), "compile", "auto"),
         (tuple(AIMS), (1,), "eager", "auto"), (tuple(AIMS), (5, 20), "capture", "auto"),
         (tuple(AIMS), (1, 10), "capture", "bf16"), (("bc", "spot"), (1, 10), "capture", "auto"),
         (tuple(AIMS), (10,), "eager", "auto")]
# Option of peers.py and the checkout's name in --checkouts, where jax/bin/python has JAX
CHECKOUTS = {"corl": "CORL", "td3-bc": "TD3_BC", "spot": "SPOT", "por": "POR",
             "jax-corl": "JAX-CORL", "unifloral": "unifloral"}
NINE = 30  # minutes for a million updates of five seeds on nine sets, an aim
# Another order of sums differs by 1e-7, and updates let that grow: on a CPU compiled losses were
# off the eager ones by 1e-5 or less in the first 100 of 1,000 updates, later by up to 7e-2 (SPOT).
NEAR, FAR = 1e-3, 2e-2  # largest difference in the first tenth of the updates, and in all of them
CHAOS = 3  # times what the last bit of the weights has made so far is allowed, too
STOP = 40  # seconds that a training gets to write its checkpoint, of the budget
ENDED = {"error": "the budget ended"}


@dataclass
class Args:
    out: Path
    """folder for gpu.tar.gz"""
    parts: tuple[Literal["check", "speed", "peers", "train"], ...] = ("check", "speed", "train")
    """what to do, in this order"""
    budget_seconds: float = 540
    """for all parts together, from the start of the command"""
    work: Path = Path("runs/gpu")
    """folder for numbers, logs and the run folders; the same one again: goes on"""
    results: Path = ROOT / "benchmarks" / "results"
    """folder of the finished trainings; what it has is not trained again"""
    checkouts: Path | None = None
    """peers: folder with some of CORL, TD3_BC, SPOT, POR, JAX-CORL, unifloral, jax/bin/python"""
    device: str = "cuda"
    """cuda, cuda:1, ..., or cpu for a rehearsal"""
    execution: tuple[str, ...] = ("eager", "compile", "capture")
    """check, speed: how updates run; without capture on a CPU"""
    scripts: tuple[str, ...] = ()
    """all parts: only these (default: each part's own list)"""
    updates: int = 1_000
    """check: updates of the comparison of executions; that with the CPU takes a fifth of them"""
    task: str = "halfcheetah"
    """check, speed: dimensions"""
    rows: int = 1_000_000
    """check, speed: synthetic transitions"""
    timed_updates: int = 2_000
    """speed: updates of a block; five blocks each"""
    datasets: tuple[str, ...] = tuple(
        f"{name}-{kind}" for kind in ("medium", "medium-replay", "medium-expert")
        for name in ("hopper", "halfcheetah", "walker2d"))
    """train: recipes of collect.py, in this order"""
    steps: int | None = None
    """train: transitions of each dataset (default: D4RL's number)"""
    num_seeds: int = 5
    """train: seeds of each training"""
    num_updates: int = 1_000_000
    """train: updates of each training"""


class Clock:
    """What is left of the budget."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def say(text: str) -> None:
    print(text, flush=True)


def basis(args: Args, *names: str) -> dict:
    """What two calls must have in common for one to go on with the other's numbers."""
    digest = hashlib.sha256()
    for path in sorted([*speed.ALGORITHMS.glob("*.py"), *Path(__file__).parent.glob("*.py")]):
        digest.update(path.read_bytes())
    return {"machine": speed.machine(torch.device(args.device)), "sources": digest.hexdigest(),
            **{name: getattr(args, name) for name in names}}


def earlier(path: Path, same: dict) -> dict | None:
    """An earlier call's file if it has that basis."""
    if path.exists():
        report = json.loads(path.read_text())
        if report.get("basis") == same:
            return report
        say(f"{path.name} is of another machine, source or setting: begun anew")
    return None


def call(command: list, clock: Clock, log: Path, **options) -> int | None:
    """Run a command, its output into `log`; None if the budget ended first. It is asked to stop
    and, if it does not within STOP seconds, killed with all that it started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file,
                                   stdin=subprocess.DEVNULL, start_new_session=True, **options)
        try:
            return process.wait(max(0.1, clock.left()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# ---- Check

def losses(config: dict) -> dict:
    """Statistics of a short training, averaged over blocks of updates: name -> blocks x seeds.

    config: "speed" (fields of speed.Args), "own" (the script's options), "blocks", "block",
    "given": whether batches come from a run on the CPU, so that any device gets the same, and, if
    it is there, "nudge": whether the weights begin one floating-point number further up.
    """
    args = speed.Args(**config["speed"])
    script, run, _, facts = speed.build(args, config["own"])
    if config.get("nudge"):
        for weight in run.agent.parameters():
            weight.data = weight.data.nextafter(weight.data + 1)
    if config["given"]:
        fields = config["speed"] | {"device": "cpu", "execution": ["eager"]}
        twin = speed.build(speed.Args(**fields), config["own"])[1]
        run.batch = lambda: {k: v.to(run.device) for k, v in twin.batch().items()}
    curves, clock = {}, time.perf_counter()
    for _ in range(config["blocks"]):
        run.advance(config["block"])
        for name, values in run.means().items():
            curves.setdefault(name, []).append(values.tolist())
    return facts | {"curves": curves, "seconds": time.perf_counter() - clock}


def difference(one: dict, other: dict) -> list[float]:
    """Largest relative difference of two `curves` in each block."""
    blocks = zip(*(zip(one[name], other[name], strict=True) for name in sorted(one)), strict=True)
    return [max(abs(a - b) / max(1, abs(a)) for mine, its in block
                for a, b in zip(mine, its, strict=True)) for block in blocks]


def compare(args: Args, clock: Clock, report: dict) -> None:
    """Fill report["comparisons"] until the budget ends."""
    block = max(20, args.updates // 10 // 20 * 20)  # whole graphs, whole turns
    few = max(2, args.updates // 5 // 20)
    scripts = args.scripts or tuple(name for name, _ in CHECKED)
    for script, own in [pair for pair in CHECKED if pair[0] in scripts]:
        fields = {"script": [script], "task": args.task, "num_seeds": [2], "precision": ["fp32"],
                  "rows": args.rows}
        given = {"own": own, "given": True, "block": 20, "blocks": few}
        drawn = {"own": own, "given": False, "block": block,
                 "blocks": math.ceil(args.updates / block)}
        on = lambda device, way: {"speed": fields | {"device": device, "execution": [way]}}
        pairs = [("cpu and " + args.device, given | on("cpu", "eager"),
                  given | on(args.device, "eager"))]
        pairs += [(f"eager and {way}", drawn | on(args.device, "eager"),
                   drawn | on(args.device, way)) for way in args.execution if way != "eager"]
        known = {}
        agreed = {entry["what"] for entry in report["comparisons"] if entry["agree"]}
        for name, *configs in pairs:
            title = " ".join([script, *own, name])
            if title in agreed:
                continue
            if clock.left() < 20:
                report["skipped"].append(title)
                continue
            found = []
            for config in configs:
                key = json.dumps(config)
                if key not in known:
                    known[key] = child("--losses", config, clock)
                found.append(known[key])
            wrong = [answer for answer in found if "error" in answer]
            if ENDED in wrong:
                report["skipped"].append(title)
                continue
            entry = {"what": title, "updates": configs[0]["block"] * configs[0]["blocks"]}
            if wrong:
                entry |= {"agree": False} | wrong[0]
            else:
                parts = difference(*(answer["curves"] for answer in found))
                first = max(parts[:max(1, len(parts) // 10)])
                entry |= {"differences": parts, "first": first, "largest": max(parts),
                          "seconds": [answer["seconds"] for answer in found],
                          "curves": [answer["curves"] for answer in found]}
                entry |= {"agree": first <= NEAR and entry["largest"] <= FAR}
                if first <= NEAR and not entry["agree"]:
                    key = json.dumps(config := configs[0] | {"nudge": True})
                    if key not in known:
                        known[key] = child("--losses", config, clock)
                    if "error" in known[key]:
                        entry["control"] = known[key]["error"]
                    else:
                        bits = difference(found[0]["curves"], known[key]["curves"])
                        entry |= {"last_bit": max(bits), "bits": bits, "agree": all(
                            part <= max(FAR, CHAOS * bit)
                            for part, bit in zip(parts, itertools.accumulate(bits, max)))}
            report["comparisons"] = [old for old in report["comparisons"] if old["what"] != title]
            report["comparisons"].append(entry)
            say(f"{'agree' if entry['agree'] else 'DIFFER':6} {title}: " + (
                entry["error"] if wrong else f"{entry['first']:.1e} in the first updates, "
                f"{entry['largest']:.1e} in {entry['updates']}") + (
                f"; the last bit of the weights makes {entry['last_bit']:.1e}"
                if "last_bit" in entry else "")
                + (f"; no control: {entry['control']}" if "control" in entry else ""))


def child(word: str, config: dict, clock: Clock) -> dict:
    """The answer of this file in a process of its own, the last line it prints, or what went wrong:
    {"error": the last line that names an exception, "log": the end of its traceback}."""
    try:
        done = subprocess.run([sys.executable, __file__, word, json.dumps(config)], text=True,
                              capture_output=True, timeout=max(1, clock.left()))
    except subprocess.TimeoutExpired:
        return ENDED
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["without a word"]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Unsupported)\b", line)]
    return {"error": f"code {done.returncode}: {(named or lines)[-1][:300]}",
            "log": done.stderr[-20_000:]}


def check(args: Args, clock: Clock) -> bool:
    """Part one; writes check.json and says whether all that was compared agreed."""
    path, same = args.work / "check.json", basis(args, "updates", "task", "rows")
    before = earlier(path, same) or {"comparisons": [], "tests": {"code": None}}
    report = {"machine": same["machine"], "commit": speed.commit(), "date": time.strftime("%F"),
              "basis": same, "skipped": [], "tests": before["tests"],
              "comparisons": before["comparisons"]}
    say(report["machine"])
    tests = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k",
             "captured or cuda", ROOT / "tests" / "test_por.py", ROOT / "tests" / "test_gpu.py"]
    try:
        compare(args, clock, report)
        if args.device != "cpu" and report["tests"]["code"] != 0:
            code = call(tests, clock, args.work / "tests.log", cwd=ROOT) if (
                clock.left() > 60) else None
            if code is None:
                report["skipped"].append("the tests that need CUDA")
            else:
                end = (args.work / "tests.log").read_text()[-3_000:]
                report["tests"] = {"code": code, "end": end}
                say(f"tests that need CUDA: code {code}")
    finally:
        speed.write(path, json.dumps(report, indent=1) + "\n")
    if report["skipped"]:
        say(f"no time left for {', '.join(report['skipped'])}")
    return (all(entry["agree"] for entry in report["comparisons"])
            and report["tests"]["code"] in (0, None))


# ---- Speed

def measure(args: Args, clock: Clock) -> None:
    """Part two; the file of numbers holds whatever has been measured."""
    kind = torch.device(args.device).type
    same = basis(args, "task", "rows", "timed_updates")
    numbers = {"command": f"python benchmarks/gpu.py --parts speed --device {args.device} --task "
               f"{args.task} --rows {args.rows} --timed-updates {args.timed_updates}",
               "commit": speed.commit(), "machine": same["machine"], "basis": same,
               "date": time.strftime("%F"), "load": os.getloadavg()[0], "task": args.task,
               "phase": "train", "repeats": 5, "eval_episodes": 10, "rows": []}
    path = args.work / "results" / "speed" / f"{speed.PREFIX}{kind}-{args.task}.json"
    numbers["rows"] = (earlier(path, same) or numbers)["rows"]
    key = lambda row: tuple(row[k] for k in ("script", "seeds", "asked", "asked_precision"))
    known = {key(row) for row in numbers["rows"]}
    say(speed.heading())
    wanted = dict.fromkeys(  # on a CPU capture becomes compile, once
        (script, count, way if kind == "cuda" or way != "capture" else "compile", precision)
        for names, seeds, way, precision in TIMED for count in seeds for script in names)
    for way in wanted:
        script, count, execution, precision = way
        left_out = args.scripts and script not in args.scripts
        if left_out or execution not in args.execution or way in known:
            continue
        if clock.left() < 45:
            say(f"no time left for {script}, {count} seeds, {execution}, {precision}")
            continue
        config = speed.Args(script=(script,), task=args.task, num_seeds=(count,),
                            execution=(execution,), precision=(precision,), device=args.device,
                            updates=args.timed_updates, warmup=100, rows=args.rows)
        answer = child("--measure", asdict(config), clock)
        if "error" in answer:
            say(f"{script}, {count} seeds, {execution}, {precision}: {answer['error']}")
            log = args.work / f"speed-{script}-{count}-{execution}-{precision}.log"
            log.write_text(answer.get("log", answer["error"]) + "\n")
            continue
        row = {"script": script, "options": "", "seeds": count, "eval_every": 5_000,
               "asked": execution, "asked_precision": precision} | answer
        del row["machine"]
        numbers["rows"].append(row)
        speed.write(path, json.dumps(numbers, indent=1) + "\n")
        say(speed.table_row(row))
    say("\n".join(verdicts(numbers["rows"])))


def verdicts(rows: list[dict]) -> list[str]:
    """The aims beside what was measured, of the fastest execution in the scripts' own precision."""
    best, lines = {}, []
    for row in rows:
        if row["asked_precision"] == "auto":
            at = row["script"], row["seeds"]
            best[at] = min(best.get(at, math.inf), speed.per_update(row))
    for script, seconds in AIMS.items():
        one, ten = best.get((script, 1)), best.get((script, 10))
        if one:
            lines.append(f"{script}: a million updates of one seed in {1_000 * one:.0f} s, aim "
                         f"{seconds} s: {'met' if 1_000 * one <= seconds else 'missed'}")
        if one and ten:
            lines.append(f"{script}: ten seeds take {ten / one:.2f} times the time of one, aim 2: "
                         + ("met" if ten <= 2 * one else "missed"))
    return lines


# ---- Peers

def beside_peers(args: Args, clock: Clock) -> None:
    """peers.py's tables and numbers, and what they say about the aims."""
    mark, numbers = peers.places("gpu")
    page, log = args.work / "peers.md", args.work / "peers.log"
    page.write_text(f"<!-- {mark}:begin -->\n<!-- {mark}:end -->\n")
    ways = [way for way in args.execution if way != "eager"] or ["eager"]
    words = [sys.executable, ROOT / "benchmarks" / "peers.py", "--device", args.device, "--tasks",
             args.task, "--rows", args.rows, "--num-seeds", 1, 10, "--execution", *ways,
             "--machine", "gpu", "--out", page, *["--scripts", *args.scripts] * bool(args.scripts)]
    for option, name in CHECKOUTS.items():
        if (args.checkouts / name).is_dir():
            words += [f"--{option}", args.checkouts / name]
    if (python := args.checkouts / "jax" / "bin" / "python").exists():
        words += ["--jax-python", python]
    code = call(words, clock, log)
    if code is None:
        say("the budget ended before peers.py did, which writes at its end: name fewer --scripts")
    elif code:
        say(f"peers.py failed: {log.read_text().splitlines()[-1][:300]}")
    else:
        say(page.read_text())
        say("\n".join(jax_verdicts(json.loads((page.parent / numbers).read_text())["timings"])))


def jax_verdicts(timings: list[dict]) -> list[str]:
    """The aims beside the fastest code in JAX."""
    lines = []
    for script in dict.fromkeys(t["script"] for t in timings if "jax" in t):
        members = [t for t in timings if t["script"] == script]
        its = min(peers.milliseconds(t) for t in members if "jax" in t)
        one, ten = (min(peers.milliseconds(t) for t in members
                        if (t["code"], t["seeds"]) == ("ours", seeds)) for seeds in (1, 10))
        lines += [f"{script}: an update of one seed takes {one:.3f} ms, in JAX {its:.3f}, aim at "
                  f"most that: {'met' if one <= its else 'missed'}",
                  f"{script}: ten seeds have {its / ten:.1f} times the seed-updates of JAX, aim 5: "
                  + ("met" if its >= 5 * ten else "missed")]
    return lines


# ---- Train

def nine(args: Args, results: list[Path]) -> list[str]:
    """What nine sets would take each algorithm, from those that were trained on this kind of
    device with these numbers of updates and seeds."""
    kind, took, lines = args.device.partition(":")[0], {}, []
    for result in (json.loads(path.read_text()) for path in results):
        own, parts = result["args"], result["parts"]
        alike = (own["num_updates"], own["num_seeds"]) == (args.num_updates, args.num_seeds)
        if alike and all(part["device"].startswith(kind) for part in parts):
            took.setdefault(result["script"], []).append([
                sum(part[f"{name}_seconds"] for part in parts)
                for name in ("training", "evaluation")])
    for script, times in took.items():
        training, waiting = map(sum, zip(*times))
        seconds = (training + waiting) / len(times)
        line = (f"{script}: {args.num_updates:,} updates of {args.num_seeds} seeds take "
                f"{seconds:.0f} s a set, {100 * waiting / (training + waiting):.0f}% of it waiting "
                f"for evaluations; nine sets {9 * seconds / 60:.0f} min, extrapolated from "
                f"{len(times)}")
        if (args.num_updates, args.num_seeds) != (1_000_000, 5):
            line += ", not the aim's training"
        elif len(args.scripts) != 1:
            line += "; others had the card, too, so this is no verdict"
        else:
            line += f", aim {NINE} min: {'met' if 9 * seconds <= 60 * NINE else 'missed'}"
        lines.append(line)
    return lines


def train(args: Args, own: list[str], clock: Clock) -> list[Path]:
    """Part three; returns the results that are there of the wanted trainings."""
    results = []
    for name in args.datasets:
        try:
            dataset = dataset_of(name, args.steps)
        except SystemExit as error:  # no weights, and no network to fetch D4RL's
            say(f"{name} cannot be built: {str(error).splitlines()[0]}")
            continue
        grid = run.Args(algorithms=args.scripts or ("iql", "td3_bc", "por", "bc", "spot"),
                        datasets=(dataset,), num_seeds=args.num_seeds,
                        num_updates=args.num_updates, runs=args.work / "grid",
                        results=args.results, jobs=len(args.scripts) or 5)
        cells = run.plan(grid, own, known=lambda: [dataset])
        missing = [cell for cell in cells if not run.is_done(cell)]
        if missing and clock.left() > STOP + 60:
            build_and_train(name, grid, own, clock, args)
        elif missing:
            say(f"no time left for {name}: {', '.join(cell.name for cell in missing)}")
        results += [cell.result for cell in cells if run.is_done(cell)]
    say("\n".join(nine(args, results)))
    return results


def dataset_of(name: str, steps: int | None) -> str:
    """The id that collect.py gives its dataset. Raises SystemExit if a policy is not there."""
    recipe = recipes.RECIPES[recipes.find_recipe(name)[0]]
    stages = [collect.load_collectors(recipe, source, collect.HERE / "behavior")[0]
              for source in recipe.behavior]
    most = stages[0][-1][1] or recipe.steps  # a training behind snapshots may have been shorter
    return recipes.dataset_id(recipe, steps or min(recipe.steps, most))


def build_and_train(name: str, grid: run.Args, own: list[str], clock: Clock, args: Args) -> None:
    """The dataset, if it is not there, and the trainings on it."""
    size = ["--steps", str(args.steps)] * bool(args.steps)
    log = args.work / f"collect-{name}.log"
    began = time.monotonic()
    code = call([sys.executable, ROOT / "benchmarks" / "collect.py", name, *size], clock, log)
    if code != 0:  # it says so itself if the dataset is there already
        last = [line for line in log.read_text().splitlines() if line.strip()][-1]
        return say(f"{name} was not built (code {code}): {last[:300]}")
    say(f"{name} is there after {time.monotonic() - began:.0f} s")
    if clock.left() < STOP + 60:  # the command that goes on finds the dataset
        return say(f"no time left to train on {name}")
    words = [sys.executable, ROOT / "benchmarks" / "run.py", "--algorithms", *grid.algorithms,
             "--datasets", *grid.datasets, "--num-seeds", grid.num_seeds, "--num-updates",
             grid.num_updates, "--jobs", grid.jobs, "--runs", grid.runs, "--results", grid.results,
             "--", "--device", args.device, *own]
    shorter = Clock(clock.left() - STOP)
    code = call(words, shorter, args.work / f"grid-{name}.log")
    for line in (args.work / f"grid-{name}.log").read_text().splitlines()[-len(grid.algorithms):]:
        say(f"  {line[:300]}")
    if code is None:
        say(f"the budget ended before {name}; the same command goes on with it")


# ---- The command

def pack(args: Args, results: list[Path]) -> Path:
    """One archive of numbers, results and logs, whole or not at all."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu.tar.gz"
    part = path.with_name(path.name + ".tmp")
    files = [*args.work.glob("*.json"), *args.work.glob("*.log"), *args.work.glob("*.md"),
             *args.work.glob("grid/*/log.txt"), *args.work.glob("results/speed/*.json")]
    with tarfile.open(part, "w:gz") as archive:
        for file in files:
            archive.add(file, file.relative_to(args.work))
        for file in results:
            archive.add(file, Path("results", file.name))
    part.rename(path)
    return path


def refuse(args: Args) -> None:
    """What cannot be done, in one line, before anything starts."""
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {args.device}: PyTorch {torch.__version__} sees no GPU here; "
                         "--device cpu rehearses")
    for name in ("budget_seconds", "updates", "rows", "timed_updates", "num_seeds", "num_updates"):
        if getattr(args, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 1")
    known = {path.stem for path in speed.ALGORITHMS.glob("*.py")}
    if bad := [name for name in args.scripts if name not in known]:
        raise SystemExit(f"--scripts {bad[0]}: no such script; there are "
                         f"{', '.join(sorted(known))}")
    if "peers" in args.parts and not (args.checkouts and args.checkouts.is_dir()):
        raise SystemExit("--parts peers needs --checkouts, a folder with some of "
                         f"{', '.join(CHECKOUTS.values())} in it")
    if "peers" in args.parts and args.device not in ("cpu", "cuda"):
        raise SystemExit(f"--parts peers: --device cuda, not {args.device}")
    if args.task not in speed.TASKS:
        raise SystemExit(f"--task {args.task}: choose one of {', '.join(speed.TASKS)}")
    for name in args.datasets:
        if name != (known := recipes.find_recipe(name)[0]):  # or it ends the program
            raise SystemExit(f"--datasets {name}: name the recipe, {known}; its size is --steps")


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if words[:1] in (["--losses"], ["--measure"]):  # a child
        config = json.loads(words[1])
        with contextlib.redirect_stdout(sys.stderr):
            answer = losses(config) if words[0] == "--losses" else speed.measure(
                speed.Args(**config), [])
        return print(json.dumps(answer))
    split = words.index("--") if "--" in words else len(words)
    words, own = words[:split], words[split + 1:]
    args = tyro.cli(Args, args=words, description=__doc__)
    clock = Clock(args.budget_seconds)
    refuse(args)
    socket.setdefaulttimeout(20)  # a machine without network must not wait for D4RL's server
    if args.device == "cpu":
        args.execution = tuple(way for way in args.execution if way != "capture")
    args.work.mkdir(parents=True, exist_ok=True)
    agreed, results = True, []
    try:
        if "check" in args.parts:
            others = len({*args.parts}) > 1
            agreed = check(args, Clock(clock.left() / 2) if others else clock)
        if "speed" in args.parts:
            measure(args, clock)
        if "peers" in args.parts:
            beside_peers(args, clock)
        if "train" in args.parts:
            results = train(args, own, clock)
    finally:  # whatever happened, bring home what there is
        say(f"all of it in {pack(args, results)}, {clock.left():.0f} s of the budget left")
    if not agreed:
        raise SystemExit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what there is still comes home
    main()
