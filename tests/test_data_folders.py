"""Image folders as people and programs leave them: everything is read, refused or listed."""

import io
import json
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from fakes_data import save_pictures
from PIL import Image

from resalign.backend.data.image_set import find_broken, read_image_folder, read_image_set
from resalign.backend.data.pixels import open_image
from resalign.backend.data.text import lines_of
from resalign.backend.errors import DataError
from resalign.backend.plan.images import ImageSet

PIXELS = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)


def captions(folder, **fields):
    return {i.name: i.caption for i in read_image_set(ImageSet(folder=str(folder), **fields))}


def left_out(folder, **fields):
    return read_image_folder(ImageSet(folder=str(folder), **fields)).left_out


def table(folder, text, name="metadata.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))


# --- captions ----------------------------------------------------------------------------------


def test_unquoted_commas_in_a_table_are_refused_with_the_line(tmp_path):
    save_pictures(tmp_path, {"a.png": None, "b.png": None})
    table(tmp_path, 'file_name,text\na.png,"1girl, red hair"\nb.png,1girl, red hair, smile\n')

    with pytest.raises(DataError, match=r"line 3: has 4 fields for 2 columns.*quotes"):
        captions(tmp_path)
    table(tmp_path, 'file_name,text\na.png,"1girl, red hair"\nb.png,"say ""hi"", you"\n')
    assert captions(tmp_path) == {"a.png": "1girl, red hair", "b.png": 'say "hi", you'}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_and_texts_are_read_with_any_line_end_and_a_mark(tmp_path, end, encoding):
    for name in ("csv", "jsonl", "txt"):
        save_pictures(tmp_path / name, {"a.png": None, "b.png": None})
    rows = ["file_name,text", 'a.png,"x, y"', "b.png,z"]
    table(tmp_path / "csv", end.join(rows) + end, encoding=encoding)
    rows = [
        json.dumps({"file_name": f"{n}.png", "text": t}) for n, t in (("a", "x, y"), ("b", "z"))
    ]
    table(tmp_path / "jsonl", end.join(rows) + end, "metadata.jsonl", encoding)
    table(tmp_path / "txt", f"{end} x, y {end}more{end}", "a.txt", encoding)
    table(tmp_path / "txt", "z", "b.caption", encoding)

    for name in ("csv", "jsonl", "txt"):
        assert captions(tmp_path / name) == {"a.png": "x, y", "b.png": "z"}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_separators_within_a_line_end_no_caption(tmp_path, mark):
    text = f"one{mark}two"
    save_pictures(tmp_path / "txt", {"a.png": text})
    for name, content in (
        ("metadata.jsonl", json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)),
        ("metadata.csv", f"file_name,text\na.png,{text}\n"),
    ):
        if name.endswith("jsonl") and mark < " ":
            continue  # not allowed in JSON unless escaped
        save_pictures(tmp_path / name, {"a.png": None})
        table(tmp_path / name, content, name)
        assert captions(tmp_path / name) == {"a.png": text}

    assert captions(tmp_path / "txt") == {"a.png": text}
    assert lines_of(f"a{mark}b\r\nc\rd\n") == [f"a{mark}b", "c", "d"]


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        ("ein Bär", "utf-16", "UTF-16"),
        ("a fox", "utf-16-le", "NUL bytes, as UTF-16"),
        ("a fox", "utf-32", "UTF-32"),
        ("ein Bär", "cp1252", r"byte 0xe4 in line 1; it may be Windows-1252"),
        ("\n\n赤い髪の少女", "shift_jis", "in line 3; it may be .*Shift-JIS"),
        ("红发女孩", "gbk", "GBK"),
        ("рыжая девочка", "cp1251", "Windows-1251"),
    ],
)
def test_another_encoding_is_named_in_the_refusal(tmp_path, text, encoding, named):
    save_pictures(tmp_path, {"a.png": None})
    table(tmp_path, text, "a.txt", encoding)

    with pytest.raises(DataError, match=rf"a\.txt: is not UTF-8 text.*{named}"):
        captions(tmp_path)


