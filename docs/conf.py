"""The site: `make docs` builds it into runs/docs, and fails at a warning."""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from subprocess import DEVNULL, run

import keepfit_clip
from keepfit_clip.folders.imports.public_weights import as_markdown

project = "keepfit_clip"
author = "the keepfit_clip authors"
release = version = keepfit_clip.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "keepfit_clip"
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
    for module in modules(keepfit_clip):
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
    app.connect("source-read", fill_in_modules)
    app.connect("source-read", fill_in_weights)
    app.connect("build-finished", write_knowledge)
