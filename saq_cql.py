"""SAQ-CQL: conservative Q-learning on state-conditioned action codes, with an exact conservative penalty.

Stage 1 trains a VQ-VAE that turns every action into one of K codes. Stage 2 learns Q of the codes by TD plus
alpha (log sum_k exp Q(s,k) - Q(s,k_data)): a sum over K codes where continuous CQL has to estimate an integral.
The policy is softmax(Q); its code is decoded in the current state. Explained in docs/saq_cql.md.
SAQ: Luo et al. 2023, https://arxiv.org/abs/2310.11731. CQL: Kumar et al. 2020, https://arxiv.org/abs/2006.04779.

    python saq_cql.py --env-id hopper-medium-expert-v2
"""

import argparse
import copy
import csv
import json
import os
import sys
import time
from collections.abc import Callable
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
from vqvae import VQVAE, mlp

SCRIPT = Path(__file__).stem
STEPS = {"quantizer": "vqvae_steps", "learner": "steps"}  # the argument that ends each stage


@dataclass
class Args:
    # --- experiment ---
    env_id: str = "maze2d-large-demos-v0"  # task; the d4rl package holds its environment and finds its dataset
    dataset_path: str = ""  # train on this HDF5 file (D4RL's format) instead of the task's own
    seed: int = 0  # of weights, batches and evaluation episodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    threads: int = 1  # CPU threads; more are faster only while no other process wants a core
    eval_every: int = 5_000  # updates between two evaluations, each with a checkpoint
    eval_episodes: int = 20  # episodes per evaluation
    acting: Literal["greedy", "sample", "mean"] = (
        "sample"  # the likeliest code, a drawn one, or the mean decoded action
    )
    runs_dir: str = "runs"  # the run's folder is made in here
    resume: str = ""  # continue the run in this folder exactly where its last checkpoint is
    evaluate: str = ""  # play the finished run in this folder, train nothing
    track: bool = False  # send the metrics to Weights & Biases as well
    capture_video: bool = False  # write an mp4 of one episode of the final policy

    # --- quantizer ---
    vqvae: str = ""  # take the quantizer of the run in this folder instead of training one
    vqvae_steps: int = 20_000  # gradient updates
    vqvae_hidden_dim: int = 256  # width of the two hidden layers of encoder and decoder
    codebook_size: int = 32  # number of codes, K
    embedding_dim: int = 16  # size of a code's vector, D
    codebook_form: Literal["ema", "official", "paper"] = "ema"  # how the codebook learns; paper: Eq. 11 to the letter
    revive: bool = True  # move codes that are never chosen onto embeddings of the data
    condition_on_obs: bool = True  # encoder and decoder see the state; off: the paper's Table 3

    # --- learner ---
    steps: int = 30_000  # gradient updates
    batch_size: int = 256  # transitions per update, in both stages
    lr: float = 3e-4  # Adam's learning rate, in both stages
    hidden_dim: int = 256  # width of the two hidden layers of every network
    discount: float = 0.99  # gamma
    target_rate: float = 0.005  # share of the weights that the target network takes over per update
    reward_scale: float = 1.0  # rewards are multiplied by this; 0: by 1000 / (best - worst return), as IQL does

    # --- SAQ-CQL ---
    conservatism: float = 10.0  # alpha: weight of the conservative penalty
    backup: Literal["expectation", "argmax"] = "expectation"  # next value: mean under softmax(Q), or of Q's best code


# --- settings per domain ---
SETTINGS = {  # env-id prefix: what differs from the defaults above, on the command line
    "maze2d-large-demos": {"vqvae_steps": 4_000, "steps": 6_000, "eval_every": 2_000},
    "hopper": {"reward_scale": 0.0},
    "halfcheetah": {"reward_scale": 0.0},
    "walker2d": {"reward_scale": 0.0},
}

