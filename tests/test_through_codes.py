"""benchmark/through_codes.py: projections computed by hand, and two tiny runs played through each other."""

import json

import numpy as np
import pytest
from common import ROOT, load, play, run, tiny

through_codes = load(ROOT / "benchmark" / "through_codes.py", "through_codes")
TRIANGLE = np.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])


@pytest.mark.parametrize(
    ("action", "nearest", "mixture"),
    [
        ([0.2, 0.3], [0, 0], [0.2, 0.3]),  # inside
        ([1.0, 1.0], [1, 0], [0.5, 0.5]),  # beyond an edge
        ([0.9, 1.0], [0, 1], [0.45, 0.55]),
        ([-1.0, -0.5], [0, 0], [0, 0]),  # beyond a corner
        ([0.7, -0.5], [1, 0], [0.7, 0]),
    ],
)
def test_projections(action, nearest, mixture):
    np.testing.assert_array_equal(through_codes.nearest(np.array([action]), TRIANGLE), [nearest])
    np.testing.assert_allclose(through_codes.mixture(np.array([action]), TRIANGLE), [mixture], atol=1e-5)


@pytest.mark.parametrize("twin", ["baselines/bc", "baselines/cql", "baselines/iql", "baselines/brac"])
def test_finished_runs(twin, tmp_path):
    flags = ["--num-actions", 2] if twin.endswith("cql") else []
    continuous, discrete = run(twin, tmp_path / "twin", *flags), run("saq_bc", tmp_path / "saq")
    through_codes.main([str(continuous), str(discrete), "--eval-episodes", "3", "--out", str(tmp_path / "out.jsonl")])
    lines = {line["played"]: line for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert lines["policy"]["score"] == pytest.approx(play(twin, "--evaluate", continuous), rel=1e-6)
    assert 0 == lines["policy"]["error"] < lines["mixture"]["error"]
    assert len({line["score"] for line in lines.values()}) == 3  # each played something else
    _, policy = through_codes.load_twin(str(continuous))
    _, decode = through_codes.load_decoder(str(discrete))
    obs = np.random.default_rng(0).standard_normal((5, 11))
    action, decoded = policy(obs), decode(obs)
    near, mixed = through_codes.nearest(action, decoded), through_codes.mixture(action, decoded)
    assert (np.square(mixed - action).sum(1) <= np.square(near - action).sum(1) + 1e-6).all()


def test_decoded_actions_are_those_that_the_script_plays(tmp_path):
    """Acting by drawn codes, the random number 0 draws the first code, 1 the last."""
    folder = run("saq_bc", tmp_path, *tiny("saq_bc"), "--codebook-size", 2)
    _, decode = through_codes.load_decoder(str(folder))
    args = through_codes.saq_bc.parse_args(["--evaluate", str(folder), "--acting", "sample"])
    checkpoint = through_codes.saq_bc.read_checkpoint(str(folder), "learner")
    vqvae = through_codes.VQVAE(11, 3, 2, args.embedding_dim, args.vqvae_hidden_dim, args.codebook_form, args.revive)
    vqvae.load_state_dict(checkpoint["stages"]["quantizer"]["model"])
    learner = through_codes.saq_bc.make_learner(args, 11)
    obs = np.random.default_rng(0).standard_normal((4, 11))
    for uniform, code in ((0.0, 0), (1.0, 1)):
        with through_codes.torch.no_grad():
            played = through_codes.saq_bc.act(args, vqvae, learner, checkpoint, obs, np.full(4, uniform))
        np.testing.assert_allclose(decode(obs)[:, code], played.clip(-1, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere", "{saq}"], "nowhere is not the folder of a run"),
        (["{saq}", "{saq}"], "is a run of saq_bc.py; name one of baselines/"),
        (["{twin}", "{twin}"], "is a run of bc.py"),
        (["{twin}", "{saq}", "--eval-episodes", "0"], "--eval-episodes is 0"),
        (["{twin}", "{maze}"], "one run is on hopper-medium-v2, the other on maze2d-large-demos-v0"),
    ],
)
def test_bad_input(arguments, problem, tmp_path, capsys):
    folders = {"twin": run("baselines/bc", tmp_path / "twin"), "saq": run("saq_bc", tmp_path / "saq")}
    if "{maze}" in arguments:
        folders["maze"] = run("saq_bc", tmp_path / "maze", "--env-id", "maze2d-large-demos-v0", "--eval-episodes", 1)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        through_codes.main([argument.format(**folders) for argument in arguments])
    assert stop.value.code == 2 and problem in capsys.readouterr().err
