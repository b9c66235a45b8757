"""Tests of algorithms/td3.py and algorithms/ddpg.py: formulas, known answers, online training.

python -m pytest tests/test_td3.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import ddpg
import sac
import td3
import td3_bc
from tests import lqr
from tests.helpers import checkpoint_of, curves, make_batch, make_data, make_task, train

BOTH = pytest.mark.parametrize("module", [td3, ddpg], ids=["td3", "ddpg"])


def make_agent(module, **options):
    """Return two agents with small networks."""
    args = module.Args(**{"num_seeds": 2, "hidden": 16, "env": "no-env-v0"} | options)
    return module.Algorithm(args, make_task(module), "cpu")


# ---- The formulas ----


@BOTH
@pytest.mark.parametrize("terminal", [0.0, 1.0])
def test_the_target_ends_at_terminals_only(module, terminal):
    """The reward alone counts where an episode truly ended; elsewhere the next state does, too."""
    batch = make_batch()
    batch["terminals"].fill_(terminal)
    losses = []
    for shift in (0.0, 1.0):
        torch.manual_seed(0)
        agent = make_agent(module)
        with torch.no_grad():
            for name, weight in agent.critic_target.named_parameters():
                if weight.shape[-1] == 1 and "bias" in name:  # of the last layers
                    weight += shift
        losses.append(agent.phases[0].updates[-1](batch)["loss/critic"])
    assert torch.equal(*losses) == bool(terminal)


@BOTH
def test_it_explores_around_the_action_that_it_evaluates(module):
    agent, obs = make_agent(module, exploration_noise=0.3), torch.randn(2, 4000, 4)
    with torch.no_grad():
        noise = agent.explore(obs) - agent.act(obs)
    assert abs(noise.mean()) < 0.02 and noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert agent.act(obs).abs().max() < 1


def test_td3_moves_its_policy_and_its_targets_in_every_second_update():
    agent = make_agent(td3)
    slow = [*agent.policy.parameters(), *agent.critic_target.parameters()]
    slow += agent.policy_target.parameters()
    moved = []
    for step in range(4):
        before = [weight.clone() for weight in slow]
        agent.phases[0].updates[step % 2](make_batch(seed=step))
        moved.append([not torch.equal(*pair) for pair in zip(before, slow, strict=True)])
    assert not any(moved[0] + moved[2]) and all(moved[1] + moved[3])


def test_the_decay_of_ddpg_pulls_the_weights_of_q_towards_zero():
    """It is the gradient's square, so it goes through Adam, as in torch.optim.Adam."""
    agent = make_agent(ddpg, weight_decay=1e9, critic_lr=1e-3)  # so large that nothing else counts
    before = [weight.detach().clone() for weight in agent.critic.parameters()]
    agent.update(make_batch())
    for old, new in zip(before, agent.critic.parameters(), strict=True):
        torch.testing.assert_close(new, old - 1e-3 * old.sign(), rtol=1e-3, atol=1e-5)


# ---- Known answers ----


def lqr_steps(rows: int = 20_000) -> dict:
    """Return steps of the linear-quadratic task with all actions, in states that none leaves."""
    rng = np.random.default_rng(0)
    state, action = rng.uniform(-2.5, 2.5, (rows, 1)), rng.uniform(-1, 1, (rows, 1))
    reward = -(lqr.STATE_COST * state**2 + lqr.ACTION_COST * action**2)
    columns = {"observations": state, "actions": action, "rewards": reward[:, 0]}
    columns |= {"next_observations": lqr.A * state + lqr.B * action, "terminals": np.zeros(rows)}
    return make_data(columns)


@pytest.mark.slow
def test_td3_solves_a_linear_quadratic_task_whose_actions_are_all_in_the_data():
    """It comes within ten percent of the return that Riccati's equation gives."""
    options = {"hidden": 128, "batch_size": 128, "lr": 1e-3, "polyak": 0.02, "discount": 0.8}
    args = td3.Args(env="no-env-v0", seed=1, num_seeds=3, num_updates=1200, **options)
    task = td3.make_task(lqr.ENV_ID, "", lqr.ENV_ID)
    agent = train(td3, args, task, td3.prepare_data(args, lqr_steps(), task))
    returns = td3.evaluate(agent, task, 20).mean(axis=1)
    assert returns.min() > 1.1 * lqr.best_return(20)


