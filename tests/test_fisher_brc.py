"""Tests of algorithms/fisher_brc.py: its mathematics, its data, and problems with known answers.

python -m pytest tests/test_fisher_brc.py
"""

import numpy as np
import pytest
import torch

import fisher_brc
from tests.helpers import copies_of, forward, keep_gradients, make_batch, make_data, make_task
from tests.parity import harness

THREE_LAYERS = (1, 1, 1)  # of hidden units, none of them dropped


def make_args(**options) -> fisher_brc.Args:
    """Return arguments of two agents with small networks, completed by SETTINGS."""
    settings = {"hidden": 16, "num_seeds": 2, "components": 3, "behavior_updates": 10}
    return fisher_brc.apply_settings(fisher_brc.Args(**settings | options))


def make_agent(**options) -> fisher_brc.FisherBRC:
    """Return two agents with O' apart from O, and with outputs that are not near 0."""
    torch.manual_seed(0)
    agent = fisher_brc.FisherBRC(make_args(**options), make_task(fisher_brc), "cpu")
    with torch.no_grad():
        for net in (agent.offset.q1, agent.offset.q2, agent.policy.net, agent.behavior.net):
            net[-1].weight *= 60
        for weight in agent.offset_target.parameters():
            weight += 0.1
        agent.log_alpha.copy_(torch.tensor([0.4, -0.3]))
        agent.log_tau.copy_(torch.tensor([-0.7, 0.2]))
    return agent


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


def log_normal(x, mean, log_std) -> np.ndarray:
    """Return the log density of tanh(x), in each dimension."""
    log_gauss = -(((x - mean) / np.exp(log_std)) ** 2) / 2 - log_std - np.log(2 * np.pi) / 2
    return log_gauss + 2 * np.log(np.cosh(x))  # 1 - tanh^2 = 1 / cosh^2


def mixture(agent, n: int, s) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, means and log stds of mu: (B, act, components)."""
    output = forward(agent.behavior.net, n, s).reshape(len(s), 3, -1, agent.behavior.components)
    odds = np.exp(output[:, 0])
    return odds / odds.sum(2, keepdims=True), output[:, 1], output[:, 2].clip(-20, 2)


def log_mu(agent, n: int, s, a) -> np.ndarray:
    """Return log mu(a|s): (B,)"""
    weight, mean, log_std = mixture(agent, n, s)
    x = np.arctanh(a.clip(-1 + 1e-6, 1 - 1e-6))[..., None]
    return np.log((weight * np.exp(log_normal(x, mean, log_std))).sum(2)).sum(1)


def policy(agent, n: int, s, noise) -> tuple[np.ndarray, np.ndarray]:
    """Return an action of pi and its log density."""
    mean, log_std = np.split(forward(agent.policy.net, n, s, THREE_LAYERS), 2, 1)
    x = mean + np.exp(log_std.clip(-20, 2)) * noise
    return np.tanh(x), log_normal(x, mean, log_std.clip(-20, 2)).sum(1)


def offsets(twins, n: int, s, a) -> np.ndarray:
    x = np.concatenate([s, a], 1)
    return np.stack([forward(net, n, x, THREE_LAYERS)[:, 0] for net in (twins.q1, twins.q2)])


def chain(net, n: int, s, a) -> tuple[list, list, np.ndarray]:
    """Return a network's weights, the masks of its hidden units, and its slopes by the action."""
    x, masks = np.concatenate([s, a], 1), []
    layers = [layer for layer in net if list(layer.parameters())]
    weights = [layer.weight[n].detach().double().numpy() for layer in layers]
    for layer, weight in zip(layers[:-1], weights[:-1], strict=True):
        x = x @ weight + layer.bias[n].detach().double().numpy()
        masks.append((x > 0).astype(float))
        x = np.maximum(x, 0)
    weights[0] = weights[0][s.shape[1] :]
    slope = np.broadcast_to(weights[0], (len(s), *weights[0].shape))
    for mask, weight in zip(masks, weights[1:], strict=True):
        slope = (slope * mask[:, None]) @ weight
    return weights, masks, slope[..., 0]


