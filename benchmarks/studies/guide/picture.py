"""The pictures of the study."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.studies.guide.measures import body, gains, guide_goals, thin
from benchmarks.studies.shared import por, shown

COLORS = {"inside": "#D55E00", "outside": "#0072B2"}
LONGER = 10.0  # an arrow is so many times as long as the step that it stands for


def maze_of(task):
    """Return the maze of a PointMaze task, or None."""
    if "PointMaze" not in task.env_id:
        return None
    return por.make_env(task).unwrapped.maze


def draw_beyond(agents: dict, task, regions: dict, box: list, measures: dict) -> Figure:
    """Draw where the guide points, and histograms of V(g(s)) - V(s')."""
    figure = Figure(figsize=(16, 5.2), layout="constrained")
    first, *others = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    maze = maze_of(task)
    if maze is None:
        draw_distribution(first, agents["cut"], regions, box)
    else:
        draw_walls(first, maze)
        draw_arrows(first, agents["cut"], body(task)[0], regions)
        first.set_title("trained without orange: s to g(s); grey: s to s'", fontsize=14)
    for axes, (name, agent) in zip(others, agents.items(), strict=True):
        for region, rows in regions.items():
            gain = gains(agent, guide_goals(agent, rows.s), rows, regions["outside"]).ravel()
            low, high = np.percentile(gain, [1, 99])
            part = shown(measures["higher_own"][name][region])
            label = f"{region}: {part} above 0"
            edges = np.linspace(low, high, 51)
            style = {"histtype": "step", "density": True, "linewidth": 2}
            axes.hist(gain, edges, color=COLORS[region], label=label, **style)
        axes.axvline(0, color="0.4", linewidth=1)
        axes.set(yticks=[], ylim=(0, axes.get_ylim()[1] * 1.35))
        axes.set_ylabel("density", fontsize=13)
        axes.set_xlabel("V(g(s)) - V(s'), in deviations of V", fontsize=13)
        words = "without" if name == "cut" else "with"
        axes.set_title(f"trained {words} the box, own V", fontsize=14)
        axes.legend(fontsize=12, frameon=False, loc="upper left")
    return figure


def draw_walls(axes, maze) -> None:
    """Draw the walls of a maze."""
    for i, row in enumerate(maze.maze_map):
        for j, cell in enumerate(row):
            if cell == 1:
                corner = (j - maze.x_map_center, maze.y_map_center - i - 1)
                axes.add_patch(Rectangle(corner, 1, 1, color="0.8", linewidth=0))
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set(xlim=(-maze.x_map_center, maze.x_map_center))
    axes.set(ylim=(-maze.y_map_center, maze.y_map_center))


def draw_arrows(axes, agent, place: slice, regions: dict) -> None:
    """Draw s to g(s) of the first agent, and s to s'."""
    for region, rows in regions.items():
        rows = rows.pick(thin(len(rows.s), 80 if region == "inside" else 240))
        goal = guide_goals(agent, rows.s)[0]
        x, y = rows.s[:, place].T
        for end, color in ((rows.s2, "0.55"), (goal, COLORS[region])):
            dx, dy = LONGER * (end - rows.s)[:, place].T
            style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.0025}
            axes.quiver(x, y, dx, dy, color=color, **style)


def draw_distribution(axes, agent, regions: dict, box: list) -> None:
    """Draw how the box's first variable is distributed in s' and in g(s) of the first agent."""
    index, *sides = box[0]
    for region, rows in regions.items():
        goal = guide_goals(agent, rows.s)[0]
        for end, style, label in ((rows.s2, ":", "s'"), (goal, "-", "g(s)")):
            values = end[:, index]
            kind = {"histtype": "step", "density": True, "linestyle": style, "linewidth": 2}
            axes.hist(values, 60, color=COLORS[region], label=f"{label}, {region}", **kind)
    for side in sides:
        if np.isfinite(side):
            axes.axvline(side, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"observation {index}; dashed: border of the box", fontsize=13)
    axes.set_ylabel("density", fontsize=13)
    axes.legend(fontsize=12, frameon=False)
    axes.set_title("agent trained without the box", fontsize=14)


def draw_terms(numbers: dict, loss, updates: list, step: float, correlations: dict) -> Figure:
    """Draw the loss of return against gap and error of rollouts."""
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    shades = matplotlib.colormaps["viridis"](np.linspace(0.9, 0, len(updates)))
    labels = {
        "rollout_gap": f"mean |g(s) - s'| of rollouts, in steps of {step:.3g}",
        "rollout_error": "mean |pi(s,s') - a| of rollouts",
    }
    for axes, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        unit = step if name == "rollout_gap" else 1.0
        for k, update in enumerate(updates):
            x = numbers[name][k] / unit
            axes.scatter(x, loss[k], color=shades[k], s=50, label=f"{update:,}")
        both, within = (found["spearman"] for found in correlations[name].values())
        axes.set_title(f"rank correlation {both}; within checkpoints {within}", fontsize=14)
        axes.set_xlabel(label, fontsize=13)
        axes.set_ylabel("loss of return", fontsize=13)
    axes.legend(title="updates", fontsize=12, title_fontsize=12)
    return figure
