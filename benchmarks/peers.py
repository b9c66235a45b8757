"""Time one update of other people's code beside ours: same machine, threads, sizes, batches, data.

Their repositories are read from checkouts of yours and run unchanged; nothing of them is in this
one. What they import but an update never needs (environments, loggers, ...) is replaced by
stand-ins that do nothing, so their logging costs nothing here. An update is what one turn of their
training loop does: draw 256 of a million random rows of a task's shape from their buffer, train.
`.item()` and the like inside their update are part of it.

Every configuration is a process of its own. Those of one algorithm and task are started together;
once all of them have warmed up and compiled, only one works at a time, in turn: A B C A B C ... .
The first turn finds out how many updates a block needs and counts for nothing, nor do a few updates
before each block. Figures are medians over the blocks.

    git clone https://github.com/corl-team/CORL && git -C CORL checkout eeeeef2
    git clone https://github.com/sfujim/TD3_BC && git -C TD3_BC checkout 8791ad7
    git clone https://github.com/thuml/SPOT && git -C SPOT checkout 4be91cc
    git clone https://github.com/ryanxhr/POR && git -C POR checkout e692bb3
    python benchmarks/peers.py --corl CORL --td3-bc TD3_BC --spot SPOT --por POR \\
        --out benchmarks/SPEED.md

A peer without a checkout is left out. Measure while nothing else runs. CPU only, so far.
"""

import contextlib
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch
import tyro

import speed

MARK = "speed"  # of the page's part that this command writes
NUMBERS = Path("results", "speed", "peers.json")  # beside the Markdown file of --out
NOTHING = "Not measured yet."
NAMES = {"por": "POR", "iql": "IQL", "td3_bc": "TD3+BC", "bc": "BC", "spot": "SPOT"}
# Not needed by an update, but imported by the files that hold it
STAND_INS = ("d4rl", "gym", "wandb", "pyrallis", "IPython", "sklearn", "imageio", "termcolor",
             "coolname")
BATCH = 256  # the default of every script here, ours and theirs
WARMUP = 10  # updates before the first block; compiling comes with the first two
SETTLE = 6  # updates before each block: the others have had the caches meanwhile


@dataclass
class Args:
    corl: Path | None = None
    """checkout of corl-team/CORL"""
    td3_bc: Path | None = None
    """checkout of sfujim/TD3_BC"""
    spot: Path | None = None
    """checkout of thuml/SPOT"""
    por: Path | None = None
    """checkout of ryanxhr/POR"""
    tasks: tuple[str, ...] = ("halfcheetah", "hopper")
    """whose shapes and settings: halfcheetah, hopper, walker2d"""
    scripts: tuple[str, ...] = tuple(NAMES)
    """which of our scripts: por, iql, td3_bc, bc, spot"""
    execution: tuple[str, ...] = ("eager", "compile")
    """how our updates run"""
    num_seeds: tuple[int, ...] = (1, 3)
    """how many seeds ours train at once"""
    precision: str = "auto"
    """of our matrix products: auto, fp32, bf16; theirs have PyTorch's default, fp32"""
    seconds: float = 0.5
    """length of a block"""
    blocks: int = 5
    """blocks of each configuration"""
    rows: int = 1_000_000
    """random transitions"""
    threads: int | None = None
    """CPU threads of all of them (default: PyTorch's)"""
    out: Path | None = None
    """Markdown file with the two markers, between which the tables go; the numbers go into
    results/speed/peers.json beside it"""


# ---- Their updates: load(name) imports a file of theirs, rows and sizes as their loops get them

@dataclass
class Peer:
    """A piece of other people's code that has an update to compare with that of a script."""
    script: str  # ours
    checkout: str  # the option that names the folder
    repository: str
    commit: str
    folder: str  # where in it the files are
    files: dict[str, str]  # file -> id of its content in that commit, as git ls-tree prints it
    timed: str  # in words, for the table
    update: Callable  # (load, rows, obs_dim, act_dim, task) -> function that does one update

    @property
    def name(self) -> str:
        """corl-team/CORL: iql.py, ..."""
        return f"{self.repository}: {next(iter(self.files))}"


def adam(net: torch.nn.Module, lr: float) -> torch.optim.Adam:
    """The optimiser as all of them make it; its speed does not depend on the rate."""
    return torch.optim.Adam(net.parameters(), lr=lr)


