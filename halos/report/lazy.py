"""choix, matplotlib, pandas and scipy, each imported when it is first used.

The workflow asks the subjects which figures a grid has whenever it starts, in every one of its jobs, and draws nothing:
it does not wait for these libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import choix
    import matplotlib as mpl
    import pandas as pd
    import scipy
    import scipy.optimize
    import scipy.sparse.csgraph
    import scipy.special
    import scipy.stats
else:
    import importlib

    class _Lazy:
        """A module under its name; a submodule is an attribute, imported as well."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> object:
            module = importlib.import_module(self._name)
            return getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{self._name}.{name}")

    choix, mpl, pd, scipy = map(_Lazy, ("choix", "matplotlib", "pandas", "scipy"))

__all__ = ["choix", "mpl", "pd", "scipy"]
