"""Tests of algorithms/sac.py: its mathematics, answers that are known, training without a dataset.

python -m pytest tests/test_sac.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import sac
from tests.helpers import checkpoint_of, curves, forward, make_batch, make_data, make_task, train


def make_agent(act_dim: int = 2, **options) -> sac.SAC:
    """Return two agents with small networks. Their target is another than their critic."""
    args = sac.Args(**{"num_seeds": 2, "lr": 1e-3, "hidden": 16, "env": "no-env-v0"} | options)
    agent = sac.SAC(args, make_task(sac, 4, act_dim), "cpu")
    with torch.no_grad():
        for weight in agent.critic_target.parameters():
            weight += 0.1
    return agent


# ---- The formulas ----


def test_losses_are_the_closed_forms(monkeypatch):
    agent, batch = make_agent(lr=0.0, polyak=0.0), make_batch()
    agent.log_alpha.data[:] = torch.tensor([0.3, -0.5])
    draw = torch.Generator().manual_seed(0)
    noises = [torch.randn(2, 32, 2, generator=draw) for _ in range(2)]  # at s', then at s
    queue = list(noises)
    monkeypatch.setattr(torch, "randn_like", lambda like: queue.pop(0))
    statistics = agent.update(batch)

    def sample(n: int, obs, noise) -> tuple:
        mean, log_std = np.split(forward(agent.policy.net, n, obs), 2, 1)
        x = mean + np.exp(log_std) * noise
        log_p = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(x) ** 2)
        return np.tanh(x), log_p.sum(1)

    for n in range(2):
        part = {key: column[n].double().numpy() for key, column in batch.items()}
        at_s2, at_s = (noise[n].double().numpy() for noise in noises)
        alpha = np.exp([0.3, -0.5][n])
        a2, log_p2 = sample(n, part["next_observations"], at_s2)
        a, log_p = sample(n, part["observations"], at_s)
        nets = [2 * n, 2 * n + 1]
        sa2 = np.hstack([part["next_observations"], a2])
        next_q = forward(agent.critic_target.net, nets, sa2)[..., 0].min(0) - alpha * log_p2
        target = part["rewards"] + 0.99 * (1 - part["terminals"]) * next_q
        sa = np.hstack([part["observations"], part["actions"]])
        q = forward(agent.critic.net, nets, sa)[..., 0]
        pi_q = forward(agent.critic.net, nets, np.hstack([part["observations"], a]))[..., 0].min(0)
        expected = {
            "loss/critic": ((q - target) ** 2).mean(1).sum(),
            "loss/policy": (alpha * log_p - pi_q).mean(),
            "alpha": alpha,
            "entropy": -log_p.mean(),
            "value": q.mean(),
        }
        assert expected.keys() == statistics.keys()
        for name, number in expected.items():
            assert statistics[name][n].item() == pytest.approx(number, rel=2e-4), name


def test_the_density_integrates_to_one():
    agent = make_agent(act_dim=1)
    grid = torch.linspace(-8, 8, 4001).view(1, -1, 1).expand(2, -1, -1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "randn_like", lambda like: grid)
        action, log_pi = agent.policy.sample(torch.zeros(2, 4001, 4))
    area = torch.trapezoid(log_pi.exp(), action.squeeze(-1))
    torch.testing.assert_close(area, torch.ones(2), rtol=0, atol=1e-3)


def test_log_densities_stay_finite_at_the_edge(monkeypatch):
    agent = make_agent()
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, 300.0))
    action, log_pi = agent.policy.sample(torch.zeros(2, 1, 4))
    assert (action == 1).all() and log_pi.isfinite().all()
    gradients = torch.autograd.grad(log_pi.sum(), list(agent.policy.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_it_evaluates_the_mean_and_explores_around_it():
    agent, obs = make_agent(), torch.randn(2, 3, 4)
    with torch.no_grad():
        mean, log_std = agent.policy.net(obs).chunk(2, -1)
        torch.testing.assert_close(agent.act(obs), mean.tanh())
        torch.manual_seed(1)
        explored = agent.explore(obs)
        torch.manual_seed(1)
        expected = (mean + log_std.exp() * torch.randn_like(mean)).tanh()
        torch.testing.assert_close(explored, expected)


@pytest.mark.parametrize("terminal", [0.0, 1.0])
def test_the_target_ends_at_terminals_only(terminal):
    """The reward alone counts where an episode truly ended; elsewhere the next state does, too."""
    batch = make_batch()
    batch["terminals"].fill_(terminal)
    losses = []
    for shift in (0.0, 1.0):
        torch.manual_seed(0)
        agent = make_agent()
        with torch.no_grad():
            agent.critic_target.net[-1].bias += shift
        losses.append(agent.update(batch)["loss/critic"])
    assert torch.equal(*losses) == bool(terminal)


@pytest.mark.parametrize("width, sign", [(0.0, -1), (-8.0, 1)])
def test_the_temperature_drives_the_entropy_to_minus_the_dimensions(width, sign):
    """A pi of deviation 1 has too much of it, so alpha falls; a narrow one has too little."""
    torch.manual_seed(0)
    agent = make_agent()
    with torch.no_grad():
        agent.policy.net[-1].bias[..., 2:] += width
    first = agent.update(make_batch())
    assert ((first["entropy"] + 2).sign() == -sign).all()
    assert torch.equal(first["alpha"], torch.ones(2))
    for seed in range(1, 20):
        last = agent.update(make_batch(seed=seed))
    steps = torch.full((2,), sign * 0.019)  # Adam's steps of lr
    torch.testing.assert_close(last["alpha"].log(), steps, rtol=0.1, atol=0)


# ---- Known answers ----


def tanh_normal(mean: float, std: float) -> float:
    """Return the entropy of tanh of a Gaussian by numerical integration."""
    x = mean + std * np.linspace(-8, 8, 20001)
    log_p = -0.5 * ((x - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    log_p -= np.log(1 - np.tanh(x) ** 2)
    return -np.trapezoid(np.exp(log_p) * log_p, np.tanh(x))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 1.5])
def test_on_a_bandit_pi_and_alpha_are_the_optimal_ones(alpha):
    """Among all policies of entropy -1, the one with the largest reward is exp(r / alpha) / Z.

    So if r = alpha log p for a tanh-Gaussian p of entropy -1, SAC must find p and alpha. There is
    no next state, and the data cover all actions that count: nothing is extrapolated.
    """
    mean = 0.4
    std = min(np.linspace(0.05, 0.5, 451), key=lambda d: abs(tanh_normal(mean, d) + 1))
    x = mean + std * np.random.default_rng(0).uniform(-4, 4, 20_000)
    log_p = -0.5 * ((x - mean) / std) ** 2 - np.log(1 - np.tanh(x) ** 2)
    columns = {"observations": np.ones((20_000, 1)), "actions": np.tanh(x)[:, None]}
    data = make_data(columns | {"rewards": alpha * log_p})
    args = sac.Args(env="no-env-v0", hidden=32, batch_size=128, lr=1e-2, num_updates=800)
    task = make_task(sac, 1, 1)
    columns = sac.prepare_data(args, data, task)
    agent = train(sac, args, task, columns)
    buffer = sac.ReplayBuffer(columns, args, torch.device("cpu"))
    found, entropies = [], []
    for _ in range(300):
        entropies.append(agent.update(buffer.sample())["entropy"].item())
        with torch.no_grad():
            m, log_std = agent.policy.net(torch.ones(1, 1, 1)).flatten().chunk(2)
            found.append([m.item(), log_std.exp().item(), agent.log_alpha.exp().item()])
    np.testing.assert_allclose(np.mean(found, 0), [mean, std, alpha], rtol=0.06)
    assert abs(np.mean(entropies) + 1) < 0.05


# ---- Without a dataset ----


@pytest.mark.parametrize(
    "env, dataset_file, phase",
    [
        ("Pendulum-v1", None, "online"),
        ("Pendulum-v1", "my.hdf5", "train"),
        ("hopper-medium-v2", None, "train"),
        ("rebuilt/hopper/medium-v0", None, "train"),
    ],
)
def test_only_an_environment_without_data_is_learned_online(env, dataset_file, phase):
    agent = make_agent(env=env, dataset_file=dataset_file, num_updates=70)
    assert [(part.name, part.num_updates) for part in agent.phases] == [(phase, 70)]


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1"])
def test_random_steps_are_those_of_the_environment(env_id, short_env):
    args = sac.Args(env=short_env(env_id), seed=3, random_steps=60)
    data, task = sac.random_dataset(args)
    assert (task.source, task.env_id, task.max_episode_steps) == ("random actions", args.env, 25)
    assert data["next_valid"].all() and data["episode_end"][-1] and not data["terminals"][-1]
    assert abs(data["actions"]).max() > 0.9 and abs(data["actions"].mean()) < 0.2
    env, obs, ends = sac.make_env(task), None, 0
    for i in range(60):
        if obs is None:
            obs = sac.reset_env(env, 3, i)
        np.testing.assert_array_equal(data["observations"][i], np.float32(obs))
        action = data["actions"][i].astype(float)
        obs, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_allclose(data["next_observations"][i], obs, rtol=1e-4, atol=1e-4)
        obs = data["next_observations"][i]  # a small rounding of the action grows
        assert data["rewards"][i] == pytest.approx(float(reward), rel=1e-3)
        assert data["terminals"][i] == terminated
        assert data["episode_end"][i] == (terminated or truncated or i == 59)
        if terminated or truncated:
            ends += 1
            obs = None
    assert ends >= 2
    again, same = sac.random_dataset(args)
    args.seed = 4
    assert same == task and task.fingerprint != sac.random_dataset(args)[1].fingerprint
    np.testing.assert_array_equal(again["actions"], data["actions"])


RUN = ["--seed=3", "--num-seeds=2", "--num-updates=45", "--random-steps=60", "--eval-every=20"]


def run_online(main, env_id: str, *words, run_dir: str = "run") -> dict:
    """Return the checkpoint of a small run without a dataset."""
    end = main(f"--env={env_id}", *RUN, "--run-dir", run_dir, *words, script="sac")
    assert end.code == 0 and end.err == "", end.err
    return checkpoint_of(Path(run_dir))


def test_online_steps_are_samples_of_the_policy_in_environments_of_their_own(main, short_env):
    checkpoint = run_online(main, short_env("Pendulum-v1"))
    assert checkpoint["finished"]
    steps, task = checkpoint["extra_state"], sac.Task(**checkpoint["task"])
    assert steps["actions"].shape == (2, 45, 1)
    for i in range(2):
        env, end = sac.make_env(task), True
        for k in range(45):
            step = {key: column[i, k].numpy() for key, column in steps.items()}
            if end:
                obs = sac.reset_env(env, 3, i, max(0, k - 1))
            np.testing.assert_array_equal(step["observations"], np.float32(obs))
            obs, reward, terminated, end, _ = env.step(step["actions"])
            np.testing.assert_array_equal(step["next_observations"], np.float32(obs))
            assert step["rewards"] == np.float32(reward)  # neither scaled nor shifted
            assert step["terminals"] == 0 and not terminated  # time is no terminal state
    actions = steps["actions"]
    assert actions.std() > 0.3 and abs(actions).max() < 1 and (actions[0] != actions[1]).all()
    assert curves(Path("run/tensorboard/online"))["score"] == [20, 40, 45]


def test_a_run_that_is_stopped_continues_with_its_steps(main, short_env, monkeypatch):
    env_id = short_env("Pendulum-v1")
    left = list(range(30))
    interact = sac.interact

    def stopping_interact(*args):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        interact(*args)

    with monkeypatch.context() as patch:
        patch.setattr(sac, "interact", stopping_interact)
        with pytest.raises(AssertionError, match="update 20 of phase online is saved"):
            run_online(main, env_id)
    before = checkpoint_of("run")
    end = main("--resume=run", script="sac", small=False)
    assert end.code == 0 and "new ones begin" in end.out, end.err
    after = checkpoint_of("run")
    assert after["finished"] and after["extra_state"]["rewards"].shape == (2, 45)
    for key, steps in before["extra_state"].items():
        assert torch.equal(after["extra_state"][key][:, :20], steps)


@pytest.mark.parametrize("every", [0, 7, 45])
def test_snapshots_are_the_policies_of_their_update_and_change_nothing(every, main, short_env):
    env_id = short_env("Pendulum-v1")
    plain = run_online(main, env_id, run_dir="plain")
    run_online(main, env_id, f"--snapshot-every={every}")
    assert all(torch.equal(x, checkpoint_of("run")["agent"][k]) for k, x in plain["agent"].items())
    files = {int(path.stem): path for path in Path("run").glob("snapshots/*.pt")}
    assert sorted(files) == ([*range(every, 46, every)] if every else [])
    if every == 45:
        for name, weight in torch.load(files[45], weights_only=True).items():
            assert torch.equal(weight, plain["agent"][f"policy.{name}"])
    assert not list(Path("run").glob("**/*.part"))


@pytest.mark.slow
def test_it_learns_pendulum(main):
    """From about -1300 to better than -300; -140 is what a good policy gets."""
    options = ["--random-steps=600", "--num-updates=1600", "--hidden=64", "--batch-size=128"]
    options += ["--lr=2e-3", "--polyak=0.02", "--eval-every=1600", "--final-eval-episodes=10"]
    end = main("--env=Pendulum-v1", *options, "--run-dir=run", script="sac")
    assert end.code == 0, end.err
    assert checkpoint_of("run")["final"]["returns"][0] > -300


# ---- Bad input ----


@pytest.mark.parametrize(
    "words, message",
    [
        (["--env=CartPole-v1"], ["CartPole-v1", "Discrete(2)"]),
        (["--env=Hoper-v4"], ["Hoper-v4", "neither D4RL nor Minari"]),
    ],
)
def test_bad_input_is_refused(words, message, main):
    end = main(*words, "--run-dir=run", script="sac")
    line = end.err.splitlines()[-1]  # Gymnasium-Robotics may have printed a notice before
    assert end.code == 1 and all(word in line for word in message), end.err
    assert not Path("run").exists()


def test_actions_without_bounds_are_refused():
    task = make_task(sac, env_id="Some-v0", action_low=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        sac.prepare_data(sac.Args(), {}, task)
