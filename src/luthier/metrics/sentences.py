"""Sentences and words in capitals, counted as IFEval counts them, without its packages. For English text.

IFEval counts with NLTK: sentences by Punkt (Kiss and Strunk 2006) with its English model, words by the Penn Treebank rules. Here their
decisions are made by rules and a short list of abbreviations. On 540 answers of GPT-4 that Google published with IFEval, which the rules
were written by, the number of sentences is the same in 99.3 % and that of words in capitals in all (docs/behaviour.md).
"""

from __future__ import annotations

import re

# Marks; behind them white space, or a sign that Punkt takes for a word of its own. A line break alone ends no sentence.
_MARKS = re.compile(r"""(?<![.!?])[.!?]++(?=\s|[)";}\]*:@'({\[])""")
_CLOSING = re.compile(r"""\s*+(?:["')\]}]++(?:\s++|$))?""")
WITHIN = 40  # characters: as much is looked at for the word before and behind the marks
_OPENING = "\"'“‘([{*_"
# Titles, months, places and firms. "e.g.", "i.e." and "etc." are none to Punkt's English model: a sentence ends behind them.
ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "gen", "col", "lt", "maj", "sen", "rep", "messrs", "vs", "inc", "corp", "co",
    "ltd", "bros", "ave", "ft", "ok", "jan", "feb", "aug", "sept", "sep", "oct", "nov", "dec", "tues", "wed", "fri", "calif",
    "conn", "fla", "mich", "minn", "pa", "va", "wash", "ph.d", "m.b.a", "a.m", "p.m",
})  # fmt: skip
_INITIALS = re.compile(r"(?!p\.s$|p\.p\.s$|e\.g$|i\.e$)(?:[a-z]\.)+[a-z]")
NO_INITIAL = frozenset("abioqux")  # a single letter that more often ends a sentence, or numbers a list, than begins a name
# After an abbreviation or three dots these begin a sentence, in capitals; any other word goes on with it.
STARTERS = frozenset({
    "the", "this", "these", "they", "there", "it", "he", "i", "in", "if", "but", "so", "and", "or", "as", "when", "while",
    "although", "though", "however", "since", "some", "many", "most", "both", "then", "that", "what", "how", "why", "where", "who",
    "you", "your", "we", "my", "she", "his", "her", "their", "its", "our", "are", "is", "do", "not", "no", "all",
})  # fmt: skip

# Between two words of the Penn Treebank rules, as far as words in capitals go. A hyphen joins, as do points inside: "U.S.A.".
_BETWEEN = re.compile(
    r"""[\s;@#$%&?!()\[\]{}<>*"«»“”‘’„`‒–—―]+|[:,](?!\d)|\.\.+|--+"""
    r"""|(?<=\w)(?=(?i:n't|'(?:s|m|d|ll|re|ve))(?!\w))"""
    r"""|(?<=\bCAN)(?=NOT\b)|(?<=\b(?:GON|WAN))(?=NA\b)|(?<=\bGOT)(?=TA\b)|(?<=\b(?:GIM|LEM))(?=ME\b)"""
)


def count_sentences(text: str) -> int:
    """How many sentences Punkt would find, nearly always (see above). None in empty text, one where no mark ends any."""
    given = text.strip()
    cuts: set[int] = set()
    for found in _MARKS.finditer(given):
        closing = _CLOSING.match(given, found.end())
        begin = found.end() if closing is None else closing.end()
        word = re.split(r"\s", given[max(0, found.start() - WITHIN) : found.start()])[-1]
        if begin < len(given) and _ends(word, found[0], given[begin : begin + WITHIN]):
            cuts.add(begin)
    return bool(given) + len(cuts)


def _ends(word: str, marks: str, following: str) -> bool:
    """Whether the marks behind `word` end a sentence, by what follows."""
    if marks[-1] != ".":
        return True
    name = re.split(r"[!?]|\.\.", word)[-1].lstrip(_OPENING).lower()
    first = re.match(r"[^\W\d_]+", following)
    begins_anew = first is not None and first[0][0].isupper() and first[0].lower() in STARTERS
    if len(name) == 1 and name.isalpha():
        return name in NO_INITIAL or (len(marks) > 1 and begins_anew)
    if len(marks) > 1 or name in ABBREVIATIONS or _INITIALS.fullmatch(name):
        return begins_anew
    return not (name.isdigit() and following[0].islower())


def count_capital_words(text: str) -> int:
    """How many of the words that the Penn Treebank rules find are in capitals. "I" is one; "DON'T", "CANNOT" and "A, B" are two each."""
    return sum(word.isupper() for word in _BETWEEN.split(text))
