"""Tests of benchmarks/scores/controls with small programs of our own making for other people's.

python -m pytest tests/benchmarks/test_controls.py
"""

import dataclasses
import importlib.util
import json
import math
import sys
from types import SimpleNamespace
from typing import Optional

import numpy as np
import pytest
import torch

from benchmarks.common import load_script
from benchmarks.scores.controls import EPISODES, Order, worker
from benchmarks.scores.controls import __main__ as command
from benchmarks.scores.controls.projects import CONTROLS, published_words
from benchmarks.scores.controls.stand_ins import (
    Env,
    Record,
    TrainedEnoughError,
    cpu_for_cuda,
    qlearning_dataset,
    read_config,
    stand_in_for_old_jax,
)
from benchmarks.scores.reading import complaints, read_result

DATASET = "local/pendulum/tiny-v0"

# A program with the interface of CORL's: it keeps what it was given, and its policy pushes with the
# sign of an observation, which its wrapper has doubled.
CORL = """
import json
from dataclasses import asdict, dataclass
from typing import Optional
import d4rl
import gym
import numpy as np
import pyrallis
import wandb


@dataclass
class TrainConfig:
    env: str = ""
    rate: float = 1.0
    bound: Optional[float] = 2.0
    normalize: bool = False
    iql_deterministic: bool = True
    tau: float = 0.001
    seed: int = 0
    max_timesteps: int = 1000000
    eval_freq: int = 1
    n_episodes: int = 1
    device: str = "cuda"


def eval_actor(env, config, push):
    env.seed(config.seed)
    returns = []
    for _ in range(config.n_episodes):
        state, done, total = env.reset(), False, 0.0
        while not done:
            state, reward, done, _ = env.step(push(state / 2))
            total += reward
        returns.append(total)
    return np.mean(returns)


@pyrallis.wrap()
def train(config: TrainConfig):
    env = gym.make(config.env)
    np.savez("data.npz", **d4rl.qlearning_dataset(env))
    with open("config.json", "w") as file:
        json.dump(asdict(config), file)
    env = gym.wrappers.TransformObservation(env, lambda state: 2 * state)
    env.action_space.seed(config.seed)
    if config.seed == 13:
        raise ValueError("an unlucky number")
    wandb.init(config=asdict(config))
    wandb.run.save()

    def push(state):
        return np.full(env.action_space.shape, 0.5 * np.sign(state[1]) + 0.1 * config.seed)

    for t in range(config.max_timesteps):
        wandb.log({"loss": 0.0}, step=t)
        if (t + 1) % config.eval_freq == 0:
            score = env.get_normalized_score(eval_actor(env, config, push))
            print("score", 100 * score)


if __name__ == "__main__":
    train()
"""
CORL_CONFIG = """
rate: 3e-4  # as YAML reads it, this is a text
bound: null
normalize: true
env: 'hopper-medium-v2'
"""

# As main.py of TD3_BC: the number of episodes is an argument of a function only. It imports a file
# that has the name of a script of ours.
TD3_BC = """
import argparse
import d4rl
import gym
import por


def eval_policy(policy, env_name, seed, mean, std, seed_offset=100, eval_episodes=10):
    env = gym.make(env_name)
    env.seed(seed + seed_offset)
    for _ in range(eval_episodes):
        state, done = env.reset(), False
        while not done:
            state, _, done, _ = env.step(policy.select_action((state - mean) / std))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--env")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--eval_freq", type=int)
    parser.add_argument("--max_timesteps", type=int)
    args = parser.parse_args()
    policy, mean, std = por.Policy(), 0, 1
    for t in range(args.max_timesteps):
        if (t + 1) % args.eval_freq == 0:
            eval_policy(policy, args.env, args.seed, mean, std)
"""
TD3_BC_POLICY = """
class Policy:
    def select_action(self, state):
        return [0.25]
"""

