"""Tests of algorithms/mopo.py: its model, the rollouts in it, and answers that are known.

python -m pytest tests/test_mopo.py
"""

from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import mopo
import sac
from tests.helpers import checkpoint_of, curves, make_batch, make_data, make_task, same_end
from tests.test_every_script import stop_after

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
    "penalty": 1.0,
}


def make_agent(task=None, **options) -> mopo.MOPO:
    """Return two agents with small networks. Hopper's rule ends episodes."""
    torch.manual_seed(0)
    task = task or make_task(mopo, env_id="Hopper-v4", transitions=64)
    return mopo.MOPO(mopo.Args(**SMALL | options), task, torch.device("cpu"))


def make_buffer(columns: dict, agent) -> mopo.ReplayBuffer:
    return mopo.ReplayBuffer(columns, agent.args, torch.device("cpu"))


def healthy_columns(rows: int = 64) -> dict:
    """Return data of a Hopper that stands. Every fourth row is held out."""
    batch = make_batch(1, rows)
    columns = {key: column[0] for key, column in batch.items()}
    columns["observations"] *= 0.05
    columns["observations"][:, 0] += 1
    held_out = torch.zeros(rows)
    held_out[::4] = 1
    return columns | {"held_out": held_out, "model_learns": 1 - held_out}


# ---- The model ----


def test_the_model_learns_neither_from_held_out_rows_nor_without_a_next_state():
    batch = make_batch()
    batch["model_learns"] = (torch.arange(32) % 2).float().expand(2, 32)
    trained = []
    for change in (0.0, 9.0):
        agent = make_agent()
        for key in ("next_observations", "rewards"):
            batch[key][:, ::2] += change
        loss = agent.update_model(batch)["loss/model"]
        trained.append([loss, *agent.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))
    batch["rewards"][:, 1] += 9
    assert not torch.equal(make_agent().update_model(batch)["loss/model"], trained[0][0])


@pytest.mark.parametrize("rows, number", [(300, 54), (7_000, 1_000)])
def test_a_fifth_of_the_known_rows_is_held_out_but_a_thousand_at_most(rows, number):
    rng = np.random.default_rng(0)
    columns = {"observations": rng.normal(3, 2, (rows, 4)), "actions": rng.normal(size=(rows, 2))}
    columns |= {"rewards": rng.normal(size=rows), "terminals": np.arange(rows) % 10 == 0}
    data = make_data(columns)
    task = make_task(mopo, env_id="Hopper-v4")
    columns = mopo.prepare_data(mopo.Args(**SMALL), data, task)
    held_out, learned_from = columns["held_out"] > 0, columns["model_learns"] > 0
    assert held_out.sum() == number
    assert not (held_out & learned_from).any()
    assert ((held_out | learned_from) == (columns["terminals"] == 0)).all()
    np.testing.assert_allclose(task.obs_mean, data["observations"].mean(0), rtol=1e-4)
    np.testing.assert_allclose(task.obs_std, data["observations"].std(0), rtol=1e-4)


def test_each_network_is_kept_as_it_was_at_its_best():
    """It counts only if the error falls by more than 1 %, and then for this network alone."""
    agent = make_agent(patience=1)
    buffer = make_buffer(healthy_columns(), agent)
    assert agent.epoch == 2
    assert not agent.check_model(buffer)
    first = agent.model.best.clone()
    torch.testing.assert_close(first, agent.model.numbers())
    assert torch.equal(agent.best_error, agent.error)

    # Network 1 of agent 0 becomes better, and network 2 of agent 1 by too little.
    agent.best_error[0, 1] *= 2
    agent.best_error[1, 2] *= 1.005
    errors = agent.best_error.clone()
    with torch.no_grad():
        for weight in agent.model.net.parameters():
            weight += 1e-6
    agent.optimizers["model"].step_count.fill_(1)
    assert not agent.check_model(buffer)
    changed = (agent.model.best != first).any(1).view(2, 4)
    assert changed.tolist() == [[False, True, False, False], [False] * 4]
    assert agent.best_error[0, 1] < 0.6 * errors[0, 1] and agent.best_error[1, 2] == errors[1, 2]
    assert agent.last_progress.tolist() == [1, 0]
    order = agent.best_error.argsort(1)[:, :2]
    assert torch.equal(agent.elites.sort(1).values, order.sort(1).values)

    agent.model.restore()
    assert torch.equal(agent.model.numbers(), agent.model.best)


