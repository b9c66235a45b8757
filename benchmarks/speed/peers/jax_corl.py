"""JAX-CORL (Nishimori): CORL's scripts in JAX."""

import sys
from collections.abc import Callable

from benchmarks.speed.peers import Peer
from benchmarks.speed.peers.jax_loop import JaxLoop


def loop(jax, module, algorithm, create: Callable, rows: dict) -> JaxLoop:
    """Return the loop that its scripts share, with their config as it was when imported."""
    config = module.config
    terminals = rows["terminals"]
    columns = rows | {"dones": terminals, "dones_float": terminals}
    fields = module.Transition._fields
    jnp = jax.numpy
    data = module.Transition(*(jnp.array(columns[name], dtype=jnp.float32) for name in fields))
    rng, key = jax.random.split(jax.random.PRNGKey(config.seed))
    state = create(key, data.observations[0], data.actions[0], config)
    update = jax.jit(algorithm().update_n_times, static_argnums=(3,))

    def call(rng, state):
        rng, key = jax.random.split(rng)
        state, losses = update(state, data, key, config)
        return rng, state, losses

    return JaxLoop(jax, call, rng, state, config.n_jitted_updates)


def iql(load, rows: dict, task: str, device: str) -> JaxLoop:
    """Build iql.py without its default of a LayerNorm in V, which ours and the others' lack."""
    sys.argv[1:] = ["layer_norm=false"]  # it reads its command line while it is imported
    module = load("iql")
    return loop(load("jax"), module, module.IQL, module.create_iql_train_state, rows)


def td3_bc(load, rows: dict, task: str, device: str) -> JaxLoop:
    """Build td3bc.py as it is; no option takes the LayerNorm out of its critics."""
    sys.argv[1:] = []
    module = load("td3bc")
    return loop(load("jax"), module, module.TD3BC, module.create_td3bc_train_state, rows)


REPOSITORY = "nissymori/JAX-CORL"
COMMIT = "d747dd8ad4fcc088ff9f1ade49a6be43a60f6556"
PEERS = [
    Peer(
        script="iql",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="algos",
        files={"iql.py": "1130ec1a48844d2bd8f9ca6d89e5371e3738eb2f"},
        timed="`jax.jit` of `IQL.update_n_times`, which samples; 8 updates a call, as they have "
        "it; `layer_norm=false` (theirs has one in V)",
        build=iql,
        jax=True,
    ),
    Peer(
        script="td3_bc",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="algos",
        files={"td3bc.py": "0a789c07e6e3c1d73ac4b269b5de7def7f4bc083"},
        timed="`jax.jit` of `TD3BC.update_n_times`, which samples; 8 updates a call, as they have "
        "it; its critics have a LayerNorm, which ours have not",
        build=td3_bc,
        jax=True,
    ),
]
