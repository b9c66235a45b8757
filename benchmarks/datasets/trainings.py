"""Read online trainings by sac.py, td3.py or ddpg.py: their snapshots, and what the learner did."""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.common import load_script

SCRIPTS = ("sac", "td3", "ddpg")
# Arguments of a run that do not change what its agents learn, and those that command() sets itself
LEFT_OUT = ("device", "resume", "num_updates", "run_dir")


@dataclass
class Training:
    """The training of one agent. Steps are those in the environment, with the random ones."""

    folder: Path
    agent: int  # its number in the run
    checkpoint: dict
    snapshots: dict[int, dict[str, np.ndarray]]  # step -> weights as make_policy takes them

    @property
    def script(self) -> str:
        return self.checkpoint["script"]

    @property
    def acting(self) -> str:
        """Return how its policies act in a dataset: as they did in the training."""
        if self.script == "sac":
            return "actions sampled"
        noise = self.checkpoint["args"]["exploration_noise"]
        return f"with Gaussian noise of {noise:g} times half the range of an action"

    @property
    def name(self) -> str:
        return f"{self.folder}, agent {self.agent}"

    @property
    def seed(self) -> int:
        return self.checkpoint["args"]["seed"]

    @property
    def random_steps(self) -> int:
        """Return the number of uniform actions with which the training began."""
        return self.checkpoint["args"]["random_steps"]

    def command(self, step: int) -> str:
        """Return the command that trains up to that step."""
        words = ["python", f"algorithms/{self.script}.py"]
        words += changed_options(load_script(self.script), self.checkpoint["args"])
        words += ["--num-updates", str(step - self.random_steps)]
        words += ["--run-dir", f"runs/{self.folder.resolve().name}"]
        return shlex.join(words)

    def buffer(self) -> dict[str, np.ndarray]:
        """Return the replay buffer: observations, rewards, terminals, next_observations.

        The random steps at its beginning are not stored, so they are made again.
        """
        script = load_script(self.script)
        random, _ = script.random_dataset(script.Args(**self.checkpoint["args"]))
        columns = {}
        for key in ("observations", "rewards", "terminals", "next_observations"):
            own = self.checkpoint["extra_state"][key][self.agent].numpy()
            columns[key] = np.concatenate([random[key], own])
        return columns


def changed_options(script: ModuleType, arguments: dict) -> list[str]:
    """Return the options of a run that are not the defaults, but for LEFT_OUT."""
    words = []
    defaults = asdict(script.Args())
    for name, value in arguments.items():
        if value != defaults[name] and name not in LEFT_OUT:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def load_trainings(folder: Path, env_id: str) -> list[Training]:
    """Return the trainings of the agents of a run."""
    names = " or ".join(f"{name}.py" for name in SCRIPTS)
    if not (folder / "checkpoint.pt").exists():
        sys.exit(f"there is no checkpoint in {folder}; name the --run-dir of a run of {names}")
    name = json.loads((folder / "result.json").read_text(encoding="utf-8"))["script"]
    if name not in SCRIPTS:
        sys.exit(f"{folder} is a run of {name}.py; it must be one of {names}")
    script = load_script(name)
    checkpoint = script.load_checkpoint(str(folder))
    trained_on = checkpoint["task"]["env_id"]
    if trained_on != env_id:
        sys.exit(f"{folder} was trained on {trained_on}, not on {env_id}")
    # A running training may have written snapshots since its last checkpoint.
    last = checkpoint["step"]
    files = {int(path.stem): path for path in folder.glob("snapshots/*.pt")}
    updates = [update for update in sorted(files) if update <= last]
    if not updates:
        sys.exit(
            f"{folder} holds no snapshots; train with --env of a Gymnasium id and --snapshot-every"
        )
    policies = {update: load_snapshot(script, files[update]) for update in updates}
    trainings = []
    for agent in range(checkpoint["args"]["num_seeds"]):
        training = Training(folder, agent, checkpoint, {})
        for update, state in policies.items():
            step = training.random_steps + update
            training.snapshots[step] = export_policy(state, agent, checkpoint)
        trainings.append(training)
    return trainings


def load_snapshot(script: ModuleType, path: Path) -> dict:
    """Return the stacked weights of a snapshot. Nothing that the file names is executed."""
    try:
        return script.torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly every type
        sys.exit(f"the snapshot {path} is damaged: {script.one_line(error)}")


def export_policy(state: dict, agent: int, checkpoint: dict) -> dict[str, np.ndarray]:
    """Return an agent's policy as make_policy takes it, with weights (out, in) as in nn.Linear."""
    is_sac = checkpoint["script"] == "sac"
    prefix = "net." if is_sac else ""
    weights = {}
    for name, layer in (("fc0", 0), ("fc1", 2), ("last_fc", 4)):
        weights[f"{name}.weight"] = state[f"{prefix}{layer}.weight"][agent].float().numpy().T
        weights[f"{name}.bias"] = state[f"{prefix}{layer}.bias"][agent].float().numpy()[0]
    if is_sac:
        for kind in ("weight", "bias"):
            mean, log_std = np.split(weights[f"last_fc.{kind}"], 2)
            weights[f"last_fc.{kind}"] = mean
            weights[f"last_fc_log_std.{kind}"] = log_std
    else:
        weights["noise"] = np.float32(checkpoint["args"]["exploration_noise"])
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}