def rows_of(batch: dict, n: int) -> dict:
    return {key: column[n].double().numpy() for key, column in batch.items()}


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_losses_are_the_formulas(weight, monkeypatch):
    """With weight 0 they are SAC's, without entropy in the target: Q is O + log mu."""
    # With rates of 0 the formulas can be read off the networks after the update.
    with harness.default_dtype({"dtype": "float64"}):
        agent = make_agent(fisher_weight=weight, lr=0.0, polyak=0.0)
        batch = harness.tensors(make_batch())
        batch["actions"][:, 0] = 1  # kept 1e-6 from the bound, which float32 can only round
        noise = NotedNoise(monkeypatch)
        found = agent.update(batch)
    for n in range(2):
        rows, (next_noise, slope_noise, pi_noise) = rows_of(batch, n), noise.of(n)
        s, a, s2 = rows["observations"], rows["actions"], rows["next_observations"]
        next_a, _ = policy(agent, n, s2, next_noise)
        next_q = offsets(agent.offset_target, n, s2, next_a) + log_mu(agent, n, s2, next_a)
        target = rows["rewards"] + 0.99 * (1 - rows["terminals"]) * next_q.min(0)
        q = offsets(agent.offset, n, s, a) + log_mu(agent, n, s, a)
        slope_a, _ = policy(agent, n, s, slope_noise)
        twins = (agent.offset.q1, agent.offset.q2)
        slopes = [chain(net, n, s, slope_a)[2] for net in twins]
        pi_a, log_pi = policy(agent, n, s, pi_noise)
        pi_q = (offsets(agent.offset, n, s, pi_a) + log_mu(agent, n, s, pi_a)).min(0)
        alpha = np.exp([0.4, -0.3][n])
        expected = {
            "loss/td": ((q - target) ** 2).mean(1).sum(),
            "loss/policy": (alpha * log_pi - pi_q).mean(),
            "penalty": sum((slope**2).sum(1).mean() for slope in slopes),
            "value": q.mean(),
            "alpha": alpha,
            "entropy": -log_pi.mean(),
        }
        assert expected.keys() == found.keys()
        for name, number in expected.items():
            assert found[name][n].item() == pytest.approx(number, rel=1e-8), name


def gradients_of_penalty(net, n: int, s, a) -> list[np.ndarray]:
    """Return the gradients of the mean squared slope by the weights, from the last to the first.

    The slope is a product W_1 D_1 W_2 D_2 W_3 D_3 w of weights of the action, the masks D and so
    on. For the derivative by one factor, the others stand to its left and right. Masks are steps,
    so the gradients by the biases are 0.
    """
    weights, masks, slope = chain(net, n, s, a)
    found = []
    for k in reversed(range(len(weights))):
        left = np.broadcast_to(np.eye(a.shape[1]), (len(a), a.shape[1], a.shape[1]))
        for weight, mask in zip(weights[:k], masks[:k], strict=True):
            left = (left @ weight) * mask[:, None]  # (B, act, in of k)
        right = np.ones((len(a), 1, 1))
        for weight, mask in reversed(list(zip(weights[k + 1 :], masks[k:], strict=True))):
            right = mask[:, :, None] * (weight @ right)  # (B, out of k, 1)
        outer = np.einsum("bai,ba,bo->io", left, 2 * slope, right[..., 0])
        found.append(outer / len(a))
    return found


