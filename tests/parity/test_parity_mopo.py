"""Parity of algorithms/mopo.py with OfflineRL-Kit: its model, a step in it, and SAC on its rows.

python -m pytest tests/parity/test_parity_mopo.py
python -m tests.parity.test_parity_mopo OFFLINERL_KIT_CHECKOUT    # write golden/mopo.json anew
"""

import importlib
import math
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import mopo
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/yihaosun1124/OfflineRL-Kit"
COMMIT = "e3ce69793766d02660217d4dfc0af4693a5531bd"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "batch_size": 40, "hidden": 16,
         "model_hidden": 12, "members": 4, "elites": 3, "model_lr": 1e-3, "penalty": 2.5,
         "policy_lr": 1e-4, "discount": 0.99, "polyak": 0.005, "real_ratio": 0.05}
CASES = {
    "model": {**SMALL, "kind": "model", "seed": 1},
    "fast model": {**SMALL, "kind": "model", "members": 7, "model_lr": 1e-2, "seed": 2},
    "step": {**SMALL, "kind": "step", "seed": 3},
    "step of seven": {**SMALL, "kind": "step", "members": 7, "elites": 5, "penalty": 0.5,
                      "seed": 4},
    "policy": {**SMALL, "kind": "policy", "seed": 5},
    "policy, other rates": {**SMALL, "kind": "policy", "real_ratio": 0.5, "discount": 0.9,
                            "polyak": 0.1, "policy_lr": 3e-4, "seed": 6},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng = np.random.default_rng([seed, 0])
    obs, act, hidden = case["obs_dim"], case["act_dim"], [case["hidden"]] * 2
    weights = {}
    for i in range(case["members"]):
        dims = [obs + act, *[case["model_hidden"]] * 4, 2 * (obs + 1)]
        weights[f"member{i}"] = draw_network(rng, dims)
    # Near enough that both bounds count
    weights["bounds"] = {"max": uniform(rng, -0.5, 0.5, obs + 1)}
    weights["bounds"]["min"] = uniform(rng, -3, -1, obs + 1)
    weights["policy"] = draw_network(rng, [obs, *hidden, 2 * act])
    for name in ("q1", "q2", "q1_target", "q2_target"):
        weights[name] = draw_network(rng, [obs + act, *hidden, 1])
    return weights


def draw_statistics(case: dict) -> dict:
    """Draw mean and deviation of the observations."""
    rng = np.random.default_rng([case["seed"], 2])
    return {
        "obs_mean": uniform(rng, -1, 1, case["obs_dim"]).tolist(),
        "obs_std": uniform(rng, 0.5, 2, case["obs_dim"]).tolist(),
    }


def draw_batches(case: dict, seed: int) -> tuple[list, list]:
    """Draw a batch for each update, and what is random in it."""
    rng = np.random.default_rng([seed, 1])
    size, obs_dim, act_dim = case["batch_size"], case["obs_dim"], case["act_dim"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -1, 1, size, obs_dim)
        obs[:, 0] = uniform(rng, 0.5, 1.5, size)  # Hopper's height, often great enough
        obs[:, 1] *= 0.1
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, act_dim)}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        numbers = {"at_s2": uniform(rng, -2, 2, size, act_dim)}
        numbers["at_s"] = uniform(rng, -2, 2, size, act_dim)
        numbers["step"] = 0.3 * uniform(rng, -2, 2, size, obs_dim + 1)
        numbers["elite"] = (case["elites"] * rng.random(size)).astype(int)
        noise.append(numbers)
    return batches, noise


def elites_of(case: dict) -> list[int]:
    """Return the networks that a step may use: not the first ones."""
    return list(range(case["members"]))[-case["elites"] :]


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {}
    for i in range(agent.args.members):
        found[f"member{i}"] = harness.views(agent.model.net, n * agent.args.members + i)
    bounds = {"max": agent.model.max_log_var, "min": agent.model.min_log_var}
    found["bounds"] = {name: bound.data[n, 0, 0] for name, bound in bounds.items()}
    found["policy"] = harness.views(agent.policy.net, n)
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["q1_target"], found["q2_target"] = harness.twin_views(agent.critic_target, n)
    return harness.flatten(found)


