"""Behaviour policies: chosen among the snapshots of a training, bundled, and written down."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common import load_script
from benchmarks.datasets import (
    behavior_page,
    bundle_replay,
    collect,
    policies,
    recipes,
    rollout,
    select_behavior,
    trainings,
)
from benchmarks.datasets.measure import Score

RANDOM = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny online run of sac.py with two agents, in its folder."""
    rollout.quiet()
    sac = load_script("sac")
    args = sac.Args(
        env="Hopper-v4",
        seed=5,
        num_seeds=2,
        random_steps=RANDOM,
        num_updates=600,
        snapshot_every=100,
        batch_size=4,
        hidden=16,
        eval_every=600,
        eval_episodes=1,
        final_eval_episodes=1,
        run_dir=str(tmp_path_factory.mktemp("runs") / "sac-hopper"),
    )
    run = sac.start_run(args)
    sac.train(run)
    return run


@pytest.fixture(scope="module")
def folder(run) -> Path:
    return Path(run.args.run_dir)


# --------------------------------------------------------------------------------------------------
# What a run of sac.py holds
# --------------------------------------------------------------------------------------------------


def test_a_training_of_each_agent(run, folder, monkeypatch):
    """Its steps, policies and replay buffer are those of the run."""
    found = trainings.load_trainings(folder, "Hopper-v4")
    assert [training.name for training in found] == [f"{folder}, agent 0", f"{folder}, agent 1"]
    obs, noise = torch.randn(2, 20, 11), torch.randn(2, 20, 3)
    monkeypatch.setattr(torch, "randn_like", lambda mean: noise)
    with torch.no_grad():
        expected = run.agent.explore(obs).numpy()
    columns = run.buffer.columns
    for n, training in enumerate(found):
        assert list(training.snapshots) == [400, 500, 600, 700, 800, 900]
        policy = policies.SacPolicy(training.snapshots[900])
        np.testing.assert_allclose(policy(obs[n].numpy(), noise[n].numpy()), expected[n], atol=1e-5)
        buffer = training.buffer()
        for key in buffer:
            own = columns[key][RANDOM + 600 * n : RANDOM + 600 * (n + 1)]
            np.testing.assert_array_equal(buffer[key][:RANDOM], columns[key][:RANDOM])
            np.testing.assert_array_equal(buffer[key][RANDOM:], own)
        command = training.command(700)
        assert command.startswith("python algorithms/sac.py --env Hopper-v4 --seed 5 --num-seeds 2")
        assert command.endswith("--num-updates 400 --run-dir runs/sac-hopper")
        assert "--random-steps 300" in command and "resume" not in command


class Attack:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_nothing_in_a_run_is_executed(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "copy")
    for path in (Path("copy/snapshots/300.pt"), Path("copy/checkpoint.pt")):
        torch.save({"net.0.weight": Attack()}, path)
        with pytest.raises(SystemExit, match=f"{path.name} (is damaged|cannot be read)"):
            trainings.load_trainings(Path("copy"), "Hopper-v4")
        path.write_bytes(pickle.dumps(Attack(), protocol=2))
        with pytest.raises(SystemExit, match=f"{path.name} (is damaged|cannot be read)"):
            trainings.load_trainings(Path("copy"), "Hopper-v4")
    assert not Path("made").exists()


