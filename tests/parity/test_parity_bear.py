"""Parity of algorithms/bear.py with the authors' two public codes.

    python -m pytest tests/parity/test_parity_bear.py
    python -m tests.parity.test_parity_bear BEAR_CHECKOUT D4RL_EVALUATIONS_CHECKOUT

The command writes golden/bear.json (original) and golden/bear_retuned.json anew. Both codes take
the gradient of the multiplier after a step of pi, through pi, which newer versions of PyTorch
refuse; they are told to take it of the multiplier alone. The retuned code lets Q step between the
losses and the gradients of pi, which is refused, too; these lines are moved before the losses.
"""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import bear
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

SOURCES = {
    "original": (
        "bear",
        "https://github.com/aviralkumar2907/BEAR",
        "f2e31c1b5f81c4fb0e692a34949c7d8b48582d8f",
    ),
    "retuned": (
        "bear_retuned",
        "https://github.com/rail-berkeley/d4rl_evaluations",
        "c93b9d2bf443cd5b8c43542fca9937dc50e630c3",
    ),
}
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "vae_hidden": 20,
         "batch_size": 64, "log_alpha": 0.3, "warmup_updates": 20}
ORIGINAL = {**SMALL, "recipe": "original", "lr": 1e-3, "policy_lr": 1e-3, "mmd_samples": 5,
            "kernel": "laplacian", "mmd_sigma": 10.0}
RETUNED = {**SMALL, "recipe": "retuned", "lr": 3e-4, "policy_lr": 1e-4, "mmd_samples": 4,
           "kernel": "laplacian", "mmd_sigma": 20.0}
WIDE = {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "vae_hidden": 750}
CASES = {
    "original": {
        "laplacian": {**ORIGINAL, "seed": 1},
        "gaussian": {**ORIGINAL, "kernel": "gaussian", "mmd_sigma": 20.0, "seed": 2},
        # log alpha climbs into its bound
        "narrow kernel": {**ORIGINAL, "mmd_sigma": 0.5, "log_alpha": 9.98, "warmup_updates": 0,
                          "seed": 3},
        "full width": {**ORIGINAL, **WIDE, "hidden": 400, "batch_size": 100, "seed": 4},
    },
    "retuned": {
        "laplacian": {**RETUNED, "seed": 1},
        "gaussian": {**RETUNED, "kernel": "gaussian", "mmd_sigma": 50.0, "seed": 2},
        # pi is so near to the VAE, by this kernel, that log alpha falls into its bound
        "wide kernel": {**RETUNED, "mmd_sigma": 1e6, "log_alpha": -4.98, "warmup_updates": 0,
                        "seed": 3},
        "full width": {**RETUNED, **WIDE, "hidden": 256, "batch_size": 256, "seed": 4},
    },
}
# fmt: on
ALL = [(recipe, name) for recipe, cases in CASES.items() for name in cases]
SAMPLES = 10  # actions of a next state, in the authors' texts
THRESHOLD = 0.05  # of the distance, in the authors' texts

# ---- The recipe ----


