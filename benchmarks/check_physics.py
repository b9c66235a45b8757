"""Do Gymnasium's environments move as D4RL's did? Two checks, each prints a Markdown table.

Without options: snapshots of D4RL's own trainings act in Gymnasium's v4 and v5 environments, and
their returns are set beside those that Deep OPE (arXiv 2103.16596) published from D4RL's
environments (gym on mujoco-py). If the physics carried over, v4 would give the published numbers.

    python benchmarks/check_physics.py
    python benchmarks/check_physics.py --write benchmarks/DATASETS.md     # the table in that file

With --replay: a file in D4RL's layout holds for each step the simulator's state (infos/qpos,
infos/qvel), the observation made of it, and the action. The state is put into the environment, the
action is taken, and what comes out is compared with the next row. No policy and no chance are in
it: an error says that the physics differ (or that the file's states do not belong to its rows).

    python benchmarks/check_physics.py --replay ~/.d4rl/datasets/hopper_medium-v2.hdf5
"""

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import tyro
from collect import quiet
from d4rl_policies import policy_file, read_snapshot
from datasets_table import replace_section
from recipes import MUJOCO, SacPolicy
from select_behavior import measure, run_jobs

# Mean and deviation of the return (github google-research/deep_ope, d4rl_policies.json).
PUBLISHED = {"halfcheetah_online_5": (9197.89, 125.41), "halfcheetah_online_10": (12695.70, 209.99),
             "walker_online_5": (3481.49, 87.13), "walker_online_10": (4120.95, 468.15),
             "hopper_online_5": (1872.57, 793.89), "hopper_online_10": (1290.77, 86.35)}
NAMES = {"halfcheetah": "HalfCheetah", "walker": "Walker2d", "hopper": "Hopper"}
NEEDED = ("observations", "actions", "rewards", "terminals", "timeouts", "infos/qpos", "infos/qvel")
SEED = 6  # of the episodes; the measurements of behaviour policies have 1 to 5


@dataclass
class Args:
    replay: Path | None = None
    """HDF5 file in D4RL's layout whose states and actions are replayed"""
    env_id: str | None = None
    """environment of that file (default: by its name, hopper..., halfcheetah... or walker2d...)"""
    rows: int = 10_000
    """rows of the file that are replayed, evenly spread; all if it has fewer"""
    episodes: int = 50
    """episodes of each snapshot in each environment, with sampled actions"""
    write: Path | None = None
    """Markdown file whose table of snapshots is renewed, instead of printing it"""
    workers: int | None = None
    """processes that simulate (default: one per core)"""


def snapshots(episodes: int, workers: int | None) -> str:
    """Table of the snapshots' returns in v4 and v5, beside the published ones."""
    cases = [(name, version) for name in PUBLISHED for version in ("v4", "v5")]
    policies = {name: SacPolicy(read_snapshot(policy_file(f"{name}.pkl"))) for name in PUBLISHED}
    jobs = [(f"{NAMES[name.split('_')[0]]}-{version}", policies[name], [SEED], episodes)
            for name, version in cases]
    scores = {cases[number]: score for number, score in run_jobs(measure, jobs, workers)}
    lines = ["| policy | v4: return | length | v5: return | published | v4 / published |",
             "|---|---|---|---|---|---|"]
    show = lambda mean, std: f"{mean:.0f} ± {std:.0f}"
    for name, (mean, std) in PUBLISHED.items():
        v4, v5 = scores[name, "v4"], scores[name, "v5"]
        lines.append(f"| {name} | {show(v4.mean, v4.std)} | {v4.length:.0f} | "
                     f"{show(v5.mean, v5.std)} | {show(mean, std)} | {v4.mean / mean:.3f} |")
    lines.append(f"\n{episodes} episodes each, sampled actions, seed {SEED}; MuJoCo "
                 f"{mujoco.__version__}, Gymnasium {gym.__version__}.")
    return "\n".join(lines)


