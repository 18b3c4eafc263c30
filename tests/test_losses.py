"""The losses, policies and data of the SAQ scripts against sums over hand-made numbers, written out in NumPy.

Tests name the modules as globals of this file: test_mutations.py puts altered copies in their place.
"""

import inspect

import numpy as np
import pytest
import torch
from common import HOPPER, PATHS, SAQ, SCRIPTS, dataset
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, logsumexp, softmax

import d4rl
import saq_bc
import saq_brac
import saq_cql
import saq_iql

baselines_aquadem, baselines_bc, baselines_brac, baselines_cql, baselines_iql = (
    SCRIPTS[f"baselines/{name}"] for name in ("aquadem", "bc", "brac", "cql", "iql")
)
Q = np.array([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0]])
OTHER_Q = np.array([[0.3, -2.0, 4.0], [7.0, 0.1, 0.2]])
LOG_BEHAVIOUR = np.log([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
LOG_POLICY = np.log([[0.1, 0.1, 0.8], [0.25, 0.5, 0.25]])
CODE = np.array([2, 0])


def tensors(*arrays):
    return [torch.as_tensor(x) for x in arrays]


def module_of(script):
    return globals()[script.replace("/", "_")]


# --- single losses ---
@pytest.mark.parametrize("script", ["saq_iql", "baselines/iql"])
def test_expectile_loss(script):
    (error,) = tensors(np.array([2.0, -1.0, 0.5, -3.0]))
    loss = module_of(script).expectile_loss
    # 0.7 * 4, 0.3 * 1, 0.7 * 0.25, 0.3 * 9
    assert loss(error, 0.7).item() == pytest.approx((2.8 + 0.3 + 0.175 + 2.7) / 4)
    assert loss(error, 0.5).item() == pytest.approx(0.5 * (4 + 1 + 0.25 + 9) / 4)


@pytest.mark.parametrize("script", [name for name, module in SCRIPTS.items() if hasattr(module, "td_loss")])
def test_td_loss(script):
    q, reward, terminal = tensors(np.array([1.0, 2, 3]), np.array([1.0, 0, -1]), np.array([0.0, 1, 0]))
    next_value = torch.full((3,), 10.0, dtype=torch.float64, requires_grad=True)
    q.requires_grad_()
    # Targets 1 + 9, 0 (terminal: its next value does not count) and -1 + 9.
    loss = module_of(script).td_loss(q, reward, terminal, next_value, 0.9)
    assert loss.item() == pytest.approx((9**2 + 2**2 + 5**2) / 3)
    loss.backward()
    np.testing.assert_allclose(q.grad, np.array([-18, 4, -10]) / 3)
    assert next_value.grad is None  # nothing flows through the target


def test_conservative_loss():
    """It is behaviour cloning of softmax(Q), SAQ Eq. 12."""
    expected = np.mean(logsumexp(Q, axis=1) - [0.5, -1.0])
    assert saq_cql.conservative_loss(*tensors(Q, CODE)).item() == pytest.approx(expected)
    assert expected == pytest.approx(-np.mean(log_softmax(Q, axis=1)[[0, 1], CODE]))


def test_backup_value():
    q, target_q = tensors(Q, OTHER_Q)
    np.testing.assert_allclose(saq_cql.backup_value(q, target_q, "argmax"), [-2.0, 0.2])  # Q picks
    expected = (np.exp(Q) * OTHER_Q).sum(1) / np.exp(Q).sum(1)
    np.testing.assert_allclose(saq_cql.backup_value(q, target_q, "expectation"), expected)


def test_regularised_value():
    expected = (np.exp(LOG_POLICY) * (Q + 0.5 * LOG_BEHAVIOUR - 0.3 * LOG_POLICY)).sum(1)
    value = saq_brac.regularised_value(*tensors(LOG_POLICY, Q, LOG_BEHAVIOUR), 0.5, 0.3)
    np.testing.assert_allclose(value, expected)


def test_policy_loss():
    expected = -(np.exp(LOG_POLICY) * (Q + 0.5 * LOG_BEHAVIOUR - 0.3 * LOG_POLICY)).sum() / 2
    log_pi, q, log_behaviour = (x.requires_grad_() for x in tensors(LOG_POLICY, Q, LOG_BEHAVIOUR))
    loss = saq_brac.policy_loss(log_pi, q, log_behaviour, 0.5, 0.3)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert log_pi.grad is not None and q.grad is None and log_behaviour.grad is None


def test_policy_loss_leads_to_its_optimum():
    """SAQ Eq. 6 on frozen tables: Adam ends at softmax((Q + beta log pi_beta) / alpha)."""
    rng = np.random.default_rng(0)
    table, log_behaviour = rng.normal(size=(4, 6)), np.log(rng.dirichlet(np.ones(6), 4))
    logits = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(800):
        loss = saq_brac.policy_loss(logits.log_softmax(1), *tensors(table, log_behaviour), 0.7, 0.4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy = softmax(logits.detach().numpy(), axis=1)
    optimum = softmax((table + 0.7 * log_behaviour) / 0.4, axis=1)
    assert (policy * np.log(policy / optimum)).sum(1).max() < 1e-3


def test_closed_form_policy():
    log_pi = saq_iql.closed_form_policy(*tensors(Q, LOG_BEHAVIOUR), 0.5).numpy()
    unnormalised = np.exp(LOG_BEHAVIOUR) * np.exp(Q / 0.5)
    np.testing.assert_allclose(np.exp(log_pi), unnormalised / unnormalised.sum(1, keepdims=True))


def constrained_policy(advantage, behaviour, epsilon):
    """SAQ Eq. 13 by a general solver: max E_pi[A] subject to KL(pi, pi_beta) <= epsilon and sum pi = 1."""

    def divergence(p):
        return epsilon - (p * np.log(p / behaviour)).sum()

    constraints = [
        {"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        {"type": "ineq", "fun": divergence, "jac": lambda p: -np.log(p / behaviour) - 1},
    ]
    bounds, options = [(1e-10, 1)] * len(advantage), {"maxiter": 1000, "ftol": 1e-16}
    settings = dict(bounds=bounds, constraints=constraints, options=options, method="SLSQP")
    return minimize(lambda p: -(p * advantage).sum(), behaviour, jac=lambda p: -advantage, **settings).x


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


def test_find_temperature():
    """The lambda whose mean KL over two states is --kl, as a root finder has it; the policy acts with it."""
    args, learner = make_learner(saq_iql)
    q, behaviour = tensors(Q, LOG_BEHAVIOUR)
    learner.q.forward, learner.behaviour.forward = lambda obs: q, lambda obs: behaviour + 7

    def kl(temperature):
        log_pi = log_softmax(Q / temperature + LOG_BEHAVIOUR, axis=1)
        return (np.exp(log_pi) * (log_pi - LOG_BEHAVIOUR)).sum(1).mean()

    for args.kl in (0.01, 0.4):
        expected = brentq(lambda temperature: kl(temperature) - args.kl, 1e-2, 1e3)
        found = saq_iql.find_temperature(args, learner, torch.zeros(2, 4).double())
        assert found == pytest.approx({"charts/kl": args.kl, "charts/temperature": expected}, rel=1e-5)
        log_pi = saq_iql.log_policy(args, learner, torch.zeros(2, 4).double()).detach()
        np.testing.assert_allclose(log_pi, log_softmax(Q / expected + LOG_BEHAVIOUR, axis=1), rtol=1e-4)
    args.kl, args.temperature = 0, 2
    log_pi = saq_iql.log_policy(args, learner, torch.zeros(2, 4).double()).detach()
    np.testing.assert_allclose(log_pi, log_softmax(Q / 2 + LOG_BEHAVIOUR, axis=1), rtol=1e-4)


def test_closed_form_policy_without_a_binding_constraint():
    """Where even the best code alone stays within epsilon, the multiplier is 0: that code is all there is."""
    advantage, behaviour = np.array([0.3, 1.0, -2.0, 0.8]), np.array([0.4, 0.3, 0.2, 0.1])
    policy = constrained_policy(advantage, behaviour, epsilon=-np.log(0.3) + 0.5)
    np.testing.assert_allclose(policy, [0, 1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(closed_form(advantage, behaviour, 1e-3), policy, atol=1e-4)


# --- what a learner minimises ---
def batch(module, rows=4):
    """Random transitions in float64, one of them terminal."""
    rng = np.random.default_rng(1)
    arrays = {"obs": rng.normal(size=(rows, 4)), "next_obs": rng.normal(size=(rows, 4))}
    arrays |= {"action": rng.uniform(-1, 1, size=(rows, 2)), "reward": rng.normal(size=rows)}
    arrays |= {"terminal": np.arange(rows) % 4 == 1.0, "code": rng.integers(0, 5, rows)}
    arrays["terminal"] = arrays["terminal"].astype(float)
    return module.Transitions(*(torch.as_tensor(arrays[name]) for name in module.Transitions._fields))


def forward(net, x):
    """A network of Linear and ReLU layers in NumPy."""
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            x = np.maximum(x, 0)
    return x


def make_learner(module, **changes):
    """Arguments, and networks as after some training: the target away from Q, parameters away from 0."""
    sizes = {"codebook_size": 5, "num_candidates": 5, "num_actions": 3, "num_draws": 3, "hidden_dim": 8}
    changes |= {name: size for name, size in sizes.items() if hasattr(module.Args, name)}
    args = module.Args(**changes)
    torch.manual_seed(3)
    acts = "action_dim" in inspect.signature(module.Learner).parameters
    learner = module.Learner(args, 4, *([2] if acts else [])).double()
    torch.manual_seed(5)
    for name, parameter in learner.named_parameters():
        if name in ("log_temperature", "policy.log_std"):
            parameter.data += 0.4
        if module.SCRIPT == "iql" and name == "v.4.bias":  # advantages of both signs
            parameter.data -= 0.7
        if name.startswith("q_target"):
            parameter.data += 0.3 * torch.randn_like(parameter)
    if hasattr(args, "behaviour_steps"):  # pi_beta is ready by then
        learner.behaviour.requires_grad_(False)
    return args, learner


@pytest.mark.parametrize("script", [name for name in PATHS if hasattr(SCRIPTS[name].Learner, "move_target")])
def test_move_target(script):
    """By its rate towards Q, which stays; no gradient ever reaches it."""
    _, learner = make_learner(module_of(script))
    old = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.move_target(0.1)
    for name, value in learner.state_dict().items():
        step = 0.1 * (old[name.replace("q_target.", "q.")] - old[name])
        torch.testing.assert_close(value, old[name] + step, rtol=1e-12, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in learner.q_target.parameters())


def learn(module, **changes):
    """`learner_loss`, which may change nothing: (networks, batch in NumPy, loss, metrics)."""
    args, learner = make_learner(module, **changes)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in learner.parameters()]
    rows = batch(module)
    torch.manual_seed(4)
    loss, metrics = module.learner_loss(args, learner, rows)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert trainable == [parameter.requires_grad for parameter in learner.parameters()]
    loss.backward()
    for name in ("q_target", "behaviour") if hasattr(args, "behaviour_steps") else ("q_target",):
        assert all(p.grad is None for p in getattr(learner, name, torch.nn.Module()).parameters())
    return learner, module.Transitions(*(x.numpy() for x in rows)), loss.item(), metrics


def check(found, loss, **expected):
    """Metrics by name, `losses_q` for losses/q; the loss is the sum of `loss`."""
    metrics = {name.replace("/", "_"): metric.item() for name, metric in found[1].items()}
    assert metrics == pytest.approx(expected)
    assert found[0] == pytest.approx(loss)


def check_gradient(net, expected):
    """At a network's last bias, the sum over the batch of the gradient at its output, (B, outputs)."""
    np.testing.assert_allclose(net[-1].bias.grad, expected.sum(0), rtol=1e-6, atol=1e-12)


def onehot(code):
    return np.eye(5)[code]


B = np.arange(4)  # rows of the batch


def test_bc_learner_loss():
    nets, rows, *found = learn(saq_bc)
    logits, code = forward(nets.policy, rows.obs), rows.code
    loss = -np.mean(log_softmax(logits, axis=1)[B, code])
    check(found, loss, losses_policy=loss, charts_accuracy=np.mean(logits.argmax(1) == code))
    check_gradient(nets.policy, (softmax(logits, axis=1) - onehot(code)) / 4)


@pytest.mark.parametrize("backup", ["expectation", "argmax"])
def test_cql_learner_loss(backup):
    nets, rows, *found = learn(saq_cql, discount=0.9, conservatism=3.0, backup=backup)
    q, code = forward(nets.q, rows.obs), rows.code
    next_q, next_target = forward(nets.q, rows.next_obs), forward(nets.q_target, rows.next_obs)
    next_value = (softmax(next_q, axis=1) * next_target).sum(1)
    if backup == "argmax":
        next_value = next_target[B, next_q.argmax(1)]
    error = q[B, code] - rows.reward - 0.9 * (1 - rows.terminal) * next_value
    penalty, q_loss = np.mean(logsumexp(q, axis=1) - q[B, code]), np.mean(error**2)
    charts_q = q[B, code].mean()
    check(found, 0.5 * q_loss + 3 * penalty, losses_q=q_loss, losses_penalty=penalty, charts_q=charts_q)
    check_gradient(nets.q, (error[:, None] * onehot(code) + 3 * (softmax(q, axis=1) - onehot(code))) / 4)


def test_iql_learner_loss():
    nets, rows, *found = learn(saq_iql, discount=0.9, expectile=0.8)
    q, value, code = forward(nets.q, rows.obs)[B, rows.code], forward(nets.v, rows.obs)[:, 0], rows.code
    u = forward(nets.q_target, rows.obs)[B, code] - value
    error = q - rows.reward - 0.9 * (1 - rows.terminal) * forward(nets.v, rows.next_obs)[:, 0]
    log_behaviour, weight = log_softmax(forward(nets.behaviour, rows.obs), axis=1), np.where(u < 0, 0.2, 0.8)
    terms = {"losses_v": np.mean(weight * u**2), "losses_q": np.mean(error**2)}
    terms["losses_behaviour"] = -np.mean(log_behaviour[B, code])
    check(found, sum(terms.values()), **terms, charts_q=q.mean())
    check_gradient(nets.v, -2 / 4 * (weight * u)[:, None])
    check_gradient(nets.q, 2 / 4 * error[:, None] * onehot(code))
    check_gradient(nets.behaviour, (np.exp(log_behaviour) - onehot(code)) / 4)


@pytest.mark.parametrize("target_entropy", [False, True])
def test_brac_learner_loss(target_entropy):
    weights = {"behaviour_weight": 0.6, "entropy_weight": 0.2, "target_entropy": target_entropy}
    nets, rows, *found = learn(saq_brac, discount=0.9, **weights)
    q, code = forward(nets.q, rows.obs), rows.code
    log_pi = log_softmax(forward(nets.policy, rows.obs), axis=1)
    next_log_pi = log_softmax(forward(nets.policy, rows.next_obs), axis=1)
    log_behaviour = log_softmax(forward(nets.behaviour, rows.obs), axis=1)
    inside = forward(nets.q_target, rows.next_obs) - 0.2 * target_entropy * next_log_pi
    inside = inside + 0.6 * log_softmax(forward(nets.behaviour, rows.next_obs), axis=1)
    error = q[B, code] - rows.reward - 0.9 * (1 - rows.terminal) * (np.exp(next_log_pi) * inside).sum(1)
    objective, policy = q + 0.6 * log_behaviour - 0.2 * log_pi, np.exp(log_pi)  # (B, K), SAQ Eq. 6
    terms = {"losses_q": np.mean(error**2), "losses_behaviour": -np.mean(log_behaviour[B, code])}
    terms["losses_policy"] = -np.mean((policy * objective).sum(1))
    entropy = -np.mean((policy * log_pi).sum(1))
    check(found, sum(terms.values()), **terms, charts_q=q[B, code].mean(), charts_entropy=entropy)
    check_gradient(nets.q, 2 / 4 * error[:, None] * onehot(code))
    check_gradient(nets.behaviour, (np.exp(log_behaviour) - onehot(code)) / 4)
    check_gradient(nets.policy, -policy * (objective - (policy * objective).sum(1, keepdims=True)) / 4)


# --- policies that act ---
@pytest.mark.parametrize("script", SAQ)
def test_log_policy(script):
    args, nets = make_learner(module_of(script), **({"temperature": 0.5} if script == "saq_iql" else {}))
    obs = np.random.default_rng(5).normal(size=(6, 4))
    logits = forward(nets.q if script in ("saq_cql", "saq_iql") else nets.policy, obs)
    if script == "saq_iql":  # V cancels
        logits = logits / 0.5 + forward(nets.behaviour, obs)
    log_pi = module_of(script).log_policy(args, nets, torch.as_tensor(obs)).detach()
    np.testing.assert_allclose(log_pi, log_softmax(logits, axis=1), atol=1e-12)


class Codes:
    """A quantizer whose code k stands for the action [k / 4, first observation / 4]."""

    codebook = heads = torch.zeros(3, 1)

    def decode(self, obs, code):
        return torch.stack([code.to(obs.dtype), obs[:, 0]], 1) / 4

    def encode(self, obs, action):
        return (4 * action[:, 0]).round().long()

    def __call__(self, obs):  # Aquadem's: the actions of all codes
        return torch.stack([self.decode(obs, torch.full((len(obs),), k)) for k in range(3)], 1)


def spaces(low=(-1.0, -1.0), high=(1.0, 1.0)):
    arrays = [1.0, 0.0], [2.0, 1.0], low, high
    return d4rl.Spaces(*map(torch.tensor, arrays), torch.zeros(2, 32, dtype=torch.uint8))


@pytest.mark.parametrize("script", [*SAQ, "baselines/aquadem"])
def test_acting(script, monkeypatch):
    """Greedy, mean and drawn codes; observations standardised, actions in bounds; one or a batch."""
    module, probs = module_of(script), torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.0, 0.9]])
    obs = np.array([[3.0, 0.0], [5.0, 0.0]])  # first entry, standardised: 1 and 2

    def act(acting, obs, uniform=None, scale=1.0, **changes):
        rows = (scale * probs).log().repeat(len(obs), 1)
        monkeypatch.setattr(module, "log_policy", lambda args, learner, obs: rows[: len(obs)])
        args = module.Args(acting=acting, device="cpu")
        return module.make_act(args, Codes(), None, spaces(**changes))(obs, uniform)

    np.testing.assert_allclose(act("greedy", obs), [[0, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(act("mean", obs), [[0.05 + 0.15, 0.25], [0.45, 0.5]], rtol=1e-6)
    bounds = {"low": (-1.0, -9.0), "high": (3.0, 9.0)}  # 0 is 1 and 0, 1 is 3 and 9
    np.testing.assert_allclose(act("greedy", obs, **bounds), [[1, 2.25], [2, 4.5]])
    np.testing.assert_allclose(act("greedy", obs / 6, **bounds), [[1, -0.5625], [2, -0.1875]], rtol=1e-6)
    np.testing.assert_allclose(act("greedy", -9 * obs), [[0, -1], [0.5, -1]])
    uniform = (np.arange(2000) // 2 + 0.5) / 1000  # evenly over [0, 1), for each of the two
    drawn = 4 * act("sample", np.tile(obs, (1000, 1)), uniform)[:, 0].reshape(-1, 2)
    own = 4 * act("sample", np.tile(obs, (1000, 1)))[:, 0].reshape(-1, 2)  # a generator of its own
    for column, expected in enumerate(probs):
        shares = [np.bincount(codes[:, column].astype(int), minlength=3) / 1000 for codes in (drawn, own)]
        np.testing.assert_allclose(shares[0], expected, atol=1e-9)
        np.testing.assert_allclose(shares[1], expected, atol=0.06)
    # A sum of probabilities that is rounded to less than 1 names no code past the last.
    assert act("sample", obs, np.array([0.9999, 0.9999]), scale=0.999)[:, 0].max() == 0.5
    np.testing.assert_allclose(act("greedy", obs[0]), [0, 0.25])


@pytest.mark.parametrize("script", ["baselines/bc", "baselines/cql", "baselines/iql", "baselines/brac"])
def test_continuous_acting(script):
    """tanh of the policy's mean, of one observation or a batch."""
    module, obs = module_of(script), np.array([[3.0, 1.0], [5.0, -1.0]])
    args, learner = make_learner(module)
    learner.policy.forward = lambda obs: torch.cat([obs * torch.tensor([1, 10]), obs], 1)  # mean and log std
    act = module.make_act(args, learner, spaces(low=(-1.0, -9.0), high=(3.0, 9.0)))
    args.device = "cpu"
    expected = [[1 + 2 * np.tanh(1), 9], [1 + 2 * np.tanh(2), -9]]
    np.testing.assert_allclose(act(obs), expected, rtol=1e-6)
    np.testing.assert_allclose(act(obs[0], np.zeros(1)), expected[0], rtol=1e-6)


# --- data ---
@pytest.mark.parametrize("script", [*SAQ, "baselines/aquadem"])
def test_measure_quantizer(script):
    module = module_of(script)
    rows = [[0.0, 5.0], [0.0, 1.5], [0.5, 0.25], [0.0, 2.0]]  # codes 0, 0, 2, 0; the first entry is met
    data = module.Transitions(*[torch.tensor([[1.0], [2.0], [1.0], [2.0]]), torch.tensor(rows), *[None] * 4])
    found = module.measure_quantizer(Codes(), data, torch.tensor([1, 2]))
    values = {name.split("/")[1]: value for name, value in found.items()}
    perplexity = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    expected = {"codes_used": 2, "perplexity": perplexity, "heldout_error": 0.5}
    if script in SAQ:  # a fit to the first and last row says (0, 2) and (0, 5) of those held out
        expected |= {"explained": 1 - 0.5 / ((0.5**2 + 0.5**2 + 4.75**2) / 2), "directions": 1.0}
    assert values == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize("script", PATHS)
def test_load_data(script, tmp_path, capsys):
    """A terminal cuts the bootstrap, a time-out drops the row; standardised observations, scaled rewards."""
    module = module_of(script)
    flags = {"terminals": np.array([0, 1, 0, 0, 0, 1, 0]), "timeouts": np.array([0, 0, 0, 1, 0, 0, 0])}
    reward = np.array([1, 2, 3, 4, 5, 6, 7], np.float32)  # returns 3, 7 and 11
    path = dataset(tmp_path / "data.hdf5", rows=7, rewards=reward, **flags)
    args = module.Args(env_id=HOPPER, dataset_path=str(path), device="cpu")
    if has_rewards := not script.endswith("bc"):
        args.reward_shift, args.reward_scale = -1.0, 0.1
    data, spaces = module.load_data(args)
    kept, stored = [0, 1, 2, 4, 5], d4rl.get_dataset(HOPPER, path)
    mean, std = stored["observations"][kept].mean(0), stored["observations"][kept].std(0, ddof=1) + 1e-3
    np.testing.assert_allclose(data.obs, (stored["observations"][kept] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(
        data.next_obs, (stored["observations"][[1, 2, 3, 5, 6]] - mean) / std, atol=1e-5
    )
    np.testing.assert_array_equal(data.action, stored["actions"][kept])
    assert data.terminal.tolist() == [0, 1, 0, 0, 1] and data.terminal.dtype == torch.float32
    for array, expected in zip(spaces[:4], (mean, std, [-1] * 3, [1] * 3), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5)
    np.testing.assert_array_equal(spaces.fingerprint, d4rl.fingerprint(d4rl.qlearning_dataset(HOPPER, path)))
    assert not hasattr(data, "code") or data.code.tolist() == [-1] * 5
    np.testing.assert_allclose(
        data.reward, [0, 0.1, 0.2, 0.4, 0.5] if has_rewards else reward[kept], rtol=1e-6
    )
    if has_rewards:
        args.normalize_rewards = True
        expected = (np.array([1, 2, 3, 5, 6]) - 1) * 0.1 * 1000 / (11 - 3)
        np.testing.assert_allclose(module.load_data(args)[0].reward, expected, rtol=1e-6)
    assert "7 steps, 3 episodes" in capsys.readouterr().out
