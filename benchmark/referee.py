"""An outside referee: d3rlpy's learners on the batches and settings of ours, played by the same function.

    python benchmark/referee.py --learner iql --seed 0                              # d3rlpy's side
    python benchmark/referee.py --learner discrete_cql --quantizer-from runs/NAME   # on the codes of that run
    python benchmark/referee.py --ours runs/NAME runs/OTHER                         # our side: finished runs
    python benchmark/referee.py --table

All further flags are those of the script that the learner is compared with, and so are the defaults. It runs
in an environment of its own, with d3rlpy: docs/notes/referee.md.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from shared import ROOT, append, load, read_lines, stop, table  # noqa: E402

import d4rl  # noqa: E402
from d4rl import runs  # noqa: E402

OURS = {"bc": "baselines/bc", "iql": "baselines/iql", "cql": "baselines/cql", "discrete_cql": "saq_cql"}
RULES = {  # where d3rlpy has one form only
    "bc": ["--loss", "squared"],
    "iql": ["--policy-std", "shared"],
    "discrete_cql": ["--backup", "argmax", "--acting", "greedy"],
}
PLACES = set("dataset_path device threads eval_every runs_dir resume evaluate quantizer_from".split())
PLACES |= set("vqvae track capture_video cuda_graph script".split())  # "vqvae": quantizer_from of old
INSTALL = "pip install -r benchmark/referee_requirements.txt, then pip install --no-deps d3rlpy==2.8.1"


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
        shared |= dict(learning_rate=args.lr, n_critics=1, target_update_interval=never)
        return shared | dict(alpha=args.conservatism)
    shared |= dict(actor_learning_rate=args.lr, critic_learning_rate=args.lr)
    shared |= dict(tau=args.target_rate, n_critics=2)
    if learner == "iql":
        return shared | dict(expectile=args.expectile, weight_temp=1 / args.temperature, max_weight=100.0)
    return shared | dict(
        temp_learning_rate=args.lr if args.learn_temperature else 0.0,
        initial_temperature=args.temperature,
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
    config, encoders, optimizers = {
        "bc": ("BC", "encoder", "optim"),
        "iql": ("IQL", "actor_encoder critic_encoder value_encoder", "actor_optim critic_optim"),
        "cql": ("CQL", "actor_encoder critic_encoder", "actor_optim critic_optim temp_optim"),
        "discrete_cql": ("DiscreteCQL", "encoder", "optim"),
    }[learner]
    falling = optimizers if args.anneal_lr else "actor_optim" if learner == "iql" else ""  # as in ours
    schedule = CosineAnnealingLRFactory(T_max=args.steps)
    adam = d3rlpy.optimizers.AdamFactory(lr_scheduler_factory=schedule)
    factories = dict.fromkeys((f"{name}_factory" for name in encoders.split()), encoder)
    factories |= dict.fromkeys((f"{name}_factory" for name in falling.split()), adam)
    d3rlpy.seed(args.seed)
    configuration = getattr(d3rlpy.algos, f"{config}Config")(**settings(learner, args), **factories)
    algorithm = configuration.create(args.device == "cuda")
    algorithm.create_impl((obs_dim,), num_actions)
    return algorithm


def minibatch(learner: str, batch):
    """Transitions as d3rlpy takes them: float32 columns, codes as well. None of these uses trajectories."""
    from d3rlpy.dataset import TransitionMiniBatch

    action = batch.code if learner == "discrete_cql" else batch.action
    names = ("observations", "actions", "next_observations", "rewards", "terminals")
    columns = (batch.obs, action, batch.next_obs, batch.reward, batch.terminal)
    arrays = {name: x.float().view(len(x), -1).cpu().numpy() for name, x in zip(names, columns, strict=True)}
    intervals = np.ones((len(batch.obs), 1), dtype=np.float32)  # environment steps per transition
    return TransitionMiniBatch(**arrays, next_actions=arrays["actions"], intervals=intervals, transitions=[])


def train(learner: str, args, algorithm, data):
    """`steps` updates on the very batches that our script draws with this seed."""
    from d3rlpy.torch_utility import soft_sync

    generator = torch.Generator(args.device).manual_seed(args.seed)
    algorithm.set_grad_step(1)  # at 0 discrete_cql copies its target network
    for _ in tqdm(range(args.steps), desc=f"d3rlpy {learner}", mininterval=1):
        index = torch.randint(len(data.obs), (args.batch_size,), generator=generator, device=args.device)
        algorithm.update(minibatch(learner, type(data)(*(array[index] for array in data))))
        if learner == "discrete_cql":  # whose target network can only be copied; the others' follows, as ours
            modules = algorithm.impl.modules
            soft_sync(modules.targ_q_funcs, modules.q_funcs, args.target_rate)


def run(learner: str, flags: list[str], finished: list[dict]) -> dict | None:
    """Train and play one of d3rlpy's learners; None if it is among the `finished`."""
    script = load(OURS[learner])
    args = script.parse_args([*flags, *RULES.get(learner, [])])
    if args.weight_decay:
        stop("d3rlpy's learners are built without weight decay; add --weight-decay 0, to our run as well.")
    name = named("d3rlpy", learner, asdict(args))
    if any(line | name == line for line in finished):
        return None
    runs.prepare(args)
    task = d4rl.task(args.env_id)
    if learner == "discrete_cql" and not args.quantizer_from:
        stop("discrete_cql learns on codes; give --quantizer-from RUN, the folder of a run with a quantizer.")
    size = args.codebook_size if learner == "discrete_cql" else task.action_size
    algorithm = make_algorithm(learner, args, task.observation_size, size)
    data, spaces = script.load_data(args)
    vqvae = None
    if learner == "discrete_cql":
        try:
            saved = runs.read_quantizer(args.quantizer_from, spaces)
        except d4rl.UsageError as error:
            stop(error)
        vqvae, _ = script.make_models(args, spaces)
        vqvae.load_state_dict(saved["stages"]["quantizer"]["model"])
        data = data._replace(code=vqvae.encode(data.obs, data.action))
    start = time.time()
    train(learner, args, algorithm, data)
    seconds = time.time() - start

    @torch.no_grad()
    def act(obs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """(B, obs_dim) -> (B, action_dim); a code is decoded in its state."""
        obs = spaces.standardise(runs.to_batch(obs, spaces))
        action = torch.as_tensor(algorithm.predict(obs.cpu().numpy()), device=args.device)
        if vqvae:
            action = vqvae.decode(obs, action)
        return spaces.unscale(action).cpu().numpy()

    played = script.evaluate(args, act)
    versions = {package: version(package) for package in ("d3rlpy", "torch", "numpy", "gymnasium", "mujoco")}
    name |= {"score": played["eval/score"], "returns": played["returns"]}
    return name | {"seconds": seconds, "versions": versions}


# --- our side ---
def ours(folder: str, finished: list[dict]) -> dict | None:
    """The score of a finished run of ours, played again if it acts otherwise; None if `finished` has it."""
    try:
        args, result = (json.loads(Path(folder, name).read_text()) for name in ("args.json", "result.json"))
        learner = {Path(script).name: learner for learner, script in OURS.items()}[args["script"]]
    except (OSError, ValueError, TypeError, KeyError):
        scripts = ", ".join(f"{script}.py" for script in OURS.values())
        stop(f"{folder} is not the folder of a finished run that has a referee; give one of {scripts}.")
    again = args.get("acting", "greedy") != "greedy"  # d3rlpy acts greedily
    args |= {"acting": "greedy"} if again else {}
    name = named("ours", learner, args)
    if any(line | name == line for line in finished):
        return None
    script, score = load(OURS[learner]), result["score"]
    if again:
        score = script.main(script.parse_args(["--evaluate", folder, "--acting", "greedy"]))
    return name | {"score": score, "versions": result["versions"]}


# --- results ---
def named(by: str, learner: str, args: dict) -> dict:
    """What says which run it is; of its arguments those that decide a result."""
    kept = {name: value for name, value in args.items() if name not in PLACES}
    data = Path(args["dataset_path"]).name or "bundled"
    return {"study": "referee", "by": by, "learner": learner, "data": data, "args": kept}


def runs_table(lines: list[dict]) -> str:
    """Ours beside d3rlpy's where all arguments but the seed are equal; mean scores over seeds.

    The difference is ours - d3rlpy's, with its standard error over seeds where both sides have at least two.
    """
    groups = defaultdict(lambda: {"ours": {}, "d3rlpy": {}})
    for line in lines:
        equal = json.dumps({name: x for name, x in line["args"].items() if name != "seed"}, sort_keys=True)
        group = groups[line["args"]["env_id"], line["data"], line["learner"], equal]
        group[line["by"]][line["args"]["seed"]] = line["score"]
    rows = []
    for (env_id, data, learner, equal), sides in sorted(groups.items()):
        ours, theirs = ([scores[seed] for seed in sorted(scores)] for scores in sides.values())
        both = []
        for scores in (ours, theirs):
            each = ", ".join(f"{score:.1f}" for score in scores)
            both.append(f"{np.mean(scores):.1f} ({each})" if scores else "–")
        difference = f"{np.mean(ours) - np.mean(theirs):+.1f}" if ours and theirs else "–"
        if min(len(ours), len(theirs)) > 1:
            difference += f" ± {np.sqrt(sum(np.var(x, ddof=1) / len(x) for x in (ours, theirs))):.1f}"
        rows.append([env_id, data, learner, f"{json.loads(equal)['steps']:,}", *both, difference])
    return table(["task", "data", "learner", "updates", "ours", "d3rlpy", "difference"], rows)


def main(argv: list[str] | None = None):
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--learner", choices=OURS, help="train and play this learner of d3rlpy's")
    parser.add_argument("--ours", nargs="+", default=[], metavar="RUN", help="take these finished runs")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "referee.jsonl", help="a line per run")
    options, flags = parser.parse_known_args(argv)
    if flags and not options.learner:
        stop(f"{flags[0]} is a flag of a learner; say which one with --learner {'|'.join(OURS)}.")
    if not (options.learner or options.ours or options.table):
        stop("nothing to do; give --learner, --ours or --table.")
    todo = [(run, options.learner, flags)] if options.learner else []
    for step, *what in todo + [(ours, folder) for folder in options.ours]:
        line = step(*what, read_lines(options.out))
        if line is None:
            print(f"finished before, skipped: see {options.out}")
            continue
        append(options.out, line)
        args = line["args"]
        print(f"{line['by']} {line['learner']} {args['env_id']} seed {args['seed']}: {line['score']:.1f}")
    if options.table:
        print(runs_table(read_lines(options.out)), end="")


if __name__ == "__main__":
    try:
        main()
    except d4rl.UsageError as error:
        stop(str(error))
