"""Renew the tables in behavior/README.md from the weight files beside it.

python -m benchmarks.datasets.behavior_page
"""

import hashlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.common import markdown_table, update_page, write_atomically
from benchmarks.datasets.policies import BEHAVIOR, read_weights

POLICY_HEADER = [
    "file",
    "environment",
    "target return",
    "training command",
    "seed",
    "step",
    "selection score",
    "fresh score",
    "mean length",
    "SHA-256",
]
BUNDLE_HEADER = [
    "bundle",
    "from the training of",
    "steps",
    "snapshots",
    "half precision",
    "in training",
    "played again",
    "shift",
    "SHA-256",
]


@dataclass
class Args:
    folder: Annotated[Path, tyro.conf.Positional] = BEHAVIOR
    """folder of the weight files and their README.md"""


def write_weights(path: Path, arrays: dict) -> bytes:
    """Write a weight file, and renew the page beside it if there is one. Return its content."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    try:
        write_atomically(path, content)
    except OSError as error:
        sys.exit(f"{path} cannot be written: {error}")
    if (path.parent / "README.md").exists():
        update_tables(path.parent)
    return content


def policy_row(path: Path, about: dict) -> list[str]:
    """Return the row of a file with one policy."""
    fresh = about["fresh_score"]
    seed = str(about["training_seed"])
    if about.get("training_agent", 0) > 0:
        seed += f", agent {about['training_agent']}"
    return [
        f"`{path.name}`",
        about["env_id"],
        f"{about['target_return']:g}",
        f"`{about['training_command']}`",
        seed,
        str(about["step"]),
        return_text(about["selection_score"]),
        return_text(fresh),
        f"{fresh['length']:.1f}",
        f"`{sha256(path)}`",
    ]


def bundle_row(path: Path, about: dict, end: int) -> list[str]:
    """Return the row of a bundle."""
    change, error = about["half_precision_change"], about["half_precision_error"]
    return [
        f"`{path.name}`",
        f"`{about['medium']}`",
        f"{end:,}",
        ", ".join(str(step) for step in about["snapshots"]),
        f"{about['dtype']}, {change:+.1f} ± {error:.1f}",
        episodes_text(about["training_score"]),
        episodes_text(about["replayed_score"]),
        f"{about['observation_shift']:.2f}",
        f"`{sha256(path)}`",
    ]


def return_text(score: dict) -> str:
    return f"{score['mean']:.1f} ± {score['std']:.1f} ({score['episodes']} episodes)"


def episodes_text(score: dict) -> str:
    length, episodes = f"{score['length']:.1f}", score["episodes"]
    return f"{score['mean']:.1f} ± {score['std']:.1f}, length {length}, {episodes} episodes"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tables(folder: Path) -> dict[str, str]:
    """Return the tables of the page, by the name of their place."""
    policies, bundles = [], []
    for path in sorted(folder.glob("*.npz")):
        _, ends, about = read_weights(path)
        if ends:
            bundles.append(bundle_row(path, about, ends[-1]))
        else:
            policies.append(policy_row(path, about))
    return {
        "policies": markdown_table(POLICY_HEADER, policies),
        "bundles": markdown_table(BUNDLE_HEADER, bundles),
    }


def update_tables(folder: Path) -> None:
    """Renew the tables of the page."""
    for name, table in tables(folder).items():
        update_page(folder / "README.md", f"<!-- {name} -->", f"<!-- end of {name} -->", table)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    update_tables(args.folder)


if __name__ == "__main__":
    main()
