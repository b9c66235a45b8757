"""The policies that act in a recipe: how their weights are read, and how they choose actions.

A policy has `draw`, which makes the noise of an episode in advance, and a call, which turns a batch
of observations and noise into actions.
"""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np

from benchmarks.datasets.d4rl_policies import POLICIES, policy_file, read_snapshot
from benchmarks.datasets.deterministic import NoisyPolicy, load_noisy_behavior
from benchmarks.datasets.discrete import load_discrete_behavior

BEHAVIOR = Path(__file__).resolve().parent / "behavior"
# As sac.py and rlkit clamp it. Deep OPE acts with D4RL's snapshots unclamped, which is the same,
# because their log-deviations lie between -3.6 and 0.4 (1,000 steps each).
LOG_STD_MIN, LOG_STD_MAX = -20, 2


class SacPolicy:
    """A tanh-Gaussian policy with two hidden ReLU layers, and weights as in `nn.Linear`.

    It is written in NumPy, because a worker process without PyTorch starts in a fraction of the
    time. Actions in [-1, 1] are stretched onto the bounds `low` and `high` (act_dim,).
    """

    def __init__(self, weights: dict[str, np.ndarray], low=-1.0, high=1.0):
        self.w0, self.b0 = layer(weights, "fc0")
        self.w1, self.b1 = layer(weights, "fc1")
        w_mean, b_mean = layer(weights, "last_fc")
        w_log_std, b_log_std = layer(weights, "last_fc_log_std")
        self.w2 = np.concatenate([w_mean, w_log_std], -1)
        self.b2 = np.concatenate([b_mean, b_log_std], -1)
        self.obs_dim = self.w0.shape[0]
        self.act_dim = self.w2.shape[1] // 2
        # Bounds of -1 and 1 give 0 and 1, which change no bit of an action.
        self.center = np.float32((np.asarray(high) + low) / 2)
        self.radius = np.float32((np.asarray(high) - low) / 2)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Return the noise of one episode, (steps, act_dim) float32."""
        return rng.standard_normal((steps, self.act_dim), np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return actions: (B, obs_dim), (B, act_dim) -> (B, act_dim), all float32."""
        h = np.maximum(obs @ self.w0 + self.b0, 0)
        h = np.maximum(h @ self.w1 + self.b1, 0)
        mean, log_std = np.split(h @ self.w2 + self.b2, 2, -1)
        std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))
        return np.tanh(mean + std * noise) * self.radius + self.center


def make_policy(weights: dict[str, np.ndarray], low, high) -> SacPolicy | NoisyPolicy:
    """Return the policy of a weight file. Only those of TD3 and DDPG have a fixed noise."""
    if "noise" not in weights:
        return SacPolicy(weights, low, high)
    layers = [layer(weights, name) for name in ("fc0", "fc1", "last_fc")]
    matrices, biases = zip(*layers, strict=True)
    low, high = np.asarray(low), np.asarray(high)
    return NoisyPolicy(list(matrices), list(biases), low, high, float(weights["noise"].item()))


