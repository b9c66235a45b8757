"""Train other people's code, unchanged, on the data on which ours is trained.

Small stand-ins take the place of gym, D4RL, wandb and others. Their program trains with its own
published settings for the D4RL dataset of the same kind. It evaluates with its own code, in our
environment: its episodes have the starts of ours, and the environment counts the returns.

    python -m benchmarks.scores.controls --control CORL/iql CORL/td3_bc --checkouts others \\
        --dataset rebuilt/hopper/medium-v0 --num-seeds 2 --num-updates 100000

--checkouts is a folder with the repositories of the controls in it: CORL, TD3_BC, SPOT, POR and
ReBRAC, which needs JAX as well. The seeds are trained one after the other, each in a process of its
own. A control cannot be resumed, but the same command leaves out the seeds that are finished.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.common import ROOT, load_script, mean_and_spread, write_atomically
from benchmarks.run import dataset_folder, short_count
from benchmarks.scores.controls import EPISODES, Control, Order
from benchmarks.scores.controls.projects import CONTROLS
from benchmarks.scores.reading import normalized


@dataclass
class Args:
    control: tuple[Literal[tuple(CONTROLS)], ...]  # <folder of the repository>/<algorithm>
    dataset: str  # Minari dataset or D4RL name
    checkouts: Path  # folder with other people's repositories
    namesake: str | None = None  # D4RL dataset with the settings; None: that of the same kind
    seed: int = 0  # first seed
    num_seeds: int = 1  # trained one after the other
    num_updates: int = 100_000  # gradient updates
    decay_updates: int | None = None  # length of their schedule; None: --num-updates
    eval_every: int = 10_000  # updates between evaluations
    runs: Path = Path("runs/controls")  # folder for their output and for finished seeds
    results: Path = Path("benchmarks/scores/results")  # folder for the results


def find_namesake(args: Args, script) -> str:
    """Return the D4RL dataset of the same kind: 'rebuilt/hopper/medium-v0' -> hopper-medium-v2."""
    if args.namesake is not None:
        return args.namesake
    family = script.dataset_family(args.dataset)
    fitting = [name for name in script.D4RL_SHA256 if family.startswith(name.removesuffix("-v2"))]
    if not fitting:
        sys.exit(f"no dataset of D4RL is of the kind of {args.dataset}; name one by --namesake")
    return max(fitting, key=len)


def check_args(args: Args) -> None:
    """Refuse what cannot be trained before any process starts."""
    for name in args.control:
        if args.decay_updates is not None and not CONTROLS[name].scheduled:
            sys.exit(f"{name} has no schedule; leave out --decay-updates")
        checkout = args.checkouts / name.partition("/")[0]
        if not checkout.is_dir():
            sys.exit(f"{checkout} is missing; check out {CONTROLS[name].peer.repository} there")
        packages = CONTROLS[name].packages
        if not all(map(importlib.util.find_spec, packages)):
            sys.exit(f"{name} needs {', '.join(packages)}: pip install {' '.join(packages)}")
    if min(args.num_seeds, args.num_updates, args.eval_every) < 1:
        sys.exit("--num-seeds, --num-updates and --eval-every must be at least 1")
    if args.num_updates % args.eval_every > 0:
        sys.exit("--num-updates must be a multiple of --eval-every, or nothing is evaluated last")
    if args.decay_updates is not None and args.decay_updates < args.num_updates:
        sys.exit("--decay-updates must not be less than --num-updates")


def make_orders(args: Args, name: str) -> list[Order]:
    """Return what is to be trained of a control, one order a seed."""
    script = load_script(CONTROLS[name].peer.script)
    return [
        Order(
            control=name,
            checkout=str((args.checkouts / name.partition("/")[0]).resolve()),
            dataset=args.dataset,
            namesake=find_namesake(args, script),
            seed=args.seed + i,
            num_updates=args.num_updates,
            eval_every=args.eval_every,
            decay_updates=args.decay_updates or args.num_updates,
        )
        for i in range(args.num_seeds)
    ]


def result_name(order: Order) -> str:
    """Return <dataset>/control-corl-iql-100k, with whatever is unusual."""
    parts = ["control", *order.control.lower().split("/"), short_count(order.num_updates)]
    if order.decay_updates != order.num_updates:
        parts.append(f"decay-{short_count(order.decay_updates)}")
    return f"{dataset_folder(order.dataset)}/{'-'.join(parts)}"


def train_seed(order: Order, folder: Path) -> dict:
    """Train in a process of its own, unless that has been done. Return what worker.train() does."""
    out = folder.resolve() / f"seed{order.seed}" / "part.json"
    if out.exists():
        part = json.loads(out.read_text())
        if part["order"] == asdict(order):
            print(f"{order.control}, seed {order.seed}: finished before")
            return part
    out.parent.mkdir(parents=True, exist_ok=True)
    log_path = out.with_name("log.txt")
    print(f"{order.control}, seed {order.seed}: progress in {log_path}", flush=True)
    command = [sys.executable, "-m", "benchmarks.scores.controls.worker"]
    # Their bars would fill the log. A file that they have stored before may hold objects of their
    # own classes, which older PyTorch read without being told.
    env = os.environ | {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "60"}
    env["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    with open(log_path, "w") as log:
        words = [*command, json.dumps(asdict(order)), str(out)]
        code = subprocess.run(words, stdout=log, stderr=log, env=env, cwd=ROOT).returncode
    if code != 0:
        lines = log_path.read_text(errors="replace").strip().splitlines() or ["no output"]
        sys.exit(f"{order.control}, seed {order.seed}, failed: {lines[-1]}; more in {log_path}")
    return json.loads(out.read_text())


def command_line(args: Args, name: str) -> str:
    """Return the command of one control, without the folders of this machine."""
    words = ["python", "-m", "benchmarks.scores.controls", "--control", name]
    for key, value in vars(args).items():
        if key in ("control", "runs", "results") or value == vars(Args).get(key):
            continue
        text = value.name if isinstance(value, Path) else str(value)
        words += [f"--{key.replace('_', '-')}", text]
    return shlex.join(words)


def changed_words(control: Control) -> list[str]:
    """Return the options of theirs that differ from their settings, such as 'tau 0.005'."""
    return [f"{name} {value}" for name, value in control.changes.items()]


def make_note(order: Order, part: dict, control: Control) -> str:
    """Return one sentence about what was set."""
    note = f"settings for {order.namesake} of {part['settings']}"
    if control.changes:
        note += f", but {', '.join(changed_words(control))}"
    note += "; set were the seed, the numbers of "
    note += "updates and of episodes"
    if order.decay_updates != order.num_updates:
        note += f", and a schedule of {order.decay_updates:,} updates, of which the first "
        note += f"{order.num_updates:,} were trained"
    return f"{note}."


def make_result(args: Args, control: Control, orders: list[Order], parts: list[dict]) -> dict:
    """Return the seeds' parts in the layout of our result.json, with a key `control`."""
    first, task = orders[0], parts[0]["task"]
    if any(part["task"] != task or part["version"] != parts[0]["version"] for part in parts):
        sys.exit(f"{first.control}: the seeds have other data or other code; empty {args.runs}")
    returns = [list(values) for values in zip(*(part["returns"] for part in parts), strict=True)]
    evaluations = []
    for i, values in enumerate(returns):
        last = i == len(returns) - 1
        evaluation = {"phase": "train", "update": (i + 1) * first.eval_every}
        evaluation["episodes"] = EPISODES if last else control.eval_episodes
        evaluation |= {"returns": values, "scores": normalized(task, values).tolist()}
        evaluations.append(evaluation)
    given = {"env": args.dataset, "dataset_file": None, "seed": args.seed}
    given |= {"num_seeds": args.num_seeds, "num_updates": args.num_updates, "batch_size": 256}
    given |= {"eval_every": args.eval_every, "eval_episodes": control.eval_episodes}
    given |= {"final_eval_episodes": EPISODES}
    if control.scheduled:
        given["decay_updates"] = args.decay_updates
    return {
        "script": control.peer.script,
        "args": given | control.args,
        "task": task,
        "phase": 0,
        "step": args.num_updates,
        "finished": True,
        "final": evaluations[-1],
        "evaluations": evaluations,
        "commits": list(dict.fromkeys(part["commit"] for part in parts)),
        "device": "; ".join(dict.fromkeys(part["device"] for part in parts)),
        "versions": parts[-1]["versions"],
        "control": {
            "repository": control.peer.repository,
            "commit": parts[0]["version"],
            "file": control.file,
            "command": command_line(args, first.control),
            "note": make_note(first, parts[0], control),
            "changes": changed_words(control),
        },
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    check_args(args)
    for name in args.control:
        control = CONTROLS[name]
        orders = make_orders(args, name)
        version = control.version(orders[0].folder)
        if version != control.peer.commit:
            print(f"note: {orders[0].checkout} is not {control.peer.repository} @ {version}")
        control.settings(orders[0])  # ends the program if there are none
        place = result_name(orders[0])
        parts = [train_seed(order, args.runs / place) for order in orders]
        result = make_result(args, control, orders, parts)
        path = args.results / f"{place}.json"
        write_atomically(path, json.dumps(result, indent=1, allow_nan=False))
        print(f"{name}: {mean_and_spread(result['final']['scores'])}, {path}")


if __name__ == "__main__":
    main()
