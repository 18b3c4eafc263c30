// The arithmetic of SAQ, as in the scripts and under their names; nothing here draws. Plain scripts instead of
// modules: browsers refuse to import modules from a disk.
"use strict";

// --- numbers out of weights.js ---
function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function floats(text) {
  return new Float32Array(bytes(text).buffer);
}

const layersOf = (net) => net.map(([weight, bias]) => ({ weight: floats(weight), bias: floats(bias) }));
const mapValues = (object, change) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));

const NETS = mapValues(EXPLORE.nets, layersOf);
const QUANTIZERS = mapValues(EXPLORE.quantizers, ({ codebook, decoder, codes }) => {
  const layers = layersOf(decoder), numbers = floats(codebook), size = 16; // D, the size of a code's vector
  const vectors = Array.from({ length: numbers.length / size }, (_, k) => Array.from(numbers.subarray(k * size, (k + 1) * size)));
  return { vectors, decoder: layers, codes: bytes(codes), seesState: layers[0].weight.length / layers[0].bias.length > size };
});

function rowsOf(text, width) {
  const numbers = floats(text);
  return Array.from({ length: numbers.length / width }, (_, i) => Array.from(numbers.subarray(i * width, (i + 1) * width)));
}

const DATA = { obs: rowsOf(EXPLORE.obs, 4), action: rowsOf(EXPLORE.action, 2) };
DATA.standardised = DATA.obs.map(standardise);

// --- networks ---
function standardise(obs) {
  return obs.map((x, i) => (x - EXPLORE.mean[i]) / EXPLORE.std[i]);
}

// vqvae.mlp: linear layers with ReLU in between.
function forward(layers, input) {
  let x = input;
  layers.forEach(({ weight, bias }, index) => {
    const y = new Float64Array(bias.length);
    for (let i = 0, w = 0; i < y.length; i++) {
      let sum = bias[i];
      for (let j = 0; j < x.length; j++, w++) sum += weight[w] * x[j];
      y[i] = index < layers.length - 1 && sum < 0 ? 0 : sum;
    }
    x = y;
  });
  return x;
}

const mlp = (layers, input) => Array.from(forward(layers, input));

// --- stage 1 ---
// VQVAE.decode: the action of every code in a state.
function decode(quantizer, obs, vectors = quantizer.vectors) {
  const state = quantizer.seesState ? standardise(obs) : [];
  return vectors.map((vector) => mlp(quantizer.decoder, [...state, ...vector]));
}

// measure_quantizer: each code's share of the data, codes in use, perplexity.
function measureQuantizer(quantizer) {
  const share = quantizer.vectors.map(() => 0);
  for (const code of quantizer.codes) share[code] += 1 / quantizer.codes.length;
  const entropy = sum(share.map((p) => (p > 0 ? -p * Math.log(p) : 0)));
  return { share, used: share.filter((p) => p > 0).length, perplexity: Math.exp(entropy) };
}

// Rows of the data nearest to a state.
function nearest(obs, count) {
  const at = standardise(obs);
  const distance = DATA.standardised.map((row) => sum(row.map((x, i) => (x - at[i]) ** 2)));
  return [...distance.keys()].sort((i, j) => distance[i] - distance[j]).slice(0, count);
}

// --- stage 2 ---
const sum = (numbers) => numbers.reduce((total, x) => total + x, 0);
const dot = (a, b) => sum(a.map((x, i) => x * b[i]));
const argmax = (numbers) => numbers.indexOf(Math.max(...numbers));

function logsumexp(numbers) {
  const most = Math.max(...numbers);
  return most + Math.log(sum(numbers.map((x) => Math.exp(x - most))));
}

function logSoftmax(logits) {
  const total = logsumexp(logits);
  return logits.map((x) => x - total);
}

// saq_iql.closed_form_policy
function closedFormPolicy(advantage, logBehaviour, temperature) {
  return logSoftmax(advantage.map((a, k) => a / temperature + logBehaviour[k]));
}

// log_policy of the four scripts, with what it is made of. strength: lambda of SAQ-IQL, alpha of SAQ-CQL and SAQ-BRAC.
function logPolicy(method, strength, obs) {
  const x = standardise(obs);
  const net = (name) => mlp(NETS[name], x);
  if (method === "saq_bc") {
    const logPi = logSoftmax(net("saq_bc policy"));
    return { logPi, logBehaviour: logPi, advantage: null, optimum: null };
  }
  if (method === "saq_iql") {
    const v = net("saq_iql v")[0], q = net("saq_iql q");
    const logBehaviour = logSoftmax(net("saq_iql behaviour")), advantage = q.map((one) => one - v);
    return { logPi: closedFormPolicy(advantage, logBehaviour, strength), logBehaviour, advantage, q, optimum: null };
  }
  const q = net(`${method} ${strength} q`);
  let logPi = logSoftmax(q), logBehaviour = logSoftmax(net("saq_bc policy")), optimum = null;
  if (method === "saq_brac") {
    logPi = logSoftmax(net(`${method} ${strength} policy`));
    logBehaviour = logSoftmax(net("saq_brac behaviour"));
    optimum = closedFormPolicy(q, logBehaviour, strength); // where policy_loss is smallest
  }
  const v = dot(logPi.map(Math.exp), q);
  return { logPi, logBehaviour, advantage: q.map((one) => one - v), q, optimum };
}

