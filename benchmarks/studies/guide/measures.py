"""Measures of POR's guide: beyond its data, and along rollouts."""

from typing import NamedTuple

import numpy as np
import torch

from benchmarks.studies.guide.cut import inside
from benchmarks.studies.shared import por

NEAR = 95  # percentile of the recorded next states' own distance to the data that counts as near
REFERENCE = 200_000  # most states of the data that a state is compared with
RESAMPLES = 2_000  # of the bootstrap; its interval's ends move by some 0.01


class Rows(NamedTuple):
    """Transitions: s (n, obs), a (n, act) in [-1, 1], s' (n, obs)."""

    s: np.ndarray
    a: np.ndarray
    s2: np.ndarray

    def pick(self, index) -> "Rows":
        return Rows(*(column[index] for column in self))


def thin(count: int, most: int) -> np.ndarray:
    """Return indices of at most `most` of `count` rows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1)


@torch.no_grad()
def value(agent, states: np.ndarray) -> np.ndarray:
    """Return V of states (n, obs) or (N, n, obs): (N, n)."""
    batch = torch.as_tensor(states).expand(agent.args.num_seeds, -1, -1)
    return agent.value(batch).amin(1).numpy()


@torch.no_grad()
def guide_goals(agent, states: np.ndarray) -> np.ndarray:
    """Return the mean of g(s) for states (n, obs) or (N, n, obs): (N, n, obs)."""
    return agent.guide(torch.as_tensor(states).expand(agent.args.num_seeds, -1, -1))[0].numpy()


@torch.no_grad()
def execute(agent, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Return the clipped action that pi takes from states towards goals: (N, n, act)."""
    s = torch.as_tensor(states).expand(agent.args.num_seeds, -1, -1)
    goal = torch.as_tensor(goals).expand(agent.args.num_seeds, -1, -1)
    return agent.execute(torch.cat([s, goal], -1))[0].numpy().clip(-1, 1)


def terms_on_rows(agent, rows: Rows) -> dict[str, np.ndarray]:
    """Return gap, swap and error of recorded rows: (N, n)."""
    goal = guide_goals(agent, rows.s)
    towards_recorded = execute(agent, rows.s, rows.s2)
    return {
        "gap": norm(goal - rows.s2),
        "swap": norm(execute(agent, rows.s, goal) - towards_recorded),
        "error": norm(towards_recorded - rows.a),
    }


