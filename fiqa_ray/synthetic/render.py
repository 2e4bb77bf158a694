"""Synthetic faces with known quality, for trials without any download.

A face is a surface with elliptical cross-sections: at height `Y` (down, skull top -1, chin +1) the points are
`X = a r(Y) sin t`, `Z = b r(Y) cos t` with longitude `t`. Features are painted on a `(Y, t)` texture. A view
turns the surface by yaw and pitch, and every output pixel looks its texture position up in closed form:

    x = r(Y) W sin(t + phi),   W = hypot(a cos yaw, b sin yaw),   phi = atan2(b sin yaw, a cos yaw),
    y = Y cos pitch - z sin pitch   (z: depth after yaw; solved for Y by fixed-point iteration)

The files are laid out like VGGFace2 (loose crops with a landmark list) and the held-out identities like LFW.
Every image's draws depend only on (seed, part, identity, image), so the files do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

_MAX_LONGITUDE = 2.7  # radians painted on each side of the nose


_PX_PER_RADIAN = 84.0


_PX_PER_UNIT = 120.0


_TEXTURE_WIDTH = int(2 * _MAX_LONGITUDE * _PX_PER_RADIAN)


_TEXTURE_HEIGHT = int(2 * _PX_PER_UNIT)


_N_PROFILE = 512


_PROFILE_HEIGHTS = np.linspace(-1, 1, _N_PROFILE)


_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


_SKIN_TONES = np.array(
    [[250, 222, 200], [240, 200, 172], [224, 176, 140], [200, 148, 110], [160, 110, 78], [122, 80, 56], [88, 58, 42]],
    np.float64,
)


_HAIR_TONES = np.array(
    [
        [28, 22, 22],
        [58, 38, 28],
        [98, 62, 38],
        [142, 92, 50],
        [206, 164, 96],
        [168, 72, 34],
        [150, 148, 146],
        [226, 222, 212],
    ],
    np.float64,
)


_IRIS_TONES = np.array(
    [[70, 42, 24], [104, 70, 34], [122, 108, 56], [70, 122, 92], [84, 132, 186], [120, 132, 146]], np.float64
)


@dataclass(frozen=True, eq=False)
class FaceIdentity:
    """What stays the same in every picture of a person. Lengths: half the head's height is 1; colours: RGB 0..255."""

    half_width: float
    depth: float
    profile: np.ndarray  # (_N_PROFILE,) float32: r(Y) for Y in [-1, 1]
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    iris_radius: float
    brow_gap: float
    brow_width: float
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    nose_y: float
    nose_width: float
    nose_bridge: float
    nose_protrusion: float
    mouth_y: float
    mouth_width: float
    lip_upper: float
    lip_lower: float
    ear_size: float
    hair_volume: float
    hair_length: float
    glasses: int  # 0 none, 1 round, 2 square
    skin_rgb: np.ndarray
    hair_rgb: np.ndarray
    brow_rgb: np.ndarray
    lip_rgb: np.ndarray
    iris_rgb: np.ndarray
    glasses_rgb: np.ndarray
    texture: np.ndarray = field(repr=False)  # (_TEXTURE_HEIGHT, _TEXTURE_WIDTH, 3) uint8: skin, marks, beard, hair


@dataclass(frozen=True)
class FaceView:
    """What changes from picture to picture. Radians: yaw > 0 turns to the image's right, pitch > 0 looks up."""

    yaw: float
    pitch: float
    roll: float
    smile: float  # [-1, 1]
    mouth_open: float  # [0, 1]
    eye_open: float  # (0, 1]
    brow_raise: float  # [-1, 1]
    gaze: float  # [-1, 1]
    light_azimuth: float
    light_elevation: float
    light_contrast: float  # [0, 1]
    exposure: float
    colour_gain: tuple[float, float, float]
    gamma: float
    face_height: float  # pixels from skull top to chin
    margin: float  # half of the picture's side over half of the face's height
    shift_x: float  # of the face centre, as a fraction of the side
    shift_y: float