def corl_loop(module, trainer, rows: dict, obs_dim: int, act_dim: int) -> Callable[[], None]:
    """One turn of the loop that CORL's scripts share."""
    config = module.TrainConfig(device="cpu")
    buffer = module.ReplayBuffer(obs_dim, act_dim, config.buffer_size, config.device)
    buffer.load_d4rl_dataset(rows)
    return lambda: trainer.train([part.to(config.device) for part in buffer.sample(BATCH)])


def corl_iql(load, rows: dict, obs_dim: int, act_dim: int, task: str) -> Callable[[], None]:
    """iql.py with the values of its TrainConfig."""
    module = load("iql")
    value, critic = module.ValueFunction(obs_dim), module.TwinQ(obs_dim, act_dim)
    actor = module.GaussianPolicy(obs_dim, act_dim, 1.0)
    trainer = module.ImplicitQLearning(
        max_action=1.0, actor=actor, actor_optimizer=adam(actor, 3e-4), q_network=critic,
        q_optimizer=adam(critic, 3e-4), v_network=value, v_optimizer=adam(value, 3e-4))
    return corl_loop(module, trainer, rows, obs_dim, act_dim)


def corl_td3_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str) -> Callable[[], None]:
    """td3_bc.py: its two critics have an optimiser each."""
    module = load("td3_bc")
    actor = module.Actor(obs_dim, act_dim, 1.0)
    critics = [module.Critic(obs_dim, act_dim) for _ in range(2)]
    trainer = module.TD3_BC(
        max_action=1.0, actor=actor, actor_optimizer=adam(actor, 3e-4), critic_1=critics[0],
        critic_1_optimizer=adam(critics[0], 3e-4), critic_2=critics[1],
        critic_2_optimizer=adam(critics[1], 3e-4))
    return corl_loop(module, trainer, rows, obs_dim, act_dim)


def corl_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str) -> Callable[[], None]:
    """any_percent_bc.py on all rows: which rows it keeps does not change its update."""
    module = load("any_percent_bc")
    actor = module.Actor(obs_dim, act_dim, 1.0)
    trainer = module.BC(max_action=1.0, actor=actor, actor_optimizer=adam(actor, 3e-4))
    return corl_loop(module, trainer, rows, obs_dim, act_dim)


def fujimoto_buffer(load, rows: dict, obs_dim: int, act_dim: int):
    """The replay buffer of TD3_BC, which SPOT took over, with states normalised as both do."""
    buffer = load("utils").ReplayBuffer(obs_dim, act_dim)
    buffer.convert_D4RL(rows)
    buffer.normalize_states()
    return buffer


def td3_bc(load, rows: dict, obs_dim: int, act_dim: int, task: str) -> Callable[[], None]:
    """TD3_BC.py, whose defaults are those of its main.py."""
    policy = load("TD3_BC").TD3_BC(obs_dim, act_dim, 1.0)
    buffer = fujimoto_buffer(load, rows, obs_dim, act_dim)
    return lambda: policy.train(buffer, BATCH)


def spot(load, rows: dict, obs_dim: int, act_dim: int, task: str) -> Callable[[], None]:
    """SPOT.py after the VAE: its own defaults, the VAE's latents as in main.py, an untrained VAE.

    lambda differs from task to task and changes no speed.
    """
    vae = load("vae").VAE(obs_dim, act_dim, 2 * act_dim, 1.0)
    vae.eval()
    policy = load("SPOT").SPOT_TD3(vae, obs_dim, act_dim, 1.0)
    buffer, logger = fujimoto_buffer(load, rows, obs_dim, act_dim), MagicMock()
    logger.log = lambda *_: None  # a mock remembers its calls, which takes time
    return lambda: policy.train(buffer, BATCH, logger=logger)


def por(load, rows: dict, obs_dim: int, act_dim: int, task: str) -> Callable[[], None]:
    """por.py with the guide and the V that run_mujoco_por.sh gives the task's medium dataset.

    Its main() takes one thread; here it gets as many as the others.
    """
    policy, util, guide_q = load("policy"), load("util"), task == "hopper"
    gaussian = policy.GaussianPolicy
    agent = load("por").POR(
        vf=load("value_functions").TwinV(obs_dim, layer_norm=not guide_q),
        policy=gaussian(2 * obs_dim, act_dim, hidden_dim=1024), max_steps=1_000_000,
        goal_policy=gaussian(obs_dim, obs_dim), tau=0.7 if guide_q else 0.5,
        alpha=50.0 if guide_q else 3.0, policy_lr=1e-3)
    if guide_q:
        agent.pretrain_init(gaussian(obs_dim, obs_dim))
    update = agent.por_qlearning_update if guide_q else agent.por_residual_update
    data = {name: util.torchify(array) for name, array in rows.items()}
    return lambda: update(**util.sample_batch(data, BATCH))


