"""What the programs of benchmarks/ share: scripts, files, pages, statistics, names and colours."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = ROOT / "algorithms"

# --------------------------------------------------------------------------------------------------
# Scripts of algorithms/
# --------------------------------------------------------------------------------------------------


def script_path(name_or_path: str | Path) -> Path:
    """Return the path of a script, which is named as `por`, `por.py` or by a path."""
    given = Path(name_or_path)
    if given.suffix == ".py" and given.exists():
        return given.resolve()
    path = ALGORITHMS / f"{given.stem}.py"
    if len(given.parts) > 1 or not path.exists():
        known = ", ".join(sorted(p.stem for p in ALGORITHMS.glob("*.py")))
        sys.exit(f"there is no script {name_or_path}; algorithms/ has {known}")
    return path


def load_script(name_or_path: str | Path) -> ModuleType:
    """Import a script by its name or path. It is imported once, also if it was by other means."""
    path = script_path(name_or_path)
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    # The plain name may belong to another script of that name, or to a module of Python's.
    for name in (path.stem, f"{path.stem}_{digest}"):
        loaded = sys.modules.get(name)
        if loaded is None:
            break
        if path == Path(getattr(loaded, "__file__", None) or ".").resolve():
            return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and tyro look their module up there
    level = gym.logger.min_level
    gym.logger.min_level = gym.logger.ERROR  # every script registers AntMaze again
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        gym.logger.min_level = level
    return module


# --------------------------------------------------------------------------------------------------
# Where a number comes from
# --------------------------------------------------------------------------------------------------


def git_commit() -> str:
    """Return the repository's commit, with -dirty if files differ from it; unknown without git."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run([*command, "--exclude=*"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # there is no git
        return "unknown"
    return answer.stdout.strip() or "unknown"


def processor() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError):  # only Linux has this file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(gpu: str | None = None) -> str:
    """Return processor, cores, the GPU that is used (if any) and versions as one line."""
    parts = [processor(), f"{os.cpu_count()} logical cores"]
    if gpu is not None:
        parts.append(gpu)
    torch = importlib.metadata.version("torch")
    return f"{', '.join(parts)}; PyTorch {torch}, Python {platform.python_version()}"


