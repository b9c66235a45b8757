"""List the datasets that collect.py makes: where which policies act, for how long, which scores.

    python -m benchmarks.datasets.recipes

A recipe names its behaviour policies. Each collects an equal share, one after the other:

    random               uniform actions
    hopper-medium        weights in benchmarks/datasets/behavior/: a file with one policy, or a
                         bundle of snapshots of one training, each of which acts for the steps for
                         which it stands
    d4rl:hopper_online_5 a snapshot of D4RL's own training, see d4rl_policies.py
    dapg:pen             the policy that made D4RL's pen-expert, see hands.py
    maze                 a way through a maze from waypoint to waypoint, see mazes.py
    ball                 the same in D4RL's own Maze2D, see balls.py

D4RL's recipes are d4rl/scripts/generation/mujoco/collect_data.py and stitch_dataset.py: actions are
sampled, `random` is action_space.sample(), and medium-expert is medium's file followed by expert's.
"""

import difflib
import re
import sys
from dataclasses import dataclass
from typing import NamedTuple

import tyro


class Published(NamedTuple):
    """D4RL's own dataset: mean and deviation of the return of its complete episodes, its size."""

    mean: float
    std: float
    transitions: int
    episodes: int

    def followed_by(self, other: "Published") -> "Published":
        """Return the statistics of this dataset and the other one in one file."""
        episodes = self.episodes + other.episodes
        mean = (self.episodes * self.mean + other.episodes * other.mean) / episodes
        squares = self.episodes * (self.std**2 + self.mean**2)
        squares += other.episodes * (other.std**2 + other.mean**2)
        std = (squares / episodes - mean**2) ** 0.5
        return Published(mean, std, self.transitions + other.transitions, episodes)


@dataclass(frozen=True)
class Recipe:
    """One dataset."""

    dataset: str  # its id without the namespace and the version: environment/level
    env_id: str
    behavior: tuple[str, ...]
    steps: int  # transitions of D4RL's set; an id of this size does not name it
    ref_min: float | None = None  # return with normalized score 0
    ref_max: float | None = None  # return with normalized score 100
    published: Published | None = None
    note: str = ""  # what a reader must know; becomes a part of the dataset's description

    @property
    def name(self) -> str:
        return self.dataset.replace("/", "-", 1)


# Returns over the complete episodes of D4RL's v2 files, as the loader of the Decision Transformer
# (github kzl/decision-transformer, gym/experiment.py) prints them; transitions of the files;
# episodes from the same logs, those of the random sets from TensorFlow Datasets' catalogue.
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
for _name in ("halfcheetah", "hopper", "walker2d"):
    PUBLISHED[f"{_name}-medium-expert"] = PUBLISHED[f"{_name}-medium"].followed_by(
        PUBLISHED[f"{_name}-expert"]
    )

# Environment and the returns that score 0 and 100 (d4rl/infos.py)
MUJOCO = {
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
}

CHEETAH_EXPERT = (
    "The policy is snapshot 10 of D4RL's training, which is better than the one of D4RL's own "
    "expert set: it scores about 100, that one 88."
)
WALKER_EXPERT = (
    "The policy is snapshot 10 of D4RL's training, which is weaker than the one of D4RL's own "
    "expert set: it scores about 87 in Walker2d-v4, that one 107."
)
SKILLED = "The policy `skilled` is the best that a short training reached; it is no expert."
SNAPSHOT5 = (
    "Snapshot 5 of D4RL's training is the released policy that is nearest to D4RL's hopper-medium."
)
ANT = (
    "Rewards and terminals mark the task's goal; the ant was also sent to others, and walks on. "
    "Scores need D4RL's ant, not Gymnasium's."
)


def mujoco(
    dataset: str, *behavior: str, steps: int = 1_000_000, published: str = "", note: str = ""
) -> Recipe:
    """Return a recipe for one of D4RL's Gym-MuJoCo environments."""
    env_id, ref_min, ref_max = MUJOCO[dataset.split("/")[0]]
    figures = PUBLISHED.get(published or dataset.replace("/", "-"))
    return Recipe(dataset, env_id, behavior, steps, ref_min, ref_max, figures, note)


def antmaze(kind: str) -> Recipe:
    """Return the recipe of one of D4RL's AntMaze sets."""
    env_id = f"AntMaze-{kind.split('-')[0]}-v2"
    return Recipe(f"antmaze/{kind}", env_id, ("maze",), 1_000_000, 0.0, 1.0, note=ANT)


def adroit(hand: str, steps: int, ref_min: float, ref_max: float) -> Recipe:
    """Return the recipe of one of D4RL's Adroit experts. Its returns are not published."""
    env_id = f"benchmarks.datasets.hands:Adroit-{hand}-v1"
    return Recipe(f"{hand}/expert", env_id, (f"dapg:{hand}",), steps, ref_min, ref_max)


def adroit_binary(hand: str) -> Recipe:
    """Return the recipe of the same with a reward of 0 after success, and -1 before."""
    env_id = f"benchmarks.datasets.hands:Adroit-{hand}-binary-v0"
    return Recipe(f"{hand}/binary-expert", env_id, (f"dapg:{hand}",), 100_000)


def maze2d(maze: str, steps: int, ref_min: float, ref_max: float) -> Recipe:
    """Return the recipe of one of D4RL's Maze2D sets with sparse rewards."""
    env_id = f"benchmarks.datasets.balls:Maze2D-{maze}-v1"
    return Recipe(f"maze2d/{maze}", env_id, ("ball",), steps, ref_min, ref_max)


