"""The times of a schedule, as Kubeflow Pipelines reads them: six fields, seconds first.

It reads them with robfig/cron 1.2, which takes the day of the week for optional: the five fields of
a crontab are accepted there and mean something else (`0 2 * * *` is not 2 o'clock but the second
minute of every hour). Here they are refused, with the line that was meant.
"""

from __future__ import annotations

import re

from graftline.serving.errors import UserError

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
# Name, least, greatest, names of the values.
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 6, {name: number for number, name in enumerate(_DAYS)}),
)
_DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_EVERY = re.compile(r"@every (\d+h)?(\d+m)?(\d+s)?")
_RANGE = re.compile(r"(?:([*?])|(\w+)(?:-(\w+))?)(?:/(\d+))?")


def check(line: str) -> str:
    """The line, tidied, where Kubeflow Pipelines reads it as it is meant.

    Args:
        line: six fields, `@daily` and the like, or `@every 6h`.

    Raises:
        UserError: it would not be read, or read as something else; says what was meant.
    """
    text = " ".join(line.split())
    if text.startswith("@"):
        if text in _DESCRIPTORS or (_EVERY.fullmatch(text) and text[-1] in "hms"):
            return text
        raise UserError(
            f"{line!r} is no time that Kubeflow Pipelines knows: {', '.join(_DESCRIPTORS)}, "
            "or @every 6h."
        )
    fields = text.split()
    if len(fields) == 5:
        meant = f"0 {text}"
        said = _first_problem(meant.split())
        raise UserError(
            f"{line!r} has five fields, but Kubeflow Pipelines counts from the seconds and would "
            "take it for something else. "
            + (said if said else f'You mean: graftline kubeflow schedule "{meant}"')
        )
    if len(fields) != 6:
        raise UserError(
            f"{line!r} has {len(fields)} fields, not the six of Kubeflow Pipelines: second, "
            "minute, hour, day of the month, month, day of the week. Every night at two: "
            '"0 0 2 * * *".'
        )
    problem = _first_problem(fields)
    if problem:
        raise UserError(f"{line!r} is no schedule: {problem}")
    return text


def _first_problem(fields: list[str]) -> str:
    for field, (name, least, greatest, names) in zip(fields, _FIELDS, strict=True):
        for part in field.split(","):
            match = _RANGE.fullmatch(part)
            if match is None:
                return f"{part!r} is nothing that the field {name} may hold."
            star, first, last, step = match.groups()
            if step is not None and int(step) == 0:
                return f"{part!r} in the field {name} has a step of 0."
            if star:
                continue
            numbers = [
                names.get(value.upper(), int(value) if value.isdecimal() else -1)
                for value in (first, last)
                if value is not None
            ]
            if not all(least <= number <= greatest for number in numbers):
                return f"{part!r} in the field {name} is not within {least} to {greatest}."
            if len(numbers) == 2 and numbers[0] > numbers[1]:
                return f"{part!r} in the field {name} ends before it begins."
    return ""
