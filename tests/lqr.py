"""A linear-quadratic task, whose largest return is known: Riccati's equation gives it."""

import gymnasium as gym
import numpy as np

ENV_ID = "LinearQuadratic-v0"
HORIZON = 6
A, B = 0.8, 0.5
STATE_COST, ACTION_COST = 1.0, 0.3


class LinearQuadratic(gym.Env):
    """x <- A x + B u with the reward -(STATE_COST x^2 + ACTION_COST u^2)."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))  # the best actions lie within

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1)
        return np.array([self.state], dtype=np.float32), {}

    def step(self, action):
        reward = -(STATE_COST * self.state**2 + ACTION_COST * action.item() ** 2)
        self.state = A * self.state + B * action.item()
        return np.array([self.state], dtype=np.float32), reward, False, False, {}


gym.register(ENV_ID, LinearQuadratic, max_episode_steps=HORIZON)


def best_gains() -> tuple[list[float], float]:
    """Return the gains k of u = -k x for every step, and the factor p of the cost p x^2."""
    cost = 0.0
    gains = []
    for _ in range(HORIZON):
        gain = A * B * cost / (ACTION_COST + B**2 * cost)
        cost = STATE_COST + ACTION_COST * gain**2 + (A - B * gain) ** 2 * cost
        gains.insert(0, gain)
    return gains, cost


def discounted_gain(discount: float) -> float:
    """Return the gain k of u = -k x that is best in a discounted task without a horizon."""
    cost = 0.0
    for _ in range(1_000):
        gain = discount * A * B * cost / (ACTION_COST + discount * B**2 * cost)
        cost = STATE_COST + ACTION_COST * gain**2 + discount * (A - B * gain) ** 2 * cost
    return gain


def stationary_cost(gain: float) -> float:
    """Return the factor p of the cost p x^2 of an episode in which u = -k x in every step."""
    growth = (A - B * gain) ** 2
    return (STATE_COST + ACTION_COST * gain**2) * sum(growth**t for t in range(HORIZON))


def best_return(episodes: int) -> float:
    """Return the largest mean return of the episodes with seeds 0, 1, ..."""
    _, cost = best_gains()
    starts = [LinearQuadratic().reset(seed=seed)[0].item() for seed in range(episodes)]
    return -cost * float(np.mean(np.square(starts)))
