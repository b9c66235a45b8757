"""Tests of benchmarks/collect.py and select_behavior.py: what they promise, on tiny datasets.

    python -m pytest tests/test_collect.py
"""

import json
import os
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

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import collect as collecting  # noqa: E402
import recipes  # noqa: E402
import select_behavior  # noqa: E402

collecting.quiet()
STEPS, SHARD = 1_500, 400  # four shards, the last one smaller; episodes take 10 to 100 steps
DATASET = f"rebuilt/hopper/medium-{STEPS}-v0"
OWN = dict(env_id="Pendulum-v1", behavior="random", name="local/pendulum/random-v0", steps=9)


def random_weights(seed: int, obs_dim: int = 11, act_dim: int = 3) -> dict[str, np.ndarray]:
    """Weights of an untrained policy for Hopper, as `SacPolicy` takes them."""
    rng = np.random.default_rng(seed)
    sizes = {"fc0": (256, obs_dim), "fc1": (256, 256), "last_fc": (act_dim, 256),
             "last_fc_log_std": (act_dim, 256)}
    weights = {}
    for layer, (rows, columns) in sizes.items():
        weights[f"{layer}.weight"] = rng.normal(0, columns ** -0.5, (rows, columns))
        weights[f"{layer}.bias"] = np.zeros(rows)
    return {key: value.astype(np.float32) for key, value in weights.items()}


@pytest.fixture(scope="module")
def behavior(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("behavior")
    about = json.dumps({"training_command": "python algorithms/sac.py", "step": 7})
    np.savez(folder / "hopper-medium.npz", about=about, **random_weights(0))
    return folder


def command(root: Path, behavior: Path, *words: str, **options) -> subprocess.CompletedProcess:
    """Run collect.py in a process of its own, with the datasets in `root`."""
    return subprocess.run(
        [sys.executable, BENCHMARKS / "collect.py", *words, "--behavior-dir", behavior],
        env={**os.environ, "MINARI_DATASETS_PATH": str(root)}, capture_output=True, text=True,
        cwd=behavior, timeout=120, **options)


SMALL = ("hopper-medium", "--steps", str(STEPS), "--shard-steps", str(SHARD))


@pytest.fixture(scope="module")
def made(behavior, tmp_path_factory) -> tuple[Path, str]:
    """Folder with the small dataset, made by the command with one worker, and what it printed."""
    root = tmp_path_factory.mktemp("datasets")
    result = command(root, behavior, *SMALL, "--workers", "1")
    assert result.returncode == 0, result.stderr
    return root, result.stdout


@pytest.fixture
def episodes(made, monkeypatch) -> list:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(made[0]))
    return list(minari.load_dataset(DATASET))


def test_shapes_and_flags(episodes):
    assert sum(len(e.rewards) for e in episodes) == STEPS
    for number, e in enumerate(episodes):
        length = len(e.rewards)
        assert e.observations.shape == (length + 1, 11) and e.actions.shape == (length, 3)
        assert {e.observations.dtype, e.actions.dtype, e.rewards.dtype} == {np.dtype("float32")}
        assert np.abs(e.actions).max() <= 1
        assert not e.terminations[:-1].any() and not e.truncations[:-1].any()
        last = number == len(episodes) - 1
        # An untrained hopper falls long before the time limit: only the end of the set is cut.
        assert (e.terminations[-1], e.truncations[-1]) == (not last, last)


