"""Ways of making networks smaller: what can be decided about a network, and what a decision does.

Above this room nothing knows what an option does to a network. `space_of` says what can be decided,
`carry_out` makes the model of a decision.
"""

from rlprune.schemes.apply import carry_out, cut_kernels, removal_of
from rlprune.schemes.base import Scheme, Site
from rlprune.schemes.profits import profitable_schemes
from rlprune.schemes.registry import asked_schemes, check_schemes, scheme_named
from rlprune.schemes.sites import (
    CHANNEL_ONLY,
    costs,
    other_sites,
    space_of,
    space_with,
    unpruned_settings,
    variants,
    whole_space,
    without_effect,
)
from rlprune.schemes.space import Form, Space, formed

__all__ = [
    "CHANNEL_ONLY",
    "Form",
    "Scheme",
    "Site",
    "Space",
    "asked_schemes",
    "carry_out",
    "check_schemes",
    "costs",
    "cut_kernels",
    "formed",
    "other_sites",
    "profitable_schemes",
    "removal_of",
    "scheme_named",
    "space_of",
    "space_with",
    "unpruned_settings",
    "variants",
    "whole_space",
    "without_effect",
]
