"""unifloral (Jackson et al.): single-file scripts in JAX."""

from benchmarks.speed.peers import Peer
from benchmarks.speed.peers.jax_loop import JaxLoop
from benchmarks.speed.rows import TASKS

SCAN = 100  # turns of its loop in a call on a CPU: a call costs 1.5 ms, 0.3 % of its turns


def loop(jax, module, rows: dict, networks: list, task: str, critics: int, device: str) -> JaxLoop:
    """Return the loop that its scripts share.

    networks: classes of the actor, the critics and, if there is one, V. critics: updates of the
    critics in a turn, which count as so many. On a GPU a call has as many turns as they give it.
    """
    jnp = jax.numpy
    args = module.Args() if device == "cuda" else module.Args(eval_interval=SCAN)
    data = module.Transition(
        obs=jnp.array(rows["observations"]),
        action=jnp.array(rows["actions"]),
        reward=jnp.array(rows["rewards"]),
        next_obs=jnp.array(rows["next_observations"]),
        done=jnp.array(rows["terminals"]),
    )
    obs, act = jnp.zeros(TASKS[task].obs_dim), jnp.zeros(TASKS[task].act_dim)
    mean, std = data.obs.mean(axis=0), data.obs.std(axis=0)
    actor = networks[0](TASKS[task].act_dim, mean, std)
    built = [actor, *(network(mean, std) for network in networks[1:])]
    inputs = [[obs], [obs, act], [obs]][: len(built)]
    rng, *keys = jax.random.split(jax.random.PRNGKey(args.seed), 1 + len(built))
    parts = {}
    names = ["actor", "dual_q", "value"][: len(built)]
    for name, *part in zip(names, keys, built, inputs, strict=True):
        parts[name] = part
        parts[f"{name}_target"] = part  # a target begins with the same weights
    fields = module.AgentTrainState._fields
    state = module.AgentTrainState(*(module.create_train_state(args, *parts[f]) for f in fields))
    step = module.make_train_step(args, *(network.apply for network in built), data)

    def call(rng, state):
        (rng, state), losses = jax.lax.scan(step, (rng, state), None, args.eval_interval)
        return rng, state, losses

    return JaxLoop(jax, call, rng, state, critics * args.eval_interval)


def iql(load, rows: dict, task: str, device: str) -> JaxLoop:
    """Build iql.py with the values of its Args."""
    module = load("iql")
    networks = [module.TanhGaussianActor, module.DualQNetwork, module.StateValueFunction]
    return loop(load("jax"), module, rows, networks, task, 1, device)


def td3_bc(load, rows: dict, task: str, device: str) -> JaxLoop:
    """Build td3_bc.py: a turn draws one batch, updates the critics twice with it, the actor once"""
    module = load("td3_bc")
    networks = [module.DeterministicTanhActor, module.DualQNetwork]
    critics = module.Args().num_critic_updates_per_step
    return loop(load("jax"), module, rows, networks, task, critics, device)


REPOSITORY = "EmptyJackson/unifloral"
COMMIT = "f2dc1278eae18ed3e22c92255119c54885414d17"
PEERS = [
    Peer(
        script="iql",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="algorithms",
        files={"iql.py": "2ed607da6da84baacf00c11023493894201453bd"},
        timed=f"`jax.lax.scan` of `make_train_step`, which samples; on a CPU "
        f"`eval_interval={SCAN}` updates a call (they have 2,500)",
        build=iql,
        jax=True,
    ),
    Peer(
        script="td3_bc",
        repository=REPOSITORY,
        commit=COMMIT,
        folder="algorithms",
        files={"td3_bc.py": "d5f254be747d24fd908c8b71eadd7424752d8879"},
        timed=f"`jax.lax.scan` of `make_train_step`, on a CPU with `eval_interval={SCAN}` (they "
        "have 2,500); a turn counts as the two updates of the critics that it makes, both with "
        "the one batch that it draws",
        build=td3_bc,
        jax=True,
    ),
]
