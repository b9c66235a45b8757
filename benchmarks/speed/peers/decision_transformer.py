"""Decision Transformer (Chen, Lu, et al.): the authors' code, in PyTorch.

Their copy of GPT-2 was made for an old version of the package transformers. What an update needs of
that package is little: this module has stand-ins for it.
"""

import io
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import numpy as np

from benchmarks.speed.peers import BATCHES, Peer
from benchmarks.speed.rows import TASKS, episode_ends

# What they import of the package
NAMES = ("activations", "file_utils", "modeling_outputs", "modeling_utils", "utils")
NAMES += ("utils.model_parallel_utils", "models", "models.gpt2", "models.gpt2.configuration_gpt2")


def unchanged(*_, **__) -> Callable:
    """Make a decorator that leaves what it decorates. Theirs write documentation."""
    return lambda decorated: decorated


def stand_in_for_transformers() -> None:
    """Put modules in the place of the package, with what a GPT2Model needs of it."""
    import torch

    class Conv1D(torch.nn.Module):
        """A linear layer whose weight is (fan_in, fan_out), as the package's."""

        def __init__(self, fan_out: int, fan_in: int):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(fan_in, fan_out))
            self.bias = torch.nn.Parameter(torch.zeros(fan_out))

        def forward(self, x):
            rows = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
            return rows.view(*x.shape[:-1], -1)

    class PreTrainedModel(torch.nn.Module):
        """A network with a config."""

        def __init__(self, config):
            super().__init__()
            self.config = config
            self.dtype = torch.float32

        def init_weights(self) -> None:
            self.apply(self._init_weights)

        def get_head_mask(self, mask, layers: int) -> list:
            return [None] * layers

    class GPT2Config(SimpleNamespace):
        """The defaults of version 4.5.1 that reach an update."""

        def __init__(self, **options):
            defaults = {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "embd_pdrop": 0.1}
            defaults |= {"n_ctx": 1024, "use_cache": True, "use_return_dict": True}
            defaults |= {"output_attentions": False, "output_hidden_states": False}
            defaults |= {"add_cross_attention": False}
            super().__init__(**defaults | options)

    package = MagicMock(GPT2Config=GPT2Config)
    modules = {name: MagicMock(unsafe=True) for name in NAMES}  # one of their names is assert_...
    modules["activations"].ACT2FN = {"relu": torch.nn.functional.relu}
    modules["file_utils"] = ModuleType("file_utils")
    modules["file_utils"].ModelOutput = dict
    for name in ("add_start_docstrings", "add_start_docstrings_to_model_forward"):
        setattr(modules["file_utils"], name, unchanged)
    for name in ("add_code_sample_docstrings", "replace_return_docstrings"):
        setattr(modules["file_utils"], name, unchanged)
    modules["modeling_outputs"].BaseModelOutputWithPastAndCrossAttentions = dict
    modules["modeling_utils"].Conv1D = Conv1D
    modules["modeling_utils"].PreTrainedModel = PreTrainedModel
    modules["models.gpt2.configuration_gpt2"].GPT2Config = GPT2Config
    sys.modules["transformers"] = package
    for name, module in modules.items():
        sys.modules[f"transformers.{name}"] = module


def make_paths(rows: dict) -> list[dict]:
    """Return the episodes as their download_d4rl_datasets.py stores them."""
    names = ("observations", "next_observations", "actions", "rewards", "terminals")
    stops = np.flatnonzero(episode_ends(len(rows["rewards"]))) + 1
    columns = {name: np.split(rows[name], stops[:-1]) for name in names}
    return [dict(zip(names, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]


def build(load, rows: dict, task: str, device: str) -> Callable:
    """Let experiment.py build its trainer, with the defaults of its command line.

    The name of the environment chooses nothing that an update sees.
    """
    shape = TASKS[task]
    stand_in_for_transformers()
    module = load("experiment")
    env = module.gym.make.return_value
    env.observation_space.shape, env.action_space.shape = (shape.obs_dim,), (shape.act_dim,)
    module.open = lambda *_: io.BytesIO()  # the file of the dataset
    module.pickle = SimpleNamespace(load=lambda _: make_paths(rows))
    trainers = []
    make_trainer = module.SequenceTrainer

    def keep_trainer(**options):
        trainers.append(make_trainer(**options))
        return trainers[-1]

    module.SequenceTrainer = keep_trainer
    variant = {"env": "halfcheetah", "dataset": "medium", "model_type": "dt", "device": device}
    variant |= {"K": 20, "batch_size": BATCHES["dt"], "embed_dim": 128, "n_layer": 3, "n_head": 1}
    variant |= {"activation_function": "relu", "dropout": 0.1, "learning_rate": 1e-4}
    variant |= {"weight_decay": 1e-4, "warmup_steps": 10_000, "num_eval_episodes": 0}
    module.experiment("speed", variant | {"max_iters": 0})
    (trainer,) = trainers

    def train() -> None:
        trainer.train_step()
        trainer.scheduler.step()

    return train


PEERS = [
    Peer(
        script="dt",
        repository="kzl/decision-transformer",
        commit="e2d82e68f330c00f763507b3b01d774740bee53f",
        folder="gym",
        files={
            "experiment.py": "fd3dea81eca01adc20b9180dac04446afbe6d2da",
            "decision_transformer/models/decision_transformer.py": (
                "f76f8f3b8f91794b322fc7012d1be65476857d06"
            ),
            "decision_transformer/models/trajectory_gpt2.py": (
                "e05b8d3adf2734b4c06e918ec9b62e353acdb347"
            ),
            "decision_transformer/training/seq_trainer.py": (
                "0c42848cf16908e089a2b1ec6dd5a3646d258b7d"
            ),
        },
        timed="`SequenceTrainer.train_step`, which calls `get_batch`, and `scheduler.step`; of "
        "`transformers`, a stand-in has the linear layer and the defaults; the model predicts "
        "states and returns, too, from which it does not learn",
        build=build,
    )
]
