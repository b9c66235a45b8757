"""Tests of algorithms/ppo.py: its mathematics, its rollouts, its runs, answers that are known.

python -m pytest tests/test_ppo.py
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import ppo
from tests import lqr
from tests.helpers import checkpoint_of, curves, make_task

# ---- The formulas ----


@pytest.mark.parametrize(
    "ratio, advantage, slope",
    [
        (1.0, 2.0, 2.0),
        (1.19, 2.0, 2.0),
        (1.21, 2.0, 0.0),  # likelier already, as wanted
        (0.5, 2.0, 2.0),  # less likely, although it was good: back
        (0.79, -2.0, 0.0),
        (0.81, -2.0, -2.0),
        (1.5, -2.0, -2.0),
    ],
)
def test_there_is_no_gradient_beyond_the_clip(ratio, advantage, slope):
    ratio = torch.tensor([[ratio]], requires_grad=True)
    gain = ppo.clipped_gain(ratio, torch.tensor([[advantage]]), 0.2)
    assert torch.autograd.grad(gain.sum(), ratio)[0].item() == slope


def test_advantages_are_discounted_sums_of_surprises_within_an_episode():
    draw = torch.Generator().manual_seed(0)
    shape = (2, 3, 12)
    rewards, values, next_values = (torch.randn(shape, generator=draw) for _ in range(3))
    terminals = (torch.rand(shape, generator=draw) < 0.15).float()
    ends = torch.maximum(terminals, (torch.rand(shape, generator=draw) < 0.15).float())
    assert terminals.sum() > 3 and (ends - terminals).sum() > 3
    found = ppo.advantages(rewards, values, next_values, terminals, ends, 0.9, 0.7)
    surprise = rewards + 0.9 * (1 - terminals) * next_values - values
    for place in np.ndindex(shape):
        expected = 0.0
        for k in range(shape[-1] - place[-1]):
            row = (*place[:-1], place[-1] + k)
            expected += (0.9 * 0.7) ** k * surprise[row].item()
            if ends[row] == 1:
                break
        assert found[place].item() == pytest.approx(expected, abs=1e-5)


def test_running_moments_are_those_of_all_vectors_so_far():
    draw = torch.Generator().manual_seed(0)
    moments = ppo.RunningMoments(2, 3)
    scale = torch.tensor([[[1.0, 5.0, 0.1]]])
    parts = [scale * torch.randn(2, rows, 3, generator=draw) + rows for rows in (1, 4, 1, 9)]
    for part in parts:
        moments.take_up(part)
    everything = torch.cat(parts, dim=1)
    torch.testing.assert_close(moments.mean, everything.mean(1, True), rtol=1e-3, atol=1e-3)
    var = everything.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(moments.var, var, rtol=1e-3, atol=1e-3)


def make_agent(**known):
    """Return two small agents and a batch."""
    options = {"num_seeds": 2, "hidden": 16, "env": "Pendulum-v1", "batch_size": 8}
    args = ppo.apply_settings(ppo.Args(**options))
    agent = ppo.PPO(args, make_task(ppo, 4, **known), "cpu")
    draw = torch.Generator().manual_seed(0)
    batch = {"observations": torch.randn(2, 8, 4, generator=draw)}
    batch["actions"] = agent.policy.sample(batch["observations"]).detach().float()
    for key in ("log_pi", "values", "advantages", "returns"):
        batch[key] = torch.randn(2, 8, generator=draw) - 1
    return agent, batch


@pytest.mark.parametrize("known", [{}, {"act_dim": 1, "num_actions": 3}])
def test_an_agent_is_untouched_by_the_batches_of_the_others(known):
    weights = []
    for factor in (1.0, 7.0):
        torch.manual_seed(0)
        agent, batch = make_agent(**known)
        for key in ("observations", "returns", "advantages"):
            batch[key][1] *= factor
        batch["advantages"][1, 0] += factor
        statistics = agent.update(batch)
        assert all(value.shape == (2,) for value in statistics.values())
        weights.append([p.detach().clone() for p in agent.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
        assert not torch.equal(one[0], one[1])


def test_it_acts_on_standardised_observations():
    agent, batch = make_agent()
    agent.obs_moments.mean.fill_(3)
    agent.obs_moments.var.fill_(4)
    obs = batch["observations"]
    with torch.no_grad():
        torch.testing.assert_close(agent.act(2 * obs + 3), agent.policy.mode(obs))
        # What lies far out is cut off at 10.
        assert agent.act(100 * obs.sign()).equal(agent.act(1_000 * obs.sign()))


# ---- Rollouts ----

RUN = ["--seed=3", "--num-seeds=2", "--num-envs=2", "--rollout-steps=30", "--batch-size=20"]
RUN += ["--epochs=2", "--num-updates=16", "--eval-every=6"]  # 6 updates in each of 3 iterations


def run_small(main, env_id: str, *words) -> dict:
    """Return the checkpoint of a run of three iterations."""
    options = ["--hidden=16", "--eval-episodes=2", "--final-eval-episodes=3", "--run-dir=run"]
    end = main(f"--env={env_id}", *options, *RUN, *words, script="ppo", small=False)
    assert end.code == 0 and end.err == "", end.err
    return checkpoint_of(Path("run"))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("env_id", ["Hopper-v4", "CartPole-v1"])
def test_steps_are_those_of_the_environments(env_id, normalize, short_env, main, monkeypatch):
    """Episodes go on in the next rollout, and time is no terminal state."""
    rollouts, raw = [], []

    class NotedActors(ppo.Actors):
        def step(self):
            before = self.obs.clone()
            columns = super().step()
            raw.append((before, columns))
            return columns

        def rollout(self):
            rollouts.append(super().rollout())
            return rollouts[-1]

    monkeypatch.setattr(ppo, "Actors", NotedActors)
    env_id = short_env(env_id)
    checkpoint = run_small(main, env_id, f"--normalize={normalize}")
    assert checkpoint["finished"] and checkpoint["step"] == 18 and len(rollouts) == 3
    task = ppo.Task(**checkpoint["task"])
    seeds = np.random.SeedSequence([3, 0]).generate_state(4)
    limits = 0
    for k in range(4):
        place = (k // 2, k % 2)
        env, length = ppo.make_env(task), 0
        obs, _ = env.reset(seed=int(seeds[k]))
        for before, columns in raw:
            np.testing.assert_array_equal(before[place].numpy(), np.float32(obs))
            action = columns["actions"][place].numpy()
            obs, reward, terminated, truncated, _ = env.step(
                action if task.num_actions is None else action[0]
            )
            length += 1
            limits += truncated and not terminated
            assert columns["terminals"][place] == terminated
            assert columns["ends"][place] == (terminated or truncated)
            if not normalize:
                next_obs = columns["next_observations"][place].numpy()
                np.testing.assert_array_equal(next_obs, np.float32(obs))
                assert columns["rewards"][place] == np.float32(reward)
            if terminated or truncated:
                obs, length = env.reset()[0], 0
    assert limits > 0 or "CartPole" in env_id
    scaled = torch.stack([columns["rewards"] for _, columns in raw])
    assert normalize == bool(checkpoint["agent"]["return_moments.count"] > 1)
    assert scaled.isfinite().all() and scaled.abs().max() <= 10
    steps = curves(Path("run/tensorboard/online"))
    assert steps["score"] == steps["loss/policy"] == [6, 12, 18]


def test_rewards_are_divided_by_the_deviation_of_the_running_return(short_env):
    args = ppo.Args(env=short_env("Pendulum-v1"), num_envs=2, num_seeds=2, batch_size=2)
    args = ppo.apply_settings(args)
    task = ppo.no_dataset(args)
    agent = ppo.PPO(args, task, "cpu")
    actors = ppo.Actors(ppo.Run(args, task, agent, None, torch.device("cpu")))
    rewards = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(0))
    ends = torch.zeros(6, 2, 2)
    ends[2, 0, 1] = 1
    running, seen = torch.zeros(2, 2), []
    for reward, end in zip(rewards, ends, strict=True):
        running = reward + 0.99 * running
        seen.append(running.clone())
        scaled = actors.scale(reward, end)
        running[end == 1] = 0
        deviation = torch.stack(seen).transpose(0, 1).flatten(1).std(1, correction=0)
        expected = (reward / deviation.unsqueeze(1)).clamp(-10, 10)
        torch.testing.assert_close(scaled, expected, rtol=1e-2, atol=1e-3)


def test_every_epoch_sees_each_step_once_in_another_order():
    args = ppo.Args(num_seeds=2, batch_size=4)
    column = torch.arange(24.0).reshape(2, 12)
    rollout = ppo.Rollout({"returns": column.clone()}, args)
    orders = []
    for _ in range(2):
        rollout.shuffle()
        batches = [rollout.sample()["returns"] for _ in range(3)]
        assert all(batch.shape == (2, 4) for batch in batches)
        orders.append(torch.cat(batches, dim=1))
        assert torch.equal(orders[-1].sort(1).values, column)
    assert not torch.equal(*orders) and not torch.equal(orders[0][0] + 12, orders[0][1])


def test_the_learning_rate_falls_to_zero(main, short_env):
    checkpoint = run_small(main, short_env("Pendulum-v1"))
    lr, steps = checkpoint["optimizers"]["both"][:2]
    assert steps.item() == 18 and lr.item() == pytest.approx(3e-4 / 3)


def test_a_run_that_is_stopped_continues_after_its_last_iteration(main, short_env, monkeypatch):
    left = [1, 2]
    rollout = ppo.Actors.rollout

    def stopping_rollout(actors):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return rollout(actors)

    with monkeypatch.context() as patch:
        patch.setattr(ppo.Actors, "rollout", stopping_rollout)
        with pytest.raises(AssertionError, match="update 12 of phase online is saved"):
            run_small(main, short_env("Pendulum-v1"))
    end = main("--resume=run", script="ppo", small=False)
    assert end.code == 0 and "new ones begin" in end.out, end.err
    after = checkpoint_of("run")
    assert after["finished"] and after["optimizers"]["both"][1].item() == 18
    assert after["agent"]["obs_moments.count"].item() == pytest.approx(180)


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__file__, reason="PyTorch cannot compile below such a path")
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_a_compiled_run_is_the_eager_one(env_id, main, short_env):
    """Every batch of every iteration is another one, although the update is compiled once."""
    weights = {}
    for execution in ("eager", "compile"):
        words = [f"--execution={execution}", f"--run-dir={execution}", "--hidden=8"]
        words += ["--eval-episodes=1", "--final-eval-episodes=1"]
        end = main(f"--env={short_env(env_id)}", *RUN, *words, script="ppo", small=False)
        assert end.code == 0, end.err
        weights[execution] = checkpoint_of(execution)["agent"]
    torch._dynamo.reset()
    for name, weight in weights["eager"].items():
        torch.testing.assert_close(weights["compile"][name], weight, rtol=2e-3, atol=2e-4)


# ---- Known answers ----


def test_it_solves_a_linear_quadratic_task(main):
    """It comes within ten percent of the return that Riccati's equation gives."""
    options = ["--num-envs=8", "--rollout-steps=40", "--batch-size=80", "--epochs=5", "--lr=3e-3"]
    options += ["--num-updates=800", "--eval-every=800", "--discount=0.9", "--hidden=32"]
    options += ["--num-seeds=2", "--final-eval-episodes=20", "--run-dir=run"]
    end = main(f"--env={lqr.ENV_ID}", *options, script="ppo", small=False)
    assert end.code == 0, end.err
    assert min(checkpoint_of("run")["final"]["returns"]) > 1.1 * lqr.best_return(20)


