"""An experiment: many prompts, models and settings over the same frames, and the runs that it makes."""

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.base.errors import InputError
from cache.base.text import user_path
from infer.sampling import Sampling
from seeonce.runs.find import EXPERIMENT_SEPARATOR
from seeonce.runs.options import DescribeOptions
from seeonce.runs.prompts import ImagePosition, Prompt, Showing, collect_prompts, read_schema, read_system

_NAMED_PROMPTS = 3


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of an experiment, under its name: what its answers follow, and what is shown around it."""

    name: str
    prompt: Prompt
    schema: str | None
    showing: Showing


@dataclass(frozen=True, slots=True)
class Experiment:
    """What the file says. ``samplings`` go by their names; ``asked_as`` is for prompts that do not say it."""

    name: str
    recordings: tuple[str, ...]
    models: tuple[str | None, ...]
    questions: tuple[Question, ...]
    samplings: tuple[tuple[str, Sampling], ...]
    repetitions: int
    asked_as: tuple[str | None, Showing] = (None, Showing())

    def runs(self) -> Iterator[DescribeOptions]:
        """Yield the options of every run; greedy ones once, as a repetition would say the same."""
        for recording in self.recordings:
            for model in self.models:
                for together in self._asked_alike():
                    for label, sampling in self.samplings:
                        for number in range(self.repetitions if sampling.temperature > 0 else 1):
                            yield DescribeOptions(
                                tuple(question.prompt for question in together),
                                recording,
                                model,
                                sampling=replace(
                                    sampling, seed=sampling.seed + number, schema=together[0].schema
                                ),
                                name=self._name(recording, model, together, label, number),
                                prompt_names=tuple(question.name for question in together),
                                showing=together[0].showing,
                            )

    def _asked_alike(self) -> list[tuple[Question, ...]]:
        """Return the prompts that are asked in one way together, in the order of the file."""
        found: dict[tuple[str | None, Showing], list[Question]] = {}
        for question in self.questions:
            found.setdefault((question.schema, question.showing), []).append(question)
        return [tuple(questions) for questions in found.values()]

    def _name(
        self, recording: str, model: str | None, together: tuple[Question, ...], label: str, number: int
    ) -> str:
        """Name a run by the experiment and by what tells it from the experiment's other runs."""
        parts = [self.name]
        if len(self.recordings) > 1:
            parts.append(recording)
        if len(self.models) > 1:
            parts.append(model or "default")
        if (
            together[0].schema,
            together[0].showing,
        ) != self.asked_as:  # so that such a prompt renames no other
            parts.append(_names(together))
        if len(self.samplings) > 1:
            parts.append(label)
        if self.repetitions > 1:
            parts.append(str(number + 1))
        return EXPERIMENT_SEPARATOR.join(parts)


def _names(questions: tuple[Question, ...]) -> str:
    named = ", ".join(question.name for question in questions[:_NAMED_PROMPTS])
    more = len(questions) - _NAMED_PROMPTS
    return f"{named} and {more} more" if more > 0 else named


