"""Tars of samples with odd values, as the tools and accidents of this world make them."""

import gzip
import io
import json
import random
import struct
import tarfile
from pathlib import Path

from tests.test_building import encoded, picture

LONE = "\ud800"
TEXTS = (
    "drusen", "", " ", "\0", LONE, f"drusen {LONE} left", "\udfff", "\U0001f441", "\u200f\u202e", "{}", "%s {0}", "[b]",
    "x" * 19_999, "x" * 20_001, "\u9ec4\u6591", "[CLS]", "<|endoftext|>", "a\nb\tc", "\x1b[31m", "$$", "\ufeff", "-1",
    "nan", "no", "No diabetic retinopathy", "e\u0301" * 99, "<script>", "../../etc", "'; DROP TABLE rows",
)  # fmt: skip
ODD = (
    None, True, 0, -1, 10**4000, 1.5, float("nan"), float("inf"), "", "drusen", LONE, [], {}, [[]], [None], [LONE],
    ["drusen"] * 17, {"text": "drusen"}, [{"text": "drusen"}], [{"text": LONE}], [{"text": 3, "lang": None}],
)  # fmt: skip


def description(kind: str = "public", **changes) -> dict:
    """What a good sample says, with some of it changed."""
    good = {"schema": 1, "kind": kind, "modality": "CFP", "captions": [], "categories": ["glaucoma"], "attributes": [],
            "dataset": "a", "eye": "left", "group": 1}  # fmt: skip
    if kind == "elite":
        good["captions"] = [{"lang": "en", "text": "Drusen."}]
    return {**good, **changes}


def odd_sample(rng: random.Random, kind: str) -> tuple[dict, dict[str, bytes]]:
    """A description with odd values in it, and the members of its sample."""
    texts = [rng.choice(TEXTS) for _ in range(rng.choice((0, 1, 2, 5, 17)))]
    said = description(kind)
    for name in rng.sample(sorted(said), rng.randint(0, 2)):
        said[name] = rng.choice(ODD)
    if rng.random() < 0.5:
        said["captions"] = [{"lang": rng.choice(("en", "zh", LONE)), "text": text} for text in texts]
    if rng.random() < 0.5:
        said["categories"] = texts
    if rng.random() < 0.2:
        said[rng.choice(TEXTS)] = rng.choice(ODD)
    for name in rng.sample(sorted(said), rng.choice((0, 0, 0, 1))):
        del said[name]
    members = {
        "jpg": odd_image(rng),
        "json": json.dumps(said).encode(),
        "txt": rng.choice(TEXTS).encode(errors="surrogatepass"),
    }
    damage = rng.random()
    if damage < 0.05:
        members["json"] = rng.choice((b"", b"[" * 100_000, b"\xff\xfe", b'{"a":1', b"null", b'"x"', b"{}" * 9))
    elif damage < 0.1:
        members["json"] = json.dumps(said, ensure_ascii=False).encode(errors="surrogatepass")
    elif damage < 0.15:
        del members[rng.choice(sorted(members))]
    return said, members


def odd_image(rng: random.Random) -> bytes:
    """An image, a damaged one, or one of an odd shape."""
    shape = rng.choice(((16, 16), (16, 16), (16, 16), (1, 1), (1, 900), (900, 1), (3, 5)))
    image = picture(rng.randrange(4), 24).resize(shape)
    if rng.random() < 0.2:
        image = image.convert(rng.choice(("L", "CMYK", "1", "P")))
    content = encoded(image, "JPEG" if image.mode in ("RGB", "L", "CMYK") and rng.random() < 0.7 else "TIFF")
    if rng.random() < 0.15:
        at = rng.randrange(len(content))
        content = content[:at] + rng.randbytes(4) + content[at + 4 :] if rng.random() < 0.5 else content[:at]
    return content


def odd_name(rng: random.Random, number: int) -> bytes:
    """A member's name before its suffix."""
    if rng.random() < 0.8:
        return b"%06d" % number
    return (
        rng.choice(
            (b"\xff\xfe%d", b"a/b/%d", b"../%d", b"%d \xe9\xbb\x84", b" %d", b"%d\n", b"-%d", b"n" * 120 + b"%d")
        )
        % number
    )


def write_tar(path: Path, samples: list[tuple[bytes, dict[str, bytes]]], rng: random.Random | None = None) -> None:
    """A tar of samples; with `rng` maybe compressed, in another format, or damaged."""
    buffer = io.BytesIO()
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)) if rng else tarfile.GNU_FORMAT
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, members in samples:
            for suffix, content in members.items():
                entry = tarfile.TarInfo((name + b"." + suffix.encode()).decode(errors="surrogateescape"))
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    content = buffer.getvalue()
    if rng and rng.random() < 0.3:
        at = rng.randrange(len(content))
        content = content[:at] + rng.randbytes(8) + content[at + 8 :] if rng.random() < 0.7 else content[:at]
    path.write_bytes(gzip.compress(content, 1) if rng and rng.random() < 0.2 else content)


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """One block of a tar that claims a member of any size."""
    octal = b"%011o\0" % size if size < 8**11 else b"\x80" + struct.pack(">3xQ", size)
    block = bytearray(
        name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + octal + b"00000000000\0" + b" " * 8 + kind
    )
    block = block.ljust(257, b"\0") + b"ustar\x0000".ljust(243, b"\0") + bytearray(12)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
