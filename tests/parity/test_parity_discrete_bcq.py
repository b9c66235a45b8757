"""Parity of algorithms/discrete_bcq.py with the authors' public code.

python -m pytest tests/parity/test_parity_discrete_bcq.py
python -m tests.parity.test_parity_discrete_bcq AUTHORS_CHECKOUT    # write the golden file anew
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import discrete_bcq
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/sfujim/BCQ"
COMMIT = "4876f7e5afa9eb2981feec5daf67202514477518"
# fmt: off
# The authors' networks have 256 hidden units in the text of the code.
COMMON = {"dtype": "float64", "obs_dim": 5, "num_actions": 4, "hidden": 256, "batch_size": 64,
          "discount": 0.99, "polyak": 0.005}
CASES = {
    "defaults": {**COMMON, "threshold": 0.3, "seed": 1},
    "nearly imitation": {**COMMON, "threshold": 0.9, "seed": 2},
    "Q-learning": {**COMMON, "threshold": 0.0, "seed": 3},
    "other rates": {**COMMON, "threshold": 0.3, "discount": 0.9, "polyak": 0.1, "seed": 4},
    "float32": {**COMMON, "threshold": 0.3, "num_actions": 2, "dtype": "float32", "seed": 5},
}
# fmt: on
LR = 3e-4  # regular_parameters in their main.py

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show.

    The last layers are so large that errors pass 1, and that G rules some actions out.
    """
    rng = np.random.default_rng([seed, 0])
    dims = [case["obs_dim"], case["hidden"], case["hidden"], case["num_actions"]]
    weights = {}
    for name in ("critic", "critic_target", "behavior"):
        weights[name] = draw_network(rng, dims)
        weights[name]["weight2"] *= 10
    return weights


def draw_batches(case: dict, seed: int) -> list[dict]:
    """Draw the batch of every update."""
    rng, size = np.random.default_rng([seed, 1]), case["batch_size"]
    batches = []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs}
        batch["actions"] = np.floor(case["num_actions"] * rng.random((size, 1)))
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
    return batches


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    names = ("critic", "critic_target", "behavior")
    return harness.flatten({name: harness.views(getattr(agent, name), n) for name in names})


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(discrete_bcq, case, num_seeds=len(seeds), lr=LR)
        known = {"num_actions": case["num_actions"], "act_dim": 1}
        task = harness.make_task(discrete_bcq, obs_dim=case["obs_dim"], **known)
        agent = discrete_bcq.DiscreteBCQ(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(parts) for parts in zip(*drawn, strict=True)]

        def update(batch: dict) -> dict:
            statistics = agent.update(batch)
            # The authors' code adds both losses before it differentiates.
            return {"loss": statistics["loss/critic"] + statistics["loss/behavior"]}

        return harness.run_updates(
            [update], batches, [[]] * UPDATES, ("loss",), lambda: slots(agent, len(seeds) - 1)
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("discrete_bcq", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert len(golden[name]["losses"]["1"]) == 1
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["defaults"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["defaults"], TOLERANCE[case["dtype"]]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path):
    """Return their module discrete_BCQ/discrete_BCQ.py."""
    path = checkout / "discrete_BCQ" / "discrete_BCQ.py"
    spec = importlib.util.spec_from_file_location("authors_discrete_bcq", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers_of(agent) -> dict:
    """Return their weights in the recipe's layout. Their target has a copy of G that is unused."""
    q, target = agent.Q, agent.Q_target
    layers = {"critic": [q.q1, q.q2, q.q3], "behavior": [q.i1, q.i2, q.i3]}
    layers["critic_target"] = [target.q1, target.q2, target.q3]
    found = {}
    for name, parts in layers.items():
        for i, layer in enumerate(parts):
            found[f"{name}.weight{i}"] = layer.weight
            found[f"{name}.bias{i}"] = layer.bias
    return found


def run_authors(module, case: dict) -> dict:
    """Do their updates, unchanged. The loss is read where they call backward."""
    agent = module.discrete_BCQ(
        False,
        case["num_actions"],
        case["obs_dim"],
        "cpu",
        BCQ_threshold=case["threshold"],
        discount=case["discount"],
        optimizer_parameters={"lr": LR},
        polyak_target_update=True,
        target_update_frequency=1,
        tau=case["polyak"],
    )
    parameters = layers_of(agent)
    weights = harness.flatten(draw_weights(case, case["seed"]))
    harness.fill({name: parameter.data for name, parameter in parameters.items()}, weights)
    result, losses = {"losses": {}, "parameters": {}}, []
    backward = torch.Tensor.backward

    def noted_backward(loss):
        losses.append(loss.item())
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        for step, arrays in enumerate(draw_batches(case, case["seed"]), 1):
            losses.clear()
            batch = harness.tensors(arrays)
            rows = [batch["observations"], batch["actions"].long(), batch["next_observations"]]
            rows += [batch["rewards"][:, None], 1 - batch["terminals"][:, None]]
            agent.train(SimpleNamespace(sample=lambda rows=rows: rows))
            harness.note(result, step, list(losses), lambda: parameters)
    return result


def record(checkout: Path) -> None:
    """Write golden/discrete_bcq.json from a checkout of the authors' repository at COMMIT."""
    module = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(module, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("discrete_bcq", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
