"""Names of people in captions, told from the capitals of medicine by the words around them.

There is no list of surnames. A run of capitalised words that medicine does not use is taken for a name where something
beside it says so: a title, a role, "seen by", an age, a sex. The words of medicine are those of the knowledge file,
their stems in four languages, and the devices, studies and eponyms below.
"""

from collections.abc import Iterator
from functools import lru_cache

import regex

from keepfit_clip.knowledge import Knowledge

__all__ = ["name_places"]

_MOST_WORDS = 5  # of a name
_BEFORE = 48  # characters looked at before a name

# Capitalised words of captions that are no names, beside those of the knowledge file.
_WORDS = """
a an and as at by for from in is it its of on or the this that these to with without both no not none any all each other
after before during since may will can he she his her they we i our one two three four five six seven eight nine ten first
second third fourth last next late early mild moderate severe minimal marked normal abnormal clear hazy good poor fair stable
acute chronic active inactive old new left right both central peripheral superior inferior nasal temporal upper lower
image images imaging photograph photo fundus eye eyes scan section frame montage field fields camera lens view red free
report findings finding impression diagnosis history comment comments note notes figure fig table case patient patients pt
subject name surname date age sex male female man woman boy girl child infant baby grader reader stage grade type zone
category class group level protocol study trial standard score area code oct octa ffa fa fag cfp icg icga faf uwf hvf vf erg
eog mri mr ct b od os ou re le md psd va bcva iop cup disc optic macula fovea retina choroid vitreous lesion follow-up
left-eye right-eye courtesy credit dr mr mrs ms miss mx prof professor doctor sir lady nurse sister herr frau mme mlle
monsieur madame docteur pr sr sra srta don doña dra señor señora dna rna
ai ml cnn fellow resident attending consultant surgeon photographer operator technician ophthalmologist optometrist physician examiner
reviewer referrer signed reviewed examined reported dictated seen performed captured acquired taken graded treated
south north east west african asian european american caucasian hispanic chinese japanese indian england america africa asia
ohio river valley europe german french spanish lyme kaposi sarcoma candida albicans treponema pallidum toxocara toxoplasma
mother father son daughter brother wife husband aunt uncle mutter vater sohn tochter fille fils hijo hija
paciente patiente patientin nombre apellido apellidos nom prénom nachname vorname untersucher untersucherin arzt ärztin
augenarzt hausarzt operateur chirurg chirurgien chirurgienne médecin photographe opérateur opératrice médico médica
cirujano cirujana fotógrafo fotógrafa técnico técnica operador fotograf fotografin aufnahme untersucht überwiesen befundet
gesehen examiné examinée vu vue adressé adressée atendido atendida examinado examinada remitido remitida interpreting
reporting registrar trainee optician orthoptist radiologist clinician provider author reporter gp
der die das ein eine und mit bei am im vom zum zur nach vor ohne kein keine links rechts beide auge augen rechtes linkes
le la les un une des du et avec sans chez œil yeux droit droite gauche homme femme el los las una con sin ojo ojos
derecho derecha izquierdo izquierda hombre mujer varón
heidelberg spectralis topcon zeiss cirrus optos optomap daytona california monaco nidek canon kowa optovue avanti
triton maestro clarus visucam eidon centervue volk goldmann humphrey octopus haag streit alcon constellation bausch lomb
nikon olympus sony iphone samsung retcam phoenix icon pictor forus remidio welch allyn plex elite angiovue swept source
stratus visante pentacam iolmaster lenstar tecnis acrysof ozurdex iluvien avastin eylea lucentis beovu vabysmo plaquenil
macugen visudyne jetrea luxturna syfovre izervay triamcinolone kenalog timolol latanoprost superquad angiograph retinal
etdrs areds drcr marina anchor airlie house beaver dam blue mountains rotterdam framingham collaborative diabetic wills
manual shaffer spaeth scheie wagener international classification early treatment melanoma ocular
protocol sita gass yannuzzi jampol
 behcet behçet berlin best bietti bowman bruch bull's bardet biedl cloquet coats descemet down doyne
duchenne eales ehlers danlos elschnig fleischer fuchs goldenhar gonin graves grönblad strandberg gunn haller henle hippel
hirschberg hollenhorst horner hutchinson irvine kayser kearns sayre koyanagi harada kyrieleis laurence leber
lindau lisch bar malattia marfan mizuo müller muller nakamura nettleship niemann
pick norrie oguchi parry paton purkinje purtscher recklinghausen refsum reis bücklers rieger romberg roth rosenthal sachs
salus salzmann schwalbe schlemm sattler siegrist snellen sorsby stargardt stickler sturge susac swiss takayasu tay tenon
terson tolosa uhthoff usher vogt weger wyburn zinn zeeman zellweger amsler ishihara
hertel morbus morning glory salt pepper salmon patch cherry spot cotton wool rose bengal bear track white dot orange sickle
cell honeycomb crystalline grad-cam kaposi parinaud dalen fuchs' drance amaurosis von van waardenburg hermansky pudlak
chediak higashi bourneville wolfram kjellin batten spielmeyer alagille
""".split()
_STEMS = regex.compile(
    r"retin|opath|ma[kc]ul|netzhaut|ödem|(?:oe?|e)dem|drus|papill|glau[ck]|[ck]atara[ck]t|choro|aderhaut|atroph|vitr[eé]|glask|"
    r"verschlu|h[aä]e?morr|neova|membran|vas[ck]|corn[ée]|uve|foram|ablös|s[yíi]ndrom|diseas|krank|maladie|enferm|fundus|fond|fov|"
    r"angio|tomogr|graph|gra[fv][íi]|s[ck]op|ektom|ectom|dystro|degener|diabet|ophthal|oftalm|ocul|okul|^arter|thromb|isch[aä]?em|perfus|"
    r"pigment|nevus|naevus|melan|tumou?r|myop|lesion|lasion|l[ée]sion|injek|injec|laser|visus|acuit|(?:itis|[oó]sis|oma|opsia|emia|ität|ung)$",
    regex.IGNORECASE,
)
_EPONYM = regex.compile(
    r"(?:['’]s)?[- ](?i:disease|syndrome|dystrophy|degeneration|retinopathy|choroiditis|uveitis|spots?|rings?|membranes?|layer|cells?|"
    r"lens|tonomet\w{1,5}|papilla|neuropathy|sign|line|anomaly|malformation|classification|criteria|study|trial|score|field|test|"
    r"stain|edema|oedema|atrophy|canal|nodules?|flecken|plaques?|pupil|system|chart|grading|grid)\b"
)

