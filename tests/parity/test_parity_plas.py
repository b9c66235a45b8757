"""Parity of algorithms/plas.py with the authors' public code.

    python -m pytest tests/parity/test_parity_plas.py
    python -m tests.parity.test_parity_plas AUTHORS_CHECKOUT    # write golden/plas.json anew

First a VAE is trained, then Q and the policy with it.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import plas
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/Wenxuan-Zhou/PLAS"
COMMIT = "9fbc6ff27f27af3ed3875de3a7ee0d2ff12d64a3"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "vae_hidden": 20,
         "batch_size": 64, "max_latent_action": 2.0, "phi": 0.0, "lambd": 0.75}
CASES = {
    "defaults": {**SMALL, "seed": 1},
    "perturbed": {**SMALL, "phi": 0.05, "seed": 2},
    "far moves": {**SMALL, "phi": 0.5, "max_latent_action": 0.5, "lambd": 1.0, "seed": 3},
    "full width": {**SMALL, "dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 400,
                   "vae_hidden": 750, "batch_size": 100, "phi": 0.05, "seed": 4},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show.

    z, xi and the decoder have weights so large that moved actions pass the bounds.
    """
    rng = np.random.default_rng([seed, 0])
    obs, act, latent = case["obs_dim"], case["act_dim"], 2 * case["act_dim"]
    layers, wide = [case["hidden"], 3 * case["hidden"] // 4], [case["vae_hidden"]] * 2
    weights = {}
    for suffix in ("", "_target"):
        weights["latent" + suffix] = draw_network(rng, [obs, *layers, latent])
        for name in ("q1", "q2"):
            weights[name + suffix] = draw_network(rng, [obs + act, *layers, 1])
        weights["latent" + suffix]["weight2"] *= 2
        if case["phi"] > 0:
            weights["perturb" + suffix] = draw_network(rng, [obs + act, *layers, act])
            weights["perturb" + suffix]["weight2"] *= 4
    weights["encoder"] = draw_network(rng, [obs + act, *wide, 2 * latent])
    weights["encoder"]["bias2"][-1] = -6  # a logarithm of the std that the clamp changes
    weights["decoder"] = draw_network(rng, [obs + latent, *wide, act])
    weights["decoder"]["weight2"] *= 4
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[np.ndarray]]:
    """Draw the batches of both phases, and the noise of the first."""
    rng, size = np.random.default_rng([seed, 1]), case["batch_size"]
    batches, noise = [], []
    for _ in range(2 * UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"])}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        noise.append(uniform(rng, -1.5, 1.5, size, 2 * case["act_dim"]))
    return batches, noise[:UPDATES]


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {}
    for suffix in ("", "_target"):
        policy, critic = (getattr(agent, name + suffix) for name in ("policy", "critic"))
        found["latent" + suffix] = harness.views(policy.latent, n)
        if policy.perturb is not None:
            found["perturb" + suffix] = harness.views(policy.perturb.net, n)
        found["q1" + suffix], found["q2" + suffix] = harness.twin_views(critic, n)
    found["encoder"] = harness.views(agent.vae.encoder, n)
    found["decoder"] = harness.views(agent.vae.decoder, n)
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(plas, case, num_seeds=len(seeds))
        task = harness.make_task(plas, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = plas.PLAS(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(batches[k] for batches, _ in drawn) for k in range(2 * UPDATES)]
        noise = [[torch.as_tensor(np.stack([n[k] for _, n in drawn]))] for k in range(UPDATES)]
        noise += [[]] * UPDATES  # Q and the policy draw none
        result = {}
        for i, phase in enumerate(agent.phases):
            part = slice(i * UPDATES, (i + 1) * UPDATES)
            result[phase.name] = harness.run_updates(
                phase.updates,
                batches[part],
                noise[part],
                ("loss/vae", "loss/critic", "loss/policy"),
                lambda: slots(agent, len(seeds) - 1),
            )
        return result


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("plas", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert [len(golden[name][phase]["losses"]["1"]) for phase in ("vae", "train")] == [1, 2]
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["perturbed"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["perturbed"], TOLERANCE[case["dtype"]]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path):
    """Return their module algos.py. Its logger does nothing."""
    spec = importlib.util.spec_from_file_location("authors_plas", checkout / "algos.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"logger": mock.MagicMock()}):
        spec.loader.exec_module(module)
    return module


def build_authors(module, case: dict) -> tuple:
    """Return their trainer of the VAE, their agent, and views of the recipe's weights by name."""
    widths = {400: case["hidden"], 300: 3 * case["hidden"] // 4}

    def linear(fan_in, fan_out):
        return nn.Linear(widths.get(fan_in, fan_in), widths.get(fan_out, fan_out))

    module.nn = SimpleNamespace(Module=nn.Module, Linear=linear)  # widths are in their text
    sizes = case["obs_dim"], case["act_dim"], 2 * case["act_dim"], 1.0
    trainer = module.VAEModule(*sizes, vae_lr=1e-4, hidden_size=case["vae_hidden"])
    kind = module.LatentPerturbation if case["phi"] > 0 else module.Latent
    agent = kind(
        trainer.vae,
        *sizes,
        actor_lr=1e-4,
        critic_lr=1e-3,
        lmbda=case["lambd"],
        max_latent_action=case["max_latent_action"],
        phi=case["phi"],
    )
    layers = {}
    for suffix in ("", "_target"):
        critic, actor = getattr(agent, "critic" + suffix), getattr(agent, "actor" + suffix)
        layers["q1" + suffix] = [critic.l1, critic.l2, critic.l3]
        layers["q2" + suffix] = [critic.l4, critic.l5, critic.l6]
        layers["latent" + suffix] = [actor.l1, actor.l2, actor.l3]
        if case["phi"] > 0:
            layers["perturb" + suffix] = [actor.l4, actor.l5, actor.l6]
    vae = trainer.vae
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
    return trainer, agent, parameters


def all_parameters(vae, parameters: dict) -> dict:
    """Return their weights in the recipe's layout: the two heads of the encoder are one layer."""
    found = dict(parameters)
    for key in ("weight", "bias"):
        found[f"encoder.{key}2"] = torch.cat([getattr(vae.mean, key), getattr(vae.log_std, key)])
    return found


def run_authors(module, case: dict) -> dict:
    """Do their updates, unchanged. Losses are read where they call backward."""
    trainer, agent, parameters = build_authors(module, case)
    batches, noise = draw_batches(case, case["seed"])
    size = case["batch_size"]
    result = {phase: {"losses": {}, "parameters": {}} for phase in ("vae", "train")}
    losses = []
    backward = torch.Tensor.backward

    def noted_backward(loss):
        losses.append(loss.item())
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        # They would take random rows, in float32.
        patch.setattr(np.random, "randint", lambda *_, size: np.arange(size))
        patch.setattr(
            torch, "FloatTensor", lambda rows: torch.tensor(rows, dtype=torch.get_default_dtype())
        )
        for step, batch in enumerate(batches):
            losses.clear()
            if step < UPDATES:
                with harness.fed_noise([torch.as_tensor(noise[step])]):
                    trainer.train_step(batch, size)
            else:
                batch = harness.tensors(batch)
                rows = [batch[key] for key in ("observations", "actions", "next_observations")]
                rows += [batch["rewards"][:, None], 1 - batch["terminals"][:, None]]
                agent.train(SimpleNamespace(sample=lambda _, rows=rows: rows), 1, size)
            found = all_parameters(trainer.vae, parameters)
            phase = "vae" if step < UPDATES else "train"
            number = step % UPDATES + 1
            harness.note(result[phase], number, list(losses), lambda found=found: found)
    return result


def record(checkout: Path) -> None:
    """Write golden/plas.json from a checkout of the authors' repository at COMMIT."""
    module = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(module, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("plas", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
