"""What a trained model brings to a data set: zero-shot, few shots, linear probe, as the papers measure it.

`splits` parts a data set, `methods` classify, `finetune` trains the tower too, `protocol` runs them over the folds;
`tables` and `plots` say what came of it.
"""
