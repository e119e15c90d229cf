"""What clusters need beside the resources of rules: environment modules, and LSF's options for GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

LSF_GPUS = "lsf_gpus"
"""The resource of a profile that holds bsub's options for GPUs, with {gpus} in place of their number."""


def load_modules(rules: Iterable[Any], modules: Iterable[str]) -> None:
    """Let each rule load modules before its command, where `--sdm env-modules` says that modules are loaded.

    Args:
        rules: Snakemake's rules.
        modules: the names of the modules, in their order; none leaves the rules as they are.
    """
    from snakemake.deployment.env_modules import EnvModules

    if names := tuple(modules):
        for rule in rules:
            rule.env_modules = EnvModules(*names)


def ask_lsf_for_gpus(rules: Iterable[Any]) -> None:
    """Let jobs with GPUs ask LSF for as many, under a profile that says how (`lsf_gpus`); others are left as they are.

    LSF's plugin passes the resource `lsf_extra` on to bsub, and does nothing with `gpus`.

    Args:
        rules: Snakemake's rules, with the resources of the profile.
    """
    from snakemake.resources import Resource

    for rule in rules:
        if {LSF_GPUS, "gpus"} <= rule.resources.keys():
            rule.resources["lsf_extra"] = Resource("lsf_extra", partial(_options, dict(rule.resources)))


def _options(
    resources: dict[str, Any], wildcards: Any, input: Any, attempt: int, threads: int, rulename: str, async_run: Any
) -> str:
    """A job's options of bsub, given its rule's resources: `lsf_extra` and, if it has GPUs, `lsf_gpus`."""
    job = {"input": input, "attempt": attempt, "threads": threads, "rulename": rulename, "async_run": async_run}
    always, on_gpus, gpus = (
        resources[name].evaluate(wildcards, **job).value if name in resources else ""
        for name in ("lsf_extra", LSF_GPUS, "gpus")
    )
    return f"{always} {on_gpus.replace('{gpus}', str(gpus))}".strip() if gpus else str(always)