def test_bad_folders(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no checkpoint in nowhere"):
        trainings.load_trainings(Path("nowhere"), "Hopper-v4")
    with pytest.raises(SystemExit, match="trained on Hopper-v4, not on Walker2d-v4"):
        trainings.load_trainings(folder, "Walker2d-v4")
    shutil.copytree(folder, "copy")
    shutil.rmtree("copy/snapshots")
    with pytest.raises(SystemExit, match="no snapshots"):
        trainings.load_trainings(Path("copy"), "Hopper-v4")


@pytest.fixture(params=["td3", "ddpg"])
def noisy_run(request, tmp_path):
    """A tiny online run of td3.py or ddpg.py with two agents."""
    rollout.quiet()
    script = load_script(request.param)
    options = {"env": "Hopper-v4", "seed": 5, "num_seeds": 2, "random_steps": 40, "hidden": 16}
    options |= {"num_updates": 30, "eval_every": 30, "snapshot_every": 10, "batch_size": 4}
    options |= {"exploration_noise": 0.3, "eval_episodes": 1, "final_eval_episodes": 1}
    run = script.start_run(script.Args(**options, run_dir=str(tmp_path / "run")))
    script.train(run)
    return run


def test_snapshots_of_deterministic_policies_act_with_the_noise_of_their_training(
    noisy_run, page, monkeypatch
):
    name = type(noisy_run.agent).__name__.lower()
    folder = Path(noisy_run.args.run_dir)
    found = trainings.load_trainings(folder, "Hopper-v4")
    obs, noise = torch.randn(2, 20, 11), 0.3 * torch.randn(2, 20, 3)
    with torch.no_grad():
        expected = (noisy_run.agent.act(obs) + noise).clamp(-1, 1).numpy()
    for n, training in enumerate(found):
        assert list(training.snapshots) == [50, 60, 70]
        policy = policies.make_policy(training.snapshots[70], np.full(3, -1.0), np.full(3, 1.0))
        np.testing.assert_allclose(policy(obs[n].numpy(), noise[n].numpy()), expected[n], atol=1e-5)
        draw = policy.draw(np.random.default_rng(0), 5_000)
        assert draw.std() == pytest.approx(0.3, rel=0.05)
        assert training.command(60).startswith(f"python algorithms/{name}.py --env Hopper-v4")
        assert len(training.buffer()["rewards"]) == 40 + 30

    monkeypatch.setattr(select_behavior, "measure_policies", measured_by({(1, 60): 30.0}))
    select(folder, page.with_name("hopper-noisy.npz"))
    ((policy, _),), about = policies.load_behavior("hopper-noisy", "Hopper-v4", page.parent)
    words = "with Gaussian noise of 0.3 times half the range of an action"
    assert about["policy"] == f"{name.upper()} (hopper-noisy), {words}"
    assert (about["training_agent"], about["step"], policy.noise) == (1, 60, np.float32(0.3))
    wanted = policies.make_policy(found[1].snapshots[60], np.full(3, -1.0), np.full(3, 1.0))
    rows = obs[0].numpy()
    np.testing.assert_array_equal(policy(rows, noise[0].numpy()), wanted(rows, noise[0].numpy()))


def test_runs_of_other_scripts_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "copy")
    result = json.loads(Path("copy/result.json").read_text())
    Path("copy/result.json").write_text(json.dumps(result | {"script": "ppo"}))
    with pytest.raises(SystemExit, match="copy is a run of ppo.py; it must be one of sac.py or"):
        trainings.load_trainings(Path("copy"), "Hopper-v4")


# --------------------------------------------------------------------------------------------------
# Choosing
# --------------------------------------------------------------------------------------------------


def test_choice():
    def score(mean, length):
        return Score(mean, 1.0, length, 100)

    scores = {"a": score(100, 30), "b": score(103, 40), "c": score(120, 50)}
    assert select_behavior.choose(scores, 100, None, 0.05) == "a"
    assert select_behavior.choose(scores, 100, 50, 0.05) == "b"
    assert select_behavior.choose(scores, 200, 30, 0.05) == "c"


def measured_by(scores: dict):
    """Stands for measure_policies: scores of some policies, far off for the others."""

    def measure(env_id, measured, seed, episodes, workers):
        return {key: Score(scores.get(key, 1e4), 1.0, 30.0, episodes) for key in measured}

    return measure


@pytest.fixture
def page(tmp_path) -> Path:
    """A page beside the weight files, with places for its tables."""
    path = tmp_path / "behavior" / "README.md"
    path.parent.mkdir()
    path.write_text(
        "head\n<!-- policies -->\n<!-- end of policies -->\n<!-- bundles -->\n"
        "<!-- end of bundles -->\n"
    )
    return path


def select(folder: Path, out: Path, **options) -> None:
    options = {"target": 30.0, "episodes": 3, "quick_episodes": 2, "workers": 1} | options
    select_behavior.select(select_behavior.Args(runs=(folder,), out=out, **options))


