"""What makes POR POR: stitching states, and a guide that learns a new task while pi stays

POR (Xu, Jiang, Li, Zhan; NeurIPS 2022; arXiv 2210.08323; see por.py) splits the policy into a guide
g(s), which names the next state, and an execute-policy pi(a|s,s'), which finds the action. The
authors' talk claims two things for it that no table of scores shows. Here they are put to the test:

    stitching  Data are paths over a grid. Who chains *actions* of the data leaves a path only where
               another one shares its cell; who chains *states* may step to every cell of the data
               that one move reaches. Two worlds: in "crossing" the path from the start meets the
               path to the goal far away, in "parallel" it only passes by. Compared on the same data
               with the same V: cloning of actions, weighted by exp(alpha advantage), and POR.
    tasks      A, four-room: reach the goal. B, four-room-river: a river cuts A's shortest way; who
               touches it is dead. C, four-room-key: the goal counts only with the key. g and pi
               learn A. On B and C only V and g learn, from new data, and A's pi acts; beside it
               g and pi both of A, and both anew.

The sources show pictures, no sizes, rewards or data. What stands here is our choice:
- A step costs 1 until the goal. The river costs 100, as never arriving does at gamma 0.99: were it
  less, drowning would pay.
- Stitching's worlds are of cells: a move goes to one of the eight neighbours, actions are rounded,
  so that noise does not carry cloned actions from path to path. The paths are lanes, two cells
  wide, whose walkers change sides at random: where each state has but one next state, log b in
  Eq. 4 would forbid every other one. At the goal they stay, at no cost: V of a terminal state never
  learns, and a guide that climbs V may stop before it.
- The rooms are continuous. A step goes up to 0.99 cells along x, then along y, unless into a wall.
  The data come from walkers with random headings, who know neither goal nor river nor key;
  on C half of them hold the key from the beginning, else none would bring it to the goal.
- States are (x, y, key held?) in all tasks. On A the third is always 0, so what pi's first layer
  does with it is chance; `reuse` sets those weights to 0, which changes nothing on A.
- A guide needs s, r and s' alone: to reuse pi, the data of B and C need no actions.

What to expect. Where s' = s + a, cloning s' by Eq. 5 and asking pi for the way is cloning a with
the same weights; only Eq. 4 climbs V beyond the data's steps. That is why both guides are shown.
V, guides and pi are por.py's, word for word; sizes and rates are ours.

    python algorithms/por_four_room.py                                 # everything, in minutes
    python algorithms/por_four_room.py --part stitching --out runs/x   # or tasks
"""

import copy, math
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

@dataclass
class Args:
    part: Literal["all", "stitching", "tasks"] = "all"  # what to show
    seed: int = 0  # first seed
    num_seeds: int = 5  # train seeds seed, seed + 1, ... at once
    num_updates: int = 4_000  # gradient updates; schedules end here
    batch_size: int = 128  # transitions per update and seed
    final_eval_episodes: int = 40  # episodes of the last evaluation, the headline
    out: str | None = None  # folder of result and pictures, which replace older ones there
    # POR's own; None takes the guide's row of SETTINGS
    tau: float | None = None  # expectile of V
    alpha: float | None = None  # pull of the value on the guide
    policy_lr: float | None = None  # Adam's rate for guide and execute-policy, cosine to 0
    layer_norm: bool | None = None  # LayerNorm in V
    behavior_updates: int | None = None  # updates of b for guide q; None: as --num-updates
    value_lr: float = 3e-3  # Adam's rate for V and b, constant
    discount: float = 0.99  # gamma
    polyak: float = 0.05  # step of V' towards V
    hidden: int = 64  # width of V, guide and b
    execute_hidden: int = 64  # width of the execute-policy

# tau and alphas as the authors' AntMaze and, for q, Hopper scripts; rates for short trainings
SETTINGS = {"weighted": dict(tau=0.9, alpha=10.0, policy_lr=3e-3, layer_norm=True),
            "q": dict(tau=0.9, alpha=50.0, policy_lr=3e-3, layer_norm=True)}

FIELD = f"{'#' * 18} " + 2 * "#...GG...........# " + 5 * f"#{'.' * 16}# " + (
    2 * "#SS..............# ") + "#" * 18
