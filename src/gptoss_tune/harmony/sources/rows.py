"""What a source yields: a row, a line that is still to be parsed, or why there is none.

A row is what the file says: a JSON object with unique keys and finite numbers, in strict UTF-8.
"""

from __future__ import annotations

import json
from typing import Any

from gptoss_tune.errors import DataError
from gptoss_tune.files.strict_json import DECODER
from gptoss_tune.harmony.fields import kind

Raw = bytes | dict[str, Any] | DataError
"""A line of JSON still to be parsed, a row, or why there is none."""
Located = tuple[str, Raw]
"""``file:line`` and what is there."""


def parse_object(raw: bytes, at: str) -> dict[str, Any]:
    """Return the JSON object in ``raw``.

    Raises:
        DataError: It is not UTF-8, not JSON, not an object, or says a key twice.
    """
    value = parse_json(raw, at)
    if not isinstance(value, dict):
        raise DataError(f"{at}: the row is {kind(value)}; expected an object such as a chat row")
    return value


def parse_json(raw: bytes, at: str) -> Any:
    """Return the JSON value in ``raw``.

    Raises:
        DataError: It is not UTF-8, not JSON, nested too deeply, or says a key twice.
    """
    try:
        # What ends too early ends in this line, not in the next one.
        return DECODER.decode(raw.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{at}: byte {error.start + 1} is not UTF-8 (0x{raw[error.start]:02x}); save the file "
            "as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise DataError(
            f"{at}: {place} is not JSON ({error.msg}); expected one whole JSON value"
        ) from None
    except RecursionError:
        raise DataError(f"{at}: nested too deeply to read; flatten the row") from None
    except ValueError as error:
        raise DataError(f"{at}: {error}; correct the row") from None
