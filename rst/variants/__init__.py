"""Variants of the sharp step, a file each. The gate and c = γ/ρ apply to all of them as to SAM (Sections B.5, B.6)."""

from typing import Any

from rst.variants.asam import ASAM
from rst.variants.esam import ESAM
from rst.variants.friendly import FriendlySAM
from rst.variants.gsam import GSAM
from rst.variants.looksam import LookSAM
from rst.variants.ssam import SSAMD, SSAMF
from rst.variants.variant import SAM, Closure, Variant

__all__ = [
    "ASAM",
    "ESAM",
    "GSAM",
    "SAM",
    "SSAMD",
    "SSAMF",
    "Closure",
    "FriendlySAM",
    "LookSAM",
    "Variant",
    "variant_of",
]

NAMES: dict[str, type[Variant]] = {
    "sam": SAM,
    "asam": ASAM,
    "gsam": GSAM,
    "looksam": LookSAM,
    "friendly": FriendlySAM,
    "esam": ESAM,
    "ssam_f": SSAMF,
    "ssam_d": SSAMD,
}
"""The names that ``variant=`` takes, and what they stand for."""


def variant_of(variant: str | Variant, **options: Any) -> Variant:
    """The variant of that name, built with these options; an instance of `Variant` is returned as it is.

    Raises ValueError for an unknown name or an option outside its range, TypeError for an option that the variant does
    not have.

    Example:
        >>> rst.variants.variant_of("looksam", k=2).k
        2
        >>> print(*rst.variants.NAMES)
        sam asam gsam looksam friendly esam ssam_f ssam_d
    """
    if isinstance(variant, Variant):
        return variant
    if variant not in NAMES:
        raise ValueError(
            f"variant {variant!r} is unknown: write one of {', '.join(NAMES)}, or an instance of rst.variants.Variant."
        )
    return NAMES[variant](**options)