def read_states(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file in D4RL's layout that has states. Raises SystemExit if it is none."""
    try:
        with h5py.File(path) as file:
            if missing := [key for key in NEEDED if key not in file]:
                raise SystemExit(f"{path}: {', '.join(missing)} missing; a replay needs states "
                                 "(D4RL's Gym-MuJoCo files have them from v1 on)")
            arrays = {key: np.asarray(file[key]) for key in NEEDED}
            if "next_observations" in file:
                arrays["next_observations"] = np.asarray(file["next_observations"])
    except OSError as error:
        raise SystemExit(f"{path}: no readable HDF5 file ({error})")
    if len({len(array) for array in arrays.values()}) > 1 or not len(arrays["rewards"]):
        raise SystemExit(f"{path}: its arrays are empty or differ in length")
    return arrays


def replay(arrays: dict[str, np.ndarray], env_id: str, rows: int) -> dict[str, np.ndarray]:
    """Errors of replayed rows: what the environment gives, minus what the file has.

    Returns `state`, the observation made of the recorded state (n, obs_dim); `step` and `change`,
    the next observation and how far it lies from this one, for rows whose next one is known;
    `reward` (n,); `terminal` (n,) bool, where they disagree. Raises SystemExit if they do not fit.
    """
    env = gym.make(env_id, disable_env_checker=True).unwrapped
    widths = {"infos/qpos": (env.model.nq,), "infos/qvel": (env.model.nv,),
              "actions": env.action_space.shape, "observations": env.observation_space.shape}
    for key, shape in widths.items():
        if arrays[key].shape[1:] != shape:
            raise SystemExit(f"{key} has rows of shape {arrays[key].shape[1:]}, {env_id} {shape}; "
                             "name the file's environment by --env-id")
    env.reset(seed=0)
    count = len(arrays["rewards"])
    ends = (arrays["terminals"] > 0) | (arrays["timeouts"] > 0)
    errors = {key: [] for key in ("state", "step", "change", "reward", "terminal")}
    for i in np.unique(np.linspace(0, count - 1, min(rows, count)).astype(int)):
        # the solver starts from the last step's forces: forget those of another row
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(arrays["infos/qpos"][i].astype(float), arrays["infos/qvel"][i].astype(float))
        here = arrays["observations"][i].astype(float)
        errors["state"].append(env._get_obs() - here)
        observation, reward, terminated, _, _ = env.step(arrays["actions"][i])
        errors["reward"].append(reward - arrays["rewards"][i])
        # a row that is the file's terminal may be cut as well; the time limit is not replayed
        errors["terminal"].append(not arrays["timeouts"][i]
                                  and bool(terminated) != bool(arrays["terminals"][i]))
        following = (arrays["next_observations"][i] if "next_observations" in arrays else
                     arrays["observations"][i + 1] if i + 1 < count and not ends[i] else None)
        if following is not None:
            errors["step"].append(observation - following)
            errors["change"].append(following - here)
    return {key: np.array(value) for key, value in errors.items()}


def report(errors: dict[str, np.ndarray], env_id: str) -> str:
    """Table of the errors of a replay."""
    lines = [f"| {env_id}: absolute error | median | mean | 99% | largest |",
             "|---|---|---|---|---|"]
    for key, words in (("state", "observation made of the recorded state"),
                       ("step", "next observation"), ("reward", "reward")):
        if len(error := np.abs(errors[key])):
            values = np.median(error), error.mean(), np.quantile(error, 0.99), error.max()
            lines.append(f"| {words} | " + " | ".join(f"{v:.1e}" for v in values) + " |")
    count = len(errors["reward"])
    lines.append(f"\n{count} rows; terminals that disagree: {int(errors['terminal'].sum())}.")
    if len(errors["step"]):
        share = np.abs(errors["step"]).mean() / np.abs(errors["change"]).mean()
        lines[-1] += (f" The mean error of the next observation is {share:.1e} of the mean change "
                      f"in one step ({np.abs(errors['change']).mean():.2g}).")
    return "\n".join(lines)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for option in ("rows", "episodes", "workers"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise SystemExit(f"--{option} {value}: must be at least 1")
    quiet()
    try:
        if args.replay is None:
            text = snapshots(args.episodes, args.workers)
            replace_section(args.write, "check_physics.py", text) if args.write else print(text)
            return
        by_name = [ids[0] for name, ids in MUJOCO.items() if args.replay.name.startswith(name)]
        env_id = args.env_id or (by_name[0] if by_name else None)
        if env_id is None:
            raise SystemExit(f"{args.replay.name} does not begin with {', '.join(MUJOCO)}; name "
                             "its environment by --env-id")
        print(report(replay(read_states(args.replay), env_id, args.rows), env_id))
    except gym.error.Error as error:
        raise SystemExit(f"--env-id {args.env_id}: {error}")
    except KeyboardInterrupt:
        raise SystemExit("stopped")


if __name__ == "__main__":
    main()
