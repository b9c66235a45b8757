"""Train the behaviour policy that an embedded dataset is collected with: online SAC, snapshot by snapshot.

D4RL's `medium` sets come from "a policy trained with Soft Actor-Critic, early-stopped at about a third
of the expert's performance" (Fu et al. 2020, section 5). This script is that learner. It trains SAC
(Haarnoja et al. 2018, arXiv 1812.05905) on a Gymnasium environment and keeps the policy's weights every
`--snapshot-every` steps; `select_behavior.py` then measures the snapshots and stores the one
nearest to a wanted return.

    python benchmarks/train_behavior.py --env-id Hopper-v4 --seed 0 --num-steps 300000 --out runs/sac-hopper-0

Settings are rlkit's, D4RL's own learner: 2x256 ReLU, Adam 3e-4, batch 256, discount 0.99, Polyak 0.005,
one update per step, learned temperature with target entropy -|A| (github rail-berkeley/rlkit,
examples/sac.py). A time limit is not a terminal state.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro


@dataclass
class Args:
    out: Path
    """folder for snapshots and the checkpoint; the same command with the same folder goes on"""
    env_id: str = "Hopper-v4"
    """registered Gymnasium id with Box observations and actions in [-1, 1]"""
    seed: int = 0
    num_steps: int = 300_000
    """environment steps, and updates but for the first `random_steps`"""
    random_steps: int = 10_000
    """uniform actions before the first update"""
    snapshot_every: int = 1_000
    """steps between two stored copies of the policy"""
    checkpoint_every: int = 50_000
    """steps between two checkpoints for going on after a kill"""
    hidden: int = 256
    batch_size: int = 256
    learning_rate: float = 3e-4
    discount: float = 0.99
    polyak: float = 0.005
    precision: str = "highest"
    """torch.set_float32_matmul_precision: highest or medium"""


class Actor(nn.Module):
    """Tanh-Gaussian pi(a|s) with state-dependent deviation: (batch, obs) -> (batch, act)."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: int):
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(obs_dim, hidden), nn.Linear(hidden, hidden)
        self.last_fc, self.last_fc_log_std = nn.Linear(hidden, act_dim), nn.Linear(hidden, act_dim)

    def forward(self, obs):
        """A sampled action and its log density, (batch, act) and (batch,)."""
        h = F.relu(self.fc1(F.relu(self.fc0(obs))))
        mean, log_std = self.last_fc(h), self.last_fc_log_std(h).clamp(-20, 2)
        noise = torch.randn_like(mean)
        pre_tanh = mean + log_std.exp() * noise
        # log(1 - tanh(x)^2) in a form that does not underflow (arXiv 1812.05905, appendix C)
        log_det = 2 * (np.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))
        log_prob = (-0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - log_det).sum(-1)
        return pre_tanh.tanh(), log_prob


