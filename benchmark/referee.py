"""An outside referee: d3rlpy's learners on the batches and settings of ours, played by the same function.

    python benchmark/referee.py --learner iql --env-id maze2d-large-demos-v0 --seed 0    # d3rlpy's side
    python benchmark/referee.py --learner discrete_cql --vqvae runs/NAME --seed 0        # on the codes of that run
    python benchmark/referee.py --ours runs/NAME runs/OTHER                              # our side: finished runs
    python benchmark/referee.py --table

All further flags are those of the script that the learner is compared with, and so are the defaults. It runs in an
environment of its own, with d3rlpy: docs/referee.md.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import d4rl  # noqa: E402

TWINS = {"bc": "baselines/bc", "iql": "baselines/iql", "cql": "baselines/cql", "discrete_cql": "saq_cql"}
RULES = {  # where d3rlpy has one form only
    "bc": ["--loss", "squared"],
    "iql": ["--policy-std", "shared"],
    "discrete_cql": ["--backup", "argmax", "--acting", "greedy"],
}
PLACES = set("dataset_path device threads eval_every runs_dir resume evaluate vqvae track capture_video script".split())
INSTALL = "pip install -r benchmark/referee_requirements.txt, then pip install --no-deps d3rlpy==2.8.1"


def stop(problem: str):
    """Bad input: one sentence that says what is wrong and what to do, exit code 2."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)


def load(script: str) -> ModuleType:
    """One of our scripts as a module: its arguments, its data and its evaluation are the referee's too."""
    name = script.replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{script}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)  # tyro and dataclasses look their classes up here
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


# --- d3rlpy's side ---
def settings(learner: str, args) -> dict:
    """Our arguments as those of d3rlpy's configuration of the same learner; networks and schedules apart.

    Constant factors of a whole loss are left out: Adam divides them away.
    """
    if learner == "bc":
        return dict(batch_size=args.batch_size, learning_rate=args.lr, policy_type="deterministic")
    shared = dict(batch_size=args.batch_size, gamma=args.discount)
    if learner == "discrete_cql":  # TD loss with the factor 1/2, as ours; `train` moves the target network
        never = args.steps + 1
        return shared | dict(learning_rate=args.lr, alpha=args.conservatism, n_critics=1, target_update_interval=never)
    shared |= dict(actor_learning_rate=args.lr, critic_learning_rate=args.lr, tau=args.target_rate, n_critics=2)
    if learner == "iql":
        return shared | dict(expectile=args.expectile, weight_temp=1 / args.temperature, max_weight=100.0)
    return shared | dict(
        temp_learning_rate=0.0 if args.fixed_temperature else args.lr,
        initial_temperature=args.fixed_temperature or 1.0,
        conservative_weight=2 * args.conservatism,  # its TD loss lacks the factor 1/2
        alpha_learning_rate=0.0,  # a fixed weight
        initial_alpha=1.0,
        alpha_threshold=0.0,
        n_action_samples=args.num_actions,
        max_q_backup=args.max_backup,
        soft_q_backup=False,
    )


def make_algorithm(learner: str, args, obs_dim: int, num_actions: int):
    """d3rlpy's learner with our sizes. `num_actions`: action dimensions, for discrete_cql codes."""
    try:
        import d3rlpy
        from d3rlpy.optimizers.lr_schedulers import CosineAnnealingLRFactory
    except ImportError:
        stop(f"the referee needs d3rlpy, which is not here: in an environment of its own, {INSTALL}.")
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=[args.hidden_dim, args.hidden_dim])
    names = {
        "bc": ("BCConfig", ["encoder"], ["optim"]),
        "iql": ("IQLConfig", ["actor_encoder", "critic_encoder", "value_encoder"], ["actor_optim", "critic_optim"]),
        "cql": ("CQLConfig", ["actor_encoder", "critic_encoder"], ["actor_optim", "critic_optim", "temp_optim"]),
        "discrete_cql": ("DiscreteCQLConfig", ["encoder"], ["optim"]),
    }
    config, encoders, optimizers = names[learner]
    factories = {f"{name}_factory": encoder for name in encoders}
    falling = optimizers if args.anneal_lr else ["actor_optim"] if learner == "iql" else []  # as in ours
    schedule = CosineAnnealingLRFactory(T_max=args.steps)
    adam = d3rlpy.optimizers.AdamFactory(lr_scheduler_factory=schedule)
    factories |= {f"{name}_factory": adam for name in falling}
    d3rlpy.seed(args.seed)
    algorithm = getattr(d3rlpy.algos, config)(**settings(learner, args), **factories).create(args.device == "cuda")
    algorithm.create_impl((obs_dim,), num_actions)
    return algorithm


