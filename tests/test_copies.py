"""The scripts share vqvae.py and the package d4rl; what they repeat, they repeat to the byte.

Compared are top-level functions, classes and constants, each with the comment above it, and of `Args` its
blocks (`Args: learner`) and single fields (`Args.lr`). A fork in the root takes no part; to compare it, name
it in common.py.
"""

import ast
import fnmatch
import io
import re
import tokenize

import pytest
from common import PATHS, ROOT, SAQ

# What every method has of its own.
OWN = {
    "Learner": "each method has its own networks",
    "learner_loss": "what is minimised is the method",
    "log_policy": "each method acts with its own policy",
    "policy_mean": "the same, continuous",
    "conservative_loss": "an integral over actions is estimated, a sum over codes is computed",
    "regularised_value": "expectations over actions are estimated, those over codes are computed",
    "quantizer_loss": "each quantizer has its own loss",
    "measure_quantizer": "each quantizer has its own names for what is measured",
    "SETTINGS": "each method has its own hyperparameters",
    "LIMITS": "limits are those of the arguments that a script has",
}
# Scripts whose copies differ from all others', but among themselves are equal. The first pattern counts.
DIFFERS = {
    "Args: learner": {"*bc": "no discount, target network or rewards"},
    "Args: quantizer": {"baselines/aquadem": "candidate actions instead of a VQ-VAE"},
    "Args: experiment": {"baselines/[!a]*": "no --acting: there are no codes to choose from"},
    "Transitions": {"baselines/[!a]*": "no codes"},
    "ACTING": {
        "saq_[!i]*": "no --temperature",
        "baselines/[!a]*": "nothing: there are no codes to choose from",
    },
    "Args.temperature": {"baselines/cql": "of the policy's entropy"},
    "train": {
        "saq_bc": "no target network",
        "baselines/aquadem": "a quantizer of another class, whose loss draws noise",
        "baselines/bc": "one stage, no target network",
        "baselines/iql": "one stage; the learning rate of IQL's policy follows a cosine",
        "baselines/brac": "learns pi_beta first, draws noise",
        "baselines/cql": "one stage, draws noise",
    },
    "main": {
        "baselines/aquadem": "a quantizer of another class",
        "baselines/brac": "learns pi_beta first",
        "baselines/*": "one stage",
    },
    "make_act": {
        "baselines/aquadem": "all candidates at once, no decoder",
        "baselines/*": "no codes to choose from",
    },
    "make_models": {"baselines/aquadem": "a quantizer of another class"},
    "load": {"baselines/aquadem": "a quantizer of another class", "baselines/*": "no quantizer"},
    "load_data": {
        "saq_bc": "no rewards to scale",
        "baselines/bc": "neither rewards to scale nor codes",
        "baselines/[!a]*": "no codes",
    },
    "log_density": {"baselines/cql": "tanh of a Gaussian, not a Gaussian around tanh of a mean"},
    "draw": {"baselines/cql": "the same"},
}


def pieces(path) -> dict[str, str]:
    """The source of each definition, constant, block and field of a file, the script's own name left out."""
    lines, found = path.read_text().splitlines(), {}

    def text(first, last):
        while re.match(r"# (?!---)", lines[first - 2]):  # the comment above belongs to it
            first -= 1
        return "\n".join(lines[first - 1 : last])

    for node in ast.parse(path.read_text()).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            block = None
            for number in range(node.lineno + 1, node.end_lineno + 1):
                if header := re.fullmatch(r"    # --- (.+) ---", lines[number - 1]):
                    block = f"Args: {header[1]}"
                elif field := re.match(r"    (\w+): ", lines[number - 1]):
                    found[f"Args.{field[1]}"] = lines[number - 1]
                    found[block] = found.get(block, "") + lines[number - 1] + "\n"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = text(first, node.end_lineno)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            found[name] = found.get(name, "") + text(first, node.end_lineno)
        elif isinstance(node, ast.If):
            found["if __name__"] = text(first, node.end_lineno)
    own = [path.stem, path.stem.upper().replace("_", "-")][: 1 + ("_" in path.stem)]
    return {name: re.sub(rf"\b({'|'.join(own)})\b", "SCRIPT", copy) for name, copy in found.items()}


FILES = {name: pieces(path) for name, path in PATHS.items()} | {"vqvae": pieces(ROOT / "vqvae.py")}
SHARED = sorted(n for n in set().union(*FILES.values()) if sum(n in found for found in FILES.values()) > 1)


