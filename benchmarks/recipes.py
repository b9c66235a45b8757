"""The datasets that collect.py makes: where a policy acts, which one, for how long, which scores.

A recipe names its behaviour policies; each collects an equal share, one after the other:

    random               uniform actions in the action box
    hopper-medium        weights in benchmarks/behavior/: a file with one policy, or a bundle of
                         snapshots of one training, each of which acts for the steps it stands for
    d4rl:hopper_online_5 a snapshot of D4RL's own training (d4rl_policies.py fetches and checks it)
    maze                 a way through a maze from waypoint to waypoint (mazes.py)

D4RL's recipe: d4rl/scripts/generation/mujoco/collect_data.py and stitch_dataset.py (sampled
actions, `random` is action_space.sample(), medium-expert is medium's file followed by expert's).
"""

import difflib
import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from d4rl_policies import POLICIES, policy_file, read_snapshot

# The noise is clamped like the learner's (sac.py, and rlkit). Deep OPE acts with D4RL's
# snapshots unclamped; their log-deviations lie in -3.6..0.4 (1,000 steps each), so it is the same.
LOG_STD_MIN, LOG_STD_MAX = -20, 2


@dataclass(frozen=True)
class Published:
    """D4RL's own dataset: return per complete episode (mean, deviation), transitions, episodes."""

    mean: float
    std: float
    transitions: int
    episodes: int

    def followed_by(self, other: "Published") -> "Published":
        """Statistics of this dataset and the other in one file."""
        n, m = self.episodes, other.episodes
        mean = (n * self.mean + m * other.mean) / (n + m)
        square = (n * (self.std**2 + self.mean**2) + m * (other.std**2 + other.mean**2)) / (n + m)
        return Published(mean, (square - mean**2)**0.5, self.transitions + other.transitions, n + m)


@dataclass(frozen=True)
class Recipe:
    """One dataset: where the policies act, which ones, and the scores that mean 0 and 100."""

    env_id: str
    dataset: str
    """id without the namespace and version, `environment/level`"""
    behavior: tuple[str, ...]
    steps: int = 1_000_000
    """transitions of D4RL's set of that name: this size goes without saying in the id"""
    ref_min: float | None = None
    ref_max: float | None = None
    published: Published | None = None
    note: str = ""
    """what a reader must know before comparing scores; goes into the dataset's description"""


# Returns over the complete episodes of D4RL's v2 files as the loader of the Decision Transformer
# (github kzl/decision-transformer, gym/experiment.py) prints them; transitions of the files;
# episodes from the same logs, of the random sets from TensorFlow Datasets' catalogue.
PUBLISHED = {
    "halfcheetah-random": Published(-288.80, 80.43, 1_000_000, 1_000),
    "halfcheetah-medium": Published(4770.33, 355.75, 1_000_000, 1_000),
    "halfcheetah-medium-replay": Published(3093.29, 1680.69, 202_000, 202),
    "halfcheetah-expert": Published(10656.43, 441.68, 1_000_000, 1_000),
    "hopper-random": Published(18.40, 17.45, 999_996, 45_240),
    "hopper-medium": Published(1422.06, 378.95, 999_906, 2_186),
    "hopper-medium-replay": Published(467.30, 511.03, 402_000, 2_041),
    "hopper-expert": Published(3511.36, 328.59, 999_494, 1_027),
    "walker2d-random": Published(1.87, 5.81, 999_997, 48_908),
    "walker2d-medium": Published(2852.09, 1095.44, 999_995, 1_190),
    "walker2d-medium-replay": Published(682.70, 895.96, 302_000, 1_093),
    "walker2d-expert": Published(4920.51, 136.39, 1_000_000, 1_000),
}
PUBLISHED |= {f"{name}-medium-expert": PUBLISHED[f"{name}-medium"].followed_by(
    PUBLISHED[f"{name}-expert"]) for name in ("halfcheetah", "hopper", "walker2d")}

# Environment and reference scores (D4RL, d4rl/infos.py: REF_MIN_SCORE, REF_MAX_SCORE).
# Normalized score = 100 * (return - ref_min) / (ref_max - ref_min).
MUJOCO = {"halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
          "hopper": ("Hopper-v4", -20.272305, 3234.3),
          "walker2d": ("Walker2d-v4", 1.629008, 4592.3)}
