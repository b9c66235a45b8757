"""Tests of algorithms/sac.py: parity with rlkit, known answers, learning online, resumed runs.

    python -m pytest tests/test_sac.py
    python tests/test_sac.py RLKIT_CHECKOUT    # write golden/sac.json anew from rlkit's code

Weights and rows come from one recipe, `draw_weights` and `draw_data`, which uses nothing but
uniform numbers of NumPy's PCG64. golden/sac.json holds what rlkit's SACTrainer, TanhGaussianPolicy
and ConcatMlp (github rail-berkeley/rlkit) computed from them. `run_rlkit` shows how theirs was run:
unchanged, with our numbers for torch.normal, and without packages that the update does not need.
"""

import dataclasses
import json
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))

import sac  # noqa: E402
from helpers import (  # noqa: E402
    curves, differences, differing, digest, keep_gradients, result_of, same_end, shorten, stop_when,
    uniform)

GOLDEN = ROOT / "tests" / "golden" / "sac.json"
REPOSITORY = "https://github.com/rail-berkeley/rlkit"
COMMIT = "ac45a9db24b89d97369bef302487273bcc3e3d84"
CPU = torch.device("cpu")
UPDATES, CURVE, SNAPSHOTS = 50, (1, 2, 10, 25, 50), (1, 50)
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
         "rows": 300, "log_alpha": -0.7, "discount": 0.99, "polyak": 0.005, "spread": 1.0}
CASES = {
    "defaults": {**SMALL, "low": -1.0, "high": 1.0, "seed": 1},
    "other bounds": {**SMALL, "low": -0.5, "high": 3.0, "discount": 0.9, "polyak": 0.1, "seed": 2},
    # pi so wide and so narrow that the clamps of its deviation count, and tanh saturates
    "extreme policy": {**SMALL, "low": -1.0, "high": 1.0, "spread": 6.0, "log_alpha": 0.5,
                       "seed": 3},
    "full width": {**SMALL, "dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256,
                   "rows": 2000, "batch_size": 256, "low": -1.0, "high": 1.0, "seed": 4},
}
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}  # relative to max(1, |rlkit's number|)


# ---- The recipe ----

def draw_weights(case: dict, seed: int) -> dict:
    """(out, in) weights and biases. Targets are drawn apart: a mix-up with them must show."""
    rng, hidden = np.random.default_rng([seed, 0]), [case["hidden"]] * 2
    policy = [case["obs_dim"], *hidden, 2 * case["act_dim"]]
    critic = [case["obs_dim"] + case["act_dim"], *hidden, 1]
    plan = {"policy": policy, "q1": critic, "q2": critic, "q1_target": critic, "q2_target": critic}
    size = lambda name: case["spread"] if name == "policy" else 1
    return {f"{name}.{kind}{i}": size(name) * uniform(rng, -1, 1, *shape) / dims[i]**0.5
            for name, dims in plan.items() for i in range(3)
            for kind, shape in (("weight", (dims[i + 1], dims[i])), ("bias", (dims[i + 1],)))}


def draw_data(case: dict, seed: int) -> tuple[dict, list[dict]]:
    """A dataset, its actions in [-1, 1], and indices and noise of each update."""
    rng, n, size = np.random.default_rng([seed, 1]), case["rows"], case["batch_size"]
    obs = uniform(rng, -1, 1, n, case["obs_dim"])
    rows = {"observations": obs, "actions": uniform(rng, -1, 1, n, case["act_dim"]),
            "next_observations": obs + uniform(rng, -0.5, 0.5, n, case["obs_dim"]),
            "rewards": uniform(rng, -1, 3, n), "terminals": 1.0 * (rng.random(n) < 0.1)}
    updates = [{"index": (n * rng.random(size)).astype(int),
                "noise": uniform(rng, -3, 3, size, 2 * case["act_dim"])} for _ in range(UPDATES)]
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
    """Views of seed n's parameters in rlkit's layout, to write and to read."""
    networks = {"policy": (agent.policy.net, 0), "q1": (agent.critic, 0), "q2": (agent.critic, 1),
                "q1_target": (agent.critic_target, 0), "q2_target": (agent.critic_target, 1)}
    views = {}
    for name, (network, head) in networks.items():
        index = n * network.heads + head
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases)):
            views[f"{name}.weight{i}"] = weight.data[index].T
            views[f"{name}.bias{i}"] = bias.data[index, 0]
    return views


