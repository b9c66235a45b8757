"""Tests of benchmarks/por_guide.py: what a cut leaves, measures with known answers, the commands.

    python -m pytest tests/test_por_guide.py
"""

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import collect  # noqa: E402
import mazes  # noqa: E402
import por_guide  # noqa: E402

pytestmark = pytest.mark.usefixtures("isolated")
SOURCE, WITHOUT, WHOLE = "local/umaze/all-v0", "local/umaze/cut-v0", "local/umaze/whole-v0"
BOX = ["4:0:0.8", "5:-2:2"]  # the middle and some of the right of the umaze's corridors
STEP = 0.1


# ---- The cut ----

def walk(positions, terminal=False) -> dict:
    """An episode that visits these positions on a line; action and reward are the row's number."""
    obs, rows = np.array(positions, np.float32)[:, None], len(positions) - 1
    ends = np.arange(rows) == rows - 1
    return {"observations": obs, "actions": np.arange(rows, dtype=np.float32)[:, None],
            "rewards": np.arange(rows, dtype=np.float32), "terminations": ends & terminal,
            "truncations": ends & (not terminal)}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_split_keeps_every_row_and_its_true_next_state(terminal):
    episode = walk([0, 1, 2, 3, 4, 2.5, 1.5, 9, 8], terminal)
    pieces = por_guide.split(episode, [(0, 3.0, 4.0)])
    assert [(p["observations"][:, 0].tolist(), taken) for p, taken in pieces] == [
        ([0, 1, 2], False), ([2, 3, 4, 2.5], True), ([2.5, 1.5, 9, 8], False)]
    assert [p["actions"][:, 0].tolist() for p, _ in pieces] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [p["rewards"].tolist() for p, _ in pieces] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [p["truncations"].tolist() for p, _ in pieces] == [
        [False, True], [False, False, True], [False, False, not terminal]]
    assert [p["terminations"].any() for p, _ in pieces] == [False, False, terminal]
    assert episode["truncations"].sum() == (not terminal)  # the source is left as it was


def test_a_split_at_the_ends_of_an_episode():
    box = [(0, 3.0, 4.0)]
    for positions, expected in (([3, 1, 2], [True, False]), ([1, 2, 3], [False, True]),
                                ([3, 3], [True]), ([1, 3, 1], [True]), ([1, 2], [False])):
        assert [taken for _, taken in por_guide.split(walk(positions), box)] == expected


def test_a_box_has_all_its_sides_and_open_ones():
    obs = np.array([[0, 0], [0, 5], [2, 5], [1, 9]], np.float32)
    box = por_guide.parse_box(["0:0:1", "1:5:"], 2)
    assert por_guide.inside(obs, box).tolist() == [False, True, False, True]


def maze_source(name: str = SOURCE, steps: int = 1_500) -> list[dict]:
    """Store a small PointMaze set as benchmarks/collect.py does."""
    episodes = mazes.collect_shard("pointmaze-umaze", None, [0, 0], steps)
    spec = mazes.evaluation_spec("pointmaze-umaze")
    env = gym.make(spec, disable_env_checker=True)
    stored = {"observation_space": gym.spaces.flatten_space(env.observation_space),
              "action_space": env.action_space, "env": spec}
    metadata = {"algorithm_name": "waypoints", "description": "test", "env_id": spec.id,
                "data_sha256": collect.data_sha256(episodes)}
    collect.write_dataset(collect.datasets_root(), name, stored, episodes, metadata, 0.0)
    return episodes


def cut(*words, box=BOX) -> None:
    por_guide.main(["cut", SOURCE, "--box", *box, "--name", WITHOUT, "--control", WHOLE,
                    "--held-out", "4", *words])


