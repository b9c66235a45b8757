"""Datasets of environments with discrete actions: their policies, their form, and who acts."""

import json
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch

from benchmarks.common import load_script
from benchmarks.datasets import collect, discrete, policies, rollout, storage

STEPS = 600
CARTPOLE = {"env_id": "CartPole-v1", "name": "local/cartpole/a-v0", "steps": STEPS}


@pytest.fixture(autouse=True)
def quiet():
    rollout.quiet()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Folder of the datasets of one test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


@pytest.fixture(scope="module")
def script():
    """Return discrete_bcq.py."""
    return load_script("discrete_bcq")


@pytest.fixture(scope="module")
def dqn(script, tmp_path_factory) -> Path:
    """Return the folder of a small DQN run with two agents."""
    folder = tmp_path_factory.mktemp("runs") / "dqn"
    args = script.Args(
        env="CartPole-v1",
        threshold=0,
        seed=4,
        num_seeds=2,
        random_steps=60,
        num_updates=40,
        hidden=16,
        eval_episodes=1,
        final_eval_episodes=1,
        run_dir=str(folder),
    )
    script.train(script.start_run(args))
    return folder


def policy_of(folder: Path) -> discrete.DqnPolicy:
    stages, _ = policies.load_behavior(str(folder), "CartPole-v1", folder)
    return stages[0][0]


# ---- The policies ----


def test_the_policy_is_the_first_agents(script, dqn):
    checkpoint = script.load_checkpoint(str(dqn))
    task = script.Task(**checkpoint["task"])
    agent = script.Algorithm(script.Args(**checkpoint["args"]), task, torch.device("cpu"))
    agent.load_state_dict(checkpoint["agent"])
    obs = 3 * np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    with torch.no_grad():
        expected = agent.act(torch.from_numpy(obs).expand(2, -1, -1)).numpy()
    found = policy_of(dqn)(obs, np.full(200, discrete.GREEDY))
    np.testing.assert_array_equal(found, expected[0])
    assert 0 < found.mean() < 1 and (expected[0] != expected[1]).any()


def test_an_episode_in_five_is_greedy_and_every_fifth_action_of_the_others_random():
    policy = discrete.DqnPolicy([np.zeros((4, 3), np.float32)], [np.zeros(3, np.float32)])
    draws = [policy.draw(np.random.default_rng(i), 100) for i in range(2000)]
    random = np.array([draw != discrete.GREEDY for draw in draws])
    greedy = ~random.any(axis=1)
    assert greedy.mean() == pytest.approx(0.2, abs=0.04)
    assert random[~greedy].mean() == pytest.approx(0.2, abs=0.01)
    chosen = np.concatenate(draws)[random.ravel()]
    shares = np.bincount(chosen) / len(chosen)
    assert len(shares) == 3 and shares == pytest.approx(1 / 3, abs=0.02)
    actions = policy(np.zeros((100, 4)), draws[0])
    np.testing.assert_array_equal(actions, np.where(random[0], draws[0], 0))


# ---- A dataset ----