_ASKING_KEYS = ("schema", "system", "frames_per_prompt", "stride", "image_position", "thinking")
_KEYS = ("name", "recordings", "models", "prompts", "sampling", "repetitions", *_ASKING_KEYS)
_PROMPT_KEYS = ("text", "file", *_ASKING_KEYS)
_WHOLE_KEYS = ("seed", "max_tokens", "top_k", "repetition_window")
_NUMBER_KEYS = ("temperature", "top_p", "min_p", "repetition_penalty")
_MAX_REPETITIONS = 1000
_ONLY = "sampling"
"""What the one setting is called where [sampling] has no names in it."""


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file; files of prompts, system texts and schemas are looked for beside it.

    A byte-order mark, which some editors put in front, is no part of what they say.

    Raises:
        InputError: it cannot be read, lacks something, or says something unknown.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path} cannot be read ({reason}): give an experiment file.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}.") from error
    return _Reader(path).experiment(document)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns the document into an experiment."""

    path: Path

    def experiment(self, document: dict[str, object]) -> Experiment:
        self._only(document, _KEYS, "")
        repetitions = document.get("repetitions", 1)
        if type(repetitions) is not int or not 1 <= repetitions <= _MAX_REPETITIONS:
            raise self._wrong("repetitions", f"a number from 1 to {_MAX_REPETITIONS}", repetitions)
        models: tuple[str | None, ...] = (None,)
        if "models" in document:
            models = self._names(document, "models")
        asked_as = self._asked_as(document, None, Showing(), "")
        found = Experiment(
            name=self._text(document.get("name", self.path.stem), "name"),
            recordings=self._names(document, "recordings"),
            models=models,
            questions=tuple(self._questions(document.get("prompts"), *asked_as)),
            samplings=tuple(self._samplings(document.get("sampling", {}))),
            repetitions=repetitions,
            asked_as=asked_as,
        )
        self._check_stops(found)
        self._check_seeds(found)
        return found

    def _questions(self, table: object, schema: str | None, showing: Showing) -> Iterator[Question]:
        if not isinstance(table, dict) or not table:
            raise self._wrong("prompts", 'a table such as apps = "Which applications are open?"', table)
        names: dict[tuple[Prompt, str | None, Showing], str] = {}
        for name, value in table.items():
            self._text(name, "prompts: the name of a prompt")
            found = self._question(name, value, schema, showing)
            same = names.setdefault((found.prompt, found.schema, found.showing), name)
            if same != name:
                raise InputError(
                    f"{self.path}: prompts {same!r} and {name!r} are the same text, asked in the same way."
                )
            yield found

    def _question(self, name: str, value: object, schema: str | None, showing: Showing) -> Question:
        where = f"prompts.{name}"
        if not isinstance(value, dict):
            if name in _ASKING_KEYS:  # TOML has taken what was meant for all prompts into their table
                raise InputError(
                    f"{self.path}: {where} stands below [prompts], so it is a prompt called {name}: move it "
                    "above the first [table], for all prompts, or give the prompt another name."
                )
            return Question(name, collect_prompts([self._text(value, where)], [])[0], schema, showing)
        self._only(value, _PROMPT_KEYS, f"{where}.")
        prompt = self._prompt(value, where)
        return Question(name, prompt, *self._asked_as(value, schema, showing, f"{where}."))

    def _prompt(self, table: dict[str, object], where: str) -> Prompt:
        if ("text" in table) == ("file" in table):
            raise self._wrong(where, "a text, or a table with either text or file", table)
        if "text" in table:
            return collect_prompts([self._text(table["text"], f"{where}.text")], [])[0]
        file = self._beside(table["file"], f"{where}.file")
        try:
            return collect_prompts([], [file])[0]
        except InputError as error:
            raise InputError(f"{self.path}: {where}.file: {error}") from error

    def _asked_as(
        self, table: dict[str, object], schema: str | None, showing: Showing, where: str
    ) -> tuple[str | None, Showing]:
        """Read how prompts are asked; what ``table`` does not say is ``schema`` and ``showing``."""
        if "frames_per_prompt" in table:  # a stride belongs to the number that it was given with
            frames = self._count(table["frames_per_prompt"], f"{where}frames_per_prompt")
            showing = replace(showing, frames_per_prompt=frames, stride=None)
        if "stride" in table:
            showing = replace(showing, stride=self._count(table["stride"], f"{where}stride"))
        if "image_position" in table:
            position = self._image_position(table["image_position"], f"{where}image_position")
            showing = replace(showing, image_position=position)
        if "system" in table:
            showing = replace(showing, system=self._system(table["system"], f"{where}system"))
        if "thinking" in table:
            if not isinstance(table["thinking"], bool):
                raise self._wrong(f"{where}thinking", "true or false", table["thinking"])
            showing = replace(showing, thinking=table["thinking"])
        if "schema" in table:
            schema = self._schema(table["schema"], f"{where}schema")
        return schema, showing

    def _schema(self, value: object, key: str) -> str | None:
        if value is False:
            return None
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "a file of JSON Schema, description, or false for none", value)
        return read_schema(self._name(value, key), self.path.parent, f"{self.path}: {key}")

    def _system(self, value: object, key: str) -> str | None:
        if value is False:
            return None
        if isinstance(value, dict):
            self._only(value, ("file",), f"{key}.")
            file = self._beside(value.get("file"), f"{key}.file")
            try:
                return read_system(None, file)
            except InputError as error:
                raise InputError(f"{self.path}: {key}.file: {error}") from error
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, 'a text, { file = "…" }, or false for none', value)
        return read_system(value, None)

    def _image_position(self, value: object, key: str) -> ImagePosition:
        for position in ImagePosition:
            if value == position.value:
                return position
        raise self._wrong(key, " or ".join(repr(position.value) for position in ImagePosition), value)

    def _count(self, value: object, key: str) -> int:
        if type(value) is not int or value < 1:
            raise self._wrong(key, "a whole number of at least 1", value)
        return value

    def _samplings(self, table: object) -> Iterator[tuple[str, Sampling]]:
        """Read ``[sampling]`` as one setting, or ``[sampling.NAME]`` as several."""
        if not isinstance(table, dict):
            raise self._wrong("sampling", "a table", table)
        named = {name: value for name, value in table.items() if isinstance(value, dict)}
        if named and len(named) < len(table):
            lone = next(name for name in table if name not in named)
            raise InputError(f"{self.path}: sampling.{lone} stands beside named settings: put it into one.")
        for name, values in (named or {_ONLY: table}).items():
            self._text(name, "sampling: the name of a setting")
            yield name, self._sampling(values, f"sampling.{name}." if named else "sampling.")

    def _sampling(self, values: dict[str, object], where: str) -> Sampling:
        self._only(values, (*_NUMBER_KEYS, *_WHOLE_KEYS, "stop"), where)
        settings: dict[str, Any] = {
            key: self._stops(value, where + key) if key == "stop" else self._number(value, key, where)
            for key, value in values.items()
        }
        try:
            return Sampling(**settings)
        except InputError as error:
            raise InputError(f"{self.path}: {where[:-1]}: {error}") from error

    def _stops(self, value: object, key: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise self._wrong(key, r'a list of texts such as ["\n\n"]', value)
        return tuple(dict.fromkeys(value))

    def _check_seeds(self, found: Experiment) -> None:
        """Refuse seeds that the repetitions would count beyond 64 bits."""
        for name, sampling in found.samplings:
            if sampling.temperature > 0 and sampling.seed + found.repetitions > 1 << 63:
                raise InputError(
                    f"{self.path}: {_setting(name)}.seed is {sampling.seed}, too large for "
                    f"{found.repetitions} repetitions: each adds 1, and a seed has 64 bits."
                )

    def _check_stops(self, found: Experiment) -> None:
        """Refuse stop strings beside a schema, which says itself where an answer ends."""
        stopping = [name for name, sampling in found.samplings if sampling.stop]
        held = [question.name for question in found.questions if question.schema is not None]
        if stopping and held:
            raise InputError(
                f"{self.path}: {_setting(stopping[0])}.stop ends answers that the schema of "
                f"prompts.{held[0]} ends itself: leave out one of them."
            )

    def _number(self, value: object, key: str, where: str) -> int | float:
        if isinstance(value, int) and not isinstance(value, bool):
            return value if key in _WHOLE_KEYS else float(value)
        if isinstance(value, float) and key not in _WHOLE_KEYS:
            return value
        raise self._wrong(where + key, "a whole number" if key in _WHOLE_KEYS else "a number", value)

    def _names(self, document: dict[str, object], key: str) -> tuple[str, ...]:
        value = document.get(key)
        if not isinstance(value, list) or not value:
            raise self._wrong(key, f'a list such as {key} = ["demo"]', value)
        texts = tuple(self._name(item, key) for item in value)
        if len(set(texts)) < len(texts):
            raise InputError(f"{self.path}: {key} names something twice.")
        return texts

    def _text(self, value: object, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "a text", value)
        return value

    def _name(self, value: object, key: str) -> str:
        """Take what may name a file or folder."""
        text = self._text(value, key)
        if "\0" in text:
            raise self._wrong(key, "the name of something, without a NUL", text)
        return text

    def _beside(self, value: object, key: str) -> Path:
        return self.path.parent / user_path(self._name(value, key))

    def _only(self, table: dict[str, object], known: Iterable[str], where: str) -> None:
        names = tuple(known)
        for key in table:
            if key not in names:
                raise InputError(f"{self.path}: unknown key {where}{key}; {_hint(key, names, where)}.")

    def _wrong(self, key: str, expected: str, value: object) -> InputError:
        got = "nothing" if value is None else repr(value)[:80]
        return InputError(f"{self.path}: {key} should be {expected}; got {got}.")


def _setting(name: str) -> str:
    return "sampling" if name == _ONLY else f"sampling.{name}"


def _hint(key: str, names: tuple[str, ...], where: str) -> str:
    if key in _ASKING_KEYS:
        return f"say it for all prompts, above the first [table], or for one, as prompts.NAME.{key}"
    near = difflib.get_close_matches(key, names, 1)
    return f"did you mean {where}{near[0]}" if near else f"expected one of {', '.join(names)}"
