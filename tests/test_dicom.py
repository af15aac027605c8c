"""DICOM files work like any picture, and nothing of their header leaves the program."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from keepfit_clip.cli import app
from keepfit_clip.data import SourceOptions, read_records
from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import ConfigError, ImageError, MissingExtraError
from keepfit_clip.extras import EXTRAS, Extra
from keepfit_clip.images.dicom import dicom_facts, is_dicom
from keepfit_clip.images.metadata import without_metadata
from keepfit_clip.images.reading import Frame, image_bytes, open_image

pydicom = pytest.importorskip("pydicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian  # noqa: E402

PHOTOGRAPH = "1.2.840.10008.5.1.4.1.1.77.1.5.1"  # Ophthalmic Photography 8 Bit Image Storage
TOMOGRAM = "1.2.840.10008.5.1.4.1.1.77.1.5.4"  # Ophthalmic Tomography Image Storage
SECRET = "Doe^Jane"


def write(path, pixels, sop_class=PHOTOGRAPH, modality="OP", **tags):
    """A DICOM file of pixels (H, W, 3), (H, W) or (frames, H, W), with a name in its header."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = SECRET, "MRN-1234567", "19610305"
    dataset.Modality = modality
    colour = pixels.shape[-1] == 3
    if pixels.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="module")
def retina():
    return draw_retina("CFP", "diabetic retinopathy", 0, size=64).image


def test_a_photograph_is_read_as_it_is(tmp_path, retina):
    path = write(tmp_path / "a.dcm", np.asarray(retina), ImageLaterality="R", PixelSpacing=[0.01, 0.02])
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(retina))
    assert open_image(path).info == {}
    facts = dicom_facts(path)
    assert (facts.eye, facts.modality, facts.frames, facts.spacing) == ("right", "CFP", 1, (0.01, 0.02))
    assert is_dicom(path)
    assert is_dicom(path.read_bytes())


def test_a_photograph_with_dye_is_an_angiogram(tmp_path, retina):
    grey = np.asarray(retina.convert("L"))
    path = write(tmp_path / "a.dcm", grey, ContrastBolusAgent="Fluorescein sodium", Laterality="L")
    assert (dicom_facts(path).modality, dicom_facts(path).eye) == ("FFA", "left")
    assert np.asarray(open_image(path))[..., 0] == pytest.approx(grey, abs=1)


def test_16_bits_a_window_and_white_for_nothing(tmp_path):
    ramp = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (64, 1))
    plain = np.asarray(open_image(write(tmp_path / "a.dcm", ramp, BitsStored=12, HighBit=11)))[0, :, 0].astype(int)
    assert plain[0] == 0
    assert plain[-1] == 255
    assert abs(plain[32] - 130) < 5
    inverted = write(tmp_path / "b.dcm", ramp, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    assert np.asarray(open_image(inverted))[0, :, 0].astype(int) == pytest.approx(255 - plain, abs=1)
    windowed = write(tmp_path / "c.dcm", ramp, BitsStored=12, HighBit=11, WindowCenter=1024, WindowWidth=2048)
    values = np.asarray(open_image(windowed))[0, :, 0]
    assert values[31] > 240
    assert values[-1] == 255


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "examples_ybr_color.dcm", "examples_palette.dcm", "examples_jpeg2k.dcm",
             "examples_overlay.dcm", "JPEG-LL.dcm", "MR_small_RLE.dcm", "JPEGLSNearLossless_16.dcm"]
)  # fmt: skip
def test_files_that_pydicom_ships_in_all_transfer_syntaxes(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("not shipped with this pydicom")
    image = open_image(path)
    facts = dicom_facts(path)
    assert image.size == (facts.width, facts.height)
    assert np.asarray(image).std() > 5


def test_frames_of_a_volume(tmp_path):
    volume = np.stack([np.full((32, 48), 20 * number, np.uint8) + np.arange(48, dtype=np.uint8) for number in range(5)])
    path = write(tmp_path / "v.dcm", volume, TOMOGRAM, "OPT", ImageLaterality="L")
    assert np.asarray(open_image(path))[0, 0, 0] == 40  # the middle one
    assert Image.open(io.BytesIO(image_bytes(Frame(path, 3)))).getpixel((0, 0)) == 60
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "categories"), ("v.dcm", "normal")])

    def read(frames):
        return list(read_records(tmp_path / "t.csv", tmp_path, options=SourceOptions(frames=frames)))

    assert [record.image.number for record in read("all")] == [0, 1, 2, 3, 4]
    assert [record.image.number for record in read("every:2")] == [0, 2, 4]
    assert [record.slice for record in read("every:2")] == [1, 3, 5]
    assert len({record.volume for record in read("all")}) == 1
    (middle,) = read("middle")
    assert (middle.image, middle.eye, middle.modality) == (Frame(path, 2), "left", "OCT")
    assert len({record.patient for record in read("all")}) == 1
    with pytest.raises(ConfigError, match="every:N"):
        SourceOptions(frames="every:0")


