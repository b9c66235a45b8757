"""Tests of algorithms/discrete_bcq.py: its mathematics, known answers, DQN without a dataset.

python -m pytest tests/test_discrete_bcq.py
"""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import discrete_bcq
from tests.helpers import checkpoint_of, copies_of, forward, make_batch, make_data, make_task, train

ACTIONS = 3


def task_of(obs_dim: int = 4, num_actions: int = ACTIONS):
    """Return a task with discrete actions."""
    bounds = {"action_low": None, "action_high": None}
    return make_task(discrete_bcq, obs_dim, act_dim=1, num_actions=num_actions, **bounds)


def make_agent(**options) -> discrete_bcq.DiscreteBCQ:
    """Return two agents with small networks, a target of their own and a G that knows a lot."""
    args = discrete_bcq.Args(**{"hidden": 16, "num_seeds": 2, "lr": 1e-3} | options)
    torch.manual_seed(0)
    agent = discrete_bcq.DiscreteBCQ(args, task_of(), "cpu")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in agent.critic_target.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=draw)
        agent.behavior[-1].weight *= 15
        agent.critic[-1].weight *= 10
    return agent


def batch_of() -> dict:
    """Return random rows with discrete actions."""
    draw = torch.Generator().manual_seed(1)
    actions = torch.randint(ACTIONS, (2, 32, 1), generator=draw).float()
    return make_batch() | {"actions": actions}


def probabilities(agent, n: int, s: np.ndarray) -> np.ndarray:
    """Return agent n's G(a|s) of all actions: (B, actions)."""
    logits = forward(agent.behavior, n, s)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


# ---- The formulas ----


@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_losses_are_the_formulas(threshold):
    # With rates of 0 the formulas can be read off the networks after the update.
    agent, batch = make_agent(threshold=threshold, lr=0.0, polyak=0.0), batch_of()
    found = agent.update(batch)
    for n in range(2):
        rows = {key: column[n].double().numpy() for key, column in batch.items()}
        s, s2, a = (
            rows["observations"],
            rows["next_observations"],
            rows["actions"][:, 0].astype(int),
        )
        each = np.arange(len(a))
        g = probabilities(agent, n, s2)
        q2 = forward(agent.critic, n, s2)
        q2[g < threshold * g.max(1, keepdims=True)] = -np.inf
        assert 0.1 < np.isinf(q2).mean() < 0.7, "no action is ruled out, or all but one"
        next_q = forward(agent.critic_target, n, s2)[each, q2.argmax(1)]
        target = rows["rewards"] + 0.99 * (1 - rows["terminals"]) * next_q
        q = forward(agent.critic, n, s)[each, a]
        error = np.abs(q - target)
        assert 0.1 < (error < 1).mean() < 0.9, "one half of the Huber loss is not tested"
        huber = np.where(error < 1, error**2 / 2, error - 0.5)
        g = probabilities(agent, n, s)
        logits = forward(agent.behavior, n, s)
        expected = {
            "loss/critic": huber.mean(),
            "loss/behavior": -np.log(g[each, a]).mean() + 0.01 * (logits**2).mean(),
            "value": q.mean(),
            "allowed": (g >= threshold * g.max(1, keepdims=True)).mean(),
        }
        assert expected.keys() == found.keys()
        for name, number in expected.items():
            assert found[name][n].item() == pytest.approx(number, rel=2e-5), name


def test_the_target_follows():
    agent = make_agent(polyak=0.1)
    before = copies_of(agent.critic_target.parameters())
    agent.update(batch_of())
    for old, new, source in zip(
        before, agent.critic_target.parameters(), agent.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source)


# ---- From Q-learning to imitation ----


