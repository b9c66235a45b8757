"""Tests of algorithms/spot.py: parity with the authors' code, known answers, seeds, resumed runs.

    python -m pytest tests/test_spot.py
    python tests/test_spot.py AUTHORS_CHECKOUT    # write golden/spot.json anew from their code

Weights and rows come from one recipe, `draw_weights` and `draw_data`, which uses nothing but
uniform numbers of NumPy's PCG64. golden/spot.json holds what the authors' train_vae.py, SPOT.py,
vae.py and utils.py (github thuml/SPOT) computed from them: first a VAE, then actor and critic with
it. `run_authors` shows how theirs was run: unchanged but for the word cuda, with stand-ins for
packages that the updates do not touch, and with our numbers where theirs draws some.
"""

import contextlib
import importlib
import json
import math
import re
import signal
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "algorithms"))

import spot  # noqa: E402
from helpers import digest, keep_gradients, result_of, same_end, shorten, uniform  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "spot.json"
REPOSITORY = "https://github.com/thuml/SPOT"
COMMIT = "4be91cce407e93a8631043328f868b1b7abb86ba"
CPU = torch.device("cpu")
# Their critic moves in every update, their actor in every second one, counted from 1
UPDATES, CURVE, SNAPSHOTS = 50, (1, 2, 10, 25, 50), (2, 50)
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "vae_hidden": 24,
         "batch_size": 64, "rows": 300, "bound": 1.0, "actor_lr": 3e-4, "dropout": 0.1,
         "normalize": True, "estimate": "elbo", "num_samples": 1, "online": 0}
CASES = {
    "as in MuJoCo": {**SMALL, "lambd": 0.1, "seed": 1},
    "as in AntMaze": {**SMALL, "lambd": 0.25, "dropout": 0.0, "normalize": False,
                      "actor_lr": 1e-4, "num_samples": 3, "seed": 2},
    "importance-weighted": {**SMALL, "lambd": 0.5, "estimate": "iwae", "num_samples": 4,
                            "bound": 0.4, "seed": 3},
    "online": {**SMALL, "lambd": 1.0, "dropout": 0.0, "online": 300_000, "seed": 4},
    "full width": {**SMALL, "dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256,
                   "vae_hidden": 750, "batch_size": 256, "rows": 2000, "lambd": 0.1, "seed": 5},
}
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}  # relative to max(1, |the authors' number|)
ONLINE_DISCOUNT = 0.995
MILLION = 1_000_000  # over which their lambda cools


# ---- The recipe ----

def draw_weights(case: dict, seed: int) -> dict:
    """(out, in) weights and biases. Targets are drawn apart: a mix-up with them must show."""
    rng, hidden, wide = np.random.default_rng([seed, 0]), case["hidden"], case["vae_hidden"]
    obs, act = case["obs_dim"], case["act_dim"]
    plan = {}
    for suffix in ("", "_target"):
        plan |= {"actor" + suffix: [obs, hidden, hidden, act]}
        plan |= {q + suffix: [obs + act, hidden, hidden, 1] for q in ("q1", "q2")}
    shapes = {f"{name}.{i}": pair for name, dims in plan.items()
              for i, pair in enumerate(zip(dims, dims[1:]))}
    shapes |= {"vae.e1": (obs + act, wide), "vae.e2": (wide, wide), "vae.mean": (wide, 2 * act),
               "vae.log_std": (wide, 2 * act), "vae.d1": (obs + 2 * act, wide),
               "vae.d2": (wide, wide), "vae.d3": (wide, act)}
    weights = {}
    for name, (rows, columns) in shapes.items():
        weights[f"{name}.weight"] = uniform(rng, -1, 1, columns, rows) / rows**0.5
        weights[f"{name}.bias"] = uniform(rng, -1, 1, columns) / rows**0.5
    weights["vae.log_std.bias"][0] = -6  # so that its clamp at -4 counts
    weights["actor_target.2.weight"] *= 4  # near the bounds, where noise leads beyond them
    return weights


def draw_data(case: dict, seed: int) -> tuple[dict, list[dict]]:
    """A dataset whose states are far from standardised, and indices and noise of each update.

    The smoothing noise reaches so far that both its own clip and the actions' bounds count.
    """
    rng, n, size, act = (np.random.default_rng([seed, 1]), case["rows"], case["batch_size"],
                         case["act_dim"])
    spread = 3.0 ** (np.arange(case["obs_dim"]) % 4 - 2)
    obs = (uniform(rng, -1, 1, n, case["obs_dim"]) + 0.7) * spread
    rows = {"observations": obs, "actions": case["bound"] * uniform(rng, -1, 1, n, act),
            "next_observations": obs + uniform(rng, -0.5, 0.5, n, case["obs_dim"]) * spread,
            "rewards": uniform(rng, -1, 3, n), "terminals": 1.0 * (rng.random(n) < 0.1)}
    sizes = {"smoothing": (4, act), "z": (2, case["num_samples"] * 2 * act),
             "dropout": (2, 2 * case["hidden"] * (case["dropout"] > 0))}
    updates = [{"index": (n * rng.random(size)).astype(int)}
               | {k: uniform(rng, -far, far, size, count) for k, (far, count) in sizes.items()}
               for _ in range(2 * UPDATES)]
    return rows, updates


