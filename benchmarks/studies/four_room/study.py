"""What makes POR POR: stitching of states, and a guide that learns new tasks while pi stays.

The authors' talk claims two things for the split of a policy into a guide g(s) and an
execute-policy pi(a|s,s') that no table of scores shows. Here they are put to the test.

- Stitching. Data are paths over a grid. Who chains *actions* of the data leaves a path only where
  another one shares its cell. Who chains *states* may step to every cell of the data that one move
  reaches. In "crossing", the path from the start meets the path to the goal far away; in "parallel"
  it only passes by. Compared on the same data with the same V: cloning of actions, weighted by
  exp(alpha advantage), and POR with either guide.
- Tasks. A, four-room: reach the goal. B, four-room-river: a river cuts A's shortest way, and who
  touches it is dead. C, four-room-key: the goal counts only with the key. g and pi learn A. On B
  and C only V and g learn, from new data that need no actions, and A's pi acts. Beside it: g and pi
  both of A, and both anew.

The talk shows pictures, no sizes, rewards or data; worlds.py has our choice. On A the key's number
is always 0, so what pi's first layer does with it is chance; `reuse` sets those weights to 0, which
changes nothing on A.

What to expect: where s' = s + a, cloning s' by Eq. 5 and asking pi for the way is cloning a with
the same weights. Only Eq. 4 climbs V beyond the data's steps.

    python -m benchmarks.studies.four_room                      # everything, in minutes
    python -m benchmarks.studies.four_room --part stitching     # or tasks
"""

import copy
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import tyro
from tqdm import tqdm

from benchmarks.studies.four_room.picture import draw_panels
from benchmarks.studies.four_room.worlds import LANES, World, walk_lanes, wander
from benchmarks.studies.shared import por, shown, store, summary

# tau and alpha are those of the authors' scripts for AntMaze and, with q, Hopper. The rates suit
# short trainings of small networks.
COMMON = {"tau": 0.9, "policy_lr": 3e-3, "value_lr": 3e-3, "polyak": 0.05, "layer_norm": True}
GUIDES = {"weighted": COMMON | {"alpha": 10.0}, "q": COMMON | {"alpha": 50.0}}


@dataclass
class Args:
    part: Literal["all", "stitching", "tasks"] = "all"  # what to show
    seed: int = 0  # seed of the random numbers, and of the first agent's data
    num_seeds: int = 5  # agents, each with data of its own
    num_updates: int = 4_000  # gradient updates
    batch_size: int = 128  # transitions per update and agent
    hidden: int = 64  # hidden units of all networks
    episodes: int = 40  # episodes per agent of an evaluation
    out: Path = Path("runs/four_room")  # folder of numbers and pictures


@dataclass
class Outcome:
    """What the agents of a variant did in a world."""

    world: World
    paths: np.ndarray  # (N, episodes, steps + 1, 3)
    arrived: np.ndarray  # (N, episodes)
    drowned: np.ndarray  # (N, episodes)
    numbers: dict


# --------------------------------------------------------------------------------------------------
# Agents
# --------------------------------------------------------------------------------------------------


def make_por(args: Args, guide: str, world: World) -> nn.Module:
    """Make agents of por.py. They start from the same weights whenever they are made."""
    por_args = por.Args(
        num_seeds=args.num_seeds,
        num_updates=args.num_updates,
        batch_size=args.batch_size,
        guide=guide,
        hidden=args.hidden,
        execute_hidden=args.hidden,
        **GUIDES[guide],
    )
    task = por.Task(
        name=world.name,
        source="walkers",
        env_id="",
        env_kwargs={},
        max_episode_steps=world.max_steps,
        ref_min=None,
        ref_max=None,
        obs_dim=world.obs_dim,
        act_dim=2,
    )
    torch.manual_seed(args.seed)
    return por.POR(por_args, task, "cpu")


