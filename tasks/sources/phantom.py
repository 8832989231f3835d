"""Synthetic chest X-rays with exact masks, for demos and tests without the real dataset.

Every picture is drawn on demand: a stylised chest (body, lungs, heart, spine, ribs, vessels) in chest
coordinates, with random pose, exposure and noise, and findings that depend on its class.

    COVID-19    one to four soft, patchy opacities inside the lungs; the infection mask is their exact outline
    Non-COVID   an empty infection mask, but usually a decoy (consolidation, effusion or nodules)
    Normal      an empty infection mask and clear lungs

The same URL gives the same pixels on every machine. This restricts the operations: shapes and blurs use
Pillow's 8-bit integer code, noise is made from random bytes, and planes are combined only with + - * /, which
IEEE 754 rounds identically everywhere. exp, sin or pow on arrays would differ in the last bit by processor.
"""

import contextlib
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tasks.common.cores import Processes

SPLITS = ("Train", "Val", "Test")
CLASSES = ("COVID-19", "Non-COVID", "Normal")
KINDS = ("images", "lung masks", "infection masks")

ROOT = "Infection Segmentation Data/Infection Segmentation Data"
STEMS = {"COVID-19": "covid_{}", "Non-COVID": "non_COVID ({})", "Normal": "Normal ({})"}

# Number of cases by split (rows) and class (columns), in the order of SPLITS and CLASSES.
DEFAULT_COUNTS = ((400, 100, 100), (100, 50, 50), (185, 60, 60))
KAGGLE_COUNTS = ((1864, 932, 932), (466, 233, 233), (583, 292, 291))
COUNT_RANGE = (9, 33920)
OPTION_RANGES = {"seed": (0, 2**32 - 1), "size": (32, 1024)}
OPTION_DEFAULTS = {"seed": 0, "size": 256}

#: CHUNK files (three per case) are drawn per job of a process; fewer than FEW are drawn in this process.
CHUNK, FEW = 48, 960

Counts = tuple[tuple[int, ...], ...]
_Key = tuple[int, int, int]  # split, class, index of a case
Points = NDArray[np.float64]  # (..., n, 2): x to the right, y down
Line = NDArray[np.float64]  # (n,)
Plane = NDArray[np.float32]  # (size, size)
Pixels = NDArray[np.uint8]  # (size, size)


# --- The source: names and bytes ----------------------------------------------------------------------


