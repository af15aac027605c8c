"""What a trained model brings to a data set: zero-shot, few shots, linear probe, as the papers measure it.

`splits` parts a data set, `methods` classify, `finetune` trains the tower too, `protocol` runs them over the folds;
`tables` and `plots` say what came of it.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "transfer.finetune": ["FinetuneOptions"],
        "transfer.protocol": ["Outcome", "TransferOptions", "encode_set", "run_transfer"],
        "transfer.splits": ["Shots"],
    },
)
