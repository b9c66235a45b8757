"""Tests of benchmarks/studies/four_room: its worlds, their data, its comparisons, its command.

python -m pytest tests/benchmarks/test_study_four_room.py
"""

import copy
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common import ROOT
from benchmarks.studies.four_room import study
from benchmarks.studies.four_room.worlds import LANES, MAPS, STEP, World, walk_lanes, wander
from benchmarks.studies.shared import shown

pytestmark = pytest.mark.usefixtures("isolated")
ROOMS = ("four-room", "four-room-river", "four-room-key")
SMALL = {"num_seeds": 2, "num_updates": 12, "batch_size": 16, "hidden": 8, "episodes": 4}


def cells(world, states) -> list:
    """Return (x, y) of each state's cell, counted from the lower left inner cell."""
    x, y = np.floor(np.asarray(states)[:, :2] + world.middle + 0.5).astype(int).T - 1
    return list(zip(x.tolist(), y.tolist(), strict=True))


def at(world, x: int, y: int, key: float = 0.0) -> np.ndarray:
    """Return the state in the middle of that cell, counted as above."""
    return np.array([[*np.array([x + 1, y + 1]) - world.middle, key]])


# ---- Worlds ----


@pytest.mark.parametrize("name", MAPS)
def test_walls_are_never_entered_nor_jumped(name):
    world, rng = World(name), np.random.default_rng(1)
    states = world.draw(rng, 300, "S.kw")
    for _ in range(100):
        actions = 3 * rng.standard_normal((300, 2))  # mostly as far as it goes
        next_states, *_ = world.advance(states, actions)
        assert (world.tiles(next_states) != "#").all()
        move = np.abs(next_states - states)[:, :2]
        assert (move <= (1 if world.whole_cells else STEP) + 1e-12).all() and STEP < 1
        corner = np.column_stack([next_states[:, 0], states[:, 1], states[:, 2]])
        assert (world.tiles(corner) != "#").all()  # first along x, then along y
        states = next_states


def test_a_wall_stops_and_one_slides_along_it():
    world = World("four-room")
    state = at(world, 4, 4) + [0.49, 0, 0]  # the wall of x = 5 begins 0.01 to the right
    after, *_ = world.advance(state, np.array([[1.0, 0.5]]))
    assert after[0, 0] == state[0, 0] and np.isclose(after[0, 1] - state[0, 1], 0.5 * STEP)
    after, *_ = world.advance(at(world, 5, 0), np.array([[1.0, 0.0]]))  # the door is free
    assert np.isclose(after[0, 0] - at(world, 5, 0)[0, 0], STEP)


def test_the_field_moves_by_whole_cells():
    world = World("field")
    for action, move in (((0.4, 0.6), (0, 1)), ((-0.6, -0.4), (-1, 0)), ((9, 9), (1, 1))):
        after, reward, *_ = world.advance(at(world, 5, 4), np.array([action]))
        assert cells(world, after) == [(5 + move[0], 4 + move[1])] and reward == -1
    stay = world.advance(at(world, 3, 7), np.zeros((1, 2)))  # at the goal
    assert cells(world, stay[0]) == [(3, 7)] and stay[1] == 0


@pytest.mark.parametrize("name", ROOMS)
def test_goal_river_and_key(name):
    world = World(name)
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


def steps_between(starts: set, goals: set, moves: set) -> float | None:
    """Return the mean number of moves from the starts to the nearest goal: breadth first."""
    distance, frontier, count = {}, set(goals), 0
    while frontier:
        distance |= dict.fromkeys(frontier, count)
        count += 1
        frontier = {a for a, b in moves if b in frontier and a not in distance}
    found = [distance.get(cell) for cell in starts]
    return None if None in found else float(np.mean(found))


def tiles(world, letters: str) -> set:
    return {(x - 1, y - 1) for y, x in np.argwhere(np.isin(world.map, list(letters))).tolist()}


def neighbours(among: set) -> set:
    moves = set()
    for x, y in among:
        for dx, dy in itertools.product((-1, 0, 1), repeat=2):
            if (x + dx, y + dy) in among:
                moves.add(((x, y), (x + dx, y + dy)))
    return moves


