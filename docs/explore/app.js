// Controls and pictures of index.html; what they show is computed in saq.js.
"use strict";

const $ = (id) => document.getElementById(id);
const fixed = (x, digits = 2) => x.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
const colour = (k, alpha = 1) => `oklch(${dark.matches ? 0.76 : 0.58} 0.15 ${(k * 137.508 + 20) % 360} / ${alpha})`;
const dark = matchMedia("(prefers-color-scheme: dark)");

const MIDDLE = 0.7; // from an observation to the picture: cell (i, j) is drawn from j to j + 1, centred at j - 0.2
const METHODS = {
  saq_bc: {
    text: "SAQ-BC is a classifier: which code does the data take in this state? It knows no reward, so there is nothing to weigh.",
    source: "saq_bc.log_policy",
  },
  saq_cql: {
    text: "SAQ-CQL's policy is the softmax of Q, and its penalty is a classifier's loss, so a large α makes Q the logits of behaviour cloning. With α = 0, each notch being a run of its own, nothing holds Q down where the data has never been.",
    source: "saq_cql.conservative_loss",
  },
  saq_iql: {
    text: "SAQ-IQL weighs what the data does with how much better a code is than the state's value; no network has to learn that policy. As λ grows it becomes behaviour cloning, as λ falls the code with the largest Q.",
    source: "saq_iql.closed_form_policy",
  },
  saq_brac: {
    text: "SAQ-BRAC learns a policy network that is to have a large Q and stay near the data. Lines on the bars are the optimum that it nears for its own Q; every notch of α (here equal to β) is a run of its own.",
    source: "saq_brac.policy_loss",
  },
};

const state = {
  obs: [...EXPLORE.states.A],
  size: 16, hidden: false, printed: false, one: null,
  method: "saq_iql", exponent: Math.log10(3), notch: { saq_cql: 3, saq_brac: 3 },
  drawn: [], tries: [],
  acting: "sample", speed: 1, playing: false, dragging: false, steps: 0, total: 0, trails: [],
};

const strength = () => {
  if (state.method === "saq_bc") return null;
  return state.method === "saq_iql" ? 10 ** state.exponent : EXPLORE.alphas[state.method][state.notch[state.method]];
};
const quantizer = () => QUANTIZERS[`${state.size}${state.hidden ? " hidden" : ""}${state.printed ? " printed" : ""}`];

// --- the maze ---
const point = (obs) => `${(obs[1] + MIDDLE).toFixed(3)},${(obs[0] + MIDDLE).toFixed(3)}`;

function drawMaze() {
  let walls = "", way = "";
  EXPLORE.walls.forEach((line, i) => [...line].forEach((cell, j) => {
    if (cell === "1") walls += `<rect class="wall" x="${j}" y="${i}" width="1.01" height="1.01"/>`;
  }));
  for (let i = 0; i < 799; i += 3) way += `${point(DATA.obs[i])} `;
  const [row, column] = EXPLORE.goal;
  $("walls").innerHTML = walls;
  $("ways").innerHTML = `<polyline class="way" points="${way}"/><circle class="goal" cx="${column + MIDDLE}" cy="${row + MIDDLE}" r="0.5"/>`
    + ["A", "B"].map((name) => {
      const [i, j] = EXPLORE.states[name];
      return `<text class="place" x="${j + MIDDLE + (name === "A" ? -0.42 : 0.42)}" y="${i + MIDDLE + 0.18}">${name}</text>`;
    }).join("");
}

// Boxes that the ball's middle can be in: each free cell, and each pair of neighbours.
const FREE = [];
EXPLORE.walls.forEach((line, i) => [...line].forEach((cell, j) => {
  if (isWall(i, j)) return;
  const box = (height, width) => FREE.push([i - 0.2 - 0.395, i - 0.2 + height - 0.605, j - 0.2 - 0.395, j - 0.2 + width - 0.605]);
  box(1, 1);
  if (!isWall(i + 1, j)) box(2, 1);
  if (!isWall(i, j + 1)) box(1, 2);
}));

