"""People as judges: votes over HTTP, who sees what, what becomes of the votes, and votes from elsewhere."""

from __future__ import annotations

import csv
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pandas as pd
import pytest

from halos.annotate.ballot import Ballot, open_ballot
from halos.annotate.run import annotate
from halos.annotate.server import open_server
from halos.cli import main
from halos.errors import HalosError
from halos.evaluate.judging.people import majority
from halos.evaluate.judging.settings import People
from halos.evaluate.judging.votes import Vote, candidate_first, read_votes, sees
from halos.report import tables
from halos.study.paths import Paths
from tests.annotate.conftest import Votes
from tests.report.conftest import write


class Page:
    """What the page does, without a browser."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        data = None if body is None else json.dumps(body)
        kind = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, data, {**kind, **{k.replace("_", "-"): v for k, v in headers.items()}})
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, json.loads(text) if reply.headers.get_content_type() == "application/json" else text

    def state(self, annotator: str = "ann", at: int | None = None) -> dict[str, Any]:
        status, state = self.ask("GET", f"/state?annotator={annotator}" + ("" if at is None else f"&at={at}"))
        assert status == 200, state
        return dict(state)

    def vote(self, state: dict[str, Any], vote: str, annotator: str = "ann", **more: Any) -> dict[str, Any]:
        body = {"annotator": annotator, "comparison": state["comparison"], "vote": vote, **more}
        status, after = self.ask("POST", "/vote", body)
        assert status == 200, after
        return dict(after)


@contextmanager
def page(ballot: Ballot, annotator: str | None = None) -> Iterator[Page]:
    with open_server(ballot, "People", annotator, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Page(server.server_port)
        finally:
            server.shutdown()
            thread.join()


def prefer(text: str, responses: list[str]) -> str:
    """The place of the response in which a text is."""
    return str(1 + next(i for i, response in enumerate(responses) if text in response))


def test_votes_over_http_are_saved_at_once_and_judge_both_methods(votes: Votes) -> None:
    """ann prefers what sft says and the data's target to what base says."""
    file = Path("annotations/people/ann.jsonl")
    with page(votes.ballot()) as browser:
        state = browser.state()
        for number in range(20):
            assert (state["done"], state["total"], state["at"]) == (number, 20, number)
            better = "sft" if any("sft" in response for response in state["responses"]) else "target"
            state = browser.vote(state, prefer(better, state["responses"]), note=f"note {number}", seconds=1.5)
            assert len(read_votes(file)) == number + 1
        assert state == {"total": 20, "done": 20, "at": 20, "comparison": None}
    sft, base = votes.judged("sft"), votes.judged("base")
    assert (sft.kind, sft.n, sft.wins, base.wins, base.losses) == ("human", 10, 10, 0, 10)
    assert {a.shown_first for a in (*sft.annotations, *base.annotations)} == {"candidate", "baseline"}
    [asked] = sft.annotations[0].asked
    assert (asked.by, asked.preference, str(asked.answer)[:5]) == ("ann", 2.0, "note ")
    assert read_votes(file)[next(iter(read_votes(file)))].seconds == 1.5


def test_the_page_shows_no_method_and_no_order_that_tells_one(votes: Votes) -> None:
    ballot = votes.ballot()
    with page(ballot) as browser:
        _, text = browser.ask("GET", "/")
        states = [browser.state(at=i) for i in range(20)]
    for method in ("base", "sft"):
        assert f'"{method}"' not in text
    assert {name for state in states for name in state} == {
        "total", "done", "at", "comparison", "prompt", "responses", "vote", "note"
    }  # fmt: skip
    first = [candidate_first(c) for c in ballot.comparisons.values()]
    assert 4 <= sum(first) <= 16
    shown = zip(states, ballot.comparisons.values(), strict=True)
    assert [state["responses"][0] == comparison.candidate for state, comparison in shown] == first


def test_a_vote_can_be_changed_and_a_line_that_was_cut_off_is_none(votes: Votes) -> None:
    file = Path("annotations/people/ann.jsonl")
    with page(votes.ballot()) as browser:
        after = browser.vote(browser.state(), "1")
        again = browser.state(at=0)
        assert (again["vote"], after["at"]) == ("1", 1)
        assert browser.vote(again, "tie", note="on reflection")["done"] == 1
    with file.open("a") as opened:
        opened.write('{"comparison": "abc", "vo')
    assert [vote.vote for vote in read_votes(file).values()] == ["tie"]
    with page(votes.ballot()) as browser:
        assert browser.vote(browser.state(), "2")["done"] == 2
    assert [vote.vote for vote in read_votes(file).values()] == ["tie", "2"]
    assert len(file.read_text().splitlines()) == 3
    file.write_text("nonsense\n" + file.read_text())
    with pytest.raises(HalosError, match=r"ann\.jsonl: line 1 is no vote: correct it, or take it out"):
        votes.ballot()


