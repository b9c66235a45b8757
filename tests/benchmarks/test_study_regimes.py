"""Tests of benchmarks/studies/regimes: who made which steps, who learns from which, what is stored.

python -m pytest tests/benchmarks/test_study_regimes.py
"""

import json
import sys

import numpy as np
import pytest

from benchmarks.common import ROOT
from benchmarks.studies.regimes import study

torch = study.torch
pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def task():
    task = study.td3.make_task("Pendulum-v1", "", "Pendulum-v1")
    task.obs_mean = [0.0] * task.obs_dim
    task.obs_std = [1.0] * task.obs_dim
    return task


def tiny(**changes) -> study.Args:
    sizes = {"num_seeds": 2, "random_steps": 30, "num_updates": 20, "eval_every": 10, "episodes": 1}
    return study.Args(**sizes | changes)


class Constant(torch.nn.Module):
    """A policy whose action is 0.5 everywhere."""

    def forward(self, obs):
        return torch.full((*obs.shape[:-1], 1), 0.5).atanh()


def test_imperfect_demonstrations_are_random_in_a_share_of_the_steps():
    torch.manual_seed(0)
    obs = torch.zeros(20_000, 3)
    actions = study.noisy(Constant(), obs, noise=0, random_share=0.3)
    at_random = (actions - 0.5).abs() > 1e-6
    assert at_random.float().mean().item() == pytest.approx(0.3, abs=0.015)
    uniform = actions[at_random]
    assert uniform.min() < -0.99 and uniform.max() > 0.99 and uniform.mean().abs() < 0.03
    with_noise = study.noisy(Constant(), obs, noise=0.3, random_share=0)
    assert with_noise.std().item() == pytest.approx(0.3, abs=0.01)
    assert with_noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (study.noisy(Constant(), obs, 0, 0) - 0.5).abs().max() < 1e-6


def test_steps_follow_each_other_and_belong_to_their_agent(task):
    recorder = study.Recorder(task, 2, 450, seed=0)
    for t in range(450):
        recorder.step(torch.tensor([[2.0], [-t / 1_000]]))
    columns = recorder.columns
    assert (columns["actions"][0] == 1).all()  # clipped
    assert columns["actions"][1, :, 0].tolist() == pytest.approx([-t / 1_000 for t in range(450)])
    follows = (columns["next_observations"][:, :-1] == columns["observations"][:, 1:]).all(2)
    assert torch.nonzero(~follows).tolist() == [[0, 199], [0, 399], [1, 199], [1, 399]]
    assert columns["terminals"].sum() == 0  # a time limit is none
    for i in range(2):
        sums = columns["rewards"][i, :400].reshape(2, 200).sum(1).tolist()
        assert recorder.returns[i] == pytest.approx(sums, rel=1e-4)
    expected = [np.mean(returns) for returns in recorder.returns]
    assert recorder.data_return()["per_agent"] == pytest.approx(expected)
    batch = recorder.sample(500, limit=450)
    assert batch["observations"].shape == (2, 500, 3)
    assert (batch["actions"][0] == 1).all() and (batch["actions"][1] <= 0).all()


def test_concurrent_draws_never_see_later_steps(task, monkeypatch):
    args = tiny()
    recorder = study.Recorder(task, 2, 50, seed=0)
    for t in range(50):
        recorder.step(torch.full((2, 1), t / 100))
    seen = []

    def note(batch):
        seen.append(round(100 * batch["actions"].max().item()))

    monkeypatch.setattr(study, "make_updates", lambda name, agent: [note])
    study.train("bc", tiny(batch_size=2_000), task, recorder, grows=True)
    # Update t = 1, 2, ... may see steps 0 to 30 + t - 1, and large batches see the last of them.
    assert seen == [args.random_steps + t for t in range(args.num_updates)]
    seen.clear()
    study.train("bc", tiny(batch_size=2_000), task, recorder, grows=False)
    assert seen == [49] * args.num_updates


