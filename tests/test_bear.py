"""Tests of algorithms/bear.py: its mathematics, its settings, and a problem whose answer is known.

python -m pytest tests/test_bear.py
"""

import functools

import numpy as np
import pytest
import torch

import bear
from tests.helpers import copies_of, forward, make_batch, make_data, make_task


def make_args(**options) -> bear.Args:
    """Return arguments of two agents with small networks, completed by SETTINGS."""
    settings = {"hidden": 16, "vae_hidden": 12, "num_seeds": 2, "num_samples": 5, "mmd_samples": 3}
    return bear.apply_settings(bear.Args(**settings | options))


def make_agent(**options) -> bear.BEAR:
    """Return two agents with targets of their own, whose pi has a std beyond both bounds."""
    agent = bear.BEAR(make_args(**options), make_task(bear), "cpu")
    targets = [agent.critic_target]
    if agent.original:
        targets.append(agent.policy_target)
    with torch.no_grad():
        for target in targets:
            for weight in target.parameters():
                weight += 0.1
        agent.policy.net[-1].bias[..., -2] = 4
        agent.policy.net[-1].bias[..., -1] = -7
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


# ---- The distance ----


def distance_by_pairs(x, y, kernel: str, sigma: float) -> float:
    """Return MMD of two sets of points, pair by pair."""

    def k(a, b):
        far = ((a - b) ** 2).sum() if kernel == "gaussian" else abs(a - b).sum()
        return np.exp(-far / (2 * sigma))

    def mean(a, b):
        return np.mean([k(p, q) for p in a for q in b])

    return np.sqrt(mean(x, x) + mean(y, y) - 2 * mean(x, y) + 1e-6)


@pytest.mark.parametrize("kernel, sigma", [("gaussian", 0.7), ("laplacian", 1.9)])
def test_mmd_is_the_formula_pair_by_pair(kernel, sigma):
    x, y = make_batch(size=4, obs_dim=6)["observations"], make_batch(seed=1, size=4, obs_dim=10)
    x, y = x.double().unflatten(2, (3, 2)), y["observations"].double().unflatten(2, (5, 2))
    found = bear.mmd(x, y, kernel, sigma)
    assert found.shape == (2, 4)
    for n in range(2):
        for row in range(4):
            expected = distance_by_pairs(x[n, row].numpy(), y[n, row].numpy(), kernel, sigma)
            assert found[n, row].item() == pytest.approx(expected)


def test_mmd_of_simple_sets():
    def distance(x, y, kernel, sigma=0.5):
        sets = [torch.tensor(points).double()[None, None] for points in (x, y)]
        return bear.mmd(*sets, kernel, sigma).item() ** 2 - 1e-6

    # Two single points: 2 - 2 k. With sigma = 1/2 the kernel is exp(-distance).
    assert distance([[0, 0]], [[1, 2]], "gaussian") == pytest.approx(2 - 2 * np.exp(-5))
    assert distance([[0, 0]], [[1, 2]], "laplacian") == pytest.approx(2 - 2 * np.exp(-3))
    # The order of points and how often the whole set is repeated are of no account.
    assert distance([[1, 2], [3, 4]], [[3, 4], [1, 2], [3, 4], [1, 2]], "gaussian") < 1e-9
    # Two points far apart against one of them: 1/2 + 1 - 2 / 2. Against a third: 1/2 + 1.
    assert distance([[0], [99]], [[99]], "laplacian") == pytest.approx(0.5)
    assert distance([[0], [99]], [[-99]], "laplacian") == pytest.approx(1.5)
    # A wide Gaussian kernel sees the means alone: |mean x - mean y|^2 / sigma.
    found = distance([[0, 0], [2, 6]], [[4, 4], [4, 0]], "gaussian", 1e4)
    assert found == pytest.approx((3**2 + 1**2) / 1e4, rel=1e-2)


# ---- The formulas ----


