"""Tests of algorithms/por_four_room.py: its worlds, their data, its comparisons, its command.

    python -m pytest tests/test_por_four_room.py
"""

import copy
import itertools
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))

import por_four_room as demo  # noqa: E402

pytestmark = pytest.mark.usefixtures("isolated")
ROOMS = ("four-room", "four-room-river", "four-room-key")
TINY = ("--num-seeds 2 --num-updates 12 --batch-size 16 --hidden 8 --execute-hidden 8 "
        "--final-eval-episodes 3").split()


@pytest.fixture
def run(isolated, monkeypatch, capsys):
    """Run the command in this process on one thread; returns code, out, err."""
    def call(*args) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["por_four_room.py", *TINY, *(str(a) for a in args)])
        torch.set_num_threads(1)
        capsys.readouterr()
        try:
            code = demo.demonstrate()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # Python itself prints it and exits with 1
            code, err = 1, err + code
        return SimpleNamespace(code=code or 0, out=out, err=err)
    return call


def make_lab(**options):
    """A Lab with small networks."""
    torch.set_num_threads(1)
    return demo.Lab(demo.Args(**{"num_seeds": 2, "num_updates": 12, "batch_size": 16, "hidden": 8,
                                 "execute_hidden": 8, "final_eval_episodes": 4} | options))


def cells(world, states) -> list:
    """(x, y) from the lower left inner cell."""
    y, x = world.cell(np.asarray(states, float).reshape(-1, np.shape(states)[-1]))
    return [*zip((x - 1).tolist(), (y - 1).tolist())]


def at(world, x, y, key=0.0) -> np.ndarray:
    """The state in the middle of that cell, counted as above."""
    return np.array([[*np.array([x + 1, y + 1]) - world.middle, key]])


# ---- Worlds ----

