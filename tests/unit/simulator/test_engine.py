from __future__ import annotations

from dataclasses import replace

import pytest
from engine_driver import EVEN, ask, play, spec

from airflow_llm_provider.simulator.engine import Engine, Finished, Gauges, Rejected, StepModel, Tokens, block_keys


def test_a_request_gets_its_tokens_one_a_step_and_ends():
    engine = Engine(spec(), seed=0)
    assert engine.next_s is None
    assert engine.submit(10.0, ask("a", prompt=5, tokens=3)) is None
    assert engine.next_s == 11.0
    assert engine.advance(10.5) == []
    assert engine.advance(11.0) == [Tokens("a", 11.0, 1, first=True)]
    assert engine.advance(12.9) == [Tokens("a", 12.0, 1, first=False)]
    token, end = engine.advance(20.0)
    assert token == Tokens("a", 13.0, 1, first=False)
    assert end == Finished("a", 13.0, "length", 5, 0, 3, 10.0, 0.0, 1.0, 2.0, 1.0, 0)
    assert (end.e2e_s, end.inference_s, end.mean_itl_s) == (3.0, 3.0, 1.0)
    assert engine.next_s is None
    assert (engine.running, engine.waiting, engine.unfinished, engine.kv_usage) == (0, 0, 0, 0.0)


def test_it_stops_where_it_stops_by_itself():
    ends = play(
        Engine(spec(max_num_seqs=4)),
        [
            (0.0, ask("early", tokens=5, stop_after=2)),
            (0.0, ask("at the last", tokens=5, stop_after=5)),
            (0.0, ask("too late", tokens=5, stop_after=6)),
            (0.0, ask("at once", tokens=1)),
        ],
    ).ends
    assert {name: (end.reason, end.generated_tokens) for name, end in ends.items()} == {
        "early": ("stop", 2),
        "at the last": ("stop", 5),
        "too late": ("length", 5),
        "at once": ("length", 1),
    }
    assert ends["at once"].mean_itl_s == 0.0


def test_a_slot_is_taken_again_in_the_step_after():
    story = play(Engine(spec(max_num_seqs=1)), [(0.0, ask("a")), (0.5, ask("b"))])
    assert story.firsts == {"a": 1.0, "b": 4.0}
    assert story.ends["b"].queued_s == 2.5


def test_where_steps_are_put_together_ahead_it_is_taken_a_step_later():
    arrivals = [(0.0, ask("a")), (0.5, ask("b"))]
    assert play(Engine(spec(max_num_seqs=2, async_scheduling=True)), arrivals).firsts == {"a": 1.0, "b": 3.0}
    assert play(Engine(spec(max_num_seqs=2)), arrivals).firsts == {"a": 1.0, "b": 2.0}
    # the last step of "a" has none after it that was put together, so "b" loses nothing
    assert play(Engine(spec(max_num_seqs=1, async_scheduling=True)), arrivals).firsts == {"a": 1.0, "b": 4.0}


def test_the_queue_is_by_arrival_or_by_priority():
    arrivals = [(0.0, ask("first"))]
    arrivals += [(0.1 * n, ask(f"p{p}", priority=p)) for n, p in enumerate([5, 100, -3, 0], start=1)]
    arrivals += [(0.6, ask("p0 too", priority=0))]
    fcfs = play(Engine(spec(max_num_seqs=1)), arrivals).firsts
    assert list(fcfs) == ["first", "p5", "p100", "p-3", "p0", "p0 too"]
    priority = play(Engine(spec(max_num_seqs=1, policy="priority")), arrivals).firsts
    assert list(priority) == ["first", "p-3", "p0", "p0 too", "p5", "p100"]


def test_a_long_prompt_is_computed_in_chunks_beside_those_that_decode():
    engine = Engine(spec(max_num_batched_tokens=10), tell_steps=True)
    story = play(engine, [(0.0, ask("a", tokens=6)), (0.5, ask("long", prompt=25, tokens=1))])
    assert [(step.decoding, step.prefill_tokens, step.context_tokens) for step in story.steps] == [
        (0, 4, 0),
        (1, 9, 4),
        (1, 9, 5 + 9),
        (1, 7, 6 + 18),
        (1, 0, 7),
        (1, 0, 8),
    ]
    assert story.firsts["long"] == 4.0
    assert [step.prompt_tokens for step in story.steps] == [4, 0, 0, 25, 0, 0]


def test_a_step_takes_what_the_model_says():
    model = StepModel(base_s=1.0, per_seq_s=0.25, per_prefill_token_s=0.125, per_kv_token_s=0.5)
    story = play(Engine(spec(step=model), tell_steps=True), [(0.0, ask("a", prompt=8, tokens=2))])
    assert [step.duration_s for step in story.steps] == [1.0 + 8 * 0.125, 1.0 + 0.25 + 8 * 0.5]


