"""Tests of benchmarks/studies/mix: who learns from what, who acts with whom, what is stored.

python -m pytest tests/benchmarks/test_study_mix.py
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common import ROOT
from benchmarks.studies.mix import study
from benchmarks.studies.shared import half_interval, por, shown, summary

pytestmark = pytest.mark.usefixtures("isolated")
PAIRS = {  # the table of the study's header
    "main": ("D_o", "D_o"),
    "more": ("both", "both"),
    "mix_o": ("both", "D_o"),
    "mix_e": ("both", "D_e"),
    "extra": ("D_e", "D_e"),
}


@pytest.fixture(scope="module")
def files(hopper, tiny_hdf5, tmp_path_factory) -> Path:
    """Return a folder with D_o, D_e and, as one file, both. The first action tells whose a row is.

    D_o ends with rows of an unfinished episode, which `both` lacks.
    """
    folder = tmp_path_factory.mktemp("data")
    o, e = hopper(rows=150, seed=0), hopper(rows=350, seed=1)
    o["actions"][:, 0], e["actions"][:, 0] = 0.25, -0.75
    last = np.flatnonzero(o["terminals"] | o["timeouts"])[-1] + 1
    assert last < 150
    tiny_hdf5(folder / "o.hdf5", o)
    tiny_hdf5(folder / "e.hdf5", e)
    tiny_hdf5(folder / "both.hdf5", {k: np.concatenate([o[k][:last], e[k]]) for k in o})
    return folder


def make_args(files: Path, **options) -> study.Args:
    small = {"hidden": 16, "execute_hidden": 12, "batch_size": 20, "num_seeds": 2, "seed": 5}
    small |= {"num_updates": 8, "eval_every": 4, "eval_episodes": 1, "final_eval_episodes": 2}
    return study.Args(
        env="hopper-medium-v2",
        dataset_file=str(files / "o.hdf5"),
        more_env="hopper-medium-v2",
        more_file=str(files / "e.hdf5"),
        execution="eager",
        **small | options,
    )


@pytest.mark.parametrize("name, file", [("D_o", "o"), ("D_e", "e"), ("both", "both")])
def test_a_set_is_prepared_as_por_prepares_its_file(files, name, file):
    args = make_args(files)
    ours = study.prepare_data(study.por_args(args, name), *study.load_sets(args)[name])
    own = replace(study.por_args(args, name), dataset_file=str(files / f"{file}.hdf5"))
    expected = por.prepare_data(own, *por.load_dataset(own))
    assert ours.keys() == expected.keys()
    for key, column in expected.items():
        np.testing.assert_array_equal(ours[key], column, err_msg=key)


def test_whose_rows_a_set_has(files):
    sets = study.load_sets(make_args(files))
    marks = {name: set(data["actions"][:, 0].tolist()) for name, (data, _) in sets.items()}
    assert marks == {"D_o": {0.25}, "D_e": {-0.75}, "both": {0.25, -0.75}}
    sizes = {name: task.transitions for name, (_, task) in sets.items()}
    assert sizes["both"] == len(sets["both"][0]["rewards"]) < sizes["D_o"] + sizes["D_e"]
    assert len({task.fingerprint for _, task in sets.values()}) == 3


def test_rewards_of_a_maze_are_minus_one_and_zero(files):
    args = make_args(files)
    data, task = study.load_sets(args)["D_o"]
    raw = data["rewards"].copy()
    maze = replace(task, name="rebuilt/pointmaze/umaze-5k-v0")
    prepared = study.prepare_data(study.por_args(args, "D_o"), data, maze)
    np.testing.assert_array_equal(prepared["rewards"], raw[: len(prepared["rewards"])] - 1)
    np.testing.assert_array_equal(data["rewards"], raw)  # other sets hold the same rows


def test_settings():
    maze = study.por_args(study.Args(), "D_e")
    assert (maze.env, maze.guide, maze.tau) == ("rebuilt/pointmaze/umaze-noisy-100k-v0", *MAZE)
    given = study.por_args(study.Args(tau=0.6, layer_norm=True), "both")
    assert (given.tau, given.layer_norm, given.alpha) == (0.6, True, 10.0)
    hopper = study.Args(env="rebuilt/hopper/medium-20k-v0", more_env="rebuilt/hopper/expert-v0")
    assert [study.por_args(hopper, name).guide for name in study.SETS] == ["q"] * 3
    assert [study.por_args(hopper, name).alpha for name in study.SETS] == [50.0] * 3


MAZE = ("weighted", 0.9)


def test_a_pair_acts_with_one_guide_and_another_execute_policy():
    assert study.VARIANTS == PAIRS
    args = por.Args(hidden=8, execute_hidden=8, num_seeds=2, num_updates=1)
    task = por.Task("t", "s", "Hopper-v4", {}, 1, None, None, obs_dim=3, act_dim=2)
    one, other = (por.POR(por.apply_settings(args), task, "cpu") for _ in range(2))
    obs = torch.randn(2, 7, 3)
    with torch.no_grad():
        action = study.Pair(one, other).act(obs)
        goal = one.guide.net(obs)
        expected = other.execute.net(torch.cat([obs, goal], -1))
        assert torch.equal(action, expected)
        assert not torch.equal(action, one.act(obs)) and not torch.equal(action, other.act(obs))


@pytest.fixture
def run_study(files, monkeypatch, capsys):
    """Return a function that runs the study and returns its result."""

    def call(out: str = "out", **options) -> dict:
        args = make_args(files, out=Path(out), **options)
        monkeypatch.setattr(study.tyro, "cli", lambda *_, **__: args)
        monkeypatch.setattr(sys, "argv", ["mix", "--out", out])
        study.main()
        return json.loads(Path(out, "result.json").read_text())

    return call


def test_the_study_trains_pairs_and_stores(run_study, files):
    result = run_study()
    assert list(result["scores"]) == list(PAIRS)
    for mix in ("mix_o", "mix_e"):
        for other in ("main", "more"):
            gain = np.subtract(*(result["scores"][n]["per_agent"] for n in (mix, other)))
            assert result["gains"][f"{mix} - {other}"]["mean"] == pytest.approx(gain.mean())
    stored = json.loads(Path("out/D_e/result.json").read_text())
    assert stored["finished"] and stored["script"] == "por"
    # main, more and extra are what the three runs found at their end.
    for variant, name in (("main", "D_o"), ("more", "both"), ("extra", "D_e")):
        final = json.loads(Path("out", name, "result.json").read_text())["final"]
        np.testing.assert_allclose(result["scores"][variant]["per_agent"], final["scores"])
    assert Path("out/variants.png").read_bytes().startswith(b"\x89PNG")
    weights = [torch.load(f"out/{name}/checkpoint.pt")["agent"] for name in study.SETS]
    for name, value in weights[0].items():
        if "net" in name:
            assert not torch.equal(value, weights[1][name]), name


def test_a_stopped_study_goes_on_and_ends_alike(run_study, files, monkeypatch):
    whole = run_study("whole")
    save, calls = por.save, []

    def stop_after_the_ninth(run, folder):
        save(run, folder)
        calls.append(folder)
        if len(calls) == 9:  # five are the first run's
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(por, "save", stop_after_the_ninth)
        with pytest.raises(SystemExit, match="the same command goes on"):
            run_study("stopped")
    assert not Path("stopped/result.json").exists()
    stopped = json.loads(Path("stopped/D_e/result.json").read_text())
    assert (stopped["phase"], stopped["step"]) == (1, 4)
    assert run_study("stopped")["scores"] == whole["scores"]


def test_other_options_need_another_folder(run_study):
    run_study()
    with pytest.raises(SystemExit, match="other options"):
        run_study(tau=0.6)


def test_an_untrained_variant_is_like_the_others(files):
    """All three runs start from the same weights."""
    args = make_args(files)
    agents = []
    for name in study.SETS:
        torch.manual_seed(args.seed)
        task = study.load_sets(args)[name][1]
        agents.append(por.POR(study.por_args(args, name), task, "cpu").state_dict())
    for key, value in agents[0].items():
        assert all(torch.equal(value, other[key]) for other in agents[1:])


def test_bad_input_is_one_line(files, tiny_hdf5, pendulum, monkeypatch, capsys):
    tiny_hdf5(Path("pendulum.hdf5"), pendulum())
    for options, complaint in (
        ({"more_env": "Pendulum-v1", "more_file": "pendulum.hdf5"}, "of one environment"),
        ({"more_file": str(files / "o.hdf5")}, "hold the same data"),
        ({"run_dir": "runs/x"}, "--out names the folder"),
        ({"more_file": "absent.hdf5"}, "absent.hdf5"),
    ):
        args = make_args(files)
        changed = study.Args(**asdict(args) | options)
        monkeypatch.setattr(study.tyro, "cli", lambda *_, args=changed, **__: args)
        with pytest.raises(SystemExit) as stop:
            study.main()
        assert complaint in str(stop.value) and "\n" not in str(stop.value)
    assert not Path("runs").exists()


def test_the_interval_is_students():
    assert half_interval(np.arange(1.0, 6.0)) == pytest.approx(1.963, abs=0.001)
    assert half_interval(np.arange(100.0)) == pytest.approx(2.262 * 29.01 / 10, rel=1e-3)
    assert half_interval([3.0]) is None
    assert summary([1, None, 3]) == {
        "mean": None,
        "half_interval": None,
        "per_agent": [1.0, None, 3.0],
    }
    assert shown(summary([1.0, 2.0, 3.0]), 1) == "2.0 ± 2.5"
    assert shown(summary([4.0])) == "4.00" and shown(summary([None])) == "-"


def test_the_page_has_the_stored_numbers():
    """The stored result is of the first casting, which had another layout."""
    folder = ROOT / "benchmarks/studies"
    page = (folder / "README.md").read_text()
    stored = json.loads((folder / "mix/results/result.json").read_text())["final"]
    for name, (guide, execute) in PAIRS.items():
        returns = stored["variants"][name]["returns"]
        numbers = ", ".join(f"{x:.1f}" for x in returns)
        row = f"| {guide} | {execute} | {numbers} | {shown(summary(returns), 1)} |"
        assert row in page.replace("**", "")
    for gain in stored["gains"].values():
        assert f"{gain['mean']:.1f} ± {gain['half']:.1f}" in page