def samples(policy, n: int, s, count: int, noise, limit: float) -> np.ndarray:
    """Return pi's samples before the tanh: (B * count, act)."""
    mean, log_std = np.split(forward(policy.net, n, s), 2, 1)
    mean, std = (np.repeat(x, count, 0) for x in (mean, np.exp(log_std.clip(-5, 2))))
    return mean + std * noise.clip(-limit, limit)


def values(critic, n: int, s, a) -> np.ndarray:
    x = np.concatenate([s, a], 1)
    return np.stack([forward(net, n, x)[:, 0] for net in (critic.q1, critic.q2)])


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize(
    "recipe, kernel", [("retuned", "laplacian"), ("retuned", "gaussian"), ("original", "gaussian")]
)
def test_losses_are_the_formulas(recipe, kernel, warmup, monkeypatch):
    # With rates of 0 the formulas can be read off the networks after the update.
    rates = {"lr": 0.0, "policy_lr": 0.0, "polyak": 0.0}
    agent = make_agent(
        recipe=recipe, kernel=kernel, mmd_sigma=1.5, lambd=0.7, warmup_updates=warmup, **rates
    )
    with torch.no_grad():
        agent.log_alpha.copy_(torch.tensor([0.4, -0.3]))
    batch = make_batch()
    noise = NotedNoise(monkeypatch)
    found = agent.update(batch)
    original = recipe == "original"
    next_policy = agent.policy_target if original else agent.policy
    for n in range(2):
        rows = {key: column[n].double().numpy() for key, column in batch.items()}
        s, a, s2 = rows["observations"], rows["actions"], rows["next_observations"]
        mean, log_std = np.split(forward(agent.vae.encoder, n, np.concatenate([s, a], 1)), 2, 1)
        z = mean + np.exp(log_std) * noise.of(0, n)
        decoded = np.tanh(forward(agent.vae.decoder, n, np.concatenate([s, z], 1)))
        kl = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))

        a2 = np.tanh(samples(next_policy, n, s2, 5, noise.of(1, n), np.inf))
        q = values(agent.critic_target, n, np.repeat(s2, 5, 0), a2)
        best = (0.7 * q.min(0) + 0.3 * q.max(0)).reshape(-1, 5).max(1)
        target = rows["rewards"] + 0.99 * (1 - rows["terminals"]) * best

        many = np.repeat(s, 3, 0)
        z = noise.of(2, n).clip(-0.5, 0.5)
        x = forward(agent.vae.decoder, n, np.concatenate([many, z], 1)).reshape(-1, 3, 2)
        y = samples(agent.policy, n, s, 3, noise.of(3, n), 0.5 if original else np.inf)
        q = values(agent.critic, n, many, np.tanh(y)).reshape(2, -1, 3)
        pi_q = q.mean(2).min(0) if original else q[:, :, 0].min(0)
        pairs = zip(x, y.reshape(-1, 3, 2), strict=True)
        distance = np.mean([distance_by_pairs(*sets, kernel, 1.5) for sets in pairs])
        alpha = np.exp([0.4, -0.3][n])
        expected = {
            "loss/vae": ((decoded - a) ** 2).mean() + 0.5 * kl.mean(),
            "loss/critic": ((values(agent.critic, n, s, a) - target) ** 2).mean(1).sum(),
            "loss/policy": alpha * (distance - 0.05) - (1 - warmup) * pi_q.mean(),
            "value": values(agent.critic, n, s, a).mean(),
            "mmd": distance,
            "alpha": alpha,
        }
        assert expected.keys() == found.keys()
        for name, number in expected.items():
            assert found[name][n].item() == pytest.approx(number, rel=5e-5), name


def test_the_warmup_ends_after_its_updates():
    agent = make_agent(warmup_updates=2, mmd_sigma=1.0, lr=0.0, policy_lr=0.0)
    for update in range(4):
        statistics = agent.update(make_batch())
        imitation = statistics["alpha"] * (statistics["mmd"] - 0.05)
        only_imitates = torch.allclose(statistics["loss/policy"], imitation)
        assert only_imitates == (update < 2)


