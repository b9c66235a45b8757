"""Train a grid of algorithms x datasets. A cell of the grid is one run with all its seeds.

    python -m benchmarks.run --algorithms por iql --datasets 'rebuilt/*/medium-v0' \\
        --num-seeds 3 --num-updates 100000 -- --eval-every 10000
    python -m benchmarks.run ... --dry-run        # only print the commands

After -- stand options of the scripts. A pattern stands for the local Minari datasets and the D4RL
names that match it. Several cells run at once. The same command continues a grid that was stopped:
finished cells are skipped, started ones resume from their last checkpoint.

Run folders are runs/grid/<dataset>/<name>, each with its log beside it (<name>.log). `--results
DIR` copies the result.json of every finished run to DIR/<dataset>/<name>.json, and skips the cells
whose result is there. A name keeps every option that changes what is learned and is not the
published one: `por-weighted-100k`.

With --ray the cells are tasks of Ray, on this machine or on the cluster that RAY_ADDRESS names,
whose nodes need this repository and the datasets at the same paths.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import minari
import tyro

from benchmarks.common import (
    ROOT,
    load_script,
    mean_and_spread,
    script_path,
    split_words,
    write_atomically,
)
from benchmarks.scores.reading import PUBLISHED_UPDATES, changed_options, read_result

# Options that this program sets itself, and where a user gives them instead.
OURS = {
    "env": "name it by --datasets",
    "dataset_file": "a grid trains on named datasets",
    "resume": "the grid resumes what it finds in --runs",
    "run_dir": "the grid names the folders; --runs says where",
    "seed": "put it before --",
    "num_seeds": "put it before --",
    "num_updates": "put it before --",
}
# Arguments in which a result may differ from what was asked for.
FREE = ("device", "execution", "run_dir", "resume", "num_seeds")


@dataclass
class Args:
    algorithms: tuple[str, ...]  # names or paths of scripts
    datasets: tuple[str, ...]  # names, or patterns over local Minari datasets and D4RL names
    seed: int = 0  # seed of every cell
    num_seeds: int = 5  # agents of every cell, trained in one process
    num_updates: int = PUBLISHED_UPDATES  # gradient updates of every cell
    jobs: int | None = None  # cells at once; None: one per GPU, or one per core without GPU
    runs: Path = Path("runs/grid")  # folder of the run folders
    results: Path | None = None  # folder for copies of the finished results; None: no copies
    dry_run: bool = False  # only print the commands
    ray: bool = False  # run the cells as tasks of Ray


@dataclass
class Cell:
    """One run of the grid."""

    name: str  # <dataset>/<algorithm and options>
    script: Path
    args: dict  # all arguments that its result must have
    options: list[str]  # the words of its command after the script, for a new run
    folder: Path
    copy: Path | None  # where its result is to be copied

    def command(self) -> list[str]:
        """Return the words after `python`: resume the run, or begin it."""
        if not (self.folder / "checkpoint.pt").exists():
            return [str(self.script), *self.options, "--run-dir", str(self.folder)]
        # An --env that names a module must be repeated when a run is resumed.
        return [str(self.script), "--resume", str(self.folder), "--env", self.args["env"]]


# --------------------------------------------------------------------------------------------------
# Which cells there are
# --------------------------------------------------------------------------------------------------


def find_datasets(patterns: tuple[str, ...], list_names: Callable[[], list[str]]) -> list[str]:
    """Return the datasets that the patterns stand for, each once. A plain name is itself."""
    found = []
    for pattern in patterns:
        if not re.search(r"[*?\[]", pattern):
            found.append(pattern)
            continue
        names = sorted(list_names())
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            sys.exit(
                f"--datasets {pattern} matches no local Minari dataset and no D4RL name; there are "
                f"{', '.join(names)}"
            )
        found += fitting
    return list(dict.fromkeys(found))


def short_name(module: ModuleType, args: dict) -> str:
    """Return the script's name with every option that is not the published one."""
    told, changed = changed_options(module, args)
    parts = [Path(module.__file__).stem, *told]
    for key, value in changed.items():
        parts += [key.replace("_", "-"), str(value)]
    if args["seed"] != 0:
        parts += ["seed", str(args["seed"])]
    if args.get("online_steps"):
        parts += ["online", short_count(args["online_steps"])]
    if args["num_updates"] != PUBLISHED_UPDATES:
        parts.append(short_count(args["num_updates"]))
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts))


def short_count(number: int) -> str:
    """Return 100000 as '100k', 1500 as '1500'."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def dataset_folder(dataset: str) -> str:
    """Return the name of a dataset's folder: 'rebuilt/hopper/medium-v0' -> 'hopper-medium'.

    Other names keep their version: 'hopper-medium-v2' is D4RL's own.
    """
    if dataset.startswith("rebuilt/"):
        dataset = dataset.removeprefix("rebuilt/").removesuffix("-v0")
    return re.sub(r"[^A-Za-z0-9._]+", "-", dataset)


def parse_options(module: ModuleType, words: list[str]) -> dict:
    """Return a script's arguments with the options after --. Refuse those that the grid sets."""
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in OURS:
            sys.exit(f"--{name.replace('_', '-')} cannot stand after --; {OURS[name]}")
    return asdict(tyro.cli(module.Args, args=words, prog=f"{module.__name__}.py"))


