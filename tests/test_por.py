"""Tests of algorithms/por.py: its mathematics, and answers that are known.

python -m pytest tests/test_por.py
"""

import numpy as np
import pytest
import torch

import por
from tests.helpers import (
    copies_of,
    gaussian,
    keep_gradients,
    make_batch,
    make_data,
    make_task,
    train,
)


def make_agent(**options) -> por.POR:
    """Return two agents with small networks."""
    settings = {"guide": "weighted", "tau": 0.7, "alpha": 3.0, "policy_lr": 1e-3, "num_seeds": 2}
    settings |= {"layer_norm": False, "hidden": 16, "execute_hidden": 16, "num_updates": 100}
    return por.POR(por.Args(**settings | options), make_task(por), "cpu")


# ---- The formulas ----


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_losses_are_the_closed_forms(tau):
    agent = make_agent(tau=tau, value_lr=0.0)  # V stays, so that (5) sees the V of (3)
    with torch.no_grad():
        for weight in agent.value_target.parameters():
            weight += 0.1  # a mix-up with V must show
    batch = make_batch()
    s, s2, valid = batch["observations"], batch["next_observations"], batch["next_valid"].numpy()
    with torch.no_grad():
        v = agent.value(s).double().numpy()  # (N, 2, B)
        next_v = agent.value_target(s2).double().numpy().min(1)
    target = batch["rewards"].numpy() + 0.99 * (1 - batch["terminals"].numpy()) * next_v
    residual = target[:, None] - v
    value = (np.where(residual < 0, 1 - tau, tau) * residual**2).mean((1, 2))
    weight = np.minimum(np.exp(3.0 * (target - v.min(1))), 100)
    log_pi = gaussian(agent.execute, torch.cat([s, s2], -1), batch["actions"])
    expected = {
        "loss/value": value,
        "loss/guide": -(weight * gaussian(agent.guide, s, s2) * valid).mean(1),
        "loss/execute": -(log_pi * valid).mean(1),
        "value": v.mean((1, 2)),
        "weight": weight.mean(1),
    }
    statistics = agent.update(batch)
    assert (weight == 100).any() and (weight < 1).any()
    assert statistics.keys() == expected.keys()
    for name, numbers in expected.items():
        found = statistics[name].detach().numpy()
        np.testing.assert_allclose(found, numbers, rtol=1e-5, err_msg=name)


def test_the_q_guide_maximises_value_and_the_behaviors_density():
    agent = make_agent(guide="q", alpha=50.0, value_lr=0.0)
    batch = make_batch()
    s = batch["observations"]
    torch.manual_seed(3)
    with torch.no_grad():
        mean, std = agent.guide(s)
        goal = mean + std * torch.randn_like(mean)
        v = agent.value(goal).double().numpy().min(1)
    weight = 50 / abs(v).mean(1, keepdims=True)
    expected = -(weight * v + gaussian(agent.behavior, s, goal)).mean(1)
    torch.manual_seed(3)
    statistics = agent.update(batch)
    np.testing.assert_allclose(statistics["loss/guide"].detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(statistics["weight"].numpy(), weight[:, 0], rtol=1e-5)
    log_b = gaussian(agent.behavior, s, batch["next_observations"])
    expected = -(log_b * batch["next_valid"].numpy()).mean(1)
    loss = agent.update_behavior(batch)["loss/behavior"]
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-5)


def test_the_target_follows_v_slowly():
    agent = make_agent(polyak=0.1)
    before = copies_of(agent.value_target.parameters())
    agent.update(make_batch())
    parameters = zip(agent.value_target.parameters(), agent.value.parameters(), strict=True)
    for old, (new, v) in zip(before, parameters, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * v)
        assert not torch.equal(new, old)


@pytest.mark.parametrize("decay_updates, updates", [(None, 4), (8, 8)])
def test_the_policies_rate_falls_to_zero_as_a_cosine(decay_updates, updates):
    agent = make_agent(num_updates=4, decay_updates=decay_updates, policy_lr=0.1)
    rates = []
    for _ in range(5):
        agent.update(make_batch())
        rates.append(agent.optimizers["policies"].lr.item())
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(5) / updates))
    np.testing.assert_allclose(rates, expected, atol=1e-7)


