"""What a trained model brings to a data set: zero-shot, few shots, linear probe, as the papers measure it.

`downstream` reads a data set, `splits` parts it, `features` runs the image tower once, `methods` classify.
"""
