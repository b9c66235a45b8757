"""Maze2D, Adroit and Kitchen as D4RL has them: their physics, rewards, ends and files."""

import math

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

MAZES = ["umaze", "medium", "large"]
HANDS = ["pen", "hammer", "door", "relocate"]
KITCHEN_WORKS = int(mujoco.__version__.split(".")[0]) < 4


# ---- Maze2D ----


@pytest.mark.parametrize("maze", MAZES)
def test_gymnasium_finds_no_fault_with_maze2d(por, maze):
    check_env(gym.make(f"Maze2D-{maze}-v1").unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    "name, limit",
    [
        ("Maze2D-umaze-v1", 300),
        ("Maze2D-medium-v1", 600),
        ("Maze2D-large-dense-v1", 800),
        ("Adroit-pen-v1", 100),
        ("Adroit-door-v1", 200),
        ("Adroit-hammer-v1", 200),
        ("Adroit-relocate-v1", 200),
    ],
)
def test_time_limits(por, name, limit):
    assert gym.spec(name).max_episode_steps == limit
    env = gym.make(name, max_episode_steps=3)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape)
    assert [env.step(action)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


def test_the_ball_is_d4rls(por):
    """d4rl/pointmaze/maze_model.py"""
    env = por.Maze2D("umaze")
    model = env.model
    assert (model.opt.timestep, env.frame_skip, model.opt.iterations) == (0.01, 1, 20)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    assert not model.opt.gravity.any() and not model.jnt_limited.any()
    assert (model.dof_damping == 1).all() and (model.actuator_gear[:, 0] == 100).all()
    assert (model.actuator_ctrlrange == [-1, 1]).all() and model.actuator_ctrllimited.all()
    ball, walls = model.geom_type == 2, model.geom_type == 6
    assert model.body_mass.sum() == pytest.approx(4 / 3 * math.pi * 0.1**3 * 1000)
    np.testing.assert_allclose(model.geom_size[ball, 0], [0.1])
    np.testing.assert_allclose(model.geom_size[walls], [[0.5, 0.5, 0.2]] * walls.sum())
    np.testing.assert_allclose(model.geom_friction, [[0.5, 0.1, 0.1]] * model.ngeom)
    assert (model.geom_condim == 1).all() and (model.geom_margin == 0.002).all()
    np.testing.assert_array_equal(model.body_pos[1], [1.2, 1.2, 0])


@pytest.mark.parametrize(
    "maze, goal, walls, cells",
    [("umaze", (1, 1), 18, 7), ("medium", (6, 6), 38, 26), ("large", (7, 9), 62, 46)],
)
def test_mazes_have_d4rls_goals_and_starts(por, maze, goal, walls, cells):
    env = por.Maze2D(maze)
    assert (env.model.geom_type == 6).sum() == walls
    starts = np.array([env.reset(seed=seed)[0] for seed in range(500)])
    assert tuple(env.goal) == goal
    near = np.round(starts[:, :2])
    assert len(np.unique(near, axis=0)) == cells and (near == goal).all(axis=1).any()
    noise = starts[:, :2] - near
    assert np.abs(noise).max() <= 0.1 and noise.min() < -0.09 and noise.max() > 0.09
    np.testing.assert_allclose(starts[:, 2:].std(0), 0.1, rtol=0.15)


def test_the_upper_row_of_the_small_maze_holds_the_goal(por):
    rows = ["".join(row) for row in por.Maze2D("umaze").maze]
    assert rows == ["#####", "#G..#", "###.#", "#...#", "#####"]


def test_the_ball_moves_as_the_equations_say(por):
    """m v' = 100 a - v, by Euler's method with implicit damping; v is cut at 5 before a step."""
    env = por.Maze2D("medium")
    env.reset(seed=0)
    env.set_state(np.array([1.0, 1.0]), np.array([-1.0, 7.0]))
    x, v = np.array([1.0, 1.0]), np.array([-1.0, 7.0])
    mass, dt = 4 / 3 * math.pi * 0.1**3 * 1000, 0.01
    for action in np.random.default_rng(0).uniform(-2, 2, (8, 2)):
        v = np.clip(v, -5, 5)
        v = v + dt * (100 * np.clip(action, -1, 1) - v) / (mass + dt)
        x = x + dt * v
        obs = env.step(action)[0]
        np.testing.assert_allclose(obs, [*x, *v], rtol=1e-9)


def test_maze2d_rewards_nearness_and_walls_block(por):
    for dense in (False, True):
        env = por.Maze2D("umaze", dense)
        env.reset(seed=0)
        for distance in (0.3, 0.7):
            env.set_state(np.array([1.0, 1 + distance]), np.zeros(2))
            obs, reward, *_ = env.step(np.zeros(2))
            expected = math.exp(-math.dist(obs[:2], (1, 1))) if dense else float(distance < 0.5)
            assert reward == pytest.approx(expected)
    for _ in range(200):
        obs = env.step(np.array([-1.0, 0.0]))[0]
    assert 0.4 < obs[0] < 0.6  # the wall's side at 0.5, as coordinates of walls are 0.2 m more


# ---- Adroit ----


def d4rl_reward(hand: str, env) -> float:
    """Return D4RL's reward of the state (d4rl/hand_manipulation_suite/*_v0.py)."""
    site = {name: env.data.site(name).xpos for name in sites(env)}
    body = {env.model.body(i).name: env.data.xpos[i] for i in range(env.model.nbody)}
    distance = np.linalg.norm
    if hand == "door":
        hinge = env.data.joint("door_hinge").qpos[0]
        reward = -0.1 * distance(site["S_grasp"] - site["S_handle"]) - 0.1 * (hinge - 1.57) ** 2
        bonus = {0.2: 2, 1.0: 8, 1.35: 10}
        reward += sum(more for least, more in bonus.items() if hinge > least)
        return reward - 1e-5 * (env.data.qvel**2).sum()
    if hand == "hammer":
        nail = distance(site["S_target"] - site["nail_goal"])
        reward = -0.1 * distance(site["S_grasp"] - body["Object"]) - 10 * nail
        reward -= distance(site["tool"] - site["S_target"]) + 1e-2 * distance(env.data.qvel)
        if min(body["Object"][2], site["tool"][2]) > 0.04:
            reward += 2
        return reward + sum(more for most, more in {0.02: 25, 0.01: 75}.items() if nail < most)
    if hand == "relocate":
        ball, palm, goal = body["Object"], site["S_grasp"], site["target"]
        reward = -0.1 * distance(palm - ball)
        if ball[2] > 0.04:
            reward += 1 - 0.5 * distance(palm - goal) - 0.5 * distance(ball - goal)
        apart = distance(ball - goal)
        return reward + sum(more for most, more in {0.1: 10, 0.05: 20}.items() if apart < most)
    apart = distance(body["Object"] - site["eps_ball"])
    pen = site["object_top"] - site["object_bottom"]
    wish = site["target_top"] - site["target_bottom"]
    alike = pen @ wish / env.pen_length / env.tar_length
    reward = alike - apart
    if apart < 0.075:
        reward += sum(more for least, more in {0.9: 10, 0.95: 50}.items() if alike > least)
    return reward - 5 if body["Object"][2] < 0.075 else reward


def sites(env) -> list[str]:
    return [env.model.site(i).name for i in range(env.model.nsite)]


@pytest.mark.parametrize("hand", HANDS)
def test_hands_have_d4rls_reward(por, hand):
    env = gym.make(f"Adroit-{hand}-v1")
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(40):
        *_, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert reward == pytest.approx(d4rl_reward(hand, env.unwrapped), abs=1e-6)
        assert not terminated or hand == "pen"


def test_pen_ends_when_it_is_dropped(por):
    env = gym.make("Adroit-pen-v1")
    env.action_space.seed(0)
    heights, dropped = [], False
    while not dropped:
        if not heights:
            env.reset(seed=0)
        *_, dropped, cut, _ = env.step(env.action_space.sample())
        heights.append(env.unwrapped.data.body("Object").xpos[2])
        assert (heights[-1] < 0.075) == dropped
        if cut:
            assert len(heights) == 100
            heights.clear()


def test_a_dropped_pen_does_not_end_the_binary_task(por):
    """Else it would pay to drop it, because each step without success costs 1."""
    env = gym.make("Adroit-pen-binary-v0")
    env.action_space.seed(0)
    env.reset(seed=0)
    heights, cut = [], False
    while not cut:
        *_, terminated, cut, _ = env.step(env.action_space.sample())
        assert not terminated
        heights.append(env.unwrapped.data.body("Object").xpos[2])
    assert min(heights) < 0.075 and len(heights) == 100


@pytest.mark.parametrize("hand", HANDS)
def test_a_binary_reward_is_0_after_success(por, hand, monkeypatch):
    env = por.Adroit(hand, binary=True)
    env.reset(seed=0)
    assert env.step(np.zeros(env.action_space.shape))[1] == -1.0
    step = env.env.step

    def succeed(action):
        return *step(action)[:4], {"success": True}

    monkeypatch.setattr(env.env, "step", succeed)
    assert env.step(np.zeros(env.action_space.shape))[1] == 0.0


# ---- Kitchen ----


@pytest.fixture
def kitchen(monkeypatch):
    """Let the kitchen work although gymnasium-robotics 1.4.2 mistakes mujoco 4's joint types."""
    from gymnasium_robotics.utils import mujoco_utils

    monkeypatch.setattr(mujoco_utils, "get_joint_qpos", lambda _, data, name: data.joint(name).qpos)
    monkeypatch.setattr(mujoco_utils, "get_joint_qvel", lambda _, data, name: data.joint(name).qvel)


@pytest.mark.skipif(KITCHEN_WORKS, reason="gymnasium-robotics 1.4.2 and mujoco 3 work together")
def test_where_the_kitchen_does_not_work_one_line_names_the_versions(main):
    end = main("--env=kitchen-partial-v0")
    assert end.code == 1
    found = f"Kitchen-partial-v0 cannot be made with gymnasium {gym.__version__}"
    assert found in end.err and f"mujoco {mujoco.__version__}: AssertionError" in end.err


def test_the_kitchen_shows_positions_and_the_goal(por, kitchen):
    env = gym.make("Kitchen-mixed-v0")
    obs, _ = env.reset(seed=0)
    assert obs.shape == (60,) and gym.spec("Kitchen-mixed-v0").max_episode_steps == 280
    qpos = env.unwrapped.data.qpos
    np.testing.assert_allclose(obs[:30], qpos, atol=0.05)  # with noise of the sensors
    assert (
        np.abs(obs[:9] - qpos[:9]).max() > 0.002
    )  # gymnasium-robotics' default is a tenth of D4RL's
    # d4rl/kitchen/kitchen_envs.py
    goal = np.zeros(30)
    goal[[11, 12]], goal[[17, 18]], goal[22] = (-0.88, -0.01), (-0.69, -0.05), -0.75
    goal[23:30] = -0.23, 0.75, 1.62, 0.99, 0, 0, -0.06
    np.testing.assert_allclose(obs[30:], goal)
    goal[[11, 12]], goal[19] = 0, 0.37
    np.testing.assert_allclose(gym.make("Kitchen-partial-v0").reset(seed=0)[0][30:], goal)


# ---- Files ----


@pytest.mark.parametrize(
    "name, env_id, low, high",
    [
        ("pen-human-v1", "Adroit-pen-v1", 96.262799, 3076.8331018),
        ("relocate-expert-v1", "Adroit-relocate-v1", -6.425911, 4233.8777977),
        ("kitchen-complete-v0", "Kitchen-partial-v0", 0, 4),
        ("kitchen-mixed-v0", "Kitchen-mixed-v0", 0, 4),
        ("maze2d-medium-v1", "Maze2D-medium-v1", 13.13, 277.39),
        ("maze2d-large-dense-v1", "Maze2D-large-dense-v1", 30.569041, 303.48573827),
    ],
)
def test_files_of_d4rls_form(por, isolated, kitchen, monkeypatch, capsys, name, env_id, low, high):
    """A file has no next observations; what stands below infos/ is not read."""
    space = gym.make(env_id).observation_space.shape[0], gym.make(env_id).action_space.shape[0]
    rng = np.random.default_rng(0)
    rows = np.arange(40)
    (isolated / "d4rl").mkdir()
    path = isolated / "d4rl" / por.d4rl_file(name).split("/")[-1]
    # Maze2D is one trajectory. Its timeouts mark where the controller drew another place to go to.
    timeouts = np.isin(rows, [11, 30]) if "maze2d" in name else rows % 10 == 9
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(40, space[0])).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (40, space[1])).astype(np.float32)
        file["rewards"] = np.isin(rows, [4, 5, 17]).astype(np.float32)
        file["terminals"] = np.zeros(40, bool)
        file["timeouts"] = timeouts
        file["infos/qpos"] = rng.normal(size=(40, 30))
        file["metadata/algorithm"] = "none"
    if por.D4RL_SHA256[name] is not None:
        args = por.Args(env=name, dataset_file=str(path))
    else:
        args = por.Args(env=name)
    data, task = por.load_dataset(args)
    assert (task.env_id, task.ref_min, task.ref_max) == (env_id, low, high)
    assert task.max_episode_steps == gym.spec(env_id).max_episode_steps
    np.testing.assert_array_equal(data["episode_end"], timeouts)
    np.testing.assert_array_equal(data["next_valid"], ~timeouts & (rows < 39))
    np.testing.assert_array_equal(data["rewards"].nonzero()[0], [4, 5, 17])  # not shifted
    unverified = f"no SHA-256 of {name} is known, so {path} is not verified"
    assert (unverified in capsys.readouterr().out) == (por.D4RL_SHA256[name] is None)


