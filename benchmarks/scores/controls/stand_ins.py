"""Stand-ins for the packages that other people's programs import.

They have just what these programs use. `gym.make` gives our environment with old gym's interface,
`d4rl.qlearning_dataset` gives our data in D4RL's layout, `pyrallis` and `hydra` read a program's
options, and the others do nothing.
"""

import contextlib
import enum
import importlib
import importlib.util
import re
import sys
import types
import typing
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import torch

from benchmarks.scores.controls import EPISODES

# --------------------------------------------------------------------------------------------------
# What happens in the environments
# --------------------------------------------------------------------------------------------------


class TrainedEnoughError(Exception):
    """Ends a program whose training would go on."""


class Record:
    """The episodes that a program has played."""

    def __init__(self, sizes: list[int], stop: bool = False):
        """sizes: episodes of each evaluation; stop: end the program after the last one?"""
        self.sizes = sizes
        self.stop = stop
        self.starts = []
        self.returns = []

    def add(self, start: int, total: float) -> None:
        """Add an episode: the seed of its start, and its return."""
        self.starts.append(start)
        self.returns.append(total)
        ends = list(accumulate(self.sizes))
        if len(self.returns) in ends:
            number = ends.index(len(self.returns))
            mean = np.mean(self.returns[-self.sizes[number] :])
            print(f"evaluation {number + 1} of {len(ends)}: return {mean:.1f}", flush=True)
        if self.stop and len(self.returns) == ends[-1]:
            raise TrainedEnoughError

    def evaluations(self) -> list[float]:
        """Return the mean return of each evaluation. Its starts must be those of ours."""
        if len(self.returns) != sum(self.sizes):
            sys.exit(f"it has played {len(self.returns)} episodes instead of {sum(self.sizes)}")
        means = []
        first = 0
        for size in self.sizes:
            if self.starts[first : first + size] != list(range(size)):
                sys.exit(f"evaluation {len(means) + 1} has other starts than ours")
            means.append(float(np.mean(self.returns[first : first + size])))
            first += size
        return means


class Env:
    """Our environment with the interface of gym 0.21 and D4RL. Its actions lie in [-1, 1].

    An evaluation begins with seed() or in a new environment. Its episode i starts as episode i of
    our evaluation does, whatever seed is asked for.
    """

    def __init__(self, env: gymnasium.Env, task, data: dict, record: Record):
        self.env = env
        self.task = task
        self.data = data
        self.record = record
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self._max_episode_steps = task.max_episode_steps
        self.start = -1
        self.total = 0.0

    def seed(self, seed: int | None = None) -> None:
        self.start = -1

    def reset(self) -> np.ndarray:
        self.start = (self.start + 1) % EPISODES
        self.total = 0.0
        return self.env.reset(seed=self.start)[0]

    def step(self, action) -> tuple:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        done = terminated or truncated
        if done:
            self.record.add(self.start, self.total)
        return obs, reward, done, info

    def get_dataset(self) -> dict:
        """Return D4RL's columns. They are new arrays, because programs change them."""
        timeouts = self.data["episode_end"] & (self.data["terminals"] == 0)
        return {
            "observations": self.data["observations"].copy(),
            "actions": self.data["actions"].copy(),
            "rewards": self.data["rewards"].copy(),
            "terminals": self.data["terminals"] > 0,
            "timeouts": timeouts,
        }

    def get_normalized_score(self, total):
        return normalized_score(self.task, total)


def normalized_score(task, total):
    """Return 0 for random and 1 for expert, as D4RL does."""
    return (total - task.ref_min) / (task.ref_max - task.ref_min)


class Wrapper:
    """An environment in which one function is changed."""

    def __init__(self, env, function: Callable):
        self.env = env
        self.function = function

    def __getattr__(self, name: str):
        return getattr(self.env, name)


class TransformObservation(Wrapper):
    def reset(self):
        return self.function(self.env.reset())

    def step(self, action):
        obs, *rest = self.env.step(action)
        return self.function(obs), *rest


class TransformReward(Wrapper):
    def step(self, action):
        obs, reward, done, info = self.env.step(action)
        return obs, self.function(reward), done, info


