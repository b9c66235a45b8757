"""Tests of algorithms/iql.py: parity with the authors' code, known answers, the online phase.

    python -m pytest tests/test_iql.py
    python tests/test_iql.py AUTHORS_CHECKOUT    # write golden/iql.json anew from their code

Parity is tested as tests/test_parity.py does it for POR: golden/iql.json holds what the authors'
learner.py (github ikostrikov/implicit_q_learning) computed from weights and batches of a recipe,
and our updates get the same. Their code is JAX: to record, one needs jax 0.4.35, flax 0.10.2,
optax 0.2.4 and tensorflow-probability 0.25 beside this project's packages; to test, none of them.
"""

import copy
import dataclasses
import json
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))

import iql  # noqa: E402
from helpers import (  # noqa: E402
    cast, curves, differing, gaussian, headline, keep_gradients, result_of, same_end, stop_when)
from test_parity import (TOLERANCE, UPDATES, differences, draw_network,  # noqa: E402
                         exact_products, note, uniform)  # noqa: F401

pytestmark = pytest.mark.usefixtures("por", "isolated")
CPU = torch.device("cpu")
GOLDEN = ROOT / "tests" / "golden" / "iql.json"
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
    """All networks of one agent. Q' is drawn apart from Q, and larger: exp in (7) is to be cut."""
    rng, obs, act, hidden = (np.random.default_rng([seed, 0]), case["obs_dim"], case["act_dim"],
                             [case["hidden"]] * 2)
    weights = {"value": draw_network(rng, [obs, *hidden, 1])}
    for name in ("q1", "q2", "target1", "target2"):
        weights[name] = draw_network(rng, [obs + act, *hidden, 1])
        weights[name]["weight2"] *= 12 if name.startswith("target") else 1
    return weights | {"policy": draw_network(rng, [obs, *hidden, act], outside=case["outside"])}


def draw_batches(case: dict, seed: int) -> list[dict]:
    """A batch for each update."""
    rng, batches = np.random.default_rng([seed, 1]), []
    size, obs_dim = case["batch_size"], case["obs_dim"]
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batches.append({
            "observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"]),
            "next_observations": obs + uniform(rng, -0.5, 0.5, size, obs_dim),
            "rewards": uniform(rng, -1, 3, size), "terminals": 1.0 * (rng.random(size) < 0.1),
            "known": np.ones(size)})
    return batches


# ---- Our code on the recipe ----

def bounds(act_dim: int, low=-1.0, high=1.0) -> dict:
    return {"act_dim": act_dim, "act_low": [low] * act_dim, "act_high": [high] * act_dim}


def slots(agent, n: int) -> dict:
    """Views of seed n's parameters in the recipe's layout, to write and to read."""
    networks = {"value": (agent.value, 0), "q1": (agent.critic, 0), "q2": (agent.critic, 1),
                "target1": (agent.critic_target, 0), "target2": (agent.critic_target, 1),
                "policy": (agent.policy.net, 0)}
    views = {"policy.log_std": agent.policy.log_std.data[n, 0]}
    for name, (network, head) in networks.items():
        index = n * network.heads + head
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases)):
            views[f"{name}.weight{i}"] = weight.data[index].T
            views[f"{name}.bias{i}"] = bias.data[index, 0]
    return views


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train the agents of these seeds at once; the numbers of the last of them, like `record`."""
    fields = {k: v for k, v in case.items() if k in iql.Args.__dataclass_fields__}
    args = iql.Args(**fields | {"num_seeds": len(seeds)})
    generators = [torch.Generator().manual_seed(i) for i in seeds]
    agent = iql.IQL(args, case | bounds(case["act_dim"]), generators, CPU)
    dtype = getattr(torch, case["dtype"])
    cast(agent, dtype)
    for n, seed in enumerate(seeds):
        weights, views = draw_weights(case, seed), slots(agent, n)
        given = {f"{net}.{k}": x for net, tensors in weights.items() for k, x in tensors.items()}
        assert views.keys() == given.keys()
        for name, view in views.items():
            view.copy_(torch.from_numpy(given[name]))
    result = {"losses": {}, "parameters": {}}
    for step, batches in enumerate(zip(*[draw_batches(case, seed) for seed in seeds]), 1):
        stats = agent.update({k: torch.from_numpy(np.stack([b[k] for b in batches])).to(dtype)
                              for k in batches[0]})
        losses = [stats[f"loss/{name}"][-1].item() for name in ("value", "critic", "policy")]
        note(result, step, losses, lambda: {
            k: v.numpy() for k, v in slots(agent, len(seeds) - 1).items()})
    return {"train": result}


# ---- The authors' code on the recipe ----

def load_authors(checkout: Path):
    """Their learner.py of 2022; what JAX and Flax have changed since is put back around it."""
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
    """Where the authors' agent keeps a tensor of the recipe: model, path in its parameters."""
    model = {"q": "critic", "t": "target_critic", "v": "value", "p": "actor"}[network[0]]
    path = [f"Critic_{int(network[-1]) - 1}"] if "critic" in model else []
    if tensor == "log_std":
        return model, ["log_stds"]
    last = tensor[-1] == "2"
    # the policy's last layer stands beside its MLP
    path += ["Dense_0"] if model == "actor" and last else ["MLP_0", f"Dense_{tensor[-1]}"]
    return model, [*path, "kernel" if tensor.startswith("weight") else "bias"]


