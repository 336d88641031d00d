"""Ctrl-C and shutdown end a run after its current step."""

import signal


class StopSignal:
    """Inside `with StopSignal() as stop:` a first signal sets `stop.asked`, a second one interrupts at once."""

    def __init__(self):
        self.asked = False
        self.old = {}

    def __enter__(self):
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, shutdown, a closed terminal (Windows lacks the last)
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: it must go on
            try:
                self.old[number] = signal.signal(number, self.ask)
            except ValueError:  # not in the main thread: the caller's thread decides
                pass
        return self

    def ask(self, *_):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)
