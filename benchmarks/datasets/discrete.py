"""The policies of environments with discrete actions: random ones, and a DQN with noise.

The noise is that of discrete BCQ's authors (github sfujim/BCQ @ 4876f7e, discrete_BCQ/main.py): an
episode in five is the greedy policy's own, and in the others every fifth action is random.
"""

import hashlib
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.common import load_script
from benchmarks.datasets.trainings import changed_options

LOW_NOISE_EPISODES = 0.2  # the authors' low_noise_p
RANDOM_ACTIONS = 0.2  # in the other episodes, their rand_action_p
GREEDY = -1  # stands for the greedy action


class DiscretePolicy:
    """Uniform random actions 0, ..., num_actions - 1."""

    def __init__(self, num_actions: int, obs_dim: int):
        self.num_actions = num_actions
        self.obs_dim = obs_dim

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Return the actions of one episode, (steps,) int64."""
        return rng.integers(self.num_actions, size=steps)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return noise


class DqnPolicy(DiscretePolicy):
    """The best action of a Q-function, or a random one. Layers are (in, out) and (out,)."""

    def __init__(self, weights: list[np.ndarray], biases: list[np.ndarray]):
        super().__init__(len(biases[-1]), len(weights[0]))
        self.weights = weights
        self.biases = biases

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Return the random actions of one episode, and GREEDY elsewhere: (steps,) int64."""
        noise = np.full(steps, GREEDY)
        if rng.random() >= LOW_NOISE_EPISODES:
            random = rng.random(steps) < RANDOM_ACTIONS
            noise[random] = rng.integers(self.num_actions, size=random.sum())
        return noise

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return actions: (B, obs_dim), (B,) -> (B,)."""
        x = obs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        best = (x @ self.weights[-1] + self.biases[-1]).argmax(-1)
        return np.where(noise == GREEDY, best, noise)


def load_discrete_behavior(
    source: str, env_id: str, obs_dim: int, num_actions: int
) -> tuple[list[tuple], dict]:
    """Return what load_behavior does. The source is random, or a run folder of discrete_bcq.py."""
    if source == "random":
        policy = DiscretePolicy(num_actions, obs_dim)
        return [(policy, None)], {"policy": "uniform random actions"}
    if not Path(source, "checkpoint.pt").exists():
        sys.exit(
            f"--behavior {source}: actions of {env_id} are discrete, so it must be random or the "
            "--run-dir of a run of discrete_bcq.py"
        )
    script = load_script("discrete_bcq")
    checkpoint = script.load_checkpoint(source)
    trained_on = checkpoint["task"]["env_id"]
    if trained_on != env_id:
        sys.exit(f"{source} was trained on {trained_on}, not on {env_id}")
    if checkpoint["args"]["threshold"] > 0:
        sys.exit(f"{source} is no DQN; train with --threshold 0")
    weights, biases = q_function(checkpoint["agent"])
    digest = hashlib.sha256()
    for array in (*weights, *biases):
        digest.update(array.tobytes())
    about = {
        "policy": f"DQN after {checkpoint['step']:,} updates, greedy in "
        f"{100 * LOW_NOISE_EPISODES:g} % of the episodes, with {100 * RANDOM_ACTIONS:g} % random "
        "actions in the others",
        "algorithm": "DQN",
        "training_command": training_command(script, source, checkpoint),
        "training_seed": checkpoint["args"]["seed"],
        "step": checkpoint["step"],
        "sha256": digest.hexdigest(),
    }
    return [(DqnPolicy(weights, biases), None)], about


def q_function(state: dict) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the weights (in, out) and the biases (out,) of the first agent's Q."""
    layers = [f"critic.{i}" for i in (0, 2, 4)]  # ReLUs are between them
    weights = [state[f"{layer}.weight"][0].numpy() for layer in layers]
    biases = [state[f"{layer}.bias"][0, 0].numpy() for layer in layers]
    return weights, biases


def training_command(script: ModuleType, folder: str, checkpoint: dict) -> str:
    """Return the command that trains the same policy."""
    words = ["python", "algorithms/discrete_bcq.py"]
    words += changed_options(script, checkpoint["args"])
    words += ["--num-updates", str(checkpoint["step"])]
    words += ["--run-dir", f"runs/{Path(folder).resolve().name}"]
    return shlex.join(words)
