"""Why is learning from other policies' data hard?

Three difficulties that the lecture and the AWR slides name, each as an experiment of seconds.

1. weights. The value of a policy is estimated from another policy's episodes of H steps, by weights
   rho = product of pi(a_t|s_t) / pi_b(a_t|s_t). pi takes the first of two actions with probability
   0.8, pi_b with 0.5; an episode's return is the share of first actions. Compared by their error
   over 1,000 data sets of 200 episodes: ordinary weights (the mean of rho R) and weighted ones (the
   sum of rho R over the sum of rho). Beside them stands the effective number of episodes,
   (sum of rho)^2 / sum of rho^2.
2. triad. Baird's counterexample (Sutton and Barto, 2018, 11.2): seven states, two actions, rewards
   0. "dashed" leads to one of states 1 to 6, "solid" to state 7. The data take "solid" once in
   seven times, the policy to be evaluated always. Values are linear in eight weights, learned by
   TD(0) with importance weights (expected updates, gamma 0.95). Then each leg of the deadly triad
   is taken away: no function approximation (one weight per state), no bootstrapping (the targets
   are the true values), no other policy's data (the policy's own steps; one in ten begins in a
   random state).
3. gradient. A bandit pays -(a - 1)^2. Fixed data have a ~ N(0, 0.5^2). A Gaussian policy learns its
   mean from them in many steps, by the policy gradient without weights, E[grad log pi(a) A(a)], and
   by AWR's, E[grad log pi(a) w(a)] with w = exp(A(a) / beta), divided by its mean. A is the reward
   less its mean, so half of the data push the policy away from themselves. Nothing stops that push,
   while AWR's weights only pull.

The lecture names these without numbers; sizes are our choice.

    python -m benchmarks.studies.off_policy --out runs/off-policy      # all three, in seconds
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color, markdown_table, update_page
from benchmarks.studies.shared import shown, store, summary

BEGIN, END = "<!-- off_policy:begin -->", "<!-- off_policy:end -->"  # of the tables on a page
HORIZONS = (1, 2, 5, 10, 20, 50)
POLICY, DATA = 0.8, 0.5  # probabilities of the first action
EPISODES, DATASETS = 200, 1_000
SWEEPS, RATE = 4_000, 0.1  # of Baird's counterexample
TRIADS = (
    "all three",
    "no function approximation",
    "no bootstrapping",
    "no other policy's data",
)
STEPS, POINTS, SPREAD, BETA = 200, 500, 0.5, 0.25  # of the bandit
PG_RATE = 0.05


@dataclass
class Args:
    out: Path = Path("runs/off-policy")  # folder of the numbers and the picture
    seed: int = 0  # seed of the first agent
    num_seeds: int = 20  # agents of the bandit, each with data of its own
    page: Path | None = None  # page that gets the tables between its marks; None: they are printed


def study_weights(args: Args) -> dict:
    """Return errors of both estimates and the effective number of episodes, by horizon."""
    found = {}
    for horizon in HORIZONS:
        rng = np.random.default_rng([args.seed, horizon])
        first = rng.binomial(horizon, DATA, (DATASETS, EPISODES))  # first actions of an episode
        log_rho = first * np.log(POLICY / DATA)
        log_rho += (horizon - first) * np.log((1 - POLICY) / (1 - DATA))
        rho, returns = np.exp(log_rho), first / horizon
        ordinary = (rho * returns).mean(1)
        weighted = (rho * returns).sum(1) / rho.sum(1)
        found[str(horizon)] = {
            "ordinary": float(np.sqrt(((ordinary - POLICY) ** 2).mean())),
            "weighted": float(np.sqrt(((weighted - POLICY) ** 2).mean())),
            "effective": float((rho.sum(1) ** 2 / (rho**2).sum(1)).mean()),
        }
    return found


def baird_features() -> np.ndarray:
    """Return the features of the seven states: 2 w_i + w_8, and w_7 + 2 w_8 for the last."""
    features = np.zeros((7, 8))
    features[:6, :6] = 2 * np.eye(6)
    features[:6, 7] = 1
    features[6, 6], features[6, 7] = 1, 2
    return features


def study_triad(gamma: float = 0.95) -> dict:
    """Return the largest value of a state after each sweep, in all four forms."""
    found = {}
    for form in TRIADS:
        features = baird_features()
        weights = np.ones(8)
        weights[6] = 10  # the book's initial weights
        if form == "no function approximation":
            features, weights = np.eye(7), features @ weights
        # Where the data are: the behaviour policy visits all states alike, the policy state 7.
        visits = np.full(7, 1 / 7)
        if form == "no other policy's data":
            visits = 0.1 * visits + 0.9 * np.eye(7)[6]
        curve = [float(np.abs(features @ weights).max())]
        for _ in range(SWEEPS):
            values = features @ weights
            # Only "solid" has a weight: rho = 7, once in seven times. It leads to state 7.
            target = 0.0 if form == "no bootstrapping" else gamma * values[6]
            weights = weights + RATE * ((visits * (target - values)) @ features)
            curve.append(float(np.abs(features @ weights).max()))
        found[form] = curve
    return found


def study_gradient(args: Args) -> dict:
    """Return the mean of the policy after each step, for both gradients, and AWR's fixed point."""
    paths = {"policy gradient": [], "AWR": []}
    goal = []
    for agent in range(args.num_seeds):
        rng = np.random.default_rng([args.seed + agent, 3])
        a = SPREAD * rng.standard_normal(POINTS)
        reward = -((a - 1) ** 2)
        advantage = reward - reward.mean()
        weight = np.exp(advantage / BETA)
        weight /= weight.mean()
        goal.append(float((weight * a).sum() / weight.sum()))
        for name, factor in (("policy gradient", advantage), ("AWR", weight)):
            mean, path = 0.0, [0.0]
            for _ in range(STEPS):
                mean += PG_RATE * (factor * (a - mean)).mean() / SPREAD**2
                path.append(float(mean))
            paths[name].append(path)
    # exp(A / beta) times the data's density is a Gaussian again: precision 1/s^2 + 2/beta, and
    # mean 2/beta over it.
    closed = (2 / BETA) / (1 / SPREAD**2 + 2 / BETA)
    return {"paths": paths, "goal": summary(goal), "closed_form": closed}


