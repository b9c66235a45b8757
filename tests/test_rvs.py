"""Tests of algorithms/rvs.py: the outcomes in hindsight, what is asked for, known answers.

python -m pytest tests/test_rvs.py
"""

import gymnasium as gym
import numpy as np
import pytest
import torch

import rvs
from tests.conftest import random_episodes
from tests.helpers import forward, gaussian, make_data, make_task, result_of, same_end, train

# ---- The loss ----


def make_agent(obs_dim: int = 4, **options) -> rvs.RvS:
    """Return two agents with small networks and 2 actions."""
    torch.manual_seed(0)
    options = {"num_seeds": 2, "hidden": 16, "outcome": "return", "num_updates": 10} | options
    return rvs.RvS(rvs.Args(**options), make_task(rvs, obs_dim), "cpu")


def test_the_loss_is_the_log_density_of_the_action():
    agent = make_agent()
    agent.log_std.data[:] = torch.tensor([[[0.5, -1]], [[-7, 3.0]]])
    obs, actions = torch.randn(2, 32, 5), torch.randn(2, 32, 2)

    def policy(x):
        return agent.policy(x), agent.log_std.exp()

    expected = -gaussian(policy, obs, actions).mean(1)
    mean = [forward(agent.policy, n, obs[n].double().numpy()) for n in range(2)]
    np.testing.assert_allclose(agent.act(obs).detach(), mean, atol=1e-5)
    loss = agent.update({"observations": obs, "actions": actions})["loss/policy"]
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-5)


def test_weights_begin_orthogonal_and_actions_near_zero():
    agent = make_agent()
    first, _, hidden, _, last = agent.policy
    for n in range(2):
        torch.testing.assert_close(first.weight[n] @ first.weight[n].T, 2 * torch.eye(5))
        torch.testing.assert_close(hidden.weight[n] @ hidden.weight[n].T, 2 * torch.eye(16))
        torch.testing.assert_close(last.weight[n].T @ last.weight[n], 1e-4 * torch.eye(2))
    assert all((layer.bias == 0).all() for layer in (first, hidden, last))
    assert not torch.equal(*hidden.weight)


# ---- Outcomes in hindsight ----

LENGTHS = [3, 9, 1, 6]


def make_rows(lengths: list[int], rest: int = 0) -> dict:
    """Return complete episodes, then `rest` rows without an end. Observations name their rows."""
    count = sum(lengths) + rest
    episode_end = np.zeros(count, bool)
    episode_end[np.cumsum(lengths) - 1] = True
    rng = np.random.default_rng(count)
    obs = rng.standard_normal((count, 4))
    obs[:, 0] = np.arange(count)
    columns = {"observations": obs, "actions": rng.uniform(-1, 1, (count, 2))}
    return make_data(columns | {"rewards": rng.standard_normal(count)}, episode_end)


def prepared(data: dict, known=None, **options) -> tuple:
    """Return the columns after prepare_data(), and the arguments."""
    args = rvs.Args(**{"outcome": "return", "targets": [1.0]} | options)
    task = make_task(rvs, **{"max_episode_steps": 9, "env_id": "AntMaze-umaze-v2"} | (known or {}))
    return rvs.prepare_data(args, data, task), args


def test_the_outcome_is_what_each_remaining_step_earns():
    data = make_rows(LENGTHS, rest=4)
    rows = data["observations"].copy()
    columns, _ = prepared(data)
    expected = []
    for rewards in np.split(data["rewards"].astype(float), np.cumsum(LENGTHS))[:4]:
        expected += [rewards[t:].sum() / (9 - t) for t in range(len(rewards))]
    assert columns["observations"].shape == (19, 5) and columns["observations"].dtype == np.float32
    np.testing.assert_allclose(columns["observations"][:, 4], expected, rtol=1e-5)
    np.testing.assert_array_equal(columns["observations"][:, :4], rows[:19])
    np.testing.assert_array_equal(columns["actions"], data["actions"][:19])


def test_an_episode_beyond_the_time_limit_has_finite_outcomes():
    data = make_rows([9])
    columns, _ = prepared(data, {"max_episode_steps": 4})
    outcomes = columns["observations"][:, 4]
    rewards = data["rewards"].astype(float)
    expected = [rewards[t:].sum() / max(4 - t, 1) for t in range(9)]
    np.testing.assert_allclose(outcomes, expected, rtol=1e-5)


