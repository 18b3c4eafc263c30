"""BRAC: behaviour-regularised actor-critic with continuous actions, the counterpart of saq_brac.py.

    stage 1   pi_beta, a Gaussian fitted to the data's actions
    stage 2   pi maximises E_pi [Q + beta log pi_beta - alpha log pi]: the expectation, a sum over codes in
              saq_brac.py, is the mean of a few sampled actions

The method: from "learner" to "main". "Plumbing" is the same in every script; skip it.
Explained in docs/baselines.md. BRAC: Wu et al. 2019, arXiv 1911.11361.

    python baselines/brac.py --env-id hopper-medium-expert-v2
"""

import copy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # the d4rl beside this folder
import d4rl
from d4rl import runs


@dataclass
class Args:
    # --- BRAC ---
    behaviour_steps: int = 10_000  # gradient updates of pi_beta, before the others
    num_draws: int = 4  # actions drawn for an expectation over the policy
    behaviour_weight: float = 3.0  # beta: weight of log pi_beta in the critic's target and pi's loss
    entropy_weight: float = 3.0  # alpha: weight of the policy's entropy in its loss
    target_entropy: bool = True  # the critic's target has the entropy too; off: SAQ Eq. 3

    # --- learner ---
    steps: int = 30_000  # gradient updates
    batch_size: int = 256  # transitions per update, in every stage
    lr: float = 3e-4  # AdamW's learning rate, in every stage
    anneal_lr: bool = False  # let it fall to 0 along half a cosine, in every stage
    weight_decay: float = 0.0  # an update shrinks every weight by lr times this, in every stage
    hidden_dim: int = 256  # width of the two hidden layers of every network
    discount: float = 0.99  # gamma
    target_rate: float = 0.005  # share of the weights that the target network takes over per update
    reward_shift: float = 0.0  # added to every reward, before the scale
    reward_scale: float = 1.0  # every reward is multiplied by this
    normalize_rewards: bool = False  # multiply them by 1000 / (best - worst return of the data) too

    # --- experiment ---
    env_id: str = "maze2d-large-demos-v0"  # task: the d4rl package has its environment and its data
    dataset_path: str = ""  # an HDF5 file in D4RL's or robomimic's format, not the task's own
    seed: int = 0  # of weights, batches and evaluation episodes
    num_seeds: int = 1  # how many seeds to train, from `seed` on: a run each, side by side
    eval_every: int = 5_000  # updates between two evaluations, each with a checkpoint
    eval_episodes: int = 20  # episodes per evaluation
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    cuda_graph: bool = True  # a GPU replays a recorded update instead of waiting for Python
    bf16: bool = False  # matrix products in bfloat16 (a GPU: TF32): faster, less exact
    threads: int = 1  # CPU threads; more are faster only while no other process wants a core
    runs_dir: str = "runs"  # the run's folder is made in here
    resume: str = ""  # continue the run in this folder exactly where its last checkpoint is
    evaluate: str = ""  # play the finished run in this folder, train nothing
    track: bool = False  # send the metrics to Weights & Biases as well
    capture_video: bool = False  # write an mp4 of one episode of the final policy


class Transitions(NamedTuple):
    """The data set (N rows) or a batch (B rows): standardised obs, scaled action and reward."""

    obs: Tensor  # (N, obs_dim)
    action: Tensor  # (N, action_dim)
    reward: Tensor  # (N,)
    next_obs: Tensor  # (N, obs_dim)
    terminal: Tensor  # (N,): 1 where the environment ended the episode; time-outs: 0, or no row


