"""What each script must do. A new algorithm is tested by being in algorithms/.

A line in VARIANTS tests a script with other options, too; helpers.SMALLER has its small sizes.

    python -m pytest tests/test_every_script.py
    python -m pytest tests/test_every_script.py -k por
"""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from tests import sync
from tests.helpers import (
    call_main,
    checkpoint_of,
    curves,
    differing,
    load_script,
    result_of,
    same_end,
    small_options,
)

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "por --guide q": ["--guide=q", "--behavior-updates=15"],
    "bc --policy gaussian": ["--policy=gaussian", "--top-fraction=0.5"],
    "bc --policy mixture": ["--policy=mixture", "--components=2"],
    "bc --policy categorical": ["--policy=categorical", "--bins=5"],
    "bc --policy diffusion": ["--policy=diffusion", "--diffusion-steps=4"],
    "spot --estimate iwae": ["--estimate=iwae", "--num-samples=2", "--num-updates=13"],
    "awac --weights softmax": ["--weights=softmax"],
    "awr --weights marwil": ["--weights=marwil", "--td-lambda=1"],
    "cql --variant rho": [
        "--variant=rho",
        "--target-gap=0.5",
        "--max-backup=True",
        "--bc-updates=10",
    ],
    "onestep --improvement exp": ["--improvement=exp"],
    "onestep --improvement easy_bcq": ["--improvement=easy_bcq", "--q-updates=22"],
    "plas --phi 0.05": ["--phi=0.05"],
    "bear --recipe original": ["--recipe=original"],
    "abm --prior bm": ["--prior=bm"],
    "brac --divergence kl_dual": ["--divergence=kl_dual", "--target-divergence=0.5"],
    "brac --divergence mmd": ["--divergence=mmd", "--penalty=p"],
    "bail --variant progressive": ["--variant=progressive", "--selection=margin"],
    "mopo --termination learned": ["--termination=learned"],
    "combo --rollout-policy uniform": ["--rollout-policy=uniform", "--penalized=mix"],
}
ONLINE_ONLY = ("ppo", "trpo")  # they learn from no data, and their own tests show the rest
CASES = [script for script in sync.read_scripts() if script not in ONLINE_ONLY] + [*VARIANTS]
RUN = ["--seed=5", "--num-seeds=2", "--num-updates=22", "--eval-every=8"]
ENVS = {"discrete_bcq": "CartPole-v1"}  # what a script needs instead of hopper-medium-v2


