"""Downloads from a server on this machine: D4RL's files, Minari's datasets, and no network."""

import hashlib
import http.server
import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import huggingface_hub.constants
import numpy as np
import pytest

import por
from benchmarks.datasets.recipes import RECIPES
from tests.shared.toys import (
    Point,
    episodes_of,
    isolate,
    load_minari,
    refusal,
    register,
    walks,
    write_hdf5,
    write_minari,
)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    isolate(tmp_path, monkeypatch)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    timeout = socket.getdefaulttimeout()
    yield
    socket.setdefaulttimeout(timeout)


class Server:
    """Serves `files`, path -> content. `short` ones end in their middle. Keeps what was asked."""

    def __init__(self):
        self.files, self.short, self.asked = {}, set(), []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.split("?")[0].lstrip("/")
                server.asked.append(path)
                content = server.files.get(path)
                self.send_response(200 if content else 404)
                self.send_header("Content-Length", len(content or b""))
                for name, value in server.headers(path).items():
                    self.send_header(name, value)
                self.end_headers()
                if content and self.command == "GET":
                    end = len(content) // 2 if path in server.short else len(content)
                    self.wfile.write(content[:end])

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def headers(self, path: str) -> dict:
        return {}

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


# --------------------------------------------------------------------------------------------------
# D4RL's files: downloaded once, always verified
# --------------------------------------------------------------------------------------------------

NAME = "hopper-medium-v2"
FILE = "gym_mujoco_v2/hopper_medium-v2.hdf5"


@pytest.fixture
def d4rl(monkeypatch, tmp_path):
    """D4RL's server and mirror, with a small file in the place of the large one."""
    monkeypatch.setitem(gym.registry, "Hopper-v4", gym.spec("Hopper-v4"))  # and put it back
    register("Hopper-v4", Point)
    servers = [Server(), Server()]
    good = write_hdf5("good.hdf5", walks(episodes=10)).read_bytes()
    servers[0].files[FILE] = good
    servers[1].files[Path(FILE).name] = good  # the mirror has no folders
    monkeypatch.setattr(por, "D4RL_SERVER", servers[0].url)
    monkeypatch.setattr(por, "D4RL_MIRROR", servers[1].url)
    monkeypatch.setitem(por.D4RL_SHA256, NAME, hashlib.sha256(good).hexdigest()[:24])
    yield SimpleNamespace(
        server=servers[0], mirror=servers[1], good=good, path=tmp_path / "d4rl" / Path(FILE).name
    )
    for server in servers:
        server.stop()


def test_a_file_is_downloaded_once(d4rl):
    for _ in range(2):
        data, task = por.load_dataset(por.Args(env=NAME))
        np.testing.assert_array_equal(data["actions"], walks(episodes=10)["actions"])
    assert (task.source, task.env_id, task.ref_max) == ("D4RL file", "Hopper-v4", 3234.3)
    assert list(d4rl.path.parent.iterdir()) == [d4rl.path]
    assert (d4rl.server.asked, d4rl.mirror.asked) == ([FILE], [])


@pytest.mark.parametrize("trouble", ["missing", "refused", "truncated", "another file"])
def test_the_mirror_serves_where_the_server_fails(d4rl, trouble):
    if trouble == "missing":
        d4rl.server.files.clear()
    elif trouble == "refused":
        d4rl.server.stop()
    elif trouble == "truncated":
        d4rl.server.short.add(FILE)
    else:
        d4rl.server.files[FILE] = b"x" * len(d4rl.good)
    assert por.download_d4rl(NAME) == d4rl.path
    assert d4rl.path.read_bytes() == d4rl.good
    assert list(d4rl.path.parent.iterdir()) == [d4rl.path]
    assert len(d4rl.mirror.asked) == 1


def test_where_both_fail_the_line_says_what_to_do(d4rl, capsys):
    d4rl.server.files.clear()
    d4rl.mirror.short.add(d4rl.path.name)
    line = refusal(por.download_d4rl, NAME)
    assert f"put its file there: {d4rl.path}" in line
    assert "benchmarks.datasets.collect hopper-medium" in line
    assert f"{d4rl.server.url}{FILE}: HTTP Error 404" in capsys.readouterr().out
    assert list(d4rl.path.parent.iterdir()) == []


def test_a_damaged_file_is_refused_and_left_to_its_owner(d4rl):
    d4rl.path.parent.mkdir()
    d4rl.path.write_bytes(d4rl.good[:-1] + b"x")
    line = refusal(por.download_d4rl, NAME)
    assert "SHA-256" in line
    assert str(d4rl.path) in line
    assert d4rl.path.read_bytes() == d4rl.good[:-1] + b"x"
    assert d4rl.server.asked == []


def test_a_named_file_takes_the_place_of_the_download(d4rl):
    _, task = por.load_dataset(por.Args(env=NAME, dataset_file="good.hdf5"))
    assert (task.source, task.ref_max) == ("good.hdf5", 3234.3)
    assert d4rl.server.asked == []


def test_every_d4rl_name_has_a_file_and_an_environment():
    assert por.d4rl_file("halfcheetah-medium-replay-v2").endswith(
        "/halfcheetah_medium_replay-v2.hdf5"
    )
    assert por.d4rl_file("antmaze-umaze-v2").endswith(
        "/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
    )
    assert por.d4rl_file("antmaze-large-diverse-v2").endswith(
        "/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5"
    )
    assert len({por.d4rl_file(name) for name in por.D4RL_SHA256}) == 45
    for name in por.D4RL_SHA256:
        assert any(name.startswith(prefix) for prefix in por.D4RL_ENVS)