def note(result: dict, step: int, losses: list, parameters: dict) -> None:
    """Keep what is compared after this update, 1 to UPDATES the VAE's, then the others'."""
    phase, step = ("vae", step) if step <= UPDATES else ("train", step - UPDATES)
    kept = result.setdefault(phase, {"losses": {}, "parameters": {}})
    if step in CURVE:
        kept["losses"][str(step)] = shorten(losses)
    if step in SNAPSHOTS:
        chosen = {k: v for k, v in parameters.items() if k.startswith("vae") == (phase == "vae")}
        kept["parameters"][str(step)] = digest({k: v.detach().numpy() for k, v in chosen.items()})


# ---- Our code on the recipe ----

def slots(agent, n: int) -> dict:
    """Views of seed n's parameters in the authors' layout, to write and to read."""
    networks = {"actor": (agent.actor, 0), "q1": (agent.critic, 0), "q2": (agent.critic, 1),
                "actor_target": (agent.actor_target, 0), "q1_target": (agent.critic_target, 0),
                "q2_target": (agent.critic_target, 1)}
    views = {}
    for name, (network, head) in networks.items():
        index = n * network.heads + head
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases)):
            views |= {f"{name}.{i}.weight": weight.data[index].T,
                      f"{name}.{i}.bias": bias.data[index, 0]}
    for network, names in ((agent.vae["q"], ("e1", "e2")), (agent.vae["p"], ("d1", "d2", "d3"))):
        for name, weight, bias in zip(names, network.weights, network.biases):
            views |= {f"vae.{name}.weight": weight.data[n].T, f"vae.{name}.bias": bias.data[n, 0]}
    for i, name in enumerate(("mean", "log_std")):
        weight, bias = agent.vae["q"].weights[2].data[n], agent.vae["q"].biases[2].data[n, 0]
        views |= {f"vae.{name}.weight": weight.chunk(2, -1)[i].T,
                  f"vae.{name}.bias": bias.chunk(2)[i]}
    return views


def prepared(case: dict, seed: int) -> dict:
    """The task after our prepare(). A last row, which it ignores, is added to the data."""
    rows, _ = draw_data(case, seed)
    rows = {k: np.concatenate([v, v[-1:] + 100]) for k, v in rows.items()}
    rows["ends"] = rows["terminals"] > 0
    task = {"name": "", "obs_dim": case["obs_dim"], "act_dim": case["act_dim"],
            "act_low": [-case["bound"]] * case["act_dim"],
            "act_high": [case["bound"]] * case["act_dim"]}
    spot.prepare(spot.Args(normalize=case["normalize"], dropout=case["dropout"]), rows, task)
    return task


def run_ours(case: dict, seeds: list[int], monkeypatch) -> dict:
    """Train the agents of these seeds at once; the numbers of the last of them, like `record`.

    All take the normalisation of the last one: seeds share a dataset.
    """
    fields = {k: v for k, v in case.items() if k in spot.Args.__dataclass_fields__}
    args = spot.Args(**fields | {"num_seeds": len(seeds), "num_updates": 1000,
                                 "online_discount": ONLINE_DISCOUNT,
                                 "online_steps": MILLION if case["online"] else None})
    generators = [torch.Generator().manual_seed(i) for i in seeds]
    agent = spot.SPOT(args, prepared(case, seeds[-1]), generators, CPU)
    for n, seed in enumerate(seeds):
        weights, views = draw_weights(case, seed), slots(agent, n)
        assert views.keys() == weights.keys()
        for name, view in views.items():
            view.copy_(torch.from_numpy(weights[name]))
    losses, minimize = [], spot.minimize
    monkeypatch.setattr(spot, "minimize", lambda optimizer, loss: (
        losses.append(loss[-1].item()), minimize(optimizer, loss)))
    result, data = {}, [draw_data(case, seed) for seed in seeds]
    if case["online"]:
        agent.step.fill_(args.num_updates + case["online"])
    phases = [agent.phases[0][2:]] * UPDATES + [agent.phases[-1][2:]] * UPDATES
    for step, turns in enumerate(phases, 1):
        parts = [{k: v[updates[step - 1]["index"]] for k, v in rows.items()}
                 | {"noise": np.concatenate([updates[step - 1][k] for k in (
                     "smoothing", "z", "dropout")], 1)} for rows, updates in data]
        batch = {k: torch.from_numpy(np.stack([part[k] for part in parts]))
                 .to(torch.get_default_dtype()) for k in parts[0]}
        losses.clear()
        turns[(step - 1) % len(turns)](batch)
        note(result, step, losses, slots(agent, len(seeds) - 1))
    return result


# ---- The authors' code on the recipe ----

def load_authors(checkout: Path) -> tuple:
    """Their modules SPOT, vae and utils, with empty stand-ins for packages they do not need."""
    absent = {"imageio": None, "gym": "make", "d4rl": "qlearning_dataset",
              "coolname": "generate_slug", "log": "Logger"}
    for name, attribute in absent.items():
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute or "stub", None)
    sys.path.insert(0, str(checkout))
    return tuple(importlib.import_module(name) for name in ("SPOT", "vae", "utils"))


