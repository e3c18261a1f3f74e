"""Names of languages: which of a file's streams, or of the files beside it, is in a given one."""

from __future__ import annotations

__all__ = ["is_language", "language_match"]

# ISO 639-1: 639-2/T, and 639-2/B where that differs; containers hold any of the three.
_CODES = """
    aa:aar ab:abk ae:ave af:afr ak:aka am:amh an:arg ar:ara as:asm av:ava ay:aym az:aze ba:bak be:bel
    bg:bul bh:bih bi:bis bm:bam bn:ben bo:bod/tib br:bre bs:bos ca:cat ce:che ch:cha co:cos cr:cre
    cs:ces/cze cu:chu cv:chv cy:cym/wel da:dan de:deu/ger dv:div dz:dzo ee:ewe el:ell/gre en:eng eo:epo
    es:spa et:est eu:eus/baq fa:fas/per ff:ful fi:fin fj:fij fo:fao fr:fra/fre fy:fry ga:gle gd:gla
    gl:glg gn:grn gu:guj gv:glv ha:hau he:heb hi:hin ho:hmo hr:hrv ht:hat hu:hun hy:hye/arm hz:her
    ia:ina id:ind ie:ile ig:ibo ii:iii ik:ipk io:ido is:isl/ice it:ita iu:iku ja:jpn jv:jav ka:kat/geo
    kg:kon ki:kik kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau ks:kas ku:kur kv:kom kw:cor ky:kir
    la:lat lb:ltz lg:lug li:lim ln:lin lo:lao lt:lit lu:lub lv:lav mg:mlg mh:mah mi:mri/mao mk:mkd/mac
    ml:mal mn:mon mr:mar ms:msa/may mt:mlt my:mya/bur na:nau nb:nob nd:nde ne:nep ng:ndo nl:nld/dut
    nn:nno no:nor nr:nbl nv:nav ny:nya oc:oci oj:oji om:orm or:ori os:oss pa:pan pi:pli pl:pol ps:pus
    pt:por qu:que rm:roh rn:run ro:ron/rum ru:rus rw:kin sa:san sc:srd sd:snd se:sme sg:sag si:sin
    sk:slk/slo sl:slv sm:smo sn:sna so:som sq:sqi/alb sr:srp ss:ssw st:sot su:sun sv:swe sw:swa ta:tam
    te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton tr:tur ts:tso tt:tat tw:twi ty:tah ug:uig
    uk:ukr ur:urd uz:uzb ve:ven vi:vie vo:vol wa:wln wo:wol xh:xho yi:yid yo:yor za:zha zh:zho/chi
    zu:zul
"""
_ALPHA_2 = {
    code: short
    for short, _, long in (entry.partition(":") for entry in _CODES.split())
    for code in (short, *long.split("/"))
}


def _split(tag: str) -> tuple[str, str]:
    """Language in its shortest code and the rest (script, region) of a tag, in lower case."""
    language, _, rest = tag.strip().lower().replace("_", "-").partition("-")
    return _ALPHA_2.get(language, language), rest


def is_language(tag: str) -> bool:
    """Whether ``tag`` begins with a code of ISO 639-1 or its three-letter form, as "en", "eng", "pt-BR"."""
    return _split(tag)[0] in _ALPHA_2


def language_match(wanted: str, tag: str | None) -> int:
    """How well a stream tagged ``tag`` serves ``wanted``: 2 exactly, 1 without the region of one, 0 not.

    Examples
    --------
    >>> [language_match("en-GB", tag) for tag in ("en_gb", "eng", "en-US", "de", None)]
    [2, 1, 0, 0, 0]
    """
    if tag is None:
        return 0
    (language, region), (other, other_region) = _split(wanted), _split(tag)
    if language != other:
        return 0
    if region == other_region:
        return 2
    return 0 if region and other_region else 1
