"""Tests of algorithms/bcq.py: its mathematics, and a problem whose answer is known.

python -m pytest tests/test_bcq.py
"""

import numpy as np
import pytest
import torch

import bcq
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


def make_agent(**options) -> bcq.BCQ:
    """Return two agents with small networks and targets of their own."""
    settings = {"hidden": 16, "vae_hidden": 12, "num_seeds": 2, "num_samples": 5}
    agent = bcq.BCQ(bcq.Args(**settings | options), make_task(bcq), "cpu")
    with torch.no_grad():
        for weight in [*agent.critic_target.parameters(), *agent.perturb_target.parameters()]:
            weight += 0.1
    return agent


class NotedNoise:
    """Note what torch.randn_like draws: wide enough for every clip."""

    def __init__(self, patch):
        self.draws = []
        randn_like = torch.randn_like

        def noted(like):
            self.draws.append(2 * randn_like(like))
            return self.draws[-1]

        patch.setattr(torch, "randn_like", noted)

    def of(self, index: int, agent: int) -> np.ndarray:
        return self.draws[index][agent].double().numpy()


# ---- The formulas ----


def decoded(agent, n: int, s, z) -> np.ndarray:
    return np.tanh(forward(agent.vae.decoder, n, np.concatenate([s, z], 1)))


def moved(perturb, n: int, s, a) -> np.ndarray:
    move = perturb.phi * np.tanh(forward(perturb.net, n, np.concatenate([s, a], 1)))
    return np.clip(a + move, -1, 1)


def values(critic, n: int, s, a) -> np.ndarray:
    x = np.concatenate([s, a], 1)
    return np.stack([forward(net, n, x)[:, 0] for net in (critic.q1, critic.q2)])


def test_losses_are_the_formulas(monkeypatch):
    # With rates of 0 the formulas can be read off the networks after the update.
    agent = make_agent(phi=0.4, lambd=0.7, lr=0.0, polyak=0.0)
    batch = make_batch()
    old = [copies_of(net.parameters()) for net in (agent.vae, agent.critic, agent.perturb)]
    noise = NotedNoise(monkeypatch)
    found = agent.update(batch)
    for before, net in zip(old, (agent.vae, agent.critic, agent.perturb), strict=True):
        assert all(map(torch.equal, before, net.parameters()))
    for n in range(2):
        rows = {key: column[n].double().numpy() for key, column in batch.items()}
        s, a, s2 = rows["observations"], rows["actions"], rows["next_observations"]
        mean, log_std = np.split(forward(agent.vae.encoder, n, np.concatenate([s, a], 1)), 2, 1)
        log_std = log_std.clip(-4, 15)
        error = (decoded(agent, n, s, mean + np.exp(log_std) * noise.of(0, n)) - a) ** 2
        kl = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))
        vae = error.mean() + 0.5 * kl.mean()

        many = np.repeat(s2, 5, axis=0)
        draws = decoded(agent, n, many, noise.of(1, n).clip(-0.5, 0.5))
        q = values(agent.critic_target, n, many, moved(agent.perturb_target, n, many, draws))
        best = (0.7 * q.min(0) + 0.3 * q.max(0)).reshape(-1, 5).max(1)
        target = rows["rewards"] + 0.99 * (1 - rows["terminals"]) * best
        critic = ((values(agent.critic, n, s, a) - target) ** 2).mean(1).sum()

        draws = decoded(agent, n, s, noise.of(2, n).clip(-0.5, 0.5))
        perturb = -values(agent.critic, n, s, moved(agent.perturb, n, s, draws))[0].mean()
        for name, value in {"vae": vae, "critic": critic, "perturb": perturb}.items():
            np.testing.assert_allclose(
                found[f"loss/{name}"][n].item(), value, rtol=2e-5, err_msg=name
            )


