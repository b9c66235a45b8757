"""Parity of algorithms/cql.py with young-geng/CQL and with CORL's cql.py.

python -m pytest tests/parity/test_parity_cql.py
python -m tests.parity.test_parity_cql YOUNG_GENG CORL    # checkouts; writes golden/cql*.json
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import cql
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

YOUNG_GENG = "https://github.com/young-geng/CQL"
YOUNG_GENG_COMMIT = "21efac46faadef7d24ecf03a8091ab9cc3a613fd"
CORL = "https://github.com/corl-team/CORL"
CORL_COMMIT = "eeeeef2671235fcce3a3eb255576a207d78840e6"
# fmt: off
PLAIN = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "batch_size": 24, "num_actions": 4,
         "discount": 0.99, "polyak": 0.005, "weight": 5.0, "target_gap": -1.0, "min_gap": -1e9,
         "max_backup": False, "backup_entropy": False, "variant": "h", "log_std_factor": 1.0,
         "clone": False, "spread": 1.0}
ANTMAZE = {"target_gap": 0.8, "min_gap": 3.6, "max_backup": True}  # cuts some gaps of the recipe
SMALL = {**PLAIN, "hidden": 16, "policy_layers": 2, "critic_layers": 2, "policy_lr": 3e-4}
WIDE = {**PLAIN, "batch_size": 12, "hidden": 256, "policy_layers": 3, "critic_layers": 3,
        "policy_lr": 3e-5}
YOUNG_GENG_CASES = {
    "defaults": {**SMALL, "seed": 1},
    "rho": {**SMALL, "variant": "rho", "seed": 2},
    "antmaze": {**SMALL, **ANTMAZE, "critic_layers": 3, "log_std_factor": 0.0, "seed": 3},
    "best of entropy": {**SMALL, "backup_entropy": True, "max_backup": True, "seed": 4},
    "cloning": {**SMALL, "clone": True, "seed": 5},
    # pi so wide and so narrow that the clamps of its deviation count
    "extreme policy": {**SMALL, "spread": 6.0, "discount": 0.9, "polyak": 0.1, "seed": 6},
}
CORL_CASES = {
    "mujoco": {**WIDE, "weight": 10.0, "seed": 7},
    "antmaze": {**WIDE, **ANTMAZE, "critic_layers": 5, "policy_lr": 1e-4, "seed": 8},
}
# fmt: on
NAMES = ("q1", "q2", "target1", "target2", "policy")

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng = np.random.default_rng([seed, 0])
    obs, act, hidden = case["obs_dim"], case["act_dim"], [case["hidden"]]
    weights = {}
    for name in NAMES[:4]:
        weights[name] = draw_network(rng, [obs + act, *hidden * case["critic_layers"], 1])
    policy = draw_network(rng, [obs, *hidden * case["policy_layers"], 2 * act])
    weights["policy"] = {key: case["spread"] * array for key, array in policy.items()}
    weights["scalars"] = {"factor": np.array(case["log_std_factor"]), "offset": np.array(-1.0)}
    weights["scalars"] |= {"log_alpha": np.array(0.3), "log_beta": np.array(0.7)}
    if case["target_gap"] < 0:
        weights["scalars"].pop("log_beta")
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list, list]:
    """Draw a batch for each update, and what is random in it, in the order of all codes."""
    rng = np.random.default_rng([seed, 1])
    size, obs_dim, act_dim = case["batch_size"], case["obs_dim"], case["act_dim"]
    count = case["num_actions"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batch = {"observations": obs, "actions": uniform(rng, -0.99, 0.99, size, act_dim)}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        many = (size, count, act_dim)
        numbers = {"at_s": uniform(rng, -2, 2, size, act_dim)}
        numbers["at_next"] = uniform(rng, -2, 2, size, act_dim)
        if case["max_backup"]:
            numbers["at_next"] = uniform(rng, -2, 2, *many)
        numbers["uniform"] = rng.random(many)
        numbers["current"] = uniform(rng, -2, 2, *many)
        numbers["following"] = uniform(rng, -2, 2, *many)
        noise.append(numbers)
    return batches, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {"policy": harness.views(agent.policy.net, n)}
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["target1"], found["target2"] = harness.twin_views(agent.critic_target, n)
    scalars = {"factor": agent.policy.log_std_factor, "offset": agent.policy.log_std_offset}
    scalars["log_alpha"] = agent.log_alpha
    if agent.args.target_gap >= 0:
        scalars["log_beta"] = agent.log_beta
    found["scalars"] = {key: scalar.data[n].squeeze() for key, scalar in scalars.items()}
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case), pytest.MonkeyPatch.context() as patch:
        args = harness.make_args(cql, case, num_seeds=len(seeds), bc_updates=0)
        obs = {"obs_mean": [0.0] * case["obs_dim"], "obs_std": [1.0] * case["obs_dim"]}
        task = harness.make_task(cql, obs_dim=case["obs_dim"], act_dim=case["act_dim"], **obs)
        agent = cql.CQL(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(parts) for parts in zip(*[d[0] for d in drawn], strict=True)]
        numbers = [harness.stack(parts) for parts in zip(*[d[1] for d in drawn], strict=True)]
        noise = [[x[key] for key in x if key != "uniform"] for x in numbers]
        uniforms = [x["uniform"] for x in numbers]
        patch.setattr(torch, "rand_like", lambda like: uniforms.pop(0))
        update = agent.update_cloning if case["clone"] else agent.update
        losses = ("loss/td", "loss/policy", "gap", "alpha", "entropy", "beta")
        return harness.run_updates(
            [update], batches, noise, losses, lambda: slots(agent, len(seeds) - 1)
        )


def check(golden: str, cases: dict, name: str, seeds_before: list[int]) -> None:
    case = cases[name]
    theirs = harness.load_golden(golden, cases)["results"][name]
    assert len(theirs["losses"]["50"]) == (5 if case["target_gap"] < 0 else 6)
    ours = run_ours(case, [*seeds_before, case["seed"]])
    assert harness.differences(ours, theirs, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", YOUNG_GENG_CASES)
def test_updates_are_young_gengs(name):
    check("cql", YOUNG_GENG_CASES, name, [])


@pytest.mark.parametrize("name", CORL_CASES)
def test_updates_are_corls(name):
    check("cql_corl", CORL_CASES, name, [])


def test_an_agent_trains_beside_others_as_alone():
    check("cql", YOUNG_GENG_CASES, "antmaze", [103])


def test_the_recipe_reaches_the_bound_of_the_gap():
    """Else the golden numbers would not tell a bound from none."""
    case = YOUNG_GENG_CASES["antmaze"]
    golden = harness.load_golden("cql", YOUNG_GENG_CASES)["results"]["antmaze"]
    without = run_ours({**case, "min_gap": -1e9}, [case["seed"]])
    least = golden["losses"]["1"][2]
    assert case["min_gap"] < least < case["min_gap"] + 1
    assert without["losses"]["1"][2] < least - 0.01


# ---- Their codes on the recipe ----


class ConfigDict(dict):
    """A stand-in for ml_collections' class, of which they need this."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__

    def copy_and_resolve_references(self) -> dict:
        return self


