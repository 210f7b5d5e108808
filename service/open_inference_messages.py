"""What the Open Inference Protocol says in JSON, both ways."""

from typing import Any, Literal

from pydantic import BaseModel, Field

REPLY: dict[str, Any] = {
    "model_name": "embedded",
    "model_version": "1",
    "outputs": [
        {"name": "labels", "datatype": "BYTES", "shape": [1, 2], "data": ["espresso", "pretzel"]},
        {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.138267, 0.069649]},
    ],
}


class InputTensor(BaseModel):
    name: str = Field(json_schema_extra={"const": "image"})
    shape: list[int] = Field(description="Of BYTES [N] or [N, 1], of UINT8 [N, H, W, 3].")
    datatype: str = Field(json_schema_extra={"enum": ["BYTES", "UINT8"]})
    parameters: dict[str, Any] = {}
    data: Any = Field(None, description="Flat or nested; left out where `parameters.binary_data_size` is given.")


class RequestedOutput(BaseModel):
    name: Literal["labels", "indices", "scores", "logits"]
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(json_schema_extra={"minItems": 1, "maxItems": 1})
    outputs: list[RequestedOutput] | None = None


class ReplyTensor(BaseModel):
    name: str
    datatype: Literal["BYTES", "FP32", "INT64"]
    shape: list[int]
    parameters: dict[str, Any] = Field({}, description="Of a binary tensor, its `binary_data_size`.")
    data: list[Any] = Field([], description="Flat; left out of a binary tensor.")


class InferReply(BaseModel):
    model_name: str
    model_version: str
    id: str = Field("", description="The request's, if it had one.")
    outputs: list[ReplyTensor]


class Server(BaseModel):
    name: str = Field(examples=["volo"])
    version: str = Field(examples=["0.1.0"])
    extensions: list[str] = Field(examples=[["classification", "binary_tensor_data"]])


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(Ready):
    name: str = Field(examples=["embedded"])


class ModelState(BaseModel):
    name: str = Field(examples=["embedded"])
    version: str = Field(examples=["1"])
    state: Literal["READY", "UNAVAILABLE"]


class TensorMetadata(BaseModel):
    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(description="-1 is any number.", examples=[[-1, 1]])


class Metadata(BaseModel):
    name: str = Field(examples=["embedded"])
    versions: list[str] = Field(examples=[["1"]])
    platform: str = Field(examples=["pytorch_volo"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
