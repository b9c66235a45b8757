"""The pictures of the study: a panel for every variant, with the paths of all agents."""

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.common import algorithm_color
from benchmarks.studies.four_room.worlds import LANES, cells_between

COLORS = {"#": "#555555", "S": "#e1e1e1", "G": "#ffdc78", "k": "#d7b4ff", "w": "#8cc3eb"}
WORDS = {"S": "start", "G": "goal", "k": "key", "w": "river"}
GREEN, RED, ORANGE = "#2a9d3a", "#d62728", "#e08a00"
TITLES = {
    "stitching": "Grey bands: the lanes of the data. A dot is where a path ends.",
    "tasks": "Green reached the goal, red drowned, orange ran out of time.",
}
STITCHING = ("action-stitching", "POR, weighted guide", "POR, q guide")
PANELS = {
    "stitching": [(world, variant) for world in ("crossing", "parallel") for variant in STITCHING],
    "tasks": [
        ("four-room", "g and pi anew"),
        ("four-room-river", "g and pi of A"),
        ("four-room-river", "g anew, pi of A"),
        ("four-room-river", "g and pi anew"),
        ("four-room-key", "g anew, pi of A as it was"),
        ("four-room-key", "g and pi of A"),
        ("four-room-key", "g anew, pi of A"),
        ("four-room-key", "g and pi anew"),
    ],
}


def draw_panels(part: str, found: dict) -> Figure:
    """Draw the panels of a part of the study."""
    panels = PANELS[part]
    figure = Figure(figsize=(14, 7.8 if part == "stitching" else 9.4), layout="constrained")
    grid = figure.subplots(2, len(panels) // 2)
    for axes, (name, variant) in zip(grid.flat, panels, strict=True):
        outcome = found[name][variant]
        title = f"{name}\n{variant}\nsuccess {outcome.numbers['success']['mean']:.2f}"
        if outcome.numbers["steps_to_goal"]["mean"] is not None:
            title += f", {outcome.numbers['steps_to_goal']['mean']:.1f} steps"
        axes.set_title(title, fontsize=13)
        draw_map(axes, outcome.world)
        for lane in LANES.get(name, []):
            draw_lane(axes, outcome.world, lane)
        draw_paths(axes, outcome, variant)
    figure.suptitle(TITLES[part], fontsize=15)
    return figure


def draw_map(axes, world) -> None:
    """Draw the tiles, with their names."""
    x, y = world.middle + 0.5
    tiles = [[to_rgba(COLORS.get(tile, "#ffffff00")) for tile in row] for row in world.map]
    axes.imshow(tiles, origin="lower", extent=(-x, x, -y, y), zorder=1)
    for tile, word in WORDS.items():
        cells = np.argwhere(world.map == tile)[:, ::-1] - world.middle
        if len(cells) > 0:
            axes.text(*cells.mean(0), word, ha="center", va="center", fontsize=12, zorder=6)
    axes.set(xticks=[], yticks=[])


def draw_lane(axes, world, lane: list) -> None:
    """Draw the cells of a lane, which is two cells wide."""
    for cell in cells_between(lane):
        corner = cell + 0.5 - world.middle
        axes.add_patch(Rectangle(corner, 2, 2, color="0.87", linewidth=0, zorder=0))


def draw_paths(axes, outcome, variant: str) -> None:
    """Draw the first five paths of every agent."""
    agents, count = outcome.arrived.shape
    for i in range(agents):
        # On whole cells the agents' paths would hide each other.
        shift = 0.07 * (i - (agents - 1) / 2) if outcome.world.whole_cells else 0.0
        for j in range(min(5, count)):
            if outcome.world.whole_cells:
                color = algorithm_color("por" if variant.startswith("POR") else "bc")
            elif outcome.arrived[i, j]:
                color = GREEN
            else:
                color = RED if outcome.drowned[i, j] else ORANGE
            x, y = outcome.paths[i, j, :, :2].T + shift
            axes.plot(x, y, color=color, lw=1.5, alpha=0.7, zorder=4)
            axes.plot(x[-1], y[-1], "o", ms=5, color=color, zorder=5)
