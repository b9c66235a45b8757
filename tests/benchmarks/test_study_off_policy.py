"""Tests of benchmarks/studies/off_policy: closed forms, what is stored.

python -m pytest tests/benchmarks/test_study_off_policy.py
"""

import json
import sys

import numpy as np
import pytest

from benchmarks.studies.off_policy import study

pytestmark = pytest.mark.usefixtures("isolated")


def test_ordinary_weights_have_their_closed_variance():
    """For one step: Var(rho R) / n with R = 1 for the first action, 0 for the second."""
    found = study.study_weights(study.Args())
    second_moment = study.DATA * (study.POLICY / study.DATA) ** 2
    error = ((second_moment - study.POLICY**2) / study.EPISODES) ** 0.5
    assert found["1"]["ordinary"] == pytest.approx(error, rel=0.1)
    # The effective share of long episodes: (E rho)^2 / E rho^2 per step
    share = 1 / (second_moment + (1 - study.POLICY) ** 2 / (1 - study.DATA))
    assert found["2"]["effective"] == pytest.approx(study.EPISODES * share**2, rel=0.05)
    assert found["50"]["ordinary"] > 10 * found["50"]["weighted"]


def test_only_the_whole_triad_diverges():
    found = study.study_triad()
    ends = {form: curve[-1] for form, curve in found.items()}
    assert ends.pop("all three") > 1e6
    assert all(end < 0.1 * found[form][0] for form, end in ends.items())


def test_bairds_features_represent_the_truth():
    features = study.baird_features()
    assert np.linalg.matrix_rank(features) == 7  # eight weights for seven values
    start = np.array([1, 1, 1, 1, 1, 1, 10, 1.0])
    np.testing.assert_array_equal(features @ start, [3, 3, 3, 3, 3, 3, 12])


def test_awr_rests_at_the_closed_form_and_the_policy_gradient_runs():
    found = study.study_gradient(study.Args())
    ends = np.array(found["paths"]["AWR"])[:, -1]
    np.testing.assert_allclose(ends, found["goal"]["per_agent"], atol=1e-3)
    assert found["goal"]["mean"] == pytest.approx(found["closed_form"], abs=0.03)
    running = np.array(found["paths"]["policy gradient"])
    steps = np.diff(running, axis=1)
    np.testing.assert_allclose(steps, steps[:, :1].repeat(study.STEPS, 1))  # it never slows down
    assert (running[:, -1] > 5).all()


def test_the_command_stores_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.BEGIN}\n{study.END}\nafter\n")
    words = ["--num-seeds", "2", "--out", str(tmp_path / "out"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["study", *words])
    study.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(found) >= {"weights", "triad", "gradient"}
    assert (tmp_path / "out" / "off_policy.png").stat().st_size > 10_000
    assert "| AWR |" in page.read_text()
    assert "Baird" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["study", "--num-seeds", "0"])
    with pytest.raises(SystemExit, match="must be at least 1"):
        study.main()