class ActionStitching(nn.Module):
    """Eq. 5 for the action instead of the next state, with the V of trained POR agents.

    max E exp(alpha (r + gamma V'(s') - V(s))) log p(a|s)
    """

    def __init__(self, agent: nn.Module):
        super().__init__()
        self.args = agent.args
        self.teacher = [agent]  # in a list, its weights are no weights of this module
        obs_dim, act_dim = agent.guide.log_std.shape[-1], agent.execute.log_std.shape[-1]
        hidden = self.args.hidden
        self.policy = por.GaussianPolicy(self.args.num_seeds, [obs_dim, hidden, hidden, act_dim])
        self.optimizer = por.Adam(self.policy.parameters(), self.args.policy_lr)
        self.phases = [por.Phase("train", self.args.num_updates, [self.update])]

    def act(self, obs):
        """Return the likeliest actions: (N, E, obs) -> (N, E, act)."""
        return self.policy(obs)[0]

    def update(self, batch: dict) -> dict:
        """Update the policy. V stays as it is."""
        args = self.args
        agent = self.teacher[0]
        s, s2 = batch["observations"], batch["next_observations"]
        with torch.no_grad():
            next_v = agent.value_target(s2).amin(1)
            target = batch["rewards"] + args.discount * (1 - batch["terminals"]) * next_v
            advantage = target - agent.value(s).amin(1)
            weight = (args.alpha * advantage).exp().clamp(max=100)
        loss = -(weight * self.policy.log_prob(s, batch["actions"])).mean(1)
        por.cosine_decay(self.optimizer, args.num_updates)
        por.minimize(self.optimizer, loss)
        return {"loss/policy": loss}


def reuse(agent: nn.Module, old: nn.Module, unseen: list[int]) -> None:
    """Give agents the execute-policy of old ones, which learns no more.

    Its weights of inputs that were constant where it learned, numbers `unseen` of s and of s',
    become 0.
    """
    obs_dim = old.guide.log_std.shape[-1]
    agent.execute = copy.deepcopy(old.execute).requires_grad_(False)
    for i in unseen:
        agent.execute.net[0].weight[:, [i, obs_dim + i]] = 0
    agent.optimizers["policies"] = por.Adam(agent.guide.parameters(), agent.args.policy_lr)


# --------------------------------------------------------------------------------------------------
# Training and evaluation
# --------------------------------------------------------------------------------------------------


class Batches:
    """The data of all agents, each of which draws from its own."""

    def __init__(self, data: list[dict], args: Args):
        columns = {key: np.stack([rows[key] for rows in data]) for key in data[0]}
        self.columns = {key: torch.from_numpy(x).float() for key, x in columns.items()}
        self.agents = torch.arange(len(data)).unsqueeze(1)
        self.size = len(data[0]["rewards"])
        self.batch_shape = (len(data), args.batch_size)
        # A generator of its own: V must meet the same batches whatever the guide draws.
        self.generator = torch.Generator().manual_seed(args.seed)

    def sample(self) -> dict:
        rows = torch.randint(self.size, self.batch_shape, generator=self.generator)
        return {key: column[self.agents, rows] for key, column in self.columns.items()}


def train(agent: nn.Module, data: list[dict], args: Args) -> float:
    """Train agents on the data of each. Return the seconds it took."""
    start = time.perf_counter()
    for phase in agent.phases:
        batches = Batches(data, args)
        for _ in tqdm(range(phase.num_updates), desc=phase.name, disable=None, leave=False):
            phase.updates[0](batches.sample())
    return time.perf_counter() - start


@torch.no_grad()
def evaluate(agent: nn.Module, world: World, args: Args) -> Outcome:
    """Play episodes, the i-th of which starts alike for every agent."""
    shape = (args.num_seeds, args.episodes)
    starts = world.draw(np.random.default_rng(0), args.episodes, "S")
    states = np.tile(starts, (args.num_seeds, 1))
    steps, returns = np.zeros(len(states)), np.zeros(len(states))
    arrived, drowned = np.zeros(len(states), bool), np.zeros(len(states), bool)
    path = [states]
    for _ in range(world.max_steps):
        playing = np.flatnonzero(~arrived & ~drowned)
        obs = torch.from_numpy(states[:, : world.obs_dim]).float().unflatten(0, shape)
        actions = agent.act(obs).flatten(0, 1).numpy()
        if not np.isfinite(actions).all():
            sys.exit("training diverged: the actions are NaN or infinite")
        states = states.copy()
        moved = world.advance(states[playing], actions[playing])
        states[playing], rewards, arrived[playing], drowned[playing] = moved
        steps[playing] += 1
        returns[playing] += rewards
        path.append(states)
    arrived, drowned = arrived.reshape(shape), drowned.reshape(shape)
    steps, returns = steps.reshape(shape), returns.reshape(shape)
    steps_to_goal = [s[a].mean() if a.any() else None for s, a in zip(steps, arrived, strict=True)]
    numbers = {
        "success": summary(arrived.mean(1)),
        "drowned": summary(drowned.mean(1)),
        "return": summary(returns.mean(1)),
        "steps_to_goal": summary(steps_to_goal),
    }
    paths = np.stack(path, axis=1).reshape(*shape, -1, 3)
    return Outcome(world, paths, arrived, drowned, numbers)


