from hf_robust.studies.folder import claim_output_dir


def test_a_kill_while_the_first_file_was_written_leaves_the_folder_usable(tmp_path):
    (tmp_path / ".settings.json.tmp").write_text('{"half')
    assert claim_output_dir(tmp_path, {"loss": "ce"}) is None
