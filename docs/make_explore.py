"""Make what docs/explore/ shows and results/policies/, from runs of the scripts on the bundled maze.

    python docs/make_explore.py
    python docs/make_explore.py --picture

It writes docs/explore/weights.js (networks, codes, data and maze for the page), docs/explore/reference.json
(what PyTorch gets from the same networks in 100 states, for the tests) and a trained policy of every script
in results/policies/. Networks have 64 units a layer, so that the page stays below 1.5 MB. A run that is in
runs/explore is not made again; all of them take about four minutes on one core. A folder as argument:
everything is made and written in there, from runs of its own. When the scripts' Args have changed, delete
runs/explore and make all of it again.

The second command films the page: docs/images/explore.webp. It needs Chromium and `pip install playwright`.
"""

import base64
import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]
from figure2 import grid, log_integral  # noqa: E402
from shared import load, stop  # noqa: E402

from d4rl import Spaces, runs  # noqa: E402
from d4rl.environments import MAZES  # noqa: E402

SCRIPTS = {name: load(name) for name in ("saq_bc", "saq_iql", "saq_cql", "saq_brac", "baselines/cql")}
SMALL = "--device cpu --seed 0 --hidden-dim 64 --lr 1e-3 --steps 4000 --eval-every 4000"
QUANTIZER = "--vqvae-hidden-dim 64 --vqvae-steps 3000"
SIZES = (4, 8, 16, 32)  # K
KINDS = {  # of quantizers: what a reader can switch
    "": "",
    " hidden": "--no-condition-on-obs",
    " printed": "--codebook-form paper --no-revive",
    " hidden printed": "--no-condition-on-obs --codebook-form paper --no-revive",
}
ALPHAS = {"saq_cql": (0, 0.1, 1, 10, 100), "saq_brac": (0.01, 0.1, 1, 3, 100)}
DEFAULTS = {"saq_cql": "saq_cql 10", "saq_brac": "saq_brac 3"}  # the scripts' own alpha
TEMPERATURES = (0.1, 3.0, 1000.0)  # lambda, of the reference values
# The data's states nearest to these (row, column); A and B are those of docs/idea.md.
PLACES = {"start": (1.0, 1.0), "A": (2.53, 0.94), "B": (3.02, 5.65)}
SIDE = 41  # cells along each action dimension; the page's integral


# --- runs ---
def run(folder: Path, name: str, script: str, flags: str) -> Path:
    """The folder of a finished run, made now if it is not there."""
    parent = folder / "runs" / "explore" / name.replace(" ", "_")
    if not list(parent.glob("*/result.json")):
        module = SCRIPTS[script]
        module.main(module.parse_args(["--runs-dir", str(parent), *shlex.split(f"{SMALL} {flags}")]))
    return next(parent.glob("*/result.json")).parent


def train(folder: Path) -> dict[str, Path]:
    """All runs by name."""
    first = run(folder, "saq_bc", "saq_bc", QUANTIZER)
    found = {"saq_bc": first, "quantizer 16": first}
    for kind, flags in KINDS.items():
        for size in SIZES:
            name = f"quantizer {size}{kind}"
            only = f"{QUANTIZER} --codebook-size {size} {flags} --steps 1 --eval-episodes 1"
            found[name] = found.get(name) or run(folder, name, "saq_bc", only)
    same = f"--quantizer-from {shlex.quote(str(first))}"
    found["saq_iql"] = run(folder, "saq_iql", "saq_iql", same)
    for alpha in ALPHAS["saq_cql"]:
        name = f"saq_cql {alpha:g}"
        found[name] = run(folder, name, "saq_cql", f"{same} --conservatism {alpha}")
    for alpha in ALPHAS["saq_brac"]:
        name = f"saq_brac {alpha:g}"
        weights = f"--behaviour-weight {alpha} --entropy-weight {alpha}"
        found[name] = run(folder, name, "saq_brac", f"{same} {weights}")
    found["cql"] = run(folder, "cql", "baselines/cql", "")
    return found


def read(folder: Path, script: str):
    """Arguments, quantizer and learner of a finished run; baselines/cql.py has no quantizer: None."""
    module = SCRIPTS[script]
    saved = runs.read_run(folder, script.split("/")[-1], module.Args, stage="learner")
    args, spaces = module.Args(**saved["args"]), Spaces(*saved["spaces"])
    if script.startswith("baselines"):
        vqvae, learner = None, module.Learner(args, len(spaces.obs_mean), len(spaces.action_low))
    else:
        vqvae, learner = module.make_models(args, spaces)
        vqvae.load_state_dict(saved["stages"]["quantizer"]["model"])
    learner.load_state_dict(saved["stages"]["learner"]["model"])
    return args, vqvae, learner


