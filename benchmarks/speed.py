"""Measure where the time of a script of algorithms/ goes: batches, updates, evaluations.

A script is loaded as it is and builds its run as its own command does, on synthetic rows with the
dimensions of a task. After the warm-up (which includes compiling) blocks of updates are timed by
the clock on the wall; on CUDA the queue is empty whenever the clock is read. Then follow

- an evaluation: all its episodes last to the time limit, which makes it the longest that can come;
  its share is that of a training which evaluates every --eval-every updates,
- two parts of an update alone, executed as the updates are (eager, compiled or captured): drawing
  the batches ("sampling"), and the steps of the optimisers and target networks on gradients that
  are there ("optimiser"). What remains of an update is "losses", with their gradients,
- the floating-point operations of an update's matrix products, counted, and the rate of a large
  square product on the same device, threads and precision: the "limit" of which a share is used.

Every combination of options is a process of its own, so that no setting of PyTorch leaks into the
next one. The answer is a row of a Markdown table for each; its precision is what the script chose
for this machine: `medium` is PyTorch's word for oneDNN's products, which some CPUs round to bf16,
and `fp32, oneDNN` that they do not here.

    python benchmarks/speed.py --num-seeds 1 5 --execution eager compile
    python benchmarks/speed.py --script iql td3_bc --num-seeds 1 5 10 20 --out benchmarks/SPEED.md
    python benchmarks/speed.py --script spot --phase vae
    python benchmarks/speed.py --task antmaze --threads 2 -- --guide q    # after --: the script's
    python benchmarks/speed.py --start-up rebuilt/hopper/medium-v0        # its datasets must be there

With --out the numbers go to results/speed/ beside that page, and a table into it. Compare only
rows that were measured while nothing else ran on the machine. --start-up times whole commands
instead, from their start to their end after a single update. Other people's code is timed beside
ours by benchmarks/peers.py.
"""

import contextlib
import copy
import importlib.util
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

ALGORITHMS = Path(__file__).resolve().parents[1] / "algorithms"
MARK = "ours"  # of the page's part that this command writes
NUMBERS = Path("results", "speed")  # beside the page
PREFIX = "ours-"  # of the files in it that this command writes
# Observations, actions, the dataset whose settings the script takes, the key of its environment in
# the script's D4RL_ENVS, and what makes an episode of that last to the time limit
UPRIGHT = {"terminate_when_unhealthy": False}
TASKS = {"hopper": (11, 3, "hopper-medium-v2", "hopper", UPRIGHT),
         "halfcheetah": (17, 6, "halfcheetah-medium-v2", "halfcheetah", {}),
         "walker2d": (17, 6, "walker2d-medium-v2", "walker2d", UPRIGHT),
         "antmaze": (29, 8, "antmaze-umaze-v2", "antmaze-umaze", {})}
HORIZON = 1_000  # rows between two ends of the synthetic episodes, as in D4RL's HalfCheetah files
PRODUCT = {"cpu": 1_024, "cuda": 8_192}  # side of the square product whose rate is the limit
COLUMNS = ("script", "options", "execution", "precision", "seeds", "ms/update", "min to max",
           "sampling", "losses", "optimiser", "updates/s", "seed-updates/s", "s/evaluation",
           "its share", "GFLOP/update", "GFLOP/s", "of the limit", "peak MiB")
SHORTEST = ("--num-updates", "1", "--eval-episodes", "1", "--final-eval-episodes", "1")


