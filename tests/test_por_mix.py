"""Tests of algorithms/por_mix.py: who learns from what, who acts with whom, what a run leaves.

What it shares with por.py is tested there; the text is compared in test_style.py.

    python -m pytest tests/test_por_mix.py
"""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("isolated")
CPU = torch.device("cpu")
SETS = ("D_o", "D_e", "both")
PAIRS = {"main": ("D_o", "D_o"), "more": ("both", "both"), "mix_o": ("both", "D_o"),
         "mix_e": ("both", "D_e"), "extra": ("D_e", "D_e")}  # the header's table
GUIDES = pytest.mark.parametrize("guide", ["weighted", "q"])


@pytest.fixture(scope="module")
def mix(por):
    """The script as a module; `por` sets threads and warnings."""
    import por_mix
    return por_mix


@pytest.fixture(scope="module")
def files(hopper, tiny_hdf5, tmp_path_factory) -> Path:
    """A folder with D_o, D_e and, as one file, both; the first action tells whose a row is."""
    folder, raws = tmp_path_factory.mktemp("data"), []
    for name, rows, seed, mark in (("o", 150, 0, 0.25), ("e", 350, 1, -0.75)):
        raw = hopper(rows=rows, seed=seed)
        raw["actions"][:, 0] = mark
        last = np.flatnonzero(raw["terminals"] | raw["timeouts"])[-1] + 1
        raws.append({key: column[:last] for key, column in raw.items()})  # no unfinished rest
        tiny_hdf5(folder / f"{name}.hdf5", raws[-1])
    tiny_hdf5(folder / "both.hdf5", {k: np.concatenate([raw[k] for raw in raws]) for k in raws[0]})
    return folder


def words(files: Path, *more) -> list:
    """A command on the two files, with an execute-policy as small as the other networks."""
    return ["--env", "hopper-medium-v2", "--dataset-file", files / "o.hdf5", "--execute-hidden", 12,
            "--more-env", "hopper-medium-v2", "--more-file", files / "e.hdf5", "--seed", 5,
            "--num-seeds", 2, *more]


def loaded(mix, files: Path, guide="weighted", **options):
    """Arguments, rows as prepared, task."""
    settings = {"hidden": 16, "execute_hidden": 12, "batch_size": 40, "num_seeds": 2, "seed": 5,
                "num_updates": 100}
    args = mix.fill_settings(mix.Args(
        env="hopper-medium-v2", dataset_file=files / "o.hdf5", more_env="hopper-medium-v2",
        more_file=files / "e.hdf5", guide=guide, **settings | options))
    rows, task = mix.load_dataset(args)
    return args, mix.prepare(args, rows, task), task


def trained(mix, args, rows, task, updates=6, kind="MixRun"):
    """A run after some updates of each of its phases."""
    run = getattr(mix, kind)(args, task, CPU)
    run.use(rows)
    for run.phase, (_, _, update) in enumerate(run.agent.phases):
        for _ in range(updates):
            update(run.batch())
    return run


def networks(run, sets=3) -> dict:
    """(network, number of the set) -> its parameters, bit for bit, over all seeds."""
    found = {}
    for name, value in run.agent.state_dict().items():
        if value.dim():
            value = value.unflatten(0, (sets * len(run.seeds), -1))
            for k in range(sets):
                found.setdefault((name.split(".")[0], k), []).append(value[k::sets].clone())
    return found


def same(one: list, other: list) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# ---- Who learns from what ----