def test_the_gradient_of_the_penalty_is_the_one_by_hand(monkeypatch):
    gradients = []
    with harness.default_dtype({"dtype": "float64"}):
        batch = harness.tensors(make_batch())
        for weight in (0.0, 1.0):
            agent = keep_gradients(make_agent(fisher_weight=weight, lr=0.0))
            torch.manual_seed(1)
            with monkeypatch.context() as patch:
                noise = NotedNoise(patch)
                agent.update(batch)
            gradients.append([p.grad.numpy().copy() for p in agent.offset.parameters()])
    difference = [two - one for one, two in zip(*gradients, strict=True)]
    for n in range(2):
        rows = rows_of(batch, n)
        a, _ = policy(agent, n, rows["observations"], noise.of(n)[1])
        for i, net in enumerate((agent.offset.q1, agent.offset.q2)):
            part = difference[8 * i : 8 * i + 8]  # weight and bias of four layers
            last_first = part[::2][::-1]
            by_hand = gradients_of_penalty(net, n, rows["observations"], a)
            by_hand[-1] = np.concatenate([np.zeros((4, 16)), by_hand[-1]])  # of the observation
            for found, expected in zip(last_first, by_hand, strict=True):
                np.testing.assert_allclose(found[n], expected, rtol=1e-8, atol=1e-10)
                assert abs(expected).max() > 1e-3
            for found in part[1::2]:
                assert abs(found[n]).max() < 1e-10


def test_the_loss_of_mu_is_the_formula(monkeypatch):
    agent = make_agent(behavior_lr=0.0)
    batch = make_batch()
    noise = NotedNoise(monkeypatch)
    found = agent.update_behavior(batch)
    for n in range(2):
        rows, (uniform, normal) = rows_of(batch, n), noise.of(n)
        weight, mean, log_std = mixture(agent, n, rows["observations"])
        gumbel = -np.log(-np.log(uniform))
        pick = (np.log(weight) + gumbel).argmax(2)[..., None]
        chosen = [np.take_along_axis(part, pick, 2)[..., 0] for part in (mean, log_std)]
        own = np.tanh(chosen[0] + np.exp(chosen[1]) * normal)
        entropy = -log_mu(agent, n, rows["observations"], own).mean()
        fit = log_mu(agent, n, rows["observations"], rows["actions"]).mean()
        tau = np.exp([-0.7, 0.2][n])
        expected = {"loss/behavior": -tau * entropy - fit, "entropy/behavior": entropy, "tau": tau}
        assert expected.keys() == found.keys()
        for name, number in expected.items():
            assert found[name][n].item() == pytest.approx(number, rel=1e-4), name


def test_a_mixture_is_a_density_and_its_samples_are_its_own():
    torch.manual_seed(0)
    agent = fisher_brc.FisherBRC(make_args(components=2), make_task(fisher_brc, 1, 1), "cpu")
    net = agent.behavior.net[-1]
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([np.log(3), 0, -0.5, 0.6, np.log(0.2), np.log(0.1)]))
        grid = torch.linspace(-0.9995, 0.9995, 4000).view(1, -1, 1).expand(2, -1, -1)
        density = agent.behavior.log_prob(torch.zeros_like(grid), grid).exp()
        samples = agent.behavior.sample(torch.zeros(2, 20_000, 1)).squeeze(2)
    cumulative = density.cumsum(1) * (grid[0, 1, 0] - grid[0, 0, 0])
    assert cumulative[:, -1].numpy() == pytest.approx(1, abs=1e-3)
    for x in (-0.7, -0.4, 0.0, 0.5, 0.6):
        below = cumulative[:, (grid[0, :, 0] <= x).sum() - 1]
        assert (samples <= x).double().mean(1).numpy() == pytest.approx(below.numpy(), abs=0.012)
    assert cumulative[0, (grid[0, :, 0] <= 0).sum() - 1].item() == pytest.approx(0.75, abs=0.01)


# ---- The updates ----


def test_what_follows_what():
    agent = make_agent(polyak=0.1)
    before = {name: copies_of(net.parameters()) for name, net in agent.named_children()}
    agent.update(make_batch())
    assert all(map(torch.equal, before["behavior"], agent.behavior.parameters()))
    assert not any(map(torch.equal, before["policy"], agent.policy.parameters()))
    pairs = zip(agent.offset_target.parameters(), agent.offset.parameters(), strict=True)
    for old, (target, source) in zip(before["offset_target"], pairs, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * source)
    before = copies_of([*agent.offset.parameters(), *agent.policy.parameters()])
    agent.update_behavior(make_batch())
    after = [*agent.offset.parameters(), *agent.policy.parameters()]
    assert all(map(torch.equal, before, after))