@pytest.mark.parametrize("recipe", ["retuned", "original"])
def test_targets_follow_and_nothing_else_reaches_them(recipe):
    agent = make_agent(recipe=recipe, polyak=0.1)
    pairs = [(agent.critic_target, agent.critic)]
    assert hasattr(agent, "policy_target") == (recipe == "original")
    if recipe == "original":
        pairs.append((agent.policy_target, agent.policy))
    before = [copies_of(target.parameters()) for target, _ in pairs]
    agent.update(make_batch())
    for old, (target, source) in zip(before, pairs, strict=True):
        for a, b, c in zip(old, target.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(b, 0.9 * a + 0.1 * c)


def test_the_vae_learns_from_the_data_alone():
    found = []
    for kernel in ("gaussian", "laplacian"):
        torch.manual_seed(0)
        agent = make_agent(kernel=kernel, mmd_sigma=0.1, warmup_updates=0)
        for _ in range(2):
            agent.update(make_batch())
        found.append((copies_of(agent.vae.parameters()), copies_of(agent.policy.parameters())))
    (vae, policy), (other_vae, other_policy) = found
    assert all(map(torch.equal, vae, other_vae)) and not any(map(torch.equal, policy, other_policy))


def test_the_policy_is_the_best_of_its_samples():
    agent = make_agent(test_samples=7)
    obs = make_batch()["observations"]
    torch.manual_seed(3)
    with torch.no_grad():
        action = agent.act(obs)
    torch.manual_seed(3)
    with torch.no_grad():
        a = agent.policy.sample(obs, 7).tanh()
        q = agent.critic(obs.repeat_interleave(7, dim=1), a)[:, 0]
    for n in range(2):
        for row in range(obs.shape[1]):
            best = q[n, 7 * row : 7 * row + 7].argmax()
            assert torch.equal(action[n, row], a[n, 7 * row + best])


@pytest.mark.parametrize("sigma, start, step", [(1e-3, 9.9985, 1), (1e9, -4.9985, -1)])
def test_the_multiplier_moves_by_the_sign_of_the_excess_and_keeps_its_bounds(sigma, start, step):
    # A narrow kernel sees every distance as broken, a wide one none.
    agent = make_agent(kernel="gaussian", mmd_sigma=sigma)
    with torch.no_grad():
        agent.log_alpha.fill_(start)
    found = []
    for _ in range(3):
        excess = agent.update(make_batch())["mmd"] - 0.05
        assert (step * excess > 0).all()
        found.append(agent.log_alpha.detach().clone())
    assert found[0].numpy() == pytest.approx(start + 1e-3 * step, abs=1e-5)
    assert found[2].tolist() == [10, 10] if step > 0 else found[2].tolist() == [-5, -5]


# ---- Settings and data ----


@pytest.mark.parametrize(
    "env, options, kernel, sigma, batch_size, num_updates",
    [
        ("hopper-medium-v2", {}, "laplacian", 20, 256, 3_000_000),
        ("walker2d-random-v2", {}, "laplacian", 20, 256, 3_000_000),
        ("halfcheetah-expert-v2", {}, "gaussian", 20, 256, 3_000_000),
        ("antmaze-umaze-v2", {}, "gaussian", 50, 256, 3_000_000),
        ("Pendulum-v1", {"kernel": "laplacian"}, "laplacian", 20, 256, 3_000_000),
        ("hopper-medium-v2", {"recipe": "original"}, "laplacian", 10, 100, 1_000_000),
        ("walker2d-medium-v2", {"recipe": "original"}, "gaussian", 20, 100, 1_000_000),
        ("Pendulum-v1", {"recipe": "original", "kernel": "gaussian"}, "gaussian", 20, 100, 10**6),
    ],
)
def test_settings_are_the_published_ones(env, options, kernel, sigma, batch_size, num_updates):
    args = bear.apply_settings(bear.Args(env=env, **options))
    assert (args.kernel, args.mmd_sigma, args.batch_size) == (kernel, sigma, batch_size)
    assert args.num_updates == num_updates
    shapes = [w.shape[2] for w in bear.BEAR(args, make_task(bear), "cpu").policy.net.parameters()]
    assert shapes[0::2] == ([256, 256, 4] if args.recipe == "retuned" else [400, 300, 4])


def test_what_cannot_work_is_refused(capsys):
    def prepare(task=None, **options):
        return bear.prepare_data(make_args(**options), make_data(ROWS), task or make_task(bear))

    for name in ("mmd_samples", "num_samples", "test_samples"):
        with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be at least 1"):
            prepare(**{name: 0})
    with pytest.raises(SystemExit, match="--mmd-sigma must be above 0"):
        prepare(mmd_sigma=0.0)
    with pytest.raises(SystemExit, match="A-v0: .*bounds"):
        prepare(make_task(bear, action_low=None))
    prepare(num_updates=51, warmup_updates=50)
    assert capsys.readouterr().out == ""
    prepare(num_updates=50, warmup_updates=50)
    assert "all updates are warm-up" in capsys.readouterr().out


ROWS = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": range(4)}
ROWS |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 0, 1]}


