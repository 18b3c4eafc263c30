"""CQL: conservative Q-learning with continuous actions, the counterpart of saq_cql.py.

    critics   soft actor-critic's, + alpha (log int exp Q(s,a) da - Q(s,a_data)): the integral, a sum over
              codes in saq_cql.py, is estimated from sampled actions
    policy    tanh of a Gaussian; acting: tanh of its mean

The method: from "learner" to "main". "Plumbing" is the same in every script; skip it.
Explained in docs/baselines.md. CQL: Kumar et al. 2020, arXiv 2006.04779. SAC: 1812.05905.

    python baselines/cql.py --env-id hopper-medium-expert-v2
"""

import copy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # the d4rl beside this folder
import d4rl
from d4rl import runs


@dataclass
class Args:
    # --- CQL ---
    conservatism: float = 10.0  # alpha: weight of the conservative penalty
    num_actions: int = 10  # for the penalty, of each: uniform, policy, policy at the next state
    max_backup: bool = False  # the target takes the best of num_actions next actions instead of one
    learn_temperature: bool = True  # of the policy's entropy, which is to be -action_dim
    temperature: float = 1.0  # weight of the policy's entropy; where it is learned, its start

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
        log_temperature = torch.tensor(args.temperature).log()
        self.log_temperature = nn.Parameter(log_temperature, requires_grad=args.learn_temperature)

    @torch.no_grad()
    def move_target(self, rate: float):
        """Qbar <- (1 - rate) Qbar + rate Q, after every gradient step."""
        for slow, fast in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            slow.lerp_(fast, rate)


def td_loss(q: Tensor, reward: Tensor, terminal: Tensor, next_value: Tensor, discount: float):
    """Mean squared TD error, no gradient through the target. All (B,) -> scalar"""
    target = reward + discount * (1 - terminal) * next_value  # no next value after a terminal
    return (target.detach() - q).pow(2).mean()


def conservative_loss(q: Tensor, log_density: Tensor, data_q: Tensor) -> Tensor:
    """Estimate of the CQL(H) penalty, mean of log int exp Q(s,a) da - Q(s,a_data).

    The integral is the mean of exp Q(s,a_i) / density(a_i) over n actions (CQL Appendix F); in saq_cql.py it
    is a sum. (critics, B, n), (B, n), (critics, B) -> scalar
    """
    log_integral = (q - log_density).logsumexp(-1) - np.log(q.shape[-1])
    return (log_integral - data_q).mean()


def log_density(gaussian: Tensor, x: Tensor) -> Tensor:
    """log pi(tanh(x)|s) of tanh of a Gaussian. (*, 2 A): mean, log std; (*, A) -> (*)"""
    mean, log_std = gaussian.chunk(2, dim=-1)
    log_std = log_std.clamp(-5, 2)
    log_normal = -0.5 * ((x - mean) / log_std.exp()).pow(2) - log_std - 0.5 * np.log(2 * np.pi)
    log_slope = -2 * (x + F.softplus(-2 * x) - np.log(2))  # log (1 - tanh(x)^2), never log 0
    return (log_normal - log_slope).sum(-1)


def draw(gaussian: Tensor, n: int) -> Tensor:
    """n draws per state, with gradient; their tanh are actions. (B, 2 A) -> (B, n, A)"""
    mean, log_std = gaussian[:, None].expand(-1, n, -1).chunk(2, dim=-1)
    return mean + log_std.clamp(-5, 2).exp() * torch.randn_like(mean)


def values(critics: nn.ModuleList, obs: Tensor, actions: Tensor) -> Tensor:
    """Q of n actions per state by each critic. (B, obs_dim), (B, n, A) -> (critics, B, n)"""
    pairs = torch.cat([obs[:, None].expand(-1, actions.shape[1], -1), actions], dim=-1)
    return torch.stack([critic(pairs).squeeze(-1) for critic in critics])


