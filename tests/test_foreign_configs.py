"""Model folders and configs of somebody else: nothing in them runs, fetches or fills the memory."""

import ast
import json
from pathlib import Path

import open_clip
import pytest
import yaml
from open_clip import factory

import keepfit_clip
from keepfit_clip.errors import ConfigError, KeepFITError, KnowledgeError, MissingWeightsError
from keepfit_clip.folders.export import export_model
from keepfit_clip.folders.loading import load_model
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model import pretrained as weights
from keepfit_clip.model.config import ModelConfig, check_preprocess_config
from keepfit_clip.training.hybrid.run import main as train
from keepfit_clip.training.text_stage.pretrain import TextPretraining, pretrain_text
from tests.conftest import MODEL, train_flags
from tests.encoders import write_encoder

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_sources(monkeypatch):
    """What one test calls foreign or asks for is nothing of the next one's."""
    monkeypatch.setattr(weights, "_foreign", set())
    monkeypatch.setattr(weights, "_asked_for", set())


@pytest.fixture(autouse=True)
def _yes(monkeypatch):
    """Somebody answers yes to every question."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def write_with_code(folder: Path) -> Path:
    """An encoder whose tokenizer, config and model bring Python of their own; it leaves a file `ran` when it runs."""
    write_encoder(folder)
    marker = f"open({str(folder / 'ran')!r}, 'w').close()\n"
    (folder / "code.py").write_text(
        f"{marker}from transformers import BertConfig as C, BertForMaskedLM as M, BertTokenizerFast as T\n"
    )
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]}, "tokenizer_class": "Unknown"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "code.C", "AutoModelForMaskedLM": "code.M"}, "model_type": "unknown"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_folder(folder: Path, text=None, vision=None, **more) -> Path:
    """A model folder without weights whose config has these changes; the tokenizer files are there or not."""
    folder.mkdir(exist_ok=True)
    model_cfg = open_clip.get_model_config(MODEL)
    model_cfg["text_cfg"] |= {"hf_tokenizer_name": "its-own", "tokenizer_mode": "keepfit", **(text or {})}
    model_cfg["vision_cfg"] |= vision or {}
    content = {"model_cfg": {**model_cfg, **more}, "preprocess_cfg": {"size": 64}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


TRUSTING = [
    {"tokenizer_kwargs": {"trust_remote_code": True}},
    {"tokenizer_kwargs": {"trust_remote_code": True}, "tokenizer_mode": None},
    {"tokenizer_mode": None},
    {},
]


@pytest.fixture(params=TRUSTING)
def trap(request, tmp_path):
    """A model folder that would like its own code to run."""
    text = dict(request.param)
    folder = write_folder(write_with_code(tmp_path / "trap"), text)
    if text.get("tokenizer_mode", "") is None:
        content = json.loads((folder / "open_clip_config.json").read_text())
        del content["model_cfg"]["text_cfg"]["tokenizer_mode"]
        (folder / "open_clip_config.json").write_text(json.dumps(content))
    (folder / "open_clip_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


def test_no_door_runs_the_code_of_a_model_folder(trap, shards, tmp_path):
    doors = {
        "tokenizer": lambda: open_clip.get_tokenizer(f"local-dir:{trap}"),
        "load": lambda: load_model(trap),
        "train": lambda: train(train_flags(shards, tmp_path, "run", model=f"local-dir:{trap}")),
    }
    for door, go in doors.items():
        with pytest.raises(KeepFITError):
            go()
        assert not (trap / "ran").exists(), door


def test_no_door_of_a_run_folder_or_the_hub_does_either(trap, tmp_path, monkeypatch):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "epoch_1.pt").write_bytes(b"")
    trap.rename(run / "model")
    with pytest.raises(KeepFITError):
        export_model(run, tmp_path / "out")
    trap = run / "model"
    monkeypatch.setattr(
        factory, "download_pretrained_from_hf", lambda *_, filename=None, **__: str(trap / (filename or "none"))
    )
    monkeypatch.setattr(weights, "resolve_source", lambda _: str(trap))  # what the hub would give for its name
    with pytest.raises(KeepFITError):
        open_clip.get_tokenizer("hf-hub:somebody/model")
    if json.loads((trap / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"].keys() & {"tokenizer_kwargs"}:
        with pytest.raises(ConfigError, match=r"hf-hub:somebody/model.*tokenizer_kwargs"):
            open_clip.create_model("hf-hub:somebody/model")
    assert not (trap / "ran").exists()


def test_textual_pretraining_runs_no_code_of_its_start_whatever_is_answered(tmp_path):
    start = write_with_code(tmp_path / "start")
    (tmp_path / "corpus.txt").write_text("A microaneurysm is a small red dot.\n" * 20)
    with pytest.raises(MissingWeightsError, match="custom code"):
        pretrain_text([tmp_path / "corpus.txt"], TextPretraining(init=str(start)), tmp_path / "out")
    assert not (start / "ran").exists()


def test_a_callers_trust_is_refused_rather_than_dropped():
    with pytest.raises(ConfigError, match="trust_remote_code"):
        open_clip.get_tokenizer("keepfit-v2-lite", trust_remote_code=True)


def test_every_load_of_the_library_forbids_code():
    """`from_pretrained` stands in one place, with trust_remote_code=False; everything else goes through it."""
    found = []
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "training").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                trust = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
                found.append((path.name, [getattr(value, "value", None) for value in trust]))
    assert found == [("pretrained.py", [False])]


def test_tokenizer_of_a_hub_model_is_its_own(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "model")
    monkeypatch.setattr(
        factory, "download_pretrained_from_hf", lambda *_, filename=None, **__: str(folder / (filename or "none"))
    )
    with pytest.raises(MissingWeightsError, match="'somebody/model' could not be loaded"):
        open_clip.get_tokenizer("hf-hub:somebody/model")


@pytest.mark.parametrize("source", ["somebody/encoder", "/etc", "../elsewhere"])
def test_a_source_that_only_a_foreign_config_names_must_be_asked_for(tmp_path, source):
    folder = write_folder(tmp_path / "model", text={"hf_model_name": source})
    name = f"local-dir:{folder}"
    with pytest.raises(ConfigError, match=r"nothing of its own.*--allow-source"):
        open_clip.create_model(name)
    assert open_clip.create_model(name, pretrained_text=False) is not None
    keepfit_clip.allow_source(source)
    with pytest.raises(MissingWeightsError, match="could not be loaded"):  # gone to, and not there
        open_clip.create_model(name)


def test_a_text_tower_inside_its_folder_is_its_own(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tower = write_encoder(folder / "text_tower")
    stored = json.loads((tower / "config.json").read_text())
    sizes = {k: stored[k] for k in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}
    write_folder(folder, text={"hf_model_name": str(tower), "hf_model_config": sizes, "eos_id": 2, "bos_id": 1})
    assert open_clip.create_model(f"local-dir:{folder}").text.vocab_size == stored["vocab_size"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": {"timm_model_name": "hf-hub:somebody/net"}}, "timm_model_name"),
        ({"vision": {"timm_model_name": "local-dir:/tmp/net"}}, "timm_model_name"),
        ({"vision": {"pretrained_weights": "pypi:some-package"}}, "pretrained_weights"),
        ({"vision": {"pretrained_weights": "/etc/passwd"}}, "pretrained_weights"),
        ({"vision": {"image_size": 10**6}}, r"vision_cfg.image_size.*1 to 4,096"),
        ({"vision": {"image_size": True}}, "vision_cfg.image_size"),
        ({"text": {"hf_model_name": "pypi:some-package"}}, "hf_model_name"),
        ({"text": {"hf_tokenizer_name": "https://example.org/tokenizer"}}, "hf_tokenizer_name"),
        ({"text": {"hf_model_name": ["somebody/net"]}}, "hf_model_name must be a text"),
        ({"text": {"tokenizer_kwargs": {}}}, "tokenizer_kwargs"),
        ({"text": {"tokenizer_mode": "clips"}}, "tokenizer_mode"),
        ({"text": {"context_length": 10**9}}, "context_length"),
        ({"encoder": {"attn_implementation": "somebody/kernel"}}, "attn_implementation"),
        ({"encoder": {"attn_implementation": "flash"}}, "eager or sdpa"),
        ({"encoder": {"_attn_implementation": "eager"}}, "leave it out"),
        ({"encoder": {"auto_map": {"AutoModel": "code.M"}}}, "auto_map"),
        ({"encoder": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"encoder": {"model_type": "../bert"}}, "no plain word"),
        ({"encoder": {"num_hidden_layers": 10**7}}, "num_hidden_layers"),
        ({"encoder": {"hidden_size": 10**9}}, "hidden_size"),
        ({"encoder": {"vocab_size": 2_000_000, "hidden_size": 60_000}}, "parameters"),
        ({"encoder": {"hidden_size": "wide"}}, "hidden_size"),
        ({"encoder": {"rope": {"a": {"b": {"c": {"d": 1}}}}}}, "more than any encoder"),
        ({"embed_dim": 10**8}, "embed_dim"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"multimodal_cfg": {"layers": 10**7, "heads": 2}}, "multimodal_cfg.layers"),
        ({"multimodal_cfg": {"layers": 2, "heads": 2, "mlp_ratio": 1e9}}, "mlp_ratio"),
        ({"keepfit_cfg": {"revision": {"heads": 10**9}}}, "revision.heads"),
        ({"keepfit_cfg": {"revision": 3}}, "keepfit_cfg.revision must be an object"),
        ({"keepfit_cfg": []}, "keepfit_cfg must be an object"),
        ({"custom_text": False}, "custom_text"),
        ({"quick_gelu": True}, "quick_gelu"),
    ],
)
def test_a_config_out_of_bounds_is_refused_by_its_key(tmp_path, change, message):
    encoder = change.pop("encoder", None)
    if encoder:
        sizes = open_clip.get_model_config(MODEL)["text_cfg"]["hf_model_config"]
        change["text"] = {"hf_model_config": sizes | encoder}
    folder = write_folder(tmp_path / "model", **change)
    for go in (open_clip.create_model, open_clip.get_tokenizer, open_clip.get_model_config):
        with pytest.raises(ConfigError, match=message):
            go(f"local-dir:{folder}")


@pytest.mark.parametrize("missing", ["embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg"])
def test_a_config_that_lacks_a_section_is_refused_by_its_name(missing):
    model_cfg = open_clip.get_model_config(MODEL)
    del model_cfg[missing]
    with pytest.raises(ConfigError, match=rf"lacks the keys \['{missing}'\]"):
        ModelConfig.from_dict(model_cfg)


def test_shipped_configs_pass():
    for name in keepfit_clip.list_keepfit_models():
        ModelConfig.from_dict(open_clip.get_model_config(name))


@pytest.mark.parametrize("values", [{"pad": "left"}, {"pad": 1}, {"crop": "yes"}])
def test_a_crop_or_a_border_that_there_is_not_is_refused(values):
    (key,) = values
    with pytest.raises(ConfigError, match=f"keepfit_cfg.preprocess.{key}"):
        ModelConfig.named(MODEL).with_preprocess(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.5, float("nan"), 0.5]}, "mean must be three finite"),
        ({"std": [0.5, 0.5]}, "std must be three finite"),
        ({"std": [0.5, 0.0, 0.5]}, "std must be above 0"),
        ({"resize_mode": "stretch"}, "resize_mode"),
        ({"size": 10**9}, "size"),
        ({"fill_color": "black"}, "fill_color"),
        ({"colour": 1}, r"unknown keys \['colour'\]"),
    ],
)
def test_preprocessing_that_gives_no_image_is_refused(exported, tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        check_preprocess_config(values)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["preprocess_cfg"] |= values
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="NaN is no JSON value" if "NaN" in json.dumps(values) else message):
        load_model(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"model_cfg": NaN}', "not json", "[]", '{"model_cfg": 3}'])
def test_a_config_that_is_no_config_is_one_clear_error(tmp_path, content):
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"open_clip_config\.json: not"):
        load_model(tmp_path)


def test_yaml_aliases_are_refused_at_once(tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    (tmp_path / "bomb.yaml").write_text(bomb)
    with pytest.raises(KnowledgeError, match=r"an alias .* in line 2"):
        Knowledge.load(tmp_path / "bomb.yaml")


def test_a_knowledge_file_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("keepfit_clip.knowledge.files._LARGEST_FILE", 1 << 20)
    (tmp_path / "large.yaml").write_text("a: 1\n" * (1 << 18))
    with pytest.raises(KnowledgeError, match="larger than 1 MiB"):
        Knowledge.load(tmp_path / "large.yaml")
    glaucoma = {"name": "my glaucoma", "kind": "condition", "source": "own", "findings": {}}
    content = {"schema": 1, "extends": True, "conditions": [glaucoma]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    assert "my glaucoma" in Knowledge.load(tmp_path / "mine.yaml").conditions
