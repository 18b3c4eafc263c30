"""What README and docs/ say is true of the scripts: commands, flags, links, columns."""

import json
import re
import runpy
import shlex
import sys
from dataclasses import asdict, fields

import pytest
import tyro
from common import PATHS, ROOT, SAQ, SCRIPTS, dataset, load, run

import d4rl
from d4rl import __main__ as cli

PAGES = {str(path.relative_to(ROOT)): path for path in [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md"))]}
BENCHMARKS = {f"benchmark/{path.stem}": path for path in ROOT.glob("benchmark/*.py")}


def code_blocks(text):
    shown = re.findall(r"^ *```text\n\$ (.*?\n)", text, re.MULTILINE)
    return re.findall(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL) + shown


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(text):
    """(file, arguments) of every `python FILE.py ...` in code blocks and inline code, ("-m d4rl", arguments) of d4rl's.

    In a block of text, a first line that begins with "$ " is a command above its output.
    """
    for line in [
        *(line for b in code_blocks(text) for line in b.replace("\\\n", " ").splitlines()),
        *inline_code(text),
    ]:
        for part in re.split(r"&&|;|\|", line.split(" #")[0]):
            words = shlex.split(part) if "python" in part and (".py" in part or "-m d4rl " in part) else []
            names = [i for i, word in enumerate(words) if word.startswith("python") and i + 1 < len(words)]
            if names and words[names[0] + 1].endswith(".py"):
                yield words[names[0] + 1], words[names[0] + 2 :]
            elif names and words[names[0] + 1 :][:2] == ["-m", "d4rl"]:
                yield "-m d4rl", words[names[0] + 3 :]


COMMANDS = [(page, *command) for page, path in PAGES.items() for command in commands(path.read_text())]
# The command in the docstring of each script.
COMMANDS += [(f"{name}.py", *c) for name, p in PATHS.items() for c in commands(f"```bash\n{p.read_text()[:1500]}\n```")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to stand in: runs/NAME is a run of each script in turn."""
    return tmp_path_factory.mktemp("place")


def parse(script, arguments, place, monkeypatch):
    """The script's own parser on these arguments; every runs/... in them stands for a run of the script."""
    folders = [word for word in arguments if word.startswith("runs/")]
    for folder in folders:
        (place / folder).mkdir(parents=True, exist_ok=True)
        run_of = {"script": script.split("/")[-1], **asdict(SCRIPTS[script].parse_args([]))}
        (place / folder / "args.json").write_text(json.dumps(run_of))
    monkeypatch.chdir(place)
    return SCRIPTS[script].parse_args(arguments)


def test_there_are_commands():
    assert {"README.md", *(f"{name}.py" for name in PATHS)} <= {page for page, *_ in COMMANDS}
    assert {"-m d4rl", *(f"{name}.py" for name in SAQ)} <= {file for _, file, _ in COMMANDS}


def check_task(env_id):
    """The task exists. Of Minari's ids, which name datasets elsewhere, only the form is looked at."""
    if "/" in env_id and not env_id.startswith("robomimic/"):
        assert re.fullmatch(r"[-\w]+(/[-\w]+)+-v\d+", env_id)
    else:
        d4rl.task(env_id)


@pytest.mark.parametrize(("page", "file", "arguments"), COMMANDS)
def test_command(page, file, arguments, place, monkeypatch):
    if file == "-m d4rl":
        return check_d4rl_command(arguments, monkeypatch)
    script = file.removesuffix(".py")
    assert (ROOT / file).is_file()
    if script in SCRIPTS:
        args = parse(script, arguments, place, monkeypatch)
        if "--env-id" in arguments:
            check_task(args.env_id)
    elif script in BENCHMARKS and hasattr(module := load(BENCHMARKS[script], "benchmark_module"), "Args"):
        tyro.cli(module.Args, args=arguments)


def check_d4rl_command(arguments, monkeypatch):
    """`python -m d4rl` takes the arguments, and the tasks exist. Only `list` is run: the others want files."""
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


@pytest.mark.parametrize("page", PAGES)
def test_flags(page, place, monkeypatch, capsys):
    """`--flag` and `--flag value` in running text: the script of the page takes them; in other pages, some script."""
    own = [name for name in SCRIPTS if page == f"docs/{name}.md"]
    others = {"help"} | {
        field.name.replace("_", "-")
        for name, path in BENCHMARKS.items()
        if "Args" in path.read_text()
        for field in fields(load(path, "benchmark_module").Args)
    }
    for code in inline_code(PAGES[page].read_text()):
        if not code.startswith("--"):
            continue
        words = shlex.split(code)
        taken = []
        for script in own or SCRIPTS:
            names = {field.name.replace("_", "-") for field in fields(SCRIPTS[script].Args)}
            flags = [word[2:] for word in words if word.startswith("--")]
            if not all(flag in names or flag.removeprefix("no-") in names for flag in flags):
                continue
            if len(words) > len(flags):  # with values
                try:
                    parse(script, words, place, monkeypatch)
                except SystemExit:
                    continue
            taken.append(script)
        assert taken or (len(words) == 1 and words[0][2:] in others), f"{page}: `{code}`\n{capsys.readouterr().err}"


def anchors(text):
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    text = re.sub(r"^ *```.*?^ *```", "", PAGES[page].read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (PAGES[page].parent / file).resolve() if file else PAGES[page]
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{page}: {target}"


@pytest.mark.parametrize("script", PATHS)
def test_columns_are_documented(script, tmp_path):
    """The page of an algorithm explains every column of metrics.csv, and none that does not exist."""
    name = script if script in SAQ else "saq_bc" if script == "baselines/bc" else "baselines"
    page = ROOT / "docs" / f"{name}.md"
    with (run(script, tmp_path) / "metrics.csv").open() as file:
        columns = {name for name in file.readline().strip().split(",") if "/" in name}
    rows = re.findall(r"^\| *(`[^|]+) *\|", page.read_text(), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+/\w+)`", row)}
    assert columns <= explained
    if script in SAQ:
        assert explained <= columns


def test_quantizer_benchmark(tmp_path, monkeypatch, capsys):
    """Runs with a tiny budget, skips what is finished, prints a table."""
    dataset(tmp_path / "hopper-medium-expert.hdf5", "hopper-medium-expert-v2")
    monkeypatch.setenv("SAQ_STANDIN_DIR", str(tmp_path))
    flags = ["--out", tmp_path / "out.jsonl", "--only", "hopper", "--vqvae-steps", 3, "--steps", 3, "--seeds", 0]
    monkeypatch.setattr(sys, "argv", list(map(str, ["quantizer_forms.py", *flags])))
    runpy.run_path(str(BENCHMARKS["benchmark/quantizer_forms"]), run_name="__main__")
    lines = (tmp_path / "out.jsonl").read_text()
    assert len({json.loads(line)["form"] for line in lines.splitlines()}) == len(lines.splitlines()) == 5
    assert capsys.readouterr().out.count("| hopper-medium-expert |") == 5
    runpy.run_path(str(BENCHMARKS["benchmark/quantizer_forms"]), run_name="__main__")
    assert (tmp_path / "out.jsonl").read_text() == lines
