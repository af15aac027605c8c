"""What the tests share: one thread, no network, pictures, shards, a tiny model and a tiny finished run."""

import logging
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import open_clip
import pytest
import torch

import keepfit_clip  # noqa: F401 - registers the models
from keepfit_clip.data import MixedStream, StreamOptions
from keepfit_clip.data.shards.build import ShardOptions, build_shards
from keepfit_clip.data.stream.decoding import make_resizer
from keepfit_clip.data.stream.sampling import make_pools
from keepfit_clip.folders.export import export_model
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.model.tokenization import Tokenizer
from keepfit_clip.training.hybrid.run import main as train
from tests.pictures import write_elite, write_public

torch.set_num_threads(1)

MODEL = "keepfit-v2-test"
PREPROCESS = {
    "size": 64,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}


@pytest.fixture(autouse=True)
def _own_log_level():
    """A command quietens the libraries of its process, which is the tests' too."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with public.csv and elite.csv and their pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    write_public(folder, 24)
    write_elite(folder, 16)
    return folder


@pytest.fixture(scope="session")
def shards(pictures, tmp_path_factory):
    """Folders of shards: public and elite."""
    folder = tmp_path_factory.mktemp("shards")
    for kind in ("public", "elite"):
        options = ShardOptions(kind=kind, modality="CFP", samples_per_shard=10)
        build_shards(pictures / f"{kind}.csv", pictures, folder / kind, options)
    return folder


@pytest.fixture(scope="session")
def held_out(tmp_path_factory):
    """Shards of pictures that no other shards hold, as `--val-data` takes them."""
    folder = tmp_path_factory.mktemp("held_out")
    for kind, write in (("public", write_public), ("elite", write_elite)):
        table = write(folder, 8, seed=7)
        build_shards(table, folder, folder / "shards" / kind, ShardOptions(kind=kind, modality="CFP"))
    return f"{folder / 'shards' / 'public'}::{folder / 'shards' / 'elite'}"


@pytest.fixture
def model():
    """A fresh tiny model in eval mode."""
    torch.manual_seed(0)
    return open_clip.create_model(MODEL).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return open_clip.get_tokenizer(MODEL)


def train_flags(shards, logs, name, **more):
    """Flags of a short run on the tiny model."""
    flags = {
        "model": MODEL,
        "public-data": shards / "public",
        "elite-data": shards / "elite",
        "logs": logs,
        "name": name,
        "batch-size": 8,
        "train-num-samples": 32,
        "epochs": 2,
        "workers": 0,
        "lr": 1e-3,
        "warmup": 1,
        "precision": "fp32",  # the same on every processor
        "log-every-n-steps": 1,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }
    return [
        str(part) for key, value in flags.items() for part in ([f"--{key}"] if value is True else [f"--{key}", value])
    ]


@pytest.fixture(scope="session")
def run(shards, held_out, tmp_path_factory):
    """A finished run folder of two short epochs."""
    logs = tmp_path_factory.mktemp("runs")
    train(train_flags(shards, logs, "run", val_data=held_out))
    return logs / "run"


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    """The run as a model folder."""
    out = tmp_path_factory.mktemp("export") / "model"
    export_model(run, out)
    return out


@pytest.fixture
def make_stream(shards, tokenizer):
    def make(epoch=0, batches=4, context_length=77, public="public", elite="elite", **options):
        return MixedStream(
            make_pools(shards / public) if public else [],
            make_pools(shards / elite) if elite else [],
            StreamOptions(**{"batch_size": 8, "elite_fraction": 0.25, **options}),
            batches,
            lambda: epoch,
            make_resizer(PREPROCESS),
            Tokenizer(tokenizer, context_length, pad_id=0, eos_id=49407),
            Knowledge.load(),
            PREPROCESS["mean"],
            PREPROCESS["std"],
        )

    return make
