"""benchmarks/play.py: evaluating and filming a run, and loading its policy by hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import play
from benchmarks.common import ROOT

FOUR_LINES = """
import por
checkpoint = por.load_checkpoint("a-run")
agent = por.Algorithm(por.Args(**checkpoint["args"]), por.Task(**checkpoint["task"]), "cpu")
agent.load_state_dict(checkpoint["agent"])
import torch
print(agent.act(torch.zeros(2, 5, 11)).shape)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_hdf5, run_cli) -> Path:
    """Return the folder of a run: two agents, two evaluations."""
    folder = tmp_path_factory.mktemp("play")
    data = tiny_hdf5(folder / "data.hdf5")
    words = ["--env=Hopper-v4", f"--dataset-file={data}", "--num-updates=20", "--eval-every=10"]
    done = run_cli(*words, "--num-seeds=2", "--run-dir=a-run", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "a-run"


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "a-run")


def change_checkpoint(run_dir: Path, **task) -> None:
    path = run_dir / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["task"] |= task
    torch.save(checkpoint, path)


def evaluation(run_dir: Path) -> dict:
    return json.loads((run_dir / "evaluation.json").read_text())


def can_render() -> bool:
    trial = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    env = os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    answer = subprocess.run([sys.executable, "-c", trial], env=env, capture_output=True)
    return answer.returncode == 0


# ---- Evaluating ----


def test_the_same_episodes_give_the_training_s_scores(run_dir, capsys):
    play.main([str(run_dir), "--episodes", "3"])
    result = json.loads((run_dir / "result.json").read_text())
    found = evaluation(run_dir)
    assert found["scores"] == result["final"]["scores"]
    assert np.shape(found["returns"]) == (2, 3) and found["finished"]
    assert (found["script"], found["phase"], found["update"]) == ("por", "train", 20)
    out = capsys.readouterr().out
    assert "2 agents x 3 episodes, at update 20 of phase train" in out


def test_env_seed_shifts_the_episodes(run_dir):
    play.main([str(run_dir), "--episodes", "3"])
    first = np.array(evaluation(run_dir)["returns"])
    play.main([str(run_dir), "--episodes", "2", "--env-seed", "1"])
    shifted = np.array(evaluation(run_dir)["returns"])
    # Another number of rows in a product may round otherwise.
    assert np.allclose(first[:, 1:], shifted, rtol=1e-4)
    assert not np.isclose(first[:, :2], shifted, rtol=1e-4).any()


def test_the_script_itself_stays_as_it_was(run_dir, por):
    make_env = por.make_env
    play.main([str(run_dir), "--episodes", "1"])
    assert por.make_env is make_env


def test_the_policy_of_a_copied_script_is_named(run_dir, tmp_path):
    script = shutil.copy(ROOT / "algorithms" / "por.py", tmp_path / "por.py")
    (run_dir / "result.json").unlink()  # it is not needed then
    play.main([str(run_dir), "--episodes", "1", "--script", str(script)])
    assert evaluation(run_dir)["episodes"] == 1


@pytest.mark.slow
def test_a_policy_is_loaded_in_four_lines(run_dir, tmp_path):
    """It needs nothing but a script and a run."""
    shutil.copy(ROOT / "algorithms" / "por.py", tmp_path)
    command = [sys.executable, "-c", FOUR_LINES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 5, 3])\n", done.stderr


# ---- What is refused ----


