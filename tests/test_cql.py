"""Tests of algorithms/cql.py: its mathematics, answers that are known, its phases.

python -m pytest tests/test_cql.py
"""

import math

import numpy as np
import pytest
import torch

import cql
import sac
from tests.helpers import checkpoint_of, copies_of, make_batch, make_data, make_task


def make_args(**options) -> cql.Args:
    """Return small arguments with CORL's settings for MuJoCo."""
    settings = {"num_seeds": 2, "hidden": 16, "env": "hopper-expert-v2", "num_actions": 3}
    return cql.apply_settings(cql.Args(**settings | options))


def make_agent(act_dim: int = 2, **options) -> cql.CQL:
    """Return two agents with small networks, whose outputs differ from 0 and from each other."""
    agent = cql.CQL(make_args(**options), make_task(cql, 4, act_dim), "cpu")
    with torch.no_grad():
        for net in (agent.critic.net, agent.critic_target.net, agent.policy.net):
            net[-1].weight += 0.3 * torch.randn_like(net[-1].weight)
    return agent


# ---- The formulas ----


def test_the_gap_estimates_the_soft_maximum_over_all_actions():
    """Eq. 3 by integration over a grid, Eq. 4 by very many samples of all three kinds."""
    torch.manual_seed(0)
    agent = make_agent(act_dim=1, num_actions=3000)
    s, s2, a = torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.rand(2, 5, 1) * 2 - 1
    grid = torch.linspace(-1, 1, 2001)
    with torch.no_grad():
        agent.policy.log_std_offset.zero_()  # a wide pi, whose samples vary less in their weight
        q = agent.critic(s, a)
        found = agent.gap(s, q, *agent.proposals(s, s2))
        on_grid = cql.values(agent.critic, s, grid.view(1, 1, -1, 1).expand(2, 5, -1, 1))
    soft_maximum = torch.trapezoid(on_grid.exp(), grid).log()
    expected = (soft_maximum - q).mean(2) + math.log(9000)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.08)


def test_rho_leaves_the_densities_out_and_takes_the_recorded_action_in():
    torch.manual_seed(0)
    agent = make_agent(variant="rho")
    batch = make_batch()
    s, a = batch["observations"], batch["actions"]
    with torch.no_grad():
        actions, log_density = agent.proposals(s, batch["next_observations"])
        q = agent.critic(s, a)
        found = agent.gap(s, q, actions, log_density)
        scores = [agent.critic(s, actions[:, :, k]) for k in range(9)]
        expected = torch.stack([*scores, q]).logsumexp(0) - q
    torch.testing.assert_close(found, expected.mean(2))


@pytest.mark.parametrize("bound", [-1e9, 1.0, 50.0])
def test_the_gap_of_each_row_is_bounded_from_below(bound):
    torch.manual_seed(0)
    agent = make_agent(min_gap=bound)
    s, q = torch.randn(2, 6, 4), torch.randn(2, 2, 6)
    actions, log_density = agent.proposals(s, s)
    free = make_agent(min_gap=-1e9)
    free.load_state_dict(agent.state_dict())
    rows = [
        free.gap(
            s[:, i : i + 1], q[..., i : i + 1], actions[:, i : i + 1], log_density[:, i : i + 1]
        )
        for i in range(6)
    ]
    expected = torch.stack(rows).clamp(min=bound).mean(0)
    torch.testing.assert_close(agent.gap(s, q, actions, log_density), expected)


def test_the_log_density_is_that_of_the_given_actions():
    agent = make_agent(act_dim=1)
    with torch.no_grad():
        agent.policy.log_std_offset.fill_(-0.3)
        obs = torch.randn(2, 1, 4)
        action, log_density = agent.policy.sample(obs, 50)
        inside = (action.abs() < 0.999).squeeze(-1)
        many = obs.expand(2, 50, 4)
        log_prob = agent.policy.log_prob(many, action.squeeze(1))
        torch.testing.assert_close(
            log_prob[inside.squeeze(1)], log_density[inside], rtol=1e-3, atol=1e-3
        )
        grid = torch.linspace(-0.9989, 0.9989, 4001)
        log_prob = agent.policy.log_prob(
            obs.expand(2, 4001, 4), grid.view(1, -1, 1).expand(2, -1, 1)
        )
    area = torch.trapezoid(log_prob.exp(), grid)
    torch.testing.assert_close(area, torch.ones(2), rtol=0, atol=5e-3)