def test_nothing_of_the_header_reaches_a_shard(tmp_path, retina):
    volume = np.stack([np.asarray(retina.convert("L").rotate(angle)) for angle in (0, 90, 180)])
    write(tmp_path / "Doe_Jane.dcm", volume, TOMOGRAM, "OPT", ImageLaterality="R")
    write(tmp_path / "photo.dcm", np.asarray(retina))
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "categories"), ("Doe_Jane.dcm", "normal"), ("photo.dcm", "glaucoma")])
    for kind in ([], ["--originals"]):
        out = tmp_path / f"shards{len(kind)}"
        arguments = ["shards", "build", str(tmp_path / "t.csv"), "--images", str(tmp_path), "--out", str(out), *kind]
        arguments += ["--kind", "public", "--frames", "all", "--workers", "1"]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
        content = b"".join(path.read_bytes() for path in sorted(out.iterdir()))
        assert b'"modality": "OCT"' in content
        assert b'"eye": "right"' in content
        for secret in (b"Doe", b"Jane", b"MRN", b"1961", b"DICM", b"1.2.3.4"):
            assert secret not in content
    suffix, stripped = without_metadata((tmp_path / "photo.dcm").read_bytes())
    assert suffix == "png"
    assert b"Doe" not in stripped


def test_what_cannot_be_read_is_one_clear_error(tmp_path, retina, monkeypatch):
    path = write(tmp_path / "a.dcm", np.asarray(retina))
    (tmp_path / "cut.dcm").write_bytes(path.read_bytes()[:-5000])
    for damaged, why in (
        (tmp_path / "cut.dcm", "pixels are cut off"),
        (get_testdata_file("JPEG-lossy.dcm", download=False), "cannot be decoded"),
        (write(tmp_path / "none.dcm", np.asarray(retina), PixelData=None), "pixels"),
    ):
        with pytest.raises(ImageError, match=why):
            open_image(damaged)
    (tmp_path / "head.dcm").write_bytes(path.read_bytes()[:140])
    with pytest.raises(ImageError, match="DICOM"):
        open_image(tmp_path / "head.dcm")
    with pytest.raises(ImageError, match="million pixels"):
        open_image(path, max_pixels=100)
    monkeypatch.setitem(EXTRAS, "clinical", Extra("no_such_module", "DICOM files"))
    with pytest.raises(MissingExtraError, match=r"pip install .*pydicom"):
        open_image(path)


def test_a_window_means_the_same_in_every_frame_and_a_width_of_0_is_none(tmp_path):
    ramp = np.stack([np.full((8, 8), level, np.uint16) for level in (0, 1000, 2000, 4000)])
    told = {"sop_class": TOMOGRAM, "modality": "OPT", "BitsStored": 12, "HighBit": 11}
    path = write(tmp_path / "a.dcm", ramp, WindowCenter=1000, WindowWidth=2000, **told)
    shades = [open_frame(path, number)[0, 0] for number in range(4)]
    assert [int(shade) for shade in shades] == pytest.approx([0, 128, 255, 255], abs=1)
    for width in (0, None):
        plain = write(tmp_path / "b.dcm", ramp, WindowCenter=1000, WindowWidth=width, **told)
        assert int(open_frame(plain, 3)[0, 0]) == pytest.approx(4000 / 4095 * 255, abs=1)


def open_frame(path, number):
    return np.asarray(Image.open(io.BytesIO(image_bytes(Frame(path, number)))).convert("L"))


def test_a_file_without_an_ending_tells_its_eye_too(tmp_path, retina):
    write(tmp_path / "IM0001", np.asarray(retina), ImageLaterality="L")
    (tmp_path / "t.csv").write_text("image,category\nIM0001,glaucoma\n")
    (record,) = read_records(tmp_path / "t.csv", tmp_path)
    assert (record.eye, record.modality) == ("left", "CFP")


SYNTAXES = ["ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "RLELossless", "JPEG2000Lossless", "JPEGLSLossless"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_highdicom_writes_is_read(tmp_path, retina, syntax):
    highdicom = pytest.importorskip("highdicom")
    image = highdicom.sc.SCImage(
        np.asarray(retina),
        "YBR_RCT" if syntax == "JPEG2000Lossless" else "RGB",
        8,
        "PATIENT",
        "1.2.3",
        "1.2.4",
        1,
        "1.2.5",
        1,
        "maker",
        patient_id="MRN-1234567",
        patient_name=SECRET,
        laterality="R",
        patient_orientation=("L", "P"),
        pixel_spacing=(0.02, 0.02),
        transfer_syntax_uid=getattr(pydicom.uid, syntax),
    )
    image.Modality = "OP"
    image.save_as(tmp_path / "a.dcm")
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.dcm")), np.asarray(retina))
    facts = dicom_facts(tmp_path / "a.dcm")
    assert (facts.eye, facts.modality, facts.spacing) == ("right", "CFP", (0.02, 0.02))
