"""What load_dataset guarantees: what goes in is what is learned from, or is refused in one line."""

import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

import por
from tests.shared.toys import (
    Point,
    episodes_of,
    isolate,
    load,
    load_minari,
    recorded,
    refusal,
    register,
    select,
    walks,
    write_hdf5,
    write_minari,
)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)


def assert_pairs(data: dict, rows: dict) -> None:
    """Every row has its true next state, and the learner is told that it is known."""
    for key in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(data[key], rows[key], err_msg=key)
    assert data["next_valid"].all()


# --------------------------------------------------------------------------------------------------
# Next states and episodes of files in D4RL's layout
# --------------------------------------------------------------------------------------------------


def test_a_sound_file_is_taken_as_it_is():
    rows = walks()
    data, task = load(rows)
    assert_pairs(data, rows)
    ends = rows["terminals"] | rows["timeouts"]
    np.testing.assert_array_equal(data["episode_end"], ends)
    np.testing.assert_array_equal(data["terminals"], rows["terminals"])
    assert (task.transitions, task.episodes, task.ordered) == (5000, 250, True)
    returns = rows["rewards"].reshape(250, 20).sum(1)
    np.testing.assert_allclose(por.episode_returns(data), returns, rtol=1e-5)
    assert task.data_return == pytest.approx(returns.mean(), abs=1e-5)


def test_without_next_states_a_row_takes_the_following_one_but_not_across_ends():
    rows = walks(episodes=3, steps=4)
    data, _ = load(select(rows, slice(None), "next_observations"))
    inside = np.array([1, 1, 1, 0] * 3)
    np.testing.assert_array_equal(data["next_valid"], inside)
    known = inside > 0
    np.testing.assert_array_equal(
        data["next_observations"][known], rows["next_observations"][known]
    )


def test_an_unfinished_last_episode_has_rows_but_no_return():
    rows = select(walks(episodes=3, steps=4), slice(10))
    data, task = load(rows)
    assert (task.transitions, task.episodes) == (10, 2)
    assert task.data_return == pytest.approx(rows["rewards"][:8].sum() / 2, abs=1e-5)
    assert_pairs(data, rows)


@pytest.mark.parametrize("number", [4750, 500])
def test_shuffled_rows_keep_their_own_next_states(number, capsys):
    """Whether most of them are there or few."""
    rows = select(walks(), np.random.default_rng(1).permutation(5000)[:number])
    data, task = load(rows)
    assert_pairs(data, rows)
    assert not task.ordered
    assert "rows are not in the order of time" in capsys.readouterr().out
    prepared = por.prepare_data(por.apply_settings(por.Args(env="Point-v0")), data, task)
    np.testing.assert_array_equal(prepared["rewards"], rows["rewards"])
    assert "not scaled" in capsys.readouterr().out


@pytest.mark.parametrize("block", [1, 5, 50])
def test_rows_of_four_environments_in_turn_keep_their_own_next_states(block):
    """In blocks of one row, and in blocks as PPO's rollouts are."""
    rows = walks(episodes=8, steps=100)
    order = np.arange(800).reshape(4, -1, block).swapaxes(0, 1).ravel()
    data, task = load(select(rows, order))
    assert_pairs(data, select(rows, order))
    assert not task.ordered


def export(timeouts: str) -> dict:
    """Return what D4RL's qlearning_dataset makes of the walks: it drops the rows of timeouts."""
    rows = walks()
    rows = select(rows, ~rows["timeouts"])
    if timeouts == "missing":
        del rows["timeouts"]
    return rows


@pytest.mark.parametrize("timeouts", ["missing", "all zero"])
def test_an_export_of_qlearning_dataset_has_its_episodes(timeouts, capsys):
    rows = export(timeouts)
    data, task = load(rows)
    assert_pairs(data, rows)
    assert (task.ordered, task.episodes) == (True, 249)  # nothing marks the end of the last one
    lengths = np.diff(np.flatnonzero(data["episode_end"]), prepend=-1)
    np.testing.assert_array_equal(lengths, [20, 19, 19, 19, 19] * 49 + [20, 19, 19, 19])
    assert "of 199 of 4,800 rows" in capsys.readouterr().out


def test_one_glitch_among_the_next_states_costs_one_row():
    rows = export("missing")
    rows["next_observations"][7] += 0.5
    data, task = load(rows)
    assert_pairs(data, rows)
    assert (task.ordered, task.episodes) == (True, 250)


