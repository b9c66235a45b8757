"""Tests of algorithms/bc.py: parity, the episodes it picks, known answers, validation, its command.

    python -m pytest tests/test_bc.py
    python tests/test_bc.py CORL_CHECKOUT    # write golden/bc.json anew from CORL's code

There is no authors' code of cloning. golden/bc.json holds what CORL's any_percent_bc.py (github
corl-team/CORL), unchanged, computed from the recipe below: losses and weights of its BC.train on
observations standardised by its own functions, and the rows that its keep_best_trajectories picks.
The Gaussian policy is compared with torch.distributions, the rule of %BC with that of the Decision
Transformer's experiment.py, written out step by step.
"""

import importlib.util
import json
import re
import shutil
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))

import bc  # noqa: E402
from helpers import (  # noqa: E402
    command, curves, flat, headline, hopper_task, keep_gradients, result_of, same_end, stop_when)
from test_parity import differences, draw_network, note, uniform  # noqa: E402
from test_parity import exact_products  # noqa: E402, F401 - a fixture that works by being here

pytestmark = pytest.mark.usefixtures("isolated", "por")  # por: what all scripts have set
CPU = torch.device("cpu")
GOLDEN = ROOT / "tests" / "golden" / "bc.json"
REPOSITORY = "https://github.com/corl-team/CORL"
COMMIT = "eeeeef2671235fcce3a3eb255576a207d78840e6"
UPDATES, ROWS = 50, 500
WIDTH = 256  # their class has no other
CASES = {
    "float64": {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "batch_size": 64, "bound": 1.0,
                "seed": 1},
    "float64, actions to 2": {"dtype": "float64", "obs_dim": 4, "act_dim": 1, "batch_size": 64,
                              "bound": 2.0, "seed": 2},
    "float32, sizes of HalfCheetah": {"dtype": "float32", "obs_dim": 17, "act_dim": 6,
                                      "batch_size": 256, "bound": 1.0, "seed": 3},
}
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}  # relative to max(1, |CORL's number|)


# ---- The recipe of the updates ----

def draw_data(case: dict) -> dict:
    """Rows whose coordinates differ in place and scale, as those of MuJoCo do."""
    rng, obs, act = np.random.default_rng([case["seed"], 0]), case["obs_dim"], case["act_dim"]
    scale, shift = uniform(rng, 0.1, 5, obs), uniform(rng, -3, 3, obs)
    data = {"observations": shift + scale * uniform(rng, -1, 1, ROWS, obs),
            "actions": case["bound"] * uniform(rng, -1, 1, ROWS, act)}
    return {k: v.astype(case["dtype"]) for k, v in data.items()}


def draw_batches(case: dict) -> list[np.ndarray]:
    """Rows of each update."""
    rng = np.random.default_rng([case["seed"], 1])
    return [(rng.random(case["batch_size"]) * ROWS).astype(int) for _ in range(UPDATES)]


def draw_weights(case: dict) -> dict:
    rng = np.random.default_rng([case["seed"], 2])
    return draw_network(rng, [case["obs_dim"], WIDTH, WIDTH, case["act_dim"]])


def make_task(obs_dim=3, act_dim=2, low=-1.0, high=1.0, **more) -> dict:
    """What the policy asks of a task; observations as they are unless `more` says otherwise."""
    return {"name": "hand-made", "env_id": "Hand-v0", "obs_dim": obs_dim, "act_dim": act_dim,
            "act_low": [low] * act_dim, "act_high": [high] * act_dim, "held_out": 0.0,
            "obs_mean": [0.0] * obs_dim, "obs_std": [1.0] * obs_dim, **more}


