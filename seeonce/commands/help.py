"""How a command's help is laid out, the same under every version of typer."""

import re
from typing import Any

from typer.core import TyperCommand

_LIST = re.compile(r"<list\[(.*?)\]>")


class Command(TyperCommand):
    """A command whose help names arguments as the pages do: ``[RECORDING]...``, without Python's types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands after the command's name: ``[OPTIONS]``, then its arguments."""
        return ["[OPTIONS]", *(_usage(param) for param in self.get_params(ctx) if _is_argument(param))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each argument and each option."""
        arguments, options = list[tuple[str, str]](), list[tuple[str, str]]()
        for param in self.get_params(ctx):
            if (line := param.get_help_record(ctx)) is None:
                continue
            if _is_argument(param):
                arguments.append((_name(param), line[1]))
            else:
                options.append((_LIST.sub(r"<\1>", line[0]), line[1]))
        for title, lines in (("Arguments", arguments), ("Options", options)):
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _name(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _usage(param: Any) -> str:
    name = _name(param) if param.required else f"[{_name(param)}]"
    return name if param.nargs == 1 else f"{name}..."