class TwinQ(nn.Module):
    """Two Q(s, a) as one batched product: (batch, obs + act) -> (2, batch)."""

    def __init__(self, in_dim: int, hidden: int):
        super().__init__()
        dims = [in_dim, hidden, hidden, 1]
        layers = [[nn.Linear(i, o) for _ in range(2)] for i, o in zip(dims, dims[1:])]
        self.w = nn.ParameterList([nn.Parameter(torch.stack([m.weight.detach().T for m in l])) for l in layers])
        self.b = nn.ParameterList([nn.Parameter(torch.stack([m.bias.detach()[None] for m in l])) for l in layers])

    def forward(self, x):
        h = x.expand(2, *x.shape)
        for i, (w, b) in enumerate(zip(self.w, self.b)):
            h = torch.baddbmm(b, h, w)
            h = F.relu(h) if i < 2 else h
        return h.squeeze(-1)


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # Adam's moments of dead units slow a CPU down
    torch.set_float32_matmul_precision(args.precision)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    env = gym.make(args.env_id)
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    actor = Actor(obs_dim, act_dim, args.hidden)
    critic, target = TwinQ(obs_dim + act_dim, args.hidden), TwinQ(obs_dim + act_dim, args.hidden)
    target.load_state_dict(critic.state_dict())
    target.requires_grad_(False)
    log_alpha = torch.zeros((), requires_grad=True)
    adam = lambda params: torch.optim.Adam(params, lr=args.learning_rate, fused=True)
    actor_opt, critic_opt, alpha_opt = adam(actor.parameters()), adam(critic.parameters()), adam([log_alpha])
    critic_params, target_params = list(critic.parameters()), list(target.parameters())

    width = 2 * obs_dim + act_dim + 2
    buffer = torch.empty(args.num_steps, width)
    snapshots: dict[int, dict] = {}
    start, checkpoint = 0, args.out / "checkpoint.pt"
    modules = {"actor": actor, "critic": critic, "target": target,
               "actor_opt": actor_opt, "critic_opt": critic_opt, "alpha_opt": alpha_opt}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        for name, module in modules.items():
            module.load_state_dict(state[name])
        with torch.no_grad():
            log_alpha.copy_(state["log_alpha"])
        start, snapshots = state["step"], state["snapshots"]
        buffer[:start] = state["buffer"]
        torch.set_rng_state(state["torch_rng"])
        rng.bit_generator.state = state["numpy_rng"]

    def save(step: int) -> None:
        state = {name: module.state_dict() for name, module in modules.items()}
        state |= dict(log_alpha=log_alpha.detach(), step=step, snapshots=snapshots, buffer=buffer[:step].clone(),
                      torch_rng=torch.get_rng_state(), numpy_rng=rng.bit_generator.state)
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    # After a checkpoint the running episode is given up and a new one begins: MuJoCo's state is not stored.
    obs, _ = env.reset(seed=args.seed + start)
    ep_return, ep_length, recent, clock = 0.0, 0, [], time.time()
    for step in range(start, args.num_steps):
        if step < args.random_steps:
            action = rng.uniform(-1, 1, act_dim).astype(np.float32)
        else:
            with torch.no_grad():
                action = actor(torch.as_tensor(obs, dtype=torch.float32)[None])[0][0].numpy()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        row = np.concatenate([obs, action, [reward, terminated], next_obs])
        buffer[step] = torch.from_numpy(row.astype(np.float32))
        ep_return, ep_length, obs = ep_return + float(reward), ep_length + 1, next_obs
        if terminated or truncated:
            recent.append((ep_return, ep_length))
            ep_return, ep_length = 0.0, 0
            obs, _ = env.reset()

        if step >= args.random_steps:
            batch = buffer[torch.randint(step + 1, (args.batch_size,))]
            s, a, r, d, s2 = batch.split([obs_dim, act_dim, 1, 1, obs_dim], -1)
            alpha = log_alpha.detach().exp()
            with torch.no_grad():
                a2, log_p2 = actor(s2)
                next_q = target(torch.cat([s2, a2], -1)).amin(0) - alpha * log_p2
                y = r[:, 0] + args.discount * (1 - d[:, 0]) * next_q
            critic_loss = F.mse_loss(critic(torch.cat([s, a], -1)), y.expand(2, -1)) * 2
            critic_opt.zero_grad()
            critic_loss.backward()
            critic_opt.step()

            new_a, log_p = actor(s)
            critic.requires_grad_(False)
            actor_loss = (alpha * log_p - critic(torch.cat([s, new_a], -1)).amin(0)).mean()
            actor_opt.zero_grad()
            actor_loss.backward()
            critic.requires_grad_(True)
            actor_opt.step()
            alpha_loss = -(log_alpha * (log_p.detach() - act_dim)).mean()
            alpha_opt.zero_grad()
            alpha_loss.backward()
            alpha_opt.step()
            torch._foreach_lerp_(target_params, critic_params, args.polyak)

        done = step + 1
        if done % args.snapshot_every == 0 and done > args.random_steps:
            snapshots[done] = {k: v.clone() for k, v in actor.state_dict().items()}
            mean = np.mean(recent[-10:], 0) if recent else (float("nan"), float("nan"))
            rate = (done - start) / (time.time() - clock)
            print(f"step {done}  return {mean[0]:.0f}  length {mean[1]:.0f}  (last 10 episodes)  "
                  f"{rate:.0f} steps/s", flush=True)
        if done % args.checkpoint_every == 0 or done == args.num_steps or stop:
            save(done)
            if stop:
                raise SystemExit(f"stopped at step {done}; the same command goes on from there")


if __name__ == "__main__":
    main(tyro.cli(Args))
