"""Every kind of picture becomes the pixels it shows, by a rule that can be checked, or a few words say why not."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydantic import ValidationError

from cmray.core.errors import DataError
from cmray.datasets.images import BadImage, ImageRule, Resolved, decode, encode, encoded, resolve, to_pixels
from cmray.datasets.source import ArraySource, Bad, ImageSource, Item

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # [H, W, C]
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
JUST_READ = ImageRule()


def file_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data, rule=JUST_READ):
    pixels = to_pixels(Item("x", data), rule)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return pixels


def chw(image):
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def reason(data, rule=JUST_READ):
    with pytest.raises(BadImage) as error:
        to_pixels(Item("x", data), rule)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("the image ")
    return text


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_colours_come_through_every_lossless_format(kind):
    data = file_of(COLOUR, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels_of(data), chw(COLOUR))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_grayscale_comes_through_as_one_channel(kind):
    assert np.array_equal(pixels_of(file_of(GRAY, kind)), GRAY[None])


def test_one_bit_becomes_black_and_white():
    bits = GRAY > 127
    assert np.array_equal(pixels_of(file_of(Image.fromarray(bits))), bits[None] * np.uint8(255))


def test_a_palette_shows_its_colours_and_a_gray_one_is_grayscale():
    palette = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(pixels_of(file_of(palette)), chw(np.asarray(palette.convert("RGB"))))
    ramp = Image.fromarray(GRAY).convert("P")
    ramp.putpalette([255 - i // 3 for i in range(768)])
    data = file_of(ramp)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert np.array_equal(pixels_of(data), 255 - GRAY[None])


def test_cmyk_becomes_rgb():
    inks = RNG.integers(0, 256, (5, 7, 4), dtype=np.int64)
    image = Image.fromarray(inks.astype(np.uint8), "CMYK")
    shown = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(pixels_of(file_of(image, "TIFF")).astype(int) - chw(shown)).max() <= 1
    assert len(pixels_of(file_of(image, "JPEG"))) == 3


def test_sixteen_bits_are_rounded():
    values = np.concatenate([RNG.integers(0, 65536, 60), [0, 65535, 128, 129, 385, 386]]).astype(np.uint16)
    exact = np.rint(values.astype(np.float64) * 255 / 65535).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels_of(file_of(values.reshape(6, 11), kind)), exact.reshape(1, 6, 11))
    wide = Image.fromarray(values.astype(np.int32).reshape(6, 11))
    assert wide.mode == "I"
    assert np.array_equal(pixels_of(file_of(wide, "TIFF")), exact.reshape(1, 6, 11))
    assert "values from 0 to 65536" in reason(file_of(Image.fromarray(np.array([[0, 65536]], np.int32)), "TIFF"))


def test_floating_point_has_no_known_range():
    assert "floating-point" in reason(file_of(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_transparency_shows_the_background(background, level):
    rule = ImageRule(background=background)
    alpha = RNG.integers(0, 256, (5, 7, 1), dtype=np.uint8)
    alpha[0, :2, 0] = 0, 255
    over = lambda image: np.rint((image.astype(float) * alpha + level * (255.0 - alpha)) / 255)
    for kind in ("PNG", "TIFF"):
        rgba = pixels_of(file_of(np.concatenate([COLOUR, alpha], axis=2), kind), rule)
        assert np.array_equal(rgba, chw(over(COLOUR)))
    la = pixels_of(file_of(Image.fromarray(np.concatenate([GRAY[..., None], alpha], axis=2), "LA")), rule)
    assert np.array_equal(la, chw(over(GRAY[..., None])))


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_a_see_through_colour_shows_the_background(background, level):
    rule = ImageRule(background=background)
    ramp = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    expected = ramp.copy()
    expected[1, 2] = level
    assert np.array_equal(pixels_of(file_of(ramp, transparency=int(ramp[1, 2])), rule), expected[None])
    deep = ramp.astype(np.uint16) * 257
    assert np.array_equal(pixels_of(file_of(deep, transparency=int(deep[1, 2])), rule), expected[None])
    colour = COLOUR.copy()
    colour[1, 2] = level
    seen = pixels_of(file_of(COLOUR, transparency=tuple(map(int, COLOUR[1, 2]))), rule)
    assert np.array_equal(seen, chw(colour))
    palette = Image.fromarray(COLOUR).quantize(16)
    for kind in ("PNG", "GIF"):
        shown = np.asarray(palette.convert("RGB")).copy()
        shown[np.asarray(palette) == 3] = level
        assert np.array_equal(pixels_of(file_of(palette, kind, transparency=3), rule), chw(shown))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame(kind):
    frames = [Image.fromarray(np.full((6, 4, 3), level, np.uint8)) for level in (10, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels_of(data) == 10).all()
    if kind == "PNG":
        still = encoded(Item("x", data), Resolved(ImageRule(channels=3, encoding="png"), (3, 6, 4)))
        assert still != data
        assert (decode(still) == 10).all()


TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.transpose(a, (1, 0, 2)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied(kind, turn):
    blocks = np.repeat(np.repeat(COLOUR, 16, axis=0), 16, axis=1)  # so that JPEG keeps them apart
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    pixels = pixels_of(file_of(blocks, kind, exif=exif, **options)).astype(int)
    expected = chw(TURNED[turn](blocks))
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= (6 if kind == "JPEG" else 0)


def test_orientation_behind_the_pixels_counts_and_damaged_notes_do_not():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(COLOUR, exif=exif)
    start = data.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", data[start : start + 4])[0]
    end = len(data) - 12
    late = data[:start] + data[start + length : end] + data[start : start + length] + data[end:]
    wanted = Resolved(ImageRule(channels=3, encoding="png"), (3, 7, 5))
    assert np.array_equal(pixels_of(late), chw(np.rot90(COLOUR, -1)))
    assert np.array_equal(decode(encoded(Item("x", late), wanted)), chw(np.rot90(COLOUR, -1)))
    square = COLOUR[:5, :5]
    data = file_of(square, exif=exif)
    end = len(data) - 12
    late = data[:start] + data[start + length : end] + data[start : start + length] + data[end:]
    kept = encoded(Item("x", late), Resolved(ImageRule(channels=3, encoding="png"), (3, 5, 5)))
    assert kept != late
    assert np.array_equal(decode(kept), chw(np.rot90(square, -1)))
    broken = file_of(COLOUR, exif=b"Exif\0\0no such thing")
    assert np.array_equal(pixels_of(broken), chw(COLOUR))


# ---------------------------------------------------------------- channels and arrays


def test_channels():
    one, three = ImageRule(channels=1), ImageRule(channels=3)
    luma = COLOUR.astype(float) @ [0.299, 0.587, 0.114]
    for colour, gray in ((file_of(COLOUR), file_of(GRAY)), (chw(COLOUR), GRAY[None])):
        assert np.array_equal(pixels_of(colour, three), chw(COLOUR))
        assert np.array_equal(pixels_of(gray, one), GRAY[None])
        assert np.array_equal(pixels_of(gray, three), np.stack([GRAY] * 3))
        assert np.abs(pixels_of(colour, one)[0] - luma).max() < 0.51


def test_arrays_that_need_nothing_are_not_copied():
    pixels = np.ascontiguousarray(chw(COLOUR))
    assert to_pixels(Item("x", pixels), JUST_READ) is pixels
    assert to_pixels(Item("x", pixels[:, :5, :5]), ImageRule(crop="adm", size=5)).shape == (3, 5, 5)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 5, 5), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((3, 0, 5), np.uint8), np.zeros((1, 5, 5))],
)
def test_other_arrays_are_refused(pixels):
    assert "arrays are uint8 of 1 or 3 channels" in reason(pixels)


# ---------------------------------------------------------------- crops

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
crops = st.sampled_from(["center", "adm", "lsun", "stretch", "pad"])


@given(shape=sizes, size=st.integers(1, 24), crop=crops, channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_every_crop_gives_the_size_and_files_and_arrays_agree(shape, size, crop, channels, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3)[: 2 + (channels == 3)], dtype=np.uint8)
    rule = ImageRule(crop=crop, size=size)
    from_file, from_array = pixels_of(file_of(image), rule), pixels_of(np.ascontiguousarray(chw(image)), rule)
    assert from_file.shape == (channels, size, size)
    assert np.array_equal(from_file, from_array)
    if shape == (size, size):
        assert np.array_equal(from_file, chw(image))


@given(shape=sizes, size=st.integers(1, 24), crop=crops, level=st.integers(0, 255))
def test_a_plain_image_stays_plain_and_only_pad_adds_background(shape, size, crop, level):
    image = np.full(shape, level, np.uint8)
    pixels = pixels_of(file_of(image), ImageRule(crop=crop, size=size, background="black"))[0]
    if crop != "pad":
        assert (pixels == level).all()
        return
    height, width = (max(1, round(n * size / max(shape))) for n in shape)
    top, left = (size - height) // 2, (size - width) // 2
    expected = np.zeros((size, size), np.uint8)
    expected[top : top + height, left : left + width] = level
    assert np.array_equal(pixels, expected)


def bicubic_weights(n_in, n_out):
    """Keys' cubic (a = -1/2), widened when scaling down, as float64 [n_out, n_in]."""
    scale = n_in / n_out
    wide = max(scale, 1.0)
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        middle = (i + 0.5) * scale
        x = np.abs((np.arange(n_in) + 0.5 - middle) / wide)
        weights[i] = np.where(
            x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0)
        )
    return weights / weights.sum(axis=1, keepdims=True)


