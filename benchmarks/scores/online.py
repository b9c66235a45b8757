"""How many environment steps an agent of an online training has taken.

result.json counts updates. SAC, TD3 and DDPG make one after each step. PPO, TRPO and AWR take many
steps, and then make many updates, before they are evaluated and saved.
"""


def is_from_scratch(task: dict) -> bool:
    """Do the agents collect all their data themselves?"""
    return task["transitions"] == 0 or task["source"] in ("random actions", "no data")


def iteration(result: dict) -> tuple[int, int]:
    """Return how many updates, and how many steps of each agent, an iteration has."""
    args = result["args"]
    if result["script"] in ("ppo", "trpo"):
        steps = args["num_envs"] * args["rollout_steps"]
        return args["epochs"] * (steps // args["batch_size"]), steps
    if result["script"] == "awr":
        value_updates = args["value_updates"]
        if value_updates is None:
            value_updates = 200  # awr.py's, online
        return value_updates + args["policy_updates"], args["new_steps"]
    return 1, 1


def environment_steps(result: dict, phase: str, update: int) -> int:
    """Return the steps of each agent at an update, with the random ones of the beginning.

    Where agents learn from data first, it is the steps since then. Other phases have updates only.
    """
    if phase != "online" or not is_from_scratch(result["task"]):
        return update
    updates, steps = iteration(result)
    return result["args"].get("random_steps", 0) + update // updates * steps


def evaluated_at(result: dict, phase: str) -> list[int]:
    """Return the updates at which the evaluations of a phase must stand."""
    args = result["args"]
    total, length = args["num_updates"], 1
    if phase == "online" and args.get("online_steps"):
        total = args["online_steps"]
    if phase == "online" and is_from_scratch(result["task"]):
        length, _ = iteration(result)
    due = [*range(args["eval_every"], total, args["eval_every"]), total]
    # An iteration is completed before it is evaluated, also the last one.
    return list(dict.fromkeys(-(-update // length) * length for update in due))
