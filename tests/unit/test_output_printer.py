"""Test how the output of tasks is shown: labels, limits, lines that are redrawn, displays that are updated."""

from __future__ import annotations

import re

import msgspec
import pytest

from ipytaskfarm.client import output_printer
from ipytaskfarm.client.output_printer import KEPT_CHARS, OutputPrinter, SeenOutput, rest_of
from ipytaskfarm.client.streams import fresh_part
from ipytaskfarm.core.messages import Output
from ipytaskfarm.engine.sinks import BoundedText, Sink

Captured = pytest.CaptureFixture[str]


def output(
    stdout: str = "", stderr: str = "", displays: list[tuple[int, str]] | None = None, serial: int = 0
) -> Output:
    packed = msgspec.msgpack.encode([(place, {"data": {"text/plain": text}}) for place, text in displays or []])
    return Output((7, 1), 0, stdout, stderr, (len(stdout), len(stderr)), packed if displays else b"", serial)


def test_each_line_stands_behind_its_label(capsys: Captured) -> None:
    printer, seen = OutputPrinter(), SeenOutput()
    printer.take("7", seen, output("one\ntw", "err\n"))
    printer.show()
    assert capsys.readouterr() == ("[7] one\n", "[7] err\n")
    printer.rest("7", seen, "one\ntwo", "err\n", [])
    printer.show(is_over=True)
    assert capsys.readouterr() == ("[7] two\n", "")


def test_of_one_task_the_text_stands_as_it_was_written(capsys: Captured) -> None:
    printer, seen = OutputPrinter(labelled=False), SeenOutput()
    printer.take("7", seen, output("10 %\r20 %\r"))
    printer.show()
    printer.rest("7", seen, "10 %\r20 %\r30 %", "", [{"data": {"text/plain": "42"}}])
    printer.show(is_over=True)
    assert capsys.readouterr().out == "10 %\r20 %\r30 %42\n"


def test_a_line_that_was_redrawn_is_shown_as_it_is_at_last(capsys: Captured) -> None:
    printer = OutputPrinter()
    printer.rest("7", SeenOutput(), "10 %\r20 %\r100 %\n", "", [])
    printer.show()
    assert capsys.readouterr().out == "[7] 100 %\n"


def test_a_display_is_shown_once_and_again_when_it_has_changed(capsys: Captured) -> None:
    printer, seen = OutputPrinter(), SeenOutput()
    printer.take("7", seen, output(displays=[(0, "a"), (1, "b")], serial=2))
    printer.take("7", seen, output(displays=[(1, "c")], serial=3))
    assert seen.serial == 3
    rest = [{"data": {"text/plain": text}} for text in "acd"]
    printer.rest("7", seen, "", "", rest)
    printer.show()
    assert capsys.readouterr().out == "[7] a\n[7] b\n[7] c\n[7] d\n"


def test_a_flood_is_cut_and_counted(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_printer, "LINES_PER_S", 0)
    printer, seen = OutputPrinter(), SeenOutput()
    printer.take("7", seen, output("".join(f"{n}\n" for n in range(5_000))))
    printer.show()
    shown = capsys.readouterr()
    assert shown.out.count("\n") == output_printer.LINES_AT_ONCE
    assert shown.err == ""
    printer.show(is_over=True)
    assert capsys.readouterr().err == "[7] … 4,000 lines not shown\n"


def test_a_flood_of_one_task_is_cut_too(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_printer, "CHARS_PER_S", 0)
    printer = OutputPrinter(labelled=False)
    for _ in range(20):
        printer.take("7", SeenOutput(), output("x" * 9_999 + "\n"))
    printer.show(is_over=True)
    shown = capsys.readouterr()
    assert len(shown.out) <= output_printer.CHARS_AT_ONCE
    assert shown.err == "… 7 lines not shown\n"


def test_of_a_text_that_is_too_long_the_first_lines_are_shown(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_printer, "CHARS_PER_S", 0)
    printer = OutputPrinter(labelled=False)
    printer.take("7", SeenOutput(), output("".join(f"{n:9}\n" for n in range(20_000))))
    printer.show(is_over=True)
    shown = capsys.readouterr()
    lines = output_printer.CHARS_AT_ONCE // 10
    assert shown.out == "".join(f"{n:9}\n" for n in range(lines))
    assert shown.err == f"… {20_000 - lines:,} lines not shown\n"


@pytest.mark.parametrize("labelled", [True, False])
def test_what_a_result_has_left_out_is_told_with_what_is_not_shown(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, labelled: bool
) -> None:
    """Of 100,000 lines a result has kept the first and the last 64 Ki characters."""
    monkeypatch.setattr(output_printer, "LINES_PER_S", 0)
    monkeypatch.setattr(output_printer, "CHARS_PER_S", 0)
    monkeypatch.setattr(output_printer, "CHARS_AT_ONCE", 10_000)
    whole = BoundedText()
    whole.write("".join(f"{n:9}\n" for n in range(100_000)))
    printer = OutputPrinter(labelled=labelled)
    printer.rest("7", SeenOutput(), whole.text(), "", [])
    printer.show(is_over=True)
    shown = capsys.readouterr()
    gap = re.search(r"\n\[\.\.\. (\d+) characters left out", whole.text())
    assert gap is not None
    lines = whole.text().count("\n") - shown.out.count("\n")
    remark = f"… {lines:,} lines and {int(gap[1]):,} characters between them not shown\n"
    assert shown.err == ("[7] " if labelled else "") + remark


