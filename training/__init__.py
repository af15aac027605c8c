"""The training programs: `keepfit_clip.training.text` (stage 1) and `keepfit_clip.training.main` (stage 2)."""
