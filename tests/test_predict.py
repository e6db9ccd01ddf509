"""The verb predict: likeliest classes, files that can't be read, the command in a process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import FakeNetwork, images_saying, save_random_weights
from PIL import Image

from resnet_cifar import __main__
from resnet_cifar.predict import as_json, as_text, files_of, predict

ROOT = Path(__file__).parents[1]
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def save(folder, name, said):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images_saying([said])[0]).save(folder / name)
    return str(folder / name)


def test_the_five_likeliest_classes_come_in_order(tmp_path):
    image = save(tmp_path, "a.png", 4)
    (prediction,), problems = predict(FakeNetwork(class_names=NAMES), [image])
    names, probabilities = zip(*prediction.classes, strict=True)
    assert prediction.file == image and problems == []
    assert names == ("eel", "ant", "bee", "cat", "dog")
    np.testing.assert_allclose(probabilities, [0.8] + [0.04] * 4, rtol=1e-6)


def test_a_network_of_three_classes_has_three(tmp_path):
    (prediction,), _ = predict(FakeNetwork(), [save(tmp_path, "a.png", 2)])
    assert [name for name, _ in prediction.classes] == ["cat", "ant", "bee"]


def test_both_formats_say_the_same(tmp_path):
    (prediction,), _ = predict(FakeNetwork(), [save(tmp_path, "a.png", 1)])
    assert as_text(prediction) == f"{tmp_path}/a.png: bee 80.00%, ant 10.00%, cat 10.00%"
    line = json.loads(as_json(prediction))
    assert line["file"] == f"{tmp_path}/a.png"
    assert [(c["name"], c["probability"]) for c in line["classes"]] == prediction.classes


def test_a_bad_file_is_named_and_the_others_are_classified(tmp_path):
    (tmp_path / "b.txt").write_text("text")
    images = [save(tmp_path, "a.png", 1), str(tmp_path / "b.txt"), save(tmp_path, "c.png", 2)]
    predictions, problems = predict(FakeNetwork(), images)
    assert [prediction.classes[0][0] for prediction in predictions] == ["bee", "cat"]
    assert problems == [f"{tmp_path}/b.txt is not a picture that Pillow can read"]


def test_no_readable_file_is_no_prediction(tmp_path):
    assert predict(FakeNetwork(), [tmp_path / "none"]) == (
        [],
        [f"there is no file or folder {tmp_path}/none: check the path"],
    )


def test_folders_are_searched(tmp_path):
    paths = [save(tmp_path / "a" / "deep", "1.png", 0), save(tmp_path / "a", "2.png", 0)]
    (tmp_path / "empty").mkdir()
    files, problems = files_of([str(tmp_path / "a"), str(tmp_path / "empty")])
    assert sorted(map(str, files)) == sorted(paths)
    assert problems == [f"the folder {tmp_path}/empty is empty"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "give the network, such as --weights="),
        (["--weights=/nowhere"], "give the pictures, files or folders, after the flags"),
        (["--weights=/nowhere", "a.png"], "/nowhere does not exist"),
        (["--weihgts=/nowhere", "a.png"], "did you mean --weights"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        __main__.main(["resnet_cifar", "predict", *arguments])


def test_from_weights_to_classes_in_a_process(tmp_path):
    pretrained = save_random_weights(tmp_path / "model.safetensors", NAMES)
    image = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), np.uint8)
    Image.fromarray(image[0]).save(tmp_path / "a.png")
    command = ["predict", f"--weights={tmp_path / 'model.safetensors'}", "--json"]
    done = subprocess.run(
        [
            sys.executable, "-m", "resnet_cifar", *command,
            str(tmp_path / "a.png"), str(tmp_path / "none.png"),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    problems = done.stderr.strip().splitlines()
    assert problems == [
        f"skipped: there is no file or folder {tmp_path}/none.png: check the path",
        "error: 1 file was skipped",
    ]
    assert done.returncode == 1
    (line,) = map(json.loads, done.stdout.strip().splitlines())
    found = {c["name"]: c["probability"] for c in line["classes"]}
    expected = dict(zip(NAMES, pretrained.probabilities(image)[0].tolist(), strict=True))
    assert len(found) == 5
    for name, probability in found.items():
        assert probability == pytest.approx(expected[name], rel=1e-4)
