"""Tests of algorithms/awr.py: its mathematics, answers that are known, training without a dataset.

python -m pytest tests/test_awr.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import awr
from tests.helpers import checkpoint_of, curves, forward, make_batch, make_data, make_task


def make_args(**options) -> awr.Args:
    """Return the arguments of two agents with small networks."""
    small = {"env": "no-env-v0", "num_seeds": 2, "hidden": 16, "num_updates": 60}
    return awr.apply_settings(awr.Args(**small | options))


def make_agent(**options) -> awr.AWR:
    """Return two agents with random returns of 32 rows, and moments that are not trivial."""
    moments = {"obs_mean": [0.5, -1.0, 0.0, 2.0], "obs_std": [1.0, 0.5, 2.0, 1.5]}
    torch.manual_seed(0)
    agent = awr.AWR(make_args(**options), make_task(awr, transitions=32, **moments), "cpu")
    draw = torch.Generator().manual_seed(7)
    agent.returns.copy_(10 * torch.randn(2, 32, generator=draw))
    agent.advantage_mean.copy_(torch.tensor([[1.0], [-2.0]]))
    agent.advantage_std.copy_(torch.tensor([[3.0], [4.0]]))
    # Without this, pi's means are near 0, and none is beyond the bounds.
    agent.policy.net[-1].weight.data *= 1_000
    return agent


def make_rows() -> dict:
    """Return a batch of all 32 rows, in another order for each agent."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.stack([torch.randperm(32, generator=draw) for _ in range(2)])
    return make_batch() | {"row": rows.float()}


# ---- The formulas ----


@pytest.mark.parametrize("weights", ["exp", "marwil", "return"])
@pytest.mark.parametrize("clip", [0.0, 1.5])
def test_losses_are_the_closed_forms(weights, clip):
    options = {"beta": 0.7, "weight_clip": clip, "norm_rate": 0.25, "action_std": 0.3}
    agent, batch = make_agent(weights=weights, policy_lr=0.0, value_lr=0.0, **options), make_rows()
    found = agent.update_value(batch) | agent.update_policy(batch)
    for n in range(2):
        part = {key: column[n].double().numpy() for key, column in batch.items()}
        s = (part["observations"] - [0.5, -1.0, 0.0, 2.0]) / [1.0, 0.5, 2.0, 1.5]
        returns = agent.returns[n].double().numpy()[part["row"].astype(int)]
        v = 100 * forward(agent.value_net, n, s)[:, 0]
        mean = forward(agent.policy.net, n, s)
        advantage = returns if weights == "return" else returns - v
        if weights == "marwil":
            scaled = advantage / np.sqrt(100 + 0.25 * ((advantage**2).mean() - 100))
        else:
            scaled = (advantage - [1.0, -2.0][n]) / [3.0, 4.0][n]
        weight = np.exp(scaled / 0.7)
        if clip:
            assert (weight > clip).any()
            weight = np.minimum(weight, clip)
        square = ((part["actions"] - mean) / 0.3) ** 2
        log_pi = (-square / 2 - np.log(0.3 * np.sqrt(2 * np.pi))).sum(1)
        beyond = (np.maximum(abs(mean) - 1, 0) ** 2).sum(1)
        assert beyond.max() > 0.1
        expected = {
            "loss/value": 0.5 * ((0.01 * (returns - v)) ** 2).mean(),
            "value": v.mean(),
            "loss/policy": (-weight * log_pi + 5 * beyond).mean(),
            "weight": weight.mean(),
            "largest_weight": weight.max(),
        }
        assert expected.keys() == found.keys()
        for name, number in expected.items():
            assert found[name][n].item() == pytest.approx(number, rel=1e-4), name


@pytest.mark.parametrize("td_lambda", [0.0, 0.6, 1.0])
def test_returns_are_those_of_the_textbook(td_lambda):
    """lambda = 1 is Monte Carlo, which asks V at ends only; lambda = 0 is one reward and V."""
    rng = np.random.default_rng(0)
    rewards, next_values = rng.normal(size=(2, 2, 40))
    ends = (rng.random((2, 40)) < 0.15).astype(float)
    ends[:, -1] = 1
    columns = [torch.tensor(column) for column in (rewards, next_values, ends)]
    found = awr.lambda_returns(*columns, 0.9, td_lambda).numpy()
    for n in range(2):
        following = 0.0
        for t in reversed(range(40)):
            mixed = (1 - td_lambda) * next_values[n, t] + td_lambda * following
            following = rewards[n, t] + 0.9 * (next_values[n, t] if ends[n, t] else mixed)
            assert found[n, t] == pytest.approx(following, rel=1e-12)
    if td_lambda == 0:
        np.testing.assert_allclose(found, rewards + 0.9 * next_values, rtol=1e-12)
    first_end = int(np.argmax(ends[0]))
    if td_lambda == 1:
        steps = np.arange(first_end + 1)
        monte_carlo = (0.9**steps * rewards[0, : first_end + 1]).sum()
        tail = 0.9 ** (first_end + 1) * next_values[0, first_end]
        assert found[0, 0] == pytest.approx(monte_carlo + tail, rel=1e-12)


