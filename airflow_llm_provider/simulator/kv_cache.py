"""The engine's KV memory: who holds how many blocks, and which free ones can still be found.

Owns the counting of blocks and the prefix cache. Does not know sequences' order or time (`simulator.engine`).

As in vLLM: a block is free when nobody holds it; a free block that was full keeps its content and is found by its key
until it is needed for something else, the longest unused first and a sequence's tail before its head. A block may have
copies, where sequences that begin alike were computed side by side: the oldest of those that are left is found.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


class Block:
    """One known block.

    Attributes:
        key: by which it is found.
        holders: sequences that hold it.
    """

    __slots__ = ("holders", "key")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.holders = 1


class Held:
    """The blocks of one sequence.

    Attributes:
        blocks: how many.
        known: those that can be found by others: its first ones.
    """

    __slots__ = ("blocks", "known")

    def __init__(self) -> None:
        self.blocks = 0
        self.known: list[Block] = []


class KVCache:
    """Blocks and their whereabouts.

    Args:
        blocks: how many there are to be had.
        block_size: tokens in each.
        prefix_caching: whether full blocks are found again.
    """

    def __init__(self, *, blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._caching = prefix_caching
        self._blank = blocks  # free, and of no known content
        self._copies: dict[Hashable, dict[Block, None]] = {}  # known blocks by key, the oldest copy first
        self._unused: OrderedDict[Block, None] = OrderedDict()  # those nobody holds, the longest unused first

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self._blank + len(self._unused)

    @property
    def usage(self) -> float:
        """Share of the blocks that somebody holds, 0 to 1."""
        return (self.blocks - self.free) / self.blocks

    def find(self, keys: Sequence[Hashable], tokens: int) -> int:
        """How many blocks from the beginning are known.

        Args:
            keys: the sequence's.
            tokens: its length. At least one of them must be computed, so the last block is never wholly found.
        """
        if not self._caching:
            return 0
        found = 0
        for key in keys[: (tokens - 1) // self.block_size]:
            if key not in self._copies:
                break
            found += 1
        return found

    def fits(self, keys: Sequence[Hashable], found: int, tokens: int) -> bool:
        """Whether a sequence of this length finds room, `found` of whose blocks are known."""
        revived = sum(self._copy(key) in self._unused for key in keys[:found])
        return self._needed(tokens) - found + revived <= self.free

    def adopt(self, held: Held, keys: Sequence[Hashable], found: int) -> None:
        """Hold known blocks, as the sequence's first."""
        for key in keys[:found]:
            block = self._copy(key)
            self._unused.pop(block, None)
            block.holders += 1
            held.known.append(block)
        held.blocks = found

    def grow(self, held: Held, tokens: int) -> bool:
        """Hold enough blocks for so many tokens.

        Returns:
            False if there are not enough free ones; then nothing has changed.
        """
        more = self._needed(tokens) - held.blocks
        if more <= 0:
            return True
        if more > self.free:
            return False
        held.blocks += more
        blank = min(more, self._blank)
        self._blank -= blank
        for _ in range(more - blank):
            block, _nothing = self._unused.popitem(last=False)
            copies = self._copies[block.key]
            del copies[block]
            if not copies:
                del self._copies[block.key]
        return True

    def offer(self, held: Held, keys: Sequence[Hashable], tokens: int) -> None:
        """Make the sequence's full blocks known, as far as they have keys.

        Args:
            held: its blocks.
            keys: its keys.
            tokens: how many of its tokens are computed.
        """
        if not self._caching:
            return
        for key in keys[len(held.known) : tokens // self.block_size]:
            block = Block(key)
            self._copies.setdefault(key, {})[block] = None
            held.known.append(block)

    def release(self, held: Held) -> None:
        """Let go of all blocks of a sequence. Those that are known can be found until they are needed."""
        self._blank += held.blocks - len(held.known)
        for block in reversed(held.known):
            block.holders -= 1
            if not block.holders:
                self._unused[block] = None
        held.blocks = 0
        held.known = []

    def _copy(self, key: Hashable) -> Block:
        return next(iter(self._copies[key]))

    def _needed(self, tokens: int) -> int:
        return -(-tokens // self.block_size)
