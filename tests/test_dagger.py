"""Tests of algorithms/dagger.py: the expert, who acts, the data that grow.

python -m pytest tests/test_dagger.py
"""

import json
from collections import Counter
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

import bc
import dagger
from benchmarks.datasets.policies import SacPolicy
from tests.helpers import checkpoint_of, forward, make_data, make_task

BEHAVIOR = Path(__file__).resolve().parents[1] / "benchmarks/datasets/behavior"
RUN = ["--num-seeds=2", "--seed=3", "--hidden=16", "--batch-size=20", "--eval-episodes=1"]
RUN += ["--final-eval-episodes=1", "--num-updates=30", "--updates-per-round=10"]
RUN += ["--steps-per-round=40", "--eval-every=10", "--expert=expert.npz"]


def make_args(**options) -> dagger.Args:
    """Return arguments of a small run, completed as a run does it."""
    small = {"env": "no-env-v0", "num_seeds": 2, "hidden": 16, "batch_size": 20}
    return dagger.apply_settings(dagger.Args(**small | options))


def write_expert(path, obs_dim: int = 3, act_dim: int = 1, hidden: int = 32, seed: int = 0) -> str:
    """Write an expert with one hidden layer, whose actions change quickly with the state."""
    rng = np.random.default_rng(seed)
    weights = {
        "fc0.weight": rng.normal(0, 2, (hidden, obs_dim)),
        "fc0.bias": rng.normal(size=hidden),
    }
    weights |= {"last_fc.weight": rng.normal(0, 0.5, (act_dim, hidden)), "about": json.dumps({})}
    weights |= {"last_fc.bias": rng.normal(size=act_dim)}
    np.savez(path, **weights)
    return str(path)


def columns_of(path) -> dict:
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file}


# ---- The expert, and who acts ----


