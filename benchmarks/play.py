"""Evaluate the policy of a run, finished or not, and film it.

    python -m benchmarks.play runs/quickstart
    python -m benchmarks.play runs/quickstart --episodes 20 --env-seed 1000
    python -m benchmarks.play runs/quickstart --episodes 1 --video hopper.gif

The returns go to evaluation.json in the run's folder. Episode i begins with seed --env-seed + i;
those of the evaluations during training begin with 0, 1, ... A video is a .gif, or an .mp4 where
the program ffmpeg is installed. A machine without a screen needs EGL or OSMesa for it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated

import gymnasium as gym
import numpy as np
import tyro
from PIL import Image

from benchmarks.common import load_script, mean_and_spread, write_atomically

COLORS = 64  # of a GIF; fewer make a smaller file
TRACKING_CAMERA = 1  # mujoco.mjtCamera.mjCAMERA_TRACKING; mujoco must not be imported too early
FIRST_BODY = 1  # of a MuJoCo model after the world: the torso of a robot that walks


@dataclass
class Args:
    run_dir: Annotated[Path, tyro.conf.Positional]  # folder of the run
    episodes: int = 100  # episodes of every agent
    env_seed: int = 0  # seed of the first episode
    video: Path | None = None  # .gif or .mp4 to write
    agent: int = 0  # whose episodes are filmed
    video_episodes: int = 1  # how many of them, one after the other
    fps: int = 25  # frames per second of the video, which shows real time
    size: int = 240  # height of the video in pixels
    script: str | None = None  # name or path of the run's script; None: what result.json says
    env: str | None = None  # repeats the run's --env if that names a module to be imported
    device: str = "cpu"  # cpu, cuda, cuda:1, ...


# --------------------------------------------------------------------------------------------------
# The policy and its environment
# --------------------------------------------------------------------------------------------------


def find_script(args: Args) -> ModuleType:
    """Import the run's script. A file may name one of algorithms/, but no path."""
    if args.script is not None:
        return load_script(args.script)
    path = args.run_dir / "result.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["script"]
        plain = re.fullmatch(r"\w+", name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} does not say which script made the run ({error}); add --script")
    if plain is None:
        sys.exit(f"{path} names no script of algorithms/; add --script")
    return load_script(name)


def check_task(module: ModuleType, stored: dict, env: str | None):
    """Return the stored task, after the checks that a training makes of its environment."""
    env_id = stored["env_id"]
    if ":" in env_id and env != env_id:
        sys.exit(f"this run imports a module: if you trust it, add --env {env_id}")
    keys = ("name", "source", "env_id", "env_kwargs", "max_episode_steps")
    fresh = module.make_task(**{key: stored[key] for key in keys})
    for key in ("obs_dim", "act_dim", "obs_keys", "action_low", "action_high"):
        if getattr(fresh, key) != stored[key]:
            sys.exit(f"{env_id} has another {key} now than when the run was trained")
    return module.Task(**stored)


