"""What the studies share: the script por.py, intervals over agents, and how results are stored."""

import io
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import git_commit, load_script, machine, write_atomically

por = load_script("por")

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom. Beyond nine the last one serves,
# which makes an interval a little wide.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def half_interval(values) -> float | None:
    """Return half the width of the mean's 95 % interval, or None for a single value."""
    n = len(values)
    if n < 2:
        return None
    quantile = T_975[min(n - 2, len(T_975) - 1)]
    return float(quantile * np.std(values, ddof=1) / n**0.5)


def summary(values) -> dict:
    """Return mean, half interval and all values of a list with one number per agent.

    An agent without a number (None or NaN) makes mean and interval None, because agents must not be
    chosen by their result.
    """
    numbers = np.array(values, dtype=float)
    known = bool(np.isfinite(numbers).all())
    return {
        "mean": float(numbers.mean()) if known else None,
        "half_interval": half_interval(numbers) if known else None,
        "per_agent": [float(x) if np.isfinite(x) else None for x in numbers],
    }


def shown(numbers: dict, digits: int = 2) -> str:
    """Return '0.52 ± 0.04', or '-' where an agent has no number."""
    if numbers["mean"] is None:
        return "-"
    text = f"{numbers['mean']:.{digits}f}"
    if numbers["half_interval"] is None:
        return text
    return f"{text} ± {numbers['half_interval']:.{digits}f}"


def store(study: str, folder: Path, name: str, result: dict, pictures: dict) -> None:
    """Write NAME.json, with where it comes from, and the pictures (matplotlib's) beside it."""
    origin = {
        "command": shlex.join(["python", "-m", f"benchmarks.studies.{study}", *sys.argv[1:]]),
        "commit": git_commit(),
        "machine": machine(),
        "date": time.strftime("%F"),
    }
    for file, figure in pictures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=80)
        write_atomically(folder / file, content.getvalue())
    text = json.dumps(origin | result, indent=1, allow_nan=False)
    write_atomically(folder / f"{name}.json", text + "\n")
    print(f"{folder}: {', '.join([f'{name}.json', *pictures])}")
