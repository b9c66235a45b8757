"""Parity of algorithms/ppo.py with CleanRL: advantages, losses and weights on a fixed rollout.

python -m pytest tests/parity/test_parity_ppo.py
python -m tests.parity.test_parity_ppo CLEANRL_CHECKOUT    # write golden/ppo.json anew
"""

import importlib.util
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ppo
from tests.parity import harness
from tests.parity.harness import TOLERANCE, draw_network, uniform

REPOSITORY = "https://github.com/vwxyzjn/cleanrl"
COMMIT = "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb"
SNAPSHOTS = (1, 4, 12)  # updates, of which an epoch has 4
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "hidden": 64, "num_envs": 2, "rollout_steps": 32,
         "batch_size": 16, "epochs": 3, "clip": 0.2, "discount": 0.99, "gae_lambda": 0.95,
         "entropy_weight": 0.0, "value_weight": 0.5, "max_grad_norm": 0.5, "lr": 3e-4,
         "normalize": False}
CASES = {
    "continuous": {**SMALL, "file": "ppo_continuous_action", "act_dim": 3, "seed": 1},
    "other settings": {**SMALL, "file": "ppo_continuous_action", "act_dim": 3, "seed": 2,
                       "clip": 0.05, "discount": 0.9, "gae_lambda": 0.5, "entropy_weight": 0.1,
                       "value_weight": 2.0, "max_grad_norm": 100.0, "lr": 1e-2},
    "discrete": {**SMALL, "file": "ppo", "num_actions": 4, "seed": 3, "entropy_weight": 0.01},
}
# fmt: on
UPDATES = 12  # 3 epochs of 4 batches

# ---- The recipe ----


def draw_weights(case: dict) -> dict:
    """Draw pi and V."""
    rng, hidden = np.random.default_rng([case["seed"], 0]), [case["hidden"]] * 2
    outputs = case.get("act_dim", case.get("num_actions"))
    weights = {"policy": draw_network(rng, [case["obs_dim"], *hidden, outputs])}
    weights["value"] = draw_network(rng, [case["obs_dim"], *hidden, 1])
    if "act_dim" in case:
        weights["policy"]["log_std"] = uniform(rng, -1, 0.5, outputs)
    return weights