# --- learner ---
def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU in between: `mlp(11, 256, 256, 3)` maps (B, 11) to (B, 3)."""
    layers = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Learner(nn.Module):
    def __init__(self, args: Args, obs_dim: int, action_dim: int):
        super().__init__()
        hidden = args.hidden_dim, args.hidden_dim
        self.q = nn.ModuleList([mlp(obs_dim + action_dim, *hidden, 1) for _ in range(2)])  # Q(s, a)
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)  # Qbar
        self.policy = mlp(obs_dim, *hidden, 2 * action_dim)  # mean, log std per action dimension
        self.behaviour = mlp(obs_dim, *hidden, 2 * action_dim)  # of pi_beta

    @torch.no_grad()
    def move_target(self, rate: float):
        """Qbar <- (1 - rate) Qbar + rate Q, after every gradient step."""
        for slow, fast in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            slow.lerp_(fast, rate)


def td_loss(q: Tensor, reward: Tensor, terminal: Tensor, next_value: Tensor, discount: float):
    """Mean squared TD error, no gradient through the target. All (B,) -> scalar"""
    target = reward + discount * (1 - terminal) * next_value  # no next value after a terminal
    return (target.detach() - q).pow(2).mean()


def log_density(gaussian: Tensor, action: Tensor) -> Tensor:
    """log pi(a|s) of a Gaussian around tanh(mean). (*, 2 A): mean, log std; (*, A) -> (*)"""
    mean, log_std = gaussian.chunk(2, dim=-1)
    log_std = log_std.clamp(-5, 2)
    z = (action - mean.tanh()) / log_std.exp()
    return (-0.5 * z.pow(2) - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)


def draw(gaussian: Tensor, n: int) -> Tensor:
    """n actions per state, with gradient; some lie outside the action space. (B, 2 A) -> (B, n, A)"""
    mean, log_std = gaussian[:, None].expand(-1, n, -1).chunk(2, dim=-1)
    return mean.tanh() + log_std.clamp(-5, 2).exp() * torch.randn_like(mean)


def values(critics: nn.ModuleList, obs: Tensor, actions: Tensor) -> Tensor:
    """Q of n actions per state by each critic. (B, obs_dim), (B, n, A) -> (critics, B, n)"""
    pairs = torch.cat([obs[:, None].expand(-1, actions.shape[1], -1), actions], dim=-1)
    return torch.stack([critic(pairs).squeeze(-1) for critic in critics])


def behaviour_loss(learner: Learner, batch: Transitions) -> tuple[Tensor, dict]:
    """Loss and metrics of a batch."""
    loss = -log_density(learner.behaviour(batch.obs), batch.action).mean()  # E -log pi_beta(a|s)
    return loss, {"losses/behaviour": loss}


def regularised_value(
    learner: Learner, critics: nn.ModuleList, obs: Tensor, n: int, beta: float, alpha: float
) -> tuple[Tensor, dict]:
    """E_{a ~ pi}[Q(s,a) + beta log pi_beta(a|s) - alpha log pi(a|s)], mean of n draws: (B, obs_dim) -> (B,)

    Q is the smaller of the two critics' values. Also returns what is logged.
    """
    gaussian, behaviour = learner.policy(obs), learner.behaviour(obs)  # (B, 2 A)
    action = draw(gaussian, n)  # (B, n, A)
    log_pi = log_density(gaussian[:, None], action)  # (B, n)
    log_behaviour = log_density(behaviour[:, None], action)  # (B, n)
    q = values(critics, obs, action.clamp(-1, 1)).amin(0)  # (B, n)
    value = q + beta * log_behaviour - alpha * log_pi
    charts = {"charts/entropy": -log_pi.mean(), "charts/divergence": (log_pi - log_behaviour).mean()}
    return value.mean(1), charts


def learner_loss(args: Args, learner: Learner, batch: Transitions) -> tuple[Tensor, dict]:
    """Loss and metrics of a batch."""
    n, beta, alpha = args.num_draws, args.behaviour_weight, args.entropy_weight
    with torch.no_grad():
        next_alpha = alpha if args.target_entropy else 0.0
        next_v, _ = regularised_value(learner, learner.q_target, batch.next_obs, n, beta, next_alpha)
    q = values(learner.q, batch.obs, batch.action[:, None]).squeeze(2)  # Q(s, a): (critics, B)
    learner.q.requires_grad_(False)  # the policy's loss trains the policy alone
    value, charts = regularised_value(learner, learner.q, batch.obs, n, beta, alpha)
    learner.q.requires_grad_(True)
    q_loss = td_loss(q, batch.reward, batch.terminal, next_v, args.discount)  # E (r + gamma V(s') - Q)^2
    policy_loss = -value.mean()  # -E_pi [Q + beta log pi_beta - alpha log pi]
    metrics = {"losses/q": q_loss, "losses/policy": policy_loss}
    return q_loss + policy_loss, metrics | charts | {"charts/q": q.mean()}


# --- acting ---
def policy_mean(args: Args, learner: Learner, obs: Tensor) -> Tensor:
    """The policy's mean action: (B, obs_dim) -> (B, A)"""
    return learner.policy(obs).chunk(2, dim=-1)[0].tanh()


