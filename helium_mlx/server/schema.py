"""JSON Schema, as much of it as the server's parameters need: one table says what a request may hold, checks it, and is
what `/openapi.json` shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from helium_mlx.errors import did_you_mean, shown
from helium_mlx.files.untrusted import FileProblem, parse_json_object
from helium_mlx.server.errors import ApiError, bad

Schema = Mapping[str, object]

_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True)
class Parameter:
    """A key of a request's JSON object. `about` is for who reads the document; `default` stands where it is missing."""

    schema: Schema
    about: str
    default: object = None

    def document(self) -> dict[str, object]:
        """Return its schema with what is said about it; null is taken for the default."""
        described = {"anyOf": [dict(self.schema), {"type": "null"}], "description": self.about}
        return described if self.default is None else {**described, "default": self.default}


def read(body: bytes, parameters: Mapping[str, Parameter], instead: Mapping[str, str]) -> dict[str, object]:
    """Return the parameters of a request, those that are missing at their defaults.

    `instead` says of parameters that are known and not done why. Raises ApiError for a body that is no JSON object,
    and for keys and values that are not in the table.
    """
    try:
        given = parse_json_object(body)
    except FileProblem as problem:
        said = str(problem).removesuffix("; fetch it again")
        raise ApiError(400, f"the body {said}; send a JSON object in UTF-8") from None
    for name, value in given.items():
        if name in instead and value not in (None, "", False):
            raise bad(name, f"{name} is not done here: {instead[name]}")
        if name not in parameters and name not in instead:
            raise bad(name, f"{shown(name)} is no parameter{did_you_mean(name, parameters)}")
        if name in parameters and value is not None and not fits(value, parameters[name].schema):
            raise bad(name, f"{name} is {shown(value)}; it must be {words(parameters[name].schema)}")
    return {
        name: parameter.default if given.get(name) is None else _taken(given[name], parameter.schema)
        for name, parameter in parameters.items()
    }


def fits(value: object, schema: Schema) -> bool:
    """Whether a value of JSON is as the schema says."""
    match schema:
        case {"anyOf": list(choices)}:
            return any(fits(value, choice) for choice in choices)
        case {"type": str(kind)}:
            return _is_of(value, kind) and _is_within(value, schema)
        case _:
            return True


def _taken(value: object, schema: Schema) -> object:
    """Return a value that fits a schema, its whole numbers as Python has them: in JSON, 1.0 is one."""
    match schema, value:
        case {"anyOf": list(choices)}, _:
            return _taken(value, next(choice for choice in choices if fits(value, choice)))
        case {"type": "integer"}, float():
            return int(value)
        case {"type": "array", "items": Mapping() as items}, list():
            return [_taken(item, items) for item in value]
        case _:
            return value


def _is_of(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    # As JSON Schema has it: 1.0 is an integer.
    return isinstance(value, _KINDS[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _is_within(value: object, schema: Schema) -> bool:
    match value:
        case int() | float():
            least, most = schema.get("minimum", value), schema.get("maximum", value)
            return least <= value <= most  # pyright: ignore[reportOperatorIssue]
        case str():
            return len(value) >= schema.get("minLength", 0)  # pyright: ignore[reportOperatorIssue]
        case list():
            least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
            items: Schema = schema.get("items", {})  # pyright: ignore[reportAssignmentType]
            return least <= len(value) <= most and all(fits(item, items) for item in value)  # pyright: ignore[reportOperatorIssue]
        case dict():
            values: Schema = schema.get("additionalProperties", {})  # pyright: ignore[reportAssignmentType]
            known: Mapping[str, Schema] = schema.get("properties", {})  # pyright: ignore[reportAssignmentType]
            return all(fits(item, known.get(name, values)) for name, item in value.items())
        case _:
            return True


def words(schema: Schema) -> str:
    """Return what a schema allows, for a message."""
    match schema:
        case {"anyOf": list(choices)}:
            return " or ".join(map(words, choices))
        case {"type": "array"}:
            items: Schema = schema.get("items", {})  # pyright: ignore[reportAssignmentType]
            most = f" of at most {schema['maxItems']}" if "maxItems" in schema else ""
            return f"a list{most}, each {words(items)}"
        case {"type": "boolean"}:
            return "true or false"
        case {"type": ("integer" | "number") as kind}:
            name = "a whole number" if kind == "integer" else "a number"
            if "minimum" in schema and "maximum" in schema:
                return f"{name} from {schema['minimum']} to {schema['maximum']}"
            return f"{name}, {schema['minimum']} or more" if "minimum" in schema else name
        case {"type": "string"}:
            return "text"
        case {"additionalProperties": Mapping() as values}:
            return f"an object whose values are each {words(values)}"
        case _:
            return "an object"
