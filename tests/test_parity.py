"""Parity of algorithms/por.py with the authors' public code, and with their reward scaling.

    python -m pytest tests/test_parity.py
    python tests/test_parity.py AUTHORS_CHECKOUT    # write golden/por.json anew from their code

Weights and batches come from one recipe, `draw_weights` and `draw_batches`, which uses nothing but
uniform numbers of NumPy's PCG64. golden/por.json holds what the authors' por.py (github
ryanxhr/POR) computed from them; the tests feed the same numbers to our updates. `record` shows how
theirs was run: unchanged, with stand-ins for the three imports its updates never need.
"""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))

import por  # noqa: E402
from helpers import cast, digest, shorten, uniform  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "por.json"
REPOSITORY = "https://github.com/ryanxhr/POR"
COMMIT = "e692bb3a0c92b2dc668d71b0a5fc6e04a53344e1"
UPDATES, CURVE, SNAPSHOTS = 50, (1, 2, 10, 25, 50), (1, 50)
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "execute_hidden": 32,
         "batch_size": 64, "num_updates": 200, "policy_lr": 1e-3}
FULL = {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256, "execute_hidden": 1024,
        "batch_size": 256, "num_updates": 200, "policy_lr": 1e-3}
R5 = {"guide": "weighted", "tau": 0.5, "alpha": 3.0, "layer_norm": True}
R9 = {"guide": "weighted", "tau": 0.9, "alpha": 10.0, "layer_norm": False}
Q7 = {"guide": "q", "tau": 0.7, "alpha": 50.0, "layer_norm": False}
CASES = {  # one log-deviation of each policy lies outside [-5, 2], so that its clamp counts
    "por_r tau 0.5": {**SMALL, **R5, "outside": 2.5, "seed": 1},
    "por_r tau 0.9": {**SMALL, **R9, "outside": -5.5, "seed": 2},
    "por_q tau 0.7": {**SMALL, **Q7, "outside": 2.5, "seed": 3},
    "por_r full": {**FULL, **R5, "outside": 2.5, "seed": 4},
    "por_q full": {**FULL, **Q7, "outside": 2.5, "seed": 5},
}
# Relative to max(1, |the authors' number|). Their terminals.float() rounds 0.99 to float32 even in
# a float64 run, our learning rate is a float32 tensor: both cost about 1e-9.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}


# ---- The recipe ----

def draw_network(rng, dims, layer_norm=False, outside=None) -> dict:
    """Tensors of one network as the authors store them: their order, their (out, in) weights."""
    tensors = {}
    if outside is not None:
        tensors["log_std"] = uniform(rng, -1, 0.5, dims[-1])
        tensors["log_std"][0] = outside
    for i, (rows, columns) in enumerate(zip(dims, dims[1:])):
        tensors[f"weight{i}"] = uniform(rng, -1, 1, columns, rows) / rows**0.5
        tensors[f"bias{i}"] = uniform(rng, -1, 1, columns) / rows**0.5
        if layer_norm and i < len(dims) - 2:
            tensors[f"gain{i}"] = uniform(rng, 0.5, 1.5, columns)
            tensors[f"shift{i}"] = uniform(rng, -0.5, 0.5, columns)
    return tensors


def draw_weights(case: dict, seed: int) -> dict:
    """All networks of one agent. V' is drawn apart from V: a mix-up of the two must show."""
    rng, obs, hidden = np.random.default_rng([seed, 0]), case["obs_dim"], [case["hidden"]] * 2
    value = ([obs, *hidden, 1], case["layer_norm"])
    goal = ([obs, *hidden, obs], False, case["outside"])
    wide = ([2 * obs, *[case["execute_hidden"]] * 2, case["act_dim"]], False, case["outside"])
    plan = {"v1": value, "v2": value, "target1": value, "target2": value, "guide": goal,
            "execute": wide, "behavior": goal}
    return {name: draw_network(rng, *shape) for name, shape in plan.items()}


