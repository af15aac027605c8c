"""A model put to work: `inputs` finds the images, `answers` asks the model of them, `output` writes what it says."""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "predict.answers": ["Answer", "Predictor"],
        "predict.inputs": ["Input", "find_inputs"],
    },
)
