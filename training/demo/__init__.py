"""The whole method on drawn retinas: `run` goes through its steps, `judge` scores the model, `report` shows it."""