class PhantomSource:
    """Synthetic chest X-rays in exactly the layout of Kaggle's COVID-QU-Ex archive.

    `phantom://` gives 1,105 cases; `phantom://N` gives N (9 to 33,920), distributed over splits and classes
    like the real infection half. Options: `?seed=S` (0 to 2**32 - 1, default 0) and `?size=P`, pixels per
    side (32 to 1024, default 256), joined by `&`.

    Memory holds only the counts and the case read last, for any N. Instances can be pickled and shared
    between threads.

    Raises:
        ValueError: the URL is not of this form; the message is one line and gives the valid form.
    """

    base = ""

    def __init__(self, url: str) -> None:
        self.counts, self.seed, self.size = _parse_url(url)
        self._last: tuple[_Key, dict[str, bytes]] | None = None

    def names(self) -> list[str]:
        """Names of all files, three per case, sorted."""
        return sorted(self._names())

    def stamps(self, names: Iterable[str], /) -> None:
        """None: the images of a URL never change."""

    def read(self, name: str) -> bytes:
        """The PNG file with this name: 8-bit grey, (size, size); masks contain only 0 and 255.

        Raises:
            FileNotFoundError: the source has no file with this name.
        """
        key, kind = self._locate(name)
        last = self._last  # read once, because another thread may replace it in between
        if last is None or last[0] != key:
            phantom = draw_phantom(*key, seed=self.seed, size=self.size)
            last = (key, {kind: _png(pixels) for kind, pixels in zip(KINDS, phantom, strict=True)})
            self._last = last
        return last[1][kind]

    @contextlib.contextmanager
    def reading(self, names: Sequence[str], /) -> Iterator[Iterator[bytes]]:
        """The contents of these files, in order. Many files are drawn on all cores, with bounded memory.

        Raises:
            InputError: a process was killed.
        """
        if len(names) < FEW:
            yield map(self.read, names)
            return
        chunks = (names[i : i + CHUNK] for i in range(0, len(names), CHUNK))
        with Processes() as processes:
            yield itertools.chain.from_iterable(processes.map(self._read_all, chunks))

    def _read_all(self, names: Sequence[str]) -> list[bytes]:
        return [self.read(name) for name in names]

    def _names(self) -> Iterator[str]:
        for s, split in enumerate(SPLITS):
            for c, group in enumerate(CLASSES):
                first = self._first_number(s, c)
                for number in range(first, first + self.counts[s][c]):
                    stem = STEMS[group].format(number)
                    yield from (f"{ROOT}/{split}/{group}/{kind}/{stem}.png" for kind in KINDS)

    def _first_number(self, s: int, c: int) -> int:
        """Like Kaggle, number the cases of a class through all splits, starting at 1."""
        return 1 + sum(row[c] for row in self.counts[:s])

    def _locate(self, name: str) -> tuple[_Key, str]:
        match = _NAME.fullmatch(name)
        if match:
            s, c = SPLITS.index(match["split"]), CLASSES.index(match["group"])
            number = int(match["number"])
            index = number - self._first_number(s, c)
            if 0 <= index < self.counts[s][c] and match["stem"] == STEMS[match["group"]].format(number):
                return (s, c, index), match["kind"]
        raise FileNotFoundError(f"the phantom source has no file {name!r}; see names() for the valid names")


_NAME = re.compile(
    rf"{ROOT}/(?P<split>{'|'.join(SPLITS)})/(?P<group>{'|'.join(CLASSES)})/(?P<kind>{'|'.join(KINDS)})/"
    r"(?P<stem>\D*(?P<number>[0-9]{1,9})\)?)\.png"
)


def _parse_url(url: str) -> tuple[Counts, int, int]:
    """Counts, seed and size from the URL."""
    form = "phantom://, phantom://N or phantom://N?seed=S&size=P"
    match = re.fullmatch(r"phantom://(?P<count>[^/?#]*)(?:\?(?P<query>[^#]*))?", url)
    if not match:
        raise ValueError(f"{url!r} is not a phantom URL; expected {form}")
    counts = DEFAULT_COUNTS if not match["count"] else spread(_whole(url, "N", match["count"], COUNT_RANGE))
    options = dict(OPTION_DEFAULTS)
    seen: set[str] = set()
    for part in match["query"].split("&") if match["query"] is not None else ():
        word, _, value = part.partition("=")
        if word not in OPTION_RANGES or word in seen:
            raise ValueError(f"{url!r}: unexpected {part!r}; expected seed=S and size=P, each at most once")
        seen.add(word)
        options[word] = _whole(url, word, value, OPTION_RANGES[word])
    return counts, options["seed"], options["size"]


def _whole(url: str, word: str, text: str, bounds: tuple[int, int]) -> int:
    low, high = bounds
    if re.fullmatch("[0-9]{1,10}", text) and low <= int(text) <= high:
        return int(text)
    raise ValueError(f"{url!r}: {word} is {text!r}; expected an integer from {low} to {high}")


