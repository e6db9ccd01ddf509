"""The hub, by a fake one: a folder with a folder for each repository."""

import shutil
import sys
from unittest import mock

import numpy as np
import pytest
from helpers import assert_same, make_pretrained

from resnet_cifar import hub
from resnet_cifar.errors import UserError
from resnet_cifar.export import export
from resnet_cifar.pretrained import load
from resnet_cifar.weights import save_weights


class FakeHub:
    """Has the methods of `huggingface_hub.HfApi` that are called, with their arguments."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, repo_id, *, exist_ok=False):
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        assert commit_message
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.root / repo_id / name)

    def snapshot_download(self, repo_id, *, allow_patterns):
        if not (self.root / repo_id).is_dir():
            raise RuntimeError("404 Client Error\nRepository Not Found")
        return str(self.root / repo_id)


@pytest.fixture
def fake(tmp_path):
    return FakeHub(tmp_path / "hub")


def test_what_is_pushed_can_be_loaded(fake, tmp_path):
    trained = make_pretrained(("fig", "kiwi", "lime"), width=4)
    save_weights(tmp_path / "in.safetensors", trained)
    for number in (1, 2):  # A second push updates the repository.
        export(tmp_path / "in.safetensors", tmp_path / f"out{number}", push="me/net", api=fake)
    names = {path.name for path in (fake.root / "me" / "net").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    assert 'load("hf://me/net")' in (fake.root / "me" / "net" / "README.md").read_text()
    again = load("hf://me/net", api=fake)
    assert again.source == "hf://me/net"
    assert_same(again.variables, trained.variables)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(again.logits(images), trained.logits(images))


def test_a_failed_push_can_be_retried(fake, tmp_path):
    save_weights(tmp_path / "in.safetensors", make_pretrained(("fig", "kiwi"), width=4))
    arguments = {"output": tmp_path / "out", "push": "me/net", "api": fake}
    with (
        mock.patch.object(fake, "upload_folder", side_effect=RuntimeError("503")),
        pytest.raises(UserError, match=r"can't be written: 503.*run the command again"),
    ):
        export(tmp_path / "in.safetensors", **arguments)
    export(tmp_path / "in.safetensors", **arguments)
    assert (fake.root / "me" / "net" / "model.safetensors").exists()


def test_problems_of_the_hub_are_sentences(fake, tmp_path):
    with pytest.raises(UserError, match=r"hf://me/net can't be fetched: 404 Client Error\. Check"):
        hub.fetch("hf://me/net", fake)
    fake.create_repo("me/empty")
    with pytest.raises(UserError, match=r"hf://me/empty has no model\.safetensors"):
        hub.fetch("hf://me/empty", fake)
    with pytest.raises(UserError, match=r"hf://me/net can't be written: .*hf auth login"):
        hub.push(tmp_path / "missing", "me/net", fake)


@pytest.mark.parametrize("name", ["net", "a/b/c", "../net", "me/", "https://huggingface.co/me/net"])
def test_names_are_checked_before_the_hub_is_asked(name):
    with pytest.raises(UserError, match="is no repository of the hub: give USER/NAME"):
        hub.fetch(f"hf://{name}")


def test_without_the_package_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="install it with pip install huggingface_hub"):
        hub.fetch("hf://me/net")


def test_the_real_client_has_these_methods():
    api = pytest.importorskip("huggingface_hub").HfApi
    assert all(hasattr(api, name) for name in ("create_repo", "upload_folder", "snapshot_download"))
