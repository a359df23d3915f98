"""What user code prints, on its way from a worker to whoever looks."""

import io
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqrs.flows import flow
from supervisors.worker import output
from supervisors.worker.output import BEGUN_MAX, BEGUN_S, LINE_BYTES_MAX, Line, LineReader, RunStream, Stacks


class Running:
    def __init__(self, run: int) -> None:
        self.id = run


class Scene:
    """A worker's two streams on a pipe that a thread reads; `run` says whose code prints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        readable, self.fd = os.pipe()
        self._data = bytearray()
        self._thread = threading.Thread(target=self._read, args=(readable,), daemon=True)
        self._thread.start()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(output, "_tagging", True)
        monkeypatch.setattr(output, "_on_cpu", None)
        self.out, self.err = RunStream(self.fd, "<stdout>"), RunStream(self.fd, "<stderr>")
        monkeypatch.setattr(output, "_streams", {"stdout": self.out, "stderr": self.err})

    def run(self, run: int | None) -> None:
        self._monkeypatch.setattr(flow, "running", lambda: None if run is None else Running(run))

    def lines(self) -> list[tuple[int | None, str]]:
        """Ends the worker."""
        output.finish_output()
        os.close(self.fd)
        self._thread.join(10)
        reader = LineReader()
        found = reader.feed(bytes(self._data)) + reader.rest()
        return [(line.run, line.text) for line in found]

    def _read(self, fd: int) -> None:
        while data := os.read(fd, 65536):
            self._data += data
        os.close(fd)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


# The stream


def test_it_is_what_python_has_there(scene: Scene) -> None:
    out = scene.out
    assert isinstance(out, io.TextIOWrapper)
    assert isinstance(out.buffer, io.BufferedWriter)
    assert isinstance(out.buffer.raw, io.FileIO)
    assert (out.name, out.mode, out.encoding) == ("<stdout>", "w", "utf-8")
    assert (out.buffer.name, out.buffer.mode) == ("<stdout>", "wb")
    assert (out.fileno(), out.isatty(), out.line_buffering) == (scene.fd, False, False)
    assert (out.writable(), out.readable(), out.seekable()) == (True, False, False)
    out.reconfigure(line_buffering=True)
    assert out.line_buffering


def test_every_way_to_write_is_the_run_s(scene: Scene) -> None:
    scene.run(7)
    print("print", file=scene.out)
    scene.out.writelines(["lines\n", "of text\n"])
    scene.out.buffer.write(b"bytes\n")
    scene.out.buffer.writelines([b"lines\n", memoryview(b"of bytes\n")])
    scene.out.reconfigure(encoding="latin-1", errors="replace", write_through=False)
    scene.out.write("café\n")
    scene.out.reconfigure(encoding="utf-8")
    io.TextIOWrapper(scene.err.detach(), write_through=True).write("detached\n")
    assert scene.lines() == [
        (7, "print"),
        (7, "lines"),
        (7, "of text"),
        (7, "bytes"),
        (7, "lines"),
        (7, "of bytes"),
        (7, "caf\ufffd"),
        (7, "detached"),
    ]


def test_a_run_that_closes_it_closes_it_for_nobody(scene: Scene) -> None:
    scene.run(1)
    scene.out.write("half")
    scene.out.close()
    scene.out.buffer.close()
    scene.run(2)
    print("goes on", file=scene.out)
    assert scene.lines() == [(2, "goes on"), (1, "half")]


def test_what_user_code_made_of_it_is_flushed_when_the_run_leaves(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.run(3)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(scene.out.buffer, encoding="utf-8"))
    print("of another wrapper")
    output.finish_lines(3)
    monkeypatch.undo()
    assert scene.lines() == [(3, "of another wrapper")]


def test_lines_of_several_runs_do_not_mix(scene: Scene) -> None:
    for text in ("a", "b\n", "c", "\n"):
        for run in (1, 2, None):
            scene.run(run)
            scene.out.write(text)
    assert scene.lines() == [(1, "ab"), (2, "ab"), (None, "ab"), (1, "c"), (2, "c"), (None, "c")]


def test_a_last_line_without_an_end_is_shown_when_its_run_leaves(scene: Scene) -> None:
    for run in (1, 2):
        scene.run(run)
        scene.out.write("whole\nhalf")
    output.finish_lines(1)
    output.finish_lines(1)
    output.finish_lines(3)
    scene.run(2)
    scene.out.write(" and the other\n")
    assert scene.lines() == [(1, "whole"), (2, "whole"), (1, "half"), (2, "half and the other")]


def test_what_was_flushed_is_there_when_the_worker_dies(scene: Scene) -> None:
    scene.run(1)
    print("about to ", end="", file=scene.out, flush=True)
    print("kept here", end="", file=scene.err)
    scene.err.lines.forget()  # as a kill does
    scene.out.lines.forget()
    assert scene.lines() == [(1, "about to ")]


def test_dots_that_are_flushed_are_one_line(scene: Scene) -> None:
    scene.run(1)
    for _ in range(20):
        print(".", end="", file=scene.out, flush=True)
    print(file=scene.out)
    print("next", file=scene.out)
    assert scene.lines() == [(1, "." * 20), (1, "next")]


def test_a_line_without_an_end_takes_time_that_grows_with_its_length_alone(scene: Scene) -> None:
    scene.run(1)
    took_s = []
    for numbers in (20_000, 200_000):
        began = time.perf_counter()
        json.dump(list(range(numbers)), scene.out)
        took_s.append(time.perf_counter() - began)
    assert took_s[1] < 40 * took_s[0] + 1.0, "it was a hundred times as long"
    lines = scene.lines()
    assert max(len(text) for _, text in lines) <= LINE_BYTES_MAX
    assert json.loads("[" + "".join(text for _, text in lines).replace("][", "], [") + "]")[1][-1] == 199_999


def test_threads_of_a_run_lose_and_mix_nothing(scene: Scene) -> None:
    """A thread has no context of its own: what it prints is of the run that has the CPU."""
    scene.run(None)
    output.has_cpu(5)

    def chat(n: int) -> None:
        for k in range(300):
            print(f"{n}:{k}", "x" * 50, file=(scene.out, scene.err)[k % 2])

    threads = [threading.Thread(target=chat, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = scene.lines()
    assert {run for run, _ in lines} == {5}
    assert sorted(text for _, text in lines) == sorted(
        f"{n}:{k} {'x' * 50}" for n in range(8) for k in range(300)
    )


def test_a_pipe_that_was_made_non_blocking_loses_nothing(scene: Scene) -> None:
    """As asyncio's connect_write_pipe does, for all who share it."""
    os.set_blocking(scene.fd, False)
    scene.run(1)
    for _ in range(200):
        print("x" * 5000, file=scene.out)
    assert scene.lines() == [(1, "x" * 5000)] * 200


