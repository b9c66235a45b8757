"""Parity of algorithms/awr.py with its equations in NumPy, and with RLlib's MARWIL loss.

    python -m pytest tests/parity/test_parity_awr.py
    python -m tests.parity.test_parity_awr RAY_CHECKOUT    # write golden/awr.json anew

The authors' AWR runs under TensorFlow 1 only. So whole iterations are compared with an independent
float64 version: returns, the value's normalizer, normalized advantages, clipped weights, gradients
written out by hand, and the steps of SGD with momentum. golden/awr.json holds losses and weights of
RLlib's compute_loss_for_module in PyTorch, minimised by torch.optim.SGD with momentum.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import awr
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/ray-project/ray"
COMMIT = "234e7bdc42b67b4dbbf8fe4d1fad883841294c2c"
ROWS = 300
LR = {"value": 2e-2, "policy": 1e-3}
STD = 0.4
# fmt: off
CASES = {
    "float64": {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
                "beta": 1.0, "norm_rate": 1e-8, "return_scale": 30.0, "seed": 1},
    "float64, a norm that moves": {"dtype": "float64", "obs_dim": 3, "act_dim": 1, "hidden": 12,
                                   "batch_size": 48, "beta": 0.5, "norm_rate": 0.1,
                                   "return_scale": 10.0, "seed": 2},
}
# fmt: on

# ---- The recipe ----


def dims(case: dict, out: int) -> list[int]:
    return [case["obs_dim"], case["hidden"], case["hidden"] // 2, out]


def draw_weights(case: dict) -> dict:
    """Draw V, whose output is V (1 - gamma), and pi's mean."""
    rng = np.random.default_rng([case["seed"], 0])
    networks = {"value": draw_network(rng, dims(case, 1))}
    networks["policy"] = draw_network(rng, dims(case, case["act_dim"]))
    return networks


def draw_data(case: dict) -> dict:
    """Draw rows in episodes of 10 to 40, of which every second ends in a terminal state."""
    rng = np.random.default_rng([case["seed"], 1])
    data = {"observations": uniform(rng, -1, 1, ROWS, case["obs_dim"])}
    data["next_observations"] = uniform(rng, -1, 1, ROWS, case["obs_dim"])
    data["actions"] = uniform(rng, -1.2, 1.2, ROWS, case["act_dim"])
    data["rewards"] = uniform(rng, -1, 2, ROWS)
    data["returns"] = case["return_scale"] * uniform(rng, -1, 1, ROWS)
    ends = np.minimum(np.cumsum(10 + (30 * rng.random(ROWS)).astype(int)), ROWS) - 1
    data["episode_end"] = np.isin(np.arange(ROWS), ends)
    data["terminals"] = np.isin(np.arange(ROWS), ends[::2])
    data["next_valid"] = np.ones(ROWS)
    return data


def draw_batches(case: dict) -> list[np.ndarray]:
    """Draw the rows of each update."""
    rng = np.random.default_rng([case["seed"], 2])
    return [(rng.random(case["batch_size"]) * ROWS).astype(int) for _ in range(UPDATES)]


# ---- Our code on the recipe ----


class Ours:
    """Our agent, the second of two, with the recipe's weights."""

    def __init__(self, case: dict, **options):
        task = harness.make_task(
            awr, obs_dim=case["obs_dim"], act_dim=case["act_dim"], transitions=ROWS
        )
        args = harness.make_args(
            awr,
            {key: case[key] for key in ("hidden", "batch_size")},
            env="no-env-v0",
            num_seeds=2,
            action_std=STD,
            policy_lr=LR["policy"],
            value_lr=LR["value"],
            **options,
        )
        data = draw_data(case)
        self.columns = awr.prepare_data(args, data, task)
        if options.get("weights") == "marwil":
            # RLlib's networks see observations as they are.
            task.obs_mean = [0.0] * case["obs_dim"]
            task.obs_std = [1.0] * case["obs_dim"]
        self.agent = awr.AWR(args, task, "cpu")
        self.buffer = awr.ReplayBuffer(self.columns, args, torch.device("cpu"))
        for key in self.columns:
            column = torch.as_tensor(np.asarray(self.columns[key], float))
            self.buffer.columns[key] = column
        self.slots = harness.flatten(
            {
                "value": harness.views(self.agent.value_net, 1),
                "policy": harness.views(self.agent.policy.net, 1),
            }
        )
        harness.fill(self.slots, harness.flatten(draw_weights(case)))

    def batch(self, rows: np.ndarray) -> dict:
        """Return the rows for the second agent, others for the first."""
        both = np.stack([(rows + 7) % ROWS, rows])
        return {key: column[both] for key, column in self.buffer.columns.items()}


