"""SAQ-IQL: implicit Q-learning on state-conditioned action codes, with the policy in closed form.

    stage 1   a VQ-VAE turns every action of the data into one of K codes
    stage 2   Q, V and pi_beta learn on codes;  pi(k|s) = pi_beta(k|s) exp((Q(s,k) - V(s)) / lambda) / z(s)
    acting    choose a code with pi, decode it in the current state

The method: from "stage 1" to "main". "Plumbing" is the same in every script; skip it.
Symbols: s state (obs), a action, k code, K codebook_size, B batch, N data set, Qbar target network, pi
policy, pi_beta behaviour policy, gamma discount, tau expectile, lambda temperature.
Explained in docs/saq_iql.md. SAQ: Luo et al. 2023, arXiv 2310.11731. IQL: Kostrikov et al. 2021, 2110.06169.

    python saq_iql.py --env-id hopper-medium-expert-v2
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import d4rl
from d4rl import codes, runs
from vqvae import VQVAE, mlp


@dataclass
class Args:
    # --- SAQ-IQL ---
    expectile: float = 0.7  # V is this expectile of the data's Q: 0.5 its mean, near 1 its highest
    temperature: float = 3.0  # lambda: small follows the advantage, large the behaviour policy
    kl: float = 0.0  # epsilon of SAQ Eq. 13: lambda makes the mean KL(pi, pi_beta) this, in nats; 0: off

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
    quantizer_from: str = ""  # take the quantizer of the run in this folder instead of training one
    vqvae_steps: int = 20_000  # gradient updates
    vqvae_hidden_dim: int = 256  # width of the two hidden layers of encoder and decoder
    codebook_size: int = 16  # number of codes, K
    embedding_dim: int = 16  # size of a code's vector, D
    codebook_form: Literal["ema", "official", "paper"] = "ema"  # how the codebook learns: vqvae.py
    revive: bool = True  # move codes that are never chosen onto embeddings of the data
    condition_on_obs: bool = True  # encoder and decoder see the state; off: the paper's Table 3

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
def quantizer_loss(args: Args, vqvae: VQVAE, batch: Transitions):
    """SAQ Eq. 11, in vqvae.py; its codebook term is, by default, what move_codebook does."""
    return vqvae.loss(batch.obs, batch.action)  # loss, metrics, e(s, a) (B, D), k (B,)


@torch.no_grad()
def measure_quantizer(vqvae: VQVAE, data: Transitions, heldout: Tensor) -> dict[str, float]:
    """Codes in use (collapse: perplexity far below K), ||a - a~||^2 and what they explain, held out."""
    code = vqvae.encode(data.obs, data.action)  # (N,)
    share = torch.bincount(code, minlength=len(vqvae.codebook)) / len(code)  # (K,)
    decoded = vqvae.decode(data.obs[heldout], code[heldout])  # a~
    error = decoded - data.action[heldout]
    return {
        "vqvae/codes_used": (share > 0).sum().item(),
        "vqvae/perplexity": torch.special.entr(share).sum().exp().item(),  # exp(entropy) <= K
        "vqvae/heldout_error": error.pow(2).sum(1).mean().item(),
        **codes.explained(data.obs, data.action, decoded, heldout),
    }


# --- stage 2: learner ---
class Learner(nn.Module):
    def __init__(self, args: Args, obs_dim: int):
        super().__init__()
        hidden = args.hidden_dim, args.hidden_dim
        self.q = mlp(obs_dim, *hidden, args.codebook_size)  # Q(s, .): one output per code
        self.v = mlp(obs_dim, *hidden, 1)  # V(s)
        self.behaviour = mlp(obs_dim, *hidden, args.codebook_size)  # logits of pi_beta(.|s)
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)  # Qbar
        self.register_buffer("temperature", torch.tensor(args.temperature))  # lambda, found with --kl

    @torch.no_grad()
    def move_target(self, rate: float):
        """Qbar <- (1 - rate) Qbar + rate Q, after every gradient step."""
        for slow, fast in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            slow.lerp_(fast, rate)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """IQL Eq. 5: mean of |tau - 1(u < 0)| u^2, weight tau where u = Q - V > 0, else 1 - tau."""
    return ((expectile - (error < 0).float()).abs() * error.pow(2)).mean()


def td_loss(q: Tensor, reward: Tensor, terminal: Tensor, next_value: Tensor, discount: float):
    """Mean squared TD error, no gradient through the target. All (B,) -> scalar"""
    target = reward + discount * (1 - terminal) * next_value  # no next value after a terminal
    return (target.detach() - q).pow(2).mean()


def closed_form_policy(advantage: Tensor, log_behaviour: Tensor, temperature: float) -> Tensor:
    """SAQ Eq. 14: log pi = A / lambda + log pi_beta - log of its exact sum over codes. (B, K)"""
    return F.log_softmax(advantage / temperature + log_behaviour, dim=1)


def log_policy(args: Args, learner: Learner, obs: Tensor) -> Tensor:
    """log pi(k|s) of every code; no loss needs it, so lambda may change later. (B, obs_dim) -> (B, K)"""
    advantage = learner.q(obs) - learner.v(obs)  # V cancels in the softmax: Q would do
    log_behaviour = F.log_softmax(learner.behaviour(obs), dim=1)  # keeps pi off codes without data
    return closed_form_policy(advantage, log_behaviour, learner.temperature if args.kl else args.temperature)


def learner_loss(args: Args, learner: Learner, batch: Transitions) -> tuple[Tensor, dict]:
    """Loss and metrics of a batch. V follows the better of the data's codes: no max over others."""
    code = batch.code[:, None]  # (B, 1)
    with torch.no_grad():
        target_q = learner.q_target(batch.obs).gather(1, code).squeeze(1)  # Qbar(s, k)
        next_v = learner.v(batch.next_obs).squeeze(1)  # V(s')
    q = learner.q(batch.obs).gather(1, code).squeeze(1)  # Q(s, k)
    v = learner.v(batch.obs).squeeze(1)  # V(s)
    v_loss = expectile_loss(target_q - v, args.expectile)  # E |tau - 1(u < 0)| u^2, u = Qbar - V
    q_loss = td_loss(q, batch.reward, batch.terminal, next_v, args.discount)  # E (r + gamma V(s') - Q)^2
    behaviour_loss = F.cross_entropy(learner.behaviour(batch.obs), batch.code)  # -log pi_beta(k|s)
    metrics = {"losses/v": v_loss, "losses/q": q_loss, "losses/behaviour": behaviour_loss}
    return v_loss + q_loss + behaviour_loss, metrics | {"charts/q": q.mean()}  # no weights are shared


