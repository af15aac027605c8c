"""What a trained model brings to a data set: zero-shot, few shots, linear probe, as the papers measure it.

`splits` parts a data set, `features` runs the image tower once, `methods` classify, `protocol` runs them over the
folds; `pairs` measures retrieval and captions.
"""