def test_every_set_is_drawn_from_its_own_rows(mix, files):
    args, rows, task = loaded(mix, files, batch_size=500)
    run = mix.MixRun(args, task, CPU)
    run.use(rows)
    batch = run.batch()
    o, e = (mix.read_hdf5(files / f"{name}.hdf5") for name in "oe")
    assert [len(o["rewards"]), len(e["rewards"])] == run.sizes[:2]  # each row has its next state
    assert run.sizes[2] == run.sizes[0] + run.sizes[1] == len(run.table) // 2
    for k, wanted in enumerate(({0.25}, {-0.75}, {0.25, -0.75})):
        assert batch["actions"].shape == (2, 3, 500, 3)
        assert set(batch["actions"][:, k, :, 0].unique().tolist()) == wanted
        assert (batch["set"][:, k] == k).all()
    share = (batch["actions"][:, 2, :, 0] == 0.25).float().mean()
    assert abs(share - run.sizes[0] / run.sizes[2]) < 0.06
    for k in range(3):  # all of them, the first and the last too
        drawn = torch.cat([run.draw(0)[k] for _ in range(20)]).unique()
        assert len(drawn) == run.sizes[k]
        assert (drawn.min(), drawn.max()) == (run.starts[k], run.starts[k] + run.sizes[k] - 1)


def test_rewards_are_scaled_by_the_returns_of_their_set(mix, por, files):
    _, rows, task = loaded(mix, files)
    assert task["name"] == task["more"]["name"] == "hopper-medium-v2"
    assert task["transitions"] < task["more"]["transitions"]
    first = 0
    for k, name in enumerate(("o", "e", "both")):
        alone, about = por.load_dataset(por.Args(env="hopper-medium-v2",
                                                 dataset_file=files / f"{name}.hdf5"))
        expected = por.prepare(por.Args(), alone, about)
        part = slice(first, first := first + len(expected["rewards"]))
        for key in expected:
            np.testing.assert_array_equal(rows[key][part], expected[key], err_msg=f"{name} {key}")
        assert (rows["set"][part] == k).all()
    assert first == len(rows["set"])


def test_rewards_of_a_maze_are_minus_one_and_zero(mix, files):
    args, _, _ = loaded(mix, files)
    rows, task = mix.load_dataset(args)
    raw, name = rows["rewards"].copy(), {"name": "rebuilt/pointmaze/umaze-5k-v0"}
    prepared = mix.prepare(args, rows, task | name)
    np.testing.assert_array_equal(prepared["rewards"][:len(raw)], raw - 1)
    second = mix.read_hdf5(args.more_file)["rewards"] - 1
    np.testing.assert_array_equal(prepared["rewards"][len(raw):], [*second, *raw - 1, *second])


@GUIDES
@pytest.mark.parametrize("changed, untouched", [("e", 0), ("o", 1)])
def test_a_network_sees_its_own_set_alone(mix, files, guide, changed, untouched):
    args, rows, task = loaded(mix, files, guide)
    mark = {"o": 0.25, "e": -0.75}[changed]
    other = {k: column.copy() for k, column in rows.items()}
    for key in ("observations", "next_observations", "rewards", "actions"):
        other[key][rows["actions"][:, 0] == np.float32(mark)] += 0.5
    plain, changed = (networks(trained(mix, args, data, task)) for data in (rows, other))
    assert {name for name, _ in plain} == {"value", "value_target", "guide", "execute"} | (
        {"behavior"} if guide == "q" else set())
    for (name, k), weights in plain.items():
        assert same(weights, changed[name, k]) == (k == untouched), (name, k)


@GUIDES
def test_each_set_teaches_what_por_learns_from_it(mix, por, files, guide):
    args, rows, task = loaded(mix, files, guide)
    ours = trained(mix, args, rows, task)
    for k, name in enumerate(("o", "e", "both")):
        own = {field: value for field, value in vars(args).items() if "more" not in field}
        own = por.Args(**own | {"dataset_file": files / f"{name}.hdf5"})
        alone, about = por.load_dataset(own)
        theirs = trained(por, own, por.prepare(own, alone, about), about, kind="Run")
        for (network, _), weights in networks(theirs, sets=1).items():
            for x, y in zip(networks(ours)[network, k], weights, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=f"{network} of {name}")


