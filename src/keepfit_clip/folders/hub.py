"""Model folders on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from keepfit_clip.errors import OutputError, first_line
from keepfit_clip.folders.model_folder import require_model

__all__ = ["push_to_hub"]

# What a model folder may hold: nothing else leaves this machine.
_FILES = ("*.json", "*.safetensors", "*.md", "*.txt")


def push_to_hub(folder: str | Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Uploads a model folder, so that `open_clip.create_model('hf-hub:OWNER/NAME')` loads it.

    Args:
        folder: made by `export_model` or an import.
        repo_id: OWNER/NAME; made where there is none.
        private: whether a new repository is private.
        token: of the hub; by default that of `hf auth login`.

    Returns:
        The address of the upload.

    Raises:
        CheckpointError: the folder holds no model with weights.
        OutputError: the hub does not take it, or is out of reach.
    """
    folder = require_model(folder)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            allow_patterns=list(_FILES),
            commit_message="Upload a keepfit_clip model",
        )
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise OutputError(
            f"{folder} was not uploaded to {repo_id} ({first_line(error)}): log in with `hf auth login`, check the "
            "name OWNER/NAME and the network"
        ) from error
    return str(commit.commit_url)