function free(row, column) {
  const places = FREE.map(([top, bottom, left, right]) => [clip(row, top, bottom), clip(column, left, right)]);
  const distance = places.map(([i, j]) => Math.hypot(i - row, j - column));
  return places[distance.indexOf(Math.min(...distance))];
}

// The velocity of the data's row nearest in place.
function velocityThere(row, column) {
  const distance = DATA.obs.map(([i, j]) => Math.hypot(i - row, j - column));
  return DATA.obs[distance.indexOf(Math.min(...distance))].slice(2);
}

function moveTo(row, column) {
  const place = free(row, column);
  state.obs = [...place, ...($("follow").checked ? velocityThere(...place) : state.obs.slice(2))];
  changed();
}

function setVelocity(row, column) {
  const size = Math.hypot(row, column), scale = size > 5 ? 5 / size : 1;
  state.obs = [...state.obs.slice(0, 2), row * scale, column * scale];
  $("follow").checked = false;
  changed();
}

function inside(svg, event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return [at.y, at.x];
}

function draggable(handle, svg, move) {
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    handle.focus();
    state.dragging = true;
    move(...inside(svg, event));
    event.preventDefault();
  });
  handle.addEventListener("pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) move(...inside(svg, event));
  });
  handle.addEventListener("lostpointercapture", () => (state.dragging = false));
}

function arrowKeys(handle, move) {
  const ways = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  handle.addEventListener("keydown", (event) => {
    if (!ways[event.key]) return;
    event.preventDefault();
    move(...ways[event.key]);
  });
}

function renderWorld() {
  const [row, column, rowVelocity, columnVelocity] = state.obs;
  $("ball").setAttribute("transform", `translate(${column + MIDDLE} ${row + MIDDLE})`);
  const motion = { x2: columnVelocity * 0.2, y2: rowVelocity * 0.2 }, hand = { x2: columnVelocity / 5, y2: rowVelocity / 5 };
  for (const [name, value] of Object.entries(motion)) $("motion").setAttribute(name, value);
  for (const [name, value] of Object.entries(hand)) $("hand").setAttribute(name, value);
  $("knob").setAttribute("cx", hand.x2);
  $("knob").setAttribute("cy", hand.y2);
  const speed = Math.hypot(rowVelocity, columnVelocity);
  const where = `row ${fixed(row)}, column ${fixed(column)}`, velocity = `${fixed(rowVelocity)} down, ${fixed(columnVelocity)} right`;
  $("state").textContent = `${where}; moving ${velocity}`;
  $("ball").setAttribute("aria-valuenow", fixed(column).replace("−", "-"));
  $("ball").setAttribute("aria-valuetext", where);
  $("velocity").setAttribute("aria-valuenow", Math.round((Math.atan2(-rowVelocity, columnVelocity) * 180) / Math.PI) || 0);
  $("velocity").setAttribute("aria-valuetext", `${velocity}, speed ${fixed(speed)}`);
  $("trails").innerHTML = state.trails.map((trail, i) =>
    `<polyline class="trail${i === state.trails.length - 1 ? " now" : ""}" points="${trail.join(" ")}"/>`).join("");
}

// --- bars and arrows ---
// Heights between low and high, one bar per code; marks: lines across the bars.
function drawBars(svg, values, { low = 0, high, marks = null, label }) {
  const width = 100 / values.length, y = (x) => 100 - (100 * (clip(x, low, high) - low)) / (high - low);
  const parts = values.map((value, k) => {
    const top = Math.min(y(value), y(0)), height = Math.abs(y(value) - y(0)), alpha = state.one === null || svg.id === "usage" || values.length !== state.size || state.one === k ? 1 : 0.3;
    return `<rect x="${k * width + width * 0.12}%" y="${top}%" width="${width * 0.76}%" height="${height}%" fill="${colour(k, alpha)}"><title>code ${k}: ${label(value)}</title></rect>`;
  });
  if (marks) marks.forEach((mark, k) => parts.push(`<line class="tick" x1="${k * width}%" x2="${(k + 1) * width}%" y1="${y(mark)}%" y2="${y(mark)}%"/>`));
  parts.push(`<line class="axis" x1="0" x2="100%" y1="${y(0)}%" y2="${y(0)}%"/>`);
  svg.innerHTML = `<svg x="0" y="12" width="100%" height="${svg.clientHeight - 26}" overflow="visible">${parts.join("")}</svg>`
    + values.map((_, k) => (values.length <= 16 || k % 4 === 0 ? `<text x="${(k + 0.5) * width}%" y="${svg.clientHeight - 2}" text-anchor="middle">${k}</text>` : "")).join("")
    + `<text x="0" y="9">${label(high)}</text>`;
}

