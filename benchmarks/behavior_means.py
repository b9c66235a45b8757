"""What is a behaviour policy worth without its noise? A Markdown table of both ways to act.

A dataset is collected with sampled actions, its score is theirs. But what is learned from it is
scored by its mean action, as all papers do it. So a perfect clone scores what the behaviour's own
mean scores, and that, not the data's score, is the line which imitation can reach.

    python benchmarks/behavior_means.py
    python benchmarks/behavior_means.py --write benchmarks/DATASETS.md     # the table in that file
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from collect import HERE, quiet
from datasets_table import replace_section
from recipes import RECIPES, SacPolicy, read_weights, spaces
from select_behavior import measure, run_jobs

NAMES = ("hopper-medium", "hopper-skilled", "halfcheetah-medium", "walker2d-medium")
SEED = 7  # of the episodes; other measurements of behaviour policies have 1 to 6


@dataclass
class Args:
    episodes: int = 50
    """episodes of each policy, sampled and by its mean"""
    write: Path | None = None
    """Markdown file whose table is renewed, instead of printing it"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


class MeanPolicy(SacPolicy):
    """The same weights, no noise: the action is tanh(mean)."""

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Zeros instead of the noise of one episode, (steps, act_dim) float32."""
        return np.zeros((steps, self.act_dim), np.float32)


def table(episodes: int, workers: int | None) -> str:
    """Return, length and normalized score of each policy with sampled and with mean actions."""
    jobs = []
    lines = ["| policy | sampled: return | length | score | mean: return | length | score |",
             "|---|---|---|---|---|---|---|"]
    for name in NAMES:
        (weights,), _, _ = read_weights(HERE / "behavior" / f"{name}.npz")
        env_id = RECIPES[name].env_id
        actions = spaces(env_id)[1]
        jobs += [(env_id, kind(weights, actions.low, actions.high), [SEED], episodes)
                 for kind in (SacPolicy, MeanPolicy)]
    found = dict(run_jobs(measure, jobs, workers))
    for number, name in enumerate(NAMES):
        low, high, cells = RECIPES[name].ref_min, RECIPES[name].ref_max, ""
        for score in (found[2 * number], found[2 * number + 1]):
            cells += (f" {score.mean:.0f} ± {score.std:.0f} | {score.length:.0f} | "
                      f"{100 * (score.mean - low) / (high - low):.1f} |")
        lines.append(f"| {name} |{cells}")
    return "\n".join([*lines, f"\n{episodes} episodes each, seed {SEED}."])


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for option in ("episodes", "workers"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise SystemExit(f"--{option} {value}: must be at least 1")
    quiet()
    text = table(args.episodes, args.workers)
    replace_section(args.write, "behavior_means.py", text) if args.write else print(text)


if __name__ == "__main__":
    main()
