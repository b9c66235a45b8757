"""Tests of benchmarks/studies/support: both worlds, what each method may do, what is stored.

python -m pytest tests/benchmarks/test_study_support.py
"""

import json
import sys

import numpy as np
import pytest

from benchmarks.studies.support import study

pytestmark = pytest.mark.usefixtures("isolated")


def test_chance_of_the_goal_is_exact():
    always_right = np.tile([0.0, 1.0], (7, 1))
    assert study.chance_of_goal(always_right, 3) == 1
    always_left = np.tile([1.0, 0.0], (7, 1))
    assert study.chance_of_goal(always_left, 3) == 0
    # Two cells on each side, right with probability p: by hand, over 40 steps of a random walk
    # with a wall, in which 20,000 played episodes agree.
    p, rng = 0.4, np.random.default_rng(0)
    cells = np.full(20_000, 2)
    for _ in range(40):
        moves = np.where(rng.random(len(cells)) < p, 1, -1)
        cells = np.where(cells == 4, 4, np.maximum(cells + moves, 0))
    exact = study.chance_of_goal(np.tile([1 - p, p], (5, 1)), 2)
    assert exact == pytest.approx((cells == 4).mean(), abs=0.015)


def test_the_data_go_right_only_from_the_start_on():
    counts = study.line_data(4, np.random.default_rng(0))
    assert (counts[:4, study.RIGHT] == 0).all()
    assert (counts[4:, study.RIGHT] > 0).all()
    assert (counts.sum(1) == study.VISITS).all()


def test_a_penalised_policy_is_the_best_for_its_penalty():
    """pi_b exp(Q / alpha) / Z maximises E Q - alpha KL among all policies of two actions."""
    q, clone = np.array([[0.2, 0.25]]), np.array([[0.9, 0.1]])
    found = study.line_policy("medium", q, clone, 0)[0]

    def objective(right):
        pi = np.array([1 - right, right])
        return (pi * q[0]).sum() - study.ALPHAS["medium"] * (pi * np.log(pi / clone[0])).sum()

    grid = np.linspace(0.001, 0.999, 999)
    best = grid[np.argmax([objective(right) for right in grid])]
    assert found[1] == pytest.approx(best, abs=0.002)


def test_only_the_support_constraint_ignores_a_tempting_untried_action():
    args = study.Args()
    counts = study.line_data(5, np.random.default_rng(0))
    table = np.zeros(counts.shape)
    table[3, study.RIGHT] = 50.0  # left of the start, never tried
    chances = {}
    for method in ("support", "naive", "generous"):
        policy = study.learn_line(method, counts, table, args)
        chances[method] = study.chance_of_goal(policy, 5)
    assert chances == {"support": 1, "naive": 0, "generous": 0}


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_tabular_bcq_knows_its_value_if_the_world_is_deterministic(slip):
    rng = np.random.default_rng(1)
    world = study.World(6, slip, rng)
    walks = [world.walk(rng) for _ in range(15)]
    table = rng.uniform(0, 1, (6, study.ROWS, 2))
    q, policy, seen = study.learn_tabular(world, walks, True, table, 0.9)
    true, leaves = study.judge_tabular(world, policy, seen, 0.9)
    start = study.ROWS // 2
    expected = q[0, start, policy[0, start]]
    if slip == 0:
        assert leaves == 0
        assert expected == pytest.approx(true, abs=1e-12)
        # the best of the walks' own ends, which the restricted world contains
        assert true >= 0.9**5 * max(world.pay[walk[-1][3]] for walk in walks) - 1e-12
    else:
        assert 0 < leaves < 1
        assert expected > true


def test_the_command_stores_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--num-seeds", "2", "--lengths", "2", "3"]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.BEGIN}\n{study.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["study", *words, "--page", str(page)])
    study.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["line"]["support"]["2"]["mean"] == 1
    assert (tmp_path / "out" / "support.png").stat().st_size > 10_000
    assert "| reaches G | 2 cells | 3 cells |" in page.read_text()
    assert "tabular BCQ" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--num-seeds", "0"], ["--lengths", "0"], ["--discount", "1"]])
def test_what_cannot_be_studied_is_refused(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit, match="must"):
        study.main()
