"""The tests of the losses notice what they are for: each change of a line below makes the named test fail."""

import inspect
import itertools
from pathlib import Path

import pytest
import test_baselines
import test_losses
import test_resume
import test_vqvae
from common import HOPPER, PATHS, ROOT, SCRIPTS, dataset, load, play, result, run

TD = [
    ("(1 - terminals)", "(1 + terminals)", "td_loss"),
    ("* (1 - terminals)", "", "td_loss"),
    ("rewards + discount", "rewards - discount", "td_loss"),
    ("rewards + discount *", "rewards +", "td_loss"),
    ("(target.detach() - q)", "(target - q)", "td_loss"),
    ("(target.detach() - q).pow(2)", "(target.detach() - q).abs()", "td_loss"),
    ("fast.detach(), args.target_rate", "fast.detach(), 1 - args.target_rate", "{}_learner_loss"),
    ("slow.lerp_(fast.detach(), args.target_rate)", "pass", "{}_learner_loss"),
    (".requires_grad_(False)", "", "{}_learner_loss"),
    ("* (args.reward_scale or 1000", "* (args.reward_scale or -1000", "load_data"),
    ('data["rewards"] + args.reward_shift', 'data["rewards"] - args.reward_shift', "load_data"),
]
ACTING = [
    ("code = probs.argmax(1)", "code = probs.argmin(1)", "acting"),
    ('args.acting == "sample"', 'args.acting != "sample"', "acting"),
    ('args.device) - data["obs_mean"]) / data["obs_std"]', 'args.device) - data["obs_mean"])', "acting"),
    ("probs.cumsum(1) <= probs", "probs.cumsum(1) >= probs", "acting"),
    (".clamp(max=probs.shape[1] - 1)", "", "acting"),
    ("repeat_interleave(probs.shape[1], 0)", "repeat(probs.shape[1], 1)", "acting"),
    ('data["observations"].mean(0)', 'data["observations"].mean()', "load_data"),
    ('for name in ("observations", "next_observations")', 'for name in ("observations",)', "load_data"),
]
GAUSSIAN = [
    ("log_std = log_std.clamp(-5, 2)", "log_std = log_std.clamp(-20, 20)", "log_density_bounds"),
    ("log_std.clamp(-5, 2).exp()", "log_std.exp()", "log_density_bounds"),
    ("log_std.clamp(-5, 2).exp() * torch", "torch", "draw"),
    ("torch.randn_like(mean)", "torch.rand_like(mean)", "draw"),
]
AQUADEM = "learner_of_aquadem_is_that_of_saq"
MUTATIONS = {
    "saq_iql": TD
    + ACTING
    + [
        ("(error < 0)", "(error > 0)", "expectile_loss"),
        ("error.pow(2)).mean()", "error.abs()).mean()", "expectile_loss"),
        (".abs() * error", " * error", "expectile_loss"),
        ("advantage / temperature", "advantage * temperature", "closed_form_policy"),
        ("advantage / temperature", "advantage * temperature", "closed_form_policy_solves_the_constrained_problem"),
        ("advantage / temperature", "-advantage / temperature", "closed_form_policy_without_a_binding_constraint"),
        ("temperature + log_behaviour", "temperature - log_behaviour", "closed_form_policy"),
        ("temperature + log_behaviour", "temperature", "closed_form_policy_solves_the_constrained_problem"),
        ("target_q - learner", "target_q + learner", "iql_learner_loss"),
        ('learner["q_target"](obs)', 'learner["q"](obs)', "iql_learner_loss"),
        ('learner["v"](data["next_observations"]', 'learner["v"](data["observations"]', "iql_learner_loss"),
        ('learner["v"](obs).squeeze(1), args', 'learner["v"](obs), args', "iql_learner_loss"),
        (
            'F.cross_entropy(learner["behaviour"](obs), code)',
            'F.cross_entropy(learner["q"](obs), code)',
            "iql_learner_loss",
        ),
        ('advantage = learner["q"](obs)', 'advantage = learner["q_target"](obs)', "policies"),
        ('- learner["v"](obs)  # V', '+ learner["q"](obs)  # V', "policies"),
    ],
    "saq_cql": TD
    + ACTING
    + [
        ("q.logsumexp(1) - q", "q.logsumexp(1) + q", "conservative_loss"),
        ("q.logsumexp(1)", "q.max(1).values", "conservative_loss"),
        ("q.argmax(1, keepdim", "target_q.argmax(1, keepdim", "backup_value"),
        ("return target_q.gather", "return q.gather", "backup_value"),
        ("q.softmax(1) * target_q", "target_q.softmax(1) * target_q", "backup_value"),
        ("q.softmax(1) * target_q", "q.softmax(1) * q", "backup_value"),
        ("0.5 * q_loss", "q_loss", "cql_learner_loss"),
        ("args.conservatism * penalty", "penalty", "cql_learner_loss"),
        ("+ args.conservatism", "- args.conservatism", "cql_learner_loss"),
        ('learner["q_target"](next_obs)', 'learner["q"](next_obs)', "cql_learner_loss"),
        ('q = learner["q"](data["observations"]', 'q = learner["q"](data["next_observations"]', "cql_learner_loss"),
        ('log_softmax(learner["q"]', 'log_softmax(learner["q_target"]', "policies"),
    ],
    "saq_brac": TD
    + ACTING
    + [
        ("q + beta * log_behaviour", "q - beta * log_behaviour", "regularised_value"),
        ("- alpha * log_policy", "+ alpha * log_policy", "regularised_value"),
        ("log_policy.exp() * (q", "(q", "regularised_value"),
        ("return -regularised_value", "return regularised_value", "policy_loss"),
        ("return -regularised_value", "return regularised_value", "policy_loss_leads_to_its_optimum"),
        ("- alpha * log_policy", "- log_policy", "policy_loss_leads_to_its_optimum"),
        ("q.detach(), log_behaviour.detach()", "q, log_behaviour.detach()", "policy_loss"),
        ("q.detach(), log_behaviour.detach()", "q.detach(), log_behaviour", "policy_loss"),
        ("alpha * in_target", "alpha * (1 - in_target)", "brac_learner_loss"),
        ('learner["q_target"](next_obs)', 'learner["q"](next_obs)', "brac_learner_loss"),
        ('learner["behaviour"](next_obs)', 'learner["policy"](next_obs)', "brac_learner_loss"),
        ("policy(args, learner, next_obs)", "log_behaviour", "brac_learner_loss"),
        (
            "policy_loss(log_policy, q, log_behaviour, beta, alpha),",
            "policy_loss(log_policy, q, log_behaviour, alpha, beta),",
            "brac_learner_loss",
        ),
        ("F.nll_loss(log_behaviour, code)", "F.nll_loss(log_policy, code)", "brac_learner_loss"),
        ('log_softmax(learner["policy"](obs)', 'log_softmax(learner["q"](obs)', "policies"),
    ],
    "saq_bc": ACTING
    + [
        ("return F.cross_entropy(logits, code)", "return -F.cross_entropy(logits, code)", "bc_loss"),
        ("F.cross_entropy(logits, code)", 'F.cross_entropy(logits, code, reduction="sum")', "bc_loss"),
        (
            'learner["policy"](data["observations"][index])',
            'learner["policy"](data["next_observations"][index])',
            "bc_learner_loss",
        ),
        ('data["codes"][index]', 'data["codes"][index - 1]', "bc_learner_loss"),
        ("(logits.argmax(1) == code)", "(logits.argmax(1) != code)", "bc_learner_loss"),
        ("(obs), dim=1)", "(obs), dim=0)", "policies"),
    ],
    "baselines/bc": [
        (".tanh() - action)", ".tanh() + action)", "squared_error"),
        (".tanh() - action)", " - action)", "squared_error"),
        ("- action).pow(2).sum(-1)", "- action).abs().sum(-1)", "squared_error"),
        ("(action - mean.tanh())", "(action - mean)", "log_density_around_tanh"),
        (".pow(2) - log_std - 0.5 *", ".pow(2) + log_std - 0.5 *", "log_density_around_tanh"),
        ("log_std = log_std.clamp(-5, 2)", "log_std = log_std.clamp(-20, 20)", "log_density_bounds"),
        ('args.loss == "squared"', 'args.loss != "squared"', "continuous_bc_learner_loss"),
        ("else -log_density", "else log_density", "continuous_bc_learner_loss"),
        ('data["actions"][index]', 'data["actions"][index - 1]', "continuous_bc_learner_loss"),
        ('data["observations"][index]', 'data["next_observations"][index]', "continuous_bc_learner_loss"),
        ("mean, _ = learner", "_, mean = learner", "continuous_acting"),
        ("return mean.tanh()", "return mean", "continuous_acting"),
        ('args.device) - data["obs_mean"]) / data["obs_std"]', 'args.device) - data["obs_mean"])', "continuous_acting"),
    ],
    "baselines/cql": TD
    + GAUSSIAN
    + [
        (".pow(2) - log_std - 0.5 *", ".pow(2) + log_std - 0.5 *", "log_density_{}"),
        ("(x - mean) / log_std.exp()", "(x - mean) * log_std.exp()", "log_density_{}"),
        ("log_normal + 2 *", "log_normal - 2 *", "log_density_{}"),
        ("2 * (x + F.softplus(-2 * x) - np.log(2))", "-(1 - x.tanh().pow(2)).log()", "log_density_far_out"),
        ("(q - log_density)", "(q + log_density)", "estimate_converges_to_the_integral"),
        ("(q - log_density)", "(q + log_density)", "continuous_conservative_loss"),
        ("(q - log_density)", "q", "estimate_converges_to_the_integral"),
        ("- np.log(q.shape[-1])", "", "estimate_converges_to_the_integral"),
        ("(log_integral - data_q)", "(log_integral + data_q)", "continuous_conservative_loss"),
        ("amin(0).amax(1)", "amax(0).amax(1)", "{}_learner_loss"),
        ("amin(0).amax(1)", "amin(0).mean(1)", "{}_learner_loss"),
        ("args.num_actions if args.max_backup else 1", "args.num_actions", "{}_learner_loss"),
        ("uniform_(-1, 1)", "uniform_(0, 1)", "{}_learner_loss"),
        ("-action.shape[1] * np.log(2)", "action.shape[1] * np.log(2)", "{}_learner_loss"),
        ("x.detach().tanh(), next_x", "x.tanh(), next_x", "{}_learner_loss"),
        ("log_pi.detach(), next_log_pi]", "next_log_pi, log_pi.detach()]", "{}_learner_loss"),
        ("log_pi.detach(), next_log_pi]", "log_pi, next_log_pi]", "{}_learner_loss"),
        ('values(learner["q_target"], next_obs', 'values(learner["q"], next_obs', "{}_learner_loss"),
        (
            "x[:, :1].tanh()).amin(0).squeeze(1)  # (B,)\n    learner",
            "x[:, :1]).amin(0).squeeze(1)\n    learner",
            "{}_learner_loss",
        ),
        ('learner["q"].requires_grad_(False)', "pass", "{}_learner_loss"),
        ('learner["q"].requires_grad_(True)', "pass", "{}_learner_loss"),
        ("(policy_q + temperature * entropy)", "(policy_q - temperature * entropy)", "{}_learner_loss"),
        ("(policy_q + temperature * entropy)", "(policy_q + entropy)", "{}_learner_loss"),
        ("log_temperature.exp().detach()", "log_temperature.exp()", "{}_learner_loss"),
        ("entropy.detach() + action", "entropy.detach() - action", "{}_learner_loss"),
        ("args.fixed_temperature or 1.0", "1.0", "{}_fixed_temperature"),
        ("temperature.log()", "temperature", "{}_fixed_temperature"),
        ("requires_grad=learned", "requires_grad=True", "{}_fixed_temperature"),
        ("0.5 * q_loss", "q_loss", "{}_learner_loss"),
        ("args.conservatism * penalty", "penalty", "{}_learner_loss"),
        ("chunk(2, dim=-1)[0].tanh()", "chunk(2, dim=-1)[0]", "continuous_acting"),
        ("chunk(2, dim=-1)[0].tanh()", "chunk(2, dim=-1)[1].tanh()", "continuous_acting"),
    ],
    "baselines/iql": TD
    + [
        ("(error < 0)", "(error > 0)", "expectile_loss"),
        ("error.pow(2)).mean()", "error.abs()).mean()", "expectile_loss"),
        ("(action - mean) / log_std.exp()", "(action - mean) * log_std.exp()", "imitation_loss"),
        (".pow(2) - log_std - 0.5 *", ".pow(2) + log_std - 0.5 *", "imitation_loss"),
        ("return -(weight", "return (weight", "imitation_loss"),
        ("log_std.clamp(-5, 2)", "log_std", "imitation_loss"),
        ("amin(0).squeeze(1)  # (B,)", "amax(0).squeeze(1)  # (B,)", "{}_learner_loss"),
        ('values(learner["q_target"], obs', 'values(learner["q"], obs', "{}_learner_loss"),
        ('learner["v"](data["next_observations"]', 'learner["v"](data["observations"]', "{}_learner_loss"),
        ("(target_q - value.detach())", "(value.detach() - target_q)", "{}_learner_loss"),
        ("(target_q - value.detach())", "(target_q - value)", "{}_learner_loss"),
        (".clamp(max=100)", "", "{}_learner_loss"),
        ("target_q - value, args", "value - target_q, args", "{}_learner_loss"),
        ('args.policy_std == "shared" else', 'args.policy_std != "shared" else', "{}_learner_loss"),
        ("mean, log_std = (output, ", "log_std, mean = (output, ", "{}_learner_loss"),
        ("return mean.tanh(), log_std", "return mean, log_std", "continuous_acting"),
    ],
    "baselines/brac": TD
    + GAUSSIAN
    + [
        (".pow(2) - log_std - 0.5 *", ".pow(2) + log_std - 0.5 *", "log_density_around_tanh"),
        ("(action - mean.tanh())", "(action - mean)", "log_density_around_tanh"),
        ("mean.tanh()) / log_std.exp()", "mean.tanh()) * log_std.exp()", "log_density_around_tanh"),
        ("return mean.tanh() + log_std", "return mean + log_std", "draw"),
        ("loss = -log_density", "loss = log_density", "behaviour_loss"),
        (".amin(0) + beta", ".amax(0) + beta", "{}_learner_loss"),
        ("+ beta * log_behaviour", "- beta * log_behaviour", "{}_learner_loss"),
        ("- alpha * log_policy", "+ alpha * log_policy", "{}_learner_loss"),
        ("action.clamp(-1, 1)", "action", "{}_learner_loss"),
        ('learner["behaviour"](obs)  #', 'learner["policy"](obs)  #', "{}_learner_loss"),
        ("args.entropy_weight * args.target_entropy", "args.entropy_weight", "{}_learner_loss"),
        ('learner["q_target"], next_obs', 'learner["q"], next_obs', "{}_learner_loss"),
        ('learner["q"].requires_grad_(False)', "pass", "{}_learner_loss"),
        ('learner["q"].requires_grad_(True)', "pass", "{}_learner_loss"),
        ('"losses/policy": -value.mean()', '"losses/policy": value.mean()', "{}_learner_loss"),
        ("chunk(2, dim=-1)[0].tanh()", "chunk(2, dim=-1)[0]", "continuous_acting"),
    ],
    "baselines/aquadem": ACTING[:5]
    + [
        ("weights = probs if", "weights = 1 - probs if", "acting"),
        ("F.relu(self.torso(F.dropout(obs, dropout)))", "self.torso(F.dropout(obs, dropout))", "candidates"),
        ("dim=1)\n\n    @torch", "dim=1).flip(1)\n\n    @torch", "candidates"),
        (".argmin(1) for s", ".argmax(1) for s", "candidates"),
        ("obs.split(4096)", "obs.flip(0).split(4096)", "candidates"),
        ("self.torso(F.dropout(obs, dropout))", "self.torso(obs)", "dropout"),
        (
            "= F.dropout(F.relu(self.torso(F.dropout(obs, dropout))), dropout)",
            "= F.relu(self.torso(F.dropout(obs, dropout)))",
            "dropout",
        ),
        ("last(F.dropout(relu(first(hidden)), dropout))", "last(relu(first(hidden)))", "dropout"),
        ("dropout: float = 0.0", "dropout: float = 0.1", "candidates"),
        ("quantizer.updates += 1", "pass", "dropout"),
        ("softmin = -args.softmin", "softmin = args.softmin", "candidates_loss"),
        ("(-distance / args.softmin)", "(distance / args.softmin)", "candidates_loss"),
        ("- np.log(args.num_candidates)", "", "candidates_loss"),
        (
            'data["actions"][index][:, None]).pow(2).sum(2)',
            'data["actions"][index][:, None]).abs().sum(2)',
            "candidates_loss",
        ),
        ("fast.detach(), args.target_rate", "fast.detach(), 1 - args.target_rate", AQUADEM),
        ("slow.lerp_(fast.detach(), args.target_rate)", "pass", AQUADEM),
        (".requires_grad_(False)", "", AQUADEM),
        ('learner["q_target"](obs)[b, code]', 'learner["q"](obs)[b, code]', AQUADEM),
        ("[b, code] - learner", "[b, code] + learner", AQUADEM),
        ('args.learner == "cql"', 'args.learner == "iql"', AQUADEM),
        ("(next_obs).softmax(1)", "(obs).softmax(1)", AQUADEM),
        ('* (1 - data["terminals"][index])', "", AQUADEM),
        ("F.cross_entropy(q, code)", "F.cross_entropy(-q, code)", AQUADEM),
        ("(error < 0)", "(error > 0)", AQUADEM),
        ("(target.detach() - data_q)", "(target - data_q)", AQUADEM),
        ("q=0.5, penalty", "q=1, penalty", AQUADEM),
        ("penalty=args.conservatism", "penalty=1", AQUADEM),
        ("iql=dict(q=1, v=1", "iql=dict(q=1, v=2", AQUADEM),
        ('"cql": q, "iql"', '"cql": -q, "iql"', AQUADEM),
        ("q / args.temperature", "q * args.temperature", AQUADEM),
    ],
    "vqvae": [
        ("argmin(dim=1)", "argmax(dim=1)", "nearest_code_equals_brute_force"),
        ("- 2 * embedding @", "- embedding @", "nearest_code_equals_brute_force"),
        ("self.codebook.pow(2).sum(1) -", "-", "nearest_code_equals_brute_force"),
        ("embedding + (quantized - embedding).detach()", "quantized", "straight_through"),
        ("embedding + (quantized - embedding).detach()", "embedding", "straight_through"),
        ("embedding + (quantized - embedding).detach()", "embedding", "quantizer_loss"),
        ("(embedding.detach() - quantized)", "(embedding - quantized)", "who_moves_whom"),
        ("(embedding - quantized.detach())", "(embedding - quantized)", "who_moves_whom"),
        ("(embedding - quantized.detach())", "(embedding.detach() - quantized)", "quantizer_loss"),
        ('requires_grad=form != "ema"', "requires_grad=True", "who_moves_whom"),
        ("loss = reconstruction + commitment", "loss = reconstruction", "quantizer_loss"),
        ("loss = reconstruction + commitment", "loss = reconstruction - commitment", "quantizer_loss"),
        ("loss = loss + codebook", "loss = loss - codebook", "quantizer_loss"),
        ('self.form != "ema":', 'self.form == "ema":', "quantizer_loss"),
        ('self.form != "paper":', 'self.form == "official":', "quantizer_loss"),
        ('self.form != "paper":', 'self.form == "paper":', "paper_sums_where_the_official_code_averages"),
        ("- action).pow(2).sum(1)", "- action).pow(2).mean(1)", "quantizer_loss"),
        ("if self.training:", "if True:", "eval_mode_moves_nothing"),
        (
            "usage.lerp_(chosen.mean(0), 1 - decay)",
            "usage.lerp_(chosen.mean(0), decay)",
            "ema_moves_codes_to_the_running_mean",
        ),
        ("chosen.T @ embedding / len(embedding)", "chosen.T @ embedding", "ema_moves_codes_to_the_running_mean"),
        ('if self.form == "ema":', 'if self.form != "ema":', "ema_moves_codes_to_the_running_mean"),
        ("self.usage < 0.1 * share", "self.usage > 0.1 * share", "dead_codes_are_revived"),
        ("if self.revive:", "if not self.revive:", "dead_codes_are_revived"),
        ("share * fresh", "fresh", "dead_codes_are_revived"),
        ("self.usage.masked_fill_(dead[:, 0], share)", "pass", "dead_codes_are_revived"),
        (" % len(embedding)", "", "revival_in_a_batch_smaller_than_the_codebook"),
        ("return torch.cat([obs, x], dim=-1) if", "return torch.cat([0 * obs, x], dim=-1) if", "condition_on_obs"),
        ("obs_dim if condition_on_obs else 0", "obs_dim", "condition_on_obs"),
        ("obs.split(65_536)", "obs.flip(0).split(65_536)", "encode_more_rows_than_one_part"),
    ],
}
# Of the run around the losses: noticed by resuming a killed run, or by playing a finished one.
RUN_MUTATIONS = [
    ("torch.manual_seed(args.seed)", "pass"),
    ('model.load_state_dict(state["model"])', "pass"),
    ('optimizer.load_state_dict(state["optimizer"])', "pass"),
    ('generator.set_state(state["generator"])', "pass"),
    ('for first in range(state["step"], steps', "for first in range(0, steps"),
    ('"returns", "obs_mean"', '"obs_mean"'),
    ('learner.load_state_dict(checkpoint["stages"]["learner"]["model"])', "pass"),
    ('vqvae.load_state_dict(checkpoint["stages"]["quantizer"]["model"])', "pass"),
    ("probs.new_tensor(uniform)", "probs.new_tensor(np.random.rand(len(uniform)))"),
    ("args.eval_episodes, args.seed", "args.eval_episodes, int(time.time_ns() % 1000)"),
    ("data = {name: checkpoint[name].to(args.device)", "data = {name: 0 * checkpoint[name].to(args.device) + 1"),
]
CASES = [(script, *mutation) for script, mutations in MUTATIONS.items() for mutation in mutations]


