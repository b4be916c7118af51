"""Work in a process that is killed in the middle."""

import multiprocessing
import time


def killed_in(owner, name, work):
    """Does some work in a process that is killed when it has called `owner.name` once."""
    context = multiprocessing.get_context("fork")
    called = context.Event()

    def halting():
        original = getattr(owner, name)

        def halt(*arguments, **named):
            original(*arguments, **named)
            called.set()
            time.sleep(60)

        setattr(owner, name, halt)
        work()

    process = context.Process(target=halting)
    process.start()
    assert called.wait(60)
    process.kill()
    process.join()
