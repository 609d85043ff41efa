"""The fingerprint of the code covers what computes a trial, and nothing else."""

from data_pipelines import extensions
from recsys.trials import code
from recsys.trials.code import code_fingerprint, source_files


def test_everything_that_computes_a_trial_is_covered():
    found = source_files()
    assert {
        "recsys.metrics.registry",
        "recsys.metrics.binary",
        "recsys.exporting.export",
        "recsys.exporting.measure",
        "recsys.exporting.size_report",
        "recsys.trials.perturb",
        "recsys.trials.warm",
        "recsys.runs.checkpoints",
        "recsys.training.trainer",
        "models.sparsity.penalties.pep",
        "data_pipelines.features.encoder",
        "serving.batch.scorer",
    } <= found.keys()


def test_pages_and_verbs_are_not_covered():
    found = source_files()
    assert not any(name.startswith(("recsys.cli", "recsys.reports", "recsys.plots", "serving.http")) for name in found)


def test_an_edit_changes_the_fingerprint(tmp_path, monkeypatch):
    copy = tmp_path / "metrics.py"
    files = source_files(*extensions.loaded())
    copy.write_text(files["recsys.metrics.binary"].read_text() + "# edited\n")
    before = code_fingerprint()
    with monkeypatch.context() as edited:
        edited.setitem(files, "recsys.metrics.binary", copy)
        code._fingerprint_of.cache_clear()  # as a new process begins
        assert code_fingerprint() != before
    code._fingerprint_of.cache_clear()
    assert code_fingerprint() == before
