"""Tests of the recipes beyond one policy, of the physics check and of the table of datasets.

    python -m pytest tests/test_datasets.py
"""

import copy
import functools
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bundle_replay  # noqa: E402
import behavior_means  # noqa: E402
import check_physics  # noqa: E402
import collect as collecting  # noqa: E402
import d4rl_policies  # noqa: E402
import datasets_table  # noqa: E402
import recipes  # noqa: E402
import select_behavior  # noqa: E402

collecting.quiet()
SHAPES = {"Hopper-v4": (11, 3), "HalfCheetah-v4": (17, 6), "Pendulum-v1": (3, 1)}


def random_weights(seed: int, env_id: str = "Hopper-v4", width: int = 32) -> dict:
    """Weights of an untrained policy, as `nn.Linear` names them."""
    (obs_dim, act_dim), rng = SHAPES[env_id], np.random.default_rng(seed)
    sizes = {"fc0": (width, obs_dim), "fc1": (width, width), "last_fc": (act_dim, width),
             "last_fc_log_std": (act_dim, width)}
    return {f"{layer}.{part}": array.astype(np.float32)
            for layer, (rows, columns) in sizes.items()
            for part, array in (("weight", rng.normal(0, columns ** -0.5, (rows, columns))),
                                ("bias", np.zeros(rows)))}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Folder of the datasets of one test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("D4RL_POLICIES", str(tmp_path / "policies"))
    return tmp_path / "datasets"


@pytest.fixture
def behavior(tmp_path) -> Path:
    """Folder with weights of an untrained medium, and of an untrained expert."""
    folder = tmp_path / "behavior"
    folder.mkdir()
    for seed, level in enumerate(("medium", "expert")):
        np.savez(folder / f"hopper-{level}.npz", about="{}", **random_weights(seed))
    return folder


def collect(recipe: str | None, steps: int | None, folder: Path | None = None, **more) -> dict:
    """A small dataset, made in this process but for its workers; returns its metadata."""
    more = {"shard_steps": 200, "workers": 1} | more
    if folder:
        more["behavior_dir"] = folder
    return collecting.collect(collecting.Args(recipe, steps=steps, **more))


def episodes_of(dataset: str) -> list:
    return list(minari.load_dataset(dataset).iterate_episodes())


def joined(episodes: list, field: str) -> np.ndarray:
    """One array of all transitions."""
    return np.concatenate([getattr(e, field)[:len(e.rewards)] for e in episodes])


# ---------------------------------------------------------------------------------------------
# Recipes
# ---------------------------------------------------------------------------------------------


def test_d4rls_mixtures():
    """The figures of D4RL's medium-expert sets, known from other logs, follow from their halves."""
    for name, mean in (("hopper", 2089.88), ("halfcheetah", 7713.38)):
        assert abs(recipes.PUBLISHED[f"{name}-medium-expert"].mean - mean) < 0.01
    two = recipes.Published(0.0, 1.0, 10, 5).followed_by(recipes.Published(4.0, 1.0, 30, 5))
    assert (two.mean, two.transitions, two.episodes) == (2.0, 40, 10)
    assert two.std == pytest.approx(5**0.5)


def test_medium_expert_is_half_and_half(root, behavior):
    """Its first half is the beginning of medium, its second that of expert."""
    collect("hopper-medium-expert", 1_001, behavior)
    both = episodes_of("rebuilt/hopper/medium-expert-1001-v0")
    assert sum(len(e.rewards) for e in both) == 1_001
    for level, policy in (("medium", 0), ("expert", 1)):
        collect(f"hopper-{level}", 700, behavior)
    first, second = (joined(episodes_of(f"rebuilt/hopper/{level}-700-v0"), "observations")
                     for level in ("medium", "expert"))
    observations = joined(both, "observations")
    lengths = np.cumsum([len(e.rewards) for e in both])
    change = lengths[np.searchsorted(lengths, 501)]  # the episode that crosses the middle is whole
    np.testing.assert_array_equal(observations[:change], first[:change])
    np.testing.assert_array_equal(observations[change:], second[:1_001 - change])
    assert not np.array_equal(first[:500], second[:500])


def write_snapshot(path: Path, weights: dict, kind: str = "tanh_gaussian") -> None:
    """A file as Deep OPE's."""
    content = {key.replace(".", "/"): value for key, value in weights.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content | {"nonlinearity": "relu", "output_distribution": kind}))


