"""Draw the learning curves of runs: evaluation score against gradient updates, one curve a run.

The line is the mean over the run's seeds, the band spans them, thin lines are the single seeds. A
diamond is the final evaluation, which has more episodes. The dashed line is what the data's own
episodes score on average: the behaviour policy's level, which offline RL wants to exceed.

    python benchmarks/plot.py runs/quickstart --out curve.png
    python benchmarks/plot.py runs/por-q runs/por-weighted --out curve.png --title Hopper

A run that still trains may be drawn; its result.json is replaced in one step.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's colours, which the colour-blind can tell apart, without black and yellow
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Arguments that differ between runs without making them different methods
CIRCUMSTANCES = {"env", "dataset_file", "seed", "num_seeds", "eval_every", "eval_episodes",
                 "final_eval_episodes", "eval_workers", "device", "run_dir", "checkpoint_every",
                 "eval_only"}
# Arguments that every script has; the others are the algorithm's own
COMMON = CIRCUMSTANCES | {"num_updates", "batch_size", "precision", "execution"}


@dataclass
class Args:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders, each with a result.json"""
    out: Path
    """image to write; its ending (.png, .pdf, .svg) is the format"""
    title: str | None = None
    """headline (default: the environments' names)"""
    band: Literal["minmax", "std"] = "minmax"
    """what the band spans: lowest to highest seed, or mean ± standard deviation over seeds"""


def read_run(folder: Path) -> dict:
    """The result.json of a run, with `curve` (evaluations, seeds) and `updates` (evaluations,).

    Raises SystemExit if there is none, it is damaged, or nothing has been evaluated yet.
    """
    path = folder / "result.json"
    try:
        run = json.loads(path.read_text())
        evaluations = run["evaluations"]
        run["updates"] = np.array([e["update"] for e in evaluations], float)
        run["curve"] = np.array([e["scores"] for e in evaluations], float)
        needed = run["script"], run["args"], run["finished"], run["task"]["data_score"]
        needed += tuple(run["task"][k] for k in ("name", "source", "env_id", "ref_min"))
    except OSError as error:
        raise SystemExit(f"no run in {folder}: cannot read {path} ({error.strerror}); a run "
                         "writes it with its first checkpoint")
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is not a run's result ({type(error).__name__}: {error})")
    if not len(evaluations):
        raise SystemExit(f"{path} holds no evaluation yet; wait for the first, or train with "
                         "a smaller --eval-every")
    return run


def dataset_label(task: dict) -> str:
    return task["name"].removeprefix("rebuilt/") + " (rebuilt data)" * (task["source"] == "rebuilt")


def variant(run: dict) -> dict:
    """The algorithm's own arguments that are words, such as POR's guide."""
    return {k: v for k, v in run["args"].items() if k not in COMMON and isinstance(v, str)}


def curve_label(run: dict, runs: list[dict]) -> str:
    """Algorithm, variant, dataset, result.

    Other settings only where they tell apart runs that are equal in these: a variant may come with
    numbers of its own, and all of them would not fit into a line.
    """
    kind = lambda r: (r["script"], variant(r), r["task"]["name"])
    rivals = [r["args"] for r in runs if kind(r) == kind(run)]
    told = variant(run) | {k: v for k, v in run["args"].items()
                           if k not in CIRCUMSTANCES and any(r.get(k) != v for r in rivals)}
    words = [run["script"].upper().replace("_", "-")]
    words += [f"{key.replace('_', ' ')} {value}" for key, value in told.items()]
    seeds = run["curve"].shape[1]
    last = run["curve"][-1]
    spread = f" ± {last.std():.1f}" if seeds > 1 else ""
    end = f"final {last.mean():.1f}{spread}" if run["finished"] else "still in training"
    return (f"{', '.join(words)} on {dataset_label(run['task'])}: {end}, "
            f"{seeds} seed{'s' * (seeds > 1)}")


def thousands(number: float, _=None) -> str:
    """1500 -> '1.5k', 2000000 -> '2M'."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def draw(runs: list[dict], title: str | None = None, band: str = "minmax") -> plt.Figure:
    """The figure. Raises SystemExit if some runs have a score and others only a return."""
    scored = {run["task"]["ref_min"] is not None for run in runs}
    if len(scored) > 1:
        names = {dataset_label(run["task"]): run["task"]["ref_min"] is not None for run in runs}
        raise SystemExit("scores and returns do not fit one axis; without reference score: "
                         + ", ".join(name for name, known in names.items() if not known))
    style = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False,
             "axes.titlesize": 15, "axes.titlelocation": "left"}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(9, 5.6), dpi=160, layout="constrained")
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        levels = {}
        for run in runs:
            levels.setdefault((dataset_label(run["task"]), run["task"]["data_score"]))
        for (name, level), dash in zip(levels, [(0, (5, 3)), (0, (1, 1.5)), (0, (7, 2, 1, 2))] * 9):
            axes.axhline(level, color="0.35", linestyle=dash, linewidth=1.6, zorder=2,
                         label=f"behaviour policy of {name}: {level:.1f}")
        for number, run in enumerate(runs):
            color, x, y = COLORS[number % len(COLORS)], run["updates"], run["curve"]
            mean, several = y.mean(1), y.shape[1] > 1
            axes.plot(x, mean, color=color, linewidth=2.6, zorder=4, label=curve_label(run, runs),
                      marker="o" if len(x) == 1 else None,
                      linestyle="-" if number < len(COLORS) else "-.")
            if several:
                low, high = ((y.min(1), y.max(1)) if band == "minmax"
                             else (mean - y.std(1), mean + y.std(1)))
                axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
                axes.plot(x, y, color=color, linewidth=0.8, alpha=0.45, zorder=3)
            if run["finished"]:
                axes.plot(x[-1], mean[-1], "D", color=color, markersize=9, zorder=5,
                          markeredgecolor="white", markeredgewidth=1.4, clip_on=False)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if scored == {True} else None)
        axes.xaxis.set_major_formatter(thousands)
        axes.set_xlabel("gradient updates")
        axes.set_ylabel("D4RL-normalized score" if scored == {True} else "return")
        environments = dict.fromkeys(run["task"]["env_id"] for run in runs)
        axes.set_title(title or ", ".join(environments), pad=24, weight="bold")
        notes = ["line: mean over seeds"]
        if any(run["curve"].shape[1] > 1 for run in runs):
            spans = "lowest to highest seed" if band == "minmax" else "± 1 standard deviation"
            notes += [f"band: {spans}", "thin: each seed"]
        if any(run["finished"] for run in runs):
            notes += ["diamond: final, ± deviation"]
        axes.text(0, 1.02, "; ".join(notes), transform=axes.transAxes, color="0.35", fontsize=10,
                  in_layout=False)  # a long line must not narrow the axes
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i].startswith("behaviour"))
        figure.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False,
                      loc="outside lower left", fontsize=10.5)
    return figure


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=words, description=__doc__)
    if not args.runs:
        raise SystemExit("name at least one run folder")
    figure = draw([read_run(folder) for folder in args.runs], args.title, args.band)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"cannot write {args.out}: {error}")
    finally:
        plt.close(figure)
    print(f"drew {args.out}")


if __name__ == "__main__":
    main()
