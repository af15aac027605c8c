"""The HTML templates of this folder, filled in; everything is escaped but what a template marks as safe."""

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["render_template"]


def render_template(name: str, **values) -> str:
    """A page as HTML.

    Args:
        name: of the template's file.
        **values: what it names; a name without a value is an error.
    """
    return _environment().get_template(name).render(**values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