// An arrow from the middle; actions are (down, right).
function arrowTo([down, right], style, width, label = "", size = 0.12) {
  const length = Math.hypot(down, right) || 1e-9, head = Math.min(0.1 + width, length);
  const [y, x] = [down / length, right / length];
  const wing = (side) => `${right - head * (x * 0.9 + side * y * 0.45)},${down - head * (y * 0.9 - side * x * 0.45)}`;
  const text = label === "" ? "" : `<text x="${right + x * 0.1}" y="${down + y * 0.1 + size * 0.36}" font-size="${size}" text-anchor="middle" style="fill:${style}">${label}</text>`;
  return `<path class="arrow" stroke="${style}" stroke-width="${width}" d="M0,0L${right},${down}M${wing(1)}L${right},${down}L${wing(-1)}"/>${text}`;
}

const LIMIT = '<rect class="limit" x="-1" y="-1" width="2" height="2"/>';

function renderCodes() {
  const now = quantizer(), actions = decode(now, state.obs), near = nearest(state.obs, 60);
  const dots = near.map((i) => `<circle cx="${DATA.action[i][1]}" cy="${DATA.action[i][0]}" r="0.022" fill="${colour(now.codes[i], 0.75)}"/>`);
  const order = [...actions.keys()].sort((a, b) => (a === state.one) - (b === state.one));
  const arrows = order.map((k) => arrowTo(actions[k], colour(k, state.one === null || state.one === k ? 1 : 0.3), state.one === k ? 0.045 : 0.022, k, now.vectors.length > 16 ? 0.09 : 0.12));
  $("arrows").innerHTML = LIMIT + dots.join("") + arrows.join("");
  const { share, used, perplexity } = measureQuantizer(now);
  drawBars($("usage"), share, { high: Math.max(...share), label: (x) => `${fixed(100 * x, 1)} %` });
  $("used").textContent = `${used} of ${share.length} codes used, perplexity ${fixed(perplexity, 1)}`;
}

function renderPolicy() {
  const { logPi, logBehaviour, advantage, optimum } = logPolicy(state.method, strength(), state.obs);
  const pi = logPi.map(Math.exp), behaviour = logBehaviour.map(Math.exp), high = Math.max(...pi, ...behaviour, 0.1);
  const percent = (x) => `${fixed(100 * x, 1)} %`;
  drawBars($("behaviour"), behaviour, { high, label: percent });
  drawBars($("pi"), pi, { high, label: percent, marks: optimum && optimum.map(Math.exp) });
  if (advantage) {
    const most = Math.max(...advantage, 0.001), least = Math.min(...advantage, 0);
    drawBars($("advantage"), advantage, { low: least, high: most, label: (x) => fixed(x, 3) });
  } else $("advantage").innerHTML = '<text x="0" y="40">SAQ-BC has no Q</text>';
  const actions = decode(QUANTIZERS["16"], state.obs), most = Math.max(...pi);
  const order = [...pi.keys()].sort((a, b) => pi[a] - pi[b]);
  $("weighted").innerHTML = LIMIT + order.map((k) => arrowTo(actions[k], colour(k, Math.max(0.06, pi[k] / most)), 0.012 + 0.06 * Math.sqrt(pi[k]), pi[k] > 0.03 ? k : "")).join("");
  const kl = sum(pi.map((p, k) => (p > 0 ? p * (logPi[k] - logBehaviour[k]) : 0)));
  let words = `KL(π ‖ πβ) = ${kl < 1e-4 ? "0" : fixed(kl, kl < 0.01 ? 4 : 2)}; likeliest code ${argmax(pi)}`;
  if (advantage) words += `, largest Q: code ${argmax(advantage)}`;
  words += ".";
  if (state.method !== "saq_bc" && kl < 0.002) words += " This is behaviour cloning.";
  if (advantage && Math.max(...pi) > 0.99 && argmax(pi) === argmax(advantage)) words += " This is the argmax of Q.";
  const scored = EXPLORE.scores[state.method === "saq_cql" || state.method === "saq_brac" ? `${state.method} ${strength()}` : state.method];
  if (state.method !== "saq_iql") words += ` Its score in MuJoCo, 20 episodes: ${fixed(scored, 1)}.`;
  else words += ` With λ = 3 its score in MuJoCo, 20 episodes: ${fixed(scored, 1)}.`;
  $("limit").textContent = words;
}

