"""The checks, in the order of the table. Each is a function that registers itself."""

from halos.doctor.checks import environment, grid, gpus, cluster, hub, machine  # noqa: F401, I001  # in this order
