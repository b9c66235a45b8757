"""Tests of AntMaze as D4RL has it, and of the behaviour in mazes (benchmarks/mazes.py).

Some need D4RL's goal-reaching ant, ant_hierarch_pol.pkl in $D4RL_POLICIES (~/.d4rl/policies).

    python -m pytest tests/test_antmaze.py
"""

import dataclasses
import hashlib
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import d4rl_policies  # noqa: E402
import mazes  # noqa: E402
from mazes import ANT_RECIPES, AntMaze, AntPolicy, Journey, collect_shard  # noqa: E402

ANT_FILE = d4rl_policies.policies_folder() / "ant_hierarch_pol.pkl"
needs_ant = pytest.mark.skipif(not ANT_FILE.exists(), reason=f"{ANT_FILE} is not there")


@pytest.fixture(scope="module")
def ant() -> dict:
    return d4rl_policies.read_ant(d4rl_policies.policy_file(ANT_FILE.name))


@pytest.fixture(scope="module")
def weights() -> dict:
    """Weights of an untrained policy, for what does not depend on the ant's walking."""
    rng = np.random.default_rng(0)
    sizes = {"fc0": (16, 29), "fc1": (16, 16), "last_fc": (8, 16), "last_fc_log_std": (8, 16)}
    return {f"{layer}.{part}": rng.normal(0, 0.1, shape).astype(np.float32)
            for layer, size in sizes.items()
            for part, shape in (("weight", size), ("bias", size[:1]))}


@pytest.fixture
def open_field(monkeypatch) -> AntMaze:
    """The environment without walls."""
    monkeypatch.setitem(mazes.MAZES, "open", ("G", ""))
    return AntMaze("open")


def put(env: AntMaze, x: float, y: float, velocity=(0, 0)) -> None:
    """Let the ant stand at that place, pushed with that velocity."""
    qpos, qvel = env.init_qpos.copy(), env.init_qvel.copy()
    qpos[:2], qvel[:2] = (x, y), velocity
    env.set_state(qpos, qvel)


# ---------------------------------------------------------------------------------------------
# The environment
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_gymnasium_finds_no_fault(maze, monkeypatch):
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.WARN)
    env = gym.make(f"AntMaze-{maze}-v2").unwrapped
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)  # there may be no display
    # positions and velocities have no bounds
    assert [w for w in found if "Box observation space" not in str(w.message)] == []


@pytest.mark.parametrize("maze, limit", [("umaze", 700), ("medium", 1000), ("large", 1000)])
def test_time_limits(maze, limit):
    env = gym.make(f"AntMaze-{maze}-v2", disable_env_checker=True)
    env.reset(seed=0)
    ends = [env.step(np.zeros(8))[2:4] for _ in range(limit)]
    assert ends == [(False, False)] * (limit - 1) + [(False, True)]


def test_the_ant_is_d4rls():
    # d4rl/locomotion/assets/ant.xml and ant.py; where the numbers are Gymnasium's too, they guard
    # against a change there
    env = AntMaze("umaze")
    model = env.model
    ant, walls = model.geom_bodyid > 0, model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
    assert (model.opt.timestep, env.frame_skip, env.dt) == (0.02, 5, pytest.approx(0.1))
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert (model.actuator_ctrlrange == [-30, 30]).all() and model.actuator_ctrllimited.all()
    assert (model.actuator_gear[:, 0] == 1).all()
    names = [model.joint(model.actuator_trnid[i, 0]).name for i in range(8)]
    assert names == ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"]
    np.testing.assert_allclose(model.geom_solimp[:, :3], [[0.8, 0.8, 0.01]] * model.ngeom)
    np.testing.assert_allclose(model.geom_solref, [[0.02, 1]] * model.ngeom)
    np.testing.assert_allclose(model.geom_friction, [[1, 0.5, 0.5]] * model.ngeom)
    assert (model.geom_margin == 0.01).all() and (model.geom_condim == 3).all()
    assert (model.geom_contype == 1).all()
    assert ant.sum() == 13 and (model.geom_conaffinity == ~ant).all()  # legs do not collide
    assert (model.dof_armature[6:] == 1).all() and (model.dof_damping[6:] == 1).all()
    assert model.body_mass.sum() == pytest.approx(0.9109, abs=1e-3)  # density 5
    np.testing.assert_allclose(np.degrees(model.jnt_range[1:]), [
        [-30, 30], [30, 70], [-30, 30], [-70, -30], [-30, 30], [-70, -30], [-30, 30], [30, 70]])
    np.testing.assert_allclose(model.geom_size[walls], [[2, 2, 1]] * 18)  # 4 m wide, 2 m high
    assert (model.geom_pos[walls, 2] == 1).all()


