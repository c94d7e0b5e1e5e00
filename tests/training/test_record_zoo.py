"""What `scripts/record_zoo` records where: nothing that policies are judged on is trained on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlprune.errors import InputError
from rlprune.training.run import load_models

SCRIPTS = Path(__file__).parents[2] / "scripts"
NETWORK = "cifar10_resnet8_mlperf_tiny"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("record_zoo")
    finally:
        sys.path.remove(str(SCRIPTS))


def test_held_out_networks_are_refused_by_name_and_left_out_by_default(
    script: ModuleType, tmp_path: Path
) -> None:
    for name in ("cifar10_resnet20", "cifar10_resnet56", "seresnet", "densenet", "vovnet"):
        with pytest.raises(InputError, match=f"{name} is held out"):
            script.chosen(["vgg", name], False, tmp_path)
        assert script.chosen([name], True, tmp_path) == [name]
        assert name not in script.chosen([], False, tmp_path)
    with pytest.raises(InputError, match="vgg is not held out"):
        script.chosen(["vgg"], True, tmp_path)
    with pytest.raises(InputError, match="no net 'lenet'"):
        script.chosen(["lenet"], False, tmp_path)


def test_a_folder_is_for_training_or_for_judging(script: ModuleType, tmp_path: Path) -> None:
    for folder, name in (("train", NETWORK), ("judge", "cifar10_resnet20")):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / "evaluations.parquet").touch()
    assert NETWORK in script.chosen([], False, tmp_path / "train")
    with pytest.raises(InputError, match=f"holds {NETWORK}, which is not held out"):
        script.chosen([], True, tmp_path / "train")
    with pytest.raises(InputError, match="holds cifar10_resnet20, which is held out"):
        script.chosen([], False, tmp_path / "judge")


def test_what_ships_to_train_on_holds_nothing_that_is_held_out(script: ModuleType) -> None:
    recorded = load_models([script.DATA / "recorded"])
    assert not set(recorded) & set(script.catalogue.JUDGED)
    families = {model.evaluations.about["family"] for model in recorded.values()}
    assert len(families) >= 5 and not families & set(script.catalogue.HELD_OUT)


@pytest.mark.filterwarnings("ignore:Exception ignored")  # the pack's loader leaves a file open
def test_images_trained_no_network_and_are_not_reported_on(script: ModuleType) -> None:
    try:
        pack = script.CifarPack(script.shared_data())
    except SystemExit as error:
        pytest.skip(str(error))
    report, reward = pack.splits["test_report"], pack.splits["test_reward"]
    assert script.split_of(NETWORK) == "test_reward" and not set(reward) & set(report)
    assert script.split_of("vgg") == "train_calib"
    zoo = script.Zoo(pack, image_count=1000, seed=0)
    profile, objective = zoo.images(NETWORK)
    assert len(profile) == len(objective) == 1000
    net, _ = zoo.network(NETWORK)
    allowed = {image.tobytes() for image in net.preprocess(pack.pixels("test")[0][reward])}
    ours = [{image.tobytes() for image in part.x} for part in (profile, objective)]
    assert not ours[0] & ours[1] and ours[0] | ours[1] <= allowed


@pytest.mark.filterwarnings("ignore:Exception ignored")  # the pack's loader leaves a file open
def test_a_run_goes_in_rounds_over_all_and_what_is_there_is_not_done_again(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "FIRST_PASS", 2)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    command = ["record_zoo", "--out", str(tmp_path), "--images", "32", "--evaluations", "5"]
    monkeypatch.setattr(sys, "argv", [*command, NETWORK])
    try:
        assert script.main() == 0
    except SystemExit as error:
        pytest.skip(str(error))
    said = capsys.readouterr().out
    assert "evaluations/s, all done in about" in said
    assert [f"{NETWORK}: {n} plans" in said for n in (2, 4, 5)] == [True] * 3
    found = script.load_model_dir(tmp_path / NETWORK).evaluations
    assert found is not None and len(found.loss) == 5
    assert found.about["licence"] == "Apache-2.0" and found.about["family"] == "residual"
    assert script.main() == 0
    assert capsys.readouterr().out == ""

    rounds: list[tuple[str, int]] = []
    monkeypatch.setattr(
        script, "record_one", lambda name, zoo, folder, count, *_: rounds.append((name, count))
    )
    monkeypatch.setattr(sys, "argv", [*command, NETWORK, "cifar10_resnet32"])
    assert script.main() == 0
    assert rounds == [(n, count) for count in (2, 4, 5) for n in (NETWORK, "cifar10_resnet32")]
