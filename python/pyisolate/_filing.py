"""What a guest has sent, filed for whoever waits for it. Every part is bounded; see _channel for who reads when."""

from __future__ import annotations

import json
from collections import deque
from typing import Deque, Dict, List, Optional

from . import _frames as wire
from ._frames import Frame, ProtocolError, move
from ._waiting import Request

INBOX_MESSAGES = 1024
INBOX_BYTES = 16 << 20  # reading stops beyond it; the message that crosses it is kept
OUTPUT_TAIL = 256 << 10  # bytes kept of stdout and of stderr
OUTPUT_BACKLOG = 64  # output frames that wait for a callback
OUTPUT_EARLY = 4 << 20  # bytes of them while who asked has only sent the request, and another thread reads; more are lost
OUTPUT_FRAME = 256  # bytes that a frame takes, beside its own


class Filing:
    """The state of one channel beyond its bytes; guarded by the channel's lock."""

    def __init__(self) -> None:
        self.inbox: Deque[Frame] = deque()  # for recv
        self.requests: Dict[int, Request] = {}  # sent and not answered, oldest first
        self.listeners: List[Request] = []  # whose output somebody takes
        self.tails: Dict[int, bytearray] = {wire.STDOUT: bytearray(), wire.STDERR: bytearray()}
        self.ready: Optional[Dict[str, object]] = None  # what the guest said of itself when it was ready
        self.output_cut = False  # the guest's output exceeded its policy's limit

    def take_post(self) -> Optional[Frame]:
        """The next item for recv."""
        return self.inbox.popleft() if self.inbox else None

    def full(self) -> bool:
        """Whether nothing more may be read before somebody takes something."""
        inbox = self.inbox
        if inbox:
            held = inbox[-1].posted - inbox[0].posted + len(inbox[0].payload)
            if held >= INBOX_BYTES or len(inbox) >= INBOX_MESSAGES:
                return True
        for each in self.listeners:
            if each.output and len(each.output) >= OUTPUT_BACKLOG:
                return True
        return False

    def hand_out(self, frames: Deque[Frame]) -> None:
        """File the frames, taking each out of the queue. Errors: ProtocolError."""
        # Each branch either moves the frame in one call, or can be repeated for the same frame: an
        # interrupt in between is followed by another leader's call, with the frame still in place.
        inbox = self.inbox
        while frames:
            frame = frames[0]
            if frame.type == wire.GUEST_POST:
                move(frames, inbox)
            elif frame.type in (wire.STDOUT, wire.STDERR):
                self._output(frames.popleft())
            elif frame.type in (wire.DONE, wire.RESULT, wire.ERROR):
                self._reply(frame, frames)
            else:
                self._note(frame)
                frames.popleft()

    def _reply(self, frame: Frame, frames: Deque[Frame]) -> None:
        request = self.requests.get(frame.id)
        of_exec = frame.type == wire.DONE or bool(frame.flags & wire.OF_EXEC)
        if request is None or request.reply not in (None, frame):
            raise ProtocolError(f"an answer to request {frame.id}, which is not open")
        if of_exec != (request.kind == wire.EXEC):
            raise ProtocolError(f"an answer of type {frame.type} to request {frame.id} of another kind")
        request.reply = frame
        if of_exec and frame.type == wire.ERROR and not request.abandoned:
            move(frames, self.inbox)
        else:
            frames.popleft()
        self.requests.pop(frame.id, None)

    def _output(self, frame: Frame) -> None:
        tail = self.tails[frame.type]
        tail += frame.data
        if len(tail) > OUTPUT_TAIL:
            del tail[: len(tail) - OUTPUT_TAIL]
        request = self.requests.get(frame.id)
        if request is None or request.output is None or request.abandoned:
            return
        if request in self.listeners:
            request.output.append(frame)
        elif request.early < OUTPUT_EARLY:
            request.early += OUTPUT_FRAME + len(frame.data)
            request.output.append(frame)

    def _note(self, frame: Frame) -> None:
        try:
            note = json.loads(frame.data)
        except (ValueError, RecursionError):
            note = None
        if not isinstance(note, dict):
            raise ProtocolError(f"a frame of type {frame.type} that is not a JSON object")
        if frame.type == wire.READY and self.ready is None:
            if note.get("protocol") != wire.PROTOCOL:
                raise ProtocolError(f"it does not speak version {wire.PROTOCOL} of the protocol: rebuild its rootfs")
            self.ready = note
        elif frame.type == wire.NOTICE:
            self.output_cut = self.output_cut or note.get("output") == "cut"
