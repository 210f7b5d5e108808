"""Tensors of the Open Inference Protocol, in JSON or, by the binary tensor extension, behind it.

The protocol: https://github.com/kserve/open-inference-protocol. The extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service.dialects.messages import InferRequest, InputTensor
from service.errors import MalformedBody, TooManyBytes
from service.uploads import values_in

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how much of a body is JSON; binary tensors follow it."""

MOST_NUMBERS = 1_200_000
"""In the JSON: as many as the numbers of one picture of 512 x 512 pixels, and its lists. No model looks at more."""

_LENGTH = struct.Struct("<I")  # of each element of a BYTES tensor
_DATATYPES = {"FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8}


class Received(NamedTuple):
    """A request, and of each of its inputs what came behind the JSON; None where the data is in it."""

    request: InferRequest
    binaries: list[memoryview | None]


class OutputTensor(NamedTuple):
    """An output: numbers, or texts as an array of objects for BYTES."""

    name: str
    values: NDArray[Any]


@dataclass(frozen=True)
class Encoded:
    """A response's body; ``json_length`` is None where there is nothing but JSON."""

    body: bytes
    json_length: int | None


def receive(body: bytes, header_length: str | None) -> Received:
    """A request from its body and, if it was sent, the header ``HEADER_LENGTH``.

    Raises:
        MalformedBody: it is not what the protocol says.
        TooManyBytes: its JSON holds more than ``MOST_NUMBERS``.
    """
    length = len(body) if header_length is None else int(header_length) if header_length.isdecimal() else -1
    if not 0 <= length <= len(body):
        raise MalformedBody(f"{HEADER_LENGTH} is no length within the body.")
    if values_in(memoryview(body)[:length]) > MOST_NUMBERS:
        raise TooManyBytes(f"The JSON holds more than {MOST_NUMBERS:,} values; send the pixels as a binary tensor.")
    try:
        request = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MalformedBody(f"The JSON is no inference request: {where}: {first['msg']}") from None
    rest, binaries = memoryview(body)[length:], list[memoryview | None]()
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size
        if size is None:
            binaries.append(None)
            continue
        if size > len(rest):
            raise MalformedBody(f"The input {tensor.name:.80} says a binary_data_size that did not come.")
        binaries.append(rest[:size])
        rest = rest[size:]
    if len(rest):
        raise MalformedBody(f"{len(rest)} bytes follow that belong to no input.")
    return Received(request, binaries)


def texts(tensor: InputTensor, binary: memoryview | None) -> list[bytes] | list[str]:
    """The elements of a BYTES tensor: bytes of a binary one, texts of one in JSON.

    Raises:
        MalformedBody: they are not as many as the shape says, or are something else.
    """
    elements = _split(binary) if binary is not None else _flattened(tensor.data)
    if len(elements) != _count(tensor) or not all(isinstance(each, str | bytes) for each in elements):
        raise MalformedBody(f"The input {tensor.name:.80} does not hold the texts that its shape says.")
    return elements


def pixels(tensor: InputTensor, binary: memoryview | None) -> NDArray[np.uint8]:
    """The values of a UINT8 tensor, in its shape.

    Raises:
        MalformedBody: they are not as many as the shape says, or are something else.
    """
    try:
        values = np.array(tensor.data) if binary is None else np.frombuffer(binary, np.uint8)
        # numpy itself would cut fractions off, and read texts as numbers
        if values.size != _count(tensor) or values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
            raise ValueError
    except ValueError:
        raise MalformedBody(f"The input {tensor.name:.80} does not hold the numbers that its shape says.") from None
    return values.astype(np.uint8, copy=False).reshape(tensor.shape)


def encode(head: dict[str, Any], outputs: Sequence[OutputTensor], binary: Sequence[bool]) -> Encoded:
    """A response with ``head`` and outputs, each as JSON or behind it."""
    told, tail = [], []
    for output, behind in zip(outputs, binary, strict=True):
        is_text = output.values.dtype == object
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": "BYTES" if is_text else _datatype(output.values),
            "shape": list(output.values.shape),
        }
        flat = output.values.ravel()
        if behind:
            tail.append(_joined(flat.tolist()) if is_text else flat.tobytes())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = flat.tolist()
        told.append(entry)
    text = json.dumps({**head, "outputs": told}).encode()
    return Encoded(b"".join([text, *tail]), len(text) if tail else None)


def _datatype(values: NDArray[Any]) -> str:
    return next(name for name, kind in _DATATYPES.items() if values.dtype == kind)


def _count(tensor: InputTensor) -> int:
    return math.prod(tensor.shape) if all(side >= 0 for side in tensor.shape) else -1


def _flattened(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return []
    return [each for part in data for each in (part if isinstance(part, list) else [part])]


def _split(binary: memoryview) -> list[bytes]:
    elements = []
    while len(binary):
        if len(binary) < _LENGTH.size:
            raise MalformedBody("A BYTES tensor ends within the length of an element.")
        (length,) = _LENGTH.unpack(binary[: _LENGTH.size])
        element, binary = binary[_LENGTH.size :][:length], binary[_LENGTH.size + length :]
        if len(element) != length:
            raise MalformedBody("A BYTES tensor ends within an element.")
        elements.append(bytes(element))
    return elements


def _joined(elements: Sequence[str]) -> bytes:
    encoded = [each.encode() for each in elements]
    return b"".join(_LENGTH.pack(len(each)) + each for each in encoded)