def load_young_geng(checkout: Path):
    """Return their modules, with stand-ins for packages that no update touches."""
    sys.path.insert(0, str(checkout))
    collections = sys.modules["ml_collections"] = types.ModuleType("ml_collections")
    collections.ConfigDict = ConfigDict
    utils = sys.modules["SimpleSAC.utils"] = types.ModuleType("SimpleSAC.utils")
    utils.prefix_metrics = lambda metrics, prefix: metrics
    from SimpleSAC import conservative_sac, model

    return types.SimpleNamespace(model=model, ConservativeSAC=conservative_sac.ConservativeSAC)


def make_young_geng(modules, case: dict):
    """Return their trainer, its five networks, and a function (batch) -> metrics."""
    sizes = (case["obs_dim"], case["act_dim"])
    archs = ["-".join(["16"] * case[f"{key}_layers"]) for key in ("critic", "policy")]
    networks = [modules.model.FullyConnectedQFunction(*sizes, archs[0]) for _ in range(4)]
    policy = modules.model.TanhGaussianPolicy(*sizes, archs[1])
    config = {
        "discount": case["discount"],
        "backup_entropy": case["backup_entropy"],
        "target_entropy": -float(case["act_dim"]),
        "policy_lr": case["policy_lr"],
        "soft_target_update_rate": case["polyak"],
        "cql_n_actions": case["num_actions"],
        "cql_importance_sample": case["variant"] == "h",
        "cql_lagrange": case["target_gap"] >= 0,
        "cql_target_action_gap": case["target_gap"],
        "cql_min_q_weight": case["weight"],
        "cql_max_target_backup": case["max_backup"],
        "cql_clip_diff_min": case["min_gap"],
    }
    trainer = modules.ConservativeSAC(config, policy, *networks)

    def train(batch: dict) -> dict:
        batch["dones"] = batch["terminals"]
        return trainer.train(batch, bc=case["clone"])

    return trainer, [*networks, policy], train


