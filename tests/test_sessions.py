"""Sessions of ONNX Runtime: what runs a graph."""

import threading

import pytest

from regionhash import sessions
from regionhash.sessions import at_once, n_threads, open_session
from tiny_encoders import write_encoder


def test_graphs_run_on_the_cpu_with_the_threads_that_torch_would_take(tmp_path):
    session = open_session(write_encoder(tmp_path), "here")
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == n_threads()


def test_a_file_that_is_no_graph_is_one_line(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(KeyError, match="here: not a readable graph"):
        open_session(tmp_path / "x.onnx", "here", type("Refused", (KeyError, ValueError), {}))


@pytest.mark.parametrize("threads", [1, 3])
def test_work_is_done_in_order_several_at_a_time(monkeypatch, threads):
    monkeypatch.setattr(sessions, "n_threads", lambda: threads)
    together = threading.Barrier(threads, timeout=20)

    def work(n, factor):
        together.wait()  # none goes on until as many as there are threads have come
        return n * factor

    assert at_once(work, range(6), [2] * 6) == [0, 2, 4, 6, 8, 10]
    assert at_once(work, [], []) == []


def test_an_error_of_the_work_is_raised(monkeypatch):
    monkeypatch.setattr(sessions, "n_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        at_once(lambda n: 1 // n, [1, 0, 2])
