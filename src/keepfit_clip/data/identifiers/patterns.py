"""Patterns of identifiers that have a form of their own: dates, record numbers, ways to reach somebody, places, ages.

English, German, French, Spanish and Chinese. Every repetition is bounded and every pattern starts where a word or a
number starts, so that the time to search a text grows with its length and no faster.
"""

import regex

__all__ = ["PATTERNS"]


def _led(first: str, *alternatives: str) -> str:
    """Alternatives that are only tried where `first` holds, which most places fail at once."""
    return rf"{first}(?:{'|'.join(alternatives)})"


def _compiled(*alternatives: str, flags: int = regex.IGNORECASE) -> regex.Pattern:
    return regex.compile("|".join(alternatives), flags)


# -- dates: a medical number such as "10-2-12 o'clock", "0.3-0.5-1.0 mg" or "92-78-65 microns" is none ---------------
_MONTHS = (
    r"(?:jan(?:uar[iy]?|vier)?|feb(?:ruar[iy]?)?|f[ée]vr(?:ier)?|mar(?:ch|s|zo)?|m[äa]rz|mrz|apr(?:il)?|avr(?:il)?|"
    r"may|mai|mayo|jun[ei]?|juin|junio|jul[iy]?|juil(?:let)?|julio|aug(?:ust)?|ao[uû]t|agosto|sept?(?:emb(?:er|re))?|"
    r"septiembre|o[ck]t(?:ob(?:er|re))?|octubre|nov(?:emb(?:er|re))?|noviembre|de[cz](?:emb(?:er|re))?|"
    r"d[ée]c(?:embre)?|"
    r"enero|ene|febrero|abril|abr|ago|diciembre|dic)"
)
# Without a year only words that are nothing else, written as a name of a month is.
_LONG_MONTH = (
    r"(?-i:January|February|April|June|July|August|September|October|November|December|Januar|Februar|März|Juni|Juli|"
    r"Oktober|Dezember|janvier|février|avril|juin|juillet|août|septembre|octobre|novembre|décembre|enero|febrero|"
    r"abril|"
    r"junio|julio|agosto|septiembre|octubre|noviembre|diciembre)"
)
_SHORT_MONTH = r"(?:Jan|Feb|Mar(?:ch)?|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
_YEAR = r"(?:19|20)\d\d"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH_NUMBER = r"(?:0?[1-9]|1[0-2])"
_DAY_OR_MONTH = rf"(?:{_DAY}([-/.])\s?{_MONTH_NUMBER}|{_MONTH_NUMBER}([-/.])\s?{_DAY})"
_ORDINAL = r"(?:\.|st|nd|rd|th|er|º)?"
_CLOCK = r"(?:[ ,T]{1,2}\d{1,2}[:h]\d\d(?::\d\d)?(?:\s?[ap]\.?m\b\.?)?)?"
_NOT_IN_NUMBER = r"(?<![\d.,/-]|\b[v]|score |version |software |figure |fig\. |section )"
_NO_NUMBER_AFTER = r"(?![\d/-]|[.,]\d)"
# What follows three numbers that are no date: a unit, clock hours, weeks.
_NO_UNIT_AFTER = (
    r"(?!\s?(?:o\W?clock|clock|h\b|hours?|Uhr|heures|horas|点|weeks?|months?|years?|days?|min|mm|cm|µm|um|microns?|"
    r"mg|ml|dB|"
    r"degrees?|grados|grad|°|%|D\b|J\b|letters|spots|dioptr))"
)
_DATE = _compiled(
    _led(
        r"(?<!\d)(?=\d)",
        rf"{_NOT_IN_NUMBER}{_YEAR}([-/.]){_MONTH_NUMBER}\1{_DAY}{_NO_NUMBER_AFTER}{_CLOCK}",
        rf"{_NOT_IN_NUMBER}{_DAY}([-/.])\s?{_MONTH_NUMBER}\2\s?{_YEAR}{_NO_NUMBER_AFTER}{_CLOCK}",
        rf"{_NOT_IN_NUMBER}{_MONTH_NUMBER}([-/.])\s?{_DAY}\3\s?{_YEAR}{_NO_NUMBER_AFTER}{_CLOCK}",
        # two digits of the year
        rf"{_NOT_IN_NUMBER}(?:{_DAY}([/.]){_MONTH_NUMBER}\4|{_MONTH_NUMBER}([/.]){_DAY}\5)\d\d"
        rf"{_NO_NUMBER_AFTER}{_NO_UNIT_AFTER}{_CLOCK}",
        rf"(?=\d\d-\d\d-){_NOT_IN_NUMBER}(?:{_DAY}-{_MONTH_NUMBER}|{_MONTH_NUMBER}-{_DAY})-\d\d"
        rf"{_NO_NUMBER_AFTER}{_NO_UNIT_AFTER}{_CLOCK}",
        # months by name
        rf"{_DAY}{_ORDINAL}(?: of| de)?[ -./]{{1,2}}{_MONTHS}\b\.?,?(?: de| del| of)?[ -/]{{1,2}}{_YEAR}\b{_CLOCK}",
        rf"{_DAY}[-/ ]{_MONTHS}\.?[-/']\s?\d\d\b",
        rf"{_DAY}{_ORDINAL}(?: of| de)? {_LONG_MONTH}\b",
        r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)",
        r"(?:19|20)\d\d\s?年(?:\s?\d{1,2}\s?月)?(?:\s?\d{1,2}\s?[日号])?",
        r"\d{1,2}月\d{1,2}[日号]",
    ),
    _led(
        r"(?<!\w)(?=[a-zéäà])",
        rf"{_MONTHS}\b\.? {_DAY}{_ORDINAL},? {_YEAR}\b{_CLOCK}",
        rf"{_MONTHS}\b\.?,?(?: de| del| of)?[ -/]{{1,2}}{_YEAR}\b",
        rf"(?:on|since|from|until|till|before|after) \K(?-i:{_SHORT_MONTH})\.? {_DAY}(?:st|nd|rd|th)?\b(?!\s?%|"
        rf",? {_YEAR})",
        rf"{_LONG_MONTH} {_DAY}(?:st|nd|rd|th)?\b(?!\s?%)",
        r"(?:d\.?o\.?b\.?|date of birth|born|geboren|geb\.|née?|nacid[oa])(?: on| in| am| le| el)?[:\s]{0,3}"
        rf"\K(?=\d{{1,4}}[-/. ]|{_YEAR}|{_MONTHS})[\w./-]{{2,12}}",
    ),
    r"(?<![一-鿿])[一二][一二三四五六七八九〇零○]{3}年(?:[一二三四五六七八九十]{1,3}月)?(?:[一二三四五六七八九十]{1,3}[日号])?",
)

