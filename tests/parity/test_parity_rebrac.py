"""Parity of algorithms/rebrac.py with the authors' public code.

    python -m pytest tests/parity/test_parity_rebrac.py
    python -m tests.parity.test_parity_rebrac AUTHORS_CHECKOUT    # write golden/rebrac.json anew

Their code is JAX. To record, one needs jax 0.10.2, flax 0.12.8 and optax 0.2.8 beside this
project's packages; to test, none of them.
"""

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import rebrac
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/DT6A/ReBRAC"
COMMIT = "694385b72fcef2ae318e3f0ff41ca36122355343"
SNAPSHOTS = (1, 2, 50)  # their actor moves in every second update, beginning with the first
EPSILON = 1e-6  # of flax's LayerNorm; ours has PyTorch's
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64}
FULL = {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256, "batch_size": 256}
GYM = {"actor_lr": 1e-3, "critic_lr": 1e-3, "discount": 0.99}
ANTMAZE = {"actor_lr": 3e-4, "critic_lr": 5e-5, "discount": 0.999}
CASES = {
    "hopper-medium-replay": {**SMALL, **GYM, "actor_beta": 0.05, "critic_beta": 0.5, "seed": 1},
    "walker2d-random": {**SMALL, **GYM, "actor_beta": 0.01, "critic_beta": 0.0, "seed": 2},
    "antmaze-large-diverse": {**SMALL, **ANTMAZE, "actor_beta": 2e-3, "critic_beta": 2e-3,
                              "seed": 3},
    "strong penalties": {**SMALL, **GYM, "actor_beta": 1.0, "critic_beta": 1.0, "seed": 4},
    "full width": {**FULL, **GYM, "actor_beta": 0.05, "critic_beta": 0.5, "seed": 5},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show.

    Actors have weights so large that noise takes their actions beyond the bounds.
    """
    rng, hidden = np.random.default_rng([seed, 0]), [case["hidden"]] * 3
    weights = {}
    for suffix in ("", "_target"):
        actor = draw_network(rng, [case["obs_dim"], *hidden, case["act_dim"]])
        weights["actor" + suffix] = {key: 2 * array for key, array in actor.items()}
        for name in ("q1", "q2"):
            dims = [case["obs_dim"] + case["act_dim"], *hidden, 1]
            weights[name + suffix] = draw_network(rng, dims, layer_norm=True)
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[np.ndarray]]:
    """Draw a batch and noise for each update. The noise reaches so far that its own clip counts."""
    rng = np.random.default_rng([seed, 1])
    size, obs_dim, act_dim = case["batch_size"], case["obs_dim"], case["act_dim"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, act_dim)}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["next_actions"] = uniform(rng, -1, 1, size, act_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        noise.append(uniform(rng, -4, 4, size, act_dim))
    return batches, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {}
    for suffix in ("", "_target"):
        found["actor" + suffix] = harness.views(getattr(agent, "actor" + suffix), n)
        twins = harness.twin_views(getattr(agent, "critic" + suffix), n)
        found["q1" + suffix], found["q2" + suffix] = twins
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    layer_norm = functools.partial(torch.nn.functional.layer_norm, eps=EPSILON)
    with harness.default_dtype(case), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "layer_norm", layer_norm)
        args = harness.make_args(rebrac, case, num_seeds=len(seeds))
        task = harness.make_task(rebrac, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = rebrac.ReBRAC(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches, noise = [], []
        for step in range(UPDATES):
            batches.append(harness.stack([given[step] for given, _ in drawn]))
            noise.append([torch.as_tensor(np.stack([given[step] for _, given in drawn]))])
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
    return harness.load_golden("rebrac", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert len(golden[name]["losses"]["1"]) == 2 and len(golden[name]["losses"]["2"]) == 1
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["hopper-medium-replay"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["hopper-medium-replay"], TOLERANCE["float64"]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path) -> tuple[ModuleType, ModuleType]:
    """Return their modules of updates and of networks. What only their main() needs is missing."""
    import jax

    jax.config.update("jax_enable_x64", True)
    nothing = {
        "gym": {"Env": object},
        "wandb": {},
        "pyrallis": {"wrap": lambda: lambda function: function},
        "distrax": {"Transformed": object},
        "src.utils.buffer": {"ReplayBuffer": object},
    }
    for name, content in nothing.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    sys.path.insert(0, str(checkout))
    names = ("src.algorithms.rebrac", "src.networks")
    return tuple(importlib.import_module(name) for name in names)


def tree_of(network: dict) -> dict:
    """Return a network of the recipe as flax stores it."""
    tree = {}
    for name, array in network.items():
        kind, number = name[:-1], name[-1]
        layer = "Dense" if kind in ("weight", "bias") else "LayerNorm"
        leaf = {"weight": "kernel", "gain": "scale", "shift": "bias"}.get(kind, kind)
        tree.setdefault(f"{layer}_{number}", {})[leaf] = array.T
    return tree


def network_of(tree: dict, number: int | None) -> dict:
    """Return a network of theirs in the recipe's layout: the whole tree, or one of the twins."""
    network = {}
    for layer, leaves in tree.items():
        for leaf, array in leaves.items():
            dense = {"kernel": "weight", "bias": "bias"}
            kind = (dense if "Dense" in layer else {"scale": "gain", "bias": "shift"})[leaf]
            own = np.asarray(array if number is None else array[number])
            network[f"{kind}{layer[-1]}"] = own.T
    return network


def build_authors(modules: tuple, case: dict) -> tuple:
    """Return their actor and critic with the recipe's weights."""
    import jax

    rebrac_module, networks = modules
    weights = draw_weights(case, case["seed"])
    actor = networks.DetActor(case["act_dim"], case["hidden"], layernorm=False)
    critic = networks.EnsembleCritic(case["hidden"], num_critics=2, layernorm=True)
    key, obs = jax.random.PRNGKey(0), np.zeros((1, case["obs_dim"]))
    shapes = [actor.init(key, obs), critic.init(key, obs, np.zeros((1, case["act_dim"])))]

    def cast(tree):
        return jax.tree_util.tree_map(lambda x: jax.numpy.asarray(x, case["dtype"]), tree)

    params = {}
    for suffix in ("", "_target"):
        twins = [tree_of(weights[f"{name}{suffix}"]) for name in ("q1", "q2")]
        both = jax.tree_util.tree_map(lambda *arrays: np.stack(arrays), *twins)
        (name,) = shapes[1]["params"]
        params["critic" + suffix] = cast({"params": {name: both}})
        params["actor" + suffix] = cast({"params": tree_of(weights["actor" + suffix])})
    for network, initial in zip(("actor", "critic"), shapes, strict=True):
        found = [jax.tree_util.tree_map(np.shape, tree) for tree in (params[network], initial)]
        assert found[0] == found[1]
    states = []
    classes = (rebrac_module.ActorTrainState, rebrac_module.CriticTrainState)
    for name, network, kind in zip(("actor", "critic"), (actor, critic), classes, strict=True):
        state = kind.create(
            apply_fn=network.apply,
            params=params[name],
            target_params=params[f"{name}_target"],
            tx=rebrac_module.optax.adam(learning_rate=case[f"{name}_lr"]),
        )
        states.append(state)
    return tuple(states)


def authors_parameters(actor, critic) -> dict:
    """Return the weights of their states in the recipe's layout."""
    found = {}
    for suffix, attribute in (("", "params"), ("_target", "target_params")):
        found["actor" + suffix] = network_of(getattr(actor, attribute)["params"], None)
        (tree,) = getattr(critic, attribute)["params"].values()
        for number in (0, 1):
            found[f"q{number + 1}{suffix}"] = network_of(tree, number)
    return harness.flatten(found)


def run_authors(modules: tuple, case: dict) -> dict:
    """Do their updates, unchanged. Noise is put in place of jax.random.normal."""
    import jax

    module = modules[0]
    actor, critic = build_authors(modules, case)
    constants = {"gamma": case["discount"], "tau": 0.005, "policy_noise": 0.2, "noise_clip": 0.5}
    constants |= {"actor_bc_coef": case["actor_beta"], "critic_bc_coef": case["critic_beta"]}
    names = {"states": "observations", "actions": "actions", "next_states": "next_observations"}
    names |= {"next_actions": "next_actions", "rewards": "rewards", "dones": "terminals"}
    logged = ["critic_loss", "q_min", "actor_loss", "bc_mse_policy", "bc_mse_random", "action_mse"]
    key = jax.random.PRNGKey(0)
    result = {"losses": {}, "parameters": {}}
    batches, noise = draw_batches(case, case["seed"])
    for step in range(UPDATES):
        batch = {
            theirs: jax.numpy.asarray(batches[step][ours], case["dtype"])
            for theirs, ours in names.items()
        }
        numbers = jax.numpy.asarray(noise[step], case["dtype"])
        metrics = module.Metrics.create(logged)
        losses = ["critic_loss"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "normal", lambda key, shape, numbers=numbers: numbers)
            if step % 2 == 0:
                losses.append("actor_loss")
                key, actor, critic, metrics = module.update_td3(
                    key, actor, critic, batch, metrics, normalize_q=True, **constants
                )
            else:
                key, actor, critic, metrics = module.update_td3_no_targets(
                    key, actor, critic, batch, metrics=metrics, **constants
                )
        values = [float(metrics.accumulators[name][0][0]) for name in losses]
        parameters = functools.partial(authors_parameters, actor, critic)
        harness.note(result, step + 1, values, parameters, SNAPSHOTS)
    return result


def record(checkout: Path) -> None:
    """Write golden/rebrac.json from a checkout of the authors' repository at COMMIT."""
    modules = load_authors(checkout)
    results = {name: run_authors(modules, case) for name, case in CASES.items()}
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("rebrac", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
