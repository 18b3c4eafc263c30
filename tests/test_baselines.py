"""The losses of the continuous counterparts and of Aquadem: by hand, by torch.distributions, by integration.

As in test_losses.py, tests name the modules as globals: test_mutations.py puts altered copies there.
"""

import numpy as np
import pytest
import torch
from common import SCRIPTS
from scipy.integrate import dblquad, quad
from scipy.special import logsumexp, softmax
from scipy.stats import norm
from test_losses import batch, check, check_gradient, forward, learn, make_learner, tensors
from torch.distributions import Normal, TanhTransform, TransformedDistribution

baselines_aquadem, baselines_bc, baselines_brac, baselines_cql, baselines_iql = (
    SCRIPTS[f"baselines/{name}"] for name in ("aquadem", "bc", "brac", "cql", "iql")
)


def module_of(script):
    return globals()[script.replace("/", "_")]


# --- Gaussians: CQL's is squashed by tanh, those of BC and BRAC are around tanh of a mean ---
@pytest.mark.parametrize("script", ["baselines/cql", "baselines/bc", "baselines/brac"])
def test_log_density(script):
    torch.manual_seed(0)
    gaussian = torch.rand(7, 6, dtype=torch.float64) * 3 - 1.5
    mean, log_std = gaussian.chunk(2, dim=1)
    action = torch.rand(7, 3, dtype=torch.float64) * 3 - 1.5  # some outside the action space
    if script == "baselines/cql":
        squashed = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
        expected = squashed.log_prob(action.tanh())
    else:
        expected = Normal(mean.tanh(), log_std.exp()).log_prob(action)
    torch.testing.assert_close(module_of(script).log_density(gaussian, action), expected.sum(1))


@pytest.mark.parametrize("script", ["baselines/bc", "baselines/cql", "baselines/brac"])
def test_log_density_bounds(script):
    """The log std stays between -5 and 2."""
    module, x = module_of(script), torch.tensor([[0.31]], dtype=torch.float64)
    for outside, bound in ((9.0, 2.0), (-9.0, -5.0)):
        outside, bound = (torch.tensor([[0.3, log_std]], dtype=torch.float64) for log_std in (outside, bound))
        assert module.log_density(outside, x).item() == module.log_density(bound, x).item()
        if script != "baselines/bc":  # which draws nothing
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
    torch.manual_seed(0)
    gaussian = torch.tensor([[1.0, -2.0, np.log(0.5), np.log(2.0)], [0.0] * 4], requires_grad=True)
    mean, slope = np.array([[1, -2], [0, 0]]), np.ones((2, 2))
    if script == "baselines/brac":  # around tanh of the mean
        mean, slope = np.tanh(mean), 1 - np.tanh(mean) ** 2
    x = module_of(script).draw(gaussian, 50_000)
    assert x.shape == (2, 50_000, 2)
    np.testing.assert_allclose(x.detach().mean(1), mean, atol=0.03)
    np.testing.assert_allclose(x.detach().std(1), [[0.5, 2], [1, 1]], atol=0.02)
    x.mean(1).sum().backward()  # d x / d log std is x - its mean
    np.testing.assert_allclose(gaussian.grad, np.hstack([slope, np.zeros((2, 2))]), atol=0.03)


