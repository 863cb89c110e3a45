"""Which of several processes is lost: judged from what each says of itself, by a given clock."""

import dataclasses

import pytest

from train.attendance import FAILED_GRACE, Attendance, Record

LIMIT = 30.0
RECORDS = {process: Record(0, f"node-{process}", 100 + process) for process in (1, 2)}
START = 1000.0

pytestmark = pytest.mark.fast


def attendance(silent_after=None, until=START + 10.0, beats=1.0, **ends):
    """Processes 1 and 2 as process 0 hears of them, once in so many seconds.

    Args:
        silent_after: when process 2 falls silent.
        until: the time at the end.
        beats: seconds between records.
        ends: the state (and text) of process 2 from its fifth record on.
    """
    heard = Attendance((1, 2), 3, LIMIT, START)
    time = START
    while time <= until:
        for process, record in RECORDS.items():
            if process == 2 and silent_after is not None and time > silent_after:
                continue
            beat = int((time - START) / beats)
            changes = ends if process == 2 and beat > 4 else {}
            heard.hear(process, dataclasses.replace(record, beat=beat, **changes), time)
        time += 0.25
    return heard


def test_records_survive_the_store():
    record = Record(7, "höst", 12, "failed", 'said "no"\n', 1.5, "process 1 is lost")
    assert Record.load(record.dump()) == record


def test_all_are_there():
    now = START + 10.0
    assert attendance().verdict(now) == ""
    assert attendance().quietest(now) == 1.0, "the last record but one is of then"
    assert not attendance().all_done()


def test_a_silent_one_is_lost_after_the_limit_and_not_before():
    heard = attendance(silent_after=START + 4.0, until=START + LIMIT + 9.0)
    assert heard.verdict(START + 4.0 + LIMIT) == ""
    verdict = heard.verdict(START + 4.0 + LIMIT + 0.5)
    assert verdict == "process 2 of 3 (host node-2, pid 102) has not been heard of for 30 s"


def test_a_record_read_late_is_no_sign_of_life():
    """What was written before a process was killed may be new when it is read."""
    heard = attendance(silent_after=START + 4.0)
    assert heard.lived(2) == START + 3.0
    assert heard.quietest(START + LIMIT) == LIMIT - 3.0


def test_one_that_was_never_heard_of_is_lost_too():
    heard = attendance(silent_after=START - 1.0)
    assert heard.verdict(START + LIMIT) == ""
    assert heard.verdict(START + LIMIT + 1) == "process 2 of 3 has not been heard of for 31 s"


def test_an_old_record_read_again_counts_for_nothing():
    """The store keeps what a process that is gone said last."""
    slow = attendance(beats=LIMIT - 1.0, until=START + 200.0)
    assert slow.verdict(START + 200.0) == ""
    assert "process 1 of 3" in attendance(beats=1e9, until=START + 40.0).verdict(START + 40.0)


def test_one_that_is_done_may_be_silent():
    heard = attendance(silent_after=START + 6.0, until=START + 100.0, state="done")
    assert heard.verdict(START + 100.0) == ""
    assert not heard.all_done()
    heard.hear(1, dataclasses.replace(RECORDS[1], beat=999, state="done"), START + 101.0)
    assert heard.all_done() and heard.quietest(START + 500.0) == 0.0


def test_an_error_is_told_after_a_grace_however_often_it_is_said():
    heard = attendance(until=START + 100.0, state="failed", text="ValueError: no")
    failed = START + 5.0
    assert heard.verdict(failed + FAILED_GRACE) == ""
    assert heard.verdict(failed + FAILED_GRACE + 0.5).endswith(
        "process 2 of 3 (host node-2, pid 102) ended with an error: ValueError: no"
    )
