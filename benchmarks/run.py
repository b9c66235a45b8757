"""Run a grid of trainings, algorithms x datasets; a cell of it is one run with all its seeds.

    python benchmarks/run.py --algorithms por iql --datasets 'rebuilt/*/medium-v0' \\
        --num-seeds 3 --num-updates 100000 -- --precision bf16   # after --: the scripts' options
    python benchmarks/run.py ... --dry-run     # the commands, one for each row of a table

A pattern stands for the local Minari datasets and the D4RL names that fit it. What has a result in
benchmarks/results/ is done; the other cells run, several at once, and what was interrupted goes on
from its checkpoint, so the same command finishes a grid that was stopped, killed or has failed in
part. A finished run's result.json is copied to
    benchmarks/results/<algorithm>-<dataset>[-<updates>][-<options>].json
(updates unless 1,000,000). Ctrl-C or SIGTERM lets every cell write a checkpoint; a second one ends
them at once. Each cell writes to <its run folder>/log.txt; locks in those folders let two grids
share the work. With --ray the cells are tasks of Ray, on this machine or on the cluster that
RAY_ADDRESS names; the nodes need this repository and the datasets at the same paths.
"""

import concurrent.futures
import fcntl
import fnmatch
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ROOT / "algorithms"
PUBLISHED_UPDATES = 1_000_000  # length of the published runs; not mentioned in names
POLL = 0.5  # seconds between looks at a process
# What changes how a run is computed but not what: no part of a result's name
PERFORMANCE = ("device", "execution", "checkpoint-every", "eval-workers")
OURS = ("env", "seed", "num-seeds", "num-updates", "run-dir", "eval-only", "dataset-file")
# A cell must not outlive a grid that was killed: two processes would then train in one folder. On
# Linux the kernel can signal a process whose parent ends (PR_SET_PDEATHSIG: 1 in linux/prctl.h). A
# script takes a second SIGTERM for impatience, and the end of this program's threads would send
# several, so a parent of one thread stands between: it is killed, and the script signalled once.
LAUNCH = """import ctypes, os, signal, subprocess, sys
def when_parent_ends(number):
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)
when_parent_ends(signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the grid has ended")
script = subprocess.Popen([sys.executable, *sys.argv[2:]], close_fds=False,
                          preexec_fn=lambda: when_parent_ends(signal.SIGTERM))
signal.signal(signal.SIGTERM, lambda *_: script.terminate())
code = script.wait()
sys.exit(code if code >= 0 else 128 - code)
"""


@dataclass
class Args:
    algorithms: tuple[str, ...]
    """scripts in algorithms/, without .py"""
    datasets: tuple[str, ...]
    """names, or patterns with * ? [...] over local Minari datasets and D4RL names"""
    seed: int = 0
    """first seed"""
    num_seeds: int = 5
    """seeds of each cell, trained in one process"""
    num_updates: int = PUBLISHED_UPDATES
    """gradient updates of each cell"""
    jobs: int | None = None
    """cells at once (default: one for each GPU, or one for each core without GPU)"""
    runs: Path = Path("runs/grid")
    """folder of the run folders"""
    results: Path = ROOT / "benchmarks" / "results"
    """folder of the finished results"""
    dry_run: bool = False
    """print the commands and run nothing"""
    ray: bool = False
    """run the cells as tasks of Ray"""


@dataclass
class Cell:
    name: str
    command: list[str]  # without the interpreter
    folder: Path
    result: Path
    wanted: dict  # arguments that a result must have to be this cell's


# ---- Which cells there are

def is_pattern(text: str) -> bool:
    return any(c in text for c in "*?[")


def known_datasets(script: str) -> list[str]:
    """Local Minari datasets and the D4RL names that a script knows."""
    import minari

    import speed
    return [*minari.list_local_datasets(), *vars(speed.load_script(script)).get("D4RL_FILES", ())]


def expand(patterns: tuple[str, ...], known: Callable[[], list[str]]) -> list[str]:
    """Names for patterns, each once, in the order of the patterns; a plain name is itself.

    Raises SystemExit if a pattern fits nothing: a silent empty grid would look finished.
    """
    names = known() if any(map(is_pattern, patterns)) else []
    found = []
    for pattern in patterns:
        fitting = fnmatch.filter(sorted(names), pattern) if is_pattern(pattern) else [pattern]
        if not fitting:
            raise SystemExit(f"--datasets {pattern}: no local Minari dataset or D4RL name fits; "
                             f"there are {', '.join(sorted(names))}. Others are built by "
                             "benchmarks/collect.py")
        found += fitting
    return [*dict.fromkeys(found)]


