"""What `scripts/data record` records where: nothing that policies are judged on is trained on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from datasets import catalogue, record
from datasets.pack import CifarPack, shared_data
from datasets.running import recorded_folder
from rlprune.errors import InputError
from rlprune.recording.model_dir import load_model_dir
from rlprune.training.run import load_models

NETWORK = "cifar10_resnet8_mlperf_tiny"


def test_held_out_networks_are_refused_by_name_and_left_out_by_default(tmp_path: Path) -> None:
    for name in ("cifar10_resnet20", "cifar10_resnet56", "seresnet", "densenet", "vovnet"):
        with pytest.raises(InputError, match=f"{name} is held out"):
            record.chosen(["vgg", name], False, tmp_path)
        assert record.chosen([name], True, tmp_path) == [name]
        assert name not in record.chosen([], False, tmp_path)
    with pytest.raises(InputError, match="vgg is not held out"):
        record.chosen(["vgg"], True, tmp_path)
    with pytest.raises(InputError, match="no net 'lenet'"):
        record.chosen(["lenet"], False, tmp_path)


def test_a_folder_is_for_training_or_for_judging(tmp_path: Path) -> None:
    for folder, name in (("train", NETWORK), ("judge", "cifar10_resnet20")):
        (tmp_path / folder / name).mkdir(parents=True)
        (tmp_path / folder / name / "evaluations.parquet").touch()
    assert NETWORK in record.chosen([], False, tmp_path / "train")
    with pytest.raises(InputError, match=f"holds {NETWORK}, which is not held out"):
        record.chosen([], True, tmp_path / "train")
    with pytest.raises(InputError, match="holds cifar10_resnet20, which is held out"):
        record.chosen([], False, tmp_path / "judge")


def test_what_ships_to_train_on_holds_nothing_that_is_held_out() -> None:
    recorded = load_models([recorded_folder()])
    assert not set(recorded) & set(catalogue.JUDGED)
    families = {model.evaluations.about["family"] for model in recorded.values()}
    assert len(families) >= 5 and not families & set(catalogue.HELD_OUT)


@pytest.mark.filterwarnings("ignore:Exception ignored")  # the pack's loader leaves a file open
def test_images_trained_no_network_and_are_not_reported_on() -> None:
    try:
        pack = CifarPack(shared_data())
    except SystemExit as error:
        pytest.skip(str(error))
    report, reward = pack.splits["test_report"], pack.splits["test_reward"]
    assert record.split_of(NETWORK) == "test_reward" and not set(reward) & set(report)
    assert record.split_of("vgg") == "train_calib"
    zoo = record.Zoo(pack, image_count=1000, seed=0)
    profile, objective = zoo.images(NETWORK)
    assert len(profile) == len(objective) == 1000
    net, _ = zoo.network(NETWORK)
    allowed = {image.tobytes() for image in net.preprocess(pack.pixels("test")[0][reward])}
    ours = [{image.tobytes() for image in part.x} for part in (profile, objective)]
    assert not ours[0] & ours[1] and ours[0] | ours[1] <= allowed


@pytest.mark.filterwarnings("ignore:Exception ignored")  # the pack's loader leaves a file open
def test_a_run_goes_in_rounds_over_all_and_what_is_there_is_not_done_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(record, "FIRST_PASS", 2)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    command = ["record_zoo", "--out", str(tmp_path), "--images", "32", "--evaluations", "5"]
    monkeypatch.setattr(sys, "argv", [*command, NETWORK])
    try:
        assert record.main() == 0
    except SystemExit as error:
        pytest.skip(str(error))
    said = capsys.readouterr().out
    assert "evaluations/s" in said
    assert [f"{NETWORK}: {n} plans" in said for n in (2, 4, 5)] == [True] * 3
    found = load_model_dir(tmp_path / NETWORK).evaluations
    assert found is not None and len(found.loss) == 5
    assert found.about["licence"] == "Apache-2.0" and found.about["family"] == "residual"
    assert record.main() == 0
    assert capsys.readouterr().out == ""

    rounds: list[tuple[str, int]] = []
    monkeypatch.setattr(
        record, "record_one", lambda name, zoo, folder, count, *_: rounds.append((name, count))
    )
    monkeypatch.setattr(sys, "argv", [*command, NETWORK, "cifar10_resnet32"])
    assert record.main() == 0
    assert rounds == [(n, count) for count in (2, 4, 5) for n in (NETWORK, "cifar10_resnet32")]
