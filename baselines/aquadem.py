"""Aquadem: another way to action codes, as a comparison: K candidate actions per state, and a learner on their indices.

Stage 1 trains K heads psi_k(s), one of them near the data's action; the nearest one's index is its code. Stage 2 is
that of saq_bc.py, saq_cql.py or saq_iql.py: docs/baselines.md. Aquadem: Dadashi et al. 2022, arxiv.org/abs/2110.10149.

    python baselines/aquadem.py --env-id hopper-medium-expert-v2
"""

import argparse
import copy
import io
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import d4rl

SCRIPT = Path(__file__).stem


@dataclass
class Args:
    # --- experiment ---
    env_id: str = "maze2d-large-demos-v0"  # task; the d4rl package holds its environment and finds its dataset
    dataset_path: str = ""  # train on this HDF5 file (D4RL's or robomimic's format) instead of the task's own
    seed: int = 0  # of weights, batches and evaluation episodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    threads: int = 1  # CPU threads; more are faster only while no other process wants a core
    eval_every: int = 5_000  # updates between two evaluations, each with a checkpoint
    eval_episodes: int = 20  # episodes per evaluation
    acting: Literal["greedy", "sample", "mean"] = "sample"  # likeliest code, drawn code, or mean decoded action
    runs_dir: str = "runs"  # the run's folder is made in here
    resume: str = ""  # continue the run in this folder exactly where its last checkpoint is
    evaluate: str = ""  # play the finished run in this folder, train nothing
    track: bool = False  # send the metrics to Weights & Biases as well
    capture_video: bool = False  # write an mp4 of one episode of the final policy

    # --- quantizer ---
    quantizer_steps: int = 50_000  # gradient updates
    num_candidates: int = 10  # candidate actions per state, and so the number of codes, K
    softmin: float = 1e-3  # T: small trains the candidate nearest to the data's action, large all of them
    dropout: float = 0.1  # share of the quantizer's inputs and hidden units that an update leaves out

    # --- learner ---
    steps: int = 30_000  # gradient updates
    batch_size: int = 256  # transitions per update, in every stage
    lr: float = 3e-4  # Adam's learning rate, in every stage
    anneal_lr: bool = False  # let it fall to 0 along half a cosine, in every stage
    hidden_dim: int = 256  # width of the two hidden layers of every network
    discount: float = 0.99  # gamma
    target_rate: float = 0.005  # share of the weights that the target network takes over per update
    reward_shift: float = 0.0  # added to every reward, before the scale
    reward_scale: float = 1.0  # rewards are multiplied by this; 0: by 1000 / (best - worst return), as IQL does

    # --- Aquadem ---
    learner: Literal["bc", "cql", "iql"] = "cql"  # what stage 2 is: saq_bc.py's, saq_cql.py's or saq_iql.py's
    conservatism: float = 10.0  # alpha: weight of the conservative penalty
    expectile: float = 0.7  # V is this expectile of the data's Q: 0.5 its mean, near 1 its highest
    temperature: float = 3.0  # lambda: small follows the advantage, large the behaviour policy


# --- settings per domain ---
SETTINGS = {  # how an env-id begins: its own defaults on the command line; a later line wins
    "maze2d-large-demos": dict(quantizer_steps=3000, steps=4000, eval_every=2000),
    ("hopper", "halfcheetah", "walker2d"): dict(lr=1e-3, anneal_lr=True, reward_scale=0.0, acting="mean"),
    ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay"): dict(acting="greedy"),
    ("pen", "door", "hammer", "relocate"): dict(reward_scale=0.0, acting="mean"),
    "antmaze": dict(reward_shift=-0.5, reward_scale=4.0, expectile=0.9, temperature=0.04, eval_episodes=100),
    "robomimic": dict(reward_scale=100.0, eval_every=10_000, eval_episodes=50),
}