@dataclass
class Args:
    script: tuple[str, ...] = ("por",)
    """files in algorithms/, without .py"""
    task: str = "hopper"
    """dimensions: hopper, halfcheetah, walker2d or antmaze"""
    phase: str = "train"
    """the script's phase: train, or one before it (POR's behavior with --guide q, SPOT's vae)"""
    num_seeds: tuple[int, ...] = (1,)
    """numbers of seeds that train at once"""
    execution: tuple[str, ...] = ("auto",)
    """how updates run: auto, eager, compile, capture"""
    precision: tuple[str, ...] = ("auto",)
    """of matrix products: auto, fp32, bf16"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes CUDA where there is one"""
    updates: int = 200
    """updates per timed block; rounded up so that updates that take turns come equally often, and
    to whole CUDA graphs"""
    repeats: int = 5
    """timed blocks"""
    warmup: int = 50
    """updates before the first block, rounded up in the same way"""
    rows: int = 1_000_000
    """transitions of the synthetic dataset"""
    threads: int | None = None
    """CPU threads (default: PyTorch's)"""
    eval_episodes: int = 10
    """episodes per seed of the evaluation that is timed; 0: none is"""
    eval_every: int = 5_000
    """updates between two evaluations, for their share of the time"""
    parts: bool = True
    """split an update into sampling, losses and optimiser"""
    start_up: tuple[str, ...] = ()
    """instead of all this, time whole commands of one update on these datasets, which are there"""
    out: Path | None = None
    """Markdown page with the lines <!-- ours:begin --> and <!-- ours:end -->, between which the
    tables go; the numbers go into results/speed/ beside it"""
    name: str | None = None
    """with --out: the file of the numbers is ours-NAME.json (default: device and task)"""
    rewrite: bool = False
    """measure nothing, write the page of --out from the numbers that are there"""


def load_script(name: str) -> ModuleType:
    """algorithms/`name`.py as a module. Raises SystemExit if there is none."""
    path = ALGORITHMS / f"{name}.py"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in ALGORITHMS.glob("*.py")))
        raise SystemExit(f"--script {name}: no such file in algorithms/; there are {known}")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and tyro look their module up there
    spec.loader.exec_module(module)
    return module


def synthetic(task: str, rows: int) -> dict:
    """Random rows as `load_dataset` of the scripts returns them, float32 but for `ends`."""
    obs_dim, act_dim, *_ = TASKS[task]
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    obs, ends = normal(rows, obs_dim), np.arange(1, rows + 1) % HORIZON == 0
    ends[-1] = True
    return {"observations": obs, "actions": normal(rows, act_dim).clip(-1, 1),
            "rewards": normal(rows), "terminals": np.zeros(rows, np.float32),
            "next_observations": obs + 0.1 * normal(rows, obs_dim),
            "known": (~ends).astype(np.float32), "ends": ends}


def describe(script: ModuleType, task: str, rows: int) -> dict:
    """The task of such rows: what `load_dataset` would say of it, as far as a run needs it."""
    obs_dim, act_dim, name, key, endless = TASKS[task]
    env_id, *_ = script.D4RL_ENVS[key]
    script.gym.logger.min_level = script.gym.logger.ERROR  # v4 environments are meant
    script.mujoco.set_mju_user_warning(warnings.warn)  # else MuJoCo leaves a file in this folder
    spec = copy.deepcopy(script.gym.spec(env_id))
    spec.kwargs |= endless
    text = spec.to_json() if isinstance(spec.entry_point, str) else None  # a class has its id only
    return {"name": name, "source": "synthetic", "horizon": spec.max_episode_steps,
            "env_id": env_id, "env_spec": text, "ref_min": None, "ref_max": None,
            "obs_dim": obs_dim, "act_dim": act_dim, "act_low": [-1.0] * act_dim,
            "act_high": [1.0] * act_dim, "transitions": rows}