@pytest.mark.parametrize("guide", ["weighted", "q"])
def test_rows_without_a_next_state_teach_v_alone(guide):
    """With V frozen, the guide could see such a row in no other way than by its own loss."""

    def gradients(*changed: str) -> tuple[dict, dict]:
        torch.manual_seed(0)
        agent = keep_gradients(make_agent(guide=guide, value_lr=0.0))
        batch = make_batch()
        unknown = batch["next_valid"] == 0
        for key in changed:
            batch[key][unknown] += 1.0
        statistics = {}
        for phase in agent.phases:
            statistics |= phase.updates[0](batch)
        grads = {name: p.grad for name, p in agent.named_parameters() if p.requires_grad}
        return {name: x.detach() for name, x in statistics.items()}, grads

    statistics, plain = gradients()
    for changed in (["actions", "next_observations"], ["rewards"]):
        other_statistics, other = gradients(*changed)
        differ = {name.split(".")[0] for name in plain if not torch.equal(plain[name], other[name])}
        assert differ == ({"value"} if changed == ["rewards"] else set())
        for name in statistics.keys() - {"loss/value", "weight"}:
            assert torch.equal(statistics[name], other_statistics[name]), name


# ---- A chain whose answers are known ----

# Two trajectories that share state 1: 0, 1, 2, end with reward 0; and 3, 1, 4, end with reward 1.
# Only stitching leads from 0 to the reward. Columns: state, action, reward, next state.
CHAIN = [
    (0, 0.3, 0, 1),
    (1, -0.7, 0, 2),
    (2, 0.1, 0, 5),
    (3, -0.2, 0, 1),
    (1, 0.6, 0, 4),
    (4, 0.1, 1, 5),
]
ONE_HOT = torch.eye(5).expand(2, 5, 5)


def train_chain(**options) -> por.POR:
    """Train on CHAIN with gamma 0.9. States are one-hot, and the end is the zero vector."""
    settings = {"guide": "weighted", "alpha": 3.0, "policy_lr": 3e-3, "layer_norm": False}
    settings |= {"value_lr": 3e-3, "discount": 0.9, "polyak": 0.05, "hidden": 32, "num_seeds": 2}
    settings |= {"execute_hidden": 32, "num_updates": 700, "batch_size": 48}
    s, a, r, s2 = (np.array(column) for column in zip(*CHAIN, strict=True))
    states = np.eye(6, 5)
    columns = {"observations": states[s], "actions": a[:, None], "rewards": r}
    columns |= {"next_observations": states[s2], "terminals": s2 == 5, "next_valid": np.ones(6)}
    data = make_data(columns, episode_end=s2 == 5)
    del data["episode_end"]
    return train(por, por.Args(**settings | options), make_task(por, 5, 1), data)


def values_of(agent: por.POR) -> np.ndarray:
    """Return V of the five states, the mean of its two networks: (N, 5)."""
    with torch.no_grad():
        return agent.value(ONE_HOT).mean(1).numpy()


@pytest.fixture(scope="module")
def chain_of_the_behavior() -> por.POR:
    return train_chain(tau=0.5)


def test_with_tau_one_half_v_is_the_behavior_policys(chain_of_the_behavior):
    # State 1 goes on to the good and to the bad state equally often, so it is worth gamma / 2.
    expected = [[0.405, 0.45, 0, 0.405, 1]] * 2
    np.testing.assert_allclose(values_of(chain_of_the_behavior), expected, atol=0.1)


def test_with_tau_near_one_v_is_the_best_of_the_data():
    values = values_of(train_chain(tau=0.99))
    np.testing.assert_allclose(values, [[0.81, 0.9, 0, 0.81, 1]] * 2, atol=0.06)


def test_the_weighted_guide_prefers_the_better_successor(chain_of_the_behavior):
    with torch.no_grad():
        goal = chain_of_the_behavior.guide(ONE_HOT)[0][:, 1].numpy()
    good = 1 / (1 + np.exp(-3 * 0.9))  # weights exp(alpha A), where the two A are gamma apart
    np.testing.assert_allclose(goal, [[0, 0, 1 - good, 0, good]] * 2, atol=0.1)


