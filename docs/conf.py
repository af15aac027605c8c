"""The site: `make docs` builds it into runs/docs, and fails at a warning."""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from subprocess import DEVNULL, run

from docutils import nodes
from latex2mathml.converter import convert

import keepfit_clip
from keepfit_clip.folders.imports.public_weights import as_markdown

project = "keepfit_clip"
author = "the keepfit_clip authors"
release = version = keepfit_clip.__version__
extensions = [
    "myst_nb", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"
]  # fmt: skip
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # the tests run them
html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"keepfit_clip {version}"
html_extra_path = []
html_static_path = []
exclude_patterns = ["conf.py"]
suppress_warnings = ["myst.xref_missing"]  # links from the documents to files of the repository
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {
    "members": True,
    "show-inheritance": False,
    "exclude-members": "set_score_request",  # scikit-learn makes it up for every classifier
}
napoleon_google_docstring = True
napoleon_use_param = False  # "Args" names several arguments in a line here and there
napoleon_use_rtype = False


FIRST = ("keepfit_clip.folders.loading", "keepfit_clip.folders.loaded")  # what most people come for


def modules(package):
    """Names of a package's modules that have public names, those of each package together."""
    found = sorted(pkgutil.iter_modules(package.__path__, f"{package.__name__}."), key=lambda module: module.ispkg)
    for module in found:
        if module.name.rpartition(".")[2] in ("cli", "__main__"):  # the command line says itself what it can
            continue
        loaded = import_module(module.name)
        if getattr(loaded, "__all__", None) and not module.ispkg:
            yield module.name
        if module.ispkg:
            yield from modules(loaded)


def fill_in_modules(app, name, source):
    """Writes a section for each module into api.md."""
    if name != "api":
        return
    parts, room = [], None
    found = list(modules(keepfit_clip))
    for module in (*FIRST, *(name for name in found if name not in FIRST)):
        package = module.rpartition(".")[0]
        if package != room:
            parts.append(f"## {package}")
            room = package
        parts.append(f"### {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```")
    source[0] = source[0].replace("MODULES", "\n\n".join(parts))


def fill_in_weights(app, name, source):
    """Writes the table of public weights into weights.md, in the place of the comment that stands for it."""
    if name == "weights":
        source[0] = source[0].replace("<!-- table of public weights -->", as_markdown())


def write_inline_math(writer, node):
    """A formula as MathML, which browsers show without a script of anybody's."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_block_math(writer, node):
    """The same, in a paragraph of its own that scrolls where it is too wide."""
    formula = convert(node.astext(), display="block")
    writer.body.append(f'<div class="math" style="overflow-x: auto; padding: 0.5em 0">{formula}</div>')
    raise nodes.SkipNode


def write_knowledge(app, error):
    """Puts the page of the whole knowledge file beside the others."""
    if error is None and app.builder.name == "html":
        page = Path(app.outdir) / "knowledge.html"
        run(
            [sys.executable, "-m", "keepfit_clip", "knowledge", "report", "--out", str(page)],
            check=True,
            stdout=DEVNULL,
        )


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (write_inline_math, None), (write_block_math, None))
    app.connect("source-read", fill_in_modules)
    app.connect("source-read", fill_in_weights)
    app.connect("build-finished", write_knowledge)
