"""Rebuilding datasets: which episodes are kept, what is stored, and what goes wrong in one line."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest

from benchmarks.common import ROOT, load_script
from benchmarks.datasets import collect, d4rl_policies, policies, recipes, rollout, storage
from benchmarks.datasets.trainings import export_policy

STEPS, SHARD = 1_500, 400  # four shards, the last one smaller; episodes take 10 to 100 steps
DATASET = f"rebuilt/hopper/medium-{STEPS}-v0"
SHAPES = {"Hopper-v4": (11, 3), "HalfCheetah-v4": (17, 6), "Pendulum-v1": (3, 1)}
PENDULUM = {"env_id": "Pendulum-v1", "behavior": "random", "name": "local/pendulum/random-v0"}


@pytest.fixture(autouse=True)
def quiet():
    rollout.quiet()


def random_weights(seed: int, env_id: str = "Hopper-v4", width: int = 32) -> dict:
    """Weights of an untrained policy, named as in `nn.Linear`."""
    obs_dim, act_dim = SHAPES[env_id]
    rng = np.random.default_rng(seed)
    shapes = {"fc0": (width, obs_dim), "fc1": (width, width), "last_fc": (act_dim, width)}
    shapes["last_fc_log_std"] = (act_dim, width)
    weights = {}
    for layer, (rows, columns) in shapes.items():
        array = rng.normal(0, columns**-0.5, (rows, columns))
        weights[f"{layer}.weight"] = array.astype(np.float32)
        weights[f"{layer}.bias"] = np.zeros(rows, np.float32)
    return weights


@pytest.fixture(scope="module")
def behavior(tmp_path_factory) -> Path:
    """Folder with weights of an untrained medium, and of an untrained expert."""
    folder = tmp_path_factory.mktemp("behavior")
    about = json.dumps({"training_command": "python algorithms/sac.py", "step": 7})
    for seed, level in enumerate(("medium", "expert")):
        np.savez(folder / f"hopper-{level}.npz", about=about, **random_weights(seed))
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Folder of the datasets of one test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("D4RL_POLICIES", str(tmp_path / "policies"))
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


def make(recipe: str | None, steps: int | None, **options) -> dict:
    """Make a small dataset and return its metadata."""
    options = {"shard_steps": SHARD, "workers": 1} | options
    return collect.collect(collect.Args(recipe, steps=steps, **options))


def episodes_of(dataset: str) -> list:
    return list(minari.load_dataset(dataset).iterate_episodes())


# --------------------------------------------------------------------------------------------------
# Rollout: which episodes are kept
# --------------------------------------------------------------------------------------------------


class Toy(gym.Env):
    """Episodes of 2 steps (nine in ten) or 40; the length is drawn when it starts."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    mean_length = 0.9 * 2 + 0.1 * 40

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 40 if self.np_random.random() < 0.1 else 2
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], np.float32), float(action[0]), self.left == 0, False, {}


def toys(slots: int, limit: int = 100) -> list:
    spec = gym.envs.registration.EnvSpec("Toy-v0", entry_point=Toy, max_episode_steps=limit)
    return [gym.make(spec, disable_env_checker=True) for _ in range(slots)]


TOY_POLICY = policies.UniformPolicy(np.array([-1.0]), np.array([1.0]), 1)


def transitions(episodes: list[dict]) -> int:
    return sum(len(episode["rewards"]) for episode in episodes)


@pytest.mark.parametrize("steps, episodes", [(300, 1), (0, 30), (100, 30)])
def test_kept_episodes_do_not_depend_on_the_slots(steps, episodes):
    """Eight episodes side by side keep what one after the other gives: the shortest beginning."""
    one = rollout.rollout(toys(1), TOY_POLICY, [5], steps, episodes)
    many = rollout.rollout(toys(8), TOY_POLICY, [5], steps, episodes)
    for a, b in zip(one, many, strict=True):
        for field in rollout.FIELDS:
            np.testing.assert_array_equal(a[field], b[field])
    assert transitions(many) >= steps and len(many) >= episodes
    assert transitions(many[:-1]) < steps or len(many) - 1 < episodes