# --- command line ---
# Ranges of values, and what may differ when a run is resumed or evaluated.
LIMITS = dict(seed=(0, 1e9), discount=(0, 1), reward_shift=(-1e9, 1e9), expectile=(0, 1), temperature=(1e-6, 1e9))
LIMITS |= dict(softmin=(1e-9, 1e9), dropout=(0, 0.99))
RESUME_ARGS = {"resume", "device", "threads", "track", "capture_video"}
EVALUATE_ARGS = set("evaluate dataset_path device threads capture_video seed eval_episodes acting temperature".split())


def stop(problem: str):
    """Bad input: one sentence that says what is wrong and what to do, exit code 2."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)


def read_args(folder: str) -> dict:
    """The arguments of the run in `folder`, and the script's name."""
    try:
        return dict(json.loads(Path(folder, "args.json").read_text()))
    except (OSError, ValueError, TypeError):
        stop(f"{folder} is not the folder of a run (no readable args.json); give one such as runs/NAME.")


def parse_args(argv: list[str] | None = None) -> Args:
    """The command line. Its defaults are those of the task's domain, or of the run that it names; a flag wins."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # flags that decide the defaults
    early.add_argument("--env-id", "--env_id", default=Args.env_id)
    for flag in ("--resume", "--evaluate"):
        early.add_argument(flag, default="")
    given = early.parse_known_args(argv)[0]
    settings = {k: v for begin, values in SETTINGS.items() if given.env_id.startswith(begin) for k, v in values.items()}
    defaults, fixed = {"env_id": given.env_id, **settings}, {}  # what the flags start from, and what must stay so
    if folder := given.resume or given.evaluate:
        defaults = read_args(folder)
        if (script := defaults.pop("script", "another program")) != SCRIPT or defaults.keys() != asdict(Args()).keys():
            stop(f"{folder} is a run of {script}.py, or of another version of it; use that one.")
        free = RESUME_ARGS if given.resume else EVALUATE_ARGS
        fixed = {name: value for name, value in defaults.items() if name not in free}
    args = tyro.cli(Args, args=argv, default=Args(**defaults))
    for name, value in fixed.items():
        if getattr(args, name) != value:
            stop(f"--{name.replace('_', '-')} is {value} in {folder} and has to stay so; leave the flag out.")
    for name, value in asdict(args).items():
        low, high = LIMITS.get(name, (1 if isinstance(value, int) else 0, 1e9))  # counts from 1, weights from 0
        if type(value) in (int, float) and not low <= value <= high:
            stop(f"--{name.replace('_', '-')} is {value}; it has to be at least {low} and at most {high}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        stop("--device cuda needs a GPU that PyTorch can use, and there is none; use --device cpu.")
    return args if args.device != "auto" else replace(args, device="cuda" if torch.cuda.is_available() else "cpu")


# --- data ---
def load_data(args: Args) -> dict[str, Tensor]:
    """The dataset's transitions on the device: observations standardised, rewards scaled; one line says what they are.

    `obs_mean` and `obs_std` (obs_dim,) are what evaluation needs to standardise likewise. `heldout` indexes the 5 % of
    the transitions that the quantizer is not trained on, `train` the others.
    """
    dataset = d4rl.get_dataset(args.env_id, args.dataset_path or None)
    transitions = d4rl.qlearning_dataset(args.env_id, dataset=dataset)
    returns = d4rl.episode_returns(args.env_id, dataset)
    data = {name: torch.as_tensor(x, dtype=torch.float32, device=args.device) for name, x in transitions.items()}
    data["obs_mean"] = data["observations"].mean(0)
    data["obs_std"] = data["observations"].std(0) + 1e-3  # some entries never change
    for name in ("observations", "next_observations"):
        data[name] = (data[name] - data["obs_mean"]) / data["obs_std"]
    if args.reward_scale == 0 and np.ptp(returns) == 0:
        stop("--reward-scale 0 divides by best - worst return, and all returns are equal; give a scale.")
    data["rewards"] = (data["rewards"] + args.reward_shift) * (args.reward_scale or 1000 / np.ptp(returns))
    order = torch.randperm(len(data["rewards"]), generator=torch.Generator().manual_seed(args.seed)).to(args.device)
    data["heldout"], data["train"] = order[: len(order) // 20 + 1], order[len(order) // 20 + 1 :]
    print(f"{args.env_id} on {args.device}: {d4rl.describe(args.env_id, dataset)}")
    return data


# --- evaluation ---
@torch.no_grad()
def act(args: Args, quantizer: nn.Module, learner: nn.ModuleDict, data: dict, obs: np.ndarray, uniform: np.ndarray):
    """Actions by `args.acting`: (B, obs_dim) -> (B, action_dim). `uniform` (B,) from [0, 1) draws the codes."""
    obs = (torch.as_tensor(obs, dtype=torch.float32, device=args.device) - data["obs_mean"]) / data["obs_std"]
    probs, candidates = policy(args, learner, obs).exp(), quantizer(obs)  # (B, K) by stage 2, (B, K, action_dim)
    code = probs.argmax(1)
    if args.acting == "sample":  # the first code up to which the probabilities sum to more than the random number
        code = (probs.cumsum(1) <= probs.new_tensor(uniform)[:, None]).sum(1).clamp(max=probs.shape[1] - 1)
    weights = probs if args.acting == "mean" else F.one_hot(code, probs.shape[1])  # sum_k pi(k|s) psi_k(s), or one code
    return (weights[:, :, None] * candidates).sum(1).cpu().numpy()


def evaluate(args: Args, quantizer: nn.Module, learner: nn.ModuleDict, data: dict, video: Path | None = None) -> dict:
    """Play `eval_episodes` episodes: mean return and normalized score. `video`: folder for an mp4 of the first one."""
    actions, dataset = partial(act, args, quantizer, learner, data), args.dataset_path or None
    returns = d4rl.evaluate(args.env_id, actions, args.eval_episodes, args.seed, video_folder=video, h5path=dataset)
    score = 100 * d4rl.get_normalized_score(args.env_id, np.mean(returns))
    return {"eval/score": float(score), "eval/return": float(np.mean(returns)), "returns": returns}


# --- run folder ---
def start_run(args: Args, data: dict[str, Tensor]) -> dict:
    """A new run's folder, or the one to resume. `history` has metrics.csv's rows, `stages` the state of each stage."""
    run = {"history": [], "stages": {}, "returns": [], "obs_mean": data["obs_mean"], "obs_std": data["obs_std"]}
    if args.resume and Path(args.resume, "checkpoint.pt").exists():  # without one it starts over
        run |= torch.load(Path(args.resume, "checkpoint.pt"), weights_only=True, map_location="cpu")
    name = f"{args.env_id.replace('/', '-')}__{SCRIPT}__{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
    run["folder"] = folder = Path(args.resume or Path(args.runs_dir, name))
    run["writer"] = SummaryWriter(folder)
    if not args.resume:
        write(folder / "args.json", json.dumps({"script": SCRIPT, **asdict(args)}, indent=2).encode())
    if args.track:
        import wandb

        run["wandb"] = wandb.init(project="saq", id=folder.name, config=asdict(args), dir=folder, resume="allow")
        wandb.define_metric("*", step_metric="step")
    save(run)  # a kill may have come between the checkpoint and metrics.csv
    print(folder)
    return run


def read_checkpoint(folder: str, stage: str) -> dict:
    """The checkpoint of the run in `folder`, whose `stage` must be finished."""
    path = Path(folder, "checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else {"stages": {}}
    if not checkpoint["stages"].get(stage, {}).get("finished"):
        stop(f"{folder} has no finished {stage}; continue that run with --resume {folder}, or name another.")
    return checkpoint


def write(path: Path, content: bytes):
    """Replace a file in one step: a kill leaves the old one or the new one, never half of it."""
    path.with_suffix(".tmp").write_bytes(content)
    os.replace(path.with_suffix(".tmp"), path)


def save(run: dict):
    """Write the checkpoint, then metrics.csv, which is its history as a table."""
    buffer, columns = io.BytesIO(), dict.fromkeys(name for row in run["history"] for name in row)
    torch.save({name: run[name] for name in ("history", "stages", "returns", "obs_mean", "obs_std")}, buffer)
    write(run["folder"] / "checkpoint.pt", buffer.getvalue())
    lines = [columns, *([str(row.get(name, "")) for name in columns] for row in run["history"])]
    write(run["folder"] / "metrics.csv", "".join(f"{','.join(line)}\n" for line in lines).encode())


def train(args: Args, run: dict, stage: str, steps: int, model: nn.Module, rows: Tensor, loss, measure):
    """Bring a stage to `steps` updates. Every `eval_every` of them: measure, log, write a checkpoint.

    `loss(index)` returns the loss of the transitions at `index` and tensors to log, `measure()` numbers to log; batches
    come from the transitions `rows`. Weights, optimizer and the batches' generator are all that a run resumes from.
    """
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=args.lr, fused=True)
    generator = torch.Generator(args.device).manual_seed(args.seed)
    state = run["stages"].get(stage, {"step": 0, "seconds": 0.0})
    if state["step"] > 0:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
    progress = tqdm(total=steps, initial=state["step"], desc=stage, mininterval=1)
    for first in range(state["step"], steps, args.eval_every):
        start, last, sums = time.time(), min(first + args.eval_every, steps), {}
        for step in range(first, last):
            if args.anneal_lr:
                optimizer.param_groups[0]["lr"] = args.lr * float(1 + np.cos(np.pi * step / steps)) / 2
            index = rows[torch.randint(len(rows), (args.batch_size,), generator=generator, device=args.device)]
            value, metrics = loss(index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            sums = {name: metric.detach() + sums.get(name, 0) for name, metric in metrics.items()}
            progress.update()
        row = {"stage": stage, "step": last} | {name: float(total) / (last - first) for name, total in sums.items()}
        row |= {f"time/{stage}_updates_per_second": (last - first) / (time.time() - start)} | measure()
        run["returns"] = row.pop("returns", [])
        row[f"time/{stage}_seconds"] = seconds = state["seconds"] + time.time() - start
        run["history"].append(row)
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
        state = run["stages"][stage] = saved | {"step": last, "finished": last == steps, "seconds": seconds}
        for name in (name for name in row if "/" in name):
            run["writer"].add_scalar(name, row[name], last)
        if args.track:
            run["wandb"].log(row)
        save(run)
        progress.set_postfix({name: f"{row[name]:.3g}" for name in row if name.startswith(("losses", "vqvae", "eval"))})


# --- stage 1: quantizer ---
def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU in between: `mlp(11, 256, 256, 3)` maps (B, 11) to (B, 3)."""
    layers = [layer for pair in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Quantizer(nn.Module):
    """K candidate actions psi_k(s) of each state: a hidden layer for all of them, one more for each."""

    def __init__(self, args: Args, obs_dim: int, action_dim: int):
        super().__init__()
        self.torso, sizes = nn.Linear(obs_dim, args.hidden_dim), (args.hidden_dim, args.hidden_dim, action_dim)
        self.heads = nn.ModuleList([mlp(*sizes) for _ in range(args.num_candidates)])
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, obs: Tensor, dropout: float = 0.0) -> Tensor:
        """All candidates: (B, obs_dim) -> (B, K, action_dim). Units are dropped in training only."""
        hidden = F.dropout(F.relu(self.torso(F.dropout(obs, dropout))), dropout)
        return torch.stack([last(F.dropout(relu(first(hidden)), dropout)) for first, relu, last in self.heads], dim=1)

    @torch.no_grad()
    def encode(self, obs: Tensor, action: Tensor) -> Tensor:
        """The nearest candidate of each action: (N, obs_dim), (N, action_dim) -> (N,), N up to a whole dataset."""
        pairs = zip(obs.split(4096), action.split(4096), strict=True)
        return torch.cat([(self(s) - a[:, None]).pow(2).sum(2).argmin(1) for s, a in pairs])


