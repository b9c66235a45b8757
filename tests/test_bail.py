"""Tests of algorithms/bail.py: its mathematics, its selection, and answers that are known.

python -m pytest tests/test_bail.py
"""

import copy

import numpy as np
import pytest
import torch

import bail
from tests.helpers import copies_of, forward, keep_gradients, make_data, make_task


def make_args(**options) -> bail.Args:
    """Return arguments of a small run, completed as a run does it."""
    small = {"env": "Pendulum-v1", "num_seeds": 2, "batch_size": 64, "num_updates": 400}
    small |= {"hidden": 32, "envelope_hidden": 32, "envelope_updates": 1000, "validate_every": 100}
    return bail.apply_settings(bail.Args(**small | options))


def make_agent(obs_dim: int = 4, act_dim: int = 2, **options) -> bail.BAIL:
    """Return two agents with small networks, and a best envelope that is not the current one."""
    torch.manual_seed(0)
    agent = bail.BAIL(make_args(**options), make_task(bail, obs_dim, act_dim), "cpu")
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return agent


def make_rows(size: int = 32, seed: int = 0) -> dict:
    """Return random rows, of which every fifth is held out."""
    draw = torch.Generator().manual_seed(seed)
    rows = {"observations": torch.randn(2, size, 4, generator=draw)}
    rows["actions"] = torch.randn(2, size, 2, generator=draw).tanh()
    rows["returns"] = 2 + 3 * torch.randn(2, size, generator=draw)
    rows["held_out"] = torch.zeros(2, size)
    rows["held_out"][:, ::5] = 1
    return rows


def numbers(*tensors) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def values_of(net, obs) -> np.ndarray:
    """Return V of both agents by NumPy: (2, B)."""
    (obs,) = numbers(obs)
    return np.stack([forward(net.net, n, obs[n])[:, 0] for n in range(2)])


# ---- Returns ----


def episode(rewards: list, terminal: bool, states: list) -> dict:
    """Return the columns of one episode with states of one number."""
    columns = {"rewards": rewards, "observations": np.array(states)[:, None]}
    columns["actions"] = np.zeros((len(rewards), 1))
    columns["terminals"] = [0] * (len(rewards) - 1) + [terminal]
    columns["episode_end"] = [0] * (len(rewards) - 1) + [1]
    return columns


def returns_of(*episodes: dict, **options) -> np.ndarray:
    columns = {key: np.concatenate([part[key] for part in episodes]) for key in episodes[0]}
    end = columns.pop("episode_end")
    return bail.monte_carlo_returns(make_args(**options), make_data(columns, end))


def test_returns_are_discounted_sums_and_end_with_the_episode():
    ended = [episode([1, 2, 3], True, [0, 1, 2]), episode([5, 7], True, [0, 1])]
    found = returns_of(*ended, discount=0.5)
    np.testing.assert_allclose(found, [1 + 2 / 2 + 3 / 4, 2 + 3 / 2, 3, 5 + 7 / 2, 7])


def test_returns_go_on_at_the_nearest_row_where_time_ended_the_episode():
    """Row 4 is the last one, and the states of row 2, then of row 0, are the nearest to its own."""
    rewards = [1.0, 2.0, 4.0, 8.0, 16.0]
    timed_out = episode(rewards, False, [5.0, 0.0, 5.2, 9.0, 5.11])
    plain = returns_of(timed_out, discount=0.5, extend=False)
    found = returns_of(timed_out, discount=0.5)
    added = (found - plain) / 0.5 ** np.arange(5, 0, -1)
    # Row 1 may go on at rows 0 to 4, row 2 at 0 to 3, row 3 at 0 to 2, row 4 at 0 and 1.
    sums = [0, 16, 4 + 8 / 2, 4 + 8 / 2 + 16 / 4, 1 + 2 / 2 + 4 / 4 + 8 / 8]
    np.testing.assert_allclose(added, sums)
    # Cut by the end of the data, it is the same; ended by the task, it is not.
    unfinished = timed_out | {"episode_end": [0] * 5}
    np.testing.assert_allclose(returns_of(unfinished, discount=0.5), found)
    ended = episode(rewards, True, [5.0, 0.0, 5.2, 9.0, 5.11])
    np.testing.assert_allclose(returns_of(ended, discount=0.5), plain)