def test_a_step_that_computes_a_prompt_beside_others_that_decode_takes_longer():
    engine = Engine(spec(step=replace(EVEN, mixed_s=0.5)), tell_steps=True)
    story = play(engine, [(0.0, ask("a", tokens=4)), (0.5, ask("b", tokens=3))])
    assert [step.duration_s for step in story.steps] == [1.0, 1.5, 1.0, 1.0]


def test_the_api_server_takes_one_at_a_time():
    model = replace(EVEN, request_s=0.75)
    story = play(Engine(spec(max_num_seqs=4, step=model)), [(0.0, ask("a", tokens=1)), (0.0, ask("b", tokens=1))])
    assert story.firsts == {"a": 1.75, "b": 2.75}
    assert story.ends["b"].queued_s == 0.25
    assert story.ends["b"].ttft_s == 2.75


def test_what_passes_besides_delays_without_keeping_others_waiting():
    model = replace(EVEN, request_s=0.25, delay_s=0.5)
    story = play(Engine(spec(max_num_seqs=4, step=model)), [(0.0, ask("a", tokens=1)), (0.0, ask("b", tokens=1))])
    assert story.firsts == {"a": 1.75, "b": 2.75}
    story = play(Engine(spec(max_num_seqs=4, step=model)), [(0.0, ask("a", tokens=9)), (4.0, ask("b", tokens=1))])
    assert story.firsts["b"] == 5.75  # at the engine at 4.75, with a step beginning


def test_tokens_pass_the_api_server_one_at_a_time_and_together_where_it_is_slow():
    model = replace(EVEN, token_s=0.5, chunk_s=1.0)
    story = play(Engine(spec(step=model)), [(0.0, ask("a", tokens=4))])
    # made at 1, 2, 3 and 4: the second is sent with the first, which is still in the queue, the fourth with the third
    assert story.events[:-1] == [Tokens("a", 2.5, 2, first=True), Tokens("a", 4.5, 2, first=False)]
    end = story.ends["a"]
    assert (end.at_s, end.ttft_s, end.prefill_s, end.decode_s) == (4.5, 2.5, 1.0, 3.0)


def test_work_on_tokens_is_done_even_if_they_are_sent_together():
    slow = replace(EVEN, token_s=2.0)
    ends = play(Engine(spec(max_num_seqs=1, step=slow)), [(0.0, ask("a", tokens=10, every_token=False))]).ends
    assert ends["a"].at_s == 21.0
    assert ends["a"].decode_s == 9.0


def test_a_whole_answer_is_one_piece():
    model = replace(EVEN, token_s=0.125, chunk_s=0.5)
    story = play(Engine(spec(step=model)), [(0.0, ask("a", tokens=4, every_token=False))])
    assert story.firsts == {"a": 1.125}
    assert story.ends["a"].at_s == 4.625


def test_requests_wait_behind_tokens_and_tokens_behind_requests():
    model = replace(EVEN, request_s=0.5, chunk_s=0.5)
    story = play(
        Engine(spec(max_num_seqs=4, step=model)),
        [(0.0, ask("a", tokens=1)), (1.25, ask("b", tokens=1)), (1.5, ask("c", tokens=1))],
    )
    # a's token is made at 1.5 and waits until b is taken, at 1.75; c waits until that is sent
    assert story.firsts == {"a": 2.25, "b": 3.25, "c": 4.25}


def test_an_answer_on_its_way_can_be_aborted_and_counts_as_such():
    engine = Engine(spec(step=replace(EVEN, chunk_s=5.0)))
    engine.submit(0.0, ask("a", tokens=1))
    engine.advance(3.0)
    assert (engine.running, engine.waiting, engine.unfinished) == (0, 0, 1)
    assert engine.next_s == 6.0
    assert engine.abort(4.0, "a")
    assert engine.advance(9.0) == []
    assert engine.totals.finished == {"abort": 1}
    assert engine.unfinished == 0


def test_jitter_has_mean_one_and_follows_the_seed():
    model = StepModel(base_s=1.0, per_seq_s=0.0, per_prefill_token_s=0.0, jitter=0.5)

    def ends_s(seed: int) -> float:
        engine = Engine(spec(step=model, max_model_len=5000, num_blocks=2000), seed=seed)
        return play(engine, [(0.0, ask("a", tokens=4000, every_token=False))]).ends["a"].at_s

    assert ends_s(1) == ends_s(1) != ends_s(2)
    assert ends_s(1) == pytest.approx(4000, rel=0.03)


