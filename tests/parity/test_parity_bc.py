"""Parity of algorithms/bc.py with CORL's any_percent_bc.py, as there is no authors' code.

    python -m pytest tests/parity/test_parity_bc.py
    python -m tests.parity.test_parity_bc CORL_CHECKOUT    # write golden/bc.json anew

golden/bc.json holds losses and weights of CORL's BC.train on observations standardised by its own
functions, and the rows that its keep_best_trajectories picks. The Gaussian policy is compared with
torch.distributions.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import bc
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/corl-team/CORL"
COMMIT = "eeeeef2671235fcce3a3eb255576a207d78840e6"
ROWS = 500
WIDTH = 256  # their class has no other
# fmt: off
CASES = {
    "float64": {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "batch_size": 64, "bound": 1.0,
                "seed": 1},
    "float64, actions to 2": {"dtype": "float64", "obs_dim": 4, "act_dim": 1, "batch_size": 64,
                              "bound": 2.0, "seed": 2},
    "float32, sizes of HalfCheetah": {"dtype": "float32", "obs_dim": 17, "act_dim": 6,
                                      "batch_size": 256, "bound": 1.0, "seed": 3},
}
# fmt: on

# ---- The recipe ----


def draw_data(case: dict) -> dict:
    """Draw rows whose coordinates differ in place and scale, as those of MuJoCo do."""
    rng, obs, act = np.random.default_rng([case["seed"], 0]), case["obs_dim"], case["act_dim"]
    scale = uniform(rng, 0.1, 5, obs)
    shift = uniform(rng, -3, 3, obs)
    data = {"observations": shift + scale * uniform(rng, -1, 1, ROWS, obs)}
    data["actions"] = case["bound"] * uniform(rng, -1, 1, ROWS, act)
    return {key: column.astype(case["dtype"]) for key, column in data.items()}


def draw_batches(case: dict) -> list[np.ndarray]:
    """Draw the rows of each update."""
    rng = np.random.default_rng([case["seed"], 1])
    return [(rng.random(case["batch_size"]) * ROWS).astype(int) for _ in range(UPDATES)]


def draw_weights(case: dict) -> dict:
    rng = np.random.default_rng([case["seed"], 2])
    return draw_network(rng, [case["obs_dim"], WIDTH, WIDTH, case["act_dim"]])


# ---- Our code on the recipe ----


def run_ours(case: dict, held_out: int = 0) -> dict:
    """Do our updates, as the second of two agents, beside `held_out` rows in each batch."""
    data = draw_data(case)
    data["actions"] /= case["bound"]  # load_dataset() scales them
    last = np.arange(ROWS) == ROWS - 1
    data |= {"rewards": np.zeros(ROWS), "episode_end": last}
    with harness.default_dtype(case):
        task = harness.make_task(bc, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        args = bc.Args(policy="deterministic", num_seeds=2, hidden=WIDTH, validation_fraction=0.0)
        columns = bc.prepare_data(args, data, task)
        agent = bc.BC(args, task, "cpu")
        harness.fill(harness.views(agent.policy, 1), draw_weights(case))
        # Our actions are scaled to [-1, 1], so our loss is smaller than theirs by bound^2. With an
        # eps that is smaller by as much, Adam's steps are the same.
        agent.optimizers["policy"].eps /= case["bound"] ** 2
        rng, batches = np.random.default_rng(0), []
        for rows in draw_batches(case):
            other = rng.integers(0, ROWS, [2, len(rows) + held_out])  # the first agent's, the rest
            index = np.stack([other[0], np.concatenate([rows, other[1][:held_out]])])
            batch = harness.tensors({key: column[index] for key, column in columns.items()})
            batch["held_out"][:, len(rows) :] = 1
            batches.append(batch)
        result = harness.run_updates(
            [agent.update],
            batches,
            [[]] * UPDATES,
            ("loss/policy",),
            lambda: harness.views(agent.policy, 1),
        )
    for losses in result["losses"].values():
        losses[0] *= case["bound"] ** 2
    return {"train": result}


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("bc", CASES)


@pytest.mark.parametrize("held_out", [0, 24])
@pytest.mark.parametrize("name", CASES)
def test_updates_are_corls(name, held_out, golden):
    """Also where each batch has rows that are held out: those that remain are theirs."""
    ours = run_ours(CASES[name], held_out)
    tolerance = TOLERANCE[CASES[name]["dtype"]]
    assert harness.differences(ours, golden["results"][name], tolerance) == []


def test_gaussian_updates_are_those_of_torch_distributions():
    draw = torch.Generator().manual_seed(0)
    with harness.default_dtype(CASES["float64"]):
        mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 0.2, 3.0, 1.5]
        task = harness.make_task(bc, obs_dim=4, act_dim=2, obs_mean=mean, obs_std=std)
        agent = bc.BC(bc.Args(policy="gaussian", num_seeds=2, hidden=16), task, "cpu")
        ours = harness.views(agent.policy.net, 1)
        linear = [torch.nn.Linear(*sizes) for sizes in ((4, 16), (16, 16), (16, 2))]
        for i, layer in enumerate(linear):
            layer.load_state_dict({"weight": ours[f"weight{i}"], "bias": ours[f"bias{i}"]})
        relu = torch.nn.ReLU()
        net = torch.nn.Sequential(linear[0], relu, linear[1], relu, linear[2])
        log_std = torch.nn.Parameter(torch.zeros(2))
        adam = torch.optim.Adam([*net.parameters(), log_std], lr=3e-4)
        for _ in range(UPDATES):
            s, a = (3 * torch.randn(2, 64, dim, generator=draw) for dim in (4, 2))
            location = net((s[1] - torch.tensor(mean)) / torch.tensor(std))
            pi = torch.distributions.Normal(location, log_std.exp())
            loss = -pi.log_prob(a[1]).sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            batch = {"observations": s, "actions": a, "held_out": torch.zeros(2, 64)}
            found = agent.update(batch)["loss/policy"][1].item()
            assert found == pytest.approx(loss.item(), abs=1e-6)
        torch.testing.assert_close(agent.policy.log_std[1, 0], log_std, rtol=0, atol=1e-6)
        for i, layer in enumerate(linear):
            torch.testing.assert_close(ours[f"weight{i}"], layer.weight, rtol=0, atol=1e-6)
    assert log_std.abs().min() > 1e-3


# ---- The picked episodes ----

MAX_STEPS = 100
PICKS = {"terminals": 0.1, "timeouts": 0.1}  # how the episodes end: the fraction that is picked


def draw_episodes(end: str) -> dict:
    """Draw episodes of equal length, each with a return of its own, in random order."""
    rng = np.random.default_rng(5)
    length, count = 20, 61  # their loader loses the last one's end
    if end == "timeouts":
        length, count = MAX_STEPS, 80
    rewards = np.repeat(np.argsort(rng.random(count)), length) / length
    episode_end = np.arange(1, len(rewards) + 1) % length == 0
    data = {"rewards": rewards, "episode_end": episode_end}
    data["episode"] = np.arange(len(rewards)) // length
    never = np.zeros_like(episode_end)
    return data | {"terminals": never, "timeouts": never, end: episode_end}


def picked_by_us(end: str) -> dict:
    """Return episode -> its rows among those that we clone."""
    data = draw_episodes(end)
    data["observations"] = data["episode"][:, None].astype(np.float32)
    data["actions"] = np.zeros((len(data["rewards"]), 1), np.float32)
    args = bc.Args(policy="deterministic", top_fraction=PICKS[end], validation_fraction=0.0)
    columns = bc.prepare_data(args, data, harness.make_task(bc, obs_dim=1))
    episodes, counts = np.unique(columns["observations"], return_counts=True)
    return {str(int(e)): int(n) for e, n in zip(episodes, counts, strict=True)}


def test_corl_picks_the_same_where_every_episode_ends_by_itself(golden):
    assert len(picked_by_us("terminals")) == 6
    assert picked_by_us("terminals") == golden["picked"]["terminals"]


def test_where_time_ends_episodes_corl_picks_pieces_of_others(golden):
    """Ours are the best 8 of 80 episodes, whole; four rows of ten that theirs keeps are not."""
    data = draw_episodes("timeouts")
    returns = np.bincount(data["episode"], data["rewards"])
    best = {str(e): MAX_STEPS for e in np.argsort(returns)[-8:]}
    assert picked_by_us("timeouts") == best
    theirs = golden["picked"]["timeouts"]
    good = sum(n for e, n in theirs.items() if e in best)
    assert len(theirs) > 8 and good < 0.6 * sum(theirs.values())


# ---- CORL's code on both ----


def load_corl(checkout: Path):
    """Return their module, with stand-ins for packages that neither update nor filter touches."""
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
    """Do their updates, on observations standardised as in their train()."""
    actor = module.Actor(case["obs_dim"], case["act_dim"], case["bound"])
    linear = [layer for layer in actor.net if isinstance(layer, torch.nn.Linear)]
    parameters = {}
    for i, layer in enumerate(linear):
        parameters |= {f"weight{i}": layer.weight.data, f"bias{i}": layer.bias.data}
    harness.fill(parameters, draw_weights(case))
    trainer = module.BC(case["bound"], actor, torch.optim.Adam(actor.parameters(), lr=3e-4))
    data, result = draw_data(case), {"losses": {}, "parameters": {}}
    mean, std = module.compute_mean_std(data["observations"], eps=1e-3)
    states = module.normalize_states(data["observations"], mean, std)
    for step, rows in enumerate(draw_batches(case), 1):
        batch = [torch.from_numpy(x[rows]) for x in (states, data["actions"])]
        losses = [trainer.train([*batch, None, None, None])["actor_loss"]]
        harness.note(result, step, losses, lambda: parameters)
    return {"train": result}


def picked_by_corl(module, end: str) -> dict:
    """Return episode -> its rows among those that their filter keeps of their loader's.

    That loader, qlearning_dataset, drops each row at which time is up, and the last row of all.
    The cut after 1000 rows is at MAX_STEPS here, so that 80 episodes do.
    """
    data = draw_episodes(end)
    kept = ~data["timeouts"]
    kept[-1] = False
    column = data["episode"][kept]
    dataset = dict.fromkeys(("observations", "actions", "next_observations"), column)
    dataset |= {key: data[key][kept] for key in ("rewards", "terminals")}
    module.keep_best_trajectories(dataset, PICKS[end], 1.0, max_episode_steps=MAX_STEPS)
    episodes, counts = np.unique(dataset["observations"], return_counts=True)
    return {str(e): int(n) for e, n in zip(episodes, counts, strict=True)}


def record(checkout: Path) -> None:
    """Write golden/bc.json from a checkout of CORL at COMMIT."""
    module = load_corl(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_corl(module, case)
    results = harness.without_float32_parameters(results, CASES)
    picked = {end: picked_by_corl(module, end) for end in PICKS}
    harness.write_golden("bc", REPOSITORY, COMMIT, CASES, results=results, picked=picked)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
