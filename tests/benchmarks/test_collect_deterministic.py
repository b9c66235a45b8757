"""Datasets of TD3's and DDPG's policies with noise: who acts, and how."""

import json
from pathlib import Path

import minari
import numpy as np
import pytest
import torch

from benchmarks.common import load_script
from benchmarks.datasets import collect, deterministic, policies, rollout

PENDULUM = {"env_id": "Pendulum-v1", "name": "local/pendulum/a-v0", "steps": 600}


@pytest.fixture(autouse=True)
def quiet():
    rollout.quiet()


@pytest.fixture(scope="module", params=["td3", "ddpg"])
def run_folder(request, tmp_path_factory) -> Path:
    """Return the folder of a small run with two agents."""
    script = load_script(request.param)
    folder = tmp_path_factory.mktemp("runs") / request.param
    options = {"random_steps": 60, "num_updates": 20, "hidden": 16, "num_seeds": 2}
    options |= {"eval_episodes": 1, "final_eval_episodes": 1, "run_dir": str(folder)}
    script.train(script.start_run(script.Args(env="Pendulum-v1", **options)))
    return folder


def test_the_policy_is_the_first_agents_with_noise(run_folder):
    script = load_script(run_folder.name)
    checkpoint = script.load_checkpoint(str(run_folder))
    task = script.Task(**checkpoint["task"])
    agent = script.Algorithm(script.Args(**checkpoint["args"]), task, torch.device("cpu"))
    agent.load_state_dict(checkpoint["agent"])
    obs = 3 * np.random.default_rng(0).standard_normal((2000, 3)).astype(np.float32)
    with torch.no_grad():
        expected = agent.act(torch.from_numpy(obs).expand(2, -1, -1)).numpy()[0]
    stages, about = policies.load_behavior(str(run_folder), "Pendulum-v1", run_folder, 0.3)
    ((policy, end),) = stages
    assert end is None and about["noise"] == 0.3 and about["algorithm"] == script.__name__.upper()
    silent = policy(obs, np.zeros((2000, 1), np.float32))
    np.testing.assert_allclose(silent, 2 * expected, atol=1e-5)  # Pendulum's bounds are -2 and 2
    noise = policy.draw(np.random.default_rng(1), 2000)
    assert noise.std() == pytest.approx(0.3, rel=0.1)
    noisy = policy(obs, noise)
    np.testing.assert_allclose(noisy, 2 * np.clip(expected + noise, -1, 1), atol=1e-5)


def test_a_dataset_names_its_noise_and_another_noise_is_another_dataset(
    run_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    options = PENDULUM | {"behavior": str(run_folder), "workers": 1}
    metadata = collect.collect(collect.Args(**options, noise=0.1))
    assert metadata["algorithm_name"] == run_folder.name.upper()
    assert "--noise 0.1" in metadata["command"] and metadata["behavior"]["noise"] == 0.1
    assert f"algorithms/{run_folder.name}.py --env Pendulum-v1" in json.dumps(metadata["behavior"])
    actions = [episode.actions for episode in minari.load_dataset(PENDULUM["name"])]
    assert sum(map(len, actions)) == 600 and len(np.unique(np.concatenate(actions))) > 500
    with pytest.raises(SystemExit, match="behavior_sha256"):
        collect.collect(collect.Args(**options, noise=0.5))


@pytest.mark.parametrize("behavior", ["random", "hopper-medium"])
def test_only_such_policies_take_noise(behavior):
    with pytest.raises(SystemExit, match="--noise 0.1: only a run folder of td3.py or ddpg.py"):
        policies.load_behavior(behavior, "Hopper-v4", policies.BEHAVIOR, 0.1)


def test_other_runs_are_refused(tmp_path):
    for name in ("checkpoint.pt", "result.json"):
        (tmp_path / name).write_text('{"script": "por"}')
    bounds = np.ones(1)
    with pytest.raises(SystemExit, match="is a run of por.py"):
        deterministic.load_noisy_behavior(str(tmp_path), "Pendulum-v1", -bounds, bounds, 0.1)
