"""Inputs of deployed models: lines and pages of text, rendered, and photographs.

Calibration and judging never share a generator's seed or a photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.float32]

TEXT = (
    "invoice total amount due date customer number street Berlin 2024 shipping address order "
    "quantity price tax receipt thank you for your payment Monday 19.99 EUR reference bank "
    "transfer contact support phone 030 123456 page of the annual report summary results "
    "revenue growth market share people water house green light open close start stop exit"
)
WORDS = TEXT.split()
FONT_FOLDER = Path("/usr/share/fonts/truetype/dejavu")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def text_lines(count: int, seed: int, *, width: int = 320) -> tuple[list[str], Floats]:
    """Lines of words and their images as PP-OCR's recogniser takes them, [N, 3, 48, width]."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(count)]
    images = np.stack([_text_line(text, width, rng) for text in texts])
    return texts, np.ascontiguousarray((images / 127.5 - 1).transpose(0, 3, 1, 2), dtype=np.float32)


def _text_line(text: str, width: int, rng: np.random.Generator) -> Floats:
    """[48, width, 3], 0..255, what is right of the line is grey."""
    font = _font(rng, int(rng.integers(24, 34)))
    paper, ink = int(rng.integers(200, 256)), int(rng.integers(0, 80))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    image = Image.new("RGB", (right + 16, bottom - top + 14), (paper,) * 3)
    ImageDraw.Draw(image).text((8 - left, 7 - top), text, font=font, fill=(ink,) * 3)
    drawn = min(width, max(8, round(image.width * 48 / image.height)))
    pixels = np.asarray(image.resize((drawn, 48), Image.Resampling.BILINEAR), dtype=np.float32)
    out = np.full((48, width, 3), 127.5, dtype=np.float32)
    out[:, :drawn] = pixels + rng.normal(0, 4, pixels.shape)
    return out


def pages(count: int, seed: int, size: int = 320) -> Floats:
    """Pages of text as PP-OCR's detector takes them, [N, 3, size, size]."""
    rng = np.random.default_rng(seed)
    images = np.stack([np.asarray(_page(rng, size), dtype=np.float32) for _ in range(count)])
    scaled = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)


def _page(rng: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), (int(rng.integers(215, 256)),) * 3)
    draw = ImageDraw.Draw(image)
    y, line_count = int(rng.integers(4, 20)), 0
    while y < size - 24 and line_count < size // 40:
        height = int(rng.integers(13, 24))
        text = " ".join(rng.choice(WORDS, int(rng.integers(1, 4))))
        ink = (int(rng.integers(0, 90)),) * 3
        draw.text((int(rng.integers(4, 60)), y), text, font=_font(rng, height), fill=ink)
        y += int(height * rng.uniform(1.3, 2.2))
        line_count += 1
    return image


def _font(rng: np.random.Generator, size: int) -> ImageFont.FreeTypeFont:
    """One of the DejaVu fonts, or the one that Pillow brings."""
    files = sorted(FONT_FOLDER.glob("*.ttf"))
    if files:
        return ImageFont.truetype(str(files[int(rng.integers(len(files)))]), size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def photo_crops(
    count: int, seed: int, *, half: int, size: int = 224, folder: Path | None = None
) -> Floats:
    """Crops of scikit-image's and scikit-learn's photographs, [N, 3, size, size], 0..255.

    `half` 0 and 1 show different photographs.
    """
    rng = np.random.default_rng(seed)
    chosen = _photos(folder)[half::2]
    crops = []
    for index in range(count):
        image = chosen[index % len(chosen)]
        side = int(min(image.size) * rng.uniform(0.5, 1))
        x, y = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
        crop = image.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crops.append(np.asarray(crop, dtype=np.float32))
    return np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2))


def _photos(folder: Path | None) -> Sequence[Image.Image]:
    """Photographs in scikit-image's wheel (`folder`, where given) and in scikit-learn's."""
    import sklearn.datasets

    names = [
        *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"),
        *("motorcycle_right.png", "hubble_deep_field.jpg", "retina.jpg", "ihc.png", "color.png"),
        *("logo.png", "camera.png", "coins.png", "horse.png", "grass.png", "gravel.png"),
        *("brick.png", "moon.png", "cell.png"),
    ]
    files = [folder / name for name in names] if folder is not None else []
    here = Path(sklearn.datasets.__file__).parent / "images"
    files += [here / "china.jpg", here / "flower.jpg"]
    return [Image.open(file).convert("RGB") for file in files if file.is_file()]
