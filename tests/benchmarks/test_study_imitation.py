"""Tests of benchmarks/studies/imitation: each world's known answers, what is stored.

python -m pytest tests/benchmarks/test_study_imitation.py
"""

import json
import sys

import numpy as np
import pytest

from benchmarks.studies.imitation import study

pytestmark = pytest.mark.usefixtures("isolated")


def test_the_cost_of_the_rope_is_that_of_played_episodes():
    rng = np.random.default_rng(0)
    known = np.array([rng.random(study.CONTEXTS) < 0.9, rng.random(study.CONTEXTS) < 0.4])
    costs = []
    for _ in range(3_000):
        off, cost = 0, 0
        for context in rng.integers(study.CONTEXTS, size=20):
            off = 0 if known[off, context] else 1
            cost += off
        costs.append(cost)
    error = np.std(costs) / len(costs) ** 0.5
    assert study.cost_of_rope(known, 20) == pytest.approx(np.mean(costs), abs=4 * error)


def test_cloning_falls_for_good_and_dagger_has_learned_to_climb():
    rng = np.random.default_rng(0)
    cloned, learned = study.clone_rope(rng), study.dagger_rope(40, rng)
    assert not cloned[1].any()
    assert learned[1].mean() > 0.2
    falls = 1 - cloned[0].mean()
    assert 0 < falls < 0.01
    # sum over t of 1 - (1 - falls)^t
    assert study.cost_of_rope(cloned, 3) == pytest.approx(6 * falls - 4 * falls**2 + falls**3)


def test_the_exponents_are_those_of_the_theory():
    found = study.study_rope(study.Args(num_seeds=4))
    assert found["cloning"]["exponent"]["mean"] == pytest.approx(2, abs=0.15)
    assert found["DAgger"]["exponent"]["mean"] == pytest.approx(1, abs=0.25)


def straight(monkeypatch) -> None:
    """Let the track have no bend."""
    monkeypatch.setattr(study, "curvature", np.zeros_like)


def test_the_track_closes_and_is_an_oval():
    places = np.array([0, study.LAP - 1e-9, study.LAP / 4, study.LAP / 2, 3 * study.LAP / 4])
    begin, end, right, top, left = study.on_the_map(places, np.zeros(5)).T
    np.testing.assert_allclose(begin, end, atol=0.05)
    np.testing.assert_allclose(begin + top, right + left, atol=0.05)  # the same centre
    # A side lies to the left of the way, which begins along x and after a quarter is along y.
    np.testing.assert_allclose(study.on_the_map(0.0, 0.5), [0, 0.5], atol=1e-6)
    np.testing.assert_allclose(study.on_the_map(study.LAP / 4, 0.5) - right, [-0.5, 0], atol=1e-3)
    # The map bends as much as the track.
    grid = np.linspace(0, study.LAP, 601)
    x, y = np.diff(study.on_the_map(grid, np.zeros(601)))
    turned = np.diff(np.unwrap(np.arctan2(y, x))) / np.diff(grid)[:-1]
    np.testing.assert_allclose(turned, study.curvature(grid[1:-1]), atol=0.01)


def test_an_expert_without_an_error_stays_in_the_middle():
    rng = np.random.default_rng(0)
    seen, places, off = study.drive(study.steer_as_expert, (2, 3), rng, 0, False)
    assert seen.shape == (2, 3, study.CAR_STEPS, 3) and not off.any()
    np.testing.assert_allclose(seen[..., :2], 0, atol=1e-9)
    # Two laps: each car ends a step before its beginning.
    gaps = (places[..., 0] - places[..., -1]) % study.LAP
    np.testing.assert_allclose(gaps, study.WAY)


def test_an_error_that_nobody_corrects_grows_as_the_square_of_time(monkeypatch):
    straight(monkeypatch)
    rng = np.random.default_rng(0)
    seen, places, off = study.drive(lambda seen: 2 * seen[..., 2], (1, 9), rng, 0.005, False)
    distance = np.abs(seen[0, :, :, 0])
    t = np.arange(1, 30)
    # The angle grows by 0.5 * 0.005 a step, and the distance by 0.5 times the sum of the angles.
    expected = 0.5 * 0.5 * 0.005 * t * (t - 1) / 2
    np.testing.assert_allclose(distance[:, t], np.tile(expected, (9, 1)), rtol=1e-3)
    assert off.all() and np.all(distance[:, -1] == study.WIDTH)
    assert {-1, 1} == set(np.sign(seen[0, :, -1, 0]))
    assert np.all(places[..., -1] == places[..., -100])  # they stay where they left the track


