"""Stage 1, textual pretraining: `python -m keepfit_clip.training.text`; see text_stage/pretrain.py."""

import sys

from keepfit_clip.training.programs import exit_code
from keepfit_clip.training.text_stage.pretrain import TextPretraining, main, pretrain_text

__all__ = ["TextPretraining", "main", "pretrain_text"]

if __name__ == "__main__":
    sys.exit(exit_code("keepfit-clip pretrain-text", main))
