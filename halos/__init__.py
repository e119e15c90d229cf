"""halos: reproducible alignment of language models with human-centred loss functions."""

from __future__ import annotations

__version__ = "0.2.0"