def run_ours(case: dict, seeds: list[int], monkeypatch) -> dict:
    """Train the agents of these seeds at once; the numbers of the last of them, like `record`."""
    dims, low, high = case["act_dim"], case["low"], case["high"]
    task = {"obs_dim": case["obs_dim"], "act_dim": dims, "env_id": "",
            "act_low": [low] * dims, "act_high": [high] * dims}
    args = sac.Args(hidden=case["hidden"], lr=3e-4, num_seeds=len(seeds),
                    discount=case["discount"], polyak=case["polyak"])
    generators = [torch.Generator().manual_seed(i) for i in seeds]
    agent = sac.SAC(args, task, generators, CPU)
    for n, seed in enumerate(seeds):
        weights, views = draw_weights(case, seed), slots(agent, n)
        assert views.keys() == weights.keys()
        for name, view in views.items():
            view.copy_(torch.from_numpy(weights[name]))
    agent.log_alpha.data.fill_(case["log_alpha"])
    names, minimize, losses = {id(o): k for k, o in agent.optimizers.items()}, sac.minimize, {}
    monkeypatch.setattr(sac, "minimize", lambda optimizer, loss: (
        losses.update({names[id(optimizer)]: loss[-1].item()}), minimize(optimizer, loss)))
    result, data = {"losses": {}, "parameters": {}}, [draw_data(case, seed) for seed in seeds]
    update, = agent.phases[0][2:]
    for step in range(1, UPDATES + 1):
        parts = [{k: v[updates[step - 1]["index"]] for k, v in rows.items()}
                 | {"noise": updates[step - 1]["noise"]} for rows, updates in data]
        for part in parts:  # onto the bounds
            part["actions"] = low + (high - low) / 2 * (part["actions"] + 1)
        batch = {k: torch.from_numpy(np.stack([part[k] for part in parts]))
                 .to(torch.get_default_dtype()) for k in parts[0]}
        update(batch)
        note(result, step, [losses[k] for k in ("temperature", "policy", "critic")],
             slots(agent, len(seeds) - 1) | {"log_alpha": agent.log_alpha[-1]})
    return result


# ---- rlkit on the recipe ----

def load_rlkit(checkout: Path) -> SimpleNamespace:
    """Their classes. Packages that other parts of rlkit need are mocked where they are missing."""
    sys.path.insert(0, str(checkout))
    sys.modules |= {name: mock.MagicMock() for name in (
        "gtimer", "torchvision", "torchvision.models", "rlkit.torch.networks.pretrained_cnn")}
    from rlkit.torch.networks.mlp import ConcatMlp
    from rlkit.torch.sac.policies.gaussian_policy import TanhGaussianPolicy
    from rlkit.torch.sac.sac import SACTrainer
    return SimpleNamespace(ConcatMlp=ConcatMlp, Policy=TanhGaussianPolicy, Trainer=SACTrainer)


def run_rlkit(rlkit: SimpleNamespace, case: dict) -> dict:
    """Their updates, unchanged; losses are read where they call backward."""
    dtype, obs_dim, act_dim = getattr(torch, case["dtype"]), case["obs_dim"], case["act_dim"]
    torch.set_default_dtype(dtype)
    hidden = [case["hidden"]] * 2
    policy = rlkit.Policy(hidden, obs_dim, act_dim)
    critics = {name: rlkit.ConcatMlp(hidden, 1, obs_dim + act_dim)
               for name in ("q1", "q2", "q1_target", "q2_target")}
    env = SimpleNamespace(action_space=SimpleNamespace(shape=(act_dim,)))
    trainer = rlkit.Trainer(  # as in their examples/sac.py
        env, policy, *critics.values(), policy_lr=3e-4, qf_lr=3e-4, reward_scale=1,
        discount=case["discount"], soft_target_tau=case["polyak"], target_update_period=1,
        use_automatic_entropy_tuning=True)
    trainer.log_alpha.data.fill_(case["log_alpha"])
    weights = draw_weights(case, case["seed"])
    for name, network in {"policy": policy, **critics}.items():
        layers = [network.fc0, network.fc1, network.last_fc]
        for i, layer in enumerate(layers):
            for kind in ("weight", "bias"):
                value = torch.from_numpy(weights[f"{name}.{kind}{i}"]).to(dtype)
                if name == "policy" and i == 2:  # they keep two layers where we have one
                    value, log_std = value.chunk(2)
                    getattr(policy.last_fc_log_std, kind).data.copy_(log_std)
                assert getattr(layer, kind).shape == value.shape
                getattr(layer, kind).data.copy_(value)

    def parameters() -> dict:
        found = {"log_alpha": trainer.log_alpha}
        for name, network in {"policy": policy, **critics}.items():
            for i, layer in enumerate([network.fc0, network.fc1, network.last_fc]):
                for kind in ("weight", "bias"):
                    value = getattr(layer, kind)
                    if name == "policy" and i == 2:
                        value = torch.cat([value, getattr(policy.last_fc_log_std, kind)])
                    found[f"{name}.{kind}{i}"] = value
        return found

    rows, updates = draw_data(case, case["seed"])
    result, losses, noises = {"losses": {}, "parameters": {}}, [], []
    backward, normal = torch.Tensor.backward, torch.normal
    torch.Tensor.backward = lambda loss: (losses.append(loss.item()), backward(loss))[1]
    torch.normal = lambda mean, std: mean + std * noises.pop(0)
    for step, drawn in enumerate(updates, 1):
        losses.clear()
        noises += [torch.from_numpy(part).to(dtype) for part in np.split(drawn["noise"], 2, 1)]
        batch = {k: torch.from_numpy(v[drawn["index"]]).to(dtype) for k, v in rows.items()}
        batch |= {k: batch[k].unsqueeze(1) for k in ("rewards", "terminals")}
        trainer.train_from_torch(batch)
        temperature, pi, *q = losses
        note(result, step, [temperature, pi, sum(q)], parameters())
    torch.Tensor.backward, torch.normal = backward, normal
    torch.set_default_dtype(torch.float32)
    return result


