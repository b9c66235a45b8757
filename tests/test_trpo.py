"""Tests of algorithms/trpo.py: its step beside one in NumPy, its bound, answers that are known.

python -m pytest tests/test_trpo.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import trpo
from tests import lqr
from tests.helpers import checkpoint_of, curves, make_task

# ---- The step ----


def make_agent(num_seeds: int = 2, rows: int = 60, **options):
    """Return a small agent, whose last layer is no longer tiny, and a rollout."""
    known = {"act_dim": 2} if options.pop("real", True) else {"act_dim": 1, "num_actions": 3}
    args = trpo.Args(**{"num_seeds": num_seeds, "hidden": 4, "env": "Pendulum-v1"} | options)
    agent = trpo.TRPO(args, make_task(trpo, 3, **known), "cpu")
    draw = torch.Generator().manual_seed(0)
    for weight in agent.policy.parameters():
        weight += 0.3 * torch.randn(weight.shape, generator=draw)
    rollout = {"observations": torch.randn(num_seeds, rows, 3, generator=draw)}
    rollout["actions"] = agent.policy.sample(rollout["observations"])
    rollout["advantages"] = torch.randn(num_seeds, rows, generator=draw)
    return agent, rollout


def numpy_policy(theta: np.ndarray, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (B, act) and log-deviation (act,) of a flat vector of weights."""
    shapes = [(2,), (3, 4), (4,), (4, 4), (4,), (4, 2), (2,)]
    parts, first = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        parts.append(theta[first : first + size].reshape(shape))
        first += size
    log_std, w0, b0, w1, b1, w2, b2 = parts
    return np.tanh(np.tanh(obs @ w0 + b0) @ w1 + b1) @ w2 + b2, log_std


def numpy_step(theta, obs, action, advantage, args) -> tuple[np.ndarray, int]:
    """Return the weights after a step of TRPO with the whole Fisher matrix, and which try it is."""
    advantage = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    mean, log_std = numpy_policy(theta, obs)
    var = np.exp(2 * log_std)
    slopes = []  # of the means, by central differences: (P, B, act)
    for i in range(len(theta)):
        shift = np.zeros_like(theta)
        shift[i] = 1e-5
        ends = [numpy_policy(theta + sign * shift, obs)[0] for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]) / 2e-5)
    slopes = np.array(slopes)
    z = (action - mean) / np.exp(log_std)
    scores = (slopes * z / np.exp(log_std)).sum(-1)  # d log pi / d theta: (P, B)
    scores[:2] += (z**2 - 1).T
    gradient = (scores * advantage).mean(1)
    fisher = np.einsum("pba,qba->pq", slopes / var, slopes) / len(obs)
    fisher[:2, :2] += 2 * np.eye(2)
    fisher += args.damping * np.eye(len(theta))
    direction = np.linalg.solve(fisher, gradient)
    length = np.sqrt(2 * args.max_kl / (direction @ fisher @ direction))

    for i in range(args.search_steps):
        new = theta + 0.8**i * length * direction
        new_mean, new_log_std = numpy_policy(new, obs)
        new_z = (action - new_mean) / np.exp(new_log_std)
        log_ratio = (log_std - new_log_std + (z**2 - new_z**2) / 2).sum(1)
        quadratic = (var + (mean - new_mean) ** 2) / (2 * np.exp(2 * new_log_std))
        kl = (new_log_std - log_std + quadratic - 0.5).sum(1).mean()
        if kl <= args.max_kl and (np.exp(log_ratio) * advantage).mean() > advantage.mean():
            return new, i
    return theta, args.search_steps