def options_of(own: list[str]) -> list[tuple[str, ...]]:
    """['--tau', '0.9', '--no-norm', '--guide=q'] -> [('tau', '0.9'), ('no-norm',), ...].

    Raises SystemExit for what this command sets itself.
    """
    found = []
    for word in own:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append([name.replace("_", "-"), *[value] * bool(equals)])
        elif found:
            found[-1].append(word)
        else:
            raise SystemExit(f"after -- stands {word}, which is no option of a script")
    for name, *_ in found:
        if name in OURS:
            raise SystemExit(f"--{name} after -- would not reach the names of the results; "
                             + ("a grid runs named datasets" if name == "dataset-file" else
                                "put it before --" if name in ("seed", "num-seeds", "num-updates")
                                else "this command sets it"))
    return [tuple(option) for option in found]


def short(number: int) -> str:
    """100000 -> '100k', 1500000 -> '1500k', 250 -> '250'."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def plan(args: Args, own: list[str], known: Callable[[], list[str]] | None = None) -> list[Cell]:
    """All cells of the grid, in the order of a table: dataset by dataset."""
    for number in ("num_seeds", "num_updates", "jobs"):
        if (value := getattr(args, number)) is not None and value < 1:
            raise SystemExit(f"--{number.replace('_', '-')} must be at least 1")
    for script in args.algorithms:
        if not (ALGORITHMS / f"{script}.py").exists():
            there = ", ".join(sorted(p.stem for p in ALGORITHMS.glob("*.py")))
            raise SystemExit(f"--algorithms {script}: no such script; there are {there}")
    datasets = expand(args.datasets, known or (lambda: known_datasets(args.algorithms[0])))
    options = [option for option in options_of(own) if option[0] not in PERFORMANCE]
    words = [word for option in options for word in option]
    last, cells = args.seed + args.num_seeds - 1, []
    seeds = str(args.seed) + (f"-{last}" if last > args.seed else "")
    for dataset in datasets:
        for script in dict.fromkeys(args.algorithms):
            parts = [script, dataset, *[short(args.num_updates)]
                     * (args.num_updates != PUBLISHED_UPDATES),
                     *[f"from-seed-{args.seed}"] * bool(args.seed), *words]
            name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts))
            folder = args.runs / f"{name}-seeds-{seeds}"
            command = [os.path.relpath(ALGORITHMS / f"{script}.py"), "--env", dataset,
                       "--seed", str(args.seed), "--num-seeds", str(args.num_seeds),
                       "--num-updates", str(args.num_updates), *own, "--run-dir", str(folder)]
            wanted = {"env": dataset, "seed": args.seed, "num_seeds": args.num_seeds,
                      "num_updates": args.num_updates}
            wanted |= {name.replace("-", "_"): values[0] for name, *values in options if values}
            cells.append(Cell(name, command, folder, args.results / f"{name}.json", wanted))
    return cells


# ---- What is there of a cell

def unfit(text: str, cell: Cell) -> str | None:
    """Why a result.json is not the finished result of a cell; None if it is.

    More seeds than asked for are as good: the seeds of a run do not influence one another.
    """
    try:
        result = json.loads(text)
        found = {key: result["args"][key] for key in cell.wanted}
        if not result["finished"]:
            return f"it is not finished, it stands at update {result['step']}"
        if result["script"] != (script := Path(cell.command[0]).stem):
            return f"it is of {result['script']}.py, not of {script}.py"
    except (ValueError, KeyError, TypeError) as error:
        return f"it is no result ({type(error).__name__}: {error})"
    for key, value in cell.wanted.items():
        if not agree(found[key], value) and not (key == "num_seeds" and found[key] > value):
            return f"its {key} is {found[key]}, not {value}"
    return None


def agree(found, value) -> bool:
    """Is an argument in a result what a command line says? 0.001 is 1e-3."""
    try:
        return str(found) == str(value) or float(found) == float(value)
    except (TypeError, ValueError):
        return False


def is_done(cell: Cell) -> bool:
    """Is its result there? Says so if there is a file that is not it."""
    if not cell.result.exists():
        return False
    if why := unfit(cell.result.read_text(), cell):
        print(f"{cell.result} is not the result of {cell.name}: {why}. It will be replaced",
              file=sys.stderr)
    return not why


def keep(cell: Cell, text: str) -> None:
    """Copy a finished result to the results, in one step."""
    cell.result.parent.mkdir(parents=True, exist_ok=True)
    part = cell.result.with_suffix(".tmp")
    part.write_text(text)
    part.replace(cell.result)


def headline(text: str) -> str:
    """'49.7 ± 19.8' of a finished result.json."""
    scores = json.loads(text)["final"]["scores"]
    mean = sum(scores) / len(scores)
    spread = (sum((s - mean) ** 2 for s in scores) / len(scores)) ** 0.5
    return f"{mean:.1f} ± {spread:.1f}"


class Progress:
    """Updates that a cell has made, as its checkpoints say; they only grow."""

    def __init__(self, cell: Cell):
        self.path, self.total = cell.folder / "result.json", cell.wanted["num_updates"]
        self.read, self.updates = 0.0, 0

    def look(self) -> int:
        """Updates of the phases that are evaluated; what comes before them (such as POR's
        behaviour model) is not counted."""
        try:
            if (changed := self.path.stat().st_mtime) != self.read:
                result, self.read = json.loads(self.path.read_text()), changed
                if result["evaluations"]:
                    step = self.total if result["finished"] else result["step"]
                    self.updates = max(self.updates, min(step, self.total))
        except (OSError, ValueError, KeyError):  # not there yet, or not on this machine
            pass
        return self.updates


# ---- Running a cell, here or on a node of Ray

def execute(command: list[str], folder: Path, env: dict,
            stops: Callable[[], int] = lambda: 0) -> tuple[int, str | None, str]:
    """Train in a process of its own, its output going to log.txt.

    stops(): how many times the cell has been asked to stop. Returns exit code, text of result.json
    and the last line of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, process, sent = folder / "log.txt", None, 0
    with open(folder / "lock", "w") as lock, path.open("a", buffering=1) as log:
        waited = False
        while not stops():  # a cell of a killed grid may still write its checkpoint
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    log.write("waiting: another process trains in this folder\n")
                waited = True
                time.sleep(POLL)
        if stops():
            return 128 + signal.SIGTERM, None, "not started"
        log.write(f"$ {shlex.join(['python', *command])}\n")
        launch = [sys.executable, "-c", LAUNCH, str(os.getpid()), *command]
        try:
            process = subprocess.Popen(  # a session of its own: Ctrl-C reaches this program alone
                launch, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | env,
                pass_fds=[lock.fileno()])  # which keeps the lock while the process lives
            while process.poll() is None:
                try:
                    process.wait(POLL)
                except subprocess.TimeoutExpired:
                    pass
                if stops() > sent:
                    process.terminate()
                    sent += 1
        finally:  # also when Ray cancels the task
            if process and process.poll() is None:
                process.terminate()
                process.wait()
    result, lines = folder / "result.json", path.read_text(errors="replace").split("\n")
    text = result.read_text() if result.exists() else None
    return process.returncode, text, next((s for s in reversed(lines) if s.strip()), "")


