"""The tests notice what they are for: each change of a line below makes the named test fail.

A line reads `test | old => new`; ` && ` joins changes made at once, and \\n stands for the end of a line. In
the name of a test, {} stands for the method: iql in saq_iql.py, continuous_iql in baselines/iql.py. What
several scripts have in common is changed in one: test_copies.py says that it is the same in the others.
"""

import inspect
import itertools
import tempfile
from pathlib import Path

import pytest
import test_baselines
import test_codes
import test_d4rl
import test_evaluation
import test_losses
import test_resume
import test_robomimic
import test_runs
import test_scripts
import test_seeds
import test_vqvae
from common import PATHS, ROOT, SAQ, SCRIPTS, load

TESTS = (test_losses, test_baselines, test_d4rl, test_evaluation, test_robomimic, test_vqvae)
TESTS += (test_codes, test_runs, test_resume, test_scripts, test_seeds)
FILES = PATHS | {"vqvae": ROOT / "vqvae.py", "runs": ROOT / "d4rl/runs.py", "seeds": ROOT / "d4rl/seeds.py"}
FILES |= {
    f"d4rl/{name}": ROOT / f"d4rl/{name}.py" for name in ("codes", "data", "evaluation", "robomimic_tasks")
}
BY_HAND = "training_equals_a_loop_by_hand"
REWARDS = r"""
load_data | 1000 / d4rl => -1000 / d4rl
load_data | scale *= 1000 => scale = 1000
load_data | reward + args.reward_shift => reward - args.reward_shift
load_data | (reward + args.reward_shift) * scale => reward * scale + args.reward_shift
"""
DATA = r"""
load_data | obs.mean(0) => obs.mean()
load_data | spaces.standardise_(obs), spaces.standardise_(next_obs) => spaces.standardise_(obs), next_obs
load_data | obs, action, next_obs, reward, terminal => next_obs, action, obs, reward, terminal
load_data | obs, action, next_obs, reward, terminal => obs, action, next_obs, terminal, reward
load_data | Transitions(obs, action, reward, next_obs => Transitions(next_obs, action, reward, obs
load_plays_as_evaluate_does | args.eval_episodes, args.seed => args.eval_episodes, args.seed + 1
load_plays_as_evaluate_does | learner.load_state_dict(saved["stages"] => str(saved["stages"]
load_plays_as_evaluate_does | (*saved["spaces"]) => (*(0 * x + 1 for x in saved["spaces"]))
actions_and_constant_entries | action = spaces.scale(action) => pass
actions_and_constant_entries | obs.amin(0) == obs.amax(0) => obs.amin(0) > obs.amax(0)
load_of_what_is_no_run | read_run(folder, SCRIPT, Args, => read_run(folder, "", None,
"""
LOOP = rf"""
{BY_HAND} | optimizer.zero_grad() => pass
{BY_HAND} | loss.backward()\n => loss.mul(2).backward()\n
{BY_HAND} | torch.manual_seed(args.seed)  # => torch.manual_seed(args.seed + 1)  #
{BY_HAND} | torch.manual_seed(args.seed)  # => str(args.seed)  #
{BY_HAND} | np.pi * step / steps => np.pi * step / (steps + 1)
{BY_HAND} | .manual_seed(args.seed)  # draws => .manual_seed(args.seed + 1)  # draws
{BY_HAND} | weight_decay=args.weight_decay => weight_decay=0.0
resume | range(first, steps) => range(0, steps)
"""
BY_UPDATE = rf"""
{BY_HAND} | torch.manual_seed(args.seed * 10**6 + step + 1) => pass
{BY_HAND} | torch.manual_seed(args.seed * 10**6 + step + 1) => torch.manual_seed(step + 1)
"""
MOVE_TARGET = rf"""
move_target | slow.lerp_(fast, rate) => slow.lerp_(fast, 1 - rate)
move_target | slow.lerp_(fast, rate) => pass
move_target | slow.lerp_(fast, rate) => fast.lerp_(slow, rate)
move_target | .requires_grad_(False)  # Qbar => # Qbar
{BY_HAND} | learner.move_target(args.target_rate) => pass
{BY_HAND} | learner.move_target(args.target_rate) => learner.move_target(1.0)
{BY_HAND} | optimizer.step() => pass && return metrics\n\n => optimizer.step(); return metrics\n\n
"""
TD = (
    REWARDS
    + MOVE_TARGET
    + r"""
td_loss | (1 - terminal) => (1 + terminal)
td_loss | * (1 - terminal) =>
td_loss | reward + discount => reward - discount
td_loss | reward + discount * => reward +
td_loss | (target.detach() - q) => (target - q)
td_loss | (target.detach() - q).pow(2) => (target.detach() - q).abs()
"""
)
STAGES = rf"""
{BY_HAND} | heldout, rows = order => rows, heldout = order
{BY_HAND} | len(order) // 20 => len(order) // 10
{BY_HAND} | torch.Generator().manual_seed(args.seed)) => torch.Generator().manual_seed(args.seed + 1))
{BY_HAND} | args.steps, torch.arange(len(order), device=args.device) => args.steps, rows
{BY_HAND} | encode(data.obs, data.action))\n    train => encode(data.next_obs, data.action))\n    train
measure_quantizer | (share > 0) => (share > 0.5)
measure_quantizer | .sum().exp() => .sum()
load_plays_as_evaluate_does | .load_state_dict(saved["stages"]["quantizer"] => .eval(), (saved["stages"]
"""
ACTING = r"""
acting | probs.argmax(1) => probs.argmin(1)
acting | args.acting == "greedy" => args.acting != "greedy"
acting | args.acting == "mean" => args.acting != "mean"
acting | spaces.standardise(runs.to_batch => (runs.to_batch
acting | probs.cumsum(1) <= probs => probs.cumsum(1) >= probs
acting | .clamp(max= => .clamp(max=1 + 
acting | probs.new_tensor(uniform) => probs.new_tensor(np.random.rand(len(uniform)))
acting | random.random(len(obs)) if uniform is None else uniform => random.random(len(obs))
acting | random.random(len(obs)) if uniform is None else uniform => uniform
acting | spaces.unscale(action) => action
acting | spaces.unscale(action) => action.clamp(-1, 1)
acting | if np.ndim(observation) > 1 else action[0] =>
load_plays_as_evaluate_does | default_rng(1000 * args.seed) => default_rng(1000 * args.seed + 1)
"""
ACTING += r"""
acting | repeat_interleave(size, 0) => repeat(size, 1)
load_data | obs.mean(0) => obs.mean()
load_data | spaces.standardise_(obs), spaces.standardise_(next_obs) => spaces.standardise_(obs), next_obs
"""
SAQ_LOOP = rf"""
{BY_HAND} | vqvae.move_codebook(embedding, code) => pass
{BY_HAND} | optimizer.step() => pass && return metrics\n\n => optimizer.step(); return metrics\n\n
{BY_HAND} | code=vqvae.encode(data.obs, data.action) => code=early && train(args, run, "quantizer" => """
SAQ_LOOP += r"""early = vqvae.encode(data.obs, data.action); train(args, run, "quantizer"
measure_quantizer | decoded = vqvae.decode(data.obs[heldout] => decoded = vqvae.decode(data.obs[heldout + 1]
measure_quantizer | data.action, decoded, heldout) => data.action, decoded, heldout + 1)
measure_quantizer | error.pow(2).sum(1) => error.pow(2).mean(1)
"""
SWAPPED = rf"""
{BY_HAND} | vqvae.move_codebook(embedding, code) => learner.move_target(0.1)
{BY_HAND} | learner.move_target(args.target_rate) => vqvae.move_codebook(embedding, code)
"""
CONTINUOUS = (
    DATA
    + LOOP
    + r"""
continuous_acting | spaces.standardise(runs.to_batch => (runs.to_batch
continuous_acting | spaces.unscale(action) => action
continuous_acting | if np.ndim(observation) > 1 else action[0] =>
"""
)
GAUSSIAN = r"""
log_density_bounds | log_std = log_std.clamp(-5, 2) => log_std = log_std.clamp(-20, 20)
log_density_bounds | log_std.clamp(-5, 2).exp() => log_std.exp()
draw | log_std.clamp(-5, 2).exp() * torch => torch
draw | torch.randn_like(mean) => torch.rand_like(mean)
log_density | .pow(2) - log_std - 0.5 * => .pow(2) + log_std - 0.5 *
"""
AQUADEM = "learner_of_aquadem_is_that_of_saq"
MUTATIONS = {
    "saq_iql": TD
    + DATA
    + LOOP
    + STAGES
    + SAQ_LOOP
    + SWAPPED
    + ACTING
    + r"""
expectile_loss | (error < 0) => (error > 0)
expectile_loss | error.pow(2)).mean() => error.abs()).mean()
expectile_loss | .abs() * error =>  * error
find_temperature | if kl > args.kl else => if kl < args.kl else
find_temperature | log_pi.exp() * (log_pi - log_behaviour) => log_behaviour.exp() * (log_behaviour - log_pi)
find_temperature | learner.temperature if args.kl else args.temperature => args.temperature
find_temperature | learner.temperature if args.kl else args.temperature => learner.temperature
find_temperature | learner.temperature.fill_(high).item() => high
find_temperature | range(60) => range(9)
closed_form_policy | advantage / temperature => advantage * temperature
closed_form_policy_solves_the_constrained_problem | advantage / temperature => advantage * temperature
closed_form_policy_without_a_binding_constraint | advantage / temperature => -advantage / temperature
closed_form_policy | temperature + log_behaviour => temperature - log_behaviour
closed_form_policy_solves_the_constrained_problem | temperature + log_behaviour => temperature
{}_learner_loss | target_q - v, => target_q + v,
{}_learner_loss | learner.q_target(batch.obs) => learner.q(batch.obs)
{}_learner_loss | learner.v(batch.next_obs) => learner.v(batch.obs)
{}_learner_loss | v = learner.v(batch.obs).squeeze(1) => v = learner.v(batch.obs)
{}_learner_loss | learner.behaviour(batch.obs), batch.code => learner.q(batch.obs), batch.code
{}_learner_loss | v_loss + q_loss + behaviour_loss => v_loss + q_loss
{}_learner_loss | code = batch.code[:, None] => learner.move_target(0.1); code = batch.code[:, None]
log_policy | advantage = learner.q(obs) => advantage = learner.q_target(obs)
log_policy | - learner.v(obs)  # V => + learner.q(obs)  # V
""",
    "saq_cql": TD
    + ACTING
    + r"""
conservative_loss | q.logsumexp(1) - q => q.logsumexp(1) + q
conservative_loss | q.logsumexp(1) => q.max(1).values
backup_value | q.argmax(1, keepdim => target_q.argmax(1, keepdim
backup_value | return target_q.gather => return q.gather
backup_value | q.softmax(1) * target_q => target_q.softmax(1) * target_q
backup_value | q.softmax(1) * target_q => q.softmax(1) * q
{}_learner_loss | 0.5 * q_loss => q_loss
{}_learner_loss | args.conservatism * penalty => penalty
{}_learner_loss | + args.conservatism => - args.conservatism
{}_learner_loss | learner.q_target(batch.next_obs) => learner.q(batch.next_obs)
{}_learner_loss | q = learner.q(batch.obs) => q = learner.q(batch.next_obs)
{}_learner_loss | args.backup)  # => "argmax")  #
log_policy | log_softmax(learner.q( => log_softmax(learner.q_target(
""",
    "saq_brac": TD
    + ACTING
    + r"""
regularised_value | q + beta * log_behaviour => q - beta * log_behaviour
regularised_value | - alpha * log_pi)) => + alpha * log_pi))
regularised_value | log_pi.exp() * (q => (q
policy_loss | return -regularised_value => return regularised_value
policy_loss_leads_to_its_optimum | return -regularised_value => return regularised_value
policy_loss_leads_to_its_optimum | - alpha * log_pi)) => - log_pi))
policy_loss | q.detach(), log_behaviour.detach() => q, log_behaviour.detach()
policy_loss | q.detach(), log_behaviour.detach() => q.detach(), log_behaviour
{}_learner_loss | alpha if args.target_entropy else 0.0 => 0.0 if args.target_entropy else alpha
{}_learner_loss | learner.q_target(batch.next_obs) => learner.q(batch.next_obs)
{}_learner_loss | learner.behaviour(batch.next_obs) => learner.policy(batch.next_obs)
{}_learner_loss | log_policy(args, learner, batch.next_obs) => log_policy(args, learner, batch.obs)
{}_learner_loss | log_pi, q, log_behaviour, beta, alpha)  # => log_pi, q, log_behaviour, alpha, beta)  #
{}_learner_loss | F.nll_loss(log_behaviour, => F.nll_loss(log_pi,
log_policy | log_softmax(learner.policy(obs) => log_softmax(learner.q(obs)
""",
    "saq_bc": DATA
    + LOOP
    + STAGES
    + SAQ_LOOP
    + ACTING
    + r"""
{}_learner_loss | loss = F.cross_entropy(logits, batch.code) => loss = -F.cross_entropy(logits, batch.code)
{}_learner_loss | cross_entropy(logits, batch.code) => cross_entropy(logits, batch.code, reduction="sum")
{}_learner_loss | learner.policy(batch.obs) => learner.policy(batch.next_obs)
{}_learner_loss | (logits, batch.code) => (logits, batch.code.roll(1))
{}_learner_loss | (logits.argmax(1) == batch.code) => (logits.argmax(1) != batch.code)
log_policy | (obs), dim=1) => (obs), dim=0)
""",
    "baselines/bc": CONTINUOUS
    + r"""
{}_learner_loss | .tanh() - action) => .tanh() + action)
{}_learner_loss | .tanh() - action) =>  - action)
{}_learner_loss | - action).pow(2).sum(-1) => - action).abs().sum(-1)
log_density | (action - mean.tanh()) => (action - mean)
log_density | .pow(2) - log_std - 0.5 * => .pow(2) + log_std - 0.5 *
log_density_bounds | log_std = log_std.clamp(-5, 2) => log_std = log_std.clamp(-20, 20)
{}_learner_loss | args.loss == "squared" => args.loss != "squared"
{}_learner_loss | = -log_density => = log_density
{}_learner_loss | log_density(gaussian, batch.action) => log_density(gaussian, batch.action.roll(1, 0))
{}_learner_loss | learner.policy(batch.obs) => learner.policy(batch.action.repeat(1, 2))
continuous_acting | chunk(2, dim=-1)[0].tanh()\n\n\ndef make => chunk(2, dim=-1)[1].tanh()\n\n\ndef make
continuous_acting | chunk(2, dim=-1)[0].tanh()\n\n\ndef make => chunk(2, dim=-1)[0]\n\n\ndef make
""",
    "baselines/cql": TD
    + CONTINUOUS
    + GAUSSIAN
    + BY_UPDATE
    + r"""
training_equals_a_loop_by_hand | , "weight_decay": 0.0 =>
training_equals_a_loop_by_hand | in optimizer.param_groups: => in optimizer.param_groups[:1]:
log_density | (x - mean) / log_std.exp() => (x - mean) * log_std.exp()
log_density | (log_normal - log_slope) => (log_normal + log_slope)
log_density_far_out | -2 * (x + F.softplus(-2 * x) - np.log(2)) => (1 - x.tanh().pow(2)).log()
estimate_converges_to_the_integral | (q - log_density) => (q + log_density)
continuous_conservative_loss | (q - log_density) => (q + log_density)
estimate_converges_to_the_integral | (q - log_density) => q
estimate_converges_to_the_integral | - np.log(q.shape[-1]) =>
continuous_conservative_loss | (log_integral - data_q) => (log_integral + data_q)
{}_learner_loss | amin(0).amax(1) => amax(0).amax(1)
{}_learner_loss | amin(0).amax(1) => amin(0).mean(1)
{}_learner_loss | n if args.max_backup else 1 => n
{}_learner_loss | uniform_(-1, 1) => uniform_(0, 1)
{}_learner_loss | -action_dim * np.log(2) => action_dim * np.log(2)
{}_learner_loss | x.detach().tanh(), next_x => x.tanh(), next_x
{}_learner_loss | log_pi.detach(), next_log_pi] => next_log_pi, log_pi.detach()]
{}_learner_loss | log_pi.detach(), next_log_pi] => log_pi, next_log_pi]
{}_learner_loss | values(learner.q_target, batch.next_obs => values(learner.q, batch.next_obs
{}_learner_loss | x[:, :1].tanh()).amin(0) => x[:, :1]).amin(0)
{}_learner_loss | learner.q.requires_grad_(False) => pass
{}_learner_loss | learner.q.requires_grad_(True) => pass
{}_learner_loss | (policy_q + temperature * entropy) => (policy_q - temperature * entropy)
{}_learner_loss | (policy_q + temperature * entropy) => (policy_q + entropy)
{}_learner_loss | log_temperature.exp().detach() => log_temperature.exp()
{}_learner_loss | entropy.detach() + action => entropy.detach() - action
{}_temperature | torch.tensor(args.temperature).log() => torch.tensor(1.0).log()
{}_temperature | torch.tensor(args.temperature).log() => torch.tensor(args.temperature)
{}_temperature | requires_grad=args.learn_temperature => requires_grad=True
{}_learner_loss | 0.5 * q_loss => q_loss
{}_learner_loss | args.conservatism * penalty => penalty
continuous_acting | chunk(2, dim=-1)[0].tanh() => chunk(2, dim=-1)[0]
continuous_acting | chunk(2, dim=-1)[0].tanh() => chunk(2, dim=-1)[1].tanh()
""",
    "baselines/iql": TD
    + CONTINUOUS
    + rf"""
expectile_loss | (error < 0) => (error > 0)
expectile_loss | error.pow(2)).mean() => error.abs()).mean()
imitation_loss | (action - mean) / log_std.exp() => (action - mean) * log_std.exp()
imitation_loss | .pow(2) - log_std - 0.5 * => .pow(2) + log_std - 0.5 *
imitation_loss | return -(weight => return (weight
imitation_loss | log_std = log_std.clamp(-5, 2) => pass
{BY_HAND} | if args.anneal_lr else => if True else
{BY_HAND} | if args.anneal_lr else => if False else
"""
    + r"""
{}_learner_loss | amin(0).squeeze(1) => amax(0).squeeze(1)
{}_learner_loss | values(learner.q_target, batch.obs => values(learner.q, batch.obs
{}_learner_loss | learner.v(batch.next_obs) => learner.v(batch.obs)
{}_learner_loss | (target_q - v.detach()) => (v.detach() - target_q)
{}_learner_loss | (target_q - v.detach()) => (target_q - v)
{}_learner_loss | .clamp(max=100) =>
{}_learner_loss | target_q - v, args => v - target_q, args
{}_learner_loss | args.policy_std == "state" => args.policy_std != "state"
{}_learner_loss | mean, log_std = output.chunk => log_std, mean = output.chunk
continuous_acting | return mean.tanh(), log_std => return mean, log_std
""",
    "baselines/brac": TD
    + CONTINUOUS
    + GAUSSIAN
    + BY_UPDATE
    + rf"""
log_density | (action - mean.tanh()) => (action - mean)
log_density | mean.tanh()) / log_std.exp() => mean.tanh()) * log_std.exp()
draw | return mean.tanh() + log_std => return mean + log_std
behaviour_loss | loss = -log_density => loss = log_density
{BY_HAND} | learner.policy.load_state_dict( => str(
{BY_HAND} | learner.behaviour.requires_grad_(False).state => learner.behaviour.state
{BY_HAND} | load_state_dict(learner.behaviour.requires => load_state_dict(learner.policy.requires
"""
    + r"""
{}_learner_loss | .amin(0)  # (B, n) => .amax(0)  # (B, n)
{}_learner_loss | + beta * log_behaviour - => - beta * log_behaviour -
{}_learner_loss | - alpha * log_pi\n => + alpha * log_pi\n
{}_learner_loss | action.clamp(-1, 1) => action
{}_learner_loss | learner.behaviour(obs)  # => learner.policy(obs)  #
{}_learner_loss | alpha if args.target_entropy else 0.0 => alpha
{}_learner_loss | learner.q_target, batch.next_obs => learner.q, batch.next_obs
{}_learner_loss | learner.q.requires_grad_(False) => pass
{}_learner_loss | learner.q.requires_grad_(True) => pass
{}_learner_loss | policy_loss = -value.mean() => policy_loss = value.mean()
continuous_acting | chunk(2, dim=-1)[0].tanh() => chunk(2, dim=-1)[0]
""",
    "baselines/aquadem": REWARDS
    + MOVE_TARGET
    + DATA
    + LOOP
    + BY_UPDATE
    + STAGES
    + ACTING.partition("acting | repeat_interleave")[0]
    + r"""
acting | weights = probs\n => weights = 1 - probs\n
candidates | F.relu(self.torso(F.dropout(obs, dropout))) => self.torso(F.dropout(obs, dropout))
candidates | for head in self.heads], dim=1) => for head in self.heads], dim=1).flip(1)
candidates | .argmin(1) for s => .argmax(1) for s
candidates | obs.split(4096) => obs.flip(0).split(4096)
dropout | self.torso(F.dropout(obs, dropout)) => self.torso(obs)
dropout | hidden = F.dropout(F.relu( => hidden = (lambda x, p: x)(F.relu(
dropout | F.dropout(head[:2](hidden), dropout) => head[:2](hidden)
candidates | dropout: float = 0.0 => dropout: float = 0.1
candidates_loss | (-args.softmin * log_mean) => (args.softmin * log_mean)
candidates_loss | (-distance / args.softmin) => (distance / args.softmin)
candidates_loss | - np.log(args.num_candidates) =>
candidates_loss | batch.action[:, None]).pow(2).sum(2) => batch.action[:, None]).abs().sum(2)
measure_quantizer | distance.amin(1) => distance.mean(1)
"""
    + "".join(
        f"{AQUADEM} | {change}\n"
        for change in (
            "learner.q_target(batch.obs) => learner.q(batch.obs)",
            "(target_q - v).pow(2) => (target_q + v).pow(2)",
            'args.learner == "cql":  # E => args.learner == "iql":  # E',
            'args.learner == "cql":\\n        loss => args.learner == "iql":\\n        loss',
            "learner.q(batch.next_obs).softmax(1) => learner.q(batch.obs).softmax(1)",
            "* (1 - batch.terminal) =>",
            "F.cross_entropy(q, batch.code) => F.cross_entropy(-q, batch.code)",
            "(target_q < v) => (target_q > v)",
            "with torch.no_grad():\\n        target_q => with torch.enable_grad():\\n        target_q",
            "0.5 * q_loss + => q_loss +",
            "args.conservatism * penalty => penalty",
            "q_loss + v_loss + behaviour_loss => q_loss + 2 * v_loss + behaviour_loss",
            '"cql": q, => "cql": -q,',
            "q / args.temperature => q * args.temperature",
        )
    ),
    "vqvae": r"""
encode_is_the_nearest_vector | argmin(dim=1) => argmax(dim=1)
encode_is_the_nearest_vector | - 2 * embedding @ => - embedding @
encode_is_the_nearest_vector | self.codebook.pow(2).sum(1) - => -
encode_more_rows_than_one_part | obs.split(65_536) => obs.flip(0).split(65_536)
quantizer_loss | embedding + (quantized - embedding).detach() => quantized
quantizer_loss | embedding + (quantized - embedding).detach() => embedding
decode_is_what_training_decodes | embedding + (quantized - embedding).detach() => embedding
quantizer_loss | (embedding.detach() - quantized) => (embedding - quantized)
quantizer_loss | (embedding - quantized.detach()) => (embedding - quantized)
quantizer_loss | (embedding - quantized.detach()) => (embedding.detach() - quantized)
quantizer_loss | requires_grad=form != "ema" => requires_grad=True
quantizer_loss | loss = reconstruction + commitment => loss = reconstruction
quantizer_loss | loss = reconstruction + commitment => loss = reconstruction - commitment
quantizer_loss | loss = loss + ( => loss = loss - (
quantizer_loss | if self.form != "ema":  # => if self.form == "ema":  #
quantizer_loss | 1 if form == "paper" => 1 if form == "official"
quantizer_loss | 1 if form == "paper" => 1 if form != "official"
quantizer_loss | 1 if form == "paper" else embedding_dim => embedding_dim
quantizer_loss | - action).pow(2).sum(1) => - action).pow(2).mean(1)
quantizer_loss | return loss, { => self.move_codebook(embedding, code); return loss, {
ema_moves_vectors_to_the_running_mean | chosen.mean(0), 1 - decay) => chosen.mean(0), decay)
ema_moves_vectors_to_the_running_mean | chosen.T @ embedding / len(embedding) => chosen.T @ embedding
ema_moves_vectors_to_the_running_mean | if self.form == "ema":\n => if self.form != "ema":\n
ema_moves_vectors_to_the_running_mean | (self.usage[:, None] > 1e-6, mean => (self.usage[:, None] > -1, mean
dead_codes_are_revived | if self.form == "ema":\n => if True:\n
dead_codes_are_revived | self.usage < 0.1 * share => self.usage > 0.1 * share
dead_codes_are_revived | if self.revive: => if not self.revive:
dead_codes_are_revived | share * fresh => fresh
dead_codes_are_revived | self.usage.masked_fill_(dead[:, 0], share) => pass
revival_in_a_batch_smaller_than_the_codebook |  % len(code) =>
condition_on_obs | return torch.cat([obs, x], dim=-1) if => return torch.cat([0 * obs, x], dim=-1) if
condition_on_obs | obs_dim if condition_on_obs else 0 => obs_dim
""",
    "d4rl/data": r"""
bounds_are_the_environments | env.action_space.low.astype(np.float32) => -np.ones(1, np.float32)
bounds_of_the_data_where_there_are_none | np.where(low > -1e9, low, => np.where(low > -np.inf, low,
bounds_of_the_data_where_there_are_none | np.where(high < 1e9, high, dataset["actions"].max(0)) => high
bounds_of_the_data_where_there_are_none | np.where(high > low, high, low + 1) => high
fingerprint | ("observations", "actions"), sorted(transitions) => sorted(transitions), sorted(transitions)
fingerprint | sorted(transitions)): => transitions):
fingerprint | {key} {values.dtype} {values.shape} => {key} {values.shape}
names_of_ends | "truncated", "truncateds" => "truncateds"
names_of_ends | "terminated", "terminateds" => "terminateds"
names_of_ends | if np.array_equal(ends, terminals): => if False:
names_of_ends | ends & ~terminals) => ends)
ends_that_mean_two_things | if not np.array_equal(ends, terminals | timeouts): => if False:
ends_that_mean_two_things | if name in checked and not np.array_equal => if False and np.array_equal
ends_that_mean_two_things | if missing == ["terminals"] and either: => if False:
ends_that_mean_two_things | if others and "timeouts" not in checked: => if False:
ends_that_mean_two_things | items |= {f"infos/{key}" => {f"infos/{key}"
other_arrays_say_nothing | == math.prod(shape) > 1 => > 1
other_arrays_say_nothing | "/" not in name and =>
no_ends_at_all | if unending and => if False and
no_ends_at_all | > spec.max_episode_steps:\n => >= spec.max_episode_steps:\n
bad_arrays | if not ((values == 0) | (values == 1)).all(): => if False:
bad_arrays | ((values == 0) | (values == 1)) => (values <= 1)
bad_arrays | str(values.dtype)[:50] => str(values.dtype)
bad_arrays | if values.ndim == 0: => if False:
bad_arrays | if same and _unmarked(checked).any(): => if False:
bad_arrays | if not -1e15 < => if not -np.inf <
bad_arrays | < 1e15: => <= np.inf:
bad_arrays | (np.abs(values) < 1e15).all => (values < 1e15).all
overwritten | = values[block] => = values[start]
overwritten | return values[: len(rows)] => return values
overwritten | overwrite or dataset is None => False
overwritten | overwrite or dataset is None => True
memory | overwrite or dataset is None => overwrite
memory | np.maximum(observations.max(axis=0) - mean, => np.maximum(np.abs(observations - mean).max(0),
one_number_a_step | elif row == (1,) and values.ndim == 1: => elif False:
files_of_other_formats | for key in sorted(KNOWN & arrays.keys()): => for key in ("observations",):
files_of_other_formats | isinstance(file.get("episode_0"), h5py.Group) => False
files_of_other_formats | ", ".join(arrays).split())[:150] => ", ".join(arrays).split())
files_of_other_formats | " ".join(", ".join(arrays).split()) => ", ".join(arrays)
a_locked_file | if "unable to lock file" in str(error): => if False:
a_filter_that_is_not_installed | if missing := _missing_filters(path): => if missing := "":
qlearning_dataset_equals_a_loop | keep = terminals | ~timeouts => keep = ~timeouts
qlearning_dataset_equals_a_loop | keep[-1] = terminals[-1] => keep[-1] = False
qlearning_dataset_equals_a_loop | keep[-1] = terminals[-1] => pass
a_terminal_at_the_time_limit_is_kept | keep = terminals | ~timeouts => keep = ~timeouts
next_observations_that_are_the_next_rows | rtol=1e-3, atol=1e-5 => rtol=0, atol=0
next_observations_that_are_the_next_rows | and not _unmarked(checked).any(): => and False:
unmarked_ends | keep |= _gaps(arrays) => pass
unmarked_ends | return _unmarked(dataset) | dataset => return dataset
unmarked_ends | unmarked[-1] = False => pass
a_next_observation_after_the_reset | keep |= _gaps(arrays) => keep[:] = True
a_next_observation_after_the_reset | keep = terminals | ~timeouts => keep = ~timeouts
transitions_in_no_order | return _unmarked(dataset).sum() <= inside.sum() / 2 => return True
warnings | margin = 1e-5 * (high - low) => margin = 0
warnings | if outside > 0.1: => if False:
warnings | if low.max() < 0 <= actions.min() => if False
warnings | np.array_equal(values, np.rint(values)) => False
warnings | (rewards[0] == 0 or not dataset["terminals"].any()) => True
warnings | if unwritten > 1: => if False:
warnings | (obs[inside] == obs[inside + 1]).all(axis=1).mean() > 0.9 => False
warnings | > 0.9 * np.sqrt(len(observations)) * std => > 1e9 * std
where_episodes_begin | ends[ends < len(observations) - 1] + 1 => ends[ends < len(observations) - 1]
where_episodes_begin | np.append(0, ends[ => np.append(1, ends[
warnings | (np.abs(std - 1) < 0.2).all() => False
warnings | if terminals.mean() > 0.5: => if False:
warnings | > 0.85 * np.median(strangers) => > 1.5 * np.median(strangers)
warnings | np.quantile(steps, 0.95) < 0.5 * here => False
warnings | ends + shift, ends + shift + 1 => ends - shift, ends - shift + 1
warnings | side = "before" if before > after => side = "before" if before < after
warnings | if 2 * here < max(before, after): => if False:
a_warning_where_ends_are_only_counted | elif "timeouts" not in dataset and => elif
a_warning_where_ends_are_only_counted | and len(terminals) > horizon: => :
warnings_about_lengths | append=len(terminals) - 1) => append=ends[-1])
warnings_about_lengths | terminals[ends] & (lengths => (lengths
""",
    "d4rl/codes": r"""
explained | 1 - error / plain_error => error / plain_error
actions_that_never_change | plain_error.clamp(min=1e-12) => plain_error
actions_that_never_change | .clamp(min=1e-30) =>
explained_is_of_heldout_rows | fitted[heldout] = False =>
directions | variances.sum().pow(2) / => variances.sum() /
rows_come_from_the_whole_data | fitted[:: len(fitted) // 20_000 + 1] => fitted[:20_000]
sentence | < 0.5: => < 0.4:
sentence | max(measured['vqvae/explained'], 0) => measured['vqvae/explained']
""",
    "d4rl/evaluation": r"""
actions_that_are_none | if actions.shape != (len(obs), size): => if False:
actions_that_are_none | if not np.isfinite(actions).all(): => if False:
actions_that_are_none | if not np.isfinite(actions).all(): => if np.isnan(actions).any():
observations_that_are_not_finite | and np.isfinite(rewards).all()) => )
observations_that_are_not_finite | (np.isfinite(obs).all() and => (
whole_numbers | obs = np.array(obs) => obs = np.array(obs, int)
rewards_and_ends_in_arrays | np.array(rewards, float).ravel() => np.array(rewards, float)
rewards_and_ends_in_arrays | truncated).ravel() => truncated)
a_bar_of_what_takes_long | mininterval=1, delay=1 => mininterval=1
a_bar_of_what_takes_long | leave=False, mininterval=1, delay => mininterval=1, delay
a_bar_of_what_takes_long | progress.update() => pass
built_once_and_kept | make_one() for _ in range(count - len(kept)) => make_one() for _ in range(count)
built_once_and_kept | kept += [make_one => kept = [make_one
an_episode_by_hand | default_rng(1000 * seed + i) for i => default_rng(1000 * seed) for i
an_episode_by_hand | _respond(envs, [1000 * seed + i for => _respond(envs, [seed + i for
started_once_and_kept | h5path = h5path and str(h5path) => pass
environments_that_cannot_be_made | if sizes != ( => if False and sizes != (
environments_that_cannot_be_made | raise _broken(spec, "reset", error) from error => raise
environments_that_cannot_be_made | raise _broken(spec, "built", error) from error => raise
a_worker_that_cannot_start | (EOFError, ConnectionError):\n            _ => KeyError:\n            _
a_worker_uses_the_package_beside_it | "-P", "-c", code => "-c", code
a_video_without_opengl | _Worker(spec.env_id, h5path, video=True).end([0]) => pass
a_video_without_moviepy | find_spec("moviepy") is None => find_spec("moviepy") is ...
compare_names_other_values | low - played, played - high) => low - played, low - played)
compare_names_other_values | low - played, played - high) => played - high, played - high)
compare_at_ten_widths | np.maximum(10 * width, => np.maximum(9 * width,
compare_at_ten_widths | np.maximum(10 * width, => np.maximum(12 * width,
compare_names_other_values | 1e-3 * np.maximum(size, 1) => np.maximum(size, 1)
compare_names_other_values | played[row[column], column] => played[0, column]
compare_names_other_values | if width[column] else => if not width[column] else
compare_where_episodes_begin | if away.max() > 2: => if away.max() > 2.5:
compare_where_episodes_begin | if away.max() > 2: => if away.max() > 1.5:
compare_where_episodes_begin | and len(starts) >= 10: => and len(starts) >= 9:
compare_where_episodes_begin | low - played[0], played[0] - high) / => low - played[0], low - played[0]) /
compare_where_episodes_begin | np.where(width > 0, spread, np.inf) => np.maximum(spread, 1e-9)
compare_names_five_entries_of_many | if len(sentences) > 5: => if False:
compare_plays_the_datas_actions | if not over: => if True:
compare_plays_the_datas_actions | [:COMPARED_STEPS] => [: COMPARED_STEPS - 1]
compare_plays_the_datas_actions | played, over = [respond([0])[0]] => played, over = [respond([1])[0]]
returns_do_not_depend_on_processes | env.reset(seed=seed)[0] => env.reset()[0]
returns_do_not_depend_on_processes | np.clip(messages, space.low, space.high) => messages / 2
the_time_limit_ends_an_episode | np.logical_or(terminated, truncated) => np.array(terminated)
an_interrupted_evaluation | _kept_workers.cache_clear()\n        for => for
a_number_of_processes_that_is_none | or int(wanted) == 0 =>
""",
    "d4rl/robomimic_tasks": r"""
demonstrations | int(part) if part.isdigit() else part => part
demonstrations | "terminals": rewards > 0, => "terminals": last,
rewards_become_success | values.tolist() == [0, 1] => len(values) == 2
rewards_become_success | values.tolist() == [0, 1] => False
rewards_become_success | success = rewards == values[1] => success = rewards > 0
rewards_become_success | if len(values) == 2: => if False:
rewards_become_success | success", dones == 1 => success", (dones == 1) & ~last
rewards_become_success | if len(values) > 1 and success[last].all(): => if False:
rewards_become_success | if len(values) > 1 and success[last] => if success[last]
rewards_become_success | success = before | (success & => success = before & (success &
rewards_become_success | (rewards >= rewards[before].min()) => (rewards > rewards[before].min())
rewards_become_success | count = sum(part.any() => count = sum(part.all()
rewards_that_do_not_say_success | not np.isfinite(values).all() or => 
rewards_that_do_not_say_success | if dones is None or not dones.any(): => if dones is None:
rewards_that_do_not_say_success | if not np.isin(dones, (0, 1)).all(): => if False:
rewards_that_do_not_say_success | if not before.any(): => if False:
without_next_observations | or _has(groups, prefix): => or True:
files_of_other_makers | if isinstance(file["data"][name], h5py.Group)] => ]
files_of_other_makers | if "actions" in group or "obs" in group] => ]
files_of_other_makers | "body_parts" in json.dumps(controllers) => False
damaged_files | or "obs" in group] => ]
damaged_files | if values.shape != wanted or => if
damaged_files | or values.dtype.kind not in "biuf" =>
damaged_files | if outside > 0.5: => if False:
damaged_files | if _is_absolute(controllers): => if False:
damaged_files | controllers.get("control_delta") is False or => 
damaged_files | or controllers.get("input_type") == "absolute" =>
damaged_files | return any(map(_is_absolute, controllers.values())) => return False
damaged_files | if not version and "body_parts" => if not version or "body_parts"
damaged_files | "body_parts" in json.dumps(controllers) => True
""",
    "runs": r"""
settings_per_domain | name.startswith(begin) => name.endswith(begin)
settings_per_domain | name = plain_name(early.env_id) => name = early.env_id
settings_per_domain | if len(defaults) == 1 and => if
settings_per_domain | defaults |= values => defaults = values | defaults
settings_per_domain | if word not in ("-h", "--help") => if word
limits | not low <= value <= high => not low < value < high
limits | not low <= value <= high => value < low or value > high
limits | if name in fixed and value != => if value !=
device | and not torch.cuda.is_available() => and False
device | "cuda" if torch.cuda.is_available() else "cpu" => "cpu"
device | if args.device == "auto" else args.device =>
flags_of_a_resumed_run | free = RESUME if early.resume => free = PLAY if early.resume
flags_of_a_resumed_run | if name not in free} => if False}
flags_of_a_run_that_is_played | PLAY | set(play) - => PLAY | set() -
flags_of_a_run_that_is_played | {"evaluate", "dataset_path" => {"evaluate", "lr", "dataset_path"
flags_of_a_run_that_takes_a_quantizer | if name in QUANTIZER => if name not in QUANTIZER
flags_of_a_run_that_takes_a_quantizer | default=cls(**defaults | fixed) => default=cls(**defaults)
a_run_that_is_older_than_a_flag | saved["args"] |= younger => pass
a_run_that_is_older_than_a_flag | if younger: => if known:
whose_run_it_is | or MISSING in younger.values() =>
whose_run_it_is | saved["args"].keys() - known.keys() or => str() or
a_run_with_other_networks | (RuntimeError, ValueError) as => (KeyError, ValueError) as
changes_of_a_loaded_policy | if name not in _free(play, args): => if False:
changes_of_a_loaded_policy | if choices and value not in choices: => if False:
changes_of_a_loaded_policy | "device": "cpu", **changes => "device": "cpu"
changes_of_a_loaded_policy | "device": "cpu", =>
an_unfinished_stage | if stage and not => if False and not
an_unfinished_stage | .get("finished"): => .get("step"):
id_with_a_slash | .replace('/', '-') =>
seconds_go_on_after_a_kill | if args.resume:\n => if False:\n
resume_after_a_kill_in_any_file | args.resume or Path( => Path(
resume_after_a_kill_in_any_file | model.load_state_dict(state["model"]) => pass
resume_after_a_kill_in_any_file | optimizer.load_state_dict(state["optimizer"]) => pass
resume_after_a_kill_in_any_file | generator.set_state(state["generator"]) => pass
resume_after_a_kill_in_any_file | return state["step"] => return 0
resume_after_a_kill_in_any_file | "optimizer": optimizer.state_dict(), => "optimizer": {},
quantizer_of_another_run | other["stages"]["quantizer"] => {**other["stages"]["quantizer"], "step": 0}
quantizer_of_another_run | if row["stage"] == "quantizer" =>
losses_that_are_not_finite_stop | if not value.isfinite().all(): => if False:
losses_that_are_not_finite_stop | if self.count % 100 == 0: => if False:
losses_that_are_not_finite_stop | self._check_finite(self.sums | measured)\n => pass\n
measurements_that_are_not_finite_stop | (self.sums | measured) => (self.sums)
losses_that_are_not_finite_stop | self.step + 1, time => self.step, time
log_and_record | self.sums.get(name, 0) + metric => metric
log_and_record | float(total) / self.count => float(total)
log_and_record | self.count / (self.last - self.start) => self.count / (time.time() - self.start)
log_and_record | self.count + 1, self.step + 1, time.time() => self.count, self.step + 1, time.time()
log_and_record | {**measured, f"time => {f"time
log_and_record | self.saved["returns"] = row.pop("returns", []) => row.pop("returns", [])
log_and_record | "finished": step == steps => "finished": True
log_and_record | add_scalar(name, value, step) => add_scalar(name, value, 0)
log_and_record | self._save()\n        self._begin()\n        if => self._save()\n        if
log_and_record | self._save()\n        self._begin()\n        if => self._begin()\n        if
said_of_codes | if step == steps and "vqvae/explained" in row: => if "vqvae/explained" in row:
said_of_codes | if step == steps and "vqvae/explained" in row: => if False:
log_and_record | not name.startswith(("time", "charts")) => not name.startswith("time")
seconds_go_on_after_a_kill | ["seconds"] + time.time() => ["seconds"] * 0 + time.time()
track | wandb.define_metric("*", step_metric="step") => wandb.define_metric("*", step_metric="stage")
track | self.wandb.log({"stage": stage, "step": step} | row) => self.wandb.log(row)
track | id=self.folder.name => id=script
files_of_a_run | "score": scores[-1] => "score": max(scores)
files_of_a_run | max(scores),\n => scores[-1],\n
files_of_a_run | "returns": returns => "returns": []
files_of_a_run | {"script": script, **self.saved["args"]} => self.saved["args"]
files_of_a_run | str(row.get(name, "")) for name in columns => str(value) for value in row.values()
limits | (1 if isinstance(value, int) else 0, HIGHEST => (0, HIGHEST
limits | "eval_episodes": 10_000, =>
limits | HIGHEST.get(name, 1e9) => 1e9
a_found_temperature | ({"temperature"} if saved.get("kl") else set()) => set()
a_found_temperature | if name not in _free(play, args): => if name not in PLAY | set(play):
flags_of_a_resumed_run | RESUME = {"resume", => RESUME = {"resume", "seed",
what_is_no_run | damaged = file.testzip() => damaged = None
what_is_no_run | and wanted <= saved.keys() =>
what_is_no_run | except Exception:  # whatever => except ValueError:  # whatever
whose_run_it_is | if script and saved["script"] != script or => if
whose_run_it_is | len(saved["spaces"]) != len(Spaces._fields) => False
files_of_a_run | keep="" if self.damaged else PREVIOUS => keep=""
resume_after_a_kill_in_any_file | os.replace(new, path) => path.write_bytes(content)
resume_after_a_kill_in_any_file | os.replace(path, path.with_name(keep)) => path.unlink()
resume_after_a_kill_in_any_file | torch.set_rng_state(noise[0]) => pass
damaged_checkpoint | keep="" if self.damaged else PREVIOUS => keep=PREVIOUS
damaged_checkpoint | _say(f"{fallback}; using => str(f"{fallback}; using
damaged_checkpoint_of_a_finished_run | reason = f" ({fallback} => reason = f" (
other_data | torch.equal(saved, found) => torch.equal(saved[0], found[0])
other_data | torch.equal(saved, found) => torch.equal(saved[1], found[1])
other_data | asdict(args) | {"resume": ""} => self.saved["args"] or asdict(args)
a_run_is_played_with_its_own_data | if args.evaluate and spec.is_robomimic: => if False:
spaces_of_a_resumed_run | self.spaces = saved.to( => str(
copied_and_renamed_folder | Path(args.resume or => Path(
quantizer_of_another_run | [0], ours.fingerprint[0] => [1], ours.fingerprint[1]
quantizer_of_another_run | torch.equal(theirs.action_low, ours.action_low) => True
quantizer_of_another_run | torch.equal(theirs.action_high, ours.action_high) => True
run_moves_to_another_device | if before == now: => if True:
run_moves_to_another_device | elif not state["finished"]: => else:
run_moves_to_another_device | generator.manual_seed(seed) => generator.seed()
run_moves_to_another_device | torch.manual_seed(seed) => torch.seed()
longer | = learner["step"] == self.args.steps => = learner["finished"]
longer | (self.folder / "result.json").unlink(missing_ok=True) => pass
shorter | if args.steps < learner["step"]: => if False:
shorter | = learner["step"] == self.args.steps => = False
steps_where_the_rate_falls | if rates != learner["first_rates"]: => if False:
steps_where_the_rate_falls | if learner is None or => if
two_processes | self.lock.acquire() => pass
two_processes | self.lock.release(force=True) => pass
full_disk | new.unlink(missing_ok=True) => pass
full_disk | error.filename = error.filename or str(path) => pass
a_run_that_cannot_begin | if not args.resume:  # there is => if False:  #
a_run_that_cannot_begin | if not args.resume:  # there is => if True:  #
track_that_does_not_work | except ImportError: => except KeyError:
errors_that_are_no_bugs | error.errno in FULL | BARRED => error.errno in FULL
errors_that_are_no_bugs | error.errno in FULL | BARRED => error.errno in BARRED
errors_that_are_no_bugs | if no_memory or => if
bugs_keep_their_traceback | and error.errno in FULL | BARRED => and error.errno
bugs_keep_their_traceback | and any(word in text for word in words) =>
interrupts | signal.signal(signal.SIGINT, signal.SIG_DFL) => pass
interrupts | sys.exit(128 + signal.SIGTERM) => pass
interrupts | signal.signal(signal.SIGTERM, _terminate) => pass
""",
    "seeds": r"""
summary | ddof=1 => ddof=0
summary | math.sqrt(len(scores)) => math.sqrt(seeds)
summary | student_t(len(scores) - 1) => student_t(len(scores))
student_t | 0.95 * mass[-1] => 0.975 * mass[-1]
student_t | ** (freedom - 1) => ** freedom
at_a_time | _cores() // args.threads => _cores()
at_a_time | if args.device == "cuda" else most => if False else most
at_a_time | and len(running) < jobs => and len(running) < 99
at_a_time | "--num-seeds", "1", "--seed" => "--seed"
at_a_time | environment.setdefault("D4RL_PROCESSES", => str(
at_once | environment.setdefault("D4RL_PROCESSES", => environment.__setitem__("D4RL_PROCESSES",
a_seed_that_fails | if self.process.returncode == 2 else [] => if False else []
a_seed_that_fails | if self.process.returncode == 2 else [] => if True else []
a_seed_that_fails | one.put_log_away()\n                    if => if
all_fail | problems.setdefault(one.problem(), []) => problems.setdefault(one.seed, [])
""",
}