def test_the_river_cuts_the_short_way_only():
    """Corners are not cut: A's shortest way from the start goes through the river's row."""
    lengths = []
    for name in ("four-room", "four-room-river"):
        world = World(name)
        free = tiles(world, ".SG")
        moves = {
            ((x, y), (u, v)) for (x, y), (u, v) in neighbours(free) if {(x, v), (u, y)} <= free
        }
        starts = tiles(world, "S")
        lengths.append(min(steps_between({s}, tiles(world, "G"), moves) for s in starts))
    assert lengths == [11, 14]


# ---- Data ----


@pytest.mark.parametrize("name, by_transitions", [("crossing", 24.5), ("parallel", None)])
def test_shortest_ways_are_those_of_the_page(name, by_transitions):
    world = World("field")
    data = walk_lanes(world, LANES[name], np.random.default_rng(0))
    moves = [cells(world, data[key]) for key in ("observations", "next_observations")]
    transitions = set(zip(*moves, strict=True))
    visited = {cell for pair in transitions for cell in pair}
    way = [
        steps_between(tiles(world, "S"), tiles(world, "G"), moves)
        for moves in (transitions, neighbours(visited), neighbours(tiles(world, ".SG")))
    ]
    assert way == [by_transitions, 7.5, 6.5]


@pytest.mark.parametrize("name", LANES)
def test_data_of_the_lanes(name):
    world = World("field")
    data = walk_lanes(world, LANES[name], np.random.default_rng(0), walkers=50)
    here, there = cells(world, data["observations"]), cells(world, data["next_observations"])
    lanes = []
    for corners in LANES[name]:
        lane = set()
        for (x, y), (u, v) in itertools.pairwise(corners):
            xs, ys = range(min(x, u), max(x, u) + 2), range(min(y, v), max(y, v) + 2)
            lane |= set(itertools.product(xs, ys))
        lanes.append(lane)
    shared = lanes[0] & lanes[1]
    assert len(shared) == (4 if name == "crossing" else 0)
    for pair in set(zip(here, there, strict=True)):
        assert set(pair) <= lanes[0] or set(pair) <= lanes[1]  # no transition changes the lane
    assert set(here) | set(there) == lanes[0] | lanes[1]  # and each cell is visited
    states = np.column_stack([data["observations"], np.zeros(len(here))])
    next_states, rewards, arrives, _ = world.advance(states, data["actions"])
    assert np.array_equal(next_states[:, :2], data["next_observations"])
    assert np.array_equal(rewards, data["rewards"]) and np.abs(data["actions"]).max() <= 1
    assert (data["rewards"] == 0).sum() >= 500  # they wait at the goal, at no cost
    assert arrives.any() and not data["terminals"].any()
    assert (data["actions"].round() != data["actions"]).mean() > 0.6


@pytest.mark.parametrize("name", ROOMS)
def test_data_of_the_rooms(name):
    world = World(name)
    data = wander(world, np.random.default_rng(0), walkers=200, steps=50)
    assert {len(column) for column in data.values()} == {200 * 50}
    next_states, rewards, arrives, drowns = world.advance(data["observations"], data["actions"])
    assert np.array_equal(next_states, data["next_observations"])
    assert np.array_equal(rewards, data["rewards"])
    assert np.array_equal(arrives | drowns, data["terminals"] > 0)
    assert drowns.any() == (name == "four-room-river") and arrives.any()
    assert set(cells(world, data["observations"])) >= tiles(world, ".S")  # behind every door
    flag = data["observations"][:, 2]
    assert set(flag.tolist()) == ({0.0, 1.0} if name == "four-room-key" else {0.0})
    # Rows of one walker follow one another unless an episode ended.
    keys = ("observations", "next_observations", "terminals")
    s, s2, over = (data[key].reshape(50, 200, -1) for key in keys)
    assert np.array_equal((s[1:] == s2[:-1]).all(-1), over[:-1, :, 0] == 0)