@pytest.mark.slow
def test_it_balances_a_pole(main):
    options = ["--num-updates=1600", "--eval-every=1600", "--final-eval-episodes=10"]
    end = main("--env=CartPole-v1", *options, "--run-dir=run", script="ppo", small=False)
    assert end.code == 0, end.err
    assert checkpoint_of("run")["final"]["returns"][0] > 400  # of 500


# ---- Bad input ----


@pytest.mark.parametrize(
    "words, message",
    [
        (["--env=hopper-medium-v2"], ["hopper-medium-v2", "online only"]),
        (["--env=Pendulum-v1", "--dataset-file=my.hdf5"], ["online only"]),
        (["--env=Pendulum-v1", "--batch-size=100"], ["2,048", "--batch-size"]),
        (["--env=Pendulum-v1", "--num-envs=0"], ["--num-envs must be at least 1"]),
    ],
)
def test_bad_input_is_refused(words, message, main):
    end = main(*words, "--run-dir=run", script="ppo", small=False)
    line = end.err.splitlines()[-1]
    assert end.code == 1 and all(word in line for word in message), end.err
    assert not Path("run").exists()


def test_other_spaces_of_actions_are_refused():
    task = make_task(ppo)
    for space in (gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Discrete(3, start=1)):
        with pytest.raises(SystemExit, match="actions must be"):
            ppo.describe_actions(task, space)
