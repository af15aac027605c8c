"""A model as files: `model_folder` says what a folder of one holds, `loading` makes it ready for use,
by its name, and `loaded` says what it then does.

`export` brings a run there, `imports` others' weights, `hub` a repository.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "folders.export": ["export_model"],
        "folders.loaded": ["LoadedModel"],
        "folders.loading": ["load_model"],
    },
)
