"""Parity of algorithms/abm.py with its equations in NumPy, because there is no public code.

    python -m pytest tests/parity/test_parity_abm.py

NumpyABM is written from the equations of the paper, with derivatives by hand and an Adam of its
own, in float64. Both get the same weights, batches and noise.
"""

import numpy as np
import pytest
import torch

import abm
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 32,
         "num_samples": 6, "prior": "abm", "bound": 0.1, "discount": 0.99, "polyak": 0.005,
         "lr": 1e-3}
CASES = {
    "abm": {**SMALL, "seed": 1},
    "bm": {**SMALL, "prior": "bm", "seed": 2},
    "no improvement": {**SMALL, "bound": 0.0, "seed": 3},
    "other numbers": {**SMALL, "bound": 0.3, "discount": 0.9, "polyak": 0.1, "num_samples": 3,
                      "act_dim": 1, "seed": 4},
}
# fmt: on
LOSSES = ("loss/critic", "loss/prior", "loss/policy", "kl")
NETWORKS = ("critic", "critic_target", "prior", "policy")

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show.

    The last layers of the policies are so large that deviations reach their clamps.
    """
    rng = np.random.default_rng([seed, 0])
    obs, act, hidden = case["obs_dim"], case["act_dim"], [case["hidden"]] * 2
    weights = {}
    for name in NETWORKS:
        if name.startswith("critic"):
            weights[name] = draw_network(rng, [obs + act, *hidden, 1])
        else:
            weights[name] = draw_network(rng, [obs, *hidden, 2 * act])
            weights[name]["weight2"] *= 6
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[list[np.ndarray]]]:
    """Draw a batch and the noise of every update: of pi at s' and at s, and of the prior at s."""
    rng, size = np.random.default_rng([seed, 1]), case["batch_size"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"])}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 1, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        shape = (size, case["num_samples"], case["act_dim"])
        noise.append([uniform(rng, -2, 2, *shape) for _ in range(3)])
    return batches, noise


# ---- The equations in NumPy ----


class Adam:
    """Adam as its paper has it."""

    def __init__(self, arrays: dict, lr: float):
        self.arrays = arrays
        self.lr = lr
        self.moments = {name: (0 * array, 0 * array) for name, array in arrays.items()}
        self.steps = 0

    def step(self, gradients: dict) -> None:
        self.steps += 1
        for name, gradient in gradients.items():
            first, second = self.moments[name]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            self.moments[name] = (first, second)
            mean = first / (1 - 0.9**self.steps)
            scale = np.sqrt(second / (1 - 0.999**self.steps)) + 1e-8
            self.arrays[name] = self.arrays[name] - self.lr * mean / scale


class Network:
    """A network of two hidden layers and its Adam."""

    def __init__(self, arrays: dict, lr: float):
        self.arrays = {name: array.copy() for name, array in arrays.items()}
        self.optimizer = Adam(self.arrays, lr)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the output (..., out), and keep what descend() needs."""
        self.inputs = []
        for i in range(3):
            self.inputs.append(x)
            x = x @ self.arrays[f"weight{i}"].T + self.arrays[f"bias{i}"]
            if i < 2:
                x = np.maximum(x, 0)
        return x

    def descend(self, slope: np.ndarray) -> None:
        """Take a step, given the derivative (B, out) of the loss by the last output."""
        gradients = {}
        for i in (2, 1, 0):
            gradients[f"weight{i}"] = slope.T @ self.inputs[i]
            gradients[f"bias{i}"] = slope.sum(0)
            slope = np.where(self.inputs[i] > 0, slope @ self.arrays[f"weight{i}"], 0)
        self.optimizer.step(gradients)


def minimum(function, low: float, high: float) -> float:
    """Return where a convex function is smallest, by its slope, which crosses 0 there."""
    for _ in range(60):
        middle = np.sqrt(low * high)
        step = 1e-5 * middle
        if function(middle + step) < function(middle - step):
            low = middle
        else:
            high = middle
    return middle


class NumpyABM:
    """One agent."""

    def __init__(self, case: dict, seed: int):
        self.case = case
        weights = draw_weights(case, seed)
        self.networks = {name: Network(weights[name], case["lr"]) for name in NETWORKS}

    def q(self, name: str, s: np.ndarray, a: np.ndarray) -> np.ndarray:
        return self.networks[name].forward(np.concatenate([s, a], -1))[..., 0]

    def gaussian(self, name: str, s: np.ndarray) -> tuple:
        """Return mean, deviation, and where the deviation is not clamped."""
        mean, log_std = np.split(self.networks[name].forward(s), 2, -1)
        free = (log_std > -5) & (log_std < 2)
        return np.tanh(mean), np.exp(np.clip(log_std, -5, 2)), free

    def draw(self, name: str, s: np.ndarray, noise: np.ndarray) -> tuple:
        """Return draws (B, M, act) and their Q' (B, M)."""
        mean, std, _ = self.gaussian(name, s)
        a = mean[:, None] + std[:, None] * noise
        many = np.repeat(s[:, None], noise.shape[1], 1)
        return a, self.q("critic_target", many, np.clip(a, -1, 1))

    def imitate(self, name: str, s: np.ndarray, a: np.ndarray, weight: np.ndarray) -> float:
        """Minimise the mean of -weight log p(a|s), given (B, K, act) and (B, K)."""
        mean, std, free = (part[:, None] for part in self.gaussian(name, s))
        z = (a - mean) / std
        log_p = (-(z**2) / 2 - np.log(std) - np.log(2 * np.pi) / 2).sum(-1)
        by_mean = (weight[..., None] * z / std).sum(1) * (1 - mean[:, 0] ** 2)
        by_log_std = (weight[..., None] * (z**2 - 1)).sum(1) * free[:, 0]
        self.networks[name].descend(-np.concatenate([by_mean, by_log_std], 1) / len(s))
        return -(weight * log_p).sum(1).mean()

    def dual(self, q: np.ndarray, eta: float) -> float:
        """Return what the temperature minimises, given Q' of the prior's draws (B, M)."""
        most = q.max(1, keepdims=True)
        log_mean = np.log(np.exp((q - most) / eta).mean(1)) + most[:, 0] / eta
        return eta * self.case["bound"] + eta * log_mean.mean()

    def update(self, batch: dict, noise: list) -> list[float]:
        """Do one update. Return what LOSSES names."""
        case, s, a = self.case, batch["observations"], batch["actions"]
        _, next_q = self.draw("policy", batch["next_observations"], noise[0])
        _, here_q = self.draw("policy", s, noise[1])
        y = batch["rewards"] + case["discount"] * (1 - batch["terminals"]) * next_q.mean(1)
        advantage = y - here_q.mean(1)

        error = self.q("critic", s, a) - y
        self.networks["critic"].descend(2 * error[:, None] / len(s))

        worked = np.ones(len(s))
        if case["prior"] == "abm":
            worked = np.where(advantage >= 0, 1.0, 0.0)
            assert 0 < worked.mean() < 1
        prior_loss = self.imitate("prior", s, a[:, None], worked[:, None])

        draws, q = self.draw("prior", s, noise[2])
        share = np.full(q.shape, 1 / case["num_samples"])
        if case["bound"] > 0:
            eta = minimum(lambda eta: self.dual(q, eta), 1e-3, 1e3)
            assert 2e-3 < eta < 5e2, "the minimum is not inside the interval"
            share = np.exp(q / eta) / np.exp(q / eta).sum(1, keepdims=True)
        kl = (share * np.log(share * case["num_samples"])).sum(1).mean()
        policy_loss = self.imitate("policy", s, draws, share)

        target = self.networks["critic_target"].arrays
        for name, array in self.networks["critic"].arrays.items():
            target[name] = (1 - case["polyak"]) * target[name] + case["polyak"] * array
        return [(error**2).mean(), prior_loss, policy_loss, kl]

    def parameters(self) -> dict:
        arrays = {name: network.arrays for name, network in self.networks.items()}
        return harness.flatten(arrays)


def run_numpy(case: dict) -> dict:
    """Return the numbers of the equations."""
    agent = NumpyABM(case, case["seed"])
    result = {"losses": {}, "parameters": {}}
    for step, (batch, noise) in enumerate(zip(*draw_batches(case, case["seed"]), strict=True), 1):
        harness.note(result, step, agent.update(batch, noise), agent.parameters)
    return result


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    return harness.flatten({name: harness.views(getattr(agent, name).net, n) for name in NETWORKS})


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(abm, case, num_seeds=len(seeds))
        task = harness.make_task(abm, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = abm.ABM(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(batches[k] for batches, _ in drawn) for k in range(UPDATES)]
        noise = []
        for k in range(UPDATES):
            parts = zip(*(numbers[k] for _, numbers in drawn), strict=True)
            noise.append([torch.as_tensor(np.stack(part)) for part in parts])
        last = len(seeds) - 1
        return harness.run_updates(
            agent.phases[0].updates,
            batches,
            noise,
            LOSSES,
            lambda: slots(agent, last),
        )


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_the_equations(name):
    case = CASES[name]
    expected = run_numpy(case)
    assert len(expected["losses"]["1"]) == len(LOSSES)
    ours = run_ours(case, [case["seed"]])
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone():
    case = CASES["abm"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, run_numpy(case), TOLERANCE[case["dtype"]]) == []
