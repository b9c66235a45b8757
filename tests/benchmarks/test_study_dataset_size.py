"""Tests of benchmarks/studies/dataset_size: the expert, its data, what is stored.

python -m pytest tests/benchmarks/test_study_dataset_size.py
"""

import json
import sys

import numpy as np
import pytest

from benchmarks.studies.dataset_size import study

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def task():
    return study.sac.make_task(study.ENV_ID, "", study.ENV_ID)


def returns(columns: dict) -> np.ndarray:
    return columns["rewards"].reshape(-1, study.EPISODE).sum(1)


def test_the_expert_holds_the_pendulum_and_random_actions_do_not(task):
    by_expert = study.make_data(task, 4_000, seed=0)
    at_random = study.make_data(task, 4_000, seed=0, uniform=True)
    assert returns(by_expert).mean() > -250 and returns(at_random).mean() < -900
    held = by_expert["observations"].reshape(-1, study.EPISODE, 3)[:, -50:, 0]
    assert (held > 0.95).all()  # the cosine of the angle
    assert 0.05 < np.abs(by_expert["actions"][150:200]).mean() < 0.3  # noise, since it stands


def test_rows_follow_each_other_within_an_episode(task):
    columns = study.make_data(task, 600, seed=3)
    same = (columns["next_observations"][:-1] == columns["observations"][1:]).all(1)
    assert np.flatnonzero(~same).tolist() == [199, 399]
    assert columns["terminals"].sum() == 0 and np.abs(columns["actions"]).max() <= 1
    # Half of the largest torque is an action of 0.5: the environment's own reward tells it.
    obs, action = columns["observations"], 2 * columns["actions"][:, 0]
    angle = np.arctan2(obs[:, 1], obs[:, 0])
    cost = angle**2 + 0.1 * obs[:, 2] ** 2 + 0.001 * action**2
    np.testing.assert_allclose(columns["rewards"], -cost, atol=1e-4)


def test_the_value_of_the_data_is_a_discounted_sum():
    rewards = np.zeros(2 * study.EPISODE)
    rewards[150] = -1.0  # in the first of two episodes
    expected = -sum(study.DISCOUNT ** (150 - t) for t in range(100)) / 200
    assert study.discounted_return(rewards) == pytest.approx(expected)


def test_the_command_stores_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.BEGIN}\n{study.END}\nafter\n")
    words = ["--num-seeds", "2", "--sizes", "200", "400", "--random-size", "200", "--episodes", "1"]
    words += ["--num-updates", "5", "--eval-every", "3", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["study", *words, "--page", str(page)])
    study.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    for name in ("expert, 200", "expert, 400", "random, 200"):
        assert found[name]["updates"] == [3, 5] and np.shape(found[name]["values"]) == (2, 2)
    assert (tmp_path / "out" / "dataset_size.png").stat().st_size > 10_000
    assert "| expert, 400 |" in page.read_text() and "random, 200" in capsys.readouterr().out
    for words, match in ((["--num-seeds", "0"], "at least 1"), (["--sizes", "100"], "200, an")):
        monkeypatch.setattr(sys, "argv", ["study", *words])
        with pytest.raises(SystemExit, match=match):
            study.main()