def quantizer_loss(args: Args, quantizer: Quantizer, data: dict[str, Tensor], index: Tensor) -> tuple[Tensor, dict]:
    """Mean of -T log mean_k exp(-||psi_k(s) - a||^2 / T), a soft minimum, over the state-action pairs at `index`."""
    quantizer.updates += 1
    torch.manual_seed(args.seed * 10**6 + int(quantizer.updates))  # a resumed run drops the same units
    distance = (quantizer(data["observations"][index], args.dropout) - data["actions"][index][:, None]).pow(2).sum(2)
    softmin = -args.softmin * ((-distance / args.softmin).logsumexp(1) - np.log(args.num_candidates))  # (B,)
    return softmin.mean(), {"losses/quantizer": softmin.mean()}


@torch.no_grad()
def measure_quantizer(quantizer: Quantizer, data: dict[str, Tensor]) -> dict[str, float]:
    """Codes used by the whole dataset, their perplexity, and the error of held-out actions (squared, summed)."""
    codes, heldout = quantizer.encode(data["observations"], data["actions"]), data["heldout"]
    share = torch.bincount(codes, minlength=len(quantizer.heads)) / len(codes)  # (K,)
    distance = (quantizer(data["observations"][heldout]) - data["actions"][heldout][:, None]).pow(2).sum(2)
    numbers = {"codes_used": (share > 0).sum(), "perplexity": torch.special.entr(share).sum().exp()}
    numbers["heldout_error"] = distance.amin(1).mean()
    return {f"charts/{name}": number.item() for name, number in numbers.items()}


