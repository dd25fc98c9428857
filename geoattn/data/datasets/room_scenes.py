"""Furnished rooms and laid tables, made at random out of boxes, round bodies and balls.

A piece of furniture is a list of solids around its own origin on the floor, z up, its front towards +y; `moved` puts it
somewhere. All lengths are metres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geoattn.data.datasets.room_sensors import BALL, BOX, GRAIN, OPEN, PLAIN, PRINT, ROUND, Solid

Array = NDArray[Any]
Piece = list[Solid]
Rng = np.random.Generator

LABELS = ("wall", "floor", "ceiling", "table", "chair", "sofa", "shelf", "clutter")
WALL, FLOOR, CEILING, TABLE, CHAIR, SOFA, SHELF, CLUTTER = range(len(LABELS))


class Paint(NamedTuple):
    """How a surface looks: two colours [3] and how they are mixed."""

    color: Array
    other: Array
    pattern: int = PLAIN


class Scene(NamedTuple):
    """What there is to scan.

    Attributes:
        solids: All bodies.
        size: Width, depth and height of the room; of a lone table those of its surroundings.
        targets: What cameras look at, [T, 3].
    """

    solids: Piece
    size: Array
    targets: Array


def wooden(rng: Rng) -> Paint:
    """Wood, from pale to dark, sometimes painted."""
    if rng.random() < 0.3:
        return painted(rng)
    color = np.array([0.72, 0.52, 0.34]) * rng.uniform(0.35, 1.25) + rng.normal(size=3) * 0.03
    return Paint(color, color * rng.uniform(0.7, 0.95), GRAIN)


def painted(rng: Rng) -> Paint:
    """Plain: mostly grey, white or black, else any colour."""
    grey = rng.choice([rng.uniform(0.02, 0.3), rng.uniform(0.3, 0.8), rng.uniform(0.8, 0.97)])
    color = np.full(3, grey) if rng.random() < 0.6 else rng.random(3)
    return Paint(color + rng.normal(size=3) * 0.02, color)


def printed(rng: Rng) -> Paint:
    """Packages and covers: two colours in patches, or plain."""
    return Paint(rng.random(3), rng.random(3), PRINT if rng.random() < 0.7 else PLAIN)


def box(center: ArrayLike, size: ArrayLike, label: int, paint: Paint) -> Solid:
    """An upright box."""
    return Solid(BOX, np.array(center, float), np.eye(3), np.array(size, float) / 2, label, *paint)


def post(center: ArrayLike, radius: float, height: float, label: int, paint: Paint) -> Solid:
    """An upright cylinder."""
    return Solid(ROUND, np.array(center, float), np.eye(3), np.array([radius, radius, height / 2]), label, *paint)


def ball(center: ArrayLike, size: ArrayLike, label: int, paint: Paint) -> Solid:
    """An upright ellipsoid."""
    return Solid(BALL, np.array(center, float), np.eye(3), np.array(size, float) / 2, label, *paint)


def cup(center: ArrayLike, radius: float, height: float, taper: float, label: int, paint: Paint) -> Solid:
    """A vessel without a lid."""
    return Solid(OPEN, np.array(center, float), np.eye(3), np.array([radius, radius, height / 2]), label, *paint, taper)


def turn(axis: int | np.integer[Any], angle: float) -> Array:
    """The rotation [3, 3] by ``angle`` about a coordinate axis."""
    rotation = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation[i, i] = rotation[j, j] = np.cos(angle)
    rotation[j, i], rotation[i, j] = np.sin(angle), -np.sin(angle)
    return rotation


def moved(piece: Piece, place: ArrayLike, rotation: Array) -> Piece:
    """The piece turned about its origin, which then is at ``place``."""
    return [
        solid._replace(center=rotation @ solid.center + np.asarray(place), axes=rotation @ solid.axes)
        for solid in piece
    ]


def extent(piece: Piece) -> tuple[Array, Array]:
    """The lowest and highest coordinates of a piece, [3] each."""
    center = np.stack([solid.center for solid in piece])
    wide = np.array([1 + abs(solid.taper) for solid in piece])[:, None] * np.stack([s.half for s in piece])
    reach = np.einsum("nij,nj->ni", np.abs(np.stack([solid.axes for solid in piece])), wide)
    return (center - reach).min(0), (center + reach).max(0)


def table(rng: Rng, size: tuple[float, float] | None = None, height: float | None = None) -> Piece:
    """A table or desk of one of five builds."""
    wide, deep = size or (rng.uniform(0.6, 2.0), rng.uniform(0.5, 1.0))
    height = height or rng.choice([rng.uniform(0.68, 0.8), rng.uniform(0.35, 0.5)], p=[0.8, 0.2])
    thick, paint, frame = rng.uniform(0.015, 0.05), wooden(rng), wooden(rng)
    under = height - thick
    build = rng.choice(["legs", "panels", "pedestal", "round", "drawers"])
    if build == "round":
        radius = min(wide, deep) * 0.6
        piece = [post([0, 0, height - thick / 2], radius, thick, TABLE, paint)]
        wide = deep = 1.4 * radius
    else:
        piece = [box([0, 0, height - thick / 2], [wide, deep, thick], TABLE, paint)]
    if build == "pedestal" or (build == "round" and rng.random() < 0.6):
        piece += [
            post([0, 0, under / 2], rng.uniform(0.03, 0.07), under, TABLE, frame),
            post([0, 0, 0.02], min(wide, deep) * 0.35, 0.04, TABLE, frame),
        ]
    elif build == "panels":
        piece += [box([s * (wide / 2 - 0.03), 0, under / 2], [0.03, deep * 0.9, under], TABLE, paint) for s in (-1, 1)]
        piece += [box([0, -deep * 0.4, under * 0.65], [wide - 0.08, 0.02, under * 0.5], TABLE, paint)]
    else:
        leg = rng.uniform(0.015, 0.04)
        shape = rng.random() < 0.5
        for x in (-1, 1):
            for y in (-1, 1):
                at = [x * (wide / 2 - leg - 0.02), y * (deep / 2 - leg - 0.02), under / 2]
                piece.append(
                    post(at, leg, under, TABLE, frame) if shape else box(at, [2 * leg, 2 * leg, under], TABLE, frame)
                )
        if build == "drawers":
            side = rng.choice([-1, 1])
            piece.append(
                box([side * (wide / 2 - 0.24), 0, under / 2 + 0.04], [0.4, deep * 0.9, under - 0.08], TABLE, frame)
            )
    return piece


def chair(rng: Rng) -> Piece:
    """A chair, stool, office chair or bench seat; its back is at -y."""
    wide, deep, seat = rng.uniform(0.38, 0.5), rng.uniform(0.38, 0.5), rng.uniform(0.42, 0.5)
    paint, frame = (wooden(rng), wooden(rng)) if rng.random() < 0.6 else (painted(rng), painted(rng))
    thick, top = rng.uniform(0.02, 0.08), seat + rng.uniform(0.3, 0.55)
    cushion = [seat_of(rng, wide, deep, seat, thick, paint)]
    build = rng.choice(["legs", "office", "stool"], p=[0.6, 0.25, 0.15])
    under = seat - thick
    if build == "office":
        piece = cushion + [post([0, 0, under / 2 + 0.04], 0.03, under - 0.08, CHAIR, frame)]
        for spoke in range(5):
            piece += moved([box([0, 0.15, 0.07], [0.04, 0.3, 0.04], CHAIR, frame)], [0, 0, 0], turn(2, spoke * 1.2566))
            piece += moved(
                [ball([0, 0.29, 0.03], [0.05, 0.05, 0.06], CHAIR, frame)], [0, 0, 0], turn(2, spoke * 1.2566)
            )
    else:
        leg = rng.uniform(0.012, 0.025)
        piece = cushion + [
            post([x * (wide / 2 - leg), y * (deep / 2 - leg), under / 2], leg, under, CHAIR, frame)
            for x in (-1, 1)
            for y in (-1, 1)
        ]
    if build == "stool":
        return piece
    lean = turn(0, rng.uniform(0.0, 0.25))
    gap = rng.choice([0.0, rng.uniform(0.08, 0.2)])
    back: Piece = []
    if rng.random() < 0.6:
        high = top - seat - gap
        back.append(box([0, 0, gap + high / 2], [wide * 0.95, 0.03, high], CHAIR, paint))
        back += [post([s * wide * 0.42, 0, (top - seat) / 2], 0.015, top - seat, CHAIR, frame) for s in (-1, 1)]
    else:
        count = rng.integers(3, 7)
        back += [
            box([x, 0, (top - seat) / 2], [0.025, 0.02, top - seat], CHAIR, frame)
            for x in np.linspace(-wide / 2 + 0.02, wide / 2 - 0.02, count)
        ]
        back.append(box([0, 0, top - seat - 0.04], [wide, 0.025, 0.09], CHAIR, frame))
    piece += moved(back, [0, -deep / 2 + 0.01, seat - 0.01], lean)
    if rng.random() < 0.25:
        for s in (-1, 1):
            piece.append(box([s * wide / 2, 0, seat + 0.2], [0.04, deep * 0.8, 0.03], CHAIR, frame))
            piece.append(box([s * wide / 2, deep * 0.35, seat + 0.09], [0.03, 0.03, 0.2], CHAIR, frame))
    return piece


def seat_of(rng: Rng, wide: float, deep: float, height: float, thick: float, paint: Paint) -> Solid:
    """The seat of a chair, square or round."""
    if rng.random() < 0.75:
        return box([0, 0, height - thick / 2], [wide, deep, thick], CHAIR, paint)
    return post([0, 0, height - thick / 2], wide / 2, thick, CHAIR, paint)


def sofa(rng: Rng) -> Piece:
    """A sofa, armchair or bed against -y."""
    paint = painted(rng)
    if rng.random() < 0.3:  # a bed
        wide, long, high = rng.uniform(0.9, 1.8), rng.uniform(1.9, 2.1), rng.uniform(0.35, 0.6)
        cover = painted(rng)
        piece = [
            box([0, 0, high * 0.3], [wide, long, high * 0.6], SOFA, wooden(rng)),
            box([0, 0, high * 0.75], [wide - 0.04, long - 0.04, high * 0.5], SOFA, cover),
            box([0, -long / 2, high], [wide, 0.05, 2 * high], SOFA, wooden(rng)),
        ]
        pillows = (-0.25, 0.25) if wide > 1.3 else (0.0,)
        return piece + [
            ball([x * wide, -long / 2 + 0.3, high + 0.05], [0.55, 0.4, 0.18], SOFA, painted(rng)) for x in pillows
        ]
    wide, deep = rng.uniform(0.8, 2.2), rng.uniform(0.75, 0.95)
    seat, top, arm = rng.uniform(0.38, 0.46), rng.uniform(0.7, 0.95), rng.uniform(0.1, 0.22)
    piece = [
        box([0, 0, seat * 0.35 + 0.03], [wide, deep, seat * 0.6], SOFA, paint),
        box([0, -deep / 2 + 0.1, top / 2 + 0.03], [wide, 0.2, top - 0.06], SOFA, paint),
    ]
    piece += [box([s * (wide - arm) / 2, 0, 0.32], [arm, deep, 0.56], SOFA, paint) for s in (-1, 1)]
    seats = max(round((wide - 2 * arm) / 0.65), 1)
    each = (wide - 2 * arm) / seats
    cushion = paint if rng.random() < 0.6 else painted(rng)
    for i in range(seats):
        x = -wide / 2 + arm + (i + 0.5) * each
        piece.append(box([x, 0.09, seat - 0.03], [each - 0.015, deep - 0.2, 0.16], SOFA, cushion))
        if rng.random() < 0.5:
            loose = [ball([0, 0, 0], [0.42, 0.16, 0.4], SOFA, painted(rng))]
            piece += moved(loose, [x, -deep / 2 + 0.3, seat + 0.2], turn(0, 0.3))
    return piece


def shelf(rng: Rng, height: float) -> Piece:
    """A bookcase with books and things in it, a cupboard or a chest of drawers, its back at -y."""
    wide, deep = float(rng.uniform(0.5, 1.4)), float(rng.uniform(0.25, 0.5))
    high = min(rng.choice([rng.uniform(0.7, 1.2), rng.uniform(1.6, 2.3)]), height - 0.1)
    paint, board = wooden(rng), 0.022
    if rng.random() < 0.35:
        doors = rng.integers(1, 4)
        front = paint if rng.random() < 0.6 else wooden(rng)
        piece = [box([0, 0, high / 2], [wide, deep, high], SHELF, paint)]
        for i in range(doors):
            at = (i + 0.5) / doors * wide - wide / 2
            piece.append(box([at, deep / 2, high / 2], [wide / doors - 0.01, 0.03, high - 0.06], SHELF, front))
            knob = [at + 0.35 * wide / doors, deep / 2 + 0.03, high * 0.55]
            piece.append(ball(knob, [0.03] * 3, SHELF, painted(rng)))
        return piece
    piece = [box([s * wide / 2, 0, high / 2], [board, deep, high], SHELF, paint) for s in (-1, 1)]
    if rng.random() < 0.7:
        piece.append(box([0, -deep / 2, high / 2], [wide, 0.012, high], SHELF, paint))
    levels = np.linspace(0.06, high - board / 2, max(int(high / rng.uniform(0.3, 0.45)), 2) + 1).tolist()
    for level, above in zip(levels, [*levels[1:], high + 0.35], strict=True):
        piece.append(box([0, 0, level], [wide, deep, board], SHELF, paint))
        room, x = above - level - 0.03, 0.02 - wide / 2
        if rng.random() < 0.2 or level + 0.3 > height:
            continue
        while x < wide / 2 - 0.1:  # rows of books, things, gaps
            what = rng.choice(["books", "thing", "gap"], p=[0.55, 0.2, 0.25])
            if what == "books":
                run = min(rng.uniform(0.1, 0.5), wide / 2 - 0.02 - x)
                while run > 0.02:
                    book = [min(rng.uniform(0.015, 0.06), run), rng.uniform(0.6, 0.9) * deep]
                    tall = min(rng.uniform(0.15, 0.32), room)
                    spot = [x + book[0] / 2, (book[1] - deep) / 2 + 0.02, level + (board + tall) / 2]
                    piece.append(box(spot, [*book, tall], CLUTTER, printed(rng)))
                    x, run = x + float(book[0]), run - float(book[0])
            elif what == "thing":
                thing = small_thing(rng)
                low, top = extent(thing)
                if top[2] - low[2] < room and top[0] - low[0] < wide / 2 - 0.02 - x and top[1] - low[1] < deep:
                    piece += moved(thing, [x - low[0], -(low[1] + top[1]) / 2, level + board / 2 - low[2]], np.eye(3))
                    x += float(top[0] - low[0])
            else:
                x += float(rng.uniform(0.05, 0.3))
    return piece


def small_thing(rng: Rng) -> Piece:
    """Something that stands on a table or lies there."""
    what = rng.choice(
        ["package", "books", "cup", "bottle", "bowl", "ball", "lamp", "laptop", "plant", "tin", "screen", "lying"],
        p=[0.24, 0.12, 0.1, 0.09, 0.07, 0.05, 0.05, 0.05, 0.06, 0.07, 0.04, 0.06],
    )
    return _THINGS[str(what)](rng)


def _package(rng: Rng) -> Piece:
    size = np.sort(rng.uniform([0.03, 0.06, 0.1], [0.1, 0.22, 0.32]))
    size = size if rng.random() < 0.6 else rng.permutation(size)  # mostly upright
    return [box([0, 0, size[2] / 2], size, CLUTTER, printed(rng))]


def _books(rng: Rng) -> Piece:
    piece: Piece = []
    top = 0.0
    for _ in range(rng.integers(1, 5)):
        size = [rng.uniform(0.12, 0.24), rng.uniform(0.17, 0.32), rng.uniform(0.01, 0.05)]
        book = [box([0, 0, size[2] / 2], size, CLUTTER, printed(rng))]
        piece += moved(book, [*rng.normal(size=2) * 0.01, top], turn(2, rng.normal() * 0.2))
        top += size[2]
    return piece


def _cup(rng: Rng) -> Piece:
    radius, high = rng.uniform(0.03, 0.05), rng.uniform(0.07, 0.14)
    return [cup([0, 0, high / 2], radius, high, rng.uniform(0, 0.2), CLUTTER, printed(rng))]


def _bottle(rng: Rng) -> Piece:
    radius, high, paint = rng.uniform(0.025, 0.05), rng.uniform(0.12, 0.24), painted(rng)
    neck = rng.uniform(0.04, 0.1)
    return [
        post([0, 0, high / 2], radius, high, CLUTTER, printed(rng)),
        post([0, 0, high + neck / 2], radius * 0.4, neck, CLUTTER, paint),
        ball([0, 0, high], [2 * radius, 2 * radius, 0.05], CLUTTER, paint),
    ]


def _bowl(rng: Rng) -> Piece:
    radius, high = rng.uniform(0.06, 0.14), rng.uniform(0.04, 0.1)
    return [cup([0, 0, high / 2], radius, high, rng.uniform(0.1, 0.5), CLUTTER, printed(rng))]


def _ball(rng: Rng) -> Piece:
    size = rng.uniform(0.05, 0.24)
    squash = size * rng.uniform(0.7, 1, size=3)
    return [ball([0, 0, squash[2] / 2], squash, CLUTTER, printed(rng))]


def _lamp(rng: Rng) -> Piece:
    high, paint = rng.uniform(0.25, 0.55), painted(rng)
    return [
        post([0, 0, 0.015], rng.uniform(0.06, 0.1), 0.03, CLUTTER, paint),
        post([0, 0, high / 2], 0.012, high, CLUTTER, paint),
        cup([0, 0, high], rng.uniform(0.08, 0.16), 0.18, -rng.uniform(0.1, 0.5), CLUTTER, painted(rng)),
    ]


def _laptop(rng: Rng) -> Piece:
    wide, deep, paint = rng.uniform(0.28, 0.38), rng.uniform(0.2, 0.26), painted(rng)
    lid = [box([0, 0, deep / 2], [wide, 0.008, deep], CLUTTER, paint)]
    return [
        box([0, 0, 0.01], [wide, deep, 0.02], CLUTTER, paint),
        *moved(lid, [0, -deep / 2, 0.02], turn(0, rng.uniform(0, 0.6))),
    ]


def _screen(rng: Rng) -> Piece:
    wide, high, paint = rng.uniform(0.4, 0.7), rng.uniform(0.28, 0.4), painted(rng)
    return [
        box([0, 0, 0.01], [0.22, 0.18, 0.02], CLUTTER, paint),
        box([0, -0.02, 0.12], [0.05, 0.03, 0.22], CLUTTER, paint),
        box([0, 0.01, 0.12 + high / 2], [wide, 0.03, high], CLUTTER, paint),
    ]


def _plant(rng: Rng) -> Piece:
    radius, high = rng.uniform(0.05, 0.12), rng.uniform(0.08, 0.2)
    piece = [cup([0, 0, high / 2], radius, high, rng.uniform(0, 0.3), CLUTTER, painted(rng))]
    green = np.array([0.2, 0.45, 0.15]) * rng.uniform(0.6, 1.4)
    for _ in range(rng.integers(5, 14)):
        size = rng.uniform([0.02, 0.05, 0.01], [0.06, 0.16, 0.02]) * radius / 0.08
        leaf = ball([0, size[1] / 2, 0], size, CLUTTER, Paint(green + rng.normal(size=3) * 0.03, green))
        way = turn(2, rng.uniform(0, 6.28)) @ turn(0, rng.uniform(-0.3, 1.4))
        piece += moved([leaf], [0, 0, high * rng.uniform(0.9, 1.8)], way)
    return piece


def _tin(rng: Rng) -> Piece:
    radius, high = rng.uniform(0.03, 0.13), rng.uniform(0.04, 0.18)
    return [post([0, 0, high / 2], radius, high, CLUTTER, printed(rng))]


def _lying(rng: Rng) -> Piece:
    """Something round that lies on its side, or a package that leans."""
    if rng.random() < 0.5:
        radius = rng.uniform(0.02, 0.06)
        return moved(
            [post([0, 0, 0], radius, rng.uniform(0.1, 0.3), CLUTTER, printed(rng))], [0, 0, radius], turn(0, np.pi / 2)
        )
    piece = moved(_package(rng), [0, 0, 0], turn(rng.integers(2), rng.uniform(0.1, 1.2)))
    return moved(piece, [0, 0, -extent(piece)[0][2]], np.eye(3))


_THINGS: dict[str, Callable[[Rng], Piece]] = {
    "package": _package,
    "books": _books,
    "cup": _cup,
    "bottle": _bottle,
    "bowl": _bowl,
    "ball": _ball,
    "lamp": _lamp,
    "laptop": _laptop,
    "plant": _plant,
    "tin": _tin,
    "screen": _screen,
    "lying": _lying,
}


def floor_thing(rng: Rng) -> Piece:
    """Something that stands on the floor: a carton, a bin, a bag, a floor lamp, a large plant, a pile of books."""
    what = rng.choice(["carton", "bin", "bag", "lamp", "plant", "small"], p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.15])
    if what == "carton":
        size = rng.uniform([0.2, 0.2, 0.15], [0.6, 0.5, 0.5])
        brown = Paint(np.array([0.6, 0.45, 0.3]), np.array([0.5, 0.36, 0.24]), PRINT)
        return [box([0, 0, size[2] / 2], size, CLUTTER, brown if rng.random() < 0.6 else printed(rng))]
    if what == "bin":
        radius, high = rng.uniform(0.1, 0.2), rng.uniform(0.25, 0.6)
        return [cup([0, 0, high / 2], radius, high, rng.uniform(0, 0.2), CLUTTER, painted(rng))]
    if what == "bag":
        size = rng.uniform([0.25, 0.15, 0.3], [0.45, 0.3, 0.5])
        return [ball([0, 0, size[2] * 0.45], size, CLUTTER, painted(rng))]
    if what == "small":
        return small_thing(rng)
    piece = _lamp(rng) if what == "lamp" else _plant(rng)
    scale = rng.uniform(2.2, 3.0)
    return [solid._replace(center=solid.center * scale, half=solid.half * scale) for solid in piece]


def lay(rng: Rng, low: Array, high: Array, level: float, count: int | np.integer[Any], round_: bool = False) -> Piece:
    """Up to ``count`` things, beside or on each other, on a level rectangle from ``low`` to ``high`` or its disc."""
    piece: Piece = []
    taken: list[tuple[Array, Array, float]] = []
    for _ in range(count):
        thing = moved(small_thing(rng), [0, 0, 0], turn(2, rng.uniform(0, 2 * np.pi)))
        below, above = extent(thing)
        if taken and rng.random() < 0.12:  # on something flat
            start, end, top = taken[rng.integers(len(taken))]
            middle = (start + end) / 2
            if top > 0 and (above - below)[:2].max() < 1.6 * (end - start).min():
                piece += moved(thing, [*(middle - (below + above)[:2] / 2), top - below[2]], np.eye(3))
            continue
        for _ in range(6):
            if (above - below)[:2].max() > 0.9 * (high - low).min():
                break
            place = rng.uniform(low - below[:2], high - above[:2])
            start, end = place + below[:2], place + above[:2]
            if round_ and np.linalg.norm(np.maximum(np.abs(start), np.abs(end))) > high[0]:
                continue
            if any((start < e).all() and (end > s).all() for s, e, _ in taken):
                continue
            piece += moved(thing, [*place, level - below[2]], np.eye(3))
            flat = len(thing) == 1 and thing[0].kind == BOX and abs(thing[0].axes[2, 2]) > 0.999
            taken.append((start, end, level + above[2] - below[2] if flat else 0.0))
            break
    return piece


def laid_table(rng: Rng, count: int | np.integer[Any], size: tuple[float, float] | None = None) -> Piece:
    """A table with up to ``count`` things on it."""
    piece = table(rng, size)
    top = piece[0]
    half, level = top.half[:2] * 0.95, float(top.center[2] + top.half[2])
    return piece + lay(rng, -half, half, level, count, round_=top.kind == ROUND)


def _overlap(one: Array, other: Array) -> bool:
    """Whether two rectangles [4, 2] have a point in common."""
    for shape in (one, other):
        for edge in (shape[1] - shape[0], shape[2] - shape[1]):
            a, b = one @ edge, other @ edge
            if a.max() < b.min() or b.max() < a.min():
                return False
    return True


class _Plan:
    """Pieces on a floor of some width and depth, none of which overlaps another."""

    def __init__(self, size: Array, blocks: list[Array]) -> None:
        self.size, self.taken = size, blocks
        self.solids: Piece = []

    def put(self, piece: Piece, x: float, y: float, angle: float, over: Array | None = None) -> bool:
        """Add a piece if there is room for it; it may overlap the one of ``taken`` that is given."""
        low, high = (end[:2] for end in extent(piece))
        corner = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
        shape = corner @ turn(2, angle)[:2, :2].T + [x, y]
        if (shape < 0.02).any() or (shape > self.size[:2] - 0.02).any():
            return False
        if any(other is not over and _overlap(shape, other) for other in self.taken):
            return False
        self.taken.append(shape)
        self.solids += moved(piece, [x, y, 0], turn(2, angle))
        return True

    def put_at_wall(self, rng: Rng, piece: Piece) -> bool:
        """Somewhere with its back to a wall."""
        low = extent(piece)[0]
        for _ in range(20):
            side = rng.integers(4)
            along = self.size[side % 2] * rng.random()
            gap = 0.03 + rng.exponential(0.03) - low[1]
            x, y, angle = [
                (along, gap, 0.0),
                (self.size[0] - gap, along, np.pi / 2),
                (along, self.size[1] - gap, np.pi),
                (gap, along, -np.pi / 2),
            ][side]
            if self.put(piece, x, y, angle + rng.normal() * 0.02):
                return True
        return False

    def put_freely(self, rng: Rng, piece: Piece) -> tuple[float, float, float] | None:
        """Anywhere; returns where."""
        for _ in range(20):
            x, y = rng.random(2) * self.size[:2]
            angle = rng.integers(4) * np.pi / 2 + rng.normal() * rng.choice([0.03, 0.5])
            if self.put(piece, x, y, angle):
                return x, y, angle
        return None


def furnished_room(rng: Rng) -> Scene:
    """A room of 2.5 to 8 m: a third L-shaped, doors and windows in its walls, most with a ceiling."""
    size = np.array([*rng.uniform(2.5, 6.0, size=2), rng.uniform(2.3, 3.2)])
    if rng.random() < 0.3:
        size[0] += 2.0
    shell, blocks = _shell(rng, size)
    plan = _Plan(size, blocks)
    area = size[0] * size[1]

    for _ in range(rng.integers(0, 3 + int(area / 8))):
        plan.put_at_wall(rng, shelf(rng, size[2]))
    if rng.random() < 0.6:
        plan.put_at_wall(rng, sofa(rng))
    for _ in range(rng.integers(1, 3 + int(area / 8))):
        piece = laid_table(rng, rng.integers(0, 12))
        wide, deep = extent([piece[0]])[1][:2]
        found = None
        if rng.random() < 0.35:
            plan.put_at_wall(rng, piece)
        else:
            found = plan.put_freely(rng, piece)
        if found is not None and piece[0].center[2] > 0.6:
            _set_chairs(rng, plan, found, wide, deep)
    for _ in range(rng.integers(1, 3 + int(area / 8))):
        plan.put_freely(rng, chair(rng))
    for _ in range(rng.integers(1, 3 + int(area / 5))):
        (plan.put_at_wall if rng.random() < 0.5 else plan.put_freely)(rng, floor_thing(rng))
    targets = np.stack([solid.center for solid in plan.solids] or [size / 2])
    return Scene(shell + plan.solids, size, targets)


def _set_chairs(rng: Rng, plan: _Plan, place: tuple[float, float, float], wide: float, deep: float) -> None:
    """Chairs of one kind along the sides of the last table, of half size ``wide`` by ``deep``, some tucked under it."""
    x, y, angle = place
    under = plan.taken[-1]
    kind = int(rng.integers(2**31))
    for side in range(4):
        half, out = ((wide, deep), (deep, wide))[side % 2]
        for along in np.arange(-half + 0.3, half - 0.2, 0.6):
            if rng.random() < 0.2:
                continue
            facing = angle + side * np.pi / 2
            spot = turn(2, facing) @ [along, -out - rng.uniform(0.0, 0.45), 0] + [x, y, 0]
            piece = chair(np.random.default_rng(kind))
            plan.put(piece, spot[0], spot[1], facing + rng.normal() * 0.15, over=under)


def _shell(rng: Rng, size: Array) -> tuple[Piece, list[Array]]:
    """Floor, walls with openings, ceiling; and where nothing can stand, as rectangles [4, 2]."""
    wide, deep, high = size
    paint = Paint(np.clip(rng.uniform(0.6, 0.97) + rng.normal(size=3) * 0.05, 0, 1), np.ones(3))
    ground = wooden(rng) if rng.random() < 0.5 else painted(rng)
    solids = [box([wide / 2, deep / 2, -0.1], [wide + 0.6, deep + 0.6, 0.2], FLOOR, ground)]
    if rng.random() < 0.75:
        white = Paint(np.full(3, rng.uniform(0.8, 0.98)), np.ones(3))
        solids.append(box([wide / 2, deep / 2, high + 0.1], [wide + 0.6, deep + 0.6, 0.2], CEILING, white))
    blocks = []
    if rng.random() < 0.35:  # L-shaped: one corner of the rectangle is full
        notch = size[:2] * rng.uniform(0.25, 0.5, size=2)
        corner = rng.integers(2, size=2) * (size[:2] - notch)
        middle = corner + notch / 2
        solids.append(box([*middle, high / 2], [*notch, high], WALL, paint))
        blocks.append(corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * notch)
    elif rng.random() < 0.2:  # a pillar
        middle, half = rng.uniform(0.3, 0.7, size=2) * size[:2], rng.uniform(0.1, 0.25)
        solids.append(box([*middle, high / 2], [2 * half, 2 * half, high], WALL, paint))
        blocks.append(middle + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]))
    for side in range(4):
        length, across = (wide, deep) if side % 2 == 0 else (deep, wide)
        color = paint if rng.random() < 0.85 else painted(rng)
        wall = _wall(rng, length, high, color)
        turned = turn(2, side * np.pi / 2)
        middle = np.array([wide / 2, deep / 2, 0])
        solids += moved(wall, middle - turned @ [0, across / 2, 0], turned)
    return solids, blocks


def _wall(rng: Rng, length: float, high: float, paint: Paint) -> Piece:
    """A wall along x around the origin, its inside at y = 0, with doors, windows, radiators, curtains and a picture."""
    thick = rng.uniform(0.1, 0.3)
    start, end = -length / 2 - thick, length / 2 + thick
    piece: Piece = []
    x = start
    free = -length / 2
    while free < length / 2 - 1.2 and rng.random() < 0.6:
        left = free + rng.uniform(0.15, 1.5)
        door = rng.random() < 0.45
        opening, bottom, top = (
            (rng.uniform(0.75, 1.0), 0.0, rng.uniform(1.95, 2.1))
            if door
            else (rng.uniform(0.6, 1.8), rng.uniform(0.7, 1.0), rng.uniform(1.9, 2.2))
        )
        right = left + opening
        if right > length / 2 - 0.1:
            break
        piece.append(box([(x + left) / 2, -thick / 2, high / 2], [left - x, thick, high], WALL, paint))
        middle = (left + right) / 2
        piece.append(box([middle, -thick / 2, (top + high) / 2], [opening, thick, high - top], WALL, paint))
        if bottom:
            piece.append(box([middle, -thick / 2, bottom / 2], [opening, thick, bottom], WALL, paint))
            frame = painted(rng)
            if rng.random() < 0.7:
                piece.append(box([middle, -thick * 0.7, (bottom + top) / 2], [0.06, 0.06, top - bottom], WALL, frame))
            if rng.random() < 0.5:
                piece.append(
                    box([middle, 0.06, bottom / 2 + 0.05], [opening * 0.8, 0.1, bottom * 0.65], CLUTTER, frame)
                )
            if rng.random() < 0.3:
                for edge in (left, right):  # curtains
                    piece.append(box([edge, 0.07, top / 2 + 0.1], [0.3, 0.08, top], CLUTTER, painted(rng)))
        elif rng.random() < 0.75:  # closed
            piece.append(box([middle, -thick * 0.6, top / 2], [opening, 0.05, top], WALL, wooden(rng)))
        x = free = right
    piece.append(box([(x + end) / 2, -thick / 2, high / 2], [end - x, thick, high], WALL, paint))
    if rng.random() < 0.4 and length / 2 - free > 1.0:
        size = rng.uniform([0.3, 0.3], [1.0, 0.8])
        at = [rng.uniform(free + size[0] / 2, length / 2 - size[0] / 2), 0.015, rng.uniform(1.3, 1.7)]
        piece.append(box(at, [size[0], 0.03, size[1]], CLUTTER, printed(rng)))
    return piece


def table_top(rng: Rng) -> Scene:
    """A table with many things on it, for cameras that see little else."""
    piece = laid_table(rng, rng.integers(2, 22), (rng.uniform(0.7, 2.0), rng.uniform(0.6, 1.2)))
    top = piece[0]
    level = float(top.center[2] + top.half[2])
    solids = [*piece]
    if rng.random() < 0.6:
        solids.append(box([0, 0, -0.1], [6, 6, 0.2], FLOOR, wooden(rng)))
    if rng.random() < 0.4:
        wall = box([0, -float(top.half[1]) - rng.uniform(0.02, 0.6) - 0.1, 1.2], [6, 0.2, 2.4], WALL, painted(rng))
        solids.append(wall)
    if rng.random() < 0.4:
        angle = rng.uniform(-0.6, 0.6)
        solids += moved(chair(rng), [rng.uniform(-0.3, 0.3), top.half[1] + 0.25, 0], turn(2, np.pi + angle))
    spread = rng.uniform(-0.4, 0.4, size=(8, 2)) * top.half[:2]
    return Scene(solids, np.array([3.0, 3.0, 2.4]), np.column_stack([spread, np.full(8, level)]))