# -- record numbers -----------------------------------------------------------------------------------------------
_NO = r"(?:number|num\.?|no\b\.?|nr\b\.?|n[°º]|n\.º|id\b|ref\b\.?|reference|#)"
_RECORD = (
    rf"(?:mrn|(?-i:URN?|UPI|PID|HN|IPP|NHC|NIP|CHI)(?: {_NO})?|ssn|social security(?: {_NO})?|nhs(?: {_NO})?|nhs|"
    rf"med(?:ical|\.)? rec(?:ord|\.)?(?: ?{_NO})?|(?:patient|pt|hospital|hosp|chart|case|record|file|folder|visit|"
    rf"encounter|episode|admission|study|subject|participant|exam|order|specimen|account|policy|member|licence|"
    rf"license|"
    rf"referral|insurance|clinic|unit|report|request)[.']?s?[ -]?{_NO}(?:\s?{_NO})?|encounter|chart|"
    rf"accession(?: ?{_NO})?|(?:insurance|medicare|medicaid|policy|passport)(?: policy| card)?(?: ?{_NO})?|"
    rf"(?:patienten|fall|akten|versicherten|kranken(?:versicherungs)?|aufnahme|auftrags)[- ]?(?:nummer|nr\.?|id)|"
    rf"aktenzeichen|pat\.?-?\s?(?:nr|id)\b\.?|dossier(?: ?{_NO})?|(?:{_NO}|num[ée]ro) (?:de |du )?(?:patient|dossier|"
    rf"s[ée]curit[ée] sociale|historia|expediente|paciente)|s[ée]curit[ée] sociale|historia cl[íi]nica(?: ?{_NO})?|"
    rf"(?-i:DNI|NIE|NIF|CURP|RUT|HC)|carte vitale|(?:specimen|sample)|expediente(?: ?{_NO})?|(?-i:ID))"
)
_CODE = r"(?=[\w/-]{0,12}\d)[\w/-]{2,24}(?:[ -]\d{1,5}\b){0,4}"
_COUNTED_BEFORE = r"(?<!about |around |of |some |approximately |nearly |over |~|≈|density |count |total )"
_NUMBER = _compiled(
    _led(r"(?<!\w)(?=\p{L})", rf"{_RECORD}[\s:#.]{{0,4}}{_CODE}", r"(?<!-)(?!rs)[A-Z]{1,3}-?\d{6,12}\b"),
    _led(
        r"(?<![\w.,-])(?=\d)",
        r"\d{9,20}(?!\w|[.,]\d)",
        r"0\d{5,7}(?!\w|[.,]\d)",
        rf"{_COUNTED_BEFORE}\d{{7,8}}(?=\s?(?:[,;:)]|\.?$|(?-i:OD|OS|OU|RE|LE)\b))",
        r"\d{3}-\d{2}-\d{4}\b",
        r"\d{17}[\dXx]\b",
    ),
    r"(?:住院号码?|病历号码?|门诊号码?|病案号码?|身份证号?码?|就诊号|登记号|检查号|影像号|医保号|社保号|患者编号|编号)"
    r"\s?[:：]?\s?[\w-]{2,24}",
)

