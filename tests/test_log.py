"""The log shows where a run is and writes rows that can be read back."""

import fcntl
import os
import pty
import re
import struct
import termios

import numpy as np

from resnet_cifar.log import Log, read_rows
from resnet_cifar.metrics import Done
from resnet_cifar.streams import safe_streams

ROW = {"step": 4, "epoch": 1.0, "split": "test", "loss": 0.5, "accuracy": 0.75}


def dispatch(split, count):
    metrics = {"count": np.array([count]), "loss_sum": np.array([2.0 * count])}
    return Done(split, 0, metrics, 1.0)


def new_log(folder, rows=(), **options):
    sizes = {"step": 0, "num_steps": 10, "batch_size": 8}
    return Log(folder, list(rows), **sizes, **options)


def test_rows_come_back(tmp_path):
    later = ROW | {"step": 8, "epoch": 2.0}
    with new_log(tmp_path, [ROW]) as log:
        log.write(later)
    assert read_rows(tmp_path) == [ROW, later]


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    with new_log(tmp_path, [ROW]):
        pass
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "epo')
    assert read_rows(tmp_path) == [ROW]


def test_a_row_is_one_line_to_read(tmp_path, capsys):
    with new_log(tmp_path) as log:
        log.write(ROW | {"learning_rate": 0.1, "images_per_second": 1234.5})
    line = (
        "epoch 1  step 4  test       loss 0.5000  accuracy 75.00%  learning rate 0.1  1,234 image"
    )
    assert line in capsys.readouterr().out


def test_without_a_terminal_long_epochs_print_a_line(tmp_path, capsys):
    with new_log(tmp_path, plain_line_seconds=0) as log:
        log.progress(dispatch("train", 8), 0.1)
        log.progress(dispatch("test", 100), 0.1)
        log.progress(dispatch("test", 50), 0.1)
    lines = capsys.readouterr().out.splitlines()
    pattern = r"step 1 of 10  loss 2.0000  [\d,]+ images/s overall  0:00:\d\d left"
    assert re.fullmatch(pattern, lines[0])
    assert "scoring test: 100 images" in lines[1] and "scoring test: 150 images" in lines[2]


def test_a_terminal_gets_a_progress_bar(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with open(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with safe_streams(), new_log(tmp_path) as log:
            log.progress(dispatch("train", 8), 0.1)
            log.progress(dispatch("test", 100), 0.1)
        shown = os.read(ours, 65536)
    os.close(ours)
    assert re.search(rb"10%\|.* images/s, epoch 0.1, test 100\]", shown)


def test_a_missing_stdout_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    with new_log(tmp_path) as log:
        log.write(ROW)
    assert read_rows(tmp_path) == [ROW]
