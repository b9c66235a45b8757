"""Tests of algorithms/iql.py: its mathematics, answers that are known, its online phase.

python -m pytest tests/test_iql.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import iql
from tests.helpers import (
    checkpoint_of,
    copies_of,
    curves,
    forward,
    gaussian,
    make_batch,
    make_data,
    make_task,
)


def make_agent(**options) -> iql.IQL:
    """Return two agents with small networks. Q' is another than Q."""
    settings = {"num_seeds": 2, "tau": 0.7, "beta": 3.0, "hidden": 16, "num_updates": 100}
    settings["dropout"] = 0.0
    agent = iql.IQL(iql.Args(**settings | options), make_task(iql), "cpu")
    with torch.no_grad():
        for weight in agent.critic_target.parameters():
            weight += 0.1
    return agent


# ---- The formulas ----


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_losses_are_the_closed_forms(tau):
    # V stays, so that (7) sees the V of (5).
    agent = make_agent(tau=tau, beta=10.0, lr=0.0, polyak=0.0)
    batch = make_batch()
    part = {key: column.double().numpy() for key, column in batch.items()}
    statistics = {k: v.detach().numpy() for k, v in agent.update(batch).items()}
    log_pi = gaussian(agent.policy, batch["observations"], batch["actions"])
    for n in range(2):
        s, a, r = part["observations"][n], part["actions"][n], part["rewards"][n]
        sa = np.hstack([s, a])
        target_q = forward(agent.critic_target.net, [2 * n, 2 * n + 1], sa)[..., 0].min(0)
        v = forward(agent.value, n, s)[:, 0]
        residual = target_q - v
        weight = np.minimum(np.exp(10.0 * residual), 100)
        next_v = forward(agent.value, n, part["next_observations"][n])[:, 0]
        target = r + 0.99 * (1 - part["terminals"][n]) * next_v
        q = forward(agent.critic.net, [2 * n, 2 * n + 1], sa)[..., 0]
        expected = {
            "loss/value": (np.where(residual < 0, 1 - tau, tau) * residual**2).mean(),
            "loss/policy": -(weight * log_pi[n]).mean(),
            "loss/critic": ((q - target) ** 2).mean(1).sum(),
            "value": v.mean(),
            "weight": weight.mean(),
        }
        assert expected.keys() == statistics.keys()
        for name, number in expected.items():
            assert statistics[name][n] == pytest.approx(number, rel=1e-4), name


def test_the_target_follows_q_slowly():
    agent = make_agent(polyak=0.1)
    before = copies_of(agent.critic_target.parameters())
    agent.update(make_batch())
    parameters = zip(agent.critic_target.parameters(), agent.critic.parameters(), strict=True)
    for old, (new, q) in zip(before, parameters, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * q)