def build(args: Args, words: list[str]) -> tuple[ModuleType, object, int, dict]:
    """A script's run at the start of its phase, as its own main() makes it.

    words: the algorithm's own options, as on its command line. Returns the script, the run, the
    number of which a block's updates must be a multiple, and what the run runs on. Raises
    SystemExit if the script has no such phase.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    script = load_script(args.script[0])
    own = {"--env": TASKS[args.task][2], "--device": args.device, "--num-seeds": args.num_seeds[0],
           "--execution": args.execution[0], "--precision": args.precision[0]}
    words = [*words, *(str(word) for pair in own.items() for word in pair)]
    run_args = script.fill_settings(tyro.cli(script.Args, args=words))
    device, execution, autocast = script.choose_device(run_args)
    task = describe(script, args.task, args.rows)
    rows = script.prepare(run_args, synthetic(args.task, args.rows), task)
    run = script.RUN(run_args, task, device, execution, autocast)
    run.use(rows)
    # an online phase steps environments: its time is not that of updates
    phases = [name for name, *_ in run.agent.phases if name != "online"]
    if args.phase not in phases:
        raise SystemExit(f"--phase {args.phase}: with these options {args.script[0]} has "
                         f"{', '.join(phases)}")
    run.phase = phases.index(args.phase)
    run.begin()
    turns = len(run.updates)
    whole = math.lcm(turns, script.UPDATES_PER_GRAPH if execution == "capture" else 1)
    rounds = device.type == "cpu" and product_error() > 1e-5
    products = {"highest": "fp32", "high": "tf32",
                "medium": "fp32 by bf16" if rounds else "fp32, oneDNN"}
    precision = products[torch.get_float32_matmul_precision()] + " + bf16" * autocast
    return script, run, whole, {"device": device.type, "execution": execution,
                                "precision": precision, "machine": machine(device)}


def product_error() -> float:
    """Largest relative error of a float32 product on the CPU, as the scripts measure it."""
    x = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    return (x @ x / (x.double() @ x.double()) - 1).abs().max().item()


def time_blocks(run, updates: int, repeats: int) -> list[float]:
    """Seconds of `repeats` blocks of `updates` updates; on CUDA the device has finished each."""
    wait = lambda: run.device.type == "cuda" and torch.cuda.synchronize(run.device)
    seconds = []
    for _ in range(repeats):
        wait()
        clock = time.perf_counter()
        run.advance(updates)
        wait()
        seconds.append(time.perf_counter() - clock)
    return seconds


def dissect(script: ModuleType, run) -> tuple[float, list[Callable[[], None]]]:
    """Run each of the phase's updates once, eager, and watch.

    Returns the floating-point operations of one update's matrix products, on average over updates
    that take turns, and for each of them a function that steps the optimisers and moves the targets
    that it does, with gradients of zero.
    """
    minimize, move, turns = script.minimize, vars(script).get("move_target"), []

    def minimized(optimizer, loss):
        gradients = [torch.zeros_like(weight) for weight in optimizer.weights]
        turns[-1][0].append((optimizer, gradients))
        minimize(optimizer, loss)

    def moved(*args):
        turns[-1][1].append(args)
        move(*args)

    script.minimize = minimized
    if move:  # BC has no target
        script.move_target = moved
    try:
        with FlopCounterMode(display=False) as counter:
            for update in run.agent.phases[run.phase][2:]:
                turns.append(([], []))
                with torch.autocast(run.device.type, torch.bfloat16, run.autocast,
                                    cache_enabled=False):
                    update(run.batch())
    finally:
        script.minimize = minimize
        if move:
            script.move_target = move

    def stepper(optimizers, moves):
        def step():
            for optimizer, gradients in optimizers:
                optimizer.step(gradients)
            for args in moves:
                move(*args)
        return step

    return counter.get_total_flops() / len(turns), [stepper(*turn) for turn in turns]


def time_alone(run, works: list[Callable], updates: int, repeats: int) -> list[float]:
    """`time_blocks` with `works`, which take turns, instead of updates, executed as those are.

    The run is of no use afterwards.
    """
    run.once, run.graph = lambda number: works[number % len(works)](), None
    for number in range(2 * len(works)):  # compiles
        run.once(number)
    run.advance(updates)  # records
    return time_blocks(run, updates, repeats)


def product_rate(device: torch.device, autocast: bool) -> float:
    """Floating-point operations per second of a large square product: the best of ten."""
    size, cuda = PRODUCT[device.type], device.type == "cuda"
    x = torch.rand(size, size, device=device, dtype=torch.bfloat16 if autocast else torch.float32)
    best = math.inf
    for turn in range(12):
        cuda and torch.cuda.synchronize(device)
        clock = time.perf_counter()
        x @ x
        cuda and torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - clock) if turn > 1 else best
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that tensors took, on a CPU the most that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(args: Args, words: list[str]) -> dict:
    """All about one configuration: times in seconds, operations, memory, what it ran on.

    words: the algorithm's own options, as on its command line.
    """
    script, run, whole, facts = build(args, words)
    rounded = lambda updates: whole * math.ceil(updates / whole)
    updates = rounded(args.updates)
    clock = time.perf_counter()
    run.advance(max(rounded(args.warmup), 2 * whole))
    warmup = time.perf_counter() - clock
    seconds, memory = time_blocks(run, updates, args.repeats), peak_memory(run.device)
    run.means()  # ends the program if the losses are NaN: such a time would say nothing
    evaluation = sampling = optimiser = None
    if args.eval_episodes:
        clock = time.perf_counter()
        run.pool = ThreadPoolExecutor(1)  # its cost here; worker processes would share and hide it
        run.measure(args.eval_episodes)
        run.collect()
        evaluation = time.perf_counter() - clock
    operations, steps = dissect(script, run)
    if args.parts:
        disable = facts["execution"] == "eager"
        sampling = time_alone(run, [run.batch], updates, args.repeats)
        steps = [torch.compile(step, disable=disable) for step in steps]
        optimiser = time_alone(run, steps, updates, args.repeats)
    return facts | {"seconds": seconds, "updates": updates, "warmup": warmup,
                    "evaluation": evaluation, "sampling": sampling, "optimiser": optimiser,
                    "operations": operations, "memory": memory,
                    "limit": product_rate(run.device, run.autocast)}


def machine(device: torch.device) -> str:
    """Processor, threads, versions and accelerator in one line."""
    try:
        cpu = next(line.partition(":")[2].strip() for line in open("/proc/cpuinfo")
                   if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor without a name
        cpu = platform.processor() or platform.machine()
    name = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return (f"{cpu}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads{name}; "
            f"PyTorch {torch.__version__}, Python {platform.python_version()}")


def start_up(script: str, dataset: str, repeats: int) -> dict:
    """Seconds of whole commands that train for one update, and the rows of their dataset.

    Such a command reads and checks the data, evaluates two episodes and writes a checkpoint. Raises
    SystemExit if it fails.
    """
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ALGORITHMS / f"{script}.py"), "--env", dataset,
                       "--run-dir", folder, *SHORTEST]
            clock = time.perf_counter()
            child = subprocess.run(command, capture_output=True, text=True)
            seconds.append(time.perf_counter() - clock)
            if child.returncode:
                raise SystemExit(f"{' '.join(command[1:4])} ended with code {child.returncode}: "
                                 f"{child.stderr[-500:]}")
            task = json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))["task"]
    return {"script": script, "dataset": dataset, "transitions": task["transitions"],
            "seconds": seconds}


# ---- Rows, tables, the page

def per_update(result: dict, key: str = "seconds") -> float | None:
    """Milliseconds per update: the median of the blocks, None if they were not timed."""
    return result[key] and 1_000 * float(np.median(result[key])) / result["updates"]


def table_row(result: dict) -> str:
    """One configuration as a Markdown row, in the order of COLUMNS."""
    middle, sampling, optimiser = (per_update(result, k) for k in ("seconds", "sampling",
                                                                   "optimiser"))
    low, high = (1_000 * f(result["seconds"]) / result["updates"] for f in (min, max))
    seeds, evaluation = result["seeds"], result["evaluation"]
    parts = ["-"] * 3
    if sampling and optimiser:
        parts = [f"{sampling:.3f}", f"{max(0, middle - sampling - optimiser):.3f}",
                 f"{optimiser:.3f}"]
    between = result["eval_every"] * middle / 1_000  # seconds from one evaluation to the next
    share = evaluation and f"{100 * evaluation / (evaluation + between):.1f}%"
    rate = 1_000 * result["operations"] / middle
    cells = (result["script"], result["options"] or "-", result["execution"], result["precision"],
             seeds, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", *parts, f"{1_000 / middle:.1f}",
             f"{1_000 * seeds / middle:.1f}", f"{evaluation:.2f}" if evaluation else "-",
             share or "-", f"{result['operations'] / 1e9:.3f}", f"{rate / 1e9:.1f}",
             f"{100 * rate / result['limit']:.1f}%", f"{result['memory'] / 2**20:.0f}")
    return f"| {' | '.join(map(str, cells))} |"


def heading() -> str:
    return f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def table(numbers: dict) -> str:
    """What one command measured: hardware, how, and its rows."""
    rows, limits = numbers["rows"], {}
    for row in rows:
        limits.setdefault(row["precision"], []).append(row["limit"])
    limit = ", ".join(f"{max(rates) / 1e9:,.0f} GFLOP/s ({name})" for name, rates in limits.items())
    obs_dim, act_dim, *_ = TASKS[numbers["task"]]
    return "\n\n".join([
        f"### {rows[0]['device']}, {numbers['task']}: {obs_dim} observations, {act_dim} actions"
        + f"; phase {numbers['phase']}" * (numbers["phase"] != "train"),
        f"`{numbers['command']}`",
        f"{numbers['machine']}. Commit {numbers['commit']}, {numbers['date']}. Load before the "
        f"start: {numbers['load']:.1f}. Median of {numbers['repeats']} blocks of "
        f"{rows[0]['updates']} updates, milliseconds; evaluations of {numbers['eval_episodes']} "
        f"episodes per seed every {rows[0]['eval_every']:,} updates. Limit: {limit}.",
        "\n".join([heading(), *map(table_row, rows)])])


def start_up_table(numbers: dict) -> str:
    """What --start-up measured: hardware, how, and its rows."""
    rows = [f"| {r['script']} | `{r['dataset']}` | {r['transitions']:,} | "
            f"{np.median(r['seconds']):.1f} | {min(r['seconds']):.1f} to {max(r['seconds']):.1f} |"
            for r in numbers["rows"]]
    return "\n\n".join([
        "### Start-up", f"`{numbers['command']}`",
        f"{numbers['machine']}. Commit {numbers['commit']}, {numbers['date']}. Load before the "
        f"start: {numbers['load']:.1f}. Seconds of the whole command, of which the first update "
        f"is a part: median of {len(numbers['rows'][0]['seconds'])}, the first of which may find "
        "files that no cache holds.",
        "\n".join(["| script | dataset | rows | seconds | min to max |", "| --- |" + " --- |" * 4,
                   *rows])])


def tables(folder: Path) -> str:
    """All tables of the page, of the files of numbers in a folder."""
    files = sorted(folder.glob(f"{PREFIX}*.json"))
    note = ("<!-- Written by benchmarks/speed.py from results/speed/ours-*.json. Edit neither by "
            "hand: the tests compare them. -->")
    numbers = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    parts = [(start_up_table if "dataset" in n["rows"][0] else table)(n) for n in numbers]
    return "\n\n".join([note, *parts]) if parts else "Not measured yet."


def replaced(path: Path, new: str, mark: str = MARK) -> str:
    """The page's text with `new` between two marks. Raises SystemExit if they are not there."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"--out {path}: it needs the lines {begin} and {end} once each, in this "
                         "order: the tables go between them")
    return f"{text[:text.index(begin)]}{begin}\n{new}\n{text[text.index(end):]}"


