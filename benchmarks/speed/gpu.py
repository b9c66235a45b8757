"""Use 15 minutes on a GPU: check, measure, collect a dataset there, train on it.

    python -m benchmarks.speed.gpu                # as often as there is time; it continues
    python -m benchmarks.speed.gpu --rehearse     # the same on a CPU, with tiny numbers

A call does the steps that have not been done, in this order, and ends before --minutes are over:
- check: the tests that compare updates captured as a CUDA graph with eager ones, for three scripts
- speed: benchmarks.speed.measure, eager and captured, 1 and 10 seeds
- collect: the dataset, which no machine has to carry there
- train: benchmarks.run with POR, then IQL, a million updates of three seeds. A training that is
  stopped loses the updates since its last evaluation. The next call continues it.

A step that has failed, or has used up its own time, is not repeated; --again check does it anew.
Whatever was found lies in the folder --out and, but for checkpoints, in one archive there,
gpu.tar.gz. The exit code is 0 when all is done. The only file that must be brought along is
D4RL's ant (python -m benchmarks.datasets.d4rl_policies ant_hierarch_pol.pkl fetches it).
"""

import contextlib
import json
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import tyro

from benchmarks.common import ROOT, git_commit, machine, write_atomically

TRY = 20  # seconds without which no step begins
STOP = 30  # seconds that a step has to end after a Ctrl-C, and that packing needs
SCRIPTS = ("por", "iql", "td3_bc")  # checked and measured


@dataclass
class Args:
    out: Path = Path("runs/gpu")  # folder of whatever is found
    minutes: float = 8.5  # of this call
    again: tuple[Literal["check", "speed", "collect"], ...] = ()  # do these steps once more
    rehearse: bool = False  # on a CPU, with tiny numbers


class Step(NamedTuple):
    name: str
    seconds: float  # it is stopped after these, or when the call has to end
    words: list  # of its command, after `python -m`


def plan(args: Args) -> list[Step]:
    """Return all steps for a card, or for the rehearsal."""
    grid = ["--runs", args.out / "runs", "--results", args.out / "results", "--jobs", 1]
    if args.rehearse:
        tests, checked = "compiled_updates_are_the_eager_ones", SCRIPTS[-1:]
        speed = "--execution eager --rows 2000 --seconds 0.05 --blocks 2 --num-seeds 2"
        dataset, grid_words = "rebuilt/antmaze/umaze-2k-v0", "--num-seeds 2 --num-updates 40"
        run = "--eval-every 20 --eval-episodes 1 --final-eval-episodes 1 --hidden 8"
    else:
        tests, checked = "cuda_graphs_are_the_eager_updates", SCRIPTS
        speed = "--execution eager graph --blocks 5 --num-seeds 1 10 --device cuda"
        dataset, grid_words = "rebuilt/antmaze/umaze-v0", "--num-seeds 3 --num-updates 1000000"
        # An evaluation also saves the run. A CPU core does some 1,000 to 2,000 steps of the ant in
        # a second, so 5 episodes of 700 steps of 3 agents take 5 to 10 seconds.
        run = "--eval-every 100000 --eval-episodes 5 --final-eval-episodes 30 --device cuda"
    cases = [f"tests/test_every_script.py::test_{tests}[{script}]" for script in checked]
    measure = ["--script", *SCRIPTS, *speed.split(), "--out", args.out / "speed.json"]
    grid += ["--algorithms", "por", "iql", "--datasets", dataset, *grid_words.split()]
    # A rehearsal is to reach its end on a slow CPU, too.
    patience = 20 if args.rehearse else 1
    return [
        Step("check", 90 * patience, ["pytest", "-q", "-n", len(cases), *cases]),
        Step("speed", 150 * patience, ["benchmarks.speed.measure", *measure]),
        Step("collect", 200 * patience, ["benchmarks.datasets.collect", dataset]),
        Step("train", 900 * patience, ["benchmarks.run", *grid, "--", *run.split()]),
    ]


def call(step: Step, log: Path, deadline: float) -> int | None:
    """Run a step, whose output goes to a file. Return its exit code.

    After its seconds, or at the deadline of the call, it gets a Ctrl-C. The code is None if that
    was the deadline, so that the next call continues.
    """
    command = [sys.executable, "-m", *(str(word) for word in step.words)]
    left = deadline - time.monotonic()
    seconds = min(step.seconds, left)
    code = None
    with log.open("a") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP)
            if seconds < left:
                code = -signal.SIGINT
        finally:
            process.kill()
    return code


def is_left(step: Step, args: Args, done: dict) -> bool:
    """Has the step to be done, or continued?"""
    if step.name in args.again or step.name not in done:
        return True
    code = done[step.name]["code"]
    return code is None or (step.name == "train" and code != 0)


def do_steps(args: Args, done: dict, deadline: float) -> None:
    """Do what is left to do. `done` holds the exit code and the seconds of every step."""
    for step in plan(args):
        if not is_left(step, args, done):
            continue
        if deadline - time.monotonic() < TRY:
            print(f"{step.name}: no time left")
            continue
        started = time.monotonic()
        log = args.out / f"{step.name}.log"
        code = call(step, log, deadline)
        seconds = round(time.monotonic() - started, 1)
        done[step.name] = {"code": code, "seconds": seconds}
        write_atomically(args.out / "steps.json", json.dumps(done, indent=1) + "\n")
        print(f"{step.name}: {'stopped' if code is None else f'exit code {code}'}, {seconds} s")
        print(log.read_text(errors="replace")[-2_000:], flush=True)


def pack(out: Path) -> Path:
    """Put everything but checkpoints into one archive."""
    path = out / "gpu.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(out.rglob("*")):
            if file.is_file() and file.suffix not in (".pt", ".gz", ".lock"):
                archive.add(file, file.relative_to(out))
    return path


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    started = time.monotonic()
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here; --rehearse does without")
    # Processes that a shell starts in the background ignore Ctrl-C, and pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    args.out = args.out.resolve()
    state = args.out / "steps.json"
    done = json.loads(state.read_text()) if state.exists() else {}
    gpu = None if args.rehearse else torch.cuda.get_device_name()
    about = f"{machine(gpu)}; commit {git_commit()}"
    write_atomically(args.out / "machine.txt", about + "\n")
    try:
        do_steps(args, done, started + 60 * args.minutes - STOP)
    finally:
        print(f"all of it is in {pack(args.out)}")
    left = [step.name for step in plan(args) if done.get(step.name, {}).get("code") != 0]
    if left:
        sys.exit(f"not done, or not well: {', '.join(left)}; the same command continues")


if __name__ == "__main__":
    main()
