"""Modules that moved still import by the names they had: `keepfit_clip.loading` is `keepfit_clip.folders.loading`."""

import sys
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder

__all__ = ["MOVED", "install"]

MOVED = {
    "caption_metrics": "evaluate.metrics.captions",
    "charts": "page.charts",
    "config": "model.config",
    "convert": "folders.imports",
    "data.batch": "data.stream.batch",
    "data.images": "images.reading",
    "data.inspection": "data.shards.inspection",
    "data.shard_reader": "data.tars.reader",
    "decoder": "model.decoder",
    "evaluation": "evaluate.table",
    "export": "folders.export",
    "folders.convert": "folders.imports",
    "hub": "folders.hub",
    "image_tower": "model.image_tower",
    "loading": "folders.loading",
    "loss": "model.loss",
    "mentions": "knowledge.mentions",
    "metrics": "evaluate.metrics.classification",
    "model_folder": "folders.model_folder",
    "preprocess": "model.preprocess",
    "report": "page.report",
    "retrieval": "evaluate.metrics.retrieval",
    "revision": "model.revision",
    "sklearn": "evaluate.sklearn",
    "state_dicts": "model.state_dicts",
    "templates": "knowledge.templates",
    "text_tower": "model.text_tower",
    "tokenization": "model.tokenization",
    "training.corpus": "training.text_stage.corpus",
    "training.evaluators": "training.hybrid.evaluators",
    "training.run_report": "training.report",
    "transfer.features": "evaluate.features",
    "transfer.pairs": "evaluate.pairs",
    "weights": "model.pretrained",
    "zero_shot": "model.zero_shot",
}
_PACKAGE = "keepfit_clip."


class _FormerNames(MetaPathFinder, Loader):
    """Finds a module by the name it had."""

    def find_spec(self, fullname, path=None, target=None):
        """Its specification, where it moved."""
        if fullname.startswith(_PACKAGE) and fullname.removeprefix(_PACKAGE) in MOVED:
            return util.spec_from_loader(fullname, self)
        return None

    def create_module(self, spec):
        """Leaves it to Python: the module is given away at once."""

    def exec_module(self, module):
        """Puts the very module that stands under its new name in its place."""
        sys.modules[module.__name__] = import_module(_PACKAGE + MOVED[module.__name__.removeprefix(_PACKAGE)])


def install() -> None:
    """Lets the former names be found; calling it again changes nothing."""
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(_FormerNames())