def test_rows_without_a_next_state_are_left_out():
    found = bear.prepare_data(make_args(), make_data(ROWS), make_task(bear))
    assert found["rewards"].tolist() == [0, 1, 3]


# ---- A bandit whose reward rises where no data are ----


def bandit(count: int, seed: int) -> dict:
    """Return actions near (-0.3, 0.3) and a reward that is highest at (1, -1)."""
    rng = np.random.default_rng(seed)
    a = np.array([-0.3, 0.3]) + 0.03 * rng.standard_normal((count, 2))
    s = rng.uniform(-1, 1, (count, 2))
    return make_data({"observations": s, "actions": a, "rewards": 0.3 * (a[:, 0] - a[:, 1])})


@functools.cache
def trained(bounded: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how far two agents act from the data, and MMD and alpha of all updates.

    Without a bound, alpha stays at its smallest value.
    """
    args = make_args(kernel="gaussian", mmd_sigma=1.0, mmd_threshold=0.05 if bounded else 1e3)
    args.hidden, args.vae_hidden, args.batch_size, args.num_updates = 32, 64, 64, 800
    args.warmup_updates, args.lr, args.policy_lr, args.test_samples = 400, 2e-3, 2e-3, 10
    task = make_task(bear, 2, 2)
    torch.manual_seed(0)
    agent = bear.BEAR(args, task, "cpu")
    if not bounded:
        agent.log_alpha.data.fill_(-5)
    columns = bear.prepare_data(args, bandit(2000, 0), task)
    buffer = bear.ReplayBuffer(columns, args, torch.device("cpu"))
    found = [agent.update(buffer.sample()) for _ in range(args.num_updates)]
    curves = [torch.stack([row[key] for row in found]).detach().numpy() for key in ("mmd", "alpha")]
    s = torch.from_numpy(bandit(200, 1)["observations"]).expand(2, -1, -1)
    with torch.no_grad():
        away = abs(agent.act(s).numpy() - [-0.3, 0.3]).max(2)
    return away, *curves


def test_the_policy_stays_with_the_data_as_long_as_it_has_to():
    away, _, _ = trained(bounded=True)
    assert (np.median(away, axis=1) < 0.15).all(), away
    away, _, _ = trained(bounded=False)
    assert (np.median(away, axis=1) > 0.4).all(), away


def test_the_multiplier_rises_while_the_bound_is_broken_and_falls_after():
    _, distance, alpha = trained(bounded=True)
    for n in range(2):
        kept = np.flatnonzero(distance[:, n] < 0.05)[0]
        assert 20 < kept < 300
        assert (np.diff(alpha[: kept + 1, n]) > 0).all()
        # The warm-up goes on within the bound. Adam's mean of gradients turns with a delay.
        assert (distance[kept + 100 : 400, n] < 0.05).mean() > 0.9
        assert (np.diff(alpha[kept + 100 : 400, n]) < 0).all()