# As ReBRAC: options in a YAML file, modules that begin with `src`, an evaluation after every epoch,
# and imports that its training does not need.
REBRAC = """
import json
from dataclasses import asdict, dataclass
import gym
import numpy as np
import pyrallis
import wandb
from src.networks import Policy


@dataclass
class Config:
    dataset_name: str = ""
    batch_size: int = 1
    num_epochs: int = 1000
    num_updates_on_epoch: int = 1000
    eval_episodes: int = 10
    eval_every: int = 5
    train_seed: int = 0


@pyrallis.wrap()
def main(config: Config):
    wandb.init(config=asdict(config))
    wandb.mark_preempting()
    with open("config.json", "w") as file:
        json.dump(asdict(config), file)
    env = gym.make(config.dataset_name)
    env.seed(42)
    env.action_space.seed(42)
    env = gym.wrappers.TransformObservation(env, lambda state: state)
    for epoch in range(config.num_epochs):
        if epoch % config.eval_every == 0 or epoch == config.num_epochs - 1:
            env.seed(42)
            for _ in range(config.eval_episodes):
                state, done = env.reset(), False
                while not done:
                    state, _, done, _ = env.step(Policy().act(state))
            wandb.log({"score": env.get_normalized_score(np.zeros(2))})


if __name__ == "__main__":
    main()
"""
REBRAC_POLICY = """
import distrax
import dm_env
from dm_control import manipulation, suite
from dm_control.suite.wrappers import action_scale, pixels

FIRST = dm_env.StepType.FIRST


class Drawn(distrax.Transformed):
    pass


class Images(dm_env.Environment):
    pass


class Policy:
    def act(self, state):
        return [0.25]
"""
REBRAC_CONFIG = "batch_size: 1024\ndataset_name: hopper-medium-v2\neval_every: 5\n"


# As onestep-rl: a replay buffer in a file, settings of Hydra in several files, instances by name,
# and an episode in the first update of each of three phases.
ONESTEP_REPLAY = """
import argparse
import gym
import torch
from learner import Replay

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--name")
    name = parser.parse_args().name
    torch.save(Replay(gym.make(name).get_dataset()), f"data/{name}.pt")
"""
ONESTEP_TRAIN = """
import json
import hydra
import torch


@hydra.main(config_path="config", config_name="train")
def train(cfg):
    replay = torch.load(cfg.data_path)
    import gym
    env = gym.make(cfg.env.name)
    cfg.state_dim = env.observation_space.shape[0]
    learners = [hydra.utils.instantiate(part) for part in (cfg.beta, cfg.q, cfg.pi)]
    with open("config.json", "w") as file:
        seen = [learner.settings for learner in learners]
        rows = len(replay.dataset["rewards"])
        json.dump({"rows": rows, "seed": cfg.seed, "log_dir": cfg.log_dir, "seen": seen}, file)
    for learner, steps in zip(learners, (cfg.beta_steps, cfg.q_steps, cfg.pi_steps)):
        for step in range(int(steps)):
            if step % int(cfg.log_freq) == 0:
                learner.eval(env, cfg.eval_episodes)


if __name__ == "__main__":
    train()
"""
ONESTEP_LEARNER = """
class Replay:
    def __init__(self, dataset):
        self.dataset = dataset


class Learner:
    def __init__(self, push, **settings):
        self.push = push
        self.settings = settings

    def eval(self, env, n_episodes):
        for _ in range(n_episodes):
            state, done = env.reset(), False
            while not done:
                state, _, done, _ = env.step([self.push])
"""
ONESTEP_CONFIG = """
# @package _global_
name: train_${env.name}_${seed}
path: ???
defaults:
  - beta: bc
  - q: sarsa
  - pi: reverse_kl
beta_steps: 5e5
q_steps: 2e6
pi_steps: 1e5
pi:
  load_path: null
log_freq: 2e3
eval_episodes: 1
log_dir: ${path}/logs/${name}
seed: 0
device: cuda
data_path: ${path}/data/${env.name}.pt
env:
  name: halfcheetah-medium-v2
state_dim: ???
hydra:
  run:
    dir: .
"""
ONESTEP_PART = """# @package part
_target_: learner.Learner
name: NAME

push: PUSH
width: 1024  # units
lr: 1e-4
state_dim: ${state_dim}
format_str: "Step {values[step]:8.0f}, in ${seed}"
"""


