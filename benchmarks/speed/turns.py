"""Time several processes block by block in turn, A B C A B C ..., so that a slow minute hits all.

Every process has one configuration. It is started, warms up and compiles; then it works only when
it is asked. This module needs nothing but Python, because a JAX interpreter imports it, too.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WARMUP = 20  # updates before anything is timed; graphs are compiled and recorded meanwhile
SETTLE = 6  # updates before each block, because other processes have had the caches


class Worker:
    """A process with one configuration, which is asked on its input and answers on its output.

    Its errors are shown as they come.
    """

    def __init__(self, name: str, command: list[str], env: dict | None = None):
        self.name = name
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> dict:
        """Wait for the next answer. End the program if the worker has died."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self.name} ended with code {self.process.wait()}")
        return json.loads(line)

    def ask(self, **request) -> float:
        """Let it work, and return the seconds that it took."""
        with contextlib.suppress(BrokenPipeError):  # answer() tells why
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.answer()["seconds"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


def time_in_turn(
    workers: list[Worker], seconds: float, blocks: int, eval_episodes: int = 0
) -> list[dict]:
    """Time `blocks` blocks of about `seconds` of every worker.

    Return for each what it said of itself, `updates` per block and the `seconds` of the blocks.
    """
    timings = [worker.answer() for worker in workers]
    for worker, timing in zip(workers, timings, strict=True):
        multiple = timing.pop("multiple")
        trial = multiple * max(1, WARMUP // multiple)
        took = worker.ask(updates=trial)
        timing["updates"] = multiple * max(1, round(trial * seconds / took / multiple))
        timing["seconds"] = []
    for _ in range(blocks):
        for worker, timing in zip(workers, timings, strict=True):
            worker.ask(updates=SETTLE)
            timing["seconds"].append(worker.ask(updates=timing["updates"]))
    if eval_episodes > 0:
        for worker, timing in zip(workers, timings, strict=True):
            if timing["code"] == "ours":
                timing["evaluation"] = worker.ask(episodes=eval_episodes)
    return timings


def peak_memory() -> int | None:
    """Return how many MB of the machine's memory this process took at most; None: nobody tells."""
    status = Path("/proc/self/status")  # Linux has it
    text = status.read_text() if status.exists() else ""
    # Not getrusage(): its maximum includes that of the process that started this one.
    found = re.search(r"^VmHWM:\s*(\d+) kB$", text, re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e6) if found else None


def serve(
    facts: dict,
    update: Callable[[int], None],
    wait: Callable[[], None],
    check: Callable[[], None],
    answers,
    multiple: int = 1,
    evaluate: Callable[[int], None] | None = None,
) -> None:
    """Be a worker: say the facts, then do what the lines of the input ask for.

    update: does so many updates, a multiple of `multiple`. wait: until the device has done all of
    them. check: ends the program if what was trained is of no use. After the warm-up the memory
    that the process took at most is one more fact.
    """

    def round_up(updates: int) -> int:
        return -(-updates // multiple) * multiple

    update(round_up(WARMUP))
    wait()
    facts = facts | {"multiple": multiple, "memory_mb": peak_memory()}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        if "updates" in request:
            update(round_up(request["updates"]))
        else:
            evaluate(request["episodes"])
        wait()
        seconds = time.perf_counter() - start
        check()
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)
