"""Parity of algorithms/bcq.py with the authors' public code.

python -m pytest tests/parity/test_parity_bcq.py
python -m tests.parity.test_parity_bcq AUTHORS_CHECKOUT    # write golden/bcq.json anew
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import bcq
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/sfujim/BCQ"
COMMIT = "4876f7e5afa9eb2981feec5daf67202514477518"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "vae_hidden": 20,
         "batch_size": 64}
CASES = {
    "defaults": {**SMALL, "phi": 0.05, "lambd": 0.75, "seed": 1},
    "far moves": {**SMALL, "phi": 0.5, "lambd": 0.75, "seed": 2},
    "smaller of two": {**SMALL, "phi": 0.05, "lambd": 1.0, "seed": 3},
    "no moves": {**SMALL, "phi": 0.0, "lambd": 0.75, "seed": 4},
    "full width": {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 400,
                   "vae_hidden": 750, "batch_size": 100, "phi": 0.05, "lambd": 0.75, "seed": 5},
}
# fmt: on
SAMPLES = 10  # actions of a next state, in the authors' text

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show.

    The decoder and xi have weights so large that moved actions pass the bounds.
    """
    rng = np.random.default_rng([seed, 0])
    obs, act, latent = case["obs_dim"], case["act_dim"], 2 * case["act_dim"]
    layers = [obs + act, case["hidden"], 3 * case["hidden"] // 4]
    hidden = [case["vae_hidden"]] * 2
    weights = {}
    for suffix in ("", "_target"):
        weights["perturb" + suffix] = draw_network(rng, [*layers, act])
        for name in ("q1", "q2"):
            weights[name + suffix] = draw_network(rng, [*layers, 1])
    weights["encoder"] = draw_network(rng, [obs + act, *hidden, 2 * latent])
    weights["encoder"]["bias2"][-1] = -6  # a logarithm of the std that the clamp changes
    weights["decoder"] = draw_network(rng, [obs + latent, *hidden, act])
    for name in ("perturb", "perturb_target", "decoder"):
        weights[name]["weight2"] *= 4
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[list[np.ndarray]]]:
    """Draw a batch and the noise of every update. The noise of draws reaches beyond its clip."""
    rng, size, latent = np.random.default_rng([seed, 1]), case["batch_size"], 2 * case["act_dim"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"])}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        rows = (size, size * SAMPLES, size)
        noise.append([uniform(rng, -1.5, 1.5, count, latent) for count in rows])
    return batches, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {}
    for suffix in ("", "_target"):
        found["perturb" + suffix] = harness.views(getattr(agent, "perturb" + suffix).net, n)
        found["q1" + suffix], found["q2" + suffix] = harness.twin_views(
            getattr(agent, "critic" + suffix), n
        )
    found["encoder"] = harness.views(agent.vae.encoder, n)
    found["decoder"] = harness.views(agent.vae.decoder, n)
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(bcq, case, num_seeds=len(seeds))
        task = harness.make_task(bcq, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = bcq.BCQ(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(batches[k] for batches, _ in drawn) for k in range(UPDATES)]
        noise = [
            [
                torch.as_tensor(np.stack(parts))
                for parts in zip(*(n[k] for _, n in drawn), strict=True)
            ]
            for k in range(UPDATES)
        ]
        return harness.run_updates(
            agent.phases[0].updates,
            batches,
            noise,
            ("loss/vae", "loss/critic", "loss/perturb"),
            lambda: slots(agent, len(seeds) - 1),
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("bcq", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert len(golden[name]["losses"]["1"]) == 3
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["defaults"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["defaults"], TOLERANCE[case["dtype"]]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path):
    """Return their module continuous_BCQ/BCQ.py."""
    path = checkout / "continuous_BCQ" / "BCQ.py"
    spec = importlib.util.spec_from_file_location("authors_bcq", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_authors(module, case: dict) -> tuple:
    """Return their agent with the recipe's weights, and views of these by name."""
    widths = {400: case["hidden"], 300: 3 * case["hidden"] // 4, 750: case["vae_hidden"]}

    def linear(fan_in, fan_out):
        return nn.Linear(widths.get(fan_in, fan_in), widths.get(fan_out, fan_out))

    module.nn = SimpleNamespace(Module=nn.Module, Linear=linear)  # widths are in their text
    agent = module.BCQ(
        case["obs_dim"], case["act_dim"], 1.0, "cpu", lmbda=case["lambd"], phi=case["phi"]
    )
    layers = {}
    for suffix in ("", "_target"):
        critic, actor = getattr(agent, "critic" + suffix), getattr(agent, "actor" + suffix)
        layers["q1" + suffix] = [critic.l1, critic.l2, critic.l3]
        layers["q2" + suffix] = [critic.l4, critic.l5, critic.l6]
        layers["perturb" + suffix] = [actor.l1, actor.l2, actor.l3]
    vae = agent.vae
    layers["decoder"] = [vae.d1, vae.d2, vae.d3]
    layers["encoder"] = [vae.e1, vae.e2]
    parameters = {}
    for name, found in layers.items():
        for i, layer in enumerate(found):
            parameters[f"{name}.weight{i}"] = layer.weight
            parameters[f"{name}.bias{i}"] = layer.bias
    weights = harness.flatten(draw_weights(case, case["seed"]))
    heads = {key: torch.as_tensor(weights.pop(f"encoder.{key}2")) for key in ("weight", "bias")}
    harness.fill({name: parameter.data for name, parameter in parameters.items()}, weights)
    for key, head in heads.items():
        for layer, part in zip((vae.mean, vae.log_std), head.chunk(2), strict=True):
            getattr(layer, key).data.copy_(part)
    return agent, parameters


def all_parameters(agent, parameters: dict) -> dict:
    """Return their weights in the recipe's layout: the two heads of the encoder are one layer."""
    vae = agent.vae
    found = dict(parameters)
    for key in ("weight", "bias"):
        found[f"encoder.{key}2"] = torch.cat([getattr(vae.mean, key), getattr(vae.log_std, key)])
    return found


def run_authors(module, case: dict) -> dict:
    """Do their updates, unchanged. Losses are read where they call backward."""
    agent, parameters = build_authors(module, case)
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
            batch = harness.tensors(batches[step])
            rows = [batch[key] for key in ("observations", "actions", "next_observations")]
            rows += [batch["rewards"][:, None], 1 - batch["terminals"][:, None]]
            sampler = SimpleNamespace(sample=lambda _, rows=rows: rows)
            with harness.fed_noise([torch.as_tensor(numbers) for numbers in noise[step]]):
                # Their draws call randn with a shape.
                patch.setattr(torch, "randn", lambda shape: torch.randn_like(torch.empty(shape)))
                agent.train(sampler, 1, case["batch_size"])
            found = all_parameters(agent, parameters)
            harness.note(result, step + 1, list(losses), lambda found=found: found)
    return result


def record(checkout: Path) -> None:
    """Write golden/bcq.json from a checkout of the authors' repository at COMMIT."""
    module = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(module, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("bcq", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
