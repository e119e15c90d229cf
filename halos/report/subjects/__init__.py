"""The subjects of the report, one a file: importing this package registers them all."""

import importlib
import pkgutil

from halos.report.subject import SUBJECTS as SUBJECTS

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
