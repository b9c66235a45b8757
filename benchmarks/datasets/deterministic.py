"""Policies of TD3 and DDPG runs, with Gaussian noise: BAIL's batches were made by such ones.

BAIL's authors let DDPG policies act with noise of deviation 0.1 and 0.5 (arXiv 1910.12179).
"""

import hashlib
import json
import shlex
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import load_script
from benchmarks.datasets.trainings import changed_options

SCRIPTS = ("td3", "ddpg")


class NoisyPolicy:
    """The tanh of a ReLU network plus noise, stretched from [-1, 1] onto the bounds (act_dim,).

    Layers are (in, out) and (out,). The deviation is relative to half the range of an action.
    """

    def __init__(
        self, weights: list, biases: list, low: np.ndarray, high: np.ndarray, noise: float
    ):
        self.weights = weights
        self.biases = biases
        self.noise = np.float32(noise)
        self.obs_dim = len(weights[0])
        self.act_dim = len(biases[-1])
        self.center = np.float32((high + low) / 2)
        self.radius = np.float32((high - low) / 2)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Return the noise of one episode, (steps, act_dim) float32."""
        return self.noise * rng.standard_normal((steps, self.act_dim), np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return actions: (B, obs_dim), (B, act_dim) -> (B, act_dim), all float32."""
        x = obs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        action = np.tanh(x @ self.weights[-1] + self.biases[-1]) + noise
        return np.clip(action, -1, 1) * self.radius + self.center


def load_noisy_behavior(
    folder: str, env_id: str, low: np.ndarray, high: np.ndarray, noise: float
) -> tuple[list[tuple], dict]:
    """Return what load_behavior does, of the first agent of a run folder of td3.py or ddpg.py."""
    name = json.loads(Path(folder, "result.json").read_text())["script"]
    if name not in SCRIPTS:
        sys.exit(f"--behavior {folder} is a run of {name}.py; it must be one of td3.py or ddpg.py")
    script = load_script(name)
    checkpoint = script.load_checkpoint(folder)
    trained_on = checkpoint["task"]["env_id"]
    if trained_on != env_id:
        sys.exit(f"{folder} was trained on {trained_on}, not on {env_id}")
    layers = [f"policy.{i}" for i in (0, 2, 4)]  # ReLUs are between them
    weights = [checkpoint["agent"][f"{layer}.weight"][0].numpy() for layer in layers]
    biases = [checkpoint["agent"][f"{layer}.bias"][0, 0].numpy() for layer in layers]
    digest = hashlib.sha256(f"noise {noise}".encode())  # another noise makes another behaviour
    for array in (*weights, *biases):
        digest.update(array.tobytes())
    words = ["python", f"algorithms/{name}.py", *changed_options(script, checkpoint["args"])]
    words += ["--num-updates", str(checkpoint["step"])]
    words += ["--run-dir", f"runs/{Path(folder).resolve().name}"]
    algorithm = name.upper()
    about = {
        "policy": f"{algorithm} after {checkpoint['step']:,} updates, with Gaussian noise of "
        f"{noise:g} times half the range of an action",
        "algorithm": algorithm,
        "noise": noise,
        "training_command": shlex.join(words),
        "training_seed": checkpoint["args"]["seed"],
        "step": checkpoint["step"],
        "sha256": digest.hexdigest(),
    }
    return [(NoisyPolicy(weights, biases, low, high, noise), None)], about
