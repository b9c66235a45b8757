"""Should a learned policy match the data's distribution, or only stay in its support?

Two pictures of the lecture as experiments. Both are tables without networks: what extrapolation
does to a network, a random initial value does here to an entry that no data touch.

Part line, the grid world with which BEAR's authors explain themselves (Kumar et al., 2019). Cells
in a row, the start S in the middle, the goal G at the right end, actions left and right. From S on,
the data go left with probability 0.9. Left of S they only go left. So the way to G is in the data's
support, but it is unlikely, and nobody has tried to go right from the left half. Compared:

    naive Q            y = r + gamma max_a' Q(s', a')
    distribution       y = r + gamma E_pi Q(s', a'), pi(a|s) ~ pi_b(a|s) exp(Q(s, a) / alpha): best
                       for E_pi Q - alpha KL(pi || pi_b); tight: large alpha, generous: small alpha
    support            y = r + gamma max_{a': pi_b(a'|s') >= epsilon} Q(s', a')

pi_b is estimated with one pseudocount per action, as no learned clone gives an action probability
zero. Measured is the exact probability that the policy reaches G within 20 times the way.

Part tabular, BCQ's example (Fujimoto et al., 2019; the lecture draws it with "up" and "down"). Each
step leads one column to the right, up or down by one row. The last column pays 0 to 1, by row. Data
are 30 random walks, which leave gaps. In the stochastic world every action is reversed with
probability 0.2. Compared are naive Q and tabular BCQ, which takes only actions that the data hold
for the state:

    pi(s) = argmax_{a: (s, a) in D} Q(s, a)

Measured: the value that the agent expects at the start beside its true one, and how many episodes
come to a state and action without data. In the deterministic world BCQ's is exact and none. In the
stochastic one "the agent might be swept into the unknown".

The sources draw both without numbers; sizes, rewards and data are our choice.

    python -m benchmarks.studies.support --out runs/support      # both parts, in seconds
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color, markdown_table, update_page
from benchmarks.studies.shared import half_interval, shown, store, summary

BEGIN, END = "<!-- support:begin -->", "<!-- support:end -->"  # of the tables on a page
LEFT, RIGHT = 0, 1
VISITS = 100  # of every cell in the line's data
RIGHT_IN_DATA = 0.1  # probability of the good action, where the data have it
ROWS, WALKS, SLIP = 9, 30, 0.2  # of the tabular world

# Name and colour of what is compared on the line
METHODS = {
    "support": ("support constraint", "bear"),
    "tight": ("distribution, tight (alpha 1)", "por"),
    "medium": ("distribution, medium (alpha 0.01)", "iql"),
    "generous": ("distribution, generous (alpha 0.0001)", "cql"),
    "naive": ("naive Q-learning", "sac"),
    "data": ("behaviour policy", "bc"),
}
ALPHAS = {"tight": 1.0, "medium": 0.01, "generous": 0.0001}


@dataclass
class Args:
    out: Path = Path("runs/support")  # folder of the numbers and the picture
    seed: int = 0  # seed of the first agent
    num_seeds: int = 20  # agents, each with data and a table of its own
    lengths: tuple[int, ...] = (2, 4, 6, 8, 10, 15, 20)  # cells from S to G, and left of S
    columns: int = 8  # steps of an episode in the tabular world
    discount: float = 0.99  # gamma
    epsilon: float = 0.015  # smallest probability in the support; the pseudocount alone gives 0.01
    page: Path | None = None  # page that gets the tables between its marks; None: they are printed


# --------------------------------------------------------------------------------------------------
# The line
# --------------------------------------------------------------------------------------------------


def line_data(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each cell's actions are in the data: (cells, 2). G is the last cell."""
    cells = 2 * length + 1
    rights = rng.binomial(VISITS, RIGHT_IN_DATA, cells)
    rights[:length] = 0  # left of S
    return np.stack([VISITS - rights, rights], axis=1)


def line_next(cells: int) -> np.ndarray:
    """Return the cell to which each action leads: (cells, 2). The left end is a wall."""
    cell = np.arange(cells)
    return np.stack([np.maximum(cell - 1, 0), np.minimum(cell + 1, cells - 1)], axis=1)


def line_policy(method: str, q: np.ndarray, clone: np.ndarray, epsilon: float) -> np.ndarray:
    """Return a method's policy for a table of values: (cells, 2) -> probabilities (cells, 2)."""
    if method == "data":
        return clone
    if method in ALPHAS:
        logits = np.log(clone) + q / ALPHAS[method]
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)
    allowed = clone >= epsilon if method == "support" else np.ones(clone.shape, bool)
    best = np.where(allowed, q, -np.inf).argmax(1)
    return np.eye(2)[best]


