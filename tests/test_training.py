"""Stage 2 on the tiny model: the loop, its log, resume, refusals, export and use in another process."""

import json
import logging
import re
from argparse import Namespace
from functools import partial

import open_clip
import open_clip_train.main as upstream_main
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import keepfit_clip.training.hybrid.run as keepfit_main
from keepfit_clip.errors import (
    CheckpointError,
    ConfigError,
    MissingWeightsError,
    NonFiniteLossError,
    OutputError,
    ShardError,
)
from keepfit_clip.evaluate.features import FeatureCache
from keepfit_clip.folders.export import export_model, load_training_checkpoint
from keepfit_clip.folders.loading import load_model
from keepfit_clip.folders.model_folder import read_model_config
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.training.hybrid import upstream
from keepfit_clip.training.hybrid.causes import cause_of
from keepfit_clip.training.hybrid.checkpoints import Checkpoints
from keepfit_clip.training.hybrid.loss_log import read_losses
from keepfit_clip.training.hybrid.run import main as train
from keepfit_clip.training.hybrid.settings import HybridPretraining
from tests.conftest import MODEL, train_flags
from tests.programs import forkserver


def checkpoint(run, epoch):
    return load_training_checkpoint(run / "checkpoints" / f"epoch_{epoch}.pt")


def test_every_term_stands_in_the_log_by_name_once(run):
    lines = [line for line in (run / "out.log").read_text().splitlines() if " loss " in line]
    assert len(lines) == 8  # four steps in each of two epochs
    for term in ("loss", "public", "elite", "rev", "cap"):
        assert all(f" {term} " in line for line in lines), term
    assert " epoch 1.25/2 " in lines[4]
    assert all(" left " in line and len(line) <= 100 for line in lines[1:])


def test_the_log_tells_news_and_another_file_all_details(run):
    log, details = (run / "out.log").read_text(), (run / "debug.log").read_text()
    for detail in ("TextTower(", "  batch_size: 8\n", "Train Epoch: 1 [", "Instantiating model architecture"):
        assert detail in details, detail
        assert detail not in log, detail
    assert "2 checkpoints of 0." in log  # before they are there
    assert "no CLIP weights found" not in log  # our own folder has none, and needs none
    assert len(log.splitlines()) < 60


def test_a_run_ends_with_where_things_are_and_what_comes_next(shards, held_out, tmp_path, capsys):
    train(train_flags(shards, tmp_path, "told", epochs=1, train_num_samples=16, val_data=held_out))
    told = capsys.readouterr().out
    assert f"keepfit-clip export {tmp_path / 'told'} --out" in told
    assert f"checkpoints  {tmp_path / 'told' / 'checkpoints'}" in told
    assert "caption_nll" in told


def test_a_dry_run_says_what_the_run_would_be_and_leaves_nothing(shards, tmp_path, capsys):
    flags = [flag for flag in train_flags(shards, tmp_path, "dry", epochs=5, train_num_samples=64) if flag]
    train([*flags, "--dry-run"])
    told = capsys.readouterr().out
    assert re.search(r"steps +40 of 8 samples, in 5 epochs", told)
    assert re.search(r"public +\d+ samples in \d+ shards", told)
    assert re.search(r"disk +5 checkpoints of 0\.\d+ GiB take", told)
    assert re.search(r"time +\w+ at 0\.\d+ s a step", told)
    assert not list(tmp_path.iterdir())