def draw_rollout(case: dict) -> tuple[dict, np.ndarray]:
    """Draw columns (steps, envs, ...) and the orders of all epochs (epochs, steps * envs).

    `dones` and `values` have a row more, for the state after the rollout. The density with which an
    action was chosen is no longer that of pi, so that ratios are clipped.
    """
    rng = np.random.default_rng([case["seed"], 1])
    steps, envs = case["rollout_steps"], case["num_envs"]
    columns = {"obs": uniform(rng, -1, 1, steps, envs, case["obs_dim"])}
    if "act_dim" in case:
        columns["actions"] = uniform(rng, -1, 1, steps, envs, case["act_dim"])
        columns["logprobs"] = uniform(rng, -5, -3, steps, envs)
    else:
        columns["actions"] = rng.integers(case["num_actions"], size=(steps, envs)).astype(float)
        columns["logprobs"] = uniform(rng, -1.8, -1, steps, envs)
    columns["rewards"] = uniform(rng, -1, 1, steps, envs)
    columns["dones"] = (rng.random((steps + 1, envs)) < 0.1).astype(float)
    columns["values"] = uniform(rng, -1, 1, steps + 1, envs)
    orders = [rng.random(steps * envs).argsort() for _ in range(case["epochs"])]
    return columns, np.array(orders)


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights by the names of the recipe."""
    policy = harness.views(agent.policy.net, n)
    if isinstance(agent.policy, ppo.Gaussian):
        policy["log_std"] = agent.policy.log_std.data[n, 0]
    return harness.flatten({"policy": policy, "value": harness.views(agent.value_net, n)})


def our_columns(case: dict, num_seeds: int) -> dict:
    """Return what a rollout of ours would hold: (N, envs, steps, ...)."""
    drawn, _ = draw_rollout(case)
    columns = {"rewards": drawn["rewards"], "ends": drawn["dones"][1:]}
    columns["terminals"] = drawn["dones"][1:]  # in CleanRL, a time limit is a terminal state
    columns["values"], columns["next_values"] = drawn["values"][:-1], drawn["values"][1:]
    columns |= {"observations": drawn["obs"], "log_pi": drawn["logprobs"]}
    actions = drawn["actions"]
    columns["actions"] = actions if "act_dim" in case else actions[..., None]
    return {
        key: torch.as_tensor(column).transpose(0, 1).expand(num_seeds, *[-1] * column.ndim)
        for key, column in columns.items()
    }


def run_ours(case: dict, num_seeds: int = 1) -> dict:
    """Do all updates. Return the numbers of the last agent."""
    with harness.default_dtype(case):
        args = harness.make_args(ppo, case, num_seeds=num_seeds)
        known = {key: case[key] for key in ("obs_dim", "act_dim", "num_actions") if key in case}
        agent = ppo.PPO(args, harness.make_task(ppo, **known), "cpu")
        last = num_seeds - 1
        harness.fill(slots(agent, last), harness.flatten(draw_weights(case)))
        columns = our_columns(case, num_seeds)
        keys = ("rewards", "values", "next_values", "terminals", "ends")
        columns["advantages"] = ppo.advantages(
            *[columns[key] for key in keys], args.discount, args.gae_lambda
        )
        columns["returns"] = columns["advantages"] + columns["values"]
        # CleanRL numbers the rows by steps, then environments.
        columns = {key: column.transpose(1, 2).flatten(1, 2) for key, column in columns.items()}
        result = {"losses": {}, "parameters": {}}
        result["advantages"] = harness.digest(columns["advantages"][last].numpy())
        result["returns"] = harness.digest(columns["returns"][last].numpy())
        rollout = ppo.Rollout({key: column.clone() for key, column in columns.items()}, args)
        _, orders = draw_rollout(case)
        for step in range(1, UPDATES + 1):
            if step % 4 == 1:
                rollout.shuffle()
                rollout.order[last] = torch.as_tensor(orders[step // 4])
            statistics = agent.update(rollout.sample())
            names = ("loss/policy", "loss/value", "entropy", "kl", "outside_clip")
            losses = [statistics[name][last].item() for name in names]
            harness.note(result, step, losses, lambda: slots(agent, last), SNAPSHOTS)
            result["losses"][str(step)] = harness.shorten(losses)
        return result


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("ppo", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_a_rollout_is_learned_from_as_in_cleanrl(name, golden):
    case = CASES[name]
    assert harness.differences(run_ours(case), golden[name], TOLERANCE["float64"]) == []
    clipped = [losses[-1] for losses in golden[name]["losses"].values()]
    assert min(clipped) > 0.2 and len(clipped) == UPDATES


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["continuous"]
    ours = run_ours(case, num_seeds=2)
    assert harness.differences(ours, golden["continuous"], TOLERANCE["float64"]) == []


# ---- CleanRL's code on the recipe ----


def load_authors(checkout: Path, name: str):
    """Return one of their modules, and the text that learns from a rollout."""
    path = checkout / "cleanrl" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"cleanrl_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    text = path.read_text()
    first = text.index("        # bootstrap value if not done")
    last = text.index("        y_pred, y_true")
    return module, textwrap.dedent(text[first:last])


def run_authors(module, text: str, case: dict) -> dict:
    """Execute their text, unchanged. Losses are read before each step of their optimizer."""
    obs_space = SimpleNamespace(shape=(case["obs_dim"],))
    if "act_dim" in case:
        action_space = SimpleNamespace(shape=(case["act_dim"],))
    else:
        action_space = SimpleNamespace(shape=(), n=case["num_actions"])
    envs = SimpleNamespace(single_observation_space=obs_space, single_action_space=action_space)
    agent = module.Agent(envs)
    actor = agent.actor_mean if "act_dim" in case else agent.actor
    parameters = {}
    for name, net in (("policy", actor), ("value", agent.critic)):
        for i in range(3):
            parameters[f"{name}.weight{i}"] = net[2 * i].weight
            parameters[f"{name}.bias{i}"] = net[2 * i].bias
    if "act_dim" in case:
        parameters["policy.log_std"] = agent.actor_logstd[0]
    views = {name: parameter.data for name, parameter in parameters.items()}
    harness.fill(views, harness.flatten(draw_weights(case)))

    columns, orders = draw_rollout(case)
    names = {key: torch.as_tensor(column) for key, column in columns.items()}
    names["next_done"], names["dones"] = names["dones"][-1], names["dones"][:-1]
    last_value, names["values"] = names["values"][-1], names["values"][:-1]
    names["next_obs"] = torch.zeros(case["num_envs"], case["obs_dim"])
    size = case["num_envs"] * case["rollout_steps"]
    names["args"] = SimpleNamespace(
        num_steps=case["rollout_steps"],
        gamma=case["discount"],
        gae_lambda=case["gae_lambda"],
        batch_size=size,
        minibatch_size=case["batch_size"],
        update_epochs=case["epochs"],
        clip_coef=case["clip"],
        norm_adv=True,
        clip_vloss=True,
        ent_coef=case["entropy_weight"],
        vf_coef=case["value_weight"],
        max_grad_norm=case["max_grad_norm"],
        target_kl=None,
    )
    result, steps = {"losses": {}, "parameters": {}}, []

    class NotingAdam(torch.optim.Adam):
        def step(self):
            super().step()
            steps.append(None)
            values = [names[key] for key in ("pg_loss", "v_loss", "entropy_loss", "approx_kl")]
            losses = [value.item() for value in values] + [names["clipfracs"][-1]]
            harness.note(result, len(steps), losses, lambda: parameters, SNAPSHOTS)
            result["losses"][str(len(steps))] = harness.shorten(losses)

    def shuffle(rows):
        rows[:] = orders[len(steps) // 4]

    names |= {"torch": torch, "nn": torch.nn, "device": "cpu", "agent": agent, "envs": envs}
    names["optimizer"] = NotingAdam(agent.parameters(), lr=case["lr"], eps=1e-5)
    names["np"] = SimpleNamespace(arange=np.arange, random=SimpleNamespace(shuffle=shuffle))
    agent.get_value = lambda obs: last_value  # the recipe has values of its own
    exec(text, names)
    result["advantages"] = harness.digest(names["b_advantages"].numpy())
    result["returns"] = harness.digest(names["b_returns"].numpy())
    return result


def record(checkout: Path) -> None:
    """Write golden/ppo.json from a checkout of CleanRL at COMMIT."""
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(*load_authors(checkout, case["file"]), case)
    harness.write_golden("ppo", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