def test_it_acts_by_the_mean_and_explores_around_it():
    agent = make_agent()
    with torch.no_grad():
        agent.policy.log_std[:] = torch.tensor([-7.0, 1.0])  # the first one is clamped to -5
        obs = torch.randn(2, 5, 4)
        mean = torch.stack(
            [torch.tensor(forward(agent.policy.net, n, obs[n].numpy())) for n in (0, 1)]
        )
        torch.testing.assert_close(agent.act(obs), mean.tanh().float())
        torch.manual_seed(1)
        step = agent.explore(obs) - agent.act(obs)
        torch.manual_seed(1)
        deviation = torch.tensor([-5.0, 1.0]).exp()
        torch.testing.assert_close(step, deviation * torch.randn(2, 5, 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options, updates", [({}, 4), ({"decay_updates": 8}, 8), ({"online_steps": 7}, None)]
)
def test_the_policys_rate_falls_as_a_cosine_unless_online_steps_follow(options, updates):
    agent = make_agent(num_updates=4, lr=0.1, **options)
    rates = []
    for _ in range(5):
        agent.update(make_batch())
        rates.append([agent.optimizers[name].lr.item() for name in ("policy", "value", "critic")])
    falling = [0.1] * 5
    if updates is not None:
        falling = 0.05 * (1 + np.cos(np.pi * np.arange(5) / updates))
    np.testing.assert_allclose([rate[0] for rate in rates], falling, atol=1e-7)
    np.testing.assert_allclose([rate[1:] for rate in rates], 0.1)


# ---- A small MDP with data of mixed quality ----

# State, action, reward, next state, how often in the data; 4 is the end. The usual way from 0 leads
# through 1 to 0.5. Nobody ever went 0, 2, 3 to the end by the best actions, which are rare.
MDP = [
    (0, -0.6, 0.0, 1, 3),
    (0, 0.6, 0.0, 2, 1),
    (1, 0.0, 0.5, 4, 3),
    (1, 0.6, 0.0, 3, 1),
    (2, -0.6, 0.2, 4, 2),
    (2, 0.6, 0.3, 3, 1),
    (3, 0.0, 0.0, 4, 2),
    (3, -0.6, 1.0, 4, 1),
]
GAMMA = 0.9
BEST_VALUES, BEST_ACTIONS = [1.08, 0.9, 1.2, 1.0], [0.6, 0.6, 0.6, -0.6]


def expectile(x: np.ndarray, counts: np.ndarray, tau: float) -> float:
    """Return the v with sum of counts |tau - 1(x < v)| (x - v) = 0, by its fixed point."""
    v = x.mean()
    for _ in range(500):
        weight = counts * np.where(x < v, 1 - tau, tau)
        v = (weight * x).sum() / weight.sum()
    return v


def solved(tau: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return V of the four states, and the mean action that (7) fits, without a network."""
    s, a, r, s2, counts = (np.array(column) for column in zip(*MDP, strict=True))
    values = np.zeros(5)
    for state in (3, 2, 1, 0):  # successors first
        here = s == state
        values[state] = expectile(r[here] + GAMMA * values[s2[here]], counts[here], tau)
    advantage = r + GAMMA * values[s2] - values[s]
    weight = counts * np.minimum(np.exp(beta * advantage), 100)
    mean = [(weight * a)[s == i].sum() / weight[s == i].sum() for i in range(4)]
    return values[:4], np.array(mean)


def trained_on_the_mdp(tau: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by two agents of IQL, (2, 4) each. States are one-hot, the end is zero."""
    rows = [row for row in MDP for _ in range(row[-1])]
    s, a, r, s2, _ = (np.array(column) for column in zip(*rows, strict=True))
    states = np.eye(5, 4)
    columns = {"observations": states[s], "actions": a[:, None], "rewards": r}
    columns |= {"next_observations": states[s2], "terminals": s2 == 4}
    batch = {k: torch.tensor(np.stack([x, x]), dtype=torch.float32) for k, x in columns.items()}
    options = {"tau": tau, "beta": beta, "hidden": 32, "lr": 3e-3, "polyak": 0.05}
    options["dropout"] = 0.0
    args = iql.Args(num_seeds=2, discount=GAMMA, num_updates=1000, **options)
    torch.manual_seed(0)
    agent = iql.IQL(args, make_task(iql, 4, 1), "cpu")
    for _ in range(args.num_updates):
        agent.update(batch)
    every = torch.eye(4).expand(2, 4, 4)
    with torch.no_grad():
        return agent.value(every).squeeze(-1).numpy(), agent.act(every).squeeze(-1).numpy()


def test_the_exact_solution_is_sarsas_at_one_half_and_the_best_of_the_data_near_one():
    """Check the yardstick itself at both ends by other means."""
    v3 = 1 / 3
    v1 = (3 * 0.5 + 0.9 * v3) / 4
    v2 = (2 * 0.2 + 0.3 + 0.9 * v3) / 3
    np.testing.assert_allclose(solved(0.5, 0)[0], [0.9 * (3 * v1 + v2) / 4, v1, v2, v3])
    np.testing.assert_allclose(solved(1 - 1e-9, 0)[0], BEST_VALUES, atol=1e-6)
    np.testing.assert_allclose(solved(1 - 1e-9, 1e3)[1], BEST_ACTIONS, atol=1e-6)


def test_with_tau_one_half_iql_finds_sarsas_value_and_weights_the_datas_actions():
    values, actions = trained_on_the_mdp(tau=0.5, beta=3.0)
    expected, mean = solved(0.5, 3.0)
    np.testing.assert_allclose(values, [expected] * 2, atol=0.01)
    np.testing.assert_allclose(actions, [mean] * 2, atol=0.01)


def test_with_tau_near_one_iql_finds_the_best_of_the_data_in_value_and_policy():
    values, actions = trained_on_the_mdp(tau=0.99, beta=20.0)
    np.testing.assert_allclose(values, [solved(0.99, 20.0)[0]] * 2, atol=0.01)
    np.testing.assert_allclose(values, [BEST_VALUES] * 2, atol=0.05)
    np.testing.assert_allclose(actions, [BEST_ACTIONS] * 2, atol=0.06)


# ---- What happens to the data ----


def prepared(rewards: list[list[float]], name: str) -> tuple:
    """Return the rewards of episodes, of which the last is unfinished, ours, and the task."""
    raw = np.concatenate(rewards).astype(np.float32)
    episode_end = np.zeros(len(raw), bool)
    episode_end[np.cumsum([len(part) for part in rewards])[:-1] - 1] = True
    columns = {"observations": raw[:, None], "actions": raw[:, None], "rewards": raw.copy()}
    data = make_data(columns | {"next_valid": np.ones(len(raw))}, episode_end)
    task = make_task(iql, 1, 1, name=name)
    args = iql.apply_settings(iql.Args(env=name))
    found = iql.prepare_data(args, data, task)["rewards"]
    scale = np.float32(task.reward_scale)
    np.testing.assert_array_equal(found, raw * scale + task.reward_shift)  # as those online
    return raw, found, task


def test_rewards_are_scaled_to_returns_that_span_1000():
    raw, scaled, task = prepared([[1, 2], [5.5], [-1, -1, 0.5], [1e4] * 3], "hopper-medium-v2")
    np.testing.assert_allclose(scaled, raw * 1000 / (5.5 + 1.5), rtol=1e-6)
    assert task.reward_shift == 0


@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "rebuilt/antmaze/large-play-v0"])
def test_rewards_of_mazes_get_minus_one(name):
    raw, shifted, task = prepared([[0, 0, 1], [0, 0], [0]], name)
    np.testing.assert_array_equal(shifted, raw - 1)
    assert task.reward_scale == 1 and task.reward_shift == -1


