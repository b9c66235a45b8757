"""What is to be known on a machine with a GPU, in some 15 minutes: check, measure, train.

- check: the same updates from the same weights and batches, without noise, give the same losses on
  the CPU and on the GPU, and there eagerly and as a CUDA graph (of compiled updates). A graph draws
  a new batch each time it is replayed.
- speed: benchmarks.speed.measure, with evaluations.
- train: builds a dataset and trains one algorithm on it until the time is over.

Whatever was found lies in the folder --out and, but for checkpoints, in one archive: gpu.tar.gz.

    python -m benchmarks.speed.gpu --out out
    python -m benchmarks.speed.gpu --out out --parts train --scripts iql -- --num-seeds 10
    python -m benchmarks.speed.gpu --out out --device cpu --minutes 60      # a rehearsal

Words after -- are options of the training. Nothing begins when less than a minute is left. The exit
code is 1 if a check failed. No network is needed.
"""

import contextlib
import copy
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import torch
import tyro

from benchmarks.common import ROOT, git_commit, machine, split_words, write_atomically
from benchmarks.speed.ours import Config, Updates, build

# Another order of sums differs by 1e-7, and updates let that grow: to 1e-5 in 100 updates on a CPU.
TOLERANCE = 1e-3
ENOUGH = 60  # seconds without which nothing begins
# A script and its options: a variant of an update is checked, too.
VARIANTS = {"por": [[], ["--guide", "q"]]}


@dataclass
class Args:
    out: Path  # folder of the results
    parts: tuple[Literal["check", "speed", "train"], ...] = ("check", "speed", "train")
    scripts: tuple[str, ...] = ("por", "iql", "td3_bc")  # train: the first one
    device: str = "cuda"  # cuda, cuda:1, ... or, as a rehearsal, cpu
    minutes: float = 14.0  # for everything
    check_updates: int = 100  # compared updates
    num_seeds: tuple[int, ...] = (1, 10)  # speed: agents that train at once
    rows: int = 200_000  # check, speed: random transitions
    seconds: float = 1.0  # speed: length of a block
    eval_episodes: int = 10  # speed: episodes per agent of the timed evaluation
    dataset: str = "rebuilt/hopper/medium-100k-v0"  # train: a dataset that collect.py can build


class FixedBatches:
    """A buffer that repeats the same 16 batches on every device."""

    def __init__(self, buffer):
        on_cpu = copy.copy(buffer)
        on_cpu.device = torch.device("cpu")
        on_cpu.columns = {key: column.cpu() for key, column in buffer.columns.items()}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            batches = [on_cpu.sample() for _ in range(16)]
        self.device = buffer.device
        self.batch_shape = buffer.batch_shape
        self.batches = {}
        for key in batches[0]:
            self.batches[key] = torch.stack([batch[key] for batch in batches]).to(self.device)
        self.turn = torch.zeros(1, dtype=torch.int64, device=self.device)

    def sample(self) -> dict:
        batch = {k: x.index_select(0, self.turn).squeeze(0) for k, x in self.batches.items()}
        self.turn.add_(1).remainder_(16)
        return batch


def quiet_build(config: Config) -> tuple:
    """Build an agent without the lines that its script prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return build(config)


def no_noise(x: torch.Tensor) -> torch.Tensor:
    """Take the place of torch.randn_like, which draws other numbers on other devices."""
    return torch.zeros_like(x)


def loss_curves(config: Config, count: int) -> dict[str, np.ndarray]:
    """Return the statistics (count, N) of the first updates of the training phase."""
    script, run = quiet_build(config)
    torch.set_float32_matmul_precision("highest")  # TF32 would differ from the CPU
    run.buffer = FixedBatches(run.buffer)
    curves = {}
    with mock.patch.object(torch, "randn_like", no_noise):
        updates = Updates(script, run, config.phase)
        for _ in range(count):
            updates.update(1)
            for name, value in updates.statistics.items():
                curves.setdefault(name, []).append(value.tolist())
    return {name: np.array(values) for name, values in curves.items()}


def difference(curves: dict, reference: dict) -> float:
    """Return the largest difference, relative for numbers above 1; NaN if there is a NaN."""
    parts = []
    for name, values in reference.items():
        parts.append(np.abs(curves[name] - values) / np.maximum(1, np.abs(values)))
    return float(np.max([part.max() for part in parts]))


def draws_are_new(config: Config) -> bool:
    """Does every call of a step draw another batch?"""
    script, run = quiet_build(config)

    def mean_observation(batch: dict) -> dict:
        return {"mean": batch["observations"].mean((1, 2))}

    step = script.make_step(mean_observation, run.buffer, config.execution)
    means = [step()["mean"].tolist() for _ in range(20)]
    return len(np.unique(means)) == np.size(means)


def compare(args: Args, script: str, words: list[str], deadline: float) -> dict:
    """Compare a script's losses on the device with those of eager updates on the CPU."""
    common = {"script": script, "num_seeds": 2, "rows": args.rows, "words": words}
    reference = loss_curves(Config(**common), args.check_updates)
    found = {}
    for execution in ("eager", "graph") if args.device != "cpu" else ("compile",):
        name = " ".join([script, *words, args.device, execution])
        if time.monotonic() > deadline - ENOUGH:
            print(f"no time left for {name}")
            continue
        config = Config(**common, device=args.device, execution=execution)
        differs = difference(loss_curves(config, args.check_updates), reference)
        new = draws_are_new(config)
        agrees = differs <= TOLERANCE and new
        found[name] = {"difference": differs, "new draws": new, "agrees": agrees}
        verdict = "agrees" if agrees else "DIFFERS"
        note = "" if new else ", and draws repeat"
        print(f"{verdict} {name}: {differs:.1e} from the CPU's eager losses{note}", flush=True)
    return found