def layer(weights: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight (in, out) and the bias (out,) of a layer."""
    weight = np.ascontiguousarray(weights[f"{name}.weight"].T, np.float32)
    return weight, np.asarray(weights[f"{name}.bias"], np.float32)


class UniformPolicy:
    """Uniform random actions between `low` and `high`, (act_dim,) each."""

    def __init__(self, low: np.ndarray, high: np.ndarray, obs_dim: int):
        self.low = low.astype(np.float32)
        self.high = high.astype(np.float32)
        self.obs_dim = obs_dim
        self.act_dim = len(low)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Return the actions of one episode, (steps, act_dim) float32."""
        return rng.uniform(self.low, self.high, (steps, self.act_dim)).astype(np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return noise


def spaces(env_id: str, discrete: bool = False) -> tuple[gym.spaces.Box, gym.Space]:
    """Return the observation and the action space. Refuse the kinds in which no policy can act.

    `discrete` says whether actions may also be 0, 1, ..., n - 1.
    """
    try:
        env = gym.make(env_id, disable_env_checker=True)
    except (gym.error.Error, ImportError) as error:
        sys.exit(f"--env-id {env_id}: {error}")
    observation_space, action_space = env.observation_space, env.action_space
    if not is_vector(observation_space):
        sys.exit(f"--env-id {env_id}: observations are {observation_space}, not vectors (Box)")
    if env.spec.max_episode_steps is None:
        sys.exit(f"--env-id {env_id} has no time limit; register it with max_episode_steps")
    env.close()
    if discrete and isinstance(action_space, gym.spaces.Discrete) and action_space.start == 0:
        return observation_space, action_space
    if not is_vector(action_space):
        kinds = "vectors (Box)"
        if discrete:
            kinds += " or Discrete actions from 0 on"
        sys.exit(f"--env-id {env_id}: actions are {action_space}, not {kinds}")
    if not action_space.is_bounded():
        sys.exit(f"--env-id {env_id}: the actions {action_space} have no bounds")
    return observation_space, action_space


def is_vector(space: gym.Space) -> bool:
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1


def read_weights(path: Path) -> tuple[list[dict], list[int], dict]:
    """Return the policies of a weight file, the steps at which they end, and its `about`.

    A file with one policy has no steps. A bundle (see bundle_replay.py) has stacked weights of K
    policies, (K, out, in), the oldest first, and K + 1 steps: up to the first, actions are random.
    """
    if not path.exists():
        sys.exit(
            f"the policy {path} is missing; train it with algorithms/sac.py and choose it with "
            "benchmarks.datasets.select_behavior, see benchmarks/datasets/README.md"
        )
    try:
        with np.load(path) as file:  # refuses pickled objects
            arrays = dict(file)
        about = json.loads(str(arrays.pop("about", "{}")))
        ends = [int(end) for end in arrays.pop("ends", [])]
        if not ends:
            return [arrays], [], about
        policies = []
        for k in range(len(ends) - 1):
            policies.append({name: array[k] for name, array in arrays.items()})
        return policies, ends, about
    except (OSError, ValueError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        sys.exit(f"the policy {path} cannot be read ({error}); restore the file")


def load_behavior(
    source: str, env_id: str, folder: Path, noise: float = 0.0
) -> tuple[list[tuple], dict]:
    """Return the stages of a behaviour, and what is known of it for the dataset's metadata.

    The source is a word of Recipe.behavior, the path of a weight file, or the run folder of a
    deterministic policy, which alone takes the noise; if actions are discrete, it is random or a
    run folder. A stage is (policy, end): the policy acts until the behaviour has made `end`
    transitions, or without limit if it is None.
    """
    if source.startswith("dapg:"):
        from benchmarks.datasets.hands import load_hand  # others do without PyTorch

        policy, about = load_hand(source.removeprefix("dapg:"))
        return [(policy, None)], about
    observation_space, action_space = spaces(env_id, discrete=True)
    obs_dim = observation_space.shape[0]
    discrete = isinstance(action_space, gym.spaces.Discrete)
    deterministic = not discrete and Path(source, "checkpoint.pt").exists()
    if noise > 0 and not deterministic:
        sys.exit(f"--noise {noise:g}: only a run folder of td3.py or ddpg.py takes it")
    if discrete:
        return load_discrete_behavior(source, env_id, obs_dim, int(action_space.n))
    low, high = action_space.low, action_space.high
    if deterministic:
        return load_noisy_behavior(source, env_id, low, high, noise)
    uniform = UniformPolicy(low, high, obs_dim)
    if source == "random":
        return [(uniform, None)], {"policy": "uniform random actions"}
    path, weights, ends, about = find_weights(source, folder)
    try:
        policies = [make_policy(arrays, low, high) for arrays in weights]
    except (KeyError, ValueError, AttributeError) as error:
        sys.exit(f"the policy {path} cannot be read ({error} is missing or misshapen)")
    for policy in policies:
        if (policy.obs_dim, policy.act_dim) != (obs_dim, len(low)):
            sys.exit(
                f"{path} maps {policy.obs_dim} observations to {policy.act_dim} actions, but "
                f"{env_id} has {obs_dim} and {len(low)}"
            )
    about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if ends:
        return list(zip([uniform, *policies], ends, strict=True)), about
    return [(policies[0], None)], about


def find_weights(source: str, folder: Path) -> tuple[Path, list[dict], list[int], dict]:
    """Return the file of a behaviour, its weights and where they end, and what is known of it."""
    if source.startswith("d4rl:"):
        name = f"{source.removeprefix('d4rl:')}.pkl"
        path = policy_file(name)
        about = {
            "policy": f"D4RL's own SAC snapshot {path.stem}, actions sampled",
            "file": name,
            "url": POLICIES[name][0],
            "made_by": "D4RL (arXiv 2004.07219), released with Deep OPE (arXiv 2103.16596) under "
            "Apache-2.0",
        }
        return path, [read_snapshot(path)], [], about
    if source.endswith(".pkl"):
        path = Path(source)
        about = {"policy": "SAC snapshot in D4RL's format, actions sampled", "file": path.name}
        return path, [read_snapshot(path)], [], about
    path = Path(source) if source.endswith(".npz") else folder / f"{source}.npz"
    weights, ends, known = read_weights(path)
    algorithm = known.get("algorithm", "SAC")  # older files are SAC's and do not say so
    if ends:
        policy = f"random actions, then {len(weights)} snapshots of a {algorithm} training"
        known = known | {"last_step": ends[-1]}
    else:
        policy = f"{algorithm} ({path.stem})"
    acting = known.get("acting", "actions sampled")
    about = {"policy": f"{policy}, {acting}", "file": path.name} | known
    return path, weights, ends, about
