"""Does more data help SAC offline?

The lecture shows SAC, trained on fixed expert demonstrations of HalfCheetah, for several numbers of
them (a figure of Kumar et al., 2019, arXiv 1906.00949): no run succeeds, the return falls with
training, more data do not cure it, and Q diverges for some sets. This is the same on Pendulum-v1,
which costs minutes instead of days.

The expert is no trained policy but a controller: it swings the pendulum up by adding energy, and
holds it by a linear law; its actions have Gaussian noise of deviation 0.1. algorithms/sac.py learns
from 200 to 20,000 of its steps, ten agents on the same rows, and, to compare, from 5,000 steps of
uniform actions.

Measured while they train: the return, and the value in which agents believe, which is the mean over
rows of min_i Q_i(s, pi(s)). Beside it stands what the expert really gets: the mean discounted sum
of rewards over the first half of its episodes, whose rest hardly counts at this discount. No reward
is positive, so no return is; but Q also holds the price of randomness (Eq. 1 of sac.py).

The learning rate, the discount and small networks are chosen for short runs.

    python -m benchmarks.studies.dataset_size --out runs/dataset-size      # minutes
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color, load_script, markdown_table, update_page
from benchmarks.studies.shared import shown, store, summary

sac = load_script("sac")
torch = sac.torch

BEGIN, END = "<!-- dataset_size:begin -->", "<!-- dataset_size:end -->"  # of the table on a page
ENV_ID = "Pendulum-v1"
EPISODE = 200  # steps, Pendulum's time limit
NOISE = 0.1  # deviation of the expert's, relative to the largest action
DISCOUNT = 0.95
SETTINGS = {"hidden": 64, "batch_size": 64, "lr": 1e-3, "polyak": 0.02, "discount": DISCOUNT}


@dataclass
class Args:
    out: Path = Path("runs/dataset-size")  # folder of the numbers and the picture
    seed: int = 0  # seed of data and trainings
    num_seeds: int = 10  # agents, trained together on the same rows
    sizes: tuple[int, ...] = (200, 1_000, 5_000, 20_000)  # steps of the expert, whole episodes
    random_size: int = 5_000  # steps of uniform actions
    num_updates: int = 2_000  # gradient updates
    eval_every: int = 200  # updates between evaluations
    episodes: int = 5  # of an evaluation, for each agent
    page: Path | None = None  # page that gets the table between its marks; None: it is printed


def expert(obs: np.ndarray) -> float:
    """Return the controller's action in [-1, 1]. Without noise its mean return is about -150."""
    angle, speed = np.arctan2(obs[1], obs[0]), obs[2]
    if abs(angle) < 0.5 and abs(speed) < 3:
        return float(np.clip(-(6 * angle + 1.5 * speed), -1, 1))
    # Energy of a rod of mass 1 and length 1 with gravity 10; it stands upright with 5.
    energy = speed**2 / 6 + 5 * np.cos(angle)
    return float(np.clip(1.5 * (5 - energy), -1, 1) * (1 if speed >= 0 else -1))