def draw_identity(rng: np.random.Generator) -> FaceIdentity:
    """Draw a person: geometry, colours and the painted skin and hair."""
    u = rng.uniform
    skin_tone = u(0, len(_SKIN_TONES) - 1)
    skin = _blend_tones(_SKIN_TONES, skin_tone) + rng.normal(0, 7, 3)
    hair = _HAIR_TONES[rng.integers(len(_HAIR_TONES))] * u(0.8, 1.15) + rng.normal(0, 6, 3)
    iris = _IRIS_TONES[rng.integers(len(_IRIS_TONES))] * u(0.8, 1.2)
    lip = skin * np.array([0.92, 0.66, 0.66]) * u(0.8, 1.05) + np.array([u(0, 35), 0, u(0, 12)])
    jaw_power, jaw_taper, crown_power = u(1.7, 3.6), u(-0.06, 0.2), u(2.1, 3.0)
    heights = _PROFILE_HEIGHTS
    upper = (1 - np.abs(heights) ** crown_power) ** (1 / crown_power)
    lower = (1 - np.abs(heights) ** jaw_power) ** (1 / 2.2) * (1 - jaw_taper * np.abs(heights))
    profile = np.where(heights < 0, upper, lower).astype(np.float32)
    eye_y = u(-0.06, 0.06)
    nose_y = eye_y + u(0.3, 0.44)
    values = {
        "half_width": u(0.64, 0.8),
        "depth": u(0.78, 0.92),
        "profile": profile,
        "eye_x": u(0.26, 0.345),
        "eye_y": eye_y,
        "eye_width": u(0.1, 0.155),
        "eye_height": u(0.04, 0.085),
        "eye_tilt": u(-0.2, 0.28),
        "iris_radius": u(0.048, 0.068),
        "brow_gap": u(0.1, 0.19),
        "brow_width": u(0.13, 0.2),
        "brow_thickness": u(0.012, 0.055),
        "brow_arch": u(0.0, 0.09),
        "brow_tilt": u(-0.3, 0.35),
        "nose_y": nose_y,
        "nose_width": u(0.075, 0.165),
        "nose_bridge": u(0.025, 0.06),
        "nose_protrusion": u(0.08, 0.2),
        "mouth_y": nose_y + u(0.2, 0.31),
        "mouth_width": u(0.17, 0.29),
        "lip_upper": u(0.018, 0.06),
        "lip_lower": u(0.03, 0.085),
        "ear_size": u(0.1, 0.19),
        "hair_volume": u(0.03, 0.2),
        "hair_length": float(rng.choice([0.0, 0.0, u(0.3, 1.3)])),
        "glasses": int(rng.choice([0, 0, 0, 1, 2])),
        "skin_rgb": skin,
        "hair_rgb": hair,
        "brow_rgb": hair * u(0.55, 1.0),
        "lip_rgb": lip,
        "iris_rgb": iris,
        "glasses_rgb": np.array(
            [[24, 24, 28], [120, 76, 40], [168, 34, 40], [60, 70, 140], [190, 180, 150]], np.float64
        )[rng.integers(5)],
        "texture": np.zeros((0, 0, 3), np.uint8),
    }
    bare = FaceIdentity(**values)
    return FaceIdentity(**(values | {"texture": _paint_skin_and_hair(bare, rng)}))


def draw_view(rng: np.random.Generator) -> FaceView:
    """Draw a picture's circumstances: mostly near-frontal, some strongly turned."""
    u = rng.uniform
    yaw = float(np.clip(rng.normal(0, 0.26), -0.9, 0.9))
    pitch = float(np.clip(rng.normal(0, 0.12), -0.36, 0.36))
    warmth = rng.normal(0, 0.1)
    return FaceView(
        yaw=yaw,
        pitch=pitch,
        roll=float(rng.normal(0, 0.12)),
        smile=u(-0.5, 1.0),
        mouth_open=max(0.0, u(-0.8, 0.8)),
        eye_open=u(0.55, 1.0) if u() < 0.93 else u(0.1, 0.4),
        brow_raise=u(-0.7, 1.0),
        gaze=float(np.clip(rng.normal(0, 0.4), -1, 1)),
        light_azimuth=u(-1.3, 1.3),
        light_elevation=u(-0.1, 0.9),
        light_contrast=u(0.15, 0.6),
        exposure=u(0.75, 1.25),
        colour_gain=(1 + warmth, 1 + rng.normal(0, 0.04), 1 - warmth),
        gamma=u(0.75, 1.3),
        face_height=u(84, 150),
        margin=u(1.2, 1.5),
        shift_x=u(-0.06, 0.06),
        shift_y=u(-0.06, 0.06),
    )


