"""Tests of algorithms/brac.py: its mathematics, its settings, and problems whose answer is known.

python -m pytest tests/test_brac.py
"""

import numpy as np
import pytest
import torch

import brac
from tests.helpers import copies_of, forward, make_batch, make_data, make_task

DIVERGENCES = ("kl", "kl_dual", "mmd")


def make_args(**options) -> brac.Args:
    """Return arguments of two agents with small networks, completed by SETTINGS."""
    settings = {"hidden": 16, "policy_hidden": 12, "num_seeds": 2, "num_samples": 3}
    return brac.apply_settings(brac.Args(**settings | options))


def make_agent(**options) -> brac.BRAC:
    """Return two agents whose Q' is not Q, and whose steep pi and c are far from their start."""
    torch.manual_seed(0)
    agent = brac.BRAC(make_args(**options), make_task(brac), "cpu")
    with torch.no_grad():
        for weight in agent.critic_target.parameters():
            weight += 0.1
        agent.policy.net[-1].weight *= 4
        if agent.args.divergence == "kl_dual":
            agent.dual_critic.net[-1].weight *= 40
    return agent


def make_rows() -> dict:
    """Return a batch with next actions."""
    return make_batch() | {"next_actions": make_batch(seed=1)["actions"]}


class NotedNoise:
    """Note what torch.randn_like and torch.rand_like draw."""

    def __init__(self, patch):
        self.draws = []
        for name in ("randn_like", "rand_like"):
            patch.setattr(torch, name, self.noted(getattr(torch, name)))

    def noted(self, draw):
        def draw_and_note(like):
            self.draws.append(draw(like))
            return self.draws[-1]

        return draw_and_note

    def of(self, agent: int) -> list[np.ndarray]:
        return [draw[agent].double().numpy() for draw in self.draws]


# ---- The formulas ----


def mean_and_std(policy, n: int, s) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std before the tanh: (B, 1, act)."""
    mean, log_std = np.split(forward(policy.net, n, s), 2, 1)
    return mean[:, None], np.exp(-5 + 2.5 * (np.tanh(log_std) + 1))[:, None]


def log_density(policy, n: int, s, x) -> np.ndarray:
    """Return log p(tanh x|s): (B, K, act) -> (B, K)."""
    mean, std = mean_and_std(policy, n, s)
    log_normal = -(((x - mean) / std) ** 2) / 2 - np.log(std * np.sqrt(2 * np.pi))
    return (log_normal + 2 * np.log(np.cosh(x))).sum(2)  # 1 - tanh^2 = 1 / cosh^2


def values(net, copies: list[int], s, a) -> np.ndarray:
    x = np.concatenate([s, a], 1)
    return np.stack([forward(net, copy, x)[:, 0] for copy in copies])


def slopes(net, n: int, s, a) -> np.ndarray:
    """Return the norm of c's gradient by the action, layer by layer: (B,)"""
    x, chain = np.concatenate([s, a], 1), None
    for layer in [layer for layer in net if list(layer.parameters())]:
        weight, bias = (part[n].detach().double().numpy() for part in layer.parameters())
        chain = weight[None] if chain is None else chain @ weight
        x = x @ weight + bias
        if weight.shape[1] > 1:
            chain = chain * (x > 0)[:, None]
            x = np.maximum(x, 0)
    return np.sqrt((chain[:, s.shape[1] :, 0] ** 2).sum(1))


def mmd(x, y, sigma: float) -> float:
    """Return Eq. 6 of two sets of points, pair by pair."""

    def mean(a, b):
        return np.mean([np.exp(-abs(p - q).sum() / (2 * sigma)) for p in a for q in b])

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


