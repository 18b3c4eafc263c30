"""Every script still learns: a short run each, on the bundled demonstrations with a trap beside every step.

At each observation the data has two actions, equally often: the demonstrator's, which pays 1, and one towards
a corner, which pays 3 and ends the episode. With a discount of 0.9 going on is worth 10, so who learns values
goes on, and who imitates acts half-way between the two. Without the next value, with one behind a terminal,
or with a sign wrong, the trap looks better. docs/notes/learning-test.md has what seeds and broken scripts do.

A line of BROKEN reads `old => new`; ` && ` joins changes made at once, and \\n stands for the end of a line.
"""

import contextlib
import csv
import io

import h5py
import numpy as np
import pytest
from common import PATHS, ROOT, SAQ, load

import d4rl
from d4rl.maze2d_large_demos import ENV_ID, controller, dense_way

TRAP = np.array([-0.9, -0.9], np.float32)
DEMONSTRATIONS = d4rl.get_dataset(ENV_ID)
ON_THE_WAY = np.tile(np.arange(800) < 360, 3)  # afterwards the ball is at the goal
FLAGS = (
    "--lr 3e-3 --steps 600 --eval-every 300 --eval-episodes 1 --device cpu --hidden-dim 64 --batch-size 128"
)
VQVAE = "--vqvae-steps 600 --vqvae-hidden-dim 64 --codebook-size 16"
VALUES = "--discount 0.9 --target-rate 0.05"
OWN = {  # by script; vqvae.py in saq_bc.py
    "vqvae": f"{VQVAE} --codebook-size 4 --steps 300",  # few: the decoder needs the state
    "saq_bc": f"{VQVAE} --no-condition-on-obs",  # the policy alone sees the state
    "saq_cql": f"{VQVAE} {VALUES} --conservatism 0.2",
    "saq_iql": f"{VQVAE} {VALUES} --expectile 0.9 --temperature 0.5",
    "saq_brac": f"{VQVAE} {VALUES} --behaviour-weight 0.3 --entropy-weight 0.3",
    "baselines/bc": "",
    "baselines/cql": f"{VALUES} --conservatism 0.2 --num-actions 4",
    "baselines/iql": f"{VALUES} --expectile 0.9 --temperature 0.5",
    "baselines/brac": f"{VALUES} --behaviour-steps 300 --behaviour-weight 0.3 --entropy-weight 0.3",
    "baselines/aquadem": f"{VALUES} --quantizer-steps 400 --num-candidates 8 --conservatism 0.2",
}
BOUNDS = {  # what ten seeds are within, with a margin
    "vqvae": {"unexplained": (0, 0.75), "heldout_error": (0, 0.15)},
    "saq_bc": {"unexplained": (0, 0.65)},
    "saq_cql": {"unexplained": (0, 0.75), "q": (4.2, 5.3)},
    "saq_iql": {"unexplained": (0, 0.45), "q": (4.5, 5.0)},
    "saq_brac": {"unexplained": (0, 0.55), "q": (4.5, 5.4)},
    "baselines/bc": {"unexplained": (0, 0.75)},
    "baselines/cql": {"unexplained": (0, 1.0), "q": (4.2, 5.3)},
    "baselines/iql": {"unexplained": (0, 0.4), "q": (4.3, 5.0)},
    "baselines/brac": {"unexplained": (0, 1.5), "q": (3.8, 5.4)},
    "baselines/aquadem": {"unexplained": (0, 1.0), "q": (4.3, 5.4), "heldout_error": (0, 0.08)},
}
TD = r"""
(target.detach() - q) => (target.detach() + q)
reward + discount => -reward + discount
reward + discount * (1 - terminal) * next_value => reward + 0 * next_value
* (1 - terminal) =>
(1 - terminal) => terminal
slow.lerp_(fast, rate) => pass
"""
SHUFFLED = r"""
encode(data.obs, data.action)) => encode(data.obs, data.action)[torch.randperm(len(data.obs))])
"""
BROKEN = {
    "vqvae": r"""
straight_through = embedding + (quantized - embedding).detach() => straight_through = quantized
decoder(self._join(obs => decoder(self._join(0 * obs && decoder(self._join(obs => decoder(self._join(0 * obs
straight_through)) - action) => straight_through)) + action)
loss = reconstruction + commitment => loss = reconstruction - commitment
- 2 * embedding => + 2 * embedding
vqvae.move_codebook(embedding, code) => pass
""",
    "saq_iql": TD
    + SHUFFLED
    + r"""
args.expectile)  # => 1 - args.expectile)  #
advantage / temperature => -advantage / temperature
advantage / temperature => 0 * advantage
temperature + log_behaviour => temperature
v_loss + q_loss + behaviour_loss => q_loss + behaviour_loss
""",
    "saq_bc": SHUFFLED
    + r"""
loss = F.cross => loss = -F.cross
learner.policy(batch.obs) => learner.policy(batch.obs.flip(0))
""",
    "saq_cql": TD
    + SHUFFLED
    + r"""
q.logsumexp(1) - q.gather(1, code[:, None]).squeeze(1) => q.logsumexp(1)
q.logsumexp(1) - q.gather => -q.gather
+ args.conservatism => - args.conservatism
0.5 * q_loss => 0 * q_loss
+ args.conservatism * penalty =>
""",
    "saq_brac": TD
    + SHUFFLED
    + r"""
return -regularised_value => return regularised_value
q + beta * log_behaviour => q
- alpha * log_pi)) => + alpha * log_pi))
return q_loss + behaviour_loss + pi_loss => return behaviour_loss + pi_loss
return q_loss + behaviour_loss + pi_loss => return q_loss + pi_loss
return q_loss + behaviour_loss + pi_loss => return q_loss + behaviour_loss
""",
    "baselines/bc": r"""
= -log_density => = log_density
learner.policy(batch.obs) => learner.policy(batch.obs.flip(0))
(action - mean.tanh()) => (action + mean.tanh())
""",
    "baselines/iql": TD
    + r"""
args.expectile)  # => 1 - args.expectile)  #
(target_q - v.detach()) => (v.detach() - target_q)
(target_q - v.detach()) => 0 * (target_q - v.detach())
return -(weight => return (weight
v_loss + q_loss + policy_loss => q_loss + policy_loss
""",
    "baselines/brac": TD
    + r"""
policy_loss = -value => policy_loss = value
q + beta * log_behaviour => q
- alpha * log_pi\n => + alpha * log_pi\n
return q_loss + policy_loss => return policy_loss
loss = -log_density => loss = log_density
""",
    "baselines/cql": TD
    + r"""
(log_integral - data_q) => log_integral
+ args.conservatism => - args.conservatism
0.5 * q_loss => 0 * q_loss
+ args.conservatism * penalty =>
-(policy_q + temperature => (policy_q + temperature
""",
    "baselines/aquadem": SHUFFLED
    + r"""
(target - data_q) => (target + data_q)
batch.reward + args => -batch.reward + args
* next_v\n => * 0 * next_v\n
* (1 - batch.terminal) =>
(1 - batch.terminal) => batch.terminal
slow.lerp_(fast, rate) => pass
0.5 * q_loss => 0 * q_loss
args.conservatism * penalty => -args.conservatism * penalty
(-args.softmin * log_mean) => (args.softmin * log_mean)
""",
}
CASES = [(name, line) for name in BROKEN for line in BROKEN[name].splitlines() if line]


