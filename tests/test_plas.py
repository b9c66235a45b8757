"""Tests of algorithms/plas.py: its mathematics, its phases, and a problem whose answer is known.

python -m pytest tests/test_plas.py
"""

import functools

import numpy as np
import pytest
import torch

import plas
import td3_bc
from tests.helpers import copies_of, forward, make_batch, make_data, make_task, train


def make_agent(**options) -> plas.PLAS:
    """Return two agents with small networks and targets of their own."""
    settings = {"hidden": 16, "vae_hidden": 12, "num_seeds": 2}
    agent = plas.PLAS(plas.Args(**settings | options), make_task(plas), "cpu")
    with torch.no_grad():
        for weight in [*agent.critic_target.parameters(), *agent.policy_target.parameters()]:
            weight += 0.1
        agent.vae.encoder[-1].bias[..., -1] = -7  # the clamp of log_std changes it
    return agent


# ---- The formulas ----


def acted(agent, policy, n: int, s) -> np.ndarray:
    """Return the action of Eq. 2 or 3."""
    args = agent.args
    z = args.max_latent_action * np.tanh(forward(policy.latent, n, s))
    a = np.tanh(forward(agent.vae.decoder, n, np.concatenate([s, z], 1)))
    if args.phi > 0:
        move = np.tanh(forward(policy.perturb.net, n, np.concatenate([s, a], 1)))
        a = np.clip(a + args.phi * move, -1, 1)
    return a


def values(critic, n: int, s, a) -> np.ndarray:
    x = np.concatenate([s, a], 1)
    return np.stack([forward(net, n, x)[:, 0] for net in (critic.q1, critic.q2)])


@pytest.mark.parametrize("phi", [0.0, 0.4])
def test_losses_are_the_formulas(phi, monkeypatch):
    # With rates of 0 the formulas can be read off the networks after the update.
    rates = {"lr": 0.0, "vae_lr": 0.0, "actor_lr": 0.0, "polyak": 0.0}
    agent = make_agent(phi=phi, lambd=0.7, max_latent_action=1.5, **rates)
    batch = make_batch()
    draws = []
    randn_like = torch.randn_like

    def noted(like):
        draws.append(randn_like(like))
        return draws[-1]

    monkeypatch.setattr(torch, "randn_like", noted)
    found = agent.update_vae(batch) | agent.update(batch)
    assert len(draws) == 1
    for n in range(2):
        rows = {key: column[n].double().numpy() for key, column in batch.items()}
        s, a, s2 = rows["observations"], rows["actions"], rows["next_observations"]
        mean, log_std = np.split(forward(agent.vae.encoder, n, np.concatenate([s, a], 1)), 2, 1)
        log_std = log_std.clip(-4, 15)
        z = mean + np.exp(log_std) * draws[0][n].double().numpy()
        decoded = np.tanh(forward(agent.vae.decoder, n, np.concatenate([s, z], 1)))
        kl = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))

        q = values(agent.critic_target, n, s2, acted(agent, agent.policy_target, n, s2))
        target = rows["rewards"] + 0.99 * (1 - rows["terminals"]) * (
            0.7 * q.min(0) + 0.3 * q.max(0)
        )
        expected = {
            "loss/vae": ((decoded - a) ** 2).mean() + 0.5 * kl.mean(),
            "loss/critic": ((values(agent.critic, n, s, a) - target) ** 2).mean(1).sum(),
            "loss/policy": -values(agent.critic, n, s, acted(agent, agent.policy, n, s))[0].mean(),
            "value": values(agent.critic, n, s, a).mean(),
            "latent": abs(1.5 * np.tanh(forward(agent.policy.latent, n, s))).mean(),
        }
        assert expected.keys() == found.keys()
        for name, number in expected.items():
            assert found[name][n].item() == pytest.approx(number, rel=2e-5), name


