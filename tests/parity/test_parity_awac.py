"""Parity of algorithms/awac.py with CORL (--weights exp) and with rlkit (--weights softmax).

    python -m pytest tests/parity/test_parity_awac.py
    python -m tests.parity.test_parity_awac CORL RLKIT    # checkouts; writes golden/awac*.json anew

rlkit computes all losses before it changes a network, and does not clip sampled actions: its order
and its samples are put in place of ours here.
"""

import importlib.util
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import awac
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

CORL = "https://github.com/corl-team/CORL"
CORL_COMMIT = "eeeeef2671235fcce3a3eb255576a207d78840e6"
RLKIT = "https://github.com/rail-berkeley/rlkit"
RLKIT_COMMIT = "ac45a9db24b89d97369bef302487273bcc3e3d84"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
         "discount": 0.99, "polyak": 0.005, "q_scale": 40}
EXP = {**SMALL, "weights": "exp", "policy_layers": 3, "critic_layers": 3, "bounded": False,
       "weight_decay": 0.0}
SOFTMAX = {**SMALL, "weights": "softmax", "policy_layers": 4, "critic_layers": 2, "bounded": True,
           "weight_decay": 1e-4}
CORL_CASES = {  # one log-deviation of pi lies outside [-20, 2], so that its clamp counts
    "mujoco": {**EXP, "lambd": 0.3333, "log_std": [2.5, -1.0], "seed": 1},
    "antmaze": {**EXP, "lambd": 0.1, "log_std": [0.0, -0.5], "seed": 2},
    "other rates": {**EXP, "lambd": 1.0, "log_std": [-1.0, -0.5], "discount": 0.9, "polyak": 0.1,
                    "seed": 3},
    "full": {**EXP, "dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256,
             "batch_size": 256, "q_scale": 1, "lambd": 0.3333, "log_std": [-1.0, -0.5, 0.0],
             "seed": 4},
}
RLKIT_CASES = {
    "mujoco": {**SOFTMAX, "lambd": 2.0, "log_std": [0.0, 0.0], "seed": 5},
    "wide": {**SOFTMAX, "lambd": 0.1, "log_std": [3.0, 1.0], "seed": 6},
    "no decay": {**SOFTMAX, "lambd": 1.0, "log_std": [-1.0, 2.0], "weight_decay": 0.0, "seed": 7},
    "strong decay": {**SOFTMAX, "lambd": 1.0, "log_std": [-1.0, 2.0], "weight_decay": 0.1,
                     "seed": 8},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. A large Q lets exp in (6) be cut."""
    rng = np.random.default_rng([seed, 0])
    obs, act, hidden = case["obs_dim"], case["act_dim"], [case["hidden"]]
    weights = {}
    for name in ("q1", "q2", "target1", "target2"):
        weights[name] = draw_network(rng, [obs + act, *hidden * case["critic_layers"], 1])
        weights[name][f"weight{case['critic_layers']}"] *= case["q_scale"]
    weights["policy"] = draw_network(rng, [obs, *hidden * case["policy_layers"], act])
    weights["policy"]["log_std"] = np.array(case["log_std"])
    return weights


def draw_batches(case: dict, seed: int) -> tuple[list, list]:
    """Draw a batch for each update, and noise for the actions at s' and at s."""
    rng = np.random.default_rng([seed, 1])
    size, obs_dim, act_dim = case["batch_size"], case["obs_dim"], case["act_dim"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, act_dim)}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        noise.append([uniform(rng, -2, 2, size, act_dim) for _ in range(2)])
    return batches, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {"policy": {"log_std": agent.policy.log_std.data[n, 0]}}
    found["policy"] |= harness.views(agent.policy.net, n)
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["target1"], found["target2"] = harness.twin_views(agent.critic_target, n)
    return harness.flatten(found)


def rlkits_update(agent):
    """Return an update in their order: both losses, then both steps."""

    def update(batch: dict) -> dict:
        critic_loss, _ = agent.critic_loss(batch)
        policy_loss, _ = agent.policy_loss(batch)
        awac.minimize(agent.optimizers["critic"], critic_loss)
        awac.minimize(agent.optimizers["policy"], policy_loss)
        awac.update_target(agent.critic_target, agent.critic, agent.args.polyak)
        # They report the loss without the decay, which their Adam adds.
        squares = sum((param**2).flatten(1).sum(1) for param in before)
        for old, new in zip(before, agent.policy.parameters(), strict=True):
            old.copy_(new.detach())
        decay = agent.args.weight_decay / 2 * squares
        return {"loss/critic": critic_loss, "loss/policy": policy_loss - decay}

    before = [param.detach().clone() for param in agent.policy.parameters()]
    return update