@pytest.mark.parametrize("name", demo.WORLDS)
def test_gymnasium_accepts_the_world(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*|.*not within the obs.*None")
        warnings.filterwarnings("ignore", message=".*[Rr]ender|.*spec")
        check_env(demo.World(name), skip_render_check=True)


@pytest.mark.parametrize("name", demo.WORLDS)
def test_a_step_is_one_walker_of_advance(name):
    world, rng = demo.World(name), np.random.default_rng(0)
    obs, _ = world.reset(seed=3)
    state = np.zeros((1, 3))
    state[0, :world.obs_dim] = obs
    assert world.map[world.cell(state)] == "S"
    for step in range(1, world.horizon + 1):
        action = rng.uniform(-1, 1, 2)
        state, reward, arrives, drowns = world.advance(state, action[None])
        obs, got, terminated, truncated, info = world.step(action)
        assert np.array_equal(obs, state[0, :world.obs_dim]) and got == reward[0]
        assert terminated == bool(arrives[0] or drowns[0]) and truncated == (step == world.horizon)
        assert info == {"arrives": bool(arrives[0]), "drowns": bool(drowns[0])}
        if terminated:
            break


@pytest.mark.parametrize("name", demo.WORLDS)
def test_walls_are_never_entered_nor_jumped(name):
    world, rng = demo.World(name), np.random.default_rng(1)
    states = world.draw(rng, 300, "S.kw")
    for _ in range(100):
        actions = np.clip(3 * rng.standard_normal((300, 2)), -1, 1)  # mostly as far as it goes
        following, *_ = world.advance(states, actions)
        y, x = world.cell(following)
        assert (world.map[y, x] != "#").all()
        move = np.abs(following - states)[:, :2]
        assert (move <= (1 if world.whole_cells else demo.STEP) + 1e-12).all() and demo.STEP < 1
        # first along x, then along y: the corner in between is free, too, unless x stayed
        corner = np.column_stack([following[:, 0], states[:, 1], states[:, 2]])
        assert (world.map[world.cell(corner)] != "#").all()
        states = following


def test_a_wall_stops_and_one_slides_along_it():
    world = demo.World("four-room")
    state = at(world, 4, 4) + [0.49, 0, 0]  # the wall of x = 5 begins 0.01 to the right
    after, *_ = world.advance(state, np.array([[1.0, 0.5]]))
    assert after[0, 0] == state[0, 0] and np.isclose(after[0, 1] - state[0, 1], 0.5 * demo.STEP)
    for size in (0.3, 1.0):  # through the door is free
        after, *_ = world.advance(at(world, 5, 0), np.array([[size, 0.0]]))
        assert np.isclose(after[0, 0] - at(world, 5, 0)[0, 0], size * demo.STEP)


def test_the_field_moves_by_whole_cells():
    world = demo.World("field")
    for action, move in (((0.4, 0.6), (0, 1)), ((-0.6, -0.4), (-1, 0)), ((9, 9), (1, 1))):
        after, reward, *_ = world.advance(at(world, 5, 4), np.array([action]))
        assert cells(world, after) == [(5 + move[0], 4 + move[1])] and reward == -1
    assert cells(world, world.advance(at(world, 0, 0), np.array([[-1, -1.0]]))[0]) == [(0, 0)]


@pytest.mark.parametrize("name", ROOMS)
def test_goal_river_and_key(name):
    world = demo.World(name)
    up, right = np.array([[0, 1.0]]), np.array([[1.0, 0]])
    for key in (0.0, 1.0):
        state, reward, arrives, drowns = world.advance(at(world, 7, 8, key), up)
        assert cells(world, state) == [(7, 9)] and reward == -1 and not drowns
        assert arrives == (key == 1 or name != "four-room-key") and state[0, 2] == key
    state, reward, arrives, drowns = world.advance(at(world, 1, 5), up)
    river = name == "four-room-river"
    assert drowns == river and reward == (-100 if river else -1) and not arrives
    state, *_ = world.advance(at(world, 7, 3), right)
    assert cells(world, state) == [(8, 3)] and state[0, 2] == (name == "four-room-key")
    assert world.advance(state, right)[0][0, 2] == state[0, 2]  # who has the key keeps it


def test_the_river_cuts_the_short_way_only():
    """By cells, no corner cut: A's shortest way from the start goes through the river's row."""
    lengths = {}
    for name, tiles in (("four-room", ".SG"), ("four-room-river", ".SG")):
        world = demo.World(name)
        free = {tuple(c) for c in np.argwhere(np.isin(world.map, [*tiles])).tolist()}
        goal = {tuple(c) for c in np.argwhere(world.map == "G").tolist()}
        reached, steps = {tuple(c) for c in np.argwhere(world.map == "S").tolist()}, 0
        while not reached & goal:
            reached |= {(y + j, x + i) for y, x in reached for j, i in itertools.product(
                (-1, 0, 1), repeat=2) if {(y + j, x + i), (y + j, x), (y, x + i)} <= free}
            steps += 1
        lengths[name] = steps
    assert lengths == {"four-room": 11, "four-room-river": 14}


# ---- Data ----

def lane_cells(corners) -> set:
    """Cells of a lane, written apart from walk_lanes."""
    found = set()
    for (x, y), (x2, y2) in zip(corners, corners[1:]):
        xs, ys = range(min(x, x2), max(x, x2) + 2), range(min(y, y2), max(y, y2) + 2)
        found |= {*itertools.product(xs, ys)}
    return found


@pytest.mark.parametrize("name", demo.LANES)
def test_data_of_the_lanes_are_what_they_claim(name):
    world = demo.World("field")
    data = demo.walk_lanes(world, demo.LANES[name], np.random.default_rng(0), walkers=50)
    here, there = cells(world, data["observations"]), cells(world, data["next_observations"])
    start, goal = (lane_cells(lane) for lane in demo.LANES[name])
    shared = start & goal
    assert len(shared) == (4 if name == "crossing" else 0)
    for a, b in {*zip(here, there)}:
        assert {a, b} <= start or {a, b} <= goal  # no transition of the data changes the lane
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1
    assert {*here} | {*there} == start | goal  # and each cell is visited
    # but somewhere one move would do
    near = {(a, b) for a in start - shared for b in goal - shared
            if max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1}
    assert near and not near & {*zip(here, there)}
    states = np.column_stack([data["observations"], np.zeros(len(here))])
    following, rewards, arrives, _ = world.advance(states, data["actions"])
    assert np.array_equal(following[:, :2], data["next_observations"])
    assert np.array_equal(rewards, data["rewards"]) and np.abs(data["actions"]).max() <= 1
    # at the goal they stay, at no cost; nothing is terminal
    at_goal = np.array([x in (3, 4) and y in (7, 8) for x, y in here])
    assert np.array_equal(rewards, at_goal - 1.0) and (at_goal <= arrives).all()
    assert (arrives & ~at_goal).sum() == 50 and at_goal.sum() >= 500 and not data["terminals"].any()
    moved = data["actions"].round() != data["actions"]
    assert moved.mean() > 0.6  # the actions are spread, not the moves


def test_lanes_move_on_and_wait_at_a_dead_end():
    world = demo.World("field")
    data = demo.walk_lanes(world, [[(0, 0), (3, 0)]], np.random.default_rng(0), walkers=7, wait=5)
    x, x2 = (data[k].reshape(-1, 7, 2)[:, :, 0] for k in ("observations", "next_observations"))
    assert len(x) == 3 + 5 and (x2[:3] - x[:3] == 1).all()
    assert ((x2[3:] >= x2[2].min() - 1) & (x2[3:] <= at(world, 4, 0)[0, 0])).all()


def test_shortest_ways():
    """Against powers of the adjacency matrix, and what a look at the map gives."""
    world = demo.World("field")
    for name, most in (("crossing", 24.5), ("parallel", None)):
        data = demo.walk_lanes(world, demo.LANES[name], np.random.default_rng(0))
        pairs = [*zip(cells(world, data["observations"]), cells(world, data["next_observations"]))]
        index = {c: i for i, c in enumerate(sorted({c for pair in pairs for c in pair}))}
        step = np.zeros((len(index), len(index)), bool)
        for a, b in pairs:
            step[index[a], index[b]] = True
        goal = np.array([c in {*itertools.product((3, 4), (7, 8))} for c in index])
        reached, lengths = np.eye(len(index), dtype=bool), {}
        for count in range(40):
            for c in itertools.product((0, 1), (0, 1)):
                if reached[index[c]][goal].any():
                    lengths.setdefault(c, count)
            reached = reached @ step
        assert (np.mean([*lengths.values()]) if lengths else None) == most
        # 2 or 1 to the right and up to (3, 2), 5 up; anywhere: 7 or 6 up, no more to the right
        assert demo.shortest(world, data) == {"by the data's transitions": most, "by any move": 6.5,
                                              "by the data's states": 7.5}


@pytest.mark.parametrize("name", ROOMS)
def test_data_of_the_rooms_are_what_they_claim(name):
    world = demo.World(name)
    data = demo.wander(world, np.random.default_rng(0), walkers=200, steps=50)
    assert {len(column) for column in data.values()} == {200 * 50}
    following, rewards, arrives, drowns = world.advance(data["observations"], data["actions"])
    assert np.array_equal(following, data["next_observations"])
    assert np.array_equal(rewards, data["rewards"])
    assert np.array_equal(arrives | drowns, data["terminals"] > 0)
    assert drowns.any() == (name == "four-room-river") and arrives.any()
    tile = world.map[world.cell(data["observations"])]
    assert not np.isin(tile, ["#", "w"]).any()
    assert {*cells(world, data["observations"])} >= {  # everywhere, behind every door
        (x - 1, y - 1) for y, x in np.argwhere(np.isin(world.map, [".", "S"])).tolist()}
    flag = data["observations"][:, 2]
    assert {*flag.tolist()} == ({0.0, 1.0} if name == "four-room-key" else {0.0})
    picked = (flag == 0) & (data["next_observations"][:, 2] == 1)
    assert np.array_equal(picked, (flag == 0) & (world.map[world.cell(following)] == "k"))
    # rows of one walker follow one another unless an episode ended
    s, s2, over = (data[k].reshape(50, 200, -1)
                   for k in ("observations", "next_observations", "terminals"))
    same = (s[1:] == s2[:-1]).all(-1)
    assert np.array_equal(same, over[:-1, :, 0] == 0)


def test_walkers_do_not_know_the_task():
    """From equal random numbers they act alike in all tasks; only none starts in the river."""
    data = [demo.wander(demo.World(name), np.random.default_rng(5), walkers=50, steps=1)
            for name in ROOMS]
    assert all(np.array_equal(data[0]["actions"], d["actions"]) for d in data)
    assert np.array_equal(data[0]["observations"][:, :2], data[2]["observations"][:, :2])
    assert {*data[2]["observations"][:, 2]} == {0.0, 1.0}


# ---- Methods ----

def fields(lab, count=50) -> list:
    """Small data of each seed."""
    return [demo.walk_lanes(demo.World("field"), demo.LANES["crossing"],
                            np.random.default_rng([s, 1]), walkers=count) for s in lab.seeds]


def test_action_stitching_is_the_weighted_guide_with_actions():
    lab, world = make_lab(), demo.World("field")
    data = fields(lab, 5)
    agent = lab.por("weighted", world)
    lab.train(agent, data)
    cloned = demo.ActionStitching(agent, lab.generators())
    rows = {k: torch.from_numpy(np.stack([d[k][:20] for d in data])).float() for k in data[0]}
    rows["rewards"] = torch.randn(2, 20)  # else the advantages of untrained values are alike
    before, policy = copy.deepcopy(agent.state_dict()), copy.deepcopy(cloned.policy)
    loss = cloned.update(rows | {"known": torch.ones(2, 20)})["loss/policy"]
    with torch.no_grad():
        v = lambda net, x: net(x)[..., 0].min(1).values.double()
        advantage = (rows["rewards"] + 0.99 * (1 - rows["terminals"])
                     * v(agent.value_target, rows["next_observations"])
                     - v(agent.value, rows["observations"]))
        weight = torch.exp(10 * advantage).clamp(max=100)
        mean, std = policy(rows["observations"])
        density = torch.distributions.Normal(mean, std).log_prob(rows["actions"]).sum(-1)
    assert weight.std() > 0.1 and torch.allclose(loss.double(), -(weight * density).mean(1), 1e-4)
    lab.train(cloned, data)
    after = agent.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not torch.equal(policy.net.weights[0], cloned.policy.net.weights[0])
    obs = torch.randn(2, 3, 2)
    assert torch.equal(cloned.act(obs), cloned.policy(obs)[0])


def test_all_methods_have_the_same_values():
    """V meets the same batches whatever the guide, and depends on no guide."""
    lab, world = make_lab(), demo.World("field")
    agents = [lab.por(guide, world) for guide in ("weighted", "q")]
    for agent in agents:
        lab.train(agent, fields(lab, 5))
    one, other = ([*agent.value.parameters(), *agent.value_target.parameters()] for agent in agents)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    fresh = lab.por("q", world)
    assert not torch.equal(fresh.value.weights[0], agents[1].value.weights[0])
    assert not torch.equal(fresh.behavior.net.weights[0], agents[1].behavior.net.weights[0])


def test_reused_policies_ignore_the_unseen_and_stay():
    lab, world = make_lab(), demo.World("four-room-key")
    data = [demo.wander(world, np.random.default_rng(s), walkers=10) for s in lab.seeds]
    old, new = lab.por("weighted", world), lab.por("weighted", world)
    kept = copy.deepcopy(old.state_dict())
    demo.reuse(new, old, [2])
    x = torch.randn(2, 7, 6)
    x[..., [2, 5]] = 0
    assert torch.equal(new.execute(x)[0], old.execute(x)[0])  # what it learned is untouched
    flagged = x.clone()
    flagged[..., [2, 5]] = torch.tensor([1.0, -2.0])
    assert torch.equal(new.execute(flagged)[0], new.execute(x)[0])
    assert not torch.equal(old.execute(flagged)[0], old.execute(x)[0])
    before = copy.deepcopy(new.state_dict())
    lab.train(new, data)
    changed = {k.split(".")[0] for k, v in new.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"value", "value_target", "guide", "step"}
    assert all(torch.equal(v, kept[k]) for k, v in old.state_dict().items())


def test_every_seed_learns_from_its_own_data():
    lab, world = make_lab(), demo.World("field")
    data = fields(lab, 5)
    changed = [data[0], {k: v + (k == "rewards") for k, v in data[1].items()}]
    one, other = lab.por("weighted", world), lab.por("weighted", world)
    lab.train(one, data), lab.train(other, changed)
    a, b = one.value.weights[1].unflatten(0, (2, 2)), other.value.weights[1].unflatten(0, (2, 2))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


class Scripted:
    """Acts by a function of the observations."""

    def __init__(self, act):
        self.act = act


def test_tests_count_what_happens():
    lab, world = make_lab(final_eval_episodes=30), demo.World("field")
    goal = torch.tensor([3.0, 7.0]) + 1 - torch.from_numpy(world.middle).float()
    r = lab.test(Scripted(lambda obs: (goal - obs).clamp(-1, 1)), world, (1, 1))
    starts = world.draw(np.random.default_rng(0), 30, "S")
    steps = np.mean([7 - y for _, y in cells(world, starts)])
    assert r["success"]["per_seed"] == [1.0, 1.0] and r["drowned"]["mean"] == 0
    assert np.allclose(r["steps_to_goal"]["per_seed"], steps)
    assert np.allclose(r["return"]["per_seed"], -steps)
    # the second seed stands still
    still = lambda obs: (goal - obs).clamp(-1, 1) * torch.tensor([1.0, 0.0]).view(2, 1, 1)
    r = lab.test(Scripted(still), world, (1, 1))
    assert r["success"]["per_seed"] == [1.0, 0.0] and r["return"]["per_seed"][1] == -60
    assert r["steps_to_goal"]["per_seed"][1] is None
    assert np.isclose(r["steps_to_goal"]["mean"], steps)
    river = demo.World("four-room-river")
    r = lab.test(Scripted(lambda obs: torch.stack([(-4 - obs[..., 0]) * (obs[..., 1] < 2),
                                                   torch.ones_like(obs[..., 0])], -1)), river,
                 ("a", "b"))
    assert r["drowned"]["per_seed"] == [1.0, 1.0] and r["return"]["mean"] < -100
    world, path, arrived, drowned = lab.paths["a", "b"]
    assert path.shape[:2] == (2, 30) and drowned.all() and not arrived.any()
    assert (world.map[world.cell(path[:, :, -1].reshape(-1, 3))] == "w").all()


def test_summary_is_students():
    r = demo.summary([1, 2, 3, 4, 5])
    assert r["mean"] == 3 and np.isclose(r["half_interval"], 2.776 * np.sqrt(2.5 / 5))
    assert demo.summary([1, None, 3]) == {
        "per_seed": [1.0, None, 3.0], "mean": 2.0, "half_interval": pytest.approx(12.706)}
    assert demo.summary([4]) == {"per_seed": [4.0], "mean": 4.0, "half_interval": None}
    assert demo.summary([None])["mean"] is None
    assert np.isclose(demo.summary(range(20))["half_interval"], 2.262 * np.sqrt(35 / 20))


# ---- The command ----

def load(folder: Path) -> dict:
    return json.loads((folder / "por_four_room.json").read_text())


def numbers(result: dict) -> str:
    """The result without what depends on the clock."""
    if isinstance(result, dict):
        return {k: numbers(v) for k, v in result.items() if "seconds" not in k}
    return result


def test_the_command_writes_numbers_and_pictures(run, isolated):
    done = run("--out", "x")
    assert done.code == 0, done.err
    assert {p.name for p in Path("x").iterdir()} == {
        "por_four_room.json", "por_four_room_stitching.png", "por_four_room_tasks.png"}
    for name in ("stitching", "tasks"):
        image = Path(f"x/por_four_room_{name}.png").read_bytes()
        assert image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) < 150_000
    result = load(Path("x"))
    assert {"args", "settings", "seeds", "commit", "device", "versions", "threads", "seconds",
            "cpu_seconds"} <= result.keys()
    assert [*result["stitching"]] == ["crossing", "parallel"] and [*result["tasks"]] == [*ROOMS]
    assert {*result["stitching"]["parallel"]} == {
        "action-stitching", "POR, weighted guide", "POR, q guide", "shortest ways"}
    assert [len(v) for v in result["tasks"].values()] == [1, 3, 4]
    for variants in [*result["stitching"].values(), *result["tasks"].values()]:
        for variant, r in variants.items():
            assert variant == "shortest ways" or len(r["success"]["per_seed"]) == 2
            assert variant in done.out or variant == "shortest ways"
    assert "g and pi of A" in result["tasks"]["four-room-key"]
    assert "training_seconds" not in result["tasks"]["four-room-key"]["g and pi of A"]
    assert result["args"]["num_updates"] == 12 and result["settings"]["q"]["alpha"] == 50