def words_of(case: str) -> tuple[str, list[str]]:
    """Return the script of a case, and the words of its small command."""
    script = case.split()[0]
    env = ENVS.get(script, "hopper-medium-v2")
    data = [f"--env={env}", f"--dataset-file={env}.hdf5"]
    return script, [*small_options(script), *data, *RUN, *VARIANTS.get(case, [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_hdf5, cartpole) -> Path:
    """Return the folder of all runs, with their data in it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_hdf5(folder / "hopper-medium-v2.hdf5")
    tiny_hdf5(folder / "CartPole-v1.hdf5", cartpole())
    return folder


@pytest.fixture(scope="module")
def whole_run(folder):
    """Return `whole_run(case)`: the folder of a run without a stop, made once."""

    @functools.cache
    def run(case: str) -> Path:
        script, words = words_of(case)
        run_dir = folder / f"{case} whole"
        end = call_main(script, [*words, "--run-dir", run_dir], folder)
        assert end.code == 0 and end.err == "", end.err
        return run_dir

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_run_leaves_its_numbers_its_checkpoint_and_its_curves(case, whole_run):
    run_dir = whole_run(case)
    result = result_of(run_dir)
    assert result["script"] == case.split()[0] and result["finished"]
    phases = sorted(path.name for path in (run_dir / "tensorboard").iterdir())
    *_, last = result["evaluations"]
    assert last == result["final"] and last["update"] == result["step"]
    assert last["episodes"] == 3 and len(last["scores"]) == len(last["returns"]) == 2
    assert {evaluation["phase"] for evaluation in result["evaluations"]} <= set(phases)
    for phase in phases:
        steps = curves(run_dir / "tensorboard" / phase)
        losses = [tag for tag in steps if tag.startswith("loss/") and "agent" not in tag]
        assert losses and all(steps[tag] == steps[f"{tag}/agent1"] for tag in losses)
        scored = [e["update"] for e in result["evaluations"] if e["phase"] == phase]
        assert steps.get("score", []) == steps.get("return", []) == scored
    checkpoint = checkpoint_of(run_dir)
    assert {key: checkpoint[key] for key in result} == result
    assert checkpoint["optimizers"].keys() and checkpoint["agent"].keys()


def stop_after(batches: int, module, patch) -> None:
    """Let a run be interrupted, as by Ctrl-C, when it wants one more batch."""
    left = list(range(batches))
    sample = module.ReplayBuffer.sample

    def stopping_sample(buffer) -> dict:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return sample(buffer)

    patch.setattr(module.ReplayBuffer, "sample", stopping_sample)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_stopped_again_and_again_ends_as_the_whole_one(case, whole_run, folder):
    """Stopped before the first batch, right after a save, and with updates that are lost."""
    script, words = words_of(case)
    module = load_script(script)
    run_dir = folder / f"{case} stopped"
    words = [*words, "--run-dir", run_dir]
    for batches in (0, 5, 8, 11, 13):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(batches, module, patch)
            end = call_main(script, words, folder)
        words = ["--resume", run_dir]
        if end.code == 0:
            break
        assert end.code == 1 and "is saved; to continue: python" in end.err, end.err
        assert not result_of(run_dir)["finished"]
    assert call_main(script, words, folder).code == 0
    assert same_end(run_dir, whole_run(case)) == []


@pytest.mark.parametrize("case", CASES)
def test_the_evaluations_change_nothing(case, whole_run, folder):
    script, words = words_of(case)
    run_dir = folder / f"{case} often"
    more = ["--eval-every=5", "--eval-episodes=1", "--run-dir", run_dir]
    assert call_main(script, [*words, *more], folder).code == 0
    states = [checkpoint_of(path) for path in (whole_run(case), run_dir)]
    keys = ("agent", "optimizers", "rng_state", "step", "phase")
    assert differing(*[{key: state[key] for key in keys} for state in states]) == []
    assert len(states[0]["evaluations"]) < len(states[1]["evaluations"])


# ---- Updates ----


def make_agent(case: str, folder: Path, num_seeds: int = 2, device: str = "cpu", dtype=None):
    """Return the module, an agent and the buffer of its data."""
    script, words = words_of(case)
    module = load_script(script)
    args = module.tyro.cli(module.Args, args=[*words, f"--num-seeds={num_seeds}"])
    args.dataset_file = str(folder / args.dataset_file)
    args = module.apply_settings(args)
    data, task = module.load_dataset(args)
    columns = module.prepare_data(args, data, task)
    torch.manual_seed(args.seed)
    torch.set_default_dtype(dtype or torch.float32)
    try:
        agent = module.Algorithm(args, task, device)
    finally:
        torch.set_default_dtype(torch.float32)
    buffer = module.ReplayBuffer(columns, args, torch.device(device))
    if dtype is not None:
        buffer.columns = {key: column.to(dtype) for key, column in buffer.columns.items()}
    return module, agent, buffer


def updates_of(agent) -> list:
    """Return all update functions, each once, in the order of the phases."""
    return list(dict.fromkeys(update for phase in agent.phases for update in phase.updates))


@pytest.mark.parametrize("case", CASES)
def test_an_agent_is_untouched_by_the_batches_of_the_others(case, folder):
    def trained(other_rows: bool) -> dict:
        _, agent, buffer = make_agent(case, folder, num_seeds=3)
        torch.manual_seed(0)
        statistics = {}
        for _ in range(3):
            for update in updates_of(agent):
                batch = buffer.sample()
                if other_rows:
                    for key, column in buffer.columns.items():
                        batch[key][1] = column[:20]
                statistics |= update(batch)
        found = {name: p.detach().unflatten(0, (3, -1)) for name, p in agent.named_parameters()}
        return found | {name: value.detach() for name, value in statistics.items()}

    plain, other = trained(False), trained(True)
    changed = []
    for name in plain:
        assert torch.equal(plain[name][0], other[name][0]), name
        assert torch.equal(plain[name][2], other[name][2]), name
        if not torch.equal(plain[name][1], other[name][1]):
            changed.append(name)
    assert len(changed) > 0.7 * len(plain)


@pytest.mark.parametrize("case", CASES)
def test_agents_are_different_and_see_different_rows(case, folder):
    _, agent, buffer = make_agent(case, folder)
    batch = buffer.sample()
    assert batch["observations"].shape[:2] == (2, 20)
    assert not torch.equal(*batch["observations"])
    weights = [p for name, p in agent.named_parameters() if name.endswith("0.weight")]
    assert weights and all(not torch.equal(*p.unflatten(0, (2, -1))) for p in weights)
    # Observations far from zero, where untrained networks of discrete actions differ, too
    obs = 10 * torch.randn_like(batch["observations"][:1])
    with torch.no_grad():
        actions = agent.act(torch.cat([obs, obs]))
    assert actions.shape[:2] == (2, 20) and not torch.equal(*actions)


def losses_of(case: str, folder: Path, execution: str, device: str = "cpu") -> tuple:
    """Return the statistics of 12 updates in float64, and the weights after them."""
    module, agent, buffer = make_agent(case, folder, device=device, dtype=torch.float64)
    torch.manual_seed(1)
    found = []
    for phase in agent.phases:
        steps = [module.make_step(update, buffer, execution) for update in phase.updates]
        for i in range(12):
            statistics = steps[i % len(steps)]()
            found.append({name: value.tolist() for name, value in statistics.items()})
    return found, agent.state_dict()


def compare(case: str, folder: Path, execution: str, device: str) -> None:
    """Compare a kind of execution with the eager one."""
    # What make_step() sets is put back.
    dynamo = torch._dynamo.config.patch(trace_autograd_ops=torch._dynamo.config.trace_autograd_ops)
    inductor = torch._inductor.config.patch(fallback_random=torch._inductor.config.fallback_random)
    with dynamo, inductor:
        eager, eager_weights = losses_of(case, folder, "eager", device)
        other, other_weights = losses_of(case, folder, execution, device)
    torch._dynamo.reset()
    assert len(eager) == len(other) >= 12
    for expected, found in zip(eager, other, strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
    for name, weight in eager_weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__file__, reason="PyTorch cannot compile below such a path")
@pytest.mark.parametrize("case", [case for case in CASES if case not in VARIANTS])
def test_compiled_updates_are_the_eager_ones(case, folder):
    compare(case, folder, "compile", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("case", VARIANTS)
def test_updates_of_a_variant_become_one_graph_that_does_the_same(case, folder, monkeypatch):
    """The graph is run as it is, because the C++ compiler needs most of the test's time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compare(case, folder, "compile", "cpu")


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
@pytest.mark.parametrize("case", CASES)
def test_cuda_graphs_are_the_eager_updates(case, folder):
    compare(case, folder, "graph", "cuda")


# ---- Words ----


@pytest.mark.parametrize("script", sync.read_scripts())
def test_help_begins_with_the_idea_and_two_commands_and_names_no_bare_none(script, folder):
    module = load_script(script)
    end = call_main(script, ["--env=hopper-medium-v2", "--help"], folder)
    assert end.code == 0 and end.err == ""
    text = " ".join(end.out.replace("│", " ").split())
    title, idea, *_ = module.__doc__.strip().split("\n\n")
    assert f"{title} {' '.join(idea.split())}" in text
    assert text.count(f"python algorithms/{script}.py") == 2
    args = module.apply_settings(module.Args(env="hopper-medium-v2"))
    for field in dataclasses.fields(args):
        option = f"--{field.name.replace('_', '-')}"
        assert option in text, option
        if getattr(args, field.name) is None:
            help_text = text.partition(f"{option} ")[2].partition("(default: None)")[0]
            assert "None:" in help_text and "(default" not in help_text, option


@pytest.mark.parametrize("script", sync.read_scripts())
def test_the_settings_of_a_dataset_fill_what_was_left_open(script):
    module = load_script(script)
    open_fields = [k for k, v in vars(module.Args()).items() if v is None]
    for env in ("hopper-medium-v2", "antmaze-large-play-v2", "Pendulum-v1"):
        filled = vars(module.apply_settings(module.Args(env=env)))
        names = {name for _, settings in module.SETTINGS for name in settings}
        assert names <= {*open_fields, *names} and all(filled[name] is not None for name in names)
        assert filled["env"] == env
    for name in names:
        value = next(s[name] for _, s in module.SETTINGS if name in s)
        given = module.Args(**{name: value})
        assert getattr(module.apply_settings(given), name) == value
