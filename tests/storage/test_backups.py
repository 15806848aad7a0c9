"""Files of the user's are renamed, never replaced."""

from __future__ import annotations

from pathlib import Path

from sdbuild.storage.backups import free_name, make_folder, set_aside


def test_names_are_free(tmp_path: Path) -> None:
    file = tmp_path / "dvc.yaml"
    for number, name in enumerate(("dvc.yaml.kept", "dvc.yaml.kept-2", "dvc.yaml.kept-3")):
        file.write_text(str(number))
        kept = set_aside(file, "kept")
        assert (kept.name, kept.read_text()) == (name, str(number))
        assert not file.exists()
    (tmp_path / "dvc.yaml.kept-4").symlink_to("nowhere")
    assert free_name(file, "kept").name == "dvc.yaml.kept-5", "a link to nothing is there too"


def test_files_in_the_place_of_folders_are_kept(tmp_path: Path) -> None:
    (tmp_path / "build").write_text("mine")
    [kept] = make_folder(tmp_path, "build/cat")
    assert (kept.name, kept.read_text()) == ("build.kept", "mine")
    assert (tmp_path / "build/cat").is_dir()
    assert make_folder(tmp_path, "build/cat") == []