CORL = ("corl", "corl-team/CORL", "eeeeef2671235fcce3a3eb255576a207d78840e6",
        "algorithms/offline")
PEERS = [
    Peer("por", "por", "ryanxhr/POR", "e692bb3a0c92b2dc668d71b0a5fc6e04a53344e1", "", {
        "por.py": "d26b42595b5018e6bb5bcd348dde07b4079566bc",
        "policy.py": "82ea033f93c9e7cda16888ad43ef3d3c225d22fd",
        "value_functions.py": "820d13e37efff6a5494decb005b7213e4f298810",
        "util.py": "331f9d4d9ba9a49ed1202609ed0cfff7d7f025f4"},
        "`sample_batch` and `por_residual_update`, with the q guide (Hopper) "
        "`por_qlearning_update`; their main sets one thread, here it has as many as ours", por),
    Peer("iql", *CORL, {"iql.py": "14cec70a54a05a9f0a6187758c84e841cbf151bf"},
         "`ReplayBuffer.sample` and `ImplicitQLearning.train`", corl_iql),
    Peer("td3_bc", *CORL, {"td3_bc.py": "6ae0379c16a21cbd91e81ab6a70581d3605514dd"},
         "`ReplayBuffer.sample` and `TD3_BC.train`", corl_td3_bc),
    Peer("td3_bc", "td3_bc", "sfujim/TD3_BC", "8791ad7d7656cb8396f1b3ac8c37f170b2a2dd5f", "", {
        "TD3_BC.py": "36e3ffa0990d90d1e75b9066f6894f9c478f35ea",
        "utils.py": "46676820cb63b4a1c9fdb61466cbe6693348ab48"},
        "`TD3_BC.train`, which samples", td3_bc),
    Peer("bc", *CORL, {"any_percent_bc.py": "7b6dfa83b451d0ae4d832900ab177455360607eb"},
         "`ReplayBuffer.sample` and `BC.train`, all rows kept", corl_bc),
    Peer("spot", "spot", "thuml/SPOT", "4be91cce407e93a8631043328f868b1b7abb86ba", "", {
        "SPOT.py": "04a1e32ca41ddd4468039c7983fd06daff90e848",
        "utils.py": "104dd31e5c9596502158e380da134e769b4eafb5",
        "vae.py": "573f878e60390e2400fc2b14d5af30c74383f191"},
        "`SPOT_TD3.train`, which samples; the VAE is not trained in it, nor in ours", spot)]


def blob(path: Path) -> str:
    """The id that git gives a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def version(peer: Peer, checkout: Path) -> str:
    """The commit, if the files are those of it, else which of them differ.

    Raises SystemExit if one is not there.
    """
    found = {}
    for file in peer.files:
        path = checkout / peer.folder / file
        if not path.is_file():
            raise SystemExit(f"--{peer.checkout.replace('_', '-')} {checkout}: no file "
                             f"{Path(peer.folder, file)} in it; check out {peer.repository} @ "
                             f"{peer.commit[:7]}")
        found[file] = blob(path)
    other = [file for file, id in peer.files.items() if found[file] != id]
    return peer.commit[:7] + f", but another {' and '.join(other)}" * bool(other)


# ---- The processes

def child(config: dict) -> None:
    """Make one configuration, say what it runs on, then time a block for each line of the input.

    config: "task", "rows", "threads", "seconds", and either "peer" (index in PEERS) and "checkout",
    or "speed" (fields of speed.Args). Answers a line of JSON each time; the first block counts for
    nothing: with it the number of updates in the others is found.
    """
    answers = sys.stdout
    say = lambda **values: print(json.dumps(values), file=answers, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        if "peer" in config:
            run, whole, facts = Theirs(config), 2, {}  # TD3's actor: in every second update
        else:
            _, run, whole, facts = speed.build(speed.Args(**config["speed"]), [])
        rounded = lambda updates: whole * max(1, round(updates / whole))
        run.advance(rounded(WARMUP))
        say(**facts, threads=torch.get_num_threads())
        updates = None
        for _ in sys.stdin:
            run.advance(rounded(SETTLE))
            count, clock = updates or rounded(SETTLE), time.perf_counter()
            run.advance(count)
            seconds = time.perf_counter() - clock
            run.means()  # ends the program if our losses are NaN
            say(updates=count, seconds=seconds)
            updates = updates or rounded(config["seconds"] * count / seconds)


class Theirs:
    """A peer's update behind the two methods of our runs that are needed here."""

    def __init__(self, config: dict):
        if config["threads"]:
            torch.set_num_threads(config["threads"])
        for name in STAND_INS:  # a spec, for those who ask whether the package is there
            sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
        peer = PEERS[config["peer"]]
        sys.path.insert(0, str(Path(config["checkout"], peer.folder)))
        rows = speed.synthetic(config["task"], config["rows"])
        # what d4rl.qlearning_dataset returns, whose terminals are booleans
        kept = ("observations", "actions", "next_observations", "rewards")
        rows = {name: rows[name] for name in kept} | {"terminals": rows["terminals"] > 0}
        obs_dim, act_dim, *_ = speed.TASKS[config["task"]]
        torch.manual_seed(0)
        np.random.seed(0)
        self.update = peer.update(importlib.import_module, rows, obs_dim, act_dim, config["task"])

    def advance(self, updates: int) -> None:
        for _ in range(updates):
            self.update()

    def means(self) -> None:
        """Theirs have no such check."""