def test_transitions_are_the_environments(made, monkeypatch):
    """Replaying a stored episode's seed and actions gives its observations and rewards."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(made[0]))
    dataset = minari.load_dataset(DATASET)
    seeds = [m["seed"] for m in dataset.storage.get_episode_metadata(range(3))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = dataset.recover_environment()
    assert env.spec.id == "Hopper-v4" and env.spec.max_episode_steps == 1000
    for episode, seed in zip(dataset, seeds):
        np.testing.assert_array_equal(env.reset(seed=seed)[0].astype("f4"),
                                      episode.observations[0])
        for t, action in enumerate(episode.actions):
            observation, reward, terminated, _, _ = env.step(action)
            np.testing.assert_array_equal(observation.astype("f4"), episode.observations[t + 1])
            assert np.float32(reward) == episode.rewards[t]
            assert terminated == episode.terminations[t]


def test_metadata(made, behavior, episodes):
    metadata = minari.list_local_datasets()[DATASET]
    assert metadata["total_steps"] == STEPS and metadata["total_episodes"] == len(episodes)
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (-20.272305, 3234.3)
    assert metadata["author"] == ["SOLO"] and metadata["algorithm_name"] == "SAC"
    assert metadata["behavior"]["step"] == 7 and len(metadata["behavior"]["sha256"]) == 64
    assert metadata["command"] == ("python benchmarks/collect.py hopper-medium --steps 1500 "
                                   "--seed 0 --shard-steps 400")
    for key in ("mujoco_version", "gymnasium_version", "numpy_version", "commit", "description"):
        assert metadata[key]
    assert metadata["data_sha256"] == collecting.data_sha256(episodes)
    assert metadata["data_sha256"] in made[1] and "deviates by" in made[1]
    assert not (behavior / "MUJOCO_LOG.TXT").exists()  # the command ran there


def test_same_data_for_any_workers_and_repeats(made, behavior):
    root, output = made
    result = command(root, behavior, *SMALL, "--workers", "2", "--force")
    assert result.returncode == 0, result.stderr
    find_hash = lambda text: [line for line in text.splitlines() if "SHA-256" in line]
    assert find_hash(result.stdout) == find_hash(output)
    assert not list(root.glob(".*")), "temporary folder left behind"


def hopper_stages(folder: Path) -> list:
    """The stages of hopper-medium, as `simulate` takes them."""
    recipe = collecting.RECIPES["hopper-medium"]
    return collecting.load_collectors(recipe, "hopper-medium", folder)[0]


def test_smaller_set_begins_the_larger(behavior, episodes):
    smaller, _ = collecting.simulate([hopper_stages(behavior)], 700, 0, SHARD, 1)
    for small, large in zip(smaller[:-1], episodes):
        np.testing.assert_array_equal(small["observations"], large.observations)
    cut = len(smaller[-1]["rewards"])
    large = episodes[len(smaller) - 1]
    np.testing.assert_array_equal(smaller[-1]["actions"], large.actions[:cut])


def test_existing_dataset_is_kept(made, behavior):
    root, output = made
    file = root / DATASET / "data" / "main_data.hdf5"
    before = file.stat().st_mtime_ns
    result = command(root, behavior, *SMALL)
    assert result.returncode == 0 and "exists already" in result.stdout
    assert file.stat().st_mtime_ns == before
    other = command(root, behavior, *SMALL, "--seed", "1")
    assert other.returncode != 0 and "--force" in other.stderr
    assert file.stat().st_mtime_ns == before


def test_killed_while_writing(behavior, tmp_path):
    """Killed when Minari has written half of it: no such dataset, and the next run makes it."""
    script = (f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['collect.py']\n"
              "import os, signal, collect\n"
              "from minari.dataset.minari_storage import MinariStorage\n"
              "MinariStorage.update_metadata = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
              f"collect.collect(collect.Args('hopper-medium', steps={STEPS}, workers=1, "
              f"behavior_dir=collect.Path({str(behavior)!r}), shard_steps={SHARD}))\n")
    root = tmp_path / "datasets"
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(root)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(root.glob(".collect-*")), "it was not writing yet"
    assert not (root / DATASET).exists()
    result = command(root, behavior, *SMALL, "--workers", "1")
    assert result.returncode == 0, result.stderr
    assert (root / DATASET / "data" / "main_data.hdf5").exists()
    assert not list(root.glob(".collect-*"))


def test_killed_while_simulating(behavior, tmp_path):
    """Its workers end too: their end of the output pipe closes."""
    process = subprocess.Popen(
        [sys.executable, BENCHMARKS / "collect.py", "hopper-random", "--steps", "1000000",
         "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "MINARI_DATASETS_PATH": str(tmp_path)})
    assert b"transitions" in process.stdout.readline()
    time.sleep(2)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_incomplete_dataset_is_named(behavior, tmp_path, monkeypatch):
    """What a killed writer of Minari's leaves behind: neither taken for data nor overwritten."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = tmp_path / DATASET / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text('{"total_steps": 0}')
    with pytest.raises(SystemExit, match="incomplete.*--force"):
        collecting.collect(collecting.Args("hopper-medium", steps=STEPS, behavior_dir=behavior))