ROOMS = """
#############
#.....#.....#
#.....#.G...#
#...........#
#.....#.....#
#wwwww#.....#
##.########.#
#.....#.....#
#.....#..k..#
#.....#.....#
#SS...#.....#
#SS.........#
#############"""
WORLDS = {  # map: walls #, start S, goal G, river w, key k; whole cells only?; steps of an episode
    "field": (FIELD, True, 60),
    "four-room": (ROOMS.replace("w", ".").replace("k", "."), False, 100),
    "four-room-river": (ROOMS.replace("k", "."), False, 100),
    "four-room-key": (ROOMS.replace("w", "."), False, 100)}
STEP, DROWNED = 0.99, -100.0  # cells: less than a wall is thick, so that none is jumped; a reward
TO_GOAL = [(14, 4), (6, 4), (6, 2), (3, 2), (3, 7)]  # corners of a lane's lower left cells
LANES = {"crossing": ([(0, 0), (11, 0), (11, 7)], TO_GOAL),  # shares 2 x 2 cells, those of (11, 4)
         "parallel": ([(0, 0), (11, 0), (11, 1)], TO_GOAL)}

class ActionStitching(nn.Module):
    """Eq. 5 for the action instead of the next state, with the value function of a trained POR:
    max E exp(alpha (r + gamma V'(s') - V(s))) log p(a|s)."""
    def __init__(self, agent, generators):
        super().__init__()
        self.args, args = agent.args, agent.args
        self.values = [agent.value_target, agent.value]  # a list: they are not to be trained
        obs_dim, act_dim = agent.guide.log_std.shape[-1], agent.execute.log_std.shape[-1]
        self.policy = GaussianPolicy(generators, [obs_dim, args.hidden, args.hidden, act_dim])
        self.register_buffer("step", torch.zeros((), dtype=torch.float64))
        self.phases = [("train", args.num_updates, self.update)]
        self.optimizer = Adam(self.policy.parameters(), args.policy_lr)

    def act(self, obs):
        """The likeliest action, (N, E, obs) -> (N, E, act)."""
        return self.policy(obs)[0]

    def update(self, batch: dict) -> dict:
        """One update of the policy; V stays as it is."""
        args, s = self.args, batch["observations"]
        with torch.no_grad():  # as in POR.update
            next_v, v = (value(x).squeeze(-1).amin(1) for value, x in
                         zip(self.values, (batch["next_observations"], s)))
            target = batch["rewards"] + args.discount * (1 - batch["terminals"]) * next_v
            weight = (args.alpha * (target - v)).exp().clamp(max=100)
        loss = -(weight * self.policy.log_prob(s, batch["actions"])).mean(1)
        cosine(self.optimizer, args.policy_lr, self.step, args.num_updates)
        minimize(self.optimizer, loss)
        self.step += 1
        return {"loss/policy": loss}

def reuse(agent, old, unseen: list[int]) -> None:
    """Give `agent` the execute-policy of `old`, which learns no more. Its weights of the inputs
    that were constant where it learned, numbers `unseen` of s and of s', become 0."""
    obs_dim, agent.execute = old.guide.log_std.shape[-1], copy.deepcopy(old.execute)
    agent.execute.requires_grad_(False)
    agent.execute.net.weights[0][:, [i + part for i in unseen for part in (0, obs_dim)]] = 0
    agent.optimizers["policies"] = Adam(agent.guide.parameters(), agent.args.policy_lr)

def show_stitching(lab) -> dict:
    """Success and steps of action-stitching and of POR with both guides, on both sets of lanes."""
    world, results = World("field"), {}
    for name, lanes in LANES.items():
        data = [walk_lanes(world, lanes, np.random.default_rng([s, 1])) for s in lab.seeds]
        weighted, q = (lab.por(guide, world) for guide in SETTINGS)
        cloned = ActionStitching(weighted, lab.generators())
        agents = {"POR, weighted guide": weighted, "POR, q guide": q, "action-stitching": cloned}
        results[name] = {k: lab.train(agent, data) for k, agent in agents.items()}
        for variant, agent in agents.items():
            results[name][variant] |= lab.test(agent, world, (name, variant))
        results[name]["shortest ways"] = shortest(world, data[0])
        lab.keep(name, world, data[0], weighted.value)
    return results