def find_temperature(args: Args, learner: Learner, obs: Tensor, low=1e-6, high=1e9) -> dict[str, float]:
    """--kl: SAQ Eq. 13's lambda. The larger lambda, the smaller the KL, an exact sum: halve its range."""
    q, log_behaviour = learner.q(obs).detach(), F.log_softmax(learner.behaviour(obs), dim=1).detach()
    for _ in range(60):
        middle = (low * high) ** 0.5
        log_pi = closed_form_policy(q, log_behaviour, middle)
        kl = (log_pi.exp() * (log_pi - log_behaviour)).sum(1).mean().item()  # E_s KL(pi, pi_beta)
        low, high = (middle, high) if kl > args.kl else (low, middle)
    return {"charts/kl": kl, "charts/temperature": learner.temperature.fill_(high).item()}


# --- acting ---
def make_act(args: Args, vqvae: VQVAE, learner: Learner, spaces: d4rl.Spaces):
    """The policy as a function of raw observations, one or a batch: NumPy in, NumPy out."""
    random = np.random.default_rng(1000 * args.seed)  # of act alone; evaluation brings its own

    @torch.no_grad()
    def act(observation: np.ndarray, uniform: np.ndarray | None = None) -> np.ndarray:
        """(obs_dim,) or (B, obs_dim) -> action likewise. `uniform` (B,) in [0, 1) draws codes."""
        obs = spaces.standardise(runs.to_batch(observation, spaces))  # (B, obs_dim)
        probs = log_policy(args, learner, obs).exp()  # (B, K): pi(k|s)
        size = probs.shape[1]
        if args.acting == "mean":  # sum_k pi(k|s) d(s, e_k)
            every_code = torch.arange(size, device=args.device).repeat(len(obs))  # (B * K,)
            decoded = vqvae.decode(obs.repeat_interleave(size, 0), every_code)  # (B * K, .)
            action = (probs[:, :, None] * decoded.view(len(obs), size, -1)).sum(1)
        elif args.acting == "greedy":
            action = vqvae.decode(obs, probs.argmax(1))
        else:  # "sample": the first code up to which pi sums to more than `uniform`
            uniform = random.random(len(obs)) if uniform is None else uniform
            below = probs.cumsum(1) <= probs.new_tensor(uniform)[:, None]  # (B, K)
            action = vqvae.decode(obs, below.sum(1).clamp(max=size - 1))
        action = spaces.unscale(action).cpu().numpy()  # within the bounds
        return action if np.ndim(observation) > 1 else action[0]

    return act