def test_threshold_0_is_double_q_learning_and_1_imitation():
    s = make_batch()["observations"]
    for threshold in (0.0, 0.3, 1.0):
        agent = make_agent(threshold=threshold)
        with torch.no_grad():
            action = agent.act(s)
            greedy, likeliest = agent.critic(s).argmax(-1), agent.behavior(s).argmax(-1)
        assert not torch.equal(greedy, likeliest)
        assert torch.equal(action, greedy) == (threshold == 0)
        assert torch.equal(action, likeliest) == (threshold == 1)


def test_threshold_0_also_allows_what_g_thinks_impossible():
    agent = make_agent(threshold=0.0)
    with torch.no_grad():
        agent.behavior[-1].bias[..., 0] += 1000  # the others' probabilities are 0 in float32
        agent.critic[-1].bias[..., 1] += 1000
        assert (agent.act(make_batch()["observations"]) == 1).all()


# ---- A bandit with a rare and tempting action ----

STATES = 20


def tempting(seed: int) -> dict:
    """Return single steps from each of 20 states: ten with action 0, one with action 1.

    Action 0 gives 1/2. Action 1 gives 0 on average, but its single reward is often better by luck.
    """
    rng = np.random.default_rng(seed)
    states = np.repeat(np.arange(STATES), 11)
    actions = np.tile([0] * 10 + [1], STATES)
    rewards = np.where(actions == 0, 0.5, 2 * rng.standard_normal(len(states)))
    columns = {"observations": np.eye(STATES)[states], "actions": actions[:, None]}
    return make_data(columns | {"rewards": rewards})


def chosen(threshold: float) -> np.ndarray:
    """Return which action an agent takes in every state after training on this: (20,)."""
    args = discrete_bcq.Args(
        hidden=32, threshold=threshold, num_updates=600, batch_size=128, lr=3e-3
    )
    task = task_of(STATES, 2)
    columns = discrete_bcq.prepare_data(args, tempting(0), task)
    agent = train(discrete_bcq, args, task, columns)
    with torch.no_grad():
        return agent.act(torch.eye(STATES).unsqueeze(0))[0].numpy()


def test_bcq_resists_a_rare_tempting_action_and_q_learning_does_not():
    data = tempting(0)
    lucky = data["rewards"][data["actions"][:, 0] == 1] > 0.5
    assert 4 < lucky.sum() < 16
    assert (chosen(0.3) == 0).all()
    assert ((chosen(0.0) == 1) == lucky).mean() > 0.9


# ---- DQN: training without a dataset ----

RUN = ["--seed=3", "--num-seeds=2", "--num-updates=45", "--random-steps=60", "--eval-every=20"]


def run_online(main, env_id: str, *words) -> dict:
    """Return the checkpoint of a small run without a dataset."""
    options = [*RUN, "--threshold=0", "--run-dir=run"]
    end = main(f"--env={env_id}", *options, *words, script="discrete_bcq")
    assert end.code == 0 and end.err == "", end.err
    return checkpoint_of(Path("run"))


def test_online_steps_happened_in_the_environment(main, short_env):
    checkpoint = run_online(main, short_env("Acrobot-v1"), "--epsilon=0.5")
    assert checkpoint["finished"]
    steps, task = checkpoint["extra_state"], discrete_bcq.Task(**checkpoint["task"])
    assert steps["actions"].shape == (2, 45, 1)
    for i in range(2):
        env, end = discrete_bcq.make_env(task), True
        for k in range(45):
            step = {key: column[i, k].numpy() for key, column in steps.items()}
            if end:
                obs = discrete_bcq.reset_env(env, 3, i, max(0, k - 1))
            np.testing.assert_array_equal(step["observations"], np.float32(obs))
            obs, reward, terminated, end, _ = env.step(int(step["actions"].item()))
            np.testing.assert_array_equal(step["next_observations"], np.float32(obs))
            assert step["rewards"] == np.float32(reward)
            assert step["terminals"] == 0 and not terminated  # time is no terminal state
    assert sorted(set(steps["actions"].flatten().tolist())) == [0, 1, 2]


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_it_explores_with_probability_epsilon(epsilon):
    agent = make_agent(epsilon=epsilon)
    s = torch.randn(2, 4000, 4)
    with torch.no_grad():
        other = agent.explore(s) != agent.act(s)
    # A random action is the best one in a third of the cases.
    share = epsilon * (1 - 1 / ACTIONS)
    assert other.float().mean().item() == pytest.approx(share, abs=0.03)