@pytest.mark.parametrize("arguments, message", [
    (dict(recipe="hoper-medum"), "Did you mean hopper-medium"),
    (dict(recipe="hopper-medium", steps=0), "--steps 0: must be at least 1"),
    (dict(recipe="hopper-medium", behavior_dir=Path("nowhere")), "sac.py"),
    (dict(recipe="rebuilt/hopper/medium-100k-v0", steps=5), "has 100000; leave one out"),
    (dict(recipe="hopper-medium", name="local/a/b-v0"), "--name: hopper-medium has its own"),
    (dict(), "--env-id, --behavior, --name, --steps missing"),
    (dict(OWN, name="rebuilt/a/b-v0"), "must be like local/pendulum/random-v0"),
    (dict(OWN, name="../a-v0"), "must be like local/pendulum/random-v0"),
    (dict(OWN, env_id="CartPole-v1"), "must be vectors"),
    (dict(OWN, env_id="Nothing-v7"), "--env-id Nothing-v7"),
    (dict(OWN, env_id="CarRacing-v3"), "--env-id CarRacing-v3"),
    (dict(OWN, behavior="nowhere.npz"), "nowhere.npz is missing"),
    (dict(OWN, behavior="nowhere.pkl"), "nowhere.pkl"),
])
def test_bad_input(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=message):
        collecting.collect(collecting.Args(**arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["damaged", random_weights(0, obs_dim=17)])
def test_bad_weights(content, tmp_path):
    path = tmp_path / "hopper-medium.npz"
    path.write_text(content) if isinstance(content, str) else np.savez(path, **content)
    with pytest.raises(SystemExit, match="cannot read|Hopper-v4 has 11"):
        collecting.load_behavior("hopper-medium", "Hopper-v4", tmp_path)


def test_ids():
    recipe = collecting.RECIPES["hopper-medium"]
    for steps, size in ((1_000_000, ""), (100_000, "-100k"), (2_000_000, "-2m"),
                        (12_345, "-12345")):
        assert collecting.dataset_id(recipe, steps) == f"rebuilt/hopper/medium{size}-v0"
    for name, size in (("hopper-medium", None), ("rebuilt/hopper/medium-v0", None),
                       ("rebuilt/hopper/medium-100k-v0", 100_000),
                       ("rebuilt/hopper/medium-2m-v0", 2_000_000)):
        assert collecting.find_recipe(name) == ("hopper-medium", size)
    replay = collecting.RECIPES["hopper-medium-replay"]
    assert collecting.dataset_id(replay, 402_000) == "rebuilt/hopper/medium-replay-v0"
    assert collecting.dataset_id(replay, 81_000) == "rebuilt/hopper/medium-replay-81k-v0"
    assert collecting.find_recipe("rebuilt/hopper/medium-snapshot5-v0") == (
        "hopper-medium-snapshot5", None)


def test_policy_is_the_learners():
    """The NumPy policy is sac.py's: the same actions for the same noise, whatever the bounds."""
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(BENCHMARKS.parent / "algorithms"))
    import sac

    low, high = [-1.0, 0.5, -3.0], [1.0, 2.0, 3.0]
    task = {"obs_dim": 11, "act_dim": 3, "act_low": low, "act_high": high}
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    agent = sac.SAC(sac.Args(lr=1e-3, num_seeds=2), task, generators, torch.device("cpu"))
    obs, noise = torch.randn(2, 50, 11), torch.randn(2, 50, 3)
    with torch.no_grad():
        agent.policy.net.weights[-1].mul_(10)  # deviations far from one, and clamped ones
        expected = agent.explore(obs, noise).numpy()
    for n in range(2):
        weights = select_behavior.exported(agent.policy.state_dict(), n)
        actions = recipes.SacPolicy(weights, np.array(low), np.array(high))(*(
            x[n].numpy() for x in (obs, noise)))
        np.testing.assert_allclose(actions, expected[n], atol=2e-5)