def test_the_nearest_row_is_euclids_and_the_first_of_equals():
    """The last row is at the origin. Rows 0 and 2 are 3 from it, row 1 is 3.5 from it."""
    timed_out = episode([1.0, 2.0, 4.0, 8.0, 16.0], False, range(5))
    timed_out["observations"] = np.array([(3, 0), (2.5, 2.5), (0, 3), (9, 9), (0, 0)])
    plain = returns_of(timed_out, discount=0.5, extend=False)
    added = (returns_of(timed_out, discount=0.5) - plain) / 0.5 ** np.arange(5, 0, -1)
    np.testing.assert_allclose(added, [0, 16, 1 + 1, 1 + 1 + 1, 1 + 1 + 1 + 1])


def test_with_extended_returns_equal_rewards_give_equal_returns():
    rng = np.random.default_rng(0)
    found = returns_of(episode([1.0] * 50, False, rng.normal(size=50)), discount=0.9)
    np.testing.assert_allclose(found, (1 - 0.9**50) / 0.1)


def test_a_fifth_is_held_out_but_never_the_row_of_the_largest_return():
    task = make_task(bail, 1, 1)
    draws = []
    for best in range(20):
        rewards = np.ones(20)
        rewards[best] = 9
        data = make_data({"rewards": rewards, "observations": np.zeros((20, 1))})
        data["actions"] = np.zeros((20, 1))
        columns = bail.prepare_data(make_args(), data, task)
        assert columns["held_out"].sum() == 4 and columns["held_out"][best] == 0
        np.testing.assert_allclose(columns["returns"], rewards)
        draws.append(columns["held_out"])
    assert np.all(np.sum(draws, axis=0)[np.argsort(draws[0])[-3:]] > 10)  # the same draw


# ---- The formulas ----


def test_the_envelope_loss_is_the_closed_form_over_the_rows_that_are_not_held_out():
    agent, batch = make_agent(penalty=7.0, envelope_lr=0.0), make_rows()
    found = agent.update_envelope(batch)
    v, (g,) = values_of(agent.envelope, batch["observations"]), numbers(batch["returns"])
    assert 0.2 < (v < g).mean() < 0.8
    loss = np.where(v >= g, 1, 7) * (v - g) ** 2
    trained = numbers(batch["held_out"])[0] == 0
    for n in range(2):
        expected = loss[n][trained[n]].mean()
        assert found["loss/envelope"][n].item() == pytest.approx(expected, rel=1e-5)
        assert found["gap"][n].item() == pytest.approx((v[n] - g[n]).mean(), rel=1e-4)


def test_the_envelope_begins_near_zero():
    torch.manual_seed(0)
    agent = bail.BAIL(make_args(), make_task(bail), "cpu")
    last = agent.envelope.net[-1]
    assert last.bias.abs().max() == 0
    # A tenth of nn.Linear's bound, for 32 hidden units
    assert 0.08 / 32**0.5 < last.weight.abs().max() <= 0.1 / 32**0.5


def test_the_gradient_has_lambda_times_the_weights():
    gradients = []
    for decay in (0.0, 0.3):
        agent = keep_gradients(make_agent(decay=decay))
        weights = copies_of(agent.envelope.parameters())
        agent.update_envelope(make_rows())
        gradients.append([parameter.grad for parameter in agent.envelope.parameters()])
    for plain, decayed, weight in zip(*gradients, weights, strict=True):
        torch.testing.assert_close(decayed, plain + 0.3 * weight, rtol=1e-4, atol=1e-3)


def test_the_ratio_is_guarded_where_v_is_below_one_and_the_margin_is_not():
    v, g = torch.tensor([[4.0, 1.0, 0.5, -2.0]]), torch.tensor([[2.0, -1.0, 1.0, 3.0]])
    ratio = make_agent(selection="ratio").nearness(v, g)
    expected = [0.5, -1.0, np.exp(0.5), 3 * np.exp(3.0)]
    torch.testing.assert_close(ratio, torch.tensor([expected], dtype=torch.float32))
    margin = make_agent(selection="margin").nearness(v, g)
    torch.testing.assert_close(margin, torch.tensor([[-2.0, -2.0, 0.5, 5.0]]))


def test_a_fraction_of_the_rows_is_rounded_down_to_one_at_least():
    assert [bail.count_of(0.25, rows) for rows in (1, 7, 8, 9)] == [1, 1, 2, 2]