def qlearning_dataset(env) -> dict:
    """Return rows (n, ...) as D4RL's function of this name does.

    The next observation is the following row's. Rows at a time limit, and the last one, are left
    out.
    """
    data = env.get_dataset()
    rows = np.flatnonzero(~data["timeouts"][:-1])
    return {
        "observations": data["observations"][rows],
        "actions": data["actions"][rows],
        "next_observations": data["observations"][rows + 1],
        "rewards": data["rewards"][rows],
        "terminals": data["terminals"][rows],
    }


# --------------------------------------------------------------------------------------------------
# pyrallis
# --------------------------------------------------------------------------------------------------


def convert(text: str, kind):
    """Return a value of a YAML file or a command line: ("3e-4", Optional[float]) -> 0.0003

    YAML's infinity is ".inf".
    """
    text = text.strip().strip("'\"")
    kinds = [part for part in typing.get_args(kind) if part is not types.NoneType] or [kind]
    if text in ("null", "None"):
        return None
    if kinds[0] is bool:
        return text.lower() == "true"
    if kinds[0] is int:
        return int(float(text))
    if kinds[0] is float:
        return float(text.replace(".inf", "inf"))
    return kinds[0](text)


def read_config(kind: type, words: list[str]):
    """Make a dataclass from a command line. --config_path names a flat YAML file."""
    given = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name == "--config_path":
            lines = [line.partition("#")[0] for line in Path(value).read_text().splitlines()]
            pairs = [line.split(":", maxsplit=1) for line in lines if line.strip()]
            given |= {key.strip(): text for key, text in pairs}
        else:
            given[name.removeprefix("--")] = value
    hints = typing.get_type_hints(kind)
    return kind(**{name: convert(text, hints[name]) for name, text in given.items()})


def wrap() -> Callable:
    """Return a decorator: the function gets its only argument from the command line."""

    def decorate(function: Callable) -> Callable:
        kind = next(iter(typing.get_type_hints(function).values()))
        return lambda: function(read_config(kind, sys.argv[1:]))

    return decorate


# --------------------------------------------------------------------------------------------------
# Hydra
# --------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict:
    """Read a YAML file of names, texts, lists and one level of nesting. All values are texts.

    A list is a dictionary of its entries, which are pairs here, too: "- beta: bc".
    """
    content, inner = {}, {}
    for line in path.read_text().splitlines():
        line = "" if line.startswith("#") else line.partition(" #")[0]
        name, _, value = line.strip().removeprefix("- ").partition(":")
        if not name:
            continue
        value = value.strip().removeprefix('"').removesuffix('"')
        if line.startswith(" "):
            inner[name] = value
        elif value:
            content[name] = value
        else:
            inner = content[name] = {}
    return content


class Settings:
    """A tree of texts. An attribute is read as a number where it can be. ${name} is looked up."""

    def __init__(self, content: dict, root: "Settings | None" = None):
        top = root or self
        children = {
            key: Settings(value, top) if isinstance(value, dict) else value
            for key, value in content.items()
        }
        vars(self).update(children, _root=top)

    def __getattribute__(self, name: str):
        value = super().__getattribute__(name)
        if name.startswith("_") or not isinstance(value, str):
            return value
        text = re.sub(r"\$\{([\w.]+)\}", lambda found: str(self._root[found[1]]), value)
        words = {"true": True, "false": False, "null": None}
        for kind in (words.__getitem__, int, float):
            with contextlib.suppress(KeyError, ValueError):
                return kind(text)
        return text

    def __getitem__(self, path: str):
        """Return settings["env.name"], for example."""
        value = self
        for name in path.split("."):
            value = getattr(value, name)
        return value

    def __setitem__(self, path: str, value) -> None:
        above, _, name = path.rpartition(".")
        setattr(self[above] if above else self, name, value)


def read_settings(folder: Path, name: str, words: list[str]) -> Settings:
    """Return the settings of <name>.yaml with its defaults, and with words such as "q.width=256".

    "- q: sarsa" among the defaults stands for what q/sarsa.yaml has.
    """
    content = read_yaml(folder / f"{name}.yaml")
    given = dict(word.split("=", maxsplit=1) for word in words)
    for group, choice in content.pop("defaults").items():
        known = read_yaml(folder / group / f"{given.pop(group, choice)}.yaml")
        content[group] = known | content.get(group, {})
    settings = Settings(content)
    for path, value in given.items():
        settings[path] = value
    return settings


