"""Families of models: one folder each. Everything that depends on the kind of model is here."""

from .anima import ANIMA
from .base.family import Family
from .flux2_klein import FLUX2_KLEIN
from .registry import all_families, find_family, register
from .sd1 import SD1
from .sd2 import SD2
from .sdxl import SDXL
from .z_image import Z_IMAGE

register(SD1)
register(SD2)
register(SDXL)
register(FLUX2_KLEIN)
register(ANIMA)
register(Z_IMAGE)

__all__ = ["Family", "all_families", "find_family", "register"]
