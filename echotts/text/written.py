"""Leaves out what is written but not spoken: tags, marks of Markdown, emoji, control characters.

| written | spoken |
|---|---|
| `<speak>One <break time="1s"/> two</speak>`, `<!-- note -->`, `AT&amp;T` | One, a pause, two; nothing; AT&T |
| `**bold**`, `_italic_`, `~~old~~`, `code` in backticks, `> quote` | the words |
| `# Title`, `- item` | the words, as a paragraph |
| `[words](https://example.com)`, `![words](picture.png)`, `[^1]` | words; words; nothing |
| a fenced block of code, a rule such as `---`, a link definition | nothing |
| `\\| a \\| b \\|` | a, b |
| emoji, arrows, boxes; control, formatting and private characters | nothing |

Everything else is unchanged, and so is text without any of these. Every rule takes time linear in the text's length.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_BREAKS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_JOINERS = re.compile(r"(?<![^\s])[\u200c\u200d]++|(?<![\u200c\u200d])[\u200c\u200d]++(?!\S)")
_PICTURES = (  # first and last code point of blocks of pictures; letters and digits in them are kept
    *((0x20E3, 0x20E3), (0x2190, 0x21FF), (0x2300, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x27BF), (0x2900, 0x297F)),
    *((0x2B00, 0x2BFF), (0xFE00, 0xFE0F), (0x1F000, 0x1FBFF), (0xE0100, 0xE01EF)),
)
_TAG = re.compile(
    r"""</?+([A-Za-z][\w:.-]*+)(?:\s++[\w:.-]++\s*+=\s*+(?:"[^"<>]*+"|'[^'<>]*+'|[^\s"'<>=`/]++))*+\s*+/?>"""
    r"|<[?!][A-Za-z][^<>]*+>|<!\[CDATA\[|\]\]>"
)
_PAUSES = frozenset(
    (
        *("br", "break", "p", "s", "div", "li", "ul", "ol", "tr"),
        *(f"h{n}" for n in range(1, 7)),
        "paragraph",
        "sentence",
    )
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AUTOLINK = re.compile(r"<([a-z]{3,6}://[^<>\s]*+)>")
_LINK = re.compile(r"!?\[([^\[\]\n]*+)\](?:\([^\s()]*?[/.#:@][^\s()]*+(?:[ ]\"[^\"\n()]*+\")?\)|\[[^\[\]\n]*+\])")
_FOOTNOTE = re.compile(r"\[\^[^\[\]\s]{1,40}\]:?")
_DEFINITION = re.compile(r"(?m)^[ ]{0,3}\[[^\[\]\n]++\]:[ ]*+\S++[^\n]*+$")
_RULE = re.compile(r"(?m)^[ \t]*+(?:(?:-[ \t]*+){3,}|(?:\*[ \t]*+){3,}|(?:_[ \t]*+){3,}|=[=]{2,}[ \t]*+)$")
_TABLE_RULE = re.compile(r"(?m)^[ \t]*+\|[ \t:|-]++$|^[ \t]*+:?-{2,}+:?[ \t]*+\|[ \t:|-]*+$")
_ROW = re.compile(r"(?m)^[ \t]*+\|([^\n]*)\|[ \t]*$")
_HEADING = re.compile(r"(?m)^[ ]{0,3}#{1,6}[ \t]++([^\n]*+)$")
_QUOTE = re.compile(r"(?m)^[ ]{0,3}(?:>[ \t]?)++")
_BULLET = re.compile(r"(?m)^[ \t]*+[-*+•–][ \t]++(?:\[[ xX]\][ \t]++)?(?=\S)")
_STARS = re.compile(r"(?<!\*)(?<=\S)\*++(?!\w)|(?<![\w*])\*++(?=\S)|(?<=[^\W\d*])\*{2,}+|(?<!\*)\*{2,}+(?=[^\W\d])")
_UNDERSCORES = re.compile(r"(?<![^\W_])(?<!_)_++(?=\S)|(?<!_)(?<=\S)_++(?![^\W_])")
_TICKS = re.compile(r"(?<!`)(?<![^\W\d_])`++|(?<!`)`++(?![^\W\d_])|~~")
_ESCAPED = re.compile(r"\\[*_`~]|\\(?=[^\w\s])")
_FENCE = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)[^`]*$")
_OPENING = re.compile(r"(?m)^[ \t]*+(`{3,}+|~{3,}+)[^`\n]*$")


def _title(found: re.Match[str]) -> str:
    """A heading as a paragraph, without the marks that may close it."""
    title = found[1].rstrip()
    words = title.rstrip("#")
    return f"\n{words if words != title and words.endswith((' ', chr(9))) else title}\n"


_MARKDOWN = (  # in this order: what is replaced by which words
    *(
        (_ESCAPED, ""),
        (_FOOTNOTE, ""),
        (_DEFINITION, ""),
        (_LINK, r"\1"),
        (_LINK, r"\1"),  # again: the words of a link may be a picture
        (_AUTOLINK, r"\1"),
        (_TABLE_RULE, ""),
    ),
    *((_RULE, "\n"), (_HEADING, _title), (_QUOTE, ""), (_BULLET, "\n"), (_STARS, ""), (_UNDERSCORES, "")),
    (_TICKS, ""),
)
_PLURALS = {
    "tag": "tags",
    "emoji": "emoji",
    "control character": "control characters",
    "block of code": "blocks of code",
    "mark of Markdown": "marks of Markdown",
}


@dataclass(frozen=True)
class Written:
    """`words`: the text as it is spoken. `left_out`: how many things of each kind, such as "tag", are not."""

    words: str
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def notice(self) -> str:
        """What was left out: "3 tags, 1 mark of Markdown"; empty if nothing was."""
        return ", ".join(f"{count} {kind if count == 1 else _PLURALS[kind]}" for kind, count in self.left_out.items())


def spoken_words(text: str) -> Written:
    """The text without what is not spoken; see the table of the module."""
    left_out: Counter[str] = Counter()
    lines = _BREAKS.sub("\n", text)
    words = _without_markdown(_without_signs(_without_tags(lines, left_out), left_out), left_out)
    if words == lines:
        return Written(text)
    words = re.sub(r"(?<!\n)\n(?:[ \t]*+\n){2,}+", "\n\n", re.sub(r"[ \t]{2,}+", " ", words))
    return Written(re.sub(r"(?<=[^\s.,;:!?])[ ](?=[.,;:!?](?:\s|$))", "", words).strip(), left_out)


def find_code(text: str) -> tuple[int, int]:
    """(start, end) of the first fenced block of code in text of which more may come; equal if there is none.

    The end is -1 while the block is open, or the line that may open it is not complete.
    """
    if not (opening := _OPENING.search(text)):
        return len(text), len(text)
    fence = opening[1]
    closing = re.compile(rf"(?m)^[ \t]*+{fence}{fence[0]}*+[ \t\r]*+\n").search(text, opening.end())
    return opening.start(), closing.end() if closing else -1


def _without_tags(text: str, left_out: Counter[str]) -> str:
    """Without HTML, XML and SSML; entities become characters."""
    if "<" in text:
        text = "".join(_outside_comments(text, left_out))

        def pause(found: re.Match[str]) -> str:
            left_out["tag"] += 1
            return "\n\n" if (found[1] or "").lower() in _PAUSES else ""

        text = _TAG.sub(pause, text)
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text)


def _outside_comments(text: str, left_out: Counter[str]) -> Iterator[str]:
    start = 0
    while (begins := text.find("<!--", start)) >= 0 and (ends := text.find("-->", begins + 4)) >= 0:
        yield text[start:begins]
        left_out["tag"] += 1
        start = ends + 3
    yield text[start:]


def _without_signs(text: str, left_out: Counter[str]) -> str:
    """Without pictures and control characters."""
    dropped: dict[int, None] = {}
    for character, count in Counter(text).items():
        if kind := _unspoken(character):
            dropped[ord(character)] = None
            left_out[kind] += count
    return _JOINERS.sub("", text.translate(dropped)) if dropped else text


def _unspoken(character: str) -> str | None:
    """The kind of a character that is not spoken, else None."""
    if character.isascii() and (character.isprintable() or character in "\n\t"):
        return None
    if character.isalnum() or character in "\u200c\u200d":  # these two join letters of Indic and Arabic scripts
        return None
    if any(first <= ord(character) <= last for first, last in _PICTURES):
        return "emoji"
    return "control character" if unicodedata.category(character)[0] == "C" else None


def _without_markdown(text: str, left_out: Counter[str]) -> str:
    words, marks = "\n".join(_outside_code(text.split("\n"), left_out)), 0
    for pattern, replacement in _MARKDOWN:
        words, count = pattern.subn(replacement, words)
        marks += count
    words, count = _ROW.subn(lambda row: ", ".join(cell.strip() for cell in row[1].split("|")) + "\n", words)
    if marks + count:
        left_out["mark of Markdown"] += marks + count
    return words


def _outside_code(lines: list[str], left_out: Counter[str]) -> Iterator[str]:
    """Lines outside of fenced blocks; an unclosed block is text."""
    begun: list[str] = []
    fence = ""
    for line in lines:
        found = _FENCE.match(line)
        if not begun and found:
            begun, fence = [line], found[1]
        elif begun and found and found[1].startswith(fence) and line.strip() == found[1]:
            left_out["block of code"] += 1
            begun = []
            yield ""
        elif begun:
            begun.append(line)
        else:
            yield line
    if begun:
        left_out["mark of Markdown"] += 1
        yield from begun[1:]
