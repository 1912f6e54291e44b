"""Reading /metrics: a real vLLM's page shape, several engines and models, and everything a page may hold besides."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_llm_provider.core.histogram import Histogram
from airflow_llm_provider.endpoint import exposition as module
from airflow_llm_provider.endpoint.exposition import Page

TTFT = "vllm:time_to_first_token_seconds"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
NAMES = [f"{TTFT}_bucket", RUNNING, WAITING, "process_start_time_seconds"]

PAGE = b"""# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3",version="3.11.7"} 1.0
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79533768316e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 4.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 9.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="tiny"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="2.5",model_name="tiny"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 6.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 6.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny"} 21.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="2.5",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="tiny"} 1.0
"""


def test_engines_are_summed():
    page = Page(PAGE, NAMES)
    assert page.histogram(TTFT, "tiny") == Histogram(bounds=(0.1, 2.5, inf), counts=(3, 3, 1))
    assert page.total(RUNNING, "tiny") == 7.0
    assert page.total("process_start_time_seconds") == 1.79533768316e09


def test_a_family_is_not_mistaken_for_one_whose_name_begins_alike():
    assert Page(PAGE, NAMES).total(WAITING, "tiny") == 0.0


def test_the_only_model_is_meant_by_any_name():
    page = Page(PAGE, NAMES)
    assert page.models() == ["tiny"]
    assert [page.model(wanted) for wanted in ("tiny", "an-alias", None)] == ["tiny"] * 3


def test_of_several_models_only_the_named_one_is_read():
    page = Page(PAGE + PAGE.replace(b'"tiny"', b'"large"'), NAMES)
    assert page.models() == ["large", "tiny"]
    assert [page.model(wanted) for wanted in ("tiny", "an-alias", None)] == ["tiny", None, None]
    assert page.total(RUNNING, "tiny") == 7.0


def test_what_is_not_there_is_none():
    page = Page(PAGE, [*NAMES, "vllm:e2e_request_latency_seconds_bucket"])
    assert page.histogram("vllm:e2e_request_latency_seconds", "tiny") is None
    assert page.total(RUNNING, "other") is None
    assert Page(b"", NAMES).model(None) is None


@pytest.mark.parametrize(
    "line",
    [
        b'vllm:num_requests_running{engine="0",model_name="a \\"b\\" } \\\\ c"} 5',
        b'vllm:num_requests_running {model_name = "a \\"b\\" } \\\\ c" , engine="0",} 5 1795337683000',
        b'vllm:num_requests_running{model_name="a \\"b\\" } \\\\ c"}\t5e0 # {trace_id="x"} 0.67 1.2',
    ],
    ids=["escapes", "spaces and a time", "exemplar"],
)
def test_forms_of_a_line(line):
    page = Page(b"# EOF\n" + line + b"\nsomething else\n", NAMES)
    assert page.total(RUNNING, 'a "b" } \\ c') == 5.0


@pytest.mark.parametrize("value", [b"five", b"NaN", b"", b"{}"])
def test_a_line_that_cannot_be_read_is_left_out(value):
    broken = b'vllm:num_requests_running{model_name="tiny"} ' + value + b"\n"
    assert Page(broken + PAGE, NAMES).total(RUNNING, "tiny") == 7.0


@pytest.mark.parametrize("bucket", [b'le="x",', b"", b'le="0.05",'], ids=["no number", "no bound", "falling counts"])
def test_buckets_that_are_none_are_an_error_and_not_fewer_samples(bucket):
    line = b'vllm:time_to_first_token_seconds_bucket{engine="0",' + bucket + b'model_name="tiny"} 9.0\n'
    with pytest.raises(ValueError, match="no "):
        Page(PAGE + line, NAMES).histogram(TTFT, "tiny")


@given(st.lists(st.sampled_from([b'{le="', b'"', b"}", b"\\", TTFT.encode(), b"_bucket", b" 1", b"\n", b"\xff", b"#"])))
def test_no_page_whatsoever_raises(pieces):
    page = Page(b"".join(pieces), NAMES)
    assert page.total(RUNNING, "tiny") is None


def test_labels_are_read_anew_where_they_differ_and_long_ones_are_not_kept() -> None:
    before = module._known_labels.cache_info().currsize
    for size in (1, 2, module.LONGEST_KNOWN, 2 * module.LONGEST_KNOWN):
        page = Page(b'up{model_name="%s"} 1\n' % (b"m" * size), ["up"])
        assert page.models() == ["m" * size]
    assert module._known_labels.cache_info().currsize - before == 2