_WORD = r"\p{Lu}[\p{L}\p{M}'’-]{0,30}+(?!\d)"
_PARTICLE = r"(?:van|von|de|del|della|den|der|di|da|dos|la|le|al|bin|ibn|ter|ten|zu|du|y)"
_JOIN = rf"(?:\. ?(?<=(?<!\p{{L}})\p{{L}}\. ?)|,? )(?:{_PARTICLE} ){{0,3}}"
_TOKEN = regex.compile(rf"(?<![\p{{L}}\d])(?:(?:{_PARTICLE} ){{1,3}})?(?P<word>{_WORD})")
_NEXT = regex.compile(rf"(?:{_JOIN})(?P<word>{_WORD})")
_CREDENTIALS = regex.compile(
    r",? ?(?:M\.?D\.?|D\.?O\.?|Ph\.?D\.?|FRC\w{1,8}|MRC\w{1,8}|FACS|MBBS|R\.?N\.?|M\.?Sc\.?|COA|CRA|O\.D\.)(?![\p{L}])"
)
_POSSESSIVE = regex.compile(r"['’]s$")

# A word before a name that makes one capitalised word a name.
_TITLE = r"(?-i:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Sir|Lady|Nurse|Sister|Rev|Frau|Herrn?|Mme|Mlle|Mlles|Monsieur|Madame|Mademoiselle|Docteur|Pr|Sra?|Srta|Don|Doña|Dra|Señora?)\b\.?(?: med\.| dent\.| h\.c\.)?(?: (?-i:Dr|Prof)\b\.?)?"
_INITIAL_TITLE = r"(?-i:(?<![\p{L}.])M\.)"  # French
_LABEL = (
    r"(?:patient'?s?(?:in|e)? ?name|name(?: des patienten| of patient)?|surname|(?:first|last|given|family|middle|full|maiden) name|"
    r"nachname|vorname|nom(?:bre)?(?: du patient| del paciente)?|pr[ée]nom|apellidos?|patient(?:in|e)?|paciente|pt|subject|pat\.?)\s?[:=]"
)
_ROLE = (
    r"(?:(?:ophthalmic )?photographer|operator|technician|surgeon|consultant|attending|physician|doctor|professor|ophthalmologist|optometrist|"
    r"optician|orthoptist|examiner|reviewer|referrer|reporter|author|radiologist|resident|fellow|registrar|trainee|anaesthetist|"
    r"clinician|provider|gp|untersucher(?:in)?|arzt|ärztin|hausarzt|augenarzt|operateur|chirurg|chirurgien|m[ée]decin|photographe|op[ée]rateur|"
    r"m[ée]dico|cirujan[oa]|fot[óo]graf[oa]?|t[ée]cnic[oa]|operador[a]?|fotograf(?:in)?|interpreting|reporting)"
)
_DONE = (
    r"(?:(?:seen|examined|reported|dictated|signed|referred|reviewed|graded|imaged|performed|photographed|taken|acquired|read|interpreted|"
    r"verified|approved|requested|operated(?: on)?|injected|treated|captured|scanned|assessed|written|checked|confirmed|recorded|prepared|"
    r"labell?ed|annotated|diagnosed|followed|transcribed|authori[sz]ed|validated|ordered|done|obtained)(?: electronically)? by|"
    r"(?:untersucht|überwiesen|befundet|gesehen|operiert|behandelt|aufgenommen|erstellt|beurteilt|vidiert) (?:von|durch)|"
    r"(?:adress[ée]+|examin[ée]+|vue?|suivie?|opérée?|réalisée?|envoyée?|interprétée?)s? par(?: le| la)?|"
    r"(?:atendid|examinad|remitid|valorad|operad|realizad|vist|derivad|informad)[oa]s? por(?: el| la)?|"
    r"courtesy of|discussed with|credit:?|cc:?|signed:?|(?:aufnahme|opérateur|lecteur|informe|firmado):)"
)
_KIN = (
    r"(?:mother|father|son|daughter|wife|husband|brother|sister|aunt|uncle|grandmother|grandfather|carer|caregiver|guardian|cousin|niece|nephew|"
    r"ehefrau|ehemann|tochter|sohn|mutter|vater|fille|fils|épouse|hij[oa]|espos[oa])(?: of)?,?"
)
_BACKWARDS = regex.IGNORECASE | regex.REVERSE  # from the name towards the start: most texts fail at the first word
_TITLED = regex.compile(rf"(?<!\p{{L}})(?:{_TITLE}|{_INITIAL_TITLE}) ", _BACKWARDS)
_STRONG = regex.compile(
    rf"(?<!\p{{L}})(?:{_LABEL}|{_ROLE}\s?:|{_DONE}:?|{_KIN}|baby|bébé)\s{{0,2}}", _BACKWARDS
)
# What makes two capitalised words a name.
_WEAK = regex.compile(
    rf"(?<!\p{{L}})(?:patient(?:in|e)?|paciente|pt|subject|{_ROLE}|"
    r"(?:photographs?|photos?|images?|imaging|scans?|pictures?|fundus|retina|maculas?|eyes?|angiograms?|oct|report|results?|case|history|"
    r"examination|photographien?|fundusfotos?|aufnahmen?|r[ée]tinographies?|retinograf[íi]as?) (?:of|for|from|von|de|del)|"
    r"this is|here is|known as|called|named|infant|child|twin)\s{0,2}",
    _BACKWARDS,
)
# What stands after a name, and hardly after anything else with two capitals.
_AFTER = regex.compile(
    r"(?:['’]s)?(?:,? ?[(/]?\s?(?:\(|,|/|-)?\s?(?:aged?\s?:? ?\d{1,3}\b|\d{1,3} ?(?:-? ?years?|yrs?|y\b|yo\b|y/o|ans\b|años|Jahre|J\b|岁)|"
    r"\d{1,3} ?(?-i:[MFWH])\b|\d{1,3}(?:,|\))|(?-i:[MF])\b ?,? ?\d{1,3}\b|(?:a )?(?:fe)?male\b|(?:a )?(?:wo)?man\b|"
    r"born\b|dob\b|geb\.|née?\b|mrn\b)| is an? \d{1,3}[- ]year)",
    regex.IGNORECASE,
)
# After a surname and a first name at the start of a caption.
_AFTER_INDEX = regex.compile(r"\s?(?:[-:;(/|]|(?:OD|OS|OU|RE|LE)\b|(?:left|right|both) eyes?\b|\d)")

