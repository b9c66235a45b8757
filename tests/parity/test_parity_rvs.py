"""Parity of algorithms/rvs.py with the authors' public code.

python -m pytest tests/parity/test_parity_rvs.py

Their policy is that of Stable-Baselines3 1.2. It and gym are needed to write golden/rvs.json anew,
not to test:

python -m tests.parity.test_parity_rvs AUTHORS_CHECKOUT
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import rvs
from tests.helpers import make_data
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/scottemmons/rvs"
COMMIT = "90c0ffb26a1a3dd617d4f51c726f135d06f44b00"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
         "lr": 1e-3}
FULL = {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 1024, "batch_size": 64,
        "lr": 1e-3}
CASES = {
    "return": {**SMALL, "outcome": "return", "seed": 1},
    "goal": {**SMALL, "outcome": "goal", "seed": 2},
    "full width": {**FULL, "outcome": "return", "seed": 3},
}
# fmt: on
EPISODES = [4, 12, 1, 7]  # lengths, of which the longest is the time limit

# ---- The recipe ----


def outcome_dim(case: dict) -> int:
    return 1 if case["outcome"] == "return" else 2


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the network of one agent, and its deviation."""
    rng = np.random.default_rng([seed, 0])
    dims = [case["obs_dim"] + outcome_dim(case), case["hidden"], case["hidden"], case["act_dim"]]
    return {"policy": draw_network(rng, dims, outside=-6.0)}


def draw_batches(case: dict, seed: int) -> list[dict]:
    """Draw a batch for each update."""
    rng = np.random.default_rng([seed, 1])
    size = case["batch_size"]
    batches = []
    for _ in range(UPDATES):
        batch = {"observations": uniform(rng, -2, 2, size, case["obs_dim"] + outcome_dim(case))}
        batch["actions"] = uniform(rng, -1, 1, size, case["act_dim"])
        batches.append(batch)
    return batches


def draw_episodes() -> tuple[np.ndarray, np.ndarray]:
    """Return the rewards of complete episodes, and where these end."""
    rewards = uniform(np.random.default_rng(0), -1, 3, sum(EPISODES))
    ends = np.zeros(len(rewards), bool)
    ends[np.cumsum(EPISODES) - 1] = True
    return rewards, ends


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    tensors = harness.views(agent.policy, n) | {"log_std": agent.log_std.data[n, 0]}
    return harness.flatten({"policy": tensors})


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(rvs, case, num_seeds=len(seeds), num_updates=UPDATES)
        task = harness.make_task(rvs, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = rvs.RvS(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(parts) for parts in zip(*drawn, strict=True)]

        def compared() -> dict:
            return slots(agent, -1) | {"action": agent.act(batches[0]["observations"])[-1, 0]}

        noise = [[]] * UPDATES
        return harness.run_updates([agent.update], batches, noise, ("loss/policy",), compared)


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("rvs", CASES)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    expected = golden["results"][name]
    assert len(expected["losses"]) == len(harness.CURVE)
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", ["return", "goal"])
def test_an_agent_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["results"][name], TOLERANCE["float64"]) == []


def test_outcomes_are_the_authors(golden):
    rewards, ends = draw_episodes()
    columns = {"observations": np.zeros((len(rewards), 4)), "actions": np.zeros((len(rewards), 2))}
    args = rvs.Args(outcome="return", targets=[1.0])
    task = harness.make_task(rvs, obs_dim=4, act_dim=2, max_episode_steps=max(EPISODES))
    columns = rvs.prepare_data(args, make_data(columns | {"rewards": rewards}, ends), task)
    np.testing.assert_allclose(columns["observations"][:, 4], golden["outcomes"], rtol=1e-6)


# ---- The authors' code on the recipe ----


class Module(torch.nn.Module):
    """What their policy needs of a LightningModule."""

    def save_hyperparameters(self, *names):
        pass

    def log(self, *names, **options):
        pass


def load_authors(checkout: Path) -> SimpleNamespace:
    """Return their modules without D4RL, Lightning and wandb, which have no part in an update."""
    np.bool8 = np.bool_  # gym was made for an older NumPy
    spaces = importlib.import_module("gym.spaces")
    base = importlib.import_module("stable_baselines3.common.policies")
    base.preprocess_obs = lambda obs, *_, **__: obs  # it would turn float64 into float32
    absent = SimpleNamespace(OfflineEnv=object, Run=object)
    absent.LightningModule, absent.LightningDataModule = Module, type("DataModule", (), {})
    for name in ("d4rl", "pytorch_lightning", "wandb", "wandb.sdk", "wandb.sdk.wandb_run"):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(vars(absent))
    sys.modules["d4rl"].offline_env = absent
    sys.path.insert(0, str(checkout / "src"))
    package = importlib.import_module("rvs")
    for name in ("step", "train"):
        # Names of environments, and the command: neither is used here.
        stub = ModuleType(f"rvs.{name}")
        stub.d4rl_antmaze = {"antmaze-umaze-v0"}
        sys.modules[stub.__name__] = stub
        setattr(package, name, stub)
    modules = {name: importlib.import_module(f"rvs.{name}") for name in ("dataset", "policies")}
    return SimpleNamespace(spaces=spaces, **modules)


def authors_slots(policy) -> dict:
    """Return their weights in the recipe's layout."""
    model = policy.model
    layers = [layer for layer in model.mlp_extractor.shared_net if hasattr(layer, "weight")]
    found = {"log_std": model.log_std.data}
    for i, layer in enumerate([*layers, model.action_net]):
        found |= {f"weight{i}": layer.weight.data, f"bias{i}": layer.bias.data}
    return harness.flatten({"policy": found})


def run_authors(modules: SimpleNamespace, case: dict) -> dict:
    """Do their updates, as Lightning calls them, with the dropout of their configurations."""
    dtype = torch.get_default_dtype()
    policy = modules.policies.RvS(
        modules.spaces.Box(-np.inf, np.inf, (case["obs_dim"],)),
        modules.spaces.Box(-1, 1, (case["act_dim"],)),
        hidden_size=case["hidden"],
        learning_rate=case["lr"],
        dropout_p=0,
        reward_conditioning=case["outcome"] == "return",
        env_name="antmaze-umaze-v0",
    )
    harness.fill(authors_slots(policy), harness.flatten(draw_weights(case, case["seed"])))
    optimizer = policy.configure_optimizers()
    batches = [harness.tensors(batch) for batch in draw_batches(case, case["seed"])]

    def compared() -> dict:
        action = policy.model._predict(batches[0]["observations"], deterministic=True)[0]
        return authors_slots(policy) | {"action": action}

    result = {"losses": {}, "parameters": {}}
    for step, batch in enumerate(batches, 1):
        loss = policy.training_step((batch["observations"].to(dtype), batch["actions"]), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        harness.note(result, step, [loss.item()], compared)
    return result


def record(checkout: Path) -> None:
    """Write golden/rvs.json from a checkout of the authors' repository at COMMIT."""
    # Their package has the name of our script.
    del sys.modules["rvs"]
    modules = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(modules, case)
    rewards, ends = draw_episodes()
    columns = {"rewards": rewards, "terminals": ends, "timeouts": np.zeros_like(ends)}
    outcomes = harness.shorten(modules.dataset.reward_to_go(columns))
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("rvs", REPOSITORY, COMMIT, CASES, results=results, outcomes=outcomes)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
