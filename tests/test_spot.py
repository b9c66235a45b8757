"""Tests of algorithms/spot.py: its mathematics, a problem whose answer is known, its phases.

python -m pytest tests/test_spot.py
"""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import spot
from tests.helpers import (
    checkpoint_of,
    copies_of,
    curves,
    forward,
    make_batch,
    make_data,
    make_task,
    train,
)

SCALE = {"obs_mean": [0.5] * 4, "obs_std": [2.0] * 4}


def make_agent(obs_dim: int = 4, act_dim: int = 2, **options) -> spot.SPOT:
    """Return two agents with small networks, targets of their own, and a low deviation of z."""
    settings = {"lambd": 0.7, "actor_lr": 1e-3, "dropout": 0.2, "online_discount": 0.9}
    settings["lambd_end"] = 0.2
    settings |= {"hidden": 16, "vae_hidden": 12, "num_updates": 100, "num_seeds": 2}
    task = make_task(spot, obs_dim, act_dim, **(SCALE if obs_dim == 4 else {}))
    agent = spot.SPOT(spot.Args(**settings | options), task, "cpu")
    with torch.no_grad():
        for weight in [*agent.critic_target.parameters(), *agent.actor_target.parameters()]:
            weight += 0.1
        agent.vae.encoder[-1].bias[..., -1] = -7
    return agent


# ---- The formulas ----


