"""The site: `make docs` builds it into runs/docs, and fails at a warning."""

import keepfit_clip

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
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_use_param = False  # "Args" names several arguments in a line here and there
napoleon_use_rtype = False
