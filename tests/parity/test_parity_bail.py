"""Parity of algorithms/bail.py with the authors' public code: returns, envelope, selection, clone.

python -m pytest tests/parity/test_parity_bail.py
python -m tests.parity.test_parity_bail AUTHORS_CHECKOUT    # write golden/bail.json anew
"""

import functools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import bail
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/lanyavik/BAIL"
COMMIT = "ca1cbc6ff60368a8cb1734a0a67e5478dceba732"
# fmt: off
COMMON = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 400, "envelope_hidden": 128,
          "batch_size": 64, "rows": 80, "penalty": 1000.0, "decay": 0.02, "fraction": 0.25,
          "policy_lr": 1e-3, "envelope_lr": 3e-3}  # their sizes are fixed
CASES = {
    "static": {**COMMON, "variant": "static", "selection": "ratio", "seed": 1},
    "progressive": {**COMMON, "variant": "progressive", "selection": "ratio", "seed": 2},
    "margin": {**COMMON, "variant": "progressive", "selection": "margin", "seed": 3},
}
# fmt: on
LENGTHS = (40, 1000, 300, 1000)  # of the episodes whose returns are compared
TERMINALS = (1, 0, 1, 0)

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. V is below 1 only where the authors' code guards that."""
    rng = np.random.default_rng([seed, 0])
    obs_dim, width = case["obs_dim"], case["envelope_hidden"]
    weights = {}
    for name in ("envelope", "best_envelope"):
        weights[name] = draw_network(rng, [obs_dim, width, width, 1])
    if (case["variant"], case["selection"]) == ("progressive", "ratio"):
        weights["best_envelope"]["weight2"] *= 10
        weights["best_envelope"]["bias2"] += 3
    else:
        weights["best_envelope"]["bias2"] += 6
    weights["policy"] = draw_network(rng, [obs_dim, case["hidden"], 300, case["act_dim"]])
    return weights


def draw_rows(case: dict, rng, size: int) -> dict:
    """Draw rows, of which the last fifth is held out. The first one has the largest return."""
    rows = {"observations": uniform(rng, -2, 2, size, case["obs_dim"])}
    rows["actions"] = uniform(rng, -1, 1, size, case["act_dim"])
    rows["returns"] = uniform(rng, -2, 9, size)
    rows["returns"][0] = 10
    rows["held_out"] = (np.arange(size) > 0.8 * size).astype(float)
    return rows


def draw_batches(case: dict, seed: int) -> list[dict]:
    """Draw a batch for each update. In the static variant, V has the same rows in each."""
    rng = np.random.default_rng([seed, 1])
    return [draw_rows(case, rng, case["batch_size"]) for _ in range(UPDATES)]


def draw_dataset(case: dict, seed: int) -> dict:
    return draw_rows(case, np.random.default_rng([seed, 2]), case["rows"])


def draw_episodes() -> dict:
    """Draw episodes whose states wander, so that some return to where they were."""
    rng = np.random.default_rng(4)
    size = sum(LENGTHS)
    ends = np.cumsum(LENGTHS) - 1
    data = {"observations": np.cumsum(uniform(rng, -1, 1, size, 3), axis=0)}
    data |= {"rewards": uniform(rng, -1, 4, size), "terminals": np.zeros(size)}
    data["episode_end"] = np.isin(np.arange(size), ends)
    data["terminals"][ends] = TERMINALS
    return data


# ---- Our code on the recipe ----


