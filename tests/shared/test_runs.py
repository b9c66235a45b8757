"""Tests of what a run leaves and prints, and of its evaluations.

What makes no difference in which script is tested for por.py. tests/test_every_script.py runs every
script.

    python -m pytest tests/shared/test_runs.py
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import (
    call_main,
    checkpoint_of,
    curves,
    make_task,
    result_of,
    small_options,
)

DATA = ["--env=hopper-medium-v2", "--dataset-file=data.hdf5"]
STATISTICS = {"loss/value", "loss/guide", "loss/execute", "value", "weight"}


@pytest.fixture(scope="module")
def q_run(tmp_path_factory, tiny_hdf5, por) -> SimpleNamespace:
    """Return the folder and the end of a run with both phases of guide q, of agents 5 and 6."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_hdf5(folder / "data.hdf5")
    words = [*small_options("por"), *DATA, "--seed=5", "--num-seeds=2", "--guide=q"]
    words += ["--behavior-updates=23", "--num-updates=40", "--eval-every=15", "--run-dir=run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(por, "LOG_EVERY", 10)
        end = call_main("por", words, folder)
    assert end.code == 0, end.err
    return SimpleNamespace(folder=folder / "run", out=end.out, err=end.err)


# ---- What a run leaves ----


def test_evaluations_have_their_updates_episodes_and_scores(q_run):
    result = result_of(q_run.folder)
    found = [(e["phase"], e["update"], e["episodes"]) for e in result["evaluations"]]
    assert found == [("train", 15, 2), ("train", 30, 2), ("train", 40, 3)]
    for evaluation in result["evaluations"]:
        returns, scores = np.array(evaluation["returns"]), np.array(evaluation["scores"])
        assert returns.shape == scores.shape == (2,)
        np.testing.assert_allclose(scores, 100 * (returns + 20.272305) / (3234.3 + 20.272305))
    assert result["final"] == result["evaluations"][-1]


def test_the_result_says_where_it_comes_from(q_run, por):
    result = result_of(q_run.folder)
    assert result["script"] == "por" and result["finished"] is True
    assert (result["phase"], result["step"]) == (1, 40)
    args, task = result["args"], result["task"]
    assert args["tau"] == 0.7 and args["guide"] == "q" and args["num_updates"] == 40
    assert por.Args(**args) and por.Task(**task)
    assert (task["env_id"], task["obs_dim"], task["act_dim"]) == ("Hopper-v4", 11, 3)
    assert re.fullmatch("[0-9a-f]{64}", task["fingerprint"])
    assert len(result["commits"]) == 1
    assert re.match("unknown|[0-9a-f]{40}", result["commits"][0])
    versions = result["versions"]
    assert {"torch", "numpy", "gymnasium", "minari", "mujoco"} <= versions.keys()
    assert versions["torch"] == str(torch.__version__)
    assert isinstance(result["device"], str) and result["device"]


def test_the_folder_holds_three_things(q_run):
    names = {path.name for path in q_run.folder.iterdir()}
    assert names == {"checkpoint.pt", "result.json", "tensorboard"}
    text = (q_run.folder / "result.json").read_text()
    assert "NaN" not in text and json.loads(text) == result_of(q_run.folder)


def test_curves_have_their_points(q_run):
    both = {tag for name in STATISTICS for tag in (name, f"{name}/agent0", f"{name}/agent1")}
    train = curves(q_run.folder / "tensorboard/train")
    assert train.keys() == both | {
        tag for name in ("return", "score") for tag in (name, f"{name}/agent0", f"{name}/agent1")
    }
    assert all(train[tag] == [10, 15, 20, 30, 40] for tag in both)
    assert train["score"] == train["return/agent1"] == [15, 30, 40]
    behavior = curves(q_run.folder / "tensorboard/behavior")
    assert behavior["loss/behavior"] == behavior["loss/behavior/agent0"] == [10, 15, 20, 23]
    assert len(behavior) == 3


def test_the_points_of_the_curves_are_the_results(q_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(q_run.folder / "tensorboard/train"))
    events.Reload()
    *_, last = result_of(q_run.folder)["evaluations"]
    assert events.Scalars("score")[-1].value == pytest.approx(np.mean(last["scores"]), rel=1e-5)
    for i in (0, 1):
        point = events.Scalars(f"return/agent{i}")[-1].value
        assert point == pytest.approx(last["returns"][i], rel=1e-5)
    assert "hyperparameters/text_summary" in events.Tags()["tensors"]
    text = events.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0]
    assert json.loads(text) == result_of(q_run.folder)["args"]