def test_progressive_clones_the_best_quarter_of_each_batch_by_the_best_envelope():
    agent, batch = make_agent(variant="progressive", policy_lr=0.0), make_rows()
    v, (g,) = values_of(agent.best_envelope, batch["observations"]), numbers(batch["returns"])
    found = agent.update_both(batch)
    error = ((agent.act(batch["observations"]) - batch["actions"]) ** 2).mean(-1)
    (error,) = numbers(error)
    for n in range(2):
        best = np.argsort(g[n] - v[n])[-8:]
        assert found["border"][n].item() == pytest.approx((g[n] - v[n])[best[0]], abs=1e-5)
        assert found["loss/policy"][n].item() == pytest.approx(error[n, best].sum() / 32, rel=1e-4)


def test_each_update_trains_its_own_networks():
    for update, expected in (
        ("update_envelope", {"envelope"}),
        ("clone", {"policy"}),
        ("update_both", {"envelope", "policy"}),
    ):
        agent = make_agent()
        names = ("envelope", "best_envelope", "policy")
        old = {name: copies_of(getattr(agent, name).parameters()) for name in names}
        getattr(agent, update)(make_rows())
        moved = {
            name
            for name in names
            if not all(map(torch.equal, old[name], getattr(agent, name).parameters()))
        }
        assert moved == expected


# ---- Validation and selection ----


def make_buffer(agent, rows: int = 40) -> bail.ReplayBuffer:
    columns = {key: column[0, :rows].numpy() for key, column in make_rows(rows).items()}
    return bail.ReplayBuffer(columns, agent.args, torch.device("cpu"))


def test_validation_keeps_each_agents_weights_with_the_least_loss():
    agent = make_agent()
    buffer = make_buffer(agent)
    held_out = buffer.columns["held_out"] == 1
    obs = buffer.columns["observations"][held_out].repeat(2, 1, 1)
    (g,) = numbers(buffer.columns["returns"][held_out])

    def loss_of_current() -> np.ndarray:
        v = values_of(agent.envelope, obs)
        return (np.where(v >= g, 1, 1000) * (v - g) ** 2).mean(1)

    agent.validate(buffer)
    first = loss_of_current()
    np.testing.assert_allclose(agent.best_loss, first, rtol=1e-5)
    kept = copy.deepcopy(agent.envelope)
    with torch.no_grad():
        agent.envelope.net[-1].bias += torch.tensor([4.0, -4.0])[:, None, None]
    second = loss_of_current()
    assert second[0] < first[0] and second[1] > first[1]
    agent.validate(buffer)
    np.testing.assert_allclose(agent.best_loss, [second[0], first[1]], rtol=1e-5)
    best = values_of(agent.best_envelope, obs)
    np.testing.assert_allclose(best[0], values_of(agent.envelope, obs)[0])
    np.testing.assert_allclose(best[1], values_of(kept, obs)[1])


def test_batches_hold_nothing_but_the_best_rows_once_they_are_selected():
    agent = make_agent()
    with torch.no_grad():
        agent.envelope.net[-1].weight.mul_(20)  # so that the two agents select other rows
    buffer = make_buffer(agent)
    agent.select(buffer)
    obs = buffer.columns["observations"].repeat(2, 1, 1)
    (g,) = numbers(buffer.columns["returns"])
    near = g - values_of(agent.best_envelope, obs)
    best = [set(np.argsort(near[n])[-10:].tolist()) for n in range(2)]
    assert best[0] != best[1]
    for n in range(2):
        assert set(buffer.selected[n].tolist()) == best[n]
    batch = buffer.sample()
    assert batch["actions"].shape == (2, 64, 2)
    for n in range(2):
        drawn = (batch["returns"][n][:, None] == buffer.columns["returns"]).nonzero()[:, 1]
        assert set(drawn.tolist()) == best[n]
    # The last weights of the first phase are validated, too, and the choice is made only once.
    torch.testing.assert_close(
        list(agent.best_envelope.parameters()), list(agent.envelope.parameters())
    )
    selected = buffer.selected
    agent.select(buffer)
    assert buffer.selected is selected


# ---- Known answers ----


def train(args: bail.Args, columns: dict, phases: int = 2) -> bail.BAIL:
    """Train on these columns as train_phase() does, in the first phases."""
    torch.manual_seed(0)
    agent = bail.BAIL(args, make_task(bail, 1, 1), "cpu")
    buffer = bail.ReplayBuffer(columns, args, torch.device("cpu"))
    for phase in agent.phases[:phases]:
        for step in range(phase.num_updates):
            if phase.refresh is not None and step % phase.refresh_every == 0:
                phase.refresh(buffer)
            phase.updates[0](buffer.sample())
    return agent