def test_the_cut_set_has_the_sources_rows_but_for_the_box(por, capsys):
    source = maze_source()
    cut()
    assert "in the box" in capsys.readouterr().out
    box = por_guide.parse_box(BOX, 8)
    s, a, s2 = por_guide.transitions([e for i, e in enumerate(source) if i % 4 != 3])
    gone = por_guide.inside(s, box) | por_guide.inside(s2, box)
    assert 0.05 < gone.mean() < 0.6
    rows, task = por.load_dataset(por.Args(env=WITHOUT))
    assert rows["known"].all() and task["env_id"] == "PointMaze_UMaze-v3"
    for key, expected in zip(("observations", "actions", "next_observations"), (s, a, s2)):
        np.testing.assert_array_equal(rows[key], expected[~gone])
    for key in ("observations", "next_observations"):
        assert not por_guide.inside(rows[key], box).any()
    # no row connects two far states: all steps are as short as the source's
    length = lambda x, y: np.linalg.norm((y - x)[:, 4:6], axis=1)
    assert length(rows["observations"], rows["next_observations"]).max() <= length(s, s2).max()
    inner = ~rows["ends"][:-1]
    np.testing.assert_array_equal(rows["observations"][1:][inner],
                                  rows["next_observations"][:-1][inner])
    whole, _ = por.load_dataset(por.Args(env=WHOLE))
    for key, expected in zip(("observations", "actions", "next_observations"), (s, a, s2)):
        np.testing.assert_array_equal(whole[key], expected)
    borders = np.flatnonzero(np.diff(gone))
    assert whole["ends"][borders].all()
    assert whole["rewards"].sum() == sum(e["rewards"].sum() for i, e in enumerate(source)
                                         if i % 4 != 3)


def test_held_out_episodes_are_those_that_the_cut_left_out():
    assert por_guide.held_out([*range(1, 11)], 4) == [4, 8]  # as `number % held_out` counts


def test_a_data_set_names_its_source_and_box():
    source = maze_source()
    cut()
    told = minari.load_dataset(WITHOUT).storage.metadata
    assert json.loads(told["cut"]) == {
        "source": SOURCE, "box": BOX, "held_out": 4,
        "source_sha256": collect.data_sha256(source)}
    assert told["command"].startswith(f"python benchmarks/por_guide.py cut {SOURCE} --box 4:0:0.8")


def test_a_cut_twice_is_the_same_and_needs_force():
    maze_source()
    cut()
    first = minari.load_dataset(WITHOUT).storage.metadata["data_sha256"]
    with pytest.raises(SystemExit, match="exists; --force replaces it"):
        cut()
    cut("--force")
    assert minari.load_dataset(WITHOUT).storage.metadata["data_sha256"] == first


@pytest.mark.parametrize("words, box, complaint", [
    ([], ["4:0"], "INDEX:LOW:HIGH"), ([], ["x:0:1"], "INDEX:LOW:HIGH"),
    ([], ["8:0:1"], "indices 0 to 7"), ([], ["4:1:1"], "LOW must be below"),
    ([], ["4:50:60"], "takes out nothing"), ([], ["4::"], "takes out everything"),
    (["--held-out", "1"], BOX, "at least 2"), (["--held-out", "9999"], BOX, "none would be"),
    (["--name", "rebuilt/x/y-v0"], BOX, "names must be like"),
    (["--name", WHOLE], BOX, "are the same")])
def test_a_bad_cut_says_why_and_writes_nothing(words, box, complaint):
    maze_source(steps=700)
    with pytest.raises(SystemExit) as stop:
        cut(*words, box=box)
    assert complaint in str(stop.value) and "\n" not in str(stop.value)
    assert list(minari.list_local_datasets()) == [SOURCE]


def test_a_source_that_is_not_there():
    with pytest.raises(SystemExit, match="no such local dataset"):
        cut()


# ---- Measures with known answers ----

