"""Weights that people have, as model folders that `open_clip.create_model('local-dir:DIR')` loads.

`kinds` lists the checkpoints that are known, `names` says what their tensors are called here, `dual_encoders` and
`image_towers` make the folders. `import_weights(KIND, FILE, OUT)` does it by the name of a kind.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "folders.imports.dual_encoders": ["import_dual_encoder"],
        "folders.imports.image_towers": ["import_image_tower"],
        "folders.imports.kinds": ["KINDS", "Kind", "import_weights"],
        "folders.imports.public_weights": ["PublicWeights", "list_public_weights"],
        "folders.imports.result": ["Imported"],
    },
)