def test_long_episodes_are_not_disfavoured():
    """Mean length over many short shards is 5.8, the truth.

    To keep what ends first would give 2.0, to leave out the episode that crosses the quota 4.2.
    """
    envs, lengths = toys(8), []
    for shard in range(500):
        kept = rollout.rollout(envs, TOY_POLICY, [0, shard], steps=60)
        lengths += [len(episode["rewards"]) for episode in kept]
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert error < 0.2
    assert abs(np.mean(lengths) - Toy.mean_length) < 4 * error


def test_time_limit_is_a_truncation():
    for episode in rollout.rollout(toys(3, limit=10), TOY_POLICY, [1], episodes=60):
        timeout = len(episode["rewards"]) == 10
        ends = episode["terminations"][-1], episode["truncations"][-1]
        assert ends == (not timeout, timeout)
        assert episode["observations"].shape == (len(episode["rewards"]) + 1, 1)


def test_trim():
    episodes = rollout.rollout(toys(1), TOY_POLICY, [2], steps=50)
    total = transitions(episodes)
    whole = rollout.trim(episodes, total)
    assert len(whole) == len(episodes) and whole[-1]["terminations"][-1]
    cut = rollout.trim(episodes, total - 1)
    assert transitions(cut) == total - 1
    assert cut[-1]["truncations"][-1] and not cut[-1]["terminations"].any()
    assert not episodes[-1]["truncations"].any(), "the original was changed"


def test_stages_take_over_between_episodes():
    """Whole episodes until each end is reached; only the very last one is cut."""

    def episode(name: int) -> dict:
        return {
            "observations": np.full((7, 1), name, np.float32),
            "actions": np.zeros((6, 1)),
            "rewards": np.zeros(6),
            "terminations": np.arange(6) == 5,
            "truncations": np.zeros(6, bool),
            "seed": 0,
        }

    kept = rollout.assemble([[episode(k)] * 5 for k in range(3)], [10, 20, 25])
    stages = [(int(e["observations"][0, 0]), len(e["rewards"])) for e in kept]
    assert stages == [(0, 6), (0, 6), (1, 6), (1, 6), (2, 1)]
    assert kept[-1]["truncations"][-1] and not kept[1]["truncations"].any()


def test_plan_of_two_behaviours():
    """Each makes half; the second has the same seeds, so that each is the beginning of its own."""
    behaviors = [[rollout.Stage("a", 30), rollout.Stage("b", None)], [rollout.Stage("c", None)]]
    shards, stages, ends = rollout.plan(behaviors, steps=101, seed=7, shard_steps=25)
    assert ends == [30, 51, 101] and stages == [0, 0, 1, 2, 2]
    assert [(s.collector, s.seed, s.steps) for s in shards] == [
        ("a", [7, 0], 25),
        ("a", [7, 1], 5),
        ("b", [7, 2], 21),
        ("c", [7, 0], 25),
        ("c", [7, 1], 25),
    ]