# --------------------------------------------------------------------------------------------------
# Files and pages
# --------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, and its folder if needed. A reader finds the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if isinstance(content, str):
        content = content.encode()
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def markdown_table(header: list, rows: list[list]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def replace_between(text: str, begin: str, end: str, new: str, page: str = "the page") -> str:
    """Return the text with `new` between two lines that mark the place."""
    ordered = (
        text.count(begin) == 1 and text.count(end) == 1 and text.index(begin) < text.index(end)
    )
    if not ordered:
        sys.exit(f"{page} needs the lines {begin} and {end}, once each and in this order")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n{new}\n{end}{after}"


def update_page(path: Path, begin: str, end: str, new: str) -> bool:
    """Put `new` between two lines of a page. Return whether that has changed the page."""
    if not path.exists():
        sys.exit(f"there is no page {path}")
    text = path.read_text(encoding="utf-8")
    wanted = replace_between(text, begin, end, new, str(path))
    if wanted == text:
        return False
    write_atomically(path, wanted)
    return True


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before -- and those behind it."""
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def short_number(number: float) -> str:
    """Return 1500 as '1.5k', 2000000 as '2M'."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def mean_and_spread(values, digits: int = 1) -> str:
    """Return '49.7 ± 19.8', with the deviation over seeds (divisor n); one seed has none."""
    values = np.asarray(values)
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


# --------------------------------------------------------------------------------------------------
# Statistics, as rliable defines them (Agarwal et al., NeurIPS 2021)
# --------------------------------------------------------------------------------------------------


def iqm(scores: np.ndarray) -> np.ndarray:
    """Return the interquartile mean of all runs of all tasks: (..., runs, tasks) -> (...).

    As in scipy's trim_mean, which rliable uses, floor(n / 4) values go from each end.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return P(X > Y), a tie as half, averaged over tasks: twice (..., runs, tasks) -> (...)."""
    pairs = x[..., :, None, :] - y[..., None, :, :]
    return np.heaviside(pairs, 0.5).mean((-3, -2, -1))


def interval(
    statistic: Callable, *scores: np.ndarray, resamples: int = 50_000, coverage: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of a statistic under the stratified bootstrap.

    Every argument holds scores (runs, tasks). The runs of a task are drawn with replacement from
    that task alone. The statistic maps arrays (resamples, runs, tasks) to (resamples,).
    """
    rng = np.random.default_rng(0)  # a fixed seed gives the same page from the same results
    drawn = []
    for array in scores:
        runs, tasks = array.shape
        rows = rng.integers(runs, size=(resamples, runs, tasks))
        drawn.append(array[rows, np.arange(tasks)])
    tail = 50 * (1 - coverage)
    low, high = np.percentile(statistic(*drawn), [tail, 100 - tail])
    return float(low), float(high)


# --------------------------------------------------------------------------------------------------
# Names and looks of algorithms: the same in every figure
# --------------------------------------------------------------------------------------------------

# Script: name, colour, marker. The first six colours are Okabe and Ito's. Each following one is as
# far as possible from those before it, as people with and without red-green blindness see it; the
# later are close to some others, so the marker tells them apart.
LOOKS = {
    "por": ("POR", "#0072B2", "D"),
    "iql": ("IQL", "#D55E00", "o"),
    "td3_bc": ("TD3+BC", "#009E73", "s"),
    "bc": ("BC", "#CC79A7", "^"),
    "spot": ("SPOT", "#E69F00", "v"),
    "sac": ("SAC", "#56B4E9", "P"),
    "cql": ("CQL", "#4B3C0F", "o"),
    "awac": ("AWAC", "#5A69FF", "s"),
    "awr": ("AWR", "#E10F4B", "D"),
    "onestep": ("One-step RL", "#780069", "^"),
    "rebrac": ("ReBRAC", "#B4C369", "v"),
    "bcq": ("BCQ", "#6900A5", "X"),
    "discrete_bcq": ("Discrete BCQ", "#0000FF", "P"),
    "bear": ("BEAR", "#781E3C", "s"),
    "plas": ("PLAS", "#7896FF", "o"),
    "brac": ("BRAC", "#D200B4", "D"),
    "fisher_brc": ("Fisher-BRC", "#F0A5A5", "^"),
    "abm": ("ABM", "#007878", "v"),
    "algae_dice": ("AlgaeDICE", "#0F1ED2", "X"),
    "dt": ("DT", "#2DC3D2", "s"),
    "rvs": ("RvS", "#874B00", "P"),
    "bail": ("BAIL", "#4B693C", "D"),
    "dagger": ("DAgger", "#B4963C", "o"),
    "mopo": ("MOPO", "#4B4B87", "^"),
    "combo": ("COMBO", "#5AD22D", "X"),
    "td3": ("TD3", "#B41E69", "v"),
    "ddpg": ("DDPG", "#F06978", "s"),
    "ppo": ("PPO", "#5A1E87", "P"),
    "trpo": ("TRPO", "#96965A", "D"),
}
OTHER_COLORS = ("#3C3CFF", "#A53C1E", "#2D5A5A", "#C34BE1")  # for scripts that are not in the list
DATA_COLOR = "#595959"  # of whatever the data themselves score
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))  # of an algorithm's variants


def algorithm_name(script: str) -> str:
    """Return the name of an algorithm as papers write it."""
    if script in LOOKS:
        return LOOKS[script][0]
    return script.upper().replace("_", "-")


def algorithm_color(script: str) -> str:
    """Return the algorithm's colour, which no other algorithm of LOOKS has."""
    if script in LOOKS:
        return LOOKS[script][1]
    # Not hash(), which differs from process to process.
    return OTHER_COLORS[zlib.crc32(script.encode()) % len(OTHER_COLORS)]


def algorithm_marker(script: str) -> str:
    """Return the algorithm's marker in the words of matplotlib."""
    if script in LOOKS:
        return LOOKS[script][2]
    return "*"
