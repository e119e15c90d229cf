"""Signatures of functions that Snakemake calls.

It asks for one whenever it calls an input function or evaluates a resource, some hundred thousand times for a grid of a
thousand cells. What is kept with a function is not made out anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from snakemake.common import overwrite_function_params
from snakemake.resources import Resource

T = TypeVar("T")


def _keep(method: Callable[..., Any]) -> None:
    """Keep the parameters of a method, without `self`, where Snakemake looks first."""
    parameters = dict(inspect.signature(method).parameters)
    del parameters["self"]
    overwrite_function_params(method, parameters)


def signed(functions: type[T]) -> type[T]:
    """The class, each of whose own methods keeps its parameters."""
    for method in filter(inspect.isfunction, vars(functions).values()):
        _keep(method)
    return functions


_keep(Resource.evaluate)  # which Snakemake itself asks for as often as for all others
