"""What README and docs say is true: commands, flags, links, quoted code, columns, shown output."""

import re
import shlex
import subprocess
import sys
from dataclasses import asdict, fields

import pytest
import torch
import tyro
from common import PATHS, ROOT, SAQ, SCRIPTS, load, metrics

import d4rl
import vqvae
from d4rl import __main__ as cli

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PAGES = {str(path.relative_to(ROOT)): path for path in PAGES}
BENCHMARKS = {f"benchmark/{path.stem}": path for path in ROOT.glob("benchmark/*.py")}
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(text, *languages):
    return [content for language, content in BLOCK.findall(text) if language in languages]


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def commands(text):
    """(file, arguments) of every `python FILE.py ...` in blocks and inline code, and of `python -m d4rl ...`.

    In a block of text, a first line that begins with "$ " is a command above its output.
    """
    shown = [block[2:].split("\n")[0] for block in blocks(text, "text") if block.startswith("$ ")]
    for code in [*blocks(text, "bash", "sh", "console"), *shown, *inline_code(text)]:
        for part in re.split(r"&&|;|\||\n", re.sub(r" #.*", "", code.replace("\\\n", " "))):
            words = shlex.split(part) if re.search(r"python3? .*(\.py|-m d4rl )", part) else []
            names = [i for i, word in enumerate(words) if word.startswith("python") and i + 1 < len(words)]
            if names and words[names[0] + 1].endswith(".py"):
                yield words[names[0] + 1], words[names[0] + 2 :]
            elif names and words[names[0] + 1 :][:2] == ["-m", "d4rl"]:
                yield "-m d4rl", words[names[0] + 3 :]


COMMANDS = [(page, *command) for page, path in PAGES.items() for command in commands(path.read_text())]
# The command in the docstring of each script.
for name, path in PATHS.items():
    COMMANDS += [(f"{name}.py", *c) for c in commands(f"```bash\n{path.read_text()[:1500]}\n```")]


def parse(script, arguments, place, monkeypatch):
    """The script's own parser on these arguments; every runs/... in them stands for a run of the script."""
    arguments = [str(ROOT / word) if word.startswith("results/") else word for word in arguments]
    for folder in (word for word in arguments if word.startswith("runs/")):
        (place / folder).mkdir(parents=True, exist_ok=True)
        args = asdict(SCRIPTS[script].parse_args(["--device", "cpu"]))
        run = {"script": script.split("/")[-1], "args": args, "stages": {"quantizer": {"finished": True}}}
        run |= {"spaces": 5 * (torch.zeros(1),), "history": [], "returns": []}
        torch.save(run, place / folder / "checkpoint.pt")
    monkeypatch.chdir(place)
    return SCRIPTS[script].parse_args(arguments)


def check_task(env_id):
    """The task exists. Of Minari's ids, which name datasets elsewhere, only the form is looked at."""
    if "/" in env_id and not env_id.startswith("robomimic/"):
        assert re.fullmatch(r"[-\w]+(/[-\w]+)+-v\d+", env_id)
    else:
        d4rl.task(env_id)


def test_there_are_commands():
    assert {"README.md", *(f"{name}.py" for name in PATHS)} <= {page for page, *_ in COMMANDS}
    assert {"-m d4rl", *(f"{name}.py" for name in SAQ)} <= {file for _, file, _ in COMMANDS}


@pytest.mark.parametrize("page", sorted({page for page, *_ in COMMANDS}))
def test_commands(page, tmp_path, monkeypatch, capsys):
    for file, arguments in ((file, arguments) for p, file, arguments in COMMANDS if p == page):
        script, shown = file.removesuffix(".py"), f"{page}: {file} {' '.join(arguments)}"
        if file == "-m d4rl":
            check_d4rl_command(arguments, monkeypatch)
        elif page == "docs/exercises.md" and re.fullmatch(r"(\w+/)?saq_\w+\.py", file) and script not in SAQ:
            continue  # the reader's own
        else:
            assert (ROOT / file).is_file(), shown
            try:
                if script in SCRIPTS:
                    args = parse(script, arguments, tmp_path, monkeypatch)
                    check_task(args.env_id)
                elif script in BENCHMARKS and "class Args" in BENCHMARKS[script].read_text():
                    tyro.cli(load(BENCHMARKS[script], "benchmark_module").Args, args=arguments)
            except SystemExit as exit:  # 0 of --help
                assert not exit.code, f"{shown}\n{capsys.readouterr().err}"


