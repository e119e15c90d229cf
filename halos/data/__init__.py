"""From named sources to token ids.

    feedback     the record, and its files
    sources      published datasets by name, with oasst and demonstrations; reading.py has what they share
    local        files of one's own; toy.py: the offline dataset and its verifier
    prepare      mixes sources into a train and a test split
    template     chat templates
    store        every text tokenised once; selection.py picks from it (drawing.py: at random), batches.py cuts it into
                 microbatches

The sources and verifiers of the package are registered here.
"""

from halos.data import local as local
from halos.data import sources as sources
from halos.data import toy as toy
