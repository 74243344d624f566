"""What the API server would say of an object, offline: strict schemas, and the rules in CEL of custom resources."""

import functools
import json
import lzma
from pathlib import Path

import celpy
import jsonschema
import kubernetes_validate

KUBERNETES = "1.36"
CRDS = Path(__file__).parent / "crds"
PLAIN = ("type", "enum", "pattern", "required", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
         "uniqueItems", "anyOf", "oneOf", "allOf", "not")  # fmt: skip


@functools.cache
def custom():
    """Schemas of the custom resources by apiVersion and kind."""
    files = [json.loads(lzma.decompress(path.read_bytes())) for path in sorted(CRDS.glob("*.json.xz"))]
    return {(one["apiVersion"], one["kind"]): one["schema"] for one in files}


@functools.cache
def _validator(key):
    return jsonschema.Draft202012Validator(_strict(custom()[key]))


def schema_faults(one):
    """Everything that an API server with `fieldValidation=Strict` would refuse in one object."""
    where, key = f"{one['kind']} {one['metadata'].get('name')}", (one["apiVersion"], one["kind"])
    if key not in custom():
        yield from (f"{where}: {text}" for text in _core(one))
        return
    body = _defaulted({name: part for name, part in one.items() if name != "metadata"}, custom()[key])
    for error in _validator(key).iter_errors(body):
        yield f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
    # No schema of a custom resource says what metadata is; that of a plain object does.
    yield from (
        f"{where}: {text}" for text in _core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": one["metadata"]})
    )
    yield from (f"{where}: {text}" for text in _rules(body, custom()[key], ""))


def _core(one):
    return _core_faults(json.dumps(one, sort_keys=True))


@functools.cache  # reading Kubernetes' schemas takes most of the time of these tests
def _core_faults(text):
    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message[:300]}"]
    except kubernetes_validate.InvalidSchemaError as error:
        return [f"no such kind in Kubernetes {KUBERNETES}: {error}"]
    return []


def _strict(schema):
    """A schema of Kubernetes as JSON Schema that refuses fields which it does not name."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **{key: schema[key] for key in ("pattern",) if key in schema}}
    out = {key: schema[key] for key in PLAIN if key in schema}
    if schema.get("format") == "int32":
        out = {"minimum": -(2**31), "maximum": 2**31 - 1, **out}
    if "items" in schema:
        out["items"] = _strict(schema["items"])
    if "properties" in schema:
        out["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
    if schema.get("type") == "object":
        more = schema.get("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
        out["additionalProperties"] = _strict(more) if isinstance(more, dict) else more
        if "metadata" in out.get("properties", {}) and "apiVersion" in schema["properties"]:
            out["properties"]["metadata"] = {"type": "object"}
    return out


def _children(value, schema):
    """Parts of a value that have a schema of their own: name, part, schema."""
    if isinstance(value, dict):
        more = schema.get("additionalProperties")
        for name, part in value.items():
            inner = schema.get("properties", {}).get(name, more if isinstance(more, dict) else None)
            if inner is not None:
                yield name, part, inner
    elif isinstance(value, list) and "items" in schema:
        yield from ((number, part, schema["items"]) for number, part in enumerate(value))


def _defaulted(value, schema):
    """As the server keeps it before it looks: with the defaults of its schema, and no nulls."""
    if isinstance(value, dict):
        absent = {name: part["default"] for name, part in schema.get("properties", {}).items() if "default" in part}
        value = {**absent, **{name: part for name, part in value.items() if part is not None}}
        return {**value, **{name: _defaulted(part, inner) for name, part, inner in _children(value, schema)}}
    return [_defaulted(part, inner) for _, part, inner in _children(value, schema)] or value


@functools.cache
def _program(rule):
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _rules(value, schema, path):
    """Rules in CEL that do not hold, and entries of a list that must be unique and are not."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:
            continue  # about a change, and nothing changes here
        try:
            holds = bool(_program(rule["rule"]).evaluate({"self": celpy.json_to_cel(value)}))
        except celpy.CELEvalError:
            holds = False
        if not holds:
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if keys := schema.get("x-kubernetes-list-map-keys"):
        seen = [tuple(part.get(key) for key in keys) for part in value if isinstance(part, dict)]
        yield from (f"{path}: {dict(zip(keys, one, strict=True))} twice" for one in set(seen) if seen.count(one) > 1)
    for name, part, inner in _children(value, schema):
        yield from _rules(part, inner, f"{path}.{name}" if path else str(name))
