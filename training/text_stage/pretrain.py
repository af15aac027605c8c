"""Textual pretraining (stage 1): the text tower learns ophthalmic language by whole-word masked language modelling.

    keepfit-clip pretrain-text --corpus reports.txt notes.jsonl shards/elite --init DIR --out runs/text-tower
    torchrun --nproc-per-node 2 -m keepfit_clip.training.text -- --corpus reports.txt --init DIR --out runs/text-tower

The corpus is prepared on the disk (`corpus`), optionally with words of its own in the vocabulary (`vocabulary`), and
transformers' Trainer trains on it. Beside the model, the same masked-language head is trained on the frozen starting
encoder: an encoder without such a head has no other "before". What was learnt is measured (`probe`). The result is
a Hugging Face folder that stage 2 takes with --text-tower.
"""

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_model as load_weights
from tqdm import tqdm
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from keepfit_clip.errors import ConfigError, KeepFITError, MissingWeightsError
from keepfit_clip.files import WorkFolder, new_folder, require_free, write_json, writing
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.held_out import HeldOut
from keepfit_clip.knowledge.templates import knowledge_sentences
from keepfit_clip.model.config import ModelConfig
from keepfit_clip.model.pretrained import allow_source, load_pretrained, resolve_source, unreachable
from keepfit_clip.registry import list_keepfit_models
from keepfit_clip.training.config_file import with_config
from keepfit_clip.training.flags import listed
from keepfit_clip.training.programs import output_console
from keepfit_clip.training.text_stage.corpus import CorpusFigures, build_corpus, stamp_sources
from keepfit_clip.training.text_stage.probe import TextPretrainingResult, score_masked_words, synonym_retrieval
from keepfit_clip.training.text_stage.settings import TextPretraining, text_parser
from keepfit_clip.training.text_stage.vocabulary import (
    WholeWordMasking,
    add_embeddings,
    add_words,
    frequent_words,
    require_word_pieces,
    tokenize,
)

__all__ = ["TextPretraining", "TextPretrainingResult", "main", "pretrain_text"]

REPORT_NAME = "textual_pretraining.json"
_CONTROL, _TRAINED = "frozen", "trained"
_DATA = "data"


def pretrain_text(
    sources: Sequence[str | Path],
    settings: TextPretraining,
    out: str | Path,
    knowledge: Knowledge | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> TextPretrainingResult | None:
    """Trains a text tower and writes it, its tokenizer and a report into a new folder.

    Interrupted and called again with the same sources and settings, it goes on from its last checkpoint; from one
    amid an epoch with other masks. Under torchrun all processes train, and the first one measures and writes.

    Args:
        sources: of the corpus; see `corpus.read_documents`.
        settings: how.
        out: folder to make; it must not hold anything yet.
        knowledge: becomes a part of the corpus, and its synonyms are asked; without it the shipped one's are.
        on_step: called with the steps done and all steps of both trainings; without it a terminal shows
            the Trainer's own bars.

    Returns:
        What was achieved; None in all processes but the first.

    Raises:
        CorpusError: the corpus cannot be used.
        CategoryError: a category to hold out is not known.
        ConfigError: the settings do not fit the encoder.
        OutputError: `out` holds something already, or no space is left.
        MissingWeightsError: the starting encoder is out of reach.
    """
    out = require_free(out)
    work = _work_folder(out, sources, settings, knowledge)
    tokenizer = _load(AutoTokenizer, settings.init)
    _check_encoder(_load_model(settings), tokenizer, settings)
    with writing(work), _bars_of_datasets(shown=on_step is None and sys.stderr.isatty()):
        data = _prepare(work, sources, settings, knowledge, tokenizer)
        models = {}
        rounds = (_TRAINED,) if settings.no_control else (_CONTROL, _TRAINED)
        for number, name in enumerate(rounds):
            callback = _Steps(on_step, number, rounds=len(rounds)) if on_step else None
            models[name] = _starting_model(settings, tokenizer, data.words, frozen=name == _CONTROL)
            _train(models[name], data, settings, work / name, callback)
    PartialState().wait_for_everyone()
    if not PartialState().is_main_process:
        return None
    result = _probe(models, tokenizer, data, settings, knowledge or Knowledge.load())
    with new_folder(out) as folder:
        models[_TRAINED].save_pretrained(folder)
        shutil.copytree(work / _DATA / "tokenizer", folder, dirs_exist_ok=True)  # one that nothing was done to
        write_json(folder / REPORT_NAME, {"settings": _portable(settings), **asdict(result)})
    shutil.rmtree(work)
    return result


def _work_folder(out: Path, sources, settings: TextPretraining, knowledge: Knowledge | None) -> Path:
    """Where unfinished training is kept; its name tells corpus and settings, so that no other job goes on with it."""
    known = knowledge_sentences(knowledge, listed(settings.languages)) if knowledge else None
    content = json.dumps([stamp_sources(sources), known, asdict(settings)]).encode()
    return out.parent / f".{out.name}.{hashlib.sha256(content).hexdigest()[:12]}.work"


def _source(name: str) -> str:
    """What transformers loads for a name: a KeepFIT config stands for its text tower."""
    if name in list_keepfit_models():
        name = ModelConfig.named(name).text.hf_model_name
        if not name:
            raise MissingWeightsError("this config's text tower has no pretrained weights: name an encoder with --init")
    allow_source(name)
    return resolve_source(name)


def _load(auto_class, name: str, **options):
    try:
        return load_pretrained(auto_class, _source(name), **options)
    except KeepFITError:
        raise
    except (OSError, ValueError) as error:
        raise unreachable(name, error, "--init") from error


def _load_model(settings: TextPretraining) -> PreTrainedModel:
    return _load(AutoModelForMaskedLM, settings.init, dtype=torch.float32)


def _check_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: TextPretraining) -> None:
    """Raises ConfigError where the settings do not fit an encoder."""
    if not tokenizer.is_fast or tokenizer.mask_token is None:
        raise ConfigError("the encoder's tokenizer must be a fast one with a mask token, as those of BERT and its like")
    if settings.new_tokens:
        require_word_pieces(tokenizer)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if table is None:  # positions are relative, and have no end
        return
    positions = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    if settings.max_length > positions:
        raise ConfigError(f"--max-length {settings.max_length}: the encoder takes at most {positions} tokens")


