"""The publisher's cache of messages."""

from services.acceptance.publisher import MessageCache
from services.core.ports import OutgoingMessage


def batch(size: int) -> list[OutgoingMessage]:
    return [OutgoingMessage("topic", 0, b"1:0", b"x" * size, {})]


def test_the_oldest_batches_go_when_the_cache_is_full() -> None:
    cache = MessageCache(1000)
    for number in range(4):
        cache.put(number, batch(300))
    assert [cache.pop(number) is not None for number in range(4)] == [False, True, True, True]


def test_a_batch_that_is_larger_than_the_cache_pushes_out_no_other() -> None:
    cache = MessageCache(1000)
    cache.put(1, batch(300))
    cache.put(2, batch(2000))
    assert cache.pop(2) is None
    assert cache.pop(1) == batch(300)


def test_messages_that_come_after_the_publisher_looked_for_them_are_not_kept() -> None:
    """The publisher may read a batch from the ledger before the committer, after its COMMIT, has put the messages."""
    cache = MessageCache(1000)
    cache.put(1, batch(600))
    assert cache.pop(2) is None
    cache.put(2, batch(600))
    assert cache.pop(1) == batch(600), "batch 2 has pushed it out, and stays for ever"
    assert cache.pop(2) is None
    cache.put(3, batch(600))
    assert cache.pop(3) == batch(600)