_HAN_SURNAME = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹"
    "熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文欧"
)
_HAN_TITLE = "医生|医师|主任医师|主任|教授|大夫|护士|先生|女士|小姐|太太|技师|同志"
_HAN_NO_NAME = "高血|高度|高龄|高年|高眼|黄斑|白内|白化|白色|万古|石膏|金黄|江苏|于双|于左|于右|文献|常规|易感|任何|武汉|方位|余无|史无|曾有|曾行|曾患|何时"
_HAN = (
    regex.compile(
        rf"(?:患者姓名|姓名|检查医[师生]|报告医[师生]|审核医[师生]|主诊医[师生]|申请医[师生]|医[师生]|技师|联系人|家属)\s?[:：]\s?"
        rf"\K(?!{_HAN_NO_NAME})[\u4e00-\u9fff]{{2,4}}"
    ),
    regex.compile(
        rf"(?:患者|病人|患儿|受检者)\s?[:：]?\s?\K(?!{_HAN_NO_NAME})[{_HAN_SURNAME}][\u4e00-\u9fff]{{1,2}}"
        r"(?=$|[，。,;；.:：（(\s\d]|男|女)"
    ),
    regex.compile(
        rf"(?<![全专眼内外骨儿牙产妇])(?<![由对关至]于)(?!{_HAN_NO_NAME})[{_HAN_SURNAME}]"
        rf"[\u4e00-\u9fff]{{0,2}}?(?:{_HAN_TITLE})(?![一-龥]{{0,1}}状)"
    ),
)


