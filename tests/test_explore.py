"""docs/explore/: what the page computes is what PyTorch and MuJoCo compute; every control does something.

The page runs in a headless Chromium driven by Playwright: apt-get install chromium, pip install playwright.
"""

import base64
import contextlib
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from common import ROOT, SAQ, SCRIPTS

import d4rl

PAGE = ROOT / "docs" / "explore"
POLICIES = ROOT / "results" / "policies"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REFERENCE = json.loads((PAGE / "reference.json").read_text())
TEXT = (PAGE / "weights.js").read_text()
WEIGHTS = json.loads(TEXT[TEXT.index("{") : TEXT.rindex(";")])
ENV_ID = "maze2d-large-demos-v0"


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


# --- what is committed ---
def test_size():
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.5e6
    assert sum(path.stat().st_size for path in POLICIES.rglob("*") if path.is_file()) < 1e6


def test_nothing_is_loaded_from_elsewhere():
    for path in PAGE.glob("*.*"):
        if path.name not in ("weights.js", "reference.json"):
            assert "http" not in path.read_text(), path.name


@pytest.mark.parametrize("script", SAQ)
def test_policies(script):
    """They load, reach the goal, and are the page's networks. After new Args: docs/make_explore.py again."""
    module = SCRIPTS[script]
    act = module.load(POLICIES / script)
    returns = d4rl.evaluate(ENV_ID, act, 3, seed=5)
    assert 100 * d4rl.get_normalized_score(ENV_ID, np.mean(returns)) > 80
    saved = torch.load(POLICIES / script / "checkpoint.pt", weights_only=True)
    learner, vqvae = (saved["stages"][stage]["model"] for stage in ("learner", "quantizer"))
    for name, alpha in (("saq_cql", 10), ("saq_brac", 3)):
        script = f"{script} {alpha}" if script == name else script
    nets = [name for name in WEIGHTS["nets"] if name.startswith(script + " ")]
    assert nets
    for name in nets:
        weight = learner[f"{name.split()[-1]}.4.weight"]
        assert np.array_equal(unpacked(WEIGHTS["nets"][name][2][0]), weight.numpy().ravel()), name
    assert np.array_equal(
        unpacked(WEIGHTS["quantizers"]["16"]["codebook"]), vqvae["codebook"].numpy().ravel()
    )


def test_policies_hold_nothing_of_the_machine():
    for script in SAQ:
        args = torch.load(POLICIES / script / "checkpoint.pt", weights_only=True)["args"]
        assert not any("/" in str(value) for value in args.values()), args


def test_a_policy_lends_its_quantizer(tmp_path):
    module = SCRIPTS["saq_bc"]
    flags = f"--quantizer-from {POLICIES / 'saq_bc'} --steps 2 --eval-episodes 1 --runs-dir {tmp_path}"
    with contextlib.redirect_stdout(None):
        module.main(module.parse_args(["--device", "cpu", *flags.split()]))
    (path,) = tmp_path.glob("*/checkpoint.pt")
    ours, theirs = (torch.load(p, weights_only=True) for p in (path, POLICIES / "saq_bc" / "checkpoint.pt"))
    for name, value in theirs["stages"]["quantizer"]["model"].items():
        assert torch.equal(ours["stages"]["quantizer"]["model"][name], value)


@pytest.mark.slow
def test_the_same_from_the_same_seed(tmp_path, monkeypatch):
    """With fewer updates docs/make_explore.py writes the same bytes twice, as many as are committed."""
    sys.path.insert(0, str(ROOT / "docs"))
    import make_explore

    small = make_explore.SMALL.replace("4000", "20") + " --eval-episodes 1"
    monkeypatch.setattr(make_explore, "SMALL", small)
    monkeypatch.setattr(make_explore, "QUANTIZER", "--vqvae-hidden-dim 64 --vqvae-steps 20")
    names = ["docs/explore/weights.js", "docs/explore/reference.json"]
    names += [f"results/policies/{script}/checkpoint.pt" for script in SAQ]
    for folder in ("first", "second"):
        make_explore.make(tmp_path / folder)
    for name in names:
        ours = (tmp_path / "first" / name).read_bytes()
        assert ours == (tmp_path / "second" / name).read_bytes(), name
        assert abs(len(ours) / (ROOT / name).stat().st_size - 1) < 0.1, name


