"""What do expectiles buy IQL: maxima within the data, without lucky samples?

The IQL slides develop the algorithm in three steps, which are tables here, without networks.

1. regression. The tau-expectile of X is the m that minimises E |tau - 1(X < m)| (X - m)^2: the mean
   for tau = 0.5, and nearly the largest value of the data for tau near 1. Drawn for a cloud (x, y).
2. lucky. SARSA with an expectile takes it over everything that may follow, also over chance. One
   state, two actions: "sure" pays 0.6; "lottery" pays 1, once in ten times. Data: 200 draws. IQL
   takes the mean over chance (Q), and the expectile over actions only (V).
3. umaze. IQL's toy example: a maze in the form of a U, 10 for the goal, discount 0.9. The data are
   one optimal trajectory and 99 of random actions. Compared are the true optimal values, those of
   the behaviour policy (one-step policy evaluation), and IQL's for several tau, which the slides
   leave out; and the steps to the goal of the policy that is greedy within the data.

The paper (Kostrikov et al., 2022) gives the data of 3. The maze's size, the lengths, and all of 1
and 2 are our choice.

    python -m benchmarks.studies.expectile --out runs/expectile      # all three, in seconds
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color, markdown_table, update_page
from benchmarks.studies.shared import shown, store, summary

BEGIN, END = "<!-- expectile:begin -->", "<!-- expectile:end -->"  # of the tables on a page
TAUS = (0.5, 0.7, 0.9, 0.95, 0.99, 0.999)
SURE, PRIZE, CHANCE, DRAWS = 0.6, 1.0, 0.1, 200  # of the lottery
MAZE = (
    "#########",
    "#G......#",
    "#######.#",
    "#######.#",
    "#S......#",
    "#########",
)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
GOAL_REWARD, GAMMA, EPISODES, MAX_STEPS = 10.0, 0.9, 99, 100


@dataclass
class Args:
    out: Path = Path("runs/expectile")  # folder of the numbers and the picture
    seed: int = 0  # seed of the first agent
    num_seeds: int = 20  # agents, each with data of its own
    page: Path | None = None  # page that gets the tables between its marks; None: they are printed


def expectile(values: np.ndarray, tau: float, weights: np.ndarray | None = None) -> float:
    """Return the tau-expectile of weighted values, exactly.

    The derivative of the loss is linear between two values. So m lies where it changes its sign:
    tau sum_{x > m} w (x - m) = (1 - tau) sum_{x < m} w (m - x).
    """
    order = np.argsort(values)
    x = np.asarray(values, float)[order]
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)[order]
    for k in range(len(x)):
        # Suppose that the values up to k lie below m, or on it.
        low, high = (1 - tau) * w[: k + 1], tau * w[k + 1 :]
        total = low.sum() + high.sum()
        m = ((low * x[: k + 1]).sum() + (high * x[k + 1 :]).sum()) / total
        if k == len(x) - 1 or m <= x[k + 1]:
            return float(m)
    raise AssertionError("a convex function has a minimum")


# --------------------------------------------------------------------------------------------------
# 1. Regression
# --------------------------------------------------------------------------------------------------


def draw_cloud(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 4,000 points whose spread grows with x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 3, 4_000)
    return x, np.sin(2 * x) + (0.1 + 0.3 * x) * rng.uniform(-1, 1, len(x))


def regress(x: np.ndarray, y: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the conditional expectile in 30 columns of the cloud, and their centres."""
    column = np.minimum((x / 3 * 30).astype(int), 29)
    curve = [expectile(y[column == i], tau) for i in range(30)]
    return (np.arange(30) + 0.5) / 10, np.array(curve)


# --------------------------------------------------------------------------------------------------
# 2. The lottery
# --------------------------------------------------------------------------------------------------


def study_lucky(args: Args) -> dict:
    """Return, by tau, what both believe of the lottery, and the true value of what they choose."""
    found = {}
    for tau in TAUS:
        numbers = {f"{name}_{key}": [] for name in ("sarsa", "iql") for key in ("belief", "true")}
        for agent in range(args.num_seeds):
            rng = np.random.default_rng([args.seed + agent, 2])
            lottery = rng.random(DRAWS) < 0.5
            prize = np.where(rng.random(DRAWS) < CHANCE, PRIZE, 0.0)
            pays = np.where(lottery, prize, SURE)
            believed = {
                "sarsa": expectile(pays[lottery], tau),
                "iql": float(pays[lottery].mean()),  # whatever tau is: V is over actions only
            }
            for name, belief in believed.items():
                true = PRIZE * CHANCE if belief > SURE else SURE
                numbers[f"{name}_belief"].append(belief)
                numbers[f"{name}_true"].append(true)
        found[str(tau)] = {key: summary(values) for key, values in numbers.items()}
    return found


