"""Parity of algorithms/por.py with the authors' public code, and with their reward scaling.

python -m pytest tests/parity/test_parity_por.py
python -m tests.parity.test_parity_por AUTHORS_CHECKOUT    # write golden/por.json anew
"""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import por
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/ryanxhr/POR"
COMMIT = "e692bb3a0c92b2dc668d71b0a5fc6e04a53344e1"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "execute_hidden": 32,
         "batch_size": 64, "num_updates": 200, "policy_lr": 1e-3}
FULL = {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256, "execute_hidden": 1024,
        "batch_size": 256, "num_updates": 200, "policy_lr": 1e-3}
# fmt: on
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
# Their terminals.float() rounds 0.99 to float32 even in a float64 run, which costs about 1e-9.

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. V' is drawn apart from V: a mix-up of the two must show."""
    rng = np.random.default_rng([seed, 0])
    obs, hidden, wide = case["obs_dim"], [case["hidden"]] * 2, [case["execute_hidden"]] * 2
    value = ([obs, *hidden, 1], case["layer_norm"])
    goal = ([obs, *hidden, obs], False, case["outside"])
    execute = ([2 * obs, *wide, case["act_dim"]], False, case["outside"])
    plan = {"v1": value, "v2": value, "target1": value, "target2": value}
    plan |= {"guide": goal, "execute": execute, "behavior": goal}
    return {name: draw_network(rng, *shape) for name, shape in plan.items()}


def draw_batches(case: dict, seed: int, phase: int) -> list[dict]:
    """Draw a batch for each update. Rewards reach so far that exp(alpha A) is cut at 100."""
    rng = np.random.default_rng([seed, 1 + phase])
    size, obs_dim = case["batch_size"], case["obs_dim"]
    batches = []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"])}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batch["noise"] = uniform(rng, -(3**0.5), 3**0.5, size, obs_dim)
        batches.append(batch)
    return batches


def phases(case: dict) -> list[str]:
    return ["behavior", "train"] if case["guide"] == "q" else ["train"]


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the authors' layout."""
    found = {}
    for i in (0, 1):
        found[f"v{i + 1}"] = harness.views(agent.value.net, 2 * n + i)
        found[f"target{i + 1}"] = harness.views(agent.value_target.net, 2 * n + i)
    for name in ("guide", "execute", "behavior"):
        policy = getattr(agent, name)
        if policy is not None:
            found[name] = {"log_std": policy.log_std.data[n, 0]}
            found[name] |= harness.views(policy.net, n)
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(por, case, num_seeds=len(seeds))
        task = harness.make_task(por, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = por.POR(args, task, "cpu")
        for n, seed in enumerate(seeds):
            weights = harness.flatten(draw_weights(case, seed))
            if agent.behavior is None:
                weights = {k: x for k, x in weights.items() if not k.startswith("behavior")}
            harness.fill(slots(agent, n), weights)
        result = {}
        for number, phase in enumerate(agent.phases):
            drawn = zip(*[draw_batches(case, seed, number) for seed in seeds], strict=True)
            batches = [harness.stack(parts) for parts in drawn]
            noise = [[batch.pop("noise")] for batch in batches]
            if case["guide"] != "q" or phase.name == "behavior":
                noise = [[] for _ in batches]
            for batch in batches:
                batch["next_valid"] = torch.ones_like(batch["rewards"])
            losses = ("loss/behavior", "loss/value", "loss/guide", "loss/execute")
            result[phase.name] = harness.run_updates(
                phase.updates, batches, noise, losses, lambda: slots(agent, len(seeds) - 1)
            )
        return result


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("por", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert list(ours) == list(golden[name]) == phases(case)
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", [name for name in CASES if harness.is_float64(CASES[name])])
def test_an_agent_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


# ---- The scale of the rewards ----

MAX_STEPS = 100


def authors_range(rewards, terminals) -> float:
    """Return the spread of returns that their util.py cuts after every MAX_STEPS kept rows."""
    returns, total, length = [], 0.0, 0
    for reward, terminal in zip(rewards, terminals, strict=True):
        total += float(reward)
        length += 1
        if terminal or length == MAX_STEPS:
            returns.append(total)
            total, length = 0.0, 0
    return max(returns) - min(returns)


def dataset(lengths: list[int], scales) -> tuple[dict, float]:
    """Return rows of episodes, and the spread of their returns.

    Episodes of MAX_STEPS end by a timeout, whose next state is unknown, and shorter ones by a
    terminal state. The last one is unfinished, and so good that counting it would show.
    """
    parts = [scale * np.arange(n) for scale, n in zip(scales, lengths, strict=True)]
    rewards = np.concatenate([*parts, [1e5] * 3]).astype(np.float32)
    last = np.cumsum(lengths) - 1
    episode_end = np.zeros(len(rewards), dtype=bool)
    episode_end[last] = True
    terminals = np.zeros(len(rewards), np.float32)
    terminals[last[np.array(lengths) < MAX_STEPS]] = 1
    next_valid = (~episode_end).astype(np.float32)
    next_valid[-1] = 0
    data = {"rewards": rewards, "terminals": terminals, "next_valid": next_valid}
    data["episode_end"] = episode_end
    data |= dict.fromkeys(("observations", "actions", "next_observations"), rewards[:, None])
    returns = [part.sum() for part in parts]
    return data, max(returns) - min(returns)


def scaled(data: dict, name: str = "hopper-medium-v2") -> tuple[np.ndarray, np.ndarray, float]:
    """Return our rewards after prepare_data(), the same rows before it, and the authors' factor."""
    kept = (data["next_valid"] > 0) | (data["terminals"] > 0)
    rewards, terminals = data["rewards"][kept].copy(), data["terminals"][kept]
    task = harness.make_task(por, name=name, max_episode_steps=MAX_STEPS)
    ours = por.prepare_data(por.Args(), data, task)["rewards"]
    return ours, rewards, MAX_STEPS / authors_range(rewards, terminals)


def test_rewards_are_scaled_as_the_authors_where_every_episode_ends_by_itself():
    rng = np.random.default_rng(0)
    lengths, scales = [int(n) for n in rng.integers(5, MAX_STEPS, 40)], rng.random(40)
    data, spread = dataset(lengths, scales)
    ours, rewards, factor = scaled(data)
    np.testing.assert_allclose(ours, rewards * factor, rtol=1e-6)
    np.testing.assert_allclose(MAX_STEPS / spread, factor, rtol=1e-6)
    ours, rewards, _ = scaled(dataset(lengths, scales)[0], "antmaze-umaze-v2")
    np.testing.assert_array_equal(ours, rewards - 1)


def test_with_timeouts_the_authors_returns_drift_and_ours_do_not():
    """A timeout leaves 99 of 100 rows, so each cut comes one row later: the best return is torn."""
    data, spread = dataset([MAX_STEPS] * 100, np.where(np.arange(100) == 50, 3, 1))
    ours, rewards, factor = scaled(data)
    np.testing.assert_allclose(ours, rewards * MAX_STEPS / spread, rtol=1e-6)
    assert factor * spread / MAX_STEPS > 1.2


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path) -> tuple:
    """Return their modules, with empty stand-ins for packages that the updates do not touch."""
    absent = {"wandb": "log", "IPython": "embed", "sklearn": "datasets"}
    for name, attribute in absent.items():
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, None)
    ours = sys.modules.pop("por")
    sys.path.insert(0, str(checkout))
    modules = [importlib.import_module(name) for name in ("por", "policy", "value_functions")]
    sys.modules["por"] = ours
    for name in absent:  # PyTorch looks some of them up
        del sys.modules[name]
    return tuple(modules)


