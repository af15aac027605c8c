"""The version, which setup.cfg repeats: a test holds them together."""

__version__ = "0.1.0"