def with_traps(path):
    """The demonstrations, then a one-step episode for each of their rows: a file in D4RL's format."""
    rows = len(DEMONSTRATIONS["actions"])
    traps = TRAP + 0.05 * np.random.default_rng(0).standard_normal((rows, 2))
    arrays = {
        "observations": np.tile(DEMONSTRATIONS["observations"], (2, 1)),
        "actions": np.concatenate([DEMONSTRATIONS["actions"], traps]).astype(np.float32),
        "rewards": np.repeat([1.0, 3.0], rows).astype(np.float32),
        "terminals": np.repeat([False, True], rows),
        "timeouts": np.concatenate([DEMONSTRATIONS["timeouts"], np.zeros(rows, bool)]),
    }
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values
    return path


def changed(path, changes, folder):
    """A copy of the file as a module, with each (old, new) of `changes` that it has."""
    source = path.read_text()
    for old, new in changes:
        source = source.replace(old, new, 1)
    (folder / path.name).write_text(source)
    return load(folder / path.name, f"learning_{path.stem}")


def learn(name, folder, seed=0, changes=()) -> dict[str, float]:
    """What a run of the script, changed, reaches. `q` and `heldout_error` (the quantizer's) where logged.

    unexplained: squared distance of the policy's mean action from the right one, on the way to the goal, as a
    share of the right action's variance: about 1 where it is the same in all states. q: mean Q of the data.
    """
    script = "saq_bc" if name == "vqvae" else name
    module = changed(PATHS[script], changes, folder)
    if script in SAQ:
        module.VQVAE = changed(ROOT / "vqvae.py", changes, folder).VQVAE
    flags = f"{FLAGS} {OWN[name]} --seed {seed} --runs-dir {folder}".split()
    args = module.parse_args([*flags, "--dataset-path", str(with_traps(folder / "data.hdf5"))])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module.main(args)
    (run,) = folder.glob("*__*")
    reached = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):  # the last row of each stage counts
            for column in ("charts/q", "vqvae/heldout_error", "charts/heldout_error"):
                if row.get(column):
                    reached[column.split("/")[1]] = float(row[column])
    act = module.load(str(run), **({"acting": "mean"} if "acting" in module.ACTING else {}))
    obs, way = DEMONSTRATIONS["observations"][ON_THE_WAY], dense_way()
    right = np.array([controller(row, way) for row in obs]).clip(-1, 1)
    if script.endswith("bc"):  # it imitates both alike
        right = (right + TRAP) / 2
    error = np.square(act(obs) - right).sum()
    reached["unexplained"] = float(error / np.square(right - right.mean(0)).sum())
    return reached


def check(name, reached):
    """Each number is that of a script that learns."""
    for key, (low, high) in BOUNDS[name].items():
        assert low < reached[key] < high, key


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "saq_iql" else pytest.mark.slow) for name in OWN]
)
def test_learns(name, tmp_path):
    check(name, learn(name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), CASES)
def test_broken_script_is_noticed(name, line, tmp_path):
    pairs = [change.split(" =>") for change in line.replace("\\n", "\n").split(" && ")]
    changes = [(old, new.removeprefix(" ")) for old, new in pairs]
    source = PATHS.get(name, PATHS["saq_bc"]).read_text() + (ROOT / "vqvae.py").read_text()
    assert all(old in source for old, _ in changes), "the line has changed: bring the list up to date"
    reached = learn(name, tmp_path, changes=changes)
    with pytest.raises(AssertionError):
        check(name, reached)


def test_every_script_takes_part():
    assert OWN.keys() == BOUNDS.keys() == BROKEN.keys() == PATHS.keys() | {"vqvae"}
