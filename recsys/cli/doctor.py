"""The verb ``doctor``: check the installation and the machine, and say what to do."""

import typer

from recsys.cli.common import Json, app, finish

MARKS = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}


@app.command()
def doctor(json: Json = False) -> None:
    """Check Torch, TorchRec and FBGEMM against each other, the CPU, memory, GPU and optional parts."""
    from dataclasses import asdict

    from recsys.doctor import examine

    findings = examine()
    faults = sum(finding.level == "fault" for finding in findings)
    for finding in findings:
        typer.echo(f"{MARKS[finding.level]}  {finding.subject:<16} {finding.found}", err=json)
        if finding.advice:
            typer.echo(f"{'':<24}{finding.advice}", err=json)
    result = {"sound": faults == 0, "faults": faults}
    finish(
        result | {"findings": [asdict(finding) for finding in findings]} if json else result,
        json,
        "fix what is marked FAULT, then run recsys doctor again" if faults else "recsys demo",
    )
    raise typer.Exit(2 if faults else 0)