# Deep OPE released snapshots 0 to 10 of D4RL's trainings (arXiv 2103.16596). The tenth is an expert
# but for Hopper, where it is weaker than medium: Hopper's expert must be trained.
EXPERTS = {"halfcheetah": "d4rl:halfcheetah_online_10", "hopper": "hopper-expert",
           "walker2d": "d4rl:walker_online_10"}
NOTES = {
    "halfcheetah-expert": "The policy is snapshot 10 of D4RL's training, better than the one of "
                          "D4RL's own expert set: about 100 against 88.",
    "walker2d-expert": "The policy is snapshot 10 of D4RL's training and weaker than the one of "
                       "D4RL's own expert set: about 87 in Walker2d-v4 against 107."}


def _mujoco(name: str) -> dict[str, Recipe]:
    """The recipes of one environment."""
    env_id, ref_min, ref_max = MUJOCO[name]
    medium, expert = f"{name}-medium", EXPERTS[name]
    levels = {"random": (("random",), 1_000_000),
              "medium": ((medium,), 1_000_000),
              "medium-replay": ((f"{medium}-replay",), PUBLISHED[f"{medium}-replay"].transitions),
              "medium-expert": ((medium, expert), 2_000_000),
              "expert": ((expert,), 1_000_000)}
    return {f"{name}-{level}": Recipe(
        env_id, f"{name}/{level}", behavior, steps, ref_min, ref_max,
        PUBLISHED[f"{name}-{level}"], NOTES.get(f"{name}-{level.removeprefix('medium-')}", ""))
        for level, (behavior, steps) in levels.items()}


def _hopper(level: str, *behavior: str, published: str | None = None, note: str) -> Recipe:
    """A further recipe for Hopper, beside D4RL's levels."""
    env_id, ref_min, ref_max = MUJOCO["hopper"]
    return Recipe(env_id, f"hopper/{level}", behavior, 1_000_000 * len(behavior), ref_min, ref_max,
                  PUBLISHED.get(published), note)


def _maze(name: str, env_id: str, steps: int, *refs: float, note: str = "") -> Recipe:
    return Recipe(env_id, name.replace("-", "/", 1), ("maze",), steps, *refs, note=note)


SKILLED = ("The policy `skilled` is the best that a short training of our own reached; it is no "
           "expert.")
ANT = ("Rewards and terminals mark the task's goal; the ant was sent to others too and walks on. "
       "Scores need D4RL's ant, not Gymnasium's.")
RECIPES = _mujoco("hopper") | {
    "hopper-skilled": _hopper("skilled", "hopper-skilled", note=SKILLED),
    "hopper-medium-skilled": _hopper("medium-skilled", "hopper-medium", "hopper-skilled",
                                     note=SKILLED),
    "hopper-medium-snapshot5": _hopper(
        "medium-snapshot5", "d4rl:hopper_online_5", published="hopper-medium",
        note="Snapshot 5 of D4RL's training, the released policy nearest to D4RL's hopper-medium."),
} | _mujoco("halfcheetah") | _mujoco("walker2d") | {
    f"antmaze-{kind}": _maze(f"antmaze-{kind}", f"AntMaze-{kind.partition('-')[0]}-v2", 1_000_000,
                             0.0, 1.0, note=ANT)
    for kind in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play",
                 "large-diverse")} | {
    # as many as D4RL's maze2d
    f"pointmaze-{kind}": _maze(f"pointmaze-{kind}", f"PointMaze_{word}-v3", steps)
    for kind, word, steps in (("umaze", "UMaze", 1_000_000), ("umaze-noisy", "UMaze", 1_000_000),
                             ("medium", "Medium", 2_000_000), ("large", "Large", 4_000_000))}


# ---------------------------------------------------------------------------------------------
# Policies: `draw` makes an episode's noise in advance, a call turns a batch of it into actions.
# ---------------------------------------------------------------------------------------------


