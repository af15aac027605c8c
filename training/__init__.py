"""The training programs: `text` (stage 1) and `main` (stage 2); `demo` runs both, `report` shows a run."""
