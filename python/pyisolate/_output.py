"""What a guest prints, as text for the callbacks of an exec."""

from __future__ import annotations

import codecs
from typing import Callable, Optional

from . import _frames as wire


class OutputText:
    """Hands output frames to an exec's callbacks, as text."""

    def __init__(
        self, on_stdout: Optional[Callable[[str], object]], on_stderr: Optional[Callable[[str], object]]
    ) -> None:
        self._callbacks = {wire.STDOUT: on_stdout, wire.STDERR: on_stderr}
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {wire.STDOUT: decoder("replace"), wire.STDERR: decoder("replace")}

    def __call__(self, frame: wire.Frame) -> None:
        self._show(frame.type, self._decoders[frame.type].decode(frame.data))

    def finish(self) -> None:
        """Show what an unfinished character left behind."""
        for stream, decoder in self._decoders.items():
            self._show(stream, decoder.decode(b"", True))

    def _show(self, stream: int, text: str) -> None:
        callback = self._callbacks[stream]
        if callback is not None and text:
            callback(text)
