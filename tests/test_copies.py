"""What scripts repeat, they repeat to the byte; the method comes first, and every script keeps its measures.

Compared are top-level functions, classes and constants, each with the comment above it, and of `Args` the
blocks (`Args: learner`) as well as single fields (`Args.lr`).
"""

import ast
import fnmatch
import io
import re
import subprocess
import tokenize

import pytest
from common import PATHS, ROOT, SAQ

# What every method has of its own.
OWN = {
    "Learner": "each method has its own networks",
    "learner_loss": "what is minimised is the method",
    "log_policy": "each method acts with its own policy",
    "policy_mean": "IQL's policy may have one std for all states",
    "conservative_loss": "an integral over actions is estimated, a sum over codes is computed",
    "regularised_value": "expectations over actions are estimated, those over codes are computed",
    "quantizer_loss": "each quantizer has its own loss",
    "measure_quantizer": "each quantizer has its own names for what is measured",
    "SETTINGS": "each method has its own hyperparameters",
    "LIMITS": "each method has its own hyperparameters",
    "ACTING": "each method has its own hyperparameters",
}
# Scripts whose copies differ from the others', but are equal among themselves. The first pattern counts.
DIFFERS = {
    "Transitions": {"baselines/[!a]*": "no codes"},
    "Args.temperature": {"baselines/cql": "of the policy's entropy, not of the advantage"},
    "Args: learner": {"*bc": "no discount, target network or rewards"},
    "Args: quantizer": {"baselines/aquadem": "candidate actions instead of a VQ-VAE"},
    "Args: experiment": {"baselines/[!a]*": "no --acting: there are no codes to choose from"},
    "load_data": {
        "saq_bc": "no rewards to scale, but codes",
        "baselines/bc": "neither rewards nor codes",
        "baselines/[!a]*": "no codes",
    },
    "make_act": {"baselines/aquadem": "all candidates at once, no decoder", "baselines/*": "no codes"},
    "make_models": {"baselines/aquadem": "a quantizer of another class"},
    "train": {
        "saq_bc": "no target network",
        "saq_iql": "finds lambda for --kl",
        "baselines/aquadem": "its quantizer has no codebook to move, and draws noise",
        "baselines/bc": "no target network, no noise",
        "baselines/iql": "the learning rate of its policy falls in any case",
        "baselines/brac": "learns pi_beta first",
        "baselines/*": "one stage",
    },
    "main": {
        "baselines/aquadem": "a quantizer of another class",
        "baselines/brac": "learns pi_beta first",
        "baselines/*": "one stage",
    },
    "load": {"baselines/aquadem": "a quantizer of another class", "baselines/*": "no quantizer"},
    "log_density": {"baselines/cql": "tanh of a Gaussian, not a Gaussian around tanh of a mean"},
    "draw": {"baselines/cql": "the same"},
}


def pieces(path) -> dict[str, str]:
    """The source of each definition, constant, block and field of a file."""
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
    return found


FILES = {name: pieces(path) for name, path in PATHS.items()} | {"vqvae": pieces(ROOT / "vqvae.py")}
SHARED = sorted(n for n in set().union(*FILES.values()) if sum(n in found for found in FILES.values()) > 1)


def test_the_files_are_taken_apart():
    expected = {"train", "LIMITS", "if __name__", "Args: learner", "Args.lr", "learner_loss", "SCRIPT"}
    assert all(expected <= set(FILES[name]) for name in PATHS)
    assert FILES["vqvae"].keys() == {"mlp", "VQVAE"}
    assert {"mlp", "td_loss", "Args.codebook_size", "load", "make_act"} <= set(SHARED)


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
        for pattern in patterns:
            assert fnmatch.filter(scripts, pattern), f"no script {pattern} has {name}: take it out of DIFFERS"
        assert not all(any(fnmatch.fnmatch(s, p) for p in patterns) for s in scripts), name


# --- layout ---
STORY = ["acting", "training loop", "main", "settings", "plumbing, the same in every script"]


@pytest.mark.parametrize("script", PATHS)
def test_sections(script):
    """The method first, plumbing last; the algorithm's own arguments before the others."""
    source = PATHS[script].read_text()
    stages = ["stage 1: actions to codes", "stage 2: learner"]
    stages = stages if script in [*SAQ, "baselines/aquadem"] else ["learner"]
    assert re.findall(r"^# --- (.+) ---$", source, re.MULTILINE) == [*stages, *STORY]
    own = script.upper().replace("_", "-").removeprefix("BASELINES/").replace("AQUADEM", "Aquadem")
    blocks = re.findall(r"^    # --- (.+) ---$", source, re.MULTILINE)
    quantizer = ["quantizer"] if len(stages) > 1 else []
    assert blocks == [*([] if script == "saq_bc" else [own]), "learner", *quantizer, "experiment"]


def comment_share(source: str) -> float:
    """Share of the lines that hold a comment or belong to a docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines) / len(source.splitlines())


@pytest.mark.parametrize("name", [*PATHS, "vqvae"])
def test_measures(name):
    lines = (ROOT / f"{name}.py").read_text().splitlines()
    assert len(lines) <= (110 if name == "vqvae" else 360)
    assert max(map(len, lines)) <= 110
    assert name == "vqvae" or sum(len(line) > 100 for line in lines) <= 0.05 * len(lines)
    assert 0.15 <= comment_share("\n".join(lines)) <= 0.42
    if name in SAQ:
        losses = {line: number for number, line in enumerate(lines, 1) if re.match(r"def \w*loss\(", line)}
        assert min(losses.values()) <= 110
        assert [number for line, number in losses.items() if line.startswith("def learner_loss(")][0] <= 160


# --- what depends on what ---
def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("script", PATHS)
def test_no_script_imports_another(script):
    used = {name.split(".")[0] for name in imports(PATHS[script])}
    own = {name.split("/")[-1] for name in PATHS} | {"baselines", "benchmark", "tests"}
    assert not used & own and ("vqvae" in used) == (script in SAQ)


def test_packages_do_not_import_scripts():
    for path in [ROOT / "vqvae.py", *ROOT.glob("d4rl/*.py")]:
        assert not {name for name in imports(path) if name.startswith(("saq_", "baselines", "vqvae"))}, path


def tracked() -> list[str]:
    """Files under version control; of a copy without it, all."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.*")]


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w./])(/wor[k]/|/hom[e]/|/tm[p]/|\.\./share[d])")
    kinds = (".py", ".md", ".toml", ".txt", ".tsv", ".yaml", ".yml", ".ipynb", ".json", ".jsonl", ".csv")
    for name in tracked():
        if name.endswith(kinds) and (ROOT / name).is_file():
            assert not pattern.search((ROOT / name).read_text()), name
