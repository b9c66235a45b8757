"""How other people's programs are called: their options, and where their published settings are."""

import hashlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.scores.controls import EPISODES, Control, Order
from benchmarks.speed.peers import Peer, load_peers

Commands = Iterator[tuple[str, list[str]]]


def find_peer(project: str, script: str, files: dict[str, str] | None = None) -> Peer:
    """Return the peer of a script of ours in a project, with further files whose content counts."""
    peer = next(peer for peer in load_peers(project) if peer.script == script)
    return replace(peer, files=peer.files | (files or {}))


def options(**values) -> list[str]:
    """Return words of a command line: (seed=0) -> ["--seed", "0"]"""
    words = []
    for name, value in values.items():
        words += [f"--{name}", str(value)]
    return words


def settings_file(order: Order, path: str) -> Path:
    """Return a file with published settings. End the program if there is none."""
    file = order.folder / path
    if not file.is_file():
        sys.exit(f"{order.control} has no settings for {order.namesake}: {file} is missing")
    return file


def describe(order: Order, path: Path) -> str:
    """Name a file with published settings, and the id that git gives to its content."""
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return f"{path.relative_to(order.folder)} (git object {digest[:7]})"


# --------------------------------------------------------------------------------------------------
# CORL: a single file for each algorithm, with a YAML file for each dataset
# --------------------------------------------------------------------------------------------------


def corl_settings(order: Order, folder: str) -> Path:
    """'hopper-medium-v2' -> configs/offline/iql/hopper/medium_v2.yaml"""
    env, dataset = order.namesake.split("-", maxsplit=1)
    file = f"configs/offline/{folder}/{env}/{dataset.replace('-', '_')}.yaml"
    return settings_file(order, file)


# What most of their files call the numbers of updates, of updates between evaluations, of episodes
CORL_SIZES = ("max_timesteps", "eval_freq", "n_episodes")


def corl(
    script: str,
    file: str,
    folder: str,
    args: dict | None = None,
    scheduled: bool = False,
    sizes: tuple[str, str, str] = CORL_SIZES,
    changes: dict | None = None,
) -> Control:
    """Return the control of a file in algorithms/offline. `folder` has its settings."""
    changes = changes or {}

    def commands(order: Order) -> Commands:
        numbers = (order.decay_updates, order.eval_every, EPISODES)
        words = options(
            config_path=corl_settings(order, folder),
            seed=order.seed,
            **dict(zip(sizes, numbers, strict=True)),
            device="cuda" if torch.cuda.is_available() else "cpu",
            **changes,
        )
        yield f"algorithms/offline/{file}", words

    def settings(order: Order) -> str:
        return describe(order, corl_settings(order, folder))

    return Control(
        peer=find_peer("CORL", script),
        file=f"algorithms/offline/{file}",
        commands=commands,
        settings=settings,
        args=args or {},
        changes=changes,
        scheduled=scheduled,
    )


# --------------------------------------------------------------------------------------------------
# TD3_BC: the defaults of main.py, the same for all datasets
# --------------------------------------------------------------------------------------------------


def td3_bc_commands(order: Order) -> Commands:
    words = options(
        env=order.namesake,
        seed=order.seed,
        eval_freq=order.eval_every,
        max_timesteps=order.num_updates,
    )
    yield "main.py", words


def td3_bc_evaluate(names: dict) -> None:
    """Call the evaluation of main.py, whose number of episodes is no option of its command line."""
    args = names["args"]
    names["eval_policy"](
        names["policy"],
        args.env,
        args.seed,
        names["mean"],
        names["std"],
        eval_episodes=EPISODES,
    )


TD3_BC = Control(
    peer=find_peer("TD3_BC", "td3_bc", {"main.py": "ef5f155229720cf39c4c31b8c6109ec78ad417fb"}),
    file="main.py",
    commands=td3_bc_commands,
    settings=lambda order: "the defaults of main.py",
    eval_episodes=10,
    evaluate=td3_bc_evaluate,
)

# --------------------------------------------------------------------------------------------------
# SPOT: a VAE first, then the policy, with a YAML file for each dataset
# --------------------------------------------------------------------------------------------------

VAE_UPDATES = 100_000  # the default of train_vae.py


def spot_settings(order: Order) -> Path:
    return settings_file(order, f"configs/offline/{order.namesake.removesuffix('-v2')}.yml")


def spot_commands(order: Order) -> Commands:
    config = spot_settings(order)
    env, dataset = order.namesake.removesuffix("-v2").split("-", maxsplit=1)
    words = options(env=env, dataset=dataset, seed=order.seed, num_iters=VAE_UPDATES)
    if "antmaze_no_normalize: true" in config.read_text():
        words.append("--no_normalize")
    yield "train_vae.py", words
    # It stores the VAE below the working folder, under a name that holds the time.
    found = Path("runs/train_vae").rglob(f"*_{VAE_UPDATES}.pt")
    vae = max(found, key=lambda path: path.stat().st_mtime)
    words = options(
        config=config,
        vae_model_path=vae,
        seed=order.seed,
        max_timesteps=order.num_updates,
        eval_freq=order.eval_every,
        eval_episodes=EPISODES,
    )
    yield "main.py", words


