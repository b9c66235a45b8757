"""Tests of algorithms/td3_bc.py: its mathematics, its statistics, and answers that are known.

python -m pytest tests/test_td3_bc.py
"""

import copy

import numpy as np
import pytest
import torch

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

MEAN, STD = [1.0, -2.0, 0.0, 5.0], [0.1, 2.0, 1.0, 10.0]


def make_agent(**options) -> td3_bc.TD3BC:
    """Return two agents with small networks. Their targets are others than their networks."""
    args = td3_bc.Args(**{"num_seeds": 2, "alpha": 2.5, "hidden": 16} | options)
    agent = td3_bc.TD3BC(args, make_task(td3_bc, obs_mean=MEAN, obs_std=STD), "cpu")
    with torch.no_grad():
        for target in (agent.critic_target, agent.actor_target):
            for weight in target.parameters():
                weight += 0.1
    return agent


def batch_in_place(seed: int = 0) -> dict:
    """Return random rows around the mean of the observations."""
    batch = make_batch(seed=seed)
    for key in ("observations", "next_observations"):
        batch[key] = torch.tensor(MEAN) + torch.tensor(STD) * batch[key]
    return batch


# ---- The formulas ----


def closed_forms(agent, batch: dict, noise: np.ndarray, n: int) -> dict:
    """Return what agent n's statistics must be."""
    part = {key: column[n].double().numpy() for key, column in batch.items()}
    s, s2 = ((part[key] - MEAN) / STD for key in ("observations", "next_observations"))
    smoothing = np.clip(0.2 * noise, -0.5, 0.5)
    free = np.tanh(forward(agent.actor_target, n, s2)) + smoothing
    a2 = np.clip(free, -1, 1)
    assert (abs(smoothing) == 0.5).any() and (a2 != free).any() and (a2 == free).any()
    target_nets = (agent.critic_target.q1, agent.critic_target.q2)
    q2 = [forward(net, n, np.hstack([s2, a2]))[:, 0] for net in target_nets]
    target = part["rewards"] + 0.99 * (1 - part["terminals"]) * np.minimum(*q2)
    nets = (agent.critic.q1, agent.critic.q2)
    q = np.array([forward(net, n, np.hstack([s, part["actions"]]))[:, 0] for net in nets])
    a = np.tanh(forward(agent.actor, n, s))
    pi_q = forward(agent.critic.q1, n, np.hstack([s, a]))[:, 0]
    weight = 2.5 / abs(pi_q).mean()
    clone = ((a - part["actions"]) ** 2).mean()
    return {
        "loss/critic": ((q - target) ** 2).mean(1).sum(),
        "loss/actor": clone - weight * pi_q.mean(),
        "loss/clone": clone,
        "value": q.mean(),
        "weight": weight,
    }


def test_losses_are_the_closed_forms(monkeypatch):
    # The networks stay, so that (3) sees the Q of (2).
    agent, batch = make_agent(lr=0.0, polyak=0.0), batch_in_place()
    noise = 3 * torch.randn(2, 32, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    statistics = agent.update(batch)
    for n in range(2):
        expected = closed_forms(agent, batch, noise[n].double().numpy(), n)
        assert statistics.keys() == expected.keys()
        for name, number in expected.items():
            assert statistics[name][n].item() == pytest.approx(number, rel=2e-5), name


def test_actor_and_targets_move_on_every_second_update_only():
    agent = make_agent(polyak=0.1)
    first, second = agent.phases[0].updates
    names = ("critic", "actor", "critic_target", "actor_target")

    def snapshot() -> dict:
        return {name: copies_of(getattr(agent, name).parameters()) for name in names}

    def moved(old: dict, new: dict) -> set[str]:
        found = {name for name in names if not all(map(torch.equal, old[name], new[name]))}
        assert not any(
            torch.equal(a, b) for k in found for a, b in zip(old[k], new[k], strict=True)
        )
        return found

    start = snapshot()
    assert first(batch_in_place(seed=0)).keys() == {"loss/critic", "value"}
    middle = snapshot()
    second(batch_in_place(seed=1))
    end = snapshot()
    assert moved(start, middle) == {"critic"} and moved(middle, end) == set(names)
    for name in ("critic", "actor"):
        for old, new, source in zip(
            start[f"{name}_target"], end[f"{name}_target"], end[name], strict=True
        ):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * source)