def score(folder: Path) -> float:
    return json.loads((folder / "result.json").read_text())["score"]


# --- results/policies ---
def policy(folder: Path, script: str) -> bytes:
    """A checkpoint for `load`, --evaluate and --quantizer-from, without what only --resume needs."""
    saved = runs.read_run(folder, script, SCRIPTS[script].Args, stage="learner")
    stages = saved["stages"]
    stages["quantizer"]["optimizer"]["state"] = {}  # a finished quantizer takes no step
    kept = ("model", "step", "finished")
    stages["learner"] = {name: stages["learner"][name] for name in kept}
    for stage in stages.values():
        stage["seconds"] = 0.0  # the same from the same seed
    args = saved["args"] | {"runs_dir": "runs", "quantizer_from": ""}
    buffer = io.BytesIO()
    torch.save(saved | {"args": args, "stages": stages, "history": [], "returns": []}, buffer)
    return buffer.getvalue()


# --- weights.js ---
def packed(array) -> str:
    """Numbers as base64: little-endian float32, or uint8."""
    array = np.ascontiguousarray(array)
    return base64.b64encode(array.astype("u1" if array.dtype.kind in "iu" else "<f4").tobytes()).decode()


def layers(mlp) -> list[list[str]]:
    """[[weight, bias], ...] of the linear layers."""
    linear = [layer for layer in mlp if isinstance(layer, torch.nn.Linear)]
    return [[packed(layer.weight.detach()), packed(layer.bias.detach())] for layer in linear]


def find_states(data, spaces) -> dict[str, list[float]]:
    """Observations of the data nearest to each of PLACES, by name."""
    obs = data.obs * spaces.obs_std + spaces.obs_mean
    rows = {name: (obs[:, :2] - torch.tensor(at)).norm(dim=1).argmin() for name, at in PLACES.items()}
    return {name: [round(x, 4) for x in obs[row].tolist()] for name, row in rows.items()}


def weights(found: dict[str, Path], data, spaces: Spaces) -> dict:
    """Everything that the page computes with."""
    _, _, bc = read(found["saq_bc"], "saq_bc")
    walls, goal = MAZES["large"]
    page = {
        "walls": ["".join(map(str, line)) for line in walls],
        "goal": list(goal),
        "expert": 440,  # the mean return of the data: a score of 100
        "states": find_states(data, spaces),
        "obs": packed(data.obs * spaces.obs_std + spaces.obs_mean),  # (N, 4)
        "action": packed(data.action),  # (N, 2)
        "mean": spaces.obs_mean.tolist(),
        "std": spaces.obs_std.tolist(),
        "quantizers": {},
        "nets": {"saq_bc policy": layers(bc.policy)},
        "scores": {"saq_bc": score(found["saq_bc"])},
        "alphas": ALPHAS,
    }
    for name, folder in found.items():
        if name.startswith("quantizer"):
            _, vqvae, _ = read(folder, "saq_bc")
            page["quantizers"][name.removeprefix("quantizer ")] = {
                "codebook": packed(vqvae.codebook.detach()),
                "decoder": layers(vqvae.decoder),
                "codes": packed(vqvae.encode(data.obs, data.action)),  # (N,)
            }
    iql = read(found["saq_iql"], "saq_iql")[2]
    for net in ("q", "v", "behaviour"):
        page["nets"][f"saq_iql {net}"] = layers(getattr(iql, net))
    page["scores"]["saq_iql"] = score(found["saq_iql"])
    for script, nets in {"saq_cql": ("q",), "saq_brac": ("q", "policy")}.items():
        for alpha in ALPHAS[script]:
            name = f"{script} {alpha:g}"
            learner = read(found[name], script)[2]
            page["scores"][name] = score(found[name])
            for net in nets:
                page["nets"][f"{name} {net}"] = layers(getattr(learner, net))
            if script == "saq_brac":  # learns alone, so it is the same with every alpha
                page["nets"]["saq_brac behaviour"] = layers(learner.behaviour)
    page["nets"]["cql q"] = layers(read(found["cql"], "baselines/cql")[2].q[0])
    return page


# --- reference.json ---
def sampled_states(data, spaces) -> torch.Tensor:
    """Half from the data, half from anywhere in its range: (100, 4) observations."""
    rng = np.random.default_rng(0)
    obs = (data.obs * spaces.obs_std + spaces.obs_mean).numpy()
    anywhere = rng.uniform(obs.min(0), obs.max(0), (50, 4))
    return torch.as_tensor(np.concatenate([obs[rng.choice(len(obs), 50)], anywhere]).round(4))


