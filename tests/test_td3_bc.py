"""Tests of algorithms/td3_bc.py: parity with the authors' code, known answers, seeds, resumed runs.

    python -m pytest tests/test_td3_bc.py
    python tests/test_td3_bc.py AUTHORS_CHECKOUT    # write golden/td3_bc.json anew from their code

Weights and rows come from one recipe, `draw_weights` and `draw_data`, which uses nothing but
uniform numbers of NumPy's PCG64. golden/td3_bc.json holds what the authors' TD3_BC.py and utils.py
(github sfujim/TD3_BC) computed from them, with their normalisation of the states. `run_authors`
shows how theirs was run: unchanged, with other widths where a case asks for them, and with our
numbers for torch.randn_like.
"""

import copy
import importlib.util
import json
import re
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))

import td3_bc  # noqa: E402
from helpers import (  # noqa: E402
    curves, differences, digest, keep_gradients, result_of, same_end, shorten, stop_when, uniform)

GOLDEN = ROOT / "tests" / "golden" / "td3_bc.json"
REPOSITORY = "https://github.com/sfujim/TD3_BC"
COMMIT = "8791ad7d7656cb8396f1b3ac8c37f170b2a2dd5f"
CPU = torch.device("cpu")
# Their critic moves in every update, their actor in every second one, counted from 1
UPDATES, CURVE, SNAPSHOTS = 50, (1, 2, 10, 25, 50), (1, 2, 50)
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
         "rows": 300}
CASES = {
    "defaults": {**SMALL, "bound": 1.0, "alpha": 2.5, "normalize": True, "seed": 1},
    "narrow actions": {**SMALL, "bound": 0.4, "alpha": 0.5, "normalize": True, "seed": 2},
    "as in AntMaze": {**SMALL, "bound": 1.0, "alpha": 2.5, "normalize": False, "seed": 3},
    "full width": {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256, "rows": 2000,
                   "batch_size": 256, "bound": 1.0, "alpha": 2.5, "normalize": True, "seed": 4},
}
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}  # relative to max(1, |the authors' number|)


# ---- The recipe ----

def draw_weights(case: dict, seed: int) -> dict:
    """(out, in) weights and biases. Targets are drawn apart: a mix-up with them must show.

    Actors have weights so large that noise takes their actions beyond the bounds.
    """
    rng, hidden = np.random.default_rng([seed, 0]), [case["hidden"]] * 2
    actor = [case["obs_dim"], *hidden, case["act_dim"]]
    critic = [case["obs_dim"] + case["act_dim"], *hidden, 1]
    plan = {"actor": actor, "q1": critic, "q2": critic, "actor_target": actor,
            "q1_target": critic, "q2_target": critic}
    size = lambda name: 3 if "actor" in name else 1
    return {f"{name}.{kind}{i}": size(name) * uniform(rng, -1, 1, *shape) / dims[i]**0.5
            for name, dims in plan.items() for i in range(3)
            for kind, shape in (("weight", (dims[i + 1], dims[i])), ("bias", (dims[i + 1],)))}


def draw_data(case: dict, seed: int) -> tuple[dict, list[dict]]:
    """A dataset whose states are far from standardised, and indices and noise of each update.

    The noise reaches so far that its own clip counts.
    """
    rng, n, size = np.random.default_rng([seed, 1]), case["rows"], case["batch_size"]
    spread = 3.0 ** np.arange(-2, case["obs_dim"] - 2)
    obs = (uniform(rng, -1, 1, n, case["obs_dim"]) + 0.7) * spread
    rows = {"observations": obs, "actions": case["bound"] * uniform(rng, -1, 1, n, case["act_dim"]),
            "next_observations": obs + uniform(rng, -0.5, 0.5, n, case["obs_dim"]) * spread,
            "rewards": uniform(rng, -1, 3, n), "terminals": 1.0 * (rng.random(n) < 0.1)}
    updates = [{"index": (n * rng.random(size)).astype(int),
                "noise": uniform(rng, -4, 4, size, case["act_dim"])} for _ in range(UPDATES)]
    return rows, updates


