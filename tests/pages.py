"""Run every command of the pages, in a short variant, in a copy of this project.

    python -m tests.pages              # all pages
    python -m tests.pages README.md    # one of them

A command is a line of an indented block, with what a backslash joins to it, or stands between
backticks. SHORTER makes it short; what cannot run in a test stands in NOT_RUN with the reason.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.helpers import SMALL, SMALLER, dataset_folders

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "benchmarks/README.md",
    "benchmarks/datasets/README.md",
    "benchmarks/datasets/behavior/README.md",
    "benchmarks/scores/README.md",
    "benchmarks/speed/README.md",
    "benchmarks/studies/README.md",
    "benchmarks/studies/awr/README.md",
    "benchmarks/studies/constraint/README.md",
    "benchmarks/studies/dataset_size/README.md",
    "benchmarks/studies/expectile/README.md",
    "benchmarks/studies/imitation/README.md",
    "benchmarks/studies/off_policy/README.md",
    "benchmarks/studies/physics/README.md",
    "benchmarks/studies/regimes/README.md",
    "benchmarks/studies/support/README.md",
]
STARTS = ("python ", "make ", "mkdir ", "git ", "cd ", "source ", "tensorboard ", "wandb ", "for ")

# The beginning of a command, and why it is not run.
NOT_RUN = {
    "make test": "it would run these commands again",
    "source .venv/bin/activate": "the tests have an environment",
    "tensorboard --logdir": "it serves until it is stopped",
    "wandb sync": "it needs an account",
    "mkdir others": "a folder for what is downloaded next",
    "git clone": "it downloads other people's code",
    "python -m venv jax": "it downloads JAX",
    "python -m benchmarks.datasets.d4rl_policies": "it downloads D4RL's policies",
    "python -m benchmarks.speed.gpu": "it needs a GPU",
    "python -m benchmarks.scores.controls": "it needs other people's code",
    "python -m benchmarks.datasets.mazes": "it needs D4RL's ant",
    "python -m benchmarks.datasets.collect pen-binary-expert": "it needs DAPG's hand",
    "python algorithms/iql.py --env rebuilt/pen/binary-expert": "it needs that dataset",
    "python -m benchmarks.studies.physics.check_physics": "it needs D4RL's policies or files",
    "python benchmarks/": "an earlier program made this file or these rows",
}

SIZES = " ".join([*SMALL, "--eval-every=30"])
TRAINING = f"--num-updates=30 {SIZES}"
POR = " ".join(SMALLER["por"])
SAC = " ".join(SMALLER["sac"])
HOPPER = "rebuilt/hopper/medium-2k-v0"
# What pages find there: a dataset, and a run to plot and to evaluate
PREPARATION = [
    "python -m benchmarks.datasets.collect hopper-medium --steps 2000",
    f"python algorithms/por.py --env {HOPPER} --num-seeds 2 {TRAINING} {POR} "
    "--run-dir runs/quickstart",
]
# A pattern, and what takes its place, in this order. END is where options can be added.
END = r"(?=$|; done)"
SHORTER = [
    # Datasets of 2,000 transitions. The large maze has more, because few rows reach the box.
    (r"--steps 150000", "--steps 20000"),
    (r"-150k-v0", "-20k-v0"),
    (r"--steps (5000|50000|100000)\b", "--steps 2000"),
    (r"-(5k|100k)-v0", "-2k-v0"),
    (r"(collect hopper-medium)$", r"\1 --steps 2000"),
    (r"'rebuilt/\*(/medium-v0)?'", HOPPER),
    (r"rebuilt/hopper/medium-v0", HOPPER),
    (r"--env hopper-medium-v2", f"--env {HOPPER} --run-dir runs/por-..."),
    # Trainings
    (r"--algorithms bc mine", "--algorithms bc"),
    (r"(benchmarks\.run .*) -- --eval-every 10000", r"\1"),
    (r"(benchmarks\.run (?!.* -- ).*)", rf"\1 --num-seeds 2 --num-updates 30 -- {SIZES}"),
    (r"(algorithms/por\.py --env .*)", rf"\1 --num-seeds 2 {TRAINING} {POR}"),
    (r"(algorithms/sac\.py .*)", rf"\1 --snapshot-every 10 {TRAINING} {SAC}"),
    (r"(algorithms/discrete_bcq\.py .*)", rf"\1 {TRAINING}"),
    (r"(algorithms/ddpg\.py .*)", rf"\1 {TRAINING} {SAC}"),
    (r"(studies\.guide train .*?)" + END, rf"\1 --num-seeds 2 {TRAINING} {POR}"),
    (r"(studies\.four_room.*)", r"\1 --num-seeds 2 --num-updates 20 --episodes 2"),
    (r"(studies\.mix.*)", r"\1 --env rebuilt/pointmaze/umaze-2k-v0"),
    (r"(studies\.mix.*)", r"\1 --more-env rebuilt/pointmaze/umaze-noisy-2k-v0"),
    (r"(guide cut rebuilt/hopper.*)", r"\1 --held-out 2"),
    (r"(studies\.mix.*)", rf"\1 --num-seeds 2 {TRAINING} {POR}"),
    (r" --variants awr no-baseline", ""),
    (r"(studies\.imitation.*)", r"\1 --num-seeds 2 --num-clones 2 --num-updates 20"),
    (r"(studies\.expectile.*)", r"\1 --num-seeds 2"),
    (r"(studies\.off_policy.*)", r"\1 --num-seeds 2"),
    (r"(studies\.constraint.*)", r"\1 --num-seeds 2 --sizes 50"),
    (
        r"(studies\.dataset_size.*)",
        r"\1 --num-seeds 2 --sizes 200 --random-size 200 --num-updates 5 --eval-every 5",
    ),
    (
        r"(studies\.regimes.*)",
        r"\1 --num-seeds 2 --random-steps 200 --num-updates 5 --eval-every 5 --episodes 1",
    ),
    (r"(studies\.support.*)", r"\1 --num-seeds 2 --lengths 2 4"),
    (r"(studies\.awr.*)", r"\1 --num-seeds 2 --iterations 2 --episodes 1 --variants awr no-clip"),
    (r"(make run)$", r"\1 RUN_UPDATES=30"),
    # Measurements
    (r"--episodes 20", "--episodes 2"),
    (r"(guide beyond .*)", r"\1 --states 20"),
    (r"(guide terms .*)", r"\1 --episodes 1 --states 20"),
    (r"(datasets\.behavior_means.*)", r"\1 --episodes 1"),
    (r"(datasets\.balls)$", r"\1 --episodes 2"),
    (
        r"(select_behavior runs.*) --replay-steps \d+(.*)",
        r"\1\2 --quick-episodes 1 --episodes 1 --finalists 2 --accept 1000",
    ),
    (r"(select_behavior|bundle_replay)$", r"\1 --help"),
    (r" --checkouts others( --jax-python others/jax/bin/python)?", ""),
    (r"speed\.measure --script mine", "speed.measure --script bc"),
    # BC, the quickest, tells whether the command works; test_speed.py measures every script.
    (
        r"speed\.measure --script \w+( \w+)*( --execution eager compile)?",
        "speed.measure --script bc",
    ),
    (r"(speed\.measure .*?)( -- .*)?$", r"\1 --blocks 1 --seconds 0.01 --rows 20000"),
    (r"(speed\.measure .*)", r"\1 --execution eager"),
    (r"(speed\.memory)( --out .*)?$", r"\1 --script bc --rows 2000"),
    (r"(studies\.guide)$", r"\1 --help"),
    (r"^cd \.\. && ", ""),
]


class Outcome(NamedTuple):
    """What became of a command."""

    page: str
    command: str
    short: str
    output: str  # of a command that failed; empty: it ended well
    seconds: float


def commands(text: str) -> list[str]:
    """Return the commands of a page in their order, each once."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("    ") and line.strip().startswith(STARTS):
            command = line.strip()
            while command.endswith("\\"):
                command = command[:-1].rstrip() + " " + next(lines).strip()
            command = re.sub(r"\s+# .*", "", command)
            found.append(command)
    for inline in re.findall(r"`((?:python|make) [^`]*)`", text):
        found.append(" ".join(inline.split()))
    return list(dict.fromkeys(found))