def train_and_evaluate(agents: dict, world: World, data: list[dict], args: Args) -> dict:
    """Return the outcome of every variant."""
    outcomes = {}
    for variant, agent in agents.items():
        seconds = train(agent, data, args)
        outcomes[variant] = evaluate(agent, world, args)
        outcomes[variant].numbers["training_seconds"] = seconds
    return outcomes


# --------------------------------------------------------------------------------------------------
# The two parts
# --------------------------------------------------------------------------------------------------


def study_stitching(args: Args) -> dict:
    """Compare action-stitching and both guides of POR on both sets of lanes."""
    world = World("field")
    found = {}
    for name, lanes in LANES.items():
        seeds = range(args.seed, args.seed + args.num_seeds)
        data = [walk_lanes(world, lanes, np.random.default_rng([seed, 1])) for seed in seeds]
        weighted = make_por(args, "weighted", world)
        agents = {
            "POR, weighted guide": weighted,
            "POR, q guide": make_por(args, "q", world),
            "action-stitching": ActionStitching(weighted),
        }
        found[name] = train_and_evaluate(agents, world, data, args)
    return found


def study_tasks(args: Args) -> dict:
    """Compare on A, B and C: everything anew, A's pi with a new guide, A's pi and guide."""
    found = {}
    old = None
    unseen = []
    for name in ("four-room", "four-room-river", "four-room-key"):
        world = World(name)
        seeds = range(args.seed, args.seed + args.num_seeds)
        data = [wander(world, np.random.default_rng([seed, 2])) for seed in seeds]
        agents = {"g and pi anew": make_por(args, "weighted", world)}
        if old is not None:
            agents["g anew, pi of A"] = make_por(args, "weighted", world)
            reuse(agents["g anew, pi of A"], old, unseen)
        found[name] = train_and_evaluate(agents, world, data, args)
        if old is None:
            old = agents["g and pi anew"]
            columns = data[0]["observations"].T
            unseen = [i for i, column in enumerate(columns) if not column.any()]
        else:
            found[name]["g and pi of A"] = evaluate(old, world, args)
    # On C alone the key's weights matter.
    agent = agents["g anew, pi of A"]
    agent.execute = old.execute
    found[name]["g anew, pi of A as it was"] = evaluate(agent, world, args)
    return found


def numbers_of(found: dict) -> dict:
    """Return the numbers by world and variant."""
    return {world: {k: v.numbers for k, v in outcomes.items()} for world, outcomes in found.items()}


def report(found: dict) -> None:
    """Print the numbers of each variant with their 95 % intervals."""
    for world, outcomes in found.items():
        print(f"\n{world}")
        for variant, outcome in outcomes.items():
            names = ("success", "drowned", "return", "steps_to_goal")
            words = [f"{name.replace('_', ' ')} {shown(outcome.numbers[name])}" for name in names]
            print(f"  {variant:26}{', '.join(words)}")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if min(args.num_seeds, args.num_updates, args.batch_size, args.hidden, args.episodes) < 1:
        sys.exit("--num-seeds, --num-updates, --batch-size, --hidden and --episodes start at 1")
    torch.set_num_threads(1)  # networks as small as these gain nothing from more
    torch.set_flush_denormal(True)
    result = {"args": asdict(args), "settings": GUIDES}
    del result["args"]["out"]
    result["interval"] = "mean ± half_interval: 95 %, Student's t over agents"
    pictures = {}
    for name, study in (("stitching", study_stitching), ("tasks", study_tasks)):
        if args.part in (name, "all"):
            found = study(args)
            report(found)
            result[name] = numbers_of(found)
            pictures[f"{name}.png"] = draw_panels(name, found)
    store("four_room", args.out, "result", result, pictures)