def learner_loss(args: Args, learner: Learner, batch: Transitions) -> tuple[Tensor, dict]:
    """Loss and metrics of a batch: the critics', then SAC's of policy and temperature."""
    n, action_dim = args.num_actions, batch.action.shape[1]
    gaussian = learner.policy(batch.obs)  # (B, 2 A)
    next_gaussian = learner.policy(batch.next_obs).detach()  # (B, 2 A)
    x, next_x = draw(gaussian, n), draw(next_gaussian, n)  # (B, n, A)
    log_pi = log_density(gaussian[:, None], x)  # (B, n)
    next_log_pi = log_density(next_gaussian[:, None], next_x)  # (B, n)
    uniform = torch.empty_like(next_x).uniform_(-1, 1)
    with torch.no_grad():
        tried = next_x[:, : n if args.max_backup else 1].tanh()
        next_v = values(learner.q_target, batch.next_obs, tried).amin(0).amax(1)  # Qbar(s', a')
    actions = torch.cat([batch.action[:, None], uniform, x.detach().tanh(), next_x.tanh()], dim=1)
    q = values(learner.q, batch.obs, actions)  # (critics, B, 1 + 3 n)
    data_q = q[:, :, 0]  # Q(s, a) of the data
    q_loss = td_loss(data_q, batch.reward, batch.terminal, next_v, args.discount)  # E (r + gamma V(s') - Q)^2
    log_uniform = torch.full_like(next_log_pi, -action_dim * np.log(2))
    log_densities = torch.cat([log_uniform, log_pi.detach(), next_log_pi], dim=1)  # (B, 3 n)
    penalty = conservative_loss(q[:, :, 1:], log_densities, data_q)  # E log int exp Q da - Q(s, a)
    learner.q.requires_grad_(False)  # the policy's loss trains the policy alone
    policy_q = values(learner.q, batch.obs, x[:, :1].tanh()).amin(0).squeeze(1)  # Q(s, a), a ~ pi: (B,)
    learner.q.requires_grad_(True)
    temperature, entropy = learner.log_temperature.exp().detach(), -log_pi[:, 0]
    policy_loss = -(policy_q + temperature * entropy).mean()  # -E_pi [Q - temperature log pi]
    temperature_loss = learner.log_temperature * (entropy.detach() + action_dim).mean()  # to -A
    loss = 0.5 * q_loss + args.conservatism * penalty + policy_loss + temperature_loss  # CQL Eq. 1
    metrics = {"losses/q": q_loss, "losses/penalty": penalty, "losses/policy": policy_loss}
    metrics |= {"charts/q": data_q.mean(), "charts/q_policy": policy_q.mean()}
    return loss, metrics | {"charts/entropy": entropy.mean(), "charts/temperature": temperature}


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
def train(args: Args, run: runs.Run, learner: Learner, data: Transitions):
    """Draw a batch, loss, step; now and then measure and save."""
    stage, steps = "learner", args.steps
    weights = {"params": [*learner.q.parameters(), *learner.policy.parameters()]}
    temperature = {"params": [learner.log_temperature], "weight_decay": 0.0}  # decay would draw it to 1
    groups = [weights, temperature]
    optimizer = torch.optim.AdamW(groups, args.lr, weight_decay=args.weight_decay, fused=True)
    generator = torch.Generator(args.device).manual_seed(args.seed)  # draws the batches
    first = run.restore(stage, learner, optimizer, generator)  # 0, or where a run stopped
    progress = tqdm(range(first, steps), initial=first, total=steps, desc=stage, mininterval=1)

    def update() -> dict[str, Tensor]:
        """One gradient step on a batch; returns its metrics."""
        size = (args.batch_size,)
        index = torch.randint(len(data.obs), size, generator=generator, device=args.device)
        batch = Transitions(*(array.index_select(0, index) for array in data))
        loss, metrics = learner_loss(args, learner, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.move_target(args.target_rate)
        return metrics

    update = run.graphed(update, optimizer, generator)  # recorded and replayed, on a GPU
    for step in progress:
        if args.anneal_lr:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * float(1 + np.cos(np.pi * step / steps)) / 2
        torch.manual_seed(args.seed * 10**6 + step + 1)  # the losses draw noise: by update, not by run
        run.log(update())
        if (step + 1) % args.eval_every == 0 or step + 1 == steps:
            measured = evaluate(args, make_act(args, learner, run.spaces))
            shown = run.record(stage, step + 1, steps, measured, learner, optimizer, generator)
            progress.set_postfix(shown)


# --- main ---
def main(args: Args) -> float:
    """Data, training, result; or only play. Returns the final normalized score."""
    torch.manual_seed(args.seed)  # the initial weights
    runs.prepare(args)  # builds the environment: what would fail at its first use fails now
    if args.evaluate:
        return play(args)
    data, spaces = load_data(args)
    learner = Learner(args, len(spaces.obs_mean), len(spaces.action_low)).to(args.device)
    run = runs.Run(SCRIPT, args, spaces)
    train(args, run, learner, data)
    score = run.finish()
    if args.capture_video:
        evaluate(replace(args, eval_episodes=1), make_act(args, learner, spaces), run.folder)
    return score


# --- settings ---
ROBOTS = ("hopper", "halfcheetah", "walker2d")
SETTINGS = {  # how an env-id begins: its own defaults on the command line; a later line wins
    "maze2d-large-demos": dict(steps=4000, eval_every=2000),
    (*ROBOTS, "pen", "door", "hammer", "relocate"): dict(normalize_rewards=True),
    "antmaze": dict(reward_shift=-0.5, reward_scale=4.0, max_backup=True, eval_episodes=100),
    "robomimic": dict(steps=15000, weight_decay=1.0, reward_scale=100.0, eval_episodes=50),
}
# Lowest and highest value, both allowed; where none is given, counts start at 1 and other numbers at 0.
LIMITS = {"seed": (0, 1e9), "discount": (0, 1), "reward_shift": (-1e9, 1e9), "reward_scale": (1e-9, 1e9)}
LIMITS |= {"temperature": (1e-6, 1e9)}
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