def test_a_dataset_is_what_happened(root, dqn, script, por):
    metadata = collect.collect(collect.Args(**CARTPOLE, behavior=str(dqn), workers=1))
    assert metadata["total_steps"] == STEPS and metadata["algorithm_name"] == "DQN"
    about = metadata["behavior"]
    assert (about["step"], about["training_seed"]) == (40, 4)
    assert about["training_command"] == (
        "python algorithms/discrete_bcq.py --env CartPole-v1 --seed 4 --num-seeds 2 "
        "--eval-episodes 1 --final-eval-episodes 1 --threshold 0 --random-steps 60 --hidden 16 "
        "--num-updates 40 --run-dir runs/dqn"
    )
    dataset = minari.load_dataset(CARTPOLE["name"])
    episodes = list(dataset.iterate_episodes())
    assert metadata["data_sha256"] == storage.data_sha256(episodes)
    seeds = [known["seed"] for known in dataset.storage.get_episode_metadata(range(5))]
    env = gym.make("CartPole-v1")
    for episode, seed in zip(episodes[:5], seeds, strict=True):
        assert episode.actions.dtype == np.int64 and episode.actions.ndim == 1
        obs = [env.reset(seed=seed)[0]]
        for action, terminated in zip(episode.actions, episode.terminations, strict=True):
            next_obs, _, end, _, _ = env.step(action)
            assert end == terminated
            obs.append(next_obs)
        np.testing.assert_array_equal(np.float32(obs), episode.observations)

    # What discrete_bcq.py learns from, and what other scripts refuse.
    data, task = script.load_dataset(script.Args(env=CARTPOLE["name"]))
    assert task.num_actions == 2 and task.env_id == "CartPole-v1"
    actions = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_array_equal(data["actions"][:, 0], actions)
    with pytest.raises(SystemExit, match="must be vectors of real numbers, not Discrete"):
        por.load_dataset(por.Args(env=CARTPOLE["name"]))


def test_another_policy_is_noticed(root, dqn, script, tmp_path):
    collect.collect(collect.Args(**CARTPOLE, behavior=str(dqn), workers=1))
    other = tmp_path / "other"
    other.mkdir()
    checkpoint = script.load_checkpoint(str(dqn))
    checkpoint["agent"]["critic.4.bias"] += 1
    torch.save(checkpoint, other / "checkpoint.pt")
    with pytest.raises(SystemExit, match="exists with behavior_sha256"):
        collect.collect(collect.Args(**CARTPOLE, behavior=str(other), workers=1))


def test_random_actions(root):
    args = collect.Args(**CARTPOLE | {"env_id": "Acrobot-v1"}, behavior="random")
    job = collect.prepare(args)
    episodes = rollout.trim(job.behaviors[0][0].collector([0, 0], STEPS), STEPS)
    actions = np.concatenate([episode["actions"] for episode in episodes])
    assert (np.bincount(actions) > STEPS / 4).all() and actions.max() == 2
    metadata = collect.describe(args, job, episodes)
    assert metadata["algorithm_name"] == "uniform random"
    assert json.dumps(metadata)


# ---- The user's mistakes ----


@pytest.mark.parametrize(
    "change, message",
    [
        ({"behavior": "nowhere"}, "--behavior nowhere: .*random or the --run-dir"),
        ({"behavior": "policy.npz"}, "random or the --run-dir of a run of discrete_bcq.py"),
        ({"env_id": "Acrobot-v1"}, "was trained on CartPole-v1, not on Acrobot-v1"),
    ],
)
def test_bad_input(change, message, dqn, root):
    with pytest.raises(SystemExit, match=message):
        collect.collect(collect.Args(**CARTPOLE | {"behavior": str(dqn)} | change))
    assert not list(root.iterdir())


def test_a_run_that_is_no_dqn_is_refused(dqn, script, tmp_path):
    checkpoint = script.load_checkpoint(str(dqn))
    checkpoint["args"]["threshold"] = 0.3
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match="is no DQN; train with --threshold 0"):
        policies.load_behavior(str(tmp_path), "CartPole-v1", tmp_path)


def test_actions_that_do_not_begin_with_0_are_refused(monkeypatch):
    env = gym.make("CartPole-v1").unwrapped
    env.action_space = gym.spaces.Discrete(2, start=1)
    gym.register("Shifted-v0", lambda: env, max_episode_steps=10)
    monkeypatch.setitem(gym.registry, "Shifted-v0", gym.registry.pop("Shifted-v0"))
    with pytest.raises(SystemExit, match="start=1.*from 0 on"):
        policies.spaces("Shifted-v0", discrete=True)
    with pytest.raises(SystemExit, match=r"Discrete\(2\), not vectors \(Box\)$"):
        policies.spaces("CartPole-v1")
