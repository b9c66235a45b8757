"""Tests of algorithms/onestep.py: its mathematics, its phases, and answers that are known.

python -m pytest tests/test_onestep.py
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import onestep
from tests.helpers import (
    copies_of,
    forward,
    gaussian,
    keep_gradients,
    make_batch,
    make_data,
    make_task,
)

ROW = ("observations", "actions", "next_observations", "next_actions")
NETWORKS = ("behavior", "critic", "critic_target", "policy")


def make_agent(obs_dim: int = 4, act_dim: int = 2, **options) -> onestep.OneStep:
    """Return two agents with small networks, whose targets and pi are others than Q and beta."""
    settings = {"improvement": "exp", "num_seeds": 2, "hidden": 16, "lr": 1e-3, "num_samples": 3}
    torch.manual_seed(0)
    args = onestep.Args(**settings | options)
    agent = onestep.OneStep(args, make_task(onestep, obs_dim, act_dim), "cpu")
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return agent


def make_rows(seed: int = 0, size: int = 32) -> dict:
    """Return random rows with next actions."""
    other = make_batch(size=size, seed=seed + 100)
    return make_batch(size=size, seed=seed) | {"next_actions": other["actions"]}


def fixed_policy(policy, mean: float, log_std: float) -> None:
    """Let a policy of one action have this mean and deviation in every state."""
    last = policy.net[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias[..., 0] = math.atanh(mean)
        last.bias[..., 1] = math.atanh((log_std + 5) / 2.5 - 1)


class ValueOfAction(nn.Module):
    """Q(s, a) = a, for one action."""

    def forward(self, obs, action):
        return action.squeeze(-1)


# ---- The formulas ----


def q_of(net, n: int, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    return forward(net.net, n, np.concatenate([s, a], -1))[..., 0]


def numbers(*tensors) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def test_behavior_and_critic_losses_are_the_closed_forms():
    agent, batch = make_agent(lr=0.0, discount=0.9), make_rows()
    clone = agent.update_behavior(batch)["loss/behavior"]
    expected = -gaussian(agent.behavior, batch["observations"], batch["actions"]).mean(1)
    np.testing.assert_allclose(clone.tolist(), expected, rtol=2e-5)
    found = agent.update_critic(batch)
    s, a, s2, a2 = numbers(*(batch[key] for key in ROW))
    r, ends = numbers(batch["rewards"], batch["terminals"])
    for n in range(2):
        target = r[n] + 0.9 * (1 - ends[n]) * q_of(agent.critic_target, n, s2[n], a2[n])
        loss = ((target - q_of(agent.critic, n, s[n], a[n])) ** 2).mean()
        assert found["loss/critic"][n].item() == pytest.approx(loss, rel=2e-5)


@pytest.mark.parametrize("tau", [0.5, 150.0])
def test_the_exp_loss_is_the_closed_form(tau, monkeypatch):
    agent, batch = make_agent(tau=tau), make_rows()
    batch["actions"][:, 0] = 1.0  # on the bound
    noise = torch.randn(2, 32 * 3, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.reshape(like.shape))
    loss, statistics = agent.exp_loss(batch)
    inside = batch["actions"].clamp(-0.9999, 0.9999)
    log_pi = gaussian(agent.policy, batch["observations"], inside)
    means, stds = numbers(*agent.behavior(batch["observations"]))
    s, a, e = numbers(batch["observations"], batch["actions"], noise.unflatten(1, (32, 3)))
    for n in range(2):
        samples = [means[n] + stds[n] * e[n, :, i] for i in range(3)]
        value = np.mean([q_of(agent.critic, n, s[n], b) for b in samples], 0)
        free = np.exp(tau * (q_of(agent.critic, n, s[n], a[n]) - value))
        assert (free > 100).any() == (tau == 150)
        weight = np.minimum(free, 100)
        assert loss[n].item() == pytest.approx(-(weight * log_pi[n]).mean(), rel=5e-4)
        assert statistics["weight"][n].item() == pytest.approx(weight.mean(), rel=5e-4)


def test_the_rkl_loss_is_the_closed_form(monkeypatch):
    agent, batch = make_agent(improvement="rkl", alpha=0.3), make_rows()
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(2, rows, 2, generator=draw) for rows in (32, 96)]
    queue = list(noise)
    monkeypatch.setattr(torch, "randn_like", lambda like: queue.pop(0).reshape(like.shape))
    loss, statistics = agent.rkl_loss(batch)
    s = batch["observations"]
    mean, std = agent.policy(s)
    kl = 0
    for i in range(3):
        action = (mean + std * noise[1].unflatten(1, (32, 3))[:, :, i]).detach()
        ratio = gaussian(agent.policy, s, action) - gaussian(agent.behavior, s, action)
        kl = kl + ratio.mean(1) / 3
    states, actions = numbers(s, mean + std * noise[0])
    for n in range(2):
        q = q_of(agent.critic, n, states[n], actions[n]).mean()
        assert statistics["kl"][n].item() == pytest.approx(kl[n], rel=1e-4, abs=1e-5)
        assert loss[n].item() == pytest.approx(0.3 * kl[n] - q, rel=1e-4, abs=1e-5)


def test_policies_are_bounded():
    agent = make_agent()
    with torch.no_grad():
        agent.behavior.net[-1].weight.mul_(1e4)
        mean, std = agent.behavior(make_rows()["observations"])
    assert mean.min() == -1 and mean.max() == 1
    torch.testing.assert_close(std.log().aminmax(), (torch.tensor(-5.0), torch.tensor(0.0)))


# ---- Phases ----


def moved(agent, update, batch: dict) -> set[str]:
    """Return the names of the networks that an update changes."""
    networks = {name: getattr(agent, name) for name in NETWORKS if getattr(agent, name) is not None}
    old = {name: copies_of(network.parameters()) for name, network in networks.items()}
    update(batch)
    return {
        name
        for name, network in networks.items()
        if not all(map(torch.equal, old[name], network.parameters()))
    }


@pytest.mark.parametrize("improvement", ["exp", "rkl", "easy_bcq"])
def test_each_phase_trains_its_own_networks(improvement):
    agent = make_agent(improvement=improvement)
    (clone,), (first, second), *rest = [phase.updates for phase in agent.phases]
    expected = {"behavior"}
    if improvement != "easy_bcq":
        expected.add("policy")
    assert moved(agent, clone, make_rows()) == expected
    assert moved(agent, first, make_rows()) == {"critic"}
    old = copies_of(agent.critic_target.parameters())
    assert moved(agent, second, make_rows()) == {"critic", "critic_target"}
    new = zip(old, agent.critic_target.parameters(), agent.critic.parameters(), strict=True)
    for before, after, source in new:
        torch.testing.assert_close(after, 0.995 * before + 0.005 * source)
    for (update,) in rest:
        assert moved(agent, update, make_rows()) == {"policy"}
    scored = [phase.scored for phase in agent.phases]
    assert scored == ([False, True] if improvement == "easy_bcq" else [False, False, True])


def test_pi_begins_as_beta():
    agent = make_agent(improvement="rkl")
    for seed in range(3):
        agent.update_behavior(make_rows(seed=seed))
    for name, weight in agent.behavior.state_dict().items():
        assert torch.equal(weight, agent.policy.state_dict()[name])
    assert agent.optimizers["policy"].step_count == 0


# ---- Known answers ----


def test_q_is_the_value_of_the_behaviour_policy_on_a_chain():
    """From 0, action 0.5 earns 1 and ends, -0.5 leads to 1. There 0.5 earns 2, -0.5 nothing.

    The data take 0.5 in a quarter of all rows. So Q(0, -0.5) is 0.9 * 2 / 4; the best policy would
    get 0.9 * 2.
    """
    rng, size = np.random.default_rng(0), 4000
    s = rng.integers(0, 2, size)
    a, next_a = (rng.choice([0.5, -0.5], size, p=[0.25, 0.75]) for _ in range(2))
    columns = {"observations": s[:, None], "next_observations": np.ones((size, 1))}
    columns |= {"actions": a[:, None], "next_actions": next_a[:, None]}
    columns |= {"rewards": np.where(a > 0, 1 + s, 0), "terminals": (s == 1) | (a > 0)}
    args = onestep.Args(num_seeds=2, batch_size=256, discount=0.9, improvement="rkl", hidden=32)
    args.lr, args.polyak = 3e-3, 0.1
    torch.manual_seed(0)
    agent = onestep.OneStep(args, make_task(onestep, 1, 1), "cpu")
    columns = {key: np.float32(column) for key, column in columns.items()}
    buffer = onestep.ReplayBuffer(columns, args, torch.device("cpu"))
    first, second = agent.phases[1].updates
    for _ in range(250):
        first(buffer.sample())
        second(buffer.sample())
    for state, action, value in [(0, 0.5, 1), (0, -0.5, 0.45), (1, 0.5, 2), (1, -0.5, 0)]:
        where = torch.full((2, 1, 1), float(state)), torch.full((2, 1, 1), action)
        found = agent.critic(*where).flatten().tolist()
        np.testing.assert_allclose(found, value, atol=0.08, err_msg=f"{state}, {action}")


def test_with_tau_zero_the_improvement_is_cloning():
    agent, batch = keep_gradients(make_agent(tau=0.0)), make_rows()
    agent.policy.load_state_dict(agent.behavior.state_dict())
    agent.update_policy(batch)
    improved = [parameter.grad for parameter in agent.policy.parameters()]
    agent.update_behavior(batch)
    for mine, cloned in zip(improved, agent.behavior.parameters(), strict=True):
        torch.testing.assert_close(mine, cloned.grad, rtol=1e-4, atol=1e-6)
    other = keep_gradients(make_agent(tau=5.0))
    other.load_state_dict(agent.state_dict())
    other.update_policy(batch)
    assert not torch.allclose(other.policy.net[0].weight.grad, improved[0], rtol=0.1)


@pytest.mark.parametrize("improvement", ["exp", "rkl"])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_on_a_bandit_pi_is_beta_times_exp_of_q(improvement, strength):
    """Q = a and beta = N(0, 0.3^2) give beta exp(tau Q) = N(0.09 tau, 0.3^2); alpha is 1 / tau.

    With a huge alpha, pi stays where the clone is, and with tau = 0, too.
    """
    tau = strength
    alpha = 1 / strength if strength > 0 else 1e4
    agent = make_agent(1, 1, improvement=improvement, tau=tau, alpha=alpha, lr=3e-3)
    agent.critic = ValueOfAction()
    fixed_policy(agent.behavior, 0.0, math.log(0.3))
    agent.policy.load_state_dict(agent.behavior.state_dict())
    torch.manual_seed(0)
    s = torch.ones(2, 512, 1)
    for _ in range(200):
        agent.update_policy({"observations": s, "actions": 0.3 * torch.randn(2, 512, 1)})
    mean, std = (part[:, 0, 0].tolist() for part in agent.policy(s))
    np.testing.assert_allclose(mean, 0.09 * strength, atol=0.035)
    np.testing.assert_allclose(std, 0.3, atol=0.035)


def test_easy_bcq_takes_the_best_of_n(monkeypatch):
    agent = make_agent(improvement="easy_bcq", num_samples=5)
    s = make_rows()["observations"]
    noise = 4 * torch.randn(2, 32 * 5, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.reshape(like.shape))
    with torch.no_grad():
        chosen = agent.act(s)
        mean, std = agent.behavior(s)
        samples = [mean + std * noise.unflatten(1, (32, 5))[:, :, i] for i in range(5)]
        samples = [sample.clamp(-1, 1) for sample in samples]
        values = torch.stack([agent.critic(s, sample) for sample in samples])
        best = values.argmax(0)
    assert len(set(best.flatten().tolist())) == 5 and (chosen.abs() == 1).any()
    for n in range(2):
        for row in range(32):
            assert torch.equal(chosen[n, row], samples[best[n, row]][n, row])


def test_easy_bcq_with_many_samples_finds_the_best_action_and_with_one_clones():
    for samples, low, high in ((1, -0.15, 0.15), (200, 0.6, 1.0)):
        agent = make_agent(1, 1, improvement="easy_bcq", num_samples=samples)
        agent.critic = ValueOfAction()
        fixed_policy(agent.behavior, 0.0, math.log(0.3))
        torch.manual_seed(0)
        with torch.no_grad():
            mean = agent.act(torch.ones(2, 100, 1)).mean((1, 2))
        assert (mean > low).all() and (mean <= high).all()


# ---- Data and settings ----


def test_the_rows_are_those_of_the_authors_loader(hopper, tiny_hdf5, isolated):
    """Also where the file has the next states of timeouts, which have no next action."""
    raw = hopper()
    tiny_hdf5(isolated / "data.hdf5", raw)
    args = onestep.Args(env="hopper-medium-v2", dataset_file="data.hdf5")
    columns = onestep.prepare_data(args, *onestep.load_dataset(args))
    # d4rl_to_replay.py: the last row of the file is never used
    kept = [i for i in range(399) if not raw["timeouts"][i]]
    assert len(kept) < 390 and raw["terminals"][kept].any()
    for name in ("observations", "actions", "rewards", "terminals"):
        np.testing.assert_allclose(columns[name], raw[name][kept], rtol=1e-6)
    follow = ~raw["terminals"][kept]
    for name in ("observations", "actions"):
        expected = raw[name][[i + 1 for i in kept]]
        np.testing.assert_allclose(columns[f"next_{name}"][follow], expected[follow], rtol=1e-6)


def test_what_cannot_be_trained_on_is_refused():
    rows = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": np.zeros(4)}
    data = make_data(rows, episode_end=[False, True, False, True])
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        task = make_task(onestep, env_id="Some-v0", action_low=None, action_high=None)
        onestep.prepare_data(onestep.Args(), data, task)
    with pytest.raises(SystemExit, match="order"):
        onestep.prepare_data(onestep.Args(), data, make_task(onestep, ordered=False))
    with pytest.raises(SystemExit, match="no row is followed"):
        onestep.prepare_data(onestep.Args(), make_data(rows), make_task(onestep))
    for name in ("num_samples", "behavior_updates", "q_updates"):
        with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be at least 1"):
            onestep.prepare_data(onestep.Args(**{name: 0}), data, make_task(onestep))


def test_the_improvement_is_rkl_unless_told():
    for given, found in ((None, "rkl"), ("exp", "exp"), ("easy_bcq", "easy_bcq")):
        args = onestep.apply_settings(onestep.Args(improvement=given))
        assert args.improvement == found
