"""One picture file to 8-bit gray or RGB: what Pillow leaves to its callers about damage, bit depth and alpha."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

#: the only formats that are tried: some of Pillow's others start programs
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
#: an image of more pixels is refused before it is unpacked
MAX_PIXELS = 1 << 27

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAY_HOLD_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


class BadImage(Exception):
    """An image that cannot be used; the text says why."""


def opened(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """The decoded image as it is stored. Raises BadImage."""
    if not data:
        raise BadImage("the image has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return image
        reason = f"the image is {size_of(image)}, more than {MAX_PIXELS:,} pixels"
    except Image.DecompressionBombError:
        reason = f"the image has more than {MAX_PIXELS:,} pixels"
    except UnidentifiedImageError:
        reason = f"the image is not a {', '.join(formats[:-1])} or {formats[-1]} file, or damaged where it begins"
    except Exception as error:  # a damaged picture can raise anything
        reason = f"the image cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"
    raise BadImage(reason) from None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where none can be read. Pillow turns TIFF files itself and then says 1."""
    if not any(key in image.info for key in _MAY_HOLD_ORIENTATION):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged notes beside sound pixels
        return 1
    return value if isinstance(value, int) else 1


def upright(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(UPRIGHT[turn]) if turn in UPRIGHT else image


def opaque_8_bit(image: Image.Image, background: str) -> Image.Image:
    """The image in mode L, or RGB if it has colours. Raises BadImage."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode.startswith("I"):
        return _from_16_bit(image, background)
    if mode == "F":
        raise BadImage("the image holds floating-point values, whose range is not known; 8 and 16 bits can be read")
    try:
        if image.has_transparency_data:
            seen_through = image.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA")
            opaque = Image.new(seen_through.mode[:-1], image.size, background)
            opaque.paste(seen_through, mask=seen_through.getchannel("A"))
        else:
            opaque = image.convert("L" if mode == "1" else "RGB")
    except Exception as error:
        raise BadImage(f"the image of mode {mode} cannot be made RGB: {' '.join(str(error).split())}") from None
    if mode in ("P", "PA"):
        red, green, blue = (channel.tobytes() for channel in opaque.split())
        return opaque.getchannel(0) if red == green == blue else opaque
    return opaque


def _from_16_bit(image: Image.Image, background: str) -> Image.Image:
    """round(255 value / 65535) = round(value / 257), which has no ties. Raises BadImage for values beyond 16 bits."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(f"the image holds values from {values.min()} to {values.max()}; 8 and 16 bits can be read")
    pixels = ((values + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:
        pixels[values == image.info["transparency"]] = 255 if background == "white" else 0
    return Image.fromarray(pixels)


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def as_array(image: Image.Image) -> np.ndarray:
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def size_of(image: Image.Image) -> str:
    return f"{image.height}x{image.width}"
