"""AntMaze as D4RL has it: the ant, the mazes, starts and goals, and D4RL's files."""

import hashlib
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env


@pytest.fixture
def open_field(por, monkeypatch):
    """The environment without walls."""
    monkeypatch.setitem(por.MAZES, "open", "G")
    return por.AntMaze("open")


def put(env, x: float, y: float, velocity=(0, 0)) -> None:
    """Let the ant stand at that place, pushed with that velocity."""
    qpos, qvel = env.init_qpos.copy(), env.init_qvel.copy()
    qpos[:2] = x, y
    qvel[:2] = velocity
    env.set_state(qpos, qvel)


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_gymnasium_finds_no_fault(por, maze, monkeypatch):
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.WARN)
    env = gym.make(f"AntMaze-{maze}-v2").unwrapped
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)  # there may be no display
    # Positions and velocities have no bounds.
    assert [w for w in found if "Box observation space" not in str(w.message)] == []


@pytest.mark.parametrize("maze, limit", [("umaze", 700), ("medium", 1000), ("large", 1000)])
def test_time_limits(por, maze, limit):
    env = gym.make(f"AntMaze-{maze}-v2", disable_env_checker=True)
    env.reset(seed=0)
    ends = [env.step(np.zeros(8))[2:4] for _ in range(limit)]
    assert ends == [(False, False)] * (limit - 1) + [(False, True)]


def test_the_ant_is_d4rls(por):
    # d4rl/locomotion/assets/ant.xml and ant.py. Where the numbers are Gymnasium's, too, they guard
    # against a change there.
    env = por.AntMaze("umaze")
    model = env.model
    ant = model.geom_bodyid > 0
    walls = model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
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
    hips_and_ankles = [[-30, 30], [30, 70], [-30, 30], [-70, -30]]
    ranges = [*hips_and_ankles, [-30, 30], [-70, -30], [-30, 30], [30, 70]]
    np.testing.assert_allclose(np.degrees(model.jnt_range[1:]), ranges)
    np.testing.assert_allclose(model.geom_size[walls], [[2, 2, 1]] * 18)  # 4 m wide, 2 m high
    assert (model.geom_pos[walls, 2] == 1).all()


@pytest.mark.parametrize(
    "maze, shape, goal",
    [("umaze", (5, 5), (3, 1)), ("medium", (8, 8), (6, 6)), ("large", (9, 12), (7, 9))],
)
def test_maps(por, maze, shape, goal):
    env = por.AntMaze(maze)
    assert env.maze.shape == shape
    assert tuple(*np.argwhere(env.maze == "G")) == goal and env.maze[1, 1] != "#"
    border = [*env.maze[0], *env.maze[-1], *env.maze[:, 0], *env.maze[:, -1]]
    assert set(border) == {"#"}
    assert env.model.ngeom == 14 + (env.maze == "#").sum()


def test_actions_are_scaled_and_clipped(por):
    env, results = por.AntMaze("umaze"), {}
    for size in (0.5, 1, 7):
        env.reset(seed=0)
        results[size] = env.step(np.full(8, size))[0]
        np.testing.assert_array_equal(env.data.ctrl, [30 * min(size, 1)] * 8)
    np.testing.assert_array_equal(results[1], results[7])
    assert not np.allclose(results[1], results[0.5])


def test_reward_and_end_within_half_a_metre(por):
    env = por.AntMaze("umaze")
    env.reset(seed=0)
    seen = set()
    for distance in np.linspace(0.3, 0.7, 21):
        put(env, env.goal[0] + distance, env.goal[1])
        observation, reward, terminated, truncated, _ = env.step(np.zeros(8))
        near = bool(np.hypot(*(observation[:2] - env.goal)) <= 0.5)
        assert (reward, terminated, truncated) == (float(near), near, False)
        seen.add(near)
    assert seen == {False, True}


def test_observation_is_the_state_without_the_goal(por):
    env = por.AntMaze("umaze")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, [*env.data.qpos, *env.data.qvel])
    assert observation.shape == (29,)
    first, *_ = env.step(np.zeros(8))
    env.reset(seed=0)
    env.goal = env.goal + 1
    again, *_ = env.step(np.zeros(8))
    np.testing.assert_array_equal(first, again)