class Formulas:
    """The formulas in NumPy for one of the agents. Noise comes in the order of its use."""

    def __init__(self, agent, n: int, noise: list):
        self.agent, self.n, self.noise = agent, n, list(noise)

    def draw(self, policy, s) -> np.ndarray:
        """Return samples before the tanh: (B, K, act)"""
        mean, std = mean_and_std(policy, self.n, s)
        return mean + std * self.noise.pop(0)

    def divergence(self, s, pi_a, data_a) -> np.ndarray:
        agent, n = self.agent, self.n
        if agent.args.divergence == "kl_dual":
            c = [values(agent.dual_critic.net, [n], s, a)[0] for a in (pi_a, data_a)]
            pi_ratio, data_ratio = np.log(1 + np.exp(c))
            return np.log(pi_ratio) - data_ratio + 1
        x = self.draw(agent.policy, s)
        if agent.args.divergence == "kl":
            inside = np.arctanh(np.tanh(x).clip(-0.999, 0.999))
            log_b = log_density(agent.behavior, n, s, inside)
            return (log_density(agent.policy, n, s, x) - log_b).mean(1)
        y = self.draw(agent.behavior, s)
        return np.array([mmd(*sets, 0.3) for sets in zip(np.tanh(x), np.tanh(y), strict=True)])


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("penalty", ["v", "p"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_losses_are_the_formulas(divergence, penalty, warmup, monkeypatch):
    # With rates of 0 the formulas can be read off the networks after the update.
    rates = {"lr": 0.0, "policy_lr": 0.0, "polyak": 0.0}
    agent = make_agent(
        divergence=divergence,
        penalty=penalty,
        alpha=0.7,
        mmd_sigma=0.3,
        slope_penalty=2.0,
        dual_steps=1,
        warmup_updates=warmup,
        **rates,
    )
    batch = make_rows()
    noise = NotedNoise(monkeypatch)
    found = agent.update(batch)
    for n in range(2):
        rows = {key: column[n].double().numpy() for key, column in batch.items()}
        s, a, s2, a2 = (
            rows[key] for key in ("observations", "actions", "next_observations", "next_actions")
        )
        formulas = Formulas(agent, n, noise.of(n))
        twins = [2 * n, 2 * n + 1]
        next_a = np.tanh(formulas.draw(agent.policy, s2))[:, 0]
        next_v = values(agent.critic_target.net, twins, s2, next_a).min(0)
        if penalty == "v":
            next_v = next_v - 0.7 * formulas.divergence(s2, next_a, a2)
        target = rows["rewards"] + 0.99 * (1 - rows["terminals"]) * next_v
        q = values(agent.critic.net, twins, s, a)
        pi_a = np.tanh(formulas.draw(agent.policy, s))[:, 0]
        pi_q = values(agent.critic.net, twins, s, pi_a).min(0)
        distance = formulas.divergence(s, pi_a, a)
        expected = {
            "loss/critic": ((q - target) ** 2).mean(1).sum(),
            "loss/policy": (0.7 * distance - (1 - warmup) * pi_q).mean(),
            "value": q.mean(),
            "divergence": distance.mean(),
            "alpha": 0.7,
        }
        if divergence == "kl_dual":
            pi_a = np.tanh(formulas.draw(agent.policy, s))[:, 0]
            between = pi_a + formulas.noise.pop(0) * (a - pi_a)
            slope = slopes(agent.dual_critic.net, n, s, between)
            assert (slope > 1).any() and (slope < 1).any()
            penalty_on_c = 2 * (np.maximum(slope - 1, 0) ** 2).mean()
            expected["loss/dual_critic"] = penalty_on_c - formulas.divergence(s, pi_a, a).mean()
        assert expected.keys() == found.keys() and formulas.noise == []
        for name, number in expected.items():
            assert found[name][n].item() == pytest.approx(number, rel=1e-4), name


def test_the_loss_of_b_is_the_formula(monkeypatch):
    agent = make_agent(behavior_lr=0.0)
    with torch.no_grad():
        agent.temperature.copy_(torch.tensor([0.5, 2.0]))
    batch = make_batch()
    batch["actions"][:, 0] = 1  # kept 0.001 from the bound
    noise = NotedNoise(monkeypatch)
    found = agent.update_behavior(batch)
    for n in range(2):
        s, a = (batch[key][n].double().numpy() for key in ("observations", "actions"))
        formulas = Formulas(agent, n, noise.of(n))
        own = [log_density(agent.behavior, n, s, formulas.draw(agent.behavior, s)) for _ in "ab"]
        inside = np.arctanh(a.clip(-0.999, 0.999))[:, None]
        loss = [0.5, 2][n] * own[0].mean() - log_density(agent.behavior, n, s, inside).mean()
        assert found["loss/behavior"][n].item() == pytest.approx(loss, rel=1e-4)
        assert found["entropy"][n].item() == pytest.approx(-own[1].mean(), rel=1e-4)


def test_the_temperature_of_b_follows_its_entropy_and_stays_positive():
    # With lr 0 for b its entropy stays, here between -2 and 0 and above it.
    agent = make_agent()
    agent.optimizers["behavior"].lr.fill_(0)
    agent.optimizers["temperature"].lr.fill_(0.4)
    with torch.no_grad():
        agent.behavior.net[-1].weight.zero_()
        agent.behavior.net[-1].bias.zero_()
        agent.behavior.net[-1].bias[0, :, 2:] = -9  # log std -5: entropy about -7
        agent.behavior.net[-1].bias[1, :, 2:] = 9  # log std 0: entropy above -2
    found = [agent.update_behavior(make_batch()) for _ in range(4)]
    entropy = torch.stack([row["entropy"] for row in found])
    assert (entropy[:, 0] < -6).all() and (entropy[:, 1] > -2).all()
    temperature = torch.stack([row["temperature"] for row in found]).detach()
    assert (temperature[1:, 0] > temperature[:-1, 0]).all() and temperature[0, 0] > 1
    assert temperature[0, 1] < 1 and temperature[3, 1] == 0


def test_log_std_is_bounded_and_pi_acts_at_its_mean():
    agent = make_agent()
    obs = 1e3 * make_batch()["observations"]
    mean, log_std = agent.policy(obs)
    assert log_std.min() == -5 and log_std.max() == 0
    torch.testing.assert_close(agent.act(obs), mean.tanh())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_only_the_policy_follows_its_loss(divergence):
    agent = make_agent(divergence=divergence, polyak=0.1)
    frozen = agent.dual_critic if divergence == "kl_dual" else agent.behavior
    agent.args.dual_steps = 0
    before = [copies_of(net.parameters()) for net in (frozen, agent.critic_target, agent.policy)]
    agent.update(make_rows())
    assert all(map(torch.equal, before[0], frozen.parameters()))
    assert not any(map(torch.equal, before[2], agent.policy.parameters()))
    pairs = zip(agent.critic_target.parameters(), agent.critic.parameters(), strict=True)
    for old, (target, source) in zip(before[1], pairs, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * source)


def test_one_seed_does_not_see_the_others_rows():
    for divergence in DIVERGENCES:
        results = []
        for change in (0, 1):
            agent = make_agent(divergence=divergence, target_divergence=0.1)
            batch = make_rows()
            batch["actions"][1] *= 1 - change / 2
            for phase in agent.phases:
                phase.updates[0](batch)
            results.append(copies_of(p[: len(p) // 2] for p in agent.parameters()))
        assert all(map(torch.equal, *results))


def test_the_warmup_ends_after_its_updates():
    agent = make_agent(divergence="mmd", alpha=0.5, warmup_updates=2, lr=0.0, policy_lr=0.0)
    for update in range(4):
        statistics = agent.update(make_batch())
        only_imitates = torch.allclose(statistics["loss/policy"], 0.5 * statistics["divergence"])
        assert only_imitates == (update < 2)


# ---- alpha ----


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_with_alpha_0_it_is_an_actor_critic_that_asks_no_divergence(divergence):
    """What D is does not matter. With --alpha 1 it does."""

    def weights(alpha: float, factor: float) -> list[torch.Tensor]:
        agent = make_agent(divergence=divergence, alpha=alpha, warmup_updates=0)
        true_divergence = agent.divergence
        agent.divergence = lambda *actions: factor * true_divergence(*actions)
        torch.manual_seed(1)
        for _ in range(2):
            agent.update(make_rows())
        return copies_of([*agent.critic.parameters(), *agent.policy.parameters()])

    assert all(map(torch.equal, weights(0.0, 1.0), weights(0.0, 0.0)))
    assert not any(map(torch.equal, weights(1.0, 1.0), weights(1.0, 0.0)))


@pytest.mark.parametrize("bound, start, step, end", [(0, 499.9985, 1, 500), (2, 0.0015, -1, 0)])
def test_alpha_rises_while_the_bound_is_broken_falls_within_and_keeps_its_own(
    bound, start, step, end
):
    # By this kernel the distance is above 0 and below 2.
    options = {"divergence": "mmd", "mmd_sigma": 0.1, "target_divergence": bound}
    agent = make_agent(alpha=start, **options)
    found = []
    for _ in range(3):
        agent.update(make_batch())
        found.append(agent.alpha.detach().clone())
    assert found[0].numpy() == pytest.approx(start + 1e-3 * step, abs=5e-5)
    assert found[2].tolist() == [end, end]


def test_without_a_bound_alpha_is_fixed():
    agent = make_agent(divergence="mmd", alpha=0.3)
    agent.update(make_batch())
    assert not agent.alpha.requires_grad and "alpha" not in agent.optimizers
    assert agent.alpha.tolist() == pytest.approx([0.3, 0.3])


# ---- Known answers ----


@torch.no_grad()
def set_gaussian(policy, mean: float, std: float) -> None:
    """Let a policy be the same Gaussian in all states."""
    policy.net[-1].weight.zero_()
    act_dim = policy.net[-1].bias.shape[2] // 2
    policy.net[-1].bias[..., :act_dim] = mean
    policy.net[-1].bias[..., act_dim:] = np.arctanh((np.log(std) + 5) / 2.5 - 1)


def kl_of_gaussians(mean: float, std: float, b_mean: float, b_std: float) -> float:
    return np.log(b_std / std) + (std**2 + (mean - b_mean) ** 2) / (2 * b_std**2) - 0.5


def test_both_estimates_of_kl_are_the_closed_form():
    """The tanh maps pi and b in the same way, so it changes no KL."""
    mean, std, b_mean, b_std = 0.3, 0.3, 0.0, 0.4
    expected = kl_of_gaussians(mean, std, b_mean, b_std)
    sizes = {"num_seeds": 2, "hidden": 32, "lr": 5e-3, "num_samples": 50}
    task, s = make_task(brac, 1, 1), torch.zeros(2, 512, 1)

    agent = brac.BRAC(make_args(divergence="kl", **sizes), task, "cpu")
    set_gaussian(agent.policy, mean, std)
    set_gaussian(agent.behavior, b_mean, b_std)
    torch.manual_seed(0)
    with torch.no_grad():
        found = agent.divergence(s, None, None).mean(1)
    assert found.numpy() == pytest.approx(expected, rel=0.05)

    # A slope of c above 1 is needed, so the penalty on it must go.
    agent = brac.BRAC(make_args(divergence="kl_dual", slope_penalty=0.0, **sizes), task, "cpu")
    set_gaussian(agent.policy, mean, std)

    def data_actions():
        return (b_mean + b_std * torch.randn_like(s)).tanh()

    for step in range(400):
        agent.update_dual_critic(s, data_actions())
        if step == 300:
            agent.optimizers["dual_critic"].lr.fill_(5e-4)
    found = []
    for _ in range(20):
        pi_a = agent.sample_action(s)
        with torch.no_grad():
            found.append(agent.divergence(s, pi_a, data_actions()).mean(1))
    assert torch.stack(found).mean(0).numpy() == pytest.approx(expected, rel=0.1)


def test_the_penalty_bounds_the_slope_of_c():
    steepest = []
    for weight in (0.0, 50.0):
        torch.manual_seed(0)
        options = {"slope_penalty": weight, "hidden": 32, "lr": 5e-3}
        task, s = make_task(brac, 1, 1), torch.zeros(2, 128, 1)
        agent = brac.BRAC(make_args(divergence="kl_dual", **options), task, "cpu")
        set_gaussian(agent.policy, 0.5, 0.1)
        for _ in range(150):
            agent.update_dual_critic(s, (0.1 * torch.randn_like(s)).tanh())
        line = torch.linspace(0, 0.45, 46).view(1, 46, 1).expand(2, -1, -1)
        with torch.no_grad():
            c = agent.dual_critic(torch.zeros_like(line), line)
        steepest.append((c.diff(dim=1) / 0.01).max().item())
    assert steepest[0] > 3 and steepest[1] < 1.5, steepest


@torch.no_grad()
def set_linear_critic(agent, slope: float) -> None:
    """Let Q be slope times the first action."""
    for layer in agent.critic.net:
        for weight in layer.parameters():
            weight.zero_()
    first, second, last = (layer for layer in agent.critic.net if list(layer.parameters()))
    first.weight[:, 1, :2] = torch.tensor([1.0, -1.0])  # of the action, behind one observation
    second.weight[:, 0, 0] = second.weight[:, 1, 1] = 1
    last.weight[:, :2, 0] = torch.tensor([slope, -slope])


def test_the_price_of_kl_makes_pi_the_behaviour_times_exp_of_q_over_alpha():
    """Near 0, where the tanh is a line, exp(Q / alpha) moves a Gaussian by slope std^2 / alpha."""
    slope, alpha, std = 3.0, 0.5, float(np.exp(-2.5))
    options = {"lr": 0.0, "policy_lr": 5e-3, "warmup_updates": 0, "alpha": alpha}
    torch.manual_seed(0)
    agent = brac.BRAC(make_args(divergence="kl", **options), make_task(brac, 1, 1), "cpu")
    set_gaussian(agent.behavior, 0.0, std)
    set_gaussian(agent.policy, 0.1, 0.3)
    set_linear_critic(agent, slope)
    batch = make_batch(size=64, obs_dim=1, act_dim=1)
    for step in range(500):
        statistics = agent.update(batch)
        if step == 350:
            agent.optimizers["policy"].lr.fill_(5e-4)
    assert statistics["loss/policy"].isfinite().all()
    with torch.no_grad():
        mean, log_std = (
            part.mean(1).squeeze(1).numpy() for part in agent.policy(batch["observations"])
        )
    assert mean == pytest.approx(slope * std**2 / alpha, rel=0.1)
    assert np.exp(log_std) == pytest.approx(std, rel=0.1)


def test_b_learns_the_datas_gaussian():
    args = make_args(divergence="kl", behavior_lr=1e-2, num_samples=1)
    torch.manual_seed(0)
    agent = brac.BRAC(args, make_task(brac, 1, 1), "cpu")
    for step in range(400):
        s = 2 * torch.rand(2, 128, 1) - 1
        x = 0.5 * s + 0.2 * torch.randn_like(s)
        agent.update_behavior({"observations": s, "actions": x.tanh()})
        if step == 300:
            agent.optimizers["behavior"].lr.fill_(1e-3)
    assert (agent.temperature < 0.2).all()  # b has more entropy than -1
    s = torch.linspace(-0.9, 0.9, 19).view(1, 19, 1).expand(2, -1, -1)
    with torch.no_grad():
        mean, log_std = agent.behavior(s)
    assert abs(mean - 0.5 * s).max() < 0.12
    assert log_std.exp().mean((1, 2)).numpy() == pytest.approx(0.2, rel=0.15)


# ---- Settings and data ----


def test_settings_are_the_published_ones():
    found = {name: brac.apply_settings(brac.Args(divergence=name)) for name in DIVERGENCES}
    assert brac.apply_settings(brac.Args()) == found["kl"]
    assert (found["kl"].alpha, found["kl"].policy_lr) == (1, 3e-5)
    assert (found["kl_dual"].alpha, found["kl_dual"].policy_lr) == (10, 3e-6)
    agent = brac.BRAC(found["kl"], make_task(brac), "cpu")
    assert [w.shape[2] for w in agent.policy.net.parameters()][::2] == [200, 200, 4]
    assert [w.shape[2] for w in agent.critic.net.parameters()][::2] == [300, 300, 1]
    assert [(phase.name, phase.scored) for phase in agent.phases] == [
        ("behavior", False),
        ("train", True),
    ]
    agent = brac.BRAC(found["kl_dual"], make_task(brac), "cpu")
    assert [phase.name for phase in agent.phases] == ["train"]


ROWS = {"observations": np.eye(4), "actions": np.arange(8).reshape(4, 2), "rewards": range(4)}
ROWS |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 1, 1]}


def prepare(task=None, **options) -> dict:
    data = make_data(ROWS, episode_end=[False, True, False, True])
    return brac.prepare_data(make_args(**options), data, task or make_task(brac))


def test_what_cannot_work_is_refused(capsys):
    for name in ("num_samples", "dual_steps", "behavior_updates"):
        with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be at least 1"):
            prepare(**{name: 0})
    with pytest.raises(SystemExit, match="--mmd-sigma must be above 0"):
        prepare(mmd_sigma=0.0)
    with pytest.raises(SystemExit, match="A-v0: .*bounds"):
        prepare(make_task(brac, action_low=None))
    with pytest.raises(SystemExit, match="next actions are unknown"):
        prepare(make_task(brac, ordered=False), divergence="kl_dual")
    prepare(num_updates=51, warmup_updates=50)
    assert capsys.readouterr().out == ""
    prepare(num_updates=50, warmup_updates=50)
    assert "all updates are warm-up" in capsys.readouterr().out


def test_next_actions_are_asked_for_only_where_the_target_needs_them():
    for options in ({"divergence": "kl"}, {"divergence": "kl_dual", "penalty": "p"}):
        found = prepare(**options)
        assert found["rewards"].tolist() == [0, 1, 2, 3] and "next_actions" not in found
    found = prepare(divergence="kl_dual", penalty="v")
    assert found["rewards"].tolist() == [0, 1, 2]
    assert found["next_actions"][[0, 2]].tolist() == [[2, 3], [6, 7]]