class Child:
    """A process with one configuration, which works only when asked."""

    def __init__(self, name: str, config: dict):
        self.name, self.errors = name, tempfile.TemporaryFile("w+")
        # their code would take a GPU if it saw one
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(config)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env)

    def answer(self) -> dict:
        """Its next line. Raises SystemExit, with its last words, if there is none."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.errors.seek(0)
        last = [text.strip() for text in self.errors if text.strip()] or ["without a word"]
        raise SystemExit(f"{self.name} ended with code {code}: {last[-1]}")

    def block(self) -> dict:
        """Let it work for a block."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, and answer() says so
            self.process.stdin.write("block\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def time_group(configurations: list[tuple[dict, dict]], blocks: int) -> list[dict]:
    """Start all, then time `blocks` blocks of each in turn.

    configurations: what the result says of it, what the child gets. Returns the former with
    "updates" per block, the "seconds" of each block, and what the child said of itself.
    """
    with contextlib.ExitStack() as stack:
        group = []
        for entry, config in configurations:
            name = f"{entry['code']} with {entry['task']}'s shape"
            group.append(member := Child(name, config))
            stack.callback(member.close)
        entries = [entry | member.answer() for (entry, _), member in zip(configurations, group)]
        for turn in range(blocks + 1):
            for entry, member in zip(entries, group):
                done = member.block()
                if turn:
                    entry["updates"] = done["updates"]
                    entry.setdefault("seconds", []).append(done["seconds"])
    return entries


def plan(args: Args) -> list[list[tuple[dict, dict]]]:
    """Configurations by task and script, for `time_group`: ours, then each peer of them."""
    groups = []
    shared = {"rows": args.rows, "threads": args.threads}
    for task in args.tasks:
        for script in args.scripts:
            theirs = []
            for number, peer in enumerate(PEERS):
                checkout = getattr(args, peer.checkout)
                if peer.script == script and checkout:
                    entry = {"task": task, "script": script, "code": peer.name, "seeds": 1,
                             "execution": "eager", "commit": version(peer, checkout)}
                    config = {"peer": number, "checkout": str(checkout.resolve()), "task": task,
                              "seconds": args.seconds, **shared}
                    theirs.append((entry, config))
            ours = []
            for seeds in args.num_seeds:
                for execution in args.execution:
                    entry = {"task": task, "script": script, "code": "ours", "seeds": seeds,
                             "execution": execution}
                    config = speed.Args(script=(script,), task=task, num_seeds=(seeds,), device="cpu",
                                        execution=(execution,), precision=(args.precision,),
                                        **shared)
                    ours.append((entry, {"speed": asdict(config), "seconds": args.seconds}))
            if theirs:
                groups.append(ours + theirs)
    return groups


# ---- The tables

def milliseconds(timing: dict) -> float:
    """Median over the blocks of one update of one seed."""
    return 1_000 * float(np.median(timing["seconds"])) / timing["updates"] / timing["seeds"]


def tables(result: dict | None) -> str:
    """All that stands between the markers: hardware, a table per task, what was timed."""
    if result is None:
        return NOTHING
    timings, options = result["timings"], result["options"]
    unequal = max(abs(s / np.median(t["seconds"]) - 1) for t in timings for s in t["seconds"])
    products = " and ".join(sorted({t["precision"] for t in timings if t["code"] == "ours"}))
    parts = [
        "<!-- Written by benchmarks/peers.py from results/speed/peers.json. Edit neither by hand: "
        "the tests compare them. -->",
        f"`{result['command']}`",
        f"{result['machine']}. Commit {result['commit']}, {result['date']}. Load before the start: "
        f"{result['load']:.1f}. Matrix products of ours: {products}, of theirs: fp32. "
        f"{options['rows']:,} random rows, batch {BATCH}, {options['blocks']} blocks of "
        f"{options['seconds']:g} s of each in turn; blocks differ from their median by at most "
        f"{100 * unequal:.0f}%.",
        "Milliseconds per update, those of several seeds per seed; in brackets how many times "
        "faster than the code on the left."]
    ways = {(t["seeds"], t["execution"]): None for t in timings if t["code"] == "ours"}
    head = ["", "their code", "ms"] + [
        f"ours, {execution}" + f", {seeds} seeds" * (seeds > 1) for seeds, execution in ways]
    for task in dict.fromkeys(t["task"] for t in timings):
        obs_dim, act_dim, *_ = speed.TASKS[task]
        here = [t for t in timings if t["task"] == task]
        ours = {(t["script"], t["seeds"], t["execution"]): milliseconds(t)
                for t in here if t["code"] == "ours"}
        rows = [head, ["---"] * len(head)]
        for timing in here:
            if timing["code"] == "ours":
                continue
            their, script = milliseconds(timing), timing["script"]
            times = [ours[script, *way] for way in ways]
            rows.append([NAMES[script], f"{timing['code']} @ {timing['commit']}", f"{their:.2f}",
                         *(f"{own:.2f} ({their / own:.2f}×)" for own in times)])
        title = f"### {task}: {obs_dim} observations, {act_dim} actions"
        parts += [title, "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    codes = {t["code"] for t in timings}
    parts.append("Timed: ours `Run.advance` in the phase `train`; theirs\n" + "\n".join(
        f"- [{peer.name}](https://github.com/{peer.repository}/tree/{peer.commit}): {peer.timed}."
        for peer in PEERS if peer.name in codes))
    return "\n\n".join(parts)


def check(args: Args) -> None:
    """Refuse what cannot be measured or written, before any process starts."""
    for name, known in (("tasks", ("halfcheetah", "hopper", "walker2d")), ("scripts", NAMES),
                        ("execution", ("eager", "compile"))):
        if bad := [value for value in getattr(args, name) if value not in known]:
            raise SystemExit(f"--{name} {bad[0]}: choose among {', '.join(known)}")
    for name in ("tasks", "scripts", "execution", "num_seeds"):
        if not getattr(args, name):
            raise SystemExit(f"--{name.replace('_', '-')} needs a value")
    if min(*args.num_seeds, args.blocks, args.rows, args.threads or 1) < 1 or args.seconds <= 0:
        raise SystemExit("--num-seeds, --blocks, --rows, --threads and --seconds must be positive")
    if args.out:
        speed.replaced(args.out, "", MARK)


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--child"]:
        return child(json.loads(words[1]))
    args = tyro.cli(Args, args=words, description=__doc__)
    check(args)
    groups = plan(args)
    if not groups:
        raise SystemExit("nothing to compare with: name checkouts of peers of "
                         f"{', '.join(args.scripts)} by --corl, --td3-bc, --spot, --por")
    names = {"corl": "CORL", "td3_bc": "TD3_BC", "spot": "SPOT", "por": "POR",
             "out": "benchmarks/SPEED.md"}
    result = {"command": speed.command_line("benchmarks/peers.py", args, names), "machine": "",
              "commit": speed.commit(), "date": time.strftime("%F"),
              "load": os.getloadavg()[0], "timings": [],
              "options": {k: getattr(args, k) for k in ("rows", "blocks", "seconds")}}
    threads = set()
    for group in groups:
        entries = time_group(group, args.blocks)
        for entry in entries:
            result["machine"] = entry.pop("machine", result["machine"])
            threads.add(entry.pop("threads"))
            print(f"{entry['task']}, {entry['script']}: {entry['code']}, {entry['execution']}, "
                  f"{entry['seeds']} at once: {milliseconds(entry):.3f} ms", file=sys.stderr)
        if len(threads) > 1:  # then somebody has set them, and the comparison says nothing
            raise SystemExit(f"not all ran with the same number of threads: {sorted(threads)}")
        result["timings"] += entries
    print(tables(result))
    if args.out:
        text = speed.replaced(args.out, tables(result), MARK)
        speed.write(args.out.parent / NUMBERS, json.dumps(result, indent=1) + "\n")
        speed.write(args.out, text)


if __name__ == "__main__":
    main()