def test_the_networks_of_a_seed_start_alike_and_those_of_two_seeds_do_not(mix, files):
    start = networks(trained(mix, *loaded(mix, files), updates=0))
    for name, _ in start:
        assert same(start[name, 0], start[name, 1]) and same(start[name, 0], start[name, 2])
    assert not torch.equal(*start["guide", 0][-1])


def test_statistics_are_told_by_set_and_seed(mix, files):
    run = trained(mix, *loaded(mix, files))
    batch = run.batch()
    batch["rewards"][1, 2] += 1000  # of the second seed's third set alone
    before = {k: v.clone() for k, v in run.agent.state_dict().items()}
    stats = run.agent.update(batch)
    run.agent.load_state_dict(before)
    batch["rewards"][1, 2] -= 1000
    plain = run.agent.update(batch)
    assert {k.split("/", 1)[0] for k in stats} == set(SETS) and len(stats) == 3 * 5
    changed = {(k, n) for k in stats for n in range(2) if not torch.equal(stats[k][n], plain[k][n])}
    assert ("both/loss/value", 1) in changed and {n for _, n in changed} == {1}
    assert {k.split("/")[0] for k, _ in changed} == {"both"}


# ---- Who acts with whom ----

def test_the_variants_are_those_of_the_slides(mix):
    assert mix.VARIANTS == PAIRS and mix.SETS == SETS


def by_hand(agent, policy: str, k: int, seed: int, x):
    """Mean of one network by plain matrix products, (E, in) -> (E, out)."""
    net = getattr(agent, policy).net
    for number, (weight, bias) in enumerate(zip(net.weights, net.biases)):
        x = x @ weight[3 * seed + k] + bias[3 * seed + k]
        x = x.relu() if number < 2 else x
    return x


def test_a_variant_acts_with_the_guide_of_one_set_and_the_execute_policy_of_another(mix, files):
    run = trained(mix, *loaded(mix, files))
    obs, agent, all_actions = torch.randn(2, 7, 11), run.agent, []
    for number, (guide, execute) in enumerate(PAIRS.values()):
        agent.variant.fill_(number)
        with torch.no_grad():
            actions = agent.act(obs)
            for seed in range(2):
                goal = by_hand(agent, "guide", SETS.index(guide), seed, obs[seed])
                expected = by_hand(agent, "execute", SETS.index(execute), seed,
                                   torch.cat([obs[seed], goal], -1))
                torch.testing.assert_close(actions[seed], expected, rtol=1e-4, atol=1e-5)
        all_actions.append(actions)
    assert all(not torch.equal(a, b) for i, a in enumerate(all_actions) for b in all_actions[:i])


@pytest.mark.parametrize("policy, index", [("guide", 0), ("execute", 1)])
@pytest.mark.parametrize("k", range(3))
def test_variants_share_the_very_same_networks(mix, files, policy, index, k):
    """mix_o keeps main's execute-policy, bit for bit; mix_o, mix_e and more have one guide."""
    run, obs = trained(mix, *loaded(mix, files), updates=1), torch.randn(2, 7, 11)

    def actions() -> dict:
        found = {}
        for number, variant in enumerate(PAIRS):
            run.agent.variant.fill_(number)
            with torch.no_grad():
                found[variant] = run.agent.act(obs)
        return found

    before = actions()
    with torch.no_grad():
        getattr(run.agent, policy).net.biases[-1][k::3] += 1
    after = actions()
    changed = {name for name in PAIRS if not torch.equal(before[name], after[name])}
    assert changed == {name for name, pair in PAIRS.items() if pair[index] == SETS[k]}


# ---- What a run leaves ----

UPDATES = ["--num-updates", 60, "--eval-every", 30, "--checkpoint-every", 20]


@pytest.fixture(scope="module")
def whole(files, run_cli):
    """A run from start to end in a process of its own."""
    end = run_cli(*words(files, *UPDATES, "--run-dir", "whole"), folder=files, script="por_mix")
    assert end.returncode == 0, end.stderr
    return end


