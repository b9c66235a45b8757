"""Tests of algorithms/awac.py: its mathematics, answers that are known, its online phase.

python -m pytest tests/test_awac.py
"""

import numpy as np
import pytest
import torch

import awac
from tests.helpers import (
    checkpoint_of,
    copies_of,
    forward,
    gaussian,
    make_batch,
    make_data,
    make_task,
)

DEEP = (1, 1, 1, 1)  # no hidden unit of up to four layers is left out


def make_args(weights: str = "exp", **options) -> awac.Args:
    """Return small arguments with the published settings of a rule."""
    settings = {"num_seeds": 2, "hidden": 16, "num_updates": 100, "env": "hopper-medium-v2"}
    return awac.apply_settings(awac.Args(weights=weights, **settings | options))


def make_agent(weights: str = "exp", **options) -> awac.AWAC:
    """Return two agents with small networks. Q' is another than Q."""
    agent = awac.AWAC(make_args(weights, **options), make_task(awac), "cpu")
    with torch.no_grad():
        for weight in agent.critic_target.parameters():
            weight += 0.1
    return agent


# ---- The formulas ----


@pytest.mark.parametrize("rule", ["exp", "softmax"])
def test_losses_are_the_closed_forms(rule, monkeypatch):
    agent = make_agent(rule, lr=0.0, polyak=0.0, lambd=0.004, weight_decay=0.3)
    agent.policy.log_std.data += torch.tensor([0.3, -0.5])
    batch = make_batch()
    draw = torch.Generator().manual_seed(0)
    noises = [torch.randn(2, 32, 2, generator=draw) for _ in range(2)]  # at s', then at s
    queue = list(noises)
    monkeypatch.setattr(torch, "randn_like", lambda like: queue.pop(0))
    statistics = {k: v.detach().numpy() for k, v in agent.update(batch).items()}
    log_pi = gaussian(agent.policy, batch["observations"], batch["actions"])
    part = {key: column.double().numpy() for key, column in batch.items()}
    with torch.no_grad():
        std = agent.policy(batch["observations"])[1].double().numpy()
    cut = 0
    for n in range(2):
        s, a, s2 = (part[key][n] for key in ("observations", "actions", "next_observations"))

        def q_of(critic, n, obs, action):
            sa = np.hstack([obs, action])
            return forward(critic.net, [2 * n, 2 * n + 1], sa, DEEP)[..., 0]

        def sample(n, obs, noise):
            mean = forward(agent.policy.net, n, obs, DEEP)
            mean = np.tanh(mean) if rule == "softmax" else mean
            return np.clip(mean + std[n] * noise[n].double().numpy(), -1, 1)

        next_q = q_of(agent.critic_target, n, s2, sample(n, s2, noises[0])).min(0)
        target = part["rewards"][n] + 0.99 * (1 - part["terminals"][n]) * next_q
        q = q_of(agent.critic, n, s, a)
        v = q_of(agent.critic, n, s, sample(n, s, noises[1])).min(0)
        exp = np.exp((q.min(0) - v) / 0.004)
        cut += (exp > 100).sum()
        weight = 32 * exp / exp.sum() if rule == "softmax" else np.minimum(exp, 100)
        squares = sum((p[n].double() ** 2).sum().item() for p in agent.policy.parameters())
        expected = {
            "loss/critic": ((q - target) ** 2).mean(1).sum(),
            "loss/policy": -(weight * log_pi[n]).mean() + 0.15 * squares,
            "value": q.mean(),
            "weight": weight.mean(),
            "largest_weight": weight.max(),
        }
        assert expected.keys() == statistics.keys()
        for name, number in expected.items():
            assert statistics[name][n] == pytest.approx(number, rel=2e-4), name
    assert cut > 2


def test_the_target_follows_q_slowly():
    agent = make_agent(polyak=0.1)
    before = copies_of(agent.critic_target.parameters())
    agent.update(make_batch())
    parameters = zip(agent.critic_target.parameters(), agent.critic.parameters(), strict=True)
    for old, (new, q) in zip(before, parameters, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * q)


@pytest.mark.parametrize("terminal", [0.0, 1.0])
def test_the_target_ends_at_terminals_only(terminal):
    batch = make_batch()
    batch["terminals"].fill_(terminal)
    losses = []
    for shift in (0.0, 1.0):
        torch.manual_seed(0)
        agent = make_agent()
        with torch.no_grad():
            agent.critic_target.net[-1].bias += shift
        losses.append(agent.update(batch)["loss/critic"])
    assert torch.equal(*losses) == bool(terminal)