def test_temperatures_move_against_the_excess_of_entropy():
    agent = make_agent()
    with torch.no_grad():
        for net, scale in ((agent.policy.net[-1], slice(2, 4)), (agent.behavior.net[-1], -6)):
            net.weight.zero_()
            columns = scale if isinstance(scale, slice) else slice(scale, None)
            net.bias[0, :, columns] = -4  # sharp: an entropy below -2
            net.bias[1, :, columns] = -0.5
    alpha, tau = agent.log_alpha.clone(), agent.log_tau.clone()
    assert (agent.update(make_batch())["entropy"] + 2).sign().tolist() == [-1, 1]
    assert (agent.log_alpha - alpha).detach().numpy() == pytest.approx([3e-4, -3e-4], rel=1e-2)
    entropy = agent.update_behavior(make_batch())["entropy/behavior"]
    assert (entropy + 2).sign().tolist() == [-1, 1]
    assert (agent.log_tau - tau).detach().numpy() == pytest.approx([1e-3, -1e-3], rel=1e-2)


def test_the_learning_rate_of_mu_falls_twice():
    agent = make_agent(behavior_lr=1.0, behavior_updates=20)
    rates = []
    for _ in range(20):
        agent.update_behavior(make_batch())
        rates.append(
            [agent.optimizers[name].lr.item() for name in ("behavior", "behavior_temperature")]
        )
    # As PiecewiseConstantDecay, which still has the old rate at the boundary.
    expected = [1.0] * 17 + [0.1] * 2 + [0.01]
    assert np.array(rates) == pytest.approx(np.repeat(np.array(expected)[:, None], 2, 1))


def test_outputs_begin_near_0_and_pi_acts_at_its_mean():
    args = make_args()
    agent = fisher_brc.FisherBRC(args, make_task(fisher_brc), "cpu")
    obs = make_batch()["observations"]
    with torch.no_grad():
        agent.policy.net[-1].bias += 0.5
        torch.testing.assert_close(agent.act(obs), agent.policy(obs)[0].tanh())
        agent.policy.net[-1].bias -= 0.5
    mean, log_std = agent.policy(obs)
    assert abs(mean).max() < 0.1 and abs(log_std).max() < 0.1
    assert abs(agent.offset(obs, make_batch()["actions"])).max() < 0.1
    weight = agent.offset.q1[2].weight[0].detach()
    torch.testing.assert_close(weight.T @ weight, 2 * torch.eye(16), atol=1e-5, rtol=0)
    _, log_std = make_agent().policy(1e4 * obs)
    assert log_std.min() == -20 and log_std.max() == 2


# ---- A bandit ----