def plan(args: Args, words: list[str]) -> list[Cell]:
    """Return all cells of the grid, dataset by dataset. `words` are the scripts' own options."""
    for name in ("num_seeds", "num_updates", "jobs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            sys.exit(f"--{name.replace('_', '-')} must be at least 1")
    modules = {script_path(name): load_script(name) for name in args.algorithms}

    def list_names() -> list[str]:
        d4rl = [name for module in modules.values() for name in module.D4RL_SHA256]
        return [*minari.list_local_datasets(), *dict.fromkeys(d4rl)]

    cells = []
    for dataset in find_datasets(args.datasets, list_names):
        for path, module in modules.items():
            given = parse_options(module, words)
            sizes = {name: getattr(args, name) for name in ("seed", "num_seeds", "num_updates")}
            given |= {"env": dataset} | sizes
            wanted = asdict(module.apply_settings(module.Args(**given)))
            name = f"{dataset_folder(dataset)}/{short_name(module, wanted)}"
            options = ["--env", dataset]
            for key, value in sizes.items():
                options += [f"--{key.replace('_', '-')}", str(value)]
            cell = Cell(
                name=name,
                script=Path(os.path.relpath(path)),
                args=json.loads(json.dumps(wanted)),
                options=[*options, *words],
                folder=args.runs / f"{name}-{args.num_seeds}-seeds",
                copy=args.results / f"{name}.json" if args.results else None,
            )
            cells.append(cell)
    return cells


# --------------------------------------------------------------------------------------------------
# What is there of a cell
# --------------------------------------------------------------------------------------------------


def check_result(cell: Cell, path: Path) -> dict | None:
    """Return a result if it is this cell's and finished, None if it is unfinished or not there.

    Raise ValueError if it is no result, or that of another run.
    """
    if not path.exists():
        return None
    result = read_result(path)
    if result["script"] != cell.script.stem:
        raise ValueError(f"{path} is a result of {result['script']}.py, not {cell.script.name}")
    for key, value in cell.args.items():
        found = result["args"].get(key)
        if key not in FREE and found != value:
            raise ValueError(f"{path} has {key} {found}, not {value}")
    if result["args"]["num_seeds"] < cell.args["num_seeds"]:
        raise ValueError(f"{path} has only {result['args']['num_seeds']} seeds")
    return result if result["finished"] else None


def existing_copy(cell: Cell) -> dict | None:
    """Return the cell's result among the copies. Another file in its place will be replaced."""
    if cell.copy is None:
        return None
    try:
        return check_result(cell, cell.copy)
    except ValueError as error:
        print(f"{error}; it is replaced when the run has finished")
        return None


def headline(result: dict) -> str:
    return mean_and_spread(result["final"]["scores"])


# --------------------------------------------------------------------------------------------------
# Running cells
# --------------------------------------------------------------------------------------------------


def never() -> bool:
    return False


def run_cell(cell: Cell, env: dict, stopping: Callable = never) -> tuple[bool, str]:
    """Train a cell in a process of its own. Return whether it finished, and its score or why not.

    The result is copied if the grid keeps copies.
    """
    log_path = cell.folder.with_name(f"{cell.folder.name}.log")
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path.with_suffix(".lock"), "w") as lock, open(log_path, "a") as log:
        # The script's process keeps the lock, so that a cell of a grid that was killed finishes
        # its work before another process touches its folder.
        while not try_lock(lock):
            if stopping():
                return False, "stopped while another process had its folder"
            time.sleep(0.5)
        try:
            result = check_result(cell, cell.folder / "result.json")
            if result is None:
                code = train(cell, env, log, lock, stopping)
                result = check_result(cell, cell.folder / "result.json")
                if code != 0 or result is None:
                    lines = log_path.read_text(errors="replace").strip().splitlines()
                    return False, f"exit code {code}: {lines[-1]} ({log_path})"
            if cell.copy is not None:
                content = (cell.folder / "result.json").read_bytes()
                write_atomically(cell.copy, content)
        except (ValueError, OSError) as error:
            return False, str(error)
    return True, headline(result)


def try_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def train(cell: Cell, env: dict, log, lock, stopping: Callable) -> int:
    """Run the cell's command to its end. Return the exit code."""
    command = cell.command()
    log.write(f"$ {shlex.join(['python', *command])}\n")
    log.flush()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | env,
        pass_fds=[lock.fileno()],
        # Ctrl-C reaches this program alone, which then stops the cells, once each.
        start_new_session=True,
    )
    while process.poll() is None:
        if stopping():
            process.send_signal(signal.SIGINT)
            process.wait()
        time.sleep(0.1)
    return process.returncode


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that may be used; none without NVIDIA's driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        ids = [word.strip() for word in chosen.split(",")]
        return [word for word in ids if word not in ("", "-1")]
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:  # there is no driver
        return []
    return re.findall(r"^GPU (\d+):", answer.stdout, flags=re.MULTILINE)