def show_tasks(lab) -> dict:
    """Success, return and time on A, B, C: everything anew, A's pi reused, A's pi and g reused."""
    results = {}
    for name in list(WORLDS)[1:]:
        world = World(name)
        data = [wander(world, np.random.default_rng([s, 2])) for s in lab.seeds]
        agents = {"g and pi anew": lab.por("weighted", world)}
        if not results:
            old = agents["g and pi anew"]
            unseen = [i for i, column in enumerate(data[0]["observations"].T) if not column.any()]
        else:
            agents["g anew, pi of A"] = lab.por("weighted", world)
            reuse(agents["g anew, pi of A"], old, unseen)
        results[name] = {k: lab.train(agent, data) for k, agent in agents.items()}
        if old is not agents["g and pi anew"]:
            agents["g and pi of A"], results[name]["g and pi of A"] = old, {}
        for variant, agent in agents.items():
            results[name][variant] |= lab.test(agent, world, (name, variant))
    agent = agents["g anew, pi of A"]  # of C, the one task that shows the flag's weights
    agent.execute = old.execute
    variant = "g anew, pi of A as it was"
    results[name][variant] = lab.test(agent, world, (name, variant))
    return results

# ---- The plumbing: worlds and their data; POR, word for word as in por.py; training, pictures ----

import io, json, platform, subprocess, time
from pathlib import Path
from types import SimpleNamespace
import tyro
from tqdm import tqdm

class World(gym.Env):
    """A map of cells 1 wide. Observations are x and y from its middle and, in rooms, whether the
    key is held; actions are moves in cells. Arrays of states are (n, 3), whatever the world."""
    def __init__(self, name: str):
        text, self.whole_cells, self.horizon = WORLDS[name]
        self.map = np.array([[*row] for row in text.split()][::-1])  # [y, x], y upwards
        self.middle = (np.array(self.map.shape[::-1]) - 1) / 2
        self.obs_dim = 2 if self.whole_cells else 3
        high, low = [*self.middle + 0.5, 1], [*-self.middle - 0.5, 0]
        self.observation_space = gym.spaces.Box(
            *(np.array(edge[:self.obs_dim]) for edge in (low, high)), dtype=np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def cell(self, states: np.ndarray) -> tuple:
        """Row and column of the cell that holds each state: (n,), (n,)."""
        x, y = np.floor(states[:, :2] + self.middle + 0.5).astype(int).T
        return y, x

    def draw(self, rng, count: int, tiles: str) -> np.ndarray:
        """States (count, 3) without the key, uniform over these tiles."""
        cells = np.argwhere(np.isin(self.map, [*tiles]))[:, ::-1] - self.middle
        spread = 0.0 if self.whole_cells else 0.5
        xy = cells[rng.integers(len(cells), size=count)]
        return np.column_stack([xy + rng.uniform(-spread, spread, (count, 2)), np.zeros(count)])

    def advance(self, states: np.ndarray, actions: np.ndarray) -> tuple:
        """A step of n walkers: next states (n, 3), rewards, who arrives, who drowns (n,)."""
        home = lambda states: (self.map[self.cell(states)] == "G") & (
            (states[:, 2] == 1) | ("k" not in self.map))
        rewards, move, states = home(states) - 1.0, np.clip(actions, -1, 1), states.copy()
        move = np.rint(move) if self.whole_cells else STEP * move
        for axis in (0, 1):
            there = states.copy()
            there[:, axis] += move[:, axis]
            free = self.map[self.cell(there)] != "#"
            states[free] = there[free]
        states[self.map[self.cell(states)] == "k", 2] = 1
        drowns = self.map[self.cell(states)] == "w"
        return states, np.where(drowns, DROWNED, rewards), home(states), drowns

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.states, self.steps = self.draw(self.np_random, 1, "S"), 0
        return self.states[0, :self.obs_dim].copy(), {}

    def step(self, action):
        """One step of the one walker; info says how the episode ended."""
        self.states, (reward,), (arrives,), (drowns,) = self.advance(
            self.states, np.asarray(action)[None])
        self.steps += 1
        return (self.states[0, :self.obs_dim].copy(), float(reward), bool(arrives or drowns),
                self.steps >= self.horizon, {"arrives": bool(arrives), "drowns": bool(drowns)})

def shortest(world: World, data: dict) -> dict:
    """Steps of the shortest ways from the start cells to the goal, averaged over these cells: by
    the data's transitions, by moves to states of the data, by any move; None if there is none."""
    tiles = lambda tile: [tuple(c) for c in np.argwhere(world.map == tile).tolist()]
    cells = lambda key: zip(*(part.tolist() for part in world.cell(data[key])))
    near = lambda cells: {(a, b) for a in cells for i in (-1, 0, 1) for j in (-1, 0, 1)
                          if (b := (a[0] + i, a[1] + j)) in cells}
    pairs, ways = {*zip(cells("observations"), cells("next_observations"))}, {}
    for name, steps in {"by the data's transitions": pairs,
                        "by the data's states": near({c for pair in pairs for c in pair}),
                        "by any move": near({c for t in ".SG" for c in tiles(t)})}.items():
        far, new, count = {}, {*tiles("G")}, 0
        while new:  # breadth first, backwards from the goal
            far |= dict.fromkeys(new, count)
            new, count = {a for a, b in steps if b in new and a not in far}, count + 1
        ways[name] = np.mean([far[c] for c in tiles("S")]) if {*tiles("S")} <= {*far} else None
    return ways

def wander(world: World, rng, walkers: int = 2500, steps: int = 12, keep: float = 0.8) -> dict:
    """Data of walkers from random places, half of them with the key if there is one, who keep their
    heading with that probability and start anew when an episode ends: walkers * steps rows."""
    def new(count):
        states = world.draw(rng, count, "".join({*world.map.flat} - {*"#Gw"}))
        return states + [0, 0, "k" in world.map] * rng.integers(2, size=(count, 1))

    rows, states, heading = [], new(walkers), np.zeros((walkers, 2))
    for step in range(steps):
        turned, kept = rng.normal(size=(walkers, 2)), rng.random((walkers, 1)) < keep * (step > 0)
        heading = np.where(kept, heading, turned / abs(turned).max(1, keepdims=True))
        states, ended = record(rows, world, states, heading + rng.normal(0, 0.3, (walkers, 2)))
        states[ended] = new(ended.sum())
    return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}

