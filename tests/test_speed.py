"""--bf16, which trades exactness for speed."""

import os
import subprocess
import sys

import pytest
import torch
from common import PATHS, SCRIPTS, checkpoint, run, same, tiny

NONE = "--bf16 changes nothing here"


def has_units() -> bool:
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def weights(folder):
    return checkpoint(folder)["stages"]["learner"]["model"]


def in_a_process(folder, *flags, **variables):
    """What a run of SAQ-BC printed, and its weights."""
    command = [sys.executable, PATHS["saq_bc"], *tiny("saq_bc"), "--runs-dir", folder, *flags]
    environment = os.environ | variables
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return done.stdout, weights(path)


@pytest.fixture(autouse=True)
def exact_products():
    yield
    torch.set_float32_matmul_precision("highest")


def test_a_processor_without_units_is_told(tmp_path):
    """The run is the same as without the flag, and a sentence says so."""
    printed, plain = in_a_process(tmp_path / "plain", ONEDNN_MAX_CPU_ISA="AVX2")
    assert NONE not in printed
    printed, bf16 = in_a_process(tmp_path / "bf16", "--bf16", ONEDNN_MAX_CPU_ISA="AVX2")
    assert NONE in printed and same(plain, bf16)


@pytest.mark.skipif(not has_units(), reason="needs a processor with units for bfloat16")
@pytest.mark.parametrize("script", PATHS)
def test_bf16_is_nearly_the_same_run(script, tmp_path):
    """Weights are near, float32, and the same in a second run; without the flag they are exact again."""
    plain = weights(run(script, tmp_path / "plain"))
    bf16 = weights(run(script, tmp_path / "bf16", "--bf16"))
    assert same(bf16, weights(run(script, tmp_path / "again", "--bf16")))
    assert not same(bf16, plain) and all(weight.dtype == torch.float32 for weight in bf16.values())
    for name, weight in plain.items():
        assert (weight - bf16[name]).abs().mean() < 0.01, name
    assert same(plain, weights(run(script, tmp_path / "exact")))


def test_a_run_stays_bf16(tmp_path):
    folder = run("saq_bc", tmp_path, "--bf16")
    assert SCRIPTS["saq_bc"].parse_args(["--evaluate", str(folder)]).bf16