def learn_line(method: str, counts: np.ndarray, table: np.ndarray, args: Args) -> np.ndarray:
    """Return the policy that a method learns from data, starting from a table of values.

    Only entries with data are ever updated. G pays 1 and ends the episode.
    """
    clone = (counts + 1) / (counts + 1).sum(1, keepdims=True)
    step = line_next(len(counts))
    q, seen = table.copy(), counts > 0
    q[-1] = 0  # nothing comes after G
    arrives = (step == len(counts) - 1).astype(float)
    for _ in range(3_000):
        policy = line_policy(method, q, clone, args.epsilon)
        value = (policy * q).sum(1)
        target = arrives + args.discount * (1 - arrives) * value[step]
        new = np.where(seen, target, q)
        new[-1] = 0
        change = np.abs(new - q).max()
        q = new
        if change < 1e-10:
            break
    return line_policy(method, q, clone, args.epsilon)


def chance_of_goal(policy: np.ndarray, length: int) -> float:
    """Return the exact probability to reach G from S within 20 times the way."""
    cells = len(policy)
    step = line_next(cells)
    here = np.zeros(cells)
    here[length] = 1
    for _ in range(20 * length):
        there = np.zeros(cells)
        there[-1] = here[-1]
        for action in (LEFT, RIGHT):
            np.add.at(there, step[:-1, action], here[:-1] * policy[:-1, action])
        here = there
    return float(here[-1])


def study_line(args: Args) -> dict:
    """Return the chance of the goal of every method and length."""
    found = {method: {} for method in METHODS}
    for length in args.lengths:
        chances = {method: [] for method in METHODS}
        for agent in range(args.num_seeds):
            rng = np.random.default_rng([args.seed + agent, length])
            counts = line_data(length, rng)
            table = rng.uniform(0, 1, counts.shape)  # returns lie between 0 and 1, too
            for method in METHODS:
                policy = learn_line(method, counts, table, args)
                chances[method].append(chance_of_goal(policy, length))
        for method, values in chances.items():
            found[method][length] = summary(values)
    return found


# --------------------------------------------------------------------------------------------------
# The tabular world
# --------------------------------------------------------------------------------------------------