def test_next_states_that_are_the_rows_shifted_by_one_are_not_used(capsys):
    rows = walks(episodes=3, steps=4)
    rows["next_observations"] = np.roll(rows["observations"], -1, axis=0)
    data, _ = load(rows)
    np.testing.assert_array_equal(data["next_valid"], [1, 1, 1, 0] * 3)
    assert "only repeat the following rows" in capsys.readouterr().out


def test_rows_of_which_nothing_shows_where_they_were_cut_are_refused():
    rows = select(walks(), slice(None), "timeouts")
    rows["next_observations"] = np.roll(rows["observations"], -1, axis=0)
    assert "nothing shows where episodes were cut" in refusal(load, rows)


def test_a_terminal_flag_that_is_repeated_is_told(capsys):
    rows = walks(episodes=10)
    rows["terminals"][15:20] = True
    load(rows)
    assert "note: 4 episodes have a single row" in capsys.readouterr().out


def test_a_terminal_row_that_stores_the_next_episodes_start_has_no_next_state():
    """D4RL's old files do that at terminals only."""
    rows = walks(episodes=10, steps=4)
    ends = np.flatnonzero(rows["terminals"])[:1]
    rows["next_observations"][ends] = rows["observations"][ends + 1]
    data, task = load(rows)
    np.testing.assert_array_equal(np.flatnonzero(data["next_valid"] == 0), ends)
    assert task.episodes == 10


def test_rows_that_never_end_are_refused():
    rows = walks(episodes=1)
    rows["timeouts"][:] = False
    rows["terminals"][:] = False
    assert "set timeouts to 1" in refusal(load, rows)


def test_rows_of_which_none_has_a_next_state_are_refused():
    rows = select(walks(), slice(None), "next_observations")
    rows["terminals"][:] = False
    rows["timeouts"][:] = True
    assert "no row has a next state" in refusal(load, rows)


# --------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["terminals", "timeouts"])
@pytest.mark.parametrize(
    "values, named",
    [
        (np.array([0, 255], np.uint8), "[0, 255]"),
        (np.array([-1, 1]), "[-1, 1]"),
        (np.array([0, 0.5]), "[0.0, 0.5]"),
        (np.array([1, 0.99]), "[0.99, 1.0]"),  # a column of discounts
        (np.array([0, 1e-60]), "[0.0, 1e-60]"),  # float32 would make it 0
    ],
)
def test_flags_that_are_not_0_and_1_are_refused(column, values, named):
    rows = walks()
    rows[column] = values[rows[column].astype(int)]
    line = refusal(load, rows)
    assert column in line
    assert named in line


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, float, ">f8"])
def test_flags_of_every_type_are_taken(dtype):
    rows = walks()
    expected = rows["terminals"]
    rows |= {key: rows[key].astype(dtype) for key in ("terminals", "timeouts")}
    data, task = load(rows)
    np.testing.assert_array_equal(data["terminals"], expected)
    assert task.episodes == 250


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("column", ["observations", "actions", "rewards", "next_observations"])
def test_what_float32_cannot_hold_is_refused(column, value):
    rows = walks()
    rows[column] = rows[column].astype(float)
    rows[column][7] = value
    line = refusal(load, rows)
    assert column in line
    assert "row 7" in line


def test_nan_in_columns_that_are_not_learned_from_does_no_harm():
    rows = walks()
    data, _ = load(rows | {"infos/qpos": np.full((5000, 3), np.nan), "notes": np.array([b"a"] * 9)})
    assert_pairs(data, rows)


@pytest.mark.parametrize(
    "column",
    [
        np.array([b"one"] * 5000),
        np.ones(5000, complex),
        np.ones(5000, [("a", "f4"), ("b", "f4")]),
        np.ones(5000, "V4"),
    ],
    ids=["strings", "complex", "compound", "opaque"],
)
def test_what_is_no_real_number_is_refused(column):
    line = refusal(load, walks() | {"rewards": column})
    assert "rewards" in line


def test_objects_are_refused():
    with h5py.File("my.hdf5", "w") as file:
        for key, column in walks().items():
            file[key] = column
        del file["rewards"]
        file.create_dataset("rewards", (5000,), h5py.string_dtype())
    line = refusal(por.load_dataset, por.Args(env="Point-v0", dataset_file="my.hdf5"))
    assert "rewards holds object, not numbers" in line


@pytest.mark.parametrize("column", ["rewards", "terminals", "timeouts"])
def test_columns_of_shape_n_1_are_columns(column):
    rows = walks()
    data, task = load(rows | {column: rows[column][:, None]})
    assert_pairs(data, rows)
    assert task.episodes == 250