def run_authors(learner, case: dict) -> dict:
    """Their updates, unchanged."""
    import flax
    import jax
    dtype, online = case["dtype"], case["online_steps"]
    agent = learner.Learner(
        0, np.zeros((1, case["obs_dim"])), np.zeros((1, case["act_dim"])),
        hidden_dims=(case["hidden"],) * 2, expectile=case["tau"], temperature=case["beta"],
        max_steps=case["num_updates"], opt_decay_schedule=None if online else "cosine")
    weights, trees = draw_weights(case, case["seed"]), {}
    for network, tensors in weights.items():
        for tensor, array in tensors.items():
            model, path = place(network, tensor)
            tree = trees.setdefault(model, {})
            for key in path[:-1]:
                tree = tree.setdefault(key, {})
            tree[path[-1]] = array.T.astype(dtype)
    shapes = lambda tree: jax.tree_util.tree_map(np.shape, flax.core.unfreeze(tree))
    for name, tree in trees.items():
        model = getattr(agent, name)
        assert shapes(model.params) == shapes(tree)
        params = flax.core.freeze(jax.tree_util.tree_map(jax.numpy.array, tree))
        state = model.tx.init(params) if model.tx else None
        setattr(agent, name, model.replace(params=params, opt_state=state))

    def parameters() -> dict:
        found = {}
        for network, tensors in weights.items():
            for tensor in tensors:
                model, path = place(network, tensor)
                found[f"{network}.{tensor}"] = getattr(agent, model).params
                for key in path:
                    found[f"{network}.{tensor}"] = found[f"{network}.{tensor}"][key]
        assert all(x.dtype == dtype for x in found.values())
        return {k: np.asarray(x).T for k, x in found.items()}

    common = sys.modules["common"]
    result = {"losses": {}, "parameters": {}}
    for step, batch in enumerate(draw_batches(case, case["seed"]), 1):
        batch = {k: x.astype(dtype) for k, x in batch.items()}
        info = agent.update(common.Batch(
            observations=batch["observations"], actions=batch["actions"], rewards=batch["rewards"],
            masks=1 - batch["terminals"], next_observations=batch["next_observations"]))
        losses = [float(info[f"{name}_loss"]) for name in ("value", "critic", "actor")]
        note(result, step, losses, parameters)
    return {"train": result}


def record(checkout: Path) -> None:
    """Write golden/iql.json from a checkout of the authors' repository at COMMIT."""
    learner, results = load_authors(checkout), {}
    for name, case in CASES.items():
        results[name] = run_authors(learner, case)
        if case["dtype"] == "float32":  # entries drift with the order of float32 sums
            del results[name]["train"]["parameters"]
    golden = {"repository": REPOSITORY, "commit": COMMIT, "updates": UPDATES, "cases": CASES,
              "results": results}
    text = json.dumps(golden, indent=0)
    GOLDEN.write_text(re.sub(r"\[[^]]*\]", lambda x: x[0].replace("\n", ""), text) + "\n")


# ---- Parity ----

