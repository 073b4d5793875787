"""Work on shards in several processes: none outlives this one, and no error is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable


class ProcessKilledError(ValueError):
    """A process was killed from outside; the message is one line for the user."""


def run_in_processes(function: Callable[..., Any], tasks: Sequence[tuple], processes: int) -> Iterator[tuple[int, Any]]:
    """Calls `function(*task)` for every task; with one process, or one task, in this process.

    Yields:
        the number of a task and its result, as they are finished.

    Raises:
        ProcessKilledError: one was killed, maybe for memory. And whatever `function` raises.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        for number, task in enumerate(tasks):
            yield number, function(*task)
        return
    # Spawned and not forked: the caller may hold threads and a device, which a fork would copy half-dead.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_depend_on_parent)
    try:
        # Ctrl-C reaches every process of the terminal; the parent alone decides what to do. What it holds back while
        # it starts the others, they hold back for good.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            numbers = {executor.submit(function, *task): number for number, task in enumerate(tasks)}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except BrokenProcessPool:
        raise ProcessKilledError("a process was killed at its work, maybe for memory: give fewer processes") from None
    except BaseException:
        # Nobody waits for what they are at; and interrupted once more while it waits, older Pythons' pool never ends.
        for process in list((executor._processes or {}).values()):
            process.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _depend_on_parent() -> None:
    """When the parent dies, so does this process."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