def check(args: Args, deadline: float) -> bool:
    """Compare losses, and write check.json. Return whether all that was compared agrees."""
    found = {}
    for script in args.scripts:
        for words in VARIANTS.get(script, [[]]):
            found |= compare(args, script, words, deadline)
    gpu = torch.cuda.get_device_name(args.device) if args.device != "cpu" else None
    report = {"machine": machine(gpu), "commit": git_commit(), "updates": args.check_updates}
    report |= {"tolerance": TOLERANCE, "found": found}
    write_atomically(args.out / "check.json", json.dumps(report, indent=1) + "\n")
    return all(entry["agrees"] for entry in found.values())


def call(command: list, log: Path, deadline: float) -> None:
    """Run a command until the deadline, at which it gets a Ctrl-C. Its output goes to a file."""
    if time.monotonic() > deadline - ENOUGH:
        print(f"no time left for {log.stem}")
        return
    with log.open("w") as file:
        words = [str(word) for word in command]
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
    print(f"{log.stem} ended with code {process.returncode}:", flush=True)
    print(log.read_text()[-3_000:], flush=True)


def measure(args: Args, deadline: float) -> None:
    """Time updates and evaluations."""
    executions = ["eager", "graph"] if args.device != "cpu" else ["eager"]
    command = [sys.executable, "-m", "benchmarks.speed.measure", "--device", args.device]
    command += ["--script", *args.scripts, "--num-seeds", *args.num_seeds]
    command += ["--execution", *executions, "--rows", args.rows, "--seconds", args.seconds]
    command += ["--eval-episodes", args.eval_episodes, "--out", args.out / "speed.json"]
    call(command, args.out / "speed.log", deadline)


def train(args: Args, words: list[str], deadline: float) -> None:
    """Build the dataset if it is not there, and train."""
    collect = [sys.executable, "-m", "benchmarks.datasets.collect", args.dataset]
    call(collect, args.out / "collect.log", deadline)
    command = [sys.executable, f"algorithms/{args.scripts[0]}.py", "--env", args.dataset]
    command += ["--device", args.device, "--run-dir", args.out / "run", *words]
    call(command, args.out / "train.log", deadline)


def pack(out: Path) -> Path:
    """Put everything but checkpoints into one archive."""
    path = out / "gpu.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(out.rglob("*")):
            if file.is_file() and file.suffix not in (".pt", ".gz"):
                archive.add(file, file.relative_to(out))
    return path


def main() -> None:
    own, words = split_words(sys.argv[1:])
    args = tyro.cli(Args, args=own, description=__doc__)
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"--device {args.device}: PyTorch sees no GPU here; --device cpu rehearses")
    # Processes that a shell starts in the background ignore Ctrl-C, and pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    deadline = time.monotonic() + 60 * args.minutes
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    agrees = True
    try:
        if "check" in args.parts:
            agrees = check(args, deadline)
        if "speed" in args.parts:
            measure(args, deadline)
        if "train" in args.parts:
            train(args, words, deadline - 30)  # a stopped training saves nothing, but says so
    finally:
        print(f"all of it is in {pack(args.out)}")
    if not agrees:
        sys.exit("a check failed, see above")


if __name__ == "__main__":
    main()
