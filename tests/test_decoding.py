"""Decoding for training: as good as full decoding and open_clip's transform, for every kind of image."""

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageDraw

from keepfit_clip.data.stream.batch import ImageBatch
from keepfit_clip.data.stream.decoding import FastResizer, make_resizer
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import ImageError
from keepfit_clip.model.preprocess import image_transform
from tests.conftest import PREPROCESS


def encoded(image, format_="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def retina():
    return draw_retina("CFP", "diabetic retinopathy", [3], 512, "left").image


@pytest.mark.parametrize("size", [64, 100, 224, 300, 384, 512, 600])
@pytest.mark.parametrize("box", [None, (0, 100, 512, 400), (131, 0, 400, 512)])
@pytest.mark.parametrize("resize_mode", ["longest", "squash"])
def test_fast_decoding_is_close_to_full_decoding_and_an_antialiased_resize(retina, size, box, resize_mode):
    content = encoded(retina.crop(box) if box else retina, quality=95, subsampling=0)
    values = {**PREPROCESS, "size": size, "resize_mode": resize_mode}
    fast, exact = make_resizer(values)(content), make_resizer(values, exact=True)(content)
    assert fast.shape == exact.shape == (size, size, 3)
    assert np.abs(fast.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("size", [64, 100, 224, 384, 600])
def test_nothing_is_shifted(retina, size):
    framed = retina.copy()
    ImageDraw.Draw(framed).rectangle((40, 40, 470, 470), outline=(250, 250, 250), width=3)
    content, values = encoded(framed, quality=95), {**PREPROCESS, "size": size}
    fast, exact = make_resizer(values)(content).astype(int), make_resizer(values, exact=True)(content)
    here = np.abs(fast - exact).mean()
    for axis in (0, 1):
        assert all(here < np.abs(fast - np.roll(exact, step, axis)).mean() for step in (-1, 1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "grey", "cmyk", "progressive", "turned"])
def test_every_kind_of_image_is_decoded_alike(retina, kind):
    image, format_, options = retina.resize((160, 120)), "JPEG", {"quality": 95}
    if kind in ("PNG", "WEBP", "BMP", "TIFF"):
        format_, options = kind, {}
    elif kind == "grey":
        image = image.convert("L")
    elif kind == "cmyk":
        image = image.convert("CMYK")
    elif kind == "progressive":
        options["progressive"] = True
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    content = encoded(image, format_, **options)
    values = {**PREPROCESS, "size": 96}
    fast, exact = make_resizer(values)(content), make_resizer(values, exact=True)(content)
    assert np.abs(fast.astype(int) - exact).mean() < 2


def test_a_border_has_the_towers_colour_and_a_size_may_be_a_rectangle():
    pixels = FastResizer((40, 80), fill=7)(encoded(Image.new("RGB", (50, 50), (200, 10, 10)), "PNG"))
    assert pixels.shape == (40, 80, 3)
    assert (pixels[:, :20] == 7).all()
    assert (pixels[:, 60:] == 7).all()
    assert (pixels[:, 20:60] == (200, 10, 10)).all()


@pytest.mark.parametrize("damage", [lambda c: c[:-200], lambda c: b"", lambda c: b"GIF89a", lambda c: c[:30]])
def test_damaged_images_are_errors_of_ours(retina, damage):
    with pytest.raises(ImageError):
        FastResizer(64)(damage(encoded(retina)))


def test_another_way_of_resizing_is_left_to_open_clip(retina):
    values = {**PREPROCESS, "resize_mode": "shortest", "size": 80}
    transform = open_clip.image_transform(80, is_train=False, resize_mode="shortest", interpolation="bicubic")
    content = encoded(retina.crop((0, 0, 512, 200)), "PNG")
    expected = transform.transforms[1](transform.transforms[0](Image.open(io.BytesIO(content))))
    assert (make_resizer(values)(content) == np.asarray(expected)).all()


def test_the_exact_resizer_is_what_the_evaluation_transform_does():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8))
    *_, preprocess = open_clip.create_model_and_transforms("keepfit-v2-test")
    pixels = torch.from_numpy(make_resizer(PREPROCESS, exact=True)(encoded(image, "PNG")).copy())
    ours = ImageBatch(pixels[None], [0.5] * 3, [0.5] * 3).to()
    torch.testing.assert_close(ours[0], preprocess(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("resize_mode", ["longest", "squash"])
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_the_border_of_colour_photographs_is_cut_off_alike_in_training_and_in_use(retina, resize_mode, format_):
    framed = Image.new("RGB", (900, 520))
    framed.paste(retina, (250, 4))
    values = {**PREPROCESS, "size": 128, "resize_mode": resize_mode, "crop": True}
    content = encoded(framed, format_, **({"quality": 95} if format_ == "JPEG" else {}))
    fast, exact = make_resizer(values)(content), make_resizer(values, exact=True)(content)
    whole = make_resizer({**values, "crop": False})(encoded(retina, "PNG"))
    assert np.abs(fast.astype(int) - exact).mean() < 3
    assert np.abs(fast.astype(int) - whole).mean() < 12  # the drawing has a border of its own
    assert np.abs(make_resizer({**values, "crop": False})(content).astype(int) - whole).mean() > 25


@pytest.mark.parametrize("box", [(0, 100, 512, 400), (131, 0, 400, 512)])
def test_a_border_at_the_end_is_there_alike_in_training_and_in_use(retina, box):
    content = encoded(retina.crop(box), quality=95, subsampling=0)
    values = {**PREPROCESS, "size": 128, "resize_mode": "longest", "interpolation": "bilinear", "pad": "end"}
    values |= {"fill_color": 255}
    fast, exact = make_resizer(values)(content), make_resizer(values, exact=True)(content)
    used = image_transform({**values, "mean": (0, 0, 0), "std": (1, 1, 1)})(Image.open(io.BytesIO(content)))
    assert np.abs(fast.astype(int) - exact).mean() < 2
    assert np.abs(used.permute(1, 2, 0).numpy() * 255 - exact).max() < 1.01  # both sides' levels rounded, one by one
    height, width = np.array([box[3] - box[1], box[2] - box[0]]) * 128 // 512
    for pixels in (fast, exact):
        assert (pixels[height + 1 :] == 255).all()  # a JPEG decoded small may be a pixel larger
        assert (pixels[:, width + 1 :] == 255).all()
        assert (pixels[: height - 1, : width - 1] < 255).any(axis=(1, 2)).all()


@pytest.mark.parametrize("modality", ["FFA", "OCT"])
def test_what_is_grey_is_not_cropped(modality):
    grey = draw_retina(modality, "normal", [3], 96, "left").image
    framed = Image.new("RGB", (192, 96))
    framed.paste(grey, (48, 0))
    values = {**PREPROCESS, "size": 64}
    for format_ in ("JPEG", "PNG"):
        content = encoded(framed, format_)
        assert (
            make_resizer({**values, "crop": True}, exact=True)(content) == make_resizer(values, exact=True)(content)
        ).all()


@pytest.mark.parametrize("size", [(1536, 496), (400, 1200)])
def test_a_side_that_shrinks_is_averaged_where_the_other_grows(size):
    drawn = draw_retina("OCT", "normal", [3], 512, "left").image.resize(size)
    content = encoded(drawn, "PNG")
    values = {**PREPROCESS, "size": 512, "resize_mode": "squash"}
    fast, exact = make_resizer(values)(content), make_resizer(values, exact=True)(content)
    assert np.abs(fast.astype(int) - exact).mean() < 2