# -- ways to reach somebody ---------------------------------------------------------------------------------------
_DIGITS = r"\(?\d{1,4}\)?(?:[ ./-]{0,2}\(?\d{1,5}\)?){1,6}"
_STREET = (
    r"(?:Street|St\b\.?|Road|Rd\b\.?|Avenue|Ave\b\.?|Lane|Drive|Close|Court|Boulevard|Blvd\b\.?|Square|Terrace|"
    r"Crescent|Gardens|Mews|Way|Place|Parade|Highway)"
)
_CAPITALISED = r"\p{Lu}[\p{L}'’.-]{1,24}"
_REACHED_BY = (
    r"(?i:tel(?:e(?:phone|fono|fon))?|t[ée]l(?:[ée]phone)?|tel[ée]fono|phone|mobile|mobil|m[óo]vil|cell|portable|"
    r"fax|ph|call|"
    r"ring|whatsapp|handy|contact|pager|bleep)"
)
_LIVES = (
    r"(?i:address|adresse|anschrift|direcci[óo]n|domicilio|lives at|resident of|wohnhaft(?: in)?|demeurant(?: [àa])?)"
)
_TOWN = (
    rf"(?:, (?:\d{{4,5}} )?{_CAPITALISED}(?: {_CAPITALISED}){{0,2}}(?:,? [A-Z]{{1,2}}\d[A-Z\d]? ?\d[A-Z]{{2}}\b|"
    rf",? [A-Z]{{2}} \d{{5}})?)?"
)
_REACH = _compiled(
    r"(?<![\w.+-])(?=[\w.+-])[\w.+-]{1,64}+@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}",
    _led(
        r"(?<!\w)(?=\p{L})",
        r"https?://[^\s<>]{1,200}",
        r"www\.[\w-]{1,63}\.[^\s<>]{1,200}",
        rf"{_REACHED_BY}(?:\s?(?i:no|number|nummer|nr|at|on))?[\s.:]{{0,4}}\K(?=(?:\D{{0,2}}\d){{6}})\+?{_DIGITS}",
        rf"\p{{Lu}}[\p{{Ll}}-]{{1,24}}(?:straße|strasse|str\.|weg|platz|allee|gasse|ufer) \d{{1,4}}\b[a-z]?{_TOWN}",
        rf"(?:Calle|Avenida|Avda\.?|Av\.|Plaza|Paseo|Camino|C/) ?(?:(?:de|del|la|las|los|el) ){{0,2}}"
        rf"{_CAPITALISED}(?: (?:de |del |la )?{_CAPITALISED}){{0,2}},? \d{{1,4}}{_TOWN}",
        rf"{_LIVES}[\s:]{{1,3}}\K(?=\d|\p{{Lu}})[^,.;:\n]{{3,40}}(?:, (?=\d|\p{{Lu}})[^,.;:\n]{{2,30}}){{0,3}}",
    ),
    _led(
        r"(?<![\w.+-])(?=[+(\d])",
        rf"\+\d{{1,3}}[ -]?(?=(?:\D{{0,2}}\d){{7}}){_DIGITS}",
        r"\(\d{3}\) ?\d{3}[ -]\d{4}\b",
        r"\(0\d{1,4}\) ?\d{3,4}[ -]?\d{3,4}\b",
        r"[12] \d\d \d\d \d\d \d{3} \d{3}(?: \d\d)?\b",
        r"\d{3}-\d{3}-\d{4}\b",
        r"0\d{2,4}[ -]\d{3}[ -]?\d{3,4}\b",
        r"0\d(?:[ .]\d\d){4}\b",
        r"1[3-9]\d{9}(?!\w)",
        rf"\d{{1,5}}[A-Za-z]?,? (?:{_CAPITALISED} ){{1,3}}{_STREET}(?!\w){_TOWN}",
        r"\d{1,4},? (?:bis,? |ter,? )?(?i:rue|avenue|boulevard|place|chemin|all[ée]e|impasse|quai|cours|route) "
        rf"(?:(?:de|du|des|la|le|les|l') ?){{0,2}}{_CAPITALISED}(?: {_CAPITALISED}){{0,2}}{_TOWN}",
    ),
    r"(?:电话|手机|联系方式|联系电话)(?:号码?)?\s?[:：]?\s?[\d-]{7,20}",
    r"(?:家住|住址|地址)\s?[:：]?\s?[^，。；,;\s]{2,30}",
    r"(?=[\u4e00-\u9fff])[\u4e00-\u9fff]{1,6}[路街巷弄]\s?\d{1,5}号",
    flags=0,
)

