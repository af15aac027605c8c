"""Captions that identify somebody: `privacy` looks for `patterns` and for `names` of persons."""