# ---- AWR in NumPy, from the paper and the authors' equations ----


class Momentum:
    """A network of two hidden layers, V or pi's mean, and its SGD with momentum."""

    def __init__(self, network: dict, lr: float):
        self.network = {name: array.copy() for name, array in network.items()}
        self.velocity = {name: np.zeros_like(array) for name, array in network.items()}
        self.lr = lr

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the output (B, out), and keep what backward() needs."""
        self.inputs = []
        for i in range(3):
            self.inputs.append(x)
            x = x @ self.network[f"weight{i}"].T + self.network[f"bias{i}"]
            if i < 2:
                x = np.where(x > 0, x, 0)
        return x

    def step(self, slope: np.ndarray) -> None:
        """Descend, given the derivative (B, out) of the loss by the output."""
        gradients = {}
        for i in (2, 1, 0):
            gradients[f"weight{i}"] = slope.T @ self.inputs[i]
            gradients[f"bias{i}"] = slope.sum(0)
            slope = np.where(self.inputs[i] > 0, slope @ self.network[f"weight{i}"], 0)
        for name, gradient in gradients.items():
            self.velocity[name] = 0.9 * self.velocity[name] + gradient
            self.network[name] = self.network[name] - self.lr * self.velocity[name]


class NumpyAWR:
    """One agent on all rows of a dataset."""

    def __init__(self, case: dict, options: dict):
        networks = draw_weights(case)
        self.value_net = Momentum(networks["value"], LR["value"])
        self.policy = Momentum(networks["policy"], LR["policy"])
        self.data = draw_data(case)
        self.options = options
        states = self.data["observations"]
        mean, std = states.mean(0), np.maximum(states.std(0), 0.01)
        self.s = (states - mean) / std
        self.s2 = (self.data["next_observations"] - mean) / std

    def value(self, s: np.ndarray) -> np.ndarray:
        """The value's normalizer has the deviation 1 / (1 - gamma)."""
        return self.value_net.forward(s)[:, 0] / (1 - self.options["discount"])

    def estimate(self) -> None:
        """R by TD(lambda), backwards through each episode."""
        gamma, mix = self.options["discount"], self.options["td_lambda"]
        next_values = np.where(self.data["terminals"], 0, self.value(self.s2))
        self.returns = np.zeros(ROWS)
        for t in reversed(range(ROWS)):
            if self.data["episode_end"][t]:
                future = next_values[t]
            else:
                future = (1 - mix) * next_values[t] + mix * self.returns[t + 1]
            self.returns[t] = self.data["rewards"][t] + gamma * future

    def weigh(self) -> None:
        """Weights of all rows, as the authors compute them before pi's updates."""
        baseline = 0 if self.options["weights"] == "return" else self.value(self.s)
        advantage = self.returns - baseline
        if self.options["advantage"] == "normalized":
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
        self.weights = np.exp(advantage / self.options["beta"])
        if self.options["weight_clip"]:
            self.weights = np.minimum(self.weights, self.options["weight_clip"])

    def update_value(self, rows: np.ndarray) -> float:
        scale = 1 - self.options["discount"]
        error = self.value_net.forward(self.s[rows]) - scale * self.returns[rows, None]
        self.value_net.step(error / len(rows))
        return 0.5 * (error**2).mean()

    def update_policy(self, rows: np.ndarray) -> float:
        a, w = self.data["actions"][rows], self.weights[rows, None]
        mean = self.policy.forward(self.s[rows])
        beyond = np.sign(mean) * np.maximum(abs(mean) - 1, 0)
        self.policy.step((w * (mean - a) / STD**2 + 10 * beyond) / len(rows))
        log_pi = -((a - mean) ** 2) / (2 * STD**2) - np.log(STD) - np.log(2 * np.pi) / 2
        return (-w * log_pi + 5 * beyond**2).sum(1).mean()