def test_a_car_that_does_not_steer_leaves_a_circle_on_a_tangent(monkeypatch):
    """With small steps, by Pythagoras: where the middle has the radius 10."""
    monkeypatch.setattr(study, "curvature", lambda place: np.full_like(place, 0.1))
    monkeypatch.setattr(study, "WAY", 0.01)
    monkeypatch.setattr(study, "CAR_STEPS", 450)
    rng = np.random.default_rng(0)
    seen, _, _ = study.drive(lambda seen: 0 * seen[..., 0], (1, 1), rng, 0, False)
    way = 0.01 * np.arange(450)
    np.testing.assert_allclose(seen[0, 0, :, 0], 10 - np.hypot(10, way), atol=0.01)


def test_the_expert_stays_where_its_steering_makes_up_for_the_error(monkeypatch):
    straight(monkeypatch)
    rng = np.random.default_rng(0)
    seen, _, off = study.drive(study.steer_as_expert, (1, 9), rng, 0.005, False)
    np.testing.assert_allclose(np.abs(seen[0, :, -1, 0]), 0.005 / 0.15, rtol=1e-3)
    assert not off.any()


def test_cars_of_the_data_are_put_back_to_the_middle(monkeypatch):
    straight(monkeypatch)
    rng = np.random.default_rng(0)
    seen, places, off = study.drive(lambda seen: 2 * seen[..., 2], (1, 3), rng, 0.005, True)
    distance = np.abs(seen[0, :, :, 0])
    assert off.all() and distance.max() <= study.WIDTH
    back = np.flatnonzero(np.diff(distance[0]) < -0.5) + 1
    assert len(back) >= 3 and np.all(seen[0, 0, back, :2] == 0)
    assert np.all(places[0, 0, 1:] != places[0, 0, :-1])


def test_cloning_leaves_the_track_and_dagger_does_not():
    found, ways = study.study_car(study.Args(num_seeds=3, num_updates=600))
    for name in ("cloning", "cloning, ten times the data"):
        assert found[name]["error"]["mean"] < 0.01
        assert found[name]["stays"]["mean"] < 0.7
        assert found[name]["distances"][80]["mean"] > 0.3
    for name in ("DAgger", "the expert"):
        assert found[name]["stays"]["mean"] == 1
        assert found[name]["distances"][240]["mean"] < 0.1
    assert found["the expert"]["error"]["mean"] == 0
    assert ways["cloning"]["side"].shape == (3, study.CAR_STEPS)


def test_a_table_that_always_goes_left_finds_half_of_the_doors():
    counts = np.zeros((2 * study.DOOR + 1, 3, 2))
    counts[:, :, 0] = 1
    rate, labels = study.play_doors(counts, False, np.random.default_rng(0), labels=True)
    assert rate == pytest.approx(0.5, abs=0.1)
    assert labels[:, 1:].sum() == 0  # without a memory
    # The expert's label is the open door: at the left end, behind which it is locked, "right".
    assert labels[0, 0, 0] == 0 and labels[0, 0, 1] > 0


def test_a_memory_of_the_locked_door_finds_all():
    counts = np.zeros((2 * study.DOOR + 1, 3, 2))
    counts[:, 0, 0] = 1  # first to the left
    counts[:, 1, 1] = 1  # if that is locked, to the right
    rate, _ = study.play_doors(counts, True, np.random.default_rng(0), labels=False)
    assert rate == 1


def test_stitching_by_hand():
    found = study.study_stitching(0.9)
    cloning, best = found["inf"], found["0.01"]
    # Cloning turns off to 6 at 5 or to 4 at 3. From 1, half go to 2 and half to 4, and from 4 all
    # to 5. Let p and q be the chances of the goal from 3 and from 5: p = 1/2 + q/2, q = p/2.
    assert cloning["reaches_goal"] == pytest.approx((2 / 3) / 2 + (1 / 3) / 2)
    assert best["from_3"][7] == pytest.approx(1)
    assert (best["reaches_goal"], best["steps"]) == (pytest.approx(1), pytest.approx(5, abs=1e-3))
    # lambda 0.3: the advantage of 4 at 3, by hand: 3 -> 4 -> 5 -> 2 -> 3 costs four steps
    to_4, to_7 = 0.9 * 0.9**5, 0.9**2
    ratio = np.exp((to_4 - to_7) / 0.3)
    assert found["0.3"]["from_3"][4] == pytest.approx(ratio / (1 + ratio))


def test_the_command_stores_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.BEGIN}\n{study.END}\nafter\n")
    words = ["--num-seeds", "2", "--num-clones", "2", "--num-updates", "5"]
    words += ["--out", str(tmp_path / "out"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["study", *words])
    study.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(found["modes"]) == set(study.POLICIES)
    for name in ("imitation.png", "car.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    assert "| DAgger with a memory |" in page.read_text()
    assert "| cloning, ten times the data |" in page.read_text()
    assert "grows as H" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--num-seeds", "0"], ["--num-updates", "0"], ["--discount", "1"]]
)
def test_what_cannot_be_studied_is_refused(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit, match="must"):
        study.main()