def test_a_run_prints_a_line_for_every_evaluation(q_run):
    assert q_run.err == ""
    lines = q_run.out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("settings for hopper-medium: {'tau': 0.7, 'alpha': 50.0")
    assert "400 rows, " in lines[1] and lines[1].endswith("run: run")
    updates = [line.partition(":")[0] for line in lines[2:-1]]
    assert updates == [
        *("behavior, update 15 of 23", "behavior, update 23 of 23"),
        *("train, update 15 of 40", "train, update 30 of 40", "train, update 40 of 40"),
    ]
    scores = np.array(result_of(q_run.folder)["final"]["scores"])
    expected = f"score {scores.mean():.1f} ± {scores.std():.1f}, 2 agents x 3 episodes"
    assert lines[-2].endswith(expected)
    assert lines[-1] == "run: result.json, checkpoint.pt, tensorboard"


def test_four_lines_act_with_a_stored_policy(q_run, por):
    checkpoint = torch.load(q_run.folder / "checkpoint.pt", weights_only=True)
    args, task = por.Args(**checkpoint["args"]), por.Task(**checkpoint["task"])
    agent = por.Algorithm(args, task, "cpu")
    agent.load_state_dict(checkpoint["agent"])
    returns = por.evaluate(agent, task, 3).mean(axis=1)
    assert returns.tolist() == checkpoint["final"]["returns"]


# ---- Whose data ----


def test_an_own_file_for_a_gymnasium_environment_has_returns(tiny_hdf5, pendulum, main):
    tiny_hdf5(Path("my.hdf5"), pendulum())
    words = ["--env=Pendulum-v1", "--dataset-file=my.hdf5", "--num-updates=9", "--run-dir=run"]
    end = main(*words)
    assert end.code == 0, end.err
    assert ": return -" in end.out and "score" not in end.out
    result = result_of("run")
    assert (result["task"]["obs_dim"], result["task"]["act_dim"]) == (3, 1)
    assert result["task"]["ref_min"] is None and result["task"]["episodes"] == 6
    assert result["task"]["action_high"] == [2.0]
    assert result["final"]["scores"] == result["final"]["returns"]
    assert -2000 < result["final"]["returns"][0] < -100


def test_a_rebuilt_dataset_trains_by_its_id(tiny_minari, main):
    tiny_minari("rebuilt/hopper/tiny-v0")
    end = main("--env=rebuilt/hopper/tiny-v0", "--num-updates=9")
    assert end.code == 0, end.err
    (run_dir,) = Path("runs").iterdir()  # without --run-dir the folder is named after the run
    assert run_dir.name.startswith("por-rebuilt-hopper-tiny-v0-seed0-")
    task = result_of(run_dir)["task"]
    assert (task["source"], task["ref_max"], task["env_id"]) == ("rebuilt", 3000.0, "Hopper-v4")


def test_a_maze_is_scored_by_its_goals(tiny_hdf5, main, por, monkeypatch):
    """Its rewards are lowered by 1 for the training, but not in the evaluations."""
    rng = np.random.default_rng(0)
    raw = {"observations": rng.standard_normal((60, 29)).astype(np.float32)}
    raw["actions"] = rng.uniform(-1, 1, (60, 8)).astype(np.float32)
    raw |= {"rewards": np.zeros(60, np.float32), "terminals": np.zeros(60, bool)}
    raw["timeouts"] = np.arange(60) % 15 == 14
    tiny_hdf5(Path("maze.hdf5"), raw)
    seen = []
    init = por.ReplayBuffer.__init__

    def noted_init(buffer, data, *rest):
        seen.append(data["rewards"])
        init(buffer, data, *rest)

    monkeypatch.setattr(por.ReplayBuffer, "__init__", noted_init)
    words = ["--env=antmaze-umaze-v2", "--dataset-file=maze.hdf5", "--final-eval-episodes=1"]
    end = main(*words, "--num-updates=5", "--run-dir=run")
    assert end.code == 0, end.err
    assert len(seen) == 1 and (seen[0] == -1).all()
    result = result_of("run")
    assert result["args"]["alpha"] == 10.0 and result["task"]["max_episode_steps"] == 700
    assert result["final"]["returns"] == result["final"]["scores"] == [0.0]


# ---- Evaluations ----


class Fixed(nn.Module):
    """N agents whose action is a number of their own, times the first observation."""

    def __init__(self, *gains: float, noise: float = 0.0):
        super().__init__()
        self.args = SimpleNamespace(num_seeds=len(gains))
        self.gains = nn.Parameter(torch.tensor(gains))
        self.noise = noise
        self.shapes = []

    def act(self, obs):
        self.shapes.append(tuple(obs.shape))
        action = (self.gains.view(-1, 1, 1) * obs[..., :1]).tanh().expand(*obs.shape[:2], 3)
        return action + self.noise * torch.randn_like(action)


