"""Parity of algorithms/iql.py with the authors' public code.

    python -m pytest tests/parity/test_parity_iql.py
    python -m tests.parity.test_parity_iql AUTHORS_CHECKOUT    # write golden/iql.json anew

Their code is JAX. To record, one needs jax 0.4.35, flax 0.10.2, optax 0.2.4 and
tensorflow-probability 0.25 beside this project's packages; to test, none of them.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import iql
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/ikostrikov/implicit_q_learning"
COMMIT = "09d700248117881a75cb21f0adb95c6c8a694cb2"
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64}
FULL = {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256, "batch_size": 256}
OFFLINE, ONLINE = {"num_updates": 200, "online_steps": None}, {"num_updates": 25, "online_steps": 9}
CASES = {  # one log-deviation of each policy lies outside [-5, 2], so that its clamp counts
    "mujoco": {**SMALL, **OFFLINE, "tau": 0.7, "beta": 3.0, "outside": 2.5, "seed": 1},
    "antmaze": {**SMALL, **OFFLINE, "tau": 0.9, "beta": 10.0, "outside": -5.5, "seed": 2},
    "online": {**SMALL, **ONLINE, "tau": 0.9, "beta": 10.0, "outside": 2.5, "seed": 3},
    "full": {**FULL, **OFFLINE, "tau": 0.7, "beta": 3.0, "outside": 2.5, "seed": 4},
}

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Q' is drawn apart, and larger: exp in (7) is to be cut."""
    rng = np.random.default_rng([seed, 0])
    obs, act, hidden = case["obs_dim"], case["act_dim"], [case["hidden"]] * 2
    weights = {"value": draw_network(rng, [obs, *hidden, 1])}
    for name in ("q1", "q2", "target1", "target2"):
        weights[name] = draw_network(rng, [obs + act, *hidden, 1])
        if name.startswith("target"):
            weights[name]["weight2"] *= 12
    weights["policy"] = draw_network(rng, [obs, *hidden, act], outside=case["outside"])
    return weights


def draw_batches(case: dict, seed: int) -> list[dict]:
    """Draw a batch for each update."""
    rng = np.random.default_rng([seed, 1])
    size, obs_dim = case["batch_size"], case["obs_dim"]
    batches = []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"])}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
    return batches


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {"value": harness.views(agent.value, n)}
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["target1"], found["target2"] = harness.twin_views(agent.critic_target, n)
    found["policy"] = {"log_std": agent.policy.log_std.data[n, 0]}
    found["policy"] |= harness.views(agent.policy.net, n)
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        online_steps = case["online_steps"] or 0
        options = case | {"online_steps": online_steps, "dropout": 0.0}
        args = harness.make_args(iql, options, num_seeds=len(seeds))
        task = harness.make_task(iql, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = iql.IQL(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = zip(*[draw_batches(case, seed) for seed in seeds], strict=True)
        batches = [harness.stack(parts) for parts in drawn]
        updates = agent.phases[-1].updates
        losses = ("loss/value", "loss/critic", "loss/policy")
        return {
            "train": harness.run_updates(
                updates, batches, [[]] * UPDATES, losses, lambda: slots(agent, len(seeds) - 1)
            )
        }


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("iql", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["mujoco"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["mujoco"], TOLERANCE["float64"]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path):
    """Return their learner.py of 2022. What JAX and Flax have changed since is put back around."""
    import flax
    import jax

    jax.config.update("jax_enable_x64", True)
    flax.config.update("flax_return_frozendict", True)
    jax.tree_multimap, jit = jax.tree_util.tree_map, jax.jit
    jax.jit = lambda function, **_: jit(function)  # policy.py marks an argument that is not there
    sys.path.insert(0, str(checkout))
    import learner

    jax.jit = jit
    return learner


def place(network: str, tensor: str) -> tuple[str, list[str]]:
    """Return where their agent keeps a tensor of the recipe: its model, the path in its tree."""
    model = {"q": "critic", "t": "target_critic", "v": "value", "p": "actor"}[network[0]]
    if tensor == "log_std":
        return model, ["log_stds"]
    path = ["MLP_0", f"Dense_{tensor[-1]}"]
    if model == "actor" and tensor[-1] == "2":
        path = ["Dense_0"]  # the policy's last layer stands beside its MLP
    if "critic" in model:
        path.insert(0, f"Critic_{int(network[-1]) - 1}")
    return model, [*path, "kernel" if tensor.startswith("weight") else "bias"]


def run_authors(learner, case: dict) -> dict:
    """Do their updates, unchanged."""
    import flax
    import jax

    agent = learner.Learner(
        0,
        np.zeros((1, case["obs_dim"])),
        np.zeros((1, case["act_dim"])),
        hidden_dims=(case["hidden"],) * 2,
        expectile=case["tau"],
        temperature=case["beta"],
        max_steps=case["num_updates"],
        opt_decay_schedule=None if case["online_steps"] else "cosine",
    )
    weights = draw_weights(case, case["seed"])
    trees = {}
    for name, array in harness.flatten(weights).items():
        model, path = place(*name.split("."))
        tree = trees.setdefault(model, {})
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = array.T.astype(case["dtype"])
    for name, tree in trees.items():
        model = getattr(agent, name)
        params = flax.core.freeze(jax.tree_util.tree_map(jax.numpy.array, tree))
        shapes = [jax.tree_util.tree_map(np.shape, flax.core.unfreeze(model.params))]
        assert shapes == [jax.tree_util.tree_map(np.shape, tree)]
        state = model.tx.init(params) if model.tx else None
        setattr(agent, name, model.replace(params=params, opt_state=state))

    def parameters() -> dict:
        found = {}
        for name in harness.flatten(weights):
            model, path = place(*name.split("."))
            tensor = getattr(agent, model).params
            for key in path:
                tensor = tensor[key]
            found[name] = np.asarray(tensor).T
        return found

    result = {"losses": {}, "parameters": {}}
    for step, batch in enumerate(draw_batches(case, case["seed"]), 1):
        batch = {key: array.astype(case["dtype"]) for key, array in batch.items()}
        batch["masks"] = 1 - batch.pop("terminals")
        info = agent.update(sys.modules["common"].Batch(**batch))
        losses = [float(info[f"{name}_loss"]) for name in ("value", "critic", "actor")]
        harness.note(result, step, losses, parameters)
    return {"train": result}


def record(checkout: Path) -> None:
    """Write golden/iql.json from a checkout of the authors' repository at COMMIT."""
    learner = load_authors(checkout)
    results = {name: run_authors(learner, case) for name, case in CASES.items()}
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("iql", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
