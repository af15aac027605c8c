"""The flags of both stages: what they are called, and that each comes from one field of the settings."""

from dataclasses import dataclass, fields

import pytest

from keepfit_clip.errors import ConfigError
from keepfit_clip.training.config_file import RunFile, with_config
from keepfit_clip.training.flags import add_flags, setting
from keepfit_clip.training.hybrid.params import keepfit_parser, parse_keepfit_args, upstream_argv
from keepfit_clip.training.hybrid.settings import HybridPretraining, reported, shaping
from keepfit_clip.training.text_stage.settings import TextPretraining, text_parser

# What people have in their scripts: a flag may come here, and none may go without a word in CHANGELOG.md.
STAGE_1 = """
    --batch-size --config --corpus --epochs --head-lr --held-out --hold-out-categories --init --knowledge --languages
    --lr --mask-probability --max-evaluation-sentences --max-length --max-steps --new-token-min-count
    --new-tokens --no-control --no-knowledge --out --precision --save-steps --seed --text-field
    --weight-decay --workers"""
STAGE_2 = """
    --allow-source --augmentation --balance --batch-size --beta1 --beta2 --caption-samples --caption-schedule
    --caption-schedule-steps --caption-weight --caption-weight-start --config --contrastive-weight --crop
    --device --dry-run --elite-balance --elite-data --elite-fraction --elite-weights --ema-decay --epochs --eps
    --freeze-text-steps --grad-clip-norm --head-lr --help-all --hold-out-categories --image-tower --implied
    --joint-contrast --knowledge --languages --layer-decay --log-every-n-steps --log-level --logs --lr
    --max-bad-fraction --model --name --no-pretrained-image --precision --preset --pretrained
    --public-caption-weight --public-data --public-weights --random-text --resume --revision-weight --seed
    --skip-nonfinite --text-tower --train-num-samples --val-data --warmup --warmup-share --wd --workers
    --zeroshot-frequency --zeroshot-table"""


def flags_of(parser):
    return {word for action in parser._actions for word in action.option_strings} - {"-h", "--help"}


@pytest.mark.parametrize(("parser", "expected"), [(text_parser, STAGE_1), (keepfit_parser, STAGE_2)])
def test_the_flags_are_those_that_scripts_use(parser, expected):
    assert flags_of(parser()) == set(expected.split())


def test_every_setting_is_a_flag_with_help():
    for settings, parser in ((TextPretraining, text_parser()), (HybridPretraining, keepfit_parser())):
        told = {action.dest: action for action in parser._actions}
        for field in fields(settings):
            assert told[field.name].help, field.name
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert told[field.name].required or told[field.name].default == default


def test_what_shapes_learning_is_kept_and_what_a_page_shows_has_a_value():
    settings, _ = parse_keepfit_args(["--elite-data", "e", "--name", "n", "--public-weights", "1::2"])
    flags = {**vars(settings), "world_size": 2, "accum_freq": 1, "lr_scheduler": "cosine"}
    kept = shaping(flags)
    assert {"lr", "preset", "caption_weight_start", "public_weights", "world_size", "lr_scheduler"} <= kept.keys()
    assert not {"name", "logs", "device", "elite_data", "log_every_n_steps"} & kept.keys()
    shown = reported(flags)
    assert shown["elite_data"] == "e"
    assert "public_data" not in shown


def test_settings_reach_open_clips_parser_under_its_own_names():
    settings, rest = parse_keepfit_args(["--elite-data", "e", "--name", "n", "--lr", "0.5", "--lock-image"])
    words = upstream_argv(settings, rest, "e")
    assert words[words.index("--lr") + 1] == "0.5"
    assert "--lock-image" in words
    assert "--elite-data" not in words


def test_settings_made_in_python_are_checked_too():
    with pytest.raises(ConfigError, match="--skip-nonfinite is negative"):
        HybridPretraining(elite_data="e", skip_nonfinite=-1)
    with pytest.raises(ConfigError, match="nothing to train on"):
        HybridPretraining()


def test_kinds_of_fields_become_kinds_of_flags():
    import argparse

    @dataclass
    class Settings:
        number: int | None = setting(None, "a number")
        share: float = setting(0.0, "a share")
        words: tuple[str, ...] = setting((), "words")
        quick: bool = setting(False, "be quick")
        way: str = setting("up", "which way", choices=("up", "down"), group="ways")

    parser = argparse.ArgumentParser()
    add_flags(parser, Settings)
    assert vars(parser.parse_args([])) == {"number": None, "share": 0.0, "words": [], "quick": False, "way": "up"}
    words = "--number 3 --share 1 --words a --words b --quick --way down"
    given = parser.parse_args(words.split())
    assert vars(given) == {"number": 3, "share": 1.0, "words": ["a", "b"], "quick": True, "way": "down"}
    assert "a share (0)" in parser.format_help()


KNOWN = {"lr": 1e-4, "epochs": 5, "crop": False, "force_size": None, "tables": [], "public_data": None, "name": None}


def written(tmp_path, text, name="run.yaml"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_a_file_gives_flags_and_the_command_line_wins(tmp_path):
    file = written(tmp_path, "lr: 3e-4\nepochs: 5\n--crop: true\nforce-size: [96, 128]\ntables: [a, b]\n")
    words = with_config(["--config", str(file), "--name=x", "--lr", "1"], KNOWN)
    assert words == ["--crop", "--force-size", "96", "128", "--tables=a", "--tables=b", "--name=x", "--lr", "1"]
    assert with_config([f"--config={file}"], KNOWN)[0] == "--lr=3e-4"
    assert with_config(["--lr", "1"], KNOWN) == ["--lr", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "there is no flag epoch; did you mean epochs"),
        ("- lr", "holds no flags"),
        ("lr: {a: 1}", "a flag has a value or a list"),
        ("lr: [1", "neither YAML nor JSON"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        with_config(["--config", str(written(tmp_path, text))], KNOWN)
    with pytest.raises(ConfigError, match="cannot be read"):
        with_config(["--config", str(tmp_path / "none.yaml")], KNOWN)
    with pytest.raises(ConfigError, match="needs a file"):
        with_config(["--config"], KNOWN)


def test_an_earlier_run_gives_its_flags_but_files_are_given_anew(tmp_path):
    run_file = RunFile("settings.json", names_only=("public_data",), passed_over=("name",))
    written(tmp_path, '{"lr": 0.5, "public_data": "shards", "name": "first"}', "settings.json")
    with pytest.raises(ConfigError, match="give --public-data anew"):
        with_config(["--config", str(tmp_path)], KNOWN, run_file)
    words = ["--config", str(tmp_path), "--public-data", "here"]
    assert with_config(words, KNOWN, run_file) == ["--lr=0.5", "--public-data", "here"]


def test_a_mistyped_flag_ends_with_the_one_that_was_meant(capsys):
    for words, meant in ((["--elite-fractoin", "1"], "--elite-fraction"), (["--acum-freq=2"], "--accum-freq")):
        with pytest.raises(SystemExit) as ended:
            parse_keepfit_args(["--elite-data", "e", "--name", "n", *words])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert f"did you mean {meant}" in told
        assert len(told.splitlines()) == 1