@pytest.mark.parametrize("maze, rows, columns, goal", [
    ("umaze", 5, 5, (3, 1)), ("medium", 8, 8, (6, 6)), ("large", 9, 12, (7, 9))])
def test_maps(maze, rows, columns, goal):
    env = AntMaze(maze)
    assert len(env.maze) == rows and {len(row) for row in env.maze} == {columns}
    assert tuple(*np.argwhere(env.maze == "G")) == goal and env.maze[1, 1] != "#"
    border = [*env.maze[0], *env.maze[-1], *env.maze[:, 0], *env.maze[:, -1]]
    assert set(border) == {"#"}
    assert env.model.ngeom == 14 + (env.maze == "#").sum()


def test_actions_are_scaled_and_clipped():
    env, results = AntMaze("umaze"), {}
    for size in (0.5, 1, 7):
        env.reset(seed=0)
        results[size] = env.step(np.full(8, size))[0]
        np.testing.assert_array_equal(env.data.ctrl, [30 * min(size, 1)] * 8)
    np.testing.assert_array_equal(results[1], results[7])
    assert not np.allclose(results[1], results[0.5])


def test_reward_and_end_within_half_a_metre():
    env = AntMaze("umaze")
    env.reset(seed=0)
    seen = set()
    for distance in np.linspace(0.3, 0.7, 21):
        put(env, env.goal[0] + distance, env.goal[1])
        observation, reward, over, cut, _ = env.step(np.zeros(8))
        near = bool(np.hypot(*(observation[:2] - env.goal)) <= 0.5)
        assert (reward, over, cut) == (float(near), near, False)
        seen.add(near)
    assert seen == {False, True}


def test_observation_is_state_without_goal():
    env = AntMaze("umaze")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, [*env.data.qpos, *env.data.qvel])
    assert observation.shape == (29,)
    before = observation[2:].copy()
    env.goal = env.goal + 1
    np.testing.assert_array_equal(env.state_vector()[2:], before)


def test_seeds_are_gymnasiums_own():
    env = AntMaze("medium")
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first, goal = env.reset(seed=3)[0], env.goal
    following, other = env.reset()[0], env.goal  # every episode has a goal of its own
    assert not np.allclose(goal, other) and not np.allclose(first, following)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(1)
    again = AntMaze("medium")
    np.testing.assert_array_equal(again.reset(seed=3)[0], first)
    np.testing.assert_array_equal(again.goal, goal)
    np.testing.assert_array_equal(again.reset()[0], following)
    assert not np.allclose(again.reset(seed=4)[0], first)


def test_noise_of_start_and_goal():
    env = AntMaze("large")
    starts = np.array([env.reset(seed=i)[0] for i in range(300)])
    goals = np.array([(env.reset(seed=i), env.goal)[1] for i in range(300)]) - [32, 24]
    assert np.abs(starts[:, :15] - env.init_qpos).max() <= 0.1
    assert (starts[:, :2].min() < -0.09) and (starts[:, :2].max() > 0.09)
    np.testing.assert_allclose(starts[:, 15:].std(0), 0.1, rtol=0.2)
    # the sum of a draw of 0 to 1 and one of 0 to 0.5
    assert 0 <= goals.min() < 0.2 and 1.3 < goals.max() <= 1.5
    np.testing.assert_allclose(goals.mean(0), 0.75, atol=0.06)
    np.testing.assert_allclose(goals.std(0), np.sqrt((1 + 0.25) / 12), rtol=0.12)