def spread(total: int) -> Counts:
    """Distribute `total` cases (9 or more) over splits and classes like Kaggle's infection half.

    Uses the largest remainder method with at least one case per cell; 5,826 cases give the real counts.
    Returns rows by split, columns by class.
    """
    shares = [share for row in KAGGLE_COUNTS for share in row]
    whole = sum(shares)
    counts = [max(1, total * share // whole) for share in shares]

    def lacking(cell: int) -> int:
        return total * shares[cell] - whole * counts[cell]

    while sum(counts) < total:
        counts[max(range(len(counts)), key=lacking)] += 1
    while sum(counts) > total:  # compensate in the fullest cell for cells that were raised to one case
        counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
    columns = len(CLASSES)
    return tuple(tuple(counts[i : i + columns]) for i in range(0, len(counts), columns))


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    # Noise does not compress. The fastest level costs a few per cent in size and saves most of the time.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


# --- One case: draw the anatomy, add the findings, expose ---------------------------------------------


class Phantom(NamedTuple):
    """One case: uint8 arrays (size, size). Masks contain only 0 and 255; infection lies within the lungs."""

    image: Pixels
    lungs: Pixels
    infection: Pixels


def draw_phantom(split: int, group: int, index: int, *, seed: int, size: int) -> Phantom:
    """Draw case `index` of SPLITS[split], CLASSES[group]: (size, size) pixels.

    Depends only on its arguments, not on cases drawn earlier.
    """
    rng = np.random.Generator(np.random.PCG64([seed, split, group, index]))
    pose = _random_pose(rng, size)
    right, left = _random_lungs(rng)

    lungs = _Layer(pose)
    for corners in (right, left):
        lungs.fill(_smooth(corners)[None])
    lung_mask = lungs.pixels()
    # A lung is thin where it wraps around heart and diaphragm, so its inner edges fade.
    air = lungs.soften(1.5) * (np.float32(0.3) + np.float32(0.7) * lungs.soften(10))

    ray = _draw_tissue(rng, pose, _heart(right, left), air)
    infection = np.zeros_like(lung_mask)
    if CLASSES[group] == "COVID-19":
        infection = _add_opacities(rng, pose, ray, air, lung_mask)
    elif CLASSES[group] == "Non-COVID":
        _add_decoy(rng, pose, ray, air, lung_mask)
    # Bones are most visible against air.
    ray += _draw_bones(rng, pose) * _between(rng, 0.13, 0.24) * (np.float32(0.35) + np.float32(0.65) * air)
    ray += _draw_metal(rng, pose, device=0.15 if CLASSES[group] == "Normal" else 0.4)
    return Phantom(_expose(rng, ray), lung_mask, infection)


@dataclass(frozen=True)
class _Pose:
    """How the chest lies in the picture: maps chest coordinates (-1 to 1 spans the picture) to pixels."""

    size: int  # side of the picture in pixels
    scale_x: float
    scale_y: float
    angle: float
    shift_x: float
    shift_y: float

    def pixels(self, points: Points) -> Points:
        """Pixel coordinates, rounded to 1/1000: the last bit of a sine differs between machines."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = points[..., 0] * self.scale_x, points[..., 1] * self.scale_y
        placed = np.empty(points.shape)
        placed[..., 0] = cos * x - sin * y + self.shift_x
        placed[..., 1] = sin * x + cos * y + self.shift_y
        return placed.round(3)


def _random_pose(rng: np.random.Generator, size: int) -> _Pose:
    half = size / 2
    zoom = rng.uniform(0.92, 1.14) * half
    return _Pose(
        size=size,
        scale_x=zoom * rng.uniform(0.95, 1.06),
        scale_y=zoom * rng.uniform(0.92, 1.06),
        angle=math.radians(rng.uniform(-6, 6)),
        shift_x=half * rng.uniform(0.93, 1.07),
        shift_y=half * rng.uniform(1.0, 1.12),
    )


class _Layer:
    """An 8-bit drawing of shapes given in chest coordinates, (n, m, 2) for n shapes; returned blurred.

    Widths and radii are in pixels of a picture with 256 pixels per side.
    """

    def __init__(self, pose: _Pose) -> None:
        self.pose = pose
        self.unit = pose.size / 256
        self.image = Image.new("L", (pose.size, pose.size))
        self._draw = ImageDraw.Draw(self.image)

    def fill(self, outlines: Points, level: int = 255, rim: int | None = None) -> None:
        for outline in self.pose.pixels(outlines):
            self.fill_pixels(outline, level, rim)

    def fill_pixels(self, outline: Points, level: int = 255, rim: int | None = None) -> None:
        """Fill an outline given in pixels."""
        self._draw.polygon(outline.ravel().tolist(), fill=level, outline=rim)

    def stroke(self, paths: Points, width: float, level: int = 255) -> None:
        pixels = max(1, round(width * self.unit))
        for path in self.pose.pixels(paths):
            self._draw.line(path.ravel().tolist(), fill=level, width=pixels)

    def pixels(self) -> Pixels:
        return np.array(self.image)

    def soften(self, radius: float) -> Plane:
        """The layer blurred, as a plane in [0, 1]."""
        radius, size = radius * self.unit, self.pose.size
        if radius < 2:  # a single box filter smooths an edge well enough, and is three times as fast
            return _plane(self.image.filter(ImageFilter.BoxBlur(radius)))
        # A wide blur removes all detail that a quarter of the resolution could not represent.
        small = self.image.reduce(4).filter(ImageFilter.GaussianBlur(radius / 4))
        return _plane(small.resize((size, size), Image.Resampling.BILINEAR, box=(0, 0, size / 4, size / 4)))


def _plane(image: Image.Image) -> Plane:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _cloud(rng: np.random.Generator, size: int, cells: int) -> Plane:
    """Smooth noise in [0, 1], (size, size), from `cells` random values per side."""
    seeds = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return _plane(seeds.resize((size, size), Image.Resampling.BICUBIC))


def _between(rng: np.random.Generator, low: float, high: float) -> np.float32:
    return np.float32(rng.uniform(low, high))


# --- Anatomy, in chest coordinates; the patient's right is on the left of the picture ------------------

# From the apex along the ribs to the costophrenic angle, over the diaphragm, and up the mediastinum.
_RIGHT_LUNG = np.array(
    [(-0.31, -0.80), (-0.48, -0.68), (-0.61, -0.42), (-0.68, -0.06), (-0.71, 0.24), (-0.725, 0.44),
     (-0.72, 0.47), (-0.57, 0.33), (-0.40, 0.27), (-0.25, 0.31), (-0.17, 0.37), (-0.19, 0.16),
     (-0.15, -0.10), (-0.13, -0.40), (-0.18, -0.69)]
)  # fmt: skip
_LEFT_LUNG = np.array(
    [(0.31, -0.80), (0.47, -0.68), (0.60, -0.42), (0.67, -0.06), (0.70, 0.26), (0.715, 0.49),
     (0.71, 0.52), (0.60, 0.40), (0.50, 0.36), (0.42, 0.39), (0.40, 0.25), (0.32, 0.04),
     (0.19, -0.13), (0.15, -0.25), (0.18, -0.38), (0.14, -0.54), (0.18, -0.70)]
)  # fmt: skip
_HEART_SIDE = slice(9, 12)  # points of the left lung that a larger heart moves outwards
_BODY = np.array(
    [(-0.20, -1.5), (-0.21, -1.0), (-0.36, -0.90), (-0.80, -0.83), (-1.06, -0.62), (-1.12, -0.2),
     (-0.97, 0.0), (-0.90, 0.3), (-0.89, 1.5)]
)  # fmt: skip
_SCAPULA = np.array(
    [(0.62, -0.72), (0.92, -0.66), (0.90, -0.40), (0.80, -0.02), (0.72, -0.05), (0.70, -0.35)]
)
_COLLAR_BONE = np.array([(0.06, -0.62), (0.22, -0.68), (0.42, -0.71), (0.62, -0.80), (0.85, -0.84)])
_CHEST_WALL = ((-0.9, -0.6, -0.3, 0.1, 0.7), (0.36, 0.56, 0.68, 0.74, 0.78))  # y, and half width at that y
_MIRROR = np.array([-1.0, 1.0])


def _random_lungs(rng: np.random.Generator) -> tuple[Points, Points]:
    """Corner points of the lung on the left and of the lung on the right of the picture."""
    right, left = _jitter(rng, _RIGHT_LUNG, 0.012), _jitter(rng, _LEFT_LUNG, 0.012)
    left[_HEART_SIDE, 0] += rng.uniform(-0.07, 0.06) * np.array([1.0, 1.0, 0.7])
    breath = rng.uniform(0.9, 1.18)  # depth of inspiration
    for lung in (right, left):
        lung[lung[:, 1] > 0, 1] *= breath * rng.uniform(0.94, 1.06)
        lung[:, 0] *= rng.uniform(0.95, 1.06)
    return right, left


def _heart(right: Points, left: Points) -> Points:
    """Outline of heart and great vessels: the space between the lungs."""
    return np.concatenate([left[9:], right[:-6:-1], [(0.0, 0.55), (0.3, 0.5)]])


def _draw_tissue(rng: np.random.Generator, pose: _Pose, heart: Points, air: Plane) -> Plane:
    """Soft tissue and lungs, with brightness of about [0, 1], before findings and bones."""
    body, middle = _Layer(pose), _Layer(pose)
    body.fill(_smooth(np.concatenate([_BODY, _BODY[::-1] * _MIRROR]))[None])
    middle.fill(heart[None], 150)
    middle.fill(_spine(), 205)
    ray = body.soften(4) * _thickness(rng, pose.size)
    ray += middle.soften(4) * _between(rng, 0.10, 0.18)
    ray -= _draw_hollows(rng, pose) * _between(rng, 0.08, 0.16)
    ray *= 1 - air * _between(rng, 0.62, 0.8)
    ray += air * _draw_vessels(rng, pose) * _between(rng, 0.12, 0.22)
    if rng.random() < 0.5:
        ray += _draw_breasts(rng, pose)
    return ray


def _thickness(rng: np.random.Generator, size: int) -> Plane:
    """Thickness of the body along the rays: more in the middle and at the abdomen, less at the flanks."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    across, down = line[None, :], line[:, None]
    tilt_x, tilt_y = _between(rng, -0.07, 0.07), _between(rng, 0.02, 0.12)
    thickness: Plane = np.float32(0.6) - np.float32(0.2) * across * across + tilt_x * across + tilt_y * down
    return thickness


def _spine() -> Points:
    """Vertebrae, with gaps for the paler discs: (17, 4, 2)."""
    top = np.arange(-1.1, 1.1, 0.135)
    half = 0.085 + 0.01 * top
    return np.stack([-half, top, half, top, half, top + 0.1, -half, top + 0.1], axis=1).reshape(-1, 4, 2)


def _draw_hollows(rng: np.random.Generator, pose: _Pose) -> Plane:
    """Air outside the lungs, to be subtracted: windpipe, main bronchi, often a bubble in the stomach."""
    layer = _Layer(pose)
    lean, low = rng.uniform(-0.02, 0.03), rng.uniform(-0.36, -0.28)
    layer.stroke(np.array([[(0.0, -1.2), (lean, low)]]), 11)
    layer.stroke(np.array([[(lean, low), (side * 0.19, low + 0.15)] for side in (-1, 1)]), 7)
    if rng.random() < 0.5:
        layer.fill(_blob(rng, (rng.uniform(0.3, 0.5), rng.uniform(0.62, 0.75)), 0.14)[None], 130)
    return layer.soften(2.5)


def _draw_vessels(rng: np.random.Generator, pose: _Pose) -> Plane:
    """Arteries and veins that fan out from both hila and become thinner towards the pleura."""
    side = np.repeat([-1.0, 1.0], 9)
    hilum = np.stack([side * 0.19, np.repeat(rng.uniform(-0.16, -0.08, 2), 9)], axis=1)
    angle = np.radians(np.tile(np.arange(-75, 76, 18.75), 2) + rng.uniform(-8, 8, 18))
    length = rng.uniform(0.35, 0.6, 18)
    trunks = _branches(rng, hilum, side, angle, length)
    layer = _Layer(pose)
    for at, fork in ((2, 0.5), (3, -0.5)):
        layer.stroke(_branches(rng, trunks[:, at], side, angle + fork, length * 0.55), 1, 120)
    layer.stroke(trunks[:, 2:], 2, 165)
    layer.stroke(trunks[:, :3], 3, 215)
    for end in (0, -1):
        layer.fill(_blob(rng, hilum[end], 0.075, stretch=1.6)[None], 140)
    return layer.soften(0.9)


def _branches(rng: np.random.Generator, start: Points, side: Line, angle: Line, length: Line) -> Points:
    """Bent paths of four steps from n points at n angles: (n, 5, 2)."""
    turned = angle[:, None] + rng.uniform(-0.5, 0.5, (len(angle), 1)) * np.arange(4) / 3
    steps = np.stack([side[:, None] * np.cos(turned), np.sin(turned)], axis=2) * length[:, None, None] / 4
    return np.concatenate([start[:, None], start[:, None] + np.cumsum(steps, axis=1)], axis=1)


def _draw_breasts(rng: np.random.Generator, pose: _Pose) -> Plane:
    """A faint haze with a round lower edge over the lower lungs. Not a finding."""
    layer = _Layer(pose)
    level, low = int(rng.integers(8, 24)), rng.uniform(0.1, 0.25)
    for side in (-1, 1):
        layer.fill(_blob(rng, (side * 0.45, low), 0.33, rough=0.05)[None], level)
    return layer.soften(5)


def _draw_bones(rng: np.random.Generator, pose: _Pose) -> Plane:
    """Shoulder blades, ribs and collar bones."""
    back, front = _ribs(first=rng.uniform(-0.80, -0.74), gap=rng.uniform(0.135, 0.15))
    blade = _smooth(_jitter(rng, _SCAPULA, 0.02))
    collar = _smooth(_jitter(rng, _COLLAR_BONE, 0.012), closed=False)[None]
    layer = _Layer(pose)
    for mirror in (np.ones(2), _MIRROR):
        layer.fill(blade[None] * mirror, 60)
        layer.fill(_tubes(front * mirror, 0.022), 75, rim=130)
        layer.fill(_tubes(back * mirror, 0.025), 135, rim=215)
        layer.fill(_tubes(collar * mirror, 0.03), 185, rim=255)
    return layer.soften(0.9)


def _ribs(first: float, gap: float) -> tuple[Points, Points]:
    """Centre lines of one side: spine to chest wall, and from there to the breastbone; (9, 12, 2) each."""
    rib = np.arange(9)[:, None]
    top = first + gap * rib
    wall = np.interp(top + 0.1, *_CHEST_WALL)
    drop = 0.14 + 0.012 * rib
    t = np.linspace(0, 1, 12)
    back = np.stack([0.07 + (wall - 0.07) * t * (2 - t), top - 0.2 * t * (1 - t) + drop * t * t], axis=2)
    inwards = (wall - 0.30 - 0.02 * rib) * t * t
    front = np.stack([wall - inwards, top + drop + (0.24 + 0.01 * rib) * t * (1.25 - 0.25 * t)], axis=2)
    return back, front


def _tubes(paths: Points, half: float) -> Points:
    """Outlines of tubes that extend `half` to both sides of their centre lines: (n, m, 2) -> (n, 2 m, 2)."""
    along = np.gradient(paths, axis=1)
    length = np.sqrt(along[..., 0] * along[..., 0] + along[..., 1] * along[..., 1])
    across = np.stack([-along[..., 1], along[..., 0]], axis=2) * (half / np.maximum(length, 1e-6))[..., None]
    return np.concatenate([paths + across, (paths - across)[:, ::-1]], axis=1)


# --- Findings -----------------------------------------------------------------------------------------


def _add_opacities(rng: np.random.Generator, pose: _Pose, ray: Plane, air: Plane, lungs: Pixels) -> Pixels:
    """Add one to four ground-glass opacities to the lungs; returns their mask, which is never empty.

    The mask is the outline before blurring, so the visible edge fades to both sides of it.
    """
    layer = _Layer(pose)
    count = int(rng.integers(1, 5))
    for _ in range(count):
        radius = rng.uniform(0.2, 0.6) if count < 3 else rng.uniform(0.18, 0.45)
        outline = _blob(rng, (0.0, 0.0), radius, rough=0.3, stretch=rng.uniform(0.8, 1.6))
        _put_in_lung(rng, layer, lungs, outline, int(rng.integers(150, 256)))
    mask = np.where(layer.pixels() > 0, lungs, np.uint8(0))
    patches = _cloud(rng, pose.size, 22) * _cloud(rng, pose.size, 9)
    veil = layer.soften(rng.uniform(4, 8)) * air * (np.float32(0.5) + np.float32(0.9) * patches)
    _cloud_over(ray, veil, _between(rng, 0.42, 0.95))
    return mask


def _add_decoy(rng: np.random.Generator, pose: _Pose, ray: Plane, air: Plane, lungs: Pixels) -> None:
    """Usually add a finding that is not a COVID-19 infection; the infection mask stays empty."""
    layer = _Layer(pose)
    draw, blur = rng.random(), 2.0
    if draw < 0.45:  # consolidation: dense and uniform, with a straight edge at the fissure of the lobe
        outline = _blob(rng, (0.0, 0.0), rng.uniform(0.18, 0.34), rough=0.2)
        outline[:, 1] = np.minimum(outline[:, 1], rng.uniform(0.0, 0.08))
        _put_in_lung(rng, layer, lungs, outline, 255)
    elif draw < 0.65:  # effusion: fluid in one lung up to a level that is higher at the chest wall
        side, level = (-1, 1)[int(rng.integers(2))], rng.uniform(0.05, 0.25)
        pool = [(0.0, 1.0), (0.0, level + 0.08), (0.3, level + 0.06), (0.55, level), (0.9, level - 0.2)]
        layer.fill(np.array([[*pool, (0.9, 1.0)]]) * (side, 1))
        blur = 3.5
    elif draw < 0.85:  # nodules
        for _ in range(int(rng.integers(2, 8))):
            outline = _blob(rng, (0.0, 0.0), rng.uniform(0.025, 0.06), rough=0.1)
            _put_in_lung(rng, layer, lungs, outline, 200)
    else:
        return
    _cloud_over(ray, layer.soften(blur) * air, _between(rng, 0.45, 0.85))


def _cloud_over(ray: Plane, veil: Plane, strength: np.float32) -> None:
    """Move the lung under `veil` (in [0, 1]) towards the brightness of soft tissue, in place."""
    ray += veil * strength * (np.float32(0.68) - ray)


def _put_in_lung(rng: np.random.Generator, layer: _Layer, lungs: Pixels, outline: Points, level: int) -> None:
    """Fill an outline around a lung pixel: the lower of two random ones, since infections tend to lie low."""
    inside = np.flatnonzero(lungs)
    flat = int(inside[rng.integers(inside.size, size=2)].max())
    y, x = divmod(flat, layer.pose.size)
    layer.fill_pixels((outline * (layer.pose.size / 2) + (x, y)).round(3), level)


def _draw_metal(rng: np.random.Generator, pose: _Pose, device: float) -> Plane:
    """Foreign objects: a side marker, and with probability `device` a lead, tube, line or pacemaker."""
    layer = _Layer(pose)
    if rng.random() < 0.4:
        x, y = rng.uniform(0.7, 0.85), rng.uniform(-0.98, -0.9)
        layer.stroke(np.array([[(x, y), (x, y + 0.1), (x + 0.06, y + 0.1)]]), 2)
    if rng.random() < device:
        side = np.array([(-1, 1)[int(rng.integers(2))], 1])
        (_draw_lead, _draw_tube, _draw_line, _draw_pacemaker)[int(rng.integers(4))](rng, layer, side)
    return layer.soften(0.7) * _between(rng, 0.15, 0.45)


def _draw_lead(rng: np.random.Generator, layer: _Layer, side: Points) -> None:
    lead = np.array([(0.95, -0.5), (0.6, -0.2), (0.3, 0.1), (0.5, 0.5)]) * side
    lead = _smooth(_jitter(rng, lead, 0.12), closed=False)
    layer.stroke(lead[None], 1.6)
    layer.fill(_blob(rng, lead[-1], 0.04, rough=0)[None])


def _draw_tube(rng: np.random.Generator, layer: _Layer, side: Points) -> None:
    tube = np.array([(0.02, -1.2), (0.0, -0.8), (rng.uniform(0.0, 0.02), -0.42)]) * side
    layer.stroke(tube[None], 2.4)


def _draw_line(rng: np.random.Generator, layer: _Layer, side: Points) -> None:
    line = np.array([(0.6, -0.9), (0.3, -0.66), (0.08, -0.5), (0.1, -0.05)]) * side
    layer.stroke(_smooth(_jitter(rng, line, 0.03), closed=False)[None], 1.6)


def _draw_pacemaker(rng: np.random.Generator, layer: _Layer, side: Points) -> None:
    layer.fill(_blob(rng, (0.52, -0.5), 0.12, rough=0.05)[None] * side)
    wire = np.array([(0.45, -0.55), (0.15, -0.62), (0.06, -0.3), (0.05, 0.2), (0.2, 0.36)]) * side
    layer.stroke(_smooth(_jitter(rng, wire, 0.02), closed=False)[None], 1.6)


# --- Exposure and noise -------------------------------------------------------------------------------


def _expose(rng: np.random.Generator, ray: Plane) -> Pixels:
    """Convert brightness of about [0, 1] to grey values, as one of many X-ray machines would store them."""
    size = len(ray)
    ray = ray * (np.float32(0.9) + np.float32(0.2) * _cloud(rng, size, 4))
    ray = np.clip(ray * _between(rng, 1.0, 1.35) + _between(rng, -0.04, 0.05), 0, 1)
    # Resembles a gamma curve, with operations that round identically everywhere.
    ray += _between(rng, -0.45, 0.45) * ray * (1 - ray)
    ray += (_cloud(rng, size, size * 5 // 16) - np.float32(0.5)) * _between(rng, 0.02, 0.07)
    first, second = rng.integers(0, 256, (2, size, size), dtype=np.uint8)
    ray += (first.astype(np.float32) - second) * (_between(rng, 0.01, 0.05) / np.float32(255))
    grey: Pixels = np.rint(np.clip(ray, 0, 1) * np.float32(255)).astype(np.uint8)
    return grey


# --- Curves -------------------------------------------------------------------------------------------


def _jitter(rng: np.random.Generator, points: Points, amount: float) -> Points:
    moved: Points = points + rng.uniform(-amount, amount, points.shape)
    return moved


def _blob(
    rng: np.random.Generator,
    centre: Sequence[float] | Line,
    radius: float,
    rough: float = 0.25,
    stretch: float = 1.0,
) -> Points:
    """A round outline around `centre`; `rough` is the variation of its radii, `stretch` makes it taller."""
    turn = rng.uniform(0, 2 * math.pi)
    angles = [turn + 2 * math.pi * corner / 11 for corner in range(11)]
    circle = np.array([(math.cos(angle), math.sin(angle) * stretch) for angle in angles])
    radii = radius * rng.uniform(1 - rough, 1 + rough, (11, 1))
    outline: Points = _smooth(circle * radii) + np.asarray(centre)
    return outline


def _smooth(points: Points, closed: bool = True) -> Points:
    """Catmull-Rom curve through `points`, five steps per segment: (n, 2) -> (5 n, 2)."""
    before, after = (points[-1:], points[:2]) if closed else (points[:1], points[[-1, -1]])
    p = np.concatenate([before, points, after])
    t = np.linspace(0, 1, 5, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : i + len(points), None] for i in range(4))
    bend, slope = 2 * a - 5 * b + 4 * c - d, c - a
    curve: Points = b + t * (slope + t * (bend + t * (3 * b - a - 3 * c + d))) / 2
    return curve.reshape(-1, 2)
