"""Which algorithm can learn from which data?

Two figures of the lecture, shrunk to one small task. BEAR's (Kumar et al., 2019, arXiv 1906.00949,
Figures 3 and 5) trains on data of three qualities:

    random    uniform actions
    medium    a policy that is half trained
    optimal   the best policy of that training

by BEAR (bear.py), BCQ (bcq.py), naive RL (td3.py on fixed data) and BC (bc.py). BCQ's (Fujimoto et
al., 2019, arXiv 1812.02900, Sections 3 and 5) trains in four regimes:

    final buffer     all steps of a training with much exploration: noise N(0, 0.5^2)
    concurrent       the buffer of a training with noise N(0, 0.1^2), while it grows
    imitation        an expert's actions without noise
    imperfect        an expert who acts at random in 30 % of the steps, and with noise N(0, 0.3^2)
    demonstrations   in the others

by BCQ, naive RL, BC and VAE-BC, which is the VAE of bcq.py without the rest (phi 0 and one sample).
All begin with new networks and never act while they train.

Two trainings of TD3, which differ in their noise, make all data. Both begin with uniform actions,
and have one update after each later step. The one with little noise is the buffer of "concurrent";
the policies of its evaluations are the others' source. The best of them is the expert and makes
the optimal data. The first whose return is at least midway between that of uniform actions and the
best one makes the medium data. Medium and optimal data have noise N(0, 0.1^2), because BEAR's were
made by policies that act at random, too. Noise is relative to the largest action.

In BCQ's paper, behaviour and naive RL are both DDPG. At this size, DDPG learned in few agents even
online, the others settled on one constant action. So TD3 takes its place on both sides, and naive
RL is still what would learn if it could act.

"Concurrent" takes no second training beside the first: update t of the offline agent draws from the
steps that the buffer held at the behaviour's update t. As the offline agent never acts, that is the
same as training beside it.

There are five behaviour agents, and five agents of each algorithm: agent i learns from the steps
that behaviour agent i made, so intervals hold the luck of the data, too.

What is shrunk, for all: Pendulum-v1 instead of MuJoCo's bodies; 2,500 updates instead of a million,
from 3,500 steps, 1,000 of them random in the trainings; layers of 64 and 48 units instead of 400
and 300 (BC, TD3: 64 and 64), 120 instead of 750 in VAEs; batches of 32 instead of 100. The discount
is 0.95 and target networks follow at 0.02, for short runs; the authors have 0.99 and 0.005.
Learning rates (1e-3), phi and MMD's settings (bear.py's recipe `original`) are the authors', and so
is BEAR's warm-up as a share of the updates. BCQ chooses among ten samples, as in its paper; its
code has 100 when it acts.

    python -m benchmarks.studies.regimes --out runs/regimes      # about 15 minutes of one core
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks.common import (
    DATA_COLOR,
    algorithm_color,
    algorithm_marker,
    algorithm_name,
    load_script,
    markdown_table,
    update_page,
)
from benchmarks.studies.shared import half_interval, shown, store, summary

bc = load_script("bc")
bcq = load_script("bcq")
bear = load_script("bear")
td3 = load_script("td3")
torch = td3.torch

BEGIN, END = "<!-- regimes:begin -->", "<!-- regimes:end -->"  # of the tables on a page
HIDDEN = 64
VAE_HIDDEN = 120  # the same share of HIDDEN as the authors' 750 of 400
LR = 1e-3
DISCOUNT = 0.95
POLYAK = 0.02  # update rate of all target networks
QUALITIES = {
    "random": ("bear", "bcq", "td3", "bc"),
    "medium": ("bear", "bcq", "td3", "bc"),
    "optimal": ("bear", "bcq", "td3", "bc"),
}
REGIMES = {
    "final buffer": ("bcq", "td3", "bc", "vae_bc"),
    "concurrent": ("bcq", "td3", "bc", "vae_bc"),
    "imitation": ("bcq", "td3", "bc", "vae_bc"),
    "imperfect demonstrations": ("bcq", "td3", "bc", "vae_bc"),
}
# Names in the pictures; the others are those of benchmarks/common.py. VAE-BC borrows a look.
NAMES = {"td3": "naive RL", "vae_bc": "VAE-BC"}
LOOKS = {"vae_bc": "iql"}


@dataclass
class Args:
    out: Path = Path("runs/regimes")  # folder of the numbers and the picture
    env: str = "Pendulum-v1"  # Gymnasium id
    seed: int = 0  # seed of data and trainings
    num_seeds: int = 5  # behaviour agents, and agents of each algorithm
    random_steps: int = 1_000  # uniform actions before a behaviour agent's first update
    num_updates: int = 2_500  # of behaviour and offline agents
    batch_size: int = 32  # steps per update and agent
    eval_every: int = 250  # updates between evaluations
    episodes: int = 5  # of an evaluation, for each agent
    page: Path | None = None  # page that gets the tables between its marks; None: they are printed


# --------------------------------------------------------------------------------------------------
# Data
# --------------------------------------------------------------------------------------------------


class Recorder:
    """N environments, one for each agent, and the steps in them in their order."""

    def __init__(self, task, num_seeds: int, capacity: int, seed: int):
        self.seed = seed
        self.size = 0  # steps so far
        self.envs = [td3.make_env(task) for _ in range(num_seeds)]
        self.obs = [td3.reset_env(env, seed, i, 0) for i, env in enumerate(self.envs)]
        self.columns = {
            "observations": torch.zeros(num_seeds, capacity, task.obs_dim),
            "actions": torch.zeros(num_seeds, capacity, task.act_dim),
            "rewards": torch.zeros(num_seeds, capacity),
            "terminals": torch.zeros(num_seeds, capacity),
            "next_observations": torch.zeros(num_seeds, capacity, task.obs_dim),
        }
        self.running = np.zeros(num_seeds)  # returns of the present episodes
        self.returns = [[] for _ in range(num_seeds)]  # of the complete ones

    def present(self) -> "torch.Tensor":
        """Return the present observations: (N, obs)."""
        return torch.as_tensor(np.stack(self.obs), dtype=torch.float32)

    def step(self, actions: "torch.Tensor") -> None:
        """Take one step in each environment: actions (N, act)."""
        actions = actions.clamp(-1, 1)
        self.columns["observations"][:, self.size] = self.present()
        self.columns["actions"][:, self.size] = actions
        for i, (env, action) in enumerate(zip(self.envs, actions.numpy(), strict=True)):
            obs, reward, terminated, truncated, _ = env.step(action)
            self.columns["rewards"][i, self.size] = float(reward)
            self.columns["terminals"][i, self.size] = float(terminated)
            self.columns["next_observations"][i, self.size] = torch.as_tensor(obs)
            self.running[i] += reward
            if terminated or truncated:
                self.returns[i].append(float(self.running[i]))
                self.running[i] = 0
                obs = td3.reset_env(env, self.seed, i, self.size + 1)
            self.obs[i] = obs
        self.size += 1

    def sample(self, batch_size: int, limit: int) -> dict:
        """Return random ones of the first `limit` steps, its own for each agent: (N, B, ...)."""
        num_seeds = len(self.envs)
        rows = torch.randint(limit, (num_seeds, batch_size))
        agents = torch.arange(num_seeds).unsqueeze(1)
        return {key: column[agents, rows] for key, column in self.columns.items()}

    def data_return(self) -> dict:
        """Return the mean return of the complete episodes, with one number per agent."""
        return summary([np.mean(returns) if returns else None for returns in self.returns])


@torch.no_grad()
def noisy(policy, obs, noise: float, random_share: float):
    """Return actions (N, act): uniform ones in a share of the steps, else pi(s) with noise."""
    action = policy(obs.unsqueeze(1)).squeeze(1).tanh()
    action = action + noise * torch.randn_like(action)
    uniform = 2 * torch.rand_like(action) - 1
    at_random = torch.rand(len(action), 1) < random_share
    return torch.where(at_random, uniform, action)


def record(args: Args, task, policy, noise: float, random_share: float, seed: int) -> Recorder:
    """Let every agent's policy act for as many steps as a behaviour's training has."""
    steps = args.random_steps + args.num_updates
    recorder = Recorder(task, args.num_seeds, steps, seed)
    for _ in range(steps):
        recorder.step(noisy(policy, recorder.present(), noise, random_share))
    return recorder


def train_behavior(args: Args, task, noise: float, seed: int) -> tuple[Recorder, dict, list]:
    """Train TD3 online. Return its steps, its curve, and the policies of its evaluations."""
    torch.manual_seed(seed)
    agent = make_agent("td3", args, task)
    updates = make_updates("td3", agent)
    recorder = Recorder(task, args.num_seeds, args.random_steps + args.num_updates, seed)
    for _ in range(args.random_steps):
        recorder.step(noisy(agent.policy, recorder.present(), noise, random_share=1))
    curve = {"updates": [], "returns": []}
    policies = []
    for step in range(1, args.num_updates + 1):
        recorder.step(noisy(agent.policy, recorder.present(), noise, random_share=0))
        updates[step % len(updates)](recorder.sample(args.batch_size, recorder.size))
        if step % args.eval_every == 0 or step == args.num_updates:
            curve["updates"].append(step)
            curve["returns"].append(td3.evaluate(agent, task, args.episodes).mean(1).tolist())
            policies.append(copy.deepcopy(agent.policy))
    print(f"behaviour with noise {noise}: last return {shown(summary(curve['returns'][-1]), 0)}")
    return recorder, curve, policies


def choose_policies(returns: np.ndarray, random_return: float) -> tuple[np.ndarray, np.ndarray]:
    """Return which evaluation (N,) has each agent's half-trained policy, and which its best one.

    `returns` are (evaluations, N).
    """
    best = returns.argmax(0)
    middle = (returns.max(0) + random_return) / 2
    return (returns >= middle).argmax(0), best


def pick(policies: list, which: np.ndarray):
    """Return the policies of which agent i is that of evaluation which[i]."""
    picked = copy.deepcopy(policies[0])
    sources = [list(policy.parameters()) for policy in policies]
    with torch.no_grad():
        for k, weight in enumerate(picked.parameters()):
            for i, evaluation in enumerate(which):
                weight[i] = sources[evaluation][k][i]
    return picked


# --------------------------------------------------------------------------------------------------
# Offline training
# --------------------------------------------------------------------------------------------------


def make_agent(name: str, args: Args, task):
    """Return new agents of an algorithm."""
    common = {"env": "no-env-v0", "num_seeds": args.num_seeds, "num_updates": args.num_updates}
    common |= {"batch_size": args.batch_size, "hidden": HIDDEN}
    if name == "bc":
        return bc.BC(bc.Args(**common, policy="deterministic", lr=LR), task, "cpu")
    common |= {"discount": DISCOUNT, "polyak": POLYAK}
    if name == "td3":
        return td3.TD3(td3.Args(**common, lr=LR), task, "cpu")
    common["vae_hidden"] = VAE_HIDDEN
    if name == "bear":
        warmup = args.num_updates // 50
        script_args = bear.Args(**common, recipe="original", warmup_updates=warmup)
        return bear.BEAR(bear.apply_settings(script_args), task, "cpu")
    if name == "vae_bc":
        imitation = {"phi": 0.0, "num_samples": 1, "test_samples": 1}
        return bcq.BCQ(bcq.Args(**common, **imitation), task, "cpu")
    return bcq.BCQ(bcq.Args(**common, test_samples=10), task, "cpu")


def make_updates(name: str, agent) -> list:
    """Return the functions of a batch that take turns."""
    if name != "vae_bc":
        return agent.phases[0].updates

    def update_vae(batch):
        # One sample and phi 0 leave Q and xi without a say, so they need no updates.
        loss = agent.vae_loss(batch["observations"], batch["actions"])
        bcq.minimize(agent.optimizers["vae"], loss)

    return [update_vae]


def train(name: str, args: Args, task, recorder: Recorder, grows: bool) -> dict:
    """Train an algorithm's agents on recorded steps. Return their curve, and its last quarter."""
    torch.manual_seed(args.seed)
    agent = make_agent(name, args, task)
    updates = make_updates(name, agent)
    curve = {"updates": [], "returns": []}
    for step in range(1, args.num_updates + 1):
        limit = args.random_steps + step if grows else recorder.size
        batch = recorder.sample(args.batch_size, limit)
        batch["held_out"] = torch.zeros_like(batch["rewards"])  # bc.py would validate on such rows
        updates[step % len(updates)](batch)
        if step % args.eval_every == 0 or step == args.num_updates:
            curve["updates"].append(step)
            curve["returns"].append(td3.evaluate(agent, task, args.episodes).mean(1).tolist())
    return curve | {"last": last_quarter(curve["returns"])}