def test_goals_are_drawn_as_the_authors_draw_them():
    """All pairs of steps with the probabilities of two uniform draws, in every episode."""
    data = make_rows(LENGTHS, rest=4)
    data["observations"][:, 1] = -data["observations"][:, 0]
    columns, args = prepared(data, outcome="goal", num_seeds=2, batch_size=50_000)
    buffer = rvs.ReplayBuffer(columns, args, torch.device("cpu"))
    torch.manual_seed(0)
    batch = {key: x.numpy() for key, x in buffer.sample().items()}
    obs = batch["observations"]
    assert obs.shape == (2, 50_000, 6) and batch["actions"].shape == (2, 50_000, 2)
    now, later = obs[..., 0].astype(int), obs[..., 4].astype(int)
    np.testing.assert_array_equal(obs[..., :4], data["observations"][now])
    np.testing.assert_array_equal(obs[..., 5], -later)
    np.testing.assert_array_equal(batch["actions"], data["actions"][now])
    assert not np.array_equal(*now)
    expected = np.zeros((19, 19))
    first = 0
    for length in LENGTHS:
        # Their two steps are floor(u (length - 1)) and floor(u length).
        for one in range(max(length - 1, 1)):
            for other in range(length):
                start, goal = first + min(one, other), first + max(one, other)
                expected[start, goal] += length / 19 / max(length - 1, 1) / length
        first += length
    found = np.histogram2d(now.ravel(), later.ravel(), bins=np.arange(20) - 0.5)[0] / 100_000
    np.testing.assert_allclose(found, expected, atol=0.002)
    assert ((found > 0) == (expected > 0)).all()


# ---- What is asked for ----


def test_targets_go_from_the_random_policy_to_beyond_the_expert():
    args = rvs.apply_settings(rvs.Args(env="hopper-medium-replay-v2"))
    scores = [(target + 20.272305) / (3234.3 + 20.272305) for target in args.targets]
    np.testing.assert_allclose(scores, [1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2], atol=1e-4)
    assert (args.outcome, args.batch_size, args.num_updates) == ("return", 16_384, 50_000)
    args = rvs.apply_settings(rvs.Args(env="antmaze-large-play-v2"))
    assert (args.outcome, args.num_updates) == ("goal", 20_000)
    args = rvs.apply_settings(rvs.Args(env="antmaze-large-play-v2", outcome="return"))
    assert (args.outcome, args.targets) == ("return", [])


def test_without_published_targets_they_are_the_best_and_the_mean():
    data = make_rows(LENGTHS, rest=4)
    returns = [part.sum() for part in np.split(data["rewards"], np.cumsum(LENGTHS))[:4]]
    _, args = prepared(data, targets=[])
    np.testing.assert_allclose(args.targets, [max(returns), np.mean(returns)], rtol=1e-5)


def test_the_same_outcome_is_told_in_all_steps():
    agent = make_agent(3)
    agent.max_episode_steps = 200
    env = agent.condition(gym.make("Pendulum-v1"), -600.0)
    obs, _ = env.reset(seed=0)
    plain, _ = gym.make("Pendulum-v1").reset(seed=0)
    assert obs.shape == env.observation_space.shape == (4,)
    np.testing.assert_array_equal(obs[:3], plain)
    for _ in range(3):
        assert obs[3] == -3
        obs, *_ = env.step(env.action_space.sample())


def test_the_goal_is_that_of_the_episode():
    env = make_agent(29, outcome="goal").condition(gym.make("AntMaze-umaze-v2"), 1.0)
    goals = []
    for seed in (0, 1):
        obs, _ = env.reset(seed=seed)
        goals.append(env.unwrapped.goal)
        assert obs.shape == env.observation_space.shape == (31,)
        np.testing.assert_array_equal(obs[29:], goals[-1])
        np.testing.assert_array_equal(env.step(np.zeros(8))[0][29:], goals[-1])
    assert not np.array_equal(*goals)


# ---- Known answers ----


