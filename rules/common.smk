"""What all rules share: the validated config.yaml, and the study that is made of it.

Input:   config.yaml; over it each file of --configfile; over all --config, of the command line or a profile
Output:  patterns    of wildcards, from the ids of the config         (halos/workflow/patterns.py)
         targets     the files that the chosen grid asks for          (halos/workflow/targets.py)
         inputs      the files that a job reads                       (halos/workflow/inputs.py)
                    and which files of a cell one job makes          (halos/workflow/batches.py)
                    and which judgements one job makes               (halos/workflow/judging.py)
         resources   what a job needs, and how its command is run     (halos/workflow/resources.py)
         share       limits of a machine without a scheduler          (halos/workflow/machine.py)
                    and what clusters need beside the rules           (halos/workflow/cluster.py)

What reruns a job: an input that is newer, another list of inputs, or another config.yaml of its folder, which
`configure` writes again only when its text changes. Whatever changes a result is therefore an input or part of a
config.yaml. What reruns nothing: resources (GPUs, nodes, memory, time, microbatches, backends, rates of calls), labels,
log files, and the text of a command. Whatever changes only how fast or where a job runs is therefore a resource, even
where it is an option of the command.
"""

import gc
import sys

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# The jobs of a large grid are millions of objects that last: to look for garbage among them less often saves a tenth.
gc.set_threshold(100_000)

sys.path.insert(0, str(workflow.basedir))

from halos.errors import HalosError
from halos.study.catalogue import load
from halos.study.checks import (
    check_classifiers,
    check_files,
    check_keys,
    check_splits,
    check_views,
    check_weights,
    overridden,
)
from halos.study.layers import typed
from halos.study.study import Study
from halos.train.trackers import check_trackers
from halos.workflow.cluster import ask_lsf_for_gpus, load_modules
from halos.workflow.inputs import Inputs
from halos.workflow.machine import refuse_nodes, share
from halos.workflow.patterns import Patterns
from halos.workflow.resources import StudyResources
from halos.workflow.targets import Targets

# Not Snakemake's own `config`: in it, a value that is laid over one entry also changes those that share its YAML anchor.
above = workflow.overwrite_configfiles
layers = [*(file for file in workflow.configfiles if file not in above), *above]
try:
    study = Study(load(*layers, typed(dict(workflow.config_settings.config))))
    check_files(study)
    check_splits(study)
    check_views(study)
    check_weights(study)
    check_classifiers(study)
except HalosError as error:
    raise WorkflowError(str(error))
if workflow.is_main_process and (line := overridden(study)) is not None:
    logger.warning(line)

patterns = Patterns(study.config)
targets = Targets(study)
inputs = Inputs(study, workflow=workflow, checkpoints=checkpoints)
resources = StudyResources(study, inputs.judging)