# --- stage 2: learner ---
def make_learner(args: Args, obs_dim: int) -> nn.ModuleDict:
    """Q and pi_beta have one output per code, V has one. Behaviour cloning is pi_beta alone, CQL is Q alone."""
    outputs = {"q": args.num_candidates, "v": 1, "behaviour": args.num_candidates}
    learner = nn.ModuleDict({name: mlp(obs_dim, args.hidden_dim, args.hidden_dim, n) for name, n in outputs.items()})
    learner["q_target"] = copy.deepcopy(learner["q"]).requires_grad_(False)
    return learner


def learner_loss(args: Args, learner: nn.ModuleDict, data: dict[str, Tensor], index: Tensor) -> tuple[Tensor, dict]:
    """The losses of the chosen learner on the transitions at `index`. Where it has several, no weights are shared."""
    for slow, fast in zip(learner["q_target"].parameters(), learner["q"].parameters(), strict=True):
        slow.lerp_(fast.detach(), args.target_rate)  # the target network follows Q
    obs, code, next_obs = data["observations"][index], data["codes"][index], data["next_observations"][index]
    q, b = learner["q"](obs), torch.arange(len(code))  # (B, K), (B,)
    data_q, error = q[b, code], learner["q_target"](obs)[b, code] - learner["v"](obs).squeeze(1)  # (B,)
    next_value = learner["v"](next_obs).squeeze(1)  # (B,)
    if args.learner == "cql":  # E_{k ~ softmax(Q)}, exact
        next_value = (learner["q"](next_obs).softmax(1) * learner["q_target"](next_obs)).sum(1)
    target = data["rewards"][index] + args.discount * (1 - data["terminals"][index]) * next_value
    losses = {
        "behaviour": F.cross_entropy(learner["behaviour"](obs), code),  # -log pi_beta(k|s)
        "penalty": F.cross_entropy(q, code),  # log sum_k exp Q(s,k) - Q(s,k_data): SAQ Eq. 12
        "v": ((args.expectile - (error < 0).float()).abs() * error.pow(2)).mean(),  # IQL Eq. 5
        "q": (target.detach() - data_q).pow(2).mean(),
    }
    weights = dict(bc=dict(behaviour=1), cql=dict(q=0.5, penalty=args.conservatism), iql=dict(q=1, v=1, behaviour=1))
    loss = sum(weight * losses[name] for name, weight in weights[args.learner].items())
    return loss, {f"losses/{name}": losses[name] for name in weights[args.learner]} | {"charts/q": data_q.mean()}