def test_the_expert_is_the_mean_of_a_policy_in_the_repository():
    path = BEHAVIOR / "hopper-medium.npz"
    expert = dagger.Expert(str(path), make_task(dagger, 11, 3))
    obs = np.random.default_rng(0).normal(size=(20, 11))
    with np.load(path) as file:
        policy = SacPolicy(dict(file))
    expected = policy(obs.astype(np.float32), np.zeros((20, 3), dtype=np.float32))
    np.testing.assert_allclose(expert(obs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name, dims", [("hopper-medium", (11, 2)), ("hopper-medium", (4, 3)), ("none", (11, 3))]
)
def test_an_expert_that_does_not_fit_is_refused(name, dims):
    with pytest.raises(SystemExit, match="--expert"):
        dagger.Expert(str(BEHAVIOR / f"{name}.npz"), make_task(dagger, *dims))


def test_a_bundle_of_policies_and_python_objects_are_refused(tmp_path):
    bundle = str(BEHAVIOR / "hopper-medium-replay.npz")
    objects = {"last_fc.weight": np.array([{}]), "last_fc.bias": np.zeros(1)}
    np.savez(tmp_path / "objects.npz", **objects)
    for path in (bundle, str(tmp_path / "objects.npz")):
        with pytest.raises(SystemExit, match="--expert"):
            dagger.Expert(path, make_task(dagger, 11, 3))


def test_the_human_takes_over_far_from_the_expert_and_hands_back_near_it():
    args = make_args(gate="human", take_over=0.3, hand_back=0.1)
    acted = np.zeros(1, dtype=bool)
    found = []
    for distance in (0.0, 0.2, 0.3, 0.31, 0.2, 0.1, 0.09, 0.2, 0.4):
        acted = dagger.who_acts(args, acted, np.array([distance]), 1.0, None)
        found.append(bool(acted[0]))
    assert found == [False, False, False, True, True, True, False, False, True]


def test_the_expert_acts_in_its_share_of_the_steps():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        acts = dagger.who_acts(make_args(), None, np.zeros(5000), share, rng)
        assert acts.mean() == pytest.approx(share, abs=0.03)
        assert share == 0.3 or acts.mean() == share


def test_the_experts_share_follows_its_schedule():
    linear = make_args(schedule="linear", beta_rounds=4)
    found = [dagger.expert_share(linear, number) for number in range(6)]
    assert found == [1, 0.75, 0.5, 0.25, 0, 0]
    exponential = make_args(schedule="exponential", beta_decay=0.5)
    found = [dagger.expert_share(exponential, number) for number in range(4)]
    assert found == [1, 0.5, 0.25, 0.125]


def test_batches_hold_the_dataset_and_the_agents_own_steps_each_equally_likely():
    args = make_args(batch_size=40_000)
    columns = {"observations": np.arange(4)[:, None]}
    buffer = dagger.OnlineBuffer(dagger.ReplayBuffer(columns, args, torch.device("cpu")), 2, 8)
    for k in range(4):
        buffer.add({"observations": torch.tensor([[10.0 + k], [20.0 + k]])})
    drawn = buffer.sample()["observations"].squeeze(-1)
    for n in range(2):
        values, counts = drawn[n].unique(return_counts=True)
        own = [10 * (n + 1) + k for k in range(4)]
        assert values.tolist() == [0, 1, 2, 3, *own]
        np.testing.assert_allclose(counts, 5_000, atol=400)  # six standard deviations


def test_the_loss_is_bcs_over_the_rows_that_are_in_the_data():
    torch.manual_seed(0)
    moments = {"obs_mean": [0.5, -1.0, 0.0, 2.0], "obs_std": [1.0, 0.5, 2.0, 1.5]}
    agent = dagger.DAgger(make_args(lr=0.0), make_task(dagger, **moments), "cpu")
    batch = {"observations": torch.randn(2, 32, 4), "actions": torch.randn(2, 32, 2).tanh()}
    batch["in_data"] = (torch.rand(2, 32) < 0.5).float()
    found = agent.update(batch)["loss/policy"]
    s, a, in_data = (batch[key].double().numpy() for key in ("observations", "actions", "in_data"))
    s = (s - moments["obs_mean"]) / moments["obs_std"]
    for n in range(2):
        error = ((np.tanh(forward(agent.policy, n, s[n])) - a[n]) ** 2).mean(1)
        assert found[n].item() == pytest.approx(error[in_data[n] == 1].mean(), rel=1e-5)


def test_a_dataset_gives_states_and_the_expert_answers_in_them(tmp_path):
    path = write_expert(tmp_path / "expert.npz")
    rng = np.random.default_rng(0)
    data = make_data({"rewards": np.ones(9), "observations": rng.normal(size=(9, 3))})
    data["actions"] = rng.normal(size=(9, 1)).astype(np.float32)
    task = make_task(dagger, 3, 1)
    columns = dagger.prepare_data(make_args(expert=path), data, task)
    np.testing.assert_array_equal(columns["taken_actions"], data["actions"])
    np.testing.assert_array_equal(
        columns["actions"], dagger.Expert(path, task)(data["observations"])
    )
    np.testing.assert_allclose(task.obs_mean, data["observations"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(task.obs_std, data["observations"].std(0) + 1e-3, rtol=1e-5)
    np.testing.assert_array_equal(columns["timeouts"], np.zeros(9))  # the task ends all episodes


# ---- A known answer ----

WIND = np.linspace(-1, 1, 13)  # where the steering that it needs turns
STEERING = [-0.6, *[0.6, -0.6] * 6]
RUTS = 0.2  # how far from the middle they end


def holding(x: float, wind: float) -> float:
    """Return the action with which a car at x does not leave its line."""
    return np.tanh(np.interp(wind, WIND, STEERING) + 2 * np.clip(x, -RUTS, RUTS))


class Road(gym.Env):
    """A car is to stay within 1 of the middle, for 100 steps. Its wind is another in every step.

    It begins in ruts that pull it to the middle. So to hold a line in them, it must steer outwards.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-RUTS, RUTS)
        return self.observe(), {}

    def observe(self):
        self.wind = self.np_random.uniform(-1, 1)
        return np.array([self.x, self.wind], dtype=np.float32)

    def step(self, action):
        self.x += 0.5 * (action.item() - holding(self.x, self.wind))
        return self.observe(), 1.0, bool(abs(self.x) > 1), False, {}


gym.register("RoadWithRuts-v0", Road, max_episode_steps=100)


def write_driver(path) -> None:
    """Write an expert that holds its line in the ruts, and steers back to them from beyond."""
    slope = 1.2 / (WIND[1] - WIND[0])
    turns = 2 * slope * (-1.0) ** np.arange(12)
    turns[0] = slope
    weights = {
        "fc0.weight": np.array([[0, 1]] * 12 + [[1, 0], [-1, 0]] * 2),
        "fc0.bias": np.array([*-WIND[:-1], 0, 0, -RUTS, -RUTS]),
        "last_fc.weight": np.array([[*turns, 2, -2, -6, 6]]),
        "last_fc.bias": np.array([STEERING[0]]),
    }
    np.savez(path, **weights)


def drive(main, *words: str) -> tuple[dict, dict]:
    """Return the checkpoint of a run of two rounds, and the data of its first agent."""
    write_driver("driver.npz")
    options = ["--env=RoadWithRuts-v0", "--expert=driver.npz", "--num-seeds=3", "--hidden=32"]
    options += ["--batch-size=64", "--lr=3e-3", "--num-updates=600", "--updates-per-round=300"]
    options += ["--steps-per-round=500", "--final-eval-episodes=10", "--run-dir=road", *words]
    end = main(*options, script="dagger", small=False)
    assert end.code == 0 and end.err == "", end.err
    return checkpoint_of("road"), columns_of("road/dataset-agent0.hdf5")


def test_a_clone_leaves_the_road_because_its_expert_never_shows_the_way_back(main):
    checkpoint, data = drive(main, "--schedule=exponential", "--beta-decay=1")
    assert checkpoint["task"]["data_return"] == 100
    assert len(data["rewards"]) == 1_000 and np.abs(data["observations"][:, 0]).max() < 0.201
    assert max(checkpoint["final"]["returns"]) < 40


def test_dagger_stays_on_the_road_with_as_many_answers(main):
    checkpoint, data = drive(main, "--beta-rounds=1")
    assert len(data["rewards"]) == 1_000 and np.abs(data["observations"][:, 0]).max() > 0.5
    assert min(checkpoint["final"]["returns"]) > 95


# ---- Runs ----


def run(main, env_id: str, *words, run_dir: str = "run", dims=(3, 1)) -> dict:
    """Return the checkpoint of a small run. `dims`: of states and actions, Pendulum's."""
    write_expert("expert.npz", *dims)
    end = main(f"--env={env_id}", *RUN, *words, "--run-dir", run_dir, script="dagger", small=False)
    assert end.code == 0 and end.err == "", end.err
    return checkpoint_of(Path(run_dir))


def test_rounds_add_states_that_happened_with_the_experts_answers(main, short_env):
    env_id = short_env("Pendulum-v1")
    checkpoint = run(main, env_id, "--beta-rounds=4")
    steps, task = checkpoint["extra_state"], dagger.Task(**checkpoint["task"])
    assert steps["actions"].shape == (2, 80, 1)  # of two rounds after the expert's own
    expert = dagger.Expert("expert.npz", task)
    for i in range(2):
        env = dagger.make_env(task)
        by_expert = []
        for k in range(80):
            step = {key: column[i, k].numpy() for key, column in steps.items()}
            number, done = 1 + k // 40, k % 40
            if done in (0, 25):  # the time limit
                obs = dagger.reset_env(env, 3, i, number, done)
            np.testing.assert_array_equal(step["observations"], np.float32(obs))
            np.testing.assert_allclose(step["actions"], expert(obs), rtol=1e-5, atol=1e-6)
            obs, reward, _, _, _ = env.step(step["taken_actions"])
            assert step["rewards"] == np.float32(reward) and step["in_data"] == 1
            assert step["terminals"] == 0 and step["timeouts"] == (done in (24, 39))
            by_expert.append(np.array_equal(step["actions"], step["taken_actions"]))
        shares = np.mean(by_expert[:40]), np.mean(by_expert[40:])
        assert shares == pytest.approx((0.75, 0.5), abs=0.2)
        # The second round draws anew: where the expert acts in it, he did not always in the first.
        assert not np.all(np.array(by_expert[:40])[by_expert[40:]])
    assert not torch.equal(*steps["observations"])


def test_the_files_hold_all_data_and_bc_reads_them(main, short_env):
    env_id = short_env("Pendulum-v1")
    checkpoint = run(main, env_id)
    args = dagger.Args(**checkpoint["args"])
    first, _ = dagger.demonstrations(args)
    for i in range(2):
        path = f"run/dataset-agent{i}.hdf5"
        found, own = columns_of(path), checkpoint["extra_state"]
        for key in ("observations", "rewards"):
            expected = np.concatenate([first[key], own[key][i].numpy()])
            np.testing.assert_array_equal(found[key], expected)
        actions = np.concatenate([first["actions"], own["actions"][i].numpy()])
        np.testing.assert_allclose(found["actions"], 2 * actions, rtol=1e-5, atol=1e-6)
        data, task = bc.load_dataset(bc.Args(env=env_id, dataset_file=path))
        assert task.episodes == 6 and task.transitions == 120
        np.testing.assert_allclose(data["actions"], actions, rtol=1e-5, atol=1e-6)


def test_with_a_human_only_what_he_does_is_added(main, short_env):
    env_id = short_env("Pendulum-v1")
    words = ["--gate=human", "--take-over=0.5", "--hand-back=0.45"]
    checkpoint = run(main, env_id, *words)
    own = checkpoint["extra_state"]
    for i in range(2):
        in_data = own["in_data"][i].numpy() > 0
        assert in_data.any()
        same = (own["actions"][i] == own["taken_actions"][i]).all(-1).numpy()
        np.testing.assert_array_equal(same, in_data)
        found = columns_of(f"run/dataset-agent{i}.hdf5")
        assert len(found["rewards"]) == 40 + in_data.sum()
        np.testing.assert_array_equal(
            found["observations"][40:], own["observations"][i][in_data].numpy()
        )
        ends = np.append(~in_data[1:], True) | (own["timeouts"][i].numpy() > 0)
        np.testing.assert_array_equal(found["timeouts"][40:], ends[in_data])


def test_the_human_of_a_run_takes_over_and_hands_back_as_stated(main, short_env, monkeypatch):
    """A run of one round tells by which weights the learner acts in the next one."""
    env_id = short_env("Hopper-v4")
    words = ["--gate=human", "--take-over=0.8", "--hand-back=0.1", "--steps-per-round=200"]
    words += ["--lr=0.01"]
    before = run(main, env_id, *words, "--num-updates=10", run_dir="before", dims=(11, 3))
    statistics = {}
    collect = dagger.collect

    def collect_and_keep(*args):
        statistics.update(collect(*args))
        return statistics

    monkeypatch.setattr(dagger, "collect", collect_and_keep)
    run(main, env_id, *words, "--num-updates=20", dims=(11, 3))
    task = dagger.Task(**before["task"])
    agent = dagger.DAgger(dagger.Args(**before["args"]), task, "cpu")
    agent.load_state_dict(before["agent"])
    expert = dagger.Expert("expert.npz", task)
    # The run's products of matrices round otherwise, and the hopper makes more of it.
    close = {"rtol": 0.01, "atol": 0.01}
    happened = Counter()
    for i in range(2):
        env = dagger.make_env(task)
        obs, human = dagger.reset_env(env, 3, i, 1, 0), False
        states, answers, falls, distances = [], [], [], []
        for k in range(1, 201):
            state = torch.tensor(obs, dtype=torch.float32).expand(2, 1, 11)
            learner, answer = agent.act(state)[i, 0].detach().numpy(), expert(obs)
            distances.append(np.linalg.norm(learner - answer) / 3**0.5)
            if not human and distances[-1] > 0.8:
                human = True
                happened["he takes over"] += 1
            elif human and distances[-1] < 0.1:
                human = False
                happened["he hands back"] += 1
            elif not human and distances[-1] > 0.1:
                happened["he only watches"] += 1
            next_obs, _, terminated, truncated, _ = env.step(answer if human else learner)
            if human:
                states.append(obs)
                answers.append(answer)
                falls.append(terminated)
                happened["he falls"] += terminated
            obs = next_obs
            if terminated or truncated:
                happened["he acts to the end"] += human
                obs, human = dagger.reset_env(env, 3, i, 1, k), False
        found = columns_of(f"run/dataset-agent{i}.hdf5")
        np.testing.assert_allclose(found["observations"][200:], states, **close)
        np.testing.assert_allclose(found["actions"][200:], answers, **close)
        np.testing.assert_allclose(found["taken_actions"], found["actions"], **close)
        np.testing.assert_array_equal(found["terminals"][200:], falls)
        assert not (found["terminals"] * found["timeouts"]).any()
        for name in ("share/expert_acts", "share/in_data"):
            assert statistics[name][i].item() == pytest.approx(len(states) / 200)
        error = np.mean(np.square(distances))
        assert statistics["error/visited"][i].item() == pytest.approx(error, rel=0.01)
    assert len(happened) == 5 and min(happened.values()) >= 3, happened


def test_a_run_that_is_stopped_ends_as_the_whole_one(main, short_env, monkeypatch):
    env_id = short_env("Pendulum-v1")
    whole = run(main, env_id, "--eval-every=7", run_dir="whole")
    left = list(range(25))
    update = dagger.DAgger.update

    def stopping_update(agent, batch):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return update(agent, batch)

    with monkeypatch.context() as patch:
        patch.setattr(dagger.DAgger, "update", stopping_update)
        with pytest.raises(AssertionError, match="update 21 of phase online is saved"):
            run(main, env_id, "--eval-every=7")
    end = main("--resume=run", script="dagger", small=False)
    assert end.code == 0, end.err
    resumed = checkpoint_of("run")
    for part in ("agent", "extra_state"):
        for name, tensor in whole[part].items():
            assert torch.equal(resumed[part][name], tensor), name
    assert resumed["evaluations"] == whole["evaluations"]
    files = [columns_of(f"{folder}/dataset-agent1.hdf5") for folder in ("run", "whole")]
    for key, column in files[0].items():
        np.testing.assert_array_equal(column, files[1][key])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--expert=none.npz"], "--expert none.npz cannot be read"),
        (["--hand-back=0.5"], "--hand-back"),
        (["--beta-decay=1.5"], "--beta-decay"),
        (["--updates-per-round=0"], "--updates-per-round"),
    ],
)
def test_bad_words_are_answered_in_one_line(main, short_env, words, message):
    write_expert("expert.npz")
    env_id = short_env("Pendulum-v1")
    end = main(f"--env={env_id}", *RUN, *words, script="dagger", small=False)
    assert end.code == 1 and message in end.err and len(end.err.splitlines()) == 1