def test_what_was_computed_is_found_again_but_not_wholly():
    keys = block_keys(range(100), 4)
    engine = Engine(spec(), tell_steps=True)
    first = play(engine, [(0.0, ask("a", prompt=16, tokens=1, block_keys=keys))])
    assert first.steps[0].prefill_tokens == 16
    again = play(
        engine,
        [
            (10.0, ask("b", prompt=16, tokens=1, block_keys=keys)),
            (20.0, ask("longer", prompt=19, tokens=1, block_keys=keys)),
            (30.0, ask("other", prompt=16, tokens=1, block_keys=block_keys(range(1, 101), 4))),
        ],
    )
    assert [step.prefill_tokens for step in again.steps] == [4, 3, 16]
    assert {name: end.cached_tokens for name, end in again.ends.items()} == {"b": 12, "longer": 16, "other": 0}
    assert (engine.totals.prefix_queries, engine.totals.prefix_hits) == (16 + 16 + 19 + 16, 12 + 16)


def test_a_slice_finds_what_the_slice_before_generated():
    keys = block_keys(range(100), 4)
    engine = Engine(spec())
    play(engine, [(0.0, ask("slice 1", prompt=10, tokens=7, block_keys=keys))])
    end = play(engine, [(20.0, ask("slice 2", prompt=17, tokens=7, block_keys=keys))]).ends["slice 2"]
    assert end.cached_tokens == 16


def test_without_prefix_caching_nothing_is_found():
    keys = block_keys(range(100), 4)
    engine = Engine(spec(prefix_caching=False))
    play(engine, [(0.0, ask("a", prompt=16, block_keys=keys))])
    assert play(engine, [(20.0, ask("b", prompt=16, block_keys=keys))]).ends["b"].cached_tokens == 0
    assert engine.totals.prefix_queries == 0


def test_without_blocks_the_last_one_started_starts_again():
    engine = Engine(spec(num_blocks=6, max_model_len=20), tell_steps=True)  # five blocks
    story = play(engine, [(0.0, ask("a", prompt=8, tokens=8)), (0.1, ask("b", prompt=8, tokens=4))])
    assert story.preempted == ["b"]
    assert story.tokens == {"a": 8, "b": 4}
    assert story.ends["b"].preemptions == engine.preemptions == 1
    assert story.ends["a"].at_s < story.ends["b"].at_s
    assert max(step.prefill_tokens for step in story.steps[1:]) > 8, "its generated tokens are computed again too"


def test_with_priorities_the_least_urgent_starts_again():
    engine = Engine(spec(num_blocks=6, max_model_len=20, policy="priority"))
    arrivals = [(0.0, ask("a", prompt=8, tokens=8, priority=1)), (0.1, ask("b", prompt=8, tokens=4, priority=0))]
    story = play(engine, arrivals)
    assert story.preempted == ["a"]
    assert story.tokens == {"a": 8, "b": 4}


def test_the_others_go_on_in_the_step_in_which_one_loses_its_blocks():
    engine = Engine(spec(num_blocks=10, max_model_len=32, max_num_seqs=4, policy="priority"))  # nine blocks
    arrivals = [(0.0, ask("late", prompt=4, tokens=12, priority=9))]
    arrivals += [(0.0, ask(name, prompt=8, tokens=4)) for name in "abc"]
    story = play(engine, arrivals)
    assert story.preempted == ["late"]  # when "b" finds no block in the third step
    assert {name: story.ends[name].at_s for name in "abc"} == {"a": 5.0, "b": 5.0, "c": 5.0}
    assert story.ends["late"].preemptions == 1


def test_by_arrival_who_lost_its_blocks_is_the_next_to_start():
    engine = Engine(spec(num_blocks=6, max_model_len=20))
    arrivals = [(0.0, ask("a", prompt=8, tokens=8)), (0.1, ask("b", prompt=8, tokens=4)), (0.2, ask("c", tokens=1))]
    story = play(engine, arrivals)
    assert story.preempted == ["b"]
    assert story.firsts["c"] > story.ends["a"].at_s, "there was a block for it before, but not its turn"


def test_nobody_is_started_who_would_not_fit_whole():
    engine = Engine(spec(num_blocks=6, max_model_len=20, max_num_batched_tokens=4))
    story = play(engine, [(0.0, ask("a", prompt=12, tokens=2)), (0.1, ask("b", prompt=12, tokens=2))])
    assert story.preempted == []
    assert story.firsts["b"] > story.ends["a"].at_s