def pointmaze(kind: str, env_id: str, steps: int) -> Recipe:
    """Return the recipe of a set as Minari's D4RL/pointmaze. Its size is that of D4RL's maze2d."""
    return Recipe(f"pointmaze/{kind}", env_id, ("maze",), steps)


# Hopper's expert needs a policy that is not there yet: D4RL's released snapshot 10 is weaker than
# medium.
ALL_RECIPES = [
    mujoco("hopper/random", "random"),
    mujoco("hopper/medium", "hopper-medium"),
    mujoco("hopper/medium-replay", "hopper-medium-replay", steps=402_000),
    mujoco("hopper/medium-expert", "hopper-medium", "hopper-expert", steps=2_000_000),
    mujoco("hopper/expert", "hopper-expert"),
    mujoco("hopper/skilled", "hopper-skilled", note=SKILLED),
    mujoco(
        "hopper/medium-skilled", "hopper-medium", "hopper-skilled", steps=2_000_000, note=SKILLED
    ),
    mujoco(
        "hopper/medium-snapshot5",
        "d4rl:hopper_online_5",
        published="hopper-medium",
        note=SNAPSHOT5,
    ),
    mujoco("halfcheetah/random", "random"),
    mujoco("halfcheetah/medium", "halfcheetah-medium"),
    mujoco("halfcheetah/medium-replay", "halfcheetah-medium-replay", steps=202_000),
    mujoco(
        "halfcheetah/medium-expert",
        "halfcheetah-medium",
        "d4rl:halfcheetah_online_10",
        steps=2_000_000,
        note=CHEETAH_EXPERT,
    ),
    mujoco("halfcheetah/expert", "d4rl:halfcheetah_online_10", note=CHEETAH_EXPERT),
    mujoco("walker2d/random", "random"),
    mujoco("walker2d/medium", "walker2d-medium"),
    mujoco("walker2d/medium-replay", "walker2d-medium-replay", steps=302_000),
    mujoco(
        "walker2d/medium-expert",
        "walker2d-medium",
        "d4rl:walker_online_10",
        steps=2_000_000,
        note=WALKER_EXPERT,
    ),
    mujoco("walker2d/expert", "d4rl:walker_online_10", note=WALKER_EXPERT),
    antmaze("umaze"),
    antmaze("umaze-diverse"),
    antmaze("medium-play"),
    antmaze("medium-diverse"),
    antmaze("large-play"),
    antmaze("large-diverse"),
    adroit("pen", 500_000, 96.262799, 3076.8331018),
    adroit("hammer", 1_000_000, -274.856578, 12794.1348252),
    adroit("door", 1_000_000, -56.512833, 2880.5693087),
    adroit("relocate", 1_000_000, -6.425911, 4233.8777977),
    adroit_binary("pen"),
    adroit_binary("door"),
    adroit_binary("relocate"),
    maze2d("umaze", 1_000_000, 23.85, 161.86),
    maze2d("medium", 2_000_000, 13.13, 277.39),
    maze2d("large", 4_000_000, 6.7, 273.99),
    pointmaze("umaze", "PointMaze_UMaze-v3", 1_000_000),
    pointmaze("umaze-noisy", "PointMaze_UMaze-v3", 1_000_000),
    pointmaze("medium", "PointMaze_Medium-v3", 2_000_000),
    pointmaze("large", "PointMaze_Large-v3", 4_000_000),
]
RECIPES = {recipe.name: recipe for recipe in ALL_RECIPES}


def dataset_id(recipe: Recipe, steps: int) -> str:
    """Return the Minari id of a dataset, which names a size other than D4RL's."""
    if steps == recipe.steps:
        size = ""
    elif steps % 1_000_000 == 0:
        size = f"-{steps // 1_000_000}m"
    elif steps % 1_000 == 0:
        size = f"-{steps // 1_000}k"
    else:
        size = f"-{steps}"
    return f"rebuilt/{recipe.dataset}{size}-v0"


def find_recipe(name: str) -> tuple[str, int | None]:
    """Return the key of RECIPES and the size, if there is one, for a name or an id.

    'hopper-medium', 'rebuilt/hopper/medium-v0' -> ('hopper-medium', None);
    'rebuilt/hopper/medium-100k-v0' -> ('hopper-medium', 100_000).
    """
    if name in RECIPES:
        return name, None
    match = re.fullmatch(r"rebuilt/(.*?)(?:-(\d+)([km]?))?-v0", name)
    if match is not None:
        key = match[1].replace("/", "-", 1)
        if key in RECIPES and RECIPES[key].dataset == match[1]:
            unit = {"m": 1_000_000, "k": 1_000, "": 1, None: 1}[match[3]]
            return key, None if match[2] is None else int(match[2]) * unit
    known = [*RECIPES, *(dataset_id(recipe, recipe.steps) for recipe in ALL_RECIPES)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(RECIPES)
    sys.exit(f"there is no recipe for {name}; did you mean {', '.join(near)}?")


def comparable(recipe: Recipe, metadata: dict) -> Published | None:
    """Return D4RL's figures for a dataset, or None for a mere beginning of medium-replay."""
    if metadata["total_steps"] < metadata["behavior"].get("last_step", 0):
        return None
    return recipe.published


@dataclass
class Args:
    """There are no options."""


def main() -> None:
    tyro.cli(Args, description=__doc__)
    print(f"{'name':<26} {'policies':<52} {'transitions':>11}  dataset")
    for name, recipe in RECIPES.items():
        policies = ", then ".join(recipe.behavior)
        print(f"{name:<26} {policies:<52} {recipe.steps:>11,}  {dataset_id(recipe, recipe.steps)}")


if __name__ == "__main__":
    main()
