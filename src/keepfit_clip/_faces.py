"""The faces of packages: the names that people import, each taken from its module when it is first asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

__all__ = ["face"]


def face(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable, list[str]]:
    """`__getattr__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        names: module, below keepfit_clip -> its names that the package shows.
    """
    module_of = {name: f"keepfit_clip.{module}" for module, shown in names.items() for name in shown}

    def get(name: str):
        if name in module_of:
            return getattr(import_module(module_of[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, sorted(module_of)
