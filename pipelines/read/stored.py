"""A forward reader over inflated bytes that can look ahead: what archive formats are parsed from.

It keeps a window of at most `LOOKAHEAD` bytes and knows where in the stored file each record begins. A member that begins
with a record is an edge that no record's content crosses, whatever length a header claims.
"""

import io
import re
from collections import deque
from typing import BinaryIO

from pipelines.read.inflate import Broken, inflate
from pipelines.read.record import MAX_BODY

LOOKAHEAD = MAX_BODY + (2 << 20)  # a body at the default limit, its headers, and the next record's
LONGEST_BEGINNING = 1 << 14  # bytes that tell a record's beginning: an ARC header line holds a URL
_BLANK = re.compile(rb"[\r\n]*")


class Stored:
    """Inflated bytes from the member at `start` to the file's end, or to where it breaks (then `broken` says how)."""

    def __init__(self, file: BinaryIO, start: int, codec: str, record: re.Pattern[bytes]):
        """`record` matches where a record begins: at the beginning of a line or of a member."""
        self._file, self._codec, self._record = file, codec, record
        self._line = re.compile(rb"(?m)^" + record.pattern)
        self._pieces = inflate(file, start, codec)
        self._window, self._at, self._passed = b"", 0, 0  # passed: inflated bytes before the window
        self._marks: deque[tuple[int, int]] = deque([(0, start)])  # (inflated position, stored offset) of members
        self._edges: deque[int] = deque()
        self._ended = False
        self.broken: Broken | None = None

    @property
    def position(self) -> int:
        """Inflated bytes read so far."""
        return self._passed + self._at

    @property
    def offset(self) -> int:
        """Where the next byte is stored: the byte itself in a plain file, else its member."""
        self.fill(1)
        while len(self._marks) > 1 and self._marks[1][0] <= self.position:
            self._marks.popleft()
        position, stored = self._marks[0]
        return stored if self._codec else stored + self.position - position

    def enter(self) -> None:
        """Go into what begins here: from now on only later edges count."""
        while self._edges and self._edges[0] <= self.position:
            self._edges.popleft()

    def fill(self, size: int) -> int:
        """Have `size` bytes in the window if the file has them; returns how many there are."""
        have = len(self._window) - self._at
        if have >= size or self._ended:
            return have
        pieces = [self._window[self._at :]]
        self._passed, self._at = self._passed + self._at, 0
        while have < size and not self._ended:
            try:
                offset, piece = next(self._pieces)
            except StopIteration:
                self._ended = True
                break
            except Broken as broken:
                self._ended, self.broken = True, broken
                break
            if offset != self._marks[-1][1]:
                self._marks.append((self._passed + have, offset))
                if self._codec and self._record.match(piece):
                    self._edges.append(self._passed + have)
            pieces.append(piece)
            have += len(piece)
        self._window = b"".join(pieces)
        return have

    def peek(self, size: int, after: int = 0) -> bytes:
        """Up to `size` bytes, `after` bytes from here."""
        self.fill(after + size)
        return self._window[self._at + after : self._at + after + size]

    def line_end(self, ends: tuple[bytes, ...], limit: int) -> int:
        """Bytes up to and including the first of `ends` within the limit, or -1."""
        have = 0
        while have < limit:
            have = self.fill(min(max(2 * have, 4096), limit))
            stop = self._at + limit
            for end in ends:  # the earliest of them: each search ends where the one before found its own
                at = self._window.find(end, self._at, stop)
                stop = at + len(end) if at >= 0 else stop
            if stop < self._at + limit:
                return stop - self._at
            if self._ended:
                break
        return -1

    def begins(self, distance: int = 0) -> bool:
        """Whether a record begins that far from here."""
        self.fill(distance + LONGEST_BEGINNING)
        return self._record.match(self._window, self._at + distance) is not None

    def fits(self, size: int) -> bool:
        """Whether a content of `size` bytes would be followed by the end or, after line ends, by a record.

        Of sizes beyond the window that only reading on would tell, the answer is yes.
        """
        if size + LONGEST_BEGINNING > LOOKAHEAD:
            in_sight = self.fill(LOOKAHEAD) < LOOKAHEAD or self.room(LOOKAHEAD) < LOOKAHEAD  # the end, or another record
            return not in_sight and (self._codec != "" or self._fits_far(size))
        have = self.fill(size + LONGEST_BEGINNING)
        if have < size or self.room(size) < size:
            return False
        blank = _BLANK.match(self._window, self._at + size)
        assert blank is not None, "the pattern matches nothing too"
        behind = blank.end()
        if behind >= min(len(self._window), self._at + size + LONGEST_BEGINNING) or self._record.match(self._window, behind):
            return True
        # What is left of a header that the file's end cut: behind a whole separator, or a line that never ends.
        separator = behind - self._at - size
        return have < size + LONGEST_BEGINNING and (separator >= 4 or (separator > 0 and b"\n" not in self._window[behind:]))

    def _fits_far(self, size: int) -> bool:
        """The same in a plain file, by a look at the place itself."""
        if not self._file.seekable():
            return True
        behind = self.offset + size
        if self._file.seek(0, io.SEEK_END) < behind:
            return False
        self._file.seek(behind)
        rest = self._file.read(LONGEST_BEGINNING).lstrip(b"\r\n")
        return not rest or self._record.match(rest) is not None

    def room(self, size: int) -> int:
        """`size`, or less: the bytes up to the next edge."""
        self.fill(min(size + 1, LOOKAHEAD))
        return min(size, self._edges[0] - self.position) if self._edges else size

    def to_record(self, after: int = 0) -> int:
        """Bytes from here to where a record begins, at least `after`; the bytes in sight if none does."""
        have = self.room(LOOKAHEAD)
        have = min(have, self.fill(LOOKAHEAD))
        match = self._line.search(self._window, self._at + after, self._at + have)
        return match.start() - self._at if match else have

    def take(self, size: int) -> bytes:
        """Read up to `size` bytes."""
        data = self.peek(self.room(size))
        self._at += len(data)
        return data

    def drop(self, size: int) -> int:
        """Pass over up to `size` bytes in bounded memory; returns how many there were."""
        dropped = 0
        while dropped < size:
            step = min(self.room(min(size - dropped, 1 << 20)), self.fill(1 << 20))
            if step <= 0:
                break
            self._at += step
            dropped += step
        return dropped

    def drop_blank(self) -> None:
        """Pass over line ends."""
        while self.fill(64):
            match = _BLANK.match(self._window, self._at)
            assert match is not None, "the pattern matches nothing too"
            self._at = match.end()
            if self._at < len(self._window):
                return
