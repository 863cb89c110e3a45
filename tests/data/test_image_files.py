import json
import logging
import os
import zipfile

import numpy as np
import pytest

from genjax.data.image_files import ImageFiles
from genjax.data.image_source import cut_by_name
from genjax.data.image_sources import open_images
from genjax.errors import UserError
from tests.data.picture_files import encode, noise, plain, write_folder, write_zip

pytestmark = pytest.mark.fast


@pytest.fixture
def load(tmp_path):
    def load(path=tmp_path / "images", **options):
        defaults = {"size": 4, "channels": 1, "cache": tmp_path / "cache"}
        return open_images(ImageFiles(path=path, **defaults | options))

    return load


@pytest.fixture
def folder(tmp_path):
    """A function that writes the folder `images`."""
    return lambda files: write_folder(tmp_path / "images", files)


def content(source):
    """The gray value of every image with its label, over both splits."""
    found = []
    for split in source.splits.values():
        values = split.images(np.arange(len(split)))[:, 0, 0, 0].tolist()
        labels = [None] * len(split) if split.labels is None else split.labels.tolist()
        found += zip(values, labels, strict=True)
    return sorted(found)


def values(source):
    return [value for value, _ in content(source)]


CLASSES = {
    "cats/a.png": plain(1),
    "cats/deep/b.png": plain(2),
    "dogs/c.png": plain(3),
    "birds/d.png": plain(4),
    "birds/e.png": plain(5),
}
LABELLED = [(1, 1), (2, 1), (3, 2), (4, 0), (5, 0)]


def test_folders_are_classes(load, folder):
    folder(CLASSES | {"README.md": b"about", "cats/notes.txt": b"..."})
    for labels in ("auto", "folders"):
        source = load(labels=labels)
        assert source.class_names == ("birds", "cats", "dogs") and source.num_classes == 3
        assert content(source) == LABELLED
        assert source.splits["train"].labels.dtype == np.int32
        assert source.image_shape == (4, 4, 1)
    source = load(labels="none")
    assert source.class_names == () and source.num_classes == 0
    assert content(source) == [(value, None) for value, _ in LABELLED]


def test_zip_is_the_same_as_its_folder(load, folder, tmp_path):
    path = folder(CLASSES)
    # As file managers write it: one folder around everything, and their own files.
    files = {f"pets/{name}": data for name, data in CLASSES.items()}
    files |= {"__MACOSX/pets/cats/._a.png": b"?", "pets/cats/.DS_Store": b"?", "pets/empty/": b""}
    del files["pets/empty/"]
    archive = write_zip(tmp_path / "pets.zip", files)
    one, two = load(path), load(archive)
    assert content(one) == content(two) == LABELLED
    assert one.fingerprint == two.fingerprint and len(one.fingerprint) == 64
    assert one.class_names == two.class_names
    for split in ("train", "validation"):
        indices = np.arange(len(one.splits[split]))
        images = [source.splits[split].images(indices) for source in (one, two)]
        np.testing.assert_array_equal(*images)


def test_folders_below_one_class_or_none_are_no_labels(load, folder):
    folder({"pets/cats/a.png": plain(1), "pets/cats/b.png": plain(2), "c.png": plain(3)})
    assert content(load()) == [(1, None), (2, None), (3, None)]


def test_upper_case_endings_and_wrong_endings(load, folder):
    image = encode(np.full((4, 4), 9, np.uint8), "JPEG", quality=100)
    folder({"A.PNG": plain(1), "b.JPG": image, "c.Tif": plain(3), "d.webp": image, "e.raw": b"x"})
    assert values(load()) == [1, 3, 9, 9]


def test_size_and_channels(load, folder):
    folder({f"{i}.png": encode(noise(9, 20, seed=i)) for i in range(4)})
    source = load(size=(6, 8), channels=4)
    assert source.image_shape == (6, 8, 4)
    assert source.splits["train"].images(np.array([0, 1])).shape == (2, 6, 8, 4)


# The file dataset.json --------------------------------------------------------------------------


def label_file(labels):
    return json.dumps({"labels": labels}).encode()