@contextmanager
def _bars_of_datasets(shown: bool) -> Iterator[None]:
    """Hides the progress bars of `datasets` while the block runs, unless they may be shown."""
    shown_before = not datasets.are_progress_bars_disabled()
    if not shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown_before:
            datasets.enable_progress_bars()


@dataclass(frozen=True)
class _Data:
    """The prepared corpus, memory-mapped, and the tokenizer it is made with, new words included."""

    tokenizer: PreTrainedTokenizerBase
    training: Dataset
    held_out: Dataset
    words: list[str]
    figures: CorpusFigures
    evaluated_sentences: int


def _prepare(work: Path, sources, settings: TextPretraining, knowledge, tokenizer) -> _Data:
    """Prepares the corpus, unless that was done before; of several processes the first to come does it."""
    folder, own = work / _DATA, WorkFolder(work)
    with own.alone():
        if not folder.exists():
            own.remove_leftovers(f".{_DATA}.*.partial")
            try:
                with new_folder(folder) as partial:
                    _write_data(partial, sources, settings, knowledge, tokenizer)
            except KeepFITError:
                shutil.rmtree(work)
                raise
    content = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return _Data(
        tokenizer=load_pretrained(AutoTokenizer, folder / "tokenizer"),
        training=Dataset.from_file(str(folder / "training.arrow")),
        held_out=Dataset.from_file(str(folder / "held_out.arrow")),
        words=content["words"],
        figures=CorpusFigures(**content["figures"]),
        evaluated_sentences=content["evaluated_sentences"],
    )


def _write_data(folder: Path, sources, settings: TextPretraining, knowledge, tokenizer) -> None:
    names = listed(settings.hold_out_categories)
    unnamed = HeldOut(names, knowledge or Knowledge.load()) if names else None
    corpus = build_corpus(
        sources,
        folder / "sentences",
        settings.held_out,
        settings.seed,
        unnamed.knowledge if unnamed and knowledge else knowledge,
        settings.text_field,
        listed(settings.languages),
        unnamed,
    )
    words = []
    if settings.new_tokens:
        sentences = (text for batch in corpus.training.iter(1000) for text in batch["text"])
        words = frequent_words(sentences, tokenizer, settings.new_tokens, settings.new_token_min_count)
        tokenizer = add_words(tokenizer, words)
    tokenizer.save_pretrained(folder / "tokenizer")
    measured = corpus.held_out
    if len(measured) > settings.max_evaluation_sentences:
        chosen = random.Random(settings.seed).sample(range(len(measured)), settings.max_evaluation_sentences)
        measured = measured.select(sorted(chosen))
    for name, sentences in (("training", corpus.training), ("held_out", measured)):
        tokenize(sentences, tokenizer, settings.max_length, folder / f"{name}.arrow")
    write_json(
        folder / "corpus.json",
        {"figures": asdict(corpus.figures), "words": words, "evaluated_sentences": len(measured)},
    )
    shutil.rmtree(folder / "sentences")


def _starting_model(settings: TextPretraining, tokenizer, words: Sequence[str], frozen: bool) -> PreTrainedModel:
    """The starting encoder with rows for the new words and a masked-language head."""
    set_seed(settings.seed)
    model = _load_model(settings)
    if words:
        add_embeddings(model, tokenizer, words)
    if frozen:
        model.base_model.requires_grad_(False)
    return model


