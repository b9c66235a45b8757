"""Store datasets where Minari looks for them: written aside, and moved into place when complete."""

import hashlib
import json
import os
import re
import shutil
import socket
import sys
import warnings
from pathlib import Path

import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path

from benchmarks.datasets.rollout import FIELDS, run_jobs

NOTHING = "nothing was stored, and an older dataset of this name is as it was"


def datasets_root() -> Path:
    """Return the folder of the local datasets: $MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    try:
        root = get_dataset_path().resolve()
    except OSError as error:
        sys.exit(f"{error}; set MINARI_DATASETS_PATH to a folder in which you can write")
    if not os.access(root, os.W_OK):
        sys.exit(f"cannot write to {root}; set MINARI_DATASETS_PATH to another folder")
    return root


def stored_metadata(place: Path) -> dict | None:
    """Return the metadata of a dataset that collect.py has completed, or None."""
    try:
        metadata = json.loads((place / "data" / "metadata.json").read_text())
    except (OSError, ValueError):
        return None
    complete = "data_sha256" in metadata and (place / "data" / "main_data.hdf5").exists()
    return metadata if complete else None


def data_sha256(episodes: list) -> str:
    """Return the SHA-256 of the data, which equal datasets share however they are stored.

    It is of all observations (T + 1 rows an episode) in the order of the episodes, then all
    actions, rewards, terminations and truncations, as little-endian float32 and one byte per bool.
    The episodes are dicts as of rollout(), or Minari's EpisodeData.
    """
    digest = hashlib.sha256()
    for field in FIELDS:
        dtype = "?" if field in ("terminations", "truncations") else "<f4"
        for episode in episodes:
            value = episode[field] if isinstance(episode, dict) else getattr(episode, field)
            digest.update(np.ascontiguousarray(value, dtype).tobytes())
    return digest.hexdigest()


def write_dataset(
    root: Path, dataset_id: str, stored: dict, episodes: list[dict], metadata: dict
) -> None:
    """Store the episodes as a Minari dataset below `root`, or nothing.

    `stored` is what Minari is to know of the environment: `env`, a specification, or
    `observation_space` and `action_space`.

    A writer that is killed midway would leave a dataset that is listed, loads empty and blocks its
    id. So the dataset is written into a hidden folder and moved when it is complete.
    """
    remove_leftovers(root)
    temporary = root / temporary_name()
    try:
        # HDF5 may end the process when the disk is full, so another one writes.
        job = (temporary, dataset_id, stored, episodes)
        died = f"the process that wrote {dataset_id} died; is the disk of {root} full? {NOTHING}"
        for _, problem in run_jobs(write_with_minari, [job], 1, if_one_dies=died):
            if problem is not None:
                raise OSError(problem)
        file = temporary / dataset_id / "data" / "metadata.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | metadata))
        namespace = dataset_id.rpartition("/")[0]
        if namespace not in list_local_namespaces():
            create_namespace(namespace)
        move_into_place(temporary / dataset_id, root / dataset_id)
    except OSError as error:
        sys.exit(f"cannot write {dataset_id} below {root}: {error}; {NOTHING}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_with_minari(
    folder: Path, dataset_id: str, stored: dict, episodes: list[dict]
) -> str | None:
    """Write a dataset in a process of its own. Return what went wrong, or None."""
    # HDF5 prints an error for every object of a file that it cannot write.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        with warnings.catch_warnings():
            # Minari warns of what is left out on purpose, such as an e-mail address.
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                dataset_id,
                [EpisodeBuffer(**episode) for episode in episodes],
                data_format="hdf5",
                author="SOLO",
                **stored,
            )
    except Exception as error:  # a full disk makes h5py raise several types
        text = " ".join(str(error).split())
        reason = re.search("error message = '([^']+)'", text)  # HDF5 tells much besides
        return reason[1] if reason else f"{type(error).__name__}: {text}"[:300]
    return None


def temporary_name() -> str:
    """Return the name of this process's folder. Minari does not list names with a leading dot."""
    return f".collect-{socket.gethostname()}-{os.getpid()}"


def remove_leftovers(root: Path) -> None:
    """Remove the folders of processes that were killed on this machine."""
    for folder in root.glob(f".collect-{socket.gethostname()}-*"):
        pid = folder.name.rpartition("-")[2]
        if not (pid.isdigit() and is_running(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: int) -> bool:
    """Is there another process of that number?"""
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def move_into_place(new: Path, target: Path) -> None:
    """Put a folder in the place of another one, which is kept until the new one is there."""
    bring_back(target)
    if target.exists():
        target.rename(old_version(target))
    try:
        new.rename(target)
    finally:
        bring_back(target)


def bring_back(target: Path) -> None:
    """Bring the old version of a dataset back if a killed process left no new one."""
    old = old_version(target)
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(target)


def old_version(target: Path) -> Path:
    """Return the place of the old version while the new one is moved. Minari does not list it."""
    return target.with_name(f".{target.name}.old")