def test_select(folder, page, monkeypatch, capsys):
    """From a run to a weight file that collect.py reads, and its row on the page."""
    scores = {(0, 700): 29.0, (1, 700): 31.0, (1, 800): 40.0}
    monkeypatch.setattr(select_behavior, "measure_policies", measured_by(scores))
    out = page.with_name("hopper-medium.npz")
    for _ in range(2):  # the second time renews the row
        select(folder, out, finalists=2)
    assert "selection score" in capsys.readouterr().out
    (weights,), _, about = policies.read_weights(out)
    assert (about["step"], about["training_seed"], about["training_agent"]) == (700, 5, 0)
    first, _ = trainings.load_trainings(folder, "Hopper-v4")
    for name, array in first.snapshots[700].items():
        np.testing.assert_array_equal(weights[name], array)
    (row,) = [line for line in page.read_text().splitlines() if "hopper-medium.npz" in line]
    assert hashlib.sha256(out.read_bytes()).hexdigest() in row and "29.0 ± 1.0" in row
    stages, known = policies.load_behavior("hopper-medium", "Hopper-v4", out.parent)
    assert len(stages) == 1 and known["step"] == 700


def test_nothing_is_written_if_no_snapshot_is_good(folder, page, monkeypatch):
    monkeypatch.setattr(select_behavior, "measure_policies", measured_by({}))
    with pytest.raises(SystemExit, match="nothing was written"):
        select(folder, page.with_name("hopper-medium.npz"))
    assert [path.name for path in page.parent.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    "options, match",
    [
        ({"out": Path("a.txt")}, "must end in .npz"),
        ({"target": 0.0}, "--target 0"),
        ({"episodes": 0}, "--episodes 0"),
        ({"replay_steps": 9, "out": Path("a.npz")}, "-medium.npz"),
        ({"env_id": "Walker2d-v4"}, "trained on Hopper-v4"),
    ],
)
def test_bad_input(folder, options, match):
    with pytest.raises(SystemExit, match=match):
        select(folder, **{"out": Path("a-medium.npz")} | options)


# --------------------------------------------------------------------------------------------------
# Bundles
# --------------------------------------------------------------------------------------------------


def test_stretches():
    ends, candidates = bundle_replay.stretches([*range(11, 82)], 10, 81, 10, 3)
    assert ends == [10, 17, 24, 31, 38, 46, 53, 60, 67, 74, 81]
    assert candidates[0] == [13, 14, 12] and candidates[4] == [42, 41, 43]
    # A stretch without a snapshot takes the nearest, a short one has fewer.
    ends, candidates = bundle_replay.stretches([20, 30, 31], 10, 34, 3, 5)
    assert ends == [10, 18, 26, 34] and candidates == [[20], [20], [30, 31]]


def test_episodes_of_a_buffer():
    """Episodes of 3 steps (a fall), 2 (cut: the next row begins elsewhere) and an open one."""
    buffer = {"observations": [], "rewards": [], "terminals": [], "next_observations": []}
    for first, length, fall in ((0.0, 3, True), (10.0, 2, False), (20.0, 2, False)):
        for k in range(length):
            buffer["observations"].append([first + k])
            buffer["rewards"].append(1.0 + k)
            buffer["terminals"].append(float(fall and k == length - 1))
            buffer["next_observations"].append([first + k + 1])
    buffer = {key: np.array(column, np.float32) for key, column in buffer.items()}
    returns, lengths, first = bundle_replay.buffer_episodes(buffer)
    assert returns.tolist() == [6.0, 3.0] and lengths.tolist() == [3, 2]
    assert first.tolist() == [0, 3]


@pytest.fixture
def medium(folder, page, monkeypatch) -> Path:
    """Medium, reached by agent 1 at step 700."""
    monkeypatch.setattr(select_behavior, "measure_policies", measured_by({(1, 700): 30.0}))
    out = page.with_name("hopper-medium.npz")
    select(folder, out)
    return out


