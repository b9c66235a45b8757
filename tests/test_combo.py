"""Tests of algorithms/combo.py: its conservative term, its mixture, and answers that are known.

Its model and the ring of the model's rows have the text of mopo.py: see test_mopo.py.

python -m pytest tests/test_combo.py
"""

import numpy as np
import pytest
import torch

import combo
import mopo
from tests.helpers import forward, make_batch, make_task

SMALL = {
    "num_seeds": 2,
    "batch_size": 32,
    "hidden": 16,
    "members": 4,
    "elites": 2,
    "model_hidden": 16,
    "rollouts": 40,
    "rollout_length": 3,
    "retain": 2,
    "weight": 5.0,
    "num_actions": 3,
}


def make_agent(**options) -> combo.COMBO:
    """Return two agents with small networks and filled rings."""
    torch.manual_seed(0)
    task = make_task(combo, env_id="Hopper-v4", transitions=64)
    agent = combo.COMBO(combo.Args(**SMALL | options), task, torch.device("cpu"))
    agent.roll_out(data_buffer(agent))
    return agent


def data_buffer(agent) -> combo.ReplayBuffer:
    """Return data of a Hopper that stands."""
    columns = {key: column[0] for key, column in make_batch(1, 64).items()}
    columns["observations"] *= 0.05
    columns["observations"][:, 0] += 1
    return combo.ReplayBuffer(columns, agent.args, torch.device("cpu"))


def filled_rows(agent, n: int) -> torch.Tensor:
    return agent.model_rows.rows[n, : agent.model_rows.size[n]]


# ---- The formulas ----


@pytest.mark.parametrize("penalized", ["model", "mix"])
def test_the_gap_is_the_closed_form(penalized, monkeypatch):
    """The soft maximum runs over all nine actions of a state, not over three at a time."""
    agent = make_agent(lr=0.0, policy_lr=0.0, polyak=0.0, penalized=penalized, real_ratio=0.25)
    rows = agent.model_rows.sample(24)
    monkeypatch.setattr(agent.model_rows, "sample", lambda count: rows)
    batch, proposed = make_batch(), []
    proposals = agent.proposals

    def noted_proposals(s, s2):
        proposed.append(proposals(s, s2))
        return proposed[0]

    monkeypatch.setattr(agent, "proposals", noted_proposals)
    statistics = agent.update(batch)
    actions, log_density = (part.double().numpy() for part in proposed[0])
    first = 8 if penalized == "model" else 0
    for n in range(2):
        keys = ("observations", "actions")
        s, a = (torch.cat([batch[k][n, :8], rows[k][n]]).double().numpy() for k in keys)
        gaps = []
        for net in (2 * n, 2 * n + 1):
            data_q = forward(agent.critic.net, net, np.hstack([s, a])[:8], masks=(1, 1, 1)).mean()
            maxima = []
            for i, state in enumerate(s[first:]):
                inputs = np.hstack([np.tile(state, (9, 1)), actions[n, i]])
                scores = (
                    forward(agent.critic.net, net, inputs, masks=(1, 1, 1))[:, 0]
                    - log_density[n, i]
                )
                maxima.append(np.log(np.exp(scores).sum()))
            gaps.append(np.mean(maxima) - data_q)
        assert statistics["gap"][n].item() == pytest.approx(np.mean(gaps), rel=1e-4)
        expected = statistics["loss/td"][n].item() + 5 * np.sum(gaps)
        assert statistics["loss/critic"][n].item() == pytest.approx(expected, rel=1e-4)


def test_actions_of_the_gap_come_with_their_densities():
    agent = make_agent()
    s, s2 = torch.randn(2, 2, 6, 4)
    with torch.no_grad():
        actions, log_density = agent.proposals(s, s2)
        assert actions.shape == (2, 6, 9, 2) and (abs(actions) < 1).all()
        assert torch.allclose(log_density[:, :, :3], torch.tensor(0.25).log())
        for source, states in ((slice(3, 6), s), (slice(6, 9), s2)):
            mean, log_std = (part.unsqueeze(2) for part in agent.policy(states))
            x = actions[:, :, source].atanh()
            normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(x)
            expected = (normal - (1 - x.tanh() ** 2).log()).sum(-1)
            torch.testing.assert_close(log_density[:, :, source], expected, rtol=1e-3, atol=1e-3)


def test_without_its_term_it_is_mbpo(monkeypatch):
    """That is SAC on a mixture of rows, which MOPO is, too, without its penalty."""
    agent = make_agent(weight=0.0, backup_entropy=True, layers=2, real_ratio=0.25)
    options = SMALL | {"penalty": 0.0, "real_ratio": 0.25}
    known = mopo.Args.__dataclass_fields__
    args = mopo.Args(**{key: value for key, value in options.items() if key in known})
    other = mopo.MOPO(args, make_task(mopo, env_id="Hopper-v4", transitions=64), "cpu")
    state = agent.state_dict()
    other.load_state_dict({k: state.get(k, v) for k, v in other.state_dict().items()})
    for seed in range(3):
        batch = make_batch(seed=seed)
        rows = agent.model_rows.sample(24)
        draw = torch.Generator().manual_seed(seed)
        at_s, at_s2 = torch.randn(2, 2, 32, 2, generator=draw)
        # COMBO samples at s first, MOPO at s'. What COMBO's gap draws has no effect.
        for learner, noise in ((agent, [at_s, at_s2]), (other, [at_s2, at_s])):
            given = iter(noise)

            def next_noise(like, given=given):
                return next(given, torch.zeros(like.numel())).reshape(like.shape)

            monkeypatch.setattr(torch, "randn_like", next_noise)
            monkeypatch.setattr(learner.model_rows, "sample", lambda count, rows=rows: rows)
            learner.update(batch)
    for name, value in other.state_dict().items():
        if name in state:
            torch.testing.assert_close(agent.state_dict()[name], value, msg=name)
    for name, optimizer in other.optimizers.items():
        torch.testing.assert_close(agent.optimizers[name].state(), optimizer.state())
    assert not torch.equal(agent.critic.net[0].weight, make_agent(layers=2).critic.net[0].weight)


