"""From labelled pictures to training batches: tables, images, shards and the stream."""

from importlib import import_module

# Name -> module. Loaded on first use: reading a table needs no torch.
_LAZY = {
    "Caption": "keepfit_clip.data.records",
    "MixedStream": "keepfit_clip.data.stream.mixed",
    "Record": "keepfit_clip.data.records",
    "ShardOptions": "keepfit_clip.data.shards.options",
    "SourceOptions": "keepfit_clip.data.sources",
    "StreamOptions": "keepfit_clip.data.stream.mixed",
    "build_shards": "keepfit_clip.data.shards.build",
    "list_shards": "keepfit_clip.data.tars.reader",
    "open_image": "keepfit_clip.images.reading",
    "read_records": "keepfit_clip.data.sources",
    "read_shards": "keepfit_clip.data.tars.reader",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
