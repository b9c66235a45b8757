"""Result files as the scripts write them, made without training."""

import re

import numpy as np

REFS = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "antmaze": (0.0, 1.0),
}
PUBLISHED = {  # the settings that a result holds, by script and guide
    "bc": {"policy": "deterministic", "top_fraction": 1.0, "hidden": 256},
    "iql": {"tau": 0.7, "beta": 3.0, "hidden": 256},
    "td3_bc": {"alpha": 2.5, "normalize": True, "hidden": 256},
    "sac": {"hidden": 256},
    "weighted": {"guide": "weighted", "tau": 0.5, "alpha": 3.0, "layer_norm": True},
    "q": {"guide": "q", "tau": 0.7, "alpha": 50.0, "layer_norm": False},
}


def make_result(
    script: str = "bc",
    env: str = "rebuilt/hopper/medium-v0",
    scores=(50.0, 52.0, 54.0),
    updates: int = 100_000,
    scored: bool = True,
    online=None,
    finished: bool = True,
    **options,
) -> dict:
    """Return a result that agrees with itself; `scores`, `online`: of the last evaluations."""
    name = re.split("[-/]", env.removeprefix("rebuilt/").lower())[0]
    low, high = REFS[name] if scored else (None, None)
    source = "rebuilt" if env.startswith("rebuilt/") else "D4RL file"
    evaluations = []
    for phase, last in (("train", scores), ("online", online)):
        if last is None:
            continue
        for i in range(1, 11 if finished else 6):
            now = np.array(last, float) * (1 if i == 10 else 1 - 0.9**i)
            returns = low + (high - low) * now / 100 if scored else now
            evaluation = {"phase": phase, "update": i * updates // 10}
            evaluation["episodes"] = 100 if i == 10 else 10
            evaluation |= {"returns": returns.tolist(), "scores": now.tolist()}
            evaluations.append(evaluation)
    args = {"env": env, "dataset_file": None, "seed": 0, "num_seeds": len(scores)}
    args |= {"num_updates": updates, "batch_size": 256, "run_dir": "runs/a", "resume": None}
    args |= {"eval_every": updates // 10, "eval_episodes": 10, "final_eval_episodes": 100}
    args |= {"device": "auto", "execution": "auto", "decay_updates": None}
    args |= PUBLISHED[options.get("guide", "weighted") if script == "por" else script]
    if online is not None:
        args["online_steps"] = updates
    task = {"name": env, "source": source, "env_id": "Hopper-v4", "env_kwargs": {}}
    task |= {"ref_min": low, "ref_max": high, "transitions": 1_000, "episodes": 20}
    task |= {"data_return": 1400.0, "fingerprint": "f" * 64}
    return {
        "script": script,
        "args": args | options,
        "task": task,
        "phase": 0,
        "step": updates if finished else updates // 2,
        "finished": finished,
        "final": evaluations[-1] if finished else None,
        "evaluations": evaluations,
        "commits": ["0123456789abcdef0123456789abcdef01234567"],
        "device": "x86_64",
        "versions": {"torch": "2.13.0", "gymnasium": "1.4.0", "mujoco": "4.0.0"},
    }


def as_control(result: dict, file: str = "algorithms/offline/iql.py", **options) -> dict:
    """Return the result as benchmarks.scores.controls writes one, which knows few arguments."""
    known = ("env", "dataset_file", "seed", "num_seeds", "num_updates", "batch_size")
    known += ("eval_every", "eval_episodes", "final_eval_episodes")
    args = {key: result["args"][key] for key in known}
    about = {"repository": "corl-team/CORL", "commit": "e" * 40, "file": file}
    about |= {"command": "python -m benchmarks.scores.controls --made", "note": "a made one."}
    return result | {"args": args | options, "control": about}


def of_first_casting(result: dict, precision: str = "bf16") -> dict:
    """Return the same result in the layout of the first casting."""
    old = {key: value for key, value in result.items() if key not in ("commits", "device")}
    part = {"commit": result["commits"][0], "device": "cpu (x86_64)", "versions": {}}
    old["parts"] = [part, part | {"commit": "f" * 40}]
    old["args"] = result["args"] | {"precision": precision, "eval_workers": 2, "eval_only": False}
    first = {"update": 0, "episodes": 10}
    zeros = [0.0] * result["args"]["num_seeds"]
    low, high = result["task"]["ref_min"], result["task"]["ref_max"]
    first |= {"scores": zeros, "returns": [low + 0 * high] * len(zeros)}
    old["evaluations"] = [first]
    for evaluation in result["evaluations"]:
        old["evaluations"].append({k: v for k, v in evaluation.items() if k != "phase"})
    old["final"] = old["evaluations"][-1] if result["finished"] else None
    return old
