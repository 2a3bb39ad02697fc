"""From a request that was read to its reply: pictures, the engine's job, and what it tells."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from checkpoint.folder import has_thinking_switch
from infer.request import Image, Request, Segment, Text, Turn
from infer.sampling import Sampling
from seeonce.server.asked import ChatRequest, CompletionRequest, Message, SamplingRequest, TextPart
from seeonce.server.engine_thread import EngineThread
from seeonce.server.errors import ApiError, refused
from seeonce.server.jobs import Accepted, Delta, Ended, Event, Job, NewPicture
from seeonce.server.models import Models, ServedModel
from seeonce.server.pictures import Pictures
from seeonce.server.replies import Reply
from seeonce.server.responses import ResponseReply, ResponseRequest, in_response_terms

_STEP_S = 0.001  # events of one step of the engine are delivered together


class Completions:
    """Answers chats, text completions and responses."""

    def __init__(self, models: Models, pictures: Pictures, engine: EngineThread) -> None:
        self._models, self._pictures, self._engine = models, pictures, engine
        self._deliveries: dict[asyncio.AbstractEventLoop, _Deliveries] = {}

    async def chat(self, asked: ChatRequest, http: HttpRequest) -> Response:
        """Reply to a chat. Raises ``ApiError``."""
        model, requests, new = await self._chat_requests(asked)
        reply = Reply(model.name, is_chat=True, wants_usage=asked.wants_usage, num_choices=len(requests))
        return await self._reply(asked, model, requests, new, http, reply)

    async def response(self, asked: ResponseRequest, http: HttpRequest) -> Response:
        """Reply to a request for a response. Raises ``ApiError``."""
        try:
            chat = asked.as_chat()
            model, requests, new = await self._chat_requests(chat, asked.instructions)
            return await self._reply(chat, model, requests, new, http, ResponseReply(asked, model.name))
        except ApiError as error:
            raise in_response_terms(error) from error

    async def _chat_requests(
        self, asked: ChatRequest, instructions: str | None = None
    ) -> tuple[ServedModel, tuple[Request, ...], tuple[NewPicture, ...]]:
        samplings = asked.samplings()
        model = await self.model(asked.model)
        if asked.thinking and not has_thinking_switch(model.checkpoint.path):
            raise refused(
                f"chat_template_kwargs: {model.name} has no switch for thinking.", "chat_template_kwargs"
            )
        request, new = await self._conversation(asked, model)
        if instructions:
            system = "\n\n".join(filter(None, (instructions, request.system)))
            request = replace(request, system=system)
        return model, _each(request, samplings, asked), new

    async def text(self, asked: CompletionRequest, http: HttpRequest) -> Response:
        """Reply to a text that is to go on. Raises ``ApiError``."""
        samplings = asked.samplings()
        model = await self.model(asked.model)
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        if not prompts or not all(prompts):
            raise refused("prompt: expected a text, or several, none of them empty.", "prompt")
        requests = [
            one for text in prompts for one in _each(Request(0, (Text(text),), chat=False), samplings, asked)
        ]
        reply = Reply(
            model.name,
            is_chat=False,
            wants_usage=asked.wants_usage,
            num_choices=len(requests),
            num_prompts=len(prompts),
        )
        return await self._reply(asked, model, tuple(requests), (), http, reply)

    async def model(self, name: str | None) -> ServedModel:
        """Return the model of that name. Raises ``ApiError``."""
        found = self._models.opened(name)
        if found is None:
            known = await asyncio.to_thread(self._models.known, name)
            found = await asyncio.wrap_future(self._engine.call(lambda: self._models.open(known)))
        return found

    async def _conversation(
        self, asked: ChatRequest, model: ServedModel
    ) -> tuple[Request, tuple[NewPicture, ...]]:
        """Return the request that a conversation is, and the pictures that are new in it."""
        if asked.messages[-1].role != "user":
            raise refused("messages: the last one must be the user's.", "messages")
        new: list[NewPicture] = []
        turns: list[Turn] = []
        for number, message in enumerate(asked.messages):
            role = "system" if message.role == "developer" else message.role
            turns.append(
                Turn(role, await self._segments(message, f"messages.{number}.content", asked, model, new))
            )
        system = None
        if turns[0].role == "system":
            system = "".join(part.text for part in turns.pop(0).segments if isinstance(part, Text))
        last = turns.pop()
        request = Request(0, last.segments, system=system, thinking=asked.thinking, earlier=tuple(turns))
        return request, tuple(new)

    async def _segments(
        self, message: Message, where: str, asked: ChatRequest, model: ServedModel, new: list[NewPicture]
    ) -> tuple[Segment, ...]:
        content = message.content
        parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content or []
        if message.role != "user":
            texts = [part.text for part in parts if isinstance(part, TextPart)]
            if len(texts) < len(parts):
                raise refused(
                    f"messages: pictures belong to the user, not to the {message.role}.", "messages"
                )
            return (Text("".join(texts)),)
        if not content:
            raise refused("messages: a user's message without content.", "messages")
        extension = asked.seeonce
        segments: list[Segment] = []
        for number, part in enumerate(parts):
            if isinstance(part, TextPart):
                segments.append(Text(part.text))
                continue
            found = await self._pictures.frame(
                part.image_url,
                f"{where}.{number}.image_url",
                model,
                None if extension is None else extension.max_pixels,
                None if extension is None else extension.store,
            )
            if isinstance(found, NewPicture):
                new.append(found)
                found = found.frame
            segments.append(Image(found))
        return tuple(segments)

    async def _reply(
        self,
        asked: SamplingRequest,
        model: ServedModel,
        requests: tuple[Request, ...],
        new: tuple[NewPicture, ...],
        http: HttpRequest,
        reply: Reply | ResponseReply,
    ) -> Response:
        events: asyncio.Queue[Event] = asyncio.Queue()
        emit = partial(self._deliveries_to(asyncio.get_running_loop()).post, events)
        keep = all(picture.keep for picture in new) and (
            asked.seeonce is None or asked.seeonce.store is not False
        )
        job = Job(model, requests, emit, new, stream=bool(asked.stream), keep=keep)
        self._engine.submit(job)
        try:
            async with _told_when_gone(http.receive, events):
                await _next(events)  # accepted, or an error
                if asked.stream:
                    return _Stream(job, events, reply.chunks(_pieces(events, len(requests))))
                ended: list[Ended] = []
                while len(ended) < len(requests):
                    event = await _next(events)
                    ended += [event] if isinstance(event, Ended) else []
                return JSONResponse(reply.whole(ended))
        except BaseException:
            job.cancel()
            raise

    def _deliveries_to(self, loop: asyncio.AbstractEventLoop) -> "_Deliveries":
        """Return the events of a loop: batches have one of their own."""
        if loop not in self._deliveries:
            self._deliveries[loop] = _Deliveries(loop)
        return self._deliveries[loop]


class _Deliveries:
    """Hands events from the engine's thread to one loop, which is woken once for all those of a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Queue[Event], Event]] = deque()
        self._is_woken = False

    def post(self, events: "asyncio.Queue[Event]", event: Event) -> None:
        self._waiting.append((events, event))
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop is closed: the server ends
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._loop.call_later(_STEP_S, self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False
        while self._waiting:
            events, event = self._waiting.popleft()
            events.put_nowait(event)


class _Stream(StreamingResponse):
    """A stream of events that lets its job go however it ends."""

    def __init__(self, job: Job, events: "asyncio.Queue[Event]", chunks: AsyncIterator[bytes]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job, self._events = job, events

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        try:
            async with _told_when_gone(receive, self._events):
                await self.stream_response(send)
        finally:
            self._job.cancel()


def _each(request: Request, samplings: tuple[Sampling, ...], asked: SamplingRequest) -> tuple[Request, ...]:
    """Return a request for each choice; without a seed of the client's each draws anew."""
    if asked.seed is None and samplings[0].temperature > 0:
        samplings = tuple(replace(sampling, seed=secrets.randbits(62)) for sampling in samplings)
    return tuple(replace(request, sampling=sampling) for sampling in samplings)


async def _pieces(events: "asyncio.Queue[Event]", num_choices: int) -> AsyncIterator[list[Delta | Ended]]:
    num_ended = 0
    while num_ended < num_choices:
        waiting = [await _next(events)]
        failed: ApiError | None = None
        while failed is None and not events.empty():  # what came while the loop was busy is one piece
            try:
                waiting.append(await _next(events))
            except ApiError as error:  # after what came before it
                failed = error
        found = merged(waiting)
        num_ended += sum(isinstance(each, Ended) for each in found)
        yield found
        if failed is not None:
            raise failed


def merged(waiting: Iterable[Accepted | Delta | Ended]) -> list[Delta | Ended]:
    """Return what came to each choice as one delta, which an end takes along."""
    deltas: dict[int, Delta] = {}
    ended: list[Delta | Ended] = []
    for event in waiting:
        if isinstance(event, Delta):
            deltas[event.index] = deltas[event.index] + event if event.index in deltas else event
        elif isinstance(event, Ended):
            before = deltas.pop(event.index, None)
            ended.append(event if before is None else replace(event, rest=before + event.rest))
    return [*deltas.values(), *ended]


async def _next(events: "asyncio.Queue[Event]") -> Accepted | Delta | Ended:
    """Return what is told next. Raises ``ApiError``, also when the client went away."""
    found = await events.get()
    if isinstance(found, ApiError):
        raise found
    return found


@asynccontextmanager
async def _told_when_gone(receive: Receive, events: "asyncio.Queue[Event]") -> AsyncIterator[None]:
    """Meanwhile, end ``events`` with an error when the client goes away."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        events.put_nowait(ApiError(499, "The client is gone."))

    watching = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watching.cancel()
