"""Tests of algorithms/dt.py: who sees what, the contexts, the targets, known answers.

python -m pytest tests/test_dt.py
"""

import gymnasium as gym
import numpy as np
import pytest
import torch

import dt
from tests.helpers import curves, make_data, make_task, result_of, train

SMALL = {"hidden": 16, "num_blocks": 2, "context": 5, "warmup_updates": 5, "return_scale": 1.0}


def make_agent(**options) -> dt.DecisionTransformer:
    """Return two agents with small networks, 4 observations and 2 actions."""
    torch.manual_seed(0)
    args = dt.Args(**SMALL | {"num_seeds": 2} | options)
    task = make_task(dt, max_episode_steps=30, obs_mean=[1, 2, 3, 0], obs_std=[2, 1, 0.5, 1])
    agent = dt.DecisionTransformer(args, task, "cpu")
    for parameter in agent.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # so that attention is not even
    return agent.eval()


def make_contexts(size: int = 8, length: int = 5) -> torch.Tensor:
    """Return contexts (2, size, length, 9) without padding."""
    torch.manual_seed(1)
    contexts = torch.randn(2, size, length, 9)
    contexts[..., 0] = 1
    contexts[..., 1] = torch.randint(20, (2, size, 1)) + torch.arange(length)
    return contexts


def make_rows(lengths: list[int], rest: int = 0) -> dict:
    """Return complete episodes, then `rest` rows without an end. Observations name their rows."""
    count = sum(lengths) + rest
    episode_end = np.zeros(count, bool)
    episode_end[np.cumsum(lengths) - 1] = True
    rng = np.random.default_rng(count)
    obs = rng.standard_normal((count, 4))
    obs[:, 0] = np.arange(count)
    columns = {"observations": obs, "actions": rng.uniform(-1, 1, (count, 2))}
    return make_data(columns | {"rewards": rng.standard_normal(count)}, episode_end)


def prepared(data: dict, known=None, **options) -> tuple:
    """Return the columns after prepare_data(), and the arguments and the task."""
    args = dt.Args(**SMALL | {"targets": [1.0]} | options)
    task = make_task(dt, **{"max_episode_steps": 30} | (known or {}))
    return dt.prepare_data(args, data, task), args, task


# ---- Who sees what ----


def test_predictions_do_not_depend_on_what_comes_later():
    """A step's action is later than its prediction, too."""
    agent, contexts = make_agent(), make_contexts()
    plain = agent(contexts)
    for step in range(5):
        for part in (slice(2, 3), slice(3, 7), slice(7, 9)):  # return, observation, action
            changed = contexts.clone()
            changed[:, :, step, part] += 1
            found = agent(changed)
            later = step + 1 if part.start == 7 else step
            assert torch.equal(found[:, :, :later], plain[:, :, :later])
            assert ((found[:, :, later:] - plain[:, :, later:]).abs().amax((1, 3)) > 1e-4).all()