def test_it_acts_by_the_mean_and_explores_around_it():
    agent = make_agent()
    agent.obs_mean.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0]))
    agent.obs_std.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    obs = torch.randn(2, 3, 4)
    with torch.no_grad():
        mean, log_std = agent.policy.net((obs - agent.obs_mean) / agent.obs_std).chunk(2, -1)
        torch.testing.assert_close(agent.act(obs), mean.tanh())
        torch.manual_seed(1)
        explored = agent.explore(obs)
        torch.manual_seed(1)
        expected = (mean + (log_std - 1).exp() * torch.randn_like(mean)).tanh()
    torch.testing.assert_close(explored, expected)


def test_networks_begin_orthogonal_and_silent():
    agent = cql.CQL(make_args(), make_task(cql), "cpu")
    batch = make_batch()
    with torch.no_grad():
        assert agent.critic(batch["observations"], batch["actions"]).abs().max() < 0.2
        assert agent.act(batch["observations"]).abs().max() < 0.1
    for net in (agent.critic.net, agent.policy.net):
        hidden = net[2].weight[1]
        torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(16), atol=1e-5, rtol=0)
        assert not torch.equal(net[2].weight[0], hidden)
    assert all(map(torch.equal, agent.critic.parameters(), agent.critic_target.parameters()))


def test_beta_rises_while_the_gap_is_too_wide_and_falls_while_it_is_narrow():
    for target_gap, sign in ((0.0, 1), (1000.0, -1)):
        agent = make_agent(target_gap=target_gap)
        betas = [agent.update(make_batch(seed=seed))["beta"].detach().log() for seed in range(3)]
        steps = sign * agent.args.lr * torch.ones(2)  # Adam's
        torch.testing.assert_close(betas[0], torch.ones(2))
        torch.testing.assert_close(betas[1] - betas[0], steps, rtol=0, atol=1e-5)
        torch.testing.assert_close(betas[2] - betas[1], steps, rtol=0, atol=1e-5)


def test_the_weights_of_q_feel_the_gap_and_those_of_pi_do_not():
    """The same update with and without the penalty."""
    changed = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        agent = make_agent(weight=weight)
        torch.manual_seed(1)
        agent.update(make_batch())
        changed[weight] = {name: copies_of([p])[0] for name, p in agent.named_parameters()}
    for name, value in changed[0.0].items():
        equal = torch.equal(value, changed[10.0][name])
        assert equal != name.startswith("critic"), name


# ---- Without the gap, CQL is SAC ----


def test_with_weight_zero_it_is_sac():
    """With the entropy in the target, and pi's std without young-geng's factor and offset."""
    options = {"num_seeds": 2, "hidden": 16, "env": "no-env-v0"}
    theirs = sac.SAC(sac.Args(**options), make_task(sac), "cpu")
    layers = {"policy_layers": 2, "critic_layers": 2, "policy_lr": 3e-4, "normalize": False}
    args = make_args(weight=0.0, backup_entropy=True, **layers)
    ours = cql.CQL(args, make_task(cql), "cpu")
    with torch.no_grad():
        for weight in theirs.critic_target.parameters():
            weight += 0.1
        for name in ("critic", "critic_target"):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
        ours.policy.net.load_state_dict(theirs.policy.net.state_dict())
        ours.policy.log_std_offset.zero_()
    ours.optimizers["policy"] = cql.Adam(ours.policy.net.parameters(), 3e-4)
    draw = torch.Generator().manual_seed(0)
    for seed in range(5):
        at_s, at_next, *others = torch.randn(8, 2, 32, 2, generator=draw)
        queues = {sac: [at_next, at_s], cql: [at_s, at_next]}
        many = torch.stack(others[:3], 2)
        queues[cql] += [many, many]
        found = {}
        for module, agent in ((sac, theirs), (cql, ours)):
            with pytest.MonkeyPatch.context() as patch:
                queue = queues[module]
                patch.setattr(torch, "randn_like", lambda x, q=queue: q.pop(0).reshape(x.shape))
                found[module] = agent.update(make_batch(seed=seed))
            assert not queue
        for name, value in found[sac].items():
            torch.testing.assert_close(found[cql][name], value, rtol=1e-4, atol=1e-5)
    for name in ("critic", "critic_target"):
        pairs = [getattr(agent, name).net for agent in (ours, theirs)]
        torch.testing.assert_close(*[list(net.parameters()) for net in pairs], rtol=0, atol=1e-5)
    pairs = [list(agent.policy.net.parameters()) for agent in (ours, theirs)]
    torch.testing.assert_close(*pairs, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.log_alpha, theirs.log_alpha)