def test_seeds_are_gymnasiums_own(por):
    env = por.AntMaze("medium")
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first, goal = env.reset(seed=3)[0], env.goal
    second, other = env.reset()[0], env.goal  # every episode has a goal of its own
    assert not np.allclose(goal, other) and not np.allclose(first, second)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(1)
    again = por.AntMaze("medium")
    np.testing.assert_array_equal(again.reset(seed=3)[0], first)
    np.testing.assert_array_equal(again.goal, goal)
    np.testing.assert_array_equal(again.reset()[0], second)
    assert not np.allclose(again.reset(seed=4)[0], first)


def test_noise_of_start_and_goal(por):
    env = por.AntMaze("large")
    starts, goals = [], []
    for seed in range(300):
        starts.append(env.reset(seed=seed)[0])
        goals.append(env.goal - [32, 24])
    starts, goals = np.array(starts), np.array(goals)
    assert np.abs(starts[:, :15] - env.init_qpos).max() <= 0.1
    assert starts[:, :2].min() < -0.09 and starts[:, :2].max() > 0.09
    np.testing.assert_allclose(starts[:, 15:].std(0), 0.1, rtol=0.2)
    # The sum of a draw of 0 to 1 and one of 0 to 0.5
    assert 0 <= goals.min() < 0.2 and 1.3 < goals.max() <= 1.5
    np.testing.assert_allclose(goals.mean(0), 0.75, atol=0.06)
    np.testing.assert_allclose(goals.std(0), np.sqrt((1 + 0.25) / 12), rtol=0.12)


def test_walls_block(por, open_field):
    ends = []
    for env in (por.AntMaze("umaze"), open_field):
        env.reset(seed=0)
        put(env, 0, 0, velocity=(0, 12))
        for _ in range(20):
            env.step(np.zeros(8))
        ends.append(env.data.qpos[1])
    assert 1 < ends[0] < 2 and ends[1] > 2.5  # a wall stands at 2 m


FILES = {
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_d4rls_form(por, isolated, monkeypatch, kind):
    """The ant reaches the goal, stays for some rewarded rows and goes on; time ends episodes."""
    rng = np.random.default_rng(0)
    rows = np.arange(3 * 11 + 4)  # the last episode is not finished
    obs = rng.normal(size=(len(rows), 29)).astype(np.float32)
    rewarded, timeouts = np.isin(rows, [5, 6, 7, 30]), rows % 11 == 10
    file = Path(f"d4rl/Ant_maze_{FILES[kind]}_sparse_fixed.hdf5")
    file.parent.mkdir()
    with h5py.File(file, "w") as data:
        data["observations"] = obs
        data["actions"] = rng.uniform(-1, 1, (len(rows), 8)).astype(np.float32)
        data["rewards"] = rewarded.astype(np.float32)
        data["terminals"] = rewarded
        data["timeouts"] = timeouts
        data["infos/goal"] = np.zeros((len(rows), 2))
    name, maze = f"antmaze-{kind}-v2", kind.split("-")[0]
    assert por.d4rl_file(name) == f"ant_maze_v2/{file.name}"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(por.D4RL_SHA256, name, digest[:24])
    args = por.apply_settings(por.Args(env=name))
    data, task = por.load_dataset(args)
    assert task.env_id == f"AntMaze-{maze}-v2"
    limit = 700 if maze == "umaze" else 1000
    assert (task.ref_min, task.ref_max, task.max_episode_steps) == (0, 1, limit)
    np.testing.assert_array_equal(data["episode_end"], rewarded | timeouts)
    inside = ~(rewarded | timeouts) & (rows < len(rows) - 1)
    np.testing.assert_array_equal(data["next_valid"], inside)
    np.testing.assert_array_equal(data["next_observations"][:-1], obs[1:])
    useful = inside | rewarded
    columns = por.prepare_data(args, data, task)
    np.testing.assert_array_equal(columns["rewards"], rewarded[useful] - 1.0)
    assert (args.guide, args.tau, args.alpha, args.layer_norm) == ("weighted", 0.9, 10, False)
    assert args.policy_lr == (1e-3 if maze == "umaze" else 1e-4)  # run_antmaze_por.sh
