"""What the peers in JAX share: a loop whose turn is one call of a compiled function."""

import sys
from collections.abc import Callable

import numpy as np


class JaxLoop:
    """The training loop of a script in JAX."""

    def __init__(self, jax, call: Callable, rng, state, updates: int):
        """call: (rng, state) -> (rng, state, losses) after `updates` updates."""
        self.jax = jax
        self.call = call
        self.updates = updates
        self.rng = rng
        self.state = state
        self.losses = {}
        self.first_weights = self.weights()

    def turn(self) -> None:
        self.rng, self.state, self.losses = self.call(self.rng, self.state)

    def wait(self) -> None:
        """Wait until all that was started is done, because JAX returns before."""
        self.jax.block_until_ready((self.rng, self.state, self.losses))

    def weights(self) -> list[np.ndarray]:
        """Return a copy of the actor's weights."""
        return [np.array(leaf) for leaf in self.jax.tree_util.tree_leaves(self.state.actor.params)]

    def check(self) -> None:
        """End the program if nothing is learned, because such a time would say nothing."""
        for name, loss in self.losses.items():
            if not np.isfinite(np.asarray(loss)).all():
                sys.exit(f"its {name} is not finite")
        pairs = zip(self.weights(), self.first_weights, strict=True)
        if all((new == old).all() for new, old in pairs):
            sys.exit("its actor did not change")

    def facts(self) -> dict:
        """Return the version, and what matrix products are: on GPUs XLA's may not be fp32."""
        jnp = self.jax.numpy
        x = np.random.default_rng(0).random((256, 256), np.float32)
        exact = x.astype(float) @ x.astype(float)
        error = np.abs(np.asarray(jnp.array(x) @ jnp.array(x)) / exact - 1).max()
        precision = "fp32" if error < 1e-5 else f"products with errors of {error:.0e}"
        return {"jax": self.jax.__version__, "precision": precision}
