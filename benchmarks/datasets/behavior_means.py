"""Measure what a behaviour policy is worth without its noise, as a Markdown table.

A dataset is collected with sampled actions, and its score is theirs. But what is learned from it is
scored by its mean action, as in all papers. So a perfect clone scores what the behaviour's own mean
scores, and that, not the data's score, is what imitation can reach.

    python -m benchmarks.datasets.behavior_means
    python -m benchmarks.datasets.behavior_means --write benchmarks/datasets/README.md
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.common import markdown_table, update_page
from benchmarks.datasets.measure import Score, measure
from benchmarks.datasets.policies import BEHAVIOR, SacPolicy, read_weights, spaces
from benchmarks.datasets.recipes import RECIPES, Recipe
from benchmarks.datasets.rollout import quiet, run_jobs

NAMES = ("hopper-medium", "hopper-skilled", "halfcheetah-medium", "walker2d-medium")
SEED = 7  # of the episodes
HEADER = [
    "policy",
    "sampled: return",
    "length",
    "score",
    "mean: return",
    "length",
    "score",
]


@dataclass
class Args:
    episodes: int = 50
    """episodes of each policy, sampled and by its mean"""
    write: Path | None = None
    """Markdown file whose table is renewed, instead of printing it"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


class MeanPolicy(SacPolicy):
    """The same weights without noise: the action is tanh(mean)."""

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Return zeros instead of the noise of an episode, (steps, act_dim) float32."""
        return np.zeros((steps, self.act_dim), np.float32)


def cells(score: Score, recipe: Recipe) -> list[str]:
    """Return return, length and normalized score."""
    normalized = 100 * (score.mean - recipe.ref_min) / (recipe.ref_max - recipe.ref_min)
    return [f"{score.mean:.0f} ± {score.std:.0f}", f"{score.length:.0f}", f"{normalized:.1f}"]


def table(episodes: int, workers: int | None) -> str:
    """Return the table of each policy with sampled and with mean actions."""
    jobs = []
    for name in NAMES:
        (weights,), _, _ = read_weights(BEHAVIOR / f"{name}.npz")
        env_id = RECIPES[name].env_id
        _, action_space = spaces(env_id)
        for kind in (SacPolicy, MeanPolicy):
            policy = kind(weights, action_space.low, action_space.high)
            jobs.append((env_id, policy, [SEED], episodes))
    scores = dict(run_jobs(measure, jobs, workers))
    rows = []
    for number, name in enumerate(NAMES):
        sampled = cells(scores[2 * number], RECIPES[name])
        mean = cells(scores[2 * number + 1], RECIPES[name])
        rows.append([name, *sampled, *mean])
    return f"{markdown_table(HEADER, rows)}\n\n{episodes} episodes each, seed {SEED}."


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for name in ("episodes", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            sys.exit(f"--{name} {value}: must be at least 1")
    quiet()
    text = table(args.episodes, args.workers)
    if args.write is None:
        print(text)
    else:
        update_page(
            args.write, "<!-- behavior_means.py -->", "<!-- end of behavior_means.py -->", text
        )


if __name__ == "__main__":
    main()