# --- command line ---
QUANTIZER_ARGS = (
    "vqvae_steps vqvae_hidden_dim codebook_size embedding_dim codebook_form revive condition_on_obs".split()
)
RESUME_ARGS = "resume device threads track capture_video".split()  # may differ from the run's
EVALUATE_ARGS = "evaluate device threads capture_video seed eval_episodes acting".split()  # may differ from the run's


def stop(problem: str):
    """Bad input: one sentence that says what is wrong and what to do, exit code 2."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)


def read_args(folder: str) -> dict:
    """The arguments of the run in `folder`."""
    try:
        return json.loads(Path(folder, "args.json").read_text())
    except (OSError, ValueError):
        stop(f"{folder} is not the folder of a run (no readable args.json); give one such as runs/NAME.")


def parse_args(argv: list[str] | None = None) -> Args:
    """The command line. Its defaults are those of the task's domain, or of the run that it continues; a flag wins."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--env-id", "--env_id", default=Args.env_id)
    for flag in ("--resume", "--evaluate", "--vqvae"):
        early.add_argument(flag, default="")
    given = early.parse_known_args(argv)[0]
    defaults = {"env_id": given.env_id}
    defaults |= next((values for prefix, values in SETTINGS.items() if given.env_id.startswith(prefix)), {})
    if given.vqvae:
        defaults |= {name: value for name, value in read_args(given.vqvae).items() if name in QUANTIZER_ARGS}
    if folder := given.resume or given.evaluate:
        defaults = read_args(folder)
        if (script := defaults.pop("script")) != SCRIPT:
            stop(f"{folder} is a run of {script}.py; use that script.")
    return tyro.cli(Args, args=argv, default=Args(**defaults))


