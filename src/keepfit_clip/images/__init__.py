"""From an encoded image of any kind to upright 8-bit RGB: `reading`, with one rule of `depth`, and pages of `tiff`.

`volumes` are files of several pictures: DICOM (`dicom`) and OCT vendors' own (`heidelberg`, `topcon`).
`field_of_view` finds the retina in a picture, `metadata` takes everything but the pixels away.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "images.reading": ["open_image"],
    },
)
