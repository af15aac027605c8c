"""The model card of a folder: what the model is, and what it must not be used for. It names nothing of its makers."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

__all__ = ["CARD_NAME", "model_card"]

CARD_NAME = "README.md"
_TAGS = ["keepfit", "clip", "retina", "ophthalmology", "medical", "image-captioning"]


def model_card(model_cfg: Mapping, preprocess_cfg: Mapping, history: Mapping[str, object]) -> str:
    """The card as Markdown with the hub's metadata.

    Args:
        model_cfg: an open_clip model config of ours.
        preprocess_cfg: open_clip preprocessing values.
        history: where the weights come from, as labels and values.
    """
    from keepfit_clip._version import __version__

    vision, text, decoder = model_cfg["vision_cfg"], model_cfg["text_cfg"], model_cfg["multimodal_cfg"]
    encoder = text["hf_model_config"]
    facts = {
        "image tower": f"{vision['timm_model_name']} (timm), images of {vision.get('image_size', 224)} pixels",
        "text tower": f"{encoder['model_type']}, {encoder.get('num_hidden_layers', '?')} layers of width "
        f"{encoder['hidden_size']}, vocabulary {encoder['vocab_size']}, {text.get('context_length', 77)} tokens",
        "caption decoder": f"{decoder['layers']} layers" if decoder else "none",
        "joint space": f"{model_cfg['embed_dim']} dimensions",
        "images": f"resize_mode {preprocess_cfg['resize_mode']}, mean {_listed(preprocess_cfg['mean'])}, standard "
        f"deviation {_listed(preprocess_cfg['std'])}",
        **history,
    }
    # Not "open_clip": the hub's own snippet for that does not import this library, and builds another model.
    data = ModelCardData(library_name="keepfit_clip", pipeline_tag="zero-shot-image-classification", tags=_TAGS)
    name = model_cfg["keepfit_cfg"].get("base") or "keepfit-v2"
    template = Path(__file__).with_suffix(".md.j2")
    return str(ModelCard.from_template(data, str(template), name=name, version=__version__, facts=facts))


def _listed(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