def make_act(args: Args, learner: Learner, spaces: d4rl.Spaces):
    """The policy as a function of raw observations, one or a batch: NumPy in, NumPy out."""

    @torch.no_grad()
    def act(observation: np.ndarray, uniform: np.ndarray | None = None) -> np.ndarray:
        """(obs_dim,) or (B, obs_dim) -> action likewise; deterministic, so `uniform` plays no part."""
        obs = spaces.standardise(runs.to_batch(observation, spaces))  # (B, obs_dim)
        action = policy_mean(args, learner, obs)
        action = spaces.unscale(action).cpu().numpy()  # within the bounds
        return action if np.ndim(observation) > 1 else action[0]

    return act


# --- training loop ---
def train(args: Args, run: runs.Run, stage: str, learner: Learner, data: Transitions):
    """Stage "behaviour" or "learner": draw a batch, loss, step; now and then measure and save."""
    model, steps = learner, args.steps
    if stage == "behaviour":
        model, steps = learner.behaviour, args.behaviour_steps
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    generator = torch.Generator(args.device).manual_seed(args.seed)  # draws the batches
    first = run.restore(stage, model, optimizer, generator)  # 0, or where a run stopped
    progress = tqdm(range(first, steps), initial=first, total=steps, desc=stage, mininterval=1)

    def update() -> dict[str, Tensor]:
        """One gradient step on a batch; returns its metrics."""
        size = (args.batch_size,)
        index = torch.randint(len(data.obs), size, generator=generator, device=args.device)
        batch = Transitions(*(array.index_select(0, index) for array in data))
        if stage == "behaviour":
            loss, metrics = behaviour_loss(learner, batch)
        else:
            loss, metrics = learner_loss(args, learner, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if stage == "learner":
            learner.move_target(args.target_rate)
        return metrics

    update = run.graphed(update, optimizer, generator)  # recorded and replayed, on a GPU
    for step in progress:
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = args.lr * float(1 + np.cos(np.pi * step / steps)) / 2
        torch.manual_seed(args.seed * 10**6 + step + 1)  # the losses draw noise: by update, not by run
        run.log(update())
        if (step + 1) % args.eval_every == 0 or step + 1 == steps:
            measured = {}
            if stage == "learner":
                measured = evaluate(args, make_act(args, learner, run.spaces))
            shown = run.record(stage, step + 1, steps, measured, model, optimizer, generator)
            progress.set_postfix(shown)


# --- main ---
def main(args: Args) -> float:
    """Data, behaviour policy, learner, result; or only play. Returns the final normalized score."""
    torch.manual_seed(args.seed)  # the initial weights
    runs.prepare(args)  # builds the environment: what would fail at its first use fails now
    if args.evaluate:
        return play(args)
    data, spaces = load_data(args)
    learner = Learner(args, len(spaces.obs_mean), len(spaces.action_low)).to(args.device)
    run = runs.Run(SCRIPT, args, spaces)

    train(args, run, "behaviour", learner, data)
    # The policy starts from pi_beta, which is frozen from here on.
    learner.policy.load_state_dict(learner.behaviour.requires_grad_(False).state_dict())
    train(args, run, "learner", learner, data)

    score = run.finish()
    if args.capture_video:
        evaluate(replace(args, eval_episodes=1), make_act(args, learner, spaces), run.folder)
    return score


# --- settings ---
ROBOTS = ("hopper", "halfcheetah", "walker2d")
SETTINGS = {  # how an env-id begins: its own defaults on the command line; a later line wins
    "maze2d-large-demos": dict(behaviour_steps=2000, steps=4000, eval_every=2000),
    (*ROBOTS, "pen", "door", "hammer", "relocate"): dict(normalize_rewards=True),
    ROBOTS: dict(lr=1e-3, anneal_lr=True),
    "antmaze": dict(reward_scale=100.0, eval_episodes=100),
    "robomimic": dict(steps=15000, weight_decay=1.0, eval_episodes=50),
}
# Lowest and highest value, both allowed; where none is given, counts start at 1 and other numbers at 0.
LIMITS = {"seed": (0, 1e9), "discount": (0, 1), "reward_shift": (-1e9, 1e9), "reward_scale": (1e-9, 1e9)}
ACTING = ()  # what --evaluate may change of how the policy acts


# --- plumbing, the same in every script ---
SCRIPT = Path(__file__).stem


def load_data(args: Args) -> tuple[Transitions, d4rl.Spaces]:
    """The task's transitions, and what acting has to know of its spaces, as tensors."""
    dataset = d4rl.get_dataset(args.env_id, args.dataset_path or None)
    about = d4rl.describe(args.env_id, dataset, args.dataset_path or None)
    print(f"{args.env_id} on {args.device}: {about}")
    scale = args.reward_scale
    if args.normalize_rewards:
        scale *= 1000 / d4rl.return_range(args.env_id, dataset)
    bounds = d4rl.action_bounds(args.env_id, dataset)
    arrays = d4rl.qlearning_dataset(args.env_id, dataset=dataset, overwrite=True)
    others = map(torch.as_tensor, (*bounds, d4rl.fingerprint(arrays)))
    obs, action, next_obs, reward, terminal = map(torch.as_tensor, arrays.values())
    std = torch.where(obs.amin(0) == obs.amax(0), 1.0, obs.std(0) + 1e-3)  # 1: it never changes
    spaces = d4rl.Spaces(obs.mean(0), std, *others)
    obs, next_obs = spaces.standardise_(obs), spaces.standardise_(next_obs)
    action = spaces.scale(action)
    reward = (reward + args.reward_shift) * scale
    data = Transitions(obs, action, reward, next_obs, terminal.float())
    return Transitions(*(array.to(args.device) for array in data)), spaces.to(args.device)


def evaluate(args: Args, act, video: Path | None = None) -> dict:
    """Play `eval_episodes` episodes. `video`: a folder for an mp4 of the first one."""
    path = args.dataset_path or None
    returns = d4rl.evaluate(args.env_id, act, args.eval_episodes, args.seed, video, path)
    score = 100 * d4rl.get_normalized_score(args.env_id, np.mean(returns))
    return {"eval/score": float(score), "eval/return": float(np.mean(returns)), "returns": returns}


def play(args: Args) -> float:
    """The score of the finished run in the folder `args.evaluate`."""
    video = Path(args.evaluate) if args.capture_video else None
    score = evaluate(args, load(args.evaluate, args), video)["eval/score"]
    print(f"score {score:.1f} over {args.eval_episodes} episodes")
    return score


def load(folder: str, args: Args | None = None, **changes):
    """The policy of a finished run: `act = load("runs/NAME")`, then `action = act(observation)`.

    On the CPU, unless `args` say otherwise. `changes`: what --evaluate may change, as acting="greedy".
    """
    saved = runs.read_run(folder, SCRIPT, Args, stage="learner")
    args = args or runs.change(Args, saved["args"], ACTING, changes)
    spaces = d4rl.Spaces(*saved["spaces"]).to(args.device)
    learner = Learner(args, len(spaces.obs_mean), len(spaces.action_low)).to(args.device)
    learner.load_state_dict(saved["stages"]["learner"]["model"])
    return make_act(args, learner, spaces)


def parse_args(argv: list[str] | None = None) -> Args:
    """A flag wins over the run that it names (--resume ...), and that over the task's SETTINGS."""
    return runs.parse_args(Args, SCRIPT, SETTINGS, LIMITS, ACTING, argv)


if __name__ == "__main__":
    runs.guard(main, parse_args)
