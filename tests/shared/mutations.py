"""Damage files by fixed random changes, and print what becomes of each: see test_bad_input.py.

python -m tests.shared.mutations FIRST
"""

import contextlib
import io
import os
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch

import por
from tests.shared.toys import SMALL, episodes_of, load_minari, walks, write_hdf5, write_minari


def mutate(content: bytes, seed: int) -> bytes:
    """Flip bits, overwrite bytes, cut the end off, or write a part over another one."""
    rng = np.random.default_rng(seed)
    array = np.frombuffer(content, np.uint8).copy()
    # Every second time near the beginning, which says what follows.
    places = rng.random(rng.integers(1, 30)) ** rng.choice([1, 4])
    places = (len(array) * places).astype(int)
    if seed % 4 == 0:
        array[places] ^= 1 << rng.integers(0, 8, len(places)).astype(np.uint8)
    elif seed % 4 == 1:
        array[places] = rng.integers(0, 256, len(places))
    elif seed % 4 == 2:
        return content[: places[0]]
    else:
        start, source = rng.integers(0, len(array) - 64, 2)
        array[start : start + 64] = array[source : source + 64]
    return array.tobytes()


def prepare() -> list:
    """Write sound files. Return (kind, path, function that reads it, number of mutations)."""
    rows = walks(episodes=10)
    path = write_hdf5("my.hdf5", rows)
    folder = write_minari("walks-v0", episodes_of(rows)) / "data"
    sys.argv = ["por.py", *[str(word) for option in SMALL.items() for word in option]]
    por.main()
    sys.argv = ["por.py"]
    weights = por.load_checkpoint("run")["agent"]

    def read_hdf5():
        por.load_dataset(por.Args(env="Point-v0", dataset_file="my.hdf5"))

    def read_minari():
        load_minari("walks-v0")

    def resume():
        agent = por.start_run(por.Args(resume="run")).agent.state_dict()
        for name in weights:
            assert torch.equal(agent[name], weights[name]), f"other weights: {name}"

    return [
        ("hdf5", path, read_hdf5, 300),
        ("minari", folder / "main_data.hdf5", read_minari, 40),
        ("metadata", folder / "metadata.json", read_minari, 40),
        ("result", Path("run/result.json"), resume, 8),
        ("checkpoint", Path("run/checkpoint.pt"), resume, 200),
    ]


def outcome(read) -> str:
    """Return in a line what becomes of a mutated file."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except SystemExit as end:
            one_line = isinstance(end.code, str) and "\n" not in end.code
            return f"refused: {end.code}" if one_line else f"more than a line: {end.code!r}"
        except Exception:
            return f"traceback: {traceback.format_exc()!r}"
    return "understood"


def main() -> None:
    first = int(sys.argv[1])
    os.environ["MINARI_DATASETS_PATH"] = str(Path("minari").resolve())
    with contextlib.redirect_stdout(io.StringIO()):
        cases = prepare()
    tasks = [(case, seed) for case in cases for seed in range(case[3])]
    for (kind, path, read, _), seed in tasks[first:]:
        sound = path.read_bytes()
        path.write_bytes(mutate(sound, seed))
        print(f"{kind} {outcome(read)}", flush=True)
        path.write_bytes(sound)


if __name__ == "__main__":
    main()
