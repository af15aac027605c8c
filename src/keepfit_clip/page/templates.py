"""HTML templates, filled in; everything is escaped but what a template marks as safe."""

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

__all__ = ["render_template", "template"]


_HERE = Path(__file__).parent


def render_template(name: str, **values) -> str:
    """A page as HTML.

    Args:
        name: of a template's file in this folder.
        **values: what it names; a name without a value is an error.
    """
    return template(_HERE, name).render(**values)


@lru_cache
def template(folder: Path, name: str) -> Template:
    """A template of a folder, read once."""
    loader = FileSystemLoader(folder)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(name)
