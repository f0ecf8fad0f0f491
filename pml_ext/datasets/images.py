"""Image files: found, checked, and decoded as a viewer shows them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pml_ext.datasets.samples import DataError

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["RGB", "L"]
Box = tuple[float, float, float, float]

EXTENSIONS = frozenset(
    (
        "avif",
        "bmp",
        "gif",
        "jfif",
        "jp2",
        "jpe",
        "jpeg",
        "jpg",
        "pbm",
        "pgm",
        "png",
        "pnm",
        "ppm",
        "tif",
        "tiff",
        "webp",
    )
)
# The decoders that a file of unknown origin may reach. Others of Pillow's start programs (Ghostscript for EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
STRANGERS = frozenset({"lost+found", "__MACOSX"})
CUSTOMS = ((0.0, 1.0), (0.0, 255.0))  # of floating-point pixels; the range of any other image is its own
LOOKED_AT = 20_000  # headers read before a run starts; they take about 0.2 ms each


def ignored(name: str) -> bool:
    """Whether a file or folder never belongs to the data: hidden ones (`._x.jpg`, `.DS_Store`) and `lost+found`.

    >>> ignored("._a.jpg"), ignored(".DS_Store"), ignored("lost+found"), ignored("a.jpg")
    (True, True, True, False)
    """
    return name.startswith(".") or name in STRANGERS


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image.

    >>> is_image("a.JPG"), is_image("a.txt"), is_image("jpg")
    (True, False, False)
    """
    return "." in name and name.rpartition(".")[2].lower() in EXTENSIONS


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and the folders in it, in the order of their names."""
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in a folder, in the order of their names."""
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not ignored(entry.name)]
    except OSError as error:
        raise DataError(f"{str(folder)!r} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class ImageFiles:
    """The images of files: `files[i]` upright, in one mode.

    Images are rotated as EXIF says; 16 bits a channel are scaled by their range; transparent parts are white.

    Args:
        paths: the files.
        mode: "RGB", or "L" for gray. Default "RGB".
        boxes: the part of each upright image that is the sample, (left, top, right, bottom) in pixels; None for all of
            it. Default None.

    Raises:
        DataError: in a call, a file that does not exist or cannot be decoded, or a box outside of its image.

    Example:
        >>> from pml_ext.datasets.images import ImageFiles
        >>> ImageFiles(("nowhere.jpg",))(0)
        Traceback (most recent call last):
        ...
        pml_ext.datasets.samples.DataError: 'nowhere.jpg' cannot be read: No such file or directory
    """

    paths: tuple[str, ...]
    mode: Mode = "RGB"
    boxes: tuple[Box | None, ...] | None = None

    def __call__(self, index: int) -> Image.Image:
        """Decode the image of an index."""
        path = self.paths[index]
        with opened(path) as file:
            image = decoded(file, path, self.mode)
        box = None if self.boxes is None else self.boxes[index]
        if box is None:
            return image
        if not (0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height):
            raise DataError(f"{path!r}: the box {box} is not inside the image of {image.width} x {image.height}")
        return image.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3])))

    def key(self) -> str:
        """Digest of the files' names, sizes and times, of the boxes and the mode."""
        digest = blake2b(repr((self.mode, self.boxes)).encode(), digest_size=16)
        for path in self.paths:
            try:
                state = Path(path).stat()
            except OSError as error:
                raise DataError(f"{path!r} cannot be read: {error.strerror}") from error
            digest.update(os.fsencode(path) + b"\0%d %d\0" % (state.st_size, state.st_mtime_ns))
        return digest.hexdigest()


def opened(path: str) -> Image.Image:
    """Open an image file; nothing but its header is read."""
    require_pillow("an image file")
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        size = Path(path).stat().st_size
        reason = "it is empty" if size == 0 else "it is not a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"
        raise DataError(f"{path!r} is not a readable image: {reason}") from error
    except OSError as error:
        raise DataError(f"{path!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(f"{path!r} is not a readable image: {_one_line(error)}") from error


def decoded(file: Image.Image, path: str, mode: Mode = "RGB") -> Image.Image:
    """The pixels of an opened image, as `flat` has them."""
    try:
        file.load()
    except Exception as error:  # decoders raise whatever they met: OSError, SyntaxError, struct.error, zlib.error, ...
        raise DataError(f"{path!r} is not a readable image: {_one_line(error)}") from error
    return flat(file, repr(path), mode)


def flat(file: Image.Image, what: str, mode: Mode = "RGB") -> Image.Image:
    """An image upright, of 8 bits a channel, on white, in one mode; `what` begins the message of an error."""
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(file)
    except Exception:  # the pixels are good, only the block that would say how to turn them is not
        image = file
    if image.mode[0] in "IF":
        image = _eight_bits(image, what, getattr(file, "tag_v2", {}))
    if has_alpha(image):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB")  # from everything; to gray there is a way from RGB only for some
    return rgb if mode == "RGB" else rgb.convert(mode)


def has_alpha(image: Image.Image) -> bool:
    """Whether something of an image may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _eight_bits(image: Image.Image, what: str, tags: Any) -> Image.Image:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image, dtype=np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{what} has pixels that are not finite")
    if image.mode == "F":
        low, high = next((span for span in CUSTOMS if span[0] <= low and high <= span[1]), (low, high))
    elif low >= 0 and high < 2**16:
        bits = tags.get(258, (16,))[0]  # a TIFF says if 12 of the 16 are in use
        low, high = 0.0, float(2 ** (bits if bits in (10, 12, 14) else 16) - 1)
    scaled = (pixels - low) * (255 / max(high - low, 1e-300))
    return Image.fromarray(scaled.round().astype(np.uint8))


def look(files: ImageFiles) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read up to `LOOKED_AT` headers: the necessary conversions, and a line for each file that is not an image."""
    step = -(-len(files.paths) // LOOKED_AT)
    kinds: Counter[str] = Counter()
    broken = []
    for path in files.paths[::step]:
        try:
            with opened(path) as file:
                kinds[_kind(file)] += 1
        except DataError as error:
            broken.append(str(error))
    wanted = {"RGB": "RGB", "L": "gray"}[files.mode]
    counts = [f"{kinds[kind]:,} {kind}" for kind in KINDS if kinds[kind] and kind != wanted]
    some = f" (of {-(-len(files.paths) // step):,} looked at)" if step > 1 else ""
    return (", ".join([*counts, f"converted to {wanted}"]) + some,) if counts else (), tuple(broken)


KINDS = ("gray", "RGB", "with alpha", "with 16 bits", "CMYK", "of other color spaces")


def _kind(file: Image.Image) -> str:
    if has_alpha(file):
        return "with alpha"
    if file.mode[0] in "IF":
        return "with 16 bits"
    return {"1": "gray", "L": "gray", "RGB": "RGB", "P": "RGB", "CMYK": "CMYK"}.get(file.mode, "of other color spaces")


def unreadable(files: ImageFiles) -> list[str]:
    """Decode every image; one line for each that cannot be."""

    def problem(index: int) -> str:
        try:
            files(index)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [line for line in pool.map(problem, range(len(files.paths))) if line]


def absent(paths: Sequence[str]) -> list[int]:
    """The positions of those paths that are not files."""
    return [i for i, path in enumerate(paths) if not Path(path).is_file()]


def require_pillow(what: str) -> None:
    """Raise ImportError that says what to install unless Pillow is there."""
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError(f'{what} needs Pillow: pip install "pml_ext[benchmark]"') from error
    PIL.Image.init()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
