"""How the models were made, as the report and the checklist say it."""

from __future__ import annotations

from tests.evaluate.conftest import run, scans_table, write_inputs, write_record


def test_the_checklist_states_the_parameters_of_training_and_says_when_they_are_not_recorded(
    tmp_path,
):
    folders = write_inputs(tmp_path / "in", scans_table(12), tasks={}, skill={})
    training = {"epochs": 7, "learning_rate": 0.002, "initializations": {}}
    write_record(folders.root / "models", "finetune", finetune=training)
    run(folders, tmp_path / "out", tasks={})
    text = (tmp_path / "out/checklist.md").read_text()
    assert "**25 Training.** epochs 7, learning rate 0.002." in text
    assert "to one grid (not recorded)" in text