def test_a_forked_child_does_not_say_what_its_parent_has_begun(scene: Scene) -> None:
    scene.run(1)
    scene.out.write("begun ")
    pid = os.fork()
    if not pid:
        print("of the child", file=scene.out, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    scene.out.write("and ended\n")
    assert scene.lines() == [(1, "of the child"), (1, "begun and ended")]


def test_a_fork_while_another_thread_prints_does_not_hang(scene: Scene) -> None:
    scene.run(1)
    with output._lock:
        pid = os.fork()
        if not pid:
            print("of the child", file=scene.out)
            os._exit(0)
        os.waitpid(pid, 0)
    assert scene.lines() == [(1, "of the child")]


def test_a_tag_in_what_is_printed_is_shown_and_not_obeyed(scene: Scene) -> None:
    scene.run(1)
    print("\x1e2\x1fforged\na \x1e2\x1fb", file=scene.out)
    assert scene.lines() == [(1, "\\x1e2\x1fforged"), (1, "a \\x1e2\x1fb")]


def test_what_goes_past_python_is_the_run_s_that_had_the_cpu(scene: Scene) -> None:
    before = os.dup(1)
    os.dup2(scene.fd, 1)
    try:
        held = threading.Event()
        # Nobody reads meanwhile: the supervisor may come late.
        _hold_reader(scene, held)
        output.has_cpu(1)
        os.write(1, b"raw of 1\n")
        subprocess.run(["echo", "a child of 1"], check=True)
        output.has_cpu(1)
        output.has_cpu(2)
        scene.run(2)
        print("of 2", file=scene.out)
        os.write(1, b"no end, of 2")
        output.has_cpu(3)
        os.write(1, b"of 3\n")
        output.has_cpu(4)
        held.set()
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert scene.lines() == [
        (1, "raw of 1"),
        (1, "a child of 1"),
        (2, "of 2"),
        (2, "no end, of 2"),
        (3, "of 3"),
    ]


def test_without_a_board_a_mark_says_whose_the_next_lines_are() -> None:
    told = b"early\n\x1e1@\x1f\nraw of 1\n\x1e2@\x1f\nraw of 2\n\x1e1\x1ftagged\nof 2"
    assert [(line.run, line.text) for line in read(told)] == [
        (None, "early"),
        (1, "raw of 1"),
        (2, "raw of 2"),
        (1, "tagged"),
        (2, "of 2"),
    ]


def _hold_reader(scene: Scene, held: threading.Event) -> None:
    """The thread that reads stops until then. One line may still pass."""
    read = os.read

    def patient(fd: int, count: int) -> bytes:
        if threading.current_thread() is scene._thread:
            held.wait(10)
        return read(fd, count)

    scene._monkeypatch.setattr(os, "read", patient)
    print("passes", file=scene.out)
    while not scene._data:
        time.sleep(0.001)
    scene._data.clear()


# The reader


def read(data: bytes, cuts: list[int] | None = None) -> list[Line]:
    reader = LineReader()
    found: list[Line] = []
    at = 0
    for size in cuts or [len(data)]:
        found += reader.feed(data[at : at + size])
        at += size
    return found + reader.feed(data[at:]) + reader.rest()


POISON: dict[str, bytes] = {
    "digits without an end": b"\x1e" + b"9" * 5000 + b"\x1f\n",
    "digits without an end nor a line": b"\x1e" + b"9" * 50_000,
    "other digits": b"\x1e\xd9\xa3\x1fx\n",
    "signs": b"\x1e-1\x1fx\n\x1e+1\x1fx\n\x1e 1\x1fx\n",
    "no tag": b"\x1e\n\x1f\n\x1e\x1f\n\x1e!\x1f\n",
    "tags in a row": b"\x1e1\x1f" * 10_000 + b"\n",
    "marks in a row": b"\x1e1!\x1f\n" * 10_000,
    "beginnings of many runs": b"".join(b"\x1e%d+\x1fx\n" % n for n in range(5000)),
    "one beginning after another": b"\x1e1+\x1f" + b"x\n\x1e1+\x1f" * 50_000,
    "zeros": bytes(100_000),
    "line feeds": b"\n" * 10_000,
}


@pytest.mark.parametrize("what", POISON)
def test_whatever_comes_are_lines_of_bounded_length(what: str) -> None:
    lines = read(POISON[what], [7] * 1000)
    assert all(len(line.text) <= LINE_BYTES_MAX + 22 for line in lines)
    assert all(line.run is None or 0 <= line.run < 10**19 for line in lines)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from([b"\x1e", b"\x1f", b"\n", b"\x1e1\x1f", b"\x1e1+\x1f", b"\x1e2!\x1f", b"9" * 30]),
            st.integers(1, 3).map(lambda n: b"x" * n * LINE_BYTES_MAX),
        ),
        max_size=30,
    ).map(b"".join),
    st.lists(st.integers(1, 9000), max_size=20),
)
def test_any_bytes_in_any_pieces_are_lines(data: bytes, cuts: list[int]) -> None:
    reader = LineReader()
    found: list[Line] = []
    at = 0
    for size in [*cuts, len(data)]:
        found += reader.feed(data[at : at + size])
        at += size
        assert len(reader._buffer) <= LINE_BYTES_MAX + 22
        assert len(reader._begun) <= BEGUN_MAX
        assert all(len(begun) < LINE_BYTES_MAX for begun in reader._begun.values())
    found += reader.rest()
    assert all(len(line.text) <= LINE_BYTES_MAX + 22 for line in found)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.text(max_size=30)), max_size=20), st.lists(st.integers(1, 9)))
