"""Parity of algorithms/td3.py and algorithms/ddpg.py with the public code of TD3's authors.

python -m pytest tests/parity/test_parity_td3.py
python -m tests.parity.test_parity_td3 AUTHORS_CHECKOUT    # write golden/td3.json anew
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ddpg
import td3
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/sfujim/TD3"
COMMIT = "34770ccdcb51df6f6c7d85c1ba7e40d71b940d16"
SNAPSHOTS = (1, 2, 50)  # TD3's policy moves in every second update, counted from 1
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "batch_size": 64}
CASES = {
    "td3": {**SMALL, "hidden": 16, "discount": 0.99, "polyak": 0.005, "sigma": 0.2,
            "noise_clip": 0.5, "seed": 1},
    "td3, other settings": {**SMALL, "hidden": 16, "discount": 0.9, "polyak": 0.1, "sigma": 0.4,
                            "noise_clip": 0.3, "seed": 2},
    "ddpg": {**SMALL, "hidden": 16, "discount": 0.99, "polyak": 0.001, "seed": 3},
    "ddpg, other settings": {**SMALL, "hidden": 20, "discount": 0.9, "polyak": 0.1, "seed": 4},
}
# fmt: on
MODULES = {"td3": td3, "ddpg": ddpg}


def script_of(name: str) -> ModuleType:
    return MODULES[name.split(",")[0]]


def widths_of(module: ModuleType, case: dict) -> list[int]:
    """Return the hidden units of both layers."""
    return [case["hidden"], case["hidden"] if module is td3 else case["hidden"] * 3 // 4]


# ---- The recipe ----


def draw_weights(module: ModuleType, case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show.

    Policies have weights so large that noise takes their actions beyond the bounds.
    """
    rng, widths = np.random.default_rng([seed, 0]), widths_of(module, case)
    obs_dim, act_dim = case["obs_dim"], case["act_dim"]
    weights = {}
    for suffix in ("", "_target"):
        policy = draw_network(rng, [obs_dim, *widths, act_dim])
        weights["policy" + suffix] = {key: 3 * array for key, array in policy.items()}
        if module is td3:
            for name in ("q1", "q2"):
                weights[name + suffix] = draw_network(rng, [obs_dim + act_dim, *widths, 1])
        else:
            weights["first" + suffix] = draw_network(rng, [obs_dim, widths[0]])
            weights["rest" + suffix] = draw_network(rng, [widths[0] + act_dim, widths[1], 1])
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[np.ndarray]]:
    """Draw batches and noise of all updates. The noise reaches so far that its clip counts."""
    rng, size = np.random.default_rng([seed, 1]), case["batch_size"]
    batches, noise = [], []
    for _ in range(UPDATES):
        batch = {"observations": uniform(rng, -1, 1, size, case["obs_dim"])}
        batch["actions"] = uniform(rng, -1, 1, size, case["act_dim"])
        batch["next_observations"] = uniform(rng, -1, 1, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        noise.append(uniform(rng, -4, 4, size, case["act_dim"]))
    return batches, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights by the names of the recipe."""
    found = {}
    for suffix in ("", "_target"):
        critic = getattr(agent, "critic" + suffix)
        found["policy" + suffix] = harness.views(getattr(agent, "policy" + suffix), n)
        if isinstance(agent, td3.TD3):
            found["q1" + suffix] = harness.views(critic.q1, n)
            found["q2" + suffix] = harness.views(critic.q2, n)
        else:
            found["first" + suffix] = harness.views([critic.first], n)
            found["rest" + suffix] = harness.views(critic.rest, n)
    return harness.flatten(found)


def run_ours(name: str, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    module, case = script_of(name), CASES[name]
    with harness.default_dtype(case):
        args = harness.make_args(module, case, num_seeds=len(seeds))
        dims = {"obs_dim": case["obs_dim"], "act_dim": case["act_dim"]}
        agent = module.Algorithm(args, harness.make_task(module, **dims), "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(module, case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches, noise = [], []
        for step in range(UPDATES):
            batches.append(harness.stack(given[step] for given, _ in drawn))
            numbers = torch.as_tensor(np.stack([given[step] for _, given in drawn]))
            noise.append([numbers] if module is td3 else [])
        return harness.run_updates(
            agent.phases[0].updates,
            batches,
            noise,
            ("loss/critic", "loss/policy"),
            lambda: slots(agent, len(seeds) - 1),
            SNAPSHOTS,
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("td3", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    ours = run_ours(name, [CASES[name]["seed"]])
    first = 1 if script_of(name) is td3 else 2
    assert len(golden[name]["losses"]["1"]) == first and len(golden[name]["losses"]["2"]) == 2
    assert harness.differences(ours, golden[name], TOLERANCE["float64"]) == []


@pytest.mark.parametrize("name", MODULES)
def test_an_agent_trains_beside_others_as_alone(name, golden):
    seed = CASES[name]["seed"]
    ours = run_ours(name, [seed + 100, seed])
    assert harness.differences(ours, golden[name], TOLERANCE["float64"]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path, name: str) -> ModuleType:
    """Return one of their modules."""
    spec = importlib.util.spec_from_file_location(f"authors_{name}", checkout / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_authors(module: ModuleType, ours: ModuleType, case: dict) -> tuple:
    """Return their agent with the recipe's weights, and these by name."""
    widths = widths_of(ours, case)
    smaller = {256: widths[0], 400: widths[0], 300: widths[1]}
    smaller[400 + case["act_dim"]] = widths[0] + case["act_dim"]

    def linear(fan_in, fan_out):
        return nn.Linear(smaller.get(fan_in, fan_in), smaller.get(fan_out, fan_out))

    module.nn = SimpleNamespace(Module=nn.Module, Linear=linear)  # the widths are in their text
    options = {"discount": case["discount"], "tau": case["polyak"]}
    if ours is td3:
        options |= {"policy_noise": case["sigma"], "noise_clip": case["noise_clip"]}
        agent = module.TD3(case["obs_dim"], case["act_dim"], 1.0, **options)
        layers = {"policy": ("actor", 1, 3), "q1": ("critic", 1, 3), "q2": ("critic", 4, 3)}
    else:
        agent = module.DDPG(case["obs_dim"], case["act_dim"], 1.0, **options)
        layers = {"policy": ("actor", 1, 3), "first": ("critic", 1, 1), "rest": ("critic", 2, 2)}
    parameters = {}
    for suffix in ("", "_target"):
        for name, (network, first, count) in layers.items():
            for i in range(count):
                layer = getattr(getattr(agent, network + suffix), f"l{first + i}")
                parameters[f"{name}{suffix}.weight{i}"] = layer.weight
                parameters[f"{name}{suffix}.bias{i}"] = layer.bias
    views = {name: parameter.data for name, parameter in parameters.items()}
    harness.fill(views, harness.flatten(draw_weights(ours, case, case["seed"])))
    return agent, parameters


def run_authors(module: ModuleType, ours: ModuleType, case: dict) -> dict:
    """Do their updates, unchanged. Losses are read where they call backward."""
    agent, parameters = build_authors(module, ours, case)
    batches, noise = draw_batches(case, case["seed"])
    result, losses = {"losses": {}, "parameters": {}}, []
    backward = torch.Tensor.backward

    def noted_backward(loss):
        losses.append(loss.item())
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        for step in range(UPDATES):
            losses.clear()
            batch = {key: torch.as_tensor(column) for key, column in batches[step].items()}
            columns = [batch["observations"], batch["actions"], batch["next_observations"]]
            columns += [batch["rewards"].unsqueeze(1), 1 - batch["terminals"].unsqueeze(1)]
            sampler = SimpleNamespace(sample=lambda _, columns=columns: columns)
            with harness.fed_noise([torch.as_tensor(noise[step])] if ours is td3 else []):
                agent.train(sampler, case["batch_size"])
            harness.note(result, step + 1, list(losses), lambda: parameters, SNAPSHOTS)
    return result


def record(checkout: Path) -> None:
    """Write golden/td3.json from a checkout of the authors' repository at COMMIT."""
    results = {}
    for name, case in CASES.items():
        ours = script_of(name)
        with harness.default_dtype(case):
            module = load_authors(checkout, "TD3" if ours is td3 else "DDPG")
            results[name] = run_authors(module, ours, case)
    harness.write_golden("td3", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