# --- in the browser ---
@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """The page, opened from disk; a message on its console fails the test."""
    width, height, scheme = getattr(request, "param", (1280, 2300, "light"))
    viewport = {"width": width, "height": height}
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda one: one.url.startswith(("file:", "data:")) or said.append(one.url))
    page.goto((PAGE / "index.html").as_uri())
    settle(page)
    yield page
    assert not said
    page.context.close()


def settle(page):
    """Until everything is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def picture(page, name: str) -> str:
    settle(page)
    return page.inner_html(f"#{name}")


def heights(page, name: str) -> list[float]:
    """Of the bars, in % of the picture."""
    settle(page)
    script = "all => all.map(bar => parseFloat(bar.getAttribute('height')))"
    return page.eval_on_selector_all(f"#{name} rect", script)


def slide(page, name: str, value):
    script = "([name, value]) => { $(name).value = value; $(name).dispatchEvent(new Event('input')); }"
    page.evaluate(script, [name, value])
    settle(page)


def assert_close(ours, reference, name):
    assert len(ours) == len(reference) == 100
    assert np.abs(np.array(ours) - np.array(reference)).max() < 1e-4, name


def test_decoded_actions_equal_pytorch(page):
    script = """([states, name]) => states.map((obs, i) => {
        const actions = decode(QUANTIZERS[name], obs);
        return actions[i % actions.length];
    })"""
    assert len(REFERENCE["decoded"]) == 16
    for name, reference in REFERENCE["decoded"].items():
        assert_close(page.evaluate(script, [REFERENCE["states"], name]), reference, name)


def test_policies_equal_pytorch(page):
    script = """([states, method, strength, part]) => states.map((obs, i) =>
        logPolicy(method, strength, obs)[part][i % 16])"""

    def of(method, strength, part="logPi"):
        return page.evaluate(script, [REFERENCE["states"], method, strength, part])

    assert len(REFERENCE["log_policy"]) == 14
    for name, reference in REFERENCE["log_policy"].items():
        method, strength = (name.split() + [0])[:2]
        assert_close(of(method, float(strength)), reference, name)
    assert_close(of("saq_iql", 3, "logBehaviour"), REFERENCE["log_behaviour"], "log_behaviour")
    assert_close(of("saq_iql", 3, "advantage"), REFERENCE["advantage"], "advantage")
    assert_close(of("saq_brac", 3, "logBehaviour"), REFERENCE["brac_behaviour"], "brac_behaviour")


def test_sums_and_integrals_equal_pytorch(page):
    states = REFERENCE["states"]
    script = "(states) => states.map(obs => logsumexp(logPolicy('saq_cql', 10, obs).q))"
    assert_close(page.evaluate(script, states), REFERENCE["exact_sum"], "exact_sum")
    script = "(states) => states.map(obs => logIntegral(actionValues(obs)))"
    assert_close(page.evaluate(script, states), REFERENCE["exact_integral"], "exact_integral")


def test_the_estimate_tends_to_the_integral(page):
    script = """(obs) => {
        const x = standardise(obs), exact = logIntegral(actionValues(obs));
        const draw = () => actionValue(x, [2 * Math.random() - 1, 2 * Math.random() - 1]);
        return estimate(Array.from({length: 20000}, draw)) - exact;
    }"""
    assert abs(page.evaluate(script, WEIGHTS["states"]["A"])) < 0.1


def test_shares_of_the_codes(page):
    """measure_quantizer, on the codes that the page has; with the loss as printed, codes are lost."""
    for name, quantizer in WEIGHTS["quantizers"].items():
        codes = np.frombuffer(base64.b64decode(quantizer["codes"]), "u1")
        size = int(name.split()[0])
        share = np.bincount(codes, minlength=size) / len(codes)
        measured = page.evaluate("(name) => measureQuantizer(QUANTIZERS[name])", name)
        assert np.allclose(measured["share"], share)
        entropy = -sum(p * np.log(p) for p in share if p > 0)
        assert measured["perplexity"] == pytest.approx(np.exp(entropy))
        assert measured["used"] == (share > 0).sum()
        assert (measured["used"] < 0.7 * size) == ("printed" in name), name


def test_the_ball_rolls_as_in_mujoco(page):
    """Against walls and around corners too, for as long as chance does not take over."""
    env, rng = d4rl.make(ENV_ID).unwrapped, np.random.default_rng(0)
    touched = 0
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        first, actions, states = obs.tolist(), [], []
        for t in range(120):
            if t % 30 == 0:
                action = rng.uniform(-1.2, 1.2, 2)
            actions.append(action.tolist())
            obs, reward, *_ = env.step(action)
            states.append([*obs.tolist(), reward])
            touched += bool(env.ball.data.ncon)
        script = """([obs, actions]) => actions.map(action => {
            obs = step(obs, action);
            return [...obs, reward(obs)];
        })"""
        ours = page.evaluate(script, [first, actions])
        assert np.abs(np.array(ours) - states).max() < 1e-6
    assert touched > 50
    near = [[7.0, 8.6, 0, 0], [7.3, 9.3, 0, 0], [7.4, 9.4, 0, 0]]
    assert page.evaluate("(near) => near.map(reward)", near) == [1, 1, 0]


def test_acting(page):
    """The code that `uniform` draws, the likeliest, the mean: as make_act."""
    for acting in ("sample", "greedy", "mean"):
        act = SCRIPTS["saq_iql"].load(POLICIES / "saq_iql", acting=acting)
        obs, uniform = np.array(REFERENCE["states"]), np.linspace(0, 0.999, 100)
        script = """([states, acting, uniform]) => states.map((obs, i) =>
            act("saq_iql", 3, acting, obs, uniform[i]).action.map(x => clip(x, -1, 1)))"""
        ours = np.array(page.evaluate(script, [obs.tolist(), acting, uniform.tolist()]))
        different = np.abs(ours - act(obs, uniform)).max(1) > 1e-4
        assert different.sum() <= (1 if acting == "sample" else 0)  # a draw may fall upon a border


def test_scores_equal_mujocos(page):
    score = page.evaluate("() => [...Array(5)].map(() => playEpisode('saq_iql', 3, 'sample'))")
    assert abs(100 * np.mean(score) / 440 - WEIGHTS["scores"]["saq_iql"]) < 15


def test_the_state_moves_the_arrows_unless_it_is_hidden(page):
    page.click("[data-state=A]")
    a = picture(page, "arrows")
    page.click("[data-state=B]")
    assert picture(page, "arrows") != a

    def paths():
        settle(page)
        return page.eval_on_selector_all("#arrows path", "all => all.map(path => path.getAttribute('d'))")

    page.check("#hidden")
    b = paths()
    page.click("[data-state=A]")
    assert paths() == b
    page.uncheck("#hidden")
    assert paths() != b


def test_the_loss_as_printed_loses_codes(page):
    used = page.inner_text("#used")
    assert used.startswith("16 of 16")
    page.check("#printed")
    settle(page)
    assert int(page.inner_text("#used").split()[0]) < 11


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_sizes(page, size):
    page.check(f"[name=size][value='{size}']")
    settle(page)
    assert page.locator("#arrows path").count() == size
    assert page.locator("#one option").count() == size + 1
    before = picture(page, "arrows")
    page.select_option("#one", "2")
    assert picture(page, "arrows") != before


def test_limits_of_lambda(page):
    slide(page, "strength", 5)
    assert "This is behaviour cloning" in page.inner_text("#limit")
    assert heights(page, "pi") == pytest.approx(heights(page, "behaviour"), abs=0.2)
    slide(page, "strength", -4)
    assert "This is the argmax of Q" in page.inner_text("#limit")
    most = heights(page, "pi")
    assert max(most) > 99 and sum(most) < 101
    assert np.argmax(most) == page.evaluate("argmax(logPolicy('saq_iql', 1, state.obs).q)")


@pytest.mark.parametrize("method", ["saq_cql", "saq_brac"])
def test_notches_of_alpha(page, method):
    page.check(f"[name=method][value={method}]")
    settle(page)
    texts, bars = set(), set()
    for notch in range(5):
        slide(page, "strength", notch)
        texts.add(page.inner_text("#strength-text"))
        bars.add(picture(page, "pi"))
        assert page.locator("#pi line.tick").count() == (16 if method == "saq_brac" else 0)
    assert len(texts) == len(bars) == 5
    page.check("[name=method][value=saq_bc]")
    settle(page)
    assert not page.is_visible("#strength") and "no Q" in page.text_content("#advantage")
    assert heights(page, "pi") == heights(page, "behaviour")


def test_samples(page):
    one = picture(page, "drawn")
    for where in ("#draw", "#drawn"):
        page.click(where)
        assert picture(page, "drawn") != one
    assert page.locator("#errors .tried").count() == 3
    slide(page, "count", 3)
    assert page.inner_text("#count-text") == "1000" and page.locator("#drawn circle").count() == 1000
    slide(page, "count", 0)
    assert page.locator("#drawn circle").count() == 1
    assert "error 0." in page.inner_text("#estimate")


def test_an_episode(page):
    page.check("[name=speed][value='4']")
    for acting in ("greedy", "mean", "sample"):
        page.check(f"[name=acting][value={acting}]")
    page.click("[data-state=start]")
    page.click("#play")
    page.wait_for_function("() => state.steps > 100", timeout=60_000)
    assert page.inner_text("#play") == "Stop"
    page.wait_for_function("() => state.steps === 800", timeout=120_000)
    settle(page)
    assert "the episode is over" in page.inner_text("#progress") and page.inner_text("#play") == "Play"
    assert page.evaluate("state.total") > 300
    page.click("#play")  # another one, from where the ball is
    page.wait_for_function("() => state.steps > 20 && state.steps < 800", timeout=60_000)
    page.click("#play")
    assert page.evaluate("state.trails.length") == 2


def test_the_score_of_twenty_episodes(page):
    page.check("[name=method][value=saq_bc]")
    page.click("#score")
    page.wait_for_selector("#scored:has-text('SAQ-BC: score')", timeout=120_000)
    assert float(page.inner_text("#scored").split("score ")[1].split()[0]) > 80


def test_dragging(page):
    """The ball follows the pointer and stays between the walls; the velocity follows the data or the dial."""
    maze = page.locator("#maze").bounding_box()
    cell = maze["width"] / 12
    x, y = (
        maze["x"] + cell * (WEIGHTS["states"]["A"][1] + 0.7),
        maze["y"] + cell * (WEIGHTS["states"]["A"][0] + 0.7),
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(maze["x"] + cell * 5.5, maze["y"] + cell * 3.5, steps=5)
    assert page.evaluate("state.obs.slice(0, 2)") == pytest.approx([2.8, 4.8], abs=0.05)
    velocity = page.evaluate("state.obs.slice(2)")
    page.mouse.move(maze["x"] + cell * 5.5, maze["y"] + cell * 0.2, steps=5)  # into a wall
    page.mouse.up()
    row, column = page.evaluate("state.obs.slice(0, 2)")
    cells = np.array([list(map(int, line)) for line in WEIGHTS["walls"]])
    assert cells[round(row + 0.2), round(column + 0.2)] == 0
    assert page.evaluate("state.obs.slice(2)") != velocity
    dial = page.locator("#velocity").bounding_box()
    page.mouse.click(dial["x"] + dial["width"] / 2, dial["y"] + dial["height"] * 0.7)
    down, right = page.evaluate("state.obs.slice(2)")
    assert down > 1 and abs(right) < 0.1 and not page.is_checked("#follow")
    page.check("#follow")
    assert page.evaluate("state.obs.slice(2)") != [down, right]


def test_keyboard_alone(page):
    """Tab reaches every control, in the order of the page; keys move them all."""
    wanted = page.eval_on_selector_all(
        "#ball, #velocity, button, select, input:not([type=radio])",
        "all => all.map(one => one.id || one.dataset.state)",
    )
    groups = {"size", "method", "acting", "speed"}
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(({id, dataset, name}) => id || dataset.state || name || '')(document.activeElement)"
        )
        if name in seen:
            break
        seen.append(name)
    assert set(wanted) | groups <= set(seen), set(wanted) - set(seen)
    for name, key, index, sign in (
        ("ball", "ArrowRight", 1, 1),
        ("ball", "ArrowLeft", 1, -1),
        ("ball", "ArrowDown", 0, 1),
        ("ball", "ArrowUp", 0, -1),
        ("velocity", "ArrowRight", 3, 1),
        ("velocity", "ArrowLeft", 3, -1),
        ("velocity", "ArrowDown", 2, 1),
        ("velocity", "ArrowUp", 2, -1),
    ):
        page.evaluate("() => { state.obs = [2.8, 4.8, 0, 0]; }")
        page.focus(f"#{name}")
        page.keyboard.press(key)
        assert (page.evaluate("state.obs")[index] - (2.8, 4.8, 0, 0)[index]) * sign > 0.05, (name, key)
    page.evaluate("() => { state.obs = [2.8, 4.8, 0, 0]; }")
    for name, key, script in (
        ("#strength", "ArrowRight", "strength()"),
        ("#count", "ArrowRight", "count()"),
        ("#hidden", "Space", "state.hidden"),
        ("#printed", "Space", "state.printed"),
        ("#follow", "Space", "$('follow').checked"),
        ("[name=size]:checked", "ArrowRight", "state.size"),
        ("[name=method]:checked", "ArrowRight", "state.method"),
        ("[name=acting]:checked", "ArrowRight", "state.acting"),
        ("[name=speed]:checked", "ArrowRight", "state.speed"),
        ("#one", "ArrowDown", "state.one"),
        ("#draw", "Enter", "state.tries.length"),
        ("[data-state=B]", "Enter", "state.obs[1]"),
        ("#play", "Enter", "state.playing"),
    ):
        before = page.evaluate(script)
        page.focus(name)
        page.keyboard.press(key)
        settle(page)
        assert page.evaluate(script) != before, name


@pytest.mark.parametrize(
    "page", [(390, 844, "light"), (390, 844, "dark"), (1280, 900, "dark")], indirect=True
)
def test_screens(page):
    """Nothing sticks out to the side, no text is cut, and all panels are drawn on the way down."""
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in ("codes", "policy", "integral", "episode"):
        page.evaluate("name => $(name).scrollIntoView()", name)
        settle(page)
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    for name in ("arrows", "usage", "behaviour", "advantage", "pi", "weighted", "drawn", "errors", "terms"):
        assert page.inner_html(f"#{name}").strip(), name
    world = page.locator("#world").bounding_box()
    assert world["y"] >= -1  # it stays in sight, and leaves room
    assert world["height"] < page.viewport_size["height"] * (0.36 if width < 900 else 0.9)


def test_every_panel_names_what_the_scripts_call_it(page):
    """Two sentences and the names of functions that exist."""
    sources = "".join(path.read_text() for path in [ROOT / "vqvae.py", *ROOT.glob("saq_*.py")])
    sources += (ROOT / "d4rl" / "environments.py").read_text() + (ROOT / "baselines" / "cql.py").read_text()
    for method in ("saq_bc", "saq_cql", "saq_iql", "saq_brac"):
        page.check(f"[name=method][value={method}]")
        settle(page)
        for panel in page.query_selector_all("#panels > section"):
            text = panel.query_selector("p").inner_text()
            names = [code.inner_text() for code in panel.query_selector_all(".source code")]
            text = text.split(names[0])[0].strip()
            assert len(text.split(". ")) + text.count("? ") == 2, text
            for name in names:
                assert name.endswith(".py") or f"def {name.split('.')[-1]}(" in sources, name
