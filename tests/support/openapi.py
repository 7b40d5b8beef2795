"""Checks answers against the OpenAPI document: those of the local API, and those of a fake daemon that imitates it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # the package has no types

from orchestrator.api.openapi import document, schema_name
from orchestrator.api.routes import ROUTES, Route


@cache
def api_document() -> Any:  # noqa: ANN401  a JSON object of many levels
    """Return the OpenAPI document."""
    return document(ROUTES, "0")


def find_route(method: str, path: str) -> Route | None:
    """Return the route that answers a request; ``path`` may have a query. None if the API has no such route."""
    path = path.partition("?")[0]
    for route in ROUTES:
        pattern = re.sub(r"{\w+}", "[^/]+", route.path)
        if route.method == method and re.fullmatch(pattern, path):
            return route
    return None


def check_answer(method: str, path: str, status: int, data: object) -> None:
    """Assert that the document allows this JSON answer to a request; an error must be a problem document."""
    route = find_route(method, path)
    if route is None:
        assert status in {404, 405}, f"the API has no route {method} {path}"
    elif status >= 400:
        errors = {*route.common_errors, *route.errors}
        assert status in errors, f"{method} {path} does not answer {status}, only {sorted(map(int, errors))}"
    else:
        assert status == route.answer.status, f"{method} {path} answers {int(route.answer.status)}, not {status}"
        assert route.answer.json is not None, f"{method} {path} answers no JSON object"
        if route.answer.json is not dict:
            check_object(schema_name(route.answer.json), data)
    if status >= 400:
        check_object("Problem", data)


def check_event(path: str, event: str, data: object) -> None:
    """Assert that the document allows this event in the stream that ``GET path`` answers."""
    route = find_route("GET", path)
    assert route is not None, f"the API has no route GET {path}"
    kinds: Mapping[str, type] = route.answer.events
    assert event in kinds, f"GET {path} sends no event {event!r}, only {sorted(kinds)}"
    check_object(schema_name(kinds[event]), data)


def check_object(name: str, data: object) -> None:
    """Assert that a JSON object matches the schema of this name."""
    for error in _validator(name).iter_errors(data):
        raise AssertionError(f"{error.json_path}: {error.message[:300]} (schema {name})")


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    components = {"schemas": api_document()["components"]["schemas"]}
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})
