"""Parity of algorithms/sac.py with rlkit, the code of SAC's authors' group.

python -m pytest tests/parity/test_parity_sac.py
python -m tests.parity.test_parity_sac RLKIT_CHECKOUT    # write golden/sac.json anew
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import sac
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/rail-berkeley/rlkit"
COMMIT = "ac45a9db24b89d97369bef302487273bcc3e3d84"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
         "rows": 300, "log_alpha": -0.7, "discount": 0.99, "polyak": 0.005, "spread": 1.0}
CASES = {
    "defaults": {**SMALL, "seed": 1},
    "other rates": {**SMALL, "discount": 0.9, "polyak": 0.1, "seed": 2},
    # pi so wide and so narrow that the clamps of its deviation count, and tanh saturates
    "extreme policy": {**SMALL, "spread": 6.0, "log_alpha": 0.5, "seed": 3},
    "full width": {**SMALL, "dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256,
                   "rows": 2000, "batch_size": 256, "seed": 4},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng, hidden = np.random.default_rng([seed, 0]), [case["hidden"]] * 2
    policy = draw_network(rng, [case["obs_dim"], *hidden, 2 * case["act_dim"]])
    weights = {"policy": {key: case["spread"] * array for key, array in policy.items()}}
    for name in ("q1", "q2", "q1_target", "q2_target"):
        weights[name] = draw_network(rng, [case["obs_dim"] + case["act_dim"], *hidden, 1])
    return weights


def draw_data(case: dict, seed: int) -> tuple[dict, list, list]:
    """Draw a dataset, and rows and noise of each update."""
    rng, n, size = np.random.default_rng([seed, 1]), case["rows"], case["batch_size"]
    obs = uniform(rng, -1, 1, n, case["obs_dim"])
    data = {"observations": obs, "actions": uniform(rng, -1, 1, n, case["act_dim"])}
    data["next_observations"] = obs + uniform(rng, -0.5, 0.5, n, case["obs_dim"])
    data["rewards"] = uniform(rng, -1, 3, n)
    data["terminals"] = (rng.random(n) < 0.1).astype(float)
    rows, noise = [], []
    for _ in range(UPDATES):
        rows.append((n * rng.random(size)).astype(int))
        noise.append(np.split(uniform(rng, -3, 3, size, 2 * case["act_dim"]), 2, 1))
    return data, rows, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in rlkit's layout."""
    found = {"policy": harness.views(agent.policy.net, n)}
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["q1_target"], found["q2_target"] = harness.twin_views(agent.critic_target, n)
    return harness.flatten(found)


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(sac, case, num_seeds=len(seeds))
        task = harness.make_task(sac, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = sac.SAC(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), harness.flatten(draw_weights(case, seed)))
        agent.log_alpha.data.fill_(case["log_alpha"])
        drawn = [draw_data(case, seed) for seed in seeds]
        batches, noise = [], []
        for step in range(UPDATES):
            parts = [{key: x[rows[step]] for key, x in data.items()} for data, rows, _ in drawn]
            batches.append(harness.stack(parts))
            # rlkit samples at s first, we sample at s' first.
            pairs = [given[step] for _, _, given in drawn]
            noise.append([torch.as_tensor(np.stack([pair[i] for pair in pairs])) for i in (1, 0)])

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
    return harness.load_golden("sac", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_rlkits(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert len(golden[name]["losses"]["1"]) == 3
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


def test_an_agent_trains_beside_others_as_alone(golden):
    case = CASES["defaults"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["defaults"], TOLERANCE[case["dtype"]]) == []


# ---- rlkit on the recipe ----


def load_rlkit(checkout: Path) -> SimpleNamespace:
    """Return their classes. Packages that other parts of rlkit need are mocked."""
    sys.path.insert(0, str(checkout))
    pretrained = "rlkit.torch.networks.pretrained_cnn"
    for name in ("gtimer", "torchvision", "torchvision.models", pretrained):
        sys.modules[name] = mock.MagicMock()
    from rlkit.torch.networks.mlp import ConcatMlp
    from rlkit.torch.sac.policies.gaussian_policy import TanhGaussianPolicy
    from rlkit.torch.sac.sac import SACTrainer

    return SimpleNamespace(ConcatMlp=ConcatMlp, Policy=TanhGaussianPolicy, Trainer=SACTrainer)


def rlkit_places(networks: dict) -> dict:
    """Return the tensors that hold each of the recipe's weights; two where we have one layer."""
    found = {}
    for name, network in networks.items():
        for i, layer in enumerate([network.fc0, network.fc1, network.last_fc]):
            layers = [layer]
            if name == "policy" and i == 2:
                layers.append(network.last_fc_log_std)
            for kind in ("weight", "bias"):
                found[f"{name}.{kind}{i}"] = [getattr(part, kind).data for part in layers]
    return found


def run_rlkit(rlkit: SimpleNamespace, case: dict) -> dict:
    """Do their updates, unchanged. Losses are read where they call backward."""
    dtype, obs_dim, act_dim = torch.get_default_dtype(), case["obs_dim"], case["act_dim"]
    hidden = [case["hidden"]] * 2
    networks = {"policy": rlkit.Policy(hidden, obs_dim, act_dim)}
    for name in ("q1", "q2", "q1_target", "q2_target"):
        networks[name] = rlkit.ConcatMlp(hidden, 1, obs_dim + act_dim)
    trainer = rlkit.Trainer(  # as in their examples/sac.py
        SimpleNamespace(action_space=SimpleNamespace(shape=(act_dim,))),
        *networks.values(),
        policy_lr=3e-4,
        qf_lr=3e-4,
        reward_scale=1,
        discount=case["discount"],
        soft_target_tau=case["polyak"],
        target_update_period=1,
        use_automatic_entropy_tuning=True,
    )
    trainer.log_alpha.data.fill_(case["log_alpha"])
    given = harness.flatten(draw_weights(case, case["seed"]))
    places = rlkit_places(networks)
    assert places.keys() == given.keys()
    for name, tensors in places.items():
        parts = torch.from_numpy(given[name]).to(dtype).chunk(len(tensors))
        for tensor, part in zip(tensors, parts, strict=True):
            assert tensor.shape == part.shape
            tensor.copy_(part)

    def parameters() -> dict:
        found = {name: torch.cat(tensors) for name, tensors in places.items()}
        return found | {"log_alpha": trainer.log_alpha}

    data, rows, noise = draw_data(case, case["seed"])
    result, losses = {"losses": {}, "parameters": {}}, []
    queue = [torch.from_numpy(part).to(dtype) for pair in noise for part in pair]
    backward = torch.Tensor.backward

    def noted_backward(loss):
        losses.append(loss.item())
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        patch.setattr(torch, "normal", lambda mean, std: mean + std * queue.pop(0))
        for step in range(UPDATES):
            losses.clear()
            batch = harness.tensors({key: column[rows[step]] for key, column in data.items()})
            batch |= {key: batch[key].unsqueeze(1) for key in ("rewards", "terminals")}
            trainer.train_from_torch(batch)
            temperature, policy, *critic = losses
            harness.note(result, step + 1, [temperature, policy, sum(critic)], parameters)
    return result


def record(checkout: Path) -> None:
    """Write golden/sac.json from a checkout of rlkit at COMMIT."""
    rlkit = load_rlkit(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_rlkit(rlkit, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("sac", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
