"""Tests of algorithms/algae_dice.py: the dual's known answers, its data, what it refuses.

python -m pytest tests/test_algae_dice.py
"""

import numpy as np
import pytest
import torch

import algae_dice
from tests.helpers import make_batch, make_data, make_task


def make_agent(num_seeds: int = 2, **options) -> algae_dice.AlgaeDICE:
    """Return agents with small networks."""
    args = algae_dice.Args(num_seeds=num_seeds, hidden=16, **options)
    return algae_dice.AlgaeDICE(args, make_task(algae_dice), "cpu")


# ---- A small MDP ----
# Three states, two actions, random transitions and rewards; a fixed policy, and data of another.
GAMMA, WEIGHT = 0.9, 0.3


@pytest.fixture(scope="module")
def world() -> dict:
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(3), (3, 2))  # of s', by s and a
    reward = rng.uniform(-1, 1, (3, 2))
    pi, data = rng.dirichlet(np.ones(2), 3), rng.dirichlet(np.full(6, 3.0))
    start = np.array([0.5, 0.3, 0.2])
    # How often pi is in (s, a), discounted: d = (1 - gamma) start pi + gamma P' d
    step = np.einsum("sat,tb->satb", chances, pi).reshape(6, 6)
    first = (start[:, None] * pi).reshape(6)
    d = np.linalg.solve(np.eye(6) - GAMMA * step.T, (1 - GAMMA) * first)
    return {"step": step, "first": first, "reward": reward.reshape(6), "data": data, "d": d}


def solve_dual(world: dict, exponent: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise Eq. 1 over a table, by the script's own terms. Return the residuals and J."""
    agent = make_agent(1, exponent=exponent, weight=WEIGHT, discount=GAMMA)
    world = {key: torch.tensor(x) for key, x in world.items()}
    q = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([q], max_iter=5_000, tolerance_grad=1e-12, tolerance_change=1e-16)
    optimizer.param_groups[0]["line_search_fn"] = "strong_wolfe"

    def residual():
        return world["reward"] + GAMMA * world["step"] @ q - q

    def objective():
        # start_value() takes a mean over the batch, so each entry counts by its probability times 6
        first = agent.start_value((6 * world["first"] * q).expand(1, 2, 6))[0, 0]
        return (world["data"] * residual().abs() ** exponent / exponent).sum() + first

    def closure():
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    return residual().detach(), objective().detach()


@pytest.mark.parametrize("exponent", [2.0, 1.5])
def test_the_dual_finds_the_importance_weights_and_the_value(world, exponent):
    residual, objective = solve_dual(world, exponent)
    slope = residual.sign() * residual.abs() ** (exponent - 1)  # f' of Eq. 3
    ratio = slope.numpy() / WEIGHT
    np.testing.assert_allclose(ratio, world["d"] / world["data"], rtol=1e-3)
    # With these weights the data's rewards give the value of the policy.
    value = (world["data"] * ratio * world["reward"]).sum()
    assert value == pytest.approx((world["d"] * world["reward"]).sum(), abs=1e-3)
    # J is that value times lambda, less the conjugate of the penalty.
    q = exponent / (exponent - 1)
    penalty = (world["data"] * np.abs(WEIGHT * ratio) ** q / q).sum()
    assert objective.item() == pytest.approx(WEIGHT * value - penalty, abs=1e-4)


# ---- Single terms ----


def test_the_residual_by_hand():
    agent = make_agent(discount=0.8, mix=0.25)
    with torch.no_grad():
        for layer in agent.critic_target.net:
            if isinstance(layer, algae_dice.StackedLinear):
                layer.weight.uniform_(-1, 1)
        agent.log_alpha.copy_(torch.tensor([0.3, -1.0]))
    batch = make_batch()
    action, log_pi = torch.rand(2, 32, 2), torch.randn(2, 32)
    q = torch.randn(2, 2, 32)
    found = agent.residual(batch, q, action, log_pi)
    s2 = batch["next_observations"]
    for n in range(2):
        smaller = agent.critic_target(s2, action)[n].min(0).values
        for i in range(2):
            next_q = 0.25 * agent.critic(s2, action)[n, i] + 0.75 * smaller
            next_q = next_q - agent.log_alpha[n].exp() * log_pi[n]
            going_on = 1 - batch["terminals"][n]
            expected = batch["rewards"][n] + 0.8 * going_on * next_q - q[n, i]
            torch.testing.assert_close(found[n, i], expected)


def test_the_policy_learns_from_positive_residuals_alone():
    """Where Q exceeds all targets, f' is 0, and only the start and the layers' overlap are left."""
    agent = make_agent(weight=0.0)
    batch = make_batch() | {"initial_observations": torch.zeros(2, 32, 4)}
    batch["rewards"] = torch.full((2, 32), -1e3)
    statistics = agent.update(batch)
    assert (statistics["slope"] == 0).all()
    torch.testing.assert_close(statistics["loss/policy"] < 1e-2, torch.tensor([True, True]))
    batch["rewards"] = torch.full((2, 32), 1e3)
    assert (agent.update(batch)["slope"] > 10).all()


def test_orthogonal_layers_do_not_overlap():
    policy = algae_dice.DicePolicy(2, 16, 2, 16)
    algae_dice.keras_weights(policy.net)
    torch.testing.assert_close(policy.overlap(), torch.zeros(2), atol=1e-6, rtol=0)
    policy.net[0].weight.data[1] += 0.1
    assert policy.overlap()[0] < 1e-6 < policy.overlap()[1]


# ---- The data ----


def make_rows(count: int = 12) -> dict:
    """Return three episodes of four rows; the first coordinate of an observation is its row."""
    obs = np.zeros((count, 4))
    obs[:, 0] = np.arange(count)
    columns = {"observations": obs, "actions": np.zeros((count, 2)), "rewards": np.zeros(count)}
    ends = np.zeros(count, bool)
    ends[3::4] = True
    return make_data(columns, ends)


def test_initial_states_are_those_of_episodes():
    args = algae_dice.Args()
    columns = algae_dice.prepare_data(args, make_rows(1200), make_task(algae_dice))
    first = columns["initial_observations"][:, 0]
    assert set(first % 4) == {0}
    assert len(set(first)) > 250  # of 300
    assert len(first) == len(columns["rewards"])


@pytest.mark.parametrize(
    "options, known, message",
    [
        ({"exponent": 1.0}, {}, "--exponent must be above 1"),
        ({"discount": 1.0}, {}, "--discount must lie between 0 and 1"),
        ({}, {"ordered": False}, "needs initial states"),
        ({}, {"action_low": None, "action_high": None}, "needs actions with bounds"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, known, message):
    with pytest.raises(SystemExit, match=message):
        algae_dice.prepare_data(
            algae_dice.Args(**options), make_rows(), make_task(algae_dice, **known)
        )
