"""Work that is cancelled: by the name that its page may not know yet, and nothing else with it."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from app import cancel
from tests.helpers import run_in_thread


def work(session: str, number: int) -> SimpleNamespace:
    return SimpleNamespace(session_hash=session, fn=SimpleNamespace(_id=number), alive=True)


def test_work_to_be_cancelled_gets_the_name_that_its_page_does_not_know_yet(monkeypatch):
    """Also when it comes after the request to cancel it, and not that of what was started since."""

    async def visit():
        async def named(**asked):
            return json.loads(await cancel.name(queue, json.dumps(asked).encode()))["event_id"]

        assert await named(event_id=None, session_hash="mine", fn_index=3) == "wanted"
        assert await named(event_id=None, session_hash="mine", fn_index=3) == "since"
        assert await named(event_id="other", session_hash="mine", fn_index=3) == "other"
        assert await named(event_id=None) == ""  # a reset
        late = asyncio.create_task(named(event_id=None, session_hash="mine", fn_index=5))
        await asyncio.sleep(0.05)
        events["late"] = work("mine", 5)
        assert await late == "late"
        monkeypatch.setattr(cancel, "WAY_S", 0.05)
        assert await named(event_id=None, session_hash="theirs", fn_index=3) == ""

    events = {"before": work("mine", 4), "wanted": work("mine", 3), "since": work("mine", 3)}
    events["of others"] = work("others", 3)
    queue = SimpleNamespace(event_ids_to_events=events)
    run_in_thread(visit())
    assert [name for name, event in events.items() if event.alive] == ["before", "of others"]


def test_work_that_is_cancelled_ends_and_no_other_of_its_kind():
    async def visit():
        asked = dict(event_id="old", session_hash="mine", fn_index=3)
        body = await cancel.name(SimpleNamespace(event_ids_to_events=events), json.dumps(asked).encode())
        assert json.loads(body) == asked | {"fn_index": -1}  # gradio ends what is of the kind

    events = {"old": work("mine", 3), "new": work("mine", 3)}
    run_in_thread(visit())
    assert not events["old"].alive and events["new"].alive


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"[]", b"7", b"null", b'"event_id"', b"{}", b"\xff"])
def test_what_is_no_request_to_cancel_is_left_as_it_is(body):
    async def visit():
        assert await cancel.name(SimpleNamespace(event_ids_to_events={}), body) == body

    run_in_thread(visit())
