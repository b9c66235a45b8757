"""Tests of algorithms/bc.py: its losses, the episodes it picks and holds out, known answers.

python -m pytest tests/test_bc.py
"""

import numpy as np
import pytest
import torch

import bc
from tests.helpers import forward, make_batch, make_data, make_task, train
from tests.parity import harness

# ---- The formulas ----


def make_agent(policy: str, **known) -> bc.BC:
    """Return two agents with small networks."""
    args = bc.Args(policy=policy, num_seeds=2, hidden=16)
    return bc.BC(args, make_task(bc, **known), "cpu")


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_losses_are_the_closed_forms(policy):
    """Over the rows of each kind."""
    mean, std = np.array([1.0, 2, 3, 0]), np.array([2.0, 1, 0.5, 1])
    agent = make_agent(policy, obs_mean=mean.tolist(), obs_std=std.tolist())
    net = agent.policy
    if policy == "gaussian":
        agent.policy.log_std.data[:] = torch.tensor([[[0.5, -1]], [[-6, 3.0]]])  # and its clamps
        net = agent.policy.net
    batch = make_batch()
    held_out = np.zeros((2, 32))
    held_out[0, ::3] = 1  # the second agent's batch has none of them
    batch["held_out"] = torch.tensor(held_out).float()
    s, a = (batch[key].double().numpy() for key in ("observations", "actions"))
    expected = []
    for n in range(2):
        x = forward(net, n, (s[n] - mean) / std)
        if policy == "deterministic":
            x = np.tanh(x)
            expected.append(((x - a[n]) ** 2).mean(1))
        else:
            deviation = np.exp(np.array([[0.5, -1], [-5, 2]])[n])
            log_p = -(((x - a[n]) / deviation) ** 2) / 2 - np.log(deviation * np.sqrt(2 * np.pi))
            expected.append(-log_p.sum(1))
        acted = agent.act(batch["observations"])[n].detach().numpy()
        np.testing.assert_allclose(acted, x, atol=1e-5)
    statistics = {key: x.detach().numpy() for key, x in agent.update(batch).items()}
    losses = [expected[0][held_out[0] == 0].mean(), expected[1].mean()]
    np.testing.assert_allclose(statistics["loss/policy"], losses, rtol=1e-5)
    losses = [expected[0][held_out[0] == 1].mean(), 0]
    np.testing.assert_allclose(statistics["loss/held_out"], losses, rtol=1e-5)


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_held_out_rows_move_nothing(policy):
    def trained(change: float):
        torch.manual_seed(0)
        agent = make_agent(policy)
        statistics = []
        for seed in range(3):
            batch = make_batch(seed=seed)
            batch["held_out"] = (torch.rand(2, 32) < 0.2).float()
            batch["actions"] += change * batch["held_out"].unsqueeze(-1)
            statistics.append(agent.update(batch))
        return list(agent.parameters()), statistics

    (plain, statistics), (other, changed) = trained(0), trained(3)
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    for one, two in zip(statistics, changed, strict=True):
        assert torch.equal(one["loss/policy"], two["loss/policy"])
        assert (two["loss/held_out"] > one["loss/held_out"] + 1).all()


# ---- Which episodes ----


def make_rows(lengths: list[int], returns: list[float], rest: int = 0) -> dict:
    """Return complete episodes, and then `rest` rows of an unfinished one, which are the best.

    Each reward is the episode's mean. The first coordinate of an observation is the row's number.
    """
    count = sum(lengths) + rest
    episode_end = np.zeros(count, bool)
    episode_end[np.cumsum(lengths) - 1] = True
    rewards = np.append(np.repeat(np.array(returns) / lengths, lengths), np.full(rest, 1e4))
    rng = np.random.default_rng(count)
    obs = rng.standard_normal((count, 4))
    obs[:, 0] = np.arange(count)
    columns = {"observations": obs, "actions": rng.uniform(-1, 1, (count, 2)), "rewards": rewards}
    return make_data(columns, episode_end)


def prepared(data: dict, validation_fraction: float = 0.0, **options) -> tuple:
    """Return the columns and the task after prepare_data(). The data stay as they are."""
    options = {"policy": "deterministic", "validation_fraction": validation_fraction} | options
    task = make_task(bc)
    return bc.prepare_data(bc.Args(**options), {k: x.copy() for k, x in data.items()}, task), task


