"""How many bytes a server holds for those who send: sockets are counted, and large messages wait their turn.

A message of up to `SMALL_BYTES` is read whenever it comes. Of larger ones `NUM_TURNS` are held at a time,
each from its first megabyte until it has been answered; other connections that send such are not read from
meanwhile, so that the rest waits in their own computers. Who does not finish a large message in `TURN_S`
while others wait is cut off. Memory thus has a bound whatever clients send.
"""

import asyncio
import collections
import contextlib
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import State

SMALL_BYTES = 1 << 20  # held for a connection without asking
NUM_TURNS = 2  # large messages at a time
TURN_S = 5.0  # for the rest of a large message, while others wait
MESSAGES_HELD = 4  # of one connection: in inference, waiting for it, and two more
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class Intake:
    """What the connections of one server share.

    Args:
        max_sockets: TCP connections; those beyond are dropped before any handshake.
    """

    def __init__(self, *, max_sockets: int) -> None:
        self._max_sockets = max_sockets
        self._num_open = 0
        self._having_turns: set[MeasuredConnection] = set()
        self._waiting: collections.deque[MeasuredConnection] = collections.deque()

    @property
    def is_contested(self) -> bool:
        """Whether a connection waits for its turn."""
        return bool(self._waiting)

    def connection_class(self) -> "type[MeasuredConnection]":
        """Return the class of connections that are counted here."""
        return type("CountedConnection", (MeasuredConnection,), {"intake": self})

    def open(self) -> bool:
        """Count a connection; return whether it may stay."""
        self._num_open += 1
        return self._num_open <= self._max_sockets

    def close(self, connection: "MeasuredConnection") -> None:
        """Count one connection less."""
        self._num_open -= 1
        self.leave(connection)

    def has_turn(self, connection: "MeasuredConnection") -> bool:
        """Return whether a connection may send the rest of a large message; if not, it will be called."""
        if connection in self._having_turns:
            return True
        if len(self._having_turns) < NUM_TURNS and connection not in self._waiting:
            self._having_turns.add(connection)
            return True
        if connection not in self._waiting:
            self._waiting.append(connection)
        return False

    def leave(self, connection: "MeasuredConnection") -> None:
        """End a turn, or the wait for one, and give free turns to those who have waited longest."""
        self._having_turns.discard(connection)
        if connection in self._waiting:
            self._waiting.remove(connection)
        while self._waiting and len(self._having_turns) < NUM_TURNS:
            called = self._waiting.popleft()
            self._having_turns.add(called)
            called.judge()


class MeasuredConnection(ServerConnection):
    """A connection that is read from only while there is room for what it sends.

    It counts what has been received and not yet released, and keeps no message of its own: websockets' parser
    refers to the last one until the next is complete. `Intake.connection_class` makes classes of it.
    """

    intake: Intake

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._sizes: collections.deque[int] = collections.deque()  # of whole messages not yet received
        self._begun_bytes = 0  # of a message that comes in several frames
        self._unreleased_bytes = self._num_unreleased = 0
        self._overdue: asyncio.TimerHandle | None = None
        self.is_held_back = False  # whether nothing is read from it now

    async def receive(self) -> tuple[str | bytes, int]:
        """Return the next message and the number of bytes to `release` once it is done with.

        Raises:
            ConnectionClosed: there is none.
        """
        message = await self.recv()
        return message, self._sizes.popleft()

    def release(self, num_bytes: int) -> None:
        """Report that a message has been answered or dropped: nothing refers to it any more."""
        self._unreleased_bytes -= num_bytes
        self._num_unreleased -= 1
        self.intake.leave(self)
        self.judge()

    async def drop_rest(self) -> None:
        """Drop what was received and never asked for; a closed connection may live on for a while."""
        with contextlib.suppress(ConnectionClosed):
            while self.state is State.CLOSED:
                await self.recv()

    def judge(self) -> None:
        """Read on, or hold back."""
        held = len(self.protocol.reader.buffer) + self._begun_bytes + self._unreleased_bytes
        may_read = self._num_unreleased <= MESSAGES_HELD
        if held > SMALL_BYTES:
            may_read = self.intake.has_turn(self) and self._num_unreleased == 0
            self._watch(may_read)
        else:
            self.intake.leave(self)
            self._watch(False)
        self.is_held_back = not may_read
        if may_read:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _watch(self, is_sending: bool) -> None:
        if is_sending and self._overdue is None:
            self._overdue = self.loop.call_later(TURN_S, self._cut_off)
        elif not is_sending and self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _cut_off(self) -> None:
        self._overdue = None
        if self.intake.is_contested:
            self.transport.abort()
        else:
            self._watch(True)

    # What websockets and asyncio call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, or drop it."""
        super().connection_made(transport)
        if not self.intake.open():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what came half."""
        super().connection_lost(exc)
        self.protocol.reader.buffer.clear()
        self._watch(False)
        self.intake.close(self)

    def data_received(self, data: bytes) -> None:
        """Take what has come and see whether more may."""
        super().data_received(data)
        self.judge()

    def process_event(self, event: Any) -> None:
        """Measure frames of messages, and hand them on in an object that nobody but the queue refers to."""
        if isinstance(event, Frame) and event.opcode in _DATA:
            self._begun_bytes += len(event.data)
            if event.fin:
                self._sizes.append(self._begun_bytes)
                self._unreleased_bytes += self._begun_bytes
                self._num_unreleased += 1
                self._begun_bytes = 0
            event, original = Frame(event.opcode, event.data, event.fin), event
            original.data = b""
        super().process_event(event)
