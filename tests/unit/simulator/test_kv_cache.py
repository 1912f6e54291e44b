from __future__ import annotations

from airflow_llm_provider.simulator.kv_cache import Held, KVCache
from airflow_llm_provider.simulator.words import block_keys


def cache(blocks: int = 10, *, prefix_caching: bool = True) -> KVCache:
    return KVCache(blocks=blocks, block_size=4, prefix_caching=prefix_caching)


def computed(kv: KVCache, keys: str, tokens: int | None = None) -> Held:
    held = Held()
    tokens = tokens or 4 * len(keys)
    found = kv.find(keys, tokens)
    kv.adopt(held, keys, found)
    assert kv.grow(held, tokens)
    kv.offer(held, keys, tokens)
    return held


def keys(held: Held) -> list:
    return [block.key for block in held.known]


def test_blocks_are_held_by_the_full_block_and_given_back():
    kv = cache()
    held = Held()
    assert kv.grow(held, 5)
    assert (held.blocks, kv.free, kv.usage) == (2, 8, 0.2)
    assert kv.grow(held, 8)
    assert held.blocks == 2
    assert not kv.grow(held, 41)
    assert held.blocks == 2
    assert kv.grow(held, 40)
    assert kv.free == 0
    kv.release(held)
    assert (held.blocks, kv.free) == (0, 10)


def test_one_block_serves_all_who_begin_alike():
    kv = cache()
    computed(kv, "abc")
    again = computed(kv, "abd")
    assert kv.free == 6
    assert keys(again) == ["a", "b", "d"]


def test_one_token_at_least_is_computed():
    kv = cache()
    computed(kv, "abc")
    assert [kv.find("abcd", tokens) for tokens in (1, 4, 5, 12, 13, 16)] == [0, 0, 1, 2, 3, 3]


def test_a_gap_ends_the_search():
    kv = cache()
    held = computed(kv, "abc")
    assert kv.find("xbc", 13) == 0
    kv.release(held)
    assert kv.find("abc", 13) == 3


def test_free_blocks_are_forgotten_tail_first_and_the_longest_unused_first():
    kv = cache(blocks=6)
    old, new = computed(kv, "abc"), computed(kv, "xyz")
    kv.release(old)
    kv.release(new)
    assert kv.free == 6
    other = Held()
    assert kv.grow(other, 8)
    assert (kv.find("abc", 13), kv.find("xyz", 13)) == (1, 3)
    assert kv.grow(other, 16)
    assert (kv.find("abc", 13), kv.find("xyz", 13)) == (0, 2)


def test_blank_blocks_go_before_known_ones():
    kv = cache(blocks=6)
    kv.release(computed(kv, "abc"))
    assert kv.grow(Held(), 12)
    assert kv.find("abc", 13) == 3


def test_a_known_block_that_is_free_takes_room_again_when_it_is_used():
    kv = cache(blocks=4)
    kv.release(computed(kv, "ab"))
    assert kv.fits("abcd", kv.find("abcd", 16), 16)
    assert not kv.fits("abcde", kv.find("abcde", 17), 17)
    other = Held()
    kv.grow(other, 8)
    assert kv.free == 2
    assert not kv.fits("abc", 2, 12), "two of its three are known, but they are the two that are free"
    assert kv.fits("abc", 2, 8)


def test_copies_are_found_one_after_the_other():
    kv = cache(blocks=6)
    first, second = Held(), Held()
    for held in (first, second):  # both began before either was computed
        kv.grow(held, 8)
        kv.offer(held, "ab", 8)
    kv.release(first)
    kv.release(second)
    assert kv.free == 6
    assert kv.grow(Held(), 16)  # two blank ones, and the two of the first
    assert kv.find("ab", 9) == 2
    assert kv.grow(Held(), 4)
    assert kv.find("ab", 9) == 1


def test_only_full_blocks_with_keys_are_known():
    kv = cache()
    held = computed(kv, "ab", tokens=15)
    assert (held.blocks, keys(held)) == (4, ["a", "b"])
    assert keys(computed(kv, "xyz", tokens=7)) == ["x"]


def test_nothing_is_known_without_caching():
    kv = cache(prefix_caching=False)
    held = computed(kv, "abc")
    assert kv.find("abc", 13) == 0
    kv.release(held)
    assert kv.free == 10


def test_keys_tell_tokens_and_all_before_them():
    assert block_keys([], 4) == block_keys([1, 2, 3], 4) == ()
    made = block_keys(range(11), 4)
    assert len(made) == 2
    assert block_keys(range(12), 4)[:2] == made
    assert block_keys([1, 2, 3, 4, 1, 2, 3, 4], 4)[0] != block_keys([1, 2, 3, 4, 1, 2, 3, 4], 4)[1]
    assert block_keys([9, 1, 2, 3, 4, 5, 6, 7], 4)[1] != made[1]