def test_the_envelope_rises_above_every_return_as_k_grows():
    """Returns are uniform between 0 and 1 in all states. (2) is least where v / (1 - v) is the
    square root of K: at the mean for K = 1, near the largest return for a large K."""
    rng = np.random.default_rng(0)
    columns = {"observations": rng.uniform(-1, 1, (1000, 1)), "actions": np.zeros((1000, 1))}
    columns |= {"returns": np.linspace(0, 1, 1000), "held_out": np.arange(1000) % 5 == 0}
    obs = torch.linspace(-1, 1, 50).reshape(1, 50, 1).repeat(2, 1, 1)
    lowest = []
    for penalty in (1.0, 100.0, 1e6):
        options = {"penalty": penalty, "decay": 0.0, "batch_size": 500, "envelope_updates": 400}
        agent = train(make_args(**options), columns, phases=1)
        v = agent.best_envelope(obs)
        root = penalty**0.5
        if penalty < 1e6:  # there, V falls only slowly once it is above all returns
            assert v.mean().item() == pytest.approx(root / (1 + root), abs=0.05)
        lowest.append(v.min().item())
    assert lowest[0] < 0.6 < lowest[1] < 0.95 < 1 < lowest[2]


@pytest.mark.parametrize("variant", ["static", "progressive"])
@pytest.mark.parametrize("selection", ["ratio", "margin"])
def test_the_good_action_of_each_state_is_cloned_though_bad_ones_of_others_return_more(
    variant, selection
):
    """In s, the good action s / 2 returns 10 + 5 s, and the bad one 0.9 returns half of it. A
    quarter of all rows is good. The best quarter by return would be bad rows, too."""
    rng = np.random.default_rng(0)
    s = rng.uniform(-1, 1, 2000)
    good = np.arange(2000) % 4 == 0
    returns = np.where(good, 10 + 5 * s, 5 + 2.5 * s)
    assert good[np.argsort(returns)[-500:]].mean() < 0.9
    columns = {"observations": s[:, None], "actions": np.where(good, s / 2, 0.9)[:, None]}
    columns |= {"returns": returns, "held_out": np.arange(2000) % 5 == 1}
    options = {"variant": variant, "selection": selection, "envelope_lr": 1e-2, "policy_lr": 3e-3}
    if variant == "progressive":
        # A batch may hold fewer good rows than a quarter, but hardly fewer than an eighth.
        options |= {"num_updates": 1000, "fraction": 0.125}
    agent = train(make_args(**options), columns)
    obs = torch.linspace(-0.9, 0.9, 19).reshape(1, 19, 1).repeat(2, 1, 1)
    torch.testing.assert_close(agent.act(obs), obs / 2, rtol=0, atol=0.1)


# ---- Runs ----


def test_what_bail_cannot_use_is_refused():
    task = make_task(bail, 1, 1)
    data = make_data({"rewards": np.ones(9), "observations": np.ones((9, 1))})
    data["actions"] = np.ones((9, 1))
    short = {key: column[:4] for key, column in data.items()}
    for args, rows, changes, words in (
        ({}, data, {"ordered": False}, "returns of episodes"),
        ({}, data, {"action_low": None}, "bounds"),
        ({"fraction": 0.0}, data, {}, "--fraction"),
        ({"discount": 1.5}, data, {}, "--discount"),
        ({"validate_every": 0}, data, {}, "--validate-every"),
        ({}, short, {}, "no fifth"),
    ):
        with pytest.raises(SystemExit, match=words):
            bail.prepare_data(make_args(**args), rows, make_task(bail, 1, 1, **changes))
    assert bail.prepare_data(make_args(), data, task)["held_out"].sum() == 1


def test_settings_are_the_authors_for_their_tasks():
    hopper = bail.apply_settings(bail.Args(env="rebuilt/hopper/medium-v0"))
    assert (hopper.selection, hopper.num_updates, hopper.validate_every) == ("ratio", 200_000, 1000)
    args = bail.Args(env="hopper-medium-v2", variant="progressive", selection="margin")
    hopper = bail.apply_settings(args)
    assert (hopper.selection, hopper.num_updates, hopper.validate_every) == (
        "margin",
        250_000,
        1250,
    )
    for env in ("antmaze-umaze-v2", "Pendulum-v1"):
        assert bail.apply_settings(bail.Args(env=env)).selection == "margin"
    assert bail.apply_settings(bail.Args(env="Ant-v4")).selection == "ratio"