@pytest.mark.parametrize("name", ["pen-human-v1", "kitchen-partial-v0", "maze2d-umaze-v1"])
def test_rewards_of_hands_the_kitchen_and_points_stay(name):
    raw, same, _ = prepared([[1, 2], [7], [5]], name)
    np.testing.assert_array_equal(same, raw)


def test_dropout_acts_on_the_policy_while_it_trains_and_not_while_it_acts():
    agent = make_agent(dropout=0.5)
    obs = torch.randn(2, 6, 4)
    with torch.no_grad():
        assert not torch.equal(agent.policy(obs)[0], agent.policy(obs)[0])
        dropped = (agent.policy.net[:3](obs) == 0).float().mean()
        kept = (agent.policy.net[:2](obs) == 0).float().mean()
        assert 0.1 < dropped - kept < 0.4  # half of those that are not 0 anyway
        torch.manual_seed(0)
        drawn = agent.explore(obs)
        assert agent.policy.training
        agent.eval()
        mean, std = agent.policy(obs)
        assert torch.equal(mean, agent.act(obs))
        torch.manual_seed(0)
        torch.testing.assert_close(drawn, mean + std * torch.randn_like(mean))


def test_rewards_of_equal_episodes_stay():
    raw, same, _ = prepared([[1, 2], [3], [5]], "Pendulum-v1")
    np.testing.assert_array_equal(same, raw)


def authors_span(raw: np.ndarray, terminals: np.ndarray, timeouts: np.ndarray) -> float:
    """Return the span of returns that their dataset_utils.py finds in D4RL's qlearning_dataset."""
    states = np.arange(len(raw))  # each another one
    kept = (timeouts == 0) & (states < states[-1])  # qlearning_dataset leaves out the others
    jumps = np.append(states[kept][1:] != states[kept][:-1] + 1, True)
    ends = np.flatnonzero(jumps | (terminals[kept] > 0))
    return np.ptp(np.add.reduceat(raw[kept].astype(float), [0, *ends[:-1] + 1]))


