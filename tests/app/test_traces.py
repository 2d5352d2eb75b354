"""What visitors leave in gradio's memory goes, and what is in use stays."""

from types import SimpleNamespace

import pytest
from gradio.data_classes import PredictBody
from starlette.exceptions import HTTPException

from app import gate, traces
from tests.helpers import run_in_thread


@pytest.fixture
def queue(monkeypatch) -> SimpleNamespace:
    """One that forgets with each request, as gradio's keeps what it is asked for."""
    monkeypatch.setattr(traces, "UNREAD_S", 0)

    async def push(body, request, username):
        for kept in (queue.pending_messages_per_session, queue.pending_event_ids_session):
            kept.setdefault(body.session_hash, "an answer")

    queue = SimpleNamespace(
        push=push, pending_messages_per_session={}, pending_event_ids_session={}, event_ids_to_events={}
    )
    traces.forget(queue)
    return queue


def ask(queue: SimpleNamespace, *sessions: str) -> set[str]:
    """Whose answers are there when these have asked one after the other."""
    for session in sessions:
        run_in_thread(queue.push(SimpleNamespace(session_hash=session), None, None))
    assert queue.pending_messages_per_session.keys() == queue.pending_event_ids_session.keys()
    return set(queue.pending_event_ids_session)


def test_answers_that_nobody_takes_go_when_others_ask(queue):
    assert ask(queue, "a", "b") == {"a", "b"}  # only now "a" is seen to rest
    assert ask(queue, "c") == {"b", "c"}
    assert ask(queue, "b", "d") == {"b", "c", "d"} - {"c"}


def test_who_is_at_work_or_has_just_asked_is_not_forgotten(queue):
    queue.event_ids_to_events["one"] = SimpleNamespace(session_hash="a")
    assert ask(queue, "a", "b", "c", "d", "e") >= {"a", "d", "e"}
    assert ask(queue, "d", "f") >= {"a", "d", "f"}


def test_names_that_gradio_would_remember_are_bounded():
    signals = traces.Signals(3)
    first = signals["0"]
    assert signals["0"] is first and not first.is_set()
    for i in range(1, 5):
        signals[str(i)].set()
    assert list(signals) == ["2", "3", "4"] and signals["0"] is not first


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (dict(fn_index=9), 404, gate.UNKNOWN),
        (dict(session_hash="x" * 65, fn_index=0), 400, "The session's name is longer than 64 characters"),
    ],
)
def test_what_is_not_there_is_a_sentence_and_leaves_no_session(asked, status, said):
    function = SimpleNamespace(api_name="something")
    blocks = SimpleNamespace(fns={0: function}, state_holder={})
    assert traces.named(blocks, None, PredictBody(data=[], fn_index=0)) is function
    with pytest.raises(HTTPException, match=said) as refused:
        traces.named(blocks, None, PredictBody(data=[], **asked))
    assert refused.value.status_code == status
    with pytest.raises(HTTPException, match=gate.UNKNOWN):
        traces.named(blocks, "nothing", PredictBody(data=[]))
