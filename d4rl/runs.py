"""The runs of the training scripts: command line, folder, logs, and what a killed run resumes from.

A run's folder holds `checkpoint.pt` (all that --resume, --evaluate and --quantizer-from need) and the checkpoint
before it, `args.json`, `metrics.csv`, TensorBoard's events and, once it is finished, `result.json`. Each file is
replaced in one step, so a kill leaves the old one or the new one. `import d4rl` does not load this module: it needs
PyTorch.
"""

import errno
import io
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
import zipfile
from dataclasses import MISSING, asdict, fields, replace
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import torch
import tyro
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from d4rl import __version__, codes, evaluation, seeds
from d4rl.data import Spaces, fingerprint, get_dataset, qlearning_dataset
from d4rl.tasks import UsageError, plain_name

# What may change when a run is resumed, what when it is played, and what a quantizer is made of.
RESUME = {"resume", "steps", "dataset_path", "device", "cuda_graph", "threads", "track", "capture_video"}
PLAY = {"evaluate", "dataset_path", "device", "threads", "capture_video", "seed", "eval_episodes"}
QUANTIZER = {"vqvae_steps", "vqvae_hidden_dim", "codebook_size", "embedding_dim", "codebook_form", "revive"}
QUANTIZER |= {"condition_on_obs"}
# Highest values where a script gives none (else 1e9): beyond them, memory runs out without a word.
HIGHEST = {"batch_size": 2**20, "codebook_size": 2**16, "eval_episodes": 10_000, "threads": 2**10, "num_seeds": 1000}
HIGHEST |= dict.fromkeys(("hidden_dim", "vqvae_hidden_dim", "embedding_dim"), 2**13)
HIGHEST |= dict.fromkeys(("num_actions", "num_candidates", "num_draws"), 2**13)
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


# --- the way out ---
# What the user can mend, by its number; any other error of the system is a bug and keeps its traceback.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BARRED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE}


def guard(main, parse_args):
    """`main(parse_args())`, for a script's last line: what the user can mend ends in one sentence, not in a traceback.

    With --num-seeds, this process calls no `main`, but starts one per seed that does.

    The exit code is 2 after an error, 143 after a scheduler's SIGTERM. Ctrl-C ends the process by its signal, which
    shells report as 130 and which stops their loops too; after the first one, a second ends it at once.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        args = parse_args()
        if getattr(args, "num_seeds", 1) == 1:
            main(args)
        else:
            _make_folder(args.runs_dir, args.runs_dir)
            seeds.train(args)
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(f"stopped{_how_to_go_on()}", file=sys.stderr)
        if stop.args:
            sys.exit(128 + signal.SIGTERM)
        sys.excepthook = lambda *_: None
        raise
    except Exception as error:
        problem = _problem(error)
        if not problem:
            raise
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def _terminate(number, frame):
    raise KeyboardInterrupt("SIGTERM")


def _how_to_go_on() -> str:
    """The end of a sentence: the command that resumes the run of this process, if it has one."""
    if Run.latest is None:
        return "."
    return "; go on with: " + shlex.join(["python", sys.argv[0], "--resume", str(Run.latest.folder)])


def _problem(error: Exception) -> str:
    """What is wrong and what to do, of an error that is no bug."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UsageError):
        return text
    if isinstance(error, OSError) and error.errno in FULL | BARRED:
        advice = "make room" if error.errno in FULL else "it has to be readable and writable"
        return f"{error.filename or 'disk'}: {os.strerror(error.errno)}; {advice}{_how_to_go_on()}"
    if text.startswith("Error(s) in loading state_dict"):
        return f"the run has other networks than this script: use the version that trained it ({text[:200]})."
    words = "out of memory", "allocate memory", "ALLOC_FAILED"
    no_memory = isinstance(error, RuntimeError) and any(word in text for word in words)
    if no_memory or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory ({text[:200]}); use smaller sizes, less data or another --device{_how_to_go_on()}"
    return ""