def draw_batches(case: dict, seed: int, phase: int) -> list[dict]:
    """A batch for each update. Rewards reach far enough that exp(alpha A) is cut at 100."""
    rng, batches = np.random.default_rng([seed, 1 + phase]), []
    size, obs_dim = case["batch_size"], case["obs_dim"]
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batches.append({
            "observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"]),
            "next_observations": obs + uniform(rng, -0.5, 0.5, size, obs_dim),
            "rewards": uniform(rng, -1, 3, size), "terminals": 1.0 * (rng.random(size) < 0.1),
            "noise": uniform(rng, -(3**0.5), 3**0.5, size, obs_dim), "known": np.ones(size)})
    return batches


def phases(case: dict) -> list[str]:
    return ["behavior", "train"] if case["guide"] == "q" else ["train"]


# ---- Our code on the recipe ----

def slots(agent, n: int) -> dict:
    """Views of seed n's parameters in the authors' layout, to write and to read."""
    networks = {"v1": (agent.value, 0), "v2": (agent.value, 1), "target1": (agent.value_target, 0),
                "target2": (agent.value_target, 1), "guide": (agent.guide, 0),
                "execute": (agent.execute, 0), "behavior": (agent.behavior, 0)}
    views = {}
    for name, (network, head) in networks.items():
        if network is None:
            continue
        if hasattr(network, "log_std"):
            views[f"{name}.log_std"] = network.log_std.data[n, 0]
            network = network.net
        index = n * network.heads + head
        for i, weight in enumerate(network.weights):
            views[f"{name}.weight{i}"] = weight.data[index].T
        for kind, tensors in (("bias", network.biases), ("gain", network.gains),
                              ("shift", network.shifts)):
            views |= {f"{name}.{kind}{i}": x.data[index, 0] for i, x in enumerate(tensors)}
    return views


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train the agents of these seeds at once; the numbers of the last of them, like `record`."""
    fields = {k: v for k, v in case.items() if k in por.Args.__dataclass_fields__}
    args = por.Args(**fields | {"num_seeds": len(seeds)})
    generators = [torch.Generator().manual_seed(i) for i in seeds]
    agent = por.POR(args, case, generators, torch.device("cpu"))
    dtype = getattr(torch, case["dtype"])
    cast(agent, dtype)
    for n, seed in enumerate(seeds):
        weights, views = draw_weights(case, seed), slots(agent, n)
        given = {f"{net}.{k}": x for net, tensors in weights.items() for k, x in tensors.items()}
        assert views.keys() == {k for k in given if agent.behavior or "behavior" not in k}
        for name, view in views.items():
            view.copy_(torch.from_numpy(given[name]))
    result, updates = {}, {"behavior": agent.update_behavior, "train": agent.update}
    for number, phase in enumerate(phases(case)):
        result[phase] = {"losses": {}, "parameters": {}}
        each = [draw_batches(case, seed, number) for seed in seeds]
        for step, batches in enumerate(zip(*each), 1):
            batch = {k: torch.from_numpy(np.stack([b[k] for b in batches])).to(dtype)
                     for k in batches[0]}
            stats = updates[phase](batch)
            losses = [v[-1].item() for k, v in stats.items() if k.startswith("loss/")]
            note(result[phase], step, losses, lambda: {
                k: v.numpy() for k, v in slots(agent, len(seeds) - 1).items()})
    return result


def note(result: dict, step: int, losses: list, parameters) -> None:
    """Keep what is compared after this update. Keys are strings as JSON has no others."""
    if step in CURVE:
        result["losses"][str(step)] = shorten(losses)
    if step in SNAPSHOTS:
        result["parameters"][str(step)] = digest(parameters())


# ---- The authors' code on the recipe ----

def load_authors(checkout: Path):
    """Their modules, with empty stand-ins for packages that the updates do not touch."""
    absent = {"wandb": "log", "IPython": "embed", "sklearn": "datasets"}
    for name, attribute in absent.items():
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, None)
    sys.path.insert(0, str(checkout))
    spec = importlib.util.spec_from_file_location("authors_por", checkout / "por.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    modules = module, importlib.import_module("policy"), importlib.import_module("value_functions")
    for name in absent:  # PyTorch looks some of them up
        del sys.modules[name]
    return modules


def run_authors(modules, case: dict) -> dict:
    """Their updates, unchanged; losses are read where they call backward."""
    module, policy, values = modules
    dtype, obs, act = getattr(torch, case["dtype"]), case["obs_dim"], case["act_dim"]
    torch.set_default_dtype(dtype)
    goal = lambda: policy.GaussianPolicy(obs, obs, hidden_dim=case["hidden"]).to(dtype)
    agent = module.POR(
        vf=values.TwinV(obs, case["layer_norm"], hidden_dim=case["hidden"]).to(dtype),
        policy=policy.GaussianPolicy(2 * obs, act, hidden_dim=case["execute_hidden"]).to(dtype),
        goal_policy=goal(), max_steps=case["num_updates"], tau=case["tau"], alpha=case["alpha"],
        policy_lr=case["policy_lr"])
    networks = {"v1": agent.vf.v1, "v2": agent.vf.v2, "target1": agent.v_target.v1,
                "target2": agent.v_target.v2, "guide": agent.goal_policy, "execute": agent.policy}
    if case["guide"] == "q":
        agent.pretrain_init(goal())
        networks["behavior"] = agent.b_goal_policy
    weights, parameters = draw_weights(case, case["seed"]), {}
    for name, network in networks.items():
        pairs = zip(weights[name].items(), network.parameters(), strict=True)
        for (key, array), parameter in pairs:
            assert parameter.shape == array.shape
            parameter.data.copy_(torch.from_numpy(array))
            parameters[f"{name}.{key}"] = parameter
    train = agent.por_qlearning_update if case["guide"] == "q" else agent.por_residual_update
    result, updates, losses, noise = {}, {"behavior": agent.pretrain, "train": train}, [], []
    backward, normal = torch.Tensor.backward, torch.distributions.multivariate_normal
    standard_normal = normal._standard_normal
    torch.Tensor.backward = lambda loss: (losses.append(loss.item()), backward(loss))[1]
    normal._standard_normal = lambda shape, **_: noise[0].expand(shape)
    for number, phase in enumerate(phases(case)):
        result[phase] = {"losses": {}, "parameters": {}}
        for step, batch in enumerate(draw_batches(case, case["seed"], number), 1):
            batch = {k: torch.from_numpy(v).to(dtype) for k, v in batch.items() if k != "known"}
            noise[:] = [batch.pop("noise")]
            losses.clear()
            updates[phase](**batch)
            note(result[phase], step, list(losses), lambda: {
                k: v.detach().numpy() for k, v in parameters.items()})
    torch.Tensor.backward, normal._standard_normal = backward, standard_normal
    torch.set_default_dtype(torch.float32)
    return result


def record(checkout: Path) -> None:
    """Write golden/por.json from a checkout of the authors' repository at COMMIT."""
    modules, results = load_authors(checkout), {}
    for name, case in CASES.items():
        results[name] = run_authors(modules, case)
        for phase in results[name].values():
            if case["dtype"] == "float32":  # entries drift with the order of float32 sums
                del phase["parameters"]
    golden = {"repository": REPOSITORY, "commit": COMMIT, "updates": UPDATES, "cases": CASES,
              "results": results}
    text = json.dumps(golden, indent=0)
    text = re.sub(r"\[[^]]*\]", lambda numbers: numbers[0].replace("\n", ""), text)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(text + "\n")


