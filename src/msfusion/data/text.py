"""Text: where its training and test parts come from."""

from dataclasses import dataclass
from pathlib import Path

from msfusion.data.config import Data
from msfusion.errors import UserError

_TRAIN = ("train",)
_TEST = ("test", "valid", "validation", "val")


@dataclass(frozen=True)
class Text:
    """The two parts of a text."""

    train: str
    test: str


def read_text(config: Data) -> Text:
    """Reads ``config.path``: a file, whose end is the test part, or a folder.

    In a folder the test part is test.txt, else valid.txt, validation.txt or val.txt; the training part is
    train.txt, else the largest other .txt file; a single file is divided. ``UserError`` if there is none."""
    if config.path is None:
        raise UserError("expected data.path to name a text file or a folder of them, got none: set it")
    path = Path(config.path).expanduser()
    if path.is_file():
        return _divide(_read(path), config)
    if not path.is_dir():
        raise UserError(
            f"expected a text file or folder at data.path, got {config.path!r}, which does not exist: "
            "correct it"
        )
    files = {file.stem: file for file in sorted(path.glob("*.txt")) if not file.name.startswith(".")}
    if not files:
        raise UserError(f"expected .txt files in {config.path}, found none: name another folder or a file")
    if len(files) == 1:
        return _divide(_read(*files.values()), config)
    return _two_files(files, config.path)


def _two_files(files: dict[str, Path], folder: str) -> Text:
    test = next((files.pop(name) for name in _TEST if name in files), None)
    if test is None:
        raise UserError(
            f"expected test.txt or valid.txt among the files of {folder}, found {', '.join(sorted(files))}: "
            "rename one, or name a single file"
        )
    named = [files[name] for name in _TRAIN if name in files]
    train = named[0] if named else max(files.values(), key=lambda file: file.stat().st_size)
    return Text(_read(train), _read(test))


def _divide(text: str, config: Data) -> Text:
    cut = len(text) - round(len(text) * (config.test_share or 0.1))
    return Text(text[:cut], text[cut:])


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected UTF-8 text in {path}, got the byte {error.object[error.start]:#04x} at {error.start}: "
            "convert the file"
        ) from error
    if not text:
        raise UserError(f"expected text in {path}, got an empty file: name another file")
    return text
