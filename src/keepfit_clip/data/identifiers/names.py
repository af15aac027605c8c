"""Names of people in captions, told from the capitals of medicine by the words around them.

There is no list of surnames. A run of capitalised words that medicine does not use is taken for a name where something
beside it says so: a title, a role, "seen by", an age, a sex. The words of medicine are those of the knowledge file,
their stems in four languages, and the devices, studies and eponyms of `caption_words.txt`.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import regex

from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.terms import normal_form

__all__ = ["name_spans"]

_MOST_WORDS = 5  # of a name
_BEFORE = 48  # characters looked at before a name

_STEMS = regex.compile(
    r"retin|opath|ma[kc]ul|netzhaut|ödem|(?:oe?|e)dem|drus|papill|glau[ck]|[ck]atara[ck]t|choro|aderhaut|atroph|"
    r"vitr[eé]|glask|"
    r"verschlu|h[aä]e?morr|neova|membran|vas[ck]|corn[ée]|uve|foram|ablös|s[yíi]ndrom|diseas|krank|maladie|enferm|"
    r"fundus|fond|fov|"
    r"angio|tomogr|graph|gra[fv][íi]|s[ck]op|ektom|ectom|dystro|degener|diabet|ophthal|oftalm|ocul|okul|^arter|"
    r"thromb|isch[aä]?em|perfus|"
    r"pigment|nevus|naevus|melan|tumou?r|myop|lesion|lasion|l[ée]sion|injek|injec|laser|visus|acuit|(?:itis|"
    r"[oó]sis|oma|opsia|emia|ität|ung|osus|ensis|cocc\w{1,6})$",
    regex.IGNORECASE,
)
_EPONYM = regex.compile(
    r"(?:['’]s)?[- ](?i:disease|syndrome|dystrophy|degeneration|retinopathy|choroiditis|uveitis|spots?|rings?|"
    r"membranes?|layer|cells?|"
    r"lens|tonomet\w{1,5}|papilla|neuropathy|sign|line|anomaly|malformation|classification|criteria|study|trial|"
    r"score|field|test|"
    r"model|software|algorithm|network|system|app|camera|device|stain|edema|oedema|atrophy|canal|nodules?|flecken|"
    r"plaques?|pupil|system|chart|grading|grid)\b"
)

_WORD = r"\p{Lu}[\p{L}\p{M}'’-]{0,30}+(?!\d)"
_PARTICLE = r"(?:van|von|de|del|della|den|der|di|da|dos|la|le|al|bin|ibn|ter|ten|zu|du|y)"
_JOIN = rf"(?:\. ?(?<=(?<!\p{{L}})\p{{L}}\. ?)|,? )(?:{_PARTICLE} ){{0,3}}"
_TOKEN = regex.compile(rf"(?<![\p{{L}}\d])(?:(?:{_PARTICLE} ){{1,3}})?(?P<word>{_WORD})")
_NEXT = regex.compile(rf"(?:{_JOIN})(?P<word>{_WORD})")
_CREDENTIALS = regex.compile(
    r",? ?(?:MD|M\.D\.|DO|D\.O\.|Ph\.?D|FRC\w{1,8}|MRC\w{1,8}|FACS|MBBS|RN|M\.?Sc|COA|CRA|O\.D\.)(?!\p{L})"
)
_POSSESSIVE = regex.compile(r"['’]s$")

# A word before a name that makes one capitalised word a name.
_TITLE = (
    r"(?-i:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Sir|Lady|Nurse|Sister|Rev|Frau|Herrn?|Mme|Mlle|Mlles|Monsieur|"
    r"Madame|Mademoiselle|Docteur|Pr|Sra?|Srta|Don|Doña|Dra|Señora?)\b\.?(?: med\.| dent\.| h\.c\.)?(?: (?-i:Dr|"
    r"Prof)\b\.?)?"
)
_INITIAL_TITLE = r"(?-i:(?<![\p{L}.])M\.)"  # French
_LABEL = (
    r"(?:patient'?s?(?:in|e)? ?name|name(?: des patienten| of patient)?|surname|(?:first|last|given|family|middle|"
    r"full|maiden) name|"
    r"nachname|vorname|nom(?:bre)?(?: du patient| del paciente)?|pr[ée]nom|apellidos?|patient(?:in|e)?|paciente|pt|"
    r"subject|pat\.?)\s?[:=]"
)
_ROLE = (
    r"(?:(?:ophthalmic )?photographer|operator|technician|surgeon|tech|grader|consultant|attending|physician|"
    r"doctor|professor|ophthalmologist|optometrist|"
    r"optician|orthoptist|examiner|reviewer|referrer|reporter|author|radiologist|resident|fellow|registrar|trainee|"
    r"anaesthetist|"
    r"clinician|provider|gp|untersucher(?:in)?|arzt|ärztin|hausarzt|augenarzt|operateur|chirurg|chirurgien|"
    r"m[ée]decin|photographe|op[ée]rateur|"
    r"m[ée]dico|cirujan[oa]|fot[óo]graf[oa]?|t[ée]cnic[oa]|operador[a]?|fotograf(?:in)?|interpreting|reporting)"
)
_DONE = (
    r"(?:(?:seen|examined|reported|dictated|signed|referred|reviewed|graded|imaged|performed|photographed|taken|"
    r"acquired|read|interpreted|"
    r"verified|approved|requested|operated(?: on)?|injected|treated|captured|scanned|assessed|written|checked|"
    r"confirmed|recorded|prepared|"
    r"labell?ed|annotated|diagnosed|followed|transcribed|authori[sz]ed|validated|ordered|done|"
    r"obtained)(?: electronically)? by|"
    r"(?:untersucht|überwiesen|befundet|gesehen|operiert|behandelt|aufgenommen|erstellt|beurteilt|vidiert) (?:von|"
    r"durch)|"
    r"(?:adress[ée]+|examin[ée]+|vue?|suivie?|opérée?|réalisée?|envoyée?|interprétée?)s? par(?: le| la)?|"
    r"(?:atendid|examinad|remitid|valorad|operad|realizad|vist|derivad|informad)[oa]s? por(?: el| la)?|"
    r"(?:photos?|photographs?|images?|scans?|pictures?|reading|report|exam(?:ination)?|imaging|surgery|injection|"
    r"operation) by|"
    r"courtesy of|discussed with|credit:?|cc:?|signed:?|(?:aufnahme|opérateur|lecteur|informe|firmado):)"
)
_KIN = (
    r"(?:mother|father|son|daughter|wife|husband|brother|sister|aunt|uncle|grandmother|grandfather|carer|caregiver|"
    r"guardian|cousin|niece|nephew|"
    r"ehefrau|ehemann|tochter|sohn|mutter|vater|fille|fils|épouse|hij[oa]|espos[oa])(?: of)?,?"
)
_BACKWARDS = regex.IGNORECASE | regex.REVERSE  # from the name towards the start: most texts fail at the first word
_TITLED = regex.compile(rf"(?<!\p{{L}})(?:{_TITLE}|{_INITIAL_TITLE}) ", _BACKWARDS)
_STRONG = regex.compile(rf"(?<!\p{{L}})(?:{_LABEL}|{_ROLE}\s?:|{_DONE}:?|{_KIN}|baby|bébé)\s{{0,2}}", _BACKWARDS)
# What makes two capitalised words a name.
_WEAK = regex.compile(
    rf"(?<!\p{{L}})(?:(?:patient(?:in|e)?|paciente|pt|subject),?|{_ROLE}|"
    r"(?:photographs?|photos?|images?|imaging|scans?|pictures?|fundus|retina|maculas?|eyes?|angiograms?|oct|report|"
    r"results?|case|history|"
    r"examination|photographien?|fundusfotos?|aufnahmen?|r[ée]tinographies?|retinograf[íi]as?) (?:of|for|from|von|"
    r"de|del)|"
    r"this is|here is|known as|called|named|infant|child|twin)\s{0,2}",
    _BACKWARDS,
)
# What stands after a name, and hardly after anything else with two capitals.
_AFTER = regex.compile(
    r"\.?(?:,? ?[(/]?\s?(?:\(|,|/|-)?\s?(?:aged?\s?:? ?\d{1,3}\b|\d{1,3} ?(?:-? ?years?|yrs?|y\b|yo\b|y/o|ans\b|"
    r"años|Jahre|J\b|岁)|"
    r"\d{1,3} ?(?-i:[MFWH])\b|\d{1,3}(?:,|\))|(?-i:[MF])\b ?,? ?\d{1,3}\b|(?:a )?(?:fe)?male\b|(?:a )?(?:wo)?man\b|"
    r"born\b|dob\b|geb\.|née?\b|mrn\b)| is an? \d{1,3}[- ]year)",
    regex.IGNORECASE,
)
_OWNED = regex.compile(
    r" (?i:left|right|both|retinas?|eyes?|maculas?|fundus|vision|oct|scans?|images?|photos?|discs?|angiogram)\b"
)
# After a surname and a first name at the start of a caption.
_AFTER_INDEX = regex.compile(r"\s?(?:[-:;(/|]|(?:OD|OS|OU|RE|LE)\b|(?:left|right|both) eyes?\b|\d)")

_HAN_SURNAME = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹"
    "熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文欧"
)
_HAN_TITLE = "医生|医师|主任医师|主任|教授|大夫|护士|先生|女士|小姐|太太|技师|同志"
_HAN_NO_NAME = (
    "高血|高度|高龄|高年|高眼|黄斑|白内|白化|白色|万古|石膏|金黄|江苏|于双|于左|于右|"
    "文献|常规|易感|任何|武汉|方位|余无|史无|曾有|曾行|曾患|何时"
)
_HAN = (
    regex.compile(
        rf"(?:患者姓名|姓名|检查医[师生]|报告医[师生]|审核医[师生]|主诊医[师生]|申请医[师生]|医[师生]|技师|联系人|家属)\s?[:：]\s?"
        rf"\K(?!{_HAN_NO_NAME})[\u4e00-\u9fff]{{2,4}}"
    ),
    regex.compile(
        rf"(?:患者|病人|患儿|受检者|医[师生])\s?[:：]?\s?\K(?!{_HAN_NO_NAME})[{_HAN_SURNAME}][\u4e00-\u9fff]{{1,2}}"
        r"(?=$|[，。,;；.:：（(\s\d]|男|女)"
    ),
    regex.compile(
        rf"(?<![全专眼内外骨儿牙产妇])(?<![由对关至]于)(?!{_HAN_NO_NAME})[{_HAN_SURNAME}]"
        rf"[\u4e00-\u9fff]{{0,2}}?(?:{_HAN_TITLE})(?![一-龥]{{0,1}}状)"
    ),
)


def name_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where names of people seem to stand: start and end of each."""
    for start, words in _runs(text):
        end = words[-1].end()
        if not _is_name(text, start, words):
            continue
        title, credentials = _TITLED.match(text, max(0, start - _BEFORE), start), _CREDENTIALS.match(text, end)
        yield title.start() if title else start, credentials.end() if credentials else end
    for pattern in _HAN:
        for match in pattern.finditer(text):
            yield match.span()