@pytest.fixture(scope="module")
def golden() -> dict:
    content = json.loads(GOLDEN.read_text())
    assert content["cases"] == CASES and content["updates"] == UPDATES, "golden/iql.json is old"
    return content["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_a_seed_trains_beside_others_as_alone(golden):
    case = CASES["mujoco"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert differences(ours, golden["mujoco"], TOLERANCE["float64"]) == []


# ---- The formulas ----

def make_agent(num_seeds=2, low=-1.0, high=1.0, **options):
    """An agent with small networks, 4 observations and 2 actions."""
    settings = {"tau": 0.7, "beta": 3.0, "hidden": 16, "num_updates": 100, "lr": 1e-3}
    args = iql.Args(num_seeds=num_seeds, **settings | options)
    generators = [torch.Generator().manual_seed(n) for n in range(num_seeds)]
    return iql.IQL(args, {"obs_dim": 4, "env_id": "a task"} | bounds(2, low, high), generators, CPU)


def make_batch(num_seeds=2, size=32, seed=0) -> dict:
    """Random rows, of which a quarter end an episode."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(num_seeds, size, *shape, generator=draw)
    terminals = torch.zeros(num_seeds, size)
    terminals[:, ::4] = 1
    return {"observations": normal(4), "next_observations": normal(4), "actions": normal(2),
            "rewards": normal(), "terminals": terminals, "known": torch.ones(num_seeds, size)}


def outputs(network, *inputs) -> np.ndarray:
    """(N, heads, B) of a network with one output, in float64."""
    with torch.no_grad():
        return network(torch.cat(inputs, -1)).squeeze(-1).double().numpy()


@pytest.mark.parametrize("tau, beta", [(0.5, 3.0), (0.9, 60.0)])
def test_losses_are_the_closed_forms_in_the_authors_order(tau, beta):
    """The policy and Q see the V that this update has moved; Q' moves last."""
    agent, batch = make_agent(tau=tau, beta=beta, low=-0.5, high=1.5), make_batch()
    s, a, s2 = batch["observations"], batch["actions"], batch["next_observations"]
    with torch.no_grad():  # a Q' of its own, and larger: a mix-up with Q must show
        for weight in agent.critic_target.parameters():
            weight.mul_(1.7)
    before = [p.clone() for p in agent.critic_target.parameters()]
    target_q = outputs(agent.critic_target, s, a).min(1)
    q, v = outputs(agent.critic, s, a), outputs(agent.value, s)[:, 0]
    log_pi = gaussian(agent.policy, s, a)
    stats = {k: x.detach().numpy() for k, x in agent.update(batch).items()}
    moved, next_v = outputs(agent.value, s)[:, 0], outputs(agent.value, s2)[:, 0]
    u = target_q - v
    weight = np.minimum(np.exp(beta * (target_q - moved)), 100)
    y = batch["rewards"].numpy() + 0.99 * (1 - batch["terminals"].numpy()) * next_v
    expected = {"loss/value": (np.where(u < 0, 1 - tau, tau) * u**2).mean(1),
                "loss/policy": -(weight * log_pi).mean(1), "weight": weight.mean(1),
                "loss/critic": ((q - y[:, None]) ** 2).mean(2).sum(1), "value": v.mean(1)}
    assert stats.keys() == expected.keys() and (abs(moved - v) > 1e-4).all(1).all()
    assert (weight == 100).any() == (beta > 3)
    for name in stats:
        np.testing.assert_allclose(stats[name], expected[name], rtol=1e-5, err_msg=name)
    for old, new, online in zip(before, agent.critic_target.parameters(),
                                agent.critic.parameters()):
        torch.testing.assert_close(new, 0.995 * old + 0.005 * online)
        assert not torch.equal(new, old)


def test_the_policy_keeps_its_mean_within_the_bounds_and_explores_around_it():
    agent, obs = make_agent(low=-0.5, high=1.5), 100 * make_batch()["observations"]
    with torch.no_grad():
        agent.policy.log_std += torch.tensor([[[-9.0, 3.0]], [[0.5, -1.0]]])
        hidden = agent.policy.net(obs).squeeze(1)
        mean, noise = agent.act(obs), torch.randn(2, 32, 2)
        step = agent.explore(obs, noise) - mean
    torch.testing.assert_close(mean, 0.5 + torch.tanh(hidden))
    assert mean.min() < -0.4 and mean.max() > 1.4  # and not only near the centre
    deviation = torch.tensor([[[-5.0, 2.0]], [[0.5, -1.0]]]).exp()  # clamped, as theirs
    torch.testing.assert_close(step, deviation * noise, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("low, high", [(-np.inf, np.inf), (-1.0, np.inf)])
def test_actions_without_bounds_are_refused(low, high):
    with pytest.raises(SystemExit, match="a task: .*finite bounds"):
        make_agent(low=low, high=high)


@pytest.mark.parametrize("online_steps", [None, 7])
def test_the_policys_rate_falls_as_a_cosine_unless_online_steps_follow(online_steps):
    agent, rates = make_agent(num_updates=4, lr=0.1, online_steps=online_steps), []
    for _ in range(5):
        agent.update(make_batch())
        rates.append({k: o.lr.item() for k, o in agent.optimizers.items()})
    falling = 0.05 * (1 + np.cos(np.pi * np.arange(5) / 4))
    expected = [0.1] * 5 if online_steps else falling
    np.testing.assert_allclose([r["policy"] for r in rates], expected, atol=1e-7)
    np.testing.assert_allclose([[r["value"], r["critic"]] for r in rates], 0.1)


def test_a_seed_is_untouched_by_the_batches_of_the_others():
    def trained(change: float) -> dict:
        agent = keep_gradients(make_agent(3))
        for step in range(3):
            batch = make_batch(3, seed=step)
            for key in ("observations", "next_observations", "actions", "rewards"):
                batch[key][1] += change
            agent.update(batch)
        parts = {**dict(agent.named_parameters())}
        grads = {f"gradient of {k}": p.grad for k, p in parts.items() if p.grad is not None}
        return {k: x.detach().unflatten(0, (3, -1)) for k, x in {**parts, **grads}.items()}

    plain, other = trained(0), trained(0.5)
    assert {"value", "critic", "policy"} == {
        name.split("of ")[-1].split(".")[0] for name in plain if name.startswith("gradient")}
    for name in plain:
        assert torch.equal(plain[name][0], other[name][0]), name
        assert torch.equal(plain[name][2], other[name][2]), name
        assert not torch.equal(plain[name][1], other[name][1]), name


# ---- A small MDP with data of mixed quality ----

# (state, action, reward, next state, how often in the data); 4 is the end. The usual way from 0
# leads through 1 to 0.5; nobody ever went 0, 2, 3 to the end by the best actions, which are rare.
MDP = [(0, -0.6, 0.0, 1, 3), (0, 0.6, 0.0, 2, 1), (1, 0.0, 0.5, 4, 3), (1, 0.6, 0.0, 3, 1),
       (2, -0.6, 0.2, 4, 2), (2, 0.6, 0.3, 3, 1), (3, 0.0, 0.0, 4, 2), (3, -0.6, 1.0, 4, 1)]
GAMMA, BEST_ACTIONS = 0.9, [0.6, 0.6, 0.6, -0.6]


def expectile(x: np.ndarray, counts: np.ndarray, tau: float) -> float:
    """The v with sum of counts |tau - 1(x < v)| (x - v) = 0, by its fixed point."""
    v = x.mean()
    for _ in range(500):
        weight = counts * np.where(x < v, 1 - tau, tau)
        v = (weight * x).sum() / weight.sum()
    return v


def solved(tau: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """V of the four states, and the mean action that (7) fits, without a network."""
    s, a, r, s2, counts = (np.array(column) for column in zip(*MDP))
    values = np.zeros(5)
    for state in (3, 2, 1, 0):  # successors first
        here = s == state
        values[state] = expectile(r[here] + GAMMA * values[s2[here]], counts[here], tau)
    weight = counts * np.minimum(np.exp(beta * (r + GAMMA * values[s2] - values[s])), 100)
    mean = [(weight * a)[s == i].sum() / weight[s == i].sum() for i in range(4)]
    return values[:4], np.array(mean)


def trained_on_the_mdp(tau: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """The same by two seeds of IQL, (2, 4) each; states are one-hot, the end is zero."""
    s, a, r, s2 = (np.repeat(column, [row[-1] for row in MDP]) for column in [*zip(*MDP)][:4])
    states = np.eye(5, 4)
    rows = {"observations": states[s], "actions": a[:, None], "rewards": r,
            "next_observations": states[s2], "terminals": s2 == 4}
    batch = {k: torch.from_numpy(np.stack([x, x]).astype(np.float32)) for k, x in rows.items()}
    args = iql.Args(tau=tau, beta=beta, hidden=32, lr=3e-3, polyak=0.05, discount=GAMMA,
                    num_updates=1000)
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    agent = iql.IQL(args, {"obs_dim": 4} | bounds(1), generators, CPU)
    for _ in range(args.num_updates):
        agent.update(batch)
    every = torch.eye(4).expand(2, 4, 4)
    with torch.no_grad():
        return outputs(agent.value, every)[:, 0], agent.act(every).squeeze(-1).numpy()


def test_the_exact_solution_is_sarsas_at_one_half_and_the_best_of_the_data_near_one():
    """Of the yardstick itself: both ends by other means."""
    v3, v1 = 1 / 3, (3 * 0.5 + 0.9 / 3) / 4
    v2 = (2 * 0.2 + 0.3 + 0.9 * v3) / 3
    np.testing.assert_allclose(solved(0.5, 0)[0], [0.9 * (3 * v1 + v2) / 4, v1, v2, v3])
    np.testing.assert_allclose(solved(1 - 1e-9, 0)[0], [1.08, 0.9, 1.2, 1.0], atol=1e-6)
    np.testing.assert_allclose(solved(1 - 1e-9, 1e3)[1], BEST_ACTIONS, atol=1e-6)


def test_with_tau_one_half_iql_finds_sarsas_value_and_weights_the_datas_actions():
    values, actions = trained_on_the_mdp(tau=0.5, beta=3.0)
    expected, mean = solved(0.5, 3.0)
    np.testing.assert_allclose(values, [expected] * 2, atol=0.01)
    np.testing.assert_allclose(actions, [mean] * 2, atol=0.01)


def test_with_tau_near_one_iql_finds_the_best_of_the_data_in_value_and_policy():
    values, actions = trained_on_the_mdp(tau=0.99, beta=20.0)
    np.testing.assert_allclose(values, [solved(0.99, 20.0)[0]] * 2, atol=0.01)
    np.testing.assert_allclose(values, [[1.08, 0.9, 1.2, 1.0]] * 2, atol=0.05)
    np.testing.assert_allclose(actions, [BEST_ACTIONS] * 2, atol=0.06)


# ---- What happens to the data ----

def episodes(rewards: list[list[float]], name: str) -> tuple[dict, dict, dict]:
    """Raw rows of episodes of which the last is unfinished, those of prepare(), and the task."""
    raw = np.concatenate(rewards).astype(np.float32)
    ends = np.zeros(len(raw), bool)
    ends[np.cumsum([len(part) for part in rewards])[:-1] - 1] = True
    task = {"name": name}
    rows = iql.prepare(iql.Args(), {"rewards": raw.copy(), "ends": ends}, task)
    assert json.loads(json.dumps(task)) == task and rows["rewards"].dtype == np.float32
    np.testing.assert_array_equal(  # online rewards get the same
        rows["rewards"], raw * np.float32(task["reward_scale"]) + task["reward_shift"])
    return raw, rows["rewards"], task


def test_rewards_are_scaled_to_returns_that_span_1000():
    raw, scaled, task = episodes([[1, 2], [5.5], [-1, -1, 0.5], [1e4] * 3], "hopper-medium-v2")
    np.testing.assert_allclose(scaled, raw * 1000 / (5.5 + 1.5), rtol=1e-6)
    assert task["reward_shift"] == 0


@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "rebuilt/antmaze/large-play-v0"])
def test_rewards_of_mazes_get_minus_one(name):
    raw, shifted, task = episodes([[0, 0, 1], [0, 0], [0]], name)
    np.testing.assert_array_equal(shifted, raw - 1)
    assert task["reward_scale"] == 1 and task["reward_shift"] == -1


def test_rewards_of_equal_episodes_stay():
    raw, same, task = episodes([[1, 2], [3], [5]], "Pendulum-v1")
    np.testing.assert_array_equal(same, raw)
    assert (task["reward_scale"], task["reward_shift"]) == (1, 0)


def authors_span(raw: np.ndarray, terminals: np.ndarray, timeouts: np.ndarray) -> float:
    """Span of the returns as their dataset_utils.py finds them in D4RL's qlearning_dataset."""
    states = np.arange(len(raw))  # each another one
    kept = (timeouts == 0) & (states < states[-1])  # qlearning_dataset leaves out the others
    jumps = np.append(states[kept][1:] != states[kept][:-1] + 1, True)
    ends = np.flatnonzero(jumps | (terminals[kept] > 0))
    return np.ptp(np.add.reduceat(raw[kept].astype(float), [0, *ends[:-1] + 1]))


def test_the_scale_is_the_authors_but_for_timeouts_and_the_unfinished_end():
    parts = [[3, 4], [1, 1, 1], [9, 1, 2], [5]]  # returns 7, 3, 12, 5
    raw, scaled, _ = episodes([*parts, [2, 2, 2]], "walker2d-expert-v2")
    np.testing.assert_allclose(scaled, raw * 1000 / 9, rtol=1e-6)
    terminals, timeouts = np.zeros((2, len(raw)))
    terminals[[1, 4, 7, 8]] = 1
    assert authors_span(raw, terminals, timeouts) == 9
    raw[-3] = -8  # which gives -6: their last row is always left out
    assert authors_span(raw, terminals, timeouts) == 12 + 6
    raw[-3], terminals[7], timeouts[7] = 2, 0, 1  # the best return loses its last reward
    assert authors_span(raw, terminals, timeouts) == 10 - 3


@pytest.mark.parametrize("name, tau, beta", [
    ("hopper-medium-replay-v2", 0.7, 3.0), ("rebuilt/walker2d/medium-v0", 0.7, 3.0),
    ("halfcheetah-expert-v2", 0.7, 3.0), ("antmaze-large-diverse-v2", 0.9, 10.0),
    ("rebuilt/antmaze/umaze-v0", 0.9, 10.0), ("Pendulum-v1", 0.7, 3.0)])
def test_settings_are_the_papers(name, tau, beta, capsys):
    args = iql.fill_settings(iql.Args(env=name))
    assert (args.tau, args.beta) == (tau, beta)
    assert ("no row of its own" in capsys.readouterr().out) == (name == "Pendulum-v1")
    assert iql.fill_settings(iql.Args(env=name, tau=0.8)).tau == 0.8


# ---- The online phase: steps, table, batches ----

ROOM = 60  # online steps of these runs


def online_run(raw: dict, env_id: str, run_dir: str, seeds=(3, 4), **options):
    """A run at the start of its online phase, whose offline phase had no update."""
    spec = copy.deepcopy(iql.gym.spec(env_id))  # the registry's own serves all tests
    spec.max_episode_steps = min(spec.max_episode_steps, 25)  # Pendulum never ends by itself
    task = {"name": "a-task", "env_id": env_id, "env_spec": spec.to_json(), "horizon": 25,
            "ref_min": None, "ref_max": None}
    rows, task = iql.to_rows({k: v for k, v in raw.items() if "/" not in k}, task)
    args = iql.Args(seed=seeds[0], num_seeds=len(seeds), tau=0.7, beta=3.0, hidden=8, batch_size=16,
                    num_updates=1, online_steps=ROOM, run_dir=run_dir)
    run = iql.OnlineRun(dataclasses.replace(args, **options), task, CPU)
    Path(run_dir).mkdir()
    run.use(iql.prepare(args, rows, task))
    return run


def go_online(run, steps: int):
    run.phase = 1
    run.begin()
    run.advance(steps)
    return run


def stored(run) -> np.ndarray:
    """(steps, seeds, columns) of online.bin."""
    steps = np.fromfile(Path(run.args.run_dir, "online.bin"), np.float32)
    return steps.reshape(-1, len(run.seeds), run.table.shape[1] + 1)


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1"])
def test_online_steps_are_those_of_the_environment(env_id, hopper, pendulum):
    raw = {"Hopper-v4": hopper, "Pendulum-v1": pendulum}[env_id]()
    run = go_online(online_run(raw, env_id, "run", seeds=(-1, 0, 1)), ROOM)
    task, found, starts = run.task, stored(run), []
    assert found.shape[:2] == (ROOM, 3) and task["reward_scale"] not in (0, 1)
    assert [*run.shapes] == ["observations", "actions", "rewards", "terminals",
                             "next_observations", "known"]
    obs, act = task["obs_dim"], task["act_dim"]
    for n, seed in enumerate(run.seeds):
        env, fresh = iql.make_env(task), True
        for step, row in enumerate(found[:, n]):
            s, a, (r, terminal), s2, (known, end) = np.split(row, np.cumsum([obs, act, 2, obs]))
            if fresh:
                numbers = np.random.SeedSequence([seed % 2**32, step]).generate_state(1)
                state, _ = env.reset(seed=int(numbers[0]))
                starts.append(state)
            np.testing.assert_array_equal(s, np.float32(state))
            assert (a >= task["act_low"]).all() and (a <= task["act_high"]).all()
            state, reward, over, cut, _ = env.step(a.astype(float))
            np.testing.assert_array_equal(s2, np.float32(state))
            np.testing.assert_allclose(
                r, reward * task["reward_scale"] + task["reward_shift"], rtol=1e-6)
            fresh = over or cut
            assert (terminal, known, end) == (over, 1, fresh)
    assert len(starts) >= 6 and len(np.unique(np.round(starts, 6), axis=0)) == len(starts)
    evaluated = [iql.make_env(task).reset(seed=i)[0] for i in range(10)]
    assert not (np.array(starts)[:, None] == np.array(evaluated)).all(-1).any()


def test_online_actions_are_sampled_and_clipped(hopper):
    run = online_run(hopper(), "Hopper-v4", "run")
    acted, explore = [], run.agent.explore
    run.agent.explore = lambda obs, noise: acted.append(explore(obs, noise)) or acted[-1]
    go_online(run, ROOM)
    taken = stored(run)[:, :, 11:14]
    expected = torch.stack(acted).squeeze(2).numpy()
    np.testing.assert_array_equal(taken, expected.clip(-1, 1))
    assert (abs(expected) > 1).mean() > 0.1 and 0.7 < expected.std() < 1.3
    assert (expected[:, 0] != expected[:, 1]).all()


def test_each_seed_draws_the_dataset_and_its_own_steps_so_far_each_as_likely(pendulum):
    run, drawn = online_run(pendulum(rows=40, cut=20), "Pendulum-v1", "run", batch_size=4000), []
    shared, room, draw = run.shared, ROOM, run.draw

    def note_draw(number):
        rows = draw(number)
        drawn.append((run.online and run.step, number, rows.clone()))
        return rows

    run.draw = note_draw
    run.begin()
    run.advance(1)  # the offline phase
    run.step = 0
    go_online(run, 30)
    assert [(step, n) for step, n, _ in drawn] == [(0, 0), (0, 1)] + [
        (step, n) for step in range(30) for n in range(2)]
    for i, (step, n, rows) in enumerate(drawn):
        own = range(shared + n * room, shared + n * room + (step + 1 if i >= 2 else 0))
        allowed = [*range(shared), *own]
        counts = torch.bincount(rows, minlength=shared + 2 * room)
        assert counts.sum() == counts[allowed].sum() == 4000
        assert 0.4 < counts[allowed].min() / (4000 / len(allowed)) < 1.7
    found = torch.from_numpy(stored(run)[..., :-1])
    assert found.shape[0] == 30
    for n in range(2):
        first = shared + n * room
        assert torch.equal(run.table[first:first + 30], found[:, n])
        assert not run.table[first + 30:first + room].any()
    assert not torch.equal(found[:, 0], found[:, 1])


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1"])
def test_a_run_goes_on_bit_for_bit_in_the_middle_of_an_episode(env_id, hopper, pendulum):
    """Pendulum computes in the type of its action, Hopper's contacts remember the last step."""
    raw = {"Hopper-v4": hopper, "Pendulum-v1": pendulum}[env_id]()
    whole = go_online(online_run(raw, env_id, "whole"), ROOM)
    killed = go_online(online_run(raw, env_id, "killed"), 35)
    assert not stored(killed)[34, :, -1].any()
    killed.save(finished=False)
    at_checkpoint = [obs.copy() for obs in killed.obs]
    killed.advance(7)  # lost; in the file remain steps that the checkpoint knows nothing of
    Path("killed").rename("moved")
    resumed = online_run(raw, env_id, "killed")
    for name in ("checkpoint.pt", "online.bin"):
        Path("moved", name).rename(f"killed/{name}")
    resumed.restore(torch.load("killed/checkpoint.pt"))
    resumed.begin()
    assert [a.tolist() for a in resumed.obs] == [a.tolist() for a in at_checkpoint]
    resumed.advance(ROOM - 35)
    assert differing(resumed.agent.state_dict(), whole.agent.state_dict()) == []
    assert torch.equal(resumed.table, whole.table)
    np.testing.assert_array_equal(stored(resumed), stored(whole))


# ---- The command ----

OPTIONS = ("--num-updates 200 --online-steps 300 --eval-every 150 --checkpoint-every 50 "
           "--seed 5 --num-seeds 2 --env hopper-medium-v2 --dataset-file data.hdf5").split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_hdf5) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny_hdf5(folder / "data.hdf5")
    return folder


@pytest.fixture(scope="module")
def whole_run(folder, run_cli):
    """An uninterrupted run."""
    return run_cli(*OPTIONS, "--run-dir", "whole", folder=folder, script="iql")


@pytest.fixture(scope="module")
def stopped_run(folder, start_cli, run_cli):
    """A run killed in both phases and resumed; its folder as the second kill left it."""
    words, killed = [*OPTIONS, "--run-dir", "stopped"], []
    for phase, step in ((0, 100), (1, 100)):  # the second checkpoint of each: the first is whole
        stop_when(start_cli(*words, folder=folder, script="iql"), folder / "stopped", phase, step,
                  signal.SIGKILL)
        killed.append(result_of(folder / "stopped"))
    shutil.copytree(folder / "stopped", folder / "killed")
    end = run_cli(*words, folder=folder, script="iql")
    return SimpleNamespace(killed=killed, end=end)


def test_a_run_leaves_the_numbers_and_curves_of_both_phases(folder, whole_run):
    assert whole_run.returncode == 0 and whole_run.stderr == "", whole_run.stderr
    result = result_of(folder / "whole")
    assert result["script"] == "iql" and result["finished"]
    assert [(e["phase"], e["update"], e["episodes"]) for e in result["evaluations"]] == [
        ("train", 0, 2), ("train", 150, 2), ("train", 200, 3), ("online", 150, 2),
        ("online", 300, 3)]
    assert (result["phase"], result["step"]) == (1, 300)
    assert result["final"] == result["evaluations"][-1]
    assert result["args"]["tau"] == 0.7 and result["task"]["reward_scale"] > 1
    for seed in (5, 6):
        for phase, steps in (("train", [0, 150, 200]), ("online", [150, 300])):
            found = curves(folder / f"whole/tensorboard/{phase}-{seed}")
            assert found["score"] == found["return"] == steps
            assert found["loss/value"][-1] == steps[-1]
            assert {"loss/critic", "loss/policy", "weight", "value"} < found.keys()


def test_a_run_killed_in_both_phases_ends_as_if_nothing_had_happened(folder, whole_run,
                                                                     stopped_run):
    assert [r["phase"] for r in stopped_run.killed] == [0, 1]
    assert stopped_run.end.returncode == 0, stopped_run.end.stderr
    assert "of phase 'online'" in stopped_run.end.stdout
    same_end(folder, "whole", "stopped")
    assert headline(stopped_run.end.stdout) == headline(whole_run.stdout)
    one, other = (Path(folder, name, "online.bin").read_bytes() for name in ("whole", "stopped"))
    assert one == other


def test_eval_only_needs_nothing_of_the_online_steps(folder, whole_run, main, tmp_path):
    shutil.copytree(folder / "whole", "whole")
    Path("whole/online.bin").unlink()
    end = main("--eval-only", "--run-dir", "whole", script=iql)
    assert end.code == 0 and headline(end.out) == headline(whole_run.stdout), end.err
    assert not Path("whole/online.bin").exists()


@pytest.mark.parametrize("damage, words", [
    (lambda path: path.unlink(), ["No such file", "online.bin"]),
    (lambda path: path.write_bytes(path.read_bytes()[:3000]), ["online.bin ends before update"])],
    ids=["absent", "short"])
def test_a_run_whose_online_steps_are_lost_does_not_go_on(folder, stopped_run, main, monkeypatch,
                                                          damage, words):
    shutil.copy(folder / "data.hdf5", ".")
    shutil.copytree(folder / "killed", "killed")
    damage(Path("killed/online.bin"))
    before = {path: path.read_bytes() for path in Path("killed").rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", [*stopped_run.end.args[1:-1], "killed"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "algorithms" / "iql.py"), run_name="__main__")
    text = str(end.value)
    assert all(word in text for word in words) and "\n" not in text, text
    assert before == {path: path.read_bytes() for path in Path("killed").rglob("*")
                      if path.is_file()}


if __name__ == "__main__":
    record(Path(sys.argv[1]))
