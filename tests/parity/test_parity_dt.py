"""Parity of algorithms/dt.py with the authors' public code, without dropout.

python -m pytest tests/parity/test_parity_dt.py

Their model needs the package transformers. It is needed to write golden/dt.json anew, not to test:

python -m tests.parity.test_parity_dt AUTHORS_CHECKOUT
"""

import functools
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dt
from tests.parity import harness
from tests.parity.harness import TOLERANCE, UPDATES, uniform

REPOSITORY = "https://github.com/kzl/decision-transformer"
COMMIT = "e2d82e68f330c00f763507b3b01d774740bee53f"
# fmt: off
# The authors' clip_norm is always 0.25.
SMALL = {"dtype": "float64", "obs_dim": 5, "act_dim": 2, "hidden": 16, "num_blocks": 3,
         "context": 6, "batch_size": 12, "max_episode_steps": 30, "return_scale": 1000.0,
         "lr": 1e-3, "weight_decay": 0.1, "clip_norm": 0.25}
CASES = {
    "clipped": {**SMALL, "warmup_updates": 20, "action_spread": 1.0, "seed": 1},
    "not clipped": {**SMALL, "warmup_updates": 1, "action_spread": 0.01, "seed": 2},
    "full width": {**SMALL, "dtype": "float32", "obs_dim": 11, "act_dim": 3, "hidden": 128,
                   "context": 20, "max_episode_steps": 1000, "lr": 1e-4, "weight_decay": 1e-4,
                   "warmup_updates": 20, "action_spread": 1.0, "seed": 3},
}
# fmt: on

# ---- The recipe ----


def shapes_of(case: dict) -> dict:
    """Return the shapes of one agent's weights by our names; a layer's weight is (in, out)."""
    hidden = case["hidden"]
    shapes = {"embed_time": (case["max_episode_steps"], hidden)}

    def add(name: str, *dims: int) -> None:
        shapes[f"{name}.weight"] = dims
        shapes[f"{name}.bias"] = dims[-1:]

    add("embed_return", 1, hidden)
    add("embed_obs", case["obs_dim"], hidden)
    add("embed_action", case["act_dim"], hidden)
    add("embed_norm", hidden)
    for i in range(case["num_blocks"]):
        add(f"blocks.{i}.norm1", hidden)
        add(f"blocks.{i}.query_key_value", hidden, 3 * hidden)
        add(f"blocks.{i}.attention_out", hidden, hidden)
        add(f"blocks.{i}.norm2", hidden)
        add(f"blocks.{i}.layers.0", hidden, 4 * hidden)
        add(f"blocks.{i}.layers.2", 4 * hidden, hidden)
    add("head_norm", hidden)
    add("head", hidden, case["act_dim"])
    return shapes


def draw_weights(case: dict, seed: int) -> dict:
    """Draw the weights of one agent. Attention is made sharp, so that its softmax matters."""
    rng = np.random.default_rng([seed, 0])
    weights = {}
    for name, shape in shapes_of(case).items():
        if name.endswith("weight") and len(shape) == 2:
            weights[name] = uniform(rng, -1, 1, *shape) / shape[0] ** 0.5
        elif name.endswith("weight"):
            weights[name] = uniform(rng, 0.5, 1.5, *shape)
        else:
            weights[name] = uniform(rng, -0.5, 0.5, *shape)
        if name.endswith("query_key_value.weight"):
            weights[name] *= 3
    # Small predictions have small errors, whose gradients are not clipped.
    weights["head.weight"] *= case["action_spread"]
    weights["head.bias"] *= case["action_spread"]
    return weights