@pytest.mark.parametrize("head", ["file_name, text", " File_Name ,TEXT", "text,file_name"])
def test_column_names_may_have_spaces_capitals_and_any_order(tmp_path, head):
    save_pictures(tmp_path, {"a.png": None})
    row = "a fox,a.png" if head.startswith("text") else "a.png,a fox"
    table(tmp_path, f"{head}\n{row}\n")

    assert captions(tmp_path) == {"a.png": "a fox"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name;text\na.png;x\n", "has no `file_name`; the first line must name the columns"),
        ("a.png,x\nb.png,y\n", "has no `file_name`"),
        ("file_name,text,text\na.png,x,y\n", "names a column twice"),
        ('file_name,text\na.png,"x\n', "not a CSV table"),
    ],
)
def test_a_table_without_its_columns_is_refused(tmp_path, text, message):
    save_pictures(tmp_path, {"a.png": None})
    table(tmp_path, text)

    with pytest.raises(DataError, match=message):
        captions(tmp_path, caption="fallback")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"file_name": ' + "9" * 5000 + "}"])
def test_hostile_lines_of_a_table_are_refused(tmp_path, line):
    save_pictures(tmp_path, {"a.png": None})
    table(tmp_path, line, "metadata.jsonl")

    with pytest.raises(DataError, match="line 1"):
        captions(tmp_path)


# --- names -------------------------------------------------------------------------------------


def test_dots_in_the_folder_s_path_and_in_the_table_s_are_normalised(tmp_path):
    """A plan's `folder = "../imgs"` becomes plans/../imgs; plans may also be a link."""
    save_pictures(tmp_path / "imgs" / "sub", {"b.png": None})
    save_pictures(tmp_path / "imgs", {"a.png": None})
    (tmp_path / "plans").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    save_pictures(tmp_path / "elsewhere" / "imgs", {"c.png": "z"})
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    names = ("sub/../a.png", "./sub//b.png")
    rows = [json.dumps({"file_name": n, "text": n[-5]}) for n in names]
    table(tmp_path / "imgs", "\n".join(rows), "metadata.jsonl")

    expected = {"a.png": "a", "sub/b.png": "b"}
    assert captions(tmp_path / "plans" / ".." / "imgs") == expected == captions(tmp_path / "imgs")
    assert captions(tmp_path / "link" / ".." / "imgs") == {"c.png": "z"}


def test_names_as_other_systems_write_them_are_found(tmp_path, monkeypatch):
    """Backslashes, capitals, decomposed letters, absolute paths, and a relative folder."""
    names = ["sub/a.png", "B.PNG", unicodedata.normalize("NFD", "Bär.png"), "d.png"]
    save_pictures(tmp_path / "set", dict.fromkeys(names))
    written = ["sub\\a.png", "b.png", unicodedata.normalize("NFC", "Bär.png"),
               str(tmp_path / "set" / "d.png")]  # fmt: skip
    rows = [json.dumps({"file_name": n, "text": str(i)}) for i, n in enumerate(written)]
    table(tmp_path / "set", "\n".join(rows), "Metadata.JSONL")
    monkeypatch.chdir(tmp_path)

    for folder in (tmp_path / "set", "set"):
        assert captions(folder) == {name: str(i) for i, name in enumerate(names)}


