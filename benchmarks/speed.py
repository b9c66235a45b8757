"""Measure where the time of a script of algorithms/ goes: batches, updates, evaluations.

A script is loaded as it is and builds its run as its own command does, on synthetic rows with the
dimensions of a task. After the warm-up (which includes compiling) blocks of updates are timed by
the clock on the wall; on CUDA the queue is empty whenever the clock is read. "Sampling" is the part
of an update's time that drawing its batch takes; CUDA overlaps the two, so there is none. Then one
evaluation is timed: all its episodes last to the time limit, which makes it the longest that can
come, and its share is that of a training which evaluates every --eval-every updates.

Every combination of options is a process of its own, so that no setting of PyTorch leaks into the
next one. The answer is a row of a Markdown table for each; its precision is what the script chose
for this machine: `medium` is PyTorch's word for oneDNN's products, which some CPUs round to bf16.

    python benchmarks/speed.py --num-seeds 1 5 --execution eager compile
    python benchmarks/speed.py --script spot --phase vae
    python benchmarks/speed.py --task antmaze --threads 2 -- --guide q    # after --: the script's

Compare only rows that were measured while nothing else ran on the machine. Other people's code is
timed beside ours by benchmarks/peers.py.
"""

import contextlib
import copy
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import tyro

ALGORITHMS = Path(__file__).resolve().parents[1] / "algorithms"
# Observations, actions, the dataset whose settings the script takes, the key of its environment in
# the script's D4RL_ENVS, and what makes an episode of that last to the time limit
UPRIGHT = {"terminate_when_unhealthy": False}
TASKS = {"hopper": (11, 3, "hopper-medium-v2", "hopper", UPRIGHT),
         "halfcheetah": (17, 6, "halfcheetah-medium-v2", "halfcheetah", {}),
         "walker2d": (17, 6, "walker2d-medium-v2", "walker2d", UPRIGHT),
         "antmaze": (29, 8, "antmaze-umaze-v2", "antmaze-umaze", {})}
HORIZON = 1_000  # rows between two ends of the synthetic episodes, as in D4RL's HalfCheetah files
COLUMNS = ("script", "phase", "task", "options", "device", "execution", "precision", "seeds",
           "ms/update min", "median", "max", "of it sampling", "ms per seed", "updates/s",
           "seed-updates/s", "s/evaluation", "its share")


@dataclass
class Args:
    script: str = "por"
    """file in algorithms/, without .py"""
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
    """updates before the first block"""
    rows: int = 1_000_000
    """transitions of the synthetic dataset"""
    threads: int | None = None
    """CPU threads (default: PyTorch's)"""
    eval_episodes: int = 10
    """episodes per seed of the evaluation that is timed; 0: none is"""
    eval_every: int = 5_000
    """updates between two evaluations, for their share of the time"""


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
    script = load_script(args.script)
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
        raise SystemExit(f"--phase {args.phase}: with these options {args.script} has "
                         f"{', '.join(phases)}")
    run.phase = phases.index(args.phase)
    run.begin()
    turns = len(run.updates)
    whole = math.lcm(turns, script.UPDATES_PER_GRAPH if execution == "capture" else 1)
    products = {"highest": "fp32", "high": "tf32", "medium": "medium"}
    precision = products[torch.get_float32_matmul_precision()] + "+bf16" * autocast
    return script, run, whole, {"device": device.type, "execution": execution,
                                "precision": precision, "machine": machine(device)}


def watch_batches(run) -> list[float]:
    """A list that gets the seconds of every batch that `run` draws from now on."""
    draw, seconds = run.batch, []

    def batch() -> dict:
        clock = time.perf_counter()
        drawn = draw()
        seconds.append(time.perf_counter() - clock)
        return drawn

    run.batch = batch
    return seconds


def measure(args: Args, words: list[str]) -> dict:
    """Seconds per block of one configuration, of their batches, of an evaluation; what it ran on.

    words: the algorithm's own options, as on its command line.
    """
    script, run, whole, facts = build(args, words)
    updates = whole * math.ceil(args.updates / whole)
    cuda = run.device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    run.advance(args.warmup)
    seconds, sampling, batches = [], [], watch_batches(run)
    for _ in range(args.repeats):
        wait()
        batches.clear()
        clock = time.perf_counter()
        run.advance(updates)
        wait()
        seconds.append(time.perf_counter() - clock)
        sampling.append(sum(batches))
    run.means()  # ends the program if the losses are NaN: such a time would say nothing
    clock, evaluation = time.perf_counter(), None
    if args.eval_episodes:
        script.evaluate(run.agent, run.task, args.num_seeds[0], args.eval_episodes, run.device)
        evaluation = time.perf_counter() - clock
    return facts | {"seconds": seconds, "updates": updates, "evaluation": evaluation,
                    "sampling": None if cuda else sampling}


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
    seeds, sampling, evaluation = args.num_seeds[0], result["sampling"], result["evaluation"]
    options = " ".join(words) or "-"
    sampling = sampling and f"{1_000 * np.median(sampling) / result['updates']:.3f}"
    between = args.eval_every * middle / 1_000  # seconds from one evaluation to the next
    share = evaluation and f"{100 * evaluation / (evaluation + between):.1f}%"
    cells = (args.script, args.phase, args.task, options, result["device"], result["execution"],
             result["precision"], seeds, f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}",
             sampling or "-", f"{middle / seeds:.3f}", f"{1_000 / middle:.1f}",
             f"{1_000 * seeds / middle:.1f}", f"{evaluation:.2f}" if evaluation else "-",
             share or "-")
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
        least = int(name != "eval_episodes")
        if any(isinstance(v, int) and v < least for v in values):
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {least}")


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
