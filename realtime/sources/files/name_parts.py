"""Takes the name of a file that holds one volume apart: its numbers, and what each may be. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

from realtime.sources.files.volume_file import Acquired

SUFFIX = re.compile(r"\.(nii|img|hdr|rec|par)(\.gz)?$", re.IGNORECASE)
_COPY = re.compile(r"\s*\(\d{1,3}\)$|\s+-\s+copy(\s\(\d+\))?$", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
_LABELLED = re.compile(
    r"(?<![A-Za-z])(?:(?:sub|subj|ses|sess)[-_]?(?P<person>\d+)"
    r"|(?:(?:rec|acq|dir|chunk|split|inv|flip|task|part|scan)-|(?:run|coil)[-_]?)(?P<digits>\d{1,2}))"
    r"(?=$|[^0-9A-Za-z])",
    re.IGNORECASE,
)
"""A run's number has one or two digits; ``run0001`` may be the volume."""
_ECHO = re.compile(
    r"(?:^|[-_ .]|(?<=\d))(?P<label>echo|ec|te|e)[-_]?(?P<value>\d+(?:[.]\d+)?)(?:ms)?(?=$|[-_ .])",
    re.IGNORECASE,
)
_PART = re.compile(
    r"(?:[-_.]part-|[-_.](?=[a-z]+$))(?:(?P<phase>ph|pha|phase)|(?P<real>real)|(?P<imaginary>imag|imaginary))"
    r"(?=$|[-_.])",
    re.IGNORECASE,
)
_STAMP = re.compile(
    r"(?<![0-9])(?:"
    r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_.](?P<midnight>00[0-5]\d[0-5]\d)(?!\d)"
    r"|[-_T. ]?(?:[01]\d|2[0-3])[0-5]\d[0-5]\d(?:[.,]?\d{1,6}|[_-](?P<count>\d{1,3}|\d{6}))?)?Z?"
    r"|(?:19|20)\d\d-\d\d-\d\d"
    r"(?:[-_](?P<early>00\d{4})(?!\d)|[-_T ]\d\d[-:.h]?\d\d[-:.m]?\d\d(?:[.,]\d+)?)?Z?"
    r"|(?!00)(?:[01]\d|2[0-3])[0-5]\d[0-5]\d(?:[.,]\d+)?"
    r"|\d{10,}(?:[.,]\d+)?"
    r"|(?<=[-_])\d+[.]\d{1,3}$"
    r")(?![0-9])"
)
_Span = tuple[int, int]
MOST_ECHOES = 9
_LONGEST_NUMBER = 9


class Kind(Enum):
    """What a number in a name may be."""

    PLAIN = "plain"
    LABEL = "label"
    STAMP = "stamp"
    """Part of a date or a time."""
    COUNT_OR_STAMP = "count or stamp"
    """Behind a date, the volume's number, or a time just after midnight; behind a time, milliseconds."""


@dataclass(frozen=True)
class Parts:
    """A name, taken apart."""

    shape: str
    """The name without suffix, mark of a copy and echo, and with ``#`` for each number."""
    digits: tuple[str, ...]
    """The numbers, as written."""
    kinds: tuple[Kind, ...]
    """What each of them may be."""
    acquired: Acquired
    """What the name says of echo and part."""

    @classmethod
    def of(cls, name: str) -> Parts:
        """Take a name apart; it is a path within the watched folder, with slashes."""
        folder, slash, stem = name.rpartition("/")
        stem, acquired = _acquired(_COPY.sub("", SUFFIX.sub("", stem)))
        spans = [match.span() for match in _DIGITS.finditer(stem)]
        labels = [match.span(match.lastgroup or 0) for match in _LABELLED.finditer(stem)]
        stamps = [match.span() for match in _STAMP.finditer(stem)]
        unsure = [match.span(match.lastgroup) for match in _STAMP.finditer(stem) if match.lastgroup]
        return cls(
            shape=f"{folder}{slash}{_DIGITS.sub('#', stem)}",
            digits=tuple(stem[start:end] for start, end in spans),
            kinds=tuple(_kind(span, labels, stamps, unsure) for span in spans),
            acquired=acquired,
        )

    def name(self, digits: dict[int, str]) -> str:
        """Return the name with these numbers in place of its own."""
        folder, slash, stem = self.shape.rpartition("/")
        texts = [digits.get(nth, text) for nth, text in enumerate(self.digits)]
        first, *rest = stem.split("#")
        return folder + slash + first + "".join(text + after for text, after in zip(texts, rest, strict=True))


def _kind(span: _Span, labels: list[_Span], stamps: list[_Span], unsure: list[_Span]) -> Kind:
    if span in labels:
        return Kind.LABEL
    if span in unsure:
        return Kind.COUNT_OR_STAMP
    is_in_stamp = any(start <= span[0] and span[1] <= end for start, end in stamps)
    return Kind.STAMP if is_in_stamp or span[1] - span[0] > _LONGEST_NUMBER else Kind.PLAIN


def _acquired(stem: str) -> tuple[str, Acquired]:
    """Return a name without its echo, and what it says of echo and part."""
    part = _PART.search(stem)
    said = Acquired(
        part=next((name for name, text in part.groupdict().items() if text), "magnitude")
        if part
        else "magnitude"
    )
    for match in _ECHO.finditer(stem):
        value = float(match["value"])
        without = stem[: match.start()] + stem[match.end() :]
        if not _DIGITS.search(without):
            continue
        if value <= MOST_ECHOES and value.is_integer():
            return without, replace(said, echo=int(value))
        if match["label"].lower() == "te":
            return without, replace(said, echo_time_ms=value)
    return stem, said
