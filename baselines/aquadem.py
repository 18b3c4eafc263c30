"""Aquadem (Dadashi et al. 2022, arXiv 2110.10149), for comparison: K candidate actions per state.

    stage 1   K heads psi_k(s), one of them near the data's action; the index of the nearest is its code
    stage 2   the learner of saq_bc.py, saq_cql.py or saq_iql.py, on these codes
    acting    choose a code with pi, take its candidate in the current state

"Plumbing" is the same in every script; skip it. Explained in docs/baselines.md.

    python baselines/aquadem.py --env-id hopper-medium-expert-v2
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
    # --- Aquadem ---
    learner: Literal["bc", "cql", "iql"] = "cql"  # stage 2 of saq_bc.py, saq_cql.py or saq_iql.py
    conservatism: float = 10.0  # alpha: weight of the conservative penalty
    expectile: float = 0.7  # V is this expectile of the data's Q: 0.5 its mean, near 1 its highest
    temperature: float = 3.0  # lambda: small follows the advantage, large the behaviour policy

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

    # --- quantizer ---
    quantizer_steps: int = 50_000  # gradient updates
    num_candidates: int = 10  # candidate actions per state, and so the number of codes, K
    softmin: float = 1e-3  # T: small trains the candidate nearest to the data's action, large all of them
    dropout: float = 0.1  # share of its inputs and hidden units that an update leaves out

    # --- experiment ---
    env_id: str = "maze2d-large-demos-v0"  # task: the d4rl package has its environment and its data
    dataset_path: str = ""  # an HDF5 file in D4RL's or robomimic's format, not the task's own
    seed: int = 0  # of weights, batches and evaluation episodes
    num_seeds: int = 1  # how many seeds to train, from `seed` on: a run each, side by side
    acting: Literal["greedy", "sample", "mean"] = "sample"  # likeliest code, drawn, mean of all
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
    code: Tensor  # (N,): the action's code; -1 until stage 1 is done


# --- stage 1: actions to codes ---
def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU in between: `mlp(11, 256, 256, 3)` maps (B, 11) to (B, 3)."""
    layers = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class Quantizer(nn.Module):
    """K candidate actions psi_k(s) of each state: a hidden layer for all of them, one more for each."""

    def __init__(self, args: Args, obs_dim: int, action_dim: int):
        super().__init__()
        self.torso = nn.Linear(obs_dim, args.hidden_dim)
        heads = [mlp(args.hidden_dim, args.hidden_dim, action_dim) for _ in range(args.num_candidates)]
        self.heads = nn.ModuleList(heads)

    def forward(self, obs: Tensor, dropout: float = 0.0) -> Tensor:
        """All candidates: (B, obs_dim) -> (B, K, A). Units are dropped in training only."""
        hidden = F.dropout(F.relu(self.torso(F.dropout(obs, dropout))), dropout)
        return torch.stack([head[2](F.dropout(head[:2](hidden), dropout)) for head in self.heads], dim=1)

    @torch.no_grad()
    def encode(self, obs: Tensor, action: Tensor) -> Tensor:
        """The nearest candidate of each action: (N, obs_dim), (N, A) -> (N,); N may be large."""
        parts = zip(obs.split(4096), action.split(4096), strict=True)
        return torch.cat([(self(s) - a[:, None]).pow(2).sum(2).argmin(1) for s, a in parts])


def quantizer_loss(args: Args, quantizer: Quantizer, batch: Transitions) -> tuple[Tensor, dict]:
    """A soft minimum over candidates: E -T log mean_k exp(-||psi_k(s) - a||^2 / T)."""
    distance = (quantizer(batch.obs, args.dropout) - batch.action[:, None]).pow(2).sum(2)  # (B, K)
    log_mean = (-distance / args.softmin).logsumexp(1) - np.log(args.num_candidates)  # (B,)
    loss = (-args.softmin * log_mean).mean()
    return loss, {"losses/quantizer": loss}


@torch.no_grad()
def measure_quantizer(quantizer: Quantizer, data: Transitions, heldout: Tensor) -> dict[str, float]:
    """Codes in use, and min_k ||psi_k(s) - a||^2 on rows that training does not see."""
    code = quantizer.encode(data.obs, data.action)  # (N,)
    share = torch.bincount(code, minlength=len(quantizer.heads)) / len(code)  # (K,)
    distance = (quantizer(data.obs[heldout]) - data.action[heldout][:, None]).pow(2).sum(2)
    return {
        "charts/codes_used": (share > 0).sum().item(),
        "charts/perplexity": torch.special.entr(share).sum().exp().item(),  # exp(entropy) <= K
        "charts/heldout_error": distance.amin(1).mean().item(),
    }