# --------------------------------------------------------------------------------------------------
# 3. The toy umaze
# --------------------------------------------------------------------------------------------------


class Maze:
    """Cells of MAZE by number. A move into a wall stays."""

    def __init__(self):
        cells = [(i, j) for i, row in enumerate(MAZE) for j, mark in enumerate(row) if mark != "#"]
        number = {cell: k for k, cell in enumerate(cells)}
        self.cells = cells
        self.start = next(k for k, (i, j) in enumerate(cells) if MAZE[i][j] == "S")
        self.goal = next(k for k, (i, j) in enumerate(cells) if MAZE[i][j] == "G")
        self.next = np.array(
            [
                [number.get((i + di, j + dj), k) for di, dj in MOVES]
                for k, (i, j) in enumerate(cells)
            ]
        )

    def backup(self, value: np.ndarray) -> np.ndarray:
        """Return r + gamma V(s') of all states and actions; nothing comes after the goal."""
        arrives = self.next == self.goal
        return np.where(arrives, GOAL_REWARD, GAMMA * value[self.next])

    def optimal_values(self) -> np.ndarray:
        value = np.zeros(len(self.cells))
        for _ in range(200):
            value = self.backup(value).max(1)
            value[self.goal] = 0
        return value

    def collect(self, rng: np.random.Generator) -> np.ndarray:
        """Return how often each state's actions are in the data: (states, 4)."""
        counts = np.zeros((len(self.cells), 4))
        best = self.backup(self.optimal_values())
        for episode in range(1 + EPISODES):
            state = self.start
            for _ in range(MAX_STEPS):
                action = best[state].argmax() if episode == 0 else rng.integers(4)
                counts[state, action] += 1
                state = self.next[state, action]
                if state == self.goal:
                    break
        return counts


def learn_values(maze: Maze, counts: np.ndarray, tau: float) -> np.ndarray:
    """Return IQL's V with this tau, which for 0.5 is that of the behaviour policy."""
    value = np.zeros(len(counts))
    for _ in range(2_000):
        q = maze.backup(value)
        new = np.zeros(len(counts))
        for state, row in enumerate(counts):
            if row.any() and state != maze.goal:
                new[state] = expectile(q[state, row > 0], tau, row[row > 0])
        change = np.abs(new - value).max()
        value = new
        if change < 1e-9:
            break
    return value


def steps_to_goal(maze: Maze, counts: np.ndarray, value: np.ndarray) -> int:
    """Return the steps of the greedy policy within the data, or MAX_STEPS if it does not arrive."""
    policy = np.where(counts > 0, maze.backup(value), -np.inf).argmax(1)
    state = maze.start
    for step in range(MAX_STEPS):
        state = maze.next[state, policy[state]]
        if state == maze.goal:
            return step + 1
    return MAX_STEPS


def study_umaze(args: Args) -> tuple[dict, dict]:
    """Return errors and steps by tau, and the values of the first agent."""
    maze = Maze()
    best = maze.optimal_values()
    found = {str(tau): {"start_value": [], "error": [], "steps": []} for tau in TAUS}
    maps = {"optimal": best}
    for agent in range(args.num_seeds):
        counts = maze.collect(np.random.default_rng([args.seed + agent, 3]))
        for tau in TAUS:
            value = learn_values(maze, counts, tau)
            numbers = found[str(tau)]
            numbers["start_value"].append(value[maze.start])
            numbers["error"].append(np.abs(value - best).max())
            numbers["steps"].append(steps_to_goal(maze, counts, value))
            if agent == 0:
                maps[str(tau)] = value
    result = {
        tau: {key: summary(values) for key, values in numbers.items()}
        for tau, numbers in found.items()
    }
    steps = steps_to_goal(maze, np.ones((len(best), 4)), best)
    return result | {"optimal": {"start_value": float(best[maze.start]), "steps": steps}}, maps


# --------------------------------------------------------------------------------------------------
# Tables and picture
# --------------------------------------------------------------------------------------------------