class Line(gym.Env):
    """s' = s + STEP a in the plane, five steps, the reward is the first coordinate."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.copy(), {}

    def step(self, action):
        self.state = self.state + STEP * np.asarray(action, float)
        return self.state.copy(), float(self.state[0]), False, False, {}


gym.register("SoloLine-v0", Line, max_episode_steps=5)
TASK = {"name": "line", "env_id": "SoloLine-v0", "env_spec": None, "act_low": [-1.0, -1.0],
        "act_high": [1.0, 1.0], "obs_dim": 2, "act_dim": 2}


class Agent:
    """Two seeds that know the line: g(s) = s + STEP tanh(s) + shift, pi the true inverse + bias.

    V is `slope` times the first coordinate; its other head is higher and falls where that rises.
    """

    def __init__(self, shift=(0, 0), bias=(0, 0), slope=1.0):
        shift = torch.tensor(shift, dtype=torch.float32)
        bias = torch.tensor(bias, dtype=torch.float32)
        self.guide = lambda s: (s + STEP * torch.tanh(s) + shift, None)
        self.guide.log_std = torch.zeros(2, 1, 2)
        self.execute = lambda x: ((x[..., 2:] - x[..., :2]) / STEP + bias, None)
        self.value = lambda s: torch.stack([9 - slope * s[..., :1], slope * s[..., :1]], 1)

    def act(self, obs):
        return self.execute(torch.cat([obs, self.guide(obs)[0]], -1))[0]


def line_rows(count=400, seed=0, low=-2.0, high=2.0):
    s = np.random.default_rng(seed).uniform(low, high, (count, 2)).astype(np.float32)
    a = np.tanh(s)
    return s, a, s + STEP * a


def test_a_perfect_agent_has_no_gap_and_no_error():
    said = por_guide.answers(Agent(), TASK, *line_rows())
    assert said["gap"].shape == (2, 400)
    for term in ("gap", "swap", "error"):
        assert said[term].max() < 1e-5, term


def test_each_term_shows_its_own_fault():
    s, a, s2 = line_rows(low=-0.2, high=0.2)  # small actions: none is clipped
    said = por_guide.answers(Agent(shift=(0.03, 0.04)), TASK, s, a, s2)
    np.testing.assert_allclose(said["gap"], 0.05, rtol=1e-3)
    np.testing.assert_allclose(said["swap"], 0.05 / STEP, rtol=1e-3)
    assert said["error"].max() < 1e-5
    said = por_guide.answers(Agent(bias=(0.3, 0.4)), TASK, s, a, s2)
    np.testing.assert_allclose(said["error"], 0.5, rtol=1e-3)
    assert said["gap"].max() < 1e-5 and said["swap"].max() < 1e-5
    said = por_guide.answers(Agent(bias=(9, 0)), TASK, s, a, s2)  # the environment gets 1
    np.testing.assert_allclose(said["error"], np.linalg.norm(
        np.stack([1 - a[:, 0], 0 * a[:, 1]]), axis=0)[None].repeat(2, 0), rtol=1e-3)


def compared(agent, control=None, box=((0, 0.5, 1.0),), data=None):
    """compare() on the line, data everywhere but in the box."""
    s, a, s2 = line_rows(3_000)
    box = list(box)
    within = por_guide.inside(s, box)
    states = {"inside": tuple(x[within][:200] for x in (s, a, s2)),
              "outside": tuple(x[~within & ~por_guide.inside(s2, box)][:200] for x in (s, a, s2))}
    every = np.concatenate([line_rows(3_000, seed=1)[0], s2])
    data = data or {"cut": every[~por_guide.inside(every, box)], "control": every}
    return por_guide.compare({"cut": agent, "control": control or Agent()},
                             {"cut": TASK, "control": TASK}, data, states, box, None), states


def test_a_perfect_guide_is_near_reachable_and_no_higher():
    found, states = compared(Agent())
    for who in "cut", "control":
        for region in states:
            assert (found["distance"][who][region] < 1e-4).all()
            np.testing.assert_allclose(found["cosine"][who][region], 1, atol=1e-3)
            np.testing.assert_allclose(found["gain_own"][who][region], 0, atol=1e-5)
            assert (found["reachable"][who][region] > 0.9).all()
            np.testing.assert_allclose(found["in_box"][who][region],
                                       found["in_box_recorded"][who][region], atol=1e-6)
    assert (found["seen"]["cut"]["inside"] < 0.5).all()  # the box's middle was never seen
    assert (found["seen"]["control"]["inside"] > 0.9).all()
    assert (found["seen_recorded"]["cut"]["inside"] < 0.5).all()
    assert (found["seen_recorded"]["control"]["inside"] > 0.9).all()
    assert found["rises_recorded_own"]["cut"]["inside"].mean() == 1  # tanh(s) > 0 where s > 0.5


def test_a_guide_one_step_too_far_is_measured_so():
    s, _, s2 = line_rows(3_000)
    found, states = compared(Agent(shift=(STEP, 0)))
    s, _, s2 = states["outside"]
    step = np.linalg.norm(s2 - s, axis=1).mean()
    np.testing.assert_allclose(found["distance"]["cut"]["inside"], STEP / step, rtol=1e-3)
    np.testing.assert_allclose(found["distance_position"]["cut"]["outside"], STEP / step, rtol=1e-3)
    assert (found["higher_own"]["cut"]["inside"] == 1).all()
    np.testing.assert_allclose(found["gain_own"]["cut"]["inside"], STEP / s[:, 0].std(), rtol=1e-3)
    assert found["distance"]["control"]["inside"].max() < 1e-4


def test_the_judges_are_the_agents_own_value_and_the_controls():
    found, _ = compared(Agent(shift=(STEP, 0)), Agent(slope=-1.0))
    assert (found["higher_own"]["cut"]["inside"] == 1).all()
    assert (found["higher_control"]["cut"]["inside"] == 0).all()
    assert (found["gain_control"]["cut"]["inside"] < 0).all()
    np.testing.assert_array_equal(found["gain_control"]["control"]["inside"],
                                  found["gain_own"]["control"]["inside"])


def test_where_nothing_can_be_is_not_reachable():
    found, _ = compared(Agent(shift=(50, 0)))
    assert (found["reachable"]["cut"]["inside"] == 0).all()
    assert (found["seen"]["cut"]["outside"] == 0).all()
    np.testing.assert_allclose(found["gain_unseen_own"]["cut"]["outside"],
                               found["gain_own"]["cut"]["outside"])
    assert np.isnan(found["gain_seen_own"]["cut"]["outside"]).all()  # a mean over nothing


def test_nearest_is_the_distance_to_the_closest():
    rng = np.random.default_rng(0)
    x, data = (rng.standard_normal((n, 3)).astype(np.float32) for n in (250, 70))
    data = np.concatenate([data, x[:1] + 1e-4])
    expected = np.linalg.norm(x[:, None] - data, axis=-1).min(1)
    np.testing.assert_allclose(por_guide.nearest(x, data), expected, rtol=1e-4)
    np.testing.assert_array_equal(por_guide.nearest(x.reshape(2, 125, 3), data).ravel(),
                                  por_guide.nearest(x, data))


def test_free_cells_are_those_of_the_maze(por):
    spec = mazes.evaluation_spec("pointmaze-large")
    task = {"env_id": spec.id, "env_spec": spec.to_json()}
    maze = por_guide.maze_of(task)
    xy = np.random.default_rng(0).uniform(-5.9, 5.9, (500, 2)) * [1, 0.7]
    cells = [maze.cell_xy_to_rowcol(p) for p in xy]
    expected = [maze.maze_map[i][j] != 1 for i, j in cells]
    assert por_guide.free(maze, xy).tolist() == expected and 0.3 < np.mean(expected) < 0.7
    assert not por_guide.free(maze, np.array([[99.0, 0], [0, -99.0], [-99.0, 0], [0, 99.0]])).any()
    assert por_guide.maze_of(TASK) is None


# ---- Rollouts, statistics ----

def test_rollouts_are_those_of_the_evaluation(por, monkeypatch):
    agent = Agent(shift=(0.02, -0.01), bias=(0.1, 0))
    played = por_guide.rollouts(agent, TASK, 2, 3)
    agent.load_state_dict = lambda state: None
    agent.requires_grad_ = lambda needed: agent
    monkeypatch.setattr(por, "ALGORITHM", lambda *_: agent)
    torch.save({}, weights := io.BytesIO())
    with ThreadPoolExecutor(1) as pool:  # it leaves its thread with one CPU thread
        returns = pool.submit(por.evaluate, por.Args(num_seeds=2), TASK, weights.getvalue(),
                              range(3)).result()
    np.testing.assert_array_equal(played["return"], returns)
    assert (played["steps"] == 5).all()


def test_a_perfect_agent_comes_where_its_guide_points():
    played = por_guide.rollouts(Agent(), TASK, 2, 3)
    for term in ("gap", "error", "gap_max", "error_max"):
        assert played[term].max() < 1e-5, term
    assert (played["step"] > 0.001).all()


def test_what_the_execute_policy_misses_shows_along_rollouts():
    # it goes 0.01 beyond each goal, and says of any way that it takes 0.1 more than it does
    played = por_guide.rollouts(Agent(bias=(0.1, 0)), TASK, 2, 3)
    np.testing.assert_allclose(played["gap"], 0.1 * STEP, rtol=1e-3)
    np.testing.assert_allclose(played["error"], 0.1, rtol=1e-3)
    np.testing.assert_allclose(played["gap_max"], played["gap"], rtol=1e-3)


def test_an_ended_episode_counts_no_more(por):
    """Hopper falls at different times; what comes after must not enter the means."""
    task = {"env_id": "Hopper-v4", "env_spec": None, "act_low": [-1.0] * 3, "act_high": [1.0] * 3}
    agent = Agent()
    agent.guide = lambda s: (s + 0.5, None)
    agent.execute = lambda x: (x[..., :3] * 0 + 0.3 * x[..., 5:8], None)
    both = por_guide.rollouts(agent, task, 1, 3)
    assert len(set(both["steps"][0])) > 1
    for i in range(3):
        env, total, gaps, steps = gym.make("Hopper-v4"), 0.0, [], []
        obs, over = env.reset(seed=i)[0].astype(np.float32), False
        while not over:
            following, reward, over, *_ = env.step((0.3 * obs[5:8]).clip(-1, 1))
            following, total = following.astype(np.float32), total + reward
            gaps.append(np.linalg.norm(obs + 0.5 - following))
            steps.append(np.linalg.norm(obs - following))
            obs = following
        expected = {"steps": len(gaps), "return": total, "gap": np.mean(gaps),
                    "gap_max": np.max(gaps), "step": np.mean(steps)}
        for name, number in expected.items():
            np.testing.assert_allclose(both[name][0, i], number, rtol=1e-3, err_msg=name)


def test_early_means_end_with_the_first_reward():
    class Late(Line):
        """The third step is the first that is rewarded; the state jumps afterwards."""
        def step(self, action):
            self.count = getattr(self, "count", 0) + 1
            obs, *_ = super().step(action)
            self.state = self.state + (self.count > 3)
            return self.state.copy(), float(self.count >= 3), False, False, {}

    gym.register("SoloLate-v0", Late, max_episode_steps=5)
    played = por_guide.rollouts(Agent(bias=(0.1, 0)), TASK | {"env_id": "SoloLate-v0"}, 2, 3)
    gym.registry.pop("SoloLate-v0")
    assert (played["steps"] == 5).all() and (played["steps_early"] == 3).all()
    np.testing.assert_allclose(played["gap_early"], 0.1 * STEP, rtol=1e-3)
    np.testing.assert_allclose(played["error_early"], 0.1, rtol=1e-3)
    assert (played["gap"] > 0.1).all() and (played["return"] == 3).all()


def test_an_interval_is_students():
    found = por_guide.summary([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * np.sqrt(2.5 / 5)
    assert found["mean"] == 3 and found["seeds"] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(found["interval"], [3 - half, 3 + half], rtol=1e-4)
    assert por_guide.summary([7.0])["interval"] is None
    assert por_guide.summary([1.0, np.nan]) == {"mean": None, "interval": None, "seeds": [1, None]}
    many = por_guide.summary(np.arange(21.0))
    np.testing.assert_allclose(many["interval"][1] - 10, 2.086 * np.sqrt(38.5 / 21), rtol=0.01)


def test_correlations_with_known_answers():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5))
    found = por_guide.correlation(x, np.exp(x))
    assert found["spearman"] == 1 and found["pearson"] < 1 and found["points"] == 20
    assert found["spearman_interval"] == [1, 1]
    assert por_guide.correlation(x, -2 * x)["pearson"] == -1
    assert por_guide.correlation(x, 0 * x)["pearson"] is None
    # rows that rise together, seeds that do the opposite
    shift = 10 * np.arange(4.0)[:, None]
    assert por_guide.correlation(x + shift, -x + shift)["pearson"] > 0.9
    assert por_guide.correlation(x + shift, -x + shift, centre=True)["pearson"] == -1
    low, high = por_guide.correlation(x, rng.standard_normal((4, 5)))["pearson_interval"]
    assert low < 0 < high


def test_equal_numbers_share_their_rank():
    assert por_guide.ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]


# ---- The commands ----

NETWORKS = ["--hidden", "16", "--execute-hidden", "16", "--batch-size", "16", "--device", "cpu",
            "--eval-episodes", "1", "--final-eval-episodes", "1", "--eval-every", "40"]


def train(env: str, folder: str, *words: str) -> Path:
    por_guide.main(["train", "--", "--env", env, "--run-dir", folder, "--num-seeds", "2",
                    "--num-updates", "40", "--checkpoint-every", "20", *NETWORKS, *words])
    return Path(folder)


@pytest.fixture
def runs(isolated, por, monkeypatch):
    """Two small agents on a cut maze and its control; episodes are short."""
    monkeypatch.setattr(por, "evaluate", lambda args, task, weights, starts: np.zeros(
        (args.num_seeds, len(starts))))
    short = mazes.evaluation_spec("pointmaze-umaze")
    short.max_episode_steps = 12
    monkeypatch.setattr(mazes, "evaluation_spec", lambda name: short)
    maze_source()
    cut()
    return train(WITHOUT, "cut"), train(WHOLE, "whole")


def test_the_commands_end_to_end(runs, por, capsys):
    without, whole = runs
    assert sys.argv[0] != "por.py" and por.RUN is por.Run  # put back
    kept = sorted(path.name for path in whole.glob("checkpoint-*.pt"))
    assert kept == ["checkpoint-00000020.pt", "checkpoint-00000040.pt"]
    last = (whole / "checkpoint.pt").read_bytes()
    assert (whole / kept[1]).read_bytes() == last != (whole / kept[0]).read_bytes()

    words = ["--cut", str(without), "--control", str(whole), "--states", "999"]
    por_guide.main(["beyond", *words, "--out", "b1"])
    assert "distance" in capsys.readouterr().out
    por_guide.main(["beyond", *words, "--out", "b2"])
    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in ("b1", "b2"))
    assert one["measures"] == two["measures"] and one["differences"] == two["differences"]
    episodes, _ = por_guide.read_episodes(SOURCE)
    s, _, s2 = por_guide.transitions(episodes[3::4])
    begins, ends = (por_guide.inside(x, por_guide.parse_box(BOX, 8)) for x in (s, s2))
    assert one["states"] == {"inside": begins.sum(), "outside": (~begins & ~ends).sum()}
    assert (~begins & ends).any() and one["seeds"] == [0, 1]
    for who in "cut", "control":
        path = {"cut": without, "control": whole}[who]
        task = json.loads((path / "result.json").read_text())["task"]
        assert one["data"][who]["fingerprint"] == task["fingerprint"]
    assert one["data"]["box"] == BOX and one["runs"]["cut"]["args"]["env"] == WITHOUT
    parts = one["measures"]["distance"]
    assert parts["cut"]["inside"]["seeds"] != parts["control"]["inside"]["seeds"]
    expected = np.subtract(parts["cut"]["inside"]["seeds"], parts["cut"]["outside"]["seeds"])
    np.testing.assert_allclose(
        one["differences"]["distance"]["cut agent, inside minus outside"]["seeds"], expected,
        rtol=0.01)
    for name in one["measures"]:
        assert name.removesuffix("_own").removesuffix("_control") in one["meaning"], name

    words = ["--run", str(whole), "--episodes", "2", "--states", "40"]
    por_guide.main(["terms", *words, "--out", "t1"])
    por_guide.main(["terms", *words, "--out", "t2", "--best-return", "5"])
    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in ("t1", "t2"))
    assert one["updates"] == [20, 40] and one["rows"]["of"] == "held-out episodes"
    for name in one["numbers"]:
        if name != "loss":
            assert one["numbers"][name] == two["numbers"][name], name
    returns, loss = (two["numbers"][k][-1]["seeds"] for k in ("return", "loss"))
    np.testing.assert_allclose(loss, 5 - np.array(returns))
    assert min(min(x["seeds"]) for x in one["numbers"]["loss"]) == 0
    agent, state = por_guide.load_checkpoint(whole / kept[0])
    played = por_guide.rollouts(agent, state["task"], 2, 2)
    assert (played["steps"] == 12).all()
    np.testing.assert_allclose(one["numbers"]["rollout_gap"][0]["seeds"], played["gap"].mean(1),
                               rtol=1e-3)
    for name in ("b1", "t1"):
        content = Path(f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 300_000
        assert str(Path.cwd()) not in Path(f"{name}.json").read_text()


def test_trained_agents_of_other_data_or_settings_are_refused(runs):
    without, whole = runs
    words = lambda *x: ["beyond", "--cut", x[0], "--control", x[1], "--out", "x", *x[2:]]
    longer = train(WHOLE, "longer", "--tau", "0.9")
    plain = train(SOURCE, "plain")
    for given, complaint in (
            (words("whole", "cut"), "exchange the two"), (words("cut", "longer"), "differ in tau"),
            (words("cut", "plain"), "two datasets of one"), (words("cut", "none"), "no checkpoint"),
            (words("cut", "whole", "--states", "3"), "at least 10"),
            (["terms", "--run", "none", "--out", "x"], "no checkpoint"),
            (["terms", "--run", "cut", "--out", "x", "--episodes", "0"], "at least 1"),
            (["cut", "x", "--box", "0:0:1", "--name", WHOLE, "--control", WITHOUT, "--", "--tau",
              "1"], "only `train`")):
        with pytest.raises(SystemExit) as stop:
            por_guide.main(given)
        assert complaint in str(stop.value) and "\n" not in str(stop.value), given
    assert longer.exists() and plain.exists() and not list(Path().glob("x.*"))
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    torch.save(state | {"script": "iql"}, without / "checkpoint.pt")
    with pytest.raises(SystemExit, match="belongs to iql.py"):
        por_guide.main(words("cut", "whole"))
    cut("--force", box=["4:0:0.7", "5:-2:2"])
    with pytest.raises(SystemExit, match="holds other data now"):
        por_guide.main(["terms", "--run", "whole", "--out", "x"])


def test_a_data_set_without_a_cut_has_terms_too(runs):
    plain = train(SOURCE, "plain")
    por_guide.main(["terms", "--run", str(plain), "--out", "t", "--episodes", "1"])
    result = json.loads(Path("t.json").read_text())
    assert result["rows"]["of"] == "the training data" and result["updates"] == [20, 40]


def test_checkpoints_of_other_runs_are_not_mixed(runs):
    _, whole = runs
    other = train(WHOLE, "other", "--tau", "0.9")
    (whole / "checkpoint-00000020.pt").write_bytes((other / "checkpoint-00000020.pt").read_bytes())
    with pytest.raises(SystemExit, match="of another run"):
        por_guide.main(["terms", "--run", str(whole), "--out", "x"])


def test_the_source_must_be_the_one_that_was_cut(runs):
    maze_source(steps=1_000)
    with pytest.raises(SystemExit, match="holds other data now"):
        por_guide.main(["terms", "--run", "whole", "--out", "x"])


def test_the_command_that_is_written_down_asks_for_the_same():
    args = por_guide.Cut("a b", ("4:0:1", "5::2"), "n", "c", force=True)
    assert por_guide.command("cut", args) == (
        "python benchmarks/por_guide.py cut 'a b' --box 4:0:1 5::2 --name n --control c "
        "--held-out 10 --force")
    args = SimpleNamespace(run=Path("runs/x"), best_return=None, episodes=3)
    assert por_guide.command("terms", args) == (
        "python benchmarks/por_guide.py terms --run runs/x --episodes 3")


@pytest.mark.parametrize("error", [OSError("No space left"), por_guide.por.BrokenExecutor("gone")])
def test_a_training_that_cannot_go_on_says_so_in_a_line(monkeypatch, error):
    def main():
        raise error

    monkeypatch.setattr(por_guide.por, "main", main)
    with pytest.raises(SystemExit, match=f"{error}: mend this, then give the same command again"):
        por_guide.main(["train", "--", "--run-dir", "x"])
