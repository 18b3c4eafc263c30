"""The scripts share nothing but vqvae.py; what they repeat, they repeat to the byte.

Compared are top-level functions, classes and constants, each with the comment above it, and of `Args` the blocks
(`Args: learner`) as well as single fields (`Args.lr`).
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
    "learner_loss": "what is minimised is the method",
    "make_learner": "each method has its own networks",
    "policy": "each method acts with its own policy",
    "conservative_loss": "an integral over actions is estimated, a sum over codes is computed",
    "regularised_value": "expectations over actions are estimated, those over codes are computed",
    "quantizer_loss": "each quantizer has its own loss",
    "measure_quantizer": "each quantizer has its own names for what is measured",
    "SETTINGS": "each method has its own hyperparameters",
}
# Scripts whose copies differ from all others', but among themselves are equal. The first pattern that fits counts.
DIFFERS = {
    "load_data": {
        "saq_bc": "no rewards to scale, but a quantizer with held-out rows",
        "baselines/bc": "neither rewards nor held-out rows",
        "baselines/[!a]*": "no quantizer, so no held-out rows",
    },
    "LIMITS": {
        "baselines/bc": "has few of these arguments",
        "baselines/aquadem": "has its quantizer's arguments too",
        "baselines/*": "the comment, which the others have above VQVAE_ARGS",
    },
    "Args: learner": {"*bc": "no discount, target network or rewards"},
    "Args: quantizer": {"baselines/aquadem": "candidate actions instead of a VQ-VAE"},
    "Args: experiment": {"baselines/[!a]*": "no --acting: there are no codes to choose from"},
    "act": {"baselines/aquadem": "all candidates at once, no decoder", "baselines/*": "no codes to choose from"},
    "evaluate": {"baselines/aquadem": "a quantizer of another class", "baselines/*": "no quantizer"},
    "log_density": {"baselines/cql": "tanh of a Gaussian, not a Gaussian around tanh of a mean: docs/baselines.md"},
    "draw": {"baselines/cql": "the same"},
    "train": {"baselines/iql": "the learning rate of IQL's policy follows a cosine"},
    "main": {
        "baselines/aquadem": "a quantizer of another class",
        "baselines/brac": "learns pi_beta first",
        "baselines/*": "one stage",
    },
    "parse_args": {"baselines/*": "no --vqvae"},
    "start_run": {"baselines/*": "no --vqvae"},
    "EVALUATE_ARGS": {"baselines/[!a]*": "no --acting"},
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
    own = [path.stem, path.stem.upper().replace("_", "-")][: 1 + ("_" in path.stem)]  # IQL alone is the method's name
    return {name: re.sub(rf"\b({'|'.join(own)})\b", "SCRIPT", copy) for name, copy in found.items()}


FILES = {name: pieces(path) for name, path in PATHS.items()} | {"vqvae": pieces(ROOT / "vqvae.py")}
SHARED = sorted(n for n in set().union(*FILES.values()) if sum(n in found for found in FILES.values()) > 1)


def test_the_files_are_taken_apart():
    methods = {"iql", "cql", "brac", "bc"}
    assert {f"saq_{name}" for name in methods} | {f"baselines/{name}" for name in methods | {"aquadem"}} <= set(FILES)
    expected = {"stop", "train", "RESUME_ARGS", "if __name__", "Args: learner", "Args.lr", "learner_loss", "SCRIPT"}
    assert all(expected <= set(FILES[name]) for name in PATHS)
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
    for name in OWN:
        assert name in SHARED, f"no two scripts have {name}: take it out of OWN"
    for name, patterns in DIFFERS.items():
        scripts = [script for script, found in FILES.items() if name in found]
        for pattern, reason in patterns.items():
            assert fnmatch.filter(scripts, pattern), f"no script {pattern} has {name}: take it out of DIFFERS"
            assert reason
        assert not all(any(fnmatch.fnmatch(s, p) for p in patterns) for s in scripts), f"{name} has no common copy"


# --- layout ---
def headers(name):
    return re.findall(r"^# --- (.+) ---$", PATHS[name].read_text(), re.MULTILINE)


@pytest.mark.parametrize("script", SAQ)
def test_sections(script):
    assert headers(script) == headers("saq_iql")
    positions = [headers(script).index(name) for name in ("data", "evaluation", "stage 1: quantizer", "main")]
    assert positions == sorted(positions)
    blocks = re.findall(r"^    # --- (.+) ---$", PATHS[script].read_text(), re.MULTILINE)
    own = script.upper().replace("_", "-")
    assert blocks in (["experiment", "quantizer", "learner", own], ["experiment", "quantizer", "learner"])


def comment_share(source: str) -> float:
    """Share of the lines that hold a comment or belong to a docstring."""
    lines = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines) / len(source.splitlines())


@pytest.mark.parametrize(("name", "limit"), [*((name, 400) for name in PATHS), ("vqvae", 130)])
def test_length(name, limit):
    source = (ROOT / f"{name}.py").read_text()
    assert len(source.splitlines()) <= limit
    assert 0.15 <= comment_share(source) <= 0.35


# --- what depends on what ---
def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("script", PATHS)
def test_no_script_imports_another(script):
    own = {path.stem for path in ROOT.glob("*.py")} | {"baselines", "benchmark", "tests"}
    used = {name.split(".")[0] for name in imports(PATHS[script])}
    assert used & own == ({"vqvae"} if script in SAQ else set())
    stems = {path.stem for path in ROOT.glob("baselines/*.py")}
    assert not used & stems


def test_packages_do_not_import_scripts():
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