def minibatch(learner: str, data: dict, index: torch.Tensor):
    """The transitions at `index` (B,) as d3rlpy takes them: float32 columns, codes as well."""
    from d3rlpy.dataset import TransitionMiniBatch

    sources = {name: name for name in ("observations", "actions", "next_observations", "rewards", "terminals")}
    sources |= {"actions": "codes"} if learner == "discrete_cql" else {}
    batch = {name: data[x][index].float().view(len(index), -1).cpu().numpy() for name, x in sources.items()}
    intervals = np.ones((len(index), 1), dtype=np.float32)  # environment steps per transition
    # None of these learners uses next actions or trajectories.
    return TransitionMiniBatch(**batch, next_actions=batch["actions"], intervals=intervals, transitions=[])


def train(learner: str, args, algorithm, data: dict):
    """`steps` updates on the very batches that our script draws with this seed."""
    from d3rlpy.torch_utility import soft_sync

    generator = torch.Generator(args.device).manual_seed(args.seed)
    algorithm.set_grad_step(1)  # at 0 discrete_cql copies its target network
    for _ in tqdm(range(args.steps), desc=f"d3rlpy {learner}", mininterval=1):
        index = torch.randint(len(data["rewards"]), (args.batch_size,), generator=generator, device=args.device)
        algorithm.update(minibatch(learner, data, index))
        if learner == "discrete_cql":  # whose target network can only be copied; the others' follows, as ours
            modules = algorithm.impl.modules
            soft_sync(modules.targ_q_funcs, modules.q_funcs, args.target_rate)