def _runs(text: str) -> Iterator[tuple[int, list[regex.Match]]]:
    """Runs of capitalised words that medicine does not use: where each starts, and its words."""
    position = 0
    while word := _TOKEN.search(text, position):
        position = word.end()
        if _is_medical(word["word"]) and not _is_initial(text, word) and not _is_titled_surname(text, word):
            continue
        words = [word]
        while len(words) < _MOST_WORDS and (word := _NEXT.match(text, position)):
            if (
                _is_medical(word["word"])
                and not _is_initial(text, word)
                and word["word"].casefold() not in _word_lists()[1]
            ):
                break
            words.append(word)
            position = word.end()
        yield words[0].start(), words


def _is_name(text: str, start: int, words: list[regex.Match]) -> bool:
    """Whether what stands around a run of words makes a name of it."""
    end = words[-1].end()
    if all(len(word["word"]) == 1 for word in words) or _EPONYM.match(text, end):
        return False
    before = max(0, start - _BEFORE)
    if _TITLED.match(text, before, start) or _STRONG.match(text, before, start):
        return True
    if len(words) == 1:
        return bool(_POSSESSIVE.search(words[0]["word"]) and _OWNED.match(text, end))
    return bool(
        _POSSESSIVE.search(words[-1]["word"])
        or _WEAK.match(text, before, start)
        or _AFTER.match(text, end)
        or (start == 0 and _AFTER_INDEX.match(text, end))
    )


