"""Spells out English numbers, amounts, times and a few signs as they are read aloud.

| written | read |
|---|---|
| 7, 42, 1,250,000 | seven, forty-two, one million two hundred and fifty thousand |
| 1987, 2005, 1900 (four digits, no comma) | nineteen eighty-seven, two thousand and five, nineteen hundred |
| 007, numbers of more than 15 digits | digit by digit |
| 3.14, -5 | three point one four, minus five |
| 1st, 22nd, 1990s | first, twenty-second, nineteen nineties |
| $4, £2.50, €1 | four dollars, two pounds fifty, one euro |
| 10:30, 7:05, 9:00 | ten thirty, seven oh five, nine o'clock |
| 45%, &, +, @, = | forty-five percent, and, plus, at, equals |
"""

import re

_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))
_LARGEST_DIGITS = 15
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_CURRENCIES = {"$": "dollar", "£": "pound", "€": "euro"}
_SIGNS = {"&": " and ", "+": " plus ", "@": " at ", "=": " equals "}
_NUMBER = r"\d{1,3}(?:,\d{3})+|\d+"


def spoken(text: str) -> str:
    """Spells out every number and sign of the module's table; other text is returned unchanged."""
    if not re.search(r"[\d&+@=%]", text):
        return text
    text = re.sub(rf"([$£€])({_NUMBER})(?:\.(\d\d))?(?!\d)", _amount, text)
    text = re.sub(r"\b(\d{1,2}):([0-5]\d)(?!\d|:\d)", _clock, text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", lambda found: ordinal(int(found[1])), text)
    text = re.sub(r"\b(\d*0)s\b", _decade, text)
    text = re.sub(rf"(?<![\w.])[-−](?=(?:{_NUMBER}))", "minus ", text)
    text = re.sub(rf"({_NUMBER})\.(\d+)", lambda found: f"{_plain(found[1])} point {_each(found[2])}", text)
    text = re.sub(_NUMBER, _standing_apart, text)
    text = re.sub(r"\s*%", " percent", text)
    for sign, words in _SIGNS.items():
        text = text.replace(sign, words)
    return re.sub(r" {2,}", " ", text).strip()


def cardinal(value: int) -> str:
    """A whole number from 0 to 10**15 - 1 in words, in British style: one hundred and five."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10] + (f"-{_ONES[value % 10]}" if value % 10 else "")
    if value < 1000:
        rest = f" and {cardinal(value % 100)}" if value % 100 else ""
        return f"{_ONES[value // 100]} hundred{rest}"
    scale, name = next(entry for entry in _SCALES if value >= entry[0])
    rest = value % scale
    joint = " and " if 0 < rest < 100 else " "
    return f"{cardinal(value // scale)} {name}" + (f"{joint}{cardinal(rest)}" if rest else "")


def ordinal(value: int) -> str:
    """Ordinals: first, twenty-second, hundredth, ..."""
    words = cardinal(value)
    last = re.split("[ -]", words)[-1]
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return words.removesuffix(last) + _ORDINALS.get(last, regular)


def year(value: int) -> str:
    """A four-digit number read as a year: nineteen eighty-seven, two thousand and five, nineteen hundred."""
    century, rest = divmod(value, 100)
    if (century % 10 == 0 and rest < 10) or value < 1000:
        return cardinal(value)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {f'oh {_ONES[rest]}' if rest < 10 else cardinal(rest)}"


def _year_or_number(digits: str) -> str:
    return year(int(digits)) if len(digits) == 4 and digits[0] != "0" else _plain(digits)


def _plain(digits: str) -> str:
    digits = digits.replace(",", "")
    if len(digits) > _LARGEST_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return _each(digits)
    return cardinal(int(digits))


def _each(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)


def _standing_apart(found: re.Match[str]) -> str:
    """The number in words, separated from adjacent letters."""
    words = _year_or_number(found[0])
    before = " " if found.start() and found.string[found.start() - 1].isalpha() else ""
    after = " " if found.string[found.end() : found.end() + 1].isalpha() else ""
    return before + words + after


def _decade(found: re.Match[str]) -> str:
    words = _year_or_number(found[1])
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _amount(found: re.Match[str]) -> str:
    sign, whole, cents = found.groups()
    unit = _CURRENCIES[sign] + ("" if whole == "1" else "s")
    small = f" {cardinal(int(cents))}" if cents and int(cents) else ""
    return f"{_plain(whole)} {unit}{small}"


def _clock(found: re.Match[str]) -> str:
    hour, minute = int(found[1]), int(found[2])
    if minute == 0:
        return f"{cardinal(hour)} o'clock"
    return f"{cardinal(hour)} {f'oh {_ONES[minute]}' if minute < 10 else cardinal(minute)}"