def walk_lanes(world: World, lanes, rng, walkers: int = 200, wait: int = 10) -> dict:
    """Data of walkers on each lane: forward by one cell a step, their side drawn anew each time.
    At the end of the lane they stay for some steps."""
    rows = []
    for corners in lanes:
        line = [np.array(corners[0])]
        for corner in corners[1:]:
            while (line[-1] != corner).any():
                line.append(line[-1] + np.sign(corner - line[-1]))
        side = rng.integers(2, size=(walkers, 2))
        states = np.column_stack([line[0] + side + 1 - world.middle, np.zeros(walkers)])
        line += [line[-1]] * wait
        for here, there in zip(line, line[1:]):
            # along the lane the place in it stays, so that every walker moves on
            side = np.where(here == there, rng.integers(2, size=side.shape), side)
            actions = there + side + 1 - world.middle - states[:, :2]
            actions = actions + rng.uniform(-0.4, 0.4, actions.shape)  # rounds to the same move
            states, _ = record(rows, world, states, actions)
    return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}

def record(rows: list, world: World, states, actions) -> tuple:
    """Take a step, append its transitions to `rows`; next states (n, 3), and who has ended (n,)."""
    actions = np.clip(actions, -1, 1)
    following, rewards, arrives, drowns = world.advance(states, actions)
    ended, d = (arrives | drowns) & (not world.whole_cells), world.obs_dim
    rows.append({"observations": states[:, :d], "actions": actions, "rewards": rewards,
                 "terminals": ended.astype(float), "next_observations": following[:, :d]})
    return following.copy(), ended

class MLP(nn.Module):
    """`heads` ReLU networks for each of N seeds, initialised as nn.Linear is, each seed from its
    own generator; LayerNorm comes before the ReLU. (N, B, in) -> (N, heads, B, out)."""
    def __init__(self, generators, dims: list[int], heads: int = 1, layer_norm: bool = False):
        super().__init__()
        self.heads, shapes, count = heads, list(zip(dims, dims[1:])), heads * len(generators)
        draw = lambda *s: torch.cat([torch.rand(heads, *s, generator=g) for g in generators])
        self.weights = nn.ParameterList([(draw(i, o) * 2 - 1) / i**0.5 for i, o in shapes])
        self.biases = nn.ParameterList([(draw(1, o) * 2 - 1) / i**0.5 for i, o in shapes])
        self.gains = nn.ParameterList([torch.ones(count, 1, w) for w in dims[1:-1] * layer_norm])
        self.shifts = nn.ParameterList([torch.zeros(count, 1, w) for w in dims[1:-1] * layer_norm])

    def forward(self, x):
        x = x.repeat_interleave(self.heads, 0)
        *hidden, (b, w) = zip(self.biases, self.weights)
        for i, (bias, weight) in enumerate(hidden):
            x = torch.baddbmm(bias, x, weight)
            if len(self.gains):
                x = F.layer_norm(x, x.shape[-1:]) * self.gains[i] + self.shifts[i]
            x = F.relu(x)
        with torch.autocast(x.device.type, enabled=False):  # in bf16 a value of 200 has steps of 1
            return (x.to(w) @ w + b).unflatten(0, (-1, self.heads))

