"""From shards to batches: `mixed` draws samples of both kinds, `sampling` says which.

`decoding` and `augment` make pixels, `batch` makes tensors.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "data.stream.mixed": ["MixedStream", "StreamOptions", "draw_sample", "usable_captions"],
    },
)
