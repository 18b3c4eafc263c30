"""The pages of this repository as a site, made by Sphinx from the same Markdown that GitHub shows.

    pip install -r docs/requirements.txt
    sphinx-build -W --keep-going -c docs . build/site

Then open build/site/index.html: nothing is loaded from the network. -W makes every warning an error: a broken
link, a missing anchor, a page that no list below names, a formula that does not parse. Links to source files
open a copy within the site; with -D repository=URL (https://github.com/NAME/saq/blob/main) they go there.
"""

import json
import re
import shutil
from logging import getLogger
from pathlib import Path

import ziamath  # for its font
from docutils import nodes
from fontTools import subset
from math_core import LatexError, LatexToMathML
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.util import logging

BOOK = "idea quantizer saq_bc saq_cql saq_iql saq_brac walkthrough exercises"
REFERENCE = "running metrics settings data baselines results"
CONTENTS = {
    "The book": [f"docs/{page}" for page in BOOK.split()],
    "Reference": [f"docs/{page}" for page in REFERENCE.split()],
    "Appendix": ["docs/notes/README", "results/README", "results/tables", "CONTRIBUTING"],
}

project = "SAQ"
html_title = "SAQ"
root_doc = "README"
include_patterns = ["*.md", "results/*.md", "docs/*.md", "docs/*.ipynb", "docs/notes/*.md"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
extensions = ["myst_parser"]
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# Markdown as GitHub reads it: $formulas$, ```math blocks, anchors of headings; nothing that only MyST knows.
myst_enable_extensions = ["dollarmath", "html_image"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_disable_syntax = ["myst_role", "myst_target", "myst_block_break", "myst_line_comment"]

# Letters, Greek, arrows, operators, brackets and their pieces; bold, italic, script, double-struck.
FONT_RANGES = """20-7e a0-ff 2b0-36f 370-3ff 2010-2044 20d0-20ff 2100-214f 2190-22ff 2308-230b 2329-232a
    239b-23e1 27e6-27ef 1d400-1d467 1d49c-1d4cf 1d538-1d56b 1d6e2-1d71b 1d7ce-1d7d7"""
ROOT = Path(__file__).resolve().parents[1]
logger = logging.getLogger(__name__)
latex = LatexToMathML()
source_files = set()  # that a page links to


# --- pages: the home page and the notes get their lists, a notebook becomes Markdown ---
def toctree(pages, option=""):
    return "\n".join(["", "```{toctree}", ":hidden:", option, "", *(f"/{page}" for page in pages), "```", ""])


def read_page(app, page, source):
    if Path(app.env.doc2path(page)).suffix == ".ipynb":
        source[0] = "\n\n".join(cell_markdown(cell) for cell in json.loads(source[0])["cells"])
    if page == "README":
        source[0] += "".join(toctree(pages, f":caption: {name}") for name, pages in CONTENTS.items())
    if page == "docs/notes/README":
        source[0] += toctree(["docs/notes/*"], ":glob:")


def cell_markdown(cell):
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    return "\n\n".join([fenced("python", text), *map(output_markdown, cell["outputs"])])


def output_markdown(output):
    if output["output_type"] == "error":
        raise ValueError(f"the notebook is stored with an error: {output['ename']}: {output['evalue']}")
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Output of the code above](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "<video" in "".join(data.get("text/html", "")):
        return "".join(data["text/html"])
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f'<div class="output">\n\n{fenced("text", text)}\n\n</div>'


def keep_numbers_together(app, document):
    """In a table, a line must not end within 10.0 ± 1.4 or (−2.8 to +2.4)."""
    for cell in document.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            joined = re.sub(r"(?<=\d) (±|to) (?=[+−]?\d)", "\u00a0\\1\u00a0", text.astext())
            text.parent.replace(text, nodes.Text(joined))


def fenced(language, text):
    return f"````{language}\n{text.rstrip()}\n````"


# --- links to source files and folders: to a page with their text, or to the repository ---
def find_source_links(app, document):
    """Without this, Sphinx offers the files as downloads and knows no folders."""
    unknown = [link for link in document.findall(addnodes.pending_xref) if link["refdomain"] is None]
    for link in [*document.findall(addnodes.download_reference), *unknown]:
        path = (ROOT / app.env.docname).parent.joinpath(link["reftarget"]).resolve()
        if path.exists() and path.is_relative_to(ROOT) and path.suffix not in source_suffix:
            name = str(path.relative_to(ROOT))
            link.replace_self(nodes.reference("", "", *link.children, refuri=name, source_file=name))


def resolve_source_links(app, document, page):
    for link in document.findall(nodes.reference):
        if "source_file" not in link:
            continue
        name = link["source_file"]
        if not name.endswith(".html"):
            source_files.add(name)
        if name.endswith(".html"):  # copied as it is
            link["refuri"] = app.builder.get_relative_uri(page, name.removesuffix(".html"))
        elif app.config.repository:
            link["refuri"] = f"{app.config.repository.rstrip('/')}/{name}"
        else:
            link["refuri"] = app.builder.get_relative_uri(page, f"source/{name}")


def source_pages(app):
    if app.config.repository:
        return
    folders = {name: sorted((ROOT / name).glob("*.py")) for name in source_files if (ROOT / name).is_dir()}
    files = (source_files - folders.keys()) | {
        str(p.relative_to(ROOT)) for ps in folders.values() for p in ps
    }
    for name, paths in folders.items():
        links = [f'<li><a href="{Path(name).name}/{path.name}.html">{path.name}</a></li>' for path in paths]
        yield (
            f"source/{name}",
            {"title": name, "body": f"<h1>{name}</h1><ul>{''.join(links)}</ul>"},
            "page.html",
        )
    for name in sorted(files):
        try:
            lexer = get_lexer_for_filename(name)
        except ClassNotFound:
            lexer = TextLexer()
        code = highlight((ROOT / name).read_text(), lexer, HtmlFormatter(linenos="inline"))
        yield (
            f"source/{name}",
            {"title": name, "body": f'<h1>{name}</h1><div class="source">{code}</div>'},
            "page.html",
        )


# --- formulas: MathML, made here and drawn by the browser, in a font that has what formulas need ---
def visit_math(self, node):
    display = isinstance(node, nodes.math_block)
    try:
        formula = latex.convert_with_local_state(node.astext(), displaystyle=display)
    except LatexError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node, type="math")
        formula = ""
    # What browsers draw badly: a \big) with an exponent wants a row of its own, bars and primes are small.
    formula = re.sub(r"(<m(?:sub|sup|subsup)>)(<mo [^>]*minsize.*?</mo>)", r"\1<mrow>\2</mrow>", formula)
    formula = formula.replace("¯", "‾")
    prime = "<mo lspace='0' rspace='0'>′</mo>"
    formula = re.sub("<msup>(<mi>.</mi>)<mo>′</mo></msup>", rf"<mrow>\1{prime}</mrow>", formula)
    self.body.append(f'<div class="math">{formula}</div>' if display else formula)
    raise nodes.SkipNode


def write_font(path):
    """STIX Two Math, less the characters that nobody needs here."""
    getLogger("fontTools").setLevel("WARNING")
    options = subset.Options(flavor="woff", layout_features=["ssty", "dtls", "flac"])
    font = subset.load_font(str(Path(ziamath.__file__).parent / "fonts/STIXTwoMath-Regular.ttf"), options)
    subsetter = subset.Subsetter(options)
    ranges = [[int(end, 16) for end in pair.split("-")] for pair in FONT_RANGES.split()]
    subsetter.populate(unicodes=[character for first, last in ranges for character in range(first, last + 1)])
    subsetter.subset(font)
    subset.save_font(font, str(path), options)


# --- files beside the pages: the font, the live page, and index.html for the home page, README.html ---
def write_files(app, error):
    if not error:
        write_font(Path(app.outdir, "_static/math.woff"))
        shutil.copytree(ROOT / "docs/explore", Path(app.outdir, "docs/explore"), dirs_exist_ok=True)
        head = '<title>SAQ</title><meta http-equiv="refresh" content="0; url=README.html">'
        page = f'<!doctype html><html><head>{head}</head><body><a href="README.html">SAQ</a></body></html>\n'
        Path(app.outdir, "index.html").write_text(page)


def setup(app):
    app.add_config_value("repository", "", "html")
    app.connect("source-read", read_page)
    app.connect("doctree-read", find_source_links, priority=100)  # before Sphinx collects downloads
    app.connect("doctree-read", keep_numbers_together)
    app.connect("doctree-resolved", resolve_source_links)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", write_files)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