# -- places: a hospital says where a patient lives ------------------------------------------------------------------
# What stands before "Clinic" where it is a kind of clinic, not the name of one.
_KIND = (
    r"(?:The|Our|This|University|An?|Eye|Eyes|Retinal?|Glaucoma|Diabetic|Diabetes|Cataract|Corneal?|Uveitis|"
    r"Outpatient|General|Local|Macular?|"
    r"Medical|Day|Ophthalm\w{1,10}|Emergency|Follow|Screening|Teaching|Referral|Private|Public|Every|Each|Any|"
    r"Screening|"
    r"Optometry|Research|Vitreo\w{0,10}|Paediatric|Pediatric|Same|First|Second|Laser|Injection)"
)
_HOUSE = (
    r"(?:Hospitals?|Infirmary|Clinics?|Medical (?:Center|Centre|School)|Health (?:Center|Centre)|Eye (?:Center|"
    r"Centre|Institute)|"
    r"(?:Retina|Vision|Laser) (?:Center|Centre|Institute)|Polyclinic|Hospice|Nursing Home|Care Home|Sanatorium|"
    r"NHS Trust|"
    r"(?:Retina|Eye) (?:Associates|Consultants|Specialists))"
)
_NAMED = r"(?:(?:de|del|de la|du|des|d'|von|der|St\.?|of|la|le|l') ?){0,2}\p{Lu}[\p{L}'’.-]{1,24}"
_HOSPITAL = _compiled(
    _led(
        r"(?<!\w)(?=\p{L})",
        rf"(?!{_KIND} (?:{_KIND} )?{_HOUSE})(?:St\.? )?(?:{_CAPITALISED} ){{1,4}}?{_HOUSE}"
        rf"(?: of(?: the)? {_CAPITALISED}(?: {_CAPITALISED})?)?\b",
        rf"(?:University |General |Royal |Eye ){{0,2}}(?:Hospital|Infirmary|"
        rf"Clinic) of(?: the)? {_CAPITALISED}(?: {_CAPITALISED})?",
        rf"(?:Universit[äa]ts)?-?(?:[Kk]linik(?:um)?|[Aa]ugenklinik|Uniklinik(?:um)?|Charité|Krankenhaus|"
        rf"Spital)(?: am| an der| im)? {_NAMED}(?: {_NAMED}){{0,2}}",
        r"\p{Lu}\p{Ll}{2,20}-(?:Klinik(?:um)?|Krankenhaus|Hospital|Spital)\b",
        r"(?:[Hh]ôpital|[Cc]entre [Hh]ospitalier(?: [Uu]niversitaire| [Rr]égional)?|[Cc]linique|CHU|CHR)"
        rf"(?: de| du| des)? {_NAMED}(?: {_NAMED})?",
        r"(?:Hospital|[Cc]l[íi]nica|Centro [Mm]édico|Centro de [Ss]alud)(?: (?:General|Universitario|Clínico|"
        r"Regional|Provincial|"
        rf"Central))?(?: de| del| de la)? {_NAMED}(?: {_NAMED})?",
    ),
    r"(?=[\u4e00-\u9fff])(?:(?<=转自|来自|来源于|就诊于|住在)|(?<![\u4e00-\u9fff]))"
    r"(?!(?:在|于|到|由|我|本|该|外|当地|患者|眼科|专科|综合|转自|来自))[\u4e00-\u9fff]{2,10}?(?:医院|诊所|卫生院|眼科中心|医学院)",
    flags=0,
)

