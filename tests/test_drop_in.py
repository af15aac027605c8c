"""Tools made for open_clip's models take ours: CLIP_benchmark gives the numbers that this library gives."""

import open_clip
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from sklearn.metrics import top_k_accuracy_score
from torch.utils.data import DataLoader, Dataset

from keepfit_clip.data.sources import read_records
from keepfit_clip.drawing import DrawOptions, draw_dataset
from keepfit_clip.evaluate.metrics.retrieval import score_retrieval
from keepfit_clip.evaluate.table import evaluate_table
from keepfit_clip.folders.loaded import LoadedModel
from keepfit_clip.images.reading import open_image
from keepfit_clip.knowledge.conditions import Knowledge
from keepfit_clip.knowledge.templates import class_texts

CLASSES = ["normal", "glaucoma", "cataract", "macular hole"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Drawn retinas with captions."""
    folder = tmp_path_factory.mktemp("drawn") / "retina"
    draw_dataset(folder, DrawOptions(48, 64, 3, elite=0.5))
    return folder


@pytest.fixture(scope="module")
def loaded(exported):
    """The model, transform and tokenizer that open_clip itself gives."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    return LoadedModel(model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{exported}"))


class Pairs(Dataset):
    """Images with whatever belongs to them."""

    def __init__(self, items, transform):
        self.items, self.transform = items, transform
        self.classes = CLASSES

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        path, target = self.items[index]
        return self.transform(open_image(path)), target


def accuracy(logits, target, topk):
    """In place of CLIP_benchmark's, which converts an array of one number in a way that NumPy 2.4 refuses."""
    return [top_k_accuracy_score(target, logits, k=k, labels=range(logits.shape[1])) for k in topk]


def test_zero_shot_classification(loaded, drawn, monkeypatch):
    monkeypatch.setattr(zeroshot_classification, "accuracy", accuracy)
    ours = evaluate_table(loaded, drawn / "retina.csv", drawn, CLASSES, "CFP")
    data = Pairs(
        [(record.image, label) for record, label in zip(ours.records, ours.labels.tolist(), strict=True)],
        loaded.preprocess,
    )
    texts = {name: class_texts(name, "CFP", Knowledge.load()) for name in ours.classes}
    theirs = zeroshot_classification.evaluate(
        loaded.model, DataLoader(data, batch_size=5), loaded.tokenizer, ours.classes, texts, "cpu", amp=False
    )
    assert theirs["mean_per_class_recall"] == pytest.approx(ours.scores.aca)
    assert theirs["acc1"] == pytest.approx(sum(ours.scores.confusion.diagonal()) / ours.images)


def test_retrieval(loaded, drawn):
    records = list(read_records(drawn / "elite.csv", drawn))
    captions = [record.caption_texts[0] for record in records]
    assert len(set(captions)) == len(captions) > 10  # else one text would belong to several images
    data = Pairs([(r.image, [c]) for r, c in zip(records, captions, strict=True)], loaded.preprocess)
    loader = DataLoader(
        data, batch_size=4, collate_fn=lambda batch: (torch.stack([b[0] for b in batch]), [b[1] for b in batch])
    )
    theirs = zeroshot_retrieval.evaluate(
        loaded.model, loader, loaded.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    with torch.no_grad():
        image = torch.cat([loaded.model.encode_image(images, normalize=True) for images, _ in loader])
        text = loaded.model.encode_text(loaded.tokenizer(captions), normalize=True)
    ids = torch.arange(1, len(captions) + 1)
    ours = score_retrieval(image, text, ids[:, None], ids)
    for k in (1, 5, 10):
        assert theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours[f"image_to_text_recall@{k}"])
        assert theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"text_to_image_recall@{k}"])


def test_the_usual_snippet(loaded, drawn):
    """open_clip's, word for word."""
    model, tokenizer = loaded.model, loaded.tokenizer
    image = loaded.preprocess(open_image(next((drawn / "images").glob("*.*")))).unsqueeze(0)
    text = tokenizer(["a diagram", "a fundus photograph", "a cat"])
    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        text_probs = (100.0 * image_features @ text_features.T).softmax(dim=-1)
    assert text_probs.shape == (1, 3)
    assert text_probs.sum().item() == pytest.approx(1)