SPOT_FILES = {
    "main.py": "ed8b2fabf503f31e36aefcc6bccc8207dc4419a2",
    "train_vae.py": "6c14012a7a954f51ccf1338c50768562abdfec0a",
    "eval.py": "a728d98128171ad4953f116d2fbab39d0d362228",
    "log.py": "47fdfee0292ffbf1a36285704447968746165898",
}
SPOT = Control(
    peer=find_peer("SPOT", "spot", SPOT_FILES),
    file="main.py",
    commands=spot_commands,
    settings=lambda order: describe(order, spot_settings(order)),
    args={"vae_updates": VAE_UPDATES},
)

# --------------------------------------------------------------------------------------------------
# POR: POR and IQL, with shell scripts that hold the options of each dataset
# --------------------------------------------------------------------------------------------------


def shell_script(order: Order, main: str) -> Path:
    """main_por.py -> run_mujoco_por.sh or run_antmaze_por.sh"""
    kind = "antmaze" if order.namesake.startswith("antmaze") else "mujoco"
    name = main.removeprefix("main_").removesuffix(".py")
    return settings_file(order, f"run_{kind}_{name}.sh")


def published_words(order: Order, main: str, kind: str) -> list[str]:
    """Return the options of main.py that the shell script has for a dataset and a --type.

    A dataset has a call of its own, or is in the list of the call with $env. Where it has its own
    call with the other --type, it stands in that list as a comment.
    """
    path = shell_script(order, main)
    text = path.read_text()
    listed = re.findall(r'^#?\s*"([\w-]+)"\s*$', text, flags=re.MULTILINE)
    calls = {}
    for call in text.split(f"python {main}")[1:]:
        words = shlex.split(call.split("&")[0].replace("\\\n", " "))
        if words[words.index("--type") + 1] == kind:
            calls[words[words.index("--env_name") + 1]] = words
    if order.namesake in listed:
        calls.setdefault(order.namesake, calls.get("$env"))
    words = calls.get(order.namesake)
    if words is None:
        sys.exit(f"{path.name} has no --type {kind} for {order.namesake}")
    known = {"$env": order.namesake, "$seed": str(order.seed)}
    return [known.get(word, word) for word in words]


def por_repository(script: str, main: str, kind: str, files: dict, **known) -> Control:
    """Return the control of a main_*.py with one of its --type."""

    def commands(order: Order) -> Commands:
        words = published_words(order, main, kind)
        # Of a repeated option, the last one counts.
        words += options(
            train_steps=order.decay_updates,
            pretrain_steps=order.num_updates,
            eval_period=order.eval_every,
            n_eval_episodes=EPISODES,
        )
        if kind == "por_q":
            yield main, [*words, "--pretrain"]
        yield main, words

    def settings(order: Order) -> str:
        published_words(order, main, kind)  # ends the program if there are none
        return f"{shell_script(order, main).name}, --type {kind}"

    peer = find_peer("POR", "por", files)
    return Control(
        peer=replace(peer, script=script), file=main, commands=commands, settings=settings, **known
    )


POR_FILES = {
    "main_por.py": "53d7d4ad37ed52f5cebed9c4ae7f4f7a06f832df",
    "run_mujoco_por.sh": "aee57c2a5df841be2bd52279e8078e91e160d752",
    "run_antmaze_por.sh": "38baea898a55e27796d5490bff2a9fb2817069fc",
}
IQL_FILES = {
    "iql.py": "8cd0eb9f705660466549fa003b4e2da19b535849",
    "main_iql.py": "0126453162740b36b78a8c8226669c0f36010383",
    "run_mujoco_iql.sh": "0e20c2bf6f4e17a03ae456c719efd0eac92dfea6",
    "run_antmaze_iql.sh": "5235ad31a3a89638fe6357879a38e0d867a41f31",
}

# --------------------------------------------------------------------------------------------------
# ReBRAC: one file in JAX, with a YAML file for each dataset
# --------------------------------------------------------------------------------------------------


def rebrac_settings(order: Order) -> Path:
    """'hopper-medium-v2' -> configs/rebrac/hopper/hopper_medium.yaml"""
    name = order.namesake.removesuffix("-v2").replace("-", "_")
    return settings_file(order, f"configs/rebrac/{name.partition('_')[0]}/{name}.yaml")


def rebrac(**changes) -> Control:
    """Return the control of rebrac.py with these options instead of the published ones."""

    def commands(order: Order) -> Commands:
        # Its policy learns in the even updates of an epoch, each of which is evaluated here.
        if order.eval_every % 2 > 0:
            sys.exit(f"{order.control} needs an even --eval-every")
        words = options(
            config_path=rebrac_settings(order),
            train_seed=order.seed,
            num_updates_on_epoch=order.eval_every,
            num_epochs=order.num_updates // order.eval_every,
            eval_every=1,
            eval_episodes=EPISODES,
            **changes,
        )
        yield "src/algorithms/rebrac.py", words

    def settings(order: Order) -> str:
        return describe(order, rebrac_settings(order))

    return Control(
        peer=find_peer("ReBRAC", "rebrac"),
        file="src/algorithms/rebrac.py",
        commands=commands,
        settings=settings,
        args={"batch_size": 1024} | changes,
        changes=changes,
        packages=("jax", "flax", "optax", "chex"),
    )