def test_targets_follow_and_nothing_else_reaches_them():
    agent = make_agent(polyak=0.1)
    pairs = [(agent.critic_target, agent.critic), (agent.perturb_target, agent.perturb)]
    before = [copies_of(target.parameters()) for target, _ in pairs]
    agent.update(make_batch())
    for old, (target, source) in zip(before, pairs, strict=True):
        for a, b, c in zip(old, target.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(b, 0.9 * a + 0.1 * c)


def test_the_vae_learns_from_the_data_alone():
    gradients = []
    for phi in (0.0, 0.9):
        agent = keep_gradients(make_agent(phi=phi))
        for old, new in zip(agent.parameters(), make_agent().parameters(), strict=True):
            old.data = 0 * new + 0.05
        torch.manual_seed(0)
        agent.update(make_batch())
        gradients.append([parameter.grad for parameter in agent.vae.parameters()])
    assert all(map(torch.equal, *gradients))


def test_the_policy_is_the_best_of_its_draws():
    agent = make_agent(test_samples=7, phi=0.3)
    obs = make_batch()["observations"]
    torch.manual_seed(3)
    with torch.no_grad():
        action = agent.act(obs)
    torch.manual_seed(3)
    with torch.no_grad():
        s = obs.repeat_interleave(7, dim=1)
        draws = agent.perturb(s, agent.generate(s))
        q = agent.critic(s, draws)[:, 0]
    for n in range(2):
        for row in range(obs.shape[1]):
            best = q[n, 7 * row : 7 * row + 7].argmax()
            assert torch.equal(action[n, row], draws[n, 7 * row + best])


# ---- Data ----


def test_what_cannot_work_is_refused():
    with pytest.raises(SystemExit, match="--num-samples must be at least 1"):
        bcq.prepare_data(bcq.Args(num_samples=0), {}, make_task(bcq))
    with pytest.raises(SystemExit, match="--test-samples must be at least 1"):
        bcq.prepare_data(bcq.Args(test_samples=-1), {}, make_task(bcq))
    with pytest.raises(SystemExit, match="A-v0: .*bounds"):
        bcq.prepare_data(bcq.Args(), {}, make_task(bcq, action_low=None))


def test_rows_without_a_next_state_are_left_out():
    columns = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": range(4)}
    columns |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 0, 1]}
    found = bcq.prepare_data(bcq.Args(), make_data(columns), make_task(bcq))
    assert found["rewards"].tolist() == [0, 1, 3]


# ---- A bandit with a gap in its data ----


def gap(count: int, seed: int) -> dict:
    """Return actions near -0.5 and +0.5. The reward falls with the last coordinate, down to -1.

    But the last coordinate is near 0.3 in all of the data.
    """
    rng = np.random.default_rng(seed)
    a = np.stack([rng.choice([-0.5, 0.5], count), np.full(count, 0.3)], 1)
    a += 0.03 * rng.standard_normal((count, 2))
    s = rng.uniform(-1, 1, (count, 2))
    return make_data({"observations": s, "actions": a, "rewards": 1 - 2 * a[:, 1]})


def distance_to_data(a: np.ndarray) -> np.ndarray:
    """Return how far actions (..., 2) are from the two clusters."""
    return np.hypot(np.minimum(abs(a[..., 0] - 0.5), abs(a[..., 0] + 0.5)), a[..., 1] - 0.3)


@pytest.fixture(scope="module")
def trained() -> bcq.BCQ:
    args = bcq.Args(
        hidden=32, vae_hidden=64, num_seeds=2, batch_size=64, num_updates=1000, lr=2e-3, phi=0.05
    )
    task = make_task(bcq, 2, 2)
    return train(bcq, args, task, bcq.prepare_data(args, gap(2000, 0), task))


def test_the_policy_stays_in_the_support_and_a_greedy_one_does_not(trained):
    s = torch.from_numpy(gap(200, 1)["observations"]).expand(2, -1, -1)
    with torch.no_grad():
        a = trained.act(s).numpy()
    assert (np.quantile(distance_to_data(a), 0.95, axis=1) < 0.25).all()
    # The reward falls with the second coordinate, so the best draw is below the middle of the data.
    assert (a[..., 1].mean(1) < 0.3).all()

    # TD3 on the same data: without a penalty pi runs to the bound, where there are no data.
    args = td3_bc.Args(hidden=32, num_seeds=2, batch_size=64, num_updates=600, lr=2e-3)
    args.alpha, args.normalize = 1e6, False
    task = make_task(td3_bc, 2, 2)
    greedy = train(td3_bc, args, task, td3_bc.prepare_data(args, gap(2000, 0), task))
    with torch.no_grad():
        a = greedy.act(s).numpy()
    assert (np.median(distance_to_data(a), axis=1) > 1).all()


def test_draws_are_both_clusters(trained):
    s = torch.from_numpy(gap(500, 1)["observations"]).expand(2, -1, -1)
    with torch.no_grad():
        a = trained.generate(s).numpy()
    # The decoder is continuous in z, so some draws lie between the clusters.
    assert (np.median(distance_to_data(a), axis=1) < 0.25).all()
    share = (a[..., 0] > 0).mean(1)
    assert (share > 0.1).all() and (share < 0.9).all()
