"""Folders of images with captions, and the pixels made of them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from fakes_data import picture, save_pictures
from PIL import Image

from resalign.backend.data.captions import listed
from resalign.backend.data.image_set import find_broken, read_image_set
from resalign.backend.data.pixels import buckets, choose_bucket, frame, open_image
from resalign.backend.errors import DataError
from resalign.backend.plan.images import ImageSet


def captions(folder, **fields):
    return {i.name: i.caption for i in read_image_set(ImageSet(folder=str(folder), **fields))}


def write_metadata(folder, rows, name="metadata.jsonl"):
    path = folder / name
    if name.endswith("jsonl"):
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# Captions.


def test_captions_lie_beside_the_images_in_subfolders_too(tmp_path):
    save_pictures(tmp_path, {"b.png": "a fox", "a.JPG": "a pear", "sub/c.webp": "a kite"})
    picture(64, 64).save(tmp_path / "d.bmp")
    (tmp_path / "d.caption").write_text("a boat\nsecond line\n", encoding="utf-8")

    assert captions(tmp_path) == {
        "a.JPG": "a pear", "b.png": "a fox", "d.bmp": "a boat", "sub/c.webp": "a kite",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_captions_come_from_the_metadata_of_an_imagefolder(tmp_path, name, column):
    save_pictures(tmp_path, {"a.png": None, "sub/b.png": None})
    rows = [
        {"file_name": "a.png", column: 'says "hi",\nthen goes'},
        {"file_name": "sub/b.png", column: "ein Bär"},
    ]
    write_metadata(tmp_path, rows, name)

    assert captions(tmp_path) == {"a.png": 'says "hi",\nthen goes', "sub/b.png": "ein Bär"}


def test_metadata_counts_from_its_own_folder_and_wins_over_a_text_file(tmp_path):
    save_pictures(tmp_path, {"a.png": "from the text file", "sub/a.png": "from the text file"})
    write_metadata(tmp_path / "sub", [{"file_name": "a.png", "text": "from metadata"}])

    assert captions(tmp_path) == {"a.png": "from the text file", "sub/a.png": "from metadata"}


def test_images_without_a_caption_are_all_named(tmp_path):
    save_pictures(tmp_path, {"a.png": None, "b.png": "  \n", "c.png": "a fox"})

    with pytest.raises(DataError, match=r"2 of 3 images have no caption: a\.png, b\.png; put"):
        captions(tmp_path)
    assert captions(tmp_path, caption="a thing") == {
        "a.png": "a thing", "b.png": "a thing", "c.png": "a fox",
    }  # fmt: skip


def test_hidden_files_and_other_files_are_no_images(tmp_path):
    save_pictures(tmp_path, {"a.png": "x", ".hidden.png": None, ".thumbs/b.png": None})
    (tmp_path / "notes.md").write_text("not an image")

    assert list(captions(tmp_path)) == ["a.png"]


def test_linked_folders_belong_to_the_set_even_where_links_loop(tmp_path):
    save_pictures(tmp_path / "elsewhere", {"a.png": "x"})
    save_pictures(tmp_path / "set", {"b.png": "x"})
    try:
        (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "set" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")

    assert list(captions(tmp_path / "set")) == ["b.png", "linked/a.png"]


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_images_or_no_folder_at_all_is_named(tmp_path, make):
    folder = tmp_path / "set"
    if make:
        folder.mkdir()

    with pytest.raises(DataError, match=r"set: no images in it" if make else "no such folder"):
        captions(folder)


def test_metadata_that_names_absent_files_lists_them_all(tmp_path):
    save_pictures(tmp_path / "set", {"a.png": None})
    save_pictures(tmp_path, {"outside.png": "x"})
    rows = [{"file_name": n, "text": "x"} for n in ("a.png", "gone.png", "../outside.png")]
    write_metadata(tmp_path / "set", rows)

    with pytest.raises(DataError, match=r"2 absent files: gone\.png, \.\./outside\.png;"):
        captions(tmp_path / "set")


def test_duplicate_entries_are_named(tmp_path):
    save_pictures(tmp_path, {"a.png": None})
    write_metadata(tmp_path, [{"file_name": n, "text": "x"} for n in ("a.png", "./a.png")])

    with pytest.raises(DataError, match=r"names 1 files more than once: \./a\.png"):
        captions(tmp_path)


def test_two_metadata_files_in_one_folder_are_ambiguous(tmp_path):
    save_pictures(tmp_path, {"a.png": None})
    for name in ("metadata.jsonl", "metadata.csv"):
        write_metadata(tmp_path, [{"file_name": "a.png", "text": "x"}], name)

    with pytest.raises(DataError, match="keep one of them"):
        captions(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"metadata\.jsonl, line 2: is not JSON"),
        ('["a.png"]', "line 2: is a list, not an object"),
        ('{"text": "x"}', "line 2: has no `file_name`"),
        ('{"file_name": "a.png", "text": 7}', "line 2: `text` is 7, not a text"),
    ],
)
def test_a_bad_row_of_metadata_is_told_with_its_line(tmp_path, line, message):
    save_pictures(tmp_path, {"a.png": None, "b.png": "x"})
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "x"}\n' + line)

    with pytest.raises(DataError, match=message):
        captions(tmp_path)


def test_a_caption_that_is_not_utf_8_is_named(tmp_path):
    save_pictures(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_bytes("Bär".encode("latin-1"))

    with pytest.raises(DataError, match=r"a\.txt: is not UTF-8"):
        captions(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    save_pictures(tmp_path, {"a.png": None})
    (tmp_path / "a.txt").write_text("a fox", encoding="utf-8-sig")

    assert captions(tmp_path) == {"a.png": "a fox"}


def test_broken_images_are_found_by_decoding_every_one(tmp_path):
    save_pictures(tmp_path, {"cut.png": "x", "cut.jpg": "x", "fine.png": "x"}, side=128)
    for name in ("cut.png", "cut.jpg"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")

    found = find_broken(read_image_set(ImageSet(folder=str(tmp_path), caption="x")))

    assert sorted(found) == ["cut.jpg", "cut.png", "empty.png", "text.png"]
    assert found["text.png"] == "not an image"


def test_a_list_of_names_stays_readable():
    assert listed([str(n) for n in range(105)]).endswith("98, 99 and 5 more")
    assert listed(["a", "b"]) == "a, b"


# Pixels.


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))  # left half
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)

    upright = open_image(tmp_path / "a.jpg")

    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] < 50 and upright.getpixel((10, 35))[0] > 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.paste(0, (0, 0, 4, 8))
        image.info["transparency"] = 1
        image.save(tmp_path / "a.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "a.png")

    opened = open_image(tmp_path / "a.png")

    assert opened.mode == "RGB"
    assert opened.getpixel((1, 1)) == (0, 0, 0) and opened.getpixel((6, 1)) == (255, 255, 255)


def test_sixteen_bits_a_pixel_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.png")

    found = np.asarray(open_image(tmp_path / "a.png"))[..., 0]

    np.testing.assert_allclose(found, values / 257, atol=1)


@pytest.mark.parametrize("resolution", [64, 512, 1024])
def test_buckets_have_about_the_area_of_the_square(resolution):
    step = 8 if resolution == 64 else 64
    sizes = buckets(resolution)

    assert (resolution, resolution) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == 0 and width % step == 0
        assert resolution / 2 <= min(height, width) and max(height, width) <= 2 * resolution
        assert 0.7 * resolution**2 < height * width <= resolution**2


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (512, 512)),
        (1000, 1010, (512, 512)),
        (768, 512, (640, 384)),
        (1080, 1920, (384, 640)),
        (100, 5000, (256, 1024)),
    ],
)
def test_an_image_goes_to_the_bucket_of_the_nearest_aspect_ratio(height, width, expected):
    assert choose_bucket(height, width, 512) == expected


def test_an_image_is_resized_to_cover_its_bucket_and_cropped_in_the_centre():
    framed = frame(picture(100, 230), 64)  # to the bucket 40 x 96

    assert framed.size == (40, 96)
    assert framed.pixels.shape == (3, 40, 96)
    assert framed.original == (100, 230)
    # the factor that covers is 96 / 230, which leaves 42 rows: one is cut above and below
    assert framed.crop == (1, 0)
    assert framed.pixels.min() >= -1 and framed.pixels.max() <= 1


def test_an_image_of_the_bucket_s_size_keeps_its_pixels():
    image = picture(64, 64)

    pixels = frame(image, 64).pixels

    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected)


def test_a_small_image_is_enlarged_no_more_than_to_cover():
    framed = frame(picture(20, 30), 64)

    assert framed.size == choose_bucket(20, 30, 64)
    assert framed.original == (20, 30)
    assert min(framed.crop) == 0
