"""Measure what policies are worth: return and length of some episodes."""

from dataclasses import dataclass

from tqdm import tqdm

from benchmarks.datasets.rollout import make_envs, returns_and_lengths, rollout, run_jobs

SLOTS = 10  # episodes side by side


@dataclass
class Score:
    """Mean and deviation of the return, and mean length, over some episodes."""

    mean: float
    std: float
    length: float
    episodes: int

    def __str__(self) -> str:
        return f"{self.mean:8.1f} +- {self.std:6.1f}   length {self.length:6.1f}"


def score_of(returns, lengths) -> Score:
    """Summarise the returns and the lengths of episodes, (episodes,) each."""
    return Score(float(returns.mean()), float(returns.std()), float(lengths.mean()), len(returns))


def measure(env_id: str, policy, seed: list[int], episodes: int) -> Score:
    """Return the score of a policy over the first episodes of a seeded sequence."""
    played = rollout(make_envs(env_id, SLOTS), policy, seed, episodes=episodes)
    return score_of(*returns_and_lengths(played))


def measure_policies(
    env_id: str, policies: dict, seed: int, episodes: int, workers: int | None
) -> dict:
    """Return the scores of policies, under the keys of the policies.

    All meet the same start states and the same noise, so there is less chance in comparing them.
    """
    keys = list(policies)
    jobs = [(env_id, policies[key], [seed], episodes) for key in keys]
    scores = {}
    done = run_jobs(measure, jobs, workers)
    for number, score in tqdm(done, total=len(jobs), unit=" policies", disable=None):
        scores[keys[number]] = score
    return {key: scores[key] for key in keys}  # the order must not depend on who was first