def note(result: dict, step: int, losses: list, parameters: dict) -> None:
    """Keep what is compared after this update. Keys are strings as JSON has no others."""
    if step in CURVE:
        result["losses"][str(step)] = shorten(losses)
    if step in SNAPSHOTS:
        result["parameters"][str(step)] = digest(
            {k: v.detach().numpy() for k, v in parameters.items()})


# ---- Our code on the recipe ----

def slots(agent, n: int) -> dict:
    """Views of seed n's parameters in the authors' layout, to write and to read."""
    networks = {"actor": (agent.actor.net, 0), "q1": (agent.critic, 0), "q2": (agent.critic, 1),
                "actor_target": (agent.actor_target.net, 0),
                "q1_target": (agent.critic_target, 0), "q2_target": (agent.critic_target, 1)}
    views = {}
    for name, (network, head) in networks.items():
        index = n * network.heads + head
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases)):
            views[f"{name}.weight{i}"] = weight.data[index].T
            views[f"{name}.bias{i}"] = bias.data[index, 0]
    return views


def prepared(case: dict, seed: int) -> dict:
    """The task after our prepare(). A last row, which it ignores, is added to the data."""
    rows, _ = draw_data(case, seed)
    rows = {k: np.concatenate([v, v[-1:] + 100]) for k, v in rows.items()}
    rows["ends"] = rows["terminals"] > 0
    dims = case["act_dim"]
    task = {"obs_dim": case["obs_dim"], "act_dim": dims, "env_id": "",
            "act_low": [-case["bound"]] * dims, "act_high": [case["bound"]] * dims}
    td3_bc.prepare(td3_bc.Args(normalize=case["normalize"]), rows, task)
    return task


def run_ours(case: dict, seeds: list[int], monkeypatch) -> dict:
    """Train the agents of these seeds at once; the numbers of the last of them, like `record`.

    All take the normalisation of the last one: seeds share a dataset.
    """
    args = td3_bc.Args(hidden=case["hidden"], alpha=case["alpha"], num_seeds=len(seeds))
    generators = [torch.Generator().manual_seed(i) for i in seeds]
    agent = td3_bc.TD3BC(args, prepared(case, seeds[-1]), generators, CPU)
    for n, seed in enumerate(seeds):
        weights, views = draw_weights(case, seed), slots(agent, n)
        assert views.keys() == weights.keys()
        for name, view in views.items():
            view.copy_(torch.from_numpy(weights[name]))
    losses, minimize = [], td3_bc.minimize
    monkeypatch.setattr(td3_bc, "minimize", lambda optimizer, loss: (
        losses.append(loss[-1].item()), minimize(optimizer, loss)))
    result, data = {"losses": {}, "parameters": {}}, [draw_data(case, seed) for seed in seeds]
    turns = agent.phases[0][2:]
    for step in range(1, UPDATES + 1):
        parts = [{k: v[updates[step - 1]["index"]] for k, v in rows.items()}
                 | {"noise": updates[step - 1]["noise"]} for rows, updates in data]
        batch = {k: torch.from_numpy(np.stack([part[k] for part in parts]))
                 .to(torch.get_default_dtype()) for k in parts[0]}
        losses.clear()
        turns[(step - 1) % len(turns)](batch)
        note(result, step, losses, slots(agent, len(seeds) - 1))
    return result


# ---- The authors' code on the recipe ----

def load_authors(checkout: Path) -> tuple:
    """Their modules TD3_BC and utils."""
    modules = []
    for name in ("TD3_BC", "utils"):
        spec = importlib.util.spec_from_file_location(f"authors_{name}", checkout / f"{name}.py")
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    return tuple(modules)


