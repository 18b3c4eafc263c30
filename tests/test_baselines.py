"""The losses of the continuous originals and of Aquadem: by hand, by torch.distributions, by integration with SciPy.

As in test_losses.py, tests name the modules as globals, so that test_mutations.py can put altered copies there.
"""

import numpy as np
import pytest
import torch
from common import SCRIPTS, checkpoint, run, same
from scipy.integrate import dblquad, quad
from scipy.special import logsumexp, softmax
from scipy.stats import norm
from test_losses import batch, check_gradient, forward, learn, tensors
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import saq_bc
import saq_cql
import saq_iql

baselines_aquadem, baselines_bc, baselines_brac, baselines_cql, baselines_iql = (
    SCRIPTS[f"baselines/{name}"] for name in ("aquadem", "bc", "brac", "cql", "iql")
)


# --- Gaussians: CQL's is squashed by tanh, those of BC and BRAC are not ---
def test_log_density_continuous_cql():
    torch.manual_seed(0)
    gaussian = torch.rand(7, 6, dtype=torch.float64) * 3 - 1.5
    mean, log_std = gaussian.chunk(2, dim=1)
    action = torch.rand(7, 3, dtype=torch.float64) * 1.98 - 0.99
    expected = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()).log_prob(action).sum(1)
    torch.testing.assert_close(baselines_cql.log_density(gaussian, action.atanh()), expected)


@pytest.mark.parametrize("script", ["baselines/bc", "baselines/brac"])
def test_log_density_around_tanh(script):
    torch.manual_seed(0)
    gaussian = torch.rand(7, 6, dtype=torch.float64) * 3 - 1.5
    mean, log_std = gaussian.chunk(2, dim=1)
    action = torch.rand(7, 3, dtype=torch.float64) * 3 - 1.5  # some outside the action space
    expected = Normal(mean.tanh(), log_std.exp()).log_prob(action).sum(1)
    torch.testing.assert_close(globals()[script.replace("/", "_")].log_density(gaussian, action), expected)


@pytest.mark.parametrize("script", ["baselines/bc", "baselines/cql", "baselines/brac"])
def test_log_density_bounds(script):
    """The log std stays between -5 and 2."""
    module = globals()[script.replace("/", "_")]
    wide = torch.tensor([[0.3, 9.0]], dtype=torch.float64), torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    narrow = torch.tensor([[0.3, -9.0]], dtype=torch.float64), torch.tensor([[0.3, -5.0]], dtype=torch.float64)
    x = torch.tensor([[0.31]], dtype=torch.float64)
    for outside, bound in (wide, narrow):
        assert module.log_density(outside, x).item() == module.log_density(bound, x).item()
        if script == "baselines/bc":  # draws nothing
            continue
        torch.manual_seed(1)
        drawn = module.draw(outside, 4)
        torch.manual_seed(1)
        torch.testing.assert_close(drawn, module.draw(bound, 4))


def test_log_density_far_out():
    """float32, where tanh(x) is 1 and the log of 1 - tanh(x)^2 would be that of 0."""
    gaussian = torch.tensor([[0.5, -1.0, 0.0, 1.0]] * 4, requires_grad=True)
    x = torch.tensor([[9.0, -9.0], [20.0, -20.0], [100.0, -100.0], [0.0, 0.0]], requires_grad=True)
    density = baselines_cql.log_density(gaussian, x)
    far = x.detach().double().abs().numpy()
    exact = norm.logpdf(x.detach().double(), [0.5, -1.0], [1.0, np.e])
    exact -= 2 * np.log(2) - 2 * far - 2 * np.log1p(np.exp(-2 * far))
    np.testing.assert_allclose(density.detach(), exact.sum(1), rtol=1e-5)
    density.sum().backward()
    assert torch.isfinite(gaussian.grad).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("script", ["baselines/cql", "baselines/brac"])
