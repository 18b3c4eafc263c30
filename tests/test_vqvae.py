"""The quantizer: nearest codes, straight-through gradients, and how each form of the codebook moves.

`vqvae` is a global of this file: test_mutations.py puts altered copies in its place.
"""

import numpy as np
import pytest
import torch

import vqvae


def quantizer(obs_dim=3, action_dim=2, codes=8, **options):
    torch.manual_seed(0)
    return vqvae.VQVAE(obs_dim, action_dim, codes, embedding_dim=4, hidden_dim=16, **options)


def pairs(rows, obs_dim=3, action_dim=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, obs_dim, generator=generator), torch.randn(rows, action_dim, generator=generator)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def identity_quantizer(codebook, **options):
    """The embedding is the action itself."""
    model = vqvae.VQVAE(1, 2, len(codebook), embedding_dim=2, condition_on_obs=False, **options)
    model.encoder = torch.nn.Identity()
    with torch.no_grad():
        model.codebook.copy_(torch.tensor(codebook))
        model.embedding_sum.copy_(model.codebook / len(codebook))
    return model


# --- networks ---
def test_mlp():
    net = vqvae.mlp(3, 5, 7, 2)
    assert [type(layer).__name__ for layer in net] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [tuple(layer.weight.shape) for layer in net if hasattr(layer, "weight")] == [(5, 3), (7, 5), (2, 7)]


# --- codes ---
def test_nearest_code_equals_brute_force():
    model, (obs, action) = quantizer(codes=50), pairs(500)
    embedding = model.encoder(torch.cat([obs, action], 1)).detach().numpy()
    codebook = model.codebook.detach().numpy()
    distances = ((embedding[:, None] - codebook[None]) ** 2).sum(2)  # (N, K)
    assert len(np.unique(distances.argmin(1))) > 3
    np.testing.assert_array_equal(model.encode(obs, action), distances.argmin(1))


def test_encode_more_rows_than_one_part():
    model, (obs, action) = quantizer(codes=16).double(), pairs(70_000)
    obs, action = obs.double(), action.double()
    codes = model.encode(obs, action)
    parts = [model.encode(obs[i : i + 9_999], action[i : i + 9_999]) for i in range(0, 70_000, 9_999)]
    assert codes.shape == (70_000,) and codes.dtype == torch.int64 and len(codes.unique()) > 3
    assert torch.equal(codes, torch.cat(parts))


def test_decode():
    model, (obs, action) = quantizer(), pairs(6)
    decoded = model.decode(obs, model.encode(obs, action))
    assert decoded.shape == (6, 2)
    codes = torch.tensor([0, 1, 2, 3, 4, 5])
    inputs = torch.cat([obs, model.codebook[codes]], 1)
    torch.testing.assert_close(model.decode(obs, codes), model.decoder(inputs))