def run_authors(modules, case: dict) -> dict:
    """Their updates, unchanged; losses are read where they call backward."""
    module, utils = modules
    dtype, bound = getattr(torch, case["dtype"]), case["bound"]
    torch.set_default_dtype(dtype)
    width = lambda n: case["hidden"] if n == 256 else n  # the width is a number in their text
    module.nn = SimpleNamespace(Module=nn.Module,
                                Linear=lambda i, o: nn.Linear(width(i), width(o)))
    agent = module.TD3_BC(case["obs_dim"], case["act_dim"], bound, policy_noise=0.2 * bound,
                          noise_clip=0.5 * bound, alpha=case["alpha"])  # as in their main.py
    critics = {"q1": ("critic", 1), "q2": ("critic", 4), "actor": ("actor", 1)}
    parameters = {}
    for name, (network, first) in critics.items():
        for suffix in ("", "_target"):
            layers = getattr(agent, network + suffix)
            for i in range(3):
                layer = getattr(layers, f"l{first + i}")
                parameters[f"{name}{suffix}.weight{i}"] = layer.weight
                parameters[f"{name}{suffix}.bias{i}"] = layer.bias
    weights = draw_weights(case, case["seed"])
    assert weights.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert parameter.shape == weights[name].shape
        parameter.data.copy_(torch.from_numpy(weights[name]))
    rows, updates = draw_data(case, case["seed"])
    buffer = utils.ReplayBuffer(1, 1, max_size=1)
    buffer.convert_D4RL(rows)
    if case["normalize"]:
        buffer.normalize_states()
    columns = [torch.from_numpy(c).to(dtype) for c in (
        buffer.state, buffer.action, buffer.next_state, buffer.reward, buffer.not_done)]
    result, losses, current = {"losses": {}, "parameters": {}}, [], []
    sample = SimpleNamespace(sample=lambda _: [c[current[0]["index"]] for c in columns])
    backward, randn_like = torch.Tensor.backward, torch.randn_like
    torch.Tensor.backward = lambda loss: (losses.append(loss.item()), backward(loss))[1]
    torch.randn_like = lambda _: torch.from_numpy(current[0]["noise"]).to(dtype)
    for step, current[:] in enumerate(zip(updates), 1):
        losses.clear()
        agent.train(sample, case["batch_size"])
        note(result, step, list(losses), parameters)
    torch.Tensor.backward, torch.randn_like = backward, randn_like
    torch.set_default_dtype(torch.float32)
    return result


def record(checkout: Path) -> None:
    """Write golden/td3_bc.json from a checkout of the authors' repository at COMMIT."""
    modules, results = load_authors(checkout), {}
    for name, case in CASES.items():
        results[name] = run_authors(modules, case)
        if case["dtype"] == "float32":  # entries drift with the order of float32 sums
            del results[name]["parameters"]
    golden = {"repository": REPOSITORY, "commit": COMMIT, "updates": UPDATES, "cases": CASES,
              "results": results}
    text = json.dumps(golden, indent=0)
    text = re.sub(r"\[[^]]*\]", lambda numbers: numbers[0].replace("\n", ""), text)
    GOLDEN.write_text(text + "\n")


# ---- Parity ----

