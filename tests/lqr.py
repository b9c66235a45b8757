"""A linear-quadratic task, whose largest return is known: Riccati's equation gives it."""

import gymnasium as gym
import numpy as np

ENV_ID = "LinearQuadratic-v0"
HORIZON = 20
# Position and speed. Left alone, a moving mass goes on; an action changes its speed.
A = np.array([[0.9, 0.3], [0.0, 0.5]])
B = np.array([[0.2], [0.5]])
STATE_COST = np.diag([1.0, 0.0])
ACTION_COST = np.array([[0.5]])


class LinearQuadratic(gym.Env):
    """x <- A x + B u with the reward -(x' STATE_COST x + u' ACTION_COST u)."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
        # The best actions lie within.
        self.action_space = gym.spaces.Box(-1.5, 1.5, (1,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.astype(np.float32), {}

    def step(self, action):
        cost = self.state @ STATE_COST @ self.state + action @ ACTION_COST @ action
        self.state = A @ self.state + B @ action
        return self.state.astype(np.float32), -float(cost), False, False, {}


gym.register(ENV_ID, LinearQuadratic, max_episode_steps=HORIZON)


def best_gains() -> tuple[list[np.ndarray], np.ndarray]:
    """Return the gains K of u = -K x for every step, and the matrix P of the cost x' P x."""
    cost = np.zeros((2, 2))
    gains = []
    for _ in range(HORIZON):
        gain = np.linalg.solve(ACTION_COST + B.T @ cost @ B, B.T @ cost @ A)
        closed = A - B @ gain
        cost = STATE_COST + gain.T @ ACTION_COST @ gain + closed.T @ cost @ closed
        gains.insert(0, gain)
    return gains, cost


def best_return(episodes: int) -> float:
    """Return the largest mean return of the episodes with seeds 0, 1, ..."""
    _, cost = best_gains()
    starts = [LinearQuadratic().reset(seed=seed)[0].astype(float) for seed in range(episodes)]
    return -float(np.mean([start @ cost @ start for start in starts]))
