"""The quantizer: nearest codes, straight-through gradients, its loss by hand, how the codebook moves.

`vqvae` is a global of this file: test_mutations.py puts altered copies in its place.
"""

import numpy as np
import pytest
import torch

import vqvae

FORMS = ["paper", "official", "ema"]


def quantizer(codes=8, **options):
    torch.manual_seed(0)
    return vqvae.VQVAE(3, 2, codes, embedding_dim=4, hidden_dim=16, **options)


def pairs(rows):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_mlp():
    net = vqvae.mlp(3, 5, 7, 2)
    assert [type(layer).__name__ for layer in net] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [tuple(layer.weight.shape) for layer in net[::2]] == [(5, 3), (7, 5), (2, 7)]


# --- codes ---
def test_encode_is_the_nearest_vector():
    model, (obs, action) = quantizer(codes=50), pairs(500)
    embedding = model.encoder(torch.cat([obs, action], 1)).detach().numpy()
    distances = ((embedding[:, None] - model.codebook.detach().numpy()) ** 2).sum(2)  # (N, K)
    assert len(np.unique(distances.argmin(1))) > 3
    np.testing.assert_array_equal(model.encode(obs, action), distances.argmin(1))


def test_encode_more_rows_than_one_part():
    model, (obs, action) = quantizer(codes=16).double(), pairs(70_000)
    obs, action = obs.double(), action.double()
    codes = model.encode(obs, action)
    parts = [model.encode(obs[i : i + 9_999], action[i : i + 9_999]) for i in range(0, 70_000, 9_999)]
    assert codes.shape == (70_000,) and codes.dtype == torch.int64 and len(codes.unique()) > 3
    assert torch.equal(codes, torch.cat(parts))


def test_decode_is_what_training_decodes():
    model, (obs, action) = quantizer(), pairs(20)
    code = model.encode(obs, action)
    decoded = model.decode(obs, code)
    torch.testing.assert_close(decoded, model.decoder(torch.cat([obs, model.codebook[code]], 1)))
    reconstruction = model.loss(obs, action)[1]["vqvae/reconstruction"].item()
    assert reconstruction == pytest.approx((decoded - action).pow(2).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("condition_on_obs", [True, False])
def test_condition_on_obs(condition_on_obs):
    model, (obs, action) = quantizer(codes=50, condition_on_obs=condition_on_obs), pairs(200)
    code = model.encode(obs, action)
    assert torch.equal(model.encode(10 * obs + 1, action), code) != condition_on_obs
    assert torch.equal(model.decode(obs + 1, code), model.decode(obs, code)) != condition_on_obs
    assert not torch.equal(model.encode(obs, action + 1), code)


# --- the loss ---
@pytest.mark.parametrize("form", FORMS)
def test_quantizer_loss(form):
    """Linear maps in place of the networks; the embeddings are [2, 1] and [0.5, 0], the codes 1 and 0."""
    scale, weight = {"paper": (1, 2), "official": (0.5, 2), "ema": (0.5, 1)}[form]
    model = vqvae.VQVAE(1, 2, codebook_size=3, embedding_dim=2, form=form)
    model.encoder, model.decoder = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.encoder.weight.copy_(torch.tensor([[1.0, 1, 0], [0, 0, 2]]))
        model.decoder.weight.copy_(torch.tensor([[1.0, 1, 0], [0, 0, 1]]))
        model.decoder.bias.copy_(torch.tensor([0.0, -1]))
        model.codebook.copy_(torch.tensor([[0.0, 0], [3, 1], [10, 10]]))
    before = state(model)
    obs, action = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.5], [0.5, 0.0]])
    loss, metrics, embedding, code = model.loss(obs, action)
    assert embedding.tolist() == [[2, 1], [0.5, 0]] and code.tolist() == [1, 0]
    # The decoder says [1 + 3, 1 - 1] and [0, -1]; the squared distances to the vectors are 1 and 0.25.
    reconstruction, distance = (3**2 + 0.5**2 + 0.5**2 + 1**2) / 2, scale * (1 + 0.25) / 2
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(
        {"vqvae/reconstruction": reconstruction, "vqvae/commitment": distance}
    )
    assert loss.item() == pytest.approx(reconstruction + weight * distance)  # "ema" moves the codebook apart
    loss.backward()
    # Reconstruction: the decoder's first weights pass its gradient on as it is, straight to the encoder.
    step = np.array([[3.0, -0.5], [-0.5, -1.0]])  # (2 / B) * error
    pull = scale * np.array([[-1.0, 0.0], [0.5, 0.0]])  # (2 / B) * (embedding - vector), from the commitment
    inputs = np.array([[1.0, 1.0, 0.5], [0.0, 0.5, 0.0]])  # (B, obs and action)
    np.testing.assert_allclose(model.encoder.weight.grad, (step + pull).T @ inputs, rtol=1e-6)
    if form == "ema":
        assert not model.codebook.requires_grad and model.codebook.grad is None
    else:  # the codebook's own term alone moves the vectors
        np.testing.assert_allclose(model.codebook.grad, -np.array([pull[1], pull[0], [0, 0]]), rtol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())  # it is pure


