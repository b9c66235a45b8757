"""Tests of algorithms/abm.py: the dual of its bound, and bandits whose answers are known.

python -m pytest tests/test_abm.py
"""

import functools

import numpy as np
import pytest
import torch

import abm
from tests.helpers import copies_of, make_batch, make_data, make_task, train


def make_agent(**options) -> abm.ABM:
    """Return two agents with small networks and targets of their own."""
    torch.manual_seed(0)
    settings = {"hidden": 16, "num_seeds": 2, "num_samples": 5}
    agent = abm.ABM(abm.Args(**settings | options), make_task(abm), "cpu")
    with torch.no_grad():
        for weight in agent.critic_target.parameters():
            weight += 0.1
    return agent


# ---- The temperature ----


def kl_of(q: np.ndarray, eta: float) -> float:
    """Return the mean KL of exp(q / eta), normalised, from the uniform distribution: q (B, M)."""
    share = np.exp((q - q.max(1, keepdims=True)) / eta)
    share /= share.sum(1, keepdims=True)
    return np.mean(np.sum(share * np.log(np.maximum(share, 1e-300) * q.shape[1]), axis=1))


def dual(q: np.ndarray, eta: float, bound: float) -> float:
    """Return what the temperature minimises: q (B, M)."""
    most = q.max(1)
    return eta * bound + np.mean(most + eta * np.log(np.exp((q.T - most) / eta).mean(0)))


@pytest.mark.parametrize("bound", [0.05, 0.5])
def test_eta_minimises_the_dual_and_uses_up_the_bound(bound):
    agent = make_agent(bound=bound)
    q = torch.tensor([0.3, 5000.0]).view(2, 1, 1) * torch.randn(2, 64, 20)
    found = agent.temperature(q)
    _, kl = abm.shares(q, found)
    for n, eta in enumerate(found.tolist()):
        values = q[n].double().numpy()
        assert kl[n].item() == pytest.approx(bound, rel=1e-3)
        assert kl_of(values, eta) == pytest.approx(bound, rel=1e-3)
        here = dual(values, eta, bound)
        assert here < dual(values, 1.02 * eta, bound) and here < dual(values, eta / 1.02, bound)


def test_bounds_that_cannot_be_met_give_the_prior_or_a_single_draw():
    """The KL of 20 draws lies between 0 and log(20)."""
    q = torch.randn(2, 64, 20)
    for bound, expected in ((0.0, 1 / 20), (5.0, 1.0)):
        agent = make_agent(bound=bound)
        share, kl = abm.shares(q, agent.temperature(q))
        best = share.amax(2)
        torch.testing.assert_close(best, torch.full_like(best, expected), rtol=1e-2, atol=0)
        torch.testing.assert_close(kl, torch.full((2,), np.log(20 * expected)), rtol=0, atol=1e-4)


# ---- Bandits: one action per episode ----

DEVIATION = 0.2


def linear(count: int, seed: int) -> dict:
    """Return actions of a Gaussian around 0.1. The reward is the action."""
    rng = np.random.default_rng(seed)
    a = 0.1 + DEVIATION * rng.standard_normal((count, 1))
    s = rng.uniform(-1, 1, (count, 2))
    return make_data({"observations": s, "actions": a, "rewards": 2 * a[:, 0]})


def two_policies(count: int, seed: int) -> dict:
    """Return actions near -0.5, which earn 0, and a quarter as many near 0.5, which earn 1.

    Rewards are noisy.
    """
    rng = np.random.default_rng(seed)
    good = rng.random(count) < 0.2
    a = np.where(good, 0.5, -0.5) + 0.05 * rng.standard_normal(count)
    s = rng.uniform(-1, 1, (count, 2))
    rewards = good + 0.2 * rng.standard_normal(count)
    return make_data({"observations": s, "actions": a[:, None], "rewards": rewards})


