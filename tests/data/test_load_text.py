"""Text: reading, tokens, blocks."""

import sys
from pathlib import Path

import pytest
import torch

from msfusion.data import Data, TokenBlocks, fetch, load
from msfusion.data.text import Text, read_text
from msfusion.data.tokens import tokenize
from msfusion.errors import UserError

VERSE = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text(VERSE * 50)
    return path


def blocks(dataset: object) -> TokenBlocks:
    assert isinstance(dataset, TokenBlocks)
    return dataset


def test_one_file_is_divided_at_its_end(file: Path) -> None:
    text = read_text(Data(name="text", path=str(file), test_share=0.25))
    assert text.train + text.test == VERSE * 50
    assert len(text.test) == 550


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        (["train", "valid", "test"], "train", "test"),
        (["train", "valid"], "train", "valid"),
        (["valid", "test"], "valid", "test"),
    ],
)
def test_folders(tmp_path: Path, files: list[str], train: str, test: str) -> None:
    for name in files:
        (tmp_path / f"{name}.txt").write_text(name)
    assert read_text(Data(name="text", path=str(tmp_path))) == Text(train, test)


def test_folder_with_one_file_is_that_file(file: Path) -> None:
    folder = Data(name="text", path=str(file.parent))
    assert read_text(folder) == read_text(Data(name="text", path=str(file)))


def test_characters_by_hand() -> None:
    tokens = tokenize(Text("abca", "cab"), Data(name="text"))
    assert tokens.train.tolist() == [0, 1, 2, 0]
    assert tokens.test.tolist() == [2, 0, 1]
    assert tokens.vocabulary == 3
    assert tokens.train.dtype == torch.uint8


def test_characters_that_only_the_test_text_has_share_one_token() -> None:
    tokens = tokenize(Text("abd", "aczé"), Data(name="text"))
    assert tokens.test.tolist() == [0, 3, 3, 3]
    assert tokens.vocabulary == 4


def test_bytes_by_hand() -> None:
    tokens = tokenize(Text("aé", "b"), Data(name="text", tokenizer="byte"))
    assert tokens.train.tolist() == [97, 0xC3, 0xA9]
    assert tokens.vocabulary == 256


def test_many_characters_need_wider_storage() -> None:
    tokens = tokenize(Text("".join(map(chr, range(1000, 1300))), "a"), Data(name="text"))
    assert tokens.train.dtype == torch.int16
    assert tokens.vocabulary == 301


def test_byte_pairs() -> None:
    pytest.importorskip("tokenizers")
    config = Data(name="text", tokenizer="bpe", vocabulary=280)
    first, again = (tokenize(Text(VERSE * 20, VERSE), config) for _ in range(2))
    assert torch.equal(first.train, again.train)
    assert first.vocabulary == 280
    assert int(first.train.max()) < 280
    assert len(first.test) < len(VERSE)


def test_byte_pairs_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r'pip install "msfusion\[hf\]"'):
        tokenize(Text("a", "b"), Data(name="text", tokenizer="bpe"))


def test_participants_hold_neighbouring_pieces(file: Path) -> None:
    federation = load(Data(name="text", path=str(file), block=8), participants=3, seed=0)
    pieces = [blocks(d) for d in federation.train]
    assert [p.start for p in pieces] == [0, 660, 1320]
    assert [p.stop for p in pieces] == [660, 1320, 1980]
    assert len({p.tokens.data_ptr() for p in pieces}) == 1
    assert federation.inputs.shape == (8,)
    assert federation.inputs.dtype == torch.int64
    assert federation.inputs.classes == 28
    assert federation.task == "language"


def test_test_blocks_are_disjoint_and_in_order(file: Path) -> None:
    federation = load(Data(name="text", path=str(file), block=8), participants=3, seed=0)
    test = blocks(federation.test)
    x, _ = fetch(test, torch.arange(len(test)), None)
    assert torch.equal(x.flatten(), test.tokens[: x.numel()].long())


def test_limits_count_blocks(file: Path) -> None:
    config = Data(name="text", path=str(file), block=8, limit=20, test_limit=3)
    federation = load(config, participants=2, seed=0)
    assert blocks(federation.train[-1]).stop == 161
    assert len(blocks(federation.test)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition": "dirichlet"}, "'blocks' for text, which has no labels, got 'dirichlet'"),
        ({"path": None}, "expected data.path to name a text file"),
        ({"path": "absent.txt"}, "got 'absent.txt', which does not exist"),
        (
            {"block": 1000, "test_share": 0.5},
            "at least 2002 tokens in the training text of 2 participants, got 1100",
        ),
        ({"block": 300, "min_examples": 9}, "at least 301 tokens in the test text, got 220"),
    ],
)
def test_errors(file: Path, change: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"name": "text", "path": str(file), "test_share": 0.1, **change}
    with pytest.raises(UserError) as raised:
        load(Data(**options), participants=2, seed=0)  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_empty_file(file: Path) -> None:
    file.write_text("")
    with pytest.raises(UserError, match="got an empty file"):
        load(Data(name="text", path=str(file)), 2, seed=0)


def test_not_utf8(file: Path) -> None:
    file.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match="got the byte 0xff at 3"):
        load(Data(name="text", path=str(file)), 2, seed=0)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected \.txt files"):
        load(Data(name="text", path=str(tmp_path)), 2, seed=0)


def test_folder_without_test_part(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(VERSE)
    with pytest.raises(UserError, match=r"expected test\.txt or valid\.txt among the files .* found a, b"):
        load(Data(name="text", path=str(tmp_path)), 2, seed=0)


@pytest.mark.data
def test_tiny_shakespeare(shared_data: Path) -> None:
    config = Data(name="text", path=str(shared_data / "tinyshakespeare" / "input.txt"))
    federation = load(config, participants=8, seed=0)
    assert federation.inputs.classes == 65
    assert sum(blocks(d).stop - blocks(d).start for d in federation.train) == 1_003_855


@pytest.mark.data
def test_wikitext(shared_data: Path) -> None:
    federation = load(Data(name="text", path=str(shared_data / "wikitext-2"), tokenizer="byte"), 4, seed=0)
    assert blocks(federation.train[-1]).stop == 1_121_681
    assert blocks(federation.test).stop == 1_256_449


@pytest.mark.parametrize("tokenizer", ["character", "bpe", "byte"])
def test_what_tokens_mean_is_known_where_it_follows_from_the_text(tokenizer: str, tmp_path: Path) -> None:
    meanings = []
    for name, letters in (("one", "abcdefgh "), ("two", "stuvwxyz ")):
        file = tmp_path / f"{name}.txt"
        file.write_text(letters * 200)
        config = Data(name="text", path=str(file), tokenizer=tokenizer, vocabulary=260)  # type: ignore[arg-type]
        meanings.append(load(config, 1, seed=0).meaning)
    assert (meanings[0] == meanings[1]) == (tokenizer == "byte")


@pytest.mark.parametrize("tokenizer", ["character", "bpe", "byte"])
def test_an_empty_part_is_refused(tokenizer: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a few words\n")
    for share in (1e-9, 1 - 1e-9):
        config = Data(name="text", path=str(file), tokenizer=tokenizer, test_share=share)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="text to train and to test on"):
            load(config, 1, seed=0)
