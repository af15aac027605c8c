"""What is known of retinal conditions: `conditions` reads knowledge.json.

`templates` puts it into words, `mentions` finds it in somebody's words.
"""

from keepfit_clip._faces import face

__getattr__, __all__ = face(
    __name__,
    {
        "knowledge.conditions": ["Code", "Condition", "Knowledge", "MODALITIES"],
        "knowledge.held_out": ["HeldOut"],
        "knowledge.templates": ["class_texts"],
    },
)