def build_authors(modules: tuple, case: dict) -> tuple:
    """Return their agent with the recipe's weights, and these by name."""
    module, policy, values = modules
    obs, dtype = case["obs_dim"], torch.get_default_dtype()  # their layers are always float32
    execute = policy.GaussianPolicy(2 * obs, case["act_dim"], hidden_dim=case["execute_hidden"])
    agent = module.POR(
        vf=values.TwinV(obs, case["layer_norm"], hidden_dim=case["hidden"]).to(dtype),
        policy=execute.to(dtype),
        goal_policy=policy.GaussianPolicy(obs, obs, hidden_dim=case["hidden"]).to(dtype),
        max_steps=case["num_updates"],
        tau=case["tau"],
        alpha=case["alpha"],
        policy_lr=case["policy_lr"],
    )
    networks = {"v1": agent.vf.v1, "v2": agent.vf.v2, "target1": agent.v_target.v1}
    networks |= {"target2": agent.v_target.v2, "guide": agent.goal_policy, "execute": agent.policy}
    if case["guide"] == "q":
        behavior = policy.GaussianPolicy(obs, obs, hidden_dim=case["hidden"])
        agent.pretrain_init(behavior.to(dtype))
        networks["behavior"] = agent.b_goal_policy
    weights = draw_weights(case, case["seed"])
    parameters = {}
    for name, network in networks.items():
        pairs = zip(weights[name].items(), network.parameters(), strict=True)
        for (key, array), parameter in pairs:
            assert parameter.shape == array.shape
            parameter.data.copy_(torch.from_numpy(array))
            parameters[f"{name}.{key}"] = parameter
    return agent, parameters


def run_authors(modules: tuple, case: dict) -> dict:
    """Do their updates, unchanged. Losses are read where they call backward."""
    agent, parameters = build_authors(modules, case)
    train = agent.por_qlearning_update if case["guide"] == "q" else agent.por_residual_update
    updates = {"behavior": agent.pretrain, "train": train}
    normal = torch.distributions.multivariate_normal
    backward = torch.Tensor.backward
    losses, noise, result = [], [], {}

    def noted_backward(loss):
        losses.append(loss.item())
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        patch.setattr(normal, "_standard_normal", lambda shape, **_: noise[0].expand(shape))
        for number, phase in enumerate(phases(case)):
            result[phase] = {"losses": {}, "parameters": {}}
            for step, batch in enumerate(draw_batches(case, case["seed"], number), 1):
                batch = {
                    k: torch.from_numpy(v).to(torch.get_default_dtype()) for k, v in batch.items()
                }
                noise[:] = [batch.pop("noise")]
                losses.clear()
                updates[phase](**batch)
                harness.note(result[phase], step, list(losses), lambda: parameters)
    return result


def record(checkout: Path) -> None:
    """Write golden/por.json from a checkout of the authors' repository at COMMIT."""
    modules = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(modules, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("por", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