@pytest.fixture(autouse=True)
def exact_products(isolated):
    """Full float32 products, whatever an earlier test of the same process has chosen."""
    td3_bc.gym.logger.min_level = td3_bc.gym.logger.ERROR  # v4 environments are meant
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def dtype_of():
    """Make a case's dtype the default one for a test: buffers are made with it."""
    yield lambda case: torch.set_default_dtype(getattr(torch, case["dtype"]))
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def golden() -> dict:
    content = json.loads(GOLDEN.read_text())
    assert content["cases"] == CASES and content["updates"] == UPDATES, "golden/td3_bc.json is old"
    return content["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden, dtype_of, monkeypatch):
    case = CASES[name]
    dtype_of(case)
    ours = run_ours(case, [case["seed"]], monkeypatch)
    assert len(golden[name]["losses"]["1"]) == 1 and len(golden[name]["losses"]["2"]) == 2
    assert differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_a_seed_trains_beside_others_as_alone(golden, dtype_of, monkeypatch):
    case = CASES["defaults"]
    dtype_of(case)
    ours = run_ours(case, [case["seed"] + 100, case["seed"]], monkeypatch)
    assert differences(ours, golden["defaults"], TOLERANCE[case["dtype"]]) == []


# ---- Data and settings ----

def hopper_rows(hopper, *without: str) -> tuple[dict, dict, dict]:
    """Raw arrays of Hopper and what to_rows makes of them."""
    raw, spec = hopper(), td3_bc.gym.spec("Hopper-v4")
    flat = {k: v for k, v in raw.items() if "/" not in k and k not in without}
    return raw, *td3_bc.to_rows(flat, {
        "name": "hopper-medium-v2", "env_id": spec.id, "env_spec": spec.to_json(),
        "horizon": 1000, "ref_min": -20.272305, "ref_max": 3234.3})


@pytest.mark.parametrize("without", [[], ["next_observations"]])
def test_the_statistics_are_those_of_d4rls_transitions(hopper, without):
    """Whether or not the file has the next states of timeouts, which would add rows of ours."""
    raw, rows, task = hopper_rows(hopper, *without)
    before = {k: v.copy() for k, v in rows.items()}
    assert rows["known"].all() == (not without)
    rows = td3_bc.prepare(td3_bc.Args(normalize=True), rows, task)
    # d4rl/__init__.py, qlearning_dataset with terminate_on_end=False
    kept = np.array([raw["observations"][i] for i in range(399) if not raw["timeouts"][i]], float)
    assert len(kept) < 390
    np.testing.assert_allclose(task["obs_mean"], kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(task["obs_std"], kept.std(0) + 1e-3, rtol=1e-6)
    for name in before:  # rewards above all
        np.testing.assert_array_equal(rows[name], before[name])
    json.dumps(task)  # it goes into result.json


def test_without_normalize_states_stay_as_they_are(hopper):
    _, rows, task = hopper_rows(hopper)
    td3_bc.prepare(td3_bc.Args(normalize=False), rows, task)
    actor = td3_bc.Actor([torch.Generator()], [11, 8, 3], task)
    s = torch.from_numpy(rows["observations"])[None]
    assert torch.equal(actor.normalize(s), s)


@pytest.mark.parametrize("env, normalize", [
    ("hopper-medium-v2", True), ("rebuilt/walker2d/medium-replay-v0", True),
    ("antmaze-large-play-v2", False), ("Pendulum-v1", True)])
def test_only_mazes_go_without_normalisation(env, normalize):
    args = td3_bc.fill_settings(td3_bc.Args(env=env))
    assert (args.alpha, args.normalize) == (2.5, normalize)


def test_actions_without_bounds_are_refused(hopper):
    _, rows, task = hopper_rows(hopper)
    task["act_high"] = [1.0, np.inf, 1.0]
    with pytest.raises(SystemExit, match="Hopper-v4: .*no bounds"):
        td3_bc.prepare(td3_bc.Args(normalize=True), rows, task)


# ---- The formulas ----

TASK = {"obs_dim": 4, "act_dim": 2, "act_low": [-1.0, 0.5], "act_high": [2.0, 1.0],
        "obs_mean": [1.0, -2.0, 0.0, 5.0], "obs_std": [0.1, 2.0, 1.0, 10.0]}


def make_agent(num_seeds=2, task=TASK, **options):
    """An agent with small networks; its targets are others than its networks."""
    args = td3_bc.Args(num_seeds=num_seeds, **{"alpha": 2.5, "hidden": 16} | options)
    generators = [torch.Generator().manual_seed(n) for n in range(num_seeds)]
    agent = td3_bc.TD3BC(args, task, generators, CPU)
    with torch.no_grad():
        for target in (agent.critic_target, agent.actor_target):
            for weight in target.parameters():
                weight += 0.1
    return agent


def make_batch(num_seeds=2, size=32, seed=0) -> dict:
    """Random rows, actions inside TASK's bounds, a quarter terminal."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(num_seeds, size, *shape, generator=draw)
    mean, std, low, high = (torch.tensor(TASK[k]) for k in (
        "obs_mean", "obs_std", "act_low", "act_high"))
    batch = {"observations": mean + std * normal(4), "next_observations": mean + std * normal(4),
             "actions": low + (high - low) * normal(2).sigmoid(), "rewards": normal(),
             "terminals": torch.zeros(num_seeds, size), "noise": 3 * normal(2)}
    batch["terminals"][:, ::4] = 1
    return batch


def network(mlp, index: int, x: np.ndarray) -> np.ndarray:
    """One of the stacked networks in float64 NumPy, (B, in) -> (B, out)."""
    layers = [(w[index].detach().double().numpy(), b[index].detach().double().numpy())
              for w, b in zip(mlp.weights, mlp.biases)]
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        x = np.maximum(x, 0) if i + 1 < len(layers) else x
    return x


def test_losses_are_the_closed_forms():
    agent, batch = make_agent(lr=0.0), make_batch()  # networks stay, for (3) sees Q after (2)
    low, high, shift, spread = (np.array(TASK[k]) for k in (
        "act_low", "act_high", "obs_mean", "obs_std"))
    middle, half = (low + high) / 2, (high - low) / 2
    expected, clipped = {k: [] for k in ("critic", "actor", "clone", "value", "weight")}, []
    for n in range(2):
        part = {k: v[n].double().numpy() for k, v in batch.items()}
        s, s2 = ((part[k] - shift) / spread for k in ("observations", "next_observations"))
        noise = np.clip(0.2 * part["noise"], -0.5, 0.5)
        free = middle + half * (np.tanh(network(agent.actor_target.net, n, s2)) + noise)
        a2 = np.clip(free, low, high)
        clipped += [(abs(noise) == 0.5).any(), (a2 != free).any(), (a2 == free).any()]
        q2 = [network(agent.critic_target, 2 * n + head, np.hstack([s2, a2]))[:, 0]
              for head in (0, 1)]
        target = part["rewards"] + 0.99 * (1 - part["terminals"]) * np.minimum(*q2)
        q = np.array([network(agent.critic, 2 * n + head, np.hstack([s, part["actions"]]))[:, 0]
                      for head in (0, 1)])
        expected["critic"].append(((q - target) ** 2).mean(1).sum())
        a = middle + half * np.tanh(network(agent.actor.net, n, s))
        pi_q = network(agent.critic, 2 * n, np.hstack([s, a]))[:, 0]
        weight, clone = 2.5 / abs(pi_q).mean(), ((a - part["actions"]) ** 2).mean()
        expected["actor"].append(clone - weight * pi_q.mean())
        for name, value in (("clone", clone), ("value", q.mean()), ("weight", weight)):
            expected[name].append(value)
    assert all(clipped)
    stats = agent.update(batch)
    for name, value in expected.items():
        key = name if name in stats else f"loss/{name}"
        np.testing.assert_allclose(stats[key].detach().numpy(), value, rtol=2e-5, err_msg=name)


def test_actions_stay_inside_the_bounds_and_reach_them():
    agent = make_agent()
    with torch.no_grad():
        agent.actor.net.weights[-1].mul_(1e4)
        actions = agent.act(make_batch(size=500)["observations"]).flatten(0, 1)
    torch.testing.assert_close(actions.amin(0), torch.tensor(TASK["act_low"]))
    torch.testing.assert_close(actions.amax(0), torch.tensor(TASK["act_high"]))


def test_actor_and_targets_move_on_every_second_update_only():
    agent = make_agent(polyak=0.1)
    first, second = agent.phases[0][2:]
    parts = {name: getattr(agent, name) for name in (
        "critic", "actor", "critic_target", "actor_target")}
    copies = lambda: {k: [p.clone() for p in m.parameters()] for k, m in parts.items()}
    start = copies()
    first(make_batch(seed=0))
    middle = copies()
    second(make_batch(seed=1))
    end = copies()
    moved = lambda old, new, k: all(not torch.equal(*pair) for pair in zip(old[k], new[k]))
    still = lambda old, new, k: all(torch.equal(*pair) for pair in zip(old[k], new[k]))
    assert moved(start, middle, "critic") and moved(middle, end, "critic")
    assert moved(middle, end, "actor")
    assert all(still(start, middle, k) for k in parts if k != "critic")
    for name in ("critic", "actor"):
        for old, new, source in zip(start[f"{name}_target"], end[f"{name}_target"], end[name]):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * source)


# ---- Known answers ----

def clone(actor, batch) -> list:
    """Gradients of the plain mean squared error, for all seeds."""
    error = ((actor(batch["observations"]) - batch["actions"]) ** 2).mean((1, 2)).sum()
    return torch.autograd.grad(error, list(actor.parameters()))


@pytest.mark.parametrize("alpha", [0.0, 1e-9])
def test_with_alpha_towards_zero_the_actor_clones(alpha):
    agent = keep_gradients(make_agent(alpha=alpha))
    actor = copy.deepcopy(agent.actor)
    adam = torch.optim.Adam(actor.parameters(), lr=agent.args.lr)
    for step in range(30):
        batch = make_batch(seed=step)
        for parameter, gradient in zip(actor.parameters(), clone(actor, batch)):
            parameter.grad = gradient
        adam.step()
        agent.update(batch)
        for mine, plain in zip(agent.actor.parameters(), actor.parameters()):
            torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-3, atol=1e-6)
    for mine, plain in zip(agent.actor.parameters(), actor.parameters()):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5)


def test_with_alpha_of_the_paper_the_actor_does_not_clone():
    agent, batch = keep_gradients(make_agent()), make_batch()
    plain = clone(agent.actor, batch)
    agent.update(batch)
    for mine, gradient in zip(agent.actor.parameters(), plain):
        assert (mine.grad - gradient).norm() > 0.1 * gradient.norm()


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_on_a_bandit_the_actor_balances_as_computed_by_hand(alpha):
    """Actions uniform around 0, reward 2 + a, no next state: Q = 2 + a. (3) is stationary where
    alpha / (2 + pi) = 2 pi, the mean recorded action being 0."""
    draw, size = np.random.default_rng(0), 4000
    a = draw.uniform(-1, 1, (size, 1)).astype(np.float32)
    rows = {"observations": np.full((size, 1), 7, np.float32), "actions": a - a.mean(),
            "rewards": 2 + (a - a.mean())[:, 0], "terminals": np.ones(size, np.float32),
            "next_observations": np.zeros((size, 1), np.float32),
            "known": np.zeros(size, np.float32), "ends": np.ones(size, bool)}
    task = {"obs_dim": 1, "act_dim": 1, "act_low": [-2.0], "act_high": [2.0], "env_id": ""}
    args = td3_bc.Args(num_seeds=2, alpha=alpha, normalize=True, hidden=32, lr=3e-3)
    td3_bc.prepare(args, rows, task)
    run = td3_bc.Run(args, task, CPU)
    run.use(rows)
    run.begin()
    run.advance(600)
    actions = []
    for _ in range(50):  # their mean: a batch's mean action is off by 0.04
        run.advance(2)
        with torch.no_grad():
            actions.append(run.agent.act(torch.full((2, 1, 1), 7.0)).flatten().numpy())
    np.testing.assert_allclose(np.mean(actions, 0), (1 + alpha / 2) ** 0.5 - 1, atol=0.03)


# ---- Seeds ----

def test_a_seed_is_untouched_by_the_batches_of_the_others():
    def trained(change: float) -> dict:
        agent = keep_gradients(make_agent(3))
        for step in range(4):
            batch = make_batch(3, seed=step)
            for key in ("observations", "next_observations", "actions", "rewards", "noise"):
                batch[key][1] += change
            agent.phases[0][2 + step % 2](batch)
        parts = dict(agent.named_parameters())
        grads = {f"gradient of {k}": p.grad for k, p in parts.items() if p.grad is not None}
        return {k: x.detach().unflatten(0, (3, -1)) for k, x in {**parts, **grads}.items()}

    plain, other = trained(0), trained(0.5)
    assert {"gradient of actor.net.weights.0", "gradient of critic.weights.0"} <= plain.keys()
    for name in plain:
        assert torch.equal(plain[name][0], other[name][0]), name
        assert torch.equal(plain[name][2], other[name][2]), name
        assert not torch.equal(plain[name][1], other[name][1]), name


def test_a_seed_starts_alike_alone_and_beside_others(hopper):
    _, rows, task = hopper_rows(hopper)

    def start(seed: int, num_seeds: int):
        args = td3_bc.fill_settings(td3_bc.Args(seed=seed, num_seeds=num_seeds, hidden=8,
                                                batch_size=16))
        run = td3_bc.Run(args, task, CPU)
        run.use(rows)
        weights = {k: p.unflatten(0, (num_seeds, -1)) for k, p in run.agent.named_parameters()}
        return weights, [run.batch() for _ in range(3)]

    td3_bc.prepare(td3_bc.Args(normalize=True), rows, task)
    (both, batches), (alone, batches_alone) = start(3, 2), start(4, 1)
    for name in alone:
        assert torch.equal(both[name][1], alone[name][0]), name
    assert not torch.equal(both["actor.net.weights.0"][0], both["actor.net.weights.0"][1])
    for batch, batch_alone in zip(batches, batches_alone):
        assert batch["noise"].shape == (2, 16, 3)
        for key in batch:
            assert torch.equal(batch[key][1], batch_alone[key][0]), key


# ---- The command ----

RUN = ("--env hopper-medium-v2 --dataset-file data.hdf5 --seed 5 --num-seeds 2 --num-updates 900 "
       "--eval-every 300 --checkpoint-every 75").split()
STATISTICS = {"loss/critic", "loss/actor", "loss/clone", "value", "weight", "updates_per_second",
              "score", "return"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_hdf5) -> Path:
    """Folder of the runs, with their data in it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_hdf5(folder / "data.hdf5")
    return folder


@pytest.fixture(scope="module")
def whole_run(folder, run_cli):
    """An uninterrupted run."""
    return run_cli(*RUN, "--run-dir", "whole", folder=folder, script="td3_bc")


def test_a_run_leaves_its_numbers_and_curves(folder, whole_run):
    assert whole_run.returncode == 0, whole_run.stderr
    result = result_of(folder / "whole")
    assert result["script"] == "td3_bc" and result["finished"]
    assert [e["update"] for e in result["evaluations"]] == [0, 300, 600, 900]
    assert len(result["task"]["obs_mean"]) == 11 and result["args"]["alpha"] == 2.5
    for seed in (5, 6):
        steps = curves(folder / f"whole/tensorboard/train-{seed}")
        assert steps.keys() == STATISTICS
        points = [*range(75, 901, 75)]
        assert steps["loss/actor"] == points == steps["loss/critic"]


def test_a_killed_run_ends_as_if_nothing_had_happened(folder, whole_run, start_cli, run_cli):
    """Checkpoints lie at odd updates, too: it must go on with the other half of its turns."""
    words = [*RUN, "--run-dir", "stopped"]
    stop_when(start_cli(*words, folder=folder, script="td3_bc"), folder / "stopped", 0, 225,
              signal.SIGKILL)
    assert 225 <= result_of(folder / "stopped")["step"] < 900
    end = run_cli(*words, folder=folder, script="td3_bc")
    assert end.returncode == 0, end.stderr
    same_end(folder, "whole", "stopped")


def test_a_checkpoint_needs_no_data_to_act(folder, whole_run, main, monkeypatch):
    monkeypatch.chdir(folder)
    end = main("--run-dir", "whole", "--eval-only", script=td3_bc)
    assert end.code == 0, end.err
    final = whole_run.stdout.splitlines()[-2]
    assert final.startswith("hopper-medium-v2, update 900") and final in end.out


@pytest.mark.parametrize("options", ["--num-updates 41 --checkpoint-every 40",
                                     "--num-updates 6 --checkpoint-every 1"])
def test_a_stretch_of_one_update_that_has_no_statistics_is_no_fault(options, tiny_hdf5, main):
    tiny_hdf5(Path("data.hdf5"))
    end = main("--env", "hopper-medium-v2", "--dataset-file", "data.hdf5", "--run-dir", "run",
               *shlex.split(options), script=td3_bc)
    assert end.code == 0, end.err


if __name__ == "__main__":
    record(Path(sys.argv[1]))
