"""Parity of algorithms/brac.py with the authors' TensorFlow code, as D4RL's evaluations have it.

    python -m pytest tests/parity/test_parity_brac.py
    TF_USE_LEGACY_KERAS=1 python -m tests.parity.test_parity_brac D4RL_EVALUATIONS_CHECKOUT

The command writes golden/brac.json anew. It needs tensorflow, tf_keras and tensorflow-probability.
The authors' text is adapted to their present versions, and computes in float64. Adam is PyTorch's,
because that of Keras counts its epsilon in another way. All three steps of c see one batch, and the
targets move at the end of an update, which for them is the beginning of the next.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import brac
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/rail-berkeley/d4rl_evaluations"
COMMIT = "c93b9d2bf443cd5b8c43542fca9937dc50e630c3"
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "policy_hidden": 12,
         "batch_size": 64, "num_samples": 4, "warmup_updates": 20, "dual_steps": 1, "lr": 1e-3,
         "policy_lr": 3e-4, "alpha_lr": 1e-3, "behavior_lr": 5e-4, "target_divergence": -1.0}
CASES = {
    "kl": {**SMALL, "divergence": "kl", "penalty": "v", "alpha": 0.7, "seed": 1},
    "kl_dual": {**SMALL, "divergence": "kl_dual", "penalty": "v", "alpha": 0.7, "dual_steps": 3,
                "seed": 3},
    "mmd, pi pays, a bound": {**SMALL, "divergence": "mmd", "penalty": "p", "alpha": 3.0,
                              "target_divergence": 0.01, "seed": 5},
}
# fmt: on
MODELLED = "kl"  # the case that trains b, too

# ---- The recipe ----


def is_dual(case: dict) -> bool:
    return case["divergence"] == "kl_dual"


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Targets are drawn apart: a mix-up with them must show."""
    rng = np.random.default_rng([seed, 0])
    obs, act = case["obs_dim"], case["act_dim"]
    wide, narrow = [case["hidden"]] * 2, [case["policy_hidden"]] * 2
    weights = {"policy": draw_network(rng, [obs, *narrow, 2 * act])}
    for name in ("q1", "q2", "q1_target", "q2_target"):
        weights[name] = draw_network(rng, [obs + act, *wide, 1])
    if is_dual(case):
        weights["dual_critic"] = draw_network(rng, [obs + act, *wide, 1])
        weights["dual_critic"]["weight2"] *= 8  # so that the slope exceeds 1 in some rows
    else:
        weights["behavior"] = draw_network(rng, [obs, *narrow, 2 * act])
    return harness.flatten(weights) | {"alpha": np.array([case["alpha"]])}


def order_of_noise(case: dict) -> list[tuple[str, tuple]]:
    """Return the names and shapes of what an update draws."""
    size, count, act = case["batch_size"], case["num_samples"], case["act_dim"]
    action = [("action", (size, 1, act))]
    estimate = [("pi", (size, count, act)), ("b", (size, count, act))]
    if is_dual(case):
        estimate = []
    order = [*action]
    if case["penalty"] == "v":
        order += estimate
    order += action + estimate
    if is_dual(case):
        order += (action + [("place", (size, 1))]) * case["dual_steps"]
    if case["target_divergence"] >= 0:
        order += [("action of the bound", (size, 1, act)), *estimate]
    return order


def draw_batches(case: dict, seed: int) -> tuple[list[dict], list[list]]:
    """Draw a batch and the noise, (name, array) each, of every update."""
    rng, size, act = np.random.default_rng([seed, 1]), case["batch_size"], case["act_dim"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, case["obs_dim"])
        batch = {"observations": obs, "actions": uniform(rng, -1, 1, size, act)}
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, case["obs_dim"])
        batch["next_actions"] = uniform(rng, -1, 1, size, act)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        low = {"place": 0}
        order = order_of_noise(case)
        noise.append([(name, uniform(rng, low.get(name, -1), 1, *shape)) for name, shape in order])
    return batches, noise


