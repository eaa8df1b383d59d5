import pytest

from vecstore import Hit, Hits, Plan

PLAN = Plan(method="scan", rows=1, allowed=1, expected_recall=1.0, reason="A test.")
STEERING = "\x1b[31mred \x1b]0;title\x07 \x9b2J \u202e \ud800 end"


def printed(hit: Hit) -> str:
    return str(Hits([hit], plan=PLAN, complete="exact"))


@pytest.mark.parametrize("part", ["id", "text", "metadata"])
def test_stored_text_cannot_steer_the_terminal(part: str) -> None:
    value = {"key\x1b": STEERING} if part == "metadata" else STEERING
    parts = {"id": "a", part: value}

    shown = printed(Hit(score=0.5, distance=0.5, **parts))

    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert "end" in shown
    assert len(shown.splitlines()) == 2


def test_what_cannot_be_printed_is_marked() -> None:
    shown = printed(
        Hit(id="a", score=0.5, distance=0.5, text="one\x1b[2Jtwo\n\tthree \u4e2d\u00e9")
    )

    assert "one\ufffd[2Jtwo three \u4e2d\u00e9" in shown


def test_long_texts_and_metadata_leave_room_for_scores_and_ids() -> None:
    hits = [
        Hit(id=f"id-{i}", score=0.5, distance=0.5, text="word " * 90, metadata={"key": "v" * 300})
        for i in range(3)
    ]

    lines = str(Hits(hits, plan=PLAN, complete="exact")).splitlines()

    assert len(lines) == 4
    assert all(line.startswith(f"0.5000  id-{i}  word") for i, line in enumerate(lines[1:]))
    assert all(line.count("\u2026") == 2 and len(line) <= 110 for line in lines[1:])


def test_what_is_short_leaves_its_room_to_what_is_long() -> None:
    shown = printed(Hit(id=1, score=0.5, distance=0.5, text="short", metadata={"k": "v" * 60}))

    assert "short  {'k': '" + "v" * 60 + "'}" in shown