@functools.cache
def trained(bandit, num_updates: int, **options) -> tuple:
    """Return means and deviations of prior and policy, (N, B) each, after training on a bandit."""
    args = abm.Args(
        hidden=32,
        num_seeds=2,
        batch_size=64,
        num_samples=10,
        num_updates=num_updates,
        lr=5e-3,
        polyak=0.05,
        **options,
    )
    task = make_task(abm, 2, 1)
    agent = train(abm, args, task, abm.prepare_data(args, bandit(4000, 0), task))
    s = torch.from_numpy(bandit(300, 1)["observations"]).expand(2, -1, -1)
    with torch.no_grad():
        parts = [*agent.prior(s), *agent.policy(s)]
        assert torch.equal(agent.act(s), parts[2])
    return tuple(part.squeeze(-1).numpy() for part in parts)


def test_the_behaviour_model_is_that_of_the_data():
    mean, std, _, _ = trained(linear, 600, prior="bm", bound=0.0)
    assert mean.mean(1) == pytest.approx(0.1, abs=0.05)
    assert std.mean(1) == pytest.approx(DEVIATION, abs=0.02)


def test_a_bound_of_0_returns_the_prior():
    mean, std, policy_mean, policy_std = trained(linear, 600, prior="bm", bound=0.0)
    moved = (policy_mean - mean).mean(1) / std.mean(1)
    assert moved == pytest.approx(0, abs=0.25)
    assert policy_std.mean(1) == pytest.approx(std.mean(1), rel=0.15)


def test_the_policy_leaves_the_prior_as_far_as_the_bound_allows():
    """Q is linear in a. So q is the prior, moved by d: KL = (d / std)^2 / 2."""
    mean, std, policy_mean, policy_std = trained(linear, 600, prior="bm", bound=0.2)
    moved = (policy_mean - mean).mean(1) / std.mean(1)
    assert moved == pytest.approx(np.sqrt(2 * 0.2), rel=0.3)
    assert policy_std.mean(1) == pytest.approx(std.mean(1), rel=0.15)


def test_the_advantage_weighted_prior_keeps_doing_what_worked():
    mean, std, policy_mean, _ = trained(two_policies, 600, prior="abm", bound=0.0)
    assert mean.mean(1) == pytest.approx(0.5, abs=0.1) and (std.mean(1) < 0.15).all()
    assert policy_mean.mean(1) == pytest.approx(0.5, abs=0.1)
    # A model of all behaviour covers both, and is mostly what failed.
    mean, std, _, _ = trained(two_policies, 600, prior="bm", bound=0.0)
    assert mean.mean(1) == pytest.approx(-0.3, abs=0.1) and (std.mean(1) > 0.3).all()


# ---- What an update touches ----


def test_the_target_follows():
    agent = make_agent(polyak=0.1)
    before = copies_of(agent.critic_target.parameters())
    agent.update(make_batch())
    for old, new, source in zip(
        before, agent.critic_target.parameters(), agent.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source)


def test_q_judges_draws_as_the_environment_clips_them():
    agent = make_agent()
    s = make_batch()["observations"]
    with torch.no_grad():
        agent.prior.net[-1].bias[..., 2:] += 3  # deviations that reach beyond the bounds
        draws, q = agent.draw(agent.prior, s)
        clipped = agent.critic_target(s.repeat_interleave(5, dim=1), draws.clamp(-1, 1))
    assert (abs(draws) > 1).float().mean() > 0.3
    assert draws.shape == (2, 160, 2) and q.shape == (2, 32, 5)
    assert torch.equal(q.flatten(1), clipped)


# ---- Data ----


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": 0}, "--num-samples must be at least 1"),
        ({"bound": -0.1}, "--bound must be at least 0"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(SystemExit, match=message):
        abm.prepare_data(abm.Args(**options), {}, make_task(abm))


def test_actions_without_bounds_are_refused():
    with pytest.raises(SystemExit, match="A-v0: .*bounds"):
        abm.prepare_data(abm.Args(), {}, make_task(abm, action_low=None))


def test_rows_without_a_next_state_are_left_out():
    columns = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": range(4)}
    columns |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 0, 1]}
    found = abm.prepare_data(abm.Args(), make_data(columns), make_task(abm))
    assert found["rewards"].tolist() == [0, 1, 3]
