"""A line on the terminal that says how far a long job is: `decoded 128/630 tables, 21 s left`."""

import sys
import time

from harness.files import is_terminal


class Progress:
    """`progress(done)` rewrites the line, which appears only if standard error is a terminal.

    verb, total, what   e.g. "decoded", 630, "tables"; without a noun, what=""
    shown               False: never
    """

    def __init__(self, verb: str, total: int, what: str = "", shown: bool = True):
        self.verb, self.total, self.what = verb, total, f" {what}" if what else ""
        self.shown, self.began = shown and is_terminal(sys.stderr), time.monotonic()

    def __call__(self, done: int) -> None:
        """done: at least 1; what exceeds the total counts as all."""
        if not self.shown:
            return
        done = min(done, self.total)
        left = (time.monotonic() - self.began) / done * (self.total - done)
        line = f"\r{self.verb} {done}/{self.total}{self.what}, {left:.0f} s left "
        print(line, end="\n" if done == self.total else "", file=sys.stderr, flush=True)
