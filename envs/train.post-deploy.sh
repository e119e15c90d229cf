#!/usr/bin/env bash
# Snakemake runs this in the environment of train.yaml that it has just made, and what cannot be installed is left out.
# Prebuilt: kernels, for `attention: OWNER/NAME@COMMIT`, and liger-kernel, for `liger: true`. flash-attn, for `attention:
# flash_attention_2`, is built against the torch that is there, by a CUDA compiler. To have it: load your site's CUDA
# module, then `snakemake --sdm conda --conda-create-envs-only`.
set -euo pipefail

python -m pip install "kernels>=0.18.2,<0.19" || echo "kernels cannot be installed: without it"
python -m pip install --no-deps liger-kernel==0.8.5 || echo "liger-kernel cannot be installed: without it"

if ! command -v nvcc >/dev/null; then
    echo "no nvcc: without flash-attn"
    exit 0
fi

# what its build imports, and ninja, without which it compiles for hours
python -m pip install ninja packaging psutil setuptools wheel
python -m pip install --no-build-isolation flash-attn==2.8.3.post2 || echo "flash-attn cannot be built: without it"