# --------------------------------------------------------------------------------------------------
# A dataset
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(behavior, tmp_path_factory) -> tuple[Path, str]:
    """Folder with a small dataset, made by the command, and what it printed."""
    folder = tmp_path_factory.mktemp("made")
    words = ["hopper-medium", "--steps", str(STEPS), "--shard-steps", str(SHARD), "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.datasets.collect", *words, "--behavior-dir", behavior],
        cwd=folder,
        env=os.environ | {"MINARI_DATASETS_PATH": str(folder / "datasets"), "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["datasets"]  # no MUJOCO_LOG.TXT
    return folder / "datasets", done.stdout


@pytest.fixture
def stored(made, monkeypatch) -> list:
    """Episodes of the dataset."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(made[0]))
    return episodes_of(DATASET)


def test_shapes_and_flags(stored):
    assert sum(len(episode.rewards) for episode in stored) == STEPS
    for episode in stored:
        length = len(episode.rewards)
        assert episode.observations.shape == (length + 1, 11)
        assert episode.actions.shape == (length, 3) and np.abs(episode.actions).max() <= 1
        for array in (episode.observations, episode.actions, episode.rewards):
            assert array.dtype == np.float32
        assert not episode.terminations[:-1].any() and not episode.truncations[:-1].any()
        # An untrained hopper falls long before the time limit: only the end of the set is cut.
        last = episode is stored[-1]
        assert (episode.terminations[-1], episode.truncations[-1]) == (not last, last)


def test_transitions_are_the_environments(stored):
    """The seed and the actions of a stored episode give its observations and rewards."""
    dataset = minari.load_dataset(DATASET)
    seeds = [about["seed"] for about in dataset.storage.get_episode_metadata(range(3))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = dataset.recover_environment()
    assert env.spec.id == "Hopper-v4" and env.spec.max_episode_steps == 1000
    for episode, seed in zip(stored[:3], seeds, strict=True):
        observations = [env.reset(seed=seed)[0]]
        for action, reward, terminated in zip(
            episode.actions, episode.rewards, episode.terminations, strict=True
        ):
            observation, real_reward, real_terminated, _, _ = env.step(action)
            observations.append(observation)
            assert np.float32(real_reward) == reward and real_terminated == terminated
        np.testing.assert_array_equal(np.float32(observations), episode.observations)


def test_metadata(made, stored):
    metadata = minari.list_local_datasets()[DATASET]
    assert metadata["total_steps"] == STEPS and metadata["total_episodes"] == len(stored)
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)
    assert metadata["author"] == ["SOLO"] and metadata["algorithm_name"] == "SAC"
    assert metadata["behavior"]["step"] == 7 and len(metadata["behavior"]["sha256"]) == 64
    assert metadata["command"] == (
        "python -m benchmarks.datasets.collect hopper-medium --steps 1500 --seed 0 "
        "--shard-steps 400"
    )
    for key in ("mujoco_version", "gymnasium_version", "numpy_version", "commit", "description"):
        assert metadata[key]
    assert metadata["data_sha256"] == storage.data_sha256(stored)
    assert metadata["data_sha256"] in made[1] and "deviates by" in made[1]


def test_the_data_depend_on_neither_workers_nor_size(stored, behavior):
    """Other numbers of workers give the same data, and a smaller set begins a larger one."""
    recipe = recipes.RECIPES["hopper-medium"]
    stages, _ = collect.load_stages(recipe, "hopper-medium", behavior)
    episodes, _ = rollout.simulate([stages], STEPS, 0, SHARD, 2)
    assert storage.data_sha256(episodes) == storage.data_sha256(stored)
    smaller, _ = rollout.simulate([stages], 700, 0, SHARD, 1)
    cut = len(smaller[-1]["rewards"])
    for small, large in zip(smaller[:-1], stored, strict=False):
        np.testing.assert_array_equal(small["observations"], large.observations)
    large = stored[len(smaller) - 1]
    np.testing.assert_array_equal(smaller[-1]["actions"], large.actions[:cut])


def test_existing_dataset_is_kept(stored, made, behavior, capsys):
    file = made[0] / DATASET / "data" / "main_data.hdf5"
    before = file.stat().st_mtime_ns
    make("hopper-medium", STEPS, behavior_dir=behavior)
    assert "exists already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists with seed 0, not 1; --force"):
        make("hopper-medium", STEPS, behavior_dir=behavior, seed=1)
    assert file.stat().st_mtime_ns == before


def test_incomplete_dataset_is_named(root, behavior):
    """What another program left behind is neither taken for data nor overwritten."""
    data = root / DATASET / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text('{"total_steps": 0}')
    with pytest.raises(SystemExit, match="incomplete.*--force"):
        make("hopper-medium", STEPS, behavior_dir=behavior)


@pytest.mark.slow
def test_medium_expert_is_half_and_half(root, behavior):
    """Its first half is the beginning of medium, its second that of expert."""

    def observations(dataset: str) -> np.ndarray:
        return np.concatenate([episode.observations[:-1] for episode in episodes_of(dataset)])

    make("hopper-medium-expert", 1_001, behavior_dir=behavior)
    for level in ("medium", "expert"):
        make(f"hopper-{level}", 700, behavior_dir=behavior)
    both = observations("rebuilt/hopper/medium-expert-1001-v0")
    medium = observations("rebuilt/hopper/medium-700-v0")
    expert = observations("rebuilt/hopper/expert-700-v0")
    assert len(both) == 1_001
    lengths = [len(e.rewards) for e in episodes_of("rebuilt/hopper/medium-expert-1001-v0")]
    ends = np.cumsum(lengths)
    change = ends[np.searchsorted(ends, 501)]  # the episode that crosses the middle is whole
    np.testing.assert_array_equal(both[:change], medium[:change])
    np.testing.assert_array_equal(both[change:], expert[: 1_001 - change])
    assert not np.array_equal(medium[:500], expert[:500])


# --------------------------------------------------------------------------------------------------
# The old dataset is never lost, and a stopped run leaves nothing in the way
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def old(root) -> Path:
    """A dataset that is to be replaced, as far as storing is concerned."""
    place = root / DATASET
    (place / "data").mkdir(parents=True)
    (place / "data" / "old").touch()
    return place


def write(root: Path) -> None:
    spec = {"env": gym.spec("Hopper-v4")}
    storage.write_dataset(root, DATASET, spec, [], {"data_sha256": "new"})


def report(problem: str | None):
    """Stands for the process that writes, and leaves what it got done."""

    def run_jobs(function, jobs, workers, if_one_dies):
        folder, dataset, *_ = jobs[0]
        (folder / dataset / "data").mkdir(parents=True)
        (folder / dataset / "data" / "metadata.json").write_text("{}")
        yield 0, problem

    return run_jobs


def test_a_failed_replacement_keeps_the_old_set(root, old, monkeypatch):
    monkeypatch.setattr(storage, "run_jobs", report("No space left on device"))
    with pytest.raises(SystemExit, match="No space left on device; nothing was stored"):
        write(root)
    assert (old / "data" / "old").exists() and not list(root.glob(".*"))


def test_a_failed_move_brings_the_old_set_back(root, old, monkeypatch):
    monkeypatch.setattr(storage, "run_jobs", report(None))
    rename = Path.rename

    def failing_rename(self, target):
        if target == old and self.parent != old.parent:
            raise OSError("the move failed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(SystemExit, match="the move failed"):
        write(root)
    assert (old / "data" / "old").exists() and not list(root.glob("**/.*"))


def test_a_replacement_puts_the_new_set_in_place(root, old, monkeypatch):
    monkeypatch.setattr(storage, "run_jobs", report(None))
    write(root)
    assert json.loads((old / "data" / "metadata.json").read_text()) == {"data_sha256": "new"}
    assert not (old / "data" / "old").exists() and not list(root.glob("**/.*"))


def test_killed_between_the_moves(root, old):
    """The old set lies aside, and the next run brings it back; Minari does not list it."""
    aside = old.rename(storage.old_version(old))
    assert minari.list_local_datasets() == {}
    storage.bring_back(old)
    assert (old / "data" / "old").exists() and not aside.exists()
    shutil.copytree(old, aside)  # or the new one was in place already
    storage.bring_back(old)
    assert old.exists() and not aside.exists()


def test_leftovers_of_killed_runs_are_removed(root):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = storage.temporary_name()
    for pid in (dead.pid, os.getpid(), os.getppid()):
        (root / own.replace(str(os.getpid()), str(pid)) / "data").mkdir(parents=True)
    storage.remove_leftovers(root)
    left = [path.name for path in root.iterdir()]
    assert left == [own.replace(str(os.getpid()), str(os.getppid()))]


@pytest.mark.slow
def test_full_disk(root, behavior):
    """One line, nothing left behind, and the old set as it was."""
    make("hopper-medium", STEPS, behavior_dir=behavior)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    words = ["hopper-medium", "--steps", str(STEPS), "--force", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.datasets.collect", *words, "--behavior-dir", behavior],
        cwd=ROOT,
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "nothing was stored" in done.stderr
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert not list(root.glob(".*"))


@pytest.mark.slow
def test_killed_while_simulating(root):
    """Its workers end, too: their end of the output pipe closes."""
    words = ["hopper-random", "--steps", "1000000", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.datasets.collect", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert b"transitions" in process.stdout.readline()
    time.sleep(2)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not list(root.iterdir())


# --------------------------------------------------------------------------------------------------
# Policies
# --------------------------------------------------------------------------------------------------


def write_snapshot(path: Path, weights: dict) -> None:
    """Write a file as Deep OPE's."""
    content = {key.replace(".", "/"): value for key, value in weights.items()}
    content |= {"nonlinearity": "relu", "output_distribution": "tanh_gaussian"}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def test_policy_is_the_learners(monkeypatch):
    """The NumPy policy is sac.py's: the same actions for the same noise."""
    sac = load_script("sac")
    task = sac.Task("Hopper-v4", "", "Hopper-v4", {}, 1000, None, None, obs_dim=11, act_dim=3)
    args = sac.Args(num_seeds=2, hidden=64)
    agent = sac.SAC(args, task, sac.torch.device("cpu"))
    obs, noise = sac.torch.randn(2, 50, 11), sac.torch.randn(2, 50, 3)
    with sac.torch.no_grad():
        agent.policy.net[-1].weight.mul_(10)  # deviations far from one, and clamped ones
        monkeypatch.setattr(sac.torch, "randn_like", lambda mean: noise)
        expected = agent.explore(obs).numpy()
    low, high = np.array([-1.0, 0.5, -3.0]), np.array([1.0, 2.0, 3.0])
    for n in range(2):
        weights = export_policy(agent.policy.state_dict(), n, {"script": "sac"})
        actions = policies.SacPolicy(weights)(obs[n].numpy(), noise[n].numpy())
        np.testing.assert_allclose(actions, expected[n], atol=2e-5)
        stretched = policies.SacPolicy(weights, low, high)(obs[n].numpy(), noise[n].numpy())
        np.testing.assert_allclose(
            stretched, (low + high) / 2 + (high - low) / 2 * actions, rtol=1e-5, atol=1e-6
        )


def test_bounds_of_one_change_no_bit():
    weights, rng = random_weights(5), np.random.default_rng(0)
    obs, noise = (rng.normal(size=(20, dim)).astype(np.float32) for dim in (11, 3))
    bounded = policies.SacPolicy(weights, -np.ones(3, np.float32), np.ones(3, np.float32))
    np.testing.assert_array_equal(policies.SacPolicy(weights)(obs, noise), bounded(obs, noise))


class Attack:
    def __reduce__(self):
        return os.mkdir, ("made",)


@pytest.mark.parametrize("content", ["text", "", "pickle", "objects", "other"])
def test_bad_weights(content, tmp_path, monkeypatch):
    """Damaged files, those of another environment, and those that would run something."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hopper-medium.npz"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Attack()))
    elif content == "objects":
        objects = np.array([Attack()], object)
        np.savez(path, **random_weights(0) | {"fc0.weight": objects})
    elif content == "other":
        np.savez(path, **random_weights(0, "HalfCheetah-v4"))
    else:
        path.write_text(content)
    with pytest.raises(SystemExit, match="cannot be read|Hopper-v4 has 11"):
        policies.load_behavior("hopper-medium", "Hopper-v4", tmp_path)
    assert not Path("made").exists()


def test_d4rls_own_policy(root, tmp_path, monkeypatch):
    """It is fetched by its hash, and the dataset says whose it is."""
    path = tmp_path / "published.pkl"
    write_snapshot(path, random_weights(3, "HalfCheetah-v4"))
    sha256 = storage.hashlib.sha256(path.read_bytes()).hexdigest()
    name = "halfcheetah_online_10.pkl"
    monkeypatch.setitem(d4rl_policies.POLICIES, name, (path.as_uri(), sha256))
    job = collect.prepare(collect.Args("halfcheetah-expert", steps=50))
    assert job.sha256 == sha256 and job.abouts[0]["url"] == path.as_uri()
    episodes = rollout.act("HalfCheetah-v4", job.behaviors[0][0].collector.args[1], [0, 0], 50)
    metadata = collect.describe(collect.Args("halfcheetah-expert"), job, episodes)
    assert "D4RL" in metadata["behavior"]["made_by"]
    for words in ("D4RL's own SAC snapshot halfcheetah_online_10", "snapshot 10 of D4RL's"):
        assert words in metadata["description"]
    assert (tmp_path / "policies" / name).exists()


def test_own_environment(root, tmp_path):
    """Pendulum's actions reach from -2 to 2; nobody has defined its scores."""
    np.savez(tmp_path / "my.npz", **random_weights(4, "Pendulum-v1"))
    write_snapshot(tmp_path / "my.pkl", random_weights(4, "Pendulum-v1"))
    hashes = set()
    for behavior in ("random", str(tmp_path / "my.npz"), str(tmp_path / "my.pkl")):
        args = collect.Args(**PENDULUM | {"behavior": behavior}, steps=450)
        job = collect.prepare(args)
        assert job.dataset_id == PENDULUM["name"] and job.stored["env"].id == "Pendulum-v1"
        episodes = rollout.trim(job.behaviors[0][0].collector([0, 0], 450), 450)
        actions = np.concatenate([episode["actions"] for episode in episodes])
        assert actions.shape == (450, 1) and 1.5 < np.abs(actions).max() <= 2
        metadata = collect.describe(args, job, episodes)
        assert "ref_min_score" not in metadata and metadata["env_id"] == "Pendulum-v1"
        assert f"--behavior {behavior} --name" in metadata["command"]
        hashes.add(metadata["data_sha256"])
    assert len(hashes) == 2, "both files hold the same weights"


@pytest.mark.slow
def test_own_environment_as_a_command(tmp_path):
    """One that only the user's module registers."""
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Mine-v0', PendulumEnv.__module__ + ':PendulumEnv', "
        "max_episode_steps=70)\n"
    )
    words = "--env-id mine:Mine-v0 --behavior random --steps 300 --name local/mine/random-v0"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.datasets.collect", *words.split(), "--workers", "1"],
        env=os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "sets"), "PYTHONPATH": tmp_path},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "local/mine/random-v0" in done.stdout and "normalized" not in done.stdout
    metadata = storage.stored_metadata(tmp_path / "sets" / "local/mine/random-v0")
    assert metadata["env_id"] == "Mine-v0" and metadata["length_mean"] == 70