def test_draw(script):
    module = globals()[script.replace("/", "_")]
    torch.manual_seed(0)
    gaussian = torch.tensor([[1.0, -2.0, np.log(0.5), np.log(2.0)], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    mean, slope = np.array([[1, -2], [0, 0]]), np.ones((2, 2))
    if script == "baselines/brac":  # around tanh of the mean
        mean, slope = np.tanh(mean), 1 - np.tanh(mean) ** 2
    x = module.draw(gaussian, 100_000)
    assert x.shape == (2, 100_000, 2)
    np.testing.assert_allclose(x.detach().mean(1), mean, atol=0.03)
    np.testing.assert_allclose(x.detach().std(1), [[0.5, 2], [1, 1]], atol=0.02)
    x.mean(1).sum().backward()  # d x / d log std is x - its mean
    np.testing.assert_allclose(gaussian.grad, np.hstack([slope, np.zeros((2, 2))]), atol=0.03)


# --- CQL's penalty ---
def estimated_penalty(module, q, gaussians, n, data_q):
    """The penalty as `learner_loss` puts it together: actions of a uniform distribution and of two policies."""
    actions = torch.rand(1, n, gaussians[0].shape[1] // 2, dtype=torch.float64) * 2 - 1
    densities = [torch.full((1, n), -actions.shape[2] * np.log(2), dtype=torch.float64)]
    actions = [actions]
    for gaussian in gaussians:
        x = module.draw(gaussian, n)
        actions.append(x.tanh())
        densities.append(module.log_density(gaussian[:, None], x))
    return module.conservative_loss(q(torch.cat(actions, 1)), torch.cat(densities, 1), torch.tensor([data_q])).item()


def test_estimate_converges_to_the_integral():
    """With wide policies: 1 / density of a narrow one has no variance to speak of convergence."""
    torch.manual_seed(0)
    one = [torch.tensor([g], dtype=torch.float64) for g in ([0.5, 0.1], [-1.0, 0.5])]
    exact = np.log(quad(lambda a: np.exp(3 * np.sin(4 * a) - 2 * a * a), -1, 1)[0]) - 0.7
    estimate = estimated_penalty(baselines_cql, lambda a: (3 * torch.sin(4 * a) - 2 * a * a)[..., 0], one, 200_000, 0.7)
    assert estimate == pytest.approx(exact, abs=0.01)
    two = [torch.tensor([g], dtype=torch.float64) for g in ([0.5, 0.0, 0.2, 0.5], [0.0, 0.2, 0.5, 0.3])]
    exact = np.log(dblquad(lambda b, a: np.exp(2 * a - b * b + a * b), -1, 1, -1, 1)[0])
    estimate = estimated_penalty(
        baselines_cql, lambda a: 2 * a[..., 0] - a[..., 1] ** 2 + a[..., 0] * a[..., 1], two, 200_000, 0.0
    )
    assert estimate == pytest.approx(exact, abs=0.01)
    # The same by summing over a grid of two-dimensional actions.
    grid = np.stack(np.meshgrid(*[(np.arange(200) + 0.5) / 100 - 1] * 2), -1)
    on_grid = logsumexp(2 * grid[..., 0] - grid[..., 1] ** 2 + grid[..., 0] * grid[..., 1]) + 2 * np.log(0.01)
    assert on_grid == pytest.approx(exact, abs=1e-4)


def test_estimate_from_few_actions_is_too_low():
    """The logarithm of a mean of few: what SAQ's exact sum is free of."""
    torch.manual_seed(0)
    gaussians = [torch.tensor([g], dtype=torch.float64) for g in ([0.5, -1.0], [-1.0, 0.3])]
    exact = np.log(quad(lambda a: np.exp(20 * a), -1, 1)[0])
    few = np.mean([estimated_penalty(baselines_cql, lambda a: 20 * a[..., 0], gaussians, 2, 0.0) for _ in range(1000)])
    assert few < exact - 0.2


def test_continuous_conservative_loss():
    q = np.array([[[1.0, 2.0], [0.5, 0.0]], [[3.0, 0.0], [-1.0, 1.0]]])  # (critics, B, n)
    density, data_q = np.array([[0.5, 0.25], [1.0, 2.0]]), np.array([[0.0, 1.0], [2.0, 3.0]])
    expected = np.mean(np.log((np.exp(q) / density).mean(-1)) - data_q)
    assert baselines_cql.conservative_loss(*tensors(q, np.log(density), data_q)).item() == pytest.approx(expected)


# --- what a learner minimises ---
def critics_of(nets, obs, actions):
    """Q of each critic: (critics, B, n)"""
    pairs = np.concatenate([np.repeat(obs[:, None], actions.shape[1], 1), actions], -1)
    return np.stack([forward(net, pairs)[..., 0] for net in nets])


def check_critics(nets, obs, actions, expected):
    """Gradients at the critics' last weights, from those at their outputs: (critics, B, n)"""
    pairs = np.concatenate([np.repeat(obs[:, None], actions.shape[1], 1), actions], -1)
    for net, gradient in zip(nets, expected, strict=True):
        hidden = forward(net[:-1], pairs)  # (B, n, hidden)
        np.testing.assert_allclose(net[-1].weight.grad[0], np.einsum("bn,bnh->h", gradient, hidden), atol=1e-10)


def noise(args, *shapes):
    """What the first update draws."""
    torch.manual_seed(args.seed * 10**6 + 1)
    return [torch.randn(*shape, dtype=torch.float64).numpy() for shape in shapes]


def tanh_gaussian(output, draws):
    """(B, 4), (B, n, 2) -> x before tanh (B, n, 2), log density (B, n)"""
    x = output[:, None, :2] + np.exp(output[:, None, 2:]) * draws
    return x, density_at(output, x)


def density_at(output, x):
    log_normal = norm.logpdf(x, output[:, None, :2], np.exp(output[:, None, 2:]))
    return (log_normal - np.log(1 - np.tanh(x) ** 2)).sum(-1)


def numerical_gradient(loss, size=4):
    """Central differences of a loss with respect to what is added to a network's output."""
    steps = 1e-5 * np.eye(size)
    return np.array([(loss(step) - loss(-step)) / 2e-5 for step in steps])


@pytest.mark.parametrize("max_backup", [False, True])
def test_continuous_cql_learner_loss(max_backup):
    changes = {"discount": 0.9, "conservatism": 3.0, "target_rate": 0.1, "max_backup": max_backup}
    args, nets, rows, loss, metrics = learn(baselines_cql, **changes)
    obs, next_obs = rows["observations"], rows["next_observations"]
    output, next_output = forward(nets["policy"], obs), forward(nets["policy"], next_obs)
    here, there = noise(args, (4, 3, 2), (4, 3, 2))
    uniform = torch.empty(4, 3, 2, dtype=torch.float64).uniform_(-1, 1).numpy()  # drawn third
    (x, log_pi), (next_x, next_log_pi) = tanh_gaussian(output, here), tanh_gaussian(next_output, there)
    next_value = critics_of(nets["q_target"], next_obs, np.tanh(next_x)).min(0)
    next_value = next_value.max(1) if max_backup else next_value[:, 0]
    target = rows["rewards"] + 0.9 * (1 - rows["terminals"]) * next_value
    actions = np.concatenate([rows["actions"][:, None], uniform, np.tanh(x), np.tanh(next_x)], 1)
    q = critics_of(nets["q"], obs, actions)  # (2, B, 10)
    weighed = q[..., 1:] - np.concatenate([np.full((4, 3), np.log(0.25)), log_pi, next_log_pi], 1)
    penalty = np.mean(logsumexp(weighed, axis=-1) - np.log(9) - q[..., 0])
    squared = np.mean((q[..., 0] - target) ** 2)
    temperature = np.exp(0.4)

    def policy_loss(shift):
        x, log_pi = tanh_gaussian(output + shift, here)
        return np.mean(temperature * log_pi[:, 0] - critics_of(nets["q"], obs, np.tanh(x[:, :1])).min(0)[:, 0])

    terms = {
        "losses/q": squared,
        "losses/penalty": penalty,
        "losses/policy": policy_loss(0),
        "charts/q": q[..., 0].mean(),
        "charts/q_policy": critics_of(nets["q"], obs, np.tanh(x[:, :1])).min(0).mean(),
        "charts/entropy": -log_pi[:, 0].mean(),
        "charts/temperature": temperature,
    }
    assert {name: metrics[name].item() for name in metrics} == pytest.approx(terms)
    temperature_loss = 0.4 * (-log_pi[:, 0].mean() + 2)  # the entropy's target is -2
    assert loss == pytest.approx(0.5 * squared + 3 * penalty + policy_loss(0) + temperature_loss)
    gradient = 3 / 8 * softmax(weighed, axis=-1)
    gradient = np.concatenate([(q[..., :1] - target[:, None]) / 8 - 3 / 8, gradient], -1)
    check_critics(nets["q"], obs, actions, gradient)
    np.testing.assert_allclose(nets["policy"][-1].bias.grad, numerical_gradient(policy_loss), atol=1e-7)
    assert nets.log_temperature.grad.item() == pytest.approx(-log_pi[:, 0].mean() + 2)
    assert all(p.grad is None for p in nets["q_target"].parameters())
    assert all(p.requires_grad for p in nets["q"].parameters())


def test_continuous_cql_fixed_temperature():
    """Given, it stays; 0 is SAC's: it starts at 1 and learns."""
    args = [baselines_cql.Args(hidden_dim=4, fixed_temperature=weight) for weight in (2.5, 0.0)]
    given, learned = (baselines_cql.make_learner(x, 3, 2) for x in args)
    assert given.log_temperature.item() == pytest.approx(np.log(2.5)) and not given.log_temperature.requires_grad
    assert learned.log_temperature.item() == 0 and learned.log_temperature.requires_grad


@pytest.mark.parametrize("policy_std", ["state", "shared"])
def test_continuous_iql_learner_loss(policy_std):
    changes = {"expectile": 0.8, "temperature": 1 / 60, "discount": 0.9, "target_rate": 0.1, "policy_std": policy_std}
    args, nets, rows, loss, metrics = learn(baselines_iql, **changes)
    obs, action = rows["observations"], rows["actions"]
    value, next_value = forward(nets["v"], obs)[:, 0], forward(nets["v"], rows["next_observations"])[:, 0]
    u = critics_of(nets["q_target"], obs, action[:, None]).min(0)[:, 0] - value
    q = critics_of(nets["q"], obs, action[:, None])[..., 0]
    target = rows["rewards"] + 0.9 * (1 - rows["terminals"]) * next_value
    weight, output = np.minimum(np.exp(60 * u), 100), forward(nets["policy"], obs)
    mean, std = np.tanh(output[:, :2]), np.exp(0.4) if policy_std == "shared" else np.exp(output[:, 2:])
    assert (weight == 100).any() and (weight < 100).any()
    terms = {
        "losses/v": np.mean(np.where(u < 0, 0.2, 0.8) * u**2),
        "losses/q": np.mean((q - target) ** 2),
        "losses/policy": -np.mean(weight * norm.logpdf(action, mean, std).sum(1)),
        "charts/q": q.mean(),
        "charts/weight": weight.mean(),
    }
    assert {name: metrics[name].item() for name in metrics} == pytest.approx(terms)
    assert loss == pytest.approx(terms["losses/v"] + terms["losses/q"] + terms["losses/policy"])
    check_gradient(nets["v"], -2 / 4 * (np.where(u < 0, 0.2, 0.8) * u)[:, None])
    check_critics(nets["q"], obs, action[:, None], 2 / 8 * (q - target)[..., None])
    z = (action - mean) / std
    mean_gradient, std_gradient = -weight[:, None] * z / std * (1 - mean**2), weight[:, None] * (1 - z**2)
    if policy_std == "shared":
        check_gradient(nets["policy"], mean_gradient / 4)
        np.testing.assert_allclose(nets["policy"].log_std.grad, std_gradient.mean(0))
    else:
        check_gradient(nets["policy"], np.hstack([mean_gradient, std_gradient]) / 4)
    assert all(p.grad is None for p in nets["q_target"].parameters())


def test_imitation_loss():
    mean, action = torch.rand(5, 2, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    log_std, weight = torch.tensor([-1.0, 0.5], dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    expected = -(weight * Normal(mean, log_std.exp()).log_prob(action).sum(1)).mean()
    torch.testing.assert_close(baselines_iql.imitation_loss(mean, log_std, action, weight), expected)
    narrow = baselines_iql.imitation_loss(mean, torch.full((2,), -50.0, dtype=torch.float64), action, weight)
    bound = baselines_iql.imitation_loss(mean, torch.full((2,), -5.0, dtype=torch.float64), action, weight)
    assert narrow == bound and torch.isfinite(narrow)


def test_policy_of_iql_has_a_schedule_of_its_own(tmp_path):
    """Its parameters, and no others, are the group whose learning rate falls in any case (tests/test_scripts.py)."""
    optimizer = checkpoint(run("baselines/iql", tmp_path))["stages"]["learner"]["optimizer"]
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [6, 18]


def density_around_tanh(output, x):
    """log density of a Gaussian around tanh of a mean, by SciPy. (B, 2 A), (B, n, A) -> (B, n)"""
    mean, log_std = np.split(output[:, None], 2, axis=-1)
    return norm.logpdf(x, np.tanh(mean), np.exp(np.clip(log_std, -5, 2))).sum(-1)


def drawn_around_tanh(output, draws):
    """Its draws with this noise, and their log density."""
    mean, log_std = np.split(output[:, None], 2, axis=-1)
    x = np.tanh(mean) + np.exp(np.clip(log_std, -5, 2)) * draws
    return x, density_around_tanh(output, x)


@pytest.mark.parametrize("target_entropy", [False, True])
def test_continuous_brac_learner_loss(target_entropy):
    beta, alpha = 0.6, 0.2
    weights = {"behaviour_weight": beta, "entropy_weight": alpha, "target_entropy": target_entropy}
    args, nets, rows, loss, metrics = learn(baselines_brac, discount=0.9, target_rate=0.1, **weights)
    obs, next_obs, action = rows["observations"], rows["next_observations"], rows["actions"]
    there, here = noise(args, (4, 3, 2), (4, 3, 2))

    def expectation(critics, obs, draws, alpha, shift=0):
        x, log_pi = drawn_around_tanh(forward(nets["policy"], obs) + shift, draws)
        log_behaviour = density_around_tanh(forward(nets["behaviour"], obs), x)
        q = critics_of(nets[critics], obs, np.clip(x, -1, 1)).min(0)
        return (q + beta * log_behaviour - alpha * log_pi).mean(1), -log_pi.mean(), (log_pi - log_behaviour).mean()

    next_value = expectation("q_target", next_obs, there, alpha * target_entropy)[0]
    target = rows["rewards"] + 0.9 * (1 - rows["terminals"]) * next_value
    q = critics_of(nets["q"], obs, action[:, None])[..., 0]
    value, entropy, divergence = expectation("q", obs, here, alpha)
    terms = {
        "losses/q": np.mean((q - target) ** 2),
        "losses/policy": -value.mean(),
        "charts/entropy": entropy,
        "charts/divergence": divergence,
        "charts/q": q.mean(),
    }
    assert {name: metrics[name].item() for name in metrics} == pytest.approx(terms)
    assert loss == pytest.approx(terms["losses/q"] + terms["losses/policy"])
    check_critics(nets["q"], obs, action[:, None], 2 / 8 * (q - target)[..., None])
    gradient = numerical_gradient(lambda shift: -expectation("q", obs, here, alpha, shift)[0].mean())
    np.testing.assert_allclose(nets["policy"][-1].bias.grad, gradient, atol=1e-7)
    assert all(p.grad is None for name in ("q_target", "behaviour") for p in nets[name].parameters())
    assert all(p.requires_grad for p in nets["q"].parameters())


def test_behaviour_loss():
    """Maximum likelihood of a Gaussian around tanh of a mean."""
    data, index = batch()
    torch.manual_seed(0)
    net = baselines_brac.mlp(4, 8, 4).double()
    rows = dict(zip(data, tensors(*data.values()), strict=True))
    mean, log_std = net(rows["observations"][index]).chunk(2, dim=1)
    density = Normal(mean.tanh(), log_std.exp()).log_prob(rows["actions"][index])
    loss, metrics = baselines_brac.behaviour_loss(net, rows, torch.as_tensor(index))
    torch.testing.assert_close(loss, -density.sum(1).mean())
    assert metrics == {"losses/behaviour": loss}


def test_policy_of_brac_starts_from_the_behaviour_policy(tmp_path):
    for lr in (0.0, 3e-4):
        folder = run("baselines/brac", tmp_path / str(lr), "--lr", lr)
        stages = {name: stage["model"] for name, stage in checkpoint(folder)["stages"].items()}

        def part(name, learner=stages["learner"]):
            return {key[len(name) + 1 :]: values for key, values in learner.items() if key.startswith(f"{name}.")}

        assert same(part("behaviour"), stages["behaviour"])  # stage 2 leaves it as it is
        assert same(part("policy"), stages["behaviour"]) == (lr == 0)


# --- Aquadem ---
def candidates_of(args, obs_dim=4, action_dim=2):
    torch.manual_seed(2)
    return baselines_aquadem.Quantizer(args, obs_dim, action_dim).double()


def test_candidates():
    """K heads on one torso, in NumPy; a code is the index of the nearest."""
    args = baselines_aquadem.Args(num_candidates=5, hidden_dim=8)
    quantizer, (data, _) = candidates_of(args), batch()
    hidden = np.maximum(forward([quantizer.torso], data["observations"]), 0)
    expected = np.stack([forward(head, hidden) for head in quantizer.heads], 1)
    obs, actions = tensors(data["observations"], data["actions"])
    np.testing.assert_allclose(quantizer(obs).detach(), expected)
    code = ((expected - data["actions"][:, None]) ** 2).sum(-1).argmin(1)
    assert len(set(code)) > 1
    assert quantizer.encode(obs, actions).tolist() == code.tolist()
    many = torch.arange(9).repeat(600)  # more than one part, and in order
    assert quantizer.encode(obs[many], actions[many]).tolist() == code[many].tolist()


def test_candidates_loss():
    args = baselines_aquadem.Args(num_candidates=5, hidden_dim=8, softmin=0.3, dropout=0.0)
    quantizer, (data, index) = candidates_of(args), batch()
    rows = dict(zip(data, tensors(*data.values()), strict=True))
    candidates = quantizer(rows["observations"][index]).detach().numpy()
    distance = ((candidates - data["actions"][index][:, None]) ** 2).sum(-1)
    expected = np.mean(-0.3 * np.log(np.exp(-distance / 0.3).mean(1)))
    loss, metrics = baselines_aquadem.quantizer_loss(args, quantizer, rows, torch.as_tensor(index))
    assert loss.item() == metrics["losses/quantizer"].item() == pytest.approx(expected)
    loss.backward()
    share = softmax(-distance / 0.3, axis=1)  # which head is trained by how much
    error = 2 * (candidates - data["actions"][index][:, None]) * share[..., None] / 4
    for k, head in enumerate(quantizer.heads):
        np.testing.assert_allclose(head[-1].bias.grad, error[:, k].sum(0), atol=1e-12)
    # A small T leaves the distance to the nearest candidate, in float32 as well.
    args.softmin = 1e-6
    loss, _ = baselines_aquadem.quantizer_loss(args, quantizer, rows, torch.as_tensor(index))
    assert loss.item() == pytest.approx(distance.min(1).mean(), abs=1e-5)
    floats = {name: values.float() for name, values in rows.items()}
    loss, _ = baselines_aquadem.quantizer_loss(args, quantizer.float(), floats, torch.as_tensor(index))
    assert loss.item() == pytest.approx(distance.min(1).mean(), abs=1e-5)


def test_dropout():
    """Inputs, torso and heads lose units in training, with other ones at every update, and none in use."""
    quantizer = baselines_aquadem.Quantizer(baselines_aquadem.Args(num_candidates=2, hidden_dim=300), 300, 300)
    with torch.no_grad():
        for layer in (layer for layer in quantizer.modules() if isinstance(layer, torch.nn.Linear)):
            layer.weight.copy_(torch.eye(300))
            layer.bias.zero_()
        candidates = quantizer(torch.ones(100, 300), 0.2)
        assert torch.equal(quantizer(torch.ones(100, 300)), torch.ones(100, 2, 300))
    # What is left has passed all three and was scaled up by 1 / 0.8 in each.
    np.testing.assert_allclose(candidates[candidates != 0], 0.8**-3, rtol=1e-5)
    assert (candidates != 0).double().mean().item() == pytest.approx(0.8**3, abs=0.01)
    args = baselines_aquadem.Args(num_candidates=5, hidden_dim=8, dropout=0.5)
    quantizer, (data, _) = candidates_of(args), batch()
    rows = dict(zip(data, tensors(*data.values()), strict=True))
    losses = [baselines_aquadem.quantizer_loss(args, quantizer, rows, torch.arange(9))[0].item() for _ in range(3)]
    assert len(set(losses)) == 3
    quantizer.updates -= 1
    assert baselines_aquadem.quantizer_loss(args, quantizer, rows, torch.arange(9))[0].item() == losses[-1]


@pytest.mark.parametrize(("learner", "module"), [("bc", saq_bc), ("cql", saq_cql), ("iql", saq_iql)])
def test_learner_of_aquadem_is_that_of_saq(learner, module):
    """The same loss, metrics, gradients and policy as the script of that name has on the same codes and weights."""
    changes = {"expectile": 0.8, "temperature": 0.5, "conservatism": 3.0, "discount": 0.9, "target_rate": 0.1}
    args, nets, rows, loss, metrics = learn(baselines_aquadem, learner=learner, **changes)
    changes = {name: value for name, value in changes.items() if hasattr(module.Args, name)}
    theirs = module.make_learner(module.Args(codebook_size=5, hidden_dim=8), 4).double()
    names = {"policy": "behaviour"} if learner == "bc" else {name: name for name in theirs}
    for name, own in names.items():
        theirs[name].load_state_dict(nets[own].state_dict())
    their_args = module.Args(codebook_size=5, hidden_dim=8, **changes)
    their_args.target_rate = 0.0  # the target has moved already
    data, index = batch()
    rows = dict(zip(data, tensors(*data.values()), strict=True))
    their_loss, their_metrics = module.learner_loss(their_args, theirs, rows, torch.as_tensor(index))
    assert loss == pytest.approx(their_loss.item())
    for name, value in their_metrics.items():
        own = {"losses/policy": "losses/behaviour"}.get(name, name) if learner == "bc" else name
        assert name == "charts/accuracy" or metrics[own].item() == pytest.approx(value.item())
    their_loss.backward()
    for name, own in names.items():
        for p, q in zip(nets[own].parameters(), theirs[name].parameters(), strict=True):
            assert same(p.grad, q.grad) if p.grad is None or q.grad is None else torch.allclose(p.grad, q.grad)
    (obs,) = tensors(np.random.default_rng(5).normal(size=(6, 4)))
    torch.testing.assert_close(baselines_aquadem.policy(args, nets, obs), module.policy(their_args, theirs, obs))