def slots(agent: bail.BAIL, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    networks = {"envelope": agent.envelope.net, "best_envelope": agent.best_envelope.net}
    networks["policy"] = agent.policy
    return harness.flatten({name: harness.views(net, n) for name, net in networks.items()})


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(
            bail, case, num_seeds=len(seeds), num_updates=UPDATES, validate_every=10**9
        )
        task = harness.make_task(bail, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = bail.BAIL(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        views = functools.partial(slots, agent, len(seeds) - 1)
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(parts) for parts in zip(*drawn, strict=True)]
        silent = [[]] * UPDATES
        if case["variant"] == "progressive":
            losses = ("loss/envelope", "loss/policy")
            updates = agent.phases[0].updates
            return {"train": harness.run_updates(updates, batches, silent, losses, views)}

        data = harness.stack([draw_dataset(case, seed) for seed in seeds])
        result = {"selected": selected_rows(agent, data)}
        result["envelope"] = harness.run_updates(
            [agent.update_envelope], [data] * UPDATES, silent, ("loss/envelope",), views
        )
        result["validation"] = validated(agent, data)
        policy_losses = ("loss/policy",)
        result["train"] = harness.run_updates([agent.clone], batches, silent, policy_losses, views)
        return result


def buffer_of(data: dict) -> SimpleNamespace:
    """Return the last agent's rows as the buffer that all agents have."""
    columns = {key: column[-1] for key, column in data.items()}
    return SimpleNamespace(columns=columns, size=len(columns["returns"]), selected=None)


def selected_rows(agent: bail.BAIL, data: dict) -> list[int]:
    """Let the last agent select by the V that it has."""
    buffer = buffer_of(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent, "validate", lambda _: None)
        agent.select(buffer)
    return sorted(buffer.selected[-1].tolist())


def validated(agent: bail.BAIL, data: dict) -> list[float]:
    """Return the loss on the held-out rows."""
    agent.validate(buffer_of(data))
    return harness.shorten([agent.best_loss[-1].item()])


def our_returns() -> list[float]:
    return digest_of_returns(bail.monte_carlo_returns(bail.Args(), draw_episodes()))


def digest_of_returns(returns) -> list[float]:
    """Return every 100th number, and the norm of all."""
    return harness.shorten([np.linalg.norm(returns), *np.asarray(returns)[::100]])


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("bail", CASES)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    authors = golden["results"][name]
    assert ours.keys() == authors.keys()
    assert harness.differences(ours, authors, TOLERANCE["float64"]) == []


@pytest.mark.parametrize("name", CASES)
def test_an_agent_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    authors = golden["results"][name]
    assert harness.differences(ours, authors, TOLERANCE["float64"]) == []


def test_returns_are_the_authors_also_where_time_ended_an_episode(golden):
    assert harness.differences(our_returns(), golden["returns"], TOLERANCE["float64"]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path) -> SimpleNamespace:
    """Return their modules. What these import of Spinning Up is not needed, and replaced."""
    for name in ("gym", "spinup", "spinup.utils", "spinup.utils.logx", "spinup.utils.run_utils"):
        sys.modules[name] = ModuleType(name)
    for name in ("spinup.algos", "spinup.algos.BAIL"):
        sys.modules[name] = ModuleType(name)
    sys.modules["spinup.utils.logx"].EpochLogger = None
    sys.modules["spinup.utils.run_utils"].setup_logger_kwargs = None
    folder = checkout / "spinup/spinup/algos/BAIL"
    found = SimpleNamespace()
    for name in ("utils", "bail_training", "main_get_mcret", "main_static_bail"):
        text = (folder / f"{name}.py").read_text()
        # The border row itself would drop out where (G / V) * V is rounded up.
        text = text.replace(
            "mc_ret >= border * state_value", "mc_ret >= border * state_value - 1e-9"
        )
        text = text.replace(
            "mc_ret >= margin + state_value", "mc_ret >= margin + state_value - 1e-9"
        )
        module = ModuleType(f"spinup.algos.BAIL.{name}")
        sys.modules[module.__name__] = module
        setattr(sys.modules["spinup.algos.BAIL"], name, module)
        exec(compile(text, name, "exec"), module.__dict__)
        setattr(found, name, module)
    return found


def load_network(net, weights: dict) -> None:
    """Write the recipe's weights into a network of theirs."""
    harness.fill(network_of(net), weights)


def network_of(net) -> dict:
    """Return the weights of their Value or Actor in the recipe's layout."""
    linear = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)]
    found = {}
    for i, layer in enumerate(linear):
        found |= {f"weight{i}": layer.weight.data, f"bias{i}": layer.bias.data}
    return found


class Replay:
    """A replay buffer that gives the recipe's batches one after another."""

    def __init__(self, batches: list[dict]):
        self.batches = iter(batches)

    def sample(self, _, require_idxs=False):
        batch = next(self.batches)
        columns = (batch["observations"], None, batch["actions"], None, None)
        if require_idxs:
            return (*columns, np.arange(len(batch["actions"])))
        return columns


class Values:
    """A logger that keeps the last of each number."""

    def __init__(self):
        self.last = {}

    def store(self, **numbers):
        self.last |= numbers


def as_double(patch) -> None:
    """Let their conversions to float32 give float64."""
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    patch.setattr(torch, "FloatTensor", lambda x: torch.as_tensor(np.asarray(x)).double())