def test_the_model_stops_without_progress_and_agents_do_not_depend_on_others():
    agent = make_agent(patience=3)
    buffer = make_buffer(healthy_columns(), agent)
    stopped = []
    for epoch in range(8):
        agent.optimizers["model"].step_count.fill_(epoch * agent.epoch)
        if epoch in (1, 2):
            agent.best_error[1] *= 2  # so that only agent 1 makes progress
        if epoch == 4:
            agent.best_error[0] *= 2  # too late for agent 0, which is ready
        stopped.append(agent.check_model(buffer))
        state = {key: value.clone() for key, value in agent.state_dict().items()}
        assert agent.check_model(buffer) == stopped[-1]
        assert all(torch.equal(state[key], value) for key, value in agent.state_dict().items())
    assert stopped == [False] * 5 + [True] * 3
    assert agent.last_progress.tolist() == [0, 2 * agent.epoch]


def linear_system(rng, rows: int) -> tuple[dict, dict]:
    """Return data of a linear system with Gaussian noise, and its true means and deviations."""
    obs, action = rng.normal(size=(rows, 2)), rng.uniform(-1, 1, (rows, 1))
    mean = np.hstack([0.5 * obs[:, ::-1] - 0.3 * action, obs[:, :1] + action])
    std = np.array([0.15, 0.3, 0.2])
    change = mean + std * rng.normal(size=mean.shape)
    columns = {"observations": obs, "actions": action, "rewards": change[:, 2]}
    columns |= {"next_observations": obs + change[:, :2], "terminals": np.zeros(rows)}
    return columns, {"mean": mean, "std": std}


def test_the_model_finds_a_linear_gaussian_system_and_doubts_away_from_its_data():
    rng = np.random.default_rng(0)
    columns, truth = linear_system(rng, 20_000)
    task = make_task(mopo, 2, 1, env_id="HalfCheetah-v4", transitions=20_000)
    options = {"num_seeds": 1, "batch_size": 256, "members": 5, "model_hidden": 24}
    agent = make_agent(task, **options, patience=100)
    columns = mopo.prepare_data(agent.args, make_data(columns), task)
    buffer = make_buffer(columns, agent)
    for lr, updates in ((2e-3, 1_000), (2e-4, 400)):
        agent.optimizers["model"].lr.fill_(lr)
        for _ in range(updates):
            agent.update_model(buffer.sample())
    agent.check_model(buffer)
    agent.model.restore()

    columns, truth = linear_system(rng, 2_000)
    obs, action = (torch.tensor(columns[k]).float()[None] for k in ("observations", "actions"))
    with torch.no_grad():
        mean, log_var = agent.model(agent.standardize(obs), action)
        far = agent.model(agent.standardize(6 * obs), action)[1]
    for member in agent.elites[0]:
        error = (mean[0, member].numpy() - truth["mean"]).std(0)
        assert (error < 0.05 * truth["mean"].std(0)).all(), error
    variance = log_var[0, agent.elites[0]].exp().mean((0, 1)).numpy()
    np.testing.assert_allclose(variance, truth["std"] ** 2, rtol=0.05)
    penalties = [(part / 2).exp().norm(dim=-1).amax(1).mean() for part in (log_var, far)]
    assert penalties[1] > 1.05 * penalties[0]
    assert penalties[0] == pytest.approx(np.linalg.norm(truth["std"]), rel=0.05)