def load_corl(checkout: Path):
    """Return their module, with stand-ins for packages that no update touches."""
    for name in ("d4rl", "gym", "pyrallis", "wandb"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["gym"].Env = object
    sys.modules["pyrallis"].wrap = lambda: lambda function: function
    path = checkout / "algorithms" / "offline" / "cql.py"
    spec = importlib.util.spec_from_file_location("corl_cql", path)
    module = sys.modules["corl_cql"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_corl(module, case: dict):
    """Return the same of CORL."""
    sizes = (case["obs_dim"], case["act_dim"])
    critics = [
        module.FullyConnectedQFunction(*sizes, True, case["critic_layers"]) for _ in range(2)
    ]
    policy = module.TanhGaussianPolicy(*sizes, 1.0)
    adam = torch.optim.Adam
    trainer = module.ContinuousCQL(
        critic_1=critics[0],
        critic_1_optimizer=adam(critics[0].parameters(), 3e-4),
        critic_2=critics[1],
        critic_2_optimizer=adam(critics[1].parameters(), 3e-4),
        actor=policy,
        actor_optimizer=adam(policy.parameters(), case["policy_lr"]),
        target_entropy=-float(case["act_dim"]),
        discount=case["discount"],
        policy_lr=case["policy_lr"],
        qf_lr=3e-4,
        soft_target_update_rate=case["polyak"],
        bc_steps=0,
        cql_n_actions=case["num_actions"],
        cql_lagrange=case["target_gap"] >= 0,
        cql_target_action_gap=case["target_gap"],
        cql_alpha=case["weight"],
        cql_max_target_backup=case["max_backup"],
        cql_clip_diff_min=case["min_gap"],
    )

    def train(batch: dict) -> dict:
        names = ("observations", "actions", "rewards", "next_observations", "terminals")
        columns = [batch[key] for key in names]
        for i in (2, 4):
            columns[i] = columns[i].unsqueeze(1)
        return trainer.train(columns)

    networks = [*critics, trainer.target_critic_1, trainer.target_critic_2, policy]
    return trainer, networks, train


def places(trainer, networks: list, case: dict) -> dict:
    """Return the tensors that hold the recipe's weights."""
    found = {}
    for name, network in zip(NAMES, networks, strict=True):
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        for i, layer in enumerate(layers):
            found |= {f"{name}.weight{i}": layer.weight.data, f"{name}.bias{i}": layer.bias.data}
    policy = networks[-1]
    scalars = {"factor": policy.log_std_multiplier, "offset": policy.log_std_offset}
    scalars["log_alpha"] = trainer.log_alpha
    if case["target_gap"] >= 0:
        scalars["log_beta"] = trainer.log_alpha_prime
    for name, scalar in scalars.items():
        scalar.constant.data = scalar.constant.data.to(torch.get_default_dtype())
        found[f"scalars.{name}"] = scalar.constant.data
    return found


def run_theirs(make, module, case: dict) -> dict:
    """Do their updates, unchanged."""
    trainer, networks, train = make(module, case)
    parameters = places(trainer, networks, case)
    harness.fill(parameters, harness.flatten(draw_weights(case, case["seed"])))
    # Their target networks get new tensors in every update, so they are looked up again.
    batches, noise = draw_batches(case, case["seed"])
    normals, uniforms = [], []
    for numbers in noise:
        normals += [torch.from_numpy(numbers[key]) for key in numbers if key != "uniform"]
        uniforms.append(torch.from_numpy(2 * numbers["uniform"] - 1))
    result = {"losses": {}, "parameters": {}}
    with pytest.MonkeyPatch.context() as patch:
        normal = torch.distributions.normal
        patch.setattr(normal, "_standard_normal", lambda *_, **__: normals.pop(0))
        patch.setattr(torch.Tensor, "uniform_", lambda like, *_: like.copy_(uniforms.pop(0)))
        for step, batch in enumerate(batches, 1):
            m = train(harness.tensors(batch))
            losses = [m["qf1_loss"] + m["qf2_loss"], m["policy_loss"]]
            losses += [(m["cql_qf1_diff"] + m["cql_qf2_diff"]) / 2, m["alpha"], -m["log_pi"]]
            if case["target_gap"] >= 0:
                losses.append(m["alpha_prime"])
            harness.note(result, step, losses, lambda: places(trainer, networks, case))
    assert not normals and not uniforms
    return result


def record(young_geng: Path, corl: Path) -> None:
    """Write both golden files from checkouts at their commits."""
    runs = [
        ("cql", YOUNG_GENG, YOUNG_GENG_COMMIT, YOUNG_GENG_CASES, make_young_geng),
        ("cql_corl", CORL, CORL_COMMIT, CORL_CASES, make_corl),
    ]
    modules = [load_young_geng(young_geng), load_corl(corl)]
    for module, (name, repository, commit, cases, make) in zip(modules, runs, strict=True):
        results = {}
        for key, case in cases.items():
            with harness.default_dtype(case):
                results[key] = run_theirs(make, module, case)
        harness.write_golden(name, repository, commit, cases, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]))