def test_the_execute_policy_returns_the_action_that_joins_two_states(chain_of_the_behavior):
    s, a, s2 = zip(*[(s, a, s2) for s, a, _, s2 in CHAIN if s2 < 5], strict=True)
    with torch.no_grad():
        pairs = torch.cat([ONE_HOT[:, list(s)], ONE_HOT[:, list(s2)]], -1)
        actions = chain_of_the_behavior.execute(pairs)[0].squeeze(-1).numpy()
        acted = chain_of_the_behavior.act(ONE_HOT).squeeze(-1)[:, 1].numpy()
    np.testing.assert_allclose(actions, [a] * 2, atol=0.05)
    np.testing.assert_allclose(acted, [0.6] * 2, atol=0.25)  # towards 4, not 2


def test_the_q_guide_climbs_v_near_the_data():
    agent = train_chain(guide="q", tau=0.9, alpha=3.0, behavior_updates=500)
    with torch.no_grad():
        clone, goal = (policy(ONE_HOT)[0][:, 1] for policy in (agent.behavior, agent.guide))
        v = agent.value(torch.stack([clone, goal], 1)).mean(1).numpy()
    np.testing.assert_allclose(clone.numpy(), [[0, 0, 0.5, 0, 0.5]] * 2, atol=0.15)
    assert (v[:, 1] > v[:, 0] + 0.1).all()
    assert (goal[:, 4] > goal[:, 2] + 0.2).all() and (abs(goal - clone) < 0.7).all()


# ---- Data and settings ----


def test_rows_that_teach_nothing_are_left_out():
    rows = np.arange(4.0)[:, None]
    columns = {"observations": rows, "actions": rows, "rewards": np.zeros(4)}
    columns |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 0, 1]}
    found = por.prepare_data(por.Args(), make_data(columns), make_task(por, 1, 1))
    assert found["observations"][:, 0].tolist() == [0, 1, 3]
    assert all(len(column) == 3 for column in found.values())


def test_rewards_of_unordered_rows_stay(capsys):
    columns = {
        "observations": np.zeros((4, 1)),
        "actions": np.zeros((4, 1)),
        "rewards": [1, 5, 2, 0],
    }
    task = make_task(por, 1, 1, ordered=False)
    data = make_data(columns | {"next_valid": np.ones(4)})
    assert por.prepare_data(por.Args(), data, task)["rewards"].tolist() == [1, 5, 2, 0]
    assert "not scaled" in capsys.readouterr().out


@pytest.mark.parametrize(
    "env, options, expected",
    [
        ("hopper-medium-v2", {}, ("q", 0.7, 50.0, 1e-3, False)),
        ("hopper-medium-expert-v2", {}, ("q", 0.7, 5.0, 1e-3, True)),
        ("rebuilt/hopper/medium-100k-v0", {}, ("q", 0.7, 50.0, 1e-3, False)),
        ("hopper-medium-v2", {"guide": "weighted"}, ("weighted", 0.5, 3.0, 1e-3, True)),
        ("halfcheetah-medium-replay-v2", {}, ("weighted", 0.5, 3.0, 1e-3, True)),
        ("halfcheetah-medium-replay-v2", {"guide": "q"}, ("q", 0.7, 50.0, 1e-3, False)),
        ("walker2d-medium-v2", {"alpha": 4.0}, ("weighted", 0.5, 4.0, 1e-3, True)),
        ("antmaze-umaze-diverse-v2", {}, ("weighted", 0.9, 10.0, 1e-3, False)),
        ("antmaze-large-play-v2", {}, ("weighted", 0.9, 10.0, 1e-4, False)),
        ("Pendulum-v1", {}, ("weighted", 0.5, 3.0, 1e-3, True)),
    ],
)
def test_a_dataset_gets_its_published_settings(env, options, expected):
    args = por.apply_settings(por.Args(env=env, **options))
    assert (args.guide, args.tau, args.alpha, args.policy_lr, args.layer_norm) == expected