@pytest.mark.slow
def test_a_bundle_and_its_dataset(folder, medium, tmp_path, monkeypatch, capsys):
    """The bundle is of agent 1, and collect.py plays it again."""
    args = bundle_replay.Args(folder, medium, 800, snapshots=3, episodes=3, workers=1)
    bundle_replay.bundle(args)
    assert "played again" in capsys.readouterr().out
    bundle = medium.with_name("hopper-medium-replay.npz")
    weights, ends, about = policies.read_weights(bundle)
    assert ends == [300, 433, 567, 700] and about["medium_step"] == 700
    assert (about["training_seed"], about["training_agent"]) == (5, 1)
    _, second = trainings.load_trainings(folder, "Hopper-v4")
    for arrays, step, first, last in zip(weights, about["snapshots"], ends, ends[1:], strict=False):
        assert first < step <= last
        for name, array in second.snapshots[step].items():
            np.testing.assert_array_equal(arrays[name], array.astype(about["dtype"]))
    page = medium.with_name("README.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{bundle.name}` |")]
    assert hashlib.sha256(bundle.read_bytes()).hexdigest() in row

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    options = {"behavior_dir": medium.parent, "shard_steps": 200, "workers": 1}
    metadata = collect.collect(collect.Args("hopper-medium-replay", **options))
    assert metadata["dataset_id"] == "rebuilt/hopper/medium-replay-700-v0"
    assert metadata["behavior"]["last_step"] == 700 == metadata["total_steps"]
    recipe = recipes.RECIPES["hopper-medium-replay"]
    assert recipes.comparable(recipe, metadata) is not None
    assert recipes.comparable(recipe, metadata | {"total_steps": 500}) is None
    with pytest.raises(SystemExit, match="up to its step 700"):
        collect.collect(collect.Args("hopper-medium-replay", steps=701, **options))
    # The first stage acts at random, as the learner did.
    stages, _ = collect.load_stages(recipe, "hopper-medium-replay", medium.parent)
    assert [stage.end for stage in stages] == ends
    assert isinstance(stages[0].collector.args[1], policies.UniformPolicy)


def test_the_snapshot_that_did_as_the_learner_is_chosen(folder, medium, monkeypatch):
    """One candidate of each stretch is given the return of the true buffer."""
    args = bundle_replay.Args(folder, medium, 700, snapshots=2)
    (weights,), _, about = policies.read_weights(medium)
    bundle = bundle_replay.plan_bundle(args, weights, about)
    assert bundle.ends == [300, 500, 700] and bundle.candidates == [[400, 500], [600, 700]]
    returns, _, first = bundle_replay.buffer_episodes(bundle.buffer)
    wanted = {}
    for step, start in ((500, 300), (600, 500)):
        wanted[step] = returns[(first >= start) & (first < start + 200)].mean()
    monkeypatch.setattr(bundle_replay, "measure_policies", measured_by(wanted))
    bundle_replay.choose_members(args, bundle)
    assert bundle.members == [500, 600]


@pytest.mark.parametrize("change, dtype", [(5.0, "float32"), (0.1, "float16")])
def test_half_precision_must_not_change_the_returns(folder, medium, monkeypatch, change, dtype):
    args = bundle_replay.Args(folder, medium, 700, snapshots=3)
    (weights,), _, about = policies.read_weights(medium)
    bundle = bundle_replay.plan_bundle(args, weights, about)
    bundle.members = [400, 500, 700]
    scores = {(step, "single"): 100.0 for step in bundle.members}
    scores |= {(step, "half"): 100.0 + change for step in bundle.members}
    monkeypatch.setattr(bundle_replay, "measure_policies", measured_by(scores))
    measured = bundle_replay.choose_precision(args, bundle)
    assert measured["dtype"] == dtype == bundle.weights[700]["fc0.weight"].dtype
    assert measured["half_precision_change"] == pytest.approx(change)


@pytest.mark.parametrize("change", [{"step": 450}, {"step": 600}])
def test_a_bundle_needs_the_training_of_its_medium(folder, medium, change):
    """There is no snapshot of that step, or another one."""
    (weights,), _, about = policies.read_weights(medium)
    np.savez(medium, about=json.dumps(about | change), **weights)
    with pytest.raises(SystemExit, match="is no snapshot of"):
        bundle_replay.bundle(bundle_replay.Args(folder, medium, 700))
    assert not medium.with_name("hopper-medium-replay.npz").exists()


# --------------------------------------------------------------------------------------------------
# The committed files
# --------------------------------------------------------------------------------------------------


def test_the_page_is_made_of_the_files():
    page = (policies.BEHAVIOR / "README.md").read_text()
    for name, table in behavior_page.tables(policies.BEHAVIOR).items():
        assert f"<!-- {name} -->\n{table}\n<!-- end of {name} -->" in page


def test_committed_behaviour_files():
    """Every recipe but hopper-expert has its policies, and they are small."""
    files = sorted(policies.BEHAVIOR.glob("*.npz"))
    assert sum(path.stat().st_size for path in files) < 8e6
    names = {path.stem for path in files}
    for recipe in recipes.ALL_RECIPES:
        for source in recipe.behavior:
            made = source in ("random", "maze", "ball") or source.startswith(("d4rl:", "dapg:"))
            known = made or source == "hopper-expert"
            assert known or source in names