def test_actions_of_shape_n_are_actions_with_one_number():
    register("Line-v0", recorder([-1], [1]))
    rows = walks()
    data, _ = load(rows | {"actions": rows["actions"][:, 0]}, env="Line-v0")
    np.testing.assert_array_equal(data["actions"], rows["actions"][:, :1])
    assert "(5000,)" in refusal(load, rows | {"actions": rows["actions"][:, 0]})


DAY = 86_400
TIMES = np.arange(5000.0)  # a second a row
EPISODES = np.repeat(np.arange(250), 20)


@pytest.mark.parametrize(
    "times",
    [
        1.7e9 + TIMES,
        1_700_000_000 + TIMES.astype(np.int64),
        1_700_000_000_000_000_000 + (TIMES * 1e7).astype(np.int64),
        (1_700_000_000 + TIMES).astype(np.uint64)[::-1],
        1_700_000_000 + TIMES.astype(np.int32),
        1.7e9 + TIMES + DAY * EPISODES,  # the clock runs on between the episodes
        1.7e9 + TIMES % 1000,  # it is set back
        1.7e9 + TIMES * 7919 % 5000,  # the rows are shuffled
        20_000 + TIMES / DAY,
        500_000 + 0.01 * np.sin(TIMES),  # a place on a map
    ],
    ids=[
        "float",
        "int",
        "nanoseconds",
        "falling",
        "int32",
        "days",
        "set_back",
        "shuffled",
        "in_days",
        "place",
    ],
)
def test_a_feature_whose_changes_float32_loses_is_refused(times):
    rows = walks()
    observations = rows["observations"].astype(times.dtype)
    observations[:, 1] = times
    line = refusal(
        load, select(rows, slice(None), "next_observations") | {"observations": observations}
    )
    assert "float32 loses the changes of column 1" in line


@pytest.mark.parametrize(
    "values",
    [
        TIMES,
        TIMES * 1e6,
        np.full(5000, 1.7e9 + 0.1),
        0.4 + 1e-9 * np.sin(TIMES),  # at rest
        np.where(TIMES % 1000 < 100, 0.7, 0.4) + 1e-9 * np.sin(TIMES),  # moved now and then
        1000 + np.random.default_rng(0).random(250)[EPISODES],  # differs by the episode
        1000 + np.sin(TIMES),
    ],
    ids=["seconds", "microseconds", "constant", "noise", "moved", "mass", "offset"],
)
def test_a_feature_that_float32_can_hold_is_taken(values):
    rows = walks()
    observations = rows["observations"].astype(float)
    observations[:, 1] = values
    data, _ = load(select(rows, slice(None), "next_observations") | {"observations": observations})
    np.testing.assert_array_equal(data["observations"], observations.astype(np.float32))


def test_the_fingerprint_sees_a_change_of_one_number():
    seen = {load(walks())[1].fingerprint, load(walks())[1].fingerprint}
    assert len(seen) == 1
    for key in walks():
        rows = walks()
        flat = rows[key].reshape(-1)
        flat[5] = not flat[5] if flat.dtype == bool else flat[5] + np.float32(1e-6)
        seen.add(load(rows)[1].fingerprint)
    assert len(seen) == 1 + len(walks())


# --------------------------------------------------------------------------------------------------
# Minari's datasets
# --------------------------------------------------------------------------------------------------


def test_minari_knows_every_next_state():
    rows = walks(episodes=10)
    write_minari("rebuilt/point/walks-v0", episodes_of(rows), ref_min_score=-20, ref_max_score=30)
    data, task = load_minari("rebuilt/point/walks-v0")
    assert_pairs(data, rows)
    assert (task.source, task.env_id, task.max_episode_steps) == ("rebuilt", "Point-v0", 20)
    assert (task.ref_min, task.ref_max, task.episodes) == (-20, 30, 10)
    np.testing.assert_array_equal(data["terminals"], rows["terminals"])
    np.testing.assert_array_equal(data["episode_end"], rows["terminals"] | rows["timeouts"])


def test_episodes_that_go_on_where_the_last_one_stopped_keep_their_next_states():
    """As a maze in which a reached goal moves: a final observation is the next first one."""
    rows = walks(episodes=5)
    start = np.zeros(3, np.float32)
    path = np.concatenate(
        [[start], start + np.cumsum(np.pad(rows["actions"], ((0, 0), (0, 1))), 0)]
    )
    rows |= {"observations": path[:-1], "next_observations": path[1:]}
    write_minari("walks-v0", episodes_of(rows))
    data, task = load_minari("walks-v0")
    assert_pairs(data, rows)
    assert task.episodes == 5


