"""What somebody writes who uses the library, for `mypy` to look at: nothing here is run.

`assert_type` holds what editors and type checkers tell of the public names.
"""

import numpy as np
from typing_extensions import assert_type

import keepfit_clip
from keepfit_clip.explain.maps import Explanation
from keepfit_clip.folders.loaded import LoadedModel


def use() -> None:
    model = keepfit_clip.load_model("runs/model", device="cpu")
    assert_type(model, LoadedModel)
    assert_type(model.classify("eye.jpg", ["normal", "glaucoma"], "CFP"), dict[str, float] | list[dict[str, float]])
    assert_type(model.caption("eye.jpg", num_beams=3), str | list[str])
    assert_type(model.encode(["eye.jpg"]), np.ndarray)
    assert_type(model.explain("eye.jpg", ["normal", "glaucoma"], "CFP"), Explanation)
    assert_type(keepfit_clip.list_keepfit_models(), list[str])
    known = keepfit_clip.Knowledge.load()
    assert_type(known.canonical("NPDR"), str)
    assert_type(keepfit_clip.KeepFITFeatures("runs/model").transform(["eye.jpg"]), np.ndarray)
    assert_type(keepfit_clip.HybridLoss(contrastive_weight=1.0).contrastive_weight, float)
    try:
        keepfit_clip.allow_source("folder")
    except keepfit_clip.KeepFITError as error:
        assert_type(str(error), str)