class _Steps(TrainerCallback):
    """Tells how far several trainings of the same length are."""

    def __init__(self, on_step: Callable[[int, int], None], round_number: int, rounds: int):
        self.on_step, self.round_number, self.rounds = on_step, round_number, rounds

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.on_step(self.round_number * state.max_steps + state.global_step, self.rounds * state.max_steps)


def _train(model: PreTrainedModel, data: _Data, settings: TextPretraining, folder: Path, callback=None) -> None:
    trainer = Trainer(
        model=model,
        args=_training_arguments(settings, folder, disable_tqdm=callback is not None or not sys.stderr.isatty()),
        train_dataset=data.training,
        data_collator=WholeWordMasking(data.tokenizer, settings.mask_probability),
        callbacks=[callback] if callback else None,
        optimizers=(_optimizer(model, settings), None),
    )
    if callback:
        trainer.remove_callback(PrinterCallback)
    checkpoint = _last_checkpoint(folder)
    if checkpoint is not None and _is_last_step(checkpoint):  # the Trainer would take one step more (transformers 5.24)
        load_weights(model, checkpoint / "model.safetensors")
    else:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))


def _training_arguments(settings: TextPretraining, folder: Path, disable_tqdm: bool) -> TrainingArguments:
    try:
        return TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr,
            train_sampling_strategy="group_by_length",  # batches are padded to their longest sentence
            lr_scheduler_type="cosine",
            warmup_steps=0.06,
            bf16=settings.bfloat16,
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="steps" if settings.save_steps else "epoch",
            save_steps=settings.save_steps or 500,
            save_total_limit=1,
            logging_steps=50,
            report_to="none",
            seed=settings.seed,
            remove_unused_columns=False,
            dataloader_num_workers=settings.workers,
            dataloader_pin_memory=torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
            average_tokens_across_devices=False,  # the models' own masked-language loss is a mean already
            disable_tqdm=disable_tqdm,
        )
    except ValueError as error:
        raise ConfigError(f"training cannot be set up: {error}") from error


def _optimizer(model: PreTrainedModel, settings: TextPretraining) -> torch.optim.AdamW:
    """AdamW with a learning rate of its own for the head."""
    encoder = {id(parameter) for parameter in model.base_model.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) in encoder], "lr": settings.lr},
        {"params": [p for p in trainable if id(p) not in encoder], "lr": settings.head_lr},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=settings.weight_decay)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was completely written: the Trainer writes its state last."""
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2])) if complete else None


def _is_last_step(checkpoint: Path) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state.global_step >= state.max_steps


def _probe(
    models: dict[str, PreTrainedModel], tokenizer, data: _Data, settings: TextPretraining, knowledge: Knowledge
) -> TextPretrainingResult:
    """Measures both models and the starting encoder, whose tokenizer is given."""
    trained = models[_TRAINED]
    start = _load_model(settings).to(trained.device)
    held_out = {}
    for name, model in models.items():
        same_masks = WholeWordMasking(data.tokenizer, settings.mask_probability, settings.seed)
        held_out[name] = score_masked_words(model, data.held_out, same_masks, settings.batch_size)
    return TextPretrainingResult(
        held_out=held_out,
        synonyms={
            "before": synonym_retrieval(start.base_model, tokenizer, knowledge),
            "after": synonym_retrieval(trained.base_model, data.tokenizer, knowledge),
        },
        corpus=data.figures,
        evaluated_sentences=data.evaluated_sentences,
        new_tokens=len(data.words),
    )


def _portable(settings: TextPretraining) -> dict:
    options = {**asdict(settings), "precision": "bf16" if settings.bfloat16 else "fp32"}
    if os.path.exists(settings.init):  # a path of this machine is nobody else's business
        options["init"] = Path(settings.init).name
    return options


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """On the first process's terminal a bar of both trainings with the time left, as `on_step`; else None."""
    if os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty():
        yield None
        return
    with tqdm(desc="textual pretraining", unit="step", leave=False) as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_step


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and prints the scores."""
    parser = text_parser()
    words = with_config(sys.argv[1:] if argv is None else argv, parser.defaults())
    parser.require_known(words)
    args = vars(parser.parse_args(words))
    del args["config"]
    sources, out, file, no_knowledge = (args.pop(name) for name in ("corpus", "out", "knowledge", "no_knowledge"))
    settings = TextPretraining(**args)
    if settings.workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # they fork after the tokenizer was used
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with _bar() as on_step:
        result = pretrain_text(sources, settings, out, None if no_knowledge else Knowledge.load(file), on_step)
    if result:
        console = output_console()
        console.print(result.table(f"Textual pretraining -> {out}"))
        console.print(f"next: keepfit-clip train --text-tower {out} --public-data ... --elite-data ...", soft_wrap=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
