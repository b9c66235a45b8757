"""Parity of algorithms/onestep.py with the authors' public code, through all phases of a run.

python -m pytest tests/parity/test_parity_onestep.py
python -m tests.parity.test_parity_onestep AUTHORS_CHECKOUT    # write golden/onestep.json anew
"""

import functools
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import onestep
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, draw_network, uniform

REPOSITORY = "https://github.com/davidbrandfonbrener/onestep-rl"
COMMIT = "99994433b7706e6f2851d70fa25186dea9b6d34f"
SNAPSHOTS = (1, 2, 50)  # their Q' moves in every second update
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "batch_size": 64,
         "lr": 1e-3, "num_samples": 10}
FULL = {"dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256, "batch_size": 64,
        "lr": 1e-4, "num_samples": 10}
CASES = {
    "exp": {**SMALL, "improvement": "exp", "tau": 6.0, "seed": 1},
    "rkl": {**SMALL, "improvement": "rkl", "alpha": 0.3, "seed": 2},
    "easy_bcq": {**SMALL, "improvement": "easy_bcq", "num_samples": 7, "seed": 3},
    "full width": {**FULL, "improvement": "rkl", "alpha": 1.0, "seed": 4},
}
# fmt: on
PHASES = {"exp": ("behavior", "critic", "policy"), "easy_bcq": ("behavior", "critic")}
PHASES["rkl"] = PHASES["exp"]

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the networks of one agent. Q' is drawn apart, and Q large: exp in (3) is to be cut."""
    rng, hidden = np.random.default_rng([seed, 0]), [case["hidden"]] * 2
    obs_dim, act_dim = case["obs_dim"], case["act_dim"]
    weights = {"behavior": draw_network(rng, [obs_dim, *hidden, 2 * act_dim])}
    for name in ("critic", "critic_target"):
        weights[name] = draw_network(rng, [obs_dim + act_dim, *hidden, 1])
        weights[name]["weight2"] *= 12
    return weights


def draw_batches(case: dict, seed: int, phase: str) -> tuple[list[dict], list[list]]:
    """Draw a batch and noise for each update of a phase. Some actions lie on the bounds."""
    number = ("behavior", "critic", "policy", "act").index(phase)
    rng = np.random.default_rng([seed, 1 + number])
    size, obs_dim, act_dim = case["batch_size"], case["obs_dim"], case["act_dim"]
    batches, noise = [], []
    for _ in range(UPDATES):
        obs = uniform(rng, -2, 2, size, obs_dim)
        batch = {"observations": obs}
        batch["actions"] = uniform(rng, -1.1, 1.1, size, act_dim).clip(-1, 1)
        batch["next_observations"] = obs + uniform(rng, -0.5, 0.5, size, obs_dim)
        batch["next_actions"] = uniform(rng, -1, 1, size, act_dim)
        batch["rewards"] = uniform(rng, -1, 3, size)
        batch["terminals"] = (rng.random(size) < 0.1).astype(float)
        batches.append(batch)
        numbers = []
        if phase == "policy" and case["improvement"] == "rkl":
            numbers.append(uniform(rng, -2, 2, size, act_dim))
        if phase in ("policy", "act"):
            numbers.append(uniform(rng, -2, 2, case["num_samples"], size, act_dim))
        noise.append(numbers)
    return batches, noise


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the recipe's layout. beta's shape is pi's, too."""
    found = {}
    for name in ("behavior", "critic", "critic_target", "policy"):
        network = getattr(agent, name)
        if network is not None:
            found[name] = harness.views(network.net, n)
    return harness.flatten(found)


