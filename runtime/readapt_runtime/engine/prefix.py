"""Blocks of keys and values, and which of them later requests can use again.

A block is one page: 16 tokens of one sequence. Once all 16 are computed it may be cached: found again by what it
depends on, which is the generation of the adapter, the tenant (its salt), and all tokens up to its end. Blocks of one
beginning form a tree per (generation, tenant); tokens are compared as such, so no two prefixes are ever confused.
A sequence uses all blocks of its path, so an idle block has idle children only and trees are dropped from the leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Tokens

from readapt_runtime.engine.core import Block, Root, Variant
from readapt_runtime.engine.pool import BLOCK_TOKENS, PageKind, PagePool, PoolCorrupt
from readapt_runtime.engine.worth import Costs, Evictions


class PrefixCache:
    """Owns every KV page of the pool; the trees hold cached blocks, sequences hold all of theirs."""

    def __init__(self, pool: PagePool, evictions: Evictions, costs: Costs) -> None:
        self._pool = pool
        self._evictions = evictions
        self._costs = costs
        self._roots: dict[tuple[Variant | None, str], Root] = {}
        self._cached: dict[Variant | None, int] = {}
        self.idle = 0
        """Cached blocks that no sequence uses."""
        self.hits = 0
        """Tokens that did not have to be computed again."""

    def match(
        self,
        variant: Variant | None,
        tenant: str,
        tokens: Tokens[int],
        limit: int,
        after: Block | None = None,
        begin: int = 0,
    ) -> list[Block]:
        """The cached blocks of the longest known beginning of ``tokens``, at most ``limit`` tokens of them.

        From token ``begin`` on, where a cached block ``after`` ends.
        """
        found: list[Block] = []
        at: Root | Block | None = after or self._roots.get((variant, tenant))
        for start in range(begin, limit - limit % BLOCK_TOKENS, BLOCK_TOKENS):
            block = at.children.get(tuple(tokens[start : start + BLOCK_TOKENS])) if at else None
            if block is None:
                break
            found.append(block)
            at = block
        return found

    def use(self, blocks: Tokens[Block]) -> None:
        """One more sequence works with these cached blocks."""
        for block in blocks:
            if block.users == 0:
                self.idle -= 1
                self._evictions.withdraw(block)
            block.users += 1
            self._evictions.touch(block)
        self.hits += len(blocks) * BLOCK_TOKENS

    def new(self) -> Block:
        """An empty block, used by one sequence; raises PoolExhausted."""
        return Block(self._pool.allocate(PageKind.KV, 1), self._costs.kv_s)

    def release(self, blocks: Tokens[Block]) -> None:
        """A sequence works with these no longer: cached ones stay until their pages are wanted."""
        for block in reversed(blocks):
            block.users -= 1
            if block.users == 0:
                if block.parent is None:
                    self._pool.release(block.entry)
                else:
                    self.idle += 1
                    self._offer_leaf(block)

    def insert(
        self, block: Block, before: Block | None, variant: Variant | None, tenant: str, tokens: Tokens[int]
    ) -> bool:
        """Caches a complete block that follows ``before``; False when an equal one is there already."""
        key = (variant, tenant)
        root = before.root if before else self._roots.setdefault(key, Root(*key))
        parent = before or root
        if root is None or parent is None:
            raise PoolCorrupt("a block was cached after one that is not")
        content = tuple(tokens)
        if content in parent.children:
            return False
        parent.children[content] = block
        block.root, block.parent, block.tokens = root, parent, content
        self._count(variant, 1)
        self._evictions.touch(block)
        return True

    def evict(self, block: Block) -> None:
        """Frees an idle leaf."""
        root, parent = block.root, block.parent
        if block.users or block.children or root is None or parent is None:
            raise PoolCorrupt("a block that is in use was evicted")
        self._evictions.withdraw(block)
        self.idle -= 1
        self._count(root.variant, -1)
        del parent.children[block.tokens]
        self._pool.release(block.entry)
        if isinstance(parent, Block):
            self._offer_leaf(parent)
        elif not parent.children:
            del self._roots[root.variant, root.tenant]

    def drop(self, variant: Variant | None) -> None:
        """Frees every block of a generation; none of them may be in use."""
        for root in [root for root in self._roots.values() if root.variant is variant]:
            for block in reversed(list(_below(root))):
                self.evict(block)

    def cached(self, variant: Variant | None) -> int:
        """Blocks of a generation in the cache."""
        return self._cached.get(variant, 0)

    def check(self) -> None:
        """Raises PoolCorrupt where the books and the trees differ."""
        blocks = [block for root in self._roots.values() for block in _below(root)]
        if sum(self._cached.values()) != len(blocks) or self.idle != sum(block.users == 0 for block in blocks):
            raise PoolCorrupt(
                f"{self._cached} cached blocks and {self.idle} idle ones are counted, not those there are"
            )
        if any(child.users > block.users for block in blocks for child in block.children.values()):
            raise PoolCorrupt("a block is used without the one before it")

    def _count(self, variant: Variant | None, change: int) -> None:
        self._cached[variant] = self.cached(variant) + change
        if not self._cached[variant]:
            del self._cached[variant]

    def _offer_leaf(self, block: Block) -> None:
        if block.users == 0 and not block.children:
            self._evictions.offer(block)


def _below(root: Root) -> Iterator[Block]:
    """Every block of a tree, after the one that it follows."""
    stack = list(root.children.values())
    while stack:
        block = stack.pop()
        yield block
        stack += block.children.values()
