"""What all rules share: the validated config.yaml, and the study that is made of it.

Input:   config.yaml, with what the command line or a profile adds
Output:  patterns    of wildcards, from the ids of the config         (halos/workflow/patterns.py)
         targets     the files that the chosen grid asks for          (halos/workflow/targets.py)
         inputs      the files that a job reads                       (halos/workflow/inputs.py)
         resources   what a job needs, and how its command is run     (halos/workflow/resources.py)

What reruns a job: an input that is newer, another list of inputs, or another config.yaml of its folder, which
`configure` writes again only when its text changes. Whatever changes a result is therefore an input or part of a
config.yaml. What reruns nothing: resources (GPUs, nodes, memory, time, microbatches, backends, rates of calls), labels,
log files, and the text of a command. Whatever changes only how fast or where a job runs is therefore a resource, even
where it is an option of the command.
"""

import sys

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from halos.errors import HalosError
from halos.study.catalogue import load
from halos.study.checks import check_classifiers, check_files, check_keys, check_splits
from halos.study.study import Study
from halos.workflow.inputs import Inputs
from halos.workflow.patterns import Patterns
from halos.workflow.resources import StudyResources
from halos.workflow.targets import Targets

try:
    study = Study(load(dict(config)))
    check_files(study)
    check_splits(study)
except HalosError as error:
    raise WorkflowError(str(error))

patterns = Patterns(study.config)
targets = Targets(study)
inputs = Inputs(study)
resources = StudyResources(study)