@pytest.mark.slow
@BOTH
def test_online_it_solves_a_linear_quadratic_task(module, main):
    """It comes within ten percent of the return that Riccati's equation gives.

    Targets do not end at the time limit, so both look for the best policy of an endless, discounted
    task. It costs less than one percent more.
    """
    assert lqr.stationary_cost(lqr.discounted_gain(0.8)) < 1.01 * lqr.best_gains()[1]
    rates = {td3: ["--lr=1e-3"], ddpg: ["--policy-lr=1e-3", "--critic-lr=1e-3"]}
    options = ["--num-updates=1000", "--eval-every=1000", "--random-steps=5000", "--discount=0.8"]
    options += ["--polyak=0.02", "--batch-size=128", "--hidden=64", "--num-seeds=3"]
    options += ["--exploration-noise=0.5"]  # Q needs actions beside pi's to know its slope
    options += ["--final-eval-episodes=20", "--run-dir=run", *rates[module]]
    end = main(f"--env={lqr.ENV_ID}", *options, script=module.__name__, small=False)
    assert end.code == 0, end.err
    assert min(checkpoint_of("run")["final"]["returns"]) > 1.1 * lqr.best_return(20)


def test_offline_they_leave_the_data_and_td3_bc_does_not():
    """On a bandit whose reward rises up to the last recorded action, Q goes on rising."""
    actions = np.random.default_rng(0).uniform(-1, -0.2, (2000, 1))
    columns = {"observations": np.ones((2000, 1)), "actions": actions, "rewards": actions[:, 0]}
    data = make_data(columns)
    common = {"env": "no-env-v0", "hidden": 16, "batch_size": 64, "num_updates": 400}
    options = {
        td3: {"lr": 1e-2},
        ddpg: {"policy_lr": 1e-2, "critic_lr": 1e-2},
        td3_bc: {"lr": 1e-2, "alpha": 0.1, "normalize": False},
    }
    found = {}
    for module, rates in options.items():
        args, task = module.Args(**common, **rates), make_task(module, 1, 1)
        agent = train(module, args, task, module.prepare_data(args, data, task))
        with torch.no_grad():
            found[module] = agent.act(torch.ones(1, 1, 1)).item()
    assert found[td3] > 0.5 and found[ddpg] > 0.5 and found[td3_bc] < -0.2


# ---- Without a dataset ----

RUN = ["--seed=3", "--num-seeds=2", "--num-updates=45", "--eval-every=20", "--snapshot-every=15"]


@BOTH
def test_online_it_acts_resumes_and_takes_snapshots_as_sac_does(
    module, main, short_env, monkeypatch
):
    name = module.__name__
    env_id = short_env("Pendulum-v1")
    left = list(range(30))
    interact = module.interact

    def stopping_interact(*args):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        interact(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "interact", stopping_interact)
        with pytest.raises(AssertionError, match="update 20 of phase online is saved"):
            end = main(f"--env={env_id}", *RUN, "--run-dir=run", script=name)
            raise AssertionError(end.err)
    before = checkpoint_of("run")
    end = main("--resume=run", script=name, small=False)
    assert end.code == 0 and "new ones begin" in end.out, end.err
    after = checkpoint_of("run")
    steps = after["extra_state"]
    assert after["finished"] and steps["actions"].shape == (2, 45, 1)
    for key, column in before["extra_state"].items():
        assert torch.equal(steps[key][:, :20], column)
    assert steps["terminals"].sum() == 0 and not torch.equal(*steps["actions"])
    assert curves(Path("run/tensorboard/online"))["score"] == [20, 40, 45]
    assert sorted(path.stem for path in Path("run/snapshots").iterdir()) == ["15", "30", "45"]
    for key, weight in torch.load("run/snapshots/45.pt", weights_only=True).items():
        assert torch.equal(weight, after["agent"][f"policy.{key}"])


@BOTH
def test_the_random_steps_are_those_of_sac(module):
    options = {"env": "Pendulum-v1", "seed": 3, "random_steps": 60}
    (mine, task), (theirs, _) = (m.random_dataset(m.Args(**options)) for m in (module, sac))
    assert all(np.array_equal(mine[key], column) for key, column in theirs.items())
    assert task.source == "random actions"


# ---- Bad input ----


@BOTH
def test_actions_without_bounds_are_refused(module):
    task = make_task(module, env_id="Some-v0", action_low=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        module.prepare_data(module.Args(), {}, task)
