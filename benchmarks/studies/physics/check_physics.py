"""Do Gymnasium's environments move as D4RL's did? Three checks, each of which prints a table.

Without options, snapshots of D4RL's own trainings act in Gymnasium's v4 and v5 environments, and
their returns are set beside those that Deep OPE (arXiv 2103.16596) published from D4RL's
environments (gym on mujoco-py). If the physics carry over, v4 gives the published numbers.

    python -m benchmarks.studies.physics.check_physics
    python -m benchmarks.studies.physics.check_physics --write benchmarks/studies/physics/README.md

With --hands, the policies that made D4RL's Adroit experts act in Gymnasium-Robotics' hands (with
D4RL's reward), and their returns are set beside those that score 100 in D4RL, which are these
policies' own.

    python -m benchmarks.studies.physics.check_physics --hands

With --replay, a file in D4RL's layout holds for each step the simulator's state (infos/qpos,
infos/qvel), the observation made of it, and the action. The state is put into the environment, the
action is taken, and what comes out is compared with the next row. No policy and no chance are in
it: an error says that the physics differ (or that the file's states do not belong to its rows).

    python -m benchmarks.studies.physics.check_physics \\
        --replay ~/.d4rl/datasets/hopper_medium-v2.hdf5
"""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import tyro

from benchmarks.common import load_script, markdown_table, update_page
from benchmarks.datasets.d4rl_policies import policy_file, read_snapshot
from benchmarks.datasets.measure import measure
from benchmarks.datasets.policies import SacPolicy
from benchmarks.datasets.recipes import MUJOCO, RECIPES
from benchmarks.datasets.rollout import quiet, run_jobs

# Environment; mean and deviation of the return (github google-research/deep_ope,
# d4rl_policies.json)
PUBLISHED = {
    "halfcheetah_online_5": ("HalfCheetah", 9197.89, 125.41),
    "halfcheetah_online_10": ("HalfCheetah", 12695.70, 209.99),
    "walker_online_5": ("Walker2d", 3481.49, 87.13),
    "walker_online_10": ("Walker2d", 4120.95, 468.15),
    "hopper_online_5": ("Hopper", 1872.57, 793.89),
    "hopper_online_10": ("Hopper", 1290.77, 86.35),
}
NEEDED = ("observations", "actions", "rewards", "terminals", "timeouts", "infos/qpos", "infos/qvel")
SEED = 6  # of the episodes


@dataclass
class Args:
    hands: bool = False
    """let DAPG's policies act in the Adroit tasks"""
    replay: Path | None = None
    """HDF5 file in D4RL's layout whose states and actions are replayed"""
    env_id: str | None = None
    """environment of that file (default: by its name, hopper..., halfcheetah... or walker2d...)"""
    rows: int = 10_000
    """rows of the file that are replayed, evenly spread; all if it has fewer"""
    episodes: int = 50
    """episodes of each policy in each environment, with sampled actions"""
    write: Path | None = None
    """Markdown file whose table of policies is renewed, instead of printing it"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


# --------------------------------------------------------------------------------------------------
# Snapshots
# --------------------------------------------------------------------------------------------------


def snapshots(episodes: int, workers: int | None) -> str:
    """Return the table of the snapshots' returns in v4 and v5, beside the published ones."""
    jobs = []
    for name, (env, _, _) in PUBLISHED.items():
        policy = SacPolicy(read_snapshot(policy_file(f"{name}.pkl")))
        for kind in ("v4", "v5"):
            jobs.append((f"{env}-{kind}", policy, [SEED], episodes))
    scores = dict(run_jobs(measure, jobs, workers))
    rows = []
    for number, (name, (_, mean, std)) in enumerate(PUBLISHED.items()):
        v4, v5 = scores[2 * number], scores[2 * number + 1]
        row = [name, f"{v4.mean:.0f} ± {v4.std:.0f}", f"{v4.length:.0f}"]
        row += [f"{v5.mean:.0f} ± {v5.std:.0f}", f"{mean:.0f} ± {std:.0f}"]
        rows.append([*row, f"{v4.mean / mean:.3f}"])
    header = ["policy", "v4: return", "length", "v5: return", "published", "v4 / published"]
    return (
        f"{markdown_table(header, rows)}\n\n{episodes} episodes each, sampled actions, seed {SEED};"
        f" MuJoCo {mujoco.__version__}, Gymnasium {gym.__version__}."
    )


def hands(episodes: int, workers: int | None) -> str:
    """Return the table of the hands' returns, beside D4RL's references."""
    from benchmarks.datasets.hands import HANDS, load_hand  # other checks do without PyTorch

    jobs = []
    for hand in HANDS:
        env_id = f"benchmarks.datasets.hands:Adroit-{hand}-v1"
        jobs.append((env_id, load_hand(hand)[0], [SEED], episodes))
    scores = dict(run_jobs(measure, jobs, workers))
    rows = []
    for number, hand in enumerate(HANDS):
        score, published = scores[number], RECIPES[f"{hand}-expert"].ref_max
        error = score.std / episodes**0.5
        row = [hand, f"{score.mean:.0f} ± {error:.0f}", f"{score.length:.0f}"]
        rows.append([*row, f"{published:.0f}", f"{score.mean / published:.3f}"])
    header = ["policy", "return", "length", "D4RL's score of 100", "ours / D4RL's"]
    return (
        f"{markdown_table(header, rows)}\n\n{episodes} episodes each, sampled actions, seed {SEED};"
        f" ± is the standard error. MuJoCo {mujoco.__version__}, Gymnasium {gym.__version__}, "
        f"Gymnasium-Robotics {version('gymnasium-robotics')}."
    )


# --------------------------------------------------------------------------------------------------
# Replay
# --------------------------------------------------------------------------------------------------


