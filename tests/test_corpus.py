"""The corpus of stage 1: what a document is, how it becomes sentences, each of them once and on one side."""

import json
import os
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from ftfy import fix_text
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit_clip.data.tars.reader import list_shards, read_shards
from keepfit_clip.errors import CorpusError
from keepfit_clip.knowledge.conditions import Condition, Knowledge
from keepfit_clip.knowledge.templates import knowledge_sentences, sentences_of
from keepfit_clip.training.text_stage.corpus import (
    Document,
    build_corpus,
    read_documents,
    split_sentences,
    stamp_sources,
)

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))


def write(path: Path, *lines) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def numbered(count: int, what: str = "drusen") -> list[str]:
    return [f"Eye {number} shows {what}." for number in range(count)]


def test_a_line_of_text_is_a_document(tmp_path):
    text = write(tmp_path / "a.txt", "\ufeffOne. Two.", "", "  Three.  ")
    assert list(read_documents([text])) == [Document("One. Two.", "One. Two."), Document("Three.", "Three.")]


def test_json_lines_of_one_document_or_id_belong_together(tmp_path):
    lines = [{"text": "One.", "document": 7, "id": 1}, {"text": "Two.", "document": 7, "id": 2},
             {"text": "Three.", "id": "x"}, {"text": "Four."}]  # fmt: skip
    names = [document.name for document in read_documents([write(tmp_path / "a.jsonl", *lines)])]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    renamed = write(tmp_path / "b.ndjson", {"report": "One."})
    assert [document.text for document in read_documents([renamed], text_field="report")] == ["One."]


def test_captions_of_a_patient_are_one_document(shards):
    found = list(read_documents([shards / "elite"]))
    samples = list(read_shards(list_shards(shards / "elite")))
    assert sorted(document.text for document in found) == sorted(s.description.captions[0].text for s in samples)
    assert len({document.name for document in found}) == len({s.description.group for s in samples}) < len(found)
    by_pattern = list(read_documents([f"{shards / 'elite'}/{{000000..000001}}.tar"]))
    assert by_pattern == found
    with pytest.raises(CorpusError, match="no sample has a caption in zh"):
        list(read_documents([shards / "elite"], languages=["zh"]))
    with pytest.raises(CorpusError, match="no sample has a caption"):
        list(read_documents([shards / "public"]))


def test_a_condition_of_the_knowledge_is_a_document():
    knowledge = Knowledge.load()
    found = list(read_documents([], knowledge))
    assert [document.text for document in found] == knowledge_sentences(knowledge)
    told = [name for name in knowledge.conditions if sentences_of(name, knowledge)]
    assert len({document.name for document in found}) == len(told)


def test_lines_stream_through(tmp_path):
    with open(tmp_path / "large.txt", "w") as file:
        file.writelines(f"{number} {'drusen ' * 100}\n" for number in range(30_000))
    assert (tmp_path / "large.txt").stat().st_size > 20e6
    tracemalloc.start()
    assert sum(1 for _ in read_documents([tmp_path / "large.txt"])) == 30_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_texts_become_sentences_with_single_spaces():
    text = "Dr. Lee saw  drusen, e.g. in O.S., at 14.5 mm.\nThere is no edema. SchÃ¶n!\n\nIMPRESSION\n \nNo edema"
    assert list(split_sentences(text)) == [
        "Dr. Lee saw drusen, e.g. in O.S., at 14.5 mm.", "There is no edema.", "Schön!", "IMPRESSION", "No edema",
    ]  # fmt: skip
    assert list(split_sentences(" \n ")) == []


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list("aB é.!?'’-_(){}[]…\u200b\u00ad\u2032ʼn\"“”;:,09%/·。！\n")), max_size=60))  # noqa: RUF001
def test_sentences_lose_nothing_but_white_space(text):
    assert "".join("".join(split_sentences(text)).split()) == "".join(fix_text(text).split())


def texts(side) -> list[str]:
    return list(side["text"])


def test_a_document_is_on_one_side_and_a_sentence_stands_once(tmp_path):
    reports = [{"document": n, "text": f"Report {n} begins. {s}"} for n in range(60) for s in numbered(3, f"sign {n}")]
    shared = [{"document": f"copy {n}", "text": "Report 1 begins. REPORT 2 BEGINS."} for n in range(40)]
    corpus = build_corpus([write(tmp_path / "a.jsonl", *reports, *shared)], tmp_path / "work", 0.3, 0)
    sides = {name: texts(getattr(corpus, name)) for name in ("training", "held_out")}
    assert len(set(sides["training"]) | set(sides["held_out"])) == 60 * 4
    reports_of = {name: {t.split()[1] for t in side if t.startswith("Report")} for name, side in sides.items()}
    signs_of = {name: {t.split()[-1][:-1] for t in side if t.startswith("Eye")} for name, side in sides.items()}
    assert reports_of == signs_of
    assert not reports_of["training"] & reports_of["held_out"]
    assert 8 < len(reports_of["held_out"]) < 30
    figures = corpus.figures
    assert (figures.training_sentences, figures.held_out_sentences) == tuple(map(len, sides.values()))
    assert (figures.training_documents, figures.held_out_documents) == tuple(map(len, reports_of.values()))
    assert figures.duplicates == 60 * 2 + 40 * 2