def layers_of(case: dict) -> list[int]:
    """Return the sizes of the hidden layers of pi and Q."""
    original = case["recipe"] == "original"
    return [case["hidden"], 3 * case["hidden"] // 4 if original else case["hidden"]]


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng = np.random.default_rng([seed, 0])
    obs, act, latent = case["obs_dim"], case["act_dim"], 2 * case["act_dim"]
    layers, wide = layers_of(case), [case["vae_hidden"]] * 2
    weights = {"policy": draw_network(rng, [obs, *layers, 2 * act])}
    if case["recipe"] == "original":
        weights["policy_target"] = draw_network(rng, [obs, *layers, 2 * act])
    else:
        weights["policy"]["bias2"][-1] = -6  # a logarithm of the std that the clamp changes
    for name in ("q1", "q2", "q1_target", "q2_target"):
        weights[name] = draw_network(rng, [obs + act, *layers, 1])
    weights["encoder"] = draw_network(rng, [obs + act, *wide, 2 * latent])
    weights["encoder"]["bias2"][-1] = -6
    weights["decoder"] = draw_network(rng, [obs + latent, *wide, act])
    weights["decoder"]["weight2"] *= 4
    weights = harness.flatten(weights)
    return weights | {"log_alpha": np.array([case["log_alpha"]])}


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[list[np.ndarray]]]:
    """Draw a batch and the noise of every update. The noise reaches beyond its clips."""
    rng, size, act = np.random.default_rng([seed, 1]), case["batch_size"], case["act_dim"]
    matched = size * case["mmd_samples"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, act)}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        shapes = [(size, 2 * act), (size * SAMPLES, act), (matched, 2 * act), (matched, act)]
        noise.append([uniform(rng, -1.5, 1.5, *shape) for shape in shapes])
    return batches, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {"policy": harness.views(agent.policy.net, n)}
    if agent.original:
        found["policy_target"] = harness.views(agent.policy_target.net, n)
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["q1_target"], found["q2_target"] = harness.twin_views(agent.critic_target, n)
    found["encoder"] = harness.views(agent.vae.encoder, n)
    found["decoder"] = harness.views(agent.vae.decoder, n)
    return harness.flatten(found) | {"log_alpha": agent.log_alpha.data[n : n + 1]}


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = bear.apply_settings(harness.make_args(bear, case, num_seeds=len(seeds)))
        task = harness.make_task(bear, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = bear.BEAR(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), draw_weights(case, seed))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(batches[k] for batches, _ in drawn) for k in range(UPDATES)]
        noise = [
            [
                torch.as_tensor(np.stack(parts))
                for parts in zip(*(n[k] for _, n in drawn), strict=True)
            ]
            for k in range(UPDATES)
        ]
        return harness.run_updates(
            agent.phases[0].updates,
            batches,
            noise,
            ("loss/vae", "loss/critic", "loss/policy"),
            lambda: slots(agent, len(seeds) - 1),
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return {
        recipe: harness.load_golden(file, CASES[recipe])["results"]
        for recipe, (file, _, _) in SOURCES.items()
    }


@pytest.mark.parametrize("recipe, name", ALL)
def test_updates_are_the_authors(recipe, name, golden):
    case, expected = CASES[recipe][name], golden[recipe][name]
    ours = run_ours(case, [case["seed"]])
    assert len(expected["losses"]["1"]) == 3
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("recipe, bound", [("original", 10), ("retuned", -5)])
def test_the_multiplier_meets_its_bounds(recipe, bound, golden):
    name = "narrow kernel" if bound > 0 else "wide kernel"
    norm, number = golden[recipe][name]["parameters"]["50"]["log_alpha"]
    assert number == bound and norm == abs(bound)


@pytest.mark.parametrize("recipe", CASES)
def test_an_agent_trains_beside_others_as_alone(recipe, golden):
    case = CASES[recipe]["laplacian"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    found = harness.differences(ours, golden[recipe]["laplacian"], TOLERANCE[case["dtype"]])
    assert found == []


# ---- The authors' codes on the recipe ----


def execute(text: str, path: Path) -> SimpleNamespace:
    """Return what a module of this text defines."""
    names = {"__name__": path.stem}
    exec(compile(text, str(path), "exec"), names)
    return SimpleNamespace(**names)


def load_original(checkout: Path):
    """Return the module algos.py. Its logger does nothing."""
    spec = importlib.util.spec_from_file_location("original_bear", checkout / "algos.py")
    module = importlib.util.module_from_spec(spec)
    mocked = {name: mock.MagicMock() for name in ("logger", "utils")}
    with mock.patch.dict(sys.modules, mocked):
        spec.loader.exec_module(module)
    return module


def load_retuned(checkout: Path) -> SimpleNamespace:
    """Return their classes, with the steps of Q before the losses of pi."""
    folder = checkout / "bear"
    sys.path.insert(0, str(folder))
    for name in ("rlkit.core", "rlkit.core.eval_util", "rlkit.data_management.normalizer"):
        sys.modules[name] = mock.MagicMock()
    sys.modules["rlkit.torch.torch_rl_algorithm"] = SimpleNamespace(TorchTrainer=object)
    from rlkit.torch import networks, pytorch_util
    from rlkit.torch.sac import policies

    path = folder / "rlkit" / "torch" / "sac" / "bear.py"
    text = path.read_text()
    start = text.index("        self.qf1_optimizer.zero_grad()")
    end = text.index("        self.policy_optimizer.zero_grad()")
    steps = text[start:end]
    heading = '        """\n        Actor Training\n'
    assert text.count(heading) == 1
    text = (text[:start] + text[end:]).replace(heading, steps + heading)
    pytorch_util.from_numpy = torch.as_tensor  # theirs makes float32 of it
    return SimpleNamespace(
        Mlp=networks.FlattenMlp,
        Policy=policies.TanhGaussianPolicy,
        Vae=policies.VAEPolicy,
        Trainer=execute(text, path).BEARTrainer,
    )


def linear_of(widths: dict):
    """Return nn.Linear that takes other widths than those in their text."""

    def linear(fan_in, fan_out, real=nn.Linear):
        return real(widths.get(fan_in, fan_in), widths.get(fan_out, fan_out))

    return linear


def vae_layers(vae) -> dict:
    """Return the layers of their VAE: two where the recipe has one."""
    encoder = [[vae.e1], [vae.e2], [vae.mean, vae.log_std]]
    return {"encoder": encoder, "decoder": [[vae.d1], [vae.d2], [vae.d3]]}


def build_original(module, case: dict) -> tuple:
    """Return a function that does an update, their layers and their multiplier."""
    layers = layers_of(case)
    widths = {400: layers[0], 300: layers[1], 750: case["vae_hidden"]}
    module.nn = SimpleNamespace(Module=nn.Module, Linear=linear_of(widths))
    agent = module.BEAR(
        2,
        case["obs_dim"],
        case["act_dim"],
        1.0,
        use_bootstrap=False,
        version="0",
        lambda_=0.0,
        mode="auto",
        num_samples_match=case["mmd_samples"],
        mmd_sigma=case["mmd_sigma"],
        use_ensemble=False,
        kernel_type=case["kernel"],
    )
    # They count the calls of train(), and the warm-up is the first 20.
    agent.epoch = 20 - case["warmup_updates"]
    found = vae_layers(agent.vae)
    for suffix in ("", "_target"):
        actor, critic = getattr(agent, "actor" + suffix), getattr(agent, "critic" + suffix)
        found["policy" + suffix] = [[actor.l1], [actor.l2], [actor.mean, actor.log_std]]
        found["q1" + suffix] = [[critic.l1], [critic.l2], [critic.l3]]
        found["q2" + suffix] = [[critic.l4], [critic.l5], [critic.l6]]

    def update(batch: dict) -> None:
        keys = ("observations", "next_observations", "actions", "rewards", "terminals")
        rows = [batch[key].reshape(case["batch_size"], -1) for key in keys]
        sample = [*rows, np.ones((case["batch_size"], 2))]
        agent.train(SimpleNamespace(sample=lambda _: sample), 1, case["batch_size"])

    return update, found, agent.log_lagrange2


def build_retuned(module, case: dict) -> tuple:
    """Return a function that does an update, their layers and their multiplier."""
    obs_dim, act_dim, hidden = case["obs_dim"], case["act_dim"], layers_of(case)
    names = ("q1", "q2", "q1_target", "q2_target")
    networks = {"policy": module.Policy(hidden, obs_dim, act_dim)}
    networks |= {name: module.Mlp(hidden, 1, obs_dim + act_dim) for name in names}
    with mock.patch.object(nn, "Linear", linear_of({750: case["vae_hidden"]})):
        vae = module.Vae(hidden, obs_dim, act_dim, latent_dim=2 * act_dim)
    trainer = module.Trainer(
        None,
        *networks.values(),
        vae,
        policy_lr=case["policy_lr"],
        qf_lr=case["lr"],
        soft_target_tau=5e-3,
        mode="auto",
        kernel_choice=case["kernel"],
        policy_update_style="0",
        mmd_sigma=case["mmd_sigma"],
        target_mmd_thresh=THRESHOLD,
        num_samples_mmd_match=case["mmd_samples"],
    )
    trainer._n_train_steps_total = 40_000 - case["warmup_updates"]
    trainer._need_to_update_eval_statistics = False
    found = vae_layers(vae)
    for name, network in networks.items():
        last = [network.last_fc]
        if name == "policy":
            last.append(network.last_fc_log_std)
        found[name] = [[network.fc0], [network.fc1], last]

    def update(batch: dict) -> None:
        batch = harness.tensors(batch)
        batch |= {key: batch[key].unsqueeze(1) for key in ("rewards", "terminals")}
        trainer.train_from_torch(batch)

    return update, found, trainer.log_alpha


def places_of(layers: dict, multiplier) -> dict:
    """Return the tensors that hold each of the recipe's weights."""
    found = {"log_alpha": [multiplier.data.reshape(1)]}
    for name, parts in layers.items():
        for i, part in enumerate(parts):
            for kind in ("weight", "bias"):
                found[f"{name}.{kind}{i}"] = [getattr(layer, kind).data for layer in part]
    return found


def run_authors(module, case: dict) -> dict:
    """Do their updates. Losses are read where they call backward."""
    original = case["recipe"] == "original"
    build = build_original if original else build_retuned
    update, layers, multiplier = build(module, case)
    places = places_of(layers, multiplier)
    given = draw_weights(case, case["seed"])
    assert places.keys() == given.keys()
    for name, tensors in places.items():
        parts = torch.as_tensor(given[name]).chunk(len(tensors))
        for tensor, part in zip(tensors, parts, strict=True):
            assert tensor.shape == part.shape, name
            tensor.copy_(part)

    batches, noise = draw_batches(case, case["seed"])
    result, losses, queue = {"losses": {}, "parameters": {}}, [], []
    backward = torch.Tensor.backward

    def noted_backward(loss, **options):
        losses.append(loss.item())
        if len(losses) == (4 if original else 5):
            options = {"inputs": [multiplier]}
        backward(loss, **options)

    def next_noise(*_, size):
        return queue.pop(0).reshape(size)

    def next_normal(mean, std):
        return mean + std * torch.as_tensor(queue.pop(0)).to(mean)

    def parameters() -> dict:
        return {name: torch.cat(tensors) for name, tensors in places.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noted_backward)
        patch.setattr(np.random, "normal", next_noise)
        patch.setattr(torch, "normal", next_normal)
        dtype = torch.get_default_dtype()
        patch.setattr(torch, "FloatTensor", lambda rows: torch.as_tensor(rows).to(dtype))
        for step in range(UPDATES):
            losses.clear()
            queue[:] = [part.astype(case["dtype"]) for part in noise[step]]
            alpha = multiplier.exp().item()
            update(batches[step])
            assert not queue
            vae, *critic, policy, _ = losses
            if original:
                policy -= alpha * THRESHOLD  # their loss of pi leaves it out
            harness.note(result, step + 1, [vae, sum(critic), policy], parameters)
    return result


def record(checkouts: dict[str, Path]) -> None:
    """Write both golden files from checkouts of the two repositories at their commits."""
    loaders = {"original": load_original, "retuned": load_retuned}
    for recipe, (file, repository, commit) in SOURCES.items():
        module = loaders[recipe](checkouts[recipe])
        results = {}
        for name, case in CASES[recipe].items():
            with harness.default_dtype(case):
                results[name] = run_authors(module, case)
        results = harness.without_float32_parameters(results, CASES[recipe])
        harness.write_golden(file, repository, commit, CASES[recipe], results=results)


if __name__ == "__main__":
    record({"original": Path(sys.argv[1]), "retuned": Path(sys.argv[2])})