def test_the_same_seed_gives_the_same_numbers(run):
    part = ("--part", "tasks")
    run("--out", "a", *part), run("--out", "b", *part), run("--out", "c", *part, "--seed", 1)
    a, b, c = (numbers(load(Path(name))) for name in "abc")
    assert a == b and "stitching" not in a
    per_seed = [[v["per_seed"] for v in r["tasks"]["four-room"]["g and pi anew"].values()]
                for r in (a, c)]
    assert [x[1] for x in per_seed[0]] == [x[0] for x in per_seed[1]]  # seed 1 in either run


@pytest.mark.parametrize("args, word", [
    (["--num-updates", 0], "--num-updates"), (["--alpha", -1], "--alpha"), (["--tau", 2], "--tau"),
    (["--seed", -1], "--seed"), (["--out", "file"], "file"),
    (["--num-updates", 300, "--policy-lr", 1e30, "--part", "stitching"], "diverged")])
def test_bad_input_is_refused_in_one_line(run, args, word):
    Path("file").write_text("mine")
    done = None
    try:
        done = run("--out", "new", *args)
    except OSError as error:  # the script itself says it in a line
        assert word in str(error)
    assert done is None or done.code == 1 and word in done.err and len(done.err.splitlines()) <= 2
    assert Path("file").read_text() == "mine"
    assert not Path("new").exists() or not [*Path("new").iterdir()]


def test_older_results_stay_whole_until_new_ones_are(run, monkeypatch):
    assert run("--part", "stitching", "--out", "x").code == 0
    before = {p.name: p.read_bytes() for p in Path("x").iterdir()}
    def half(path, content):  # as on a full disk
        with open(path, "wb") as file:
            file.write(content[:100])
        raise OSError("full")

    monkeypatch.setattr(demo.Path, "write_bytes", half)
    with pytest.raises(OSError):
        run("--part", "stitching", "--out", "x", "--seed", 3)
    assert before == {p.name: p.read_bytes() for p in Path("x").iterdir()}


def test_stopped_it_leaves_nothing_half_written(isolated):
    command = [sys.executable, ROOT / "algorithms" / "por_four_room.py", "--num-updates", "100000",
               "--out", "x"]
    process = subprocess.Popen(  # a shell's background processes inherit that SIGINT is ignored
        [str(c) for c in command], cwd=isolated, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        process.stdout.readline()  # the device's line: training begins
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1 and err.strip().endswith("stopped, nothing was written")
    assert [*(isolated / "x").iterdir()] == []
