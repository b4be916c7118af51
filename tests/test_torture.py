"""The torture finds what is broken on purpose, and its oracle is right."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from math import inf
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[1] / "benchmarks" / "torture"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}


def torture(*options):
    """Exit status, report and messages of a run."""
    ended = subprocess.run(
        [sys.executable, TORTURE, "--json", "--seed", "1", *options],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=200,
    )
    return ended.returncode, json.loads(ended.stdout), ended.stderr


@pytest.fixture
def history(monkeypatch):
    monkeypatch.syspath_prepend(str(TORTURE))
    import history

    yield history
    for name in ("history", "world"):
        sys.modules.pop(name, None)


ONE_WRITER = (
    *("--minutes", "0.2", "--round", "6", "--writers", "1", "--readers", "0"),
    *("--no-service", "--stories", ""),
)
QUIET = ("--without", "drop arrays,remove,remove folder,export,import", "--no-full")


@pytest.mark.slow
def test_a_writer_that_is_killed_all_the_time_leaves_what_was_acknowledged():
    status, report, told = torture(*ONE_WRITER, *QUIET)
    assert (status, report["violations"]) == (0, 0), told
    assert report["operations"] > 50
    assert report["kills"] > 3
    assert report["events by kind"]["verifications"] >= 1


@pytest.mark.slow
def test_a_row_that_is_deleted_behind_the_back_is_missed():
    status, report, told = torture(*ONE_WRITER, *QUIET, "--sabotage", "row")
    assert status == 1
    assert {"lost", "hidden"} & set(report["violations by kind"]), told


@pytest.mark.slow
def test_codes_that_are_changed_behind_the_back_are_seen():
    status, report, told = torture(*ONE_WRITER, *QUIET, "--sabotage", "codes")
    assert status == 1
    assert report["violations by kind"]["torn"] > 0, told


@pytest.mark.slow
def test_interrupted_it_leaves_no_folder_no_mount_and_no_process():
    # Not tmp_path, which other runs of pytest move away while something is mounted in it.
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, TORTURE, "--minutes", "3", "--stories", ""],
            env=ENVIRONMENT | {"TMPDIR": folder},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while started.poll() is None and not list(Path(folder).glob("torture-*/logs/writer*")):
                time.sleep(0.1)
            started.send_signal(signal.SIGINT)
            started.wait(60)
        finally:
            started.kill()
            started.wait()
        told = (Path(folder) / "log").read_text()
        assert "interrupted" in told
        assert list(Path(folder).glob("torture-*")) == []
        assert folder not in Path("/proc/mounts").read_text()
        with pytest.raises(ProcessLookupError):
            os.killpg(started.pid, 0)


# The oracle, by hand


def operation(history, kind, begin, end, done=True, scope="/w/a.png"):
    return history.Operation(kind, scope, begin, end, done)


def test_an_acknowledged_add_leaves_only_what_the_file_is(history):
    contents = [history.Content(1, -inf, 12), history.Content(2, 10, inf)]
    add = operation(history, "add", 20, 30, scope="/w")
    assert history.allowed("/w/a.png", 1, contents, [add]) == {2}
    assert history.allowed("/other/a.png", 1, contents, [add]) == {1}


def test_an_interrupted_operation_may_have_happened_or_not(history):
    contents = [history.Content(2)]
    add = operation(history, "add", 20, 30, done=False)
    remove = operation(history, "remove", 40, 50, done=False)
    assert history.allowed("/w/a.png", 1, contents, [add]) == {1, 2}
    assert history.allowed("/w/a.png", 1, contents, [add, remove]) == {1, 2, history.ABSENT}


def test_a_refresh_of_another_process_may_undo_a_removal_only_if_it_ends_later(history):
    contents = [history.Content(2)]
    remove = operation(history, "remove", 20, 30)
    before, beside = operation(history, "refresh", 5, 15), operation(history, "refresh", 5, 25)
    after = operation(history, "refresh", 40, 50)
    assert history.allowed("/w/a.png", 2, contents, [before, remove]) == {history.ABSENT}
    assert history.allowed("/w/a.png", 2, contents, [beside, remove]) == {history.ABSENT, 2}
    assert history.allowed("/w/a.png", 2, contents, [remove, after]) == {2}


def test_a_file_that_is_gone_is_removed_by_a_refresh_and_may_be_moved_by_an_add_elsewhere(history):
    contents = [history.Content(2, -inf, 10), history.Content(history.GONE, 10, inf)]
    refresh = operation(history, "refresh", 20, 30)
    elsewhere = operation(history, "add", 20, 30, scope="/v")
    assert history.allowed("/w/a.png", 2, contents, [refresh]) == {history.ABSENT}
    assert history.allowed("/w/a.png", 2, contents, [elsewhere]) == {2, history.ABSENT}


def test_an_add_that_overlaps_a_replacement_may_have_seen_either_but_a_later_one_decides(history):
    contents = [history.Content(1, -inf, 22), history.Content(2, 20, inf)]
    beside, after = operation(history, "add", 10, 40), operation(history, "add", 30, 35)
    assert history.allowed("/w/a.png", 0, contents, [beside]) == {1, 2}
    assert history.allowed("/w/a.png", 0, contents, [beside, after]) == {2}


def test_notes_of_a_killed_process_end_when_the_next_one_starts(history):
    notes = [
        *(["start", 0], ["file", 1, "/w/a.png", 5], ["done", 2], ["begin", 3, "add", "/w"]),
        *(["start", 9], ["is", 9, "/w/a.png", 5], ["begin", 10, "refresh", ""], ["end", 11, "ok"]),
    ]
    add, refresh = history.operations_of(notes)
    assert (add.end, add.done, refresh.end, refresh.done) == (9, False, 11, True)
    assert [
        content.number
        for content in history.contents_of("/w/a.png", 4, notes)
        if content.end == inf
    ] == [5]
