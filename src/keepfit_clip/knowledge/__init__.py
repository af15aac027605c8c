"""What is known of retinal conditions: `conditions` reads knowledge.json.

`templates` puts it into words, `mentions` finds it in somebody's words.
"""

from importlib import import_module

# Name -> module, loaded on first use.
_LAZY = {
    "Knowledge": "keepfit_clip.knowledge.conditions",
    "MODALITIES": "keepfit_clip.knowledge.conditions",
    "class_texts": "keepfit_clip.knowledge.templates",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
