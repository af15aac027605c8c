"""Stage 2, hybrid pretraining: `run` puts what stands here into open_clip_train's main."""
