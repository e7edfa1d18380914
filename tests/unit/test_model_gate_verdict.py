"""A verdict in words and as a table."""

import io

from rich.console import Console

from graftline.components.verdict import Check, Verdict


def verdict(*outcomes: bool | None, passed: bool = True, overridden: str = "") -> Verdict:
    checks = tuple(
        Check(
            metric="recall", slice=f"class [{i}]", candidate=0.5, passed=outcome, note=f"note {i}"
        )
        for i, outcome in enumerate(outcomes)
    )
    return Verdict(gate="model", passed=passed, overridden=overridden, checks=checks)


def on_screen(verdict: Verdict) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(verdict.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_clean_pass_is_one_line() -> None:
    assert verdict(True, True).in_words() == "The model gate: passed all 2 checks."


def test_what_could_not_be_decided_is_never_silent() -> None:
    assert verdict(True, None).in_words().splitlines() == [
        "The model gate: passed, 1 of 2 checks could not be decided.",
        "  ?   note 1",
    ]


def test_a_refusal_names_its_reasons_first() -> None:
    assert verdict(None, False, passed=False).in_words().splitlines() == [
        "The model gate: refused, 1 of 2 checks failed.",
        "  no  note 1",
        "  ?   note 0",
    ]


def test_an_override_tells_whose_word_it_was() -> None:
    words = verdict(False, overridden="we know").in_words()
    assert words.startswith("The model gate: 1 of 1 checks failed; let through: we know.")


def test_the_table_shows_names_with_brackets_as_they_are() -> None:
    assert "class [0]" in on_screen(verdict(True))


def test_the_table_of_many_classes_leaves_out_those_that_passed() -> None:
    shown = on_screen(verdict(*[True] * 500, False, None))
    assert "class [500]" in shown
    assert "class [501]" in shown
    assert "class [7]" not in shown
    assert "500 further checks passed" in shown
