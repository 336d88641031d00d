r"""The rules of the Penn Treebank tokeniser: what counts as one token, and how it is written.

`ptb.py` reads text with the table RULES below. At every position in the text all rules are tried. The
longest match wins; of equally long matches, the first rule in the table wins. So the order matters
only for ties: special rules come before general ones.

The notation is that of `lex`, close to Python's `re`:

    a         that letter, lower or upper case
    [aeiou]   one character of the set, exactly as written (so [A] is only a capital A)
    {word}    the definition of that name, from DEFINITIONS
    ( | ) * + ? {m,n} \.   as in `re`

Where the convention comes from. The Penn Treebank (Marcus, Santorini and Marcinkiewicz 1993) split
English text so that every token could carry one part-of-speech tag: "don't" is a verb and an adverb,
so it is "do" + "n't"; "cannot" is "can" + "not"; opening and closing quotation marks became `` and ''
as in LaTeX; brackets became -LRB- and -RRB-, because bare brackets mark structure in a
treebank file. Robert MacIntyre wrote the convention down as a sed script. Stanford's PTBTokenizer
(which METEOR, ROUGE-L and CIDEr use in the caption and data-to-text scorers) kept it and
added what later text needed: URLs, e-mail addresses, smileys, hashtags, currency signs, Unicode
punctuation, and long lists of abbreviations whose period belongs to the word. These are the rules of
release 3.4.1, which those scorers ship, including its oddities, because an oddity changes a score.

Left out: the reference's options that the scorers do not use: American spelling (so "centre" stays),
Unicode quotes, escaped slashes, and the stricter Treebank dialect.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# ------------------------------------------------------------------------------------------------
# Character sets that are too large for brackets
# ------------------------------------------------------------------------------------------------

# The reference has fixed sets of letters and digits from the Unicode tables of its time (about 6.1).
# Python's tables are newer and grow with every release, so the characters that became letters, digits or
# capitals since then are excluded. Ranges include gaps that held no letter in the old tables.
LATER = re.compile(
    "[\u037f\u0528-\u052f\u0560\u0588\u05ef\u0860-\u089f\u08a1\u08ad-\u08c9\u0978\u0980\u09fc\u0af9\u0c34"
    "\u0c5a-\u0c5d\u0c80\u0cdd\u0d04\u0d54-\u0d5f\u0de6-\u0def\u0e86\u0e89\u0e8c\u0e8e-\u0e93\u0e98\u0ea0\u0ea8"
    "\u0ea9\u0eac\u13f5-\u13fd\u16f1-\u16f8\u170d\u171f\u1878\u191d\u191e\u19b0-\u19c0\u19c8\u19c9\u1b4c\u1c80-\u1cbf"
    "\u1cf2\u1cf3\u1cfa\u2c2f\u2c5f\u312e\u312f\u31bb-\u31bf\u4db6-\u4dbf\u9fcd-\u9fff\ua698-\ua69d\ua78f\ua794-\ua79f"
    "\ua7ab-\ua7f7\ua8fd\ua8fe\ua9e0-\ua9fe\uaa7e\uaa7f\uab30-\uabbf]"
)


def is_letter(char: str) -> bool:
    # Two Mongolian letters have been reclassified as marks since.
    return (char.isalpha() or char in "\u1885\u1886") and not LATER.match(char)


def is_digit(char: str) -> bool:
    return char.isdecimal() and not LATER.match(char)


def is_capital(char: str) -> bool:
    # Cherokee had no lower case in the old tables, hence no capitals.
    return char.isupper() and not LATER.match(char) and not "\u13a0" <= char <= "\u13f5"


CHARACTER_SETS: dict[str, Callable[[str], bool]] = {
    "letter": is_letter,
    "digit": is_digit,
    "capital": is_capital,
    "any": lambda char: True,
}

# ------------------------------------------------------------------------------------------------
# Definitions: the pieces that several rules share
# ------------------------------------------------------------------------------------------------


def one_of(words: str) -> str:
    """The pattern for any word of a list; a period is a literal period."""
    return "|".join(words.replace(".", r"\.").split())


DEFINITIONS: dict[str, str] = {
    # --- white space. Exotic line ends (vertical tab, form feed, U+0085, U+2028, U+2029) count.
    "space": r"[ \t\u00a0\u2000-\u200a\u3000]",
    "newline": r"\r?\n|[\r\v\f\x85\u2028\u2029]",
    "blank": r"{space}|{newline}",
    # --- words. Inside a word also accented letters written as entities (&eacute;), the soft hyphen (invisible,
    # removed later), and the combining marks of the scripts up to Lao, which are not letters by themselves.
    "alnum": r"{letter}|{digit}",
    "wordletter": r"{letter}|&[aeiouAEIOU](acute|grave|uml);|[\u00ad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed"
    r"\u02ef-\u036f\u0375\u0378\u0379\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f\u0591-\u05bd\u05bf"
    r"\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed\u06fd"
    r"\u06fe\u070f\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e"
    r"\u0951-\u0955\u0962\u0963\u0981-\u0983\u09bc\u09be-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2"
    r"\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f\u0a81-\u0a83\u0abc\u0abe-\u0acf\u0b82\u0bbe-\u0bc2"
    r"\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48\u0e31\u0e34-\u0e3a"
    r"\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd]",
    "wordpart": r"{wordletter}({wordletter}|{digit})*",
    # A missing space after a full stop does not end a word: "food.Prices" is one token.
    "word": r"{wordpart}([.!?]{wordpart})*",
    # --- apostrophes. `apos` is the plain one, its curly twin, the same in Windows' code page 1252 read as
    # Latin-1 (\x92), and the entity; `anyapos` adds the marks people type instead of it.
    "apos": r"['\x92\u2019]|&apos;",
    "anyapos": r"{apos}|[`\x91\u2018\u201b]",
    "clitic": r"{apos}([msdMSD]|re|ve|ll)",  # it's, I'm, we'd, they're, I've, she'll
    "nt": r"n{anyapos}t",  # the "n't" of don't, and of ca n't
    # --- compounds, whose hyphens belong to the word: the Treebank tagged "state-of-the-art" as one adjective
    "hyphen": r"[-_\u058a\u2010\u2011]",
    "elided": r"([dDoOlL]{anyapos}({alnum}))?({alnum})+",  # d'Artagnan, o'clock, L'Oreal
    "compound": r"{elided}({hyphen}{elided})*",
    # Only plain ASCII, with commas and periods allowed before the hyphen: 1.5-litre, 2,000-seat, pre-U.S.
    "asciicompound": r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(-([A-Za-z0-9\u00ad]+|([A-Za-z](\.[A-Za-z])+|{usa})\.))+",
    "ampcompound": r"[A-Z]+(([+&]|&amp;)[A-Z]+)+",  # AT&T, R&D, B&B
    "slashpart": r"[A-Za-z0-9]+(-[A-Za-z]+){0,2}",
    "comma": r"[,;:\u3001]",
    # --- abbreviations, to which their period belongs. First kind: the text usually continues in lower case, so
    # a capital after them starts a sentence. (Those that are also words require their capital: [M]ass.)
    "endabbr": "("
    + one_of(
        "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec  Mon Tue Tues Wed Thu Thurs Fri "  # dates
        "Ala Ariz [A]z [A]rk Calif Colo Conn Ct Dak [D]el Fla Ga [I]ll Ind Kan Kans Ky [L]a [M]ass Md Mich "  # states
        "Minn [M]iss Mo Mont Neb Nev Okla [O]re [P]a Penn Tenn [T]ex Va Vt [W]ash Wis Wisc Wyo "
        "Assn Bancorp Bhd Bros Co Corp Cos Inc Intl Ltd Plc Pp?t[ey]s? Rt Sys Univ "  # companies
        "Blvd Bldg Rd  Jr Sr Esq Ed.D Ph.D  al est etc ext seq sq tel"
    )
    + r")\.",
    # Letters with periods between them: U.S, a.m, p.m, e.g, and some compounds of "U.S".
    "usa": one_of("Canada-U.S EU-U.S Japan-U.S Korean-U.S Sino-U.S non-U.S U.S.-U.K U.S.-U.S.S.R"),
    "initials": r"[A-Za-z](\.[A-Za-z])*|{usa}",
    # Second kind: a name or a capital usually follows, so they never end a sentence.
    "midabbr": r"{initials}|"
    + one_of(
        "Mr Mrs Ms Messrs [M]iss Mlle Mme Dr Drs Hon Prof Profs Pres Rev Msgr Ste St Gov Govs Rep Reps "  # titles
        "Sen Sens  Adj Adm Brig Capt Cmdr Comdr Col Cpl Det Ens Gen Insp Lt Lieut Maj Pfc Pvt Sfc Sgt Spc "  # ranks
        "Supt Supts  Adv Asst Assoc Atty Attys  Alex Jos Wm  Ave Ft Mt  Cie Dept Elec Invt M[ft]g Natl TREAS "
        "a.k.a cf Ph vs"
    ),
    # Third kind: abbreviations only before a number (fig. 3, no. 5, pp. 10).
    "numabbr": "(" + one_of("art bldg ca fig figs no nos op pp prop") + r")\.",
    # Words that open a sentence so often that "U.S. The" is read as the end of one. The capital is required.
    "opener": r"{tag}|"
    + one_of(
        "[A] [A]n [T]he [T]hat [T]hese [T]his  [H]e [H]er [I]t [O]ne [O]ur [S]he [T]heir [T]hey [W]e [Y]ou "
        "[M]any [M]ore [O]ther [S]ome [S]uch  [A]bout [A]ccording [A]dditionally [A]fter [A]s [A]t [B]ut [E]arlier "
        "[H]ere [H]owever [I]f [I]n [L]ast [N]ow [O]nce [S]ince [S]o [T]hen [T]here [W]hat [W]hen [W]hile [Y]et "
        "[M]r. [M]s."
    ),
    "newsentence": r"{blank}+({opener}){blank}",
    # --- numbers
    "number": r"[-+]?({digit}+|{digit}*([.:,\u00ad\u066b\u066c]{digit}+)+)",  # 1,000.50  12:30  -.5
    "fraction": r"{digit}{1,4}(\\?\/|\u2044){digit}{1,4}",
    # --- markup: comments and declarations, opening tags with attributes, closing tags
    "name": r"[A-Za-z][A-Za-z0-9_:.-]*",
    "tag": r"<([!?][A-Za-z-][^>\r\n]*"
    r"|{name}( +{name}( *= *('[^']*'|\"[^\"]*\"))?)* *\/?"
    r"|\/{name}) *>",
    # --- addresses. A URL cannot end in punctuation, which belongs to the sentence.
    "path": r"\/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},-]",
    # In the second set the reference has ",-_", which is a range, from comma to underscore. It includes capitals
    # and digits: "b&b.com" is one token, "B&B.com" is three, as in the reference.
    "bareurl": r"www\.([^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
    r"|([^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(com|net|org|edu)",
    "mailpart": r"[^ \t\n\f\r\"<>|(){}.\u00a0]+",
    "file": r"(({wordletter}|{digit})+\.)+("
    + one_of(
        "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt "
        "ps py sql tar txt wav x xml zip"
    )
    + ")",
}

# ------------------------------------------------------------------------------------------------
# How a token is written: from the matched characters to the token. None means no token.
# ------------------------------------------------------------------------------------------------

NBSP = "\u00a0"


def keep(text: str) -> str:
    return text


def drop(text: str) -> None:
    return None


def no_soft_hyphens(text: str) -> str:
    """Soft hyphens only mark possible line breaks; a token of nothing else becomes a hyphen."""
    return text.replace("\u00ad", "") or "-"


def hold_together(text: str) -> str:
    """A token can match across a space ("1 1/2") but must not contain one: it becomes a no-break space."""
    return text.replace(" ", NBSP)


def brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def phone(text: str) -> str:
    return brackets(hold_together(text))


def ampersand(text: str) -> str:
    return re.sub("&amp;", "&", text, flags=re.IGNORECASE)


def closing_quotes(text: str) -> str:
    """Straight quotes become closing ones; curly and angular ones keep their direction."""
    text = re.sub("&apos;", "'", text)
    text = re.sub('"|&quot;', "''", text)
    text = re.sub("[\x91\u2018\u201b\u2039]", "`", text)
    text = re.sub("[\x92\u2019\u203a]", "'", text)
    text = re.sub("[\x93\u201c\u00ab]", "``", text)
    return re.sub("[\x94\u201d\u00bb]", "''", text)


def opening_quotes(text: str) -> str:
    return closing_quotes(re.sub('"|&quot;', "``", re.sub("&apos;|'", "`", text)))


def fraction_sign(text: str) -> str:
    """Five of the fraction signs have an ASCII form; the others (1/8 ...) stay as they are."""
    for sign, ascii_form in zip("\u00bc\u00bd\u00be\u2153\u2154", ("1/4", "1/2", "3/4", "1/3", "2/3")):
        text = text.replace(sign, ascii_form)
    return text


def currency(text: str) -> str:
    """The Treebank is older than the euro and wrote pounds as #; other signs (yen, won, ...) stay."""
    return {"\u00a2": "cents", "\u00a3": "#", "\x80": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$"}.get(text, text)


def write(token: str) -> Callable[[str], str]:
    """The token is this, whatever matched."""
    return lambda text: token


def dashes(text: str) -> str:
    """Three or four hyphens become a dash (one, two, and five or more stay as they are)."""
    return "--" if 3 <= len(text) <= 4 else text


# ------------------------------------------------------------------------------------------------
# The rules
# ------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    pattern: str  # what is matched
    token: Callable[[str], str | None] = keep  # how it is written
    before: str = ""  # what must follow; counts for the length of the match, and is read again
    give_back: int = 0  # the last characters of the match that are not part of the token; read again
    twice: int = 0  # the last characters of the token that are read again


RULES: list[Rule] = [
    # --- Words that become two. Contractions without an apostrophe: can not, 't was, 't is, gon na, lem me.
    Rule("cannot|'twas", give_back=3),
    Rule("'tis|gonna|gotta|lemme|gimme|wanna", give_back=2),
    # The word before 's, 'll and so on, and before n't, which takes its n from the word: do|n't, ca|n't.
    Rule(r"{word}", no_soft_hyphens, before=r"{clitic}"),
    Rule(r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", no_soft_hyphens, before=r"{nt}"),
    Rule(r"y{apos}", before=r"{letter}"),  # y'all is y' all
    # --- Words
    Rule(r"{word}", no_soft_hyphens),
    Rule(r"c\+\+|(c|f)#"),  # programming languages
    # Words with an apostrophe of their own: rock 'n' roll, l'amour, d'oh, Dunkin', 'em, O'Brien, '60s, 'til, ma'am
    # (a vowel on each side), 'cause and a few more.
    Rule(
        r"{apos}n{apos}?|[lLdDjJ]{apos}|(Dunkin|somethin|ol){apos}|{apos}(em|till?|cause|[2-9]0s)"
        r"|[A-HJ-XZn]{anyapos}{letter}{letter}+|{letter}+[aeiouyAEIOUY]{anyapos}[aeiouA-Z]{letter}*|O{anyapos}o"
        r"|c'mon|cont'd\.?|e'er|ev'ry|li'l|nat'l|nor'easter|s'mores"
    ),
    # --- The second of the two: 's and n't by themselves
    Rule(r"{clitic}|{nt}", closing_quotes, before=r"[^A-Za-z]"),
    # --- Markup and addresses
    Rule(r"{tag}", hold_together),
    Rule(r"https?:\/\/[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},-]|({bareurl})({path})?"),
    Rule(r"(&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{}]*@({mailpart}\.)*{mailpart}(&gt;|>)?"),
    Rule(r"@[a-zA-Z_][a-zA-Z_0-9]*|#({wordletter})+"),  # @name and #hashtag
    Rule(r"&(HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"),  # entities of news wires, and &#233;
    # --- Numbers and money
    Rule(r"{digit}{1,2}[-\/]{digit}{1,2}[-\/]{digit}{2,4}"),  # 12/05/2014, 1-2-99
    Rule(r"{number}", no_soft_hyphens),
    Rule(r"[\u207a\u207b\u208a\u208b]?([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)"),  # m², H₂O
    Rule(r"({digit}{1,4}[- \u00a0])?{fraction}", hold_together),  # 1/2, and 1 1/2 as one token
    Rule(r"[\u00bc-\u00be\u2153-\u215e]", fraction_sign),
    Rule(r"[A-Z]*\$|#"),  # $, US$, NZ$; # was the pound sign
    Rule(r"[\u00a2-\u00a5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]", currency),
    # --- Words that the Treebank kept whole, including bracket names that are already in the text
    Rule(r"-(RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S(&|&amp;)(P-500|Ls)|Cap{apos}n|c{apos}est", ampersand),
    Rule(r"{slashpart}(\\?\/{slashpart}){1,2}"),  # and/or, 24/7, TV/radio
    # --- Abbreviations. Initials before a word that opens a sentence also end the previous sentence. The one period
    # is in two tokens: "the U.S. The" gives U.S. and a period. A single letter there is not an abbreviation:
    # "vitamin C. The" gives C and a period.
    Rule(r"[A-Za-z]\.", give_back=1, before=r"{newsentence}"),
    Rule(r"({initials})\.", twice=1, before=r"{newsentence}"),
    Rule(r"{numabbr}", before=r"({blank})?{digit}"),
    Rule(r"(pt[eyEY]|co)\.", before=r"{space}(ltd|lim)"),  # Pty. Ltd.: not the end of a sentence
    # The first kind of abbreviation: before a capital, and at the end of the text, the period counts twice.
    Rule(r"{endabbr}", twice=1, before=r"({blank})({blank}|{capital}|{tag})"),
    Rule(r"{endabbr}", before=r"{any}{any}"),
    Rule(r"{endabbr}", twice=1),
    Rule(r"({midabbr})\."),
    Rule(r"{midabbr}", before=r"{space}"),
    Rule(r"{initials}", before=r"{blank}"),
    Rule(r"{apos}[0-9][0-9]", before=r"{blank}"),  # '99
    Rule(r"{file}", before=r"{blank}|[.?!,]"),
    # A word with a period before a comma or colon must be an abbreviation, listed or not: "approx., 5".
    Rule(r"{word}\.", no_soft_hyphens, before=r"{comma}"),
    Rule(
        r"(\([0-9]{2,3}\)[ \u00a0]?|(\+\+?)?([0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"  # (555) 123-4567
        r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}"
        r"|((\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        phone,
    ),  # 555.123.4567
    # --- Smileys: :-) ;P =D, then ^_^ and (-_-) and the like. "^.^" was meant as well, but the reference escapes one
    # bracket too many, and a bare ~ means "everything up to" there: the result matches "^.[^x=", any text, "<>]",
    # which nobody writes.
    Rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", brackets, before=r"[^A-Za-z0-9]"),
    Rule(
        r"[-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][_.]?[-\^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)"
        r"|[\^x=~<>]\.\[\^x=[^<]*<>\]",
        brackets,
    ),
    # --- Compounds. A period before a comma belongs to them: "pre-Nov., say".
    Rule(r"{asciicompound}\.", no_soft_hyphens, before=r"{comma}"),
    Rule(r"{asciicompound}", no_soft_hyphens),
    Rule(r"{compound}\.", before=r"{comma}"),
    Rule(r"{compound}"),
    Rule(r"{ampcompound}\.", ampersand, before=r"{comma}"),
    Rule(r"{ampcompound}", ampersand),
    # --- Quotation marks. A straight one opens if a letter, digit or dollar sign follows directly, and closes
    # otherwise; an apostrophe before a word of two characters or more is probably an opening quote.
    Rule(r"\"|&quot;", opening_quotes, before=r"[A-Za-z0-9$]"),
    Rule(r"\"|&quot;", closing_quotes),
    Rule(r"'", opening_quotes, before=r"[A-Za-z][^ \t\n\r\u00a0]"),
    Rule(r"{clitic}|{nt}", closing_quotes),  # at the very end of the text
    Rule(r"{apos}|''|[`\u2018-\u201f\x91-\x94\u2039\u203a\u00ab\u00bb]{1,2}", closing_quotes),
    # --- Brackets
    Rule(r"\(", write("-LRB-")),
    Rule(r"\)", write("-RRB-")),
    Rule(r"\[", write("-LSB-")),
    Rule(r"\]", write("-RSB-")),
    Rule(r"\{", write("-LCB-")),
    Rule(r"\}", write("-RCB-")),
    Rule(r"<|&lt;", write("<")),
    Rule(r">|&gt;", write(">")),
    Rule(r"<<|>>"),
    # --- Punctuation
    Rule(r"-+", dashes),
    Rule(r"&(MD|mdash|ndash);|[\x96\x97\u2013-\u2015]", write("--")),
    Rule(r"\.{3,5}|(\.[ \u00a0]){2,4}\.|[\x85\u2026]", write("...")),  # also ". . ." and the single sign
    Rule(r"[?!]+|{comma}|[.\u00a1\u00bf\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]"),  # ?! and !!! are one
    # --- Signs: mathematics, footnotes, arrows, bullets, degrees, full-width punctuation ...
    Rule(r"&amp;", ampersand),
    Rule(r"\*+|(\\\*){1,3}"),
    Rule(r"@+|#+|_+|="),
    Rule(r"\/"),
    Rule(
        r"[+%&~\^|\\\u00a6\u00a7\u00a8\u00a9\u00ac\u00ae\u00af\u00b0-\u00ba\u00d7\u00f7\u0387\u05be\u05c0\u05c3\u05c6"
        r"\u05f3\u05f4\u0600-\u0603\u0606-\u060a\u060c\u0614\u061b\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964"
        r"\u0965\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e"
        r"\u2100-\u214f\u2190-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
    ),
    # --- No tokens: spaces, invisible characters, line ends, and all that no other rule matches (control characters,
    # emoji, newer scripts), one UTF-16 unit at a time.
    Rule(r"({space})+|&nbsp;|[\0\u200b\u200e\u200f\ufeff]", drop),
    Rule(r"\x7f", drop),
    Rule(r"\r?\n", write("\n")),  # passed on: ptb.py counts lines with it
    Rule(r"[\r\v\f\x85\u2028\u2029]", drop),  # not a line end for the scorer, see ptb.py
    Rule(r"[^\n]", drop),
]
