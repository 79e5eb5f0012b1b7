"""Files that call themselves pictures, by name; most are a few hundred bytes.

Run as a script it prepares each file named on its command line, and prints what became of it and the memory it took.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

ANSWERED, REFUSED = "answered", "refused"
MEMORY = 2 << 30
SECONDS = 60


def files() -> Iterator[tuple[str, bytes, set[str]]]:
    """Name, content, and what may become of it."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    frames = [Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)) for _ in range(9)]
    jpeg = saved(rgb, "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    either = {ANSWERED, REFUSED}
    yield "plain.jpg", jpeg, {ANSWERED}
    yield "other ending.png", jpeg, {ANSWERED}
    yield "half.jpg", jpeg[: len(jpeg) // 2], {REFUSED}
    yield "head.jpg", jpeg[:20], {REFUSED}
    yield "garbled.jpg", jpeg[:300] + rng.bytes(200) + jpeg[500:], either
    yield "nothing.jpg", b"", {REFUSED}
    yield "text.jpg", b"hello", {REFUSED}
    yield "zeros.jpg", bytes(10_000), {REFUSED}
    yield "turned.jpg", saved(rgb, "JPEG", exif=turned), {ANSWERED}
    yield "strange exif.jpg", saved(rgb, "JPEG", exif=b"Exif\0\0" + rng.bytes(200)), either
    for kind in ("GIF", "WEBP", "TIFF"):
        yield f"moving {kind}.jpg", saved(frames[0], kind, save_all=True, append_images=frames[1:]), {ANSWERED}
    for mode in ("L", "LA", "P", "1", "RGBA"):
        yield f"{mode}.png", saved(rgb.convert(mode), "PNG"), {ANSWERED}
    yield "CMYK.jpg", saved(rgb.convert("CMYK"), "JPEG"), {ANSWERED}
    yield "one.png", png(1, 1), {ANSWERED}
    yield "tall.png", png(1, 60_000), {ANSWERED}
    yield "wide.png", png(60_000, 1), {ANSWERED}
    yield "taller.png", png(1, 10_000_000), {REFUSED}
    yield "tallest.png", png(1, 178_000_000, rows=1), {REFUSED}
    yield "large.png", png(13_000, 10_000, rows=1), either  # Pillow fills up rows that are missing
    yield "larger.png", png(13_000, 13_000, 2, rows=1), {REFUSED}
    yield "largest.png", png(60_000, 60_000, rows=1), {REFUSED}
    yield "no width.png", png(0, 10, rows=0), {REFUSED}
    yield "long text.png", png(10, 10, extra=text_chunk(1 << 28)), either
    yield "16 bit.png", saved(Image.fromarray(np.full((20, 20), 30_000, np.uint16)), "PNG"), {REFUSED}
    yield "float.tif", saved(Image.fromarray(np.full((20, 20), 0.5, np.float32)), "TIFF"), {REFUSED}
    yield "script.jpg", EPS, {REFUSED}
    yield "script.eps", EPS, {REFUSED}
    yield "svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", {REFUSED}
    yield "pdf.png", b"%PDF-1.4\n%%EOF", {REFUSED}
    yield "stars.jpg", fits(100_000), {REFUSED}
    yield "icon.jpg", b"icns" + struct.pack(">I", 16) + b"ic07" + struct.pack(">I", 8), {REFUSED}
    yield "large.gif", gif(65_535), {REFUSED}
    yield "large.tif", tiff(60_000), {REFUSED}
    yield "circle.tif", tiff(10, following=8), either
    yield "large.bmp", bmp(30_000, 30_000), {REFUSED}
    yield "upside down.bmp", bmp(20, -20), either
    yield "large.ppm", b"P6 40000 40000 255\n" + bytes(100), {REFUSED}
    yield "16 bit.pgm", b"P5 4 4 65535\n" + bytes(32), {REFUSED}
    yield "huge.npy", npy("(4000000, 4000000, 3)") + bytes(100), {REFUSED}
    yield "code.npy", npy("__import__('os').abort()"), {REFUSED}
    yield "objects.npy", npy("(1,)", "|O"), {REFUSED}


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def png(width: int, height: int, colour: int = 0, rows: int | None = None, extra: bytes = b"") -> bytes:
    """Zeros, so many rows of them (all without it)."""
    row = 1 + width * (3 if colour == 2 else 1)
    data = zlib.compress(bytes(row * (height if rows is None else rows)), 1)
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def text_chunk(length: int) -> bytes:
    return chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(length), 1))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 20 20 rectfill\nshowpage\n%%EOF\n"


def fits(edge: int) -> bytes:
    cards = ("SIMPLE", "T"), ("BITPIX", "8"), ("NAXIS", "2"), ("NAXIS1", str(edge)), ("NAXIS2", str(edge))
    head = b"".join(f"{name:8}= {value:>20}".ljust(80).encode() for name, value in cards)
    return (head + b"END".ljust(80)).ljust(2880)


def gif(edge: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", edge, edge, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, edge, edge, 0) + b"\x02\x02\x44\x01\x00;"


def tiff(edge: int, following: int = 0) -> bytes:
    """Grey; ``following`` is where the next picture starts."""
    tags = (256, edge), (257, edge), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, edge), (279, edge * edge)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following)


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def npy(shape: str, kind: str = "<f4") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()


def main(paths: list[str]) -> None:
    from dyce_runtime.bundle.manifest import Preprocessing
    from dyce_runtime.errors import DataError
    from dyce_runtime.inputs.preprocessing import preprocess

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    spec = Preprocessing(18, (16, 16), "bilinear", (0.5,) * 3, (0.5,) * 3)
    for path in paths:
        signal.alarm(SECONDS)
        try:
            made = preprocess(path, spec)
            became = ANSWERED if made.shape == (1, 3, 16, 16) and np.isfinite(made).all() else "answered with nonsense"
        except DataError as error:
            became = REFUSED if path in error.message else f"refused without its name: {error.message}"
        except BaseException as error:
            became = f"{type(error).__name__}: {error}"
        print(json.dumps([path, became]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
