"""What is known of conversations: bounded, the latest used kept, and never of another text."""

from array import array

from engines.tokens.beginnings import Beginning, Beginnings


def beginning(text: str) -> Beginning:
    return Beginning(text + "<|", len(text), array("I", range(len(text))))


def test_a_text_is_known_by_all_of_its_beginning() -> None:
    known = Beginnings(10_000)
    known.keep("hello", beginning("hello world"))
    assert known.find("hello", "hello world<|and so on") == beginning("hello world")
    assert known.find("hello", "hello world, and so on") is None
    assert known.find("hello", "hello") is None
    assert known.find("other", "hello world<|and so on") is None
    known.keep("hello", beginning("hello again"))
    assert known.find("hello", "hello world<|and so on") is None
    known.clear()
    assert known.find("hello", "hello again<|") is None
    assert known.held_bytes == 0


def test_memory_is_bounded_and_the_latest_used_are_kept() -> None:
    known = Beginnings(5_000)
    for index in range(100):
        known.keep(f"{index}", beginning(f"{index}" + "x" * 50))
        assert known.held_bytes <= 5_000
        assert known.find("0", "0" + "x" * 50 + "<|") is not None
    assert known.find("1", "1" + "x" * 50 + "<|") is None
    before = known.held_bytes
    known.keep("long", beginning("long" + "y" * 1_000))
    assert known.held_bytes == before, "one must not drive out all others"
