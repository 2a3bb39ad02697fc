"""The models that may be asked for: the one named at the start, and those that the store was encoded with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.base.errors import CheckpointError, SeeonceError
from cache.base.home import Home
from cache.base.text import visible
from cache.key import EncoderSpec
from cache.manifest import list_manifests
from checkpoint.config import Checkpoint
from checkpoint.folder import DEMO
from checkpoint.identity import find_encoder, model_of
from seeonce.server.errors import ApiError


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A checkpoint under the name that clients use; ``spec`` is its encoder with its own limit on pixels."""

    name: str
    checkpoint: Checkpoint
    spec: EncoderSpec


class Models:
    """Finds models by the name that clients give. Opening one may read its vision weights."""

    def __init__(self, home: Home, named: str | None, say: Callable[[str], None]) -> None:
        """Serve ``named`` by default, else what the newest recording was encoded with."""
        self._home, self._say = home, say
        refs = list_manifests(home)
        newest = refs[0] if refs else None
        self._default = named or model_of(
            home, newest.recording.id if newest else "", newest.encoder_id if newest else None
        )
        self.default = _name(self._default)  # what is served when a request names none
        self._opened: dict[str, ServedModel] = {}

    def names(self) -> dict[str, str]:
        """Return each name with the folder or hub id behind it, the default first."""
        found = {self.default: self._default}
        for ref in list_manifests(self._home):
            try:
                model = model_of(self._home, ref.recording.id, ref.encoder_id)
            except SeeonceError:  # its folder is gone
                continue
            found.setdefault(_name(model), model)
        return found

    def known(self, name: str | None) -> str:
        """Return the name of a model that can be asked.

        Raises:
            ApiError: there is none of that name.
        """
        if name is None or name == self.default or name in self._opened:
            return name or self.default
        names = self.names()
        for own, model in names.items():
            if name in (own, model):
                return own
        raise ApiError(
            404,
            f"The model {visible(name[:200])!r} is not served here: ask for one of {', '.join(names)}.",
            "model",
            "model_not_found",
        )

    def opened(self, name: str | None) -> ServedModel | None:
        """Return a model that was opened before, by default the default one."""
        return self._opened.get(name or self.default)

    def open(self, name: str) -> ServedModel:
        """Find a checkpoint and its encoder, in the engine's thread; only the default one is downloaded.

        Raises:
            CheckpointError: it is missing or not supported.
        """
        announce = self._say if name == self.default else _refuse_download
        if name not in self._opened:
            self._opened[name] = ServedModel(name, *find_encoder(self._home, self.names()[name], announce))
        return self._opened[name]


def _refuse_download(line: str) -> None:
    raise CheckpointError(f"The model is not on this machine ({line}): start the server with --model.")


def _name(model: str) -> str:
    """Return a name that shows nobody where a folder lies."""
    return Path(model).name if model != DEMO and Path(model).expanduser().is_dir() else model
