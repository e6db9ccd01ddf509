"""The table of a sweep's progress, and its estimates of time."""

import dataclasses
import datetime

from helpers import make_seeds

from resnet_cifar import progress
from resnet_cifar.grid import make_jobs, take_shard
from resnet_cifar.progress import estimate, status, time_left


def test_the_time_left_is_estimated_from_finished_runs(tiny, tmp_path, monkeypatch):
    jobs = make_seeds(tiny, tmp_path, seeds=(0, 1, 2))
    jobs[2] = jobs[2]._replace(config=dataclasses.replace(tiny, depth=50, num_epochs=8))
    done = {jobs[0].folder: {"train_seconds": 100.0, "eval_seconds": 20.0}}
    monkeypatch.setattr(progress, "result", lambda job: done.get(job.folder, {}))
    # 120 s like the first one, and 14 times as long: twice the steps, seven times the layers.
    assert time_left(jobs, jobs[1:]).startswith("2 runs left, about 0:30:00 ")
    assert time_left(jobs, []) == "0 runs left"


def test_the_status_of_a_shard_has_all_networks(tmp_path):
    text = status(take_shard(make_jobs(tmp_path), "1/2"))
    networks = ["ResNet20", "ResNet32", "ResNet44", "ResNet56", "ResNet110"]
    assert text.split()[:6] == ["finished", *networks]
    assert text.endswith("\n75 runs left")


def test_a_plan_is_estimated_from_a_step_of_its_smallest_network(tiny, tmp_path):
    jobs = make_seeds(tiny, tmp_path, seeds=(0, 1, 2))
    jobs[2] = jobs[2]._replace(config=dataclasses.replace(tiny, depth=50))
    # 16 steps each, of 2 s; the last network has seven times the layers.
    line = estimate(jobs, lambda config: {8: 2.0}[config.depth])
    assert line.startswith(f"about {datetime.timedelta(seconds=16 * 2 * 9)} of training")