class ThisMachine:
    """Cells in processes of this machine, `jobs` at once."""

    def __init__(self, jobs: int, gpus: list[str], threads: int):
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self.threads = threads
        self.stopped = False
        self.gpus = queue.Queue()
        for i in range(jobs):
            self.gpus.put(gpus[i % len(gpus)] if gpus else None)

    def submit(self, cell: Cell) -> concurrent.futures.Future:
        return self.pool.submit(self.run, cell)

    def run(self, cell: Cell) -> tuple[bool, str]:
        if self.stopped:
            return False, "not started"
        gpu = self.gpus.get()
        env = {"OMP_NUM_THREADS": str(self.threads)}
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            return run_cell(cell, env, lambda: self.stopped)
        finally:
            self.gpus.put(gpu)

    def stop(self) -> None:
        self.stopped = True


class RayCluster:
    """Cells as tasks of Ray, which decides where and when they run."""

    def __init__(self, jobs: int, gpus: list[str], threads: int):
        try:
            import ray
        except ImportError:
            sys.exit("--ray needs Ray, which is not installed; without --ray the grid runs here")
        self.ray = ray
        self.env = {"OMP_NUM_THREADS": str(threads)}
        self.tasks = []
        size = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": jobs * threads}
        runtime = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(log_to_driver=False, include_dashboard=False, runtime_env=runtime, **size)
        # Ray hides the GPUs from a task that does not ask for one.
        num_gpus = 1 if ray.cluster_resources().get("GPU", 0) > 0 else 0
        task = ray.remote(num_cpus=threads, num_gpus=num_gpus, max_retries=0)
        self.run_cell = task(run_cell)

    def submit(self, cell: Cell) -> concurrent.futures.Future:
        cell.script = cell.script.resolve()
        cell.folder = cell.folder.resolve()
        self.tasks.append(self.run_cell.remote(cell, self.env))
        return self.tasks[-1].future()

    def stop(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task)


def run_grid(cells: list[Cell], machine: ThisMachine | RayCluster) -> dict[str, tuple[bool, str]]:
    """Run all cells. Return how each ended: whether it finished, and its score or why not."""

    def stop(*_):
        print("stopping; every cell keeps its last checkpoint")
        machine.stop()

    # Before the first cell starts, because a grid in the background begins with SIGINT ignored,
    # which its cells would inherit.
    signals = (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.signal(number, stop) for number in signals]
    started = time.monotonic()
    names = {machine.submit(cell): cell.name for cell in cells}
    waiting = set(names)
    outcomes = {}
    while waiting:
        done, waiting = concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED")
        for future in done:
            error = future.exception()
            if error is None:
                outcome = future.result()
            else:
                outcome = (False, f"{type(error).__name__}: {error}".splitlines()[-1])
            outcomes[names[future]] = outcome
            minutes = (time.monotonic() - started) / 60 / len(outcomes) * len(waiting)
            left = f", about {minutes:.0f} min left" if waiting else ""
            status = "" if outcome[0] else "failed: "
            print(f"[{len(outcomes)} of {len(cells)}{left}] {names[future]}: {status}{outcome[1]}")
    for number, handler in zip(signals, earlier, strict=True):
        signal.signal(number, handler)
    return outcomes


def main(words: list[str] | None = None) -> None:
    words, own = split_words(sys.argv[1:] if words is None else words)
    args = tyro.cli(Args, args=words, description=__doc__)
    cells = plan(args, own)
    finished = {cell.name: existing_copy(cell) for cell in cells}
    missing = [cell for cell in cells if finished[cell.name] is None]
    device = cells[0].args["device"]
    # A grid that names one device, such as --device cuda:1, runs everything there.
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = min(args.jobs or len(gpus) or cores, max(len(missing), 1))
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, cores // jobs)))
    if args.dry_run:
        for cell in cells:
            note = "" if finished[cell.name] is None else f"  # finished: {cell.copy}"
            print(f"OMP_NUM_THREADS={threads} {shlex.join(['python', *cell.command()])}{note}")
        return
    done = len(cells) - len(missing)
    print(f"{len(cells)} cells, {done} with a result, {len(missing)} to run, {jobs} at once")
    print(f"progress: tail -f {args.runs}/*/*.log")
    outcomes = {}
    if missing:
        machine = RayCluster if args.ray else ThisMachine
        outcomes = run_grid(missing, machine(jobs, gpus, threads))
    print()
    for cell in cells:
        result = finished[cell.name]
        print(f"{cell.name}: {outcomes[cell.name][1] if result is None else headline(result)}")
    failed = sum(not good for good, _ in outcomes.values())
    if failed > 0:
        sys.exit(f"{failed} of {len(cells)} cells have not finished; the same command continues")


if __name__ == "__main__":
    main()
