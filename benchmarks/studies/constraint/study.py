"""How far may a policy go from the data? Naive beside KL-constrained Q-learning.

The IQL slides set two forms of Q-learning from a fixed dataset side by side, and name the conflict:
improve over the policy pi_b that made the data, but stay near it. Both learn

    Q(s, a) <- mean over the data's steps from (s, a) of  r + gamma E_{a' ~ pi} Q(s', a')

    naive          pi = argmax_pi E_{a ~ pi} Q(s, a)
    constrained    the same, subject to KL(pi(.|s) || pi_b(.|s)) <= epsilon in every state

The constrained maximum is pi(a|s) ~ pi_b(a|s) exp(beta Q(s, a)), with the largest beta that epsilon
allows. Epsilon 0 gives the value of pi_b itself; the naive form has no bound.

Worlds are random, one for every agent: 20 states, 5 actions, three possible next states for each,
rewards uniform between 0 and 1, discount 0.95. pi_b is drawn from a Dirichlet distribution, so it
rarely takes some actions. There are 100 to 10,000 steps of it, in walks from random states that go
on with probability 0.95. Q is a table. An entry that no step touches keeps its initial value,
uniform between 0 and the largest return, 20; it does here what extrapolation does to a network.
pi_b is estimated from the data with one pseudocount in each state, so that no action is impossible.

Measured are the value that the agent believes in, E_pi Q, and the true one of its policy, both as a
mean over all states. 0 is the true value of pi_b, 1 that of the best policy.

The slides give no numbers; all sizes are our choice.

    python -m benchmarks.studies.constraint --out runs/constraint      # seconds
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color, markdown_table, update_page
from benchmarks.studies.shared import half_interval, shown, store, summary

BEGIN, END = "<!-- constraint:begin -->", "<!-- constraint:end -->"  # of the table on a page
STATES, ACTIONS, BRANCHES = 20, 5, 3
GAMMA = 0.95
CONCENTRATION = 0.3  # of the Dirichlet distribution of pi_b: small, so some actions are rare
EPSILONS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, np.inf)
SWEEPS = 100  # 0.95^100 is 0.6 %
DRAWN = (0.1, 1.0, np.inf)  # bounds that are drawn against the number of steps


@dataclass
class Args:
    out: Path = Path("runs/constraint")  # folder of the numbers and the picture
    seed: int = 0  # seed of the first agent
    num_seeds: int = 20  # agents, each with a world, data and a table of its own
    sizes: tuple[int, ...] = (100, 1_000, 10_000)  # steps in the data
    page: Path | None = None  # page that gets the table between its marks; None: it is printed


class World:
    """A random world, and the policy that makes the data."""

    def __init__(self, rng: np.random.Generator):
        self.chances = np.zeros((STATES, ACTIONS, STATES))
        for s, a in np.ndindex(STATES, ACTIONS):
            reached = rng.choice(STATES, BRANCHES, replace=False)
            self.chances[s, a, reached] = rng.dirichlet(np.ones(BRANCHES))
        self.rewards = rng.uniform(0, 1, (STATES, ACTIONS))
        self.behavior = rng.dirichlet(np.full(ACTIONS, CONCENTRATION), STATES)

    def value(self, policy: np.ndarray) -> float:
        """Return the true value of a policy (S, A), as a mean over states."""
        chances = np.einsum("sa,sat->st", policy, self.chances)
        rewards = (policy * self.rewards).sum(1)
        return float(np.linalg.solve(np.eye(STATES) - GAMMA * chances, rewards).mean())

    def best_value(self) -> float:
        """Return the value of the best policy, by value iteration."""
        v = np.zeros(STATES)
        for _ in range(1_000):
            v = (self.rewards + GAMMA * self.chances @ v).max(1)
        return float(v.mean())

    def data(self, steps: int, rng: np.random.Generator) -> np.ndarray:
        """Return how often each (s, a, s') is among the steps of pi_b: (S, A, S)."""
        counts = np.zeros((STATES, ACTIONS, STATES))
        actions, reached = self.behavior.cumsum(1), self.chances.cumsum(2)
        s = rng.integers(STATES)
        for draw_action, draw_state, draw_end in rng.random((steps, 3)):
            # The last sum can be a little less than 1.
            a = min(np.searchsorted(actions[s], draw_action), ACTIONS - 1)
            s2 = min(np.searchsorted(reached[s, a], draw_state), STATES - 1)
            counts[s, a, s2] += 1
            s = s2 if draw_end < GAMMA else rng.integers(STATES)
        return counts


def constrained(q: np.ndarray, log_b: np.ndarray, epsilon) -> np.ndarray:
    """Return argmax_pi E_pi Q with KL(pi || b) <= epsilon: (..., A) each -> (..., A).

    The divergence grows with beta, which is found by bisection. Where even the greedy policy is
    near enough, beta ends at its upper limit, which makes the policy greedy.
    """
    low = np.zeros(q.shape[:-1] + (1,))
    high = np.full_like(low, 1e4)
    for _ in range(30):
        beta = (low + high) / 2
        log_pi = normalized(log_b + beta * q)
        divergence = (np.exp(log_pi) * (log_pi - log_b)).sum(-1, keepdims=True)
        near = divergence <= epsilon
        low = np.where(near, beta, low)
        high = np.where(near, high, beta)
    return np.exp(normalized(log_b + low * q))


def normalized(logits: np.ndarray) -> np.ndarray:
    """Return the log probabilities of a softmax over the last axis."""
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def learn(counts, rewards, table) -> tuple[np.ndarray, np.ndarray]:
    """Return policies (N, E, S, A) for all bounds, and what they are believed to be worth (N, E).

    Takes counts (N, S, A, S), rewards (N, S, A) and the initial table (N, S, A).
    """
    visits = counts.sum(-1)
    chances = (counts / np.maximum(visits, 1)[..., None])[:, None]  # for all bounds alike
    visited = (visits > 0)[:, None]
    clone = (visits + 1 / ACTIONS) / (visits.sum(-1, keepdims=True) + 1)
    bounds = np.array(EPSILONS)[:, None, None]
    log_b = np.log(clone)[:, None]
    q = np.repeat(table[:, None], len(EPSILONS), axis=1)
    for _ in range(SWEEPS):
        policy = constrained(q, log_b, bounds)
        v = (policy * q).sum(-1)
        target = rewards[:, None] + GAMMA * np.einsum("nesat,net->nesa", chances, v)
        q = np.where(visited, target, q)
    return policy, v.mean(-1)


def study(args: Args) -> dict:
    """Return beliefs and true values by size of the data and by bound.

    They are on the scale from pi_b's value (0) to that of the best policy (1).
    """
    worlds, tables = [], []
    for agent in range(args.num_seeds):
        rng = np.random.default_rng([args.seed + agent, 5])
        worlds.append(World(rng))
        tables.append(rng.uniform(0, 1 / (1 - GAMMA), (STATES, ACTIONS)))
    rewards = np.array([world.rewards for world in worlds])
    zero = np.array([world.value(world.behavior) for world in worlds])
    one = np.array([world.best_value() for world in worlds])

    found = {}
    for size in args.sizes:
        counts = []
        for agent, world in enumerate(worlds):
            counts.append(world.data(size, np.random.default_rng([args.seed + agent, size])))
        policies, beliefs = learn(np.array(counts), rewards, np.array(tables))
        untouched = (np.array(counts).sum(-1) == 0).mean((1, 2))
        found[str(size)] = {"untouched": summary(untouched), "bounds": {}}
        for i, epsilon in enumerate(EPSILONS):
            pairs = zip(worlds, policies[:, i], strict=True)
            true = np.array([world.value(policy) for world, policy in pairs])
            found[str(size)]["bounds"][name_of(epsilon)] = {
                "believed": summary((beliefs[:, i] - zero) / (one - zero)),
                "true": summary((true - zero) / (one - zero)),
            }
    return found


def name_of(epsilon: float) -> str:
    return "naive" if epsilon == np.inf else f"{epsilon:g}"


def table_of(found: dict) -> str:
    """Return the numbers as a table in Markdown: a row for each bound, the sizes beside another."""
    header = ["epsilon"]
    for size in found:
        header += [f"{int(size):,} steps: believed", "true (worst agent)"]
    rows = []
    for name in map(name_of, EPSILONS):
        row = [name]
        for numbers in found.values():
            believed, true = (numbers["bounds"][name][key] for key in ("believed", "true"))
            row += [shown(believed), f"{shown(true)} ({min(true['per_agent']):.2f})"]
        rows.append(row)
    untouched = ["*state-action pairs without data*"]
    for numbers in found.values():
        untouched += [f"*{100 * numbers['untouched']['mean']:.0f} %*", ""]
    return markdown_table(header, [*rows, untouched])


def draw_curve(axes, at, values, look: str, label: str) -> None:
    """Draw means of values (points, agents), and their 95 % intervals."""
    values = np.array(values)
    mean = values.mean(1)
    color = algorithm_color(look)
    axes.plot(at, mean, color=color, linewidth=2.5, marker="o", label=label)
    if values.shape[1] > 1:
        half = np.array([half_interval(row) for row in values])
        axes.fill_between(at, mean - half, mean + half, color=color, alpha=0.12)


def draw(found: dict) -> Figure:
    """Draw both values against the bound, for few data, and against the number of steps."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [name_of(epsilon) for epsilon in EPSILONS]
    size = list(found)[0]
    numbers = found[size]["bounds"]
    for key, look in (("believed", "sac"), ("true", "por")):
        values = [numbers[name][key]["per_agent"] for name in names]
        draw_curve(left, range(len(names)), values, look, key)
    worst = [min(numbers[name]["true"]["per_agent"]) for name in names]
    color = algorithm_color("por")
    left.plot(worst, color=color, linestyle=":", linewidth=2, label="true, worst agent")
    left.set_xticks(range(len(names)), names)
    left.set_xlabel("largest KL divergence from the data's policy")
    left.set_title(f"{int(size):,} steps in the data", fontsize=13)
    left.set_ylabel("value")

    sizes = [int(size) for size in found]
    for epsilon, look in zip(DRAWN, ("bc", "iql", "sac"), strict=True):
        name = name_of(epsilon)
        label = name if epsilon == np.inf else f"epsilon {name}"
        values = [numbers["bounds"][name]["true"]["per_agent"] for numbers in found.values()]
        draw_curve(right, sizes, values, look, label)
        worst = [min(agents) for agents in values]
        right.plot(sizes, worst, color=algorithm_color(look), linestyle=":", linewidth=2)
    right.set_xscale("log")
    right.set_xlabel("steps in the data")
    right.set_title("True value with more data (dotted: worst agent)", fontsize=13)
    for axes in (left, right):
        for level, text in ((0, "policy of the data"), (1, "best policy")):
            axes.axhline(level, color="0.6", linestyle="--", linewidth=1)
            axes.text(
                0.99,
                level,
                text,
                ha="right",
                va="bottom",
                color="0.4",
                transform=axes.get_yaxis_transform(),
            )
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, frameon=False)
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if min(args.num_seeds, *args.sizes, len(args.sizes)) < 1:
        sys.exit("--num-seeds and --sizes must be at least 1")
    found = study(args)
    store("constraint", args.out, "result", found, {"constraint.png": draw(found)})
    print(table_of(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, table_of(found))


if __name__ == "__main__":
    main()
