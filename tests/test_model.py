"""What the model promises: causal captions, padding that changes nothing, equal cached generation, equal builds."""

import copy

import open_clip
import pytest
import torch
from open_clip import CoCaLoss
from transformers import BatchEncoding

from keepfit_clip.errors import ConfigError
from keepfit_clip.model.decoder import token_nll
from keepfit_clip.model.loss import HybridLoss
from keepfit_clip.model.tokenization import Tokenizer, decode_texts
from tests.conftest import MODEL

TEXTS = ["microaneurysms near the macula!", "a large cup", "normal", "hard exudates ! and edema"]


def training_batch(tokenizer, texts, elite):
    """Ids as in a real batch, every text true of its own image only."""
    number = torch.arange(len(texts))
    return BatchEncoding(
        {
            "input_ids": tokenizer(texts),
            "is_elite": torch.tensor(elite),
            "modality": torch.zeros(len(texts), dtype=torch.long),
            "text_id": number,
            "category_ids": torch.cat([number[:, None], torch.full((len(texts), 15), -1)], dim=1),
        }
    )


@pytest.fixture
def batched(model, tokenizer):
    return Tokenizer.of_model(model, tokenizer)


def test_changing_a_token_changes_no_logit_before_it(model, tokenizer):
    images, text = torch.randn(1, 3, 64, 64), tokenizer(["dot and blot hemorrhages in four quadrants"])
    logits = model(images, text)["logits"]
    for position in (1, 4, 6):
        edited = text.clone()
        edited[0, position] = 1234
        changed = (model(images, edited)["logits"] - logits).abs().amax(dim=(0, 2)) > 1e-6
        assert not changed[:position].any()  # logit t predicts token t + 1 from the tokens up to t
        assert changed[position]


def test_captions_depend_on_the_image(model, tokenizer):
    text = tokenizer(["a"])
    one, other = (model(torch.randn(1, 3, 64, 64), text)["logits"] for _ in range(2))
    assert (one - other).abs().max() > 1e-4


def test_padding_and_neighbours_change_no_embedding(model, tokenizer, batched):
    alone = torch.cat([model.encode_text(batched([text])) for text in TEXTS])
    together = model.encode_text(batched(TEXTS))
    padded_to_context = model.encode_text(tokenizer(TEXTS))
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    torch.testing.assert_close(alone, padded_to_context, atol=1e-6, rtol=0)


def test_image_embedding_does_not_depend_on_neighbours(model):
    images = torch.randn(3, 3, 64, 64)
    alone = torch.cat([model.encode_image(image[None]) for image in images])
    torch.testing.assert_close(alone, model.encode_image(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}])
def test_cached_generation_equals_uncached(model, options):
    images = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    cached = model.generate(images, max_length=12, **options)
    torch.manual_seed(1)
    uncached = model.generate(images, max_length=12, use_cache=False, **options)
    assert cached.shape == (2, 12)
    assert torch.equal(cached, uncached)


def test_generation_stops_at_the_end_token_alike_with_and_without_cache(model):
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 64)
    eos, pad = model.text.eos_id, model.text.pad_id
    model.text_decoder.bias.data[eos] = -1e4
    assert (model.generate(images, max_length=12) != eos).all()
    model.text_decoder.bias.data[eos] = 0
    logits = model(images, model.generate(images, max_length=12))["logits"]  # (3, 11, V)
    margins = logits.amax(dim=2) - logits[:, :, eos]
    model.text_decoder.bias.data[eos] += margins.amin(dim=1).sort().values[:2].mean()  # it is likeliest for one image
    written = model.generate(images, max_length=12)
    ended = (written == eos).any(dim=1)
    assert ended.sum() == 1
    row = written[ended][0]
    behind = row[int((row == eos).nonzero()[0]) + 1 :]
    assert len(behind)
    assert (behind == pad).all()
    for beams in (1, 3):
        cached = model.generate(images, max_length=12, num_beams=beams)
        assert torch.equal(cached, model.generate(images, max_length=12, num_beams=beams, use_cache=False))


def test_generation_is_the_same_twice_on_a_model_in_training_mode():
    torch.manual_seed(0)
    model = open_clip.create_model("keepfit-v2-test", multimodal_cfg={"layers": 2, "heads": 2, "dropout": 0.5})
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.generate(images, max_length=12), model.generate(images, max_length=12))
    assert model.training
    with pytest.raises(ConfigError, match="beyond the decoder's context of 77"):
        model.generate(images, max_length=78)


def test_flair_pooling_averages_hidden_states_1_2_and_last_without_padding(tokenizer):
    config = open_clip.get_model_config(MODEL)
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL, text_cfg={**config["text_cfg"], "pooler": "flair"}).eval()
    text = tokenizer(["hard exudates"])
    length = int(model.text.attention_mask(text).sum())
    states = model.text.transformer(text[:, :length], output_hidden_states=True).hidden_states
    expected = torch.stack([states[i].mean(dim=1) for i in (1, 2, -1)]).mean(dim=0) @ model.text.proj.weight.T
    torch.testing.assert_close(model.encode_text(text), expected, atol=1e-6, rtol=1e-5)


def test_greedy_generation_follows_the_training_logits(model):
    images = torch.randn(1, 3, 64, 64)
    written = model.generate(images, max_length=10)
    logits = model(images, written)["logits"]
    assert torch.equal(logits.argmax(dim=-1), written[:, 1:])


def test_output_fits_the_stock_coca_loss(model, tokenizer):
    output = model(torch.randn(4, 3, 64, 64), tokenizer(TEXTS))
    assert output["logits"].shape[:2] == output["labels"].shape
    assert torch.isfinite(sum(CoCaLoss(1.0, 1.0)(**output, output_dict=True).values()))