# --- the codebook's own movement ---
CODEBOOK = [[0.0, 0.0], [-50.0, 0.0], [10.0, 10.0]]
ACTIONS = torch.tensor([[1.0, 0.0], [3.0, 0.0], [9.0, 10.0], [0.0, 2.0]])  # their codes: 0, 0, 2, 0


def moved(model, actions=ACTIONS, times=1):
    """The codebook after `move_codebook`; the embedding is the action itself."""
    model.encoder = torch.nn.Identity()
    with torch.no_grad():
        model.codebook.copy_(torch.tensor(CODEBOOK))
        model.usage_times_mean.copy_(model.usage[:, None] * model.codebook)
    for _ in range(times):
        _, _, embedding, code = model.loss(torch.zeros(len(actions), 1), actions)
        model.move_codebook(embedding, code)
    return model.codebook.detach().numpy().copy()


def flat(**options):
    return vqvae.VQVAE(1, 2, 3, embedding_dim=2, condition_on_obs=False, **options)


def test_ema_moves_vectors_to_the_running_mean():
    model = flat(revive=False)
    codebook = moved(model)
    usage = 0.99 / 3 + 0.01 * np.array([3 / 4, 0, 1 / 4])
    sums = 0.99 * np.array(CODEBOOK) / 3 + 0.01 * np.array([[4, 2], [0, 0], [9, 10]]) / 4
    np.testing.assert_allclose(model.usage, usage, rtol=1e-6)
    np.testing.assert_allclose(model.usage_times_mean, sums, rtol=1e-5)
    np.testing.assert_allclose(codebook, sums / usage[:, None], rtol=1e-5)
    np.testing.assert_allclose(codebook[1], CODEBOOK[1], rtol=1e-5)  # never chosen: stays
    np.testing.assert_allclose(moved(model, times=2000)[[0, 2]], [[4 / 3, 2 / 3], [9, 10]], atol=1e-4)
    model.usage[1] = 0  # has no mean: it stays
    assert moved(model)[1].tolist() == CODEBOOK[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("revive", [True, False])
def test_dead_codes_are_revived(form, revive):
    model = flat(form=form, revive=revive)
    model.usage[1] = 0.03  # below a tenth of 1 / K = 0.333
    codebook = moved(model)
    np.testing.assert_allclose(codebook[1], ACTIONS[1] if revive else CODEBOOK[1], rtol=1e-5)
    if revive:
        assert model.usage[1].item() == pytest.approx(1 / 3)
        np.testing.assert_allclose(model.usage_times_mean[1], ACTIONS[1] / 3)
    alive = 0.02 if form == "ema" else 0
    np.testing.assert_allclose(codebook[2], CODEBOOK[2], rtol=alive)
    assert model.usage[2].item() == pytest.approx(0.99 / 3 + 0.01 / 4)


def test_revival_in_a_batch_smaller_than_the_codebook():
    model = flat(form="paper")
    model.usage[2] = 0.01
    np.testing.assert_allclose(moved(model, ACTIONS[:2])[2], ACTIONS[0])


@pytest.mark.parametrize("form", FORMS)
def test_training_on_a_toy_set(form):
    """Eight actions, turned by the state: a few hundred updates find them."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.randint(8, (512,), generator=generator) * torch.pi / 4
    obs = torch.randn(512, 3, generator=generator)
    action = torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * obs[:, :2]
    model, errors = quantizer(codes=12, form=form), []
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(400):
        loss, metrics, embedding, code = model.loss(obs, action)
        errors.append(metrics["vqvae/reconstruction"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.move_codebook(embedding, code)
    assert errors[0] > 0.9 and errors[-1] < 0.15 * errors[0]
    assert len(model.encode(obs, action).unique()) >= 7
