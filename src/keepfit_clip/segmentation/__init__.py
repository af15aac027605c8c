"""What an image tower brings to finding lesions: a kept library's decoder on it, over patient folds.

`folder` and `drawn` give images with masks, `prepared` brings them to a tower's input by `geometry`, `network` is tower
and decoder, `training` trains a fold, `scores` counts pixels, `protocol` runs the folds beside a control; `tables` and
`overlays` say what came of it.
"""
