"""What the rules share: the validated config.

Input:   config.yaml, with what the command line or a profile adds
Output:  W, whose methods say what each rule reads (halos/workflow/inputs.py); ROUND, the seed of a round
"""

import sys

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from halos.errors import HalosError
from halos.study.catalogue import load
from halos.study.checks import check_files, check_keys
from halos.workflow.inputs import Workflow

try:
    CONFIG = load(dict(config))
    check_files(CONFIG)
    W = Workflow(CONFIG)
except HalosError as error:
    raise WorkflowError(str(error))

# a round of an online stage is a cell of its own, below the cell's folder
ROUND = r"\d+/round\d+"