# fmt: off
OPTIONS = {
    "AWR": {},
    "raw advantages": {"advantage": "raw", "beta": 5.0},
    "RWR by Monte Carlo": {"weights": "return", "td_lambda": 1.0},
    "no clip": {"weight_clip": 0.0},
}
# fmt: on
DEFAULTS = {"weights": "exp", "advantage": "normalized", "beta": 1.0, "weight_clip": 1.5}
DEFAULTS |= {"td_lambda": 0.95, "discount": 0.9}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPTIONS)
def test_iterations_are_those_of_the_equations_in_numpy(name, case):
    """Two iterations, the first with 12 updates of V and of pi, the second with 13."""
    case, options = CASES[case], DEFAULTS | OPTIONS[name]
    with harness.default_dtype(case):
        ours = Ours(case, **options)
        theirs = NumpyAWR(case, options)
        agent, batches = ours.agent, iter(draw_batches(case))
        for iteration in range(2):
            agent.estimate_returns(ours.buffer)
            theirs.estimate()
            for _ in range(12 + iteration):
                rows = next(batches)
                loss = agent.update_value(ours.batch(rows))["loss/value"][1].item()
                assert loss == pytest.approx(theirs.update_value(rows), rel=1e-9)
            agent.estimate_advantages(ours.buffer)
            theirs.estimate()
            theirs.weigh()
            np.testing.assert_allclose(agent.returns[1], theirs.returns, rtol=1e-9)
            for _ in range(12 + iteration):
                rows = next(batches)
                loss = agent.update_policy(ours.batch(rows))["loss/policy"][1].item()
                assert loss == pytest.approx(theirs.update_policy(rows), rel=1e-9)
        assert list(batches) == []
        networks = {"value": theirs.value_net.network, "policy": theirs.policy.network}
        for slot, array in harness.flatten(networks).items():
            np.testing.assert_allclose(ours.slots[slot], array, rtol=0, atol=1e-9)
    if options["weight_clip"]:
        assert (theirs.weights == 1.5).any() and (theirs.weights < 1.5).any()


# ---- RLlib's MARWIL ----


def run_ours(case: dict) -> dict:
    """Do our updates. RLlib trains V and pi at once, so pi's comes first, which leaves V alone."""
    with harness.default_dtype(case):
        options = {"weights": "marwil", "weight_clip": 0.0, "beta": 1 / case["beta"]}
        ours = Ours(case, discount=0.0, norm_rate=case["norm_rate"], **options)
        ours.agent.returns[:] = torch.tensor(draw_data(case)["returns"])
        assert abs(ours.agent.act(ours.buffer.columns["observations"].expand(2, -1, -1))).max() < 1

        def update(batch: dict) -> dict:
            statistics = ours.agent.update_policy(batch) | ours.agent.update_value(batch)
            return statistics | {"norm": ours.agent.marwil_norm.squeeze(1)}

        return harness.run_updates(
            [update],
            [ours.batch(rows) for rows in draw_batches(case)],
            [[]] * UPDATES,
            ("loss/policy", "loss/value", "norm"),
            lambda: ours.slots,
        )


@pytest.mark.parametrize("name", CASES)
def test_updates_with_marwils_weights_are_rllibs(name):
    golden = harness.load_golden("awr", CASES)
    ours = run_ours(CASES[name])
    tolerance = TOLERANCE[CASES[name]["dtype"]]
    assert harness.differences(ours, golden["results"][name], tolerance) == []