class SacPolicy:
    """Tanh-Gaussian policy in NumPy, 2 hidden ReLU layers; weights as in `nn.Linear`.

    NumPy, so that a worker process need not load torch: it starts in a fraction of the time.
    low, high: (act_dim,) bounds of the actions, onto which [-1, 1] is stretched.
    """

    def __init__(self, weights: dict[str, np.ndarray], low=-1.0, high=1.0):
        get = lambda layer: (np.ascontiguousarray(weights[f"{layer}.weight"].T, np.float32),
                             np.asarray(weights[f"{layer}.bias"], np.float32))
        (self.w0, self.b0), (self.w1, self.b1) = get("fc0"), get("fc1")
        heads = get("last_fc"), get("last_fc_log_std")
        self.w2, self.b2 = (np.concatenate(pair, -1) for pair in zip(*heads))
        self.obs_dim, self.act_dim = self.w0.shape[0], self.w2.shape[1] // 2
        # 0 and 1 for bounds of -1 and 1, where this changes no bit
        self.middle = np.float32((np.asarray(high) + low) / 2)
        self.half = np.float32((np.asarray(high) - low) / 2)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Noise of one episode, (steps, act_dim) float32."""
        return rng.standard_normal((steps, self.act_dim), np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """(batch, obs_dim) and (batch, act_dim) float32 -> actions, (batch, act_dim) float32."""
        h = np.maximum(obs @ self.w0 + self.b0, 0)
        h = np.maximum(h @ self.w1 + self.b1, 0)
        mean, log_std = np.split(h @ self.w2 + self.b2, 2, -1)
        std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))
        return np.tanh(mean + std * noise) * self.half + self.middle


class UniformPolicy:
    """Uniform random actions in the box `low`..`high`, (act_dim,) each."""

    def __init__(self, low: np.ndarray, high: np.ndarray, obs_dim: int):
        self.low, self.high = low.astype(np.float32), high.astype(np.float32)
        self.obs_dim, self.act_dim = obs_dim, len(low)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """The actions of one episode, (steps, act_dim) float32."""
        return rng.uniform(self.low, self.high, (steps, self.act_dim)).astype(np.float32)

    def __call__(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return noise


def spaces(env_id: str) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of a registered environment.

    Raises SystemExit if there is no such environment, no time limit, or a space is no vector Box.
    """
    try:
        env = gym.make(env_id, disable_env_checker=True)
    except (gym.error.Error, ImportError) as error:
        raise SystemExit(f"--env-id {env_id}: {error}")
    for word, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise SystemExit(f"--env-id {env_id}: {word} are {space}; they must be vectors (Box)")
    if env.spec.max_episode_steps is None:
        raise SystemExit(f"--env-id {env_id} has no time limit; register it with "
                         "max_episode_steps, or an episode may never end")
    bounds = env.action_space
    if not (np.isfinite(bounds.low).all() and np.isfinite(bounds.high).all()):
        raise SystemExit(f"--env-id {env_id}: the action box {bounds} is unbounded; no policy here "
                         "can act in it")
    env.close()
    return env.observation_space, env.action_space


def read_weights(path: Path) -> tuple[list[dict], list[int], dict]:
    """Policies of a weight file, oldest first, the steps at which they end, and its `about`.

    One policy has no steps: ([weights], [], about). A bundle (bundle_replay.py) stacks the layers
    of K policies, (K, out, in), and has K + 1 steps: random actions up to the first.
    Raises SystemExit if the file is missing or damaged.
    """
    if not path.exists():
        raise SystemExit(f"the policy {path} is missing. Train one with "
                         "algorithms/sac.py and choose with "
                         "benchmarks/select_behavior.py (see benchmarks/behavior/README.md).")
    try:
        with np.load(path) as file:
            about = json.loads(str(file["about"])) if "about" in file else {}
            arrays = {key: file[key] for key in file.files if key not in ("about", "ends")}
            ends = [int(end) for end in file["ends"]] if "ends" in file else []
        if not ends:
            return [arrays], [], about
        return ([{key: value[k] for key, value in arrays.items()} for k in range(len(ends) - 1)],
                ends, about)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise SystemExit(f"cannot read the policy {path}: {error}. Restore the file.")