@pytest.mark.parametrize("max_kl", [1e-3, 0.01, 4.0])
def test_a_step_is_that_of_the_whole_fisher_matrix_in_numpy(max_kl):
    torch.set_default_dtype(torch.float64)
    try:
        agent, rollout = make_agent(6, max_kl=max_kl, cg_steps=200)
        agent, rollout = agent.double(), {key: column.double() for key, column in rollout.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    before = [weight.clone() for weight in agent.policy.parameters()]
    agent.update_policy(rollout)
    tries = []
    for n in range(6):
        theta = np.concatenate([weight[n].flatten().numpy() for weight in before])
        found = np.concatenate([w[n].flatten().numpy() for w in agent.policy.parameters()])
        keys = ("observations", "actions", "advantages")
        columns = [rollout[key][n].numpy() for key in keys]
        expected, tried = numpy_step(theta, *columns, agent.args)
        assert abs(expected - theta).max() > 1e-3
        np.testing.assert_allclose(found, expected, atol=1e-6)
        tries.append(tried)
    if max_kl == 4:  # the search has to shorten the steps of some agents
        assert max(tries) > 0


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("max_kl", [1e-4, 0.01, 1.0])
def test_no_step_exceeds_the_bound_and_the_gain_rises(real, max_kl):
    for seed in range(5):
        torch.manual_seed(seed)
        agent, rollout = make_agent(3, real=real, max_kl=max_kl)
        statistics = agent.update_policy(rollout)
        assert (statistics["kl"] <= max_kl).all() and (statistics["moved"] == 1).all()
        assert (statistics["loss/policy"] < 0).all()  # the old policy's is 0
        if max_kl < 0.1:
            assert (statistics["kl"] > 0.3 * max_kl).all()


def test_an_agent_without_a_good_step_stays_where_it_is():
    agent, rollout = make_agent()
    rollout["advantages"][1] = 2.0  # no action is better than another
    before = [weight.clone() for weight in agent.policy.parameters()]
    statistics = agent.update_policy(rollout)
    assert statistics["moved"].tolist() == [1, 0]
    for old, new in zip(before, agent.policy.parameters(), strict=True):
        assert torch.equal(old[1], new[1]) and not torch.equal(old[0], new[0])
        assert new.isfinite().all() and not new.requires_grad


def test_weights_go_back_where_no_tried_step_is_near_enough():
    """The only step that is tried exceeds the bound for some agents."""
    agent, rollout = make_agent(6, max_kl=0.5, search_steps=1)
    before = [weight.clone() for weight in agent.policy.parameters()]
    statistics = agent.update_policy(rollout)
    moved = statistics["moved"] == 1
    assert moved.any() and not moved.all()
    for old, new in zip(before, agent.policy.parameters(), strict=True):
        assert torch.equal(old[~moved], new[~moved])
        assert (old != new)[moved].flatten(1).any(1).all()
    assert (statistics["kl"][~moved] == 0).all()


def test_v_learns_the_returns():
    agent, rollout = make_agent(value_lr=1e-2)
    returns = rollout["observations"].sum(-1)
    batch = rollout | {"returns": returns, "values": torch.zeros_like(returns)}
    losses = torch.stack([agent.update_value(batch)["loss/value"] for _ in range(300)])
    assert (losses[-1] < 0.1 * losses[0]).all()
    error = (agent.value(rollout["observations"]) - returns).square().mean(1)
    assert (error < 0.2 * returns.square().mean(1)).all()


def test_it_acts_on_standardised_observations():
    agent, rollout = make_agent(normalize=True)
    agent.obs_moments.mean.fill_(3)
    agent.obs_moments.var.fill_(4)
    obs = rollout["observations"]
    torch.testing.assert_close(agent.act(2 * obs + 3), agent.policy.mode(obs))
    assert agent.act(100 * obs.sign()).equal(agent.act(1_000 * obs.sign()))  # cut off at 10


def test_conjugate_gradients_solve_the_systems_of_all_agents():
    draw = torch.Generator().manual_seed(0)
    roots = torch.randn(2, 6, 6, generator=draw, dtype=torch.float64)
    matrices = roots @ roots.transpose(1, 2) + torch.eye(6)
    target = [torch.randn(2, 6, 1, generator=draw, dtype=torch.float64)]
    solution = trpo.conjugate_gradient(lambda v: [matrices @ v[0]], target, 12)[0]
    torch.testing.assert_close(matrices @ solution, target[0])


def test_an_agent_is_untouched_by_the_rollouts_of_the_others():
    weights = []
    for factor in (1.0, 7.0):
        torch.manual_seed(0)
        agent, rollout = make_agent()
        rollout["observations"][1] *= factor
        agent.update_policy(rollout)
        weights.append(list(agent.policy.parameters()))
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


# ---- Runs ----

RUN = ["--seed=3", "--num-seeds=2", "--num-envs=2", "--rollout-steps=30", "--batch-size=20"]
RUN += ["--epochs=2", "--num-updates=16", "--eval-every=6"]  # 6 updates in each of 3 iterations
RUN += ["--hidden=16", "--eval-episodes=2", "--final-eval-episodes=3", "--run-dir=run"]


@pytest.mark.parametrize("env_id", ["Hopper-v4", "CartPole-v1"])
def test_a_run_that_is_stopped_continues_after_its_last_iteration(
    env_id, main, short_env, monkeypatch
):
    left = [1, 2]
    rollout = trpo.Actors.rollout

    def stopping_rollout(actors):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return rollout(actors)

    with monkeypatch.context() as patch:
        patch.setattr(trpo.Actors, "rollout", stopping_rollout)
        with pytest.raises(AssertionError, match="update 12 of phase online is saved"):
            end = main(f"--env={short_env(env_id)}", *RUN, script="trpo", small=False)
            raise AssertionError(end.err)
    end = main("--resume=run", script="trpo", small=False)
    assert end.code == 0 and "new ones begin" in end.out, end.err
    checkpoint = checkpoint_of(Path("run"))
    assert checkpoint["finished"] and checkpoint["step"] == 18
    steps = curves(Path("run/tensorboard/online"))
    assert steps["score"] == steps["loss/policy"] == steps["kl"] == [6, 12, 18]


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__file__, reason="PyTorch cannot compile below such a path")
def test_a_run_with_compiled_updates_of_v_is_the_eager_one(main, short_env):
    """Every batch of every iteration is another one, although the update is compiled once."""
    weights = {}
    for execution in ("eager", "compile"):
        words = [*RUN, f"--execution={execution}", f"--run-dir={execution}"]
        end = main(f"--env={short_env('Pendulum-v1')}", *words, script="trpo", small=False)
        assert end.code == 0, end.err
        weights[execution] = checkpoint_of(execution)["agent"]
    torch._dynamo.reset()
    for name, weight in weights["eager"].items():
        torch.testing.assert_close(weights["compile"][name], weight, rtol=2e-3, atol=2e-4)


# ---- Known answers ----


def test_it_solves_a_linear_quadratic_task(main):
    """It comes within ten percent of the return that Riccati's equation gives."""
    options = ["--num-envs=8", "--rollout-steps=40", "--batch-size=80", "--epochs=5"]
    options += ["--num-updates=800", "--eval-every=800", "--discount=0.9", "--hidden=32"]
    options += ["--max-kl=0.03", "--value-lr=5e-3", "--num-seeds=2"]
    options += ["--final-eval-episodes=20", "--run-dir=run"]
    end = main(f"--env={lqr.ENV_ID}", *options, script="trpo", small=False)
    assert end.code == 0, end.err
    assert min(checkpoint_of("run")["final"]["returns"]) > 1.1 * lqr.best_return(20)


# ---- Bad input ----


def test_data_are_refused(main):
    end = main("--env=hopper-medium-v2", "--run-dir=run", script="trpo", small=False)
    assert end.code == 1 and "TRPO learns online only" in end.err
