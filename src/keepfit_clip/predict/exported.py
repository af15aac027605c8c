"""A model, or one with a head, for programs without this library: ONNX, or a program of torch.export.

Both take preprocessed images (B, 3, H, W), B free, and give `features` (B, D), L2-normalised, or with a head
`probabilities` (B, K). What was written is run and compared with the model before it gets its name.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepfit_clip.errors import ConfigError, OutputError
from keepfit_clip.extras import require_extra
from keepfit_clip.files import write_json, writing
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.transfer.heads import Head

__all__ = ["export_program", "facts_path"]

_TOLERANCE = 1e-4
_CHECKED = 2  # images


class _Program(nn.Module):
    """From images to what is exported."""

    def __init__(self, loaded: LoadedModel, head: Head | None):
        super().__init__()
        self.tower = loaded.model.visual if head is None or not head.tower else head.tuned(loaded).tower
        self.several = head is not None and head.facts.several
        self.with_head = head is not None
        if head is not None:
            self.kind, self.temperature = type(head.classifier), head.facts.temperature
            for name, value in head.classifier.state().items():
                self.register_buffer(name, value.float() if value.is_floating_point() else value)

    def forward(self, images: Tensor) -> Tensor:
        encoding = self.tower.encode(images)
        features = F.normalize(encoding.features, dim=-1)
        if not self.with_head:
            return features
        classifier = self.kind.of_state(dict(self.named_buffers(recurse=False)))
        logits = classifier.program_logits(encoding.pooled, features) / self.temperature
        return logits.sigmoid() if self.several else logits.softmax(dim=-1)


def export_program(loaded: LoadedModel, out: str | Path, head: Head | None = None) -> float:
    """Writes the image tower, and a head where one is given, beside a JSON of what goes in and comes out.

    Args:
        loaded: the model.
        out: .onnx, or .pt2 for a program of `torch.export`.
        head: learnt with it.

    Returns:
        The largest difference between its output and the model's, of random images.

    Raises:
        ConfigError: another ending; or a head whose texts are worded by the modality, of several.
        MissingExtraError: ONNX is not installed.
        OutputError: something stands there already, or what was written computes something else.
    """
    out = Path(out)
    if out.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"--out {out}: its name must end in .onnx or .pt2")
    if out.exists():
        raise OutputError(f"{out} is there already: choose another name")
    if head is not None and len(head.facts.modalities) > 1 and head.facts.kind != "linear":
        raise ConfigError(
            "this head words its texts by the modality of an image, which an exported program is not told"
        )
    program = _Program(loaded, head).cpu().eval()
    size = loaded.model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(_CHECKED, 3, height, width, generator=torch.Generator().manual_seed(0))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".partial-{out.name}")
    with writing(out), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about their own ways
        expected = program(images).numpy()
        answer = (_write_onnx if out.suffix == ".onnx" else _write_torch)(program, images, partial)
    difference = float(np.abs(answer - expected).max())
    if not difference <= _TOLERANCE:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{out}: what was exported differs from the model by {difference:.2g}; nothing was kept")
    os.replace(partial, out)
    write_json(facts_path(out), _facts(loaded, head, (height, width)))
    return difference


def facts_path(out: Path) -> Path:
    """The JSON beside an exported program."""
    return out.with_suffix(".json")


def _write_onnx(program: nn.Module, images: Tensor, path: Path) -> np.ndarray:
    require_extra("onnx")
    import onnxruntime

    name = "probabilities" if program.with_head else "features"
    torch.onnx.export(
        program, (images,), str(path), input_names=["images"], output_names=[name], dynamo=True, external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": image[None].numpy()})[0] for image in images]  # with another batch size
    return np.concatenate(parts)


def _write_torch(program: nn.Module, images: Tensor, path: Path) -> np.ndarray:
    batch = torch.export.Dim("batch", min=1, max=4096)
    exported = torch.export.export(program, (images,), dynamic_shapes=({0: batch},))
    with open(path, "wb") as file:
        torch.export.save(exported, file)
    loaded = torch.export.load(path).module()
    return np.concatenate([loaded(image[None]).numpy() for image in images])


def _facts(loaded: LoadedModel, head: Head | None, size: tuple[int, int]) -> dict:
    """What somebody needs who has only the file: how images are prepared, and what the columns are."""
    return {
        "model": loaded.name,
        "input": {"name": "images", "shape": ["batch", 3, *size], "type": "float32"},
        "preprocessing": {key: value for key, value in loaded.model.visual.preprocess.items() if key != "size"},
        "output": {"name": "probabilities" if head else "features"},
        **({"classes": list(head.facts.classes), "several": head.facts.several,
            "thresholds": list(head.facts.thresholds), "measured": head.facts.measured} if head else {}),
    }  # fmt: skip
