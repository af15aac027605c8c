"""How many pictures a second one core draws, beside how many it reads back from PNG.

python benchmarks/draw.py [--size 128] [--count 320]
"""

import argparse
import io
import time

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from keepfit_clip.drawing import KINDS, draw_number


def main() -> None:
    """Prints both rates and their ratio, per modality and for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=320)
    args = parser.parse_args()
    for modality in ("CFP", "FFA", "OCT", "all three"):
        kinds = tuple(kind for kind in KINDS if modality in (kind[0], "all three"))
        draw_number(0, 1, args.size, kinds)  # warm up
        start = time.perf_counter()
        pictures = [draw_number(number, 0, args.size, kinds).image for number in range(args.count)]
        drawn = args.count / (time.perf_counter() - start)
        files = [_png(picture) for picture in pictures]
        start = time.perf_counter()
        for file in files:
            np.asarray(Image.open(io.BytesIO(file)))
        read = args.count / (time.perf_counter() - start)
        print(f"{modality:9}  drawn {drawn:6.0f}/s   read from PNG {read:6.0f}/s   ratio {drawn / read:.3f}")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