def test_d4rls_own_policy(root, tmp_path, monkeypatch):
    """Not ours to commit: fetched by its hash, and the dataset says whose it is."""
    path = tmp_path / "published.pkl"
    write_snapshot(path, random_weights(3, "HalfCheetah-v4"))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    name = "halfcheetah_online_10.pkl"
    monkeypatch.setitem(d4rl_policies.POLICIES, name, (path.as_uri(), sha256))
    metadata = collect("halfcheetah-expert", 50)
    assert metadata["behavior_sha256"] == sha256 and metadata["behavior"]["url"] == path.as_uri()
    assert "D4RL" in metadata["behavior"]["made_by"]
    for words in ("D4RL's own SAC snapshot halfcheetah_online_10", "snapshot 10 of D4RL's"):
        assert words in metadata["description"]
    assert (tmp_path / "policies" / name).exists()
    monkeypatch.setitem(d4rl_policies.POLICIES, name, ((tmp_path / "gone").as_uri(), sha256))
    (tmp_path / "policies" / name).unlink()
    with pytest.raises(SystemExit, match="D4RL_POLICIES"):
        collect("halfcheetah-expert", 60)
    assert not (root / "rebuilt/halfcheetah/expert-60-v0").exists()


def test_own_environment(root, tmp_path):
    """Pendulum's actions reach from -2 to 2; nobody has defined its scores."""
    np.savez(tmp_path / "my.npz", **random_weights(4, "Pendulum-v1"))
    write_snapshot(tmp_path / "my.pkl", random_weights(4, "Pendulum-v1"))
    hashes = set()
    for behavior in ("random", tmp_path / "my.npz", tmp_path / "my.pkl"):
        name = f"local/pendulum/{Path(behavior).name.replace('.', '-')}-v3"
        metadata = collect(None, 450, env_id="Pendulum-v1", behavior=str(behavior), name=name)
        assert "ref_min_score" not in metadata and metadata["env_id"] == "Pendulum-v1"
        assert (root / name).exists()
        actions = joined(episodes_of(name), "actions")
        assert actions.shape == (450, 1) and 1.5 < np.abs(actions).max() <= 2
        hashes.add(metadata["data_sha256"])
        assert minari.load_dataset(name).recover_environment().spec.id == "Pendulum-v1"
    assert len(hashes) == 2, "both files hold the same weights"


