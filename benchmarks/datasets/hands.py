"""The hands of DAPG act in D4RL's Adroit tasks: D4RL's expert sets, made anew.

D4RL (d4rl/scripts/generation/hand_dapg_policies.py) lets the policies that are published with DAPG
(arXiv 1709.10087, github aravindr93/hand_dapg) act by sampling, and clips their actions to
[-1, 1]. The human and the cloned sets need the demonstrations of people and cannot be rebuilt.

Importing this module registers the tasks, so that Gymnasium finds them in worker processes.
"""

import numpy as np

from benchmarks.common import load_script
from benchmarks.datasets.d4rl_policies import POLICIES, policy_file, read_hand
from benchmarks.datasets.policies import layer

Adroit = load_script("por").Adroit  # datasets name this class as their environment's
HANDS = ("pen", "hammer", "door", "relocate")


class HandPolicy:
    """A Gaussian policy with two hidden tanh layers; its deviation does not depend on the state."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.layers = [layer(weights, name) for name in ("fc0", "fc1", "last_fc")]
        self.std = np.exp(weights["log_std"])
        self.obs_dim = len(self.layers[0][0])
        self.act_dim = len(self.std)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Return the noise of one episode, (steps, act_dim) float32."""
        return self.std * rng.standard_normal((steps, self.act_dim), np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return actions: (B, obs_dim), (B, act_dim) -> (B, act_dim), all float32."""
        x = obs
        for weight, bias in self.layers[:-1]:
            x = np.tanh(x @ weight + bias)
        weight, bias = self.layers[-1]
        return np.clip(x @ weight + bias + noise, -1, 1)


def load_hand(hand: str) -> tuple[HandPolicy, dict]:
    """Return one of DAPG's policies, and what is known of it for the dataset's metadata."""
    name = f"{hand}-v0.pickle"
    return HandPolicy(read_hand(policy_file(name))), {
        "policy": f"DAPG's own policy of {hand}, actions sampled",
        "algorithm": "DAPG",
        "file": name,
        "url": POLICIES[name][0],
        "made_by": "DAPG (arXiv 1709.10087)",
        "sha256": POLICIES[name][1],
    }