def box_weights(n_in, n_out):
    """Means over the source pixels whose centres fall into each target pixel, as float64 [n_out, n_in]."""
    scale = n_in / n_out
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        x = (np.arange(n_in) + 0.5 - (i + 0.5) * scale) / max(scale, 1.0)
        weights[i] = (x > -0.5) & (x <= 0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def resampled(image, weights, height, width):
    """Rows and columns in turn, rounded half up to 8 bits after each, as Pillow does it."""
    image = np.clip(np.floor(image @ weights(image.shape[1], width).T + 0.5), 0, 255)
    return np.clip(np.floor(weights(image.shape[0], height) @ image + 0.5), 0, 255)


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (64, 65), (31, 90), (16, 33), (9, 12)])
def test_adm_is_halvings_then_bicubic_then_the_middle(shape):
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    expected = image.astype(float)
    while min(expected.shape) >= 16:
        expected = resampled(expected, box_weights, expected.shape[0] // 2, expected.shape[1] // 2)
    h, w = expected.shape
    expected = resampled(expected, bicubic_weights, round(h * 8 / min(h, w)), round(w * 8 / min(h, w)))
    top, left = (expected.shape[0] - 8) // 2, (expected.shape[1] - 8) // 2
    found = pixels_of(image[None], ImageRule(crop="adm", size=8))[0].astype(int)
    assert np.abs(found - expected[top : top + 8, left : left + 8]).max() <= 1


def test_center_and_lsun_take_the_middle_square_and_stretch_takes_all():
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 200  # the middle square
    assert (pixels_of(wide[None], ImageRule(crop="center", size=4)) == 200).all()
    assert (pixels_of(wide.T[None], ImageRule(crop="lsun", size=4)) == 200).all()
    assert (pixels_of(wide[None], ImageRule(crop="center", size=8)) == wide[None, :, 4:12]).all()
    means = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    blocks = means.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    assert np.abs(pixels_of(means[None], ImageRule(crop="lsun", size=4))[0] - blocks).max() <= 1
    stretched = pixels_of(wide[None], ImageRule(crop="stretch", size=8))[0]
    assert stretched[0, 0] == 0
    assert stretched[4, 4] > 180


def test_crop_none_takes_one_size():
    assert pixels_of(file_of(COLOUR), ImageRule(size=None)).shape == (3, 5, 7)
    assert "is 5x7, not 7x7" in reason(file_of(COLOUR), ImageRule(size=7))
    assert "is 5x7, not 7x7" in reason(np.ascontiguousarray(chw(COLOUR)), ImageRule(size=7))


@pytest.mark.parametrize("crop", ["center", "adm", "lsun", "stretch", "pad"])
def test_a_crop_without_a_size_names_both(crop):
    with pytest.raises(ValidationError, match=f"crop {crop} needs size"):
        ImageRule(crop=crop)


def test_a_needle_does_not_fill_the_memory():
    needle = np.zeros((1, 200_000, 1), np.uint8)
    for crop in ("adm", "stretch", "pad"):
        assert "200000x1, too narrow" in reason(needle, ImageRule(crop=crop, size=64))


# ---------------------------------------------------------------- damage


def test_bad_files_say_why():
    jpeg, png = file_of(np.tile(COLOUR, (9, 9, 1)), "JPEG"), file_of(np.tile(COLOUR, (9, 9, 1)))
    assert reason(b"") == "the image has no bytes"
    assert "is not a JPEG, PNG, WEBP, BMP, GIF or TIFF file" in reason(b"dear diary, " * 20)
    assert "is not a JPEG, PNG" in reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "would start a program"
    for whole in (jpeg, png):
        for keep in (len(whole) // 2, len(whole) * 3 // 4):
            assert "cannot be decoded: image file is truncated" in reason(whole[:keep])
    for keep in range(1, len(png) - 24, 7):  # the last bytes are check sums and an end mark
        assert reason(png[:keep])


def test_a_bomb_is_not_unpacked():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side, says in ((13_000, "13000x13000, more than 134,217,728 pixels"), (60_000, "more than 134,217,728 pixels")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with pytest.warns(Image.DecompressionBombWarning) if side == 13_000 else pytest.MonkeyPatch.context():
            assert says in reason(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of odd TIFF tags
@settings(max_examples=300)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), data=st.data())
def test_damage_anywhere_gives_pixels_or_a_reason(kind, data):
    whole = bytearray(file_of(COLOUR, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert pixels_of(bytes(whole)).size
    except BadImage:
        assert reason(bytes(whole))


# ---------------------------------------------------------------- what shards keep

pixels_1_or_3 = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


@given(pixels=pixels_1_or_3)
def test_png_is_exact(pixels):
    assert np.array_equal(decode(encode(pixels, "png")), pixels)
    resolved = Resolved(ImageRule(channels=len(pixels), encoding="png"), pixels.shape)
    raw = Resolved(ImageRule(channels=len(pixels), encoding="raw"), pixels.shape)
    assert np.array_equal(decode(encoded(Item("x", pixels), resolved)), pixels)
    assert encoded(Item("x", pixels), raw) == pixels.tobytes()


def test_jpeg_is_close_and_keeps_all_chroma():
    smooth = np.stack(np.meshgrid(np.arange(48) * 5, np.arange(32) * 5)).astype(np.uint8)
    pixels = np.concatenate([smooth, 255 - smooth[:1]])
    data = encode(pixels, "jpeg")
    assert np.abs(decode(data).astype(int) - pixels).max() <= 8
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3
    assert decode(encode(smooth[:1], "jpeg")).shape == (1, 32, 48)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_file_that_is_as_wanted_is_kept_byte_for_byte(kind):
    exif = Image.Exif()
    exif[0x0112] = 1
    wanted = Resolved(ImageRule(channels=3, encoding=kind), (3, 5, 7))
    gray = Resolved(ImageRule(channels=1, encoding=kind), (1, 5, 7))
    for data in (file_of(COLOUR, kind), file_of(COLOUR, kind, exif=exif)):
        item = Item("x", data)
        assert encoded(item, wanted) == data
        assert encoded(item, wanted, to_pixels(item, wanted)) == data
        assert np.array_equal(decode(data), to_pixels(item, wanted))
    assert encoded(Item("x", file_of(GRAY, kind)), gray) == file_of(GRAY, kind)
    square = file_of(COLOUR[:, :5], kind)
    cropped = Resolved(ImageRule(crop="adm", size=5, channels=3, encoding=kind), (3, 5, 5))
    assert encoded(Item("x", square), cropped) == square, "a crop to the size it has changes nothing"


def test_every_other_file_is_made_so():
    exif = Image.Exif()
    exif[0x0112] = 3
    alpha = np.concatenate([COLOUR, GRAY[..., None]], axis=2)
    wanted = Resolved(ImageRule(channels=3, encoding="png"), (3, 5, 7))
    others = [
        file_of(GRAY), file_of(COLOUR, "BMP"), file_of(COLOUR, exif=exif), file_of(alpha), file_of(COLOUR, "JPEG"),
        file_of(COLOUR, transparency=(1, 2, 3)), file_of(Image.fromarray(COLOUR).quantize(9)),
    ]  # fmt: skip
    for data in others:
        item = Item("x", data)
        assert encoded(item, wanted) != data
        assert np.array_equal(decode(encoded(item, wanted)), to_pixels(item, wanted))
    with pytest.raises(BadImage, match="truncated"):
        encoded(Item("x", file_of(COLOUR)[:-30]), wanted)


def test_what_is_no_shard_image_is_not_decoded():
    for data, says in (
        (b"", "no bytes"), (b"text", "not a JPEG or PNG"), (file_of(COLOUR, "GIF"), "not a JPEG or PNG"),
        (file_of(COLOUR)[:-30], "truncated"), (file_of(Image.new("LA", (3, 3))), "mode LA"),
    ):  # fmt: skip
        with pytest.raises(BadImage, match=says):
            decode(data)


# ---------------------------------------------------------------- deciding what is left open


class Listed(ImageSource):
    """A source of given items."""

    def __init__(self, *items):
        super().__init__("listed", "all", "a test", ())
        object.__setattr__(self, "items", items)

    def __len__(self):
        return len(self.items)

    def read(self, start, stop):
        for i in range(start, stop):
            item = self.items[i]
            yield item if isinstance(item, Bad) else Item(f"item {i}", item)

    def fingerprint(self):
        return "listed"


def test_channels_are_three_where_any_image_has_colours():
    gray, colour = file_of(GRAY), file_of(COLOUR)
    assert resolve(JUST_READ, Listed(gray, gray)) == Resolved(
        ImageRule(channels=1, encoding="raw"), (1, 5, 7), strict_gray=True
    )
    both = resolve(JUST_READ, Listed(gray, gray, colour))
    assert (both.shape, both.rule.channels, both.strict_gray) == ((3, 5, 7), 3, False)
    assert np.array_equal(to_pixels(Item("x", gray), both), np.stack([GRAY] * 3))
    gray_jpeg = file_of(np.stack([GRAY] * 3, axis=2), "JPEG")
    assert resolve(JUST_READ, Listed(gray_jpeg)).shape[0] == 3, "stored as RGB"
    assert resolve(ImageRule(channels=1), Listed(gray, colour)) == Resolved(
        ImageRule(channels=1, encoding="raw"), (1, 5, 7), strict_gray=False
    )
    assert resolve(ImageRule(channels=3), Listed(gray)).shape == (3, 5, 7)


def test_colours_that_come_late_are_not_turned_gray_silently():
    auto = resolve(JUST_READ, Listed(file_of(GRAY)))
    asked = resolve(ImageRule(channels=1), Listed(file_of(GRAY)))
    for data in (file_of(COLOUR), np.ascontiguousarray(chw(COLOUR))):
        with pytest.raises(BadImage, match=r"has colours, but .* prepare with --channels 3"):
            to_pixels(Item("x", data), auto)
        assert to_pixels(Item("x", data), asked).shape == (1, 5, 7)


def test_the_shape_is_the_crops_or_the_first_ones():
    tall = file_of(np.zeros((9, 3), np.uint8))
    assert resolve(ImageRule(crop="pad", size=6), Listed(tall)).shape == (1, 6, 6)
    first = resolve(JUST_READ, Listed(Bad("x", "gone"), tall, file_of(GRAY)))
    assert first.shape == (1, 9, 3)
    with pytest.raises(BadImage, match=r"is 5x7, but the first one is 9x3; --crop and --size"):
        encoded(Item("x", file_of(GRAY)), first)
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize(("shape", "encoding"), [((255, 9), "raw"), ((9, 256), "png"), ((300, 300), "png")])
def test_large_images_are_kept_encoded(shape, encoding):
    source = Listed(np.zeros((1, *shape), np.uint8))
    assert resolve(JUST_READ, source).encoding == encoding
    assert resolve(ImageRule(encoding="jpeg"), source).encoding == "jpeg"


def test_no_images_and_no_usable_ones():
    with pytest.raises(DataError, match="a test holds no images"):
        resolve(JUST_READ, Listed())
    with pytest.raises(DataError, match=r"none of the 3 images looked at .* item 0: the image has no bytes"):
        resolve(JUST_READ, Listed(b"", b"text", Bad("x", "gone")))


def test_sixty_four_are_looked_at_the_first_and_last_included():
    images = np.zeros((1000, 1, 4, 4), np.uint8)
    seen = []

    class Counted(ArraySource):
        def read(self, start, stop):
            seen.extend(range(start, stop))
            return super().read(start, stop)

    resolve(JUST_READ, Counted("zeros", "all", "a test", (), images, None))
    assert (len(seen), seen[0], seen[-1]) == (64, 0, 999)
    assert set(np.diff(seen)) <= {15, 16}