def load_behavior(source: str, env_id: str, folder: Path) -> tuple[list, dict]:
    """The stages of a behaviour and what is known of it: file, sha256, training command, scores.

    source: a word of Recipe.behavior, or the path of a weight file. A stage is (policy, end): the
    policy acts until the behaviour has made `end` transitions; end None: without limit.
    Raises SystemExit if the weights are missing, damaged or made for another environment.
    """
    observations, actions = spaces(env_id)
    obs_dim, act_dim = observations.shape[0], actions.shape[0]
    uniform = UniformPolicy(actions.low, actions.high, obs_dim)
    if source == "random":
        return [(uniform, None)], {"policy": "uniform random actions"}
    if source.startswith("d4rl:"):
        name = f"{source.removeprefix('d4rl:')}.pkl"
        path, ends = policy_file(name), []
        policies = [read_snapshot(path)]
        about = {"policy": f"D4RL's own SAC snapshot {path.stem}, actions sampled", "file": name,
                 "url": POLICIES[name][0], "made_by": "D4RL (arXiv 2004.07219), released with "
                 "Deep OPE (arXiv 2103.16596) under Apache-2.0"}
    elif source.endswith(".pkl"):
        path, ends = Path(source), []
        policies = [read_snapshot(path)]
        about = {"policy": "SAC snapshot in D4RL's format, actions sampled", "file": path.name}
    else:
        path = Path(source) if source.endswith(".npz") else folder / f"{source}.npz"
        policies, ends, about = read_weights(path)
        snapshots = f"random actions, then {len(policies)} snapshots of a SAC training"
        words = snapshots if ends else f"SAC ({path.stem})"
        about = {"policy": f"{words}, actions sampled", "file": path.name} | about
        about |= {"last_step": ends[-1]} if ends else {}
    try:
        policies = [SacPolicy(weights, actions.low, actions.high) for weights in policies]
    except (KeyError, ValueError, AttributeError) as error:
        raise SystemExit(f"cannot read the policy {path}: {error} is missing or misshapen. "
                         "Restore the file.")
    for policy in policies:
        if (policy.obs_dim, policy.act_dim) != (obs_dim, act_dim):
            raise SystemExit(
                f"{path} maps {policy.obs_dim} observations to {policy.act_dim} actions, "
                f"{env_id} has {obs_dim} and {act_dim}.")
    about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return list(zip([uniform, *policies], ends)) if ends else [(policies[0], None)], about


# ---------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------


def dataset_id(recipe: Recipe, steps: int) -> str:
    """Minari id; D4RL's number of transitions goes without saying."""
    for unit, suffix in ((1_000_000, "m"), (1_000, "k"), (1, "")):
        if steps % unit == 0:
            size = "" if steps == recipe.steps else f"-{steps // unit}{suffix}"
            return f"rebuilt/{recipe.dataset}{size}-v0"


def comparable(recipe: Recipe, metadata: dict) -> Published | None:
    """D4RL's figures for a dataset of the recipe; None for a mere beginning of medium-replay."""
    partial = metadata["total_steps"] < metadata["behavior"].get("last_step", 0)
    return None if partial else recipe.published


def find_recipe(name: str) -> tuple[str, int | None]:
    """Key of RECIPES and size for a name or an id; no size in the name: None.

    'hopper-medium', 'rebuilt/hopper/medium-v0' -> ('hopper-medium', None);
    'rebuilt/hopper/medium-100k-v0' -> ('hopper-medium', 100_000).
    Raises SystemExit with the nearest names.
    """
    ids = {f"rebuilt/{recipe.dataset}": key for key, recipe in RECIPES.items()}
    if name in RECIPES:
        return name, None
    match = re.fullmatch(r"(.*?)(?:-(\d+)([km]?))?-v0", name)
    if match and match[1] in ids:
        unit = {"m": 1_000_000, "k": 1_000, "": 1, None: 1}[match[3]]
        return ids[match[1]], int(match[2]) * unit if match[2] else None
    known = [*RECIPES, *(f"{id_}-v0" for id_ in ids)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(RECIPES)
    raise SystemExit(f"unknown dataset {name!r}. Did you mean {', '.join(near)}?")