@pytest.mark.slow
@pytest.mark.parametrize("name", ["antmaze-umaze", "pointmaze-umaze"])
def test_maze_sets_say_how_policies_are_scored(por, root, tmp_path, monkeypatch, name):
    """A script finds the environment and its arguments in the dataset."""
    ant = random_weights(0) | {"fc0.weight": np.zeros((32, 29), np.float32)}
    for head in ("last_fc", "last_fc_log_std"):
        ant |= {f"{head}.weight": np.zeros((8, 32), np.float32)}
        ant |= {f"{head}.bias": np.zeros(8, np.float32)}
    path = tmp_path / "ant_hierarch_pol.pkl"
    path.touch()
    monkeypatch.setattr(collect, "policy_file", lambda name: path)
    monkeypatch.setattr(collect, "read_ant", lambda path: ant)
    metadata = make(name, 800)
    dataset = metadata["dataset_id"]
    assert 0 <= metadata["success"] <= 1
    data, task = por.load_dataset(por.Args(env=dataset))
    if name == "antmaze-umaze":
        assert (task.env_id, task.max_episode_steps) == ("AntMaze-umaze-v2", 700)
        assert (task.ref_min, task.ref_max) == (0, 1)
        assert [len(episode.rewards) for episode in episodes_of(dataset)] == [701, 99]
        assert metadata["env_id"] == "AntMaze-umaze-v2"
    else:
        assert task.env_id == "PointMaze_UMaze-v3" and task.env_kwargs["reset_target"] is False
        assert data["observations"].shape == (800, 8)