def numbers(columns: dict) -> list[int]:
    """Return which rows of make_rows() these are."""
    return columns["observations"][:, 0].astype(int).tolist()


# Rows 0-3, 4-6, 7-11, 12-13, and then 14-19 without an end
LENGTHS, RETURNS, REST = [4, 3, 5, 2], [10, 30, 20, 5], 6
BEST = [*range(4, 7), *range(7, 12), *range(4), *range(12, 14), *range(14, 20)]


@pytest.mark.parametrize(
    "fraction, count",
    [
        (1e-9, 3),  # the best one always
        *((0.15, 3), (0.39, 3), (0.4, 8)),
        (0.5, 8),  # the next would be too long, and none behind it is taken instead
        *((0.6, 12), (0.7, 14), (0.999, 14)),
        (1.0, 20),  # the episode without a return only here
    ],
)
def test_the_best_whole_episodes_are_picked(fraction, count, capsys):
    data = make_rows(LENGTHS, RETURNS, REST)
    columns, _ = prepared(data, top_fraction=fraction)
    assert numbers(columns) == sorted(BEST[:count])  # in the order of the data
    np.testing.assert_array_equal(columns["actions"], data["actions"][sorted(BEST[:count])])
    returns = {3: [30], 8: [30, 20], 12: [30, 20, 10]}.get(count, [30, 20, 10, 5])
    episodes = len(returns) + (1 if count == 20 else 0)
    line = f"cloning {episodes} episodes with a mean return of {np.mean(returns):.1f},"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_rule_is_the_decision_transformers(fraction):
    """Step by step: the best first, until the next would exceed the share of time steps."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 30, 50)
    returns = rng.permutation(50) * 10.0
    budget, order = int(fraction * lengths.sum()), list(np.argsort(returns))
    chosen = [order.pop()]
    while order and lengths[chosen].sum() + lengths[order[-1]] <= budget:
        chosen.append(order.pop())
    columns, _ = prepared(make_rows(lengths.tolist(), returns.tolist()), top_fraction=fraction)
    first = np.cumsum(lengths) - lengths
    assert numbers(columns) == sorted(first[e] + i for e in chosen for i in range(lengths[e]))


def test_rows_without_an_order_are_cloned_but_not_ranked():
    data = make_rows(LENGTHS, RETURNS, REST)
    args = bc.Args(policy="deterministic", validation_fraction=0.25)
    columns = bc.prepare_data(args, data, make_task(bc, ordered=False))
    assert numbers(columns) == [*range(20)] and columns["held_out"].sum() == 5
    args.top_fraction = 0.5
    with pytest.raises(SystemExit, match="--top-fraction needs episodes"):
        bc.prepare_data(args, data, make_task(bc, ordered=False))


# ---- What is held out ----


def test_whole_episodes_are_held_out_in_every_run_the_same():
    lengths = np.random.default_rng(2).integers(2, 9, 60).tolist()
    data = make_rows(lengths, list(range(60)), rest=4)
    choices = []
    for options in ({"seed": 0}, {"seed": 7, "num_seeds": 3}):
        columns, _ = prepared(data, 0.1, **options)
        parts = np.split(columns["held_out"], np.cumsum(lengths))  # the rest is one, too
        assert all(part.min() == part.max() for part in parts)
        choices.append([i for i, part in enumerate(parts) if part[0]])
    assert len(choices[0]) == 7  # 10 % of 61, rounded up
    assert choices[0] == choices[1] and np.ptp(choices[0]) > 20  # from everywhere


def test_only_picked_episodes_are_held_out():
    columns, _ = prepared(make_rows([5] * 40, list(range(40))), 0.25, top_fraction=0.5)
    assert numbers(columns) == [*range(100, 200)]
    assert columns["held_out"].sum() == 5 * 5


def test_observations_are_standardised_by_the_rows_of_training():
    data = make_rows([5] * 20, list(range(20)))
    data["observations"][:, 2] = 4  # a constant one, by which nothing may be divided
    columns, task = prepared(data, 0.2, top_fraction=0.5)
    obs = columns["observations"][columns["held_out"] == 0].astype(float)
    assert len(obs) == 40
    np.testing.assert_allclose(task.obs_mean, obs.mean(0))
    np.testing.assert_allclose(task.obs_std, obs.std(0) + 1e-3)
    assert task.obs_std[2] == pytest.approx(1e-3)
    _, raw = prepared(data, 0.2, normalize=False)
    assert raw.obs_mean == [0] * 4 and raw.obs_std == [1] * 4


def test_the_validation_loss_shows_what_is_learned_by_heart():
    """Actions without any pattern: the clone learns those it sees, and worsens on the others."""
    data = make_rows([4] * 30, list(range(30)))
    columns, task = prepared(data, 0.5)
    losses = {}
    for updates in (60, 600):
        options = {"policy": "deterministic", "hidden": 64, "batch_size": 120, "lr": 3e-3}
        agent = train(bc, bc.Args(num_updates=updates, **options), task, columns)
        batch = {key: torch.from_numpy(x).unsqueeze(0) for key, x in columns.items()}
        found = agent.update(batch)
        losses[updates] = [found[f"loss/{kind}"].item() for kind in ("policy", "held_out")]
    assert losses[600][0] < 0.6 * losses[60][0] and losses[600][1] > 1.1 * losses[60][1]


# ---- Known answers ----


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_a_linear_expert_is_recovered(policy):
    rng = np.random.default_rng(0)
    matrix = np.array([[0.5, -0.2], [0.1, 0.3], [-0.2, 0.3], [0, 0]])
    scale, shift = np.array([1, 20, 0.1, 1]), np.array([0, 50, -1, 0])  # standardised away
    x = rng.uniform(-1, 1, (3000, 4))
    data = make_rows([50] * 60, [1.0] * 60)
    data["observations"] = (x * scale + shift).astype(np.float32)
    data["actions"] = (x @ matrix).astype(np.float32)
    columns, task = prepared(data, 0.1, policy=policy)
    options = {"policy": policy, "hidden": 32, "batch_size": 64, "lr": 3e-3, "num_seeds": 2}
    agent = train(bc, bc.Args(num_updates=800, **options), task, columns)
    fresh = rng.uniform(-1, 1, (500, 4))
    with torch.no_grad():
        obs = torch.tensor(fresh * scale + shift).float().expand(2, -1, -1)
        error = agent.act(obs).numpy() - fresh @ matrix
    assert np.sqrt((error**2).mean((1, 2))).max() < 0.04


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_the_clone_of_several_is_their_mean(policy):
    """In each of three states half of the data act by one policy, half by the other."""
    means = np.array([[0.5, -0.3], [-0.6, 0.2], [0, 0.7]])
    spread = np.array([0.3, 0.1])
    sign = np.tile([1, -1], 600)[:, None]
    data = make_rows([12] * 100, [1.0] * 100)
    data["observations"] = np.repeat(np.eye(3, 4, dtype=np.float32), 400, 0)
    data["actions"] = (np.repeat(means, 400, 0) + sign * spread).astype(np.float32)
    columns, task = prepared(data, policy=policy)
    options = {"policy": policy, "hidden": 32, "batch_size": 128, "lr": 5e-3, "num_seeds": 2}
    agent = train(bc, bc.Args(num_updates=700, **options), task, columns)
    with torch.no_grad():
        acted = agent.act(torch.eye(3, 4).expand(2, -1, -1)).numpy()
    np.testing.assert_allclose(acted, np.stack([means] * 2), atol=0.07)
    if policy == "gaussian":
        std = agent.policy.log_std.detach().exp().numpy()[:, 0]
        np.testing.assert_allclose(std, np.stack([spread] * 2), rtol=0.15)


# ---- What cannot work ----


@pytest.mark.parametrize(
    "options, words",
    [
        ({"top_fraction": 0}, "--top-fraction must"),
        ({"top_fraction": 1.5}, "--top-fraction must"),
        ({"validation_fraction": 1.0}, "--validation-fraction must be at least 0 and below 1"),
        ({"top_fraction": 0.15, "validation_fraction": 0.05}, "holds out all 1 episodes"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options, words):
    with pytest.raises(SystemExit) as end:
        prepared(make_rows(LENGTHS, RETURNS), **options)
    assert words in str(end.value)


def test_actions_without_bounds_ask_for_a_gaussian():
    data, task = make_rows(LENGTHS, RETURNS, REST), make_task(bc, action_low=None)
    with pytest.raises(SystemExit, match="--policy gaussian"):
        bc.prepare_data(bc.Args(policy="deterministic"), data, task)
    columns = bc.prepare_data(bc.Args(policy="gaussian"), data, task)
    assert len(columns["actions"]) == 20


# ---- Policies with several modes ----


def test_a_mixture_has_the_density_of_torch_distributions():
    torch.manual_seed(0)
    policy = bc.GaussianMixture(2, [3, 8, 2], components=4).double()
    policy.log_std.data.uniform_(-6, 3)  # beyond the clamps, too
    x, y = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 2).double()
    log_weight, mean, std = policy(x)
    parts = torch.distributions.Normal(mean, std.expand_as(mean))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_weight),
        torch.distributions.Independent(parts, 1),
    )
    torch.testing.assert_close(policy.log_prob(x, y), mixture.log_prob(y))
    assert (std >= np.exp(-5) * (1 - 1e-12)).all() and (std <= np.exp(2) * (1 + 1e-12)).all()
    for n in range(2):
        for b in range(5):
            best = mean[n, b, log_weight[n, b].argmax()]
            torch.testing.assert_close(policy.act(x)[n, b], best)


def test_a_mixture_of_one_is_the_gaussian():
    torch.manual_seed(0)
    mixture = bc.GaussianMixture(1, [3, 8, 2], components=1)
    plain = bc.GaussianPolicy(1, [3, 8, 2])
    plain.net[0].load_state_dict(mixture.net[0].state_dict())
    plain.log_std.data = mixture.log_std.data[:, :, 0]
    plain.net[2].weight.data = mixture.net[2].weight.data[..., 1:]  # the first is the weight
    plain.net[2].bias.data = mixture.net[2].bias.data[..., 1:]
    x, y = torch.randn(1, 5, 3), torch.randn(1, 5, 2)
    torch.testing.assert_close(mixture.log_prob(x, y), plain.log_prob(x, y))
    torch.testing.assert_close(mixture.act(x), plain(x)[0])


def test_the_categorical_loss_is_cross_entropy_of_the_bins():
    torch.manual_seed(0)
    policy = bc.CategoricalPolicy(2, [3, 8, 2], bins=4)
    x = torch.randn(2, 6, 3)
    # The edges of the bins are -0.5, 0 and 0.5. Both ends of the range belong to the outer bins.
    y = torch.tensor([-1, -0.51, -0.5, 0, 0.49, 1.0]).expand(2, 6).unsqueeze(-1).repeat(1, 1, 2)
    y[..., 1] *= -1
    bins = torch.tensor([[0, 3], [0, 3], [1, 3], [2, 2], [2, 1], [3, 0]])
    logits = policy.net(x).unflatten(-1, (2, 4))
    for n in range(2):
        loss = torch.nn.functional.cross_entropy(
            logits[n].transpose(1, 2), bins, reduction="none"
        ).sum(1)
        torch.testing.assert_close(policy.log_prob(x, y)[n], -loss)
    centres = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    torch.testing.assert_close(policy.act(x), centres[logits.argmax(-1)])


def test_noise_is_that_of_diffusion_ql():
    """Their schedule, and their reverse step, written out for one step in NumPy."""
    steps, rng = 5, np.random.default_rng(0)
    with harness.default_dtype({"dtype": "float64"}):
        policy = bc.DiffusionPolicy(1, [3, 8, 2], steps)
    t = np.arange(1, steps + 1)
    beta = 1 - np.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2)
    alpha_bar = np.cumprod(1 - beta)
    np.testing.assert_allclose(policy.kept_in_all, alpha_bar)
    assert alpha_bar[-1] < 0.01  # nearly all is noise at the end

    # act() with given noise
    x = torch.from_numpy(rng.standard_normal((1, 4, 3)))
    draws = [torch.from_numpy(rng.standard_normal((1, 4, 2))) for _ in range(steps)]
    y = draws[0].numpy()
    for i in reversed(range(steps)):
        with torch.no_grad():
            noise = policy(torch.from_numpy(y), torch.full((1, 4), i), x).numpy()
        clean = np.clip((y - np.sqrt(1 - alpha_bar[i]) * noise) / np.sqrt(alpha_bar[i]), -1, 1)
        before = alpha_bar[i - 1] if i > 0 else 1.0
        first = beta[i] * np.sqrt(before) / (1 - alpha_bar[i])
        second = (1 - before) * np.sqrt(1 - beta[i]) / (1 - alpha_bar[i])
        variance = beta[i] * (1 - before) / (1 - alpha_bar[i])
        y = first * clean + second * y
        if i > 0:
            y = y + np.sqrt(variance) * draws[steps - i].numpy()
    given = iter(draws)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "randn", lambda *shape, **kind: next(given))
        patch.setattr(torch, "randn_like", lambda like: next(given))
        found = policy.act(x)
    np.testing.assert_allclose(found.numpy(), y, atol=1e-12)


def test_the_diffusion_loss_is_the_error_of_the_noise(monkeypatch):
    rng = np.random.default_rng(0)
    policy = bc.DiffusionPolicy(1, [3, 8, 2], 4).double()
    x, y, noise = (torch.from_numpy(rng.standard_normal((1, 6, d))) for d in (3, 2, 2))
    t = torch.tensor([[0, 1, 2, 3, 0, 3]])
    monkeypatch.setattr(torch, "randint", lambda *args, **kind: t)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    kept = policy.kept_in_all.numpy()[t[0]][:, None]
    noisy = np.sqrt(kept) * y[0].numpy() + np.sqrt(1 - kept) * noise[0].numpy()
    inputs = np.concatenate([noisy, np.eye(4)[t[0]], x[0].numpy()], axis=1)
    expected = ((noise[0].numpy() - forward(policy.net, 0, inputs)) ** 2).mean(1)
    np.testing.assert_allclose(policy.loss(x, y)[0].detach().numpy(), expected)


@pytest.mark.parametrize("policy", bc.PolicyName.__args__)
def test_who_averages_two_modes_and_who_keeps_them(policy):
    """The data act by one mode or its opposite in every state, six times in ten by the first."""
    torch.manual_seed(0)
    mode = 0.7 if policy == "diffusion" else 0.4  # a small diffusion model needs them far apart
    sizes = {"components": 5, "bins": 21, "diffusion_steps": 10}
    args = bc.Args(policy=policy, num_seeds=2, hidden=32, lr=3e-3, **sizes)
    agent = bc.BC(args, make_task(bc), "cpu")
    obs = torch.randn(2, 256, 4)
    for _ in range(400):
        actions = torch.where(torch.rand(2, 256, 1) < 0.6, mode, -mode).expand(-1, -1, 2)
        batch = {"observations": obs, "actions": actions + 0.05 * torch.randn(2, 256, 2)}
        agent.update(batch | {"held_out": torch.zeros(2, 256)})
    with torch.no_grad():
        acted = agent.act(obs)
    if policy in ("deterministic", "gaussian"):
        assert (acted - 0.08).abs().mean() < 0.1  # 0.6 * 0.4 - 0.4 * 0.4
    elif policy == "diffusion":
        # Of a Gaussian with this mean and deviation, a third would lie there.
        assert ((acted.abs() - mode).abs() < 0.25).float().mean() > 0.8
        assert 0.4 < (acted > 0).float().mean() < 0.8  # both modes
    else:
        assert ((acted - mode).abs() < 0.15).float().mean() > 0.95  # the likelier mode


@pytest.mark.parametrize("name", ["components", "bins", "diffusion_steps"])
def test_sizes_below_one_are_refused(name):
    data = make_rows(LENGTHS, RETURNS, REST)
    with pytest.raises(SystemExit, match="must be at least 1"):
        bc.prepare_data(bc.Args(policy="mixture", **{name: 0}), data, make_task(bc))


def test_policies_on_a_bounded_range_refuse_actions_without_bounds():
    for policy in ("deterministic", "categorical", "diffusion"):
        data = make_rows(LENGTHS, RETURNS, REST)
        task = make_task(bc, action_low=None, action_high=None)
        with pytest.raises(SystemExit, match="use --policy gaussian or mixture"):
            bc.prepare_data(bc.Args(policy=policy), data, task)