# --------------------------------------------------------------------------------------------------
# onestep-rl: one program stores a replay buffer, another trains a clone, its Q and then a policy
# --------------------------------------------------------------------------------------------------

ONESTEP_WIDTH = 256  # theirs are 1,024 units wide, which is slow on a CPU


def onestep_commands(order: Order) -> Commands:
    # A phase is evaluated in its first update and in every log_freq-th one after it. Only the clone
    # and Q train before the policy, so what is played on the way has no score.
    if order.eval_every != order.num_updates:
        sys.exit(f"{order.control} is evaluated once: give --eval-every {order.num_updates}")
    for name in ("data", "models"):
        Path(name).mkdir(exist_ok=True)
    yield "d4rl_to_replay.py", options(name=order.namesake)
    values = {
        "path": ".",
        "env.name": order.namesake,
        "seed": order.seed,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "log_freq": order.num_updates,
    }
    values |= dict.fromkeys(("beta_steps", "q_steps", "pi_steps"), order.num_updates)
    values |= dict.fromkeys(("beta.width", "q.width", "pi.width"), ONESTEP_WIDTH)
    yield "train.py", [f"{name}={value}" for name, value in values.items()]
    Path("data", f"{order.namesake}.pt").unlink()  # some hundred MB


def onestep_evaluate(names: dict) -> None:
    """Play as their policy is evaluated: by its mean. Their evaluations play one episode each."""
    hydra = sys.modules["hydra"]
    hydra.made["pi"].eval(sys.modules["gym"].make(hydra.settings.env.name), EPISODES)


ONESTEP_FILES = {
    "train.py": "b31fe842e4f2a6217ac908381f1101818c688910",
    "d4rl_to_replay.py": "7690ae5f0df681e898ddddbddb2deefdac3dec0a",
    "q_learner.py": "a935ad3c3fe39a54b6e17ce0d5e66579e80d25e6",
    "config/train.yaml": "a164cc592bf3e7586f1ec17adb1f35cb841efe06",
    "config/beta/bc.yaml": "d845925312c4a8945c49cac450de51b0fb490017",
    "config/q/sarsa.yaml": "cc5dd839cf45512e47b3ee4a7b43c75164cd332e",
    "config/pi/reverse_kl.yaml": "cd91fe2c7be28a6a6d3fd027329d40439a0c14d0",
}
ONESTEP = Control(
    peer=find_peer("onestep-rl", "onestep", ONESTEP_FILES),
    file="train.py",
    commands=onestep_commands,
    settings=lambda order: "config/train.yaml, the same for all datasets",
    args={"batch_size": 512, "hidden": ONESTEP_WIDTH, "improvement": "rkl"},
    changes={"width": ONESTEP_WIDTH},
    eval_episodes=3,  # one in the first update of each phase
    evaluate=onestep_evaluate,
)


# The part before the slash is the folder of the checkout.
CONTROLS = {
    "CORL/iql": corl("iql", "iql.py", "iql", scheduled=True),
    # The same program with the settings of the IQL paper, which CORL's for Hopper are not
    "CORL/iql_paper": corl(
        "iql",
        "iql.py",
        "iql",
        scheduled=True,
        changes={"iql_deterministic": False, "normalize": False, "tau": 0.005},
    ),
    "CORL/td3_bc": corl("td3_bc", "td3_bc.py", "td3_bc"),
    "CORL/bc": corl("bc", "any_percent_bc.py", "bc", args={"top_fraction": 1.0}),
    "CORL/bc_10": corl("bc", "any_percent_bc.py", "bc_10", args={"top_fraction": 0.1}),
    "CORL/awac": corl(
        "awac",
        "awac.py",
        "awac",
        args={"weights": "exp"},
        sizes=("num_train_ops", "eval_frequency", "n_test_episodes"),
    ),
    "CORL/cql": corl("cql", "cql.py", "cql", args={"recipe": "corl"}),
    "TD3_BC/td3_bc": TD3_BC,
    "SPOT/spot": SPOT,
    "POR/weighted": por_repository(
        "por", "main_por.py", "por_r", POR_FILES, args={"guide": "weighted"}, scheduled=True
    ),
    "POR/q": por_repository(
        "por", "main_por.py", "por_q", POR_FILES, args={"guide": "q"}, scheduled=True
    ),
    # The step of this schedule is commented out, so its learning rates are constant.
    "POR/iql": por_repository("iql", "main_iql.py", "iql", IQL_FILES),
    "onestep-rl/onestep": ONESTEP,
    "ReBRAC/rebrac": rebrac(),
    "ReBRAC/rebrac_256": rebrac(batch_size=256),
}