def draw_cloning_noise(case: dict, seed: int) -> list[list[np.ndarray]]:
    """Draw the noise of b's updates, which see the same batches."""
    rng, shape = np.random.default_rng([seed, 2]), (case["batch_size"], 1, case["act_dim"])
    return [[uniform(rng, -1.5, 1.5, *shape) for _ in range(2)] for _ in range(UPDATES)]


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout."""
    found = {"policy": harness.views(agent.policy.net, n)}
    found["q1"], found["q2"] = harness.twin_views(agent.critic, n)
    found["q1_target"], found["q2_target"] = harness.twin_views(agent.critic_target, n)
    if agent.args.divergence == "kl_dual":
        found["dual_critic"] = harness.views(agent.dual_critic.net, n)
    else:
        found["behavior"] = harness.views(agent.behavior.net, n)
    return harness.flatten(found) | {"alpha": agent.alpha.data[n : n + 1]}


def b_slots(agent, n: int) -> dict:
    found = harness.flatten({"behavior": harness.views(agent.behavior.net, n)})
    return found | {"temperature": agent.temperature.data[n : n + 1]}


def make_agent(case: dict, seeds: list[int]):
    """Return agents with the recipe's weights."""
    args = harness.make_args(brac, case, num_seeds=len(seeds))
    task = harness.make_task(brac, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
    agent = brac.BRAC(args, task, "cpu")
    for n, seed in enumerate(seeds):
        harness.fill(slots(agent, n), draw_weights(case, seed))
    return agent


def stacked(parts: list[list[list[np.ndarray]]]) -> list[list[torch.Tensor]]:
    """Join the noise of all agents: for every update a list of tensors (N, ...)."""
    return [
        [torch.as_tensor(np.stack(arrays)) for arrays in zip(*updates, strict=True)]
        for updates in zip(*parts, strict=True)
    ]


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    skipped = "b" if case["divergence"] == "kl" else ""  # Eq. 4 needs no samples of b
    losses = ["loss/critic", "loss/policy"]
    if is_dual(case):
        losses.append("loss/dual_critic")
    with harness.default_dtype(case), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda like: torch.randn_like(like))
        agent = make_agent(case, seeds)
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(batches[k] for batches, _ in drawn) for k in range(UPDATES)]
        noise = [
            [[array for name, array in update if name != skipped] for update in updates]
            for _, updates in drawn
        ]
        last = len(seeds) - 1
        view = {"losses": tuple(losses), "slots": lambda: slots(agent, last)}
        return harness.run_updates([agent.update], batches, stacked(noise), **view)