def test_terminals_that_are_repeated_after_the_goal_end_one_episode_each():
    """100 episodes of 20 rows with reward 1, and all rows from the twelfth on terminal."""
    rows = walks(episodes=100)
    episodes = episodes_of(rows | {"rewards": np.ones(2000, np.float32)})
    for i, episode in enumerate(episodes):
        episode["terminations"] = np.arange(20) >= 12
        if i % 2:
            episode["rewards"] = np.zeros(20, np.float32)
    write_minari("walks-v0", episodes)
    data, task = load_minari("walks-v0")
    assert (task.episodes, task.data_return) == (100, 10)
    prepared = por.prepare_data(por.Args(), data, task)
    assert prepared["rewards"].max() == 1  # the returns span 20, as many steps as an episode has


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminations"])
def test_episodes_whose_columns_have_different_lengths_are_refused(key):
    """Also if one has a row too many and the next one a row too few."""
    episodes = episodes_of(walks(episodes=3))
    folder = write_minari("walks-v0", episodes)
    column = np.concatenate([episode[key] for episode in episodes[:2]])
    cut = len(episodes[0][key]) + 1
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for i, part in enumerate([column[:cut], column[cut:]]):
            del file[f"episode_{i}/{key}"]
            file[f"episode_{i}/{key}"] = part
    assert "have different lengths" in refusal(load_minari, "walks-v0")


def test_episodes_without_rows_are_none():
    rows = walks(episodes=10)
    episodes = episodes_of(rows)
    empty = {key: episodes[0][key][:0] for key in episodes[0]}
    empty["observations"] = rows["observations"][:1]
    folder = write_minari("walks-v0", episodes)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for key, column in empty.items():
            del file[f"episode_3/{key}"]
            file[f"episode_3/{key}"] = column
    data, task = load_minari("walks-v0")
    assert (task.transitions, task.episodes) == (180, 9)
    assert_pairs(data, select(rows, np.r_[:60, 80:200]))


def test_a_dataset_without_any_row_is_refused():
    episodes = episodes_of(walks(episodes=1))
    folder = write_minari("walks-v0", episodes)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for key in episodes[0]:
            column = file[f"episode_0/{key}"][: 1 if key == "observations" else 0]
            del file[f"episode_0/{key}"]
            file[f"episode_0/{key}"] = column
    assert "holds no rows" in refusal(load_minari, "walks-v0")


class DictPoint(Point):
    """The point, which observes its place and a goal."""

    observation_space = Dict(place=Box(-9, 9, (2,)), goal=Box(-9, 9, (1,)))

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return {"place": obs[:2], "goal": obs[2:]}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return {"place": obs[:2], "goal": obs[2:]}, *rest


def write_dicts(spaces: dict) -> dict:
    """Write a dataset with Dict observations in this order of the keys. Return the flat rows."""
    register("DictPoint-v0", DictPoint)
    rows = walks(episodes=4)
    episodes = episodes_of(rows)
    columns = {"place": slice(0, 2), "goal": slice(2, 3), "more": slice(0, 1)}
    for episode in episodes:
        obs = episode["observations"]
        episode["observations"] = {key: obs[:, columns[key]] for key in spaces}
    write_minari(
        "walks-v0",
        episodes,
        env=recorded("DictPoint-v0"),
        observation_space=Dict(spaces),
    )
    return rows


PLACE, GOAL = Box(-9, 9, (2,)), Box(-9, 9, (1,))


@pytest.mark.parametrize("spaces", [{"place": PLACE, "goal": GOAL}, {"goal": GOAL, "place": PLACE}])
def test_dict_observations_have_the_environments_order(spaces, capsys):
    rows = write_dicts(spaces)
    data, task = load_minari("walks-v0")
    env = por.make_env(task)
    first, _ = env.reset(seed=0)
    place = env.unwrapped.position
    assert f"the vector of {list(env.unwrapped.observation_space)}" in capsys.readouterr().out
    order = [int(np.flatnonzero(first == x)[0]) for x in place]  # where x, y and the goal stand
    np.testing.assert_array_equal(data["observations"][:, order], rows["observations"])
    np.testing.assert_array_equal(data["next_observations"][:, order], rows["next_observations"])


@pytest.mark.parametrize(
    "spaces", [{"place": PLACE}, {"place": PLACE, "goal": GOAL, "more": GOAL}, {"more": GOAL}]
)
def test_dict_observations_with_other_keys_are_refused(spaces):
    write_dicts(spaces)
    line = refusal(load_minari, "walks-v0")
    assert "place" in line
    assert "goal" in line


def test_dict_observations_for_an_environment_with_vectors_are_refused():
    write_dicts({"place": PLACE, "goal": GOAL})
    register("DictPoint-v0", Point)
    assert "it has observations ['goal', 'place'], not []" in refusal(load_minari, "walks-v0")


