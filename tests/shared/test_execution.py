"""Tests of how updates are executed, and of what a researcher changes in a copy of a script.

python -m pytest tests/shared/test_execution.py
"""

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.helpers import (
    call_main,
    checkpoint_of,
    make_batch,
    make_task,
    result_of,
    same_end,
    small_options,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = ["--env=hopper-medium-v2", "--dataset-file=data.hdf5"]
RUN = [*small_options("por"), *DATA, "--seed=5", "--num-seeds=2", "--eval-every=8"]
RUN += ["--num-updates=20", "--guide=weighted"]

# ---- Copies, as a researcher changes them ----


@pytest.fixture
def folder(isolated, tiny_hdf5) -> Path:
    """Return a folder with data in it."""
    tiny_hdf5(isolated / "data.hdf5")
    return isolated


@pytest.fixture
def copy_of_por(tmp_path, monkeypatch):
    """Return `copy_of_por((old, new), ...)`: por.py under another name, with changes."""

    def copy(*changes: tuple[str, str]) -> ModuleType:
        text = (ROOT / "algorithms" / "por.py").read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
            text = text.replace(old, new)
        path = tmp_path / "my_por.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("my_por", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "my_por", module)  # dataclasses look it up
        spec.loader.exec_module(module)
        return module

    return copy


def trained(module: ModuleType, folder: Path, *words) -> dict:
    """Return the checkpoint of a run that was stopped and resumed, and ends as a whole one."""
    end = call_main(module, [*RUN, *words, "--run-dir=whole"], folder)
    assert end.code == 0 and end.err == "", end.err
    sample = module.ReplayBuffer.sample
    left = list(range(11))

    def stopping_sample(buffer):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return sample(buffer)

    module.ReplayBuffer.sample = stopping_sample
    end = call_main(module, [*RUN, *words, "--run-dir=stopped"], folder)
    assert end.code == 1 and "update 8 of phase train is saved" in end.err
    module.ReplayBuffer.sample = sample
    assert call_main(module, ["--resume=stopped"], folder).code == 0
    assert same_end(folder / "whole", folder / "stopped") == []
    return checkpoint_of(folder / "whole")


def test_an_entropy_bonus_with_a_negative_coefficient(copy_of_por, folder):
    module = copy_of_por(
        (
            "    hidden: int = 256  # hidden units of V",
            "    entropy: float = 0.0  # weight of the guide's entropy\n"
            "    hidden: int = 256  # hidden units of V",
        ),
        (
            "        # Eq. 6: imitate",
            "        guide_loss = guide_loss - args.entropy * self.guide(s)[1].log().sum((1, 2))\n"
            "        # Eq. 6: imitate",
        ),
    )
    changed = trained(module, folder, "--entropy=-0.1")
    assert changed["script"] == "my_por" and changed["args"]["entropy"] == -0.1
    end = call_main(module, [*RUN, "--run-dir=plain"], folder)
    assert end.code == 0, end.err
    plain = checkpoint_of(folder / "plain")["agent"]
    assert plain["guide.log_std"].mean() > changed["agent"]["guide.log_std"].mean()
    assert torch.equal(plain["value.net.0.weight"], changed["agent"]["value.net.0.weight"])


def test_an_ensemble_of_four_values(copy_of_por, folder):
    text = (ROOT / "algorithms" / "por.py").read_text()
    value = text[text.index("class Value(") : text.index("class GaussianPolicy(")]
    changed = value.replace("self.ensemble = 2", "self.ensemble = 4")
    checkpoint = trained(copy_of_por((value, changed)), folder)
    assert checkpoint["agent"]["value.net.0.weight"].shape[0] == 8


NEW_NETWORK = (
    "        self.phases = [",
    "        self.model = mlp(args.num_seeds, [obs_dim, 8, obs_dim]).to(device)\n"
    '        self.optimizers["model"] = Adam(self.model.parameters(), 1e-3)\n'
    "        self.phases = [",
)
ITS_LOSS = (
    "        # Eq. 6: imitate",
    "        model_loss = ((self.model(s) - s2) ** 2).mean((1, 2))\n"
    '        minimize(self.optimizers["model"], model_loss)\n'
    "        # Eq. 6: imitate",
)


def test_a_new_network_with_an_optimizer_of_its_own(copy_of_por, folder):
    checkpoint = trained(copy_of_por(NEW_NETWORK, ITS_LOSS), folder)
    lr, steps, *averages = checkpoint["optimizers"]["model"]
    assert lr == 1e-3 and steps == 20 and all(average.any() for average in averages)


def refusal(module: ModuleType, folder: Path, *words) -> str:
    """Return the line in which a run is refused before its first update."""
    end = call_main(module, [*RUN, *words, "--run-dir=refused"], folder)
    assert end.code == 1 and len(end.err.splitlines()) == 1, end.err
    assert not (folder / "refused").exists()
    return end.err


def test_another_optimizer_is_refused(copy_of_por, folder):
    old, new = NEW_NETWORK
    module = copy_of_por((old, new.replace("Adam(self.model", "torch.optim.AdamW(self.model")))
    line = refusal(module, folder)
    assert "self.optimizers['model'] is AdamW; use this script's Adam" in line


@pytest.mark.parametrize("kind", ["Adam", "torch.optim.AdamW"])
def test_an_optimizer_that_is_not_saved_is_refused(copy_of_por, folder, kind):
    old, new = NEW_NETWORK
    changed = new.replace('optimizers["model"]', "model_optimizer").replace("Adam(", f"{kind}(")
    assert "put model_optimizer into self.optimizers" in refusal(
        copy_of_por((old, changed)), folder
    )


def test_a_layer_that_all_agents_would_share_is_refused(copy_of_por, folder):
    old, new = NEW_NETWORK
    shared = new.replace(
        "mlp(args.num_seeds, [obs_dim, 8, obs_dim])", "nn.Linear(obs_dim, obs_dim)"
    )
    module = copy_of_por((old, shared), ITS_LOSS)
    line = refusal(module, folder)
    assert "all agents share model, an nn.Linear" in line and "StackedLinear" in line
    end = call_main(module, [*RUN, "--num-seeds=1", "--run-dir=alone"], folder)
    assert end.code == 0, end.err
    assert result_of(folder / "alone")["finished"]


# What would go wrong in silence: the line put before `self.phases`, and the words of the refusal
TRAPS = {
    "a tensor that is not saved": (
        "self.scale = torch.ones(2)",
        "POR.scale would not be saved; use register_buffer",
    ),
    "networks in a list": (
        "self.models = [mlp(args.num_seeds, [obs_dim, 4])]",
        "POR.models would not be saved; use register_buffer for tensors and nn.ModuleList",
    ),
    "weights that nothing trains": (
        "self.model = mlp(args.num_seeds, [obs_dim, 4]).to(device)",
        "no optimizer trains model.0.weight",
    ),
    "trained weights that are no part of the agent": (
        'self.optimizers["x"] = Adam(mlp(args.num_seeds, [obs_dim, 4]).parameters(), 1e-3)',
        "weights that are no part of the agent",
    ),
    "one weight for all agents": (
        "self.log_alpha = nn.Parameter(torch.zeros(1))\n"
        '        self.optimizers["x"] = Adam([self.log_alpha], 1e-3)',
        "all agents share log_alpha of shape (1,)",
    ),
    "a number for all agents": (
        "self.log_alpha = nn.Parameter(torch.zeros(()))\n"
        '        self.optimizers["x"] = Adam([self.log_alpha], 1e-3)',
        "all agents share log_alpha of shape ()",
    ),
    "a batch norm": (
        "self.norm = nn.BatchNorm1d(obs_dim, affine=False)",
        "all agents share norm, an nn.BatchNorm1d",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_would_go_wrong_in_silence_is_refused(trap, copy_of_por, folder):
    line, words = TRAPS[trap]
    module = copy_of_por(("        self.phases = [", f"        {line}\n        self.phases = ["))
    assert words in refusal(module, folder)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('"value": v.mean((1, 2))', '"value": v.mean()', r"value has shape \(\), not one number"),
        (
            "return {key: data[key][useful] for key in keys}",
            'return {key: data[key][useful] for key in keys} | {"more": data["rewards"][:5]}',
            "columns of different lengths",
        ),
    ],
)
def test_mistakes_of_shape_are_told(old, new, words, copy_of_por, folder):
    module = copy_of_por((old, new))
    with pytest.raises(ValueError, match=words):
        call_main(module, [*RUN, "--run-dir=run"], folder)


def test_dropout_is_off_in_evaluations_and_on_in_training(copy_of_por, folder):
    """And a run whose evaluations switch it stays exact."""
    module = copy_of_por(
        (
            "        goal, _ = self.guide(obs)\n",
            "        assert not self.training\n        goal, _ = self.guide(obs)\n",
        ),
        (
            '        s, s2 = batch["observations"], batch["next_observations"]\n\n        # Eq. 3',
            '        s, s2 = batch["observations"], batch["next_observations"]\n'
            "        assert self.training\n"
            "        s2 = F.dropout(s2, 0.1, self.training)\n\n        # Eq. 3",
        ),
    )
    trained(module, folder)


def test_a_copy_without_a_docstring_has_help(copy_of_por, folder):
    text = (ROOT / "algorithms" / "por.py").read_text()
    docstring = text[: text.index('"""', 3) + 3]
    for new in ("", '"""One line."""'):
        module = copy_of_por((docstring, new))
        end = call_main(module, ["--help"], folder)
        assert end.code == 0 and "--num-updates" in end.out, end.err


def test_numbers_of_numpy_in_the_task_can_be_loaded_again(copy_of_por, folder):
    scale = "    # A row without a next state is of use"
    module = copy_of_por((scale, f"    task.reward_scale = np.float64(2)\n{scale}"))
    assert trained(module, folder)["task"]["reward_scale"] == 2.0


# ---- Phases ----


@pytest.mark.parametrize("every", [4, 8])
def test_a_phase_can_refresh_its_data(every, copy_of_por, folder):
    """Before the first update and then every so many; exactly resumed where each save has one."""
    module = copy_of_por(
        (
            'self.phases = [Phase("train", args.num_updates, [self.update])]',
            'self.phases = [Phase("train", args.num_updates, [self.update], '
            f"refresh=self.refresh, refresh_every={every})]",
        ),
        (
            "    def update(self, batch: dict)",
            "    def refresh(self, buffer):\n"
            "        calls.append(1)\n"
            '        rewards = buffer.columns["rewards"]\n'
            "        rewards.copy_(torch.randn_like(rewards))\n\n"
            "    def update(self, batch: dict)",
        ),
        ("LOG_EVERY = 1_000", "calls = []\nLOG_EVERY = 1_000"),
    )
    end = call_main(module, [*RUN, "--run-dir=counted"], folder)
    assert end.code == 0, end.err
    assert len(module.calls) == len(range(0, 20, every))
    trained(module, folder)


# ---- Optimizer and losses ----


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_torchs_adamw(por, weight_decay):
    """With a rate that falls to 0, as the schedule's does at its end."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5), (3, 1, 5))
    start = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    mine, theirs = ([x.clone().requires_grad_() for x in start] for _ in range(2))
    ours = por.Adam(mine, 0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=weight_decay)
    ours.lr = ours.lr.double()
    adamw = torch.optim.AdamW(theirs, 0.1, (0.8, 0.99), 1e-6, weight_decay)
    for step in range(50):
        rate = 0.1 * (1 - step / 49)
        ours.lr.fill_(rate)
        adamw.param_groups[0]["lr"] = rate
        grads = [torch.randn(x.shape, generator=draw, dtype=torch.float64) ** 3 for x in start]
        if step < 49:  # at a rate of 0 our formula divides by it; the schedule stops before
            ours.step(grads)
            for weight, gradient in zip(theirs, grads, strict=True):
                weight.grad = gradient
            adamw.step()
    for own, other, first in zip(mine, theirs, start, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
        assert (own - first).abs().max() > 0.3


def test_a_rate_of_zero_moves_nothing(por):
    """As the cosine's is at its end."""
    weight = torch.ones(2, 3, requires_grad=True)
    adam = por.Adam([weight], 0.1)
    adam.step([torch.ones(2, 3)])
    por.cosine_decay(adam, 1)
    assert adam.lr.item() == pytest.approx(0, abs=1e-9)
    before = weight.detach().clone()
    adam.step([torch.ones(2, 3)])
    torch.testing.assert_close(weight.detach(), before, rtol=0, atol=1e-7)


def test_the_rate_falls_as_a_cosine(por):
    adam = por.Adam([torch.ones(1, requires_grad=True)], 0.1)
    rates = []
    for _ in range(7):
        por.cosine_decay(adam, 4)
        rates.append(adam.lr.item())
        adam.step([torch.ones(1)])
    expected = 0.05 * (1 + np.cos(np.pi * np.array([0, 1, 2, 3, 4, 4, 4]) / 4))
    np.testing.assert_allclose(rates, expected, atol=1e-7)


def test_every_agent_descends_its_own_loss(por):
    weight = torch.ones(2, 3, requires_grad=True)
    adam = por.Adam([weight], 0.1)
    por.minimize(adam, (weight * torch.tensor([[1.0], [-1.0]])).sum(1))
    torch.testing.assert_close(weight.detach(), torch.tensor([[0.9], [1.1]]).expand(2, 3))


@pytest.mark.parametrize("reduce", [torch.sum, lambda x: x])
def test_a_loss_that_is_not_one_number_an_agent_is_refused(por, reduce):
    weight = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"every agent needs its own: \(N,\)"):
        por.minimize(por.Adam([weight], 0.1), reduce(weight))