def test_cells_can_be_chosen():
    env = Journey("large")
    for seed in range(50):
        observation, _ = env.reset(seed=seed, options={"reset_cell": (5, 2), "goal_cell": (7, 6)})
        assert ((observation[:2] >= [4, 16]) & (observation[:2] <= [5, 17])).all()
        assert ((env.goal >= [20, 24]) & (env.goal <= [21.5, 25.5])).all()
    observation, _ = env.reset(seed=0)  # they hold for one episode
    assert np.abs(observation[:2]).max() <= 0.1 and env.goal[0] > 30


def test_walls_block(open_field):
    ends = []
    for env in (AntMaze("umaze"), open_field):
        env.reset(seed=0)
        put(env, 0, 0, velocity=(0, 12))
        for _ in range(20):
            env.step(np.zeros(8))
        ends.append(env.data.qpos[1])
    assert 1 < ends[0] < 2 and ends[1] > 2.5  # a wall stands at 2 m


# ---------------------------------------------------------------------------------------------
# The ant's data
# ---------------------------------------------------------------------------------------------


@needs_ant
@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_d4rls_ant_walks(direction, ant, open_field):
    policy, direction, ways = AntPolicy(ant), np.array(direction), []
    for seed in range(3):  # one run in ten ends in a fall; Gymnasium's ant never gets beyond 14 m
        start, _ = open_field.reset(seed=seed)
        observation = start
        for _ in range(300):
            observation = open_field.step(policy(observation, direction, np.zeros(8)))[0]
        ways.append((observation[:2] - start[:2]) @ direction)
        if ways[-1] >= 45:
            return
    raise AssertionError(f"{ways} m in 300 steps")


@needs_ant
@pytest.mark.parametrize("name, episodes, least", [
    ("antmaze-umaze", 6, 2), ("antmaze-large-play", 3, 1)])  # of 30 some three quarters
def test_d4rls_ant_reaches_goals(ant, name, episodes, least):
    assert (mazes.arrivals(ANT_RECIPES[name], ant, 1, episodes) > 0).sum() >= least


def test_arrivals_are_at_the_ants_own_goal(weights, monkeypatch):
    """An ant that is put there arrives at once, one that stands elsewhere never."""
    recipe = dataclasses.replace(ANT_RECIPES["antmaze-umaze"], steps=20)
    assert mazes.arrivals(recipe, weights, 0, 2).tolist() == [0, 0]
    place = mazes.Journey.reset_model

    def at_the_goal(self):
        place(self)
        qpos = self.data.qpos.copy()
        qpos[:2] = self.goal
        self.set_state(qpos, self.data.qvel.copy())
        return self.state_vector()

    monkeypatch.setattr(mazes.Journey, "reset_model", at_the_goal)
    assert mazes.arrivals(recipe, weights, 0, 2).tolist() == [1, 1]


@pytest.fixture
def short(monkeypatch):
    """Episodes of a few steps for all ants."""
    for name, recipe in ANT_RECIPES.items():
        monkeypatch.setitem(ANT_RECIPES, name, dataclasses.replace(recipe, steps=5))


def same(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a[key], b[key]) for a, b in zip(one, other) for key in a)


@pytest.mark.parametrize("name", ["antmaze-umaze", "antmaze-large-diverse", "pointmaze-medium"])
def test_a_shard_depends_on_its_seed_alone(name, weights, short):
    first = collect_shard(name, weights, [0, 1], 23)
    collect_shard("antmaze-umaze", weights, [5, 5], 5)  # leaves the environments elsewhere
    other = collect_shard(name, weights, [0, 2], 23)
    np.random.seed(0)
    assert same(first, collect_shard(name, weights, [0, 1], 23))
    assert not same(first, other)