def write(path: Path, text: str) -> None:
    """The whole new file or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.tmp")
    part.write_text(text, encoding="utf-8")
    part.rename(path)


def commit() -> str:
    """The repository's commit, with -dirty where files differ from it; unknown without git."""
    with contextlib.suppress(OSError):
        git = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], text=True,
                             cwd=Path(__file__).resolve().parent, capture_output=True)
        return git.stdout.strip() or "unknown"
    return "unknown"


def command_line(program: str, args, names: dict[str, str]) -> str:
    """The command with the options that differ from their defaults; `names` stand for folders of
    this machine, which mean nothing to a reader."""
    given = {k: names.get(k, v) for k, v in vars(args).items() if v != getattr(type(args), k)}
    flat = lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else str(v)
    options = [f"--no-{k}" if v is False else f"--{k.replace('_', '-')} {flat(v)}"
               for k, v in given.items()]
    return " ".join(["python", program, *options])


def measure_apart(args: Args, words: list[str]) -> dict:
    """`measure` in a process of its own; what the script prints goes to the error stream."""
    config = json.dumps([asdict(args) | {"out": None}, words])
    child = subprocess.run([sys.executable, __file__, "--configuration", config],
                           stdout=subprocess.PIPE, text=True)
    if child.returncode:
        what = f"{args.num_seeds[0]} seeds, {args.execution[0]}, {args.precision[0]}"
        raise SystemExit(f"the measurement of {args.script[0]} ({what}) ended with code "
                         f"{child.returncode}")
    return json.loads(child.stdout)