class GaussianPolicy(nn.Module):
    """Diagonal Gaussian p(y|x): unsquashed mean, one learned deviation per dimension and seed."""
    def __init__(self, generators, dims: list[int]):
        super().__init__()
        self.net = MLP(generators, dims)
        self.log_std = nn.Parameter(torch.zeros(len(generators), 1, dims[-1]))

    def forward(self, x):
        """Mean (N, B, out) and deviation (N, 1, out), clamped as in the authors' policy.py."""
        return self.net(x).squeeze(1), self.log_std.clamp(-5, 2).exp()

    def log_prob(self, x, y):
        """log p(y|x), summed over dimensions: (N, B)."""
        mean, std = self(x)
        return -(0.5 * ((y - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

class POR(nn.Module):
    """Networks, optimisers and updates of N seeds; everything in a batch is (N, B, ...)."""
    def __init__(self, args: Args, task: dict, generators, device):
        super().__init__()
        obs_dim, act_dim = task["obs_dim"], task["act_dim"]
        self.args, self.noise_dim = args, obs_dim if args.guide == "q" else 0
        dims, wide = [obs_dim, args.hidden, args.hidden], [args.execute_hidden] * 2
        self.value = MLP(generators, [*dims, 1], heads=2, layer_norm=args.layer_norm)
        self.guide = GaussianPolicy(generators, [*dims, obs_dim])
        self.execute = GaussianPolicy(generators, [2 * obs_dim, *wide, act_dim])
        self.value_target = copy.deepcopy(self.value).requires_grad_(False)
        self.register_buffer("step", torch.zeros((), dtype=torch.float64))
        self.behavior = GaussianPolicy(generators, [*dims, obs_dim]) if args.guide == "q" else None
        self.phases = [("train", args.num_updates, self.update)]
        self.to(device)
        policies = [*self.guide.parameters(), *self.execute.parameters()]
        self.optimizers = {"value": Adam(self.value.parameters(), args.value_lr),
                           "policies": Adam(policies, args.policy_lr)}
        if self.behavior:  # Eq. 4 needs b before anything else
            first = args.behavior_updates or args.num_updates
            self.phases.insert(0, ("behavior", first, self.update_behavior))
            self.optimizers["behavior"] = Adam(self.behavior.parameters(), args.value_lr)

    def act(self, obs):
        """Eq. 7: the likeliest action towards the guide's goal, (N, E, obs) -> (N, E, act)."""
        return self.execute(torch.cat([obs, self.guide(obs)[0]], -1))[0]

    def update_behavior(self, batch: dict) -> dict:
        """Clone s -> s' with b, which anchors Eq. 4."""
        log_b = self.behavior.log_prob(batch["observations"], batch["next_observations"])
        minimize(self.optimizers["behavior"], loss := -(batch["known"] * log_b).mean(1))
        return {"loss/behavior": loss}

    def update(self, batch: dict) -> dict:
        """One update of V, V', g and pi; returns statistics of shape (N,)."""
        args, s, s2 = self.args, batch["observations"], batch["next_observations"]
        # Eq. 3: both heads regress to one target, the smaller V' of the next state
        with torch.no_grad():
            next_v = self.value_target(s2).squeeze(-1).amin(1)
            target = batch["rewards"] + args.discount * (1 - batch["terminals"]) * next_v
        v = self.value(s).squeeze(-1)
        residual = target.unsqueeze(1) - v
        value_loss = ((args.tau - (residual < 0).float()).abs() * residual**2).mean((1, 2))
        minimize(self.optimizers["value"], value_loss)
        move_target(self.value_target, self.value, args.polyak)

        if args.guide == "weighted":  # Eq. 5; the advantage is taken after V has moved
            advantage = target - self.value(s).squeeze(-1).amin(1).detach()
            weight = (args.alpha * advantage).exp().clamp(max=100)
            guide_loss = -(batch["known"] * weight * self.guide.log_prob(s, s2)).mean(1)
        else:  # Eq. 4 as in the authors' por.py; V passes gradients on to g but stays as it is
            mean, std = self.guide(s)
            goal = mean + std * batch["noise"]
            goal_v = self.value(goal).squeeze(-1).amin(1)
            weight = args.alpha / goal_v.detach().abs().mean(1, keepdim=True)
            guide_loss = -(weight * goal_v + self.behavior.log_prob(s, goal)).mean(1)
        # Eq. 6; guide and execute-policy share no weight, so one Adam serves both
        log_pi = self.execute.log_prob(torch.cat([s, s2], -1), batch["actions"])
        execute_loss = -(batch["known"] * log_pi).mean(1)
        cosine(self.optimizers["policies"], args.policy_lr, self.step, args.num_updates)
        minimize(self.optimizers["policies"], guide_loss + execute_loss)
        self.step += 1
        return {"loss/value": value_loss, "loss/guide": guide_loss, "loss/execute": execute_loss,
                "value": v.mean((1, 2)), "weight": weight.mean(1)}

class Adam:
    """torch.optim's Adam (Kingma, Ba, 2015); compiled, exp is taken once, ** for every weight."""
    def __init__(self, weights, lr: float):
        self.weights = list(weights)
        self.means, self.squares = ([torch.zeros_like(w) for w in self.weights] for _ in range(2))
        self.lr = torch.tensor([lr], device=self.weights[0].device)
        self.count = torch.zeros_like(self.lr, dtype=torch.float64)  # scalars lose writes, compiled
        self.state = [self.lr, self.count, *self.means, *self.squares]

    @torch.no_grad()
    def step(self, gradients) -> None:
        """w <- w - lr m / (sqrt(v) + 1e-8), m and v without the bias of their start at 0."""
        self.count += 1
        torch._foreach_lerp_(self.means, gradients, 1 - 0.9)
        torch._foreach_lerp_(self.squares, torch._foreach_mul(gradients, gradients), 1 - 0.999)
        bias_m, bias_v = (1 - (self.count * math.log(d)).exp().squeeze() for d in (0.9, 0.999))
        roots = torch._foreach_div(torch._foreach_sqrt(self.squares), bias_v.sqrt())
        roots = torch._foreach_mul(torch._foreach_add(roots, 1e-8), bias_m / -self.lr.squeeze())
        torch._foreach_addcdiv_(self.weights, self.means, roots)

def minimize(optimizer: Adam, loss) -> None:
    """One step down the losses (N,); seeds share no weight, so the sum's gradient is each one's."""
    optimizer.step(torch.autograd.grad(loss.sum(), optimizer.weights))

def cosine(optimizer: Adam, lr: float, step, total: int) -> None:
    """Set the rate to lr (1 + cos(pi step / total)) / 2, as CosineAnnealingLR does."""
    optimizer.lr.copy_(lr / 2 * (1 + torch.cos(math.pi / total * step)))

def move_target(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate source."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)

class Lab:
    """Trains and tests agents of all seeds at once; keeps what the pictures show."""
    def __init__(self, args: Args):
        self.args, self.seeds = args, range(args.seed, args.seed + args.num_seeds)
        self.settings, self.paths, self.shown = {}, {}, {}
        torch.set_num_threads(1)  # networks this small gain nothing from more, nor from a GPU
        torch.set_flush_denormal(True)

    def generators(self) -> list:
        return [torch.Generator().manual_seed(s) for s in self.seeds]

    def por(self, guide: str, world: World) -> POR:
        """A new agent, with the guide's settings and the options of the command."""
        given = {k: v for k, v in vars(self.args).items() if v is not None}
        self.settings[guide] = own = {k: given.get(k, v) for k, v in SETTINGS[guide].items()}
        args, task = vars(self.args) | own, {"obs_dim": world.obs_dim, "act_dim": 2}
        return POR(SimpleNamespace(guide=guide, **args), task, self.generators(), "cpu")

    def train(self, agent, data: list[dict]) -> dict:
        """All updates of an agent on each seed's own data; returns the seconds it took."""
        widths = [v.reshape(len(v), -1).shape[1] for v in data[0].values()]
        tables = [torch.from_numpy(np.column_stack([*rows.values()]).astype(np.float32))
                  for rows in data]
        size, began = self.args.batch_size, time.time()
        for name, total, update in agent.phases:
            # 2^31: other numbers than those that drew the weights; the same batches in every phase
            draw = [torch.Generator().manual_seed(2**31 + s) for s in self.seeds]
            for _ in tqdm(range(total), desc=name, disable=None, leave=False):
                rows = torch.stack([t[torch.randint(len(t), (size,), generator=g)]
                                    for t, g in zip(tables, draw)])
                columns = rows.split(widths, -1)
                batch = {k: c if v.ndim > 1 else c[..., 0]
                         for (k, v), c in zip(data[0].items(), columns)}
                noise = [torch.randn(size, widths[0], generator=g) for g in draw]
                batch |= {"noise": torch.stack(noise), "known": torch.ones_like(batch["rewards"])}
                update(batch)
        return {"training_seconds": time.time() - began}

    def test(self, agent, world: World, label: tuple) -> dict:
        """Deterministic episodes, the i-th starting alike for every seed; numbers per seed."""
        n, episodes = len(self.seeds), self.args.final_eval_episodes
        states = np.tile(world.draw(np.random.default_rng(0), episodes, "S"), (n, 1))
        steps, returns = np.zeros(n * episodes, int), np.zeros(n * episodes)
        arrived, drowned, path = steps > 0, steps > 0, [states]
        for _ in range(world.horizon):
            on = np.flatnonzero(~arrived & ~drowned)
            obs = torch.from_numpy(states[:, :world.obs_dim].astype(np.float32))
            with torch.no_grad():
                actions = agent.act(obs.unflatten(0, (n, -1))).flatten(0, 1).numpy()
            if not np.isfinite(actions).all():
                raise SystemExit("training diverged: actions NaN or infinite; try smaller rates")
            states = states.copy()
            states[on], rewards, arrived[on], drowned[on] = world.advance(states[on], actions[on])
            steps[on] += 1
            returns[on] += rewards
            path.append(states)
        arrived, drowned, steps, returns = np.reshape(
            [arrived, drowned, steps, returns], (4, n, episodes))
        path = np.stack(path, 1).reshape(n, episodes, -1, 3)
        self.paths[label] = world, path, arrived, drowned
        mean = [s[a > 0].mean().item() if a.any() else None for s, a in zip(steps, arrived)]
        results = {"success": arrived, "drowned": drowned, "return": returns}
        return {k: summary(v.mean(1).tolist()) for k, v in results.items()} | {
            "steps_to_goal": summary(mean)}

    def keep(self, name: str, world: World, data: dict, value: MLP) -> None:
        """Remember the data's moves and the mean V of each cell, for the pictures."""
        y, x = np.indices(world.map.shape).reshape(2, -1)
        cells = torch.from_numpy(np.column_stack([x, y]) - world.middle).float()
        with torch.no_grad():
            v = value(cells.expand(len(self.seeds), -1, -1)).amin(1).mean(0)
        moves = np.column_stack([data["observations"], data["next_observations"]])
        self.shown[name] = np.unique(moves, axis=0), v.numpy().reshape(world.map.shape)

# Student's t, 97.5%, for 2 to 10 seeds; for more the last one, which is a little wide
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]

def summary(values: list) -> dict:
    """Numbers per seed, their mean, and half of its 95% interval; seeds with None are left out."""
    n = len(known := [v for v in values if v is not None])
    half = T_975[min(n, 10) - 2] * np.std(known, ddof=1) / n**0.5 if n > 1 else None
    return {"per_seed": values, "mean": np.mean(known) if n else None, "half_interval": half}

def report(results: dict) -> None:
    """Print a line for each variant: means ± halves of their 95% intervals."""
    say = lambda x: "none" if x is None else f"{x:.2f}"
    for world, variants in results.items():
        print(f"\n{world}")
        for variant, numbers in variants.items():
            print(f"  {variant:25}", ", ".join(f"{k.replace('_', ' ')} " + (
                f"{say(v['mean'])} ± {say(v['half_interval'])}" if isinstance(v, dict) else say(v))
                for k, v in numbers.items()))

TILES = {"#": ("#555555", ""), "S": ("#e1e1e1", "start"), "G": ("#ffdc78", "goal"),
         "k": ("#d7b4ff", "key"), "w": ("#8cc3eb", "river"), ".": ("#ffffff00", "")}
BLUE, RED, GREEN, ORANGE = "#1f4fd8", "#d62728", "#2a9d3a", "#e08a00"
TITLES = {"stitching": "green: moves of the data; grey: V, higher is darker",
          "tasks": "green: reached the goal; red: drowned; orange: time ran out"}
PANELS = {"stitching": [(world, variant) for world in LANES for variant in (
    "action-stitching", "POR, weighted guide", "POR, q guide")],
    "tasks": [("four-room", "g and pi anew"), *((world, variant) for world in list(WORLDS)[2:]
              for variant in ("g and pi of A", "g anew, pi of A", "g and pi anew"))]}
PANELS["tasks"].insert(4, ("four-room-key", "g anew, pi of A as it was"))

def draw(lab: Lab, part: str, results: dict) -> bytes:
    """A PNG with a panel for each variant: the map, the data, the paths of all seeds."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, len(PANELS[part]) // 2, layout="constrained",
                                figsize=(13, 5.6 if part == "stitching" else 7))
    for axes, (name, variant) in zip(grid.flat, PANELS[part]):
        r, (world, path, arrived, drowned) = results[name][variant], lab.paths[name, variant]
        length = r["steps_to_goal"]["mean"]
        axes.set_title(f"{name}: {variant}\nsuccess {r['success']['mean']:.2f}"
                       + (f", {length:.1f} steps" if length else ""), fontsize=10)
        x, y = world.middle + 0.5
        tiles = [[matplotlib.colors.to_rgba(TILES[tile][0]) for tile in row] for row in world.map]
        axes.imshow(tiles, origin="lower", extent=(-x, x, -y, y), zorder=1)
        for tile, (_, word) in TILES.items():
            if (cells := np.argwhere(world.map == tile)[:, ::-1] - world.middle).size:
                axes.text(*cells.mean(0), word, ha="center", va="center", fontsize=9, zorder=6)
        axes.set(xticks=[], yticks=[])
        if name in lab.shown:
            moves, value = lab.shown[name]
            axes.imshow(value, cmap="Greys", alpha=0.6, origin="lower", extent=(-x, x, -y, y),
                        vmin=-60, vmax=10, zorder=0)
            axes.quiver(*moves[:, :2].T, *(moves[:, 2:] - moves[:, :2]).T, color=GREEN, alpha=0.45,
                        angles="xy", scale_units="xy", scale=1, width=0.0025, zorder=2)
        for i, e in np.ndindex(len(path), min(5, path.shape[1])):
            color = GREEN if arrived[i, e] else RED if drowned[i, e] else ORANGE
            color = color if part == "tasks" else BLUE if variant == "action-stitching" else RED
            shift = 0.07 * (i - (len(path) - 1) / 2) * world.whole_cells  # seeds side by side
            axes.plot(*(path[i, e, :, :2].T + shift), color=color, lw=1, alpha=0.6, zorder=4)
            axes.plot(*(path[i, e, -1, :2] + shift), "o", ms=3, color=color, zorder=5)
    figure.suptitle(f"paths of all seeds, a dot where one ends; {TITLES[part]}", fontsize=11)
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=85)
    plt.close(figure)
    return buffer.getvalue()

def write(folder: Path, files: dict) -> None:
    """Write these contents; each file is a whole new one or the old one."""
    try:
        for name, content in files.items():
            (folder / "part").write_bytes(content)
            (folder / "part").rename(folder / name)
    finally:
        (folder / "part").unlink(missing_ok=True)

def demonstrate() -> None:
    """The command line: train, test, print, draw, write."""
    args, script, began = tyro.cli(Args), Path(__file__).stem, time.time()
    if bad := [k for k, v in vars(args).items() if type(v) is int and v < (k != "seed") or
               type(v) is float and not 0 <= v <= (k in ("tau", "discount", "polyak") or 1e300)]:
        raise SystemExit(f"out of range, counts start at 1: --{', --'.join(bad)}".replace("_", "-"))
    folder = Path(args.out or f"runs/{script}-seed{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir(parents=True, exist_ok=True)
    lab, results, files = Lab(args), {}, {}
    print("device cpu", flush=True)
    for part, show in ("stitching", show_stitching), ("tasks", show_tasks):
        if args.part in (part, "all"):
            results[part] = show(lab)
            report(results[part])
            files[f"{script}_{part}.png"] = draw(lab, part, results[part])
    git = subprocess.run("git describe --always --dirty --abbrev=40 --exclude='*'", shell=True,
                         cwd=Path(__file__).resolve().parent, capture_output=True, text=True)
    result = {
        "script": script, "args": {k: v for k, v in vars(args).items() if k != "out"},
        "settings": lab.settings, "seeds": [*lab.seeds], **results,
        "interval": "mean ± half_interval: 95%, Student's t over seeds",
        "commit": git.stdout.strip() or "unknown", "device": f"cpu ({platform.machine()})",
        "versions": {m.__name__: str(m.__version__) for m in (torch, np, gym)},
        "threads": torch.get_num_threads(), "seconds": time.time() - began,
        "cpu_seconds": time.process_time()}
    write(folder, files | {f"{script}.json": json.dumps(result, indent=1).encode()})
    print(f"\n{result['seconds']:.0f} s, {result['cpu_seconds']:.0f} s of them on the CPU; "
          f"{folder}: {', '.join(files)}, {script}.json")

if __name__ == "__main__":
    try:
        demonstrate()
    except OSError as error:  # a folder that is a file, missing rights, a full disk
        raise SystemExit(f"{error}: mend this, then repeat the command")
    except KeyboardInterrupt:
        raise SystemExit("stopped, nothing was written")
