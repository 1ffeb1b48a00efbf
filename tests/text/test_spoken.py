"""Numbers and signs in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echotts.text.spoken import cardinal, ordinal, spoken, year


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("42 cats, 1,250,000 dogs", "forty-two cats, one million two hundred and fifty thousand dogs"),
        ("1987, 2005, 1900", "nineteen eighty-seven, two thousand and five, nineteen hundred"),
        ("agent 007", "agent zero zero seven"),
        ("3.14 or -5", "three point one four or minus five"),
        ("the 1st, 22nd and 30th of the 1990s", "the first, twenty-second and thirtieth of the nineteen nineties"),
        ("$4, £2.50 and €1", "four dollars, two pounds fifty and one euro"),
        ("at 10:30, 7:05 or 9:00", "at ten thirty, seven oh five or nine o'clock"),
        ("45% & 5+5=10", "forty-five percent and five plus five equals ten"),
        ("room B12", "room B twelve"),
        ("1" * 20, " ".join(["one"] * 20)),
        ("nothing to change", "nothing to change"),
    ],
)  # fmt: skip
def test_digits_and_signs_are_spelled_out_as_in_the_table(written: str, read: str) -> None:
    assert spoken(written) == read


@given(st.text("0123456789.,:-+%$&@= abs", max_size=30))
def test_no_digit_is_left_and_the_words_stay_as_they_are_when_read_again(text: str) -> None:
    read = spoken(text)
    assert not any(letter.isdigit() for letter in read)
    assert spoken(read) == read or any(sign in read for sign in "+&@=%")


@given(st.integers(0, 10**15 - 1))
def test_cardinals_of_different_numbers_differ_and_have_no_digits(value: int) -> None:
    assert cardinal(value) != cardinal(value + 1 if value < 10**15 - 1 else 0)
    assert not any(letter.isdigit() for letter in cardinal(value))


def test_ordinals_and_years_have_their_own_forms() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 5, 8, 9, 12, 20, 21, 100)] == [
        "first", "second", "third", "fifth", "eighth", "ninth", "twelfth", "twentieth", "twenty-first", "one hundredth",
    ]  # fmt: skip
    assert [year(n) for n in (1905, 2000, 2026)] == ["nineteen oh five", "two thousand", "twenty twenty-six"]
