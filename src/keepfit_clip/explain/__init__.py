"""Where a model looks: `maps` of similarity, Grad-CAM and attention, and the `report` of them."""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "explain.maps": [
            "Explainer",
            "Explanation",
            "WordMap",
            "grad_cam",
            "heat_overlay",
            "similarity_maps",
            "tower_view",
            "word_maps",
            "words_of_tokens",
        ],
    },
)