def reason_not_to_run(command: str) -> str | None:
    """Return the reason of NOT_RUN; None for a command that is run."""
    for start, reason in NOT_RUN.items():
        if command.startswith(start):
            return reason
    return None


def shorten(command: str) -> str:
    """Return the short variant of a command."""
    for pattern, replacement in SHORTER:
        command = re.sub(pattern, replacement, command, count=1)
    return command


def copy_project(folder: Path) -> None:
    """Copy the files of this project, as they are now, into a repository of its own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "a copy"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def run_pages(pages: list[str], folder: Path) -> list[Outcome]:
    """Run the commands of these pages in a copy at `folder`, one after the other."""
    copy_project(folder)
    environment = os.environ | dataset_folders(folder.parent)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment["MUJOCO_GL"] = os.environ.get("MUJOCO_GL", "egl")
    todo = [("", command, command) for command in PREPARATION]
    for page in pages:
        for command in commands((ROOT / page).read_text(encoding="utf-8")):
            if reason_not_to_run(command) is None:
                todo.append((page, command, shorten(command)))
    outcomes = []
    done = set()
    for page, command, short in todo:
        if (page, short) in done:
            continue
        done.add((page, short))
        start = time.monotonic()
        process = subprocess.run(
            ["bash", "-c", f"set -e; {short}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        output = ""
        if process.returncode != 0:
            output = f"exit code {process.returncode}: {process.stdout}"
        outcomes.append(Outcome(page, command, short, output, time.monotonic() - start))
        print(f"{time.monotonic() - start:6.1f} s  {short}\n{output}", end="", flush=True)
    return outcomes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_pages(sys.argv[1:] or PAGES, Path(folder) / "copy")
    failed = [outcome for outcome in outcomes if outcome.output]
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes)} commands in {seconds:.0f} s, of which {len(failed)} failed")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
