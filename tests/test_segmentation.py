"""`keepfit-clip segment`: masks go the way of their images, scores are those of the libraries, folds are by patient."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from keepfit_clip.drawing import draw_retina
from keepfit_clip.errors import CategoryError, ConfigError, ImageError, KeepFITError, MissingClassesError, TableError
from keepfit_clip.images.field_of_view import crop_colour
from keepfit_clip.images.reading import open_image
from keepfit_clip.model.config import ModelConfig, VisionConfig
from keepfit_clip.model.image_tower import ImageTower
from keepfit_clip.model.preprocess import to_input_size
from keepfit_clip.segmentation import protocol
from keepfit_clip.segmentation.control import control_tower
from keepfit_clip.segmentation.drawn import DrawnOptions, drawn_masks
from keepfit_clip.segmentation.folder import parse_classes, read_masks
from keepfit_clip.segmentation.geometry import View
from keepfit_clip.segmentation.network import SegmentationNetwork, set_input_size
from keepfit_clip.segmentation.prepared import prepare
from keepfit_clip.segmentation.protocol import SegmentationOptions, run_segmentation
from keepfit_clip.segmentation.scores import count_pixels, dice, draw_weights, iou, score_folds
from keepfit_clip.segmentation.training import TrainingOptions, answers, train_fold
from tests.conftest import MODEL, PREPROCESS
from tests.programs import call

SMALL = {**PREPROCESS, "size": 32}


# -- geometry ----------------------------------------------------------------------------------------------------------


def marked(width, height, box):
    """A grey picture with a white rectangle, and the mask of the rectangle."""
    left, top, right, bottom = box
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return Image.fromarray(np.where(mask, 255, 60).astype(np.uint8)).convert("RGB"), mask


@pytest.mark.parametrize("mode", ["squash", "longest", "shortest", "padded at the end"])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 128), (128, 192), (131, 97), (40, 30)])
@pytest.mark.parametrize("size", [64, (48, 80)])
def test_a_mask_lands_where_its_picture_does(mode, width, height, size):
    picture, mask = marked(width, height, (width // 4, height // 2, width // 2, height * 3 // 4))
    own = {"resize_mode": "longest", "pad": "end"} if mode == "padded at the end" else {"resize_mode": mode}
    preprocess = {**PREPROCESS, "size": size, **own}
    seen = np.asarray(to_input_size(preprocess)(picture))[..., 0] > (255 + 60) / 2
    placed = View.of(picture, preprocess).to_input(mask).astype(bool)
    assert placed.shape == seen.shape
    assert placed.any()
    for axis in (0, 1):  # the rectangle's edges: none is off by more than half a pixel, which rounding may make one
        (ours,), (theirs,) = (np.nonzero(part.any(axis=1 - axis)) for part in (placed, seen))
        assert abs(ours[0] - theirs[0]) <= 1
        assert abs(ours[-1] - theirs[-1]) <= 1


@pytest.mark.parametrize(("mode", "width"), [("squash", 128), ("longest", 128), ("shortest", 128), ("longest", 64)])
def test_where_pixels_are_halved_a_marked_square_is_the_same_to_the_pixel(mode, width):
    picture, mask = marked(width, 128, (16, 40, 48, 80))
    preprocess = {**PREPROCESS, "resize_mode": mode}
    view = View.of(picture, preprocess)
    seen = np.asarray(to_input_size(preprocess)(picture))[..., 0] > (255 + 60) / 2
    assert (view.to_input(mask) == seen).all()
    scores = torch.from_numpy(np.stack([~seen, seen]).astype(np.float32))
    assert (view.to_image(scores) == mask).all()


def test_the_black_border_is_cut_off_the_mask_too():
    inner = np.zeros((100, 120, 3), dtype=np.uint8)
    inner[20:80, 30:90] = (180, 80, 30)
    inner[40:50, 60:70] = (255, 255, 0)
    picture, mask = Image.fromarray(inner), np.zeros((100, 120), dtype=np.uint8)
    mask[40:50, 60:70] = 1
    assert crop_colour(picture).size < picture.size
    preprocess = {**PREPROCESS, "crop": True}
    view = View.of(picture, preprocess)
    seen = np.asarray(to_input_size(preprocess)(picture))[..., 1] > 168
    placed = view.to_input(mask).astype(bool)
    assert (placed & seen).sum() / (placed | seen).sum() > 0.9
    back = view.to_image(torch.from_numpy(np.stack([~placed, placed]).astype(np.float32)))
    assert (back.astype(bool) & mask.astype(bool)).sum() / (back | mask).sum() > 0.9


def test_the_pixel_at_the_middle_is_taken():
    mask = np.arange(96, dtype=np.uint8)[None].repeat(96, axis=0)
    view = View.of(Image.new("RGB", (96, 96)), SMALL)
    assert view.to_input(mask)[0].tolist() == list(range(1, 96, 3))


def test_nothing_is_answered_on_the_border_that_was_cut_off():
    picture = Image.new("RGB", (120, 100))
    picture.paste((180, 80, 30), (30, 40, 90, 70))  # wide, so that it is padded above and below
    view = View.of(picture, {**PREPROCESS, "crop": True, "resize_mode": "longest"})
    everything = view.to_image(torch.stack([torch.zeros(64, 64), torch.ones(64, 64)]))
    rows, columns = (np.flatnonzero(everything.any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == pytest.approx((40, 69, 30, 89), abs=2)


def test_what_the_tower_does_not_see_is_background():
    picture, mask = marked(128, 64, (0, 0, 16, 64))  # the left end of a wide picture, of which the middle is taken
    view = View.of(picture, {**PREPROCESS, "resize_mode": "shortest"})
    assert not view.to_input(mask).any()
    everything = view.to_image(torch.stack([torch.zeros(64, 64), torch.ones(64, 64)]))
    assert not everything[:, :32].any()
    assert everything[:, 32:96].all()


# -- scores ------------------------------------------------------------------------------------------------------------


def test_dice_and_iou_of_a_case_counted_by_hand():
    true = np.array([[1, 1, 0], [1, 0, 2]], dtype=np.uint8)
    predicted = np.array([[1, 0, 0], [1, 1, 0]], dtype=np.uint8)
    counts = count_pixels(predicted, true, 3)
    assert counts.tolist() == [[2, 1, 1], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_allclose(dice(counts), [4 / 6, 0, np.nan])
    np.testing.assert_allclose(iou(counts), [2 / 4, 0, np.nan])


def test_dice_and_iou_are_torchmetrics():
    rng = np.random.default_rng(0)
    for classes in (1, 4):
        true, predicted = rng.integers(0, classes + 1, (2, 20, 30)).astype(np.uint8)
        counts = count_pixels(predicted, true, classes)
        parts = [torch.from_numpy(mask.astype(np.int64)).flatten() for mask in (predicted, true)]
        options = {"num_classes": classes + 1, "average": "none"}
        if classes > 1:
            np.testing.assert_allclose(dice(counts), multiclass_f1_score(*parts, **options)[1:], rtol=1e-6)
        np.testing.assert_allclose(iou(counts), multiclass_jaccard_index(*parts, **options)[1:], rtol=1e-6)


def test_scores_are_means_over_images_then_folds_and_leave_out_what_is_not_there():
    values = np.array([[0.2, np.nan], [0.4, 1.0], [0.6, np.nan], [0.8, np.nan]])
    folds = [np.array([0, 1]), np.array([2, 3])]
    first, second, mean = score_folds(values, folds, draw_weights(folds, None, 4, 200, 0))
    assert first.mean == pytest.approx(0.5)
    assert first.sd == pytest.approx(np.std([0.3, 0.7], ddof=1))
    assert first.interval == pytest.approx((0.4, 0.6))
    assert second.mean == 1.0
    assert np.isnan(second.sd)
    assert mean.mean == pytest.approx((0.65 + 0.7) / 2)


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    values = rng.random((12, 2))
    folds = [np.arange(6), np.arange(6, 12)]
    weights = draw_weights(folds, None, 12, 100, 0)
    for score in score_folds(values, folds, weights, values):
        assert (score.mean, score.sd, score.interval) == (0, 0, (0, 0))
    better = score_folds(values + 0.1, folds, weights, values)
    for score in better:  # whatever the images are like
        assert score.interval == pytest.approx((0.1, 0.1))


def test_whole_patients_are_drawn():
    groups = np.array([7, 7, 7, 3, 3, 5])
    folds = [np.array([0, 1, 2, 5]), np.array([3, 4])]
    weights = draw_weights(folds, groups, 6, 50, 0)
    assert (weights[:, :1] == weights[:, :3]).all()
    assert (weights[:, 0] + weights[:, 5] == 2).all()  # two patients of that fold
    assert (weights[:, 3:5] == 1).all()
    assert len(np.unique(weights, axis=0)) > 1


# -- folders -----------------------------------------------------------------------------------------------------------


def write_lesions(folder, count=4, patients=2):
    """Pictures with a yellow and a dark spot, label masks, and a folder of binary masks for each of the two."""
    for part in ("images", "labels", "binary/hard exudate", "binary/hemorrhage"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"Jane-{number % patients}_{number}"
        pixels = rng.integers(90, 130, (40, 40, 3)).astype(np.uint8)
        mask = np.zeros((40, 40), dtype=np.uint8)
        for label, colour in ((1, (255, 230, 90)), (2, (60, 0, 0))):
            top, left = rng.integers(0, 16, 2) + (20 if label == 2 else 0)
            mask[top : top + 6, left : left + 6] = label
            pixels[mask == label] = colour
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "labels" / f"{name}.png")
        for label, kind in ((1, "hard exudate"), (2, "hemorrhage")):
            Image.fromarray(mask == label).save(folder / "binary" / kind / f"{name}_{kind[:2].upper()}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_lesions(tmp_path)


def masks_of(found):
    return [image.read()[1] for image in found.images]


def test_label_masks_and_folders_of_binary_masks_say_the_same(folder):
    labels = read_masks(folder / "images", folder / "labels", "hard exudate,hemorrhage")
    binary = read_masks(folder / "images", folder / "binary")
    assert labels.classes == binary.classes == ["hard exudate", "hemorrhage"]
    assert all((one == other).all() for one, other in zip(masks_of(labels), masks_of(binary), strict=True))
    assert np.unique(masks_of(labels)[0]).tolist() == [0, 1, 2]
    (one,) = read_masks(folder / "images", folder / "binary", "hemorrhage").classes
    assert one == "hemorrhage"


def test_values_of_masks_can_be_named(folder):
    for path in (folder / "labels").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.array([255, 128, 0], dtype=np.uint8)[mask]).save(path)
    found = read_masks(folder / "images", folder / "labels", "disc=128, cup=0, background=255")
    assert found.classes == ["disc", "cup"]
    assert np.unique(masks_of(found)[0]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "a,a", "a=1,b", "a=1,b=1", "a=0", "a=300", "background=255", "a=-1", "=1"])
def test_classes_that_cannot_be_told_are_refused(text):
    with pytest.raises(CategoryError, match="--classes"):
        parse_classes(text)


def test_what_cannot_be_used_is_counted(folder):
    names = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "labels" / names[0]).unlink()
    Image.new("L", (39, 40)).save(folder / "labels" / names[1])
    Image.new("L", (40, 40), 9).save(folder / "labels" / names[2])
    Image.new("L", (40, 40), 1).save(folder / "labels" / "nobody.png")
    source = read_masks(folder / "images", folder / "labels", "hard exudate,hemorrhage")
    prepared = prepare(source, SMALL)
    assert len(prepared.images) == 1
    told = {row.reason for row in source.left_out}
    assert {"it has no mask", "its mask is not of the image's size", "the mask belongs to no image"} < told
    assert any("the values 9" in reason and "--classes" in reason for reason in told)
    assert not any("Jane" in reason or "nobody" in reason for reason in told)  # for reports
    assert any("Jane" in row.message for row in source.left_out)  # for the terminal


def test_a_mask_that_is_no_picture_or_coloured_is_named(folder):
    path = next((folder / "labels").iterdir())
    for spoil in (lambda: path.write_bytes(b"no"), lambda: Image.new("RGB", (40, 40), "red").save(path)):
        spoil()
        source = read_masks(folder / "images", folder / "labels", "hard exudate,hemorrhage")
        with pytest.raises(ImageError, match=re.escape(str(path))):
            masks_of(source)


def test_folders_that_do_not_fit_end_in_one_error(folder):
    images, labels, binary = (folder / name for name in ("images", "labels", "binary"))
    (folder / "empty").mkdir()
    for arguments, kind, message in (
        ((folder / "none", labels), TableError, "no such folder"),
        ((folder / "empty", labels, "a"), TableError, "holds no images"),
        ((images, labels), CategoryError, "name the classes"),
        ((images, folder / "empty", "a"), TableError, "no mask is called"),
        ((images, binary, "drusen"), CategoryError, "no folder of masks of drusen; it has hard exudate"),
        ((images, binary, None, "("), ConfigError, "not a regular expression"),
        ((images, binary, None, "a", "b.csv"), ConfigError, "give one of them"),
        ((images, binary, None, None, folder / "no.csv"), TableError, "cannot be read"),
    ):
        with pytest.raises(kind, match=message):
            read_masks(*arguments)
    (labels / "Jane-0_0_2.png").write_bytes((labels / "Jane-0_0.png").read_bytes())
    with pytest.raises(TableError, match="two masks"):
        read_masks(images, labels, "a,b")


def test_a_class_without_a_pixel_is_an_error(folder):
    source = read_masks(folder / "images", folder / "labels", "hard exudate,hemorrhage,drusen")
    with pytest.raises(MissingClassesError, match="drusen"):
        prepare(source, SMALL)


def test_patients_come_from_names_or_a_table_and_copies_join_them(folder):
    images, labels = folder / "images", folder / "labels"
    names = sorted(path.name for path in images.iterdir())
    by_name = prepare(read_masks(images, labels, "a,b", r"-(\d)"), SMALL, copies_together=False)
    assert by_name.groups.tolist() == [int(name[5]) for name in names]
    table = folder / "groups.csv"
    table.write_text("image,group\n" + "".join(f"{name},{name[5]}\n" for name in names))
    by_table = prepare(read_masks(images, labels, "a,b", groups=table), SMALL, copies_together=False)
    assert by_table.groups.tolist() == by_name.groups.tolist()
    table.write_text("image,group\nother.png,1\n")
    with pytest.raises(TableError, match="says nothing of 4 images"):
        read_masks(images, labels, "a,b", groups=table)
    for part in (images, labels):
        Image.open(part / names[0]).resize((60, 60), Image.Resampling.NEAREST).save(part / "again.png")
    joined = prepare(read_masks(images, labels, "a,b", r"-(\d)"), SMALL)
    again, first = (joined.groups[[image.row for image in joined.images].index(row)] for row in (5, 1))
    assert again == first


# -- network and training ----------------------------------------------------------------------------------------------


def tower_of(backbone, size=32):
    torch.manual_seed(0)
    vision = VisionConfig(backbone, image_size=size)
    return ImageTower(vision, 8, {"mean": [0.5] * 3, "std": [0.5] * 3}, {}).eval()


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet", "test_resnet", "test_convnext"])
def test_a_decoder_stands_on_any_backbone(backbone):
    network = SegmentationNetwork(tower_of(backbone), 3, frozen=False)
    scores = network(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    assert scores.shape == (2, 4, 32, 32)
    scores.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.decoder.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.tower.trunk.parameters())


def test_a_tower_takes_images_of_another_size():
    for backbone in ("test_vit", "test_efficientnet"):
        tower = tower_of(backbone)
        set_input_size(tower, 64)
        network = SegmentationNetwork(tower, 1, frozen=True)
        assert network(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape[-2:] == (64, 64)
        with pytest.raises(ConfigError, match="--input-size 8"):
            set_input_size(tower, 8)
    with pytest.raises(ConfigError, match="--input-size 50"):  # no whole number of patches
        set_input_size(tower_of("test_vit"), 50)


@pytest.fixture(scope="module")
def few():
    """Six drawn retinas with their masks, at 32 pixels."""
    options = DrawnOptions(6, 64, conditions=["diabetic retinopathy", "branch retinal vein occlusion"])
    return prepare(drawn_masks(options, ["cotton-wool spots", "microaneurysms"]), SMALL)


def test_drawn_masks_are_those_of_the_drawn_retina():
    source = drawn_masks(DrawnOptions(3, 64, conditions=["age-related macular degeneration"], seed=4))
    picture, mask = source.images[2].read()
    retina = draw_retina("CFP", "age-related macular degeneration", np.random.default_rng([4, 2]), 64)
    assert picture.tobytes() == retina.image.tobytes()
    assert source.classes == ["drusen"]
    assert (mask.astype(bool) == retina.masks["drusen"]).all()
    with pytest.raises(CategoryError, match="they have: drusen"):
        drawn_masks(DrawnOptions(3, 64, conditions=["age-related macular degeneration"]), ["hemorrhages"])


@pytest.mark.parametrize("kind", ["frozen", "finetune"])
def test_a_frozen_tower_stays_as_it_is_and_a_fine_tuned_one_does_not(few, kind):
    tower = tower_of("test_efficientnet")
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    network = train_fold(tower, few, np.arange(4), TrainingOptions(kind, epochs=1, batch_size=2), 0)
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())  # the caller's own
    same = [torch.equal(value, before[key]) for key, value in network.tower.state_dict().items()]
    assert all(same) == (kind == "frozen")


def test_the_same_seed_gives_the_same_answers(few):
    tower = tower_of("test_efficientnet")
    maps = []
    for seed in (0, 0, 1):
        network = train_fold(tower, few, np.arange(4), TrainingOptions(epochs=1, batch_size=2), seed)
        with torch.no_grad():
            maps.append(network(torch.from_numpy(few.pixels[4:])))
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    (first, _) = answers(network, few, np.array([4, 5]), 2)
    assert first.shape == (64, 64)  # the image's own size, not the tower's


def test_every_image_is_tested_once_and_no_patient_stands_on_both_sides(few, monkeypatch):
    seen = []

    def trained(tower, prepared, rows, *_):
        seen.append(rows)
        return rows

    def answered(rows, prepared, test, _):
        assert not set(few.groups[rows]) & set(few.groups[test])
        return [prepared.truths[row].mask for row in test]

    monkeypatch.setattr(protocol, "train_fold", trained)
    monkeypatch.setattr(protocol, "answers", answered)
    monkeypatch.setattr(few, "groups", np.array([0, 0, 1, 1, 2, 2]))
    result = run_segmentation(None, None, few, SegmentationOptions(folds=3))
    assert sorted(np.concatenate(result.folds)) == list(range(6))
    assert len(seen) == 3
    for score in result.scores("dice", result.outcomes[0]):  # what is right to the pixel
        assert (score.mean, score.interval) == (1, (1, 1))


def test_patients_are_parted_whatever_they_have(few, monkeypatch):
    """Few patients with lesions that hardly any other has."""
    monkeypatch.setattr(protocol, "train_fold", lambda *_: None)
    monkeypatch.setattr(
        protocol, "answers", lambda _, prepared, test, size: [prepared.truths[row].mask for row in test]
    )
    rng = np.random.default_rng(0)
    for seed in range(20):
        monkeypatch.setattr(few, "groups", rng.permutation([0, 0, 1, 2, 3, 4]))
        folds = run_segmentation(None, None, few, SegmentationOptions(folds=5, seed=seed)).folds
        assert min(map(len, folds)) > 0
        assert sorted(np.concatenate(folds)) == list(range(6))


def test_a_control_without_weights_at_hand_is_random_and_says_so():
    import open_clip

    config = ModelConfig.from_dict(open_clip.get_model_config(MODEL))
    control = control_tower("imagenet", config.vision, PREPROCESS, 0)
    assert control.name == "random"
    assert "no ImageNet weights of test_vit are at hand" in control.note
    assert control_tower("none", config.vision, PREPROCESS, 0) is None
    with pytest.raises(ConfigError, match="--control other"):
        control_tower("other", config.vision, PREPROCESS, 0)


def test_the_control_has_the_wheels_weights_and_their_normalisation():
    import open_clip

    config = ModelConfig.from_dict(open_clip.get_model_config("keepfit-v2-lite"))
    control = control_tower("imagenet", config.vision, {**PREPROCESS, "mean": [0.1] * 3}, 0)
    built = open_clip.create_model("keepfit-v2-lite", pretrained_image=True, pretrained_text=False).visual
    assert (control.name, control.note) == ("ImageNet", "")
    ours, theirs = control.tower.trunk.state_dict(), built.trunk.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert list(control.tower.image_mean) == [0.5] * 3


# -- the command -------------------------------------------------------------------------------------------------------


def run_command(exported, tmp_path, *words):
    return call("segment", "--model", exported, "--folds", 2, "--epochs", 1, "--input-size", 32, "--cache",
                tmp_path / "cache", *words)  # fmt: skip


def test_the_command_measures_folders_and_goes_on_where_it_stopped(exported, folder, tmp_path, monkeypatch):
    words = ("--images", folder / "images", "--masks", folder / "labels", "--classes", "hard exudate,hemorrhage",
             "--group-pattern", "Jane-[0-9]", "--copies-apart", "--overlays", 2)  # fmt: skip
    ended = run_command(exported, tmp_path, *words, "--out", tmp_path / "out", "--json", "-")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["images"] == 4
    assert told["by_patient"]
    assert [outcome["tower"] for outcome in told["outcomes"]] == ["model", "random"]
    assert set(told["outcomes"][0]["dice"]) == {"hard exudate", "hemorrhage", "mean"}
    assert "random ones" in told["note"]
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "results.json", "results.md"]
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["0001.png", "0002.png"]
    assert open_image(out / "overlays" / "0001.png").size == (4 * 40, 40)  # image, truth, two answers
    assert "Jane" not in "".join(path.read_text() for path in out.glob("results.*"))
    monkeypatch.setattr(protocol, "train_fold", None)  # nothing is trained again
    again = run_command(exported, tmp_path, *words, "--json", "-")
    assert json.loads(again.stdout) == told


def test_the_command_draws(exported, tmp_path):
    ended = run_command(exported, tmp_path, "--drawn", 4, "--size", 48, "--conditions", "AMD", "--control", "none",
                        "--tower", "finetune", "--json", "-")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["classes"] == ["drusen"]
    assert told["difference"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --images and --masks, or --drawn"),
        (("--drawn", 4, "--images", "x", "--masks", "y"), "give --images and --masks, or --drawn"),
        (("--drawn", 1), "--drawn 1"),
        (("--drawn", 4, "--tower", "thawed"), "--tower thawed: frozen or finetune"),
        (("--drawn", 4, "--control", "other"), "--control other"),
        (("--drawn", 4, "--epochs", 0), "--epochs must be above 0"),
        (("--drawn", 4, "--overlays", -1), "--overlays -1"),
        (("--drawn", 4, "--modality", "MRI"), "--modality MRI"),
        (("--drawn", 4, "--conditions", "normal"), "no drawn picture has any lesion"),
        (("--drawn", 2, "--conditions", "AMD", "--folds", 3), "fewer than the 3 folds"),
    ],
)
def test_what_cannot_be_is_one_line(exported, tmp_path, words, message):
    ended = run_command(exported, tmp_path, *words)
    assert ended.returncode == 1
    assert message in " ".join(ended.stderr.split())
    assert "bug" not in ended.stderr


@pytest.mark.slow
def test_drawn_lesions_are_learnt_better_than_the_best_constant_mask():
    import open_clip

    config = ModelConfig.from_dict(open_clip.get_model_config("keepfit-v2-lite"))
    preprocess = {**PREPROCESS, "size": 96}
    tower = control_tower("imagenet", config.vision, preprocess, 0).tower
    options = DrawnOptions(36, 96, conditions=["age-related macular degeneration", "branch retinal vein occlusion"])
    prepared = prepare(drawn_masks(options, ["drusen", "flame hemorrhages"]), preprocess)
    training = TrainingOptions("finetune", epochs=25)
    result = run_segmentation(tower, None, prepared, SegmentationOptions(training, folds=3))
    learnt = result.scores("dice", result.outcomes[0])
    truths = np.stack([truth.mask for truth in prepared.truths])
    for label in (1, 2):
        often = (truths == label).mean(axis=0)
        masks = [(often >= share).astype(np.uint8) for share in np.unique(often)]  # chosen with the tests' own truth
        constant = max(
            np.nanmean(
                [dice(count_pixels(m, (t == label).astype(np.uint8), 1))[0] for t in truths if (t == label).any()]
            )
            for m in masks
        )
        assert learnt[label - 1].interval[0] > constant


def test_an_error_of_all_images_is_told(folder):
    for path in (folder / "labels").iterdir():
        Image.new("L", (10, 10)).save(path)
    source = read_masks(folder / "images", folder / "labels", "a")
    with pytest.raises(KeepFITError, match="none of the images can be used"):
        prepare(source, SMALL)