def test_label_file(load, folder, tmp_path):
    files = {f"0000{i % 2}/img{i}.png": plain(i) for i in range(6)}
    labels = [[name, i // 2] for i, name in enumerate(files)]
    files["dataset.json"] = label_file(labels)
    folder(files)
    expected = [(i, i // 2) for i in range(6)]
    for path in (tmp_path / "images", write_zip(tmp_path / "set.zip", files)):
        source = load(path)
        assert content(source) == expected
        assert source.class_names == ("0", "1", "2")
    assert content(load(labels="folders")) == [(i, i % 2) for i in range(6)]
    assert load(labels="none").num_classes == 0
    relabelled = [[name, 2 - label] for name, label in labels]
    (tmp_path / "images" / "dataset.json").write_bytes(label_file(relabelled))
    assert content(load()) == [(i, 2 - i // 2) for i in range(6)]
    assert load().fingerprint != source.fingerprint


def test_label_file_without_labels(load, folder):
    folder({"00000/a.png": plain(1), "00001/b.png": plain(2), "dataset.json": label_file(None)})
    assert load().num_classes == 0


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        (label_file([["a.png", 0]]), ["no label for 1 of 2 images, such as b.png"]),
        (label_file([["a.png", 0], ["b.png", 2]]), ["class '1' has no readable image"]),
        (label_file([["a.png", 0], ["b.png", [0.1, 0.9]]]), ["label of b.png is [0.1, 0.9]"]),
        (label_file([["a.png", 0], ["b.png", -1]]), ["label of b.png is -1", "from 0 on"]),
        (b'{"labels": [', ["dataset.json in", "cannot be read (JSONDecodeError", '{"labels": [[']),
        (b'{"label": []}', ["cannot be read (KeyError"]),
        (b'["a.png"]', ["cannot be read (TypeError"]),
        (b'{"labels": ["a.png"]}', ["cannot be read (ValueError"]),
    ],
)
def test_bad_label_file(load, folder, written, parts):
    folder({"a.png": plain(1), "b.png": plain(2), "dataset.json": written})
    with pytest.raises(UserError) as caught:
        load()
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


# What cannot be read ----------------------------------------------------------------------------


def test_bad_files_are_counted_and_named(load, folder, tmp_path, caplog):
    path = folder(CLASSES | {"cats/empty.png": b"", "dogs/page.jpg": b"<html>"})
    (path / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(path / "dogs" / "pipe.png")
    with caplog.at_level(logging.WARNING):
        assert content(load()) == LABELLED
        assert content(load()) == LABELLED
    expected = (
        f"skipped 4 of 9 images of {path}: cats/empty.png is empty; "
        "cats/gone.png cannot be read (No such file or directory); "
        "dogs/page.jpg is no image of a known format; dogs/pipe.png is not a regular file"
    )
    assert [record.getMessage() for record in caplog.records] == [expected] * 2


def test_bad_members_of_an_archive(load, tmp_path, caplog):
    files = {f"{i}.png": plain(i) for i in range(6)}
    path = write_zip(tmp_path / "set.zip", files)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    raw = bytearray(path.read_bytes())
    raw[members[2].header_offset + 30 + len("2.png") + 20] ^= 0xFF
    # The bit that says "encrypted", in the member's header and in the directory.
    raw[members[4].header_offset + 6] |= 1
    entry = [i for i in range(len(raw)) if raw[i : i + 4] == b"PK\x01\x02"][4]
    raw[entry + 8] |= 1
    path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert values(load(path)) == [0, 1, 3, 5]
    assert "skipped 2 of 6 images" in caplog.text
    assert "2.png cannot be read (Bad CRC-32" in caplog.text
    assert "4.png is encrypted" in caplog.text


def test_huge_file_is_not_read(load, folder, monkeypatch, caplog):
    monkeypatch.setattr("genjax.data.image_listing._MOST_BYTES", 1000)
    folder({"a.png": plain(1), "b.png": plain(2), "c.png": encode(noise(30, 30))})
    with caplog.at_level(logging.WARNING):
        assert values(load()) == [1, 2]
    assert "bytes, more than 1,000" in caplog.text


def test_links_are_followed_but_not_in_circles(load, folder, tmp_path):
    path = folder({"cats/a.png": plain(1), "cats/b.png": plain(2)})
    write_folder(tmp_path / "elsewhere", {"c.png": plain(3)})
    (path / "dogs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(path)
    assert load().class_names == ("cats", "dogs")
    assert set(values(load())) == {1, 2, 3}


def test_changed_file_is_decoded_again(load, folder):
    path = folder(CLASSES)
    before = load()
    (path / "dogs" / "c.png").write_bytes(plain(77))
    os.utime(path / "dogs" / "c.png", ns=(0, 1))
    after = load()
    assert 77 in values(after) and 3 not in values(after)
    assert before.fingerprint != after.fingerprint
    # Dates alone change nothing.
    os.utime(path / "dogs" / "c.png", ns=(0, 2))
    assert load().fingerprint == after.fingerprint


# Splits -----------------------------------------------------------------------------------------


def test_validation_is_chosen_by_name(load, folder):
    folder({f"{i}.png": plain(i) for i in range(100)})
    source = load(validation_fraction=0.2)
    train, validation = (
        set(split.images(np.arange(len(split)))[:, 0, 0, 0].tolist())
        for split in source.splits.values()
    )
    assert train | validation == set(range(100)) and not train & validation
    # 20 are expected; the standard deviation is 4.
    assert 4 < len(validation) < 36
    folder({f"more{i}.png": plain(250) for i in range(20)})
    more = load(validation_fraction=0.2).splits["validation"]
    assert set(more.images(np.arange(len(more)))[:, 0, 0, 0].tolist()) - {250} == validation
    assert load(validation_fraction=0.2).fingerprint != load().fingerprint


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_each_split_has_an_image(fraction):
    for count in (2, 3, 10):
        train, validation = cut_by_name([f"{i}" for i in range(count)], fraction)
        assert len(train) and len(validation)
        assert sorted([*train, *validation]) == list(range(count))


def test_validation_path(load, folder, tmp_path):
    folder(CLASSES)
    other = {"dogs/x.png": plain(30), "cats/y.png": plain(31), "dogs/z.png": plain(32)}
    write_folder(tmp_path / "held_out", other)
    source = load(validation_path=tmp_path / "held_out")
    assert content(source) == [*LABELLED, (30, 2), (31, 1), (32, 2)]
    assert len(source.splits["train"]) == 5
    assert source.splits["validation"].labels.tolist() == [1, 2, 2]
    assert source.fingerprint != load().fingerprint
    write_folder(tmp_path / "held_out", {"fish/f.png": plain(33)})
    with pytest.raises(UserError, match=r"has the class 'fish', but (?s:.)*birds, cats, dogs"):
        load(validation_path=tmp_path / "held_out")
    write_folder(tmp_path / "mixed", {"f.png": plain(33)})
    with pytest.raises(UserError, match="has no labels"):
        load(validation_path=tmp_path / "mixed")


def test_one_image(load, folder, tmp_path):
    folder({"a.png": plain(1)})
    with pytest.raises(UserError, match=r"one readable image, a.png(?s:.)*validation_path"):
        load()
    source = load(validation_path=tmp_path / "images")
    assert [len(split) for split in source.splits.values()] == [1, 1]


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "options", "parts"),
    [
        ({"a.heic": b"", "b.heic": b"", "c.txt": b""}, {}, ["no image", "2 with .heic", ".png"]),
        ({"sub/README": b""}, {}, ["no image", "1 with no ending"]),
        (
            {"cats/a.png": b"", "dogs/b.png": plain(1)},
            {},
            ["class 'cats' has no readable image", "cats/a.png is empty", 'labels = "none"'],
        ),
        (
            {"cats/a.png": plain(1), "dogs/b.png": plain(1), "scripts/run.py": b""},
            {},
            ["class 'scripts' has no readable image, and no image at all"],
        ),
        (
            {"cats/a.png": plain(1), "dogs/b.png": plain(1), "c.png": plain(2)},
            {},
            ["1 images, such as c.png, lie in no class folder", "cats, dogs"],
        ),
        ({"a/b.png": plain(1)}, {"labels": "folders"}, ["b.png, lie in no class folder"]),
        ({"a.png": b"", "b.png": b""}, {}, ["None of the 2 images", "a.png is empty"]),
        (
            {"train/cats/a.png": plain(1), "val/cats/b.png": plain(1)},
            {},
            ["train, val look like splits", "data.source.validation_path"],
        ),
    ],
)
def test_errors(load, folder, files, options, parts):
    path = folder(files)
    with pytest.raises(UserError) as caught:
        load(**options)
    message = str(caught.value)
    assert str(path) in message and len(message.splitlines()) <= 3
    for part in parts:
        assert part in message


def test_wrong_paths(load, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "a.png").write_bytes(plain(1))
    for name, part in {
        "nowhere": "does not exist (looked from",
        "set.zip": "is no whole zip archive.\nCopy or download it again.",
        "a.png": "is neither a folder nor a zip archive.\nGive the folder",
    }.items():
        with pytest.raises(UserError) as caught:
            load(tmp_path / name)
        assert f"data.source.path = {tmp_path / name}" in str(caught.value)
        assert part in str(caught.value)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="its files: none"):
        load(tmp_path / "nothing")


# Real data --------------------------------------------------------------------------------------


def test_photographs(load, test_data, caplog):
    with caplog.at_level(logging.WARNING):
        source = load(test_data / "images" / "clothing_test.zip", size=(32, 24), channels=3)
    assert caplog.text == ""
    assert source.num_classes == 10 and source.class_names[:2] == ("dress", "hat")
    assert sum(len(split) for split in source.splits.values()) == 372
    labels = np.concatenate([split.labels for split in source.splits.values()])
    assert np.bincount(labels).tolist() == [15, 12, 72, 38, 42, 26, 73, 30, 12, 52]
    images = source.splits["train"].images(np.arange(len(source.splits["train"])))
    assert images.shape[1:] == (32, 24, 3)
    assert 60 < images.mean() < 200 and images.std((1, 2, 3)).min() > 5


def test_tiles_with_alpha(load, test_data, tmp_path):
    with zipfile.ZipFile(test_data / "images" / "crawl_tiles.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith(("item", "effect"))]
        few = write_zip(tmp_path / "few.zip", {name: archive.read(name) for name in names})
    source = load(few, size=32, channels=4)
    assert source.class_names == ("effect", "item") and source.image_shape == (32, 32, 4)
    train = source.splits["train"]
    images = train.images(np.arange(len(train)))
    assert 871 * 0.8 < len(images) < 871
    alpha = images[..., 3]
    assert (alpha == 0).mean() > 0.1 and (alpha == 255).mean() > 0.1
    assert (images[alpha == 0] == 0).all()