def test_an_abort_frees_the_slot_at_the_end_of_the_step():
    engine = Engine(spec(max_num_seqs=1))
    engine.submit(0.0, ask("a", tokens=50))
    engine.submit(0.0, ask("b", tokens=1))
    engine.submit(0.0, ask("c", tokens=1))
    assert engine.abort(2.5, "a")
    assert not engine.abort(2.5, "a")
    assert not engine.abort(2.5, "nobody")
    assert engine.running == 1
    assert engine.abort(2.6, "b")
    events = engine.advance(10.0)
    assert [(event.request_id, event.at_s) for event in events] == [("c", 4.0), ("c", 4.0)]
    assert engine.totals.finished == {"abort": 2, "length": 1}
    assert engine.totals.generation_tokens == 3
    assert engine.kv_usage == 0.0


def test_what_is_not_fetched_of_an_aborted_request_is_not_told():
    engine = Engine(spec())
    engine.submit(0.0, ask("a", tokens=50))
    engine.abort(5.5, "a")
    assert engine.advance(10.0) == []


def test_the_id_of_an_aborted_request_can_be_used_again():
    engine = Engine(spec(max_num_seqs=2))
    engine.submit(0.0, ask("a", tokens=50))
    engine.abort(0.5, "a")
    engine.submit(0.6, ask("a", tokens=2))
    tokens = [event.at_s for event in engine.advance(10.0) if isinstance(event, Tokens)]
    assert tokens == [2.0, 3.0]


def test_refusals_count_running_requests_and_whole_prompts():
    engine = Engine(spec(max_num_seqs=1, max_num_queued_reqs=2))
    story = play(engine, [(0.0, ask("a", tokens=1)), (0.0, ask("b")), (0.0, ask("c")), (1.5, ask("d"))])
    assert story.refused == {"c": "max_num_queued_reqs"}
    assert engine.totals.rejected == {"max_num_queued_reqs": 1}

    engine = Engine(spec(max_num_seqs=1, max_num_queued_tokens=10))
    assert engine.submit(0.0, ask("a", prompt=9)) is None
    assert engine.submit(0.0, ask("b", prompt=300)) is None
    assert engine.submit(0.0, ask("c", prompt=1)) == Rejected("max_num_queued_tokens")
    engine.abort(0.0, "b")
    assert engine.submit(0.0, ask("d", prompt=1)) is None
    assert engine.submit(0.0, ask("e", prompt=1)) == Rejected("max_num_queued_tokens")
    assert engine.submit(1.0, ask("f", prompt=1)) is None  # "a" has its first token


def test_gauges_are_those_of_the_last_step():
    engine = Engine(spec(max_num_seqs=1))
    engine.submit(0.0, ask("a", prompt=8))
    engine.submit(0.0, ask("b"))
    assert engine.gauges == Gauges(0, 0, 0.0)
    assert (engine.running, engine.waiting) == (1, 1)
    engine.advance(1.0)
    assert engine.gauges == Gauges(1, 0, 0.02), "the second one came while the step was under way"
    engine.advance(2.0)
    assert engine.gauges[:2] == (1, 1)
    engine.advance(9.0)
    assert engine.gauges == Gauges(0, 0, 0.0)


def test_only_first_tokens_are_told_where_that_is_enough():
    story = play(Engine(spec()), [(0.0, ask("a", tokens=5, every_token=False))])
    assert story.tokens == {"a": 1}
    assert story.ends["a"].generated_tokens == 5


def test_totals_add_up():
    engine = Engine(spec())
    play(engine, [(0.0, ask("a", prompt=5, tokens=4)), (0.0, ask("b", prompt=7, tokens=2, stop_after=1))])
    totals = engine.totals
    assert (totals.prompt_tokens, totals.generation_tokens, totals.steps) == (12, 5, 4)
    assert totals.step_s == 4.0
    assert totals.slot_s == 5.0
    assert totals.finished == {"stop": 1, "length": 1}


def test_time_does_not_go_back():
    engine = Engine(spec())
    engine.submit(5.0, ask("a"))
    for late in (
        lambda: engine.submit(4.0, ask("b")),
        lambda: engine.abort(4.0, "a"),
        lambda: engine.advance(4.0),
    ):
        with pytest.raises(ValueError, match=r"has come to 5.0 s and cannot go back to 4.0 s"):
            late()


def test_what_cannot_be_asked_is_told():
    engine = Engine(spec())
    engine.submit(0.0, ask("a"))
    with pytest.raises(ValueError, match="unfinished request a already"):
        engine.submit(0.0, ask("a"))
    with pytest.raises(ValueError, match=r"Request b has 390 prompt tokens and asks for 11: more than max_model_len"):
        engine.submit(0.0, ask("b", prompt=390, tokens=11))
    assert engine.submit(0.0, ask("b", prompt=390, tokens=10)) is None


@pytest.mark.parametrize("wrong", [{"prompt": 0}, {"tokens": 0}, {"stop_after": 0}])
def test_a_request_has_tokens(wrong):
    with pytest.raises(ValueError, match="is 1 or more, not 0"):
        ask("a", **wrong)