class World:
    """Columns and rows; an action is up (0) or down (1); with probability `slip` it is reversed."""

    def __init__(self, columns: int, slip: float, rng: np.random.Generator):
        self.columns, self.slip = columns, slip
        self.pay = rng.permutation(ROWS) / (ROWS - 1)  # of the rows in the last column

    def chances(self, row: int, action: int) -> list[tuple[int, float]]:
        """Return the next rows and their probabilities."""
        way = (-1, 1)[action]
        rows = (min(max(row + way, 0), ROWS - 1), min(max(row - way, 0), ROWS - 1))
        return [(rows[0], 1 - self.slip), (rows[1], self.slip)]

    def walk(self, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """Return a random walk from the start: (column, row, action, next row)."""
        row, steps = ROWS // 2, []
        for column in range(self.columns):
            action = int(rng.integers(2))
            rows, chances = zip(*self.chances(row, action), strict=True)
            next_row = int(rng.choice(rows, p=chances))
            steps.append((column, row, action, next_row))
            row = next_row
        return steps


def learn_tabular(world: World, walks: list, restrict: bool, table: np.ndarray, gamma: float):
    """Solve the MDP that the data's counts describe: table (columns, ROWS, 2) of initial values.

    Returns the values (columns, ROWS, 2), the policy (columns, ROWS) and which entries have data.
    """
    counts = np.zeros((*table.shape, ROWS))
    for column, row, action, next_row in (step for walk in walks for step in walk):
        counts[column, row, action, next_row] += 1
    visits = counts.sum(-1)
    seen = visits > 0
    q = table.copy()
    value = world.pay
    for column in reversed(range(world.columns)):
        pay = value if column == world.columns - 1 else gamma * value
        mean = (counts[column] * pay).sum(-1) / np.maximum(visits[column], 1)
        q[column] = np.where(seen[column], mean, q[column])
        # A state without data has no action to be restricted to.
        allowed = seen[column] | ~seen[column].any(-1, keepdims=True) if restrict else True
        value = np.where(allowed, q[column], -np.inf).max(-1)
    allowed = seen | ~seen.any(-1, keepdims=True) if restrict else True
    policy = np.where(allowed, q, -np.inf).argmax(-1)
    return q, policy, seen


def judge_tabular(world: World, policy: np.ndarray, seen: np.ndarray, gamma: float):
    """Return the policy's true value, and the probability to leave the data in an episode."""
    value, left = world.pay.copy(), np.zeros(ROWS)
    for column in reversed(range(world.columns)):
        pay = value if column == world.columns - 1 else gamma * value
        new_value, new_left = np.zeros(ROWS), np.zeros(ROWS)
        for row in range(ROWS):
            action = policy[column, row]
            for next_row, chance in world.chances(row, action):
                new_value[row] += chance * pay[next_row]
                new_left[row] += chance * left[next_row]
            if not seen[column, row, action]:
                new_left[row] = 1
        value, left = new_value, new_left
    start = ROWS // 2
    return value[start], left[start]


def study_tabular(args: Args) -> dict:
    """Return expected and true values and the share of episodes that leave the data."""
    found = {}
    for kind, slip in (("deterministic", 0.0), ("stochastic", SLIP)):
        numbers = {name: {"expected": [], "true": [], "leaves": []} for name in ("naive", "bcq")}
        for agent in range(args.num_seeds):
            rng = np.random.default_rng(args.seed + agent)
            world = World(args.columns, slip, rng)
            walks = [world.walk(rng) for _ in range(WALKS)]
            table = rng.uniform(0, 1, (args.columns, ROWS, 2))
            for name, method in numbers.items():
                q, policy, seen = learn_tabular(
                    world, walks, name == "bcq", table, gamma=args.discount
                )
                true, leaves = judge_tabular(world, policy, seen, args.discount)
                start = ROWS // 2
                method["expected"].append(q[0, start, policy[0, start]])
                method["true"].append(true)
                method["leaves"].append(leaves)
        found[kind] = {
            name: {key: summary(values) for key, values in method.items()}
            for name, method in numbers.items()
        }
    return found


# --------------------------------------------------------------------------------------------------
# Tables and picture
# --------------------------------------------------------------------------------------------------


def tables(found: dict) -> str:
    """Return both parts as tables in Markdown, with 95 % intervals over agents."""
    lengths = list(found["line"]["support"])
    rows = [
        [METHODS[method][0], *(shown(numbers[length]) for length in lengths)]
        for method, numbers in found["line"].items()
    ]
    line = markdown_table(["reaches G", *(f"{length} cells" for length in lengths)], rows)
    rows = [
        [
            f"{kind}, {'naive Q-learning' if name == 'naive' else 'tabular BCQ'}",
            *(shown(numbers[key]) for key in ("expected", "true", "leaves")),
        ]
        for kind, methods in found["tabular"].items()
        for name, numbers in methods.items()
    ]
    header = ["world, method", "value it expects", "true value", "episodes that leave the data"]
    return f"{line}\n\n{markdown_table(header, rows)}"


def draw(found: dict) -> Figure:
    """Draw the chance of the goal by length, and expected beside true values."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
    for method, numbers in found["line"].items():
        name, look = METHODS[method]
        lengths = list(numbers)
        means = np.array([numbers[length]["mean"] for length in lengths])
        halves = np.array([half_interval(x["per_agent"]) or 0 for x in numbers.values()])
        color = algorithm_color(look)
        dashes = "--" if method == "naive" else "-"  # it lies on the generous one
        left.plot(lengths, means, dashes, color=color, linewidth=2.5, marker="o", label=name)
        left.fill_between(lengths, means - halves, means + halves, color=color, alpha=0.12)
    left.set_xlabel("cells from the start to the goal", fontsize=13)
    left.set_title("BEAR's line: probability to reach the goal", fontsize=13)
    left.set_ylim(-0.04, 1.04)
    left.set_xticks(lengths)
    left.legend(
        fontsize=10, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.15), ncols=2
    )
    kinds = list(found["tabular"])
    for axes, panels in (
        (middle, {"expected": "value it expects", "true": "true value"}),
        (right, {"leaves": "leave the data"}),
    ):
        labels = []
        for i, (kind, name) in enumerate(
            (kind, name) for kind in kinds for name in ("naive", "bcq")
        ):
            for j, (key, label) in enumerate(panels.items()):
                numbers = found["tabular"][kind][name][key]
                axes.bar(
                    i + 0.4 * j,
                    numbers["mean"],
                    0.38,
                    yerr=numbers["half_interval"] or 0,
                    color=algorithm_color("bcq" if name == "bcq" else "sac"),
                    alpha=0.45 if key == "expected" else 1,
                    label=label if i == 2 else None,
                )
            labels.append(f"{'BCQ' if name == 'bcq' else 'naive Q'}\n{kind[:5]}.")
        axes.set_xticks([i + 0.2 * (len(panels) - 1) for i in range(4)], labels, fontsize=11)
    middle.set_title("BCQ: value at the start", fontsize=13)
    middle.legend(fontsize=11, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    right.set_title("BCQ: leaves the data", fontsize=13)
    for axes in (left, middle, right):
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if min(args.num_seeds, args.columns, *args.lengths) < 1:
        sys.exit("--num-seeds, --columns and --lengths must be at least 1")
    if not 0 < args.discount < 1:
        sys.exit("--discount must lie between 0 and 1")
    found = {"line": study_line(args), "tabular": study_tabular(args)}
    store("support", args.out, "result", found, {"support.png": draw(found)})
    print(tables(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, tables(found))


if __name__ == "__main__":
    main()