def test_the_scale_is_the_authors_but_for_timeouts_and_the_unfinished_end():
    parts = [[3, 4], [1, 1, 1], [9, 1, 2], [5]]  # returns 7, 3, 12, 5
    raw, scaled, _ = prepared([*parts, [2, 2, 2]], "walker2d-expert-v2")
    np.testing.assert_allclose(scaled, raw * 1000 / 9, rtol=1e-6)
    terminals, timeouts = np.zeros((2, len(raw)))
    terminals[[1, 4, 7, 8]] = 1
    assert authors_span(raw, terminals, timeouts) == 9
    raw[-3] = -8  # which gives -6, because their last row is always left out
    assert authors_span(raw, terminals, timeouts) == 12 + 6
    raw[-3] = 2
    terminals[7] = 0
    timeouts[7] = 1  # the best return loses its last reward
    assert authors_span(raw, terminals, timeouts) == 10 - 3


@pytest.mark.parametrize(
    "name, tau, beta, dropout, scaled",
    [
        ("hopper-medium-replay-v2", 0.7, 3.0, 0.0, True),
        ("rebuilt/walker2d/medium-v0", 0.7, 3.0, 0.0, True),
        ("antmaze-large-diverse-v2", 0.9, 10.0, 0.0, False),
        ("rebuilt/antmaze/umaze-v0", 0.9, 10.0, 0.0, False),
        ("pen-human-v1", 0.7, 0.5, 0.1, False),
        ("D4RL/relocate/cloned-v2", 0.7, 0.5, 0.1, False),
        ("kitchen-mixed-v0", 0.7, 0.5, 0.1, False),
        ("rebuilt/pen/binary-expert-10k-v0", 0.8, 3.0, 0.1, False),
        ("maze2d-large-v1", 0.7, 3.0, 0.0, False),
        ("Pendulum-v1", 0.7, 3.0, 0.0, True),
    ],
)
def test_settings_are_the_papers(name, tau, beta, dropout, scaled):
    args = iql.apply_settings(iql.Args(env=name))
    assert (args.tau, args.beta) == (tau, beta)
    assert (args.dropout, args.scale_rewards) == (dropout, scaled)
    assert iql.apply_settings(iql.Args(env=name, tau=0.8)).tau == 0.8


def test_scaled_rewards_of_mazes_are_refused():
    args = iql.Args(scale_rewards=True)
    with pytest.raises(SystemExit, match="--scale-rewards True: rewards of AntMaze"):
        iql.prepare_data(args, {}, make_task(iql, 1, 1, name="antmaze-umaze-v2"))