def draw_moments(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of the observations, the same for all agents."""
    rng = np.random.default_rng(0)
    return uniform(rng, -1, 1, case["obs_dim"]), uniform(rng, 0.5, 2, case["obs_dim"])


def draw_batches(case: dict, seed: int) -> list[dict]:
    """Draw contexts of 1 to K steps. `length` says how many are no padding."""
    rng = np.random.default_rng([seed, 1])
    size, length = case["batch_size"], case["context"]
    batches = []
    for _ in range(UPDATES):
        batch = {"length": rng.integers(1, length + 1, size)}
        first = rng.integers(0, case["max_episode_steps"] - length, size)
        batch["time"] = first[:, None] + np.arange(length)
        batch["return_to_go"] = uniform(rng, -500, 3000, size, length)
        batch["observations"] = uniform(rng, -3, 3, size, length, case["obs_dim"])
        actions = uniform(rng, -1, 1, size, length, case["act_dim"])
        batch["actions"] = actions * case["action_spread"]
        batches.append(batch)
    return batches


def padded(steps: np.ndarray, lengths: np.ndarray, filling: float) -> np.ndarray:
    """Return the first steps of each context, moved to its end, and padding before them."""
    result = np.full_like(steps, filling)
    for i, length in enumerate(lengths):
        result[i, steps.shape[1] - length :] = steps[i, :length]
    return result


# ---- Our code on the recipe ----


def slots(agent, n: int) -> dict:
    """Return views of agent n's weights."""
    found = {"embed_time": agent.embed_time.data[n]}
    for name, module in agent.named_modules():
        if isinstance(module, dt.StackedLinear):
            found[f"{name}.weight"] = module.weight.data[n]
        elif isinstance(module, dt.StackedLayerNorm):
            found[f"{name}.weight"] = module.weight.data[n, 0]
        else:
            continue
        found[f"{name}.bias"] = module.bias.data[n, 0]
    return found


def our_batch(batch: dict) -> dict:
    """Return contexts in the layout of prepare_data()."""
    numbers = [np.ones_like(batch["return_to_go"]), batch["time"], batch["return_to_go"]]
    steps = [np.stack(numbers, -1), batch["observations"], batch["actions"]]
    return {"observations": padded(np.concatenate(steps, -1), batch["length"], 0)}


def run_ours(case: dict, seeds: list[int]) -> dict:
    """Train agents on the recipes of these seeds. Return the numbers of the last of them."""
    with harness.default_dtype(case):
        args = harness.make_args(dt, case, num_seeds=len(seeds), dropout=0.0)
        mean, std = draw_moments(case)
        known = {key: case[key] for key in ("obs_dim", "act_dim", "max_episode_steps")}
        task = harness.make_task(dt, **known, obs_mean=mean.tolist(), obs_std=std.tolist())
        agent = dt.DecisionTransformer(args, task, "cpu")
        for n, seed in enumerate(seeds):
            harness.fill(slots(agent, n), draw_weights(case, seed))
        drawn = [draw_batches(case, seed) for seed in seeds]
        batches = [harness.stack(map(our_batch, parts)) for parts in zip(*drawn, strict=True)]
        views = functools.partial(slots, agent, len(seeds) - 1)
        noise = [[]] * UPDATES
        return harness.run_updates([agent.update], batches, noise, ("loss/policy",), views)


@pytest.fixture(scope="module")
def golden() -> dict:
    return harness.load_golden("dt", CASES)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_the_authors(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"]])
    expected = golden["results"][name]
    assert len(expected["losses"]) == len(harness.CURVE)
    assert harness.differences(ours, expected, TOLERANCE[case["dtype"]]) == []


@pytest.mark.parametrize("name", ["clipped", "not clipped"])
def test_an_agent_trains_beside_others_as_alone(name, golden):
    case = CASES[name]
    ours = run_ours(case, [case["seed"] + 100, case["seed"]])
    assert harness.differences(ours, golden["results"][name], TOLERANCE["float64"]) == []


def test_gradients_are_clipped_in_one_case_only(golden):
    for name, is_clipped in (("clipped", True), ("not clipped", False)):
        assert all((norm > 0.25) == is_clipped for norm in golden["norms"][name])


# ---- The authors' code on the recipe ----

OF_BLOCK = {
    "norm1": "ln_1",
    "query_key_value": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "norm2": "ln_2",
    "layers.0": "mlp.c_fc",
    "layers.2": "mlp.c_proj",
}
OUTSIDE = {
    "embed_return": "embed_return",
    "embed_obs": "embed_state",
    "embed_action": "embed_action",
    "embed_norm": "embed_ln",
    "head_norm": "transformer.ln_f",
    "head": "predict_action.0",
}


def load_authors(checkout: Path) -> SimpleNamespace:
    """Return their modules. Their copy of GPT-2 was made for an old version of transformers."""
    utilities = importlib.import_module("transformers.file_utils")
    utilities.add_code_sample_docstrings = lambda **_: lambda function: function
    sys.path.insert(0, str(checkout / "gym"))
    names = ("models.decision_transformer", "training.seq_trainer")
    model, trainer = (importlib.import_module(f"decision_transformer.{name}") for name in names)
    return SimpleNamespace(model=model, trainer=trainer)


def authors_slots(model) -> dict:
    """Return their weights by our names and in our layout."""
    names = dict(OUTSIDE)
    for i in range(len(model.transformer.h)):
        names |= {f"blocks.{i}.{a}": f"transformer.h.{i}.{b}" for a, b in OF_BLOCK.items()}
    found = {"embed_time": model.embed_timestep.weight.data}
    for ours, theirs in names.items():
        layer = model.get_submodule(theirs)
        weight = layer.weight.data
        found[f"{ours}.weight"] = weight.T if isinstance(layer, torch.nn.Linear) else weight
        found[f"{ours}.bias"] = layer.bias.data
    return found


def authors_batch(case: dict, batch: dict, _) -> tuple:
    """Return what get_batch() of their experiment.py makes of the same steps."""
    mean, std = draw_moments(case)
    lengths = batch["length"]
    states = (padded(batch["observations"], lengths, 0) - mean) / std
    actions = padded(batch["actions"], lengths, -10)
    returns = padded(batch["return_to_go"], lengths, 0) / case["return_scale"]
    returns = np.concatenate([returns, np.zeros_like(returns[:, :1])], axis=1)[..., None]
    mask = torch.as_tensor(padded(np.ones_like(batch["time"]), lengths, 0))
    time = torch.as_tensor(padded(batch["time"], lengths, 0))
    dtype = torch.get_default_dtype()
    parts = [torch.as_tensor(part).to(dtype) for part in (states, actions, returns)]
    return parts[0], parts[1], None, None, parts[2], time, mask


def run_authors(modules: SimpleNamespace, case: dict) -> tuple[dict, list[float]]:
    """Do their updates, with the optimizer and the schedule of experiment.py.

    Return what is compared, and the norms of the gradients.
    """
    model = modules.model.DecisionTransformer(
        state_dim=case["obs_dim"],
        act_dim=case["act_dim"],
        max_length=case["context"],
        max_ep_len=case["max_episode_steps"],
        hidden_size=case["hidden"],
        n_layer=case["num_blocks"],
        n_head=1,
        n_inner=4 * case["hidden"],
        activation_function="relu",
        n_positions=1024,
        n_ctx=1024,  # in old versions of transformers the same as n_positions
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
    )
    harness.fill(authors_slots(model), draw_weights(case, case["seed"]))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=case["lr"], weight_decay=case["weight_decay"]
    )
    warmup = case["warmup_updates"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda steps: min((steps + 1) / warmup, 1)
    )
    batches = iter(draw_batches(case, case["seed"]))
    trainer = modules.trainer.SequenceTrainer(
        model=model,
        optimizer=optimizer,
        batch_size=case["batch_size"],
        get_batch=lambda size: authors_batch(case, next(batches), size),
        loss_fn=lambda s_hat, a_hat, r_hat, s, a, r: torch.mean((a_hat - a) ** 2),
        scheduler=scheduler,
    )
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def noted_clip(parameters, max_norm):
        norms.append(clip(parameters, max_norm).item())

    result = {"losses": {}, "parameters": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", noted_clip)
        for step in range(1, UPDATES + 1):
            loss = trainer.train_step()
            scheduler.step()
            harness.note(result, step, [loss], functools.partial(authors_slots, model))
    return result, harness.shorten(norms)


def record(checkout: Path) -> None:
    """Write golden/dt.json from a checkout of the authors' repository at COMMIT."""
    modules = load_authors(checkout)
    results, norms = {}, {}
    for name, case in CASES.items():
        with harness.default_dtype(case):
            results[name], norms[name] = run_authors(modules, case)
    results = harness.without_float32_parameters(results, CASES)
    harness.write_golden("dt", REPOSITORY, COMMIT, CASES, results=results, norms=norms)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
