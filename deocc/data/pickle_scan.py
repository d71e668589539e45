"""A look through a pickle's opcodes before it is unpickled: few kinds of them, not too many, and no memo larger than the file has use for.

`pickle` itself keeps no measure. Nine bytes may ask for a memo of four thousand million places, which is filled at once; a dictionary of
numbers with equal hashes takes hours; and a name may be called in more ways than one.
"""

import mmap
import pickletools  # nosec B403  # it names opcodes and obeys none
from typing import BinaryIO, Final, cast

MOST_OPCODES: Final = 2**24
"""OURS: published verification files take some twenty an image where they hold arrays, else two."""

_STACK: Final = "PROTO FRAME STOP MARK EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"
_VALUES: Final = "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
_TEXT: Final = "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
_MEMO: Final = "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
_CALLS: Final = "GLOBAL STACK_GLOBAL REDUCE BUILD"
_KNOWN: Final = frozenset(" ".join((_STACK, _VALUES, _TEXT, _MEMO, _CALLS)).split())
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


def check_opcodes(file: mmap.mmap) -> None:
    """Raise ValueError where a pickle is more than lists, tuples, bytes, numbers, and names that are called with them.

    Args:
        file: read from where it stands to the end of the pickle; mapped, since it then makes no room for more bytes than there are.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, file)), 1):
        if number > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
        if opcode.name not in _KNOWN:
            raise ValueError(f"opcode {opcode.name}, which no such file needs")
        if opcode.name in _PUTS and not 0 <= int(argument or 0) <= number:  # each place of the memo takes an opcode to fill
            raise ValueError(f"place {argument} of the memo after {number:,} opcodes")
