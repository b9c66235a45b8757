"""Measure how much memory a training of each script takes: the most that its process ever had.

A script reads random rows with the dimensions of a task from a file, builds one agent with its
default options and makes 20 updates without compiling. So PyTorch itself, reading the file and the
table of rows are counted.

    python -m benchmarks.speed.memory
    python -m benchmarks.speed.memory --out benchmarks/speed/results/memory.json
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.common import LOOKS, git_commit, machine, script_path, write_atomically
from benchmarks.speed.measure import DISCRETE, ONLINE_ONLY
from benchmarks.speed.ours import Config, start_worker, write_rows
from benchmarks.speed.turns import peak_memory

OFFLINE = tuple(script for script in LOOKS if script not in (*ONLINE_ONLY, *DISCRETE))


@dataclass
class Args:
    script: tuple[str, ...] = OFFLINE  # files in algorithms/, without .py
    task: Literal["hopper", "halfcheetah", "walker2d", "antmaze"] = "halfcheetah"
    rows: int = 1_000_000  # random transitions
    out: Path | None = None  # JSON file with the numbers; None: they are only printed


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for script in args.script:
        script_path(script)
        if script not in OFFLINE:
            sys.exit(f"{script} cannot train on the rows of --task {args.task}")
    if args.rows < 1:
        sys.exit("--rows must be above 0")
    if peak_memory() is None:
        sys.exit("this system does not tell how much memory a process took at most; Linux does")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/rows.hdf5"
        write_rows(file, args.task, args.rows)
        for script in args.script:
            worker = start_worker(Config(script, args.task, file=file), threads=1)
            try:
                memory = worker.answer()["memory_mb"]
            finally:
                worker.close()
            rows.append({"script": script, "memory_mb": memory})
            print(f"{script}: {memory} MB")
    numbers = {
        "machine": machine(),
        "commit": git_commit(),
        "date": time.strftime("%F"),
        "task": args.task,
        "transitions": args.rows,
        "rows": rows,
    }
    if args.out is not None:
        write_atomically(args.out, json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