def check(args: Args, words: list[str]) -> None:
    """Refuse what cannot be measured or written, before any process starts."""
    for option in ("env", "device", "num-seeds", "execution", "precision"):
        if any(word.partition("=")[0].replace("_", "-") == f"--{option}" for word in words):
            raise SystemExit(f"--{option} after -- would not reach the table; "
                             + ("use --task" if option == "env" else "put it before --"))
    if args.task not in TASKS:
        raise SystemExit(f"--task {args.task}: choose one of {', '.join(TASKS)}")
    for script in args.script:
        if not (ALGORITHMS / f"{script}.py").exists():
            load_script(script)
    for name, value in asdict(args).items():
        values = value if isinstance(value, tuple) else [value]
        if not values and name != "start_up":
            raise SystemExit(f"--{name.replace('_', '-')} needs a value")
        least = int(name != "eval_episodes")
        if any(type(v) is int and v < least for v in values):
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {least}")
    if args.name and not (args.out and re.fullmatch(r"[\w.-]+", args.name)):
        raise SystemExit(f"--name {args.name}: letters, digits and -_. for a file, with --out")
    plain = ("script", "repeats", "start_up", "out", "name")
    changed = [k for k, v in vars(args).items() if k not in plain and v != getattr(Args, k)]
    if args.start_up and (changed or words):
        lost = [f"--{changed[0].replace('_', '-')}"] if changed else words
        raise SystemExit(f"--start-up times plain commands: {lost[0]} would not reach them")
    if args.rewrite and not args.out:
        raise SystemExit("--rewrite needs --out, the page")
    if args.out:
        replaced(args.out, "")