def test_walkers_do_not_know_the_task():
    """From equal random numbers they act alike in all tasks."""
    data = [wander(World(n), np.random.default_rng(5), walkers=50, steps=1) for n in ROOMS]
    assert all(np.array_equal(data[0]["actions"], d["actions"]) for d in data)
    assert np.array_equal(data[0]["observations"][:, :2], data[2]["observations"][:, :2])


# ---- Methods ----


def lane_data(count: int = 5) -> list:
    """Return small data of two agents."""
    world = World("field")
    seeds = ([0, 1], [1, 1])
    return [
        walk_lanes(world, LANES["crossing"], np.random.default_rng(s), walkers=count) for s in seeds
    ]


def test_action_stitching_is_the_weighted_guide_with_actions():
    args, data = study.Args(**SMALL), lane_data()
    agent = study.make_por(args, "weighted", World("field"))
    study.train(agent, data, args)
    cloned = study.ActionStitching(agent)
    batch = study.Batches(data, args).sample()
    batch["rewards"] = torch.randn(2, 16)  # else the advantages of untrained values are alike
    before, policy = copy.deepcopy(agent.state_dict()), copy.deepcopy(cloned.policy)
    loss = cloned.update(batch)["loss/policy"]
    with torch.no_grad():
        next_v = agent.value_target(batch["next_observations"]).min(1).values
        v = agent.value(batch["observations"]).min(1).values
        advantage = batch["rewards"] + 0.99 * next_v - v
        weight = torch.exp(10 * advantage).clamp(max=100)
        mean, std = policy(batch["observations"])
        density = torch.distributions.Normal(mean, std).log_prob(batch["actions"]).sum(-1)
    assert weight.std() > 0.1
    torch.testing.assert_close(loss, -(weight * density).mean(1), rtol=1e-4, atol=1e-4)
    study.train(cloned, data, args)
    assert all(torch.equal(before[k], v) for k, v in agent.state_dict().items())
    assert not torch.equal(policy.net[0].weight, cloned.policy.net[0].weight)


def test_all_methods_have_the_same_values():
    """V meets the same batches whatever the guide, and depends on no guide."""
    args = study.Args(**SMALL)
    agents = [study.make_por(args, guide, World("field")) for guide in study.GUIDES]
    start = copy.deepcopy(agents[0].value)
    for agent in agents:
        study.train(agent, lane_data(), args)
    one, other = (list(agent.value.parameters()) for agent in agents)
    assert all(map(torch.equal, one, other))
    assert not any(map(torch.equal, one, start.parameters()))
    assert agents[1].behavior is not None


def test_reused_policies_ignore_the_unseen_and_stay():
    args, world = study.Args(**SMALL), World("four-room-key")
    data = [wander(world, np.random.default_rng(s), walkers=10) for s in range(2)]
    old = study.make_por(args, "weighted", world)
    study.train(old, data, args)
    new = study.make_por(args, "weighted", world)
    study.reuse(new, old, [2])
    x = torch.randn(2, 7, 6)
    x[..., [2, 5]] = 0
    assert torch.equal(new.execute(x)[0], old.execute(x)[0])  # what it learned is untouched
    flagged = x.clone()
    flagged[..., [2, 5]] = torch.tensor([1.0, -2.0])
    assert torch.equal(new.execute(flagged)[0], new.execute(x)[0])
    assert not torch.equal(old.execute(flagged)[0], old.execute(x)[0])
    before = copy.deepcopy(new.state_dict())
    study.train(new, data, args)
    changed = {
        k.split(".")[0] for k, v in new.state_dict().items() if not torch.equal(v, before[k])
    }
    assert changed == {"value", "value_target", "guide"}


def test_every_agent_learns_from_its_own_data():
    args, data = study.Args(**SMALL), lane_data()
    other_data = [data[0], data[1] | {"rewards": data[1]["rewards"] + 1}]
    one, other = (study.make_por(args, "weighted", World("field")) for _ in range(2))
    study.train(one, data, args)
    study.train(other, other_data, args)
    a, b = (agent.value.net[0].weight.unflatten(0, (2, 2)) for agent in (one, other))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


class Scripted:
    """Acts by a function of the observations."""

    def __init__(self, act):
        self.act = act