def test_actions_reach_the_bounds_and_stay_inside():
    agent = make_agent()
    with torch.no_grad():
        agent.actor[-1].weight.mul_(1e4)
        actions = agent.act(batch_in_place()["observations"]).flatten(0, 1)
    assert (actions.amin(0) == -1).all() and (actions.amax(0) == 1).all()


# ---- Known answers ----


def gradients_of_cloning(agent, actor, batch: dict) -> tuple:
    """Return the gradients of the plain mean squared error."""
    error = (actor(agent.standardize(batch["observations"])).tanh() - batch["actions"]) ** 2
    return torch.autograd.grad(error.mean((1, 2)).sum(), list(actor.parameters()))


@pytest.mark.parametrize("alpha", [0.0, 1e-9])
def test_with_alpha_towards_zero_the_actor_clones(alpha):
    agent = make_agent(alpha=alpha)
    actor = copy.deepcopy(agent.actor)
    adam = torch.optim.Adam(actor.parameters(), lr=agent.args.lr)
    for step in range(30):
        batch = batch_in_place(seed=step)
        grads = gradients_of_cloning(agent, actor, batch)
        for parameter, gradient in zip(actor.parameters(), grads, strict=True):
            parameter.grad = gradient
        adam.step()
        agent.update(batch)
    for mine, plain in zip(agent.actor.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5)


def test_with_alpha_of_the_paper_the_actor_does_not_clone():
    agent, batch = keep_gradients(make_agent()), batch_in_place()
    plain = gradients_of_cloning(agent, agent.actor, batch)
    agent.update(batch)
    for mine, gradient in zip(agent.actor.parameters(), plain, strict=True):
        assert (mine.grad - gradient).norm() > 0.1 * gradient.norm()


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_on_a_bandit_the_actor_balances_as_computed_by_hand(alpha):
    """Actions lie around 0, the reward is 2 + a, and there is no next state, so Q = 2 + a.

    (3) is stationary where alpha / (2 + pi) = 2 pi, as the mean recorded action is 0.
    """
    size = 4000
    a = np.random.default_rng(0).uniform(-0.5, 0.5, size)
    a -= a.mean()
    columns = {"observations": np.full((size, 1), 7), "actions": a[:, None], "rewards": 2 + a}
    args = td3_bc.Args(
        num_seeds=2, alpha=alpha, normalize=True, hidden=32, lr=3e-3, num_updates=700
    )
    task = make_task(td3_bc, 1, 1)
    agent = train(td3_bc, args, task, td3_bc.prepare_data(args, make_data(columns), task))
    with torch.no_grad():
        actions = agent.act(torch.full((2, 1, 1), 7.0)).flatten()
    np.testing.assert_allclose(actions, (1 + alpha / 2) ** 0.5 - 1, atol=0.06)


# ---- Data and settings ----


def test_the_statistics_are_those_of_d4rls_transitions(hopper, tiny_hdf5, isolated):
    """Also where the file has the next states of timeouts, which would add rows of ours."""
    raw = hopper()
    tiny_hdf5(isolated / "data.hdf5", raw)
    args = td3_bc.Args(env="hopper-medium-v2", dataset_file="data.hdf5", normalize=True)
    data, task = td3_bc.load_dataset(args)
    assert data["next_valid"].all()
    rewards = data["rewards"].copy()
    columns = td3_bc.prepare_data(args, data, task)
    # d4rl/__init__.py, qlearning_dataset with terminate_on_end=False
    kept = [raw["observations"][i] for i in range(399) if not raw["timeouts"][i]]
    kept = np.array(kept, dtype=float)
    assert len(kept) < 390
    np.testing.assert_allclose(task.obs_mean, kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(task.obs_std, kept.std(0) + 1e-3, rtol=1e-6)
    np.testing.assert_array_equal(columns["rewards"], rewards)
    args.normalize = False
    td3_bc.prepare_data(args, data, task)
    assert task.obs_mean == [0.0] * 11 and task.obs_std == [1.0] * 11


@pytest.mark.parametrize(
    "env, normalize",
    [
        ("hopper-medium-v2", True),
        ("rebuilt/walker2d/medium-replay-v0", True),
        ("antmaze-large-play-v2", False),
        ("Pendulum-v1", True),
    ],
)
def test_only_mazes_go_without_normalisation(env, normalize):
    args = td3_bc.apply_settings(td3_bc.Args(env=env))
    assert (args.alpha, args.normalize) == (2.5, normalize)


def test_actions_without_bounds_are_refused():
    task = make_task(td3_bc, env_id="Some-v0", action_low=None, action_high=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        td3_bc.prepare_data(td3_bc.Args(normalize=True), {}, task)
