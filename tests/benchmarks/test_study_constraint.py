"""Tests of benchmarks/studies/constraint: the constrained maximum, known values, what is stored.

python -m pytest tests/benchmarks/test_study_constraint.py
"""

import json
import sys

import numpy as np
import pytest

from benchmarks.studies.constraint import study

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize("epsilon", [0.0, 0.02, 0.3, np.inf])
def test_the_policy_is_the_best_within_its_bound(epsilon):
    """Among all policies of two actions, found on a grid."""
    q, b = np.array([1.0, 3.0]), np.array([0.8, 0.2])
    found = study.constrained(q, np.log(b), epsilon)
    second = np.linspace(1e-9, 1 - 1e-9, 100_001)
    grid = np.stack([1 - second, second], axis=1)
    divergence = (grid * np.log(grid / b)).sum(1)
    allowed = second[divergence <= epsilon + 1e-9]
    assert found[1] == pytest.approx(allowed.max(), abs=1e-4)


def test_values_of_a_world_are_those_of_its_steps():
    rng = np.random.default_rng(0)
    world = study.World(rng)
    np.testing.assert_allclose(world.chances.sum(2), 1)
    policy = rng.dirichlet(np.ones(study.ACTIONS), study.STATES)
    v = np.zeros(study.STATES)
    for _ in range(600):
        v = (policy * (world.rewards + study.GAMMA * world.chances @ v)).sum(1)
    assert world.value(policy) == pytest.approx(v.mean())
    assert world.value(world.behavior) < world.best_value() < 1 / (1 - study.GAMMA)


def test_data_are_steps_of_the_behaviour_policy():
    world = study.World(np.random.default_rng(1))
    counts = world.data(40_000, np.random.default_rng(2))
    assert counts.sum() == 40_000 and (counts[world.chances == 0] == 0).all()
    visits = counts.sum(2)
    shares = visits / visits.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, world.behavior, atol=0.06)
    often = visits > 2_000
    np.testing.assert_allclose(
        (counts / np.maximum(visits, 1)[..., None])[often], world.chances[often], atol=0.04
    )


def test_with_all_knowledge_the_naive_form_is_best_and_the_bound_zero_is_the_clone():
    """Counts in proportion to the chances are an exact model."""
    world = study.World(np.random.default_rng(3))
    counts = 1e9 * world.chances * world.behavior[..., None]
    table = np.zeros((1, study.STATES, study.ACTIONS))
    policies, beliefs = study.learn(counts[None], world.rewards[None], table)
    share = 1 - study.GAMMA**study.SWEEPS  # of the values that the sweeps have found
    assert world.value(policies[0, 0]) == pytest.approx(world.value(world.behavior), rel=1e-3)
    assert beliefs[0, 0] == pytest.approx(world.value(world.behavior), rel=2 * (1 - share))
    assert world.value(policies[0, -1]) == pytest.approx(world.best_value(), rel=1e-3)
    true = [world.value(policy) for policy in policies[0]]
    assert true == sorted(true)


def test_entries_without_data_mislead_the_naive_form_only():
    """The data only know the first action; the others keep a large initial value."""
    world = study.World(np.random.default_rng(4))
    world.rewards[:, 1:] = 0
    counts = np.zeros((1, study.STATES, study.ACTIONS, study.STATES))
    counts[0, :, 0] = 1e6 * world.chances[:, 0]
    table = np.full((1, study.STATES, study.ACTIONS), 20.0)
    policies, beliefs = study.learn(counts, world.rewards[None], table)
    assert beliefs[0, -1] == pytest.approx(20)
    assert policies[0, 0, :, 0].min() > 0.99 and policies[0, -1, :, 0].max() < 1e-6


def test_the_command_stores_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.BEGIN}\n{study.END}\nafter\n")
    words = ["--num-seeds", "2", "--sizes", "50", "80", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["study", *words, "--page", str(page)])
    study.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert len(found["50"]["bounds"]) == len(found["80"]["bounds"]) == len(study.EPSILONS)
    assert (tmp_path / "out" / "constraint.png").stat().st_size > 10_000
    assert "| naive |" in page.read_text() and "50 steps" in capsys.readouterr().out
    for words in (["--num-seeds", "0"], ["--sizes", "0"]):
        monkeypatch.setattr(sys, "argv", ["study", *words])
        with pytest.raises(SystemExit, match="must be at least 1"):
            study.main()