class Bank(gym.Env):
    """Two steps, each of which pays the action."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.ones(1, np.float32), float(action[0]), self.steps == 2, False, {}


def test_it_earns_the_return_that_it_is_asked_for(monkeypatch):
    """Each action is then half of the return."""
    gym.register("Bank-v0", Bank, max_episode_steps=2)
    monkeypatch.setitem(gym.registry, "Bank-v0", gym.registry.pop("Bank-v0"))
    rng = np.random.default_rng(0)
    columns = {"observations": np.ones((8000, 1)), "actions": rng.uniform(-1, 1, (8000, 1))}
    columns["rewards"] = columns["actions"][:, 0]
    task = make_task(rvs, 1, 1, env_id="Bank-v0", max_episode_steps=2)
    args = rvs.Args(num_seeds=2, hidden=32, batch_size=512, num_updates=600, outcome="return")
    args.targets = [1.0]
    columns = rvs.prepare_data(args, make_data(columns, np.arange(8000) % 2 == 1), task)
    agent = train(rvs, args, task, columns)
    for target in (-1.0, -0.4, 0.0, 0.5, 1.0):
        np.testing.assert_allclose(rvs.evaluate(agent, task, 2, target), target, atol=0.12)
    np.testing.assert_allclose(rvs.evaluate(agent, task, 2), 1.0, atol=0.12)  # the first target


def test_on_a_plane_it_goes_to_the_goal():
    """The data walk straight, each episode in another direction."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi, np.pi, (400, 1))
    direction = np.stack([np.cos(angles), np.sin(angles)], -1)
    start = rng.uniform(-1, 1, (400, 1, 2))
    columns = {"observations": start + 0.2 * np.arange(10)[:, None] * direction}
    columns["actions"] = np.repeat(direction, 10, axis=1)
    columns = {key: x.reshape(4000, 2) for key, x in columns.items()} | {"rewards": np.zeros(4000)}
    task = make_task(rvs, 2, 2, env_id="AntMaze-umaze-v2")
    args = rvs.Args(num_seeds=2, hidden=64, batch_size=256, num_updates=800, outcome="goal")
    columns = rvs.prepare_data(args, make_data(columns, np.arange(4000) % 10 == 9), task)
    agent = train(rvs, args, task, columns)
    here = rng.uniform(-1, 1, (50, 2))
    angles = rng.uniform(-np.pi, np.pi, 50)
    direction = np.stack([np.cos(angles), np.sin(angles)], -1)
    told = torch.tensor(np.concatenate([here, here + direction], -1)).float().expand(2, -1, -1)
    with torch.no_grad():
        action = agent.act(told).numpy()
    assert (action * direction).sum(-1).min() > 0.7
    assert (action * direction).sum(-1).mean() > 0.9


# ---- Runs ----


def test_a_run_with_goals_is_resumed_exactly(main, tiny_hdf5, isolated, monkeypatch):
    monkeypatch.setattr(gym.registry["AntMaze-umaze-v2"], "max_episode_steps", 30)
    raw = random_episodes("AntMaze-umaze-v2", 300, 25, seed=0)
    tiny_hdf5(isolated / "data.hdf5", raw)
    words = ["--env=antmaze-umaze-v2", "--dataset-file=data.hdf5", "--num-updates=12"]
    words += ["--eval-every=6", "--eval-episodes=1", "--final-eval-episodes=1", "--num-seeds=2"]
    words += ["--hidden=16", "--batch-size=20"]
    assert main(*words, "--run-dir=whole", script="rvs", small=False).code == 0
    evaluations = result_of(isolated / "whole")["evaluations"]
    assert [found["target"] for found in evaluations[-1]["targets"]] == [1]
    sample = rvs.ReplayBuffer.sample
    left = list(range(8))

    def stopping_sample(buffer) -> dict:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return sample(buffer)

    with monkeypatch.context() as patch:
        patch.setattr(rvs.ReplayBuffer, "sample", stopping_sample)
        assert main(*words, "--run-dir=stopped", script="rvs", small=False).code == 1
    assert main("--resume=stopped", script="rvs", small=False).code == 0
    assert same_end(isolated / "stopped", isolated / "whole") == []


@pytest.mark.parametrize(
    "known, outcome, words",
    [
        ({"ordered": False}, "return", "not in order of time"),
        ({"env_id": "Hopper-v4"}, "goal", "--outcome return"),
    ],
)
def test_what_cannot_work_is_refused(known, outcome, words):
    with pytest.raises(SystemExit, match=words):
        prepared(make_rows(LENGTHS), known, outcome=outcome)