def visible_gpus() -> list[str]:
    """Ids of the GPUs that may be used; empty without NVIDIA's driver."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def device_of(own: list[str]) -> str:
    """What --device says among the scripts' options."""
    return dict(o for o in options_of(own) if len(o) == 2).get("device", "auto")


def cell_settings(args: Args, own: list[str], cells: int) -> tuple[int, int, list[str]]:
    """(cells at once, CPU threads of each, GPUs to share out)."""
    device = device_of(own)
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    one = device.startswith("cuda:")  # all cells have that GPU
    jobs = min(args.jobs or len(gpus) or (1 if one else cores), max(cells, 1))
    return jobs, int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // jobs)), gpus


class Here:
    """Cells as processes of this machine."""

    def __init__(self, jobs: int, threads: int, gpus: list[str], stop: list):
        self.env, self.stop = {"OMP_NUM_THREADS": str(threads)}, stop
        self.pool, self.places = concurrent.futures.ThreadPoolExecutor(jobs), queue.Queue()
        for i in range(jobs):
            self.places.put(gpus[i % len(gpus)] if gpus else None)

    def submit(self, cell: Cell) -> concurrent.futures.Future:
        return self.pool.submit(self.run, cell)

    def run(self, cell: Cell) -> tuple[int, str | None, str]:
        place = self.places.get()
        try:
            gpu = {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
            return execute(cell.command, cell.folder, self.env | gpu, lambda: len(self.stop))
        finally:
            self.places.put(place)

    def cancel(self) -> None:
        """Nothing to do: `run` looks at the list of signals."""


class OnRay:
    """Cells as tasks of Ray, which decides where and when."""

    def __init__(self, threads: int, device: str, cores: int | None):
        try:
            import ray
        except ImportError:
            raise SystemExit("--ray needs Ray, which is not installed: pip install ray. Without "
                             "--ray the same grid runs on this machine")
        self.ray, self.env, self.tasks = ray, {"OMP_NUM_THREADS": str(threads)}, []
        # on a cluster Ray knows the nodes; alone, the number of CPUs is the number of cells at once
        own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": cores}
        ray.init(log_to_driver=False, include_dashboard=False, **own)
        if __name__ != "__main__":  # nodes cannot import this file by its name
            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        # Ray hides the GPUs from a task that asks for none: ask if any node has one
        gpus = int(device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
        self.task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(execute)

    def submit(self, cell: Cell) -> concurrent.futures.Future:
        script = [str(Path(cell.command[0]).resolve()), *cell.command[1:-1]]
        folder = cell.folder.resolve()
        self.tasks.append(self.task.remote([*script, str(folder)], folder, self.env))
        return self.tasks[-1].future()

    def cancel(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task)


# ---- The grid

def run_grid(cells: list[Cell], runner: Here | OnRay, stop: list) -> dict[str, str]:
    """Run cells to their ends; returns name -> 'score ...', 'failed: ...' or 'stopped ...'."""
    outcomes, by_name = {}, {cell.name: cell for cell in cells}
    looks = {name: Progress(cell) for name, cell in by_name.items()}
    total = sum(cell.wanted["num_updates"] for cell in cells)
    begun, clock, cancelled = sum(p.look() for p in looks.values()), time.time(), 0
    waiting = {runner.submit(cell): cell.name for cell in cells}
    with tqdm(total=total, initial=begun, unit=" updates", unit_scale=True, disable=None,
              smoothing=0, dynamic_ncols=True) as bar:
        while waiting:
            done, _ = concurrent.futures.wait(
                waiting, POLL, return_when=concurrent.futures.FIRST_COMPLETED)
            ended = {waiting.pop(future): future for future in done}
            outcomes |= {name: outcome(by_name[name], future, stop)
                         for name, future in ended.items()}
            failed = [name for name, text in outcomes.items() if text.startswith("failed")]
            bar.n = sum(p.look() for p in looks.values())
            bar.total = total - sum(looks[name].total - looks[name].updates for name in failed)
            rate = (bar.n - begun) / (time.time() - clock)
            going = rate > 0 and waiting and not stop
            left = f", about {(bar.total - bar.n) / rate / 60:.0f} min left" if going else ""
            for name in ended:
                bar.write(f"{name}: {outcomes[name]}   [{len(outcomes)} of {len(cells)}{left}]")
            if len(stop) > cancelled:
                cancelled = len(stop)
                runner.cancel()
            bar.set_postfix_str(f"cells {len(outcomes)}/{len(cells)}" + f", {len(failed)} failed"
                                * bool(failed) + ", stopping" * bool(stop), refresh=False)
            bar.refresh()
    return outcomes


def outcome(cell: Cell, future: concurrent.futures.Future, stop: list) -> str:
    """Keep the result of a cell that has ended; in words how it ended."""
    try:
        code, text, last = future.result()
    except (OSError, concurrent.futures.CancelledError) as error:
        code, text, last = None, None, f"{type(error).__name__}: {error}"
    except Exception as error:  # Ray's own, which this file must not import
        code, text, last = None, None, f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    why = unfit(text, cell) if text else "no result.json"
    if code == 0 and not why:
        try:
            keep(cell, text)
        except OSError as error:  # the other cells go on
            return f"failed: its result cannot be kept: {error} ({cell.folder})"
        return headline(text)
    if stop and code in (None, 128 + signal.SIGTERM, -signal.SIGTERM):
        return "stopped; the same command goes on with it"
    reason = f"code {code}, {last}" if code else last if code is None else why
    return f"failed: {reason} ({cell.folder / 'log.txt'})"


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    split = words.index("--") if "--" in words else len(words)
    words, own = words[:split], words[split + 1:]
    args = tyro.cli(Args, args=words, description=__doc__)
    cells = plan(args, own)
    done = {cell.name for cell in cells if is_done(cell)}
    missing = [cell for cell in cells if cell.name not in done]
    jobs, threads, gpus = cell_settings(args, own, len(missing))
    if args.dry_run:
        for cell in cells:
            command = f"OMP_NUM_THREADS={threads} {shlex.join(['python', *cell.command])}"
            is_there = f"  # done: {os.path.relpath(cell.result)}"
            print(command + is_there * (cell.name in done))
        return
    print(f"{len(cells)} cells, {len(done)} done, {len(missing)} to run, "
          + (f"by Ray, {threads} threads each" if args.ray else
             f"{jobs} at once, {threads} threads each") + ", on a GPU" * bool(gpus))
    stop, outcomes = [], {}
    if missing:
        runner = (OnRay(threads, device_of(own), jobs * threads) if args.ray
                  else Here(jobs, threads, gpus, stop))
        before = {number: signal.signal(number, lambda n, _: stop.append(n))
                  for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            outcomes = run_grid(missing, runner, stop)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    summary = {cell.name: outcomes.get(cell.name) or f"{headline(cell.result.read_text())}, done "
               "before" for cell in cells}
    width = max(map(len, summary))
    print("", *(f"{name:{width}}  {text}" for name, text in summary.items()), sep="\n")
    if stop:
        raise SystemExit(128 + stop[0])
    if failed := [name for name, text in outcomes.items() if text.startswith("failed")]:
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; the same command tries "
                         "them again")


if __name__ == "__main__":
    main()
