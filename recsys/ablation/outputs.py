"""A finished study on disk: page, figures, tables, and the configs to repeat it."""

from pathlib import Path

import polars as pl

from data_pipelines.disk.storage import new_directory
from recsys.ablation.figures import FORESTS, study_figures
from recsys.ablation.page import StudyPage
from recsys.ablation.study import Study
from recsys.ablation.tables import Findings
from recsys.config.yaml_files import to_yaml
from recsys.plots.style import png

PAGE = "report.html"


def write_study(study: Study, findings: Findings, out: Path) -> None:
    """Write the study's folder; an earlier one at ``out`` is replaced.

    - ``report.html``, ``study.md``: for readers
    - ``arms``, ``effects``, ``interactions``, ``trials``, each ``.csv`` and ``.parquet``
    - ``figures/*.png``, and ``*-dark.png`` for dark pages
    - ``study.yaml``, ``recommended.yaml``, ``arms/*.yaml``: configs for ``recsys train``
    """
    meta = {
        "dataset": study.dataset.manifest.fingerprint,
        "trials": sorted(findings.trials["trial"].unique()),
        "recommended": list(findings.recommended.features),
    }
    with new_directory(out, "study", meta=meta, replace=True) as folder:
        figures = study_figures(study, findings)
        StudyPage(study, findings, figures).write(folder / PAGE)
        (folder / "study.md").write_text(_markdown(study, findings), encoding="utf-8")
        for name in ("arms", "effects", "interactions", "trials"):
            table: pl.DataFrame = getattr(findings, name)
            table.write_csv(folder / f"{name}.csv")
            table.write_parquet(folder / f"{name}.parquet")
        (folder / "figures").mkdir()
        for name, (draw, _) in figures.items():
            png(draw, folder / "figures" / f"{name}.png", "light")
            png(draw, folder / "figures" / f"{name}-dark.png", "dark")
        (folder / "study.yaml").write_text(to_yaml(study.config), encoding="utf-8")
        (folder / "recommended.yaml").write_text(to_yaml(study.experiment(findings.recommended)), encoding="utf-8")
        (folder / "arms").mkdir()
        for index, arm in enumerate(study.arms):
            if arm.trains:
                (folder / "arms" / f"{index:03}.yaml").write_text(to_yaml(study.experiment(arm)), encoding="utf-8")


def _markdown(study: Study, findings: Findings) -> str:
    """The effects on the main metric as Markdown tables, for an issue or a wiki."""
    label = findings.metric.label
    lines = [f"# Ablation study: {study.config.name}", ""]
    lines += [
        f"{len(study.arms)} arms, {study.study.seeds} seeds each; effects on test {label}, arm less reference.",
        "",
    ]
    for title, kinds, _ in FORESTS.values():
        effects = findings.main(kinds)
        if not len(effects):
            continue
        lines += [
            f"## {title}",
            "",
            f"| arm | Δ {label} | interval | p (corrected) | verdict |",
            "|---|--:|--:|--:|---|",
        ]
        lines += [
            f"| {row['arm']} | {row['effect']:+.4f} | {row['low']:+.4f} to {row['high']:+.4f} "
            f"| {row['p_corrected']:.3g} | {row['verdict']} |"
            for row in effects.iter_rows(named=True)
        ]
        lines.append("")
    lines += ["## Recommended", "", f"Keep: {', '.join(findings.recommended.features)}.", ""]
    return "\n".join(lines)