@pytest.mark.parametrize("name", ANT_RECIPES)
def test_form_of_ant_episodes(name, weights, short):
    episodes = collect_shard(name, weights, [0, 0], 12)
    assert len(episodes) == 3  # whole ones, until there are 12 transitions
    for e in episodes:
        assert e["observations"].shape == (6, 29) and e["actions"].shape == (5, 8)
        assert {e[k].dtype for k in ("observations", "actions", "rewards")} == {np.dtype("f4")}
        assert np.abs(e["actions"]).max() <= 1 and isinstance(e["seed"], int)
        assert e["truncations"].tolist() == [False] * 4 + [True]


def test_length_of_episodes():
    # 1,426 and 999 timeouts in a million rows of D4RL's files
    lengths = {name: recipe.steps for name, recipe in ANT_RECIPES.items()}
    assert lengths.pop("antmaze-umaze") == 701 and set(lengths.values()) == {1001}


def test_rewarded_is_one_point_of_the_task(weights, monkeypatch):
    goals = [mazes.rewarded_goal("umaze", seed) for seed in range(20)]
    assert len({tuple(goal) for goal in goals}) == 20
    assert all(((goal >= [0, 8]) & (goal <= [1.5, 9.5])).all() for goal in goals)
    recipe = ANT_RECIPES["antmaze-umaze"]  # has a point of its own, a goal of the task, too
    assert all(0 <= x - cell <= 1.5 for x, cell in zip(recipe.rewarded, (0, 8)))
    near_start = dataclasses.replace(recipe, rewarded=(0.0, 0.45))
    monkeypatch.setitem(ANT_RECIPES, "antmaze-umaze", near_start)
    episode, = collect_shard("antmaze-umaze", weights, [0, 0], 1)
    near = np.linalg.norm(episode["observations"][1:, :2] - [0, 0.45], axis=1) <= 0.5
    assert 0 < near.sum() < 701  # it does not end there
    np.testing.assert_array_equal(episode["rewards"], near.astype(np.float32))
    np.testing.assert_array_equal(episode["terminations"], near)


@pytest.mark.parametrize("name, starts, goals", [
    ("antmaze-umaze", 1, 1), ("antmaze-umaze-diverse", 7, 7), ("antmaze-medium-play", 23, 3),
    ("antmaze-medium-diverse", 26, 26), ("antmaze-large-play", 39, 7),
    ("antmaze-large-diverse", 46, 46)])
def test_starts_and_goals(name, starts, goals, weights, short):
    env, paths = mazes.ant_maze(ANT_RECIPES[name].maze)
    seen = set(), set()
    for number in range(12 * starts):
        episode, = collect_shard(name, weights, [0, number], 1)
        for cells, place in zip(seen, (episode["observations"][0], env.goal)):
            cells.add(mazes.cell_of(place))
    assert len(seen[0]) == starts and len(seen[1]) == goals
    assert (seen[0] | seen[1]) <= paths.keys()
    if "play" in name:
        assert not seen[0] & seen[1]


def test_actions_are_the_policys_with_noise(weights, short, monkeypatch):
    monkeypatch.setattr(AntPolicy, "__call__", lambda *args: np.zeros(8))
    actions = np.concatenate([e["actions"] for e in collect_shard(
        "antmaze-umaze", weights, [0, 0], 500)])
    assert actions.std() == pytest.approx(0.2, rel=0.05)


def test_waypoints(weights, monkeypatch):
    seen = []

    def stand(self, observation, direction, noise):
        seen.append(direction + observation[:2])
        return np.zeros(8)

    monkeypatch.setattr(AntPolicy, "__call__", stand)
    monkeypatch.setitem(ANT_RECIPES, "antmaze-umaze",
                        dataclasses.replace(ANT_RECIPES["antmaze-umaze"], steps=100))
    collect_shard("antmaze-umaze", weights, [0, 0], 1)
    waypoints = np.array(seen) - [4, 0]  # from the start to the right, in each step anew
    assert 0 <= waypoints.min() < 0.1 and 0.9 < waypoints.max() <= 1
    monkeypatch.setitem(ANT_RECIPES, "antmaze-umaze", dataclasses.replace(
        ANT_RECIPES["antmaze-umaze"], goals=((1, 1),)))
    seen.clear()
    collect_shard("antmaze-umaze", weights, [0, 0], 1)
    np.testing.assert_allclose(seen, [mazes.ant_maze("umaze")[0].goal] * 100)