def returns_by_hand(env_id: str, gain: float, episodes: int) -> list[float]:
    """Play the episodes one after another."""
    found = []
    for seed in range(episodes):
        env = gym.make(env_id)
        obs, _ = env.reset(seed=seed)
        total, end = 0.0, False
        while not end:
            first = torch.tensor(obs[0], dtype=torch.float32)
            action = (torch.tensor(gain) * first).tanh().expand(3).numpy()
            obs, reward, terminated, truncated, _ = env.step(action)
            total += reward
            end = terminated or truncated
        found.append(total)
    return found


@pytest.fixture
def hopper_task(por):
    """Return Hopper's task."""
    bounds = {"action_low": [-1.0] * 3, "action_high": [1.0] * 3}
    return make_task(por, 11, 3, env_id="Hopper-v4", max_episode_steps=1000, **bounds)


def test_returns_are_those_of_episodes_played_one_by_one(por, hopper_task):
    """Episodes of different lengths, of agents that differ; the seeds are 0, 1, 2, 3."""
    agent = Fixed(0.3, -2.0)
    found = por.evaluate(agent, hopper_task, 4)
    assert found.shape == (2, 4) and found.dtype == float
    for i, gain in enumerate((0.3, -2.0)):
        np.testing.assert_allclose(found[i], returns_by_hand("Hopper-v4", gain, 4), rtol=1e-5)
    assert len(np.unique(found)) == 8 and set(agent.shapes) == {(2, 4, 11)}
    assert len(agent.shapes) > 15  # steps of the longest episode


def test_agents_that_are_alike_get_alike_episodes(por, hopper_task):
    found = por.evaluate(Fixed(0.5, 0.5, 0.5), hopper_task, 2)
    assert (found == found[0]).all()


def test_the_random_numbers_of_a_policy_change_no_training(por, hopper_task):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = por.evaluate(Fixed(0.5, noise=0.3), hopper_task, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert not np.array_equal(one, por.evaluate(Fixed(0.5, noise=0.3), hopper_task, 2))


def test_an_episode_ends_at_the_tasks_time_limit(por, hopper_task):
    hopper_task.max_episode_steps = 7
    agent = Fixed(0.5)
    por.evaluate(agent, hopper_task, 2)
    assert len(agent.shapes) == 7


def test_actions_beyond_their_bounds_are_clipped(por, hopper_task):
    agents = [Fixed(0.0), Fixed(0.0)]
    agents[0].act = lambda obs: torch.full((1, obs.shape[1], 3), 1.0)
    agents[1].act = lambda obs: torch.full((1, obs.shape[1], 3), 7.0)
    one, other = (por.evaluate(agent, hopper_task, 2) for agent in agents)
    np.testing.assert_array_equal(one, other)


def test_nan_actions_blame_the_training(por, hopper_task):
    agent = Fixed(float("nan"))
    with pytest.raises(SystemExit, match="training diverged: the policy's actions"):
        por.evaluate(agent, hopper_task, 2)


@pytest.mark.parametrize(
    "references, scores", [((-20.0, 180.0), [0, 100, 60]), ((None, None), [-20, 180, 100])]
)
def test_scores(por, references, scores):
    task = make_task(por, ref_min=references[0], ref_max=references[1])
    np.testing.assert_allclose(por.normalized_score(task, np.array([-20.0, 180.0, 100.0])), scores)


# ---- The command line as a process ----


@pytest.mark.slow
def test_a_process_prints_little_and_leaves_nothing_else(tmp_path, tiny_hdf5, run_cli):
    tiny_hdf5(tmp_path / "data.hdf5")
    end = run_cli(*DATA, "--guide=q", "--num-updates=30", "--run-dir=my run", folder=tmp_path)
    assert end.returncode == 0 and end.stderr == "", end.stderr
    assert len(end.stdout.splitlines()) == 5  # settings, data, a line for each phase, the folder
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"data.hdf5", "my run", "minari", "d4rl"}
    assert checkpoint_of(tmp_path / "my run")["finished"]


@pytest.mark.parametrize("error", [RuntimeError("of ours"), KeyError("of ours")])
def test_a_mistake_of_ours_shows_its_traceback(error, tiny_hdf5, main, por, monkeypatch):
    """Only the user's mistakes are told in a line."""

    def fail(*_):
        raise error

    tiny_hdf5(Path("data.hdf5"))
    monkeypatch.setattr(por.POR, "update", fail)
    with pytest.raises(type(error), match="of ours"):
        main(*DATA, "--num-updates=5", "--run-dir=run", "--guide=weighted")