def trained(weight: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the means and stds of pi, and the slopes of O, after a bandit that pays 2 a.

    mu is the Gaussian N(0, 0.2) behind a tanh, and alpha stays 1.
    """
    torch.manual_seed(0)
    args = make_args(fisher_weight=weight, components=1, hidden=32, lr=2e-3)
    agent = fisher_brc.FisherBRC(args, make_task(fisher_brc, 1, 1), "cpu")
    agent.optimizers["temperature"].lr.fill_(0)
    with torch.no_grad():
        agent.behavior.net[-1].weight.zero_()
        agent.behavior.net[-1].bias.copy_(torch.tensor([0, 0, np.log(0.2)]))
    for _ in range(400):
        s = 2 * torch.rand(2, 128, 1) - 1
        a = (0.2 * torch.randn_like(s)).tanh()
        ends = torch.ones(2, 128)
        batch = {"observations": s, "actions": a, "next_observations": s, "terminals": ends}
        agent.update(batch | {"rewards": 2 * a.squeeze(2)})
    s = torch.linspace(-0.9, 0.9, 19).view(1, 19, 1).expand(2, -1, -1)
    mean, log_std = agent.policy(s)
    a = torch.zeros_like(s).requires_grad_()
    (slope,) = torch.autograd.grad(agent.offset(s, a)[:, 0].sum(), [a])
    return mean.detach().numpy(), log_std.exp().detach().numpy(), slope.numpy()


def test_a_large_weight_makes_pi_the_behaviour_policy():
    mean, std, slope = trained(1e4)
    assert abs(mean).max() < 0.05 and abs(slope).max() < 0.1
    assert std == pytest.approx(0.2, rel=0.2)


def test_without_the_penalty_o_outweighs_log_mu_and_pi_leaves_the_data():
    mean, _, _ = trained(0.0)
    assert (np.median(mean, axis=1) > 0.2).all(), mean


def test_mu_learns_both_modes_of_the_data():
    torch.manual_seed(0)
    args = make_args(components=5, hidden=32, behavior_lr=1e-2, behavior_updates=400)
    agent = fisher_brc.FisherBRC(args, make_task(fisher_brc, 1, 1), "cpu")
    for _ in range(400):
        s = torch.rand(2, 128, 1)
        side = torch.where(torch.rand_like(s) < 0.5, 0.6, -0.6)
        found = agent.update_behavior(
            {"observations": s, "actions": (side + 0.1 * torch.randn_like(s)).tanh()}
        )
    # Half of a Gaussian's density each, in nats: log 2 + log(0.1 sqrt(2 pi e)) + E log(1 - tanh^2)
    with torch.no_grad():
        modes = agent.behavior.log_prob(s, torch.full_like(s, 0.6).tanh() * side.sign())
        middle = agent.behavior.log_prob(s, torch.zeros_like(s))
    expected = np.log(0.5 / (0.1 * np.sqrt(2 * np.pi))) + 2 * np.log(np.cosh(0.6))
    assert modes.mean(1).numpy() == pytest.approx(expected, abs=0.25)
    assert (middle.mean(1) < modes.mean(1) - 3).all(), (middle, found)


# ---- Settings and data ----


def test_settings_are_the_published_ones():
    args = fisher_brc.apply_settings(fisher_brc.Args())
    assert (args.fisher_weight, args.reward_bonus) == (0.1, 5.0)
    agent = fisher_brc.FisherBRC(args, make_task(fisher_brc), "cpu")
    widths = {
        "offset": [256, 256, 256, 1],
        "policy": [256, 256, 256, 4],
        "behavior": [256, 256, 30],
    }
    for name, expected in widths.items():
        net = agent.offset.q1 if name == "offset" else getattr(agent, name).net
        assert [weight.shape[2] for weight in net.parameters()][::2] == expected
    phases = [(phase.name, phase.num_updates, phase.scored) for phase in agent.phases]
    assert phases == [("behavior", 10**6, False), ("train", 10**6, True)]


ROWS = {"observations": np.eye(4), "actions": np.zeros((4, 2)), "rewards": range(4)}
ROWS |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 0, 1]}


def test_the_bonus_is_added_and_rows_without_a_next_state_are_left_out():
    task = make_task(fisher_brc)
    found = fisher_brc.prepare_data(make_args(reward_bonus=3.0), make_data(ROWS), task)
    assert found["rewards"].tolist() == [3, 4, 6] and found["rewards"].dtype == np.float32
    assert (task.reward_scale, task.reward_shift) == (1, 3)


def test_what_cannot_work_is_refused():
    for name in ("components", "behavior_updates"):
        with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} must be at least 1"):
            fisher_brc.prepare_data(make_args(**{name: 0}), make_data(ROWS), make_task(fisher_brc))
    task = make_task(fisher_brc, action_low=None)
    with pytest.raises(SystemExit, match="A-v0: .*bounds"):
        fisher_brc.prepare_data(make_args(), make_data(ROWS), task)