def read_states(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file in D4RL's layout that holds states."""
    por = load_script("por")
    try:
        with h5py.File(path, "r") as file:
            por.refuse_foreign_data(file)
            missing = [key for key in NEEDED if key not in file]
            if missing:
                sys.exit(
                    f"{path} has no {', '.join(missing)}; a replay needs states, which D4RL's "
                    "Gym-MuJoCo files have from v1 on"
                )
            arrays = {key: file[key][()] for key in NEEDED}
            if "next_observations" in file:
                arrays["next_observations"] = file["next_observations"][()]
    except Exception as error:  # h5py raises nearly every type where a file is damaged
        sys.exit(f"{path} cannot be read as HDF5 in D4RL's layout: {por.one_line(error)}")
    rows = {len(array) for array in arrays.values()}
    if len(rows) > 1 or rows == {0}:
        sys.exit(f"{path}: its arrays are empty or differ in length")
    return arrays


def check_shapes(arrays: dict[str, np.ndarray], env: gym.Env) -> None:
    """Refuse a file of another environment."""
    shapes = {
        "infos/qpos": (env.model.nq,),
        "infos/qvel": (env.model.nv,),
        "actions": env.action_space.shape,
        "observations": env.observation_space.shape,
    }
    for key, shape in shapes.items():
        if arrays[key].shape[1:] != shape:
            sys.exit(
                f"{key} has rows of shape {arrays[key].shape[1:]}, but {env.spec.id} has {shape}; "
                "name the file's environment by --env-id"
            )


def next_observation(arrays: dict[str, np.ndarray], i: int) -> np.ndarray | None:
    """Return the observation after a row, or None where the file does not have it."""
    if "next_observations" in arrays:
        return arrays["next_observations"][i]
    ended = arrays["terminals"][i] or arrays["timeouts"][i]
    if ended or i + 1 == len(arrays["observations"]):
        return None
    return arrays["observations"][i + 1]


def replay(arrays: dict[str, np.ndarray], env_id: str, rows: int) -> dict[str, np.ndarray]:
    """Return what differs when rows of a file are taken again, a row per row that was taken.

    `state` is the observation of the recorded state less the recorded observation, `step` the next
    observation less the recorded one, `change` the recorded change of the observation, `reward` the
    difference of the rewards, and `terminal` says whether the terminals disagree.
    """
    env = gym.make(env_id, disable_env_checker=True).unwrapped
    check_shapes(arrays, env)
    env.reset(seed=0)
    count = len(arrays["rewards"])
    errors = {key: [] for key in ("state", "step", "change", "reward", "terminal")}
    for i in np.unique(np.linspace(0, count - 1, min(rows, count)).astype(int)):
        # The solver starts from the forces of the last step, which belong to another row.
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(arrays["infos/qpos"][i].astype(float), arrays["infos/qvel"][i].astype(float))
        recorded = arrays["observations"][i].astype(float)
        errors["state"].append(env._get_obs() - recorded)
        observation, reward, terminated, _, _ = env.step(arrays["actions"][i])
        errors["reward"].append(reward - arrays["rewards"][i])
        # The time limit is not replayed, and it may hide a terminal.
        differs = bool(terminated) != bool(arrays["terminals"][i])
        errors["terminal"].append(differs and not arrays["timeouts"][i])
        recorded_next = next_observation(arrays, i)
        if recorded_next is not None:
            errors["step"].append(observation - recorded_next)
            errors["change"].append(recorded_next - recorded)
    return {key: np.array(value) for key, value in errors.items()}


def report(errors: dict[str, np.ndarray], env_id: str) -> str:
    """Return the table of the errors of a replay."""
    kinds = {
        "state": "observation made of the recorded state",
        "step": "next observation",
        "reward": "reward",
    }
    rows = []
    for key, words in kinds.items():
        error = np.abs(errors[key])
        if len(error) > 0:
            values = (np.median(error), error.mean(), np.quantile(error, 0.99), error.max())
            rows.append([words, *(f"{value:.1e}" for value in values)])
    header = [f"{env_id}: absolute error", "median", "mean", "99%", "largest"]
    count, disagreeing = len(errors["reward"]), errors["terminal"].sum()
    text = (
        f"{markdown_table(header, rows)}\n\n{count} rows; terminals that disagree: {disagreeing}."
    )
    if len(errors["step"]) > 0:
        change = np.abs(errors["change"]).mean()
        share = np.abs(errors["step"]).mean() / change
        text += (
            f" The mean error of the next observation is {share:.1e} of the mean change in one "
            f"step ({change:.2g})."
        )
    return text


def env_id_of(args: Args) -> str:
    """Return the environment of a file."""
    if args.env_id is not None:
        return args.env_id
    for name, (env_id, _, _) in MUJOCO.items():
        if args.replay.name.startswith(name):
            return env_id
    sys.exit(
        f"{args.replay.name} does not begin with {', '.join(MUJOCO)}; name its environment by "
        "--env-id"
    )


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for name in ("rows", "episodes", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            sys.exit(f"--{name} {value}: must be at least 1")
    quiet()
    if args.replay is not None:
        env_id = env_id_of(args)
        try:
            print(report(replay(read_states(args.replay), env_id, args.rows), env_id))
        except gym.error.Error as error:
            sys.exit(f"--env-id {env_id}: {error}")
        return
    check = hands if args.hands else snapshots
    text = check(args.episodes, args.workers)
    marker = "check_physics.py --hands" if args.hands else "check_physics.py"
    if args.write is None:
        print(text)
    else:
        update_page(args.write, f"<!-- {marker} -->", f"<!-- end of {marker} -->", text)


if __name__ == "__main__":
    main()