# ---- Tests ----

@pytest.fixture(autouse=True)
def exact_products():
    """Full float32 products, whatever an earlier test of the same process has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def differences(ours: dict, golden: dict, tolerance: float) -> list[str]:
    """Every recorded number that ours misses by more than tolerance * max(1, |number|)."""
    found = []
    for phase, kinds in golden.items():
        for kind, steps in kinds.items():
            for step, expected in steps.items():
                mine = ours[phase][kind][step]
                if kind == "losses":
                    expected, mine = {"losses": expected}, {"losses": mine}
                assert mine.keys() == expected.keys()
                for name, numbers in expected.items():
                    a, b = np.array(mine[name]), np.array(numbers)
                    assert a.shape == b.shape
                    worst = (abs(a - b) / np.maximum(1, abs(b))).max()
                    if not worst <= tolerance:
                        found.append(f"{phase}, after update {step}, {name}: off by {worst:.1e}")
    return found


@pytest.fixture(scope="module")
def golden() -> dict:
    content = json.loads(GOLDEN.read_text())
    assert content["cases"] == CASES and content["updates"] == UPDATES, "golden/por.json is old"
    return content["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case["dtype"] == "float64"])
def test_a_seed_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


HORIZON = 100


def authors_range(rewards, terminals) -> float:
    """Spread of returns as their util.py, return_range, cuts them: every HORIZON kept rows."""
    returns, total, length = [], 0.0, 0
    for reward, terminal in zip(rewards, terminals):
        total, length = total + float(reward), length + 1
        if terminal or length == HORIZON:
            returns, total, length = [*returns, total], 0.0, 0
    return max(returns) - min(returns)


def dataset(lengths: list[int], scales) -> dict:
    """Rows of episodes, HORIZON steps ended by timeout, fewer by terminal; then one unfinished.

    Without the next states of timeouts, as in D4RL's files. The unfinished episode is so good that
    counting it as part of another would show.
    """
    parts = [scale * np.arange(n) for scale, n in zip(scales, lengths)]
    rewards = np.concatenate([*parts, [1e5] * 3])
    ends = np.zeros(len(rewards), bool)
    ends[np.cumsum(lengths) - 1] = True
    terminals = np.zeros(len(rewards), np.float32)
    terminals[np.cumsum(lengths)[np.array(lengths) < HORIZON] - 1] = 1
    known = (~ends).astype(np.float32)
    known[-1] = 0
    returns = [scale * n * (n - 1) / 2 for scale, n in zip(scales, lengths)]
    return {"rewards": rewards.astype(np.float32), "terminals": terminals, "known": known,
            "ends": ends, "spread": max(returns) - min(returns)}


def scaled(data: dict, name: str = "hopper-medium-v2") -> tuple[np.ndarray, np.ndarray, float]:
    """Our rewards after prepare(), the same rows before it, and the factor the authors take."""
    kept = ~(data["ends"] & (data["terminals"] == 0))
    kept[-1] = False
    rewards, terminals = data["rewards"][kept], data["terminals"][kept]
    rows = {k: v.copy() for k, v in data.items() if k != "spread"}
    ours = por.prepare(por.Args(), rows, {"name": name, "horizon": HORIZON})["rewards"][kept]
    return ours, rewards, HORIZON / authors_range(rewards, terminals)


def test_rewards_are_scaled_as_the_authors_where_every_episode_ends_by_itself():
    rng = np.random.default_rng(0)
    data = dataset([int(n) for n in rng.integers(5, HORIZON, 40)], rng.random(40))
    ours, rewards, factor = scaled(data)
    np.testing.assert_allclose(ours, rewards * factor, rtol=1e-6)
    np.testing.assert_allclose(HORIZON / data["spread"], factor, rtol=1e-6)
    ours, rewards, _ = scaled(data, "antmaze-umaze-v2")
    np.testing.assert_array_equal(ours, rewards - 1)


def test_with_timeouts_the_authors_returns_drift_and_ours_do_not():
    """A timeout leaves 99 of 100 rows, so each cut comes one row later: the best return is torn."""
    data = dataset([HORIZON] * 100, np.where(np.arange(100) == 50, 3, 1))
    ours, rewards, factor = scaled(data)
    np.testing.assert_allclose(ours, rewards * HORIZON / data["spread"], rtol=1e-6)
    assert factor * data["spread"] / HORIZON > 1.2


if __name__ == "__main__":
    record(Path(sys.argv[1]))