def _blend_tones(tones: np.ndarray, position: float) -> np.ndarray:
    low = min(int(position), len(tones) - 2)
    return tones[low] + (position - low) * (tones[low + 1] - tones[low])


def _rgb(colour: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in np.clip(colour, 0, 255))
    return red, green, blue


def _radius(identity: FaceIdentity, y: np.ndarray) -> np.ndarray:
    return np.interp(y, _PROFILE_HEIGHTS, identity.profile)


def _texture_points(identity: FaceIdentity, points: np.ndarray) -> np.ndarray:
    """Convert frontal positions `(n, 2)` (x, Y) in head units to texture pixels `(n, 2)`."""
    reach = identity.half_width * np.maximum(_radius(identity, points[:, 1]), 0.05)
    pixels = np.empty_like(points)
    pixels[:, 0] = (
        np.arcsin(np.minimum(np.maximum(points[:, 0] / reach, -0.99), 0.99)) + _MAX_LONGITUDE
    ) * _PX_PER_RADIAN
    pixels[:, 1] = (points[:, 1] + 1) * _PX_PER_UNIT
    return pixels


def fill(image: np.ndarray, points: np.ndarray, colour: np.ndarray | float) -> None:
    """Fill a polygon, `(n, 2)` points in pixels, with a colour."""
    value = _rgb(colour) if isinstance(colour, np.ndarray) else float(colour)
    cv2.fillPoly(image, [np.round(points * (1 << _SHIFT)).astype(np.int32)], value, cv2.LINE_AA, _SHIFT)  # type: ignore[call-overload]


