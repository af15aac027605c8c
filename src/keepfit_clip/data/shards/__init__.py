"""Shards as they are made and looked at: `build` makes a `plan`, then lets `writer` write.

`inspection` checks and counts, `statistics_page` shows the counts.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "data.description": ["DATA_SCHEMA", "KINDS"],
        "data.shards.build": ["build_shards"],
        "data.shards.options": ["ShardOptions"],
        "data.shards.report": ["ShardReport"],
    },
)