# --------------------------------------------------------------------------------------------------
# Minari's datasets: downloaded once, by Minari from its server
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with the dataset theirs/point/walks-v0 that answers what Minari asks."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "theirs"))
    register("Point-v0", Point)
    write_minari("theirs/point/walks-v0", episodes_of(walks(episodes=10)), minari_version="0.5.4")
    folder = tmp_path / "theirs/theirs"
    names = {"datasets": ["theirs/point/walks-v0"], "namespaces": ["theirs/point"]}
    (folder / "namespace_metadata.json").write_text(json.dumps(names))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    commit = "0" * 40
    repo = {"id": "farama-minari/theirs", "sha": commit}
    repo["siblings"] = [{"rfilename": name} for name in files]
    tree = [
        {"type": "file", "path": name, "oid": commit, "size": len(content)}
        for name, content in files.items()
    ]
    api = "api/datasets/farama-minari/theirs"
    server = Server()
    server.files["api/datasets"] = json.dumps([repo]).encode()
    for revision in ("main", commit):
        server.files[f"{api}/revision/{revision}"] = json.dumps(repo).encode()
        server.files[f"{api}/tree/{revision}"] = json.dumps(tree).encode()
        for name, content in files.items():
            server.files[f"datasets/farama-minari/theirs/resolve/{revision}/{name}"] = content

    def headers(path: str) -> dict:
        more = {"X-Repo-Commit": commit}
        if path not in server.files:
            return more | {"X-Error-Code": "EntryNotFound"}
        return more | {"ETag": f'"{hashlib.sha1(server.files[path]).hexdigest()}"'}

    server.headers = headers
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url.rstrip("/"))
    template = server.url + "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "mine"))
    yield server
    server.stop()


def test_a_minari_dataset_is_downloaded_once(hub, tmp_path):
    data, task = load_minari("theirs/point/walks-v0")
    assert (task.source, task.env_id) == ("Minari", "Point-v0")
    np.testing.assert_array_equal(data["actions"], walks(episodes=10)["actions"])
    assert (tmp_path / "mine/theirs/point/walks-v0/data/main_data.hdf5").exists()
    assert hub.asked
    hub.asked.clear()
    load_minari("theirs/point/walks-v0")
    assert hub.asked == []


@pytest.mark.parametrize(
    "name, word",
    [
        ("theirs/pont/walks-v0", "Couldn't find any version"),
        ("theirs/point/walks-v7", "theirs/point/walks-v0"),
    ],
)
def test_a_mistyped_minari_name_gets_the_servers_word_for_it(hub, tmp_path, name, word):
    line = refusal(load_minari, name)
    assert f"{name}, which is not on this machine, cannot be loaded" in line
    assert word in line
    assert not (tmp_path / "mine" / name).exists()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Names of servers have no address here."""

    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    "name, word",
    [
        ("mujoco/hoper/medium-v0", "which is not on this machine"),
        ("D4RL/door/human-v2", "which is not on this machine"),
        ("rebuilt/point/walk-v0", "did you mean rebuilt/point/walks-v0"),
        ("rebuilt/hopper/medium-v0", "neither D4RL nor Minari"),
        ("local/mine-v0", "neither D4RL nor Minari"),
        ("mine-v0", "neither D4RL nor Minari"),
        ("hopper-medum-v2", "did you mean hopper-medium-v2"),
        ("hopper-medium-v0", "did you mean hopper-medium-v2"),
        ("pen-human-v0", "did you mean pen-human-v1"),
        ("maze2d-umaze-dense-v0", "did you mean maze2d-umaze-dense-v1"),
        ("mujoco//hopper", "mujoco//hopper"),
        ("../hopper-v0", "../hopper-v0"),
        ("/", "--env /"),
    ],
)
def test_without_a_network_a_wrong_name_is_answered_at_once(offline, name, word):
    write_minari("rebuilt/point/walks-v0", episodes_of(walks(episodes=1)))
    start = time.perf_counter()
    line = refusal(load_minari, name)
    assert time.perf_counter() - start < 5
    assert word in line
    assert "delete" not in line.lower()


def test_without_a_network_a_d4rl_file_can_be_put_there_by_hand(offline):
    assert "put its file there" in refusal(por.download_d4rl, NAME)


@pytest.mark.parametrize("name", ["pen-human-v1", "pen-expert-v1", "maze2d-large-dense-v1"])
def test_only_what_has_a_recipe_is_said_to_be_rebuilt(offline, name):
    line = refusal(por.download_d4rl, name)
    told = f"benchmarks.datasets.collect {por.dataset_family(name)}" in line
    assert told == (por.dataset_family(name) in RECIPES)
    assert told == ("no recipe" not in line)


def test_folders_of_other_people_do_not_hinder_the_search_for_a_name(tmp_path):
    """Among the datasets lie a folder without a version and a damaged dataset."""
    (tmp_path / "minari/notes/data").mkdir(parents=True)
    (tmp_path / "minari/broken-v0/data").mkdir(parents=True)
    (tmp_path / "minari/broken-v0/data/metadata.json").write_text("{")
    assert "did you mean broken-v0" in refusal(load_minari, "brokn-v0")