def load_agent(module: ModuleType, args: Args, checkpoint: dict):
    """Return the agent of a checkpoint and its task."""
    try:
        stored = checkpoint["args"] | {"device": args.device, "execution": "eager"}
        run_args = module.Args(**stored)
        task = check_task(module, checkpoint["task"], args.env)
        agent = module.Algorithm(run_args, task, module.choose_device(run_args))
        agent.load_state_dict(checkpoint["agent"])
    except (TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        sys.exit(f"{args.run_dir} was made by another version of {module.__name__}.py: {reason}")
    return agent, task


# --------------------------------------------------------------------------------------------------
# Filming
# --------------------------------------------------------------------------------------------------


class ShiftSeed(gym.Wrapper):
    """An environment whose episodes begin with other seeds than the evaluation asks for."""

    def __init__(self, env: gym.Env, shift: int):
        super().__init__(env)
        self.shift = shift

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            seed += self.shift
        return self.env.reset(seed=seed, options=options)


class Film(gym.Wrapper):
    """An environment that keeps pictures of its episode."""

    def __init__(self, env: gym.Env, fps: int):
        super().__init__(env)
        steps_per_second = env.metadata.get("render_fps", fps)
        # A picture of every step would be more than a video needs.
        self.every = max(1, round(steps_per_second / fps))
        self.fps = steps_per_second / self.every
        self.pictures = []
        self.steps = 0
        if is_mujoco(env):
            # Without a graphics card, a picture with shadows takes five times as long.
            quality = env.unwrapped.model.vis.quality
            quality.shadowsize = 0
            quality.offsamples = 0
            # Gymnasium's camera stays where it is, and the robot leaves the picture.
            renderer = env.unwrapped.mujoco_renderer
            follow = {"type": TRACKING_CAMERA, "trackbodyid": FIRST_BODY}
            renderer.default_cam_config = follow | (renderer.default_cam_config or {})
            renderer.camera_id = None

    def reset(self, **options):
        result = self.env.reset(**options)
        self.pictures.append(take_picture(self.env))
        return result

    def step(self, action):
        result = self.env.step(action)
        self.steps += 1
        if self.steps % self.every == 0:
            self.pictures.append(take_picture(self.env))
        return result


def is_mujoco(env: gym.Env) -> bool:
    return "mujoco_renderer" in vars(env.unwrapped)


def take_picture(env: gym.Env) -> np.ndarray:
    """Return a picture (height, width, 3) of the environment."""
    try:
        return np.asarray(env.render())
    except Exception as error:  # every renderer has its own types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        needs = ""
        if is_mujoco(env):
            needs = "; install EGL or OSMesa (libegl1 or libosmesa6 in Debian)"
        sys.exit(
            f"{env.spec.id} cannot be filmed here: {reason}{needs}; without --video the run is "
            "evaluated"
        )


def choose_renderer() -> None:
    """Let Gymnasium use the first of MuJoCo's ways of rendering that works here."""
    trial = "import mujoco; context = mujoco.GLContext(8, 8); context.make_current()"
    asked = os.environ.get("MUJOCO_GL")
    for name in ("egl", "osmesa", "glfw") if asked is None else (asked,):
        env = os.environ | {"MUJOCO_GL": name}
        # A missing library can end the process that tries it.
        answer = subprocess.run([sys.executable, "-c", trial], env=env, capture_output=True)
        if answer.returncode == 0:
            os.environ["MUJOCO_GL"] = name
            return
    if asked is not None:
        sys.exit(f"MUJOCO_GL={asked} does not work here; unset it, and all ways are tried")


def evaluate(module: ModuleType, agent, task, args: Args) -> tuple[np.ndarray, list[Film]]:
    """Play the episodes as the script does. Return the returns (N, episodes) and the films."""
    num_films = 0 if args.video is None else args.video_episodes
    films = []
    make_env = module.make_env
    number = 0

    def make_one(task) -> gym.Env:
        # The script makes the environments agent by agent.
        nonlocal number
        whose, episode = divmod(number, args.episodes)
        number += 1
        filmed = whose == args.agent and episode < num_films
        if filmed:
            task = replace(task, env_kwargs=task.env_kwargs | {"render_mode": "rgb_array"})
        env = make_env(task)
        if filmed:
            env = Film(env, args.fps)
            films.append(env)
        return ShiftSeed(env, args.env_seed)

    module.make_env = make_one
    try:
        returns = module.evaluate(agent, task, args.episodes)
    finally:
        module.make_env = make_env
    return returns, films


def write_video(path: Path, films: list[Film], size: int) -> None:
    """Write the films, one after the other, as a GIF or, by ffmpeg, as an MP4."""
    fps = films[0].fps
    images = []
    for picture in [picture for film in films for picture in film.pictures]:
        image = Image.fromarray(picture)
        width = round(image.width * size / image.height / 2) * 2  # ffmpeg needs even numbers
        images.append(image.resize((width, size // 2 * 2), Image.Resampling.LANCZOS))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        # One palette for all pictures, so that what does not move is not stored again. It keeps
        # colours that only a small part of a picture has.
        palette = images[len(images) // 2].quantize(COLORS, Image.Quantize.MAXCOVERAGE)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        duration = round(1000 / fps)
        images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)
        return
    shape = f"{images[0].width}x{images[0].height}"
    words = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    words += ["-s", shape, "-r", str(fps), "-i", "-", "-pix_fmt", "yuv420p", str(path)]
    content = b"".join(image.tobytes() for image in images)
    answer = subprocess.run(words, input=content, stderr=subprocess.PIPE)
    if answer.returncode != 0:
        sys.exit(f"ffmpeg could not write {path}: {answer.stderr.decode().strip()[:200]}")


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def check_args(args: Args) -> None:
    """Refuse what cannot work before anything is computed."""
    if not (args.run_dir / "checkpoint.pt").exists():
        sys.exit(f"{args.run_dir} holds no run: there is no checkpoint.pt in it")
    for name in ("episodes", "video_episodes", "fps", "size"):
        if getattr(args, name) < 1:
            sys.exit(f"--{name.replace('_', '-')} must be at least 1")
    if args.env_seed < 0:
        sys.exit("--env-seed must not be negative")
    if args.video is None:
        return
    if args.video.suffix not in (".gif", ".mp4"):
        sys.exit(f"--video {args.video} must end in .gif or .mp4")
    if args.video.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        sys.exit("an .mp4 needs the program ffmpeg, which is not installed; write a .gif")
    if args.video_episodes > args.episodes:
        sys.exit("--video-episodes must not be more than --episodes")


def main(words: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=words, description=__doc__)
    check_args(args)
    gym.logger.min_level = gym.logger.ERROR  # the old v4 environments are meant
    if args.video is not None:
        choose_renderer()
    module = find_script(args)
    checkpoint = module.load_checkpoint(str(args.run_dir))
    num_seeds = checkpoint["args"]["num_seeds"]
    if not 0 <= args.agent < num_seeds:
        sys.exit(f"--agent must lie between 0 and {num_seeds - 1}")
    agent, task = load_agent(module, args, checkpoint)
    returns, films = evaluate(module, agent, task, args)
    scores = module.normalized_score(task, returns.mean(axis=1))
    evaluation = {
        "script": checkpoint["script"],
        "phase": agent.phases[checkpoint["phase"]].name,
        "update": checkpoint["step"],
        "finished": checkpoint["finished"],
        "env_id": task.env_id,
        "env_seed": args.env_seed,
        "episodes": args.episodes,
        "returns": returns.tolist(),
        "scores": scores.tolist(),
    }
    path = args.run_dir / "evaluation.json"
    write_atomically(path, json.dumps(evaluation, indent=1, allow_nan=False) + "\n")
    kind = "return" if task.ref_min is None else "score"
    print(
        f"{kind} {mean_and_spread(scores)}, {num_seeds} agents x {args.episodes} episodes, at "
        f"update {checkpoint['step']:,} of phase {evaluation['phase']}: {path}"
    )
    if args.video is not None:
        write_video(args.video, films, args.size)
        print(f"filmed {args.video}, {args.video.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
