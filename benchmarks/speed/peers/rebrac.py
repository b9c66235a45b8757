"""ReBRAC (Tarasov et al.): the authors' file in JAX."""

import sys
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

from benchmarks.speed.peers import BATCH, Peer
from benchmarks.speed.peers.jax_loop import JaxLoop

EPOCH = 100  # updates of an epoch, which is a call: it costs 1 ms or so, less than 0.1 % of them


class LoopFoundError(Exception):
    """Ends their main() where it begins its first epoch, and holds that loop."""


class State(NamedTuple):
    """What a turn of their loop hands to the next one."""

    carry: dict

    @property
    def actor(self):
        return self.carry["actor"]


def rebrac(load, rows: dict, task: str, device: str) -> JaxLoop:
    """Take the loop out of main() of rebrac.py, which no other function holds."""
    # main() is to be called with a Config, and not to read a command line.
    sys.modules["pyrallis"] = SimpleNamespace(wrap=lambda: lambda function: function)
    sys.modules["distrax"] = SimpleNamespace(Transformed=object)  # of policies that are not used
    jax = load("jax")
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map  # its older name, which they use
    module = load("src.algorithms.rebrac")
    columns = {
        "states": "observations",
        "actions": "actions",
        "rewards": "rewards",
        "next_states": "next_observations",
        "next_actions": "actions",  # which are not the next ones, but take as long
        "dones": "terminals",
    }

    def fill(buffer, *_, **__) -> None:
        jnp = jax.numpy
        buffer.data = {
            theirs: jnp.array(rows[name], dtype=jnp.float32) for theirs, name in columns.items()
        }

    module.ReplayBuffer.create_from_d4rl = fill
    config = module.Config(batch_size=BATCH, num_updates_on_epoch=EPOCH)

    def find(lower, upper, body_fun, init_val):
        raise LoopFoundError(lower, upper, body_fun, init_val)

    try:
        with patch.object(jax.lax, "fori_loop", find):
            module.main(config)
    except LoopFoundError as found:
        lower, upper, body, carry = found.args
    epoch = jax.jit(lambda carry: jax.lax.fori_loop(lower, upper, body, carry))

    def call(rng, state):
        carry = epoch(state.carry)
        loss, _ = carry["metrics"].accumulators["critic_loss"]
        return rng, State(carry), {"critic_loss": loss}

    return JaxLoop(jax, call, None, State(carry), EPOCH)


PEERS = [
    Peer(
        script="rebrac",
        repository="DT6A/ReBRAC",
        commit="694385b72fcef2ae318e3f0ff41ca36122355343",
        folder=".",
        files={
            "src/algorithms/rebrac.py": "d57335d430b33115271b1663bbcfc020d7cc8dbb",
            "src/networks.py": "df4dff4583ca7dd8dfe8d06d2a3bde86b74b37cd",
            "src/nn.py": "def453d7ea1a8b06edb0bd7610d5b24f4877cd84",
            "src/utils/buffer.py": "4cc81bdbf54b1de2b533cd61257b7a664a053206",
            "src/utils/common.py": "9567f6909cc52d330093973c092e2cb86aadc495",
        },
        timed=f"`jax.jit` of the loop over an epoch in its `main`, which samples; {EPOCH} updates "
        "an epoch (theirs have 1,000)",
        build=rebrac,
        jax=True,
    ),
]
