"""Shards as they are read: `locations` opens them wherever they lie.

`members` reads tars and `reader` the samples in them, both within limits.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "data.tars.reader": ["list_shards", "read_shards"],
    },
)