def test_mistakes_are_named_in_a_line(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no ffmpeg
    for words, complaint in (
        ([tmp_path], "holds no run"),
        ([run_dir, "--episodes", "0"], "--episodes must be at least 1"),
        ([run_dir, "--env-seed", "-1"], "--env-seed must not be negative"),
        ([run_dir, "--agent", "2"], "--agent must lie between 0 and 1"),
        ([run_dir, "--video", "a.png"], "must end in .gif or .mp4"),
        ([run_dir, "--video", "a.mp4"], "needs the program ffmpeg"),
        ([run_dir, "--episodes", "1", "--video=a.gif", "--video-episodes", "2"], "not be more"),
        ([run_dir, "--script", "absent"], "no script absent"),
        ([run_dir, "--script", "bc"], "is a checkpoint of por.py"),
    ):
        with pytest.raises(SystemExit, match=complaint) as stop:
            play.main([str(word) for word in words])
        assert "\n" not in stop.value.code
    assert not (run_dir / "evaluation.json").exists()


def test_a_file_may_not_name_a_script_outside_of_algorithms(run_dir, tmp_path):
    script = tmp_path / "evil.py"
    script.write_text("raise RuntimeError('executed')")
    for name in (str(script), "../../por", 5):
        (run_dir / "result.json").write_text(json.dumps({"script": name}))
        with pytest.raises(SystemExit, match="add --script"):
            play.main([str(run_dir)])


def test_a_checkpoint_may_not_import_a_module(run_dir, tmp_path, monkeypatch):
    (tmp_path / "evil_envs.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    change_checkpoint(run_dir, env_id="evil_envs:Hopper-v4", name="evil_envs:Hopper-v4")
    with pytest.raises(SystemExit, match="if you trust it, add --env evil_envs:Hopper-v4"):
        play.main([str(run_dir)])
    with pytest.raises(SystemExit, match="imported"):  # the user has repeated it
        play.main([str(run_dir), "--env", "evil_envs:Hopper-v4"])


@pytest.mark.parametrize(
    "task, complaint",
    [
        ({"env_id": "Absent-v0"}, "Absent-v0 is not registered"),
        ({"env_kwargs": {"a": {"b": 1}}}, "number"),
        ({"env_id": "Walker2d-v4"}, "another obs_dim now"),
        ({"action_high": [2.0, 1.0, 1.0]}, "another action_high now"),
    ],
)
def test_another_environment_is_refused(run_dir, task, complaint):
    change_checkpoint(run_dir, **task)
    with pytest.raises(SystemExit, match=complaint):
        play.main([str(run_dir)])


# ---- Filming ----


def test_without_a_renderer_one_line_says_what_is_needed(run_dir, tmp_path, monkeypatch, por):
    def fail(env):
        raise RuntimeError("no OpenGL\nbackend")

    monkeypatch.setattr(play, "choose_renderer", lambda: None)
    monkeypatch.setattr("gymnasium.envs.mujoco.mujoco_env.MujocoEnv.render", fail)
    out = tmp_path / "a.gif"
    with pytest.raises(SystemExit, match="no OpenGL backend; install EGL or OSMesa") as stop:
        play.main([str(run_dir), "--episodes", "1", "--video", str(out)])
    assert "\n" not in stop.value.code and not out.exists()


def test_a_way_of_rendering_that_fails_is_named(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(SystemExit, match="MUJOCO_GL=nonsense does not work here"):
        play.main([str(run_dir), "--episodes", "1", "--video", str(tmp_path / "a.gif")])


def fake_picture(env):
    """Return a picture whose brightness says how many were taken before it."""
    fake_picture.taken += 1
    return np.full((96, 128, 3), fake_picture.taken % 256, np.uint8)


@pytest.fixture
def pictures(monkeypatch):
    fake_picture.taken = 0
    monkeypatch.setattr(play, "choose_renderer", lambda: None)
    monkeypatch.setattr(play, "take_picture", fake_picture)


def milliseconds(path: Path) -> int:
    """Return the length of a GIF."""
    image = Image.open(path)
    total = 0
    for i in range(image.n_frames):
        image.seek(i)
        total += image.info["duration"]
    return total


def test_a_gif_shows_real_time(run_dir, tmp_path, pictures):
    """Hopper has 125 steps per second, of which 25 are shown."""
    out = tmp_path / "new" / "a.gif"
    words = [str(run_dir), "--episodes", "2", "--video", str(out), "--size", "48"]
    play.main([*words, "--fps", "125"])
    steps = fake_picture.taken - 1
    fake_picture.taken = 0
    play.main(words)
    assert fake_picture.taken == 1 + steps // 5 > 2
    assert milliseconds(out) == 40 * fake_picture.taken
    assert Image.open(out).size == (64, 48)
    play.main([*words, "--video-episodes", "2", "--agent", "1"])
    assert milliseconds(out) == 40 * (fake_picture.taken - 1 - steps // 5)


def test_an_mp4_is_written_by_ffmpeg(run_dir, tmp_path, pictures, monkeypatch):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" > words\nwc -c > bytes\ntouch a.mp4\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    play.main([str(run_dir), "--episodes", "1", "--video", "a.mp4", "--size", "48"])
    assert "-s 64x48 -r 25.0 -i - -pix_fmt yuv420p a.mp4" in Path("words").read_text()
    assert int(Path("bytes").read_text()) == fake_picture.taken * 64 * 48 * 3


@pytest.mark.skipif(not can_render(), reason="MuJoCo cannot draw on this machine")
def test_the_camera_follows_the_robot(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
    gym.logger.min_level = gym.logger.ERROR
    env = play.Film(gym.make("Hopper-v4", render_mode="rgb_array"), fps=25)
    env.reset(seed=0)
    robot = env.unwrapped
    robot.set_state(robot.data.qpos + np.array([20, 0, 0, 0, 0, 0]), robot.data.qvel)
    red, _, blue = play.take_picture(env).astype(int).reshape(-1, 3).T
    assert (red > blue + 50).sum() > 500  # the hopper is brown, the floor is grey
    env.close()


@pytest.mark.slow
@pytest.mark.skipif(not can_render(), reason="MuJoCo cannot draw on this machine")
def test_a_hopper_is_filmed(run_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    out = tmp_path / "hopper.gif"
    command = [sys.executable, "-m", "benchmarks.play", run_dir, "--episodes", "1"]
    done = subprocess.run([*command, "--video", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image = Image.open(out)
    assert image.size == (240, 240) and image.n_frames > 1
    assert np.asarray(image.convert("RGB")).std() > 20  # something is seen
