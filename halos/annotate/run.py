"""Let people vote on a judge's comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halos.annotate.ballot import Ballot, open_ballot
from halos.annotate.server import open_server
from halos.annotate.table import read_table, write_table
from halos.study.catalogue import load
from halos.study.paths import Paths
from halos.study.study import Study


def annotate(
    judge: str,
    annotator: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    export: Path | None = None,
    import_: Path | None = None,
    grid: str | None = None,
    config: Sequence[Path] = (Path("config.yaml"),),
    results: Path = Path("results"),
) -> None:
    """Let people vote on the comparisons of a judge of kind human, on a page that this machine serves until Ctrl-C.

    Which method a response is from is not shown. Each vote is on the disk before the next comparison is shown, so that
    the page can be closed, and this command stopped, at any time.

    Args:
        judge: id of the judge.
        annotator: who votes, the name of a file of votes; by default the page asks for the name.
        host: address to serve the page at; whoever reaches another one than the default can read and vote.
        port: port of the page; 0 for any that is free.
        export: CSV file to write, with all comparisons and the votes so far; no page is served.
        import_: CSV file to read, as --export writes it, with votes from elsewhere; no page is served.
        grid: id of the grid; by default the config's own.
        config: the catalogue, and files that are laid over it, as Snakemake's --configfile.
        results: the results folder.

    Raises:
        HalosError: the grid has no such judge, samples are missing, or a table or an address cannot be used.
    """
    study = Study(load(*config), grid)
    ballot = open_ballot(study, Paths(results), judge)
    if annotator is not None:
        ballot.check_name(annotator)
    if import_ is not None:
        found = read_table(ballot, import_, annotator)
        for name, votes in found.items():
            for vote in votes:
                ballot.add(name, vote)
        print(f"{import_}: {sum(map(len, found.values()))} new votes of {len(found)} annotators")
    if export is not None:
        print(f"{export}: {write_table(ballot, export, annotator)} rows")
    if export is None and import_ is None:
        title = study.config.judges[judge].label or judge
        _serve(ballot, title, annotator, host, port)
    print(_left(ballot))


def _serve(ballot: Ballot, title: str, annotator: str | None, host: str, port: int) -> None:
    with open_server(ballot, title, annotator, host, port) as server:
        place = f"[{host}]" if ":" in host else host
        print(f"{_left(ballot)}\nvote at http://{place}:{server.server_port}/ and stop with Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _left(ballot: Ballot) -> str:
    """What is still to be voted on, in a sentence."""
    n = len(ballot.comparisons)
    left = ", ".join(f"{number}{f' by {name}' * bool(name)}" for name, number in ballot.left.items())
    return f"judge {ballot.judge}: {n} comparisons, votes are still missing on {left or 'none'}"
