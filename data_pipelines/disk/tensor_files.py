"""What the header of a safetensors file says, for readers that map the file."""

from pathlib import Path

from safetensors import safe_open


def stored_tensors(path: Path) -> dict[str, tuple[str, list[int]]]:
    """The type (``U8``, ``I64``) and shape of each tensor by its name, in the order in which the file holds them.

    Tensors are contiguous and end with the file, which the library checks. Their positions therefore follow from their
    sizes, and offsets in the header must not be trusted.
    """
    with safe_open(path, "np") as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        return {name: (str(part.get_dtype()), list(part.get_shape())) for name, part in slices.items()}