def test_all_that_a_result_has_kept_is_shown(capsys: Captured) -> None:
    whole = BoundedText()
    whole.write("".join(f"{n:9}\n" for n in range(100_000)))
    printer, seen = OutputPrinter(labelled=False), SeenOutput()
    printer.take("7", seen, output("x" * 50_000 + "\n"))
    printer.show()
    seen.chars = (0, 0)
    printer.rest("7", seen, whole.text(), "", [])
    printer.show(is_over=True)
    shown = capsys.readouterr()
    assert shown.out.endswith(whole.text())
    assert shown.err == ""


@pytest.mark.parametrize("seen", [0, 10, KEPT_CHARS, KEPT_CHARS + 5, 100_000, 150_000, 199_990, 200_000])
def test_the_rest_of_a_long_text_follows_what_was_seen(seen: int) -> None:
    whole = "".join(f"{n:9}\n" for n in range(20_000))
    text = BoundedText()
    text.write(whole)
    rest = rest_of(text.text(), seen)
    assert whole.endswith(rest[-50:])
    if seen >= len(whole) - KEPT_CHARS:
        assert rest == whole[seen:]
    else:
        assert "characters left out" in rest


def test_the_rest_of_a_short_text() -> None:
    assert rest_of("hello", 2) == "llo"
    assert rest_of("hello", 5) == ""


def test_an_answer_to_an_older_question_is_not_shown_twice() -> None:
    seen = SeenOutput()
    first = Output((0, 1), 0, "one\n", "", (4, 0))
    assert fresh_part(first, seen) == first
    seen.note(fresh_part(first, seen))
    assert fresh_part(first, seen).stdout == ""
    later = Output((0, 1), 0, "one\ntwo\n", "no\n", (8, 3))  # asked before the first answer was there
    part = fresh_part(later, seen)
    assert (part.stdout, part.stderr, part.seen) == ("two\n", "no\n", (8, 3))
    seen.note(part)
    cleared = Output((0, 1), 0, "new\n", "", (4, 3))
    assert fresh_part(cleared, seen).stdout == "new\n", "it counts from its beginning after clear_output"


def test_displays_stand_where_they_came_between_the_lines(capsys: Captured) -> None:
    sink = Sink()
    for n in range(3):
        sink.display({"data": {"text/plain": f"figure {n}"}})
        sink.write("stdout", f"epoch {n}\n")
    sink.display({"data": {"text/plain": "the end"}})
    told = sink.displays_since(0, 1000)[1]
    sink.close()
    assert sink.stdout is not None
    text, lines = sink.stdout.text(), [*(f"figure {n}\nepoch {n}" for n in range(3)), "the end"]
    whole = "".join(f"{line}\n" for line in lines)
    for labelled in (True, False):
        expected = re.sub("^(?=.)", "[7] ", whole, flags=re.MULTILINE) if labelled else whole
        printer = OutputPrinter(labelled=labelled)
        printer.rest("7", SeenOutput(), text, "", sink.outputs or [])
        printer.show(is_over=True)
        assert capsys.readouterr().out == expected, "from the result"
        printer, seen = OutputPrinter(labelled=labelled), SeenOutput()
        printer.take("7", seen, Output((7, 1), 0, text[:8], "", (8, 0), msgspec.msgpack.encode(told[:2]), 2))
        printer.rest("7", seen, text, "", sink.outputs or [])
        printer.show(is_over=True)
        assert capsys.readouterr().out == expected, "while it runs, and the rest from the result"


def test_a_display_among_the_output_of_an_item_stands_in_its_place(capsys: Captured) -> None:
    sink, values = Sink(), list[int]()
    sink.begin_items(values, 2)
    for n in range(2):
        for line in ("a\n", "b\n"):
            sink.write("stdout", f"{n}{line}")
            sink.display({"data": {"text/plain": "shown"}})
        values.append(n)
    sink.close()
    for n, written in sink.item_outputs().items():
        printer = OutputPrinter(labelled=False)
        printer.rest(str(n), SeenOutput(), written.stdout, "", written.outputs)
        printer.show(is_over=True)
        assert capsys.readouterr().out == f"{n}a\nshown\n{n}b\nshown\n"


def test_without_text_a_display_tells_no_place() -> None:
    sink = Sink()
    sink.display({"data": {"text/plain": "42"}})
    sink.close()
    assert sink.outputs == [{"data": {"text/plain": "42"}, "metadata": {}}]
