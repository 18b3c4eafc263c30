"""What several test files need: the scripts as modules, a small dataset, a tiny run."""

import contextlib
import csv
import importlib
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
SAQ = ["saq_bc", "saq_cql", "saq_iql", "saq_brac"]  # by name: a fork beside them is tested by its author
BASELINES = [f"baselines/{name}" for name in ("bc", "cql", "iql", "brac", "aquadem")]
PATHS = {name: ROOT / f"{name}.py" for name in [*SAQ, *BASELINES]}
FIRST_STAGE = dict.fromkeys([*SAQ, "baselines/aquadem"], "quantizer") | {"baselines/brac": "behaviour"}
HOPPER = "hopper-medium-v2"  # an untrained policy falls early, and its return shows every change of an action


def load(path: Path, name: str) -> ModuleType:
    """Import a file as the module `name`, so that baselines/bc.py is not mistaken for another `bc`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # tyro and dataclasses look their classes up here
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: importlib.import_module(name) for name in SAQ}  # by "saq_iql" or "baselines/bc"
SCRIPTS |= {name: load(PATHS[name], name.replace("/", "_")) for name in BASELINES}


def dataset(path: Path, env_id: str = HOPPER, rows: int = 300, seed: int = 0, **changes) -> Path:
    """A file of random transitions in D4RL's format: some 50 steps an episode; `changes` replace arrays."""
    rng, task = np.random.default_rng(seed), d4rl.task(env_id)
    arrays = {
        "observations": rng.standard_normal((rows, task.observation_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, task.action_size)).astype(np.float32),
        "rewards": rng.standard_normal(rows).astype(np.float32),
        "terminals": np.arange(rows) % 50 == 49,
        "timeouts": np.arange(rows) % 70 == 69,
    }
    with h5py.File(path, "w") as file:
        for key, values in (arrays | changes).items():
            file[key] = values
    return path


def tiny(script: str, steps: int = 20, eval_every: int = 10, episodes: int = 3) -> list[str]:
    """Flags of a run that takes a fraction of a second."""
    flags = {"steps": steps, "eval-every": eval_every, "eval-episodes": episodes}
    flags |= {"hidden-dim": 32, "batch-size": 32}
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
    if "--env-id" not in flags:
        folder.mkdir(parents=True, exist_ok=True)
        data = ["--env-id", HOPPER, "--dataset-path", dataset(folder / "data.hdf5")]
    before = run_folders(folder)
    play(script, *data, *tiny(script), *flags, "--runs-dir", folder)
    (new,) = set(run_folders(folder)) - set(before)
    return new


def run_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*__*") if path.is_dir())


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")


def weights(folder: Path, stage: str = "learner") -> dict:
    return checkpoint(folder)["stages"][stage]["model"]


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


def assert_same_run(ours: Path, unbroken: Path):
    """Weights, optimizers, generators, metrics, results: everything but the time that it took."""
    stages, wanted = checkpoint(ours)["stages"], checkpoint(unbroken)["stages"]
    assert stages.keys() == wanted.keys()
    for name, stage in wanted.items():
        different = [key for key in stage if key != "seconds" and not same(stages[name][key], stage[key])]
        assert not different and stages[name].keys() == stage.keys(), f"{name}: {different}"
    assert metrics(ours) == metrics(unbroken)
    assert {**result(ours), "seconds": 0} == {**result(unbroken), "seconds": 0}


class Killed(BaseException):
    """Nothing may catch it, as nothing can catch SIGKILL."""