def make_agent(case: dict, seeds: list[int]) -> mopo.MOPO:
    """Return agents with the recipes of these seeds. Their task ends as Hopper does."""
    small = {"rollouts": 1, "rollout_length": 1, "retain": 1, "decay_updates": 10**15}
    args = harness.make_args(mopo, {**case, **small}, num_seeds=len(seeds))
    sizes = {"obs_dim": case["obs_dim"], "act_dim": case["act_dim"], "env_id": "Hopper-v4"}
    agent = mopo.MOPO(args, harness.make_task(mopo, **sizes, **draw_statistics(case)), "cpu")
    for n, seed in enumerate(seeds):
        harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
    agent.log_alpha.data.fill_(-0.7)
    agent.elites.copy_(torch.tensor(elites_of(case)))
    return agent


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        agent = make_agent(case, seeds)
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(parts) for parts in zip(*[d[0] for d in drawn], strict=True)]
        noise = [harness.stack(parts) for parts in zip(*[d[1] for d in drawn], strict=True)]
        run = {"model": run_model, "step": run_step, "policy": run_policy}[case["kind"]]
        return run(agent, batches, noise)


def run_model(agent, batches: list, noise: list) -> dict:
    """Train the model. The next batch takes the place of the rows that are held out."""
    last = len(batches[0]["rewards"]) - 1
    result = {"losses": {}, "parameters": {}}
    for step, batch in enumerate(batches):
        batch["model_learns"] = torch.ones_like(batch["rewards"])
        regularizer = agent.model.regularizer()[last].item()
        loss = agent.update_model(batch)["loss/model"][last].item() + regularizer
        held_out = {key: column[last] for key, column in batches[(step + 1) % UPDATES].items()}
        held_out["held_out"] = torch.ones(len(held_out["rewards"]))
        agent.check_model(SimpleNamespace(columns=held_out))
        losses = [loss, *agent.error[last].tolist()]
        harness.note(result, step + 1, losses, lambda: model_slots(agent, last))
    return result


def model_slots(agent, n: int) -> dict:
    found = slots(agent, n)
    return {name: view for name, view in found.items() if name[:6] in ("member", "bounds")}


def run_step(agent, batches: list, noise: list) -> dict:
    """Take one step in the model."""

    def given_actions(obs) -> tuple:
        return batches[0]["actions"], None

    result = {"losses": {}, "parameters": {}}
    with pytest.MonkeyPatch.context() as patch, harness.fed_noise([noise[0]["step"]]):
        patch.setattr(agent.policy, "sample", given_actions)
        patch.setattr(torch, "randint", lambda *_, **__: noise[0]["elite"].long())
        with torch.no_grad():
            step, penalty = agent.imagine(batches[0]["observations"])
    found = {"state": step["next_observations"], "reward": step["rewards"], "penalty": penalty}
    last = {name: column[-1] for name, column in found.items()}
    harness.note(result, 1, [step["terminals"][-1].sum().item()], lambda: last)
    return result


