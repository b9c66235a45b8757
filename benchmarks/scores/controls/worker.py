"""Train one seed of a control; started by `python -m benchmarks.scores.controls`."""

import contextlib
import importlib
import json
import os
import platform
import runpy
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import gymnasium
import minari
import mujoco
import numpy
import torch

from benchmarks.common import git_commit, load_script, write_atomically
from benchmarks.scores.controls import EPISODES, Control, Order
from benchmarks.scores.controls.projects import CONTROLS
from benchmarks.scores.controls.stand_ins import (
    Record,
    TrainedEnoughError,
    make_modules,
    stand_in_for_cuda,
    stand_in_for_old_jax,
)


@contextlib.contextmanager
def their_surroundings(order: Order, control: Control, modules: dict, folder: Path) -> Iterator:
    """Let their files find each other and the stand-ins, and leave what they write in `folder`."""
    source = order.folder.resolve() / control.peer.folder
    known, path, words, before = dict(sys.modules), list(sys.path), list(sys.argv), os.getcwd()
    # Ours may have the same name: por.py, iql.py
    for file in source.glob("*.py"):
        sys.modules.pop(file.stem, None)
    sys.modules.update(modules)
    sys.path.insert(0, str(source))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv[:] = words
        sys.path[:] = path
        sys.modules.clear()
        sys.modules.update(known)


def run_commands(order: Order, control: Control) -> dict:
    """Run their programs. Return the global names of the last one."""
    names = {}
    for file, words in control.commands(order):
        print(f"$ python {file} {' '.join(words)}", flush=True)
        sys.argv[:] = [file, *words]
        names = runpy.run_path(str(order.folder / file), run_name="__main__")
    return names


def train(order: Order, control: Control, folder: Path) -> dict:
    """Train a control in a folder of its own. Return what a result needs to know of one seed."""
    script = load_script(control.peer.script)
    data, task = script.load_dataset(script.Args(env=order.dataset))
    if not task.ordered or task.ref_min is None:
        sys.exit(f"{order.dataset} needs rows in the order of time, and reference returns")
    sizes = [control.eval_episodes] * (order.num_updates // order.eval_every)
    if control.evaluate is not None:
        sizes.append(EPISODES)
    record = Record(sizes, stop=order.decay_updates > order.num_updates)
    modules = make_modules(order.namesake, script.make_env, task, data, record)
    with their_surroundings(order, control, modules, folder):
        try:
            names = run_commands(order, control)
            if control.evaluate is not None:
                control.evaluate(names)
        except TrainedEnoughError:
            print("the rest of the schedule is not trained")
    returns = record.evaluations()
    if control.evaluate is not None:
        del returns[-2]  # of the same policy, in fewer episodes
    cuda = torch.cuda.is_available()
    packages = (torch, numpy, gymnasium, minari, mujoco)
    return {
        "order": asdict(order),
        "version": control.version(order.folder),
        "settings": control.settings(order),
        "task": asdict(task),
        "returns": returns,
        "commit": git_commit(),
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "versions": {package.__name__: str(package.__version__) for package in packages},
    }


def main() -> None:
    words, out = sys.argv[1:]
    order = Order(**json.loads(words))
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # v4 is old; it is meant
    if not torch.cuda.is_available():
        stand_in_for_cuda()
    if "jax" in CONTROLS[order.control].packages:
        stand_in_for_old_jax(importlib.import_module("jax"))
    folder = Path(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    part = train(order, CONTROLS[order.control], folder)
    write_atomically(Path(out), json.dumps(part, indent=1))


if __name__ == "__main__":
    main()
