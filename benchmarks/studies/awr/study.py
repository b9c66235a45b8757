"""Which parts of AWR matter?

The paper (Peng et al., 2019; Figures 4 and 10, which the AWR slides show) takes one part of the
online algorithm away at a time, on MuJoCo's tasks, over millions of steps:

    variant        what is taken away                                  what the paper finds
    no baseline    V(s) in the weights, which leaves RWR               much worse
    no clip        the limit of 20 on the weights                      unstable
    Monte Carlo    TD(lambda): lambda is 1                             worse on one of two tasks
    one iteration  steps of earlier policies: the buffer has 2,048     worse

Here the same switches of awr.py are set on Pendulum-v1, over 24 iterations, about 50,000 steps. So
that this takes minutes, an iteration has 200 updates, not 1,200. The policy's rate is 2e-3, its
deviation 0.4, and the buffer holds ten iterations, not 25.

    python -m benchmarks.studies.awr --out runs/awr-study      # again: a stopped study goes on
    python -m benchmarks.studies.awr --out runs/other --env InvertedPendulum-v4 \\
        --variants awr no-baseline

Each variant is one run of awr.py in a folder of its own below --out. A variant whose training
diverges keeps what it had, and the numbers say so.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color, load_script, markdown_table, update_page
from benchmarks.scores.reading import read_result
from benchmarks.studies.shared import shown, store, summary

awr = load_script("awr")

# Name and options of each variant, and its colour: a script's whose look is far from the others'.
VARIANTS = {
    "awr": ("AWR", [], "awr"),
    "no-baseline": ("no baseline (RWR)", ["--weights", "return"], "por"),
    "no-clip": ("no clip", ["--weight-clip", "0"], "spot"),
    "monte-carlo": ("Monte Carlo", ["--td-lambda", "1"], "td3_bc"),
    "one-iteration": ("one iteration", ["--buffer-size", "2048"], "sac"),
}
BEGIN, END = "<!-- awr:begin -->", "<!-- awr:end -->"  # of the table on a page
UPDATES = 40 + 160  # of V and of pi in an iteration


@dataclass
class Args:
    out: Path  # folder of the runs, the numbers and the picture
    variants: tuple[str, ...] = tuple(VARIANTS)  # which ones; awr must be the first
    env: str = "Pendulum-v1"  # Gymnasium id
    seed: int = 0  # seed of every run
    num_seeds: int = 3  # agents of every variant
    iterations: int = 24  # of 2,048 steps, 40 updates of V and 160 of pi
    eval_every: int = 2  # iterations between evaluations
    episodes: int = 5  # per evaluation and agent
    page: Path | None = None  # page that gets the table between its marks; None: it is only printed


def words_of(args: Args, variant: str) -> list[str]:
    """Return the options of a variant's run of awr.py."""
    options = {
        "env": args.env,
        "seed": args.seed,
        "num_seeds": args.num_seeds,
        "num_updates": UPDATES * args.iterations,
        "value_updates": 40,
        "policy_updates": 160,
        "policy_lr": 2e-3,
        "action_std": 0.4,
        "eval_every": UPDATES * args.eval_every,
        "eval_episodes": args.episodes,
        "final_eval_episodes": args.episodes,
        "run_dir": args.out / variant,
    }
    if variant != "one-iteration":
        options["buffer_size"] = 20_480
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words + VARIANTS[variant][1]


def train(args: Args, variant: str) -> None:
    """Train a variant, or go on with its run."""
    words = words_of(args, variant)
    folder = args.out / variant
    if (folder / "result.json").exists():
        result = read_result(folder / "result.json")
        wanted = awr.apply_settings(tyro.cli(awr.Args, args=words))
        if vars(wanted) | {"run_dir": ""} != result["args"] | {"run_dir": ""}:
            sys.exit(f"{folder} holds a run with other options; choose another --out")
        if result["finished"]:
            return
        words = ["--resume", str(folder)]
    sys.argv = ["algorithms/awr.py", *words]
    try:
        awr.main()
    except SystemExit as end:
        if "diverged" not in str(end):
            raise
        print(f"{variant}: {end}")


def read_variant(folder: Path) -> dict:
    """Return the curve of a run, and its first and last tenth: one number per agent."""
    result = read_result(folder / "result.json")
    evaluations = result["evaluations"]
    curve = np.array([evaluation["returns"] for evaluation in evaluations])
    tenth = max(1, len(curve) // 10)
    first, last = curve[:tenth].mean(0), curve[-tenth:].mean(0)
    return {
        "finished": result["finished"],
        "commits": result["commits"],
        "updates": [evaluation["update"] for evaluation in evaluations],
        "returns": curve.tolist(),
        "first_tenth": summary(first),
        "last_tenth": summary(last),
        "gain": summary(last - first),
        "mean_of_curve": summary(curve.mean(0)),
    }


def table(found: dict) -> str:
    """Return the numbers as a table in Markdown, with 95 % intervals over agents."""
    header = ["variant", "first tenth", "last tenth", "whole curve", "last tenth beyond AWR's"]
    keys = ("first_tenth", "last_tenth", "mean_of_curve", "last_tenth_beyond_awr")
    rows = []
    for variant, numbers in found.items():
        name = VARIANTS[variant][0]
        if not numbers["finished"]:
            name += f" (diverged after {numbers['updates'][-1]:,} updates)"
        rows.append([name, *(shown(numbers[key], 0) for key in keys)])
    return markdown_table(header, rows)


def draw(found: dict, env: str) -> Figure:
    """Draw the mean return of each variant, and the range of its agents."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    for variant, numbers in found.items():
        name, _, look = VARIANTS[variant]
        iterations = np.array(numbers["updates"]) / UPDATES
        curve = np.array(numbers["returns"])
        color = algorithm_color(look)
        axes.plot(iterations, curve.mean(1), color=color, linewidth=2.5, label=name)
        axes.fill_between(iterations, curve.min(1), curve.max(1), color=color, alpha=0.12)
    axes.set_xlabel("iterations of 2,048 steps", fontsize=14)
    axes.set_ylabel("return", fontsize=14)
    axes.set_title(f"AWR without one of its parts, {env}", fontsize=15)
    axes.tick_params(labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=12, frameon=False)
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if min(args.num_seeds, args.iterations, args.eval_every, args.episodes) < 1:
        sys.exit("--num-seeds, --iterations, --eval-every and --episodes must be at least 1")
    if args.variants[:1] != ("awr",) or not set(args.variants) <= VARIANTS.keys():
        sys.exit(f"--variants must begin with awr, and be some of {', '.join(VARIANTS)}")
    found = {}
    for variant in args.variants:
        train(args, variant)
        found[variant] = read_variant(args.out / variant)
    for numbers in found.values():
        whole, part = (x["last_tenth"]["per_agent"] for x in (found["awr"], numbers))
        numbers["last_tenth_beyond_awr"] = summary(np.subtract(part, whole))
    result = {"env": args.env, "variants": found}
    store("awr", args.out, "result", result, {"ablations.png": draw(found, args.env)})
    print(table(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, table(found))


if __name__ == "__main__":
    main()
