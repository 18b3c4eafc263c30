"""The losses of every script against sums over hand-made numbers, written out in NumPy.

Tests name the modules as globals of this file: test_mutations.py puts altered copies in their place.
"""

import inspect

import numpy as np
import pytest
import torch
from common import HOPPER, PATHS, SAQ, SCRIPTS, dataset
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from scipy.stats import norm

import saq_bc
import saq_brac
import saq_cql
import saq_iql
import vqvae

baselines_aquadem, baselines_bc, baselines_brac, baselines_cql, baselines_iql = (
    SCRIPTS[f"baselines/{name}"] for name in ("aquadem", "bc", "brac", "cql", "iql")
)
torch.manual_seed(0)

Q = np.array([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0]])
OTHER_Q = np.array([[0.3, -2.0, 4.0], [7.0, 0.1, 0.2]])
LOG_BEHAVIOUR = np.log([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
LOG_POLICY = np.log([[0.1, 0.1, 0.8], [0.25, 0.5, 0.25]])
CODE = np.array([2, 0])


def tensors(*arrays):
    return [torch.as_tensor(x) for x in arrays]


# --- single losses ---
@pytest.mark.parametrize("script", ["saq_iql", "baselines/iql"])
def test_expectile_loss(script):
    module = globals()[script.replace("/", "_")]
    (error,) = tensors(np.array([2.0, -1.0, 0.5, -3.0]))
    # 0.7 * 4, 0.3 * 1, 0.7 * 0.25, 0.3 * 9
    assert module.expectile_loss(error, 0.7).item() == pytest.approx((2.8 + 0.3 + 0.175 + 2.7) / 4)
    assert module.expectile_loss(error, 0.5).item() == pytest.approx(0.5 * (4 + 1 + 0.25 + 9) / 4)


@pytest.mark.parametrize(
    "script", ["saq_iql", "saq_cql", "saq_brac", "baselines/iql", "baselines/cql", "baselines/brac"]
)
def test_td_loss(script):
    module = globals()[script.replace("/", "_")]
    q, rewards, terminals = tensors(np.array([1.0, 2, 3]), np.array([1.0, 0, -1]), np.array([0.0, 1, 0]))
    next_value = torch.full((3,), 10.0, dtype=torch.float64, requires_grad=True)
    q.requires_grad_()
    # Targets 1 + 9, 0 (terminal: its next value does not count) and -1 + 9.
    loss = module.td_loss(q, rewards, terminals, next_value, 0.9)
    assert loss.item() == pytest.approx((9**2 + 2**2 + 5**2) / 3)
    loss.backward()
    np.testing.assert_allclose(q.grad, np.array([-18, 4, -10]) / 3)
    assert next_value.grad is None  # nothing flows through the target


def test_conservative_loss():
    q, code = tensors(Q, CODE)
    expected = np.mean(logsumexp(Q, axis=1) - [0.5, -1.0])
    assert saq_cql.conservative_loss(q, code).item() == pytest.approx(expected)
    # SAQ Eq. 12: it is behaviour cloning of softmax(Q).
    assert expected == pytest.approx(-np.mean(np.log(softmax(Q, axis=1)[[0, 1], CODE])))
    assert saq_cql.conservative_loss(q, code).item() == pytest.approx(saq_bc.bc_loss(q, code).item())


def test_backup_value():
    q, target_q = tensors(Q, OTHER_Q)
    np.testing.assert_allclose(saq_cql.backup_value(q, target_q, "argmax"), [-2.0, 0.2])  # Q picks, the target values
    expected = (np.exp(Q) * OTHER_Q).sum(1) / np.exp(Q).sum(1)
    np.testing.assert_allclose(saq_cql.backup_value(q, target_q, "expectation"), expected)


def test_bc_loss():
    expected = -np.mean(np.log(np.exp(Q[[0, 1], CODE]) / np.exp(Q).sum(1)))
    assert saq_bc.bc_loss(*tensors(Q, CODE)).item() == pytest.approx(expected)


def test_squared_error():
    gaussian, action = tensors(np.array([[0.5, -2.0, 7.0, 8.0], [0.0, 1.0, 9.0, 9.0]]), np.array([[0.0, 4], [1, 0]]))
    expected = [np.tanh(0.5) ** 2 + (np.tanh(-2) - 4) ** 2, 1 + np.tanh(1) ** 2]
    assert baselines_bc.squared_error(gaussian, action).tolist() == pytest.approx(expected)


def test_regularised_value():
    expected = (np.exp(LOG_POLICY) * (Q + 0.5 * LOG_BEHAVIOUR - 0.3 * LOG_POLICY)).sum(1)
    value = saq_brac.regularised_value(*tensors(LOG_POLICY, Q, LOG_BEHAVIOUR), 0.5, 0.3)
    np.testing.assert_allclose(value, expected)


def test_policy_loss():
    expected = -(np.exp(LOG_POLICY) * (Q + 0.5 * LOG_BEHAVIOUR - 0.3 * LOG_POLICY)).sum() / 2
    log_policy, q, log_behaviour = (x.requires_grad_() for x in tensors(LOG_POLICY, Q, LOG_BEHAVIOUR))
    loss = saq_brac.policy_loss(log_policy, q, log_behaviour, 0.5, 0.3)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert log_policy.grad is not None and q.grad is None and log_behaviour.grad is None


def test_policy_loss_leads_to_its_optimum():
    """SAQ Eq. 6 on frozen tables: Adam ends at softmax((Q + beta log pi_beta) / alpha)."""
    rng = np.random.default_rng(0)
    table, log_behaviour = rng.normal(size=(4, 6)), np.log(rng.dirichlet(np.ones(6), 4))
    beta, alpha = 0.7, 0.4
    logits = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(800):
        loss = saq_brac.policy_loss(logits.log_softmax(1), *tensors(table, log_behaviour), beta, alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy, optimum = softmax(logits.detach().numpy(), axis=1), softmax((table + beta * log_behaviour) / alpha, axis=1)
    assert (policy * np.log(policy / optimum)).sum(1).max() < 1e-3


def test_closed_form_policy():
    log_policy = saq_iql.closed_form_policy(*tensors(Q, LOG_BEHAVIOUR), 0.5).numpy()
    unnormalised = np.exp(LOG_BEHAVIOUR) * np.exp(Q / 0.5)
    np.testing.assert_allclose(np.exp(log_policy), unnormalised / unnormalised.sum(1, keepdims=True))


def constrained_policy(advantage, behaviour, epsilon):
    """SAQ Eq. 13 by a general solver: max E_pi[A] subject to KL(pi, pi_beta) <= epsilon and sum pi = 1."""
    constraints = [
        {"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        {
            "type": "ineq",
            "fun": lambda p: epsilon - (p * np.log(p / behaviour)).sum(),
            "jac": lambda p: -np.log(p / behaviour) - 1,
        },
    ]
    solution = minimize(
        lambda p: -(p * advantage).sum(),
        behaviour,
        jac=lambda p: -advantage,
        bounds=[(1e-10, 1)] * len(advantage),
        constraints=constraints,
        options={"maxiter": 1000, "ftol": 1e-16},
        method="SLSQP",
    )
    return solution.x  # it stops where no step improves; the comparison shows whether that is the optimum


def closed_form(advantage, behaviour, temperature):
    row = tensors(advantage[None], np.log(behaviour)[None])
    return saq_iql.closed_form_policy(*row, temperature).exp().numpy()[0]


def test_closed_form_policy_solves_the_constrained_problem():
    """SAQ Eq. 14 at the multiplier whose policy spends exactly epsilon."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        size, epsilon = rng.integers(3, 9), rng.uniform(0.02, 0.3)
        advantage, behaviour = rng.normal(size=size), rng.dirichlet(np.full(size, 3.0))
        epsilon = min(epsilon, 0.8 * -np.log(behaviour[advantage.argmax()]))  # the constraint is active
        low, high = 1e-3, 1e3  # the divergence falls as the temperature rises
        for _ in range(100):
            temperature = (low * high) ** 0.5
            policy = closed_form(advantage, behaviour, temperature)
            spent = (policy * np.log(np.maximum(policy, 1e-300) / behaviour)).sum()
            low, high = (temperature, high) if spent > epsilon else (low, temperature)
        assert spent == pytest.approx(epsilon)
        np.testing.assert_allclose(policy, constrained_policy(advantage, behaviour, epsilon), atol=1e-4)


def test_closed_form_policy_without_a_binding_constraint():
    """Where even the best code alone stays within epsilon, the multiplier is 0 and that code is all there is."""
    advantage, behaviour = np.array([0.3, 1.0, -2.0, 0.8]), np.array([0.4, 0.3, 0.2, 0.1])
    policy = constrained_policy(advantage, behaviour, epsilon=-np.log(0.3) + 0.5)
    np.testing.assert_allclose(policy, [0, 1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(closed_form(advantage, behaviour, 1e-3), policy, atol=1e-4)


# --- the quantizer's loss ---
def handmade_quantizer(form: str, revive: bool = False):
    """Linear maps in place of the networks; the embeddings of `BATCH` are [2, 1] and [0.5, 0]."""
    quantizer = vqvae.VQVAE(1, 2, codebook_size=3, embedding_dim=2, form=form, revive=revive)
    quantizer.encoder, quantizer.decoder = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 2)
    with torch.no_grad():
        quantizer.encoder.weight.copy_(torch.tensor([[1.0, 1, 0], [0, 0, 2]]))
        quantizer.decoder.weight.copy_(torch.tensor([[1.0, 1, 0], [0, 0, 1]]))
        quantizer.decoder.bias.copy_(torch.tensor([0.0, -1]))
        quantizer.codebook.copy_(torch.tensor([[0.0, 0], [3, 1], [10, 10]]))
        quantizer.embedding_sum.copy_(quantizer.codebook / 3)
    return quantizer


BATCH = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.5], [0.5, 0.0]])


@pytest.mark.parametrize(("form", "scale", "weight"), [("paper", 1, 2), ("official", 0.5, 2), ("ema", 0.5, 1)])
def test_quantizer_loss(form, scale, weight):
    quantizer = handmade_quantizer(form)
    # Codes 1 and 0, so the decoder says [1 + 3, 1 - 1] and [0, -1]; the squared distances to the codes are 1 and 0.25.
    reconstruction, distance = (3**2 + 0.5**2 + 0.5**2 + 1**2) / 2, scale * (1 + 0.25) / 2
    loss, terms = quantizer.loss(*BATCH)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"vqvae/reconstruction": reconstruction, "vqvae/codebook": distance, "vqvae/commitment": distance}
    )
    assert loss.item() == pytest.approx(reconstruction + weight * distance)  # "ema" moves the codebook otherwise
    loss.backward()
    # Reconstruction: the decoder's first weights pass its gradient on as it is, straight through to the encoder.
    step = np.array([[3.0, -0.5], [-0.5, -1.0]])  # (2 / B) * error
    pull = scale * np.array([[-1.0, 0.0], [0.5, 0.0]])  # (2 / B) * (embedding - code), from the commitment
    inputs = np.array([[1.0, 1.0, 0.5], [0.0, 0.5, 0.0]])  # (B, obs and action)
    np.testing.assert_allclose(quantizer.encoder.weight.grad, (step + pull).T @ inputs, rtol=1e-6)
    if form == "ema":
        assert quantizer.codebook.grad is None
    else:  # the codebook term alone moves the codes
        np.testing.assert_allclose(quantizer.codebook.grad, -np.array([pull[1], pull[0], [0, 0]]), rtol=1e-6)


# --- what a learner minimises ---
def batch(obs_dim=4, action_dim=2, codes=5, rows=9):
    """Random data, and the indices of a batch: out of order, one of them terminal."""
    rng = np.random.default_rng(1)
    data = {
        "observations": rng.normal(size=(rows, obs_dim)),
        "next_observations": rng.normal(size=(rows, obs_dim)),
        "actions": rng.uniform(-1, 1, size=(rows, action_dim)),
        "rewards": rng.normal(size=rows),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 1, 0, 0.0]),
        "codes": rng.integers(0, codes, rows),
    }
    return data, np.array([7, 2, 0, 4])


def forward(net, x):
    """A network of Linear and ReLU layers in NumPy."""
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            x = np.maximum(x, 0)
    return x


def learn(module, **changes):
    """One call of `learner_loss`: (args, networks with the target before the call, NumPy batch, loss, metrics)."""
    sizes = {"codebook_size": 5, "num_candidates": 5, "num_actions": 3, "num_draws": 3, "hidden_dim": 8}
    args = module.Args(**{name: size for name, size in sizes.items() if hasattr(module.Args, name)}, **changes)
    torch.manual_seed(3)
    acts = "action_dim" in inspect.signature(module.make_learner).parameters
    learner = module.make_learner(args, 4, *([2] if acts else [])).double()
    for name, parameter in learner.named_parameters():  # as after some training: away from 0
        if name in ("log_temperature", "policy.log_std"):
            parameter.data += 0.4
        if module.SCRIPT == "iql" and name == "v.4.bias":  # advantages of both signs
            parameter.data -= 0.4
    if hasattr(args, "behaviour_steps"):  # pi_beta is ready by then
        learner["behaviour"].requires_grad_(False)
    torch.manual_seed(4)
    if "q_target" in learner:  # as after some training: away from Q
        learner["q_target"].load_state_dict(
            {k: v + 0.3 * torch.randn_like(v) for k, v in learner["q"].state_dict().items()}
        )
    old = {name: [p.detach().clone() for p in net.parameters()] for name, net in learner.items()}
    data, index = batch()
    loss, metrics = module.learner_loss(
        args, learner, dict(zip(data, tensors(*data.values()), strict=True)), torch.as_tensor(index)
    )
    rows = {name: values[index] for name, values in data.items()}
    # `learner` now holds the moved target: it has to have moved by the rate, before it was used.
    for name, before in old.items():
        for p, q, was in zip(
            learner[name].parameters(), learner["q" if "q" in learner else name].parameters(), before, strict=False
        ):
            expected = was + args.target_rate * (q - was) if name == "q_target" else was
            torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    loss.backward()
    return args, learner, rows, loss.item(), metrics


def log_softmax(x):
    return x - logsumexp(x, axis=1, keepdims=True)


def check_gradient(net, expected):
    """The gradient at a network's last bias is the sum over the batch of the gradient at its output, (B, outputs)."""
    np.testing.assert_allclose(net[-1].bias.grad, expected.sum(0), atol=1e-12)


def onehot(code):
    return np.eye(5)[code]


def test_iql_learner_loss():
    args, nets, rows, loss, metrics = learn(saq_iql, discount=0.9, expectile=0.8, target_rate=0.1)
    obs, next_obs, code, b = rows["observations"], rows["next_observations"], rows["codes"], np.arange(4)
    q, value = forward(nets["q"], obs)[b, code], forward(nets["v"], obs)[:, 0]
    u = forward(nets["q_target"], obs)[b, code] - value
    target = rows["rewards"] + 0.9 * (1 - rows["terminals"]) * forward(nets["v"], next_obs)[:, 0]
    log_behaviour = log_softmax(forward(nets["behaviour"], obs))
    weight = np.where(u < 0, 0.2, 0.8)
    terms = {
        "losses/v": np.mean(weight * u**2),
        "losses/q": np.mean((q - target) ** 2),
        "losses/behaviour": -np.mean(log_behaviour[b, code]),
    }
    assert {name: metrics[name].item() for name in terms} == pytest.approx(terms)
    assert loss == pytest.approx(sum(terms.values()))
    assert metrics["charts/q"].item() == pytest.approx(q.mean())
    check_gradient(nets["v"], -2 / 4 * (weight * u)[:, None])
    check_gradient(nets["q"], 2 / 4 * (q - target)[:, None] * onehot(code))
    check_gradient(nets["behaviour"], (np.exp(log_behaviour) - onehot(code)) / 4)
    assert all(p.grad is None for p in nets["q_target"].parameters())


@pytest.mark.parametrize("backup", ["expectation", "argmax"])
def test_cql_learner_loss(backup):
    args, nets, rows, loss, metrics = learn(saq_cql, discount=0.9, conservatism=3.0, target_rate=0.1, backup=backup)
    obs, next_obs, code, b = rows["observations"], rows["next_observations"], rows["codes"], np.arange(4)
    q, next_q, next_target = forward(nets["q"], obs), forward(nets["q"], next_obs), forward(nets["q_target"], next_obs)
    next_value = (
        next_target[b, next_q.argmax(1)] if backup == "argmax" else (softmax(next_q, axis=1) * next_target).sum(1)
    )
    target = rows["rewards"] + 0.9 * (1 - rows["terminals"]) * next_value
    penalty = np.mean(logsumexp(q, axis=1) - q[b, code])
    squared = np.mean((q[b, code] - target) ** 2)
    assert loss == pytest.approx(0.5 * squared + 3 * penalty)
    assert metrics["losses/q"].item() == pytest.approx(squared)
    assert metrics["losses/penalty"].item() == pytest.approx(penalty)
    assert metrics["charts/q"].item() == pytest.approx(q[b, code].mean())
    td = (q[b, code] - target)[:, None] * onehot(code)
    check_gradient(nets["q"], (td + 3 * (softmax(q, axis=1) - onehot(code))) / 4)
    assert all(p.grad is None for p in nets["q_target"].parameters())


@pytest.mark.parametrize("target_entropy", [False, True])
def test_brac_learner_loss(target_entropy):
    beta, alpha = 0.6, 0.2
    weights = {"behaviour_weight": beta, "entropy_weight": alpha, "target_entropy": target_entropy}
    args, nets, rows, loss, metrics = learn(saq_brac, discount=0.9, target_rate=0.1, **weights)
    obs, next_obs, code, b = rows["observations"], rows["next_observations"], rows["codes"], np.arange(4)
    q, log_policy = forward(nets["q"], obs), log_softmax(forward(nets["policy"], obs))
    log_behaviour = log_softmax(forward(nets["behaviour"], obs))
    next_log_policy = log_softmax(forward(nets["policy"], next_obs))
    inside = forward(nets["q_target"], next_obs) + beta * log_softmax(forward(nets["behaviour"], next_obs))
    if target_entropy:
        inside = inside - alpha * next_log_policy
    next_value = (np.exp(next_log_policy) * inside).sum(1)
    target = rows["rewards"] + 0.9 * (1 - rows["terminals"]) * next_value
    objective = q + beta * log_behaviour - alpha * log_policy  # (B, K), SAQ Eq. 6
    policy = np.exp(log_policy)
    terms = {
        "losses/q": np.mean((q[b, code] - target) ** 2),
        "losses/behaviour": -np.mean(log_behaviour[b, code]),
        "losses/policy": -np.mean((policy * objective).sum(1)),
    }
    assert {name: metrics[name].item() for name in terms} == pytest.approx(terms)
    assert loss == pytest.approx(sum(terms.values()))
    assert metrics["charts/q"].item() == pytest.approx(q[b, code].mean())
    assert metrics["charts/entropy"].item() == pytest.approx(-np.mean((policy * log_policy).sum(1)))
    check_gradient(nets["q"], 2 / 4 * (q[b, code] - target)[:, None] * onehot(code))
    check_gradient(nets["behaviour"], (np.exp(log_behaviour) - onehot(code)) / 4)
    check_gradient(nets["policy"], -policy * (objective - (policy * objective).sum(1, keepdims=True)) / 4)
    assert all(p.grad is None for p in nets["q_target"].parameters())


def test_bc_learner_loss():
    args, nets, rows, loss, metrics = learn(saq_bc)
    logits, code = forward(nets["policy"], rows["observations"]), rows["codes"]
    expected = -np.mean(log_softmax(logits)[np.arange(4), code])
    assert loss == metrics["losses/policy"].item() == pytest.approx(expected)
    assert metrics["charts/accuracy"].item() == pytest.approx(np.mean(logits.argmax(1) == code))
    check_gradient(nets["policy"], (softmax(logits, axis=1) - onehot(code)) / 4)


@pytest.mark.parametrize("name", ["likelihood", "squared"])
def test_continuous_bc_learner_loss(name):
    args, nets, rows, loss, metrics = learn(baselines_bc, loss=name)
    mean, log_std = np.split(forward(nets["policy"], rows["observations"]), 2, axis=1)
    error, slope = np.tanh(mean) - rows["actions"], 1 - np.tanh(mean) ** 2
    if name == "squared":
        expected, gradient = (error**2).sum(1), [2 * error * slope, 0 * log_std]
    else:
        expected = -norm.logpdf(rows["actions"], np.tanh(mean), np.exp(log_std)).sum(1)
        gradient = [error * slope / np.exp(2 * log_std), 1 - (error / np.exp(log_std)) ** 2]
    assert loss == metrics["losses/policy"].item() == pytest.approx(expected.mean())
    check_gradient(nets["policy"], np.hstack(gradient) / 4)


# --- policies that act ---
def test_policies():
    obs = np.random.default_rng(5).normal(size=(6, 4))
    for module, changes in [(saq_iql, {"temperature": 0.5}), (saq_cql, {}), (saq_brac, {}), (saq_bc, {})]:
        args, nets, *_ = learn(module, **changes)
        if module is saq_iql:
            unnormalised = softmax(forward(nets["behaviour"], obs), axis=1) * np.exp(forward(nets["q"], obs) / 0.5)
            expected = np.log(unnormalised / unnormalised.sum(1, keepdims=True))  # V cancels
        else:
            expected = log_softmax(forward(nets["q" if module is saq_cql else "policy"], obs))
        np.testing.assert_allclose(module.policy(args, nets, torch.as_tensor(obs)).detach(), expected, atol=1e-12)


class Codes:
    """A quantizer whose code k stands for the action [k, first observation]."""

    def decode(self, obs, code):
        return torch.stack([code.to(obs.dtype), obs[:, 0]], 1)

    def __call__(self, obs):  # Aquadem's: the actions of all codes
        return torch.stack([self.decode(obs, torch.full((len(obs),), k)) for k in range(3)], 1)


def test_acting(monkeypatch):
    probs = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.0, 0.9]])
    data = {"obs_mean": torch.tensor([1.0, 0.0]), "obs_std": torch.tensor([2.0, 1.0])}
    obs = np.array([[3.0, 0.0], [5.0, 0.0]])  # first entry, standardised: 1 and 2
    for module in (saq_iql, saq_cql, saq_brac, saq_bc, baselines_aquadem):
        with monkeypatch.context() as patch:
            patch.setattr(module, "policy", lambda args, learner, obs: probs.repeat(len(obs) // 2, 1).log())

            def act(acting, obs, module=module):
                args = module.Args(acting=acting, device="cpu")
                uniform = (np.arange(len(obs)) // 2 + 0.5) / (len(obs) // 2)  # evenly over [0, 1), for each of the two
                return module.act(args, Codes(), None, data, obs, uniform)

            np.testing.assert_allclose(act("greedy", obs), [[0, 1], [2, 2]])
            np.testing.assert_allclose(act("mean", obs), [[0.2 + 0.6, 1], [1.8, 2]], rtol=1e-6)
            drawn = act("sample", np.tile(obs, (1000, 1)))[:, 0].reshape(-1, 2)
            for column, expected in enumerate(probs):
                shares = np.bincount(drawn[:, column].astype(int), minlength=3) / len(drawn)
                np.testing.assert_allclose(shares, expected, atol=1e-9)
            # A sum of probabilities that is rounded to less than 1 names no code past the last.
            args = module.Args(acting="sample", device="cpu")
            patch.setattr(module, "policy", lambda args, learner, obs: probs.log() - 1e-3)
            assert module.act(args, Codes(), None, data, obs, np.array([0.9999, 0.9999])).max() == 2


def test_continuous_acting():
    data = {"obs_mean": torch.tensor([1.0, 0.0]), "obs_std": torch.tensor([2.0, 1.0])}
    obs = np.array([[3.0, 1.0], [5.0, -1.0]])
    mean = np.array([[1, 10], [2, -10]])
    for module in (baselines_bc, baselines_iql, baselines_cql, baselines_brac):
        learner = {"policy": lambda obs: torch.cat([obs * torch.tensor([1, 10]), obs], 1)}  # mean and log std
        actions = module.act(module.Args(device="cpu"), learner, data, obs, np.zeros(2))
        np.testing.assert_allclose(actions, np.tanh(mean), rtol=1e-6)


# --- data ---
@pytest.mark.parametrize("script", PATHS)
def test_load_data(script, tmp_path, capsys):
    """A terminal cuts the bootstrap, a time-out drops the row; observations standardised, rewards scaled."""
    module = globals()[script.replace("/", "_")]
    flags = {"terminals": np.array([0, 1, 0, 0, 0, 1]), "timeouts": np.array([0, 0, 0, 1, 0, 0])}
    rewards = np.array([1, 2, 3, 4, 5, 6], np.float32)  # returns 3, 7 and 11
    path = dataset(tmp_path / "data.hdf5", rows=6, rewards=rewards, **flags)
    has_rewards, has_quantizer = not script.endswith("bc"), script in [*SAQ, "baselines/aquadem"]
    scales = {"reward_shift": -1.0, "reward_scale": 0.0} if has_rewards else {}
    args = module.Args(env_id=HOPPER, dataset_path=str(path), device="cpu", **scales)
    data = module.load_data(args)
    assert data["terminals"].tolist() == [0, 1, 0, 0] and data["terminals"].dtype == torch.float32
    stored = module.d4rl.get_dataset(HOPPER, path)["observations"]
    mean, std = stored[[0, 1, 2, 4]].mean(0), stored[[0, 1, 2, 4]].std(0, ddof=1) + 1e-3
    np.testing.assert_allclose(data["observations"], (stored[[0, 1, 2, 4]] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(data["next_observations"], (stored[[1, 2, 3, 5]] - mean) / std, atol=1e-5)
    assert ("heldout" in data) == has_quantizer
    if has_quantizer:
        assert sorted([*data["heldout"].tolist(), *data["train"].tolist()]) == [0, 1, 2, 3]
        assert len(data["heldout"]) == 1
    if has_rewards:
        np.testing.assert_allclose(data["rewards"], (np.array([1, 2, 3, 5]) - 1) * 1000 / (11 - 3), rtol=1e-6)
        args.reward_scale = 0.1
        np.testing.assert_allclose(module.load_data(args)["rewards"], [0, 0.1, 0.2, 0.4], rtol=1e-6)
    assert "6 steps, 3 episodes" in capsys.readouterr().out