def our_noise(parts: list[np.ndarray]) -> torch.Tensor:
    """Return the noise of all agents: (B, act) or (samples, B, act) each -> (N, rows, act)."""
    rows = []
    for part in parts:
        if part.ndim == 3:
            part = part.swapaxes(0, 1).reshape(-1, part.shape[-1])
        rows.append(part)
    return torch.as_tensor(np.stack(rows))


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(onestep, case, num_seeds=len(seeds))
        task = harness.make_task(onestep, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
        agent = onestep.OneStep(args, task, "cpu")
        for n, seed in enumerate(seeds):
            weights = harness.flatten(draw_weights(case, seed))
            views = slots(agent, n)
            harness.fill({name: views[name] for name in weights}, weights)
        result = {}
        names = PHASES[case["improvement"]]
        for name, phase in zip(names, agent.phases, strict=True):
            drawn = [draw_batches(case, seed, name) for seed in seeds]
            batches, noise = [], []
            for step in range(UPDATES):
                batches.append(harness.stack([given[step] for given, _ in drawn]))
                parts = zip(*[given[step] for _, given in drawn], strict=True)
                noise.append([our_noise(part) for part in parts])
            views = functools.partial(slots, agent, len(seeds) - 1)
            result[name] = harness.run_updates(
                phase.updates, batches, noise, (f"loss/{name}",), views, SNAPSHOTS
            )
        if case["improvement"] == "easy_bcq":
            drawn = [draw_batches(case, seed, "act") for seed in seeds]
            obs = harness.stack([batches[0] for batches, _ in drawn])["observations"]
            numbers = our_noise([noise[0][0] for _, noise in drawn])
            with harness.fed_noise([numbers]), torch.no_grad():
                result["actions"] = harness.shorten(agent.act(obs)[-1].flatten().tolist())
        return result


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("onestep", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert golden[name].keys() >= set(PHASES[case["improvement"]])
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", ["exp", "rkl", "easy_bcq"])
def test_an_agent_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden[name], TOLERANCE["float64"]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path) -> SimpleNamespace:
    """Return their modules of learners. They would turn float64 into float32."""
    sys.path.insert(0, str(checkout))
    names = ("utils", "policy_learner", "q_learner", "baseline_learner")
    modules = {name: importlib.import_module(name) for name in names}
    modules["utils"].torch_single_precision = lambda x: x
    return SimpleNamespace(**modules)


def network_of(net) -> dict:
    """Return the weights of their MLP in the recipe's layout."""
    linear = [layer for layer in net.net.net if isinstance(layer, torch.nn.Linear)]
    found = {}
    for i, layer in enumerate(linear):
        found |= {f"weight{i}": layer.weight.data, f"bias{i}": layer.bias.data}
    return found


class Replay:
    """A replay buffer that gives the recipe's batches one after another."""

    def __init__(self, batches: list[dict], dtype):
        self.batches = iter(batches)
        self.dtype = dtype

    def sample(self, _):
        batch = next(self.batches)
        columns = {key: torch.as_tensor(batch[key]).to(self.dtype) for key in batch}
        transitions = SimpleNamespace(
            s=columns["observations"],
            a=columns["actions"],
            r=columns["rewards"].unsqueeze(1),
            sp=columns["next_observations"],
            ap=columns["next_actions"],
            d=columns["terminals"].unsqueeze(1),
        )
        transitions.to_device = lambda _: transitions
        return transitions


def build_authors(modules: SimpleNamespace, case: dict) -> SimpleNamespace:
    """Return their learners with the recipe's weights. Sizes are those of config/."""
    sizes = {"state_dim": case["obs_dim"], "action_dim": case["act_dim"], "width": case["hidden"]}
    sizes |= {"lr": case["lr"], "batch_size": case["batch_size"]}
    learners = modules.policy_learner
    improvement = case["improvement"]
    if improvement == "exp":
        pi = learners.ExpWeightLearner(temp=case["tau"], **sizes)
    elif improvement == "rkl":
        pi = learners.ReverseKLRegLearner(case["alpha"], case["num_samples"], **sizes)
    else:
        pi = learners.EasyBCQLearner(case["num_samples"], **sizes)
    agent = SimpleNamespace(
        beta=learners.BCLearner(logger_type="beta", dist_type="normal", **sizes),
        q=modules.q_learner.SarsaLearner(discount=0.99, **sizes),
        baseline=modules.baseline_learner.SampledValueBaseline("cpu", case["num_samples"]),
        pi=pi,
    )
    weights = draw_weights(case, case["seed"])
    harness.fill(network_of(agent.beta.pinet), weights["behavior"])
    harness.fill(network_of(agent.q.qnet), weights["critic"])
    harness.fill(network_of(agent.q.target_qnet), weights["critic_target"])
    silent = SimpleNamespace(update=lambda *_: None)
    for learner in vars(agent).values():
        learner.set_logger(silent)
    return agent


def authors_parameters(agent: SimpleNamespace) -> dict:
    """Return the weights of their learners by the recipe's names."""
    networks = {"behavior": network_of(agent.beta.pinet), "critic": network_of(agent.q.qnet)}
    networks["critic_target"] = network_of(agent.q.target_qnet)
    if agent.copied:
        networks["policy"] = network_of(agent.pi.pinet)
    return harness.flatten(networks)


def fed_samples(patch, numbers: list[np.ndarray], dtype) -> None:
    """Let their Gaussians sample with this noise. What they only log is sampled with none."""
    queue = [torch.as_tensor(part).to(dtype) for part in numbers]

    def sample(distribution, sample_shape=()):
        if not queue:
            return distribution.loc
        return distribution.loc + distribution.scale * queue.pop(0)

    patch.setattr(torch.distributions.Normal, "rsample", sample)
    patch.setattr(torch.distributions.Normal, "sample", sample)


def run_authors(modules: SimpleNamespace, case: dict) -> dict:
    """Do their updates in the order of train.py."""
    dtype = torch.get_default_dtype()
    agent = build_authors(modules, case)
    agent.copied = False
    steps = {
        "behavior": lambda replay: agent.beta.train_step(replay, None, None, None),
        "critic": lambda replay: agent.q.train_step(replay, agent.pi, agent.beta),
        "policy": lambda replay: agent.pi.train_step(replay, agent.q, agent.baseline, agent.beta),
    }
    result = {}
    for name in PHASES[case["improvement"]]:
        batches, noise = draw_batches(case, case["seed"], name)
        replay = Replay(batches, dtype)
        result[name] = {"losses": {}, "parameters": {}}
        for step in range(UPDATES):
            with pytest.MonkeyPatch.context() as patch:
                fed_samples(patch, noise[step], dtype)
                loss = steps[name](replay)
            parameters = functools.partial(authors_parameters, agent)
            harness.note(result[name], step + 1, [loss], parameters, SNAPSHOTS)
        if name == "behavior" and case["improvement"] != "easy_bcq":
            agent.pi.load_from_pilearner(agent.beta)
            agent.copied = True
    if case["improvement"] == "easy_bcq":
        agent.pi.update_beta(agent.beta)
        agent.pi.update_q(agent.q)
        batches, noise = draw_batches(case, case["seed"], "act")
        obs = torch.as_tensor(batches[0]["observations"])
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            # Their rows are samples of all states in turn.
            fed_samples(patch, [noise[0][0].reshape(-1, case["act_dim"])], dtype)
            actions = agent.pi.act(obs.to(dtype), batch=True)
        result["actions"] = harness.shorten(actions.flatten().tolist())
    return result


def record(checkout: Path) -> None:
    """Write golden/onestep.json from a checkout of the authors' repository at COMMIT."""
    modules = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(modules, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("onestep", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