def test_the_split_depends_on_the_documents_name_and_the_seed_alone(tmp_path):
    lines = numbered(80)

    def held_out(name, *lines, seed=0):
        corpus = build_corpus([write(tmp_path / f"{name}.txt", *lines)], tmp_path / name, 0.2, seed)
        return set(texts(corpus.held_out)) & set(numbered(80))

    straight = held_out("straight", *lines)
    assert straight == held_out("backwards", *lines[::-1]) == held_out("more", *numbered(50, "exudates"), *lines)
    assert straight != held_out("seed", *lines, seed=1)


def test_lines_that_cannot_be_read_are_counted_and_told(tmp_path, caplog):
    bad = ["{not json", "[1]", {"other": 1}, {"text": None}, {"text": " "}]
    good = [{"text": f"{line}\ud800", "id": f"{line}\ud800"} for line in numbered(40)]  # half a character
    source = write(tmp_path / "a.jsonl", *good, *bad)
    corpus = build_corpus([source], tmp_path / "work", 0.2, 0)
    assert corpus.figures.left_out == len(bad)
    assert corpus.figures.training_sentences + corpus.figures.held_out_sentences == 40
    assert [record.getMessage().partition("a.jsonl")[2][:40] for record in caplog.records] == [
        ", line 41: not a JSON object; it is left", "",
    ]  # fmt: skip
    assert "5 lines or samples" in caplog.text
    with pytest.raises(CorpusError, match="line 41"):
        list(read_documents([source]))


def test_a_damaged_tar_is_counted(shards, tmp_path):
    for tar in (shards / "elite").glob("*.tar"):
        shutil.copy(tar, tmp_path)
    whole = len(list(read_documents([tmp_path])))
    last = max(tmp_path.glob("*.tar"))
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    problems = []
    assert 0 < len(list(read_documents([tmp_path], on_unreadable=problems.append))) < whole
    assert "cut off" in problems[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, r"a\.txt: cannot be read"),
        ("a.tar", None, "no such shard"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b"one\ntwo\nth\xff\n", r"a\.txt, line 3: not UTF-8"),
        ("a.txt", b"one\ntwo", "2 different sentences; at least 20"),
        ("a.json", b"{}", "give JSON lines .* --knowledge"),
        ("a.jsonl", b'{"txt": "One.", "nr": 1}\n', r"line 1: has no field 'text' \(its fields: txt, nr\): name"),
        ("a.jsonl", b"drusen\n", "line 1: not a JSON object"),
        ("a.tar", b"no tar", "cut off or damaged"),
    ],
)  # fmt: skip
def test_bad_corpora_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        build_corpus([tmp_path / name], tmp_path / "work", 0.2, 0)


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(CorpusError, match="holds no shards"):
        list(read_documents([tmp_path]))


@pytest.mark.parametrize(("share", "purpose"), [(1e-9, "measure on"), (1 - 1e-9, "train on")])
def test_both_sides_of_the_split_must_have_something(tmp_path, share, purpose):
    with pytest.raises(CorpusError, match=f"nothing to {purpose}"):
        build_corpus([write(tmp_path / "a.txt", *numbered(30))], tmp_path / "work", share, 0)


def test_stamps_tell_a_changed_corpus(tmp_path, shards):
    text = write(tmp_path / "a.txt", "One.")
    before = stamp_sources([text, shards / "elite"])
    assert before == stamp_sources([text, shards / "elite"])
    assert len(before) == 3
    write(text, "Two, longer.")
    assert before != stamp_sources([text, shards / "elite"])
    with pytest.raises(CorpusError, match="cannot be read"):
        stamp_sources([tmp_path / "none.txt"])


def test_nothing_is_written_outside_the_given_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    knowledge = Knowledge([Condition(name=f"sign {n}", synonyms=(f"mark {n}",)) for n in range(40)])
    corpus = build_corpus([], tmp_path / "work", 0.3, 0, knowledge)
    assert corpus.figures.training_documents + corpus.figures.held_out_documents == 40
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
