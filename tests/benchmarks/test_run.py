"""benchmarks/run.py: a grid of trainings that can be stopped and continued.

Most grids train with a stand-in for a script: it takes the same options, keeps the same files and
resumes, but an update is a pause.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import run
from benchmarks.common import ROOT, load_script
from benchmarks.scores.reading import complaints, read_result

STAND_IN = """
import json, sys, time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
import tyro
from tests.benchmarks.make_result import make_result

D4RL_SHA256 = {"hopper-medium-v2": "", "hopper-expert-v2": ""}
SETTINGS = [("hopper*", {"guide": "q", "tau": 0.7}), ("*", {"guide": "w", "tau": 0.5}),
            ("*", {"guide": "q", "tau": 0.9})]


@dataclass
class Args:
    env: str = "hopper-medium-v2"
    seed: int = 0
    num_seeds: int = 1
    num_updates: int = 1_000_000
    run_dir: str | None = None
    resume: str | None = None
    device: str = "auto"
    guide: str | None = None
    tau: float | None = None
    pause: float = 0.0


def apply_settings(args):
    first = "hopper" in args.env and args.guide != "w"
    guide = args.guide or ("q" if first else "w")
    tau = {"w": 0.5, "q": 0.7 if first else 0.9}[guide]
    return replace(args, guide=guide, tau=args.tau or tau)


