"""The behaviour in mazes: where ants and balls are sent, what is rewarded, what is stored.

Some tests need D4RL's goal-reaching ant, ant_hierarch_pol.pkl in $D4RL_POLICIES.
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.datasets import d4rl_policies, mazes
from benchmarks.datasets.mazes import ANT_RECIPES, POINT_RECIPES, AntPolicy, collect_shard

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
    arrays = {}
    for layer, size in sizes.items():
        arrays[f"{layer}.weight"] = rng.normal(0, 0.1, size).astype(np.float32)
        arrays[f"{layer}.bias"] = rng.normal(0, 0.1, size[:1]).astype(np.float32)
    return arrays


@pytest.fixture
def short(monkeypatch):
    """Episodes of a few steps for all ants."""
    for name, recipe in ANT_RECIPES.items():
        monkeypatch.setitem(ANT_RECIPES, name, dataclasses.replace(recipe, steps=5))


# --------------------------------------------------------------------------------------------------
# The ant
# --------------------------------------------------------------------------------------------------


def test_cells_can_be_chosen():
    env = mazes.Journey("large")
    for seed in range(50):
        options = {"start_cell": (5, 2), "goal_cell": (7, 6)}
        observation, _ = env.reset(seed=seed, options=options)
        assert ((observation[:2] >= [4, 16]) & (observation[:2] <= [5, 17])).all()
        assert ((env.goal >= [20, 24]) & (env.goal <= [21.5, 25.5])).all()
    observation, _ = env.reset(seed=0)  # they hold for one episode
    assert np.abs(observation[:2]).max() <= 0.1 and env.goal[0] > 30


@needs_ant
@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_d4rls_ant_walks(direction, ant, monkeypatch):
    monkeypatch.setitem(mazes.por.MAZES, "open", "G")
    env = mazes.AntMaze("open")
    policy, direction, ways = AntPolicy(ant), np.array(direction), []
    for seed in range(3):  # one run in ten ends in a fall
        start, _ = env.reset(seed=seed)
        observation = start
        for _ in range(300):
            observation, *_ = env.step(policy(observation, direction, np.zeros(8)))
        ways.append((observation[:2] - start[:2]) @ direction)
        if ways[-1] >= 45:  # Gymnasium's ant never gets beyond 14 m
            return
    raise AssertionError(f"{ways} m in 300 steps")


@needs_ant
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, episodes, least", [("antmaze-umaze", 6, 2), ("antmaze-large-play", 3, 1)]
)
def test_d4rls_ant_reaches_goals(ant, name, episodes, least):
    # Of 30 some three quarters do.
    assert (mazes.arrivals(ANT_RECIPES[name], ant, 1, episodes) > 0).sum() >= least


def test_arrivals_are_at_the_ants_own_goal(weights, monkeypatch):
    """An ant that is put there arrives at once, one that stands elsewhere never."""
    recipe = dataclasses.replace(ANT_RECIPES["antmaze-umaze"], steps=20)
    assert mazes.arrivals(recipe, weights, 0, 2).tolist() == [0, 0]
    reset_model = mazes.Journey.reset_model

    def put_at_the_goal(self):
        reset_model(self)
        qpos = self.data.qpos.copy()
        qpos[:2] = self.goal + 0.1
        self.set_state(qpos, self.data.qvel.copy())
        return self.state_vector()

    monkeypatch.setattr(mazes.Journey, "reset_model", put_at_the_goal)
    assert mazes.arrivals(recipe, weights, 0, 2).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["antmaze-umaze", "antmaze-large-diverse", "pointmaze-medium"])
def test_a_shard_depends_on_its_seed_alone(name, weights, short):
    def same(one, other):
        return len(one) == len(other) and all(
            np.array_equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
        )

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
    for episode in episodes:
        assert episode["observations"].shape == (6, 29) and episode["actions"].shape == (5, 8)
        for key in ("observations", "actions", "rewards"):
            assert episode[key].dtype == np.float32
        assert np.abs(episode["actions"]).max() <= 1 and isinstance(episode["seed"], int)
        assert episode["truncations"].tolist() == [False] * 4 + [True]


def test_length_of_episodes():
    # 1,426 and 999 timeouts in a million rows of D4RL's files
    lengths = {name: recipe.steps for name, recipe in ANT_RECIPES.items()}
    assert lengths.pop("antmaze-umaze") == 701 and set(lengths.values()) == {1001}


def test_one_point_of_the_task_is_rewarded(weights, monkeypatch):
    goals = [mazes.rewarded_goal("umaze", seed) for seed in range(20)]
    assert len({tuple(goal) for goal in goals}) == 20
    assert all(((goal >= [0, 8]) & (goal <= [1.5, 9.5])).all() for goal in goals)
    recipe = ANT_RECIPES["antmaze-umaze"]  # it has a point of its own, a goal of the task, too
    x, y = recipe.rewarded
    assert 0 <= x <= 1.5 and 8 <= y <= 9.5
    near_start = dataclasses.replace(recipe, rewarded=(0.0, 0.45))
    monkeypatch.setitem(ANT_RECIPES, "antmaze-umaze", near_start)
    (episode,) = collect_shard("antmaze-umaze", weights, [0, 0], 1)
    near = np.linalg.norm(episode["observations"][1:, :2] - [0, 0.45], axis=1) <= 0.5
    assert 0 < near.sum() < 701  # the episode does not end there
    np.testing.assert_array_equal(episode["rewards"], near.astype(np.float32))
    np.testing.assert_array_equal(episode["terminations"], near)


@pytest.mark.parametrize(
    "name, starts, goals",
    [
        ("antmaze-umaze", 1, 1),
        ("antmaze-umaze-diverse", 7, 7),
        ("antmaze-medium-play", 23, 3),
        ("antmaze-medium-diverse", 26, 26),
        ("antmaze-large-play", 39, 7),
        ("antmaze-large-diverse", 46, 46),
    ],
)
def test_starts_and_goals(name, starts, goals, weights, monkeypatch):
    one_step = dataclasses.replace(ANT_RECIPES[name], steps=1)
    monkeypatch.setitem(ANT_RECIPES, name, one_step)
    env, paths = mazes.ant_maze(ANT_RECIPES[name].maze)
    seen_starts, seen_goals = set(), set()
    for number in range(12 * starts):
        (episode,) = collect_shard(name, weights, [0, number], 1)
        seen_starts.add(mazes.cell_of(episode["observations"][0]))
        seen_goals.add(mazes.cell_of(env.goal))
    assert (len(seen_starts), len(seen_goals)) == (starts, goals)
    assert (seen_starts | seen_goals) <= paths.keys()
    if "play" in name:
        assert not seen_starts & seen_goals


def test_actions_are_the_policys_with_noise(weights, short, monkeypatch):
    monkeypatch.setattr(AntPolicy, "__call__", lambda *args: np.zeros(8))
    episodes = collect_shard("antmaze-umaze", weights, [0, 0], 500)
    actions = np.concatenate([episode["actions"] for episode in episodes])
    assert actions.std() == pytest.approx(0.2, rel=0.05)


def test_waypoints(weights, monkeypatch):
    seen = []

    def stand(self, observation, direction, noise):
        seen.append(direction + observation[:2])
        return np.zeros(8)

    monkeypatch.setattr(AntPolicy, "__call__", stand)
    recipe = dataclasses.replace(ANT_RECIPES["antmaze-umaze"], steps=100)
    monkeypatch.setitem(ANT_RECIPES, "antmaze-umaze", recipe)
    collect_shard("antmaze-umaze", weights, [0, 0], 1)
    waypoints = np.array(seen) - [4, 0]  # from the start to the right, in each step anew
    assert 0 <= waypoints.min() < 0.1 and 0.9 < waypoints.max() <= 1
    here = dataclasses.replace(recipe, goals=((1, 1),))
    monkeypatch.setitem(ANT_RECIPES, "antmaze-umaze", here)
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
    # Against the formula, layer by layer
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
    cell, steps = (1, 1), 0
    while cell != (7, 9):
        cell, steps = paths[7, 9][cell], steps + 1
    assert steps == 14


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_there_is_a_way_from_everywhere(maze):
    # D4RL takes a place for a cell from its centre on: in a cell's other quarters it finds the
    # neighbours, which may be walls.
    _, paths = mazes.ant_maze(maze)
    for row, column in paths:
        for x in (4 * column - 5.9, 4 * column - 2.1):
            for y in (4 * row - 5.9, 4 * row - 2.1):
                assert all(mazes.cell_of((x, y)) in after for after in paths.values())


# --------------------------------------------------------------------------------------------------
# The ball
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, published",  # episodes in a million transitions of Minari's v2
    [("pointmaze-umaze", 13_210), ("pointmaze-medium", 4_752)],
)
def test_point_episodes(name, published):
    episodes = collect_shard(name, None, [0, 0], 12_000)
    total = sum(len(episode["rewards"]) for episode in episodes)
    assert total >= 12_000 > total - len(episodes[-1]["rewards"])
    assert total / len(episodes) == pytest.approx(1e6 / published, rel=0.2)
    for episode, next_episode in zip(episodes, [*episodes[1:], None], strict=True):
        steps, obs = len(episode["rewards"]), episode["observations"]
        assert obs.shape == (steps + 1, 8) and episode["actions"].shape == (steps, 2)
        for key in ("observations", "actions", "rewards"):
            assert episode[key].dtype == np.float32
        np.testing.assert_array_equal(obs[:, :2], obs[:, 4:6])  # achieved goal, ..., position
        assert (obs[:, 2:4] == obs[0, 2:4]).all()  # one goal
        near = np.linalg.norm(obs[1:, :2] - obs[1:, 2:4], axis=1) <= 0.45
        np.testing.assert_array_equal(episode["rewards"], near)
        assert near.tolist() == episode["truncations"].tolist() == [False] * (steps - 1) + [True]
        assert not episode["terminations"].any() and np.abs(episode["actions"]).max() <= 1
        if next_episode is not None:
            np.testing.assert_array_equal(obs[-1, 4:], next_episode["observations"][0, 4:])
            assert not np.allclose(obs[-1, 2:4], next_episode["observations"][0, 2:4])


def test_the_noisy_ball_takes_longer():
    lengths = {}
    for name in ("pointmaze-umaze", "pointmaze-umaze-noisy"):
        episodes = collect_shard(name, None, [0, 0], 5_000)
        lengths[name] = np.mean([len(episode["rewards"]) for episode in episodes])
    assert lengths["pointmaze-umaze-noisy"] > 2 * lengths["pointmaze-umaze"]


@pytest.mark.parametrize("name", [*ANT_RECIPES, *POINT_RECIPES])
def test_evaluation(name):
    spec = mazes.evaluation_spec(name)
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec
    env = gym.make(spec, disable_env_checker=True)
    if name in ANT_RECIPES:
        # The scripts make the registered environment, by the name and the arguments.
        registered = gym.make(spec.id, disable_env_checker=True, **spec.kwargs)
        assert isinstance(env.unwrapped, mazes.AntMaze)
        assert (registered.unwrapped.maze == env.unwrapped.maze).all()
        assert registered.spec.max_episode_steps == spec.max_episode_steps
        return
    env = gym.wrappers.FlattenObservation(env)
    observations = np.array([env.reset(seed=i)[0] for i in range(30)])
    assert observations.shape == (30, 8) and spec.max_episode_steps in (300, 600, 800)
    assert np.ptp(observations[:, 2:4], axis=0).max() <= 0.5  # one goal cell
    assert np.ptp(observations[:, :2], axis=0).min() > 1.5  # any start
    np.testing.assert_array_equal(observations[:, :2], observations[:, 4:6])


def test_point_mazes_are_gymnasium_robotics():
    for name, recipe in POINT_RECIPES.items():
        ours = mazes.point_spec(name)  # it imports the package, which registers its own
        theirs = gym.spec(recipe.env_id)
        assert ours.max_episode_steps == theirs.max_episode_steps == recipe.steps
        assert ours.entry_point == theirs.entry_point
        assert ours.kwargs["maze_map"] == theirs.kwargs["maze_map"]
        row, column = recipe.goal
        assert ours.kwargs["maze_map"][row][column] == 0
