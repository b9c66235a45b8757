"""Parity of algorithms/spot.py with the authors' public code.

    python -m pytest tests/parity/test_parity_spot.py
    python -m tests.parity.test_parity_spot AUTHORS_CHECKOUT    # write golden/spot.json anew

First a VAE is trained by their train_vae.py, then actor and critic with it. Their code is unchanged
but for the word cuda; it gets our numbers where it draws some.
"""

import contextlib
import functools
import importlib
import statistics
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import spot
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, uniform

REPOSITORY = "https://github.com/thuml/SPOT"
COMMIT = "4be91cce407e93a8631043328f868b1b7abb86ba"
SNAPSHOTS = (2, 50)  # their actor moves in every second update, counted from 1
# fmt: off
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "vae_hidden": 24,
         "batch_size": 64, "rows": 300, "actor_lr": 3e-4, "dropout": 0.1, "normalize": True,
         "estimate": "elbo", "num_samples": 1, "online": 0}
CASES = {
    "as in MuJoCo": {**SMALL, "lambd": 0.1, "seed": 1},
    "as in AntMaze": {**SMALL, "lambd": 0.25, "dropout": 0.0, "normalize": False,
                      "actor_lr": 1e-4, "num_samples": 3, "seed": 2},
    "importance-weighted": {**SMALL, "lambd": 0.5, "estimate": "iwae", "num_samples": 4,
                            "seed": 3},
    "online": {**SMALL, "lambd": 1.0, "dropout": 0.0, "online": 300_000, "seed": 4},
    "full width": {**SMALL, "dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 256,
                   "vae_hidden": 750, "batch_size": 256, "rows": 2000, "lambd": 0.1, "seed": 5},
}
# fmt: on
ONLINE_DISCOUNT = 0.995
MILLION = 1_000_000  # steps over which their lambda falls

# ---- The recipe ----


def draw_weights(case: dict, seed: int) -> dict:
    """Draw all weights. Targets are drawn apart: a mix-up with them must show."""
    rng, hidden, wide = np.random.default_rng([seed, 0]), case["hidden"], case["vae_hidden"]
    obs, act = case["obs_dim"], case["act_dim"]
    plan = {}
    for suffix in ("", "_target"):
        plan["actor" + suffix] = [obs, hidden, hidden, act]
        plan |= {name + suffix: [obs + act, hidden, hidden, 1] for name in ("q1", "q2")}
    shapes = {}
    for name, dims in plan.items():
        for i, pair in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            shapes[f"{name}.{i}"] = pair
    shapes |= {"vae.e1": (obs + act, wide), "vae.e2": (wide, wide), "vae.mean": (wide, 2 * act)}
    shapes |= {"vae.log_std": (wide, 2 * act), "vae.d1": (obs + 2 * act, wide)}
    shapes |= {"vae.d2": (wide, wide), "vae.d3": (wide, act)}
    weights = {}
    for name, (fan_in, fan_out) in shapes.items():
        weights[f"{name}.weight"] = uniform(rng, -1, 1, fan_out, fan_in) / fan_in**0.5
        weights[f"{name}.bias"] = uniform(rng, -1, 1, fan_out) / fan_in**0.5
    weights["vae.log_std.bias"][0] = -6  # so that its clamp at -4 counts
    weights["actor_target.2.weight"] *= 4  # near the bounds, where noise leads beyond them
    return weights


def draw_data(case: dict, seed: int) -> tuple[dict, list[dict]]:
    """Draw a dataset whose states are far from standardised, and the draws of each update.

    The smoothing noise reaches so far that both its own clip and the actions' bounds count.
    """
    rng, n, size = np.random.default_rng([seed, 1]), case["rows"], case["batch_size"]
    act = case["act_dim"]
    spread = 3.0 ** (np.arange(case["obs_dim"]) % 4 - 2)
    obs = (uniform(rng, -1, 1, n, case["obs_dim"]) + 0.7) * spread
    data = {"observations": obs, "actions": uniform(rng, -1, 1, n, act)}
    data["next_observations"] = obs + uniform(rng, -0.5, 0.5, n, case["obs_dim"]) * spread
    data["rewards"] = uniform(rng, -1, 3, n)
    data["terminals"] = (rng.random(n) < 0.1).astype(float)
    units = 2 * case["hidden"] if case["dropout"] > 0 else 0
    sizes = {"smoothing": (4, act), "z": (2, case["num_samples"] * 2 * act), "dropout": (2, units)}
    updates = []
    for _ in range(2 * UPDATES):
        draws = {"index": (n * rng.random(size)).astype(int)}
        for key, (far, count) in sizes.items():
            draws[key] = uniform(rng, -far, far, size, count)
        updates.append(draws)
    return data, updates


