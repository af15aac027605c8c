"""What an error out of torch means for the person at the terminal."""

import torch

from keepfit_clip.errors import CheckpointError, KeepFITError
from keepfit_clip.training.hybrid.settings import HybridPretraining

__all__ = ["cause_of"]

# What gloo and NCCL say when a process on the other side is gone.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting",
              "remote process exited", "Application timeout caused pair closure")  # fmt: skip
_SHARED_MEMORY = ("shared memory", "</torch_", "/dev/shm")


def cause_of(error: Exception, settings: HybridPretraining) -> KeepFITError | None:
    """The error as one of ours that says what to do; None where that is not known."""
    words = " ".join(str(error).split())
    if "loading state_dict" in words:
        start = f"--resume {settings.resume}" if settings.resume else f"--pretrained {settings.pretrained}"
        return CheckpointError(f"{start}: the checkpoint is of another architecture: {words[:300]}")
    if "parameter group" in words:
        return CheckpointError(
            f"--resume {settings.resume}: other parameters were trained in that run: "
            "give the same --lock-image and --lock-text flags"
        )
    if any(sign in words for sign in _LOST_PEER):
        return KeepFITError("another process of this run has ended; what it said above is the reason")
    if isinstance(error, torch.distributed.DistError):
        return KeepFITError(f"the processes of this run cannot work together: {words[:400]}")
    if any(sign in words for sign in _SHARED_MEMORY):
        return KeepFITError(
            f"shared memory is full, through which the data workers send their batches ({words[:200]}): "
            "give the container more of it (docker run --shm-size 8g), or take fewer --workers"
        )
    return None