def test_a_run_tells_every_variant(files, whole):
    result = result_of(files / "whole")
    assert result["script"] == "por_mix" and result["finished"] and result["seeds"] == [5, 6]
    assert result["task"]["more"]["fingerprint"] != result["task"]["fingerprint"]
    assert [e["update"] for e in result["evaluations"]] == [0, 30, 60]
    assert [e["episodes"] for e in result["evaluations"]] == [2, 2, 3]
    for e in result["evaluations"]:
        assert [*e["variants"]] == [*PAIRS]
        assert {k: e[k] for k in ("returns", "scores")} == e["variants"]["mix_o"]
        for about in e["variants"].values():
            np.testing.assert_allclose(about["scores"], 100 * (
                np.array(about["returns"]) + 20.272305) / (3234.3 + 20.272305))
        for mix_name in ("mix_o", "mix_e"):
            for other in ("main", "more"):
                gain = np.subtract(*(e["variants"][n]["scores"] for n in (mix_name, other)))
                about = e["gains"][f"{mix_name} - {other}"]
                assert about["mean"] == pytest.approx(gain.mean())
                # two seeds: Student's t of one degree of freedom
                assert about["half"] == pytest.approx(12.71 * gain.std(ddof=1) / 2**0.5)
    first, last = (result["evaluations"][i]["variants"] for i in (0, -1))
    assert all(about == first["main"] for about in first.values())  # untrained, all are alike
    assert len({tuple(about["returns"]) for about in last.values()}) > 1
    assert (files / "whole/variants.png").read_bytes().startswith(b"\x89PNG")
    lines = whole.stdout.splitlines()
    assert len([line for line in lines if line.startswith("main ")]) == 3
    assert len([line for line in lines if "mix_o - main" in line and "±" in line]) == 3
    assert not whole.stderr.strip()