def record(checkout: Path) -> None:
    """Write golden/sac.json from a checkout of rlkit at COMMIT."""
    rlkit, results = load_rlkit(checkout), {}
    for name, case in CASES.items():
        results[name] = run_rlkit(rlkit, case)
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
    sac.gym.logger.min_level = sac.gym.logger.ERROR  # v4 environments are meant
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def dtype_of():
    """Make a case's dtype the default one for a test: buffers are made with it."""
    yield lambda case: torch.set_default_dtype(getattr(torch, case["dtype"]))
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def golden() -> dict:
    content = json.loads(GOLDEN.read_text())
    assert content["cases"] == CASES and content["updates"] == UPDATES, "golden/sac.json is old"
    return content["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_rlkits(name, golden, dtype_of, monkeypatch):
    case = CASES[name]
    dtype_of(case)
    ours = run_ours(case, [case["seed"]], monkeypatch)
    assert len(golden[name]["losses"]["1"]) == 3
    assert differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_a_seed_trains_beside_others_as_alone(golden, dtype_of, monkeypatch):
    case = CASES["defaults"]
    dtype_of(case)
    ours = run_ours(case, [case["seed"] + 100, case["seed"]], monkeypatch)
    assert differences(ours, golden["defaults"], TOLERANCE[case["dtype"]]) == []


# ---- The formulas ----

TASK = {"obs_dim": 4, "act_dim": 2, "act_low": [-1.0, 0.5], "act_high": [2.0, 1.0], "env_id": ""}


def make_agent(num_seeds=2, task=TASK, **options):
    """An agent with small networks; its target is another than its critic."""
    args = sac.Args(num_seeds=num_seeds, **{"lr": 1e-3, "hidden": 16} | options)
    generators = [torch.Generator().manual_seed(n) for n in range(num_seeds)]
    agent = sac.SAC(args, task, generators, CPU)
    with torch.no_grad():
        for weight in agent.critic_target.parameters():
            weight += 0.1
    return agent


def make_batch(num_seeds=2, size=32, seed=0) -> dict:
    """Random rows, actions inside TASK's bounds, a quarter terminal."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(num_seeds, size, *shape, generator=draw)
    low, high = torch.tensor(TASK["act_low"]), torch.tensor(TASK["act_high"])
    batch = {"observations": normal(4), "next_observations": normal(4), "rewards": normal(),
             "actions": low + (high - low) * normal(2).sigmoid(),
             "terminals": torch.zeros(num_seeds, size), "noise": normal(4)}
    batch["terminals"][:, ::4] = 1
    return batch


def test_the_density_is_that_of_the_actions():
    """By a change of variables from the textbook's Gaussian, and it integrates to one."""
    agent, batch = make_agent(), make_batch(size=200)
    s, noise = batch["observations"], batch["noise"][..., :2]
    with torch.no_grad():
        u, log_pi = agent.policy(s, noise)
        mean, log_std = agent.policy.net(s).squeeze(1).double().chunk(2, -1)
    x = torch.atanh(u.double())
    plain = torch.distributions.Normal(mean, log_std.exp()).log_prob(x)
    expected = (plain - (1 - u.double() ** 2).log()).sum(-1)
    torch.testing.assert_close(log_pi.double(), expected, rtol=1e-4, atol=1e-4)
    one = make_agent(1, {**TASK, "act_dim": 1, "act_low": [-1.0], "act_high": [1.0]})
    grid = torch.linspace(-8, 8, 4001).view(1, -1, 1)
    with torch.no_grad():
        u, log_pi = one.policy(torch.zeros(1, 4001, 4), grid)
    assert abs(torch.trapezoid(log_pi.exp()[0], u[0, :, 0]).item() - 1) < 1e-3


def test_log_densities_stay_finite_at_the_edge():
    agent = make_agent()
    u, log_pi = agent.policy(torch.zeros(2, 1, 4), torch.full((2, 1, 2), 300.0))
    assert (u == 1).all() and log_pi.isfinite().all()
    gradients = torch.autograd.grad(log_pi.sum(), list(agent.policy.parameters()))
    assert all(g.isfinite().all() for g in gradients)


def test_actions_stay_inside_the_bounds_and_reach_them():
    agent, obs = make_agent(), make_batch(size=500)["observations"]
    with torch.no_grad():
        agent.policy.net.weights[-1].mul_(1e4)
        for actions in (agent.act(obs), agent.explore(obs, torch.randn(2, 500, 2))):
            actions = actions.flatten(0, 1)
            torch.testing.assert_close(actions.amin(0), torch.tensor(TASK["act_low"]))
            torch.testing.assert_close(actions.amax(0), torch.tensor(TASK["act_high"]))


def test_it_evaluates_the_mean_and_explores_around_it():
    agent, obs = make_agent(), torch.randn(2, 3, 4)
    with torch.no_grad():
        mean, log_std = agent.policy.net(obs).squeeze(1).chunk(2, -1)
        center, radius = torch.tensor([0.5, 0.75]), torch.tensor([1.5, 0.25])
        torch.testing.assert_close(agent.act(obs), center + radius * mean.tanh())
        noise = torch.randn(2, 3, 2)
        torch.testing.assert_close(agent.explore(obs, noise),
                                   center + radius * (mean + log_std.exp() * noise).tanh())


def test_the_target_ends_at_terminals_only():
    """Rewards alone where an episode truly ended; elsewhere the next state counts."""
    for terminal in (0.0, 1.0):
        batch = make_batch()
        batch["terminals"].fill_(terminal)
        losses = []
        for shift in (0.0, 1.0):
            agent = make_agent()
            with torch.no_grad():
                agent.critic_target.biases[-1] += shift
            losses.append(agent.update(batch)["loss/critic"])
        assert torch.equal(*losses) == bool(terminal)


@pytest.mark.parametrize("width, sign", [(0.0, -1), (-8.0, 1)])
def test_the_temperature_drives_the_entropy_to_minus_the_dimensions(width, sign):
    """A pi of deviation 1 has too much of it and alpha falls, a narrow one too little."""
    agent = make_agent()
    with torch.no_grad():
        agent.policy.net.biases[-1][..., 2:] += width
    first = agent.update(make_batch())
    assert ((first["entropy"] + 2).sign() == -sign).all()
    assert torch.equal(first["alpha"], torch.ones(2))
    for seed in range(1, 20):
        last = agent.update(make_batch(seed=seed))
    assert ((last["alpha"] - 1).sign() == sign).all()
    torch.testing.assert_close(last["alpha"].log(), torch.full((2,), sign * 0.019), rtol=0.1,
                               atol=0)  # Adam's steps of lr


# ---- Known answers ----

def tanh_normal(mean: float, std: float) -> tuple[np.ndarray, np.ndarray, float]:
    """A grid of actions, their log density, and the entropy by numerical integration."""
    x = mean + std * np.linspace(-8, 8, 20001)
    log_p = -0.5 * ((x - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    log_p -= np.log(1 - np.tanh(x) ** 2)
    return np.tanh(x), log_p, -np.trapezoid(np.exp(log_p) * log_p, np.tanh(x))


@pytest.mark.parametrize("alpha, low, high", [(0.3, -1.0, 1.0), (1.5, 2.0, 6.0)])
def test_on_a_bandit_pi_and_alpha_are_the_optimal_ones(alpha, low, high):
    """Among all policies of entropy -1, the one with the largest reward is exp(r / alpha) / Z.

    So if r = alpha log p for a tanh-Gaussian p of entropy -1, SAC must find p and alpha. There is
    no next state, and the data cover all actions that count: nothing is extrapolated.
    """
    mean = 0.4
    std = min(np.linspace(0.05, 0.5, 451), key=lambda d: abs(tanh_normal(mean, d)[2] + 1))
    assert abs(tanh_normal(mean, std)[2] + 1) < 0.01
    n = 20_000
    x = mean + std * np.random.default_rng(0).uniform(-4, 4, n)
    u, log_p = np.tanh(x), -0.5 * ((x - mean) / std) ** 2 - np.log(1 - np.tanh(x) ** 2)
    rows = {"observations": np.ones((n, 1), np.float32), "terminals": np.ones(n, np.float32),
            "actions": (low + (high - low) / 2 * (u[:, None] + 1)).astype(np.float32),
            "rewards": (alpha * log_p).astype(np.float32), "ends": np.ones(n, bool),
            "next_observations": np.zeros((n, 1), np.float32), "known": np.zeros(n, np.float32)}
    task = {"obs_dim": 1, "act_dim": 1, "act_low": [low], "act_high": [high], "env_id": ""}
    args = sac.Args(hidden=32, batch_size=128, lr=1e-2, num_updates=1100, random_steps=1,
                    run_dir=".")
    run = sac.ScratchRun(args, task, CPU)
    run.use(sac.prepare(args, rows, task))
    run.begin()
    run.advance(800)
    found, _ = [], run.means()
    for _ in range(30):
        run.advance(10)
        with torch.no_grad():
            m, log_std = run.agent.policy.net(torch.ones(1, 1, 1)).flatten().chunk(2)
            found.append([m.item(), log_std.exp().item(), run.agent.log_alpha.exp().item()])
    np.testing.assert_allclose(np.mean(found, 0), [mean, std, alpha], rtol=0.05)
    assert abs(run.means()["entropy"] + 1).max() < 0.05


# ---- Random steps ----

def short(env_id: str, steps: int = 25) -> str:
    """The id of that environment with a shorter time limit: Pendulum never ends by itself."""
    name = env_id.replace("-v", "Short-v")
    if name not in gym.registry:
        spec = gym.spec(env_id)
        gym.register(name, spec.entry_point, max_episode_steps=steps, kwargs=spec.kwargs)
    return name


def scratch_args(env_id="Pendulum-v1", seeds=(3, 4), **options):
    args = sac.Args(env=short(env_id), seed=seeds[0], num_seeds=len(seeds), hidden=8,
                    batch_size=16, num_updates=60, random_steps=40, lr=3e-4)
    return dataclasses.replace(args, **options)


def columns_of(rows: dict) -> dict:
    return {k: rows[k] for k in (*sac.KEYS[:4], "next_observations", "known")}


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1"])
def test_random_steps_are_those_of_the_environment(env_id):
    args = scratch_args(env_id, seeds=(-1, 0), random_steps=60)
    rows, task = sac.ScratchRun.load(args)
    assert (task["source"], task["transitions"], task["ref_min"]) == ("random actions", 120, None)
    assert task["env_id"] == args.env and task["horizon"] == 25
    assert rows["known"].all() and rows["ends"][[59, 119]].all() and not rows["terminals"][59]
    env, ends = sac.make_env(task), 0
    for seed, first in ((-1, 0), (0, 60)):
        rng, fresh = np.random.default_rng([1, seed % 2**32]), True
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        for i in range(first, first + 60):
            np.testing.assert_array_equal(rows["observations"][i], np.float32(obs))
            np.testing.assert_array_equal(rows["actions"][i], np.float32(
                rng.uniform(task["act_low"], task["act_high"])))
            obs, reward, over, cut, _ = env.step(rows["actions"][i])
            np.testing.assert_array_equal(rows["next_observations"][i], np.float32(obs))
            assert rows["rewards"][i] == np.float32(reward) and rows["terminals"][i] == over
            assert rows["ends"][i] == (over or cut or i == first + 59)
            ends += over or cut
            obs = env.reset()[0] if over or cut else obs
    assert ends >= 4
    actions = rows["actions"] / np.array(task["act_high"])
    assert abs(actions).max() > 0.9 and abs(actions.mean()) < 0.2


def test_a_seed_starts_alike_alone_and_beside_others():
    def start(*seeds: int):
        args = scratch_args(seeds=seeds, run_dir="run")
        rows, task = sac.ScratchRun.load(args)
        run = sac.ScratchRun(args, task, CPU)
        run.use(sac.prepare(args, rows, task))
        run.begin()
        run.advance(2)
        rows = {k: v.reshape(len(seeds), -1) for k, v in columns_of(rows).items()}
        return rows, run

    (both, run), (alone, run_alone) = start(3, 4), start(4)
    for name in alone:
        np.testing.assert_array_equal(both[name][1], alone[name][0], err_msg=name)
    assert (both["actions"][0] != both["actions"][1]).all()
    np.testing.assert_allclose(run.own[1, :2], run_alone.own[0, :2], rtol=1e-5, atol=1e-6)


def test_random_steps_are_the_same_each_time():
    (_, one), (_, two), (_, other) = (sac.ScratchRun.load(scratch_args(seeds=seeds)) for seeds in (
        (3, 4), (3, 4), (4, 5)))
    assert one == two and one["fingerprint"] != other["fingerprint"]


@pytest.mark.parametrize("env, dataset_file, steps", [
    ("Pendulum-v1", None, 70), ("Pendulum-v1", "my.hdf5", 0), ("hopper-medium-v2", None, 0),
    ("rebuilt/hopper/medium-v0", None, 0)])
def test_only_an_environment_without_data_is_learned_online(env, dataset_file, steps):
    args = sac.Args(env=env, dataset_file=dataset_file, num_updates=70, lr=3e-4)
    assert args.online_steps == steps
    agent = sac.SAC(args, TASK, [torch.Generator()], CPU)
    assert agent.phases[0][:2] == ("online" if steps else "train", 70)
    assert "online_steps" not in vars(args)


# ---- Online steps, buffer, snapshots ----

def scratch_run(env_id="Pendulum-v1", run_dir="run", **options):
    args = scratch_args(env_id, run_dir=run_dir, **options)
    rows, task = sac.ScratchRun.load(args)
    run = sac.ScratchRun(args, task, CPU)
    run.use(sac.prepare(args, rows, task))
    run.begin()
    return run


def stored(run) -> np.ndarray:
    """(steps, seeds, columns) of online.bin."""
    steps = np.fromfile(Path(run.args.run_dir, "online.bin"), np.float32)
    return steps.reshape(-1, len(run.seeds), run.table.shape[1] + 1)


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1"])
def test_each_seed_acts_in_its_own_environment_and_time_is_no_terminal(env_id):
    run = scratch_run(env_id)
    run.advance(60)
    task, found, cuts = run.task, stored(run), 0
    obs, act = task["obs_dim"], task["act_dim"]
    for n, seed in enumerate(run.seeds):
        env, fresh = sac.make_env(task), True
        for step, row in enumerate(found[:, n]):
            s, a, (r, terminal), s2, (known, end) = np.split(row, np.cumsum([obs, act, 2, obs]))
            if fresh:
                numbers = np.random.SeedSequence([seed, step]).generate_state(1)
                state, _ = env.reset(seed=int(numbers[0]))
            np.testing.assert_array_equal(s, np.float32(state))
            state, reward, over, cut, _ = env.step(a.astype(float))
            assert r == np.float32(reward)  # neither scaled nor shifted
            np.testing.assert_array_equal(s2, np.float32(state))
            fresh = over or cut
            assert (terminal, known, end) == (over, 1, fresh)
            cuts += cut and not over
    assert cuts >= (4 if env_id == "Pendulum-v1" else 0)


def test_online_actions_are_samples_of_the_policy():
    run = scratch_run(batch_size=1)
    acted, explore = [], run.agent.explore
    run.agent.explore = lambda obs, noise: acted.append(explore(obs, noise)) or acted[-1]
    run.advance(60)
    taken = stored(run)[:, :, 3:4]
    np.testing.assert_array_equal(taken, torch.stack(acted).squeeze(2).numpy())
    assert taken.std() > 0.5 and (taken[:, 0] != taken[:, 1]).all() and abs(taken).max() <= 2


def test_a_seed_draws_its_own_random_steps_and_its_own_steps_each_as_likely():
    run, drawn = scratch_run(batch_size=4000), []
    draw = run.draw
    run.draw = lambda number: drawn.append((run.step, number, draw(number))) or drawn[-1][2]
    run.advance(30)
    assert [(step, n) for step, n, _ in drawn] == [(step, n) for step in range(30)
                                                   for n in range(2)]
    for step, n, rows in drawn:
        allowed = [*range(40 * n, 40 * n + 40), *range(80 + 60 * n, 80 + 60 * n + step + 1)]
        counts = torch.bincount(rows, minlength=200)
        assert counts.sum() == counts[allowed].sum() == 4000
        assert 0.4 < counts[allowed].min() / (4000 / len(allowed)) < 1.7
    found = torch.from_numpy(stored(run)[..., :-1])
    for n in range(2):
        assert torch.equal(run.table[80 + 60 * n:80 + 60 * n + 30], found[:, n])


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1"])
def test_a_run_goes_on_bit_for_bit_in_the_middle_of_an_episode(env_id):
    whole = scratch_run(env_id, "whole")
    whole.advance(60)
    killed = scratch_run(env_id, "killed")
    killed.advance(37)
    assert not stored(killed)[36, :, -1].any()
    killed.save(finished=False)
    killed.advance(7)  # lost; in the file remain steps that the checkpoint knows nothing of
    Path("killed").rename("moved")
    resumed = scratch_run(env_id, "killed")
    for name in ("checkpoint.pt", "online.bin"):
        Path("moved", name).rename(f"killed/{name}")
    resumed.restore(torch.load("killed/checkpoint.pt"))
    resumed.begin()
    resumed.advance(60 - 37)
    assert differing(resumed.agent.state_dict(), whole.agent.state_dict()) == []
    assert torch.equal(resumed.table, whole.table)
    np.testing.assert_array_equal(stored(resumed), stored(whole))


@pytest.mark.parametrize("every", [7, 60, None])
def test_snapshots_are_the_policies_of_their_step(every):
    run = scratch_run(snapshot_every=every)
    at, once = {}, run.once

    def watched(number: int) -> None:
        once(number)
        at[number + 1] = {k: v.clone() for k, v in run.agent.policy.state_dict().items()}

    run.once = watched
    for updates in (10, 2, 3, 45):
        run.advance(updates)
    assert run.step == 60
    files = {int(path.stem): path for path in Path("run", "snapshots").glob("*")}
    assert sorted(files) == [*range(every, 61, every)] if every else not files
    for step, path in files.items():
        assert differing(torch.load(path), at[step]) == []


def test_snapshots_change_nothing():
    ends = []
    for name, every in (("with", 3), ("without", None)):
        run = scratch_run(run_dir=name, snapshot_every=every)
        run.advance(20)
        ends.append(run.agent.state_dict())
    assert differing(*ends) == []


def test_a_seed_is_untouched_by_the_batches_of_the_others():
    def trained(change: float) -> dict:
        agent = keep_gradients(make_agent(3))
        for step in range(4):
            batch = make_batch(3, seed=step)
            for key in ("observations", "next_observations", "actions", "rewards", "noise"):
                batch[key][1] += change
            agent.update(batch)
        parts = dict(agent.named_parameters())
        grads = {f"gradient of {k}": p.grad for k, p in parts.items() if p.grad is not None}
        return {k: x.detach().unflatten(0, (3, -1)) for k, x in {**parts, **grads}.items()}

    plain, other = trained(0), trained(0.5)
    assert {"gradient of policy.net.weights.0", "gradient of critic.weights.0", "log_alpha",
            "critic_target.weights.0"} <= plain.keys()
    for name in plain:
        assert torch.equal(plain[name][0], other[name][0]), name
        assert torch.equal(plain[name][2], other[name][2]), name
        if name != "log_alpha":  # four steps of the same sign
            assert not torch.equal(plain[name][1], other[name][1]), name


# ---- The command ----

OPTIONS = ("--num-updates 300 --eval-every 150 --checkpoint-every 50 --seed 5 --num-seeds 2 "
           "--random-steps 60 --snapshot-every 20").split()
ONLINE = [*OPTIONS, "--env", "Hopper-v4"]
OFFLINE = [*OPTIONS, "--env", "hopper-medium-v2", "--dataset-file", "data.hdf5"]
STATISTICS = {"loss/critic", "loss/policy", "alpha", "entropy", "value", "updates_per_second",
              "score", "return"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_hdf5) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny_hdf5(folder / "data.hdf5")
    return folder


@pytest.fixture(scope="module", params=["online", "offline"])
def whole_run(request, folder, run_cli):
    """An uninterrupted run, online and offline."""
    words = {"online": ONLINE, "offline": OFFLINE}[request.param]
    end = run_cli(*words, "--run-dir", request.param, folder=folder, script="sac")
    return SimpleNamespace(end=end, name=request.param, words=words)


def test_a_run_leaves_its_numbers_curves_and_snapshots(folder, whole_run):
    assert whole_run.end.returncode == 0 and whole_run.end.stderr == "", whole_run.end.stderr
    result, phase = result_of(folder / whole_run.name), {"online": "online", "offline": "train"}
    assert result["script"] == "sac" and result["finished"]
    assert [(e["phase"], e["update"], e["episodes"]) for e in result["evaluations"]] == [
        (phase[whole_run.name], 0, 2), (phase[whole_run.name], 150, 2),
        (phase[whole_run.name], 300, 3)]
    assert result["args"]["lr"] == 3e-4 and result["task"]["reward_scale"] == 1
    for seed in (5, 6):
        found = curves(folder / f"{whole_run.name}/tensorboard/{phase[whole_run.name]}-{seed}")
        assert found.keys() == STATISTICS and found["score"] == [0, 150, 300]
    files = sorted(int(p.stem) for p in (folder / whole_run.name / "snapshots").iterdir())
    assert files == [*range(20, 301, 20)]
    assert (folder / whole_run.name / "online.bin").exists() == (whole_run.name == "online")


def test_a_killed_and_a_terminated_run_end_as_if_nothing_had_happened(folder, whole_run, start_cli,
                                                                      run_cli):
    name = f"stopped-{whole_run.name}"
    words = [*whole_run.words, "--run-dir", name]
    signals = [(100, signal.SIGKILL), (200, signal.SIGTERM)]
    for step, number in signals[:1 + (whole_run.name == "online")]:
        stop_when(start_cli(*words, folder=folder, script="sac"), folder / name, 0, step, number)
        assert step <= result_of(folder / name)["step"] < 300
    end = run_cli(*words, folder=folder, script="sac")
    assert end.returncode == 0, end.stderr
    same_end(folder, whole_run.name, name)
    files = ["online.bin"] * (whole_run.name == "online")
    files += [f"snapshots/{step}.pt" for step in range(20, 301, 20)]
    for file in files:
        assert (folder / name / file).read_bytes() == (folder / whole_run.name / file).read_bytes()
    assert len([*(folder / name / "snapshots").iterdir()]) == 15


def test_a_checkpoint_needs_neither_data_nor_buffer_to_act(folder, whole_run, main, monkeypatch):
    monkeypatch.chdir(folder)
    end = main("--run-dir", whole_run.name, "--eval-only", script=sac)
    assert end.code == 0, end.err
    final = whole_run.end.stdout.splitlines()[-2]
    assert f"{whole_run.words[whole_run.words.index('--env') + 1]}, update 300" in final
    assert final in end.out


def test_it_learns_pendulum(main):
    """From about -1300 to better than -300; -140 is what a good policy gets."""
    end = main("--env", "Pendulum-v1", "--random-steps", 600, "--num-updates", 1600, "--hidden", 64,
               "--batch-size", 128, "--lr", 2e-3, "--polyak", 0.02, "--eval-every", 1600,
               "--final-eval-episodes", 10, "--run-dir", "run", script=sac)
    assert end.code == 0, end.err
    result = result_of(Path("run"))
    first, last = (result["evaluations"][i]["scores"][0] for i in (0, -1))
    assert first < -900 and last > -300 and result["task"]["data_return"] < -900


# ---- Bad input ----

class Unbounded(gym.Env):
    """Takes any number."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}


@pytest.fixture
def registered():
    """Environments that SAC cannot learn."""
    gym.register("SacUnbounded-v0", Unbounded, max_episode_steps=10)
    gym.register("SacEndless-v0", gym.spec("Pendulum-v1").entry_point)
    yield
    for name in ("SacUnbounded-v0", "SacEndless-v0"):
        del gym.registry[name]


@pytest.mark.parametrize("words, message", [
    ("--env CartPole-v1", ["CartPole-v1", "Discrete(2)", "Box with bounds"]),
    ("--env SacUnbounded-v0", ["SacUnbounded-v0", "inf", "Box with bounds"]),
    ("--env SacEndless-v0", ["SacEndless-v0", "time limit"]),
    ("--env Hoper-v4", ["Hoper-v4", "no such dataset", "Hopper-v4"]),
    ("--env Pendulum-v1 --snapshot-every 0", ["--snapshot-every"]),
    ("--env Pendulum-v1 --random-steps 0", ["--random-steps"]),
    ("--env Pendulum-v1 --lr nan", ["--lr"])])
def test_bad_input_is_refused(words, message, main, registered):
    end = main(*words.split(), "--run-dir", "run", script=sac)
    assert end.code and all(word in end.err for word in message), end.err
    assert len(end.err.splitlines()) == 1 and not Path("run").exists()


def test_a_dataset_of_actions_without_bounds_is_refused():
    task = {"env_id": "Some-v0", "act_low": [-1.0], "act_high": [np.inf]}
    with pytest.raises(SystemExit, match="Some-v0: .*no bounds"):
        sac.prepare(sac.Args(), {}, task)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