# --------------------------------------------------------------------------------------------------
# Names, and the user's mistakes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"recipe": "hoper-medum"}, "did you mean hopper-medium"),
        ({"recipe": "hopper-medium", "steps": 0}, "--steps 0: must be at least 1"),
        ({"recipe": "hopper-medium", "behavior_dir": Path("nowhere")}, "sac.py"),
        ({"recipe": "rebuilt/hopper/medium-100k-v0", "steps": 5}, "has 100000; leave one out"),
        ({"recipe": "hopper-medium", "name": "local/a/b-v0"}, "--name: hopper-medium has its own"),
        ({"recipe": "hopper-medium-replay", "steps": 90_000}, "stored up to its step 81000"),
        ({}, "--env-id, --behavior, --name, --steps missing"),
        (PENDULUM | {"name": "rebuilt/a/b-v0"}, "must be like local/pendulum/random-v0"),
        (PENDULUM | {"name": "../a-v0"}, "must be like local/pendulum/random-v0"),
        (PENDULUM | {"env_id": "FrozenLake-v1"}, "observations are Discrete.*not vectors"),
        (PENDULUM | {"env_id": "Nothing-v7"}, "--env-id Nothing-v7"),
        (PENDULUM | {"env_id": "CarRacing-v3"}, "--env-id CarRacing-v3"),
        (PENDULUM | {"behavior": "nowhere.npz"}, "nowhere.npz is missing"),
        (PENDULUM | {"behavior": "nowhere.pkl"}, "nowhere.pkl"),
    ],
)
def test_bad_input(arguments, message, root):
    if "name" in arguments and "recipe" not in arguments:
        arguments = arguments | {"steps": 9}
    with pytest.raises(SystemExit, match=message):
        collect.collect(collect.Args(**arguments))
    assert not list(root.iterdir())


