"""``galvatron prepare``: texts of all kinds become token ids that training reads."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner, Result

import builders
from galvatron_planner.errors import InvalidInput
from galvatron_planner.training import TextFiles, TokenFiles
from galvatron_runtime import documents as texts
from galvatron_runtime.data import UnusableData, open_samples
from galvatron_runtime.documents import Piece, UnreadableText
from galvatron_runtime.prepare import app
from galvatron_runtime.tokenizing import UnusableTokenizer, write_tokens

END = "<|endoftext|>"
SONGS = [f"{count} green bottles, hanging on the wall\nüber {count - 1}\n" for count in range(9, 0, -1)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 300 tokens, trained here."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        SONGS, trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def prepare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def documents(ids: Sequence[int], tokenizer: Path) -> list[str]:
    """Cut ids at the end tokens and read them back."""
    cutter = Tokenizer.from_file(str(tokenizer))
    texts = cutter.decode(list(ids), skip_special_tokens=False).split(END)
    assert texts.pop() == ""
    return texts


def test_lines_rows_and_files_are_documents(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    (source / "deeper").mkdir(parents=True)
    (source / "a.jsonl").write_text("\n".join(json.dumps({"song": song}) for song in SONGS[:3]) + "\n\n")
    parquet.write_table(pa.table({"song": [*SONGS[3:5], None], "number": [1, 2, 3]}), source / "b.parquet")
    (source / "deeper" / "c.txt").write_text(SONGS[5])
    (source / "ignored.csv").write_text("no text")
    done = prepare(source, "--tokenizer", tokenizer.parent, "--output", tmp_path / "out.npy", "--field", "song")
    assert done.exit_code == 0, done.output
    assert "6 documents" in done.output
    size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    assert f"vocabularySize: {size} or more" in done.output
    ids = np.load(tmp_path / "out.npy")
    assert ids.dtype == np.uint16
    assert documents(ids.tolist(), tokenizer) == [*SONGS[:5], SONGS[5]]
    assert not list(tmp_path.glob(".out*"))


def test_what_is_prepared_can_be_trained_on(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("".join(SONGS))
    assert prepare(tmp_path, "--tokenizer", tokenizer, "--output", tmp_path / "tokens" / "t.npy").exit_code == 0
    model = builders.model(vocabulary_size=300, sequence_length=8)
    source = TokenFiles(path=str(tmp_path / "tokens"))
    samples = open_samples(source, model=model, seed=1, batch_size=2, directory=tmp_path)
    assert samples.samples(0, 0, 2).inputs[0].shape == (2, 8)


def test_a_long_text_is_read_in_pieces_and_stays_one_document(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PIECE_BYTES", 50)
    (tmp_path / "long.txt").write_text("".join(SONGS))
    read = list(texts.pieces(tmp_path / "long.txt", field=""))
    assert len(read) > 3
    assert [piece.ends for piece in read] == [False] * (len(read) - 1) + [True]
    assert read[-1].share == 1.0
    assert prepare(tmp_path / "long.txt", "--tokenizer", tokenizer, "--output", tmp_path / "t.npy").exit_code == 0
    assert documents(np.load(tmp_path / "t.npy").tolist(), tokenizer) == ["".join(SONGS)]


def test_a_large_vocabulary_needs_wider_numbers(tmp_path: Path) -> None:
    words = {f"w{number}": number for number in range((1 << 16) + 1)}
    cutter = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106 -- a word
    write_tokens([Piece(f"w{1 << 16}", ends=True, share=1.0)], cutter, tmp_path / "t.npy", end_id=None)
    ids = np.load(tmp_path / "t.npy")
    assert (ids.dtype, ids.tolist()) == (np.uint32, [1 << 16])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', ["line 2", "no JSON"]),
        ("a.jsonl", b'{"body": "x", "title": "y"}\n', ["line 1", "body, title", "--field"]),
        ("a.jsonl", b'["x"]\n', ["a list"]),
        ("a.txt", b"\xff\xfe", ["not UTF-8"]),
        ("a.parquet", b"PAR1 broken", ["a.parquet"]),
        ("a.csv", b"text", ["none of .txt"]),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_left(
    tokenizer: Path, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    done = prepare(tmp_path / name, "--tokenizer", tokenizer, "--output", tmp_path / "t.npy")
    assert isinstance(done.exception, UnreadableText)
    assert all(word in f"{done.exception.problem} {done.exception.remedy}" for word in words)
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_a_column_that_is_not_there_or_holds_no_texts(tokenizer: Path, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"number": [1, 2]}), tmp_path / "a.parquet")
    arguments = (tmp_path / "a.parquet", "--tokenizer", tokenizer, "--output", tmp_path / "t.npy")
    assert "there is number" in str(prepare(*arguments).exception)
    assert "row 1: int" in str(prepare(*arguments, "--field", "number").exception)


def test_tokenizers_and_outputs_are_checked_before_anything_is_read(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    out = tmp_path / "t.npy"
    assert isinstance(prepare(tmp_path, "--tokenizer", tmp_path, "--output", out).exception, UnusableTokenizer)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert isinstance(prepare(tmp_path, "--tokenizer", tmp_path, "--output", out).exception, UnusableTokenizer)
    wrong_end = prepare(tmp_path, "--tokenizer", tokenizer, "--output", out, "--end-token", "<end>")
    assert isinstance(wrong_end.exception, UnusableTokenizer)
    assert "'<end>'" in wrong_end.exception.problem
    no_tokens = prepare(tmp_path, "--tokenizer", tokenizer, "--output", out, "--end-token", "")
    assert "no token" in str(no_tokens.exception)
    assert "is no *.npy" in str(prepare(tmp_path, "--tokenizer", tokenizer, "--output", "t.bin").exception)
    out.touch()
    assert isinstance(prepare(tmp_path, "--tokenizer", tokenizer, "--output", out).exception, InvalidInput)
    (tmp_path / "a.txt").write_text("a text")
    assert prepare(tmp_path, "--tokenizer", tokenizer, "--output", out, "--force").exit_code == 0


def test_training_cuts_texts_once_per_node_as_prepare_does(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    (source / "deeper").mkdir(parents=True)
    (source / "..data").mkdir()  # as in a mounted ConfigMap
    (source / "a.jsonl").write_text("\n".join(json.dumps({"song": song}) for song in SONGS))
    parquet.write_table(pa.table({"song": SONGS}), source / "deeper" / "b.parquet")
    (source / "..data" / "a.jsonl").write_text("{}")
    out = tmp_path / "t.npy"
    assert prepare(source, "--tokenizer", tokenizer, "--output", out, "--field", "song").exit_code == 0
    model = builders.model(vocabulary_size=300, sequence_length=8)
    cut = TextFiles(path=str(source), tokenizer=str(tokenizer), field="song")

    def batches(data: TextFiles | TokenFiles) -> list[list[list[int]]]:
        samples = open_samples(data, model=model, seed=1, batch_size=4, directory=tmp_path / "node")
        return [samples.samples(step, 0, 4).inputs[0].tolist() for step in range(3)]

    expected = batches(TokenFiles(path=str(out)))
    assert batches(cut) == expected
    (made,) = (tmp_path / "node" / "data").glob("*.npy")
    changed = made.stat().st_mtime_ns
    assert batches(cut) == expected
    assert made.stat().st_mtime_ns == changed


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_cut(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SONGS[0])
    source = TextFiles(path=str(tmp_path), tokenizer=str(tokenizer))
    model = builders.model(vocabulary_size=256, sequence_length=8)
    size = Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    with pytest.raises(UnusableData, match=f"has {size} tokens, the model knows 256"):
        open_samples(source, model=model, seed=1, batch_size=2, directory=tmp_path / "node")
    assert not (tmp_path / "node").exists()
