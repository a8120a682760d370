"""Describes the server's interface as an OpenAPI document, which tools turn into clients."""

from __future__ import annotations

from typing import Any

from ppxcls.deploy.answer_limits import NO_LIMITS, AnswerLimits
from ppxcls.deploy.predict import DEFAULT_TOPK
from ppxcls.serving.bodies import BodyLimits

_INTERFACE_VERSION = "1"  # of the interface; a stranger need not know that of the package
_BASE64 = {
    "type": "string",
    "description": "An image file in base64, or a data URI such as data:image/jpeg;base64,...",
}
_TOPK = {
    "type": "integer",
    "minimum": 1,
    "default": DEFAULT_TOPK,
    "description": "Number of classes in an answer.",
}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_PREDICTION: dict[str, Any] = {
    "type": "object",
    "required": ["class_ids", "scores", "label_names"],
    "properties": {
        "class_ids": {"type": "array", "items": {"type": "integer"}, "description": "The best class first."},
        "scores": {"type": "array", "items": {"type": "number"}},
        "label_names": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Names of these classes; empty if the classes have no names.",
        },
    },
}
_FILE = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string"}}}
_PREDICTIONS = {
    "type": "object",
    "required": ["predictions"],
    "properties": {
        "predictions": {
            "type": "array",
            "description": "One entry for each image, in their order.",
            "items": {
                "allOf": [_FILE],
                "oneOf": [
                    {"$ref": "#/components/schemas/Prediction"},
                    {"$ref": "#/components/schemas/Error"},
                ],
            },
        }
    },
}


def openapi_document(
    limits: BodyLimits, queue: int, answer_limits: AnswerLimits = NO_LIMITS
) -> dict[str, Any]:
    """Returns the OpenAPI document of a server.

    Args:
        limits: limits of a request.
        queue: largest number of waiting images.
        answer_limits: limits of what an answer says beside its best classes.
    """
    either = {
        "oneOf": [
            {"$ref": "#/components/schemas/Prediction"},
            {"$ref": "#/components/schemas/Predictions"},
        ]
    }
    errors = {
        "400": "The request has no image, or its form or JSON is invalid.",
        "403": "A web page of another origin.",
        "408": "The body came too slowly.",
        "413": f"More than {limits.size:,} bytes or {limits.images} images.",
        "415": "A content type or Content-Encoding that is not supported.",
        "421": "Another host name than this server's.",
        "422": "No image of the request can be decoded.",
        "500": "The model failed.",
        "503": f"More than {queue} images are waiting, or no memory or connection is free; "
        "try again after Retry-After seconds.",
        "504": "There was no answer in time.",
    }
    responses = {status: {"description": text, "content": _json("Error")} for status, text in errors.items()}
    responses["422"]["content"] = _json("Error", "Predictions")
    answer = {
        "description": "The classes of the image; predictions of a form with several files, or of images.",
        "content": {"application/json": {"schema": either}},
    }
    operation = {
        "operationId": "predict",
        "summary": "Classify one or several images",
        "description": "The body may be packed: Content-Encoding gzip or deflate.",
        "parameters": [{"name": "topk", "in": "query", "required": False, "schema": _TOPK}],
        "requestBody": {"required": True, "content": _bodies(limits)},
        "responses": {"200": answer, **responses},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "ppxcls", "version": _INTERFACE_VERSION},
        "paths": {
            "/predict": {"post": operation},
            "/healthz": {"get": _get("State and model of the server", "application/json")},
            "/metrics": {"get": _get("Metrics for Prometheus", "text/plain")},
        },
        "components": {
            "schemas": {
                "Prediction": _prediction(answer_limits),
                "Predictions": _PREDICTIONS,
                "Error": _ERROR,
            }
        },
    }


def _prediction(answer_limits: AnswerLimits) -> dict[str, Any]:
    """Returns the schema of a prediction, with what the server was started to answer."""
    schemas: dict[str, dict[str, Any]] = {
        "known": {"type": "boolean"},
        "class_set": {"type": "array", "items": {"type": "integer"}},
    }
    properties = {
        key: {**schemas[key], "description": promise} for key, promise in answer_limits.promises.items()
    }
    if "class_set" in properties:
        properties["class_set_names"] = {**_PREDICTION["properties"]["label_names"]}
    return {
        **_PREDICTION,
        "required": [*_PREDICTION["required"], *properties],
        "properties": {**_PREDICTION["properties"], **properties},
    }


def _bodies(limits: BodyLimits) -> dict[str, Any]:
    """Returns the schema of each form of a request."""
    count = {"minItems": 1, "maxItems": limits.images}
    fields = {"image": _BASE64, "images": {"type": "array", "items": _BASE64, **count}, "topk": _TOPK}
    binary_files = {"type": "array", "items": {"type": "string", "format": "binary"}, **count}
    return {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": binary_files, "topk": _TOPK},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": fields,
                "additionalProperties": False,
                "oneOf": [{"required": ["image"]}, {"required": ["images"]}],
            }
        },
    }


def _json(*names: str) -> dict[str, Any]:
    references = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return {"application/json": {"schema": references[0] if len(names) == 1 else {"oneOf": references}}}


def _get(summary: str, kind: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {}}}}}