@pytest.fixture
def checkouts(tmp_path):
    """Return a folder with these programs."""
    files = {
        "CORL/algorithms/offline/iql.py": CORL,
        "CORL/configs/offline/iql/hopper/medium_v2.yaml": CORL_CONFIG,
        "TD3_BC/main.py": TD3_BC,
        "TD3_BC/TD3_BC.py": "",
        "TD3_BC/utils.py": "",
        "TD3_BC/por.py": TD3_BC_POLICY,
        "onestep-rl/d4rl_to_replay.py": ONESTEP_REPLAY,
        "onestep-rl/train.py": ONESTEP_TRAIN,
        "onestep-rl/learner.py": ONESTEP_LEARNER,
        "onestep-rl/config/train.yaml": ONESTEP_CONFIG,
        "ReBRAC/src/algorithms/rebrac.py": REBRAC,
        "ReBRAC/src/networks.py": REBRAC_POLICY,
        "ReBRAC/src/nn.py": "",
        "ReBRAC/src/utils/buffer.py": "",
        "ReBRAC/src/utils/common.py": "",
        "ReBRAC/configs/rebrac/hopper/hopper_medium.yaml": REBRAC_CONFIG,
    }
    for name, push in (("beta/bc", "-0.5"), ("q/sarsa", "0.5"), ("pi/reverse_kl", "0.25")):
        text = ONESTEP_PART.replace("NAME", name.partition("/")[2]).replace("PUSH", push)
        files[f"onestep-rl/config/{name}.yaml"] = text
    for name in CONTROLS["onestep-rl/onestep"].peer.files:
        files.setdefault(f"onestep-rl/{name}", "")
    for name, text in files.items():
        path = tmp_path / "others" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "others"


@pytest.fixture
def data(isolated, tiny_minari, pendulum, short_env):
    """Write a dataset of a Pendulum with episodes of 25 steps. Return its rows."""
    return tiny_minari(DATASET, pendulum(), short_env("Pendulum-v1"))


@pytest.fixture
def train(checkouts, data, tmp_path):
    """Return `train(control, seed=...)`, which returns what a worker knows and its folder."""

    def train(name: str, **changed):
        words = {"seed": 3, "num_updates": 20, "eval_every": 10, "decay_updates": 20} | changed
        checkout = checkouts / name.partition("/")[0]
        order = Order(name, str(checkout), DATASET, "hopper-medium-v2", **words)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        return worker.train(order, CONTROLS[name], folder), folder

    return train


def our_score(push: float, constant: float) -> float:
    """Return the mean return of the programs' policy by the evaluation of our script."""
    iql = load_script("iql")
    _, task = iql.load_dataset(iql.Args(env=DATASET))

    class Agent(torch.nn.Linear):
        args = SimpleNamespace(num_seeds=1)

        def act(self, obs):
            return push * obs[..., 1:2].sign() + constant

    return iql.evaluate(Agent(1, 1), task, EPISODES).mean()


# ---- A seed ----


def test_the_score_is_by_our_evaluation(train):
    part, _ = train("CORL/iql")
    assert len(part["returns"]) == 2
    assert part["returns"] == pytest.approx([our_score(0.5, 0.3)] * 2, rel=1e-6)
    assert part["returns"][0] != pytest.approx(our_score(0.5, 0.0), rel=1e-3)


def test_the_data_have_the_layout_of_d4rl(train, data):
    _, folder = train("CORL/iql")
    columns = dict(np.load(folder / "data.npz"))
    kept = np.flatnonzero(~data["timeouts"][:-1])
    assert len(kept) == len(data["rewards"]) - 6
    wanted = {key: data[key][kept] for key in ("observations", "rewards", "terminals")}
    wanted["next_observations"] = data["observations"][kept + 1]
    wanted["actions"] = data["actions"][kept] / 2  # Pendulum's bound
    assert columns.keys() == wanted.keys()
    for key, column in wanted.items():
        np.testing.assert_allclose(columns[key], column, rtol=1e-6, err_msg=key)
        assert columns[key].dtype == (bool if key == "terminals" else np.float32)