def test_a_padded_context_gives_the_actions_of_one_without_padding():
    agent, contexts = make_agent(), make_contexts()
    for length in range(1, 6):
        padded = torch.zeros_like(contexts)
        padded[:, :, 5 - length :] = contexts[:, :, :length]
        found, plain = agent(padded), agent(contexts[:, :, :length])
        torch.testing.assert_close(found[:, :, 5 - length :], plain, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(agent.act(padded), plain[:, :, -1], rtol=1e-5, atol=1e-6)


def test_what_padding_holds_changes_nothing():
    contexts = make_contexts()
    contexts[:, ::2, :3, 0] = 0
    other = contexts.clone()
    other[:, ::2, :3, 2:] = 7
    losses = [make_agent(dropout=0.0).update({"observations": x}) for x in (contexts, other)]
    assert torch.equal(losses[0]["loss/policy"], losses[1]["loss/policy"])
    assert torch.equal(losses[0]["gradient_norm"], losses[1]["gradient_norm"])


def test_the_loss_is_the_mean_over_steps_that_are_no_padding():
    agent, contexts = make_agent(), make_contexts()
    contexts[:, 0, :4, 0] = 0
    contexts[:, 1, :2, 0] = 0
    error = ((agent(contexts) - contexts[..., 7:]) ** 2).mean(-1)
    kept = [error[:, 0, 4:], error[:, 1, 2:], error[:, 2:].flatten(1)]
    expected = torch.cat(kept, 1).mean(1)
    loss = agent.update({"observations": contexts})["loss/policy"]
    torch.testing.assert_close(loss, expected)


def test_dropout_acts_in_training_alone():
    agent, contexts = make_agent(dropout=0.5), make_contexts()
    assert torch.equal(agent(contexts), agent(contexts))
    agent.train()
    assert not torch.allclose(agent(contexts), agent(contexts), atol=1e-3)


def test_gradients_are_clipped_by_each_agents_own_norm():
    torch.manual_seed(0)
    grads = [torch.randn(3, 4, 5), torch.randn(3, 7), torch.randn(3, 1, 2, 2)]
    for grad in grads:
        grad[1] *= 1e-3
    clipped, norm = dt.clip_by_norm(grads, 0.25)
    for n in range(3):
        params = [torch.zeros_like(grad[n], requires_grad=True) for grad in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad[n].clone()
        expected = torch.nn.utils.clip_grad_norm_(params, 0.25)
        torch.testing.assert_close(norm[n], expected)
        for param, grad in zip(params, clipped, strict=True):
            torch.testing.assert_close(grad[n], param.grad)
    assert norm[1] < 0.25 < norm[0]


def test_the_learning_rate_grows_and_stays():
    agent = make_agent(lr=0.1, warmup_updates=4)
    optimizer = agent.optimizers["policy"]
    rates = []
    for _ in range(6):
        agent.update({"observations": make_contexts()})
        rates.append(optimizer.lr.item())
    np.testing.assert_allclose(rates, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-6)


# ---- Contexts ----

LENGTHS = [3, 9, 1, 6]


def authors_context(data: dict, first: int, length: int = 5) -> np.ndarray:
    """Return the context that begins in a row, step by step as get_batch() of experiment.py."""
    ends = np.flatnonzero(data["episode_end"])
    end = ends[ends >= first][0]
    start = max([-1, *ends[ends < first]]) + 1
    rows = range(first, min(first + length, end + 1))
    context = np.zeros((length, 9))
    for i, row in enumerate(rows):
        step = context[length - len(rows) + i]
        step[:3] = (1, row - start, data["rewards"][row : end + 1].sum())
        step[3:7] = data["observations"][row]
        step[7:] = data["actions"][row]
    return context


def test_contexts_are_the_authors():
    data = make_rows(LENGTHS, rest=4)
    columns, args, task = prepared(data, num_seeds=2, batch_size=400)
    assert len(columns["observations"]) == 19  # the unfinished episode has no returns
    buffer = dt.ReplayBuffer(columns, args, torch.device("cpu"))
    contexts = buffer.sample()["observations"].numpy()
    assert contexts.shape == (2, 400, 5, 9)
    firsts = []
    for context in contexts.reshape(800, 5, 9):
        first = int(context[np.flatnonzero(context[:, 0])[0], 3])
        firsts.append(first)
        np.testing.assert_allclose(context, authors_context(data, first), atol=1e-5)
    counts = np.bincount(firsts, minlength=19)
    assert counts.min() > 20 and counts.max() < 75  # all rows are as likely: 42 times each
    assert not np.array_equal(*contexts)


def test_observations_are_standardised_over_complete_episodes():
    data = make_rows(LENGTHS, rest=4)
    data["observations"][:, 2] = 4
    _, _, task = prepared(data)
    obs = data["observations"][:19].astype(float)
    np.testing.assert_allclose(task.obs_mean, obs.mean(0))
    np.testing.assert_allclose(task.obs_std, obs.std(0) + 1e-6)


def test_times_beyond_the_limit_count_as_its_last_step():
    columns, _, _ = prepared(make_rows([9]), {"max_episode_steps": 4})
    assert columns["observations"][:, 1].tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]


class Recorded(gym.Env):
    """Replays an episode of the data, whatever is done."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, data: dict):
        self.data = data

    def reset(self, *, seed=None, options=None):
        self.row = 0
        return self.data["observations"][0], {}

    def step(self, action):
        reward = self.data["rewards"][self.row]
        self.row += 1
        return self.data["observations"][self.row], reward, False, False, {}


def test_an_episode_is_seen_in_evaluation_as_in_training():
    """But for the last action, which is not known yet."""
    data = make_rows([12])
    env = dt.Context(Recorded(data), 5, target=data["rewards"].sum(dtype=float))
    for _ in range(2):  # a reset forgets everything
        context, _ = env.reset()
        for row in range(11):
            expected = authors_context(data, max(row - 4, 0), min(row + 1, 5))
            expected[-1, 7:] = 0
            assert context.shape == env.observation_space.shape == (5, 9)
            np.testing.assert_allclose(context[-len(expected) :], expected, atol=1e-5)
            assert (context[: -len(expected)] == 0).all()
            kept = context.copy()
            following = env.step(data["actions"][row])[0]
            assert np.array_equal(context, kept)  # it is not changed under the hands of its reader
            context = following


# ---- Targets ----


def test_targets_are_the_published_ones():
    def targets(env: str) -> list[float]:
        return dt.apply_settings(dt.Args(env=env)).targets

    assert targets("hopper-medium-expert-v2") == targets("mujoco/hopper/medium-v0") == [3600, 1800]
    assert targets("halfcheetah-medium-v2") == [6000, 12000]
    assert targets("walker2d-medium-replay-v2") == [5000, 2500]
    assert targets("antmaze-large-play-v2") == targets("antmaze-umaze-v2") == [1, 0.5]
    assert targets("pen-cloned-v1") == [3100, 1550]
    assert targets("hammer-human-v1") == [12800, 6400]
    assert targets("door-expert-v1") == [2900, 1450]
    assert targets("relocate-human-v1") == [4300, 2150]
    assert targets("maze2d-umaze-v1") == [280, 140]
    assert targets("antmaze-umaze-diverse-v2") == [1, 0.5, 0.25, 0.125, 0.06, 0.03]


def test_without_published_targets_they_are_the_best_and_the_mean():
    data = make_rows(LENGTHS, rest=4)
    returns = [part.sum() for part in np.split(data["rewards"], np.cumsum(LENGTHS))[:4]]
    columns, args, _ = prepared(data, targets=[], return_scale=0.0)
    np.testing.assert_allclose(args.targets, [max(returns), np.mean(returns)], rtol=1e-5)
    assert args.return_scale == pytest.approx(np.abs(columns["observations"][:, 2]).max())
    _, args, _ = prepared(data, targets=[7.0], return_scale=0.0)
    assert args.targets == [7.0]
    _, args, _ = prepared(data | {"rewards": 0 * data["rewards"]}, targets=[], return_scale=0.0)
    assert args.targets == [0, 0] and args.return_scale == 1


def test_all_targets_are_evaluated_and_the_first_is_the_score(main, tiny_hdf5, isolated):
    tiny_hdf5(isolated / "data.hdf5")
    words = ["--env=hopper-medium-v2", "--dataset-file=data.hdf5", "--num-updates=8"]
    words += ["--lr=0.1", "--run-dir=run"]
    assert main(*words, "--targets", "50", "-3000", script="dt").code == 0
    final = result_of(isolated / "run")["final"]
    assert [found["target"] for found in final["targets"]] == [50, -3000]
    first, second = final["targets"]
    assert first["returns"] == final["returns"] != second["returns"]
    assert first["scores"] == final["scores"] != second["scores"]
    steps = curves(isolated / "run" / "tensorboard" / "train")
    for name in ("score", "score/target_50", "return/target_-3000"):
        assert steps[name] == [8]


# ---- Known answers ----


class Bank(gym.Env):
    """Two steps, each of which pays the action."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.ones(1, np.float32), float(action[0]), self.steps == 2, False, {}


def test_it_earns_the_return_that_it_is_asked_for(monkeypatch):
    """By what is left after the first step, whose mean is half of it."""
    gym.register("Bank-v0", Bank, max_episode_steps=2)
    monkeypatch.setitem(gym.registry, "Bank-v0", gym.registry.pop("Bank-v0"))
    rng = np.random.default_rng(0)
    columns = {"observations": np.ones((4000, 1)), "actions": rng.uniform(-1, 1, (4000, 1))}
    columns["rewards"] = columns["actions"][:, 0]
    task = make_task(dt, 1, 1, env_id="Bank-v0", max_episode_steps=2)
    sizes = {"hidden": 32, "num_blocks": 1, "context": 2, "batch_size": 64, "num_updates": 500}
    args = dt.Args(**SMALL | sizes | {"num_seeds": 2, "lr": 3e-3, "targets": [1.0]})
    columns = dt.prepare_data(args, make_data(columns, np.arange(4000) % 2 == 1), task)
    agent = train(dt, args, task, columns)
    for target in (-1.2, -0.5, 0.0, 0.8, 1.4):
        np.testing.assert_allclose(dt.evaluate(agent, task, 2, target), target, atol=0.12)
        first, _ = dt.Context(Bank(), 2, target).reset()
        with torch.no_grad():
            action = agent.eval().act(torch.as_tensor(first).expand(2, 1, 2, 5))
        np.testing.assert_allclose(action, target / 2, atol=0.12)
    np.testing.assert_allclose(dt.evaluate(agent, task, 2), 1.0, atol=0.12)  # the first target


# ---- What cannot work ----


@pytest.mark.parametrize(
    "known, options, words",
    [
        ({"ordered": False}, {}, "not in the order of time"),
        ({"action_low": None}, {}, "without bounds"),
        ({}, {"context": 0}, "--context"),
        ({}, {"dropout": 1.0}, "--dropout"),
    ],
)
def test_what_cannot_work_is_refused(known, options, words):
    with pytest.raises(SystemExit, match=words):
        prepared(make_rows(LENGTHS), known, **options)
