"""Reads updates."""

import json

import numpy as np


def tensors(path):
    """The tensors of a safetensors file of F32, by name."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = file.read()
    fields = sorted(((n, f) for n, f in header.items() if n != "__metadata__"), key=lambda of: of[1]["data_offsets"])
    return {n: np.frombuffer(data[slice(*f["data_offsets"])], np.float32).reshape(f["shape"]) for n, f in fields}
