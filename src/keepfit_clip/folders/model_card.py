"""The model card of a folder: what the model is, and what it must not be used for. It names nothing of its makers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from keepfit_clip._version import __version__
from keepfit_clip.files import write_text
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.preprocess import is_padded_at_end

__all__ = ["CARD_NAME", "model_card", "note_on_card"]

CARD_NAME = "README.md"
_TAGS = ["keepfit", "clip", "retina", "ophthalmology", "medical", "image-captioning"]


def model_card(config: ModelConfig, preprocess_cfg: Mapping, history: Mapping[str, object]) -> str:
    """The card as Markdown with the hub's metadata.

    Args:
        config: of the model.
        preprocess_cfg: open_clip preprocessing values.
        history: where the weights come from, as labels and values.
    """
    encoder = config.text.hf_model_config
    own = {**config.keepfit.preprocess, **preprocess_cfg}
    crop, at_end = own.get("crop", False), is_padded_at_end(own)
    cropped = "colour photographs without their black border, " if crop else ""
    padded = " with the border at the bottom or the right" if at_end else ""
    facts = {
        "image tower": f"{config.vision.timm_model_name} (timm), images of {config.vision.image_size} pixels",
        "text tower": f"{encoder['model_type']}, {encoder.get('num_hidden_layers', '?')} layers of width "
        f"{encoder['hidden_size']}, vocabulary {encoder['vocab_size']}, {config.text.context_length} tokens",
        "caption decoder": f"{config.decoder.layers} layers" if config.decoder else "none",
        "joint space": f"{config.embed_dim} dimensions",
        "images": f"{cropped}resize_mode {preprocess_cfg['resize_mode']}{padded}, "
        f"mean {_listed(preprocess_cfg['mean'])}, standard deviation {_listed(preprocess_cfg['std'])}",
        **history,
    }
    # Not "open_clip": the hub's own snippet for that does not import this library, and builds another model.
    data = ModelCardData(library_name="keepfit_clip", pipeline_tag="zero-shot-image-classification", tags=_TAGS)
    name = config.keepfit.base or "keepfit-v2"
    template = Path(__file__).with_suffix(".md.j2")
    return str(
        ModelCard.from_template(data, str(template), name=name, version=__version__, facts=facts, own=crop or at_end)
    )


def note_on_card(model: Path, title: str, lines: Sequence[str]) -> None:
    """Puts a section of its own title at the end of a model folder's card, in place of one that stands there."""
    card = model / CARD_NAME
    if not card.is_file():
        return
    kept, _, after = card.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    _, heading, rest = after.partition("\n## ")
    section = "\n".join(["", f"## {title}", "", *lines, ""])
    write_text(card, kept.rstrip("\n") + "\n" + (f"{heading}{rest}" if heading else "") + section)


def _listed(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
