"""Parity of algorithms/dagger.py with imitation: how often the expert acts in each round.

python -m pytest tests/parity/test_parity_dagger.py
python -m tests.parity.test_parity_dagger CHECKOUT    # write golden/dagger.json anew
"""

import abc
import ast
import sys
from pathlib import Path

import pytest

import dagger
from tests.parity import harness

REPOSITORY = "https://github.com/HumanCompatibleAI/imitation"
COMMIT = "e5ef18806c449ca47153b494a02471c5e2ae3a14"
CASES = {
    "default": {"schedule": "linear", "beta_rounds": 15},
    "tuned": {"schedule": "exponential", "beta_decay": 0.7},
    "one round": {"schedule": "linear", "beta_rounds": 1},
    "clone": {"schedule": "exponential", "beta_decay": 1.0},
}
ROUNDS = 20


@pytest.mark.parametrize("name", CASES)
def test_the_expert_acts_as_often_as_in_imitation(name):
    theirs = harness.load_golden("dagger", CASES)["shares"][name]
    args = dagger.Args(**CASES[name])
    ours = harness.shorten([dagger.expert_share(args, number) for number in range(ROUNDS)])
    assert ours == pytest.approx(theirs, abs=1e-9)


def record(checkout: Path) -> None:
    """Write golden/dagger.json from their schedules alone, because the rest needs packages."""
    tree = ast.parse((checkout / "src/imitation/algorithms/dagger.py").read_text())
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name.endswith("BetaSchedule")
    ]
    theirs = {"abc": abc}
    exec(compile(tree, "dagger.py", "exec"), theirs)
    shares = {}
    for name, case in CASES.items():
        if case["schedule"] == "linear":
            schedule = theirs["LinearBetaSchedule"](case["beta_rounds"])
        else:
            schedule = theirs["ExponentialBetaSchedule"](case["beta_decay"])
        shares[name] = harness.shorten([schedule(number) for number in range(ROUNDS)])
    harness.write_golden("dagger", REPOSITORY, COMMIT, CASES, shares=shares)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
