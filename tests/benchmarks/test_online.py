"""Environment steps of online trainings, in rows, tables and plots.

python -m pytest tests/benchmarks/test_online.py
"""

import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from benchmarks import plot
from benchmarks.scores import online, reading, tables
from tests.benchmarks.make_result import make_result
from tests.helpers import checkpoint_of

ROLLOUTS = ["--num-envs=2", "--rollout-steps=30", "--batch-size=20", "--epochs=2"]
RUNS = {  # options; updates at which there is an evaluation; steps of each agent at the end
    "sac": (["--random-steps=60", "--num-updates=25", "--eval-every=10"], [10, 20, 25], 85),
    "td3": (["--random-steps=60", "--num-updates=25", "--eval-every=10"], [10, 20, 25], 85),
    "ddpg": (["--random-steps=60", "--num-updates=25", "--eval-every=10"], [10, 20, 25], 85),
    "ppo": ([*ROLLOUTS, "--num-updates=16", "--eval-every=7"], [12, 18], 180),
    "trpo": ([*ROLLOUTS, "--num-updates=16", "--eval-every=7"], [12, 18], 180),
    "awr": (
        ["--random-steps=60", "--num-updates=25", "--eval-every=12"]
        + ["--value-updates=4", "--policy-updates=6", "--new-steps=40"],
        [20, 30],
        180,
    ),
}


def steps_of(checkpoint: dict) -> int:
    """Return how many steps of each agent a checkpoint itself tells of."""
    if checkpoint["script"] in ("ppo", "trpo"):
        return round(checkpoint["agent"]["obs_moments.count"].item())
    # AWR's buffer also holds the random steps.
    own = checkpoint["extra_state"]["actions"].shape[1]
    return own if checkpoint["script"] == "awr" else own + checkpoint["args"]["random_steps"]


@pytest.mark.parametrize("script", RUNS)
def test_rows_count_steps_and_results_can_be_trusted(script, main, short_env):
    options, updates, steps = RUNS[script]
    sizes = ["--hidden=16", "--eval-episodes=1", "--final-eval-episodes=1", "--num-seeds=2"]
    words = [f"--env={short_env('Pendulum-v1')}", *sizes, *options, "--run-dir=run"]
    end = main(*words, script=script, small=False)
    assert end.code == 0, end.err
    result = reading.read_result(Path("run/result.json"))
    assert reading.complaints(result) == []
    assert [evaluation["update"] for evaluation in result["evaluations"]] == updates
    (row,) = reading.make_rows(Path("run/result.json"), result)
    assert row.updates == steps == steps_of(checkpoint_of("run"))
    assert row.group == "No data: trained online from scratch" and row.level is None
    result["evaluations"].pop(0)
    assert any("is not evaluated at every" in found for found in reading.complaints(result))


def from_scratch(script: str, updates: int, **options) -> dict:
    """Return a result of a training without data."""
    result = make_result("sac", "Hopper-v4", scored=False, updates=updates, **options)
    for evaluation in result["evaluations"]:
        evaluation["phase"] = "online"
    result["final"] = result["evaluations"][-1]
    result["task"] |= {"source": "no data", "transitions": 0, "data_return": None}
    return result | {"script": script}


def both() -> list[dict]:
    """Return results of SAC and of PPO, of 11,000 and of 20,480 steps."""
    rollouts = {"num_envs": 1, "rollout_steps": 2_048, "batch_size": 64, "epochs": 10}
    return [from_scratch("sac", 10_000, random_steps=1_000), from_scratch("ppo", 3_200, **rollouts)]


def read(result: dict, folder: Path) -> list[reading.Row]:
    """Return the rows of a result, by a file."""
    path = folder / "result.json"
    path.write_text(json.dumps(result))
    return plot.read_run(path)


def test_curves_are_drawn_against_steps(tmp_path):
    rows = []
    for result in both():
        rows += read(result, tmp_path)
    plot.label_by_differences(rows)
    figure = plot.draw(rows)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "environment steps"
    ends = [line.get_xdata()[-1] for line in axes.get_lines()]
    assert ends == [11_000, 20_480]
    plt.close(figure)


def test_trainings_from_scratch_share_a_table(tmp_path):
    rows = []
    for result in [*both(), make_result("iql", online=(60.0, 61.0, 62.0))]:
        rows += [row for row in read(result, tmp_path) if row.phase == "online"]
    tuning, scratch = tables.make_sections(rows)
    assert tuning.title == "Rebuilt data, 100,000 environment steps"
    assert scratch.title == "No data: trained online from scratch" and len(scratch.rows) == 2
    assert scratch.slug == "no-online"


def test_fine_tuning_counts_its_own_steps():
    result = make_result("iql", online=(60.0, 61.0, 62.0), random_steps=5)
    assert online.environment_steps(result, "online", 700) == 700
    assert online.environment_steps(from_scratch("sac", 1_000, random_steps=5), "train", 7) == 7
    assert online.environment_steps(from_scratch("sac", 1_000, random_steps=5), "online", 7) == 12