def dropout_masks(draws: dict) -> list[np.ndarray]:
    """Return the factors of the hidden units: two layers of pi', then two layers of pi."""
    threshold = statistics.NormalDist().inv_cdf(0.1)
    masks = []
    for numbers in (draws["dropout"], -draws["dropout"]):
        masks += np.split(np.where(numbers > threshold, 1 / 0.9, 0.0), 2, 1)
    return masks


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights in the authors' layout."""
    found = {}
    for suffix in ("", "_target"):
        networks = {"actor": harness.views(getattr(agent, "actor" + suffix).net, n)}
        networks["q1"], networks["q2"] = harness.twin_views(getattr(agent, "critic" + suffix), n)
        for name, views in networks.items():
            for i in range(3):
                found[f"{name}{suffix}.{i}.weight"] = views[f"weight{i}"]
                found[f"{name}{suffix}.{i}.bias"] = views[f"bias{i}"]
    encoder, decoder = (harness.views(net, n) for net in (agent.vae.encoder, agent.vae.decoder))
    for kind in ("weight", "bias"):
        found |= {f"vae.e{i + 1}.{kind}": encoder[f"{kind}{i}"] for i in (0, 1)}
        found |= {f"vae.d{i + 1}.{kind}": decoder[f"{kind}{i}"] for i in (0, 1, 2)}
        mean, log_std = encoder[f"{kind}2"].chunk(2)
        found |= {f"vae.mean.{kind}": mean, f"vae.log_std.{kind}": log_std}
    return found


def prepared_task(case: dict, seed: int):
    """Return the task after prepare_data(). A last row, which it ignores, is added to the data."""
    data, _ = draw_data(case, seed)
    data = {key: np.concatenate([column, column[-1:] + 100]) for key, column in data.items()}
    data["episode_end"] = data["terminals"] > 0
    data["next_valid"] = 1 - data["terminals"]
    task = harness.make_task(spot, obs_dim=case["obs_dim"], act_dim=case["act_dim"])
    args = spot.Args(normalize=case["normalize"], dropout=case["dropout"])
    spot.prepare_data(args, data, task)
    return task


@contextlib.contextmanager
def fed_dropout(masks: list) -> Iterator[None]:
    """Let torch.nn.functional.dropout multiply with these factors, one after another."""
    queue = list(masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", lambda x, *_: x * queue.pop(0))
        yield
    assert not queue


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them.

    All take the normalisation of the last one, because agents share a dataset.
    """
    with harness.default_dtype(case):
        args = harness.make_args(spot, case, num_seeds=len(seeds), num_updates=1000)
        args.online_discount = ONLINE_DISCOUNT
        args.lambd_end = 0.2  # main_finetune.py
        if case["online"]:
            # So the first update is one that far into the online phase.
            args.num_updates = -case["online"]
            args.online_steps = MILLION
        agent = spot.SPOT(args, prepared_task(case, seeds[-1]), "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), draw_weights(case, seed))
        drawn = [draw_data(case, seed) for seed in seeds]
        result = {}
        for name, phase in {"vae": agent.phases[0], "train": agent.phases[-1]}.items():
            first = 0 if name == "vae" else UPDATES
            batches, noise, masks = [], [], []
            for i in range(first, first + UPDATES):
                draws = [updates[i] for _, updates in drawn]
                rows = []
                for data, updates in drawn:
                    rows.append({key: x[updates[i]["index"]] for key, x in data.items()})
                batches.append(harness.stack(rows))
                turn = phase.updates[(i - first) % len(phase.updates)]
                noise.append(noise_of(turn.__name__, draws, case))
                masks += masks_of(turn.__name__, draws, case)
            with fed_dropout(masks):
                result[name] = harness.run_updates(
                    phase.updates,
                    batches,
                    noise,
                    ("loss/vae", "loss/critic", "loss/actor"),
                    functools.partial(trained_slots, agent, len(seeds) - 1, name),
                    SNAPSHOTS,
                )
        return result


def noise_of(update: str, draws: list[dict], case: dict) -> list[torch.Tensor]:
    """Return the noise that an update asks for, in its order."""
    drawn = {key: torch.as_tensor(np.stack([d[key] for d in draws])) for key in ("smoothing", "z")}
    return {
        "update_vae": [drawn["z"][..., : 2 * case["act_dim"]]],
        "update_critic": [drawn["smoothing"]],
        "update": [drawn["smoothing"], drawn["z"]],
    }[update]


def masks_of(update: str, draws: list[dict], case: dict) -> list[torch.Tensor]:
    """Return the dropout that an update asks for: two layers of pi', then two layers of pi."""
    if update == "update_vae" or case["dropout"] == 0:
        return []
    layers = zip(*[dropout_masks(d) for d in draws], strict=True)
    masks = [torch.as_tensor(np.stack(layer)).to(torch.get_default_dtype()) for layer in layers]
    return masks[:2] if update == "update_critic" else masks


def trained_slots(agent, n: int, phase: str) -> dict:
    """Return those views that a phase trains."""
    found = slots(agent, n)
    return {name: x for name, x in found.items() if name.startswith("vae") == (phase == "vae")}


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("spot", CASES)["results"]


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", ["as in MuJoCo", "importance-weighted"])
def test_an_agent_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden[name], TOLERANCE[case["dtype"]]) == []


