"""`convert`, the verb that makes a model folder which can be trained of a GGUF file or of PyTorch's pickles."""

from __future__ import annotations

from pathlib import Path

from halos.errors import HalosError
from halos.models.gguf import from_gguf
from halos.models.pickles import from_pickles


def convert(source: Path, output: Path, template: str | None = None) -> None:
    """Turn a GGUF file, or a folder with pickled weights (pytorch_model.bin), into a model folder with safetensors.

    A GGUF file's weights are dequantised to float32, which does not restore the weights that the model was released
    with; its tokenizer and chat template come along. Pickles keep their types, and are read without running what they
    may hold; the folder's other files are copied.

    Args:
        source: GGUF file, or folder of a model or of adapters.
        output: model folder to write, new or empty.
        template: chat template to use instead of a GGUF file's: a name in halos/tokens/templates, or a .jinja file.

    Raises:
        HalosError: there is no such file or folder, it cannot be read, a GGUF file has no chat template, or `output`
            exists.
    """
    source = source.resolve()
    if not source.exists():
        raise HalosError(f"there is no {source}; name a .gguf file, or a folder with pytorch_model.bin")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise HalosError(f"{output} exists already; remove it or name another folder")
    if source.is_file():
        from_gguf(source, output, template)
    elif template is not None:
        raise HalosError("--template is for GGUF files; name the chat template in the model's entry of config.yaml")
    else:
        from_pickles(source, output)