def test_requests_that_are_none_of_the_page_are_refused(votes: Votes) -> None:
    with page(votes.ballot(), "ann") as browser:
        state = browser.state()
        body = {"annotator": "ann", "comparison": state["comparison"], "vote": "1"}
        refused = [
            browser.ask("GET", "/state?annotator=bob")[0],
            browser.ask("GET", "/elsewhere")[0],
            browser.ask("POST", "/elsewhere", body)[0],
            browser.ask("POST", "/vote", {**body, "vote": "3"})[0],
            browser.ask("POST", "/vote", {**body, "comparison": "../x"})[0],
            browser.ask("POST", "/vote", body, Content_Type="text/plain")[0],
            browser.ask("GET", "/state?annotator=ann", Host="evil.example:80")[0],
        ]
        assert refused == [403, 404, 404, 400, 404, 415, 403]
        assert browser.state()["done"] == 0
    with page(votes.ballot()) as browser:
        status, said = browser.ask("GET", "/state?annotator=..%2Fann")
        assert (status, said["error"]) == (
            400,
            "'../ann' cannot be an annotator's name: use letters, digits, _, . and -",
        )


def give(votes: Votes, **by: str) -> Ballot:
    """Votes on all comparisons: of each annotator one sign for each, `c` for the candidate and `b` for the baseline."""
    ballot = votes.ballot()
    for name, signs in by.items():
        for (key, comparison), sign in zip(ballot.comparisons.items(), signs, strict=True):
            if sign != ".":
                side = "1" if (sign == "c") == candidate_first(comparison) else "2"
                vote = {"t": "tie", "s": "skip"}.get(sign, side)
                ballot.add(name, Vote.model_validate({"comparison": key, "vote": vote}))
    return ballot


def test_the_majority_decides_and_what_all_skipped_is_counted(votes: Votes) -> None:
    give(votes, ann="ccbst" * 4, bob="cbbss" * 4, eve="cctst" * 4)
    both = [votes.judged("sft"), votes.judged("base")]
    assert sum(j.wins for j in both) == 8  # ccc, and cbc
    assert sum(j.losses for j in both) == 4  # bbt
    assert sum(j.ties for j in both) == 4  # tst
    assert sum(j.failures for j in both) == 4
    assert sum(j.failed["skipped by all who saw it"] for j in both) == 4
    found = [majority(p) for p in ([2, 1], [2, 1, 1.5], [2, 1.5, 1.5], [2, None], [None], [])]
    assert found == [1.5, 1.5, 1.5, 2, None, None]


def test_missing_votes_are_counted_in_one_sentence_that_names_the_command(votes: Votes) -> None:
    said = "judge people waits for votes on 10 of 10 comparisons here: run `python -m halos annotate --judge people`"
    with pytest.raises(HalosError, match=said):
        votes.judged("sft")
    give(votes, ann="c" * 19 + ".")
    with pytest.raises(HalosError, match="waits for votes on 1 of 10 comparisons here"):
        [votes.judged(method) for method in ("sft", "base")]
    votes.write(annotators=["ann", "bob"])
    with pytest.raises(HalosError, match=r"for votes on 10 by bob of 10 comparisons|1 by ann and 10 by bob of 10"):
        votes.judged("sft")


def test_each_comparison_is_seen_by_as_many_of_those_named_as_the_settings_say(votes: Votes) -> None:
    people = People(annotators=("ann", "bob", "eve"), votes=2)
    shares = {name: [sees(people, name, str(key)) for key in range(3000)] for name in people.annotators}
    assert [sum(seen) for seen in zip(*shares.values(), strict=True)] == [2] * 3000
    assert all(1900 < sum(share) < 2100 for share in shares.values())
    votes.write(annotators=["ann", "bob", "eve"], votes=2)
    ballot = votes.ballot()
    assert sum(len(ballot.keys(name)) for name in people.annotators) == 40
    with pytest.raises(HalosError, match="names no 'bobb'; did you mean 'bob'"):
        ballot.check_name("bobb")
    twice, many = {"annotators": ["a", "a"]}, {"annotators": ["a"], "votes": 2}
    for wrong, why in ((twice, "a is named twice"), (many, "2 are more than")):
        with pytest.raises(HalosError, match=f"judges.people.human: .*{why}"):
            votes.write(**wrong).study()


def test_a_limit_is_the_same_prompts_for_every_method_and_pairs_are_voted_on_once(votes: Votes) -> None:
    votes.judge = {"compare": "all"}
    votes.write(limit=4)
    ballot = votes.ballot()
    assert len(ballot.comparisons) == 3 * 4  # two methods with the target, and with each other
    assert len({c.prompt_id for c in ballot.comparisons.values()}) == 4
    give(votes, ann="c" * 12)
    assert (votes.judged("sft").n, votes.judged("base", "sft").wins) == (4, 4)