def clone_ours(case: dict) -> dict:
    """Train b on the recipe."""
    with harness.default_dtype(case):
        agent = make_agent(case, [case["seed"]])
        batches, _ = draw_batches(case, case["seed"])
        return harness.run_updates(
            [agent.update_behavior],
            [harness.stack([batch]) for batch in batches],
            stacked([draw_cloning_noise(case, case["seed"])]),
            ("loss/behavior",),
            lambda: b_slots(agent, 0),
        )


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("brac", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case, expected = CASES[name], golden[name]["train"]
    assert len(expected["losses"]["1"]) == (3 if is_dual(case) else 2)
    ours = run_ours(case, [case["seed"]])
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


def test_updates_of_the_behaviour_model_are_the_authors(golden):
    case = CASES[MODELLED]
    expected = golden[MODELLED]["behavior"]
    assert harness.differences(clone_ours(case), expected, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", CASES)
def test_an_agent_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden[name]["train"], TOLERANCE[case["dtype"]]) == []


# ---- The authors' code on the recipe ----

PACKAGE = "behavior_regularized_offline_rl.brac"
# In the order in which they import each other
MODULES = ("utils", "networks", "policies", "divergences", "agent", "bc_agent")
MODULES += ("brac_primal_agent", "brac_dual_agent")
# What later versions of the libraries ask for. Their unit Gaussian took the shape of the batch by
# arguments that are gone.
ADAPTED = [
    ("tf.float32", "tf.float64"),
    ("tf.random.uniform([batch_size])", "tf.random.uniform([batch_size], dtype=tf.float64)"),
    ("tf.Variable(1.0)", "tf.Variable(1.0, dtype=tf.float64)"),
    ("tfd.Normal(loc=0.0, scale=1.0)", "unit_gaussian(mean)"),
    ("tfp.bijectors.AffineScalar(", "affine("),
    ("        event_shape=[mean.shape[-1]],\n        batch_shape=[mean.shape[0]])", "        )"),
    # The gradients by the bounds, which nobody asks for
    ("(1.0 - if_y_pos) * if_x_l_high) * dy", "(1.0 - if_y_pos) * if_x_l_high) * dy, None, None"),
]


class PyTorchsAdam:
    """torch.optim.Adam in TensorFlow."""

    def __init__(self, lr: float):
        self.lr, self.steps, self.means = lr, 0, {}

    def apply_gradients(self, pairs) -> None:
        self.steps += 1
        for gradient, variable in pairs:
            first, second = self.means.get(id(variable), (0.0, 0.0))
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            self.means[id(variable)] = first, second
            root = (second / (1 - 0.999**self.steps)) ** 0.5 + 1e-8
            variable.assign_sub(self.lr / (1 - 0.9**self.steps) * first / root)


def load_authors(checkout: Path) -> SimpleNamespace:
    """Return their modules, TensorFlow and its samplers."""
    sys.modules["gin"] = SimpleNamespace(configurable=lambda target: target)
    for name in ("tf_agents", "tf_agents.specs"):
        sys.modules[name] = mock.MagicMock()
    folder = checkout / "brac" / Path(*PACKAGE.split("."))
    parent = ModuleType(PACKAGE)
    sys.modules |= {PACKAGE.split(".")[0]: ModuleType(PACKAGE.split(".")[0]), PACKAGE: parent}
    for name in MODULES:
        text = (folder / f"{name}.py").read_text()
        for old, new in ADAPTED:
            text = text.replace(old, new)
        module = ModuleType(f"{PACKAGE}.{name}")
        sys.modules[module.__name__] = module
        setattr(parent, name, module)
        exec(compile(text, str(folder / f"{name}.py"), "exec"), vars(module))
    tf, tfp = parent.networks.tf, parent.networks.tfp
    tf.enable_v2_behavior()
    tf.config.run_functions_eagerly(True)
    tf.keras.backend.set_floatx("float64")

    def affine(shift, scale):
        return tfp.bijectors.Shift(shift)(tfp.bijectors.Scale(scale))

    def unit_gaussian(mean):
        normal = tfp.distributions.Normal(tf.zeros_like(mean), tf.ones_like(mean))
        return tfp.distributions.Independent(normal, 1)

    parent.networks.affine, parent.networks.unit_gaussian = affine, unit_gaussian
    parent.utils.get_optimizer = lambda _: PyTorchsAdam
    samplers = sys.modules["tensorflow_probability.python.internal.samplers"]
    return SimpleNamespace(modules=parent, tf=tf, samplers=samplers)


def their_batch(tf, batch: dict) -> dict:
    names = {"s1": "observations", "a1": "actions", "s2": "next_observations"}
    names |= {"a2": "next_actions", "r": "rewards"}
    found = {name: tf.constant(batch[key]) for name, key in names.items()}
    return found | {"dsc": tf.constant(1 - batch["terminals"])}


def build(authors, case: dict, cloning: bool):
    """Return one of their agents. Its first batch, which sets up the layers, is of no account."""
    batch = draw_batches(case, 0)[0][0]
    rows = their_batch(authors.tf, batch)
    rows |= {"reward": rows["r"], "discount": rows["dsc"]}
    bound = np.ones(case["act_dim"])
    spec = SimpleNamespace(shape=bound.shape, minimum=-bound, maximum=bound)
    wide, narrow = (case["hidden"],) * 2, (case["policy_hidden"],) * 2
    name, shapes = "brac_primal_agent", ((wide, narrow), 2)
    rates = [case["lr"], case["policy_lr"], case["alpha_lr"]]
    if is_dual(case):
        name, shapes = "brac_dual_agent", ((wide, narrow, wide), 2)
        rates.insert(2, case["lr"])
    options = {
        "alpha": case["alpha"],
        "train_alpha": case["target_divergence"] >= 0,
        "target_divergence": case["target_divergence"],
        "value_penalty": case["penalty"] == "v",
        "divergence_name": case["divergence"].removesuffix("_dual"),
        "warm_start": case["warmup_updates"],
    }
    if cloning:
        name, shapes, rates, options = "bc_agent", (narrow,), [case["behavior_lr"]], {}
    module = getattr(authors.modules, name)
    data = SimpleNamespace(size=1, get_batch=lambda _: SimpleNamespace(**rows))
    agent = module.Agent(
        action_spec=spec,
        modules=module.get_modules(shapes, spec),
        optimizers=[("adam", rate) for rate in rates],
        update_freq=10**9,  # the recipe moves the targets itself
        train_data=data,
        **options,
    )
    agent._global_step.assign(1)
    return agent


def networks_of(agent, case: dict, cloning: bool) -> dict:
    module = agent._agent_module
    if cloning:
        return {"behavior": module.p_net}
    found = {"policy": module.p_net}
    for i, (source, target) in enumerate(module.q_nets, 1):
        found |= {f"q{i}": source, f"q{i}_target": target}
    if is_dual(case):
        return found | {"dual_critic": module.c_net}
    return found | {"behavior": module.b_net}


def places_of(networks: dict) -> dict:
    """Return their variables by the recipe's names. Weights are transposed."""
    found = {}
    for name, network in networks.items():
        for i, layer in enumerate(network._layers):
            found |= {f"{name}.weight{i}": layer.kernel, f"{name}.bias{i}": layer.bias}
    return found


class Recorder:
    """One of their agents on the recipe."""

    def __init__(self, authors, case: dict, cloning: bool):
        self.authors, self.case, self.cloning = authors, case, cloning
        self.agent = build(authors, case, cloning)
        self.places = places_of(networks_of(self.agent, case, cloning))
        module = self.agent._agent_module
        self.multiplier = module.ae_variables[0] if cloning else module._alpha_var
        self.queue = []

    def normal(self, shape, **_):
        """Return the next noise, for which they have the samples first."""
        return self.authors.tf.constant(self.queue.pop(0).swapaxes(0, 1).reshape(shape))

    def uniform(self, shape, **_):
        return self.authors.tf.constant(self.queue.pop(0).reshape(shape))

    def update(self, batch: dict) -> list[float]:
        """Do an update. Return the losses."""
        agent, batch = self.agent, their_batch(self.authors.tf, batch)
        info = agent._optimize_step(batch)
        losses = [info[name].numpy() for name in ("q_loss", "p_loss") if name in info]
        if is_dual(self.case):
            for _ in range(self.case["dual_steps"] - 1):
                info = agent._extra_c_step(batch)
            losses.append(info["c_loss"].numpy())
        if not self.cloning:
            agent._update_target_fns(*agent._get_source_target_vars())
        agent._global_step.assign_add(1)
        return losses

    def parameters(self) -> dict:
        found = {name: variable.numpy().T for name, variable in self.places.items()}
        # Their variable can lie beyond the bound that its use puts to it.
        bounded = np.maximum(self.multiplier.numpy(), 0).reshape(1)
        return found | {"temperature" if self.cloning else "alpha": bounded}


def run_authors(authors, case: dict, cloning: bool) -> dict:
    """Do their updates."""
    recorder = Recorder(authors, case, cloning)
    given = draw_weights(case, case["seed"])
    for name, variable in recorder.places.items():
        variable.assign(given[name].T)
    batches, noise = draw_batches(case, case["seed"])
    if cloning:
        noise = [[("action", x) for x in parts] for parts in draw_cloning_noise(case, case["seed"])]
    result = {"losses": {}, "parameters": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authors.samplers, "normal", recorder.normal)
        patch.setattr(authors.tf.random, "uniform", recorder.uniform)
        for step in range(UPDATES):
            # Their estimates by a model draw no action for the bound.
            unused = "" if is_dual(case) else "action of the bound"
            recorder.queue = [array for name, array in noise[step] if name != unused]
            losses = recorder.update(batches[step])
            assert recorder.queue == []
            harness.note(result, step + 1, losses, recorder.parameters)
    return result


def record(checkout: Path) -> None:
    """Write the golden file from a checkout of the repository at its commit."""
    authors = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        results[name] = {"train": run_authors(authors, case, cloning=False)}
        if name == MODELLED:
            results[name]["behavior"] = run_authors(authors, case, cloning=True)
    harness.write_golden("brac", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