def run_policy(agent, batches: list, noise: list) -> dict:
    """Update the policy and its critics. The recipe's rows stand for both data and model."""
    n, num_real = agent.args.num_seeds - 1, int(agent.args.real_ratio * agent.args.batch_size)
    rows = iter([{key: column[:, num_real:] for key, column in b.items()} for b in batches])
    agent.model_rows.sample = lambda count: next(rows)

    def update(batch: dict) -> dict:
        beginning = {key: column.clone() for key, column in batch.items()}
        for column in beginning.values():
            column[:, num_real:] = 1e3  # rows of the data that have no place in the batch
        statistics = agent.update(beginning)
        gap = statistics["entropy"] + agent.act_dim
        return statistics | {"loss/temperature": statistics["alpha"].log() * gap}

    def parameters() -> dict:
        found = slots(agent, n) | {"log_alpha": agent.log_alpha[n]}
        return {name: view for name, view in found.items() if name[:6] not in ("member", "bounds")}

    numbers = [[part["at_s2"], part["at_s"]] for part in noise]
    losses = ("loss/temperature", "loss/policy", "loss/critic")
    return harness.run_updates([update], batches, numbers, losses, parameters)


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("mopo", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_offlinerl_kit(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert golden[name]["losses"]["1"] and golden[name]["parameters"]["1"]
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", ["model", "step", "policy"])
def test_an_agent_is_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_the_recipe_reaches_the_bounds_and_ends_some_rollouts(golden):
    """Else the golden numbers would not tell these rules from others."""
    case = CASES["step"]
    assert 2 < golden["step"]["losses"]["1"][0] < case["batch_size"] - 2
    with harness.default_dtype(case):
        agent = make_agent(case, [case["seed"]])
        batch = harness.stack(draw_batches(case, case["seed"])[0][:1])
        x = torch.cat([agent.standardize(batch["observations"]), batch["actions"]], -1)
        raw = agent.model.net(x.repeat_interleave(case["members"], dim=0)).chunk(2, -1)[1]
        assert (raw > agent.model.max_log_var).any() and (raw < agent.model.min_log_var + 1).any()


# ---- OfflineRL-Kit on the recipe ----


def load_kit(checkout: Path) -> SimpleNamespace:
    """Return their classes, with stand-ins for packages that no update touches."""
    sys.path.insert(0, str(checkout))
    for name in ("gym", "gym.envs", "gym.envs.mujoco"):
        sys.modules[name] = mock.MagicMock()
    logger = sys.modules["offlinerlkit.utils.logger"] = types.ModuleType("logger")
    logger.Logger = object
    names = ("modules", "nets", "dynamics", "policy", "utils.scaler", "utils.termination_fns")
    found = {}
    for name in (*names, "modules.dist_module", "modules.dynamics_module"):
        found |= vars(importlib.import_module(f"offlinerlkit.{name}"))
    return SimpleNamespace(**found)


class InDefaultType:
    """Let them compute in float64: their networks convert all inputs to float32."""

    def __enter__(self):
        as_tensor = torch.as_tensor

        def without_type(data, device=None, dtype=None):
            return as_tensor(data, device=device).to(torch.get_default_dtype())

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(torch, "as_tensor", without_type)

    def __exit__(self, *_):
        self.patch.undo()


def make_dynamics(kit: SimpleNamespace, case: dict):
    """Return their model of the environment with the recipe's weights."""
    obs_dim, act_dim = case["obs_dim"], case["act_dim"]
    net = kit.EnsembleDynamicsModel(
        obs_dim,
        act_dim,
        [case["model_hidden"]] * 4,
        case["members"],
        case["elites"],
        weight_decays=[2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4],  # run_mopo.py
    )
    net.set_elites(elites_of(case))
    statistics = draw_statistics(case)
    mean = np.array([*statistics["obs_mean"], *[0] * act_dim])
    scaler = kit.StandardScaler(mean, np.array([*statistics["obs_std"], *[1] * act_dim]))
    dynamics = kit.EnsembleDynamics(
        net,
        torch.optim.Adam(net.parameters(), case["model_lr"]),
        scaler,
        kit.get_termination_fn("hopper"),
        case["penalty"],
    )
    given = harness.flatten(draw_weights(case, case["seed"]))
    places = dynamics_places(net)
    harness.fill(places, {name: given[name] for name in places})
    return dynamics, places


def dynamics_places(net) -> dict:
    """Return the tensors that hold the recipe's weights."""
    found = {}
    for m in range(net.num_ensemble):
        for i, layer in enumerate([*net.backbones, net.output_layer]):
            found[f"member{m}.weight{i}"] = layer.weight.data[m].T
            found[f"member{m}.bias{i}"] = layer.bias.data[m, 0]
    return found | {"bounds.max": net.max_logvar.data, "bounds.min": net.min_logvar.data}


def their_model(kit: SimpleNamespace, case: dict) -> dict:
    """Train their model. All networks get the same batch, as ours do."""
    dynamics, places = make_dynamics(kit, case)
    batches, _ = draw_batches(case, case["seed"])
    result = {"losses": {}, "parameters": {}}
    for step, batch in enumerate(batches):
        formatted = []
        for rows in (batch, batches[(step + 1) % UPDATES]):
            columns = rows | {"rewards": rows["rewards"][:, None]}
            inputs, targets = dynamics.format_samples_for_training(columns)
            formatted.append((dynamics.scaler.transform(inputs), targets))
        everyone = [np.stack([part] * case["members"]) for part in formatted[0]]
        loss = dynamics.learn(*everyone, batch_size=case["batch_size"])
        losses = [loss, *map(float, dynamics.validate(*formatted[1]))]
        harness.note(result, step + 1, losses, lambda: places)
    return result


def their_step(kit: SimpleNamespace, case: dict) -> dict:
    """Take a step in their model. Of the noise of all networks, that of one counts."""
    dynamics, _ = make_dynamics(kit, case)
    batches, noise = draw_batches(case, case["seed"])
    chosen = np.array(elites_of(case))[noise[0]["elite"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics.model, "random_elite_idxs", lambda size: chosen)
        patch.setattr(np.random, "normal", lambda size: np.broadcast_to(noise[0]["step"], size))
        state, reward, terminal, info = dynamics.step(
            batches[0]["observations"], batches[0]["actions"]
        )
    found = {"state": state, "reward": reward[:, 0], "penalty": info["penalty"][:, 0]}
    result = {"losses": {}, "parameters": {}}
    harness.note(result, 1, [float(terminal.sum())], lambda: found)
    return result


def exact_log_prob(self, action, raw_action):
    """Take the place of theirs, which adds 1e-6 to 1 - a^2."""
    log_slope = 2 * (math.log(2) - raw_action - nn.functional.softplus(-2 * raw_action))
    log_normal = torch.distributions.Normal(self.loc, self.scale).log_prob(raw_action)
    return (log_normal - log_slope).sum(-1, keepdim=True)


class LateAdam(torch.optim.Adam):
    """Adam that steps only when told, so that all losses see the networks before the update."""

    def step(self):
        self.gradients = [
            weight.grad.clone() for group in self.param_groups for weight in group["params"]
        ]

    def catch_up(self):
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for weight, gradient in zip(weights, self.gradients, strict=True):
            weight.grad = gradient
        super().step()


def their_policy(kit: SimpleNamespace, case: dict) -> dict:
    """Do their updates. Critics and targets move when the losses have been computed."""
    obs_dim, act_dim, hidden = case["obs_dim"], case["act_dim"], [case["hidden"]] * 2
    options = {"unbounded": True, "conditioned_sigma": True}
    actor = kit.ActorProb(
        kit.MLP(obs_dim, hidden), kit.TanhDiagGaussian(case["hidden"], act_dim, **options)
    )
    critics = [kit.Critic(kit.MLP(obs_dim + act_dim, hidden)) for _ in range(2)]
    optimizers = [torch.optim.Adam(actor.parameters(), case["policy_lr"])]
    optimizers += [LateAdam(critic.parameters(), 3e-4) for critic in critics]
    log_alpha = torch.full((1,), -0.7, requires_grad=True)
    temperature = torch.optim.Adam([log_alpha], case["policy_lr"])
    policy = kit.MOPOPolicy(
        None,
        actor,
        *critics,
        *optimizers,
        tau=case["polyak"],
        gamma=case["discount"],
        alpha=(-act_dim, log_alpha, temperature),
    )
    places = policy_places(policy)
    given = harness.flatten(draw_weights(case, case["seed"]))
    for name, parts in places.items():
        chunks = torch.from_numpy(given[name]).chunk(len(parts))
        for part, chunk in zip(parts, chunks, strict=True):
            part.copy_(chunk)

    def parameters() -> dict:
        return {name: torch.cat(parts) for name, parts in places.items()} | {"log_alpha": log_alpha}

    batches, noise = draw_batches(case, case["seed"])
    queue = [torch.from_numpy(part[key]) for part in noise for key in ("at_s2", "at_s")]
    num_real = int(case["real_ratio"] * case["batch_size"])
    result = {"losses": {}, "parameters": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kit.TanhNormalWrapper, "log_prob", exact_log_prob)
        normal = torch.distributions.normal
        patch.setattr(normal, "_standard_normal", lambda *_, **__: queue.pop(0))
        patch.setattr(policy, "_sync_weight", lambda: None)
        for step, batch in enumerate(batches):
            rows = harness.tensors(batch)
            rows |= {key: rows[key].unsqueeze(1) for key in ("rewards", "terminals")}
            real = {key: column[:num_real] for key, column in rows.items()}
            fake = {key: column[num_real:] for key, column in rows.items()}
            found = policy.learn({"real": real, "fake": fake})
            for optimizer in optimizers[1:]:
                optimizer.catch_up()
            kit.MOPOPolicy._sync_weight(policy)
            losses = [found["loss/alpha"], found["loss/actor"]]
            losses.append(found["loss/critic1"] + found["loss/critic2"])
            harness.note(result, step + 1, losses, parameters)
    assert not queue
    return result


def policy_places(policy) -> dict:
    """Return the tensors that hold the recipe's weights; two where we have one layer."""
    found = {}
    networks = {"q1": policy.critic1, "q2": policy.critic2}
    networks |= {"q1_target": policy.critic1_old, "q2_target": policy.critic2_old}
    outputs = {name: [[critic.last]] for name, critic in networks.items()}
    networks["policy"] = policy.actor
    outputs["policy"] = [[policy.actor.dist_net.mu, policy.actor.dist_net.sigma]]
    for name, network in networks.items():
        hidden = [[m] for m in network.backbone.modules() if isinstance(m, nn.Linear)]
        for i, layers in enumerate(hidden + outputs[name]):
            for kind in ("weight", "bias"):
                found[f"{name}.{kind}{i}"] = [getattr(layer, kind).data for layer in layers]
    return found


def record(checkout: Path) -> None:
    """Write golden/mopo.json from a checkout of OfflineRL-Kit at COMMIT."""
    kit = load_kit(checkout)
    run = {"model": their_model, "step": their_step, "policy": their_policy}
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case), InDefaultType():
            results[name] = run[case["kind"]](kit, case)
    harness.write_golden("mopo", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