@contextlib.contextmanager
def noted_draws():
    """Note the noise and the dropout that an update draws."""
    draws = {"noise": [], "masks": []}
    randn_like, dropout = torch.randn_like, torch.nn.functional.dropout

    def noted_noise(like):
        draws["noise"].append(3 * randn_like(like))  # far enough for both clips
        return draws["noise"][-1]

    def noted_dropout(x, p):
        draws["masks"].append(dropout(torch.ones_like(x), p))
        return x * draws["masks"][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", noted_noise)
        patch.setattr(torch.nn.functional, "dropout", noted_dropout)
        yield draws


def density_loss(agent, n: int, s, a, noise, estimate: str) -> np.ndarray:
    """Return -log p (B,) by the textbook's formulas for noise (B, L, latent), sample by sample."""

    def log_normal(x, mean, std):
        log_p = -(((x - mean) / std) ** 2) / 2 - np.log(std) - math.log(2 * math.pi) / 2
        return log_p.sum(-1)

    encoded = forward(agent.vae.encoder, n, np.concatenate([s, a], 1))
    mean, log_std = np.split(encoded, 2, 1)
    std = np.exp(log_std.clip(-4, 15))
    errors, ratios = [], []
    for i in range(noise.shape[1]):
        z = mean + std * noise[:, i]
        decoded = np.tanh(forward(agent.vae.decoder, n, np.concatenate([s, z], 1)))
        errors.append(((decoded - a) ** 2).mean(1))
        likelihood = log_normal(a, decoded, math.sqrt(1 / 8))
        prior = log_normal(z, 0, np.ones_like(z))
        ratios.append(likelihood + prior - log_normal(z, mean, std))
    if estimate == "iwae":
        return -np.log(np.mean(np.exp(ratios), 0))
    kl = (mean**2 + std**2 - 1) / 2 - np.log(std)
    return np.mean(errors, 0) + 0.5 * kl.mean(1)


@pytest.mark.parametrize(
    "estimate, num_samples, dropout",
    [("elbo", 1, 0.2), ("elbo", 3, 0.0), ("iwae", 1, 0.0), ("iwae", 3, 0.2)],
)
def test_losses_are_the_closed_forms(estimate, num_samples, dropout):
    options = {"estimate": estimate, "num_samples": num_samples, "dropout": dropout}
    # The networks stay as they are, so that each loss sees the same ones.
    agent = make_agent(lr=0.0, vae_lr=0.0, polyak=0.0, actor_lr=0.0, **options)
    batch = make_batch()
    with noted_draws() as vae_draws:
        statistics = agent.update_vae(batch)
    with noted_draws() as draws:
        statistics |= agent.update(batch)
    smoothing, z_noise = (noise.double().numpy() for noise in draws["noise"])
    masks = [mask.double().numpy() for mask in draws["masks"]]
    assert len(masks) == (4 if dropout > 0 else 0)
    for n in range(2):
        part = {key: column[n].double().numpy() for key, column in batch.items()}
        s, s2 = ((part[key] - 0.5) / 2 for key in ("observations", "next_observations"))
        a = part["actions"]
        of_target, of_actor = (1, 1), (1, 1)
        if dropout > 0:
            of_target, of_actor = [m[n] for m in masks[:2]], [m[n] for m in masks[2:]]
        noise = (0.2 * smoothing[n]).clip(-0.5, 0.5)
        a2 = np.tanh(forward(agent.actor_target.net, n, s2, of_target)) + noise
        assert (abs(noise) == 0.5).any() and (abs(a2) > 1).any()
        sa2 = np.concatenate([s2, a2.clip(-1, 1)], 1)
        targets = (agent.critic_target.q1, agent.critic_target.q2)
        next_q = np.minimum(*(forward(net, n, sa2)[:, 0] for net in targets))
        target = part["rewards"] + 0.99 * (1 - part["terminals"]) * next_q
        sa = np.concatenate([s, a], 1)
        q = [forward(net, n, sa)[:, 0] for net in (agent.critic.q1, agent.critic.q2)]
        pi = np.tanh(forward(agent.actor.net, n, s, of_actor))
        pi_q = forward(agent.critic.q1, n, np.concatenate([s, pi], 1))[:, 0]
        z = z_noise[n].reshape(32, num_samples, 4)
        support = density_loss(agent, n, s, pi, z, estimate).mean()
        z = vae_draws["noise"][0][n].double().numpy()[:, None]
        expected = {
            "loss/critic": sum(((x - target) ** 2).mean() for x in q),
            "loss/actor": 0.7 * support - pi_q.mean() / abs(pi_q).mean(),
            "loss/vae": density_loss(agent, n, s, a, z, "elbo").mean(),
            "penalty": support,
            "value": np.mean(q),
            "lambda": 0.7,
        }
        assert expected.keys() == statistics.keys()
        for name, number in expected.items():
            assert statistics[name][n].item() == pytest.approx(number, rel=2e-5), name


@pytest.mark.parametrize("outside, at", [(-9.0, -4.0), (18.0, 15.0)])
def test_the_deviation_of_z_is_clamped(outside, at):
    losses = []
    for log_std in (outside, at):
        torch.manual_seed(0)
        agent = make_agent()
        agent.vae.encoder[-1].weight.data[..., -1] = 0
        agent.vae.encoder[-1].bias.data[..., -1] = log_std
        torch.manual_seed(1)
        losses.append(agent.update_vae(make_batch())["loss/vae"])
    assert torch.isfinite(losses[0]).all() and torch.equal(*losses)


def test_the_importance_weighted_density_integrates_to_one():
    torch.manual_seed(0)
    agent = make_agent(obs_dim=2, act_dim=1)
    agent.vae.encoder[-1].bias.data[..., -1] = 0  # a q(z|s,a) that covers p(z), as (6) wants it
    a = torch.linspace(-2.5, 2.5, 51).expand(2, -1).unsqueeze(-1)
    with torch.no_grad():
        density = (-agent.neg_log_density(torch.zeros(2, 51, 2), a, "iwae", 1000)).exp()
    np.testing.assert_allclose(0.1 * density.sum(1).numpy(), 1, atol=0.05)


def test_the_elbo_is_the_mean_of_one_sample_estimates_but_for_factor_and_constant():
    """E_q of (6) with L = 1 is (5); the VAE's loss is -(5) / 8, less the constant."""
    torch.manual_seed(0)
    agent = make_agent()
    s, a = (
        torch.zeros(2, 3, 4),
        torch.tensor([[0.1, 0.9], [0.5, 0.5], [-1.2, -0.3]]).expand(2, 3, 2),
    )
    many = 20_000
    with torch.no_grad():
        elbo = agent.neg_log_density(s, a, "elbo", many)
        rows = [x.repeat_interleave(many, 1) for x in (s, a)]
        each = agent.neg_log_density(*rows, "iwae", 1).unflatten(1, (3, -1))
    expected = 2 * 2 / 0.5 * elbo + 2 * math.log(math.sqrt(2 * math.pi / 8))
    torch.testing.assert_close(each.mean(2), expected, rtol=0, atol=0.05)


def test_dropout_is_for_training_only():
    agent, obs = make_agent(dropout=0.5), torch.randn(2, 5, 4)
    expected = [np.tanh(forward(agent.actor.net, n, (obs[n].numpy() - 0.5) / 2)) for n in range(2)]
    with torch.no_grad():
        np.testing.assert_allclose(agent.act(obs), expected, rtol=1e-4)
        torch.manual_seed(1)
        explored = agent.explore(obs)
        torch.manual_seed(1)
        torch.testing.assert_close(explored, agent.act(obs) + 0.1 * torch.randn(2, 5, 2))
        assert not torch.equal(agent.actor(obs, 0.5), agent.actor(obs, 0.5))


def test_targets_and_actor_move_on_every_second_update():
    agent = make_agent(polyak=0.1)
    pairs = [(agent.critic_target, agent.critic), (agent.actor_target, agent.actor)]
    first = [copies_of(target.parameters()) for target, _ in pairs]
    actor = copies_of(agent.actor.parameters())
    only_critic, both = agent.phases[1].updates
    assert only_critic(make_batch()).keys() == {"loss/critic", "value"}
    for old, (target, _) in zip(first, pairs, strict=True):
        assert all(map(torch.equal, old, target.parameters()))
    assert all(map(torch.equal, actor, agent.actor.parameters()))
    both(make_batch(seed=1))
    for old, (target, source) in zip(first, pairs, strict=True):
        for a, b, c in zip(old, target.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(b, 0.9 * a + 0.1 * c)
            assert not torch.equal(a, b)


@pytest.mark.parametrize("end", [0.2, 0.5])
def test_online_lambda_falls_to_its_end_and_gamma_changes(end):
    online = {"online_steps": 10, "online_discount": 0.0, "lambd_end": end}
    agent = make_agent(num_updates=4, lr=0.0, **online)
    lambdas, sees_next = [], []
    for step in range(1, 15):
        batch = make_batch(seed=step)
        changed = batch | {"next_observations": batch["next_observations"] + 1}
        losses = []
        for given in (batch, changed):
            torch.manual_seed(0)
            statistics = agent.update(given)
            losses.append(statistics["loss/critic"])
            agent.optimizers["critic"].step_count -= 1  # the same update again
        agent.optimizers["critic"].step_count += 1
        lambdas.append(statistics["lambda"].tolist())
        sees_next.append(not torch.equal(*losses))
    expected = [0.7] * 4 + [0.7 * max(end, 1 - k / 10) for k in range(1, 11)]
    np.testing.assert_allclose(lambdas, np.array([expected] * 2).T, rtol=1e-6)
    assert sees_next == [True] * 4 + [False] * 10


# ---- Data and settings ----


@pytest.mark.parametrize("name", ["hopper-medium-v2", "rebuilt/antmaze/large-play-v0"])
@pytest.mark.parametrize("normalize", [True, False])
def test_rewards_and_statistics_of_observations(name, normalize):
    obs = np.random.default_rng(0).random((6, 2))
    columns = {"observations": obs, "actions": obs, "rewards": [0, 1] * 3}
    columns["terminals"] = [0, 1, 0, 0, 0, 0]
    data = make_data(columns, episode_end=[0, 1, 0, 1, 0, 0])
    task = make_task(spot, 2, 2, name=name)
    found = spot.prepare_data(spot.Args(normalize=normalize, dropout=0.0), data, task)
    shift = -1 if "antmaze" in name else 0
    np.testing.assert_array_equal(found["rewards"], [shift, 1 + shift] * 3)
    assert found["rewards"].dtype == np.float32
    assert (task.reward_scale, task.reward_shift) == (1, shift)
    used = np.float32(obs[[0, 1, 2, 4]]).astype(float)
    mean, std = (used.mean(0), used.std(0) + 1e-3) if normalize else ([0, 0], [1, 1])
    np.testing.assert_allclose((task.obs_mean, task.obs_std), (mean, std), rtol=1e-6)


def test_what_cannot_work_is_refused():
    with pytest.raises(SystemExit, match="--dropout must be"):
        spot.prepare_data(spot.Args(dropout=1.0), {}, make_task(spot))
    with pytest.raises(SystemExit, match="A-v0: .*bounds"):
        spot.prepare_data(spot.Args(dropout=0.1), {}, make_task(spot, action_low=None))


MUJOCO, ANTMAZE = (3e-4, 0.1, True, 0.99, 0.2), (1e-4, 0.0, False, 0.99, 0.2)


@pytest.mark.parametrize(
    "env, lambd, rest",
    [
        ("hopper-medium-v2", 0.1, MUJOCO),
        ("rebuilt/hopper/medium-replay-v0", 0.1, MUJOCO),
        ("hopper-medium-expert-v2", 0.2, MUJOCO),
        ("halfcheetah-medium-v2", 0.05, MUJOCO),
        ("halfcheetah-medium-expert-v2", 1.0, MUJOCO),
        ("walker2d-medium-replay-v2", 0.2, MUJOCO),
        ("walker2d-medium-expert-v2", 0.5, MUJOCO),
        ("antmaze-umaze-diverse-v2", 0.25, ANTMAZE),
        ("rebuilt/antmaze/medium-play-v0", 0.05, ANTMAZE),
        ("antmaze-medium-diverse-v2", 0.025, ANTMAZE),
        ("antmaze-large-play-v2", 0.025, (*ANTMAZE[:3], 0.995, 0.2)),
        ("D4RL/pen/human-v2", 1.0, (*ANTMAZE[:4], 0.5)),
        ("door-cloned-v1", 1.0, (*ANTMAZE[:4], 0.5)),
        ("maze2d-umaze-v1", 1.0, MUJOCO),
    ],
)
def test_a_dataset_gets_its_published_settings(env, lambd, rest):
    args = spot.apply_settings(spot.Args(env=env))
    found = (args.actor_lr, args.dropout, args.normalize, args.online_discount, args.lambd_end)
    assert (args.lambd, found) == (lambd, rest)


# ---- A problem whose answer is known ----


def two_ways(count: int, seed: int) -> dict:
    """Return data in which every state has two actions: left or right, and 0.6 s in the other."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-1, 1, (count, 2))
    a = np.stack([rng.choice([-0.7, 0.7], count), 0.6 * s[:, 0]], 1)
    a += 0.05 * rng.standard_normal((count, 2))
    return make_data({"observations": s, "actions": a, "rewards": a[:, 0]})


def train_two_ways(updates: int, **options) -> spot.SPOT:
    """Train the VAE, and then the policy. The reward is the first coordinate of the action."""
    settings = {"lambd": 1.0, "actor_lr": 3e-3, "dropout": 0.1, "normalize": True, "lr": 3e-3}
    settings |= {
        "online_discount": 0.99,
        "lambd_end": 0.2,
        "num_seeds": 2,
        "vae_hidden": 64,
        "vae_lr": 2e-3,
    }
    settings |= {"hidden": 32, "batch_size": 64, "vae_updates": 600, "num_updates": updates}
    args, task = spot.Args(**settings | options), make_task(spot, 2, 2)
    return train(spot, args, task, spot.prepare_data(args, two_ways(2000, 0), task))


@pytest.fixture(scope="module")
def supported() -> spot.SPOT:
    """Return agents whose policies are held to the support of the data."""
    return train_two_ways(400, lambd=10.0)


@pytest.mark.parametrize("estimate", ["elbo", "iwae"])
def test_the_density_ranks_data_actions_above_far_ones(supported, estimate):
    data = two_ways(500, 1)
    s, a = (torch.from_numpy(data[key]).expand(2, -1, -1) for key in ("observations", "actions"))

    def minus_log_p(first, second):
        torch.manual_seed(0)
        with torch.no_grad():
            actions = torch.cat([first, second], -1)
            return supported.neg_log_density(supported.standardize(s), actions, estimate, 64)

    left, right = a[..., :1], a[..., 1:]
    recorded, between = minus_log_p(left, right), minus_log_p(0 * left, right)
    mirrored, far = minus_log_p(-left, right), minus_log_p(left, -0.9 * right.sign())
    assert ((recorded < far).float().mean(1) > 0.99).all()
    assert ((recorded < between).float().mean(1) > 0.9).all()  # a Gaussian would say the opposite
    gap = (between - recorded).mean(1)
    assert abs((recorded - mirrored).mean(1) / gap).max() < 0.5


def test_a_policy_with_support_takes_the_better_of_the_datas_actions(supported):
    """Q rises beyond the data: without support the first action runs to its bound, the other off.

    With it the first is near 0.7, not at 1, nor at -0.7, which is as frequent; the other is 0.6 s.
    """
    s, found = two_ways(200, 2)["observations"], []
    for agent in (train_two_ways(400, lambd=0.0, vae_updates=1), supported):
        with torch.no_grad():
            a = agent.act(torch.from_numpy(s).expand(2, -1, -1)).numpy()
        found.append((a[..., 0].mean(1), abs(a[..., 1] - 0.6 * s[:, 0]).mean(1)))
    (free, off), (held, near) = found
    assert (free > 0.95).all() and (off > 0.15).all(), found
    assert (abs(held - 0.75) < 0.2).all() and (near < 0.06).all(), found


# ---- The phases of a run ----


def test_a_run_trains_the_vae_then_offline_then_online(main, isolated, tiny_hdf5):
    tiny_hdf5(isolated / "data.hdf5")
    words = ["--env=hopper-medium-v2", "--dataset-file=data.hdf5", "--num-updates=13"]
    words += ["--online-steps=15", "--eval-every=10", "--run-dir=run"]
    end = main(*words, script="spot")
    assert end.code == 0 and end.err == "", end.err
    checkpoint = checkpoint_of("run")
    found = [(e["phase"], e["update"], e["episodes"]) for e in checkpoint["evaluations"]]
    assert found == [("train", 10, 2), ("train", 13, 3), ("online", 10, 2), ("online", 15, 3)]
    steps = {name: state[1].item() for name, state in checkpoint["optimizers"].items()}
    assert steps == {"vae": 20, "critic": 28, "actor": 6 + 7}  # pi in every second update
    assert checkpoint["extra_state"]["rewards"].shape == (1, 15)
    assert curves(Path("run/tensorboard/vae"))["loss/vae"] == [10, 20]
