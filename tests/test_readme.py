"""What README and docs say is true: commands, flags, links, quoted code, columns, lengths."""

import re
import shlex
import sys
from dataclasses import asdict, fields

import pytest
import torch
from common import HOPPER, PATHS, ROOT, SAQ, SCRIPTS, dataset, run

import d4rl
from d4rl import __main__ as cli

PAGES = {
    str(path.relative_to(ROOT)): path for path in [*ROOT.glob("*.md"), *sorted(ROOT.rglob("docs/**/*.md"))]
}
TEXTS = {page: path.read_text() for page, path in PAGES.items()}
README = TEXTS["README.md"]


def prose(text):
    """Without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def fenced(text, *languages):
    pattern = rf"^ *```(?:{'|'.join(languages)})\n(.*?)^ *```"
    return re.findall(pattern, text, re.MULTILINE | re.DOTALL)


def inline(text):
    return re.findall(r"`([^`\n]+)`", prose(text))


# --- commands and flags ---
def commands(text):
    """(file, arguments) of every `python FILE.py ...`, and ("-m d4rl", arguments)."""
    blocks = [block.replace("\\\n", " ") for block in fenced(text, "bash", "sh", "console")]
    for line in [*"\n".join(blocks).splitlines(), *inline(text)]:
        for part in re.split(r"&&|;|\|", line.split(" #")[0]):
            if found := re.search(r"\bpython (-m d4rl(?!\.)|\S+\.py)\b(.*)", part):
                yield found[1], shlex.split(found[2])


COMMANDS = {(file, *words) for text in TEXTS.values() for file, words in commands(text)}
COMMANDS |= {
    (f"{n}.py", *w) for n, p in PATHS.items() for _, w in commands(f"```bash\n{p.read_text()[:1500]}\n```")
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(script, words, place):
    """The script's own parser; every runs/... in the words stands for a finished run of the script."""
    for folder in [word for word in words if word.startswith("runs/")]:
        (place / folder).mkdir(parents=True, exist_ok=True)
        saved = {"script": script.split("/")[-1], "args": asdict(SCRIPTS[script].parse_args([]))}
        saved["stages"] = {name: {"finished": True} for name in ("quantizer", "learner")}
        torch.save(saved, place / folder / "checkpoint.pt")
    return SCRIPTS[script].parse_args(words)


def check_task(env_id):
    """The task exists. Of Minari's ids, which name datasets elsewhere, only the form is looked at."""
    if "/" in env_id and not env_id.startswith("robomimic/"):
        assert re.fullmatch(r"[-\w]+(/[-\w]+)+-v\d+", env_id)
    elif env_id != "pendulum-mine-v0":  # the task that data.md adds
        d4rl.task(env_id)


def test_commands_of_scripts(place):
    used = set()
    for file, *words in COMMANDS:
        if file.removesuffix(".py") in SCRIPTS and "--help" not in words:
            args = parse(file.removesuffix(".py"), words, place)
            check_task(args.env_id)
            used.add(file.removesuffix(".py"))
    assert used == set(SCRIPTS)


def test_commands_of_d4rl(monkeypatch):
    """The parser takes them, and the tasks exist. Only `list` is run: the others want files."""
    taken = []
    for name in ("fetch", "check"):
        monkeypatch.setattr(cli, name, taken.append)
    for file, *words in COMMANDS:
        if file == "-m d4rl":
            monkeypatch.setattr(sys, "argv", ["d4rl", *words])
            with pytest.raises(SystemExit) as exit:
                cli.main()
            assert not exit.value.code, words
    assert taken
    for args in taken:
        for env_id in args.env_ids if "env_ids" in args else [args.env_id]:
            check_task(env_id)


def test_other_commands():
    """Those of benchmark/ and docs/: the file exists and knows every flag."""
    for file, *words in COMMANDS:
        if file.removesuffix(".py") not in SCRIPTS and file != "-m d4rl" and "saq_td3bc" not in file:
            source = (ROOT / file).read_text()
            names = set(re.findall(r'"--([\w-]+)"', source)) | {"help"}
            fields_of = re.findall(
                r"^    (\w+): ", source + "".join(p.read_text() for p in PATHS.values()), re.MULTILINE
            )
            names |= {name.replace("_", "-") for name in fields_of}  # some hand on a script's flags
            unknown = {word[2:] for word in words if word.startswith("--")} - names
            assert not unknown, (file, unknown)


