"""The access log: a real file, moved away under its feet."""

import os
import time

import pytest

from gateway.access_log import MAX_LINES, AccessLog
from gateway.messages import Access


def wait_for(path, text):
    deadline_s = time.monotonic() + 5
    while not (path.exists() and path.read_text() == text):
        assert time.monotonic() < deadline_s, path.read_text()
        time.sleep(0.01)


def test_lines_are_appended_and_the_file_is_reopened(tmp_path):
    path = tmp_path / "access.log"
    path.write_text("old\n")
    log = AccessLog(str(path))
    log.take(Access([b"1", b"2"]))
    wait_for(path, "old\n1\n2\n")
    path.rename(tmp_path / "access.log.1")
    log.reopen()
    wait_for(path, "")
    log.take(Access([b"3"]))
    log.close()
    assert path.read_text() == "3\n"
    assert log.dropped == 0


def test_a_full_disk_costs_lines_that_are_counted(caplog):
    log = AccessLog("/dev/full")
    for _ in range(3):
        log.take(Access([b"1", b"2"]))
        time.sleep(0.05)
    log.close()
    assert log.dropped == 6
    (complaint,) = caplog.messages
    assert "No space left on device (2 lines lost so far)" in complaint


def test_a_reader_that_stops_costs_lines_and_not_the_gateway(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path))
    for _ in range(3):
        log.take(Access([b"x" * 100] * (MAX_LINES // 2)))
    assert log.dropped > 0
    os.set_blocking(reader, True)
    while log._lines:
        os.read(reader, 1 << 20)
    log.close()
    os.close(reader)


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        AccessLog(str(tmp_path / "no" / "file"))