@pytest.mark.parametrize("rule, std", [("exp", [2.0, -20.0]), ("softmax", [-0.0146, -5.9990])])
def test_it_acts_by_the_mean_and_explores_around_it(rule, std):
    agent = make_agent(rule)
    agent.obs_mean.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0]))
    agent.obs_std.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    with torch.no_grad():
        # Beyond both ends of exp's clamp, near both ends of softmax's.
        agent.policy.log_std[:] = torch.tensor([6.02, -30.0 if rule == "exp" else -8.7])
        obs = torch.randn(2, 5, 4)
        standard = ((obs - agent.obs_mean) / agent.obs_std).numpy()
        mean = np.stack([forward(agent.policy.net, n, standard[n], DEEP) for n in (0, 1)])
        mean = torch.tensor(np.tanh(mean) if rule == "softmax" else mean).float()
        torch.testing.assert_close(agent.act(obs), mean)
        torch.manual_seed(1)
        explored = agent.explore(obs)
        torch.manual_seed(1)
        expected = mean + torch.tensor(std).exp() * torch.randn(2, 5, 2)
        torch.testing.assert_close(explored, expected.clamp(-1, 1), rtol=1e-3, atol=1e-4)
        assert (explored.abs() == 1).any()


# ---- Known answers ----

B_MEAN, B_STD = -0.1, 0.25  # of the behaviour policy on a bandit with the reward -C (a - GOAL)^2
GOAL, C = 0.3, 4.0


def bandit(rows: int = 20_000) -> dict:
    """Return data of one state, in which every step ends the task."""
    a = B_MEAN + B_STD * np.random.default_rng(0).standard_normal(rows)
    a = a[abs(a) < 1]
    columns = {"observations": np.ones((len(a), 1)), "actions": a[:, None]}
    return make_data(columns | {"rewards": -C * (a - GOAL) ** 2})


def optimum(lambd: float) -> tuple[float, float]:
    """Return mean and std of pi_b exp(A / lambda) / Z, a product of two Gaussians."""
    precision = B_STD**-2 + 2 * C / lambd
    mean = (B_MEAN * B_STD**-2 + GOAL * 2 * C / lambd) / precision
    return mean, precision**-0.5


def solved(rule: str, lambd: float) -> np.ndarray:
    """Return mean and std of a policy that AWAC has found, averaged over its last updates."""
    options = {"env": "no-env-v0", "num_seeds": 1, "hidden": 16, "batch_size": 128, "lr": 1e-2}
    options |= {"policy_layers": 1, "critic_layers": 2, "weight_decay": 0.0, "normalize": False}
    args = make_args(rule, **options | {"lambd": lambd})
    task = make_task(awac, 1, 1)
    columns = awac.prepare_data(args, bandit(), task)
    torch.manual_seed(0)
    agent = awac.AWAC(args, task, "cpu")
    # pi begins with a deviation of 0.25, as pi_b has: (6 sigmoid(1.2) - 6) is about log(0.25).
    agent.policy.log_std.data.fill_(1.2 if rule == "softmax" else np.log(B_STD))
    buffer = awac.ReplayBuffer(columns, args, torch.device("cpu"))
    found = []
    for step in range(450):
        if step == 300:
            for optimizer in agent.optimizers.values():
                optimizer.lr.fill_(1e-3)
        agent.update(buffer.sample())
        with torch.no_grad():
            mean, std = agent.policy(torch.ones(1, 1, 1))
        found.append([mean.item(), std.item()])
    return np.mean(found[350:], 0)


@pytest.mark.parametrize("rule", ["exp", "softmax"])
@pytest.mark.parametrize("lambd", [0.3, 2.0])
def test_on_a_bandit_pi_is_the_closed_form(rule, lambd):
    """(4) is a Gaussian here, so that (5) can reach it: its mean and its deviation are known."""
    np.testing.assert_allclose(solved(rule, lambd), optimum(lambd), rtol=0.05, atol=0.012)


def test_the_closed_form_has_the_moments_of_the_weighted_data():
    """Check the yardstick by other means."""
    data = bandit(400_000)
    a, weight = data["actions"][:, 0].astype(float), np.exp(data["rewards"].astype(float) / 0.3)
    mean = (weight * a).sum() / weight.sum()
    std = np.sqrt((weight * (a - mean) ** 2).sum() / weight.sum())
    np.testing.assert_allclose([mean, std], optimum(0.3), rtol=0.02)
    assert optimum(1e9) == pytest.approx((B_MEAN, B_STD))


