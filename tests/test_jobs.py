import asyncio
import threading
import time

import pytest

from regionhash.service.jobs import BusyError, Jobs, call_each


def soon(seconds=5.0):
    return time.monotonic() + seconds


def test_a_call_that_is_given_up_keeps_its_place_until_it_ends():
    async def check():
        jobs, release = Jobs(1, "t", call_each), threading.Event()
        with pytest.raises(TimeoutError):
            await jobs.run(release.wait, soon(0.05))
        assert jobs.running == 1
        with pytest.raises(BusyError, match="busy"):  # nothing was begun
            await jobs.run(lambda: 1, soon(0.05))
        release.set()
        assert await jobs.run(lambda: 2, soon()) == 2
        assert jobs.running == 0
        jobs.stop()

    asyncio.run(check())


def test_no_more_calls_run_at_a_time_than_there_are_places():
    async def check():
        jobs, lock, running, most = Jobs(3, "t", call_each), threading.Lock(), 0, 0

        def call():
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.01)
            with lock:
                running -= 1

        await asyncio.gather(*(jobs.run(call, soon()) for _ in range(20)))
        assert most == 3
        jobs.stop()

    asyncio.run(check())


def test_errors_are_told_and_the_thread_goes_on():
    async def check():
        jobs = Jobs(1, "t", call_each)

        def fail(error):
            raise error

        for error in (ValueError("a"), KeyError(1)):
            with pytest.raises(type(error)):
                await jobs.run(lambda error=error: fail(error), soon())
        assert await jobs.run(lambda: 2, soon()) == 2
        jobs.stop()

    asyncio.run(check())


def test_what_waits_at_the_end_is_not_begun_and_the_threads_end():
    begun, release = [], threading.Event()

    async def check():
        jobs = Jobs(1, "t", call_each)
        first = asyncio.create_task(jobs.run(release.wait, soon(60)))
        while not jobs.running:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(jobs.run(lambda: begun.append(2), soon(60)))
        await asyncio.sleep(0.01)
        jobs.stop()
        assert len(await asyncio.gather(first, second, return_exceptions=True)) == 2
        return jobs

    jobs = asyncio.run(check())
    ended = []
    hook, threading.excepthook = threading.excepthook, ended.append
    try:
        release.set()
        for thread in jobs._threads:
            thread.join(5)
            assert not thread.is_alive()
    finally:
        threading.excepthook = hook
    assert begun == ended == []
    assert jobs.running == 0


def test_who_waits_at_the_end_is_answered():
    async def check():
        jobs, release = Jobs(1, "t", call_each), threading.Event()
        waiting = [asyncio.create_task(jobs.run(release.wait, soon(60))) for _ in range(3)]
        while not jobs.running:
            await asyncio.sleep(0.01)
        jobs.stop()
        for asked in waiting:
            with pytest.raises(BusyError, match="shutting down"):
                await asked
        with pytest.raises(BusyError, match="shutting down"):
            await jobs.run(lambda: 1, soon(60))
        release.set()

    asyncio.run(check())


def test_what_waits_is_done_together_and_a_lone_job_at_once():
    async def check():
        taken, begun, release = [], threading.Event(), threading.Event()

        def answer_all(wanted):
            taken.append(wanted)
            begun.set()
            assert release.wait(10)
            return [ValueError(n) if n == 3 else -n for n in wanted]

        jobs = Jobs(1, "t", answer_all, most=4)
        asked = [asyncio.create_task(jobs.run(0, soon()))]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(begun.wait, 10)  # without others
        asked += [asyncio.create_task(jobs.run(n, soon())) for n in range(1, 8)]
        await asyncio.sleep(0)
        asked[2].cancel()  # before it was begun
        await asyncio.sleep(0)
        release.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert taken == [[0], [1, 3, 4, 5], [6, 7]]
        assert isinstance(answers.pop(3), ValueError)
        assert isinstance(answers.pop(2), asyncio.CancelledError)
        assert answers == [0, -1, -4, -5, -6, -7]
        assert jobs.running == 0 and not jobs._unanswered
        jobs.stop()

    asyncio.run(check())


def test_jobs_done_together_are_given_up_one_by_one():
    async def check():
        release, failed = threading.Event(), []
        jobs = Jobs(1, "t", lambda wanted: [release.wait(10) for _ in wanted], most=2)
        begun = asyncio.create_task(jobs.run(0, soon(0.2)))
        while not jobs.running:
            await asyncio.sleep(0.01)
        patient, late = (asyncio.create_task(jobs.run(n, soon(n))) for n in (60, 0.1))
        with pytest.raises(BusyError, match="busy"):
            await late
        with pytest.raises(TimeoutError):
            await begun
        assert jobs.running == 1
        asyncio.get_running_loop().set_exception_handler(lambda _, about: failed.append(about))
        release.set()
        assert await patient is True
        assert failed == []  # what was given up is not answered again
        jobs.stop()

    asyncio.run(check())


def test_an_error_of_doing_jobs_together_is_the_answer_of_each_and_the_thread_goes_on():
    async def check():
        def answer_all(wanted):
            return [1 / n for n in wanted]

        jobs = Jobs(1, "t", answer_all, most=2)
        with pytest.raises(ZeroDivisionError):
            await jobs.run(0, soon())
        assert await jobs.run(2, soon()) == 0.5
        jobs.stop()

    asyncio.run(check())
