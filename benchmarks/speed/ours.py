"""Build the agent of a script of algorithms/ on random rows, and time its updates when asked.

Started by benchmarks/speed/measure.py, one process for every configuration.
"""

import contextlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from types import ModuleType

import h5py
import numpy as np
import torch
import tyro

from benchmarks.common import load_script
from benchmarks.speed.peers import BATCH, BATCHES
from benchmarks.speed.rows import TASKS, random_rows
from benchmarks.speed.turns import Worker, serve

# What torch.get_float32_matmul_precision() means in the scripts
PRODUCTS = {"highest": "fp32", "medium": "fp32, oneDNN", "high": "TF32"}


@dataclass
class Config:
    """One configuration."""

    script: str
    task: str = "halfcheetah"
    num_seeds: int = 1
    execution: str = "eager"
    phase: str = "train"
    device: str = "cpu"
    rows: int = 1_000_000
    words: list[str] = field(default_factory=list)  # the script's own options
    file: str | None = None  # with the rows, as write_rows() makes it; None: made for this process


def build(config: Config) -> tuple[ModuleType, object]:
    """Return a script and its run at the start, built as the script's own command builds it."""
    script = load_script(config.script)
    script.gym.logger.min_level = script.gym.logger.ERROR  # the v4 environments are meant
    shape = TASKS[config.task]
    with tempfile.TemporaryDirectory() as folder:
        file = config.file
        if file is None:
            file = f"{folder}/rows.hdf5"
            write_rows(file, config.task, config.rows)
        options = {
            "--env": shape.env,
            "--dataset-file": file,
            "--num-seeds": config.num_seeds,
            "--execution": config.execution,
            "--device": config.device,
            "--run-dir": f"{folder}/run",
        }
        words = [str(word) for option in options.items() for word in option]
        # Some scripts have another default, but rows of one table are to be comparable.
        batch = ["--batch-size", str(BATCHES.get(config.script, BATCH))]
        run = script.start_run(tyro.cli(script.Args, args=[*batch, *config.words, *words]))
    run.task.env_kwargs = shape.env_kwargs
    return script, run


def write_rows(file: str, task: str, rows: int) -> None:
    """Write random rows as a dataset file. The scripts find the next observations themselves."""
    data = random_rows(task, rows)
    with h5py.File(file, "w") as content:
        for name, column in data.items():
            if name != "next_observations":
                content[name] = column


class Updates:
    """The updates of one phase of a run, done as its training does them."""

    def __init__(self, script: ModuleType, run, phase: str):
        phases = {p.name: p for p in run.agent.phases}
        if phase not in phases:
            sys.exit(f"--phase {phase}: with these options the phases are {', '.join(phases)}")
        execution = run.args.execution
        self.device = run.device
        self.steps = [script.make_step(f, run.buffer, execution) for f in phases[phase].updates]
        self.count = 0
        self.statistics = {}

    def update(self, updates: int) -> None:
        for _ in range(updates):
            self.statistics |= self.steps[self.count % len(self.steps)]()
            self.count += 1

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def check(self) -> None:
        for name, value in self.statistics.items():
            if not np.isfinite(value.tolist()).all():
                sys.exit(f"{name} is NaN or infinite, so its time would say nothing")


def worker_env(device: str, threads: int | None) -> dict:
    """Return the environment variables of a worker."""
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    if threads is not None:
        # XLA makes its pool as large as NPROC says.
        env |= {"OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""  # other people's code takes a GPU if it sees one
    return env


def start_worker(config: Config, threads: int | None) -> Worker:
    """Start a process with this configuration."""
    name = f"{config.script}, {config.num_seeds} seeds, {config.execution}"
    command = [sys.executable, "-m", "benchmarks.speed.ours", json.dumps(asdict(config))]
    return Worker(name, command, worker_env(config.device, threads))


def main() -> None:
    answers = sys.stdout
    config = Config(**json.loads(sys.argv[1]))
    # What is printed meanwhile is no answer.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        script, run = build(config)
        updates = Updates(script, run, config.phase)
        cuda = run.device.type == "cuda"
        facts = {
            "code": "ours",
            "script": config.script,
            "seeds": config.num_seeds,
            "execution": config.execution,
            "precision": PRODUCTS[torch.get_float32_matmul_precision()],
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(run.device) if cuda else None,
        }
        serve(
            facts,
            updates.update,
            updates.wait,
            updates.check,
            answers,
            multiple=len(updates.steps),
            evaluate=lambda episodes: script.evaluate(run.agent, run.task, episodes),
        )


if __name__ == "__main__":
    main()
