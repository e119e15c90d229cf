#!/usr/bin/env bash
# Snakemake runs this in the environment of train.yaml that it has just made: flash-attn, for `attention:
# flash_attention_2`, is built against the torch that is there. Where there is no CUDA compiler, or the build fails, the
# environment does without it. To have it: load your site's CUDA module, then `snakemake --sdm conda
# --conda-create-envs-only`.
set -euo pipefail

if ! command -v nvcc >/dev/null; then
    echo "no nvcc: without flash-attn"
    exit 0
fi

# what its build imports, and ninja, without which it compiles for hours
python -m pip install ninja packaging psutil setuptools wheel
python -m pip install --no-build-isolation flash-attn==2.8.3.post2 || echo "flash-attn cannot be built: without it"
