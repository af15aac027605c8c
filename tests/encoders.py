"""A tiny BERT with a vocabulary of its own, as Hugging Face folders hold one."""

from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SENTENCES = [
    f"{place} {sign} suggest {disease} in this fundus photograph"
    for place in ("scattered", "central", "peripheral", "dense")
    for sign in ("microaneurysms", "exudates", "drusen", "hemorrhages")
    for disease in ("diabetic retinopathy", "macular degeneration")
]
POSITIONS = 128


def write_encoder(folder: Path, vocab_size: int = 120, lowercase: bool = True, config: dict | None = None) -> Path:
    """Writes a random encoder and a WordPiece tokenizer of `SENTENCES` and returns the folder."""
    pieces = BertWordPieceTokenizer(lowercase=lowercase)
    pieces.train_from_iterator(SENTENCES, vocab_size=vocab_size, min_frequency=1, show_progress=False)
    folder.mkdir(exist_ok=True)
    pieces.save_model(str(folder))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=lowercase)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, **(config or {})}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(folder)
    return folder
