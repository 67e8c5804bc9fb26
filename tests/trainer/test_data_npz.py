"""Arrays in an `.npz`: pixels, or the JPEG bytes of some public sets."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from masks_store import InvalidInput, Preprocess, pixels
from trainer.data import check_source, load_source

from .samples import encoded, kinds, picture

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 9, 11, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2
SOUND = {"train_images": IMAGES, "train_labels": LABELS, "class_names": np.array(["cat", "dog"])}


def write(path, **arrays) -> str:
    np.savez_compressed(path / "set.npz", **arrays)
    return str(path / "set.npz")


def refused(path, **arrays) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        load_source(write(path, **arrays))
    return caught.value.faults


@pytest.mark.parametrize("shape", [(20, 9, 11), (20, 9, 11, 1), (20, 9, 11, 3), (20, 9, 11, 4)])
def test_pixels_of_one_three_and_four_channels_are_read(tmp_path, shape):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    if shape[-1] == 4:
        images[..., 3] = 255
    train = load_source(write(tmp_path, train_images=images, train_labels=LABELS)).splits["train"]
    for i, name in enumerate(train.names):
        row = images[int(name.removeprefix("train_images[").removesuffix("]"))]
        rgb = row[..., :3] if row.ndim == 3 else row[..., None]
        assert np.array_equal(np.asarray(train.image(i)), np.broadcast_to(rgb, (9, 11, 3)))


def test_splits_and_names_are_those_of_the_file(tmp_path):
    more = {
        "val_images": IMAGES[:4] ^ 1,
        "val_labels": LABELS[:4],
        "test_images": IMAGES[:6] ^ 2,
        "test_labels": LABELS[:6],
    }
    source = load_source(write(tmp_path, **SOUND, **more))
    assert source.classes == ("cat", "dog")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 20, "val": 4, "test": 6}


def test_arrays_without_a_split_are_split_by_seed(tmp_path):
    report = check_source(write(tmp_path, images=IMAGES, labels=LABELS))
    assert {split: sum(counts.values()) for split, counts in report.counts.items()} == {
        "train": 12,
        "val": 4,
        "test": 4,
    }


def test_classes_are_sorted_by_name_and_labels_follow(tmp_path):
    names = np.array(["zebra", "ant"])
    train = load_source(write(tmp_path, train_images=IMAGES, train_labels=LABELS, class_names=names)).splits["train"]
    for label, name in zip(train.labels, train.names, strict=True):
        row = int(name.removeprefix("train_images[").removesuffix("]"))
        assert ["ant", "zebra"][label] == names[LABELS[row]]


def test_numbered_classes_keep_the_order_of_their_numbers(tmp_path):
    images = RNG.integers(0, 256, (24, 8, 8), dtype=np.uint8)
    source = load_source(write(tmp_path, train_images=images, train_labels=np.arange(24) % 12))
    assert source.classes == tuple(f"{label:02}" for label in range(12))


def test_the_jpeg_bytes_of_a_set_are_read_directly(tmp_path):
    files = [encoded(picture(seed, (16, 16)), "JPEG") for seed in range(8)]
    header = files[0][:100]
    assert all(file.startswith(header) for file in files)  # tables of one quality
    scans = [file[100:] for file in files]
    arrays = {
        "jpeg_header": np.frombuffer(header, np.uint8),
        "train_scans": np.frombuffer(b"".join(scans), np.uint8),
        "train_offsets": np.cumsum([0, *map(len, scans)]),
        "train_labels": np.arange(8) % 2,
        "class_names": np.array(["a", "b"]),
    }
    train = load_source(write(tmp_path, **arrays)).splits["train"]
    for i, name in enumerate(train.names):
        row = int(name.removeprefix("train_images[").removesuffix("]"))
        expected = picture_of(files[row])
        assert np.array_equal(np.asarray(train.image(i)), expected)


def picture_of(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"train_images": IMAGES.astype(np.float32) / 255}, "float32, expected uint8"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, "transpose it from [N,C,H,W] to [N,H,W,C]"),
        ({"train_images": IMAGES[:, :, 0, 0]}, "expected [N,H,W] or [N,H,W,C]"),
        ({"train_images": IMAGES[:, :0]}, "without pixels"),
        ({"train_labels": LABELS[:-1]}, "19 labels for 20 pictures"),
        ({"train_labels": LABELS.astype(float)}, "expected integers [N]"),
        ({"train_labels": LABELS - 1}, "negative labels"),
        ({"train_labels": LABELS * 7}, "labels reach 7 but class_names has 2 names"),
        ({"class_names": np.array(["cat", "cat"])}, "a name twice"),
        ({"class_names": np.array([["cat", "dog"]])}, "expected text [classes]"),
        ({"class_names": np.array(["cat", ""])}, "an empty name"),
        ({"images": IMAGES, "labels": LABELS}, "stands beside arrays with a split"),
        ({"test_images": IMAGES}, "there is no test_labels"),
    ],
)
def test_each_wrong_array_is_named_with_what_was_expected(tmp_path, arrays, told):
    (fault,) = refused(tmp_path, **{**SOUND, **arrays})
    assert told in fault


def test_all_wrong_arrays_are_told_at_once(tmp_path):
    (fault,) = refused(tmp_path, train_images=IMAGES / 255, train_labels=LABELS / 2, test_images=IMAGES)
    for told in ("train_images is float64", "train_labels is float64", "there is no test_labels"):
        assert told in fault


def test_offsets_that_leave_the_scans_are_a_fault(tmp_path):
    for offsets in ([0, 5, 99], [0, 8, 4], [-1, 2, 4], []):
        arrays = {"jpeg_header": IMAGES[0, 0, 0], "train_scans": IMAGES[0, 0].ravel(), "train_labels": LABELS[:2]}
        (fault,) = refused(tmp_path, **arrays, train_offsets=np.array(offsets, np.int64))
        assert "train_offsets must be rising integers" in fault


def test_pickled_objects_are_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "set.npz", train_images=np.array([Bomb()], object), train_labels=LABELS)
    with pytest.raises(InvalidInput) as caught:
        load_source(str(tmp_path / "set.npz"))
    assert "train_images holds Python objects, which are never read" in caught.value.faults[0]
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["train_images", "train_labels", "class_names", "test_scans"])
def test_an_array_of_objects_is_one_fault_and_is_not_called_missing_as_well(tmp_path, name):
    more = {"test_labels": LABELS, "test_offsets": LABELS, "jpeg_header": IMAGES[0, 0, 0]} if "scans" in name else {}
    objects = np.array([None] * 20, object)
    (fault,) = refused(tmp_path, **{**SOUND, **more, name: objects})
    assert f"cannot be read as pictures: {name} holds Python objects, which are never read. Expected" in fault


def test_arrays_of_objects_hide_no_other_fault(tmp_path):
    objects = np.array([None], object)
    (fault,) = refused(tmp_path, train_images=objects, train_labels=LABELS / 2, test_images=objects)
    for told in ("train_images holds", "test_images holds", "train_labels is float64", "there is no test_labels"):
        assert told in fault
    assert "there is no train_images" not in fault


def test_arrays_without_a_picture_are_told_as_such_and_not_as_folders(tmp_path):
    (fault,) = check_source(write(tmp_path, train_images=IMAGES[:0], train_labels=LABELS[:0])).faults
    assert "set.npz cannot be read as pictures: there is no picture in it. Expected train_images" in str(fault)
    assert "train/<class>" not in str(fault)


def test_an_array_larger_than_memory_is_refused_by_its_header(tmp_path):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000, 3)})
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("train_images.npy", out.getvalue())
    (fault,) = check_source(str(tmp_path / "set.npz")).faults
    assert "declares 3,000,000,000,000,000 bytes" in str(fault)


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04" + b"\0" * 60])
def test_what_is_no_npz_is_told_as_one_fault(tmp_path, data):
    (tmp_path / "set.npz").write_bytes(data)
    (fault,) = check_source(str(tmp_path / "set.npz")).faults
    assert "no readable .npz" in str(fault)


def test_a_class_without_pictures_and_arrays_unknown_are_told(tmp_path):
    report = check_source(write(tmp_path, **{**SOUND, "class_names": np.array(["cat", "dog", "fox"])}, scores=LABELS))
    assert [(fault.kind, fault.examples) for fault in report.faults] == [("empty-class", ("fox",))]
    assert kinds(report.warnings) == ["stray"]


@pytest.mark.parametrize("shape", [(20, 9, 9), (20, 9, 9, 1), (20, 9, 9, 3)])
def test_squares_of_the_right_size_come_from_memory_as_decoding_would_give_them(tmp_path, shape):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    source = load_source(
        write(tmp_path, train_images=images, train_labels=LABELS, val_images=images[::-1] // 2, val_labels=LABELS)
    )
    chosen = np.array([7, 0, 3])
    for split in source.splits.values():
        for preprocess in (Preprocess(resize=9, size=9), Preprocess(resize=12, size=9), Preprocess(resize=8, size=8)):
            decoded = np.stack([pixels(split.image(i), preprocess) for i in chosen])
            assert np.array_equal(split.squares(chosen, preprocess), decoded)


def test_pictures_of_two_shapes_and_see_through_ones_are_decoded(tmp_path):
    mixed = {
        "train_images": IMAGES[:, :, :9],
        "train_labels": LABELS,
        "val_images": IMAGES[:10, :8, :8],
        "val_labels": LABELS[:10],
    }
    clear = {"train_images": np.concatenate([IMAGES[:, :, :9], IMAGES[:, :, :9, :1]], axis=3), "train_labels": LABELS}
    for arrays in (mixed, clear):
        split = load_source(write(tmp_path, **arrays)).splits["train"]
        preprocess, chosen = Preprocess(resize=9, size=9), np.arange(4)
        decoded = np.stack([pixels(split.image(i), preprocess) for i in chosen])
        assert np.array_equal(split.squares(chosen, preprocess), decoded)