# --- stage 2: learner ---
class Learner(nn.Module):  # behaviour cloning needs pi_beta alone, CQL Q alone
    def __init__(self, args: Args, obs_dim: int):
        super().__init__()
        hidden = args.hidden_dim, args.hidden_dim
        self.q = mlp(obs_dim, *hidden, args.num_candidates)  # Q(s, .): one output per code
        self.v = mlp(obs_dim, *hidden, 1)  # V(s)
        self.behaviour = mlp(obs_dim, *hidden, args.num_candidates)  # logits of pi_beta(.|s)
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)  # Qbar

    @torch.no_grad()
    def move_target(self, rate: float):
        """Qbar <- (1 - rate) Qbar + rate Q, after every gradient step."""
        for slow, fast in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            slow.lerp_(fast, rate)


def log_policy(args: Args, learner: Learner, obs: Tensor) -> Tensor:
    """log pi(k|s) of every code: (B, obs_dim) -> (B, K)"""
    q, behaviour = learner.q(obs), learner.behaviour(obs)  # log pi_beta up to a constant, which cancels
    logits = {"bc": behaviour, "cql": q, "iql": q / args.temperature + behaviour}[args.learner]
    return F.log_softmax(logits, dim=1)


def learner_loss(args: Args, learner: Learner, batch: Transitions) -> tuple[Tensor, dict]:
    """Loss and metrics of a batch, of the learner that was chosen."""
    code = batch.code[:, None]  # (B, 1)
    q, v = learner.q(batch.obs), learner.v(batch.obs).squeeze(1)  # Q(s, .), V(s): (B, K), (B,)
    data_q = q.gather(1, code).squeeze(1)  # Q(s, k)
    with torch.no_grad():
        target_q = learner.q_target(batch.obs).gather(1, code).squeeze(1)  # Qbar(s, k)
        next_v = learner.v(batch.next_obs).squeeze(1)  # V(s')
        if args.learner == "cql":  # E_{k ~ softmax(Q)} Qbar(s', k), exact
            next_v = (learner.q(batch.next_obs).softmax(1) * learner.q_target(batch.next_obs)).sum(1)
        target = batch.reward + args.discount * (1 - batch.terminal) * next_v
    q_loss = (target - data_q).pow(2).mean()  # E (r + gamma (1 - done) V(s') - Q)^2
    v_loss = ((args.expectile - (target_q < v).float()).abs() * (target_q - v).pow(2)).mean()  # IQL Eq. 5
    behaviour_loss = F.cross_entropy(learner.behaviour(batch.obs), batch.code)  # -log pi_beta(k|s)
    penalty = F.cross_entropy(q, batch.code)  # log sum_k exp Q(s, k) - Q(s, k_data): SAQ Eq. 12
    loss, metrics = behaviour_loss, {"losses/behaviour": behaviour_loss}
    if args.learner == "cql":
        loss = 0.5 * q_loss + args.conservatism * penalty
        metrics = {"losses/q": q_loss, "losses/penalty": penalty}
    elif args.learner == "iql":
        loss = q_loss + v_loss + behaviour_loss
        metrics |= {"losses/q": q_loss, "losses/v": v_loss}
    return loss, metrics | {"charts/q": data_q.mean()}


# --- acting ---
def make_act(args: Args, quantizer: Quantizer, learner: Learner, spaces: d4rl.Spaces):
    """The policy as a function of raw observations, one or a batch: NumPy in, NumPy out."""
    random = np.random.default_rng(1000 * args.seed)  # of act alone; evaluation brings its own

    @torch.no_grad()
    def act(observation: np.ndarray, uniform: np.ndarray | None = None) -> np.ndarray:
        """(obs_dim,) or (B, obs_dim) -> action likewise. `uniform` (B,) in [0, 1) draws codes."""
        obs = spaces.standardise(runs.to_batch(observation, spaces))  # (B, obs_dim)
        probs = log_policy(args, learner, obs).exp()  # (B, K): pi(k|s)
        if args.acting == "mean":
            weights = probs
        elif args.acting == "greedy":
            weights = F.one_hot(probs.argmax(1), probs.shape[1])
        else:  # "sample": the first code up to which pi sums to more than `uniform`
            uniform = random.random(len(obs)) if uniform is None else uniform
            below = probs.cumsum(1) <= probs.new_tensor(uniform)[:, None]  # (B, K)
            weights = F.one_hot(below.sum(1).clamp(max=probs.shape[1] - 1), probs.shape[1])
        action = (weights[:, :, None] * quantizer(obs)).sum(1)  # sum_k pi(k|s) psi_k(s), or one candidate
        action = spaces.unscale(action).cpu().numpy()  # within the bounds
        return action if np.ndim(observation) > 1 else action[0]

    return act