def check_d4rl_command(arguments, monkeypatch):
    """`python -m d4rl` takes the arguments, and the tasks exist. Only `list` is run: others want files."""
    taken = []
    for name in ("fetch", "check"):
        monkeypatch.setattr(cli, name, taken.append)
    monkeypatch.setattr(sys, "argv", ["d4rl", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    for args in taken:
        for env_id in args.env_ids if "env_ids" in args else [args.env_id]:
            check_task(env_id)


def accepts(taken, script, words, tmp_path, monkeypatch):
    """Whether the script or benchmark takes all these flags; of a script, with such values."""
    flags = [word[2:] for word in words if word.startswith("--")]
    if not all(flag in taken or flag.removeprefix("no-") in taken for flag in flags):
        return False
    try:
        if script in SCRIPTS and len(words) > len(flags):
            parse(script, words, tmp_path, monkeypatch)
    except (SystemExit, d4rl.UsageError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES)
def test_flags(page, tmp_path, monkeypatch):
    """`--flag` and `--flag value` in running text: a page on a script means this one; elsewhere, any."""
    text, own = PAGES[page].read_text(), page[len("docs/") : -len(".md")]
    taken = {name: module.Args for name, module in SCRIPTS.items()}
    if own in SAQ:
        taken = {own: taken[own]}
    for name, path in BENCHMARKS.items():
        if "class Args" in path.read_text():
            taken[name] = load(path, "benchmark_module").Args
    taken = {name: {field.name.replace("_", "-") for field in fields(cls)} for name, cls in taken.items()}
    taken["all"] = {"help", "allow-unverified"}
    solution = PAGES["docs/notes/td3bc.md"].read_text()  # has an argument of its own
    taken["exercise"] = {name.replace("_", "-") for name in re.findall(r"(\w+): float = ", solution)}
    for code in {code for code in inline_code(text) if code.startswith("--")}:
        words = shlex.split(code)
        found = (accepts(names, script, words, tmp_path, monkeypatch) for script, names in taken.items())
        assert any(found), f"{page}: `{code}`"


def anchors(text):
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", PAGES[page].read_text())):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            path = (PAGES[page].parent / file).resolve() if file else PAGES[page]
            assert path.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(path.read_text()), f"{page}: {target}"


QUOTES = {f"docs/{name}.md": PATHS[name] for name in SAQ} | {"docs/quantizer.md": ROOT / "vqvae.py"}


@pytest.mark.parametrize("page", QUOTES)
def test_quoted_code_is_the_scripts(page):
    """Each line of a block that quotes a script occurs in it."""
    source = {line.strip() for line in QUOTES[page].read_text().splitlines()}
    python = blocks(PAGES[page].read_text(), "python")
    quoted = [block for block in python if re.search(r"learner|vqvae\.|self\.", block)]
    for line in (line.strip() for block in quoted for line in block.splitlines()):
        assert not line or line in source, f"{page}: {line}"
    assert quoted, f"{page} shows no code"


def test_names_in_the_readme():
    """Modules' functions and classes, as `saq_cql.conservative_loss` or `VQVAE.loss`, exist."""
    named = set(inline_code(PAGES["README.md"].read_text()))
    for name in named:
        if match := re.fullmatch(r"(saq_\w+|VQVAE)\.(?!py)(\w+)", name):
            assert hasattr(vqvae.VQVAE if match[1] == "VQVAE" else SCRIPTS[match[1]], match[2]), name
    assert len([name for name in named if re.fullmatch(r"(saq_\w+|VQVAE)\.(?!py)(\w+)", name)]) >= 5


@pytest.mark.parametrize("script", PATHS)
def test_columns_are_documented(script, finished):
    text = PAGES["docs/metrics.md"].read_text()
    explained = {name for code in inline_code(text) for name in re.findall(r"\b\w+/\w+\b", code)}
    assert {name for name in metrics(finished(script)[0])[0] if "/" in name} <= explained


def test_no_column_is_invented(finished):
    """The table of metrics lists what some script logs."""
    tables = [(finished(script)[0] / "metrics.csv").read_text() for script in PATHS]
    logged = {name for table in tables for name in table.split("\n")[0].split(",")}
    rows = re.findall(r"^\| *(`[^|]+) *\|", PAGES["docs/metrics.md"].read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+/\w+)`", row)} <= logged


# --- lengths ---
def test_lengths():
    readme = PAGES["README.md"].read_text()
    assert len(readme.splitlines()) <= 120
    assert len(re.findall(r"(?<![A-Za-z0-9_.])[0-9][0-9.,]*", readme)) <= 60
    for name in SAQ:
        assert len(PAGES[f"docs/{name}.md"].read_text().splitlines()) <= 130, name
    book = [path for page, path in PAGES.items() if page.startswith("docs/") and "notes" not in page]
    assert sum(len(path.read_text().split()) for path in book) <= 10_000


# --- output ---
def shown_run():
    """The output under the quick start, line by line; `...` stands for what was left out."""
    (text,) = (block for block in blocks(PAGES["README.md"].read_text(), "text") if "__saq_iql__" in block)
    return text.splitlines()


def numbers(line):
    return [float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d[\d.,]*\b", line)]


def test_shown_output_has_the_form_of_a_run(capsys):
    """Its first line to the letter; the metrics that a bar shows have names of the script's."""
    module, (data, folder, *bars, score) = SCRIPTS["saq_iql"], shown_run()
    module.load_data(module.Args(device="cpu"))
    assert capsys.readouterr().out.strip() == data
    assert folder.startswith("runs/maze2d-large-demos-v0__saq_iql__0__") and score.endswith(f"; {folder}")
    source = PATHS["saq_iql"].read_text() + (ROOT / "vqvae.py").read_text()
    names = {name for bar in bars for name in re.findall(r"(\w+/\w+)=", bar)}
    assert len(names) >= 4 and all(f'"{name}"' in source for name in names)


@pytest.mark.slow
def test_shown_output_is_that_of_a_run(tmp_path):
    """The score within 3 points, other metrics within a fifth: processors round differently."""
    done = subprocess.run([sys.executable, PATHS["saq_iql"]], cwd=tmp_path, capture_output=True, text=True)
    made = (done.stderr.replace("\r", "\n") + done.stdout).splitlines()
    for line in shown_run()[2:]:
        label = line.split(":")[0].split(" ")[0]
        found = [other for other in made if other.startswith(label)][-1]
        for name, value in re.findall(r"(\w+/\w+)=([\d.]+)", line):
            (ours,) = re.findall(rf"{name}=([-\d.e]+)", found)
            assert float(ours) == pytest.approx(float(value), rel=0.2), name
        if label == "score":
            assert numbers(found)[:3] == pytest.approx(numbers(line)[:3], abs=3)
