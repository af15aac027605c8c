"""Stage 2, hybrid pretraining: `python -m keepfit_clip.training.main`; see hybrid/run.py."""

import sys

from keepfit_clip.training.hybrid.run import main
from keepfit_clip.training.programs import exit_code

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(exit_code("keepfit-clip train", main))