def tables(found: dict) -> str:
    """Return parts 2 and 3 as tables in Markdown, with 95 % intervals over agents."""
    keys = ("sarsa_belief", "sarsa_true", "iql_belief", "iql_true")
    lucky = markdown_table(
        ["tau", "SARSA: the lottery's value", "it gets", "IQL: the lottery's value", "it gets"],
        [[tau, *(shown(x[key]) for key in keys)] for tau, x in found["lucky"].items()],
    )
    rows = []
    for tau in map(str, TAUS):
        numbers = found["umaze"][tau]
        name = f"{tau} (one-step policy evaluation)" if tau == "0.5" else tau
        rows.append([name, *(shown(numbers[key]) for key in ("start_value", "error"))])
        rows[-1].append(shown(numbers["steps"], 0))
    optimal = found["umaze"]["optimal"]
    value, steps = f"{optimal['start_value']:.2f}", str(optimal["steps"])
    rows.append(["true optimal values", value, "0", steps])
    umaze = markdown_table(
        ["tau", "value at the start", "largest error", "steps to the goal"], rows
    )
    return f"{lucky}\n\n{umaze}"


def draw(cloud: tuple, found: dict, maps: dict) -> Figure:
    """Draw the regression, the lottery, and maps of values."""
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    regression, lucky, sweep = top.subplots(1, 3)
    x, y = cloud
    regression.plot(x, y, ".", color="0.8", markersize=2)
    for tau, look in zip((0.1, 0.5, 0.9, 0.99), ("sac", "bc", "iql", "por"), strict=True):
        centres, curve = regress(x, y, tau)
        color = algorithm_color(look)
        regression.plot(centres, curve, color=color, linewidth=2, label=f"tau = {tau}")
    regression.legend(fontsize=10, frameon=False)
    regression.set_title("Expectiles of y given x", fontsize=13)

    labels = [str(tau) for tau in TAUS]
    for name, title, look in (("sarsa", "SARSA, expectile", "sac"), ("iql", "IQL", "iql")):
        color = algorithm_color(look)
        belief = [found["lucky"][tau][f"{name}_belief"]["mean"] for tau in labels]
        true = [found["lucky"][tau][f"{name}_true"]["mean"] for tau in labels]
        lucky.plot(labels, belief, color=color, linestyle="--", label=f"{title}: believes")
        lucky.plot(labels, true, color=color, linewidth=2.5, marker="o", label=f"{title}: gets")
    lucky.axhline(SURE, color="0.7", zorder=0)
    lucky.set_xlabel("tau")
    lucky.legend(fontsize=10, frameon=False)
    lucky.set_title("Lucky samples: sure 0.6, lottery 0.1", fontsize=13)

    errors = [found["umaze"][tau]["error"]["mean"] for tau in labels]
    sweep.plot(labels, errors, color=algorithm_color("iql"), linewidth=2.5, marker="o")
    sweep.set_xlabel("tau")
    sweep.set_title("umaze: largest error of V", fontsize=13)
    sweep.set_ylim(bottom=0)
    for axes in (regression, lucky, sweep):
        axes.spines[["top", "right"]].set_visible(False)

    maze = Maze()
    panels = bottom.subplots(1, 3)
    names = {"optimal": "V*", "0.5": "one-step policy evaluation", "0.95": "IQL, tau = 0.95"}
    for axes, (key, name) in zip(panels, names.items(), strict=True):
        picture = np.full((len(MAZE), len(MAZE[0])), np.nan)
        for (i, j), value in zip(maze.cells, maps[key], strict=True):
            picture[i, j] = value
        picture[maze.cells[maze.goal]] = GOAL_REWARD
        axes.imshow(picture, cmap="viridis", vmin=0, vmax=GOAL_REWARD)
        for i, j in maze.cells:
            color = "black" if picture[i, j] > 6 else "white"
            axes.text(
                j, i, f"{picture[i, j]:.1f}", ha="center", va="center", color=color, fontsize=8
            )
        axes.set_title(name, fontsize=13)
        axes.axis("off")
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.num_seeds < 1:
        sys.exit("--num-seeds must be at least 1")
    umaze, maps = study_umaze(args)
    found = {"lucky": study_lucky(args), "umaze": umaze}
    picture = draw(draw_cloud(args.seed), found, maps)
    store("expectile", args.out, "result", found, {"expectile.png": picture})
    print(tables(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, tables(found))


if __name__ == "__main__":
    main()
