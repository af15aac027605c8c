"""From labelled pictures to training batches: tables, images, shards and the stream."""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "data.description": ["Description"],
        "data.records": ["Caption", "LeftOut", "Record"],
        "data.shards.build": ["build_shards"],
        "data.shards.options": ["ShardOptions"],
        "data.sources": ["SourceOptions", "read_records"],
        "data.stream.mixed": ["MixedStream", "StreamOptions"],
        "data.tars.reader": ["list_shards", "read_shards"],
        "images.reading": ["open_image"],
    },
)