def test_policy_sees_direction_not_distance(weights):
    policy, rng = AntPolicy(weights), np.random.default_rng(0)
    observation, noise = rng.normal(size=29), rng.normal(size=8)
    near = policy(observation, np.array([0.3, 0.4]), noise)
    np.testing.assert_allclose(near, policy(observation, np.array([30, 40]), noise), rtol=1e-5)
    moved = observation.copy()
    moved[:2] += 3
    np.testing.assert_array_equal(near, policy(moved, np.array([0.3, 0.4]), noise))
    # against the formula, layer by layer
    w = {key: value.astype(float) for key, value in weights.items()}
    h = np.array([*observation[2:], 6, 8])
    for layer in ("fc0", "fc1"):
        h = np.maximum(w[f"{layer}.weight"] @ h + w[f"{layer}.bias"], 0)
    mean, log_std = (w[f"{k}.weight"] @ h + w[f"{k}.bias"] for k in ("last_fc", "last_fc_log_std"))
    np.testing.assert_allclose(near, np.tanh(mean + np.exp(log_std) * noise), rtol=1e-4)


def test_routes():
    _, paths = mazes.ant_maze("umaze")
    cell, walked = (1, 1), []
    while cell != (3, 1):
        cell = paths[3, 1][cell]
        walked.append(cell)
    assert walked == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    _, paths = mazes.ant_maze("large")
    length = lambda cell, goal: 0 if cell == goal else 1 + length(paths[goal][cell], goal)
    assert length((1, 1), (7, 9)) == 14


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_there_is_a_way_from_everywhere(maze):
    # D4RL takes a place for a cell from its centre on: in a cell's other quarters it finds the
    # neighbours, which may be walls
    _, paths = mazes.ant_maze(maze)
    for row, column in paths:
        for x in (4 * column - 5.9, 4 * column - 2.1):
            for y in (4 * row - 5.9, 4 * row - 2.1):
                assert all(mazes.cell_of((x, y)) in after for after in paths.values())


# ---------------------------------------------------------------------------------------------
# D4RL's own files
# ---------------------------------------------------------------------------------------------

FILES = {"umaze": "u-maze_noisy_multistart_False_multigoal_False",
         "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
         "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
         "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
         "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
         "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True"}


@pytest.mark.parametrize("kind, name", FILES.items())
def test_a_file_of_d4rls_form_is_a_dataset(por, isolated, monkeypatch, kind, name):
    """The ant reaches the goal, stays for some rewarded rows and goes on; time ends episodes."""
    rng, length = np.random.default_rng(0), 11
    n = 3 * length + 4  # the last episode is not finished
    s, at = rng.normal(size=(n, 29)).astype(np.float32), np.arange(n)
    rewarded, timeouts = np.isin(at, [5, 6, 7, 30]), at % length == length - 1
    file = Path(f"d4rl/Ant_maze_{name}_sparse_fixed.hdf5")
    file.parent.mkdir()
    with h5py.File(file, "w") as data:
        data["observations"], data["actions"] = s, rng.uniform(-1, 1, (n, 8)).astype(np.float32)
        data["rewards"], data["terminals"] = rewarded.astype(np.float32), rewarded
        data["timeouts"], data["infos/goal"] = timeouts, np.zeros((n, 2))
        data["infos/qpos"], data["infos/qvel"] = s[:, :15], s[:, 15:]
    dataset = f"antmaze-{kind}-v2"
    path, sha256 = por.D4RL_FILES[dataset]
    assert path == f"ant_maze_v2/{file.name}" and len(sha256) == 24
    monkeypatch.setitem(por.D4RL_FILES, dataset, (
        path, hashlib.sha256(file.read_bytes()).hexdigest()[:24]))
    args = por.fill_settings(por.Args(env=dataset))
    rows, task = por.load_dataset(args)
    maze = kind.partition("-")[0]
    assert (task["source"], task["env_id"]) == ("D4RL file", f"AntMaze-{maze}-v2")
    assert (task["ref_min"], task["ref_max"], task["horizon"]) == (
        0, 1, 700 if maze == "umaze" else 1000)
    np.testing.assert_array_equal(rows["ends"], rewarded | timeouts)
    np.testing.assert_array_equal(rows["known"], ~(rewarded | timeouts) & (at < n - 1))
    np.testing.assert_array_equal(rows["next_observations"][:-1], s[1:])
    np.testing.assert_array_equal(rows["terminals"], rewarded)
    rewards = rows["rewards"].copy()
    np.testing.assert_array_equal(por.prepare(args, rows, task)["rewards"], rewards - 1)
    assert (args.guide, args.tau, args.alpha, args.layer_norm) == ("weighted", 0.9, 10, False)
    assert args.policy_lr == (1e-3 if maze == "umaze" else 1e-4)  # run_antmaze_por.sh
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(SystemExit, match="SHA-256"):
        por.load_dataset(args)