# --- command line ---
def parse_args(cls, script: str, settings: dict, limits: dict, play: tuple = (), argv: list[str] | None = None):
    """The command line as an instance of the dataclass `cls`: a flag wins over the run that it names (--resume,
    --evaluate, --quantizer-from), and that over the task's settings.

    Args:
        script: its name, without .py.
        settings: for how an env-id begins (or a tuple of these; of Minari's, its `plain_name`), other defaults; a
            later entry wins. If none is for it, a line says so.
        limits: lowest and highest value of a number; else counts start at 1 and other numbers at 0 (up to `HIGHEST`).
        play: what --evaluate may change besides `PLAY`.

    Raises:
        UsageError: a value out of its limits, a folder that holds no such run, a flag that contradicts it.
    """
    argv = sys.argv[1:] if argv is None else argv
    early = tyro.cli(cls, args=[word for word in argv if word not in ("-h", "--help")])
    defaults, fixed, folder = {"env_id": early.env_id}, {}, early.resume or early.evaluate
    name = plain_name(early.env_id)
    for begin, values in settings.items():
        if unknown := values.keys() - {field.name for field in fields(cls)}:
            raise UsageError(f"SETTINGS has {', '.join(sorted(unknown))}, which Args has not: take it out of one.")
        if name.startswith(begin):
            defaults |= values
    if len(defaults) == 1 and not folder:
        names = {name for values in settings.values() for name in values if not name.startswith("eval")}
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names) if not name.endswith("steps"))
        print(f"{early.env_id} has no settings of its own, so it has the defaults; worth trying: {flags}.")
    if folder:
        defaults = read_run(folder, script, cls)["args"]
        free = RESUME if early.resume else _free(play, defaults)
        fixed = {name: value for name, value in defaults.items() if name not in free}
    elif folder := getattr(early, "quantizer_from", ""):
        saved = read_run(folder, stage="quantizer")["args"]
        fixed = {name: value for name, value in saved.items() if name in QUANTIZER}
    args = tyro.cli(cls, args=argv, default=cls(**defaults | fixed))
    for name, value in asdict(args).items():
        flag = f"--{name.replace('_', '-')} is {value}"
        if name in fixed and value != fixed[name]:
            raise UsageError(f"{flag}, but {fixed[name]} in {folder}, and has to stay so; leave the flag out.")
        low, high = limits.get(name, (1 if isinstance(value, int) else 0, HIGHEST.get(name, 1e9)))
        if type(value) in (int, float) and not low <= value <= high:
            raise UsageError(f"{flag}; it has to be at least {low:,g} and at most {high:,.12g}.")
    if (shrink := args.lr * getattr(args, "weight_decay", 0)) >= 1:
        problem = f"--weight-decay {args.weight_decay:g} times --lr {args.lr:g} is {shrink:g}"
        raise UsageError(f"{problem}, so that an update would take away whole weights; it has to be below 1.")
    if early.resume:
        _check_steps(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU that PyTorch can use, and there is none; use --device cpu.")
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return replace(args, device=auto if args.device == "auto" else args.device)


def _check_steps(args):
    """Whether a run with other --steps would have been the same so far: not if its learning rates depend on them."""
    saved = read_run(args.resume)
    learner, steps = saved["stages"].get("learner"), saved["args"]["steps"]
    if learner and "optimizer" not in learner:  # as those that come with the repository
        raise UsageError(f"{args.resume} is a trained policy without what training goes on from; leave --resume out.")
    if learner is None or args.steps == steps:
        return
    rates = [group["lr"] for group in learner["optimizer"]["param_groups"]]
    if rates != learner["first_rates"]:
        problem = f"the learning rate of {args.resume} falls towards update {steps}"
        raise UsageError(f"--steps has to stay {steps}: {problem}; leave the flag out, or start a new run.")
    if args.steps < learner["step"]:
        raise UsageError(f"--steps is {args.steps}, but {args.resume} has done {learner['step']}; give that or more.")


def _free(play: tuple, saved: dict) -> set:
    """What may change when a run is played. A temperature that --kl has found is part of its weights."""
    return PLAY | set(play) - ({"temperature"} if saved.get("kl") else set())


def change(cls, args: dict, play: tuple, changes: dict):
    """The arguments `args` of a finished run as an instance of `cls`, on the CPU, with `changes` to them.

    Raises:
        UsageError: a change of what --evaluate may not change (`PLAY` and `play`), or to an unknown choice.
    """
    for name, value in changes.items():
        if name not in _free(play, args):
            raise UsageError(f"{name} is no argument that a trained policy can change; leave it out.")
        choices = get_args(get_type_hints(cls)[name])
        if choices and value not in choices:
            raise UsageError(f"{name} is {value!r}; it has to be one of {', '.join(choices)}.")
    return cls(**{**args, "device": "cpu", **changes})


def prepare(args):
    """Threads, and an environment that works.

    Raises:
        UsageError: what is missing to play, or to record a video; a robomimic run is to be played with other data.
    """
    if args.num_seeds != 1:
        raise UsageError(f"num_seeds is {args.num_seeds}, but `main` trains one seed: call it once for each.")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # below 1e-38 is 0: such numbers slow some processors
    torch.set_float32_matmul_precision("medium" if args.bf16 else "highest")  # weights and sums stay float32
    if args.bf16 and args.device == "cpu":
        thirds = torch.full((64, 64), 1 / 3)
        if abs(float((thirds @ thirds)[0, 0]) - 64 / 9) < 1e-3:  # as exact as without
            print("--bf16 changes nothing here: this processor has no units for it.")
    spec = evaluation.playable_task(args.env_id, args.dataset_path or None, args.capture_video)
    if args.evaluate and spec.is_robomimic:  # its environment is the one that its file describes
        dataset = get_dataset(args.env_id, args.dataset_path or None)
        found = torch.as_tensor(fingerprint(qlearning_dataset(args.env_id, dataset=dataset)))
        _check_data(args.evaluate, Spaces(*read_run(args.evaluate)["spaces"]).fingerprint, found)


# --- folder ---
def read_run(folder: str | Path, script: str = "", cls=None, stage: str = "") -> dict:
    """The checkpoint of a run: of this script with these arguments, or of any if only a stage is wanted.

    Arguments that are younger than the run have their default, and a line says so.

    Raises:
        UsageError: no checkpoint, one of another script or version, or `stage` is not finished.
    """
    path = Path(folder, CHECKPOINT)
    saved, problem = _read(path)
    fallback = ""
    if problem and path.with_name(PREVIOUS).exists():
        saved, _ = _read(path.with_name(PREVIOUS))
        fallback = f"{path}: {problem}"
    if not saved:
        raise UsageError(f"{folder} is not the folder of a run ({path}: {problem}); give one as runs/NAME.")
    known = {field.name: field.default for field in fields(cls)} if cls else saved["args"]
    younger = {name: value for name, value in known.items() if name not in saved["args"]}
    foreign = saved["args"].keys() - known.keys() or MISSING in younger.values()
    if script and saved["script"] != script or foreign:
        raise UsageError(f"{folder} is a run of {saved['script']}.py, or of another version of it; use that one.")
    if len(saved["spaces"]) != len(Spaces._fields):
        raise UsageError(f"{folder} is a run of another version of {saved['script']}.py; use that one.")
    if stage and not saved["stages"].get(stage, {}).get("finished"):
        reason = f" ({fallback}; the one before it is older)" if fallback else ""
        problem = f"{folder} has no finished {stage}{reason}"
        raise UsageError(f"{problem}; go on with --resume {folder}, or name another run.")
    if younger:
        saved["args"] |= younger
        told = ", ".join(f"{name} {value!r}" for name, value in younger.items())
        _say(f"{folder} is older than these arguments; they have their defaults: {told}.")
    if fallback:
        row = (saved["history"] or [{"stage": "start", "step": 0}])[-1]
        _say(f"{fallback}; using {PREVIOUS}, which is of {row['stage']}, update {row['step']}.")
    return saved


def read_quantizer(folder: str | Path, spaces: Spaces) -> dict:
    """The checkpoint of a run whose finished quantizer can be used with these spaces.

    Raises:
        UsageError: as `read_run`; other observations, actions or bounds of actions (rewards are free).
    """
    saved = read_run(folder, stage="quantizer")
    theirs, ours = Spaces(*saved["spaces"]), spaces.to("cpu")
    same = torch.equal(theirs.fingerprint[0], ours.fingerprint[0])
    same = same and torch.equal(theirs.action_low, ours.action_low)
    if not (same and torch.equal(theirs.action_high, ours.action_high)):
        raise UsageError(f"the quantizer in {folder} was trained on other data; leave --quantizer-from out.")
    return saved


def _check_data(folder: str | Path, saved: torch.Tensor, found: torch.Tensor):
    """Whether the run's data is what was found, by their fingerprints."""
    if not torch.equal(saved, found):
        advice = "give the file that it was trained on with --dataset-path, or start a new run"
        raise UsageError(f"{folder} was trained on other data than what is there now; {advice}.")


def _read(path: Path) -> tuple[dict, str]:
    """A checkpoint, or {} and what is wrong with it. PyTorch itself does not look at the checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        saved = torch.load(path, weights_only=True, map_location="cpu")
        wanted = {"script", "args", "spaces", "stages", "history", "returns"}
        return (saved, "") if not damaged and wanted <= saved.keys() else ({}, "damaged, or not a run's")
    except (FileNotFoundError, NotADirectoryError):
        return {}, "no such file"
    except PermissionError:
        return {}, "may not be read"
    except Exception:  # whatever is in it: each fails in its own way
        return {}, "damaged, or not a run's"


@cache
def _say(sentence: str):
    """Print it, once."""
    print(sentence)


def to_batch(observation, spaces) -> torch.Tensor:
    """One observation or a batch of them as a tensor (B, observation size), on the device of `spaces`.

    Raises:
        UsageError: another size, which broadcasting would make fit.
    """
    obs = torch.as_tensor(np.atleast_2d(observation), dtype=torch.float32, device=spaces.obs_mean.device)
    if obs.ndim != 2 or obs.shape[1] != len(spaces.obs_mean):
        wanted = f"({len(spaces.obs_mean)},), or with a batch in front"
        raise UsageError(f"an observation has shape {np.shape(observation)}, but the policy's have {wanted}.")
    return obs


def _write(path: Path, content: bytes, keep: str = ""):
    """Replace a file in one step, also if the machine goes down; `keep`: a name for what was there."""
    new = path.with_suffix(".tmp")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a full disk: what was written would keep it full
        new.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    if keep and path.exists():
        os.replace(path, path.with_name(keep))  # killed here, `read_run` takes that one
    os.replace(new, path)


def _make_folder(folder: str | Path, runs_dir: str, exist_ok: bool = True):
    try:
        Path(folder).mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        problem = f"--runs-dir {runs_dir}: no folder can be made there ({error.strerror})"
        raise UsageError(f"{problem}; name another one.") from error


class Run:
    """A run that trains, in a new folder below `args.runs_dir` or, with `args.resume`, in its own.

    Args:
        spaces: a `d4rl.Spaces` of tensors; it becomes part of the checkpoint.

    Raises:
        UsageError: a folder that another process trains in; other data than before; Weights & Biases does not work.
    """

    latest: "Run | None" = None  # the one that this process trains, once it can be resumed

    def __init__(self, script: str, args, spaces: Spaces):
        self.args, self.spaces = args, spaces
        name = f"{args.env_id.replace('/', '-')}__{script}__{args.seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
        self.folder = Path(args.resume or Path(args.runs_dir, name))
        self.saved = {"script": script, "args": {}, "spaces": tuple(spaces), "stages": {}, "history": [], "returns": []}
        self.damaged = False  # whether checkpoint.pt is, and the one before it must not be replaced by it
        if getattr(args, "quantizer_from", "") and not args.resume:
            self._take_quantizer(args.quantizer_from)
        _make_folder(self.folder, args.runs_dir, exist_ok=bool(args.resume))
        try:
            self._lock()
            if args.resume:
                self._continue()
            self.saved["args"] = asdict(args) | {"resume": ""}
            if args.track:
                self.wandb = self._track()
            self._save()
            _write(self.folder / "args.json", json.dumps({"script": script, **self.saved["args"]}, indent=2).encode())
            self.writer = SummaryWriter(self.folder)
        except Exception:
            if not args.resume:  # there is nothing in it yet
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._begin()
        Run.latest = self
        print(self.folder)

    def _lock(self):
        """Until `finish`, or the end of the process however it ends. In one process a later Run takes over."""
        self.lock = FileLock(self.folder / ".lock", timeout=0, thread_local=False, is_singleton=True)
        holder = self.folder / ".holder"
        try:
            self.lock.acquire()
        except Timeout:
            who = holder.read_text() if holder.exists() else "another process"
            raise UsageError(f"{self.folder} is in use by {who}; wait until it ends, or stop it.") from None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", None) in FULL | BARRED:
                raise
            _say(f"{self.folder} is on a drive without locks: take care that no other process trains in it.")
        since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        _write(holder, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())

    def _continue(self):
        """With what is saved, if the data is the same; the learner is finished if it has done the steps of now."""
        self.saved = read_run(self.folder)
        self.damaged = _read(self.folder / CHECKPOINT)[0] == {}
        saved = Spaces(*self.saved["spaces"])
        _check_data(self.folder, saved.fingerprint, self.spaces.fingerprint.cpu())
        self.spaces = saved.to(self.spaces.obs_mean.device)  # another processor may round the mean otherwise
        if learner := self.saved["stages"].get("learner"):
            learner["finished"] = learner["step"] == self.args.steps
            if not learner["finished"]:
                (self.folder / "result.json").unlink(missing_ok=True)

    def _take_quantizer(self, folder: str):
        other = read_quantizer(folder, self.spaces)
        self.saved["stages"]["quantizer"] = other["stages"]["quantizer"]
        self.saved["history"] = [row for row in other["history"] if row["stage"] == "quantizer"]

    def _track(self):
        """A run of Weights & Biases with the name of the folder; a resumed run goes on in it."""
        try:
            import wandb

            settings = dict(config=asdict(self.args), dir=self.folder, resume="allow")
            run = wandb.init(project="saq", id=self.folder.name, **settings)
            wandb.define_metric("*", step_metric="step")
            return run
        except ImportError:
            advice = 'pip install -e "./d4rl[wandb]" in the clone, or leave the flag out'
            raise UsageError(f"--track needs Weights & Biases, which is missing: {advice}.") from None
        except Exception as error:  # no login, a wrong key, no server: each fails in its own way
            problem = f"--track: Weights & Biases does not work here ({' '.join(str(error).split())[:300]})"
            advice = "log in with `wandb login`, set WANDB_MODE=offline, or leave the flag out"
            raise UsageError(f"{problem}; {advice}.") from error

    def _begin(self):
        """Of what the next row of metrics is about."""
        self.start, self.count, self.sums = time.time(), 0, {}

    def restore(self, stage: str, model, optimizer, generator: torch.Generator) -> int:
        """Put a stage back to its last checkpoint; return the number of its updates.

        A run may move to another kind of device, whose random numbers are others: it goes on with new ones.
        """
        self._begin()
        state = self.saved["stages"].get(stage)
        self.stage, self.step = stage, 0 if state is None else state["step"]
        self.first_rates = [group["lr"] for group in optimizer.param_groups]  # `_check_steps` compares with them
        if state is None:
            return 0
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:  # other networks, or otherwise grouped
            name = self.saved["script"]
            raise UsageError(f"{self.folder} is a run of another version of {name}.py; use that one.") from error
        before, now = state["device"], generator.device.type
        if before == now:
            generator.set_state(state["generator"])
            noise = state["noise"]  # of losses that draw some
            torch.set_rng_state(noise[0])
            if now == "cuda":
                torch.cuda.set_rng_state(noise[1])
        elif not state["finished"]:
            seed = self.args.seed * 10**9 + state["step"]
            generator.manual_seed(seed)
            torch.manual_seed(seed)
            _say(f"{stage}: on {before} up to update {state['step']}, on {now} from here on, with newly drawn batches.")
        return state["step"]

    def graphed(self, update, optimizer, generator: torch.Generator):
        """`update`, a function without arguments that makes one step and returns metrics; on a GPU as a CUDA graph.

        Its first calls are ordinary ones. Then its GPU work is recorded once, and from there on replayed as a whole:
        the same numbers, without Python's part, which takes most of the time. What is no work of the GPU is not
        repeated: neither a branch on a tensor's value nor a Python number that changes, except learning rates.

        Raises:
            UsageError: from the returned function, where `update` waits for the GPU, as `.item()` does.
        """
        cuda = generator.device.type == "cuda"
        for group in optimizer.param_groups:
            group["capturable"] = cuda
        if not cuda:
            return update
        rates = [torch.tensor(float(group["lr"]), device="cuda") for group in optimizer.param_groups]
        calls, graph, metrics, stream = 0, torch.cuda.CUDAGraph(), {}, torch.cuda.Stream()
        graph.register_generator_state(generator)

        def detached() -> dict[str, torch.Tensor]:  # else they hold what was computed until the next update has begun
            return {name: metric.detach() for name, metric in update().items()}

        def replay() -> dict[str, torch.Tensor]:
            nonlocal calls, metrics
            calls += 1
            numbers = [group["lr"] for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                rate.fill_(group["lr"])
                group["lr"] = rate
            if calls <= 3 or not self.args.cuda_graph:  # libraries set themselves up
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    metrics = detached()
                torch.cuda.current_stream().wait_stream(stream)
            else:
                if calls == 4:
                    try:
                        with torch.cuda.graph(graph):
                            metrics = detached()
                    except RuntimeError as error:
                        problem = f"this update cannot be replayed on a GPU ({str(error).splitlines()[0]})"
                        raise UsageError(
                            f"{problem}: a loss must not wait for it, as .item() does; or use --no-cuda-graph."
                        ) from error
                graph.replay()
            for group, number in zip(optimizer.param_groups, numbers, strict=True):
                group["lr"] = number
            return metrics

        return replay

    def log(self, metrics: dict[str, torch.Tensor]):
        """The metrics of one update; `record` takes their mean. Raises UsageError, soon, if one is not finite."""
        for name, metric in metrics.items():
            self.sums[name] = self.sums.get(name, 0) + metric.detach()
        self.count, self.step, self.last = self.count + 1, self.step + 1, time.time()
        if self.count % 100 == 0:  # looking costs time on a GPU
            self._check_finite(self.sums)

    def _check_finite(self, metrics: dict):
        """A sum that is not finite stays so: whatever comes after would be no result."""
        for name, value in metrics.items():
            value = torch.as_tensor(value, dtype=torch.float64)  # a number, or a list of them
            if not value.isfinite().all():
                problem = f"{name} is {value.max().item()} by update {self.step} of stage {self.stage}"
                advice = "a smaller --lr may help, or a look at the data: python -m d4rl check"
                raise UsageError(f"{problem}, and training has stopped ({self.folder} keeps what was saved); {advice}.")

    def record(self, stage: str, step: int, steps: int, measured: dict, model, optimizer, generator) -> dict:
        """A row of metrics.csv and a checkpoint, after update `step` of `steps`; returns what a bar shows.

        `measured` is added to the means of what was logged; its "returns" are those of an evaluation.
        """
        self._check_finite(self.sums | measured)
        seconds = self.saved["stages"].get(stage, {"seconds": 0.0})["seconds"] + time.time() - self.start
        row = {name: float(total) / self.count for name, total in self.sums.items()}
        row[f"time/{stage}_updates_per_second"] = self.count / (self.last - self.start)
        row |= {**measured, f"time/{stage}_seconds": seconds}
        device = generator.device.type
        self.saved["returns"] = row.pop("returns", [])
        self.saved["history"].append({"stage": stage, "step": step} | row)
        self.saved["stages"][stage] = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "noise": [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])],
            "device": device,
            "first_rates": self.first_rates,
            "step": step,
            "finished": step == steps,
            "seconds": seconds,
        }
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)
        if self.args.track:
            self.wandb.log({"stage": stage, "step": step} | row)
        self._save()
        self._begin()
        if step == steps and "vqvae/explained" in row:
            tqdm.write(codes.sentence(row, self.args.codebook_size, len(self.spaces.action_low)))
        return {name: f"{value:.3g}" for name, value in row.items() if not name.startswith(("time", "charts"))}

    def _save(self):
        """The checkpoint, with the one before it kept; then metrics.csv, which is its history as a table."""
        buffer = io.BytesIO()
        torch.save(self.saved, buffer)
        _write(self.folder / CHECKPOINT, buffer.getvalue(), keep="" if self.damaged else PREVIOUS)
        self.damaged = False
        columns = dict.fromkeys(name for row in self.saved["history"] for name in row)
        lines = [",".join(columns)]
        for row in self.saved["history"]:
            lines.append(",".join(str(row.get(name, "")) for name in columns))
        _write(self.folder / "metrics.csv", "".join(f"{line}\n" for line in lines).encode())

    def finish(self) -> float:
        """Write result.json and print the final score, which is returned."""
        scores = [row["eval/score"] for row in self.saved["history"] if "eval/score" in row]
        args, returns = self.saved["args"], self.saved["returns"]
        result = {
            "score": scores[-1],
            "best_score": max(scores),
            "returns": returns,
            "episodes": len(returns),
        }
        result |= {"env_id": args["env_id"], "script": self.saved["script"], "seed": args["seed"]}
        result["seconds"] = {stage: state["seconds"] for stage, state in self.saved["stages"].items()}
        result["versions"] = {name: version(name) for name in ("torch", "numpy", "gymnasium", "mujoco")}
        result["versions"]["d4rl"] = __version__
        _write(self.folder / "result.json", json.dumps(result, indent=2).encode())
        self.writer.close()
        self.lock.release(force=True)
        Run.latest = None
        print(f"score {scores[-1]:.1f} (best {max(scores):.1f}) over {len(returns)} episodes; {self.folder}")
        return scores[-1]
