"""An experiment file: many prompts, models and settings over the same frames, as one TOML file.

Owns the file's form and the matrix that it makes: one run for each recording, model, sampling and
repetition, with all prompts in it, so that each frame is read once. Runs nothing.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.errors import InputError
from infer.describe import DescribeOptions
from infer.prompt import Prompt, collect_prompts
from infer.sampling import Sampling

_KEYS = ("name", "recordings", "models", "prompts", "sampling", "repetitions")
_WHOLE_KEYS = ("seed", "max_tokens", "top_k", "repetition_window")
_NUMBER_KEYS = ("temperature", "top_p", "min_p", "repetition_penalty")
_MAX_REPETITIONS = 1000


@dataclass(frozen=True, slots=True)
class Experiment:
    """What the file says. ``prompts`` and ``samplings`` go by their names."""

    name: str
    recordings: tuple[str, ...]
    models: tuple[str | None, ...]
    prompts: tuple[tuple[str, Prompt], ...]
    samplings: tuple[tuple[str, Sampling], ...]
    repetitions: int

    def cells(self) -> Iterator[DescribeOptions]:
        """Yield the options of every run; greedy ones once, as a repetition would say the same."""
        names = tuple(name for name, _ in self.prompts)
        prompts = tuple(prompt for _, prompt in self.prompts)
        for recording in self.recordings:
            for model in self.models:
                for label, sampling in self.samplings:
                    for number in range(self.repetitions if sampling.temperature > 0 else 1):
                        yield DescribeOptions(
                            prompts,
                            recording,
                            model,
                            sampling=replace(sampling, seed=sampling.seed + number),
                            name=self._name(recording, model, label, number),
                            prompt_names=names,
                        )

    def _name(self, recording: str, model: str | None, label: str, number: int) -> str:
        """Name a run by the experiment and by what tells it from the experiment's other runs."""
        parts = [self.name]
        if len(self.recordings) > 1:
            parts.append(recording)
        if len(self.models) > 1:
            parts.append(model or "default")
        if len(self.samplings) > 1:
            parts.append(label)
        if self.repetitions > 1:
            parts.append(str(number + 1))
        return " / ".join(parts)


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file; prompt files are looked for beside it.

    Raises:
        InputError: it cannot be read, lacks something, or says something unknown.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path} cannot be read ({reason}): give an experiment file.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}.") from error
    return _Reader(path).experiment(document)


class _Reader:
    """Turns the document into an experiment; every error names file and key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def experiment(self, document: dict[str, object]) -> Experiment:
        self._only(document, _KEYS, "")
        repetitions = document.get("repetitions", 1)
        if type(repetitions) is not int or not 1 <= repetitions <= _MAX_REPETITIONS:
            raise self._wrong("repetitions", f"a number from 1 to {_MAX_REPETITIONS}", repetitions)
        models: tuple[str | None, ...] = (None,)
        if "models" in document:
            models = self._texts(document, "models")
        return Experiment(
            name=self._text(document.get("name", self._path.stem), "name"),
            recordings=self._texts(document, "recordings"),
            models=models,
            prompts=tuple(self._prompts(document.get("prompts"))),
            samplings=tuple(self._samplings(document.get("sampling", {}))),
            repetitions=repetitions,
        )

    def _prompts(self, table: object) -> Iterator[tuple[str, Prompt]]:
        if not isinstance(table, dict) or not table:
            raise self._wrong("prompts", 'a table such as apps = "Which applications are open?"', table)
        names: dict[Prompt, str] = {}
        for name, value in table.items():
            prompt = self._prompt(name, value)
            if prompt in names:
                raise InputError(f"{self._path}: prompts {names[prompt]!r} and {name!r} are the same text.")
            names[prompt] = name
            yield name, prompt

    def _prompt(self, name: str, value: object) -> Prompt:
        if isinstance(value, dict):
            self._only(value, ("file",), f"prompts.{name}.")
            file = self._text(value.get("file"), f"prompts.{name}.file")
            return collect_prompts([], [self._path.parent / Path(file).expanduser()])[0]
        return collect_prompts([self._text(value, f"prompts.{name}")], [])[0]

    def _samplings(self, table: object) -> Iterator[tuple[str, Sampling]]:
        """Read ``[sampling]`` as one setting, or ``[sampling.NAME]`` as several."""
        if not isinstance(table, dict):
            raise self._wrong("sampling", "a table", table)
        named = {name: value for name, value in table.items() if isinstance(value, dict)}
        if named and len(named) < len(table):
            lone = next(name for name in table if name not in named)
            raise InputError(f"{self._path}: sampling.{lone} stands beside named settings: put it into one.")
        for name, values in (named or {"sampling": table}).items():
            yield name, self._sampling(values, f"sampling.{name}." if named else "sampling.")

    def _sampling(self, values: dict[str, object], where: str) -> Sampling:
        self._only(values, (*_NUMBER_KEYS, *_WHOLE_KEYS, "stop"), where)
        settings: dict[str, Any] = {
            key: self._texts(values, key) if key == "stop" else self._number(value, key, where)
            for key, value in values.items()
        }
        try:
            return Sampling(**settings)
        except InputError as error:
            raise InputError(f"{self._path}: {where[:-1]}: {error}") from error

    def _number(self, value: object, key: str, where: str) -> int | float:
        if isinstance(value, int) and not isinstance(value, bool):
            return value if key in _WHOLE_KEYS else float(value)
        if isinstance(value, float) and key not in _WHOLE_KEYS:
            return value
        raise self._wrong(where + key, "a whole number" if key in _WHOLE_KEYS else "a number", value)

    def _texts(self, document: dict[str, object], key: str) -> tuple[str, ...]:
        value = document.get(key)
        if not isinstance(value, list) or not value:
            raise self._wrong(key, f'a list such as {key} = ["demo"]', value)
        texts = tuple(self._text(item, key) for item in value)
        if len(set(texts)) < len(texts):
            raise InputError(f"{self._path}: {key} names something twice.")
        return texts

    def _text(self, value: object, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "a text", value)
        return value

    def _only(self, table: dict[str, object], known: Iterable[str], where: str) -> None:
        names = tuple(known)
        for key in table:
            if key not in names:
                near = difflib.get_close_matches(key, names, 1)
                hint = f"did you mean {where}{near[0]}" if near else f"expected one of {', '.join(names)}"
                raise InputError(f"{self._path}: unknown key {where}{key}; {hint}.")

    def _wrong(self, key: str, expected: str, value: object) -> InputError:
        got = "nothing" if value is None else repr(value)[:80]
        return InputError(f"{self._path}: {key} should be {expected}; got {got}.")
