"""The model card of a folder, and its way to the hub."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.errors import CheckpointError, OutputError
from keepfit_clip.folders import hub


def test_the_card_says_what_the_model_is_and_is_not_for(exported, run):
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "keepfit_clip"  # the hub's snippet for open_clip would build another model
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    for words in ("not for diagnosis", "test_vit", "2 layers", "for 2 epochs", "| training: preset | v2 |"):
        assert words in card.text, words
    assert str(run.parent) not in card.content  # no path of this machine


class Api:
    """Takes the place of the hub's."""

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private, exist_ok):
        Api.made = (repo_id, private, exist_ok)

    def upload_folder(self, **options):
        Api.uploaded = options
        return SimpleNamespace(commit_url=f"https://hub/{options['repo_id']}/commit/1")


def test_a_folder_is_uploaded(exported, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", Api)
    result = CliRunner().invoke(app, ["push-to-hub", str(exported), "owner/name", "--private"])
    assert result.exit_code == 0, result.exception
    assert "https://hub/owner/name/commit/1" in result.stdout
    assert Api.made == ("owner/name", True, True)
    assert Api.uploaded["folder_path"] == str(exported)
    assert "*.safetensors" in Api.uploaded["allow_patterns"]


def test_what_cannot_be_uploaded_says_so(exported, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no model folder"):
        hub.push_to_hub(tmp_path, "owner/name")
    (tmp_path / "open_clip_config.json").write_bytes((exported / "open_clip_config.json").read_bytes())
    with pytest.raises(CheckpointError, match="holds no weights"):
        hub.push_to_hub(tmp_path, "owner/name")
    with pytest.raises(OutputError, match=r"was not uploaded to not a name.*OWNER/NAME"):
        hub.push_to_hub(exported, "not a name")


@pytest.mark.parametrize("error", [LocalTokenNotFoundError("Token is required"), HTTPError("no route to host")])
def test_a_hub_that_refuses_or_is_out_of_reach_is_one_line(exported, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(Api, "create_repo", refuse)
    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(OutputError, match=rf"{error}.*hf auth login"):
        hub.push_to_hub(exported, "owner/name")