def nearest(states: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Return the distance of each state (..., d) to the closest of data (n, d): (...,)."""
    flat = torch.as_tensor(states).flatten(0, -2)
    reference = torch.as_tensor(data)
    # Matrix products would lose the small distances.
    exact = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(part, reference, compute_mode=exact).amin(1) for part in flat.split(100)]
    return torch.cat(parts).reshape(states.shape[:-1]).numpy()


def body(task) -> tuple[slice, slice]:
    """Return which observations say where the body is, and which its whole state.

    PointMaze repeats the position and adds the goal, which no action moves.
    """
    if "PointMaze" in task.env_id:
        return slice(4, 6), slice(4, 8)
    if "Hopper" in task.env_id:
        return slice(0, 5), slice(None)
    return slice(None), slice(None)


MEASURES = {
    "distance": "mean |g(s) - s'| of the position, in mean steps |s' - s| of rows outside",
    "cosine": "mean cosine between g(s) - s and s' - s of the position",
    "in_box": "share of g(s) in the box",
    "near": "share of g(s) near a state of the data with the box",
    "near_recorded": "share of s' near one",
    "higher_own, higher_control": "share of V(g(s)) > V(s'), by the own V, by the control's",
    "gain_own, gain_control": "mean V(g(s)) - V(s'), in deviations of V over rows outside",
}


def measure_beyond(agents: dict, task, data: np.ndarray, regions: dict, box: list) -> dict:
    """Return measure -> agent -> region -> a number per agent (N,); see MEASURES.

    agents: by name, cut and control. data: states (n, obs) with the box. regions: Rows by name,
    inside and outside.
    """
    place, state = body(task)
    outside = regions["outside"]
    scale = data[:, state].std(0) + 1e-8
    reference = np.float32(data[thin(len(data), REFERENCE)][:, state] / scale)
    recorded = nearest(np.float32(outside.s2[:, state] / scale), reference)
    radius = np.percentile(recorded, NEAR)
    step = norm((outside.s2 - outside.s)[:, place]).mean()
    found = {}
    for name, agent in agents.items():
        for region, rows in regions.items():
            goal = guide_goals(agent, rows.s)
            heading, way = (goal - rows.s)[..., place], (rows.s2 - rows.s)[:, place]
            cosine = (heading * way).sum(-1) / (norm(heading) * norm(way) + 1e-12)
            near_recorded = nearest(np.float32(rows.s2[:, state] / scale), reference) <= radius
            numbers = {
                "distance": norm((goal - rows.s2)[..., place]).mean(1) / step,
                "cosine": cosine.mean(1),
                "in_box": inside(goal, box).mean(1),
                "near": (nearest(np.float32(goal[..., state] / scale), reference) <= radius).mean(
                    1
                ),
                "near_recorded": np.full(len(goal), near_recorded.mean()),
            }
            for judge, judging in {"own": agent, "control": agents["control"]}.items():
                gain = gains(judging, goal, rows, outside)
                numbers[f"higher_{judge}"] = (gain > 0).mean(1)
                numbers[f"gain_{judge}"] = gain.mean(1)
            for measure, values in numbers.items():
                found.setdefault(measure, {}).setdefault(name, {})[region] = values
    return found


def gains(judge, goal: np.ndarray, rows: Rows, outside: Rows) -> np.ndarray:
    """Return V(g(s)) - V(s'), in deviations of V over rows outside: (N, n)."""
    spread = value(judge, outside.s).std(1, keepdims=True)
    return (value(judge, goal) - value(judge, rows.s2)) / spread


def rollouts(agent, task, episodes: int) -> dict[str, np.ndarray]:
    """Play episodes as por.evaluate does: return, steps, and gap and error, their means and most.

    gap = |g(s) - s'|, where s' is the state that the agent came to. error = |pi(s,s') - a|, where a
    is what the agent did. All arrays are (N, episodes).
    """
    shape = (agent.args.num_seeds, episodes)
    envs = [por.make_env(task) for _ in range(shape[0] * episodes)]
    obs = np.stack([env.reset(seed=i % episodes)[0] for i, env in enumerate(envs)])
    obs = obs.astype(np.float32).reshape(*shape, -1)
    names = ("return", "steps", "gap", "error", "gap_max", "error_max")
    found = {name: np.zeros(shape) for name in names}
    playing = np.ones(shape, bool)
    while playing.any():
        goal = guide_goals(agent, obs)
        actions = execute(agent, obs, goal)
        next_obs = obs.copy()
        ends = np.zeros(shape, bool)
        for i, j in np.argwhere(playing):
            answer = envs[i * episodes + j].step(actions[i, j])
            next_obs[i, j], reward, terminated, truncated, _ = answer
            found["return"][i, j] += reward
            ends[i, j] = terminated or truncated
        gap = norm(goal - next_obs)
        error = norm(execute(agent, obs, next_obs) - actions)
        for name, numbers in (("gap", gap), ("error", error)):
            found[name][playing] += numbers[playing]
            most = f"{name}_max"
            found[most][playing] = np.maximum(found[most][playing], numbers[playing])
        found["steps"][playing] += 1
        obs = next_obs
        playing = playing & ~ends
    for env in envs:
        env.close()
    found["gap"] /= found["steps"]
    found["error"] /= found["steps"]
    return found


def ranks(x: np.ndarray) -> np.ndarray:
    """Return the ranks of numbers (n,); equal ones share their mean rank."""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the rank correlation of two arrays; NaN where one is constant."""
    x, y = ranks(x.ravel()), ranks(y.ravel())
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size > 0 else float("nan")


def correlation(x: np.ndarray, y: np.ndarray, within: bool = False) -> dict:
    """Return the rank correlation of arrays (checkpoints, N), with its 95 % interval.

    The bootstrap draws agents, so that the numbers of one stay together. within: take each
    checkpoint's mean away, so that only differences among agents count.
    """
    if within:
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    agents = x.shape[1]
    picks = np.random.default_rng(0).integers(agents, size=(RESAMPLES, agents))
    drawn = np.array([spearman(x[:, pick], y[:, pick]) for pick in picks])
    drawn = drawn[np.isfinite(drawn)]
    whole = spearman(x, y)
    interval = np.percentile(drawn, [2.5, 97.5]).round(3).tolist() if len(drawn) > 100 else None
    return {"spearman": round(whole, 3) if np.isfinite(whole) else None, "interval": interval}