def make_agent(task: dict, num_seeds=2, dtype=torch.float32, **options):
    """A deterministic clone with small networks, or what the options say."""
    settings = {"policy": "deterministic", "hidden": 16, "batch_size": 32}
    args = bc.Args(num_seeds=num_seeds, **settings | options)
    generators = [torch.Generator().manual_seed(n) for n in range(num_seeds)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # from the start: float32 would round the observations' mean
    try:
        return bc.BC(args, task, generators, CPU)
    finally:
        torch.set_default_dtype(before)


def views(network, n: int) -> dict:
    """Seed n's parameters of an MLP in the (out, in) layout of nn.Linear, to write and to read."""
    return {**{f"weight{i}": w.data[n].T for i, w in enumerate(network.weights)},
            **{f"bias{i}": b.data[n, 0] for i, b in enumerate(network.biases)}}


def run_ours(case: dict, held_out: int = 0) -> dict:
    """Our updates on the recipe, as the second of two seeds, beside `held_out` rows per batch."""
    data, dtype = draw_data(case), getattr(torch, case["dtype"])
    rows = {**data, "rewards": np.zeros(ROWS), "terminals": np.zeros(ROWS, np.float32),
            "ends": np.arange(ROWS) == ROWS - 1}
    task = make_task(case["obs_dim"], case["act_dim"], -case["bound"], case["bound"])
    bc.prepare(bc.Args(policy="deterministic", validation_fraction=0), rows, task)
    agent = make_agent(task, dtype=dtype, hidden=WIDTH)
    for name, view in views(agent.policy, 1).items():
        view.copy_(torch.from_numpy(draw_weights(case)[name]))
    rng, result = np.random.default_rng(0), {"losses": {}, "parameters": {}}
    for step, drawn in enumerate(draw_batches(case), 1):
        other = rng.integers(0, ROWS, [2, len(drawn) + held_out])  # of the first seed, and the rest
        index = np.stack([other[0], np.concatenate([drawn, other[1][:held_out]])])
        batch = {k: torch.from_numpy(v[index]).to(dtype) for k, v in data.items()}
        batch["held_out"] = torch.zeros(index.shape, dtype=dtype)
        batch["held_out"][:, len(drawn):] = 1
        losses = [agent.update(batch)["loss/policy"][1].item()]
        note(result, step, losses,
             lambda: {k: v.numpy() for k, v in views(agent.policy, 1).items()})
    return {"train": result}


# ---- The recipe of the picked episodes ----

HORIZON = 100


def draw_episodes(end: str) -> dict:
    """Columns of episodes of equal length, each with a return of its own, in random order."""
    rng = np.random.default_rng(5)
    length, count = (HORIZON, 80) if end == "timeouts" else (20, 61)  # their loader loses one end
    rewards = np.repeat(np.argsort(rng.random(count)), length) / length
    ends = np.arange(1, len(rewards) + 1) % length == 0
    return {"rewards": rewards, "ends": ends, "episode": np.arange(len(rewards)) // length,
            "terminals": ends * (end == "terminals"), "timeouts": ends * (end == "timeouts")}


PICKS = {"terminals": 0.1, "timeouts": 0.1}  # ends of the episodes: fraction


# ---- CORL's code on both ----

def load_corl(checkout: Path):
    """Their module, with stand-ins for the packages that neither update nor filter touches."""
    for name in ("d4rl", "gym", "pyrallis", "wandb"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["gym"].Env = object
    sys.modules["pyrallis"].wrap = lambda: lambda function: function
    path = checkout / "algorithms" / "offline" / "any_percent_bc.py"
    spec = importlib.util.spec_from_file_location("corl_bc", path)
    module = sys.modules["corl_bc"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_corl(module, case: dict) -> dict:
    """Their updates, on observations standardised as in their train()."""
    torch.set_default_dtype(getattr(torch, case["dtype"]))
    actor = module.Actor(case["obs_dim"], case["act_dim"], case["bound"])
    linear = [layer for layer in actor.net if isinstance(layer, torch.nn.Linear)]
    parameters = {f"{kind}{i}": getattr(layer, kind) for kind in ("weight", "bias")
                  for i, layer in enumerate(linear)}
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(draw_weights(case)[name]))
    trainer = module.BC(case["bound"], actor, torch.optim.Adam(actor.parameters(), lr=3e-4))
    data, result = draw_data(case), {"losses": {}, "parameters": {}}
    states = module.normalize_states(data["observations"],
                                     *module.compute_mean_std(data["observations"], eps=1e-3))
    for step, index in enumerate(draw_batches(case), 1):
        batch = [torch.from_numpy(x[index]) for x in (states, data["actions"])]
        losses = [trainer.train([*batch, None, None, None])["actor_loss"]]
        note(result, step, losses,
             lambda: {k: v.detach().numpy() for k, v in parameters.items()})
    torch.set_default_dtype(torch.float32)
    if case["dtype"] == "float32":  # entries drift with the order of float32 sums
        del result["parameters"]
    return {"train": result}


def picked_by_corl(module, end: str) -> dict:
    """Episode -> its rows among those that their filter keeps of what D4RL's loader hands over.

    That loader, qlearning_dataset, drops each row at which time is up, and the last row of all.
    The cut after 1000 rows is at HORIZON here, so that 80 episodes do.
    """
    data = draw_episodes(end)
    kept = ~data["timeouts"]
    kept[-1] = False
    column = data["episode"][kept]
    dataset = {k: column for k in ("observations", "actions", "next_observations")}
    dataset |= {k: data[k][kept] for k in ("rewards", "terminals")}
    module.keep_best_trajectories(dataset, PICKS[end], 1.0, max_episode_steps=HORIZON)
    episodes, counts = np.unique(dataset["observations"], return_counts=True)
    return {str(e): int(n) for e, n in zip(episodes, counts)}


def record(checkout: Path) -> None:
    """Write golden/bc.json from a checkout of CORL at COMMIT."""
    module = load_corl(checkout)
    golden = {"repository": REPOSITORY, "commit": COMMIT, "updates": UPDATES, "cases": CASES,
              "results": {name: run_corl(module, case) for name, case in CASES.items()},
              "picked": {end: picked_by_corl(module, end) for end in PICKS}}
    text = re.sub(r"\[[^]]*\]", lambda numbers: numbers[0].replace("\n", ""),
                  json.dumps(golden, indent=0))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(text + "\n")


# ---- Parity ----

@pytest.fixture(scope="module")
def golden() -> dict:
    content = json.loads(GOLDEN.read_text())
    assert content["cases"] == CASES and content["updates"] == UPDATES, "golden/bc.json is old"
    return content


@pytest.mark.parametrize("held_out", [0, 24])
@pytest.mark.parametrize("name", CASES)
def test_updates_are_corls(name, held_out, golden):
    """Also where each batch has rows that are held out: those that remain are theirs."""
    found = differences(run_ours(CASES[name], held_out), golden["results"][name],
                        TOLERANCE[CASES[name]["dtype"]])
    assert found == []


def test_gaussian_updates_are_those_of_torch_distributions():
    task = make_task(4, 2, obs_mean=[0.5, -1, 0, 2], obs_std=[1.0, 0.2, 3, 1.5])
    agent = make_agent(task, dtype=torch.float64, policy="gaussian")
    layers, n = [], 1
    for weight, bias in zip(agent.policy.net.weights, agent.policy.net.biases):
        layers += [torch.nn.Linear(*weight.shape[1:], dtype=torch.float64), torch.nn.ReLU()]
        layers[-2].load_state_dict({"weight": weight.data[n].T, "bias": bias.data[n, 0]})
    net = torch.nn.Sequential(*layers[:-1])
    log_std = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    adam = torch.optim.Adam([*net.parameters(), log_std], lr=3e-4)
    draw = torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        s, a = (3 * torch.randn(2, 64, d, generator=draw, dtype=torch.float64) for d in (4, 2))
        mean = net((s[n] - torch.tensor(task["obs_mean"])) / torch.tensor(task["obs_std"]).double())
        pi = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        loss = -pi.log_prob(a[n]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        stats = agent.update({"observations": s, "actions": a,
                              "held_out": torch.zeros(2, 64, dtype=torch.float64)})
        assert stats["loss/policy"][n].item() == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(agent.policy.log_std[n, 0], log_std, rtol=0, atol=1e-6)
    for weight, layer in zip(agent.policy.net.weights, layers[::2]):
        torch.testing.assert_close(weight[n].T, layer.weight, rtol=0, atol=1e-6)
    assert log_std.abs().min() > 1e-3


# ---- The formulas ----

@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_losses_are_the_closed_forms(policy):
    """Over the rows of each kind, with bounds that are not symmetric."""
    task = make_task(obs_mean=[1.0, 2, 3], obs_std=[2.0, 1, 0.5], held_out=0.25) | {
        "act_low": [-1.0, -2], "act_high": [1.0, 4]}
    agent, rng = make_agent(task, policy=policy, batch_size=8), np.random.default_rng(0)
    s, a = rng.standard_normal((2, 8, 3)), rng.uniform(-1, 1, (2, 8, 2))
    held_out = np.array([[1, 0, 0, 1, 0, 0, 0, 0], [0] * 8])
    if policy == "gaussian":
        agent.policy.log_std.data[:] = torch.tensor([[[0.5, -1]], [[-6, 3.0]]])  # and its clamps
    net = agent.policy.net if policy == "gaussian" else agent.policy
    expected = []
    for n in range(2):
        x = (s[n] - task["obs_mean"]) / task["obs_std"]
        for i, (w, b) in enumerate(zip(net.weights, net.biases)):
            x = x @ w.detach().double().numpy()[n] + b.detach().double().numpy()[n]
            x = np.maximum(x, 0) if i < 2 else x
        if policy == "deterministic":
            x = np.array([0, 1]) + np.array([1, 3]) * np.tanh(x)
            expected.append(((x - a[n]) ** 2).sum(1) / 2)
        else:
            std = np.exp(np.array([[0.5, -1], [-5, 2]])[n])
            z = (x - a[n]) / std
            expected.append((z**2 / 2 + np.log(std * np.sqrt(2 * np.pi))).sum(1))
        acted = agent.act(torch.from_numpy(s).float())[n].detach().numpy()
        np.testing.assert_allclose(acted, x, atol=1e-5)
    stats = agent.update({k: torch.from_numpy(v).float() for k, v in {
        "observations": s, "actions": a, "held_out": held_out}.items()})
    np.testing.assert_allclose(
        stats["loss/policy"].detach().numpy(),
        [expected[0][held_out[0] == 0].mean(), expected[1].mean()], rtol=1e-5)
    # the second seed's batch has none of them, which happens to 0.75^8 of all batches
    np.testing.assert_allclose(
        stats["loss/held_out"].detach().numpy(),
        [expected[0][held_out[0] == 1].mean() / (1 - 0.75**8), 0], rtol=1e-5)


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_held_out_rows_move_nothing(policy):
    def trained(change: float):
        agent = make_agent(make_task(held_out=0.2), policy=policy)
        draw, stats = torch.Generator().manual_seed(1), []
        for _ in range(3):
            batch = {"observations": torch.randn(2, 32, 3, generator=draw),
                     "actions": torch.rand(2, 32, 2, generator=draw),
                     "held_out": (torch.rand(2, 32, generator=draw) < 0.2).float()}
            batch["actions"] += change * batch["held_out"].unsqueeze(-1)
            stats.append(agent.update(batch))
        return [p.detach() for p in agent.parameters()], stats

    (plain, stats), (other, changed) = trained(0), trained(3)
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    for one, two in zip(stats, changed):
        assert torch.equal(one["loss/policy"], two["loss/policy"])
        assert (two["loss/held_out"] > one["loss/held_out"] + 1).all()


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_a_seed_is_untouched_by_the_batches_of_the_others(policy):
    def trained(change: float) -> dict:
        agent = keep_gradients(make_agent(make_task(held_out=0.2), 3, policy=policy))
        draw = torch.Generator().manual_seed(1)
        for _ in range(3):
            batch = {"observations": torch.randn(3, 32, 3, generator=draw),
                     "actions": torch.rand(3, 32, 2, generator=draw),
                     "held_out": (torch.rand(3, 32, generator=draw) < 0.2).float()}
            batch["observations"][1] += change
            batch["actions"][1] -= change
            agent.update(batch)
        parts = dict(agent.named_parameters())
        return {**parts, **{f"gradient of {k}": p.grad for k, p in parts.items()}}

    plain, other = trained(0), trained(0.5)
    for name in plain:
        assert torch.equal(plain[name][0], other[name][0]), name
        assert torch.equal(plain[name][2], other[name][2]), name
        assert not torch.equal(plain[name][1], other[name][1]), name


# ---- Which episodes ----

def make_rows(lengths: list[int], returns: list[float], ends: str, rest: int = 0) -> dict:
    """Episodes that end by (T)erminal or ti(m)eout; then `rest` rows of an unfinished one.

    Each reward is the episode's mean; the unfinished rows have the best rewards of all. The first
    coordinate of the observations is the number of the row.
    """
    n = sum(lengths) + rest
    last = np.cumsum(lengths) - 1
    rows = {"ends": np.zeros(n, bool), "terminals": np.zeros(n, np.float32)}
    rows["ends"][last] = True
    rows["terminals"][last] = [kind == "T" for kind in ends]
    rewards = np.repeat(np.array(returns) / lengths, lengths)
    rows["rewards"] = np.append(rewards, np.full(rest, 1e4)).astype(np.float32)
    rng = np.random.default_rng(n)
    rows["observations"] = rng.standard_normal((n, 3)).astype(np.float32)
    rows["observations"][:, 0] = np.arange(n)
    rows["actions"] = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    rows["known"] = 1 - rows["ends"].astype(np.float32)
    rows["known"][-1] = 0
    rows["next_observations"] = np.roll(rows["observations"], -1, 0)
    return rows


def prepared(rows: dict, validation_fraction=0.0, **options) -> tuple[dict, dict]:
    """Rows and task after prepare(); the given ones stay as they are."""
    args = bc.Args(**{"policy": "deterministic"} | options, validation_fraction=validation_fraction)
    task = make_task()
    return bc.prepare(args, {k: v.copy() for k, v in rows.items()}, task), task


def numbers(rows: dict) -> list[int]:
    """Which rows of make_rows() these are."""
    return rows["observations"][:, 0].astype(int).tolist()


# Rows 0-3, 4-6, 7-11, 12-13; then 14-19 without an end
LENGTHS, RETURNS, ENDS, REST = [4, 3, 5, 2], [10, 30, 20, 5], "TmTm", 6
BEST = [*range(4, 7), *range(7, 12), *range(0, 4), *range(12, 14), *range(14, 20)]


@pytest.mark.parametrize("fraction, count", [
    (1e-9, 3),  # the best one always
    (0.15, 3), (0.39, 3), (0.4, 8),
    (0.5, 8),  # the next would be too long, and none behind it is taken instead
    (0.6, 12), (0.7, 14), (0.999, 14),
    (1.0, 20)])  # the episode without a return only here
def test_the_best_whole_episodes_are_picked_at_their_true_ends(fraction, count):
    rows = make_rows(LENGTHS, RETURNS, ENDS, REST)
    picked, task = prepared(rows, top_fraction=fraction)
    assert numbers(picked) == sorted(BEST[:count])  # in the order of the data
    for key in ("actions", "terminals"):
        np.testing.assert_array_equal(picked[key], rows[key][sorted(BEST[:count])])
    complete = {3: [30], 8: [30, 20], 12: [30, 20, 10]}.get(count, [30, 20, 10, 5])
    assert task["cloned_rows"] == count
    assert task["cloned_return"] == pytest.approx(np.mean(complete))
    assert task["cloned_episodes"] == len(complete) + (count == 20)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_rule_is_the_decision_transformers(fraction):
    """Step by step: the best first, until the next would exceed the share of time steps."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 30, 50)
    returns = rng.permutation(50) * 10.0
    budget, order = int(fraction * lengths.sum()), list(np.argsort(returns))
    chosen = [order.pop()]
    while order and lengths[chosen].sum() + lengths[order[-1]] <= budget:
        chosen.append(order.pop())
    picked, task = prepared(make_rows(lengths.tolist(), returns.tolist(), "mT" * 25),
                            top_fraction=fraction)
    first = np.cumsum(lengths) - lengths
    expected = sorted(first[e] + i for e in chosen for i in range(lengths[e]))
    assert numbers(picked) == expected and task["cloned_episodes"] == len(chosen)


def picked_by_us(end: str) -> dict:
    """Episode -> its rows among those that we clone, as picked_by_corl()."""
    data = draw_episodes(end)
    rows = {"observations": data["episode"][:, None].astype(np.float32),
            "actions": np.zeros((len(data["ends"]), 1), np.float32), "ends": data["ends"],
            "terminals": data["terminals"], "rewards": data["rewards"]}
    episodes, counts = np.unique(prepared(rows, top_fraction=PICKS[end])[0]["observations"],
                                 return_counts=True)
    return {str(int(e)): int(n) for e, n in zip(episodes, counts)}


def test_corl_picks_the_same_where_every_episode_ends_by_itself(golden):
    assert len(picked_by_us("terminals")) == 6
    assert picked_by_us("terminals") == golden["picked"]["terminals"]


def test_where_time_ends_episodes_corl_picks_pieces_of_others(golden):
    """Ours are the best 8 of 80 episodes, whole; four rows of ten that theirs keeps are not."""
    data = draw_episodes("timeouts")
    returns = np.bincount(data["episode"], data["rewards"])
    best = {str(e): HORIZON for e in np.argsort(returns)[-8:]}
    assert picked_by_us("timeouts") == best
    theirs = golden["picked"]["timeouts"]
    good = sum(n for e, n in theirs.items() if e in best)
    assert len(theirs) > 8 and good < 0.6 * sum(theirs.values())


def test_a_file_is_filtered_at_its_terminals_and_timeouts(hopper):
    raw = hopper()
    rows, task = bc.to_rows(flat(raw, "next_observations"), hopper_task(bc))
    args = bc.Args(policy="deterministic", top_fraction=0.3, validation_fraction=0)
    picked = bc.prepare(args, rows, task)
    ends = np.flatnonzero(raw["terminals"] | raw["timeouts"]) + 1
    parts = np.split(np.arange(len(raw["rewards"])), ends)[:-1]
    parts.sort(key=lambda part: -raw["rewards"][part].sum(dtype=float))
    count = np.flatnonzero(np.cumsum([len(part) for part in parts]) <= 0.3 * len(raw["rewards"]))
    expected = np.sort(np.concatenate(parts[:len(count)]))
    assert 2 < len(count) < len(parts) / 2
    np.testing.assert_array_equal(picked["observations"], raw["observations"][expected])
    assert raw["timeouts"][expected].any() and raw["terminals"][expected].any()


def trained(rows: dict, task: dict, updates=30, **options):
    """A run of two seeds that has done some updates on these rows; `run.names`, `run.sums` too."""
    settings = {"policy": "deterministic", "num_seeds": 2, "hidden": 8, "batch_size": 16}
    run = bc.Run(bc.Args(**settings | options), task, CPU)
    run.use(rows)
    run.begin()
    run.advance(updates)
    return run


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_all_percent_is_plain_cloning_bit_for_bit(policy):
    """Of all rows: also last ones without a next state, also those of the unfinished episode."""
    rows = make_rows(LENGTHS, RETURNS, ENDS, REST)
    obs, ones = rows["observations"], np.ones(20, np.float32)
    plain = {"observations": obs, "actions": rows["actions"], "terminals": rows["terminals"],
             "held_out": 0 * ones, "known": ones}
    task = make_task(obs_mean=obs.mean(0, dtype=float).tolist(),
                     obs_std=(obs.std(0, dtype=float) + 1e-3).tolist())
    cloned = trained(plain, task, policy=policy)
    filtered = trained(*prepared(rows, policy=policy, top_fraction=1.0), policy=policy)
    less = trained(*prepared(rows, policy=policy, top_fraction=0.99), policy=policy)
    states = [run.agent.state_dict() for run in (cloned, filtered, less)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not any(torch.equal(states[0][k], states[2][k]) for k in states[0] if "policy" in k)


# ---- What is held out ----

def test_whole_episodes_are_held_out_the_same_for_every_seed():
    lengths = np.random.default_rng(2).integers(2, 9, 60).tolist()
    rows = make_rows(lengths, list(range(60)), "Tm" * 30, rest=4)
    choices = []
    for options in ({"seed": 0}, {"seed": 7, "num_seeds": 3}):
        marked, task = prepared(rows, 0.1, **options)
        parts = np.split(marked["held_out"], np.cumsum(lengths))  # the rest is an episode, too
        assert all(part.min() == part.max() for part in parts)
        choices.append([i for i, part in enumerate(parts) if part[0]])
        assert task["held_out_episodes"] == len(choices[-1]) == 7  # 10 % of 61, rounded up
        assert task["held_out"] == pytest.approx(marked["held_out"].mean(), rel=1e-6)
    assert choices[0] == choices[1] and choices[0] != [*range(7)]
    assert np.ptp(choices[0]) > 20  # from everywhere, not the best or the last ones


def test_only_picked_episodes_are_held_out():
    rows = make_rows([5] * 40, list(range(40)), "T" * 40)
    marked, task = prepared(rows, 0.25, top_fraction=0.5)
    assert numbers(marked) == [*range(100, 200)]
    assert marked["held_out"].sum() == 5 * 5 and task["held_out"] == 0.25


def test_nothing_is_held_out_on_request():
    marked, task = prepared(make_rows(LENGTHS, RETURNS, ENDS, REST), 0.0)
    assert not marked["held_out"].any() and task["held_out_episodes"] == 0
    run = trained(marked, task, updates=2)
    assert run.names == ["loss/policy"]


def test_observations_are_standardised_by_the_rows_of_training():
    rows = make_rows([5] * 20, list(range(20)), "T" * 20)
    rows["observations"][:, 2] = 4  # a constant one: no division by 0
    marked, task = prepared(rows, 0.2, top_fraction=0.5)
    s = marked["observations"][marked["held_out"] == 0].astype(float)
    assert len(s) == 40
    np.testing.assert_allclose(task["obs_mean"], s.mean(0))
    np.testing.assert_allclose(task["obs_std"], np.sqrt(((s - s.mean(0)) ** 2).mean(0)) + 1e-3)
    assert task["obs_std"][2] == pytest.approx(1e-3)
    _, raw = prepared(rows, 0.2, normalize=False)
    assert raw["obs_mean"] == [0] * 3 and raw["obs_std"] == [1] * 3


def test_the_validation_loss_is_that_of_the_held_out_rows_on_average():
    """Though most of these small batches have none of them."""
    rows = make_rows([5] * 40, list(range(40)), "T" * 40)
    marked, task = prepared(rows, 0.05)
    run = trained(marked, task, updates=2500, batch_size=6, lr=0.0)
    found, held_out = run.means()["loss/held_out"], marked["held_out"] == 1
    obs = torch.from_numpy(marked["observations"]).expand(2, -1, -1)
    with torch.no_grad():
        error = ((run.agent.act(obs).numpy() - marked["actions"]) ** 2).mean(-1)
    assert (1 - task["held_out"]) ** 6 > 0.7
    np.testing.assert_allclose(found, error[:, held_out].mean(1), rtol=0.1)


def test_the_validation_loss_shows_what_is_learned_by_heart():
    """Actions without any pattern: the clone learns those it sees, and worsens on the others."""
    rows = make_rows([4] * 30, list(range(30)), "T" * 30)
    marked, task = prepared(rows, 0.5)
    run = trained(marked, task, updates=100, hidden=64, batch_size=64, lr=3e-3)
    early = run.means()
    run.advance(500)
    late = run.means()
    assert (late["loss/policy"] < 0.6 * early["loss/policy"]).all()
    assert (late["loss/held_out"] > 1.1 * early["loss/held_out"]).all()


# ---- Known answers ----

@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_a_linear_expert_is_recovered(policy):
    rng = np.random.default_rng(0)
    matrix = np.array([[0.5, -0.2], [0.1, 0.3], [-0.2, 0.3]])
    scale, shift = np.array([1, 20, 0.1]), np.array([0, 50, -1])  # standardised away
    x = rng.uniform(-1, 1, (3000, 3))
    rows = make_rows([50] * 60, [1.0] * 60, "T" * 60)
    rows["observations"] = (x * scale + shift).astype(np.float32)
    rows["actions"] = (x @ matrix).astype(np.float32)
    marked, task = prepared(rows, 0.1, policy=policy)
    run = trained(marked, task, updates=800, policy=policy, hidden=32, batch_size=64, lr=3e-3)
    fresh = rng.uniform(-1, 1, (500, 3))
    obs = torch.from_numpy(fresh * scale + shift).float().expand(2, -1, -1)
    with torch.no_grad():
        error = run.agent.act(obs).numpy() - fresh @ matrix
    assert np.sqrt((error**2).mean((1, 2))).max() < 0.03


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_the_clone_of_several_is_their_mean(policy):
    """In each of three states half of the data act by one policy, half by the other."""
    states = np.repeat(np.eye(3, dtype=np.float32), 400, 0)
    means = np.array([[0.5, -0.3], [-0.6, 0.2], [0, 0.7]])
    spread = np.array([0.3, 0.1])
    sign = np.tile([1, -1], 600)[:, None]
    rows = make_rows([12] * 100, [1.0] * 100, "T" * 100)
    rows["observations"] = states
    rows["actions"] = (np.repeat(means, 400, 0) + sign * spread).astype(np.float32)
    marked, task = prepared(rows, 0.0, policy=policy)
    run = trained(marked, task, updates=700, policy=policy, hidden=32, batch_size=128, lr=5e-3)
    with torch.no_grad():
        acted = run.agent.act(torch.eye(3).expand(2, -1, -1)).numpy()
    np.testing.assert_allclose(acted, np.stack([means] * 2), atol=0.06)
    if policy == "gaussian":
        std = run.agent.policy.log_std.detach().exp().numpy()[:, 0]
        np.testing.assert_allclose(std, np.stack([spread] * 2), rtol=0.1)


# ---- The command ----

LONG = 1100
OPTIONS = (f"--num-updates {LONG} --eval-every 500 --checkpoint-every 50 --top-fraction 0.6 "
           "--validation-fraction 0.2").split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_hdf5) -> Path:
    folder = tmp_path_factory.mktemp("bc")
    tiny_hdf5(folder / "data.hdf5")
    return folder


@pytest.fixture(scope="module")
def whole_run(folder, run_cli):
    return run_cli(*command("whole", OPTIONS), folder=folder, script="bc")


def test_a_run_leaves_its_numbers_and_curves(folder, whole_run):
    assert whole_run.returncode == 0 and not whole_run.stderr.strip(), whole_run.stderr
    result = result_of(folder / "whole")
    assert result["script"] == "bc" and result["finished"] and result["seeds"] == [5, 6]
    assert result["args"]["policy"] == "deterministic" and result["args"]["top_fraction"] == 0.6
    assert result["task"]["cloned_return"] > result["task"]["data_return"]
    assert f"cloning {result['task']['cloned_rows']} rows" in whole_run.stdout
    assert [e["update"] for e in result["evaluations"]] == [0, 500, 1000, LONG]
    for seed in (5, 6):
        steps = curves(folder / f"whole/tensorboard/train-{seed}")
        assert steps.keys() == {"loss/policy", "loss/held_out", "updates_per_second", "score",
                                "return"}
        assert steps["loss/held_out"] == [*range(50, LONG + 1, 50)]


def test_a_killed_run_ends_as_if_nothing_had_happened(folder, whole_run, start_cli, run_cli):
    words = command("killed", OPTIONS)
    stop_when(start_cli(*words, folder=folder, script="bc"), folder / "killed", 0, 300,
              signal.SIGKILL)
    assert 300 <= result_of(folder / "killed")["step"] < LONG
    end = run_cli(*words, folder=folder, script="bc")
    assert end.returncode == 0 and "resumed at update" in end.stdout, end.stderr
    same_end(folder, "whole", "killed")


def test_a_checkpoint_is_evaluated_without_its_data(folder, whole_run, main):
    shutil.copytree(folder / "whole", "whole")
    end = main("--eval-only", "--run-dir", "whole", script=bc)
    assert end.code == 0 and headline(end.out) == headline(whole_run.stdout), end.err


def test_a_gaussian_run_by_its_name(tiny_minari, main):
    tiny_minari("rebuilt/hopper/tiny-v0")
    end = main("--env", "rebuilt/hopper/tiny-v0", "--num-updates", 10, "--policy", "gaussian",
               "--run-dir", "run", script=bc)
    assert end.code == 0, end.err
    result = result_of(Path("run"))
    assert result["args"]["policy"] == "gaussian" and result["task"]["held_out_episodes"] > 0


@pytest.mark.parametrize("options, words", [
    (["--top-fraction", 0], ["--top-fraction"]), (["--top-fraction", 1.5], ["--top-fraction"]),
    (["--validation-fraction", 1], ["--validation-fraction 1.0", "lower"]),
    (["--validation-fraction", -0.1], ["--validation-fraction"]),
    (["--top-fraction", 0.001], ["all 1 episodes", "--validation-fraction 0.05"]),
    (["--policy", "gauss"], ["--policy"])])
def test_an_option_that_cannot_work_is_refused(main, tiny_hdf5, options, words):
    tiny_hdf5(Path("my.hdf5"))
    end = main("--env", "hopper-medium-v2", "--dataset-file", "my.hdf5", "--num-updates", 20,
               "--run-dir", "run", *options, script=bc)
    assert end.code and "Traceback" not in end.err
    for word in words:
        assert word in end.err, end.err
    assert not Path("run").exists()


def test_actions_without_bounds_ask_for_a_gaussian():
    rows, task = make_rows(LENGTHS, RETURNS, ENDS), make_task(high=float("inf"))
    with pytest.raises(SystemExit, match="gaussian"):
        bc.prepare(bc.Args(policy="deterministic"), rows, task)
    assert len(bc.prepare(bc.Args(policy="gaussian"), rows, task)["known"]) == 14


if __name__ == "__main__":
    record(Path(sys.argv[1]))