def test_random_steps_are_of_all_actions(short_env):
    args = discrete_bcq.Args(env=short_env("Acrobot-v1"), random_steps=90, seed=3)
    data, task = discrete_bcq.random_dataset(args)
    assert (task.num_actions, task.act_dim, task.transitions) == (3, 1, 90)
    counts = np.bincount(data["actions"][:, 0].astype(int))
    assert len(counts) == 3 and counts.min() > 15


def test_a_run_that_is_stopped_continues_with_its_steps(main, short_env, monkeypatch):
    env_id = short_env("CartPole-v1")
    left = list(range(30))
    interact = discrete_bcq.interact

    def stopping_interact(*args):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        interact(*args)

    with monkeypatch.context() as patch:
        patch.setattr(discrete_bcq, "interact", stopping_interact)
        with pytest.raises(AssertionError, match="update 20 of phase online is saved"):
            run_online(main, env_id)
    before = checkpoint_of(Path("run"))
    end = main("--resume=run", script="discrete_bcq", small=False)
    assert end.code == 0 and "new ones begin" in end.out, end.err
    after = checkpoint_of(Path("run"))
    assert after["finished"] and after["extra_state"]["rewards"].shape == (2, 45)
    for key, steps in before["extra_state"].items():
        assert torch.equal(after["extra_state"][key][:, :20], steps)


@pytest.mark.slow
def test_dqn_learns_cartpole(main):
    """Random actions last for 20 steps."""
    options = ["--threshold=0", "--num-updates=5000", "--eval-every=5000", "--hidden=128"]
    end = main("--env=CartPole-v1", *options, "--run-dir=run", script="discrete_bcq", small=False)
    assert end.code == 0, end.err
    assert checkpoint_of(Path("run"))["final"]["returns"][0] > 100


# ---- Bad input ----


def test_other_environments_are_refused(main):
    end = main("--env=Pendulum-v1", "--run-dir=run", script="discrete_bcq")
    line = end.err.splitlines()[-1]  # Gymnasium-Robotics may have printed a notice before
    assert end.code == 1 and "Pendulum-v1: actions must be discrete" in line
    assert not Path("run").exists()
    with pytest.raises(SystemExit, match="begin with 0, not Discrete"):
        discrete_bcq.describe_actions(task_of(), gym.spaces.Discrete(3, start=1))


@pytest.mark.parametrize("action", [-1, 3, 0.5])
def test_other_actions_are_refused(action):
    columns = {"observations": np.zeros((2, 4)), "actions": [[0], [action]], "rewards": [0, 0]}
    with pytest.raises(SystemExit, match="whole numbers from 0 to 2"):
        discrete_bcq.prepare_data(discrete_bcq.Args(), make_data(columns), task_of())


@pytest.mark.parametrize("option", [{"threshold": 1.01}, {"threshold": -0.1}, {"epsilon": 2.0}])
def test_probabilities_beyond_0_and_1_are_refused(option):
    (name,) = option
    with pytest.raises(SystemExit, match=f"--{name} must lie between 0 and 1"):
        discrete_bcq.prepare_data(discrete_bcq.Args(**option), {}, task_of())


def test_rows_without_a_next_state_are_left_out():
    columns = {"observations": np.eye(4), "actions": np.zeros((4, 1)), "rewards": range(4)}
    columns |= {"terminals": [0, 1, 0, 0], "next_valid": [1, 0, 0, 1]}
    found = discrete_bcq.prepare_data(discrete_bcq.Args(), make_data(columns), task_of())
    assert found["rewards"].tolist() == [0, 1, 3]