// --- sums and integrals: the penalty of CQL without its last term ---
const SIDE = 41; // cells along each dimension of the action square

// Q(s, a) of baselines/cql.py, its first critic; x: the standardised state.
const actionValue = (x, action) => forward(NETS["cql q"], [...x, ...action])[0];

// The same at the middle of each cell of the square [-1, 1]^2.
function actionValues(obs) {
  const x = standardise(obs), at = (i) => ((i + 0.5) * 2) / SIDE - 1, values = [];
  for (let i = 0; i < SIDE; i++) for (let j = 0; j < SIDE; j++) values.push(actionValue(x, [at(i), at(j)]));
  return values;
}

// benchmark/figure2.py, log_integral: log int exp Q(s, a) da over the square.
function logIntegral(values) {
  return logsumexp(values) + Math.log(4 / values.length);
}

// baselines/cql.py, conservative_loss: the same from n actions, drawn evenly from the square (density 1/4).
function estimate(values) {
  return logsumexp(values) - Math.log(values.length) + Math.log(4);
}

// --- the environment: d4rl.environments.Maze2dEnv, with MuJoCo's equations for one ball ---
const MASS = 1000 * (4 / 3) * Math.PI * 0.1 ** 3, STEP = 0.01, RADIUS = 0.1, MARGIN = 0.004;
const isWall = (i, j) => EXPLORE.walls[i]?.[j] !== "0";
const clip = (x, low, high) => Math.min(Math.max(x, low), high);

// How stiff a contact is at this depth: MuJoCo's default solimp.
function impedance(depth) {
  const x = Math.min(Math.abs(depth) / 0.001, 1);
  return 0.9 + 0.05 * (x < 0.5 ? 2 * x * x : 1 - 2 * (1 - x) ** 2);
}

function contactsOf(row, column, rowVelocity, columnVelocity) {
  const found = [], damping = 2 / (0.95 * 0.02);
  const i0 = Math.round(row + 0.2), j0 = Math.round(column + 0.2); // cell (i, j) is centred at (i - 0.2, j - 0.2)
  for (let i = i0 - 1; i <= i0 + 1; i++) {
    for (let j = j0 - 1; j <= j0 + 1; j++) {
      if (!isWall(i, j)) continue;
      const gap = [row - clip(row, i - 0.7, i + 0.3), column - clip(column, j - 0.7, j + 0.3)];
      const distance = Math.hypot(...gap), depth = distance - RADIUS - MARGIN;
      if (depth >= 0 || distance === 0) continue;
      const normal = gap.map((x) => x / distance), stiff = impedance(depth);
      const push = -damping * (normal[0] * rowVelocity + normal[1] * columnVelocity) - (stiff / (0.95 * 0.02) ** 2) * depth;
      found.push({ normal, push, soft: (1 - stiff) / stiff, force: 0 });
    }
  }
  return found;
}

// Maze2dEnv.step
function step([row, column, rowVelocity, columnVelocity], action) {
  const velocity = [clip(rowVelocity, -5, 5), clip(columnVelocity, -5, 5)];
  const acceleration = velocity.map((v, i) => (100 * clip(action[i], -1, 1) - v) / MASS);
  const contacts = contactsOf(row, column, ...velocity);
  for (let sweep = 0; contacts.length && sweep < 50; sweep++) {
    for (const contact of contacts) {
      const { normal, push, soft } = contact;
      const force = Math.max(0, contact.force + (push - dot(acceleration, normal) - soft * contact.force) / (1 + soft));
      normal.forEach((n, i) => (acceleration[i] += n * (force - contact.force)));
      contact.force = force;
    }
  }
  const [v, w] = velocity.map((x, i) => x + ((STEP * MASS) / (MASS + STEP)) * acceleration[i]);
  return [row + STEP * v, column + STEP * w, v, w];
}

const reward = (obs) => (Math.hypot(obs[0] - EXPLORE.goal[0], obs[1] - EXPLORE.goal[1]) <= 0.5 ? 1 : 0);
const EPISODE = 800; // steps

// make_act: the action of a policy in a state; uniform in [0, 1) draws the code.
function act(method, strength, acting, obs, uniform) {
  const pi = logPolicy(method, strength, obs).logPi.map(Math.exp), quantizer = QUANTIZERS["16"];
  if (acting === "mean") return { code: null, action: mean(pi, decode(quantizer, obs)) };
  let code = argmax(pi);
  if (acting === "sample") for (code = 0, uniform -= pi[0]; uniform >= 0 && code < pi.length - 1; ) uniform -= pi[++code];
  return { code, action: decode(quantizer, obs, [quantizer.vectors[code]])[0] };
}

// The mean of all decoded actions.
const mean = (pi, actions) => [0, 1].map((i) => sum(pi.map((p, k) => p * actions[k][i])));

// Maze2dEnv.reset: a free cell, a little off its middle, almost at rest.
function start() {
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  return [...[1, 1].map((cell) => cell + 0.2 * (Math.random() - 0.5)), 0.1 * normal(), 0.1 * normal()];
}

// The return of one episode.
function playEpisode(method, strength, acting) {
  let obs = start(), total = 0;
  for (let t = 0; t < EPISODE; t++) {
    obs = step(obs, act(method, strength, acting, obs, Math.random()).action);
    total += reward(obs);
  }
  return total;
}
