"""halos: reproducible alignment of language models with human-centred loss functions."""

__version__ = "0.1.0"
