"""What happens in a synthetic video, and its pictures.

A scene is a list of shapes. Each appears in a cell of a 6 x 6 grid, stays there for a few frames
and vanishes; at most one changes colour in between. A cell is exactly one pooled visual token
(16 x 16 pixels of 96 x 96), so an event is a handful of tokens and losing them loses the event.
Within a video shapes, colours and cells are all different, and no two events share a frame:
every question has one answer and "in order" is well defined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 96  # pixels, both ways
CELL = 16  # pixels per grid cell
GRID = IMAGE_SIZE // CELL
FRAMES = 16  # of a video: five items fit

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
# Far apart in chroma as well as in luma: yuv420 halves the chroma resolution of a 16-pixel shape.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 30),
    "green": (30, 170, 40),
    "blue": (35, 60, 230),
    "yellow": (235, 220, 30),
    "purple": (200, 40, 210),
    "cyan": (40, 210, 220),
    "white": (245, 245, 245),
    "black": (12, 12, 12),
}
MAX_OBJECTS = 5


@dataclass(frozen=True)
class Item:
    """One shape: visible in frames start <= f < end; `new_colour` from frame `change` on."""

    shape: str
    colour: str
    row: int
    column: int
    offset: tuple[int, int]  # pixels off the cell's centre (y, x)
    start: int
    end: int
    change: int | None = None
    new_colour: str | None = None

    @property
    def side(self) -> str:
        return "left" if self.column < GRID // 2 else "right"

    def colour_at(self, frame: int) -> str | None:
        """Its colour in a frame, None where it is not visible."""
        if not self.start <= frame < self.end:
            return None
        if self.change is not None and frame >= self.change:
            return self.new_colour
        return self.colour


@dataclass(frozen=True)
class Scene:
    """Items in the order in which they appear, and the seed of texture and noise."""

    items: tuple[Item, ...]
    seed: int

    @property
    def changed(self) -> Item | None:
        return next((item for item in self.items if item.change is not None), None)


def make_scene(seed: int, *, with_change: bool | None = None) -> Scene:
    """The scene of a seed: 2 to 5 items, each 2 or 3 frames long (a changing one 4 to 6).

    with_change: force or forbid the colour change; None leaves it to chance (one half).
    """
    rng = np.random.default_rng([seed, FRAMES])
    count = int(rng.integers(2, MAX_OBJECTS + 1))
    change = bool(rng.integers(2))
    change = change if with_change is None else with_change

    shapes = rng.permutation(len(SHAPES))
    colours = rng.permutation(len(COLOURS))
    cells = _apart(rng, count)
    # Starts are at least two frames apart; the last one leaves room for two frames.
    free = np.sort(rng.choice(FRAMES - 2 - (count - 1), size=count, replace=False))
    starts = [int(start) + i for i, start in enumerate(free)]
    latest = FRAMES - 5  # a changing item needs up to three frames before and two after
    changing = int(rng.choice([i for i, s in enumerate(starts) if s <= latest])) if change else -1

    names = list(COLOURS)
    items = []
    for i, start in enumerate(starts):
        before, after = (int(n) for n in rng.integers(2, 4, size=2))
        at = start + before
        if i == changing and at in starts:
            at = start + 5 - before  # the other of 2 and 3: starts two apart leave one of them free
        items.append(
            Item(
                shape=SHAPES[shapes[i]],
                colour=names[colours[i]],
                row=cells[i] // GRID,
                column=cells[i] % GRID,
                offset=(int(rng.integers(-1, 2)), int(rng.integers(-1, 2))),
                start=start,
                end=min(FRAMES, at + after if i == changing else start + before),
                change=at if i == changing else None,
                new_colour=names[colours[count]] if i == changing else None,
            )
        )
    return Scene(tuple(items), seed)


def crowded_scene(seed: int) -> Scene:
    """Six items in every frame, new ones each time: many labels per frame to learn from.

    Shapes and colours repeat, so it is no scene of the suite and no question fits it.
    """
    rng = np.random.default_rng([seed, FRAMES, 4])
    names = list(COLOURS)
    items = [
        Item(
            shape=SHAPES[rng.integers(len(SHAPES))],
            colour=names[rng.integers(len(names))],
            row=cell // GRID,
            column=cell % GRID,
            offset=(int(rng.integers(-1, 2)), int(rng.integers(-1, 2))),
            start=frame,
            end=frame + 1,
        )
        for frame in range(FRAMES)
        for cell in _apart(rng, 6)
    ]
    return Scene(tuple(items), seed)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Frames uint8 [F, 96, 96, 3], RGB: one still texture, mild noise in every frame, shapes."""
    rng = np.random.default_rng([scene.seed, 1])
    frames = np.repeat(_texture(rng)[None], FRAMES, axis=0)
    for item in scene.items:
        mask = shape_mask(item.shape)
        size = mask.shape[0]
        top = item.row * CELL + (CELL - size) // 2 + item.offset[0]
        left = item.column * CELL + (CELL - size) // 2 + item.offset[1]
        for frame in range(item.start, item.end):
            colour = item.colour_at(frame)
            assert colour is not None
            frames[frame, top : top + size, left : left + size][mask] = COLOURS[colour]
    noise = rng.integers(-5, 6, size=frames.shape, dtype=np.int16)
    drawn: NDArray[np.uint8] = np.clip(frames + noise, 0, 255).astype(np.uint8)
    return drawn


def shape_mask(shape: str) -> NDArray[np.bool_]:
    """Boolean [14, 14]: which pixels a shape covers."""
    size = 14
    at = np.arange(size) - (size - 1) / 2
    half = size / 2
    x, y = np.meshgrid(at, at)
    wide, high, radius = np.abs(x), np.abs(y), np.hypot(x, y)
    masks = {
        "circle": radius <= half,
        "square": np.maximum(wide, high) <= half,
        "triangle": wide <= (y + half) / 2,
        "cross": np.minimum(wide, high) <= size / 7,
        "ring": (radius <= half) & (radius >= half - size / 5),
        "bar": high <= size / 5.5,
    }
    mask: NDArray[np.bool_] = masks[shape]
    return mask


def _apart(rng: np.random.Generator, count: int) -> list[int]:
    """Cells of which no two touch, so that one shape never runs into another's token."""
    chosen: list[int] = []
    for cell in rng.permutation(GRID * GRID):
        row, column = divmod(int(cell), GRID)
        near = any(max(abs(row - c // GRID), abs(column - c % GRID)) < 2 for c in chosen)
        if not near:
            chosen.append(int(cell))
        if len(chosen) == count:
            return chosen
    return _apart(rng, count)  # the first ones blocked everything (rare, for six): start over


def _texture(rng: np.random.Generator) -> NDArray[np.int16]:
    """A still background [96, 96, 3]: smooth greyish patches and a fine grain, no strong colour."""
    coarse = rng.integers(95, 161, size=(7, 7, 1)) + rng.integers(-14, 15, size=(7, 7, 3))
    at = np.linspace(0, 6, IMAGE_SIZE)
    low = np.minimum(at.astype(int), 5)
    part = (at - low)[:, None, None]
    rows = coarse[low] * (1 - part) + coarse[low + 1] * part
    part = (at - low)[None, :, None]
    smooth = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    grain = rng.integers(-10, 11, size=(IMAGE_SIZE, IMAGE_SIZE, 1))
    texture: NDArray[np.int16] = (smooth + grain).astype(np.int16)
    return texture
