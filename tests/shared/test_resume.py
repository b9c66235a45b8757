"""Tests of stopped runs: killed at chosen moments or interrupted, and then resumed.

What makes no difference in which script is tested for por.py. tests/test_every_script.py stops
every script.

    python -m pytest tests/shared/test_resume.py
"""

import functools
import os
import re
import shlex
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import (
    call_main,
    checkpoint_of,
    curves,
    result_of,
    same_end,
    small_options,
    wait_until,
)

DATA = ["--env=hopper-medium-v2", "--dataset-file=data.hdf5"]
RUN = [*small_options("por"), *DATA, "--seed=5", "--num-seeds=2", "--eval-every=8"]
KINDS = {
    "weighted": ["--guide=weighted", "--num-updates=30"],
    "q": ["--guide=q", "--behavior-updates=19", "--num-updates=20"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_hdf5) -> Path:
    """Return the folder of all runs, with their data in it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_hdf5(folder / "data.hdf5")
    return folder


@pytest.fixture(scope="module")
def whole_run(folder):
    """Return `whole_run(kind)`: the folder of a run without a stop, made once."""

    @functools.cache
    def run(kind: str) -> Path:
        run_dir = folder / f"whole-{kind}"
        end = call_main("por", [*RUN, *KINDS[kind], "--run-dir", run_dir], folder)
        assert end.code == 0, end.err
        return run_dir

    return run


@pytest.fixture(autouse=True)
def many_points(por, monkeypatch):
    """Write a point of the curves every third update, so that some lie between the saves."""
    monkeypatch.setattr(por, "LOG_EVERY", 3)


# ---- Killed ----


def kill_at(call: int, function):
    """Return the function, which kills the process when it is called for this time, from 1."""
    calls = []

    def killing(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return killing


def write_half(path: Path, content: bytes) -> None:
    """Write the first half of a file, and kill the process."""
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(words: list, folder: Path, prepare) -> None:
    """Run por.py in a child process in which `prepare(patch, por)` has set a trap."""
    import por

    child = os.fork()
    if child == 0:
        try:
            prepare(pytest.MonkeyPatch(), por)
            call_main("por", words, folder)
        finally:
            os._exit(1)  # the trap was not stepped on
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def trap(owner: str, name: str, call: int):
    """Return a function that sets a trap: the process is killed in the call of this number."""

    def prepare(patch, por):
        place = por
        for part in owner.split("."):
            place = getattr(place, part) if part else place
        patch.setattr(place, name, kill_at(call, getattr(place, name)))

    return prepare


def half_a_checkpoint(save: int):
    """Return a function that sets a trap: the process is killed in the middle of a checkpoint."""

    def prepare(patch, por):
        write_bytes = Path.write_bytes
        saves = []

        def write(path, content):
            if path.name.startswith("checkpoint"):
                saves.append(1)
            return (write_half if len(saves) == save else write_bytes)(path, content)

        patch.setattr(Path, "write_bytes", write)

    return prepare


# Two files are replaced in a save: checkpoint.pt and then result.json. A run of guide q saves
# before its first update, three times in its first phase (8, 16, 19) and three times in the second.
MOMENTS = {
    "before the first save": trap("", "save", 1),
    "in the first save": trap("Path", "replace", 2),
    "before the folder has its name": trap("Path", "rename", 1),
    "before the first update": trap("ReplayBuffer", "sample", 1),
    "after the first update": trap("ReplayBuffer", "sample", 2),
    "before the first save of a phase": trap("ReplayBuffer", "sample", 8),
    "after the first save of a phase": trap("ReplayBuffer", "sample", 9),
    "between two saves": trap("ReplayBuffer", "sample", 14),
    "at the end of the first phase": trap("ReplayBuffer", "sample", 20),
    "in a point of the curves": trap("SummaryWriter", "add_scalar", 70),
    "in the first evaluation": trap("", "evaluate", 1),
    "in the second evaluation": trap("", "evaluate", 2),
    "before the third save": trap("", "save", 3),
    "between checkpoint and result": trap("Path", "replace", 6),
    "in the third checkpoint": half_a_checkpoint(3),
    "in the last checkpoint": half_a_checkpoint(5),
    "before the curves of the last phase": trap("", "make_writer", 1),
}


OF_ONE_PHASE = ("between two saves", "in the second evaluation", "in the third checkpoint")


@pytest.mark.parametrize(
    "kind, moment",
    [("q", moment) for moment in MOMENTS] + [("weighted", moment) for moment in OF_ONE_PHASE],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(kind, moment, folder, whole_run):
    run_dir = folder / f"{kind} {moment}"
    words = [*RUN, *KINDS[kind], "--run-dir", run_dir]
    run_until_killed(words, folder, MOMENTS[moment])
    if (run_dir / "checkpoint.pt").exists():
        assert not checkpoint_of(run_dir)["finished"]
        words = ["--resume", run_dir]
    end = call_main("por", words, folder)
    assert end.code == 0 and end.err == "", end.err
    assert same_end(run_dir, whole_run(kind)) == []
    assert {path.name for path in run_dir.iterdir()} - leftovers(run_dir) == {
        "checkpoint.pt",
        "result.json",
        "tensorboard",
    }
    for phase in (run_dir / "tensorboard").iterdir():
        assert curves(phase) == curves(whole_run(kind) / "tensorboard" / phase.name)


def leftovers(run_dir: Path) -> set[str]:
    """Return the names of unfinished files, which a kill may leave."""
    return {path.name for path in run_dir.glob("*.part")}


def test_a_run_killed_again_and_again_comes_to_its_end(folder, whole_run):
    """Each process does one to three saves, and is killed at another place of its loop."""
    run_dir = folder / "again"
    words = [*RUN, *KINDS["q"], "--run-dir", run_dir]
    for call in (10, 9, 11, 9):
        run_until_killed(words, folder, trap("ReplayBuffer", "sample", call))
        words = ["--resume", run_dir]
    assert call_main("por", words, folder).code == 0
    assert same_end(run_dir, whole_run("q")) == []
    assert len(result_of(run_dir)["commits"]) >= 3  # of every process that saved
    for phase in (run_dir / "tensorboard").iterdir():
        assert curves(phase) == curves(whole_run("q") / "tensorboard" / phase.name)


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_was_set_loses_no_point_of_the_curves(hours, folder, whole_run, monkeypatch):
    run_dir = folder / f"clock {hours}"
    words = [*RUN, *KINDS["weighted"], "--run-dir", run_dir]
    run_until_killed(words, folder, trap("ReplayBuffer", "sample", 14))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    assert call_main("por", ["--resume", run_dir], folder).code == 0
    expected = curves(whole_run("weighted") / "tensorboard/train")
    assert curves(run_dir / "tensorboard/train") == expected
    assert expected["value"][:4] == [3, 6, 8, 9]


@pytest.mark.slow
@pytest.mark.parametrize("phase, step", [(0, 100), (1, 100)])
def test_a_process_killed_at_any_time_ends_as_if_nothing_had_happened(
    phase, step, tmp_path, tiny_hdf5, start_cli, run_cli
):
    """By another process, which knows nothing of where the run is."""
    tiny_hdf5(tmp_path / "data.hdf5")
    words = [*DATA, "--seed=5", "--num-seeds=2", "--eval-every=50", "--guide=q"]
    words += ["--behavior-updates=300", "--num-updates=300"]
    assert run_cli(*words, "--run-dir=whole", folder=tmp_path).returncode == 0
    process = start_cli(*words, "--run-dir=killed", folder=tmp_path)
    wait_until(process, tmp_path / "killed", phase, step)
    time.sleep(0.03)
    process.kill()
    process.communicate()
    assert not result_of(tmp_path / "killed")["finished"]
    end = run_cli("--resume=killed", folder=tmp_path, small=False)
    assert end.returncode == 0 and end.stderr == "", end.stderr
    assert same_end(tmp_path / "whole", tmp_path / "killed") == []


# ---- Interrupted ----


def interrupt(*_, **__):
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def interrupted(folder: Path, run_dir, owner, name: str, call: int) -> SimpleNamespace:
    """Return the end of a run that is interrupted in the call of this number, from 0."""
    left = list(range(call))
    function = getattr(owner, name)

    def interrupting(*args, **kwargs):
        return function(*args, **kwargs) if left and left.pop() >= 0 else interrupt()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupting)
        return call_main("por", [*RUN, *KINDS["q"], "--run-dir", run_dir], folder)


@pytest.mark.parametrize(
    "call, saved",
    [(0, "update 0 of phase behavior"), (17, "update 16 of phase behavior")]
    + [(19, "update 19 of phase behavior"), (30, "update 8 of phase train")],
)
def test_an_interrupted_run_says_what_is_saved_and_how_to_continue(
    call, saved, folder, whole_run, por
):
    run_dir = f"stopped by hand {call}"
    end = interrupted(folder, run_dir, por.ReplayBuffer, "sample", call)
    line = end.err.strip()
    assert end.code == 1 and len(line.splitlines()) == 1
    assert line.startswith(f"stopped; {saved} is saved; to continue: python ")
    script, *words = shlex.split(line.partition("python ")[2])
    assert script == "algorithms/por.py" and words == ["--resume", run_dir]
    assert call_main("por", words, folder).code == 0
    assert same_end(folder / run_dir, whole_run("q")) == []


@pytest.mark.parametrize("name", ["load_dataset", "prepare_data", "make_folder"])
def test_a_run_interrupted_before_it_trains_says_so_and_leaves_nothing(name, folder, por):
    end = interrupted(folder, "early", por, name, 0)
    assert end.code == 1 and end.err.strip() == "stopped before the training began"
    assert not list(folder.glob("early*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_at_once(number, tmp_path, tiny_hdf5, start_cli):
    tiny_hdf5(tmp_path / "data.hdf5")
    words = [*DATA, "--num-updates=1000000", "--eval-every=100", "--run-dir=run"]
    process = start_cli(*words, folder=tmp_path)
    wait_until(process, tmp_path / "run", 0, 200)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    step = checkpoint_of(tmp_path / "run")["step"]
    if number == signal.SIGINT:
        assert process.returncode == 1 and len(err.strip().splitlines()) == 1, err
        # A signal between the writing of a file and the note of it leaves the note before.
        found = re.match(r"stopped; update ([\d,]+) of phase \w+ is saved", err.strip())
        assert int(found[1].replace(",", "")) in (step, step - 100), (err, step)
    else:
        assert process.returncode == -number and err == ""


# ---- What --resume takes ----


def test_a_finished_run_is_not_run_again(folder, whole_run, monkeypatch, por):
    run_dir = whole_run("weighted")
    before = (run_dir / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(por.ReplayBuffer, "sample", interrupt)
    end = call_main("por", ["--resume", run_dir], folder)
    assert end.code == 0 and end.err == ""
    assert (run_dir / "checkpoint.pt").read_bytes() == before


@pytest.fixture
def stopped_run(folder, por, tmp_path) -> Path:
    """Return a run's folder that was stopped after 11 updates."""
    run_dir = tmp_path / "run"
    interrupted(folder, run_dir, por.ReplayBuffer, "sample", 11)
    return run_dir


def refusal(folder: Path, *words) -> str:
    """Return the line in which a command is refused."""
    end = call_main("por", words, folder)
    assert end.code == 1 and len(end.err.splitlines()) == 1, end.err
    return end.err


def test_only_the_device_may_stand_beside_resume(folder, stopped_run, whole_run):
    resume = ["--resume", stopped_run]
    for words in (["--num-updates", 50], ["--seed=5"], ["--run_dir", "x"], ["--guide", "q"]):
        line = refusal(folder, *resume, *words)
        option = words[0].partition("=")[0].replace("_", "-")
        assert line.startswith(f"{option} cannot change"), line
    assert call_main("por", [*resume, "--device", "cpu"], folder).code == 0
    assert same_end(stopped_run, whole_run("q")) == []


def test_a_run_is_not_resumed_on_other_data(folder, stopped_run, tiny_hdf5, hopper, tmp_path):
    tiny_hdf5(tmp_path / "data.hdf5", hopper(seed=1))
    assert "holds other data now" in refusal(tmp_path, "--resume", stopped_run)


def test_a_moved_folder_is_resumed_where_it_is(folder, stopped_run, whole_run, tmp_path):
    moved = stopped_run.rename(tmp_path / "moved")
    assert call_main("por", ["--resume", moved], folder).code == 0
    assert result_of(moved)["finished"] and not stopped_run.exists()
    assert same_end(moved, whole_run("q")) == []


def test_what_is_no_checkpoint_of_this_script_is_refused(folder, stopped_run, tmp_path):
    assert "no checkpoint.pt" in refusal(folder, "--resume", tmp_path / "nothing")
    checkpoint = checkpoint_of(stopped_run)
    torch.save(checkpoint | {"script": "iql"}, stopped_run / "checkpoint.pt")
    assert "a checkpoint of iql.py" in refusal(folder, "--resume", stopped_run)
    torch.save(checkpoint | {"agent": {}}, stopped_run / "checkpoint.pt")
    assert "does not fit this version" in refusal(folder, "--resume", stopped_run)
    args = {key: checkpoint["args"][key] for key in checkpoint["args"] if key != "tau"}
    torch.save(checkpoint | {"args": args | {"old": 1}}, stopped_run / "checkpoint.pt")
    assert "does not fit this version" in refusal(folder, "--resume", stopped_run)