def run_authors(checkout: Path, modules, case: dict) -> dict:
    """Their updates, unchanged; losses are read where they call backward."""
    module, vae_module, utils = modules
    dtype, bound, act = getattr(torch, case["dtype"]), case["bound"], case["act_dim"]
    torch.set_default_dtype(dtype)
    rows, updates = draw_data(case, case["seed"])
    given, parameters, result, losses = draw_weights(case, case["seed"]), {}, {}, []
    to = lambda array: torch.from_numpy(array).to(dtype)

    def fill(name: str, layers) -> None:
        for i, layer in enumerate(layers):
            for kind in ("weight", "bias"):
                key = f"{name}.{layer if name == 'vae' else i}.{kind}"
                tensor = getattr(getattr(made[name], layer) if name == "vae" else layer, kind)
                assert tensor.shape == given[key].shape
                tensor.data.copy_(to(given[key]))
                parameters[key] = tensor

    # Their script train_vae.py is run as it is; its VAE gets our weights when it is made
    made, update, queue = {}, iter(updates), {}

    def known(*args, **kwargs):
        made["vae"] = vae_module.VAE(*args, **kwargs)
        fill("vae", ["e1", "e2", "mean", "log_std", "d1", "d2", "d3"])
        return made["vae"]

    def choice(*_):
        """They draw the indices of an update first of all."""
        draw, step = next(update), queue.get("step", 0) + 1
        masks = (draw["dropout"] > statistics.NormalDist().inv_cdf(0.1)) / 0.9
        other = (-draw["dropout"] > statistics.NormalDist().inv_cdf(0.1)) / 0.9
        queue.update(step=step, masks=[*np.split(masks, 2, 1), *np.split(other, 2, 1)],
                     index=draw["index"], smoothing=draw["smoothing"], z=draw["z"])
        losses.clear()
        return draw["index"]

    def randn_like(like):
        """Smoothing noise has the actions' shape; z has another one, with samples or without."""
        if like.shape == (case["batch_size"], act):
            return to(queue["smoothing"])
        return to(queue["z"][:, :2 * act] if like.dim() == 2 else queue["z"].reshape(like.shape))

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            super().step()
            note(result, queue["step"], list(losses), parameters)

    space = SimpleNamespace(shape=(act,), high=[bound])
    env = SimpleNamespace(observation_space=SimpleNamespace(shape=(case["obs_dim"],)),
                          action_space=space)
    sys.modules["gym"].make = lambda _: env
    sys.modules["d4rl"].qlearning_dataset = lambda _: {k: v.astype(case["dtype"])
                                                       for k, v in rows.items()}
    sys.modules["coolname"].generate_slug = lambda _: "slug"
    logger = SimpleNamespace(log=lambda *_, **__: None, dump=lambda _: None,
                             _sw=SimpleNamespace(close=lambda: None))
    sys.modules["log"].Logger = lambda *_, **__: logger
    text = (checkout / "train_vae.py").read_text().replace("device = 'cuda'", "device = 'cpu'")
    words = ["--hidden_dim", case["vae_hidden"], "--num_iters", UPDATES - 1, "--batch_size",
             case["batch_size"], *["--no_normalize"] * (not case["normalize"])]
    backward = torch.Tensor.backward
    patches = [(torch.Tensor, "backward", lambda loss: (losses.append(loss.item()),
                                                        backward(loss))[1]),
               (torch, "randn_like", randn_like), (np.random, "choice", choice),
               (torch.nn.functional, "dropout", lambda x, *_: x * to(queue["masks"].pop(0))),
               (utils, "snapshot_src", lambda *_: None),
               (utils, "set_seed_everywhere", lambda _: None),
               (sys, "argv", ["", *map(str, words)])]
    with contextlib.ExitStack() as stack:
        for owner, name, value in patches:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        stack.callback(setattr, torch.optim, "Adam", torch.optim.Adam)
        torch.optim.Adam = Adam
        stack.callback(sys.modules.__setitem__, "vae", vae_module)
        sys.modules["vae"] = SimpleNamespace(VAE=known)
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        exec(compile(text, "train_vae.py", "exec"), {"__name__": "__main__"})
        torch.optim.Adam = Adam.__mro__[1]

        agent = module.SPOT_TD3(  # as in main.py and main_finetune.py
            made["vae"].eval(), case["obs_dim"], act, bound, policy_noise=0.2 * bound,
            noise_clip=0.5 * bound, lambd=case["lambd"], actor_lr=case["actor_lr"],
            num_samples=case["num_samples"], iwae=case["estimate"] == "iwae",
            actor_hidden_dim=case["hidden"], critic_hidden_dim=case["hidden"],
            actor_dropout=case["dropout"], lambd_cool=bool(case["online"]),
            discount=ONLINE_DISCOUNT if case["online"] else 0.99)
        agent.total_it = case["online"]
        linear = lambda net: [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
        for suffix in ("", "_target"):
            actor, critic = (linear(getattr(agent, k + suffix)) for k in ("actor", "critic"))
            for name, layers in {"actor": actor, "q1": critic[:3], "q2": critic[3:]}.items():
                fill(name + suffix, layers)
        buffer = utils.ReplayBuffer(1, 1, max_size=1)
        buffer.convert_D4RL(sys.modules["d4rl"].qlearning_dataset(env))
        if case["normalize"]:
            buffer.normalize_states()
        columns = [torch.from_numpy(c).to(dtype) for c in (
            buffer.state, buffer.action, buffer.next_state, buffer.reward, buffer.not_done)]

        def sample(_):  # theirs returns FloatTensors whatever the default
            index = choice()
            return [c[index] for c in columns]

        train = agent.train_online if case["online"] else agent.train
        for _ in range(UPDATES):
            train(SimpleNamespace(sample=sample), case["batch_size"], logger)
            note(result, queue["step"], list(losses), parameters)
    torch.set_default_dtype(torch.float32)
    return result


def record(checkout: Path) -> None:
    """Write golden/spot.json from a checkout of the authors' repository at COMMIT."""
    modules, results = load_authors(checkout), {}
    for name, case in CASES.items():
        results[name] = run_authors(checkout, modules, case)
        for phase in results[name].values():
            if case["dtype"] == "float32":  # entries drift with the order of float32 sums
                del phase["parameters"]
    golden = {"repository": REPOSITORY, "commit": COMMIT, "updates": UPDATES, "cases": CASES,
              "results": results}
    text = json.dumps(golden, indent=0)
    text = re.sub(r"\[[^]]*\]", lambda numbers: numbers[0].replace("\n", ""), text)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(text + "\n")


# ---- Parity ----

@pytest.fixture(autouse=True)
def exact_products():
    """Full float32 products, whatever an earlier test of the same process has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def default_dtype():
    """Set PyTorch's default for one test."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def differences(ours: dict, golden: dict, tolerance: float) -> list[str]:
    """Every recorded number that ours misses by more than tolerance * max(1, |number|)."""
    found = []
    for phase, kinds in golden.items():
        for kind, steps in kinds.items():
            for step, expected in steps.items():
                mine = ours[phase][kind][step]
                if kind == "losses":
                    expected, mine = {"losses": expected}, {"losses": mine}
                assert mine.keys() == expected.keys()
                for name, numbers in expected.items():
                    a, b = np.array(mine[name]), np.array(numbers)
                    assert a.shape == b.shape, (phase, step, name)
                    worst = (abs(a - b) / np.maximum(1, abs(b))).max()
                    if not worst <= tolerance:
                        found.append(f"{phase}, after update {step}, {name}: off by {worst:.1e}")
    return found


@pytest.fixture(scope="module")
def golden() -> dict:
    content = json.loads(GOLDEN.read_text())
    assert content["cases"] == CASES and content["updates"] == UPDATES, "golden/spot.json is old"
    return content["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden, monkeypatch, default_dtype):
    case = CASES[name]
    default_dtype(getattr(torch, case["dtype"]))
    ours = run_ours(case, [case["seed"]], monkeypatch)
    assert differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", ["as in MuJoCo", "importance-weighted"])
def test_a_seed_trains_beside_others_as_alone(name, golden, monkeypatch, default_dtype):
    case = CASES[name]
    default_dtype(torch.float64)
    ours = run_ours(case, [case["seed"] + 100, case["seed"]], monkeypatch)
    assert differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


# ---- The formulas ----

def make_agent(num_seeds=2, obs_dim=4, act_dim=2, name="", **options):
    """An agent with small networks, bounds -0.5 and 1.5, targets of their own, a low log_std."""
    settings = {"lambd": 0.7, "actor_lr": 1e-3, "dropout": 0.2, "online_discount": 0.9,
                "hidden": 16, "vae_hidden": 12, "num_updates": 100}
    args = spot.Args(num_seeds=num_seeds, **settings | options)
    task = {"name": name, "obs_dim": obs_dim, "act_dim": act_dim, "act_low": [-0.5] * act_dim,
            "act_high": [1.5] * act_dim, "obs_mean": [0.5] * obs_dim, "obs_std": [2.0] * obs_dim}
    generators = [torch.Generator().manual_seed(n) for n in range(num_seeds)]
    agent = spot.SPOT(args, task, generators, CPU)
    with torch.no_grad():
        for weight in [*agent.critic_target.parameters(), *agent.actor_target.parameters()]:
            weight += 0.1
        agent.vae["q"].biases[2][..., -1] = -7
    return agent


def make_batch(agent, size=32, seed=0) -> dict:
    """Random rows, a quarter of them terminal; seed n's come from a generator of its own."""
    n, act_dim = agent.critic.weights[0].shape[0] // 2, len(agent.center)
    obs_dim, draws = len(agent.mean), [torch.Generator().manual_seed(seed + 100 * i)
                                             for i in range(n)]
    normal = lambda *shape: torch.stack([torch.randn(size, *shape, generator=g) for g in draws])
    terminals = torch.zeros(n, size)
    terminals[:, ::4] = 1
    return {"observations": normal(obs_dim), "next_observations": normal(obs_dim),
            "actions": normal(act_dim), "rewards": normal(), "terminals": terminals,
            "noise": normal(agent.noise_dim)}


def layers(net, n: int, head: int, x: np.ndarray, masks=(1, 1)) -> np.ndarray:
    """Output (B, out) of one network for x (B, in) by NumPy, hidden units scaled by the masks."""
    index = n * net.heads + head
    for i, (weight, bias) in enumerate(zip(net.weights, net.biases)):
        x = x @ weight[index].detach().double().numpy() + bias[index].detach().double().numpy()
        x = np.maximum(x, 0) * masks[i] if i < 2 else x
    return x


def density_loss(agent, n: int, s, a, noise, estimate: str) -> np.ndarray:
    """-log p (B,) by the textbook's formulas for noise (B, L, latent), one sample after another."""
    normal = lambda x, mean, std: (-((x - mean) / std) ** 2 / 2 - np.log(std)
                                   - math.log(2 * math.pi) / 2).sum(-1)
    mean, log_std = np.split(layers(agent.vae["q"], n, 0, np.concatenate([s, a], 1)), 2, 1)
    std = np.exp(log_std.clip(-4, 15))
    errors, ratios = [], []
    for i in range(noise.shape[1]):
        z = mean + std * noise[:, i]
        u = 0.5 + np.tanh(layers(agent.vae["p"], n, 0, np.concatenate([s, z], 1)))
        errors.append(((u - a) ** 2).mean(1))
        ratios.append(normal(a, u, math.sqrt(0.5 / 4)) + normal(z, 0, np.ones_like(z))
                      - normal(z, mean, std))
    if estimate == "iwae":
        return -np.log(np.mean(np.exp(ratios), 0))
    return np.mean(errors, 0) + 0.5 * ((mean**2 + std**2 - 1) / 2 - np.log(std)).mean(1)


@pytest.mark.parametrize("estimate, num_samples, dropout", [
    ("elbo", 1, 0.2), ("elbo", 3, 0.0), ("iwae", 1, 0.0), ("iwae", 3, 0.2)])
def test_losses_are_the_closed_forms(estimate, num_samples, dropout):
    agent = make_agent(estimate=estimate, num_samples=num_samples, dropout=dropout, lr=0.0,
                       vae_lr=0.0)  # so that each loss sees the networks as they are
    batch, cut = make_batch(agent), statistics.NormalDist().inv_cdf(dropout or 0.5)
    batch["noise"][..., :2] *= 3  # far enough for both clips
    expected = {k: [] for k in ("loss/critic", "loss/actor", "neg_log_p", "value", "loss/vae")}
    for n in range(2):
        s, s2, a, r, over, noise = (batch[k][n].double().numpy() for k in (
            "observations", "next_observations", "actions", "rewards", "terminals", "noise"))
        s, s2 = (s - 0.5) / 2, (s2 - 0.5) / 2
        z, rest = noise[:, 2:2 + 4 * num_samples], noise[:, 2 + 4 * num_samples:]
        # pi' loses the units with low numbers, pi those with high ones
        masks = [np.split((sign * rest > cut) / (1 - dropout), 2, 1) if dropout else (1, 1)
                 for sign in (1, -1)]
        smoothing = (0.2 * noise[:, :2]).clip(-0.5, 0.5)
        a2 = 0.5 + np.tanh(layers(agent.actor_target, n, 0, s2, masks[0])) + smoothing
        assert (abs(smoothing) == 0.5).any() and (a2 > 1.5).any()
        sa2 = np.concatenate([s2, a2.clip(-0.5, 1.5)], 1)
        q2 = np.minimum(*(layers(agent.critic_target, n, head, sa2)[:, 0] for head in (0, 1)))
        target = r + 0.99 * (1 - over) * q2
        q = [layers(agent.critic, n, h, np.concatenate([s, a], 1))[:, 0] for h in (0, 1)]
        pi = 0.5 + np.tanh(layers(agent.actor, n, 0, s, masks[1]))
        pi_q = layers(agent.critic, n, 0, np.concatenate([s, pi], 1))[:, 0]
        support = density_loss(agent, n, s, pi, z.reshape(-1, num_samples, 4), estimate).mean()
        expected["loss/critic"].append(sum(((x - target) ** 2).mean() for x in q))
        expected["value"].append(np.mean(q))
        expected["neg_log_p"].append(support)
        expected["loss/actor"].append(0.7 * support - pi_q.mean() / abs(pi_q).mean())
        expected["loss/vae"].append(density_loss(agent, n, s, a, z[:, None, :4], "elbo").mean())
    stats = agent.fit_vae(batch) | agent.update(batch)
    for name, numbers in expected.items():
        np.testing.assert_allclose(stats[name].detach().numpy(), numbers, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("outside, at", [(-9.0, -4.0), (18.0, 15.0)])
def test_the_deviation_of_z_is_clamped(outside, at):
    losses = []
    for log_std in (outside, at):
        agent = make_agent()
        agent.vae["q"].weights[2].data[..., -1] = 0
        agent.vae["q"].biases[2].data[..., -1] = log_std
        losses.append(agent.fit_vae(make_batch(agent))["loss/vae"])
    assert torch.isfinite(losses[0]).all() and torch.equal(*losses)


def test_the_importance_weighted_density_integrates_to_one():
    agent = make_agent(act_dim=1, obs_dim=2, num_samples=1000)
    agent.vae["q"].biases[2].data[..., -1] = 0  # a q(z|s,a) that covers p(z), as (6) wants it
    a = torch.linspace(-2.5, 3.5, 61).expand(2, -1).unsqueeze(-1)
    noise = torch.randn(2, 61, 2000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        density = (-agent.neg_log_p(torch.zeros(2, 61, 2), a, noise, "iwae")).exp()
    np.testing.assert_allclose(0.1 * density.sum(1).numpy(), 1, atol=0.05)


def test_the_elbo_is_the_mean_of_one_sample_estimates_but_for_factor_and_constant():
    """E_q of (6) with L = 1 is (5); the VAE's loss is -(5) / (2 A / beta), less the constant."""
    agent = make_agent()
    s, a = torch.zeros(2, 3, 4), torch.tensor([[0.1, 0.9], [0.5, 0.5], [1.2, -0.3]]).expand(2, 3, 2)
    noise = torch.randn(2, 3, 4 * 20_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        elbo = agent.neg_log_p(s, a, noise)
        each = agent.neg_log_p(*(x.repeat_interleave(20_000, 1) for x in (s, a)),
                               noise.reshape(2, -1, 4), "iwae").unflatten(1, (3, -1))
    expected = 2 * 2 / 0.5 * elbo + 2 * math.log(math.sqrt(2 * math.pi * 0.5 / 4))
    torch.testing.assert_close(each.mean(2), expected, rtol=0, atol=0.05)


def test_dropout_keeps_nine_of_ten_units_and_their_mean():
    agent = make_agent(dropout=0.1, hidden=1000)
    noise, kept = torch.randn(1, 256, 2000, generator=torch.Generator().manual_seed(0)), []
    agent.squash = lambda x: x  # units of 1 lead to an output of 1 each
    net = spot.ReLUNet([torch.Generator()], [1, 1000, 1000, 1000])
    with torch.no_grad():
        for weight, bias in zip(net.weights, net.biases):
            weight.zero_(), bias.fill_(1)
        net.biases[2].zero_()
        net.weights[2].copy_(torch.eye(1000))
        for sign in (1, -1):
            kept.append(agent.drop(net, torch.zeros(1, 256, 1), sign * noise))
    for units in kept:
        assert set(units.unique().tolist()) == {0.0, np.float32(1 / 0.9)}
        assert abs(units.mean() - 1) < 0.01
    assert (torch.cat(kept).amax(0) > 0).all()  # no unit is lost to both policies


def test_actions_are_those_without_dropout_and_exploration_adds_a_tenth():
    agent = make_agent()
    obs, noise = torch.randn(2, 5, 4), torch.randn(2, 5, 2)
    expected = [0.5 + np.tanh(layers(agent.actor, n, 0, (obs[n].numpy() - 0.5) / 2))
                for n in range(2)]
    with torch.no_grad():
        np.testing.assert_allclose(agent.act(obs), expected, rtol=1e-5)
        torch.testing.assert_close(agent.explore(obs, noise), agent.act(obs) + 0.1 * noise)


def test_targets_follow_slowly_on_every_second_update():
    agent = make_agent(polyak=0.1)
    nets = ((agent.critic_target, agent.critic), (agent.actor_target, agent.actor))
    copy_of = lambda: [[p.clone() for p in target.parameters()] for target, _ in nets]
    first, actor = copy_of(), [p.clone() for p in agent.actor.parameters()]
    only_critic, both = agent.phases[1][2:]
    assert only_critic(make_batch(agent)) == {}
    assert all(torch.equal(a, b) for old, new in zip(first, copy_of()) for a, b in zip(old, new))
    assert all(torch.equal(a, b) for a, b in zip(actor, agent.actor.parameters()))
    both(make_batch(agent, seed=1))
    for old, (target, source) in zip(first, nets):
        for a, b, c in zip(old, target.parameters(), source.parameters()):
            torch.testing.assert_close(b, 0.9 * a + 0.1 * c)
            assert not torch.equal(a, b)


def test_online_lambda_falls_to_a_fifth_and_gamma_changes():
    agent, lambdas, sees_next = make_agent(num_updates=4, online_steps=10, online_discount=0.0,
                                           lr=0.0), [], []
    for step in range(1, 15):
        batch = make_batch(agent, seed=step)
        changed = {**batch, "next_observations": batch["next_observations"] + 1}
        stats = agent.update(batch)
        agent.step -= 1  # the same update again
        other = agent.update(changed)
        lambdas.append(stats["lambda"].tolist())
        sees_next.append(not torch.equal(stats["loss/critic"], other["loss/critic"]))
    expected = [0.7] * 4 + [0.7 * max(0.2, 1 - k / 10) for k in range(1, 11)]
    np.testing.assert_allclose(lambdas, np.array([expected] * 2).T, rtol=1e-6)
    assert sees_next == [True] * 4 + [False] * 10


# ---- What prepare() and SETTINGS say ----

@pytest.mark.parametrize("name", ["hopper-medium-v2", "rebuilt/antmaze/large-play-v0"])
@pytest.mark.parametrize("normalize", [True, False])
def test_rewards_and_statistics_of_states(name, normalize):
    rng = np.random.default_rng(0)
    rows = {"observations": rng.random((6, 2), np.float32), "rewards": np.float32([0, 1] * 3),
            "terminals": np.float32([0, 1, 0, 0, 0, 0]), "ends": np.array([0, 1, 0, 1, 0, 0]) > 0}
    task = {"name": name, "obs_dim": 2, "act_low": [-1], "act_high": [1]}
    maze, used = "antmaze" in name, rows["observations"][[0, 1, 2, 4]].astype(float)
    found = spot.prepare(spot.Args(normalize=normalize, dropout=0.0), rows, task)
    np.testing.assert_array_equal(found["rewards"], [-1, 0] * 3 if maze else [0, 1] * 3)
    assert found["rewards"].dtype == np.float32
    assert (task["reward_scale"], task["reward_shift"]) == (1, -1 if maze else 0)
    mean, std = (used.mean(0), used.std(0) + 1e-3) if normalize else ([0, 0], [1, 1])
    np.testing.assert_allclose((task["obs_mean"], task["obs_std"]), (mean, std), rtol=1e-6)


@pytest.mark.parametrize("low, dropout", [(-np.inf, 0.1), (-1.0, 1.0)])
def test_what_cannot_work_is_refused(low, dropout):
    with pytest.raises(SystemExit) as end:
        spot.prepare(spot.Args(dropout=dropout), {}, {"act_low": [low], "act_high": [1.0]})
    assert "bounded actions" in str(end.value) and "--dropout" in str(end.value)


@pytest.mark.parametrize("env, lambd, rest", [
    ("hopper-medium-v2", 0.1, (3e-4, 0.1, True, 0.99)),
    ("rebuilt/hopper/medium-replay-v0", 0.1, (3e-4, 0.1, True, 0.99)),
    ("hopper-medium-expert-v2", 0.2, (3e-4, 0.1, True, 0.99)),
    ("halfcheetah-medium-v2", 0.05, (3e-4, 0.1, True, 0.99)),
    ("halfcheetah-medium-expert-v2", 1.0, (3e-4, 0.1, True, 0.99)),
    ("walker2d-medium-replay-v2", 0.2, (3e-4, 0.1, True, 0.99)),
    ("walker2d-medium-expert-v2", 0.5, (3e-4, 0.1, True, 0.99)),
    ("antmaze-umaze-diverse-v2", 0.25, (1e-4, 0.0, False, 0.99)),
    ("rebuilt/antmaze/medium-play-v0", 0.05, (1e-4, 0.0, False, 0.99)),
    ("antmaze-medium-diverse-v2", 0.025, (1e-4, 0.0, False, 0.99)),
    ("antmaze-large-play-v2", 0.025, (1e-4, 0.0, False, 0.995)),
    ("D4RL/pen/human-v2", 1.0, (3e-4, 0.1, True, 0.99))])
def test_a_dataset_gets_its_published_settings(env, lambd, rest):
    args = spot.fill_settings(spot.Args(env=env))
    found = (args.actor_lr, args.dropout, args.normalize, args.online_discount)
    assert (args.lambd, found) == (lambd, rest)
    assert spot.fill_settings(spot.Args(env=env, dropout=0.3)).dropout == 0.3


# ---- A problem whose answer is known ----

def two_ways(n: int, seed: int) -> dict:
    """In every state two actions occur: left or right in one dimension, 0.6 s in the other."""
    rng = np.random.default_rng(seed)
    s, side = rng.uniform(-1, 1, (n, 2)), rng.choice([-0.7, 0.7], n)
    a = np.stack([side, 0.6 * s[:, 0]], 1) + 0.05 * rng.standard_normal((n, 2))
    rows = {"observations": s, "actions": a, "rewards": a[:, 0], "next_observations": s}
    return {k: v.astype(np.float32) for k, v in rows.items()} | {
        k: np.ones(n, np.float32) for k in ("terminals", "known")} | {"ends": np.ones(n, bool)}


def train_two_ways(updates: int, density: dict | None = None, **options):
    """Train the VAE, or take that density, and then the policy; the reward is the first action."""
    settings = {"lambd": 1.0, "actor_lr": 3e-3, "dropout": 0.1, "normalize": True, "lr": 3e-3,
                "online_discount": 0.99, "num_seeds": 2, "vae_hidden": 64, "vae_lr": 2e-3,
                "hidden": 32, "batch_size": 64, "vae_updates": 600, "num_updates": updates}
    args, task = spot.Args(**settings | options), {
        "name": "", "obs_dim": 2, "act_dim": 2, "act_low": [-1.0] * 2, "act_high": [1.0] * 2}
    rows = spot.prepare(args, two_ways(2000, 0), task)
    run = spot.OnlineRun(args, task, CPU)
    run.use(rows)
    if density:
        run.agent.load_state_dict(density, strict=False)
    for run.phase in range(bool(density), 2):
        run.step = 0
        run.begin()
        run.advance(run.agent.phases[run.phase][1])
    return run.agent


@pytest.fixture(scope="module")
def density() -> dict:
    state = train_two_ways(1).state_dict()
    return {k: v for k, v in state.items() if k.startswith("vae")}


@pytest.mark.parametrize("estimate", ["elbo", "iwae"])
def test_the_density_ranks_data_actions_above_far_ones(density, estimate):
    agent, rows = train_two_ways(1, density), two_ways(500, 1)
    s, a = (torch.from_numpy(rows[k]).expand(2, -1, -1) for k in ("observations", "actions"))
    noise = torch.randn(2, 500, 4 * 64, generator=torch.Generator().manual_seed(0))

    def minus_log_p(actions):
        with torch.no_grad():
            return agent.neg_log_p(agent.normalize(s), actions, noise, estimate)

    left, right = a[..., :1], a[..., 1:]
    data = minus_log_p(a)
    between, mirrored = (minus_log_p(torch.cat([x, right], -1)) for x in (0 * left, -left))
    far = minus_log_p(torch.cat([left, -0.9 * right.sign()], -1))
    assert ((data < far).float().mean(1) > 0.99).all()
    assert ((data < between).float().mean(1) > 0.9).all()  # a Gaussian would say the opposite
    assert abs((data - mirrored).mean(1) / (between - data).mean(1)).max() < 0.5


def test_a_policy_with_support_takes_the_better_of_the_datas_actions(density):
    """Q rises beyond the data: without support the first action runs to its bound, the other off.

    With it the first is near 0.7, not at 1, nor at -0.7, which is as frequent; the other is 0.6 s.
    """
    s, found = two_ways(200, 2)["observations"], []
    for lambd in (0.0, 10.0):
        agent = train_two_ways(400, density, lambd=lambd)
        with torch.no_grad():
            a = agent.act(torch.from_numpy(s).expand(2, -1, -1)).numpy()
        found.append((a[..., 0].mean(1), abs(a[..., 1] - 0.6 * s[:, 0]).mean(1)))
    (free, off), (held, near) = found
    assert (free > 0.95).all() and (off > 0.15).all(), found
    assert (abs(held - 0.75) < 0.2).all() and (near < 0.06).all(), found


# ---- Seeds ----

@pytest.mark.parametrize("estimate", ["elbo", "iwae"])
def test_a_seed_is_untouched_by_the_batches_of_the_others(estimate):
    def trained(change: float) -> dict:
        agent = keep_gradients(make_agent(
            3, estimate=estimate, num_samples=2, num_updates=2, online_steps=10))
        for step in range(4):  # two of them online
            batch = make_batch(agent, seed=step)
            for key in ("observations", "next_observations", "actions", "rewards", "noise"):
                batch[key][1] += change
            agent.fit_vae(batch)
            agent.phases[1][2 + step % 2](batch)
        parts = dict(agent.named_parameters())
        grads = {f"gradient of {k}": p.grad for k, p in parts.items() if p.grad is not None}
        return {k: x.detach().unflatten(0, (3, -1)) for k, x in {**parts, **grads}.items()}

    plain, other = trained(0), trained(0.5)
    assert {"actor", "critic", "vae"} == {
        name.split("of ")[1].split(".")[0] for name in plain if name.startswith("gradient")}
    for name in plain:
        assert torch.equal(plain[name][0], other[name][0]), name
        assert torch.equal(plain[name][2], other[name][2]), name
        assert not torch.equal(plain[name][1], other[name][1]), name


# ---- The command: a run from its start to its end, killed and resumed ----

OPTIONS = ("--vae-hidden 12 --vae-updates 60 --num-updates 300 --online-steps 300 --eval-every 100 "
           "--checkpoint-every 20").split()
TRAIN, ONLINE = 1, 2  # the phases after the VAE's


@pytest.fixture(scope="module")
def folder(por, tmp_path_factory, tiny_hdf5) -> Path:
    """Folder of the runs, with their data in it; por makes Gymnasium quiet."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_hdf5(folder / "data.hdf5")
    return folder


def command(run_dir: str) -> list:
    return ["--env", "hopper-medium-v2", "--dataset-file", "data.hdf5", "--seed", "5",
            "--num-seeds", "2", "--run-dir", run_dir, *OPTIONS]


@pytest.fixture(scope="module")
def whole_run(folder, run_cli) -> dict:
    """result.json of an uninterrupted run."""
    end = run_cli(*command("whole"), folder=folder, script="spot")
    assert end.returncode == 0 and end.stderr.strip() == "", end.stderr
    return result_of(folder / "whole")


def kill_when(process, run_dir: Path, phase: int, step: int) -> tuple[int, int]:
    """Kill the run once its checkpoint is that far; returns phase and update of the checkpoint."""
    path, deadline, at = run_dir / "checkpoint.pt", time.time() + 120, (0, -1)
    while at < (phase, step):  # result.json is written first: a kill can fall between the two
        assert process.poll() is None and time.time() < deadline, process.communicate()
        with contextlib.suppress(OSError):  # not there yet
            state = torch.load(path)
            at = state["phase"], state["step"]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    state = torch.load(path)
    assert process.returncode == -9 and not state["finished"], "it was too short to be killed"
    return state["phase"], state["step"]


def test_a_run_trains_the_vae_then_offline_then_online(folder, whole_run):
    assert whole_run["script"] == "spot" and whole_run["finished"] and whole_run["step"] == 300
    found = [(e["phase"], e["update"], e["episodes"]) for e in whole_run["evaluations"]]
    assert found == [("train", 0, 2), ("train", 100, 2), ("train", 200, 2), ("train", 300, 3),
                     ("online", 100, 2), ("online", 200, 2), ("online", 300, 3)]
    assert whole_run["args"]["lambd"] == 0.1 and whole_run["args"]["dropout"] == 0.1
    state = torch.load(folder / "whole/checkpoint.pt")
    assert state["agent"]["step"] == 600
    assert (folder / "whole/online.bin").stat().st_size % (300 * 2 * 4) == 0


def test_a_run_killed_offline_and_online_ends_as_if_nothing_had_happened(
        folder, whole_run, start_cli, main, monkeypatch):
    monkeypatch.chdir(folder)
    run_dir, words = folder / "killed", command("killed")
    start = lambda: start_cli(*words, folder=folder, script="spot")
    at = kill_when(start(), run_dir, TRAIN, 60)
    assert at[0] == TRAIN and 60 <= at[1] < 300
    at = kill_when(start(), run_dir, ONLINE, 60)
    assert at[0] == ONLINE and 60 <= at[1] < 300
    end = main(*words, script=spot)
    assert end.code == 0 and f"resumed at update {at[1]} of phase 'online'" in end.out, end.err
    same_end(folder, "whole", "killed")
    assert (run_dir / "online.bin").read_bytes() == (folder / "whole/online.bin").read_bytes()


if __name__ == "__main__":
    record(Path(sys.argv[1]))