def name_places(text: str) -> Iterator[tuple[int, int]]:
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
    while found := _TOKEN.search(text, position):
        position = found.end()
        if _is_medical(found["word"]):
            continue
        words = [found]
        while len(words) < _MOST_WORDS and (found := _NEXT.match(text, position)) and not _is_medical(found["word"]):
            words.append(found)
            position = found.end()
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
        return False
    return bool(
        _POSSESSIVE.search(words[-1]["word"])
        or _WEAK.match(text, before, start)
        or _AFTER.match(text, end)
        or (start == 0 and _AFTER_INDEX.match(text, end))
    )


def _is_medical(word: str) -> bool:
    """Whether captions use a capitalised word for anything but a person; one part of a double name is enough."""
    whole = _POSSESSIVE.sub("", word.casefold().replace("’", "'"))
    known = _vocabulary()
    return whole in known or any(part in known for part in whole.split("-")) or bool(_STEMS.search(whole))


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    """The words of the shipped knowledge file and those above."""
    words = set(_WORDS)
    for condition in Knowledge.load().conditions.values():
        texts = [condition.name, *condition.synonyms, *condition.abbreviations, *condition.spellings, condition.source]
        texts += [finding for findings in condition.findings.values() for finding in findings]
        for text in texts:
            words.update(regex.findall(r"[\p{L}\p{M}'-]{2,}", text.casefold()))
    return frozenset(words)