class Toy(gym.Env):
    """Episodes of 2 steps (nine in ten) or 40; the length is drawn when it starts."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))
    lengths, mean_length = (2, 40), 0.9 * 2 + 0.1 * 40

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.lengths[int(self.np_random.random() < 0.1)]
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], np.float32), float(action[0]), self.left == 0, False, {}


def toys(slots: int, limit: int = 100) -> list:
    spec = gym.envs.registration.EnvSpec("Toy-v0", entry_point=Toy, max_episode_steps=limit)
    return [gym.make(spec, disable_env_checker=True) for _ in range(slots)]


TOY_POLICY = recipes.UniformPolicy(np.array([-1.0]), np.array([1.0]), 1)


@pytest.mark.parametrize("limits", [dict(steps=300), dict(episodes=30),
                                    dict(steps=100, episodes=30)])
def test_kept_episodes_do_not_depend_on_the_slots(limits):
    """Eight episodes side by side keep what one after the other gives: the shortest prefix."""
    one = collecting.rollout(toys(1), TOY_POLICY, [5], **limits)
    many = collecting.rollout(toys(8), TOY_POLICY, [5], **limits)
    assert len(one) == len(many)
    for a, b in zip(one, many):
        for field in collecting.FIELDS:
            np.testing.assert_array_equal(a[field], b[field])
    enough = lambda part: (sum(len(e["rewards"]) for e in part) >= limits.get("steps", 0)
                           and len(part) >= limits.get("episodes", 1))
    assert enough(many) and not enough(many[:-1])


def test_long_episodes_are_not_disfavoured():
    """Mean length over many short shards is 5.8, the truth.

    Keeping what ends first would give 2.0, leaving out the episode that crosses the quota 4.2.
    """
    envs = toys(8)
    lengths = [len(e["rewards"]) for shard in range(500)
               for e in collecting.rollout(envs, TOY_POLICY, [0, shard], steps=60)]
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert error < 0.2
    assert abs(np.mean(lengths) - Toy.mean_length) < 4 * error


def test_time_limit_is_a_truncation():
    for e in collecting.rollout(toys(3, limit=10), TOY_POLICY, [1], episodes=60):
        timeout = len(e["rewards"]) == 10
        assert (e["terminations"][-1], e["truncations"][-1]) == (not timeout, timeout)
        assert e["observations"].shape == (len(e["rewards"]) + 1, 1)


def test_trim():
    episodes = collecting.rollout(toys(1), TOY_POLICY, [2], steps=50)
    total = sum(len(e["rewards"]) for e in episodes)
    whole = collecting.trim(episodes, total)
    assert len(whole) == len(episodes) and whole[-1]["terminations"][-1]
    cut = collecting.trim(episodes, total - 1)
    assert sum(len(e["rewards"]) for e in cut) == total - 1
    assert cut[-1]["truncations"][-1] and not cut[-1]["terminations"].any()
    assert not episodes[-1]["truncations"].any(), "the original was changed"


def test_select(tmp_path, capsys):
    """From a checkpoint to a weight file that collect.py reads, and its row in the README."""
    torch = pytest.importorskip("torch")
    run, out = tmp_path / "run", tmp_path / "behavior" / "hopper-medium.npz"
    run.mkdir()
    buffer = torch.zeros(1, 27)
    buffer[0, 11:14] = torch.as_tensor(np.random.default_rng(42).uniform(-1, 1, 3))
    snapshots = {step: {key: torch.as_tensor(value) for key, value in random_weights(step).items()}
                 for step in (1000, 2000, 3000)}
    torch.save({"snapshots": snapshots, "buffer": buffer, "step": 3000}, run / "checkpoint.pt")
    policy = recipes.SacPolicy(random_weights(2000))
    score = select_behavior.measure("Hopper-v4", policy, [9], 30)
    args = select_behavior.Args(runs=(run,), target=score.mean, target_length=score.length, out=out,
                                quick_episodes=5, episodes=30, finalists=2, accept=1.0, workers=1)
    for _ in range(2):  # the second time replaces the row
        select_behavior.select(args)
    assert "selection score" in capsys.readouterr().out
    _, about = collecting.load_behavior("hopper-medium", "Hopper-v4", out.parent)
    assert about["training_seed"] == 42 and about["step"] in snapshots
    assert f"--seed 42 --num-steps {about['step']}" in about["training_command"]
    readme = (out.parent / "README.md").read_text()
    # a row of the first table, which ends with an empty line
    assert f"| `{about['sha256']}` |" in readme.partition("## Bundles")[0]
    assert readme.count("| `hopper-medium.npz` |") == 1
    args.target, args.accept, args.out = 1e4, 0.15, tmp_path / "other.npz"
    with pytest.raises(SystemExit, match="nothing was written"):
        select_behavior.select(args)
    assert not args.out.exists()


def test_choice():
    score = lambda mean, length: select_behavior.Score(mean, 1.0, length, 100)
    scores = {"a": score(100, 30), "b": score(103, 40), "c": score(120, 50)}
    assert select_behavior.choose(scores, 100, None, 0.05) == "a"
    assert select_behavior.choose(scores, 100, 50, 0.05) == "b"
    assert select_behavior.choose(scores, 200, 30, 0.05) == "c"
