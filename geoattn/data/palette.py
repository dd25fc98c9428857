"""One fixed set of colours for integer labels, shared by files and pictures."""

import numpy as np
import numpy.typing as npt

LABEL_COLORS: npt.NDArray[np.uint8] = np.array(
    [
        [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66],
        [0, 114, 178], [213, 94, 0], [204, 121, 167], [135, 0, 240],
        [75, 60, 15], [45, 30, 150], [210, 240, 210], [0, 255, 135],
        [105, 0, 90], [225, 0, 75], [165, 120, 255], [180, 165, 75],
        [210, 195, 225], [135, 0, 60], [210, 0, 180], [120, 90, 120],
        [135, 195, 120], [135, 75, 0], [150, 45, 210], [225, 165, 165],
    ],
    dtype=np.uint8,
)  # fmt: skip
"""RGB of label ``i`` in row ``i``, ``[24, 3]``, sRGB 0..255.

The first seven are the palette of Okabe and Ito (2008) without black. The others were added one by one, each
the colour farthest (CIE 1976 distance in Lab) from those before it, in normal vision and in the protanopia,
deuteranopia and tritanopia of Machado et al. (2009). No two are closer than 14.9; the first seven alone reach
16.1.
"""

UNLABELED_COLOR: npt.NDArray[np.uint8] = np.array([128, 128, 128], dtype=np.uint8)
"""RGB of negative labels ("no label")."""


def label_colors(label: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The colour of each label: ``[N]`` integers to ``[N, 3]`` RGB.

    Labels from 24 on start the palette again; negative labels are grey.
    """
    label = np.asarray(label)
    return np.where((label < 0)[:, None], UNLABELED_COLOR, LABEL_COLORS[label % len(LABEL_COLORS)])


_SCALAR_STOPS = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)  # viridis at 0, 1/4, 1/2, 3/4, 1


def scalar_colors(scalar: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The colour of each scalar: ``[N]`` numbers to ``[N, 3]`` RGB, smallest to largest along viridis."""
    scalar = np.asarray(scalar, dtype=np.float64)
    low, high = float(scalar.min()), float(scalar.max())
    t = (scalar - low) / (high - low) if high > low else np.full(scalar.shape, 0.5)
    stops = np.linspace(0, 1, len(_SCALAR_STOPS))
    return np.stack([np.interp(t, stops, channel) for channel in _SCALAR_STOPS.T], axis=1).round().astype(np.uint8)
