"""Parity of algorithms/fisher_brc.py with the authors' TensorFlow code.

    python -m pytest tests/parity/test_parity_fisher_brc.py
    TF_USE_LEGACY_KERAS=1 python -m tests.parity.test_parity_fisher_brc GOOGLE_RESEARCH_CHECKOUT

The command writes golden/fisher_brc.json anew. It needs tensorflow, tf_keras and
tensorflow-probability. The authors' text is made to compute in float64, with small networks and
with a learning rate of mu that falls within the recipe. Adam is PyTorch's, because that of Keras
counts its epsilon in another way.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import fisher_brc
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/google-research/google-research"
# Of fisher_brc.py. The other three files were those of 1d4d2f1aa6f2883a790d2ae46a6ee8ab150d8f31.
COMMIT = "35a5be244885197babac12954c71274ff76b27b7"
COMPONENTS = 5  # in the authors' text
# fmt: off
CASES = {
    "default": {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
                "fisher_weight": 0.1, "reward_bonus": 5.0, "seed": 1},
    "no penalty": {"dtype": "float64", "obs_dim": 3, "act_dim": 1, "hidden": 12, "batch_size": 48,
                   "fisher_weight": 0.0, "reward_bonus": 0.0, "seed": 2},
}
# fmt: on

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng = np.random.default_rng([seed, 0])
    obs, act, layers = case["obs_dim"], case["act_dim"], [case["hidden"]] * 3
    weights = {"policy": draw_network(rng, [obs, *layers, 2 * act])}
    for name in ("offset1", "offset2", "offset1_target", "offset2_target"):
        weights[name] = draw_network(rng, [obs + act, *layers, 1])
    weights["behavior"] = draw_network(rng, [obs, *layers[:2], 3 * act * COMPONENTS])
    # Logarithms of stds that their clamp changes; actions come so near to the bounds.
    weights["policy"]["bias3"][-1] = 3
    weights["behavior"]["bias2"][-1] = 3
    weights = harness.flatten(weights)
    return weights | {"log_alpha": np.array([0.3]), "log_tau": np.array([-0.2])}


def draw_batches(case: dict, seed: int) -> list[dict]:
    """Draw a batch for every update."""
    rng, size = np.random.default_rng([seed, 1]), case["batch_size"]
    batches = []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, case["act_dim"])}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
    return batches


def draw_noise(case: dict, seed: int, cloning: bool) -> list[list[np.ndarray]]:
    """Draw three actions of pi for every update; for one of mu, its choices and its Gaussian."""
    rng, shape = np.random.default_rng([seed, 2]), (case["batch_size"], case["act_dim"])
    if cloning:
        return [
            [uniform(rng, 0, 1, *shape, COMPONENTS), uniform(rng, -1.5, 1.5, *shape)]
            for _ in range(UPDATES)
        ]
    return [[uniform(rng, -1.5, 1.5, *shape) for _ in range(3)] for _ in range(UPDATES)]


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {"policy": harness.views(agent.policy.net, n)}
    found["offset1"], found["offset2"] = harness.twin_views(agent.offset, n)
    twins = harness.twin_views(agent.offset_target, n)
    found["offset1_target"], found["offset2_target"] = twins
    found["behavior"] = harness.views(agent.behavior.net, n)
    scalars = {name: getattr(agent, name).data[n : n + 1] for name in ("log_alpha", "log_tau")}
    return harness.flatten(found) | scalars


def run_ours(case: dict, seeds: list[int], cloning: bool) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda like: torch.randn_like(like))
        options = {"num_seeds": len(seeds), "behavior_updates": UPDATES}
        args = harness.make_args(fisher_brc, case, **options)
        task = harness.make_task(fisher_brc, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = fisher_brc.FisherBRC(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), draw_weights(case, seed))

        def update(batch: dict) -> dict:
            rewards = batch["rewards"] + case["reward_bonus"]  # as prepare_data() does
            found = agent.update(batch | {"rewards": rewards})
            penalty = case["fisher_weight"] * found["penalty"]
            return found | {"loss/critic": found["loss/td"] + penalty}

        drawn = zip(*(draw_batches(case, seed) for seed in seeds), strict=True)
        noise = zip(*(draw_noise(case, seed, cloning) for seed in seeds), strict=True)
        return harness.run_updates(
            [agent.update_behavior if cloning else update],
            [harness.stack(batches) for batches in drawn],
            [
                [torch.as_tensor(np.stack(parts)) for parts in zip(*agents, strict=True)]
                for agents in noise
            ],
            ("loss/behavior",) if cloning else ("loss/critic", "loss/policy", "penalty"),
            lambda: slots(agent, len(seeds) - 1),
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("fisher_brc", CASES)["results"]


@pytest.mark.parametrize("phase", ["behavior", "train"])
@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, phase, golden):
    case, expected = CASES[name], golden[name][phase]
    assert len(expected["losses"]["1"]) == (3 if phase == "train" else 1)
    ours = run_ours(case, [case["seed"]], phase == "behavior")
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("phase", ["behavior", "train"])
def test_an_agent_trains_beside_others_as_alone(phase, golden):
    case = CASES["default"]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]], phase == "behavior")
    expected = golden["default"][phase]
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


# ---- The authors' code on the recipe ----

MODULES = ("critic", "policies", "behavioral_cloning", "fisher_brc")  # as they import each other
ADAPTED = [
    ("tf.float32", "tf.float64"),
    ("tf.math.log(1.0)", "tf.math.log(tf.constant(1.0, tf.float64))"),
    ("tf.math.sqrt(2.0)", "2.0**0.5"),
    ("tf.keras.optimizers.Adam", "PyTorchsAdam"),
    ("[800_000, 900_000]", "[40, 45]"),
    ("(256, 256, 256)", "(HIDDEN, HIDDEN, HIDDEN)"),
    ("(256, 256)", "(HIDDEN, HIDDEN)"),
]


class PyTorchsAdam:
    """torch.optim.Adam in TensorFlow."""

    def __init__(self, learning_rate):
        self.learning_rate, self.steps, self.means = learning_rate, 0, {}

    def apply_gradients(self, pairs) -> None:
        rate = self.learning_rate
        if callable(rate):
            rate = float(rate(self.steps))
        self.steps += 1
        for gradient, variable in pairs:
            first, second = self.means.get(id(variable), (0.0, 0.0))
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            self.means[id(variable)] = first, second
            root = (second / (1 - 0.999**self.steps)) ** 0.5 + 1e-8
            variable.assign_sub(rate / (1 - 0.9**self.steps) * first / root)


def load_authors(checkout: Path, hidden: int) -> SimpleNamespace:
    """Return their class, TensorFlow and its samplers."""
    for name in ("tf_agents", "tf_agents.specs", "tf_agents.specs.tensor_spec"):
        sys.modules[name] = mock.MagicMock()
    package = sys.modules["fisher_brc"] = ModuleType("fisher_brc")
    for name in MODULES:
        path = checkout / "fisher_brc" / f"{name}.py"
        text = path.read_text()
        for old, new in ADAPTED:
            text = text.replace(old, new)
        module = ModuleType(f"fisher_brc.{name}")
        module.PyTorchsAdam, module.HIDDEN = PyTorchsAdam, hidden
        sys.modules[module.__name__] = module
        setattr(package, name, module)
        exec(compile(text, str(path), "exec"), vars(module))
    tf = package.critic.tf
    tf.config.run_functions_eagerly(True)
    tf.keras.backend.set_floatx("float64")
    samplers = sys.modules["tensorflow_probability.python.internal.samplers"]
    return SimpleNamespace(FBRC=package.fisher_brc.FBRC, tf=tf, samplers=samplers)


class Sampler:
    """The recipe's noise in the place of TensorFlow's."""

    def __init__(self, tf, cloning: bool):
        self.tf, self.cloning = tf, cloning
        self.queue = []

    def normal(self, shape, **_):
        """Return noise of pi, or of all Gaussians of mu, which only the first phase needs."""
        if len(shape) < 4:
            noise = self.queue.pop(0).T  # (act, B)
        elif self.cloning:
            noise = np.broadcast_to(self.queue[1][..., None], shape)
        else:
            noise = np.zeros(shape)
        return self.tf.constant(noise.reshape(shape))

    def categorical(self, logits, *_, **__):
        """Return which Gaussians of mu are chosen: (rows, 1)"""
        gumbel = np.zeros(logits.shape)
        if self.cloning:
            gumbel = -np.log(-np.log(self.queue[0].reshape(logits.shape)))
            self.queue.clear()
        return self.tf.constant(np.argmax(logits.numpy() + gumbel, 1)[:, None])


def places_of(agent) -> dict:
    """Return their variables by the recipe's names. Weights are transposed."""
    networks = {"policy": agent.actor.trunk, "behavior": agent.bc.policy.trunk}
    for i in (1, 2):
        for critic, suffix in ((agent.critic, ""), (agent.critic_target, "_target")):
            networks[f"offset{i}{suffix}"] = (critic.critic1, critic.critic2)[i - 1].main
    found = {}
    for name, network in networks.items():
        for i, variable in enumerate(network.weights):
            found[f"{name}.{('weight', 'bias')[i % 2]}{i // 2}"] = variable
    return found


