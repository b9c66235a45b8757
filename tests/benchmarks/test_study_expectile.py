"""Tests of benchmarks/studies/expectile: expectiles, both worlds, what is stored.

python -m pytest tests/benchmarks/test_study_expectile.py
"""

import json
import sys

import numpy as np
import pytest

from benchmarks.studies.expectile import study

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize("tau", [0.05, 0.5, 0.8, 0.99])
def test_an_expectile_minimises_its_loss(tau):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=30), rng.integers(1, 5, 30)
    m = study.expectile(x, tau, w)

    def loss(m):
        side = np.where(x < m, 1 - tau, tau)
        return (w * side * (x - m) ** 2).sum()

    assert all(loss(m) <= loss(m + step) for step in (-0.1, -1e-3, 1e-3, 0.1))
    weighted = study.expectile(np.repeat(x, w), tau)
    assert m == pytest.approx(weighted)


def test_expectiles_by_hand():
    assert study.expectile(np.array([1.0, 2, 6]), 0.5) == pytest.approx(3)
    # 0 and 1: tau (1 - m) = (1 - tau) m, so m = tau
    assert study.expectile(np.array([0.0, 1]), 0.9) == pytest.approx(0.9)
    assert study.expectile(np.array([4.0]), 0.9) == 4
    assert study.expectile(np.array([0.0, 1, 5]), 1 - 1e-9) == pytest.approx(5, abs=1e-6)


def test_the_maze_by_hand():
    maze = study.Maze()
    value = maze.optimal_values()
    ones = np.ones((len(value), 4))
    steps = study.steps_to_goal(maze, ones, value)
    across = len(study.MAZE[0]) - 3
    assert steps == 2 * across + 3  # along the bottom, up, and back along the top
    assert value[maze.start] == pytest.approx(10 * 0.9 ** (steps - 1))
    assert maze.next[maze.start].tolist().count(maze.start) == 3  # walls on three sides


def test_a_tau_of_one_half_is_policy_evaluation():
    """Beside the solution of the linear system V = P (r + gamma V)."""
    maze = study.Maze()
    counts = maze.collect(np.random.default_rng(0))
    value = study.learn_values(maze, counts, 0.5)
    n = len(counts)
    matrix, reward = np.eye(n), np.zeros(n)
    for state, row in enumerate(counts):
        for action in np.flatnonzero(row):
            chance, end = row[action] / row.sum(), maze.next[state, action]
            if end == maze.goal:
                reward[state] += 10 * chance
            else:
                matrix[state, end] -= 0.9 * chance
    np.testing.assert_allclose(value, np.linalg.solve(matrix, reward), atol=1e-7)


def test_a_large_tau_comes_near_the_best_within_the_data():
    maze = study.Maze()
    counts = maze.collect(np.random.default_rng(0))
    errors = [
        np.abs(study.learn_values(maze, counts, tau) - maze.optimal_values()).max()
        for tau in (0.5, 0.9, 0.999)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    only_random = counts.copy()
    only_random[maze.start, 3] = 0  # nobody has left the start
    value = study.learn_values(maze, only_random, 0.999)
    assert value[maze.start] == pytest.approx(0, abs=1e-6)  # it asks for no action without data


def test_luck_fools_sarsa_alone():
    found = study.study_lucky(study.Args(num_seeds=3))["0.99"]
    assert found["sarsa_belief"]["mean"] > 0.8
    assert found["iql_belief"]["mean"] < 0.25
    assert found["sarsa_true"]["mean"] == pytest.approx(0.1)
    assert found["iql_true"]["mean"] == pytest.approx(0.6)


def test_the_command_stores_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.BEGIN}\n{study.END}\nafter\n")
    words = ["--num-seeds", "2", "--out", str(tmp_path / "out"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["study", *words])
    study.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(found["lucky"]) == {str(tau) for tau in study.TAUS}
    assert (tmp_path / "out" / "expectile.png").stat().st_size > 10_000
    assert "true optimal values" in page.read_text()
    assert "one-step policy evaluation" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["study", "--num-seeds", "0"])
    with pytest.raises(SystemExit, match="must be at least 1"):
        study.main()