@torch.no_grad()
def reference(found: dict[str, Path], data, spaces: Spaces) -> dict:
    """In state i: of a quantizer the action of code i mod K, of a learner the numbers of code i mod 16."""
    states = sampled_states(data, spaces)
    obs = spaces.standardise(states)  # float64: the browser's numbers are
    index = torch.arange(len(obs))
    values = {"states": states, "decoded": {}, "log_policy": {}}

    def pick(numbers):  # (100, 16) -> (100,)
        return numbers.gather(1, index[:, None] % numbers.shape[1])[:, 0]

    for name, folder in found.items():
        if name.startswith("quantizer"):
            vqvae = read(folder, "saq_bc")[1].double()
            actions = vqvae.decode(obs, index % len(vqvae.codebook))
            values["decoded"][name.removeprefix("quantizer ")] = actions
        elif name != "cql":
            script = name.split()[0]
            args, _, learner = read(folder, script)
            temperatures = TEMPERATURES if script == "saq_iql" else (None,)
            for temperature in temperatures:
                if temperature:
                    args.temperature = temperature
                    name = f"saq_iql {temperature:g}"
                values["log_policy"][name] = pick(SCRIPTS[script].log_policy(args, learner.double(), obs))
    iql = read(found["saq_iql"], "saq_iql")[2].double()
    values["log_behaviour"] = pick(F.log_softmax(iql.behaviour(obs), dim=1))
    values["advantage"] = pick(iql.q(obs) - iql.v(obs))
    brac = read(found["saq_brac 3"], "saq_brac")[2].double()
    values["brac_behaviour"] = pick(F.log_softmax(brac.behaviour(obs), dim=1))
    values["exact_sum"] = read(found["saq_cql 10"], "saq_cql")[2].double().q(obs).logsumexp(1)
    critics = read(found["cql"], "baselines/cql")[2].double().q
    cells = SCRIPTS["baselines/cql"].values(critics, obs, grid(SIDE).double().expand(len(obs), -1, -1))[0]
    values["exact_integral"] = log_integral(cells)
    return values


def rounded(value):
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return np.vectorize(lambda x: float(f"{x:.7g}"))(value.numpy()).tolist()


def make(folder: Path):
    """Train what is missing and write all files below `folder`."""
    found = train(folder)
    for script in ("saq_bc", "saq_iql", "saq_cql", "saq_brac"):
        path = folder / "results" / "policies" / script / "checkpoint.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(policy(found[DEFAULTS.get(script, script)], script))
    data, spaces = SCRIPTS["saq_iql"].load_data(SCRIPTS["saq_iql"].Args(device="cpu"))
    page = folder / "docs" / "explore"
    page.mkdir(parents=True, exist_ok=True)
    text = json.dumps(weights(found, data, spaces), separators=(",", ":"))
    (page / "weights.js").write_text(f"// Made by docs/make_explore.py.\nconst EXPLORE = {text};\n")
    text = json.dumps(rounded(reference(found, data, spaces)), separators=(",", ":"))
    (page / "reference.json").write_text(f"{text}\n")


# --- docs/images/explore.webp ---
LOOK = """header, #policy, #integral, #episode, #codes p:first-of-type, #codes h2, #about { display: none }
    #velocity { display: none } #world, #codes { position: static; border: 0 } main { gap: 0; padding: 0 }
    body { background: white } #codes { padding-top: 0.4rem }"""


def picture(path: Path):
    """A looping picture of the page: an episode, the state hidden, the loss as printed."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    frames = []
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or stop("no chromium here; apt-get install chromium.")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1180, "height": 420})
        page.goto((ROOT / "docs" / "explore" / "index.html").as_uri())
        page.add_style_tag(content=LOOK)

        def show(script: str, count: int):
            for frame in range(count):
                page.evaluate(f"frame => {{ {script}; changed(); }}", frame)
                page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 30)))")
                frames.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))

        page.evaluate("() => { Math.random = generator(1); state.obs = [...EXPLORE.states.start]; }")
        page.evaluate("() => { state.trails = [[point(state.obs)]]; }")
        show("for (let i = 0; i < 8; i++) oneStep()", 56)
        page.evaluate("() => { state.trails = []; }")
        drag = "state.obs = DATA.obs[60 + 9 * frame]"
        page.check("#hidden")
        show(drag, 22)
        page.uncheck("#hidden")
        page.check("#printed")
        show(drag, 22)
        browser.close()
    half = [frame.resize((frame.width * 7 // 10, frame.height * 7 // 10), Image.LANCZOS) for frame in frames]
    half[0].save(path, save_all=True, append_images=half[1:], duration=100, loop=0, quality=45, method=6)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        stop("one argument at most; see the top of docs/make_explore.py.")
    if sys.argv[1:] == ["--picture"]:
        picture(ROOT / "docs" / "images" / "explore.webp")
    else:
        make(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