def test_actions_without_bounds_are_refused():
    task = make_task(iql, env_id="Some-v0", action_low=None, action_high=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        iql.prepare_data(iql.Args(), {}, task)


# ---- The online phase: buffer, steps, stops ----


@pytest.fixture
def online_run(main, isolated, tiny_hdf5, pendulum):
    """Return `online_run(env_id)`: a checkpoint of two agents with 12 updates and 60 steps."""

    def run(env_id: str, *words) -> dict:
        if env_id == "Hopper-v4":
            tiny_hdf5(isolated / "data.hdf5")
        else:
            tiny_hdf5(isolated / "data.hdf5", pendulum())
        options = [f"--env={env_id}", "--dataset-file=data.hdf5", "--seed=3", "--num-seeds=2"]
        options += ["--num-updates=12", "--online-steps=60", "--eval-every=20", "--run-dir=run"]
        end = main(*options, *words, script="iql")
        assert end.code == 0 and end.err == "", end.err
        return checkpoint_of("run")

    return run


def test_each_agent_draws_the_dataset_and_its_own_steps_each_as_likely():
    args = iql.Args(num_seeds=2, batch_size=20_000)
    columns = {"rewards": np.arange(10.0), "observations": np.arange(30.0).reshape(10, 3)}
    dataset = iql.ReplayBuffer(columns, args, torch.device("cpu"))
    buffer = iql.OnlineBuffer(dataset, 2, capacity=6)
    for step in range(5):
        rewards = torch.tensor([100.0 + step, 200.0 + step])
        buffer.add({"rewards": rewards, "observations": rewards.unsqueeze(1).expand(2, 3)})
    torch.manual_seed(0)
    batch = buffer.sample()
    assert batch["observations"].shape == (2, 20_000, 3)
    for i, first in enumerate((100, 200)):
        values, counts = batch["rewards"][i].unique(return_counts=True)
        assert values.tolist() == [*range(10), *range(first, first + 5)]
        assert counts.min() > 1150 and counts.max() < 1520  # of 1333
        own = batch["rewards"][i] >= 100
        assert (batch["observations"][i][own] == batch["rewards"][i][own].unsqueeze(1)).all()
    other = iql.OnlineBuffer(dataset, 2, capacity=6)
    other.load(buffer.state())
    assert all(torch.equal(other.columns[key], buffer.columns[key]) for key in columns)
    assert other.num_steps == 5


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1"])
def test_online_steps_are_those_of_the_environment(env_id, online_run, short_env):
    """Played again by hand. No episode begins as another one, or as one of an evaluation."""
    checkpoint = online_run(env_id if env_id == "Hopper-v4" else short_env(env_id))
    task, steps = iql.Task(**checkpoint["task"]), checkpoint["extra_state"]
    assert task.reward_scale not in (0, 1) and steps["rewards"].shape == (2, 60)
    starts = [iql.make_env(task).reset(seed=seed)[0] for seed in range(10)]
    ends = 0
    for i in range(2):
        env = iql.make_env(task)
        end = True
        for k in range(60):
            step = {key: column[i, k].numpy() for key, column in steps.items()}
            if end:
                obs = iql.reset_env(env, 3, i, max(0, k - 1))  # k - 1 ended the last one
                starts.append(obs)
            np.testing.assert_array_equal(step["observations"], np.float32(obs))
            obs, reward, terminated, truncated, _ = env.step(step["actions"])
            np.testing.assert_array_equal(step["next_observations"], np.float32(obs))
            assert step["rewards"] == pytest.approx(task.reward_scale * float(reward), rel=1e-6)
            assert step["terminals"] == terminated
            end = terminated or truncated
            ends += end
    assert ends >= 4  # Hopper falls; for Pendulum, time is up, which is no terminal state
    assert len(np.unique(np.round(starts, 6), axis=0)) == len(starts)
    actions = steps["actions"]
    assert 0.5 < actions.std() < 1 and (abs(actions) == 1).float().mean() > 0.1
    assert (actions[0] != actions[1]).any(1).float().mean() > 0.8


def test_the_phases_follow_each_other(online_run):
    checkpoint = online_run("Hopper-v4")
    found = [(e["phase"], e["update"], e["episodes"]) for e in checkpoint["evaluations"]]
    assert found == [("train", 12, 3), ("online", 20, 2), ("online", 40, 2), ("online", 60, 3)]
    assert checkpoint["phase"] == 1 and checkpoint["step"] == 60 and checkpoint["finished"]


@pytest.mark.parametrize("call", [12, 50])
def test_a_run_stopped_online_continues_with_its_steps_and_new_episodes(
    call, online_run, main, monkeypatch
):
    """Stopped before the first step, and after step 38, of which 20 are saved."""
    left = list(range(call - 12))
    interact = iql.interact

    def stopping_interact(*args):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        interact(*args)

    with monkeypatch.context() as patch:
        patch.setattr(iql, "interact", stopping_interact)
        with pytest.raises(AssertionError, match="is saved; to continue"):
            online_run("Hopper-v4")
    before = checkpoint_of("run")
    assert (before["phase"], before["step"]) == ((1, 20) if call == 50 else (0, 12))
    end = main("--resume=run", script="iql", small=False)
    assert end.code == 0, end.err
    assert ("new ones begin" in end.out) == (call == 50)
    after = checkpoint_of("run")
    assert after["finished"] and after["extra_state"]["rewards"].shape == (2, 60)
    for key, steps in before["extra_state"].items():
        assert torch.equal(after["extra_state"][key][:, : steps.shape[1]], steps)
    assert after["evaluations"][: len(before["evaluations"])] == before["evaluations"]
    assert len(after["evaluations"]) == 4
    assert curves(Path("run/tensorboard/online"))["score"] == [20, 40, 60]
