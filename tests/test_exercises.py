"""docs/exercises.md: the numbers that its solutions promise, where they take no training."""

import importlib.util
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from common import ROOT, SCRIPTS

import d4rl
from vqvae import VQVAE

saq_brac, saq_cql, saq_iql = SCRIPTS["saq_brac"], SCRIPTS["saq_cql"], SCRIPTS["saq_iql"]
PAGE = (ROOT / "docs" / "exercises.md").read_text()
SOLUTION = (ROOT / "docs" / "notes" / "td3bc.md").read_text()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_1_penalty_is_cross_entropy():
    q, code = torch.randn(256, 16, requires_grad=True), torch.randint(16, (256,))
    penalty = saq_cql.conservative_loss(q, code)
    assert torch.allclose(penalty, F.cross_entropy(q, code))
    (gradient,) = torch.autograd.grad(penalty, q)
    assert torch.allclose(gradient, (q.softmax(1) - F.one_hot(code, 16)) / 256, atol=1e-7)


def test_2_closed_form_by_hand():
    log_behaviour = torch.tensor([[0.5, 0.25, 0.25]]).log()
    q = torch.tensor([[1.0, 2.0, 4.0]]).log()
    pi = saq_iql.closed_form_policy(q, log_behaviour, 1.0).exp()
    assert torch.allclose(pi, torch.tensor([[0.25, 0.25, 0.5]]))
    assert torch.allclose(saq_iql.closed_form_policy(q - 7, log_behaviour, 1.0).exp(), pi, atol=1e-6)
    assert torch.allclose(saq_iql.closed_form_policy(q, log_behaviour, 1e6), log_behaviour, atol=1e-5)
    greedy = saq_iql.closed_form_policy(q, log_behaviour, 1e-3).exp()
    assert torch.allclose(greedy, torch.tensor([[0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("expectile, value", [(0.5, 0.25), (0.7, 0.4375), (0.9, 0.75), (0.99, 0.9706)])
def test_3_expectiles(expectile, value):
    q, v = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.zeros(1, requires_grad=True)
    for _ in range(3000):
        (gradient,) = torch.autograd.grad(saq_iql.expectile_loss(q - v, expectile), v)
        v.data -= 0.5 * gradient
    assert v.item() == pytest.approx(value, abs=1e-4)


def test_4_where_the_gradients_go():
    reached = {}
    vqvae = VQVAE(4, 2, form="paper", revive=False)
    with torch.no_grad():
        vqvae.codebook *= 0.01  # near the embeddings: several codes are chosen
    loss, metrics, _, code = vqvae.loss(torch.randn(256, 4), torch.randn(256, 2))
    terms = {"reconstruction": metrics["vqvae/reconstruction"], "commitment": metrics["vqvae/commitment"]}
    terms["codebook"] = loss - terms["reconstruction"] - terms["commitment"]
    parts = {
        "encoder": vqvae.encoder[0].weight,
        "codebook": vqvae.codebook,
        "decoder": vqvae.decoder[0].weight,
    }
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, parts.values(), retain_graph=True, allow_unused=True)
        moved = [gradient is not None and gradient.abs().sum().item() > 0 for gradient in gradients]
        reached[name] = [part for part, has_moved in zip(parts, moved, strict=True) if has_moved]
    assert reached["reconstruction"] == ["encoder", "decoder"]
    assert reached["commitment"] == ["encoder"]
    assert "codebook" in reached["codebook"] and "decoder" not in reached["codebook"]
    loss.backward()
    moved = vqvae.codebook.grad.abs().sum(1) > 0
    assert moved.nonzero()[:, 0].tolist() == code.unique().tolist()
    assert VQVAE(4, 2).codebook.requires_grad is False


def test_5_bins():
    action = torch.as_tensor(d4rl.qlearning_dataset("maze2d-large-demos-v0")["actions"])
    errors = {}
    for bins in range(1, 7):
        middle = (((action + 1) * bins / 2).floor().clamp(max=bins - 1) + 0.5) * 2 / bins - 1
        errors[bins] = (middle - action).pow(2).sum(1).mean().item()
    row = " | ".join(f"{error:.3f}" for error in errors.values())
    assert f"| error | {row} |" in PAGE


def test_6_value_at_the_goal():
    q, reward, no, yes = torch.tensor([100.0]), torch.ones(1), torch.zeros(1), torch.ones(1)
    assert saq_iql.td_loss(q, reward, no, next_value=q, discount=0.99).item() == pytest.approx(0, abs=1e-6)
    assert saq_iql.td_loss(reward, reward, yes, next_value=q, discount=0.99).item() == 0


def test_9_the_policy_that_brac_looks_for():
    q, log_behaviour, beta, alpha = torch.randn(8, 16), torch.randn(8, 16).log_softmax(1), 2.0, 0.5
    logits = ((q + beta * log_behaviour) / alpha).requires_grad_()
    loss = saq_brac.policy_loss(logits.log_softmax(1), q, log_behaviour, beta, alpha)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6
    best = -alpha * logits.logsumexp(1).mean()
    assert torch.allclose(loss, best)
    for _ in range(20):
        other = saq_brac.policy_loss(torch.randn(8, 16).log_softmax(1), q, log_behaviour, beta, alpha)
        assert other > loss
    iql = saq_iql.closed_form_policy(q, log_behaviour, 2.0)
    assert torch.allclose(((q + 2 * log_behaviour) / 2).log_softmax(1), iql)


def test_10_saq_td3bc(tmp_path, monkeypatch):
    """saq_brac.py with the page's two blocks instead of its own, its weights gone from SETTINGS, trains."""
    arguments, stage_2 = re.findall(r"```python\n(.*?)```", SOLUTION, re.DOTALL)
    source = (ROOT / "saq_brac.py").read_text()
    old = r"    # --- SAQ-BRAC ---\n.*?\n\n"
    source, first = re.subn(old, lambda _: arguments + "\n", source, flags=re.DOTALL)
    old = r"class Learner.*?(?=# --- acting ---)"
    source, second = re.subn(old, lambda _: stage_2 + "\n\n", source, flags=re.DOTALL)
    source, third = re.subn(r",\s*behaviour_weight=\S+, entropy_weight=[\d.]+", "", source)
    assert (first, second, third) == (1, 1, 2)
    (tmp_path / "saq_td3bc.py").write_text(source)
    spec = importlib.util.spec_from_file_location("saq_td3bc", tmp_path / "saq_td3bc.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "saq_td3bc", module)
    spec.loader.exec_module(module)

    q, code = torch.randn(8, 16), torch.randint(16, (8,))
    logits = torch.randn(8, 16, requires_grad=True)
    cloning = module.policy_loss(logits.log_softmax(1), q, code, 0.0)
    assert torch.allclose(cloning, F.cross_entropy(logits, code))
    loss = module.policy_loss(logits.log_softmax(1), q, code, 2.5)  # the scale of Q does not matter
    assert torch.allclose(
        loss, module.policy_loss(logits.log_softmax(1), 10 * q, code, 2.5)
    )  # any scale of Q

    flags = ["--device", "cpu", "--vqvae-steps", "20", "--steps", "20", "--eval-episodes", "1"]
    args = module.parse_args([*flags, "--runs-dir", str(tmp_path / "runs")])
    assert 0 <= module.main(args) <= 110
    (folder,) = (tmp_path / "runs").iterdir()
    assert module.load(folder)([1.0, 1.0, 0.0, 0.0]).shape == (2,)