def policy(args: Args, learner: nn.ModuleDict, obs: Tensor) -> Tensor:
    """log pi(k|s) of the policy that acts: (B, obs_dim) -> (B, K)"""
    q, behaviour = learner["q"](obs), learner["behaviour"](obs)  # log pi_beta up to a constant, which cancels
    return F.log_softmax({"bc": behaviour, "cql": q, "iql": q / args.temperature + behaviour}[args.learner], dim=1)


# --- main ---
def main(args: Args) -> float:
    """Train both stages, or what is left of them, or only play; return the final normalized score."""
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # count numbers below 1e-38 as 0: some processors take far longer for them
    torch.manual_seed(args.seed)  # the initial weights; batches and evaluation have generators of their own
    task = d4rl.playable_task(args.env_id)
    quantizer = Quantizer(args, task.observation_size, task.action_size).to(args.device)
    learner = make_learner(args, task.observation_size).to(args.device)
    if args.evaluate:
        checkpoint = read_checkpoint(args.evaluate, "learner")
        quantizer.load_state_dict(checkpoint["stages"]["quantizer"]["model"])
        learner.load_state_dict(checkpoint["stages"]["learner"]["model"])
        data = {name: checkpoint[name].to(args.device) for name in ("obs_mean", "obs_std")}
        result = evaluate(args, quantizer, learner, data, video=Path(args.evaluate) if args.capture_video else None)
        print(f"score {result['eval/score']:.1f} over {args.eval_episodes} episodes")
        return result["eval/score"]
    data = load_data(args)
    run = start_run(args, data)

    # Stage 1: train the quantizer, then encode the whole dataset once.
    loss, measure = partial(quantizer_loss, args, quantizer, data), partial(measure_quantizer, quantizer, data)
    train(args, run, "quantizer", args.quantizer_steps, quantizer, data["train"], loss, measure)
    data["codes"] = quantizer.encode(data["observations"], data["actions"])  # (N,)

    # Stage 2: the learner sees codes only, of all transitions: the 5 % were held out from stage 1 alone.
    loss, measure = partial(learner_loss, args, learner, data), partial(evaluate, args, quantizer, learner, data)
    train(args, run, "learner", args.steps, learner, torch.arange(len(data["codes"])).to(args.device), loss, measure)

    scores = [row["eval/score"] for row in run["history"] if row["stage"] == "learner"]
    result = {"score": scores[-1], "best_score": max(scores), "returns": run["returns"], "episodes": args.eval_episodes}
    result |= {"env_id": args.env_id, "script": SCRIPT, "seed": args.seed}
    result["seconds"] = {stage: state["seconds"] for stage, state in run["stages"].items()}
    result["versions"] = {name: version(name) for name in ("torch", "numpy", "gymnasium", "mujoco", "d4rl")}
    write(run["folder"] / "result.json", json.dumps(result, indent=2).encode())
    if args.capture_video:
        evaluate(args, quantizer, learner, data, video=run["folder"])
    run["writer"].close()
    print(f"score {scores[-1]:.1f} (best {max(scores):.1f}) over {args.eval_episodes} episodes; {run['folder']}")
    return scores[-1]


if __name__ == "__main__":
    try:
        main(parse_args())
    except (d4rl.DatasetError, NotADirectoryError, PermissionError) as error:
        stop(str(error))
