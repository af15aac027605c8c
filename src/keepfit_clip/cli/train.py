"""`keepfit-clip pretrain-text` and `train`: both stages. Their flags are argparse's, as open_clip_train's are."""

import typer

from keepfit_clip.cli.options import TRAIN

_PASS_ALL = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def add_commands(app: typer.Typer) -> None:
    """Adds the training commands."""
    app.command(name="pretrain-text", rich_help_panel=TRAIN, context_settings=_PASS_ALL)(pretrain_text)
    app.command(name="train", rich_help_panel=TRAIN, context_settings=_PASS_ALL)(train)


def pretrain_text(context: typer.Context) -> None:
    """Stage 1: textual pretraining of a text tower."""
    from keepfit_clip.training.text_stage.pretrain import main

    main(context.args)


def train(context: typer.Context) -> None:
    """Stage 2: hybrid pretraining by open_clip's loop; = python -m keepfit_clip.training.main."""
    from keepfit_clip.training.hybrid.run import main

    main(context.args)