def run(learner: str, flags: list[str], finished: list[dict]) -> dict | None:
    """Train and play one of d3rlpy's learners; None if it is among the `finished`."""
    twin = load(TWINS[learner])
    args = twin.parse_args([*flags, *RULES.get(learner, [])])
    name = {"by": "d3rlpy", "learner": learner, "data": Path(args.dataset_path).name or "bundled", "args": kept(args)}
    if any(line | name == line for line in finished):
        return None
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # as in the scripts
    task = d4rl.playable_task(args.env_id)
    size, vqvae = task.action_size, None
    if learner == "discrete_cql":
        if not args.vqvae:
            stop("discrete_cql learns on codes; give --vqvae RUN, the folder of a run that has a quantizer.")
        sizes = (task.observation_size, task.action_size, args.codebook_size, args.embedding_dim, args.vqvae_hidden_dim)
        vqvae = twin.VQVAE(*sizes, args.codebook_form, args.revive, args.condition_on_obs).to(args.device)
        checkpoint = twin.read_checkpoint(args.vqvae, "quantizer")
        vqvae.load_state_dict(checkpoint["stages"]["quantizer"]["model"])
        size = args.codebook_size
    algorithm = make_algorithm(learner, args, task.observation_size, size)
    data = twin.load_data(args)
    if vqvae:
        if not torch.equal(checkpoint["obs_mean"], data["obs_mean"].cpu()):
            stop(f"the quantizer in {args.vqvae} was trained on other data; give a run on {name['data']}.")
        data["codes"] = vqvae.encode(data["observations"], data["actions"])
    start = time.time()
    train(learner, args, algorithm, data)
    seconds = time.time() - start

    @torch.no_grad()
    def act(obs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """(B, obs_dim) -> (B, action_dim); a code is decoded in its state."""
        obs = (torch.as_tensor(obs, dtype=torch.float32, device=args.device) - data["obs_mean"]) / data["obs_std"]
        action = algorithm.predict(obs.cpu().numpy())
        return vqvae.decode(obs, torch.as_tensor(action, device=args.device)).cpu().numpy() if vqvae else action

    returns = d4rl.evaluate(args.env_id, act, args.eval_episodes, args.seed, h5path=args.dataset_path or None)
    score = 100 * float(d4rl.get_normalized_score(args.env_id, np.mean(returns)))
    versions = {package: version(package) for package in ("d3rlpy", "torch", "numpy", "gymnasium", "mujoco")}
    return name | {"score": score, "returns": returns, "seconds": seconds, "versions": versions}


# --- our side ---
def ours(folder: str, finished: list[dict]) -> dict | None:
    """The score of a finished run of ours, played again if it acts otherwise; None if it is among the `finished`."""
    try:
        args, result = (json.loads(Path(folder, name).read_text()) for name in ("args.json", "result.json"))
        learner = {Path(script).name: learner for learner, script in TWINS.items()}[args["script"]]
    except (OSError, ValueError, TypeError, KeyError):
        scripts = ", ".join(f"{script}.py" for script in TWINS.values())
        stop(f"{folder} is not the folder of a finished run that has a referee; give one of {scripts}.")
    again = args.get("acting", "greedy") != "greedy"  # d3rlpy acts greedily
    args |= {"acting": "greedy"} if again else {}
    name = {"by": "ours", "learner": learner, "data": Path(args["dataset_path"]).name or "bundled", "args": kept(args)}
    if any(line | name == line for line in finished):
        return None
    twin = load(TWINS[learner])
    score = twin.main(twin.parse_args(["--evaluate", folder, "--acting", "greedy"])) if again else result["score"]
    return name | {"score": score, "versions": result["versions"]}


# --- results ---
def kept(args) -> dict:
    """The arguments that decide a result: what has to be equal on both sides, and the seed."""
    args = args if isinstance(args, dict) else asdict(args)
    return {name: value for name, value in args.items() if name not in PLACES}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(lines: list[dict]) -> str:
    """Markdown: ours beside d3rlpy's where all arguments but the seed are equal; mean scores over seeds.

    The difference is ours - d3rlpy's, with its standard error over seeds where both sides have at least two.
    """
    groups = defaultdict(lambda: {"ours": {}, "d3rlpy": {}})
    for line in lines:
        equal = json.dumps({name: value for name, value in line["args"].items() if name != "seed"}, sort_keys=True)
        groups[line["args"]["env_id"], line["data"], line["learner"], equal][line["by"]][line["args"]["seed"]] = line[
            "score"
        ]
    rows = ["| task | data | learner | updates | ours | d3rlpy | difference |", "|---|---|---|---|---|---|---|"]
    for (env_id, data, learner, equal), sides in sorted(groups.items()):
        ours, theirs = ([scores[seed] for seed in sorted(scores)] for scores in (sides["ours"], sides["d3rlpy"]))
        cells = [f"{np.mean(x):.1f} ({', '.join(f'{score:.1f}' for score in x)})" if x else "–" for x in (ours, theirs)]
        difference = f"{np.mean(ours) - np.mean(theirs):+.1f}" if ours and theirs else "–"
        if min(len(ours), len(theirs)) > 1:
            difference += f" ± {np.sqrt(sum(np.var(x, ddof=1) / len(x) for x in (ours, theirs))):.1f}"
        rows.append(
            f"| {env_id} | {data} | {learner} | {json.loads(equal)['steps']:,} | {' | '.join(cells)} | {difference} |"
        )
    return "\n".join(rows)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--learner", choices=TWINS, help="train and play this learner of d3rlpy's")
    parser.add_argument("--ours", nargs="+", default=[], metavar="RUN", help="take these finished runs of ours")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "referee.jsonl", help="one line per finished run"
    )
    options, flags = parser.parse_known_args(argv)
    if flags and not options.learner:
        stop(f"{flags[0]} is a flag of a learner; say which one with --learner {'|'.join(TWINS)}.")
    if not (options.learner or options.ours or options.table):
        stop("nothing to do; give --learner, --ours or --table.")
    todo = [lambda lines: run(options.learner, flags, lines)] if options.learner else []
    todo += [lambda lines, folder=folder: ours(folder, lines) for folder in options.ours]
    for step in todo:
        line = step(read(options.out))
        if line is None:
            print(f"finished before, skipped: see {options.out}")
            continue
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{line['by']} {line['learner']} {line['args']['env_id']} seed {line['args']['seed']}: {line['score']:.1f}"
        )
    if options.table:
        print(table(read(options.out)))


if __name__ == "__main__":
    try:
        main()
    except d4rl.DatasetError as error:
        stop(str(error))
