"""A time limit for code that may never end."""

import ctypes
import threading
import time
from collections.abc import Callable


class TimeUp(SystemExit):
    """Ends a thread from outside; no `except Exception` catches it, and a thread may end with it in silence."""


def within(seconds: float, run: Callable):
    """What run() returns or raises, or TimeUp when it takes longer than that.

    It runs in a thread of its own, which alone is interrupted, so that nothing can strike the caller afterwards. That
    works on every system and in any thread (a signal would not). What cannot be interrupted is left behind: a wait
    outside Python, in `sleep` say, until it is over, and a loop around a bare `except:` until the kernel ends.
    """
    outcome, lock, over = {}, threading.Lock(), threading.Event()

    def work() -> None:
        try:
            try:
                outcome["result"] = run()
            except BaseException as error:  # SystemExit and KeyboardInterrupt too belong to the caller
                outcome["error"] = error
            with lock:
                over.set()
        except TimeUp:  # sent in the very last moment
            pass

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    end = time.monotonic() + seconds
    try:
        while worker.is_alive() and time.monotonic() < end:
            worker.join(min(0.1, seconds))  # in short pieces: Windows hears no interrupt while it waits
        late = worker.is_alive()
    finally:
        _stop(worker, lock, over)
    if late:
        raise TimeUp
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def _stop(worker: threading.Thread, lock: threading.Lock, over: threading.Event) -> None:
    """Raise TimeUp in the thread while it works; a few times, as a `finally` or a bare `except:` may swallow one."""
    for _ in range(20):
        with lock:
            if over.is_set() or not worker.is_alive():
                return
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(TimeUp))
        worker.join(0.05)
