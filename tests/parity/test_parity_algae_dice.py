"""Parity of algorithms/algae_dice.py with a second version of the authors' TensorFlow update.

    python -m pytest tests/parity/test_parity_algae_dice.py

The authors' code is TensorFlow (google-research/google-research @ 0c1bbe5, algae_dice/algae.py).
`Reference` does one agent's update as that file states it, by torch.nn.Linear, torch.distributions
and torch.optim.Adam, and shares no line with ours. Both get the same weights, batches and noise.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import algae_dice
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 32,
         "weight": 0.01, "exponent": 1.5, "discount": 0.99, "polyak": 0.005, "actor_lr": 1e-3,
         "lr": 1e-3}
CASES = {
    "the authors' settings": {**SMALL, "seed": 1},
    "other numbers": {**SMALL, "weight": 0.7, "exponent": 2.0, "discount": 0.9, "polyak": 0.1,
                      "actor_lr": 3e-3, "lr": 2e-3, "act_dim": 1, "seed": 2},
}
# fmt: on
LOSSES = ("loss/critic", "loss/policy")
CRITICS = ("critic", "critic_target")

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng = np.random.default_rng([seed, 0])
    obs, act, hidden = case["obs_dim"], case["act_dim"], [case["hidden"]] * 2
    weights = {
        f"{name}{i}": draw_network(rng, [obs + act, *hidden, 1]) for name in CRITICS for i in (1, 2)
    }
    return weights | {"policy": draw_network(rng, [obs, *hidden, 2 * act])}


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[list[np.ndarray]]]:
    """Draw the batch and the noise of every update, at s_0 and at s'; of pi's updates, twice."""
    rng, size = np.random.default_rng([seed, 1]), case["batch_size"]
    batches, noise = [], []
    for step in range(UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"])}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["initial_observations"] = uniform(rng, -1, 1, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 1, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        count = 2 if step % 2 == 0 else 4
        noise.append([uniform(rng, -2, 2, size, case["act_dim"]) for _ in range(count)])
    return batches, noise


# ---- The second version ----


def linear_network(tensors: dict) -> nn.Sequential:
    """Return a network with given weights, in PyTorch's layout."""
    layers = []
    for i in range(3):
        fan_out, fan_in = tensors[f"weight{i}"].shape
        layer = nn.Linear(fan_in, fan_out)
        layer.weight.data = torch.from_numpy(tensors[f"weight{i}"].copy())
        layer.bias.data = torch.from_numpy(tensors[f"bias{i}"].copy())
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Reference:
    """One agent of the authors' ALGAE with use_dqn and use_init_states."""

    def __init__(self, case: dict, weights: dict):
        self.case = case
        nets = {name: linear_network(tensors) for name, tensors in weights.items()}
        self.actor = nets["policy"]
        self.q = [nets["critic1"], nets["critic2"]]
        self.target = [nets["critic_target1"], nets["critic_target2"]]
        self.log_alpha = torch.zeros(1, requires_grad=True)
        critic = [p for net in self.q for p in net.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic, case["lr"], eps=1e-7)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), case["actor_lr"], eps=1e-7)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], 1e-3, eps=1e-7)

    def sample(self, states, noise):
        mu, log_std = self.actor(states).chunk(2, dim=1)
        std = (-5 + 0.5 * 7 * (log_std.tanh() + 1)).exp()
        normal = torch.distributions.Normal(mu, std)
        squash = torch.distributions.TanhTransform(cache_size=1)
        pi = torch.distributions.TransformedDistribution(normal, [squash])
        action = squash(mu + std * noise)
        return action, pi.log_prob(action).sum(1, keepdim=True)

    def residuals(self, batch, next_action, next_log_pi):
        case = self.case
        here = torch.cat([batch["observations"], batch["actions"]], 1)
        there = torch.cat([batch["next_observations"], next_action], 1)
        smaller = torch.minimum(*(net(there) for net in self.target))
        residuals = []
        for net in self.q:
            next_q = 0.05 * net(there) + 0.95 * smaller
            next_q = next_q - self.log_alpha.detach().exp() * next_log_pi
            mask = (1 - batch["terminals"]).unsqueeze(1)
            target = batch["rewards"].unsqueeze(1) + case["discount"] * mask * next_q
            residuals.append(target - net(here))
        return residuals

    def first_values(self, batch, action):
        start = torch.cat([batch["initial_observations"], action], 1)
        factor = (1 - self.case["discount"]) * self.case["weight"]
        return [factor * net(start) for net in self.q]

    def update(self, batch: dict, noise: list, with_actor: bool) -> list[float]:
        p = self.case["exponent"]
        with torch.no_grad():
            first, _ = self.sample(batch["initial_observations"], noise[0])
            following, log_pi = self.sample(batch["next_observations"], noise[1])
        pairs = zip(
            self.residuals(batch, following, log_pi), self.first_values(batch, first), strict=True
        )
        critic_loss = sum((d.abs().pow(p) / p + v).mean() for d, v in pairs)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        if not with_actor:
            return [critic_loss.item()]

        first, _ = self.sample(batch["initial_observations"], noise[2])
        following, log_pi = self.sample(batch["next_observations"], noise[3])
        pairs = zip(
            self.residuals(batch, following, log_pi), self.first_values(batch, first), strict=True
        )
        losses = [-(d.detach().clamp(0, 1e6).pow(p - 1) * d + value).mean() for d, value in pairs]
        actor_loss = sum(losses) / 2
        for layer in self.actor:
            if isinstance(layer, nn.Linear):
                kernel = layer.weight.T  # as Keras stores it
                product = kernel.T @ kernel
                actor_loss = (
                    actor_loss + 1e-4 * (product * (1 - torch.eye(len(product)))).square().sum()
                )
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        target_entropy = -self.case["act_dim"]
        alpha_loss = (self.log_alpha.exp() * (-log_pi.detach() - target_entropy)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
        tau = self.case["polyak"]
        with torch.no_grad():
            for net, target in zip(self.q, self.target, strict=True):
                for p_new, p_old in zip(net.parameters(), target.parameters(), strict=True):
                    p_old.copy_(tau * p_new + (1 - tau) * p_old)
        return [critic_loss.item(), actor_loss.item()]

    def slots(self) -> dict:
        nets = {"policy": self.actor, "log_alpha": None}
        for i in (1, 2):
            nets[f"critic{i}"], nets[f"critic_target{i}"] = self.q[i - 1], self.target[i - 1]
        found = {"log_alpha": self.log_alpha}
        for name, net in nets.items():
            for k, layer in enumerate(net[::2] if net is not None else []):
                found[f"{name}.weight{k}"], found[f"{name}.bias{k}"] = layer.weight, layer.bias
        return found


def run_reference(case: dict) -> dict:
    result = {"losses": {}, "parameters": {}}
    with harness.default_dtype(case):
        reference = Reference(case, copy.deepcopy(draw_weights(case, case["seed"])))
        batches, noise = draw_batches(case, case["seed"])
        for step, (batch, numbers) in enumerate(zip(batches, noise, strict=True), 1):
            numbers = [torch.from_numpy(x) for x in numbers]
            losses = reference.update(harness.tensors(batch), numbers, with_actor=step % 2 == 0)
            harness.note(result, step, losses, reference.slots, (1, 2, UPDATES))
    return result


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of the n-th agent's weights, by the names of the recipe."""
    nets = {"policy": harness.views(agent.policy.net, n)}
    for name in CRITICS:
        for i in (1, 2):
            nets[f"{name}{i}"] = harness.views(getattr(agent, name).net, 2 * n + i - 1)
    return harness.flatten(nets)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(algae_dice, case, num_seeds=len(seeds))
        task = harness.make_task(algae_dice, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = algae_dice.AlgaeDICE(args, task, "cpu")
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
            lambda: slots(agent, last) | {"log_alpha": agent.log_alpha[last:]},
            (1, 2, UPDATES),
        )


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_the_authors_equations(name):
    case = CASES[name]
    expected = run_reference(case)
    assert len(expected["losses"]["2"]) == len(LOSSES)
    ours = run_ours(case, [case["seed"]])
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone():
    case = CASES["other numbers"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, run_reference(case), TOLERANCE[case["dtype"]]) == []