def test_what_is_decoded_in_training_is_what_acts():
    model, (obs, action) = quantizer(), pairs(20)
    error = model.decode(obs, model.encode(obs, action)) - action
    _, terms = model.loss(obs, action)
    assert terms["vqvae/reconstruction"].item() == pytest.approx(error.pow(2).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("condition_on_obs", [True, False])
def test_condition_on_obs(condition_on_obs):
    model, (obs, action) = quantizer(codes=50, condition_on_obs=condition_on_obs), pairs(200)
    code = model.encode(obs, action)
    assert torch.equal(model.encode(10 * obs + 1, action), code) != condition_on_obs
    assert torch.equal(model.decode(obs + 1, code), model.decode(obs, code)) != condition_on_obs
    assert not torch.equal(model.encode(obs, action + 1), code)


# --- gradients ---
def test_straight_through():
    """The encoder receives the gradient of the reconstruction at the code, as if it had said the code itself."""
    model, (obs, action) = quantizer(form="paper"), pairs(5)
    seen = []
    hook = model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    _, terms = model.loss(obs, action)
    hook.remove()
    reconstruction, parameters = terms["vqvae/reconstruction"], [*model.encoder.parameters(), model.codebook]
    at_embedding, *others = torch.autograd.grad(reconstruction, [*seen, *parameters], allow_unused=True)
    assert others.pop() is None  # the reconstruction does not move the codes
    assert all(gradient.abs().max() > 0 for gradient in others)
    code = model.codebook[model.encode(obs, action)].detach().requires_grad_()
    assert not torch.allclose(code, seen[0])
    (model.decoder(torch.cat([obs, code], 1)) - action).pow(2).sum(1).mean().backward()
    torch.testing.assert_close(at_embedding, code.grad)


@pytest.mark.parametrize("form", ["paper", "official", "ema"])
def test_who_moves_whom(form):
    model, (obs, action) = quantizer(form=form), pairs(5)
    _, terms = model.loss(obs, action)
    encoder, codebook = list(model.encoder.parameters()), model.codebook
    by_commitment = torch.autograd.grad(terms["vqvae/commitment"], encoder, retain_graph=True)
    assert all(gradient.abs().max() > 0 for gradient in by_commitment)
    if form == "ema":
        assert not codebook.requires_grad and not terms["vqvae/codebook"].requires_grad
        return
    for term, expected in [("codebook", True), ("commitment", False)]:
        gradients = torch.autograd.grad(
            terms[f"vqvae/{term}"], [codebook, *encoder], allow_unused=True, retain_graph=True
        )
        assert [gradient is not None for gradient in gradients] == [expected] + [not expected] * len(encoder)


def test_paper_sums_where_the_official_code_averages():
    obs, action = pairs(30)
    paper, official = (quantizer(form=form).loss(obs, action) for form in ("paper", "official"))
    for name, factor in [("reconstruction", 1), ("codebook", 4), ("commitment", 4)]:  # D = 4
        assert paper[1][f"vqvae/{name}"].item() == pytest.approx(factor * official[1][f"vqvae/{name}"].item())
    assert paper[0].item() == pytest.approx(sum(term.item() for term in paper[1].values()))
    assert official[0].item() == pytest.approx(sum(term.item() for term in official[1].values()))


# --- the codebook's own movement ---
ACTIONS = torch.tensor([[1.0, 0.0], [3.0, 0.0], [9.0, 10.0], [0.0, 2.0]])  # codes 0, 0, 2, 0 of the codebook below
CODEBOOK = [[0.0, 0.0], [-50.0, 0.0], [10.0, 10.0]]


def test_ema_moves_codes_to_the_running_mean():
    model = identity_quantizer(CODEBOOK, form="ema", revive=False)
    obs = torch.zeros(4, 1)
    assert model.encode(obs, ACTIONS).tolist() == [0, 0, 2, 0]
    model.loss(obs, ACTIONS)
    usage = 0.99 / 3 + 0.01 * np.array([3 / 4, 0, 1 / 4])
    sums = 0.99 * np.array(CODEBOOK) / 3 + 0.01 * np.array([[4, 2], [0, 0], [9, 10]]) / 4
    np.testing.assert_allclose(model.usage, usage, rtol=1e-6)
    np.testing.assert_allclose(model.embedding_sum, sums, rtol=1e-5)
    np.testing.assert_allclose(model.codebook, sums / usage[:, None], rtol=1e-5)
    np.testing.assert_allclose(model.codebook[1], CODEBOOK[1], rtol=1e-5)  # never chosen: stays
    for _ in range(2000):
        model.loss(obs, ACTIONS)
    np.testing.assert_allclose(model.codebook[[0, 2]], [[4 / 3, 2 / 3], [9, 10]], atol=1e-4)
    assert torch.isfinite(model.codebook).all()


@pytest.mark.parametrize("form", ["paper", "official", "ema"])
@pytest.mark.parametrize("revive", [True, False])
def test_dead_codes_are_revived(form, revive):
    model = identity_quantizer(CODEBOOK, form=form, revive=revive)
    with torch.no_grad():
        model.usage[1] = 0.03  # below a tenth of 1 / K = 0.333
        model.embedding_sum[1] = 0.03 * model.codebook[1]
    model.loss(torch.zeros(4, 1), ACTIONS)
    if revive:
        np.testing.assert_allclose(model.codebook.detach()[1], ACTIONS[1])
        assert model.usage[1].item() == pytest.approx(1 / 3)
        np.testing.assert_allclose(model.embedding_sum[1], ACTIONS[1] / 3)
    else:
        np.testing.assert_allclose(model.codebook.detach()[1], CODEBOOK[1], rtol=1e-5)
    np.testing.assert_allclose(model.codebook.detach()[2], CODEBOOK[2], rtol=0.02)  # alive: not replaced
    assert model.usage[2].item() == pytest.approx(0.99 / 3 + 0.01 / 4)


def test_revival_in_a_batch_smaller_than_the_codebook():
    model = identity_quantizer(CODEBOOK, form="paper", revive=True)
    model.usage[2] = 0.01
    model.loss(torch.zeros(2, 1), ACTIONS[:2])
    np.testing.assert_allclose(model.codebook.detach()[2], ACTIONS[0])


@pytest.mark.parametrize("form", ["paper", "official", "ema"])
def test_eval_mode_moves_nothing(form):
    model, (obs, action) = quantizer(form=form), pairs(20)
    model.usage[3] = 0  # dead
    before = snapshot(model)
    model.eval()
    model.loss(obs, action)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.train()
    model.encode(obs, action)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.loss(obs, action)
    assert not torch.equal(before["codebook"], model.codebook)


@pytest.mark.parametrize("form", ["paper", "official", "ema"])
def test_training_on_a_toy_set(form):
    """Eight actions, turned by the state: few hundred updates find them."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.randint(8, (512,), generator=generator) * torch.pi / 4
    obs = torch.randn(512, 3, generator=generator)
    action = torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * obs[:, :2]
    model = quantizer(codes=12, form=form)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    first = None
    for _ in range(400):
        loss, terms = model.loss(obs, action)
        first = first or terms["vqvae/reconstruction"].item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 0.9 and terms["vqvae/reconstruction"].item() < 0.15 * first
    assert len(model.encode(obs, action).unique()) >= 7