def test_own_environment_as_a_command(tmp_path):
    """One that only the user's module registers."""
    (tmp_path / "mine.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Mine-v0', PendulumEnv.__module__ + ':PendulumEnv', "
        "max_episode_steps=70)\n")
    words = ("--env-id mine:Mine-v0 --behavior random --steps 300 --name local/mine/random-v0 "
             "--workers 1").split()
    made = subprocess.run([sys.executable, BENCHMARKS / "collect.py", *words], text=True,
                          env={**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "datasets"),
                               "PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert made.returncode == 0, made.stderr
    assert "local/mine/random-v0" in made.stdout and "normalized" not in made.stdout
    data = tmp_path / "datasets" / "local/mine/random-v0/data"
    assert (data / "main_data.hdf5").exists()
    metadata = json.loads((data / "metadata.json").read_text())
    assert metadata["env_id"] == "Mine-v0" and metadata["length_mean"] == 70


def test_actions_are_stretched_onto_the_box():
    weights, rng = random_weights(5, "Pendulum-v1"), np.random.default_rng(0)
    obs, noise = (rng.normal(size=(20, d)).astype(np.float32) for d in (3, 1))
    unit = recipes.SacPolicy(weights)(obs, noise)
    stretched = recipes.SacPolicy(weights, np.array([1.0]), np.array([5.0]))(obs, noise)
    np.testing.assert_allclose(stretched, 3 + 2 * unit, rtol=1e-6)
    same = recipes.SacPolicy(weights, np.array([-1.0]), np.array([1.0]))(obs, noise)
    np.testing.assert_array_equal(unit, same)


# ---------------------------------------------------------------------------------------------
# medium-replay
# ---------------------------------------------------------------------------------------------


def test_stages_take_over_between_episodes():
    """Whole episodes until each end is reached; only the very last one is cut."""
    episode = lambda name, length: dict(
        observations=np.full((length + 1, 1), name, np.float32), rewards=np.zeros(length),
        actions=np.zeros((length, 1)), terminations=np.arange(length) == length - 1,
        truncations=np.zeros(length, bool), seed=0)
    stages = [[episode(k, 6) for _ in range(5)] for k in range(3)]
    kept = collecting.assemble(stages, [10, 20, 25])
    assert [(int(e["observations"][0, 0]), len(e["rewards"])) for e in kept] == [
        (0, 6), (0, 6), (1, 6), (1, 6), (2, 1)]
    assert kept[-1]["truncations"][-1] and not kept[1]["truncations"].any()


def test_stretches():
    ends, candidates = bundle_replay.stretches([*range(11, 82)], 10, 81, 10, 3)
    assert ends == [10, 17, 24, 31, 38, 46, 53, 60, 67, 74, 81]
    assert candidates[0] == [13, 14, 12] and candidates[4] == [42, 41, 43]
    # a stretch without a snapshot takes the nearest, a short one has fewer
    assert bundle_replay.stretches([20, 30, 31], 10, 34, 3, 5) == ([10, 18, 26, 34],
                                                                   [[20], [20], [30, 31]])


def test_episodes_of_a_buffer():
    """Episodes of 3 steps (a fall), 2 (cut: the next row begins elsewhere) and an open one."""
    rows = []
    for first, length, fall in ((0.0, 3, True), (10.0, 2, False), (20.0, 2, False)):
        for k in range(length):
            rows.append([first + k, 0.5, 1.0 + k, fall and k == length - 1, first + k + 1])
    returns, lengths, first = bundle_replay.buffer_episodes(np.array(rows, np.float32), 1)
    assert returns.tolist() == [6.0, 3.0] and lengths.tolist() == [3, 2]
    assert first.tolist() == [0, 3]


RANDOM, STEPS, EVERY = 300, 1_200, 100


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Path:
    """A tiny training of Hopper as sac.py's forerunner left it: snapshots, and its true buffer."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("runs") / "sac-hopper-7"
    folder.mkdir()
    env, rng = gym.make("Hopper-v4", disable_env_checker=True), np.random.default_rng(7)
    rows, obs = [], env.reset(seed=7)[0]
    for _ in range(STEPS):
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        following, reward, fall, cut, _ = env.step(action)
        rows.append(np.concatenate([obs, action, [reward, fall], following]).astype(np.float32))
        obs = env.reset()[0] if fall or cut else following
    snapshots = {step: {key: torch.as_tensor(value) for key, value in random_weights(step).items()}
                 for step in range(RANDOM + EVERY, STEPS + 1, EVERY)}
    torch.save({"snapshots": snapshots, "buffer": torch.as_tensor(np.array(rows)), "step": STEPS},
               folder / "checkpoint.pt")
    return folder


def test_medium_and_its_replay_in_one_command(training, root, tmp_path, monkeypatch, capsys):
    """What is left to do after a training: one command, and collect.py makes both datasets."""
    monkeypatch.setattr(bundle_replay, "Args",
                        functools.partial(bundle_replay.Args, random_steps=RANDOM))
    out = tmp_path / "behavior" / "hopper-medium.npz"
    args = select_behavior.Args(runs=(training,), target=30.0, out=out, quick_episodes=3,
                                episodes=20, finalists=12, accept=9.0, workers=1, replay_steps=900)
    monkeypatch.setattr(select_behavior, "choose", lambda scores, *_: (str(training), 1_000))
    select_behavior.select(args)
    assert "played again" in capsys.readouterr().out
    policies, ends, about = recipes.read_weights(out.with_name("hopper-medium-replay.npz"))
    # as many stretches as there are snapshots up to medium
    assert ends == [300, 386, 471, 557, 643, 729, 814, 900] and len(policies) == 7
    assert about["medium_step"] == 1_000 and about["training_seed"] == 7
    for k, step in enumerate(about["snapshots"]):
        assert ends[k] < step <= ends[k + 1] or step == RANDOM + EVERY
        stored = policies[k]["fc1.weight"]
        assert stored.dtype == about["dtype"]
        np.testing.assert_array_equal(stored, random_weights(step)["fc1.weight"].astype(
            stored.dtype))
    readme = out.with_name("README.md").read_text()
    row, = (line for line in readme.splitlines() if line.startswith("| `hopper-medium-replay.npz`"))
    sha256 = hashlib.sha256(out.with_name("hopper-medium-replay.npz").read_bytes()).hexdigest()
    assert sha256 in row and row.count("|") == 10

    metadata = [collect("hopper-medium-replay", None, out.parent, workers=workers, force=True)
                for workers in (1, 2)]
    assert metadata[0]["data_sha256"] == metadata[1]["data_sha256"]
    assert metadata[0]["dataset_id"] == "rebuilt/hopper/medium-replay-900-v0"
    assert metadata[0]["behavior"]["last_step"] == 900 == metadata[0]["total_steps"]
    episodes = episodes_of("rebuilt/hopper/medium-replay-900-v0")
    # the first stage acts at random, as the learner did
    random = collecting.act("Hopper-v4", recipes.UniformPolicy(-np.ones(3), np.ones(3), 11), [0, 0],
                            200)
    for one, other in zip(episodes, random[:3]):
        np.testing.assert_array_equal(one.actions, other["actions"])
    with pytest.raises(SystemExit, match="up to its step 900"):
        collect("hopper-medium-replay", 901, out.parent)
    assert recipes.comparable(recipes.RECIPES["hopper-medium-replay"], metadata[0])
    start = collect("hopper-medium-replay", 500, out.parent)
    assert recipes.comparable(recipes.RECIPES["hopper-medium-replay"], start) is None
    beginning = joined(episodes_of("rebuilt/hopper/medium-replay-500-v0"), "actions")
    np.testing.assert_array_equal(beginning, joined(episodes, "actions")[:500])


@pytest.mark.parametrize("about, match", [
    ({}, "does not say where it comes from"),
    ({"env_id": "Hopper-v4", "step": 450}, "is no snapshot of"),
    ({"env_id": "Hopper-v4", "step": 500}, "is no snapshot of")])  # there is one, another
def test_a_bundle_needs_the_training_of_its_medium(training, tmp_path, about, match):
    medium = tmp_path / "hopper-medium.npz"
    np.savez(medium, about=json.dumps(about), **random_weights(1))
    with pytest.raises(SystemExit, match=match):
        bundle_replay.bundle(bundle_replay.Args(training, medium, 900, random_steps=RANDOM))
    assert [path.name for path in tmp_path.iterdir()] == ["hopper-medium.npz"]


def test_the_snapshot_that_did_as_the_learner_is_chosen(training, tmp_path, monkeypatch):
    """Two stretches of five candidates; one of each is given the return of the true buffer."""
    medium = tmp_path / "hopper-medium.npz"
    np.savez(medium, about=json.dumps({"env_id": "Hopper-v4", "step": 1_200}),
             **random_weights(1_200))
    one, = select_behavior.load_trainings(training, "Hopper-v4")
    returns, _, first = bundle_replay.buffer_episodes(one.buffer(), 11)
    wanted = {600: returns[(first >= 200) & (first < 700)].mean(),
              1_100: returns[first >= 700].mean()}
    measured = lambda env_id, policies, *_: {
        key: select_behavior.Score(wanted.get(key, 1e4), 1.0, 30.0, 20) for key in policies}
    monkeypatch.setattr(bundle_replay, "measure_policies", measured)
    bundle_replay.bundle(bundle_replay.Args(training, medium, 1_200, 2, random_steps=200,
                                            workers=1))
    _, ends, about = recipes.read_weights(tmp_path / "hopper-medium-replay.npz")
    assert ends == [200, 700, 1_200] and about["snapshots"] == [600, 1_100]


def test_half_precision_is_refused_where_it_changes_the_score(training, tmp_path, monkeypatch):
    medium = tmp_path / "hopper-medium.npz"
    about = {"env_id": "Hopper-v4", "step": 1_000}
    np.savez(medium, about=json.dumps(about), **random_weights(1_000))
    halved = [(step, "half") for step in range(0, STEPS, EVERY)]
    measured = lambda env_id, policies, *_: {
        key: select_behavior.Score(100.0 + 5 * (key in halved), 1.0, 30.0, 20)
        for key in policies}
    monkeypatch.setattr(bundle_replay, "measure_policies", measured)
    bundle_replay.bundle(bundle_replay.Args(training, medium, 900, 3, random_steps=RANDOM,
                                            workers=1))
    policies, _, about = recipes.read_weights(tmp_path / "hopper-medium-replay.npz")
    assert policies[0]["fc0.weight"].dtype == np.float32 and about["half_precision_change"] == 5


@pytest.fixture(scope="module")
def sac_run(tmp_path_factory):
    """A tiny online run of sac.py, seeds 5 and 6, in its folder; checkpointed before its end."""
    sys.path.insert(0, str(BENCHMARKS.parent / "algorithms"))
    import sac
    args = sac.Args(env="Hopper-v4", seed=5, num_seeds=2, random_steps=300, num_updates=700,
                    snapshot_every=100, batch_size=4, hidden=16, lr=3e-4,
                    run_dir=str(tmp_path_factory.mktemp("runs") / "sac-hopper"))
    rows, task = sac.ScratchRun.load(args)
    run = sac.ScratchRun(args, task, sac.torch.device("cpu"))
    run.use(sac.prepare(args, rows, task))
    run.begin()
    run.advance(600)
    run.save(finished=False)
    run.policies = copy.deepcopy(run.agent)
    run.advance(50)  # its steps lie in online.bin, but no checkpoint knows of them
    return run


def test_a_run_of_sac_holds_a_training_of_each_seed(sac_run):
    """Step, policy and buffer of each: the buffer is the one that the run learned from."""
    folder = Path(sac_run.args.run_dir)
    trainings = select_behavior.load_trainings(folder, "Hopper-v4")
    assert [t.name for t in trainings] == [f"{folder}, seed 5", f"{folder}, seed 6"]
    obs, noise = (np.random.default_rng(0).normal(size=(20, k)).astype(np.float32) for k in (11, 3))
    for n, training in enumerate(trainings):
        assert (training.seed, training.random_steps) == (5 + n, 300)
        assert [*training.snapshots] == [400, 500, 600, 700, 800, 900]
        policy = sac_run.policies.explore(*(
            sac_run.table.new_tensor(np.stack([x, x])) for x in (obs, noise)))
        np.testing.assert_allclose(recipes.SacPolicy(training.snapshots[900])(obs, noise),
                                   policy[n].detach().numpy(), atol=1e-5)
        rows = np.concatenate([sac_run.table[300 * n:300 * n + 300], sac_run.own[n, :600]])
        np.testing.assert_array_equal(training.buffer(), rows[:, :-1])
        assert training.command(700) == (
            "python algorithms/sac.py --env Hopper-v4 --seed 5 --num-seeds 2 --batch-size 4 "
            f"--lr 0.0003 --random-steps 300 --snapshot-every 100 --hidden 16 --num-updates 400 "
            "--run-dir runs/sac-hopper")


def test_medium_and_its_replay_of_the_better_seed(sac_run, tmp_path, monkeypatch):
    folder, out = Path(sac_run.args.run_dir), tmp_path / "behavior" / "hopper-medium.npz"
    args = select_behavior.Args(runs=(folder,), target=30.0, out=out, quick_episodes=2, episodes=3,
                                finalists=12, accept=9.0, workers=1, replay_steps=800)
    monkeypatch.setattr(select_behavior, "choose", lambda scores, *_: (f"{folder}, seed 6", 700))
    select_behavior.select(args)
    six = select_behavior.load_trainings(folder, "Hopper-v4")[1]
    (weights,), _, about = recipes.read_weights(out)
    assert (about["training_seed"], about["step"]) == (6, 700)
    for name, array in six.snapshots[700].items():
        np.testing.assert_array_equal(weights[name], array)
    policies, ends, about = recipes.read_weights(out.with_name("hopper-medium-replay.npz"))
    assert ends == [300, 400, 500, 600, 700] and about["training_seed"] == 6
    for policy, step in zip(policies, about["snapshots"]):
        np.testing.assert_array_equal(policy["fc1.weight"], six.snapshots[step][
            "fc1.weight"].astype(policy["fc1.weight"].dtype))


def damaged(run, **changes) -> Path:
    """A copy of the run's folder, its checkpoint changed."""
    import torch
    folder = Path(run.args.run_dir)
    shutil.copytree(folder, "copy", dirs_exist_ok=True)
    torch.save(torch.load(folder / "checkpoint.pt") | changes, "copy/checkpoint.pt")
    return Path("copy")


@pytest.mark.parametrize("change, match", [
    (lambda run: Path("nowhere"), "no checkpoint in nowhere"),
    (lambda run: damaged(run, task={"env_id": "Walker2d-v4"}), "trained on Walker2d-v4, not on"),
    (lambda run: shutil.rmtree(damaged(run) / "snapshots") or Path("copy"), "no snapshots"),
    (lambda run: (damaged(run) / "online.bin").unlink() or Path("copy"), "of an online run"),
    (lambda run: (damaged(run) / "checkpoint.pt").write_text("x") and Path("copy"), "cannot read"),
    (lambda run: damaged(run, args={"nonsense": 1}), "cannot read copy")])
def test_bad_folders_of_trainings(sac_run, tmp_path, monkeypatch, change, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=match):
        select_behavior.load_trainings(change(sac_run), "Hopper-v4")


def test_committed_behaviour_files():
    """At most 12 policies per environment, all together below 8 MB, each described in the table."""
    folder, counts = BENCHMARKS / "behavior", {}
    readme = (folder / "README.md").read_text()
    files = sorted(folder.glob("*.npz"))
    assert files and sum(path.stat().st_size for path in files) < 8e6
    for path in files:
        policies, _, about = recipes.read_weights(path)
        counts[about["env_id"]] = counts.get(about["env_id"], 0) + len(policies)
        assert f"| `{path.name}` |" in readme
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme, f"{path.name}: old row"
    assert max(counts.values()) <= 12, counts


# ---------------------------------------------------------------------------------------------
# Mazes
# ---------------------------------------------------------------------------------------------


def test_pointmaze(root):
    metadata = collect("pointmaze-umaze", 400)
    dataset = minari.load_dataset("rebuilt/pointmaze/umaze-400-v0")
    env = gym.wrappers.FlattenObservation(dataset.recover_environment())
    assert env.spec.id == metadata["env_id"] == "PointMaze_UMaze-v3"
    first = next(dataset.iterate_episodes())
    assert first.observations.shape == (len(first.rewards) + 1, *env.observation_space.shape)
    assert first.actions.shape[1:] == env.action_space.shape and first.rewards[-1] == 1


def test_antmaze_is_stored_by_name(root, tmp_path, monkeypatch):
    """An environment that is a class cannot be stored: the metadata have its id."""
    path = tmp_path / "ant.pkl"
    path.write_bytes(b"stand-in")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(d4rl_policies.POLICIES, "ant_hierarch_pol.pkl", (path.as_uri(), sha256))
    ant = random_weights(0) | {"fc0.weight": np.zeros((32, 29), np.float32)}
    ant |= {f"{head}.weight": np.zeros((8, 32), np.float32)
            for head in ("last_fc", "last_fc_log_std")}
    ant |= {f"{head}.bias": np.zeros(8, np.float32) for head in ("last_fc", "last_fc_log_std")}
    monkeypatch.setattr(collecting, "read_ant", lambda path: ant)
    metadata = collect("antmaze-umaze", 800)
    assert metadata["env_id"] == "AntMaze-umaze-v2" and metadata["behavior_sha256"] == sha256
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (0, 1)
    assert 0 <= metadata["success"] <= 1
    dataset = minari.load_dataset("rebuilt/antmaze/umaze-800-v0")
    assert dataset.env_spec is None and dataset.observation_space.shape == (29,)
    assert [len(e.rewards) for e in dataset.iterate_episodes()] == [701, 99]


# ---------------------------------------------------------------------------------------------
# The physics check
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def d4rl_form(tmp_path_factory) -> Path:
    """A rebuilt set as D4RL's file would have it: replayed by its seeds, with float32 states."""
    folder = tmp_path_factory.mktemp("d4rl")
    patch = pytest.MonkeyPatch()
    patch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
    collect("hopper-random", 400)
    dataset = minari.load_dataset("rebuilt/hopper/random-400-v0")
    env = gym.make("Hopper-v4", disable_env_checker=True)
    columns = {key: [] for key in check_physics.NEEDED}
    for episode, about in zip(dataset.iterate_episodes(),
                              dataset.storage.get_episode_metadata(range(len(dataset)))):
        env.reset(seed=about["seed"])
        for t, action in enumerate(episode.actions):
            state = env.unwrapped.data
            row = (episode.observations[t], action, episode.rewards[t], episode.terminations[t],
                   episode.truncations[t], state.qpos.copy(), state.qvel.copy())
            for key, value in zip(check_physics.NEEDED, row):
                columns[key].append(value)
            env.step(action)
    patch.undo()
    path = folder / "hopper_random-v2.hdf5"
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file[key] = np.array(column, bool if key in ("terminals", "timeouts") else np.float32)
        file["metadata/algorithm"] = "random"
    return path


def test_replay_of_a_file_in_d4rls_form(d4rl_form, capsys, monkeypatch):
    """Rows of our own environment come out again, up to the rounding of float32 states."""
    monkeypatch.setattr(sys, "argv", ["check_physics.py", "--replay", str(d4rl_form)])
    check_physics.main()
    table = capsys.readouterr().out
    assert table.startswith("| Hopper-v4: absolute error |") and "400 rows" in table
    errors = check_physics.replay(check_physics.read_states(d4rl_form), "Hopper-v4", 150)
    assert len(errors["reward"]) == 150 and not errors["terminal"].any()
    assert np.abs(errors["state"]).max() < 1e-6
    assert np.median(np.abs(errors["step"])) < 1e-6 and np.abs(errors["reward"]).max() < 1e-3
    assert len(errors["step"]) < 150, "where an episode ends, the next row is another's"


@pytest.mark.parametrize("key, wrong", [
    ("state", lambda arrays: arrays.update({"infos/qpos": np.roll(arrays["infos/qpos"], 1, 0)})),
    ("step", lambda arrays: arrays.update({"actions": -arrays["actions"]})),
    ("reward", lambda arrays: arrays.update({"rewards": arrays["rewards"] - 1})),
    ("terminal", lambda arrays: arrays.update({"terminals": ~arrays["terminals"]}))])
def test_replay_finds_what_is_wrong(d4rl_form, key, wrong):
    arrays = check_physics.read_states(d4rl_form)
    wrong(arrays)
    errors = check_physics.replay(arrays, "Hopper-v4", 100)
    assert np.abs(errors[key].astype(float)).mean() > 0.003


def test_replay_of_other_physics(d4rl_form, monkeypatch):
    """A hopper with other gravity is found out by its steps, not by its states."""
    make = gym.make

    def lighter(*args, **kwargs):
        env = make(*args, **kwargs)
        env.unwrapped.model.opt.gravity[:] *= 0.9
        return env

    monkeypatch.setattr(gym, "make", lighter)
    errors = check_physics.replay(check_physics.read_states(d4rl_form), "Hopper-v4", 100)
    assert np.abs(errors["state"]).max() < 1e-6
    assert np.median(np.abs(errors["step"])) > 1e-5


@pytest.mark.parametrize("arguments, match", [
    (["--replay", "absent.hdf5", "--env-id", "Hopper-v4"], "no readable HDF5"),
    (["--replay", "mine.hdf5"], "mine.hdf5 does not begin with"),
    (["--replay", "FILE", "--env-id", "Walker2d-v4"], "name the file's environment"),
    (["--replay", "FILE", "--env-id", "Nothing-v0"], "--env-id"),
    (["--replay", "FILE", "--rows", "0"], "--rows 0"),
    (["--replay", "STATELESS"], "infos/qpos, infos/qvel missing")])
def test_bad_replays(d4rl_form, tmp_path, monkeypatch, arguments, match):
    stateless = tmp_path / "hopper_none.hdf5"
    shutil.copy(d4rl_form, stateless)
    with h5py.File(stateless, "a") as file:
        del file["infos"]
    files = {"FILE": str(d4rl_form), "STATELESS": str(stateless)}
    words = [files.get(word, word) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["check_physics.py", *words])
    with pytest.raises(SystemExit, match=match):
        check_physics.main()


def test_snapshots_of_d4rl_where_present():
    """D4RL's cheetah runs here as it did there (published: 9198)."""
    path = d4rl_policies.policies_folder() / "halfcheetah_online_5.pkl"
    if not path.exists():
        pytest.skip(f"no {path}; check_physics.py fetches it")
    policy = recipes.SacPolicy(d4rl_policies.read_snapshot(path))
    score = select_behavior.measure("HalfCheetah-v4", policy, [0], 2)
    assert score.mean == pytest.approx(9198, rel=0.05)


def test_table_of_snapshots(monkeypatch):
    """Which policy acts where: the walker's files have a shorter name than its environment."""
    weights = {name: random_weights(n) for n, name in enumerate(check_physics.PUBLISHED)}
    monkeypatch.setattr(check_physics, "policy_file", lambda name: Path(name).stem)
    monkeypatch.setattr(check_physics, "read_snapshot", weights.get)
    asked = []

    def run_jobs(function, jobs, workers):
        for number, (env_id, policy, seed, episodes) in enumerate(jobs):
            asked.append(env_id)
            yield number, select_behavior.Score(100.0 * number, 1.0, 50.0, episodes)

    monkeypatch.setattr(check_physics, "run_jobs", run_jobs)
    lines = check_physics.snapshots(7, 1).splitlines()
    assert asked == [f"{name}-v{v}" for name in ("HalfCheetah", "HalfCheetah", "Walker2d",
                                                 "Walker2d", "Hopper", "Hopper") for v in (4, 5)]
    assert lines[4].startswith("| walker_online_5 | 400 ± 1 | 50 | 500 ± 1 | 3481 ± 87 | 0.115 |")
    assert "7 episodes each" in lines[-1]


# ---------------------------------------------------------------------------------------------
# The table of datasets
# ---------------------------------------------------------------------------------------------


def test_table_is_made_of_the_data(root, behavior, capsys, monkeypatch):
    collect("hopper-random", 2_000)
    collect("hopper-medium", 1_000, behavior)
    monkeypatch.setattr(sys, "argv", ["datasets_table.py", "--loading"])
    capsys.readouterr()
    datasets_table.main()
    head, _, random, medium = capsys.readouterr().out.splitlines()
    assert head.endswith("| loads in |") and float(random.split("|")[-2].split()[0]) >= 0
    assert datasets_table.loading_seconds("rebuilt/hopper/random-2k-v0") > 0  # 0.0 when rounded
    assert len({line.count("|") for line in (head, random, medium)}) == 1
    cells = [cell.strip() for cell in random.split("|")[1:-1]]
    episodes = episodes_of("rebuilt/hopper/random-2k-v0")
    returns = [e.rewards.sum() for e in episodes[:-1]]
    assert cells[:4] == ["`rebuilt/hopper/random-2k-v0`", "uniform random actions", "2,000",
                         str(len(episodes))]
    assert cells[4] == f"{np.mean(returns):.1f} ± {np.std(returns):.1f}"
    assert cells[6] == f"{100 * (np.mean(returns) + 20.272305) / (3234.3 + 20.272305):.1f}"
    assert cells[7:10] == ["18.4 ± 17.4", "22.1", "1.2"]  # D4RL's
    assert "**-9" in medium, "an untrained medium is far off"


def test_table_in_a_file(root, tmp_path, monkeypatch):
    collect("hopper-random", 100)
    path = tmp_path / "DATASETS.md"
    path.write_text("before\n<!-- datasets_table.py -->\nold\n<!-- end of datasets_table.py -->\n"
                    "after\n")
    monkeypatch.setattr(sys, "argv", ["datasets_table.py", "--write", str(path)])
    datasets_table.main()
    text = path.read_text()
    assert "`rebuilt/hopper/random-100-v0`" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("-->\nafter\n")
    path.write_text("nothing")
    with pytest.raises(SystemExit, match="needs one line"):
        datasets_table.main()
    assert path.read_text() == "nothing"


def test_a_row_of_the_table_in_a_file(root, tmp_path, monkeypatch):
    """The other rows are of datasets that this machine has not."""
    collect("hopper-random", 100)
    name, other = "rebuilt/hopper/random-100-v0", "| `rebuilt/hopper/medium-v0` | kept |"
    path = tmp_path / "DATASETS.md"
    head = datasets_table.table([], root, False)
    marks = "<!-- datasets_table.py -->\n{}\n<!-- end of datasets_table.py -->\n"
    path.write_text(marks.format(f"{head}\n{other}\n| `{name}` | old |"))
    monkeypatch.setattr(sys, "argv", ["datasets_table.py", name, "--write", str(path)])
    datasets_table.main()
    new = datasets_table.table([name], root, False).splitlines()[-1]
    assert path.read_text() == marks.format(f"{head}\n{new}\n{other}")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--loading"])
    with pytest.raises(SystemExit, match="other columns"):
        datasets_table.main()


def test_table_of_nothing(root, monkeypatch):
    for words, match in ((["x"], "no dataset in"), (["x", "rebuilt/a/b-v0"], "is not in")):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit, match=match):
            datasets_table.main()


def test_means_are_the_policys_without_noise():
    """Weights by which mean and deviation are known: tanh(0.5) and a deviation of 1."""
    shapes = {"fc0": (4, 3), "fc1": (4, 4), "last_fc": (1, 4), "last_fc_log_std": (1, 4)}
    weights = {f"{k}.{kind}": np.zeros(shape if kind == "weight" else shape[:1], np.float32)
               for k, shape in shapes.items() for kind in ("weight", "bias")}
    weights["last_fc.bias"] += 0.5
    rng, obs = np.random.default_rng(0), np.ones((1, 3), np.float32)
    actions = {kind: kind(weights)(obs, kind(weights).draw(rng, 1))
               for kind in (behavior_means.MeanPolicy, behavior_means.SacPolicy)}
    np.testing.assert_allclose(actions[behavior_means.MeanPolicy], np.tanh(0.5), rtol=1e-6)
    assert abs(actions[behavior_means.SacPolicy] - np.tanh(0.5)) > 0.01