# ---- A small MDP whose data lack the actions that look best ----

GAMMA = 0.9


def reward(a):
    """Rises with a where there are data, a < -0.2, and falls steeply beyond."""
    return np.where(a < -0.2, 1 + a, 0.8 - 3 * (a + 0.2))


def solved(**options) -> tuple[np.ndarray, np.ndarray]:
    """Train on state 0, which leads to state 1 for nothing, and state 1, whose reward ends all.

    Return Q of pi's actions in both states, and what pi earns from there in truth.
    """
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, -0.2, 1000)
    state = np.arange(1000) % 2
    columns = {"observations": np.eye(2)[state], "actions": a[:, None], "terminals": state}
    columns |= {"next_observations": np.eye(2)[1 - state], "rewards": state * reward(a)}
    args = make_args(
        env="no-env-v0",
        num_seeds=1,
        hidden=32,
        policy_layers=1,
        critic_layers=2,
        batch_size=32,
        num_actions=3,
        normalize=False,
        discount=GAMMA,
        lr=3e-3,
        policy_lr=3e-3,
        polyak=0.05,
        **options,
    )
    task = make_task(cql, 2, 1)
    columns = cql.prepare_data(args, make_data(columns), task)
    torch.manual_seed(0)
    agent = cql.CQL(args, task, "cpu")
    buffer = cql.ReplayBuffer(columns, args, torch.device("cpu"))
    for _ in range(300):
        agent.update(buffer.sample())
    s = torch.eye(2).unsqueeze(0)
    with torch.no_grad():
        actions, _ = agent.policy.sample(s, 2000)
        q = cql.values(agent.critic, s, actions).amin(1).mean(2).squeeze(0).numpy()
    earned = reward(actions[0, 1, :, 0].double().numpy()).mean()
    return q, np.array([GAMMA * earned, earned])


@pytest.mark.parametrize("variant", ["h", "rho"])
def test_cqls_q_is_below_the_true_value_of_its_policy(variant):
    q, true = solved(weight=2.0, variant=variant)
    assert (q < true).all(), (q, true)
    assert true[1] > 0  # pi stays where the data are


def test_sacs_q_is_above_the_true_value_of_its_policy():
    """Else the test of CQL would show nothing."""
    q, true = solved(weight=0.0)
    assert (q > true + 1).all(), (q, true)


# ---- Phases ----


def test_phases():
    agent = make_agent(num_updates=70, bc_updates=30, online_steps=20)
    phases = [("clone", 30), ("train", 70), ("online", 20)]
    assert [(part.name, part.num_updates) for part in agent.phases] == phases
    assert [part.updates for part in agent.phases][0] == [agent.update_cloning]
    assert [part.name for part in make_agent().phases] == ["train"]


def test_the_warm_start_clones_the_data_whatever_q_is():
    policies = []
    for shift in (0.0, 1.0):
        torch.manual_seed(0)
        agent = make_agent(policy_lr=1e-2)
        batch = make_batch()
        before = agent.policy.log_prob(batch["observations"], batch["actions"]).mean()
        with torch.no_grad():
            for weight in agent.critic.parameters():
                weight += shift
        for _ in range(20):
            agent.update_cloning(batch)
        policies.append(copies_of(agent.policy.parameters()))
        after = agent.policy.log_prob(batch["observations"], batch["actions"]).mean()
        assert after > before + 0.1
    assert all(map(torch.equal, *policies))