# --------------------------------------------------------------------------------------------------
# Actions and the environment's bounds
# --------------------------------------------------------------------------------------------------


class Recorder(Point):
    """The point, which keeps the actions that it gets and checks them."""

    def step(self, action):
        assert self.action_space.contains(action), action
        self.action = action
        return super().step(np.zeros(2, np.float32))


def recorder(low, high, dtype=np.float32):
    return type(
        "Other",
        (Recorder,),
        {"action_space": Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)},
    )


def test_actions_in_other_units_are_the_same_task():
    """Actions in 0..100 and in -1..1: the learner sees equal numbers, the environment its own."""
    register("Percent-v0", recorder([0, 0], [100, 100]))
    rows = walks()
    data, task = load(rows | {"actions": 50 + 50 * rows["actions"]}, env="Percent-v0")
    np.testing.assert_allclose(data["actions"], rows["actions"], atol=1e-5)
    env = por.make_env(task)
    env.reset(seed=0)
    for agent, expected in [(-1, 0), (1, 100), (0.5, 75), (-3, 0), (3, 100)]:
        env.step(np.full(2, agent, np.float32))
        np.testing.assert_array_equal(env.unwrapped.action, [expected, expected])


@pytest.mark.parametrize(
    "low, high, agent, expected",
    [
        ([-0.1, -0.3], [0.1, 0.7], [1, 1], [0.1, 0.7]),  # as float32 these are rounded
        ([-0.1, -0.3], [0.1, 0.7], [-1, -1], [-0.1, -0.3]),
        ([-1, 2], [1, 2], [0.5, 0.5], [0.5, 2]),  # a motor without freedom
        ([-np.inf, -np.inf], [np.inf, np.inf], [5, -7], [5, -7]),
        ([0, -np.inf], [np.inf, 3], [-5, 7], [0, 3]),
        ([-3.4e38, -3.4e38], [3.4e38, 3.4e38], [5, -7], [5, -7]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_action_that_an_environment_gets_is_one_of_its_own(low, high, agent, expected, dtype):
    register("Bounds-v0", recorder(low, high, dtype))
    rows = walks()
    data, task = load(
        rows | {"actions": np.tile(np.clip(rows["actions"][:1], low, high), (5000, 1))},
        env="Bounds-v0",
    )
    assert np.isfinite(data["actions"]).all()
    env = por.make_env(task)
    env.reset(seed=0)
    env.step(np.array(agent, np.float32))
    np.testing.assert_array_equal(env.unwrapped.action, np.array(expected, dtype))


def test_actions_beyond_the_bounds_are_kept_and_counted(capsys):
    rows = walks()
    rows["actions"][:7, 1] = 3
    data, _ = load(rows)
    assert "7 of 5,000 rows have actions beyond the bounds" in capsys.readouterr().out
    np.testing.assert_array_equal(data["actions"], rows["actions"])


def test_recorded_bounds_that_contradict_the_environments_are_refused():
    write_minari("walks-v0", episodes_of(walks(episodes=2)), action_space=Box(-1, 1, (2,)))
    load_minari("walks-v0")
    register("Percent-v0", recorder([0, 0], [100, 100]))
    write_minari(
        "percent-v0",
        episodes_of(walks(episodes=2)),
        env=recorded("Percent-v0"),
    )
    assert "has other bounds" in refusal(load_minari, "percent-v0")


def test_actions_that_were_recorded_before_they_were_clipped_are_taken():
    """Gymnasium's ClipAction has infinite bounds."""
    unbounded = Box(-np.inf, np.inf, (2,))
    write_minari("walks-v0", episodes_of(walks(episodes=2)), action_space=unbounded)
    assert load_minari("walks-v0")[1].action_low == [-1, -1]


def test_an_environment_that_stops_before_the_data_do_is_told(capsys):
    register("Short-v0", Point, max_episode_steps=10)
    load(walks(), env="Short-v0")
    assert "episodes of 20 steps, but Short-v0" in capsys.readouterr().out
    load(walks())
    assert "note" not in capsys.readouterr().out


def test_a_soft_link_is_a_column():
    rows = walks()
    path = write_hdf5(
        "my.hdf5", select(rows, slice(None), "rewards") | {"old/rewards": rows["rewards"]}
    )
    with h5py.File(path, "a") as file:
        file["rewards"] = h5py.SoftLink("/old/rewards")
        file["circle"] = file["/"]
    data, _ = por.load_dataset(por.Args(env="Point-v0", dataset_file="my.hdf5"))
    assert_pairs(data, rows)
