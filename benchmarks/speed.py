"""Measure how fast a script of algorithms/ updates, without warm-up, evaluation and logs.

A script is loaded as it is and builds its `Run` as its own command does, on synthetic rows with
the dimensions of a task. After the warm-up (which includes compiling) blocks of updates are timed
by the clock on the wall; on CUDA the queue is empty whenever the clock is read. Every combination
of options is a process of its own, so that no setting of PyTorch leaks into the next one. The
answer is a row of a Markdown table for each; its precision is what the script chose for this
machine: `medium` is PyTorch's word for oneDNN's products, which some CPUs round to bf16.

    python benchmarks/speed.py --num-seeds 1 5 --execution eager compile
    python benchmarks/speed.py --task antmaze --threads 2 -- --guide q    # after --: the script's

Compare only rows that were measured while nothing else ran on the machine.
"""

import contextlib
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import tyro

ALGORITHMS = Path(__file__).resolve().parents[1] / "algorithms"
# Observations, actions, and the dataset whose settings the script takes
TASKS = {"hopper": (11, 3, "hopper-medium-v2"), "halfcheetah": (17, 6, "halfcheetah-medium-v2"),
         "walker2d": (17, 6, "walker2d-medium-v2"), "antmaze": (29, 8, "antmaze-umaze-v2")}
HORIZON = 1_000
COLUMNS = ("script", "task", "options", "device", "execution", "precision", "seeds",
           "ms/update min", "median", "max", "ms per seed", "updates/s", "seed-updates/s")


@dataclass
class Args:
    script: str = "por"
    """file in algorithms/, without .py"""
    task: str = "hopper"
    """dimensions: hopper, halfcheetah, walker2d or antmaze"""
    num_seeds: tuple[int, ...] = (1,)
    """numbers of seeds that train at once"""
    execution: tuple[str, ...] = ("auto",)
    """how updates run: auto, eager, compile, capture"""
    precision: tuple[str, ...] = ("auto",)
    """of matrix products: auto, fp32, bf16"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes CUDA where there is one"""
    updates: int = 200
    """updates per timed block; with CUDA graphs rounded up to whole graphs"""
    repeats: int = 5
    """timed blocks"""
    warmup: int = 50
    """updates before the first block"""
    rows: int = 1_000_000
    """transitions of the synthetic dataset"""
    threads: int | None = None
    """CPU threads (default: PyTorch's)"""


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


def synthetic(task: str, rows: int) -> tuple[dict, dict]:
    """Random rows and their description, as `load_dataset` of the scripts returns them."""
    obs_dim, act_dim, name = TASKS[task]
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    obs = normal(rows, obs_dim)
    data = {"observations": obs, "actions": normal(rows, act_dim).clip(-1, 1),
            "rewards": normal(rows), "terminals": np.zeros(rows, np.float32),
            "next_observations": obs + 0.1 * normal(rows, obs_dim),
            "known": np.ones(rows, np.float32), "ends": np.arange(1, rows + 1) % HORIZON == 0}
    data["ends"][-1] = True
    return data, {"name": name, "source": "synthetic", "horizon": HORIZON, "ref_min": None,
                  "ref_max": None, "obs_dim": obs_dim, "act_dim": act_dim, "transitions": rows}


def measure(args: Args, words: list[str]) -> dict:
    """Seconds per block of one configuration, and what it ran on.

    words: the algorithm's own options, as on its command line.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    script = load_script(args.script)
    own = {"--env": TASKS[args.task][2], "--device": args.device, "--num-seeds": args.num_seeds[0],
           "--execution": args.execution[0], "--precision": args.precision[0]}
    words = [*words, *(str(word) for pair in own.items() for word in pair)]
    run_args = script.fill_settings(tyro.cli(script.Args, args=words))
    device, execution, autocast = script.choose_device(run_args)
    data, task = synthetic(args.task, args.rows)
    run = script.Run(run_args, task, device, execution, autocast)
    run.use(script.prepare(data, task))
    run.phase = len(run.agent.phases) - 1
    run.begin(run.phase)
    whole = script.UPDATES_PER_GRAPH if execution == "capture" else 1
    updates = whole * math.ceil(args.updates / whole)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    run.advance(args.warmup)
    seconds = []
    for _ in range(args.repeats):
        wait()
        clock = time.perf_counter()
        run.advance(updates)
        wait()
        seconds.append(time.perf_counter() - clock)
    run.means()  # ends the program if the losses are NaN: such a time would say nothing
    products = {"highest": "fp32", "high": "tf32", "medium": "medium"}
    precision = products[torch.get_float32_matmul_precision()] + "+bf16" * autocast
    return {"seconds": seconds, "updates": updates, "device": device.type, "execution": execution,
            "precision": precision, "machine": machine(device)}


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


def table_row(args: Args, words: list[str], result: dict) -> str:
    """One configuration as a Markdown row, in the order of COLUMNS."""
    low, middle, high = (1_000 * f(result["seconds"]) / result["updates"]
                         for f in (np.min, np.median, np.max))
    seeds = args.num_seeds[0]
    options = " ".join(words) or "-"
    cells = (args.script, args.task, options, result["device"], result["execution"],
             result["precision"], seeds, f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}",
             f"{middle / seeds:.3f}", f"{1_000 / middle:.1f}", f"{1_000 * seeds / middle:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def measure_apart(args: Args, words: list[str]) -> dict:
    """`measure` in a process of its own; what the script prints goes to the error stream."""
    config = json.dumps([asdict(args), words])
    child = subprocess.run([sys.executable, __file__, "--configuration", config],
                           stdout=subprocess.PIPE, text=True)
    if child.returncode:
        what = f"{args.num_seeds[0]} seeds, {args.execution[0]}, {args.precision[0]}"
        raise SystemExit(f"the measurement of {args.script} ({what}) ended with code "
                         f"{child.returncode}")
    return json.loads(child.stdout)


def check(args: Args, words: list[str]) -> None:
    """Refuse what cannot be measured, before any process starts."""
    for option in ("env", "device", "num-seeds", "execution", "precision"):
        if any(word.partition("=")[0].replace("_", "-") == f"--{option}" for word in words):
            raise SystemExit(f"--{option} after -- would not reach the table; "
                             + ("use --task" if option == "env" else "put it before --"))
    if args.task not in TASKS:
        raise SystemExit(f"--task {args.task}: choose one of {', '.join(TASKS)}")
    if not (ALGORITHMS / f"{args.script}.py").exists():
        load_script(args.script)
    for name, value in asdict(args).items():
        values = value if isinstance(value, tuple) else [value]
        if not values:
            raise SystemExit(f"--{name.replace('_', '-')} needs a value")
        if any(isinstance(v, int) and v < 1 for v in values):
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 1")


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
    first = True
    for seeds, execution, precision in product(args.num_seeds, args.execution, args.precision):
        one = replace(args, num_seeds=(seeds,), execution=(execution,), precision=(precision,))
        result = measure_apart(one, own)
        if first:
            print(f"{result['machine']}; {args.repeats} blocks of {result['updates']} updates\n")
            print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
            first = False
        print(table_row(one, own, result), flush=True)


if __name__ == "__main__":
    main()