class StandIn(types.ModuleType):
    """A module in which every name is a class, as the loss needs its imports only as names."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def load_rllib(checkout: Path):
    """Return RLlib's learner, with stand-ins for the rest of Ray."""
    path = checkout / "rllib/algorithms/marwil/torch/marwil_torch_learner.py"
    for line in path.read_text().splitlines():
        if line.startswith("from ray."):
            name = line.split()[1]
            sys.modules[name] = StandIn(name)
    columns = ("LOSS_MASK", "ACTION_DIST_INPUTS", "ACTIONS", "EMBEDDINGS", "VALUE_TARGETS")
    keys = type("Columns", (), {key: key for key in columns})
    sys.modules["ray.rllib.core.columns"].Columns = keys
    sys.modules["ray.rllib.evaluation.postprocessing"].Postprocessing = keys
    framework = sys.modules["ray.rllib.utils.framework"]
    framework.try_import_torch = lambda: [torch, torch.nn]
    sys.modules["ray.rllib.utils.torch_utils"].explained_variance = lambda *_: None
    spec = importlib.util.spec_from_file_location("rllib_marwil", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MARWILTorchLearner


class Normal:
    """pi, in the place of RLlib's distributions."""

    @classmethod
    def from_logits(cls, mean):
        pi = cls()
        pi.normal = torch.distributions.Normal(mean, STD)
        return pi

    def logp(self, action):
        return self.normal.log_prob(action).sum(-1)


class Module:
    """Separate networks of V and pi, in the place of an RLModule."""

    def __init__(self, case: dict):
        self.nets = {}
        for name, tensors in draw_weights(case).items():
            layers = []
            for i in range(3):
                out, fan_in = tensors[f"weight{i}"].shape
                layers += [torch.nn.Linear(fan_in, out), torch.nn.ReLU()]
                layers[-2].weight.data.copy_(torch.tensor(tensors[f"weight{i}"]))
                layers[-2].bias.data.copy_(torch.tensor(tensors[f"bias{i}"]))
            self.nets[name] = torch.nn.Sequential(*layers[:-1])

    def unwrapped(self):
        return self

    def get_train_action_dist_cls(self):
        return Normal

    def compute_values(self, batch: dict, embeddings):
        return self.nets["value"](batch["observations"]).squeeze(-1)

    def parameters(self) -> dict:
        found = {}
        for name, net in self.nets.items():
            for i in range(3):
                found[f"{name}.weight{i}"] = net[2 * i].weight
                found[f"{name}.bias{i}"] = net[2 * i].bias
        return found


class Metrics:
    """Keeps what the loss reports."""

    def log_dict(self, values: dict, **_):
        self.values = list(values.values())


def run_rllib(learner_class, case: dict) -> dict:
    """Minimise RLlib's loss."""
    module, data = Module(case), draw_data(case)
    learner = learner_class()
    learner.module = {"m": module}
    learner.metrics = Metrics()
    learner.moving_avg_sqd_adv_norms_per_module = {"m": torch.tensor(100.0)}
    config = types.SimpleNamespace(beta=case["beta"], vf_coeff=1.0, bc_logstd_coeff=0.0)
    config.moving_average_sqd_adv_norm_update_rate = case["norm_rate"]
    groups = [{"params": module.nets[k].parameters(), "lr": LR[k]} for k in ("value", "policy")]
    sgd = torch.optim.SGD(groups, momentum=0.9)
    result = {"losses": {}, "parameters": {}}
    for step, rows in enumerate(draw_batches(case), 1):
        batch = {key: torch.tensor(data[key][rows]) for key in ("observations", "actions")}
        batch["ACTIONS"] = batch["actions"]
        batch["VALUE_TARGETS"] = torch.tensor(data["returns"][rows])
        forward = {"ACTION_DIST_INPUTS": module.nets["policy"](batch["observations"])}
        loss = learner.compute_loss_for_module(
            module_id="m", config=config, batch=batch, fwd_out=forward
        )
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        policy_loss, value_loss, _, norm = learner.metrics.values
        losses = [policy_loss.item(), value_loss.item(), norm.item()]
        harness.note(result, step, losses, module.parameters)
    return result


def record(checkout: Path) -> None:
    """Write golden/awr.json from a checkout of Ray at COMMIT."""
    learner_class = load_rllib(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_rllib(learner_class, case)
    harness.write_golden("awr", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