def calls(function, script, request):
    """The arguments of every call that pytest would make: parameters and fixtures."""
    axes = []
    for mark in getattr(function, "pytestmark", []):
        names, values = mark.args
        names = [names] if isinstance(names, str) else names
        axes.append([dict(zip(names, [v] if len(names) == 1 else v, strict=True)) for v in values])
    for parts in itertools.product(*axes):
        arguments = {name: value for part in parts for name, value in part.items()}
        if arguments.get("script", script) == script:
            fixtures = set(inspect.signature(function).parameters) - arguments.keys()
            yield arguments | {name: request.getfixturevalue(name) for name in fixtures}


def find(script, test):
    """The name of a test, in which {} stands for the method, and its file."""
    name = f"test_{test.format(script.removeprefix('saq_').replace('baselines/', 'continuous_'))}"
    return name, next(tests for tests in (test_losses, test_baselines, test_vqvae) if hasattr(tests, name))


@pytest.mark.parametrize(("script", "old", "new", "test"), CASES)
def test_mutation_is_noticed(script, old, new, test, tmp_path, monkeypatch, request):
    path = PATHS.get(script, ROOT / f"{script}.py")
    source = path.read_text()
    assert old in source, "the line has changed: bring the list up to date"
    (tmp_path / path.name).write_text(source.replace(old, new, 1))
    mutant = load(tmp_path / path.name, "mutant")
    name, tests = find(script, test)
    arguments_of_calls = list(calls(getattr(tests, name), script, request))
    monkeypatch.setattr(tests, script.replace("/", "_"), mutant)
    with pytest.raises(Exception):  # noqa: B017 - a crash is noticed as well
        for arguments in arguments_of_calls:
            getattr(tests, name)(**arguments)


