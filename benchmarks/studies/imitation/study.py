"""What can go wrong when a policy imitates, and what helps?

The lecture names three failures of imitation and draws one success of offline learning. Each is an
experiment here. The lecture gives no numbers, so sizes are our choice.

1. rope: errors compound. A walker on a tightrope must take the right step, which depends on one of
   2,000 contexts drawn anew at each step. A wrong one throws it off, and then it needs the right
   step for the new context to climb back. Every step off the rope costs 1. In a state that its data
   lack, a learner does nothing, which is never right. Cloning sees 12,000 steps of an expert, who
   never falls. DAgger (Ross et al., 2011) sees 12,000 steps, too, all but the first tenth of them
   its own, labelled by the expert. Theory: the cost of cloning grows as H^2, that of DAgger as H.
2. car: errors compound on the road, too. A car drives two laps of a track, which is 1 wide on both
   sides. It sees its distance from the middle, the angle between its heading and the track, and the
   track's curvature. Its wheels are out of true by a hundredth of what they can turn, to the left
   or to the right. The expert's own car has no such error and never leaves the middle, so its data
   do not tell what to do elsewhere. Cloning sees 20 such cars, or ten times as many. DAgger sees 20
   cars, too, of which its learner has driven all but the first four. A car that leaves the track
   stays where it left it.
3. modes: an obstacle stands at a random place c of [-0.5, 0.5]. Demonstrators pass it at c + 0.4 or
   at c - 0.4, six in ten on the first side. The five policies of bc.py see c and clone them. Who
   comes within 0.2 of c has hit it.
4. hidden: the expert sees which of two doors is open, three steps to its left or its right, and
   goes there. The learner does not see it. Cloning, DAgger, and DAgger with a memory of the locked
   doors that it has met.
5. stitching: two trajectories over states 1 to 9,
       1 2 3 4 5 6                    no reward
       1 4 5 2 3 7 8 9                the goal, by a detour
   and cloning with weights exp(A / lambda), where A is that of the best policy within the data. For
   lambda from infinity (cloning) to small ones: the chance of each next state of 3, and to reach 9.

    python -m benchmarks.studies.imitation --out runs/imitation     # all five, in a minute or two
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.common import algorithm_color, load_script, markdown_table, update_page
from benchmarks.studies.shared import half_interval, shown, store, summary

bc = load_script("bc")

BEGIN, END = "<!-- imitation:begin -->", "<!-- imitation:end -->"  # of the tables on a page
CONTEXTS, STEPS, ROUNDS = 2_000, 12_000, 10  # of the rope
HORIZONS = (10, 20, 40, 80, 160)
LAP, WIDTH = 60.0, 1.0  # of the track: length, and from its middle to its edge
WAY, CAR_STEPS = 0.5, 240  # of a car: way per step, and steps of two laps
SHARPEST, STEERING_ERROR = 0.5, 0.005  # of a car: curvatures
CARS, CAR_ROUNDS, TEST_CARS = 20, 5, 10  # per agent: cars in its data, rounds of DAgger, evaluation
CAR_TIMES = (10, 20, 40, 80, 240)  # steps of which distances are told
POLICIES = bc.PolicyName.__args__
DOOR, TRIES, EPISODES = 3, 30, 300  # of hidden: steps to a door; steps and number of episodes
LAMBDAS = (np.inf, 1.0, 0.3, 0.1, 0.03, 0.01)
TRAJECTORIES = ((1, 2, 3, 4, 5, 6), (1, 4, 5, 2, 3, 7, 8, 9))
GOAL = 9


@dataclass
class Args:
    out: Path = Path("runs/imitation")  # folder of the numbers and the picture
    seed: int = 0  # seed of the first agent
    num_seeds: int = 20  # agents of the rope, the car and the doors
    num_clones: int = 5  # agents of each policy at the obstacle
    num_updates: int = 2_000  # of these; the car's agents have half as many
    discount: float = 0.9  # gamma of the stitching example
    page: Path | None = None  # page that gets the tables between its marks; None: they are printed


def make_task(name: str, obs_dim: int) -> bc.Task:
    """Return what bc.py must know of a world with one number as an action."""
    unknown = {"source": "", "env_id": "", "env_kwargs": {}, "ref_min": None, "ref_max": None}
    return bc.Task(name=name, max_episode_steps=1, obs_dim=obs_dim, act_dim=1, **unknown)


# --------------------------------------------------------------------------------------------------
# 1. The rope
# --------------------------------------------------------------------------------------------------


def clone_rope(rng: np.random.Generator) -> np.ndarray:
    """Return which contexts cloning knows: (2, CONTEXTS), on the rope and off it."""
    known = np.zeros((2, CONTEXTS), bool)
    known[0, rng.integers(CONTEXTS, size=STEPS)] = True
    return known


def dagger_rope(horizon: int, rng: np.random.Generator) -> np.ndarray:
    """Return which contexts DAgger knows, on the rope and off it, after as many labelled steps."""
    known = np.zeros((2, CONTEXTS), bool)
    in_round = STEPS // ROUNDS
    known[0, rng.integers(CONTEXTS, size=in_round)] = True  # the first round is the expert's
    for _ in range(ROUNDS - 1):
        off, visited = 0, []
        for step, context in enumerate(rng.integers(CONTEXTS, size=in_round)):
            if step % horizon == 0:
                off = 0  # an episode begins
            visited.append((off, context))
            off = 0 if known[off, context] else 1
        known[tuple(np.transpose(visited))] = True  # the policy changes after the round
    return known


def cost_of_rope(known: np.ndarray, horizon: int) -> float:
    """Return the expected number of steps off the rope in an episode, which is exact."""
    falls, climbs = 1 - known[0].mean(), known[1].mean()
    off, cost = 0.0, 0.0
    for _ in range(horizon):
        off = (1 - off) * falls + off * (1 - climbs)
        cost += off
    return cost


def study_rope(args: Args) -> dict:
    """Return costs by horizon, and the exponent of their growth, of both."""
    costs = {"cloning": [], "DAgger": []}  # of each agent, one number per horizon
    for agent in range(args.num_seeds):
        rng = np.random.default_rng([args.seed + agent, 1])
        cloned = clone_rope(rng)
        costs["cloning"].append([cost_of_rope(cloned, horizon) for horizon in HORIZONS])
        learned = [dagger_rope(horizon, rng) for horizon in HORIZONS]
        costs["DAgger"].append(
            [cost_of_rope(*pair) for pair in zip(learned, HORIZONS, strict=True)]
        )
    found = {}
    for name, rows in costs.items():
        table = np.array(rows)
        # An agent that knows every context never falls, and has no exponent.
        falling = table[(table > 0).all(1)]
        slopes = np.polyfit(np.log(HORIZONS), np.log(falling).T, 1)[0]
        found[name] = {
            "costs": {h: summary(column) for h, column in zip(HORIZONS, table.T, strict=True)},
            "exponent": summary(slopes),
            "agents_without_exponent": int(len(table) - len(falling)),
        }
    return found


# --------------------------------------------------------------------------------------------------
# 2. The car
# --------------------------------------------------------------------------------------------------


def curvature(place):
    """Return the curvature of the track, an oval, after so much of its length."""
    return 2 * np.pi / LAP * (1 + 0.8 * np.cos(4 * np.pi * place / LAP))


def steer_as_expert(seen: np.ndarray) -> np.ndarray:
    """Follow the track, and steer back to its middle: (..., 3) -> (...) within [-1, 1]."""
    distance, angle, bend = np.moveaxis(seen, -1, 0)
    return np.clip((bend - 0.15 * distance - 0.6 * angle) / SHARPEST, -1, 1)


def drive(steer, shape: tuple, rng: np.random.Generator, error: float, goes_on: bool):
    """Drive cars, one for each number of a shape (N, M), from random places of the track.

    Return what they see (N, M, steps, 3), where they are, and whether they have left the track.
    These stay where they left it, unless `goes_on`: then they are put back to the middle.
    """
    place, off = rng.uniform(0, LAP, shape), np.zeros(shape, bool)
    distance, angle = np.zeros(shape), np.zeros(shape)
    errors = error * rng.choice((-1, 1), shape)
    seen, places = [], []
    for _ in range(CAR_STEPS):
        bend = curvature(place)
        seen.append(np.stack([distance, angle, bend], axis=-1))
        places.append(place)
        turn = SHARPEST * steer(seen[-1]) + errors
        # On the inner side, the same way is more of the track.
        along = WAY * np.cos(angle) / (1 - distance * bend)
        there = distance + WAY * np.sin(angle)
        next_angle = angle + WAY * turn - bend * along
        leaves = np.abs(there) > WIDTH
        off = off | leaves
        if goes_on:
            place = (place + along) % LAP
            distance = np.where(leaves, 0, there)
            angle = np.where(leaves, 0, next_angle)
        else:
            place = np.where(off, place, (place + along) % LAP)
            distance = np.where(off, WIDTH * np.sign(there), there)
            angle = np.where(off, angle, next_angle)
    return np.stack(seen, axis=2), np.stack(places, axis=2), off


def make_driver(args: Args) -> bc.BC:
    """Return agents that know nothing yet."""
    bends = curvature(np.linspace(0, LAP, 1_000))
    task = make_task("track", 3)
    task.obs_mean, task.obs_std = [0.0, 0.0, float(bends.mean())], [WIDTH, 0.5, float(bends.std())]
    torch.manual_seed(args.seed)
    bc_args = bc.Args(policy="deterministic", num_seeds=args.num_seeds, hidden=32, lr=3e-3)
    return bc.BC(bc_args, task, "cpu")


def steering(agent: bc.BC):
    """Return the function by which its cars are driven."""

    @torch.no_grad()
    def steer(seen: np.ndarray) -> np.ndarray:
        flat = torch.as_tensor(seen, dtype=torch.float32).flatten(1, -2)
        return agent.act(flat).double().numpy().reshape(seen.shape[:-1])

    return steer


def imitate(agent: bc.BC, seen: np.ndarray, num_updates: int) -> None:
    """Clone the expert where cars have been: (N, M, steps, 3)."""
    seen = seen.reshape(len(seen), -1, 3)
    states = torch.as_tensor(seen, dtype=torch.float32)
    actions = torch.as_tensor(steer_as_expert(seen), dtype=torch.float32).unsqueeze(-1)
    agents = torch.arange(len(seen)).unsqueeze(1)
    for _ in range(num_updates):
        rows = torch.randint(seen.shape[1], (len(seen), 128))
        batch = {"observations": states[agents, rows], "actions": actions[agents, rows]}
        agent.update(batch | {"held_out": torch.zeros(rows.shape)})


def study_car(args: Args) -> tuple[dict, dict]:
    """Return errors and distances of every driver, and where the first car of each agent was."""
    rng = np.random.default_rng([args.seed, 2])
    num_updates = max(1, args.num_updates // 2)
    drivers = {}
    for name, cars in (("cloning", CARS), ("cloning, ten times the data", 10 * CARS)):
        agent = make_driver(args)
        seen, _, _ = drive(steer_as_expert, (args.num_seeds, cars), rng, 0, True)
        imitate(agent, seen, num_updates)
        drivers[name] = steering(agent)
    agent = make_driver(args)
    in_round = (args.num_seeds, CARS // CAR_ROUNDS)
    seen, _, _ = drive(steer_as_expert, in_round, rng, 0, True)  # the first round is the expert's
    imitate(agent, seen, num_updates // CAR_ROUNDS)
    for _ in range(CAR_ROUNDS - 1):
        more, _, _ = drive(steering(agent), in_round, rng, STEERING_ERROR, True)
        seen = np.concatenate([seen, more], axis=1)
        imitate(agent, seen, num_updates // CAR_ROUNDS)
    drivers |= {"DAgger": steering(agent), "the expert": steer_as_expert}

    shape = (args.num_seeds, TEST_CARS)
    on_its_line, _, _ = drive(steer_as_expert, shape, rng, 0, True)
    found, ways = {}, {}
    for name, steer in drivers.items():
        error = steer(on_its_line) - steer_as_expert(on_its_line)
        seen, places, off = drive(steer, shape, rng, STEERING_ERROR, False)
        distance = np.abs(seen[..., 0]).mean(1)
        found[name] = {
            "error": summary(np.sqrt((error**2).mean((1, 2)))),
            "distances": {t: summary(distance[:, t - 1]) for t in CAR_TIMES},
            "stays": summary(1 - off.mean(1)),
        }
        ways[name] = {"place": places[:, 0], "side": seen[:, 0, :, 0], "distance": distance}
    return found, ways


# --------------------------------------------------------------------------------------------------
# 3. The obstacle
# --------------------------------------------------------------------------------------------------


def study_modes(args: Args) -> tuple[dict, dict]:
    """Return how often each policy hits the obstacle or passes at c + 0.4, and (c, where)."""
    task = make_task("obstacle", 1)
    task.obs_mean, task.obs_std = [0.0], [0.29]  # of the uniform distribution
    places = torch.linspace(-0.5, 0.5, 200).expand(args.num_clones, 200).unsqueeze(-1)
    found, passed = {}, {}
    for policy in POLICIES:
        torch.manual_seed(args.seed)
        bc_args = bc.Args(policy=policy, num_seeds=args.num_clones, hidden=64, lr=3e-3)
        agent = bc.BC(bc_args, task, "cpu")
        for _ in range(args.num_updates):
            c = torch.rand(args.num_clones, 256, 1) - 0.5
            side = torch.where(torch.rand(c.shape) < 0.6, 0.4, -0.4)
            actions = c + side + 0.02 * torch.randn(c.shape)
            held_out = torch.zeros(c.shape[:2])
            agent.update({"observations": c, "actions": actions, "held_out": held_out})
        with torch.no_grad():
            beside = (agent.act(places) - places).numpy()
        found[policy] = {
            "hits": summary((np.abs(beside) < 0.2).mean((1, 2))),
            "first_side": summary((beside > 0.2).mean((1, 2))),
        }
        passed[policy] = beside[0].squeeze(-1)
    return found, passed


# --------------------------------------------------------------------------------------------------
# 4. The doors
# --------------------------------------------------------------------------------------------------


def play_doors(counts: np.ndarray, memory: bool, rng: np.random.Generator, labels: bool):
    """Play episodes with the policy of a table. Return the success rate and the expert's labels.

    `counts` (2 DOOR + 1, 3, 2) holds how often the expert went left or right at a position, by the
    locked door that the learner remembers: none, the left one, the right one.
    """
    seen = np.zeros_like(counts)
    successes = 0
    for _ in range(EPISODES):
        door = int(rng.choice((-1, 1)))
        position, locked = 0, 0
        for _ in range(TRIES):
            row = counts[position + DOOR, locked if memory else 0]
            right = row[1] / row.sum() if row.sum() > 0 else 0.5  # without data it guesses
            if labels:
                seen[position + DOOR, locked if memory else 0, (door + 1) // 2] += 1
            position += 1 if rng.random() < right else -1
            if position == door * DOOR:
                successes += 1
                break
            if position == -door * DOOR:
                locked = 1 if door == 1 else 2
            position = int(np.clip(position, -DOOR, DOOR))
    return successes / EPISODES, seen


def study_hidden(args: Args) -> dict:
    """Return the success rates of the three learners."""
    rates = {"cloning": [], "DAgger": [], "DAgger with a memory": []}
    for agent in range(args.num_seeds):
        rng = np.random.default_rng([args.seed + agent, 3])
        shown_by_expert = np.zeros((2 * DOOR + 1, 3, 2))
        for door in rng.choice((-1, 1), EPISODES):
            for step in range(DOOR):
                shown_by_expert[DOOR + door * step, 0, (door + 1) // 2] += 1
        rate, _ = play_doors(shown_by_expert, False, rng, labels=False)
        rates["cloning"].append(rate)
        for name, memory in (("DAgger", False), ("DAgger with a memory", True)):
            counts = shown_by_expert.copy()
            for _ in range(ROUNDS):
                _, labels = play_doors(counts, memory, rng, labels=True)
                counts += labels
            rate, _ = play_doors(counts, memory, rng, labels=False)
            rates[name].append(rate)
    return {name: summary(values) for name, values in rates.items()}


# --------------------------------------------------------------------------------------------------
# 5. Stitching
# --------------------------------------------------------------------------------------------------


def study_stitching(gamma: float) -> dict:
    """Return, by lambda, the chances of the steps from 3 and of the goal, and the steps to it."""
    edges = sorted({pair for path in TRAJECTORIES for pair in zip(path, path[1:], strict=False)})
    value = {state: 0.0 for path in TRAJECTORIES for state in path}
    for _ in range(100):
        for state in value:
            ways = [end for start, end in edges if start == state]
            returns = [1.0 if end == GOAL else gamma * value[end] for end in ways]
            value[state] = max(returns, default=0.0)
    found = {}
    for temperature in LAMBDAS:
        policy = {}
        for state in value:
            ways = [end for start, end in edges if start == state]
            if not ways:
                continue
            returns = np.array([1.0 if end == GOAL else gamma * value[end] for end in ways])
            weights = np.exp((returns - value[state]) / temperature)
            policy[state] = dict(zip(ways, (weights / weights.sum()).tolist(), strict=True))
        reached, steps = chance_and_steps(policy)
        found["inf" if np.isinf(temperature) else str(temperature)] = {
            "from_3": policy[3],
            "reaches_goal": reached,
            "steps": steps,
        }
    return found


def chance_and_steps(policy: dict) -> tuple[float, float]:
    """Return the chance to reach the goal from state 1, and the mean steps if it is reached."""
    here, reached, steps = {1: 1.0}, 0.0, 0.0
    for step in range(1, 200):
        there = {}
        for state, chance in here.items():
            for end, part in policy.get(state, {}).items():
                there[end] = there.get(end, 0.0) + chance * part
        arrived = there.pop(GOAL, 0.0)
        reached += arrived
        steps += step * arrived
        here = there
    return reached, steps / reached


# --------------------------------------------------------------------------------------------------
# Tables and picture
# --------------------------------------------------------------------------------------------------


def tables(found: dict) -> str:
    """Return the five parts as tables in Markdown, with 95 % intervals over agents."""
    rope = markdown_table(
        ["steps off the rope", *(f"H = {h}" for h in HORIZONS), "grows as H to the power of"],
        [
            [name, *(shown(x) for x in numbers["costs"].values()), shown(numbers["exponent"])]
            for name, numbers in found["rope"].items()
        ],
    )
    car = markdown_table(
        [
            "driver",
            "error on the expert's line",
            *(f"distance in step {t}" for t in CAR_TIMES),
            "stays on the track",
        ],
        [
            [
                name,
                shown(numbers["error"], 4),
                *(shown(x) for x in numbers["distances"].values()),
                shown(numbers["stays"]),
            ]
            for name, numbers in found["car"].items()
        ],
    )
    modes = markdown_table(
        ["policy of bc.py", "hits the obstacle", "passes on the first side"],
        [[name, shown(x["hits"]), shown(x["first_side"])] for name, x in found["modes"].items()],
    )
    hidden = markdown_table(
        ["learner", f"reaches the open door within {TRIES} steps"],
        [[name, shown(numbers)] for name, numbers in found["hidden"].items()],
    )
    stitching = markdown_table(
        ["lambda", "3 to 4", "3 to 7", "reaches the goal", "steps, if it does"],
        [
            [
                "infinite (cloning)" if name == "inf" else name,
                f"{numbers['from_3'][4]:.2f}",
                f"{numbers['from_3'][7]:.2f}",
                f"{numbers['reaches_goal']:.2f}",
                f"{numbers['steps']:.1f}",
            ]
            for name, numbers in found["stitching"].items()
        ],
    )
    return f"{rope}\n\n{car}\n\n{modes}\n\n{hidden}\n\n{stitching}"


def draw(found: dict, passed: dict) -> Figure:
    """Draw the parts except the car, one panel each."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    (rope, modes), (hidden, stitching) = figure.subplots(2, 2)
    for name, look in (("cloning", "bc"), ("DAgger", "por")):
        numbers = found["rope"][name]
        means = [x["mean"] for x in numbers["costs"].values()]
        halves = [half_interval(x["per_agent"]) or 0 for x in numbers["costs"].values()]
        label = f"{name}, H to the {shown(numbers['exponent'])}"
        color = algorithm_color(look)
        rope.errorbar(HORIZONS, means, halves, color=color, linewidth=2.5, marker="o", label=label)
    rope.set_xscale("log")
    rope.set_yscale("log")
    rope.set_xticks(HORIZONS, [str(h) for h in HORIZONS], minor=False)
    rope.set_xlabel("length of an episode, H", fontsize=12)
    rope.set_title("Rope: expected steps off it", fontsize=14)
    rope.legend(fontsize=11, frameon=False)

    looks = dict(zip(POLICIES, ("bc", "td3_bc", "por", "iql", "bear"), strict=True))
    for i, (policy, beside) in enumerate(passed.items()):
        x = i + np.linspace(-0.35, 0.35, len(beside))
        modes.plot(x, beside, ".", color=algorithm_color(looks[policy]), markersize=3)
    modes.axhspan(-0.2, 0.2, color="0.85", zorder=0)
    modes.set_xticks(range(len(passed)), list(passed))
    modes.set_title("Where a clone passes the obstacle (grey)", fontsize=14)

    names = list(found["hidden"])
    hidden.bar(
        range(len(names)),
        [found["hidden"][name]["mean"] for name in names],
        yerr=[half_interval(found["hidden"][name]["per_agent"]) or 0 for name in names],
        color=[algorithm_color(look) for look in ("bc", "por", "iql")],
    )
    hidden.set_xticks(range(len(names)), [name.replace(" with", "\nwith") for name in names])
    hidden.set_ylim(0, 1.05)
    hidden.set_title("Doors: finds the open one", fontsize=14)

    labels = ["cloning" if name == "inf" else name for name in found["stitching"]]
    for end, look in ((4, "bc"), (7, "por")):
        chances = [numbers["from_3"][end] for numbers in found["stitching"].values()]
        color = algorithm_color(look)
        stitching.plot(labels, chances, color=color, linewidth=2.5, marker="o", label=f"3 to {end}")
    goal = [numbers["reaches_goal"] for numbers in found["stitching"].values()]
    stitching.plot(labels, goal, color="0.4", linestyle="--", linewidth=2, label="reaches the goal")
    stitching.set_xlabel("lambda of the weights exp(A / lambda)", fontsize=12)
    stitching.set_title("Stitching: chances of the weighted clone", fontsize=14)
    stitching.legend(fontsize=11, frameon=False)
    for axes in (rope, modes, hidden, stitching):
        axes.tick_params(labelsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def on_the_map(place: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return where a car is that is `side` to the left of the middle: (...) -> (2, ...)."""
    grid = np.linspace(0, LAP, 3_001)
    heading = 2 * np.pi / LAP * (grid + 0.8 * np.sin(4 * np.pi * grid / LAP) * LAP / (4 * np.pi))
    steps = LAP / 3_000 * np.stack([np.cos(heading), np.sin(heading)])
    middle = np.concatenate([np.zeros((2, 1)), steps[:, :-1].cumsum(axis=1)], axis=1)
    turned = np.interp(place, grid, heading)
    x, y = (np.interp(place, grid, numbers) for numbers in middle)
    return np.stack([x - side * np.sin(turned), y + side * np.cos(turned)])


def draw_car(found: dict, ways: dict) -> Figure:
    """Draw the way of a car of each agent, and how far from the middle all cars are."""
    looks = dict(zip(found, ("bc", "td3_bc", "por", "iql"), strict=True))
    figure = Figure(figsize=(12, 5), layout="constrained")
    track, distances = figure.subplots(1, 2, width_ratios=(1.3, 1))
    lap = np.linspace(0, LAP, 600)
    for side in (-WIDTH, WIDTH):
        track.plot(*on_the_map(lap, np.full(600, side)), color="0.7", linewidth=1.5)
    for name in ("cloning", "DAgger"):
        color = algorithm_color(looks[name])
        for place, side in zip(ways[name]["place"], ways[name]["side"], strict=True):
            x, y = on_the_map(place, side)
            track.plot(x, y, color=color, linewidth=1)
            track.plot(x[-1], y[-1], "o", color=color, markersize=6)
    track.set_aspect("equal")
    track.set_axis_off()
    track.set_title("Two laps of a car of each agent; a dot is where it ends", fontsize=13)
    steps = np.arange(1, CAR_STEPS + 1)
    for name, numbers in ways.items():
        distance, color = numbers["distance"], algorithm_color(looks[name])
        mean = distance.mean(0)
        half = np.array([half_interval(column) or 0 for column in distance.T])
        dashes = "--" if name == "the expert" else "-"  # DAgger's line is the same
        distances.plot(steps, mean, dashes, color=color, linewidth=2.5, label=name)
        distances.fill_between(steps, mean - half, mean + half, color=color, alpha=0.2)
    distances.set_xlabel("steps", fontsize=12)
    distances.set_title("Mean distance from the middle of the track", fontsize=13)
    distances.set_ylim(0, WIDTH)
    distances.tick_params(labelsize=11)
    distances.spines[["top", "right"]].set_visible(False)
    distances.legend(fontsize=11, frameon=False)
    return figure


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if min(args.num_seeds, args.num_clones, args.num_updates) < 1:
        sys.exit("--num-seeds, --num-clones and --num-updates must be at least 1")
    if not 0 < args.discount < 1:
        sys.exit("--discount must lie between 0 and 1")
    car, ways = study_car(args)
    modes, passed = study_modes(args)
    found = {
        "rope": study_rope(args),
        "car": car,
        "modes": modes,
        "hidden": study_hidden(args),
        "stitching": study_stitching(args.discount),
    }
    pictures = {"imitation.png": draw(found, passed), "car.png": draw_car(car, ways)}
    store("imitation", args.out, "result", found, pictures)
    print(tables(found))
    if args.page is not None:
        update_page(args.page, BEGIN, END, tables(found))


if __name__ == "__main__":
    main()
