"""The endpoints of Inception-v3 and the sizes of their feature maps, for those who need no torch to know them.

C channels, H W map.
"""

from __future__ import annotations

# Endpoint -> C, window and stride; what has a stride or loses a border pads nothing (VALID), the rest keeps H and W.
_MAPS = {
    "Conv2d_1a_3x3": (32, 3, 2),
    "Conv2d_2a_3x3": (32, 3, 1),
    "Conv2d_2b_3x3": (64, 1, 1),
    "MaxPool_3a_3x3": (64, 3, 2),
    "Conv2d_3b_1x1": (80, 1, 1),
    "Conv2d_4a_3x3": (192, 3, 1),
    "MaxPool_5a_3x3": (192, 3, 2),
    "Mixed_5b": (256, 1, 1),
    "Mixed_5c": (288, 1, 1),
    "Mixed_5d": (288, 1, 1),
    "Mixed_6a": (768, 3, 2),
    "Mixed_6b": (768, 1, 1),
    "Mixed_6c": (768, 1, 1),
    "Mixed_6d": (768, 1, 1),
    "Mixed_6e": (768, 1, 1),
    "Mixed_7a": (1280, 3, 2),
    "Mixed_7b": (2048, 1, 1),
    "Mixed_7c": (2048, 1, 1),
}
ENDPOINTS = tuple(_MAPS)


def up_to(final_endpoint: str) -> tuple[str, ...]:
    """The endpoints from the image to this one; raises ValueError if there is none of this name."""
    if final_endpoint not in ENDPOINTS:
        raise ValueError(f"found final_endpoint {final_endpoint!r}, expected one of {', '.join(ENDPOINTS)}")
    return ENDPOINTS[: ENDPOINTS.index(final_endpoint) + 1]


def map_place(final_endpoint: str) -> tuple[int, int]:
    """(stride, margin) of an endpoint's map in a view, pixels: between two positions, and before the first one's place.

    A position's place is as wide as the stride, around the middle of the pixels that it is computed from.
    """
    stride, middle = 1, 0.0
    for endpoint in up_to(final_endpoint):
        _, window, step = _MAPS[endpoint]
        middle += (window - 1) / 2 * stride
        stride *= step
    return stride, int(middle - (stride - 1) / 2)


def map_shape(final_endpoint: str, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of an endpoint's map for views of this size, pixels; raises ValueError where the view is too small."""
    channels, size = 0, (height, width)
    for endpoint in up_to(final_endpoint):
        channels, window, stride = _MAPS[endpoint]
        size = tuple((pixels - window) // stride + 1 for pixels in size)
    if min(size) < 1:
        raise ValueError(
            f"found views of {height}x{width} (height x width), too small for {final_endpoint}; "
            "use larger images, fewer views or an earlier final_endpoint"
        )
    return channels, *size