# ---- Rollouts ----


@pytest.mark.parametrize("who", ["policy", "uniform"])
def test_the_current_policy_acts_in_the_model_or_chance(who):
    agent = make_agent(rollout_policy=who, rollouts=2_000)
    actions = filled_rows(agent, 0)[:, 4:6]
    uniform_std = 1 / np.sqrt(3)
    with torch.no_grad():
        agent.policy.net[-1].bias[..., :2] += 3
    agent.roll_out(data_buffer(agent))
    later = filled_rows(agent, 0)[-1_500:, 4:6]
    if who == "policy":
        assert later.mean() > 0.9
    else:
        for drawn in (actions, later):
            assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - uniform_std) < 0.02


def test_rewards_of_the_model_are_not_lowered(monkeypatch):
    """With certain networks, the rewards are the mean of an elite network."""
    agent = make_agent()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    obs = torch.randn(2, 6, 4)
    with torch.no_grad():
        step = agent.imagine(obs)
        mean, _ = agent.model(agent.standardize(obs), step["actions"])
    for n in range(2):
        rewards = mean[n, agent.elites[n], :, -1]
        distances = (rewards - step["rewards"][n]).abs().amin(0)
        assert (distances < 1e-6).all()


def test_a_batch_is_half_of_the_data_and_half_of_the_model():
    agent = make_agent(batch_size=256)
    assert agent.args.real_ratio == 0.5
    agent.model_rows.rows.fill_(7)
    mixed = agent.mix(make_batch(size=256), 128)
    for key, column in mixed.items():
        assert torch.equal(column[:, :128], make_batch(size=256)[key][:, :128])
        assert column.shape == make_batch(size=256)[key].shape and (column[:, 128:] == 7).all()


@pytest.mark.parametrize("terminal", [0.0, 1.0])
def test_the_target_ends_at_terminals_of_the_data_and_of_the_model(terminal):
    batch = make_batch()
    batch["terminals"].fill_(terminal)
    losses = []
    for shift in (0.0, 1.0):
        agent = make_agent()
        agent.model_rows.rows[..., 7] = terminal
        with torch.no_grad():
            agent.critic_target.net[-1].bias += shift
        torch.manual_seed(1)
        losses.append(agent.update(batch)["loss/td"])
    assert torch.equal(*losses) == bool(terminal)


# ---- Known answers ----


def test_q_is_lowered_where_only_the_model_has_been():
    """All rewards are 0 and all episodes end, so Q is 0 without the term.

    With it, Q falls at the actions of pi in states of the model, and rises at the recorded ones.
    """
    found = {}
    for weight in (0.0, 1.0):
        agent = make_agent(weight=weight, lr=3e-3, num_actions=10, batch_size=64)
        draw = torch.Generator().manual_seed(0)
        agent.model_rows.rows[..., 0] += 3  # the model's states are other states
        agent.model_rows.rows[..., 6] = 0
        agent.model_rows.rows[..., 7] = 1
        for _ in range(150):
            s = torch.randn(2, 64, 4, generator=draw)
            batch = {"observations": s, "next_observations": s, "actions": 0.3 * s[..., :2].tanh()}
            batch |= {"rewards": torch.zeros(2, 64), "terminals": torch.ones(2, 64)}
            agent.update(batch)
        with torch.no_grad():
            rows = agent.model_rows.sample(500)
            actions, _ = agent.policy.sample(rows["observations"], 1)
            model_q = agent.critic(rows["observations"], actions.squeeze(2)).mean((1, 2))
            data_q = agent.critic(batch["observations"], batch["actions"]).mean((1, 2))
        found[weight] = model_q, data_q
    assert all(abs(q).max() < 0.1 for q in found[0.0])
    model_q, data_q = found[1.0]
    assert (model_q < -0.2).all() and (data_q > 0.1).all()


# ---- Settings and bad input ----


@pytest.mark.parametrize(
    "env, length, weight",
    [
        ("rebuilt/hopper/medium-replay-81k-v0", 5, 0.5),
        ("rebuilt/halfcheetah/medium-replay-108k-v0", 5, 0.5),
        ("rebuilt/hopper/medium-snapshot5-v0", 5, 5.0),
        ("halfcheetah-medium-expert-v2", 5, 5.0),
        ("walker2d-medium-v2", 1, 5.0),
        ("walker2d-medium-replay-v2", 1, 0.5),
    ],
)
def test_settings_are_the_published_ones(env, length, weight):
    args = combo.apply_settings(combo.Args(env=env))
    assert (args.rollout_length, args.weight) == (length, weight)


@pytest.mark.parametrize("real_ratio", [0.0, 0.02, 1.0])
def test_a_batch_without_data_or_without_the_model_is_refused(real_ratio):
    args = combo.Args(**SMALL | {"real_ratio": real_ratio})
    with pytest.raises(SystemExit, match="--real-ratio must leave rows"):
        combo.prepare_data(args, {}, make_task(combo, env_id="Hopper-v4"))


def test_actions_without_bounds_are_refused():
    task = make_task(combo, env_id="Some-v0", action_low=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        combo.prepare_data(combo.Args(), {}, task)
