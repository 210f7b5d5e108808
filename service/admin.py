"""What only those who run the service may do: load a model anew."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from service.access import admin_only
from service.errors import InvalidParameter, ReloadFailed, Unauthorized, UnknownModel
from service.inference import Models
from service.problems import documented
from service.process import Refused


class ReloadQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | SkipJsonSchema[None] = Field(None, description="Which model; all of them if none is named.")


class Reloaded(BaseModel):
    reloaded: list[str] = Field(
        description="The models that answer from their new weights now.", examples=[["embedded"]]
    )


def create_router(models: Models, key: str) -> APIRouter:
    """The routes for those who know the administrator's key."""
    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(admin_only(key))])

    @router.post(
        "/reload",
        summary="Load weights anew",
        response_description="The new weights answer.",
        responses=documented(Unauthorized, UnknownModel, InvalidParameter, ReloadFailed),
    )
    async def reload(request: Request, query: Annotated[ReloadQuery, Query()]) -> Reloaded:
        """They are loaded from where they came from, beside the old ones, and take over between two runs.

        It answers when the new weights do. If they cannot be loaded, the old ones go on.
        """
        name = None if query.model is None else models.name(query.model)
        try:
            return Reloaded(reloaded=await request.app.state.reload(name))
        except Refused as refusal:
            raise ReloadFailed(f"{str(refusal).rstrip('.')}. The weights before it go on.") from None

    return router
