"""Images from parquet files and folders, and each way in which they can be broken."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from msfusion.data import Data, LabelledImages, fetch, load
from msfusion.errors import UserError


def encoded(value: int, side: int = 4, mode: str = "RGB", suffix: str = "png") -> bytes:
    buffer = BytesIO()
    Image.new(mode, (side, side), value if mode == "L" else (value, 0, 255)).save(buffer, suffix)
    return buffer.getvalue()


def write(
    path: Path, labels: list[int], images: list[bytes] | None = None, classes: int | None = None
) -> Path:
    """A parquet file as on the Hugging Face hub; the first channel of each image tells its row."""
    images = images or [encoded(row) for row in range(len(labels))]
    table = pa.table(
        {"img": [{"bytes": image, "path": None} for image in images], "label": pa.array(labels, pa.int64())}
    )
    if classes:
        names = [str(i) for i in range(classes)]
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.parquet", [0, 1, 2] * 10)
    write(tmp_path / "test.parquet", [2, 1, 0])
    return tmp_path


def config(path: Path, **changes: object) -> Data:
    return Data(**{"name": "parquet", "path": str(path), "partition": "iid", **changes})  # type: ignore[arg-type]


def images(dataset: object) -> LabelledImages:
    assert isinstance(dataset, LabelledImages)
    return dataset


def test_parquet_folder(folder: Path) -> None:
    federation = load(config(folder), participants=3, seed=0)
    assert [len(images(d)) for d in federation.train] == [10, 10, 10]
    assert federation.inputs.shape == (3, 4, 4)
    assert federation.inputs.classes == 3
    test = images(federation.test)
    assert test.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert test.labels.tolist() == [2, 1, 0]
    first = images(federation.train[0])
    assert torch.equal(first.images[:, 0, 0, 0] % 3, first.labels)  # images stay with their labels


def test_parquet_single_file_is_split(folder: Path) -> None:
    federation = load(config(folder / "train.parquet", test_share=0.3), participants=1, seed=0)
    assert len(images(federation.train[0])) == 21
    assert torch.bincount(images(federation.test).labels).tolist() == [3, 3, 3]


def test_parquet_shards_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        write(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", [0, 1])
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", [0])
    federation = load(config(tmp_path), participants=1, seed=0)
    assert len(images(federation.train[0])) == 4
    assert len(images(federation.test)) == 1


def test_limits_are_applied_before_decoding(folder: Path) -> None:
    broken = [encoded(1)] + [b"broken"] * 9
    write(folder / "test.parquet", [0] * 10, broken)
    for seed in range(40):  # until the seed chooses the one image that decodes
        try:
            federation = load(config(folder, limit=6, test_limit=1), participants=2, seed=seed)
        except UserError:
            continue
        assert [len(images(d)) for d in federation.train] == [3, 3]
        break
    else:
        pytest.fail("every image was decoded")


def test_declared_classes_count_even_if_they_are_absent(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 5, classes=7)
    assert load(config(tmp_path), participants=1, seed=0).inputs.classes == 7


@pytest.mark.parametrize(
    "about",
    [
        "no JSON",
        b"\xff",
        "null",
        "[]",
        '{"info": null}',
        '{"info": {"features": null}}',
        '{"info": {"features": {"label": null}}}',
        '{"info": {"features": {"label": ["a", "b"]}}}',
        '{"info": {"features": {"label": {"names": null}}}}',
        '{"info": {"features": {"label": {"names": [1, 2]}}}}',
        '{"info": {"features": {"label": {"num_classes": "2"}}}}',
    ],
)
def test_what_is_declared_of_the_classes_is_but_a_hint(about: str | bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [0, 1, 2] * 5)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": about}), path)
    assert load(config(path), participants=1, seed=0).inputs.classes == 3


def test_cifar10_has_ten_classes(folder: Path) -> None:
    assert load(config(folder, name="cifar10"), participants=1, seed=0).inputs.classes == 10


def test_columns_can_be_named_and_be_plain_binary(tmp_path: Path) -> None:
    table = pa.table({"picture": [encoded(5)] * 10, "other": [1] * 10, "kind": [0, 1] * 5})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path)
    federation = load(config(path, label_column="kind"), participants=1, seed=0)
    assert federation.inputs.classes == 2
    with pytest.raises(
        UserError,
        match=r"got 2 such columns among .*other \(int64\), kind \(int64\): set data\.label_column",
    ):
        load(config(path), participants=1, seed=0)


def named(path: Path, labels: list[str] | list[int], **more: list[str]) -> None:
    pq.write_table(
        pa.table({"image": [encoded(i) for i in range(len(labels))], "kind": labels, **more}), path
    )


@pytest.mark.parametrize("coded", [False, True])
def test_names_are_numbered_in_order(coded: bool, tmp_path: Path) -> None:
    for part, labels in (("train-0", ["owl", "cat"]), ("train-1", ["emu", "cat"]), ("test", ["owl", "emu"])):
        named(tmp_path / f"{part}.parquet", labels)
        if coded:
            table = pq.read_table(tmp_path / f"{part}.parquet")
            coded_column = table["kind"].dictionary_encode()
            pq.write_table(table.set_column(1, "kind", coded_column), tmp_path / f"{part}.parquet")
    federation = load(config(tmp_path, partition="iid"), participants=1, seed=0)
    assert federation.inputs.classes == 3
    train = images(federation.train[0])
    by_place = sorted(zip(train.indices.tolist(), train.labels[train.indices].tolist(), strict=True))
    assert [label for _, label in by_place] == [2, 0, 1, 0]
    assert images(federation.test).labels.tolist() == [2, 1]


def test_a_column_of_names_is_taken_where_it_is_named_or_nothing_else_fits(tmp_path: Path) -> None:
    named(tmp_path / "train.parquet", [0, 1, 2, 3] * 5, word=["a", "b"] * 10)
    assert load(config(tmp_path), participants=1, seed=0).inputs.classes == 4
    assert load(config(tmp_path, label_column="word"), participants=1, seed=0).inputs.classes == 2


def test_a_column_called_label_is_taken_before_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [encoded(1)] * 60, "id": [*range(6)] * 10, "label": ["cat", "dog", "eel"] * 20}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    assert load(config(tmp_path), participants=1, seed=0).inputs.classes == 3
    assert load(config(tmp_path, label_column="id"), participants=1, seed=0).inputs.classes == 6


def test_labels_that_the_training_files_lack(tmp_path: Path) -> None:
    named(tmp_path / "train.parquet", ["cat", "owl"] * 5)
    named(tmp_path / "test.parquet", ["cat", "dog"])
    with pytest.raises(UserError, match=r"expected the labels cat, owl .*test\.parquet, got 'dog'"):
        load(config(tmp_path), participants=1, seed=0)
    named(tmp_path / "train.parquet", [0, 1] * 5)
    with pytest.raises(UserError, match=r"expected integer labels in \S*test\.parquet.*got names"):
        load(config(tmp_path), participants=1, seed=0)


@pytest.mark.parametrize("other", ["train-1", "test"])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0, 1] * 5, ["cat", "owl"] * 5, "expected integer labels in {}, as in the first .*, got names"),
        (["cat", "owl"] * 5, [0, 1] * 5, "expected names in {}, as in the first .*, got integer labels"),
    ],
)
def test_labels_of_another_kind_than_in_the_first_file(
    other: str, first: list[int], second: list[int], message: str, tmp_path: Path
) -> None:
    named(tmp_path / "train-0.parquet", first)
    named(tmp_path / f"{other}.parquet", second)
    with pytest.raises(UserError, match=message.format(rf"\S*{other}\.parquet")):
        load(config(tmp_path), participants=1, seed=0)


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 5, [encoded(7, mode="L")] * 10)
    assert load(config(tmp_path), participants=1, seed=0).inputs.shape == (1, 4, 4)


def test_one_image_in_colour_makes_all_so_whatever_the_seed(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 5, [encoded(7, mode="L")] * 4 + [encoded(7)] * 6)
    shapes = {load(config(tmp_path), participants=1, seed=seed).inputs.shape for seed in range(8)}
    assert shapes == {(3, 4, 4)}


def test_a_test_image_in_colour_makes_all_so(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 5, [encoded(7, mode="L")] * 10)
    write(tmp_path / "test.parquet", [0, 1], [encoded(7, mode="L"), encoded(7)])
    test = images(load(config(tmp_path), participants=1, seed=0).test)
    assert test.images[1, :, 0, 0].tolist() == [7, 0, 255]


def test_images_of_all_sizes_are_resized_on_request(tmp_path: Path) -> None:
    sizes = [encoded(9, side) for side in range(3, 13)]
    write(tmp_path / "train.parquet", [0, 1] * 5, sizes)
    (dataset,) = load(config(tmp_path, image=6), participants=1, seed=0).train
    assert images(dataset).images.shape == (8, 3, 6, 6)
    assert images(dataset).images[:, 0].unique().tolist() == [9]
    with pytest.raises(UserError, match=r"expected images of \d+x\d+.*set data\.image"):
        load(config(tmp_path), participants=1, seed=0)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """train/ and test/ with the classes cat and dog."""
    for part, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / part / name / f"{i}.PNG").write_bytes(encoded(label))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_folder_with_train_and_test(classes: Path) -> None:
    federation = load(config(classes, name="folder"), participants=2, seed=0)
    parts = [images(part) for part in federation.train]
    labels = torch.cat([part.labels[part.indices] for part in parts])
    assert labels.bincount().tolist() == [5, 5]
    test = images(federation.test)
    assert test.labels.tolist() == test.images[:, 0, 0, 0].tolist() == [0, 0, 1, 1]


def test_folder_without_split(classes: Path) -> None:
    federation = load(config(classes / "train", name="folder"), participants=1, seed=0)
    assert len(images(federation.train[0])) == 8
    assert images(federation.test).labels.tolist() == [0, 1]


def expect(message: str, data: Data) -> None:
    with pytest.raises(UserError) as raised:
        load(data, participants=2, seed=0)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cifar10", "parquet", "folder"])
def test_missing_path(name: str, tmp_path: Path) -> None:
    expect("expected data.path to name", Data(name=name))  # type: ignore[arg-type]
    expect("absent", config(tmp_path / "absent", name=name))


def test_folder_without_parquet(tmp_path: Path) -> None:
    expect("no train*.parquet in it", config(tmp_path))


@pytest.mark.parametrize("keep", [0, 3, 60, 0.5, 0.99])
def test_truncated_parquet(folder: Path, keep: float) -> None:
    path = folder / "train.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    expect("expected a complete parquet file", config(folder))


def test_damaged_parquet_pages(folder: Path) -> None:
    path = folder / "train.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:60] = b"\xff" * 56  # the footer stays
    path.write_bytes(whole)
    expect("expected a complete parquet file", config(folder))


def test_parquet_without_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0], "label": [0]}), tmp_path / "train.parquet")
    expect("one column of encoded images", config(tmp_path))


def test_parquet_without_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [encoded(0)], "label": [0.5]}), tmp_path / "train.parquet")
    said = "among img (binary), label (double): convert one of them"
    expect(f"got 0 such columns {said}", config(tmp_path))
    expect(f"got 'label' {said}", config(tmp_path, label_column="label"))


def test_labels_that_leave_most_classes_without_an_example(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [1000, 1001] * 5)
    with pytest.warns(UserWarning, match="gets 1,002 classes.*is 1001, and only 2 of them.*from 0"):
        assert load(config(file), participants=1, seed=0).inputs.classes == 1002
    write(file, [0, 1, 3] * 5)  # more than half have one: no warning
    assert load(config(file), participants=1, seed=0).inputs.classes == 4


def test_labels_of_64_bits(tmp_path: Path) -> None:
    labels = pa.array([0, 2**63 + 1], pa.uint64())
    pq.write_table(pa.table({"img": [encoded(0)] * 2, "label": labels}), tmp_path / "train.parquet")
    expect("at most 63 bits in", config(tmp_path))
    expect("got 9223372036854775809", config(tmp_path))


def test_named_column_of_the_wrong_kind(folder: Path) -> None:
    expect(
        "got 'img' among img (struct), label (int64): set data.label_column to one of label",
        config(folder, label_column="img"),
    )


def test_test_file_without_the_columns(folder: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), folder / "test.parquet")
    expect("test.parquet, got 0 such columns among x (int64): convert one of them", config(folder))


@pytest.mark.parametrize(("labels", "message"), [([0, -1], "got -1 in row 1"), ([0, 11], "got 11 in row 1")])
def test_label_outside_the_classes(folder: Path, labels: list[int], message: str) -> None:
    write(folder / "test.parquet", labels)
    expect(message, config(folder, name="cifar10"))
    write(folder / "train.parquet", labels * 5, classes=5)
    expect(message, config(folder))


def test_row_without_label(tmp_path: Path) -> None:
    table = pa.table({"img": [encoded(0)] * 2, "label": pa.array([0, None], pa.int64())})
    pq.write_table(table, tmp_path / "train.parquet")
    expect("expected a label in every row", config(tmp_path))


@pytest.mark.parametrize(
    "broken", [b"", b"not an image", encoded(3)[:40], encoded(3, 16, suffix="jpeg")[:-90]]
)
def test_undecodable_image(folder: Path, broken: bytes) -> None:
    write(folder / "test.parquet", [0, 1], [encoded(0), broken])
    expect("expected an image in row 1 of", config(folder))


def test_undecodable_file(classes: Path) -> None:
    (classes / "train" / "dog" / "3.PNG").write_bytes(b"x")
    expect(
        "3.PNG, got bytes that do not decode (of no kind that is known): mend", config(classes, name="folder")
    )


def test_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(0))
    expect("expected one subfolder per class", config(tmp_path, name="folder"))
    (tmp_path / "images").mkdir()
    expect("found only 'images'", config(tmp_path, name="folder"))


def test_the_folder_above_the_right_one(classes: Path) -> None:
    (classes / "train").rename(classes / "first")
    (classes / "test").rename(classes / "second")
    expect("found them in its subfolders alone, such as 'cat'", config(classes, name="folder"))


@pytest.mark.parametrize("names", [("training", "testing"), ("Train", "VAL")])
def test_the_names_of_the_splits(names: tuple[str, str], classes: Path) -> None:
    before = load(config(classes, name="folder"), participants=2, seed=0)
    for old, new in zip(("train", "test"), names, strict=True):
        (classes / old).rename(classes / new)
    after = load(config(classes, name="folder"), participants=2, seed=0)
    assert [len(one) for one in (*after.train, after.test)] == [
        len(one) for one in (*before.train, before.test)
    ]


def test_a_class_may_have_the_name_of_a_split(classes: Path) -> None:
    root = classes / "train"
    next(root.iterdir()).rename(root / "Train")
    found = load(config(root, name="folder"), participants=2, seed=0)
    assert "Train" in found.meaning


def test_one_class_alone_is_nothing_to_learn_but_may_be_all_that_a_participant_has(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    for i in range(10):
        (tmp_path / "cat" / f"{i}.png").write_bytes(encoded(i))
    expect("at least two classes, got those of 'cat' alone", config(tmp_path, name="folder"))
    assert load(config(tmp_path, name="folder"), participants=1, seed=0).inputs.classes == 2


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    expect("expected images in the subfolders", config(tmp_path, name="folder"))


def test_test_class_that_training_lacks(classes: Path) -> None:
    (classes / "test" / "cow").mkdir()
    expect("expected the classes cat, dog in", config(classes, name="folder"))


def test_no_test_examples(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1])
    expect("expected at least one test example", config(tmp_path))


def test_parquet_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [])
    expect("expected", config(tmp_path))


@pytest.mark.data
def test_cifar10(shared_data: Path) -> None:
    data = Data(name="cifar10", path=str(shared_data / "cifar10"), limit=1000, test_limit=200, image=16)
    federation = load(data, participants=8, seed=0)
    assert federation.inputs.shape == (3, 16, 16)
    x, _ = fetch(federation.test, torch.arange(200), None)
    assert abs(float(x.mean())) < 0.1
    mean = images(federation.test).mean.flatten() / 255
    torch.testing.assert_close(mean, torch.tensor([0.491, 0.482, 0.447]), atol=0.02, rtol=0)


def test_grey_images_of_16_bits_keep_their_levels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for n in range(4):
            levels = (np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000 + n * 257).astype(np.uint16)
            Image.fromarray(levels).save(tmp_path / name / f"{n}.png")
    federation = load(Data(name="folder", path=str(tmp_path), test_share=0.25), 1, seed=0)
    assert images(federation.train[0]).images.shape[1] == 1
    assert images(federation.train[0]).images.unique().numel() >= 16


def test_so_do_those_of_pgm(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for n in range(4):
        levels = (np.arange(16) * 4000).astype(">u2").tobytes()
        (tmp_path / "a" / f"{n}.pgm").write_bytes(b"P5 4 4 65535\n" + levels)
    federation = load(Data(name="folder", path=str(tmp_path), test_share=0.25), 1, seed=0)
    assert images(federation.train[0]).images.unique().numel() >= 15


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_32_bits_are_refused(mode: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Image.new(mode, (4, 4)).save(tmp_path / "a" / "0.tiff")
    with pytest.raises(UserError, match=r"at most 16 bits per channel in .*0\.tiff"):
        load(Data(name="folder", path=str(tmp_path), test_share=0.5), 1, seed=0)


def test_hidden_copies_are_no_images(classes: Path) -> None:
    before = len(load(Data(name="folder", path=str(classes)), 1, seed=0).train[0])  # type: ignore[arg-type]
    for folder in (classes / "train").iterdir():
        hidden = folder / ".ipynb_checkpoints"
        hidden.mkdir()
        (hidden / "0-checkpoint.png").write_bytes(encoded(1))
        (folder / "._0.png").write_bytes(b"")
    assert len(load(Data(name="folder", path=str(classes)), 1, seed=0).train[0]) == before  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, Image.DecompressionBombError])
def test_whatever_a_decoder_raises_is_said_in_a_sentence(
    error: type[Exception], classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error("broken")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=r"do not decode \(broken\)"):
        load(Data(name="folder", path=str(classes)), 1, seed=0)


def test_what_labels_mean_is_known_where_they_have_names(classes: Path, tmp_path: Path) -> None:
    names = sorted(f.name for f in (classes / "train").iterdir())
    assert load(Data(name="folder", path=str(classes)), 1, seed=0).meaning.split("\n") == names
    assert load(Data(), 1, seed=0).meaning == ""
    file = write(tmp_path / "train.parquet", [0, 1, 2, 0, 1, 2], classes=3)
    assert load(Data(name="parquet", path=str(file), test_share=0.34), 1, seed=0).meaning == "0\n1\n2"
