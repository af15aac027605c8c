"""From a category to a text: FLAIR's prompts (arXiv 2308.07898), per modality, with names or visible findings."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from keepfit_clip.knowledge.conditions import Knowledge, Term
from keepfit_clip.knowledge.grammar import article, in_image, is_plural, statement

__all__ = [
    "category_text", "class_texts", "classes_texts", "draw_text", "knowledge_sentences", "mentions_place",
    "modality_text", "sentences_of",
]  # fmt: skip

# Modality -> noun
_IMAGES = {
    "CFP": "fundus photograph",
    "FFA": "fluorescein angiogram",
    "OCT": "optical coherence tomography scan",
    None: "retinal image",
}
_EXAMINATIONS = {
    "CFP": "color fundus photography",
    "FFA": "fluorescein angiography",
    "OCT": "optical coherence tomography",
}

_LOCATION = re.compile(
    r"\b(left|right|od|os|ou|oi|le|re|[lr][/. ]+e(?:ye)?|nasal\w*|temporal\w*|superior\w*|inferior\w*|"
    r"supero\w*|infero\w*|upper|lower|quadrants?|o'?clock|hemifield|above|below|bilateral\w*|unilateral\w*)\b"
    r"|[左右]|双眼|[鼻颞][侧上下]|[上下][方半]|象限|点钟|点位",
    re.IGNORECASE,
)


def mentions_place(text: str) -> bool:
    """Whether a text speaks of a side or place, so that the image must not be mirrored."""
    return _LOCATION.search(text) is not None


def category_text(names: Sequence[str], modality: str | None, attributes: Sequence[str] = ()) -> str:
    """The plain text of an image: "A [attributes] fundus photograph of [names]".

    Args:
        names: names of what the image shows or, behind "no", does not show; at least one.
        modality: CFP, FFA, OCT or None.
        attributes: words of the image itself, such as its quality.
    """
    return in_image(names, _noun(modality, attributes))


def modality_text(modality: str | None) -> str:
    """What an image of a modality is, and no more: "A fundus photograph"."""
    return _image_of(modality)


@dataclass(frozen=True)
class _Texts:
    """All texts of one category in one modality and language."""

    named: list[str]
    stated: str
    seen: list[str]


def draw_text(
    categories: Sequence[str],
    modality: str | None,
    knowledge: Knowledge,
    rng: random.Random,
    attributes: Sequence[str] = (),
    eye: str | None = None,
    languages: Sequence[str] = ("en",),
) -> tuple[str, str]:
    """Draws a text for an image: one of its categories, by name, as a statement or by a visible finding.

    Args:
        categories: canonical names of what is true of the image, at least one.
        modality: CFP, FFA, OCT or None.
        knowledge: where names and findings come from.
        rng: decides.
        attributes: words of the image itself, used half of the time.
        eye: left, right or None; named a quarter of the time, because an image whose eye is named is not mirrored.
        languages: one of them is drawn; English where the knowledge has no words for the category in it.

    Returns:
        The text and the category it speaks of.
    """
    category = rng.choice(list(categories))
    used_attributes = list(attributes) if rng.random() < 0.5 else []
    named_eye = eye if eye is not None and rng.random() < 0.25 else None
    term = knowledge.look_up(category)
    language = languages[0] if len(languages) == 1 else rng.choice(list(languages))
    texts = _chinese(term, modality, named_eye) if language == "zh" else None
    if texts is None:
        if named_eye:
            used_attributes.append(f"{named_eye} eye")
        texts = _english(term, modality, used_attributes)
    if texts.seen and rng.random() < 0.5:
        return rng.choice(texts.seen), category
    return (texts.stated if rng.random() < 0.5 else rng.choice(texts.named)), category


def class_texts(category: str, modality: str | None, knowledge: Knowledge, descriptions: bool = True) -> list[str]:
    """Every text a zero-shot class stands for; their embeddings are averaged.

    Args:
        category: any name of the class.
        modality: CFP, FFA, OCT or None.
        knowledge: where names and findings come from.
        descriptions: False gives the canonical name alone.
    """
    texts = _english(knowledge.look_up(category), modality)
    return [*texts.named, texts.stated, *texts.seen] if descriptions else texts.named[:1]


def classes_texts(
    categories: Sequence[str],
    modality: str | None,
    knowledge: Knowledge,
    descriptions: bool = True,
    findings: bool = False,
) -> list[list[str]]:
    """The texts of classes that are compared with each other.

    By default their names, their synonyms and the statement that they are there: what is visible helps where training
    has told it of the classes, and harms where they are known from captions alone (docs/RESULTS.md).

    Args:
        categories: any names of the classes.
        modality: CFP, FFA, OCT or None.
        knowledge: where names and findings come from.
        descriptions: False gives the canonical names alone.
        findings: whether what is visible counts too: on equal terms, where each class has some, for a class that has
            none would be judged by its name alone beside others that are judged by how they look.
    """
    of_classes = [_english(knowledge.look_up(category), modality) for category in categories]
    if not descriptions:
        return [texts.named[:1] for texts in of_classes]
    with_seen = findings and all(texts.seen for texts in of_classes)
    return [[*texts.named, texts.stated, *(texts.seen if with_seen else ())] for texts in of_classes]


def knowledge_sentences(knowledge: Knowledge, languages: Sequence[str] = ("en",)) -> list[str]:
    """The whole knowledge as plain sentences, for textual pretraining."""
    return [sentence for name in knowledge.conditions for sentence in sentences_of(name, knowledge, languages)]


def sentences_of(name: str, knowledge: Knowledge, languages: Sequence[str] = ("en",)) -> list[str]:
    """What is known of one condition, by its canonical name, as plain sentences."""
    condition = knowledge.conditions[name]
    lines = []
    if "en" in languages:
        be = "are" if is_plural(name) else "is"
        lines += [f"{name} {be} also called {other}." for other in (*condition.synonyms, *condition.abbreviations)]
        lines += [f"{name} {_relation(name, parent, knowledge)} {parent}." for parent in condition.parents]
        for modality, texts in condition.findings.items():
            lines += [f"{name} on {_EXAMINATIONS[modality]}: {finding}." for finding in texts]
        for modality, texts in condition.absent.items():
            lines += [f"{_EXAMINATIONS[modality]} without {name}: {finding}." for finding in texts]
    if "zh" in languages and "zh" in condition.languages:
        lines += _chinese_sentences(name, knowledge)
    return lines


def _relation(name: str, parent: str, knowledge: Knowledge) -> str:
    """How a condition is related to a broader one: a sign of a disease, a form, or what comes with a sign."""
    plural = is_plural(name)
    kinds = knowledge.conditions[name].kind, knowledge.conditions[parent].kind
    if kinds == ("condition", "sign"):
        return "come with" if plural else "comes with"
    be = "are" if plural else "is a"
    return f"{be} {'sign' if kinds == ('sign', 'condition') else 'form'}{'s' if plural else ''} of"


def _english(term: Term, modality: str | None, attributes: Sequence[str] = ()) -> _Texts:
    image = _image_of(modality, attributes)
    named = list(dict.fromkeys(category_text([name], modality, attributes) for name in term.names))
    return _Texts(
        named, f"{image}: {statement(term.name)}", [f"{image} showing {seen}" for seen in term.findings(modality)]
    )


def _noun(modality: str | None, attributes: Sequence[str] = ()) -> str:
    return f"{', '.join(attributes)} {_IMAGES[modality]}" if attributes else _IMAGES[modality]


def _image_of(modality: str | None, attributes: Sequence[str] = ()) -> str:
    noun = _noun(modality, attributes)
    return f"{article(noun).capitalize()} {noun}"


# ---- Chinese

_CHINESE_IMAGES = {"CFP": "眼底彩照", "FFA": "荧光素眼底血管造影", "OCT": "光学相干断层扫描", None: "眼底图像"}
_CHINESE_EYES = {"left": "左眼", "right": "右眼"}


def _chinese(term: Term, modality: str | None, eye: str | None = None) -> _Texts | None:
    """The texts of a category in Chinese; None where the knowledge has no name for it."""
    wording = term.condition.languages.get("zh") if term.condition else None
    if wording is None or not wording.names:
        return None
    image = _CHINESE_EYES.get(eye, "") + _CHINESE_IMAGES[modality]
    names, name = wording.names, wording.names[0]
    if term.denies:
        seen = wording.absent.get(modality, ())
        named, stated = [f"{image}未见{other}" for other in names], f"{image}：无{name}"
    else:
        seen = wording.findings.get(modality, ())
        named, stated = [f"{image}示{other}" for other in names], f"{image}：可见{name}"
        if not term.condition.is_disease:
            stated = f"{image}：{name}"
    return _Texts(named, stated, [f"{image}可见{finding}" for finding in seen])


def _chinese_sentences(name: str, knowledge: Knowledge) -> list[str]:
    condition = knowledge.conditions[name]
    wording = condition.languages["zh"]
    if not wording.names:
        return []
    first, *others = wording.names
    lines = [f"{first}又称{other}。" for other in others]
    for parent in condition.parents:
        above = knowledge.conditions[parent].languages.get("zh")
        if above and above.names:
            is_sign = condition.kind == "sign" and knowledge.conditions[parent].kind == "condition"
            lines.append(f"{first}是{above.names[0]}的{'体征' if is_sign else '一种'}。")
    for modality, texts in wording.findings.items():
        lines += [f"{first}在{_CHINESE_IMAGES[modality]}上表现为{finding}。" for finding in texts]
    for modality, texts in wording.absent.items():
        lines += [f"无{first}时{_CHINESE_IMAGES[modality]}可见{finding}。" for finding in texts]
    return lines
