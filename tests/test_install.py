"""What has to be installed for what, and whose `d4rl` a script uses."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from common import HOPPER, PATHS, ROOT, dataset, tiny

import d4rl

PROJECT = tomllib.loads((ROOT / "d4rl" / "pyproject.toml").read_text())["project"]
PARTS = ["robomimic", "minari", "wandb", "video"]  # of d4rl, each with its own sentence where it is missing
MORE = {"robosuite", "minari", "huggingface_hub", "wandb", "moviepy"}  # the modules that these bring
MORE |= {"hdf5plugin"}  # only for a file that needs it, which a sentence says


def lines(*files: str) -> list[str]:
    """Requirements, without comments."""
    text = "\n".join((ROOT / file).read_text() for file in files)
    return [line for line in re.sub(r"\s*#.*", "", text).splitlines() if line]


def names(requirements: list[str]) -> set[str]:
    """Packages by the names of their modules, without versions and extras."""
    return {re.split(r"[\[=<>]", line)[0].replace("-", "_") for line in requirements if line[0] != "-"}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of other packages that are imported with the file, and all that it imports."""
    first, all_of_them = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        all_of_them.update(module.split(".")[0] for module in modules)
        first.update(module.split(".")[0] for module in modules if node.col_offset == 0)
    ours = sys.stdlib_module_names | {"d4rl", "vqvae"}
    return first - ours, all_of_them - ours


def test_versions():
    """Each is given once and exactly. The package says its own: the installed one may be another clone's."""
    assert d4rl.__version__ == PROJECT["version"]
    extras = PROJECT["optional-dependencies"]
    assert extras.keys() == {"runs", *PARTS}
    given = lines("requirements.txt", "tests/requirements.txt", "docs/requirements.txt")
    given += [line for part in PARTS for line in extras[part] if line != "mujoco<4"]
    given = [line for line in given if line[0] != "-"]
    assert [line for line in given if not re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\w.]+", line)] == []
    assert len(given) == len(names(given)) > 20


def test_requirements_txt_brings_what_is_imported():
    core = names(lines("requirements.txt")) | names(PROJECT["dependencies"])
    assert names(PROJECT["optional-dependencies"]["runs"]) < core
    for path in [*PATHS.values(), ROOT / "vqvae.py", *(ROOT / "d4rl").glob("*.py")]:
        first, all_of_them = imports(path)
        assert first <= core, f"{path} cannot be imported without {first - core}"
        assert all_of_them <= core | MORE, f"{path} needs {all_of_them - core - MORE}"


def test_a_run_needs_no_more(tmp_path):
    """Where all else that tests/requirements.txt brings is missing, scripts are imported, train and play."""
    data = dataset(tmp_path / "data.hdf5")
    missing = MORE | names(lines("tests/requirements.txt")) | {"cv2", "numba", "pynput", "mink", "IPython"}
    flags = ["--env-id", HOPPER, "--dataset-path", str(data), *tiny("saq_iql"), "--runs-dir", str(tmp_path)]
    code = f"import runpy, sys; sys.modules |= dict.fromkeys({missing}); sys.path.insert(0, {str(ROOT)!r})\n"
    code += f"for path in {[str(path) for path in PATHS.values()]}: runpy.run_path(path)\n"
    code += f"import saq_iql; saq_iql.main(saq_iql.parse_args({flags}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "score " in done.stdout


def test_commands_name_parts_that_exist():
    """`pip install -e "./d4rl[...]"` in sentences and pages; every part is asked for by one in the code."""
    files = [path for folder in ("", "d4rl", "docs", "tests") for path in (ROOT / folder).glob("*.*")]
    files = [path for path in files if path.suffix in (".py", ".md", ".txt")]
    quoted = {path: re.findall(r"\./d4rl\[([\w,]+)\]", path.read_text()) for path in files}
    for path, parts in quoted.items():
        assert set(",".join(parts).split(",")) <= {"", *PARTS}, (
            f"{path} names a part that d4rl has not: {parts}"
        )
    in_code = {part for path, parts in quoted.items() if path.parent.name == "d4rl" for part in parts}
    assert in_code == set(PARTS)


def test_a_script_uses_the_package_beside_it(tmp_path):
    """Not another clone's that is installed or on the path: scripts, benchmarks, figures."""
    (tmp_path / "d4rl").mkdir()
    (tmp_path / "d4rl" / "__init__.py").write_text("raise SystemExit('another d4rl')")
    scripts = [*PATHS.values(), *(ROOT / "benchmark").glob("*.py"), *(ROOT / "docs").glob("make_*.py")]
    code = f"""
import runpy, sys
path = sys.path[1:]
for script in {[str(script) for script in scripts]}:
    for name in list(sys.modules):
        if name.split(".")[0] in ("d4rl", "vqvae", "shared") or "saq_" in name:
            del sys.modules[name]
    sys.path[:] = [script.rsplit("/", 1)[0], {str(tmp_path)!r}, *path]
    runpy.run_path(script)
    print(script, "d4rl" in sys.modules and sys.modules["d4rl"].__file__)
"""
    settings = dict(capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""})
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    used = dict(line.split(" ") for line in done.stdout.splitlines())
    assert used.keys() == set(map(str, scripts))
    assert set(used.values()) == {str(ROOT / "d4rl" / "__init__.py"), "False"}