def test_flags(place):
    """`--flag` and `--flag value` in running text: some script takes them, on a script's page that script."""
    others = {"help", "allow-unverified", "q-weight"}  # the last is the exercise's
    for path in ROOT.glob("benchmark/*.py"):
        others |= set(re.findall(r'"--([\w-]+)"', path.read_text()))
        others |= {
            name.replace("_", "-") for name in re.findall(r"^    (\w+): ", path.read_text(), re.MULTILINE)
        }
    for page, text in TEXTS.items():
        own = [name for name in SAQ if page == f"docs/{name}.md"]
        for code in inline(text):
            words = shlex.split(code) if code.startswith("--") else []
            flags = [word[2:] for word in words if word.startswith("--")]
            takers = []
            for script in own or SCRIPTS:
                names = {field.name.replace("_", "-") for field in fields(SCRIPTS[script].Args)}
                takers += [script] if all(f in names or f.removeprefix("no-") in names for f in flags) else []
            assert takers or set(flags) <= others or "notes" in page, f"{page}: `{code}`"
            if takers and len(words) > len(flags) and "..." not in code and not re.search(r"[A-Z]", code):
                parse(takers[0], words, place)


# --- links ---
def anchors(text):
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[page])):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            path = (PAGES[page].parent / file).resolve() if file else PAGES[page]
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), target


# --- what is quoted ---
@pytest.mark.parametrize("page", ["docs/quantizer.md", *(f"docs/{script}.md" for script in SAQ)])
def test_quoted_code_is_the_scripts(page):
    name = "vqvae" if "quantizer" in page else page[5:-3]
    source = (ROOT / f"{name}.py").read_text()
    blocks = fenced(TEXTS[page], "python")
    assert blocks and all(block.rstrip() in source for block in blocks)


def test_the_readmes_equations_name_functions():
    for name in re.findall(r"`(\w+\.\w+)`", README.split("equation of the paper")[1].split("## ")[0]):
        module, function = name.split(".")
        owner = SCRIPTS["saq_bc"].VQVAE if module == "VQVAE" else SCRIPTS[module]
        assert callable(getattr(owner, function))


def test_the_readmes_output_begins_as_a_run_does(capsys):
    """The rest of it: test_the_readmes_score, which takes a minute."""
    SCRIPTS["saq_iql"].load_data(SCRIPTS["saq_iql"].parse_args(["--device", "cpu"]))
    assert fenced(README, "text")[0].splitlines()[0] == capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_readmes_score(tmp_path, capsys):
    """On another processor the last digits, and so the score, differ a little."""
    module = SCRIPTS["saq_iql"]
    score = module.main(module.parse_args(["--device", "cpu", "--runs-dir", str(tmp_path)]))
    assert score == pytest.approx(float(re.search(r"^score ([\d.]+)", README, re.MULTILINE)[1]), abs=3)


def test_columns_are_documented(tmp_path):
    """docs/metrics.md explains every column of every script's metrics.csv, and none that does not exist."""
    columns = set()
    dataset(tmp_path / "data.hdf5")
    for script in SCRIPTS:
        flags = ["--env-id", HOPPER, "--dataset-path", tmp_path / "data.hdf5", "--eval-episodes", 1]
        variants = [["--learner", name] for name in ("cql", "iql")] if "aquadem" in script else [[]]
        for extra in variants:
            folder = run(script, tmp_path, *flags, *extra)
            columns |= set((folder / "metrics.csv").read_text().splitlines()[0].split(","))
    explained = set(re.findall(r"`(\w+/\w+)`", TEXTS["docs/metrics.md"]))
    assert explained == {name for name in columns if "/" in name}


# --- lengths ---
def test_lengths():
    assert len(README.splitlines()) <= 120
    assert len(re.findall(r"(?<![A-Za-z0-9_.])[0-9][0-9.,]*", README)) <= 60
    assert (
        sum(len(t.split()) for p, t in TEXTS.items() if p.startswith("docs/") and "notes" not in p) <= 10_000
    )
    assert all(len(TEXTS[f"docs/{script}.md"].splitlines()) <= 130 for script in SAQ)
