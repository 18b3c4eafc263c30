"""Compare forms of the quantizer's codebook: codes used, perplexity, held-out error, and the score of SAQ-BC on top.

    SAQ_STANDIN_DIR=path/to/files python benchmark/quantizer_forms.py --out quantizer_forms.jsonl

One process, one thread; a finished (dataset, form, seed) is skipped, so a killed run continues. `--table` prints the
Markdown table of docs/quantizer.md from the results.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.cluster.vq import kmeans2

sys.path.insert(0, str(Path(__file__).parents[1]))
import saq_bc  # noqa: E402
from vqvae import VQVAE  # noqa: E402

DATASETS = {
    "hopper-medium-expert": "hopper-medium-expert-v2",
    "door-human": "door-human-v0",
    "pen-expert": "pen-expert-v0",
}
FORMS = {  # codebook_form, k-means start, revive
    "paper (Eq. 11)": ("paper", False, False),
    "official": ("official", False, False),
    "EMA": ("ema", False, False),
    "EMA + k-means start": ("ema", True, False),
    "EMA + revival": ("ema", False, True),
}


@dataclass
class Args:
    out: str = "quantizer_forms.jsonl"  # one line per finished run
    vqvae_steps: int = 20_000  # updates of the quantizer
    steps: int = 10_000  # updates of SAQ-BC
    codebook_size: int = 32  # K
    embedding_dim: int = 16  # D
    seeds: tuple[int, ...] = (0, 1, 2)  # seeds
    only: str = ""  # run only datasets whose name contains this
    table: bool = False  # print the table of what is there, run nothing


def run(options: Args, dataset: str, form: str, seed: int) -> dict:
    """Train quantizer and SAQ-BC on one dataset and measure both."""
    codebook_form, kmeans, revive = FORMS[form]
    path = Path(os.environ["SAQ_STANDIN_DIR"], f"{dataset}.hdf5")
    args = saq_bc.parse_args(["--env-id", DATASETS[dataset], "--dataset-path", str(path), "--seed", str(seed)])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = saq_bc.load_data(args)
    obs_dim, action_dim = data["observations"].shape[1], data["actions"].shape[1]
    vqvae = VQVAE(obs_dim, action_dim, options.codebook_size, options.embedding_dim, 256, codebook_form, revive)
    if kmeans:
        index = data["train"][:10_000]
        with torch.no_grad():
            embeddings = vqvae.encoder(torch.cat([data["observations"][index], data["actions"][index]], 1))
            centres, _ = kmeans2(embeddings.numpy(), options.codebook_size, minit="++", seed=seed)
            vqvae.codebook.copy_(torch.from_numpy(centres))
            vqvae.embedding_sum.copy_(vqvae.codebook / options.codebook_size)
    args.codebook_size = options.codebook_size
    learner = saq_bc.make_learner(args, obs_dim)
    generator = torch.Generator().manual_seed(seed)

    def fit(steps: int, model: torch.nn.Module, loss: Callable):
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
        for _ in range(steps):
            index = data["train"][torch.randint(len(data["train"]), (args.batch_size,), generator=generator)]
            value, _ = loss(index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    fit(options.vqvae_steps, vqvae, partial(saq_bc.quantizer_loss, vqvae, data))
    data["codes"] = vqvae.encode(data["observations"], data["actions"])
    # The classifier leaves the held-out rows out as well: its accuracy there says how predictable the codes are.
    fit(options.steps, learner, partial(saq_bc.learner_loss, args, learner, data))
    heldout = data["heldout"]
    with torch.no_grad():
        log_policy = saq_bc.policy(args, learner, data["observations"][heldout])
    result = saq_bc.measure_quantizer(vqvae, data)
    result["accuracy"] = (log_policy.argmax(1) == data["codes"][heldout]).float().mean().item()
    for acting in ("sample", "greedy"):
        args.acting = acting
        result[f"score/{acting}"] = saq_bc.evaluate(args, vqvae, learner, data)["eval/score"]
    return {"dataset": dataset, "form": form, "seed": seed, **result}


def table(rows: list[dict]):
    """Mean and standard deviation over seeds, one line per dataset and form."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["dataset"], row["form"]].append(row)
    columns = ["codes_used", "perplexity", "heldout_error", "accuracy", "score/sample", "score/greedy"]
    print(
        "| stand-in | form | codes used | perplexity | held-out error | accuracy | SAQ-BC, sampled | SAQ-BC, greedy |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (dataset, form), group in groups.items():
        cells = []
        for column in columns:
            values = [row.get(column, row.get(f"vqvae/{column}")) for row in group]
            digits = 3 if column in ("heldout_error", "accuracy") else 1
            cells.append(f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}")
        print(f"| {dataset} | {form} ({len(group)} seeds) | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    options = tyro.cli(Args)
    if "SAQ_STANDIN_DIR" not in os.environ and not options.table:
        print("error: set SAQ_STANDIN_DIR to the folder of the stand-in datasets (docs/data.md).", file=sys.stderr)
        sys.exit(2)
    out = Path(options.out)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["dataset"], row["form"], row["seed"]) for row in rows}
    todo = [(d, f, s) for s in options.seeds for d in DATASETS if options.only in d for f in FORMS]
    for job in [] if options.table else todo:
        if job not in done:
            rows.append(run(options, *job))
            with out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    table(rows)
