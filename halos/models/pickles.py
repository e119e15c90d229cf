"""Weights in PyTorch's pickles, turned into safetensors one file at a time."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from halos.errors import HalosError
from halos.files import read_json, whole, write_json
from halos.models.download import PICKLES, model_files

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".index.json"


def from_pickles(source: Path, output: Path) -> None:
    """Write the model or adapters of a folder with its weights as safetensors, in the types that they have.

    Memory holds the weights of one file.

    Args:
        source: folder with pytorch_model.bin, its numbered parts and their index, or adapter_model.bin.
        output: folder to write; it must not exist.

    Raises:
        HalosError: there are no such files, a part is missing, or a file holds more than weights.
    """
    from safetensors.torch import save_file

    files = pickles(source)
    if not files:
        raise HalosError(f"{source} holds no weights as pytorch_model.bin or adapter_model.bin; name another folder")
    with whole(output) as folder:
        folder.mkdir()
        for file in model_files(source):
            if not file.name.endswith(f".bin{INDEX}") and file.suffix != ".safetensors":
                (folder / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / file.relative_to(source))
        place: dict[str, str] = {}
        size = 0
        for file in files:
            weights = _separate(read_pickle(file))
            name = file.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
            save_file(weights, folder / name, {"format": "pt"})
            place |= dict.fromkeys(weights, name)
            size += sum(weight.nbytes for weight in weights.values())
        if len(files) > 1:
            write_json(folder / f"model.safetensors{INDEX}", {"metadata": {"total_size": size}, "weight_map": place})


def pickles(folder: Path) -> list[Path]:
    """The files of weights as pickles in a folder, or those that its index names.

    Raises:
        HalosError: the index cannot be read, or one that it names is not there.
    """
    index = folder / f"pytorch_model.bin{INDEX}"
    if not index.is_file():
        return [file for pattern in PICKLES if (file := folder / pattern).is_file()]
    place = read_json(index).get("weight_map")
    if not isinstance(place, dict) or not place:
        raise HalosError(f"{index} names no files of weights (weight_map); download the model again")
    files = [folder / name for name in sorted({*map(str, place.values())})]
    for file in files:
        if not file.is_file():
            raise HalosError(f"{file} is missing, which {index.name} names; download the model again")
    return files


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The weights in a pickle, mapped into memory where its format allows that. Nothing that it holds is run.

    Raises:
        HalosError: it is no pickle of torch, or holds anything else.
    """
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise HalosError(
            f"{file} is refused: it is no pickle of weights alone{what}, and to read what else it holds could run any "
            "program; ask its authors for safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise HalosError(f"{file} cannot be read ({' '.join(str(error).split())}); download it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise HalosError(f"{file} does not hold weights by their names; choose a model in the layout of transformers")
    return content


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights none of which shares memory with another, as safetensors wants them: tied ones are copied."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, weight in weights.items():
        memory = weight.untyped_storage().data_ptr()
        separate[name] = weight.clone() if memory in seen else weight
        separate[name] = separate[name].contiguous()
        seen.add(memory)
    return separate