# --- training loop ---
def train(args: Args, run: runs.Run, stage: str, quantizer: Quantizer, learner: Learner, data: Transitions):
    """Stage "quantizer" or "learner": draw a batch, loss, step; now and then measure and save."""
    order = torch.randperm(len(data.obs), generator=torch.Generator().manual_seed(args.seed))
    heldout, rows = order.to(args.device).tensor_split([len(order) // 20 + 1])  # 5 % and 95 %
    model, steps = quantizer, args.quantizer_steps
    if stage == "learner":  # it sees all rows: the 5 % are held out from the quantizer alone
        model, steps, rows = learner, args.steps, torch.arange(len(order), device=args.device)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    generator = torch.Generator(args.device).manual_seed(args.seed)  # draws the batches
    first = run.restore(stage, model, optimizer, generator)  # 0, or where a run stopped
    progress = tqdm(range(first, steps), initial=first, total=steps, desc=stage, mininterval=1)

    def update() -> dict[str, Tensor]:
        """One gradient step on a batch; returns its metrics."""
        draw = torch.randint(len(rows), (args.batch_size,), generator=generator, device=args.device)
        index = rows[draw]  # (B,)
        batch = Transitions(*(array.index_select(0, index) for array in data))
        if stage == "quantizer":
            loss, metrics = quantizer_loss(args, quantizer, batch)
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
            if stage == "quantizer":
                measured = measure_quantizer(quantizer, data, heldout)
            else:
                measured = evaluate(args, make_act(args, quantizer, learner, run.spaces))
            shown = run.record(stage, step + 1, steps, measured, model, optimizer, generator)
            progress.set_postfix(shown)


# --- main ---
def main(args: Args) -> float:
    """Data, stage 1, encode, stage 2, result; or only play. Returns the final normalized score."""
    torch.manual_seed(args.seed)  # the initial weights
    runs.prepare(args)  # builds the environment: what would fail at its first use fails now
    if args.evaluate:
        return play(args)
    data, spaces = load_data(args)
    quantizer, learner = make_models(args, spaces)
    run = runs.Run(SCRIPT, args, spaces)

    train(args, run, "quantizer", quantizer, learner, data)
    # Encode the data set once: from here on nothing moves the quantizer.
    data = data._replace(code=quantizer.encode(data.obs, data.action))
    train(args, run, "learner", quantizer, learner, data)

    score = run.finish()
    if args.capture_video:
        evaluate(replace(args, eval_episodes=1), make_act(args, quantizer, learner, spaces), run.folder)
    return score


# --- settings ---
ROBOTS = ("hopper", "halfcheetah", "walker2d")
SETTINGS = {  # how an env-id begins: its own defaults on the command line; a later line wins
    "maze2d-large-demos": dict(quantizer_steps=3000, steps=4000, eval_every=2000),
    (*ROBOTS, "pen", "door", "hammer", "relocate"): dict(normalize_rewards=True, acting="mean"),
    ROBOTS: dict(lr=1e-3, anneal_lr=True),
    tuple(f"{robot}-medium-replay" for robot in ROBOTS): dict(acting="greedy"),
    "antmaze": dict(reward_shift=-0.5, reward_scale=4.0, expectile=0.9, temperature=0.04, eval_episodes=100),
    "robomimic": dict(steps=15000, weight_decay=1.0, reward_scale=100.0, eval_episodes=50),
}
# Lowest and highest value, both allowed; where none is given, counts start at 1 and other numbers at 0.
LIMITS = {"seed": (0, 1e9), "discount": (0, 1), "reward_shift": (-1e9, 1e9), "reward_scale": (1e-9, 1e9)}
LIMITS |= {"expectile": (0, 1), "temperature": (1e-6, 1e9), "softmin": (1e-9, 1e9), "dropout": (0, 0.99)}
ACTING = ("acting", "temperature")  # what --evaluate may change of how the policy acts


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
    data = Transitions(obs, action, reward, next_obs, terminal.float(), torch.full((len(obs),), -1))
    return Transitions(*(array.to(args.device) for array in data)), spaces.to(args.device)


def make_models(args: Args, spaces: d4rl.Spaces) -> tuple[Quantizer, Learner]:
    """Both with their initial weights."""
    quantizer = Quantizer(args, len(spaces.obs_mean), len(spaces.action_low))
    return quantizer.to(args.device), Learner(args, len(spaces.obs_mean)).to(args.device)


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
    quantizer, learner = make_models(args, spaces)
    quantizer.load_state_dict(saved["stages"]["quantizer"]["model"])
    learner.load_state_dict(saved["stages"]["learner"]["model"])
    return make_act(args, quantizer, learner, spaces)


def parse_args(argv: list[str] | None = None) -> Args:
    """A flag wins over the run that it names (--resume ...), and that over the task's SETTINGS."""
    return runs.parse_args(Args, SCRIPT, SETTINGS, LIMITS, ACTING, argv)


if __name__ == "__main__":
    runs.guard(main, parse_args)
