"""Tests of benchmarks/studies/guide: what a cut leaves, measures with known answers, the commands.

python -m pytest tests/benchmarks/test_study_guide.py
"""

import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces

from benchmarks.common import ROOT
from benchmarks.datasets.storage import data_sha256
from benchmarks.studies.guide import cut as cut_module
from benchmarks.studies.guide import measures, study
from benchmarks.studies.guide.cut import Cut, inside, parse_box, split
from benchmarks.studies.guide.measures import Rows
from benchmarks.studies.shared import por

pytestmark = pytest.mark.usefixtures("isolated")
SOURCE, WITHOUT, WHOLE = "local/line/all-v0", "local/line/cut-v0", "local/line/whole-v0"
BOX = ("0:0.2:0.6", "1::")
STEP = 0.1


class Line(gym.Env):
    """s' = s + STEP a in the plane, five steps. The reward is the first coordinate."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.copy(), {}

    def step(self, action):
        self.state = self.state + STEP * np.asarray(action, float)
        return self.state.copy(), float(self.state[0]), False, False, {}


gym.register("SoloLine-v0", f"{__name__}:Line", max_episode_steps=5)
TASK = por.Task(
    "line",
    "test",
    "SoloLine-v0",
    {},
    5,
    None,
    None,
    obs_dim=2,
    act_dim=2,
    action_low=[-1.0, -1.0],
    action_high=[1.0, 1.0],
)


# ---- The cut ----


def walk(positions: list, terminal: bool = False) -> dict:
    """Return an episode that visits these positions; action and reward are the row's number."""
    rows = len(positions) - 1
    ends = np.arange(rows) == rows - 1
    return {
        "observations": np.array(positions, np.float32)[:, None],
        "actions": np.arange(rows, dtype=np.float32)[:, None],
        "rewards": np.arange(rows, dtype=np.float32),
        "terminations": ends & terminal,
        "truncations": ends & (not terminal),
    }


@pytest.mark.parametrize("terminal", [False, True])
def test_a_split_keeps_every_row_and_its_true_next_state(terminal):
    episode = walk([0, 1, 2, 3, 4, 2.5, 1.5, 9, 8], terminal)
    pieces = split(episode, [(0, 3.0, 4.0)])
    assert [(p["observations"][:, 0].tolist(), taken) for p, taken in pieces] == [
        ([0, 1, 2], False),
        ([2, 3, 4, 2.5], True),
        ([2.5, 1.5, 9, 8], False),
    ]
    for key in ("actions", "rewards"):
        assert [p[key].ravel().tolist() for p, _ in pieces] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [p["truncations"].tolist() for p, _ in pieces] == [
        [False, True],
        [False, False, True],
        [False, False, not terminal],
    ]
    assert [p["terminations"].any() for p, _ in pieces] == [False, False, terminal]
    assert episode["truncations"].sum() == (not terminal)  # the source is left as it was


@pytest.mark.parametrize(
    "positions, taken",
    [
        ([3, 1, 2], [True, False]),
        ([1, 2, 3], [False, True]),
        ([3, 3], [True]),
        ([1, 3, 1], [True]),
        ([1, 2], [False]),
    ],
)
def test_a_split_at_the_ends_of_an_episode(positions, taken):
    assert [t for _, t in split(walk(positions), [(0, 3.0, 4.0)])] == taken


def test_a_box_has_all_its_sides_and_open_ones():
    obs = np.array([[0, 0], [0, 5], [2, 5], [1, 9]], np.float32)
    assert inside(obs, parse_box(("0:0:1", "1:5:"), 2)).tolist() == [False, True, False, True]


def store_source(episodes: int = 40) -> list[dict]:
    """Store walks on the plane as benchmarks.datasets.collect does."""
    env, rng = gym.make("SoloLine-v0"), np.random.default_rng(0)
    found = []
    for seed in range(episodes):
        obs = [env.reset(seed=seed)[0]]
        actions = rng.uniform(-1, 1, (5, 2)).astype(np.float32)
        obs += [env.step(action)[0] for action in actions]
        rewards = np.array(obs)[1:, 0]
        ends = np.arange(5) == 4
        columns = (np.array(obs, np.float32), actions, rewards, ends & False, ends)
        keys = ("observations", "actions", "rewards", "terminations", "truncations")
        found.append(dict(zip(keys, columns, strict=True)))
    metadata = {"data_sha256": data_sha256(found)}
    write_here(None, SOURCE, {"env": gym.spec("SoloLine-v0")}, found, metadata)
    return found


