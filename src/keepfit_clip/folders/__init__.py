"""A model as files: `model_folder` says what a folder of one holds, `loading` makes it ready for use.

`export` brings a run there, `convert` others' weights, `hub` a repository.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "LoadedModel": "keepfit_clip.folders.loading",
    "export_model": "keepfit_clip.folders.export",
    "load_model": "keepfit_clip.folders.loading",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