def write(folder, args, step):
    result = make_result("bc", "rebuilt/hopper/medium-v0", range(10, 10 + args.num_seeds), 100)
    result |= {"script": Path(__file__).stem, "step": step, "finished": step == 100}
    result["evaluations"] = result["evaluations"][: step // 10]
    result["final"] = result["evaluations"][-1] if step == 100 else None
    result["args"] |= asdict(args)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "part"
    part.write_text(json.dumps(result))
    part.replace(folder / "result.json")
    (folder / "checkpoint.pt").write_text("")


def main():
    args = tyro.cli(Args)
    folder = Path(args.resume or args.run_dir)
    step = 0
    if args.resume:
        result = json.loads((folder / "result.json").read_text())
        args = Args(**{key: result["args"][key] for key in asdict(args)})
        step = result["step"]
    args = apply_settings(args)
    print("begins at", step)
    if "broken" in args.env:
        sys.exit("the data are broken")
    try:
        while step < 100:
            write(folder, args, step)
            time.sleep(args.pause)
            step += 10
        write(folder, args, step)
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
"""
THREE = ("--datasets", "rebuilt/a/medium-v0", "rebuilt/b/medium-v0", "rebuilt/c/medium-v0")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a working folder with the stand-in as quick.py."""
    (tmp_path / "quick.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def grid(folder, capsys):
    """Return `grid(*words)`, which runs the command. It returns how it ended and the output."""

    def call(*words) -> tuple[str | int, str]:
        capsys.readouterr()
        try:
            run.main(command(*words))
            end = 0
        except SystemExit as stop:
            end = stop.code
        return end, capsys.readouterr().out

    return call


def command(*words) -> list[str]:
    options = ["--algorithms", "quick.py", "--num-seeds", "2", "--num-updates", "100"]
    return [*options, "--jobs", "2", *words]


def start_grid(*words) -> subprocess.Popen:
    """Start the command as a shell starts it in the background: Ctrl-C is ignored."""
    return subprocess.Popen(
        ["bash", "-c", "trap '' INT; exec \"$@\"", "bash", sys.executable, "-m", "benchmarks.run"]
        + command(*words),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def logs() -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in Path("runs/grid").glob("*/*.log")}


def steps() -> list[int]:
    return [json.loads(p.read_text())["step"] for p in Path("runs/grid").glob("*/*/result.json")]


def wait_for(condition) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ---- What runs ----


def test_a_grid_runs_what_is_missing(grid):
    end, out = grid(*THREE, "--results", "results")
    assert end == 0 and "3 cells, 0 with a result, 3 to run" in out
    names = sorted(str(path) for path in Path("results").glob("*/*.json"))
    assert names == [f"results/{x}-medium/quick-w-100.json" for x in "abc"]
    for name in names:
        assert complaints(read_result(Path(name))) == []
    assert "a-medium/quick-w-100: 10.5 ± 0.5" in out

    Path(names[1]).unlink()
    before = logs()
    end, out = grid(*THREE, "--results", "results")
    assert end == 0 and "2 with a result, 1 to run" in out
    # The run folder still had the finished run, so nothing was trained.
    assert Path(names[1]).exists() and logs() == before


def test_without_results_nothing_is_copied(grid):
    end, out = grid(*THREE[:2])
    assert end == 0 and "10.5 ± 0.5" in out
    assert {path.name for path in Path().iterdir()} == {"quick.py", "runs"}


def test_the_commands_of_a_dry_run_are_what_runs(grid):
    end, out = grid(*THREE[:2], "--dry-run", "--", "--tau", "0.9")
    assert end == 0 and not Path("runs").exists()
    line = out.strip().partition(" ")[2]
    assert line == (
        "python quick.py --env rebuilt/a/medium-v0 --seed 0 --num-seeds 2 --num-updates 100 "
        "--tau 0.9 --run-dir runs/grid/a-medium/quick-w-tau-0.9-100-2-seeds"
    )
    grid(*THREE[:2], "--", "--tau", "0.9")
    assert logs()["a-medium"].splitlines()[0] == f"$ {line}"


def test_a_broken_cell_does_not_stop_the_others(grid):
    words = (*THREE, "rebuilt/broken/x-v0")
    end, out = grid(*words)
    assert end == "1 of 4 cells have not finished; the same command continues"
    assert "broken-x/quick-w-100: exit code 1: the data are broken (runs/grid/broken-x" in out
    assert out.count("10.5 ± 0.5") == 6  # when it ends, and in the summary


@pytest.mark.parametrize(
    "change, reason",
    [
        ('{"script": ', "is no result"),
        ("[]", "is no result"),
        ({"script": "other"}, "is a result of other.py, not quick.py"),
        ({"args": {"tau": 0.3}}, "has tau 0.3, not 0.5"),
    ],
)
def test_a_broken_result_is_one_failed_cell(grid, change, reason):
    grid(*THREE)
    path = Path("runs/grid/b-medium/quick-w-100-2-seeds/result.json")
    if isinstance(change, dict):
        result = json.loads(path.read_text())
        args = result["args"] | change.pop("args", {})
        change = json.dumps(result | change | {"args": args})
    path.write_text(change)
    end, out = grid(*THREE, "--results", "results")
    assert end.startswith("1 of 3 cells")
    assert reason in out and len(list(Path("results").glob("*/*"))) == 2
    assert path.read_text() == change


def test_a_copy_that_is_not_the_cells_result_is_replaced(grid):
    grid(*THREE[:2], "--results", "results")
    path = Path("results/a-medium/quick-w-100.json")
    good = path.read_text()
    path.write_text(good.replace('"num_updates": 100', '"num_updates": 50'))
    end, out = grid(*THREE[:2], "--results", "results")
    assert "has num_updates 50, not 100; it is replaced" in out and path.read_text() == good


def test_more_seeds_are_as_good_and_fewer_are_not(grid):
    grid(*THREE[:2], "--results", "results")
    assert "1 with a result" in grid(*THREE[:2], "--results", "results", "--num-seeds", "1")[1]
    assert "0 with a result" in grid(*THREE[:2], "--results", "results", "--num-seeds", "3")[1]
    assert read_result(Path("results/a-medium/quick-w-100.json"))["args"]["num_seeds"] == 3


# ---- Stopping and continuing ----


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_grid_is_stopped_and_continued(grid, number):
    words = (*THREE, "--", "--pause", "0.15")
    process = start_grid(*words)
    wait_for(lambda: sum(step >= 20 for step in steps()) == 2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "3 of 3 cells have not finished" in out, out
    assert "Traceback" not in out and "not started" in out
    begun = sorted(steps())
    assert len(begun) == 2 and max(begun) < 100
    end, out = grid(*words)
    assert end == 0
    starts = [int(text.split("begins at ")[-1].split()[0]) for text in logs().values()]
    assert sorted(starts) == [0, *begun]
    assert sum("--resume" in text for text in logs().values()) == 2


def test_two_grids_share_a_folder(grid):
    """The second one waits for the first one's cell, and finds it finished."""
    words = (*THREE[:2], "--", "--pause", "0.1")
    process = start_grid(*words)
    wait_for(steps)
    end, out = grid(*words)
    assert process.wait(60) == 0 and end == 0 and "10.5 ± 0.5" in out
    assert logs()["a-medium"].count("begins at") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cells_of_a_killed_grid_finish_before_others_touch_their_folder(grid):
    words = (*THREE[:2], "--", "--pause", "0.1")
    process = start_grid(*words)
    wait_for(steps)
    process.kill()
    process.wait()
    process.stdout.close()
    end, out = grid(*words)
    assert end == 0 and logs()["a-medium"].count("begins at") == 1


# ---- Names ----


def plan_one(*words, **options) -> run.Cell:
    args = run.Args(("quick.py",), (options.pop("dataset", "d"),), **options)
    return run.plan(args, list(words))[0]


def test_a_name_keeps_what_changes_the_learning(folder):
    assert plan_one().name == "d/quick-w"
    assert plan_one("--guide", "w", "--tau", "0.5").name == "d/quick-w"
    assert plan_one("--guide=q").name == "d/quick-q"
    assert plan_one("--tau", "0.9").name == "d/quick-w-tau-0.9"
    assert plan_one("--device", "cpu").name == "d/quick-w"
    assert plan_one(num_updates=100_000).name == "d/quick-w-100k"
    assert plan_one(num_updates=1_500, seed=5).name == "d/quick-w-seed-5-1500"
    assert plan_one(num_seeds=3).folder == Path("runs/grid/d/quick-w-3-seeds")


def test_datasets_have_folders_of_their_own():
    names = ["rebuilt/antmaze/medium-play-v0", "antmaze-medium-play-v2", "mujoco/hopper/medium-v0"]
    assert [run.dataset_folder(name) for name in names] == [
        "antmaze-medium-play",
        "antmaze-medium-play-v2",
        "mujoco-hopper-medium-v0",
    ]


def test_the_names_of_the_real_scripts():
    por, bc = load_script("por"), load_script("bc")
    antmaze = {"env": "rebuilt/antmaze/medium-play-v0", "num_updates": 100_000}

    def name(module, **options):
        return run.short_name(module, vars(module.apply_settings(module.Args(**options))))

    assert name(por, **antmaze) == "por-weighted-100k"
    assert name(por, env="hopper-medium-v2", guide="weighted") == "por-weighted"
    assert name(por, env="hopper-medium-v2", hidden=64) == "por-q-hidden-64"
    assert name(bc, **antmaze, top_fraction=0.1) == "bc-top-fraction-0.1-100k"
    assert name(bc, env="hopper-medium-v2", policy="gaussian") == "bc-gaussian"


def test_a_copied_script_is_picked_up(folder):
    Path("my_quick.py").write_text(STAND_IN)
    cells = run.plan(run.Args(("quick.py", "my_quick.py"), ("d",)), [])
    assert [cell.name for cell in cells] == ["d/quick-w", "d/my_quick-w"]
    assert cells[1].command()[0] == "my_quick.py"


def test_patterns_stand_for_names_each_once():
    known = ["rebuilt/hopper/medium-v0", "rebuilt/hopper/medium-100k-v0", "hopper-medium-v2"]

    def find(*patterns):
        return run.find_datasets(patterns, lambda: known)

    assert find("rebuilt/*/medium-v0") == ["rebuilt/hopper/medium-v0"]
    assert find("*-v2", "rebuilt/*", "hopper-medium-v2") == [known[2], known[1], known[0]]
    assert run.find_datasets(("b", "a", "b"), pytest.fail) == ["b", "a"]  # no pattern, no look


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--datasets", "nothing/*"], "matches no local Minari dataset and no D4RL name"),
        (["--datasets", "d", "--jobs", "0"], "--jobs must be at least 1"),
        (["--datasets", "d", "--num-updates", "0"], "--num-updates must be at least 1"),
        (["--datasets", "d", "--", "--seed", "1"], "put it before --"),
        (["--datasets", "d", "--", "--num_seeds=1"], "put it before --"),
        (["--datasets", "d", "--", "--run-dir", "x"], "the grid names the folders"),
        (["--datasets", "d", "--algorithms", "absent"], "there is no script absent"),
    ],
)
def test_mistakes_are_named_before_anything_runs(grid, words, complaint):
    end, _ = grid(*words)
    assert complaint in end and "\n" not in end and not Path("runs").exists()


def test_an_unknown_option_of_a_script_is_refused(grid, capsys):
    assert grid("--datasets", "d", "--", "--taau", "1")[0] == 2
    assert not Path("runs").exists()


# ---- Where it runs ----


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert run.visible_gpus() == ["2", "3"]
    machine = run.ThisMachine(3, ["2", "3"], 1)
    assert sorted(machine.gpus.queue) == ["2", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # as people hide them
    assert run.visible_gpus() == []


def test_ray_is_asked_for_in_one_line(grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    end, _ = grid(*THREE, "--ray")
    assert end.startswith("--ray needs Ray") and not Path("runs").exists()


def test_a_grid_on_a_local_ray(grid, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        end, out = grid(*THREE, "rebuilt/broken/x-v0", "--ray")
    finally:
        ray.shutdown()
    assert str(end).startswith("1 of 4 cells") and "the data are broken" in out


@pytest.mark.slow
def test_a_grid_of_por(isolated, tiny_minari, hopper, monkeypatch, capsys):
    """What the script itself writes is a result that the tables trust."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny_minari("rebuilt/hopper/medium-v0", hopper())
    words = "--algorithms por --datasets rebuilt/* --num-seeds 2 --num-updates 40 --results results"
    own = "--hidden 8 --execute-hidden 8 --batch-size 4 --eval-every 20 --eval-episodes 1"
    run.main([*words.split(), "--", *own.split(), "--final-eval-episodes", "2", "--guide", "q"])
    (path,) = Path("results").rglob("*.json")
    assert str(path) == (
        "results/hopper-medium/por-q-batch-size-4-hidden-8-execute-hidden-8-40.json"
    )
    assert complaints(read_result(path)) == []
    assert os.path.exists("runs/grid/hopper-medium")