def last_quarter(returns: list) -> dict:
    """Return the mean of the last quarter of the evaluations, with one number per agent."""
    curve = np.array(returns)
    return summary(curve[-max(1, len(curve) // 4) :].mean(0))


# --------------------------------------------------------------------------------------------------
# The study
# --------------------------------------------------------------------------------------------------


def make_data(args: Args, task) -> tuple[dict, dict]:
    """Return the recorders of all panels, and the curves of the two behaviour trainings."""
    explorer, exploring, _ = train_behavior(args, task, 0.5, args.seed + 1)
    learner, learning, policies = train_behavior(args, task, 0.1, args.seed + 2)
    at_random = record(args, task, policies[0], 0, 1, args.seed + 3)
    random_return = np.mean(np.concatenate([*at_random.returns]))
    half, best = choose_policies(np.array(learning["returns"]), random_return)
    expert = pick(policies, best)
    data = {
        "random": at_random,
        "medium": record(args, task, pick(policies, half), 0.1, 0, args.seed + 4),
        "optimal": record(args, task, expert, 0.1, 0, args.seed + 5),
        "final buffer": explorer,
        "concurrent": learner,
        "imitation": record(args, task, expert, 0, 0, args.seed + 6),
        "imperfect demonstrations": record(args, task, expert, 0.3, 0.3, args.seed + 7),
    }
    curves = {"final buffer": exploring, "concurrent": learning}
    updates = np.array(learning["updates"])
    curves["medium"] = {"updates": updates[half].tolist()}
    curves["optimal"] = {"updates": updates[best].tolist()}
    return data, curves


def study(args: Args) -> dict:
    """Make all data and train on them. Return the curves, and the numbers of the tables."""
    task = td3.make_task(args.env, "behaviour agents", args.env)
    task.obs_mean = [0.0] * task.obs_dim  # bc.py would standardise; the papers do not
    task.obs_std = [1.0] * task.obs_dim
    data, behavior = make_data(args, task)
    panels = {}
    for panel, algorithms in (QUALITIES | REGIMES).items():
        panels[panel] = {"data_return": data[panel].data_return(), "algorithms": {}}
        for name in algorithms:
            curve = train(name, args, task, data[panel], grows=panel == "concurrent")
            panels[panel]["algorithms"][name] = curve
            print(f"{panel}, {name}: return {shown(curve['last'], 0)}", flush=True)
    return {"env": args.env, "behavior": behavior, "panels": panels}


def label(name: str) -> str:
    """Return what an algorithm is called here."""
    return NAMES.get(name, algorithm_name(name))


def tables(found: dict) -> str:
    """Return the numbers as two tables in Markdown."""
    parts = []
    for group in (QUALITIES, REGIMES):
        algorithms = next(iter(group.values()))
        header = ["data", "their return", *map(label, algorithms)]
        rows = []
        for panel in group:
            numbers = found["panels"][panel]
            row = [panel, shown(numbers["data_return"], 0)]
            row += [shown(numbers["algorithms"][name]["last"], 0) for name in algorithms]
            rows.append(row)
        parts.append(markdown_table(header, rows))
    return "\n\n".join(parts)


def draw_curve(axes, curve: dict, look: dict) -> None:
    """Draw the mean over agents and its 95 % interval."""
    returns = np.array(curve["returns"])
    mean = returns.mean(1)
    axes.plot(curve["updates"], mean, **look)
    if returns.shape[1] > 1:
        half = np.array([half_interval(values) for values in returns])
        color = look["color"]
        axes.fill_between(curve["updates"], mean - half, mean + half, color=color, alpha=0.12, lw=0)


def draw(found: dict) -> Figure:
    """Draw one panel for each set of data, three above and four below."""
    figure = Figure(figsize=(15, 7.6), layout="constrained")
    above, below = figure.subfigures(2, 1)
    for part, group, title in (
        (above, QUALITIES, "Quality of the data (BEAR's figures 3 and 5)"),
        (below, REGIMES, "BCQ's four regimes"),
    ):
        part.suptitle(f"{title}, {found['env']}", fontsize=14)
        all_axes = part.subplots(1, len(group), sharey=True)
        for axes, (panel, algorithms) in zip(all_axes, group.items(), strict=True):
            numbers = found["panels"][panel]
            for name in algorithms:
                script = LOOKS.get(name, name)
                look = {"color": algorithm_color(script), "marker": algorithm_marker(script)}
                look |= {"label": label(name), "linewidth": 2.2, "markersize": 6}
                draw_curve(axes, numbers["algorithms"][name], look)
            dashed = {"color": DATA_COLOR, "linestyle": "--", "linewidth": 1.8}
            if numbers["data_return"]["mean"] is not None:
                level = numbers["data_return"]["mean"]
                axes.axhline(level, **dashed, label="mean of the data")
            if panel == "concurrent":
                behavior = found["behavior"][panel]
                dotted = dashed | {"linestyle": ":", "label": "the behaviour meanwhile"}
                axes.plot(behavior["updates"], np.mean(behavior["returns"], 1), **dotted)
            axes.set_title(panel, fontsize=12)
            axes.set_xlabel("gradient updates")
            axes.set_xlim(left=0)
            axes.spines[["top", "right"]].set_visible(False)
        all_axes[0].set_ylabel("return")
        shown_axes = all_axes[1] if group is REGIMES else all_axes[0]
        handles, labels = shown_axes.get_legend_handles_labels()
        part.legend(handles, labels, loc="outside right center", fontsize=10, frameon=False)
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    counts = (args.num_seeds, args.num_updates, args.batch_size, args.eval_every, args.episodes)
    if min(*counts, args.random_steps) < 1:
        sys.exit(
            "--num-seeds, --random-steps, --num-updates, --batch-size, --eval-every and --episodes "
            "must be at least 1"
        )
    found = study(args)
    store("regimes", args.out, "result", found, {"regimes.png": draw(found)})
    print(tables(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, tables(found))


if __name__ == "__main__":
    main()
