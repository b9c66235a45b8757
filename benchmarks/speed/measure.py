"""Time the updates of scripts of algorithms/, and those of other people's code beside them.

A script's agent is built by the script itself, on random rows with the dimensions of a task. After
the warm-up, which includes compiling, blocks of updates are timed by the clock on the wall. Every
configuration is a process of its own, and they take turns block by block.

    python -m benchmarks.speed.measure --script por iql --num-seeds 1 5 --execution eager compile
    python -m benchmarks.speed.measure --script spot --phase vae
    python -m benchmarks.speed.measure --script por --task antmaze --threads 1 -- --guide q
    python -m benchmarks.speed.measure --script discrete_bcq --task cartpole
    python -m benchmarks.speed.measure --script iql td3_bc --checkouts others \\
        --jax-python jax/bin/python --out benchmarks/speed/results/amd.json

Words after -- are options of the scripts. --checkouts is a folder with some of the projects in it
that benchmarks/speed/README.md lists; those that have an update to compare with a --script are
timed, too. Code in JAX needs a Python of its own, which has JAX. Compare only what one command
measured, and measure while nothing else runs on the machine.
"""

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.common import git_commit, machine, script_path, split_words, write_atomically
from benchmarks.speed.ours import Config, start_worker, worker_env
from benchmarks.speed.page import tables
from benchmarks.speed.peers import PROJECTS, load_peers
from benchmarks.speed.rows import TASKS
from benchmarks.speed.turns import Worker, time_in_turn

# They gather their rows while they train.
ONLINE_ONLY = ("dagger", "ppo", "trpo")
DISCRETE = ("discrete_bcq",)  # it takes whole numbers as actions, and the others vectors


@dataclass
class Args:
    script: tuple[str, ...] = ("por",)  # files in algorithms/, without .py
    task: Literal["hopper", "halfcheetah", "walker2d", "antmaze", "cartpole"] = "halfcheetah"
    phase: str = "train"  # of the script: train, or one before it, such as SPOT's vae
    num_seeds: tuple[int, ...] = (1,)  # numbers of agents that train at once
    execution: tuple[Literal["eager", "compile", "graph"], ...] = ("eager", "compile")
    device: str = "cpu"  # cpu, cuda, cuda:1, ...
    threads: int | None = None  # CPU threads of every process; None: all cores
    rows: int = 200_000  # random transitions
    seconds: float = 0.5  # length of a block
    blocks: int = 10  # blocks of every configuration
    eval_episodes: int = 0  # time an evaluation of so many episodes per agent, too
    checkouts: Path | None = None  # folder with other people's repositories
    jax_python: Path | None = None  # a Python that has JAX
    out: Path | None = None  # JSON file with the numbers; None: they are only printed


def check_args(args: Args) -> None:
    """Refuse what cannot be measured before any process starts."""
    for script in args.script:
        script_path(script)
        if script in ONLINE_ONLY:
            sys.exit(
                f"{script} gathers its rows while it trains, so it has no updates on stored ones"
            )
        if (script in DISCRETE) != TASKS[args.task].discrete:
            sys.exit(
                f"{script} does not take the kind of actions that --task {args.task} has; "
                f"{' and '.join(DISCRETE)} needs cartpole, and the others any other task"
            )
    if min(args.blocks, args.rows, args.seconds, *args.num_seeds) <= 0 or args.eval_episodes < 0:
        sys.exit("--blocks, --rows, --seconds and --num-seeds must be above 0")
    if args.threads is not None and args.threads < 1:
        sys.exit("--threads must be at least 1")
    if "graph" in args.execution and not args.device.startswith("cuda"):
        sys.exit("--execution graph records CUDA graphs, which need --device cuda")
    if args.checkouts is not None and not args.checkouts.is_dir():
        sys.exit(f"--checkouts {args.checkouts}: there is no such folder")


def start_ours(args: Args, words: list[str], threads: int) -> list[Worker]:
    """Start a process for every configuration of a script of ours."""
    workers = []
    for script, seeds, execution in product(args.script, args.num_seeds, args.execution):
        config = Config(
            script, args.task, seeds, execution, args.phase, args.device, args.rows, words
        )
        workers.append(start_worker(config, threads))
    return workers


def start_peers(args: Args, words: list[str], threads: int) -> list[Worker]:
    """Start a process for each piece of other people's code that belongs to a script."""
    workers = []
    for project in PROJECTS:
        checkout = args.checkouts / project
        if not checkout.is_dir():
            continue
        for number, peer in enumerate(load_peers(project)):
            if peer.script not in args.script or peer.phase != args.phase:
                continue
            if peer.jax and args.jax_python is None:
                print(f"{peer.name} is left out, because it needs --jax-python", file=sys.stderr)
                continue
            if peer.words not in " ".join(words):
                print(f"{peer.name} is left out without -- {peer.words}", file=sys.stderr)
                continue
            peer.version(checkout)  # ends the program if a file is missing
            config = {
                "project": project,
                "number": number,
                "checkout": str(checkout.resolve()),
                "task": args.task,
                "device": args.device,
                "rows": args.rows,
            }
            # Without the last variable, JAX takes most of a GPU's memory.
            env = worker_env(args.device, threads) | {
                "JAX_PLATFORMS": args.device,
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            }
            python = str(args.jax_python.absolute()) if peer.jax else sys.executable
            command = [python, "-m", "benchmarks.speed.peers", json.dumps(config)]
            workers.append(Worker(peer.name, command, env))
    return workers


def measure(args: Args, words: list[str]) -> list[dict]:
    """Time all configurations in turn."""
    threads = args.threads or os.cpu_count()
    workers = []
    try:
        workers += start_ours(args, words, threads)
        if args.checkouts is not None:
            workers += start_peers(args, words, threads)
        rows = time_in_turn(workers, args.seconds, args.blocks, args.eval_episodes)
    finally:
        for worker in workers:
            worker.close()
    if {row["threads"] for row in rows} != {threads}:
        sys.exit("not all processes had the same number of threads, so this is no comparison")
    return rows


def command_line(args: Args, words: list[str]) -> str:
    """Return the command that asks for this, without the folders of this machine."""
    parts = ["python", "-m", "benchmarks.speed.measure"]
    for name, value in vars(args).items():
        if name == "out" or (value == getattr(Args, name) and name != "script"):
            continue
        values = value if isinstance(value, tuple) else [value]
        values = [part.name if isinstance(part, Path) else str(part) for part in values]
        parts += [f"--{name.replace('_', '-')}", *values]
    if words:
        parts += ["--", *words]
    return shlex.join(parts)


def main() -> None:
    own, words = split_words(sys.argv[1:])
    args = tyro.cli(Args, args=own, description=__doc__)
    check_args(args)
    load = os.getloadavg()[0]
    rows = measure(args, words)
    gpu = next(row["gpu"] for row in rows if row["code"] == "ours")
    numbers = {
        "command": command_line(args, words),
        "machine": machine(gpu),
        "threads": rows[0]["threads"],
        "commit": git_commit(),
        "date": time.strftime("%F"),
        "load": load,
        "task": args.task,
        "phase": args.phase,
        "transitions": args.rows,
        "rows": rows,
    }
    print(tables(numbers))
    if args.out is not None:
        write_atomically(args.out, json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