def unclipped_sample(policy, obs):
    """Sample as rlkit does."""
    mean, std = policy(obs)
    return mean + std * torch.randn_like(mean)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case), pytest.MonkeyPatch.context() as patch:
        args = harness.make_args(awac, case, num_seeds=len(seeds))
        obs = {"obs_mean": [0.0] * case["obs_dim"], "obs_std": [1.0] * case["obs_dim"]}
        task = harness.make_task(awac, obs_dim=case["obs_dim"], act_dim=case["act_dim"], **obs)
        agent = awac.AWAC(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(parts) for parts in zip(*[d[0] for d in drawn], strict=True)]
        noise = []
        for parts in zip(*[d[1] for d in drawn], strict=True):
            noise.append([torch.as_tensor(np.stack(arrays)) for arrays in zip(*parts, strict=True)])
        update = agent.update
        if case["weights"] == "softmax":
            patch.setattr(awac.AWACPolicy, "sample", unclipped_sample)
            update = rlkits_update(agent)
        losses = ("loss/critic", "loss/policy")
        return harness.run_updates(
            [update], batches, noise, losses, lambda: slots(agent, len(seeds) - 1)
        )


@pytest.mark.parametrize("name", CORL_CASES)
def test_updates_are_corls(name):
    case = CORL_CASES[name]
    golden = harness.load_golden("awac", CORL_CASES)["results"][name]
    assert len(golden["losses"]["50"]) == 2
    ours = run_ours(case, [case["seed"]])
    assert harness.differences(ours, golden, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", RLKIT_CASES)
def test_updates_are_rlkits(name):
    case = RLKIT_CASES[name]
    golden = harness.load_golden("awac_rlkit", RLKIT_CASES)["results"][name]
    assert len(golden["losses"]["50"]) == 2
    ours = run_ours(case, [case["seed"]])
    assert harness.differences(ours, golden, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("cases, golden", [(CORL_CASES, "awac"), (RLKIT_CASES, "awac_rlkit")])
def test_an_agent_trains_beside_others_as_alone(cases, golden):
    case = cases["mujoco"]
    results = harness.load_golden(golden, cases)["results"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, results["mujoco"], TOLERANCE["float64"]) == []


def test_the_recipe_reaches_the_clip_of_the_weights():
    """Else the golden numbers would not tell a clip from none."""
    weights = []
    with pytest.MonkeyPatch.context() as patch:
        policy_loss = awac.AWAC.policy_loss

        def noted(agent, batch):
            loss, weight = policy_loss(agent, batch)
            weights.append(weight)
            return loss, weight

        patch.setattr(awac.AWAC, "policy_loss", noted)
        for name in ("mujoco", "antmaze"):
            run_ours(CORL_CASES[name], [CORL_CASES[name]["seed"]])
    clipped = (torch.stack(weights) == 100).double().mean()
    assert 0.02 < clipped < 0.6


# ---- CORL on the recipe ----


def load_corl(checkout: Path):
    """Return their module, with stand-ins for packages that no update touches."""
    for name in ("d4rl", "gym", "pyrallis", "wandb"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["gym"].Env = object
    sys.modules["pyrallis"].wrap = lambda: lambda function: function
    path = checkout / "algorithms" / "offline" / "awac.py"
    spec = importlib.util.spec_from_file_location("corl_awac", path)
    module = sys.modules["corl_awac"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def places(networks: dict, log_std: torch.Tensor) -> dict:
    """Return the tensors that hold the recipe's weights: network -> its linear layers."""
    found = {"policy.log_std": log_std.data}
    for name, layers in networks.items():
        for i, layer in enumerate(layers):
            found |= {f"{name}.weight{i}": layer.weight.data, f"{name}.bias{i}": layer.bias.data}
    return found


def linear(network: torch.nn.Module) -> list:
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]


def run_corl(module, case: dict) -> dict:
    """Do their updates, unchanged."""
    sizes = {"state_dim": case["obs_dim"], "action_dim": case["act_dim"]}
    sizes["hidden_dim"] = case["hidden"]
    networks = [module.Actor(**sizes), module.Critic(**sizes), module.Critic(**sizes)]
    pairs = [(net, torch.optim.Adam(net.parameters(), lr=3e-4)) for net in networks]
    trainer = module.AdvantageWeightedActorCritic(
        *[part for pair in pairs for part in pair],
        gamma=case["discount"],
        tau=case["polyak"],
        awac_lambda=case["lambd"],
    )
    layers = dict(zip(("policy", "q1", "q2"), map(linear, networks), strict=True))
    layers["target1"] = linear(trainer._target_critic_1)
    layers["target2"] = linear(trainer._target_critic_2)
    parameters = places(layers, networks[0]._log_std)
    harness.fill(parameters, harness.flatten(draw_weights(case, case["seed"])))
    batches, noise = draw_batches(case, case["seed"])
    queue = [array for pair in noise for array in pair]
    result = {"losses": {}, "parameters": {}}
    with pytest.MonkeyPatch.context() as patch:
        normal = torch.distributions.normal
        dtype = torch.get_default_dtype()
        patch.setattr(
            normal, "_standard_normal", lambda *_, **__: torch.as_tensor(queue.pop(0)).to(dtype)
        )
        for step, batch in enumerate(batches, 1):
            b = harness.tensors(batch)
            rewards, terminals = b["rewards"].unsqueeze(1), b["terminals"].unsqueeze(1)
            states = [b["observations"], b["actions"], rewards, b["next_observations"], terminals]
            losses = trainer.update(states)
            pair = [losses["critic_loss"], losses["actor_loss"]]
            harness.note(result, step, pair, lambda: parameters)
    assert not queue
    return result


# ---- rlkit on the recipe ----


def load_rlkit(checkout: Path) -> SimpleNamespace:
    """Return their classes. Packages that other parts of rlkit need are mocked."""
    sys.path.insert(0, str(checkout))
    pretrained = "rlkit.torch.networks.pretrained_cnn"
    for name in ("gtimer", "torchvision", "torchvision.models", pretrained):
        sys.modules[name] = mock.MagicMock()
    from rlkit.torch.networks.mlp import ConcatMlp
    from rlkit.torch.sac.awac_trainer import AWACTrainer
    from rlkit.torch.sac.policies.gaussian_policy import GaussianPolicy

    return SimpleNamespace(ConcatMlp=ConcatMlp, Policy=GaussianPolicy, Trainer=AWACTrainer)


def run_rlkit(rlkit: SimpleNamespace, case: dict) -> dict:
    """Do their updates, unchanged, as in examples/awac/mujoco. Losses are read at backward."""
    obs_dim, act_dim = case["obs_dim"], case["act_dim"]
    policy = rlkit.Policy(
        [case["hidden"]] * case["policy_layers"],
        obs_dim,
        act_dim,
        max_log_std=0,
        min_log_std=-6,
        std_architecture="values",
    )
    sizes = ([case["hidden"]] * case["critic_layers"], 1, obs_dim + act_dim)
    critics = [rlkit.ConcatMlp(*sizes) for _ in range(4)]
    trainer = rlkit.Trainer(
        SimpleNamespace(action_space=SimpleNamespace(shape=(act_dim,))),
        policy,
        *critics,
        discount=case["discount"],
        soft_target_tau=case["polyak"],
        target_update_period=1,
        policy_lr=3e-4,
        qf_lr=3e-4,
        beta=case["lambd"],
        alpha=0,
        use_automatic_entropy_tuning=False,
        policy_weight_decay=case["weight_decay"],
        reparam_weight=0.0,
        awr_weight=1.0,
        bc_weight=0.0,
        compute_bc=False,
        awr_use_mle_for_vf=False,
        awr_sample_actions=False,
        awr_min_q=True,
    )
    names = ("policy", "q1", "q2", "target1", "target2")
    layers = dict(zip(names, map(linear, (policy, *critics)), strict=True))
    policy.log_std_logits.data = policy.log_std_logits.data.to(torch.get_default_dtype())
    parameters = places(layers, policy.log_std_logits)
    harness.fill(parameters, harness.flatten(draw_weights(case, case["seed"])))
    batches, noise = draw_batches(case, case["seed"])
    # They sample at s first, we sample at s' first.
    queue = [array for at_next, at_s in noise for array in (at_s, at_next)]
    result, losses = {"losses": {}, "parameters": {}}, []
    backward = torch.Tensor.backward

    def noted_backward(loss):
        losses.append(loss.item())
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        normal = torch.distributions.normal
        patch.setattr(normal, "_standard_normal", lambda *_, **__: torch.as_tensor(queue.pop(0)))
        trainer._need_to_update_eval_statistics = False
        for step, batch in enumerate(batches, 1):
            losses.clear()
            b = harness.tensors(batch)
            b |= {key: b[key].unsqueeze(1) for key in ("rewards", "terminals")}
            trainer.train_from_torch(b)
            q1, q2, pi = losses
            harness.note(result, step, [q1 + q2, pi], lambda: parameters)
    assert not queue
    return result


def record(corl: Path, rlkit: Path) -> None:
    """Write both golden files from checkouts of CORL and rlkit at their commits."""
    runs = [
        ("awac", CORL, CORL_COMMIT, CORL_CASES, run_corl, load_corl(corl)),
        ("awac_rlkit", RLKIT, RLKIT_COMMIT, RLKIT_CASES, run_rlkit, load_rlkit(rlkit)),
    ]
    for name, repository, commit, cases, run, module in runs:
        results = {}
        for key, case in cases.items():
            with harness.default_dtype(case):
                results[key] = run(module, case)
        results = harness.without_float32_parameters(results, cases)
        harness.write_golden(name, repository, commit, cases, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]))
