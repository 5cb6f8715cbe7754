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


def test_pages_name_the_contrasts_of_the_cohort(tmp_path):
    folders = write_inputs(tmp_path / "in", scans_table(12), tasks={}, skill={})
    for contrasts, words in ((["T1w"], "T1-weighted"), (["T1w", "FLAIR"], "T1w and FLAIR")):
        write_record(folders.root / "cohort", "ingest", ingest={"contrasts": contrasts})
        run(folders, tmp_path / words, tasks={})
        for page in ("model_card.md", "checklist.md", "methods.md"):
            text = (tmp_path / words / page).read_text()
            assert f"{words} brain" in text, page
            assert ("T1-weighted" in text) == (words == "T1-weighted"), page
        assert ("registered rigidly to the T1w" in text) == (len(contrasts) == 2)