def check_run(folder, monkeypatch):
    """A finished run of saq_bc plays as it did, a killed one ends as if it had not been killed."""
    flags = ["--env-id", HOPPER, "--dataset-path", dataset(folder / "data.hdf5")]
    for acting in ("sample", "mean"):  # drawn codes may stay the same where the mean changes
        whole = run("saq_bc", folder, *flags, "--acting", acting)
        assert play("saq_bc", "--evaluate", whole) == result(whole)["score"]
    flags += ["--acting", "mean"]
    count = test_resume.writes("saq_bc", folder, flags, monkeypatch)
    for number in (count - 2, count):  # after the learner's first checkpoint, and before result.json
        test_resume.check_kill("saq_bc", number, whole, flags, folder / str(number), monkeypatch)


@pytest.mark.parametrize(("old", "new"), RUN_MUTATIONS)
def test_mutation_of_the_run_is_noticed(old, new, tmp_path, monkeypatch):
    source = PATHS["saq_bc"].read_text()
    assert old in source, "the line has changed: bring the list up to date"
    (tmp_path / "saq_bc.py").write_text(source.replace(old, new, 1))
    monkeypatch.setitem(SCRIPTS, "saq_bc", load(tmp_path / "saq_bc.py", "mutant"))
    with pytest.raises(Exception):  # noqa: B017
        check_run(tmp_path, monkeypatch)


def test_every_script_has_mutations():
    assert MUTATIONS.keys() == {*PATHS, "vqvae"}
    assert all(len(mutations) >= 6 for mutations in MUTATIONS.values())


def test_unchanged_copies_pass(tmp_path, monkeypatch, request):
    """What fails above fails because of the change, not because it runs in a copy."""
    check_run(tmp_path, monkeypatch)
    for script, tests in itertools.groupby(CASES, key=lambda case: case[0]):
        path = PATHS.get(script, ROOT / f"{script}.py")
        copy = load(Path(path), "mutant")
        for name, module in {find(script, case[3]) for case in tests}:
            with monkeypatch.context() as patch:
                patch.setattr(module, script.replace("/", "_"), copy)
                for arguments in calls(getattr(module, name), script, request):
                    getattr(module, name)(**arguments)
