#!/usr/bin/env bash
# Snakemake runs this in the environment of evaluate.yaml that it has just made. What is sampled by transformers there has the
# attention of its training, so that kernels are needed for `attention: OWNER/NAME@COMMIT`.
set -euo pipefail

python -m pip install "kernels>=0.18.2,<0.19" || echo "kernels cannot be installed: without it"
