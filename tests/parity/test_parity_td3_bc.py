"""Parity of algorithms/td3_bc.py with the authors' public code, and with their normalisation.

python -m pytest tests/parity/test_parity_td3_bc.py
python -m tests.parity.test_parity_td3_bc AUTHORS_CHECKOUT    # write golden/td3_bc.json anew
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import td3_bc
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/sfujim/TD3_BC"
COMMIT = "8791ad7d7656cb8396f1b3ac8c37f170b2a2dd5f"
SNAPSHOTS = (1, 2, 50)  # their actor moves in every second update, counted from 1
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
         "rows": 300}
CASES = {
    "defaults": {**SMALL, "alpha": 2.5, "normalize": True, "seed": 1},
    "small alpha": {**SMALL, "alpha": 0.5, "normalize": True, "seed": 2},
    "as in AntMaze": {**SMALL, "alpha": 2.5, "normalize": False, "seed": 3},
    "full width": {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256, "rows": 2000,
                   "batch_size": 256, "alpha": 2.5, "normalize": True, "seed": 4},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show.

    Actors have weights so large that noise takes their actions beyond the bounds.
    """
    rng, hidden = np.random.default_rng([seed, 0]), [case["hidden"]] * 2
    actor = [case["obs_dim"], *hidden, case["act_dim"]]
    critic = [case["obs_dim"] + case["act_dim"], *hidden, 1]
    weights = {}
    for suffix in ("", "_target"):
        for name, dims in {"actor": actor, "q1": critic, "q2": critic}.items():
            network = draw_network(rng, dims)
            size = 3 if name == "actor" else 1
            weights[name + suffix] = {key: size * array for key, array in network.items()}
    return weights


def draw_data(case: dict, seed: int) -> tuple[dict, list[dict], list[np.ndarray]]:
    """Draw a dataset whose states are far from standardised, and batches and noise of updates.

    The noise reaches so far that its own clip counts.
    """
    rng, n, size = np.random.default_rng([seed, 1]), case["rows"], case["batch_size"]
    spread = 3.0 ** np.arange(-2, case["obs_dim"] - 2)
    obs = (uniform(rng, -1, 1, n, case["obs_dim"]) + 0.7) * spread
    data = {"observations": obs, "actions": uniform(rng, -1, 1, n, case["act_dim"])}
    data["next_observations"] = obs + uniform(rng, -0.5, 0.5, n, case["obs_dim"]) * spread
    data["rewards"] = uniform(rng, -1, 3, n)
    data["terminals"] = (rng.random(n) < 0.1).astype(float)
    rows, noise = [], []
    for _ in range(UPDATES):
        rows.append((n * rng.random(size)).astype(int))
        noise.append(uniform(rng, -4, 4, size, case["act_dim"]))
    return data, rows, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the authors' layout."""
    found = {}
    for suffix in ("", "_target"):
        found["actor" + suffix] = harness.views(getattr(agent, "actor" + suffix), n)
        for i in (0, 1):
            critic = getattr(agent, "critic" + suffix)
            found[f"q{i + 1}{suffix}"] = harness.views([critic.q1, critic.q2][i], n)
    return harness.flatten(found)


def prepared_task(case: dict, seed: int):
    """Return the task after prepare_data(). A last row, which it ignores, is added to the data."""
    data, _, _ = draw_data(case, seed)
    data = {key: np.concatenate([column, column[-1:] + 100]) for key, column in data.items()}
    data["episode_end"] = data["terminals"] > 0
    data["next_valid"] = 1 - data["terminals"]
    task = harness.make_task(td3_bc, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
    td3_bc.prepare_data(td3_bc.Args(normalize=case["normalize"]), data, task)
    return task


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them.

    All take the normalisation of the last one, because agents share a dataset.
    """
    with harness.default_dtype(case):
        args = harness.make_args(td3_bc, case, num_seeds=len(seeds))
        agent = td3_bc.TD3BC(args, prepared_task(case, seeds[-1]), "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_data(case, seed) for seed in seeds]
        batches, noise = [], []
        for step in range(UPDATES):
            parts = []
            for data, rows, _ in drawn:
                parts.append({key: column[rows[step]] for key, column in data.items()})
            batches.append(harness.stack(parts))
            noise.append([torch.as_tensor(np.stack([given[step] for _, _, given in drawn]))])
        return harness.run_updates(
            agent.phases[0].updates,
            batches,
            noise,
            ("loss/critic", "loss/actor"),
            lambda: slots(agent, len(seeds) - 1),
            SNAPSHOTS,
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("td3_bc", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert len(golden[name]["losses"]["1"]) == 1 and len(golden[name]["losses"]["2"]) == 2
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["defaults"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["defaults"], TOLERANCE[case["dtype"]]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path) -> tuple:
    """Return their modules TD3_BC and utils."""
    modules = []
    for name in ("TD3_BC", "utils"):
        spec = importlib.util.spec_from_file_location(f"authors_{name}", checkout / f"{name}.py")
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    return tuple(modules)


def build_authors(module, case: dict) -> tuple:
    """Return their agent with the recipe's weights, and these by name."""

    def linear(fan_in, fan_out):
        widths = [case["hidden"] if width == 256 else width for width in (fan_in, fan_out)]
        return nn.Linear(*widths)

    module.nn = SimpleNamespace(Module=nn.Module, Linear=linear)  # the width is in their text
    agent = module.TD3_BC(
        case["obs_dim"], case["act_dim"], 1.0, policy_noise=0.2, noise_clip=0.5, alpha=case["alpha"]
    )
    parameters = {}
    for name, (network, first) in {
        "q1": ("critic", 1),
        "q2": ("critic", 4),
        "actor": ("actor", 1),
    }.items():
        for suffix in ("", "_target"):
            for i in range(3):
                layer = getattr(getattr(agent, network + suffix), f"l{first + i}")
                parameters[f"{name}{suffix}.weight{i}"] = layer.weight
                parameters[f"{name}{suffix}.bias{i}"] = layer.bias
    views = {name: parameter.data for name, parameter in parameters.items()}
    harness.fill(views, harness.flatten(draw_weights(case, case["seed"])))
    return agent, parameters


def run_authors(modules: tuple, case: dict) -> dict:
    """Do their updates, unchanged. Losses are read where they call backward."""
    module, utils = modules
    dtype = torch.get_default_dtype()
    agent, parameters = build_authors(module, case)
    data, rows, noise = draw_data(case, case["seed"])
    buffer = utils.ReplayBuffer(1, 1, max_size=1)
    buffer.convert_D4RL(data)
    if case["normalize"]:
        buffer.normalize_states()
    columns = (buffer.state, buffer.action, buffer.next_state, buffer.reward, buffer.not_done)
    columns = [torch.from_numpy(column).to(dtype) for column in columns]
    result, losses = {"losses": {}, "parameters": {}}, []
    backward = torch.Tensor.backward

    def noted_backward(loss):
        losses.append(loss.item())
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        for step in range(UPDATES):
            losses.clear()
            batch = [column[rows[step]] for column in columns]
            sampler = SimpleNamespace(sample=lambda _, batch=batch: batch)
            with harness.fed_noise([torch.from_numpy(noise[step])]):
                agent.train(sampler, case["batch_size"])
            harness.note(result, step + 1, list(losses), lambda: parameters, SNAPSHOTS)
    return result


def record(checkout: Path) -> None:
    """Write golden/td3_bc.json from a checkout of the authors' repository at COMMIT."""
    modules = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(modules, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("td3_bc", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
