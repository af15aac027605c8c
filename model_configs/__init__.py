"""The JSON model configs that keepfit_clip registers with open_clip, one per architecture."""