def stroke(image: np.ndarray, points: np.ndarray, colour: np.ndarray, thickness: int, closed: bool = False) -> None:
    """Draw a line through `(n, 2)` points in pixels."""
    fixed = np.round(points * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(image, [fixed], closed, _rgb(colour), max(1, thickness), cv2.LINE_AA, _SHIFT)


def _blend(image: np.ndarray, mask: np.ndarray, other: np.ndarray) -> None:
    """Blend `other` into `image`, both `(h, w, 3) uint8`, by `mask` `(h, w) float32` in [0, 1], in place."""
    cv2.blendLinear(other, image, mask, 1 - mask, image)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    coarse = rng.standard_normal(cells).astype(np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _paint_skin_and_hair(identity: FaceIdentity, rng: np.random.Generator) -> np.ndarray:
    u = rng.uniform
    size = (_TEXTURE_WIDTH, _TEXTURE_HEIGHT)
    # The skin's own changes are smooth: a third of the resolution will do.
    shape = (_TEXTURE_HEIGHT // 3, _TEXTURE_WIDTH // 3)
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    longitude = np.linspace(-_MAX_LONGITUDE, _MAX_LONGITUDE, shape[1], dtype=np.float32)[None, :]
    blotches = _smooth_noise(rng, shape, (9, 18)) * u(2, 9) + _smooth_noise(rng, shape, (40, 80)) * u(1, 5)
    skin = identity.skin_rgb.astype(np.float32) + blotches[..., None] * np.array([1.0, 0.8, 0.7], np.float32)
    cheek = _bump(np.abs(longitude), 0.62, 0.24) * _bump(y, identity.nose_y, 0.14) * u(0, 26)
    skin += cheek[..., None] * np.array([0.5, -0.6, -0.5], np.float32)
    socket = _bump(np.abs(longitude), identity.eye_x / identity.half_width, 0.24) * _bump(y, identity.eye_y, 0.13)
    skin *= 1 - (u(0.0, 0.22) * socket)[..., None]
    image = cv2.resize(np.clip(skin, 0, 255).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    y = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None]
    longitude = np.linspace(-_MAX_LONGITUDE, _MAX_LONGITUDE, size[0], dtype=np.float32)[None, :]

    if u() < 0.35:  # freckles
        n_freckles, colour = rng.integers(40, 160), identity.skin_rgb * np.array([0.78, 0.66, 0.58])
        spots = np.stack(
            [rng.normal(0, 0.55, n_freckles), rng.normal(identity.nose_y - 0.08, 0.13, n_freckles)], axis=1
        )
        for spot_x, spot_y in spots:
            _dot(image, spot_x, spot_y, u(0.8, 1.7), colour)
    for _ in range(rng.poisson(1.6)):  # moles
        _dot(image, rng.normal(0, 0.55), u(-0.35, 0.85), u(1.5, 3.6), identity.skin_rgb * u(0.25, 0.5))
    if u() < 0.35:  # wrinkles of the brow and beside the mouth
        dark = identity.skin_rgb * 0.74
        for level in range(rng.integers(1, 4)):
            across = np.linspace(-0.5, 0.5, 9)
            stroke(image, _at(across, -0.42 + 0.08 * level + 0.02 * np.cos(6 * across)), dark, 1)
        for side in (-1, 1):
            down = np.linspace(0, 1, 7)
            stroke(image, _at(side * (0.2 + 0.12 * down), identity.nose_y + 0.02 + 0.24 * down), dark, 2)

    strands = rng.standard_normal((6, 150)).astype(np.float32)
    tones = np.clip(identity.hair_rgb + strands[..., None] * u(6, 18), 0, 255).astype(np.uint8)
    hair = cv2.resize(tones, size, interpolation=cv2.INTER_LINEAR)
    strands = np.asarray(cv2.resize(strands, size, interpolation=cv2.INTER_LINEAR), np.float32)
    if u() < 0.3:  # beard, moustache or both
        density, above = u(0.3, 0.95), u(0.06, 0.26)
        cheek_line = identity.mouth_y - above + 0.5 * u(0.1, 0.5) * np.clip(1.0 - np.abs(longitude), 0, 1)
        jaw = _soft_step(y - cheek_line, 9) * _soft_step(1.35 - np.abs(longitude), 8)
        lip = _bump(longitude, 0, 0.32) * _bump(y, (identity.nose_y + identity.mouth_y) / 2 + 0.02, 0.07)
        mask = (jaw, lip, np.maximum(jaw, lip))[rng.integers(3)]
        _blend(
            image, mask * np.float32(density) * (0.75 + 0.25 * np.clip(strands, -1, 1)), (hair * 0.9).astype(np.uint8)
        )

    style = rng.integers(6)
    base = u(-0.62, -0.45)
    waves = u(0, 0.09) * np.sin(longitude * u(3, 9) + u(0, 6.3)) + u(0, 0.03) * np.sin(longitude * u(12, 30))
    temple = u(0.75, 1.15)
    if style == 0:  # bald or shaven
        line = np.full_like(longitude, -2.0 if u() < 0.5 else -0.75)
    elif style == 1:  # fringe
        line = u(-0.34, -0.22) + waves
    elif style == 2:  # side parting
        line = base + u(-0.35, 0.35) * longitude * 0.5 + waves
    elif style == 3:  # widow's peak
        line = base - 0.05 + 0.18 * np.exp(-((longitude / 0.22) ** 2)) + waves * 0.3
    elif style == 4:  # receding corners
        line = base - 0.22 * np.exp(-(((np.abs(longitude) - 0.45) / 0.2) ** 2)) + waves * 0.3
    else:
        line = base + waves
    if style != 0 or line.max() > -1:
        sideburn = u(0.0, 0.5) if identity.hair_length == 0 else 1.2
        line = np.where(np.abs(longitude) > temple, np.maximum(line, line + (np.abs(longitude) - temple) * 6), line)
        line = np.minimum(line, np.where(np.abs(longitude) > 2.1, 0.9, sideburn))
        _blend(image, _soft_step(line + 0.01 * strands[:1] - y, 60).astype(np.float32), hair)
    return image


def _bump(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((x - centre) / width) ** 2))


def _soft_step(x: np.ndarray, slope: float = 20.0) -> np.ndarray:
    return np.clip(0.5 + slope * x, 0, 1)


def _at(longitude: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([(longitude + _MAX_LONGITUDE) * _PX_PER_RADIAN, (y + 1) * _PX_PER_UNIT], axis=1)


def _dot(image: np.ndarray, longitude: float, y: float, radius_px: float, colour: np.ndarray) -> None:
    x, row = _at(np.array([longitude]), np.array([y]))[0]
    centre = (round(float(x) * (1 << _SHIFT)), round(float(row) * (1 << _SHIFT)))
    cv2.circle(image, centre, round(radius_px * (1 << _SHIFT)), _rgb(colour), -1, cv2.LINE_AA, _SHIFT)


def _paint_features(identity: FaceIdentity, view: FaceView) -> tuple[np.ndarray, np.ndarray]:
    """Return the person's texture with one expression painted on, and the landmarks `(5, 2)`, frontal x and Y."""
    image = identity.texture.copy()
    arc = np.linspace(0, np.pi, 12)
    ring = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    landmarks = np.zeros((5, 2))

    def on_texture(points: np.ndarray) -> np.ndarray:
        return _texture_points(identity, points)

    # Nose: its tip stands out of the surface, so in a turned view it is painted displaced by its parallax.
    tip_x = identity.nose_protrusion * np.tan(np.clip(view.yaw, -0.9, 0.9))
    tip_y = identity.nose_y - identity.nose_protrusion * np.tan(np.clip(view.pitch, -0.4, 0.4))
    top_y, width, bridge = identity.eye_y + 0.02, identity.nose_width, identity.nose_bridge
    tip = np.array([tip_x, tip_y])
    light_side = 1.0 if view.light_azimuth > 0 else -1.0
    for side in (-1, 1):
        wing = np.array([0.35 * tip_x + side * width, identity.nose_y + 0.015])
        flank = np.array(
            [
                [side * bridge * 0.4, top_y],
                [side * bridge, top_y],
                [side * bridge * 1.4 + 0.4 * tip_x, identity.nose_y - 0.12],
                wing,
                [0.6 * tip_x, identity.nose_y + 0.05],
                tip,
            ]
        )
        tint = 1.06 if side == light_side else 0.84
        fill(image, on_texture(flank), identity.skin_rgb * tint)
    fill(
        image,
        on_texture(
            np.stack([0.5 * tip_x + 0.85 * width * np.cos(arc), identity.nose_y + 0.015 + 0.055 * np.sin(arc)], 1)
        ),
        identity.skin_rgb * 0.8,
    )
    fill(
        image, on_texture(tip + 0.5 * width * np.stack([np.cos(ring), 0.8 * np.sin(ring)], 1)), identity.skin_rgb * 1.07
    )
    for side in (-1, 1):
        nostril = np.array([0.55 * tip_x + side * width * 0.52, identity.nose_y + 0.035])
        fill(
            image,
            on_texture(nostril + np.stack([0.28 * width * np.cos(ring), 0.018 * np.sin(ring)], 1)),
            identity.skin_rgb * 0.34,
        )
    landmarks[2] = tip

    for index, side in enumerate((-1, 1)):
        centre = np.array([side * identity.eye_x, identity.eye_y])
        landmarks[index] = centre
        width, height = identity.eye_width, identity.eye_height * view.eye_open
        turn = np.array([[1.0, side * -identity.eye_tilt], [0.0, 1.0]]).T
        upper = np.stack([width * np.cos(arc), -height * np.sin(arc) ** 0.8], 1)
        lower = np.stack([width * np.cos(arc[::-1]), 0.75 * height * np.sin(arc[::-1])], 1)
        lid = on_texture(centre + upper @ turn)
        almond = np.concatenate([lid, on_texture(centre + lower @ turn)])
        low, high = np.floor(almond.min(0)).astype(int) - 2, np.ceil(almond.max(0)).astype(int) + 3
        low = np.maximum(low, 0)
        patch = image[low[1] : high[1], low[0] : high[0]]
        eye = np.empty_like(patch)
        eye[:] = (238, 236, 232)
        iris = centre + np.array([view.gaze * 0.35 * width, 0.0])
        radius = identity.iris_radius
        circle = np.stack([np.cos(ring), np.sin(ring)], 1)
        fill(eye, on_texture(iris + radius * circle) - low, identity.iris_rgb)
        fill(eye, on_texture(iris + 0.45 * radius * circle) - low, np.array([12.0, 10.0, 10.0]))
        fill(
            eye,
            on_texture(iris + np.array([0.3, -0.35]) * radius + 0.22 * radius * circle) - low,
            np.array([250.0, 250.0, 250.0]),
        )
        inside = np.zeros(patch.shape[:2], np.uint8)
        fill(inside, almond - low, 255.0)
        weight = inside[..., None] * np.float32(1 / 255)
        patch[:] = (patch + weight * (eye.astype(np.float32) - patch)).astype(np.uint8)
        stroke(image, lid, identity.skin_rgb * 0.25, 2)
        crease = on_texture(centre + (upper * [1.05, 1.0] - [0, 0.035]) @ turn)
        stroke(image, crease[2:-2], identity.skin_rgb * 0.78, 1)

        along = np.linspace(-1, 1, 9)
        lift = identity.brow_gap + 0.03 * view.brow_raise + identity.eye_height
        ridge = centre[1] - lift - identity.brow_arch * (1 - along**2) - side * along * identity.brow_tilt * 0.12
        thick = identity.brow_thickness * (1 - 0.55 * np.clip(side * along, -0.2, 1))
        brow_x = centre[0] + along * identity.brow_width
        fill(
            image,
            on_texture(
                np.concatenate([np.stack([brow_x, ridge - thick], 1), np.stack([brow_x, ridge + thick], 1)[::-1]])
            ),
            identity.brow_rgb,
        )

    # Mouth: both lips as crescents between the corners; the gap shows teeth.
    width = identity.mouth_width * (1 + 0.14 * view.smile)
    corner_y = identity.mouth_y - 0.045 * view.smile
    across = np.linspace(-1, 1, 15)
    bow = 1 - across**2
    line = corner_y + 0.07 * view.smile * bow
    gap = 0.09 * view.mouth_open * bow
    cupid = 1 - 0.35 * np.exp(-((across / 0.16) ** 2))
    top = line - identity.lip_upper * np.sqrt(bow) * cupid * (1.25 - 0.25 * np.abs(across)) - 0.3 * gap
    bottom = line + gap + identity.lip_lower * np.sqrt(bow)
    mouth_x = across * width
    fill(
        image,
        on_texture(np.concatenate([np.stack([mouth_x, top], 1), np.stack([mouth_x, line - 0.3 * gap], 1)[::-1]])),
        identity.lip_rgb * 0.92,
    )
    fill(
        image,
        on_texture(np.concatenate([np.stack([mouth_x, line + gap], 1), np.stack([mouth_x, bottom], 1)[::-1]])),
        identity.lip_rgb,
    )
    if view.mouth_open > 0.05:
        fill(
            image,
            on_texture(
                np.concatenate([np.stack([mouth_x, line - 0.3 * gap], 1), np.stack([mouth_x, line + gap], 1)[::-1]])
            ),
            np.array([60.0, 22.0, 24.0]),
        )
        fill(
            image,
            on_texture(
                np.concatenate(
                    [
                        np.stack([0.8 * mouth_x, line - 0.3 * gap], 1),
                        np.stack([0.8 * mouth_x, line + 0.35 * gap], 1)[::-1],
                    ]
                )
            ),
            np.array([236.0, 232.0, 222.0]),
        )
    else:
        stroke(image, on_texture(np.stack([mouth_x, line], 1)), identity.lip_rgb * 0.45, 1)
    landmarks[3], landmarks[4] = (-width, corner_y), (width, corner_y)

    if identity.glasses:
        for side in (-1, 1):
            power = 1.0 if identity.glasses == 1 else 0.45
            rim = np.stack(
                [
                    np.sign(np.cos(ring)) * np.abs(np.cos(ring)) ** power * 0.19,
                    np.sign(np.sin(ring)) * np.abs(np.sin(ring)) ** power * 0.15,
                ],
                1,
            )
            stroke(
                image,
                on_texture(np.array([side * identity.eye_x, identity.eye_y + 0.01]) + rim),
                identity.glasses_rgb,
                3,
                closed=True,
            )
            arm = np.array(
                [
                    [side * (identity.eye_x + 0.19), identity.eye_y - 0.02],
                    [side * identity.half_width * 1.2, identity.eye_y - 0.02],
                ]
            )
            stroke(image, on_texture(arm), identity.glasses_rgb, 3)
        stroke(
            image,
            on_texture(
                np.array(
                    [[-identity.eye_x + 0.18, identity.eye_y - 0.01], [identity.eye_x - 0.18, identity.eye_y - 0.01]]
                )
            ),
            identity.glasses_rgb,
            3,
        )
    return image, landmarks


def render_face(identity: FaceIdentity, view: FaceView, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Picture one person once, undamaged.

    Args:
        identity: who.
        view: pose, expression, light and camera.
        rng: background and clothes.

    Returns:
        The loose crop, `(side, side, 3)` uint8 RGB, and the landmarks `(5, 2)` float64 in its pixels (left eye,
        right eye, nose tip, left and right mouth corner; left is the smaller x of an upright face).
    """
    texture, feature_points = _paint_features(identity, view)
    scale = view.face_height / 2  # pixels per head unit
    side = int(2 * scale * view.margin)
    cos_roll, sin_roll = np.cos(view.roll), np.sin(view.roll)
    centre = np.array([0.5 + view.shift_x, 0.5 + view.shift_y]) * side
    rotation = np.array([[cos_roll, -sin_roll], [sin_roll, cos_roll]])

    def to_picture(points: np.ndarray) -> np.ndarray:
        return np.asarray(points) @ rotation.T * scale + centre

    a, b, cos_yaw, sin_yaw = identity.half_width, identity.depth, np.cos(view.yaw), np.sin(view.yaw)
    reach, phase = np.hypot(a * cos_yaw, b * sin_yaw), np.arctan2(b * sin_yaw, a * cos_yaw)
    cos_pitch, sin_pitch = np.cos(view.pitch), np.sin(view.pitch)
    image = _paint_background(identity, view, rng, side, to_picture, reach)

    # Head frame of every pixel that the head can cover (roll, scale and shift undone).
    extent = np.array([reach * abs(cos_roll) + abs(sin_roll), reach * abs(sin_roll) + abs(cos_roll)]) * scale + 2
    left, top = np.maximum(np.floor(centre - extent), 0).astype(int)
    right, bottom = np.minimum(np.ceil(centre + extent), side).astype(int)
    dx = ((np.arange(left, right) + 0.5 - centre[0]) / scale).astype(np.float32)[None, :]
    dy = ((np.arange(top, bottom) + 0.5 - centre[1]) / scale).astype(np.float32)[:, None]
    x = np.float32(cos_roll) * dx + np.float32(sin_roll) * dy
    y = np.float32(cos_roll) * dy - np.float32(sin_roll) * dx
    depth_sin = np.float32(-a * sin_yaw * np.cos(phase) + b * cos_yaw * np.sin(phase))
    depth_cos = np.float32(a * sin_yaw * np.sin(phase) + b * cos_yaw * np.cos(phase))
    height, profile = y / np.float32(cos_pitch), identity.profile * np.float32(reach)
    lookup = np.float32((_N_PROFILE - 1) / 2)
    for step in range(4):
        row = ((np.clip(height, -1, 1) + 1) * lookup).astype(np.int16)
        half_width = np.maximum(profile[row], np.float32(1e-3))
        sine = np.clip(x / half_width, -1, 1)
        cosine = np.sqrt(1 - sine * sine)
        if step < 3:
            depth = half_width * (
                depth_sin / reach.astype(np.float32) * sine + depth_cos / reach.astype(np.float32) * cosine
            )
            height = (y + depth * np.float32(sin_pitch)) / np.float32(cos_pitch)
    map_x = (np.arcsin(sine) + np.float32(_MAX_LONGITUDE - phase)) * np.float32(_PX_PER_RADIAN) - np.float32(0.5)
    map_y = (height + 1) * np.float32(_PX_PER_UNIT) - np.float32(0.5)
    head = cv2.remap(texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    edge = np.minimum(half_width - np.abs(x), 1 - np.abs(height)) * np.float32(scale)
    alpha = np.clip(edge + np.float32(0.5), 0, 1)

    # Lambert shading on the surface's normal, then the face over the background.
    light = np.array(
        [
            np.cos(view.light_elevation) * np.sin(view.light_azimuth),
            -0.75 * np.sin(view.light_elevation),
            np.cos(view.light_elevation) * np.cos(view.light_azimuth),
        ],
        np.float32,
    )
    lambert = np.maximum(light[0] * sine + light[1] * height * np.abs(height) + light[2] * cosine, 0)
    shade = np.float32(1 - view.light_contrast) + np.float32(1.5 * view.light_contrast) * lambert
    patch = image[top:bottom, left:right]
    patch *= (1 - alpha)[..., None]
    patch += head * (alpha * shade)[..., None]

    gain = (np.asarray(view.colour_gain) * view.exposure).astype(np.float32)
    ramp = np.linspace(0, 1, 256, dtype=np.float32)
    image *= gain
    picture = np.clip(image, 0, 255, out=image).astype(np.uint8)
    picture = np.round(255 * ramp**view.gamma).astype(np.uint8)[picture]

    landmark_radius = _radius(identity, feature_points[:, 1])
    landmark_longitude = np.arcsin(np.clip(feature_points[:, 0] / (a * landmark_radius), -0.99, 0.99))
    landmark_x = landmark_radius * reach * np.sin(landmark_longitude + phase)
    landmark_depth = landmark_radius * (
        -a * sin_yaw * np.sin(landmark_longitude) + b * cos_yaw * np.cos(landmark_longitude)
    )
    landmark_y = feature_points[:, 1] * cos_pitch - landmark_depth * sin_pitch
    return picture, to_picture(np.stack([landmark_x, landmark_y], axis=1)) - 0.5


def _paint_background(
    identity: FaceIdentity,
    view: FaceView,
    rng: np.random.Generator,
    side: int,
    to_picture: Callable[[np.ndarray], np.ndarray],
    reach: float,
) -> np.ndarray:
    cells = rng.integers(2, 7)
    grey, tint = rng.uniform(40, 220), rng.normal(0, 14, 3)
    relief = rng.normal(0, rng.uniform(5, 40), (cells, cells, 1)) + rng.normal(0, 8, (cells, cells, 3))
    coarse = np.clip(grey + tint + relief, 0, 255).astype(np.float32)
    image = np.clip(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), 0, 255)
    clothes, ring = rng.uniform(30, 200) + rng.normal(0, 30, 3), np.linspace(0, 2 * np.pi, 32, endpoint=False)
    turn = np.sin(view.yaw)
    if identity.hair_length > 0:
        down = identity.hair_length
        curtain = np.array([[-1, 0], [1, 0], [1.05, down * 0.6], [0.8, down], [-0.8, down], [-1.05, down * 0.6]]) * [
            reach * 1.1,
            1.0,
        ]
        fill(image, to_picture(curtain - [0.12 * turn, 0]), identity.hair_rgb * 0.75)
    neck = 0.62 * reach
    fill(
        image,
        to_picture(np.array([[-neck, 0.4], [neck, 0.4], [neck * 1.1, 1.9], [-neck * 1.1, 1.9]]) - [0.1 * turn, 0]),
        identity.skin_rgb * 0.72,
    )
    fill(image, to_picture(np.stack([1.6 * np.cos(ring), 2.15 + 0.95 * np.sin(ring)], 1)), clothes)
    volume = identity.hair_volume
    cap = np.stack([reach * (1.02 + 0.8 * volume) * np.cos(ring), -0.2 + (0.82 + volume) * np.sin(ring)], 1)
    fill(image, to_picture(cap - [0.08 * turn, 0.12 * view.pitch]), identity.hair_rgb * 0.85)
    for ear_side in (-1, 1):
        ear_x = ear_side * identity.half_width * np.cos(view.yaw)
        if ear_side * turn < 0.35:  # the far ear hides behind the head
            ear = np.stack(
                [
                    ear_x + 0.6 * identity.ear_size * np.cos(ring),
                    identity.nose_y - 0.16 + identity.ear_size * np.sin(ring),
                ],
                1,
            )
            fill(image, to_picture(ear), identity.skin_rgb * 0.86)
    return image
