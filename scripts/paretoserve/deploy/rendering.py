"""Templates to text (deploy/templates: one folder per backend, and `common`)."""

import shlex
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

from paretoserve import paths

WIDTH = 100


def render(template: str, **values: Any) -> str:
    """Render a template; an undefined name in it is an error."""
    return _environment().get_template(template).render(values)


def render_arguments(template: str, **values: Any) -> list[str]:
    """Render flags, of which a template has one a line with its values, into arguments."""
    return render(template, **values).split()


def comment(sentences: Sequence[str]) -> str:
    """Return sentences as comment lines, each beginning on a line of its own."""
    return "\n".join(
        textwrap.fill(
            sentence,
            WIDTH,
            initial_indent="# ",
            subsequent_indent="#   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for sentence in sentences
    )


def shell_word(word: str) -> str:
    """Quote a word for the shell; variables in it are expanded there."""
    if "$" not in word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`")
    return f'"{escaped}"'


def wrapped_command(command: Sequence[str], indent: int = 4) -> str:
    """Return a command over several lines, each flag with its values on one where they fit."""
    lines: list[str] = []
    for word in command:
        quoted = shell_word(word)
        is_flag = word.startswith("-") and not word[1:].isdigit() and lines[-1:] != ["python3"]
        if not lines or is_flag or len(lines[-1]) + len(quoted) >= WIDTH:
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    blank = " " * indent
    return " \\\n".join(f"{blank}{line}" for line in lines)


@cache
def _environment() -> Any:
    import jinja2  # takes a while to import, for those who want no files

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # {# is the shell's
        comment_end_string="#>",
        auto_reload=False,
    )
    environment.filters |= {"shell": shell_word, "wrapped": wrapped_command}
    return environment