def check_args(args: Args):
    """Stop at values that cannot work, before anything is loaded or written."""
    for name, value in asdict(args).items():
        if name.endswith(("steps", "every", "episodes", "size", "dim", "threads")) and value < 1:
            stop(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    if args.device == "cuda" and not torch.cuda.is_available():
        stop("--device cuda needs a GPU that PyTorch can use, and there is none; use --device cpu.")
    free = {args.resume: RESUME_ARGS, args.evaluate: EVALUATE_ARGS, args.vqvae: set(asdict(args)) - set(QUANTIZER_ARGS)}
    for folder, names in free.items():
        for name, value in (read_args(folder) if folder else {}).items():
            if name != "script" and name not in names and value != getattr(args, name):
                stop(f"--{name.replace('_', '-')} is {value} in {folder} and has to stay; leave the flag out.")


# --- data ---
def load_data(args: Args) -> dict[str, Tensor]:
    """The dataset's transitions on the device: observations standardised, rewards scaled; one line says what they are.

    `obs_mean` and `obs_std` (obs_dim,) are what evaluation needs to standardise likewise. `heldout` indexes the 5 % of
    the transitions that the quantizer is not trained on, `train` the others.
    """
    try:
        dataset = d4rl.get_dataset(args.env_id, args.dataset_path or None)
        transitions = d4rl.qlearning_dataset(args.env_id, dataset=dataset)
        returns = d4rl.episode_returns(args.env_id, dataset)
    except d4rl.DatasetError as error:
        stop(str(error))
    data = {name: torch.as_tensor(x, dtype=torch.float32, device=args.device) for name, x in transitions.items()}
    data["obs_mean"] = data["observations"].mean(0)
    data["obs_std"] = data["observations"].std(0) + 1e-3  # some entries never change
    for name in ("observations", "next_observations"):
        data[name] = (data[name] - data["obs_mean"]) / data["obs_std"]
    if args.reward_scale == 0 and returns.max() == returns.min():
        stop("--reward-scale 0 divides by best - worst return, and all returns are equal; give a scale.")
    data["rewards"] *= args.reward_scale or 1000 / float(returns.max() - returns.min())
    order = torch.randperm(len(data["rewards"]), generator=torch.Generator().manual_seed(args.seed)).to(args.device)
    data["heldout"], data["train"] = order.split([-(-len(order) // 20), len(order) - -(-len(order) // 20)])
    print(
        f"{args.env_id}: {len(order):,} transitions, {len(returns):,} episodes, returns {returns.min():.1f} to "
        f"{returns.max():.1f} (mean {returns.mean():.1f}), observations {data['observations'].shape[1]}, "
        f"actions {data['actions'].shape[1]}, on {args.device}"
    )
    return data


# --- evaluation ---
def act(args: Args, vqvae: VQVAE, learner: nn.ModuleDict, obs: Tensor, generator: torch.Generator) -> Tensor:
    """The policy's actions: (B, obs_dim) -> (B, action_dim). A code is chosen and decoded in the current state."""
    probs = policy(args, learner, obs).exp()  # (B, K)
    if args.acting == "mean":  # sum_k pi(k|s) d(s, e_k); the paper always acts with one code
        every_code = torch.arange(probs.shape[1], device=obs.device).repeat(len(obs))
        actions = vqvae.decode(obs.repeat_interleave(probs.shape[1], 0), every_code)  # (B * K, action_dim)
        return (probs[:, :, None] * actions.view(*probs.shape, -1)).sum(1)
    if args.acting == "sample":
        code = torch.multinomial(probs.cpu(), 1, generator=generator).squeeze(1).to(obs.device)
    else:
        code = probs.argmax(1)
    return vqvae.decode(obs, code)


def evaluate(args: Args, vqvae: VQVAE, learner: nn.ModuleDict, data: dict, video: Path | None = None) -> dict:
    """Play `eval_episodes` episodes: mean return and normalized score. `video`: folder for an mp4 of the first one."""
    generator = torch.Generator().manual_seed(args.seed)  # its own: training draws the same numbers with or without it

    @torch.no_grad()
    def actions(obs: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(obs, dtype=torch.float32, device=args.device)
        return act(args, vqvae, learner, (x - data["obs_mean"]) / data["obs_std"], generator).cpu().numpy()

    returns = d4rl.evaluate(args.env_id, actions, args.eval_episodes, seed=args.seed, video_folder=video)
    score = 100 * d4rl.get_normalized_score(args.env_id, np.mean(returns))
    return {"eval/score": float(score), "eval/return": float(np.mean(returns)), "returns": returns}


# --- run folder ---
def start_run(args: Args, data: dict[str, Tensor]) -> dict:
    """Make the run's folder, or open the one to resume at its last checkpoint.

    A run is a dictionary: `history` is the list of rows in metrics.csv, `stages` holds the state of each stage.
    """
    name = f"{args.env_id.replace('/', '-')}__{SCRIPT}__{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
    folder = Path(args.resume or Path(args.runs_dir, name))
    run = {"history": [], "stages": {}, "returns": [], "obs_mean": data["obs_mean"], "obs_std": data["obs_std"]}
    if args.resume and (folder / "checkpoint.pt").exists():  # without one it starts over
        run |= torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    if args.vqvae and "quantizer" not in run["stages"]:
        other = read_checkpoint(args.vqvae, "quantizer")
        if not torch.equal(other["obs_mean"], run["obs_mean"].cpu()):
            stop(f"the quantizer in {args.vqvae} was trained on other data; leave --vqvae out to train one.")
        run["stages"]["quantizer"] = other["stages"]["quantizer"]
        run["history"] = [row for row in other["history"] if row["stage"] == "quantizer"]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "args.json", json.dumps({"script": SCRIPT, **asdict(args), "resume": ""}, indent=2))
    for events in folder.glob("events.*"):
        events.unlink()  # written anew from the history: nothing twice, nothing from after the checkpoint
    run |= {"folder": folder, "writer": SummaryWriter(folder)}
    if args.track:
        import wandb

        run["wandb"] = wandb.init(project="saq", id=folder.name, config=asdict(args), dir=folder, resume="allow")
    for row in run["history"]:
        log(run, row)
    print(folder)
    return run


def read_checkpoint(folder: str, stage: str) -> dict:
    """The checkpoint of the run in `folder`, whose `stage` must be finished."""
    path, steps = Path(folder, "checkpoint.pt"), read_args(folder)[STEPS[stage]]
    checkpoint = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else {"stages": {}}
    if checkpoint["stages"].get(stage, {"step": 0})["step"] < steps:
        stop(f"the {stage} in {folder} is not finished; continue that run with --resume {folder}.")
    return checkpoint


def write(path: Path, text: str):
    """Replace a file in one step: a kill leaves the old one or the new one, never half of it."""
    path.with_suffix(".tmp").write_text(text)
    os.replace(path.with_suffix(".tmp"), path)


def log(run: dict, row: dict):
    """Send a row of metrics to TensorBoard and, with --track, to Weights & Biases."""
    for name in (name for name in row if "/" in name):
        run["writer"].add_scalar(name, row[name], row["step"])
    if "wandb" in run:
        run["wandb"].log(row)


def save(run: dict):
    """Write the checkpoint and metrics.csv."""
    names = ("history", "stages", "returns", "obs_mean", "obs_std")
    torch.save({name: run[name] for name in names}, run["folder"] / "checkpoint.tmp")
    os.replace(run["folder"] / "checkpoint.tmp", run["folder"] / "checkpoint.pt")
    columns = dict.fromkeys(name for row in run["history"] for name in row)  # in order of appearance
    with open(run["folder"] / "metrics.tmp", "w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(run["history"])
    os.replace(run["folder"] / "metrics.tmp", run["folder"] / "metrics.csv")


def train(args: Args, run: dict, stage: str, parts: dict, rows: Tensor, update: Callable, measure: Callable):
    """Bring a stage to its number of updates. Every `eval_every` of them: measure, log, write a checkpoint.

    `parts` are the modules and optimizers that learn; with the generator of the batches they are all that a resumed run
    needs. Batches come from the transitions `rows`. `update(index)` makes one gradient update on those at `index` and
    returns tensors to log, `measure()` returns numbers to log.
    """
    steps = getattr(args, STEPS[stage])
    generator = torch.Generator(args.device).manual_seed(args.seed)
    state = run["stages"].get(stage, {"step": 0, "seconds": 0.0, "rng": generator.get_state()})
    generator.set_state(state["rng"])
    for name, part in parts.items():
        if name in state:
            part.load_state_dict(state[name])
    progress = tqdm(total=steps, initial=state["step"], desc=stage, unit="update", dynamic_ncols=True)
    for first in range(state["step"], steps, args.eval_every):
        start, last, sums = time.time(), min(first + args.eval_every, steps), {}
        for _ in range(first, last):
            index = rows[torch.randint(len(rows), (args.batch_size,), generator=generator, device=args.device)]
            for name, value in update(index).items():
                sums[name] = sums.get(name, 0) + value
            progress.update()
        row = {"stage": stage, "step": last} | {name: float(value) / (last - first) for name, value in sums.items()}
        row["time/updates_per_second"] = (last - first) / (time.time() - start)
        row |= measure()
        run["returns"] = row.pop("returns", [])
        seconds = state["seconds"] + time.time() - start
        row["time/seconds"] = seconds
        run["history"].append(row)
        state = {"step": last, "seconds": seconds, "rng": generator.get_state()}
        state |= {name: part.state_dict() for name, part in parts.items()}
        run["stages"][stage] = state
        save(run)
        log(run, row)
        progress.set_postfix(
            {name.split("/")[1]: f"{row[name]:.3g}" for name in row if "/" in name and "time" not in name}
        )
    progress.close()


# --- stage 1: quantizer ---
def make_quantizer(args: Args, obs_dim: int, action_dim: int) -> VQVAE:
    sizes = (obs_dim, action_dim, args.codebook_size, args.embedding_dim, args.vqvae_hidden_dim)
    return VQVAE(*sizes, form=args.codebook_form, revive=args.revive, condition_on_obs=args.condition_on_obs).to(
        args.device
    )


def update_quantizer(vqvae: VQVAE, optimizer: torch.optim.Optimizer, data: dict, index: Tensor) -> dict[str, Tensor]:
    """One gradient update on the state-action pairs at `index`."""
    loss, terms = vqvae.loss(data["observations"][index], data["actions"][index])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {f"vqvae/{name}": value for name, value in terms.items()}


def encode_dataset(vqvae: VQVAE, data: dict[str, Tensor]) -> Tensor:
    """The code of every transition's action: (N,) integers."""
    pairs = zip(data["observations"].split(65_536), data["actions"].split(65_536), strict=True)
    return torch.cat([vqvae.encode(obs, action) for obs, action in pairs])


@torch.no_grad()
def measure_quantizer(vqvae: VQVAE, data: dict[str, Tensor]) -> dict[str, float]:
    """Codes that the whole dataset uses, their perplexity, and the squared error of held-out actions (sum over dims)."""
    codes, heldout = encode_dataset(vqvae, data), data["heldout"]
    share = torch.bincount(codes, minlength=len(vqvae.codebook)) / len(codes)  # (K,)
    error = vqvae.decode(data["observations"][heldout], codes[heldout]) - data["actions"][heldout]
    return {
        "vqvae/codes_used": (share > 0).sum().item(),
        "vqvae/perplexity": torch.special.entr(share).sum().exp().item(),
        "vqvae/heldout_error": error.pow(2).sum(1).mean().item(),
    }


# --- stage 2: learner ---
def td_loss(q: Tensor, rewards: Tensor, terminals: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """Mean squared TD error, no gradient through the target. All (B,) -> scalar"""
    target = rewards + discount * (1 - terminals) * next_value
    return (target.detach() - q).pow(2).mean()


def conservative_loss(q: Tensor, code: Tensor) -> Tensor:
    """SAQ's exact CQL(H) penalty, mean of log sum_k exp Q(s,k) - Q(s,k_data). (B, K), (B,) -> scalar

    It is the cross-entropy of softmax(Q) and the data's codes: behaviour cloning's loss (SAQ Eq. 12).
    """
    return (q.logsumexp(1) - q.gather(1, code[:, None]).squeeze(1)).mean()


def backup_value(q: Tensor, target_q: Tensor, backup: str) -> Tensor:
    """Value of a state under the policy of `q`, measured by the target network. (B, K), (B, K) -> (B,)"""
    if backup == "argmax":  # double Q-learning, as in the official code
        return target_q.gather(1, q.argmax(1, keepdim=True)).squeeze(1)
    return (q.softmax(1) * target_q).sum(1)  # E_{k ~ softmax(Q)}, exact


def make_learner(args: Args, obs_dim: int) -> nn.ModuleDict:
    """Q has one output per code."""
    learner = nn.ModuleDict({"q": mlp(obs_dim, args.hidden_dim, args.hidden_dim, args.codebook_size)})
    learner["q_target"] = copy.deepcopy(learner["q"]).requires_grad_(False)
    return learner.to(args.device)


def update(args: Args, learner: nn.ModuleDict, optimizer: torch.optim.Optimizer, data: dict, index: Tensor) -> dict:
    """One gradient update on the transitions at `index`."""
    next_obs, code = data["next_observations"][index], data["codes"][index]  # (B, obs_dim), (B,)
    with torch.no_grad():
        next_value = backup_value(learner["q"](next_obs), learner["q_target"](next_obs), args.backup)  # (B,)
    q = learner["q"](data["observations"][index])  # (B, K)
    data_q = q.gather(1, code[:, None]).squeeze(1)  # (B,)
    q_loss = td_loss(data_q, data["rewards"][index], data["terminals"][index], next_value, args.discount)
    penalty = conservative_loss(q, code)
    optimizer.zero_grad()
    (0.5 * q_loss + args.conservatism * penalty).backward()  # CQL Eq. 1: half the squared error
    optimizer.step()
    move_target(learner["q_target"], learner["q"], args.target_rate)
    return {"losses/q": q_loss.detach(), "losses/penalty": penalty.detach(), "charts/q": data_q.detach().mean()}


def move_target(target: nn.Module, source: nn.Module, rate: float):
    """The target's weights become an exponential moving average of the source's."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast.detach(), rate)


def policy(args: Args, learner: nn.ModuleDict, obs: Tensor) -> Tensor:
    """log pi(k|s) of the policy that acts: (B, obs_dim) -> (B, K)"""
    return F.log_softmax(learner["q"](obs), dim=1)


# --- main ---
def main(args: Args) -> float:
    """Train both stages, or what is left of them, and return the final normalized score."""
    torch.set_num_threads(args.threads)
    if args.device == "auto":
        args = replace(args, device="cuda" if torch.cuda.is_available() else "cpu")
    check_args(args)
    if args.evaluate:
        return play(args)
    data = load_data(args)
    run = start_run(args, data)
    obs_dim, action_dim = data["observations"].shape[1], data["actions"].shape[1]

    # Stage 1: train the quantizer, then encode the whole dataset once.
    torch.manual_seed(args.seed)
    vqvae = make_quantizer(args, obs_dim, action_dim)
    optimizer = torch.optim.Adam(vqvae.parameters(), lr=args.lr, fused=True)
    parts, measure = {"vqvae": vqvae, "optimizer": optimizer}, partial(measure_quantizer, vqvae, data)
    train(args, run, "quantizer", parts, data["train"], partial(update_quantizer, vqvae, optimizer, data), measure)
    data["codes"] = encode_dataset(vqvae, data)

    # Stage 2: the learner sees codes only.
    torch.manual_seed(args.seed)  # anew: it does not matter whether stage 1 ran here or in another run
    learner = make_learner(args, obs_dim)
    optimizer = torch.optim.Adam((p for p in learner.parameters() if p.requires_grad), lr=args.lr, fused=True)
    parts, measure = {"learner": learner, "optimizer": optimizer}, partial(evaluate, args, vqvae, learner, data)
    rows = torch.arange(len(data["codes"]), device=args.device)
    train(args, run, "learner", parts, rows, partial(update, args, learner, optimizer, data), measure)

    scores = [row["eval/score"] for row in run["history"] if row["stage"] == "learner"]
    result = {
        "env_id": args.env_id,
        "script": SCRIPT,
        "seed": args.seed,
        "score": scores[-1],
        "best_score": max(scores),
    }
    result |= {"episodes": args.eval_episodes, "returns": run["returns"]}
    result["seconds"] = {stage: state["seconds"] for stage, state in run["stages"].items()}
    result["versions"] = {name: version(name) for name in ("torch", "numpy", "gymnasium", "mujoco", "d4rl")}
    write(run["folder"] / "result.json", json.dumps(result, indent=2))
    if args.capture_video:
        evaluate(args, vqvae, learner, data, video=run["folder"])
    run["writer"].close()
    if "wandb" in run:
        run["wandb"].finish()
    print(f"score {scores[-1]:.1f} (best {max(scores):.1f}) over {args.eval_episodes} episodes; {run['folder']}")
    return scores[-1]


def play(args: Args) -> float:
    """Evaluate the policy of a finished run anew and return its normalized score; the run's files stay as they are."""
    checkpoint = read_checkpoint(args.evaluate, "learner")
    data = {name: checkpoint[name].to(args.device) for name in ("obs_mean", "obs_std")}
    obs_dim, stages = len(data["obs_mean"]), checkpoint["stages"]
    vqvae = make_quantizer(args, obs_dim, d4rl.task(args.env_id).action_size)
    vqvae.load_state_dict(stages["quantizer"]["vqvae"])
    learner = make_learner(args, obs_dim)
    learner.load_state_dict(stages["learner"]["learner"])
    result = evaluate(args, vqvae, learner, data, video=Path(args.evaluate) if args.capture_video else None)
    spread = f"{min(result['returns']):.1f} to {max(result['returns']):.1f}"
    print(f"score {result['eval/score']:.1f} over {args.eval_episodes} episodes, returns {spread}")
    return result["eval/score"]


if __name__ == "__main__":
    main(parse_args())