def test_evaluations_count_what_happens():
    args, world = study.Args(num_seeds=2, episodes=30), World("field")
    goal = torch.from_numpy(at(world, 3, 7)[0, :2]).float()

    def act(obs):  # the second agent stands still
        return (goal - obs).clamp(-1, 1) * torch.tensor([1.0, 0.0]).view(2, 1, 1)

    numbers = study.evaluate(Scripted(act), world, args).numbers
    starts = world.draw(np.random.default_rng(0), 30, "S")
    steps = np.mean([7 - y for _, y in cells(world, starts)])
    assert numbers["success"]["per_agent"] == [1.0, 0.0]
    assert numbers["return"]["per_agent"] == pytest.approx([-steps, -60])
    assert numbers["steps_to_goal"]["per_agent"] == [pytest.approx(steps), None]
    assert numbers["steps_to_goal"]["mean"] is None  # agents are not chosen by their result
    river = World("four-room-river")

    def swim(obs):
        sideways = torch.where(obs[..., 1] < 2, -4 - obs[..., 0], 0)
        return torch.stack([sideways, torch.ones_like(sideways)], -1)

    outcome = study.evaluate(Scripted(swim), river, args)
    assert outcome.drowned.all() and not outcome.arrived.any()
    assert outcome.numbers["return"]["mean"] < -100
    assert (river.tiles(outcome.paths[:, :, -1].reshape(-1, 3)) == "w").all()


# ---- The command ----


def run(monkeypatch, *words: str) -> dict:
    """Run the command with small networks, and return its result."""
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    monkeypatch.setattr(sys, "argv", ["four_room", *small, *words])
    study.main()
    return json.loads(Path("x/result.json").read_text())


def test_the_command_writes_numbers_and_pictures(monkeypatch, capsys):
    result = run(monkeypatch, "--out", "x")
    assert {path.name for path in Path("x").iterdir()} == {
        "result.json",
        "stitching.png",
        "tasks.png",
    }
    assert list(result["stitching"]) == ["crossing", "parallel"]
    assert [len(variants) for variants in result["stitching"].values()] == [3, 3]
    assert [len(variants) for variants in result["tasks"].values()] == [1, 3, 4]
    assert result["command"].startswith("python -m benchmarks.studies.four_room --num-seeds=2")
    out = capsys.readouterr().out
    for part in ("stitching", "tasks"):
        for variants in result[part].values():
            for variant, numbers in variants.items():
                assert len(numbers["success"]["per_agent"]) == 2
                assert variant in out
    again = run(monkeypatch, "--out", "x", "--part", "stitching")
    assert "tasks" not in again
    for world, variants in again["stitching"].items():
        for variant, numbers in variants.items():
            assert numbers["return"] == result["stitching"][world][variant]["return"]


def test_bad_input_is_one_line(monkeypatch):
    with pytest.raises(SystemExit, match="start at 1"):
        run(monkeypatch, "--num-updates", "0")
    args = study.Args(**SMALL)
    diverged = Scripted(lambda obs: obs * np.nan)
    with pytest.raises(SystemExit, match="diverged"):
        study.evaluate(diverged, World("four-room"), args)
    assert not Path("x").exists()


def test_the_page_has_the_stored_numbers():
    folder = ROOT / "benchmarks/studies"
    page = (folder / "README.md").read_text()
    result = json.loads((folder / "four_room/results/result.json").read_text())
    for world, variants in (result["stitching"] | result["tasks"]).items():
        cells = []
        names = ("action-stitching", "POR, weighted guide", "POR, q guide")
        if world in result["tasks"]:
            names = ("g and pi of A", "g anew, pi of A", "g and pi anew")
        for numbers in (variants.get(name) for name in names):
            if numbers is None:  # A has neither guide nor pi of itself
                break
            cell = shown(numbers["success"])
            if world in result["stitching"] and numbers["steps_to_goal"]["mean"] is not None:
                cell += f", {shown(numbers['steps_to_goal'], 1)}"
            cells.append(cell)
        else:
            assert f"| {' | '.join(cells)} |" in page, world
    as_it_was = result["tasks"]["four-room-key"]["g anew, pi of A as it was"]["success"]
    assert f"success is {shown(as_it_was)}" in page
