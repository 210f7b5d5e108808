"""What the Open Inference Protocol says in JSON, both ways."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Strict, StrictBool

_Count = Annotated[int, Strict(), Field(ge=1)]

VERSION = "1"
"""Of each model: there is only the one that is loaded."""
REPLY: dict[str, Any] = {
    "model_name": "embedded",
    "model_version": "1",
    "outputs": [
        {"name": "labels", "datatype": "BYTES", "shape": [1, 2], "data": ["espresso", "pretzel"]},
        {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.138267, 0.069649]},
    ],
}


class InputParameters(BaseModel):
    binary_data_size: Annotated[int, Strict(), Field(ge=0)] | None = Field(
        None, description="How many bytes behind the JSON are the input's."
    )


class InputTensor(BaseModel):
    name: str = Field(json_schema_extra={"const": "image"})
    shape: list[int] = Field(description="Of BYTES [N] or [N, 1], of UINT8 [N, H, W, 3].")
    datatype: str = Field(json_schema_extra={"enum": ["BYTES", "UINT8"]})
    parameters: InputParameters = InputParameters()
    data: Any = Field(None, description="Flat or nested; left out where `parameters.binary_data_size` is given.")


class OutputParameters(BaseModel):
    classification: _Count | None = Field(
        None, description="Of scores or logits so many of the highest, as texts `value:index:label`."
    )
    binary_data: StrictBool | None = Field(None, description="Whether the output follows the JSON.")


class RequestedOutput(BaseModel):
    name: Literal["labels", "indices", "scores", "logits"]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(BaseModel):
    top_k: _Count = Field(5, description="How many labels at most.")
    threshold: Annotated[float, Strict(), Field(ge=0.0, le=1.0)] = Field(
        0.0, description='Least score of a label; rows that get shorter than others are filled up with "", -1 and 0.'
    )
    timeout: Annotated[int, Strict(), Field(ge=0, lt=1 << 64)] = Field(
        0, description="As X-Request-Timeout-Ms, but in microseconds; with 0 there is only the service's own limit."
    )
    binary_data_output: StrictBool = Field(False, description="Whether outputs that do not say follow the JSON.")


class InferRequest(BaseModel):
    """Parameters that are not known are ignored: Triton's clients send some that are for other kinds of models."""

    id: str = ""
    parameters: RequestParameters = RequestParameters()
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
    reason: str = Field(description="Why it is unavailable; empty if it is not.")


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


def metadata_of(model: str, classes: int) -> Metadata:
    """What goes into a model of so many classes, and what comes out."""
    outputs = {"labels": ("BYTES", -1), "indices": ("INT64", -1), "scores": ("FP32", -1), "logits": ("FP32", classes)}
    return Metadata(
        name=model,
        versions=[VERSION],
        platform="pytorch_volo",
        inputs=[TensorMetadata(name="image", datatype="BYTES", shape=[-1, 1])],
        outputs=[
            TensorMetadata(name=name, datatype=kind, shape=[-1, width]) for name, (kind, width) in outputs.items()
        ],
    )


def config_of(metadata: Metadata, most: int) -> dict[str, Any]:
    """The same as Triton's model configuration, of a model that takes ``most`` pictures in one request."""

    def told(tensor: TensorMetadata) -> dict[str, Any]:
        kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
        return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": tensor.shape[1:]}

    return {
        "name": metadata.name,
        "platform": metadata.platform,
        "max_batch_size": most,
        "input": [told(tensor) for tensor in metadata.inputs],
        "output": [told(tensor) for tensor in metadata.outputs],
    }


def state_of(name: str, ailments: Sequence[str]) -> ModelState:
    """Whether a model is ready, by what ails it."""
    state: Literal["READY", "UNAVAILABLE"] = "UNAVAILABLE" if ailments else "READY"
    return ModelState(name=name, version=VERSION, state=state, reason="; ".join(ailments))