def cases(script):
    """(script, test, changes) for each line."""
    for line in dict.fromkeys(MUTATIONS[script].replace(" =>\n", " => \n").splitlines()):
        if line:
            test, _, changes = line.partition(" | ")
            pairs = [change.split(" => ") for change in changes.split(" && ")]
            yield script, test, [(old.replace("\\n", "\n"), new.replace("\\n", "\n")) for old, new in pairs]


CASES = [case for script in MUTATIONS for case in cases(script)]


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


def run_test(script, test, module, request, monkeypatch):
    """A function that calls the named test with `module` in the place of the script."""
    name = f"test_{test.format(script.removeprefix('saq_').replace('baselines/', 'continuous_'))}"
    tests = next(tests for tests in TESTS if hasattr(tests, name))
    function = getattr(tests, name)
    arguments_of_calls = list(calls(function, script, request))
    assert arguments_of_calls
    for made in {script, "saq_bc", "saq_cql", "saq_iql"} & SCRIPTS.keys():
        request.getfixturevalue("finished")(made)  # by the script as it is

    def run():
        for arguments in arguments_of_calls:
            if "tmp_path" in arguments:  # each call has its own
                arguments = arguments | {"tmp_path": Path(tempfile.mkdtemp(dir=arguments["tmp_path"]))}
            with monkeypatch.context() as patch:
                patch.setattr(tests, script.replace("/", "_"), module, raising=False)
                if script in SCRIPTS:
                    patch.setitem(SCRIPTS, script, module)
                function(**arguments | ({"monkeypatch": patch} if "monkeypatch" in arguments else {}))

    return run


@pytest.mark.parametrize(("script", "test", "changes"), CASES)
def test_mutation_is_noticed(script, test, changes, tmp_path, monkeypatch, request):
    source = FILES[script].read_text()
    for old, new in changes:
        assert old in source, f"the line has changed: bring the list up to date: {old}"
        source = source.replace(old, new, 1)
    path = tmp_path / "mutant" / FILES[script].name
    path.parent.mkdir()
    path.write_text(source)
    try:
        mutant = load(path, "mutant")
    except SyntaxError:
        pytest.fail("this is no Python")
    run = run_test(script, test, mutant, request, monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):  # a crash is noticed as well
        run()


def test_unchanged_copies_pass(monkeypatch, request):
    """What fails above fails because of the change, not because it runs in a copy."""
    assert MUTATIONS.keys() == FILES.keys() and {*SAQ} < MUTATIONS.keys()
    for script, test in dict.fromkeys(case[:2] for case in CASES):
        run_test(script, test, load(FILES[script], "mutant"), request, monkeypatch)()