def test_caption_files_may_differ_in_case_and_form_but_an_exact_one_wins(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Bär") for form in ("NFC", "NFD"))
    save_pictures(tmp_path, {f"{apart}.png": None, "A.png": None, "b.JPG": None, "B.png": "big"})
    for name, text in ((f"{composed}.txt", "bear"), ("a.TXT", "a"), ("b.txt", "small")):
        (tmp_path / name).write_text(text)

    assert captions(tmp_path) == {
        f"{apart}.png": "bear", "A.png": "a", "b.JPG": "small", "B.png": "big",
    }  # fmt: skip
    assert left_out(tmp_path) == ()


def test_names_that_differ_in_case_only_are_ambiguous_unless_written_exactly(tmp_path):
    save_pictures(tmp_path, {"A.png": None, "a.png": None})
    table(tmp_path, "file_name,text\nA.png,big\na.png,small\n")
    assert captions(tmp_path) == {"A.png": "big", "a.png": "small"}

    save_pictures(tmp_path / "two", {"AB.png": None, "ab.png": None})
    table(tmp_path / "two", "file_name,text\nAb.png,which\n")
    with pytest.raises(DataError, match=r"Ab\.png could be AB\.png or ab\.png"):
        captions(tmp_path / "two")


# --- pictures ----------------------------------------------------------------------------------

FORMATS = {
    "jfif": "JPEG", "jpe": "JPEG", "jpg": "JPEG", "tif": "TIFF", "tiff": "TIFF", "gif": "GIF",
    "bmp": "BMP", "dib": "DIB", "webp": "WEBP", "png": "PNG", "apng": "PNG", "tga": "TGA",
    "ppm": "PPM", "pcx": "PCX", "jp2": "JPEG2000", "qoi": "QOI", "avif": "AVIF",
}  # fmt: skip


def test_every_suffix_that_pillow_reads_is_read_and_the_rest_is_listed(tmp_path):
    image, written = Image.fromarray(PIXELS), []
    for suffix, kind in FORMATS.items():
        Image.init()
        if kind in Image.SAVE and kind in Image.OPEN:
            try:
                image.save(tmp_path / f"b.{suffix}", format=kind)
            except (OSError, KeyError):  # a codec that this Pillow was built without
                (tmp_path / f"b.{suffix}").unlink(missing_ok=True)
                continue
            written.append(f"b.{suffix}")
    others = ["README.md", "Thumbs.db", "b.eps", "b.heic", "b.mp4", "b.npz", "orphan.txt", ".x.png"]
    for name in others:
        (tmp_path / name).write_text("x")
    (tmp_path / ".git").mkdir()

    found = read_image_folder(ImageSet(folder=str(tmp_path), caption="x"))

    assert len(written) > 12
    assert [image.name for image in found.images] == sorted(written)
    assert not find_broken(found.images)
    assert found.left_out == tuple(sorted([*others, ".git/"]))
    note = found.note("set")
    assert "9 files are left out" in note and "b.heic" in note and ".git/" in note


def test_what_is_left_out_is_shown_by_the_check_and_logged_when_it_is_encoded(tmp_path, caplog):
    from resalign.backend.jobs.check import check_job
    from resalign.backend.plan.concept import Concept
    from resalign.backend.plan.hardening import HardeningPlan
    from resalign.backend.plan.job import Job

    save_pictures(tmp_path, {"a.png": "a fox"})
    (tmp_path / "b.heic").write_bytes(b"x")
    plan = HardeningPlan(
        concepts=(Concept("a", ("a gun",)),), retain_set=ImageSet(folder=str(tmp_path))
    )
    job = Job(checkpoint="none", output=str(tmp_path / "o.safetensors"), plan=plan)

    assert any("1 file is left out" in t and "b.heic" in t for t in check_job(job).warnings)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, bits, colour, row, *extra):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "colour", "row", "clear", "expected"),
    [
        (16, 0, struct.pack(">2H", 1000, 60000), struct.pack(">H", 1000), [255, 233]),
        (8, 0, bytes([5, 200]), struct.pack(">H", 5), [255, 200]),
        (4, 0, bytes([0x5A]), struct.pack(">H", 5), [255, 170]),
        (2, 0, bytes([0b01100000]), struct.pack(">H", 1), [255, 170]),
        (1, 0, bytes([0b01000000]), struct.pack(">H", 0), [255, 255]),
        (16, 2, struct.pack(">6H", *[1000] * 3, *[60000] * 3), struct.pack(">3H", *[1000] * 3),
         [255, 234]),
        (8, 2, bytes([5, 5, 5, 200, 200, 200]), struct.pack(">3H", 5, 5, 5), [255, 200]),
    ],
)  # fmt: skip
def test_one_clear_colour_of_a_png_is_laid_on_white_at_every_depth(
    bits, colour, row, clear, expected
):
    image = open_image(png(2, bits, colour, row, chunk(b"tRNS", clear)))

    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == expected


