"""What clients may ask: the API's requests, checked; what is not done here is refused by its name."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from cache.base.errors import InputError
from infer.sampling import MOST_LOGPROBS, Sampling
from infer.schema import check_schema
from seeonce.server.errors import ApiError, refused

DEFAULT_MAX_TOKENS = 1024
_LEAST_TEMPERATURE = 1e-3
_MOST_CHOICES, _MOST_STOPS = 16, 16

# What these fields ask for is not done here: only values that ask for nothing are taken.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# What these say changes no answer.
_IGNORED = ("metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "user")
_IN_MESSAGES: Mapping[str, tuple[Any, ...]] = {
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "refusal": (),
}


class Strict(BaseModel):
    """What is sent.

    Fields in ``neutral_values`` are not supported, and taken with these values alone, which ask for nothing;
    those in ``ignored`` are dropped.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    ignored: ClassVar[Sequence[str]] = ()


class Extension(Strict):
    """What is ours alone: ``store`` keeps features of new pictures, ``max_pixels`` lowers their sizes."""

    store: bool | None = None
    max_pixels: Annotated[int, Field(ge=1)] | None = None


class ImageUrl(Strict):
    """A picture: a data: URL, seeonce:RECORDING/FRAME, and file: or http(s): where the server allows it."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    max_pixels: Annotated[int, Field(ge=1)] | None = None


class TextPart(Strict):
    """A text among pictures."""

    type: Literal["text"]
    text: str


class ImagePart(Strict):
    """A picture at its place in the text."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning_content: str | None = None


class StreamOptions(Strict):
    """What else a stream says."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Strict):
    """A schema that an answer is held to."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateOptions(Strict):
    """What the chat template is told."""

    enable_thinking: bool | None = None


class AnswerRequest(Strict):
    """What every request for an answer has."""

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = _NEUTRAL
    ignored: ClassVar[Sequence[str]] = _IGNORED

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seeonce: Extension | None = None


class SamplingRequest(AnswerRequest):
    """How an answer is drawn, and when it ends: what both kinds of completion share."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None

    def _samplings(self, logprobs: int | None, schema: str | None = None) -> tuple[Sampling, ...]:
        """Return how each choice is drawn; those after the first have seeds of their own.

        Raises:
            ApiError: what was asked does not go together.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > _MOST_STOPS or not all(stop):
            raise refused(f"stop: expected up to {_MOST_STOPS} texts, none of them empty.", "stop")
        if stop and schema is not None:
            raise refused("stop: under a response_format it is the schema that ends an answer.", "stop")
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options: only together with stream.", "stream_options")
        temperature = self.temperature or 0.0
        try:
            return tuple(
                Sampling(
                    temperature=0.0 if temperature < _LEAST_TEMPERATURE else temperature,
                    top_p=1.0 if self.top_p is None else self.top_p,
                    seed=((self.seed or 0) + number + 2**63) % 2**64 - 2**63,
                    max_tokens=self.longest or DEFAULT_MAX_TOKENS,
                    top_k=max(0, self.top_k or 0),
                    min_p=self.min_p or 0.0,
                    repetition_penalty=self.repetition_penalty or 1.0,
                    stop=tuple(dict.fromkeys(stop)),
                    logprobs=logprobs,
                    schema=schema,
                )
                for number in range(self.n or 1)
            )
        except InputError as error:
            raise refused(str(error)) from error

    @property
    def longest(self) -> int | None:
        """The most tokens that an answer may have, if that is said."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(SamplingRequest):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @property
    def longest(self) -> int | None:
        """The most tokens that an answer may have, if that is said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def thinking(self) -> bool:
        """Whether the model is to reason first."""
        return bool(self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking)

    def samplings(self) -> tuple[Sampling, ...]:
        """Return how each choice is drawn. Raises ``ApiError``."""
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs: only together with logprobs.", "top_logprobs")
        schema = self._schema()
        if schema is not None and self.thinking:
            raise refused("chat_template_kwargs: under a response_format an answer cannot reason.")
        return self._samplings((self.top_logprobs or 0) if self.logprobs else None, schema)

    def _schema(self) -> str | None:
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_object":
            return '{"type": "object"}'
        if asked.json_schema is None:
            raise refused("response_format.json_schema: Field required", "response_format")
        schema = json.dumps(asked.json_schema.schema_)
        try:
            check_schema(schema, "response_format.json_schema.schema")
        except InputError as error:
            raise refused(str(error), "response_format") from error
        return schema


class CompletionRequest(SamplingRequest):
    """A request to /v1/completions."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    def samplings(self) -> tuple[Sampling, ...]:
        """Return how each choice is drawn. Raises ``ApiError``."""
        return self._samplings(self.logprobs)


Model = TypeVar("Model", bound=Strict)


def read_request(kind: type[Model], body: bytes) -> Model:
    """Read a request.

    Raises:
        ApiError: it is no JSON, or no such request; the error names the field.
    """
    try:
        found = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise refused(f"The body is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise refused("The body is no JSON object.")
    _drop_neutral(found, kind.neutral_values, "")
    messages = found.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            if message.get("role") in ("tool", "function"):
                raise refused(f"messages.{number}.role: tools are not supported here.", "messages")
            _drop_neutral(message, _IN_MESSAGES, f"messages.{number}.")
    for name in kind.ignored:
        found.pop(name, None)
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise _invalid(error) from error


def _drop_neutral(found: dict[str, Any], neutral_values: Mapping[str, tuple[Any, ...]], where: str) -> None:
    for name, values in neutral_values.items():
        value = found.pop(name, None)
        if value is None or any((value == one and type(value) is not bool) or value is one for one in values):
            continue
        param = where.partition(".")[0] or name
        raise refused(f"{where}{name} is not supported here: leave it out.", param)


# Of what kind the parts of a list are: no fields.
_TAGS = ("image_url", "input_image", "input_text", "message", "output_text", "reasoning", "text")


def _invalid(error: ValidationError) -> ApiError:
    """Say what is wrong with the field that was read furthest."""
    found = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    place = found["loc"]
    fields = [
        str(name)
        for before, name in zip((None, *place), place, strict=False)
        if isinstance(name, int)
        or (name.isidentifier() and name != "str" and not (isinstance(before, int) and name in _TAGS))
    ]
    where = ".".join(fields)
    what = "is not known here: leave it out" if found["type"] == "extra_forbidden" else found["msg"]
    return refused(f"{where}: {what}"[:1000], fields[0] if fields else None)