def write_here(root, name: str, stored: dict, episodes: list, metadata: dict) -> None:
    """Do what write_dataset does, but without a process of its own, which takes seconds."""
    if "local/line" not in list_local_namespaces():
        create_namespace("local/line")
    buffers = [EpisodeBuffer(**episode) for episode in episodes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = minari.create_dataset_from_buffers(name, buffers, data_format="hdf5", **stored)
    dataset.storage.update_metadata(metadata)


@pytest.fixture
def quick(monkeypatch):
    """Let `cut` write without processes."""
    monkeypatch.setattr(cut_module, "write_dataset", write_here)


def cut_source(**changed) -> None:
    cut_module.cut(
        Cut(**{"source": SOURCE, "box": BOX, "name": WITHOUT, "control": WHOLE} | changed)
    )


def test_the_sets_have_the_sources_rows_but_for_the_box_and_the_tenth(quick):
    source = store_source()
    cut_source(held_out=4)
    kept = [episode for i, episode in enumerate(source, start=1) if i % 4]
    s = np.concatenate([e["observations"][:-1] for e in kept])
    s2 = np.concatenate([e["observations"][1:] for e in kept])
    gone = inside(s, parse_box(BOX, 2)) | inside(s2, parse_box(BOX, 2))
    assert 0.1 < gone.mean() < 0.6
    data, task = por.load_dataset(por.Args(env=WITHOUT))
    assert (data["next_valid"] > 0).all() and task.env_id == "SoloLine-v0"
    np.testing.assert_array_equal(data["observations"], s[~gone])
    np.testing.assert_array_equal(data["next_observations"], s2[~gone])
    whole, _ = por.load_dataset(por.Args(env=WHOLE))
    np.testing.assert_array_equal(whole["observations"], s)
    assert whole["episode_end"][np.flatnonzero(np.diff(gone))].all()  # divided at the same places
    told = json.loads(minari.load_dataset(WITHOUT).storage.metadata["cut"])
    assert told["source_sha256"] == data_sha256(source)
    assert (told["box"], told["held_out"]) == (list(BOX), 4)


def test_held_out_rows_are_those_that_the_cut_left_out(quick):
    source = store_source()
    cut_source(held_out=4)
    args = por.Args(env=WITHOUT)
    _, task = por.load_dataset(args)
    rows, held_out, origin = study.load_data(SimpleNamespace(args=args, task=task))
    expected = np.concatenate([e["observations"][:-1] for e in source[3::4]])
    np.testing.assert_array_equal(held_out.s, expected)
    assert origin["source"] == SOURCE and len(rows.s) == task.transitions


@pytest.mark.parametrize(
    "changed, complaint",
    [
        ({"box": ("0:0",)}, "INDEX:LOW:HIGH"),
        ({"box": ("x:0:1",)}, "INDEX:LOW:HIGH"),
        ({"box": ("2:0:1",)}, "indices are 0 to 1"),
        ({"box": ("0:1:1",)}, "LOW must be below"),
        ({"box": ("0:50:60",)}, "takes out all or nothing"),
        ({"box": ("0::",)}, "takes out all or nothing"),
        ({"held_out": 1}, "--held-out"),
        ({"held_out": 99}, "--held-out"),
        ({"name": "rebuilt/x/y-v0"}, "names must be like"),
        ({"name": SOURCE}, "exists"),
        ({"control": WITHOUT}, "must differ"),
        ({"source": "local/line/none-v0"}, "there is no local dataset"),
    ],
)
def test_a_bad_cut_says_why_and_writes_nothing(quick, changed, complaint):
    store_source(10)
    with pytest.raises(SystemExit) as stop:
        cut_source(**changed)
    assert complaint in str(stop.value) and "\n" not in str(stop.value)
    assert list(minari.list_local_datasets()) == [SOURCE]


# ---- Measures with known answers ----


class Agent:
    """Two agents that know the line: g(s) = s + STEP tanh(s) + shift, pi the true inverse + bias.

    V is `slope` times the first coordinate; its other head is higher.
    """

    args = SimpleNamespace(num_seeds=2)

    def eval(self):
        """Do nothing, as there is no dropout."""

    train = eval

    def __init__(self, shift=(0, 0), bias=(0, 0), slope=1.0):
        self.shift, self.bias, self.slope = torch.tensor(shift), torch.tensor(bias), slope

    def guide(self, s):
        return s + STEP * torch.tanh(s) + self.shift, None

    def execute(self, x):
        return (x[..., 2:] - x[..., :2]) / STEP + self.bias, None

    def value(self, s):
        v = self.slope * s[..., 0]
        return torch.stack([v + 9, v], 1)

    def act(self, obs):
        return self.execute(torch.cat([obs, self.guide(obs)[0]], -1))[0]

    def parameters(self):
        return iter([torch.zeros(1)])


def line_rows(count: int = 400, low: float = -2.0, high: float = 2.0) -> Rows:
    s = np.random.default_rng(0).uniform(low, high, (count, 2)).astype(np.float32)
    return Rows(s, np.tanh(s), s + STEP * np.tanh(s))


def test_a_perfect_agent_has_no_gap_and_no_error():
    said = measures.terms_on_rows(Agent(), line_rows())
    for term in ("gap", "swap", "error"):
        assert said[term].shape == (2, 400) and said[term].max() < 1e-5, term


def test_each_term_shows_its_own_fault():
    rows = line_rows(low=-0.2, high=0.2)  # small actions: none is clipped
    said = measures.terms_on_rows(Agent(shift=(0.03, 0.04)), rows)
    np.testing.assert_allclose(said["gap"], 0.05, rtol=1e-3)
    np.testing.assert_allclose(said["swap"], 0.05 / STEP, rtol=1e-3)
    assert said["error"].max() < 1e-5
    said = measures.terms_on_rows(Agent(bias=(0.3, 0.4)), rows)
    np.testing.assert_allclose(said["error"], 0.5, rtol=1e-3)
    assert said["gap"].max() < 1e-5 and said["swap"].max() < 1e-5
    said = measures.terms_on_rows(Agent(bias=(9.0, 0.0)), rows)  # the environment gets 1
    np.testing.assert_allclose(said["error"], np.tile(1 - rows.a[:, 0], (2, 1)), rtol=1e-3)


def compared(agent: Agent, control: Agent | None = None) -> tuple[dict, dict]:
    """Measure on the line, with data everywhere."""
    rows, box = line_rows(3_000), [(0, 0.5, 1.0)]
    touches = inside(rows.s, box) | inside(rows.s2, box)
    regions = {"inside": rows.pick(inside(rows.s, box)), "outside": rows.pick(~touches)}
    agents = {"cut": agent, "control": control or Agent()}
    return measures.measure_beyond(agents, TASK, rows.s2, regions, box), regions


def test_a_perfect_guide_is_near_and_no_higher():
    found, regions = compared(Agent())
    for who in ("cut", "control"):
        for region in regions:
            assert (found["distance"][who][region] < 1e-4).all()
            np.testing.assert_allclose(found["cosine"][who][region], 1, atol=1e-3)
            np.testing.assert_allclose(found["gain_own"][who][region], 0, atol=1e-5)
            assert (found["near"][who][region] > 0.9).all()
    assert found["in_box"]["cut"]["outside"].max() == 0
    assert 0.7 < found["in_box"]["cut"]["inside"].min() < 1


def test_a_guide_one_step_too_far_is_measured_so():
    found, regions = compared(Agent(shift=(STEP, 0)))
    s, _, s2 = regions["outside"]
    step = np.linalg.norm(s2 - s, axis=1).mean()
    np.testing.assert_allclose(found["distance"]["cut"]["inside"], STEP / step, rtol=1e-3)
    assert (found["higher_own"]["cut"]["inside"] == 1).all()
    np.testing.assert_allclose(found["gain_own"]["cut"]["inside"], STEP / s[:, 0].std(), rtol=1e-3)
    assert found["distance"]["control"]["inside"].max() < 1e-4
    far, _ = compared(Agent(shift=(50.0, 0.0)))
    assert (far["near"]["cut"]["inside"] == 0).all()
    assert (far["near_recorded"]["cut"]["inside"] > 0.9).all()


def test_the_judges_are_the_agents_own_value_and_the_controls():
    found, _ = compared(Agent(shift=(STEP, 0)), Agent(slope=-1.0))
    assert (found["higher_own"]["cut"]["inside"] == 1).all()
    assert (found["higher_control"]["cut"]["inside"] == 0).all()
    assert (found["gain_control"]["cut"]["inside"] < 0).all()


def test_nearest_is_the_distance_to_the_closest():
    rng = np.random.default_rng(0)
    x, data = (rng.standard_normal((n, 3)).astype(np.float32) for n in (250, 70))
    data = np.concatenate([data, x[:1] + 1e-4])
    expected = np.linalg.norm(x[:, None] - data, axis=-1).min(1)
    np.testing.assert_allclose(measures.nearest(x, data), expected, rtol=1e-4)
    np.testing.assert_array_equal(
        measures.nearest(x.reshape(2, 125, 3), data).ravel(), measures.nearest(x, data)
    )


# ---- Rollouts, correlations ----


def test_rollouts_are_those_of_the_evaluation():
    agent = Agent(shift=(0.02, -0.01), bias=(0.1, 0.0))
    played = measures.rollouts(agent, TASK, 3)
    np.testing.assert_allclose(played["return"], por.evaluate(agent, TASK, 3), rtol=1e-6)
    assert (played["steps"] == 5).all()


def test_terms_along_rollouts():
    perfect = measures.rollouts(Agent(), TASK, 3)
    for term in ("gap", "error", "gap_max", "error_max"):
        assert perfect[term].max() < 1e-5, term
    # It goes 0.01 beyond each goal, and says of any way that it takes 0.1 more than it does.
    biased = measures.rollouts(Agent(bias=(0.1, 0.0)), TASK, 3)
    np.testing.assert_allclose(biased["gap"], 0.1 * STEP, rtol=1e-3)
    np.testing.assert_allclose(biased["error"], 0.1, rtol=1e-3)
    np.testing.assert_allclose(biased["gap_max"], biased["gap"], rtol=1e-3)


def test_an_ended_episode_counts_no_more(monkeypatch):
    """Episodes end at different times; what comes after must not enter the means."""

    class Ending(Line):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            self.count = getattr(self, "count", 0) + 1
            last = 3 if obs[0] > 0 else 1
            return obs, reward, self.count > last, False, info

    gym.register("SoloEnding-v0", Ending, max_episode_steps=9)
    task = por.Task(**vars(TASK) | {"env_id": "SoloEnding-v0"})
    played = measures.rollouts(Agent(bias=(0.1, 0.0)), task, 6)
    gym.registry.pop("SoloEnding-v0")
    assert set(played["steps"].ravel()) == {2, 4}
    np.testing.assert_allclose(played["gap"], 0.1 * STEP, rtol=1e-3)


def test_correlations_with_known_answers():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5))
    assert measures.correlation(x, np.exp(x)) == {"spearman": 1, "interval": [1, 1]}
    assert measures.correlation(x, -2 * x)["spearman"] == -1
    assert measures.correlation(x, 0 * x) == {"spearman": None, "interval": None}
    # Checkpoints rise together, agents do the opposite.
    shift = 10 * np.arange(4.0)[:, None]
    assert measures.correlation(x + shift, -x + shift)["spearman"] > 0.8
    assert measures.correlation(x + shift, -x + shift, within=True)["spearman"] == -1
    low, high = measures.correlation(x, rng.standard_normal((4, 5)))["interval"]
    assert low < 0 < high
    assert measures.ranks(np.array([3.0, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]


# ---- The commands ----


def command(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["guide", *(str(word) for word in words)])
    study.main()


def train(monkeypatch, env: str, folder: str, *more) -> None:
    words = "--num-seeds 2 --num-updates 8 --eval-every 4 --eval-episodes 1 --final-eval-episodes 1"
    words += " --hidden 16 --execute-hidden 16 --batch-size 16 --device cpu --guide weighted"
    monkeypatch.setattr(por, "save", por.save)  # put back after the test
    command(monkeypatch, "train", "--", "--env", env, "--run-dir", folder, *words.split(), *more)


@pytest.mark.slow
def test_the_commands_end_to_end(monkeypatch, capsys):
    store_source()
    command(monkeypatch, "cut", SOURCE, "--box", *BOX, "--name", WITHOUT, "--control", WHOLE)
    train(monkeypatch, WITHOUT, "cut")
    train(monkeypatch, WHOLE, "whole")
    kept = sorted(path.name for path in Path("whole/checkpoints").iterdir())
    assert kept == ["00000004", "00000008"]
    assert study.load(Path("whole/checkpoints/00000004")).step == 4

    monkeypatch.setattr(study, "choose_regions", lambda rows, *_: {"inside": rows, "outside": rows})
    command(monkeypatch, "beyond", "--cut", "cut", "--control", "whole", "--out", "out")
    found = json.loads(Path("out/beyond.json").read_text())
    assert found["states"] == {"inside": 20, "outside": 20} and found["cut"]["box"] == list(BOX)
    assert len(found["measures"]["gain_own"]["cut"]["inside"]["per_agent"]) == 2
    for name in found["measures"]:
        assert name in " ".join(found["meaning"])

    command(monkeypatch, "terms", "--run", "whole", "--out", "out", "--episodes", "2")
    found = json.loads(Path("out/terms.json").read_text())
    assert found["updates"] == [4, 8] and found["held_out"] and found["rows"] == 20
    agent = study.load(Path("whole/checkpoints/00000004")).agent
    expected = measures.rollouts(agent, TASK, 2)["gap"].mean(1)
    np.testing.assert_allclose(found["numbers"]["rollout_gap"][0]["per_agent"], expected, rtol=1e-3)
    for name in ("beyond", "terms"):
        assert Path(f"out/{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_runs_that_do_not_belong_together_are_refused(quick, monkeypatch):
    store_source()
    cut_source()
    train(monkeypatch, WITHOUT, "cut")
    train(monkeypatch, WHOLE, "whole")
    train(monkeypatch, WHOLE, "other", "--tau", "0.9")
    train(monkeypatch, SOURCE, "plain")
    for words, complaint in (
        (["beyond", "--cut", "whole", "--control", "cut"], "exchange the two"),
        (["beyond", "--cut", "cut", "--control", "other"], "differ in tau"),
        (["beyond", "--cut", "cut", "--control", "plain"], "two datasets of one"),
        (["beyond", "--cut", "cut", "--control", "none"], "no checkpoint"),
        (["beyond", "--cut", "cut", "--control", "whole"], "held-out states lie inside the box"),
        (["beyond", "--cut", "cut", "--control", "whole", "--states", "3"], "at least 10"),
        (["terms", "--run", "none"], "no checkpoints/"),
    ):
        with pytest.raises(SystemExit) as stop:
            command(monkeypatch, *words, "--out", "x")
        assert complaint in str(stop.value) and "\n" not in str(stop.value)
    assert not Path("x").exists()
    with pytest.raises(SystemExit, match="only `train`"):
        command(monkeypatch, "terms", "--run", "cut", "--out", "x", "--", "--tau", "1")
    command(monkeypatch, "terms", "--run", "plain", "--out", "x", "--episodes", "1")
    assert not json.loads(Path("x/terms.json").read_text())["held_out"]


def words(numbers: dict) -> str:
    low, high = numbers["interval"]
    return f"{numbers['mean']:.2f} ({low:.2f} to {high:.2f})"


@pytest.mark.parametrize("name", ["maze", "hopper"])
def test_the_page_has_the_stored_numbers(name):
    """The stored results are of the first casting, which had another layout."""
    folder = ROOT / "benchmarks/studies"
    page = (folder / "README.md").read_text().replace("**", "")
    found = json.loads((folder / f"guide/results/beyond_{name}.json").read_text())["measures"]
    for region in ("inside", "outside"):
        means = {measure: found[measure]["cut"][region] for measure in found}
        cells = [words(means[measure]) for measure in ("distance_position", "cosine")]
        near = f"{means['reachable']['mean']:.2f} ({means['reachable_recorded']['mean']:.2f})"
        cells += [near, words(means["higher_own"])]
        assert f"| {' | '.join(cells)} |" in page
    terms = json.loads((folder / f"guide/results/terms_{name}.json").read_text())
    for kind in ("seeds and checkpoints", "seeds within checkpoints"):
        numbers = terms["correlation_with_loss"]["rollout_gap"][kind]
        low, high = numbers["spearman_interval"]
        text = f"{numbers['spearman']:.2f}, {low:.2f} to {high:.2f}"
        assert text in " ".join(page.split())
