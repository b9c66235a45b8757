"""Parity of algorithms/combo.py with OfflineRL-Kit, whose soft maximum is mended.

Its learn() calls `value.reshape(...)` and throws the result away, so that the soft maximum runs
over three actions at a time. Here its values have the shape that was meant. Its model is compared
in test_parity_mopo.py.

python -m pytest tests/parity/test_parity_combo.py
python -m tests.parity.test_parity_combo OFFLINERL_KIT_CHECKOUT    # write golden/combo.json anew
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import combo
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform
from tests.parity.test_parity_mopo import (
    COMMIT,
    REPOSITORY,
    InDefaultType,
    LateAdam,
    exact_log_prob,
    load_kit,
    policy_places,
)

# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "batch_size": 24, "hidden": 12,
         "layers": 3, "weight": 5.0, "penalized": "model", "num_actions": 4, "real_ratio": 0.5,
         "backup_entropy": False, "policy_lr": 1e-4, "discount": 0.99, "polyak": 0.005,
         "spread": 1.0}
CASES = {
    "model": {**SMALL, "seed": 1},
    "mix": {**SMALL, "penalized": "mix", "weight": 0.5, "seed": 2},
    "entropy": {**SMALL, "backup_entropy": True, "real_ratio": 0.25, "discount": 0.9, "seed": 3},
    # pi so wide and so narrow that the clamps of its deviation count
    "extreme policy": {**SMALL, "spread": 6.0, "layers": 2, "polyak": 0.1, "seed": 4},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng, hidden = np.random.default_rng([seed, 0]), [case["hidden"]] * case["layers"]
    policy = draw_network(rng, [case["obs_dim"], *hidden, 2 * case["act_dim"]])
    weights = {"policy": {key: case["spread"] * array for key, array in policy.items()}}
    for name in ("q1", "q2", "q1_target", "q2_target"):
        weights[name] = draw_network(rng, [case["obs_dim"] + case["act_dim"], *hidden, 1])
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list, list]:
    """Draw a batch for each update, and what is random in it, in the order of both codes."""
    rng = np.random.default_rng([seed, 1])
    size, obs_dim, act_dim = case["batch_size"], case["obs_dim"], case["act_dim"]
    penalized = size if case["penalized"] == "mix" else size - num_real(case)
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, act_dim)}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        many = (penalized, case["num_actions"], act_dim)
        numbers = {"at_s": uniform(rng, -2, 2, size, act_dim)}
        numbers["at_next"] = uniform(rng, -2, 2, size, act_dim)
        numbers["uniform"] = rng.random(many)
        numbers["current"] = uniform(rng, -2, 2, *many)
        numbers["following"] = uniform(rng, -2, 2, *many)
        noise.append(numbers)
    return batches, noise


def num_real(case: dict) -> int:
    return int(case["real_ratio"] * case["batch_size"])


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {"policy": harness.views(agent.policy.net, n)}
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["q1_target"], found["q2_target"] = harness.twin_views(agent.critic_target, n)
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case), pytest.MonkeyPatch.context() as patch:
        small = {"rollouts": 1, "rollout_length": 1, "retain": 1, "decay_updates": 10**15}
        args = harness.make_args(combo, {**case, **small}, num_seeds=len(seeds))
        sizes = {"obs_dim": case["obs_dim"], "act_dim": case["act_dim"], "env_id": "Hopper-v4"}
        obs = {"obs_mean": [0.0] * case["obs_dim"], "obs_std": [1.0] * case["obs_dim"]}
        agent = combo.COMBO(args, harness.make_task(combo, **sizes, **obs), "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        agent.log_alpha.data.fill_(-0.7)
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(parts) for parts in zip(*[d[0] for d in drawn], strict=True)]
        numbers = [harness.stack(parts) for parts in zip(*[d[1] for d in drawn], strict=True)]
        noise = [[x[key] for key in x if key != "uniform"] for x in numbers]
        uniforms = [x["uniform"] for x in numbers]
        rows = iter([{k: column[:, num_real(case) :] for k, column in b.items()} for b in batches])
        agent.model_rows.sample = lambda count: next(rows)
        patch.setattr(torch, "rand_like", lambda like: uniforms.pop(0))

        def update(batch: dict) -> dict:
            statistics = agent.update(batch)
            gap = statistics["entropy"] + case["act_dim"]
            return statistics | {"loss/temperature": statistics["alpha"].log() * gap}

        return harness.run_updates(
            [update],
            batches,
            noise,
            ("loss/temperature", "loss/policy", "loss/critic"),
            lambda: slots(agent, len(seeds) - 1) | {"log_alpha": agent.log_alpha[-1]},
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("combo", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_offlinerl_kit(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert len(golden[name]["losses"]["1"]) == 3
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["model"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["model"], TOLERANCE[case["dtype"]]) == []


# ---- OfflineRL-Kit on the recipe ----


def make_policy(kit: SimpleNamespace, case: dict):
    """Return their policy. Actor and temperature step late: all losses see the old networks."""
    obs_dim, act_dim = case["obs_dim"], case["act_dim"]
    hidden = [case["hidden"]] * case["layers"]
    options = {"unbounded": True, "conditioned_sigma": True}
    actor = kit.ActorProb(
        kit.MLP(obs_dim, hidden), kit.TanhDiagGaussian(case["hidden"], act_dim, **options)
    )
    critics = [kit.Critic(kit.MLP(obs_dim + act_dim, hidden)) for _ in range(2)]
    log_alpha = torch.full((1,), -0.7, requires_grad=True)
    late = [LateAdam(actor.parameters(), case["policy_lr"])]
    late.append(LateAdam([log_alpha], case["policy_lr"]))
    policy = kit.COMBOPolicy(
        None,
        actor,
        *critics,
        late[0],
        *[torch.optim.Adam(critic.parameters(), 3e-4) for critic in critics],
        action_space=SimpleNamespace(low=[-1.0], high=[1.0]),
        tau=case["polyak"],
        gamma=case["discount"],
        alpha=(-act_dim, log_alpha, late[1]),
        cql_weight=case["weight"],
        with_lagrange=False,
        deterministic_backup=not case["backup_entropy"],
        num_repeart_actions=case["num_actions"],
        rho_s=case["penalized"],
    )
    return policy, late, log_alpha


def mend(policy, patch, count: int) -> None:
    """Let the values of actions have the shape (states, actions, 1) that learn() means."""

    def shaped(function):
        return lambda *inputs: [q.reshape(-1, count, 1) for q in function(*inputs)]

    for name in ("calc_pi_values", "calc_random_values"):
        patch.setattr(policy, name, shaped(getattr(policy, name)))


def run_theirs(kit: SimpleNamespace, case: dict) -> dict:
    """Do their updates."""
    policy, late, log_alpha = make_policy(kit, case)
    places = policy_places(policy)
    given = harness.flatten(draw_weights(case, case["seed"]))
    for name, parts in places.items():
        chunks = torch.from_numpy(given[name]).chunk(len(parts))
        for part, chunk in zip(parts, chunks, strict=True):
            part.copy_(chunk)

    def parameters() -> dict:
        return {name: torch.cat(parts) for name, parts in places.items()} | {"log_alpha": log_alpha}

    batches, noise = draw_batches(case, case["seed"])
    normals, uniforms = [], []
    for numbers in noise:
        normals += [torch.from_numpy(numbers[key]) for key in numbers if key != "uniform"]
        uniforms.append(torch.from_numpy(2 * numbers["uniform"] - 1).flatten(0, 1))
    result = {"losses": {}, "parameters": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kit.TanhNormalWrapper, "log_prob", exact_log_prob)
        normal = torch.distributions.normal
        patch.setattr(normal, "_standard_normal", lambda shape, **_: normals.pop(0).reshape(shape))
        patch.setattr(torch, "FloatTensor", lambda *shape: torch.empty(shape))
        patch.setattr(torch.Tensor, "uniform_", lambda like, *_: like.copy_(uniforms.pop(0)))
        mend(policy, patch, case["num_actions"])
        for step, batch in enumerate(batches):
            rows = harness.tensors(batch)
            rows |= {key: rows[key].unsqueeze(1) for key in ("rewards", "terminals")}
            real = {key: column[: num_real(case)] for key, column in rows.items()}
            fake = {key: column[num_real(case) :] for key, column in rows.items()}
            found = policy.learn({"real": real, "fake": fake})
            for optimizer in late:
                optimizer.catch_up()
            policy._alpha = log_alpha.detach().exp()
            losses = [found["loss/alpha"], found["loss/actor"]]
            losses.append(found["loss/critic1"] + found["loss/critic2"])
            harness.note(result, step + 1, losses, parameters)
    assert not normals and not uniforms
    return result


def record(checkout: Path) -> None:
    """Write golden/combo.json from a checkout of OfflineRL-Kit at COMMIT."""
    kit = load_kit(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case), InDefaultType():
            results[name] = run_theirs(kit, case)
    harness.write_golden("combo", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
