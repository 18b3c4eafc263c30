"""What several test files need: the scripts as modules, a small dataset, a tiny run."""

import contextlib
import csv
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import torch

import d4rl

ROOT = Path(__file__).parents[1]
PATHS = {str(p.relative_to(ROOT))[:-3]: p for p in sorted([*ROOT.glob("saq_*.py"), *ROOT.glob("baselines/*.py")])}
HOPPER = (
    "hopper-medium-v2"  # an untrained policy falls within 100 steps, and its return shows every change of an action
)


def load(path: Path, name: str) -> ModuleType:
    """Import a file as the module `name`, so that baselines/bc.py is not mistaken for another `bc`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # tyro and dataclasses look their classes up here
    spec.loader.exec_module(module)
    return module


SCRIPTS = {  # by "saq_iql" or "baselines/bc"
    name: importlib.import_module(name) if path.parent == ROOT else load(path, name.replace("/", "_"))
    for name, path in PATHS.items()
}
SAQ = [name for name in SCRIPTS if name.startswith("saq_")]
FIRST_STAGE = dict.fromkeys(SAQ, "quantizer") | {"baselines/aquadem": "quantizer", "baselines/brac": "behaviour"}


def dataset(path: Path, env_id: str = HOPPER, rows: int = 300, seed: int = 0, **changes) -> Path:
    """A file of random transitions in D4RL's format: an episode of 50 steps and more; `changes` replace arrays."""
    rng, task = np.random.default_rng(seed), d4rl.task(env_id)
    arrays = {
        "observations": rng.standard_normal((rows, task.observation_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, task.action_size)).astype(np.float32),
        "rewards": rng.standard_normal(rows).astype(np.float32),
        "terminals": np.arange(rows) % 50 == 49,
        "timeouts": np.arange(rows) % 70 == 69,
    } | changes
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values
    return path


def tiny(script: str, steps: int = 20, eval_every: int = 10, episodes: int = 3) -> list[str]:
    """Flags of a run that takes a fraction of a second."""
    flags = {"steps": steps, "eval-every": eval_every, "eval-episodes": episodes, "hidden-dim": 32, "batch-size": 32}
    if script in SAQ:
        flags |= {"vqvae-steps": steps, "vqvae-hidden-dim": 32, "codebook-size": 8}
    elif script in FIRST_STAGE:
        flags |= {f"{FIRST_STAGE[script]}-steps": steps}
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def play(script: str, *flags) -> float:
    """The script's `main` with these flags, its output swallowed."""
    module = SCRIPTS[script]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return module.main(module.parse_args([str(flag) for flag in flags]))


def run(script: str, folder: Path, *flags) -> Path:
    """A tiny run in `folder`, on random data unless the flags name a task; returns the run's own folder."""
    data = []
    if "--env-id" not in flags and "--dataset-path" not in flags:
        folder.mkdir(parents=True, exist_ok=True)
        data = ["--env-id", HOPPER, "--dataset-path", dataset(folder / "data.hdf5")]
    before = runs(folder)
    play(script, *data, *tiny(script), *flags, "--runs-dir", folder)
    (new,) = set(runs(folder)) - set(before)
    return new


def runs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*__*") if path.is_dir())


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def metrics(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that measure time."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def same(a, b) -> bool:
    """Equal to the last bit, through dictionaries and lists of tensors and numbers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