def test_evaluation_is_saved_per_epoch(run):
    results = [json.loads(line) for line in (run / "checkpoints" / "results.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in results] == [1, 2]
    assert 0 <= results[0]["zero_shot_aca_CFP"] <= 1
    assert results[1]["caption_nll"] < results[0]["caption_nll"] < 12


def test_upstream_is_restored_after_a_run(run):
    assert upstream_main.get_data.__module__ == "open_clip_train.data"
    assert torch.save.__module__ == "torch.serialization"
    assert torch.nn.parallel.DistributedDataParallel.__module__.startswith("torch.nn.parallel")


def with_dropout(folder):
    """The tiny model with dropout, as a model folder without weights."""
    model_cfg = open_clip.get_model_config(MODEL)
    model_cfg["text_cfg"]["hf_model_config"].update(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    model_cfg["multimodal_cfg"]["dropout"] = 0.2
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    return f"local-dir:{folder}"


def resumed_from(run):
    """The checkpoints that attempts of a run went on from."""
    found = re.findall(r"resuming checkpoint '(\S+)' \(epoch (\d+)\)", (run / "out.log").read_text())
    return [(name, int(epoch)) for name, epoch in found]


def test_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(shards, tmp_path, monkeypatch):
    model = with_dropout(tmp_path / "dropout")
    train(train_flags(shards, tmp_path, "whole", model=model))
    real = keepfit_main.train_one_epoch

    def interrupted(model, data, loss, epoch, *args, **kwargs):
        if epoch == 1:
            raise KeyboardInterrupt
        real(model, data, loss, epoch, *args, **kwargs)

    flags = train_flags(shards, tmp_path, "again", model=model)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keepfit_main, "train_one_epoch", interrupted)
        train(flags)
    assert not (tmp_path / "again" / "checkpoints" / "epoch_2.pt").exists()
    train([*flags, "--resume", "latest"])
    assert resumed_from(tmp_path / "again") == [("epoch_1.pt", 1)]
    uninterrupted, resumed = checkpoint(tmp_path / "whole", 2), checkpoint(tmp_path / "again", 2)
    for key, tensor in uninterrupted.items():
        assert torch.equal(tensor, resumed[key]), key


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"siglip": True}, ConfigError, "--siglip cannot be used here"),
        ({"coca_caption_loss_weight": 2}, ConfigError, "use --caption-weight"),
        ({"train_data": "x.tar"}, ConfigError, "give --public-data"),
        ({"model": "ViT-B-32"}, ConfigError, "no KeepFIT model"),
        ({"revision_weight": -1}, ConfigError, "negative"),
        ({"public_data": "/no/such/shards"}, ShardError, "no such shard"),
        ({"model": "local-dir:/no/such"}, CheckpointError, "no model folder"),
        ({"resume": "/no/such.pt"}, CheckpointError, "no such checkpoint"),
        ({"elite_fraction": 0.01}, ConfigError, "no room for both"),
        ({"text_tower": "/no/such/tower"}, OSError, "holds no text tower"),
        ({"knowledge": "/no/such.json"}, Exception, "cannot be read"),
        ({"accum_freq": 9}, ConfigError, "fewer than --accum-freq"),
        ({"delete_previous_checkpoint": True, "save_frequency": 2}, ConfigError, "delete the only checkpoint"),
    ],
)
def test_flags_that_cannot_work_say_so_at_the_start(shards, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        train(train_flags(shards, tmp_path, "bad", **more))


def test_shards_of_the_other_kind_are_refused(shards, tmp_path):
    with pytest.raises(ShardError, match="holds elite samples, not public ones"):
        train(train_flags(shards, tmp_path, "kind", public_data=shards / "elite"))


def test_a_run_folder_is_not_overwritten_and_not_continued_with_another_config(run, shards):
    with pytest.raises(ConfigError, match="--resume latest, or choose another --name"):
        train(train_flags(shards, run.parent, run.name))
    with pytest.raises(ConfigError, match=r"text_cfg\.context_length was 77 and is 40"):
        train(train_flags(shards, run.parent, run.name, resume="latest", force_context_length=40))


def test_a_checkpoint_of_another_architecture_or_a_damaged_one_is_refused(run, shards, tmp_path):
    state = torch.load(run / "checkpoints" / "epoch_2.pt")
    state["state_dict"].pop("text.proj.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"another architecture.*text\.proj\.weight"):
        train(train_flags(shards, tmp_path, "other", resume=tmp_path / "other.pt"))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        train(train_flags(shards, tmp_path, "cut", resume=tmp_path / "cut.pt"))
    with pytest.raises(CheckpointError, match=r"--pretrained .*not readable weights"):
        train(train_flags(shards, tmp_path, "cut2", pretrained=tmp_path / "cut.pt"))
    with pytest.raises(CheckpointError, match="no such file"):
        train(train_flags(shards, tmp_path, "none", pretrained=tmp_path / "none.pt"))
    torch.save({"epoch": 1}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
        train(train_flags(shards, tmp_path, "odd", resume=tmp_path / "odd.pt"))
    with pytest.raises(CheckpointError, match="same --lock-image"):
        train(train_flags(shards, run.parent, run.name, resume="latest", lock_image=True))


@pytest.mark.parametrize(
    "more",
    [
        {"accum_freq": 2},
        {"grad_checkpointing": True},
        {"precision": "amp_bf16"},
        {"precision": "amp"},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "pure_bf16"},
        {"local_loss": True},
        {"gather_with_grad": True, "local_loss": True},
        {"use_bn_sync": True},
        {"ddp_static_graph": True},
        {"lock_image": True, "lock_image_unlocked_groups": 1, "lock_image_freeze_bn_stats": True},
        {"lock_text": True, "lock_text_unlocked_layers": 1, "lock_text_freeze_layer_norm": True},
        {"lr_scheduler": "const-cooldown", "epochs_cooldown": 1},
        {"opt": "timm/lion"},
        {"public_caption_weight": 0.5, "joint_contrast": True},
        {"caption_schedule": "cosine", "caption_schedule_steps": 2, "freeze_text_steps": 1},
        {"save_most_recent": True, "save_frequency": 0},
        {"delete_previous_checkpoint": True},
        {"report_to": "tensorboard"},
        {"workers": 2},
        {"force_image_size": 96},
        {"force_context_length": 40},
        {"preset": "v1"},
        {"preset": "contrastive"},
    ],
    ids=lambda more: "-".join(f"{name}={value}" for name, value in more.items()),
)
def test_upstream_flags_work(shards, tmp_path, more):
    train(train_flags(shards, tmp_path, "flags", epochs=1, train_num_samples=16, **more))
    file = next((tmp_path / "flags" / "checkpoints").glob("*.pt"))
    assert all(torch.isfinite(v).all() for v in torch.load(file)["state_dict"].values() if v.is_floating_point())


def test_a_run_is_copied_to_a_remote_folder(shards, tmp_path):
    remote = tmp_path / "remote"
    train(train_flags(shards, tmp_path, "sent", epochs=1, train_num_samples=8, remote_sync=remote,
                      remote_sync_protocol="fsspec"))  # fmt: skip
    for name in ("checkpoints/epoch_1.pt", "losses.jsonl", "model/open_clip_config.json"):
        assert (remote / "sent" / name).read_bytes() == (tmp_path / "sent" / name).read_bytes()


def test_save_most_recent_is_what_resume_latest_goes_on_from(shards, tmp_path):
    flags = {"save_most_recent": True, "save_frequency": 0, "train_num_samples": 8}
    train(train_flags(shards, tmp_path, "recent", epochs=1, **flags))
    train(train_flags(shards, tmp_path, "recent", epochs=2, resume="latest", **flags))
    assert resumed_from(tmp_path / "recent") == [("epoch_latest.pt", 1)]
    assert torch.load(tmp_path / "recent" / "checkpoints" / "epoch_latest.pt")["epoch"] == 2


def test_what_is_newest_is_gone_on_from_whatever_its_name(shards, tmp_path):
    def go_on(epochs, **flags):
        train(train_flags(shards, tmp_path, "run", epochs=epochs, resume="latest", train_num_samples=8, **flags))

    train(train_flags(shards, tmp_path, "run", epochs=1, train_num_samples=8))
    go_on(2, save_most_recent=True, save_frequency=0)
    go_on(3)
    go_on(4)
    go_on(5, save_most_recent=True)
    assert [epoch for _, epoch in resumed_from(tmp_path / "run")] == [1, 2, 3, 4]
    assert [line["epoch"] for line in read_losses(tmp_path / "run")] == list(range(5))


def test_a_config_may_leave_out_what_has_a_default(shards, tmp_path):
    model_cfg = open_clip.get_model_config(MODEL)
    assert model_cfg["text_cfg"].pop("context_length") == 77
    model_cfg["keepfit_cfg"].pop("preprocess", None)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    flags = train_flags(shards, tmp_path, "run", model=f"local-dir:{tmp_path / 'short'}", epochs=1, train_num_samples=8)
    train(flags)
    assert checkpoint(tmp_path / "run", 1)


def test_importing_the_stream_leaves_the_programs_settings_alone():
    code = """if True:
        import logging, cv2
        cv2.setNumThreads(3)
        import keepfit_clip.data.stream.mixed, keepfit_clip.data.tars.locations
        assert not logging.getLogger().handlers
        assert cv2.getNumThreads() == 3
    """
    process = forkserver.Process(target=exec, args=(code, {}))
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own
def test_a_compiled_model_trains(shards, tmp_path, monkeypatch):
    flags = {"freeze_text_steps": 1}  # as the recipe of the ViT-B/16
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the default takes minutes
    train(train_flags(shards, tmp_path, "compiled", epochs=1, train_num_samples=16, torchcompile=True, **flags))
    train(train_flags(shards, tmp_path, "plain", epochs=1, train_num_samples=16, **flags))
    one, other = (terms_of(tmp_path / name, step=1) for name in ("compiled", "plain"))
    assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_model_compiled_by_inductor_trains(shards, held_out, tmp_path):
    flags = train_flags(shards, tmp_path, "compiled", epochs=1, train_num_samples=16, torchcompile=True)
    train([*flags, "--val-data", held_out])
    assert "caption_nll" in (tmp_path / "compiled" / "checkpoints" / "results.jsonl").read_text()


def test_batch_norm_over_ranks_is_refused_on_the_cpu(monkeypatch, shards, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--use-bn-sync needs GPUs"):
        train(train_flags(shards, tmp_path, "bn", use_bn_sync=True))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(shards, tmp_path):
    train(train_flags(shards, tmp_path, "broken", epochs=1))
    before = (tmp_path / "broken" / "checkpoints" / "epoch_1.pt").read_bytes()
    broken = train_flags(shards, tmp_path, "broken", epochs=2, resume="latest", lr=1e30, grad_clip_norm=1e30)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step \d of 4: .*public_contrastive_loss nan.*samples"):
        train(broken)
    assert [p.name for p in (tmp_path / "broken" / "checkpoints").glob("*.pt*")] == ["epoch_1.pt"]
    assert (tmp_path / "broken" / "checkpoints" / "epoch_1.pt").read_bytes() == before


def test_a_step_that_is_not_finite_can_be_skipped(shards, tmp_path, monkeypatch):
    real, calls = HybridLoss.forward, []

    def sometimes_bad(self, **outputs):
        calls.append(1)
        if len(calls) == 2:
            outputs["image_features"] = outputs["image_features"] * torch.tensor([[float("inf")]] + [[1.0]] * 7)
        return real(self, **outputs)

    monkeypatch.setattr(HybridLoss, "forward", sometimes_bad)
    train(train_flags(shards, tmp_path, "skipped", epochs=1, skip_nonfinite=1))
    assert "skipped (1 of at most 1) epoch 0, step 2 of 4" in (tmp_path / "skipped" / "out.log").read_text()
    assert all(torch.isfinite(v).all() for v in checkpoint(tmp_path / "skipped", 1).values() if v.is_floating_point())


def terms_of(run, step=0):
    """The logged terms of a step."""
    line = [line for line in (run / "debug.log").read_text().splitlines() if "Train Epoch" in line][step]
    return {name.lower(): float(value) for name, value in re.findall(r"(\w+_loss): ([\d.e+-]+)", line)}


def test_each_weight_flag_scales_its_term(run, shards, tmp_path):
    weights = {"contrastive_weight": 3, "revision_weight": 50, "caption_weight": 0, "public_caption_weight": 0.5}
    train(train_flags(shards, tmp_path, "weights", epochs=1, **weights))
    before, after = terms_of(run), terms_of(tmp_path / "weights")
    assert after["public_contrastive_loss"] == pytest.approx(3 * before["public_contrastive_loss"], rel=1e-3)
    assert after["elite_contrastive_loss"] == pytest.approx(3 * before["elite_contrastive_loss"], rel=1e-3)
    assert after["revision_loss"] == pytest.approx(0.5 * before["revision_loss"], rel=1e-3)
    assert after["caption_loss"] == 0
    assert 4 < after["public_caption_loss"] < 6  # half of ln(49408)
    assert "public_caption_loss" not in before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[..] Connection closed by peer [127.0.0.1]:1"), "another process of this run has ended"),
        (
            torch.distributed.DistNetworkError("port: 29500, EADDRINUSE"),
            "cannot work together: port: 29500, EADDRINUSE",
        ),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), "--shm-size"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_causes_outside_the_library_are_told(error, told):
    cause = cause_of(error, HybridPretraining(elite_data="e"))
    assert cause is None if told is None else told in str(cause)


@pytest.mark.parametrize("given", [{}, {"rank": 0, "world_size": 2}])  # SLURM's environment makes upstream give both
def test_a_restart_has_addresses_of_its_own(monkeypatch, given):
    store, calls = torch.distributed.HashStore(), []
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([(store, 1, 2)]))
    init = upstream.init_each_attempt_anew(lambda **options: calls.append(options))
    init(backend="gloo", init_method="env://", **given)
    (options,) = calls
    assert (options["rank"], options["world_size"]) == (1, 2)
    options["store"].set("key", "value")
    assert store.check(["attempt 2/key"])


def test_several_processes_go_on_from_what_one_saved(run, monkeypatch):
    path = run / "checkpoints" / "epoch_2.pt"
    own = {name: torch.load(path)[name] for name in ("model_cfg", "flags")}
    kept = Checkpoints(torch.save, lambda path, map_location=None: torch.load(path), lambda: own)
    alone = kept.load(path)["state_dict"]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    together = kept.load(path)["state_dict"]
    assert list(together) == [f"module.{key}" for key in alone]


def write_masked_autoencoder(path, **change):
    """A file as RETFound's: the encoder under "model", with a decoder, a norm before pooling and the flags."""
    torch.manual_seed(5)
    trunk = open_clip.create_model(MODEL).visual.trunk.state_dict()
    encoder = {key.replace("fc_norm", "norm"): torch.rand_like(value) for key, value in trunk.items()}
    more = {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(2), **change}
    torch.save({"model": encoder | more, "args": Namespace(lr=1)}, path)
    return trunk.keys(), encoder


def test_an_image_tower_starts_from_a_file(shards, tmp_path):
    keys, encoder = write_masked_autoencoder(tmp_path / "encoder.pth")
    flags = {"epochs": 1, "train_num_samples": 8, "lr": 0, "image_tower": tmp_path / "encoder.pth"}
    train(train_flags(shards, tmp_path, "tower", **flags))
    end = checkpoint(tmp_path / "tower", 1)
    for key in keys:
        assert torch.equal(end[f"visual.trunk.{key}"], encoder[key.replace("fc_norm", "norm")]), key
    assert "2 of its tensors are not the encoder's" in (tmp_path / "tower" / "out.log").read_text()
    (tmp_path / "encoder.pth").unlink()  # a run that goes on needs it no more
    train(train_flags(shards, tmp_path, "tower", **{**flags, "epochs": 2}, resume="latest"))


def test_an_image_tower_that_does_not_fit_is_refused(shards, tmp_path):
    write_masked_autoencoder(tmp_path / "wide.pth", cls_token=torch.zeros(1, 1, 7))
    with pytest.raises(MissingWeightsError, match=r"wide\.pth is no encoder .*cls_token as \(1, 1, 7\) instead of"):
        train(train_flags(shards, tmp_path, "wide", image_tower=tmp_path / "wide.pth"))
    (tmp_path / "cut.pth").write_bytes(b"PK")
    with pytest.raises(MissingWeightsError, match=r"cut\.pth: not readable weights"):
        train(train_flags(shards, tmp_path, "cut", image_tower=tmp_path / "cut.pth"))
    with pytest.raises(ConfigError, match="exclude each other"):
        train(train_flags(shards, tmp_path, "both", image_tower="x.pth", pretrained_image=True))


def test_locked_towers_do_not_move(shards, tmp_path):
    train(train_flags(shards, tmp_path, "locked", epochs=1, lock_image=True, lock_text=True))
    torch.manual_seed(0)
    start, end = open_clip.create_model(MODEL).state_dict(), checkpoint(tmp_path / "locked", 1)
    for key in start:
        # As in open_clip, LayerNorms stay free without --lock-text-freeze-layer-norm.
        if key.startswith(("visual.trunk", "text.transformer")) and "LayerNorm" not in key:
            assert torch.equal(start[key], end[key]), key
    assert not torch.equal(start["visual.proj.weight"], end["visual.proj.weight"])


def test_warm_up_is_a_share_of_the_runs_optimizer_steps(shards, tmp_path):
    flags = train_flags(shards, tmp_path, "warm", epochs=2, train_num_samples=64, accum_freq=2, warmup_share=0.25)
    del flags[flags.index("--warmup") : flags.index("--warmup") + 2]
    train(flags)
    assert "warmup: 2\n" in (tmp_path / "warm" / "params.txt").read_text()  # of eight steps


def test_public_data_alone_trains_without_elite_terms(shards, tmp_path):
    flags = train_flags(shards, tmp_path, "public", epochs=1, train_num_samples=16, preset="contrastive")
    del flags[flags.index("--elite-data") : flags.index("--elite-data") + 2]
    train(flags)
    assert "Elite_contrastive_loss" not in (tmp_path / "public" / "debug.log").read_text()


def test_a_full_disk_keeps_the_earlier_checkpoint(shards, tmp_path, monkeypatch):
    train(train_flags(shards, tmp_path, "disk", epochs=1, train_num_samples=8))
    before = (tmp_path / "disk" / "checkpoints" / "epoch_1.pt").read_bytes()
    real_save = torch.save

    def fails(content, path, *args, **kwargs):
        real_save({}, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match="earlier checkpoints are untouched"):
        train(train_flags(shards, tmp_path, "disk", epochs=2, train_num_samples=8, resume="latest"))
    files = sorted(p.name for p in (tmp_path / "disk" / "checkpoints").iterdir())
    assert files == ["epoch_1.pt"]
    assert (tmp_path / "disk" / "checkpoints" / "epoch_1.pt").read_bytes() == before


def test_a_disk_that_is_full_at_the_start_is_one_line_of_ours(shards, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keepfit_main, "training_data", full)
    with pytest.raises(OutputError, match="full: cannot be written, no space is left on the disk"):
        train(train_flags(shards, tmp_path, "full"))


def use_as_open_clip_does(folder):
    torch.set_num_threads(1)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    images = torch.load(folder.parent / "images.pt")
    with torch.no_grad():
        output = model.eval()(images, tokenizer(["a photo", "glaucoma"]))
    torch.save(output, folder.parent / "output.pt")


def test_export_loads_in_another_process_offline_bit_equal(run, exported, tokenizer):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    torch.save(images, exported.parent / "images.pt")
    process = forkserver.Process(target=use_as_open_clip_does, args=(exported,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    model = open_clip.create_model(MODEL)
    model.load_state_dict(checkpoint(run, 2))
    with torch.no_grad():
        expected = model.eval()(images, tokenizer(["a photo", "glaucoma"]))
    found = torch.load(exported.parent / "output.pt")
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


def test_create_model_from_pretrained_takes_the_export(exported):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{exported}")
    assert preprocess.transforms[-1].mean == [0.5, 0.5, 0.5]
    assert load_file(exported / "open_clip_model.safetensors").keys() == model.state_dict().keys()


def test_an_export_warns_of_no_missing_weights(run, tmp_path, caplog):
    export_model(run, tmp_path / "model")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    open_clip.create_model(f"local-dir:{run / 'model'}")  # where none follow the warning is right
    assert "initialized randomly" in caplog.text


def test_training_goes_on_from_an_export(exported, shards, tmp_path):
    train(train_flags(shards, tmp_path, "more", model=f"local-dir:{exported}", epochs=1, train_num_samples=8, lr=0))
    start = load_file(exported / "open_clip_model.safetensors")
    end = checkpoint(tmp_path / "more", 1)
    assert torch.equal(start["text.proj.weight"], end["text.proj.weight"])


def test_chosen_preprocessing_stays_with_the_export_even_where_it_is_open_clips_default(shards, tmp_path):
    flags = train_flags(shards, tmp_path, "mean", epochs=1, train_num_samples=8)
    train([*flags, "--image-mean", *map(str, open_clip.OPENAI_DATASET_MEAN), "--image-resize-mode", "squash"])
    export_model(tmp_path / "mean", tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert list(loaded.preprocess.transforms[-1].mean) == list(open_clip.OPENAI_DATASET_MEAN)
    assert loaded.model.visual.preprocess_cfg["resize_mode"] == "squash"


def test_a_model_trained_without_borders_crops_wherever_it_is_used_and_when_it_goes_on(shards, tmp_path):
    flags = train_flags(shards, tmp_path, "crop", epochs=1, train_num_samples=8)
    train([*flags, "--crop"])
    stored = read_model_config(tmp_path / "crop" / "model")
    assert stored.preprocess["crop"] is True
    assert (
        "crop" not in json.loads((tmp_path / "crop" / "model" / "open_clip_config.json").read_text())["preprocess_cfg"]
    )
    export_model(tmp_path / "crop", tmp_path / "model")
    framed = Image.new("RGB", (300, 100))
    framed.paste(Image.new("RGB", (100, 100), (200, 80, 40)), (100, 0))
    cropped, plain = load_model(tmp_path / "model").preprocess(framed), load_model(tmp_path / "model", crop=False)
    open_clips = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")[2]
    assert torch.equal(plain.preprocess(framed), open_clips(framed))
    assert (cropped[0] > 0).float().mean() > 0.9
    assert (plain.preprocess(framed)[0] > 0).float().mean() < 0.4
    caches = {
        crop: FeatureCache(tmp_path / "cache", load_model(tmp_path / "model", crop=crop)).path
        for crop in (None, True, False)
    }
    assert caches[None] == caches[True] != caches[False]
    assert "without their black border" in (tmp_path / "model" / "README.md").read_text()


def test_a_run_that_began_with_framed_images_goes_on_so(shards, tmp_path):
    flags = train_flags(shards, tmp_path, "framed", train_num_samples=8)
    train([*flags, "--epochs", "1", "--image-resize-mode", "longest"])
    train([*flags, "--epochs", "2", "--resume", "latest"])  # without the flag, as before there was another default
    assert read_model_config(tmp_path / "framed" / "model").preprocess["resize_mode"] == "longest"
    with pytest.raises(ConfigError, match="another model config"):
        train([*flags, "--epochs", "3", "--resume", "latest", "--image-resize-mode", "shortest"])


def test_export_refuses_what_it_cannot_export(run, tmp_path):
    with pytest.raises(CheckpointError, match="no such run folder"):
        export_model(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export_model(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(OutputError, match="holds something already"):
        export_model(run, run)
    other = tmp_path / "run" / "checkpoints"
    other.mkdir(parents=True)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, other / "epoch_1.pt")
    with pytest.raises(CheckpointError, match="no model folder"):
        export_model(tmp_path / "run", tmp_path / "out")


def test_loading_refuses_broken_folders(exported, tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        load_model(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "open_clip_config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        load_model(broken)
    config = (exported / "open_clip_config.json").read_text()
    (broken / "open_clip_config.json").write_text(config)
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(broken)
    (broken / "open_clip_model.safetensors").write_bytes((exported / "open_clip_model.safetensors").read_bytes()[:999])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(broken)
