"""Read online trainings by algorithms/sac.py: their snapshots, and what the learner did."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.common import load_script

# Arguments of a run that do not change what its agents learn, and those that command() sets itself
LEFT_OUT = ("device", "resume", "num_updates", "run_dir")


@dataclass
class Training:
    """The training of one agent. Steps are those in the environment, with the random ones."""

    folder: Path
    agent: int  # its number in the run
    checkpoint: dict
    snapshots: dict[int, dict[str, np.ndarray]]  # step -> weights as SacPolicy takes them

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
        words = ["python", "algorithms/sac.py"]
        words += changed_options(load_script("sac"), self.checkpoint["args"])
        words += ["--num-updates", str(step - self.random_steps)]
        words += ["--run-dir", f"runs/{self.folder.resolve().name}"]
        return shlex.join(words)

    def buffer(self) -> dict[str, np.ndarray]:
        """Return the replay buffer: observations, rewards, terminals, next_observations.

        The random steps at its beginning are not stored, so they are made again.
        """
        sac = load_script("sac")
        random, _ = sac.random_dataset(sac.Args(**self.checkpoint["args"]))
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
    if not (folder / "checkpoint.pt").exists():
        sys.exit(f"there is no checkpoint in {folder}; name the --run-dir of a run of sac.py")
    sac = load_script("sac")
    checkpoint = sac.load_checkpoint(str(folder))
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
    policies = {update: load_snapshot(sac, files[update]) for update in updates}
    trainings = []
    for agent in range(checkpoint["args"]["num_seeds"]):
        training = Training(folder, agent, checkpoint, {})
        for update, state in policies.items():
            step = training.random_steps + update
            training.snapshots[step] = export_policy(state, agent)
        trainings.append(training)
    return trainings


def load_snapshot(sac: ModuleType, path: Path) -> dict:
    """Return the stacked weights of a snapshot. Nothing that the file names is executed."""
    try:
        return sac.torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly every type
        sys.exit(f"the snapshot {path} is damaged: {sac.one_line(error)}")


def export_policy(state: dict, agent: int) -> dict[str, np.ndarray]:
    """Return an agent's policy as SacPolicy takes it, with weights (out, in) as in nn.Linear."""
    weights = {}
    for name, layer in (("fc0", "net.0"), ("fc1", "net.2"), ("heads", "net.4")):
        weights[f"{name}.weight"] = state[f"{layer}.weight"][agent].float().numpy().T
        weights[f"{name}.bias"] = state[f"{layer}.bias"][agent].float().numpy()[0]
    for kind in ("weight", "bias"):
        mean, log_std = np.split(weights.pop(f"heads.{kind}"), 2)
        weights[f"last_fc.{kind}"] = mean
        weights[f"last_fc_log_std.{kind}"] = log_std
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}