def test_the_program_gets_its_own_settings(train):
    _, folder = train("CORL/iql")
    config = json.loads((folder / "config.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = {"env": "hopper-medium-v2", "rate": 3e-4, "bound": None, "normalize": True, "seed": 3}
    wanted |= {"iql_deterministic": True, "tau": 0.001}
    wanted |= {"max_timesteps": 20, "eval_freq": 10, "n_episodes": EPISODES, "device": device}
    assert config == wanted


def test_a_control_may_have_other_settings_than_theirs(train):
    _, folder = train("CORL/iql_paper")
    config = json.loads((folder / "config.json").read_text())
    assert (config["normalize"], config["iql_deterministic"], config["tau"]) == (
        False,
        False,
        0.005,
    )


def test_a_longer_schedule_ends_after_the_updates(train):
    part, folder = train("CORL/iql", decay_updates=1000)
    assert json.loads((folder / "config.json").read_text())["max_timesteps"] == 1000
    assert part["returns"] == pytest.approx([our_score(0.5, 0.3)] * 2, rel=1e-6)


def test_the_last_evaluation_is_called_where_it_is_no_option(train, capsys):
    part, _ = train("TD3_BC/td3_bc")
    assert part["returns"][-1] == pytest.approx(our_score(0, 0.25), rel=1e-6)
    assert len(part["returns"]) == 2 and part["returns"][0] != part["returns"][1]
    assert "evaluation 3 of 3" in capsys.readouterr().out


@pytest.mark.parametrize("name, batch", [("ReBRAC/rebrac", 1024), ("ReBRAC/rebrac_256", 256)])
def test_every_epoch_of_rebrac_is_evaluated(train, name, batch):
    part, folder = train(name)
    assert part["returns"] == pytest.approx([our_score(0, 0.25)] * 2, rel=1e-6)
    assert part["settings"].startswith("configs/rebrac/hopper/hopper_medium.yaml (git object ")
    wanted = {"dataset_name": "hopper-medium-v2", "batch_size": batch, "train_seed": 3}
    wanted |= {"num_epochs": 2, "num_updates_on_epoch": 10, "eval_every": 1}
    config = json.loads((folder / "config.json").read_text())
    assert config == wanted | {"eval_episodes": EPISODES}


def test_rebrac_learns_in_even_updates(train):
    with pytest.raises(SystemExit, match="ReBRAC/rebrac needs an even --eval-every"):
        train("ReBRAC/rebrac", num_updates=15, eval_every=5)


def test_the_policy_of_onestep_is_evaluated_after_its_training(train, data, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    part, folder = train("onestep-rl/onestep", eval_every=20)
    assert part["returns"] == pytest.approx([our_score(0, 0.25)], rel=1e-6)
    config = json.loads((folder / "config.json").read_text())
    rows = len(data["rewards"])
    wanted = {"rows": rows, "seed": 3, "log_dir": "./logs/train_hopper-medium-v2_3"}
    assert {key: config[key] for key in wanted} == wanted
    usual = {"width": 256, "lr": 1e-4, "state_dim": 3, "name": "reverse_kl", "load_path": None}
    assert config["seen"][2] == usual | {"format_str": "Step {values[step]:8.0f}, in 3"}
    assert config["seen"][1]["name"] == "sarsa" and "load_path" not in config["seen"][1]
    assert not list((folder / "data").iterdir())  # a million rows are large
    with pytest.raises(SystemExit, match="onestep is evaluated once: give --eval-every 20"):
        train("onestep-rl/onestep", eval_every=10)


def test_modules_and_folders_are_as_before(train, por, tmp_path):
    words = list(sys.argv)
    train("TD3_BC/td3_bc")  # it has a por.py of its own
    assert sys.modules["por"] is por and "gym" not in sys.modules
    assert not any("others" in path for path in sys.path) and sys.argv == words


def test_evaluations_with_other_starts_or_numbers_are_refused():
    record = Record([2, 2])
    for start in (0, 1, 1):
        record.add(start, 1.0)
    with pytest.raises(SystemExit, match="3 episodes instead of 4"):
        record.evaluations()
    record.add(0, 1.0)
    with pytest.raises(SystemExit, match="evaluation 2 has other starts"):
        record.evaluations()


def test_a_record_ends_the_program_after_the_last_episode():
    record = Record([1, 1], stop=True)
    record.add(0, 1.0)
    with pytest.raises(TrainedEnoughError):
        record.add(0, 3.0)
    assert record.evaluations() == [1, 3]


# ---- Stand-ins ----


def test_terminal_rows_stay_and_rows_at_a_time_limit_go():
    data = {
        "observations": np.arange(6, dtype=np.float32)[:, None],
        "actions": np.zeros((6, 1), np.float32),
        "rewards": np.arange(6, dtype=np.float32),
        "terminals": np.array([0, 1, 0, 0, 0, 1], np.float32),
        "episode_end": np.array([0, 1, 0, 1, 0, 1], bool),
    }
    space = SimpleNamespace(observation_space=None, action_space=None)
    env = Env(space, SimpleNamespace(max_episode_steps=2), data, Record([1]))
    rows = qlearning_dataset(env)
    assert rows["rewards"].tolist() == [0, 1, 2, 4]
    assert rows["next_observations"].ravel().tolist() == [1, 2, 3, 5]
    assert rows["terminals"].tolist() == [False, True, False, False]
    rows = env.get_dataset()
    rows["rewards"] += 1  # as their programs do
    assert data["rewards"][0] == 0


def test_a_config_is_read_with_the_types_of_its_fields(tmp_path):
    @dataclasses.dataclass
    class Config:
        count: int = 0
        rate: Optional[float] = None  # noqa: UP045, as their code has it
        name: str = ""
        flag: bool = True
        low: float = 0.0
        high: float = 0.0

    text = "count: 7\n\nname: ''\nrate: 1e-3 # small\nflag: false\nlow: -.inf\nhigh: .inf\n"
    (tmp_path / "a.yaml").write_text(text)
    config = read_config(Config, ["--config_path", str(tmp_path / "a.yaml"), "--count", "1e3"])
    assert config == Config(1000, 1e-3, "", False, -math.inf, math.inf)


def test_newer_jax_gets_its_old_function_back():
    def double(tree):
        return {key: 2 * value for key, value in tree.items()}

    jax = SimpleNamespace(tree=SimpleNamespace(map=double))
    stand_in_for_old_jax(jax)
    assert jax.tree_map({"a": 1}) == {"a": 2}
    old = SimpleNamespace(tree_map=double, tree=SimpleNamespace(map=None))
    stand_in_for_old_jax(old)
    assert old.tree_map is double


def test_cuda_can_mean_the_cpu():
    to = cpu_for_cuda(torch.Tensor.to)
    assert to(torch.zeros(1), "cuda").device.type == "cpu"
    assert to(torch.zeros(1), torch.float64).dtype == torch.float64


# ---- The options of POR's shell scripts ----

SHELL = """
env_list=(
#	"hopper-medium-v2"
	"walker2d-medium-v2"
	)

for env in ${env_list[*]}; do
CUDA_VISIBLE_DEVICES=$GPU python main_por.py \\
  --env_name $env \\
  --type 'por_r' \\
  --tau 0.5 \\
  --layer_norm \\
  --seed $seed &

done

python main_por.py \\
  --env_name "hopper-medium-v2" \\
  --type 'por_q' \\
  --tau 0.7 \\
  --seed $seed &

python main_por.py \\
  --env_name "walker2d-medium-v2" \\
  --type 'por_r' \\
  --tau 0.9 \\
  --seed $seed &
"""


@pytest.mark.parametrize(
    "name, kind, wanted",
    [
        ("hopper-medium-v2", "por_r", "--tau 0.5 --layer_norm --seed 4"),
        ("hopper-medium-v2", "por_q", "--tau 0.7 --seed 4"),
        ("walker2d-medium-v2", "por_r", "--tau 0.9 --seed 4"),  # its own call comes first
        ("walker2d-medium-v2", "por_q", None),
        ("halfcheetah-medium-v2", "por_r", None),
    ],
)
def test_published_options_are_read_from_shell_scripts(tmp_path, name, kind, wanted):
    (tmp_path / "run_mujoco_por.sh").write_text(SHELL)
    order = Order("POR/weighted", str(tmp_path), DATASET, name, 4, 20, 10, 20)
    if wanted is None:
        with pytest.raises(SystemExit, match=f"no --type {kind} for {name}"):
            published_words(order, "main_por.py", kind)
    else:
        words = published_words(order, "main_por.py", kind)
        assert " ".join(words) == f"--env_name {name} --type {kind} {wanted}"


def test_q_guide_trains_the_behaviour_first(tmp_path):
    (tmp_path / "run_mujoco_por.sh").write_text(SHELL)
    order = Order("POR/q", str(tmp_path), DATASET, "hopper-medium-v2", 4, 20, 10, 90)
    (_, first), (_, second) = CONTROLS["POR/q"].commands(order)
    assert first == [*second, "--pretrain"]
    text = " ".join(second)
    assert text.endswith(
        "--train_steps 90 --pretrain_steps 20 --eval_period 10 --n_eval_episodes 100"
    )


# ---- The command ----


@pytest.fixture
def call(checkouts, tmp_path, monkeypatch, capsys):
    """Return `call(*words)`: the command. It returns what it printed."""

    def call(*words: str) -> str:
        fixed = ["--checkouts", str(checkouts), "--namesake", "hopper-medium-v2"]
        fixed += ["--dataset", DATASET, "--num-updates", "20", "--eval-every", "20"]
        fixed += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
        monkeypatch.setattr(sys, "argv", ["controls", *fixed, *words])
        command.main()
        return capsys.readouterr().out

    return call


def test_packages_that_are_missing_are_named(call, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flax" else 1)
    with pytest.raises(SystemExit, match="^ReBRAC/rebrac needs jax, .*: pip install jax flax"):
        call("--control", "ReBRAC/rebrac")


@pytest.mark.slow
def test_a_result_has_all_seeds_and_says_whose_code_it_is(call, isolated, tiny_minari, pendulum):
    tiny_minari(DATASET, pendulum(), "Pendulum-v1")
    out = call("--control", "CORL/iql", "--seed", "1", "--num-seeds", "2")
    assert "is not corl-team/CORL @ eeeeef2671235fcce3a3eb255576a207d78840e6, but another" in out
    path = isolated / "results" / "local-pendulum-tiny-v0" / "control-corl-iql-20.json"
    result = read_result(path)
    assert complaints(result) == []
    assert result["script"] == "iql" and result["args"]["num_seeds"] == 2
    wanted = [our_score(0.5, 0.1), our_score(0.5, 0.2)]
    assert result["final"]["returns"] == pytest.approx(wanted, rel=1e-6)
    control = result["control"]
    assert control["repository"] == "corl-team/CORL"
    assert control["commit"] == "eeeeef2671235fcce3a3eb255576a207d78840e6, but another iql.py"
    assert control["file"] == "algorithms/offline/iql.py"
    assert "hopper/medium_v2.yaml" in control["note"]
    assert "--checkouts others " in control["command"] and str(isolated) not in path.read_text()
    out = call("--control", "CORL/iql", "--seed", "1", "--num-seeds", "2")
    assert out.count("finished before") == 2


@pytest.mark.slow
def test_a_program_that_fails_is_one_line(call, isolated, tiny_minari, pendulum):
    tiny_minari(DATASET, pendulum(), "Pendulum-v1")
    with pytest.raises(SystemExit) as end:
        call("--control", "CORL/iql", "--seed", "13")
    text = str(end.value)
    assert text.startswith("CORL/iql, seed 13, failed: ValueError: an unlucky number; more in ")
    assert "\n" not in text
    assert not (isolated / "results").exists()


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--control", "CORL/bc"], "any_percent_bc.py is missing"),
        (["--control", "SPOT/spot"], "SPOT is missing; check out thuml/SPOT there"),
        (["--control", "CORL/iql", "--namesake", "pen-human-v2"], "no settings for pen-human-v2"),
        (["--control", "CORL/iql", "--num-seeds", "0"], "must be at least 1"),
        (["--control", "CORL/iql", "--eval-every", "15"], "a multiple of --eval-every"),
        (["--control", "CORL/iql", "--decay-updates", "10"], "must not be less"),
        (["--control", "TD3_BC/td3_bc", "--decay-updates", "30"], "has no schedule"),
    ],
)
def test_what_cannot_be_trained_is_refused(call, words, wanted):
    with pytest.raises(SystemExit, match=wanted):
        call(*words)


@pytest.mark.parametrize(
    "dataset, wanted",
    [
        ("rebuilt/hopper/medium-snapshot5-v0", "hopper-medium-v2"),
        ("rebuilt/hopper/medium-replay-81k-v0", "hopper-medium-replay-v2"),
        ("rebuilt/antmaze/umaze-v0", "antmaze-umaze-v2"),
        ("antmaze-umaze-diverse-v2", "antmaze-umaze-diverse-v2"),
        ("rebuilt/pointmaze/umaze-v0", None),
    ],
)
def test_the_settings_are_of_the_dataset_of_the_same_kind(tmp_path, dataset, wanted):
    args = command.Args(("CORL/iql",), dataset, tmp_path)
    if wanted is None:
        with pytest.raises(SystemExit, match="name one by --namesake"):
            command.find_namesake(args, load_script("iql"))
    else:
        assert command.find_namesake(args, load_script("iql")) == wanted


def test_a_name_tells_a_schedule_of_its_own():
    order = Order("POR/q", "", "rebuilt/hopper/medium-v0", "", 0, 100_000, 10_000, 1_000_000)
    assert command.result_name(order) == "hopper-medium/control-por-q-100k-decay-1M"