def _is_initial(text: str, word: regex.Match) -> bool:
    return len(word["word"]) == 1 and text[word.end() : word.end() + 1] == "."


def _is_titled_surname(text: str, word: regex.Match) -> bool:
    """Whether a word of medicine that is a surname too stands after a title, and no "disease" after it."""
    start, end = word.start("word"), word.end()
    titled = word["word"].casefold() in _word_lists()[1] and _TITLED.match(text, max(0, start - _BEFORE), start)
    return bool(titled and not titled[0].startswith("M.") and not _EPONYM.match(text, end))


def _is_medical(word: str) -> bool:
    """Whether captions use a capitalised word for anything but a person; one part of a double name is enough."""
    whole = _POSSESSIVE.sub("", word.casefold().replace("’", "'"))
    known = _vocabulary()
    forms = (whole, normal_form(whole), *whole.split("-"))
    return any(form in known for form in forms) or bool(_STEMS.search(whole))


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    """The words of the shipped knowledge file and of `caption_words.txt`."""
    words = set(_word_lists()[0])
    for condition in Knowledge.load().conditions.values():
        seen = (*condition.findings.values(), *condition.absent.values())
        texts = (*condition.terms, *condition.labels, condition.source, *(text for texts in seen for text in texts))
        for text in texts:
            found = [_POSSESSIVE.sub("", word) for word in regex.findall(r"[\p{L}\p{M}'-]{2,}", text.casefold())]
            words.update(found, map(normal_form, found))
    return frozenset(words)


@lru_cache(maxsize=1)
def _word_lists() -> tuple[frozenset[str], frozenset[str]]:
    """The two lists of `caption_words.txt`: words that are no names, and words of medicine that are surnames too."""
    lists = Path(__file__).with_name("caption_words.txt").read_text(encoding="utf-8").split("\n\n")
    lines = [[line for line in part.splitlines() if not line.startswith("#")] for part in lists]
    others, surnames = (frozenset(" ".join(part).split()) for part in lines)
    return others, surnames