def test_a_run_with_all_phases(main, isolated, tiny_hdf5, pendulum):
    """The loop of the online phase is IQL's, and tested there."""
    tiny_hdf5(isolated / "data.hdf5", pendulum())
    options = ["--env=Pendulum-v1", "--dataset-file=data.hdf5", "--seed=3", "--num-seeds=2"]
    options += ["--num-updates=12", "--bc-updates=9", "--online-steps=40", "--eval-every=20"]
    options += ["--variant=rho", "--target-gap=0.5", "--max-backup=True", "--run-dir=run"]
    end = main(*options, script="cql")
    assert end.code == 0 and end.err == "", end.err
    checkpoint = checkpoint_of("run")
    assert checkpoint["finished"] and checkpoint["final"]["phase"] == "online"
    steps = checkpoint["extra_state"]
    assert steps["actions"].shape == (2, 40, 1) and steps["actions"].std() > 0.1
    assert (steps["actions"][0] != steps["actions"][1]).float().mean() > 0.9
    counts = {name: state[1].item() for name, state in checkpoint["optimizers"].items()}
    assert counts == dict.fromkeys(("critic", "policy", "temperature", "lagrange"), 61)


# ---- Settings and data ----

MUJOCO = (10.0, -1.0, False, 0, 3e-5, 3, 3, True, False)


@pytest.mark.parametrize(
    "name, recipe, expected",
    [
        ("hopper-medium-replay-v2", None, MUJOCO),
        ("hopper-medium-v2", None, (*MUJOCO[:-1], True)),
        ("rebuilt/hopper/medium-100k-v0", "corl", (*MUJOCO[:-1], True)),
        ("antmaze-large-play-v2", None, (5.0, 0.8, True, 0, 1e-4, 3, 5, False, False)),
        ("D4RL/pen/human-v2", None, (1.0, -1.0, False, 0, 1e-4, 3, 3, True, False)),
        ("maze2d-large-v1", None, (10.0, 5.0, False, 0, 3e-5, 3, 3, True, False)),
        ("D4RL/pointmaze/umaze-v2", None, (10.0, 5.0, False, 0, 3e-5, 3, 3, True, False)),
        ("hopper-medium-v2", "young-geng", (5.0, -1.0, False, 0, 3e-4, 2, 2, False, False)),
        ("antmaze-umaze-v2", "young-geng", (5.0, 0.2, True, 40_000, 1e-4, 2, 3, False, False)),
    ],
)
def test_settings_are_the_published_ones(name, recipe, expected):
    args = cql.apply_settings(cql.Args(env=name, recipe=recipe))
    found = (args.weight, args.target_gap, args.max_backup, args.bc_updates, args.policy_lr)
    found += (args.policy_layers, args.critic_layers, args.normalize, args.scale_rewards)
    assert found == expected
    assert args.min_gap == (-200 if "antmaze" in name else -1e9)
    assert args.log_std_factor == (0 if "antmaze" in name and recipe else 1)


@pytest.mark.parametrize(
    "name, scale_rewards, scale, shift",
    [
        ("antmaze-umaze-v2", False, 10, -5),
        ("hopper-medium-v2", True, 1000 / 5, 0),
        ("hopper-medium-v2", False, 1, 0),
    ],
)
def test_rewards_are_changed_as_corl_does(name, scale_rewards, scale, shift):
    raw = np.array([1, 2, 5, 3, 7], np.float32)  # returns 3 and 8, and an unfinished episode
    columns = {"observations": raw[:, None], "actions": raw[:, None], "rewards": raw.copy()}
    columns |= {"next_valid": np.ones(5), "terminals": np.zeros(5)}
    data = make_data(columns, [False, True, False, True, False])
    task = make_task(cql, 1, 1, name=name)
    found = cql.prepare_data(make_args(scale_rewards=scale_rewards), data, task)["rewards"]
    np.testing.assert_allclose(found, scale * raw + shift)
    assert (task.reward_scale, task.reward_shift) == (scale, shift)


def test_what_cannot_work_is_refused():
    task = make_task(cql, env_id="Some-v0", action_low=None, action_high=None)
    with pytest.raises(SystemExit, match="Some-v0: .*bounds"):
        cql.prepare_data(make_args(), {}, task)
    with pytest.raises(SystemExit, match="--num-actions"):
        cql.prepare_data(make_args(num_actions=0), {}, make_task(cql))
    row = {"observations": np.ones((1, 1), np.float32), "rewards": np.ones(1, np.float32)}
    row |= {"actions": row["observations"], "next_valid": np.ones(1), "terminals": np.ones(1)}
    maze = make_task(cql, 1, 1, name="antmaze-umaze-v2")
    with pytest.raises(SystemExit, match="--scale-rewards True: rewards of AntMaze"):
        cql.prepare_data(make_args(scale_rewards=True), make_data(row, [True]), maze)