def make_hydra() -> ModuleType:
    """Return a module with main() and utils.instantiate().

    `hydra.settings` are those of the program, `hydra.made` has the instances of their groups.
    """

    def main(config_path: str, config_name: str) -> Callable:
        def decorate(function: Callable) -> Callable:
            folder = Path(function.__globals__["__file__"]).parent / config_path

            def call() -> None:
                module.settings = read_settings(folder, config_name, sys.argv[1:])
                function(module.settings)

            return call

        return decorate

    def instantiate(settings: Settings):
        """Call what _target_ names with all other settings."""
        where, _, name = vars(settings)["_target_"].rpartition(".")
        names = [key for key in vars(settings) if not key.startswith("_")]
        kind = getattr(importlib.import_module(where), name)
        instance = kind(**{key: settings[key] for key in names})
        group = next(key for key, part in vars(module.settings).items() if part is settings)
        module.made[group] = instance
        return instance

    module = make_module("hydra", main=main, utils=make_module("hydra.utils"), made={})
    module.utils.instantiate = instantiate
    return module


# --------------------------------------------------------------------------------------------------
# Modules
# --------------------------------------------------------------------------------------------------


WANDB = ("init", "log", "finish", "mark_preempting")
StepType = enum.Enum("StepType", ["FIRST", "MID", "LAST"])


def nothing(*_, **__) -> None:
    """Take the place of a function that is not needed."""


def make_module(name: str, **content) -> ModuleType:
    """Return a module. It has a spec for those who ask whether a package is there."""
    module = importlib.util.module_from_spec(ModuleSpec(name, None))
    for key, value in content.items():
        setattr(module, key, value)
    return module


def make_modules(name: str, make_env: Callable, task, data: dict, record: Record) -> dict:
    """Return all stand-ins. Whoever asks for the dataset `name` gets `data`."""

    def make(env_name: str) -> Env:
        if env_name != name:
            sys.exit(f"it asks for {env_name} instead of {name}")
        return Env(make_env(task), task, data, record)

    def get_normalized_score(env_name: str, total):
        return normalized_score(task, total)

    wrappers = make_module(
        "gym.wrappers", TransformObservation=TransformObservation, TransformReward=TransformReward
    )
    run = make_module("wandb.run", save=nothing)
    modules = [
        make_module("gym", Env=Env, Wrapper=Wrapper, make=make, wrappers=wrappers),
        wrappers,
        make_module(
            "d4rl", qlearning_dataset=qlearning_dataset, get_normalized_score=get_normalized_score
        ),
        make_module("wandb", **dict.fromkeys(WANDB, nothing), run=run),
        make_module("pyrallis", wrap=wrap, dump=nothing),
        make_hydra(),
        make_module("IPython", embed=nothing),
        make_module("sklearn", datasets=None),
        make_module("termcolor", colored=lambda text, color: text),
        make_module("coolname", generate_slug=lambda words: "run"),
        # ReBRAC's code for images and for policies that draw their actions, which nothing calls
        make_module("distrax", Transformed=object),
        make_module("dm_env", Environment=object, StepType=StepType, specs=None),
        make_module("dm_control", manipulation=None, suite=None),
        make_module("dm_control.suite"),
        make_module("dm_control.suite.wrappers", action_scale=None, pixels=None),
    ]
    return {module.__name__: module for module in modules}


def stand_in_for_old_jax(jax: ModuleType) -> None:
    """Give JAX the function tree_map() back, which ReBRAC calls and newer JAX lacks."""
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map


def cpu_for_cuda(to: Callable) -> Callable:
    """Return the method to() of a tensor or a module, in which "cuda" means the CPU."""

    def to_cpu(self, *args, **kwargs):
        words = ["cpu" if isinstance(arg, str) and arg == "cuda" else arg for arg in args]
        return to(self, *words, **kwargs)

    return to_cpu


def stand_in_for_cuda() -> None:
    """Let "cuda" mean the CPU. SPOT's train_vae.py asks for it whatever there is."""
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = cpu_for_cuda(owner.to)