def test_ids():
    recipe = recipes.RECIPES["hopper-medium"]
    sizes = {1_000_000: "", 100_000: "-100k", 2_000_000: "-2m", 12_345: "-12345"}
    for steps, size in sizes.items():
        name = f"rebuilt/hopper/medium{size}-v0"
        assert recipes.dataset_id(recipe, steps) == name
        assert recipes.find_recipe(name) == ("hopper-medium", steps if size else None)
    for key, recipe in recipes.RECIPES.items():
        assert recipes.find_recipe(recipes.dataset_id(recipe, recipe.steps)) == (key, None)
        assert recipes.find_recipe(recipes.dataset_id(recipe, 81_000)) == (key, 81_000)


def test_d4rls_mixtures():
    """The figures of D4RL's medium-expert sets, known from other logs, follow from their halves."""
    for name, mean in (("hopper", 2089.88), ("halfcheetah", 7713.38)):
        assert abs(recipes.PUBLISHED[f"{name}-medium-expert"].mean - mean) < 0.01
    two = recipes.Published(0.0, 1.0, 10, 5).followed_by(recipes.Published(4.0, 1.0, 30, 5))
    assert (two.mean, two.transitions, two.episodes) == (2.0, 40, 10)
    assert two.std == pytest.approx(5**0.5)


@pytest.mark.parametrize("program", [collect, d4rl_policies, recipes])
def test_help_says_what_a_program_is(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    assert program.__doc__.split()[0] in capsys.readouterr().out


def test_the_list_of_recipes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipes.py"])
    recipes.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(recipes.RECIPES)
    assert lines[2].split() == ["hopper-medium"] * 2 + ["1,000,000", "rebuilt/hopper/medium-v0"]