def test_the_table_shows_how_far_annotators_agree(votes: Votes, tmp_path: Path) -> None:
    given = {"ann": "ccbbt" * 4, "bob": "cbbbt" * 3 + "sscct", "eve": "ccbtt" * 2 + "." * 10}
    ballot = give(votes, **given)
    votes.judged("sft")
    side = {"c": 1.0, "b": -1.0, "t": 0.0, "s": np.nan, ".": np.nan}
    of_sft = ["sft" in c.candidate for c in ballot.comparisons.values()]
    table = [[side[sign] for sign, own in zip(signs, of_sft, strict=True) if own] for signs in given.values()]
    config, results = write(tmp_path / "tree", methods=("sft",), seeds=(1,), judges=("people",), tasks=(), compare=None)
    own = tmp_path / "results/runs/d/m/sft/seed1/judged/people.json"
    (results / "runs/toy/tiny/sft/seed1/judged/people.json").write_bytes(own.read_bytes())
    tables.make(config, results=results, output=tmp_path / "tables")
    frame = pd.read_csv(tmp_path / "tables/trust.csv").set_index("measure")
    known = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal", value_domain=[-1, 0, 1])
    assert frame.loc["alpha", "value"] == pytest.approx(known)
    assert 0 < known < 1
    assert frame.loc["alpha", "judge"] == "people"
    assert "flips" not in frame.index  # several annotators are not several orders
    assert "Krippendorff's alpha of the annotators of" in (tmp_path / "tables/trust.md").read_text()


def test_votes_go_out_as_csv_and_come_back_from_elsewhere(votes: Votes, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("out.csv")
    assert main(["annotate", "--judge", "people", "--export", str(out)]) == 0
    rows = list(csv.DictReader(out.open(newline="")))
    assert len(rows) == 20
    assert {row["vote"] for row in rows} == {""}
    for number, row in enumerate(rows):  # as Label Studio names the sides, as Excel writes numbers, and as they are
        vote = ("left", "2.0", "Tie", "skip", "")[number % 5]
        row |= {"vote": vote, "note": 'æ, "quoted"\nlines', "annotator": "bob"}
    with out.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for new in (16, 0):
        assert main(["annotate", "--judge", "people", "--import", str(out)]) == 0
        assert f"{new} new votes" in capsys.readouterr().out
    assert [v.vote for v in read_votes(Path("annotations/people/bob.jsonl")).values()] == ["1", "2", "tie", "skip"] * 4
    again = Path("again.csv")
    annotate("people", export=again)
    back = list(csv.DictReader(again.open(newline="")))
    assert [row["vote"] for row in back] == ["1", "2", "tie", "skip", ""] * 4
    assert back[0]["note"] == rows[0]["note"]
    for change, said in (
        ({"vote": "best"}, "row 2: 'best' is no vote: write 1, 2, tie or skip"),
        ({"comparison": "0000"}, "row 2: bob has no comparison '0000' to vote on"),
        ({"annotator": "", "vote": "1"}, "row 2 has no annotator: fill in the column, or give --annotator"),
    ):
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows([rows[0] | change])
        assert main(["annotate", "--judge", "people", "--import", str(out)]) == 1
        assert said in capsys.readouterr().err
    assert len(read_votes(Path("annotations/people/bob.jsonl"))) == 16


def test_what_cannot_be_voted_on_is_refused_in_one_sentence(votes: Votes) -> None:
    with pytest.raises(HalosError, match="the grid both has no judge 'peple'; did you mean 'people'"):
        open_ballot(votes.study(), Paths(), "peple")
    Path("results/runs/d/m/sft/seed1/samples/p.jsonl").unlink()
    with pytest.raises(
        HalosError, match=r"1 of 2 files of responses to vote on are not there yet, .*snakemake samples"
    ):
        votes.ballot()
    votes.judge = {"both_orders": True}
    with pytest.raises(HalosError, match="a judge of kind human has no both_orders: take that out"):
        votes.write().study()


def test_a_response_that_was_sampled_anew_is_another_comparison(votes: Votes) -> None:
    give(votes, ann="c" * 20)
    file = Path("results/runs/d/m/sft/seed1/samples/p.jsonl")
    file.write_text(file.read_text().replace("says, 7", "thinks, 7"))
    assert votes.ballot().left == {"": 1}
    with pytest.raises(HalosError, match="waits for votes on 1 of 10 comparisons"):
        votes.judged("sft")


def test_a_port_that_is_taken_is_said(votes: Votes) -> None:
    with page(votes.ballot()) as browser, pytest.raises(HalosError, match=r"cannot listen at .*: give another --port"):
        open_server(votes.ballot(), "People", None, "127.0.0.1", browser.port)
