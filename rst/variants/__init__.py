"""Variants of the sharp step, one short file each: the gate, γ/ρ and everything else apply to them as to SAM."""

from typing import Any

from rst.variants.asam import ASAM
from rst.variants.esam import ESAM
from rst.variants.gsam import GSAM
from rst.variants.looksam import LookSAM
from rst.variants.ssam import SSAMD, SSAMF
from rst.variants.variant import SAM, Variant

__all__ = ["ASAM", "ESAM", "GSAM", "SAM", "SSAMD", "SSAMF", "LookSAM", "Variant", "variant_of"]

NAMES: dict[str, type[Variant]] = {
    "sam": SAM,
    "asam": ASAM,
    "gsam": GSAM,
    "looksam": LookSAM,
    "esam": ESAM,
    "ssam_f": SSAMF,
    "ssam_d": SSAMD,
}


def variant_of(variant: str | Variant, **options: Any) -> Variant:
    """A variant by its name, with options in place of its defaults; or the variant itself."""
    if isinstance(variant, Variant):
        return variant
    if variant not in NAMES:
        raise ValueError(f"variant {variant!r} is unknown: write one of {', '.join(NAMES)}, or an instance.")
    return NAMES[variant](**options)