def test_a_target_follows_slowly(por):
    target, source = (torch.nn.Linear(2, 2) for _ in range(2))
    expected = [
        0.9 * a + 0.1 * b for a, b in zip(target.parameters(), source.parameters(), strict=True)
    ]
    por.update_target(target, source, 0.1)
    torch.testing.assert_close(list(target.parameters()), expected)


# ---- Kinds of execution ----


def make_buffer(por, args, rows: int = 50):
    """Return a buffer of random rows."""
    draw = np.random.default_rng(0)
    shapes = {"observations": (4,), "actions": (2,), "rewards": (), "next_observations": (4,)}
    columns = {key: draw.standard_normal((rows, *shape)) for key, shape in shapes.items()}
    columns |= {"terminals": np.zeros(rows), "next_valid": np.ones(rows)}
    return por.ReplayBuffer(columns, args, torch.device("cpu"))


def test_a_batch_has_whole_rows_each_as_likely_and_others_for_every_agent(por):
    args = por.Args(num_seeds=3, batch_size=2000)
    buffer = make_buffer(por, args, rows=40)
    table = torch.cat([column.reshape(40, -1) for column in buffer.columns.values()], 1)
    torch.manual_seed(0)
    batch = buffer.sample()
    drawn = torch.cat([column.reshape(3, 2000, -1) for column in batch.values()], 2)
    same = (drawn.unsqueeze(2) == table).all(-1)  # (N, B, rows)
    assert (same.sum(2) == 1).all()
    counts = same.sum(1)
    assert counts.min() > 20 and counts.max() < 85  # of 50 on average
    rows = same.int().argmax(2)
    assert not any(torch.equal(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_auto_is_eager_on_a_cpu(por, monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    buffer = make_buffer(por, por.Args())
    assert por.make_step(lambda batch: {"size": batch["rewards"].mean(1)}, buffer, "auto")()


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["weighted", "q"])
def test_an_update_is_compiled_once(por, guide, monkeypatch):
    """No number that changes from update to update may become a constant of the graph."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    options = {"hidden": 8, "execute_hidden": 8, "batch_size": 5, "num_seeds": 2}
    args = por.apply_settings(por.Args(guide=guide, num_updates=6, **options))
    agent = por.POR(args, make_task(por), "cpu")
    buffer = make_buffer(por, args)
    for update in (update for phase in agent.phases for update in phase.updates):
        torch._dynamo.reset()
        step = por.make_step(update, buffer, "compile")
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(4):
                assert step()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "execution, words",
    [("compile", "a folder with a space in its path"), ("graph", "which need --device cuda")],
)
def test_what_cannot_be_executed_here_is_refused(por, folder, monkeypatch, execution, words):
    monkeypatch.setattr(torch, "__file__", "/home/my folder/torch/__init__.py")
    line = refusal(por, folder, f"--execution={execution}", "--device=cpu")
    assert words in line


def test_a_device_that_is_not_here_is_refused(por, folder):
    assert "--device cuda:99 cannot be used here" in refusal(por, folder, "--device=cuda:99")
    assert "--device moon cannot be used here" in refusal(por, folder, "--device=moon")


def test_statistics_that_are_no_numbers_end_a_run(por, folder, monkeypatch):
    update = por.POR.update
    monkeypatch.setattr(
        por.POR,
        "update",
        lambda self, batch: update(self, batch) | {"loss/value": torch.tensor([1.0, float("nan")])},
    )
    end = call_main(por, [*RUN, "--run-dir=run"], folder)
    assert end.code == 1
    assert end.err == "training diverged before update 8: loss/value is NaN or infinite"
    assert checkpoint_of(folder / "run")["step"] == 0


def test_the_guides_noise_is_that_of_the_runs_only_stream(por):
    """The same seed gives the same updates, and another one others."""
    losses = []
    for seed in (0, 0, 1):
        args = por.apply_settings(por.Args(guide="q", hidden=8, execute_hidden=8))
        torch.manual_seed(0)
        agent = por.POR(args, make_task(por), "cpu")
        torch.manual_seed(seed)
        losses.append(agent.update(make_batch(1))["loss/guide"].item())
    assert losses[0] == losses[1] != losses[2]
