"""The whole method on drawn retinas: `run` goes through its steps, `judge` scores the model, `report` shows it."""

from keepfit_clip._faces import face

__getattr__, __all__ = face(__name__, {"training.demo.run": ["DemoSettings", "FULL", "QUICK", "run_demo"]})
