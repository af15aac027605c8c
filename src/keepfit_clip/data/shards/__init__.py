"""Shards as they are made and looked at: `build` makes a `plan`, then lets `writer` write.

`inspection` checks and counts, `statistics_page` shows the counts.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "data.shards.build": ["build_shards"],
        "data.shards.options": ["KINDS", "ShardOptions", "ShardReport"],
        "data.shards.writer": ["DATA_SCHEMA"],
    },
)
