import json
from itertools import pairwise

from simulator.report.timeline import chrome_trace

from .studies import a_run, a_study, spans


def events(kind, *runs):
    return [event for event in chrome_trace(a_study(*runs))["traceEvents"] if event["ph"] == kind]


def threads(run):
    return {event["args"]["name"]: event["tid"] for event in events("M", run) if event["name"] == "thread_name"}


RUN = a_run(spans=spans())


def test_a_process_is_a_row_and_a_thread_a_stream():
    names = [e["args"]["name"] for e in events("M", RUN, a_run("idle"), a_run("far", spans=spans()))
             if e["name"] == "process_name"]  # fmt: skip
    assert names == ["single_device on box", "single_device on far"]
    assert list(threads(RUN)) == ["steps", "gpu-0", "gpu-0.d2h", "gpu-1", "host pool 1", "host pool 2"]


def test_events_have_the_schema_perfetto_reads():
    document = chrome_trace(a_study(RUN))
    assert json.loads(json.dumps(document)) == document
    for event in events("X", RUN):
        assert set(event) == {"ph", "pid", "tid", "name", "cat", "ts", "dur", "args"}
        assert event["ts"] >= 0 and event["dur"] >= 0 and isinstance(event["args"]["step"], int)


def test_times_are_microseconds():
    copy = next(event for event in events("X", RUN) if event["name"] == "copy")
    assert (copy["ts"], copy["dur"], copy["cat"], copy["args"]) == (8.0, 0.5, "transfer", {"step": 1})


def test_events_of_a_layer_say_which():
    found = [event["args"] for event in events("X", RUN) if event["name"] == "qkv@gpu-0"]
    assert found == [{"step": 0, "layer": 3}, {"step": 1}]


def test_a_collective_stands_on_every_stream_it_holds():
    tids = threads(RUN)
    found = [event["tid"] for event in events("X", RUN) if event["name"] == "all_reduce"]
    assert found == [tids["gpu-0"], tids["gpu-1"]]


def test_nothing_overlaps_on_a_track():
    by_track = {}
    for event in events("X", RUN):
        by_track.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for track in by_track.values():
        assert all(before[1] <= after[0] + 1e-7 for before, after in pairwise(sorted(track)))


def test_steps_are_marked_until_the_next_begins():
    steps = [(e["name"], e["ts"], e["dur"]) for e in events("X", RUN) if e["cat"] == "step"]
    assert steps == [("step 0", 0.0, 4.0), ("step 1", 4.0, 4.5)]


def test_streams_are_in_natural_order():
    from dataclasses import replace

    run = a_run(spans=tuple(replace(spans()[0], units=(f"gpu-{n}",)) for n in (10, 2, 1)))
    assert list(threads(run)) == ["steps", "gpu-1", "gpu-2", "gpu-10"]