def test_one_modality_alone(model, tokenizer):
    assert set(model(image=torch.randn(2, 3, 64, 64))) == {"image_features", "logit_scale"}
    assert set(model(text=tokenizer(["a"]))) == {"text_features", "logit_scale"}


def test_two_builds_with_one_seed_are_equal_and_finite():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(open_clip.create_model(MODEL).state_dict())
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key
        assert tensor.float().abs().max() < 100, key


def test_reload_is_bit_equal(model, tokenizer, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = open_clip.create_model(MODEL, pretrained=str(tmp_path / "weights.pt")).eval()
    images, text = torch.randn(2, 3, 64, 64), tokenizer(TEXTS[:2])
    for key, tensor in model(images, text).items():
        assert torch.equal(tensor, other(images, text)[key]), key


def test_state_dict_holds_the_word_embeddings_once(model):
    vocabulary, width = model.text.word_embeddings.weight.shape
    assert sum(tuple(t.shape) == (vocabulary, width) for t in model.state_dict().values()) == 1


def test_copied_model_decodes_with_its_own_embeddings(model):
    copied = copy.deepcopy(model)
    assert copied.text_decoder.get_input_embeddings() is copied.text.word_embeddings
    assert copied.text.word_embeddings is not model.text.word_embeddings


def test_every_parameter_gets_a_gradient_in_a_hybrid_step(model, tokenizer):
    model.train()
    batch = training_batch(tokenizer, TEXTS, [False, False, True, True])
    losses = HybridLoss()(**model(torch.randn(4, 3, 64, 64), batch))
    assert all(name.endswith("_loss") for name in losses)
    sum(losses.values()).backward()
    # The key bias of an attention shifts all scores of a query alike: its true gradient is zero.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("key.bias"), name


@pytest.mark.parametrize("elite", [[False] * 4, [True] * 4])
def test_a_batch_of_one_kind_still_reaches_every_parameter(model, tokenizer, elite):
    losses = HybridLoss()(**model(torch.randn(4, 3, 64, 64), training_batch(tokenizer, TEXTS, elite)))
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_batch_output_has_the_batch_first_and_gradient_checkpointing_changes_nothing(model, tokenizer):
    images, batch = torch.randn(4, 3, 64, 64), training_batch(tokenizer, TEXTS, [False, False, True, True])
    model.train()
    output = model(images, batch)
    assert all(len(tensor) == 4 for key, tensor in output.items() if key != "logit_scale")
    model.set_grad_checkpointing()
    checkpointed = model(images, batch)
    for key, tensor in output.items():
        torch.testing.assert_close(tensor, checkpointed[key])
    sum(HybridLoss()(**checkpointed).values()).backward()


def test_caption_nll_matches_the_logits_and_skips_public_texts(model, tokenizer):
    images, batch = torch.randn(4, 3, 64, 64), training_batch(tokenizer, TEXTS, [False, False, True, True])
    output, plain = model(images, batch), model(images, batch["input_ids"])
    mask = model.text.attention_mask(batch["input_ids"])[:, 1:]
    nll = torch.nn.functional.cross_entropy(plain["logits"].transpose(1, 2), plain["labels"], reduction="none") * mask
    expected = nll.sum(dim=1) * batch["is_elite"]
    torch.testing.assert_close(output["caption_nll_sum"], expected, rtol=1e-5, atol=1e-4)
    assert output["caption_tokens"].tolist() == [0, 0, *mask[2:].sum(dim=1).tolist()]
    model.caption_public = True
    torch.testing.assert_close(model(images, batch)["caption_nll_sum"], nll.sum(dim=1), rtol=1e-5, atol=1e-4)


def test_token_nll_has_the_value_and_gradient_of_cross_entropy():
    states = torch.randn(3, 200, 8, requires_grad=True)  # more rows than one chunk
    weight, bias = torch.randn(50, 8, requires_grad=True), torch.randn(50, requires_grad=True)
    targets, scale = torch.randint(50, (3, 200)), torch.rand(3, 200)
    (token_nll(states, weight, bias, targets) * scale).sum().backward()
    found = [states.grad.clone(), weight.grad.clone(), bias.grad.clone()]
    for tensor in (states, weight, bias):
        tensor.grad = None
    logits = torch.nn.functional.linear(states, weight, bias)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    (nll.view(3, 200) * scale).sum().backward()
    for ours, theirs in zip(found, (states.grad, weight.grad, bias.grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_locking_leaves_the_projections_free(model):
    model.lock_image_tower()
    model.lock_text_tower()
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"visual.proj.weight", "text.proj.weight"} <= free
    assert not any(name.startswith(("visual.trunk.", "text.transformer.")) for name in free)


def test_locking_can_leave_the_last_layers_free(model):
    model.lock_text_tower(unlocked_layers=1)
    free = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("text.transformer")}
    assert free
    assert all(".layer.1." in name for name in free)


@pytest.mark.long
def test_overfitting_eight_pairs_gives_the_captions_back_word_for_word(tokenizer):
    captions = [
        "microaneurysms temporal to the macula",
        "normal left fundus",
        "a large cup with a thin rim",
        "hard exudates in a ring",
        "flame hemorrhages along the upper arcade",
        "hazy view through a cataract",
        "drusen at the posterior pole",
        "myopic crescent around the disc",
    ]
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL)
    batched = Tokenizer.of_model(model, tokenizer)
    images = torch.randn(8, 3, 64, 64)
    batch = training_batch(batched, captions, [True] * 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = HybridLoss(revision_weight=0.0)
    for _ in range(200):
        terms = loss(**model(images, batch))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        if terms["caption_loss"] < 0.08:
            break
    assert terms["caption_loss"] < 0.1
    model.eval()
    assert decode_texts(tokenizer, model.generate(images), model.text.eos_id) == captions
