"""The site of docs/conf.py: it builds without a warning, links lead somewhere, formulas are drawn."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from common import ROOT

for package in ("sphinx", "myst_parser", "furo", "math_core", "ziamath"):
    pytest.importorskip(package, reason="the site needs pip install -r docs/requirements.txt")

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """A page's title, its links, what it loads, its anchors, and its text outside of code."""

    def __init__(self, path):
        super().__init__()
        self.title, self.text, self.open = "", "", []
        self.links, self.loads, self.ids = [], [], set()
        self.formulas = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.formulas += tag == "math"
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(attributes["href"])
        if "src" in attributes:
            self.loads.append(attributes["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "title" in self.open and "head" in self.open:
            self.title += data
        elif not {"pre", "code", "script", "style", "head"} & set(self.open):
            self.text += data


def build(folder, *options, root=ROOT):
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", *options, ".", str(folder)]
    return subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_page_is_there(site, pages):
    sources = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/*.ipynb")]
    for source in sources:
        assert site / source.relative_to(ROOT).with_suffix(".html") in pages
    for name in ("vqvae.py", "saq_bc.py", "saq_cql.py", "saq_iql.py", "saq_brac.py"):
        page = (site / "source" / f"{name}.html").read_text()
        assert "<pre" in page and name in page


def test_every_page_has_a_title(pages):
    assert all(len(page.title.strip()) > 1 for page in pages.values())


def test_every_link_leads_somewhere(site, pages):
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            to = (path.parent / unquote(target.path)).resolve() if target.path else path
            assert to.exists() and to.is_relative_to(site), f"{path.relative_to(site)}: {link}"
            if target.fragment and to in pages:
                assert unquote(target.fragment) in pages[to].ids, f"{path.relative_to(site)}: {link}"


def test_nothing_is_loaded_from_the_network(site, pages):
    for path, page in pages.items():
        outside = [name for name in page.loads if re.match(r"(https?:)?//", name)]
        assert not outside, f"{path.relative_to(site)}: {outside}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", path.read_text()), path.name
    assert (site / "_static/math.woff").stat().st_size > 100_000


def test_every_formula_is_drawn(site, pages):
    """Neither a TeX command nor a $ is left in the text, Markdown neither."""
    for path, page in pages.items():
        found = re.findall(r".{0,30}(?:\\[a-zA-Z]{2,}|\$|```|\]\(|\*\*).{0,30}", page.text)
        assert not found, f"{path.relative_to(site)}: {found}"
    for name in ("idea", "quantizer", "saq_bc", "saq_cql", "saq_iql", "saq_brac", "walkthrough"):
        source = next(ROOT.glob(f"docs/{name}.*")).read_text()
        assert pages[site / "docs" / f"{name}.html"].formulas > 0 or "$" not in source


def test_nothing_is_left_to_fill_in(site, pages):
    words = {
        path: re.findall(r"PLACEHOLDER|TODO|\b[A-Z]+_[A-Z]+\b", page.text) for path, page in pages.items()
    }
    found = {str(path.relative_to(site)): left for path, left in words.items() if left}
    assert not found


@pytest.fixture
def small(tmp_path):
    """A tree of two pages, with the site's settings."""
    (tmp_path / "docs").mkdir()
    for name in ("conf.py", "site.css"):
        (tmp_path / "docs" / name).write_text((ROOT / "docs" / name).read_text())
    (tmp_path / "README.md").write_text("# Home\n\n[settings](docs/conf.py)\n")
    text = "# Page\n\n[a](nowhere.md) [b](#nothing) [c](conf.py)\n\n```math\n\\frac{1\n```\n"
    (tmp_path / "docs" / "page.md").write_text(text)
    return tmp_path


def test_a_mistake_fails(small):
    """A broken link, a missing anchor, a formula that does not parse, a page that no list names."""
    result = build("site", root=small)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "page.md" in line]
    for words in ("nowhere.md", "'nothing'", "formula", "isn't included in any toctree"):
        assert any(words in line for line in said), (words, said)
    assert not any("conf.py" in line.split("WARNING")[-1] for line in said)


def test_links_to_the_repository(small):
    """With an address, source files are linked there and not copied."""
    build("site", "-D", "repository=https://example.org/saq/blob/main", root=small)
    assert "https://example.org/saq/blob/main/docs/conf.py" in Page(small / "site/README.html").links
    assert not (small / "site/source").exists()