# -- ages over 89 -------------------------------------------------------------------------------------------------
_OLD = r"(?:9\d|1[0-2]\d)"
_AGE = _compiled(
    _led(
        r"(?<![\d.,/-])(?=9\d|1[0-2]\d)",
        rf"{_OLD}[ -]?(?:years?[ -]?old|yrs?[ -]?old|y\.?/?o\b\.?|jährig\w{{0,3}}|Jahre alt|岁|ans\b|años\b|"
        rf"years? of age)",
        rf"{_OLD}(?:[ -]?(?:year|yr)s?|y)?(?:, | |-)(?:M|F|male|female|man|woman|lady|gentleman)\b",
    ),
    _led(
        r"(?<!\w)(?=\p{L})",
        rf"(?:age|aged|alter|[âa]ge|[âa]gée?|edad|年龄)(?: of| de)?[\s:：]{{0,3}}{_OLD}\b(?!\s?(?:%|days|weeks|months))"
        rf"(?:\s?(?:years?|ans|años|Jahre))?",
        rf"(?:man|woman|male|female|lady|gentleman|patient|mujer|hombre|varón|homme|femme|patiente)(?: of| de|"
        rf",) {_OLD}"
        rf"(?:\s?(?:years?|yrs?|ans|años|y))?\b(?!\s?%)",
        r"ninet(?:y|ies)(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?[ -]years?[ -](?:old|of age)",
    ),
    r"九十[一二三四五六七八九]?岁|一百零?[一二三四五六七八九]?岁",
)

PATTERNS: dict[str, regex.Pattern] = {
    "a date": _DATE,
    "a record number": _NUMBER,
    "an address": _REACH,
    "a place": _HOSPITAL,
    "an age over 89": _AGE,
}