def run_authors(authors, case: dict, cloning: bool) -> dict:
    """Do their updates."""
    # TF-Agents makes one number of bounds that are alike; mu's five Gaussians would not fit others.
    agent = authors.FBRC(
        SimpleNamespace(shape=(case["obs_dim"],)),
        SimpleNamespace(shape=(case["act_dim"],), minimum=np.float64(-1), maximum=np.float64(1)),
        target_entropy=-case["act_dim"],
        f_reg=case["fisher_weight"],
        reward_bonus=case["reward_bonus"],
    )
    given, places = draw_weights(case, case["seed"]), places_of(agent)
    temperatures = {"log_alpha": agent.log_alpha, "log_tau": agent.bc.log_alpha}
    assert given.keys() == places.keys() | temperatures.keys()
    for name, variable in places.items():
        variable.assign(given[name].T)
    for name, variable in temperatures.items():
        variable.assign(given[name][0])

    def parameters() -> dict:
        found = {name: variable.numpy().T for name, variable in places.items()}
        return found | {
            name: variable.numpy().reshape(1) for name, variable in temperatures.items()
        }

    sampler = Sampler(authors.tf, cloning)
    keys = ("observations", "actions", "rewards", "terminals", "next_observations")
    result = {"losses": {}, "parameters": {}}
    recipe = zip(
        draw_batches(case, case["seed"]), draw_noise(case, case["seed"], cloning), strict=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authors.samplers, "normal", sampler.normal)
        patch.setattr(authors.samplers, "categorical", sampler.categorical)
        for step, (batch, noise) in enumerate(recipe, 1):
            sampler.queue = noise
            rows = batch | {"terminals": 1 - batch["terminals"]}
            batch = iter([[authors.tf.constant(rows[key]) for key in keys]])
            if cloning:
                losses = [agent.bc.update_step(batch)["bc_actor_loss"]]
            else:
                info = agent.update_step(batch)
                losses = [
                    info["critic_loss"],
                    info["actor_loss"],
                    info["q1_grad"] + info["q2_grad"],
                ]
            assert sampler.queue == []
            harness.note(result, step, [loss.numpy() for loss in losses], parameters)
    return result


def record(checkout: Path) -> None:
    """Write the golden file from a checkout of the repository at its commit."""
    results = {}
    for name, case in CASES.items():
        authors = load_authors(checkout, case["hidden"])
        results[name] = {"behavior": run_authors(authors, case, cloning=True)}
        results[name]["train"] = run_authors(authors, case, cloning=False)
    harness.write_golden("fisher_brc", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