# ---- The authors' code on the recipe ----


def load_authors(checkout: Path) -> tuple:
    """Return their modules SPOT, vae and utils, with empty stand-ins for packages."""
    absent = {"imageio": "stub", "gym": "make", "d4rl": "qlearning_dataset"}
    absent |= {"coolname": "generate_slug", "log": "Logger"}
    for name, attribute in absent.items():
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, None)
    sys.path.insert(0, str(checkout))
    return tuple(importlib.import_module(name) for name in ("SPOT", "vae", "utils"))


class Authors:
    """Their code on a case, with our numbers where it draws some."""

    def __init__(self, checkout: Path, modules: tuple, case: dict):
        self.checkout = checkout
        self.spot, self.vae, self.utils = modules
        self.case = case
        self.dtype = torch.get_default_dtype()
        self.weights = draw_weights(case, case["seed"])
        self.data, updates = draw_data(case, case["seed"])
        self.updates = iter(updates)
        self.draws = None  # of the current update
        self.masks = []
        self.step = 0
        self.losses = []
        self.parameters = {}
        self.made_vae = None
        self.result = {}

    def array(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.dtype)

    def fill(self, name: str, layers: dict) -> None:
        """Write the recipe's weights into their layers."""
        for key, layer in layers.items():
            for kind in ("weight", "bias"):
                given = self.weights[f"{name}.{key}.{kind}"]
                tensor = getattr(layer, kind)
                assert tensor.shape == given.shape
                tensor.data.copy_(self.array(given))
                self.parameters[f"{name}.{key}.{kind}"] = tensor

    def make_vae(self, *args, **kwargs):
        """Stand in for their class VAE."""
        self.made_vae = self.vae.VAE(*args, **kwargs)
        names = ("e1", "e2", "mean", "log_std", "d1", "d2", "d3")
        self.fill("vae", {name: getattr(self.made_vae, name) for name in names})
        return self.made_vae

    def choice(self, *_) -> np.ndarray:
        """Stand in for numpy.random.choice, by which they draw rows first in every update."""
        self.draws = next(self.updates)
        self.masks = dropout_masks(self.draws)
        self.step += 1
        self.losses.clear()
        return self.draws["index"]

    def randn_like(self, like) -> torch.Tensor:
        """Smoothing noise has the actions' shape; z has another one, with samples or without."""
        act = self.case["act_dim"]
        if like.shape == (self.case["batch_size"], act):
            return self.array(self.draws["smoothing"])
        z = self.draws["z"]
        return self.array(z[:, : 2 * act] if like.dim() == 2 else z.reshape(like.shape))

    def backward(self, loss) -> None:
        self.losses.append(loss.item())
        torch.autograd.backward(loss)

    def note(self) -> None:
        """Keep what is compared. The VAE's updates come first."""
        phase = "vae" if self.step <= UPDATES else "train"
        kept = self.result.setdefault(phase, {"losses": {}, "parameters": {}})
        of_vae = phase == "vae"
        chosen = {k: x for k, x in self.parameters.items() if k.startswith("vae") == of_vae}
        step = self.step if of_vae else self.step - UPDATES
        harness.note(kept, step, list(self.losses), lambda: chosen, SNAPSHOTS)

    def train_vae(self) -> None:
        """Run their script train_vae.py."""
        case, noted = self.case, self

        class Adam(torch.optim.Adam):
            def step(self, closure=None):
                super().step()
                noted.note()

        env = SimpleNamespace(
            observation_space=SimpleNamespace(shape=(case["obs_dim"],)),
            action_space=SimpleNamespace(shape=(case["act_dim"],), high=[1.0]),
        )
        nothing = SimpleNamespace(log=ignore, dump=ignore, _sw=SimpleNamespace(close=ignore))
        text = (self.checkout / "train_vae.py").read_text()
        text = text.replace("device = 'cuda'", "device = 'cpu'")
        words = ["--hidden_dim", case["vae_hidden"], "--num_iters", UPDATES - 1]
        words += ["--batch_size", case["batch_size"]]
        if not case["normalize"]:
            words.append("--no_normalize")
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            patch.setattr(sys.modules["gym"], "make", lambda _: env)
            patch.setattr(sys.modules["d4rl"], "qlearning_dataset", lambda _: self.columns())
            patch.setattr(sys.modules["coolname"], "generate_slug", lambda _: "slug")
            patch.setattr(sys.modules["log"], "Logger", lambda *_, **__: nothing)
            patch.setattr(self.utils, "snapshot_src", ignore)
            patch.setattr(self.utils, "set_seed_everywhere", ignore)
            patch.setattr(torch.optim, "Adam", Adam)
            patch.setattr(sys, "argv", ["", *map(str, words)])
            patch.setitem(sys.modules, "vae", SimpleNamespace(VAE=self.make_vae))
            patch.chdir(folder)
            exec(compile(text, "train_vae.py", "exec"), {"__name__": "__main__"})

    def columns(self) -> dict:
        return {key: column.astype(self.case["dtype"]) for key, column in self.data.items()}

    def train_policy(self) -> None:
        """Do the updates of main.py and main_finetune.py."""
        case = self.case
        agent = self.spot.SPOT_TD3(
            self.made_vae.eval(),
            case["obs_dim"],
            case["act_dim"],
            1.0,
            policy_noise=0.2,
            noise_clip=0.5,
            lambd=case["lambd"],
            actor_lr=case["actor_lr"],
            num_samples=case["num_samples"],
            iwae=case["estimate"] == "iwae",
            actor_hidden_dim=case["hidden"],
            critic_hidden_dim=case["hidden"],
            actor_dropout=case["dropout"],
            lambd_cool=bool(case["online"]),
            discount=ONLINE_DISCOUNT if case["online"] else 0.99,
        )
        agent.total_it = case["online"]
        for suffix in ("", "_target"):
            layers = []
            for name in ("actor", "critic"):
                modules = getattr(agent, name + suffix).modules()
                layers += [module for module in modules if isinstance(module, torch.nn.Linear)]
            for i, name in enumerate(("actor", "q1", "q2")):
                self.fill(name + suffix, dict(enumerate(layers[3 * i : 3 * i + 3])))
        buffer = self.utils.ReplayBuffer(1, 1, max_size=1)
        buffer.convert_D4RL(self.columns())
        if case["normalize"]:
            buffer.normalize_states()
        columns = (buffer.state, buffer.action, buffer.next_state, buffer.reward, buffer.not_done)
        columns = [self.array(column) for column in columns]

        def sample(_) -> list:
            # Theirs returns FloatTensors, whatever the default type.
            rows = self.choice()
            return [column[rows] for column in columns]

        train = agent.train_online if case["online"] else agent.train
        for _ in range(UPDATES):
            train(SimpleNamespace(sample=sample), case["batch_size"], SimpleNamespace(log=ignore))
            self.note()


def ignore(*_, **__) -> None:
    """Do nothing."""


def run_authors(checkout: Path, modules: tuple, case: dict) -> dict:
    """Do their updates, unchanged. Losses are read where they call backward."""
    authors = Authors(checkout, modules, case)

    def dropout(x, *_):
        return x * authors.array(authors.masks.pop(0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda loss: authors.backward(loss))
        patch.setattr(torch, "randn_like", authors.randn_like)
        patch.setattr(np.random, "choice", authors.choice)
        patch.setattr(torch.nn.functional, "dropout", dropout)
        authors.train_vae()
        authors.train_policy()
    return authors.result


def record(checkout: Path) -> None:
    """Write golden/spot.json from a checkout of the authors' repository at COMMIT."""
    modules = load_authors(checkout)
    results = {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name] = run_authors(checkout, modules, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("spot", REPOSITORY, COMMIT, CASES, results=results)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
