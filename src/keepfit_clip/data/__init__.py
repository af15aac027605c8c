"""From labelled pictures to training batches: tables, images, shards and the stream."""

from importlib import import_module

# Name -> module. Loaded on first use: reading a table needs no torch.
_LAZY = {
    "MixedStream": "keepfit_clip.data.stream",
    "Caption": "keepfit_clip.data.records",
    "Record": "keepfit_clip.data.records",
    "SourceOptions": "keepfit_clip.data.sources",
    "ShardOptions": "keepfit_clip.data.shards",
    "StreamOptions": "keepfit_clip.data.stream",
    "build_shards": "keepfit_clip.data.shards",
    "list_shards": "keepfit_clip.data.shard_reader",
    "open_image": "keepfit_clip.data.images",
    "read_records": "keepfit_clip.data.sources",
    "read_shards": "keepfit_clip.data.shard_reader",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