def test_what_streams_write_is_read_as_it_was_in_whatever_pieces(
    said: list[tuple[int, str]], cuts: list[int]
) -> None:
    readable, writable = os.pipe()
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(output, "_tagging", True)
            out = RunStream(writable, "<stdout>")
            for run, text in said:
                monkeypatch.setattr(flow, "running", lambda run=run: Running(run))
                print(text, file=out)
        os.close(writable)
        data = b""
        while more := os.read(readable, 65536):
            data += more
    finally:
        os.close(readable)
    expected = [
        (run, line.removesuffix("\r").replace("\x1e", "\\x1e"))
        for run, text in said
        for line in text.split("\n")
    ]
    assert [(line.run, line.text) for line in read(data, cuts)] == expected


def test_a_line_is_cut_between_characters() -> None:
    text = "é" * LINE_BYTES_MAX
    assert "".join(line.text for line in read(b"\x1e1\x1f" + text.encode() + b"\n", [3000] * 10)) == text


def test_a_beginning_is_shown_after_a_while() -> None:
    reader = LineReader()
    assert reader.feed(b"\x1e1+\x1fhow far \n", now=10.0) == []
    assert reader.overdue(10.0 + BEGUN_S / 2) == []
    assert reader.overdue(10.1 + BEGUN_S) == [Line(1, "how far ")]
    assert reader.overdue(20.0) == []


def test_stacks_are_bounded_and_hold_nothing_that_a_database_refuses() -> None:
    stacks = Stacks(until=10.0)
    assert stacks.take('  File "a\0b", line 3 in f', 5.0)
    for _ in range(1000):
        stacks.take('  File "' + "x" * 8000, 5.0)
    assert stacks.text is not None
    assert stacks.text.startswith('  File "a\\x00b", line 3 in f\n')
    assert len(stacks.text) <= output.STACK_BYTES_MAX + output.STACK_LINES_MAX