def test_sixteen_bits_with_alpha_are_laid_on_white():
    row = struct.pack(">4H", 1000, 0, 60000, 65535)

    assert np.asarray(open_image(png(2, 16, 4, row)))[0, :, 0].tolist() == [255, 234]


def test_text_chunks_beyond_pillow_s_limits_do_not_break_a_good_picture():
    """A workflow of 70 MB, compressed to 70 KB, as image generators embed it."""
    big = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 70_000_000))
    odd = chunk(b"iTXt", b"no separators at all")
    for extra in (big, odd, big + odd):
        data = png(2, 8, 0, bytes([5, 200]), extra)
        assert np.asarray(open_image(data))[0, :, 0].tolist() == [5, 200]
    with pytest.raises(OSError, match="cannot identify"):
        open_image(b"\x89PNG\r\n\x1a\n" + big)


def jpeg(exif):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format="JPEG", exif=exif, quality=95)
    return file.getvalue()


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage that is not a TIFF header",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04ab\0\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
    ],
)
def test_odd_exif_does_not_break_a_good_picture(exif):
    plain = np.asarray(open_image(jpeg(b"")))

    assert np.array_equal(np.asarray(open_image(jpeg(exif))), plain)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_beside_tags_that_cannot_be_written_again(orientation):
    """Pillow's own exif_transpose writes all tags anew, and fails on some."""
    tags = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tags += struct.pack(">HHII", 0x9999, 5, 1, 0x7FFFFFFF)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + tags + bytes(4)
    plain = np.asarray(open_image(jpeg(b"")))
    turned = {
        1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1],
        5: plain.swapaxes(0, 1), 6: plain[::-1].swapaxes(0, 1),
        7: plain[::-1, ::-1].swapaxes(0, 1), 8: plain.swapaxes(0, 1)[::-1],
    }  # fmt: skip

    assert np.array_equal(np.asarray(open_image(jpeg(exif))), turned[orientation])


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), "floating point"),
        (Image.fromarray(np.full((2, 2), 70_000, np.int32)), "more than 16 bits"),
    ],
)
def test_pixels_without_a_known_white_are_refused(tmp_path, image, why):
    image.save(tmp_path / "a.tif")

    found = find_broken(read_image_set(ImageSet(folder=str(tmp_path), caption="x")))

    assert why in found["a.tif"]


# --- other texts -------------------------------------------------------------------------------


def test_a_byte_order_mark_before_plans_prompts_and_concepts_is_no_damage(tmp_path):
    from resalign.backend.data.concept import load_concepts
    from resalign.backend.plan.file import read_file

    for name, text in (("p.toml", 'checkpoint = "m"\n'), ("p.json", '{"checkpoint": "m"}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_file(tmp_path / name) == {"checkpoint": "m"}
    (tmp_path / "c.toml").write_text('name = "a"\nprompts = ["a gun"]\n', encoding="utf-8-sig")
    assert load_concepts(tmp_path / "c.toml")[0].name == "a"


def test_a_prompt_list_is_split_at_line_ends_only_and_another_encoding_is_named(tmp_path):
    from resalign.backend.probe.prompts import _from_file

    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffone\u2028two\r\n# three\rfour".encode())
    assert [p.text for p in _from_file(file, "unsafe")] == ["one\u2028two", "four"]
    file.write_bytes("ein Bär".encode("utf-16"))
    with pytest.raises(DataError, match="begins like UTF-16"):
        _from_file(file, "unsafe")
