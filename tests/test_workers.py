"""A process for each GPU: found without JAX, given equal shares, stopped together."""

import signal
import threading

import pytest

from resnet_cifar.errors import UserError
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.workers import advice, gpu_ids, run_workers, share


def test_gpus_are_named_or_found():
    assert gpu_ids("0,2", {}) == ["0", "2"]
    assert gpu_ids("all", {"CUDA_VISIBLE_DEVICES": "3,GPU-5f"}) == ["3", "GPU-5f"]
    for bad in ("0,0", ","):
        with pytest.raises(UserError, match="each once, like 0,1 or all"):
            gpu_ids(bad, {})


def test_all_gpus_without_nvidia_smi_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="name the GPUs, like --gpus=0,1"):
        gpu_ids("all", {})


def test_shares_hold_every_job_and_differ_by_one_job_at_most():
    jobs = [56, 20, 110, 32, 44] * 3
    shares = share(jobs, 4, cost=float)
    assert sorted(job for own in shares for job in own) == sorted(jobs)
    totals = [sum(own) for own in shares]
    assert max(totals) - min(totals) <= max(jobs)
    assert share([1, 2], 3, cost=float) == [[2], [1], []]


def test_advice_names_the_way_that_suits():
    assert "without --gpus" in advice(3, 8, by_gpu=True)
    assert not advice(8, 8, by_gpu=True)
    assert "--gpus=all" in advice(8, 8, by_gpu=False)
    assert not advice(3, 8, by_gpu=False) and not advice(8, 1, by_gpu=False)


def test_each_worker_sees_its_gpu_alone(tmp_path):
    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])"
    commands = {gpu: ["-c", code, str(tmp_path / gpu)] for gpu in ("0", "1")}
    run_workers(commands, Stop(), poll_seconds=0.01)
    assert [(tmp_path / gpu).read_text() for gpu in ("0", "1")] == ["0", "1"]
    with pytest.raises(UserError, match="some runs failed on GPU 1"):
        run_workers({"0": ["-c", ""], "1": ["-c", "raise SystemExit(1)"]}, Stop())


def test_a_signal_reaches_every_worker():
    stop = Stop()
    threading.Timer(0.5, setattr, (stop, "signal", signal.SIGTERM)).start()
    with pytest.raises(Stopped):
        run_workers({gpu: ["-c", "import time; time.sleep(60)"] for gpu in "01"}, stop)