@pytest.mark.parametrize("rule", ["exp", "softmax"])
def test_a_large_lambda_clones_the_data(rule):
    """The policy's weights are those that the likelihood alone gives."""
    torch.manual_seed(0)
    agent = make_agent(rule, lambd=1e9, weight_decay=0.0)
    clone = awac.AWACPolicy(2, [4, *[16] * agent.args.policy_layers, 2], rule == "softmax")
    clone.load_state_dict(agent.policy.state_dict())
    optimizer = awac.Adam(clone.parameters(), agent.args.lr)
    for seed in range(20):
        batch = make_batch(seed=seed)
        agent.update(batch)
        log_prob = clone.log_prob(batch["observations"], batch["actions"])
        awac.minimize(optimizer, -log_prob.mean(1))
    for ours, theirs in zip(agent.policy.parameters(), clone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# ---- What happens to the data ----


@pytest.mark.parametrize("rule", ["exp", "softmax"])
@pytest.mark.parametrize("name, shift", [("hopper-medium-v2", 0), ("antmaze-umaze-v2", -1)])
def test_observations_are_standardised_by_exp_and_rewards_of_mazes_lowered(rule, name, shift):
    obs = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 4.0], [0.0, 9.0]])
    columns = {"observations": obs, "actions": obs / 10, "rewards": np.array([0.0, 1, 0, 1])}
    columns |= {"next_valid": np.array([1, 1, 1, 0]), "terminals": np.zeros(4)}
    data = make_data(columns, [False, False, False, True])
    task = make_task(awac, 2, 2, name=name)
    found = awac.prepare_data(make_args(rule), data, task)
    np.testing.assert_array_equal(found["rewards"], np.array([0, 1, 0]) + shift)
    assert task.reward_shift == shift and task.reward_scale == 1
    if rule == "exp":
        np.testing.assert_allclose(task.obs_mean, obs[:3].mean(0))
        np.testing.assert_allclose(task.obs_std, obs[:3].std(0) + 1e-3)
    else:
        assert task.obs_mean == [0, 0] and task.obs_std == [1, 1]


@pytest.mark.parametrize(
    "name, weights, expected",
    [
        ("hopper-medium-replay-v2", None, ("exp", 0.3333, 3, 3, False, 0.0, True)),
        ("rebuilt/walker2d/medium-v0", None, ("exp", 0.3333, 3, 3, False, 0.0, True)),
        ("antmaze-large-diverse-v2", "exp", ("exp", 0.1, 3, 3, False, 0.0, True)),
        ("D4RL/pen/human-v2", None, ("exp", 0.1, 3, 3, False, 0.0, True)),
        ("halfcheetah-medium-v2", "softmax", ("softmax", 2.0, 4, 2, True, 1e-4, False)),
    ],
)
def test_settings_are_corls_and_rlkits(name, weights, expected):
    args = awac.apply_settings(awac.Args(env=name, weights=weights))
    found = (args.weights, args.lambd, args.policy_layers, args.critic_layers)
    assert (*found, args.bounded, args.weight_decay, args.normalize) == expected
    assert awac.apply_settings(awac.Args(env=name, weights=weights, lambd=0.8)).lambd == 0.8


def test_actions_without_bounds_are_refused():
    task = make_task(awac, env_id="Some-v0", action_low=None, action_high=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        awac.prepare_data(make_args(), {}, task)


# ---- The online phase ----


def test_online_steps_are_samples_of_the_policy(main, isolated, tiny_hdf5, pendulum):
    """The loop itself is IQL's, and tested there."""
    tiny_hdf5(isolated / "data.hdf5", pendulum())
    options = ["--env=Pendulum-v1", "--dataset-file=data.hdf5", "--seed=3", "--num-seeds=2"]
    options += ["--num-updates=12", "--online-steps=60", "--eval-every=20", "--run-dir=run"]
    end = main(*options, script="awac")
    assert end.code == 0 and end.err == "", end.err
    checkpoint = checkpoint_of("run")
    assert checkpoint["finished"] and checkpoint["final"]["phase"] == "online"
    steps = checkpoint["extra_state"]
    assert steps["actions"].shape == (2, 60, 1) and steps["actions"].std() > 0.3
    assert steps["actions"].abs().max() == 1  # the std is about 1
    assert (steps["actions"][0] != steps["actions"][1]).float().mean() > 0.5
    counts = {name: state[1].item() for name, state in checkpoint["optimizers"].items()}
    assert counts == {"critic": 72, "policy": 72}