def make_data(task, size: int, seed: int, uniform: bool = False) -> dict:
    """Return columns of whole episodes, as sac.py draws its batches from."""
    env = sac.make_env(task)
    rng = np.random.default_rng(seed)
    keys = ("observations", "actions", "rewards", "terminals", "next_observations")
    columns = {key: [] for key in keys}
    for i in range(size // EPISODE):
        obs, _ = env.reset(seed=seed + i)
        for _ in range(EPISODE):
            action = rng.uniform(-1, 1)
            if not uniform:
                action = np.clip(expert(obs) + NOISE * rng.standard_normal(), -1, 1)
            action = np.array([action], np.float32)
            next_obs, reward, *_ = env.step(action)
            step = (obs, action, reward, 0.0, next_obs)
            for key, value in zip(keys, step, strict=True):
                columns[key].append(value)
            obs = next_obs
    env.close()
    return {key: np.array(column, np.float32) for key, column in columns.items()}


def discounted_return(rewards: np.ndarray) -> float:
    """Return the mean over the first half of the steps of episodes: (rows,) -> number."""
    episodes = rewards.reshape(-1, EPISODE).astype(np.float64)
    to_go = np.zeros_like(episodes)
    last = np.zeros(len(episodes))
    for t in reversed(range(EPISODE)):
        last = episodes[:, t] + DISCOUNT * last
        to_go[:, t] = last
    return float(to_go[:, : EPISODE // 2].mean())


def train(args: Args, columns: dict, task) -> dict:
    """Train all agents on these rows. Return their curves, (evaluations, N) each."""
    script_args = sac.Args(
        env="no-env-v0", num_seeds=args.num_seeds, num_updates=args.num_updates, **SETTINGS
    )
    torch.manual_seed(args.seed)
    agent = sac.SAC(script_args, task, "cpu")
    buffer = sac.ReplayBuffer(columns, script_args, torch.device("cpu"))
    rows = torch.as_tensor(columns["observations"][:: max(1, len(columns["rewards"]) // 1_000)])
    obs = rows.expand(args.num_seeds, *rows.shape)
    curves = {"updates": [], "returns": [], "values": []}
    for step in range(1, args.num_updates + 1):
        agent.update(buffer.sample())
        if step % args.eval_every == 0 or step == args.num_updates:
            with torch.no_grad():
                value = agent.critic(obs, agent.act(obs)).amin(1).mean(1)
            returns = sac.evaluate(agent, task, args.episodes).mean(1)
            curves["updates"].append(step)
            curves["returns"].append(returns.tolist())
            curves["values"].append(value.tolist())
    return curves


def study(args: Args) -> dict:
    """Train on every dataset. Return curves, and the numbers of the table."""
    task = sac.make_task(ENV_ID, "a controller", ENV_ID)
    datasets = {f"expert, {size:,}": (size, False) for size in args.sizes}
    datasets[f"random, {args.random_size:,}"] = (args.random_size, True)
    found = {}
    for name, (size, uniform) in datasets.items():
        columns = make_data(task, size, args.seed, uniform)
        curves = train(args, columns, task)
        returns, values = np.array(curves["returns"]), np.array(curves["values"])
        found[name] = curves | {
            "data_return": float(columns["rewards"].reshape(-1, EPISODE).sum(1).mean()),
            "data_value": discounted_return(columns["rewards"]),
            "first": summary(returns[0]),
            "last": summary(returns[-1]),
            "best": summary(returns.max(0)),
            "value": summary(values[-1]),
        }
        print(f"{name}: return {shown(found[name]['last'], 0)}", flush=True)
    return found


def table(found: dict) -> str:
    """Return the numbers as a table in Markdown."""
    header = ["data", "their return", "SAC, first evaluation", "last", "best of each agent"]
    header += ["value in the data", "value believed"]
    rows = []
    for name, numbers in found.items():
        row = [name, f"{numbers['data_return']:.0f}"]
        row += [shown(numbers[key], 0) for key in ("first", "last", "best")]
        row += [f"{numbers['data_value']:.1f}", shown(numbers["value"], 1)]
        rows.append(row)
    return markdown_table(header, rows)


def draw(found: dict) -> Figure:
    """Draw returns and believed values, mean and range of the agents."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks = ("bc", "iql", "td3_bc", "por", "spot", "awac", "cql", "rebrac")
    experts = [name for name in found if name.startswith("expert")]
    for name, numbers in found.items():
        color, dashes = algorithm_color("sac"), "--"
        if name in experts:
            color, dashes = algorithm_color(looks[experts.index(name) % len(looks)]), "-"
        for axes, key in ((left, "returns"), (right, "values")):
            curve = np.array(numbers[key])
            look = {"color": color, "linestyle": dashes, "linewidth": 2.5}
            axes.plot(numbers["updates"], curve.mean(1), label=name, **look)
            axes.fill_between(
                numbers["updates"], curve.min(1), curve.max(1), color=color, alpha=0.1
            )
    level = found[experts[-1]]["data_return"]
    left.axhline(level, color="0.5", linestyle=":", linewidth=1.5)
    left.text(0, level, " the expert", va="bottom", color="0.4")
    left.set_ylim(top=0)
    right.axhline(0, color="0.5", linestyle=":", linewidth=1.5)
    right.text(0, 0, " no return is larger", va="bottom", color="0.4")
    right.set_ylim(top=8)
    left.set_title("SAC offline on Pendulum: return", fontsize=13)
    right.set_title("Value that it believes in", fontsize=13)
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_xlabel("gradient updates")
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(fontsize=10, frameon=False, title="data, steps")
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if min(args.num_seeds, args.num_updates, args.eval_every, args.episodes) < 1:
        sys.exit("--num-seeds, --num-updates, --eval-every and --episodes must be at least 1")
    if not args.sizes or min(*args.sizes, args.random_size) < EPISODE:
        sys.exit(f"--sizes and --random-size must be at least {EPISODE}, an episode")
    found = study(args)
    store("dataset_size", args.out, "result", found, {"dataset_size.png": draw(found)})
    print(table(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, table(found))


if __name__ == "__main__":
    main()