# ---- Ends of episodes ----


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("name, height", [("Hopper", 1), ("Walker2d", 1), ("Ant", 2)])
def test_the_rules_are_those_of_the_environments(name, version, height):
    task = make_task(mopo, env_id=f"{name}-{version}")
    ends = mopo.known_termination(mopo.Args(), task)
    env = gym.make(task.env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    qpos, qvel = env.unwrapped.init_qpos, env.unwrapped.init_qvel
    found = []
    for z in np.linspace(0.1, 2.2, 43):
        for tilt in (0, 0.15, -0.19, 0.4, -1.2) if name != "Ant" else (0,):
            qpos[2] = tilt
            qpos[height] = z
            env.unwrapped.set_state(qpos, qvel)
            obs, _, terminated, _, _ = env.step(env.action_space.sample())
            assert ends(torch.as_tensor(obs)) == terminated, (z, tilt)
            found.append(terminated)
    assert 0.1 < np.mean(found) < 0.95
    assert ends(torch.full((3, len(obs)), torch.nan)).all()


def test_what_is_not_known_is_learned():
    args = mopo.Args()
    assert not mopo.known_termination(args, make_task(mopo, env_id="HalfCheetah-v5"))(
        torch.full((3, 17), 1e3)
    ).any()
    for unknown in ({"env_id": "AntMaze-umaze-v2"}, {"env_id": "Pendulum-v1"}):
        assert mopo.known_termination(args, make_task(mopo, **unknown)) is None
    other_rule = {"env_id": "Hopper-v4", "env_kwargs": {"healthy_z_range": [0.5, 2]}}
    assert mopo.known_termination(args, make_task(mopo, **other_rule)) is None
    args.termination = "learned"
    assert mopo.known_termination(args, make_task(mopo, env_id="Hopper-v4")) is None


def test_ends_are_learned_with_their_probability():
    """An episode ends with probability 0.8 if the action is positive, else never."""
    task = make_task(mopo, 4, 1, env_id="Other-v0", transitions=64)
    agent = make_agent(task, model_lr=1e-2, rollouts=2_000, rollout_length=1)
    draw = torch.Generator().manual_seed(0)
    for seed in range(150):
        batch = make_batch(2, 256, act_dim=1, seed=seed)
        ends = torch.rand(2, 256, generator=draw) < 0.8
        batch["terminals"] = (ends & (batch["actions"][..., 0] > 0)).float()
        agent.update_model(batch | {"model_learns": torch.ones(2, 256)})
    torch.manual_seed(0)
    agent.roll_out(make_buffer(healthy_columns(), agent))
    rows = agent.model_rows.sample(4_000)
    action = rows["actions"][..., 0]
    for of_kind, expected in ((action > 0.2, 0.8), (action < -0.2, 0.0)):
        assert rows["terminals"][of_kind].mean().item() == pytest.approx(expected, abs=0.1)


# ---- Rollouts ----


def test_the_ring_keeps_the_newest_rows_of_each_agent():
    rows = mopo.ModelRows(2, 7, 1, 1, torch.device("cpu"))
    newest = [[], []]
    draw = torch.Generator().manual_seed(0)
    for i in range(6):
        kept = torch.rand(2, 4, generator=draw) < 0.6
        values = 10.0 * i + torch.arange(8.0).view(2, 4)
        step = {"observations": values[..., None], "actions": values[..., None] + 0.1}
        step |= {"rewards": values + 0.2, "terminals": values + 0.3}
        rows.add(step | {"next_observations": values[..., None] + 0.4}, kept)
        for agent in range(2):
            newest[agent] = (newest[agent] + values[agent][kept[agent]].tolist())[-7:]
        if min(map(len, newest)) > 0:
            sample = rows.sample(400)
            for agent in range(2):
                assert set(sample["observations"][agent, :, 0].tolist()) == set(newest[agent])
    assert rows.size.tolist() == [7, 7] and rows.num_added[0] != rows.num_added[1]
    for shift, key in enumerate(("actions", "rewards", "terminals", "next_observations"), 1):
        column = sample[key].reshape(2, 400)
        torch.testing.assert_close(column, sample["observations"][..., 0] + 0.1 * shift)


def test_rollouts_end_with_their_episode_and_say_so(monkeypatch):
    """So no row begins in a terminal state, and none is bootstrapped through."""
    monkeypatch.setattr(mopo, "ROLLOUTS_AT_ONCE", 15)  # 40 rollouts are 15, 15 and 10
    agent, plain = make_agent(rollout_length=5), make_agent(rollout_length=5, penalty=0.0)
    for each in (agent, plain):
        each.model.max_log_var.data.fill_(-5)  # else Hopper would fall at once
        torch.manual_seed(1)
        each.roll_out(make_buffer(healthy_columns(), each))
    counts = agent.model_rows.size
    torch.testing.assert_close(agent.rollout_length, counts / 40)
    assert (counts > 60).all() and (counts < 190).all() and counts[0] != counts[1]
    for n in range(2):
        rows = agent.model_rows.rows[n, : counts[n]]
        obs, action, reward, terminal, next_obs = rows.split(agent.model_rows.widths, 1)
        assert not mopo.hopper_ends(obs).any()
        assert torch.equal(terminal.squeeze(1) > 0, mopo.hopper_ends(next_obs))
        assert 10 < terminal.sum() <= 40
        starts = {row.numpy().tobytes() for row in next_obs[terminal.squeeze(1) == 0]}
        begun = [row.numpy().tobytes() in starts for row in obs]
        assert begun.count(False) == 40
    low, middle, high = agent.penalties
    assert (low > 0).all() and (low < middle).all() and (middle < high).all()
    assert not (plain.model_rows.rows != agent.model_rows.rows)[..., :6].any()
    difference = (plain.model_rows.rows - agent.model_rows.rows)[0, : counts[0], 6]
    assert difference.median() == pytest.approx(middle[0].item(), rel=0.05)


def test_a_batch_has_few_rows_of_the_data_and_many_of_the_model():
    agent = make_agent(batch_size=256)
    agent.model_rows.rows.fill_(7)
    mixed = agent.mix(make_batch(size=256))
    assert mixed.keys() == make_batch().keys() - {"next_valid"}
    for key, column in mixed.items():
        assert torch.equal(column[:, :12], make_batch(size=256)[key][:, :12])  # 5 %
        assert column.shape == make_batch(size=256)[key].shape and (column[:, 12:] == 7).all()


@pytest.mark.parametrize("terminal", [0.0, 1.0])
def test_the_target_ends_at_terminals_of_the_data_and_of_the_model(terminal):
    batch = make_batch()
    batch["terminals"].fill_(terminal)
    losses = []
    for shift in (0.0, 1.0):
        agent = make_agent(real_ratio=0.5)
        agent.roll_out(make_buffer(healthy_columns(), agent))
        agent.model_rows.rows[..., 7] = terminal
        with torch.no_grad():
            agent.critic_target.net[-1].bias += shift
        torch.manual_seed(1)
        losses.append(agent.update(batch)["loss/critic"])
    assert torch.equal(*losses) == bool(terminal)


def test_the_updates_on_a_given_batch_are_those_of_sac(monkeypatch):
    agent = make_agent(real_ratio=1.0, policy_lr=3e-4, decay_updates=10**12)
    options = {"num_seeds": 2, "batch_size": 32, "hidden": 16}
    other = sac.SAC(sac.Args(**options), make_task(sac, env_id="Hopper-v4"), "cpu")
    shared = {k: v for k, v in agent.state_dict().items() if k in other.state_dict()}
    other.load_state_dict(shared)
    assert len(shared) == len(other.state_dict())
    for seed in range(3):
        batch = make_batch(seed=seed)
        batch.pop("next_valid")
        nothing = {key: column[:, :0] for key, column in batch.items()}
        monkeypatch.setattr(agent.model_rows, "sample", lambda count, rows=nothing: rows)
        for learner in (agent, other):
            torch.manual_seed(seed)
            learner.update(batch)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(agent.state_dict()[name], value)
    for name, optimizer in other.optimizers.items():
        torch.testing.assert_close(agent.optimizers[name].state(), optimizer.state())


# ---- Runs ----


@pytest.fixture
def run_on_hopper(main, tiny_hdf5):
    """Return `run(*words)`, a small run on falls of Hopper."""
    tiny_hdf5(Path("hopper.hdf5"))
    data = ["--env=Hopper-v4", "--dataset-file=hopper.hdf5", "--num-seeds=2", "--num-updates=9"]
    options = ["--model-lr=0.02", "--patience=2", "--model-updates=400", "--eval-every=15"]

    def run(*words) -> SimpleNamespace:
        return main(*data, *options, *words, script="mopo")

    return run


def test_a_model_that_stops_by_itself_is_resumed_exactly(run_on_hopper, main, monkeypatch):
    end = run_on_hopper("--run-dir=whole")
    assert end.code == 0, end.err
    line = [line for line in end.out.splitlines() if line.startswith("model")][-1]
    stopped_at = int(line.split()[2])
    assert stopped_at % 20 == 0 and 40 <= stopped_at < 400

    def begin() -> SimpleNamespace:
        return run_on_hopper("--run-dir=run")

    def resume() -> SimpleNamespace:
        return main("--resume=run", script="mopo", small=False)

    # Before the first save, between two saves, when the model stops, and among rollouts
    stops = [(begin, 10), (resume, 17), (resume, stopped_at - 15), (resume, 4)]
    for command, batches in stops:
        with monkeypatch.context() as patch:
            stop_after(batches, mopo, patch)
            end = command()
        assert end.code == 1 and "is saved; to continue" in end.err, end.err
    assert checkpoint_of("run")["step"] == stopped_at
    assert resume().code == 0
    assert same_end("run", "whole") == []


def test_the_model_and_its_rollouts_have_curves(run_on_hopper):
    assert run_on_hopper("--run-dir=run", "--eval-every=3", "--model-updates=20").code == 0
    model, train = (curves(Path("run/tensorboard", phase)) for phase in ("model", "train"))
    assert {"loss/model", "holdout/all", "holdout/elites"} <= model.keys()
    names = {"model/rows", "model/rollout_length", "penalty/0.05", "penalty/0.5", "penalty/0.95"}
    assert names <= train.keys() and train["penalty/0.5"] == [3, 6, 9]


# ---- Settings and bad input ----


@pytest.mark.parametrize(
    "env, length, penalty",
    [
        ("rebuilt/hopper/medium-replay-81k-v0", 5, 2.5),
        ("rebuilt/halfcheetah/medium-replay-108k-v0", 5, 0.5),
        ("rebuilt/hopper/medium-snapshot5-v0", 5, 5.0),
        ("hopper-medium-expert-v2", 5, 5.0),
        ("walker2d-medium-v2", 5, 0.5),
        ("walker2d-medium-replay-v2", 1, 2.5),
        ("walker2d-random-v2", 1, 1.0),
        ("halfcheetah-medium-expert-v2", 5, 2.5),
    ],
)
def test_settings_are_the_published_ones(env, length, penalty):
    args = mopo.apply_settings(mopo.Args(env=env))
    assert (args.rollout_length, args.penalty) == (length, penalty)


def test_what_does_not_fit_into_memory_ends_in_a_line():
    with pytest.raises(SystemExit, match=r"need \d+.\d GB of memory, .* lower --num-seeds"):
        make_agent(rollouts=10**10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"elites": 5}, "--elites 5 are more than the --members 4"),
        ({"rollouts": 0}, "--rollouts must be at least 1"),
        ({"real_ratio": 1.5}, "--real-ratio must lie between"),
    ],
)
def test_sizes_are_checked(options, message):
    args = mopo.Args(**SMALL | options)
    with pytest.raises(SystemExit, match=message):
        mopo.prepare_data(args, {}, make_task(mopo, env_id="Hopper-v4"))


def test_actions_without_bounds_and_too_few_rows_are_refused():
    task = make_task(mopo, env_id="Some-v0", action_low=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        mopo.prepare_data(mopo.Args(), {}, task)
    columns = {"observations": np.zeros((4, 4)), "actions": np.zeros((4, 2)), "rewards": np.ones(4)}
    data = make_data(columns | {"terminals": np.zeros(4)})
    with pytest.raises(SystemExit, match="at least 5 rows"):
        mopo.prepare_data(mopo.Args(**SMALL), data, make_task(mopo, env_id="Hopper-v4"))
