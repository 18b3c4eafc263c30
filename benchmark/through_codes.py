"""What the codes alone cost: a continuous policy, played as it is and with its actions replaced by decoded ones.

    python benchmark/through_codes.py runs/IQL runs/SAQ_BC --eval-episodes 200

Two finished runs on one task: of baselines/bc.py, cql.py, iql.py or brac.py, and of saq_bc.py, whose quantizer decodes
the K actions of each state. The policy's action is replaced by the nearest of these, and by the nearest weighted mean
of them, since "--acting mean" reaches no other. So what the codes keep of it is seen without any learner of codes.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import d4rl  # noqa: E402
import saq_bc  # noqa: E402
from vqvae import VQVAE  # noqa: E402

TWINS = ("bc", "cql", "iql", "brac")


def nearest(action: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """The nearest decoded action: (B, action_dim), (B, K, action_dim) -> (B, action_dim)."""
    code = np.square(decoded - action[:, None]).sum(2).argmin(1)
    return decoded[np.arange(len(code)), code]


def mixture(action: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """The nearest of all means of the decoded actions with weights that sum to 1: as `nearest`.

    Non-negative least squares; a further row, heavier than the others, asks for the sum.
    """
    mixed = []
    for target, actions in zip(action, decoded, strict=True):
        rows, values = np.vstack([actions.T, np.full(len(actions), 1000.0)]), np.append(target, 1000.0)
        weights = nnls(rows, values)[0]
        mixed.append(weights / weights.sum() @ actions)
    return np.array(mixed)


def load_twin(folder: str):
    """A finished run of a continuous learner: its arguments and a function from observations to actions."""
    name = saq_bc.read_args(folder).get("script")
    if name not in TWINS:
        saq_bc.stop(f"{folder} is a run of {name}.py; name one of baselines/{{{','.join(TWINS)}}}.py first.")
    spec = importlib.util.spec_from_file_location(f"continuous_{name}", ROOT / "baselines" / f"{name}.py")
    twin = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twin)
    args = twin.parse_args(["--evaluate", folder])
    checkpoint, task = twin.read_checkpoint(folder, "learner"), d4rl.playable_task(args.env_id)
    learner = twin.make_learner(args, task.observation_size, task.action_size)
    learner.load_state_dict(checkpoint["stages"]["learner"]["model"])

    @torch.no_grad()
    def policy(obs: np.ndarray) -> np.ndarray:
        return twin.act(args, learner, checkpoint, obs, None).clip(-1, 1)

    return args, policy


def load_decoder(folder: str):
    """A finished run of saq_bc.py: its arguments and a function (B, obs_dim) -> (B, K, action_dim), all K actions."""
    args = saq_bc.parse_args(["--evaluate", folder])
    checkpoint, task = saq_bc.read_checkpoint(folder, "quantizer"), d4rl.playable_task(args.env_id)
    sizes = (task.observation_size, task.action_size, args.codebook_size, args.embedding_dim, args.vqvae_hidden_dim)
    vqvae = VQVAE(*sizes, args.codebook_form, args.revive, args.condition_on_obs)
    vqvae.load_state_dict(checkpoint["stages"]["quantizer"]["model"])

    @torch.no_grad()
    def decode(obs: np.ndarray) -> np.ndarray:
        obs = (torch.as_tensor(obs, dtype=torch.float32) - checkpoint["obs_mean"]) / checkpoint["obs_std"]
        codes = torch.arange(args.codebook_size).repeat(len(obs))
        decoded = vqvae.decode(obs.repeat_interleave(args.codebook_size, 0), codes)
        return decoded.view(len(obs), args.codebook_size, -1).clamp(-1, 1).numpy()

    return args, decode


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("twin", help="folder of the continuous learner's run")
    parser.add_argument("saq_bc", help="folder of the run of saq_bc.py")
    parser.add_argument("--eval-episodes", type=int, default=100, help="played three times, each time the same starts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append a line of JSON per score to this file")
    options = parser.parse_args(argv)
    if options.eval_episodes < 1:
        saq_bc.stop(f"--eval-episodes is {options.eval_episodes}; it has to be at least 1.")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    (args, policy), (quantizer_args, decode) = load_twin(options.twin), load_decoder(options.saq_bc)
    if args.env_id != quantizer_args.env_id:
        saq_bc.stop(f"one run is on {args.env_id}, the other on {quantizer_args.env_id}; name two on the same task.")
    name = saq_bc.read_args(options.twin)["script"]
    print(f"{name}, seed {args.seed}, through {quantizer_args.codebook_size} codes, seed {quantizer_args.seed}")
    for played, replace in {"policy": None, "nearest": nearest, "mixture": mixture}.items():
        errors = []

        def act(obs: np.ndarray, uniform: np.ndarray, replace=replace, errors=errors) -> np.ndarray:
            action = policy(obs)
            replaced = replace(action, decode(obs)) if replace else action
            errors.extend(np.square(replaced - action).sum(1))
            return replaced

        dataset = args.dataset_path or None
        returns = d4rl.evaluate(args.env_id, act, options.eval_episodes, args.seed, h5path=dataset)
        line = {"env_id": args.env_id, "script": name, "seed": args.seed, "played": played}
        line |= {name: getattr(quantizer_args, name) for name in ("codebook_size", "vqvae_steps")}
        line |= {"quantizer_seed": quantizer_args.seed}
        line |= {"episodes": options.eval_episodes, "error": float(np.mean(errors)), "returns": returns}
        line["score"] = float(100 * d4rl.get_normalized_score(args.env_id, np.mean(returns)))
        print(f"{played:7}  score {line['score']:.1f}, squared distance from the policy's action {line['error']:.4f}")
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    try:
        main()
    except d4rl.DatasetError as error:
        saq_bc.stop(str(error))
