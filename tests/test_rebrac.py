"""Tests of algorithms/rebrac.py: its mathematics, its data, and answers that are known.

python -m pytest tests/test_rebrac.py
"""

import numpy as np
import pytest
import torch
from torch import nn

import rebrac
import td3_bc
from tests.helpers import (
    copies_of,
    forward,
    keep_gradients,
    make_batch,
    make_data,
    make_task,
    train,
)

BETAS = {"actor_beta": 0.4, "critic_beta": 0.7}
RATES = {"actor_lr": 1e-3, "critic_lr": 1e-3}


def make_agent(**options) -> rebrac.ReBRAC:
    """Return two agents with small networks. Their targets are others than their networks."""
    settings = BETAS | RATES | {"discount": 0.9, "num_seeds": 2, "hidden": 16}
    torch.manual_seed(0)
    agent = rebrac.ReBRAC(rebrac.Args(**settings | options), make_task(rebrac), "cpu")
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return agent


def make_rows(seed: int = 0) -> dict:
    """Return random rows with next actions."""
    other = make_batch(seed=seed + 100)
    return make_batch(seed=seed) | {"next_actions": other["actions"]}


# ---- The formulas ----


def q_values(critic, n: int, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return both Q of agent n by NumPy: (2, B). LayerNorm stands after ReLU."""
    found = []
    for index in (2 * n, 2 * n + 1):
        x = np.hstack([s, a])
        for layer in critic.net:
            if isinstance(layer, nn.ReLU):
                x = np.maximum(x, 0)
                continue
            weight, bias = (p.detach().double().numpy()[index] for p in (layer.weight, layer.bias))
            if isinstance(layer, rebrac.StackedLayerNorm):
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
                x = x * weight + bias
            else:
                x = x @ weight + bias
        found.append(x[:, 0])
    return np.array(found)


def closed_forms(agent, batch: dict, noise: np.ndarray, n: int) -> dict:
    """Return what agent n's statistics must be."""
    part = {key: column[n].double().numpy() for key, column in batch.items()}
    s, a, s2 = (part[key] for key in ("observations", "actions", "next_observations"))
    smoothing = np.clip(0.2 * noise, -0.5, 0.5)
    free = np.tanh(forward(agent.actor_target, n, s2, masks=(1, 1, 1))) + smoothing
    b = np.clip(free, -1, 1)
    assert (abs(smoothing) == 0.5).any() and (b != free).any() and (b == free).any()
    next_distance = ((b - part["next_actions"]) ** 2).sum(1)
    next_q = q_values(agent.critic_target, n, s2, b).min(0) - 0.7 * next_distance
    target = part["rewards"] + 0.9 * (1 - part["terminals"]) * next_q
    q = q_values(agent.critic, n, s, a)
    pi = np.tanh(forward(agent.actor, n, s, masks=(1, 1, 1)))
    pi_q = q_values(agent.critic, n, s, pi)
    assert (pi_q.argmin(0) == 0).any() and (pi_q.argmin(0) == 1).any()
    weight = 1 / abs(pi_q.min(0)).mean()
    distance = ((pi - a) ** 2).sum(1).mean()
    return {
        "loss/critic": ((q - target) ** 2).mean(1).sum(),
        "value": q.mean(),
        "distance/critic": next_distance.mean(),
        "loss/actor": 0.4 * distance - weight * pi_q.min(0).mean(),
        "distance/actor": distance,
        "weight": weight,
    }


def test_losses_are_the_closed_forms(monkeypatch):
    # The networks stay, so that (4) sees the Q of (3).
    agent, batch = make_agent(actor_lr=0.0, critic_lr=0.0, polyak=0.0), make_rows()
    noise = 3 * torch.randn(2, 32, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    statistics = agent.update(batch)
    for n in range(2):
        expected = closed_forms(agent, batch, noise[n].double().numpy(), n)
        assert statistics.keys() == expected.keys()
        for name, number in expected.items():
            assert statistics[name][n].item() == pytest.approx(number, rel=5e-5), name


def test_the_first_of_two_updates_moves_all_and_the_second_only_q():
    agent = make_agent(polyak=0.1)
    first, second = agent.phases[0].updates
    names = ("critic", "actor", "critic_target", "actor_target")

    def snapshot() -> dict:
        return {name: copies_of(getattr(agent, name).parameters()) for name in names}

    def moved(old: dict, new: dict) -> set[str]:
        return {name for name in names if not all(map(torch.equal, old[name], new[name]))}

    start = snapshot()
    first(make_rows(seed=0))
    middle = snapshot()
    second(make_rows(seed=1))
    assert moved(start, middle) == set(names) and moved(middle, snapshot()) == {"critic"}
    # pi' follows the pi from before the update, and Q' the Q from after it.
    for target, source in (("critic", middle["critic"]), ("actor", start["actor"])):
        old, new = (state[f"{target}_target"] for state in (start, middle))
        for before, after, weight in zip(old, new, source, strict=True):
            torch.testing.assert_close(after, 0.9 * before + 0.1 * weight)


def test_the_networks_begin_as_edacs():
    args = rebrac.Args(num_seeds=2, hidden=32, **BETAS, **RATES)
    agent = rebrac.ReBRAC(args, make_task(rebrac), "cpu")
    nets = ((agent.actor, 4, 1e-3, False), (agent.critic.net, 6, 3e-3, True))
    for net, fan_in, last_bound, layer_norm in nets:
        kinds = [type(layer).__name__ for layer in net]
        block = ["StackedLinear", "ReLU"]
        if layer_norm:
            block.append("StackedLayerNorm")
        assert kinds == [*block, *block, *block, "StackedLinear"]
        *hidden, last = [layer for layer in net if isinstance(layer, rebrac.StackedLinear)]
        for layer, width in zip(hidden, (fan_in, 32, 32), strict=True):
            assert (layer.bias == 0.1).all()
            assert 0.9 * width**-0.5 < layer.weight.abs().max() <= width**-0.5
        for parameter in last.parameters():
            assert 0.2 * last_bound < parameter.abs().max() <= last_bound


# ---- Known answers ----


def test_with_both_betas_zero_it_is_td3():
    """TD3+BC's critic update, on these networks, is TD3's; and the actor climbs Q, nothing else."""
    agent, batch = make_agent(actor_beta=0.0, critic_beta=0.0, polyak=0.0), make_rows()
    options = {"num_seeds": 2, "hidden": 16, "alpha": 1.0, "discount": 0.9, "lr": 1e-3}
    td3 = td3_bc.TD3BC(td3_bc.Args(**options), make_task(td3_bc), "cpu")
    twin = make_agent(actor_beta=0.0, critic_beta=0.0)
    twin.load_state_dict(agent.state_dict())
    td3.critic, td3.critic_target = twin.critic, twin.critic_target
    td3.actor_target = twin.actor_target
    td3.optimizers["critic"] = td3_bc.Adam(td3.critic.parameters(), 1e-3)
    keep_gradients(agent)
    for step in range(5):
        rows = make_rows(seed=step)
        torch.manual_seed(step)
        expected = td3.update_critic(rows)
        torch.manual_seed(step)
        found = agent.update_critic(rows)
        torch.testing.assert_close(found["loss/critic"], expected["loss/critic"])
    for mine, plain in zip(agent.critic.parameters(), td3.critic.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)

    agent.optimizers["critic"].step = lambda grads: None
    q = agent.critic(batch["observations"], agent.act(batch["observations"])).amin(1)
    climb = torch.autograd.grad(-q.mean(1).sum(), list(agent.actor.parameters()))
    scale = q.abs().mean(1).detach()
    agent.update(batch)
    for parameter, gradient in zip(agent.actor.parameters(), climb, strict=True):
        per_agent = gradient / scale.reshape(2, *[1] * (gradient.ndim - 1))
        torch.testing.assert_close(parameter.grad, per_agent, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BETAS)
def test_each_beta_acts_on_its_own_network_only(name):
    plain, other = (keep_gradients(make_agent(**{name: beta})) for beta in (0.0, 1.0))
    other.load_state_dict(plain.state_dict())
    for agent in (plain, other):
        torch.manual_seed(0)
        agent.update_critic(make_rows())
    same = map(
        torch.equal,
        [p.grad for p in plain.critic.parameters()],
        [p.grad for p in other.critic.parameters()],
    )
    assert all(same) == (name == "actor_beta")


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_on_a_bandit_the_actor_balances_as_computed_by_hand(beta):
    """Actions lie around 0, the reward is 2 + a, and there is no next state, so Q = 2 + a.

    (4) is stationary where 1 / (2 + pi) = 2 beta pi, as the mean recorded action is 0.
    """
    size = 2000
    a = np.random.default_rng(0).uniform(-0.9, 0.9, size)
    a -= a.mean()
    columns = {"observations": np.full((size, 1), 1), "actions": a[:, None], "rewards": 2 + a}
    columns["next_actions"] = columns["actions"]
    columns = {key: np.float32(column) for key, column in columns.items()}
    columns |= {"terminals": np.ones(size), "next_observations": columns["observations"]}
    args = rebrac.Args(num_seeds=2, hidden=32, actor_beta=beta, critic_beta=0.5, discount=0.99)
    args.batch_size, args.num_updates, args.actor_lr, args.critic_lr = 128, 600, 2e-3, 2e-3
    agent = train(rebrac, args, make_task(rebrac, 1, 1), columns)
    with torch.no_grad():
        actions = agent.act(torch.ones(2, 1, 1)).flatten()
    np.testing.assert_allclose(actions, (1 + 1 / (2 * beta)) ** 0.5 - 1, atol=0.06)


def test_the_value_of_a_state_counts_what_the_next_action_is_off():
    """At s = 1 the data act with -0.5 or 0.5, earn 1 and end; s = 0 leads there and earns nothing.

    pi, which does not learn here, acts with 0. So Q(0, a) = gamma (1 - beta_2 / 4).
    """
    rng, size = np.random.default_rng(0), 2000
    s = rng.integers(0, 2, (size, 1)).astype(float)
    columns = {"observations": s, "next_observations": np.ones((size, 1)), "terminals": s[:, 0]}
    columns |= {"rewards": s[:, 0], "next_actions": rng.choice([-0.5, 0.5], (size, 1))}
    columns["actions"] = np.where(s == 1, rng.choice([-0.5, 0.5], (size, 1)), 0.0)
    args = rebrac.Args(num_seeds=2, hidden=32, actor_beta=1.0, critic_beta=2.0, discount=0.8)
    args.batch_size, args.num_updates, args.actor_lr, args.critic_lr = 128, 600, 0.0, 2e-3
    args.polyak, args.sigma = 0.05, 0.0
    agent = train(rebrac, args, make_task(rebrac, 1, 1), columns)
    with torch.no_grad():
        q = agent.critic(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1)).flatten()
    np.testing.assert_allclose(q, 0.8 * (1 - 2 / 4), atol=0.05)


# ---- Data and settings ----


def test_the_rows_are_those_of_the_authors_loader(hopper, tiny_hdf5, isolated):
    """Also where the file has the next states of timeouts, which have no next action."""
    raw = hopper()
    tiny_hdf5(isolated / "data.hdf5", raw)
    args = rebrac.Args(env="hopper-medium-v2", dataset_file="data.hdf5")
    columns = rebrac.prepare_data(args, *rebrac.load_dataset(args))
    # src/utils/buffer.py, qlearning_dataset: the last row of the file is never used
    kept = [i for i in range(399) if not raw["timeouts"][i]]
    assert len(kept) < 390 and raw["terminals"][kept].any()
    for name in ("observations", "actions", "rewards", "terminals"):
        np.testing.assert_allclose(columns[name], raw[name][kept], rtol=1e-6)
    follow = ~raw["terminals"][kept]
    for name in ("observations", "actions"):
        expected = raw[name][[i + 1 for i in kept]]
        np.testing.assert_allclose(columns[f"next_{name}"][follow], expected[follow], rtol=1e-6)


def test_rewards_of_mazes_are_multiplied():
    for name, scale in (("antmaze-umaze-v2", 100.0), ("hopper-medium-v2", 1.0)):
        rows = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": [0, 1, 0, 1]}
        task = make_task(rebrac, name=name)
        data = make_data(rows, episode_end=[False, True, False, True])
        columns = rebrac.prepare_data(rebrac.Args(), data, task)
        np.testing.assert_array_equal(columns["rewards"], scale * np.array([0, 1, 0, 1]))
        assert task.reward_scale == scale


def test_data_without_next_actions_are_refused():
    rows = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": np.zeros(4)}
    data = make_data(rows, episode_end=[False, True, False, True])
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        task = make_task(rebrac, env_id="Some-v0", action_low=None, action_high=None)
        rebrac.prepare_data(rebrac.Args(), data, task)
    with pytest.raises(SystemExit, match="order"):
        rebrac.prepare_data(rebrac.Args(), data, make_task(rebrac, ordered=False))
    with pytest.raises(SystemExit, match="no row is followed"):
        rebrac.prepare_data(rebrac.Args(), make_data(rows), make_task(rebrac))


@pytest.mark.parametrize(
    "env, batch_size, actor_beta, critic_beta, discount",
    [
        ("hopper-medium-v2", 1024, 0.01, 0.01, 0.99),
        ("hopper-medium-replay-v2", 1024, 0.05, 0.5, 0.99),
        ("rebuilt/walker2d/medium-replay-177k-v0", 1024, 0.05, 0.01, 0.99),
        ("rebuilt/halfcheetah/medium-snapshot5-v0", 1024, 0.001, 0.01, 0.99),
        ("antmaze-umaze-v2", 256, 0.003, 0.002, 0.999),
        ("D4RL/pen/human-v2", 256, 0.1, 0.5, 0.99),
        ("hammer-cloned-v1", 256, 0.1, 0.5, 0.99),
        ("maze2d-medium-v1", 256, 0.003, 0.001, 0.99),
        ("Pendulum-v1", 1024, 0.01, 0.01, 0.99),
    ],
)
def test_settings_are_those_of_the_dataset(env, batch_size, actor_beta, critic_beta, discount):
    args = rebrac.apply_settings(rebrac.Args(env=env))
    found = (args.batch_size, args.actor_beta, args.critic_beta, args.discount)
    assert found == (batch_size, actor_beta, critic_beta, discount)