def curves(folder: Path) -> dict:
    """Tag -> (step, value) of one TensorBoard folder; what a resume purged is absent."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]}


def test_the_curves_are_those_of_every_variant_and_set(files, whole):
    folder, result = files / "whole/tensorboard", result_of(files / "whole")
    found = curves(folder / "variants")
    assert found.keys() == {f"{name}/seed {seed}" for name in PAIRS for seed in (5, 6)}
    for name in PAIRS:
        for n, seed in enumerate((5, 6)):
            expected = [(e["update"], e["variants"][name]["scores"][n])
                        for e in result["evaluations"]]
            np.testing.assert_allclose(found[f"{name}/seed {seed}"], expected, rtol=1e-5)
    for seed in (5, 6):
        assert {f"{k}/loss/{part}" for k in SETS for part in ("value", "guide", "execute")} < (
            curves(folder / f"train-{seed}").keys())


def test_main_more_and_extra_are_runs_of_por(files, whole, por, main):
    """The same numbers as those of three commands of por.py, the second on the joint file."""
    variants = result_of(files / "whole")["final"]["variants"]
    for variant, name in (("main", "o"), ("more", "both"), ("extra", "e")):
        settings = result_of(files / "whole")["args"]
        end = main("--env", "hopper-medium-v2", "--dataset-file", files / f"{name}.hdf5", "--seed",
                   5, "--num-seeds", 2, "--run-dir", name, *UPDATES, "--guide", settings["guide"],
                   "--value-lr", settings["value_lr"])
        assert end.code == 0, end.err
        np.testing.assert_allclose(result_of(Path(name))["final"]["returns"],
                                   variants[variant]["returns"], rtol=1e-4)


def test_eval_only_finds_the_scores_again(mix, files, whole, main, monkeypatch):
    monkeypatch.chdir(files)
    before = (files / "whole/result.json").read_bytes()
    end = main("--eval-only", "--run-dir", "whole", script=mix)
    assert end.code == 0, end.err
    last = lambda out: [line for line in out.splitlines() if line.startswith("main ")][-1]
    assert last(end.out) == last(whole.stdout) and before == (
        files / "whole/result.json").read_bytes()


def same_end(one: Path, other: Path) -> None:
    """Weights, moments of the optimisers, generators and evaluations, bit for bit."""
    def tensors(state) -> list:
        if isinstance(state, torch.Tensor):
            return [state]
        parts = state.values() if isinstance(state, dict) else state
        return [x for part in parts if isinstance(part, (torch.Tensor, dict, list))
                for x in tensors(part)]

    states = [torch.load(folder / "checkpoint.pt") for folder in (one, other)]
    assert states[0]["evaluations"] == states[1]["evaluations"] and states[0]["finished"]
    assert len(states[0]["generators"]) == 6
    for key in ("agent", "moments", "generators"):
        assert same(*(tensors(state[key]) for state in states)) and tensors(states[0][key]), key


def test_a_killed_run_ends_as_if_nothing_had_happened(files, whole, start_cli, run_cli):
    more = words(files, *UPDATES, "--run-dir", "killed")
    process, deadline = start_cli(*more, folder=files, script="por_mix"), time.time() + 120
    path = files / "killed/checkpoint.pt"
    while not path.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    stopped = result_of(files / "killed")
    assert process.returncode == -9 and not stopped["finished"] and 0 < stopped["step"] < 60
    end = run_cli(*more, folder=files, script="por_mix")
    assert end.returncode == 0 and f"resumed at update {stopped['step']} " in end.stdout, end.stderr
    same_end(files / "whole", files / "killed")


def test_a_run_killed_in_its_training_repeats_what_no_checkpoint_has(mix, files, main,
                                                                     monkeypatch):
    command = words(files, *UPDATES, "--guide", "weighted", "--run-dir", "run")
    save = mix.MixRun.save

    def die_at_the_second(self, finished):  # killed once the scores of update 30 are on the disk
        self.curves.flush()
        exit(9) if self.step == 40 else save(self, finished)

    with monkeypatch.context() as patch:
        patch.setattr(mix.MixRun, "save", die_at_the_second)
        assert main(*command, script=mix).code == 9
    assert result_of(Path("run"))["step"] == 20
    assert [step for step, _ in curves(Path("run/tensorboard/variants"))["main/seed 5"]] == [0, 30]
    assert main(*command, script=mix).code == 0
    found = curves(Path("run/tensorboard/variants"))
    assert {tuple(step for step, _ in points) for points in found.values()} == {(0, 30, 60)}
    assert main(*command, "--run-dir", "other", script=mix).code == 0  # never stopped
    same_end(Path("run"), Path("other"))


def test_one_seed_has_no_interval(mix, files, main):
    end = main(*words(files, "--num-seeds", 1, "--num-updates", 20, "--run-dir", "run"), script=mix)
    assert end.code == 0 and "interval" not in end.out, end.err
    gains = result_of(Path("run"))["final"]["gains"]
    assert gains.keys() == {f"{a} - {b}" for a in ("mix_o", "mix_e") for b in ("main", "more")}
    assert {gain["half"] for gain in gains.values()} == {None}


def test_the_interval_is_students(mix):
    assert mix.half_interval(np.arange(1.0, 6.0)) == pytest.approx(1.963, abs=0.01)
    assert mix.half_interval(np.arange(100.0)) == pytest.approx(2.26 * 29.01 / 10, rel=1e-3)


def test_two_rebuilt_datasets_train_by_their_ids(mix, hopper, tiny_minari, main):
    tiny_minari("rebuilt/hopper/few-v0", hopper(rows=200))
    tiny_minari("rebuilt/hopper/many-v0", hopper(rows=300, seed=1))
    end = main("--env", "rebuilt/hopper/few-v0", "--more-env", "rebuilt/hopper/many-v0", "--guide",
               "q", "--num-updates", 10, "--behavior-updates", 5, "--num-seeds", 2,
               "--execute-hidden", 12, "--execution", "eager", "--precision", "bf16", script=mix)
    assert end.code == 0 and "D_e: rebuilt/hopper/many-v0 (rebuilt), " in end.out, end.err
    (run_dir,) = Path("runs").iterdir()
    assert run_dir.name.startswith("por_mix-rebuilt-hopper-few-v0-seed0-")


@GUIDES
def test_the_updates_can_be_compiled(mix, files, guide):
    """Without the C++ compiler, whose work is compared in test_por.py."""
    args, rows, task = loaded(mix, files, guide)
    runs = [mix.MixRun(args, task, CPU) for _ in range(2)]
    for run, compiled in zip(runs, (False, True)):
        run.use(rows)
        for *_, update in run.agent.phases:
            if compiled:
                update = torch.compile(update, backend="aot_eager")
            for _ in range(2):
                update(run.batch())
    ends = [networks(run) for run in runs]
    for name, weights in ends[0].items():
        for x, y in zip(weights, ends[1][name], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


# ---- Words instead of a traceback ----

def refusal(end, *expected: str) -> None:
    assert end.code == 1 and "Traceback" not in end.err and len(end.err.splitlines()) == 1, end.err
    for word in expected:
        assert word in end.err, end.err
    assert not Path("run").exists()


TINY = ["--num-updates", 20, "--run-dir", "run"]


def test_two_environments_are_refused(mix, files, tiny_hdf5, pendulum, main):
    tiny_hdf5(Path("pendulum.hdf5"), pendulum())
    end = main(*words(files, *TINY, "--more-env", "Pendulum-v1", "--more-file", "pendulum.hdf5"),
               script=mix)
    refusal(end, "Hopper-v4", "Pendulum-v1", "--more-env", "one environment")


@pytest.mark.parametrize("more, expected", [
    (["--more-env", "rebuilt/hopper/absent-v0"],
     ["--more-env rebuilt/hopper/absent-v0: no such dataset", "collect.py"]),
    (["--more-env", "Hoper-v4", "--more-file", "my.hdf5"], ["--more-env Hoper-v4", "--more-file"]),
    (["--more-env", "hopper-medium-v2", "--more-file", "absent.hdf5"], ["absent.hdf5", "HDF5"]),
    ([], ["--more-env rebuilt/pointmaze/umaze-noisy-100k-v0: no such dataset"])])
def test_a_missing_second_set_is_refused(mix, files, main, more, expected):
    Path("my.hdf5").symlink_to(files / "e.hdf5")
    end = main("--env", "hopper-medium-v2", "--dataset-file", files / "o.hdf5", *TINY, *more,
               script=mix)
    refusal(end, *expected)


def test_a_missing_first_set_is_refused_by_its_own_option(mix, main):
    refusal(main(*TINY, script=mix), "--env rebuilt/pointmaze/umaze-5k-v0: no such dataset")


def test_the_same_data_twice_are_refused(mix, files, main):
    end = main(*words(files, *TINY, "--more-file", files / "o.hdf5"), script=mix)
    refusal(end, "--more-env", "same data")


def test_a_run_does_not_go_on_with_another_second_set(mix, files, main, hopper, tiny_hdf5,
                                                      monkeypatch):
    tiny_hdf5(Path("e.hdf5"), hopper(rows=350, seed=1))
    command = words(files, "--num-updates", 40, "--checkpoint-every", 20, "--run-dir", "run",
                    "--more-file", "e.hdf5")
    save = mix.MixRun.save
    with monkeypatch.context() as patch:
        patch.setattr(mix.MixRun, "save", lambda self, finished: (save(self, finished), exit(9)))
        assert main(*command, script=mix).code == 9
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    tiny_hdf5(Path("e.hdf5"), hopper(rows=350, seed=2))
    end = main(*command, script=mix)
    assert end.code == 1 and len(end.err.splitlines()) == 1, end.err
    assert "other data" in end.err and "hopper-medium-v2" in end.err
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    tiny_hdf5(Path("e.hdf5"), hopper(rows=350, seed=1))
    end = main(*command, script=mix)
    assert end.code == 0 and "resumed at update 20 " in end.out, end.err