# ---------------------------------------------------------------------------------------------
# PointMaze
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, published", [  # episodes in a million transitions of Minari's v2
    ("pointmaze-umaze", 13_210), ("pointmaze-medium", 4_752)])
def test_point_episodes(name, published):
    episodes = collect_shard(name, {}, [0, 0], 12_000)
    total = sum(len(e["rewards"]) for e in episodes)
    assert total >= 12_000 > total - len(episodes[-1]["rewards"])
    assert total / len(episodes) == pytest.approx(1e6 / published, rel=0.2)
    for e, following in zip(episodes, episodes[1:] + [None]):
        steps, obs = len(e["rewards"]), e["observations"]
        assert obs.shape == (steps + 1, 8) and e["actions"].shape == (steps, 2)
        assert {e[k].dtype for k in ("observations", "actions", "rewards")} == {np.dtype("f4")}
        np.testing.assert_array_equal(obs[:, :2], obs[:, 4:6])  # achieved goal, ..., position
        assert (obs[:, 2:4] == obs[0, 2:4]).all()  # one goal
        near = np.linalg.norm(obs[1:, :2] - obs[1:, 2:4], axis=1) <= 0.45
        np.testing.assert_array_equal(e["rewards"], near)
        assert near.tolist() == e["truncations"].tolist() == [False] * (steps - 1) + [True]
        assert not e["terminations"].any() and np.abs(e["actions"]).max() <= 1
        if following:
            np.testing.assert_array_equal(obs[-1, 4:], following["observations"][0, 4:])
            assert not np.allclose(obs[-1, 2:4], following["observations"][0, 2:4])


@pytest.mark.parametrize("name", mazes.RECIPES)
def test_evaluation(name):
    spec = mazes.evaluation_spec(name)
    env = gym.make(spec, disable_env_checker=True)
    if name in ANT_RECIPES:
        assert type(env.unwrapped).__name__ == "AntMaze"  # of the last script that was imported
        assert spec.kwargs == {"maze": ANT_RECIPES[name].maze}
        return
    env = gym.wrappers.FlattenObservation(env)
    observations = np.array([env.reset(seed=i)[0] for i in range(30)])
    assert observations.shape == (30, 8) and spec.max_episode_steps in (300, 600, 800)
    assert np.ptp(observations[:, 2:4], axis=0).max() <= 0.5  # one goal cell
    assert np.ptp(observations[:, :2], axis=0).min() > 1.5  # any start
    np.testing.assert_array_equal(observations[:, :2], observations[:, 4:6])
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec


def test_point_mazes_are_gymnasium_robotics():
    gym.register_envs(pytest.importorskip("gymnasium_robotics"))
    for name, (env_id, steps, goal) in mazes.POINT_RECIPES.items():
        theirs, ours = gym.spec(env_id), mazes.point_spec(name)
        assert (ours.max_episode_steps, ours.entry_point) == (steps, theirs.entry_point)
        assert theirs.max_episode_steps == steps
        assert ours.kwargs["maze_map"] == theirs.kwargs["maze_map"]
        assert ours.kwargs["maze_map"][goal[0]][goal[1]] == 0
