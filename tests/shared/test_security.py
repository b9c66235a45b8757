"""Nothing that a file says is executed, and no file makes the script read another one.

Every attack, if it worked, would make the file `canary`, or show the secret.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec, WrapperSpec

import por
from tests.shared import toys
from tests.shared.toys import (
    Point,
    episodes_of,
    isolate,
    load_minari,
    recorded,
    refusal,
    select,
    walks,
    write_hdf5,
    write_minari,
)

CANARY = ["touch", "canary"]


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text(
        "from pathlib import Path\n"
        "from tests.shared.toys import Point, register\n"
        "Path('canary').touch()\n"
        "register('Evil-v0', Point)\n"
    )
    yield
    sys.modules.pop("evil", None)
    gym.registry.pop("Evil-v0", None)


class Payload:
    """An object whose unpickling runs a command."""

    def __reduce__(self):
        return subprocess.check_call, (CANARY,)


def test_the_canary_sings():
    """The attacks below are real: what they name would make the file."""
    with pytest.raises(TypeError):  # it is no environment, but it ran
        gym.make(EnvSpec("Point-v0", "subprocess:check_call", kwargs={"args": CANARY}))
    assert Path("canary").exists()
    Path("canary").unlink()
    pickle.loads(pickle.dumps(Payload()))
    assert Path("canary").exists()
    Path("canary").unlink()
    gym.make("evil:Evil-v0")
    assert Path("canary").exists()


# --------------------------------------------------------------------------------------------------
# What a Minari dataset records of its environment
# --------------------------------------------------------------------------------------------------


def attacked(**changes) -> EnvSpec:
    """Return the recorded Point-v0 with changes."""
    spec = recorded("Point-v0")
    for name, value in changes.items():
        setattr(spec, name, value)
    return spec


WRAPPER = WrapperSpec("Monitor", "subprocess:check_call", {"args": CANARY})
MAKER = WrapperSpec("Maker", "gymnasium.envs.registration:make", {"id": "evil:Evil-v0"})
IGNORED = {
    "entry point": attacked(entry_point="subprocess:check_call"),
    "vector entry point": attacked(vector_entry_point="subprocess:check_call"),
    "wrapper": attacked(additional_wrappers=(WRAPPER,)),
    "gymnasium's maker": attacked(additional_wrappers=(MAKER,)),
}
REFUSED = {
    "arguments": attacked(entry_point="subprocess:check_call", kwargs={"args": CANARY}),
    "a command": attacked(id="Other-v0", entry_point="subprocess:check_call"),
    "a module": attacked(id="evil:Evil-v0"),
    "the maker's arguments": attacked(kwargs={"id": "evil:Evil-v0"}),
    "a nested target": attacked(kwargs={"config": {"_target_": "subprocess.check_call"}}),
    "arguments without names": attacked(kwargs=["touch", "canary"]),
    "arguments that are a word": attacked(kwargs="evil"),
}


@pytest.mark.parametrize("key", ["env_spec", "eval_env_spec"])
@pytest.mark.parametrize("attack", IGNORED)
def test_recorded_code_is_ignored(attack, key):
    """The registered environment takes its place, and trains."""
    write_minari("walks-v0", episodes_of(walks(episodes=4)), **{key: IGNORED[attack].to_json()})
    _, task = load_minari("walks-v0")
    assert type(por.make_env(task).unwrapped) is Point
    assert not Path("canary").exists()


@pytest.mark.parametrize("key", ["env_spec", "eval_env_spec"])
@pytest.mark.parametrize("attack", REFUSED)
def test_recorded_code_that_cannot_be_ignored_is_refused(attack, key):
    write_minari("walks-v0", episodes_of(walks(episodes=4)), **{key: REFUSED[attack].to_json()})
    refusal(load_minari, "walks-v0")
    assert not Path("canary").exists()


# --------------------------------------------------------------------------------------------------
# Checkpoints
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(monkeypatch) -> dict:
    """The checkpoint of a finished run in the folder `run`."""
    write_hdf5("my.hdf5", walks())
    toys.train(monkeypatch)
    return torch.load("run/checkpoint.pt", weights_only=True)


def resume(monkeypatch, *words) -> None:
    toys.command(monkeypatch, "--resume", "run", *words)


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("place", ["whole", "args", "agent", "extra_state"])
def test_a_pickle_in_a_checkpoint_is_refused(checkpoint, monkeypatch, protocol, place):
    attack = Payload() if place == "whole" else checkpoint | {place: Payload()}
    if protocol == "pickle":
        Path("run/checkpoint.pt").write_bytes(pickle.dumps(attack))
    else:
        torch.save(attack, "run/checkpoint.pt", _use_new_zipfile_serialization=protocol == "zip")
    assert "cannot be read" in refusal(resume, monkeypatch)
    assert not Path("canary").exists()


def test_a_module_that_a_checkpoint_names_is_imported_only_if_the_user_repeats_it(
    checkpoint, monkeypatch
):
    checkpoint["args"]["env"] = "evil:Evil-v0"
    torch.save(checkpoint, "run/checkpoint.pt")
    assert "if you trust it, repeat --env evil:Evil-v0" in refusal(resume, monkeypatch)
    assert "if you trust it" in refusal(resume, monkeypatch, "--device", "cpu")
    assert "--env cannot change" in refusal(resume, monkeypatch, "--env", "Point-v0")
    assert not Path("canary").exists()
    resume(monkeypatch, "--env", "evil:Evil-v0")
    assert Path("canary").exists()


def test_what_a_checkpoint_says_of_its_environment_is_not_used(checkpoint, monkeypatch):
    """The task is described anew from the data."""
    checkpoint["task"] |= {"env_id": "evil:Evil-v0", "env_kwargs": {"args": CANARY}}
    checkpoint["task"]["env_spec"] = REFUSED["arguments"].to_json()
    torch.save(checkpoint, "run/checkpoint.pt")
    resume(monkeypatch)
    assert not Path("canary").exists()
    assert json.loads(Path("run/result.json").read_text())["task"]["env_id"] == "Point-v0"


# --------------------------------------------------------------------------------------------------
# HDF5 files that refer to other files
# --------------------------------------------------------------------------------------------------

SECRET = np.arange(200, dtype=np.float32)


def external_link(group: h5py.Group, name: str) -> None:
    group[name] = h5py.ExternalLink("secret.hdf5", "/column")


def link_to_nothing(group: h5py.Group, name: str) -> None:
    group[name] = h5py.ExternalLink("nowhere.hdf5", "/column")


def raw_storage(group: h5py.Group, name: str) -> None:
    group.create_dataset(name, (200,), np.float32, external=[("secret.raw", 0, 800)])


def virtual(file: str):
    def write(group: h5py.Group, name: str) -> None:
        layout = h5py.VirtualLayout((200,), np.float32)
        layout[:] = h5py.VirtualSource(file, "column", (200,))
        group.create_virtual_dataset(name, layout)

    return write


REFERENCES = {
    "external link": external_link,
    "link to nothing": link_to_nothing,
    "raw storage": raw_storage,
    "virtual": virtual("secret.hdf5"),
    "virtual, source missing": virtual("nowhere.hdf5"),
}


@pytest.fixture
def secret():
    """A file of another person beside the dataset, in the layouts of the attacks."""
    write_hdf5("secret.hdf5", {"column": SECRET})
    SECRET.tofile("secret.raw")


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", ["rewards", "infos/deep/qpos"])
def test_a_file_that_refers_to_another_one_is_refused(secret, reference, name):
    path = write_hdf5("my.hdf5", select(walks(episodes=10), slice(200), name))
    with h5py.File(path, "a") as file:
        REFERENCES[reference](file, name)
    line = refusal(por.load_dataset, por.Args(env="Point-v0", dataset_file="my.hdf5"))
    assert "is a link to another file" in line or "lies in other files" in line


@pytest.mark.parametrize("hidden", ["soft link", "hard link"])
def test_a_reference_behind_a_link_is_refused(secret, hidden):
    path = write_hdf5("my.hdf5", select(walks(episodes=10), slice(200), "rewards"))
    with h5py.File(path, "a") as file:
        group = file.create_group("a/b")
        external_link(group, "c")
        if hidden == "hard link":
            file["d"] = group
            file["rewards"] = h5py.SoftLink("/d/c")
            del file["a"]
        else:
            file["rewards"] = h5py.SoftLink("/a/b/c")
    line = refusal(por.load_dataset, por.Args(env="Point-v0", dataset_file="my.hdf5"))
    assert "is a link to another file" in line


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", ["rewards", "infos/deep/qpos"])
def test_a_minari_dataset_that_refers_to_another_file_is_refused(secret, reference, name):
    folder = write_minari("walks-v0", episodes_of(walks(episodes=10)))
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        group = file["episode_3"]
        if name in group:
            del group[name]
        REFERENCES[reference](group, name)
    line = refusal(load_minari, "walks-v0")
    assert "is a link to another file" in line or "lies in other files" in line