# --- training loop ---
def train(args: Args, run: runs.Run, stage: str, vqvae: VQVAE, learner: Learner, data: Transitions):
    """Stage "quantizer" or "learner": draw a batch, loss, step; now and then measure and save."""
    order = torch.randperm(len(data.obs), generator=torch.Generator().manual_seed(args.seed))
    heldout, rows = order.to(args.device).tensor_split([len(order) // 20 + 1])  # 5 % and 95 %
    model, steps = vqvae, args.vqvae_steps
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
            loss, metrics, embedding, code = quantizer_loss(args, vqvae, batch)
        else:
            loss, metrics = learner_loss(args, learner, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if stage == "quantizer":
            vqvae.move_codebook(embedding, code)
        else:
            learner.move_target(args.target_rate)
        return metrics

    update = run.graphed(update, optimizer, generator)  # recorded and replayed, on a GPU
    for step in progress:
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = args.lr * float(1 + np.cos(np.pi * step / steps)) / 2
        run.log(update())
        if (step + 1) % args.eval_every == 0 or step + 1 == steps:
            if stage == "quantizer":
                measured = measure_quantizer(vqvae, data, heldout)
            else:
                measured = find_temperature(args, learner, data.obs[heldout]) if args.kl else {}
                measured |= evaluate(args, make_act(args, vqvae, learner, run.spaces))
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
    vqvae, learner = make_models(args, spaces)
    run = runs.Run(SCRIPT, args, spaces)

    train(args, run, "quantizer", vqvae, learner, data)  # nothing left to do with --quantizer-from
    # Encode the data set once. From here on nothing moves the quantizer: if a code changed its
    # meaning, what the learner has learned about it would be wrong.
    data = data._replace(code=vqvae.encode(data.obs, data.action))
    train(args, run, "learner", vqvae, learner, data)

    score = run.finish()
    if args.capture_video:
        evaluate(replace(args, eval_episodes=1), make_act(args, vqvae, learner, spaces), run.folder)
    return score


# --- settings ---
ROBOTS = ("hopper", "halfcheetah", "walker2d")
SETTINGS = {  # how an env-id begins: its own defaults on the command line; a later line wins
    "maze2d-large-demos": dict(vqvae_steps=3000, steps=4000, eval_every=2000),
    (*ROBOTS, "pen", "door", "hammer", "relocate"): dict(normalize_rewards=True, acting="mean"),
    ROBOTS: dict(lr=1e-3, anneal_lr=True, temperature=10.0),
    tuple(f"{robot}-medium-replay" for robot in ROBOTS): dict(acting="greedy"),
    "antmaze": dict(reward_scale=100.0, expectile=0.9, temperature=1.0, eval_episodes=100),
    "robomimic": dict(vqvae_steps=10000, steps=15000, weight_decay=1.0, reward_scale=100.0, eval_episodes=50),
}
# Lowest and highest value, both allowed; where none is given, counts start at 1 and other numbers at 0.
LIMITS = {"seed": (0, 1e9), "discount": (0, 1), "reward_shift": (-1e9, 1e9), "reward_scale": (1e-9, 1e9)}
LIMITS |= {"expectile": (0, 1), "temperature": (1e-6, 1e9)}
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


def make_models(args: Args, spaces: d4rl.Spaces) -> tuple[VQVAE, Learner]:
    """Both with their initial weights."""
    sizes = (len(spaces.obs_mean), len(spaces.action_low))
    sizes += (args.codebook_size, args.embedding_dim, args.vqvae_hidden_dim)
    vqvae = VQVAE(*sizes, args.codebook_form, args.revive, args.condition_on_obs)
    return vqvae.to(args.device), Learner(args, len(spaces.obs_mean)).to(args.device)


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
    vqvae, learner = make_models(args, spaces)
    vqvae.load_state_dict(saved["stages"]["quantizer"]["model"])
    learner.load_state_dict(saved["stages"]["learner"]["model"])
    return make_act(args, vqvae, learner, spaces)


def parse_args(argv: list[str] | None = None) -> Args:
    """A flag wins over the run that it names (--resume ...), and that over the task's SETTINGS."""
    return runs.parse_args(Args, SCRIPT, SETTINGS, LIMITS, ACTING, argv)


if __name__ == "__main__":
    runs.guard(main, parse_args)
