"""The page of the datasets: its tables are made of the data, and its commands exist."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import ROOT
from benchmarks.datasets import behavior_means, datasets_table, recipes, rollout, storage
from benchmarks.datasets.policies import SacPolicy

PAGES = [
    ROOT / "benchmarks/datasets/README.md",
    ROOT / "benchmarks/datasets/behavior/README.md",
    ROOT / "benchmarks/studies/physics/README.md",
]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Folder of the datasets of one test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def stored(root: Path, name: str, **changes) -> dict:
    """Write the metadata of a dataset, and return them."""
    metadata = {
        "behavior": {"policy": "uniform random actions"},
        "total_steps": 2_000,
        "total_episodes": 91,
        "return_mean": 18.0,
        "return_std": 17.0,
        "length_mean": 22.11,
        "length_std": 11.9,
        "ref_min_score": -20.272305,
        "ref_max_score": 3234.3,
        "transitions_per_second": 2534.4,
        "data_sha256": "0",
    } | changes
    data = root / name / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text(storage.json.dumps(metadata))
    (data / "main_data.hdf5").touch()
    return metadata


def command(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["datasets_table.py", *(str(word) for word in words)])
    datasets_table.main()


# --------------------------------------------------------------------------------------------------
# The table of datasets
# --------------------------------------------------------------------------------------------------


def test_table(root, monkeypatch, capsys):
    stored(root, "rebuilt/hopper/medium-1k-v0", return_mean=80.0)
    stored(root, "rebuilt/hopper/random-2k-v0")
    stored(root, "rebuilt/antmaze/umaze-v0", success=0.471, ref_min_score=0.0, ref_max_score=1.0)
    stored(root, "rebuilt/hopper/.random-2k-v0.old")
    command(monkeypatch)
    head, _, *lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert {len(row) for row in rows} == {len(datasets_table.HEADER)} == {head.count("|") - 1}
    random, medium, ant = rows  # in the order of the recipes
    assert random[:4] == [
        "`rebuilt/hopper/random-2k-v0`",
        "uniform random actions",
        "2,000",
        "91",
    ]
    assert random[4:7] == ["18.0 ± 17.0", "22.1 ± 11.9", "1.2"]
    assert random[7:] == ["18.4 ± 17.4", "22.1", "1.2", "-2.2%", "+0.0%", "2,534"]
    assert medium[10] == "**-94.4%**"
    assert ant[6] == "47.1" and ant[7:12] == [""] * 5


def test_a_beginning_of_a_replay_is_not_compared(root):
    name = "rebuilt/hopper/medium-replay-2k-v0"
    metadata = stored(root, name, behavior={"policy": "snapshots", "last_step": 81_000})
    assert datasets_table.row(name, metadata)[7] == ""
    whole = metadata | {"total_steps": 81_000}
    assert datasets_table.row(name, whole)[7] == "467.3 ± 511.0"


def test_rows_on_a_page(root, tmp_path, monkeypatch):
    """The new row takes the place of the old one; other machines' datasets remain."""
    name, other = "rebuilt/hopper/random-2k-v0", "| `rebuilt/hopper/medium-v0` | kept |"
    stored(root, name)
    page = tmp_path / "README.md"
    table = datasets_table.table([], root, False)
    begin, end = datasets_table.BEGIN, datasets_table.END
    page.write_text(f"before\n{begin}\n{table}\n{other}\n| `{name}` | old |\n{end}\nafter\n")
    command(monkeypatch, "--write", page)
    new = datasets_table.table([name], root, False)
    assert page.read_text() == f"before\n{begin}\n{new}\n{other}\n{end}\nafter\n"
    with pytest.raises(SystemExit, match="other columns"):
        monkeypatch.setattr(datasets_table, "loading_seconds", lambda name: 1.0)
        command(monkeypatch, "--loading", "--write", page)
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="needs the lines"):
        command(monkeypatch, "--write", page)
    assert page.read_text() == "nothing"