def run_static(modules: SimpleNamespace, case: dict) -> dict:
    """Train their envelope for 1, 2, ... epochs of one batch, select, and clone."""
    training = modules.bail_training
    weights, data = draw_weights(case, case["seed"]), draw_dataset(case, case["seed"])
    states, returns = data["observations"], data["returns"]
    value = training.Value

    def make_value(state_dim, activation):
        net = value(state_dim, activation=activation)
        load_network(net, weights["envelope"])
        return net

    selecting = value(case["obs_dim"], activation="relu")
    load_network(selecting, weights["best_envelope"])
    replay = modules.utils.ReplayBuffer()
    for i, action in enumerate(data["actions"]):
        replay.add((i, i, action, 0.0, 0.0))
    select = modules.main_static_bail.select_batch_ue
    share = case["fraction"]
    chosen, _, _ = select(replay, states, returns, selecting, 0, 0, None, select_percentage=share)
    result = {"selected": sorted(row[0] for row in chosen.storage)}

    envelope = {"losses": {}, "parameters": {}}
    for epochs in harness.CURVE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "Value", make_value)
            patch.setattr(np.random, "shuffle", lambda _: None)
            net, loss = training.train_upper_envelope(
                states, returns, case["obs_dim"], 0, num_epoches=epochs, k=case["penalty"]
            )
        networks = {"envelope": network_of(net)}
        harness.note(envelope, epochs, [loss.item()], lambda n=networks: harness.flatten(n))
    result["envelope"] = envelope
    held_out = data["held_out"] == 1
    held = [torch.as_tensor(column[held_out]) for column in (states, returns)]
    validation = training.calc_ue_valiloss(net, *held, ue_bsize=800, ue_loss_k=case["penalty"])
    result["validation"] = harness.shorten([validation.item()])

    policy = training.BC(case["obs_dim"], case["act_dim"], 1.0, lr=case["policy_lr"], wd=0)
    load_network(policy.actor, weights["policy"])
    replay, logger = Replay(draw_batches(case, case["seed"])), Values()
    clone = {"losses": {}, "parameters": {}}
    for step in range(UPDATES):
        policy.train(replay, iterations=1, batch_size=case["batch_size"], logger=logger)
        parameters = functools.partial(harness.flatten, {"policy": network_of(policy.actor)})
        harness.note(clone, step + 1, [logger.last["Loss"]], parameters)
    return result | {"train": clone}


def run_progressive(modules: SimpleNamespace, case: dict) -> dict:
    """Do their updates, without a validation in between."""
    weights, batches = draw_weights(case, case["seed"]), draw_batches(case, case["seed"])
    size = case["batch_size"]
    agent = modules.bail_training.BAIL_selebah(
        *(case["obs_dim"], case["act_dim"], 1.0, UPDATES),
        States=batches[0]["observations"],
        MCrets=batches[0]["returns"],
        pct_anneal_type="constant",
        last_pct=case["fraction"],
        select_type={"ratio": "border", "margin": "margin"}[case["selection"]],
    )
    networks = {"envelope": agent.v_ue, "best_envelope": agent.best_v_ue, "policy": agent.actor}
    for name, net in networks.items():
        load_network(net, weights[name])
    replay, logger = Replay(batches), Values()
    result = {"losses": {}, "parameters": {}}
    views = harness.flatten({name: network_of(net) for name, net in networks.items()})
    options = {"batch_size": size, "ue_loss_k": case["penalty"], "ue_vali_freq": 10**9}
    for step in range(1, UPDATES + 1):
        agent.MCrets = batches[step - 1]["returns"]
        agent.MC_valiset_indices = np.flatnonzero(batches[step - 1]["held_out"])
        agent.train(replay, step, iterations=1, logger=logger, **options)
        losses = [logger.last["UELoss"], logger.last["CloneLoss"]]
        harness.note(result, step, losses, lambda: views)
    return {"train": result}


def authors_returns(modules: SimpleNamespace) -> list[float]:
    data = draw_episodes()
    replay = modules.utils.ReplayBuffer()
    following = np.roll(data["observations"], -1, axis=0) + data["episode_end"][:, None]
    columns = (data["observations"], following, data["rewards"], data["rewards"], data["terminals"])
    for row in zip(*columns, strict=True):
        replay.add(row)
    _, returns = modules.main_get_mcret.calculate_mc_gain(replay)
    return digest_of_returns(np.array(returns, dtype=float))


def record(checkout: Path) -> None:
    """Write golden/bail.json from a checkout of the authors' repository at COMMIT."""
    modules = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case), pytest.MonkeyPatch.context() as patch:
            as_double(patch)
            run = run_static if case["variant"] == "static" else run_progressive
            results[name] = run(modules, case)
    returns = authors_returns(modules)
    harness.write_golden("bail", REPOSITORY, COMMIT, CASES, results=results, returns=returns)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