def test_the_behavior_begins_at_random_and_learns_after(task, monkeypatch):
    original = study.Recorder.sample
    limits = []

    def sample(recorder, batch_size, limit):
        limits.append(limit)
        return original(recorder, batch_size, limit)

    monkeypatch.setattr(study.Recorder, "sample", sample)
    recorder, curve, policies = study.train_behavior(tiny(), task, 0.0, seed=0)
    # An update after each step, from all steps before it
    assert limits == list(range(31, 51))
    assert curve["updates"] == [10, 20] and np.shape(curve["returns"]) == (2, 2)
    first = recorder.columns["actions"][:, :30]
    assert first.min() < -0.9 and first.max() > 0.9
    # Without noise, the last step is nearly that of the last policy but one update.
    obs = recorder.columns["observations"][:, -1:]
    expected = policies[-1](obs).tanh()[:, 0]
    assert (recorder.columns["actions"][:, -1] - expected).abs().max() < 0.05


def test_medium_is_the_first_beyond_the_middle_and_the_expert_the_best():
    returns = np.array([[-100.0, -90.0], [-40.0, -80.0], [0.0, -70.0], [-10.0, -20.0]])
    half, best = study.choose_policies(returns, random_return=-100.0)
    assert half.tolist() == [1, 3] and best.tolist() == [2, 3]


def test_picked_policies_are_those_of_the_evaluations():
    policies = [study.td3.mlp(3, [3, 4, 1]) for _ in range(4)]
    picked = study.pick(policies, np.array([2, 0, 3]))
    obs = torch.randn(3, 5, 3)
    for agent, evaluation in enumerate((2, 0, 3)):
        assert torch.equal(picked(obs)[agent], policies[evaluation](obs)[agent])


def test_vae_bc_acts_by_the_vae_alone(task):
    agent = study.make_agent("vae_bc", tiny(), task)
    assert agent.args.phi == 0 and agent.args.test_samples == 1
    (update,) = study.make_updates("vae_bc", agent)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    rows = {"observations": torch.randn(2, 8, 3), "actions": torch.rand(2, 8, 1)}
    update(rows)
    changed = {name for name, value in agent.state_dict().items() if (value != before[name]).any()}
    assert changed == {name for name in before if name.startswith("vae.")}
    torch.manual_seed(1)
    action = agent.act(rows["observations"])
    torch.manual_seed(1)
    assert torch.allclose(action, agent.generate(rows["observations"]))


def test_agents_have_the_settings_that_the_study_states(task):
    for name in ("bear", "bcq", "td3", "bc", "vae_bc"):
        args = study.make_agent(name, tiny(num_updates=2_500), task).args
        assert (args.hidden, args.lr, args.batch_size, args.num_seeds) == (64, 1e-3, 32, 2), name
        if name != "bc":
            assert (args.discount, args.polyak) == (0.95, 0.02), name
        if name == "bear":
            assert (args.recipe, args.warmup_updates, args.policy_lr) == ("original", 50, 1e-3)


def test_the_command_stores_numbers_and_a_picture(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study.BEGIN}\n{study.END}\nafter\n")
    words = ["--num-seeds", "2", "--random-steps", "200", "--num-updates", "3", "--episodes", "1"]
    words += ["--eval-every", "2", "--out", str(tmp_path / "out"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["study", *words])
    study.main()
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(found["panels"]) == [*study.QUALITIES, *study.REGIMES]
    for name, curve in found["panels"]["concurrent"]["algorithms"].items():
        assert curve["updates"] == [2, 3] and np.shape(curve["returns"]) == (2, 2), name
        assert curve["last"]["per_agent"] == curve["returns"][-1]
    assert (tmp_path / "out" / "regimes.png").stat().st_size > 10_000
    assert study.tables(found) in page.read_text()
    assert "| imperfect demonstrations |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["study", "--num-seeds", "0"])
    with pytest.raises(SystemExit, match="at least 1"):
        study.main()


def test_the_page_has_the_stored_numbers():
    folder = ROOT / "benchmarks/studies/regimes"
    if not (folder / "results/result.json").exists():
        pytest.skip("no result is stored yet")
    stored = json.loads((folder / "results/result.json").read_text())
    assert study.tables(stored) in (folder / "README.md").read_text(encoding="utf-8")
