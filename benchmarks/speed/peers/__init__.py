"""Other people's code: one module for each project, read from a checkout and run unchanged.

Nothing of theirs is in this repository. A module has a list PEERS; each builds the update that one
turn of their training loop does: draw a batch from their buffer and train.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BATCH = 256  # rows of a timed update, ours and theirs; the default of most scripts
# A row of DT is a context of 20 steps; its authors' batch.
BATCHES = {"dt": 64}
# The folder of a checkout -> the module that knows its code. None imports more than NumPy here,
# because those in JAX run in an interpreter without PyTorch.
PROJECTS = {
    "CORL": "corl",
    "TD3_BC": "td3_bc",
    "SPOT": "spot",
    "POR": "por",
    "decision-transformer": "decision_transformer",
    "BCQ": "bcq",
    "TD3": "td3",
    "onestep-rl": "onestep_rl",
    "BEAR": "bear",
    "PLAS": "plas",
    "OfflineRL-Kit": "offlinerl_kit",
    "BAIL": "bail",
    "JAX-CORL": "jax_corl",
    "unifloral": "unifloral",
    "ReBRAC": "rebrac",
}


@dataclass
class Peer:
    """A piece of other people's code that has an update to compare with that of a script."""

    script: str  # ours
    repository: str
    commit: str
    folder: str  # where in the checkout the files are
    files: dict[str, str]  # file -> id of its content in that commit, as git ls-tree prints it
    timed: str  # in words, for the page
    build: Callable  # (load, rows, task, device) -> a function that does an update, or a JaxLoop
    jax: bool = False
    phase: str = "train"  # of our script, with which it is to be compared
    words: str = ""  # options without which our script does something else

    @property
    def name(self) -> str:
        """corl-team/CORL: iql.py"""
        return f"{self.repository}: {Path(next(iter(self.files))).name}"

    def version(self, checkout: Path) -> str:
        """Return the commit, and which files differ from it."""
        others = []
        for file, blob in self.files.items():
            path = checkout / self.folder / file
            if not path.is_file():
                sys.exit(f"{path} is missing; check out {self.repository} @ {self.commit[:7]}")
            content = path.read_bytes()
            if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob:
                others.append(file)
        note = f", but another {' and '.join(others)}" if others else ""
        return self.commit[:7] + note


def load_peers(project: str) -> list[Peer]:
    """Return the peers of a project."""
    return importlib.import_module(f"benchmarks.speed.peers.{PROJECTS[project]}").PEERS
