"""The OpenAPI document as a page to read: ``python -m service.apidoc > docs/api.md``."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from service.app import create_app
from service.errors import ClientGone
from service.problems import MEDIA_TYPE, STATUS
from service.settings import Settings

Node = dict[str, Any]


def contract() -> Node:
    """The whole OpenAPI document, with all that settings can leave out of it."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    wanted = {"api_keys": SecretStr("key"), "admin_key": SecretStr("admin"), "rate_limit": 1.0}
    settings = Settings(**{**defaults, **wanted})
    return create_app(settings, dict.fromkeys(settings.sources, Path())).openapi()


def page(document: Node) -> str:
    """The document in Markdown."""
    return "\n\n".join(_parts(document)) + "\n"


def _parts(document: Node) -> Iterator[str]:
    yield "# The HTTP interface"
    yield "<!-- made by `python -m service.apidoc > docs/api.md` -->"
    yield document["info"]["description"].strip()
    yield (
        "Where keys are set, show one as `Authorization: Bearer KEY` or as `X-API-Key: KEY`. "
        "Every path answers OPTIONS, and HEAD where it answers GET."
    )
    yield "An error:"
    malformed = document["paths"]["/predict"]["post"]["responses"]["400"]["content"][MEDIA_TYPE]["examples"]
    yield _json(malformed["malformed_body"]["value"])
    for tag in document["tags"]:
        operations = [
            (method, path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if operation["tags"][0] == tag["name"]
        ]
        yield f"## {tag['name'][0].upper()}{tag['name'][1:]}"
        yield tag["description"]
        for method, path, operation in operations:
            yield f"### {method.upper()} {path}"
            yield from _operation(document, operation)
    yield "## Errors"
    yield _table(
        ("status", "code", "means", "for example"),
        [
            (str(status), f"`{kind.code}`", kind.title, kind.example)
            for kind, status in STATUS.items()
            if kind is not ClientGone  # nobody reads it
        ],
    )


def _operation(document: Node, operation: Node) -> Iterator[str]:
    needs = "" if "security" in operation else " Needs no key."
    yield f"{operation['summary']}. {operation.get('description', '')}".rstrip() + needs
    if parameters := operation.get("parameters"):
        yield _table(
            ("parameter", "in", "type", "default", "meaning"),
            [
                (
                    f"`{each['name']}`",
                    each["in"],
                    _type(document, each["schema"]),
                    _shown(each["schema"].get("default")),
                    each.get("description", ""),
                )
                for each in parameters
            ],
        )
    if body := operation.get("requestBody"):
        yield "Body: " + ", ".join(f"`{kind}`" for kind in body["content"]) + "."
        for kind, content in body["content"].items():
            yield from _content(document, kind, content)
    for status, response in operation["responses"].items():
        if MEDIA_TYPE not in response["content"] and not _codes(response):
            yield f"**{status}**: {response['description']}"
            for kind, content in response["content"].items():
                yield from _content(document, kind, content)
    yield "Errors: " + "; ".join(_told_errors(operation)) + "."
    yield from _own_error(operation)


def _told_errors(operation: Node) -> Iterator[str]:
    for status, response in operation["responses"].items():
        if codes := _codes(response):
            yield f"{status} " + ", ".join(f"`{code}`" for code in codes)


def _codes(response: Node) -> list[str]:
    return [code for content in response["content"].values() for code in content.get("examples", {})]


def _own_error(operation: Node) -> Iterator[str]:
    """An error of a protocol that tells errors in its own words."""
    for response in operation["responses"].values():
        for example in response["content"].get("application/json", {}).get("examples", {}).values():
            yield f"In this protocol's words: `{json.dumps(example['value'])}`"
            return


def _content(document: Node, kind: str, content: Node) -> Iterator[str]:
    """The fields and an example of what is in a body; of bytes and texts there is nothing to tell."""
    schema = content.get("schema", {})
    tables = [_fields_table(document, each) for each in schema.get("anyOf", [schema])]
    if any(tables):
        yield f"`{kind}`:"
        yield "\n\nor\n\n".join(filter(None, tables))
    if example := content.get("example", _resolved(document, schema).get("example")):
        yield _json(example)


def _fields_table(document: Node, schema: Node) -> str:
    rows = list(_fields(document, schema))
    return _table(("field", "type", "meaning"), rows) if rows else ""


def _fields(document: Node, schema: Node, at: str = "") -> Iterator[tuple[str, str, str]]:
    schema = _resolved(document, schema)
    if "items" in schema:
        yield from _fields(document, schema["items"], f"{at}[]")
    for name, found in schema.get("properties", {}).items():
        field = _resolved(document, found)
        path = f"{at}.{name}".lstrip(".")
        optional = "" if name in schema.get("required", []) else ", optional"
        yield f"`{path}`", _type(document, field) + optional, field.get("description", "")
        yield from _fields(document, field, path)


def _resolved(document: Node, schema: Node) -> Node:
    """A schema without references, and of those that may be null what else they may be."""
    for each in schema.get("anyOf", []):
        if each.get("type") != "null":
            return {**schema, **_resolved(document, each), "anyOf": []}
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Node = document["components"]["schemas"][reference.rpartition("/")[2]]
    return {**found, **{name: value for name, value in schema.items() if name != "$ref"}}


def _type(document: Node, schema: Node) -> str:
    schema = _resolved(document, schema)
    if choices := schema.get("enum"):
        return " or ".join(f"`{choice}`" for choice in choices)
    if "const" in schema:
        return f"`{schema['const']}`"
    name = str(schema.get("format", schema.get("type", "any")))
    name = {"binary": "file", "byte": "base64"}.get(name, name)
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} numbers"
    if name == "array":
        return f"array of {_type(document, schema.get('items', {}))}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_type(document, values)}"
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"{name}, {low:g} to {high:g}" if low is not None and high is not None else name


def _shown(default: object) -> str:
    return "" if default is None else f"`{json.dumps(default)}`"


def _table(titles: tuple[str, ...], rows: list[Any]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _json(value: object) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    in_a_row = re.sub(r"\[\s+[^][{}]+\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    return f"```json\n{in_a_row}\n```"


if __name__ == "__main__":
    print(page(contract()), end="")