def store(args: Args, numbers: dict, name: str) -> None:
    """With --out: the numbers as a file, named so unless --name says otherwise, and the page."""
    if args.out:
        folder = args.out.parent / NUMBERS
        write(folder / f"{PREFIX}{args.name or name}.json", json.dumps(numbers, indent=1) + "\n")
        write(args.out, replaced(args.out, tables(folder)))


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--configuration"]:  # a child of measure_apart
        options, own = json.loads(words[1])
        with contextlib.redirect_stdout(sys.stderr):
            result = measure(Args(**options), own)
        return print(json.dumps(result))
    split = words.index("--") if "--" in words else len(words)
    words, own = words[:split], words[split + 1:]
    args = tyro.cli(Args, args=words, description=__doc__)
    check(args, own)
    if args.rewrite:
        return write(args.out, replaced(args.out, tables(args.out.parent / NUMBERS)))
    command = command_line("benchmarks/speed.py", args, {"out": "benchmarks/SPEED.md"})
    numbers = {"command": command + " -- " * bool(own) + " ".join(own), "commit": commit(),
               "date": time.strftime("%F"), "load": os.getloadavg()[0], "task": args.task,
               "phase": args.phase, "repeats": args.repeats, "eval_episodes": args.eval_episodes,
               "rows": []}
    if args.start_up:
        numbers["machine"] = machine(torch.device("cpu"))
        numbers["rows"] = [start_up(*way, args.repeats)
                           for way in product(args.script, args.start_up)]
        print(start_up_table(numbers))
        return store(args, numbers, "start-up")
    for way in product(args.script, args.num_seeds, args.execution, args.precision):
        fields = dict(zip(("script", "num_seeds", "execution", "precision"), zip(way)))
        result = measure_apart(replace(args, **fields), own)
        if not numbers["rows"]:
            numbers["machine"] = result["machine"]
            print(f"{result['machine']}; {args.task}, {args.repeats} blocks of "
                  f"{result['updates']} updates\n\n{heading()}")
        del result["machine"]
        numbers["rows"].append({"script": way[0], "options": " ".join(own), "seeds": way[1],
                                "eval_every": args.eval_every} | result)
        print(table_row(numbers["rows"][-1]), flush=True)
        store(args, numbers, f"{result['device']}-{args.task}")  # each: the next one may fail


if __name__ == "__main__":
    main()