function renderMethod() {
  const { text, source } = METHODS[state.method], slider = $("strength");
  $("method-text").innerHTML = `${text} <span class="source"><code>${source}</code></span>`;
  $("strength-row").hidden = state.method === "saq_bc";
  $("strength-row").style.display = state.method === "saq_bc" ? "none" : "";
  const continuous = state.method === "saq_iql";
  Object.assign(slider, continuous ? { min: -4, max: 5, step: 0.05 } : { min: 0, max: 4, step: 1 });
  slider.value = continuous ? state.exponent : state.notch[state.method] ?? 0;
  const value = strength(), letter = continuous ? "λ" : "α";
  const number = value === null ? "" : value !== 0 && (value < 0.01 || value >= 1e4) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  $("strength-text").textContent = `${letter} = ${number}`;
  slider.setAttribute("aria-label", continuous ? "lambda, the temperature" : "alpha");
  slider.setAttribute("aria-valuetext", `${letter} = ${number}`);
}

// --- the integral ---
const COUNTS = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000];
const count = () => Math.round(10 ** Number($("count").value));
const heat = { of: null };

// Random numbers in [0, 1) that are the same every time.
function generator(seed) {
  let x = seed;
  return () => {
    x = (x + 0x6d2b79f5) | 0;
    let t = Math.imul(x ^ (x >>> 15), 1 | x);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Errors of 100 estimates from n cells of the square: 10 % and 90 % quantile, mean.
function spread(values, exact, n) {
  const random = generator(n), most = Math.max(...values), weights = values.map((q) => Math.exp(q - most));
  const errors = Array.from({ length: 100 }, () => {
    let total = 0;
    for (let i = 0; i < n; i++) total += weights[Math.floor(random() * weights.length)];
    return Math.log((4 * total) / n) + most - exact;
  }).sort((a, b) => a - b);
  return { low: errors[10], high: errors[89], mean: sum(errors) / errors.length };
}

function drawActions() {
  state.drawn = Array.from({ length: count() }, () => [2 * Math.random() - 1, 2 * Math.random() - 1]);
}

function errorOfDraw() {
  const x = standardise(state.obs);
  return estimate(state.drawn.map((action) => actionValue(x, action))) - heat.exact;
}

function renderHeat() {
  const values = actionValues(state.obs);
  Object.assign(heat, { of: state.obs, values, exact: logIntegral(values) });
  heat.bands = COUNTS.map((n) => spread(values, heat.exact, n));
  const canvas = $("heat"), most = Math.max(...values), picture = new ImageData(SIDE, SIDE);
  const [r, g, b] = dark.matches ? [88, 176, 232] : [0, 114, 178];
  values.forEach((q, i) => picture.data.set([r, g, b, 235 * Math.exp(q - most)], 4 * i));
  canvas.width = canvas.height = SIDE;
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function renderIntegral() {
  if (heat.of !== state.obs) {
    renderHeat();
    state.tries = [];
  }
  const n = count(), error = errorOfDraw(), now = spread(heat.values, heat.exact, n);
  const radius = n > 200 ? 0.014 : n > 50 ? 0.022 : 0.035;
  $("drawn").innerHTML = state.drawn.map(([down, right]) => `<circle class="sample" cx="${right}" cy="${down}" r="${radius}"/>`).join("");
  const x = (m) => 34 + (Math.log10(m) / 3) * 280, y = (e) => 95 - clip(e, -3.4, 2) * 36;
  const line = (key) => COUNTS.map((m, i) => `${x(m)},${y(heat.bands[i][key])}`);
  const ticks = [1, 10, 100, 1000].map((m) => `<text x="${x(m)}" y="226" text-anchor="middle">${m === 1 ? "n = 1" : m}</text>`);
  const levels = [1, -1, -2, -3].map((e) => `<line class="axis" x1="34" x2="314" y1="${y(e)}" y2="${y(e)}"/><text x="28" y="${y(e) + 4}" text-anchor="end">${fixed(e, 0)}</text>`);
  const tries = state.tries.map(([m, e]) => `<circle class="tried" cx="${x(m)}" cy="${y(e)}" r="2.5"/>`);
  $("errors").innerHTML = `${levels.join("")}<polygon class="band" points="${[...line("low"), ...line("high").reverse()].join(" ")}"/>
    <polyline class="middle" points="${line("mean").join(" ")}"/>
    <line class="exact" x1="34" x2="314" y1="${y(0)}" y2="${y(0)}"/><text x="28" y="${y(0) + 4}" text-anchor="end">0</text>
    <text x="314" y="${y(0) - 6}" text-anchor="end">the sum over codes is exact</text>${tries.join("")}
    <line class="bar-of-error" x1="${x(n)}" x2="${x(n)}" y1="${y(now.low)}" y2="${y(now.high)}"/>
    <circle class="tried now" cx="${x(n)}" cy="${y(error)}" r="4.5"/>${ticks.join("")}`;
  const q = logPolicy("saq_cql", EXPLORE.alphas.saq_cql[3], state.obs).q, total = logsumexp(q), top = Math.max(...q);
  drawBars($("terms"), q.map((one) => Math.exp(one - top)), { high: 1, label: (one) => `${fixed(100 * one, 0)} % of the largest` });
  const signed = (e) => (e < 0 ? "" : "+") + fixed(e);
  $("estimate").textContent = `Integral ${fixed(heat.exact)}; estimated ${fixed(heat.exact + error)} from ${n} action${n > 1 ? "s" : ""}, error ${signed(error)} (8 of 10 draws: ${signed(now.low)} to ${signed(now.high)}). Sum over 16 codes: ${fixed(total)}, error 0.`;
  $("count-text").textContent = n;
  $("count").setAttribute("aria-valuetext", `${n} actions`);
}

function drawAgain(keep) {
  if (keep) state.tries = [...state.tries.slice(-80), [state.drawn.length, errorOfDraw()]];
  drawActions();
  changed();
}

// --- an episode ---
let last = 0, debt = 0;

function play() {
  if (state.playing) return stop();
  if (state.steps >= EPISODE || state.steps === 0) {
    Object.assign(state, { steps: 0, total: 0 });
    state.trails = [...state.trails.slice(-4), [point(state.obs)]];
  }
  state.playing = true;
  [last, debt] = [performance.now(), 0];
  requestAnimationFrame(advance);
  changed();
}

function stop() {
  state.playing = false;
  changed();
}

function advance(now) {
  if (!state.playing) return;
  debt += Math.min(now - last, 100) * 0.1 * state.speed; // 100 steps a second
  last = now;
  for (; debt >= 1 && state.steps < EPISODE; debt--) if (!state.dragging) oneStep();
  if (state.steps >= EPISODE) state.playing = false;
  else requestAnimationFrame(advance);
  changed();
}

function oneStep() {
  state.obs = step(state.obs, act(state.method, strength(), state.acting, state.obs, Math.random()).action);
  state.steps += 1;
  state.total += reward(state.obs);
  if (state.steps % 3 === 0) state.trails.at(-1).push(point(state.obs));
}

function renderEpisode() {
  $("play").textContent = state.playing ? "Stop" : "Play";
  const over = state.steps >= EPISODE ? `; the episode is over, score ${fixed((100 * state.total) / EXPLORE.expert, 1)}` : "";
  $("progress").textContent = `Step ${state.steps} of ${EPISODE}, reward so far ${state.total} (1 per step at the goal; the data's mean is ${EXPLORE.expert})${over}.`;
}

function score() {
  const returns = [], { method, acting } = state, value = strength();
  const name = `${method.replace("_", "-").toUpperCase()}${value === null ? "" : `, ${$("strength-text").textContent}`}`;
  $("score").disabled = true;
  (function next() {
    returns.push(playEpisode(method, value, acting));
    const percent = (100 * sum(returns)) / returns.length / EXPLORE.expert, over = returns.length === 20;
    $("scored").textContent = over ? `${name}: score ${fixed(percent, 1)} over 20 episodes.` : `${returns.length} of 20 episodes …`;
    $("score").disabled = !over;
    if (!over) setTimeout(next);
  })();
}

// --- when to draw what ---
let waiting = false;

function changed() {
  if (!waiting) requestAnimationFrame(render);
  waiting = true;
}

function onScreen(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > -200 && top < innerHeight + 200;
}

function render() {
  waiting = false;
  renderWorld();
  renderEpisode();
  renderMethod();
  if (onScreen($("codes"))) renderCodes();
  if (onScreen($("policy"))) renderPolicy();
  if (onScreen($("integral"))) renderIntegral();
}

function listCodes() {
  const before = state.one;
  state.one = before !== null && before < state.size ? before : null;
  $("one").innerHTML = `<option value="">all</option>${Array.from({ length: state.size }, (_, k) => `<option>${k}</option>`).join("")}`;
  $("one").value = state.one ?? "";
}

function begin() {
  drawMaze();
  listCodes();
  drawActions();
  draggable($("ball"), $("maze"), (y, x) => moveTo(y - MIDDLE, x - MIDDLE));
  draggable($("velocity"), $("velocity"), (y, x) => setVelocity(5 * y, 5 * x));
  arrowKeys($("ball"), (down, right) => moveTo(state.obs[0] + 0.1 * down, state.obs[1] + 0.1 * right));
  arrowKeys($("velocity"), (down, right) => setVelocity(state.obs[2] + 0.25 * down, state.obs[3] + 0.25 * right));
  for (const button of document.querySelectorAll("[data-state]")) {
    button.addEventListener("click", () => {
      Object.assign(state, { obs: [...EXPLORE.states[button.dataset.state]], steps: 0, total: 0, playing: false });
      changed();
    });
  }
  const onRadio = (name, set) => document.querySelectorAll(`[name=${name}]`).forEach((radio) =>
    radio.addEventListener("change", () => (set(radio.value), changed())));
  onRadio("size", (value) => ((state.size = Number(value)), listCodes()));
  onRadio("method", (value) => (state.method = value));
  onRadio("acting", (value) => (state.acting = value));
  onRadio("speed", (value) => (state.speed = Number(value)));
  for (const name of ["hidden", "printed"]) $(name).addEventListener("change", () => ((state[name] = $(name).checked), changed()));
  $("one").addEventListener("change", () => ((state.one = $("one").value === "" ? null : Number($("one").value)), changed()));
  $("follow").addEventListener("change", () => moveTo(state.obs[0], state.obs[1]));
  $("strength").addEventListener("input", () => {
    const value = Number($("strength").value);
    if (state.method === "saq_iql") state.exponent = value;
    else state.notch[state.method] = value;
    changed();
  });
  $("count").addEventListener("input", () => drawAgain(false));
  $("draw").addEventListener("click", () => drawAgain(true));
  $("drawn").addEventListener("click", () => drawAgain(true));
  $("play").addEventListener("click", play);
  $("score").addEventListener("click", score);
  for (const event of ["scroll", "resize"]) addEventListener(event, changed, { passive: true });
  dark.addEventListener("change", () => ((heat.of = null), changed()));
  changed();
}

begin();
