"""Stage 1, textual pretraining: `pretrain` a text tower on a `corpus`, and `probe` what it learnt."""