# --- CQL's penalty ---
def estimated_penalty(q, gaussians, n, data_q):
    """The penalty as `learner_loss` puts it together: actions of a uniform distribution and two policies."""
    actions = [torch.rand(1, n, gaussians[0].shape[1] // 2, dtype=torch.float64) * 2 - 1]
    densities = [torch.full((1, n), -actions[0].shape[2] * np.log(2), dtype=torch.float64)]
    for gaussian in gaussians:
        x = baselines_cql.draw(gaussian, n)
        actions.append(x.tanh())
        densities.append(baselines_cql.log_density(gaussian[:, None], x))
    data_q = torch.tensor([data_q])
    return baselines_cql.conservative_loss(q(torch.cat(actions, 1)), torch.cat(densities, 1), data_q).item()


def gaussians(*rows):
    return [torch.tensor([row], dtype=torch.float64) for row in rows]


def test_estimate_converges_to_the_integral():
    """With wide policies: 1 / density of a narrow one has no variance to speak of convergence."""
    torch.manual_seed(0)
    exact = np.log(quad(lambda a: np.exp(3 * np.sin(4 * a) - 2 * a * a), -1, 1)[0]) - 0.7
    one = gaussians([0.5, 0.1], [-1.0, 0.5])
    estimate = estimated_penalty(lambda a: (3 * torch.sin(4 * a) - 2 * a * a)[..., 0], one, 200_000, 0.7)
    assert estimate == pytest.approx(exact, abs=0.01)
    exact = np.log(dblquad(lambda b, a: np.exp(2 * a - b * b + a * b), -1, 1, -1, 1)[0])
    two = gaussians([0.5, 0.0, 0.2, 0.5], [0.0, 0.2, 0.5, 0.3])

    def q(a):
        return 2 * a[..., 0] - a[..., 1] ** 2 + a[..., 0] * a[..., 1]

    assert estimated_penalty(q, two, 200_000, 0.0) == pytest.approx(exact, abs=0.01)


def test_estimate_from_few_actions_is_too_low():
    """The logarithm of a mean of few: what SAQ's exact sum is free of."""
    torch.manual_seed(0)
    exact, two = np.log(quad(lambda a: np.exp(20 * a), -1, 1)[0]), gaussians([0.5, -1.0], [-1.0, 0.3])
    few = [estimated_penalty(lambda a: 20 * a[..., 0], two, 2, 0.0) for _ in range(500)]
    assert np.mean(few) < exact - 0.2


def test_continuous_conservative_loss():
    q = np.array([[[1.0, 2.0], [0.5, 0.0]], [[3.0, 0.0], [-1.0, 1.0]]])  # (critics, B, n)
    density, data_q = np.array([[0.5, 0.25], [1.0, 2.0]]), np.array([[0.0, 1.0], [2.0, 3.0]])
    expected = np.mean(np.log((np.exp(q) / density).mean(-1)) - data_q)
    loss = baselines_cql.conservative_loss(*tensors(q, np.log(density), data_q))
    assert loss.item() == pytest.approx(expected)


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
        found = net[-1].weight.grad[0]
        np.testing.assert_allclose(found, np.einsum("bn,bnh->h", gradient, hidden), atol=1e-10)


def noise():
    """What `learn` lets the loss draw: two Gaussian arrays, then a uniform one."""
    torch.manual_seed(4)
    first, second = (torch.randn(4, 3, 2, dtype=torch.float64).numpy() for _ in range(2))
    return first, second, torch.empty(4, 3, 2, dtype=torch.float64).uniform_(-1, 1).numpy()


def tanh_gaussian(output, draws):
    """(B, 4), (B, n, 2) -> x before tanh (B, n, 2), log density (B, n)"""
    mean, std = output[:, None, :2], np.exp(output[:, None, 2:])
    x = mean + std * draws
    return x, (norm.logpdf(x, mean, std) - np.log(1 - np.tanh(x) ** 2)).sum(-1)


def numerical_gradient(loss):
    """Central differences of a loss with respect to what is added to a network's output."""
    return np.array([(loss(step) - loss(-step)) / 2e-5 for step in 1e-5 * np.eye(4)])


@pytest.mark.parametrize("loss", ["likelihood", "squared"])
def test_continuous_bc_learner_loss(loss):
    nets, rows, *found = learn(baselines_bc, loss=loss)
    mean, log_std = np.split(forward(nets.policy, rows.obs), 2, axis=1)
    error, slope = np.tanh(mean) - rows.action, 1 - np.tanh(mean) ** 2
    if loss == "squared":
        expected, gradient = (error**2).sum(1), [2 * error * slope, 0 * log_std]
    else:
        expected = -norm.logpdf(rows.action, np.tanh(mean), np.exp(log_std)).sum(1)
        gradient = [error * slope / np.exp(2 * log_std), 1 - (error / np.exp(log_std)) ** 2]
    check(found, expected.mean(), losses_policy=expected.mean())
    check_gradient(nets.policy, np.hstack(gradient) / 4)


@pytest.mark.parametrize("max_backup", [False, True])
def test_continuous_cql_learner_loss(max_backup):
    nets, rows, *found = learn(baselines_cql, discount=0.9, conservatism=3.0, max_backup=max_backup)
    obs, next_obs, (here, there, uniform) = rows.obs, rows.next_obs, noise()
    output, next_output = forward(nets.policy, obs), forward(nets.policy, next_obs)
    (x, log_pi), (next_x, next_log_pi) = tanh_gaussian(output, here), tanh_gaussian(next_output, there)
    next_value = critics_of(nets.q_target, next_obs, np.tanh(next_x)).min(0)
    next_value = next_value.max(1) if max_backup else next_value[:, 0]
    target = rows.reward + 0.9 * (1 - rows.terminal) * next_value
    actions = np.concatenate([rows.action[:, None], uniform, np.tanh(x), np.tanh(next_x)], 1)
    q = critics_of(nets.q, obs, actions)  # (2, B, 10)
    weighed = q[..., 1:] - np.concatenate([np.full((4, 3), np.log(0.25)), log_pi, next_log_pi], 1)
    penalty = np.mean(logsumexp(weighed, axis=-1) - np.log(9) - q[..., 0])
    q_loss, temperature, entropy = np.mean((q[..., 0] - target) ** 2), np.exp(0.4), -log_pi[:, 0].mean()

    def policy_loss(shift):
        x, log_pi = tanh_gaussian(output + shift, here)
        return np.mean(temperature * log_pi[:, 0] - critics_of(nets.q, obs, np.tanh(x[:, :1])).min(0)[:, 0])

    losses = dict(losses_q=q_loss, losses_penalty=penalty, losses_policy=policy_loss(0))
    charts = dict(charts_q=q[..., 0].mean(), charts_entropy=entropy, charts_temperature=temperature)
    charts["charts_q_policy"] = critics_of(nets.q, obs, np.tanh(x[:, :1])).min(0).mean()
    loss = 0.5 * q_loss + 3 * penalty + policy_loss(0) + 0.4 * (entropy + 2)  # the entropy's target is -2
    check(found, loss, **losses, **charts)
    gradient = 3 / 8 * softmax(weighed, axis=-1)
    gradient = np.concatenate([(q[..., :1] - target[:, None]) / 8 - 3 / 8, gradient], -1)
    check_critics(nets.q, obs, actions, gradient)
    np.testing.assert_allclose(nets.policy[-1].bias.grad, numerical_gradient(policy_loss), atol=1e-7)
    assert nets.log_temperature.grad.item() == pytest.approx(entropy + 2)


def test_continuous_cql_temperature():
    for learned, start in ((False, 2.5), (True, 1.0), (True, 0.5)):
        args = baselines_cql.Args(hidden_dim=4, learn_temperature=learned, temperature=start)
        log_temperature = baselines_cql.Learner(args, 3, 2).log_temperature
        assert log_temperature.item() == pytest.approx(np.log(start))
        assert log_temperature.requires_grad == learned


@pytest.mark.parametrize("policy_std", ["state", "shared"])
def test_continuous_iql_learner_loss(policy_std):
    changes = {"expectile": 0.8, "temperature": 1 / 60, "discount": 0.9, "policy_std": policy_std}
    nets, rows, *found = learn(baselines_iql, **changes)
    obs, action, value = rows.obs, rows.action[:, None], forward(nets.v, rows.obs)[:, 0]
    u = critics_of(nets.q_target, obs, action).min(0)[:, 0] - value
    q = critics_of(nets.q, obs, action)[..., 0]
    error = q - rows.reward - 0.9 * (1 - rows.terminal) * forward(nets.v, rows.next_obs)[:, 0]
    weight, output = np.minimum(np.exp(60 * u), 100), forward(nets.policy, obs)
    mean, std = np.tanh(output[:, :2]), np.exp(0.4) if policy_std == "shared" else np.exp(output[:, 2:])
    assert (weight == 100).any() and (weight < 100).any()
    v_loss, q_loss = np.mean(np.where(u < 0, 0.2, 0.8) * u**2), np.mean(error**2)
    policy_loss = -np.mean(weight * norm.logpdf(rows.action, mean, std).sum(1))
    terms = dict(losses_v=v_loss, losses_q=q_loss, losses_policy=policy_loss)
    check(found, sum(terms.values()), **terms, charts_q=q.mean(), charts_weight=weight.mean())
    check_gradient(nets.v, -2 / 4 * (np.where(u < 0, 0.2, 0.8) * u)[:, None])
    check_critics(nets.q, obs, action, 2 / 8 * error[..., None])
    z = (rows.action - mean) / std
    mean_gradient, std_gradient = -weight[:, None] * z / std * (1 - mean**2), weight[:, None] * (1 - z**2)
    if policy_std == "shared":
        check_gradient(nets.policy, mean_gradient / 4)
        np.testing.assert_allclose(nets.policy.log_std.grad, std_gradient.mean(0))
    else:
        check_gradient(nets.policy, np.hstack([mean_gradient, std_gradient]) / 4)


def test_imitation_loss():
    mean, action = torch.rand(5, 2, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    log_std, weight = torch.tensor([-1.0, 0.5], dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    expected = -(weight * Normal(mean, log_std.exp()).log_prob(action).sum(1)).mean()
    loss = baselines_iql.imitation_loss
    torch.testing.assert_close(loss(mean, log_std, action, weight), expected)
    narrow, bound = (loss(mean, 0 * log_std + least, action, weight) for least in (-50, -5))
    assert narrow == bound and torch.isfinite(narrow)


def around_tanh(output, draws):
    """Draws of a Gaussian around tanh of a mean: (B, 4), (B, n, 2) -> (B, n, 2)"""
    mean, log_std = np.split(output[:, None], 2, axis=-1)
    return np.tanh(mean) + np.exp(log_std) * draws


def density_around_tanh(output, x):
    mean, log_std = np.split(output[:, None], 2, axis=-1)
    return norm.logpdf(x, np.tanh(mean), np.exp(log_std)).sum(-1)


@pytest.mark.parametrize("target_entropy", [False, True])
def test_continuous_brac_learner_loss(target_entropy):
    changes = {"behaviour_weight": 0.6, "entropy_weight": 0.2, "target_entropy": target_entropy}
    nets, rows, *found = learn(baselines_brac, discount=0.9, **changes)
    action, (there, here, _) = rows.action[:, None], noise()

    def expectation(critics, obs, draws, alpha, shift=0):
        output = forward(nets.policy, obs) + shift
        x = around_tanh(output, draws)
        log_pi = density_around_tanh(output, x)
        log_behaviour = density_around_tanh(forward(nets.behaviour, obs), x)
        q = critics_of(critics, obs, np.clip(x, -1, 1)).min(0)
        value = q + 0.6 * log_behaviour - alpha * log_pi
        return value.mean(1), -log_pi.mean(), (log_pi - log_behaviour).mean()

    next_value = expectation(nets.q_target, rows.next_obs, there, 0.2 * target_entropy)[0]
    q = critics_of(nets.q, rows.obs, action)[..., 0]
    error = q - rows.reward - 0.9 * (1 - rows.terminal) * next_value
    value, entropy, divergence = expectation(nets.q, rows.obs, here, 0.2)
    losses = dict(losses_q=np.mean(error**2), losses_policy=-value.mean())
    charts = dict(charts_entropy=entropy, charts_divergence=divergence, charts_q=q.mean())
    check(found, sum(losses.values()), **losses, **charts)
    check_critics(nets.q, rows.obs, action, 2 / 8 * error[..., None])
    gradient = numerical_gradient(lambda shift: -expectation(nets.q, rows.obs, here, 0.2, shift)[0].mean())
    np.testing.assert_allclose(nets.policy[-1].bias.grad, gradient, atol=1e-7)


def test_behaviour_loss():
    """Maximum likelihood of a Gaussian around tanh of a mean."""
    _, learner = make_learner(baselines_brac)
    rows = batch(baselines_brac)
    mean, log_std = learner.behaviour(rows.obs).chunk(2, dim=1)
    density = Normal(mean.tanh(), log_std.exp()).log_prob(rows.action)
    loss, metrics = baselines_brac.behaviour_loss(learner, rows)
    torch.testing.assert_close(loss, -density.sum(1).mean())
    assert metrics == {"losses/behaviour": loss}


# --- Aquadem ---
def quantizer_of(dropout=0.1):
    args = baselines_aquadem.Args(num_candidates=5, hidden_dim=8, softmin=0.3, dropout=dropout)
    torch.manual_seed(2)
    return args, baselines_aquadem.Quantizer(args, 4, 2).double()


def test_candidates():
    """K heads on one torso, in NumPy; a code is the index of the nearest."""
    _, quantizer = quantizer_of()
    rows = batch(baselines_aquadem, 9)
    hidden = np.maximum(forward([quantizer.torso], rows.obs.numpy()), 0)
    expected = np.stack([forward(head, hidden) for head in quantizer.heads], 1)
    np.testing.assert_allclose(quantizer(rows.obs).detach(), expected)
    code = ((expected - rows.action.numpy()[:, None]) ** 2).sum(-1).argmin(1)
    assert len(set(code)) > 1
    many = torch.arange(9).repeat(600)  # more than one part, and in order
    np.testing.assert_array_equal(quantizer.encode(rows.obs[many], rows.action[many]), code[many])


def test_candidates_loss():
    args, quantizer = quantizer_of(dropout=0.0)
    rows = batch(baselines_aquadem)
    candidates = quantizer(rows.obs).detach().numpy()
    distance = ((candidates - rows.action.numpy()[:, None]) ** 2).sum(-1)
    expected = np.mean(-0.3 * np.log(np.exp(-distance / 0.3).mean(1)))
    loss, metrics = baselines_aquadem.quantizer_loss(args, quantizer, rows)
    assert loss.item() == metrics["losses/quantizer"].item() == pytest.approx(expected)
    loss.backward()
    share = softmax(-distance / 0.3, axis=1)  # which head is trained by how much
    error = 2 * (candidates - rows.action.numpy()[:, None]) * share[..., None] / 4
    for k, head in enumerate(quantizer.heads):
        np.testing.assert_allclose(head[-1].bias.grad, error[:, k].sum(0), atol=1e-12)
    args.softmin = 1e-6  # leaves the distance to the nearest candidate, in float32 as well
    loss, _ = baselines_aquadem.quantizer_loss(args, quantizer, rows)
    assert loss.item() == pytest.approx(distance.min(1).mean(), abs=1e-5)
    floats = baselines_aquadem.Transitions(*(x.float() for x in rows))
    loss, _ = baselines_aquadem.quantizer_loss(args, quantizer.float(), floats)
    assert loss.item() == pytest.approx(distance.min(1).mean(), abs=1e-5)


def test_dropout():
    """Inputs, torso and heads lose units in training, with other ones at every update, and none in use."""
    args = baselines_aquadem.Args(num_candidates=2, hidden_dim=300)
    quantizer = baselines_aquadem.Quantizer(args, 300, 300)
    with torch.no_grad():
        for layer in (layer for layer in quantizer.modules() if isinstance(layer, torch.nn.Linear)):
            layer.weight.copy_(torch.eye(300))
            layer.bias.zero_()
        candidates = quantizer(torch.ones(100, 300), 0.2)
        assert torch.equal(quantizer(torch.ones(100, 300)), torch.ones(100, 2, 300))
    # What is left has passed all three and was scaled up by 1 / 0.8 in each.
    np.testing.assert_allclose(candidates[candidates != 0], 0.8**-3, rtol=1e-5)
    assert (candidates != 0).double().mean().item() == pytest.approx(0.8**3, abs=0.01)
    args, quantizer = quantizer_of(dropout=0.5)
    rows = batch(baselines_aquadem, 9)
    losses = {baselines_aquadem.quantizer_loss(args, quantizer, rows)[0].item() for _ in range(3)}
    assert len(losses) == 3


@pytest.mark.parametrize("learner", ["bc", "cql", "iql"])
def test_learner_of_aquadem_is_that_of_saq(learner):
    """The loss, metrics, gradients and policy of the script of that name, on the same codes and weights."""
    module = SCRIPTS[f"saq_{learner}"]
    changes = {"expectile": 0.8, "temperature": 0.5, "conservatism": 3.0, "discount": 0.9}
    nets, rows, loss, metrics = learn(baselines_aquadem, learner=learner, **changes)
    args = module.Args(codebook_size=5, **{k: v for k, v in changes.items() if hasattr(module.Args, k)})
    _, theirs = make_learner(module)
    names = (
        {"policy": "behaviour"} if learner == "bc" else {name: name for name, _ in theirs.named_children()}
    )
    for name, own in names.items():
        getattr(theirs, name).load_state_dict(getattr(nets, own).state_dict())
    rows = module.Transitions(*map(torch.as_tensor, rows))
    their_loss, their_metrics = module.learner_loss(args, theirs, rows)
    assert loss == pytest.approx(their_loss.item())
    for name in their_metrics.keys() - {"charts/accuracy"}:
        own = "losses/behaviour" if name == "losses/policy" else name
        assert metrics[own].item() == pytest.approx(their_metrics[name].item())
    their_loss.backward()
    for name, own in names.items():
        ours = [p.grad for p in getattr(nets, own).parameters()]
        for grad, parameter in zip(ours, getattr(theirs, name).parameters(), strict=True):
            assert grad is parameter.grad is None or torch.allclose(grad, parameter.grad)
    own = baselines_aquadem.Args(learner=learner, num_candidates=5, temperature=0.5)
    log_pi = baselines_aquadem.log_policy(own, nets, rows.obs)
    torch.testing.assert_close(log_pi, module.log_policy(args, theirs, rows.obs))