def tables(found: dict) -> str:
    """Return the three parts as tables in Markdown."""
    weights = markdown_table(
        ["steps of an episode", "error, ordinary weights", "error, weighted", "effective episodes"],
        [
            [horizon, f"{x['ordinary']:.2f}", f"{x['weighted']:.2f}", f"{x['effective']:.1f}"]
            for horizon, x in found["weights"].items()
        ],
    )
    triad = markdown_table(
        ["Baird's counterexample", "largest value at the start", f"after {SWEEPS:,} updates"],
        [[form, f"{curve[0]:.1f}", f"{curve[-1]:.3g}"] for form, curve in found["triad"].items()],
    )
    gradient = found["gradient"]
    rows = []
    for name, paths in gradient["paths"].items():
        ends = np.array(paths)[:, [STEPS // 10, STEPS]]
        reward = -((ends - 1) ** 2) - SPREAD**2
        rows.append([name, *(shown(summary(x)) for x in (*ends.T, *reward.T))])
    bandit = markdown_table(
        [
            "bandit, best mean 1",
            f"mean after {STEPS // 10}",
            f"after {STEPS}",
            f"reward after {STEPS // 10}",
            f"after {STEPS}",
        ],
        rows,
    )
    return f"{weights}\n\n{triad}\n\n{bandit}"


def draw(found: dict) -> Figure:
    """Draw the three parts."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    weights, triad, bandit = figure.subplots(1, 3)
    for key, name, look in (("ordinary", "ordinary", "sac"), ("weighted", "weighted", "por")):
        errors = [x[key] for x in found["weights"].values()]
        color = algorithm_color(look)
        weights.plot(HORIZONS, errors, color=color, linewidth=2.5, marker="o", label=name)
    weights.set_xscale("log")
    weights.set_yscale("log")
    weights.set_xticks(HORIZONS, [str(h) for h in HORIZONS], minor=False)
    weights.set_xlabel("steps of an episode")
    weights.set_title("Error of importance weights", fontsize=13)
    weights.legend(fontsize=10, frameon=False)

    for form, look in zip(TRIADS, ("sac", "bc", "iql", "por"), strict=True):
        triad.plot(found["triad"][form], color=algorithm_color(look), linewidth=2, label=form)
    triad.set_yscale("log")
    triad.set_ylim(1e-3, 1e4)
    triad.set_xlabel("updates")
    triad.set_title("Baird: largest value (truth: 0)", fontsize=13)
    triad.legend(fontsize=9, frameon=False)

    gradient = found["gradient"]
    for name, look in (("policy gradient", "sac"), ("AWR", "awr")):
        color = algorithm_color(look)
        for i, path in enumerate(gradient["paths"][name]):
            label = name if i == 0 else None
            bandit.plot(path, color=color, linewidth=1, alpha=0.6, label=label)
    bandit.axhline(1, color="0.5", linestyle="--", linewidth=1)
    bandit.text(STEPS, 1.05, "best action", ha="right", color="0.4", fontsize=10)
    bandit.set_xlabel("steps on the same data")
    bandit.set_title("Bandit: mean of the policy", fontsize=13)
    bandit.legend(fontsize=10, frameon=False)
    for axes in (weights, triad, bandit):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.num_seeds < 1:
        sys.exit("--num-seeds must be at least 1")
    found = {
        "weights": study_weights(args),
        "triad": study_triad(),
        "gradient": study_gradient(args),
    }
    store("off_policy", args.out, "result", found, {"off_policy.png": draw(found)})
    print(tables(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, tables(found))


if __name__ == "__main__":
    main()