def test_the_files_are_taken_apart():
    expected = {
        "train",
        "load",
        "evaluate",
        "if __name__",
        "Args: learner",
        "Args.lr",
        "learner_loss",
        "SCRIPT",
    }
    assert len(PATHS) == 9 and all(expected <= set(FILES[name]) for name in PATHS)
    assert FILES["vqvae"].keys() == {"mlp", "VQVAE"}
    assert {"mlp", "td_loss", "Args.codebook_size"} <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_copies_are_equal(name):
    copies = {script: found[name] for script, found in FILES.items() if name in found}
    if name in OWN:
        assert len(set(copies.values())) > 1, f"{name} is the same everywhere now: take it out of OWN"
        return
    groups = {"the others": {}}
    for script, copy in copies.items():
        group = next((p for p in DIFFERS.get(name, {}) if fnmatch.fnmatch(script, p)), "the others")
        groups.setdefault(group, {})[script] = copy
    for group, members in groups.items():
        assert len(set(members.values())) <= 1, f"{name} differs between {', '.join(members)} ({group})"
    different = {copy for members in groups.values() for copy in members.values()}
    used = sum(bool(members) for members in groups.values())
    assert len(different) == used, f"two groups of {name} are equal now: shorten its entry in DIFFERS"


def test_every_listed_difference_still_exists():
    assert set(OWN) | set(DIFFERS) <= set(SHARED), "no two scripts have it any more"
    for name, patterns in DIFFERS.items():
        scripts = [script for script, found in FILES.items() if name in found]
        unused = [pattern for pattern in patterns if not fnmatch.filter(scripts, pattern)]
        assert not unused, f"no script {unused} has {name}: take it out of DIFFERS"


# --- shape ---
HEADERS = ["stage 1: actions to codes", "stage 2: learner", "acting", "training loop", "main", "settings"]
PLUMBING = "plumbing, the same in every script"


@pytest.mark.parametrize("script", PATHS)
def test_order(script):
    source = PATHS[script].read_text()
    staged = script in SAQ or script.endswith("aquadem")
    expected = HEADERS if staged else ["learner", *HEADERS[2:]]
    assert re.findall(r"^# --- (.+) ---$", source, re.MULTILINE) == [*expected, PLUMBING]
    own = script.split("/")[-1].upper().replace("_", "-").replace("AQUADEM", "Aquadem")
    blocks = re.findall(r"^    # --- (.+) ---$", source, re.MULTILINE)
    rest = ["learner", *(["quantizer"] if staged else []), "experiment"]
    assert blocks == (rest if script == "saq_bc" else [own, *rest])


def comment_share(source: str) -> float:
    """Share of the lines that hold a comment or belong to a docstring."""
    lines = {
        t.start[0]
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines) / len(source.splitlines())


@pytest.mark.parametrize(("name", "limit"), [*((name, 360) for name in PATHS), ("vqvae", 110)])
def test_length(name, limit):
    source = (ROOT / f"{name}.py").read_text()
    lines = source.splitlines()
    assert len(lines) <= limit and max(map(len, lines)) <= 110
    assert 0.15 <= comment_share(source) <= 0.45
    if name != "vqvae":
        assert sum(len(line) > 100 for line in lines) <= 0.05 * len(lines)


@pytest.mark.parametrize("script", SAQ)
def test_the_method_comes_first(script):
    lines = PATHS[script].read_text().splitlines()
    losses = [n for n, line in enumerate(lines, 1) if re.match(r"def \w*loss\(", line)]
    assert losses[0] <= 110 and lines[losses[-1] - 1].startswith("def learner_loss(") and losses[-1] <= 160


# --- what depends on what ---
def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_no_script_imports_another():
    own = {path.stem for path in [*ROOT.glob("*.py"), *ROOT.glob("baselines/*.py")]}
    own |= {"baselines", "benchmark", "tests"}
    for script, path in PATHS.items():
        used = {name.split(".")[0] for name in imports(path)}
        assert used & own == ({"vqvae"} if script in SAQ else set()), script
    for path in [ROOT / "vqvae.py", *ROOT.glob("d4rl/*.py")]:
        assert not {name for name in imports(path) if name.startswith(("saq_", "baselines"))}, path


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w./])(/wor[k]/|/hom[e]/|/tm[p]/|\.\./share[d])")
    kinds = {".py", ".md", ".toml", ".txt", ".tsv", ".yaml", ".ipynb", ".json", ".jsonl", ".csv"}
    skipped = {"runs", "wandb", "build", "dist"}
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.suffix in kinds and not any(part.startswith(".") or part in skipped for part in parts):
            assert not pattern.search(path.read_text()), path