@pytest.mark.parametrize(
    "name, space, kept",
    [("antmaze-umaze-v2", (29, 8), [4]), ("hopper-medium-v2", (11, 3), [4, 9])],
)
def test_antmaze_has_no_terminal_row_at_a_timeout(por, tmp_path, name, space, kept):
    """Its mark would say that the next episode starts at the goal. D4RL drops the row."""
    rng = np.random.default_rng(0)
    rows = np.arange(30)
    path = tmp_path / "rows.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(30, space[0])).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (30, space[1])).astype(np.float32)
        file["rewards"] = np.isin(rows, [4, 9]).astype(np.float32)
        file["terminals"] = np.isin(rows, [4, 9])
        file["timeouts"] = rows % 10 == 9
    data, _ = por.load_dataset(por.Args(env=name, dataset_file=str(path)))
    np.testing.assert_array_equal(data["terminals"].nonzero()[0], kept)
    np.testing.assert_array_equal(data["episode_end"].nonzero()[0], [4, 9, 19, 29])
    assert not data["next_valid"][[9, 19]].any()


def test_a_file_with_another_sum_is_refused(por, isolated):
    (isolated / "d4rl").mkdir()
    (isolated / "d4rl" / "pen-human-v1.hdf5").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="pen-human-v1.hdf5 has not D4RL's SHA-256"):
        por.load_dataset(por.Args(env="pen-human-v1"))


def test_every_name_has_a_file_and_an_environment(por):
    files = {
        "door-cloned-v1": "hand_dapg_v1/door-cloned-v1.hdf5",
        "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
        "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
        "maze2d-umaze-v1": "maze2d/maze2d-umaze-sparse-v1.hdf5",
        "maze2d-umaze-dense-v1": "maze2d/maze2d-umaze-dense-v1.hdf5",
    }
    for name, file in files.items():
        assert por.d4rl_file(name) == file
    for name in por.D4RL_SHA256:
        prefix = next(prefix for prefix in por.D4RL_ENVS if name.startswith(prefix))
        words = prefix.split("-")
        assert all(word in por.D4RL_ENVS[prefix][0].lower() for word in words[1:])
        assert por.D4RL_ENVS[prefix][0] in gym.registry