def test_each_phase_trains_its_own_networks_and_targets_follow():
    agent = make_agent(phi=0.1, polyak=0.1)
    vae, train_phase = agent.phases
    assert [(p.name, p.scored) for p in agent.phases] == [("vae", False), ("train", True)]
    networks = {"vae": agent.vae, "critic": agent.critic, "policy": agent.policy}
    networks |= {"critic_target": agent.critic_target, "policy_target": agent.policy_target}

    def moved(phase) -> set:
        before = {name: copies_of(net.parameters()) for name, net in networks.items()}
        phase.updates[0](make_batch())
        return {
            name
            for name, net in networks.items()
            if not all(map(torch.equal, before[name], net.parameters()))
        }

    assert moved(vae) == {"vae"}
    pairs = [(agent.critic_target, agent.critic), (agent.policy_target, agent.policy)]
    before = [copies_of(target.parameters()) for target, _ in pairs]
    assert moved(train_phase) == networks.keys() - {"vae"}
    for old, (target, source) in zip(before, pairs, strict=True):
        for a, b, c in zip(old, target.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(b, 0.9 * a + 0.1 * c)


@pytest.mark.parametrize("phi", [0.0, 0.3])
def test_z_and_the_move_keep_their_bounds(phi):
    agent = make_agent(phi=phi, max_latent_action=1.5)
    assert (agent.policy.perturb is None) == (phi == 0)
    obs = 30 * make_batch()["observations"]
    with torch.no_grad():
        z, a = agent.policy(obs, agent.vae.decode)
        move = a - agent.vae.decode(obs, z)
        assert torch.equal(agent.act(obs), a)
    assert z.shape == (2, 32, 4) and a.shape == (2, 32, 2)
    assert 1.4 < z.abs().amax() <= 1.5 and a.abs().amax() <= 1
    assert move.abs().amax() <= phi + 1e-6 and (phi == 0 or move.abs().amax() > 0.2)


# ---- Data ----


def test_what_cannot_work_is_refused():
    with pytest.raises(SystemExit, match="--vae-updates must be at least 1"):
        plas.prepare_data(plas.Args(vae_updates=0), {}, make_task(plas))
    with pytest.raises(SystemExit, match="A-v0: .*bounds"):
        plas.prepare_data(plas.Args(), {}, make_task(plas, action_low=None))


def test_rows_without_a_next_state_are_left_out():
    columns = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": range(4)}
    columns |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 0, 1]}
    found = plas.prepare_data(plas.Args(), make_data(columns), make_task(plas))
    assert found["rewards"].tolist() == [0, 1, 3]


# ---- A bandit with a gap in its data ----


def gap(count: int, seed: int) -> dict:
    """Return actions near (-0.5, 0.3) and (0.5, 0.3) and a reward that is highest at (1, -1)."""
    rng = np.random.default_rng(seed)
    a = np.stack([rng.choice([-0.5, 0.5], count), np.full(count, 0.3)], 1)
    a += 0.03 * rng.standard_normal((count, 2))
    s = rng.uniform(-1, 1, (count, 2))
    return make_data({"observations": s, "actions": a, "rewards": a[:, 0] - 2 * a[:, 1]})


@functools.cache
def actions(phi: float) -> np.ndarray:
    """Return what two agents do in states of the bandit, after they were trained on its data."""
    args = plas.Args(hidden=32, vae_hidden=64, num_seeds=2, batch_size=64, phi=phi)
    args.vae_updates, args.vae_lr = 1000, 2e-3
    args.num_updates, args.lr, args.actor_lr = 600, 2e-3, 2e-3
    task = make_task(plas, 2, 2)
    agent = train(plas, args, task, plas.prepare_data(args, gap(2000, 0), task))
    with torch.no_grad():
        return agent.act(states()).numpy()


def states() -> torch.Tensor:
    return torch.from_numpy(gap(200, 1)["observations"]).expand(2, -1, -1)


def test_the_policy_takes_the_better_cluster_and_stays_in_it():
    away = abs(actions(0.0) - [0.5, 0.3]).max(2)
    assert (np.quantile(away, 0.95, axis=1) < 0.25).all(), away

    # TD3 on the same data: without a penalty pi runs to the bound, where there are no data.
    args = td3_bc.Args(hidden=32, num_seeds=2, batch_size=64, num_updates=600, lr=2e-3)
    args.alpha, args.normalize = 1e6, False
    task = make_task(td3_bc, 2, 2)
    greedy = train(td3_bc, args, task, td3_bc.prepare_data(args, gap(2000, 0), task))
    with torch.no_grad():
        away = abs(greedy.act(states()).numpy() - [0.5, 0.3]).max(2)
    assert (np.median(away, axis=1) > 1).all(), away


def test_xi_leaves_the_data_by_phi():
    # Both coordinates of the reward want to move, so xi goes as far as it may.
    without, moved = (np.median(actions(phi), axis=1) for phi in (0.0, 0.2))
    np.testing.assert_allclose(moved - without, np.tile([0.2, -0.2], (2, 1)), atol=0.1)