def test_an_optimizer_is_torchs_sgd_with_momentum():
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    optimizer = awr.momentum_sgd([ours], 0.1)
    sgd = torch.optim.SGD([theirs], 0.1, momentum=0.9)
    assert isinstance(optimizer, awr.Adam)
    for _ in range(5):
        target = torch.randn(2, 3, generator=draw)
        awr.minimize(optimizer, ((ours - target) ** 2).sum(1))
        sgd.zero_grad()
        ((theirs - target) ** 2).sum().backward()
        sgd.step()
        torch.testing.assert_close(ours, theirs)
    assert len(optimizer.state()) == 3  # the learning rate, the count and the velocity


def test_moments_of_observations_are_those_of_all_steps():
    rng = np.random.default_rng(0)
    parts = [rng.normal(30, 0.1, (2, size, 4)) for size in (50, 7, 400)]
    agent = make_agent()
    agent.obs_mean.copy_(torch.tensor(parts[0].mean(1, keepdims=True)))
    agent.obs_std.copy_(torch.tensor(parts[0].std(1, keepdims=True)))
    agent.take_up(torch.tensor(parts[1], dtype=torch.float32), 50)
    agent.take_up(torch.tensor(parts[2], dtype=torch.float32), 57)
    both = np.concatenate(parts, 1)
    np.testing.assert_allclose(agent.obs_mean, both.mean(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(agent.obs_std, both.std(1, keepdims=True), rtol=1e-3)
    agent.take_up(torch.full((2, 100_000, 4), 30.0), 457)
    assert (agent.obs_std == 0.01).all()


# ---- Rows and their returns ----


def make_episodes() -> dict:
    """Return three episodes: one ends by itself, one by time, the last has no end.

    The next state of row 5 is unknown, so it only says where row 4 ended.
    """
    columns = {"observations": np.arange(8.0)[:, None], "actions": np.zeros((8, 1))}
    columns |= {"rewards": np.arange(8.0), "terminals": [0, 0, 1, 0, 0, 0, 0, 0]}
    columns |= {"next_observations": np.arange(1.0, 9)[:, None]}
    columns |= {"next_valid": [1, 1, 0, 1, 1, 0, 1, 1]}
    return make_data(columns, episode_end=[0, 0, 1, 0, 0, 1, 0, 0])


def test_returns_of_a_dataset_end_with_v_except_at_terminal_states():
    args = make_args(num_seeds=1, discount=0.5, td_lambda=1.0)
    task = make_task(awr, 1, 1, transitions=8)
    columns = awr.prepare_data(args, make_episodes(), task)
    assert columns["rewards"].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert columns["episode_end"].tolist() == [0, 0, 1, 0, 1, 0, 1]
    assert task.obs_mean == [pytest.approx(np.mean([0, 1, 2, 3, 4, 6, 7]))]
    agent = awr.AWR(args, task, "cpu")
    agent.value = lambda obs: 10 * obs.squeeze(-1)  # V(s) = 10 s
    agent.estimate_returns(awr.ReplayBuffer(columns, args, torch.device("cpu")))
    expected = [1, 2, 2, 3 + 0.5 * (4 + 25), 4 + 25, 6 + 0.5 * (7 + 40), 7 + 40]
    assert agent.returns[0, :7].tolist() == expected


def test_advantages_are_normalized_over_all_rows():
    args = make_args(num_updates=7)
    task = make_task(awr, 1, 1, transitions=8)
    buffer = awr.ReplayBuffer(
        awr.prepare_data(args, make_episodes(), task), args, torch.device("cpu")
    )
    for weights in ("exp", "return"):
        args.weights = weights
        agent = awr.AWR(args, task, "cpu")
        agent.value_net[-1].weight.data *= 0.1
        agent.estimate_advantages(buffer)
        rows = awr.all_rows(buffer, 2)
        advantage = agent.advantage(rows["observations"], agent.returns[:, :7])
        normal = agent.weigh(advantage).log() * args.beta
        torch.testing.assert_close(normal.mean(1), torch.zeros(2), rtol=0, atol=1e-4)
        torch.testing.assert_close(normal.std(1, correction=0), torch.ones(2), rtol=0, atol=1e-3)
    args.advantage = "raw"
    agent = awr.AWR(args, task, "cpu")
    agent.estimate_advantages(buffer)
    assert (agent.advantage_mean == 0).all() and (agent.advantage_std == 1).all()


def test_offline_v_is_trained_before_pi_with_fresh_returns():
    agent = make_agent(num_updates=61)
    value, policy = agent.phases
    assert (value.name, value.num_updates, value.scored) == ("value", 13, False)
    assert (value.updates, value.refresh) == ([agent.update_value], agent.estimate_returns)
    assert (policy.name, policy.num_updates, policy.scored) == ("train", 61, True)
    assert (policy.updates, policy.refresh) == ([agent.update_policy], agent.estimate_advantages)
    assert value.refresh_every == 1_000 and policy.refresh_every == 61
    assert make_agent(value_updates=9).phases[0].num_updates == 9


# ---- Known answers ----

STD = 0.3


def bandit_policy(**options) -> np.ndarray:
    """Return pi's mean of two agents on one-step episodes with a ~ N(0.1, 0.3^2) and r = 2 a."""
    rng = np.random.default_rng(0)
    actions = rng.normal(0.1, STD, (8_000, 1))
    columns = {"observations": np.ones((8_000, 1)), "actions": actions}
    columns["rewards"] = options.pop("rewards", 2 * actions[:, 0])
    args = make_args(
        batch_size=400, value_updates=100, action_std=STD, discount=0.0, policy_lr=1e-3, **options
    )
    args.num_updates = 600
    task = make_task(awr, 1, 1, transitions=8_000)
    columns = awr.prepare_data(args, make_data(columns), task)
    buffer = awr.ReplayBuffer(columns, args, torch.device("cpu"))
    torch.manual_seed(0)
    agent = awr.AWR(args, task, "cpu")
    means = []
    for phase in agent.phases:
        phase.refresh(buffer)
        for _ in range(phase.num_updates):
            phase.updates[0](buffer.sample())
            with torch.no_grad():
                means.append(agent.act(torch.ones(2, 1, 1)).flatten().numpy())
    return np.mean(means[-200:], 0)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_on_a_bandit_pi_is_that_of_the_data_times_the_weights(beta):
    """N(m, d^2) exp(2 a / beta) / Z = N(m + 2 d^2 / beta, d^2): pi has no other mean to find."""
    found = bandit_policy(advantage="raw", beta=beta, weight_clip=0.0)
    np.testing.assert_allclose(found, 0.1 + 2 * STD**2 / beta, atol=0.015)


def test_on_a_bandit_normalized_advantages_count_in_deviations():
    """The deviation of 2 a is 2 d, so the mean moves by d."""
    np.testing.assert_allclose(bandit_policy(weight_clip=0.0), 0.1 + STD, atol=0.015)
    np.testing.assert_allclose(
        bandit_policy(weights="return", weight_clip=0.0), 0.1 + STD, atol=0.015
    )


def test_with_equal_returns_rwr_is_cloning():
    found = bandit_policy(weights="return", rewards=np.full(8_000, 3.0))
    np.testing.assert_allclose(found, 0.1, atol=0.01)


@pytest.mark.parametrize("weights", ["exp", "marwil", "return"])
def test_with_an_infinite_temperature_it_is_cloning(weights):
    batch = make_rows()
    losses = []
    for beta in (1e12, 1.0):
        agent = make_agent(weights=weights, beta=beta)
        losses.append([agent.update_policy(batch)["loss/policy"] for _ in range(5)])
    clone = make_agent()
    clone.weigh = torch.ones_like
    expected = [clone.update_policy(batch)["loss/policy"] for _ in range(5)]
    torch.testing.assert_close(losses[0], expected)
    assert not torch.allclose(losses[1][-1], expected[-1], rtol=0.01)


def test_v_learns_the_return_of_each_state():
    """On a chain of three states V is its discounted future."""
    steps = np.tile(np.arange(3), 300)
    columns = {"observations": np.eye(3)[steps], "actions": np.zeros((900, 1))}
    columns |= {"rewards": steps == 2, "next_observations": np.eye(3)[(steps + 1) % 3]}
    args = make_args(num_updates=1, value_updates=400, discount=0.9, td_lambda=0.5, value_lr=0.1)
    task = make_task(awr, 3, 1, transitions=900)
    columns = awr.prepare_data(args, make_data(columns, episode_end=steps == 2), task)
    torch.manual_seed(0)
    agent = awr.AWR(args, task, "cpu")
    buffer = awr.ReplayBuffer(columns, args, torch.device("cpu"))
    for step in range(400):
        if step % 50 == 0:
            agent.estimate_returns(buffer)
        agent.update_value(buffer.sample())
    with torch.no_grad():
        found = agent.value(torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(found, torch.tensor([[0.81, 0.9, 1.0]] * 2), rtol=0, atol=0.02)


# ---- Without a dataset ----


def make_recent(size: int, rows: int = 30) -> awr.RecentSteps:
    """Return a buffer for two agents whose data have the rewards 0, 1, ..."""
    args = make_args(batch_size=500)
    data = {"observations": torch.zeros(rows, 4), "rewards": torch.arange(float(rows))}
    data["row"] = torch.arange(rows)
    return awr.RecentSteps(awr.ReplayBuffer(data, args, torch.device("cpu")), size)


def steps_from(first: float, size: int) -> dict:
    """Return steps with the rewards first, first + 1, ..., which are negative for the second."""
    rewards = torch.arange(first, first + size)
    return {"observations": torch.zeros(2, size, 4), "rewards": torch.stack([rewards, -rewards])}


def test_the_buffer_keeps_the_newest_steps_in_order():
    buffer = make_recent(size=50_000, rows=2_048)
    assert buffer.state()["rewards"].tolist() == [list(range(2_048))] * 2
    for k in range(1, 26):
        buffer.add(steps_from(2_048 * k, 2_048))
    rewards = buffer.state()["rewards"]
    assert rewards.shape == (2, 50_000)
    newest = torch.arange(2_048.0 * 26 - 50_000, 2_048 * 26)
    assert torch.equal(rewards[0], newest) and torch.equal(rewards[1], -newest)
    assert torch.equal(buffer.state()["row"], torch.arange(50_000.0).expand(2, -1))


def test_it_samples_every_step_and_no_empty_place():
    buffer = make_recent(size=100)
    buffer.add(steps_from(30, 10))
    torch.manual_seed(0)
    batch = buffer.sample()
    assert set(batch["rewards"][0].tolist()) == set(range(40))
    assert batch["rewards"][1].min() == -39 and batch["rewards"][1].max() == 29
    assert (batch["row"][0] == batch["rewards"][0] + 60).all()
    other = make_recent(size=100)
    other.load(buffer.state())
    for key, column in buffer.state().items():
        assert torch.equal(other.state()[key], column)


RUN = ["--seed=3", "--num-seeds=2", "--num-updates=110", "--eval-every=40", "--buffer-size=130"]


def run_online(main, env_id: str, *words, run_dir: str = "run") -> dict:
    """Return the checkpoint of a small run without a dataset: three iterations of 40 updates."""
    end = main(f"--env={env_id}", *RUN, "--run-dir", run_dir, *words, script="awr")
    assert end.code == 0 and end.err == "", end.err
    return checkpoint_of(Path(run_dir))


def test_online_steps_are_samples_of_the_policy_in_environments_of_their_own(main, short_env):
    checkpoint = run_online(main, short_env("Pendulum-v1"))
    assert checkpoint["finished"] and checkpoint["step"] == 120
    steps, task = checkpoint["extra_state"], awr.Task(**checkpoint["task"])
    assert steps["actions"].shape == (2, 130, 1)  # 10 of the random ones and three times 40
    assert torch.equal(steps["actions"][0, :10], steps["actions"][1, :10])
    for i in range(2):
        env = awr.make_env(task)
        for k in range(120):
            step = {key: column[i, 10 + k].numpy() for key, column in steps.items()}
            done, iteration = k % 40, k // 40
            if done == 0:
                obs = awr.reset_env(env, 3, i, 40 * iteration)
            elif done == 25:  # the time limit
                obs = awr.reset_env(env, 3, i, 40 * iteration, 24)
            np.testing.assert_array_equal(step["observations"], np.float32(obs))
            obs, reward, _, _, _ = env.step(step["actions"])
            np.testing.assert_array_equal(step["next_observations"], np.float32(obs))
            assert step["rewards"] == np.float32(reward) and step["terminals"] == 0
            assert step["episode_end"] == (done in (24, 39))
    actions = steps["actions"][:, 10:]
    assert actions.std() == pytest.approx(0.2, rel=0.2) and (actions[0] != actions[1]).all()
    assert curves(Path("run/tensorboard/online"))["score"] == [40, 80, 120]


def test_each_iteration_trains_v_then_pi_on_the_newest_steps(main, short_env, monkeypatch):
    calls = []
    for name in ("estimate_returns", "estimate_advantages", "update_value", "update_policy"):
        method = getattr(awr.AWR, name)

        def noted(agent, argument, name=name, method=method):
            calls.append(name)
            return method(agent, argument)

        monkeypatch.setattr(awr.AWR, name, noted)
    checkpoint = run_online(main, short_env("Pendulum-v1"))
    value = ["estimate_returns"] + 15 * ["update_value"]
    policy = ["estimate_advantages", "estimate_returns"] + 25 * ["update_policy"]
    assert calls == 3 * (value + policy)
    # The moments are those of all 180 steps, of which the buffer has lost the first 50.
    first, _ = awr.random_dataset(awr.Args(**checkpoint["args"]))
    for i in range(2):
        later = checkpoint["extra_state"]["observations"][i, 10:]
        steps = np.concatenate([first["observations"], later])
        mean, std = (checkpoint["agent"][f"obs_{key}"][i, 0] for key in ("mean", "std"))
        np.testing.assert_allclose(mean, steps.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(std, steps.std(0), rtol=1e-4)


def test_a_run_that_is_stopped_ends_as_the_whole_one(main, short_env, monkeypatch):
    env_id = short_env("Pendulum-v1")
    whole = run_online(main, env_id, run_dir="whole")
    left = list(range(100))
    update = awr.AWR.update_policy

    def stopping_update(agent, batch):
        if len(left) == 40:
            left.clear()
            raise KeyboardInterrupt
        left.pop()
        return update(agent, batch)

    with monkeypatch.context() as patch:
        patch.setattr(awr.AWR, "update_policy", stopping_update)
        with pytest.raises(AssertionError, match="update 80 of phase online is saved"):
            run_online(main, env_id)
    end = main("--resume=run", script="awr", small=False)
    assert end.code == 0, end.err
    resumed = checkpoint_of("run")
    for name, weight in whole["agent"].items():
        assert torch.equal(resumed["agent"][name], weight), name
    assert resumed["evaluations"] == whole["evaluations"]


@pytest.mark.slow
def test_it_learns_pendulum(main):
    """From about -1200 to better than -700, with the settings of benchmarks/studies/awr."""
    options = ["--policy-lr=2e-3", "--action-std=0.4", "--value-updates=40"]
    options += ["--policy-updates=160", "--num-updates=4800", "--buffer-size=2048"]
    options += ["--eval-every=4800", "--final-eval-episodes=10", "--run-dir=run"]
    end = main("--env=Pendulum-v1", *options, script="awr", small=False)
    assert end.code == 0, end.err
    assert checkpoint_of("run")["final"]["returns"][0] > -700


# ---- Bad input ----


@pytest.mark.parametrize(
    "words, message",
    [
        (["--env=CartPole-v1"], ["CartPole-v1", "Discrete(2)"]),
        (["--env=Pendulum-v1", "--discount=1"], ["--discount", "below 1"]),
        (["--env=Pendulum-v1", "--policy-updates=0"], ["--policy-updates", "at least 1"]),
        (["--env=Pendulum-v1", "--value-updates=0"], ["--value-updates", "at least 1"]),
        (["--env=Pendulum-v1", "--buffer-size=39"], ["--buffer-size", "--new-steps"]),
    ],
)
def test_bad_input_is_refused(words, message, main):
    end = main(*words, "--run-dir=run", script="awr")
    line = end.err.splitlines()[-1]
    assert end.code == 1 and all(word in line for word in message), end.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "known, word", [({"action_low": None}, "bounds"), ({"ordered": False}, "not in order")]
)
def test_data_that_it_cannot_learn_from_are_refused(known, word):
    task = make_task(awr, env_id="Some-v0", **known)
    with pytest.raises(SystemExit, match=word):
        awr.prepare_data(make_args(), {}, task)