def test_table_of_nothing(root, monkeypatch):
    with pytest.raises(SystemExit, match="no dataset in"):
        command(monkeypatch)
    with pytest.raises(SystemExit, match="is not in"):
        command(monkeypatch, "rebuilt/a/b-v0")


def test_loading(root):
    """A real dataset is loaded, whole."""
    rollout.quiet()
    spec = {"env": rollout.gym.spec("Pendulum-v1")}
    episode = {
        "observations": np.zeros((3, 3), np.float32),
        "actions": np.zeros((2, 1), np.float32),
        "rewards": np.zeros(2, np.float32),
        "terminations": np.zeros(2, bool),
        "truncations": np.array([False, True]),
        "seed": 0,
    }
    place = storage.datasets_root()
    storage.write_dataset(place, "local/pendulum/two-v0", spec, [episode], {"data_sha256": "0"})
    assert storage.stored_metadata(place / "local/pendulum/two-v0")["total_steps"] == 2
    assert datasets_table.loading_seconds("local/pendulum/two-v0") > 0


# --------------------------------------------------------------------------------------------------
# Means of behaviour policies
# --------------------------------------------------------------------------------------------------


def test_means_are_the_policys_without_noise():
    """Weights by which mean and deviation are known: tanh(0.5) and a deviation of 1."""
    weights = {}
    for layer, shape in (("fc0", (4, 3)), ("fc1", (4, 4)), ("last_fc", (1, 4))):
        weights[f"{layer}.weight"] = np.zeros(shape, np.float32)
        weights[f"{layer}.bias"] = np.zeros(shape[0], np.float32)
    for part in ("weight", "bias"):
        weights[f"last_fc_log_std.{part}"] = np.zeros_like(weights[f"last_fc.{part}"])
    weights["last_fc.bias"] += 0.5
    obs = np.ones((1, 3), np.float32)
    actions = {}
    for kind in (behavior_means.MeanPolicy, SacPolicy):
        policy = kind(weights)
        actions[kind] = policy(obs, policy.draw(np.random.default_rng(0), 1))
    np.testing.assert_allclose(actions[behavior_means.MeanPolicy], np.tanh(0.5), rtol=1e-6)
    assert abs(actions[SacPolicy] - np.tanh(0.5)) > 0.01


def test_table_of_means(monkeypatch):
    def run_jobs(function, jobs, workers):
        for number, (env_id, _, _, episodes) in enumerate(jobs):
            mean = {"Hopper-v4": 3234.3}.get(env_id, 0.0) - number
            yield number, behavior_means.Score(mean, 1.0, 50.0, episodes)

    monkeypatch.setattr(behavior_means, "run_jobs", run_jobs)
    lines = behavior_means.table(7, 1).splitlines()
    assert lines[2] == "| hopper-medium | 3234 ± 1 | 50 | 100.0 | 3233 ± 1 | 50 | 100.0 |"
    assert "7 episodes each" in lines[-1]


# --------------------------------------------------------------------------------------------------
# The pages
# --------------------------------------------------------------------------------------------------


def test_rows_and_names_are_of_recipes():
    text = PAGES[0].read_text(encoding="utf-8")
    inside = text.split(datasets_table.BEGIN)[1].split(datasets_table.END)[0]
    names = re.findall(r"^\| `([^`]+)`", inside, re.MULTILINE)
    assert len(names) > 15 and names == sorted(names, key=datasets_table.position)
    assert set(names) <= {name for name in names if recipes.find_recipe(name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    commands = []
    for paragraph in text.split("\n\n"):
        line = re.sub(r"\s*\\?\n\s*", " ", paragraph)
        commands += re.findall(r"python -m (benchmarks[\w.]+)([^`#]*?)(?=`|#|python|$)", line)
    assert commands
    for module, words in commands:
        program = importlib.import_module(module)
        fields = {field.name.replace("_", "-") for field in dataclasses.fields(program.Args)}
        assert set(re.findall(r"--([a-z][\w-]*)", words)) <= fields, (module, words)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
